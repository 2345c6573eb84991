"""Inside a session: datagram fragments, stream headers and answers, and both ends with a hostile peer.

QUIC stands between a peer and an actor: bytes of a stream come in order, and none behind its end. The driver
of the actors keeps to that, and the first byte of an input chooses among what a peer can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, cast

from google.protobuf.message import DecodeError, Message

from actors import service_wire
from actors.grant_gate import MAX_GRANTS
from actors.io import DatagramBatch, TcpOwner, TcpStream
from actors.service_backend import ServiceBackend
from actors.service_port import ServicePort
from tools.fuzz import identities
from tools.fuzz.identities import AGENT_ID, CONNECTOR_ID, SESSION_ID
from tools.fuzz.stage import Stage
from tools.fuzz.target import Target, require
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.service import connector_flows, fragments
from ztna.service.flows import MAX_FLOWS
from ztna.service.fragments import Fragmenter, Reassembler
from ztna.service.health import MAX_STATUS_LINE_BYTES, http_status
from ztna.service.tcp import BackendConnection, ClientConnection
from ztna.service.tcp_connection import MAX_EARLY_BYTES, MAX_HEADER_BYTES, encode_prefixed
from ztna.service.tcp_effects import Answer, Consumed, StreamError
from ztna.settings import (
    AgentLimits,
    AgentService,
    ConnectorLimits,
    ConnectorService,
    HostPort,
    ServiceProtocol,
)
from ztna.signaling import framing
from ztna.v1 import quic_session_pb2, session_pb2, session_table_pb2, signaling_pb2, types_pb2

LOCAL: Final = TransportAddress("127.0.0.1", 50_001)
MAX_DATAGRAM_BYTES: Final = 1170
FEW: Final = 300
CONTROL, CONTROL_FRAME, STREAM, OPENING, MORE, DATAGRAM, RESET, SKIP = range(8)
CONTROL_STREAM = service_wire.CONTROL_STREAM_ID
STEP = service_wire.STREAM_ID_STEP


def _granted(service: str) -> bytes:
    """The header of a stream to a service."""
    return service_wire.encode_header(service, identities.seal(identities.claims(service)))


def _ice_signals() -> list[signaling_pb2.IceSignal]:
    """About this session, about one that is not said, and about another."""
    restart = signaling_pb2.RestartRequested
    return [
        signaling_pb2.IceSignal(restart_requested=restart(session_id=SESSION_ID, reason="operator")),
        signaling_pb2.IceSignal(candidate_added=signaling_pb2.CandidateAdded(generation=1)),
        signaling_pb2.IceSignal(restart_requested=restart(session_id=bytes(16))),
    ]


def fragment_examples() -> list[bytes]:
    """Datagrams of one and of several fragments, of several flows."""
    frames: list[bytes] = []
    for flow_id in (1, 2, 300):
        fragmenter = Fragmenter(flow_id)
        for size in (0, 20, 1100, 3000, 60_000):
            frames += fragmenter.split(bytes(size), MAX_DATAGRAM_BYTES)[:4]
    return frames


class Fragments(Target):
    """Nothing is delivered twice, and little is kept, whatever fragments come."""

    name = "udp-fragments"
    what = "fragments of UDP datagrams: parser, reassembly, and a connector's flows that wait for their open"

    def __init__(self) -> None:
        self._now = 100.0
        self._reassembler = Reassembler(connector_flows.ConnectorFlows(0.0).counts.reassembly)
        self._flows = connector_flows.ConnectorFlows(self._now)
        self._delivered: set[tuple[int, int]] = set()

    def corpus(self) -> list[bytes]:
        return fragment_examples()

    def feed(self, data: bytes) -> None:
        self._now += 0.001
        fragment = fragments.parse(data)
        require(fragments.decode_varint(data, 0)[0] == fragment.flow_id, "a flow id reads differently")
        try:
            payload = self._reassembler.receive(fragment, self._now)
        finally:
            self._require_bounds()
        if payload is not None:
            require(len(payload) <= fragments.MAX_PAYLOAD_BYTES, "a datagram larger than UDP's")
        self._flows.handle_datagram(data, self._now)
        self._flows.handle_timeout(self._now)
        self._flows.drain()
        self._require_bounds()

    def _require_bounds(self) -> None:
        require(
            self._reassembler.partial_datagrams <= fragments.MAX_PARTIAL_DATAGRAMS,
            "too many partial datagrams",
        )
        require(
            self._reassembler.partial_bytes <= fragments.MAX_PARTIAL_BYTES, "too many bytes in reassembly"
        )
        require(self._flows.waiting_bytes <= connector_flows.MAX_WAITING_BYTES, "too many bytes wait")


class Opening(Target):
    """An opening is understood in whatever pieces it comes, or ends its stream; every byte is accounted for.

    The first byte: 0 and 1 the header that a connector gets, 2 and 3 the answer that an agent gets; odd ones
    get their length.
    """

    name = "tcp-opening"
    what = "headers and answers of TCP streams"
    documented = ()
    is_protobuf = True
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (b"\0", b"\1", b"\2", b"\3")

    def corpus(self) -> list[bytes]:
        header = service_wire.encode_header("web", identities.seal(identities.claims()))
        answers = [
            service_wire.encode_answer(Answer(code, "because"))
            for code in (StreamError.NO_ERROR, StreamError.REFUSED, StreamError.ACCESS_DENIED)
        ]
        return [
            b"\1" + header,
            b"\0" + encode_prefixed(header) + b"early bytes",
            *(b"\3" + each for each in answers),
            b"\2" + encode_prefixed(answers[0]) + b"service bytes",
        ]

    def feed(self, data: bytes) -> None:
        kind = data[0] if data else 0
        body = data[1:]
        if kind & 1:
            body = encode_prefixed(body[:MAX_HEADER_BYTES] or b"\0")
        connection: BackendConnection | ClientConnection
        if kind & 2:
            connection = ClientConnection(b"header", service_wire.decode_answer, 1.0)
        else:
            connection = BackendConnection(service_wire.encode_answer, 1.0)
        step = max(1, len(body) // (1 + kind % 5))
        effects: list[Any] = connection.drain()
        for start in range(0, len(body), step):
            connection.handle_stream_data(
                body[start : start + step], start + step >= len(body) and kind > 128, 1.1
            )
            effects += connection.drain()
        kept = len(connection._opening)  # noqa: SLF001 - its bound
        require(kept <= MAX_EARLY_BYTES + MAX_HEADER_BYTES, f"{kept} bytes of an opening are kept")
        connection.handle_abort(StreamError.INTERNAL, "enough", 1.2)
        connection.handle_timeout(100.0)
        effects += connection.drain()
        consumed = sum(each.size_bytes for each in effects if isinstance(each, Consumed))
        unwritten = connection._unwritten  # noqa: SLF001 - what the socket still has
        require(unwritten <= len(body) and consumed <= len(body), "more bytes consumed than came")
        for effect in effects:
            header = getattr(effect, "header", None)
            if isinstance(header, bytes):
                with suppress(RemoteProtocolError):
                    service_wire.decode_header(header)


class _Socket:
    """A local socket that takes everything at once."""

    local_address = remote_address = LOCAL

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.owner: TcpOwner | None = None
        self.is_aborted = False
        self.is_reading = False

    def write(self, data: bytes) -> None:
        self._stage.io.call_soon(lambda: self._written(len(data)))

    def write_eof(self) -> None:
        """Nobody is there to see it."""

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def say(self, data: bytes) -> None:
        """Play the application, if it is listened to."""
        if self.owner is not None and self.is_reading and not self.is_aborted:
            self.owner.data_received(data)

    def abort(self) -> None:
        self.is_aborted = True

    def _written(self, count: int) -> None:
        if self.owner is not None and not self.is_aborted:
            self.owner.bytes_written(count)


class _Session(Target):
    """Common to both ends: what the peer does, and QUIC's rules for it."""

    documented = ()
    is_protobuf = True
    short_runs = 250
    block = 250
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = tuple(map(bytes, zip((0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7))))

    def __init__(self) -> None:
        self.stage = Stage()
        self.open_streams: dict[int, None] = {}
        """Streams that the peer has not ended."""
        self.count = 0
        self.concern = self.make()
        self.stage.add(self.concern)
        self.stage.start()
        self.establish()

    def make(self) -> ServiceBackend | ServicePort:
        """The concern at this end."""
        raise NotImplementedError

    def peer(self) -> types_pb2.NodeIdentity:
        """Who the hostile one is."""
        raise NotImplementedError

    def establish(self) -> None:
        """Begin a session anew."""
        self.open_streams = {CONTROL_STREAM: None}
        self.stage.tell(
            quic_session_pb2.SessionEstablished(
                session_id=SESSION_ID, peer=self.peer(), max_datagram_payload_bytes=MAX_DATAGRAM_BYTES
            )
        )
        hello = service_wire.encode_control(service_wire.hello())
        self.stage.tell(self.bytes_of(CONTROL_STREAM, hello))
        self.settle()

    def bytes_of(self, stream_id: int, data: bytes, *, end: bool = False) -> quic_session_pb2.PayloadReceived:
        """Bytes of a stream."""
        if end:
            self.open_streams.pop(stream_id, None)
        return quic_session_pb2.PayloadReceived(
            session_id=SESSION_ID, stream_id=stream_id, data=data, end_of_stream=end
        )

    def feed(self, data: bytes) -> None:
        kind, body = data[0] if data else 0, data[1:]
        self.count += 1
        self.stage.io.now += 0.02
        self.prepare(kind & 7)
        message = self.message(kind & 7, body, end=kind & 0x80 != 0)
        if message is not None:
            self.stage.tell(message)
        if self.count % 10 == 0:
            self.stage.advance(0.0)
        self.settle()

    def prepare(self, kind: int) -> None:
        """Let this end do what the peer answers."""

    def stream_for(self, kind: int) -> int | None:
        """The stream that an input is about, or None if there is none to use."""
        raise NotImplementedError

    def message(self, kind: int, body: bytes, *, end: bool) -> Message | None:
        """What this end hears of what the peer does."""
        if kind == CONTROL:
            return self.bytes_of(CONTROL_STREAM, body, end=end)
        if kind == CONTROL_FRAME:
            return self.bytes_of(CONTROL_STREAM, framing.encode(body[:65_536] or b"\0"))
        if kind == DATAGRAM:
            return quic_session_pb2.DatagramPayloadsReceived(session_id=SESSION_ID, payloads=[body[:1200]])
        stream_id = self.stream_for(kind)
        if stream_id is None:
            return None
        if kind == RESET:
            is_reset = len(body) % 2 == 0
            if is_reset:
                self.open_streams.pop(stream_id, None)
            code = int.from_bytes(body[:8], "big") & ((1 << 62) - 1)
            return quic_session_pb2.StreamAborted(
                session_id=SESSION_ID, stream_id=stream_id, code=code, is_reset=is_reset
            )
        if kind == OPENING:
            body = encode_prefixed(body[:MAX_HEADER_BYTES] or b"\0")
        return self.bytes_of(stream_id, body, end=end)

    def settle(self) -> None:
        """Acknowledge what was sent, and begin anew after the end of a session."""
        for _ in range(20):
            messages = self.stage.take()
            if not messages:
                return
            for message in messages:
                if isinstance(message, quic_session_pb2.SendPayload) and message.data:
                    self.stage.tell(
                        quic_session_pb2.PayloadAcknowledged(
                            session_id=SESSION_ID, stream_id=message.stream_id, size_bytes=len(message.data)
                        )
                    )
                elif isinstance(message, quic_session_pb2.AbortStream) and message.stop:
                    self.open_streams.pop(message.stream_id, None)
                elif isinstance(message, quic_session_pb2.CloseQuicSession):
                    self.stage.tell(quic_session_pb2.SessionClosed(session_id=SESSION_ID, reason="closed"))
                    self.stage.take()
                    self.establish()
                    return
        require(False, "the session never comes to rest")


class Backend(_Session):
    """A hostile agent opens what its grants allow, within its limits."""

    name = "session-connector"
    what = "a connector's end of a session with a hostile agent: control stream, headers, datagrams, aborts"

    def __init__(self) -> None:
        self._next = STEP
        self._flow_id = 0
        super().__init__()

    def make(self) -> ServiceBackend:
        services = (
            ConnectorService(id="web", protocol=ServiceProtocol.TCP, backend=HostPort("127.0.0.2", 80)),
            ConnectorService(id="dns", protocol=ServiceProtocol.UDP, backend=HostPort("127.0.0.2", 53)),
        )
        own = identities.credentials(Role.CONNECTOR, CONNECTOR_ID)
        self._limits = ConnectorLimits()
        return ServiceBackend(self.stage.context(), lambda: services, self._limits, own)

    def peer(self) -> types_pb2.NodeIdentity:
        fingerprint = identities.credentials(Role.AGENT, AGENT_ID).fingerprint
        return types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id=AGENT_ID, fingerprint=fingerprint)

    def establish(self) -> None:
        self._next = STEP
        self._flow_id = 0
        super().establish()

    def message(self, kind: int, body: bytes, *, end: bool) -> Message | None:
        return super().message(kind, self._numbered(body) if kind == CONTROL_FRAME else body, end=end)

    def _numbered(self, body: bytes) -> bytes:
        """An open of a flow with a small number gets the next one: numbers only go up."""
        with suppress(DecodeError):
            frame = session_pb2.ControlFrame.FromString(body)
            if frame.WhichOneof("body") == "open_flow" and frame.open_flow.flow_id < FEW:
                self._flow_id += 1
                frame.open_flow.flow_id = self._flow_id
                return frame.SerializeToString()
        return body

    def corpus(self) -> list[bytes]:
        web, dns = (identities.seal(identities.claims(name)) for name in ("web", "dns"))
        frame = session_pb2.ControlFrame
        frames = [
            service_wire.hello(),
            frame(open_flow=session_pb2.OpenFlow(flow_id=1, service="dns", grant=dns)),
            frame(open_flow=session_pb2.OpenFlow(flow_id=2, service="web", grant=web)),
            frame(open_flow=session_pb2.OpenFlow(flow_id=30_000, service="dns", grant=dns)),
            frame(close_flow=session_pb2.CloseFlow(flow_id=1, reason="idle")),
            frame(renewed_grant=session_pb2.RenewedGrant(grant=web)),
            service_wire.draining(),
            *(frame(ice_signal=each) for each in _ice_signals()),
        ]
        header = _granted("web")
        return [
            *(bytes([CONTROL_FRAME]) + each.SerializeToString() for each in frames),
            bytes([CONTROL]) + service_wire.encode_control(frames[1]),
            bytes([OPENING]) + header,
            bytes([OPENING | 0x80]) + _granted("dns"),
            bytes([STREAM]) + encode_prefixed(header) + b"early",
            bytes([MORE]) + b"request",
            bytes([RESET]) + bytes(8),
            bytes([SKIP]) + encode_prefixed(header),
            *(bytes([DATAGRAM]) + each for each in fragment_examples()),
        ]

    def prepare(self, kind: int) -> None:
        del kind
        # Something runs that the input may disturb: most inputs open nothing themselves.
        if self.count % 4 == 0:
            stream_id = self.stream_for(OPENING)
            if stream_id is not None:
                self.stage.tell(self.bytes_of(stream_id, encode_prefixed(_granted("web"))))
        elif self.count % 4 == 2:
            opened = session_pb2.OpenFlow(service="dns", grant=identities.seal(identities.claims("dns")))
            honest = session_pb2.ControlFrame(open_flow=opened).SerializeToString()
            self.stage.tell(self.bytes_of(CONTROL_STREAM, framing.encode(self._numbered(honest))))
        while self.stage.io.attempts:
            owner = self.stage.io.attempts.popleft()
            if self.count % 3 == 0:
                owner.connection_lost(OSError("refused"))
            else:
                socket = _Socket(self.stage)
                socket.owner = owner
                owner.connected(cast("TcpStream", socket))
                socket.say(b"response")
        self.stage.run()

    def stream_for(self, kind: int) -> int | None:
        if kind in {MORE, RESET}:
            streams = [each for each in self.open_streams if each != CONTROL_STREAM or kind == RESET]
            return streams[-1] if streams else None
        stream_id = self._next + (STEP * (self.count % 5) if kind == SKIP else 0)
        self._next = stream_id + STEP
        self.open_streams[stream_id] = None
        return stream_id

    def check(self) -> None:
        backend = self.concern
        if not isinstance(backend, ServiceBackend):
            return
        for session in backend._sessions.values():  # noqa: SLF001 - its bounds
            require(len(session.backends) <= MAX_FLOWS, "too many flows")
            require(len(session.pumps) <= self._limits.streams_per_agent + 1, "too many streams")
            require(len(session.gate._verified) <= MAX_GRANTS, "too many grants")  # noqa: SLF001
            usage = session.usage
            require(usage.sessions == 1, f"{usage.sessions} sessions are on the agent's account")
            require(usage.streams == len(session.pumps), "streams are counted wrongly")
            require(usage.flows == len(session.backends), "flows are counted wrongly")


class Port(_Session):
    """A hostile connector may deny, and nothing else."""

    name = "session-agent"
    what = "an agent's end of a session with a hostile connector: control stream, answers, datagrams, aborts"

    def make(self) -> ServicePort:
        services = (
            AgentService(id="web", protocol=ServiceProtocol.TCP, listen=TransportAddress("127.0.0.1", 8080)),
            AgentService(id="dns", protocol=ServiceProtocol.UDP, listen=TransportAddress("127.0.0.1", 5353)),
        )
        return ServicePort(self.stage.context(), lambda: services, AgentLimits())

    def peer(self) -> types_pb2.NodeIdentity:
        fingerprint = identities.credentials(Role.CONNECTOR, CONNECTOR_ID).fingerprint
        return types_pb2.NodeIdentity(role=types_pb2.ROLE_CONNECTOR, id=CONNECTOR_ID, fingerprint=fingerprint)

    def establish(self) -> None:
        super().establish()
        self._ask()
        self.settle()

    def corpus(self) -> list[bytes]:
        frame = session_pb2.ControlFrame
        frames = [
            service_wire.hello(),
            frame(flow_accepted=session_pb2.FlowAccepted(flow_id=1)),
            frame(
                flow_refused=session_pb2.FlowRefused(
                    flow_id=1, code=session_pb2.REFUSAL_CODE_LIMIT, message="no"
                )
            ),
            frame(close_flow=session_pb2.CloseFlow(flow_id=1, reason="idle")),
            service_wire.draining(),
            *(frame(ice_signal=each) for each in _ice_signals()),
        ]
        accepted, refused = (
            service_wire.encode_answer(Answer(code, "because"))
            for code in (StreamError.NO_ERROR, StreamError.BACKEND_UNREACHABLE)
        )
        return [
            *(bytes([CONTROL_FRAME]) + each.SerializeToString() for each in frames),
            bytes([CONTROL]) + service_wire.encode_control(frames[1]),
            bytes([OPENING]) + accepted,
            bytes([OPENING | 0x80]) + refused,
            bytes([STREAM]) + encode_prefixed(accepted) + b"response",
            bytes([MORE]) + b"response",
            bytes([RESET]) + bytes(8),
            *(bytes([DATAGRAM]) + each for each in fragment_examples()),
        ]

    def prepare(self, kind: int) -> None:
        if kind in {STREAM, OPENING, CONTROL_FRAME, SKIP} or self.count % 7 == 0:
            self._ask()

    def message(self, kind: int, body: bytes, *, end: bool) -> Message | None:
        return super().message(kind, self._numbered(body) if kind == CONTROL_FRAME else body, end=end)

    def _numbered(self, body: bytes) -> bytes:
        """An answer to flow 1 becomes one to the flow that was asked for last."""
        with suppress(DecodeError):
            frame = session_pb2.ControlFrame.FromString(body)
            answered = getattr(frame, frame.WhichOneof("body") or "hello")
            if getattr(answered, "flow_id", 0) == 1 and isinstance(self.concern, ServicePort):
                for session in self.concern._sessions.values():  # noqa: SLF001 - inputs cannot know it
                    answered.flow_id = max(1, session.flows._next_flow_id - 1)  # noqa: SLF001
                return frame.SerializeToString()
        return body

    def _ask(self) -> None:
        """Local applications come: one connects, one sends a datagram."""
        for listener in self.stage.io.listeners[:1]:
            socket = _Socket(self.stage)
            socket.owner = listener(cast("TcpStream", socket))
            socket.owner.connected(cast("TcpStream", socket))
            socket.say(b"request")
        for owner in self.stage.io.udp_owners[:1]:
            source = TransportAddress("127.0.0.1", 50_000 + self.count % 50)
            owner.datagrams_received([DatagramBatch(source, "127.0.0.1", [b"question"])], self.stage.io.now)
        self.stage.run()
        for name in ("web", "dns"):
            self.stage.tell(
                session_table_pb2.ServiceReady(
                    service=name, session_id=SESSION_ID, grant=identities.seal(identities.claims(name))
                )
            )
        for message in self.stage.unheard:
            if isinstance(message, quic_session_pb2.SendPayload) and message.data.find(b"web", 0, 12) > 0:
                self.open_streams[message.stream_id] = None
        while len(self.open_streams) > 40:
            # What lets the oldest of them go, as an application would.
            oldest = next(each for each in self.open_streams if each != CONTROL_STREAM)
            self.stage.tell(self.bytes_of(oldest, b"", end=True))

    def stream_for(self, kind: int) -> int | None:
        del kind
        streams = [each for each in self.open_streams if each != CONTROL_STREAM]
        return streams[-1] if streams else None

    def check(self) -> None:
        port = self.concern
        if isinstance(port, ServicePort):
            for session in port._sessions.values():  # noqa: SLF001 - its bound
                require(len(session.flow_table) <= MAX_FLOWS, "too many flows")


class HealthAnswer(Target):
    """A status is one, and only a short beginning of a first line is waited for."""

    name = "health-answer"
    what = "what a backend answers to an HTTP probe"

    def corpus(self) -> list[bytes]:
        return [
            b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n",
            b"HTTP/1.0 404 Not Found\r\n",
            b"HTTP/1.1 503 \n",
            b"HTTP",
        ]

    def feed(self, data: bytes) -> None:
        status = http_status(data)
        if status is None:
            require(len(data) <= MAX_STATUS_LINE_BYTES and b"\n" not in data, "more is waited for")
        else:
            require(100 <= status < 600, f"no status: {status}")


TARGETS: Sequence[type[Target]] = (Fragments, Opening, Backend, Port, HealthAnswer)
