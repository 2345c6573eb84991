"""Whether the backend of a service answers: probes at intervals, and a verdict that does not flap.

The owner probes when it is handed a `Probe`, and reports each outcome with the probe's number; a probe that
outlives its time has failed. A verdict changes only after several outcomes in a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from ztna.errors import RemoteProtocolError

JITTER: Final = (0.9, 1.1)
"""Factor on the interval, drawn evenly: the probes of many services drift apart."""

MAX_FIRST_DELAY_S: Final = 1.0
"""Until the first probe: a restarted connector soon knows, and does not probe everything in one moment."""

MAX_STATUS_LINE_BYTES: Final = 1024
"""Of an HTTP response, what is read until its first line is complete; real ones take fifty."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")


class Verdict(Enum):
    """What is believed of a backend. One that is not known yet is offered like a healthy one."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to probe, and how many outcomes in a row change the verdict."""

    interval_s: float
    timeout_s: float
    unhealthy_after: int
    healthy_after: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Probe the backend now."""

    number: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up the probe that is under way; it has failed."""

    number: int


@dataclass(frozen=True, slots=True)
class VerdictChanged:
    """The verdict is another one; `detail` says in words what the last probe met."""

    verdict: Verdict
    detail: str


HealthEffect = Probe | Abandon | VerdictChanged


class HealthMonitor:
    """One backend. `now` is monotonic seconds."""

    def __init__(self, schedule: Schedule, random: Random, now: float) -> None:
        self._schedule = schedule
        self._random = random
        self._probe_at: float | None = now + random.uniform(0.0, min(MAX_FIRST_DELAY_S, schedule.interval_s))
        self._give_up_at: float | None = None
        self._number = 0
        self._successes = 0
        self._failures = 0
        self._effects: list[HealthEffect] = []
        self.verdict = Verdict.UNKNOWN

    @property
    def is_offered(self) -> bool:
        """Whether agents may be sent to the backend."""
        return self.verdict is not Verdict.UNHEALTHY

    def handle_success(self, number: int, now: float) -> None:
        """The backend answered probe `number` as it should; late answers are ignored."""
        if self._is_under_way(number):
            self._failures = 0
            self._successes += 1
            # The first answer of all is proof enough: nothing was known that it could contradict.
            is_enough = self._successes >= self._schedule.healthy_after or self.verdict is Verdict.UNKNOWN
            self._conclude(Verdict.HEALTHY if is_enough else self.verdict, "answers", now)

    def handle_failure(self, number: int, detail: str, now: float) -> None:
        """Probe `number` failed, for a reason in words."""
        if self._is_under_way(number):
            self._successes = 0
            self._failures += 1
            is_enough = self._failures >= self._schedule.unhealthy_after
            self._conclude(Verdict.UNHEALTHY if is_enough else self.verdict, detail, now)

    def handle_timeout(self, now: float) -> None:
        """Probe, or give a probe up, whichever is due."""
        if self._give_up_at is not None and now >= self._give_up_at:
            self._effects.append(Abandon(self._number))
            self.handle_failure(self._number, f"no answer within {self._schedule.timeout_s:g} s", now)
        elif self._probe_at is not None and now >= self._probe_at:
            self._number += 1
            self._probe_at = None
            self._give_up_at = now + self._schedule.timeout_s
            self._effects.append(Probe(self._number))

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout`."""
        return self._give_up_at if self._give_up_at is not None else self._probe_at

    def drain(self) -> list[HealthEffect]:
        """Hand over what to do, in order."""
        effects, self._effects = self._effects, []
        return effects

    def _is_under_way(self, number: int) -> bool:
        return number == self._number and self._give_up_at is not None

    def _conclude(self, verdict: Verdict, detail: str, now: float) -> None:
        self._give_up_at = None
        self._probe_at = now + self._schedule.interval_s * self._random.uniform(*JITTER)
        if verdict is not self.verdict:
            self.verdict = verdict
            self._effects.append(VerdictChanged(verdict, detail))


def http_request(host: str, path: str) -> bytes:
    """A GET request that asks for the end of the connection (RFC 9112 §3, §9.6)."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ztna\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ).encode()


def http_status(received: bytes) -> int | None:
    """The status code (RFC 9112 §4), or None while the first line is incomplete.

    Raises `RemoteProtocolError` (`no_http_response`) for what is no HTTP/1 response.
    """
    line, end, _ = received.partition(b"\n")
    if not end and len(line) <= MAX_STATUS_LINE_BYTES:
        return None
    match = _STATUS_LINE.match(received)
    # However it came in pieces, the same line is the same answer.
    if match is None or len(line) > MAX_STATUS_LINE_BYTES:
        raise RemoteProtocolError("no_http_response", "the answer is not HTTP/1")
    return int(match[1])
