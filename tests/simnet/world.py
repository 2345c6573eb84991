r"""Whole daemons in one process: real actors, cores and QUIC on a virtual clock and a simulated network.

    with World(seed=1) as world:
        world.add_intermediate("intermediate-1")
        world.add_connector("connector-1")
        world.add_agent("agent-1")
        world.start()
        world.wait_ready()
        client = world.tcp_client("agent-1", b"DOWN 1000\n")
        world.run_until(lambda: client.has_ended, 5)

Signaling runs on the legs (gRPC knows no virtual clock), identities are Ed25519 (signatures of one length),
and neither control socket nor metrics are served. Every run checks what must hold in all of them: see
`World.check` and `tests/simnet/watch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pykka
from google.protobuf.message import Message
from structlog.typing import FilteringBoundLogger

from actors.base import Context
from actors.child_group import ChildState
from actors.credentials import Credentials, parse_credentials
from actors.daemon import DRAIN_LIMIT_S, Node, Plan
from actors.plans import AgentPlan, ConnectorPlan, IntermediatePlan
from tests import pki_fixtures
from tests.simnet.apps import TcpClient, TcpService, UdpClient, UdpEcho
from tests.simnet.link import LinkConfig, Packet
from tests.simnet.nat import Nat, NatKind
from tests.simnet.network import Node as NetworkNode
from tests.simnet.network import VirtualNetwork
from tests.simnet.sim_io import WALL_EPOCH, Host, ProcessCall, SimIo
from tests.simnet.watch import InvariantError, LogBook, WatchedClock
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.settings import AgentSettings, ConnectorSettings, IntermediateSettings
from ztna.v1 import (
    quic_session_pb2,
    relay_leg_pb2,
    service_port_pb2,
    signaling_client_pb2,
    udp_socket_pb2,
)

# Each pair of sites is one link apart: the relay path is two links long, there and back four.
LINK: Final = LinkConfig(latency_s=0.02)
# A fragmented datagram is one packet of its size here, which the links of a site must let through.
SITE_LINK: Final = LinkConfig(latency_s=0.0002, mtu=65_536)
QUIC_PORT: Final = 4433
TCP_SERVICE_PORT: Final = 8080
UDP_SERVICE_PORT: Final = 5353
TCP_PORT: Final = 18_080
UDP_PORT: Final = 15_353
READY_LIMIT_S: Final = 10.0
NETWORKS: Final = {Role.INTERMEDIATE: "192.0.2", Role.CONNECTOR: "198.51.100", Role.AGENT: "203.0.113"}
INSIDES: Final = {Role.CONNECTOR: "10.2.0", Role.AGENT: "10.3.0"}
"""Behind NATs."""
SERVICE_NETWORK: Final = "10.1.0"

Settings = IntermediateSettings | ConnectorSettings | AgentSettings


@dataclass(slots=True, eq=False)
class Facts:
    """What one incarnation of a daemon has said so far, read off the messages of its actors."""

    attached: dict[str, None] = field(default_factory=dict)
    legs: dict[str, None] = field(default_factory=dict)
    registered: dict[tuple[str, str], None] = field(default_factory=dict)
    established: dict[bytes, float] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    connection_ids: dict[tuple[str, bytes, int], dict[bytes, None]] = field(default_factory=dict)
    latest: dict[type[Message], Message] = field(default_factory=dict)

    def note(self, message: Message, now: float) -> None:
        """Take note of a message."""
        self.latest[type(message)] = message
        match message:
            case signaling_client_pb2.Attached():
                self.attached[message.intermediate_id] = None
            case signaling_client_pb2.Detached():
                self.attached.pop(message.intermediate_id, None)
            case signaling_client_pb2.ServiceRegistered():
                self.registered[message.intermediate_id, message.service] = None
            case relay_leg_pb2.RelayLegUp():
                self.legs[message.intermediate_id] = None
            case relay_leg_pb2.RelayLegDown():
                self.legs.pop(message.intermediate_id, None)
            case quic_session_pb2.SessionEstablished():
                self.established[message.session_id] = now
            case quic_session_pb2.SessionClosed():
                self.established.pop(message.session_id, None)
            case service_port_pb2.ServiceStatistics():
                self.active[message.service] = message.active
            case udp_socket_pb2.UpdateConnectionIds():
                self._note_connection_ids(message)
            case _:
                pass

    def _note_connection_ids(self, message: udp_socket_pb2.UpdateConnectionIds) -> None:
        owner = (message.intermediate_id, message.session_id, message.connection)
        ids = self.connection_ids.setdefault(owner, {})
        ids.update(dict.fromkeys(message.added))
        for retired in message.retired:
            ids.pop(retired, None)
        if message.forget_owner or not ids:
            del self.connection_ids[owner]


@dataclass(slots=True, eq=False)
class Daemon:
    """One daemon of the world; `node` and `io` are those of the process that runs, if any."""

    id: str
    role: Role
    host: Host
    settings: Settings
    make_plan: Callable[[], Plan]
    services: tuple[str, ...] = ()
    node: Node | None = None
    io: SimIo | None = None
    facts: Facts = field(default_factory=Facts)

    @property
    def address(self) -> str:
        """Its IP address."""
        return self.host.addresses[0]


class WatchedNode(Node):
    """A node whose messages are seen by the world."""

    def __init__(
        self, io: SimIo, plan: Plan, log: FilteringBoundLogger, on_message: Callable[[Message], None]
    ) -> None:
        self._on_message = on_message
        super().__init__(io, plan, log)

    def _context(self, name: str, key: str) -> Context:
        context = super()._context(name, key)
        return Context(context.io, self._emit, context.log, context.key)

    def _emit(self, message: Message) -> None:
        self._on_message(message)
        self.router.emit(message)


class Tap:
    """Stands between a host and the network, and keeps every packet that passes."""

    def __init__(self, name: str) -> None:
        """`name` is the host's, which links go by."""
        self.name = name
        self.packets: list[Packet] = []
        self.host: Host | None = None

    def forward(self, packet: Packet) -> None:
        """Keep a packet and pass it on."""
        assert self.host is not None
        self.packets.append(packet)
        is_inbound = packet.destination.host in self.host.addresses
        onward: NetworkNode = self.host if is_inbound else self.host.network
        onward.forward(packet)

    def refused(self, packet: Packet, mtu: int) -> None:
        """Tell the host."""
        assert self.host is not None
        self.host.refused(packet, mtu)


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One message of one actor of one daemon."""

    time: float
    node: str
    message: str
    size: int


class World:
    """A deployment. The same seed gives the same run, in times, events and sizes."""

    def __init__(
        self,
        seed: int,
        link: LinkConfig = LINK,
        *,
        records_messages: bool = False,
        policy: str = "relay_only",
    ) -> None:
        """`link` joins every two sites; `records_messages` keeps a record of every actor message.

        `policy` is `path.policy` of agents and connectors: unless a test is about direct paths, the relay is
        what it is about.
        """
        self._policy = policy
        self.clock = WatchedClock()
        self.network = VirtualNetwork(seed, link, self.clock)
        self.log = LogBook(self.clock)
        self.daemons: dict[str, Daemon] = {}
        self.nats: dict[str, Nat] = {}
        self.messages: list[MessageRecord] = []
        # Those of other tests in this process.
        self._foreign_actors = {ref.actor_urn for ref in pykka.ActorRegistry.get_all()}
        self.tcp: TcpService
        self.udp: UdpEcho
        self._records_messages = records_messages
        self._counts = dict.fromkeys(Role, 0)
        self._apps: dict[str, SimIo] = {}
        self._add_service_host()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        for daemon in self.daemons.values():
            if daemon.node is not None:
                self.kill(daemon.id)

    # The deployment

    def add_intermediate(self, node_id: str, *, tap: Tap | None = None, **sections: Any) -> Daemon:
        """Add an intermediate that allows everybody everything; `sections` adds keys to its settings."""
        host = self._add_host(node_id, Role.INTERMEDIATE, tap)
        settings = IntermediateSettings.model_validate(
            {
                **_common(node_id),
                "quic": {"listen": [f"0.0.0.0:{QUIC_PORT}"]},
                "policy": [{"agents": ["*"], "services": ["*"]}],
                "offers": [{"connectors": ["*"], "services": ["*"]}],
                **sections,
            },
            context={"directory": Path()},
        )
        credentials = credentials_of(Role.INTERMEDIATE, node_id)
        return self._add(
            node_id,
            Role.INTERMEDIATE,
            host,
            settings,
            lambda: IntermediatePlan(settings, credentials, has_grpc=False),
        )

    def add_connector(
        self,
        node_id: str,
        services: Sequence[Mapping[str, Any]] | None = None,
        nat: NatKind | None = None,
        **sections: Any,
    ) -> Daemon:
        """Add a connector that provides `files` (TCP) and `echo` (UDP), unless said otherwise."""
        host = self._add_host(node_id, Role.CONNECTOR, nat=nat)
        self._join_services(node_id if nat is None else f"{node_id}-nat")
        if services is None:
            services = [
                {"id": "files", "protocol": "tcp", "backend": f"{SERVICE_NETWORK}.1:{TCP_SERVICE_PORT}"},
                {"id": "echo", "protocol": "udp", "backend": f"{SERVICE_NETWORK}.1:{UDP_SERVICE_PORT}"},
            ]
        settings = ConnectorSettings.model_validate(
            {**_common(node_id), **self._peer_sections(), "services": services, **sections},
            context={"directory": Path()},
        )
        credentials = credentials_of(Role.CONNECTOR, node_id)
        daemon = self._add(
            node_id, Role.CONNECTOR, host, settings, lambda: ConnectorPlan(settings, credentials)
        )
        daemon.services = tuple(service.id for service in settings.services)
        return daemon

    def add_agent(
        self,
        node_id: str,
        services: Sequence[Mapping[str, Any]] | None = None,
        nat: NatKind | None = None,
        **sections: Any,
    ) -> Daemon:
        """Add an agent that listens for `files` and `echo`, unless said otherwise."""
        host = self._add_host(node_id, Role.AGENT, nat=nat)
        if services is None:
            services = [
                {"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{TCP_PORT}"},
                {"id": "echo", "protocol": "udp", "listen": f"127.0.0.1:{UDP_PORT}"},
            ]
        settings = AgentSettings.model_validate(
            {**_common(node_id), **self._peer_sections(), "services": services, **sections},
            context={"directory": Path()},
        )
        credentials = credentials_of(Role.AGENT, node_id)
        return self._add(node_id, Role.AGENT, host, settings, lambda: AgentPlan(settings, credentials))

    # Applications

    def tcp_client(self, agent_id: str, request: bytes = b"", port: int = TCP_PORT, **how: Any) -> TcpClient:
        """Start a client application beside an agent; `how` is what `TcpClient` takes."""
        return TcpClient(self._app_io(agent_id), port, request, **how)

    def udp_client(self, agent_id: str, port: int = UDP_PORT) -> UdpClient:
        """Start a client application that sends datagrams to an agent."""
        return UdpClient(self._app_io(agent_id), port)

    # Life and death

    def start(self, *node_ids: str) -> None:
        """Start daemons, all of them by default."""
        for node_id in node_ids or tuple(self.daemons):
            daemon = self.daemons[node_id]
            if daemon.node is not None:
                raise ValueError(f"{node_id} runs already")
            daemon.facts = Facts()
            daemon.io = daemon.host.io()
            log = self.log.logger(daemon=daemon.role.value, node=node_id)
            daemon.node = WatchedNode(daemon.io, daemon.make_plan(), log, self._observer(daemon))
            daemon.node.start()

    def kill(self, node_id: str) -> None:
        """End a process without a goodbye: its kernel resets its TCP connections, and that is all."""
        daemon = self.daemons[node_id]
        node, io = _running(daemon)
        io.end(resets=True)
        self._forget_actors(node)
        daemon.node = daemon.io = None

    @staticmethod
    def _forget_actors(node: Node) -> None:
        for name in node.directory.names():
            ref = node.directory.find(name)
            if ref is not None:
                pykka.ActorRegistry.unregister(ref)

    def stop(self, node_id: str) -> float:
        """Drain a daemon as SIGTERM does, and return the seconds it took; raises when anything is left."""
        daemon = self.daemons[node_id]
        node, io = _running(daemon)
        stopped: list[float] = []
        started = self.now
        node.supervisor.stop(lambda: stopped.append(self.now))
        daemon.node = daemon.io = None
        self.run_until(lambda: bool(stopped), DRAIN_LIMIT_S, f"{node_id} stopped")
        left = self._left_of(node, io)
        io.end()
        if left:
            raise InvariantError(f"{node_id} left behind {left}")
        return stopped[0] - started

    def close(self) -> None:
        """Stop what runs, agents first; raises `InvariantError` when anything is left in the process."""
        order = (Role.AGENT, Role.CONNECTOR, Role.INTERMEDIATE)
        for daemon in sorted(self.daemons.values(), key=lambda each: order.index(each.role)):
            if daemon.node is not None:
                self.stop(daemon.id)
        self.check()
        left = [ref for ref in pykka.ActorRegistry.get_all() if ref.actor_urn not in self._foreign_actors]
        for ref in left:
            pykka.ActorRegistry.unregister(ref)
        if left:
            raise InvariantError(f"actors left: {left}")

    # Time

    @property
    def now(self) -> float:
        """Virtual monotonic seconds."""
        return self.clock.time()

    def run_until(self, predicate: Callable[[], bool], timeout_s: float, what: str = "") -> None:
        """Run until `predicate` holds; raises with log and packets after `timeout_s`, or if a rule breaks."""
        failures = self.log.failures
        try:
            self.network.run_until(lambda: bool(failures) or predicate(), timeout_s, what)
        except AssertionError as error:
            error.add_note(self.log.tail())
            raise
        self.check()

    def run_for(self, seconds: float) -> None:
        """Let `seconds` pass; raises when a rule breaks."""
        self.network.run_for(seconds)
        self.check()

    def wait_ready(self, *node_ids: str) -> None:
        """Run until the nodes (by default all that run) are attached, legs up and services registered."""
        nodes = [self.daemons[each] for each in node_ids] or [
            each for each in self.daemons.values() if each.node is not None
        ]
        self.run_until(lambda: all(map(self.is_ready, nodes)), READY_LIMIT_S, "every node ready")

    def is_ready(self, daemon: Daemon) -> bool:
        """Whether a daemon is where it can serve."""
        if daemon.role is Role.INTERMEDIATE:
            return True
        facts = daemon.facts
        attached = [each for each in facts.attached if each in facts.legs]
        return bool(attached) and all(
            (intermediate, service) in facts.registered
            for intermediate in attached
            for service in daemon.services
        )

    def check(self) -> None:
        """Raise `InvariantError` unless the rules held so far and every actor that should live does."""
        self.clock.check()
        self.log.check()
        for daemon in self.daemons.values():
            if daemon.node is None:
                continue
            if daemon.node.give_up_reason:
                raise InvariantError(f"{daemon.id} gave up: {daemon.node.give_up_reason}")
            for child in daemon.node.supervisor.children():
                if not child.key and (child.state is not ChildState.RUNNING or child.restarts):
                    raise InvariantError(f"{daemon.id}: {child}\n{self.log.tail()}")

    def record(self) -> list[tuple[object, ...]]:
        """What a run consists of, for comparison: packets, messages and log lines, in times and sizes."""
        packets = [(e.time, str(e.source), str(e.destination), e.size, e.what) for e in self.network.trace]
        messages = [(m.time, m.node, m.message, m.size) for m in self.messages]
        lines = [(line["time"], line["node"], line["event"]) for line in self.log.lines]
        return [*packets, *messages, *lines]

    # Within

    def _add_service_host(self) -> None:
        host = self.network.host("services", f"{SERVICE_NETWORK}.1")
        io = host.io()
        self.tcp = TcpService(io, TransportAddress("0.0.0.0", TCP_SERVICE_PORT))
        self.udp = UdpEcho(io, TransportAddress("0.0.0.0", UDP_SERVICE_PORT))

    def _join_services(self, uplink: str) -> None:
        self.network.set_link(uplink, "services", SITE_LINK)

    def _add_host(self, node_id: str, role: Role, tap: Tap | None = None, nat: NatKind | None = None) -> Host:
        self._counts[role] += 1
        address = f"{NETWORKS[role]}.{self._counts[role]}"
        if nat is not None:
            self.nats[node_id] = gateway = Nat(self.network, f"{node_id}-nat", address, nat)
            inside = f"{INSIDES[role]}.{self._counts[role]}" if nat.is_translating else address
            host = self.network.host(node_id, inside, uplink=gateway)
            gateway.add_inside(inside, host)
            return host
        if tap is None:
            return self.network.host(node_id, address)
        tap.host = self.network.host(node_id, address, uplink=tap)
        self.network.attach(tap, [address])
        return tap.host

    def _add(
        self, node_id: str, role: Role, host: Host, settings: Settings, make_plan: Callable[[], Plan]
    ) -> Daemon:
        daemon = self.daemons[node_id] = Daemon(node_id, role, host, settings, make_plan)
        return daemon

    def intermediates(self) -> list[Daemon]:
        """Those of this world."""
        return [each for each in self.daemons.values() if each.role is Role.INTERMEDIATE]

    def _peer_sections(self) -> dict[str, Any]:
        return {
            "signaling": {"transport": "quic"},
            "path": {"policy": self._policy},
            "intermediates": [
                {"id": each.id, "quic": f"{each.address}:{QUIC_PORT}", "grpc": f"{each.address}:4434"}
                for each in self.intermediates()
            ],
        }

    def _app_io(self, agent_id: str) -> SimIo:
        # One process for all applications of a host: they are not what is tested.
        if agent_id not in self._apps:
            self._apps[agent_id] = self.daemons[agent_id].host.io()
        return self._apps[agent_id]

    def _observer(self, daemon: Daemon) -> Callable[[Message], None]:
        facts = daemon.facts

        def observe(message: Message) -> None:
            facts.note(message, self.now)
            if self._records_messages:
                self.messages.append(
                    MessageRecord(self.now, daemon.id, message.DESCRIPTOR.name, message.ByteSize())
                )

        return observe

    def _left_of(self, node: Node, io: SimIo) -> list[str]:
        host = io.host
        return [
            *node.directory.names(),
            *node.supervisor.scopes(),
            *(f"UDP {address}" for address, udp in host.sockets.items() if udp.io is io),
            *(f"TCP listener {address}" for address, each in host.listeners.items() if each.io is io),
            *(f"TCP {each.local_address} -> {each.remote_address}" for each in io.streams),
            *(
                f"timer {timer.callback.callback} at {timer.when}"
                for timer in self.clock.pending()
                if isinstance(timer.callback, ProcessCall)
                and timer.callback.io is io
                and timer.when > self.now
            ),
        ]


def _common(node_id: str) -> dict[str, Any]:
    return {
        "node": {"id": node_id, "cert": "in-memory", "key": "in-memory", "ca": "in-memory"},
        "metrics": {"listen": ""},
        "control": {"socket": ""},
    }


def credentials_of(role: Role, node_id: str) -> Credentials:
    """The identity of a node, from the CA that all share."""
    files = pki_fixtures.pem(pki_fixtures.issue(role, node_id, key_type="ed25519"), key_type="ed25519")
    return parse_credentials(files.certificate, files.key, files.ca, None, role, WALL_EPOCH)


def _running(daemon: Daemon) -> tuple[Node, SimIo]:
    if daemon.node is None or daemon.io is None:
        raise ValueError(f"{daemon.id} does not run")
    return daemon.node, daemon.io


def services_active(daemons: Collection[Daemon]) -> int:
    """TCP connections and UDP flows that these daemons report."""
    return sum(sum(daemon.facts.active.values()) for daemon in daemons)
