"""Sites of one address family and of both: the relay joins what cannot meet, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.nodes import AGENT, running
from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Lab
from tools.natlab.plan import Direction, Link, Plan, Site
from ztna.v1 import control_pb2, types_pb2

LINK = Link.both(Direction(delay_ms=5))
PIECE = 1 << 18


@pytest.mark.parametrize(
    ("agent", "connector"), [(Kind.FIREWALL_V6, Kind.EIM_APDF), (Kind.EIM_APDF, Kind.FIREWALL_V6)]
)
def test_site_of_ipv6_meets_one_of_ipv4_on_the_relay_and_says_why(
    short_directory: Path, agent: Kind, connector: Kind
) -> None:
    plan = Plan((Site("a", Access(agent), LINK), Site("b", Access(connector), LINK)))
    with running(plan, short_directory) as nodes, nodes.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        for session in nodes.wait_until(
            lambda session: session.direct_path.reason == "no_common_family", "the reason"
        ):
            assert session.path == "relay"
            assert "One side has IPv4 alone" in session.path_reason
        assert transfer.finish() > PIECE


def give_addresses(lab: Lab, site: str) -> dict[str, str]:
    """Add a temporary IPv6 address (RFC 8981), which the kernel makes, and a deprecated one; all by kind."""
    lab.run(site, ["sh", "-c", "echo 2 > /proc/sys/net/ipv6/conf/eth0/use_tempaddr"])
    prefix = lab.address(site, 6).rpartition(":")[0]
    for host, how in (
        ("77", ["mngtmpaddr", "valid_lft", "3600", "preferred_lft", "1800"]),
        ("88", ["preferred_lft", "0"]),
    ):
        lab.run(site, ["ip", "addr", "add", f"{prefix}:{host}/64", "dev", "eth0", "nodad", *how])
    (link,) = json.loads(lab.run(site, ["ip", "-j", "-6", "addr", "show", "dev", "eth0"]).stdout)
    addresses = link["addr_info"]
    found = {"link-local": next(each["local"] for each in addresses if each["scope"] == "link")}
    for kind in ("temporary", "deprecated"):
        (found[kind],) = [each["local"] for each in addresses if each.get(kind)]
    return found


def local_hosts(session: control_pb2.SessionStatus) -> list[str]:
    """Addresses of our host candidates, the highest priority first; at least an empty one."""
    candidates = session.direct_path.local_candidates
    return [each.address.host for each in candidates if each.type == types_pb2.Candidate.TYPE_HOST] or [""]


def is_direct_over_ipv6(session: control_pb2.SessionStatus) -> bool:
    pair = session.direct_path.selected_pair
    return session.path == "direct" and ":" in pair.local.address.host and ":" in pair.remote.address.host


@pytest.mark.parametrize(
    "agent",
    [
        pytest.param(Site("a", Access(Kind.FIREWALL_V6), LINK), id="agent of ipv6 alone"),
        # IPv4 would work as well (test_punching.py); pairs of IPv6 hosts have the highest priority.
        pytest.param(Site("a", Access(Kind.EIM_APDF), LINK, ipv6=Kind.FIREWALL_V6), id="agent of both"),
    ],
)
def test_sites_that_both_have_ipv6_go_direct_over_it_and_on_with_a_temporary_address(
    agent: Site, short_directory: Path
) -> None:
    plan = Plan((agent, Site("b", Access(Kind.EIM_APDF), LINK, ipv6=Kind.FIREWALL_V6)))
    with running(plan, short_directory) as nodes, nodes.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        # IPv4 may be first; while the nomination is not settled, a better pair takes its place.
        nodes.wait_until(is_direct_over_ipv6, "direct over IPv6")
        has_ipv4 = any(":" not in host for host in local_hosts(nodes.session(AGENT)))
        assert has_ipv4 is (agent.ipv6 is not None)
        transfer.meter.wait_for_more(PIECE)
        before = nodes.session(AGENT).direct_path.generation
        given = give_addresses(nodes.lab, "a")
        (session,) = nodes.wait_until(
            # The kernel sends from the temporary one, once it is sure of it: then that comes first.
            lambda session: (
                session.path == "direct"
                and session.direct_path.generation > before
                and local_hosts(session)[0] == given["temporary"]
                and given["deprecated"] in local_hosts(session)
            ),
            "direct with its new addresses",
            AGENT,
        )
        assert given["link-local"] not in local_hosts(session)
        transfer.meter.wait_for_more(PIECE)
        assert transfer.finish() > PIECE
