"""The service over carrier quic, whose bytes come and go as messages."""

from __future__ import annotations

from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from actors import signaling_service, signaling_streams
from actors.burst_log import BURST_S
from actors.credentials import Credentials, parse_credentials
from actors.io import Shortage
from actors.signaling_service import ATTACH_LIMIT_S, RECHECK_INTERVAL_S, SignalingService
from tests.manual_io import ActorHarness, actor_harness
from tests.pki_fixtures import NOW, crl_pem, issue, pem, renewed
from ztna.access.grant import verify_nonce
from ztna.access.identity import Role, fingerprint
from ztna.pki.authority import Issued
from ztna.quic.budget import TYPICAL_STEP_S, HandshakeBudget, fixed_cost
from ztna.signaling.attachments import JUDGEMENT_LIMIT_S
from ztna.signaling.framing import FrameDecoder, encode
from ztna.v1 import grant_pb2, quic_relay_pb2, reload_pb2, signaling_pb2, signaling_service_pb2, types_pb2

MessageT = TypeVar("MessageT", bound=Message)
Frame = signaling_pb2.SignalingFrame
NONCE = bytes(range(32))


def attach_request(seq: int = 1) -> Frame:
    return Frame(seq=seq, attach_request=signaling_pb2.AttachRequest(protocol_version=1, nonce=NONCE))


def credentials_of(*revoked: Issued) -> Credentials:
    own = issue(Role.INTERMEDIATE, "i1")
    crl = crl_pem(*revoked) if revoked else None
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, crl, Role.INTERMEDIATE, NOW)


class World:
    """The service and the streams of some legs."""

    def __init__(self, *revoked: Issued, max_attachments: int = 10, frames_per_second: float = 50.0) -> None:
        self.credentials = credentials = credentials_of(*revoked)
        self.budget = HandshakeBudget(fixed_cost())
        self.harness: ActorHarness[SignalingService] = actor_harness(
            SignalingService,
            credentials,
            self.budget,
            None,
            max_attachments,
            frames_per_second,
        )
        self.decoders: dict[int, FrameDecoder] = {}
        self.closed: list[int] = []
        self.pings: list[int] = []

    def open(self, connection: int, node: Issued) -> None:
        self.decoders[connection] = FrameDecoder()
        self.harness.tell(
            quic_relay_pb2.LegSignalingChanged(
                connection=connection,
                is_open=True,
                certificate=node.certificate.public_bytes(Encoding.DER),
                remote=f"192.0.2.1:{connection}",
            )
        )

    def close(self, connection: int) -> None:
        self.harness.tell(quic_relay_pb2.LegSignalingChanged(connection=connection, is_open=False))

    def send(self, connection: int, *frames: Frame) -> None:
        data = b"".join(encode(frame.SerializeToString()) for frame in frames)
        self.feed(connection, data)

    def feed(self, connection: int, data: bytes) -> None:
        self.harness.tell(quic_relay_pb2.LegSignalingBytesReceived(connection=connection, data=data))

    def received(self, connection: int) -> list[Frame]:
        """Frames that a node was sent since the last call, pings apart: `pings` has their ids."""
        frames: list[Frame] = []
        kept: list[Message] = []
        for message in self.harness.take_emitted():
            if isinstance(message, quic_relay_pb2.SendLegSignalingBytes) and message.connection == connection:
                frames += map(Frame.FromString, self.decoders[connection].feed(message.data))
                self.pings += [frame.ping.id for frame in frames if frame.HasField("ping")]
                frames = [frame for frame in frames if not frame.HasField("ping")]
                if message.close:
                    self.closed.append(connection)
            else:
                kept.append(message)
        self.harness.emitted.extend(kept)
        return frames

    def take(self, kind: type[MessageT]) -> list[MessageT]:
        found = [message for message in self.harness.emitted if isinstance(message, kind)]
        for message in found:
            self.harness.emitted.remove(message)
        return found

    def attached(self, connection: int, node: Issued) -> bytes:
        self.open(connection, node)
        self.send(connection, attach_request())
        (accepted,) = self.received(connection)
        (event,) = self.take(signaling_service_pb2.NodeAttached)
        assert event.attach_id == accepted.attach_accepted.attach_id
        return event.attach_id


@pytest.fixture
def agent() -> Issued:
    return issue(Role.AGENT, "a1")


@pytest.fixture
def connector() -> Issued:
    return issue(Role.CONNECTOR, "c1")


def codes(frames: list[Frame]) -> list[signaling_pb2.SignalingCode.ValueType]:
    return [frame.error.code for frame in frames]


def spend(world: World, seconds: float) -> None:
    """Have handshakes take so much of the budget now."""
    for _ in range(round(seconds / TYPICAL_STEP_S)):
        with world.budget.charged(world.harness.io.time()):
            pass


def test_node_waits_for_its_attachment_while_the_budget_is_spent(agent: Issued) -> None:
    world = World()
    world.open(5, agent)
    spend(world, 0.2)
    world.send(5, attach_request())
    assert world.received(5) == []
    world.harness.advance(0.9)
    assert world.received(5) == []
    world.harness.advance(0.2)
    (frame,) = world.received(5)
    assert frame.HasField("attach_accepted")


def test_attachments_pay_into_the_budget_of_handshakes(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    assert world.budget.spent_s == pytest.approx(2 * TYPICAL_STEP_S)  # its certificate, and the rest


def test_node_that_asked_last_is_attached_first_and_one_that_left_never(
    agent: Issued, connector: Issued
) -> None:
    world, third = World(), issue(Role.AGENT, "a3")
    for number, node in enumerate((agent, connector, third), 5):
        world.open(number, node)
    spend(world, 0.2)
    for number in (5, 6, 7):
        world.send(number, attach_request())
    world.close(7)
    world.harness.advance(2.0)
    attached = [event.node.id for event in world.take(signaling_service_pb2.NodeAttached)]
    assert attached == ["c1", "a1"]


def test_node_that_speaks_on_while_it_waits_for_its_attachment_is_hung_up_on(agent: Issued) -> None:
    world = World()
    world.open(5, agent)
    spend(world, 0.2)
    world.send(5, attach_request(), Frame(seq=2, ping=signaling_pb2.SignalingPing(id=1)))
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    world.harness.advance(2.0)
    assert world.take(signaling_service_pb2.NodeAttached) == []


def test_second_stream_of_a_node_takes_the_place_of_the_one_that_waits(agent: Issued) -> None:
    world = World()
    world.open(5, agent)
    spend(world, 0.2)
    world.send(5, attach_request())
    world.open(6, agent)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_SUPERSEDED]
    world.send(6, attach_request())
    world.harness.advance(2.0)
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert event.connection == 6


def test_nodes_that_wait_for_their_attachment_are_bounded(
    agent: Issued, connector: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling_service, "MAX_WAITING_STREAMS", 1)
    world = World()
    world.open(5, agent)
    world.open(6, connector)
    spend(world, 0.2)
    world.send(5, attach_request())
    world.send(6, attach_request())
    assert codes(world.received(6)) == [signaling_pb2.SIGNALING_CODE_RATE_LIMITED]
    world.harness.advance(2.0)
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert event.node.id == "a1"


def test_node_attaches_over_its_leg(agent: Issued) -> None:
    world = World()
    world.open(5, agent)
    world.send(5, attach_request())
    (frame,) = world.received(5)
    assert frame.seq == 1
    verify_nonce(
        issue(Role.INTERMEDIATE, "i1").certificate,
        NONCE,
        fingerprint(agent.certificate),
        frame.attach_accepted.signature,
    )
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert (event.carrier, event.connection, event.node.id) == ("quic", 5, "a1")
    assert event.node.role == types_pb2.ROLE_AGENT


def test_frames_arrive_in_whatever_pieces(connector: Issued) -> None:
    world = World()
    world.open(5, connector)
    data = encode(attach_request().SerializeToString()) + encode(
        Frame(seq=2, register_service=signaling_pb2.RegisterService(service="web")).SerializeToString()
    )
    for n in range(len(data)):
        world.feed(5, data[n : n + 1])
    (offered,) = world.take(signaling_service_pb2.ServiceOffered)
    assert offered.service == "web"


def test_reload_that_revokes_a_node_sends_it_away_at_once_and_leaves_the_others(
    agent: Issued, connector: Issued
) -> None:
    world = World()
    attach_id = world.attached(5, agent)
    world.attached(6, connector)
    world.credentials.adopt(credentials_of(agent))
    world.harness.tell(reload_pb2.ConfigurationReloaded())
    (detached,) = world.take(signaling_service_pb2.NodeDetached)
    assert detached.attach_id == attach_id
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_ACCESS_DENIED]
    assert world.received(6) == []
    assert world.closed == [5]


def test_reload_that_revokes_a_node_that_was_lost_says_so_once(agent: Issued, connector: Issued) -> None:
    world = World()
    lost = world.attached(5, agent)
    world.attached(6, connector)
    world.close(5)
    world.harness.tell(quic_relay_pb2.LegJudged(attach_id=lost, is_alive=False, reason="leg_dead"))
    (detached,) = world.take(signaling_service_pb2.NodeDetached)
    assert not detached.is_clean
    world.harness.tell(reload_pb2.ConfigurationReloaded())
    assert world.take(signaling_service_pb2.LostNodeExpelled) == []
    world.credentials.adopt(credentials_of(agent))
    world.harness.tell(reload_pb2.ConfigurationReloaded())
    (expelled,) = world.take(signaling_service_pb2.LostNodeExpelled)
    assert (expelled.node, expelled.reason) == (detached.node, "revoked")
    world.harness.tell(reload_pb2.ConfigurationReloaded())
    assert world.take(signaling_service_pb2.LostNodeExpelled) == []


def test_reload_that_revokes_a_node_that_lingers_ends_its_attachment(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.close(5)
    world.credentials.adopt(credentials_of(agent))
    world.harness.tell(reload_pb2.ConfigurationReloaded())
    (detached,) = world.take(signaling_service_pb2.NodeDetached)
    assert (detached.is_clean, detached.reason) == (True, "revoked")


def lose(world: World, connection: int, node: Issued) -> None:
    attach_id = world.attached(connection, node)
    world.close(connection)
    world.harness.tell(quic_relay_pb2.LegJudged(attach_id=attach_id, is_alive=False, reason="leg_dead"))


def expelled_by_revoking(world: World, *revoked: Issued) -> list[tuple[str, bytes, str]]:
    world.credentials.adopt(credentials_of(*revoked))
    world.harness.tell(reload_pb2.ConfigurationReloaded())
    expelled = world.take(signaling_service_pb2.LostNodeExpelled)
    return [(each.node.id, each.node.fingerprint, each.reason) for each in expelled]


def test_node_that_is_back_with_the_same_key_is_judged_by_what_it_shows_now(agent: Issued) -> None:
    world = World()
    lose(world, 5, agent)
    world.attached(7, renewed(agent))
    assert expelled_by_revoking(world, agent) == []
    assert world.received(7) == []


@pytest.mark.parametrize("way", ["lost", "lingering", "attached"])
def test_former_key_of_a_node_that_is_back_with_another_one_is_expelled_when_it_is_revoked(
    agent: Issued, way: str
) -> None:
    world = World()
    if way == "lost":
        lose(world, 5, agent)
    else:
        world.attached(5, agent)
        if way == "lingering":
            world.close(5)
    world.attached(7, issue(Role.AGENT, "a1", serial_of=1))
    assert expelled_by_revoking(world, agent) == [("a1", fingerprint(agent.certificate), "revoked")]
    assert world.received(7) == []
    world.harness.advance(RECHECK_INTERVAL_S)
    assert world.take(signaling_service_pb2.LostNodeExpelled) == []


@pytest.mark.parametrize("way", ["attached", "lingering"])
def test_node_that_replaces_its_own_attachment_is_not_taken_for_lost(agent: Issued, way: str) -> None:
    world = World()
    world.attached(5, agent)
    if way == "lingering":
        world.close(5)
    world.attached(7, agent)
    assert expelled_by_revoking(world, agent) == []
    (detached,) = world.take(signaling_service_pb2.NodeDetached)
    assert detached.is_clean


def test_as_many_lost_nodes_are_remembered_as_may_be_attached(agent: Issued, connector: Issued) -> None:
    world = World(max_attachments=1)
    lose(world, 5, agent)
    lose(world, 6, connector)
    (expelled,) = world.take(signaling_service_pb2.LostNodeExpelled)
    assert (expelled.node.role, expelled.reason) == (types_pb2.ROLE_AGENT, "too_many_lost")


def test_node_that_lingers_is_not_sent_away_for_want_of_room(agent: Issued, connector: Issued) -> None:
    world = World(max_attachments=2)
    lingering = world.attached(5, agent)
    world.close(5)
    world.harness.tell(quic_relay_pb2.LegJudged(attach_id=lingering, is_alive=True))
    for connection, node in ((6, connector), (7, issue(Role.CONNECTOR, "c2"))):
        lose(world, connection, node)
    assert [each.node.id for each in world.take(signaling_service_pb2.NodeDetached)] == ["c1", "c2"]
    assert world.take(signaling_service_pb2.LostNodeExpelled) == []


@pytest.mark.parametrize("fault", ["revoked", "wrong role", "malformed"])
def test_certificate_is_judged_once_more(agent: Issued, fault: str) -> None:
    world = World(agent)
    if fault == "malformed":
        world.decoders[5] = FrameDecoder()
        world.harness.tell(
            quic_relay_pb2.LegSignalingChanged(connection=5, is_open=True, certificate=b"nonsense")
        )
    else:
        world.open(5, agent if fault == "revoked" else issue(Role.OPERATOR, "op"))
    assert world.received(5) == []
    assert world.closed == [5]
    world.send(5, attach_request())
    assert not world.take(signaling_service_pb2.NodeAttached)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(seq=1, ping=signaling_pb2.SignalingPing(id=1)),
        Frame(seq=1),
        Frame(seq=2, ping=signaling_pb2.SignalingPing(id=1)),
        Frame(seq=1, attach_request=signaling_pb2.AttachRequest(protocol_version=2, nonce=NONCE)),
        Frame(seq=1, attach_request=signaling_pb2.AttachRequest(protocol_version=1, nonce=b"short")),
    ],
    ids=["ping", "empty", "gap", "version", "nonce"],
)
def test_wrong_first_frame_ends_the_stream_with_the_reason(agent: Issued, frame: Frame) -> None:
    world = World()
    world.open(5, agent)
    world.send(5, frame)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert world.closed == [5]
    assert not world.take(signaling_service_pb2.NodeAttached)


@pytest.mark.parametrize("data", [b"\0\0\0\0", b"\xff\xff\xff\xff", encode(b"\xff\xff")])
def test_bytes_that_make_no_sense_end_the_stream_and_the_node_lingers(agent: Issued, data: bytes) -> None:
    world = World()
    attach_id = world.attached(5, agent)
    world.feed(5, data)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert [each.attach_id for each in world.take(signaling_service_pb2.JudgeLeg)] == [attach_id]


def test_repeated_or_skipped_frame_ends_the_stream(agent: Issued) -> None:
    for seq in (1, 3):
        world = World()
        world.attached(5, agent)
        world.send(5, Frame(seq=seq, ping=signaling_pb2.SignalingPing(id=1)))
        assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]


def test_stream_without_a_request_is_closed_in_time(agent: Issued) -> None:
    world = World()
    world.open(5, agent)
    world.harness.advance(ATTACH_LIMIT_S)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert world.closed == [5]


def test_request_said_a_byte_per_second_is_closed_in_time_and_counted(
    agent: Issued, connector: Issued
) -> None:
    world = World()
    world.open(5, agent)
    world.attached(6, connector)
    started = world.harness.io.time()
    for byte in encode(attach_request().SerializeToString()):
        world.feed(5, bytes([byte]))
        world.harness.advance(1.0)
        world.received(5)
        if world.closed:
            break
    assert world.harness.io.time() - started == ATTACH_LIMIT_S
    assert world.closed == [5]
    # The others go on, and the refusal has a name.
    world.send(6, Frame(seq=2, ping=signaling_pb2.SignalingPing(id=7)))
    assert [frame.pong.id for frame in world.received(6)] == [7]
    world.harness.advance(1.0)
    assert world.take(signaling_service_pb2.SignalingStatistics)[-1].refused["invalid_message"] == 1


def test_wishes_and_offers_carry_who_asks(agent: Issued, connector: Issued) -> None:
    world = World()
    a, c = world.attached(5, agent), world.attached(6, connector)
    world.send(
        5,
        Frame(
            seq=2,
            open_session=signaling_pb2.OpenSession(
                request_id=9, service="web", connectors=["c1"], excluded_connectors=["c2"]
            ),
        ),
    )
    (wanted,) = world.take(signaling_service_pb2.SessionWanted)
    assert (wanted.attach_id, wanted.agent.id, wanted.request_id, wanted.service) == (a, "a1", 9, "web")
    assert (list(wanted.connectors), list(wanted.excluded_connectors)) == (["c1"], ["c2"])
    assert wanted.agent.fingerprint == fingerprint(agent.certificate)
    world.send(
        6,
        Frame(
            seq=2,
            register_service=signaling_pb2.RegisterService(
                service="web", protocol=types_pb2.SERVICE_PROTOCOL_TCP
            ),
        ),
        Frame(seq=3, withdraw_service=signaling_pb2.WithdrawService(service="web")),
    )
    (offered,) = world.take(signaling_service_pb2.ServiceOffered)
    assert (offered.attach_id, offered.service, offered.protocol) == (
        c,
        "web",
        types_pb2.SERVICE_PROTOCOL_TCP,
    )
    (withdrawn,) = world.take(signaling_service_pb2.ServiceWithdrawn)
    assert (withdrawn.attach_id, withdrawn.service) == (c, "web")


@pytest.mark.parametrize("body", sorted(signaling_service._SESSION_FRAMES))
def test_frame_about_a_session_goes_to_its_manager_unread(agent: Issued, body: str) -> None:
    world = World()
    attach_id = world.attached(5, agent)
    frame = Frame(seq=2)
    getattr(frame, body).session_id = b"s" * 16
    world.send(5, frame)
    (event,) = world.take(signaling_service_pb2.SessionFrameReceived)
    assert (event.attach_id, event.session_id, event.frame) == (attach_id, b"s" * 16, frame)


def test_frame_that_no_node_sends_is_answered_and_an_unknown_one_ignored(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.send(
        5,
        Frame(seq=2, registration_accepted=signaling_pb2.RegistrationAccepted()),
        Frame(seq=3),
        Frame(seq=4, pong=signaling_pb2.SignalingPong(id=1)),
        Frame(seq=5, ping=signaling_pb2.SignalingPing(id=77)),
    )
    error, pong = world.received(5)
    assert error.error.code == signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE
    assert (pong.seq, pong.pong.id) == (4, 77)


def test_other_actors_frames_are_numbered_and_sent(agent: Issued) -> None:
    world = World()
    attach_id = world.attached(5, agent)
    ended = Frame(session_ended=signaling_pb2.SessionEnded(session_id=b"s" * 16))
    world.harness.tell(
        signaling_service_pb2.SendFrame(attach_id=attach_id, frame=ended),
        signaling_service_pb2.SendFrame(attach_id=b"gone", frame=ended),
    )
    (frame,) = world.received(5)
    assert (frame.seq, frame.session_ended.session_id) == (3, b"s" * 16)


def test_flood_is_cut_and_a_wish_in_it_is_answered(agent: Issued) -> None:
    world = World(frames_per_second=5.0)
    world.attached(5, agent)
    world.send(5, *(Frame(seq=n, ping=signaling_pb2.SignalingPing(id=n)) for n in range(2, 40)))
    assert len(world.received(5)) == 10
    world.send(5, Frame(seq=40, open_session=signaling_pb2.OpenSession(request_id=4)))
    (refused,) = world.received(5)
    assert (refused.error.code, refused.error.request_id) == (signaling_pb2.SIGNALING_CODE_RATE_LIMITED, 4)
    world.harness.advance(1)
    assert world.take(signaling_service_pb2.SignalingStatistics)[-1].refused["rate_limited"] == 29
    world.harness.advance(BURST_S)
    lines = [each for each in world.harness.logs if "frame_refused" in each["event"]]
    assert [(each["peer_id"], each["code"], each.get("count")) for each in lines] == [
        ("a1", "rate_limited", None),
        ("a1", "rate_limited", 28),
    ]


def test_goodbye_detaches_cleanly(agent: Issued) -> None:
    world = World()
    attach_id = world.attached(5, agent)
    world.send(5, Frame(seq=2, goodbye=signaling_pb2.Goodbye(reason="done")))
    (event,) = world.take(signaling_service_pb2.NodeDetached)
    assert (event.attach_id, event.is_clean, event.reason) == (attach_id, True, "done")
    world.close(5)
    assert not world.take(signaling_service_pb2.JudgeLeg)


def test_vanished_node_is_lost_when_its_leg_is_dead(connector: Issued) -> None:
    world = World()
    attach_id = world.attached(5, connector)
    world.send(5, Frame(seq=2, register_service=signaling_pb2.RegisterService(service="web")))
    world.close(5)
    assert [each.attach_id for each in world.take(signaling_service_pb2.JudgeLeg)] == [attach_id]
    assert [each.service for each in world.take(signaling_service_pb2.ServiceWithdrawn)] == ["web"]
    world.harness.tell(quic_relay_pb2.LegJudged(attach_id=attach_id, is_alive=False, reason="no_answer"))
    (event,) = world.take(signaling_service_pb2.NodeDetached)
    assert (event.attach_id, event.is_clean, event.reason) == (attach_id, False, "no_answer")


def test_vanished_node_is_lost_when_nobody_judges_its_leg(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.close(5)
    world.harness.advance(JUDGEMENT_LIMIT_S)
    assert len(world.take(signaling_service_pb2.NodeDetached)) == 1


def test_node_that_attaches_elsewhere_supersedes_itself(agent: Issued) -> None:
    world = World()
    former = world.attached(5, agent)
    world.open(6, agent)
    world.send(6, attach_request())
    (told,) = world.received(5)
    assert told.error.code == signaling_pb2.SIGNALING_CODE_SUPERSEDED
    assert told.error.message == "another process attached with this identity, from 192.0.2.1:6"
    assert world.closed == [5]
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert event.superseded_attach_id == former
    assert (event.remote, event.superseded_remote) == ("192.0.2.1:6", "192.0.2.1:5")
    (line,) = [each for each in world.harness.logs if each["event"] == "signaling_service.node_superseded"]
    assert (line["log_level"], line["peer_id"], line["former_remote"], line["remote"]) == (
        "warning", "a1", "192.0.2.1:5", "192.0.2.1:6",
    )  # fmt: skip
    world.harness.advance(1)
    assert world.take(signaling_service_pb2.SignalingStatistics)[-1].superseded_total == 1
    world.close(5)
    assert not world.take(signaling_service_pb2.JudgeLeg)


def test_node_may_begin_anew_on_the_same_stream(agent: Issued) -> None:
    world = World()
    former = world.attached(5, agent)
    world.send(5, attach_request())
    (frame,) = world.received(5)
    assert frame.WhichOneof("body") == "attach_accepted"
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert (event.superseded_attach_id, event.superseded_remote) == (former, "")
    world.send(5, Frame(seq=2, ping=signaling_pb2.SignalingPing(id=1)))
    assert [each.pong.id for each in world.received(5)] == [1]


def test_full_intermediate_says_so(agent: Issued, connector: Issued) -> None:
    world = World(max_attachments=1)
    world.attached(5, agent)
    world.open(6, connector)
    world.send(6, attach_request())
    assert codes(world.received(6)) == [signaling_pb2.SIGNALING_CODE_RATE_LIMITED]
    assert world.closed == [6]


def test_node_that_is_attached_may_come_again_while_memory_runs_short(
    agent: Issued, connector: Issued
) -> None:
    world = World()
    world.attached(5, agent)
    world.harness.io.lacks = Shortage("memory_limit", "900 of 1000 MiB")
    world.open(6, connector)
    world.send(6, attach_request())
    (frame,) = world.received(6)
    assert codes([frame]) == [signaling_pb2.SIGNALING_CODE_RATE_LIMITED]
    assert frame.error.message == "memory_limit: 900 of 1000 MiB"
    world.attached(7, agent)
    world.harness.io.lacks = None
    world.attached(8, connector)


def test_streams_that_only_open_are_bounded(
    monkeypatch: pytest.MonkeyPatch, agent: Issued, connector: Issued
) -> None:
    monkeypatch.setattr(signaling_service, "MAX_PENDING_STREAMS", 1)
    world = World()
    world.open(5, agent)
    world.open(6, connector)
    assert codes(world.received(6)) == [signaling_pb2.SIGNALING_CODE_RATE_LIMITED]
    world.open(7, agent)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_SUPERSEDED]
    world.send(7, attach_request())
    assert len(world.take(signaling_service_pb2.NodeAttached)) == 1


def test_stopping_service_sends_its_nodes_elsewhere_and_ends_no_session(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.harness.stop()
    (frame,) = world.received(5)
    assert frame.goodbye.reason == "shutting_down"
    assert world.closed == [5]
    assert not world.take(signaling_service_pb2.NodeDetached)


def test_figures_are_reported_at_most_once_a_second(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.harness.advance(1)
    report = world.take(signaling_service_pb2.SignalingStatistics)[-1]
    assert (report.attachments, report.attached_total) == (1, 1)
    assert (report.frames_received, report.frames_sent) == (1, 2)
    world.harness.advance(10)
    assert not world.take(signaling_service_pb2.SignalingStatistics)


def test_bytes_of_an_unknown_stream_are_dropped() -> None:
    world = World()
    world.feed(99, b"\0\0\0\1x")
    world.close(99)
    assert world.harness.is_alive


# Sessions that do not fit one frame


GRANT = grant_pb2.SealedGrant(claims=b"x" * 1000)


def resuming(*numbers: int, more: bool, seq: int = 1) -> Frame:
    entries = [
        signaling_pb2.ResumeSession(session_id=number.to_bytes(16, "big"), grant=GRANT) for number in numbers
    ]
    if seq > 1:
        return Frame(seq=seq, resume_more=signaling_pb2.ResumeMore(resume=entries, has_more=more))
    request = attach_request()
    request.attach_request.resume.extend(entries)
    request.attach_request.has_more = more
    return request


def test_node_is_attached_behind_the_last_of_its_frames(connector: Issued) -> None:
    world = World()
    world.open(5, connector)
    world.send(5, resuming(1, 2, more=True), resuming(3, more=True, seq=2))
    assert world.received(5) == []
    assert not world.take(signaling_service_pb2.NodeAttached)
    world.send(5, resuming(4, more=False, seq=3))
    (accepted,) = world.received(5)
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert event.attach_id == accepted.attach_accepted.attach_id
    assert [int.from_bytes(each.session_id, "big") for each in event.resume] == [1, 2, 3, 4]
    assert event.node.id == "c1"
    world.send(5, Frame(seq=4, ping=signaling_pb2.SignalingPing(id=1)))
    assert world.received(5)[0].HasField("pong")


@pytest.mark.parametrize(
    "frame",
    [
        Frame(seq=2, ping=signaling_pb2.SignalingPing(id=1)),
        Frame(seq=2),
        resuming(more=True, seq=2),
        resuming(more=False, seq=2),
        resuming(1, more=False, seq=3),
    ],
    ids=["ping", "unknown", "empty", "empty-last", "gap"],
)
def test_anything_but_what_was_announced_ends_the_stream(connector: Issued, frame: Frame) -> None:
    world = World()
    world.open(5, connector)
    world.send(5, resuming(1, more=True), frame)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert world.closed == [5]
    assert not world.take(signaling_service_pb2.NodeAttached)


def test_sessions_out_of_place_are_refused(connector: Issued) -> None:
    world = World()
    world.open(5, connector)
    first = Frame(seq=1, resume_more=resuming(1, more=False, seq=2).resume_more)
    world.send(5, first)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    world.attached(6, connector)
    world.send(6, resuming(1, more=False, seq=2))
    assert codes(world.received(6)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]


def test_node_that_goes_on_for_too_long_is_let_go(connector: Issued) -> None:
    world = World()
    world.open(5, connector)
    world.send(5, resuming(1, more=True))
    world.harness.advance(ATTACH_LIMIT_S / 2)
    world.send(5, resuming(2, more=True, seq=2))
    world.harness.advance(ATTACH_LIMIT_S / 2)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert world.closed == [5]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("bound", ["MAX_RESUMED_SESSIONS", "MAX_RESUME_BYTES"])
def test_sessions_of_one_attachment_are_bounded(
    connector: Issued, monkeypatch: pytest.MonkeyPatch, bound: str, is_first: bool
) -> None:
    monkeypatch.setattr(signaling_streams, "MAX_FRAME_BYTES", 0)
    monkeypatch.setattr(signaling_streams, bound, 2 if bound == "MAX_RESUMED_SESSIONS" else 2500)
    world = World()
    world.open(5, connector)
    if is_first:
        world.send(5, resuming(1, 2, 3, more=False))
    else:
        world.send(5, resuming(1, 2, more=True), resuming(3, more=False, seq=2))
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert not world.take(signaling_service_pb2.NodeAttached)


def test_unfinished_attachments_of_all_nodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaling_service, "MAX_INCOMPLETE_BYTES", 5000)
    world = World()
    for number in (1, 2):
        world.open(number, issue(Role.CONNECTOR, f"c{number}"))
        world.send(number, resuming(1, more=True), resuming(2, more=True, seq=2))
        assert world.received(number) == []
    world.send(1, resuming(3, more=True, seq=3))
    assert codes(world.received(1)) == [signaling_pb2.SIGNALING_CODE_RATE_LIMITED]
    world.send(2, resuming(3, more=False, seq=3))
    assert len(world.take(signaling_service_pb2.NodeAttached)) == 1


def test_node_may_begin_anew_with_many_sessions_on_the_same_stream(connector: Issued) -> None:
    world = World()
    world.attached(5, connector)
    world.send(5, resuming(1, more=True))
    assert world.received(5) == []
    world.send(5, resuming(2, more=False, seq=2))
    (event,) = world.take(signaling_service_pb2.NodeAttached)
    assert (len(event.resume), len(event.superseded_attach_id)) == (2, 16)
    assert [frame.WhichOneof("body") for frame in world.received(5)] == ["attach_accepted"]


def test_node_that_begins_anew_and_never_ends_is_let_go(connector: Issued) -> None:
    world = World()
    attach_id = world.attached(5, connector)
    world.send(5, resuming(1, more=True))
    world.harness.advance(ATTACH_LIMIT_S)
    assert codes(world.received(5)) == [signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE]
    assert [each.attach_id for each in world.take(signaling_service_pb2.JudgeLeg)] == [attach_id]


def test_beginning_anew_is_no_way_around_the_limit_of_frames(connector: Issued) -> None:
    world = World(frames_per_second=5.0)
    world.open(5, connector)
    world.send(5, *[attach_request()] * 50)
    answers = world.received(5)
    assert codes(answers)[-1] == signaling_pb2.SIGNALING_CODE_RATE_LIMITED
    assert len(answers) <= 12
    assert world.closed == [5]


def pong(seq: int, ping_id: int) -> Frame:
    return Frame(seq=seq, pong=signaling_pb2.SignalingPong(id=ping_id))


def test_round_trip_to_a_node_is_measured_as_soon_as_it_is_attached(agent: Issued) -> None:
    world = World()
    attach_id = world.attached(5, agent)
    assert world.pings == [1]
    world.harness.advance(0.08)
    world.send(5, pong(2, 1))
    (measured,) = world.take(signaling_service_pb2.RoundTripMeasured)
    assert (measured.attach_id, measured.rtt_us) == (attach_id, 80_000)


def test_node_that_shows_that_it_lives_is_measured_again_but_not_as_often_as_it_likes(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.send(5, pong(2, 1))
    world.harness.advance(10)
    for seq in range(3, 23):
        world.send(5, Frame(seq=seq, ping=signaling_pb2.SignalingPing(id=seq)))
    assert len(world.received(5)) == 20
    assert world.pings == [1, 2]


def test_answer_to_a_ping_that_nobody_sent_measures_nothing(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.send(5, pong(2, 0), pong(3, 7), pong(4, 1), pong(5, 1))
    assert len(world.take(signaling_service_pb2.RoundTripMeasured)) == 1


def test_node_that_answers_late_is_not_farther_away_than_anybody_can_be(agent: Issued) -> None:
    world = World()
    world.attached(5, agent)
    world.harness.advance(3600)
    world.send(5, pong(2, 1))
    (measured,) = world.take(signaling_service_pb2.RoundTripMeasured)
    assert measured.rtt_us == 2_000_000
