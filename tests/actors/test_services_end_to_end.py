"""Both service concerns, joined by a session that loses nothing: from a client's socket to a backend's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from actors.io import DatagramBatch, TcpOwner
from actors.service_backend import ServiceBackend
from actors.service_port import ServicePort
from tests.actors.service_world import (
    AGENT_ID,
    CLIENT,
    CONNECTOR_ID,
    SESSION,
    LosslessSession,
    agent_identity,
    connector_identity,
    credentials,
    established,
    make_grant,
    tcp_backend,
    tcp_service,
    udp_backend,
    udp_service,
)
from tests.manual_io import (
    ActorHarness,
    ManualIo,
    RecordedTcpAttempt,
    RecordedTcpStream,
    actor_harness,
)
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.service.tcp_effects import BACKEND_FAILED_MESSAGE
from ztna.settings import AgentLimits, ConnectorLimits
from ztna.v1 import grant_pb2, quic_session_pb2, service_port_pb2, session_table_pb2

BACKEND = TransportAddress("127.0.0.2", 53)


@dataclass
class World:
    io: ManualIo
    agent: ActorHarness[ServicePort]
    connector: ActorHarness[ServiceBackend]
    session: LosslessSession
    grants: dict[str, grant_pb2.SealedGrant]

    def connect(self, client: TransportAddress = CLIENT) -> tuple[RecordedTcpStream, TcpOwner]:
        stream, owner = self.io.tcp_listeners[0].connect(client)
        self.ready("web")
        return stream, owner

    def ready(self, service: str) -> None:
        self.agent.tell(
            session_table_pb2.ServiceReady(
                service=service, session_id=SESSION, connector_id=CONNECTOR_ID, grant=self.grants[service]
            )
        )
        self.session.run()

    def accept(self, attempt: RecordedTcpAttempt) -> RecordedTcpStream:
        stream = RecordedTcpStream(TransportAddress("127.0.0.1", 1), TransportAddress("127.0.0.2", 80))
        attempt.owner.connected(stream)
        self.session.run()
        return stream


@pytest.fixture
def world() -> World:
    io = ManualIo()
    agent = actor_harness(ServicePort, lambda: [tcp_service(), udp_service()], AgentLimits(), io=io)
    connector = actor_harness(
        ServiceBackend,
        lambda: [tcp_backend(), udp_backend()],
        ConnectorLimits(opens_per_second=10_000),
        credentials(Role.CONNECTOR, CONNECTOR_ID),
        io=io,
    )
    agent.tell(established(connector_identity()))
    connector.tell(established(agent_identity()))
    session = LosslessSession(agent, connector)
    session.run()
    return World(io, agent, connector, session, {name: make_grant(name) for name in ("web", "dns")})


def test_bytes_pass_both_ways_and_each_end_closes_on_its_own(world: World) -> None:
    client, client_owner = world.connect()
    backend = world.accept(world.io.tcp_attempts[0])
    client_owner.data_received(b"GET /")
    client_owner.eof_received()
    world.session.run()
    assert bytes(backend.written) == b"GET /"
    assert backend.eof_written
    owner = world.io.tcp_attempts[0].owner
    owner.bytes_written(5)
    owner.data_received(b"hello")
    owner.eof_received()
    world.session.run()
    assert bytes(client.written) == b"hello"
    assert client.eof_written
    client_owner.bytes_written(5)
    others = world.session.run() + world.session.seen
    closed = [message for message in others if isinstance(message, service_port_pb2.FlowClosed)]
    assert {(each.peer_id, each.reason) for each in closed} == {
        (CONNECTOR_ID, "closed"),
        (AGENT_ID, "closed"),
    }
    assert all((each.bytes_to_service, each.bytes_from_service) == (5, 5) for each in closed)
    assert not client.is_aborted
    assert not backend.is_aborted


def test_dead_backend_resets_the_client_and_says_why(world: World) -> None:
    client, _ = world.connect()
    world.io.tcp_attempts[0].owner.connection_lost(ConnectionRefusedError(111, "Connection refused"))
    world.session.run()
    assert client.is_aborted
    refused = [m for m in world.session.seen if isinstance(m, service_port_pb2.FlowRefusedReported)]
    assert {(each.peer_id, each.code, each.message) for each in refused} == {
        (CONNECTOR_ID, "backend_unreachable", BACKEND_FAILED_MESSAGE),
        (AGENT_ID, "backend_unreachable", "Connection refused"),
    }


def test_reset_of_the_client_reaches_the_backend(world: World) -> None:
    _, client_owner = world.connect()
    backend = world.accept(world.io.tcp_attempts[0])
    client_owner.connection_lost(ConnectionResetError())
    world.session.run()
    assert backend.is_aborted


def test_five_hundred_connections_cost_one_verification(world: World) -> None:
    pairs = []
    for index in range(500):
        _, owner = world.connect(TransportAddress("127.0.0.1", 10_000 + index))
        pairs.append((owner, world.accept(world.io.tcp_attempts[index])))
    for index, (owner, _) in enumerate(pairs):
        owner.data_received(f"client {index}".encode())
    world.session.run()
    assert [bytes(backend.written).decode() for _, backend in pairs] == [f"client {i}" for i in range(500)]
    session = next(iter(world.connector.concern._sessions.values()))
    assert session.gate.verifications == 1


def test_udp_datagrams_pass_both_ways_whatever_their_size(world: World) -> None:
    listener = world.io.udp_sockets[0]
    listener.owner.datagrams_received([DatagramBatch(CLIENT, "127.0.0.1", [b"a", b"x" * 60_000])], 0.0)
    world.ready("dns")
    world.io.run_until_idle()
    world.session.run()
    backend = world.io.udp_sockets[1]
    assert backend.local_address.host == "127.0.0.1"
    assert [(len(data), remote) for data, remote, _ in backend.sent] == [(1, BACKEND), (60_000, BACKEND)]
    backend.owner.datagrams_received([DatagramBatch(BACKEND, "", [b"", b"answer"])], 0.0)
    world.session.run()
    assert listener.sent == [(b"", CLIENT, "127.0.0.1"), (b"answer", CLIENT, "127.0.0.1")]


def test_end_of_the_session_resets_both_sockets_and_ends_flows(world: World) -> None:
    client, _ = world.connect()
    backend = world.accept(world.io.tcp_attempts[0])
    world.io.udp_sockets[0].owner.datagrams_received([DatagramBatch(CLIENT, "", [b"a"])], 0.0)
    world.ready("dns")
    world.io.run_until_idle()
    world.session.run()
    for end in (world.agent, world.connector):
        end.tell(quic_session_pb2.SessionClosed(session_id=SESSION, reason="closed"))
    assert client.is_aborted
    assert backend.is_aborted
    assert world.io.udp_sockets[1].is_closed
    emitted = world.agent.take_emitted() + world.connector.take_emitted()
    assert not [m for m in emitted if isinstance(m, quic_session_pb2.AbortStream)]
