"""One log line per burst: a thousand refusals for one reason are one fact, and a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

BURST_S = 5.0
"""Long enough that a client which retries each second does not fill the log, short enough to be news."""

MAX_BURSTS = 256
"""Bursts remembered at a time: services times reasons of any sane configuration."""
MAX_VARIANTS = 8
"""Of them, with the same first word of their key. The rest of a key may be a stranger's, who says something
else each time: beyond this many, and beyond `MAX_BURSTS`, events are one burst together."""
OTHERS = ""


class BurstLog:
    """Writes the first event of a kind at once, and how many followed when its burst is over."""

    def __init__(self, log: FilteringBoundLogger, event: str, *, is_warning: bool = False) -> None:
        self._write = log.warning if is_warning else log.info
        self._event = event
        self._bursts: dict[tuple[str, ...], tuple[float, int, dict[str, object]]] = {}

    def note(self, now: float, key: tuple[str, ...], **facts: object) -> None:
        """Log the event, unless one of the same key was logged within `BURST_S`; `now` in seconds."""
        key = self._place(key)
        burst = self._bursts.get(key)
        if burst is not None and now < burst[0]:
            self._bursts[key] = (burst[0], burst[1] + 1, facts)
            return
        if burst is not None:
            self._close(key)
        self._write(self._event, **facts)
        self._bursts[key] = (now + BURST_S, 0, facts)

    def handle_timeout(self, now: float) -> None:
        """Sum up the bursts that are over."""
        for key in [key for key, burst in self._bursts.items() if now >= burst[0]]:
            self._close(key)

    def next_deadline(self) -> float | None:
        """When the first burst is over, or None."""
        return min((ends_at for ends_at, _, _ in self._bursts.values()), default=None)

    def _place(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """Where an event is counted: by its own key, or with others."""
        if key not in self._bursts and sum(each[0] == key[0] for each in self._bursts) >= MAX_VARIANTS:
            key = (key[0], OTHERS)
        if key not in self._bursts and len(self._bursts) >= MAX_BURSTS:
            key = (OTHERS,)
        return key

    def _close(self, key: tuple[str, ...]) -> None:
        _, count, facts = self._bursts.pop(key)
        if count:
            self._write(f"{self._event}_repeated", count=count, **facts)
