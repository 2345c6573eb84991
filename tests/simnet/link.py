"""Packets, and the one-way links that delay, lose, queue and refuse them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from tests.simnet.clock import VirtualClock
from ztna.address import Family, TransportAddress

IP_HEADER_BYTES: Final = {Family.IPV4: 20, Family.IPV6: 40}
UDP_HEADER_BYTES: Final = 8
TCP_HEADER_BYTES: Final = 20
# What a lost TCP segment costs instead of the segment itself: Linux's smallest retransmission time-out.
TCP_RETRANSMISSION_S: Final = 0.2
# How much later a reordered packet comes: behind a dozen others at the rates of a simulation.
REORDERING_S: Final = 0.03


class TcpFlag(Enum):
    """What a TCP packet says."""

    SYN = "SYN"
    SYN_ACK = "SYN-ACK"
    DATA = "DATA"
    ACK = "ACK"  # the receiver read so many bytes
    FIN = "FIN"
    RST = "RST"


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet on the wire: UDP when `flag` is None."""

    source: TransportAddress
    destination: TransportAddress
    payload: bytes = b""
    flag: TcpFlag | None = None
    acked_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes with the IP and transport headers."""
        header = UDP_HEADER_BYTES if self.flag is None else TCP_HEADER_BYTES
        return IP_HEADER_BYTES[self.destination.family] + header + len(self.payload)

    def __str__(self) -> str:
        return "udp" if self.flag is None else f"tcp {self.flag.value}"


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How one direction of a link treats packets.

    `latency_s` is one way; `jitter_s` adds up to so much, evenly spread, and lets UDP packets overtake each
    other; `loss` is a probability (a TCP segment comes a retransmission later instead). With `rate_bps`
    packets leave one after the other, and a queue of `queue_bytes` forms, whose tail is dropped (UDP) or
    waits (TCP). UDP packets larger than `mtu` vanish; with `tells_mtu` their sender hears of it (ICMP). While
    `is_up` is False UDP is lost and TCP waits. `duplication`, `corruption` and `reordering` are
    probabilities, of UDP alone: a packet comes twice, with one bit changed (a checksum that happened to
    match), or `REORDERING_S` later than those behind it.
    """

    latency_s: float = 0.01
    jitter_s: float = 0.0
    loss: float = 0.0
    rate_bps: float | None = None
    queue_bytes: int = 256 * 1024
    mtu: int = 1500
    tells_mtu: bool = False
    is_up: bool = True
    duplication: float = 0.0
    corruption: float = 0.0
    reordering: float = 0.0


class Link:
    """One direction of a path between two nodes; the only place where packets meet chance and time."""

    def __init__(
        self,
        clock: VirtualClock,
        chance: random.Random,
        config: LinkConfig,
        deliver: Callable[[Packet], None],
        trace: Callable[[Packet, str], None],
        refuse: Callable[[Packet, int], None] | None = None,
    ) -> None:
        """`deliver` takes a packet at the far end; `trace` is told what happened to each and when.

        `refuse` is told of packets that are too large, and the MTU, where the link tells such things.
        """
        self._clock = clock
        self._random = chance
        self._config = config
        self._deliver = deliver
        self._trace = trace
        self._refuse = refuse
        self._free_at = 0.0
        self._last_tcp_arrival = 0.0
        self._waiting: deque[Packet] = deque()

    def configure(self, config: LinkConfig) -> None:
        """Behave so from now on; packets under way arrive as they would have."""
        self._config = config
        while self._waiting and self._config.is_up:
            self.carry(self._waiting.popleft())

    def carry(self, packet: Packet) -> None:
        """Deliver `packet` later, or lose it."""
        config = self._config
        is_tcp = packet.flag is not None
        if not config.is_up:
            if is_tcp:
                self._waiting.append(packet)
            self._trace(packet, "waits, link down" if is_tcp else "lost, link down")
            return
        if not is_tcp and packet.size > config.mtu:
            self._trace(packet, f"lost, larger than MTU {config.mtu}")
            if config.tells_mtu and self._refuse is not None:
                self._refuse(packet, config.mtu)
            return
        delay_s = config.latency_s + self._random.random() * config.jitter_s
        if self._random.random() < config.loss:
            if not is_tcp:
                self._trace(packet, "lost")
                return
            delay_s += TCP_RETRANSMISSION_S
        left_at = self._leave(packet.size, may_drop=not is_tcp)
        if left_at is None:
            self._trace(packet, "lost, queue full")
            return
        arrival = left_at + delay_s
        if is_tcp:
            arrival = self._last_tcp_arrival = max(arrival, self._last_tcp_arrival)
        self._trace(packet, "sent")
        if not is_tcp and config.duplication and self._random.random() < config.duplication:
            self._trace(packet, "doubled")
            self._clock.call_at(arrival + config.jitter_s, lambda: self._deliver(packet))
        if not is_tcp and config.reordering and self._random.random() < config.reordering:
            arrival += REORDERING_S
        arriving = packet
        if not is_tcp and config.corruption and self._random.random() < config.corruption:
            self._trace(packet, "corrupted")
            arriving = self._corrupt(packet)
        self._clock.call_at(arrival, lambda: self._deliver(arriving))

    def _corrupt(self, packet: Packet) -> Packet:
        payload = bytearray(packet.payload)
        if payload:
            payload[self._random.randrange(len(payload))] ^= 1 << self._random.randrange(8)
        return replace(packet, payload=bytes(payload))

    def _leave(self, size: int, *, may_drop: bool) -> float | None:
        """When the last bit of a packet has left, or None if the queue has no room."""
        now = self._clock.time()
        rate_bps = self._config.rate_bps
        if rate_bps is None:
            return now
        start = max(now, self._free_at)
        queued_bytes = (start - now) * rate_bps / 8
        if may_drop and queued_bytes + size > self._config.queue_bytes:
            return None
        self._free_at = start + size * 8 / rate_bps
        return self._free_at
