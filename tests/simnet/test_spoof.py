"""Datagrams in the name of a peer, or of an intermediate, change nothing; what believes them is found."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.simnet.least import least_scenario
from tests.simnet.link import LinkConfig, Packet
from tests.simnet.nat import FIREWALL, PORT_RESTRICTED
from tests.simnet.network import VirtualNetwork
from tests.simnet.sim_io import Host
from tools.simulate import spoof
from tools.simulate.abuse import STRANGERS
from tools.simulate.generate import RECIPES, generate
from tools.simulate.mutations import Edit, planted
from tools.simulate.run import run
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site, Work, WorkKind
from ztna.address import Family
from ztna.relay.hub import RelayHub
from ztna.stun.message import Message

V4, BOTH = (Family.IPV4,), (Family.IPV4, Family.IPV6)


def attacked(*targets: str, families: tuple[Family, ...] = BOTH) -> Scenario:
    """A session that is up and talks, and attacks on each target meanwhile."""
    site = Site((PORT_RESTRICTED,), families, FIREWALL if Family.IPV6 in families else None)
    return least_scenario(
        site,
        site,
        name="abuse",
        link=LinkConfig(latency_s=0.02),
        work=(Work(0.5, WorkKind.STREAM, "agent-0", "connector-0", 60_000, 60_000, over_s=9.0),),
        faults=tuple(
            Fault(at, FaultKind.ABUSE, target, amount=60.0, detail=spoof.KIND)
            for target in targets
            for at in (3.0, 6.0, 8.0)
        ),
    )


@pytest.mark.parametrize("target", ["agent-0", "connector-0", "intermediate-0"])
def test_forged_datagrams_reach_their_victim_in_each_family_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    came: Counter[tuple[Family, str]] = Counter()
    inject, forward = VirtualNetwork.inject, Host.forward
    forged: set[bytes] = set()

    def inject_and_note(network: VirtualNetwork, packet: Packet, sender: Host) -> None:
        assert packet.source.host not in STRANGERS.values()
        forged.add(packet.payload)
        inject(network, packet, sender)

    def forward_and_count(host: Host, packet: Packet) -> None:
        if host.name == target and packet.payload in forged:
            came[packet.source.family, packet.source.host] += 1
        forward(host, packet)

    monkeypatch.setattr(VirtualNetwork, "inject", inject_and_note)
    monkeypatch.setattr(Host, "forward", forward_and_count)
    outcome = run(attacked(target))
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    assert outcome.facts["streams"] == 1
    assert {family for family, _ in came} == set(BOTH)
    # In the name of the intermediate as in that of the peer.
    assert len(came) >= 2 * len(BOTH)


def test_check_that_is_forged_in_the_name_of_a_peer_and_answered_is_found() -> None:
    with planted("check-integrity-off"):
        assert re.search(r"answers what was forged: \d+ B to", run(attacked("connector-0")).violation)


def test_replayed_check_that_is_answered_where_it_seems_to_come_from_is_found() -> None:
    with planted("check-replay-memory-off"):
        assert re.search(r"answers what was forged: \d+ B to", run(attacked("connector-0")).violation)


def test_answers_that_are_believed_whoever_made_them_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    believing: Any = lambda _message, _key: True  # noqa: E731
    monkeypatch.setattr(Message, "verify_integrity", believing)
    subject = attacked("agent-0", "connector-0")
    assert not run(replace(subject, faults=())).violation
    assert run(subject).violation


def test_intermediate_that_sends_much_to_whoever_is_named_is_found() -> None:
    generous = Edit(
        RelayHub,
        "handle_unknown",
        "case quic_endpoint.Drop() | quic_endpoint.Wait():\n                pass",
        "case quic_endpoint.Drop() | quic_endpoint.Wait():\n"
        "                self._effects.append(HubTransmit(remote, local_host, [bytes(1200)] * 10))",
    )
    with generous.applied():
        violation = run(attacked("intermediate-0")).violation
    assert "answers what was forged with more than 3 times as much" in violation


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.spoof_share])
def test_attacks_come_on_top_of_what_a_seed_meant_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    drawn = [generate(seed, name) for seed in range(100)]
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], spoof_share=0.0))
    extra = 0
    for seed, each in enumerate(drawn):
        former = generate(seed, name)
        kept = tuple(fault for fault in each.faults if fault.detail != spoof.KIND)
        assert replace(each, faults=kept) == former
        extra += kept != each.faults
    assert extra >= 10
