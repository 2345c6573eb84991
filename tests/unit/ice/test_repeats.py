from __future__ import annotations

import random

from ztna.ice.repeats import MAX_CEILING_S, START_CEILING_S, Repeats


def waits(repeats: Repeats, count: int) -> list[float]:
    """How long each of so many repetitions is waited for."""
    now, found = 0.0, []
    for _ in range(count):
        repeats.want(now)
        at = repeats.next_deadline()
        assert at is not None
        assert not repeats.take(at - 0.001)
        assert repeats.take(at)
        assert not repeats.take(at)
        found.append(at - now)
        now = at
    return found


def test_each_wait_is_in_the_upper_half_of_a_ceiling_that_doubles_up_to_its_bound() -> None:
    ceilings = [min(START_CEILING_S * 2**number, MAX_CEILING_S) for number in range(8)]
    for waited, ceiling in zip(waits(Repeats(random.Random(1)), 8), ceilings, strict=True):
        assert ceiling / 2 <= waited <= ceiling


def test_what_is_wanted_already_is_not_put_off() -> None:
    repeats = Repeats(random.Random(1))
    repeats.want(0.0)
    at = repeats.next_deadline()
    repeats.want(10.0)
    assert repeats.next_deadline() == at


def test_after_everything_was_known_waits_are_short_again() -> None:
    repeats = Repeats(random.Random(1))
    waits(repeats, 5)
    repeats.want(0.0)
    repeats.reset()
    assert repeats.next_deadline() is None
    assert waits(repeats, 1)[0] <= START_CEILING_S


def test_two_nodes_do_not_wait_alike() -> None:
    assert waits(Repeats(random.Random(1)), 1) != waits(Repeats(random.Random(2)), 1)
