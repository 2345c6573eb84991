"""The daemons themselves on the hosts of a lab."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from tools.natlab.deployment import LabDeployment
from tools.natlab.kinds import Access
from tools.natlab.lab import Lab
from tools.natlab.plan import Direction, Link, Plan, Site, pair

MIB = 1 << 20
AGENT_PORT = 8000

PLANS = {
    "eim-apdf both": pair("eim-apdf", "eim-apdf", delay_ms=20),
    "ipv6 firewalls": Plan(
        tuple(
            Site(name, Access.parse("firewall-v6"), Link.both(Direction(delay_ms=20))) for name in ("a", "b")
        )
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_download_through_the_relay_arrives_unchanged(plan: Plan, short_directory: Path) -> None:
    content = random.Random(3).randbytes(3 * MIB)
    served = short_directory / "served"
    served.mkdir()
    (served / "file").write_bytes(content)
    with Lab(plan) as lab, LabDeployment(short_directory / "d", lab) as deployment:
        deployment.add_intermediate()
        backend = deployment.serve_files("b", served)
        relay_only: dict[str, Any] = {"path": {"policy": "relay_only"}}
        deployment.add_connector(
            "connector-1", [{"id": "files", "protocol": "tcp", "backend": backend}], **relay_only
        )
        deployment.add_agent(
            "agent-1",
            [{"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{AGENT_PORT}"}],
            **relay_only,
        )
        deployment.start()
        deployment.wait_ready(timeout_s=40)
        size, digest = deployment.download("a", AGENT_PORT, "/file")
        assert (size, digest) == (3 * MIB, hashlib.sha256(content).hexdigest())
        status = deployment.wait_for("agent-1", lambda status: bool(status["sessions"]), "a session")
    (session,) = status["sessions"]
    assert session["via"] == "intermediate-1"
    # Both links, there and back.
    assert session["rtt_ms"] >= 80
