"""The least that can be simulated, from which a test says only how its own differs."""

from __future__ import annotations

from typing import Any

from tests.simnet.link import LinkConfig
from tools.simulate.scenario import Scenario, Site


def least_scenario(agent: Site = Site(), connector: Site = Site(), **others: Any) -> Scenario:  # noqa: B008 - frozen
    """One intermediate between an agent and a connector, and what else a scenario has by name."""
    facts: dict[str, Any] = {
        "seed": 1,
        "name": "mixed",
        "policy": "prefer_direct",
        "link": LinkConfig(latency_s=0.014),
        "intermediates": ("intermediate-0",),
        "agents": {"agent-0": agent},
        "connectors": {"connector-0": connector},
        "work": (),
    }
    return Scenario(**(facts | others))
