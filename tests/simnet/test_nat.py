"""The simulated NATs behave as RFC 4787 says of their kind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from actors.io import DatagramBatch
from tests.simnet.nat import (
    ADDRESS_DEPENDENT_MAPPING,
    ADDRESS_RESTRICTED,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    SYMMETRIC_SEQUENTIAL,
    UDP_BLOCKED,
    Nat,
    NatKind,
)
from tests.simnet.network import VirtualNetwork
from ztna.address import TransportAddress

EXTERNAL = "203.0.113.1"
INSIDE = "10.0.0.1"


@dataclass
class Inbox:
    """A UDP socket's owner that keeps the sources of what it got."""

    sources: list[TransportAddress] = field(default_factory=list)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        for batch in batches:
            self.sources += [batch.remote] * len(batch.payloads)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        raise error


class Lab:
    """One inside host behind a NAT, and two hosts outside, the first with two ports."""

    def __init__(self, kind: NatKind) -> None:
        self.network = VirtualNetwork(seed=1)
        self.nat = Nat(self.network, "nat", EXTERNAL, kind)
        inside = self.network.host("inside", INSIDE if kind.is_translating else EXTERNAL, uplink=self.nat)
        self.nat.add_inside(inside.addresses[0], inside)
        self.inbox = Inbox()
        self.socket = inside.io().open_udp(TransportAddress("0.0.0.0", 5000), self.inbox)
        one = self.network.host("one", "198.51.100.1").io()
        other = self.network.host("other", "198.51.100.2").io()
        self.outside = [Inbox(), Inbox(), Inbox()]
        self.sockets = [
            one.open_udp(TransportAddress("0.0.0.0", 1), self.outside[0]),
            one.open_udp(TransportAddress("0.0.0.0", 2), self.outside[1]),
            other.open_udp(TransportAddress("0.0.0.0", 1), self.outside[2]),
        ]
        self.addresses = [
            TransportAddress("198.51.100.1", 1),
            TransportAddress("198.51.100.1", 2),
            TransportAddress("198.51.100.2", 1),
        ]

    def send_out(self, *to: int) -> list[TransportAddress]:
        """Send to some of the three outside sockets; returns where they saw it come from."""
        for number in to:
            self.socket.send([b"x"], self.addresses[number])
        self.network.run_for(0.1)
        return [self.outside[number].sources[-1] for number in to]

    def passes(self, sender: int, to: TransportAddress) -> bool:
        before = len(self.inbox.sources)
        self.sockets[sender].send([b"x"], to)
        self.network.run_for(0.1)
        return len(self.inbox.sources) > before


@pytest.mark.parametrize(
    ("kind", "different"),
    [
        (FULL_CONE, (False, False)),
        (PORT_RESTRICTED, (False, False)),
        (ADDRESS_DEPENDENT_MAPPING, (False, True)),
        (SYMMETRIC_RANDOM, (True, True)),
        (SYMMETRIC_SEQUENTIAL, (True, True)),
        (FIREWALL, (False, False)),
    ],
)
def test_mapping_depends_on_what_its_kind_says(kind: NatKind, different: tuple[bool, bool]) -> None:
    first, second, third = Lab(kind).send_out(0, 1, 2)
    assert first.host == EXTERNAL
    assert (second != first, third != first) == different


@pytest.mark.parametrize(
    ("kind", "passing"),
    [
        (FULL_CONE, (True, True, True)),
        (ADDRESS_RESTRICTED, (True, True, False)),
        (PORT_RESTRICTED, (True, False, False)),
        (FIREWALL, (True, False, False)),
    ],
)
def test_filter_lets_pass_what_its_kind_says(kind: NatKind, passing: tuple[bool, bool, bool]) -> None:
    lab = Lab(kind)
    (external,) = lab.send_out(0)
    assert tuple(lab.passes(number, external) for number in range(3)) == passing


def test_sequential_ports_follow_each_other() -> None:
    first, second, third = Lab(SYMMETRIC_SEQUENTIAL).send_out(0, 1, 2)
    assert (second.port - first.port, third.port - second.port) == (1, 1)


def test_nothing_passes_before_the_inside_spoke() -> None:
    lab = Lab(FULL_CONE)
    assert not lab.passes(0, TransportAddress(EXTERNAL, 5000))


def test_mapping_ends_after_its_lifetime_and_lives_while_used() -> None:
    lab = Lab(replace(FULL_CONE, lifetime_s=5.0))
    (external,) = lab.send_out(0)
    for _ in range(3):
        lab.network.run_for(4.0)
        assert lab.passes(0, external)
    lab.network.run_for(5.1)
    assert not lab.passes(0, external)


def test_rebinding_gives_another_port_and_forgets_the_former() -> None:
    lab = Lab(PORT_RESTRICTED)
    (before,) = lab.send_out(0)
    lab.nat.rebind()
    assert not lab.passes(0, before)
    (after,) = lab.send_out(0)
    assert after != before
    assert lab.nat.mappings() == {TransportAddress(INSIDE, 5000): after}


def test_another_external_address_takes_the_place_of_the_former() -> None:
    lab = Lab(PORT_RESTRICTED)
    lab.send_out(0)
    lab.nat.move("203.0.113.9")
    assert lab.send_out(0)[0].host == "203.0.113.9"


@pytest.mark.parametrize("is_hairpinning", [True, False])
def test_hairpinning_reaches_another_inside_host(is_hairpinning: bool) -> None:
    lab = Lab(replace(FULL_CONE, is_hairpinning=is_hairpinning))
    neighbour = lab.network.host("neighbour", "10.0.0.2", uplink=lab.nat)
    lab.nat.add_inside("10.0.0.2", neighbour)
    inbox = Inbox()
    theirs = neighbour.io().open_udp(TransportAddress("0.0.0.0", 6000), inbox)
    theirs.send([b"x"], lab.addresses[0])
    (external,) = lab.send_out(0)
    lab.socket.send([b"x"], TransportAddress(EXTERNAL, 6000))
    lab.network.run_for(0.1)
    assert inbox.sources == ([external] if is_hairpinning else [])


def test_two_nats_in_a_row_translate_twice() -> None:
    network = VirtualNetwork(seed=1)
    outer = Nat(network, "outer", EXTERNAL, PORT_RESTRICTED)
    inner = Nat(network, "inner", "100.64.0.1", PORT_RESTRICTED, uplink=outer)
    host = network.host("inside", INSIDE, uplink=inner)
    inner.add_inside(INSIDE, host)
    inbox, outside = Inbox(), Inbox()
    mine = host.io().open_udp(TransportAddress("0.0.0.0", 5000), inbox)
    theirs = network.host("one", "198.51.100.1").io().open_udp(TransportAddress("0.0.0.0", 1), outside)
    mine.send([b"x"], TransportAddress("198.51.100.1", 1))
    network.run_for(0.1)
    assert outside.sources == [TransportAddress(EXTERNAL, 5000)]
    theirs.send([b"x"], outside.sources[0])
    network.run_for(0.1)
    assert inbox.sources == [TransportAddress("198.51.100.1", 1)]


def test_blocked_udp_goes_nowhere_and_drops_on_purpose_are_silent() -> None:
    lab = Lab(UDP_BLOCKED)
    lab.socket.send([b"x"], lab.addresses[0])
    lab.network.run_for(0.1)
    assert lab.outside[0].sources == []
    lab = Lab(PORT_RESTRICTED)
    (external,) = lab.send_out(0)
    lab.nat.drops = lambda _packet, is_outbound: not is_outbound
    assert not lab.passes(0, external)
