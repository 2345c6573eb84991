"""One log line per burst of datagrams that are only counted: strangers send them by the thousand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from actors.burst_log import BURST_S

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class DropLog:
    """Writes what was dropped since its last line, by reason: at once, later once per `BURST_S`."""

    def __init__(self, log: FilteringBoundLogger, event: str) -> None:
        self._log = log
        self._event = event
        self._told: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._quiet_until: float | None = None

    def note(self, now: float, totals: Mapping[str, int]) -> None:
        """Take the totals since the start, by reason; `now` in seconds."""
        grown = {
            reason: count - self._told.get(reason, 0)
            for reason, count in totals.items()
            if count > self._told.get(reason, 0)
        }
        if not grown:
            return
        self._waiting = grown
        if self._quiet_until is None or now >= self._quiet_until:
            self._write(now)

    def handle_timeout(self, now: float) -> None:
        """Tell what was held back, once the burst is over."""
        if self._waiting and self._quiet_until is not None and now >= self._quiet_until:
            self._write(now)

    def next_deadline(self) -> float | None:
        """When something that was held back is due, or None."""
        return self._quiet_until if self._waiting else None

    def _write(self, now: float) -> None:
        self._log.info(self._event, **{f"dropped_{reason}": count for reason, count in self._waiting.items()})
        for reason, count in self._waiting.items():
            self._told[reason] = self._told.get(reason, 0) + count
        self._waiting = {}
        self._quiet_until = now + BURST_S
