"""What can be done to a lab while something runs in it: links, cuts, rebinds, hand-overs."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from tests.netns.probes import Server, median_round_trip_ms, receive, round_trips_ms, server, udp
from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Cut, Handover, Lab
from tools.natlab.namespaces import LabError
from tools.natlab.plan import Link, Plan, Site, Uplink
from ztna.address import TransportAddress

IP_MTU_DISCOVER = 10
IP_PMTUDISC_DO = 2
# A machine with other work to do is late by this much at the median, at the very worst.
AIR_MS = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Site `a` with two uplinks, site `b` with one; each test leaves it as it was."""
    sites = (
        Site("a", Access(Kind.EIM_APDF), second=Uplink(Access(Kind.EIM_EIF))),
        Site("b", Access(Kind.EIM_EIF)),
    )
    with Lab(Plan(sites)) as made:
        yield made


@pytest.fixture
def at_mid(lab: Lab) -> Iterator[Server]:
    """The intermediate's sockets."""
    with server(lab) as made:
        yield made


@pytest.fixture
def client(lab: Lab) -> Iterator[socket.socket]:
    """A wildcard socket of site `a`."""
    with udp(lab, "a") as made:
        yield made


def answer(at: Server, client: socket.socket, external: tuple[str, int]) -> bytes:
    at.sockets[at.main].sendto(b"answer", external)
    return receive(client)[0]


def is_silent(receiver: socket.socket) -> bool:
    """Whether nothing has arrived; what is dropped is dropped at once, no latency is involved."""
    receiver.settimeout(0.2)
    try:
        receiver.recvfrom(100)
    except TimeoutError:
        return True
    finally:
        receiver.settimeout(15)
    return False


def test_delay_is_added_in_each_direction_while_packets_flow(
    lab: Lab, at_mid: Server, client: socket.socket
) -> None:
    try:
        lab.set_link("a", Link.parse("up.delay=30,down.delay=20"))
        assert min(round_trips_ms(client, at_mid, 5)) >= 50
        assert median_round_trip_ms(client, at_mid) < 50 + AIR_MS
        lab.set_link("a", Link.parse("up.delay=100", lab.link("a")))
        assert min(round_trips_ms(client, at_mid, 3)) >= 120
        lab.set_link("mid", Link.parse("delay=40"))
        assert min(round_trips_ms(client, at_mid, 3)) >= 200
    finally:
        lab.set_link("a", Link())
        lab.set_link("mid", Link())
    assert median_round_trip_ms(client, at_mid) < AIR_MS


def test_jitter_varies_delay_and_keeps_order(lab: Lab, at_mid: Server, client: socket.socket) -> None:
    try:
        lab.set_link("a", Link.parse("up.delay=20,up.jitter=20"))
        times = round_trips_ms(client, at_mid, 20)
        assert max(times) - min(times) > 5
        for number in range(100):
            client.sendto(str(number).encode(), at_mid.main)
        received = [int(receive(at_mid.sockets[at_mid.main])[0]) for _ in range(100)]
        assert received == list(range(100))
    finally:
        lab.set_link("a", Link())


def test_loss_drops_its_share(lab: Lab, at_mid: Server, client: socket.socket) -> None:
    at_mid.sees(client)
    try:
        lab.set_link("a", Link.parse("up.loss=0.5"))
        for _ in range(400):
            client.sendto(b"perhaps", at_mid.main)
        lab.set_link("a", Link())
        client.sendto(b"last", at_mid.main)
        arrived = 0
        while receive(at_mid.sockets[at_mid.main])[0] != b"last":
            arrived += 1
        # Ten standard deviations.
        assert 100 < arrived < 300
    finally:
        lab.set_link("a", Link())


def test_whole_loss_in_one_direction_leaves_the_other(
    lab: Lab, at_mid: Server, client: socket.socket
) -> None:
    external = at_mid.sees(client)
    try:
        lab.set_link("a", Link.parse("down.loss=1"))
        at_mid.sockets[at_mid.main].sendto(b"lost", external)
        assert at_mid.sees(client) == external
        assert is_silent(client)
    finally:
        lab.set_link("a", Link())
    assert answer(at_mid, client, external) == b"answer"


def test_rate_drops_what_a_burst_has_too_much(lab: Lab, at_mid: Server, client: socket.socket) -> None:
    try:
        lab.set_link("a", Link.parse("up.rate=1"))
        for _ in range(200):
            client.sendto(bytes(1000), at_mid.main)
        receiver = at_mid.sockets[at_mid.main]
        arrived = 0
        # 100 ms is what the queue holds; a second without a packet is its end.
        receiver.settimeout(1)
        while True:
            try:
                receive(receiver)
            except TimeoutError:
                break
            arrived += 1
        # A burst of 16 KiB, 100 ms at 1 Mbit/s, and what left while the burst was sent.
        assert 10 < arrived < 100
    finally:
        lab.set_link("a", Link())


def test_datagram_above_the_mtu_is_refused_once_icmp_came_back(
    lab: Lab, at_mid: Server, client: socket.socket
) -> None:
    try:
        lab.set_link("a", Link.parse("mtu=1400"))
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        client.sendto(bytes(1372), at_mid.main)
        assert len(receive(at_mid.sockets[at_mid.main])[0]) == 1372
        client.sendto(bytes(1373), at_mid.main)
        # The answer to a datagram that fits comes after the ICMP message for the one that does not.
        answer(at_mid, client, at_mid.sees(client))
        with pytest.raises(OSError, match="Message too long") as refused:
            client.sendto(bytes(1373), at_mid.main)
        assert refused.value.errno == errno.EMSGSIZE
    finally:
        lab.set_link("a", Link())


@pytest.mark.parametrize("access", ["eim-apdf", "eim-eif", "apdm-sequential", "eim-apdf/eim-adf"])
def test_rebind_gives_a_flow_another_port(access: str) -> None:
    with (
        Lab(Plan((Site("a", Access.parse(access)),))) as lab,
        server(lab) as at_mid,
        udp(lab, "a") as client,
    ):
        seen = [at_mid.sees(client)]
        for _ in range(2):
            former = seen[-1]
            lab.rebind("a")
            # Nobody reaches us by the former mapping, not even whom we talk to.
            at_mid.sockets[at_mid.main].sendto(b"late", former)
            seen.append(at_mid.sees(client))
            assert answer(at_mid, client, seen[-1]) == b"answer"
        assert len(set(seen)) == 3
        assert {address for address, _ in seen} == {lab.external_address("a")}


def test_mappings_are_those_that_the_server_sees(lab: Lab, at_mid: Server, client: socket.socket) -> None:
    external = at_mid.sees(client)
    local = client.getsockname()[1]

    def mine() -> list[tuple[TransportAddress, TransportAddress, TransportAddress, bool]]:
        return [
            (mapping.inside, mapping.external, mapping.remote, mapping.is_answered)
            for mapping in lab.mappings("a")
            if mapping.inside.port == local
        ]

    ends = tuple(TransportAddress(*each) for each in ((lab.address("a"), local), external, at_mid.main))
    assert mine() == [(*ends, False)]
    answer(at_mid, client, external)
    assert mine() == [(*ends, True)]


def test_mapping_opened_from_outside_is_read_the_right_way_round(lab: Lab, at_mid: Server) -> None:
    with udp(lab, "b") as client:
        external = at_mid.sees(client)
        at_mid.sockets[at_mid.other_address].sendto(b"unasked", external)
        assert receive(client)[0] == b"unasked"
        found = {mapping.remote: mapping for mapping in lab.mappings("b")}
        mapping = found[TransportAddress(*at_mid.other_address)]
        assert mapping.external == TransportAddress(*external)
        assert mapping.inside == TransportAddress(lab.address("b"), client.getsockname()[1])


@pytest.mark.parametrize("direction", [Cut.UP, Cut.DOWN, Cut.BOTH])
def test_cut_is_silent_and_has_a_direction(
    lab: Lab, at_mid: Server, client: socket.socket, direction: Cut
) -> None:
    external = at_mid.sees(client)
    try:
        lab.cut("a", direction)
        client.sendto(b"up", at_mid.main)
        at_mid.sockets[at_mid.main].sendto(b"down", external)
        assert is_silent(at_mid.sockets[at_mid.main]) == (direction is not Cut.DOWN)
        assert is_silent(client) == (direction is not Cut.UP)
    finally:
        lab.heal("a")
    assert at_mid.sees(client) == external
    assert answer(at_mid, client, external) == b"answer"


def test_cut_towards_one_peer_leaves_the_others(lab: Lab, at_mid: Server, client: socket.socket) -> None:
    with udp(lab, "b") as other:
        external, of_other = at_mid.sees(client), at_mid.sees(other)
        client.sendto(b"hello", of_other)
        assert receive(other) == (b"hello", external)
        try:
            lab.cut("a", towards="b", protocol="udp")
            client.sendto(b"hello", of_other)
            other.sendto(b"hello", external)
            assert at_mid.sees(client) == external
            assert answer(at_mid, client, external) == b"answer"
            assert is_silent(other)
            assert is_silent(client)
        finally:
            lab.heal("a")
        other.sendto(b"again", external)
        assert receive(client)[0] == b"again"


@pytest.mark.parametrize("how", [Handover.HARD, Handover.SOFT])
def test_wildcard_socket_goes_on_after_a_handover(
    lab: Lab, at_mid: Server, client: socket.socket, how: Handover
) -> None:
    former = at_mid.sees(client)
    lab.handover("a", how)
    try:
        now = at_mid.sees(client)
        assert now[0] == lab.external_address("a") != former[0]
        assert answer(at_mid, client, now) == b"answer"
        addresses = lab.run("a", ["ip", "-4", "addr", "show", "dev", "eth0"]).stdout
        assert ("inet " in addresses) == (how is Handover.SOFT)
    finally:
        lab.handover("a", Handover.HARD)
    assert at_mid.sees(client)[0] == former[0]


@pytest.mark.parametrize("how", [Handover.HARD, Handover.SOFT])
def test_socket_bound_to_the_former_address_is_lost_after_a_handover(
    lab: Lab, at_mid: Server, how: Handover
) -> None:
    with udp(lab, "a", lab.address("a")) as bound:
        at_mid.sees(bound)
        lab.handover("a", how)
        try:
            if how is Handover.HARD:
                with pytest.raises(OSError, match="unreachable"):
                    bound.sendto(b"from nowhere", at_mid.main)
            else:
                # The carrier lets no address through but its own.
                bound.sendto(b"wrong source", at_mid.main)
                assert is_silent(at_mid.sockets[at_mid.main])
        finally:
            lab.handover("a", Handover.HARD)


def test_mapping_that_is_not_used_is_forgotten() -> None:
    plan = Plan((Site("a", Access(Kind.APDM_RANDOM), mapping_lifetime_s=1),))
    with Lab(plan) as lab, server(lab) as at_mid, udp(lab, "a") as client:
        first = at_mid.sees(client)
        client.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.recvfrom(100)
        assert at_mid.sees(client) != first


def test_what_does_not_exist_is_named(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"no host x; there are core, mid, .*nat-b"):
        lab.run("x", ["true"])
    with pytest.raises(LabError, match="no link x; there are mid, a, a2, b"):
        lab.set_link("x", Link())
    with pytest.raises(LabError, match="no site mid; there are a, b"):
        lab.rebind("mid")
    with pytest.raises(LabError, match="site b has one uplink"):
        lab.handover("b", Handover.SOFT)
    with pytest.raises(LabError, match=r"^no-such-command: No such file or directory$"):
        lab.run("a", ["no-such-command"])
    with pytest.raises(LabError, match=r"ip nonsense on a: exit 1: .*nonsense"):
        lab.run("a", ["ip", "nonsense"])


def test_show_names_sites_links_and_mappings(lab: Lab, at_mid: Server, client: socket.socket) -> None:
    at_mid.sees(client)
    shown = lab.show()
    assert [site["name"] for site in shown["sites"]] == ["a", "b"]
    assert shown["sites"][0]["access"] == "eim-apdf"
    assert shown["sites"][0]["mappings"]
    assert list(shown["links"]) == ["mid", "a", "a2", "b"]
