"""The relay actor with legs over gRPC: alone, beside QUIC legs, and in place of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.actors.test_quic_relay import ATTACH_A, ATTACH_C, SESSION, Node, Site
from tests.pki_fixtures import issue
from ztna.access.identity import Role, fingerprint, identity_of
from ztna.pki.authority import Issued
from ztna.quic.budget import TYPICAL_STEP_S
from ztna.relay import frame
from ztna.relay.hub import (
    HELLO_LIMIT_S,
    JUDGEMENT_LIMIT_S,
    MAX_HELLO_BURST,
    MAX_LEGS_PER_NODE,
    SILENCE_LIMIT_S,
)
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION
from ztna.v1 import (
    quic_relay_pb2,
    relay_pb2,
    session_manager_pb2,
    signaling_service_pb2,
    types_pb2,
)


@dataclass
class Stream:
    """A node's gRPC stream, and what the relay wrote to it."""

    number: int
    issued: Issued
    frames: list[relay_pb2.RelayFrame] = field(default_factory=list)
    closed: quic_relay_pb2.SendRelayStream | None = None

    @property
    def datagrams(self) -> list[bytes]:
        return [each for frame in self.frames for each in frame.datagrams]

    @property
    def control(self) -> list[str]:
        return [each.control.WhichOneof("body") or "" for each in self.frames if each.HasField("control")]

    @property
    def reason(self) -> str:
        return "" if self.closed is None else self.closed.reason


class StreamSite(Site):
    """A site with streams, too. What is written to one is on its way at once, unless it is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[int, Stream] = {}
        self.stuck: set[int] = set()

    def open(self, role: Role, name: str, *, issued: Issued | None = None) -> Stream:
        issued = issued or issue(role, name)
        stream = Stream(len(self.streams) + 1, issued)
        self.streams[stream.number] = stream
        self.collect(
            quic_relay_pb2.RelayStreamOpened(
                stream=stream.number,
                certificate=issued.certificate.public_bytes(Encoding.DER),
                remote="192.0.2.1:9",
            )
        )
        return stream

    def collect(
        self, *messages: quic_relay_pb2.RelayStreamOpened | quic_relay_pb2.RelayStreamReceived
    ) -> None:
        """Tell, and hand what the relay wrote to its streams."""
        self.tell(*messages)
        self.hand_over()

    def hand_over(self) -> None:
        while written := self.take(quic_relay_pb2.SendRelayStream):
            for message in written:
                stream = self.streams[message.stream]
                if message.close:
                    assert stream.closed is None
                    stream.closed = message
                    continue
                assert stream.closed is None
                stream.frames.append(message.frame)
                if message.frame.datagrams and stream.number not in self.stuck:
                    self.tell(quic_relay_pb2.RelayStreamWritten(stream=stream.number))

    def say(self, stream: Stream, frame: relay_pb2.RelayFrame) -> None:
        self.collect(quic_relay_pb2.RelayStreamReceived(stream=stream.number, frame=frame))

    def greet(self, stream: Stream, attach_id: bytes) -> list[str]:
        stream.frames.clear()
        hello = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=attach_id))
        self.say(stream, relay_pb2.RelayFrame(control=hello))
        return stream.control

    def relay(self, stream: Stream, *datagrams: bytes) -> None:
        self.say(stream, relay_pb2.RelayFrame(datagrams=datagrams))

    def attach_stream(self, stream: Stream, attach_id: bytes) -> None:
        identity = identity_of(stream.issued.certificate)
        self.tell(
            signaling_service_pb2.NodeAttached(
                attach_id=attach_id,
                node=types_pb2.NodeIdentity(
                    role=types_pb2.ROLE_AGENT if identity.role is Role.AGENT else types_pb2.ROLE_CONNECTOR,
                    id=identity.id,
                    fingerprint=fingerprint(stream.issued.certificate),
                ),
            )
        )

    def refused(self) -> dict[str, int]:
        self.advance(1.1)
        return dict(self.take(quic_relay_pb2.RelayStatistics)[-1].refused)

    def both_over_grpc(self) -> tuple[Stream, Stream, int, int]:
        agent, connector = self.open(Role.AGENT, "a1"), self.open(Role.CONNECTOR, "c1")
        self.attach_stream(agent, ATTACH_A)
        self.attach_stream(connector, ATTACH_C)
        assert self.greet(agent, ATTACH_A) == ["accepted"]
        assert self.greet(connector, ATTACH_C) == ["accepted"]
        return agent, connector, *self.bind()

    def mixed(self) -> tuple[Stream, Node, int, int]:
        """An agent over gRPC, a connector over QUIC."""
        agent, connector = self.open(Role.AGENT, "a1"), self.dial(Role.CONNECTOR, "c1")
        self.attach_stream(agent, ATTACH_A)
        self.attach(connector, ATTACH_C)
        assert self.greet(agent, ATTACH_A) == ["accepted"]
        assert self.hello(connector, ATTACH_C) == ["accepted"]
        return agent, connector, *self.bind()


@pytest.fixture
def site() -> Iterator[StreamSite]:
    site = StreamSite()
    yield site
    assert site.harness.is_alive, site.harness.failure


def test_leg_over_grpc_is_told_with_its_carrier_and_no_address(site: StreamSite) -> None:
    site.both_over_grpc()
    opened = site.take(quic_relay_pb2.LegOpened)
    assert [(each.attach_id, each.carrier) for each in opened] == [(ATTACH_A, "grpc"), (ATTACH_C, "grpc")]
    assert all(stream.control == ["accepted"] for stream in site.streams.values())
    site.advance(1.1)
    assert site.take(quic_relay_pb2.RelayStatistics)[-1].legs == 2


def test_packets_pass_both_ways_between_streams(site: StreamSite) -> None:
    agent, connector, agent_channel, connector_channel = site.both_over_grpc()
    site.relay(agent, *(frame.pack(agent_channel, bytes([n])) for n in range(10)))
    site.relay(connector, frame.pack(connector_channel, b"back"))
    assert connector.datagrams == [frame.pack(connector_channel, bytes([n])) for n in range(10)]
    assert [len(each.datagrams) for each in connector.frames if each.datagrams] == [10]  # in one frame
    assert agent.datagrams == [frame.pack(agent_channel, b"back")]
    site.advance(1.1)
    figures = site.take(quic_relay_pb2.RelayStatistics)[-1]
    assert (figures.packets_relayed, figures.bytes_relayed) == (11, 14)
    assert [(each.session_id, each.packets) for each in figures.sessions] == [(SESSION, 11)]


def test_packets_pass_between_a_stream_and_a_quic_leg(site: StreamSite) -> None:
    agent, connector, agent_channel, connector_channel = site.mixed()
    site.relay(agent, frame.pack(agent_channel, b"x" * 1200))
    connector.connection.send_datagram(frame.pack(connector_channel, b"y" * 1200))
    site.run()
    site.hand_over()
    assert connector.datagrams == [frame.pack(connector_channel, b"x" * 1200)]
    assert agent.datagrams == [frame.pack(agent_channel, b"y" * 1200)]


def test_last_accepted_leg_has_the_channels_and_the_former_one_is_closed(site: StreamSite) -> None:
    agent, connector, agent_channel, connector_channel = site.mixed()
    quic = site.dial(Role.AGENT, "a1", issued=agent.issued)
    assert site.hello(quic, ATTACH_A) == ["accepted"]
    site.hand_over()
    assert agent.reason == "replaced"
    agent.frames.clear()
    connector.connection.send_datagram(frame.pack(connector_channel, b"to quic"))
    site.run()
    site.relay(agent, frame.pack(agent_channel, b"from a former leg"))
    assert quic.datagrams == [frame.pack(agent_channel, b"to quic")]
    assert agent.datagrams == connector.datagrams == []
    again = site.open(Role.AGENT, "a1", issued=agent.issued)
    assert site.greet(again, ATTACH_A) == ["accepted"]
    site.run()
    assert quic.closed is not None
    assert quic.closed.message == "replaced"
    connector.connection.send_datagram(frame.pack(connector_channel, b"to grpc"))
    site.run()
    site.hand_over()
    assert again.datagrams == [frame.pack(agent_channel, b"to grpc")]
    assert len(quic.datagrams) == 1
    assert [each.carrier for each in site.take(quic_relay_pb2.LegOpened)][-2:] == ["quic", "grpc"]


def test_what_waits_for_a_stuck_stream_goes_to_the_leg_that_replaces_it(site: StreamSite) -> None:
    agent, connector, agent_channel, connector_channel = site.mixed()
    # Before the packets: dialling takes longer than any of them may wait.
    quic = site.dial(Role.AGENT, "a1", issued=agent.issued)
    site.stuck.add(agent.number)
    for packet in (b"written", b"waits"):
        connector.connection.send_datagram(frame.pack(connector_channel, packet))
        site.run()
        site.hand_over()
    assert agent.datagrams == [frame.pack(agent_channel, b"written")]
    site.hello(quic, ATTACH_A)
    assert quic.datagrams == [frame.pack(agent_channel, b"waits")]


def test_stream_that_takes_nothing_holds_few_packets_and_drops_the_oldest(site: StreamSite) -> None:
    agent, connector, agent_channel, connector_channel = site.both_over_grpc()
    site.stuck.add(agent.number)
    site.relay(connector, frame.pack(connector_channel, b"first"))
    count = 3 * MAX_QUEUED_PACKETS_PER_SESSION
    for number in range(count):
        site.relay(connector, frame.pack(connector_channel, b"%d" % number))
    assert agent.datagrams == [frame.pack(agent_channel, b"first")]
    site.tell(quic_relay_pb2.RelayStreamWritten(stream=agent.number))
    site.hand_over()
    oldest = count - MAX_QUEUED_PACKETS_PER_SESSION
    assert agent.datagrams[1] == frame.pack(agent_channel, b"%d" % oldest)
    assert len(agent.datagrams) == 1 + frame.MAX_BATCH_PACKETS
    site.advance(1.1)
    dropped = site.take(quic_relay_pb2.RelayStatistics)[-1].dropped
    assert dropped["session_queue_full"] == count - MAX_QUEUED_PACKETS_PER_SESSION


@pytest.mark.parametrize(
    ("issued", "reason"),
    [
        (issue(Role.INTERMEDIATE, "i2"), "wrong_role"),
        (issue(Role.AGENT, "a1", expired=True), "expired"),
        (issue(Role.AGENT, "a1", foreign=True), "foreign_ca"),
    ],
    ids=["role", "expired", "foreign"],
)
def test_stream_of_nobody_we_know_is_refused_and_counted(
    site: StreamSite, issued: Issued, reason: str
) -> None:
    stream = site.open(Role.AGENT, "a1", issued=issued)
    assert stream.closed is not None
    assert stream.closed.is_authentication_failure
    assert reason in stream.reason
    site.say(stream, relay_pb2.RelayFrame(ping=1))  # it does not know yet
    assert stream.frames == []
    assert site.refused() == {stream.reason: 1}


def test_flood_of_streams_that_are_judged_leaves_room_for_handshakes(site: StreamSite) -> None:
    expired = issue(Role.AGENT, "a1", expired=True)
    for _ in range(200):
        assert site.open(Role.AGENT, "a1", issued=expired).closed is not None
    assert site.budget.spent_s >= 200 * TYPICAL_STEP_S
    assert site.budget.is_open(site.now)
    assert site.dial(Role.AGENT, "a2").connection.is_established


def test_stream_whose_certificate_is_unreadable_is_refused(site: StreamSite) -> None:
    site.streams[1] = Stream(1, issue(Role.AGENT, "a1"))
    site.collect(quic_relay_pb2.RelayStreamOpened(stream=1, remote="192.0.2.1:9"))
    assert site.streams[1].closed is not None


def test_stream_without_a_hello_is_closed_in_time(site: StreamSite) -> None:
    stream = site.open(Role.AGENT, "a1")
    site.advance(HELLO_LIMIT_S - 1)
    site.say(stream, relay_pb2.RelayFrame(ping=1))
    assert stream.closed is None
    site.advance(1.1)
    site.hand_over()
    assert stream.reason == "no_hello"
    assert site.refused()["no_hello"] == 1


@pytest.mark.parametrize("attach_id", [ATTACH_C, b"?" * 16, b""])
def test_stream_is_bound_to_its_own_attachment_only(site: StreamSite, attach_id: bytes) -> None:
    agent, connector = site.open(Role.AGENT, "a1"), site.open(Role.CONNECTOR, "c1")
    site.attach_stream(connector, ATTACH_C)
    assert site.greet(agent, attach_id) == ["rejected"]
    assert not site.take(quic_relay_pb2.LegOpened)
    assert sum(site.refused().values()) == 1


def test_channel_of_another_leg_and_malformed_packets_reach_nobody(site: StreamSite) -> None:
    agent, connector, agent_channel, connector_channel = site.both_over_grpc()
    thief = site.open(Role.AGENT, "a2")
    site.attach_stream(thief, b"t" * 16)
    site.greet(thief, b"t" * 16)
    for channel in {agent_channel, connector_channel}:
        site.relay(thief, frame.pack(channel, b"stolen"))
    site.relay(thief, b"", b"\0", b"\0\0x", b"\xff\xffx", b"\0\1" + bytes(1201))
    assert agent.datagrams == connector.datagrams == []
    site.advance(1.1)
    dropped = site.take(quic_relay_pb2.RelayStatistics)[-1].dropped
    assert dropped["unknown_channel"] >= 2
    assert dropped["relay_frame_short"] == 2
    assert (dropped["relay_channel_reserved"], dropped["relay_frame_oversize"]) == (1, 1)
    assert thief.closed is None


def test_batch_beyond_the_limit_ends_the_stream(site: StreamSite) -> None:
    agent, connector, agent_channel, _ = site.both_over_grpc()
    site.relay(agent, *[frame.pack(agent_channel, b"x")] * (frame.MAX_BATCH_PACKETS + 1))
    assert agent.reason == "batch_too_large"
    assert connector.datagrams == []
    assert site.refused()["batch_too_large"] == 1


def test_control_frame_that_is_no_hello_ends_the_stream(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    accepted = relay_pb2.LegFrame(accepted=relay_pb2.LegAccepted(max_packet_bytes=1200))
    site.say(agent, relay_pb2.RelayFrame(control=accepted))
    assert agent.reason == "unexpected_leg_frame"


def test_stream_that_says_hello_all_the_time_is_closed(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    for _ in range(int(MAX_HELLO_BURST) + 1):
        site.greet(agent, ATTACH_A)
    assert agent.reason == "too_many_hellos"


def test_one_node_has_a_few_legs_at_most_of_both_kinds_together(site: StreamSite) -> None:
    first = site.open(Role.AGENT, "a1")
    for _ in range(MAX_LEGS_PER_NODE - 1):
        site.dial(Role.AGENT, "a1", issued=first.issued)
    assert first.closed is None
    site.dial(Role.AGENT, "a1", issued=first.issued)
    site.hand_over()
    assert first.reason == "too_many_legs"
    for _ in range(2 * MAX_LEGS_PER_NODE):
        site.open(Role.AGENT, "a1", issued=first.issued)
    site.advance(1.1)
    assert site.take(quic_relay_pb2.RelayStatistics)[-1].legs == MAX_LEGS_PER_NODE


def test_ping_is_answered(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    site.say(agent, relay_pb2.RelayFrame(ping=7))
    assert agent.frames[-1].pong == 7


def test_stream_that_answers_is_judged_alive(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    site.tell(signaling_service_pb2.JudgeLeg(attach_id=ATTACH_A))
    site.hand_over()
    ping = agent.frames[-1].ping
    assert ping
    site.say(agent, relay_pb2.RelayFrame(pong=ping + 1))
    assert site.take(quic_relay_pb2.LegJudged) == []
    site.say(agent, relay_pb2.RelayFrame(pong=ping))
    (judged,) = site.take(quic_relay_pb2.LegJudged)
    assert (judged.attach_id, judged.is_alive) == (ATTACH_A, True)


def test_stream_that_keeps_silent_is_judged_dead_and_given_up_in_time(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    site.tell(signaling_service_pb2.JudgeLeg(attach_id=ATTACH_A))
    site.advance(JUDGEMENT_LIMIT_S + 0.1)
    (judged,) = site.take(quic_relay_pb2.LegJudged)
    assert (judged.is_alive, judged.reason) == (False, "no_answer")
    site.advance(SILENCE_LIMIT_S)
    site.hand_over()
    assert agent.reason == "no_answer"


def test_stream_that_ends_is_news(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    site.tell(quic_relay_pb2.RelayStreamEnded(stream=agent.number, reason="stream_ended"))
    (judged,) = site.take(quic_relay_pb2.LegJudged)
    assert (judged.attach_id, judged.is_alive, judged.reason) == (ATTACH_A, False, "stream_ended")
    site.tell(quic_relay_pb2.RelayStreamEnded(stream=agent.number, reason="stream_ended"))
    site.tell(quic_relay_pb2.RelayStreamWritten(stream=agent.number))
    assert site.take(quic_relay_pb2.LegJudged) == []
    site.advance(2 * SILENCE_LIMIT_S)


def test_detached_node_loses_its_stream(site: StreamSite) -> None:
    agent, connector, agent_channel, _ = site.both_over_grpc()
    site.tell(signaling_service_pb2.NodeDetached(attach_id=ATTACH_A))
    site.hand_over()
    assert agent.reason == "detached"
    site.relay(agent, frame.pack(agent_channel, b"late"))
    assert connector.datagrams == []


def test_released_session_leaves_nothing_in_the_queue_of_a_stream(site: StreamSite) -> None:
    agent, connector, _, connector_channel = site.both_over_grpc()
    site.stuck.add(agent.number)
    for packet in (b"written", b"waits"):
        site.relay(connector, frame.pack(connector_channel, packet))
    site.tell(session_manager_pb2.ReleaseChannels(session_id=SESSION))
    site.tell(quic_relay_pb2.RelayStreamWritten(stream=agent.number))
    site.hand_over()
    assert len(agent.datagrams) == 1


def test_stopping_relay_closes_its_streams(site: StreamSite) -> None:
    agent, *_ = site.both_over_grpc()
    site.harness.stop()
    site._settle()
    site.hand_over()
    assert agent.reason == "shutting_down"
    site.harness = StreamSite().harness
