"""Deployments that seeds decide: a few dozen in every run, and the instrument itself (`make simulate`)."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.simnet.nat import FIREWALL, FULL_CONE, PORT_RESTRICTED, SYMMETRIC_RANDOM, UDP_BLOCKED
from tools.simulate import __main__ as command
from tools.simulate.generate import RECIPES, generate
from tools.simulate.minimise import minimise
from tools.simulate.oracle import must_be_direct
from tools.simulate.run import Outcome, run
from tools.simulate.scenario import MAX_SECONDS, Fault, FaultKind, Scenario, Site
from ztna.address import Family

SEEDS = [*(("mixed", seed) for seed in range(16)), *((name, 0) for name in RECIPES if name != "mixed")]

REGRESSIONS: list[tuple[str, int]] = []
"""Seeds that once broke something, while the generator draws the same."""


@pytest.mark.parametrize(("name", "seed"), [*SEEDS, *REGRESSIONS])
def test_seed_holds(name: str, seed: int) -> None:
    scenario = generate(seed, name)
    outcome = run(scenario)
    assert not outcome.violation, "\n".join([outcome.violation, *scenario.lines(), *outcome.lines[-60:]])
    assert outcome.virtual_s <= MAX_SECONDS


def test_same_seed_is_the_same_run() -> None:
    first, again = (run(generate(5), traces=True).lines for _ in range(2))
    assert len(first) > 500
    assert next(((a, b) for a, b in zip(first, again, strict=False) if a != b), None) is None
    assert len(first) == len(again)


@pytest.mark.parametrize("name", RECIPES)
def test_scenario_stays_within_its_limits_and_repeats(name: str) -> None:
    for seed in range(200):
        scenario = generate(seed, name)
        assert scenario == generate(seed, name)
        assert scenario.payload_bytes <= RECIPES[name].max_bytes
        assert scenario.faults_end_at <= 12.0
        assert {fault.target for fault in scenario.faults} <= {*scenario.sites, *scenario.intermediates}
    assert generate(1, name) != generate(2, name)


def pair(agent: Site, connector: Site) -> Scenario:
    return replace(
        generate(0), policy="prefer_direct", agents={"agent-0": agent}, connectors={"connector-0": connector}
    )


V6 = (Family.IPV6,)


@pytest.mark.parametrize(
    ("agent", "connector", "must"),
    [
        (Site(), Site(), True),
        (Site((PORT_RESTRICTED,)), Site((PORT_RESTRICTED, FULL_CONE)), True),
        (Site((SYMMETRIC_RANDOM,)), Site((FULL_CONE,)), True),
        (Site((SYMMETRIC_RANDOM,)), Site((FULL_CONE, PORT_RESTRICTED)), False),
        (Site((FULL_CONE, SYMMETRIC_RANDOM)), Site((SYMMETRIC_RANDOM,)), False),
        (Site((UDP_BLOCKED,)), Site(), False),
        (Site(families=V6), Site(), False),
        (Site(families=V6, firewall=FIREWALL), Site(families=V6, firewall=FIREWALL), True),
        (Site((SYMMETRIC_RANDOM,), with_node="connector-0"), Site((SYMMETRIC_RANDOM,)), True),
        (Site((replace(FULL_CONE, lifetime_s=10.0),)), Site(), False),
    ],
)
def test_oracle_knows_which_pairs_must_go_direct(agent: Site, connector: Site, must: bool) -> None:
    assert must_be_direct(pair(agent, connector), "agent-0", "connector-0") is must


def test_minimiser_keeps_only_what_breaks() -> None:
    culprit = Fault(3.0, FaultKind.REBIND, "agent-0")
    innocent = [Fault(float(n), FaultKind.CLOCK, "connector-0", amount=5.0) for n in range(6)]
    scenario = replace(generate(3, "faults"), faults=(*innocent[:3], culprit, *innocent[3:]))

    def attempt(candidate: Scenario) -> Outcome:
        is_broken = culprit in candidate.faults
        return Outcome(candidate.seed, candidate.name, violation="it broke" if is_broken else "")

    least = minimise(scenario, attempt(scenario), attempt=attempt)
    assert least.faults == (culprit,)
    assert least.work == ()
    assert least.agents == {"agent-0": Site()}


def test_violation_ends_the_command_with_its_seed_and_the_faults_that_are_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing can be served at once, so every seed breaks.
    monkeypatch.setattr("tools.simulate.run.HEAL_LIMIT_S", 0.0)
    assert command.main(["--seeds", "3", "--start", "4", "--jobs", "1"]) == command.EXIT_VIOLATION
    printed = capsys.readouterr().out
    assert "VIOLATION with seed 4 of mixed: not served within 0 s" in printed
    assert "python -m tools.simulate --scenario mixed --seed 4 --trace" in printed
    assert re.search(r"^ +\d+\.\d+  agent-0\S* +(relay|log) ", printed, re.MULTILINE)


def test_command_tells_what_held(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seeds", "2", "--jobs", "1", "--scenario", "direct"]) == 0
    assert "2 of 2 seeds" in capsys.readouterr().out
    assert command.main(["--seed", "1", "--scenario", "direct", "--trace"]) == 0
    assert "application: stream" in capsys.readouterr().out


def test_command_refuses_a_scenario_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--scenario", "nonsense"])
    assert "mixed" in capsys.readouterr().err
