"""A stream of frames in both directions to an intermediate over gRPC: what signaling and relay legs share.

A channel is made for each attempt and closed with it, so that the only backoff is ours. The channel's TLS
checks the chain and the DNS name. Frames are written one at a time.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar
from urllib.parse import unquote

import grpc
from grpc import aio

from actors.credentials import Credentials
from ztna.access.identity import Identity, Role

MAX_FRAME_BYTES = 65_536

CLOSE_GRACE_S = 0.5

FrameT = TypeVar("FrameT")

WRITE_CROSSED_END = "Internal error from Core"

_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A proxy taken from the environment would see a connection that it cannot speak.
    ("grpc.enable_http_proxy", 0),
    # Every attempt dials anew; a shared subchannel would sit out its own backoff.
    ("grpc.use_local_subchannel_pool", 1),
]

_AUTHENTICATION_CODES = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

# What gRPC's TLS says of a certificate, in order of preference, and what people understand.
_CERTIFICATE_FAULTS = (
    ("certificate has expired", "its certificate has expired, or the clock here is wrong"),
    ("certificate is not yet valid", "its certificate is not valid yet, or the clock here is wrong"),
    ("Hostname Verification", "its certificate names somebody else"),
    ("unable to get local issuer certificate", "its certificate was not issued by this deployment's CA"),
    ("certificate signature failure", "its certificate was not issued by this deployment's CA"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not acceptable"),
)

# All that TLS 1.3 lets a client see of a server that refuses its certificate.
_CLOSED_IN_HANDSHAKE = "Socket closed"

# How gRPC words that no connection came to be. It writes the brackets of an IPv6 address in hexadecimal.
_UNREACHABLE = re.compile(
    r"last error: \w+: (?:ipv[46]:)?(?P<address>\S+): (?:Failed to connect to remote host: )?(?P<what>.+)"
)
_UNRESOLVABLE = re.compile(r"address lookup failed for (?P<what>[^]]+)")
_NO_TLS = "WRONG_VERSION_NUMBER"


# How it words that a connection did not last, and what people understand.
_LOST = (
    ("Socket closed", "the connection was closed"),
    ("Broken pipe", "the connection was closed"),
    ("Connection reset by peer", "the connection was reset"),
    ("keepalive watchdog timeout", "nothing was heard for too long"),
    ("ping timeout", "nothing was heard for too long"),
)


def open_channel(target: str, intermediate_id: str, credentials: Credentials) -> tuple[str, aio.Channel]:
    """Make a channel of its own to an intermediate at `target` (host:port); returns its name for people, too.

    Must be called on the event loop's thread. Nothing is dialled before the first call.
    """
    identity = Identity(credentials.identity.trust_domain, Role.INTERMEDIATE, intermediate_id)
    channel = aio.secure_channel(
        target,
        grpc.ssl_channel_credentials(
            credentials.ca_pem, credentials.private_key_pem, credentials.certificate_pem
        ),
        options=[*_OPTIONS, ("grpc.ssl_target_name_override", identity.dns_name)],
    )
    return str(identity), channel


def explain(code: grpc.StatusCode, detail: str, name: str, *, has_received: bool) -> tuple[str, str, bool]:
    """Reason, detail for people, and whether a certificate is to blame, for the end of a call.

    `name` is the intermediate's, for people; `has_received`: it said something before.
    """
    # A write that crosses the end of the stream makes gRPC forget the status that the other side gave.
    is_lost = code is grpc.StatusCode.INTERNAL and detail == WRITE_CROSSED_END
    if is_lost:
        detail = "the intermediate ended the stream"
    reason = "stream_ended" if is_lost or code is grpc.StatusCode.OK else code.name.lower()
    fault = certificate_fault(detail) if code is grpc.StatusCode.UNAVAILABLE else ""
    words = in_words(detail)
    if fault:
        reason, words = "untrusted_intermediate", f"{name}: {fault} (gRPC: {words})"
    elif _CLOSED_IN_HANDSHAKE in detail and not has_received:
        words = f"{name} hung up; if it refuses this node's certificate, its log says why ({words})"
    return reason, words, bool(fault) or code in _AUTHENTICATION_CODES


class GrpcStream(ABC, Generic[FrameT]):
    """One attempt: a channel, one bidirectional call on it, and the frames that wait to be written."""

    close_limit_s = CLOSE_GRACE_S
    """Time for what is queued when it closes."""

    def __init__(
        self,
        target: str,
        intermediate_id: str,
        credentials: Credentials,
        call: Callable[[aio.Channel], aio.StreamStreamCall[FrameT, FrameT]],
        max_queued_frames: int,
    ) -> None:
        """Dial `target` (host:port) at once; must be called on the event loop's thread.

        `call` begins the call; at most `max_queued_frames` wait to be written.
        """
        self._outgoing: asyncio.Queue[FrameT | None] = asyncio.Queue(max_queued_frames)
        self._is_closed = False
        self._has_received = False
        self._name, self._channel = open_channel(target, intermediate_id, credentials)
        self._call = call(self._channel)
        self._loop = asyncio.get_running_loop()
        # asyncio keeps only weak references to tasks.
        self._reader = self._loop.create_task(self._read())
        self._writer = self._loop.create_task(self._write())

    @abstractmethod
    def _tell_frame(self, frame: FrameT) -> None:
        """Tell the owner of a frame."""

    @abstractmethod
    def _tell_closed(self, reason: str, detail: str, is_authentication: bool) -> None:
        """Tell the owner of the end; comes once, and not after `close`."""

    async def _open(self) -> None:
        """Whatever comes before the first frame."""

    def _tell_written(self, frame: FrameT) -> None:
        """Tell the owner that a frame is on its way."""

    async def _finish(self) -> None:
        """Whatever comes behind the last frame."""

    def send(self, frame: FrameT) -> None:
        """Queue a frame; a queue that is full ends the stream."""
        if self._is_closed:
            return
        try:
            self._outgoing.put_nowait(frame)
        except asyncio.QueueFull:
            # Later, so that nobody is called back while sending.
            self._loop.call_soon(self._report, "overflow", "the intermediate does not read", False)

    def close(self) -> None:
        """Send what is queued if that leaves at once, and let go; nothing is reported any more."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._outgoing.put_nowait(None)
        except asyncio.QueueFull:
            self._writer.cancel()
        else:
            # A stream that takes no more bytes must not hold the channel open.
            self._loop.call_later(self.close_limit_s, self._writer.cancel)

    async def _write(self) -> None:
        try:
            while (frame := await self._outgoing.get()) is not None:
                await self._call.write(frame)
                if not self._is_closed:
                    self._tell_written(frame)
            await self._finish()
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError):
            # gRPC also raises CancelledError for a call that the other end cancelled.
            await asyncio.wait([self._reader], timeout=CLOSE_GRACE_S)  # it reports the status
        finally:
            self._reader.cancel()
            await self._channel.close()

    async def _read(self) -> None:
        try:
            await self._open()
            async for frame in self._call:
                self._has_received = True
                if not self._is_closed:
                    self._tell_frame(frame)
            code, detail = await self._call.code(), await self._call.details() or ""
        except aio.AioRpcError as error:
            code, detail = error.code(), error.details() or ""
        except asyncio.CancelledError:
            code, detail = grpc.StatusCode.CANCELLED, ""
        self._report(*explain(code, detail, self._name, has_received=self._has_received))

    def _report(self, reason: str, detail: str, is_authentication: bool) -> None:
        if not self._is_closed:
            self.close()
            self._tell_closed(reason, detail, is_authentication)


def certificate_fault(detail: str) -> str:
    """What is wrong with the other end's certificate, as far as gRPC tells; empty for any other trouble."""
    return next((words for sign, words in _CERTIFICATE_FAULTS if sign in detail), "")


def in_words(detail: str) -> str:
    """What gRPC says of a failed call, without the names it has for its own parts."""
    unresolvable = _UNRESOLVABLE.search(detail)
    if unresolvable is not None:
        return unresolvable["what"]
    unreachable = _UNREACHABLE.search(detail)
    if unreachable is None:
        return next((words for sign, words in _LOST if sign in detail), detail)
    address, what = unquote(unreachable["address"]), unreachable["what"]
    if _NO_TLS in what:
        return f"{address}: does not speak TLS, so this is not `grpc.listen` of an intermediate"
    return f"{address}: {what}"
