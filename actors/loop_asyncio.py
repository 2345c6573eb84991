"""The loop of a real daemon: `Scheduler` over a running asyncio loop."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from actors.io import Timer


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
