"""When names are looked up again: all of them in a round, one after the other.

A name server that does not answer holds a thread for many seconds, and whoever dials an intermediate needs
one, too; so there is one lookup at a time, and a slow one delays the others of the round alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Lookups:
    """Rounds of lookups; `now` is monotonic seconds."""

    def __init__(self, names: Iterable[str], now: float) -> None:
        """The first round is due at once."""
        self._names = tuple(dict.fromkeys(names))
        self._at: float | None = now if self._names else None
        self._began: float | None = None
        self._waiting: deque[str] = deque()
        self._current: str | None = None

    def want(self, now: float, spacing_s: float) -> None:
        """Begin another round, `spacing_s` after the former one at the earliest."""
        if not self._names:
            return
        at = now if self._began is None else max(now, self._began + spacing_s)
        self._at = at if self._at is None else min(self._at, at)

    def take(self, now: float) -> str | None:
        """The name to look up now, if any; the next one comes after `end`."""
        if self._current is not None:
            return None
        if not self._waiting and self._at is not None and now >= self._at:
            self._at, self._began = None, now
            self._waiting.extend(self._names)
        self._current = self._waiting.popleft() if self._waiting else None
        return self._current

    def end(self, name: str) -> None:
        """Note that the lookup of this name is over, or was not needed."""
        if name == self._current:
            self._current = None

    def next_deadline(self) -> float | None:
        """When `take` has something to give, unless a lookup ends before."""
        return None if self._current is not None else self._at
