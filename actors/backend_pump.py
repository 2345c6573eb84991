"""The connector's end of a TCP connection: a stream that shows its grant, and then the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from actors import service_wire
from actors.io import TcpStream
from actors.service_counters import ServiceCounters
from actors.service_session import ServiceSession
from actors.tcp_pump import PumpOwner, TcpPump
from ztna.service.tcp import BackendConnection
from ztna.service.tcp_effects import ConnectBackend, HeaderReceived, StreamError, TcpEffect
from ztna.settings import HostPort


class BackendPumpOwner(PumpOwner, Protocol):
    """What the connector's end also needs."""

    def header_received(self, pump: BackendPump, header: bytes) -> None:
        """Answer with `connect` or `refuse`."""


class BackendPump(TcpPump):
    """The connector's end: a stream shows its grant, then a backend is connected."""

    def __init__(
        self, owner: BackendPumpOwner, session: ServiceSession, stream_id: int, connect_timeout_s: float
    ) -> None:
        super().__init__(owner)
        self.session, self.stream_id = session, stream_id
        session.pumps[stream_id] = self
        self._backend_owner = owner
        self._backend: HostPort | None = None
        self._connect_timeout_s = connect_timeout_s
        self._cancel: Callable[[], None] | None = None
        self._header: bytes | None = None
        self._opening = BackendConnection(
            service_wire.encode_answer, owner.now, connect_timeout_s=connect_timeout_s
        )
        self._core = self._opening

    def connect(self, counters: ServiceCounters, backend: HostPort) -> None:
        """The header is granted: connect the backend."""
        self.counters, self._backend = counters, backend
        self._opening.accept(self._owner.now)
        self._act()

    def refuse(self, code: StreamError, message: str) -> None:
        """The header is not granted: tell the agent why."""
        self._opening.refuse(code, self._owner.now, message)
        self._act()

    def _connected(self, stream: TcpStream) -> None:
        self._stream = stream
        self._cancel = None
        self._opening.handle_backend_connected(self._owner.now)
        self._act()
        self.update_reading()

    def _connection_lost(self, error: OSError | None) -> None:
        if self._stream is None:
            self._cancel = None
            self._opening.handle_backend_failed(self._owner.now, _describe(error))
            self._act()
        else:
            super()._connection_lost(error)

    def _count_from_socket(self, size_bytes: int) -> None:
        if self.counters is not None:
            self.counters.count_from_service(size_bytes)

    def _count_to_socket(self, size_bytes: int) -> None:
        if self.counters is not None:
            self.counters.count_to_service(size_bytes)

    def _perform(self, effect: TcpEffect) -> None:
        if isinstance(effect, HeaderReceived):
            self._header = effect.header
        elif isinstance(effect, ConnectBackend) and self._backend is not None:
            self._cancel = self._owner.io.connect_tcp(
                self._backend.host, self._backend.port, self._connect_timeout_s, self
            )
        else:
            super()._perform(effect)

    def _decide(self) -> None:
        header, self._header = self._header, None
        if header is not None:
            self._backend_owner.header_received(self, header)

    def _abort_socket(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
        super()._abort_socket()


def _describe(error: OSError | None) -> str:
    if error is None:
        return "the connection to the backend was given up"
    return error.strerror or str(error)
