"""A share of the seeds has many small streams at once, within the bytes that a seed may move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.simulate import crowds
from tools.simulate.generate import RECIPES, generate
from tools.simulate.run import run
from tools.simulate.scenario import MAX_BYTES, Scenario, WorkKind

SEEDS = 200


def streams(scenario: Scenario) -> int:
    return sum(work.kind is WorkKind.STREAM for work in scenario.work)


def test_a_fifth_of_the_seeds_of_everything_has_a_crowd_within_the_limit() -> None:
    drawn = [generate(seed, "mixed") for seed in range(SEEDS)]
    crowded = [each for each in drawn if streams(each) >= crowds.STREAMS[0]]
    assert 0.1 < len(crowded) / SEEDS < 0.3
    assert max(map(streams, crowded)) >= crowds.STREAMS[1]
    assert all(each.payload_bytes <= MAX_BYTES for each in crowded)


def test_crowd_comes_on_top_of_what_a_seed_meant_before(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = [generate(seed, "mixed") for seed in range(SEEDS)]
    monkeypatch.setitem(RECIPES, "mixed", replace(RECIPES["mixed"], crowd_share=0.0))
    for seed in range(SEEDS):
        former = generate(seed, "mixed")
        work = crowded[seed].work
        assert replace(crowded[seed], work=work[: len(former.work)]) == former


def test_every_stream_of_a_crowd_is_served() -> None:
    quiet = replace(generate(3, "direct"), work=())
    scenario = crowds.add(quiet, 1.0, MAX_BYTES)
    assert streams(scenario) >= crowds.STREAMS[0]
    outcome = run(scenario)
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    # And one more of each pair, in the end.
    assert outcome.facts["streams"] >= streams(scenario)
    assert outcome.facts["excused"] == 0
