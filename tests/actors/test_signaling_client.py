from __future__ import annotations

import os
from typing import Any, TypeVar, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from actors.base import Context
from actors.credentials import Credentials, parse_credentials
from actors.grpc_carrier import CarrierOwner, GrpcCarrier
from actors.signaling_client import (
    MAX_RESUME_BYTES,
    AgentSignalingClient,
    ConnectorSignalingClient,
    SignalingClient,
)
from tests.manual_io import ActorHarness, actor_harness
from tests.pki_fixtures import NOW, crl_pem, issue, of_unknown_version, pem
from ztna.access.grant import sign_nonce
from ztna.access.identity import Role
from ztna.pki.authority import Issued
from ztna.signaling import resume
from ztna.signaling.client import ATTACH_LIMIT_S, PING_INTERVAL_S, PONG_LIMIT_S, REQUEST_LIMIT_S
from ztna.signaling.framing import MAX_FRAME_BYTES, FrameDecoder, encode
from ztna.v1 import grant_pb2, relay_leg_pb2, signaling_client_pb2, signaling_pb2, types_pb2

MessageT = TypeVar("MessageT", bound=Message)
Frame = signaling_pb2.SignalingFrame
ATTACH_ID = b"x" * 16
S1 = b"1" * 16
GRANT = grant_pb2.SealedGrant(claims=b"claims", signature=b"signature")
CONNECTOR = types_pb2.NodeIdentity(role=types_pb2.ROLE_CONNECTOR, id="c1", fingerprint=b"c" * 32)
ATTACH = signaling_client_pb2.Attach(intermediate_id="i1")


def credentials(role: Role, name: str) -> Credentials:
    own = issue(role, name)
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, None, role, NOW)


class FakeCarrier:
    """One gRPC attempt that goes nowhere."""

    def __init__(self, owner: CarrierOwner) -> None:
        self.owner = owner
        self.sent: list[Frame] = []
        self.is_closed = False

    def send(self, frame: Frame) -> None:
        copy = Frame()
        copy.CopyFrom(frame)
        self.sent.append(copy)

    def close(self) -> None:
        self.is_closed = True

    def deliver(self, *frames: Frame) -> None:
        for frame in frames:
            self.owner.carrier_frame(self, frame)


class Dialler:
    def __init__(self) -> None:
        self.carriers: list[FakeCarrier] = []

    def __call__(self, owner: CarrierOwner) -> GrpcCarrier:
        self.carriers.append(FakeCarrier(owner))
        return cast("GrpcCarrier", self.carriers[-1])


class AgentClient(AgentSignalingClient):
    def __init__(self, context: Context, dialler: Dialler | None) -> None:
        super().__init__(context, credentials(Role.AGENT, "a1"), dialler)


class ConnectorClient(ConnectorSignalingClient):
    def __init__(self, context: Context, dialler: Dialler | None) -> None:
        services = {"web": types_pb2.SERVICE_PROTOCOL_TCP, "db": types_pb2.SERVICE_PROTOCOL_TCP}
        super().__init__(context, credentials(Role.CONNECTOR, "c1"), services, dialler)


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


class World:
    """A client over fake gRPC, and the intermediate's part played by the test."""

    def __init__(self, client: type[SignalingClient] = AgentClient) -> None:
        self.dialler = Dialler()
        self.client: ActorHarness[Any] = actor_harness(client, self.dialler, key="i1")
        (starting,) = self.client.take_emitted()
        assert starting == signaling_client_pb2.Detached(intermediate_id="i1", reason="starting")

    @property
    def carrier(self) -> FakeCarrier:
        return self.dialler.carriers[-1]

    def accepted(
        self, *, issued: Issued | None = None, signer: Issued | None = None, nonce: bytes | None = None
    ) -> Frame:
        issued = issued or issue(Role.INTERMEDIATE, "i1")
        asked = self.carrier.sent[0].attach_request
        owner: Any = self.client.concern
        signature = sign_nonce(
            (signer or issued).private_key, nonce or asked.nonce, owner._credentials.fingerprint
        )
        return Frame(
            attach_accepted=signaling_pb2.AttachAccepted(
                attach_id=ATTACH_ID,
                certificate_chain=credentials_chain(issued),
                signature=signature,
            )
        )

    def attached(self) -> World:
        self.client.tell(ATTACH)
        self.carrier.deliver(self.accepted())
        assert len(of(self.client.take_emitted(), signaling_client_pb2.Attached)) == 1
        return self

    def hear(self, *frames: Frame) -> list[Message]:
        self.carrier.deliver(*frames)
        self.client.io.run_until_idle()
        return self.client.take_emitted()


def credentials_chain(issued: Issued) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in issued.chain]


def test_attachment_is_proven_presented_and_told() -> None:
    world = World()
    world.client.tell(ATTACH)
    (request,) = world.carrier.sent
    assert (request.seq, request.attach_request.protocol_version) == (1, 1)
    messages = world.hear(world.accepted())
    assert messages == [
        relay_leg_pb2.PresentAttachment(intermediate_id="i1", attach_id=ATTACH_ID),
        signaling_client_pb2.Attached(intermediate_id="i1", attach_id=ATTACH_ID),
    ]
    # Whoever selects intermediates may have been restarted: it asks again.
    world.client.tell(ATTACH)
    assert world.client.take_emitted() == [
        signaling_client_pb2.Attached(intermediate_id="i1", attach_id=ATTACH_ID)
    ]


@pytest.mark.parametrize("fault", ["name", "role", "nonce", "signer", "version"])
def test_intermediate_that_cannot_prove_itself_is_left(fault: str) -> None:
    world = World()
    world.client.tell(ATTACH)
    answers = {
        "name": lambda: world.accepted(issued=issue(Role.INTERMEDIATE, "i2")),
        "role": lambda: world.accepted(issued=issue(Role.CONNECTOR, "i1")),
        "nonce": lambda: world.accepted(nonce=os.urandom(32)),
        "signer": lambda: world.accepted(signer=issue(Role.CONNECTOR, "c1")),
        "version": lambda: Frame(
            attach_accepted=signaling_pb2.AttachAccepted(
                certificate_chain=[of_unknown_version(issue(Role.INTERMEDIATE, "i1").certificate)]
            )
        ),
    }
    (detached,) = of(world.hear(answers[fault]()), signaling_client_pb2.Detached)
    assert (detached.reason, detached.is_authentication_failure) == ("untrusted_intermediate", True)
    assert world.carrier.is_closed


def test_intermediate_that_a_reload_revokes_is_left_with_its_leg() -> None:
    world = World().attached()
    held: Credentials = world.client.concern._credentials
    recheck = signaling_client_pb2.RecheckIntermediate(intermediate_id="i1")
    world.client.tell(recheck)
    assert world.client.take_emitted() == []
    revoked = crl_pem(issue(Role.INTERMEDIATE, "i1"))
    own = issue(Role.AGENT, "a1")
    held.adopt(parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, revoked, Role.AGENT, NOW))
    world.client.tell(recheck)
    messages = world.client.take_emitted()
    assert relay_leg_pb2.RedialLeg(intermediate_id="i1") in messages
    (detached,) = of(messages, signaling_client_pb2.Detached)
    assert (detached.reason, detached.is_authentication_failure) == ("untrusted_intermediate", True)
    assert "revoked" in detached.detail
    assert world.carrier.is_closed


SESSION_FRAMES = [
    Frame(session_opened=signaling_pb2.SessionOpened(session_id=S1, connector=CONNECTOR, channel=1)),
    Frame(session_rebound=signaling_pb2.SessionRebound(session_id=S1, peer=CONNECTOR, channel=1)),
    Frame(session_ended=signaling_pb2.SessionEnded(session_id=S1)),
]


@pytest.mark.parametrize("frame", SESSION_FRAMES)
def test_nothing_is_believed_before_the_proof(frame: Frame) -> None:
    world = World()
    world.client.tell(ATTACH)
    assert world.hear(frame) == []


@pytest.mark.parametrize("frame", SESSION_FRAMES)
def test_nothing_is_believed_after_the_end(frame: Frame) -> None:
    world = World().attached()
    carrier = world.carrier
    world.client.tell(signaling_client_pb2.Detach(intermediate_id="i1"))
    world.client.take_emitted()
    carrier.deliver(frame)
    assert world.client.take_emitted() == []


@pytest.mark.parametrize(
    ("session_id", "fingerprint", "channel"),
    [(b"short", b"c" * 32, 1), (S1, b"c", 1), (S1, b"c" * 32, 0), (S1, b"c" * 32, 65_536)],
    ids=["session-id", "fingerprint", "reserved-channel", "channel-too-large"],
)
def test_malformed_session_costs_the_intermediate_its_connection(
    session_id: bytes, fingerprint: bytes, channel: int
) -> None:
    world = World().attached()
    peer = types_pb2.NodeIdentity(id="c1", fingerprint=fingerprint)
    messages = world.hear(
        Frame(session_rebound=signaling_pb2.SessionRebound(session_id=session_id, peer=peer, channel=channel))
    )
    assert [each.reason for each in of(messages, signaling_client_pb2.Detached)] == ["protocol_error"]
    assert of(messages, signaling_client_pb2.SessionReboundReceived) == []
    assert world.client.is_alive


def test_request_is_sent_and_its_answers_told() -> None:
    world = World().attached()
    for number in (1, 2):
        world.client.tell(
            signaling_client_pb2.RequestSession(
                intermediate_id="i1", request_id=number, service="web", connectors=["c1"]
            )
        )
    asked = [frame.open_session for frame in world.carrier.sent[1:]]
    assert [(each.request_id, each.service, list(each.connectors)) for each in asked] == [
        (1, "web", ["c1"]),
        (2, "web", ["c1"]),
    ]
    messages = world.hear(
        Frame(
            session_opened=signaling_pb2.SessionOpened(
                request_id=1, session_id=S1, service="web", connector=CONNECTOR, channel=4, grant=GRANT
            )
        ),
        Frame(
            error=signaling_pb2.SignalingError(
                code=signaling_pb2.SIGNALING_CODE_ACCESS_DENIED, request_id=2, message="no"
            )
        ),
    )
    granted, failed = messages
    assert isinstance(granted, signaling_client_pb2.SessionGranted)
    assert (granted.request_id, granted.channel, granted.grant) == (1, 4, GRANT)
    assert isinstance(failed, signaling_client_pb2.SessionRequestFailed)
    assert (failed.code, failed.message, failed.is_final) == ("access_denied", "no", True)


def test_request_is_never_left_without_an_answer() -> None:
    world = World()
    request = signaling_client_pb2.RequestSession(intermediate_id="i1", request_id=1, service="web")
    world.client.tell(request)
    (failed,) = of(world.client.take_emitted(), signaling_client_pb2.SessionRequestFailed)
    assert (failed.code, failed.is_final) == ("not_attached", False)
    world.attached()
    world.client.tell(request)
    world.client.advance(REQUEST_LIMIT_S)
    (failed,) = of(world.client.take_emitted(), signaling_client_pb2.SessionRequestFailed)
    assert failed.code == "session_timeout"
    world.client.tell(request, signaling_client_pb2.Detach(intermediate_id="i1"))
    (failed,) = of(world.client.take_emitted(), signaling_client_pb2.SessionRequestFailed)
    assert failed.code == "detached"


def test_end_and_move_of_sessions_are_told() -> None:
    world = World().attached()
    ended, rebound = world.hear(
        Frame(
            session_ended=signaling_pb2.SessionEnded(
                session_id=S1, code=signaling_pb2.SIGNALING_CODE_PEER_LOST, message="gone"
            )
        ),
        SESSION_FRAMES[1],
    )
    assert isinstance(ended, signaling_client_pb2.SessionRevoked)
    assert (ended.session_id, ended.code, ended.message) == (S1, "peer_lost", "gone")
    assert isinstance(rebound, signaling_client_pb2.SessionReboundReceived)


def test_end_of_a_session_is_reported_while_attached() -> None:
    world = World()
    report = signaling_client_pb2.ReportSessionClosed(intermediate_id="i1", session_id=S1, reason="idle")
    world.client.tell(report)
    world.attached()
    world.client.tell(report)
    assert [frame.WhichOneof("body") for frame in world.carrier.sent] == ["attach_request", "close_session"]


def test_connector_registers_and_tells_each_answer_about_its_own_services() -> None:
    world = World(ConnectorClient).attached()
    offered = [frame.register_service.service for frame in world.carrier.sent[1:]]
    assert offered == ["web", "db"]
    messages = world.hear(
        Frame(registration_accepted=signaling_pb2.RegistrationAccepted(service="web")),
        Frame(
            registration_rejected=signaling_pb2.RegistrationRejected(
                service="db", code=signaling_pb2.SIGNALING_CODE_ACCESS_DENIED, message="no rule"
            )
        ),
        Frame(registration_accepted=signaling_pb2.RegistrationAccepted(service="foreign")),
        Frame(registration_rejected=signaling_pb2.RegistrationRejected(service="foreign")),
        Frame(session_offer=signaling_pb2.SessionOffer(session_id=S1, agent=CONNECTOR, channel=2)),
    )
    assert [type(each).__name__ for each in messages] == [
        "ServiceRegistered",
        "ServiceRejected",
        "SessionOffered",
    ]


def test_pings_are_answered_and_silence_is_noticed() -> None:
    world = World().attached()
    world.hear(Frame(ping=signaling_pb2.SignalingPing(id=77)))
    assert world.carrier.sent[-1].pong.id == 77
    world.client.advance(PING_INTERVAL_S)
    world.hear(Frame(pong=signaling_pb2.SignalingPong(id=world.carrier.sent[-1].ping.id)))
    world.client.advance(PONG_LIMIT_S)
    assert world.client.take_emitted() == []
    world.client.advance(PING_INTERVAL_S)
    (detached,) = of(world.client.take_emitted(), signaling_client_pb2.Detached)
    assert detached.reason == "silent"


@pytest.mark.parametrize("carrier", ["quic", "grpc"])
def test_loss_of_the_leg_asks_at_once_whether_grpc_still_works(carrier: str) -> None:
    world = World().attached()
    world.client.tell(relay_leg_pb2.RelayLegDown(intermediate_id="i1", reason="no_answer", carrier=carrier))
    assert world.carrier.sent[-1].WhichOneof("body") == "ping"
    world.client.advance(PONG_LIMIT_S)
    (detached,) = of(world.client.take_emitted(), signaling_client_pb2.Detached)
    assert detached.reason == "silent"


def test_return_of_the_leg_cuts_the_wait_short() -> None:
    world = World().attached()
    world.carrier.owner.carrier_closed(world.carrier, "unavailable", "", False)
    world.client.tell(relay_leg_pb2.LegConnected(intermediate_id="i1"))
    assert len(world.dialler.carriers) == 2
    assert [frame.seq for frame in world.carrier.sent] == [1]


def test_superseded_attachment_stays_away() -> None:
    world = World().attached()
    words = "another process attached with this identity, from 192.0.2.9:40000"
    error = signaling_pb2.SignalingError(code=signaling_pb2.SIGNALING_CODE_SUPERSEDED, message=words)
    (detached,) = of(world.hear(Frame(error=error)), signaling_client_pb2.Detached)
    assert (detached.reason, detached.retry_in_s) == ("superseded", 30.0)
    assert detached.detail == f"{words}; this one stays away for 30 s"
    world.client.advance(29.0)
    assert len(world.dialler.carriers) == 1


def test_news_of_a_former_carrier_changes_nothing() -> None:
    world = World()
    world.client.tell(ATTACH)
    former = world.carrier
    world.client.advance(ATTACH_LIMIT_S + 1.0)
    assert former.is_closed
    world.client.take_emitted()
    former.owner.carrier_closed(former, "cancelled", "", False)
    former.deliver(*SESSION_FRAMES)
    assert world.client.take_emitted() == []


# The direct path

SIGNALS = {
    "candidate_offer": signaling_pb2.CandidateOffer(generation=1, ufrag="u", pwd="p"),
    "candidate_answer": signaling_pb2.CandidateAnswer(generation=1, ufrag="u", pwd="p"),
    "candidate_added": signaling_pb2.CandidateAdded(generation=1, end_of_candidates=True),
    "restart_requested": signaling_pb2.RestartRequested(reason="path_failed"),
    "punching_result": signaling_pb2.PunchingResult(success=True),
}
HEARD = {
    **SIGNALS,
    "start_punching": signaling_pb2.StartPunching(generation=1, start_delay_ms=40),
    "error": signaling_pb2.SignalingError(code=signaling_pb2.SIGNALING_CODE_SESSION_TIMEOUT),
}


def signal(body: str) -> signaling_pb2.IceSignal:
    said = signaling_pb2.IceSignal()
    getattr(said, body).CopyFrom(HEARD[body])
    return said


def send_signal(body: str) -> signaling_client_pb2.SendIceSignal:
    return signaling_client_pb2.SendIceSignal(intermediate_id="i1", session_id=S1, signal=signal(body))


@pytest.mark.parametrize("body", SIGNALS)
def test_signal_leaves_as_a_frame_about_its_session(body: str) -> None:
    world = World().attached()
    world.client.tell(send_signal(body))
    frame = world.carrier.sent[-1]
    assert (frame.seq, frame.WhichOneof("body")) == (2, body)
    said = getattr(frame, body)
    assert said.session_id == S1
    said.ClearField("session_id")
    assert said == SIGNALS[body]


def test_signal_without_an_attachment_or_without_words_goes_nowhere() -> None:
    world = World()
    world.client.tell(send_signal("candidate_offer"))
    assert not world.client.take_emitted()
    world.attached()
    world.client.tell(signaling_client_pb2.SendIceSignal(intermediate_id="i1", session_id=S1))
    assert [frame.WhichOneof("body") for frame in world.carrier.sent] == ["attach_request"]


@pytest.mark.parametrize("client", [AgentClient, ConnectorClient])
@pytest.mark.parametrize("body", HEARD)
def test_frame_about_the_direct_path_is_told_to_its_session_with_who_carried_it(
    body: str, client: type[SignalingClient]
) -> None:
    world = World(client).attached()
    said = signal(body)
    getattr(said, body).session_id = S1
    frame = Frame()
    getattr(frame, body).CopyFrom(getattr(said, body))
    assert of(world.hear(frame), signaling_client_pb2.IceSignalReceived) == [
        signaling_client_pb2.IceSignalReceived(session_id=S1, intermediate_id="i1", signal=said)
    ]


def test_signals_travel_on_the_leg_as_well() -> None:
    harness = attached_over_leg()
    harness.tell(send_signal("candidate_answer"))
    (frame,) = frames(harness.take_emitted())
    assert (frame.seq, frame.WhichOneof("body")) == (2, "candidate_answer")
    heard = Frame(start_punching=signaling_pb2.StartPunching(session_id=S1, generation=1))
    data = encode(heard.SerializeToString())
    harness.tell(relay_leg_pb2.LegSignalingReceived(intermediate_id="i1", data=data))
    (told,) = of(harness.take_emitted(), signaling_client_pb2.IceSignalReceived)
    assert told.signal.start_punching.generation == 1


@pytest.mark.parametrize("body", ["candidate_offer", "start_punching"])
def test_signal_about_something_that_is_no_session_is_a_protocol_error(body: str) -> None:
    world = World().attached()
    frame = Frame()
    getattr(frame, body).session_id = b"short"
    (detached,) = of(world.hear(frame), signaling_client_pb2.Detached)
    assert detached.reason == "protocol_error"


def test_signal_before_the_intermediate_has_proved_itself_is_ignored() -> None:
    world = World()
    world.client.tell(ATTACH)
    frame = Frame(candidate_answer=signaling_pb2.CandidateAnswer(session_id=S1))
    assert not of(world.hear(frame), signaling_client_pb2.IceSignalReceived)


def test_error_that_answers_no_request_is_only_logged() -> None:
    world = World().attached()
    assert world.hear(Frame(error=signaling_pb2.SignalingError(request_id=5)), Frame()) == []
    assert any(entry["event"] == "signaling_client.error_received" for entry in world.client.logs)


def test_goodbye_of_the_intermediate_is_followed_by_another_attempt() -> None:
    world = World().attached()
    messages = world.hear(Frame(goodbye=signaling_pb2.Goodbye(reason="shutting_down")))
    (detached,) = of(messages, signaling_client_pb2.Detached)
    assert detached.reason == "intermediate_left"
    world.client.advance(2.0)
    assert len(world.dialler.carriers) > 1


# Resumption


def keep(session_id: bytes, grant: grant_pb2.SealedGrant | None) -> signaling_client_pb2.KeepResumable:
    return signaling_client_pb2.KeepResumable(intermediate_id="i1", session_id=session_id, grant=grant)


def test_sessions_are_presented_with_their_grants_until_forgotten() -> None:
    world = World()
    world.client.tell(keep(S1, GRANT), keep(b"2" * 16, GRANT), keep(b"2" * 16, None), ATTACH)
    resumed = world.carrier.sent[0].attach_request.resume
    assert [(each.session_id, each.grant) for each in resumed] == [(S1, GRANT)]


@pytest.mark.parametrize("carrier", ["grpc", "quic"])
def test_sessions_that_do_not_fit_one_frame_follow_in_others_the_newest_first(carrier: str) -> None:
    world = World()
    client = world.client if carrier == "grpc" else actor_harness(AgentClient, None, key="i1")
    grant = grant_pb2.SealedGrant(claims=b"x" * 1500)
    for number in range(100):
        client.tell(keep(number.to_bytes(16, "big"), grant))
    client.tell(ATTACH)
    if carrier == "quic":
        client.tell(relay_leg_pb2.LegConnected(intermediate_id="i1"))
    sent = world.carrier.sent if carrier == "grpc" else frames(client.take_emitted())
    assert [frame.seq for frame in sent] == [1, 2, 3]
    assert all(frame.ByteSize() <= MAX_FRAME_BYTES for frame in sent)
    request, *more = sent
    parts: list[Any] = [request.attach_request, *(frame.resume_more for frame in more)]
    assert [part.has_more for part in parts] == [True, True, False]
    assert len(parts[0].resume) == MAX_RESUME_BYTES // (1500 + 18 + 6 + 4)
    assert [each.session_id for part in parts for each in part.resume] == [
        number.to_bytes(16, "big") for number in reversed(range(100))
    ]


def test_sessions_beyond_the_bound_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "MAX_RESUMED_SESSIONS", 3)
    world = World()
    for number in range(5):
        world.client.tell(keep(number.to_bytes(16, "big"), GRANT))
    world.client.tell(ATTACH)
    (request,) = world.carrier.sent
    assert len(request.attach_request.resume) == 3
    assert not request.attach_request.has_more
    (line,) = [line for line in world.client.logs if line["event"] == "signaling_client.sessions_not_resumed"]
    assert line["count"] == 2


@pytest.mark.parametrize("has_session", [False, True])
def test_goodbye_is_said_only_when_no_session_would_end_with_it(has_session: bool) -> None:
    world = World().attached()
    if has_session:
        world.client.tell(keep(S1, GRANT))
    world.client.stop()
    said = [frame.WhichOneof("body") for frame in world.carrier.sent]
    assert ("goodbye" in said) is not has_session
    assert world.carrier.is_closed


# Carrier quic


def over_leg() -> ActorHarness[AgentClient]:
    harness = actor_harness(AgentClient, None, key="i1")
    harness.tell(ATTACH)
    harness.take_emitted()
    return harness


def frames(messages: list[Message]) -> list[Frame]:
    data = b"".join(each.data for each in of(messages, relay_leg_pb2.SendLegSignaling))
    return [Frame.FromString(body) for body in FrameDecoder().feed(data)]


def attached_over_leg() -> ActorHarness[AgentClient]:
    harness = over_leg()
    harness.tell(relay_leg_pb2.LegConnected(intermediate_id="i1"))
    (request,) = frames(harness.take_emitted())
    own: Any = harness.concern
    accepted = Frame(
        attach_accepted=signaling_pb2.AttachAccepted(
            attach_id=ATTACH_ID,
            certificate_chain=credentials_chain(issue(Role.INTERMEDIATE, "i1")),
            signature=sign_nonce(
                issue(Role.INTERMEDIATE, "i1").private_key,
                request.attach_request.nonce,
                own._credentials.fingerprint,
            ),
        )
    )
    data = encode(accepted.SerializeToString())
    for piece in (data[:5], data[5:]):
        harness.tell(relay_leg_pb2.LegSignalingReceived(intermediate_id="i1", data=piece))
    assert len(of(harness.take_emitted(), signaling_client_pb2.Attached)) == 1
    return harness


def test_leg_carries_signaling_once_it_is_connected() -> None:
    harness = attached_over_leg()
    harness.tell(relay_leg_pb2.LegConnected(intermediate_id="i1"))  # told again: nothing begins anew
    assert harness.take_emitted() == []
    harness.tell(relay_leg_pb2.RelayLegDown(intermediate_id="i1", reason="no_answer"))
    (detached,) = of(harness.take_emitted(), signaling_client_pb2.Detached)
    assert detached.reason == "no_answer"


def test_leg_that_comes_while_the_client_waits_is_used_at_once() -> None:
    harness = over_leg()
    harness.advance(ATTACH_LIMIT_S + 0.001)
    harness.take_emitted()
    harness.tell(relay_leg_pb2.LegConnected(intermediate_id="i1"))
    assert [frame.seq for frame in frames(harness.take_emitted())] == [1]


@pytest.mark.parametrize("data", [bytes(4), encode(b"\xff\xff")], ids=["framing", "encoding"])
def test_nonsense_on_the_leg_is_a_protocol_error(data: bytes) -> None:
    harness = over_leg()
    harness.tell(relay_leg_pb2.LegConnected(intermediate_id="i1"))
    harness.take_emitted()
    harness.tell(relay_leg_pb2.LegSignalingReceived(intermediate_id="i1", data=data))
    (detached,) = of(harness.take_emitted(), signaling_client_pb2.Detached)
    assert detached.reason == "protocol_error"
    assert harness.is_alive
