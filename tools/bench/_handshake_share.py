"""What handshakes take of a daemon's event loop, as its metrics tell while something else goes on.

    with HandshakeShare(daemon) as share:
        ...
    share.busiest, share.violations

Two bounds are looked at in each interval between two readings (`ztna.quic.budget`). Steps that wait for the
budget take a fifth of any second, and one step, since the price of a step is known when it is over. The
judgement of streams does not wait; it has a burst, and half of the budget in the long run.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tools.deployment import Daemon
from ztna.quic.budget import (
    AT_ONCE_SHARE,
    MAX_AT_ONCE_BURST_S,
    MAX_HANDSHAKE_BURST_S,
    MAX_HANDSHAKE_SHARE,
)

INTERVAL_S: Final = 1.0
ANSWER_LIMIT_S: Final = 15.0

MAX_STEP_S: Final = 0.05
"""The last step of an interval. Measured: 7 ms at most, and several times that for the very first one, which
loads code."""

_TOTAL: Final = "ztna_handshake_seconds_total"
_JUDGEMENT: Final = "ztna_stream_judgement_seconds_total"
_SUSTAINED_SHARE: Final = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S


@dataclass(frozen=True, slots=True)
class Reading:
    """Both counters, in seconds, read at a moment between `asked_at` and `answered_at` (monotonic)."""

    asked_at: float
    answered_at: float
    total_s: float
    judgement_s: float

    @property
    def at(self) -> float:
        """The middle of both."""
        return (self.asked_at + self.answered_at) / 2


def read(daemon: Daemon) -> Reading:
    """Ask a daemon; raises `OSError`."""
    asked_at = time.monotonic()
    url = f"http://{daemon.settings['metrics']['listen']}/metrics"
    with urllib.request.urlopen(url, timeout=ANSWER_LIMIT_S) as answer:
        lines = answer.read().decode().splitlines()
    found = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    return Reading(asked_at, time.monotonic(), float(found[_TOTAL]), float(found[_JUDGEMENT]))


class HandshakeShare:
    """Reads once per second from entry to exit, and at both; a context manager."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="handshake share")
        self.readings: list[Reading] = []

    def __enter__(self) -> Self:
        self.readings.append(read(self._daemon))
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if exception is None:
            self.readings.append(read(self._daemon))

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            self.readings.append(read(self._daemon))

    @property
    def mean(self) -> float:
        """The share of all the time, of one core."""
        first, last = self.readings[0], self.readings[-1]
        return (last.total_s - first.total_s) / (last.at - first.at)

    @property
    def busiest(self) -> float:
        """The share of the busiest interval of a second."""
        return max((_share(*pair) for pair in self._pairs() if _is_whole(*pair)), default=self.mean)

    @property
    def violations(self) -> list[str]:
        """Bounds that an interval did not keep, in words."""
        return [
            f"{what} took {took_s:.3f} s of {last.at - first.at:.2f} s, {allowed_s:.3f} s allowed"
            for first, last in self._pairs()
            for what, took_s, allowed_s in _bounds(first, last)
            if took_s > allowed_s
        ]

    def _pairs(self) -> list[tuple[Reading, Reading]]:
        return [*zip(self.readings, self.readings[1:], strict=False), (self.readings[0], self.readings[-1])]


def _share(first: Reading, last: Reading) -> float:
    return (last.total_s - first.total_s) / (last.at - first.at)


def _is_whole(first: Reading, last: Reading) -> bool:
    """The last interval may be too short to say anything."""
    return last.at - first.at >= INTERVAL_S / 2


def _bounds(first: Reading, last: Reading) -> list[tuple[str, float, float]]:
    # The counters were read somewhere between question and answer.
    longest_s = last.answered_at - first.asked_at
    judgement_s = last.judgement_s - first.judgement_s
    waiting_s = last.total_s - first.total_s - judgement_s
    return [
        (
            "handshakes and attachments",
            waiting_s,
            _SUSTAINED_SHARE * longest_s + MAX_HANDSHAKE_BURST_S + MAX_STEP_S,
        ),
        (
            "judgements of streams",
            judgement_s,
            _SUSTAINED_SHARE * AT_ONCE_SHARE * longest_s + MAX_AT_ONCE_BURST_S + MAX_STEP_S,
        ),
    ]
