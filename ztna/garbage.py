"""When a process may look for garbage in everything that lives: it does nothing else meanwhile.

CPython frees what nobody refers to at once. What refers to itself it has to look for: in what is young, which
takes some milliseconds, and, by its own rule, in everything whenever that has grown by a quarter. For an
intermediate with a thousand nodes the latter is 0.2 to 0.4 s in which no packet is moved, ten times while
they attach. `FullCollections` does that by another rule: when the process has little to do, and otherwise
when much has been added. Connections that are over are taken apart (`ztna.quic.connection`, `release`), so
that little waits for it.
"""

from __future__ import annotations

from typing import Final

CALM_SHARE: Final = 0.1
"""Of a second's processor time: whoever is served in it has little to lose."""
WORTH_OBJECTS: Final = 100_000
"""Some 25 MB, if all of them were garbage: what is worth a pause."""
MOST_OBJECTS: Final = 2_000_000
"""Some 500 MB, if all of them were garbage: they do not wait for a calm second. Two thousand nodes that
attach add as many."""
FRUITLESS_OBJECTS: Final = 10_000
"""A search that finds less was not worth it: objects come and go, many at a time. The next waits twice as
long."""
MIN_INTERVAL_S: Final = 10.0
MAX_INTERVAL_S: Final = 600.0
"""After so long a busy second will do for what is worth it, and a calm one for anything."""


class FullCollections:
    """Decides; whoever collects asks once a second. Seconds are monotonic."""

    def __init__(self, now: float) -> None:
        self._last_at = now
        self._interval_s = MIN_INTERVAL_S
        self.pauses = 0
        self.paused_s = 0.0
        """How long all of them took."""

    def is_due(self, now: float, added: int, busy_share: float, *, is_memory_short: bool = False) -> bool:
        """Whether to collect now.

        `added` objects are what lives now and did not at the last time, at most; `busy_share` is processor
        time over time, since the last question.
        """
        waited_s = now - self._last_at
        if not added or waited_s < MIN_INTERVAL_S:
            return False
        if is_memory_short:
            return True
        if waited_s < self._interval_s:
            return False
        is_late = waited_s >= MAX_INTERVAL_S
        is_calm = busy_share <= CALM_SHARE
        if added >= WORTH_OBJECTS:
            return is_calm or is_late or added >= MOST_OBJECTS
        return is_calm and is_late

    def handle_collected(self, now: float, pause_s: float, found: int) -> None:
        """Note that it was done, and how many objects of garbage it found."""
        self._last_at = now
        self._interval_s = (
            min(self._interval_s * 2, MAX_INTERVAL_S) if found < FRUITLESS_OBJECTS else MIN_INTERVAL_S
        )
        self.pauses += 1
        self.paused_s += pause_s
