"""Strangers attack in every family that whom they attack has, and an answer in any is a violation."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from tests.simnet.link import LinkConfig, Packet
from tests.simnet.world import Daemon
from tools.simulate.abuse import STRANGERS
from tools.simulate.invariants import Watcher
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
    assert re.search(rf"agent-0 answers a stranger: \d+ B to {re.escape(str(stranger))}", violation)


@pytest.mark.parametrize("target", ["agent-0", "intermediate-0"])
def test_attack_on_whom_both_families_reach_comes_over_both(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    came: Counter[str] = Counter()
    place = "_at_node" if target == "agent-0" else "_at_intermediate"
    look = getattr(Watcher, place)

    def look_and_count(watcher: Watcher, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        if not is_outbound and daemon.id == target:
            came[packet.source.host] += 1
        look(watcher, daemon, packet, is_outbound)

    monkeypatch.setattr(Watcher, place, look_and_count)
    scenario = replace(attacked(Family.IPV4, Family.IPV6), faults=(replace(ATTACK, target=target),))
    assert not run(scenario).violation
    assert all(came[host] >= ATTACK.amount for host in STRANGERS.values())


def test_intermediate_that_answers_with_much_is_found() -> None:
    scenario = replace(attacked(Family.IPV4), faults=(replace(ATTACK, target="intermediate-0"),))
    with planted("amplification"):
        assert "answers a stranger with more than 3 times as much" in run(scenario).violation
