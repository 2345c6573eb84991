"""Builds what a scenario describes: sites with their NATs, services behind connectors, daemons on top."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.message import Message

from actors.child_group import ChildState
from actors.daemon import Node as DaemonNode
from tests.simnet.link import Link, LinkConfig, Packet
from tests.simnet.nat import Nat, NatKind, Outer
from tests.simnet.network import Node, VirtualNetwork
from tests.simnet.sim_io import WALL_EPOCH, Host, SimIo
from tests.simnet.watch import InvariantError
from tests.simnet.world import QUIC_PORT, Daemon, Tap, World
from tools.simulate.apps import Report, StreamService
from tools.simulate.identities import Identities
from tools.simulate.live_plans import PLANS, LiveIntermediatePlan, adopt
from tools.simulate.scenario import FaultKind, Scenario, Site
from ztna.access.identity import Role
from ztna.address import Family, TransportAddress
from ztna.settings import IntermediateSettings
from ztna.v1 import reload_pb2, signaling_client_pb2

TCP_SERVICE_PORT: Final = 8080
UDP_SERVICE_PORT: Final = 5353
FIRST_TCP_PORT: Final = 18_000
FIRST_UDP_PORT: Final = 15_000
STUN_PORT: Final = 4435
SITE_LINK: Final = LinkConfig(latency_s=0.0002, mtu=65_536)

CRASH_MESSAGE: Final = "does not handle str"
"""In the traceback of an actor that was made to fail."""

OnMessage = Callable[[Daemon, Message], None]


class Lan:
    """A network of a site, or behind a carrier's NAT: delivers within, and sends the rest to the uplink."""

    def __init__(self, network: VirtualNetwork, name: str) -> None:
        self.name = name
        self.uplinks: dict[Family, Node] = {}
        self.blocks_udp = False
        self.dead: Family | None = None
        self._inside: dict[str, Node] = {}
        self._network = network
        chance = network.derive_random(f"lan {name}")
        self._link = Link(network.clock, chance, SITE_LINK, self._deliver, network.record)

    def add(self, host: Host) -> None:
        """Deliver packets for the addresses of `host`."""
        self._inside.update(dict.fromkeys(host.addresses, host))

    def add_inside(self, address: str, node: Node) -> None:
        """Deliver packets for `address` to a NAT or another network, and let the NAT further out know."""
        self._inside[address] = node
        uplink = self.uplinks.get(TransportAddress(address, 0).family)
        if isinstance(uplink, Nat):
            uplink.add_inside(address, self)

    def remove(self, host: Host) -> None:
        """Deliver nothing to it any more."""
        self._inside = {address: each for address, each in self._inside.items() if each is not host}

    def forward(self, packet: Packet) -> None:
        """Take a packet one step further."""
        is_for_us = packet.destination.host in self._inside
        is_of_us = packet.source.host in self._inside
        if is_for_us and is_of_us:
            self._link.carry(packet)
        elif not is_for_us and not is_of_us:
            self._network.record(packet, f"lost at {self.name}, nobody there")
        elif packet.destination.family is self.dead:
            self._network.record(packet, f"lost at {self.name}, the family is dead")
        elif self.blocks_udp and packet.flag is None:
            self._network.record(packet, f"lost at {self.name}, UDP is blocked")
        elif is_for_us:
            self._deliver(packet)
        else:
            self.uplinks.get(packet.destination.family, self._network).forward(packet)

    def refused(self, packet: Packet, mtu: int) -> None:
        """Tell the host that sent it."""
        node = self._inside.get(packet.source.host)
        if node is not None:
            node.refused(packet, mtu)

    def _deliver(self, packet: Packet) -> None:
        node = self._inside.get(packet.destination.host)
        if node is not None:
            node.forward(packet)


@dataclass(eq=False)
class Place:
    """What was built for a site; `edges` are its nodes that the network knows."""

    number: int
    lan: Lan
    nats: list[Nat] = field(default_factory=list)
    firewalls: list[Nat] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    hosts: int = 0
    carrier: Nat | None = None

    def outside(self, host: Host) -> list[TransportAddress]:
        """Where the network sees what a host sends over IPv4 through NATs."""
        if self.carrier is None:
            return [each for nat in self.nats[:1] for each in nat.mappings().values()]
        inside = {each for nat in self.nats[:1] for each in ([nat.address] if nat.address else [])}
        inside |= set(host.addresses)
        return [external for each, external in self.carrier.mappings().items() if each.host in inside]


class LinkTable:
    """The links between sites, with whatever is wrong with them at the moment."""

    def __init__(self, network: VirtualNetwork, base: LinkConfig) -> None:
        self.base = base
        self.edges: dict[str, list[str]] = {}
        self._network = network
        self._wrong: dict[tuple[str, str], list[Callable[[LinkConfig], LinkConfig]]] = {}

    def change(self, one: str, other: str, change: Callable[[LinkConfig], LinkConfig]) -> Callable[[], None]:
        """Change the direction from node `one` to node `other`; the result takes it back."""
        changes = self._wrong.setdefault((one, other), [])
        changes.append(change)
        self.apply(one, other)

        def undo() -> None:
            changes.remove(change)
            self.apply(one, other)

        return undo

    def apply(self, one: str, other: str) -> None:
        """Let the network know."""
        config = self.base
        for change in self._wrong.get((one, other), ()):
            config = change(config)
        for source in self.edges[one]:
            for destination in self.edges[other]:
                self._network.set_link(source, destination, config, both_ways=False)

    def apply_all(self) -> None:
        """After an edge has come."""
        for one, other in self._wrong:
            self.apply(one, other)


class Deployment(World):
    """The world of one scenario; nothing runs yet."""

    def __init__(self, scenario: Scenario, report: Report, on_message: OnMessage) -> None:
        self.scenario = scenario
        self.places: dict[str, Place] = {}
        self.services: dict[str, StreamService] = {}
        self.service_hosts: dict[str, Host] = {}
        self.taps: dict[str, Tap] = {}
        self.crashes = 0
        self.revoked: dict[str, float] = {}
        self.outcasts: dict[str, float] = {}
        """Intermediates whose certificate is on the list of every node, and since when."""
        self.carriers: dict[str, Lan] = {}
        self._fresh = 0
        self._draining: dict[str, tuple[DaemonNode, SimIo]] = {}
        self._report = report
        self._on_message = on_message
        super().__init__(scenario.seed, scenario.link, policy=scenario.policy)
        self.links = LinkTable(self.network, scenario.link)
        self.identities = Identities()
        for fault in scenario.faults:
            if fault.kind is FaultKind.EXPIRE:
                self.identities.end_at(fault.target, self.wall_time(self.now + fault.at))
        self._plans: dict[str, LiveIntermediatePlan] = {}
        for name in scenario.intermediates:
            self.links.edges[name] = [name]
            self._make_live(self.add_intermediate(name, **self._intermediate_sections(name)))
        for number, name in enumerate(scenario.connectors):
            self.add_connector(name, self._offered(number, name), **scenario.settings.get(name, {}))
        for name in scenario.agents:
            self.add_agent(name, self._wanted(), **scenario.settings.get(name, {}))
        for daemon in self.daemons.values():
            if daemon.role is not Role.INTERMEDIATE:
                self._make_node_live(daemon)
        for narrow in scenario.narrow:
            for one, other in ((narrow.one, narrow.other), (narrow.other, narrow.one)):
                self.links.change(
                    one,
                    other,
                    lambda link, narrow=narrow: replace(  # type: ignore[misc]
                        link, mtu=min(link.mtu, narrow.mtu), tells_mtu=narrow.is_told
                    ),
                )

    def tcp_port(self, connector: str) -> int:
        """Where agents listen for the stream service of a connector."""
        return FIRST_TCP_PORT + list(self.scenario.connectors).index(connector)

    def udp_port(self, connector: str) -> int:
        """Where agents listen for its datagram service."""
        return FIRST_UDP_PORT + list(self.scenario.connectors).index(connector)

    def start_service(self, connector: str) -> None:
        """Start the process of the services behind a connector, in place of one that runs."""
        self.network.crash(self.service_hosts[connector], resets=True)
        former = self.services.get(connector)
        service = self.services[connector] = StreamService(
            self.service_hosts[connector].io(), connector, TCP_SERVICE_PORT, UDP_SERVICE_PORT, self._report
        )
        if former is not None:
            # The rules of the run are the same as before.
            service.allows, service.stall_s, service.whole = former.allows, former.stall_s, former.whole

    def move(self, name: str, site: Site) -> None:
        """Take a node to another network."""
        host = self.daemons[name].host
        former = self.places[name]
        former.lan.remove(host)
        place = self._build(f"{name}-elsewhere{len(self.places)}", site)
        self.places[f"{name} formerly {former.number}"] = former
        self.places[name] = place
        self.links.edges[name] = place.edges
        host.uplink = place.lan
        addresses = self._addresses(place, site.families, has_nat=bool(place.nats))
        host.change_addresses(*addresses)
        self._settle(place, host)
        self.links.apply_all()

    def renumber(self, name: str) -> None:
        """Give a host another address in each family that no NAT translates.

        Within its site the former one leads there still: what it has with its services goes on.
        """
        place, host = self.places[name], self.daemons[name].host
        is_translated = bool(place.nats) and place.nats[-1].kind.is_translating
        addresses: list[str] = []
        for former in host.addresses:
            family = TransportAddress(former, 0).family
            if family is Family.IPV4 and is_translated:
                addresses.append(former)
            else:
                addresses += self._addresses(place, (family,), has_nat=bool(place.nats))
                self.network.detach([former])
        changed = [each for each in addresses if each not in host.addresses]
        host.change_addresses(*addresses)
        self._settle(place, host, changed)

    def app_io(self, agent: str) -> SimIo:
        """The process of the applications beside an agent."""
        return self._app_io(agent)

    def suspend(self, name: str, seconds: float, *, stands: bool) -> None:
        """Let the machine of a node sleep; `stands`: the daemon's monotonic clock, too."""
        daemon = self.daemons[name]
        if stands and daemon.io is not None:
            daemon.io.freeze(seconds, stands=True)
        daemon.host.sleep(seconds)

    def fresh_address(self) -> str:
        """An address that nobody has had."""
        self._fresh += 1
        return f"198.51.99.{self._fresh}"

    def drain(self, name: str) -> None:
        """Stop a daemon as SIGTERM does, without waiting."""
        daemon = self.daemons[name]
        node, io = daemon.node, daemon.io
        if node is None or io is None:
            return
        daemon.node = daemon.io = None
        self._draining[name] = (node, io)
        node.supervisor.stop(io.end)

    def finish(self, name: str) -> None:
        """End a process that drains and is not at its end."""
        if name in self._draining:
            node, io = self._draining.pop(name)
            io.end(resets=True)
            self._forget_actors(node)

    def crash(self, name: str, actor: str) -> None:
        """Let an actor of a node fail on a message that it does not know; of a session, those of all."""
        node = self.daemons[name].node
        if node is None:
            return
        for found in node.directory.names():
            if found == actor or found.startswith(f"{actor}/"):
                ref = node.directory.find(found)
                if ref is not None:
                    self.crashes += 1
                    ref.tell("a message of no known type")

    def revoke(self, agent: str) -> None:
        """Let no intermediate allow an agent anything any more."""
        self.revoked.setdefault(agent, self.now)
        for daemon in self.intermediates():
            if daemon.node is not None:
                self._plans[daemon.id].forbid(self.revoked)
                daemon.node.router.emit(reload_pb2.ConfigurationReloaded())

    @staticmethod
    def wall_time(now: float) -> float:
        """What a clock that is right shows at `now`, in unix seconds."""
        return WALL_EPOCH + now

    def reload(self, name: str) -> None:
        """Have a daemon read its files again."""
        daemon = self.daemons[name]
        if daemon.node is not None:
            adopt(daemon.node._plan, self.identities.credentials(daemon.role, name))  # noqa: SLF001
            daemon.node.router.emit(reload_pb2.ConfigurationReloaded())

    def withdraw_certificate(self, name: str) -> None:
        """Have the CA revoke the certificate of a node; whoever is given the list knows (`learn_list`)."""
        self.identities.revoke(self.daemons[name].role, name, self.wall_time(self.now))

    def learn_list(self, name: str) -> None:
        """Give a node the newest revocation list, and have it reload."""
        self.identities.give_list(name, self.wall_time(self.now))
        self.reload(name)

    def renew_certificate(self, name: str) -> None:
        """Give a node another certificate, and have it reload."""
        self.identities.renew(self.daemons[name].role, name)
        self.reload(name)

    def intrude(self, agent: str) -> None:
        """Have an agent report to all intermediates that the sessions of all others are over."""
        intruder = self.daemons[agent]
        foreign = {
            session_id
            # Of agents alone: a connector is up with the intruder's own sessions before the intruder is.
            for daemon in self.daemons.values()
            if daemon.role is Role.AGENT and daemon is not intruder and daemon.node is not None
            for session_id in daemon.facts.established
        }
        for session_id in sorted(foreign):
            for intermediate in intruder.facts.attached:
                if intruder.node is not None:
                    intruder.node.router.emit(
                        signaling_client_pb2.ReportSessionClosed(
                            intermediate_id=intermediate, session_id=session_id, reason="intruded"
                        )
                    )

    def check(self) -> None:
        """As ever; but an actor that was made to fail may be started again."""
        self.clock.check()
        failures = self.log.failures
        failures[:] = [each for each in failures if CRASH_MESSAGE not in str(each.get("exception", ""))]
        self.log.check()
        for daemon in self.daemons.values():
            if daemon.node is None:
                continue
            if daemon.node.give_up_reason:
                raise InvariantError(f"{daemon.id} gave up: {daemon.node.give_up_reason}")
            for child in daemon.node.supervisor.children():
                is_well = child.state is ChildState.RUNNING and not child.restarts
                if not (is_well or child.key or self.crashes):
                    raise InvariantError(f"{daemon.id}: {child}")

    # Within

    def _make_live(self, daemon: Daemon) -> None:
        settings = daemon.settings
        assert isinstance(settings, IntermediateSettings)  # noqa: S101

        def make_plan() -> LiveIntermediatePlan:
            plan = self._plans[daemon.id] = LiveIntermediatePlan(
                settings,
                self.identities.credentials(Role.INTERMEDIATE, daemon.id),
                has_grpc=self.scenario.has_grpc,
            )
            plan.forbid(self.revoked)
            return plan

        daemon.make_plan = make_plan

    def _make_node_live(self, daemon: Daemon) -> None:
        make = PLANS[type(daemon.settings)]
        daemon.make_plan = lambda: make(daemon.settings, self.identities.credentials(daemon.role, daemon.id))

    def _intermediate_sections(self, name: str) -> dict[str, Any]:
        connectors = list(self.scenario.connectors)
        policy = []
        for agent in self.scenario.agents:
            allowed = [
                service
                for number, connector in enumerate(connectors)
                if (agent, connector) not in self.scenario.denied
                for service in (f"files-{number}", f"echo-{number}")
            ]
            if allowed:
                policy.append({"agents": [agent], "services": allowed})
        return {
            "quic": {"listen": [f"0.0.0.0:{QUIC_PORT}", f"[::]:{QUIC_PORT}"]},
            "stun": {"alternate_port": STUN_PORT},
            "policy": policy,
            **self.scenario.settings.get(name, {}),
        }

    def _offered(self, number: int, name: str) -> list[dict[str, object]]:
        # Connectors are built first, one place each.
        address = self._service_address(number + 1, self.scenario.connectors[name])
        return [
            {
                "id": f"files-{number}",
                "protocol": "tcp",
                "backend": str(TransportAddress(address, TCP_SERVICE_PORT)),
            },
            {
                "id": f"echo-{number}",
                "protocol": "udp",
                "backend": str(TransportAddress(address, UDP_SERVICE_PORT)),
            },
        ]

    @staticmethod
    def _service_address(place: int, site: Site) -> str:
        return f"10.{place}.9.1" if Family.IPV4 in site.families else f"2001:db8:{place:x}:9::1"

    def _wanted(self) -> list[dict[str, object]]:
        wanted: list[dict[str, object]] = []
        for number in range(len(self.scenario.connectors)):
            tcp, udp = FIRST_TCP_PORT + number, FIRST_UDP_PORT + number
            wanted += [
                {"id": f"files-{number}", "protocol": "tcp", "listen": f"127.0.0.1:{tcp}"},
                {"id": f"echo-{number}", "protocol": "udp", "listen": f"127.0.0.1:{udp}"},
            ]
        return wanted

    def _add_service_host(self) -> None:
        # One behind each connector instead, in its site.
        pass

    def _join_services(self, uplink: str) -> None:
        del uplink

    def _add_host(self, node_id: str, role: Role, tap: Tap | None = None, nat: NatKind | None = None) -> Host:
        del tap, nat
        self._counts[role] += 1
        if role is Role.INTERMEDIATE:
            number = self._counts[role]
            addresses = [f"192.0.2.{number}", f"2001:db8:ffff::{number}"]
            # Which family a resolver puts first is its own affair.
            first = self.scenario.first_family
            self.network.add_name(
                f"{node_id}.example",
                *sorted(addresses, key=lambda each: TransportAddress(each, 0).family is not first),
            )
            return self.network.host(node_id, *addresses)
        site = self.scenario.sites[node_id]
        place = self.places.get(site.with_node) or self._build(node_id, site)
        self.places[node_id] = place
        self.links.edges[node_id] = place.edges
        addresses = self._addresses(place, site.families, has_nat=bool(place.nats))
        host = self.network.host(node_id, *addresses, uplink=place.lan, skew_s=site.skew_s)
        host.mtu = site.mtu
        self._settle(place, host)
        if role is Role.CONNECTOR:
            service = self.network.host(
                f"{node_id}-service", self._service_address(place.number, site), uplink=place.lan
            )
            place.lan.add(service)
            self.service_hosts[node_id] = service
            self.start_service(node_id)
        return host

    def _build(self, name: str, site: Site) -> Place:
        number = len(self.places) + 1
        lan = Lan(self.network, f"{name}-lan")
        lan.dead = site.dead
        if site.udp_from_s:
            lan.blocks_udp = True
            self.clock.call_at(self.now + site.udp_from_s, lambda: setattr(lan, "blocks_udp", False))
        place = Place(number, lan)
        carrier = self._carrier(site.behind) if site.behind else None
        uplink: Outer | None = carrier
        if carrier is not None:
            outermost = carrier.uplinks[Family.IPV4]
            assert isinstance(outermost, Nat)  # noqa: S101
            place.carrier = outermost
            place.edges.append(outermost.name)
        # The outermost first, since each needs the one further out.
        for level, kind in reversed(list(enumerate(site.nats))):
            is_outermost = uplink is None
            address = f"198.51.100.{number}" if is_outermost else f"100.64.{number}.{level + 1}"
            nat = Nat(self.network, f"{name}-nat{level}", address, kind, uplink)
            place.nats.append(nat)
            if is_outermost:
                place.edges.append(nat.name)
            uplink = nat
        if uplink is not None:
            place.lan.uplinks[Family.IPV4] = uplink
        if site.firewall is not None:
            firewall = Nat(self.network, f"{name}-firewall", "", site.firewall)
            place.lan.uplinks[Family.IPV6] = firewall
            place.firewalls.append(firewall)
            place.edges.append(firewall.name)
        place.edges.append(place.lan.name)
        return place

    def _carrier(self, name: str) -> Lan:
        """The network behind a carrier's NAT."""
        if name not in self.carriers:
            lan = self.carriers[name] = Lan(self.network, f"{name}-lan")
            address = f"198.51.98.{len(self.carriers)}"
            lan.uplinks[Family.IPV4] = Nat(self.network, name, address, self.scenario.carriers[name])
        return self.carriers[name]

    @staticmethod
    def _addresses(place: Place, families: Iterable[Family], *, has_nat: bool) -> list[str]:
        place.hosts += 1
        found = []
        for family in families:
            if family is Family.IPV6:
                found.append(f"2001:db8:{place.number:x}::{place.hosts:x}")
            elif has_nat and place.nats[-1].kind.is_translating:
                found.append(f"10.{place.number}.0.{place.hosts}")
            elif place.carrier is not None:
                found.append(f"100.64.{place.number}.{100 + place.hosts}")
            else:
                found.append(f"198.51.{100 + place.number}.{place.hosts}")
        return found

    def _settle(self, place: Place, host: Host, addresses: Iterable[str] | None = None) -> None:
        """Let packets for the host find it, at all its addresses or at those that are new."""
        place.lan.add(host)
        for address in host.addresses if addresses is None else addresses:
            family = Family.IPV6 if ":" in address else Family.IPV4
            uplink = place.lan.uplinks.get(family)
            if isinstance(uplink, Nat | Lan):
                uplink.add_inside(address, place.lan)
            else:
                self.network.attach(place.lan, [address])

    def _peer_sections(self) -> dict[str, Any]:
        sections = super()._peer_sections()
        if self.scenario.has_grpc:
            sections["signaling"] = {"transport": "grpc"}
        sections["intermediates"] = [
            {"id": each.id, "quic": f"{each.id}.example:{QUIC_PORT}", "grpc": f"{each.id}.example:4434"}
            for each in self.intermediates()
        ]
        return sections

    def _observer(self, daemon: Daemon) -> Callable[[Message], None]:
        observe = super()._observer(daemon)

        def observe_all(message: Message) -> None:
            observe(message)
            self._on_message(daemon, message)

        return observe_all
