"""How long people wait: the first byte, cold and warm, and the return of an intermediate that was killed.

Cold is the first connection of an agent that has just started and is attached, so that the session and its
handshake are part of it; warm is any other. For the reconnect an echo runs over one TCP connection while the
intermediate is killed (-9) and started again: what counts is the silence that the application sees.
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

from tools.bench._client import connect, first_byte_ms
from tools.bench._figures import percentiles_ms
from tools.bench._site import AGENT, INTERMEDIATE, PATHS, START_LIMIT_S, SessionPath, Site, site

COLD_STARTS: Final = 5
WARM_CONNECTIONS: Final = 100
KILLS: Final = 3
ECHO_INTERVAL_S: Final = 0.01
RECONNECT_LIMIT_S: Final = 60.0


def run() -> dict[str, Any]:
    """Milliseconds to the first byte, seconds of an outage."""
    first_byte: dict[str, dict[str, float]] = {}
    reconnect: dict[str, dict[str, float]] = {}
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, site(Path(name), path) as running:
            first_byte["bare"] = _warm(running.services.tcp_port)
            first_byte[f"{path}_cold"] = _cold(running, path)
            first_byte[f"{path}_warm"] = _warm(running.tcp_port)
            reconnect[path] = _reconnect(running)
    return {"first_byte": first_byte, "reconnect": reconnect}


def _warm(port: int) -> dict[str, float]:
    samples = [first_byte_ms(port) for _ in range(WARM_CONNECTIONS)]
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


def _reconnect(running: Site) -> dict[str, float]:
    silences, returns = [], []
    with connect(running.tcp_port) as client, _Pulse(client) as pulse:
        for _ in range(KILLS):
            pulse.forget_silence()
            running.deployment.kill(INTERMEDIATE)
            running.deployment.start(INTERMEDIATE)
            running.deployment.wait_ready(INTERMEDIATE, timeout_s=START_LIMIT_S)
            ready_at = time.monotonic()
            returns.append(pulse.wait_after(ready_at, RECONNECT_LIMIT_S) - ready_at)
            silences.append(pulse.longest_silence_s())
    return {
        "silence_p50_s": round(statistics.median(silences), 2),
        "silence_max_s": round(max(silences), 2),
        "after_intermediate_ready_p50_s": round(statistics.median(returns), 2),
        "after_intermediate_ready_max_s": round(max(returns), 2),
    }


class _Pulse:
    """Bytes that go round a connection all the time, and the longest time in which none came back."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._has_news = threading.Condition()
        self._heard_at = time.monotonic()
        self._silence_s = 0.0
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def __enter__(self) -> Self:
        self._client.sendall(b"ECHO\n")
        for thread in self._threads:
            thread.start()
        self.wait_after(time.monotonic(), RECONNECT_LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

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
