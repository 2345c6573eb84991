"""The relay leg actor against a real server connection in memory."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from actors.base import Context
from actors.grpc_relay_stream import RelayStreamOwner
from actors.relay_leg import STATISTICS_INTERVAL_S, RelayLeg
from tests.manual_io import ActorHarness, ManualIo, actor_harness
from tests.unit.quic.identities import AGENT, INTERMEDIATE, leg_options
from ztna.quic import events
from ztna.quic.connection import Connection
from ztna.quic.demux import destination_cid
from ztna.relay import frame
from ztna.relay.carrier import CarrierMode
from ztna.relay.quic_carrier import DEAD_AFTER_S, PING_INTERVAL_S
from ztna.signaling.framing import FrameDecoder, encode
from ztna.v1 import qad_pb2, relay_leg_pb2, relay_pb2, types_pb2, udp_socket_pb2

MessageT = TypeVar("MessageT", bound=Message)
ATTACH_ID = b"a" * 16
S1 = b"1" * 16


class TestedLeg(RelayLeg):
    __test__ = False

    def __init__(self, context: Context, host: str) -> None:
        options = leg_options(AGENT, "intermediate", is_client=True)
        super().__init__(context, host, 4433, lambda: Connection.client(options))


class World:
    """The actor, its intermediate, and what the neighbours heard."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.io = ManualIo()
        self.leg: ActorHarness[TestedLeg] = actor_harness(TestedLeg, host, key="i1", io=self.io)
        self.server: Connection | None = None
        self.hellos: list[bytes] = []
        self.datagrams: list[bytes] = []
        self.signaling = bytearray()
        self.heard: list[Message] = []
        self.owned: set[bytes] = set()
        self.is_cut = False
        self._decoder = FrameDecoder()

    def of(self, kind: type[MessageT]) -> list[MessageT]:
        return [message for message in self.heard if isinstance(message, kind)]

    def exchange(self) -> None:
        for _ in range(1000):
            moved = False
            for message in self.leg.take_emitted():
                if isinstance(message, udp_socket_pb2.SendDatagrams):
                    moved = True
                    if not self.is_cut:
                        self._receive(list(message.datagrams))
                elif isinstance(message, udp_socket_pb2.UpdateConnectionIds):
                    self._own(message)
                else:
                    self.heard.append(message)
            moved = self._answer() or moved
            if not moved:
                return
        raise AssertionError("the ends never come to rest")

    def _own(self, message: udp_socket_pb2.UpdateConnectionIds) -> None:
        assert message.intermediate_id == "i1"
        if message.forget_owner:
            self.owned.clear()
        self.owned |= set(message.added)
        self.owned -= set(message.retired)

    def _receive(self, datagrams: list[bytes]) -> None:
        if self.server is None:
            cid = destination_cid(datagrams[0])
            assert cid is not None
            options = leg_options(INTERMEDIATE, "agent", is_client=False)
            self.server = Connection.server(options, destination_cid=cid)
            self._decoder = FrameDecoder()
        self.server.receive(datagrams, self.io.time())

    def _answer(self) -> bool:
        if self.server is None:
            return False
        packets = []
        for _ in range(2):
            for event in self.server.events():
                match event:
                    case events.StreamDataReceived(stream_id=0):
                        for body in self._decoder.feed(event.data):
                            self.hellos.append(relay_pb2.LegFrame.FromString(body).hello.attach_id)
                    case events.StreamDataReceived():
                        self.signaling += event.data
                    case events.DatagramReceived():
                        self.datagrams.append(event.data)
                    case _:
                        pass
            packets += self.server.transmit(self.io.time())
        if packets and not self.is_cut:
            assert all(destination_cid(each) in self.owned for each in packets)
            self.leg.tell(udp_socket_pb2.DatagramsReceived(intermediate_id="i1", datagrams=packets))
        return bool(packets)

    def run(self, seconds: float) -> None:
        end = self.io.time() + seconds
        while self.io.time() < end:
            self.exchange()
            self.io.run_until(min(end, self.io.time() + 0.05))
            if self.server is not None:
                self.server.handle_timeout(self.io.time())
        self.exchange()

    def control(self, *bodies: bytes) -> None:
        assert self.server is not None
        self.server.send_stream(0, b"".join(encode(body) for body in bodies))
        self.exchange()

    def connected(self) -> World:
        self.leg.tell(relay_leg_pb2.ConnectLeg(intermediate_id="i1"))
        self.exchange()
        assert len(self.of(relay_leg_pb2.LegConnected)) == 1
        return self

    def present(self, attach_id: bytes = ATTACH_ID) -> None:
        self.leg.tell(relay_leg_pb2.PresentAttachment(intermediate_id="i1", attach_id=attach_id))
        self.exchange()

    def up(self) -> World:
        self.connected()
        self.present()
        self.control(ACCEPTED)
        assert len(self.of(relay_leg_pb2.RelayLegUp)) == 1
        return self

    def bind(self, channel: int) -> None:
        self.leg.tell(relay_leg_pb2.BindChannel(intermediate_id="i1", session_id=S1, channel=channel))
        self.exchange()


ACCEPTED = relay_pb2.LegFrame(accepted=relay_pb2.LegAccepted(max_packet_bytes=1200)).SerializeToString()
REJECTED = relay_pb2.LegFrame(rejected=relay_pb2.LegRejected(reason="unknown_attachment")).SerializeToString()


def test_leg_connects_presents_its_attachment_and_comes_up() -> None:
    world = World().up()
    assert world.hellos == [ATTACH_ID]
    (connected,) = world.of(relay_leg_pb2.LegConnected)
    assert (connected.remote.host, connected.remote.port) == ("127.0.0.1", 4433)


def test_sealed_packets_go_both_ways() -> None:
    world = World().up()
    world.bind(7)
    (path,) = world.of(relay_leg_pb2.RelayPathChanged)
    assert (path.session_id, path.is_up, path.max_packet_bytes) == (S1, True, 1200)
    world.leg.tell(relay_leg_pb2.SendSealed(intermediate_id="i1", session_id=S1, packets=[b"a", b"b"]))
    world.exchange()
    assert world.datagrams == [frame.pack(7, b"a"), frame.pack(7, b"b")]
    assert world.server is not None
    world.server.send_datagram(frame.pack(7, b"c"))
    world.exchange()
    (sealed,) = world.of(relay_leg_pb2.SealedReceived)
    assert (sealed.session_id, list(sealed.packets)) == (S1, [b"c"])
    world.leg.tell(relay_leg_pb2.ReleaseChannel(intermediate_id="i1", session_id=S1))
    world.exchange()
    assert [each.is_up for each in world.of(relay_leg_pb2.RelayPathChanged)] == [True, False]


def test_many_packets_at_once_leave_in_one_message() -> None:
    world = World().up()
    world.bind(7)
    world.leg.tell(relay_leg_pb2.SendSealed(intermediate_id="i1", session_id=S1, packets=[bytes(1200)] * 60))
    sent = [m for m in world.leg.take_emitted() if isinstance(m, udp_socket_pb2.SendDatagrams)]
    assert [len(message.datagrams) for message in sent] == [60]


def test_signaling_bytes_go_both_ways() -> None:
    world = World().connected()
    world.leg.tell(relay_leg_pb2.SendLegSignaling(intermediate_id="i1", data=b"up"))
    world.exchange()
    assert world.signaling == b"up"
    assert world.server is not None
    world.server.send_stream(4, b"down")
    world.exchange()
    assert [each.data for each in world.of(relay_leg_pb2.LegSignalingReceived)] == [b"down"]


def test_observed_address_is_told() -> None:
    world = World().connected()
    world.present()
    address = types_pb2.TransportAddress(host="203.0.113.5", port=1234)
    observed = relay_pb2.LegFrame(observed_address=qad_pb2.ObservedAddress(address=address))
    world.control(observed.SerializeToString(), relay_pb2.LegFrame().SerializeToString() + b"\x78\x01")
    (told,) = world.of(relay_leg_pb2.AddressObserved)
    assert told.address == address


def test_rejected_attachment_keeps_the_connection_for_the_next_one() -> None:
    world = World().connected()
    world.present()
    world.control(REJECTED)
    assert world.of(relay_leg_pb2.RelayLegDown) == []
    world.present(b"b" * 16)
    world.control(ACCEPTED, ACCEPTED)
    assert len(world.of(relay_leg_pb2.RelayLegUp)) == 1


def test_observed_address_that_is_none_costs_the_leg() -> None:
    world = World().up()
    address = types_pb2.TransportAddress(host="nowhere", port=1)
    observed = relay_pb2.LegFrame(observed_address=qad_pb2.ObservedAddress(address=address))
    world.control(observed.SerializeToString())
    assert [each.reason for each in world.of(relay_leg_pb2.RelayLegDown)] == ["malformed_address"]
    assert world.of(relay_leg_pb2.AddressObserved) == []


def test_malformed_control_frame_costs_the_leg_and_leaves_no_connection_id_behind() -> None:
    world = World().up()
    world.control(b"\xff\xff", ACCEPTED)
    assert [each.reason for each in world.of(relay_leg_pb2.RelayLegDown)] == ["malformed_leg_frame"]
    assert world.owned == set()


def test_silent_intermediate_is_noticed_and_the_leg_comes_back_with_its_channels() -> None:
    world = World().up()
    world.bind(7)
    world.is_cut = True
    world.run(PING_INTERVAL_S + DEAD_AFTER_S + 0.5)
    assert world.of(relay_leg_pb2.RelayLegDown)[0].reason == "no_answer"
    world.is_cut = False
    world.server = None
    world.run(5.0)
    assert world.hellos == [ATTACH_ID, ATTACH_ID]
    world.control(ACCEPTED)
    assert [each.is_up for each in world.of(relay_leg_pb2.RelayPathChanged)] == [True, False, True]


def test_disconnected_leg_stays_away_and_rests() -> None:
    world = World().up()
    world.leg.tell(relay_leg_pb2.DisconnectLeg(intermediate_id="i1"))
    world.exchange()
    assert [each.reason for each in world.of(relay_leg_pb2.RelayLegDown)] == ["disconnected"]
    assert world.owned == set()
    world.run(1.0)
    assert world.io.next_deadline() is None


def test_connected_leg_is_told_again_to_whoever_asks() -> None:
    world = World().connected()
    world.leg.tell(relay_leg_pb2.ConnectLeg(intermediate_id="i1"))
    world.exchange()
    assert len(world.of(relay_leg_pb2.LegConnected)) == 2


def test_name_that_does_not_resolve_is_told() -> None:
    world = World("no.such.host")
    world.leg.tell(relay_leg_pb2.ConnectLeg(intermediate_id="i1"))
    world.exchange()
    (down,) = world.of(relay_leg_pb2.RelayLegDown)
    assert (down.reason, down.detail) == ("unresolvable", "no.such.host: no.such.host is unknown")
    world.io.names["no.such.host"] = ["127.0.0.1"]
    world.run(1.0)
    assert len(world.of(relay_leg_pb2.LegConnected)) == 1


def test_stopped_leg_says_goodbye() -> None:
    world = World().up()
    world.leg.stop()
    world.exchange()
    assert world.server is not None
    assert world.server.is_closed
    assert world.leg.failure is None


def test_figures_are_reported() -> None:
    world = World().up()
    world.leg.tell(relay_leg_pb2.SendSealed(intermediate_id="i1", session_id=S1, packets=[b"a"]))
    world.run(STATISTICS_INTERVAL_S + 0.1)
    figures = world.of(relay_leg_pb2.LegStatistics)[-1]
    assert dict(figures.dropped) == {"no_channel": 1}


class FakeStream:
    """What the actor does with a gRPC stream."""

    def __init__(self, owner: RelayStreamOwner) -> None:
        self.owner = owner
        self.sent: list[relay_pb2.RelayFrame] = []
        self.is_closed = False

    def send(self, frame: relay_pb2.RelayFrame) -> None:
        self.sent.append(frame)

    def close(self) -> None:
        self.is_closed = True


class LegWithStream(RelayLeg):
    """One that may use gRPC alone."""

    def __init__(self, context: Context) -> None:
        self.streams: list[FakeStream] = []
        super().__init__(
            context, "127.0.0.1", 4433, _no_connection, open_stream=self._open, mode=CarrierMode.GRPC
        )

    def _open(self, owner: RelayStreamOwner) -> FakeStream:
        self.streams.append(FakeStream(owner))
        return self.streams[-1]


def _no_connection() -> Connection:
    raise AssertionError("QUIC is not to be used")


def test_leg_over_grpc_translates_frames_and_ends_with_its_stream() -> None:
    leg = actor_harness(LegWithStream, key="i1")
    leg.tell(
        relay_leg_pb2.ConnectLeg(intermediate_id="i1"),
        relay_leg_pb2.PresentAttachment(intermediate_id="i1", attach_id=b"a" * 16),
        relay_leg_pb2.BindChannel(intermediate_id="i1", session_id=b"s" * 16, channel=7),
    )
    (stream,) = leg.concern.streams
    stream.owner.stream_opened(object())  # a former one's: nothing happens
    assert stream.sent == []
    stream.owner.stream_opened(stream)
    assert [each.control.hello.attach_id for each in stream.sent if each.HasField("control")] == [b"a" * 16]
    accepted = relay_pb2.LegFrame(accepted=relay_pb2.LegAccepted(max_packet_bytes=1200))
    stream.owner.stream_frame(stream, relay_pb2.RelayFrame(control=accepted))
    leg.tell(relay_leg_pb2.SendSealed(intermediate_id="i1", session_id=b"s" * 16, packets=[b"x"]))
    assert list(stream.sent[-1].datagrams) == [b"\0\7x"]
    stream.owner.stream_written(stream)
    stream.owner.stream_frame(stream, relay_pb2.RelayFrame(datagrams=[b"\0\7y"]))
    leg.tell(relay_leg_pb2.ReportLeg(intermediate_id="i1"))
    emitted = leg.take_emitted()
    assert [type(each).__name__ for each in emitted] == [
        "RelayLegUp", "RelayPathChanged", "SealedReceived", "LegReported",
    ]  # fmt: skip
    assert [each.carrier for each in emitted if isinstance(each, relay_leg_pb2.RelayLegUp)] == ["grpc"]
    assert [each.carrier for each in emitted if isinstance(each, relay_leg_pb2.LegReported)] == ["grpc"]
    observed = relay_pb2.LegFrame(observed_address=qad_pb2.ObservedAddress())
    stream.owner.stream_frame(stream, relay_pb2.RelayFrame(control=observed))
    assert leg.take_emitted() == []  # a TCP address is no candidate
    stream.owner.stream_closed(stream, "unavailable", "gone", False)
    down = [each for each in leg.take_emitted() if isinstance(each, relay_leg_pb2.RelayLegDown)]
    assert [(each.reason, each.detail, each.carrier) for each in down] == [("unavailable", "gone", "grpc")]
    leg.advance(1)
    leg.stop()
    assert len(leg.concern.streams) == 2
    assert leg.concern.streams[1].is_closed
