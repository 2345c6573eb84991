"""NATs of carriers: two sites of some seeds have one in common, and see of each other what all others see."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from tools.simulate.scenario import Scenario, Site
from tools.simulate.sites import LIFETIMES_S, NATS
from ztna.address import Family

CARRIER: Final = "carrier-0"
HAIRPIN_SHARE: Final = 0.6
USUAL_SHARE: Final = 0.7
"""Of carriers whose mappings are endpoint-independent (RFC 6888 §3)."""


def add(draft: Scenario, share: float) -> Scenario:
    """The scenario with two sites behind one NAT more, in this share of the seeds.

    Not those that a fault of links is about: what goes wrong with a link is wrong for all behind a carrier.
    """
    chance = random.Random(f"{draft.name}/{draft.seed}/carriers")
    if chance.random() >= share:
        return draft
    named = {each for fault in draft.faults if fault.other for each in (fault.target, fault.other)}
    named |= {each for narrow in draft.narrow for each in (narrow.one, narrow.other)}
    shared = {site.with_node for site in draft.agents.values()}
    fit = [
        name for name, site in draft.sites.items() if name not in named | shared and _may_be_behind_one(site)
    ]
    if len(fit) < 2:
        return draft
    names = [name for name in NATS if name.startswith("eim") or chance.random() >= USUAL_SHARE]
    kind = replace(
        NATS[chance.choice(names)],
        is_hairpinning=chance.random() < HAIRPIN_SHARE,
        lifetime_s=chance.choice(LIFETIMES_S),
    )
    behind = set(chance.sample(fit, 2))

    def moved(sites: dict[str, Site]) -> dict[str, Site]:
        return {
            name: replace(site, behind=CARRIER) if name in behind else site for name, site in sites.items()
        }

    return replace(
        draft, agents=moved(draft.agents), connectors=moved(draft.connectors), carriers={CARRIER: kind}
    )


def _may_be_behind_one(site: Site) -> bool:
    return (
        Family.IPV4 in site.families
        and not site.with_node
        and site.dead is None
        and not any(nat.is_udp_blocked for nat in site.nats)
    )
