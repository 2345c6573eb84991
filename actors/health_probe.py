"""One probe of one backend: a TCP connection, an HTTP request over one, or a UDP datagram and any answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from actors.io import Io, TcpStream
from actors.udp_backend import SEND_FAILED, UdpBackend
from ztna.errors import RemoteProtocolError
from ztna.service.health import http_request, http_status
from ztna.settings import ConnectorService, HealthCheck, HealthKind

REDIRECTION_LIMIT = 400
"""Without other wishes, a status from 200 to below this is healthy (RFC 9110 §15)."""


class ProbeOwner(Protocol):
    """The concern that a probe belongs to."""

    io: Io

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as a message of the actor."""

    def probe_ended(self, service: str, number: int, error: str) -> None:
        """The probe is over; no error means that the backend is well."""


class HealthProbe:
    """What probes have in common: they end once, unless they are cancelled."""

    def __init__(self, owner: ProbeOwner, service: ConnectorService, number: int) -> None:
        self._owner = owner
        self._service = service
        self._number = number
        self._is_over = False

    def cancel(self) -> None:
        """Give up; nothing is reported any more."""
        self._is_over = True
        self._close()

    def _end(self, error: str = "") -> None:
        if not self._is_over:
            self._is_over = True
            self._close()
            self._owner.probe_ended(self._service.id, self._number, error)

    def _close(self) -> None:
        raise NotImplementedError


class TcpProbe(HealthProbe):
    """Connects; with `check`, also asks for a page and reads the status line."""

    def __init__(
        self,
        owner: ProbeOwner,
        service: ConnectorService,
        number: int,
        check: HealthCheck | None,
        limit_s: float,
    ) -> None:
        super().__init__(owner, service, number)
        self._check = check
        self._stream: TcpStream | None = None
        self._received = b""
        backend = service.backend
        self._cancel_connect = owner.io.connect_tcp(backend.host, backend.port, limit_s, self)

    # Socket callbacks (`TcpOwner`)

    def connected(self, stream: TcpStream) -> None:
        """The backend accepted the connection."""
        self._owner.enter(self._connected, stream)

    def data_received(self, data: bytes) -> None:
        """Bytes of the backend."""
        self._owner.enter(self._data, data)

    def eof_received(self) -> None:
        """The backend has said all."""
        self._owner.enter(self._end, "closed without an answer")

    def bytes_written(self, count: int) -> None:
        """The request is on its way."""

    def connection_lost(self, error: OSError | None) -> None:
        """No connection, or no longer."""
        reason = "closed without an answer" if error is None else error.strerror or str(error) or "timed out"
        self._owner.enter(self._end, reason)

    # Inside the actor

    def _connected(self, stream: TcpStream) -> None:
        self._stream = stream
        if self._is_over:
            stream.abort()
        elif self._check is None:
            self._end()
        else:
            backend = self._service.backend
            stream.write(http_request(self._check.host or str(backend), self._check.path))
            stream.resume_reading()

    def _data(self, data: bytes) -> None:
        if self._is_over or self._check is None:
            return
        self._received += data
        try:
            status = http_status(self._received)
        except RemoteProtocolError as error:
            self._end(str(error))
            return
        if status is not None:
            wanted = self._check.expect_status
            is_well = status in wanted if wanted else 200 <= status < REDIRECTION_LIMIT  # noqa: PLR2004 - as above
            self._end("" if is_well else f"HTTP status {status}")

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.abort()
        else:
            self._cancel_connect()


class UdpProbe(HealthProbe):
    """Sends one datagram; any answer from the backend is a good one."""

    def __init__(self, owner: ProbeOwner, service: ConnectorService, number: int, payload: bytes) -> None:
        super().__init__(owner, service, number)
        self._payload = payload
        self._backend = UdpBackend(owner, self, number, service.backend)

    # What `UdpBackend` tells, inside the actor

    def opened(self, flow_id: int) -> None:
        """The name is resolved and a socket open."""
        del flow_id
        self._backend.send([self._payload])

    def failed(self, flow_id: int, message: str) -> None:
        """There is no socket, and none will come."""
        del flow_id
        self._end(message)

    def received(self, flow_id: int, payloads: Sequence[bytes]) -> None:
        """The backend answered."""
        del flow_id, payloads
        self._end()

    def dropped(self, flow_id: int, reason: str, count: int) -> None:
        """Our datagram could not be sent, or somebody else's came."""
        del flow_id, count
        if reason == SEND_FAILED:
            self._end("the datagram could not be sent")

    def _close(self) -> None:
        self._backend.close()


def start_probe(owner: ProbeOwner, service: ConnectorService, number: int) -> HealthProbe:
    """Begin a probe as the service's settings want it; it never ends within this call."""
    check = service.health
    assert check is not None  # noqa: S101 - only services with a check are monitored
    if check.kind is HealthKind.UDP:
        return UdpProbe(owner, service, number, check.send.encode())
    return TcpProbe(owner, service, number, check if check.kind is HealthKind.HTTP else None, check.timeout_s)
