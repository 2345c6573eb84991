"""Legs over gRPC break at each step of their making, and each step of a carrier is passed by some seed."""

from __future__ import annotations

import pytest

from tools.simulate import coverage
from tools.simulate.broken_streams import Break
from tools.simulate.generate import generate
from tools.simulate.run import run
from tools.simulate.scenario import FaultKind

LEADS_TO = {
    Break.KILLED_WHILE_CONNECTING: "grpc leg: connecting waiting",
    Break.KILLED_WHILE_CONNECTED: "grpc leg: connected waiting",
    Break.CUT_WHILE_CONNECTING: "grpc leg: connecting waiting",
    Break.CUT_WHILE_CONNECTED: "grpc leg: connected waiting",
    Break.LEAVES_WHILE_CONNECTING: "grpc leg: connecting idle",
    Break.LEAVES_WHILE_CONNECTED: "grpc leg: connected idle",
    Break.ATTACHES_ANEW: "grpc leg: up connected",
}
TELLINGS = 4
"""A seed of `udp_blocked` has its other faults as well, which may come first."""


@pytest.mark.parametrize("kind", LEADS_TO)
def test_break_leads_where_it_is_aimed(kind: Break) -> None:
    for telling in range(TELLINGS):
        outcome = run(generate(list(Break).index(kind) + telling * len(Break), "udp_blocked"))
        assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
        if outcome.coverage[LEADS_TO[kind]]:
            return
    pytest.fail(f"{LEADS_TO[kind]} was not passed")


def test_states_of_the_grpc_carrier_are_in_the_tables() -> None:
    assert set(LEADS_TO.values()) <= set(coverage.TABLES["grpc leg"])
    assert not set(coverage.TABLES["grpc leg"]) & coverage.UNREACHABLE.keys()


def test_each_seed_has_the_next_break_and_whoever_it_is_about_sees_no_udp() -> None:
    for seed in range(100):
        scenario = generate(seed, "udp_blocked")
        kind = list(Break)[seed % len(Break)]
        blocked = {fault.target for fault in scenario.faults if fault.kind is FaultKind.BLOCK_UDP}
        for name, site in scenario.sites.items():
            if any(nat.is_udp_blocked for nat in (*site.nats, *filter(None, [site.firewall]))):
                blocked.add(name)
        if kind is Break.NONE:
            continue
        what, _ = kind.value
        faults = [fault for fault in scenario.faults if fault.kind is what and fault.at >= 1.5]
        assert faults
        if what is FaultKind.KILL:
            assert blocked
        else:
            assert blocked & {each for fault in faults for each in (fault.target, fault.other)}
