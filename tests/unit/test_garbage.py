"""When garbage is looked for in everything that lives."""

from __future__ import annotations

import pytest

from ztna.garbage import (
    CALM_SHARE,
    FRUITLESS_OBJECTS,
    MAX_INTERVAL_S,
    MIN_INTERVAL_S,
    MOST_OBJECTS,
    WORTH_OBJECTS,
    FullCollections,
)

BUSY = CALM_SHARE * 2
AFTER_A_WHILE = MIN_INTERVAL_S + 1
LATE = MAX_INTERVAL_S + 1


@pytest.mark.parametrize(
    ("waited_s", "added", "busy_share", "is_due"),
    [
        (LATE, 0, 0.0, False),  # nothing can be found
        (AFTER_A_WHILE, 1, 0.0, False),  # not worth a pause
        (AFTER_A_WHILE, WORTH_OBJECTS, 0.0, True),
        (AFTER_A_WHILE, WORTH_OBJECTS, CALM_SHARE, True),
        (AFTER_A_WHILE, WORTH_OBJECTS, BUSY, False),  # a better moment will come
        (AFTER_A_WHILE, MOST_OBJECTS - 1, BUSY, False),
        (LATE, WORTH_OBJECTS, BUSY, True),  # it did not
        (LATE, 1, 0.0, True),
        (LATE, 1, BUSY, False),
        (1.0, WORTH_OBJECTS, 0.0, False),  # a moment ago
        (AFTER_A_WHILE, MOST_OBJECTS, BUSY, True),  # memory counts more
        (1.0, MOST_OBJECTS, BUSY, False),
    ],
)
def test_everything_is_searched_when_that_is_worth_it_or_can_wait_no_longer(
    waited_s: float, added: int, busy_share: float, is_due: bool
) -> None:
    rule = FullCollections(now=100.0)
    assert rule.is_due(100.0 + waited_s, added, busy_share) is is_due


def test_want_of_memory_does_not_wait_for_a_calm_second_but_for_its_interval() -> None:
    rule = FullCollections(now=0.0)
    assert rule.is_due(AFTER_A_WHILE, 1, BUSY, is_memory_short=True)
    rule.handle_collected(AFTER_A_WHILE, 0.25, found=0)
    assert not rule.is_due(AFTER_A_WHILE + 1, 1, BUSY, is_memory_short=True)
    assert rule.is_due(2 * AFTER_A_WHILE, 1, BUSY, is_memory_short=True)


def test_pauses_are_counted_with_their_length() -> None:
    rule = FullCollections(now=0.0)
    rule.handle_collected(1.0, 0.25, found=0)
    rule.handle_collected(2.0, 0.5, found=0)
    assert (rule.pauses, rule.paused_s) == (2, 0.75)


def test_search_that_finds_nothing_is_repeated_ever_later_and_one_that_finds_something_is_not() -> None:
    rule, now, intervals = FullCollections(now=0.0), 0.0, []
    for _ in range(8):
        began = now
        while not rule.is_due(now, MOST_OBJECTS, 0.0):
            now += 1.0
        intervals.append(now - began)
        rule.handle_collected(now, 0.1, found=FRUITLESS_OBJECTS - 1)
    assert intervals == [10, 20, 40, 80, 160, 320, MAX_INTERVAL_S, MAX_INTERVAL_S]
    rule.handle_collected(now, 0.1, found=FRUITLESS_OBJECTS)
    assert rule.is_due(now + MIN_INTERVAL_S, MOST_OBJECTS, 0.0)
