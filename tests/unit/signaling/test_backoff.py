from __future__ import annotations

from random import Random

import pytest

from ztna.signaling.backoff import (
    MAX_CEILING_S,
    START_CEILING_S,
    SUCCESS_AFTER_S,
    UNCLEAN_CEILING_S,
    UNCLEAN_WINDOW_S,
    Backoff,
)


class _TopOfRange(Random):
    """Draws the upper end each time, which makes the ceiling visible."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0.0
        return b


def _ceilings(backoff: Backoff, now: float, count: int) -> list[float]:
    return [backoff.next_delay_s(now) for _ in range(count)]


def test_ceiling_doubles_from_the_start_to_the_maximum() -> None:
    assert _ceilings(Backoff(_TopOfRange()), 0.0, 10) == [
        START_CEILING_S, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, MAX_CEILING_S, MAX_CEILING_S,
    ]  # fmt: skip


def test_delays_spread_over_the_whole_range_and_follow_the_seed() -> None:
    backoff, twin = Backoff(Random(7)), Backoff(Random(7))
    delays = _ceilings(backoff, 0.0, 500)
    assert delays == _ceilings(twin, 0.0, 500)
    late = delays[20:]
    assert min(late) < 0.1 * MAX_CEILING_S
    assert max(late) > 0.9 * MAX_CEILING_S
    assert all(0.0 <= delay <= MAX_CEILING_S for delay in delays)


def test_unclean_loss_caps_the_ceiling_for_its_window_and_then_grows_on_from_there() -> None:
    backoff = Backoff(_TopOfRange())
    backoff.handle_connected(0.0)
    backoff.handle_lost(100.0, is_clean=False)
    assert _ceilings(backoff, 100.0, 6) == [0.2, 0.4, 0.8, 1.6, UNCLEAN_CEILING_S, UNCLEAN_CEILING_S]
    assert backoff.next_delay_s(100.0 + UNCLEAN_WINDOW_S - 0.001) == UNCLEAN_CEILING_S
    assert _ceilings(backoff, 100.0 + UNCLEAN_WINDOW_S, 3) == [2.0, 4.0, 8.0]


def test_clean_loss_after_success_starts_over_without_the_cap() -> None:
    backoff = Backoff(_TopOfRange())
    _ceilings(backoff, 0.0, 20)
    backoff.handle_connected(0.0)
    backoff.handle_lost(SUCCESS_AFTER_S, is_clean=True)
    assert _ceilings(backoff, SUCCESS_AFTER_S, 6)[-1] == pytest.approx(6.4)


@pytest.mark.parametrize("is_clean", [True, False])
def test_connection_that_drops_at_once_keeps_the_ceiling_growing(is_clean: bool) -> None:
    backoff = Backoff(_TopOfRange())
    _ceilings(backoff, 0.0, 20)
    backoff.handle_connected(0.0)
    backoff.handle_lost(SUCCESS_AFTER_S - 0.01, is_clean=is_clean)
    assert backoff.next_delay_s(SUCCESS_AFTER_S) == MAX_CEILING_S


def test_failed_attempt_is_not_a_loss() -> None:
    backoff = Backoff(_TopOfRange())
    _ceilings(backoff, 0.0, 20)
    backoff.handle_lost(50.0, is_clean=False)
    assert backoff.next_delay_s(50.0) == MAX_CEILING_S
