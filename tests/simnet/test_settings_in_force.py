"""What the configuration of a node says of direct paths reaches whoever acts on it."""

from __future__ import annotations

from typing import Any

from tests.simnet.test_daemons import held
from tests.simnet.world import World
from tools.simulate.bounds import concerns
from ztna.address import TransportAddress
from ztna.ice.hole_punch import HolePunchLimits
from ztna.path.manager import Policy

ICE = {"pacing_ms": 63, "check_limit_s": 7, "advertise": ["198.51.100.77:4500"]}
KEEPALIVE = {"interval_s": 2.5, "timeout_s": 0.75, "max_missed": 4}
PATH = {"policy": "lowest_rtt", "cooldown_s": 12.0}


def test_keys_of_the_direct_path_are_in_force() -> None:
    with World(1) as world:
        world.add_intermediate("intermediate-1")
        world.add_connector("connector-1")
        agent = world.add_agent("agent-1", ice=ICE, keepalive=KEEPALIVE, path=PATH)
        world.start()
        world.wait_ready()
        held(world)
        assert agent.node is not None
        cores: dict[str, Any] = {each.name: getattr(each, "_core", None) for each in concerns(agent.node)}
        assert cores["checklist"]._ta_s == 0.063
        consent = cores["keepalive"]
        assert (consent._interval_s, consent._timeout_s, consent._max_missed) == (2.5, 0.75, 4)
        limits = HolePunchLimits(check_limit_s=7, cooldown_s=12.0, is_relay_only=False)
        assert cores["hole_punch"]._limits == limits
        assert (cores["path_manager"].policy, cores["path_manager"]._max_missed) == (Policy.LOWEST_RTT, 4)
        told = {candidate.address for candidate in cores["hole_punch"]._gathered.candidates}
        assert TransportAddress("198.51.100.77", 4500) in told
