"""Hosts with new addresses, moves to networks with IPv6, routers that tell: how each happens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simnet.least import least_scenario
from tests.simnet.nat import FIREWALL, PORT_RESTRICTED
from tools.simulate import variants
from tools.simulate.deployment import Deployment
from tools.simulate.generate import RECIPES, generate
from tools.simulate.oracle import must_be_direct
from tools.simulate.run import run
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site, Work, WorkKind
from ztna.address import Family, TransportAddress

V4, V6, BOTH = (Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6)
OPEN_V6 = Site(families=V6)
FIRM_V6 = Site(families=V6, firewall=FIREWALL)
FIRM = Site((PORT_RESTRICTED,), BOTH, FIREWALL)


def deployment(agent: Site, connector: Site, *faults: Fault, has_grpc: bool = False) -> Scenario:
    """A stream that goes on while something changes."""
    return least_scenario(
        agent,
        connector,
        name="paths",
        work=(Work(1.0, WorkKind.STREAM, "agent-0", "connector-0", 60_000, 60_000, over_s=8.0),),
        faults=faults,
        has_grpc=has_grpc,
    )


@pytest.mark.parametrize("has_grpc", [False, True])
@pytest.mark.parametrize("target", ["agent-0", "connector-0"])
@pytest.mark.parametrize("site", [OPEN_V6, FIRM_V6, FIRM, Site()], ids=["v6", "firm-v6", "both", "v4"])
def test_session_outlives_another_address_of_its_host(site: Site, target: str, has_grpc: bool) -> None:
    renumbered = Fault(4.0, FaultKind.NEW_ADDRESS, target, detail=variants.HOST)
    subject = deployment(site, site, renumbered, has_grpc=has_grpc)
    assert must_be_direct(subject, "agent-0", "connector-0")
    outcome = run(subject)
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    assert (outcome.facts["streams"], outcome.facts["excused"], outcome.facts["direct"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("site", "changed"), [(OPEN_V6, V6), (FIRM_V6, V6), (FIRM, V6), (Site(), V4), (Site(families=BOTH), BOTH)]
)
def test_host_has_another_address_in_each_family_that_no_nat_translates(
    site: Site, changed: tuple[Family, ...]
) -> None:
    with Deployment(deployment(site, site), lambda _what: None, lambda *_: None) as world:
        world.start()
        world.wait_ready()
        host = world.daemons["agent-0"].host
        former = list(host.addresses)
        world.renumber("agent-0")
        assert len(host.addresses) == len(former)
        for before, after in zip(former, host.addresses, strict=True):
            family = TransportAddress(before, 0).family
            assert TransportAddress(after, 0).family is family
            assert (before != after) is (family in changed)
        world.run_for(30.0)
        world.wait_ready()


@pytest.mark.parametrize(
    ("detail", "families"),
    [("open", V4), ("open/ipv6", V6), ("eim-apdf-preserving/ipv6", V6), ("eim-apdf-preserving/both", BOTH)],
)
def test_agent_that_moves_is_served_where_it_comes_to(detail: str, families: tuple[Family, ...]) -> None:
    moved = Fault(4.0, FaultKind.MOVE, "agent-0", detail=detail)
    outcome = run(deployment(FIRM, FIRM, moved))
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    assert variants.site_elsewhere(detail).families == families
    assert (outcome.facts["streams"], outcome.facts["excused"]) == (1, 0)


def mtu(other: str, amount: float, detail: str = "") -> Fault:
    return Fault(4.0, FaultKind.MTU, "agent-0", lasts_s=2.0, other=other, amount=amount, detail=detail)


@pytest.mark.parametrize("detail", ["", "told"])
def test_way_that_is_too_narrow_for_a_while_is_direct_again_unless_hosts_were_told(detail: str) -> None:
    subject = deployment(Site(), Site(), mtu("connector-0", 1000.0, detail))
    assert must_be_direct(subject, "agent-0", "connector-0") is (not detail)
    outcome = run(subject)
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    assert outcome.facts["streams"] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_faults_stay_what_they_were_but_for_how_they_happen(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    drawn = [generate(seed, name) for seed in range(60)]
    monkeypatch.setattr(variants, "add", lambda draft: draft)
    kinds = {FaultKind.NEW_ADDRESS, FaultKind.MOVE, FaultKind.MTU}
    for seed, each in enumerate(drawn):
        former = generate(seed, name)
        assert len(former.faults) == len(each.faults)
        for before, after in zip(former.faults, each.faults, strict=True):
            assert replace(after, detail=before.detail) == before
            assert before == after or before.kind in kinds


def test_each_way_is_drawn() -> None:
    faults = [fault for seed in range(300) for fault in generate(seed, "paths").faults]
    told = {fault.detail for fault in faults if fault.kind is FaultKind.MTU}
    assert told == {"", "told"}
    assert {fault.detail for fault in faults if fault.kind is FaultKind.NEW_ADDRESS} == {"", "host"}
    moves = {fault.detail.partition("/")[2] for fault in faults if fault.kind is FaultKind.MOVE}
    assert moves == {"", "both", "ipv6"}
