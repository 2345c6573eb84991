"""Whole daemons behind simulated NATs: which pairs go direct, and what a session feels of it."""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest

from tests.simnet.apps import content_digest
from tests.simnet.nat import (
    ADDRESS_RESTRICTED,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    SYMMETRIC_SEQUENTIAL,
    NatKind,
)
from tests.simnet.test_daemons import download
from tests.simnet.world import World
from ztna.nat.behaviour import direct_path_possible
from ztna.v1 import candidate_gatherer_pb2, hole_punch_pb2, path_manager_pb2, types_pb2

KINDS: Final[dict[str, NatKind | None]] = {
    "open": None,
    "firewall": FIREWALL,
    "eim-eif": FULL_CONE,
    "eim-adf": ADDRESS_RESTRICTED,
    "eim-apdf": PORT_RESTRICTED,
    "apdm-sequential": SYMMETRIC_SEQUENTIAL,
    "apdm-random": SYMMETRIC_RANDOM,
}
NODES: Final = ("agent-1", "connector-1")
ONE_WAY_S: Final = 0.04
"""By way of the relay, at most."""
OPEN: Final = NatKind(is_translating=False, filtering=FULL_CONE.filtering)
PAIRS: Final = [(a, b) for i, a in enumerate(KINDS) for b in list(KINDS)[i:]]


def deployment(agent: NatKind | None, connector: NatKind | None, seed: int = 1) -> World:
    world = World(seed, policy="prefer_direct")
    world.add_intermediate("intermediate-1", stun={"alternate_port": 4435})
    world.add_connector("connector-1", nat=connector)
    world.add_agent("agent-1", nat=agent)
    world.start()
    world.wait_ready()
    return world


def path_of(world: World, node: str) -> types_pb2.PathKind.ValueType:
    selected = world.daemons[node].facts.latest.get(path_manager_pb2.PathSelected)
    assert isinstance(selected, path_manager_pb2.PathSelected)
    return selected.kind


def is_direct(world: World) -> bool:
    return all(path_of(world, node) == types_pb2.PATH_KIND_DIRECT for node in NODES)


def is_nat_known(world: World, node: str) -> bool:
    learned = world.daemons[node].facts.latest.get(candidate_gatherer_pb2.NatBehaviourLearned)
    assert isinstance(learned, candidate_gatherer_pb2.NatBehaviourLearned)
    unknown = types_pb2.NAT_DEPENDENCE_UNSPECIFIED
    return unknown not in (learned.nat.mapping, learned.nat.filtering)


def search_of(world: World, node: str) -> hole_punch_pb2.HolePunchChanged:
    search = world.daemons[node].facts.latest[hole_punch_pb2.HolePunchChanged]
    assert isinstance(search, hole_punch_pb2.HolePunchChanged)
    return search


@pytest.mark.parametrize(("agent", "connector"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
def test_pair_of_nats_goes_direct_where_it_can_and_says_why_where_not(agent: str, connector: str) -> None:
    kinds = KINDS[agent], KINDS[connector]
    is_possible = direct_path_possible(*((kind or OPEN).behaviour for kind in kinds))
    with deployment(*kinds) as world:
        client = download(world, 10_000)
        world.run_until(lambda: client.is_lost, 5, "the download")
        assert client.digest == content_digest(10_000)
        if is_possible:
            world.run_until(lambda: is_direct(world), 5, "a direct path at both ends")
        else:
            # The search ends in vain before the filters are known; what is known then explains it at once.
            world.run_until(lambda: all(map(partial(is_nat_known, world), NODES)), 10, "both NATs are known")
            world.run_for(ONE_WAY_S * 4)
            assert not is_direct(world)
            for node in NODES:
                search = search_of(world, node)
                assert search.state == hole_punch_pb2.HOLE_PUNCH_STATE_FALLBACK_RELAY
                assert search.reason in {"both_mappings_vary", "mapping_varies_and_peer_filters_ports"}
        again = download(world, 100_000)
        world.run_until(lambda: again.is_lost, 5, "another download")
        assert again.digest == content_digest(100_000)
