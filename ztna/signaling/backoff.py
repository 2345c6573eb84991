"""When to dial an intermediate again: exponential backoff with full jitter.

Each delay is drawn evenly between zero and a ceiling that doubles per attempt, so that the nodes of a
restarted intermediate come back spread out. After an unclean loss the ceiling stays low for a while: the
inner sessions live on without signaling and relay, and each second away is a second they cannot be repaired.
"""

from __future__ import annotations

import math
from random import Random

# One relay round trip at 80 ms plus the handshake: sooner would race the attempt that just failed.
START_CEILING_S = 0.2
# An intermediate that stays away costs each node one dial in 15 s on average; its return is noticed in time.
MAX_CEILING_S = 30.0
# A crashed intermediate is back within seconds, by its service manager (docs/wire.md §4).
UNCLEAN_CEILING_S = 2.0
UNCLEAN_WINDOW_S = 30.0
# A connection that held this long was a success. A shorter one (accepted, then dropped at once) keeps the
# ceiling growing, or a broken intermediate would be dialled for ever at the starting pace.
SUCCESS_AFTER_S = 10.0


class Backoff:
    """Delays between attempts to reach one intermediate. `now` is monotonic seconds."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._ceiling = START_CEILING_S
        self._connected_at: float | None = None
        self._unclean_until = -math.inf

    def handle_connected(self, now: float) -> None:
        """Note that an attempt succeeded."""
        self._connected_at = now

    def handle_lost(self, now: float, *, is_clean: bool) -> None:
        """Note that the connection ended; `is_clean` means that the peer announced it.

        An end without a connection is a failed attempt and changes nothing.
        """
        if self._connected_at is not None and now - self._connected_at >= SUCCESS_AFTER_S:
            self._ceiling = START_CEILING_S
            self._unclean_until = -math.inf if is_clean else now + UNCLEAN_WINDOW_S
        self._connected_at = None

    def next_delay_s(self, now: float) -> float:
        """Draw the seconds to wait before the next attempt, and raise the ceiling of the one after."""
        cap = UNCLEAN_CEILING_S if now < self._unclean_until else MAX_CEILING_S
        ceiling = min(self._ceiling, cap)
        self._ceiling = min(ceiling * 2, cap)
        return self._rng.uniform(0.0, ceiling)
