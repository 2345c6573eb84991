from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from actors import session_manager, signaling_service, translate
from actors.burst_log import BURST_S
from actors.credentials import Credentials, parse_credentials
from actors.resumption import GRANTS_PER_SLICE
from actors.session_manager import MAX_REASON_CHARACTERS, SessionManager
from tests.manual_io import START_WALL_TIME, ActorHarness, actor_harness
from tests.pki_fixtures import NOW, issue, pem, verifier
from ztna.access.grant import GrantClaims
from ztna.access.identity import Role, fingerprint
from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, OfferPolicy, OfferRule
from ztna.signaling.exchange import ANSWER_LIMIT_S
from ztna.signaling.values import Party
from ztna.v1 import (
    grant_pb2,
    quic_relay_pb2,
    registry_pb2,
    reload_pb2,
    session_manager_pb2,
    signaling_pb2,
    signaling_service_pb2,
    types_pb2,
)

MessageT = TypeVar("MessageT", bound=Message)
Frame = signaling_pb2.SignalingFrame


def node(role: Role, name: str) -> types_pb2.NodeIdentity:
    return translate.party_to_proto(Party(role, name, fingerprint(issue(role, name).certificate)))


A1, C1 = node(Role.AGENT, "a1"), node(Role.CONNECTOR, "c1")


def credentials() -> Credentials:
    own = issue(Role.INTERMEDIATE, "i1")
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, None, Role.INTERMEDIATE, NOW)


ALL = signaling_pb2.AllowedServices(all=True)


class Manager:
    """The actor, with a relay that answers at once."""

    def __init__(self, max_sessions: int = 100) -> None:
        self.rules = AccessRules(
            AccessPolicy([AccessRule(("*",), ("*",))]), OfferPolicy([OfferRule(("*",), ("*",))])
        )
        self.harness: ActorHarness[SessionManager] = actor_harness(
            SessionManager, credentials(), lambda: self.rules, 600.0, 3600.0, max_sessions
        )
        self.released: list[bytes] = []
        self.reports: list[session_manager_pb2.SessionsStatistics] = []

    def tell(self, message: Message) -> list[tuple[bytes, Frame]]:
        """Frames that nodes are sent because of a message."""
        self.harness.tell(message)
        return self.take()

    def take(self) -> list[tuple[bytes, Frame]]:
        frames: list[tuple[bytes, Frame]] = []
        while emitted := self.harness.take_emitted():
            for message in emitted:
                match message:
                    case session_manager_pb2.BindChannels():
                        self.harness.tell(
                            quic_relay_pb2.ChannelsBound(
                                session_id=message.session_id,
                                agent_attach_id=message.agent_attach_id,
                                agent_channel=11,
                                connector_attach_id=message.connector_attach_id,
                                connector_channel=22,
                            )
                        )
                    case session_manager_pb2.ReleaseChannels():
                        self.released.append(message.session_id)
                    case session_manager_pb2.SessionsStatistics():
                        self.reports.append(message)
                    case signaling_service_pb2.SendFrame():
                        frames.append((message.attach_id, message.frame))
        return frames

    def attach(
        self, attach_id: bytes, who: types_pb2.NodeIdentity, *resume: signaling_pb2.ResumeSession
    ) -> list[tuple[bytes, Frame]]:
        return self.tell(signaling_service_pb2.NodeAttached(attach_id=attach_id, node=who, resume=resume))

    def open(self) -> tuple[signaling_pb2.SessionOffer, signaling_pb2.SessionOpened]:
        (to_connector, offer), (to_agent, opened) = self.tell(
            registry_pb2.ConnectorChosen(
                agent_attach_id=b"A",
                agent=A1,
                request_id=3,
                service="web",
                connector_attach_id=b"C",
                connector=C1,
            )
        )
        assert (to_connector, to_agent) == (b"C", b"A")
        return offer.session_offer, opened.session_opened

    def send(self, attach_id: bytes, frame: Frame) -> list[tuple[bytes, Frame]]:
        body = getattr(frame, frame.WhichOneof("body") or "")
        return self.tell(
            signaling_service_pb2.SessionFrameReceived(
                attach_id=attach_id, session_id=body.session_id, frame=frame
            )
        )


@pytest.fixture
def manager() -> Manager:
    manager = Manager()
    assert manager.attach(b"A", A1) == manager.attach(b"C", C1) == []
    return manager


def test_both_parties_learn_of_a_session_with_their_channels(manager: Manager) -> None:
    offer, opened = manager.open()
    assert (offer.agent, offer.channel) == (A1, 22)
    assert (opened.request_id, opened.service, opened.connector, opened.channel) == (3, "web", C1, 11)
    assert offer.session_id == opened.session_id


def test_grant_states_the_session_and_carries_our_signature(manager: Manager) -> None:
    _, opened = manager.open()
    claims = translate.open_grant(opened.grant, verifier(), START_WALL_TIME)
    assert (claims.version, claims.session_id, claims.service) == (1, opened.session_id, "web")
    assert (claims.agent_id, claims.agent_fingerprint) == ("a1", A1.fingerprint)
    assert (claims.connector_id, claims.connector_fingerprint) == ("c1", C1.fingerprint)
    assert (claims.issued_at, claims.expires_at) == (START_WALL_TIME, START_WALL_TIME + 600)
    assert claims.issuer == "i1"


def test_resumed_session_is_rebound_for_both(manager: Manager) -> None:
    _, opened = manager.open()
    resume = signaling_pb2.ResumeSession(session_id=opened.session_id, grant=opened.grant)
    frames = dict(manager.attach(b"A'", A1, resume))
    assert frames[b"A'"].session_rebound == signaling_pb2.SessionRebound(
        session_id=opened.session_id, peer=C1, channel=11, allowed=ALL
    )
    assert frames[b"C"].session_rebound == signaling_pb2.SessionRebound(
        session_id=opened.session_id, peer=A1, channel=22, allowed=ALL
    )


def test_restarted_intermediate_brings_a_session_back_by_its_grant_alone(manager: Manager) -> None:
    _, opened = manager.open()
    resume = signaling_pb2.ResumeSession(session_id=opened.session_id, grant=opened.grant)
    restarted = Manager()
    assert restarted.attach(b"1", A1, resume) == []
    assert [frame.WhichOneof("body") for _, frame in restarted.attach(b"2", C1, resume)] == [
        "session_rebound"
    ] * 2


@pytest.mark.parametrize("fault", ["signature", "claims", "session id", "garbage"])
def test_grant_that_does_not_verify_ends_its_session(manager: Manager, fault: str) -> None:
    _, opened = manager.open()
    grant = grant_pb2.SealedGrant.FromString(opened.grant.SerializeToString())
    session_id = opened.session_id
    match fault:
        case "signature":
            grant.signature = bytes(len(grant.signature))
        case "claims":
            grant.claims += b"\x3a\x03ssh"
        case "session id":
            session_id = b"?" * 16
        case _:
            grant = grant_pb2.SealedGrant(claims=b"\xff")
    resume = signaling_pb2.ResumeSession(session_id=session_id, grant=grant)
    frames = manager.attach(b"A'", A1, resume)
    ended = {to: frame.session_ended.code for to, frame in frames}
    assert ended == {
        b"A'": signaling_pb2.SIGNALING_CODE_ACCESS_DENIED,
        b"C": signaling_pb2.SIGNALING_CODE_PEER_LOST,
    }
    assert len(frames) == 2


def test_lost_node_ends_its_sessions_for_the_other(manager: Manager) -> None:
    _, opened = manager.open()
    frames = manager.tell(signaling_service_pb2.NodeDetached(attach_id=b"C", node=C1, reason="no_answer"))
    assert [(to, frame.session_ended.code) for to, frame in frames] == [
        (b"A", signaling_pb2.SIGNALING_CODE_PEER_LOST)
    ]
    assert manager.released == [opened.session_id]


def test_candidates_pass_unchanged_between_the_parties_only(manager: Manager) -> None:
    _, opened = manager.open()
    sid = opened.session_id
    manager.attach(b"X", node(Role.AGENT, "a2"))
    offer = Frame(
        seq=9,
        candidate_offer=signaling_pb2.CandidateOffer(
            session_id=sid, generation=1, ufrag="u", pwd="p", candidates=[types_pb2.Candidate()]
        ),
    )
    assert manager.send(b"A", offer) == [(b"C", offer)]
    added = signaling_pb2.CandidateAdded(session_id=sid, generation=1, candidate=types_pb2.Candidate())
    assert manager.send(b"A", Frame(candidate_added=added)) == [(b"C", Frame(candidate_added=added))]
    answer = Frame(candidate_answer=signaling_pb2.CandidateAnswer(session_id=sid, generation=1))
    ((to, refused),) = manager.send(b"X", answer)
    assert (to, refused.error.code) == (b"X", signaling_pb2.SIGNALING_CODE_NOT_A_PARTY)
    frames = manager.send(b"C", answer)
    assert frames[0] == (b"A", answer)
    assert [(to, f.start_punching.generation, f.start_punching.start_delay_ms) for to, f in frames[1:]] == [
        (b"A", 1, 100),
        (b"C", 1, 100),
    ]
    end = signaling_pb2.CandidateAdded(session_id=sid, generation=1, end_of_candidates=True)
    assert manager.send(b"C", Frame(candidate_added=end)) == [(b"A", Frame(candidate_added=end))]
    result = signaling_pb2.PunchingResult(session_id=sid, success=True)
    assert manager.send(b"A", Frame(punching_result=result)) == [(b"C", Frame(punching_result=result))]
    restart = signaling_pb2.RestartRequested(session_id=sid)
    assert manager.send(b"C", Frame(restart_requested=restart)) == [(b"A", Frame(restart_requested=restart))]


def exchange(manager: Manager, session_id: bytes, generation: int = 1) -> dict[bytes, int]:
    """The start delays that the parties are told after an offer and its answer."""
    offer = signaling_pb2.CandidateOffer(session_id=session_id, generation=generation)
    answer = signaling_pb2.CandidateAnswer(session_id=session_id, generation=generation)
    manager.send(b"A", Frame(candidate_offer=offer))
    frames = manager.send(b"C", Frame(candidate_answer=answer))
    return {to: f.start_punching.start_delay_ms for to, f in frames if f.HasField("start_punching")}


def measure(manager: Manager, **rtt_ms: int) -> None:
    for attach_id, each in rtt_ms.items():
        manager.tell(
            signaling_service_pb2.RoundTripMeasured(attach_id=attach_id.encode(), rtt_us=each * 1000)
        )


def test_nearer_party_waits_for_the_farther_one_before_it_starts(manager: Manager) -> None:
    _, opened = manager.open()
    measure(manager, A=200, C=40)
    assert exchange(manager, opened.session_id) == {b"A": 0, b"C": 80}
    measure(manager, A=40, C=40)
    assert exchange(manager, opened.session_id, 2) == {b"A": 0, b"C": 0}


def test_unknown_round_trip_to_either_party_means_the_agreed_delay_for_both(manager: Manager) -> None:
    _, opened = manager.open()
    measure(manager, A=200, gone=1)
    assert exchange(manager, opened.session_id) == {b"A": 100, b"C": 100}


def test_restart_is_asked_for_by_either_party_and_a_newer_offer_follows(manager: Manager) -> None:
    _, opened = manager.open()
    exchange(manager, opened.session_id)
    wish = Frame(restart_requested=signaling_pb2.RestartRequested(session_id=opened.session_id, reason="x"))
    assert manager.send(b"C", wish) == [(b"A", wish)]
    assert manager.send(b"A", wish) == [(b"C", wish)]
    assert len(exchange(manager, opened.session_id, 2)) == 2


def test_answer_of_another_connector_is_refused_counted_and_logged(manager: Manager) -> None:
    _, opened = manager.open()
    manager.attach(b"X", node(Role.CONNECTOR, "c2"))
    offer = signaling_pb2.CandidateOffer(session_id=opened.session_id, generation=1)
    manager.send(b"A", Frame(candidate_offer=offer))
    answer = Frame(candidate_answer=signaling_pb2.CandidateAnswer(session_id=opened.session_id, generation=1))
    ((to, refused),) = manager.send(b"X", answer)
    assert (to, refused.error.code) == (b"X", signaling_pb2.SIGNALING_CODE_NOT_A_PARTY)
    assert manager.send(b"C", answer)[0] == (b"A", answer), "that of the chosen one counts still"
    line = next(each for each in manager.harness.logs if each["event"] == "session_manager.session_refused")
    assert (line["peer"], line["code"]) == ("connector 'c2'", "not_a_party")
    manager.harness.advance(1)
    manager.take()
    assert manager.reports[-1].refused["not_a_party"] == 1


def test_answer_that_comes_too_late_is_refused(manager: Manager) -> None:
    _, opened = manager.open()
    offer = signaling_pb2.CandidateOffer(session_id=opened.session_id, generation=1)
    manager.send(b"A", Frame(candidate_offer=offer))
    manager.harness.advance(ANSWER_LIMIT_S)
    manager.take()
    answer = Frame(candidate_answer=signaling_pb2.CandidateAnswer(session_id=opened.session_id, generation=1))
    ((to, refused),) = manager.send(b"C", answer)
    assert (to, refused.error.code) == (b"C", signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE)


def test_offer_of_a_generation_that_was_is_refused_with_the_session_it_is_about(manager: Manager) -> None:
    _, opened = manager.open()
    exchange(manager, opened.session_id, 4)
    offer = signaling_pb2.CandidateOffer(session_id=opened.session_id, generation=4)
    ((to, refused),) = manager.send(b"A", Frame(candidate_offer=offer))
    assert (to, refused.error.session_id) == (b"A", opened.session_id)
    assert refused.error.code == signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE


def test_what_only_an_intermediate_sends_is_refused(manager: Manager) -> None:
    _, opened = manager.open()
    frame = Frame(start_punching=signaling_pb2.StartPunching(session_id=opened.session_id))
    ((to, refused),) = manager.send(b"A", frame)
    assert (to, refused.error.code) == (b"A", signaling_pb2.SIGNALING_CODE_NOT_A_PARTY)


@pytest.mark.parametrize("body", sorted(signaling_service._SESSION_FRAMES))
@pytest.mark.parametrize(("role", "name"), [(Role.AGENT, "a2"), (Role.CONNECTOR, "c2")])
def test_stranger_moves_no_session_and_is_named_once_per_burst(
    manager: Manager, body: str, role: Role, name: str
) -> None:
    _, opened = manager.open()
    manager.attach(b"X", node(role, name))
    frame = Frame()
    getattr(frame, body).session_id = opened.session_id
    before = len(manager.harness.logs)
    for _ in range(20):
        ((to, refused),) = manager.send(b"X", frame)
        assert (to, refused.error.code) == (b"X", signaling_pb2.SIGNALING_CODE_NOT_A_PARTY)
    manager.harness.advance(BURST_S)
    assert [
        (line["event"], line["peer"], line["code"], line.get("count"))
        for line in manager.harness.logs[before:]
    ] == [
        ("session_manager.session_refused", f"{role.value} {name!r}", "not_a_party", None),
        ("session_manager.session_refused_repeated", f"{role.value} {name!r}", "not_a_party", 19),
    ]
    manager.take()
    statistics = manager.reports[-1]
    assert (statistics.refused["not_a_party"], len(statistics.sessions)) == (20, 1)


def test_missing_answer_is_reported_to_both(manager: Manager) -> None:
    _, opened = manager.open()
    offer = signaling_pb2.CandidateOffer(session_id=opened.session_id, generation=1)
    manager.send(b"A", Frame(candidate_offer=offer))
    manager.harness.advance(ANSWER_LIMIT_S)
    assert [(to, f.error.code, f.error.session_id) for to, f in manager.take()] == [
        (b"A", signaling_pb2.SIGNALING_CODE_SESSION_TIMEOUT, opened.session_id),
        (b"C", signaling_pb2.SIGNALING_CODE_SESSION_TIMEOUT, opened.session_id),
    ]


def test_reason_of_a_closed_session_reaches_the_other_cut_to_size(manager: Manager) -> None:
    _, opened = manager.open()
    close = signaling_pb2.CloseSession(session_id=opened.session_id, reason="x" * 5000)
    ((to, frame),) = manager.send(b"A", Frame(close_session=close))
    assert (to, frame.session_ended.code) == (b"C", signaling_pb2.SIGNALING_CODE_PEER_CLOSED)
    assert frame.session_ended.message.count("x") == MAX_REASON_CHARACTERS


def test_second_party_that_closes_hears_nothing_and_leaves_no_line_above_debug(manager: Manager) -> None:
    _, opened = manager.open()
    close = Frame(close_session=signaling_pb2.CloseSession(session_id=opened.session_id))
    manager.send(b"A", close)
    before = len(manager.harness.logs)
    assert manager.send(b"C", close) == []
    assert [(line["event"], line["log_level"]) for line in manager.harness.logs[before:]] == [
        ("session_manager.session_closed_already", "debug")
    ]


def test_sessions_are_reported_at_most_once_a_second(manager: Manager) -> None:
    manager.harness.advance(2)
    _, opened = manager.open()
    manager.harness.advance(1)
    manager.take()
    (session,) = manager.reports[-1].sessions
    assert (session.agent_id, session.connector_id, list(session.services)) == ("a1", "c1", ["web"])
    assert (session.state, session.session_id) == ("relayed", opened.session_id)
    assert session.opened_at_s == pytest.approx(START_WALL_TIME + 2, abs=0.01)
    assert manager.reports[-1].opened_total == 1
    count = len(manager.reports)
    manager.harness.advance(10)
    manager.take()
    assert len(manager.reports) == count


def test_successor_of_one_that_failed_reports_that_it_has_no_session() -> None:
    successor = Manager()
    successor.take()
    successor.harness.advance(1)
    successor.take()
    assert [list(report.sessions) for report in successor.reports] == [[]]


def test_session_that_waits_for_its_other_party_is_reported_until_its_own_leaves(manager: Manager) -> None:
    _, opened = manager.open()
    restarted = Manager()
    restarted.harness.advance(1)
    restarted.attach(b"2", C1, signaling_pb2.ResumeSession(session_id=opened.session_id, grant=opened.grant))
    restarted.harness.advance(1)
    restarted.take()
    (session,) = restarted.reports[-1].sessions
    assert (session.state, session.session_id) == ("waiting", opened.session_id)
    restarted.tell(signaling_service_pb2.NodeDetached(attach_id=b"2", is_clean=True))
    restarted.harness.advance(1)
    restarted.take()
    assert not restarted.reports[-1].sessions


# Thousands of sessions


def resumed(number: int) -> signaling_pb2.ResumeSession:
    claims = GrantClaims(
        1,
        number.to_bytes(16, "big"),
        f"a{number}",
        A1.fingerprint,
        "c1",
        C1.fingerprint,
        "web",
        int(START_WALL_TIME),
        int(START_WALL_TIME) + 600,
        "i1",
    )
    return signaling_pb2.ResumeSession(
        session_id=claims.session_id, grant=translate.seal_grant(claims, credentials())
    )


def test_sessions_of_a_node_come_back_in_slices_of_a_few_milliseconds() -> None:
    count = 10 * GRANTS_PER_SLICE
    shown = [resumed(number) for number in range(count)]
    manager = Manager(count)
    manager.harness.advance(2)
    assert manager.attach(b"C", C1, *shown) == []
    core = manager.harness.concern._core
    seen = [core.resumed_total]
    while (deadline := manager.harness.concern._resumptions.next_deadline()) is not None:
        manager.harness.io.run_until(deadline)
        seen.append(core.resumed_total)
    assert seen[-1] == count
    assert max(later - earlier for earlier, later in pairwise(seen)) <= GRANTS_PER_SLICE


def test_request_of_an_agent_waits_until_its_own_sessions_are_back(manager: Manager) -> None:
    _, opened = manager.open()
    resume = signaling_pb2.ResumeSession(session_id=opened.session_id, grant=opened.grant)
    # The connector uses up what the rate allows at once.
    manager.attach(b"X", node(Role.CONNECTOR, "c9"), *(resumed(n) for n in range(2 * GRANTS_PER_SLICE)))
    assert manager.attach(b"A'", A1, resume) == []
    chosen = registry_pb2.ConnectorChosen(
        agent_attach_id=b"A'", agent=A1, request_id=8, service="web", connector_attach_id=b"C", connector=C1
    )
    assert manager.tell(chosen) == []
    manager.harness.advance(1)
    frames = dict(manager.take())
    assert frames[b"A'"].session_opened.request_id == 8
    assert frames[b"A'"].session_opened.session_id == opened.session_id


def test_waiting_requests_are_bounded(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_manager, "MAX_DEFERRED_REQUESTS", 1)
    _, opened = manager.open()
    resume = signaling_pb2.ResumeSession(session_id=opened.session_id, grant=opened.grant)
    manager.attach(b"X", node(Role.CONNECTOR, "c9"), *(resumed(n) for n in range(2 * GRANTS_PER_SLICE)))
    manager.attach(b"A'", A1, resume)
    chosen = registry_pb2.ConnectorChosen(
        agent_attach_id=b"A'", agent=A1, request_id=8, service="web", connector_attach_id=b"C", connector=C1
    )
    assert manager.tell(chosen) == []
    ((to, frame),) = manager.tell(chosen)
    assert (to, frame.error.code, frame.error.request_id) == (
        b"A'",
        signaling_pb2.SIGNALING_CODE_RATE_LIMITED,
        8,
    )


def test_node_that_left_is_verified_no_further(manager: Manager) -> None:
    manager.attach(b"X", node(Role.CONNECTOR, "c9"), *(resumed(n) for n in range(3 * GRANTS_PER_SLICE)))
    manager.tell(
        signaling_service_pb2.NodeDetached(
            attach_id=b"X", node=node(Role.CONNECTOR, "c9"), reason="no_answer"
        )
    )
    assert manager.harness.concern._resumptions._waiting == 0
    manager.harness.advance(1)
    assert manager.take() == []


def rules(*services: str) -> AccessRules:
    return AccessRules(
        AccessPolicy([AccessRule(("*",), services)] if services else []),
        OfferPolicy([OfferRule(("*",), ("*",))]),
    )


def test_reload_tells_both_parties_what_is_still_allowed(manager: Manager) -> None:
    _, opened = manager.open()
    manager.rules = rules("web", "ssh")
    frames = dict(manager.tell(reload_pb2.ConfigurationReloaded()))
    expected = signaling_pb2.AccessChanged(
        session_id=opened.session_id, allowed=signaling_pb2.AllowedServices(services=["ssh", "web"])
    )
    assert frames[b"A"].access_changed == frames[b"C"].access_changed == expected


def test_reload_that_allows_nothing_ends_the_session_at_both(manager: Manager) -> None:
    _, opened = manager.open()
    manager.rules = rules()
    frames = dict(manager.tell(reload_pb2.ConfigurationReloaded()))
    for attach_id in (b"A", b"C"):
        assert frames[attach_id].session_ended.session_id == opened.session_id
        assert frames[attach_id].session_ended.code == signaling_pb2.SIGNALING_CODE_ACCESS_DENIED


def test_reload_ends_the_session_of_an_agent_that_was_lost(manager: Manager) -> None:
    _, opened = manager.open()
    manager.tell(signaling_service_pb2.NodeDetached(attach_id=b"A", node=A1, reason="leg_dead"))
    manager.rules = rules()
    ((told, frame),) = manager.tell(reload_pb2.ConfigurationReloaded())
    assert (told, frame.session_ended.session_id) == (b"C", opened.session_id)
    assert frame.session_ended.code == signaling_pb2.SIGNALING_CODE_ACCESS_DENIED


def test_session_of_a_lost_agent_that_is_expelled_ends_at_its_connector(manager: Manager) -> None:
    _, opened = manager.open()
    manager.tell(signaling_service_pb2.NodeDetached(attach_id=b"A", node=A1, reason="leg_dead"))
    ((told, frame),) = manager.tell(signaling_service_pb2.LostNodeExpelled(node=A1, reason="revoked"))
    assert (told, frame.session_ended.session_id) == (b"C", opened.session_id)
    assert frame.session_ended.code == signaling_pb2.SIGNALING_CODE_PEER_CLOSED
    assert "revoked" in frame.session_ended.message
