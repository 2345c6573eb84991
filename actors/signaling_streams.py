"""A node's signaling stream as the intermediate holds it, over either carrier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from ztna.access.identity import VerifiedPeer
from ztna.signaling.attachments import Carrier
from ztna.signaling.framing import FrameDecoder, encode
from ztna.signaling.values import Party
from ztna.v1 import quic_relay_pb2, signaling_pb2


class StreamCarrier(Protocol):
    """How frames leave."""

    def send(self, frame: signaling_pb2.SignalingFrame) -> None:
        """Send a frame behind those already sent."""

    def close(self, status: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the stream behind what was sent."""


class LegCarrier:
    """Stream 4 of a relay leg."""

    def __init__(self, connection: int, emit: Callable[[quic_relay_pb2.SendLegSignalingBytes], None]) -> None:
        self.decoder = FrameDecoder()
        self._connection = connection
        self._emit = emit

    def send(self, frame: signaling_pb2.SignalingFrame) -> None:
        """Frame the message and hand it to the relay."""
        data = encode(frame.SerializeToString())
        self._emit(quic_relay_pb2.SendLegSignalingBytes(connection=self._connection, data=data))

    def close(self, status: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the stream; the leg follows. An error frame has said why."""
        del status, detail
        self._emit(quic_relay_pb2.SendLegSignalingBytes(connection=self._connection, close=True))


@dataclass(slots=True, eq=False)
class Stream:
    """One stream of a verified node. `attach_id` is empty before its AttachRequest, due by `deadline`."""

    carrier: StreamCarrier
    kind: Carrier
    peer: VerifiedPeer
    connection: int
    deadline: float
    attach_id: bytes = b""
    sent: int = 0
    received: int = 0

    @property
    def party(self) -> Party:
        """Who is at the other end."""
        identity = self.peer.identity
        return Party(identity.role, identity.id, self.peer.fingerprint)
