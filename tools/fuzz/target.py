"""What a fuzz target is: a parser, or a whole core or actor around one, and what must hold whatever comes.

A target is made anew for each block of inputs, and may keep state within a block. `feed` takes one input;
what it raises is a violation, unless `documented` says that it may be raised. `check` looks at the bounds of
what was kept, at the end of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from tools.fuzz import mutate
from ztna.errors import RemoteProtocolError

AMPLIFICATION_LIMIT = 3
"""What an address that proved nothing may be sent, times what came from it (RFC 9000 §8)."""


class Violation(Exception):  # noqa: N818 - the word that reports use
    """What must hold does not."""


def require(holds: bool, complaint: str) -> None:
    """Raise `Violation` unless it holds."""
    if not holds:
        raise Violation(complaint)


class Target:
    """Subclasses set `name` and `what`, give examples, and take inputs."""

    name: ClassVar[str]
    what: ClassVar[str]
    """What is attacked, for `--list`."""
    documented: ClassVar[tuple[type[Exception], ...]] = (RemoteProtocolError,)
    runs: ClassVar[int] = 1_000_000
    """Inputs of a full run; fewer where each is expensive, which `what` then says."""
    short_runs: ClassVar[int] = 1000
    """Inputs of the run within the tests."""
    block: ClassVar[int] = 500
    """Inputs before the target is made anew."""
    tokens: ClassVar[Sequence[bytes]] = ()
    is_protobuf: ClassVar[bool] = False
    """Whether the examples, behind `prefix_bytes`, are serialised messages."""
    prefix_bytes: ClassVar[int] = 0
    """Leading bytes that choose what is done with the rest; not mutated as often as the rest."""
    prefixes: ClassVar[Sequence[bytes]] = ()
    """All sensible ones."""

    def corpus(self) -> list[bytes]:
        """Valid examples, of our own making; the same in every process."""
        raise NotImplementedError

    def feed(self, data: bytes) -> None:
        """Take one input."""
        raise NotImplementedError

    def check(self) -> None:
        """Check the bounds of what is kept."""

    def draw(self, random: Random, corpus: Sequence[bytes]) -> bytes:
        """The next input."""
        choice = random.random()
        prefix = random.choice(self.prefixes) if self.prefixes else b""
        if choice < mutate.GARBAGE_SHARE:
            return prefix + mutate.garbage(random)
        example = random.choice(corpus)
        if choice < mutate.GARBAGE_SHARE + mutate.UNCHANGED_SHARE:
            return example
        head, body = example[: self.prefix_bytes], example[self.prefix_bytes :]
        if self.prefixes and random.random() < 0.05:
            head = prefix
        bodies = [each[self.prefix_bytes :] for each in random.sample(corpus, min(3, len(corpus)))]
        return head + self.vary(random, body, bodies)

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        """A changed example; `bodies` are others, to splice in."""
        if self.is_protobuf and random.random() < mutate.STRUCTURED_SHARE:
            return mutate.mutate_protobuf(random, body, bodies)
        return mutate.mutate(random, body, bodies, self.tokens)
