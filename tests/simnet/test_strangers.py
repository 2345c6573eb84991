"""Strangers attack in every family that whom they attack has, and an answer in any is a violation."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actors.io import TcpStream
from tests.simnet.least import least_scenario
from tests.simnet.link import LinkConfig, Packet
from tests.simnet.sim_grpc import CERTIFICATE, SimGrpcServer
from tests.simnet.world import QUIC_PORT, Daemon
from tools.simulate import knocks
from tools.simulate.abuse import STRANGERS
from tools.simulate.deployment import STUN_PORT
from tools.simulate.generate import RECIPES, generate
from tools.simulate.invariants import Watcher
from tools.simulate.mutations import planted
from tools.simulate.run import run
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site
from ztna.address import Family, TransportAddress

ATTACK = Fault(2.0, FaultKind.ABUSE, "agent-0", amount=10.0, detail="initial")


def attacked(*families: Family) -> Scenario:
    site = Site(families=families)
    return least_scenario(site, site, name="abuse", link=LinkConfig(latency_s=0.01), faults=(ATTACK,))


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


@pytest.mark.parametrize("detail", ["initial", "spoof"])
def test_attack_on_an_intermediate_comes_to_its_alternate_port_as_well(
    monkeypatch: pytest.MonkeyPatch, detail: str
) -> None:
    came: Counter[tuple[Family, int]] = Counter()
    look = Watcher._at_intermediate

    def look_and_count(watcher: Watcher, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        is_foreign = packet.source.host in STRANGERS.values() or (
            watcher.forger is not None and watcher.forger.is_forged(packet.payload)
        )
        if not is_outbound and is_foreign:
            came[packet.destination.family, packet.destination.port] += 1
        look(watcher, daemon, packet, is_outbound)

    monkeypatch.setattr(Watcher, "_at_intermediate", look_and_count)
    attack = replace(ATTACK, target="intermediate-0", detail=detail)
    assert not run(replace(attacked(Family.IPV4, Family.IPV6), faults=(attack,))).violation
    assert came.keys() == {(family, port) for family in Family for port in (QUIC_PORT, STUN_PORT)}


KNOCK = Fault(2.0, FaultKind.ABUSE, "intermediate-0", amount=24.0, detail=knocks.KIND)


def test_strangers_that_connect_are_turned_away_and_nobody_else_feels_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knocking: list[knocks.Knock] = []
    connected = knocks.Knock.connected

    def note(knock: knocks.Knock, stream: TcpStream) -> None:
        knocking.append(knock)
        connected(knock, stream)

    monkeypatch.setattr(knocks.Knock, "connected", note)
    scenario = replace(attacked(Family.IPV4, Family.IPV6), faults=(KNOCK,), has_grpc=True)
    outcome = run(scenario)
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    # Over both families, and in every way there is.
    assert len(knocking) == 2 * KNOCK.amount
    assert {knock.way for knock in knocking} == set(knocks.WAYS)
    # Whoever does not even try waits for the keepalive of the listener.
    assert all(knock.is_over for knock in knocking if knock.way in {"plain", "nobody", "forged"})


def test_listener_that_says_much_to_a_stranger_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shake_hands = SimGrpcServer._shake_hands

    def talk(server: SimGrpcServer, wire: Any, remote: str, kind: bytes, body: bytes) -> None:
        if any(host in remote for host in STRANGERS.values()):
            wire.write(CERTIFICATE, bytes(10_000))
        shake_hands(server, wire, remote, kind, body)

    monkeypatch.setattr(SimGrpcServer, "_shake_hands", talk)
    violation = run(replace(attacked(Family.IPV4), faults=(KNOCK,), has_grpc=True)).violation
    assert re.search(r"says \d+ B to a stranger that connected", violation)


def test_knocks_come_on_top_of_what_a_seed_meant_before(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [generate(seed, "udp_blocked") for seed in range(50)]
    monkeypatch.setitem(RECIPES, "udp_blocked", replace(RECIPES["udp_blocked"], knock_share=0.0))
    kept = [
        replace(each, faults=tuple(fault for fault in each.faults if fault.detail != knocks.KIND))
        for each in drawn
    ]
    assert kept == [generate(seed, "udp_blocked") for seed in range(50)]
    assert kept != drawn
