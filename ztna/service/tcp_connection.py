"""What both ends of a carried TCP connection share: credit, half-close, reset, framing of the opening.

Both directions run on credit. Towards the session at most MAX_IN_FLIGHT_BYTES are on their way;
more pauses the socket. Towards the socket nothing is held once the connection is established: a byte counts
as consumed when the kernel took it, so the peer's flow-control window bounds what waits. Over a
connection's life every received byte is reported `Consumed` exactly once.

After `Finished` late inputs are harmless: stream bytes are consumed at once, everything else is ignored.
"""

from __future__ import annotations

import struct
from enum import Enum, auto

from ztna.errors import LocalProtocolError, RemoteProtocolError
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

_LENGTH = struct.Struct(">H")
PREFIX_BYTES = _LENGTH.size

# A header holds a service name and a sealed grant with its chain, an answer one sentence: 8 KiB is several
# times either, and small beside the early bytes that an undecided stream may hold anyway.
MAX_HEADER_BYTES = 8192
# Client bytes held before the backend is connected: a TLS hello or an HTTP request fits, while the 1024
# streams of one agent hold at most 64 MiB (docs/wire.md §6).
MAX_EARLY_BYTES = 65_536
# Bytes of one connection between socket and the peer's acknowledgement: the high watermark of a stream in
# `ztna.quic.connection`, 10 MB/s over a round trip of 100 ms.
MAX_IN_FLIGHT_BYTES = 1_048_576
# Half: reading starts again while the session still has work, without a switch per packet.
RESUME_BELOW_BYTES = MAX_IN_FLIGHT_BYTES // 2
# A stream must be answered, or show its header, within this time: the backend's 5 s and a relay outage of
# 15 s.
MAX_OPENING_S = 20.0


class Phase(Enum):
    """How far a connection is; each end passes its own in order, and any may be followed by the last."""

    AWAITING_HEADER = auto()
    DECIDING = auto()
    CONNECTING = auto()
    AWAITING_ANSWER = auto()
    ESTABLISHED = auto()
    FINISHED = auto()


# The only phase from which another may be entered.
_ENTERED_FROM = {
    (Phase.AWAITING_HEADER, Phase.DECIDING),
    (Phase.DECIDING, Phase.CONNECTING),
    (Phase.CONNECTING, Phase.ESTABLISHED),
    (Phase.AWAITING_ANSWER, Phase.ESTABLISHED),
}


def encode_prefixed(body: bytes) -> bytes:
    """Put the length before a header or answer.

    Raises `LocalProtocolError` unless it has 1 to MAX_HEADER_BYTES bytes.
    """
    if not 0 < len(body) <= MAX_HEADER_BYTES:
        raise LocalProtocolError(f"a header or answer has 1 to {MAX_HEADER_BYTES} bytes, not {len(body)}")
    return _LENGTH.pack(len(body)) + body


def split_prefixed(buffer: bytearray) -> tuple[bytes, bytes] | None:
    """Split into body and what follows, or None while incomplete; raises `RemoteProtocolError`."""
    if len(buffer) < PREFIX_BYTES:
        return None
    (length,) = _LENGTH.unpack_from(buffer)
    if not 0 < length <= MAX_HEADER_BYTES:
        raise RemoteProtocolError("prefix_out_of_range", f"length {length}")
    end = PREFIX_BYTES + length
    return (bytes(buffer[PREFIX_BYTES:end]), bytes(buffer[end:])) if len(buffer) >= end else None


class TcpConnection:
    """One end; its subclasses open it. `now` is monotonic seconds."""

    def __init__(self, phase: Phase, socket_reset_code: StreamError, now: float) -> None:
        self._phase = phase
        self._socket_reset_code = socket_reset_code
        self._started_at = now
        self._deadline: float | None = now + MAX_OPENING_S
        self._effects: list[TcpEffect] = []
        # Towards the session.
        self._pending = bytearray()
        self._in_flight = 0
        self._bytes_from_socket = 0
        self._is_socket_ended = False
        self._is_send_ended = False
        self._is_paused = False
        # Towards the socket.
        self._opening = bytearray()
        self._unconsumed = 0
        self._unwritten = 0
        self._bytes_to_socket = 0
        self._is_receive_ended = False

    @property
    def phase(self) -> Phase:
        """How far the connection is."""
        return self._phase

    @property
    def in_flight_bytes(self) -> int:
        """Bytes given to the session that it has not sent yet."""
        return self._in_flight

    def drain(self) -> list[TcpEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which the opening is given up, or None once established."""
        return self._deadline

    # Socket towards session.

    def handle_socket_data(self, data: bytes, now: float) -> None:
        """Take bytes read from the socket. What exceeds the credit waits here, and reading is paused.

        Raises `LocalProtocolError` after the socket's end, or before there is one.
        """
        del now
        if self._phase is Phase.FINISHED:
            return
        self._require_socket()
        if self._is_socket_ended:
            raise LocalProtocolError("bytes after the end of the socket")
        room = self._send_room()
        self._bytes_from_socket += len(data)
        if not self._pending and len(data) <= room:
            self._send(data)
            self._pause_or_resume()
        else:
            self._pending += data
            self._send_pending()

    def handle_socket_eof(self, now: float) -> None:
        """Take the socket's end (FIN): the stream ends behind what is still waiting."""
        if self._phase is Phase.FINISHED or self._is_socket_ended:
            return
        self._require_socket()
        self._is_socket_ended = True
        self._send_pending()
        self._finish_if_done(now)

    def handle_socket_reset(self, now: float) -> None:
        """Take the socket's failure (RST, or any error): the stream is reset both ways."""
        if self._phase is not Phase.FINISHED:
            self._require_socket()
            self._abort(self._socket_reset_code, "socket_reset", now, has_socket=False)

    def handle_sent(self, size_bytes: int, now: float) -> None:
        """Take the news that the peer acknowledged `size_bytes` of what the session was given.

        Raises `LocalProtocolError` for more than is in flight.
        """
        if self._phase is Phase.FINISHED:
            return
        if not 0 <= size_bytes <= self._in_flight:
            raise LocalProtocolError(f"{size_bytes} bytes sent, {self._in_flight} in flight")
        self._in_flight -= size_bytes
        self._send_pending()
        self._finish_if_done(now)

    # Session towards socket.

    def handle_stream_data(self, data: bytes, end: bool, now: float) -> None:
        """Take received stream bytes, in order; `end` tells that the peer ended its direction.

        Raises `LocalProtocolError` behind that end. A peer that breaks the opening ends this connection
        alone.
        """
        if self._phase is not Phase.FINISHED and self._is_receive_ended:
            raise LocalProtocolError("stream bytes behind the end of the stream")
        self._unconsumed += len(data)
        if self._phase is Phase.FINISHED:
            self._consume(len(data))
            return
        self._is_receive_ended = end
        if self._phase is Phase.ESTABLISHED:
            self._deliver(data, now)
            return
        self._opening += data
        try:
            self._continue_opening(now)
        except RemoteProtocolError as error:
            self._abort(StreamError.INVALID, error.reason, now)

    def handle_socket_written(self, size_bytes: int, now: float) -> None:
        """Take the news that the kernel took `size_bytes`.

        Raises `LocalProtocolError` for more than it was given.
        """
        if self._phase is Phase.FINISHED:
            return
        if not 0 <= size_bytes <= self._unwritten:
            raise LocalProtocolError(f"{size_bytes} bytes written, {self._unwritten} given")
        self._unwritten -= size_bytes
        self._bytes_to_socket += size_bytes
        self._consume(size_bytes)
        self._finish_if_done(now)

    def handle_stream_reset(self, code: int, now: float) -> None:
        """Take the peer's RESET_STREAM: the socket is reset, and so is the stream's other direction."""
        self._is_receive_ended = True
        self._abort_for_peer(code, now)

    def handle_stream_stopped(self, code: int, now: float) -> None:
        """Take the peer's STOP_SENDING, answered by RESET_STREAM even behind the end (RFC 9000 §3.5)."""
        self._is_send_ended = False
        self._abort_for_peer(code, now)

    def handle_abort(self, code: StreamError, detail: str, now: float) -> None:
        """End the connection for a reason of our own, such as revocation, shutdown or the session's end.

        Raises `LocalProtocolError` for NO_ERROR, which is no reason.
        """
        if code is StreamError.NO_ERROR:
            raise LocalProtocolError("aborting needs a reason")
        self._abort(code, detail, now)

    # Shared by both ends.

    def _continue_opening(self, now: float) -> None:
        raise NotImplementedError

    def _has_socket(self) -> bool:
        return True

    def _send_room(self) -> int:
        return MAX_IN_FLIGHT_BYTES - self._in_flight

    def _require_socket(self) -> None:
        if not self._has_socket():
            raise LocalProtocolError(f"no socket while {self._phase.name}")

    def _enter(self, phase: Phase) -> bool:
        """Go on to `phase`; False when the connection is over, which a decision in progress cannot know."""
        if self._phase is Phase.FINISHED:
            return False
        if (self._phase, phase) not in _ENTERED_FROM:
            raise LocalProtocolError(f"{phase.name} does not follow {self._phase.name}")
        self._phase = phase
        return True

    def _establish(self, first_bytes: bytes, now: float) -> None:
        self._deadline = None
        self._opening.clear()
        self._effects.append(Established())
        self._send_pending()
        self._deliver(first_bytes, now)

    def _send(self, data: bytes, *, end: bool = False) -> None:
        self._in_flight += len(data)
        self._is_send_ended = end
        self._effects.append(SendToStream(data, end))

    def _send_pending(self) -> None:
        chunk = bytes(self._pending[: max(0, self._send_room())])
        del self._pending[: len(chunk)]
        end = self._is_socket_ended and not self._pending and not self._is_send_ended
        if chunk or end:
            self._send(chunk, end=end)
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        if self._is_socket_ended:
            return
        if not self._is_paused and self._send_room() <= 0:
            self._is_paused = True
            self._effects.append(PauseReading())
        elif self._is_paused and self._send_room() > 0 and self._in_flight <= RESUME_BELOW_BYTES:
            self._is_paused = False
            self._effects.append(ResumeReading())

    def _deliver(self, data: bytes, now: float) -> None:
        if data:
            self._unwritten += len(data)
            self._effects.append(WriteToSocket(data))
        if self._is_receive_ended:
            self._effects.append(WriteSocketEof())
            self._finish_if_done(now)

    def _consume(self, size_bytes: int) -> None:
        self._unconsumed -= size_bytes
        if size_bytes:
            self._effects.append(Consumed(size_bytes))

    def _abort_for_peer(self, code: int, now: float) -> None:
        # A code that we do not know, or that is no reason, must not turn an abort into an orderly end.
        if StreamError.NO_ERROR < code <= max(StreamError):
            self._abort(StreamError(code), "peer_reset", now)
        else:
            self._abort(StreamError.INTERNAL, "peer_reset_unknown_code", now)

    def _abort(
        self, code: StreamError, detail: str, now: float, *, has_socket: bool = True, message: str = ""
    ) -> None:
        if self._phase is Phase.FINISHED:
            return
        if not self._is_send_ended:
            self._effects.append(ResetStream(code))
        if not self._is_receive_ended:
            self._effects.append(StopStream(code))
        if has_socket and self._has_socket():
            self._effects.append(AbortSocket())
        self._finish(code, detail, now, message)

    def _finish_if_done(self, now: float) -> None:
        is_done = self._is_send_ended and self._is_receive_ended and not self._unwritten
        if is_done and self._phase is Phase.ESTABLISHED:
            self._finish(StreamError.NO_ERROR, "closed", now)

    def _finish(self, code: StreamError, detail: str, now: float, message: str = "") -> None:
        self._phase = Phase.FINISHED
        self._deadline = None
        self._pending.clear()
        self._opening.clear()
        self._consume(self._unconsumed)
        duration_s = now - self._started_at
        summary = Summary(code, detail, message, self._bytes_from_socket, self._bytes_to_socket, duration_s)
        self._effects.append(Finished(summary))
