"""Sites of one address family and of both: the relay joins what cannot meet, and says so."""

from __future__ import annotations

from pathlib import Path

from tests.netns.nodes import running
from tools.natlab.kinds import Access, Kind
from tools.natlab.plan import Direction, Link, Plan, Site

LINK = Link.both(Direction(delay_ms=5))
ONLY_V6 = Site("a", Access(Kind.FIREWALL_V6), LINK)
PIECE = 1 << 18


def test_site_of_ipv6_meets_one_of_ipv4_on_the_relay_and_says_why(short_directory: Path) -> None:
    plan = Plan((ONLY_V6, Site("b", Access(Kind.EIM_APDF), LINK)))
    with running(plan, short_directory) as nodes, nodes.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        for session in nodes.wait_until(
            lambda session: session.direct_path.reason == "no_common_family", "the reason"
        ):
            assert session.path == "relay"
            assert "One side has IPv4 alone" in session.path_reason
        assert transfer.finish() > PIECE


def test_sites_that_both_have_ipv6_go_direct_over_it(short_directory: Path) -> None:
    plan = Plan((ONLY_V6, Site("b", Access(Kind.EIM_APDF), LINK, ipv6=Kind.FIREWALL_V6)))
    with running(plan, short_directory) as nodes, nodes.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        for session in nodes.wait_direct():
            pair = session.direct_path.selected_pair
            assert ":" in pair.local.address.host
            assert ":" in pair.remote.address.host
        transfer.meter.wait_for_more(PIECE)
        assert transfer.finish() > PIECE
