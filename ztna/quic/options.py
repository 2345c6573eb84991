"""How a QUIC connection is set up: identity, judgement of the peer, sizes, times and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ztna.quic.packet_numbers import NARROW_WINDOW_PACKETS, WIDE_WINDOW_PACKETS
from ztna.quic.windows import WindowLimits

INNER_ALPN = "ztna/1"
LEG_ALPN = "ztna-relay/1"
INNER_MAX_DATAGRAM_BYTES = 1200
"""The smallest that RFC 9000 §14 allows, so that a sealed packet fits any relay leg."""
LEG_MAX_DATAGRAM_BYTES = 1232
"""The UDP payload of IPv6 at its minimum MTU of 1280: carries 2 + 1200 bytes in one DATAGRAM frame."""
INNER_IDLE_TIMEOUT_S = 300.0
LEG_IDLE_TIMEOUT_S = 30.0
HANDSHAKE_TIMEOUT_S = 10.0
"""Five retransmissions at the initial probe timeout of 0.2 s, doubling."""
INNER_WINDOW_CAP_BYTES = 4 * 1024 * 1024
"""15 MB/s, which one core does, over a round-trip time of 280 ms."""
LEG_WINDOW_BYTES = 4 * 1024 * 1024
"""The same for a leg, whose window is constant: it bounds the packets remembered as in flight."""
INNER_ACK_DELAY_S = 0.004
"""Acknowledging this late saves a tenth of the work of a bulk transfer."""
LEG_ACK_DELAY_S = 0.020
"""A leg's acknowledgements only feed its RTT; 20 ms stays below the 25 ms announced as max_ack_delay."""
KEY_UPDATE_AFTER_PACKETS = 1 << 22
"""Half of what AES-GCM may seal with one key (RFC 9001 §6.6: 2^23 packets)."""
INNER_WINDOWS = WindowLimits()
LEG_WINDOWS = WindowLimits(max_stream_bytes=512 * 1024, growth_budget_bytes=1024 * 1024, max_streams=16)
"""A leg has one signaling stream; the rest is room for a reconnect that overlaps."""

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey
PeerVerifier = Callable[[Sequence[x509.Certificate]], object]
"""Judges a chain, leaf first; raises `ztna.errors.AuthenticationError` or returns who the peer is."""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Everything that is settled before a connection starts; sizes in bytes, times in seconds.

    Attributes:
        alpn: the one application protocol that both ends must speak.
        certificate, certificate_chain, private_key: our identity, leaf and intermediates apart.
        verify_peer: called inside the handshake, once the peer proved to hold the leaf's key.
        max_datagram_size: UDP payload of the largest packet sent; at least 1200.
        windows: bounds of what the peer may send unread.
        inner_governs: no congestion control and no pacing, since what is carried has its own.
        congestion_window_cap_bytes: the largest congestion window, or the constant one if `inner_governs`.
        duplicate_window_packets: how late, in packets, a packet may arrive and still count.
        server_name: name sent as SNI; nobody is judged by it.
    """

    alpn: str
    certificate: x509.Certificate
    private_key: PrivateKey = field(repr=False)
    verify_peer: PeerVerifier
    certificate_chain: tuple[x509.Certificate, ...] = ()
    max_datagram_size: int = INNER_MAX_DATAGRAM_BYTES
    idle_timeout_s: float = INNER_IDLE_TIMEOUT_S
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    windows: WindowLimits = INNER_WINDOWS
    inner_governs: bool = False
    congestion_window_cap_bytes: int = INNER_WINDOW_CAP_BYTES
    ack_delay_s: float = INNER_ACK_DELAY_S
    duplicate_window_packets: int = WIDE_WINDOW_PACKETS
    key_update_after_packets: int = KEY_UPDATE_AFTER_PACKETS
    server_name: str | None = None

    @classmethod
    def inner(
        cls,
        *,
        certificate: x509.Certificate,
        private_key: PrivateKey,
        verify_peer: PeerVerifier,
        certificate_chain: tuple[x509.Certificate, ...] = (),
    ) -> ConnectionOptions:
        """Options of a session between agent and connector, whose path changes beneath it."""
        return cls(
            alpn=INNER_ALPN,
            certificate=certificate,
            private_key=private_key,
            verify_peer=verify_peer,
            certificate_chain=certificate_chain,
        )

    @classmethod
    def leg(
        cls,
        *,
        certificate: x509.Certificate,
        private_key: PrivateKey,
        verify_peer: PeerVerifier,
        certificate_chain: tuple[x509.Certificate, ...] = (),
    ) -> ConnectionOptions:
        """Options of a relay leg to the intermediate."""
        return cls(
            alpn=LEG_ALPN,
            certificate=certificate,
            private_key=private_key,
            verify_peer=verify_peer,
            certificate_chain=certificate_chain,
            max_datagram_size=LEG_MAX_DATAGRAM_BYTES,
            idle_timeout_s=LEG_IDLE_TIMEOUT_S,
            windows=LEG_WINDOWS,
            inner_governs=True,
            congestion_window_cap_bytes=LEG_WINDOW_BYTES,
            ack_delay_s=LEG_ACK_DELAY_S,
            duplicate_window_packets=NARROW_WINDOW_PACKETS,
        )
