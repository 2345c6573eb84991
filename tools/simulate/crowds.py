"""Many small streams at once, some of them within one round trip, on top of what a seed draws."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from tools.simulate.scenario import Scenario, Work, WorkKind

STREAMS: Final = (24, 40)
SIZES: Final = (0, 1, 100, 1000, 3000)
"""Bytes of one in each direction."""
FROM_S: Final = (0.5, 6.0)
SPREADS_S: Final = (0.0, 0.05, 1.0)
"""All of them begin within so long."""
OVER_S: Final = (0.0, 0.0, 0.5, 2.0)


def add(draft: Scenario, share: float, max_bytes: int) -> Scenario:
    """The scenario with a crowd, in this share of the seeds, as far as there are bytes left."""
    chance = random.Random(f"{draft.name}/{draft.seed}/crowd")
    if chance.random() >= share:
        return draft
    begins_s, spread_s = chance.uniform(*FROM_S), chance.choice(SPREADS_S)
    agent = chance.choice(list(draft.agents))
    connector = chance.choice(list(draft.connectors))
    left = max_bytes - draft.payload_bytes
    crowd = []
    for _ in range(chance.randint(*STREAMS)):
        up, down = chance.choice(SIZES), chance.choice(SIZES)
        if up + down > left:
            up, down = 0, 0  # one that only opens
        left -= up + down
        at = round(begins_s + chance.uniform(0.0, spread_s), 4)
        over_s = chance.choice(OVER_S)
        ends_late = chance.random() < 0.3
        crowd.append(Work(at, WorkKind.STREAM, agent, connector, up, down, over_s, ends_late=ends_late))
    return replace(draft, work=(*draft.work, *crowd))
