from __future__ import annotations

import pytest

from ztna.access.identity import Role
from ztna.errors import RemoteProtocolError
from ztna.signaling.exchange import (
    ANSWER_LIMIT_S,
    MAX_CANDIDATES,
    PUNCHING_LIMIT_S,
    Exchange,
    ExchangeState,
)


def refused(action: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        action(*args, **kwargs)  # type: ignore[operator]
    return caught.value.reason


def answered() -> Exchange:
    exchange = Exchange()
    exchange.handle_offer(1, 3, 0.0)
    exchange.handle_answer(1, 2, 1.0)
    return exchange


def test_offer_and_answer_lead_to_punching_and_its_limit_to_done() -> None:
    exchange = Exchange()
    exchange.handle_offer(1, 3, 0.0)
    assert (exchange.state, exchange.deadline) == (ExchangeState.AWAITING_ANSWER, ANSWER_LIMIT_S)
    exchange.handle_answer(1, 2, 1.0)
    assert (exchange.state, exchange.deadline) == (ExchangeState.PUNCHING, 1.0 + PUNCHING_LIMIT_S)
    assert not exchange.handle_timeout(1.0 + PUNCHING_LIMIT_S)
    assert (exchange.state, exchange.deadline) == (ExchangeState.DONE, None)


def test_missing_answer_is_noticed_in_time_and_once() -> None:
    exchange = Exchange()
    exchange.handle_offer(1, 3, 0.0)
    assert not exchange.handle_timeout(ANSWER_LIMIT_S - 0.001)
    assert exchange.handle_timeout(ANSWER_LIMIT_S)
    assert not exchange.handle_timeout(ANSWER_LIMIT_S)
    assert exchange.state is ExchangeState.IDLE
    assert refused(exchange.handle_answer, 1, 1, 6.0) == "no_offer_outstanding"


def test_answer_needs_an_offer_of_the_same_generation() -> None:
    exchange = Exchange()
    assert refused(exchange.handle_answer, 1, 1, 0.0) == "no_offer_outstanding"
    exchange.handle_offer(2, 1, 0.0)
    assert refused(exchange.handle_answer, 1, 1, 0.0) == "no_offer_outstanding"
    exchange.handle_answer(2, 1, 0.0)
    assert refused(exchange.handle_answer, 2, 1, 0.0) == "no_offer_outstanding"


@pytest.mark.parametrize("generation", [0, 1])
def test_generation_only_grows(generation: int) -> None:
    assert refused(answered().handle_offer, generation, 1, 2.0) == "stale_generation"


def test_newer_offer_starts_over_from_any_state() -> None:
    exchange = answered()
    exchange.handle_offer(2, 1, 2.0)
    assert exchange.state is ExchangeState.AWAITING_ANSWER


def test_result_ends_punching_and_needs_an_exchange() -> None:
    assert refused(Exchange().handle_result) == "no_exchange"
    exchange = answered()
    exchange.handle_result()
    assert (exchange.state, exchange.deadline) == (ExchangeState.DONE, None)
    exchange.handle_result()


def test_candidates_of_another_generation_are_refused() -> None:
    for generation in (0, 2):
        reason = refused(answered().handle_candidate_added, Role.AGENT, generation, is_end=False)
        assert reason == "unknown_generation"


def test_candidates_per_side_and_generation_are_bounded() -> None:
    assert refused(Exchange().handle_offer, 1, MAX_CANDIDATES + 1, 0.0) == "too_many_candidates"
    exchange = answered()
    for _ in range(MAX_CANDIDATES - 3):
        exchange.handle_candidate_added(Role.AGENT, 1, is_end=False)
    assert refused(exchange.handle_candidate_added, Role.AGENT, 1, is_end=False) == "too_many_candidates"
    exchange.handle_candidate_added(Role.AGENT, 1, is_end=True)
    exchange.handle_candidate_added(Role.CONNECTOR, 1, is_end=False)


def test_refused_answer_changes_nothing() -> None:
    exchange = Exchange()
    exchange.handle_offer(1, 1, 0.0)
    for _ in range(MAX_CANDIDATES):
        exchange.handle_candidate_added(Role.CONNECTOR, 1, is_end=False)
    assert refused(exchange.handle_answer, 1, 1, 1.0) == "too_many_candidates"
    assert exchange.state is ExchangeState.AWAITING_ANSWER
