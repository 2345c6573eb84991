"""From a plan to hosts, cables, addresses, routes and routers: pure data that `lab.py` builds.

    a ── nat-a ── [cgnat-a ──] core ── mid          (delay, loss and rate are made at the core)
                               core ── [mid2]
                               core ── [cgnat-b ──] nat-b ── b

Addresses are documentation prefixes where they stand for public ones (RFC 5737, RFC 3849), private (RFC
1918) on a site, shared (RFC 6598) between two NATs. Uplink n has 198.51.100.16n/28 at the core, 10.n.0.0/24
or (without a NAT) 192.0.2.16n/28 at the site, and 100.64.n.0/24 between two NATs.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from tools.natlab.kinds import Kind
from tools.natlab.plan import Link, Plan, Provider, Site, Uplink

CORE: Final = "core"
INTERMEDIATE: Final = "mid"
INTERMEDIATE_ADDRESS: Final = "203.0.113.10"
# For the tests of RFC 5780.
INTERMEDIATE_SECOND_ADDRESS: Final = "203.0.113.11"
INTERMEDIATE_ADDRESS_V6: Final = "2001:db8:ffff::10"
INTERMEDIATE_SECOND_ADDRESS_V6: Final = "2001:db8:ffff::11"
SECOND_INTERMEDIATE: Final = "mid2"
SECOND_INTERMEDIATE_ADDRESS: Final = "203.0.113.140"
SECOND_INTERMEDIATE_ADDRESS_V6: Final = "2001:db8:fffe::10"
INTERMEDIATE_ADDRESSES: Final = {
    INTERMEDIATE: (INTERMEDIATE_ADDRESS, INTERMEDIATE_ADDRESS_V6),
    SECOND_INTERMEDIATE: (SECOND_INTERMEDIATE_ADDRESS, SECOND_INTERMEDIATE_ADDRESS_V6),
}
"""Of each family the one that its daemon listens at."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a cable."""

    host: str
    name: str
    addresses: tuple[str, ...] = ()  # with prefix length
    # Down and without addresses, until a hand-over brings it up.
    is_standby: bool = False


@dataclass(frozen=True, slots=True)
class Router:
    """What the NAT or firewall on a host has to do."""

    host: str
    kind: Kind
    wan: str
    lans: tuple[tuple[str, str], ...]  # interface, IPv4 prefix behind it
    external: str  # its own address on the outside
    kind_v6: Kind | None = None
    has_hairpin: bool = False
    mapping_lifetime_s: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """One uplink of a site, as its host sees it."""

    interface: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    routers: tuple[str, ...]  # inner first
    external: str  # what the world sees of the site
    link: str


@dataclass(frozen=True, slots=True)
class LinkPoint:
    """Where a link is made: between the core and the host next to it."""

    link: Link
    core_interface: str
    host: str
    interface: str


@dataclass
class Topology:
    """Everything to build."""

    cables: list[tuple[Interface, Interface]] = field(default_factory=list)
    routes: dict[str, list[str]] = field(default_factory=dict)  # by host; arguments of `ip route add`
    routers: dict[str, Router] = field(default_factory=dict)
    ways: dict[str, list[Way]] = field(default_factory=dict)  # by site
    links: dict[str, LinkPoint] = field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        """Every host, in the order of their building."""
        return list(dict.fromkeys(end.host for cable in self.cables for end in cable))


def lay_out(plan: Plan) -> Topology:
    """The topology of a plan."""
    return _Layout(plan).topology


def wan_address(number: int, host: int) -> str:
    """An address of the link between the core and uplink `number`."""
    return str(ipaddress.ip_address("198.51.100.0") + 16 * number + host)


class _Layout:
    def __init__(self, plan: Plan) -> None:
        self.topology = Topology()
        self._plan = plan
        self._number = 0
        self._add_intermediate(
            INTERMEDIATE,
            plan.intermediate,
            "203.0.113.0/25",
            INTERMEDIATE_ADDRESS,
            INTERMEDIATE_SECOND_ADDRESS,
            INTERMEDIATE_ADDRESS_V6,
            INTERMEDIATE_SECOND_ADDRESS_V6,
        )
        if plan.second_intermediate is not None:
            self._add_intermediate(
                SECOND_INTERMEDIATE,
                plan.second_intermediate,
                "203.0.113.128/25",
                SECOND_INTERMEDIATE_ADDRESS,
                SECOND_INTERMEDIATE_ADDRESS_V6,
            )
        self._provider_numbers = {}
        self._provider_lans: dict[str, list[tuple[str, str]]] = {}
        for provider in plan.providers:
            self._provider_numbers[provider.name] = self._next()
            self._provider_lans[provider.name] = []
        for site in plan.sites:
            for index, uplink in enumerate(site.uplinks):
                self._add_uplink(site, uplink, index)
        for provider in plan.providers:
            self._add_provider(provider)
        # What has no route disappears, as it does in the world: private addresses above all.
        self._route(CORE, "blackhole default")
        if plan.speaks_ipv6:
            self._route(CORE, "blackhole ::/0")

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _route(self, host: str, route: str) -> None:
        self.topology.routes.setdefault(host, []).append(f"route add {route}")

    def _add_intermediate(self, host: str, link: Link, network: str, *addresses: str) -> None:
        """On a network of its own: the first address after a prefix is the core's."""
        theirs, ours = [], []
        for prefix in (network, *((f"{addresses[-1]}/64",) if self._plan.speaks_ipv6 else ())):
            interface = ipaddress.ip_interface(prefix)
            gateway = interface.network[1]
            theirs.append(f"{gateway}/{interface.network.prefixlen}")
            self._route(host, f"default via {gateway}")
            ours += [
                f"{address}/{interface.network.prefixlen}"
                for address in addresses
                if ipaddress.ip_address(address) in interface.network
            ]
        self.topology.cables.append(
            (Interface(CORE, f"to-{host}", tuple(theirs)), Interface(host, "eth0", tuple(ours)))
        )
        self.topology.links[host] = LinkPoint(link, f"to-{host}", host, "eth0")

    def _add_uplink(self, site: Site, uplink: Uplink, index: int) -> None:
        number = self._next()
        name = f"{site.name}{index + 1 if index else ''}"
        router, inner = f"nat-{name}", uplink.access.inner
        if inner.translates:
            network = ipaddress.ip_network(f"10.{number}.0.0/24")
        else:
            network = ipaddress.ip_network((int(ipaddress.ip_address("192.0.2.0")) + 16 * number, 28))
        gateway, host = str(network[1]), str(network[2])
        has_v4, has_v6 = inner.behaviour.family == 4, site.speaks_ipv6
        lan = [f"{gateway}/{network.prefixlen}"] if has_v4 else []
        addresses = [f"{host}/{network.prefixlen}"] if has_v4 else []
        gateways = [gateway] if has_v4 else []
        if has_v6:
            lan.append(f"2001:db8:{number}::1/64")
            addresses.append(f"2001:db8:{number}::2/64")
            gateways.append(f"2001:db8:{number}::1")
        interface = f"eth{index}"
        self.topology.cables.append(
            (
                Interface(site.name, interface, tuple(addresses), is_standby=index > 0),
                Interface(router, "lan", tuple(lan)),
            )
        )
        if index == 0:
            for via in gateways:
                self._route(site.name, f"default via {via}")
        routers = [router]
        external = self._add_outside(site, uplink, name, number, routers)
        self.topology.routers[router] = Router(
            router,
            inner if has_v4 else Kind.OPEN,
            "wan",
            (("lan", str(network)),),
            external,
            kind_v6=site.ipv6 or (inner if not has_v4 else None),
            has_hairpin=site.has_hairpin,
            mapping_lifetime_s=site.mapping_lifetime_s,
        )
        outermost = self._outermost_external(site, uplink, number, external)
        if not inner.translates and has_v4:
            self._route(CORE, f"{network} via {external}")
            outermost = host
        if has_v6:
            self._route(CORE, f"2001:db8:{number}::/64 via 2001:db8:{0x1000 + number:x}::2")
            outermost = outermost if has_v4 else f"2001:db8:{number}::2"
        way = Way(
            interface, tuple(addresses), tuple(gateways), tuple(routers), outermost, site.provider or name
        )
        self.topology.ways.setdefault(site.name, []).append(way)

    def _outermost_external(self, site: Site, uplink: Uplink, number: int, external: str) -> str:
        if site.provider is not None:
            return wan_address(self._provider_numbers[site.provider], 2)
        return wan_address(number, 2) if uplink.access.outer is not None else external

    def _add_outside(self, site: Site, uplink: Uplink, name: str, number: int, routers: list[str]) -> str:
        """What is between the site's own router and the core; returns that router's own outside address."""
        router = routers[0]
        if uplink.access.outer is None and site.provider is None:
            self._join_core(router, name, number, uplink.link, has_v6=site.speaks_ipv6)
            return wan_address(number, 2)
        middle = f"100.64.{number}"
        if site.provider is not None:
            carrier, lan = f"cgnat-{site.provider}", f"lan-{name}"
            self._provider_lans[site.provider].append((lan, f"{middle}.0/24"))
        else:
            carrier, lan = f"cgnat-{name}", "lan"
        self.topology.cables.append(
            (
                Interface(router, "wan", (f"{middle}.2/24",)),
                Interface(carrier, lan, (f"{middle}.1/24",)),
            )
        )
        self._route(router, f"default via {middle}.1")
        if site.provider is None and uplink.access.outer is not None:
            self._join_core(carrier, name, number, uplink.link)
            self.topology.routers[carrier] = Router(
                carrier,
                uplink.access.outer,
                "wan",
                ((lan, f"{middle}.0/24"),),
                wan_address(number, 2),
                has_hairpin=site.has_hairpin,
                mapping_lifetime_s=site.mapping_lifetime_s,
            )
        routers.append(carrier)
        return f"{middle}.2"

    def _add_provider(self, provider: Provider) -> None:
        number = self._provider_numbers[provider.name]
        carrier = f"cgnat-{provider.name}"
        self._join_core(carrier, provider.name, number, provider.link)
        self.topology.routers[carrier] = Router(
            carrier,
            provider.kind,
            "wan",
            tuple(self._provider_lans[provider.name]),
            wan_address(number, 2),
            has_hairpin=provider.has_hairpin,
        )

    def _join_core(self, host: str, link_name: str, number: int, link: Link, *, has_v6: bool = False) -> None:
        theirs, ours = [f"{wan_address(number, 1)}/28"], [f"{wan_address(number, 2)}/28"]
        self._route(host, f"default via {wan_address(number, 1)}")
        if has_v6:
            prefix = f"2001:db8:{0x1000 + number:x}:"
            theirs.append(f"{prefix}:1/64")
            ours.append(f"{prefix}:2/64")
            self._route(host, f"default via {prefix}:1")
        self.topology.cables.append(
            (Interface(CORE, f"to-{link_name}", tuple(theirs)), Interface(host, "wan", tuple(ours)))
        )
        self.topology.links[link_name] = LinkPoint(link, f"to-{link_name}", host, "wan")
