"""gRPC streams on virtual time: what stands for `grpcio` in simulations does what its users rely on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simnet.least import least_scenario
from tests.simnet.nat import UDP_BLOCKED
from tools.simulate.deployment import Deployment
from tools.simulate.run import run
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site, Work, WorkKind
from ztna.address import Family
from ztna.v1 import relay_leg_pb2

BOTH = (Family.IPV4, Family.IPV6)


def deployment(agent: Site, connector: Site = Site(), *faults: Fault, seed: int = 1) -> Scenario:  # noqa: B008 - frozen
    """One agent and one connector, whose signaling goes over gRPC."""
    return least_scenario(
        agent,
        connector,
        seed=seed,
        work=(Work(3.0, WorkKind.STREAM, "agent-0", "connector-0", up=40_000, down=40_000, over_s=4.0),),
        faults=faults,
        has_grpc=True,
    )


def carriers(scenario: Scenario) -> dict[str, str]:
    """Which carrier the leg of each node came up on first."""
    found: dict[str, str] = {}

    def on_message(daemon: object, message: object) -> None:
        if isinstance(message, relay_leg_pb2.RelayLegUp):
            found.setdefault(getattr(daemon, "id", ""), message.carrier)

    world = Deployment(scenario, lambda _what: None, on_message)
    with world:
        world.start()
        world.run_until(lambda: len(found) == 2, 15, "both legs up")
    return found


def test_leg_comes_up_over_grpc_where_udp_is_blocked_and_over_quic_elsewhere() -> None:
    assert carriers(deployment(Site((UDP_BLOCKED,)))) == {"agent-0": "grpc", "connector-0": "quic"}


@pytest.mark.parametrize("dead", BOTH)
def test_dead_family_costs_signaling_over_grpc_a_moment(dead: Family) -> None:
    outcome = run(replace(deployment(Site(families=BOTH, dead=dead)), first_family=dead))
    assert not outcome.violation, outcome.violation


@pytest.mark.parametrize("side", ["agent-0", "connector-0"])
def test_stream_is_whole_where_udp_is_blocked_for_good(side: str) -> None:
    sites = {"agent-0": Site(), "connector-0": Site(), side: Site((UDP_BLOCKED,))}
    outcome = run(deployment(sites["agent-0"], sites["connector-0"]))
    assert not outcome.violation, outcome.violation
    assert outcome.facts["streams"] == 1


def test_stream_is_whole_while_udp_is_blocked_for_a_while() -> None:
    outcome = run(deployment(Site(), Site(), Fault(4.0, FaultKind.BLOCK_UDP, "agent-0", 8.0)))
    assert not outcome.violation, outcome.violation
    assert not outcome.facts["excused"]
