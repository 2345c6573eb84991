"""NATs and stateful firewalls of the simulated network, by the terms of RFC 4787.

A `Nat` owns an external address and stands between the network (or another NAT) and the hosts that have it as
their uplink. Mapping, filtering, port allocation, hairpinning and lifetime are independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from tests.simnet.link import Packet
from ztna.address import TransportAddress
from ztna.nat.behaviour import Dependence, NatBehaviour, PortAllocation

if TYPE_CHECKING:
    from tests.simnet.network import Node, VirtualNetwork

FIRST_PORT: Final = 40_000
LAST_PORT: Final = 65_535
DEFAULT_LIFETIME_S: Final = 30.0
"""Of a mapping without traffic: what Linux does to a UDP flow that has seen one exchange."""

EI: Final = Dependence.ENDPOINT_INDEPENDENT
AD: Final = Dependence.ADDRESS_DEPENDENT
APD: Final = Dependence.ADDRESS_AND_PORT_DEPENDENT


@dataclass(frozen=True, slots=True)
class NatKind:
    """How a NAT behaves; with `is_translating` False it is a firewall that only filters."""

    mapping: Dependence = EI
    filtering: Dependence = APD
    allocation: PortAllocation = PortAllocation.PRESERVED
    is_hairpinning: bool = False
    is_translating: bool = True
    is_udp_blocked: bool = False
    lifetime_s: float = DEFAULT_LIFETIME_S

    @property
    def behaviour(self) -> NatBehaviour:
        """The same as a node would describe it."""
        return NatBehaviour(
            is_known=not self.is_udp_blocked,
            has_nat=self.is_translating,
            mapping=self.mapping,
            filtering=self.filtering,
            is_udp_blocked=self.is_udp_blocked,
        )


FULL_CONE: Final = NatKind(filtering=EI)
ADDRESS_RESTRICTED: Final = NatKind(filtering=AD)
PORT_RESTRICTED: Final = NatKind()
SYMMETRIC_RANDOM: Final = NatKind(mapping=APD, allocation=PortAllocation.RANDOM)
SYMMETRIC_SEQUENTIAL: Final = NatKind(mapping=APD, allocation=PortAllocation.SEQUENTIAL)
ADDRESS_DEPENDENT_MAPPING: Final = NatKind(mapping=AD, allocation=PortAllocation.RANDOM)
FIREWALL: Final = NatKind(is_translating=False)
UDP_BLOCKED: Final = NatKind(is_udp_blocked=True)


class Outer(Protocol):
    """What NATs may stand behind: another one, or the network between them and that one."""

    name: str

    def add_inside(self, address: str, node: Node) -> None:
        """Deliver packets for `address` to `node`."""

    def forward(self, packet: Packet) -> None:
        """Take `packet` one step further."""

    def refused(self, packet: Packet, mtu: int) -> None:
        """Hear that a packet which was sent from here is too large."""


_Key = tuple[bool, TransportAddress, object]


@dataclass(slots=True, eq=False)
class _Mapping:
    inside: TransportAddress
    external: TransportAddress
    key: _Key
    used_at: float
    sent_to: dict[TransportAddress, float] = field(default_factory=dict)
    """When the inside last sent to each remote address: what the filter goes by."""


class Nat:
    """One NAT; a node of the network."""

    def __init__(
        self, network: VirtualNetwork, name: str, address: str, kind: NatKind, uplink: Outer | None = None
    ) -> None:
        """`address` is the external one (unused by a firewall); `uplink` is further out."""
        self.network = network
        self.name = name
        self.address = address
        self.kind = kind
        self.drops: Callable[[Packet, bool], bool] = lambda _packet, _is_outbound: False
        """Silently drops what it says True to; the second argument tells whether a packet goes out."""
        self._outer = uplink
        self._uplink: Node = uplink or network
        self._inside: dict[str, Node] = {}
        self._by_key: dict[_Key, _Mapping] = {}
        self._by_external: dict[tuple[bool, TransportAddress], _Mapping] = {}
        self._chance = network.derive_random(f"nat {name}")
        self._next_port = FIRST_PORT
        self._offset = 0
        if kind.is_translating:
            self._announce(address)

    def add_inside(self, address: str, node: Node) -> None:
        """Deliver packets for `address` to `node`, which must have this NAT as its uplink."""
        self._inside[address] = node
        if not self.kind.is_translating:
            self._announce(address)

    def rebind(self) -> None:
        """Forget every mapping of UDP, and give the next ones other ports.

        Connections of TCP are kept: the services of a connector stand behind the same NAT in truth.
        """
        self._by_key = {key: each for key, each in self._by_key.items() if key[0]}
        self._by_external = {key: each for key, each in self._by_external.items() if key[0]}
        self._offset += 101

    def move(self, address: str) -> None:
        """Take another external address; mappings are forgotten with the former one."""
        if self._uplink is self.network:
            self.network.detach([self.address])
        self.address = address
        self._announce(address)
        self.rebind()

    def mappings(self) -> dict[TransportAddress, TransportAddress]:
        """External by inside address, of UDP mappings that live; the last one where there are several."""
        return {
            each.inside: each.external
            for each in self._by_key.values()
            if not each.key[0] and self._is_alive(each)
        }

    def forward(self, packet: Packet) -> None:
        """Translate and filter one packet."""
        if packet.source.host in self._inside:
            self._outbound(packet)
        else:
            self._inbound(packet)

    def refused(self, packet: Packet, mtu: int) -> None:
        """Translate an ICMP error back (RFC 5508 §4)."""
        mapping = self._by_external.get((packet.flag is not None, packet.source))
        if mapping is not None:
            self._inside[mapping.inside.host].refused(_with(packet, source=mapping.inside), mtu)

    def _announce(self, address: str) -> None:
        if self._outer is None:
            self.network.attach(self, [address])
        else:
            self._outer.add_inside(address, self)

    def _outbound(self, packet: Packet) -> None:
        if self.kind.is_udp_blocked and packet.flag is None:
            self._lost(packet, "UDP is blocked")
            return
        if self.drops(packet, True):
            self._lost(packet, "dropped on purpose")
            return
        now = self.network.clock.time()
        mapping = self._mapping_for(packet, now)
        mapping.used_at = now
        mapping.sent_to[packet.destination] = now
        translated = _with(packet, source=mapping.external)
        if packet.destination.host == self.address and self.kind.is_translating:
            if self.kind.is_hairpinning:
                self._inbound(translated)
            else:
                self._lost(packet, "no hairpinning")
            return
        self._uplink.forward(translated)

    def _inbound(self, packet: Packet) -> None:
        if self.drops(packet, False):
            self._lost(packet, "dropped on purpose")
            return
        mapping = self._by_external.get((packet.flag is not None, packet.destination))
        if mapping is None or not self._is_alive(mapping):
            self._lost(packet, "no mapping")
            return
        if not self._passes(mapping, packet):
            self._lost(packet, "filtered")
            return
        mapping.used_at = self.network.clock.time()
        self._inside[mapping.inside.host].forward(_with(packet, destination=mapping.inside))

    def _passes(self, mapping: _Mapping, packet: Packet) -> bool:
        filtering = APD if packet.flag is not None else self.kind.filtering
        since = self.network.clock.time() - self.kind.lifetime_s
        if filtering is EI:
            return True
        if filtering is AD:
            return any(
                remote.host == packet.source.host and at >= since for remote, at in mapping.sent_to.items()
            )
        at = mapping.sent_to.get(packet.source)
        if at is None or at < since:
            return False
        mapping.sent_to[packet.source] = self.network.clock.time()
        return True

    def _mapping_for(self, packet: Packet, now: float) -> _Mapping:
        is_tcp = packet.flag is not None
        destination: object = None
        if is_tcp or self.kind.mapping is APD:
            destination = packet.destination
        elif self.kind.mapping is AD:
            destination = packet.destination.host
        key = (is_tcp, packet.source, destination)
        mapping = self._by_key.get(key)
        if mapping is not None and self._is_alive(mapping):
            return mapping
        if mapping is not None:
            del self._by_external[is_tcp, mapping.external]
        external = self._allocate(packet.source, is_tcp=is_tcp)
        mapping = _Mapping(packet.source, external, key, now)
        self._by_key[key] = self._by_external[is_tcp, external] = mapping
        return mapping

    def _allocate(self, inside: TransportAddress, *, is_tcp: bool) -> TransportAddress:
        if not self.kind.is_translating:
            return inside
        port = inside.port + self._offset
        if port > LAST_PORT:
            port -= LAST_PORT - FIRST_PORT
        if self.kind.allocation is PortAllocation.RANDOM:
            port = self._chance.randint(FIRST_PORT, LAST_PORT)
        elif self.kind.allocation is PortAllocation.SEQUENTIAL:
            port = self._next_port + self._offset
            self._next_port += 1
        while (is_tcp, TransportAddress(self.address, port)) in self._by_external:
            port = port + 1 if port < LAST_PORT else FIRST_PORT
        return TransportAddress(self.address, port)

    def _is_alive(self, mapping: _Mapping) -> bool:
        is_tcp = mapping.key[0]
        return is_tcp or self.network.clock.time() - mapping.used_at <= self.kind.lifetime_s

    def _lost(self, packet: Packet, why: str) -> None:
        self.network.record(packet, f"lost at {self.name}, {why}")


def _with(
    packet: Packet, source: TransportAddress | None = None, destination: TransportAddress | None = None
) -> Packet:
    return Packet(
        source or packet.source,
        destination or packet.destination,
        packet.payload,
        packet.flag,
        packet.acked_bytes,
    )
