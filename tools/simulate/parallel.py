"""Many seeds at once, each in a process of its own among a few."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial

from tools.simulate.generate import generate
from tools.simulate.mutations import planted
from tools.simulate.run import Outcome, run

# Enough to keep every process busy, few enough to stop soon after a violation.
SEEDS_AHEAD = 4


def outcomes(
    tasks: Iterator[tuple[int, str]], jobs: int, mutation: str = ""
) -> Generator[Outcome, None, None]:
    """Run `(seed, name)` tasks in so many processes; what comes first is handed over first.

    Each process plants `mutation` for each of its runs.
    """
    run_task = partial(_run_task, mutation=mutation)
    if jobs == 1:
        yield from map(run_task, tasks)
        return
    # Spawned, not forked: gRPC's threads would not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        pending: set[Future[Outcome]] = set()
        try:
            while True:
                while len(pending) < SEEDS_AHEAD * jobs and (task := next(tasks, None)) is not None:
                    pending.add(pool.submit(run_task, task))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


def _run_task(task: tuple[int, str], *, mutation: str) -> Outcome:
    seed, name = task
    with planted(mutation):
        return run(generate(seed, name))
