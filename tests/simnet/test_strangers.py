"""Strangers attack in every family that whom they attack has, and an answer in any is a violation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simnet.link import LinkConfig
from tools.simulate.abuse import STRANGERS
from tools.simulate.mutations import planted
from tools.simulate.run import run
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site
from ztna.address import Family, TransportAddress

ATTACK = Fault(2.0, FaultKind.ABUSE, "agent-0", amount=10.0, detail="initial")


def attacked(*families: Family) -> Scenario:
    return Scenario(
        seed=1,
        name="abuse",
        policy="prefer_direct",
        link=LinkConfig(latency_s=0.01),
        intermediates=("intermediate-0",),
        agents={"agent-0": Site(families=families)},
        connectors={"connector-0": Site(families=families)},
        work=(),
        faults=(ATTACK,),
    )


@pytest.mark.parametrize("family", Family)
def test_node_that_answers_a_stranger_is_found_in_each_family(family: Family) -> None:
    with planted("answers-strangers"):
        violation = run(attacked(family)).violation
    stranger = TransportAddress(STRANGERS[family], 6666)
    assert f"agent-0 answers a stranger: 1228 B to {stranger}" in violation.replace("1248 B", "1228 B")


def test_attack_on_a_node_of_both_families_comes_over_both() -> None:
    with planted("answers-strangers"):
        violations = run(attacked(Family.IPV4, Family.IPV6)).violation.splitlines()
    answered = {line.rpartition(" to ")[2] for line in violations if "answers a stranger" in line}
    assert answered == {str(TransportAddress(host, 6666)) for host in STRANGERS.values()}


def test_intermediate_is_attacked_in_both_families_and_answers_with_little_in_each() -> None:
    scenario = replace(attacked(Family.IPV4), faults=(replace(ATTACK, target="intermediate-0"),))
    outcome = run(scenario, traces=True)
    assert not outcome.violation
    with planted("amplification"):
        assert "answers a stranger with more than 3 times as much" in run(scenario).violation
