"""How long people wait: the first byte, cold and warm, and the return of an intermediate that was killed.

Cold is the first connection of an agent that has just started and is attached, so that the session and its
handshake are part of it; warm is any other. For the reconnect an echo runs over one TCP connection while the
intermediate is killed (-9) and started again: what counts is the silence that the application sees.

Baselines: the service itself over TCP (`bare`), and one connection of aioquic (`bare_quic`): cold is a
handshake and the first byte of a stream, warm the first byte of another stream. Of a reconnect they are the
time that the intermediate took to start, and a bare handshake with its first byte.
"""

from __future__ import annotations

import signal
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

from tools.bench._bare_quic import BareServer, cold_first_bytes_ms, warm_first_bytes_ms
from tools.bench._client import connect, first_byte_ms
from tools.bench._figures import percentiles_ms, ratios
from tools.bench._site import AGENT, INTERMEDIATE, PATHS, START_LIMIT_S, SessionPath, Site, site

COLD_STARTS: Final = 5
WARM_CONNECTIONS: Final = 100
KILLS: Final = 3
ECHO_INTERVAL_S: Final = 0.01
RECONNECT_LIMIT_S: Final = 60.0


def run() -> dict[str, Any]:
    """Milliseconds to the first byte, seconds of an outage, and what both are to their baselines."""
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, BareServer(Path(name)) as server:
        bare_cold = _spread(cold_first_bytes_ms(server.port, WARM_CONNECTIONS))
        bare_warm = _spread(warm_first_bytes_ms(server.port, WARM_CONNECTIONS))
    bare: list[dict[str, float]] = []
    cold: dict[str, dict[str, float]] = {}
    warm: dict[str, dict[str, float]] = {}
    reconnect: dict[str, dict[str, float]] = {}
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, site(Path(name), path) as running:
            bare.append(_warm(running.services.tcp_port))
            cold[path] = _cold(running, path)
            warm[path] = _warm(running.tcp_port)
            reconnect[path] = _reconnect(running, bare_cold["p50_ms"])
    # What disturbs a measurement only ever makes it slower, and the baseline is measured beside each path.
    straight = min(bare, key=lambda row: row["p50_ms"])
    first_byte = {"bare": straight, "bare_quic_cold": bare_cold, "bare_quic_warm": bare_warm}
    for path in PATHS:
        first_byte[f"{path}_cold"] = cold[path] | ratios(cold[path], bare_cold, "bare_quic")
        first_byte[f"{path}_warm"] = warm[path] | ratios(warm[path], bare_warm, "bare_quic")
    first_byte = {name: row | ratios(row, straight, "bare") for name, row in first_byte.items()}
    return {"first_byte": first_byte, "reconnect": reconnect}


def _warm(port: int) -> dict[str, float]:
    return _spread([first_byte_ms(port) for _ in range(WARM_CONNECTIONS)])


def _spread(samples: list[float]) -> dict[str, float]:
    return {"min_ms": round(min(samples), 3), **percentiles_ms(samples)}


def _cold(running: Site, path: SessionPath) -> dict[str, float]:
    samples = []
    for number in range(COLD_STARTS):
        if number:
            running.deployment.kill(AGENT, signal.SIGTERM)
            running.deployment.start(AGENT)
            running.deployment.wait_ready(AGENT, timeout_s=START_LIMIT_S)
        samples.append(first_byte_ms(running.tcp_port))
    running.warm_up(path)
    return {"min_ms": round(min(samples), 3), "p50_ms": round(statistics.median(samples), 3)}


def _reconnect(running: Site, bare_first_byte_ms: float) -> dict[str, float]:
    silences, returns, starts = [], [], []
    with connect(running.tcp_port) as client, _Pulse(client) as pulse:
        for _ in range(KILLS):
            pulse.forget_silence()
            killed_at = time.monotonic()
            running.deployment.kill(INTERMEDIATE)
            running.deployment.start(INTERMEDIATE)
            running.deployment.wait_ready(INTERMEDIATE, timeout_s=START_LIMIT_S)
            ready_at = time.monotonic()
            starts.append(ready_at - killed_at)
            returns.append(pulse.wait_after(ready_at, RECONNECT_LIMIT_S) - ready_at)
            silences.append(pulse.longest_silence_s())
    return {
        "silence_p50_s": round(statistics.median(silences), 2),
        "silence_max_s": round(max(silences), 2),
        "after_intermediate_ready_p50_s": round(statistics.median(returns), 2),
        "after_intermediate_ready_max_s": round(max(returns), 2),
        "restart_p50_s": round(statistics.median(starts), 2),
        "silence_to_restart": round(statistics.median(silences) / statistics.median(starts), 2),
        "after_ready_to_bare_quic": round(statistics.median(returns) * 1e3 / bare_first_byte_ms, 2),
    }


class _Pulse:
    """Bytes that go round a connection all the time, and the longest time in which none came back."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._has_news = threading.Condition()
        self._heard_at = time.monotonic()
        self._silence_s = 0.0
        self._is_over = threading.Event()
        self._sender = threading.Thread(target=self._send)
        self._receiver = threading.Thread(target=self._receive)

    def __enter__(self) -> Self:
        self._client.sendall(b"ECHO\n")
        self._sender.start()
        self._receiver.start()
        self.wait_after(time.monotonic(), RECONNECT_LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._sender.join()
        self._client.shutdown(socket.SHUT_RDWR)
        self._receiver.join()

    def forget_silence(self) -> None:
        """Start over with the longest silence."""
        with self._has_news:
            self._silence_s = 0.0

    def longest_silence_s(self) -> float:
        """Seconds between two bytes, at most."""
        with self._has_news:
            return self._silence_s

    def wait_after(self, moment: float, limit_s: float) -> float:
        """Wait for a byte later than `moment`; returns when it came. Raises `TimeoutError`."""
        with self._has_news:
            if not self._has_news.wait_for(lambda: self._heard_at > moment, limit_s):
                raise TimeoutError(f"no byte within {limit_s:g} s of the outage")
            return self._heard_at

    def _send(self) -> None:
        while not self._is_over.wait(ECHO_INTERVAL_S):
            self._client.sendall(b".")

    def _receive(self) -> None:
        while self._client.recv(4096):
            with self._has_news:
                now = time.monotonic()
                self._silence_s = max(self._silence_s, now - self._heard_at)
                self._heard_at = now
                self._has_news.notify_all()
