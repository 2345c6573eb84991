"""When to ask again what had no answer: later and later, and not at the same moment as everybody else.

Whoever answers has limits: where many nodes of one network begin at once, some of their questions are refused
in silence. A node that does not ask again would know less for as long as nothing else makes it ask.
"""

from __future__ import annotations

import random
from typing import Final

START_CEILING_S: Final = 30.0
"""A burst is over by then, and its limit full again (`ztna.stun.responder`)."""

MAX_CEILING_S: Final = 480.0
"""A server whose second port is shut for good gets a handful of packets in some minutes."""


class Repeats:
    """One time to ask again, from the upper half of a ceiling that doubles; `now` is monotonic seconds."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._ceiling = START_CEILING_S
        self._at: float | None = None

    def want(self, now: float) -> None:
        """Note that something is not known; it is asked for again in a while, if not already planned."""
        if self._at is None:
            self._at = now + self._chance.uniform(self._ceiling / 2, self._ceiling)
            self._ceiling = min(self._ceiling * 2, MAX_CEILING_S)

    def reset(self) -> None:
        """Note that everything is known."""
        self._at, self._ceiling = None, START_CEILING_S

    def take(self, now: float) -> bool:
        """Whether it is time to ask; once for each `want`."""
        if self._at is None or now < self._at:
            return False
        self._at = None
        return True

    def next_deadline(self) -> float | None:
        """When `take` will say so."""
        return self._at
