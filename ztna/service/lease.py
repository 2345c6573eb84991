"""How long an agent keeps a session: for as long as something runs over it, and a while longer.

QUIC gives up a connection that is silent for its idle timeout, at each end by itself and without a word
(RFC 9000 §10.1). A connection of a client may be silent for hours, and must not end because of that: while
there is one, the agent asks the connector for a sign of life. And a session that is needed no more is closed
by the agent before either end's timeout. Otherwise a client could be given to it in the moment in which the
connector has forgotten it.
"""

from __future__ import annotations

import enum
import math
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
    """Of one session; `now` is monotonic seconds.

    Attributes:
        next_deadline: when to look again.
    """

    def __init__(self, idle_timeout_s: float) -> None:
        """`idle_timeout_s` is the smaller of both ends."""
        self._ping_interval_s = idle_timeout_s / PINGS_PER_TIMEOUT
        self._keep_s = idle_timeout_s * CLOSE_AT_SHARE
        self._was_used: bool | None = None
        self.next_deadline = math.inf

    def look(self, now: float, *, is_used: bool) -> LeaseWish | None:
        """What is to be done; to be asked whenever `is_used` may have changed, and at `next_deadline`."""
        is_due = now >= self.next_deadline
        if is_used is not self._was_used:
            self._was_used, is_due = is_used, False
            self.next_deadline = now + (self._ping_interval_s if is_used else self._keep_s)
        if not is_due:
            return None
        if not is_used:
            return LeaseWish.CLOSE
        self.next_deadline = now + self._ping_interval_s
        return LeaseWish.PING
