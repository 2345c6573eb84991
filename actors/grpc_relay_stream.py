"""One `Relay` stream to an intermediate over gRPC: what carries a relay leg where UDP does not pass.

The core behind the owner gives one batch of packets after the other, so nothing piles up here.
"""

from __future__ import annotations

from typing import Protocol

from actors.credentials import Credentials
from actors.grpc_stream import GrpcStream
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


class GrpcRelayStream(GrpcStream[relay_pb2.RelayFrame]):
    """One attempt."""

    def __init__(
        self, target: str, intermediate_id: str, credentials: Credentials, owner: RelayStreamOwner
    ) -> None:
        """Dial `target` (host:port) at once; must be called on the event loop's thread."""
        self._owner = owner
        super().__init__(
            target,
            intermediate_id,
            credentials,
            lambda channel: relay_pb2_grpc.RelayServiceStub(channel).Relay(),
            MAX_QUEUED_FRAMES,
        )

    async def _open(self) -> None:
        await self._call.initial_metadata()
        if not self._call.done() and not self._is_closed:
            self._has_received = True
            self._owner.stream_opened(self)

    def _tell_frame(self, frame: relay_pb2.RelayFrame) -> None:
        self._owner.stream_frame(self, frame)

    def _tell_written(self, frame: relay_pb2.RelayFrame) -> None:
        if frame.datagrams:
            self._owner.stream_written(self)

    def _tell_closed(self, reason: str, detail: str, is_authentication: bool) -> None:
        self._owner.stream_closed(self, reason, detail, is_authentication)
