"""The one clock of a simulated network: an event queue whose time jumps to the next event."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

# Seconds; not 0, so that code which takes 0 for "never" shows itself.
START_TIME: Final = 1000.0
# Events at one instant before we call it a livelock: two sides answering each other in no time at all.
MAX_EVENTS_PER_INSTANT: Final = 200_000
# Cancelled timers stay in the heap until half of it is dead.
MIN_HEAP_TO_COMPACT: Final = 1024


class LivelockError(AssertionError):
    """Time does not advance any more."""


class VirtualTimer:
    """A pending call; ordered by time, then by submission."""

    __slots__ = ("_clock", "_order", "callback", "when")

    def __init__(self, clock: VirtualClock, when: float, order: int, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._order = order
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the call; harmless after it ran."""
        if self.callback is not None:
            self.callback = None
            self._clock.count_cancelled()

    def __lt__(self, other: VirtualTimer) -> bool:
        return (self.when, self._order) < (other.when, other._order)


class VirtualClock:
    """Runs calls in the order of their time and, at one time, of their submission."""

    def __init__(self) -> None:
        self._now = START_TIME
        self._heap: list[VirtualTimer] = []
        self._order = 0
        self._cancelled = 0
        self._events_at_now = 0

    def time(self) -> float:
        """Virtual monotonic seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> VirtualTimer:
        """Run `callback` at `when`, or as soon as possible if that is past."""
        self._order += 1
        timer = VirtualTimer(self, max(when, self._now), self._order, callback)
        heapq.heappush(self._heap, timer)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` at the present time, after what was submitted for it before."""
        self.call_at(self._now, callback)

    def run_until(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Run events until `predicate` holds (looked at before each) or `timeout_s` passed; whether it holds.

        An exception of a callback ends the run and reaches the caller.
        """
        end = self._now + timeout_s
        while not predicate():
            if not self._run_next(end):
                self._advance(end)
                return predicate()
        return True

    def run_for(self, seconds: float) -> None:
        """Run every event of the next `seconds`."""
        end = self._now + seconds
        while self._run_next(end):
            pass
        self._advance(end)

    def step(self) -> bool:
        """Run the next event, whenever it is; whether there was one."""
        return self._run_next(math.inf)

    def pending(self) -> list[VirtualTimer]:
        """Every event that is still to come, in no order."""
        return [timer for timer in self._heap if timer.callback is not None]

    def count_cancelled(self) -> None:
        """Bookkeeping of `VirtualTimer.cancel`."""
        self._cancelled += 1
        if len(self._heap) > MIN_HEAP_TO_COMPACT and self._cancelled * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer.callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _run_next(self, end: float) -> bool:
        while self._heap and self._heap[0].when <= end:
            timer = heapq.heappop(self._heap)
            callback = timer.callback
            if callback is None:
                self._cancelled -= 1
                continue
            timer.callback = None
            self._advance(timer.when)
            self._events_at_now += 1
            if self._events_at_now > MAX_EVENTS_PER_INSTANT:
                raise LivelockError(f"{MAX_EVENTS_PER_INSTANT} events at time {self._now}")
            self._run(callback)
            return True
        return False

    def _run(self, callback: Callable[[], None]) -> None:
        """Run one event; for a clock that watches what it runs."""
        callback()

    def _advance(self, when: float) -> None:
        if when > self._now:
            self._now = when
            self._events_at_now = 0
