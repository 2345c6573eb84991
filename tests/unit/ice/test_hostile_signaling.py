"""A peer, or a captured intermediate, that plays foul with the signals of the direct path."""

from __future__ import annotations

import random

import pytest

from tests.unit.ice.test_hole_punch import (
    CREDENTIALS,
    DECLINED,
    THEIRS,
    VARYING,
    End,
    agent,
    answered,
    connected,
    direct,
    host,
    signaling,
)
from ztna.ice import hole_punch as core
from ztna.ice import hole_punch_effects as e
from ztna.ice import signals as s
from ztna.ice.checklist import Checklist
from ztna.ice.credentials import IceCredentials
from ztna.ice.timing import RELAY_REPORTED_LIMIT_S
from ztna.ice.timing import HolePunchState as State

FORGED = s.Credentials("evil", "e" * 22)
VICTIM = host("203.0.113.66")


def in_session() -> End:
    """An agent whose offer travels through the established session."""
    return direct(connected().established()).restart(s.OPERATOR)


# The peer


def test_agent_out_of_generations_offers_none_twice() -> None:
    """A peer that refuses every offer for hours leads there, and no checklist takes a generation twice."""
    end = connected()
    end.core._current.number = core.MAX_GENERATION - 1  # type: ignore[union-attr]
    checklist = Checklist(random.Random(1))
    for _ in range(3):
        for prepared in end.restart(s.OPERATOR).all(e.PrepareChecks):
            ours = IceCredentials(prepared.credentials.ufrag, prepared.credentials.pwd)
            checklist.handle_prepare(prepared.generation, ours, (), is_controlling=True)
        end.wait(RELAY_REPORTED_LIMIT_S)
    assert checklist.generation == core.MAX_GENERATION


@pytest.mark.parametrize("reason", [s.OPERATOR, s.NETWORK_CHANGED])
def test_peer_that_has_urgent_reasons_every_second_gets_no_more_restarts_than_it_would_accept(
    reason: str,
) -> None:
    """Each restart has us send checks to 32 addresses of its choice."""
    end = direct(connected().established())
    first = end.generation
    for _ in range(60):
        end.says(s.RestartRequested(reason), via="")
        if end.state is State.SIGNALING:
            end.answer(via="").began().nominated()
        end.wait(1)
    most = core.GENERATION_BURST + 60 * core.GENERATIONS_PER_SECOND + 60 / core.RESTART_INTERVAL_S
    assert end.generation - first <= most


# A captured intermediate, while the session itself carries signaling


def test_answer_through_an_intermediate_that_was_not_asked_is_not_the_peers() -> None:
    end = in_session()
    end.says(s.Answer(end.generation, FORGED, (VICTIM,)), "i1")
    assert not end.all(e.StartChecks)
    assert end.answer(via="").one(e.StartChecks).credentials == CREDENTIALS


def test_silent_session_lets_the_intermediate_answer() -> None:
    end = in_session().wait(core.REPEAT_AFTER_S)
    assert end.answer(via="i1").all(e.StartChecks)


@pytest.mark.parametrize("is_agent", [True, False])
def test_trickle_through_an_intermediate_that_has_no_part_in_the_exchange_is_ignored(is_agent: bool) -> None:
    """It could fill our list with a victim's addresses, or close it before the peer's own are told."""
    end = in_session().answer(via="") if is_agent else answered().established().offer(2, via="")
    number = end.generation
    for port in range(1, 40):
        end.says(s.CandidateAdded(number, host("203.0.113.66", port)), "i1")
    end.says(s.EndOfCandidates(number), "i1")
    end.says(s.NatLearned(number, VARYING), "i1")
    end.says(s.StartPunching(number, core.MAX_START_DELAY_MS), "i1")
    assert end.core.snapshot.remote == (THEIRS,)
    assert not end.all(e.BeginChecks)
    late = host("198.51.100.9")
    assert end.says(s.CandidateAdded(number, late), "").one(e.AddCandidates).candidates == (late,)


@pytest.mark.parametrize("is_agent", [True, False])
def test_intermediate_that_has_no_part_in_the_exchange_does_not_decline_for_the_peer(is_agent: bool) -> None:
    """Each of the two has said `peer_relay_only` otherwise, and searched again half a minute later."""
    # The generation that the intermediate carried is over; the connector asked for another in the session.
    asking = answered().began().nominated().established().restart("path_failed")
    end = in_session() if is_agent else asking
    assert end.state is State.SIGNALING
    assert end.says(DECLINED, "i1").state is State.SIGNALING
    assert end.core.counts == {"foreign_result": 1}
    assert end.says(DECLINED, "").reason == "peer_relay_only"


def test_intermediate_does_not_decline_for_the_peer_of_a_session_that_is_up() -> None:
    end = agent().relay().established()
    assert end.says(DECLINED, "i1").state is State.GATHERING
    assert end.says(DECLINED, "").reason == "peer_relay_only"


def test_peer_declines_through_an_intermediate_that_was_asked_as_well() -> None:
    asked = answered().began().nominated().established().restart("path_failed").relay("i2")
    for end in (in_session().relay("i2").wait(core.REPEAT_AFTER_S), asked.wait(core.REPEAT_AFTER_S)):
        assert end.says(DECLINED, "i1").state is State.SIGNALING
        assert end.says(DECLINED, "i2").reason == "peer_relay_only"


def test_candidates_come_through_an_intermediate_that_had_the_offer_as_well() -> None:
    agent = in_session().wait(core.REPEAT_AFTER_S).answer(via="")
    added = s.CandidateAdded(agent.generation, host("198.51.100.9"))
    assert agent.says(added, "i1").all(e.AddCandidates)
    connector = answered().established().offer(2, via="").offer(2, via="i1")
    assert connector.says(s.CandidateAdded(2, host("198.51.100.9")), "i1").all(e.AddCandidates)


def test_refusal_of_an_intermediate_is_not_the_end_where_the_session_carries_signaling() -> None:
    refused = signaling().says(s.SignalingError("session_not_found"))
    assert refused.state is State.FAILED
    assert refused.established().wait(core.RESTART_INTERVAL_S).sent(s.Offer)
    repeated = connected().established().restart().wait(core.REPEAT_AFTER_S)
    repeated.says(s.SignalingError("access_denied"), "i1")
    assert not repeated.all(e.StopChecks)
    assert repeated.wait(core.SIGNALING_RETRY_S * 2).sent(s.Offer)


def test_intermediate_that_used_up_the_generations_cannot_keep_the_agent_from_offering() -> None:
    """One forged offer of the highest generation there is would make every later one of the agent stale."""
    end = answered().established()
    end.says(s.Offer(core.MAX_GENERATION, FORGED, (VICTIM,)), "i1")
    assert end.generation == 1
    assert end.core.counts == {"generation_leap": 1}
    assert end.offer(2, via="").sent(s.Answer)


def test_agent_finds_the_generation_that_an_intermediate_pretended_last() -> None:
    connector = answered().established()
    connector.says(s.Offer(core.MAX_GENERATION_STEP, FORGED, (VICTIM,)), "i1")
    assert connector.generation == core.MAX_GENERATION_STEP
    connector.wait(60)
    agent, tries = connected().established().restart(), 0
    while not connector.offer(agent.generation, via="").sent(s.Answer):
        tries += 1
        (refusal,) = connector.sent(s.SignalingError)
        agent.says(refusal, "")
        while agent.state is not State.SIGNALING:
            agent.wait(0.5)
            connector.wait(0.5)
    assert tries <= 21
