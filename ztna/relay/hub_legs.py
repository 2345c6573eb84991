"""The legs of an intermediate, as its relay keeps them: QUIC connections, and gRPC streams."""

from __future__ import annotations

from dataclasses import dataclass, field

from ztna.access.identity import VerifiedPeer
from ztna.address import TransportAddress
from ztna.quic.connection import Connection
from ztna.relay.carrier import CarrierKind
from ztna.relay.frame import MAX_BATCH_PACKETS
from ztna.relay.queue import FairScheduler
from ztna.signaling.framing import FrameDecoder
from ztna.token_bucket import TokenBucket

MAX_DATAGRAMS_PENDING = 16
"""A leg is fed only below this, so that what is dropped is decided by our queue, not by an unbounded one."""


@dataclass(slots=True, eq=False, kw_only=True)
class HubLeg:
    """What legs of either kind have in common."""

    number: int
    queue: FairScheduler[bytes]
    heard_at: float
    hellos: TokenBucket
    peer: VerifiedPeer | None = None
    attach_id: bytes = b""
    judging: dict[int, bytes] = field(default_factory=dict)  # PING -> attachment asked about


@dataclass(slots=True, eq=False, kw_only=True)
class QuicLeg(HubLeg):
    """One QUIC connection."""

    connection: Connection
    remote: TransportAddress
    local_host: str
    decoder: FrameDecoder = field(default_factory=FrameDecoder)
    network: str = ""  # that pays for its handshake, until that is over
    has_control: bool = False  # only the node can open its stream
    told: tuple[str, int] | None = None  # where it was told to be
    has_signaling: bool = False
    is_signaling_over: bool = False  # it ended, from either side; what still comes has no reader

    @property
    def kind(self) -> CarrierKind:
        """How its packets travel."""
        return CarrierKind.QUIC

    @property
    def portion(self) -> int:
        """So many packets are queued before the leg is fed."""
        return MAX_DATAGRAMS_PENDING

    @property
    def is_closed(self) -> bool:
        """It relays nothing more."""
        return self.connection.is_closed

    @property
    def address(self) -> tuple[str, int]:
        """Where its packets come from."""
        return (self.remote.host, self.remote.port)


@dataclass(slots=True, eq=False, kw_only=True)
class StreamLeg(HubLeg):
    """One gRPC stream."""

    stream: int
    remote: str
    is_closed: bool = False
    is_writing: bool = False
    last_ping: int = 0

    @property
    def kind(self) -> CarrierKind:
        """How its packets travel."""
        return CarrierKind.GRPC

    @property
    def portion(self) -> int:
        """So many packets are queued before the leg is fed."""
        return MAX_BATCH_PACKETS
