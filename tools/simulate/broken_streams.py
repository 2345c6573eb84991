"""Faults that meet a relay leg while it is being made over gRPC: each seed of `udp_blocked` has the next one.

Where no UDP passes, a node opens the stream of its leg at a known moment, and each step of that takes a known
number of ways between node and intermediate. So what goes wrong can be aimed at one of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import Final

from tools.simulate.scenario import Fault, FaultKind, Scenario, Site
from ztna.relay.leg import FALLBACK_AFTER_S
from ztna.relay.stream_carrier import ANSWER_LIMIT_S

CONNECTING: Final = (0.5, 4.8)
"""Ways to the intermediate and back since the stream is dialled: TCP, TLS and the answer take six."""
CONNECTED: Final = (6.2, 7.8)
"""The leg says hello then, and is accepted after eight."""
NOT_YET_ASKED: Final = (5.2, 6.8)
"""The same, where the intermediate is, and before it has read the hello."""
HELLO_ON_ITS_WAY: Final = (6.1, 6.9)
BLOCKED_S: Final = 16.0
"""Where UDP would pass: until what is broken has been made again."""


class Break(Enum):
    """What happens, and when."""

    NONE = ()
    KILLED_WHILE_CONNECTING = (FaultKind.KILL, CONNECTING)
    KILLED_WHILE_CONNECTED = (FaultKind.KILL, NOT_YET_ASKED)
    CUT_WHILE_CONNECTING = (FaultKind.CUT, CONNECTING)
    CUT_WHILE_CONNECTED = (FaultKind.CUT, HELLO_ON_ITS_WAY)
    LEAVES_WHILE_CONNECTING = (FaultKind.STOP, CONNECTING)
    LEAVES_WHILE_CONNECTED = (FaultKind.STOP, CONNECTED)
    ATTACHES_ANEW = (FaultKind.CRASH, CONNECTED)


def add(draft: Scenario) -> Scenario:
    """The scenario with one of them, by its seed."""
    kind = list(Break)[draft.seed % len(Break)]
    if kind is Break.NONE:
        return draft
    chance = random.Random(f"{draft.name}/{draft.seed}/broken streams")
    blocked = [name for name, site in draft.sites.items() if _passes_no_udp(site)]
    alone = [name for name, site in draft.sites.items() if not site.with_node]
    node = chance.choice(blocked or alone)
    faults = [*draft.faults, *_faults(draft, kind, node, chance)]
    if not blocked:
        faults.append(Fault(0.0, FaultKind.BLOCK_UDP, node, lasts_s=BLOCKED_S))
    return replace(draft, faults=tuple(sorted(faults, key=lambda each: each.at)))


def _passes_no_udp(site: Site) -> bool:
    return not site.with_node and any(
        nat.is_udp_blocked for nat in (*site.nats, *filter(None, [site.firewall]))
    )


def _faults(draft: Scenario, kind: Break, node: str, chance: random.Random) -> Iterator[Fault]:
    what, ways = kind.value
    at = round(FALLBACK_AFTER_S + draft.link.latency_s * chance.uniform(*ways), 4)
    match what:
        case FaultKind.KILL:
            yield Fault(at, what, draft.intermediates[0], lasts_s=round(chance.uniform(1.0, 3.0), 3))
        case FaultKind.CUT:
            lasts_s = ANSWER_LIMIT_S + round(chance.uniform(1.0, 2.0), 3)
            for each in draft.intermediates:
                yield Fault(at, what, node, lasts_s, each)
                yield Fault(at, what, each, lasts_s, node)
        case FaultKind.STOP:
            yield Fault(at, what, node, lasts_s=1.0)
        case _:
            # Later, when it has sessions: for their sake the intermediate keeps the leg.
            for after_s in (2.0, 7.0):
                yield Fault(round(at + after_s, 4), what, node, detail="signaling_client")
