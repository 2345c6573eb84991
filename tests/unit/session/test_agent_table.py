from __future__ import annotations

from random import Random
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ztna.session.agent_table import (
    ANSWER_LIMIT_S,
    EAGER_RETRY_INTERVAL_S,
    EXCLUSION_S,
    MAX_ENDED_REMEMBERED,
    MAX_SESSIONS,
    MAX_UNANSWERED_PROBES,
    RETRY_INTERVAL_S,
    UNAVAILABLE_PATIENCE_S,
    WISH_LIMIT_S,
    AgentSessions,
)
from ztna.session.book import CLOSE_LIMIT_S, CONSENT_S, HANDSHAKE_LIMIT_S, VOUCH_LIMIT_S, SessionState
from ztna.session.effects import (
    AskForSession,
    BindChannel,
    CloseSession,
    ConfirmPeer,
    ForgetSession,
    GrantRenewed,
    KeepResumable,
    Peer,
    ReleaseChannel,
    RenewalRefused,
    ReportClosed,
    ServiceReady,
    ServiceUnavailable,
    SessionEffect,
    StartSession,
)
from ztna.session.grants import (
    GRANT_MARGIN_S,
    MAX_REFUSED_RETRY_S,
    MIN_RENEWAL_INTERVAL_S,
    REFUSALS_FORGOTTEN_S,
    RENEWAL_JITTER,
    RENEWAL_RETRY_S,
    RENEWAL_SPREAD_S,
)

EffectT = TypeVar("EffectT")
C1 = Peer("c1", b"1" * 32)
C2 = Peer("c2", b"2" * 32)
S1 = b"1" * 16
S2 = b"2" * 16
LIFETIME_S = 600.0
MAX_OFFLINE_S = 3600.0


class World:
    """An agent's table, with what it said so far."""

    def __init__(self, *, is_eager: bool = False, is_attached: bool = True) -> None:
        self.table = AgentSessions(
            ["i1", "i2"],
            {"web": (), "db": (), "pinned": ("c1",)},
            Random(1),
            max_offline_s=MAX_OFFLINE_S,
            is_eager=is_eager,
        )
        self.effects: list[SessionEffect] = []
        if is_attached:
            self.table.handle_attached("i1", b"a1", [], 0.0)
        self.asked: list[AskForSession] = []
        self.take()

    def take(self) -> list[SessionEffect]:
        self.effects = self.table.drain()
        self.asked += self.of(AskForSession)
        return self.effects

    def of(self, kind: type[EffectT]) -> list[EffectT]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def want(self, service: str = "web", now: float = 0.0) -> None:
        self.table.handle_service_requested(service, now)
        self.take()

    def grant(
        self,
        service: str = "web",
        session_id: bytes = S1,
        connector: Peer = C1,
        now: float = 0.0,
        channel: int = 7,
        lifetime_s: float = LIFETIME_S,
        intermediate: str = "i1",
    ) -> None:
        request_id = self.asked[-1].request_id if self.asked else 99
        self.table.handle_granted(
            intermediate, request_id, session_id, service, connector, channel, object(), lifetime_s, now
        )
        self.take()

    def establish(self, session_id: bytes = S1, now: float = 0.0) -> None:
        self.table.handle_established(session_id, now)
        self.take()

    def fail(self, code: str, now: float, *, is_final: bool = False) -> None:
        self.table.handle_request_failed(self.asked[-1].request_id, code, "why", now, is_final=is_final)
        self.take()

    def renewal(self, now: float = 0.0) -> tuple[AskForSession, float]:
        """Run from `now` until a grant is to be renewed; returns the question and when it was asked."""
        count = len(self.asked)
        for _ in range(1000):
            deadline = self.table.next_deadline()
            assert deadline is not None
            self.table.handle_timeout(deadline)
            self.take()
            if len(self.asked) > count:
                return self.asked[-1], deadline - now
        raise AssertionError("the timer spins")

    def run_until(self, end: float) -> list[SessionEffect]:
        effects: list[SessionEffect] = []
        for _ in range(1000):
            deadline = self.table.next_deadline()
            if deadline is None or deadline > end:
                return effects
            self.table.handle_timeout(deadline)
            effects += self.take()
        raise AssertionError("the timer spins")

    @classmethod
    def established(cls, *, is_eager: bool = False) -> World:
        world = cls(is_eager=is_eager)
        world.want()
        world.grant()
        world.establish()
        return world


def test_wanted_service_is_asked_for_started_and_announced() -> None:
    world = World()
    world.want()
    assert world.effects == [AskForSession("i1", 1, "web", ())]
    world.grant()
    assert world.of(StartSession) == [StartSession(S1, C1)]
    assert world.of(BindChannel) == [BindChannel("i1", S1, 7)]
    assert [keep.intermediate_id for keep in world.of(KeepResumable)] == ["i1", "i2"]
    world.establish()
    (ready,) = world.of(ServiceReady)
    assert (ready.service, ready.session_id, ready.connector_id) == ("web", S1, "c1")
    world.want()
    assert len(world.of(ServiceReady)) == 1


def test_second_request_for_the_same_service_joins_the_first() -> None:
    world = World()
    world.want()
    world.want(now=1.0)
    assert world.effects == []


def test_service_that_is_not_configured_is_unavailable_at_once() -> None:
    world = World()
    world.want("nonsense")
    assert [each.code for each in world.of(ServiceUnavailable)] == ["unknown_service"]


def test_without_an_attachment_the_wish_waits_and_then_fails() -> None:
    world = World(is_attached=False)
    world.want()
    assert world.effects == []
    effects = world.run_until(WISH_LIMIT_S)
    assert effects == [ServiceUnavailable("web", "not_attached", "not attached to any intermediate")]
    assert world.table.next_deadline() is None


def test_wish_is_asked_as_soon_as_an_attachment_stands() -> None:
    world = World(is_attached=False)
    world.want()
    world.table.handle_attached("i2", b"a2", [], 1.0)
    assert world.take() == [AskForSession("i2", 1, "web", ())]


def test_final_refusal_is_told_at_once() -> None:
    world = World()
    world.want()
    world.fail("access_denied", 0.1, is_final=True)
    assert world.effects == [ServiceUnavailable("web", "access_denied", "why")]


def test_absent_connector_is_asked_for_again_for_a_short_while() -> None:
    world = World()
    world.want()
    end = 0.1 + UNAVAILABLE_PATIENCE_S
    now = 0.1
    while True:
        world.fail("no_connector_available", now)
        effects = world.run_until(min(now + RETRY_INTERVAL_S, end))
        if not any(isinstance(effect, AskForSession) for effect in effects):
            break
        now += RETRY_INTERVAL_S
    assert effects == [ServiceUnavailable("web", "no_connector_available", "why")]
    assert now <= end
    assert len(world.asked) >= UNAVAILABLE_PATIENCE_S / RETRY_INTERVAL_S


@pytest.mark.parametrize("code", ["rate_limited", "session_timeout", "not_attached", "unavailable"])
def test_other_passing_failures_do_not_shorten_the_wait(code: str) -> None:
    world = World()
    world.want()
    world.fail(code, 0.1)
    assert world.run_until(UNAVAILABLE_PATIENCE_S + 1.0) != []
    assert not world.of(ServiceUnavailable)


def test_question_without_any_answer_is_asked_again_and_ends_in_time() -> None:
    world = World()
    world.want()
    effects = world.run_until(WISH_LIMIT_S)
    assert [type(effect) for effect in effects] == [AskForSession, ServiceUnavailable]
    assert world.asked[-1].request_id == 2
    assert ANSWER_LIMIT_S < WISH_LIMIT_S


def test_loss_of_the_intermediate_that_owes_an_answer_asks_another() -> None:
    world = World()
    world.table.handle_attached("i2", b"a2", [], 0.0)
    world.want()
    assert world.asked[-1].intermediate_id == "i2"
    world.table.handle_detached("i1", 1.0)
    world.take()
    assert world.asked[1:] == []
    world.table.handle_detached("i2", 1.0)
    world.table.handle_attached("i1", b"b1", [], 2.0)
    world.take()
    assert [ask.intermediate_id for ask in world.asked] == ["i2", "i1"]


def test_failed_handshake_avoids_the_connector_for_a_while() -> None:
    world = World()
    world.want()
    world.grant()
    world.table.handle_closed(S1, "handshake_timeout", 4.0)
    world.take()
    assert world.of(ForgetSession) == [ForgetSession(S1)]
    assert world.of(AskForSession)[0].excluded_connectors == ("c1",)
    world.run_until(60.0)
    world.want(now=4.0 + EXCLUSION_S)
    assert world.of(AskForSession)[0].excluded_connectors == ()


@pytest.mark.parametrize("is_established", [False, True], ids=["refused", "established-first"])
def test_connector_that_ends_every_session_at_once_is_not_asked_in_a_spin(is_established: bool) -> None:
    world = World()
    now = 0.0
    for number in range(1, 4):
        world.want(now=now)
        assert len(world.asked) == number
        session_id = bytes([number]) * 16
        world.grant(session_id=session_id, now=now)
        if is_established:
            world.establish(session_id, now)
        world.table.handle_closed(session_id, "certificate_revoked", now)
        world.take()
        world.want(now=now)
        assert len(world.asked) == number
        now += RETRY_INTERVAL_S
        world.run_until(now)


def test_end_of_an_established_session_excludes_nobody() -> None:
    world = World.established()
    world.table.handle_closed(S1, "idle_timeout", 5.0)
    world.take()
    world.want(now=6.0)
    assert world.of(AskForSession)[0].excluded_connectors == ()


def test_session_that_gets_no_path_is_closed_and_excludes_nobody() -> None:
    world = World()
    world.want()
    world.grant()
    effects = world.run_until(HANDSHAKE_LIMIT_S)
    assert CloseSession(S1, "handshake_timeout") in effects
    world.table.handle_closed(S1, "handshake_timeout", HANDSHAKE_LIMIT_S)
    world.want(now=HANDSHAKE_LIMIT_S)
    assert world.of(AskForSession)[0].excluded_connectors == ()


def test_session_whose_end_is_never_told_is_freed_all_the_same() -> None:
    world = World.established()
    world.table.handle_close_requested(S1, "operator", 1.0)
    assert world.take() == [CloseSession(S1, "operator")]
    effects = world.run_until(1.0 + CLOSE_LIMIT_S)
    assert ForgetSession(S1) in effects
    assert ReportClosed("i1", S1, "close_timeout") in effects
    assert world.table.sessions == []


# Renewal

EARLIEST_S = LIFETIME_S / 2 * (1 - RENEWAL_JITTER)
LATEST_S = LIFETIME_S / 2 * (1 + RENEWAL_JITTER)


def test_used_grant_is_renewed_at_half_its_life_once_and_shown_to_the_connector() -> None:
    world = World.established()
    ask, after_s = world.renewal()
    assert ask == AskForSession("i1", 2, "web", (), ("c1",))
    assert EARLIEST_S <= after_s <= LATEST_S
    assert world.run_until(LATEST_S) == []
    world.grant(now=LIFETIME_S / 2)
    assert world.of(BindChannel) == []
    (renewed,) = world.of(GrantRenewed)
    assert (renewed.session_id, renewed.service) == (S1, "web")
    world.want(now=LIFETIME_S)
    assert [ready.grant for ready in world.of(ServiceReady)] == [renewed.grant]


def test_first_grant_is_shown_by_whoever_uses_it() -> None:
    world = World.established()
    world.want("db")
    world.grant("db")
    assert world.of(GrantRenewed) == []
    assert len(world.of(ServiceReady)) == 1


def test_session_that_only_carries_old_connections_keeps_a_fresh_grant() -> None:
    world = World.established()
    now = 0.0
    for _ in range(20):
        ask, after_s = world.renewal(now)
        assert ask.service == "web"
        assert EARLIEST_S <= after_s <= LATEST_S
        now += after_s
        world.grant(now=now)
        assert len(world.of(GrantRenewed)) == 1


def test_unused_grant_lapses_while_another_one_proves_its_session() -> None:
    world = World.established()
    world.want("db")
    world.grant("db")
    asked = []
    now = 0.0
    for _ in range(6):
        ask, after_s = world.renewal(now)
        now += after_s
        world.grant(ask.service, now=now)
        asked.append(ask.service)
    # Both were used at first, then nobody came any more.
    assert set(asked[:2]) == {"web", "db"}
    assert len(set(asked[2:])) == 1
    (lapsed,) = {"web", "db"} - set(asked[2:])
    world.want(lapsed, now=now)
    assert [ask.service for ask in world.of(AskForSession)] == [lapsed]


def test_agents_that_were_granted_at_the_same_time_renew_at_different_times() -> None:
    times = set()
    for seed in range(20):
        world = World.established()
        world.table._grants._random.seed(seed)
        _, after_s = world.renewal()
        world.grant(now=after_s)
        times.add(world.renewal(after_s)[1])
    assert len(times) == 20
    assert max(times) - min(times) > LIFETIME_S / 2 * RENEWAL_JITTER


@pytest.mark.parametrize("code", ["rate_limited", "session_timeout", "no_connector_available"])
def test_renewal_that_fails_is_tried_again(code: str) -> None:
    world = World.established()
    _, now = world.renewal()
    for _ in range(5):
        world.fail(code, now)
        assert world.effects == []
        _, after_s = world.renewal(now)
        assert abs(after_s - RENEWAL_RETRY_S) <= RENEWAL_RETRY_S * RENEWAL_JITTER
        now += after_s


def test_renewal_whose_intermediate_left_is_asked_for_where_the_session_is_carried() -> None:
    world = World.established()
    _, now = world.renewal()
    world.table.handle_detached("i1", now, is_left=True)
    assert [e for e in world.run_until(now + 60.0) if isinstance(e, AskForSession)] == []
    now += 60.0
    world.table.handle_attached("i2", b"a2", [], now)
    assert [e for e in world.run_until(now + 60.0) if isinstance(e, AskForSession)] == []
    now += 60.0
    world.table.handle_rebound("i2", S1, C1, 3, now)
    world.table.handle_timeout(now)
    (ask,) = [e for e in world.take() if isinstance(e, AskForSession)]
    assert (ask.intermediate_id, ask.connectors) == ("i2", ("c1",))


def test_grant_that_expired_during_an_outage_is_renewed_when_its_session_is_back() -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0, is_left=True)
    world.run_until(3 * LIFETIME_S)
    world.want(now=3 * LIFETIME_S)
    assert world.of(ServiceReady) == []
    world.run_until(3 * LIFETIME_S + WISH_LIMIT_S)
    back = 4 * LIFETIME_S
    world.table.handle_attached("i1", b"a2", [], back)
    world.table.handle_rebound("i1", S1, C1, 3, back)
    world.take()
    ask, after_s = world.renewal(back)
    assert (ask.service, ask.connectors) == ("web", ("c1",))
    assert after_s <= RENEWAL_SPREAD_S
    world.grant(now=back + after_s, channel=3)
    assert len(world.of(GrantRenewed)) == 1
    world.want(now=back + after_s)
    assert len(world.of(ServiceReady)) == 1


def test_final_refusal_of_a_renewal_is_told_once_and_closes_nothing() -> None:
    world = World.established()
    _, now = world.renewal()
    world.fail("access_denied", now, is_final=True)
    assert world.effects == [RenewalRefused(S1, "web", "c1", "access_denied", "why")]
    assert world.run_until(10 * LIFETIME_S) == []
    assert [record.state for record in world.table.sessions] == [SessionState.ESTABLISHED]
    world.want(now=10 * LIFETIME_S)
    assert len(world.of(AskForSession)) == 1


def test_session_whose_one_service_is_no_longer_allowed_is_proven_by_another() -> None:
    world = World.established()
    world.want("db")
    world.grant("db")
    asked = {}
    for _ in range(2):
        ask, now = world.renewal()
        asked[ask.service] = ask
    world.table.handle_request_failed(asked["db"].request_id, "access_denied", "", now, is_final=True)
    world.table.handle_granted("i1", asked["web"].request_id, S1, "web", C1, 7, object(), LIFETIME_S, now)
    world.take()
    assert len(world.of(GrantRenewed)) == 1
    assert world.renewal(now)[0].service == "web"


def test_renewal_leaves_the_service_where_new_connections_go() -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0)
    world.table.handle_attached("i2", b"a2", [], 1.0)
    world.table.handle_rebound("i2", S1, C1, 3, 1.0)
    world.grant(session_id=S2, connector=C2, now=2.0, intermediate="i2")
    world.establish(S2)
    asks = [world.renewal()[0] for _ in range(2)]
    now = LATEST_S
    (of_former,) = [ask for ask in asks if ask.connectors == ("c1",)]
    world.table.handle_granted("i2", of_former.request_id, S1, "web", C1, 3, object(), LIFETIME_S, now)
    world.take()
    assert [renewed.session_id for renewed in world.of(GrantRenewed)] == [S1]
    world.want(now=now)
    assert [ready.session_id for ready in world.of(ServiceReady)] == [S2]


def test_renewal_answered_with_another_session_is_tried_again() -> None:
    world = World.established()
    _, now = world.renewal()
    world.grant(session_id=S2, connector=C2, now=now)
    assert world.of(GrantRenewed) == []
    ask, _ = world.renewal(now)
    assert ask.connectors == ("c1",)


def refuse(world: World, grant: object, now: float) -> None:
    world.table.handle_grant_refused(S1, "web", grant, "expired: the issuer's certificate", now)
    world.take()


def shown(world: World) -> object:
    """What the last `ServiceReady` gave out."""
    (ready,) = world.of(ServiceReady)
    return ready.grant


def test_refused_grant_is_renewed_at_once_and_a_client_that_waits_gets_the_new_one() -> None:
    world = World.established()
    refused = shown(world)
    refuse(world, refused, 1.0)
    assert world.run_until(1.0) == [AskForSession("i1", 2, "web", (), ("c1",))]
    world.want(now=1.1)
    assert world.effects == [], "it waits for the answer, and asks nothing itself"
    world.grant(now=1.2)
    assert shown(world) is not refused
    assert [renewed.grant for renewed in world.of(GrantRenewed)] == [shown(world)]


def test_refusal_of_a_grant_that_was_replaced_meanwhile_changes_nothing() -> None:
    world = World.established()
    refused = shown(world)
    refuse(world, refused, 1.0)
    world.run_until(1.0)
    world.grant(now=1.2)
    for _ in range(100):
        refuse(world, refused, 1.3)
    assert world.run_until(LIFETIME_S / 4) == []
    world.want(now=1.4)
    assert len(world.of(ServiceReady)) == 1


def test_grants_that_are_all_refused_are_asked_for_ever_more_seldom() -> None:
    world = World.established()
    grant, now, waits = shown(world), 1.0, []
    for _ in range(8):
        refuse(world, grant, now)
        _, wait_s = world.renewal(now)
        waits.append(wait_s)
        now += wait_s
        world.want(now=now)
        world.grant(now=now)
        grant = shown(world)
    assert waits[0] == 0.0
    assert waits[1:] == [
        pytest.approx(min(2.0**number, MAX_REFUSED_RETRY_S), rel=RENEWAL_JITTER) for number in range(7)
    ]
    assert max(waits) <= MAX_REFUSED_RETRY_S < WISH_LIMIT_S
    # One that nobody shows is refused by nobody, and so not asked for either.
    assert world.renewal(now)[1] >= EARLIEST_S


def test_refusal_long_after_the_last_one_is_mended_at_once_again() -> None:
    world = World.established()
    now = 1.0
    for _ in range(2):
        refuse(world, shown(world), now)
        assert world.renewal(now)[1] == 0.0
        world.want(now=now)
        world.grant(now=now)
        now += REFUSALS_FORGOTTEN_S


def test_client_that_waits_in_vain_for_another_grant_is_told_why_the_last_one_was_refused() -> None:
    world = World.established()
    refuse(world, shown(world), 1.0)
    world.want(now=1.0)
    world.renewal(1.0)
    (failed,) = world.run_until(1.0 + WISH_LIMIT_S)
    assert failed == ServiceUnavailable("web", "grant_refused", "expired: the issuer's certificate")


def test_client_that_waits_asks_for_itself_when_the_renewal_is_finally_refused() -> None:
    world = World.established()
    refuse(world, shown(world), 1.0)
    world.want(now=1.0)
    world.renewal(1.0)
    world.fail("access_denied", 1.1, is_final=True)
    assert [type(each) for each in world.effects] == [RenewalRefused, AskForSession]
    world.fail("access_denied", 1.2, is_final=True)
    assert world.effects == [ServiceUnavailable("web", "access_denied", "why")]


def test_renewal_of_a_refused_grant_that_came_to_nothing_is_tried_again_while_clients_wait() -> None:
    world = World.established()
    refuse(world, shown(world), 1.0)
    world.renewal(1.0)
    world.fail("session_timeout", 1.0)
    _, wait_s = world.renewal(1.0)
    assert wait_s == pytest.approx(MAX_REFUSED_RETRY_S, rel=RENEWAL_JITTER)
    assert wait_s < WISH_LIMIT_S


def test_refusal_of_what_the_agent_does_not_hold_changes_nothing() -> None:
    world = World.established()
    world.table.handle_grant_refused(S2, "web", object(), "", 0.8)
    world.table.handle_grant_refused(S1, "ssh", object(), "", 0.8)
    assert world.run_until(EARLIEST_S - 1.0) == []


@pytest.mark.parametrize("lifetime_s", [-1.0, 0.0, 1.0])
def test_issuer_of_grants_without_life_is_not_asked_in_a_spin(lifetime_s: float) -> None:
    world = World.established()
    now = 1.0
    for _ in range(5):
        world.grant(now=now, lifetime_s=lifetime_s)
        _, after_s = world.renewal(now)
        assert after_s == MIN_RENEWAL_INTERVAL_S
        now += after_s


def test_grant_is_not_used_in_its_last_seconds() -> None:
    world = World.established()
    world.want(now=LIFETIME_S - GRANT_MARGIN_S)
    assert world.of(ServiceReady) == []


@pytest.mark.parametrize("lifetime_s", [-1.0, 0.0, GRANT_MARGIN_S])
def test_grant_too_short_to_be_used_fails_the_wish_in_time_and_never_spins(lifetime_s: float) -> None:
    world = World.established()
    world.table.handle_service_requested("db", 1.0)
    world.take()
    world.grant("db", now=1.0, lifetime_s=lifetime_s)
    unavailable = []
    for _ in range(100):
        deadline = world.table.next_deadline()
        if deadline is None or deadline > 1.0 + WISH_LIMIT_S:
            break
        world.table.handle_timeout(deadline)
        world.take()
        unavailable += world.of(ServiceUnavailable)
        if world.of(AskForSession):
            world.grant("db", now=deadline, lifetime_s=lifetime_s)
    assert [each.code for each in unavailable] == ["unusable_answer"]


def test_grant_with_a_connector_that_is_not_pinned_is_refused() -> None:
    world = World()
    world.want("pinned")
    world.grant("pinned", connector=C2)
    assert world.effects == [ReportClosed("i1", S1, "connector_not_accepted")]
    assert [e.code for e in world.run_until(20.0) if isinstance(e, ServiceUnavailable)] == ["unusable_answer"]


def test_refusing_a_connector_leaves_its_session_for_other_services_alone() -> None:
    world = World()
    world.want()
    world.grant(connector=C2)
    world.establish()
    world.want("pinned")
    world.grant("pinned", connector=C2)
    assert world.effects == []
    assert len(world.table.sessions) == 1


def test_another_peer_under_a_known_session_id_is_not_believed() -> None:
    world = World.established()
    world.want("db")
    world.grant("db", connector=Peer("c1", b"x" * 32))
    assert world.effects == []
    (record,) = world.table.sessions
    assert record.peer == C1


def test_answer_that_crosses_the_end_of_its_session_starts_nothing() -> None:
    world = World.established()
    world.want("db")
    world.table.handle_closed(S1, "closed", 1.0)
    world.take()
    world.grant("db", now=1.0)
    assert world.of(StartSession) == []
    assert any(isinstance(e, AskForSession) for e in world.run_until(1.0 + RETRY_INTERVAL_S))


def test_sessions_are_bounded() -> None:
    world = World()
    for number in range(MAX_SESSIONS + 1):
        world.grant(session_id=number.to_bytes(16, "big"), connector=Peer(str(number), b"k" * 32))
    assert len(world.table.sessions) == MAX_SESSIONS


def test_oldest_ended_session_is_forgotten_first() -> None:
    world = World()
    for number in range(MAX_ENDED_REMEMBERED + 1):
        session_id = number.to_bytes(16, "big")
        world.grant(session_id=session_id)
        world.table.handle_closed(session_id, "closed", 0.0)
    world.grant(session_id=(1).to_bytes(16, "big"))
    assert world.of(StartSession) == []
    world.grant(session_id=bytes(16))
    assert len(world.of(StartSession)) == 1


# Fail over


def test_session_moves_to_another_intermediate() -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0, is_left=True)
    world.table.handle_attached("i2", b"a2", [], 2.0)
    world.take()
    world.want(now=2.0)
    # Nobody carries it yet: whether i2 will is asked rather than hoped.
    assert world.of(ServiceReady) == []
    assert [ask.intermediate_id for ask in world.of(AskForSession)] == ["i2"]
    world.table.handle_rebound("i2", S1, C1, 3, 2.1)
    world.take()
    assert world.of(BindChannel) == [BindChannel("i2", S1, 3)]
    assert len(world.of(ServiceReady)) == 1


def test_session_that_the_next_intermediate_does_not_resume_ends() -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0, is_left=True)
    world.table.handle_attached("i2", b"a2", [], 2.0)
    world.table.handle_revoked("i2", S1, "session_not_found", 2.0)
    assert CloseSession(S1, "session_not_found") in world.take()


def test_refused_session_of_an_attachment_ends() -> None:
    world = World.established()
    world.table.handle_attached("i1", b"b1", [S1], 2.0)
    assert CloseSession(S1, "not_resumable") in world.take()


def test_attachment_that_is_told_again_keeps_its_channels() -> None:
    world = World.established()
    world.table.handle_attached("i1", b"a1", [], 2.0)
    world.take()
    world.want(now=2.0)
    assert len(world.of(ServiceReady)) == 1


def test_session_stays_usable_while_only_signaling_is_down() -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0)
    assert [keep.intermediate_id for keep in world.take() if isinstance(keep, KeepResumable)] == ["i1"]
    world.want(now=1.0)
    assert len(world.of(ServiceReady)) == 1


@pytest.mark.parametrize(
    ("code", "ends"),
    [("peer_lost", False), ("session_timeout", False), ("access_denied", True), ("peer_closed", True)],
)
def test_session_with_another_carrier_ends_only_for_a_final_code(code: str, ends: bool) -> None:
    world = World.established()
    world.table.handle_rebound("i2", S1, C1, 3, 1.0)
    world.take()
    world.table.handle_revoked("i1", S1, code, 1.0)
    world.take()
    assert world.of(ReleaseChannel) == [ReleaseChannel("i1", S1)]
    assert bool(world.of(CloseSession)) is ends


def test_lost_connector_ends_its_session_at_once() -> None:
    world = World.established()
    world.table.handle_revoked("i1", S1, "peer_lost", 1.0)
    assert CloseSession(S1, "peer_lost") in world.take()


def test_lost_connector_that_answered_directly_just_before_is_asked_once_more() -> None:
    world = World.established()
    world.table.handle_consent(S1, 0.5)
    world.table.handle_revoked("i1", S1, "peer_lost", 1.0)
    assert world.take() == [ReleaseChannel("i1", S1), ConfirmPeer(S1)]
    # Not by a grant of the lost session: perhaps nobody is there.
    world.want(now=1.5)
    assert not world.of(ServiceReady)
    assert CloseSession(S1, "peer_lost") in world.run_until(1.0 + VOUCH_LIMIT_S)


def test_lost_connector_that_answers_directly_goes_on_and_serves_new_clients() -> None:
    world = World.established()
    world.table.handle_consent(S1, 0.5)
    world.table.handle_revoked("i1", S1, "peer_lost", 1.0)
    world.table.handle_consent(S1, 1.2)
    world.take()
    world.want(now=5.0)
    assert len(world.of(ServiceReady)) == 1
    ended = world.run_until(1.2 + CONSENT_S)
    assert CloseSession(S1, "peer_lost") in ended


def test_intermediate_of_a_connector_that_answers_nothing_is_asked_whether_it_knows_the_session() -> None:
    world = World.established()
    world.table.handle_unanswered(S1, MAX_UNANSWERED_PROBES - 1)
    assert world.take() == []
    world.table.handle_unanswered(S1, MAX_UNANSWERED_PROBES)
    assert world.take() == [AskForSession("i1", 2, "web", (), ("c1",))]
    world.table.handle_unanswered(S1, MAX_UNANSWERED_PROBES)
    assert world.take() == []  # one question at a time
    world.grant(now=1.0)
    assert not world.of(CloseSession)
    assert [each.session_id for each in world.of(GrantRenewed)] == [S1]


def test_session_whose_end_got_lost_gives_way_to_the_one_that_its_intermediate_answers_with() -> None:
    world = World.established()
    world.table.handle_unanswered(S1, MAX_UNANSWERED_PROBES)
    world.take()
    world.grant(session_id=S2, now=1.0)
    assert ReleaseChannel("i1", S1) in world.effects
    assert CloseSession(S1, "superseded") in world.effects
    assert world.of(StartSession) == [StartSession(S2, C1)]
    world.table.handle_closed(S1, "closed", 1.0)
    world.take()
    # Whoever comes now waits for the new one, and for no answer of anybody.
    world.want(now=1.0)
    assert world.effects == []
    world.establish(S2, now=1.2)
    assert [each.session_id for each in world.of(ServiceReady)] == [S2]


def test_session_that_another_intermediate_carries_outlives_a_new_one() -> None:
    world = World.established()
    world.table.handle_attached("i2", b"a2", [], 1.0)
    world.table.handle_rebound("i2", S1, C1, 3, 1.0)
    world.table.handle_unanswered(S1, MAX_UNANSWERED_PROBES)
    world.take()
    world.grant(session_id=S2, now=1.0, intermediate="i2")
    assert ReleaseChannel("i2", S1) in world.effects
    assert not world.of(CloseSession)


@pytest.mark.parametrize("is_attached", [True, False])
def test_nobody_is_asked_about_a_session_that_is_unknown_or_that_nobody_carries(is_attached: bool) -> None:
    world = World.established()
    if not is_attached:
        world.table.handle_detached("i1", 1.0, is_left=True)
        world.take()
    world.table.handle_unanswered(S2 if is_attached else S1, MAX_UNANSWERED_PROBES)
    assert world.take() == []


def test_new_session_with_a_connector_ends_the_one_that_nobody_carries() -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0, is_left=True)
    world.table.handle_attached("i2", b"a2", [], 2.0)
    world.take()
    world.want(now=2.0)
    world.grant(session_id=S2, now=2.0, intermediate="i2")
    assert CloseSession(S1, "superseded") in world.effects
    assert [record.state for record in world.table.sessions] == [SessionState.CLOSING, SessionState.OPENING]


def test_unknown_rebound_session_is_reported_as_closed() -> None:
    world = World()
    world.table.handle_rebound("i1", S1, C1, 3, 1.0)
    assert world.take() == [ReportClosed("i1", S1, "unknown_session")]


def test_everything_ends_after_too_long_without_any_intermediate() -> None:
    world = World.established()
    world.table.handle_detached("i1", 10.0)
    world.take()
    effects = world.run_until(10.0 + MAX_OFFLINE_S)
    assert CloseSession(S1, "max_offline") in effects


def test_session_that_outlived_a_crash_of_the_table_is_freed() -> None:
    world = World()
    world.table.handle_closed(S1, "idle_timeout", 1.0)
    assert world.take() == [ForgetSession(S1)]


# Eager


def test_eager_agent_asks_for_everything_once_attached_and_for_ever() -> None:
    world = World(is_eager=True)
    assert [ask.service for ask in world.asked] == ["web", "db", "pinned"]
    for ask in list(world.asked):
        world.table.handle_request_failed(ask.request_id, "access_denied", "", 1.0, is_final=True)
    world.take()
    assert world.of(ServiceUnavailable) == []
    effects = world.run_until(1.0 + EAGER_RETRY_INTERVAL_S)
    assert len([e for e in effects if isinstance(e, AskForSession)]) == 3


def test_eager_wish_with_a_waiting_client_fails_once_and_goes_on() -> None:
    world = World(is_eager=True)
    world.want("web")
    world.table.handle_request_failed(1, "access_denied", "no", 0.5, is_final=True)
    assert world.take() == [ServiceUnavailable("web", "access_denied", "no")]
    assert any(
        isinstance(e, AskForSession) and e.service == "web"
        for e in world.run_until(0.5 + EAGER_RETRY_INTERVAL_S)
    )


def test_eager_session_that_ends_is_opened_again_without_haste() -> None:
    world = World.established(is_eager=True)
    world.table.handle_closed(S1, "closed", 5.0)
    world.take()
    assert not [ask for ask in world.of(AskForSession) if ask.service == "web"]
    effects = world.run_until(5.0 + RETRY_INTERVAL_S)
    assert [e.service for e in effects if isinstance(e, AskForSession)].count("web") == 1


class AgentMachine(RuleBasedStateMachine):
    """An agent among two faulty intermediates: every wish is answered once in time, sessions are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = AgentSessions(["i1", "i2"], {"web": (), "db": ("c1",)}, Random(1), max_offline_s=60.0)
        self.wanted: dict[str, float] = {}
        self.asked: list[AskForSession] = []
        self.alive: set[bytes] = set()
        self.closing: set[bytes] = set()
        self.attachments = 0

    def take(self) -> None:
        for effect in self.table.drain():
            match effect:
                case StartSession():
                    assert effect.session_id not in self.alive
                    self.alive.add(effect.session_id)
                case ForgetSession():
                    self.alive.remove(effect.session_id)
                    self.closing.discard(effect.session_id)
                case CloseSession():
                    assert effect.session_id in self.alive
                    assert effect.session_id not in self.closing
                    self.closing.add(effect.session_id)
                case BindChannel():
                    assert effect.session_id in self.alive
                case ServiceReady() | ServiceUnavailable():
                    del self.wanted[effect.service]
                case AskForSession():
                    self.asked.append(effect)
                case _:
                    pass

    @rule(seconds=st.floats(0.0, 8.0))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(1000):
            deadline = self.table.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.table.handle_timeout(self.now)
            self.take()
            following = self.table.next_deadline()
            assert following is None or following > self.now
        else:
            raise AssertionError("the timer spins")
        self.now = end

    @rule(service=st.sampled_from(["web", "db"]))
    def want(self, service: str) -> None:
        self.wanted.setdefault(service, self.now)
        self.table.handle_service_requested(service, self.now)

    @rule(name=st.sampled_from(["i1", "i2"]), refused=st.lists(st.sampled_from([S1, S2]), max_size=1))
    def attach(self, name: str, refused: list[bytes]) -> None:
        self.attachments += 1
        self.table.handle_attached(name, self.attachments.to_bytes(2, "big"), refused, self.now)

    @rule(name=st.sampled_from(["i1", "i2"]), is_left=st.booleans())
    def detach(self, name: str, is_left: bool) -> None:
        self.table.handle_detached(name, self.now, is_left=is_left)

    @precondition(lambda self: self.asked)
    @rule(
        data=st.data(),
        session_id=st.sampled_from([S1, S2, b"3" * 16]),
        peer=st.sampled_from([C1, C2]),
        channel=st.integers(1, 3),
        lifetime_s=st.sampled_from([0.0, 1.0, 8.0, 600.0]),
    )
    def answer(
        self, data: st.DataObject, session_id: bytes, peer: Peer, channel: int, lifetime_s: float
    ) -> None:
        ask = data.draw(st.sampled_from(self.asked[-4:]))
        self.table.handle_granted(
            ask.intermediate_id,
            ask.request_id,
            session_id,
            ask.service,
            peer,
            channel,
            object(),
            lifetime_s,
            self.now,
        )

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), is_final=st.booleans(), code=st.sampled_from(["no_connector_available", "x"]))
    def refuse(self, data: st.DataObject, is_final: bool, code: str) -> None:
        ask = data.draw(st.sampled_from(self.asked[-4:]))
        self.table.handle_request_failed(ask.request_id, code, "", self.now, is_final=is_final)

    @rule(name=st.sampled_from(["i1", "i2"]), session_id=st.sampled_from([S1, S2]), channel=st.integers(1, 3))
    def rebind(self, name: str, session_id: bytes, channel: int) -> None:
        self.table.handle_rebound(name, session_id, C1, channel, self.now)

    @rule(
        name=st.sampled_from(["i1", "i2"]),
        session_id=st.sampled_from([S1, S2]),
        code=st.sampled_from(["peer_lost", "peer_closed", "access_denied"]),
    )
    def revoke(self, name: str, session_id: bytes, code: str) -> None:
        self.table.handle_revoked(name, session_id, code, self.now)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def establish(self, data: st.DataObject) -> None:
        self.table.handle_established(data.draw(st.sampled_from(sorted(self.alive))), self.now)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.table.handle_closed(data.draw(st.sampled_from(sorted(self.alive))), "closed", self.now)

    @invariant()
    def holds(self) -> None:
        self.take()
        assert {record.session_id for record in self.table.sessions} == self.alive
        assert all(self.now <= since + WISH_LIMIT_S for since in self.wanted.values())
        deadline = self.table.next_deadline()
        assert not self.wanted or deadline is not None


TestAgentMachine = AgentMachine.TestCase
TestAgentMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("is_expelled", [True, False], ids=["expelled", "merely lost"])
def test_intermediate_that_refuses_us_ends_the_sessions_that_it_alone_carries(is_expelled: bool) -> None:
    world = World.established()
    world.table.handle_detached("i1", 1.0, is_expelled=is_expelled)
    closed = [e.reason for e in world.take() if isinstance(e, CloseSession)]
    assert closed == (["expelled"] if is_expelled else [])


def test_session_that_another_intermediate_carries_outlives_our_expulsion() -> None:
    world = World.established()
    world.table.handle_attached("i2", b"a2", [], 1.0)
    world.table.handle_rebound("i2", S1, C1, 3, 1.0)
    world.take()
    world.table.handle_detached("i1", 2.0, is_expelled=True)
    effects = world.take()
    assert ReleaseChannel("i1", S1) in effects
    assert not [e for e in effects if isinstance(e, CloseSession)]
