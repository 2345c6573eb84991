"""The gRPC streams of a simulation: frames on simulated TCP, where real daemons have `grpcio`.

`grpcio` brings threads and a clock of its own, so nothing of it can run in virtual time. What stands here in
its place is the boundary that its users know: `SimCarrier` and `SimRelayStream` are to the actors of a node
what `GrpcCarrier` and `GrpcRelayStream` are, `SimGrpcServer` is `GrpcSignalingServer` to those of an
intermediate. The actors and cores on both sides are the real ones. Modelled: a TCP and a TLS round trip, both
certificates judged as TLS does (chain, dates, name; no revocation), initial metadata, order, back-pressure,
statuses, keepalives of both ends, and the bounds of queues. Not modelled: HTTP/2 windows, and encryption:
nothing but the two ends looks into these packets.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, Generic, TypeVar

import grpc
from cryptography import x509

from actors.credentials import Credentials
from actors.grpc_carrier import MAX_QUEUED_FRAMES, CarrierOwner
from actors.grpc_relay_stream import MAX_QUEUED_FRAMES as MAX_QUEUED_RELAY_FRAMES
from actors.grpc_relay_stream import RelayStreamOwner
from actors.grpc_signaling import MAX_QUEUED_RELAY_FRAMES as MAX_QUEUED_CALL_FRAMES
from actors.grpc_signaling import GrpcRelayCall, GrpcStream, ListenerOwner
from actors.grpc_stream import explain
from actors.io import TcpStream
from tests.simnet.sim_io import ProcessCall, SimIo
from ztna.access.identity import Identity, Role, Verifier
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError
from ztna.v1 import relay_pb2, signaling_pb2

OwnerT = TypeVar("OwnerT")

RECORD: Final = struct.Struct(">cI")
HELLO, CERTIFICATE, CALL, METADATA, FRAME, STATUS = b"H", b"C", b"L", b"M", b"F", b"S"
PING, PONG = b"P", b"Q"
ATTACH: Final = b"attach\n"
RELAY: Final = b"relay\n"
CONNECT_LIMIT_S: Final = 20.0
ATTEMPT_DELAY_S: Final = 0.25
"""Between two addresses of one name."""
CLIENT_KEEPALIVE_S: Final = (10.0, 5.0)
SERVER_KEEPALIVE_S: Final = (20.0, 10.0)
"""Between two pings, and until one is answered: as both ends set `grpcio` to."""
MAX_GREETING_BYTES: Final = 1 << 16
"""Of a record before the handshake is over: what claims to be longer is no TLS, which says so at once."""
NODE_ROLES: Final = frozenset({Role.AGENT, Role.CONNECTOR})


class _Wire:
    """Records on one TCP connection, with keepalives; a `TcpOwner`."""

    def __init__(self, io: SimIo, keepalive_s: tuple[float, float], max_queued: int) -> None:
        self.io = io
        self.on_record: Callable[[bytes, bytes], None] = lambda _kind, _body: None
        self.on_connected: Callable[[], None] = lambda: None
        self.on_written: Callable[[Any], None] = lambda _frame: None
        self.on_lost: Callable[[str], None] = lambda _why: None
        self.on_overflow: Callable[[], None] = lambda: None
        self._keepalive_s = keepalive_s
        self.max_queued = max_queued
        self.max_record: int | None = None
        self._stream: TcpStream | None = None
        self._buffer = b""
        self._written = self._queued = 0
        self._frames: deque[tuple[int, Any]] = deque()
        self._timer: ProcessCall | None = None
        self._is_pinged = False
        self.is_over = False

    def expect(self, frames: int) -> None:
        """Let so many frames more wait."""
        self.max_queued += frames

    def write(self, kind: bytes, body: bytes, frame: Any = None) -> None:
        """Send a record behind those before it."""
        if self.is_over or self._stream is None:
            return
        if frame is not None:
            if len(self._frames) >= self.max_queued:
                self.on_overflow()
                return
            self._frames.append((self._queued + RECORD.size + len(body), frame))
        self._queued += RECORD.size + len(body)
        self._stream.write(RECORD.pack(kind, len(body)) + body)

    def finish(self) -> None:
        """Send what can be sent at once, and hang up; nothing is told any more."""
        if self.is_over:
            return
        self._end()
        if self._stream is not None:
            self._stream.let_go()  # type: ignore[attr-defined] # of a simulated one

    # From TCP

    def connected(self, stream: TcpStream) -> None:
        """The connection stands."""
        self._stream = stream
        stream.resume_reading()
        self._arm(self._keepalive_s[0])
        self.on_connected()

    def data_received(self, data: bytes) -> None:
        """Take records apart."""
        self._buffer += data
        while len(self._buffer) >= RECORD.size and not self.is_over:
            kind, size = RECORD.unpack_from(self._buffer)
            if self.max_record is not None and size > self.max_record:
                self._lose("wrong version number")
                return
            if len(self._buffer) < RECORD.size + size:
                return
            body = self._buffer[RECORD.size : RECORD.size + size]
            self._buffer = self._buffer[RECORD.size + size :]
            if kind == PING:
                self.write(PONG, b"")
            elif kind == PONG:
                self._is_pinged = False
                self._arm(self._keepalive_s[0])
            else:
                self.on_record(kind, body)

    def eof_received(self) -> None:
        """The other end hung up."""
        self._lose("Socket closed")

    def bytes_written(self, count: int) -> None:
        """The kernel took bytes."""
        self._written += count
        while self._frames and self._frames[0][0] <= self._written:
            self.on_written(self._frames.popleft()[1])

    def connection_lost(self, error: OSError | None) -> None:
        """The connection is gone, or none came to be."""
        self._stream = None
        self._lose("Socket closed" if error is None else str(error))

    def _lose(self, why: str) -> None:
        if not self.is_over:
            self.finish()
            self.on_lost(why)

    def _end(self) -> None:
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.io.call_at(self.io.time() + seconds, self._ring)

    def _ring(self) -> None:
        if self._is_pinged:
            self._lose("keepalive watchdog timeout")
            return
        self._is_pinged = True
        self.write(PING, b"")
        self._arm(self._keepalive_s[1])


def _without_list(credentials: Credentials) -> Verifier:
    """What TLS judges by: the CA, and no revocation list."""
    return Verifier(credentials.ca_certificates, credentials.identity.trust_domain)


class _Dialling:
    """One name, each of whose addresses is tried a moment after the one before: the first that answers wins.

    As `grpcio` does (RFC 8305), so that a family that is dead costs a moment.
    """

    def __init__(self, io: SimIo, host: str, port: int, wire: _Wire) -> None:
        self._io, self._wire = io, wire
        self._attempts: list[_Attempt] = []
        self._timers: list[ProcessCall] = []
        self._is_over = False
        self._last_error: OSError | None = None
        self._left = 0
        io.resolve(host, port, self._resolved)

    def cancel(self) -> None:
        """Give up; harmless once it is decided."""
        self._is_over = True
        for timer in self._timers:
            timer.cancel()
        for attempt in self._attempts:
            attempt.cancel()

    def won(self, attempt: _Attempt, stream: TcpStream) -> None:
        """An address answered."""
        self._attempts.remove(attempt)
        self.cancel()
        attempt.successor = self._wire
        self._wire.connected(stream)

    def failed(self, error: OSError | None) -> None:
        """An address did not."""
        self._last_error = error or self._last_error
        self._left -= 1
        if not self._left and not self._is_over:
            self._is_over = True
            self._wire.connection_lost(self._last_error)

    def _resolved(self, addresses: list[TransportAddress], error: OSError | None) -> None:
        if self._is_over:
            return
        self._left = len(addresses)
        if not addresses:
            self._is_over = True
            self._wire.connection_lost(error)
        for number, address in enumerate(addresses):
            when = self._io.time() + number * ATTEMPT_DELAY_S
            self._timers.append(self._io.call_at(when, lambda address=address: self._try(address)))  # type: ignore[misc]

    def _try(self, address: TransportAddress) -> None:
        if not self._is_over:
            self._attempts.append(_Attempt(self._io, address, self))


class _Attempt:
    """One address; what its connection says goes to `successor` once it has won."""

    def __init__(self, io: SimIo, address: TransportAddress, dialling: _Dialling) -> None:
        self.successor: _Wire | None = None
        self._dialling = dialling
        self.cancel = io.connect_tcp(address.host, address.port, CONNECT_LIMIT_S, self)

    def connected(self, stream: TcpStream) -> None:
        """First, or one more; the others were cancelled when the first was."""
        self._dialling.won(self, stream)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        if self.successor is not None:
            self.successor.data_received(data)

    def eof_received(self) -> None:
        """Pass on."""
        if self.successor is not None:
            self.successor.eof_received()

    def bytes_written(self, count: int) -> None:
        """Pass on."""
        if self.successor is not None:
            self.successor.bytes_written(count)

    def connection_lost(self, error: OSError | None) -> None:
        """Pass on, or count."""
        if self.successor is not None:
            self.successor.connection_lost(error)
        else:
            self._dialling.failed(error)


class _ClientStream(Generic[OwnerT]):
    """A node's end of one call; subclasses say of which, and how many frames may wait."""

    method: ClassVar[bytes]
    max_queued: ClassVar[int]

    def __init__(
        self,
        io: SimIo,
        target: TransportAddress | tuple[str, int],
        intermediate_id: str,
        credentials: Credentials,
        owner: OwnerT,
    ) -> None:
        """Dial `target` at once."""
        self._owner = owner
        self._credentials = credentials
        self._intermediate_id = intermediate_id
        self._has_received = self._is_closed = self._is_calling = False
        self._early: list[Any] = []
        self._wire = wire = _Wire(io, CLIENT_KEEPALIVE_S, self.max_queued)
        wire.on_connected = lambda: wire.write(HELLO, b"")
        wire.on_record = self._record
        wire.on_lost = lambda why: self._ended(grpc.StatusCode.UNAVAILABLE, why)
        wire.on_written = self._tell_written
        wire.on_overflow = self._overflow
        host, port = (target.host, target.port) if isinstance(target, TransportAddress) else target
        self._cancel = _Dialling(io, host, port, wire).cancel

    def send(self, frame: Any) -> None:
        """Queue a frame."""
        if self._is_closed:
            return
        if self._is_calling:
            self._wire.write(FRAME, frame.SerializeToString(), frame)
        else:
            self._early.append(frame)

    def close(self) -> None:
        """Send what leaves at once, and let go."""
        if not self._is_closed:
            self._is_closed = True
            self._cancel()
            self._wire.finish()

    def _record(self, kind: bytes, body: bytes) -> None:
        if kind == CERTIFICATE:
            self._judge(body)
        elif kind == METADATA:
            self._has_received = True
            self._tell_opened()
        elif kind == FRAME:
            self._has_received = True
            self._tell_frame(body)
        elif kind == STATUS:
            name, _, detail = body.decode().partition("\n")
            self._ended(grpc.StatusCode[name], detail)

    def _judge(self, certificate_pem: bytes) -> None:
        own, io = self._credentials, self._wire.io
        try:
            _without_list(own).verify(
                x509.load_pem_x509_certificates(certificate_pem),
                expect=Role.INTERMEDIATE,
                expect_id=self._intermediate_id,
                now_wall=io.wall_time(),
                as_server=True,
            )
        except AuthenticationError as error:
            self._report("untrusted_intermediate", str(error), True)
            return
        self._is_calling = True
        self._wire.write(CALL, self.method + own.certificate_pem)
        for frame in self._early:
            self._wire.write(FRAME, frame.SerializeToString(), frame)
        self._early.clear()

    def _ended(self, code: grpc.StatusCode, detail: str) -> None:
        name = str(
            Identity(self._credentials.identity.trust_domain, Role.INTERMEDIATE, self._intermediate_id)
        )
        self._report(*explain(code, detail, name, has_received=self._has_received))

    def _overflow(self) -> None:
        self._wire.io.call_soon(lambda: self._report("overflow", "the intermediate does not read", False))

    def _report(self, reason: str, detail: str, is_authentication: bool) -> None:
        if not self._is_closed:
            self.close()
            self._tell_closed(reason, detail, is_authentication)

    def _tell_opened(self) -> None:
        pass

    def _tell_written(self, frame: Any) -> None:
        pass

    def _tell_frame(self, body: bytes) -> None:
        raise NotImplementedError

    def _tell_closed(self, reason: str, detail: str, is_authentication: bool) -> None:
        raise NotImplementedError


class SimCarrier(_ClientStream[CarrierOwner]):
    """An `Attach` stream."""

    method = ATTACH
    max_queued = MAX_QUEUED_FRAMES

    def _tell_frame(self, body: bytes) -> None:
        self._owner.carrier_frame(self, signaling_pb2.SignalingFrame.FromString(body))

    def _tell_closed(self, reason: str, detail: str, is_authentication: bool) -> None:
        self._owner.carrier_closed(self, reason, detail, is_authentication)


class SimRelayStream(_ClientStream[RelayStreamOwner]):
    """A `Relay` stream."""

    method = RELAY
    max_queued = MAX_QUEUED_RELAY_FRAMES

    def _tell_opened(self) -> None:
        self._owner.stream_opened(self)

    def _tell_frame(self, body: bytes) -> None:
        self._owner.stream_frame(self, relay_pb2.RelayFrame.FromString(body))

    def _tell_written(self, frame: relay_pb2.RelayFrame) -> None:
        if frame.datagrams:
            self._owner.stream_written(self)

    def _tell_closed(self, reason: str, detail: str, is_authentication: bool) -> None:
        self._owner.stream_closed(self, reason, detail, is_authentication)


class _Served:
    """The intermediate's end of a call, whichever it is."""

    def __init__(self, wire: _Wire, told_end: Callable[[], None]) -> None:
        self.wire = wire
        self._told_end = told_end
        self._has_told = False
        wire.on_lost = lambda _why: self.ended()
        wire.on_overflow = lambda: wire.io.call_soon(
            lambda: self.close(grpc.StatusCode.RESOURCE_EXHAUSTED, "you do not read what is sent to you")
        )

    def close(self, status: grpc.StatusCode, detail: str) -> None:
        if not self.wire.is_over:
            self.wire.write(STATUS, f"{status.name}\n{detail}".encode())
            self.wire.finish()
            self.wire.io.call_soon(self.ended)

    def ended(self) -> None:
        if not self._has_told:
            self._has_told = True
            self._told_end()


class SimAttachCall(GrpcStream):
    """One `Attach` call at an intermediate."""

    def __init__(self, wire: _Wire, certificate_pem: bytes, remote: str, owner: ListenerOwner) -> None:
        self.certificate_pem, self.remote = certificate_pem, remote
        self._served = _Served(wire, lambda: owner.stream_closed(self))

    def send(self, frame: signaling_pb2.SignalingFrame) -> None:
        """Queue a frame."""
        self._served.wire.write(FRAME, frame.SerializeToString(), frame)

    def expect(self, frames: int) -> None:
        """Let so many frames more wait."""
        self._served.wire.expect(frames)

    def close(self, status: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the stream behind what is queued."""
        self._served.close(status, detail)


class SimRelayCall(GrpcRelayCall):
    """One `Relay` call at an intermediate."""

    def __init__(self, wire: _Wire, certificate_pem: bytes, remote: str, owner: ListenerOwner) -> None:
        self.certificate_pem, self.remote = certificate_pem, remote
        self._served = _Served(wire, lambda: owner.relay_closed(self))

    def send(self, frame: relay_pb2.RelayFrame) -> None:
        """Queue a frame."""
        self._served.wire.write(FRAME, frame.SerializeToString(), frame)

    def close(self, status: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the stream behind what is queued."""
        self._served.close(status, detail)


class SimGrpcServer:
    """The gRPC listener of an intermediate; `credentials` is asked at every handshake."""

    def __init__(
        self,
        io: SimIo,
        address: TransportAddress,
        credentials: Callable[[], Credentials],
        owner: ListenerOwner,
        max_queued_frames: int,
    ) -> None:
        """Listen on every family at the port of `address`."""
        self.address = address
        self._io, self._owner = io, owner
        self._credentials = credentials
        self._max_queued = max_queued_frames
        self._wires: list[_Wire] = []
        self._listeners = [
            io.listen_tcp(TransportAddress(host, address.port), self._accept) for host in ("0.0.0.0", "::")
        ]

    def stop(self) -> None:
        """Accept nothing more, and hang up on whoever is left."""
        for listener in self._listeners:
            listener.close()
        for wire in self._wires:
            wire.finish()

    def _accept(self, stream: TcpStream) -> _Wire:
        wire = _Wire(self._io, SERVER_KEEPALIVE_S, self._max_queued)
        self._wires = [each for each in self._wires if not each.is_over]
        self._wires.append(wire)
        wire.max_record = MAX_GREETING_BYTES
        remote = str(stream.remote_address)
        wire.on_record = lambda kind, body: self._shake_hands(wire, remote, kind, body)
        return wire

    def _shake_hands(self, wire: _Wire, remote: str, kind: bytes, body: bytes) -> None:
        own = self._credentials()
        if kind == HELLO:
            wire.write(CERTIFICATE, own.certificate_pem)
            return
        method, _, certificate_pem = body.partition(b"\n")
        if kind != CALL:
            wire.finish()
            return
        try:
            _without_list(own).verify(
                x509.load_pem_x509_certificates(certificate_pem),
                expect=NODE_ROLES,
                now_wall=self._io.wall_time(),
                as_server=False,
            )
        except (AuthenticationError, ValueError):
            wire.finish()
            return
        wire.max_record = None
        if method + b"\n" == ATTACH:
            self._serve_attach(wire, certificate_pem, remote)
        else:
            self._serve_relay(wire, certificate_pem, remote)

    def _serve_attach(self, wire: _Wire, certificate_pem: bytes, remote: str) -> None:
        owner = self._owner
        call = SimAttachCall(wire, certificate_pem, remote, owner)
        wire.on_record = lambda _kind, body: owner.stream_frame(
            call, signaling_pb2.SignalingFrame.FromString(body)
        )
        owner.stream_opened(call)

    def _serve_relay(self, wire: _Wire, certificate_pem: bytes, remote: str) -> None:
        owner = self._owner
        wire.max_queued = MAX_QUEUED_CALL_FRAMES
        call = SimRelayCall(wire, certificate_pem, remote, owner)
        wire.on_record = lambda _kind, body: owner.relay_frame(call, relay_pb2.RelayFrame.FromString(body))
        wire.on_written = lambda frame: owner.relay_written(call) if frame.datagrams else None
        wire.write(METADATA, b"")
        owner.relay_opened(call)
