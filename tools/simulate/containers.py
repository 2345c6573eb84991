"""Finds every container that a daemon keeps: whatever its objects hold for longer than a call.

The walk starts at a node and at each of its actors, and follows attributes, items, and the owners of
callbacks into objects of the product, and of the QUIC that it drives. What cannot change once it is made
(frozen dataclasses, messages, settings) holds nothing that grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any, Final

from aioquic.quic.rangeset import RangeSet
from google.protobuf.message import Message
from pydantic import BaseModel

Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any] | bytearray | RangeSet
CONTAINERS: Final = (dict, list, set, deque, bytearray, RangeSet)
OURS: Final = ("ztna.", "actors.", "aioquic.")
"""The product, and the QUIC that it drives, which keeps what peers send."""
MAX_OBJECTS: Final = 500_000
"""Of one daemon: a walk that has no end is a mistake of this file."""
_LEAVES: Final = (str, bytes, int, float, type(None), type, BaseModel, Message, RangeSet)

_is_ours: Final[dict[type, bool]] = {}
_slots: Final[dict[type, tuple[str, ...]]] = {}


def containers(roots: Iterator[object]) -> Iterator[tuple[Any, str, Container]]:
    """Each container that can be reached: its owner, the attribute and, after `[]`, one of its items.

    `table` is what the owner has; `table[]` each container that is an item of that one.
    """
    seen: set[int] = set()
    stack: list[Any] = list(roots)
    while stack:
        assert len(seen) < MAX_OBJECTS, "a walk that has no end"  # noqa: S101
        thing = stack.pop()
        if isinstance(thing, _LEAVES) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, MethodType):
            stack.append(thing.__self__)
        elif isinstance(thing, partial):
            stack += [thing.func, *thing.args]
        elif isinstance(thing, dict):
            stack += dict.keys(thing)
            stack += dict.values(thing)
        elif isinstance(thing, list | tuple | set | frozenset | deque):
            stack += thing
        elif _keeps(type(thing)):
            for name, value in attributes(thing):
                stack.append(value)
                if isinstance(value, CONTAINERS):
                    yield thing, name, value
                    yield from ((thing, f"{name}[]", item) for item in _items(value))


def attributes(thing: object) -> Iterator[tuple[str, Any]]:
    """Whatever an object has, in slots or not."""
    if hasattr(thing, "__dict__"):
        yield from list(vars(thing).items())
    for name in _slots_of(type(thing)):
        if hasattr(thing, name):
            yield name, getattr(thing, name)


def _items(container: Container) -> Iterator[Container]:
    if isinstance(container, bytearray | RangeSet):
        return
    # Not by the methods of a subclass, which may show only a part.
    items = dict.values(container) if isinstance(container, dict) else container
    yield from (item for item in items if isinstance(item, CONTAINERS))


def _keeps(kind: type) -> bool:
    """Whether objects of a class are of the product, and may change."""
    known = _is_ours.get(kind)
    if known is None:
        parameters = getattr(kind, "__dataclass_params__", None)
        is_frozen = parameters is not None and parameters.frozen
        known = _is_ours[kind] = kind.__module__.startswith(OURS) and not is_frozen
    return known


def _slots_of(kind: type) -> tuple[str, ...]:
    known = _slots.get(kind)
    if known is None:
        found: list[str] = []
        for base in kind.__mro__:
            slots = base.__dict__.get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            found += [name for name in names if not name.startswith("__")]
        known = _slots[kind] = tuple(found)
    return known
