"""The garbage collector of a process is taken over, and does what the rule says."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from actors.garbage_collector import LOOK_INTERVAL_S, STEP_OBJECTS, GarbageCollector
from actors.io import Io
from ztna import garbage


class Knot:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


class Clock:
    """What is needed of the I/O port; `look` lets the next second come."""

    def __init__(self) -> None:
        self.now = 100.0
        self.busy_share = 1.0
        self._due: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.now

    def stopwatch(self) -> Callable[[], float]:
        began = self.now
        return lambda: (self.now - began) * self.busy_share

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        assert self._due is None
        self._due = (when, callback)

    def look(self) -> None:
        assert self._due is not None
        (when, callback), self._due = self._due, None
        self.now = max(self.now, when)
        callback()

    def look_until_a_search_is_allowed(self) -> None:
        for _ in range(round(garbage.MIN_INTERVAL_S / LOOK_INTERVAL_S) + 1):
            self.look()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def collector_on(clock: Clock) -> GarbageCollector:
    return GarbageCollector(cast("Io", clock))


def searches_of_everything() -> int:
    count: int = gc.get_stats()[2]["collections"]
    return count


def test_process_searches_everything_when_the_rule_says_so_and_never_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "MOST_OBJECTS", 15 * STEP_OBJECTS)
    clock = Clock()
    collector = collector_on(clock)
    collector.take_over(lambda: False)
    assert gc.get_freeze_count() > 1000, "what a process consists of is left alone"
    before = searches_of_everything()
    knot = weakref.ref(Knot())
    kept = [[number] for number in range(10 * STEP_OBJECTS)]
    clock.look()
    assert (searches_of_everything(), collector.pauses) == (before, 0)
    kept += [[number] for number in range(11 * STEP_OBJECTS)]
    clock.now += garbage.MIN_INTERVAL_S
    clock.look()
    assert (searches_of_everything(), collector.pauses) == (before + 1, 1)
    assert knot() is None
    # What lives on counts no longer.
    clock.look()
    assert collector.pauses == 1
    assert len(kept) == 21 * STEP_OBJECTS


def test_process_that_has_little_to_do_searches_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "WORTH_OBJECTS", 2 * STEP_OBJECTS)
    clock = Clock()
    collector = collector_on(clock)
    collector.take_over(lambda: False)
    kept = [[number] for number in range(3 * STEP_OBJECTS)]
    clock.look_until_a_search_is_allowed()
    assert collector.pauses == 0
    clock.busy_share = 0.05
    clock.look()
    assert collector.pauses == 1
    assert len(kept) == 3 * STEP_OBJECTS


def test_process_that_is_short_of_memory_does_not_wait_for_a_calm_moment() -> None:
    is_short = False
    clock = Clock()
    collector = collector_on(clock)
    collector.take_over(lambda: is_short)
    kept = [[number] for number in range(3 * STEP_OBJECTS)]
    clock.look_until_a_search_is_allowed()
    assert collector.pauses == 0
    is_short = True
    clock.look()
    assert collector.pauses == 1
    assert collector.paused_s == 0.0, "a clock that stands still"
    assert len(kept) == 3 * STEP_OBJECTS


def test_failing_to_read_how_much_memory_is_used_does_not_end_the_looking() -> None:
    is_broken = True

    def is_short() -> bool:
        if is_broken:
            raise OSError("no descriptor is left")
        return True

    clock = Clock()
    collector = collector_on(clock)
    collector.take_over(is_short)
    kept = [[number] for number in range(3 * STEP_OBJECTS)]
    with pytest.raises(OSError, match="no descriptor"):
        clock.look()
    is_broken = False
    clock.now += garbage.MIN_INTERVAL_S
    clock.look()
    assert collector.pauses == 1
    assert len(kept) == 3 * STEP_OBJECTS
