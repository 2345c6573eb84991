"""One UDP flow's socket towards its backend, which hears that backend alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Protocol

from actors.io import DatagramBatch, Io, UdpSocket
from ztna.address import Family, TransportAddress
from ztna.settings import HostPort

SEND_FAILED = "send_failed"
"""Reason of a drop: the kernel, or the backend's host, refused a datagram of ours."""


class UdpBackendOwner(Protocol):
    """What a backend socket needs of the concern that it belongs to."""

    io: Io

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as a message of the actor."""


class UdpBackendFlow(Protocol):
    """Who hears of the socket, inside the actor."""

    def opened(self, flow_id: int) -> None:
        """Datagrams may be sent."""

    def failed(self, flow_id: int, message: str) -> None:
        """There is no socket, and none will come."""

    def received(self, flow_id: int, payloads: Sequence[bytes]) -> None:
        """Datagrams of the backend."""

    def dropped(self, flow_id: int, reason: str, count: int) -> None:
        """Datagrams did not get through."""


class UdpBackend:
    """Resolves the backend, opens a socket of its family, and compares every source with it."""

    def __init__(self, owner: UdpBackendOwner, flow: UdpBackendFlow, flow_id: int, backend: HostPort) -> None:
        self._owner = owner
        self._flow = flow
        self._flow_id = flow_id
        self._socket: UdpSocket | None = None
        self._remote: TransportAddress | None = None
        self._is_closed = False
        owner.io.resolve(backend.host, backend.port, self._resolved)

    def send(self, payloads: Sequence[bytes]) -> None:
        """Send to the backend; dropped while there is no socket."""
        if self._socket is None or self._remote is None:
            return
        taken = self._socket.send(payloads, self._remote)
        if taken < len(payloads):
            self._flow.dropped(self._flow_id, "buffer_full", len(payloads) - taken)

    def close(self) -> None:
        """Close the socket; nothing is reported any more."""
        self._is_closed = True
        if self._socket is not None:
            self._socket.close()

    # Callbacks of the I/O port

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Something arrived at our port, from whomever."""
        del now
        self._owner.enter(self._received, batches)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """The kernel refused a datagram, one of many: a flow does not end by it."""
        del remote, error, now
        self._owner.enter(self._flow.dropped, self._flow_id, SEND_FAILED, 1)

    def _resolved(self, addresses: list[TransportAddress], error: OSError | None) -> None:
        self._owner.enter(self._open, addresses, error)

    # Inside the actor

    def _open(self, addresses: list[TransportAddress], error: OSError | None) -> None:
        if self._is_closed:
            return
        if not addresses:
            self._flow.failed(self._flow_id, _describe(error, "the backend's name has no address"))
            return
        remote = addresses[0]
        try:
            self._socket = self._owner.io.open_udp(_local_for(remote), self, may_fragment=True)
        except OSError as open_error:
            self._flow.failed(self._flow_id, _describe(open_error, "no socket"))
            return
        self._remote = remote
        self._flow.opened(self._flow_id)

    def _received(self, batches: list[DatagramBatch]) -> None:
        if self._is_closed:
            return
        for batch in batches:
            if batch.remote == self._remote:
                self._flow.received(self._flow_id, batch.payloads)
            else:
                self._flow.dropped(self._flow_id, "stray_source", len(batch.payloads))


def _local_for(remote: TransportAddress) -> TransportAddress:
    """An ephemeral port where the backend's answers can arrive; a local backend's, only from this host."""
    is_loopback = ipaddress.ip_address(remote.host).is_loopback
    if remote.family is Family.IPV6:
        return TransportAddress("::1" if is_loopback else "::", 0)
    return TransportAddress("127.0.0.1" if is_loopback else "0.0.0.0", 0)  # noqa: S104 - the route decides


def _describe(error: OSError | None, otherwise: str) -> str:
    return otherwise if error is None else error.strerror or str(error)
