"""Five hundred deployments that seeds decide, of all scenarios; what `make simulate` runs, in chunks.

Each chunk names its scenario and seeds; what it says of one that broke has the command that replays it.
"""

from __future__ import annotations

import pytest

from tools.simulate.generate import RECIPES, generate
from tools.simulate.run import run
from tools.simulate.scenario import MAX_SECONDS

CHUNK = 10
"""Seeds: ten seconds of processor time, so that no worker is left with much at the end."""

COUNTS = {
    "mixed": 110,
    "direct": 40,
    "faults": 60,
    "paths": 60,
    "quiet": 20,
    "resume": 40,
    "abuse": 40,
    "failover": 40,
    "bulk": 10,
    "slow": 20,
    "revoked": 40,
    "insider": 20,
    "relay_only": 20,
}
"""Seeds of each scenario: more where more is drawn, fewer where each costs more. Others have one chunk."""

LONG_S = {"asleep": 150.0, "udp_blocked": 100.0}
"""Virtual seconds that a seed may take where more than a minute is what it is about: a machine sleeps for two
minutes; QUIC is tried again a minute after it failed."""

CHUNKS = [
    pytest.param(name, range(first, first + CHUNK), id=f"{name}-{first}-{first + CHUNK - 1}")
    for name in RECIPES
    for first in range(0, COUNTS.get(name, CHUNK), CHUNK)
]


def test_there_are_five_hundred_of_all_scenarios() -> None:
    assert COUNTS.keys() <= RECIPES.keys()
    assert CHUNK * len(CHUNKS) >= 500


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "seeds"), CHUNKS)
def test_every_seed_holds(name: str, seeds: range) -> None:
    broken = []
    for seed in seeds:
        outcome = run(generate(seed, name))
        complaint = outcome.violation.split("\n", 1)[0]
        if not complaint and outcome.virtual_s > LONG_S.get(name, MAX_SECONDS):
            complaint = f"took {outcome.virtual_s:.0f} virtual s"
        if complaint:
            broken.append(
                f"scenario {name}, seed {seed}: {complaint}\n"
                f"    python -m tools.simulate --scenario {name} --seed {seed} --trace"
            )
    assert not broken, "\n".join(["", *broken])
