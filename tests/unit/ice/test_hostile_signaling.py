"""A peer, or a captured intermediate, that plays foul with the signals of the direct path."""

from __future__ import annotations

import pytest

from tests.unit.ice.test_hole_punch import (
    CREDENTIALS,
    THEIRS,
    VARYING,
    End,
    answered,
    connected,
    direct,
    host,
)
from ztna.ice import hole_punch as core
from ztna.ice import hole_punch_effects as e
from ztna.ice import signals as s

FORGED = s.Credentials("evil", "e" * 22)
VICTIM = host("203.0.113.66")


def in_session() -> End:
    """An agent whose offer travels through the established session."""
    return direct(connected().established()).restart(s.OPERATOR)


# The peer


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


def test_candidates_come_through_an_intermediate_that_had_the_offer_as_well() -> None:
    agent = in_session().wait(core.REPEAT_AFTER_S).answer(via="")
    added = s.CandidateAdded(agent.generation, host("198.51.100.9"))
    assert agent.says(added, "i1").all(e.AddCandidates)
    connector = answered().established().offer(2, via="").offer(2, via="i1")
    assert connector.says(s.CandidateAdded(2, host("198.51.100.9")), "i1").all(e.AddCandidates)
