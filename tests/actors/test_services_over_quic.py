"""Both service concerns over two real QUIC connections: what frames and limits of QUIC do to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from cryptography import x509
from google.protobuf.message import Message

from actors.base import Context
from actors.io import TcpOwner
from actors.quic_session import QuicSession
from actors.service_backend import ServiceBackend
from actors.service_port import MAX_SERVICE_STREAMS, ServicePort
from tests.actors.service_world import (
    AGENT_ID,
    CLIENT,
    CONNECTOR_ID,
    SESSION,
    credentials,
    make_grant,
    of_type,
    tcp_backend,
    tcp_service,
)
from tests.manual_io import ActorHarness, ManualIo, RecordedTcpStream, actor_harness
from ztna.access.identity import Role, VerifiedPeer
from ztna.address import TransportAddress
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions
from ztna.service.tcp_connection import MAX_IN_FLIGHT_BYTES
from ztna.settings import AgentLimits, ConnectorLimits
from ztna.v1 import (
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    service_port_pb2,
    session_table_pb2,
    types_pb2,
)

BACKEND = TransportAddress("127.0.0.2", 80)
LOCAL = TransportAddress("127.0.0.1", 33_000)

_TO_QUIC = frozenset(
    type_
    for type_ in QuicSession.wired_messages()
    if type_.DESCRIPTOR.file.name == quic_session_pb2.DESCRIPTOR.name
)


def _accept(_peer: VerifiedPeer) -> None:
    """Nothing changes about a peer."""


class _ClientSession(QuicSession):
    def __init__(self, context: Context, open_connection: Callable[[bytes], Connection]) -> None:
        super().__init__(context, open_connection, _accept, is_client=True)


class _ServerSession(QuicSession):
    def __init__(self, context: Context, open_connection: Callable[[bytes], Connection]) -> None:
        super().__init__(context, open_connection, _accept, is_client=False)


class World:
    """Agent and connector of one session, joined by a relay that loses nothing."""

    def __init__(self, **limits: Any) -> None:
        self.io = ManualIo()
        self.grant = make_grant("web")
        self.port = actor_harness(ServicePort, lambda: [tcp_service()], AgentLimits(), io=self.io)
        self.backend = actor_harness(
            ServiceBackend,
            lambda: [tcp_backend()],
            ConnectorLimits(**limits),
            credentials(Role.CONNECTOR, CONNECTOR_ID),
            io=self.io,
        )
        self.client = actor_harness(
            _ClientSession, self._opener(Role.AGENT, AGENT_ID), key=SESSION.hex(), io=self.io
        )
        self.server = actor_harness(
            _ServerSession, self._opener(Role.CONNECTOR, CONNECTOR_ID), key=SESSION.hex(), io=self.io
        )
        self.said: list[Message] = []
        for end in (self.server, self.client):
            end.tell(
                path_manager_pb2.PathSelected(
                    session_id=SESSION, kind=types_pb2.PATH_KIND_RELAY, intermediate_id="relay-1"
                )
            )
        self.run()

    def run(self, seconds: float = 0.2) -> None:
        """Let packets, messages and time pass."""
        ends: tuple[tuple[ActorHarness[Any], ActorHarness[Any], ActorHarness[Any]], ...] = (
            (self.client, self.server, self.port),
            (self.server, self.client, self.backend),
        )
        give_up_at = self.io.time() + seconds
        while self.io.time() < give_up_at:
            while any([self._carry(*end) for end in ends]):  # noqa: C419 - both ends, each time
                self.io.run_until_idle()
            self.io.advance(0.002)

    def connect(self, client: TransportAddress = CLIENT) -> tuple[RecordedTcpStream, TcpOwner]:
        """A client connects; its service is ready at once."""
        return self.io.tcp_listeners[0].connect(client)

    def accept(self, index: int = 0) -> tuple[RecordedTcpStream, TcpOwner]:
        """The backend accepts a connection."""
        attempt = self.io.tcp_attempts[index]
        stream = RecordedTcpStream(LOCAL, BACKEND)
        attempt.owner.connected(stream)
        self.run(0.05)
        return stream, attempt.owner

    def _carry(self, quic: ActorHarness[Any], far: ActorHarness[Any], service: ActorHarness[Any]) -> bool:
        from_quic, from_service = quic.take_emitted(), service.take_emitted()
        for message in from_quic:
            if isinstance(message, relay_leg_pb2.SendSealed):
                far.ref.tell(relay_leg_pb2.SealedReceived(session_id=SESSION, packets=message.packets))
            elif type(message) in service.concern.dispatch:
                service.ref.tell(message)
        for message in from_service:
            if type(message) in _TO_QUIC:
                quic.ref.tell(message)
            elif isinstance(message, session_table_pb2.RequestService):
                service.ref.tell(
                    session_table_pb2.ServiceReady(
                        service="web", session_id=SESSION, connector_id=CONNECTOR_ID, grant=self.grant
                    )
                )
            else:
                self.said.append(message)
        return bool(from_quic or from_service)

    def _opener(self, role: Role, node_id: str) -> Callable[[bytes], Connection]:
        own = credentials(role, node_id)
        is_client = role is Role.AGENT
        peer_role = Role.CONNECTOR if is_client else Role.AGENT

        def verify(chain: Sequence[x509.Certificate]) -> VerifiedPeer:
            return own.verifier.verify(
                chain, expect=peer_role, now_wall=self.io.wall_time(), as_server=is_client
            )

        def open_connection(destination_cid: bytes) -> Connection:
            options = ConnectionOptions.inner(
                certificate=own.certificate_chain[0], private_key=own.private_key, verify_peer=verify
            )
            if is_client:
                return Connection.client(options)
            return Connection.server(options, destination_cid=destination_cid)

        return open_connection


@pytest.fixture
def world() -> World:
    return World()


def test_bytes_and_ends_pass_both_ways(world: World) -> None:
    client, client_owner = world.connect()
    world.run()
    backend, backend_owner = world.accept()
    client_owner.data_received(b"question")
    client_owner.eof_received()
    world.run()
    assert bytes(backend.written) == b"question"
    assert backend.eof_written
    backend_owner.bytes_written(8)
    backend_owner.data_received(b"answer")
    backend_owner.eof_received()
    world.run()
    assert bytes(client.written) == b"answer"
    assert client.eof_written
    client_owner.bytes_written(6)
    world.run()
    stories = of_type(world.said, service_port_pb2.FlowClosed)
    assert [(each.reason, each.bytes_to_service, each.bytes_from_service) for each in stories] == [
        ("closed", 8, 6),
        ("closed", 8, 6),
    ]


def test_reason_of_a_refusal_reaches_the_agent_in_spite_of_the_stop() -> None:
    world = World(streams_per_agent=1)
    world.connect()
    world.run()
    client, _ = world.connect()
    world.run(0.05)
    assert client.is_aborted
    refusals = of_type(world.said, service_port_pb2.FlowRefusedReported)
    assert {(each.peer_id, each.code, each.message) for each in refusals} == {
        (peer, "limit", "limits.streams_per_agent (1) is reached") for peer in (AGENT_ID, CONNECTOR_ID)
    }


def test_backend_that_does_not_read_stops_the_client(world: World) -> None:
    client, client_owner = world.connect()
    world.run()
    backend, backend_owner = world.accept()
    sent = 0
    for _ in range(200):
        if not client.is_reading:
            break
        client_owner.data_received(bytes(65_536))
        sent += 65_536
        world.run(0.01)
    assert not client.is_reading
    # The windows of the stream and of the client's end bound what was taken.
    assert sent <= MAX_IN_FLIGHT_BYTES + 2 * 65_536
    taken = 0
    while taken < sent:
        waiting = len(backend.written) - taken
        assert waiting
        taken += waiting
        backend_owner.bytes_written(waiting)
        world.run(0.05)
    assert client.is_reading


def test_connections_beyond_the_streams_of_a_session_are_reset_and_the_session_lives() -> None:
    world = World(opens_per_second=100_000)
    clients = [
        world.connect(TransportAddress("127.0.0.1", 1024 + i))[0] for i in range(MAX_SERVICE_STREAMS + 5)
    ]
    world.run()
    assert len(world.io.tcp_attempts) == MAX_SERVICE_STREAMS
    assert [client.is_aborted for client in clients] == [False] * MAX_SERVICE_STREAMS + [True] * 5
    for attempt in world.io.tcp_attempts:
        attempt.owner.connection_lost(ConnectionRefusedError(111, "Connection refused"))
    world.run()
    client, _ = world.connect()
    world.run()
    assert len(world.io.tcp_attempts) == MAX_SERVICE_STREAMS + 1
    assert not client.is_aborted
