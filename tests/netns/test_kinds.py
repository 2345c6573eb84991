"""Each kind of NAT does what its name says, found out by sockets on both of its sides."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.netns.probes import LIMIT_S, Server, receive, server, udp
from tools.natlab.kinds import Access, FilteringBehaviour, Kind, MappingBehaviour, PortAllocation
from tools.natlab.lab import Lab
from tools.natlab.plan import Plan, Provider, Site

SINGLE = [kind.value for kind in Kind]
DOUBLE = ["eim-apdf/eim-eif", "eim-eif/apdm-random"]
# Sites are named in this order; a lab has room for them all.
SITES = {access: f"s{number}" for number, access in enumerate([*SINGLE[:10], *DOUBLE])}
V6_SITES = {access: f"v{number}" for number, access in enumerate(SINGLE[10:])}
PASSING = [access for access in (*SITES, *V6_SITES) if Access.parse(access).behaviour.passes_udp]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab with a site of each kind."""
    sites = [Site(name, Access.parse(access)) for access, name in (SITES | V6_SITES).items()]
    with Lab(Plan(tuple(sites))) as made:
        yield made


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[dict[int, Server]]:
    """The intermediate's sockets for each family."""
    with server(lab, 4) as v4, server(lab, 6) as v6:
        yield {4: v4, 6: v6}


@contextmanager
def at(lab: Lab, servers: dict[int, Server], access: str) -> Iterator[tuple[socket.socket, Server]]:
    family = Access.parse(access).behaviour.family
    with udp(lab, (SITES | V6_SITES)[access], family=6 if family == 6 else 4) as client:
        yield client, servers[family]


@pytest.mark.parametrize("access", PASSING)
def test_mapping_is_as_named(lab: Lab, servers: dict[int, Server], access: str) -> None:
    with at(lab, servers, access) as (client, server_):
        one = server_.sees(client)
        other_port = server_.sees(client, server_.other_port)
        other_address = server_.sees(client, server_.other_address)
        if one == other_port == other_address:
            found = MappingBehaviour.ENDPOINT_INDEPENDENT
        elif one == other_port:
            found = MappingBehaviour.ADDRESS_DEPENDENT
        else:
            found = MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT
        assert found is Access.parse(access).behaviour.mapping
        # The same again: a mapping that is used stays.
        assert server_.sees(client) == one


@pytest.mark.parametrize("access", PASSING)
def test_filtering_is_as_named(lab: Lab, servers: dict[int, Server], access: str) -> None:
    with at(lab, servers, access) as (client, server_):
        passed = server_.passes(client, server_.sees(client))
        expected = {
            FilteringBehaviour.ENDPOINT_INDEPENDENT: {server_.other_address, server_.other_port},
            FilteringBehaviour.ADDRESS_DEPENDENT: {server_.other_port},
            FilteringBehaviour.ADDRESS_AND_PORT_DEPENDENT: set(),
        }
        assert passed == expected[Access.parse(access).behaviour.filtering]


@pytest.mark.parametrize("access", PASSING)
def test_ports_are_as_named(lab: Lab, servers: dict[int, Server], access: str) -> None:
    with at(lab, servers, access) as (client, server_):
        ports = [
            server_.sees(client, endpoint)[1]
            for endpoint in (server_.main, server_.other_port, server_.other_address)
        ]
        local = client.getsockname()[1]
        match Access.parse(access).behaviour.ports:
            case PortAllocation.NONE | PortAllocation.PRESERVED:
                assert ports == [local] * 3
            case PortAllocation.SEQUENTIAL:
                assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
            case PortAllocation.RANDOM:
                assert ports != [local] * 3
                assert ports != [ports[0], ports[0] + 1, ports[0] + 2]


@pytest.mark.parametrize("access", [*SINGLE[:10], *SINGLE[10:], *DOUBLE])
def test_external_address_is_what_the_world_sees(lab: Lab, servers: dict[int, Server], access: str) -> None:
    site = (SITES | V6_SITES)[access]
    if access == "udp-blocked":
        with tcp_listener(lab, 443) as listener, tcp_connection(lab, site, 443):
            accepted, (seen, _) = listener.accept()
            accepted.close()
    else:
        with at(lab, servers, access) as (client, server_):
            seen = server_.sees(client)[0]
    assert seen == lab.external_address(site)


@pytest.mark.parametrize("access", ["eim-apdf-random", "adm-apdf", "apdm-random", "apdm-sequential"])
def test_many_flows_to_one_server_all_pass(lab: Lab, servers: dict[int, Server], access: str) -> None:
    """A hash of a few hundred flows meets a port twice; both flows pass all the same."""
    server_ = servers[4]
    with ExitStack() as opened:
        clients = [opened.enter_context(udp(lab, SITES[access])) for _ in range(300)]
        seen = [server_.sees(client) for client in clients]
        assert len(set(seen)) == len(clients)
        assert [server_.sees(client) for client in clients] == seen


def tcp_listener(lab: Lab, port: int) -> socket.socket:
    listener = lab.socket("mid", socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(15)
    listener.bind(("203.0.113.10", port))
    listener.listen()
    return listener


def tcp_connection(lab: Lab, host: str, port: int, timeout_s: float = 15.0) -> socket.socket:
    client = lab.socket(host, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    try:
        client.connect(("203.0.113.10", port))
    except OSError:
        client.close()
        raise
    return client


def test_blocked_udp_leaves_only_the_web(lab: Lab, servers: dict[int, Server]) -> None:
    site = SITES["udp-blocked"]
    with udp(lab, site) as client:
        client.sendto(b"lost", servers[4].main)
    with tcp_listener(lab, 443), tcp_connection(lab, site, 443):
        pass
    with tcp_listener(lab, 80), pytest.raises(TimeoutError):
        tcp_connection(lab, site, 80, timeout_s=0.3)
    # Whatever the others sent has been read; the datagram would have been here long before the connection.
    at_the_server = servers[4].sockets[servers[4].main]
    at_the_server.setblocking(False)
    try:
        with pytest.raises(BlockingIOError):
            at_the_server.recvfrom(100)
    finally:
        at_the_server.settimeout(LIMIT_S)


def test_early_packet_of_the_peer_does_not_take_our_port(lab: Lab) -> None:
    a, b = SITES["eim-apdf"], SITES["firewall"]
    with udp(lab, a) as one, udp(lab, b) as other:
        external = (lab.external_address(a), one.getsockname()[1])
        for _ in range(3):
            other.sendto(b"early", external)
        one.sendto(b"hello", (lab.external_address(b), other.getsockname()[1]))
        assert receive(other) == (b"hello", external)
        other.sendto(b"now", external)
        assert receive(one)[0] == b"now"


@pytest.mark.parametrize("has_hairpin", [True, False], ids=["hairpin", "no hairpin"])
def test_sites_behind_one_provider_meet_only_by_hairpin(has_hairpin: bool) -> None:
    sites = tuple(Site(name, Access(Kind.EIM_APDF), provider="isp") for name in ("a", "b"))
    plan = Plan(sites, providers=(Provider("isp", Kind.EIM_EIF, has_hairpin=has_hairpin),))
    with Lab(plan) as lab, server(lab) as server_, udp(lab, "a") as a, udp(lab, "b") as b:
        of_a, of_b = server_.sees(a), server_.sees(b)
        assert of_a[0] == of_b[0] == lab.external_address("a") == lab.external_address("b")
        b.sendto(b"opens b's own NAT", of_a)
        a.sendto(b"through", of_b)
        if has_hairpin:
            # The source is the external endpoint of the sender (RFC 4787 REQ-9).
            assert receive(b) == (b"through", of_a)
        else:
            server_.sockets[server_.main].sendto(b"last", of_b)
            assert receive(b)[0] == b"last"


def test_dual_stack_site_has_a_nat_and_a_firewall() -> None:
    plan = Plan((Site("a", Access(Kind.APDM_RANDOM), ipv6=Kind.FIREWALL_V6),))
    with Lab(plan) as lab, server(lab, 4) as v4, server(lab, 6) as v6:
        with udp(lab, "a") as client:
            assert v4.sees(client)[0] == lab.external_address("a")
        with udp(lab, "a", family=6) as client:
            assert v6.sees(client) == (lab.address("a", 6), client.getsockname()[1])
            assert v6.passes(client, v6.sees(client)) == set()
