"""A node's signaling stream as the intermediate holds it, over either carrier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from ztna.access.identity import VerifiedPeer
from ztna.errors import RemoteProtocolError
from ztna.signaling.attachments import Carrier
from ztna.signaling.framing import MAX_FRAME_BYTES, FrameDecoder, encode
from ztna.signaling.resume import MAX_RESUME_BYTES, MAX_RESUMED_SESSIONS
from ztna.signaling.round_trip import RoundTrip
from ztna.signaling.values import Party
from ztna.v1 import quic_relay_pb2, signaling_pb2, signaling_service_pb2


class StreamCarrier(Protocol):
    """How frames leave."""

    def send(self, frame: signaling_pb2.SignalingFrame) -> None:
        """Send a frame behind those already sent."""

    def expect(self, frames: int) -> None:
        """So many frames may come in one burst that the node has asked for."""

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

    def expect(self, frames: int) -> None:
        """The relay counts bytes, of which it has room for thousands of such frames."""

    def close(self, status: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the stream; the leg follows. An error frame has said why."""
        del status, detail
        self._emit(quic_relay_pb2.SendLegSignalingBytes(connection=self._connection, close=True))


@dataclass(slots=True)
class Introduction:
    """What a node says before it is attached: its AttachRequest, and whatever did not fit into that.

    `event` is what will be told of it, so that thousands of sessions need not be copied at once.
    """

    request: signaling_pb2.AttachRequest
    event: signaling_service_pb2.NodeAttached = field(default_factory=signaling_service_pb2.NodeAttached)
    size_bytes: int = 0
    is_complete: bool = False

    def __post_init__(self) -> None:
        """Take the sessions of the request itself; raises as `add` does."""
        self._take(self.request.ByteSize(), self.request)

    def add(self, more: signaling_pb2.ResumeMore) -> None:
        """Take further sessions.

        Raises `RemoteProtocolError` (`empty_resume`, `too_many_sessions`): each frame has to bring some, and
        there are `MAX_RESUMED_SESSIONS` in `MAX_RESUME_BYTES` at most.
        """
        if not more.resume:
            raise RemoteProtocolError("empty_resume", "a frame without a session")
        self._take(more.ByteSize(), more)

    def _take(self, size_bytes: int, frame: signaling_pb2.AttachRequest | signaling_pb2.ResumeMore) -> None:
        self.size_bytes += size_bytes
        count = len(self.event.resume) + len(frame.resume)
        # The other fields of the request, and each frame's own, are the node's to spend.
        if count > MAX_RESUMED_SESSIONS or self.size_bytes > MAX_RESUME_BYTES + MAX_FRAME_BYTES:
            raise RemoteProtocolError("too_many_sessions", f"{count} sessions, {self.size_bytes} bytes")
        self.event.resume.extend(frame.resume)
        self.is_complete = not frame.has_more


@dataclass(slots=True, eq=False)
class Stream:
    """One stream of a verified node, who came from `remote` (`host:port`).

    `attach_id` is empty before its introduction, due by `deadline`.
    """

    carrier: StreamCarrier
    kind: Carrier
    peer: VerifiedPeer
    connection: int
    deadline: float
    remote: str = ""
    attach_id: bytes = b""
    introduction: Introduction | None = None
    sent: int = 0
    received: int = 0
    is_over: bool = False
    round_trip: RoundTrip = field(default_factory=RoundTrip)

    @property
    def party(self) -> Party:
        """Who is at the other end."""
        identity = self.peer.identity
        return Party(identity.role, identity.id, self.peer.fingerprint)
