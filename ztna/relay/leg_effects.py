"""What a node's relay leg wants done, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ztna.address import TransportAddress
from ztna.relay.carrier import CarrierKind


@dataclass(frozen=True, slots=True)
class LegTransmit:
    """UDP payloads for the intermediate, in order. The list grows until it is drained."""

    remote: TransportAddress
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class LegConnectionIds:
    """Local connection IDs that lead to this leg from now on, or no longer."""

    added: tuple[bytes, ...]
    retired: tuple[bytes, ...]
    forget_all: bool = False


@dataclass(frozen=True, slots=True)
class LegDialWanted:
    """Resolve the intermediate's name and call `handle_resolved`."""


@dataclass(frozen=True, slots=True)
class LegConnected:
    """The QUIC connection stands: both ends are authenticated."""

    remote: TransportAddress


@dataclass(frozen=True, slots=True)
class LegLost:
    """A carrier is gone. `retry_in_s` is None when it is not to be tried again by itself."""

    reason: str
    detail: str
    is_authentication_failure: bool
    retry_in_s: float | None
    carrier: CarrierKind = CarrierKind.QUIC


@dataclass(frozen=True, slots=True)
class LegControlReceived:
    """One leg control frame."""

    body: bytes
    carrier: CarrierKind = CarrierKind.QUIC


@dataclass(frozen=True, slots=True)
class LegSignalingReceived:
    """Bytes of the signaling stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class LegPathChanged:
    """A session can, or can no longer, be reached through this leg; told again when the carrier changed."""

    session_id: bytes
    is_up: bool
    max_packet_bytes: int


@dataclass(frozen=True, slots=True)
class LegSealedReceived:
    """Relayed packets of one session, in order of arrival."""

    session_id: bytes
    packets: list[bytes]


@dataclass(frozen=True, slots=True)
class StreamDialWanted:
    """Open a stream to the intermediate, in place of a former one; then call `handle_stream_opened`."""


@dataclass(frozen=True, slots=True)
class StreamSend:
    """One frame for the stream; of a frame with datagrams `handle_stream_written` has to tell."""

    hello: bytes = b""
    datagrams: tuple[bytes, ...] = ()
    ping: int = 0
    pong: int = 0


@dataclass(frozen=True, slots=True)
class StreamCloseWanted:
    """Finish the stream, behind what was sent."""


LegEffect: TypeAlias = (
    LegTransmit
    | LegConnectionIds
    | LegDialWanted
    | LegConnected
    | LegLost
    | LegControlReceived
    | LegSignalingReceived
    | LegPathChanged
    | LegSealedReceived
    | StreamDialWanted
    | StreamSend
    | StreamCloseWanted
)
