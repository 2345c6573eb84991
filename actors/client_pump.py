"""The agent's end of a TCP connection: a client that waits for its service, and then is carried."""

from __future__ import annotations

from typing import Protocol

from actors import service_wire
from actors.io import TcpStream
from actors.service_counters import ServiceCounters
from actors.service_session import ServiceSession
from actors.tcp_pump import PumpOwner, TcpPump
from ztna.service.tcp import ClientConnection
from ztna.v1 import grant_pb2

# A connector that refuses stops our direction and sends its answer; QUIC writes the STOP_SENDING frame first.
# The answer, which tells people why, comes in the same packet or with the next retransmission.
ANSWER_GRACE_S = 1.0


class ClientPumpOwner(PumpOwner, Protocol):
    """What the agent's end also needs."""

    def client_connected(self, pump: ClientPump) -> None:
        """A client wants the service."""

    def client_gone(self, pump: ClientPump) -> None:
        """It no longer waits."""


class ClientPump(TcpPump):
    """The agent's end: a client's socket waits, unread, until its service has a session."""

    def __init__(self, owner: ClientPumpOwner, counters: ServiceCounters) -> None:
        super().__init__(owner)
        self.service = counters.service
        self.counters = counters
        self._client_owner = owner
        self._service_counters = counters
        self.grant = grant_pb2.SealedGrant()
        self._stopped: tuple[int, float] | None = None

    def open(
        self, session: ServiceSession, stream_id: int, grant: grant_pb2.SealedGrant, header: bytes
    ) -> None:
        """Carry the connection over a new stream; `header` shows the grant."""
        self.session, self.stream_id, self.grant = session, stream_id, grant
        session.pumps[stream_id] = self
        self._core = ClientConnection(header, service_wire.decode_answer, self._owner.now)
        self._act()
        self.update_reading()

    def reset(self) -> None:
        """Reset a client that still waits."""
        self._abort_socket()

    def stream_aborted(self, code: int, *, is_reset: bool) -> None:
        """The peer gave up a direction; a stop before the answer waits for it."""
        if is_reset or self.is_established or self._stopped is not None:
            super().stream_aborted(code, is_reset=is_reset)
        else:
            self._stopped = (code, self._owner.now + ANSWER_GRACE_S)
            self._owner.deadline_changed(self)

    def next_deadline(self) -> float | None:
        """Also that of an answer which should be on its way."""
        deadline = super().next_deadline()
        if self._stopped is None:
            return deadline
        return self._stopped[1] if deadline is None else min(deadline, self._stopped[1])

    def handle_timeout(self, now: float) -> None:
        """Also take a stop for what it says when no answer came."""
        if self._stopped is not None and now >= self._stopped[1]:
            code, self._stopped = self._stopped[0], None
            super().stream_aborted(code, is_reset=False)
        else:
            super().handle_timeout(now)

    def _connected(self, stream: TcpStream) -> None:
        self._stream = stream
        self._client_owner.client_connected(self)

    def _connection_lost(self, error: OSError | None) -> None:
        if self._core is None:
            self._client_owner.client_gone(self)
        super()._connection_lost(error)

    def _count_from_socket(self, size_bytes: int) -> None:
        self._service_counters.count_to_service(size_bytes)

    def _count_to_socket(self, size_bytes: int) -> None:
        self._service_counters.count_from_service(size_bytes)
