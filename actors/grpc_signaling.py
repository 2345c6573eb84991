"""The gRPC listener of an intermediate: mutual TLS, `Attach` streams, health and reflection.

Judges nobody and knows no frame: each stream reports to its owner on the loop thread what it received and
when it ended, and writes what it is given, in order, from one bounded queue. A node that does not read loses
its stream. Certificates are fetched per handshake, so that a reload serves new connections at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast
from urllib.parse import unquote

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from actors.credentials import Credentials
from actors.sockaddr import SOCKET_FAMILY, to_sockaddr
from ztna.address import TransportAddress
from ztna.errors import describe
from ztna.signaling.framing import MAX_FRAME_BYTES
from ztna.v1 import signaling_pb2, signaling_pb2_grpc

HANDSHAKE_LIMIT_MS = 10_000
"""For TLS, like that of a relay leg."""

STOP_GRACE_S = 1.0
"""For the last frames of every stream to be written while the daemon stops, of the 5 s it has."""

REFUSAL_GRACE_S = 1.0
"""For the first frame of a stream that is refused at once to arrive. A status that crosses a frame on its way
is lost at the other end: gRPC then knows only that its write failed."""

_SERVICE_NAME = signaling_pb2.DESCRIPTOR.services_by_name["SignalingService"].full_name

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    # By default a stranger who dribbles bytes has a place for two minutes.
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_LIMIT_MS),
    # A node whose address vanished sends no FIN: two missed pings tell.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Nodes ping every 10 s; the default would answer that with GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Two processes on one port would each see half of the nodes.
    ("grpc.so_reuseport", 0),
]

_ANY_IPV6 = "::"
_FAMILY_MISSING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

_Context: TypeAlias = "aio.ServicerContext[signaling_pb2.SignalingFrame, signaling_pb2.SignalingFrame]"


class StreamOwner(Protocol):
    """Whoever serves the streams; called on the loop thread, for each stream in this order."""

    def stream_opened(self, stream: GrpcStream) -> None:
        """A node opened a stream; nothing about it is judged yet but possession of some key."""

    def stream_frame(self, stream: GrpcStream, frame: signaling_pb2.SignalingFrame) -> None:
        """A frame arrived."""

    def stream_closed(self, stream: GrpcStream) -> None:
        """The stream is over, whoever ended it; comes once."""


class GrpcStream:
    """One `Attach` call. `certificate_pem` is what the node presented in the TLS handshake."""

    def __init__(self, certificate_pem: bytes, remote: str, max_queued: int) -> None:
        self.certificate_pem = certificate_pem
        self.remote = remote
        self._max_queued = max_queued
        self._outgoing: asyncio.Queue[signaling_pb2.SignalingFrame | None] = asyncio.Queue()
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._has_read = asyncio.Event()

    def send(self, frame: signaling_pb2.SignalingFrame) -> None:
        """Queue a frame; a full queue ends the stream."""
        if self._status is not None:
            return
        if self._outgoing.qsize() >= self._max_queued:
            self.close(grpc.StatusCode.RESOURCE_EXHAUSTED, "you do not read what is sent to you")
        else:
            self._outgoing.put_nowait(frame)

    def expect(self, frames: int) -> None:
        """Let so many frames more wait: the node has asked for them all at once."""
        self._max_queued += frames

    def close(self, status: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the stream behind what is queued; harmless when repeated."""
        if self._status is None:
            self._status = (status, detail)
            self._outgoing.put_nowait(None)

    async def serve(self, context: _Context, owner: StreamOwner) -> None:
        """Carry frames both ways until either side ends the stream."""
        owner.stream_opened(self)
        reader = asyncio.get_running_loop().create_task(self._read(context, owner))
        try:
            while (frame := await self._outgoing.get()) is not None:
                await context.write(frame)
            status, detail = self._status or (grpc.StatusCode.OK, "")
            if status is not grpc.StatusCode.OK:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFUSAL_GRACE_S):
                        await self._has_read.wait()
        finally:
            reader.cancel()
            owner.stream_closed(self)
        if status is not grpc.StatusCode.OK:
            await context.abort(status, detail)

    async def _read(self, context: _Context, owner: StreamOwner) -> None:
        try:
            while True:
                frame: object = await context.read()
                self._has_read.set()
                if not isinstance(frame, signaling_pb2.SignalingFrame):
                    break  # the node finished its direction
                owner.stream_frame(self, frame)
        finally:
            self._has_read.set()
            self.close()


class GrpcSignalingServer(signaling_pb2_grpc.SignalingServiceServicer):
    """Listens on `address`. Must be made on the event loop's thread.

    `credentials` is asked at every handshake; `max_connections` also counts those that have shown none yet.
    Raises `OSError` when the address cannot be bound.
    """

    def __init__(
        self,
        address: TransportAddress,
        credentials: Callable[[], Credentials],
        owner: StreamOwner,
        max_queued_frames: int,
        max_connections: int,
    ) -> None:
        self._owner = owner
        self._max_queued = max_queued_frames
        self._health = health.aio.HealthServicer()
        # Beyond it gRPC closes what it accepts; at the end of all descriptors nothing else would work either.
        self._server = aio.server(
            options=[*_OPTIONS, ("grpc.max_allowed_incoming_connections", max_connections)]
        )
        signaling_pb2_grpc.add_SignalingServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        _check_bindable(address)
        try:
            port = self._server.add_secure_port(str(address), _server_credentials(credentials))
        except RuntimeError as error:
            raise OSError(f"cannot bind gRPC signaling to {address} (grpc.listen)") from error
        self.address = TransportAddress(address.host, port)
        """Where it listens, with the real port."""
        # asyncio keeps only weak references to tasks.
        self._task = asyncio.get_running_loop().create_task(self._start())

    def stop(self) -> asyncio.Task[None]:
        """Accept nothing more; streams may write what is queued for `STOP_GRACE_S`, then the task ends."""
        self._task = asyncio.get_running_loop().create_task(self._stop(self._task))
        return self._task

    async def Attach(  # type: ignore[override]  # noqa: N802 - the stub knows generators only; the schema's name
        self, request_iterator: object, context: _Context
    ) -> None:
        """Serve one node."""
        del request_iterator  # `context.read` takes frames one at a time
        presented = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        remote = remote_text(context.peer())
        await GrpcStream(presented, remote, self._max_queued).serve(context, self._owner)

    async def _start(self) -> None:
        await self._server.start()
        for name in ("", _SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def _stop(self, start: asyncio.Task[None]) -> None:
        await start
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_GRACE_S)


def remote_text(peer: str) -> str:
    """`host:port` of what gRPC calls `ipv4:host:port` or `ipv6:%5Bhost%5D:port`."""
    return unquote(peer.partition(":")[2])


def _check_bindable(address: TransportAddress) -> None:
    """Raise `OSError` with the kernel's reason, which gRPC writes to stderr and keeps from its caller."""
    try:
        with socket.socket(SOCKET_FAMILY[address.family]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(to_sockaddr(address))
            probe.listen(1)
    except OSError as error:
        if error.errno in _FAMILY_MISSING and address.host == _ANY_IPV6:
            return  # on a host without IPv6, gRPC takes this for every IPv4 address
        raise OSError(
            error.errno, f"cannot bind gRPC signaling to {address} (grpc.listen): {describe(error)}"
        ) from error


def _server_credentials(credentials: Callable[[], Credentials]) -> grpc.ServerCredentials:
    def configuration(current: Credentials) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(current.private_key_pem, current.certificate_pem)], root_certificates=current.ca_pem
        )

    served = credentials()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        latest = credentials()
        if latest is served:
            return None
        served = latest
        return configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        configuration(served), cast("Any", fetch), require_client_authentication=True
    )
