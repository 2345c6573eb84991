"""What the relay of an intermediate wants done. `connection` numbers a relay leg, and is never used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ztna.access.identity import VerifiedPeer
from ztna.address import TransportAddress
from ztna.relay.carrier import CarrierKind


@dataclass(frozen=True, slots=True)
class HubTransmit:
    """UDP payloads for one address, in order."""

    remote: TransportAddress
    local_host: str
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class HubConnectionIds:
    """Local connection IDs that lead to a leg from now on, or no longer."""

    connection: int
    added: tuple[bytes, ...]
    retired: tuple[bytes, ...]
    forget_all: bool = False


@dataclass(frozen=True, slots=True)
class LegConnected:
    """A node's certificate was accepted."""

    connection: int
    peer: VerifiedPeer
    remote: TransportAddress | str
    carrier: CarrierKind = CarrierKind.QUIC


@dataclass(frozen=True, slots=True)
class LegRefused:
    """A connection ended before both ends were authenticated; `message` is for people."""

    remote: TransportAddress
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LegClosed:
    """An authenticated leg is gone."""

    connection: int
    peer: VerifiedPeer
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class AddressChanged:
    """Tell the node the source address that we see: with its first control frame, and at each change."""

    connection: int
    address: TransportAddress


@dataclass(frozen=True, slots=True)
class ControlReceived:
    """One leg control frame."""

    connection: int
    body: bytes


@dataclass(frozen=True, slots=True)
class HelloAnswered:
    """Tell the node whether its leg is bound; `rejection` is empty when it is."""

    connection: int
    peer: VerifiedPeer
    attach_id: bytes
    rejection: str
    max_packet_bytes: int
    carrier: CarrierKind = CarrierKind.QUIC


@dataclass(frozen=True, slots=True)
class LegJudged:
    """Verdict, or news, about the leg of an attachment."""

    attach_id: bytes
    is_alive: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SignalingChanged:
    """The signaling stream of a leg opened, or ended."""

    connection: int
    is_open: bool
    peer: VerifiedPeer
    remote: TransportAddress


@dataclass(frozen=True, slots=True)
class SignalingReceived:
    """Bytes of a signaling stream."""

    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamWrite:
    """One frame for a gRPC stream; of a frame with datagrams `handle_stream_written` has to tell."""

    stream: int
    control: bytes = b""
    datagrams: tuple[bytes, ...] = ()
    ping: int = 0
    pong: int = 0


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """End a gRPC stream behind what was written."""

    stream: int
    reason: str


HubEffect: TypeAlias = (
    HubTransmit
    | HubConnectionIds
    | LegConnected
    | LegRefused
    | LegClosed
    | AddressChanged
    | ControlReceived
    | HelloAnswered
    | LegJudged
    | SignalingChanged
    | SignalingReceived
    | StreamWrite
    | StreamClosed
)
