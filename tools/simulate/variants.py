"""Ways in which a fault may happen that seeds did not know at first, each by a chance of its own.

What a seed drew stays as it is; only the `detail` of some of its faults says more than before.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from tools.simulate.scenario import Fault, FaultKind, Scenario, Site
from tools.simulate.sites import FIREWALLS, NATS
from ztna.address import Family

TOLD: Final = "told"
LEAST_TOLD_BYTES: Final = 1280
"""Hosts remember for ten minutes what they were told: where only UDP leads to an intermediate, less would cut
them off for longer than a seed lasts."""
HOST: Final = "host"
"""`Fault.detail` of a new address: of the host itself, in each family that no NAT translates."""
ELSEWHERE: Final = ("", "", "/both", "/ipv6")


def add(draft: Scenario) -> Scenario:
    """The scenario with what its faults say more."""
    chances = {
        kind: random.Random(f"{draft.name}/{draft.seed}/{kind.value}, how")
        for kind in (FaultKind.NEW_ADDRESS, FaultKind.MOVE, FaultKind.MTU)
    }
    told: dict[float, bool] = {}  # by the moment: both directions share theirs
    faults: list[Fault] = []
    for each in draft.faults:
        fault = each
        match each.kind:
            case FaultKind.NEW_ADDRESS:
                fault = _renumbered(draft, each, chances[each.kind])
            case FaultKind.MOVE:
                fault = replace(each, detail=_elsewhere(each.detail, chances[each.kind]))
            case FaultKind.MTU if not each.detail and _may_be_told(draft, each):
                if each.at not in told:
                    told[each.at] = chances[each.kind].random() < 0.5
                fault = replace(each, detail=TOLD if told[each.at] else "")
            case _:
                pass
        faults.append(fault)
    return replace(draft, faults=tuple(faults))


def site_elsewhere(detail: str) -> Site:
    """What the `detail` of a move stands for."""
    kind, _, families = detail.partition("/")
    nats = () if kind == "open" else (NATS[kind],)
    match families:
        case "ipv6":
            return Site(families=(Family.IPV6,), firewall=FIREWALLS["firewall"] if nats else None)
        case "both":
            return Site(nats, tuple(Family), FIREWALLS["firewall"] if nats else None)
        case _:
            return Site(nats)


def _renumbered(draft: Scenario, fault: Fault, chance: random.Random) -> Fault:
    site = draft.sites[fault.target]
    is_translated = any(nat.is_translating for nat in site.nats)
    is_of_host = chance.random() < 0.5
    if is_translated and not (is_of_host and Family.IPV6 in site.families):
        return fault
    return replace(fault, detail=HOST)


def _elsewhere(detail: str, chance: random.Random) -> str:
    return detail + chance.choice(ELSEWHERE)


def _may_be_told(draft: Scenario, fault: Fault) -> bool:
    is_across = {fault.target, fault.other} <= draft.sites.keys()
    return is_across or draft.has_grpc or fault.amount >= LEAST_TOLD_BYTES
