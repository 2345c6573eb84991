"""The loop of a real daemon: its clock, and `Scheduler` over it.

Linux stops CLOCK_MONOTONIC, which is asyncio's, while the machine sleeps. What others did meanwhile would not
have happened then: consent would be as fresh as before (RFC 7675 §5.1), a mapping of a NAT as young, and a
session that its peer gave up as alive. So the clock of a daemon is CLOCK_BOOTTIME, which goes on. The kernel
waits by the other one all the same: what became due while the machine slept runs when anything else wakes the
loop, which the status of a daemon does every second.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from actors.io import Timer


CLOCK_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
"""Of Linux. Elsewhere the clock stands still, or goes on, as `time.monotonic` does."""


class SleepCountingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock goes on while the machine sleeps."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """`clock` tells monotonic seconds; by default the system's, with the time that it slept."""
        super().__init__()
        if clock is None and CLOCK_BOOTTIME is not None:
            clock = partial(time.clock_gettime, CLOCK_BOOTTIME)
        # In place of the method, since it is asked twice for each message of every actor.
        self.time = clock or time.monotonic  # type: ignore[method-assign]


class AsyncioScheduler:
    """Schedules on `loop`. Create it on the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        # No method of ours around it: it is asked twice for each message of every actor.
        self.time: Callable[[], float] = loop.time
        """Monotonic seconds; from any thread."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the next turn of the loop; only from the loop thread."""
        self._loop.call_soon(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the next turn of the loop, from any thread; dropped once the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` at `when` (monotonic seconds); only from the loop thread."""
        return self._loop.call_at(when, callback)

    def is_loop_thread(self) -> bool:
        """Whether the caller runs on the loop's own thread."""
        return threading.get_ident() == self._thread
