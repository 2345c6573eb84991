"""One TCP connection of a service: a socket on one side, a stream of a session on the other, a core between.

`actors/client_pump.py` and `actors/backend_pump.py` add how the two ends begin.

A pump belongs to the service concern of its node. Socket callbacks enter that actor first, so that they count
as its messages. What the core asks for becomes calls of the socket and messages to the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import Message

from actors.io import Io, TcpStream
from actors.service_counters import ServiceCounters
from actors.service_session import ServiceSession
from ztna.errors import LocalProtocolError
from ztna.service.tcp import BackendConnection, ClientConnection
from ztna.service.tcp_effects import (
    AbortSocket,
    Consumed,
    Established,
    Finished,
    PauseReading,
    ResetStream,
    ResumeReading,
    SendToStream,
    StopStream,
    StreamError,
    Summary,
    TcpEffect,
    WriteSocketEof,
    WriteToSocket,
)
from ztna.v1 import quic_session_pb2

# A quarter of the smallest window of a stream: the sender hears of room well before it has used up the rest.
CONSUMED_STEP_BYTES = 16 * 1024
# A stream that stays below the step is interactive: nobody waits for its credit, so it need not hurry.
CONSUMED_DELAY_S = 0.02


class PumpOwner(Protocol):
    """What a pump needs of the concern that it belongs to."""

    io: Io
    now: float
    emit: Callable[[Message], None]

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as a message of the actor."""

    def deadline_changed(self, pump: TcpPump) -> None:
        """`pump.next_deadline()` may have another answer."""

    def pump_established(self, pump: TcpPump) -> None:
        """Bytes of the service may pass."""

    def pump_finished(self, pump: TcpPump, summary: Summary) -> None:
        """The connection is over; the pump is no longer in its session."""


class TcpPump:
    """What both ends do. Attributes are for the owner to read.

    Attributes:
        session: None until a client has been given one.
        stream_id: of that session.
        service: its name; the connector learns it from the header.
        counters: of the service, if it is one of ours.
        is_established: whether bytes of the service may pass, or did.
    """

    def __init__(self, owner: PumpOwner) -> None:
        self.session: ServiceSession | None = None
        self.stream_id = 0
        self.service = ""
        self.counters: ServiceCounters | None = None
        self.is_established = False
        self._owner = owner
        self._stream: TcpStream | None = None
        self._core: ClientConnection | BackendConnection | None = None
        self._is_core_paused = False
        self._is_reading = False
        self._sent_unacknowledged = 0
        self._unreported = 0
        self._flush_at: float | None = None
        # A reset and a stop belong to the end of a connection, and leave as one message.
        self._reset_code: StreamError | None = None
        self._stop_code: StreamError | None = None

    # Socket callbacks (`TcpOwner`)

    def connected(self, stream: TcpStream) -> None:
        """The socket stands."""
        self._owner.enter(self._connected, stream)

    def data_received(self, data: bytes) -> None:
        """Bytes from the socket."""
        self._owner.enter(self._socket_data, data)

    def eof_received(self) -> None:
        """FIN from the socket."""
        self._owner.enter(self._socket_eof)

    def bytes_written(self, count: int) -> None:
        """The kernel took bytes."""
        self._owner.enter(self._socket_written, count)

    def connection_lost(self, error: OSError | None) -> None:
        """The socket is gone."""
        self._owner.enter(self._connection_lost, error)

    # From the session

    def stream_data(self, data: bytes, *, end_of_stream: bool) -> None:
        """Bytes of the stream."""
        self._running.handle_stream_data(data, end_of_stream, self._owner.now)
        self._act()

    def stream_acknowledged(self, size_bytes: int) -> None:
        """The peer has these bytes."""
        size_bytes = min(size_bytes, self._sent_unacknowledged)
        self._release(size_bytes)
        self._running.handle_sent(size_bytes, self._owner.now)
        self._act()
        if self._session.is_full:
            self.update_reading()

    def stream_aborted(self, code: int, *, is_reset: bool) -> None:
        """The peer gave up a direction."""
        if is_reset:
            self._running.handle_stream_reset(code, self._owner.now)
        else:
            self._running.handle_stream_stopped(code, self._owner.now)
        self._act()

    def abort(self, code: StreamError, detail: str) -> None:
        """End the connection for a reason of our own; `detail` is a snake_case word."""
        self._running.handle_abort(code, detail, self._owner.now)
        self._act()

    def update_reading(self) -> None:
        """Read from the socket exactly while core and session have room for it."""
        stream, session = self._stream, self.session
        if stream is None or session is None:
            return
        is_reading = not self._is_core_paused and session.has_room(self._sent_unacknowledged)
        if is_reading != self._is_reading:
            self._is_reading = is_reading
            if is_reading:
                stream.resume_reading()
            else:
                stream.pause_reading()

    # Time

    def next_deadline(self) -> float | None:
        """The earlier of the core's deadline and that of credit held back."""
        deadline = None if self._core is None else self._core.next_deadline()
        if self._flush_at is None or (deadline is not None and deadline < self._flush_at):
            return deadline
        return self._flush_at

    def handle_timeout(self, now: float) -> None:
        """Whatever is due."""
        if self._flush_at is not None and now >= self._flush_at:
            self._report_consumed()
        self._running.handle_timeout(now)
        self._act()

    # Inside

    @property
    def _running(self) -> ClientConnection | BackendConnection:
        core = self._core
        assert core is not None  # noqa: S101 - a pump is known to a session only with its core
        return core

    def _connected(self, stream: TcpStream) -> None:
        raise NotImplementedError

    def _connection_lost(self, error: OSError | None) -> None:
        """None: both directions ended in order, or we aborted; the core has heard of either already."""
        if error is not None and self._core is not None:
            self._core.handle_socket_reset(self._owner.now)
            self._act()

    def _count_from_socket(self, size_bytes: int) -> None:
        raise NotImplementedError

    def _count_to_socket(self, size_bytes: int) -> None:
        raise NotImplementedError

    def _socket_data(self, data: bytes) -> None:
        self._count_from_socket(len(data))
        self._running.handle_socket_data(data, self._owner.now)
        self._act()

    def _socket_eof(self) -> None:
        self._running.handle_socket_eof(self._owner.now)
        self._act()

    def _socket_written(self, count: int) -> None:
        self._count_to_socket(count)
        self._running.handle_socket_written(count, self._owner.now)
        self._act()

    def _act(self) -> None:
        for effect in self._running.drain():
            match effect:
                case SendToStream():
                    self._send(effect)
                case WriteToSocket():
                    self._socket.write(effect.data)
                case Consumed():
                    self._unreported += effect.size_bytes
                case Finished():
                    self._finish(effect.summary)
                    return
                case _:
                    self._perform(effect)
        if self._unreported >= CONSUMED_STEP_BYTES:
            self._report_consumed()
        elif self._unreported and self._flush_at is None:
            self._flush_at = self._owner.now + CONSUMED_DELAY_S
        self._owner.deadline_changed(self)
        self._decide()

    def _perform(self, effect: TcpEffect) -> None:
        """Carry out what comes once or twice in the life of a connection."""
        match effect:
            case WriteSocketEof():
                self._socket.write_eof()
            case PauseReading() | ResumeReading():
                self._is_core_paused = isinstance(effect, PauseReading)
                self.update_reading()
            case ResetStream():
                self._reset_code = effect.code
            case StopStream():
                self._stop_code = effect.code
            case Established():
                self.is_established = True
                self._owner.pump_established(self)
            case AbortSocket():
                self._abort_socket()
            case _:
                raise LocalProtocolError(f"{type(effect).__name__} is for the other end")

    def _decide(self) -> None:
        """Act on what only became known with the last effects, once they are all carried out."""

    @property
    def _socket(self) -> TcpStream:
        stream = self._stream
        assert stream is not None  # noqa: S101 - the core writes to a socket that it was told of
        return stream

    @property
    def _session(self) -> ServiceSession:
        session = self.session
        assert session is not None  # noqa: S101 - set together with the core
        return session

    def _abort_socket(self) -> None:
        if self._stream is not None:
            self._stream.abort()

    def _send(self, effect: SendToStream) -> None:
        session = self._session
        if not session.is_open:
            return
        size_bytes = len(effect.data)
        self._sent_unacknowledged += size_bytes
        self._owner.emit(
            quic_session_pb2.SendPayload(
                session_id=session.session_id,
                stream_id=self.stream_id,
                data=effect.data,
                end_of_stream=effect.end,
            )
        )
        session.sent(size_bytes)
        if session.is_full:
            self.update_reading()

    def _release(self, size_bytes: int) -> None:
        self._sent_unacknowledged -= size_bytes
        self._session.acknowledged(size_bytes)

    def _report_consumed(self) -> None:
        size_bytes, self._unreported = self._unreported, 0
        self._flush_at = None
        session = self._session
        if size_bytes and session.is_open:
            self._owner.emit(
                quic_session_pb2.PayloadConsumed(
                    session_id=session.session_id, stream_id=self.stream_id, size_bytes=size_bytes
                )
            )

    def _finish(self, summary: Summary) -> None:
        session = self._session
        self._report_consumed()
        code = self._stop_code if self._reset_code is None else self._reset_code
        if code is not None and session.is_open:
            self._owner.emit(
                quic_session_pb2.AbortStream(
                    session_id=session.session_id,
                    stream_id=self.stream_id,
                    code=code,
                    reset=self._reset_code is not None,
                    stop=self._stop_code is not None,
                )
            )
        unacknowledged, self._sent_unacknowledged = self._sent_unacknowledged, 0
        session.forget_stream(self.stream_id, unacknowledged, is_reset=self._reset_code is not None)
        self._owner.pump_finished(self, summary)
