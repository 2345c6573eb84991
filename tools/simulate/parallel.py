"""Many seeds at once, each in a process of its own among a few."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial

from tools import pool
from tools.simulate.generate import generate
from tools.simulate.mutations import planted
from tools.simulate.run import Outcome, run


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
    with pool.processes(jobs) as executor:
        yield from pool.results(executor, jobs, run_task, tasks)


def _run_task(task: tuple[int, str], *, mutation: str) -> Outcome:
    seed, name = task
    with planted(mutation):
        return run(generate(seed, name))
