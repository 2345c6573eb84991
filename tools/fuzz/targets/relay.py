"""The relay: frames, a hub with a hostile node on it, and a node whose intermediate is hostile.

On a leg, the first byte of an input says what the rest is: 0 a DATAGRAM, 1 bytes of the control stream, 2 of
the signaling stream, 3 one control frame without its length. On a gRPC stream it says what the hostile node
does: 0 sends a frame, 1 does so and reads nothing, 2 opens another stream, 3 ends its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import ClassVar

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from actors.quic_relay import QuicRelay
from actors.relay_leg import RelayLeg
from tools.fuzz import connections, identities, mutate
from tools.fuzz.connections import STEP_S
from tools.fuzz.identities import AGENT_ID, CONNECTOR_ID, INTERMEDIATE_ID, SESSION_ID
from tools.fuzz.stage import Stage
from tools.fuzz.target import Target, Violation, require
from ztna.access.identity import Role
from ztna.quic import events
from ztna.quic.budget import HandshakeBudget, fixed_cost
from ztna.quic.connection import Connection
from ztna.quic.demux import destination_cid
from ztna.relay import frame, hub
from ztna.relay.carrier import CarrierMode
from ztna.relay.quic_carrier import PING_INTERVAL_S
from ztna.signaling.framing import MAX_FRAME_BYTES, encode
from ztna.v1 import (
    qad_pb2,
    quic_relay_pb2,
    relay_leg_pb2,
    relay_pb2,
    session_manager_pb2,
    signaling_service_pb2,
    types_pb2,
    udp_socket_pb2,
)

ATTACH_A, ATTACH_C = b"a" * 16, b"c" * 16
DATAGRAM, CONTROL, SIGNALING, FRAME = b"\0", b"\1", b"\2", b"\3"
READS, MUTE, OPENS, ENDS = b"\0", b"\1", b"\2", b"\3"
REMOTE = types_pb2.TransportAddress(host="192.0.2.1", port=4000)
MAX_PIECE_BYTES = 8000
ACCEPTED = relay_pb2.LegFrame(accepted=relay_pb2.LegAccepted(max_packet_bytes=1200))


def leg_frames() -> list[bytes]:
    """Every control frame of a leg."""
    address = types_pb2.TransportAddress(host="2001:db8::1", port=65_535)
    return [
        relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=ATTACH_A)).SerializeToString(),
        relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=ATTACH_C)).SerializeToString(),
        relay_pb2.LegFrame(accepted=relay_pb2.LegAccepted(max_packet_bytes=1200)).SerializeToString(),
        relay_pb2.LegFrame(rejected=relay_pb2.LegRejected(reason="unknown_attachment")).SerializeToString(),
        relay_pb2.LegFrame(observed_address=qad_pb2.ObservedAddress(address=REMOTE)).SerializeToString(),
        relay_pb2.LegFrame(observed_address=qad_pb2.ObservedAddress(address=address)).SerializeToString(),
    ]


def stream_frames() -> list[bytes]:
    """Frames of a gRPC stream, of either end."""
    packets = [bytes([0, channel]) + bytes(size) for channel in (0, 1, 2, 9) for size in (0, 1, 1200, 1201)]
    hello = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=ATTACH_A))
    frames = [
        *(relay_pb2.RelayFrame(control=relay_pb2.LegFrame.FromString(each)) for each in leg_frames()),
        *(relay_pb2.RelayFrame(datagrams=[each]) for each in packets),
        relay_pb2.RelayFrame(datagrams=packets),
        relay_pb2.RelayFrame(datagrams=[b""] * frame.MAX_BATCH_PACKETS),
        relay_pb2.RelayFrame(ping=1, pong=2),
        relay_pb2.RelayFrame(control=hello, datagrams=packets[:1], ping=2**64 - 1),
    ]
    return [each.SerializeToString() for each in frames]


class RelayFrame(Target):
    """What unpacks is packed to the same bytes."""

    name = "relay-frame"
    what = "relay frames: channel and sealed packet"

    def corpus(self) -> list[bytes]:
        return [frame.pack(channel, bytes(size)) for channel in (1, 255, 65_535) for size in (1, 40, 1200)]

    def feed(self, data: bytes) -> None:
        channel, packet = frame.unpack(data)
        require(frame.pack(channel, packet) == data, "a relay frame that reads differently")


def attach(stage: Stage) -> None:
    """Attach an agent and a connector that have a session."""
    for role, node, attach_id in (
        (Role.AGENT, AGENT_ID, ATTACH_A),
        (Role.CONNECTOR, CONNECTOR_ID, ATTACH_C),
    ):
        stage.tell(
            signaling_service_pb2.NodeAttached(
                attach_id=attach_id,
                node=types_pb2.NodeIdentity(
                    role=types_pb2.ROLE_AGENT if role is Role.AGENT else types_pb2.ROLE_CONNECTOR,
                    id=node,
                    fingerprint=identities.credentials(role, node).fingerprint,
                ),
            )
        )
    stage.tell(
        session_manager_pb2.BindChannels(
            session_id=SESSION_ID, agent_attach_id=ATTACH_A, connector_attach_id=ATTACH_C
        )
    )


def relay_on_stage() -> tuple[Stage, QuicRelay]:
    """An intermediate's relay, to which an agent and a connector are attached."""
    stage = Stage()
    relay = QuicRelay(
        stage.context(),
        identities.credentials(Role.INTERMEDIATE, INTERMEDIATE_ID),
        HandshakeBudget(fixed_cost(0.0)),
    )
    stage.add(relay)
    stage.start()
    attach(stage)
    return stage, relay


class _Leg(Target):
    """An input is something that the hostile end says on its leg."""

    documented = ()
    # A leg is a real connection on either side: 0.5 ms for a packet and its answer, a handshake after faults.
    runs = 100_000
    short_runs = 50
    block = 100
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (DATAGRAM, CONTROL, SIGNALING, FRAME)

    def corpus(self) -> list[bytes]:
        return [
            *(DATAGRAM + frame.pack(channel, bytes(size)) for channel in (1, 2) for size in (1, 1200)),
            *(FRAME + each for each in leg_frames()),
            *(CONTROL + encode(each) for each in leg_frames()),
            CONTROL + encode(leg_frames()[4]) * 20,
            SIGNALING + encode(b"frame"),
        ]

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        if mutate.parse_fields(body) and random.random() < 0.7:
            return mutate.mutate_protobuf(random, body, bodies)
        return super().vary(random, body, bodies)

    def say(self, connection: Connection, data: bytes) -> None:
        """Let the hostile end send an input."""
        kind, body = data[:1], data[1 : 1 + MAX_PIECE_BYTES]
        if kind == DATAGRAM and body:
            connection.send_datagram(body[: connection.max_datagram_payload])
        elif kind == SIGNALING:
            connection.send_stream(hub.SIGNALING_STREAM, body)
        elif body:
            connection.send_stream(hub.CONTROL_STREAM, encode(body) if kind == FRAME else body)


class Hub(_Leg):
    """A hostile node may lose its leg; the hub and the other node's leg go on."""

    name = "relay-hub"
    what = "an intermediate's relay with a hostile node's leg: packets, both streams (2 ms each)"

    def __init__(self) -> None:
        self._stage, self._relay = relay_on_stage()
        self._port = 5000
        self._ping_at = 0.0
        self._nodes: dict[int, Connection] = {}
        self._owners: dict[bytes, int] = {}
        self._honest = self._dial(Role.CONNECTOR, CONNECTOR_ID, ATTACH_C)
        self._hostile = self._dial(Role.AGENT, AGENT_ID, ATTACH_A)

    def feed(self, data: bytes) -> None:
        hostile = self._nodes[self._hostile]
        self.say(hostile, data)
        self._exchange()
        if not hostile.is_established:
            del self._nodes[self._hostile]
            self._hostile = self._dial(Role.AGENT, AGENT_ID, ATTACH_A)

    def check(self) -> None:
        honest = self._nodes[self._honest]
        honest.send_datagram(frame.pack(1, b"packet"))
        self._exchange()
        require(honest.is_established, "the other node lost its leg")
        core = self._relay._hub  # noqa: SLF001 - its bounds
        require(len(core._legs) <= hub.MAX_LEGS_PER_NODE + 2, f"{len(core._legs)} legs are kept")  # noqa: SLF001
        require(len(self._stage.take()) < 100_000, "the relay says too much")

    def _dial(self, role: Role, node: str, attach_id: bytes) -> int:
        self._port += 1
        port = self._port
        connection = self._nodes[port] = Connection.client(
            connections.leg_options(is_client=True, role=role, node=node)
        )
        connection.connect(self._stage.io.now)
        connection.open_stream(), connection.open_stream()
        hello = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=attach_id))
        connection.send_stream(hub.CONTROL_STREAM, encode(hello.SerializeToString()))
        for _ in range(20):
            self._exchange()
            # Hellos have a rate, and admission has one.
            self._stage.advance(1.0 if not connection.is_established else 0.0)
            if connection.is_established:
                break
        require(connection.is_established, "a node with a valid certificate gets no leg")
        return port

    def _exchange(self) -> None:
        """Two flights each way."""
        for _ in range(2):
            self._stage.advance(STEP_S)
            now = self._stage.io.now
            if now >= self._ping_at:
                # As a node does, whose leg would be given up otherwise.
                self._ping_at = now + PING_INTERVAL_S
                for connection in self._nodes.values():
                    connection.ping(now)
            for port, connection in self._nodes.items():
                for datagram in connection.transmit(now):
                    self._deliver(port, datagram)
            for message in self._stage.take():
                self._carry(message, now)
            for connection in self._nodes.values():
                connection.handle_timeout(now)
                for event in connection.events():
                    if isinstance(event, events.StreamDataReceived):
                        connection.consume(event.stream_id, len(event.data))

    def _deliver(self, port: int, datagram: bytes) -> None:
        remote = types_pb2.TransportAddress(host="192.0.2.1", port=port)
        owner = self._owners.get(destination_cid(datagram) or b"")
        if owner is None:
            self._stage.tell(udp_socket_pb2.UnknownDatagramsReceived(remote=remote, datagrams=[datagram]))
        else:
            self._stage.tell(
                udp_socket_pb2.DatagramsReceived(connection=owner, remote=remote, datagrams=[datagram])
            )
        for message in self._stage.unheard:
            if isinstance(message, udp_socket_pb2.UpdateConnectionIds):
                self._route(message)

    def _route(self, message: udp_socket_pb2.UpdateConnectionIds) -> None:
        self._owners.update(dict.fromkeys(message.added, message.connection))
        for cid in message.retired:
            self._owners.pop(cid, None)
        if message.forget_owner:
            self._owners = {cid: each for cid, each in self._owners.items() if each != message.connection}

    def _carry(self, message: object, now: float) -> None:
        if isinstance(message, udp_socket_pb2.SendDatagrams):
            connection = self._nodes.get(message.remote.port)
            if connection is not None:
                connection.receive(message.datagrams, now)
        elif isinstance(message, udp_socket_pb2.UpdateConnectionIds):
            self._route(message)
        elif isinstance(message, quic_relay_pb2.LegSignalingBytesReceived):
            require(len(message.data) <= MAX_FRAME_BYTES, "signaling bytes in one enormous piece")


class StreamHub(Target):
    """A hostile node may lose its stream; the other one's goes on, and nothing piles up before a mute one."""

    name = "relay-stream-hub"
    what = "an intermediate's relay with a hostile node's gRPC stream: frames, streams opened and ended"
    documented = ()
    is_protobuf = True
    short_runs = 300
    block = 250
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (READS, READS, MUTE, OPENS, ENDS)

    def __init__(self) -> None:
        self._stage, self._relay = relay_on_stage()
        self._last = 0
        self._unwritten: dict[int, int] = {}
        """Frames with packets that a stream was given and has not taken."""
        self._closed: set[int] = set()
        self._received = 0
        self._honest = self._open(Role.CONNECTOR, CONNECTOR_ID, ATTACH_C)
        self._hostile = self._open(Role.AGENT, AGENT_ID, ATTACH_A)

    def corpus(self) -> list[bytes]:
        return [kind + each for kind in (READS, MUTE) for each in stream_frames()] + [OPENS, ENDS]

    def feed(self, data: bytes) -> None:
        kind, body = data[:1], data[1:]
        self._stage.advance(STEP_S)
        self._beat(self._honest)
        if kind == OPENS or self._hostile in self._closed:
            self._hostile = self._open(Role.AGENT, AGENT_ID, ATTACH_A)
        elif kind == ENDS:
            self._settle(is_reading=True)
            self._closed.add(self._hostile)
            self._stage.tell(quic_relay_pb2.RelayStreamEnded(stream=self._hostile, reason="stream_ended"))
        else:
            try:
                said = relay_pb2.RelayFrame.FromString(body)
            except DecodeError:
                return  # gRPC ends the stream, and nobody here hears of it
            self._stage.tell(quic_relay_pb2.RelayStreamReceived(stream=self._hostile, frame=said))
        # The honest node writes to one that may read nothing.
        packets = [frame.pack(1, bytes(1200))] * frame.MAX_BATCH_PACKETS
        self._stage.tell(
            quic_relay_pb2.RelayStreamReceived(
                stream=self._honest, frame=relay_pb2.RelayFrame(datagrams=packets)
            )
        )
        self._settle(is_reading=kind != MUTE)

    def check(self) -> None:
        require(self._honest not in self._closed, "the other node lost its stream")
        before = self._received
        if self._hostile in self._closed:
            self._hostile = self._open(Role.AGENT, AGENT_ID, ATTACH_A)
        self._settle(is_reading=True)
        packet = relay_pb2.RelayFrame(datagrams=[frame.pack(1, b"packet")])
        self._stage.tell(quic_relay_pb2.RelayStreamReceived(stream=self._hostile, frame=packet))
        self._settle(is_reading=True)
        require(self._received > before, "nothing passes any more")
        core = self._relay._hub  # noqa: SLF001 - its bounds
        require(len(core._legs) <= hub.MAX_LEGS_PER_NODE + 2, f"{len(core._legs)} legs are kept")  # noqa: SLF001

    def _open(self, role: Role, node: str, attach_id: bytes) -> int:
        self._last += 1
        certificate = identities.credentials(role, node).certificate_chain[0].public_bytes(Encoding.DER)
        # Hellos and legs have a rate and a number: an honest node comes back when there is room.
        self._stage.advance(1.0)
        self._stage.tell(
            quic_relay_pb2.RelayStreamOpened(
                stream=self._last, certificate=certificate, remote="192.0.2.1:5"
            ),
            quic_relay_pb2.RelayStreamReceived(
                stream=self._last,
                frame=relay_pb2.RelayFrame(
                    control=relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=attach_id))
                ),
            ),
        )
        return self._last

    def _beat(self, stream: int) -> None:
        """Show a sign of life, as a node does."""
        beat = relay_pb2.RelayFrame(ping=1)
        self._stage.tell(quic_relay_pb2.RelayStreamReceived(stream=stream, frame=beat))

    def _settle(self, *, is_reading: bool) -> None:
        for _ in range(200):
            messages = [
                each for each in self._stage.take() if isinstance(each, quic_relay_pb2.SendRelayStream)
            ]
            if not messages:
                return
            for each in messages:
                self._write(each, is_reading=is_reading)
        require(False, "the relay never comes to rest")

    def _write(self, message: quic_relay_pb2.SendRelayStream, *, is_reading: bool) -> None:
        stream = message.stream
        if message.close:
            self._closed.add(stream)
            return
        require(stream not in self._closed, "a frame for a stream that is closed")
        require(message.frame.ByteSize() <= MAX_FRAME_BYTES, "a frame that no node takes")
        if not message.frame.datagrams:
            return
        if stream == self._honest:
            self._received += len(message.frame.datagrams)
        self._unwritten[stream] = self._unwritten.get(stream, 0) + 1
        require(self._unwritten[stream] <= 1, "a batch behind one that is not written yet")
        if stream == self._honest or is_reading:
            del self._unwritten[stream]
            self._stage.tell(quic_relay_pb2.RelayStreamWritten(stream=stream))


class NodeLeg(_Leg):
    """A hostile intermediate may cost a node its leg, which it dials anew."""

    name = "relay-leg"
    what = "a node's relay leg whose intermediate is hostile: packets, control frames (2 ms each)"

    def __init__(self) -> None:
        self._stage = Stage()
        options = connections.leg_options(is_client=True)
        self._leg = RelayLeg(
            self._stage.context(INTERMEDIATE_ID), "127.0.0.1", 4433, lambda: Connection.client(options)
        )
        self._stage.add(self._leg)
        self._server: Connection | None = None
        self._stage.start()
        self._stage.tell(
            relay_leg_pb2.ConnectLeg(intermediate_id=INTERMEDIATE_ID),
            relay_leg_pb2.PresentAttachment(intermediate_id=INTERMEDIATE_ID, attach_id=ATTACH_A),
            relay_leg_pb2.BindChannel(intermediate_id=INTERMEDIATE_ID, session_id=SESSION_ID, channel=1),
        )
        self._settle()

    def feed(self, data: bytes) -> None:
        if self._server is None or not self._server.is_established:
            self._settle()
        if self._server is not None:
            self.say(self._server, data)
        self._exchange()

    def check(self) -> None:
        self._settle()

    def _settle(self) -> None:
        for _ in range(200):
            self._exchange()
            if self._server is not None and self._server.is_established:
                return
            self._stage.advance(0.5)
        require(False, "the leg does not come back")

    def _exchange(self) -> None:
        for _ in range(2):
            self._stage.advance(STEP_S)
            now = self._stage.io.now
            for message in self._stage.take():
                if isinstance(message, udp_socket_pb2.SendDatagrams):
                    self._receive(list(message.datagrams), now)
            if self._server is None:
                continue
            self._server.handle_timeout(now)
            for event in self._server.events():
                if isinstance(event, events.StreamDataReceived):
                    self._server.consume(event.stream_id, len(event.data))
            packets = self._server.transmit(now)
            if packets:
                self._stage.tell(
                    udp_socket_pb2.DatagramsReceived(
                        intermediate_id=INTERMEDIATE_ID, remote=REMOTE, datagrams=packets
                    )
                )
            if self._server.is_closed:
                self._server = None

    def _receive(self, datagrams: list[bytes], now: float) -> None:
        cid = destination_cid(datagrams[0])
        is_first = datagrams[0][0] >= 0xC0 and len(datagrams[0]) >= connections.INITIAL_BYTES
        if (
            is_first
            and cid is not None
            and (self._server is None or cid not in self._server.local_connection_ids)
        ):
            self._server = Connection.server(connections.leg_options(is_client=False), destination_cid=cid)
        if self._server is not None:
            self._server.receive(datagrams, now)


class NodeStreamLeg(Target):
    """A hostile intermediate may end a node's gRPC stream (a first byte 3), which is dialled anew."""

    name = "relay-stream-leg"
    what = "a node's relay leg over gRPC whose intermediate is hostile: frames, ends of the stream"
    documented = ()
    is_protobuf = True
    short_runs = 300
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (READS, READS, READS, ENDS)

    def __init__(self) -> None:
        self._stage = Stage()
        self._stream: _Stream | None = None
        options = connections.leg_options(is_client=True)
        self._leg = RelayLeg(
            self._stage.context(INTERMEDIATE_ID),
            "127.0.0.1",
            4433,
            lambda: Connection.client(options),
            open_stream=self._dial,
            mode=CarrierMode.GRPC,
        )
        self._stage.add(self._leg)
        self._stage.start()
        self._stage.tell(
            relay_leg_pb2.ConnectLeg(intermediate_id=INTERMEDIATE_ID),
            relay_leg_pb2.PresentAttachment(intermediate_id=INTERMEDIATE_ID, attach_id=ATTACH_A),
            relay_leg_pb2.BindChannel(intermediate_id=INTERMEDIATE_ID, session_id=SESSION_ID, channel=1),
        )
        self._settle()

    def corpus(self) -> list[bytes]:
        return [*(READS + each for each in stream_frames()), ENDS]

    def feed(self, data: bytes) -> None:
        self._stage.advance(STEP_S)
        stream = self._settle()
        if data[:1] == ENDS:
            self._stream = None
            self._leg.stream_closed(stream, "stream_ended", "", False)
        else:
            with suppress(DecodeError):  # gRPC ends the stream, and nobody here hears of it
                self._leg.stream_frame(stream, relay_pb2.RelayFrame.FromString(data[1:]))
        self._stage.run()
        self._settle()

    def check(self) -> None:
        self._leg.stream_frame(self._settle(), relay_pb2.RelayFrame(control=ACCEPTED))
        packet = relay_pb2.RelayFrame(datagrams=[frame.pack(1, b"packet")])
        self._stage.take()
        self._leg.stream_frame(self._settle(), packet)
        heard = [each for each in self._stage.take() if isinstance(each, relay_leg_pb2.SealedReceived)]
        require(len(heard) == 1, "nothing passes any more")

    def _dial(self, _owner: object) -> _Stream:
        self._stream = _Stream()
        return self._stream

    def _settle(self) -> _Stream:
        """The stream of now, open; whatever it was given is written."""
        for _ in range(200):
            if self._stream is None or self._stream.is_closed:
                self._stage.advance(0.5)
                continue
            if not self._stream.is_open:
                self._stream.is_open = True
                self._leg.stream_opened(self._stream)
            elif self._stream.sent:
                self._stream.sent.clear()
                self._leg.stream_written(self._stream)
            else:
                self._stage.take()
                return self._stream
        raise Violation("the stream does not come back")


class _Stream:
    """What a leg writes to; every frame is one that an intermediate takes."""

    def __init__(self) -> None:
        self.is_open = self.is_closed = False
        self.sent: list[relay_pb2.RelayFrame] = []

    def send(self, said: relay_pb2.RelayFrame) -> None:
        require(not self.is_closed, "a frame for a stream that is closed")
        require(said.ByteSize() <= MAX_FRAME_BYTES, "a frame that no intermediate takes")
        self.sent.append(said)

    def close(self) -> None:
        self.is_closed = True


TARGETS: Sequence[type[Target]] = (RelayFrame, Hub, StreamHub, NodeLeg, NodeStreamLeg)
