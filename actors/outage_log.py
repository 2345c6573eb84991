"""The log of something that is up or down: how an outage began, that it lasts, and how long it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

REMINDER_S: Final = 60.0
"""Attempts go on every 30 s at the latest: an outage of a night is some hundreds of lines, not thousands."""

MAX_REASONS: Final = 8
"""Distinct reasons of one outage that get a line of their own at once: each is news the first time, but
a peer may choose the words."""


class OutageLog:
    """Logs the first failure and each new reason at once, then one line a minute with the count."""

    def __init__(self, log: FilteringBoundLogger, event: str) -> None:
        self._log = log
        self._event = event
        self._since: float | None = None
        self._attempts = 0
        self._silent = 0
        self._told_at = 0.0
        self._reasons: set[tuple[str, str]] = set()

    def failed(
        self, now: float, reason: str, detail: str, *, is_error: bool = False, **facts: object
    ) -> None:
        """An attempt failed, or what was up went down; `now` in monotonic seconds."""
        write = self._log.error if is_error else self._log.warning
        self._attempts += 1
        if self._since is None:
            self._since = now
        if (reason, detail) not in self._reasons and len(self._reasons) < MAX_REASONS:
            self._reasons.add((reason, detail))
            write(self._event, reason=reason, detail=detail, **facts)
        elif now >= self._told_at + REMINDER_S:
            write(
                f"{self._event}_repeated",
                reason=reason,
                detail=detail,
                **facts,
                count=self._silent + 1,
                outage_s=round(now - self._since, 1),
            )
        else:
            self._silent += 1
            return
        self._told_at, self._silent = now, 0

    def recovered(self, now: float) -> dict[str, object]:
        """End the outage; what the line of the recovery should say of it, nothing if there was none."""
        since, attempts = self._since, self._attempts
        self.forget()
        return {} if since is None else {"outage_s": round(now - since, 1), "failures": attempts}

    def forget(self) -> None:
        """Nobody tries any more: the next failure is the first of another outage."""
        self._since = None
        self._attempts = self._silent = 0
        self._reasons.clear()
