"""Five hundred deployments that seeds decide, of all scenarios; what `make simulate` runs, in chunks.

Each chunk names its scenario and seeds; what it says of one that broke has the command that replays it. Each
leaves behind which transitions its seeds passed, in whatever process it runs; the one that comes last adds up
all of them, and fails for those that no seed passed. Where only some chunks were selected, none is the last.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tools.simulate import coverage
from tools.simulate.generate import RECIPES, generate
from tools.simulate.run import run

CHUNK = 10
"""Seeds: ten seconds of processor time, so that no worker is left with much at the end."""

COUNTS = {
    "mixed": 70,
    "direct": 40,
    "faults": 50,
    "paths": 40,
    "quiet": 20,
    "resume": 40,
    "abuse": 30,
    "failover": 40,
    "bulk": 10,
    "slow": 10,
    "revoked": 20,
    "corners": 40,
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


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where chunks leave what their seeds passed: one folder for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "transitions"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "seeds"), CHUNKS)
def test_every_seed_holds_and_all_of_them_pass_every_transition(
    name: str, seeds: range, pool: ProcessPoolExecutor, passed: Path
) -> None:
    results = list(pool.map(partial(_result, name), seeds))
    leave_behind(passed, f"{name}-{seeds.start}", sum((counts for _, counts in results), Counter()))
    broken = [
        f"scenario {name}, seed {seed}: {complaint}\n"
        f"    python -m tools.simulate --scenario {name} --seed {seed} --trace"
        for seed, (complaint, _) in zip(seeds, results, strict=True)
        if complaint
    ]
    assert not broken, "\n".join(["", *broken])
    missed = missed_by_all(passed, ALL)
    assert not missed, "\n".join(["of all chunks together:", *missed])


ALL = {f"{name}-{seeds.start}" for name, seeds in (each.values for each in CHUNKS)}  # type: ignore[union-attr]


def leave_behind(folder: Path, chunk: str, counts: Counter[str]) -> None:
    """Have a chunk's counts there all at once: others look meanwhile."""
    draft = folder / f"{chunk}.draft"
    draft.write_text(json.dumps(counts), encoding="utf-8")
    draft.rename(folder / f"{chunk}.json")


def missed_by_all(folder: Path, chunks: Collection[str]) -> list[str]:
    """What is wrong with the sum of all counts; nothing while some are not there."""
    paths = [folder / f"{chunk}.json" for chunk in chunks]
    if not all(path.exists() for path in paths):
        return []
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(json.loads(path.read_text(encoding="utf-8")))
    return coverage.shortcomings(counts)


def test_transition_that_no_chunk_passed_is_told_once_all_have_run(tmp_path: Path) -> None:
    excused = {*coverage.UNREACHABLE, *coverage.RARE}
    offered = [each for table in coverage.TABLES.values() for each in table if each not in excused]
    *others, lost = offered
    half = len(others) // 2
    leave_behind(tmp_path, "first", Counter(others[:half]))
    assert missed_by_all(tmp_path, ["first", "second"]) == []
    leave_behind(tmp_path, "second", Counter(others[half:]))
    assert missed_by_all(tmp_path, ["first", "second"]) == [f"{lost}: never passed"]
    leave_behind(tmp_path, "second", Counter([*others[half:], lost]))
    assert missed_by_all(tmp_path, ["first", "second"]) == []


def test_every_chunk_leaves_its_counts_under_a_name_of_its_own() -> None:
    assert len(ALL) == len(CHUNKS)


def _step_back() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _result(name: str, seed: int) -> tuple[str, Counter[str]]:
    """What is wrong with a seed, in a line, which is empty when it holds; and what it passed."""
    outcome = run(generate(seed, name))
    return outcome.violation.partition("\n")[0], outcome.coverage
