"""Congestion control of both kinds of connections: a capped window, and a constant one for a relay leg."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

MIN_PACKET_SHARE_BYTES = 256
"""What a packet counts for at least in a constant window: remembering it takes some 700 bytes, however small
it is. So a peer that acknowledges nothing makes a leg hold 16384 packets at most."""


class CappedCubic(CubicCongestionControl):
    """CUBIC (RFC 9438) whose window stops at a cap; it would otherwise grow while little is sent."""

    def __init__(self, *, max_datagram_size: int, cap_bytes: int) -> None:
        self._cap_bytes = cap_bytes
        super().__init__(max_datagram_size=max_datagram_size)

    def reset(self) -> None:
        """Start over, as after a long silence."""
        super().reset()
        self.congestion_window = min(self.congestion_window, self._cap_bytes)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Free the packet's share; only here does the window grow."""
        super().on_packet_acked(now=now, packet=packet)
        if self.congestion_window > self._cap_bytes:  # noqa: PLR1730 - min() costs twice as much, per packet
            self.congestion_window = self._cap_bytes


class ConstantWindow(QuicCongestionControl):
    """A window that neither grows nor shrinks, for payload that has a congestion control of its own.

    A relay leg carries sealed packets of another QUIC connection. Were both to slow down at a loss, they
    would do so twice; so the inner one alone governs. This departs from RFC 9221 §5.
    """

    def __init__(self, *, max_datagram_size: int, window_bytes: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.congestion_window = window_bytes

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:  # noqa: ARG002 - the interface
        """Free the packet's share of the window."""
        self.bytes_in_flight -= _share(packet)

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """Take the packet's share of the window."""
        self.bytes_in_flight += _share(packet)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Free the packets' share of the window."""
        for packet in packets:
            self.bytes_in_flight -= _share(packet)

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:  # noqa: ARG002 - the interface
        """Free the packets' share of the window."""
        self.on_packets_expired(packets=packets)

    def on_persistent_congestion(self) -> None:
        """Keep the window."""

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Keep the window."""


def _share(packet: QuicSentPacket) -> int:
    return max(packet.sent_bytes, MIN_PACKET_SHARE_BYTES)


def capped_algorithm(cap_bytes: int) -> str:
    """Name of a congestion control that stops at `cap_bytes`, registered with aioquic."""
    name = f"ztna-cubic-{cap_bytes}"
    register_congestion_control(name, partial(CappedCubic, cap_bytes=cap_bytes))
    return name


def constant_algorithm(window_bytes: int) -> str:
    """Name of a congestion control with a constant window, registered with aioquic."""
    name = f"ztna-constant-{window_bytes}"
    register_congestion_control(name, partial(ConstantWindow, window_bytes=window_bytes))
    return name
