"""Hosts whose clocks are wrong by minutes: what is tolerated works, and anything else names the clock."""

from __future__ import annotations

import pytest

from tests import pki_fixtures
from tests.simnet.apps import content_digest
from tests.simnet.clock import VirtualClock
from tests.simnet.sim_io import WALL_EPOCH
from tests.simnet.world import World
from ztna.access.grant import GRANT_LIFETIME_S, GRANT_TOLERANCE_S

MINUTE = 60.0
SIZE = 100_000
CERTIFICATES_START = pki_fixtures.issue("agent", "agent-1").certificate.not_valid_before_utc.timestamp()
NODES = ("intermediate-1", "connector-1", "agent-1")


def deployed(skewed: str, skew_s: float) -> World:
    """One of each, started; the clock of one of them is wrong."""
    world = World(1)
    world.add_intermediate("intermediate-1")
    world.add_connector("connector-1")
    world.add_agent("agent-1")
    world.daemons[skewed].host.skew_s = skew_s
    world.start()
    return world


@pytest.mark.parametrize(
    ("skewed", "skew_s"),
    [
        ("agent-1", 15 * MINUTE),
        ("connector-1", 5 * MINUTE),
        ("connector-1", -50.0),
        ("intermediate-1", -4 * MINUTE),
    ],
)
def test_clock_within_the_tolerance_costs_nothing(skewed: str, skew_s: float) -> None:
    with deployed(skewed, skew_s) as world:
        world.wait_ready()
        client = world.tcp_client("agent-1", f"DOWN {SIZE}\n".encode())
        world.run_until(lambda: client.is_lost, 60)
        assert client.digest == content_digest(SIZE)
        # Nor later, with grants that were renewed at half life.
        world.run_for(0.6 * GRANT_LIFETIME_S)
        again = world.tcp_client("agent-1", f"DOWN {SIZE}\n".encode())
        world.run_until(lambda: again.is_lost, 60)
        assert again.digest == content_digest(SIZE)


@pytest.mark.parametrize("skewed", NODES)
def test_clock_before_the_certificates_is_named_by_whoever_judges(skewed: str) -> None:
    with deployed(skewed, CERTIFICATES_START - 5 * MINUTE - WALL_EPOCH - VirtualClock().time()) as world:
        event = "quic_relay.leg_refused" if skewed == "intermediate-1" else "relay_leg.lost"
        world.run_until(lambda: bool(world.log.events(event, skewed)), 20, "a refusal")
        line = world.log.events(event, skewed)[0]
        assert "is the clock right? here it is" in line["detail"]


@pytest.mark.parametrize(
    ("skewed", "skew_s", "words"),
    [
        ("connector-1", GRANT_LIFETIME_S + GRANT_TOLERANCE_S + MINUTE, "the grant expired"),
        ("connector-1", -GRANT_TOLERANCE_S - MINUTE, "the grant starts in"),
        ("intermediate-1", GRANT_TOLERANCE_S + MINUTE, "the grant starts in"),
    ],
    ids=["connector-ahead", "connector-behind", "intermediate-ahead"],
)
def test_clocks_that_make_grants_worthless_are_named_at_both_ends(
    skewed: str, skew_s: float, words: str
) -> None:
    with deployed(skewed, skew_s) as world:
        world.wait_ready()
        client = world.tcp_client("agent-1", b"DOWN 10\n")
        world.run_until(lambda: client.is_lost, 20)
        assert client.size == 0
        for node, event in (
            ("connector-1", "service_backend.flow_refused"),
            ("agent-1", "service_port.flow_refused"),
        ):
            line = world.log.events(event, node)[0]
            assert words in line["detail"], line
            assert "check this host's and the intermediate's clocks" in line["detail"], line
