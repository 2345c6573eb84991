"""What an intermediate sends to an address that has proved nothing: measured, at most three bytes for one.

RFC 9000 §8. A source may be forged, and a packet recorded and sent again, by anybody; the rest takes a node
with a valid certificate that lies about where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from tests import garbage
from tests import pki_fixtures as pki
from tests.unit.quic.identities import AGENT, CONNECTOR, INTERMEDIATE, leg_options
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.pki.authority import Issued
from ztna.quic.budget import HandshakeBudget, fixed_cost
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions
from ztna.relay import frame
from ztna.relay.hub import SILENCE_LIMIT_S, RelayHub
from ztna.relay.hub_effects import AddressChanged, HelloAnswered, HubConnectionIds, HubTransmit, LegConnected

LIMIT = 3
HOME = TransportAddress.of("192.0.2.7", 4000)
ELSEWHERE = TransportAddress.of("192.0.2.8", 4000)
VICTIM = TransportAddress.of("198.51.100.1", 443)
SESSION = b"s" * 16
STEP_S = 0.01


def judge(chain: Sequence[x509.Certificate]) -> object:
    return pki.verifier().verify(
        chain, expect={Role.AGENT, Role.CONNECTOR}, now_wall=pki.NOW, as_server=False
    )


class World:
    """A hub, what it sent to each address, and what came from there; nodes answer when they are asked to."""

    def __init__(self) -> None:
        options = ConnectionOptions.leg(
            certificate=INTERMEDIATE.certificate, private_key=INTERMEDIATE.private_key, verify_peer=judge
        )
        self.hub = RelayHub(options, HandshakeBudget(fixed_cost()))
        self.now = 50.0
        self.received: Counter[TransportAddress] = Counter()
        self.sent: Counter[TransportAddress] = Counter()
        self.outbox: dict[TransportAddress, list[bytes]] = {}
        self.owners: dict[bytes, int] = {}
        self.connected: list[int] = []
        self.recorded: list[bytes] = []
        self.told: list[TransportAddress] = []

    def send(self, source: TransportAddress, *datagrams: bytes) -> None:
        """Datagrams arrive, each sorted as the socket does it."""
        for datagram in datagrams:
            self.received[source] += len(datagram)
            owner = self.owners.get(datagram[1:9]) or self.owners.get(datagram[6:14])
            if owner is None:
                self.hub.handle_unknown(source, "", [datagram], self.now)
            else:
                self.hub.handle_datagrams(owner, source, "", [datagram], self.now)
        self.settle()

    def settle(self) -> None:
        self._take(self.hub.drain())
        self.hub.flush(self.now)
        self._take(self.hub.drain())

    def pass_time(self, duration_s: float) -> None:
        """Let timers run, while nobody says anything."""
        end = self.now + duration_s
        while (deadline := self.hub.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.hub.handle_timeout(self.now)
            self.settle()
        self.now = end

    def exchange(self, client: Connection, address: TransportAddress, turns: int = 12) -> None:
        """Let a client talk from its address; what it sends is recorded."""
        for _ in range(turns):
            packets = client.transmit(self.now)
            self.recorded += packets
            self.send(address, *packets)
            client.receive(self.outbox.pop(address, []), self.now)
            client.events()
            self.now += STEP_S

    def leg(self, issued: Issued, address: TransportAddress, attach_id: bytes) -> Connection:
        """A node with a leg that has presented an attachment."""
        client = Connection.client(leg_options(issued, "intermediate", is_client=True))
        client.connect(self.now)
        self.exchange(client, address)
        assert client.is_established
        peer = judge([issued.certificate])
        identity = (peer.identity.role, peer.identity.id, peer.fingerprint)  # type: ignore[attr-defined]
        self.hub.handle_attached(attach_id, identity, b"", self.now)
        self.hub.handle_hello(self.connected[-1], attach_id, self.now)
        self.settle()
        return client

    def ratio(self, address: TransportAddress) -> float:
        return self.sent[address] / max(1, self.received[address])

    def _take(self, effects: Sequence[object]) -> None:
        for effect in effects:
            match effect:
                case HubTransmit():
                    self.sent[effect.remote] += sum(map(len, effect.datagrams))
                    self.outbox.setdefault(effect.remote, []).extend(effect.datagrams)
                case HubConnectionIds():
                    self.owners.update(dict.fromkeys(effect.added, effect.connection))
                    for retired in effect.retired:
                        self.owners.pop(retired, None)
                    if effect.forget_all:
                        self.owners = {k: v for k, v in self.owners.items() if v != effect.connection}
                case LegConnected():
                    self.connected.append(effect.connection)
                case AddressChanged():
                    self.told.append(effect.address)
                case HelloAnswered():
                    assert not effect.rejection
                case _:
                    pass


@pytest.fixture
def world() -> World:
    return World()


def new_client(world: World) -> Connection:
    client = Connection.client(leg_options(AGENT, "intermediate", is_client=True))
    client.connect(world.now)
    return client


def after_retry(world: World) -> bytes:
    """The first packet of a client at `HOME` that carries its token."""
    client = new_client(world)
    world.send(HOME, *client.transmit(world.now))
    client.receive(world.outbox.pop(HOME), world.now)
    [initial] = client.transmit(world.now)
    return initial


def test_forged_sources_of_first_packets_get_less_than_they_seem_to_send(world: World) -> None:
    victims = [TransportAddress.of(f"198.51.100.{number}", 443) for number in range(200)]
    for victim in victims:
        world.send(victim, *new_client(world).transmit(world.now))
        world.now += STEP_S
    world.pass_time(30.0)
    assert all(0 < world.ratio(victim) < 0.1 for victim in victims)


@given(seed=st.integers(0, 2**32))
def test_garbage_gets_less_than_it_costs(seed: int) -> None:
    world = World()
    world.send(VICTIM, *garbage.assortment(28, seed))
    world.pass_time(30.0)
    assert world.ratio(VICTIM) < 0.1


def test_recorded_first_packet_with_a_token_is_worth_nothing_from_elsewhere(world: World) -> None:
    initial = after_retry(world)
    for _ in range(20):
        world.send(VICTIM, initial)
    world.send(HOME, initial)
    # Now there is a connection of that ID; the source is still another one.
    for _ in range(20):
        world.send(VICTIM, initial)
        world.pass_time(1.0)
    assert world.sent[VICTIM] == 0


def test_recorded_first_packet_is_worth_nothing_once_it_was_used(world: World) -> None:
    """Else whoever recorded it makes us send our whole handshake there again, six bytes for one."""
    initial = after_retry(world)
    world.send(HOME, initial)
    assert world.sent[HOME] > len(initial)
    # Duplicates while the handshake waits add nothing to what a silent client is sent.
    before = world.sent[HOME]
    world.send(HOME, *[initial] * 20)
    assert world.sent[HOME] == before
    world.pass_time(SILENCE_LIMIT_S)
    assert not world.owners
    before = world.sent[HOME]
    for _ in range(20):
        world.send(HOME, initial)
        world.pass_time(0.5)
    assert world.sent[HOME] == before
    assert world.hub.refused["replayed_token"] + world.hub.refused["invalid_token"] == 20


def test_recorded_packets_of_an_established_leg_are_answered_to_nobody_else(world: World) -> None:
    client = world.leg(AGENT, HOME, b"a" * 16)
    for _ in range(10):
        client.ping(world.now)
        world.exchange(client, HOME, 2)
    # The very first one has no token: it gets a Retry, wherever it seems to come from.
    for packet in world.recorded[1:]:
        world.send(VICTIM, packet)
        world.pass_time(0.1)
    assert world.sent[VICTIM] == 0
    world.exchange(client, HOME, 4)
    assert client.is_established


def test_node_is_told_of_another_address_only_when_it_has_answered_from_there(world: World) -> None:
    client = world.leg(AGENT, HOME, b"a" * 16)
    assert client.open_stream() == 0
    client.send_stream(0, b"\0")
    world.exchange(client, HOME, 4)
    assert world.told == [HOME]
    # Somebody on the way sends a packet on, and is faster.
    client.ping(world.now)
    world.send(VICTIM, *client.transmit(world.now))
    world.outbox.pop(VICTIM)
    assert world.told == [HOME]
    # A NAT gives the node another address, and it answers there.
    client.ping(world.now)
    world.exchange(client, ELSEWHERE, 4)
    assert world.told == [HOME, ELSEWHERE]


Flood = Callable[[World, Connection, Connection], None]


def relayed(world: World, other: Connection, liar: Connection) -> None:
    """What another node sends to the liar."""
    del liar
    for _ in range(16):
        other.send_datagram(frame.pack(1, bytes(1200)))
    world.send(ELSEWHERE, *other.transmit(world.now))


def signaling(world: World, other: Connection, liar: Connection) -> None:
    """What the intermediate itself has to say to the liar."""
    del other, liar
    world.hub.send_signaling(world.connected[0], bytes(60_000), world.now, end=False)
    world.settle()


@pytest.mark.parametrize("flood", [relayed, signaling])
@pytest.mark.parametrize("packets", [1, 3, 10])
def test_node_that_forges_its_address_turns_no_stream_of_bytes_on_somebody(
    world: World, flood: Flood, packets: int
) -> None:
    liar = world.leg(AGENT, HOME, b"a" * 16)
    other = world.leg(CONNECTOR, ELSEWHERE, b"c" * 16)
    assert world.hub.bind(SESSION, b"a" * 16, b"c" * 16, world.now) == (1, 1)
    assert (liar.open_stream(), liar.open_stream()) == (0, 4)
    liar.send_stream(4, b"\0")
    world.exchange(liar, HOME, 2)
    at_home = world.sent[HOME]
    flood(world, other, liar)
    assert world.sent[HOME] - at_home > 10_000, "the flood is one"
    liar.receive(world.outbox.pop(HOME, []), world.now)
    worst = 0.0
    for _ in range(packets):
        liar.ping(world.now)
        world.send(VICTIM, *liar.transmit(world.now))
        for _ in range(10):
            flood(world, other, liar)
            world.pass_time(STEP_S)
            other.receive(world.outbox.pop(ELSEWHERE, []), world.now)
            worst = max(worst, world.ratio(VICTIM))
    world.pass_time(10.0)
    worst = max(worst, world.ratio(VICTIM))
    assert 0 < worst <= LIMIT
