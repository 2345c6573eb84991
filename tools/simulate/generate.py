"""From a seed to a scenario; the named ones differ in what they draw from.

Everything is drawn from one source of chance per scenario, so that the same seed and name always mean the
same, until this file changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from tests.simnet.link import LinkConfig
from tests.simnet.nat import NatKind
from tools.simulate import abuse, broken_streams, carriers, corners, crowds, knocks, spoof, variants
from tools.simulate.scenario import (
    LINK_FAULTS,
    MAX_BYTES,
    MAX_SECONDS,
    Fault,
    FaultKind,
    Narrow,
    Scenario,
    Site,
    Work,
    WorkKind,
)
from tools.simulate.sites import FIREWALLS, LIFETIMES_S, NATS
from ztna.address import Family

T = TypeVar("T")

FAULTS_FROM_S: Final = 0.5
FAULTS_UNTIL_S: Final = 12.0
"""All is mended then: what needs its time afterwards has the rest of the minute."""
WORK_UNTIL_S: Final = 9.0
EARLY_S: Final = 0.4
"""Nodes attach meanwhile."""
LATE_UDP_S: Final = (0.0, 0.4, 0.8)
"""So that offers over gRPC overtake the leg of the connector."""
MAX_ABSENCE_S: Final = 12.0
"""Of an intermediate: the waits of nodes that dial it grow meanwhile, to half a minute at last."""
WATCHED_EVERY: Final = 25
"""Seeds, of which one has its tables looked at after each event; that takes five seconds more."""
V4, V6 = (Family.IPV4,), (Family.IPV6,)
BOTH: Final = (Family.IPV4, Family.IPV6)

NODE_FAULTS: Final = (
    FaultKind.KILL,
    FaultKind.STOP,
    FaultKind.FREEZE,
    FaultKind.CRASH,
    FaultKind.CLOCK,
)
PATH_FAULTS: Final = (
    FaultKind.REBIND,
    FaultKind.NEW_ADDRESS,
    FaultKind.MOVE,
    *LINK_FAULTS,
    FaultKind.BLOCK_UDP,
    FaultKind.RESTART_ICE,
)
SERVICE_FAULTS: Final = (FaultKind.DEAD_SERVICE, FaultKind.SLOW_SERVICE)
ALL_FAULTS: Final = (*NODE_FAULTS, *PATH_FAULTS, *SERVICE_FAULTS, FaultKind.REVOKE, FaultKind.ABUSE)

NARROW_BYTES: Final = (600, 1000, 1227, 1228, 1247, 1248, 1259, 1279, 1280, 1400)
"""Around the sizes of our packets: 1200 and 1232 bytes of UDP over IPv4 and IPv6."""

LATE_FAULTS: Final = (FaultKind.SUSPEND, FaultKind.EXPIRE, FaultKind.WITHDRAW)
"""Drawn behind everything else, so that seeds mean what they meant, or that and one of these."""

AMOUNTS: Final[dict[FaultKind, tuple[float, ...]]] = {
    FaultKind.LOSS: (0.05, 0.2, 0.5),
    FaultKind.DELAY: (0.05, 0.2, 0.8),
    FaultKind.JITTER: (0.01, 0.05, 0.2),
    FaultKind.DUPLICATION: (0.05, 0.3, 1.0),
    FaultKind.CORRUPTION: (0.01, 0.1),
    FaultKind.REORDERING: (0.05, 0.3),
    FaultKind.RATE: (256e3, 1e6, 4e6),
    FaultKind.MTU: (1000.0, 1240.0, 1280.0, 1400.0),
    FaultKind.CLOCK: (-30.0, -5.0, 5.0, 30.0),
    FaultKind.ABUSE: (10.0, 60.0),
}
NODE_ACTORS: Final = (
    "path_manager",
    "keepalive",
    "checklist",
    "hole_punch",
    "candidate_gatherer",
    "quic_session",
    "relay_leg",
    "signaling_client",
    "session_table",
    "udp_socket",
    "intermediate_selector",
    "status_board",
)
AGENT_ACTORS: Final = (*NODE_ACTORS, "service_port")
CONNECTOR_ACTORS: Final = (*NODE_ACTORS, "service_backend")
INTERMEDIATE_ACTORS: Final = (
    "udp_socket",
    "quic_relay",
    "registry",
    "session_manager",
    "signaling_service",
    "status_board",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a named scenario draws from.

    Attributes:
        what: for `--list`.
        faults: kinds, and how many at most.
        policies: with repetition for weight.
        sizes: agents and connectors and intermediates at most.
        is_clean: links lose nothing, and nothing is strange about sites beyond one NAT.
        spare_share: how likely another intermediate is.
        until_s: when the last fault is mended.
        lasts_s: how long a fault lasts.
        spread_s: over how long an application spreads what it sends.
        is_steady: streams flow slowly and steadily, and faults of links are those of the direct path.
        agents_share: how likely one more is.
        is_bulk: flows have many small datagrams in little time, and faults end in the middle of them.
        is_relapse: the direct path is cut again and again, and the relay in between.
        is_story: nothing is drawn from here; `tools.simulate.corners` tells what happens.
        max_bytes: of payload; more than elsewhere where streams are to be large.
        grpc_share: how likely signaling goes over gRPC, and the relay may.
        blocked_share: how likely no UDP ever passes a site, in such a deployment.
        narrow_share: how likely a way carries less than others, in such a deployment.
        late_share: how likely one of `LATE_FAULTS` comes on top of the others.
        early_share: how likely applications are there before their agent is attached.
        outcast_share: how likely the certificate of one of two intermediates is revoked instead.
        has_broken_streams: legs over gRPC break while they are made (`broken_streams`).
        crowd_share: how likely many small streams come on top (`crowds`).
        max_seconds: virtual time that a seed may take: after the last fault, a search that is backed off and
            all else that is waited for have their time.
        spoof_share: how likely sources are forged meanwhile (`spoof`).
        carrier_share: how likely two sites have a carrier's NAT in common (`carriers`).
        knock_share: how likely strangers connect to the gRPC listener, in such a deployment (`knocks`).
    """

    what: str
    faults: tuple[FaultKind, ...] = ALL_FAULTS
    max_faults: int = 4
    min_faults: int = 0
    policies: tuple[str, ...] = ("prefer_direct",) * 7 + ("lowest_rtt", "relay_only")
    agents: int = 3
    connectors: int = 2
    intermediates: int = 2
    is_clean: bool = False
    spare_share: float = 0.25
    until_s: float = FAULTS_UNTIL_S
    lasts_s: tuple[float, ...] = (0.3, 1.0, 3.0, 6.0)
    spread_s: tuple[float, ...] = (0.0, 0.0, 2.0, 8.0)
    is_steady: bool = False
    agents_share: float = 0.3
    is_bulk: bool = False
    is_relapse: bool = False
    is_story: bool = False
    max_bytes: int = MAX_BYTES
    grpc_share: float = 0.0
    blocked_share: float = 0.0
    narrow_share: float = 0.0
    late_share: float = 0.0
    early_share: float = 0.0
    outcast_share: float = 0.0
    has_broken_streams: bool = False
    crowd_share: float = 0.0
    max_seconds: float = MAX_SECONDS
    spoof_share: float = 0.0
    knock_share: float = 0.0
    carrier_share: float = 0.0


RECIPES: Final[dict[str, Recipe]] = {
    "mixed": Recipe("everything", late_share=0.2, crowd_share=0.2, spoof_share=0.2, carrier_share=0.3),
    "direct": Recipe(
        "sites of every kind, and nothing goes wrong: is a direct path found?",
        faults=(),
        max_faults=0,
        policies=("prefer_direct",),
        agents=2,
        grpc_share=0.5,
        early_share=0.8,
        carrier_share=0.3,
    ),
    "faults": Recipe("small deployments, many faults", max_faults=8, min_faults=3, agents=1, connectors=1),
    "paths": Recipe(
        "a direct path that is disturbed in every way",
        faults=PATH_FAULTS,
        max_faults=6,
        min_faults=2,
        policies=("prefer_direct", "prefer_direct", "lowest_rtt"),
        agents=1,
        connectors=1,
        is_clean=True,
        spoof_share=0.3,
    ),
    "quiet": Recipe(
        "long faults while hardly anything is sent: keepalives, consent and patience decide",
        faults=(*PATH_FAULTS, FaultKind.CUT, FaultKind.CUT, FaultKind.LOSS, FaultKind.FREEZE),
        max_faults=4,
        min_faults=1,
        policies=("prefer_direct", "prefer_direct", "lowest_rtt"),
        agents=1,
        connectors=1,
        until_s=40.0,
        lasts_s=(10.0, 20.0, 35.0),
        spread_s=(0.0, 30.0),
        is_clean=True,
        max_seconds=100.0,
    ),
    "resume": Recipe(
        "legs and intermediates come and go",
        faults=(FaultKind.KILL, FaultKind.STOP, FaultKind.FREEZE, FaultKind.CUT, FaultKind.CRASH),
        max_faults=4,
        min_faults=1,
        agents=2,
        connectors=1,
        spare_share=0.6,
    ),
    "abuse": Recipe(
        "strangers send what they should not",
        faults=(*[FaultKind.ABUSE] * 4, FaultKind.REVOKE, FaultKind.CORRUPTION),
        max_faults=6,
        min_faults=4,
        agents=2,
        spoof_share=0.7,
        carrier_share=0.2,
    ),
    "failover": Recipe(
        "the direct path dies under steady streams, and nothing else goes wrong: they hardly pause",
        faults=(FaultKind.CUT,),
        max_faults=2,
        min_faults=1,
        policies=("prefer_direct",),
        agents=1,
        connectors=1,
        intermediates=1,
        is_clean=True,
        is_steady=True,
        spoof_share=0.3,
    ),
    "relapse": Recipe(
        "the direct path dies again while it is on probation, or the relay does",
        faults=(FaultKind.CUT,),
        max_faults=4,
        min_faults=3,
        policies=("prefer_direct",),
        agents=1,
        connectors=1,
        intermediates=1,
        until_s=25.0,
        is_clean=True,
        is_steady=True,
        is_relapse=True,
        max_seconds=80.0,
    ),
    "bulk": Recipe(
        "many packets at once, while paths become slow",
        faults=(FaultKind.DELAY, FaultKind.DELAY, FaultKind.JITTER, FaultKind.RATE),
        max_faults=4,
        min_faults=2,
        policies=("prefer_direct",),
        agents=1,
        connectors=1,
        intermediates=1,
        is_clean=True,
        is_bulk=True,
    ),
    "slow": Recipe(
        "large streams, and readers that pause",
        faults=(FaultKind.SLOW_SERVICE,),
        max_faults=3,
        min_faults=1,
        agents=1,
        connectors=1,
        is_clean=True,
        max_bytes=8 * MAX_BYTES,
    ),
    "revoked": Recipe(
        "agents lose their rights, and nothing else goes wrong",
        faults=(FaultKind.REVOKE,),
        max_faults=2,
        min_faults=1,
        agents=2,
        is_clean=True,
    ),
    "grpc": Recipe(
        "signaling goes over gRPC while everybody comes and goes, on links of every kind",
        faults=(*NODE_FAULTS, FaultKind.CUT, FaultKind.LOSS, FaultKind.BLOCK_UDP, FaultKind.REBIND),
        max_faults=5,
        min_faults=2,
        agents=2,
        spare_share=0.5,
        grpc_share=1.0,
        blocked_share=0.1,
    ),
    "insider": Recipe(
        "agents meddle with the sessions of others",
        faults=(FaultKind.INTRUDE,),
        max_faults=3,
        min_faults=1,
        agents=3,
        agents_share=0.9,
        is_clean=True,
        is_steady=True,
    ),
    "corners": Recipe(
        "faults in an order that chance hardly ever meets", until_s=42.0, is_story=True, max_seconds=100.0
    ),
    "relay_only": Recipe("no direct path is wanted", policies=("relay_only",), agents=2),
    "certificates": Recipe(
        "certificates end or are revoked under steady streams, and are renewed, or not",
        faults=(FaultKind.EXPIRE, FaultKind.WITHDRAW, FaultKind.WITHDRAW),
        max_faults=2,
        min_faults=1,
        policies=("prefer_direct", "prefer_direct", "relay_only"),
        agents=3,
        agents_share=0.9,
        is_clean=True,
        is_steady=True,
        until_s=30.0,
        lasts_s=(6.0, 10.0, 20.0),
        grpc_share=0.3,
        outcast_share=0.4,
        max_seconds=90.0,
    ),
    "asleep": Recipe(
        "machines sleep, and wall clocks jump while sessions live",
        faults=(FaultKind.SUSPEND, FaultKind.SUSPEND, FaultKind.CLOCK, FaultKind.NEW_ADDRESS),
        max_faults=3,
        min_faults=1,
        agents=2,
        connectors=1,
        is_clean=True,
        spare_share=0.4,
        until_s=130.0,
        lasts_s=(5.0, 12.0, 20.0, 40.0, 120.0),
        spread_s=(0.0, 2.0, 8.0),
        grpc_share=0.3,
        max_seconds=190.0,
    ),
    "narrow": Recipe(
        "ways and interfaces that carry less than others, with and without a word about it",
        faults=(FaultKind.MTU, FaultKind.MTU, FaultKind.REBIND, FaultKind.RESTART_ICE),
        max_faults=3,
        policies=("prefer_direct",),
        agents=2,
        is_clean=True,
        grpc_share=1.0,
        narrow_share=0.4,
    ),
    "udp_blocked": Recipe(
        "sites that pass no UDP, for good or for a while: the relay goes over gRPC, and back",
        faults=(FaultKind.BLOCK_UDP, FaultKind.BLOCK_UDP, FaultKind.REBIND, FaultKind.MOVE, FaultKind.FREEZE),
        max_faults=3,
        policies=("prefer_direct", "prefer_direct", "relay_only"),
        agents=2,
        is_clean=True,
        until_s=30.0,
        lasts_s=(1.0, 4.0, 10.0, 25.0),
        grpc_share=1.0,
        blocked_share=0.35,
        has_broken_streams=True,
        max_seconds=100.0,
        spoof_share=0.2,
        knock_share=0.3,
    ),
    "refusals": Recipe(
        "sessions that are brought back in vain, and limits", until_s=20.0, is_story=True, max_seconds=80.0
    ),
}


def generate(seed: int, name: str = "mixed") -> Scenario:
    """The scenario that a seed and a name stand for."""
    recipe = RECIPES[name]
    return replace(
        _Draw(seed, name).scenario(),
        max_seconds=recipe.max_seconds,
        max_bytes=recipe.max_bytes,
        is_watched_closely=seed % WATCHED_EVERY == WATCHED_EVERY - 1,
    )


class _Draw:
    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        self._recipe = RECIPES[name]
        self._chance = random.Random(f"{name}/{seed}")

    def scenario(self) -> Scenario:
        recipe = self._recipe
        if recipe.is_story:
            return corners.tell(self._seed, self._name, self._chance)
        intermediates = tuple(
            f"intermediate-{n}" for n in range(self._count(recipe.intermediates, recipe.spare_share))
        )
        connectors = {f"connector-{n}": self._site() for n in range(self._count(recipe.connectors, 0.25))}
        agents: dict[str, Site] = {}
        for number in range(self._count(recipe.agents, recipe.agents_share)):
            site = self._site()
            if self._is(0.07):
                site = replace(site, with_node=self._one(tuple(connectors)))
                # What they share is what the connector has.
                shared = connectors[site.with_node]
                site = replace(shared, with_node=site.with_node, skew_s=site.skew_s)
            agents[f"agent-{number}"] = site
        pairs = [(agent, connector) for agent in agents for connector in connectors]
        denied = tuple(pair for pair in pairs if len(pairs) > 1 and self._is(0.1))
        draft = Scenario(
            seed=self._seed,
            name=self._name,
            policy=self._one(recipe.policies),
            link=self._link(),
            intermediates=intermediates,
            agents=agents,
            connectors=connectors,
            work=self._work(pairs),
            first_family=self._one((Family.IPV4, Family.IPV4, Family.IPV6)),
            denied=denied,
        )
        draft = replace(draft, faults=self._faults(draft))
        # What came later is drawn last, so that what seeds meant before they mean still.
        if recipe.late_share and self._is(recipe.late_share):
            faults = (*draft.faults, self._late_fault(draft))
            draft = replace(draft, faults=tuple(sorted(faults, key=lambda each: each.at)))
        if recipe.grpc_share and self._is(recipe.grpc_share):
            draft = replace(
                draft,
                has_grpc=True,
                agents={name: self._perhaps_worse(site) for name, site in draft.agents.items()},
                connectors={name: self._perhaps_worse(site) for name, site in draft.connectors.items()},
                narrow=tuple(self._narrow(draft)),
            )
        if recipe.early_share and self._is(recipe.early_share):
            early = (
                Work(self._moment(0.0, EARLY_S), WorkKind.STREAM, *pair, up=1000, down=1000)
                for pair in pairs[: (recipe.max_bytes - draft.payload_bytes) // 2000]
            )
            connectors = {
                name: replace(site, udp_from_s=self._one(LATE_UDP_S) if draft.has_grpc else 0.0)
                for name, site in draft.connectors.items()
            }
            draft = replace(draft, work=(*draft.work, *early), connectors=connectors)
        if recipe.outcast_share and self._is(recipe.outcast_share):
            draft = self._with_outcast(draft)
        return self._with_later(draft)

    def _with_later(self, draft: Scenario) -> Scenario:
        """What came later still, each by a chance of its own."""
        recipe = self._recipe
        if recipe.has_broken_streams:
            draft = broken_streams.add(draft)
        if recipe.crowd_share:
            draft = crowds.add(draft, recipe.crowd_share, recipe.max_bytes)
        if recipe.spoof_share:
            draft = spoof.add(draft, recipe.spoof_share, recipe.until_s)
        if recipe.knock_share:
            draft = knocks.add(draft, recipe.knock_share, recipe.until_s)
        draft = variants.add(draft)
        return carriers.add(draft, recipe.carrier_share) if recipe.carrier_share else draft

    def _narrow(self, draft: Scenario) -> Iterator[Narrow]:
        share = self._recipe.narrow_share
        pairs = [(agent, connector) for agent in draft.agents for connector in draft.connectors]
        pairs += [(node, each) for node in draft.sites for each in draft.intermediates]
        for one, other in pairs if share else ():
            if self._is(share):
                yield Narrow(one, other, self._one(NARROW_BYTES), is_told=self._is(0.5))

    def _perhaps_worse(self, site: Site) -> Site:
        if self._recipe.narrow_share and self._is(self._recipe.narrow_share / 2):
            site = replace(site, mtu=self._one(NARROW_BYTES))
        return self._perhaps_blocked(site)

    def _perhaps_blocked(self, site: Site) -> Site:
        if site.with_node or self._recipe.blocked_share == 0 or not self._is(self._recipe.blocked_share):
            return site
        nats = tuple(replace(nat, is_udp_blocked=True) for nat in site.nats)
        if Family.IPV4 in site.families:
            nats = nats or (replace(FIREWALLS["firewall"], is_udp_blocked=True),)
        firewall = site.firewall or FIREWALLS["firewall"] if Family.IPV6 in site.families else None
        return replace(site, nats=nats, firewall=firewall and replace(firewall, is_udp_blocked=True))

    def _site(self) -> Site:
        chance = self._chance
        roll = chance.random()
        families = V4 if roll < 0.65 else BOTH if roll < 0.9 else V6
        nats: tuple[NatKind, ...] = ()
        roll = chance.random()
        if Family.IPV4 in families:
            if roll < 0.1:
                nats = ()
            elif roll < 0.18:
                nats = (self._one(tuple(FIREWALLS.values())),)
            elif roll < 0.88 or self._recipe.is_clean:
                nats = (self._nat(),)
            else:
                nats = (self._nat(), self._nat())
        firewall = None
        if Family.IPV6 in families and self._is(0.7):
            firewall = self._one(tuple(FIREWALLS.values()))
        skew_s = self._one((0.0, 0.0, 0.0, -20.0, 20.0))
        dead = self._one(BOTH) if families == BOTH and self._is(0.15) else None
        return Site(nats, families, firewall, skew_s=skew_s, dead=dead)

    def _nat(self) -> NatKind:
        # Half of them as most are: endpoint-independent mappings.
        names = tuple(NATS)
        if self._is(0.5):
            names = tuple(name for name in names if name.startswith("eim"))
        return replace(
            NATS[self._one(names)], is_hairpinning=self._is(0.4), lifetime_s=self._one(LIFETIMES_S)
        )

    def _link(self) -> LinkConfig:
        chance = self._chance
        link = LinkConfig(latency_s=round(chance.uniform(0.002, 0.06), 4))
        if self._recipe.is_clean or self._is(0.4):
            return link
        return replace(
            link,
            jitter_s=self._one((0.0, 0.002, 0.01)),
            loss=self._one((0.0, 0.0, 0.005, 0.02)),
            duplication=self._one((0.0, 0.0, 0.01, 0.1)),
            corruption=self._one((0.0, 0.0, 0.001)),
            reordering=self._one((0.0, 0.0, 0.02)),
            rate_bps=self._one((None, None, 2e6, 10e6)),
            queue_bytes=64 * 1024,
            mtu=self._one((1500, 1500, 1400, 1280)),
        )

    def _work(self, pairs: Sequence[tuple[str, str]]) -> tuple[Work, ...]:
        left = self._recipe.max_bytes
        work: list[Work] = []
        for _ in range(self._chance.randint(2, 7)):
            each = (
                self._stream(pairs) if self._is(0.3 if self._recipe.is_bulk else 0.7) else self._flow(pairs)
            )
            size = each.up + each.down if each.kind is WorkKind.STREAM else 2 * each.up * each.down
            if size <= left:
                left -= size
                work.append(each)
        return tuple(work)

    def _stream(self, pairs: Sequence[tuple[str, str]]) -> Work:
        agent, connector = self._one(pairs)
        if self._recipe.is_steady:
            size = self._one((40_000, 100_000))
            over_s = 16.0 if self._recipe.is_relapse else 8.0
            return Work(self._moment(0.0, 4.0), WorkKind.STREAM, agent, connector, size, size, over_s=over_s)
        if self._recipe.max_bytes > MAX_BYTES:
            up, down = self._one((0, 1000, 700_000)), self._one((0, 1000, 700_000))
            at, pause_s = self._moment(0.0, WORK_UNTIL_S), self._one((0.0, 3.0))
            return Work(at, WorkKind.STREAM, agent, connector, up, down, pause_s=pause_s)
        return Work(
            at=self._moment(0.0, WORK_UNTIL_S),
            kind=WorkKind.STREAM,
            agent=agent,
            connector=connector,
            up=self._one((0, 1, 1000, 5000, 40_000, 100_000)),
            down=self._one((0, 1, 1000, 5000, 40_000, 100_000)),
            over_s=self._one(self._recipe.spread_s),
            pause_s=self._one((0.0, 0.0, 0.0, 3.0)),
            ends_late=self._is(0.3),
        )

    def _flow(self, pairs: Sequence[tuple[str, str]]) -> Work:
        agent, connector = self._one(pairs)
        if self._recipe.is_bulk:
            at, over_s = self._moment(0.0, WORK_UNTIL_S), self._one((0.4, 0.8))
            return Work(at, WorkKind.DATAGRAMS, agent, connector, up=400, down=20, over_s=over_s)
        size = self._one((20, 20, 200, 1170, 3000))
        return Work(
            at=self._moment(0.0, WORK_UNTIL_S),
            kind=WorkKind.DATAGRAMS,
            agent=agent,
            connector=connector,
            up=self._one((3, 10)) if size > 1000 else self._one((5, 40)),
            down=size,
            over_s=self._one((0.2, 3.0, 8.0)),
        )

    def _faults(self, draft: Scenario) -> tuple[Fault, ...]:
        recipe = self._recipe
        if not recipe.faults:
            return ()
        count = self._chance.randint(recipe.min_faults, recipe.max_faults)
        found: list[Fault] = []
        for _ in range(count):
            found += self._fault(draft, self._one(recipe.faults))
        if self._name == "certificates":
            # One at a time: a node's first certificate ends once.
            found = list({each.target: each for each in reversed(found)}.values())
        if recipe.is_relapse:
            found = self._relapse(draft)
        if recipe.is_bulk:
            found = self._end_amid_flows(draft, found)
        return tuple(sorted(found, key=lambda each: each.at))

    def _fault(self, draft: Scenario, kind: FaultKind) -> list[Fault]:
        until_s = self._recipe.until_s
        at = self._moment(FAULTS_FROM_S, until_s - 2.0)
        lasts_s = round(min(self._one(self._recipe.lasts_s), until_s - at), 3)
        amount = self._one(AMOUNTS.get(kind, (0.0,)))
        peers = [*draft.agents, *draft.connectors]
        everybody = [*peers, *draft.intermediates]
        fault = Fault(at, kind, self._one(peers), amount=amount)
        match kind:
            case FaultKind.KILL | FaultKind.STOP | FaultKind.FREEZE:
                return [replace(fault, target=self._one(everybody), lasts_s=lasts_s)]
            case FaultKind.CRASH:
                target = self._one(everybody)
                return [replace(fault, target=target, detail=self._actor(target))]
            case FaultKind.CLOCK:
                fault = replace(fault, target=self._one(everybody))
                return [replace(fault, at=self._moment(1.0, 15.0)) if self._name == "asleep" else fault]
            case FaultKind.ABUSE:
                return [replace(fault, target=self._one(everybody), detail=self._one(abuse.KINDS))]
            case FaultKind.DEAD_SERVICE | FaultKind.SLOW_SERVICE:
                return [replace(fault, target=self._one(list(draft.connectors)), lasts_s=lasts_s)]
            case FaultKind.SUSPEND:
                # While something goes on. The machine of an intermediate may be a virtual one; after longer
                # absences nodes dial it every half minute.
                target = self._one([*peers, *peers, *draft.intermediates])
                lasts_s = min(lasts_s, MAX_ABSENCE_S) if target in draft.intermediates else lasts_s
                detail = self._one(("stands", ""))
                return [
                    replace(fault, at=self._moment(1.0, 9.0), target=target, lasts_s=lasts_s, detail=detail)
                ]
            case FaultKind.EXPIRE | FaultKind.WITHDRAW:
                return self._of_a_certificate(draft, replace(fault, lasts_s=lasts_s))
            case FaultKind.REVOKE | FaultKind.INTRUDE:
                return [replace(fault, target=self._one(list(draft.agents)))]
            case _:
                return self._on_the_way(draft, replace(fault, lasts_s=lasts_s))

    def _of_a_certificate(self, draft: Scenario, fault: Fault) -> list[Fault]:
        # While streams flow.
        fault = replace(fault, at=self._moment(2.0, 8.0))
        if fault.kind is FaultKind.WITHDRAW:
            lasts_s = self._one((fault.lasts_s, fault.lasts_s, 0.0))
            return [replace(fault, lasts_s=lasts_s, detail=self._one(("all", "peers", "intermediates")))]
        if self._is(0.7):
            return [fault]
        # Who has a leg and grants is not asked for anything; so agents come back that have neither.
        fault = replace(fault, target=self._one(list(draft.intermediates)))
        at = round(fault.ends_at + 0.5, 3)
        return [fault, *(Fault(at, FaultKind.KILL, agent, lasts_s=1.0) for agent in draft.agents)]

    def _with_outcast(self, draft: Scenario) -> Scenario:
        """Let nothing else happen than that nodes learn not to trust one of two intermediates."""
        draft = replace(draft, intermediates=("intermediate-0", "intermediate-1"))
        # The first is the one that agents are at.
        target = self._one((*draft.intermediates, draft.intermediates[0]))
        lasts_s = self._one((0.0, *self._recipe.lasts_s))
        detail = self._one(("all", "peers"))
        outcast = Fault(self._moment(2.0, 8.0), FaultKind.WITHDRAW, target, lasts_s=lasts_s, detail=detail)
        return replace(draft, faults=(outcast,))

    def _late_fault(self, draft: Scenario) -> Fault:
        at, lasts_s = self._moment(2.0, 8.0), self._one((1.0, 3.0))
        kind = self._one(LATE_FAULTS)
        details = ("stands", "") if kind is FaultKind.SUSPEND else ("all", "peers", "intermediates")
        detail = "" if kind is FaultKind.EXPIRE else self._one(details)
        return Fault(at, kind, self._one([*draft.sites]), lasts_s=lasts_s, detail=detail)

    def _on_the_way(self, draft: Scenario, fault: Fault) -> list[Fault]:
        match fault.kind:
            case FaultKind.MOVE:
                movable = [name for name, site in draft.agents.items() if not site.with_node]
                if not movable:
                    return []
                nat = self._one(("open", "eim-apdf-preserving", "eim-adf-random", "apdm-apdf-random"))
                return [replace(fault, target=self._one(movable), detail=nat, lasts_s=0.0)]
            case FaultKind.REBIND | FaultKind.NEW_ADDRESS | FaultKind.RESTART_ICE:
                return [replace(fault, lasts_s=0.0)]
            case FaultKind.BLOCK_UDP:
                return [fault]
            case _:
                return self._on_a_link(draft, fault)

    def _on_a_link(self, draft: Scenario, fault: Fault) -> list[Fault]:
        one = self._one([*draft.agents, *draft.connectors])
        # Half of them on the direct path, half on the way to an intermediate.
        across = list(draft.connectors) if one in draft.agents else list(draft.agents)
        is_across = self._recipe.is_steady or self._is(0.5)
        other = self._one(across if is_across else list(draft.intermediates))
        there, back = replace(fault, target=one, other=other), replace(fault, target=other, other=one)
        roll = self._chance.random()
        if self._recipe.narrow_share:
            told = self._one(("told", ""))
            there, back = replace(there, detail=told), replace(back, detail=told)
        return [there, back] if roll < 0.5 else [there] if roll < 0.75 else [back]

    def _relapse(self, draft: Scenario) -> list[Fault]:
        """The direct path dies again and again, and the relay while the direct path has not earned its place.

        The second time no search for another one is due, so that its checks alone bring it back.
        """
        agent, connector = next(iter(draft.agents)), next(iter(draft.connectors))
        found: list[Fault] = []
        at = self._moment(2.5, 3.5)
        for number in range(self._chance.randint(3, 4)):
            lasts_s = self._one((0.3, 1.6, 3.0)) if number else 1.6
            one, other = agent, connector
            if number > 1:
                one, other = self._one(
                    ((agent, connector), *[(each, draft.intermediates[0]) for each in (agent, connector)])
                )
            cut = Fault(at, FaultKind.CUT, one, lasts_s, other)
            found += [cut, replace(cut, target=other, other=one)]
            # It is back after a second or two, on probation for three.
            at = round(at + lasts_s + self._one((0.5, 1.5, 2.5, 4.0)), 3)
        return found

    def _end_amid_flows(self, draft: Scenario, faults: Sequence[Fault]) -> list[Fault]:
        """Let faults be mended while many datagrams are under way, so that later ones overtake them."""
        flows = [each for each in draft.work if each.kind is WorkKind.DATAGRAMS]
        found: list[Fault] = []
        moments: dict[float, float] = {}  # by that of the fault: both directions share theirs
        for fault in faults:
            if flows and fault.at not in moments:
                flow = self._one(flows)
                moments[fault.at] = flow.at + flow.over_s * self._chance.uniform(0.2, 0.8) - fault.lasts_s
            found.append(replace(fault, at=round(max(FAULTS_FROM_S, moments.get(fault.at, fault.at)), 3)))
        return found

    def _actor(self, target: str) -> str:
        if target.startswith("agent"):
            return self._one(AGENT_ACTORS)
        return self._one(CONNECTOR_ACTORS if target.startswith("connector") else INTERMEDIATE_ACTORS)

    def _count(self, most: int, share: float) -> int:
        count = 1
        while count < most and self._is(share):
            count += 1
        return count

    def _moment(self, first: float, last: float) -> float:
        return round(self._chance.uniform(first, last), 3)

    def _is(self, share: float) -> bool:
        return self._chance.random() < share

    def _one(self, choices: Sequence[T]) -> T:
        return self._chance.choice(choices)
