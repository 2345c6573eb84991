from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ztna.access.grant import GRANT_LIFETIME_S, GRANT_TOLERANCE_S, GrantClaims
from ztna.access.identity import Role
from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, OfferPolicy, OfferRule
from ztna.signaling import lost_sessions, sessions
from ztna.signaling.exchange import ANSWER_LIMIT_S, START_DELAY_MS
from ztna.signaling.lost_sessions import LOST_LIFETIME_S
from ztna.signaling.session import DIRECTIONS, FrameKind, SessionFrame, SessionState
from ztna.signaling.session_effects import (
    AccessChanged,
    BindWanted,
    ClosedAlready,
    Ended,
    Failed,
    Forwarded,
    Offered,
    Opened,
    PunchingStarted,
    Rebound,
    ReleaseWanted,
    SessionEffect,
)
from ztna.signaling.sessions import BIND_LIMIT_S, MAX_SERVICES_TOLD, RESUME_PATIENCE_S, SessionManager
from ztna.signaling.values import Code, Party

WALL = 1_800_000_000.0
MAX_OFFLINE_S = 3600.0


def party(role: Role, name: str, key: int = 0) -> Party:
    return Party(role, name, f"{name}-{key}".encode().ljust(32))


A1, A2 = party(Role.AGENT, "a1"), party(Role.AGENT, "a2")
C1, C2 = party(Role.CONNECTOR, "c1"), party(Role.CONNECTOR, "c2")


def claims(session_id: bytes, agent: Party = A1, connector: Party = C1, service: str = "web") -> GrantClaims:
    return GrantClaims(
        1,
        session_id,
        agent.id,
        agent.fingerprint,
        connector.id,
        connector.fingerprint,
        service,
        int(WALL),
        int(WALL) + GRANT_LIFETIME_S,
        "i1",
    )


SERVICES = frozenset({"web", "ssh"})


def rules(*services: str) -> AccessRules:
    return AccessRules(
        AccessPolicy([AccessRule(("*",), services)] if services else []),
        OfferPolicy([OfferRule(("*",), ("*",))]),
    )


class World:
    """A session manager, and the relay that answers it at once unless told otherwise."""

    def __init__(self, **limits: int) -> None:
        self.core = SessionManager(
            random.Random(1), rules("web", "ssh"), max_offline_s=MAX_OFFLINE_S, **limits
        )
        self.now = 100.0
        self.channel = 0
        self.is_relay_up = True
        self.binds: list[BindWanted] = []

    def take(self) -> list[SessionEffect]:
        """Effects but for those that the relay consumes, after it answered."""
        seen: list[SessionEffect] = []
        while effects := self.core.drain():
            for effect in effects:
                if isinstance(effect, BindWanted):
                    self.binds.append(effect)
                    if self.is_relay_up:
                        self.answer(effect)
                else:
                    seen.append(effect)
        return seen

    def answer(self, wanted: BindWanted, *, has_room: bool = True) -> None:
        self.channel += 2
        first, second = (self.channel, self.channel + 1) if has_room else (0, 0)
        self.core.handle_channels_bound(
            wanted.session_id,
            {Role.AGENT: first, Role.CONNECTOR: second},
            {Role.AGENT: wanted.agent_attach_id, Role.CONNECTOR: wanted.connector_attach_id},
        )

    def attach(
        self,
        attach_id: bytes,
        who: Party,
        *resumed: GrantClaims,
        rejected: tuple[bytes, ...] = (),
        later_s: float = 0,
    ) -> list[SessionEffect]:
        self.core.handle_attached(attach_id, who, resumed, rejected, self.now, WALL + later_s)
        return self.take()

    def open(
        self, request_id: int = 1, service: str = "web", agent: bytes = b"A", connector: bytes = b"C"
    ) -> list[SessionEffect]:
        self.core.open(agent, request_id, service, connector, self.now)
        return self.take()

    def frame(
        self, attach_id: bytes, kind: FrameKind, session_id: bytes, generation: int = 1, candidates: int = 1
    ) -> list[SessionEffect]:
        frame = SessionFrame(kind, session_id, kind.value, generation, candidates, "because")
        self.core.handle_frame(attach_id, frame, self.now)
        return self.take()


@pytest.fixture
def world() -> World:
    world = World()
    world.attach(b"A", A1)
    world.attach(b"C", C1)
    return world


@pytest.fixture
def session_id(world: World) -> bytes:
    (offered, _) = world.open()
    assert isinstance(offered, Offered)
    return offered.session_id


def codes(effects: list[SessionEffect]) -> list[tuple[bytes, Code]]:
    return [(e.attach_id, e.code) for e in effects if isinstance(e, Failed | Ended)]


def test_connector_hears_of_a_session_before_its_agent(world: World) -> None:
    offered, opened = world.open(request_id=7)
    assert isinstance(offered, Offered)
    assert offered == Offered(b"C", offered.session_id, A1, 3)
    assert opened == Opened(b"A", 7, offered.session_id, "web", A1, C1, 2)
    assert len(offered.session_id) == 16
    assert world.core.sessions[0].state is SessionState.RELAYED


def test_every_service_of_a_pair_shares_the_session(world: World, session_id: bytes) -> None:
    (opened,) = world.open(request_id=2, service="ssh")
    assert isinstance(opened, Opened)
    assert (opened.session_id, opened.request_id, opened.service) == (session_id, 2, "ssh")
    assert list(world.core.sessions[0].services) == ["web", "ssh"]
    assert len(world.binds) == 1


def test_requests_wait_for_the_channels(world: World) -> None:
    world.is_relay_up = False
    assert world.open(1) == world.open(2, "ssh") == world.open(1) == []
    world.answer(world.binds[0])
    assert [type(effect) for effect in world.take()] == [Offered, Opened, Opened]


def test_stale_answer_of_the_relay_changes_nothing(world: World) -> None:
    world.is_relay_up = False
    world.open()
    world.answer(replace(world.binds[0], agent_attach_id=b"former"))
    world.answer(replace(world.binds[0], session_id=b"?" * 16))
    assert world.take() == []


def test_relay_without_a_channel_refuses_the_request(world: World) -> None:
    world.is_relay_up = False
    world.open(9)
    world.answer(world.binds[0], has_room=False)
    effects = world.take()
    assert codes(effects) == [(b"A", Code.NO_CONNECTOR_AVAILABLE)]
    assert ReleaseWanted(world.binds[0].session_id) in effects
    assert len(world.core) == 0


def test_relay_that_does_not_answer_ends_the_attempt(world: World) -> None:
    world.is_relay_up = False
    world.open(9)
    assert world.core.next_deadline() == world.now + BIND_LIMIT_S
    world.core.handle_timeout(world.now + BIND_LIMIT_S)
    assert codes(world.take()) == [(b"A", Code.NO_CONNECTOR_AVAILABLE)]
    assert world.core.next_deadline() is None


def test_connector_that_left_meanwhile_is_not_available(world: World) -> None:
    world.core.handle_detached(b"C", world.now, is_clean=False, reason="")
    assert codes(world.open()) == [(b"A", Code.NO_CONNECTOR_AVAILABLE)]


def test_agent_that_left_meanwhile_is_not_answered(world: World) -> None:
    world.core.handle_detached(b"A", world.now, is_clean=False, reason="")
    assert world.open() == []


# Frames


def test_exchange_passes_from_party_to_party_and_starts_both(world: World, session_id: bytes) -> None:
    assert world.frame(b"A", FrameKind.CANDIDATE_OFFER, session_id) == [Forwarded(b"C", "candidate_offer")]
    assert world.frame(b"A", FrameKind.CANDIDATE_ADDED, session_id) == [Forwarded(b"C", "candidate_added")]
    assert world.frame(b"C", FrameKind.CANDIDATE_ANSWER, session_id) == [
        Forwarded(b"A", "candidate_answer"),
        PunchingStarted(b"A", session_id, 1, START_DELAY_MS),
        PunchingStarted(b"C", session_id, 1, START_DELAY_MS),
    ]
    assert world.frame(b"C", FrameKind.END_OF_CANDIDATES, session_id) == [
        Forwarded(b"A", "end_of_candidates")
    ]
    assert world.frame(b"C", FrameKind.RESTART_REQUESTED, session_id) == [
        Forwarded(b"A", "restart_requested")
    ]
    assert world.frame(b"A", FrameKind.PUNCHING_RESULT, session_id) == [Forwarded(b"C", "punching_result")]


@pytest.mark.parametrize("kind", FrameKind)
def test_frame_of_a_third_node_reaches_nobody(world: World, session_id: bytes, kind: FrameKind) -> None:
    world.attach(b"X", A2)
    world.attach(b"Y", C2)
    for attacker in (b"X", b"Y"):
        assert codes(world.frame(attacker, kind, session_id)) == [(attacker, Code.NOT_A_PARTY)]
    assert world.core.refused[Code.NOT_A_PARTY.value] == 2
    assert len(world.core) == 1


@pytest.mark.parametrize(
    ("attach_id", "kind"),
    [
        (attach_id, kind)
        for kind, roles in DIRECTIONS.items()
        for attach_id, role in ((b"A", Role.AGENT), (b"C", Role.CONNECTOR))
        if role not in roles
    ],
)
def test_frame_in_the_wrong_direction_reaches_nobody(
    world: World, session_id: bytes, attach_id: bytes, kind: FrameKind
) -> None:
    assert codes(world.frame(attach_id, kind, session_id)) == [(attach_id, Code.NOT_A_PARTY)]


def test_answer_without_an_offer_reaches_nobody(world: World, session_id: bytes) -> None:
    assert codes(world.frame(b"C", FrameKind.CANDIDATE_ANSWER, session_id)) == [(b"C", Code.INVALID_MESSAGE)]


def test_frame_about_no_session_is_answered(world: World) -> None:
    effects = world.frame(b"A", FrameKind.RESTART_REQUESTED, b"?" * 16)
    assert effects == [Failed(b"A", Code.SESSION_NOT_FOUND, b"?" * 16, 0, "there is no such session")]


@pytest.mark.parametrize("closers", [(b"A", b"C"), (b"C", b"A"), (b"A", b"A")], ids=repr)
def test_closing_a_session_that_is_over_is_ignored(
    world: World, session_id: bytes, closers: tuple[bytes, bytes]
) -> None:
    first, second = closers
    world.frame(first, FrameKind.CLOSE_SESSION, session_id)
    assert world.frame(second, FrameKind.CLOSE_SESSION, session_id) == [ClosedAlready(session_id)]
    assert not world.core.refused


def test_frame_of_a_node_that_is_gone_is_dropped(world: World, session_id: bytes) -> None:
    assert world.frame(b"?", FrameKind.CLOSE_SESSION, session_id) == []
    assert world.core.refused["not_attached"] == 1


def test_both_parties_are_told_that_no_answer_came(world: World, session_id: bytes) -> None:
    world.frame(b"A", FrameKind.CANDIDATE_OFFER, session_id)
    assert world.core.next_deadline() == world.now + ANSWER_LIMIT_S
    world.core.handle_timeout(world.now + ANSWER_LIMIT_S)
    assert codes(world.take()) == [(b"A", Code.SESSION_TIMEOUT), (b"C", Code.SESSION_TIMEOUT)]
    assert len(world.core) == 1, "the session itself lives"
    assert world.core.next_deadline() is None


@pytest.mark.parametrize(("closer", "other"), [(b"A", b"C"), (b"C", b"A")])
def test_closed_session_is_over_for_the_other_and_stays_over(
    world: World, session_id: bytes, closer: bytes, other: bytes
) -> None:
    effects = world.frame(closer, FrameKind.CLOSE_SESSION, session_id)
    assert codes(effects) == [(other, Code.PEER_CLOSED)]
    assert ReleaseWanted(session_id) in effects
    who = A1 if other == b"A" else C1
    assert codes(world.attach(b"new", who, claims(session_id))) == [(b"new", Code.PEER_CLOSED)]


# Nodes that leave and come back


@pytest.mark.parametrize(("is_clean", "code"), [(True, Code.PEER_CLOSED), (False, Code.PEER_LOST)])
def test_sessions_of_a_node_that_left_end_for_the_others(
    world: World, session_id: bytes, code: Code, *, is_clean: bool
) -> None:
    world.core.handle_detached(b"A", world.now, is_clean=is_clean, reason="x")
    effects = world.take()
    assert codes(effects) == [(b"C", code)]
    assert ReleaseWanted(session_id) in effects
    world.core.handle_detached(b"A", world.now, is_clean=is_clean, reason="x")
    assert world.take() == []


def test_node_that_resumes_gets_new_channels_and_so_does_its_peer(world: World, session_id: bytes) -> None:
    effects = world.attach(b"A'", A1, claims(session_id))
    assert effects == [
        Rebound(b"C", session_id, A1, 5, SERVICES),
        Rebound(b"A'", session_id, C1, 4, SERVICES),
    ]
    assert world.binds[-1] == BindWanted(session_id, b"A'", b"C")
    assert world.core.resumed_total == 1
    assert codes(world.frame(b"A", FrameKind.CANDIDATE_OFFER, session_id)) == []
    world.core.handle_detached(b"A", world.now, is_clean=False, reason="late")
    assert world.take() == []


def test_node_that_comes_back_without_its_session_ends_it_for_the_other(
    world: World, session_id: bytes
) -> None:
    effects = world.attach(b"C'", C1)
    assert codes(effects) == [(b"A", Code.PEER_LOST)]
    assert ReleaseWanted(session_id) in effects


def test_restarted_intermediate_waits_for_both_parties() -> None:
    world, session_id = World(), b"s" * 16
    assert world.attach(b"A", A1, claims(session_id)) == []
    assert [each.state for each in world.core.sessions] == [SessionState.WAITING]
    effects = world.attach(b"C", C1, claims(session_id))
    assert [type(effect) for effect in effects] == [Rebound, Rebound]
    assert [each.state for each in world.core.sessions] == [SessionState.RELAYED]


def test_restarted_intermediate_does_not_wait_for_ever() -> None:
    world, session_id = World(), b"s" * 16
    world.attach(b"A", A1, claims(session_id))
    world.core.handle_timeout(world.now + RESUME_PATIENCE_S)
    assert codes(world.take()) == [(b"A", Code.PEER_LOST)]


def test_party_that_is_attached_already_is_asked_by_rebinding() -> None:
    world, session_id = World(), b"s" * 16
    world.attach(b"C", C1)
    effects = world.attach(b"A", A1, claims(session_id))
    assert [type(effect) for effect in effects] == [Rebound, Rebound]


def test_party_that_comes_without_the_waiting_session_ends_it() -> None:
    world, session_id = World(), b"s" * 16
    world.attach(b"A", A1, claims(session_id))
    assert codes(world.attach(b"C", C1)) == [(b"A", Code.PEER_LOST)]


def test_parties_that_come_back_at_once_are_told_of_the_channels_that_exist() -> None:
    world, session_id = World(), b"s" * 16
    world.is_relay_up = False
    # Both are here before either grant is verified, as the verification takes its time.
    world.core.handle_attached(b"A", A1, (), (), world.now, WALL, announced=[session_id])
    world.core.handle_attached(b"C", C1, (), (), world.now, WALL, announced=[session_id])
    for attach_id in (b"A", b"C"):
        world.core.handle_resumed(attach_id, [claims(session_id)], (), world.now, WALL)
    world.take()
    (wanted,) = world.binds
    world.answer(wanted)
    told = {each.attach_id: each.channel for each in world.take() if isinstance(each, Rebound)}
    assert told == {b"A": world.channel, b"C": world.channel + 1}


def test_resumed_session_is_used_by_the_next_request() -> None:
    world, session_id = World(), b"s" * 16
    world.attach(b"A", A1, claims(session_id))
    world.attach(b"C", C1, claims(session_id))
    (opened,) = world.open()
    assert isinstance(opened, Opened)
    assert opened.session_id == session_id


@pytest.mark.parametrize(
    ("change", "who", "later_s", "code"),
    [
        ({}, A2, 0, Code.NOT_A_PARTY),
        ({}, party(Role.CONNECTOR, "a1"), 0, Code.NOT_A_PARTY),
        ({"session_id": b"short"}, A1, 0, Code.INVALID_MESSAGE),
        ({}, A1, GRANT_LIFETIME_S + MAX_OFFLINE_S + GRANT_TOLERANCE_S + 1, Code.ACCESS_DENIED),
        ({"expires_at": int(WALL) + 10**9}, A1, 86_400, Code.ACCESS_DENIED),
        ({}, A1, -GRANT_TOLERANCE_S - 1, Code.ACCESS_DENIED),
    ],
    ids=[
        "another agent",
        "another role",
        "session id",
        "too old",
        "endless",
        "future",
    ],
)
def test_grant_that_does_not_apply_resumes_nothing(
    change: dict[str, object], who: Party, later_s: float, code: Code
) -> None:
    world = World()
    shown = replace(claims(b"s" * 16), **change)  # type: ignore[arg-type]
    assert codes(world.attach(b"A", who, shown, later_s=later_s)) == [(b"A", code)]
    assert len(world.core) == 0
    assert world.core.refused[f"resume_{code.value}"] == 1


def test_expired_grant_still_resumes_within_the_offline_limit() -> None:
    world = World()
    world.attach(b"A", A1, claims(b"s" * 16), later_s=GRANT_LIFETIME_S + MAX_OFFLINE_S)
    assert len(world.core) == 1


def test_grant_with_a_bad_signature_resumes_nothing(world: World, session_id: bytes) -> None:
    effects = world.attach(b"A'", A1, rejected=(session_id,))
    assert codes(effects) == [(b"A'", Code.ACCESS_DENIED), (b"C", Code.PEER_LOST)]


def test_known_session_is_not_handed_to_others(world: World, session_id: bytes) -> None:
    effects = world.attach(b"X", A2, claims(session_id, agent=A2))
    assert codes(effects) == [(b"X", Code.NOT_A_PARTY)]
    assert world.core.sessions[0].agent == A1


def test_older_session_of_the_pair_is_refused(world: World, session_id: bytes) -> None:
    effects = world.attach(b"A'", A1, claims(session_id), claims(b"old" + bytes(13)))
    assert (b"A'", Code.SESSION_NOT_FOUND) in codes(effects)
    assert [each.session_id for each in world.core.sessions] == [session_id]


def test_node_with_a_renewed_key_brings_its_sessions_and_their_parties_stay(world: World) -> None:
    offered, _ = world.open()
    assert isinstance(offered, Offered)
    effects = world.attach(b"A'", party(Role.AGENT, "a1", key=1), claims(offered.session_id))
    rebound = [effect for effect in effects if isinstance(effect, Rebound)]
    assert [(each.attach_id, each.peer) for each in rebound] == [(b"C", A1), (b"A'", C1)]


def test_peer_with_a_renewed_key_is_no_obstacle() -> None:
    world = World()
    world.attach(b"C", party(Role.CONNECTOR, "c1", key=1))
    effects = world.attach(b"A", A1, claims(b"s" * 16))
    assert [type(effect) for effect in effects] == [Rebound, Rebound]


# Sessions that have lost a party


def lose(world: World, *attach_ids: bytes) -> None:
    for attach_id in attach_ids:
        world.core.handle_detached(attach_id, world.now, is_clean=False, reason="leg_dead")
    world.take()


def lost_ids(world: World) -> list[bytes]:
    return [each.session_id for each in world.core.lost_sessions]


@pytest.fixture
def crowd(world: World) -> dict[str, bytes]:
    """Sessions of two agents and of two connectors."""
    world.attach(b"B", A2)
    world.attach(b"D", C2)
    found = {}
    for agent, connector in ((b"A", b"C"), (b"B", b"C"), (b"A", b"D"), (b"B", b"D")):
        offered = world.open(agent=agent, connector=connector)[0]
        assert isinstance(offered, Offered)
        found[(agent + connector).decode()] = offered.session_id
    return found


def only_for(*agents: str) -> AccessRules:
    return AccessRules(
        AccessPolicy([AccessRule((each,), ("web", "ssh")) for each in agents]),
        OfferPolicy([OfferRule(("*",), ("*",))]),
    )


def test_agent_that_is_lost_and_no_longer_allowed_is_cut_off_by_its_connectors_and_others_feel_nothing(
    world: World, crowd: dict[str, bytes]
) -> None:
    lose(world, b"A")
    world.core.handle_rules(only_for("a2"))
    denial = "the rules have changed, and allow nothing here"
    assert world.take() == [
        Ended(b"C", crowd["AC"], Code.ACCESS_DENIED, denial),
        Ended(b"D", crowd["AD"], Code.ACCESS_DENIED, denial),
    ]
    assert lost_ids(world) == []
    world.core.handle_rules(only_for())
    assert {attach_id for attach_id, _ in codes(world.take())} == {b"B", b"C", b"D"}


def test_lost_session_hears_the_same_word_as_one_that_lives(world: World, crowd: dict[str, bytes]) -> None:
    lose(world, b"A")
    world.core.handle_rules(rules())
    told = [each for each in world.take() if isinstance(each, Ended) and each.attach_id == b"C"]
    assert {each.session_id for each in told} == {crowd["AC"], crowd["BC"]}
    assert len({(each.code, each.message) for each in told}) == 1


def test_connector_that_may_offer_nothing_more_ends_the_sessions_of_lost_agents(
    world: World, crowd: dict[str, bytes]
) -> None:
    lose(world, b"A")
    world.core.handle_rules(
        AccessRules(
            AccessPolicy([AccessRule(("*",), ("web", "ssh"))]), OfferPolicy([OfferRule(("c2",), ("*",))])
        )
    )
    assert set(codes(world.take())) == {(b"B", Code.ACCESS_DENIED), (b"C", Code.ACCESS_DENIED)}
    assert lost_ids(world) == [crowd["AD"]]


def test_lost_session_that_may_carry_less_is_told_so_and_judged_again(
    world: World, session_id: bytes
) -> None:
    lose(world, b"A")
    world.core.handle_rules(rules("ssh"))
    assert world.take() == [AccessChanged(b"C", session_id, frozenset({"ssh"}))]
    world.core.handle_rules(rules("ssh"))
    assert world.take() == []
    world.core.handle_rules(rules())
    assert codes(world.take()) == [(b"C", Code.ACCESS_DENIED)]


def test_agent_whose_connector_is_lost_is_told_as_well(world: World, session_id: bytes) -> None:
    lose(world, b"C")
    world.core.handle_rules(rules())
    assert codes(world.take()) == [(b"A", Code.ACCESS_DENIED)]


def test_session_whose_agent_does_not_come_back_to_a_restarted_intermediate_is_judged() -> None:
    world, session_id = World(), b"s" * 16
    world.attach(b"C", C1, claims(session_id))
    world.core.handle_rules(rules("ssh"))
    world.now += RESUME_PATIENCE_S
    world.core.handle_timeout(world.now)
    lost, limited = world.take()
    assert codes([lost]) == [(b"C", Code.PEER_LOST)]
    assert limited == AccessChanged(b"C", session_id, frozenset({"ssh"})), "it was told of none before"
    world.core.handle_rules(rules())
    assert codes(world.take()) == [(b"C", Code.ACCESS_DENIED)]


def test_agent_that_comes_back_with_its_session_is_judged_as_before(world: World, session_id: bytes) -> None:
    lose(world, b"A")
    world.attach(b"A'", A1, claims(session_id))
    assert lost_ids(world) == []
    world.core.handle_rules(rules())
    assert sorted(codes(world.take())) == [(b"A'", Code.ACCESS_DENIED), (b"C", Code.ACCESS_DENIED)]


def test_agent_that_comes_back_without_its_session_does_not_save_it(world: World, session_id: bytes) -> None:
    # Whether it is over, its connector knows.
    lose(world, b"A")
    world.attach(b"A'", A1)
    world.frame(b"A'", FrameKind.CLOSE_SESSION, session_id)
    world.core.handle_rules(rules())
    assert codes(world.take()) == [(b"C", Code.ACCESS_DENIED)]


def test_agent_that_attaches_anew_without_its_session_does_not_save_it(
    world: World, session_id: bytes
) -> None:
    world.attach(b"A'", A1)
    world.core.handle_rules(rules())
    assert codes(world.take()) == [(b"C", Code.ACCESS_DENIED)]


def test_session_that_its_connector_says_is_over_is_judged_no_more(world: World, session_id: bytes) -> None:
    lose(world, b"A")
    assert world.frame(b"C", FrameKind.CLOSE_SESSION, session_id) == [ClosedAlready(session_id)]
    world.core.handle_rules(rules())
    assert world.take() == []


@pytest.mark.parametrize("is_clean", [True, False])
def test_connector_that_goes_leaves_nobody_to_tell(
    world: World, session_id: bytes, *, is_clean: bool
) -> None:
    lose(world, b"A")
    world.core.handle_detached(b"C", world.now, is_clean=is_clean, reason="x")
    world.core.handle_rules(rules())
    assert world.take() == []


def test_connector_that_attaches_anew_brings_its_sessions_or_has_none(
    world: World, session_id: bytes
) -> None:
    lose(world, b"A")
    world.attach(b"C'", C1, claims(session_id))
    assert (lost_ids(world), len(world.core)) == ([], 1)
    world.now += RESUME_PATIENCE_S
    world.core.handle_timeout(world.now)
    assert codes(world.take()) == [(b"C'", Code.PEER_LOST)]
    assert lost_ids(world) == [session_id]
    world.attach(b"C''", C1)
    assert (lost_ids(world), len(world.core)) == ([], 0)


def test_lost_session_is_judged_for_as_long_as_its_connector_may_keep_it(
    world: World, session_id: bytes
) -> None:
    lose(world, b"A")
    assert world.core.next_deadline() == world.now + LOST_LIFETIME_S
    world.core.handle_timeout(world.now + LOST_LIFETIME_S - 1)
    assert lost_ids(world) == [session_id]
    world.core.handle_timeout(world.now + LOST_LIFETIME_S)
    assert lost_ids(world) == []
    assert world.core.next_deadline() is None


def test_lost_agent_that_is_expelled_is_cut_off_by_its_connectors(
    world: World, crowd: dict[str, bytes]
) -> None:
    lose(world, b"A")
    world.core.handle_expelled(A1, "revoked")
    message = "agent 'a1' left: revoked"
    assert world.take() == [
        Ended(b"C", crowd["AC"], Code.PEER_CLOSED, message),
        Ended(b"D", crowd["AD"], Code.PEER_CLOSED, message),
    ]
    world.core.handle_expelled(A2, "nothing of this one was lost")
    assert world.take() == []


def test_key_that_is_expelled_takes_along_what_it_lost_and_not_what_another_key_of_the_name_lost(
    world: World, crowd: dict[str, bytes]
) -> None:
    lose(world, b"A")
    renewed = party(Role.AGENT, "a1", key=1)
    world.attach(b"A'", renewed)
    offered = world.open(agent=b"A'")[0]
    assert isinstance(offered, Offered)
    lose(world, b"A'")
    assert lost_ids(world) == [crowd["AD"], offered.session_id]
    world.core.handle_expelled(A1, "revoked")
    assert [(each.attach_id, each.session_id) for each in world.take() if isinstance(each, Ended)] == [
        (b"D", crowd["AD"])
    ]
    world.core.handle_expelled(renewed, "revoked")
    assert codes(world.take()) == [(b"C", Code.PEER_CLOSED)]
    assert lost_ids(world) == []


@pytest.mark.parametrize("key", [0, 1])
def test_session_that_a_renewed_key_brought_along_ends_with_either_key(
    world: World, session_id: bytes, key: int
) -> None:
    world.attach(b"A'", party(Role.AGENT, "a1", key=1), claims(session_id))
    lose(world, b"A'")
    world.core.handle_expelled(party(Role.AGENT, "a1", key=key), "revoked")
    assert codes(world.take()) == [(b"C", Code.PEER_CLOSED)]


def test_agent_that_was_here_when_its_connector_brought_their_session_back_holds_it(world: World) -> None:
    renewed = party(Role.AGENT, "a1", key=1)
    world.attach(b"A'", renewed)
    world.attach(b"C'", C1, claims(b"s" * 16))
    lose(world, b"A'")
    world.core.handle_expelled(renewed, "revoked")
    assert codes(world.take()) == [(b"C'", Code.PEER_CLOSED)]


def test_agent_that_says_goodbye_has_no_session_left(world: World, session_id: bytes) -> None:
    world.attach(b"A'", A1)
    world.core.handle_detached(b"A'", world.now, is_clean=True, reason="revoked")
    assert codes(world.take()) == [(b"C", Code.PEER_CLOSED)]
    assert lost_ids(world) == []


@pytest.mark.parametrize("way", ["closed", "goodbye", "denied"])
def test_session_that_is_over_at_both_ends_is_not_remembered(
    world: World, session_id: bytes, way: str
) -> None:
    if way == "closed":
        world.frame(b"A", FrameKind.CLOSE_SESSION, session_id)
    elif way == "goodbye":
        world.core.handle_detached(b"A", world.now, is_clean=True, reason="")
    else:
        world.core.handle_rules(rules())
    assert lost_ids(world) == []


def test_session_of_which_its_connector_was_never_told_is_not_remembered(world: World) -> None:
    world.is_relay_up = False
    world.open()
    lose(world, b"A")
    assert lost_ids(world) == []


def test_lost_session_that_there_is_no_room_for_is_ended(
    world: World, crowd: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_sessions, "MAX_LOST_PER_AGENT", 1)
    world.core.handle_detached(b"A", world.now, is_clean=False, reason="leg_dead")
    assert codes(world.take()) == [
        (b"C", Code.PEER_LOST),
        (b"D", Code.PEER_LOST),
        (b"C", Code.RATE_LIMITED),
    ]
    assert lost_ids(world) == [crowd["AD"]]


def test_as_many_lost_sessions_are_remembered_as_there_may_be_sessions() -> None:
    world = World(max_sessions=1)
    for attach_id, who in ((b"A", A1), (b"B", A2), (b"C", C1)):
        world.attach(attach_id, who)
    world.open()
    lose(world, b"A")
    world.open(agent=b"B")
    world.core.handle_detached(b"B", world.now, is_clean=False, reason="leg_dead")
    assert codes(world.take()) == [(b"C", Code.PEER_LOST), (b"C", Code.RATE_LIMITED)]
    assert len(lost_ids(world)) == 1


def test_agent_that_attaches_without_its_session_again_and_again_crowds_out_nobody(
    world: World, crowd: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_sessions, "MAX_LOST_PER_CONNECTOR", 2)
    lose(world, b"B")
    for _ in range(3):
        world.attach(b"A", A1)
        world.open()
    world.attach(b"A", A1)
    world.take()
    of_connector = [each.session_id for each in world.core.lost_sessions if each.connector == C1]
    assert (len(of_connector), of_connector[0]) == (2, crowd["BC"])


def test_lost_session_gives_way_once_its_connector_is_told_of_a_new_one_and_not_before(
    world: World, session_id: bytes
) -> None:
    world.is_relay_up = False
    world.attach(b"A'", A1)
    world.open(agent=b"A'")
    assert lost_ids(world) == [session_id]
    world.answer(world.binds[-1], has_room=False)
    world.open(agent=b"A'")
    assert lost_ids(world) == [session_id]
    world.answer(world.binds[-1])
    assert lost_ids(world) == []


def test_lost_session_does_not_give_way_to_one_that_is_brought_back(world: World, session_id: bytes) -> None:
    # Its connector is told of nothing new, and may hold both.
    world.attach(b"A'", A1, claims(b"s" * 16))
    assert (lost_ids(world), len(world.core)) == ([session_id], 1)


def test_agent_that_is_left_is_judged_on_when_its_connector_is_told_of_a_new_session(
    world: World, session_id: bytes
) -> None:
    # It takes the new one for the former only if it still wants it.
    lose(world, b"C")
    world.attach(b"C'", C1)
    world.open(connector=b"C'")
    assert lost_ids(world) == [session_id]


# Bounds


def test_requests_of_one_agent_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_BURST", 3.0)
    world.attach(b"A", A1)
    outcomes = [codes(world.open(n)) for n in range(5)]
    assert outcomes == [[], [], [], [(b"A", Code.RATE_LIMITED)], [(b"A", Code.RATE_LIMITED)]]


def test_sessions_in_all_are_limited() -> None:
    world = World(max_sessions=1)
    for attach_id, who in ((b"A", A1), (b"B", A2), (b"C", C1)):
        world.attach(attach_id, who)
    world.open()
    assert codes(world.open(agent=b"B")) == [(b"B", Code.RATE_LIMITED)]
    assert codes(world.attach(b"B'", A2, claims(b"s" * 16, agent=A2))) == [(b"B'", Code.RATE_LIMITED)]


@pytest.mark.parametrize("bound", ["MAX_SESSIONS_PER_AGENT", "MAX_SESSIONS_PER_CONNECTOR"])
def test_sessions_of_one_node_are_limited(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(sessions, bound, 1)
    world = World()
    for attach_id, who in ((b"A", A1), (b"B", A2), (b"C", C1), (b"D", C2)):
        world.attach(attach_id, who)
    assert codes(world.open()) == []
    agent, connector = (b"A", b"D") if bound == "MAX_SESSIONS_PER_AGENT" else (b"B", b"C")
    assert codes(world.open(agent=agent, connector=connector)) == [(agent, Code.RATE_LIMITED)]


def test_waiting_requests_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_PENDING_REQUESTS", 2)
    world.is_relay_up = False
    assert [codes(world.open(n)) for n in range(3)] == [[], [], [(b"A", Code.RATE_LIMITED)]]


def test_resumed_sessions_of_one_node_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_RESUMED_SESSIONS", 2)
    world = World()
    shown = [claims(bytes([n]) * 16, connector=party(Role.CONNECTOR, f"c{n}")) for n in range(3)]
    assert codes(world.attach(b"A", A1, *shown)) == [(b"A", Code.RATE_LIMITED)]
    assert len(world.core) == 2


def test_remembered_ends_are_limited(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(sessions, "MAX_ENDED_REMEMBERED", 2)
    for _ in range(4):
        (offered, _opened) = world.open()
        assert isinstance(offered, Offered)
        world.frame(b"A", FrameKind.CLOSE_SESSION, offered.session_id)
    assert len(world.core._ended) == 2


def test_services_shown_are_limited(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(sessions, "MAX_SERVICES_SHOWN", 1)
    world.open(1, "web")
    world.open(2, "ssh")
    assert list(world.core.sessions[0].services) == ["web"]


def test_other_rules_that_allow_the_same_tell_nobody(world: World, session_id: bytes) -> None:
    world.core.handle_rules(rules("ssh", "web"))
    assert world.take() == []


def test_other_rules_are_told_to_both_parties(world: World, session_id: bytes) -> None:
    world.core.handle_rules(rules("ssh"))
    told = frozenset({"ssh"})
    assert set(world.take()) == {
        AccessChanged(b"A", session_id, told),
        AccessChanged(b"C", session_id, told),
    }


def test_session_that_may_carry_nothing_any_more_is_over(world: World, session_id: bytes) -> None:
    world.core.handle_rules(rules())
    assert set(codes(world.take())) == {(b"A", Code.ACCESS_DENIED), (b"C", Code.ACCESS_DENIED)}
    assert len(world.core) == 0


def test_session_that_may_carry_more_than_can_be_told_is_over(world: World, session_id: bytes) -> None:
    names = [f"s{number}" for number in range(MAX_SERVICES_TOLD)]
    world.core.handle_rules(rules(*names))
    assert [type(effect) for effect in world.take()] == [AccessChanged, AccessChanged]
    world.core.handle_rules(rules("one-more", *names))
    assert set(codes(world.take())) == {(b"A", Code.ACCESS_DENIED), (b"C", Code.ACCESS_DENIED)}


def test_session_that_may_carry_more_than_can_be_told_is_not_resumed() -> None:
    names = [f"s{number}" for number in range(MAX_SERVICES_TOLD)]
    world = World()
    world.core.handle_rules(rules("one-more", *names))
    assert codes(world.attach(b"A", A1, claims(b"s" * 16))) == [(b"A", Code.ACCESS_DENIED)]
    world.core.handle_rules(rules(*names))
    world.attach(b"C", C1, claims(b"s" * 16))
    rebound = [each for each in world.attach(b"A'", A1, claims(b"s" * 16)) if isinstance(each, Rebound)]
    assert [len(each.services) for each in rebound] == [MAX_SERVICES_TOLD] * 2


def test_request_that_waits_is_judged_by_the_new_rules(world: World) -> None:
    world.is_relay_up = False
    world.open(1, "web")
    world.open(2, "ssh")
    world.core.handle_rules(rules("ssh"))
    assert codes(world.take()) == [(b"A", Code.ACCESS_DENIED)]
    world.answer(world.binds[0])
    assert [effect.request_id for effect in world.take() if isinstance(effect, Opened)] == [2]


def test_request_whose_connector_was_chosen_under_former_rules_is_denied(world: World) -> None:
    world.core.handle_rules(rules("ssh"))
    assert codes(world.open(1, "web")) == [(b"A", Code.ACCESS_DENIED)]


def test_resumed_session_is_told_what_it_may_carry_today(world: World, session_id: bytes) -> None:
    world.core.handle_rules(rules("ssh"))
    world.take()
    effects = world.attach(b"A'", A1, claims(session_id))
    assert [e.services for e in effects if isinstance(e, Rebound)] == [frozenset({"ssh"})] * 2


def test_session_that_may_carry_nothing_today_is_not_resumed() -> None:
    world = World()
    world.core.handle_rules(rules())
    assert codes(world.attach(b"A", A1, claims(b"s" * 16))) == [(b"A", Code.ACCESS_DENIED)]
    assert len(world.core) == 0


def test_default_bound_is_that_of_the_settings() -> None:
    from ztna.settings import IntermediateSettings

    assert IntermediateSettings.model_fields["limits"].default.sessions == sessions.MAX_SESSIONS


AGENTS = [A1, A2]
CONNECTORS = [C1, C2]


class AnyNodesDoAnything(RuleBasedStateMachine):
    """Whatever nodes send and however they come and go, a frame only ever goes from party to party."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(max_sessions=3)
        self.turn = 0
        self.attached: dict[Party, bytes] = {}
        self.seen: list[bytes] = [b"?" * 16]
        self.parties: dict[bytes, tuple[Party, Party]] = {}

    def owner(self, attach_id: bytes) -> Party | None:
        return next((who for who, held in self.attached.items() if held == attach_id), None)

    def check(
        self, effects: list[SessionEffect], sender: Party | None = None, session_id: bytes = b""
    ) -> None:
        for effect in effects:
            if isinstance(effect, ReleaseWanted | ClosedAlready):
                continue
            assert not isinstance(effect, BindWanted)
            receiver = self.owner(effect.attach_id)
            assert receiver is not None, "a frame goes to an attached node"
            match effect:
                case Forwarded():
                    assert sender is not None
                    assert {sender, receiver} == set(self.parties[session_id])
                case Offered():
                    self.parties[effect.session_id] = (effect.agent, receiver)
                    self.seen.append(effect.session_id)
                case Opened():
                    assert (effect.agent, effect.connector) == self.parties[effect.session_id]
                    assert receiver == effect.agent
                case Rebound():
                    assert {receiver, effect.peer} == set(self.parties[effect.session_id])
                case PunchingStarted():
                    assert receiver in self.parties[effect.session_id]
                case _:
                    pass  # an error may go to whoever asked

    @rule(who=st.sampled_from(AGENTS + CONNECTORS), data=st.data())
    def attach(self, who: Party, data: st.DataObject) -> None:
        self.turn += 1
        self.attached[who] = str(self.turn).encode()
        picked = data.draw(st.lists(st.sampled_from(sorted(self.parties) or [b"?" * 16]), max_size=3))
        shown = [claims(each, *self.parties[each]) for each in picked if each in self.parties]
        self.check(self.world.attach(self.attached[who], who, *shown))

    @rule(who=st.sampled_from(AGENTS + CONNECTORS), is_clean=st.booleans())
    def detach(self, who: Party, is_clean: bool) -> None:
        attach_id = self.attached.pop(who, b"never")
        self.world.core.handle_detached(attach_id, self.world.now, is_clean=is_clean, reason="")
        self.check(self.world.take())

    @rule(agent=st.sampled_from(AGENTS), connector=st.sampled_from(CONNECTORS))
    def open(self, agent: Party, connector: Party) -> None:
        ends = (self.attached.get(agent, b"x"), self.attached.get(connector, b"y"))
        self.check(self.world.open(1, "web", *ends))

    @rule(
        who=st.sampled_from(AGENTS + CONNECTORS),
        kind=st.sampled_from(FrameKind),
        generation=st.integers(0, 3),
        data=st.data(),
    )
    def send(self, who: Party, kind: FrameKind, generation: int, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(self.seen))
        effects = self.world.frame(self.attached.get(who, b"x"), kind, session_id, generation)
        if who not in self.parties.get(session_id, ()):
            assert all(isinstance(e, Failed | ClosedAlready) for e in effects), "a stranger moves nothing"
        self.check(effects, who, session_id)

    @rule(seconds=st.sampled_from([0.1, 6.0, MAX_OFFLINE_S]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.core.handle_timeout(self.world.now)
        self.check(self.world.take())

    @rule(told=st.sets(st.sampled_from(["a1", "a2"])))
    def change_rules(self, told: set[str]) -> None:
        self.world.core.handle_rules(only_for(*sorted(told)))
        self.check(self.world.take())

    @rule()
    def relay_sleeps_or_wakes(self) -> None:
        self.world.is_relay_up = not self.world.is_relay_up

    @precondition(lambda self: self.world.binds)
    @rule(data=st.data(), has_room=st.booleans())
    def relay_answers_late(self, data: st.DataObject, has_room: bool) -> None:
        self.world.answer(data.draw(st.sampled_from(self.world.binds[-4:])), has_room=has_room)
        self.check(self.world.take())

    @invariant()
    def bounds_hold_and_nothing_is_overdue(self) -> None:
        core = self.world.core
        assert len(core) <= 3
        deadline = core.next_deadline()
        assert deadline is None or deadline > self.world.now
        pairs = [(each.agent.id, each.connector.id) for each in core.sessions]
        assert len(pairs) == len(set(pairs)), "one session per pair"
        for session in core.sessions:
            is_whole = len(session.attachments) == 2
            assert is_whole == (session.state is not SessionState.WAITING)
            assert set(session.attachments.values()) <= set(self.attached.values())
        known = {session.session_id for session in core.sessions}
        for lost in core.lost_sessions:
            assert lost.session_id not in known
            assert lost.attach_id in self.attached.values(), "there is somebody to tell"


AnyNodesDoAnything.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyNodesDoAnything = AnyNodesDoAnything.TestCase


# Grants that are verified later


def announce(world: World, attach_id: bytes, who: Party, *session_ids: bytes) -> list[SessionEffect]:
    world.core.handle_attached(attach_id, who, (), (), world.now, WALL, announced=session_ids)
    return world.take()


def verified(
    world: World, attach_id: bytes, *resumed: GrantClaims, rejected: tuple[bytes, ...] = ()
) -> list[SessionEffect]:
    world.core.handle_resumed(attach_id, resumed, rejected, world.now, WALL)
    return world.take()


def test_announced_session_lives_on_and_is_rebound_when_its_grant_is_verified(
    world: World, session_id: bytes
) -> None:
    assert announce(world, b"A'", A1, session_id) == []
    assert {type(e) for e in verified(world, b"A'", claims(session_id))} == {Rebound}
    assert len(world.core) == 1


def test_announced_session_whose_grant_does_not_verify_ends_with_its_channels(
    world: World, session_id: bytes
) -> None:
    announce(world, b"A'", A1, session_id)
    effects = verified(world, b"A'", rejected=(session_id,))
    assert codes(effects) == [(b"A'", Code.ACCESS_DENIED), (b"C", Code.PEER_LOST)]
    assert ReleaseWanted(session_id) in effects
    assert len(world.core) == 0


def test_session_that_is_not_announced_ends_at_once(world: World, session_id: bytes) -> None:
    effects = announce(world, b"A'", A1, b"?" * 16)
    assert codes(effects) == [(b"C", Code.PEER_LOST)]
    assert ReleaseWanted(session_id) in effects


def test_who_wants_an_announced_session_waits_for_its_grant(world: World, session_id: bytes) -> None:
    announce(world, b"A'", A1, session_id)
    assert world.open(7, agent=b"A'") == []
    effects = verified(world, b"A'", claims(session_id))
    assert [e.request_id for e in effects if isinstance(e, Opened)] == [7]


def test_node_that_leaves_takes_its_announced_sessions_along(world: World, session_id: bytes) -> None:
    announce(world, b"A'", A1, session_id)
    world.core.handle_detached(b"A'", world.now, is_clean=False, reason="leg_dead")
    assert codes(world.take()) == [(b"C", Code.PEER_LOST)]
    assert verified(world, b"A'", claims(session_id)) == []
    assert len(world.core) == 0


def test_sessions_of_several_slices_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_RESUMED_SESSIONS", 2)
    world = World()
    announce(world, b"A", A1, *(bytes([n]) * 16 for n in range(3)))
    refused = []
    for n in range(3):
        shown = claims(bytes([n]) * 16, connector=party(Role.CONNECTOR, f"c{n}"))
        refused += codes(verified(world, b"A", shown))
    assert refused == [(b"A", Code.RATE_LIMITED)]
