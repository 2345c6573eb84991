"""A fleet of simulated nodes against a running intermediate, over both carriers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hostile import wait_for_metric
from tools.bench.fleet import Carrier, Fleet, FleetError
from tools.deployment import Deployment

pytestmark = pytest.mark.e2e

NODES = 6
LIMIT_S = 30.0


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(Path(tmp_path_factory.mktemp("fleet"))) as deployment:
        deployment.add_intermediate()
        deployment.start()
        deployment.wait_ready()
        yield deployment


@pytest.mark.parametrize("carrier", ["grpc", "quic"])
def test_every_node_attaches_and_comes_back_to_a_killed_intermediate(
    deployment: Deployment, carrier: Carrier
) -> None:
    with Fleet(deployment, "intermediate-1", NODES, carrier=carrier, processes=2) as fleet:
        started = fleet.attach()
        first = fleet.wait_up(NODES, LIMIT_S)
        assert len(first.ready_at) == NODES
        assert first.ready_at[0] > started
        assert not first.losses
        wait_for_metric(deployment.daemons["intermediate-1"], "ztna_attached_nodes", NODES)
        deployment.kill("intermediate-1")
        killed = time.monotonic()
        deployment.start("intermediate-1")
        again = fleet.wait_up(NODES, LIMIT_S, since=killed)
        assert again.losses["leg_no_answer"] >= NODES
        fleet.leave()
    deployment.wait_for("intermediate-1", lambda status: not status["nodes"], "all nodes left")
    entries = map(json.loads, deployment.daemons["intermediate-1"].log_path.read_text().splitlines())
    ends = [entry for entry in entries if entry["event"] == "signaling_service.node_detached"]
    assert [entry["is_clean"] for entry in ends] == [True] * NODES


def test_a_fleet_that_finds_nobody_says_what_its_nodes_saw(deployment: Deployment) -> None:
    deployment.kill("intermediate-1")
    with Fleet(deployment, "intermediate-1", 2) as fleet:
        fleet.attach()
        with pytest.raises(FleetError, match=r"0 of 2 nodes are up, .*signaling_unavailable"):
            fleet.wait_up(2, 1.5)
