"""Numbers that a connection can be asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoundTripTime:
    """RTT figures of the path (RFC 9002 §5), in seconds."""

    latest: float
    smoothed: float
    variation: float
    minimum: float


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """Counters since the start, and the congestion window of the moment."""

    datagrams_sent: int
    datagrams_received: int
    bytes_sent: int
    bytes_received: int
    packets_lost: int
    congestion_window_bytes: int
    bytes_in_flight: int
    oversize_datagrams_dropped: int
    key_updates: int
    internal_errors: int
