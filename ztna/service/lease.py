"""How long an agent keeps a session: for as long as something runs over it, and a while longer.

QUIC gives up a connection that is silent for its idle timeout, at each end by itself and without a word
(RFC 9000 §10.1). A connection of a client may be silent for hours, and must not end because of that: while
there is one, the agent asks the connector for a sign of life. And a session that is needed no more is closed
by the agent before either end's timeout. Otherwise a client could be given to it in the moment in which the
connector has forgotten it.
"""

from __future__ import annotations

import enum
from typing import Final

# Two lost PINGs, with what QUIC does to repeat them, still leave a third of the time.
PINGS_PER_TIMEOUT: Final = 3
# Before the connector's timer, which began when the last packet came there.
CLOSE_AT_SHARE: Final = 0.9


class LeaseWish(enum.Enum):
    """What is to be done now."""

    PING = "ping"
    CLOSE = "close"


class SessionLease:
    """Of one session; `now` is monotonic seconds."""

    def __init__(self, idle_timeout_s: float) -> None:
        """`idle_timeout_s` is the smaller of both ends."""
        self.ping_interval_s = idle_timeout_s / PINGS_PER_TIMEOUT
        self._keep_s = idle_timeout_s * CLOSE_AT_SHARE
        self._unused_since: float | None = None
        self._ping_at: float | None = None

    def look(self, now: float, *, is_used: bool) -> LeaseWish | None:
        """What is to be done; to be asked whenever `is_used` may have changed, and at `next_deadline`."""
        if is_used:
            self._unused_since = None
            if self._ping_at is not None and now >= self._ping_at:
                self._ping_at = now + self.ping_interval_s
                return LeaseWish.PING
            self._ping_at = self._ping_at or now + self.ping_interval_s
            return None
        self._ping_at = None
        if self._unused_since is None:
            self._unused_since = now
        return LeaseWish.CLOSE if now >= self._unused_since + self._keep_s else None

    @property
    def next_deadline(self) -> float:
        """When to look again; valid once `look` was called."""
        if self._ping_at is not None:
            return self._ping_at
        if self._unused_since is None:
            raise RuntimeError("nobody has looked yet")
        return self._unused_since + self._keep_s
