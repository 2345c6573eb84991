"""How long frames take to a node and back, as the intermediate measures it with its own pings.

A ping leaves as soon as the node is attached, for its sessions may look for a direct path at once; another
one whenever the node pings us to see whether we live. There is no timer per node, and one ping is under way
at a time.
"""

from __future__ import annotations

from collections import deque

SAMPLES = 4
"""The least of the last four, 40 s at the pace of a node's pings: queues and busy processes only add."""

REPEAT_AFTER_S = 5.0
"""A ping that was not answered by then is given up; a node that asks us more often is not asked as often."""


class RoundTrip:
    """The measurement of one node."""

    __slots__ = ("_last_id", "_samples", "_sent_at", "_waiting_for")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._last_id = 0
        self._waiting_for = 0
        self._sent_at: float | None = None

    def next_ping(self, now: float) -> int | None:
        """The id of a ping to send now, or None: it is too early for another one."""
        if self._sent_at is not None and now - self._sent_at < REPEAT_AFTER_S:
            return None
        self._last_id += 1
        self._waiting_for = self._last_id
        self._sent_at = now
        return self._last_id

    def handle_pong(self, ping_id: int, now: float) -> float | None:
        """Seconds of a round trip as far as we know now; None when this is no answer that we wait for."""
        if not self._waiting_for or ping_id != self._waiting_for or self._sent_at is None:
            return None
        self._waiting_for = 0
        self._samples.append(now - self._sent_at)
        return min(self._samples)
