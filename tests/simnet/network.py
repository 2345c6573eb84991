"""A simulated network: hosts with addresses, links between them, one clock, one seed.

The same seed gives the same run, event for event. Packets are recorded in `trace`, and a wait that fails
prints the seed and the last of them. A node (host, and later a NAT) sits between the network and whatever is
behind it by owning addresses and being some host's `uplink`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from tests.simnet.clock import VirtualClock
from tests.simnet.link import Link, LinkConfig, Packet
from tests.simnet.sim_io import Host
from ztna.address import TransportAddress

# Enough for the tail of any failing run; a long one must not fill the memory.
MAX_TRACE_ENTRIES: Final = 100_000
TIMELINE_ENTRIES: Final = 60


class Node(Protocol):
    """Whatever takes packets: the network, a host, a NAT between them."""

    @property
    def name(self) -> str:
        """Unique; stands in the trace."""

    def forward(self, packet: Packet) -> None:
        """Take `packet` one step further: route it, translate it or deliver it."""

    def refused(self, packet: Packet, mtu: int) -> None:
        """Hear that a packet which was sent from here is too large for a link that carries `mtu` bytes."""


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """What happened to one packet, and when (virtual seconds)."""

    time: float
    source: TransportAddress
    destination: TransportAddress
    size: int
    what: str

    def __str__(self) -> str:
        return f"{self.time:12.6f}  {self.source} -> {self.destination}  {self.size:5d} B  {self.what}"


class WaitTimeoutError(AssertionError):
    """What a test waited for did not happen in time."""


class VirtualNetwork:
    """The core of the network, itself a node: routes by destination address, one link per direction."""

    name = "network"

    def __init__(
        self, seed: int, default_link: LinkConfig | None = None, clock: VirtualClock | None = None
    ) -> None:
        """Links are `default_link` until `set_link` says otherwise."""
        self.seed = seed
        self.clock = clock or VirtualClock()
        self.trace: deque[TraceEntry] = deque(maxlen=MAX_TRACE_ENTRIES)
        self.names: dict[str, list[str]] = {}
        self._default_link = default_link or LinkConfig()
        self._nodes: dict[str, Node] = {}  # by address
        self._hosts: dict[str, Host] = {}
        self._configs: dict[tuple[str, str], LinkConfig] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def host(self, name: str, *addresses: str, uplink: Node | None = None, skew_s: float = 0.0) -> Host:
        """Add a host with IP literals; its packets go to `uplink` (the network itself by default).

        `skew_s` is what its wall clock is ahead.
        """
        if name in self._hosts:
            raise ValueError(f"there is a host {name!r} already")
        host = Host(self, name, list(addresses), uplink=uplink or self, skew_s=skew_s)
        if uplink is None:
            self.attach(host, addresses)
        self._hosts[name] = host
        return host

    def attach(self, node: Node, addresses: Iterable[str]) -> None:
        """Route `addresses` to `node`."""
        for address in addresses:
            if address in self._nodes:
                raise ValueError(f"{address} belongs to {self._nodes[address].name} already")
            self._nodes[address] = node

    def detach(self, addresses: Iterable[str]) -> None:
        """Route `addresses` to nobody."""
        for address in addresses:
            self._nodes.pop(address, None)

    def add_name(self, name: str, *addresses: str) -> None:
        """Let every host resolve `name` to `addresses`, in this order."""
        self.names[name] = list(addresses)

    def derive_random(self, purpose: str) -> random.Random:
        """A source of chance of its own, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed}/{purpose}")

    def set_link(self, one: str, other: str, config: LinkConfig, *, both_ways: bool = True) -> None:
        """Set how packets go from node `one` to node `other`, and back if `both_ways`."""
        self._configs[one, other] = config
        if (one, other) in self._links:
            self._links[one, other].configure(config)
        if both_ways:
            self.set_link(other, one, config, both_ways=False)

    def forward(self, packet: Packet) -> None:
        """Route by address; a packet to nobody is lost."""
        source = self._nodes.get(packet.source.host)
        destination = self._nodes.get(packet.destination.host)
        if source is None or destination is None:
            self.record(packet, "lost, no route")
            return
        self._link(source, destination).carry(packet)

    def inject(self, packet: Packet, sender: Node) -> None:
        """Carry a packet from `sender`, whose source is somebody else's address.

        It does not come back to where its source is: whoever routes for both takes it for none of its own.
        """
        destination = self._nodes.get(packet.destination.host)
        if destination is None or self._nodes.get(packet.source.host) is destination:
            self.record(packet, "lost, forged, no route")
            return
        self._link(sender, destination).carry(packet)

    def refused(self, packet: Packet, mtu: int) -> None:
        """The network itself sends nothing."""

    def record(self, packet: Packet, what: str) -> None:
        """Add to the trace."""
        entry = TraceEntry(
            self.clock.time(), packet.source, packet.destination, packet.size, f"{packet} {what}"
        )
        self.trace.append(entry)

    def timeline(self, entries: int = TIMELINE_ENTRIES) -> str:
        """The seed and the last packets, one a line."""
        last = list(self.trace)[-entries:]
        return "\n".join([f"seed {self.seed}, now {self.clock.time():.6f}", *map(str, last)])

    def run_until(self, predicate: Callable[[], bool], timeout_s: float, what: str = "") -> None:
        """Run until `predicate` holds; raises `WaitTimeoutError` with the timeline after `timeout_s`."""
        if not self.clock.run_until(predicate, timeout_s):
            raise WaitTimeoutError(
                f"{what or 'the condition'} did not hold within {timeout_s} s\n{self.timeline()}"
            )

    def run_for(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.clock.run_for(seconds)

    def crash(self, host: Host, *, resets: bool = False) -> None:
        """End every process of `host` at once: nothing of it runs any more, and its sockets are gone.

        Silently, as when the power fails, or with a reset on every TCP connection, as the kernel does for a
        killed process. `host.io()` starts the next process.
        """
        host.crash(resets=resets)

    def _link(self, source: Node, destination: Node) -> Link:
        key = (source.name, destination.name)
        link = self._links.get(key)
        if link is None:
            config = self._configs.get(key, self._default_link)
            chance = self.derive_random(f"link {source.name} -> {destination.name}")
            link = Link(self.clock, chance, config, destination.forward, self.record, source.refused)
            self._links[key] = link
        return link
