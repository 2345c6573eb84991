"""What one datagram costs on loopback: our socket with and without offload, beside a plain loop.

CPU time of this process per datagram of 1200 bytes, the best of a few rounds (the machine may be shared).
Sending and receiving are timed apart: a burst is sent, then drained. Run it with
`python -m tools.bench udp`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from actors.io import DatagramBatch
from actors.udp_asyncio import AsyncioUdpSocket
from ztna.address import TransportAddress

PAYLOAD_BYTES: Final = 1200
# Fits the default limit of the receive buffer (208 KiB), at about 2.3 KiB of kernel memory a datagram.
BURST: Final = 64
BURSTS: Final = 100
ROUNDS: Final = 5
RECEIVE_TIMEOUT_S: Final = 5.0
LOOPBACK: Final = TransportAddress("127.0.0.1", 0)


class _Counter:
    """Counts down to the end of a burst."""

    def __init__(self) -> None:
        self.missing = 0
        self.has_all = asyncio.Event()

    def datagrams_received(self, batches: list[DatagramBatch], _now: float) -> None:
        self.missing -= sum(len(batch.payloads) for batch in batches)
        if self.missing <= 0:
            self.has_all.set()

    def send_failed(self, _remote: TransportAddress, error: OSError, _now: float) -> None:
        raise error


class _Ours:
    def __init__(self, *, use_offload: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.counter = _Counter()
        self.receiver = AsyncioUdpSocket(self.loop, LOOPBACK, self.counter, use_offload=use_offload)
        self.sender = AsyncioUdpSocket(self.loop, LOOPBACK, _Counter(), use_offload=use_offload)

    def send(self, payloads: list[bytes]) -> None:
        self.sender.send(payloads, self.receiver.local_address)

    def receive(self, count: int) -> None:
        self.counter.missing = count
        self.counter.has_all.clear()
        self.loop.run_until_complete(asyncio.wait_for(self.counter.has_all.wait(), RECEIVE_TIMEOUT_S))

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()
        self.loop.close()


class _Plain:
    def __init__(self) -> None:
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", 0))
        self.receiver.setblocking(False)
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = self.receiver.getsockname()

    def send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.sender.sendto(payload, self.address)

    def receive(self, count: int) -> None:
        for _ in range(count):
            self.receiver.recvfrom(2048)

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


def _measure(make: Callable[[], _Ours | _Plain]) -> tuple[float, float]:
    """Microseconds of CPU time per datagram: sending, receiving."""
    payloads = [bytes(PAYLOAD_BYTES)] * BURST
    best_send = best_receive = float("inf")
    for _ in range(ROUNDS):
        end = make()
        send_s = receive_s = 0.0
        for _ in range(BURSTS):
            start = time.process_time()
            end.send(payloads)
            sent = time.process_time()
            end.receive(BURST)
            receive_s += time.process_time() - sent
            send_s += sent - start
        end.close()
        best_send = min(best_send, send_s)
        best_receive = min(best_receive, receive_s)
    scale = 1e6 / (BURSTS * BURST)
    return round(best_send * scale, 2), round(best_receive * scale, 2)


def run() -> dict[str, float]:
    """Microseconds per datagram: `udp_<kind>_send_us`, `udp_<kind>_receive_us`; ratios to the plain loop."""
    kinds: dict[str, Callable[[], _Ours | _Plain]] = {
        "plain_loop": _Plain,
        "ours_without_offload": lambda: _Ours(use_offload=False),
        "ours_with_offload": lambda: _Ours(use_offload=True),
    }
    results: dict[str, float] = {}
    for kind, make in kinds.items():
        send_us, receive_us = _measure(make)
        results[f"udp_{kind}_send_us"] = send_us
        results[f"udp_{kind}_receive_us"] = receive_us
    for key, us in list(results.items()):
        way = "send" if key.endswith("_send_us") else "receive"
        results[f"{key.removesuffix('_us')}_to_plain"] = round(us / results[f"udp_plain_loop_{way}_us"], 2)
    return results
