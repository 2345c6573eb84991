from __future__ import annotations

import pytest

from ztna.access.grant import GRANT_LIFETIME_S
from ztna.ice.timing import CONSENT_LIMIT_S
from ztna.session.book import CONSENT_S, HANDSHAKE_LIMIT_S, MAX_UNCARRIED_S
from ztna.session.connector_table import MAX_SESSIONS, PEER_LOST_PATIENCE_S, ConnectorSessions
from ztna.session.effects import (
    BindChannel,
    CloseSession,
    ConfirmPeer,
    ForgetSession,
    KeepResumable,
    LimitAccess,
    Peer,
    ReleaseChannel,
    ReportClosed,
    SessionEffect,
    StartSession,
)

AGENT = Peer("a1", b"a" * 32)
S1 = b"1" * 16
S2 = b"2" * 16


def established() -> ConnectorSessions:
    table = ConnectorSessions(["i1", "i2"], max_offline_s=3600.0)
    table.handle_attached("i1", b"x1", [], 0.0)
    table.handle_attached("i2", b"x2", [], 0.0)
    table.handle_offered("i1", S1, AGENT, 5, 0.0)
    assert table.drain() == [StartSession(S1, AGENT), BindChannel("i1", S1, 5)]
    table.handle_established(S1, 0.5)
    assert table.next_deadline() is None
    return table


def run_until(table: ConnectorSessions, end: float) -> list[SessionEffect]:
    effects: list[SessionEffect] = []
    while (deadline := table.next_deadline()) is not None and deadline <= end:
        table.handle_timeout(deadline)
        effects += table.drain()
    return effects


def test_session_that_no_agent_takes_up_is_dropped() -> None:
    table = ConnectorSessions(["i1"], max_offline_s=3600.0)
    table.handle_offered("i1", S1, AGENT, 5, 0.0)
    table.drain()
    assert CloseSession(S1, "handshake_timeout") in run_until(table, HANDSHAKE_LIMIT_S)


def test_sessions_are_bounded() -> None:
    table = ConnectorSessions(["i1"], max_offline_s=3600.0)
    for number in range(MAX_SESSIONS):
        table.handle_offered("i1", number.to_bytes(16, "big"), Peer(str(number), b"k" * 32), 5, 0.0)
    table.drain()
    table.handle_offered("i1", b"x" * 16, AGENT, 5, 0.0)
    assert table.drain() == [ReportClosed("i1", b"x" * 16, "too_many_sessions")]


def test_lost_session_ends_with_the_offer_of_a_new_one_even_if_there_is_no_room_for_that() -> None:
    table = established()
    for number in range(1, MAX_SESSIONS):
        table.handle_offered("i1", number.to_bytes(16, "big"), Peer(str(number), b"k" * 32), 5, 0.0)
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.drain()
    table.handle_offered("i1", S2, AGENT, 5, 1.0)
    assert table.drain() == [CloseSession(S1, "superseded"), ReportClosed("i1", S2, "too_many_sessions")]


def test_known_session_gets_another_channel() -> None:
    table = established()
    table.handle_offered("i2", S1, AGENT, 9, 1.0)
    assert table.drain() == [BindChannel("i2", S1, 9)]


def test_another_agent_under_a_known_session_id_is_refused() -> None:
    table = established()
    table.handle_offered("i2", S1, Peer("a1", b"b" * 32), 9, 1.0)
    assert table.drain() == [ReportClosed("i2", S1, "unknown_session")]


def test_offer_of_a_session_that_is_closing_is_refused() -> None:
    table = established()
    table.handle_close_requested(S1, "operator", 1.0)
    table.handle_close_requested(S1, "operator", 1.0)
    table.handle_offered("i2", S1, AGENT, 9, 1.0)
    assert table.drain() == [CloseSession(S1, "operator"), ReportClosed("i2", S1, "unknown_session")]


def test_grant_is_kept_wherever_the_session_may_be_resumed_and_forgotten_with_it() -> None:
    table = established()
    grant = object()
    table.handle_grant(S1, grant)
    table.handle_grant(S2, grant)
    assert table.drain() == [KeepResumable("i1", S1, grant), KeepResumable("i2", S1, grant)]
    table.handle_closed(S1, "closed", 1.0)
    assert table.drain() == [
        ReleaseChannel("i1", S1),
        ReportClosed("i1", S1, "closed"),
        KeepResumable("i1", S1, None),
        KeepResumable("i2", S1, None),
        ForgetSession(S1),
    ]


def test_agent_that_was_lost_may_come_through_another_intermediate() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    assert table.drain() == [ReleaseChannel("i1", S1), ConfirmPeer(S1)]
    table.handle_rebound("i2", S1, AGENT, 9, 2.0)
    assert table.drain() == [BindChannel("i2", S1, 9)]
    assert table.next_deadline() is None


def test_agent_that_stays_lost_costs_its_session() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.handle_revoked(
        "i2", S1, "peer_lost", 5.0
    )  # says it too, without a channel: no more patience for that
    table.drain()
    assert table.next_deadline() == 1.0 + PEER_LOST_PATIENCE_S
    assert CloseSession(S1, "peer_lost") in run_until(table, 1.0 + PEER_LOST_PATIENCE_S)


def test_lost_agent_that_answers_directly_keeps_its_session_while_it_consents() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.drain()
    for now in (2.0, 20.0, 49.0):
        assert run_until(table, now) == []
        table.handle_consent(S1, now)
    assert run_until(table, 49.0 + CONSENT_S - 0.1) == []
    assert CloseSession(S1, "peer_lost") in run_until(table, 49.0 + CONSENT_S)


def test_session_that_no_intermediate_knows_ends_after_a_while_whatever_the_agent_answers() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    now = 1.0
    effects: list[SessionEffect] = []
    while not effects and now < 2 * MAX_UNCARRIED_S:
        now += 5.0
        effects = run_until(table, now)
        table.handle_consent(S1, now)
    assert CloseSession(S1, "peer_lost") in effects
    assert now == pytest.approx(1.0 + MAX_UNCARRIED_S, abs=5.0)


def test_limits_are_those_of_consent_and_grants() -> None:
    # The layers of this one know neither.
    assert (CONSENT_S, MAX_UNCARRIED_S) == (CONSENT_LIMIT_S, GRANT_LIFETIME_S)


def test_agent_that_comes_back_is_as_if_it_had_never_been_lost() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.handle_consent(S1, 2.0)
    table.handle_rebound("i1", S1, AGENT, 9, 3.0)
    table.drain()
    table.handle_consent(S1, 4.0)
    assert table.next_deadline() is None
    table.handle_revoked("i1", S1, "peer_lost", 5.0)
    assert ConfirmPeer(S1) in table.drain()
    assert table.next_deadline() == 5.0 + PEER_LOST_PATIENCE_S


def test_consent_of_a_session_that_is_not_there_changes_nothing() -> None:
    table = established()
    table.handle_consent(S2, 1.0)
    table.handle_close_requested(S1, "operator", 1.0)
    deadline = table.next_deadline()
    table.handle_consent(S1, 2.0)
    assert table.next_deadline() == deadline


@pytest.mark.parametrize("code", ["access_denied", "peer_closed"])
def test_agent_that_answers_directly_is_no_excuse_for_what_an_intermediate_forbids(code: str) -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.handle_consent(S1, 2.0)
    table.drain()
    table.handle_revoked("i2", S1, code, 3.0)
    assert CloseSession(S1, code) in table.drain()


def test_session_that_no_intermediate_carries_is_limited_by_the_one_that_lost_its_agent() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.handle_consent(S1, 2.0)
    table.drain()
    table.handle_access("i1", S1, frozenset({"ssh"}), 3.0)
    assert table.drain() == [LimitAccess(S1, frozenset({"ssh"}))]


def test_session_that_another_intermediate_carries_is_not_limited_by_the_one_that_lost_its_agent() -> None:
    table = established()
    table.handle_offered("i2", S1, AGENT, 9, 1.0)
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.drain()
    table.handle_access("i1", S1, frozenset({"ssh"}), 3.0)
    table.handle_revoked("i1", S1, "access_denied", 3.0)
    assert table.drain() == []


def test_intermediates_that_remember_a_lost_session_are_told_that_its_agent_closed_it() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.handle_consent(S1, 2.0)
    table.drain()
    table.handle_closed(S1, "idle", 3.0)
    reports = [each for each in table.drain() if isinstance(each, ReportClosed)]
    assert reports == [ReportClosed("i1", S1, "idle"), ReportClosed("i2", S1, "idle")]


def test_intermediates_are_not_told_of_what_they_ended_or_will_forget() -> None:
    for code in ("peer_lost", "access_denied"):
        table = established()
        table.handle_revoked("i1", S1, "peer_lost", 1.0)
        if code != "peer_lost":
            table.handle_revoked("i1", S1, code, 2.0)
        ended = [*table.drain(), *run_until(table, 1.0 + PEER_LOST_PATIENCE_S)]
        assert CloseSession(S1, code) in ended
        table.handle_closed(S1, code, 20.0)
        assert not [each for each in [*ended, *table.drain()] if isinstance(each, ReportClosed)]


def test_agent_that_comes_anew_ends_its_lost_session_at_once() -> None:
    table = established()
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    table.handle_offered("i1", S2, AGENT, 6, 2.0)
    assert CloseSession(S1, "superseded") in table.drain()


@pytest.mark.parametrize("code", ["peer_closed", "access_denied", "session_not_found"])
def test_other_ends_of_the_last_carrier_end_the_session_at_once(code: str) -> None:
    table = established()
    table.handle_revoked("i1", S1, code, 1.0)
    assert CloseSession(S1, code) in table.drain()


def test_agent_lost_before_its_handshake_is_not_waited_for() -> None:
    table = ConnectorSessions(["i1"], max_offline_s=3600.0)
    table.handle_offered("i1", S1, AGENT, 5, 0.0)
    table.handle_revoked("i1", S1, "peer_lost", 1.0)
    assert CloseSession(S1, "peer_lost") in table.drain()


def test_word_of_an_intermediate_without_a_channel_does_not_touch_a_carried_session() -> None:
    table = established()
    table.handle_revoked("i2", S1, "access_denied", 1.0)
    table.handle_revoked("i2", S2, "peer_lost", 1.0)
    assert table.drain() == []


def test_news_of_unknown_sessions_changes_nothing() -> None:
    table = established()
    table.handle_established(S2, 1.0)
    table.handle_close_requested(S2, "x", 1.0)
    assert table.drain() == []


def test_session_that_its_intermediate_offers_anew_has_ended_there() -> None:
    table = established()
    table.handle_offered("i1", S2, AGENT, 6, 2.0)
    effects = table.drain()
    assert ReleaseChannel("i1", S1) in effects
    assert CloseSession(S1, "superseded") in effects
