"""Two sites behind one NAT of a carrier: direct if it hairpins or they meet behind it, and not otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simnet.least import least_scenario
from tests.simnet.nat import (
    ADDRESS_DEPENDENT_MAPPING,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    NatKind,
)
from tools.simulate import carriers
from tools.simulate.generate import RECIPES, generate
from tools.simulate.oracle import must_be_direct
from tools.simulate.run import run
from tools.simulate.scenario import Scenario, Site, Work, WorkKind
from ztna.address import Family

BOTH = (Family.IPV4, Family.IPV6)
NATED = (PORT_RESTRICTED,)
OPEN: tuple[NatKind, ...] = ()
HAIRPIN = replace(PORT_RESTRICTED, is_hairpinning=True)


def deployment(agent: Site, connector: Site, carrier: NatKind) -> Scenario:
    """An agent and a connector behind one carrier, and an agent elsewhere."""
    agents = {"agent-0": replace(agent, behind=carriers.CARRIER), "agent-1": Site((PORT_RESTRICTED,))}
    return least_scenario(
        connector=replace(connector, behind=carriers.CARRIER),
        name="direct",
        agents=agents,
        work=(Work(1.0, WorkKind.STREAM, "agent-0", "connector-0", 5000, 5000),),
        carriers={carriers.CARRIER: carrier},
    )


@pytest.mark.parametrize(
    ("agent", "connector", "carrier", "count"),
    [
        # Beside them, the agent elsewhere goes direct as well wherever its NAT leaves room.
        (NATED, NATED, HAIRPIN, 2),
        (NATED, NATED, PORT_RESTRICTED, 1),
        (NATED, NATED, replace(SYMMETRIC_RANDOM, is_hairpinning=True), 0),
        (NATED, NATED, replace(ADDRESS_DEPENDENT_MAPPING, filtering=FULL_CONE.filtering), 0),
        ((FIREWALL,), (FIREWALL,), PORT_RESTRICTED, 2),
        (OPEN, NATED, PORT_RESTRICTED, 2),
        (OPEN, (SYMMETRIC_RANDOM,), PORT_RESTRICTED, 1),
        ((FIREWALL,), NATED, PORT_RESTRICTED, 1),
    ],
)
def test_oracle_is_right_about_sites_behind_one_carrier(
    agent: tuple[NatKind, ...], connector: tuple[NatKind, ...], carrier: NatKind, count: int
) -> None:
    scenario = deployment(Site(agent), Site(connector), carrier)
    wanted = [each for each in scenario.agents if must_be_direct(scenario, each, "connector-0")]
    assert len(wanted) == count
    outcome = run(scenario)
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    assert outcome.facts["direct"] == count


@pytest.mark.parametrize(("carrier", "is_direct"), [(HAIRPIN, True), (PORT_RESTRICTED, False)])
def test_pair_is_direct_only_if_its_carrier_hairpins(
    monkeypatch: pytest.MonkeyPatch, carrier: NatKind, is_direct: bool
) -> None:
    # As if the oracle knew nothing of carriers: what it then asks for is there, or is not.
    monkeypatch.setattr("tools.simulate.run.must_be_direct", lambda *_: True)
    scenario = deployment(Site(NATED), Site(NATED), carrier)
    scenario = replace(scenario, agents={"agent-0": scenario.agents["agent-0"]})
    assert must_be_direct(scenario, "agent-0", "connector-0") is is_direct
    assert ("no direct path within" in run(scenario).violation) is not is_direct


def test_pair_behind_one_carrier_meets_over_ipv6_as_ever() -> None:
    both = Site(NATED, BOTH, FIREWALL)
    scenario = deployment(both, both, PORT_RESTRICTED)
    assert must_be_direct(scenario, "agent-0", "connector-0")
    assert not run(scenario).violation


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.carrier_share])
def test_carriers_come_on_top_of_what_a_seed_meant_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    drawn = [generate(seed, name) for seed in range(100)]
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], carrier_share=0.0))
    for seed, each in enumerate(drawn):
        former = generate(seed, name)
        assert len([site for site in each.sites.values() if site.behind]) == 2 * len(each.carriers)
        bare = [
            {name: replace(site, behind="") for name, site in group.items()}
            for group in (each.agents, each.connectors)
        ]
        assert replace(each, agents=bare[0], connectors=bare[1], carriers={}) == former
    kinds = [kind for each in drawn for kind in each.carriers.values()]
    assert {kind.is_hairpinning for kind in kinds} == {True, False}
