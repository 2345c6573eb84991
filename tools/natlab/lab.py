"""A lab: the hosts, links and NATs of a plan, built from network namespaces, and what can be done to them.

    with Lab(pair("eim-apdf", "apdm-random", delay_ms=20)) as lab:
        lab.run("a", ["ip", "addr"])
        lab.set_link("a", Link.parse("loss=0.05", lab.link("a")))
        lab.rebind("b")

Hosts: the sites by name, `mid` (the intermediate; `mid2`, if the plan has a second one), `core`, and the
routers `nat-SITE` and `cgnat-SITE`.
There is no way from any of them to this machine's network. Everything is gone when the lab is closed, and
as well when its owner ends in whatever way (`keeper.py`).
"""

from __future__ import annotations

import enum
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Self

from tools.natlab import conntrack, rules
from tools.natlab.foreign_process import ForeignProcess
from tools.natlab.namespaces import LabError, Namespaces
from tools.natlab.plan import Direction, Link, Plan
from tools.natlab.topology import CORE, INTERMEDIATE, INTERMEDIATE_ADDRESSES, Interface, Way, lay_out

DELAYD: Final = Path(__file__).with_name("delayd.py")
FIRST_QUEUE: Final = 10
# A burst that tbf lets pass at once, and how long it lets a packet wait before it drops.
RATE_BURST: Final = "16kb"
RATE_LATENCY: Final = "100ms"

_V4_SYSCTLS: Final = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


class Cut(enum.Enum):
    """Which way a cut is: `UP` from the site, `DOWN` towards it."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"


class Handover(enum.Enum):
    """How a site leaves its uplink.

    `HARD`: address gone, interface down, and only then the other one up. `SOFT`: the default route moves;
    interface and address of the former uplink stay.
    """

    HARD = "hard"
    SOFT = "soft"


@dataclass
class _NatState:
    incarnation: rules.Incarnation
    # Rules of `cut`, by the site they belong to.
    drops: dict[str, list[str]]


class Lab:
    """A context manager that builds a plan and ends it; safe for use from several threads."""

    def __init__(self, plan: Plan) -> None:
        """Build everything. Raises `LabError`; then nothing is left."""
        self.plan = plan
        self._topology = lay_out(plan)
        self._links = {name: point.link for name, point in self._topology.links.items()}
        self._nats = {name: _NatState(rules.Incarnation(), {}) for name in self._topology.routers}
        self._active = dict.fromkeys((site.name for site in plan.sites), 0)
        self._chance = random.SystemRandom()
        self._lock = threading.RLock()
        self._delayd: ForeignProcess | None = None
        self._delayd_input: socket.socket | None = None
        self._namespaces = Namespaces()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process in the lab and the lab itself; harmless when repeated."""
        self._namespaces.close()
        if self._delayd_input is not None:
            self._delayd_input.close()
        if self._delayd is not None and self._delayd.stdout is not None:
            self._delayd.stdout.close()

    @property
    def hosts(self) -> list[str]:
        """Every host."""
        return self._topology.hosts

    @property
    def keeper_pid(self) -> int:
        """The process whose end is the end of the lab."""
        return self._namespaces.keeper_pid

    def namespace(self, host: str) -> int:
        """A descriptor of a host's network namespace, for whoever may enter it; the caller closes it."""
        self._check_host(host)
        return self._namespaces.namespace(host)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        text: str = "",
        timeout_s: float = 30.0,
        check: bool = True,
        env: MappingType[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, and capture what it prints. Raises `LabError`."""
        self._check_host(host)
        return self._namespaces.run(host, argv, text=text, timeout_s=timeout_s, check=check, env=env)

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: MappingType[str, str] | None = None,
        cwd: str | None = None,
    ) -> ForeignProcess:
        """Start a command on a host; it ends with the lab at the latest. Raises `LabError`."""
        self._check_host(host)
        return self._namespaces.popen(host, argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd)

    def socket(self, host: str, kind: int = socket.SOCK_DGRAM, family: int = socket.AF_INET) -> socket.socket:
        """A socket of this process whose packets leave from `host`; closed with the lab at the latest."""
        self._check_host(host)
        return self._namespaces.socket(host, family, kind)

    def link(self, name: str) -> Link:
        """The link of a site (`a`), of its second uplink (`a2`), of a provider, of `mid` or `mid2`."""
        if name not in self._links:
            raise LabError(f"no link {name}; there are {', '.join(self._links)}", LabError.USAGE)
        return self._links[name]

    def set_link(self, name: str, link: Link) -> None:
        """Change a link under whatever runs over it; in force on return."""
        with self._lock:
            self.link(name)
            self._links[name] = link
            self._apply_link(name)
            self._apply_queues()

    def address(self, host: str, family: Literal[4, 6] = 4) -> str:
        """The address that a site or the intermediate uses now."""
        if host in self._active:
            addresses = [text.partition("/")[0] for text in self._way(host).addresses]
        else:
            self._check_host(host)
            ends = [end for cable in self._topology.cables for end in cable if end.host == host]
            addresses = [text.partition("/")[0] for end in ends for text in end.addresses]
        for address in addresses:
            if (":" in address) == (family == 6):
                return address
        raise LabError(f"{host} has no IPv{family} address")

    def external_address(self, site: str) -> str:
        """What the world sees of a site now."""
        return self._way(site).external

    def rebind(self, site: str, layer: Literal["outer", "inner"] = "outer") -> None:
        """Have a NAT forget its mappings, and give the next ones other ports, as after a restart.

        A firewall has no ports to give; it forgets whom it let through.
        """
        with self._lock:
            routers = self._way(site).routers
            router = routers[-1 if layer == "outer" else 0]
            state = self._nats[router]
            state.incarnation = rules.Incarnation(
                state.incarnation.number + 1, self._chance.getrandbits(31) | 1
            )
            self._load_rules(router)
            # Rules first: a flow that lives on must not get its old mapping back in between.
            self._namespaces.run(router, ["conntrack", "-F"])

    def cut(
        self,
        site: str,
        direction: Cut = Cut.BOTH,
        *,
        towards: str | None = None,
        protocol: Literal["udp", "tcp"] | None = None,
    ) -> None:
        """Drop traffic in a site's own NAT, silently, as a failure in the network would.

        `towards` (a site, `mid`, `mid2`) restricts it to that one's address; cuts of a site add up until
        `heal`.
        """
        remote = None
        if towards is not None:
            remote = self.address(towards) if towards not in self._active else self.external_address(towards)
        drops = []
        if direction is not Cut.DOWN:
            drops.append(rules.forward_match("lan", None, remote, protocol))
        if direction is not Cut.UP:
            drops.append(rules.forward_match("wan", remote, None, protocol))
        with self._lock:
            router = self._way(site).routers[0]
            self._nats[router].drops.setdefault(site, []).extend(drops)
            self._load_cuts(router)

    def heal(self, site: str) -> None:
        """Undo every cut of a site, on all its uplinks."""
        with self._lock:
            for way in self._ways(site):
                router = way.routers[0]
                if self._nats[router].drops.pop(site, None) is not None:
                    self._load_cuts(router)

    def handover(self, site: str, how: Handover) -> None:
        """Move a site to its other uplink. Raises `LabError` when it has only one."""
        with self._lock:
            ways = self._ways(site)
            if len(ways) < 2:
                raise LabError(f"site {site} has one uplink; a hand-over needs two")
            former, way = ways[self._active[site]], ways[1 - self._active[site]]
            lines = []
            if how is Handover.HARD:
                lines += [f"addr flush dev {former.interface}", f"link set {former.interface} down"]
            lines += [f"addr replace {address} dev {way.interface}" for address in way.addresses]
            lines.append(f"link set {way.interface} up")
            lines += [f"route replace default via {gateway}" for gateway in way.gateways]
            self._ip(site, lines)
            self._active[site] = 1 - self._active[site]

    def mappings(self, site: str, layer: Literal["outer", "inner"] = "outer") -> list[conntrack.Mapping]:
        """What the NAT of a site has in its table now."""
        routers = self._way(site).routers
        router = self._topology.routers[routers[-1 if layer == "outer" else 0]]
        prefixes = [prefix for _, prefix in router.lans]
        # What the inner NAT sends comes from its address, of which the outer one knows nothing else.
        return conntrack.parse(self._namespaces.run(router.host, ["conntrack", "-L"]).stdout, prefixes)

    def show(self) -> dict[str, Any]:
        """The lab as plain values: hosts, sites with their addresses and mappings, links."""
        return {
            "hosts": self.hosts,
            "intermediate": self._intermediate_as_json(INTERMEDIATE),
            "intermediates": [self._intermediate_as_json(host) for host in self._intermediates],
            "sites": [self._site_as_json(site.name) for site in self.plan.sites],
            "links": {name: link_as_json(link) for name, link in self._links.items()},
        }

    @property
    def _intermediates(self) -> list[str]:
        return [host for host in INTERMEDIATE_ADDRESSES if host in self.hosts]

    def _intermediate_as_json(self, host: str) -> dict[str, Any]:
        return {"host": host, "address": self.address(host)}

    def _site_as_json(self, name: str) -> dict[str, Any]:
        way = self._way(name)
        site = self.plan.site(name)
        return {
            "name": name,
            "access": str(site.uplinks[self._active[name]].access),
            "uplink": self._active[name] + 1,
            "uplinks": len(site.uplinks),
            "addresses": [address.partition("/")[0] for address in way.addresses],
            "external_address": way.external,
            "routers": list(way.routers),
            "is_cut": any(name in self._nats[each.routers[0]].drops for each in self._ways(name)),
            "mappings": [
                {
                    "protocol": mapping.protocol,
                    "inside": str(mapping.inside),
                    "external": str(mapping.external),
                    "remote": str(mapping.remote),
                    "is_answered": mapping.is_answered,
                }
                for mapping in self.mappings(name)
            ],
        }

    def _ways(self, site: str) -> list[Way]:
        if site not in self._topology.ways:
            raise LabError(f"no site {site}; there are {', '.join(self._topology.ways)}", LabError.USAGE)
        return self._topology.ways[site]

    def _way(self, site: str) -> Way:
        return self._ways(site)[self._active[site]]

    def _check_host(self, host: str) -> None:
        if host not in self.hosts:
            raise LabError(f"no host {host}; there are {', '.join(self.hosts)}", LabError.USAGE)

    def _build(self) -> None:
        for host in self.hosts:
            self._add_host(host)
        lines = {host: ["link set lo up"] for host in self.hosts}
        for one, other in self._topology.cables:
            self._add_cable(one, other)
            for end in (one, other):
                if not end.is_standby:
                    lines[end.host] += [f"addr add {address} dev {end.name}" for address in end.addresses]
                    lines[end.host].append(f"link set {end.name} up")
        for host, routes in self._topology.routes.items():
            lines[host] += routes
        for host, batch in lines.items():
            self._ip(host, batch)
        for name in self._topology.routers:
            self._load_rules(name)
        for name, link in self._links.items():
            if link != Link(link.up, link.down) or link.up.rate_mbit or link.down.rate_mbit:
                self._apply_link(name)
        self._apply_queues()

    def _add_host(self, host: str) -> None:
        self._namespaces.add_host(host)
        values = dict(_V4_SYSCTLS)
        forwards = "1" if host == CORE or host in self._topology.routers else "0"
        values["net/ipv4/ip_forward"] = forwards
        if self.plan.speaks_ipv6:
            # Addresses and routes are ours to give, and usable at once.
            values |= {
                "net/ipv6/conf/default/accept_ra": "0",
                "net/ipv6/conf/default/accept_dad": "0",
                "net/ipv6/conf/all/forwarding": forwards,
            }
        else:
            # A second family would be a path around the NATs.
            values |= dict.fromkeys(
                ("net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"), "1"
            )
        self._namespaces.sysctl(host, values)
        router = self._topology.routers.get(host)
        if router is not None and router.mapping_lifetime_s is not None:
            names = ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream")
            lifetime = str(router.mapping_lifetime_s)
            self._namespaces.sysctl(host, {f"net/netfilter/{name}": lifetime for name in names})

    def _add_cable(self, one: Interface, other: Interface) -> None:
        peer = f"{{{other.host}}}"
        command = f"ip link add name {one.name} type veth peer name {other.name} netns".split()
        self._namespaces.run(one.host, [*command, peer], namespaces=[other.host])

    def _ip(self, host: str, lines: Sequence[str]) -> None:
        self._namespaces.run(host, ["ip", "-batch", "-"], text="\n".join(lines) + "\n")

    def _nft(self, host: str, script: str) -> None:
        self._namespaces.run(host, ["nft", "-f", "-"], text=script)

    def _load_rules(self, router: str) -> None:
        self._nft(router, rules.ruleset(self._topology.routers[router], self._nats[router].incarnation))

    def _load_cuts(self, router: str) -> None:
        drops = [rule for each in self._nats[router].drops.values() for rule in each]
        self._nft(router, rules.cut_rules(drops))

    def _apply_link(self, name: str) -> None:
        point, link = self._topology.links[name], self._links[name]
        ends = ((point.host, point.interface, link.up), (CORE, point.core_interface, link.down))
        for host, interface, direction in ends:
            self._ip(host, [f"link set {interface} mtu {link.mtu}"])
            self._limit_rate(host, interface, direction)
        if link.up.rate_mbit or link.down.rate_mbit:
            self._forbid_bursts()

    def _limit_rate(self, host: str, interface: str, direction: Direction) -> None:
        if direction.rate_mbit is not None:
            rate = f"tbf rate {direction.rate_mbit:g}mbit burst {RATE_BURST} latency {RATE_LATENCY}"
            self._namespaces.run(host, f"tc qdisc replace dev {interface} root {rate}".split())
        else:
            # There may be none: that is what is wanted.
            self._namespaces.run(host, f"tc qdisc del dev {interface} root".split(), check=False)

    def _forbid_bursts(self) -> None:
        """Have hosts send single packets: a burst would pass from host to host, and be lost, as one."""
        for cable in self._topology.cables:
            for end in cable:
                if end.host in self._active or end.host in INTERMEDIATE_ADDRESSES:
                    self._ip(end.host, [f"link set {end.name} gso_max_segs 1"])

    def _apply_queues(self) -> None:
        lines, before, after = [], [], []
        for index, (name, point) in enumerate(self._topology.links.items()):
            link, number = self._links[name], FIRST_QUEUE + 2 * index
            for queue, direction in ((number, link.up), (number + 1, link.down)):
                if direction.needs_queue:
                    lines.append(f"{queue} {direction.delay_ms} {direction.jitter_ms} {direction.loss}")
            target = "-j NFQUEUE --queue-bypass --queue-num"
            if link.up.needs_queue:
                before.append(f"-A FORWARD -i {point.core_interface} {target} {number}")
            if link.down.needs_queue:
                after.append(f"-A FORWARD -o {point.core_interface} {target} {number + 1}")
        if not lines and self._delayd is None:
            return
        # First who takes the packets, then the packets.
        self._tell_delayd(lines)
        tables = [("mangle", before), ("filter", after)]
        script = "".join(
            f"*{table}\n:FORWARD ACCEPT [0:0]\n" + "".join(f"{rule}\n" for rule in chain) + "COMMIT\n"
            for table, chain in tables
        )
        for restore in ("iptables-restore", *(["ip6tables-restore"] if self.plan.speaks_ipv6 else [])):
            self._namespaces.run(CORE, [restore], text=script)

    def _tell_delayd(self, lines: list[str]) -> None:
        if self._delayd is None or self._delayd_input is None:
            theirs, ours = socket.socketpair()
            with theirs:
                self._delayd = self._namespaces.popen(
                    CORE,
                    [sys.executable, "-I", str(DELAYD)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                )
            self._delayd_input = ours
        for line in lines:
            self._delayd_input.sendall(f"{line}\n".encode())
            if self._delayd.stdout is None or self._delayd.stdout.readline() != b"ok\n":
                raise LabError(f"the delay daemon did not take {line!r}")


def link_as_json(link: Link) -> dict[str, Any]:
    """A link as plain values."""
    return {
        "up": _direction_as_json(link.up),
        "down": _direction_as_json(link.down),
        "mtu": link.mtu,
    }


def _direction_as_json(direction: Direction) -> dict[str, Any]:
    return {
        "delay_ms": direction.delay_ms,
        "jitter_ms": direction.jitter_ms,
        "loss": direction.loss,
        "rate_mbit": direction.rate_mbit,
    }
