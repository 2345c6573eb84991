"""One `Relay` stream to an intermediate over gRPC: what carries a relay leg where UDP does not pass.

As with signaling, a channel is made for each attempt and closed with it. Frames are written one at a time;
the core behind the owner gives one batch of packets after the other, so nothing piles up here.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc
from grpc import aio

from actors.credentials import Credentials
from actors.grpc_carrier import CLOSE_GRACE_S, explain, open_channel
from ztna.v1 import relay_pb2, relay_pb2_grpc

MAX_QUEUED_FRAMES = 64
"""A batch, a hello and answers to PINGs: an intermediate that asks more often than it reads is not there."""


class RelayStreamOwner(Protocol):
    """Whoever uses a stream; called on the loop thread."""

    def stream_opened(self, stream: object) -> None:
        """The intermediate took the call; comes before any frame."""

    def stream_frame(self, stream: object, frame: relay_pb2.RelayFrame) -> None:
        """A frame arrived."""

    def stream_written(self, stream: object) -> None:
        """A frame with packets is on its way."""

    def stream_closed(self, stream: object, reason: str, detail: str, is_authentication: bool) -> None:
        """The stream is over, or none came to be; comes once, and not after `close`."""


class GrpcRelayStream:
    """One attempt."""

    def __init__(
        self, target: str, intermediate_id: str, credentials: Credentials, owner: RelayStreamOwner
    ) -> None:
        """Dial `target` (host:port) at once; must be called on the event loop's thread."""
        self._owner = owner
        self._outgoing: asyncio.Queue[relay_pb2.RelayFrame | None] = asyncio.Queue(MAX_QUEUED_FRAMES)
        self._is_closed = False
        self._is_open = False
        self._name, self._channel = open_channel(target, intermediate_id, credentials)
        self._call = relay_pb2_grpc.RelayServiceStub(self._channel).Relay()
        self._loop = asyncio.get_running_loop()
        # asyncio keeps only weak references to tasks.
        self._reader = self._loop.create_task(self._read())
        self._writer = self._loop.create_task(self._write())

    def send(self, frame: relay_pb2.RelayFrame) -> None:
        """Queue a frame; a queue that is full ends the stream."""
        if self._is_closed:
            return
        try:
            self._outgoing.put_nowait(frame)
        except asyncio.QueueFull:
            # Later, so that nobody is called back while sending.
            self._loop.call_soon(self._report, "overflow", "the intermediate does not read", False)

    def close(self) -> None:
        """Let go, behind what is queued if that leaves at once; nothing is reported any more."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._outgoing.put_nowait(None)
        except asyncio.QueueFull:
            self._writer.cancel()
        else:
            # A stream that takes no more bytes must not hold the channel open.
            self._loop.call_later(CLOSE_GRACE_S, self._writer.cancel)

    async def _write(self) -> None:
        try:
            while (frame := await self._outgoing.get()) is not None:
                await self._call.write(frame)
                if frame.datagrams and not self._is_closed:
                    self._owner.stream_written(self)
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError):
            # gRPC also raises CancelledError for a call that the other end cancelled.
            await asyncio.wait([self._reader], timeout=CLOSE_GRACE_S)  # it reports the status
        finally:
            self._reader.cancel()
            await self._channel.close()

    async def _read(self) -> None:
        try:
            await self._call.initial_metadata()
            if not self._call.done() and not self._is_closed:
                self._is_open = True
                self._owner.stream_opened(self)
            async for frame in self._call:
                if not self._is_closed:
                    self._owner.stream_frame(self, frame)
            code, detail = await self._call.code(), await self._call.details() or ""
        except aio.AioRpcError as error:
            code, detail = error.code(), error.details() or ""
        except asyncio.CancelledError:
            code, detail = grpc.StatusCode.CANCELLED, ""
        self._report(*explain(code, detail, self._name, has_received=self._is_open))

    def _report(self, reason: str, detail: str, is_authentication: bool) -> None:
        if not self._is_closed:
            self.close()
            self._owner.stream_closed(self, reason, detail, is_authentication)
