"""Five hundred deployments that seeds decide, of all scenarios; what `make simulate` runs, in chunks.

Each chunk names its scenario and seeds; what it says of one that broke has the command that replays it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from tools.simulate.generate import RECIPES, generate
from tools.simulate.run import run

CHUNK = 10
"""Seeds: ten seconds of processor time, so that no worker is left with much at the end."""

COUNTS = {
    "mixed": 80,
    "direct": 40,
    "faults": 50,
    "paths": 40,
    "quiet": 20,
    "resume": 40,
    "abuse": 40,
    "failover": 40,
    "bulk": 10,
    "slow": 10,
    "revoked": 40,
    "insider": 10,
    "relay_only": 20,
}
"""Seeds of each scenario: more where more is drawn, fewer where each costs more. Others have one chunk."""

CHUNKS = [
    pytest.param(name, range(first, first + CHUNK), id=f"{name}-{first}-{first + CHUNK - 1}")
    for name in RECIPES
    for first in range(0, COUNTS.get(name, CHUNK), CHUNK)
]


def test_there_are_five_hundred_of_all_scenarios() -> None:
    assert COUNTS.keys() <= RECIPES.keys()
    assert CHUNK * len(CHUNKS) >= 500


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that run when nobody else wants to: beside them, real daemons have their stalls measured."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), _step_back) as made:
        yield made


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "seeds"), CHUNKS)
def test_every_seed_holds(name: str, seeds: range, pool: ProcessPoolExecutor) -> None:
    broken = [
        f"scenario {name}, seed {seed}: {complaint}\n"
        f"    python -m tools.simulate --scenario {name} --seed {seed} --trace"
        for seed, complaint in zip(seeds, pool.map(partial(_complaint, name), seeds), strict=True)
        if complaint
    ]
    assert not broken, "\n".join(["", *broken])


def _step_back() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _complaint(name: str, seed: int) -> str:
    """What is wrong with a seed, in a line; empty when it holds."""
    return run(generate(seed, name)).violation.partition("\n")[0]
