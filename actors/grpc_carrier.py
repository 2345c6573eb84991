"""One `Attach` stream to an intermediate over gRPC: the default carrier of signaling.

The certificate of the intermediate is not shown to Python, so the attachment proves role and revocation once
more inside the stream.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from actors.credentials import Credentials
from actors.grpc_stream import CLOSE_GRACE_S, GrpcStream
from ztna.v1 import signaling_pb2, signaling_pb2_grpc

# Frames waiting for a slow stream. An attachment sends a handful at once; a thousand means it is stuck.
MAX_QUEUED_FRAMES = 1024


class CarrierOwner(Protocol):
    """Whoever uses a carrier; called on the loop thread."""

    def carrier_frame(self, carrier: object, frame: signaling_pb2.SignalingFrame) -> None:
        """A frame arrived."""

    def carrier_closed(self, carrier: object, reason: str, detail: str, is_authentication: bool) -> None:
        """The stream is over; comes once, and not after `close`."""


class GrpcCarrier(GrpcStream[signaling_pb2.SignalingFrame]):
    """One attempt."""

    close_limit_s = 2 * CLOSE_GRACE_S

    def __init__(
        self, target: str, intermediate_id: str, credentials: Credentials, owner: CarrierOwner
    ) -> None:
        """Dial `target` (host:port) at once; must be called on the event loop's thread."""
        self._owner = owner
        super().__init__(
            target,
            intermediate_id,
            credentials,
            lambda channel: signaling_pb2_grpc.SignalingServiceStub(channel).Attach(),
            MAX_QUEUED_FRAMES,
        )

    def _tell_frame(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._owner.carrier_frame(self, frame)

    def _tell_closed(self, reason: str, detail: str, is_authentication: bool) -> None:
        self._owner.carrier_closed(self, reason, detail, is_authentication)

    async def _finish(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self._call.done_writing()
                # The other end finishes the stream once it has read everything.
                await asyncio.shield(self._reader)
