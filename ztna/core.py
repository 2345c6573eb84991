"""What every sans-IO core looks like from outside.

A core is a plain class with verbs `handle_<input>(..., now)`, `handle_timeout(now)`, `next_deadline()` and
`drain()`. One mutation, one drain, then the next mutation. Time is `now`: monotonic seconds, passed in.
Chance is one injected `random.Random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ztna.address import TransportAddress

EffectT_co = TypeVar("EffectT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Transmit:
    """One UDP payload to send.

    `local_host` pins the source address (empty: the kernel chooses).
    """

    data: bytes
    remote: TransportAddress
    local_host: str = ""


class Core(Protocol[EffectT_co]):
    """The driving contract that actors and tests rely on."""

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that is due; harmless when none is."""

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the earliest pending deadline, or None."""

    def drain(self) -> Sequence[EffectT_co]:
        """Hand over the effects of the last mutation, oldest first."""
