from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from actors.credentials import parse_credentials
from actors.quic_relay import QuicRelay
from tests.manual_io import ActorHarness, actor_harness
from tests.pki_fixtures import NOW, issue, pem, verifier
from ztna.access.identity import Role, VerifiedPeer, fingerprint, identity_of
from ztna.address import TransportAddress
from ztna.pki.authority import Issued
from ztna.quic import events
from ztna.quic.budget import TYPICAL_STEP_S, HandshakeBudget, fixed_cost
from ztna.quic.connection import Connection
from ztna.quic.demux import ConnectionIdTable, destination_cid
from ztna.quic.options import ConnectionOptions
from ztna.relay import frame
from ztna.relay.hub import (
    FAREWELL_S,
    JUDGEMENT_LIMIT_S,
    MAX_CONTROL_BACKLOG_BYTES,
    MAX_HELD_DATAGRAMS,
    MAX_HELLO_BURST,
    MAX_LEGS_PER_NODE,
    MAX_SIGNALING_BACKLOG_BYTES,
    SILENCE_LIMIT_S,
    SUPERSEDED_REST_S,
)
from ztna.relay.hub_legs import MAX_DATAGRAMS_PENDING
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION
from ztna.signaling.framing import FrameDecoder, encode
from ztna.v1 import (
    quic_relay_pb2,
    relay_pb2,
    reload_pb2,
    session_manager_pb2,
    signaling_service_pb2,
    types_pb2,
    udp_socket_pb2,
)

MessageT = TypeVar("MessageT", bound=Message)
# Nodes of one network that come one after the other: at the same instant some would have to wait.
DIAL_INTERVAL_S = 0.1
SESSION = b"s" * 16
ATTACH_A = b"a" * 16
ATTACH_C = b"c" * 16
HELLO_A = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=ATTACH_A))


@dataclass
class Node:
    """The other end of a leg: a real QUIC client, and what it received."""

    issued: Issued
    address: TransportAddress
    connection: Connection
    datagrams: list[bytes] = field(default_factory=list)
    control: list[relay_pb2.LegFrame] = field(default_factory=list)
    signaling: bytearray = field(default_factory=bytearray)
    closed: events.ConnectionClosed | None = None
    is_deaf: bool = False
    decoder: FrameDecoder = field(default_factory=FrameDecoder)

    def take_events(self) -> None:
        for event in self.connection.events():
            match event:
                case events.DatagramReceived():
                    self.datagrams.append(event.data)
                case events.StreamDataReceived(0, data):
                    self.control += map(relay_pb2.LegFrame.FromString, self.decoder.feed(data))
                case events.StreamDataReceived(4, data):
                    self.signaling += data
                case events.ConnectionClosed():
                    self.closed = event
                case _:
                    pass

    def take_control(self) -> list[str]:
        """Which control frames came, by name."""
        names: list[str] = [each.WhichOneof("body") or "" for each in self.control]
        self.control.clear()
        return names


class Site:
    """The relay actor, a socket's connection ID table, and nodes on a network without loss."""

    def __init__(self) -> None:
        own = issue(Role.INTERMEDIATE, "i1")
        credentials = parse_credentials(
            own.certificate_pem, own.key_pem, pem(own).ca, None, Role.INTERMEDIATE, NOW
        )
        self.budget = HandshakeBudget(fixed_cost())
        self.harness: ActorHarness[QuicRelay] = actor_harness(QuicRelay, credentials, self.budget)
        self.table: ConnectionIdTable[int] = ConnectionIdTable()
        self.nodes: dict[TransportAddress, Node] = {}
        self.sent: list[udp_socket_pb2.SendDatagrams] = []
        self.said: list[Message] = []

    @property
    def now(self) -> float:
        return self.harness.io.time()

    def dial(
        self,
        role: Role,
        name: str,
        *,
        port: int = 0,
        issued: Issued | None = None,
        has_certificate: bool = True,
        runs: bool = True,
    ) -> Node:
        issued = issued or issue(role, name)
        self.advance(DIAL_INTERVAL_S)
        address = TransportAddress("192.0.2.1", port or 5000 + len(self.nodes))
        options = ConnectionOptions.leg(
            certificate=issued.certificate,
            private_key=issued.private_key,
            verify_peer=lambda chain: verifier().verify(
                chain, expect=Role.INTERMEDIATE, now_wall=NOW, as_server=True
            ),
        )
        node = Node(issued, address, Connection.client(options))
        self.nodes[address] = node
        if not has_certificate:
            node.connection._engine._configuration.certificate = None
        node.connection.connect(self.now)
        assert (node.connection.open_stream(), node.connection.open_stream()) == (0, 4)
        if runs:
            self.run()
        return node

    def run(self) -> None:
        """Carry packets until nobody has anything to say."""
        for _ in range(200):
            if self.step():
                return
        raise AssertionError("the nodes never come to rest")

    def step(self) -> bool:
        """Carry what there is to carry now; whether there was nothing."""
        is_quiet = True
        for node in list(self.nodes.values()):
            packets = node.connection.transmit(self.now)
            node.take_events()
            if packets:
                is_quiet = False
                self._deliver(node, packets)
        return self._settle() and is_quiet

    def advance(self, seconds: float) -> None:
        """Let time pass in steps in which every node's timers run."""
        end = self.now + seconds
        while self.now < end:
            self.harness.advance(min(0.05, end - self.now))
            for node in self.nodes.values():
                if not node.is_deaf:
                    node.connection.handle_timeout(self.now)
                    node.take_events()
            self.run()

    def tell(self, *messages: Message) -> None:
        self.harness.tell(*messages)
        self.run()

    def take(self, kind: type[MessageT]) -> list[MessageT]:
        found = [message for message in self.said if isinstance(message, kind)]
        self.said = [message for message in self.said if not isinstance(message, kind)]
        return found

    def attach(self, node: Node, attach_id: bytes, superseded: bytes = b"") -> None:
        identity = types_pb2.NodeIdentity(
            role=types_pb2.ROLE_AGENT if self._role(node) is Role.AGENT else types_pb2.ROLE_CONNECTOR,
            id=self._id(node),
            fingerprint=fingerprint(node.issued.certificate),
        )
        self.tell(
            signaling_service_pb2.NodeAttached(
                attach_id=attach_id, node=identity, superseded_attach_id=superseded
            )
        )

    def hello(self, node: Node, attach_id: bytes) -> list[str]:
        message = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=attach_id))
        node.connection.send_stream(0, encode(message.SerializeToString()))
        node.take_control()
        self.run()
        return [name for name in node.take_control() if name != "observed_address"]

    def joined(self) -> tuple[Node, Node, int, int]:
        """An agent and a connector with channels between them."""
        agent, connector = self.dial(Role.AGENT, "a1"), self.dial(Role.CONNECTOR, "c1")
        self.attach(agent, ATTACH_A)
        self.attach(connector, ATTACH_C)
        assert self.hello(agent, ATTACH_A) == ["accepted"]
        assert self.hello(connector, ATTACH_C) == ["accepted"]
        return agent, connector, *self.bind()

    def bind(self, agent: bytes = ATTACH_A, connector: bytes = ATTACH_C) -> tuple[int, int]:
        self.tell(
            session_manager_pb2.BindChannels(
                session_id=SESSION, agent_attach_id=agent, connector_attach_id=connector
            )
        )
        (bound,) = self.take(quic_relay_pb2.ChannelsBound)
        assert (bound.agent_attach_id, bound.connector_attach_id) == (agent, connector)
        return bound.agent_channel, bound.connector_channel

    @staticmethod
    def _role(node: Node) -> Role:
        return identity_of(node.issued.certificate).role

    @staticmethod
    def _id(node: Node) -> str:
        return identity_of(node.issued.certificate).id

    def _deliver(self, node: Node, packets: list[bytes]) -> None:
        remote = types_pb2.TransportAddress(host=node.address.host, port=node.address.port)
        for packet in packets:
            owner = self.table.owner_of(destination_cid(packet) or b"")
            if owner is None:
                message: Message = udp_socket_pb2.UnknownDatagramsReceived(
                    remote=remote, local_host="192.0.2.9", datagrams=[packet]
                )
            else:
                message = udp_socket_pb2.DatagramsReceived(
                    remote=remote, local_host="192.0.2.9", connection=owner, datagrams=[packet]
                )
            self.harness.tell(message)
            self._settle()

    def _settle(self) -> bool:
        emitted = self.harness.take_emitted()
        for message in emitted:
            match message:
                case udp_socket_pb2.SendDatagrams():
                    self.sent.append(message)
                    node = self.nodes.get(TransportAddress(message.remote.host, message.remote.port))
                    if node is not None and not node.is_deaf:
                        node.connection.receive(message.datagrams, self.now)
                        node.take_events()
                case udp_socket_pb2.UpdateConnectionIds():
                    if message.forget_owner:
                        self.table.forget_owner(message.connection)
                    for connection_id in message.retired:
                        self.table.retire(connection_id)
                    for connection_id in message.added:
                        assert self.table.add(connection_id, message.connection)
                case _:
                    self.said.append(message)
        return not emitted


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    assert site.harness.is_alive, site.harness.failure


def test_node_proves_its_address_first_and_learns_how_it_is_seen(site: Site) -> None:
    node = site.dial(Role.AGENT, "a1")
    assert node.connection.is_established
    site.attach(node, ATTACH_A)
    node.connection.send_stream(0, encode(HELLO_A.SerializeToString()))
    site.run()
    (observed,) = [
        each.observed_address.address for each in node.control if each.HasField("observed_address")
    ]
    assert (observed.host, observed.port) == (node.address.host, node.address.port)
    assert {message.local_host for message in site.sent} == {"192.0.2.9"}
    site.advance(1.1)
    (figures,) = site.take(quic_relay_pb2.RelayStatistics)
    assert (figures.legs, figures.retry_tokens_validated, figures.handshakes) == (1, 1, 1)


def spend(site: Site, seconds: float) -> None:
    """Have other handshakes take so much of the budget now."""
    for _ in range(round(seconds / TYPICAL_STEP_S)):
        with site.budget.charged(site.now):
            pass


def begin(site: Site, name: str) -> Node:
    """A node whose handshake stands in the middle: it has shown its certificate, and nobody has looked."""
    former = set(site.harness.concern._hub._legs)
    node = site.dial(Role.AGENT, name, runs=False)
    while not site.harness.concern._hub._legs.keys() - former:
        site.step()
    spend(site, 0.2)
    site.run()
    return node


def test_handshake_waits_in_the_middle_while_the_budget_is_spent_and_goes_on_by_itself(site: Site) -> None:
    node = begin(site, "a1")
    hub = site.harness.concern._hub
    assert hub.leg_count == 0
    site.advance(0.9)
    assert hub.leg_count == 0
    site.advance(0.3)
    assert hub.leg_count == 1
    assert node.connection.is_established


def test_handshakes_that_began_go_on_before_another_one_begins(site: Site) -> None:
    first = begin(site, "a1")
    second = site.dial(Role.AGENT, "a2")
    assert not second.connection.is_established
    hub = site.harness.concern._hub
    while hub.leg_count == 0:
        site.advance(0.01)
    assert first.connection.is_established
    assert not second.connection.is_established
    site.advance(1.0)
    assert hub.leg_count == 2


def test_what_a_leg_sends_while_its_handshake_waits_is_bounded(site: Site) -> None:
    node = begin(site, "a1")
    hub = site.harness.concern._hub
    for number in range(3 * MAX_HELD_DATAGRAMS):
        node.connection.send_stream(0, bytes(900))
        site.advance(0.001 + number * 1e-6)
    (held,) = hub._held.values()
    assert len(held) == MAX_HELD_DATAGRAMS
    assert hub.refused["handshake_backlog"] > 0


def test_packets_of_a_leg_that_stands_wait_for_no_budget(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    spend(site, 0.5)
    spent_s = site.budget.spent_s
    agent.connection.send_datagram(frame.pack(agent_channel, b"sealed"))
    site.run()
    assert len(connector.datagrams) == 1
    assert site.budget.spent_s == spent_s


def test_packets_pass_both_ways_under_the_channel_of_each_leg(site: Site) -> None:
    agent, connector, agent_channel, connector_channel = site.joined()
    forth = [bytes([n]) * 1200 for n in range(100)]
    for n in range(0, 100, 10):
        for packet in forth[n : n + 10]:
            agent.connection.send_datagram(frame.pack(agent_channel, packet))
        site.run()
    connector.connection.send_datagram(frame.pack(connector_channel, b"back"))
    site.run()
    assert connector.datagrams == [frame.pack(connector_channel, packet) for packet in forth]
    assert agent.datagrams == [frame.pack(agent_channel, b"back")]
    site.advance(1.1)
    figures = site.take(quic_relay_pb2.RelayStatistics)[-1]
    assert (figures.packets_relayed, figures.bytes_relayed) == (101, 100 * 1200 + 4)
    assert [(each.session_id, each.packets) for each in figures.sessions] == [(SESSION, 101)]


def test_batch_longer_than_the_queue_passes_whole_while_the_leg_keeps_up(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    site.sent.clear()
    count = 2 * MAX_QUEUED_PACKETS_PER_SESSION + 20
    for _ in range(count):
        agent.connection.send_datagram(frame.pack(agent_channel, b"x" * 1200))
    packets = agent.connection.transmit(site.now)
    assert len(packets) == count
    owner = site.table.owner_of(destination_cid(packets[0]) or b"")
    remote = types_pb2.TransportAddress(host=agent.address.host, port=agent.address.port)
    site.tell(udp_socket_pb2.DatagramsReceived(remote=remote, connection=owner or 0, datagrams=packets))
    to_connector = [m for m in site.sent if m.remote.port == connector.address.port]
    assert sum(len(message.datagrams) for message in to_connector) == count


def test_batch_for_one_leg_leaves_in_one_message(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    site.sent.clear()
    for _ in range(8):
        agent.connection.send_datagram(frame.pack(agent_channel, b"x" * 1200))
    packets = agent.connection.transmit(site.now)
    owner = site.table.owner_of(destination_cid(packets[0]) or b"")
    remote = types_pb2.TransportAddress(host=agent.address.host, port=agent.address.port)
    site.tell(udp_socket_pb2.DatagramsReceived(remote=remote, connection=owner or 0, datagrams=packets))
    to_connector = [m for m in site.sent if m.remote.port == connector.address.port]
    assert [len(message.datagrams) for message in to_connector] == [8]


def test_channel_of_another_leg_reaches_nobody(site: Site) -> None:
    agent, connector, agent_channel, connector_channel = site.joined()
    thief = site.dial(Role.AGENT, "a2")
    site.attach(thief, b"t" * 16)
    site.hello(thief, b"t" * 16)
    for channel in {agent_channel, connector_channel}:
        thief.connection.send_datagram(frame.pack(channel, b"stolen"))
    for garbage in (b"", b"\0", b"\0\0x", b"\xff\xffx"):
        thief.connection.send_datagram(garbage)
    site.run()
    assert agent.datagrams == connector.datagrams == []
    site.advance(1.1)
    dropped = site.take(quic_relay_pb2.RelayStatistics)[-1].dropped
    assert dropped["unknown_channel"] >= 2
    assert (dropped["relay_frame_short"], dropped["relay_channel_reserved"]) == (2, 1)


def test_packets_without_an_attachment_reach_nobody(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    stranger = site.dial(Role.AGENT, "a2")
    stranger.connection.send_datagram(frame.pack(agent_channel, b"early"))
    site.run()
    assert agent.datagrams == connector.datagrams == []


@pytest.mark.parametrize("attach_id", [b"", b"?" * 16, ATTACH_C])
def test_leg_is_bound_to_its_own_attachment_only(site: Site, attach_id: bytes) -> None:
    agent, connector = site.dial(Role.AGENT, "a1"), site.dial(Role.CONNECTOR, "c1")
    site.attach(connector, ATTACH_C)
    assert site.hello(agent, attach_id) == ["rejected"]
    assert not site.take(quic_relay_pb2.LegOpened)


def test_same_name_with_another_key_is_another_node(site: Site) -> None:
    agent = site.dial(Role.AGENT, "a1")
    site.attach(agent, ATTACH_A)
    renewed = site.dial(Role.AGENT, "a1", issued=issue(Role.AGENT, "a1", serial_of=1))
    assert site.hello(renewed, ATTACH_A) == ["rejected"]
    assert site.hello(agent, ATTACH_A) == ["accepted"]


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.INTERMEDIATE])
def test_other_roles_get_no_leg(site: Site, role: Role) -> None:
    node = site.dial(role, "x1")
    assert node.closed is not None
    assert node.closed.is_authentication_failure
    assert not node.control


def test_certificate_of_a_foreign_ca_gets_no_leg(site: Site) -> None:
    node = site.dial(Role.AGENT, "a1", issued=issue(Role.AGENT, "a1", foreign=True))
    assert node.closed is not None
    assert node.closed.is_authentication_failure
    site.advance(1.1)
    assert site.take(quic_relay_pb2.RelayStatistics)[-1].refused["unknown_ca"] == 1


def test_node_without_certificate_gets_no_leg_and_both_ends_hear_why(site: Site) -> None:
    node = site.dial(Role.AGENT, "a1", has_certificate=False)
    assert node.closed is not None
    assert node.closed.reason is events.CloseReason.CERTIFICATE_REQUIRED
    assert not node.control
    site.advance(1.1)
    assert site.take(quic_relay_pb2.RelayStatistics)[-1].refused["certificate_required"] == 1


def test_channels_move_with_a_leg_that_was_dialled_anew(site: Site) -> None:
    agent, connector, agent_channel, connector_channel = site.joined()
    again = site.dial(Role.AGENT, "a1")
    assert site.hello(again, ATTACH_A) == ["accepted"]
    again.connection.send_datagram(frame.pack(agent_channel, b"hello"))
    site.run()
    assert connector.datagrams == [frame.pack(connector_channel, b"hello")]
    assert agent.closed is not None
    assert not site.take(quic_relay_pb2.LegJudged), "the attachment still has a leg"


def test_rebinding_one_end_keeps_the_channel_of_the_other(site: Site) -> None:
    agent, connector, _, connector_channel = site.joined()
    site.attach(agent, b"A" * 16, superseded=ATTACH_A)
    assert site.hello(agent, b"A" * 16) == ["accepted"]
    agent_channel, same = site.bind(agent=b"A" * 16)
    assert same == connector_channel
    agent.connection.send_datagram(frame.pack(agent_channel, b"on"))
    site.run()
    assert connector.datagrams == [frame.pack(connector_channel, b"on")]
    site.advance(SUPERSEDED_REST_S + 1)
    agent.connection.send_datagram(frame.pack(agent_channel, b"still"))
    site.run()
    assert len(connector.datagrams) == 2


def test_superseded_attachment_loses_its_channels_after_a_while(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    other = site.dial(Role.AGENT, "a1")
    site.attach(other, b"A" * 16, superseded=ATTACH_A)
    agent.connection.send_datagram(frame.pack(agent_channel, b"yet"))
    site.run()
    assert len(connector.datagrams) == 1
    site.advance(SUPERSEDED_REST_S + 1)
    agent.connection.send_datagram(frame.pack(agent_channel, b"no more"))
    site.run()
    assert len(connector.datagrams) == 1


def test_binding_the_same_ends_again_gives_channels_again(site: Site) -> None:
    agent, connector, _, _ = site.joined()
    agent_channel, connector_channel = site.bind()
    agent.connection.send_datagram(frame.pack(agent_channel, b"x"))
    site.run()
    assert connector.datagrams == [frame.pack(connector_channel, b"x")]


def test_channels_to_an_attachment_that_is_gone_cannot_be_made(site: Site) -> None:
    site.joined()
    assert site.bind(connector=b"?" * 16) == (0, 0)


def test_released_channel_reaches_nobody(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    site.tell(session_manager_pb2.ReleaseChannels(session_id=SESSION))
    agent.connection.send_datagram(frame.pack(agent_channel, b"late"))
    site.run()
    assert connector.datagrams == []


def test_detached_node_keeps_no_channel(site: Site) -> None:
    agent, connector, agent_channel, connector_channel = site.joined()
    site.tell(signaling_service_pb2.NodeDetached(attach_id=ATTACH_A))
    agent.connection.send_datagram(frame.pack(agent_channel, b"late"))
    connector.connection.send_datagram(frame.pack(connector_channel, b"late"))
    site.run()
    assert agent.datagrams == connector.datagrams == []


def test_packets_for_a_node_without_a_leg_are_dropped(site: Site) -> None:
    agent = site.dial(Role.AGENT, "a1")
    connector = site.dial(Role.CONNECTOR, "c1")
    site.attach(agent, ATTACH_A)
    site.attach(connector, ATTACH_C)
    site.hello(agent, ATTACH_A)
    agent_channel, _ = site.bind()
    agent.connection.send_datagram(frame.pack(agent_channel, b"x"))
    site.run()
    site.advance(1.1)
    assert site.take(quic_relay_pb2.RelayStatistics)[-1].dropped["no_leg"] == 1


def test_leg_that_answers_is_judged_alive(site: Site) -> None:
    site.joined()
    site.tell(signaling_service_pb2.JudgeLeg(attach_id=ATTACH_A))
    site.advance(0.1)
    (verdict,) = site.take(quic_relay_pb2.LegJudged)
    assert (verdict.attach_id, verdict.is_alive) == (ATTACH_A, True)
    site.advance(JUDGEMENT_LIMIT_S + 1)
    assert not site.take(quic_relay_pb2.LegJudged)


def test_leg_that_keeps_silent_is_judged_dead_in_time(site: Site) -> None:
    agent, *_ = site.joined()
    agent.is_deaf = True
    site.tell(signaling_service_pb2.JudgeLeg(attach_id=ATTACH_A))
    site.advance(JUDGEMENT_LIMIT_S - 0.2)
    assert not site.take(quic_relay_pb2.LegJudged)
    site.advance(0.3)
    (verdict,) = site.take(quic_relay_pb2.LegJudged)
    assert (verdict.is_alive, verdict.reason) == (False, "no_answer")


def test_attachment_without_a_leg_is_judged_at_once(site: Site) -> None:
    site.tell(signaling_service_pb2.JudgeLeg(attach_id=ATTACH_A))
    (verdict,) = site.take(quic_relay_pb2.LegJudged)
    assert (verdict.is_alive, verdict.reason) == (False, "no_leg")


def test_leg_that_closes_is_news(site: Site) -> None:
    agent, *_ = site.joined()
    agent.connection.close(0, "bye")
    site.run()
    (verdict,) = site.take(quic_relay_pb2.LegJudged)
    assert (verdict.attach_id, verdict.is_alive, verdict.reason) == (ATTACH_A, False, "closed")


def test_leg_that_said_nothing_for_too_long_is_given_up(site: Site) -> None:
    agent, *_ = site.joined()
    agent.is_deaf = True
    site.advance(SILENCE_LIMIT_S - 1)
    assert not site.take(quic_relay_pb2.LegJudged)
    site.advance(2)
    verdicts = {each.attach_id: each.reason for each in site.take(quic_relay_pb2.LegJudged)}
    assert verdicts[ATTACH_A] == "no_answer"


def test_leg_that_speaks_now_and_then_is_kept(site: Site) -> None:
    agent, connector, *_ = site.joined()
    for _ in range(4):
        site.advance(SILENCE_LIMIT_S * 2 / 3)
        for node in (agent, connector):
            node.connection.ping(site.now)
        site.run()
    assert not site.take(quic_relay_pb2.LegJudged)


def test_connection_ids_of_a_dead_leg_are_forgotten(site: Site) -> None:
    agent, *_ = site.joined()
    agent.is_deaf = True
    site.advance(31)
    site.advance(5)
    assert len(site.table) < 12, "connection IDs of the dead leg are forgotten"


def test_relay_that_stops_leaves_no_connection_id_to_its_successor(site: Site) -> None:
    site.joined()
    assert len(site.table)
    site.harness.concern.on_stop()
    site.run()
    assert not len(site.table)


def test_slow_leg_holds_few_packets_and_drops_the_oldest(site: Site) -> None:
    agent, connector, agent_channel, _ = site.joined()
    connector.is_deaf = True
    # More than the leg's constant window of 4 MiB takes without an acknowledgement.
    for _ in range(400):
        for n in range(10):
            agent.connection.send_datagram(frame.pack(agent_channel, bytes([n]) * 1200))
        site.run()
        site.advance(0.001)
    (leg,) = (leg for leg in site.harness.concern._hub._legs.values() if leg.attach_id == ATTACH_C)
    assert leg.connection.datagrams_pending == MAX_DATAGRAMS_PENDING
    assert len(leg.queue) == MAX_QUEUED_PACKETS_PER_SESSION
    site.advance(1.1)
    figures = site.take(quic_relay_pb2.RelayStatistics)[-1]
    assert figures.dropped["session_queue_full"] > 0


def test_signaling_stream_is_reported_and_answered(site: Site) -> None:
    node = site.dial(Role.CONNECTOR, "c1")
    node.connection.send_stream(4, b"frames")
    site.run()
    (opened,) = site.take(quic_relay_pb2.LegSignalingChanged)
    assert opened.is_open
    assert opened.certificate == node.issued.certificate.public_bytes(Encoding.DER)
    (received,) = site.take(quic_relay_pb2.LegSignalingBytesReceived)
    assert (received.connection, received.data) == (opened.connection, b"frames")
    site.tell(quic_relay_pb2.SendLegSignalingBytes(connection=opened.connection, data=b"answer"))
    assert node.signaling == b"answer"
    node.connection.close(0, "bye")
    site.run()
    (ended,) = site.take(quic_relay_pb2.LegSignalingChanged)
    assert (ended.connection, ended.is_open) == (opened.connection, False)


def test_bytes_behind_our_end_of_the_signaling_stream_have_no_reader(site: Site) -> None:
    node = site.dial(Role.AGENT, "a1")
    node.connection.send_stream(4, b"garbage")
    site.run()
    (opened,) = site.take(quic_relay_pb2.LegSignalingChanged)
    node.is_deaf = True  # so that our end is not acknowledged yet
    last_words = quic_relay_pb2.SendLegSignalingBytes(connection=opened.connection, data=b"no", close=True)
    site.tell(last_words)
    site.take(quic_relay_pb2.LegSignalingBytesReceived)
    node.connection.send_stream(4, b"more garbage")
    site.run()
    assert not site.take(quic_relay_pb2.LegSignalingChanged)
    assert not site.take(quic_relay_pb2.LegSignalingBytesReceived)
    site.tell(last_words)


def test_leg_that_says_hello_all_the_time_is_closed(site: Site) -> None:
    node = site.dial(Role.AGENT, "a1")
    site.attach(node, ATTACH_A)
    for _ in range(int(MAX_HELLO_BURST)):
        assert site.hello(node, ATTACH_C) == ["rejected"]
    assert site.hello(node, ATTACH_C) == []
    assert node.closed is not None
    assert node.closed.message == "too_many_hellos"
    site.advance(1.1)
    assert site.take(quic_relay_pb2.RelayStatistics)[-1].refused["too_many_hellos"] == 1


def test_node_that_does_not_read_its_control_stream_loses_its_leg(site: Site) -> None:
    node = site.dial(Role.AGENT, "a1")
    site.attach(node, ATTACH_A)
    assert site.hello(node, ATTACH_A) == ["accepted"]
    hub = site.harness.concern._hub
    (number,) = hub._legs
    node.is_deaf = True
    for _ in range(MAX_CONTROL_BACKLOG_BYTES // 1000 + 1):
        hub.send_control(number, bytes(1000))
    node.is_deaf = False
    site.advance(1.0)
    assert node.closed is not None
    assert node.closed.message == "control_overflow"


def test_ended_signaling_stream_ends_its_leg_behind_the_last_words(site: Site) -> None:
    node = site.dial(Role.CONNECTOR, "c1")
    node.connection.send_stream(4, b"frames")
    site.run()
    (opened,) = site.take(quic_relay_pb2.LegSignalingChanged)
    site.tell(quic_relay_pb2.SendLegSignalingBytes(connection=opened.connection, data=b"bye", close=True))
    assert node.signaling == b"bye"
    assert node.closed is None
    site.advance(FAREWELL_S + 0.1)
    assert node.closed is not None


def test_node_that_does_not_read_its_signaling_loses_its_leg(site: Site) -> None:
    node = site.dial(Role.CONNECTOR, "c1")
    node.connection.send_stream(4, b"frames")
    site.run()
    (opened,) = site.take(quic_relay_pb2.LegSignalingChanged)
    node.is_deaf = True
    chunk = bytes(60_000)
    for _ in range(MAX_SIGNALING_BACKLOG_BYTES // len(chunk) + 2):
        site.tell(quic_relay_pb2.SendLegSignalingBytes(connection=opened.connection, data=chunk))
    (ended,) = site.take(quic_relay_pb2.LegSignalingChanged)
    assert not ended.is_open


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (0, b"\0\0\0\0"),
        (0, encode(b"\xff\xff\xff")),
        (0, encode(relay_pb2.LegFrame(accepted=relay_pb2.LegAccepted()).SerializeToString())),
        (8, b"anything"),
    ],
    ids=["empty frame", "no protobuf", "not a node's to send", "unknown stream"],
)
def test_node_that_breaks_the_protocol_loses_its_leg(site: Site, stream: int, data: bytes) -> None:
    node = site.dial(Role.AGENT, "a1")
    if stream not in {0, 4}:
        assert node.connection.open_stream() == stream
    node.connection.send_stream(stream, data)
    site.run()
    assert node.closed is not None
    assert node.closed.is_remote


def test_one_node_has_a_few_legs_at_most(site: Site) -> None:
    nodes = [site.dial(Role.AGENT, "a1") for _ in range(MAX_LEGS_PER_NODE + 1)]
    assert [node.closed is not None for node in nodes] == [True] + [False] * MAX_LEGS_PER_NODE


def test_node_that_moved_is_told_its_new_address(site: Site) -> None:
    agent, connector, agent_channel, connector_channel = site.joined()
    agent.take_control()
    del site.nodes[agent.address]
    agent.address = TransportAddress("198.51.100.7", 4321)
    site.nodes[agent.address] = agent
    agent.connection.send_datagram(frame.pack(agent_channel, b"from elsewhere"))
    site.run()
    site.advance(0.5)
    assert connector.datagrams == [frame.pack(connector_channel, b"from elsewhere")]
    connector.connection.send_datagram(frame.pack(connector_channel, b"found you"))
    site.run()
    assert agent.datagrams == [frame.pack(agent_channel, b"found you")]
    observed = [each.observed_address.address.port for each in agent.control]
    assert observed[-1:] == [4321]


def test_stopping_relay_closes_its_legs(site: Site) -> None:
    agent, *_ = site.joined()
    site.harness.stop()
    site._settle()
    assert agent.closed is not None
    assert agent.closed.message == "shutting_down"
    site.harness = actor_harness(QuicRelay, site.harness.concern._credentials, HandshakeBudget(fixed_cost()))


def test_nodes_that_connect_after_a_reload_are_shown_the_renewed_certificate(site: Site) -> None:
    former, *_ = site.joined()
    renewed = issue(Role.INTERMEDIATE, "i1", serial_of=2)
    site.harness.concern._credentials.adopt(
        parse_credentials(
            renewed.certificate_pem, renewed.key_pem, pem(renewed).ca, None, Role.INTERMEDIATE, NOW
        )
    )
    site.tell(reload_pb2.ConfigurationReloaded())
    node = site.dial(Role.AGENT, "a2")
    assert isinstance(node.connection.peer, VerifiedPeer)
    assert node.connection.peer.fingerprint == fingerprint(renewed.certificate)
    assert former.closed is None


def test_arbitrary_packets_of_strangers_change_nothing(site: Site) -> None:
    remote = types_pb2.TransportAddress(host="203.0.113.5", port=9)
    site.tell(
        udp_socket_pb2.UnknownDatagramsReceived(
            remote=remote, datagrams=[b"", b"\xc0", b"\xc0" * 40, b"\xc0\0\0\0\1" + bytes(1195), b"\x40" * 60]
        ),
        udp_socket_pb2.DatagramsReceived(remote=remote, connection=77, datagrams=[b"x" * 40]),
    )
    assert site.take(quic_relay_pb2.LegOpened) == []
