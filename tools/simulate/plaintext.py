"""Searches all that an intermediate holds or gets for what applications sent.

Wires are the smallest part of it: behind the encryption of a leg are the packets that it opens, the messages
of its actors, and whatever these keep, relay queues and buffers of QUIC included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from google.protobuf.message import Message

from tools.simulate.apps import MARK
from tools.simulate.bounds import concerns
from tools.simulate.containers import OURS, attributes
from ztna.relay.hub import RelayHub

if TYPE_CHECKING:
    from actors.daemon import Node

MAX_OBJECTS: Final = 200_000
"""Of one actor: a walk that has no end is a mistake of this file."""


@contextmanager
def opened_packets(report: Callable[[str], None]) -> Iterator[None]:
    """Look at all that relays get out of their legs while the context lasts; `report` takes violations."""
    take_event, relay = RelayHub._take_event, RelayHub._relay  # noqa: SLF001 - an instrument looks inside

    def watched_event(hub: RelayHub, leg: Any, event: Any) -> None:
        if MARK in getattr(event, "data", b""):
            report(f"an intermediate opens {type(event).__name__} with payload in the clear")
        take_event(hub, leg, event)

    def watched_relay(hub: RelayHub, leg: Any, datagram: bytes, now: float) -> None:
        if MARK in datagram:
            report("an intermediate relays payload in the clear")
        relay(hub, leg, datagram, now)

    with (
        patch.object(RelayHub, "_take_event", watched_event),
        patch.object(RelayHub, "_relay", watched_relay),
    ):
        yield


def is_in(message: Message) -> bool:
    """Whether a message of an actor carries payload in the clear."""
    return MARK in message.SerializeToString()


def held_by(node: Node) -> Iterator[str]:
    """Actors of a node that keep payload in the clear, each with the kind of object that has it."""
    for concern in concerns(node):
        holder = holder_in(concern)
        if holder:
            yield f"{concern.name} keeps payload in the clear, in {holder}"


def holder_in(root: object) -> str:
    """What among all that can be reached from `root` holds payload; empty if nothing does."""
    seen: set[int] = set()
    stack: list[tuple[Any, str]] = [(root, type(root).__name__)]
    while stack:
        assert len(seen) < MAX_OBJECTS, "a walk that has no end"  # noqa: S101
        thing, owner = stack.pop()
        if isinstance(thing, bytes | bytearray):
            if MARK in thing:
                return owner
            continue
        if isinstance(thing, str | int | float | bool | None) or id(thing) in seen:
            continue
        seen.add(id(thing))
        stack += [(each, name) for each, name in _parts(thing, owner)]
    return ""


def _parts(thing: Any, owner: str) -> Iterator[tuple[Any, str]]:
    if isinstance(thing, Message):
        yield thing.SerializeToString(), type(thing).__name__
    elif isinstance(thing, dict):
        yield from ((each, owner) for each in thing)
        yield from ((each, owner) for each in thing.values())
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from ((each, owner) for each in thing)
    elif type(thing).__module__.startswith(OURS) and not isinstance(thing, type):
        # What these point to elsewhere are clocks, sockets and loggers.
        yield from ((each, type(thing).__name__) for _, each in attributes(thing))
