"""Many tasks in a few processes: what fuzzing and simulation share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

TASKS_AHEAD = 4
"""For each process: enough to keep it busy, few enough to stop soon."""


@contextmanager
def processes(jobs: int, prepare: Callable[[], object] | None = None) -> Iterator[ProcessPoolExecutor]:
    """So many processes, in each of which `prepare` runs first."""
    # Spawned, not forked: gRPC's threads would not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare) as pool:
        yield pool


def results(
    pool: ProcessPoolExecutor, jobs: int, run: Callable[[TaskT], ResultT], tasks: Iterator[TaskT]
) -> Generator[ResultT, None, None]:
    """What `run` makes of each task, the first to be ready first; whoever stops listening cancels the rest.

    `run` is a function of a module other than `__main__`, which a new process would not find.
    """
    pending: set[Future[ResultT]] = set()
    try:
        while True:
            while len(pending) < TASKS_AHEAD * jobs and (task := next(tasks, None)) is not None:
                pending.add(pool.submit(run, task))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in pending:
            future.cancel()
