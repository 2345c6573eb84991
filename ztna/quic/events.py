"""What a QUIC connection tells its owner: one frozen value per fact, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CloseReason(StrEnum):
    """Why a connection ended, fit to be a metric label and a log key."""

    CLOSED = "closed"
    """Closed on purpose by an application, with or without an application error code."""
    IDLE_TIMEOUT = "idle_timeout"
    UNACKNOWLEDGED = "unacknowledged"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    VERSION_NEGOTIATION = "version_negotiation"
    CERTIFICATE_REQUIRED = "certificate_required"
    BAD_CERTIFICATE = "bad_certificate"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    UNKNOWN_CA = "unknown_ca"
    ACCESS_DENIED = "access_denied"
    TLS_ERROR = "tls_error"
    PROTOCOL_ERROR = "protocol_error"
    INTERNAL_ERROR = "internal_error"
    """An unexpected exception at this end, or the peer's report of one at its own."""


AUTHENTICATION_FAILURES = frozenset(
    {
        CloseReason.CERTIFICATE_REQUIRED,
        CloseReason.BAD_CERTIFICATE,
        CloseReason.CERTIFICATE_EXPIRED,
        CloseReason.CERTIFICATE_REVOKED,
        CloseReason.UNKNOWN_CA,
        CloseReason.ACCESS_DENIED,
    }
)


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """Both ends accepted each other's certificate; `Connection.peer` holds what `verify_peer` returned."""

    alpn: str


@dataclass(frozen=True, slots=True)
class PeerAccepted:
    """A client accepted its server and may send; whether the server accepts the client is not known yet.

    It saves a round trip to whoever has something to say. `HandshakeCompleted` or `ConnectionClosed` follows.
    """


@dataclass(frozen=True, slots=True)
class StreamDataReceived:
    """Bytes of a stream, in order. Report what became of them with `Connection.consume`."""

    stream_id: int
    data: bytes
    end_of_stream: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer gave up its sending part; bytes not yet consumed are given back by the connection itself."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class StopSendingReceived:
    """The peer reads no more of this stream; what was still to be sent has been dropped."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """The payload of one DATAGRAM frame (RFC 9221)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ConnectionIdsChanged:
    """Connection IDs by which packets to this connection may arrive from now on, and no longer."""

    added: tuple[bytes, ...] = ()
    retired: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PingAcknowledged:
    """The PING that `Connection.ping` numbered `ping_id` was acknowledged."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class SendCredit:
    """`size_bytes` more of this stream were acknowledged in order and left the send buffer."""

    stream_id: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The connection carries no more data; told once, at the beginning of the closing period.

    Attributes:
        reason: the label.
        code: error code of RFC 9000 §20 (0x100 + alert for TLS), or the application's.
        is_remote: the peer closed.
        message: a sentence for people; it holds the peer's words if `is_remote`, so never trust it.
    """

    reason: CloseReason
    code: int
    is_remote: bool
    message: str

    @property
    def is_authentication_failure(self) -> bool:
        """Whether either end refused the other's certificate."""
        return self.reason in AUTHENTICATION_FAILURES


Event = (
    HandshakeCompleted
    | PeerAccepted
    | StreamDataReceived
    | StreamReset
    | StopSendingReceived
    | DatagramReceived
    | ConnectionIdsChanged
    | PingAcknowledged
    | SendCredit
    | ConnectionClosed
)
