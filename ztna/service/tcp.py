"""One TCP connection over one bidirectional stream: the agent's end and the connector's end.

    agent                                   connector
    header, early client bytes  ----------> holds them; is the header granted? connects the backend
    passes service bytes        <---------- answer, then service bytes

Header and answer are opaque here, each behind a 2-byte big-endian length. From then on both ends do the same
(`ztna.service.tcp_connection`): an end of stream is a FIN and the reverse, each direction on its own, and a
reset of either side resets the other.
"""

from __future__ import annotations

from collections.abc import Callable

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.service.tcp_connection import (
    MAX_EARLY_BYTES,
    PREFIX_BYTES,
    Phase,
    TcpConnection,
    encode_prefixed,
    split_prefixed,
)
from ztna.service.tcp_effects import (
    BACKEND_FAILED_MESSAGE,
    AbortSocket,
    Answer,
    ConnectBackend,
    HeaderReceived,
    StopStream,
    StreamError,
)

# Three SYN transmissions on Linux (0, 1 and 3 s).
DEFAULT_CONNECT_TIMEOUT_S = 5.0


class ClientConnection(TcpConnection):
    """The agent's end: a client's socket is there from the start, and its bytes follow the header at once."""

    def __init__(self, header: bytes, decode_answer: Callable[[bytes], Answer], now: float) -> None:
        """Open the stream with `header`, of 1 to MAX_HEADER_BYTES.

        `decode_answer` is pure and may raise `RemoteProtocolError`.
        """
        super().__init__(Phase.AWAITING_ANSWER, StreamError.CLIENT_RESET, now)
        self._decode_answer = decode_answer
        self._send(encode_prefixed(header))

    def handle_timeout(self, now: float) -> None:
        """Give up a stream that was not answered in time."""
        if self._deadline is not None and now >= self._deadline:
            self._abort(StreamError.BACKEND_UNREACHABLE, "answer_timed_out", now)

    def _send_room(self) -> int:
        room = super()._send_room()
        if self._phase is Phase.AWAITING_ANSWER:
            sent_early = self._bytes_from_socket - len(self._pending)
            room = min(room, MAX_EARLY_BYTES - sent_early)
        return room

    def _continue_opening(self, now: float) -> None:
        split = split_prefixed(self._opening)
        if split is None:
            if self._is_receive_ended:
                raise RemoteProtocolError("answer_truncated")
            return
        body, first_bytes = split
        answer = self._decode_answer(body)
        if answer.code is StreamError.NO_ERROR:
            self._consume(PREFIX_BYTES + len(body))
            self._enter(Phase.ESTABLISHED)
            self._establish(first_bytes, now)
        else:
            self._abort(answer.code, "refused", now, message=answer.message)


class BackendConnection(TcpConnection):
    """The connector's end: header, decision, backend, then bytes."""

    def __init__(
        self,
        encode_answer: Callable[[Answer], bytes],
        now: float,
        *,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
    ) -> None:
        """Take over a stream that the agent opened; `encode_answer` is pure."""
        super().__init__(Phase.AWAITING_HEADER, StreamError.BACKEND_RESET, now)
        self._encode_answer = encode_answer
        self._connect_timeout_s = connect_timeout_s

    def accept(self, now: float) -> None:
        """Decide that the header is granted, and connect the backend."""
        if self._enter(Phase.CONNECTING):
            self._deadline = now + self._connect_timeout_s
            self._effects.append(ConnectBackend())

    def refuse(self, code: StreamError, now: float, message: str = "") -> None:
        """Decide that it is not; the agent is told why."""
        if self._phase is Phase.FINISHED:
            return
        if self._phase is not Phase.DECIDING or code is StreamError.NO_ERROR:
            raise LocalProtocolError(f"refusing with {code.name} while {self._phase.name}")
        self._answer_no(Answer(code, message), "refused", now)

    def handle_backend_connected(self, now: float) -> None:
        """Take the backend's socket into use: answer, then write the early bytes."""
        if self._enter(Phase.ESTABLISHED):
            self._send(encode_prefixed(self._encode_answer(Answer(StreamError.NO_ERROR))))
            self._establish(bytes(self._opening), now)

    def handle_backend_failed(self, now: float, message: str = "") -> None:
        """Take the failure of the backend's socket to connect."""
        if self._phase is Phase.FINISHED:
            return
        if self._phase is not Phase.CONNECTING:
            raise LocalProtocolError(f"the backend failed to connect while {self._phase.name}")
        answer = Answer(StreamError.BACKEND_UNREACHABLE, BACKEND_FAILED_MESSAGE)
        self._answer_no(answer, "backend_unreachable", now, message)

    def handle_timeout(self, now: float) -> None:
        """Give up a header that is not complete or decided, or a backend that does not answer, in time."""
        if self._deadline is None or now < self._deadline:
            return
        if self._phase is Phase.CONNECTING:
            self._effects.append(AbortSocket())
            answer = Answer(StreamError.BACKEND_UNREACHABLE, "the backend did not answer in time")
            self._answer_no(answer, "backend_timed_out", now)
        else:
            self._abort(StreamError.INVALID, "opening_timed_out", now)

    def _has_socket(self) -> bool:
        return self._phase in {Phase.CONNECTING, Phase.ESTABLISHED}

    def _continue_opening(self, now: float) -> None:
        del now
        if self._phase is Phase.AWAITING_HEADER:
            split = split_prefixed(self._opening)
            if split is None:
                if self._is_receive_ended:
                    raise RemoteProtocolError("header_truncated")
                return
            header, early = split
            self._opening[:] = early
            self._consume(PREFIX_BYTES + len(header))
            self._enter(Phase.DECIDING)
            self._effects.append(HeaderReceived(header))
        if len(self._opening) > MAX_EARLY_BYTES:
            raise RemoteProtocolError("early_bytes_exceeded", f"{len(self._opening)} bytes")

    def _answer_no(self, answer: Answer, detail: str, now: float, message: str = "") -> None:
        """Tell the agent `answer`; `message` is for our own log, where it may say more."""
        self._send(encode_prefixed(self._encode_answer(answer)), end=True)
        if not self._is_receive_ended:
            self._effects.append(StopStream(answer.code))
        self._finish(answer.code, detail, now, message or answer.message)
