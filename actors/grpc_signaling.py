"""The gRPC listener of an intermediate: mutual TLS, `Attach` and `Relay` streams, health and reflection.

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
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast
from urllib.parse import unquote

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from actors.credentials import Credentials
from actors.sockaddr import SOCKET_FAMILY, to_sockaddr
from ztna.address import TransportAddress, network_prefix, split_host_port
from ztna.errors import describe
from ztna.signaling.framing import MAX_FRAME_BYTES
from ztna.v1 import relay_pb2, relay_pb2_grpc, signaling_pb2, signaling_pb2_grpc

HANDSHAKE_LIMIT_MS = 10_000
"""For TLS, like that of a relay leg."""

STOP_GRACE_S = 1.0
"""For the last frames of every stream to be written while the daemon stops, of the 5 s it has."""

REFUSAL_GRACE_S = 1.0
"""For the first frame of a stream that is refused at once to arrive. A status that crosses a frame on its way
is lost at the other end: gRPC then knows only that its write failed."""

_SERVICE_NAME = signaling_pb2.DESCRIPTOR.services_by_name["SignalingService"].full_name
_RELAY_SERVICE_NAME = relay_pb2.DESCRIPTOR.services_by_name["RelayService"].full_name

MAX_QUEUED_RELAY_FRAMES = 64
"""Waiting for one node on its `Relay` stream: a batch of packets, and answers to what it asked. Packets wait
elsewhere, where the oldest are dropped."""

MAX_STREAMS_PER_CONNECTION = 8
"""A node has one for `Attach` and one for `Relay`, on a connection each; tools ask for health and
reflection. The others are for streams that were given up and are not gone yet. Whoever wants more waits
until one ends: any certificate of the CA, also a revoked one, gets this far, and each stream holds some 20
KiB."""

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
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


_RelayContext: TypeAlias = "aio.ServicerContext[relay_pb2.RelayFrame, relay_pb2.RelayFrame]"

FrameT = TypeVar("FrameT", signaling_pb2.SignalingFrame, relay_pb2.RelayFrame)


class StreamOwner(Protocol):
    """Whoever serves the streams; called on the loop thread, for each stream in this order."""

    def stream_opened(self, stream: GrpcStream) -> None:
        """A node opened a stream; nothing about it is judged yet but possession of some key."""

    def stream_frame(self, stream: GrpcStream, frame: signaling_pb2.SignalingFrame) -> None:
        """A frame arrived."""

    def stream_closed(self, stream: GrpcStream) -> None:
        """The stream is over, whoever ended it; comes once."""


class RelayCallOwner(Protocol):
    """Whoever serves the `Relay` streams; called on the loop thread, for each stream in this order."""

    def relay_opened(self, call: GrpcRelayCall) -> None:
        """A node opened a stream; nothing about it is judged yet but possession of some key."""

    def relay_frame(self, call: GrpcRelayCall, frame: relay_pb2.RelayFrame) -> None:
        """A frame arrived."""

    def relay_written(self, call: GrpcRelayCall) -> None:
        """A frame with packets is on its way."""

    def relay_closed(self, call: GrpcRelayCall) -> None:
        """The stream is over, whoever ended it; comes once."""


class ListenerOwner(StreamOwner, RelayCallOwner, Protocol):
    """Whoever owns the listener."""


class _Stream(Generic[FrameT]):
    """One call. `certificate_pem` is what the node presented in the TLS handshake."""

    def __init__(self, certificate_pem: bytes, remote: str, max_queued: int) -> None:
        self.certificate_pem = certificate_pem
        self.remote = remote
        self._max_queued = max_queued
        self._outgoing: asyncio.Queue[FrameT | None] = asyncio.Queue()
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._has_read = asyncio.Event()

    def send(self, frame: FrameT) -> None:
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

    async def _carry(self, context: aio.ServicerContext[FrameT, FrameT]) -> None:
        """Carry frames both ways until either side ends the stream."""
        self._opened()
        reader = asyncio.get_running_loop().create_task(self._read(context))
        try:
            while (frame := await self._outgoing.get()) is not None:
                await context.write(frame)
                self._wrote(frame)
            status, detail = self._status or (grpc.StatusCode.OK, "")
            if status is not grpc.StatusCode.OK:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFUSAL_GRACE_S):
                        await self._has_read.wait()
        finally:
            reader.cancel()
            self._ended()
        if status is not grpc.StatusCode.OK:
            await context.abort(status, detail)

    async def _read(self, context: aio.ServicerContext[FrameT, FrameT]) -> None:
        try:
            while True:
                frame = await context.read()
                self._has_read.set()
                if frame is aio.EOF:
                    break  # the node finished its direction
                self._received(frame)
        finally:
            self._has_read.set()
            self.close()

    def _opened(self) -> None:
        raise NotImplementedError

    def _received(self, frame: FrameT) -> None:
        raise NotImplementedError

    def _wrote(self, frame: FrameT) -> None:
        """A frame has left; of interest to whoever has the next one ready."""

    def _ended(self) -> None:
        raise NotImplementedError


class GrpcStream(_Stream[signaling_pb2.SignalingFrame]):
    """One `Attach` call."""

    async def serve(self, context: _Context, owner: StreamOwner) -> None:
        """Carry frames both ways until either side ends the stream."""
        self._owner = owner
        await self._carry(context)

    def _opened(self) -> None:
        self._owner.stream_opened(self)

    def _received(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._owner.stream_frame(self, frame)

    def _ended(self) -> None:
        self._owner.stream_closed(self)


class GrpcRelayCall(_Stream[relay_pb2.RelayFrame]):
    """One `Relay` call."""

    async def serve(self, context: _RelayContext, owner: RelayCallOwner) -> None:
        """Carry frames both ways until either side ends the stream."""
        self._owner = owner
        # The node says hello when it has seen this.
        await context.send_initial_metadata(())
        await self._carry(context)

    def _opened(self) -> None:
        self._owner.relay_opened(self)

    def _received(self, frame: relay_pb2.RelayFrame) -> None:
        self._owner.relay_frame(self, frame)

    def _wrote(self, frame: relay_pb2.RelayFrame) -> None:
        if frame.datagrams:
            self._owner.relay_written(self)

    def _ended(self) -> None:
        self._owner.relay_closed(self)


class GrpcSignalingServer(signaling_pb2_grpc.SignalingServiceServicer, relay_pb2_grpc.RelayServiceServicer):
    """Listens on `address`. Must be made on the event loop's thread.

    `credentials` is asked at every handshake; `max_connections` also counts those that have shown none yet.
    Raises `OSError` when the address cannot be bound.
    """

    def __init__(
        self,
        address: TransportAddress,
        credentials: Callable[[], Credentials],
        owner: ListenerOwner,
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
        relay_pb2_grpc.add_RelayServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (_SERVICE_NAME, _RELAY_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
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
        stream = GrpcStream(_presented(context), remote_text(context.peer()), self._max_queued)
        await stream.serve(context, self._owner)

    async def Relay(  # type: ignore[override]  # noqa: N802 - as above
        self, request_iterator: object, context: _RelayContext
    ) -> None:
        """Serve one relay leg."""
        del request_iterator  # as above
        call = GrpcRelayCall(_presented(context), remote_text(context.peer()), MAX_QUEUED_RELAY_FRAMES)
        await call.serve(context, self._owner)

    async def _start(self) -> None:
        await self._server.start()
        for name in ("", _SERVICE_NAME, _RELAY_SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def _stop(self, start: asyncio.Task[None]) -> None:
        await start
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_GRACE_S)


def _presented(context: aio.ServicerContext[Any, Any]) -> bytes:
    return next(iter(context.auth_context().get("x509_pem_cert", ())), b"")


def remote_text(peer: str) -> str:
    """`host:port` of what gRPC calls `ipv4:host:port` or `ipv6:%5Bhost%5D:port`."""
    return unquote(peer.partition(":")[2])


def remote_network(remote: str) -> str:
    """The prefix of a `remote_text`; empty for one that gRPC knew no more, since its connection had ended."""
    if not remote:
        return ""
    return network_prefix(TransportAddress.of(*split_host_port(remote)))


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
