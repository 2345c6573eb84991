"""The clock of a daemon's loop: it goes on while the machine sleeps."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing

import pytest

from actors.loop_asyncio import CLOCK_BOOTTIME, AsyncioScheduler, SleepCountingLoop
from ztna.ice.timing import CONSENT_LIMIT_S
from ztna.path import traffic
from ztna.path.path import PathKind


class SleepyClock:
    """The monotonic clock, and what the machine slept beside it."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.slept_s


@pytest.mark.skipif(
    CLOCK_BOOTTIME is None, reason="only Linux has a clock that counts sleep beside one that does not"
)
def test_clock_of_a_daemon_is_the_one_that_counts_sleep() -> None:
    assert CLOCK_BOOTTIME is not None
    with closing(SleepCountingLoop()) as loop:
        scheduler = AsyncioScheduler(loop)
        before = time.clock_gettime(CLOCK_BOOTTIME)
        now = scheduler.time()
        assert before <= now <= time.clock_gettime(CLOCK_BOOTTIME)


def test_what_became_due_while_the_machine_slept_runs_when_the_loop_wakes() -> None:
    clock = SleepyClock()
    with closing(SleepCountingLoop(clock)) as loop:
        scheduler = AsyncioScheduler(loop)
        rang = asyncio.Event()
        late: list[float] = []

        def ring() -> None:
            late.append(scheduler.time() - due_at)
            rang.set()

        def sleep() -> None:
            clock.slept_s += 7200.0

        due_at = scheduler.time() + 3600.0
        scheduler.call_at(due_at, ring)
        scheduler.call_soon(sleep)
        # As when a packet comes: the kernel does not wake us for the timer.
        threading.Timer(0.05, scheduler.call_soon_threadsafe, [lambda: None]).start()
        loop.run_until_complete(asyncio.wait_for(rang.wait(), 7260.0))
        assert 3590.0 < late[0] <= 7200.0


def test_nothing_is_sent_to_a_peer_whose_consent_ended_while_the_machine_slept() -> None:
    clock = SleepyClock()
    with closing(SleepCountingLoop(clock)) as loop:
        scheduler = AsyncioScheduler(loop)
        paths = traffic.Traffic()
        paths.handle_selected(PathKind.DIRECT, scheduler.time(), has_relay=True)
        paths.handle_confirmed(PathKind.DIRECT, 0.02, scheduler.time())
        assert paths.routes(scheduler.time())[1]
        clock.slept_s += CONSENT_LIMIT_S
        # The first thing that an application sends, before any timer has rung.
        by_relay, by_direct = paths.routes(scheduler.time())
        assert (by_relay, by_direct) == (True, False)
