"""Deadlines of many things at once: the earliest one is found without looking at the others."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

# Replaced deadlines stay in the heap; once they are this many and the most, it is rebuilt.
_MIN_STALE_ENTRIES = 64


class Deadlines(Generic[KeyT]):
    """At most one deadline (monotonic seconds) per key; equal ones come due in the order they were set."""

    def __init__(self) -> None:
        self._current: dict[KeyT, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._current)

    def set(self, key: KeyT, deadline: float | None) -> None:
        """Replace the deadline of a key; None removes it."""
        held = self._current.get(key)
        if held is not None and held[0] == deadline:
            return
        if deadline is None:
            self._current.pop(key, None)
        else:
            self._count += 1
            self._current[key] = (deadline, self._count)
            heapq.heappush(self._heap, (deadline, self._count, key))
        if len(self._heap) > 2 * len(self._current) + _MIN_STALE_ENTRIES:
            self._heap = sorted((when, count, each) for each, (when, count) in self._current.items())

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        heap = self._heap
        while heap and self._current.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float) -> list[KeyT]:
        """Remove and return the keys whose deadline has come, the earliest first."""
        due: list[KeyT] = []
        while (earliest := self.next()) is not None and earliest <= now:
            key = heapq.heappop(self._heap)[2]
            del self._current[key]
            due.append(key)
        return due
