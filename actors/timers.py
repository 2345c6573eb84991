"""One deadline per actor, on the clock of the loop that runs the daemon.

A concern names its earliest deadline after everything it did; the timer tells it `TimerFired` when that time
has come. The pending call is left alone when a deadline only moves later, since an actor with traffic moves
its deadline with every message: the call then finds the deadline in the future and waits on.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.io import Scheduler, Timer

_NEVER: Final = object()


class TimerFired:
    """Private message from an actor's timer to that actor. A stale one is harmless: cores look at `now`."""

    __slots__ = ()


TIMER_FIRED: Final = TimerFired()


class ActorTimer(Protocol):
    """What a host needs of the timer of its actor. Called by the actor only."""

    def arm(self, deadline: float | None) -> None:
        """Replace the deadline (monotonic seconds; None: no deadline)."""

    def delivered(self) -> None:
        """`TimerFired` left the inbox, so the next one may be sent."""

    def cancel(self) -> None:
        """Fire no more; harmless when repeated."""


class DeadlineTimer:
    """The timer of an actor that lives on the loop thread."""

    __slots__ = ("_deadline", "_deliver", "_is_queued", "_scheduler", "_timer", "_timer_at")

    def __init__(self, scheduler: Scheduler, deliver: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._deliver = deliver
        self._deadline: float | None = None
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._is_queued = False

    def arm(self, deadline: float | None) -> None:
        """Replace the deadline (monotonic seconds; None: no deadline)."""
        self._deadline = deadline
        if deadline is None or self._is_queued:
            return
        if self._timer is not None:
            if deadline >= self._timer_at:
                return
            self._timer.cancel()
        self._call_at(deadline)

    def delivered(self) -> None:
        """`TimerFired` left the inbox, so the next one may be sent."""
        self._is_queued = False

    def cancel(self) -> None:
        """Fire no more; harmless when repeated."""
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call_at(self, when: float) -> None:
        self._timer_at = when
        self._timer = self._scheduler.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._deadline > self._scheduler.time():
            self._call_at(self._deadline)
            return
        self._is_queued = True
        self._deliver()


class ForeignThreadTimer:
    """The timer of an actor with a thread of its own: every step is taken on the loop thread, in order."""

    __slots__ = ("_last", "_scheduler", "_timer")

    def __init__(self, scheduler: Scheduler, deliver: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._timer = DeadlineTimer(scheduler, deliver)
        self._last: object = None

    def arm(self, deadline: float | None) -> None:
        """Replace the deadline (monotonic seconds; None: no deadline)."""
        if deadline == self._last:
            return
        self._last = deadline
        self._scheduler.call_soon_threadsafe(partial(self._timer.arm, deadline))

    def delivered(self) -> None:
        """`TimerFired` left the inbox, so the next one may be sent."""
        self._last = _NEVER
        self._scheduler.call_soon_threadsafe(self._timer.delivered)

    def cancel(self) -> None:
        """Fire no more; harmless when repeated."""
        self._last = _NEVER
        self._scheduler.call_soon_threadsafe(self._timer.cancel)
