"""The search for a direct path by the real daemons: who finds one, how soon, and what the others say."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.nodes import AGENT, BOTH, CONNECTOR, Nodes, running
from tests.netns.verdicts import wait_for_nat
from tools.natlab.cell import DIRECT, RELAY, SessionPath, wait_for_punch
from tools.natlab.kinds import Access, obstacle
from tools.natlab.lab import Lab
from tools.natlab.plan import pair
from ztna.ice.reasons import sentence

DELAY_MS = 20.0
ROUND_TRIP_MS = 4 * DELAY_MS
# A machine with other work is late by as much.
AIR_MS = 400.0
# As many restarts as a connector grants an agent in a burst.
PUNCHES = 5
# What a search that finds nothing may take before the relay is reported (10 s from the offer), and some air.
LIMIT_S = 25.0
# Not the one that the NAT maps to by itself, or the way would be found without being told.
FORWARDED_PORT, INSIDE_PORT = 4600, 4500

CELLS = [
    ("eim-apdf", "eim-apdf"),
    ("eim-adf", "apdm-random"),
    ("apdm-sequential", "eim-eif"),
    ("eim-apdf", "apdm-random"),
]


def punch(nodes: Nodes, above: int) -> SessionPath:
    return wait_for_punch(nodes.deployment, BOTH, above, LIMIT_S)


def wait_for_verdicts(nodes: Nodes, a: str, b: str) -> None:
    """Both ends say of their NATs what is true."""
    wait_for_nat(nodes, AGENT, a)
    wait_for_nat(nodes, CONNECTOR, b)


@pytest.mark.parametrize(("a", "b"), CELLS)
def test_pair_goes_direct_exactly_when_its_nats_allow_it(
    a: str, b: str, short_directory: Path, report_figure: Callable[[str, str], None]
) -> None:
    expected_reason = obstacle(Access.parse(a), Access.parse(b))
    with running(pair(a, b, delay_ms=DELAY_MS), short_directory, agent={"connect": "eager"}) as nodes:
        found = punch(nodes, 0)
        if expected_reason:
            assert found.path == RELAY
            for session in nodes.wait_until(
                lambda session: session.direct_path.reason == expected_reason, expected_reason
            ):
                assert session.path == RELAY
                assert session.path_reason == f"no direct path was found: {sentence(expected_reason)}"
            wait_for_verdicts(nodes, a, b)
            return
        first_ms = found.time_to_direct_ms
        assert found.path == DIRECT
        times_ms = []
        for number in range(PUNCHES):
            if number:
                nodes.restart_ice()
                found = punch(nodes, found.generation)
                assert found.path == DIRECT
            sessions = [nodes.session(node) for node in BOTH]
            assert len({session.direct_path.generation for session in sessions}) == 1
            times_ms.append(max(session.direct_path.answer_to_succeeded_ms for session in sessions))
        assert nodes.session(AGENT).direct_path.successes == PUNCHES
        wait_for_verdicts(nodes, a, b)
    median_ms = statistics.median(times_ms)
    report_figure(
        f"{a} x {b}",
        f"first direct after {first_ms} ms; answer to Succeeded at the later end, p50 of {PUNCHES}: "
        f"{median_ms:.0f} ms ({', '.join(f'{each:.0f}' for each in sorted(times_ms))})",
    )
    assert first_ms is not None
    assert first_ms < 5000
    assert median_ms <= 2 * ROUND_TRIP_MS + 100 + AIR_MS


def test_forwarded_port_that_is_advertised_opens_a_way_that_these_nats_leave_none_for(
    short_directory: Path,
) -> None:
    plan = pair("apdm-random", "eim-apdf", delay_ms=DELAY_MS)
    # Addresses follow from the plan; the deployment needs them before its lab is there.
    with Lab(plan) as lab:
        forwarded, inside = lab.external_address("b"), lab.address("b")
    connector = {
        "udp": {"bind": [f"0.0.0.0:{INSIDE_PORT}"]},
        "ice": {"advertise": [f"{forwarded}:{FORWARDED_PORT}"]},
    }
    with running(plan, short_directory, connector=connector) as nodes:
        target = f"{inside}:{INSIDE_PORT}"
        forwarding = [
            "add table ip forwarding",
            "add chain ip forwarding in { type nat hook prerouting priority dstnat - 1; }",
            f"add rule ip forwarding in ip daddr {forwarded} udp dport {FORWARDED_PORT} dnat to {target}",
        ]
        nodes.lab.run("nat-b", ["nft", "-f", "-"], text="\n".join(forwarding) + "\n")
        with nodes.transfer() as transfer:
            agent, _ = nodes.wait_direct()
            remote = agent.direct_path.selected_pair.remote.address
            assert (remote.host, remote.port) == (forwarded, FORWARDED_PORT)
            assert transfer.finish() > 0
