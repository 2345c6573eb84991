"""What one seed stands for: topology, workload and faults, as plain data that can be printed and cut down.

Times are virtual seconds since the daemons were started. Nothing here knows how a scenario is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from tests.simnet.link import LinkConfig
from tests.simnet.nat import NatKind
from ztna.address import Family

MAX_BYTES: Final = 256 * 1024
"""Payload of one scenario: thousands are to run in minutes."""
MAX_SKEW_S: Final = 20.0
"""Of the clocks of sites: so much earlier a certificate ends for some."""
MAX_SECONDS: Final = 60.0
"""Virtual time from the start until everything is closed, where a scenario needs no more (`max_seconds`)."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one node stands.

    Attributes:
        nats: between the node and the network, the innermost first; for IPv4.
        families: that the site has; IPv6 addresses are global, behind `firewall` if there is one.
        firewall: for IPv6.
        behind: the carrier's NAT outside of `nats`, one of the scenario's `carriers`; for IPv4.
        with_node: shares the innermost network, and all NATs, with this node.
        skew_s: what the wall clock is ahead.
    """

    nats: tuple[NatKind, ...] = ()
    families: tuple[Family, ...] = (Family.IPV4,)
    firewall: NatKind | None = None
    with_node: str = ""
    skew_s: float = 0.0
    dead: Family | None = None
    """It has addresses of this family, and no packet of it leaves or comes."""
    mtu: int = 1500
    """Of the node's own interface; what is larger is refused by its kernel at once."""
    udp_from_s: float = 0.0
    """Until so long after the start no UDP passes: TCP is there first."""
    behind: str = ""


@dataclass(frozen=True, slots=True)
class Narrow:
    """The way between two nodes carries no UDP packets of more than `mtu` bytes, in either direction.

    `is_told`: routers say so (ICMP), and kernels refuse such packets from then on; else it is a black hole.
    """

    one: str
    other: str
    mtu: int
    is_told: bool = False


class WorkKind(StrEnum):
    """What an application does."""

    STREAM = "stream"
    DATAGRAMS = "datagrams"


@dataclass(frozen=True, slots=True)
class Work:
    """One application beside an agent.

    Attributes:
        at: when it starts.
        agent, connector: who carries it, and whose service it asks for.
        up, down: bytes of a stream in each direction; datagrams and bytes of each for a flow.
        over_s: the sender spreads its bytes, or datagrams, over so long.
        pause_s: the client reads nothing for so long, once it has a first byte.
        ends_late: the client ends its direction only after the service has.
    """

    at: float
    kind: WorkKind
    agent: str
    connector: str
    up: int
    down: int
    over_s: float = 0.0
    pause_s: float = 0.0
    ends_late: bool = False


class FaultKind(StrEnum):
    """What goes wrong; `target` is a node unless said otherwise."""

    KILL = "kill"
    """The process ends without a goodbye, and another one starts `lasts_s` later."""
    STOP = "stop"
    """It drains, and another one starts `lasts_s` later."""
    FREEZE = "freeze"
    """It gets no processor time for `lasts_s`."""
    CRASH = "crash"
    """The actor `detail` of the node fails."""
    REBIND = "rebind"
    """The node's NATs forget their mappings, and its firewall of IPv6 what it let pass."""
    NEW_ADDRESS = "new_address"
    """The node's outermost NAT is given another address; with `detail` `host` the node itself, in each family
    that no NAT translates."""
    MOVE = "move"
    """The node is on another network, behind the NAT `detail`; `/both` and `/ipv6` behind that tell of its
    families, a firewall taking the NAT's place for IPv6."""
    CUT = "cut"
    """Nothing passes from `target` to `other`, for `lasts_s`."""
    LOSS = "loss"
    DELAY = "delay"
    JITTER = "jitter"
    DUPLICATION = "duplication"
    CORRUPTION = "corruption"
    REORDERING = "reordering"
    RATE = "rate"
    """Bits per second."""
    MTU = "mtu"
    """Bytes; with `detail` `told` routers say so. All of these: from `target` to `other`, by `amount`, for
    `lasts_s`."""
    BLOCK_UDP = "block_udp"
    """The node's site passes no UDP for `lasts_s`."""
    CLOCK = "clock"
    """The node's wall clock jumps by `amount` seconds."""
    SUSPEND = "suspend"
    """The node's machine sleeps for `lasts_s`: nothing runs, no packet arrives, the wall clock goes on. With
    `detail` `stands` its monotonic clocks stand still meanwhile."""
    DEAD_SERVICE = "dead_service"
    """The machine behind the connector is off for `lasts_s`, and its connections are gone."""
    SLOW_SERVICE = "slow_service"
    """It reads nothing for `lasts_s`."""
    RESTART_ICE = "restart_ice"
    """The operator has the node search anew."""
    REVOKE = "revoke"
    """The agent may open nothing any more; for good."""
    EXPIRE = "expire"
    """The node's certificate ends; another one is loaded `lasts_s` later."""
    WITHDRAW = "withdraw"
    """The CA revokes the node's certificate, and those that `detail` names load the list: `peers`,
    `intermediates`, or `all`. The node loads another certificate `lasts_s` later, if that is not 0."""
    ABUSE = "abuse"
    """Strangers send to the node what `detail` says."""
    INTRUDE = "intrude"
    """The agent tells its intermediates that the sessions of the others are over, which it may not."""


LINK_FAULTS: Final = (
    FaultKind.CUT,
    FaultKind.LOSS,
    FaultKind.DELAY,
    FaultKind.JITTER,
    FaultKind.DUPLICATION,
    FaultKind.CORRUPTION,
    FaultKind.REORDERING,
    FaultKind.RATE,
    FaultKind.MTU,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, and is mended after `lasts_s`."""

    at: float
    kind: FaultKind
    target: str
    lasts_s: float = 0.0
    other: str = ""
    amount: float = 0.0
    detail: str = ""

    @property
    def ends_at(self) -> float:
        """When all is as before."""
        return self.at + self.lasts_s


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a run is made of."""

    seed: int
    name: str
    policy: str
    link: LinkConfig
    intermediates: tuple[str, ...]
    agents: dict[str, Site]
    connectors: dict[str, Site]
    work: tuple[Work, ...]
    faults: tuple[Fault, ...] = ()
    first_family: Family = Family.IPV4
    """Of the addresses that a name of both is resolved to."""
    denied: tuple[tuple[str, str], ...] = ()
    """Agents and connectors whose services they may not open."""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sections of the nodes' configuration that differ from the default."""
    narrow: tuple[Narrow, ...] = ()
    has_grpc: bool = False
    """Signaling goes over gRPC, and the relay where UDP does not pass."""
    max_seconds: float = MAX_SECONDS
    """Virtual time that it may take until everything is closed."""
    max_bytes: int = MAX_BYTES
    """Of payload."""
    carriers: dict[str, NatKind] = field(default_factory=dict)
    """NATs that several sites have in common, and a network of their own behind each."""
    is_watched_closely: bool = False
    """Tables are looked at after each event, which is dear, and not each half second."""

    @property
    def sites(self) -> dict[str, Site]:
        """Of agents and connectors."""
        return {**self.agents, **self.connectors}

    @property
    def faults_end_at(self) -> float:
        """When the last fault is mended."""
        return max((each.ends_at for each in self.faults), default=0.0)

    @property
    def payload_bytes(self) -> int:
        """What applications will send, both ways."""
        total = 0
        for work in self.work:
            total += work.up + work.down if work.kind is WorkKind.STREAM else 2 * work.up * work.down
        return total

    def lines(self) -> Iterator[str]:
        """For people: one line per fact, defaults left out."""
        yield f"seed {self.seed}, scenario {self.name}, policy {self.policy}, {_brief(self.link)}"
        yield (
            f"  intermediates {', '.join(self.intermediates)}; {self.first_family.name} first"
            + ("; over gRPC" if self.has_grpc else "")
            + ("; watched closely" if self.is_watched_closely else "")
        )
        for name, site in self.sites.items():
            yield f"  {name:<14} {_brief(site)}"
        for name, kind in self.carriers.items():
            yield f"  {name:<14} {_brief(kind)}"
        for agent, connector in self.denied:
            yield f"  denied         {agent} at {connector}"
        for narrow in self.narrow:
            yield f"  narrow         {_brief(narrow)}"
        for node, sections in self.settings.items():
            yield f"  settings       {node} {sections}"
        for work in self.work:
            yield f"  work  {_brief(work)}"
        for fault in sorted(self.faults, key=lambda each: each.at):
            yield f"  fault {_brief(fault)}"


def _brief(value: object) -> str:
    """A dataclass without what is as always."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_brief, value))})"
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return f"{value:g}"
    if not dataclasses.is_dataclass(value):
        return getattr(value, "name", None) or str(value)
    shown = []
    for each in dataclasses.fields(value):
        present = getattr(value, each.name)
        if each.default is dataclasses.MISSING or present != each.default:
            shown.append(f"{each.name}={_brief(present)}")
    name = type(value).__name__
    return f"{name}({' '.join(shown)})"
