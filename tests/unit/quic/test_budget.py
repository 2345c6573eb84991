"""Whatever handshakes cost, they take their share of any second, and one step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.quic.budget import (
    AT_ONCE_SHARE,
    MAX_HANDSHAKE_BURST_S,
    MAX_HANDSHAKE_SHARE,
    MIN_DEBT_WAIT_S,
    WHOLE_HANDSHAKE,
    HandshakeBudget,
    fixed_cost,
)

NOW = 50.0
SUSTAINED_SHARE = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S
ROUNDING_S = 1e-9


class Machine:
    """A budget, and when it did steps of which cost."""

    def __init__(self) -> None:
        self.budget = HandshakeBudget(lambda: lambda: self.cost_s)
        self.cost_s = 0.0
        self.done: list[tuple[float, float]] = []

    def step(self, now: float, cost_s: float) -> None:
        if self.budget.is_open(now):
            self.cost_s = cost_s
            with self.budget.charged(now):
                self.done.append((now, cost_s))

    def busiest_second(self) -> float:
        """The largest sum of costs in any second, without the last step of it."""
        return max(
            sum(cost for at, cost in self.done if start <= at <= start + 1.0) - self.last_cost(start)
            for start, _ in self.done
        )

    def last_cost(self, start: float) -> float:
        return [cost for at, cost in self.done if start <= at <= start + 1.0][-1]


COSTS = st.floats(0.0, 0.5) | st.floats(0.0, 0.01)


@given(st.lists(st.tuples(st.floats(0.0, 0.2), COSTS), min_size=1, max_size=200))
def test_no_second_has_more_than_the_share_and_one_step_whatever_steps_cost(
    asked: list[tuple[float, float]],
) -> None:
    machine, now = Machine(), NOW
    for later_s, cost_s in asked:
        now += later_s
        machine.step(now, cost_s)
    assert machine.busiest_second() <= MAX_HANDSHAKE_SHARE + ROUNDING_S
    assert machine.budget.spent_s == pytest.approx(sum(cost for _, cost in machine.done))


@pytest.mark.parametrize("cost_s", [0.0005, 0.002, 0.008, 0.05, 0.4])
def test_who_asks_all_the_time_gets_the_share_at_any_cost(cost_s: float) -> None:
    machine = Machine()
    seconds = 20
    for step in range(seconds * 1000):
        machine.step(NOW + step / 1000, cost_s)
    assert machine.busiest_second() <= MAX_HANDSHAKE_SHARE + ROUNDING_S
    assert machine.budget.spent_s >= 0.95 * SUSTAINED_SHARE * seconds


def test_what_is_not_asked_for_is_paid_all_the_same() -> None:
    budget = HandshakeBudget(fixed_cost(0.05))
    with budget.charged(NOW):
        pass
    assert not budget.is_open(NOW)
    opens_at = budget.opens_at(NOW)
    assert opens_at == pytest.approx(NOW + (0.05 - MAX_HANDSHAKE_BURST_S) / SUSTAINED_SHARE)
    assert not budget.is_open(opens_at - MIN_DEBT_WAIT_S)
    assert budget.is_open(opens_at + MIN_DEBT_WAIT_S)


def test_step_that_fails_is_paid() -> None:
    budget = HandshakeBudget(fixed_cost(0.05))
    with pytest.raises(ValueError, match="no such curve"), budget.charged(NOW):
        raise ValueError("no such curve")
    assert budget.spent_s == 0.05


def test_nobody_is_told_to_ask_again_at_once() -> None:
    budget = HandshakeBudget(fixed_cost(MAX_HANDSHAKE_BURST_S + 1e-12))
    with budget.charged(NOW):
        pass
    assert not budget.is_open(NOW)
    assert budget.opens_at(NOW) == NOW + MIN_DEBT_WAIT_S


def test_reserve_is_left_to_others() -> None:
    budget = HandshakeBudget(fixed_cost(MAX_HANDSHAKE_BURST_S * 0.6))
    with budget.charged(NOW):
        pass
    assert budget.is_open(NOW)
    assert not budget.is_open(NOW, MAX_HANDSHAKE_BURST_S / 2)


def test_no_more_handshakes_begin_than_can_be_ended_however_long_that_takes() -> None:
    cost_s, seconds = 0.002, 10
    budget = HandshakeBudget(fixed_cost(cost_s))
    begun = 0
    for step in range(seconds * 1000):
        now = NOW + step / 1000
        if budget.may_begin(now):
            with budget.charged(now, is_first=True):
                begun += 1
    whole_s = begun * cost_s * WHOLE_HANDSHAKE
    assert whole_s <= SUSTAINED_SHARE * seconds + MAX_HANDSHAKE_BURST_S + cost_s * WHOLE_HANDSHAKE
    assert whole_s >= 0.95 * SUSTAINED_SHARE * seconds
    assert budget.is_open(NOW + seconds), "what is left belongs to the steps that follow"


@given(st.lists(st.tuples(st.floats(0.0, 0.2), COSTS), min_size=1, max_size=200))
def test_steps_that_cannot_wait_leave_half_to_those_that_can_whatever_they_cost(
    asked: list[tuple[float, float]],
) -> None:
    machine, now = Machine(), NOW
    for later_s, cost_s in asked:
        now += later_s
        machine.cost_s = cost_s
        with machine.budget.charged_at_once(now):
            pass
        assert machine.budget.is_open(now, MAX_HANDSHAKE_BURST_S * (1 - AT_ONCE_SHARE) - ROUNDING_S)
    assert machine.budget.spent_s == pytest.approx(sum(cost for _, cost in asked))


def test_handshakes_have_half_of_the_budget_during_a_flood_of_steps_that_cannot_wait() -> None:
    machine, seconds = Machine(), 10
    for step in range(seconds * 1000):
        now = NOW + step / 1000
        machine.cost_s = 0.01
        with machine.budget.charged_at_once(now):
            pass
        machine.step(now, 0.002)
    done_s = sum(cost for _, cost in machine.done)
    assert done_s >= 0.95 * SUSTAINED_SHARE * (1 - AT_ONCE_SHARE) * seconds


def test_steps_that_cannot_wait_delay_the_others_as_long_as_they_keep_to_their_half() -> None:
    budget = HandshakeBudget(fixed_cost(MAX_HANDSHAKE_BURST_S * AT_ONCE_SHARE))
    with budget.charged_at_once(NOW):
        pass
    for _ in range(2):
        assert budget.is_open(NOW)
        with budget.charged(NOW):
            pass
    assert not budget.is_open(NOW)
    assert budget.opens_at(NOW) < NOW + 1.0
