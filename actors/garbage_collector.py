"""Looks for garbage in everything that lives, by the rule of `ztna.garbage` instead of CPython's.

Modules and classes, and what else there is before the first actor, live as long as a daemon, and are never
looked at again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

from actors.io import Io
from ztna.garbage import FullCollections

LOOK_INTERVAL_S: Final = 1.0

YOUNG_OBJECTS: Final = 700
"""Added before the youngest are looked at: CPython's own number."""
YOUNG_ROUNDS: Final = 10
"""Times that the youngest are looked at before those a little older are; CPython's as well."""
NEVER: Final = 1 << 30

STEP_OBJECTS: Final = YOUNG_OBJECTS * (YOUNG_ROUNDS + 1)
"""Objects that can have come to the oldest each time that the middle generation was looked at."""


class GarbageCollector:
    """The one of a daemon: `gc` belongs to the process."""

    def __init__(self, io: Io) -> None:
        """Change nothing yet."""
        self._io = io
        self._rule = FullCollections(io.time())
        self._looked_at = io.time()
        self._busy_s = io.stopwatch()
        self._is_memory_short: Callable[[], bool] = bool

    @property
    def pauses(self) -> int:
        """How often garbage was looked for in everything."""
        return self._rule.pauses

    @property
    def paused_s(self) -> float:
        """Seconds of processor time that took, in which nothing else was done."""
        return self._rule.paused_s

    def take_over(self, is_memory_short: Callable[[], bool]) -> None:
        """Leave alone what lives now, and decide from now on."""
        self._is_memory_short = is_memory_short
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, NEVER)
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._looked_at = self._io.time()
        self._busy_s = self._io.stopwatch()
        self._io.call_at(self._looked_at + LOOK_INTERVAL_S, self._look)

    def _look(self) -> None:
        try:
            now = self._io.time()
            busy_share = self._busy_s() / max(now - self._looked_at, LOOK_INTERVAL_S)
            added = gc.get_count()[2] * STEP_OBJECTS
            if self._rule.is_due(now, added, busy_share, is_memory_short=self._is_memory_short()):
                pause_s = self._io.stopwatch()
                found = gc.collect()
                self._rule.handle_collected(self._io.time(), pause_s(), found)
        finally:  # nobody else looks
            self._begin_interval()
