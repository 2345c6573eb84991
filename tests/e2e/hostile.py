"""A node with a valid certificate that keeps to no rule: our own cores, driven by hand over one UDP socket.

Signaling travels on stream 4 of the relay leg. A session's packets go through the leg as those of a real node
do; what is sent inside of it is the test's choice.
"""

from __future__ import annotations

import re
import select
import socket
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509

from actors.service_wire import CONTROL_STREAM_ID
from tests.e2e.peers import LIMIT_S, leg_options
from tools.deployment import Daemon
from ztna.pki.authority import Issued
from ztna.quic import demux
from ztna.quic.connection import Connection
from ztna.quic.events import (
    ConnectionClosed,
    DatagramReceived,
    HandshakeCompleted,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from ztna.quic.options import ConnectionOptions
from ztna.relay import frame as relay_frame
from ztna.relay.hub import CONTROL_STREAM, SIGNALING_STREAM
from ztna.signaling.framing import FrameDecoder, encode
from ztna.v1 import grant_pb2, relay_pb2, session_pb2, signaling_pb2, types_pb2

TURN_S = 0.005
# Datagrams that wait in a connection before more are offered: what a real leg keeps to.
MAX_PENDING = 16

Frame = signaling_pb2.SignalingFrame
TCP, UDP = types_pb2.SERVICE_PROTOCOL_TCP, types_pb2.SERVICE_PROTOCOL_UDP


def believe(chain: Sequence[x509.Certificate]) -> object:
    """Accept whoever is there."""
    return chain[0]


class HostileSession:
    """The end-to-end connection of a session; `chunks` and `ends` hold what came on each stream."""

    def __init__(self, node: HostileNode, connection: Connection, channel: int) -> None:
        self.connection = connection
        self.channel = channel
        self.chunks: dict[int, bytearray] = {}
        self.ended: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self.closed: ConnectionClosed | None = None
        self.is_reading = True
        self._node = node

    def open_stream(self, data: bytes = b"", *, end: bool = False) -> int:
        """A new stream with these bytes."""
        stream_id = self.connection.open_stream()
        self.connection.send_stream(stream_id, data, end)
        return stream_id

    def open_service(self, service: str, grant: grant_pb2.SealedGrant, data: bytes = b"") -> int:
        """A stream with a header, and client bytes behind it."""
        header = session_pb2.StreamHeader(service=service, grant=grant).SerializeToString()
        return self.open_stream(len(header).to_bytes(2, "big") + header + data)

    def answer(self, stream_id: int) -> session_pb2.StreamAnswer:
        """The connector's verdict on a stream, waited for."""
        received = self.chunks.setdefault(stream_id, bytearray())

        def is_whole() -> bool:
            return len(received) >= 2 and len(received) >= 2 + int.from_bytes(received[:2], "big")

        self._node.until(is_whole, f"an answer on stream {stream_id}")
        size = int.from_bytes(received[:2], "big")
        return session_pb2.StreamAnswer.FromString(bytes(received[2 : 2 + size]))

    def send_control(self, *frames: session_pb2.ControlFrame) -> None:
        """Frames of the control stream."""
        for frame in frames:
            self.connection.send_stream(CONTROL_STREAM_ID, encode(frame.SerializeToString()))

    def send_datagrams(self, *payloads: bytes) -> None:
        """DATAGRAM frames, as fast as congestion control lets them go."""
        for payload in payloads:
            while self.connection.datagrams_pending >= MAX_PENDING and self.closed is None:
                self._node.turn()
            self.connection.send_datagram(payload)

    def take_events(self) -> None:
        """Note what came."""
        for event in self.connection.events():
            match event:
                case StreamDataReceived():
                    self.chunks.setdefault(event.stream_id, bytearray()).extend(event.data)
                    if self.is_reading:
                        self.connection.consume(event.stream_id, len(event.data))
                    if event.end_of_stream:
                        self.ended[event.stream_id] = 0
                case StreamReset() | StopSendingReceived():
                    self.ended[event.stream_id] = event.code
                case DatagramReceived():
                    self.datagrams.append(event.data)
                case ConnectionClosed():
                    self.closed = event
                case _:
                    pass


class HostileNode:
    """One node; a context manager. `received` holds every signaling frame that came."""

    def __init__(self, intermediate: Daemon, own: Issued) -> None:
        host, _, port = intermediate.settings["quic"]["listen"][0].rpartition(":")
        self.own = own
        self.leg = Connection.client(leg_options(own))
        self.received: list[Frame] = []
        self.leg_frames: list[relay_pb2.LegFrame] = []
        self.closed: ConnectionClosed | None = None
        self.attach_id = b""
        self.sessions: dict[int, HostileSession] = {}
        self.early: dict[int, list[bytes]] = {}
        self.is_reading = True
        self._is_up = False
        self._plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._plug.connect((host, int(port)))
        self._plug.setblocking(False)
        self._decoders = {CONTROL_STREAM: FrameDecoder(), SIGNALING_STREAM: FrameDecoder()}
        self._sequence = 0
        self._request = 0

    def __enter__(self) -> Self:
        self.leg.connect(time.monotonic())
        self.until(lambda: self._is_up, "the leg")
        self.leg.open_stream()
        self.leg.open_stream()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leg.close()
        self.turn()
        self._plug.close()

    # Driving

    def turn(self, timeout_s: float = TURN_S) -> None:
        """Send, wait a moment, receive."""
        self._send()
        if select.select([self._plug], [], [], timeout_s)[0]:
            batch: list[bytes] = []
            while len(batch) < 64:
                try:
                    batch.append(self._plug.recv(2048))
                except (BlockingIOError, ConnectionRefusedError):
                    break
            self.leg.receive(batch, time.monotonic())
        self.leg.handle_timeout(time.monotonic())
        self._take_events()
        for session in list(self.sessions.values()):
            session.connection.handle_timeout(time.monotonic())
            session.take_events()
        self._send()

    def run(self, duration_s: float) -> None:
        """Go on for a while: whatever is sent needs time to do its harm."""
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline:
            self.turn()

    def until(self, predicate: Callable[[], bool], what: str, timeout_s: float = LIMIT_S) -> None:
        """Go on until `predicate` holds; raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}; leg closed: {self.closed}; frames: {self.received[-3:]}")
            self.turn()

    # Signaling

    def attach(self, *, resume: Sequence[signaling_pb2.ResumeSession] = ()) -> None:
        """Attach and present the attachment on the leg."""
        self.send(
            Frame(
                attach_request=signaling_pb2.AttachRequest(protocol_version=1, nonce=bytes(32), resume=resume)
            )
        )
        accepted = self.expect("attach_accepted").attach_accepted
        self.attach_id = accepted.attach_id
        assert self.hello(accepted.attach_id).WhichOneof("body") == "accepted"

    def hello(self, attach_id: bytes) -> relay_pb2.LegFrame:
        """Present an attachment; the answer."""
        hello = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=attach_id))
        self.leg.send_stream(CONTROL_STREAM, encode(hello.SerializeToString()))
        self.leg_frames.clear()

        def answers() -> list[relay_pb2.LegFrame]:
            return [each for each in self.leg_frames if each.WhichOneof("body") != "observed_address"]

        self.until(lambda: bool(answers()), "an answer to the hello")
        return answers()[0]

    def send(self, *frames: Frame) -> None:
        """Numbered frames."""
        for frame in frames:
            self._sequence += 1
            frame.seq = self._sequence
            self.send_raw(encode(frame.SerializeToString()))

    def send_raw(self, data: bytes) -> None:
        """Bytes of the signaling stream."""
        self.leg.send_stream(SIGNALING_STREAM, data)

    def expect(self, body: str) -> Frame:
        """The next frame of this kind, which is taken from `received`."""
        self.until(lambda: any(each.WhichOneof("body") == body for each in self.received), body)
        found = next(each for each in self.received if each.WhichOneof("body") == body)
        self.received.remove(found)
        return found

    def wish(self, service: str, protocol: types_pb2.ServiceProtocol.ValueType = TCP) -> int:
        """Ask for a service; the number of the request."""
        self._request += 1
        wish = signaling_pb2.OpenSession(request_id=self._request, service=service, protocol=protocol)
        self.send(Frame(open_session=wish))
        return self._request

    def opened(
        self, service: str, protocol: types_pb2.ServiceProtocol.ValueType = TCP
    ) -> signaling_pb2.SessionOpened:
        """A session for a service."""
        self.wish(service, protocol)
        return self.expect("session_opened").session_opened

    # Sessions

    def session(self, channel: int) -> HostileSession:
        """The agent's end of a session, its handshake done and its hello said."""
        options = ConnectionOptions.inner(
            certificate=self.own.certificate, private_key=self.own.private_key, verify_peer=believe
        )
        session = HostileSession(self, Connection.client(options), channel)
        self.sessions[channel] = session
        session.connection.connect(time.monotonic())
        self.until(lambda: session.connection.is_established, "the session")
        session.open_stream()
        session.send_control(session_pb2.ControlFrame(hello=session_pb2.SessionHello(protocol_version=1)))
        return session

    def answer_session(self, channel: int) -> HostileSession:
        """The connector's end of a session that an agent opens."""
        options = ConnectionOptions.inner(
            certificate=self.own.certificate, private_key=self.own.private_key, verify_peer=believe
        )
        self.until(lambda: channel in self.early, "the first packet of the session")
        first = self.early.pop(channel)
        connection = Connection.server(options, destination_cid=demux.destination_cid(first[0]) or b"")
        session = self.sessions[channel] = HostileSession(self, connection, channel)
        connection.receive(first, time.monotonic())
        self.until(lambda: connection.is_established, "the session")
        return session

    # Inside

    def _send(self) -> None:
        now = time.monotonic()
        for session in self.sessions.values():
            self._send_session(session, now)
        for data in self.leg.transmit(now):
            try:
                self._plug.send(data)
            except (BlockingIOError, ConnectionRefusedError):
                return

    def _send_session(self, session: HostileSession, now: float) -> None:
        for packet in session.connection.transmit(now):
            if self.leg.datagrams_pending >= MAX_PENDING:
                for data in self.leg.transmit(now):
                    self._plug.send(data)
            if self.leg.is_established:
                self.leg.send_datagram(relay_frame.pack(session.channel, packet))

    def _take_events(self) -> None:
        packets: dict[int, list[bytes]] = {}
        for event in self.leg.events():
            match event:
                case HandshakeCompleted():
                    self._is_up = True
                case DatagramReceived():
                    channel, packet = relay_frame.unpack(event.data)
                    packets.setdefault(channel, []).append(packet)
                case StreamDataReceived():
                    self._stream_bytes(event)
                case ConnectionClosed():
                    self.closed = event
                case _:
                    pass
        for channel, batch in packets.items():
            session = self.sessions.get(channel)
            if session is None:
                self.early.setdefault(channel, []).extend(batch)
            else:
                session.connection.receive(batch, time.monotonic())

    def _stream_bytes(self, event: StreamDataReceived) -> None:
        if not self.is_reading:
            return
        self.leg.consume(event.stream_id, len(event.data))
        bodies = self._decoders[event.stream_id].feed(event.data)
        if event.stream_id == SIGNALING_STREAM:
            frames = map(Frame.FromString, bodies)
            # The intermediate asks how far its nodes are; whoever does not answer only starts later.
            self.received += [each for each in frames if each.WhichOneof("body") != "ping"]
        else:
            self.leg_frames += map(relay_pb2.LegFrame.FromString, bodies)


def resident_kib(daemon: Daemon) -> int:
    """Memory that a daemon holds now."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def metrics(daemon: Daemon) -> dict[str, float]:
    """What a daemon's /metrics says, by name and labels."""
    url = f"http://{daemon.settings['metrics']['listen']}/metrics"
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def wait_for_metric(daemon: Daemon, name: str, at_least: float = 1.0) -> None:
    """Wait until a metric has grown so far."""
    deadline = time.monotonic() + LIMIT_S
    while (found := metrics(daemon)).get(name, 0.0) < at_least:
        assert time.monotonic() < deadline, (name, found.get(name), sorted(found))
        time.sleep(0.05)
