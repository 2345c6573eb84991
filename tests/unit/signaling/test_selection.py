from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.signaling.backoff import START_CEILING_S, SUCCESS_AFTER_S
from ztna.signaling.selection import (
    ATTACH_PATIENCE_S,
    IntermediateSelector,
    LeaveIntermediate,
    SelectionState,
    UseIntermediate,
)

USE_A, USE_B, LEAVE_A, LEAVE_B = (
    UseIntermediate("a"),
    UseIntermediate("b"),
    LeaveIntermediate("a"),
    LeaveIntermediate("b"),
)


def selector(*names: str, use_all: bool = False) -> IntermediateSelector:
    made = IntermediateSelector(names, Random(1), use_all=use_all)
    made.start(0.0)
    return made


def test_connector_uses_all_and_never_leaves_one() -> None:
    made = selector("a", "b", use_all=True)
    made.handle_detached("a", 1.0)
    assert made.drain() == [USE_A, USE_B]
    assert made.next_deadline() is None


def test_agent_uses_the_first_and_leaves_what_a_predecessor_may_have_used() -> None:
    assert selector("a", "b").drain() == [LEAVE_B, USE_A]


def test_agent_moves_on_when_the_one_in_use_is_lost() -> None:
    made = selector("a", "b")
    made.handle_attached("a", 1.0)
    made.drain()
    assert made.next_deadline() is None
    made.handle_detached("a", 100.0)
    assert made.drain() == [LEAVE_A, USE_B]


def test_agent_moves_on_when_its_patience_ends() -> None:
    made = selector("a", "b")
    made.drain()
    made.handle_timeout(ATTACH_PATIENCE_S - 0.1)
    assert made.drain() == []
    made.handle_timeout(ATTACH_PATIENCE_S)
    assert made.drain() == [LEAVE_A, USE_B]


def test_news_of_an_intermediate_that_is_not_in_use_changes_nothing() -> None:
    made = selector("a", "b")
    made.drain()
    made.handle_detached("b", 1.0)
    made.handle_attached("b", 1.0)
    assert made.drain() == []
    assert made.state is SelectionState.TRYING


def test_a_single_intermediate_is_never_left() -> None:
    made = selector("a")
    made.handle_detached("a", 1.0)
    assert made.drain() == [USE_A]
    assert made.next_deadline() is None


def test_after_a_round_of_failures_the_agent_pauses_before_it_goes_round_again() -> None:
    made = selector("a", "b")
    made.handle_detached("a", 0.001)
    made.drain()
    made.handle_detached("b", 0.002)
    assert made.drain() == []
    assert made.state is SelectionState.PAUSING
    deadline = made.next_deadline()
    assert deadline is not None
    assert 0.002 <= deadline <= 0.002 + START_CEILING_S
    made.handle_detached("b", 0.003)  # it goes on trying by itself
    assert made.next_deadline() == deadline
    made.handle_timeout(deadline)
    assert made.drain() == [LEAVE_B, USE_A]


def test_an_attachment_during_the_pause_ends_it() -> None:
    made = selector("a", "b")
    made.handle_detached("a", 0.0)
    made.handle_detached("b", 0.0)
    made.handle_attached("b", 0.05)
    assert made.state is SelectionState.ATTACHED
    assert made.next_deadline() is None


@pytest.mark.parametrize(("held_s", "moves_on"), [(SUCCESS_AFTER_S, True), (0.1, False)])
def test_only_an_attachment_that_held_ends_the_row_of_failures(held_s: float, moves_on: bool) -> None:
    made = selector("a", "b")
    made.handle_detached("a", 0.0)
    made.handle_attached("b", 1.0)
    made.drain()
    made.handle_detached("b", 1.0 + held_s)
    assert (made.drain() == [LEAVE_B, USE_A]) is moves_on
    assert (made.state is SelectionState.PAUSING) is not moves_on


@given(st.lists(st.tuples(st.sampled_from("ad"), st.integers(0, 2), st.floats(0, 40)), max_size=60))
def test_whatever_happens_one_intermediate_is_in_use_and_no_deadline_is_past(
    steps: list[tuple[str, int, float]],
) -> None:
    names = ("a", "b", "c")
    made = selector(*names)
    now = 0.0
    in_use: set[str] = set()
    for kind, which, seconds in steps:
        now += seconds
        made.handle_timeout(now)
        deadline = made.next_deadline()
        assert deadline is None or deadline > now or made.state is SelectionState.PAUSING
        if kind == "a":
            made.handle_attached(names[which], now)
        else:
            made.handle_detached(names[which], now)
        for effect in made.drain():
            if isinstance(effect, UseIntermediate):
                in_use.add(effect.intermediate_id)
            else:
                in_use.discard(effect.intermediate_id)
        assert len(in_use) == 1
