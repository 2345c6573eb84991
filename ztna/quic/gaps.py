"""What has arrived of a stream beyond its gaps, and how many gaps a connection may have.

aioquic keeps such ranges in a list that it walks from the front for every frame. A peer that leaves a byte
out between any two would make each further frame cost milliseconds, and each range memory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import overload

MAX_GAPS = 4096
"""Of all streams of a connection. A lost packet leaves one gap in each stream it carried, of at most 3500
packets that are in flight; half a megabyte of memory."""


class ReceivedRanges(Sequence[range]):
    """Disjoint ranges in order, in the shape of aioquic's `RangeSet`, found by bisection."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Add a range that is not empty, joining it with all that it touches."""
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def shift(self) -> range:
        """Remove and return the first range."""
        return range(self._starts.pop(0), self._stops.pop(0))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> range: ...
    @overload
    def __getitem__(self, index: slice) -> list[range]: ...
    def __getitem__(self, index: int | slice) -> range | list[range]:
        if isinstance(index, slice):
            return list(map(range, self._starts[index], self._stops[index]))
        return range(self._starts[index], self._stops[index])
