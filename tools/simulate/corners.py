"""Storylines that lead through the corners of the machines: transitions that chance alone hardly ever meets.

Each is a small deployment and a sequence of faults whose order matters; what varies is how long things take.
A seed of the scenario `corners` tells one of them, all in turn, and one of `refusals` one of the last few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tests.simnet.link import LinkConfig
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site, Work, WorkKind
from tools.simulate.sites import FIREWALLS, NATS
from ztna.address import Family
from ztna.ice.timing import FAILED_AFTER_MISSED

AGENT, CONNECTOR = "agent-0", "connector-0"
FIRST, SECOND = "intermediate-0", "intermediate-1"
OPEN: Final = Site()
FIRM: Final = Site((NATS["eim-apdf-preserving"],))
RANDOM: Final = Site((NATS["apdm-apdf-random"],))
"""Two of these find no direct path across the network."""

GAP_S: Final = 0.1
"""Between two datagrams of a steady flow: shorter than the patience with a path that fell silent."""

Story = Callable[[random.Random], Scenario]


def tell(seed: int, name: str, chance: random.Random) -> Scenario:
    """The storyline whose turn it is."""
    stories = list((REFUSALS if name == "refusals" else STORIES).values())
    story = stories[seed % len(stories)]
    return replace(story(chance), seed=seed, name=name)


def _both_ways(
    kind: FaultKind, at: float, one: str, other: str, lasts_s: float, amount: float = 0.0
) -> list[Fault]:
    fault = Fault(at, kind, one, lasts_s, other, amount)
    return [fault, replace(fault, target=other, other=one)]


def _scenario(
    chance: random.Random,
    faults: Sequence[Fault],
    *,
    sites: tuple[Site, Site] = (OPEN, OPEN),
    intermediates: tuple[str, ...] = (FIRST,),
    opens_s: float = 1.0,
    from_s: float = 1.0,
    flows_s: float = 0.0,
    max_missed: tuple[int, int] = (FAILED_AFTER_MISSED, FAILED_AFTER_MISSED),
) -> Scenario:
    """A short stream opens the session at `opens_s`; from `from_s` on, datagrams flow for `flows_s`."""
    names = (AGENT, CONNECTOR)
    work = [Work(opens_s, WorkKind.STREAM, AGENT, CONNECTOR, 1000, 1000)]
    if flows_s:
        count = int(flows_s / GAP_S)
        work.append(Work(from_s, WorkKind.DATAGRAMS, AGENT, CONNECTOR, count, 100, over_s=flows_s))
    return Scenario(
        seed=0,
        name="",
        policy="prefer_direct",
        link=LinkConfig(latency_s=round(chance.uniform(0.015, 0.03), 4)),
        intermediates=intermediates,
        agents={AGENT: sites[0]},
        connectors={CONNECTOR: sites[1]},
        work=tuple(work),
        faults=tuple(sorted(faults, key=lambda each: each.at)),
        settings={
            name: {"keepalive": {"max_missed": most}} for name, most in zip(names, max_missed, strict=True)
        },
    )


def _answer_after_the_path_was_kept(chance: random.Random) -> Scenario:
    """Beside a direct path that works and no relay, a search is given up, and answered then."""
    at = chance.uniform(10.3, 10.5)
    faults = [
        *_both_ways(FaultKind.CUT, 2.0, AGENT, FIRST, 13.7),
        Fault(at, FaultKind.FREEZE, CONNECTOR, chance.uniform(5.6, 6.5)),
        Fault(at + 0.2, FaultKind.RESTART_ICE, AGENT),
    ]
    return _scenario(chance, faults)


def _answer_after_the_relay_was_reported(chance: random.Random) -> Scenario:
    at = chance.uniform(7.0, 9.0)
    faults = [
        Fault(at, FaultKind.FREEZE, CONNECTOR, 5.7),
        Fault(at + 0.2, FaultKind.RESTART_ICE, AGENT),
    ]
    return _scenario(chance, faults, sites=(RANDOM, RANDOM))


def _narrow_path_is_kept(chance: random.Random) -> Scenario:
    """The path in use carries small packets only, and little is said: a search finds nothing better."""
    at = chance.uniform(5.0, 7.0)
    faults = [
        *_both_ways(FaultKind.MTU, at, AGENT, CONNECTOR, 10.0, 1100.0),
        Fault(at + 0.3, FaultKind.RESTART_ICE, AGENT),
    ]
    return _scenario(chance, faults)


def _search_without_any_path(chance: random.Random) -> Scenario:
    at = chance.uniform(5.0, 6.0)
    faults = [
        *_both_ways(FaultKind.CUT, at, AGENT, FIRST, 13.0),
        Fault(at + 4.5, FaultKind.RESTART_ICE, AGENT),
    ]
    return _scenario(chance, faults, sites=(RANDOM, RANDOM), flows_s=16.0)


def _late_success_without_any_path(chance: random.Random) -> Scenario:
    """All checks fail, the relay is lost, and then the peer goes on and answers what waited for it."""
    at = chance.uniform(1.5, 1.75)
    faults = [
        *_both_ways(FaultKind.DELAY, 0.1, AGENT, CONNECTOR, 12.0, 0.8),
        Fault(at, FaultKind.FREEZE, CONNECTOR, 6.0),
        *_both_ways(FaultKind.CUT, at + 0.1, AGENT, FIRST, 9.0),
    ]
    return _scenario(chance, faults, flows_s=8.0)


def _direct_in_spite_of_the_nats(chance: random.Random) -> Scenario:
    """What is known of the NATs rules a direct path out, and both stand in one network."""
    first = chance.uniform(6.0, 7.0)
    faults = [
        Fault(first, FaultKind.RESTART_ICE, AGENT),
        Fault(first + 2.0, FaultKind.RESTART_ICE, CONNECTOR),
    ]
    return _scenario(chance, faults, sites=(replace(RANDOM, with_node=CONNECTOR), RANDOM))


def _no_intermediate_answers(chance: random.Random) -> Scenario:
    faults = [Fault(chance.uniform(3.0, 4.0), FaultKind.BLOCK_UDP, AGENT, chance.uniform(6.0, 13.0))]
    return _scenario(chance, faults, intermediates=(FIRST, SECOND), flows_s=8.0)


def _selector_fails_beside_the_second(chance: random.Random) -> Scenario:
    at = chance.uniform(2.0, 3.0)
    faults = [
        Fault(at, FaultKind.KILL, FIRST, 14.0),
        Fault(at + chance.uniform(6.0, 8.0), FaultKind.CRASH, AGENT, detail="intermediate_selector"),
    ]
    return _scenario(chance, faults, intermediates=(FIRST, SECOND), flows_s=8.0)


def _leg_lost_before_it_is_up(chance: random.Random) -> Scenario:
    """Both ends are authenticated, and no attachment is told: the agent moves on, the connector waits."""
    faults = [Fault(chance.uniform(0.07, 0.095), FaultKind.FREEZE, FIRST, 5.0)]
    told = _scenario(chance, faults, intermediates=(FIRST, SECOND))
    return replace(told, link=LinkConfig(latency_s=0.02))


def _restart_while_punching(chance: random.Random) -> Scenario:
    """A second offer has to go through the intermediate, and the first one's checks still run."""
    at = chance.uniform(1.6, 2.0)
    faults = [
        *_both_ways(FaultKind.CUT, 0.1, AGENT, CONNECTOR, 9.0),
        Fault(at, FaultKind.FREEZE, CONNECTOR, 4.0),
        Fault(at + 0.3, FaultKind.RESTART_ICE, AGENT),
    ]
    return _scenario(chance, faults)


def _checks_alone_decide(chance: random.Random) -> Scenario:
    """Nothing is said, so that only unanswered checks tell of the end of a path, or the end of consent."""
    max_missed = chance.choice((FAILED_AFTER_MISSED, 10))
    lasts_s = 24.0 if max_missed == FAILED_AFTER_MISSED else 32.0
    faults = _both_ways(FaultKind.CUT, chance.uniform(3.5, 4.5), AGENT, CONNECTOR, lasts_s)
    return _scenario(chance, faults, max_missed=(max_missed, max_missed))


def _one_check_decides(chance: random.Random) -> Scenario:
    """The path fails again while it is on probation, where one unanswered check is the end of it."""
    faults = [
        *_both_ways(FaultKind.CUT, 4.0, AGENT, CONNECTOR, 2.0),
        *_both_ways(FaultKind.CUT, 8.0, AGENT, CONNECTOR, 2.0),
        *_both_ways(FaultKind.CUT, chance.uniform(10.5, 12.5), AGENT, CONNECTOR, 4.0),
    ]
    max_missed = chance.choice((1, FAILED_AFTER_MISSED))
    return _scenario(chance, faults, flows_s=16.0, max_missed=(max_missed, max_missed))


def _check_is_missed_on_probation(chance: random.Random) -> Scenario:
    """As before, with a patience that would bear one unanswered check of a path in use."""
    faults = [
        *_both_ways(FaultKind.CUT, 4.0, AGENT, CONNECTOR, 2.0),
        *_both_ways(FaultKind.CUT, 8.0, AGENT, CONNECTOR, 2.0),
        *_both_ways(FaultKind.CUT, chance.uniform(11.5, 12.5), AGENT, CONNECTOR, 4.0),
    ]
    return _scenario(chance, faults, flows_s=16.0)


def _relay_dies_during_probation(chance: random.Random) -> Scenario:
    """While the direct path has not earned its place again, the peer's leg is lost."""
    faults = [
        *_both_ways(FaultKind.CUT, 4.0, AGENT, CONNECTOR, 2.0),
        *_both_ways(FaultKind.CUT, 8.0, AGENT, CONNECTOR, 2.0),
        *_both_ways(FaultKind.CUT, chance.uniform(10.5, 12.0), CONNECTOR, FIRST, 12.0),
    ]
    return _scenario(chance, faults, flows_s=18.0)


def _restart_put_off(chance: random.Random) -> Scenario:
    """The peer, who is less patient, asked for a restart just now; and then the path fails at this end."""
    faults = [
        *_both_ways(FaultKind.CUT, 4.0, AGENT, CONNECTOR, 10.0),
        *_both_ways(FaultKind.CUT, chance.uniform(19.0, 20.0), AGENT, CONNECTOR, 3.0),
    ]
    return _scenario(chance, faults, from_s=17.0, flows_s=8.0, max_missed=(FAILED_AFTER_MISSED, 1))


def _restart_put_off_without_a_relay(chance: random.Random) -> Scenario:
    faults = [
        *_both_ways(FaultKind.CUT, 4.0, AGENT, CONNECTOR, 10.0),
        *_both_ways(FaultKind.CUT, chance.uniform(17.0, 18.0), AGENT, CONNECTOR, 22.0),
        *_both_ways(FaultKind.CUT, 27.0, AGENT, FIRST, 13.5),
    ]
    return _scenario(chance, faults, max_missed=(FAILED_AFTER_MISSED, 1))


def _both_intermediates_are_lost(chance: random.Random) -> Scenario:
    """The second one before it has proved itself, and back before the pause is over."""
    at = chance.uniform(2.0, 3.0)
    faults = [
        Fault(at, FaultKind.KILL, FIRST, 12.0),
        Fault(at + chance.uniform(5.0, 6.0), FaultKind.KILL, SECOND, chance.uniform(2.7, 3.3)),
    ]
    sites = (RANDOM, RANDOM)
    return _scenario(chance, faults, sites=sites, intermediates=(FIRST, SECOND), flows_s=14.0)


def _signaling_is_back_at_once(chance: random.Random) -> Scenario:
    """The second intermediate drops everybody before it has proved itself, and answers during the pause."""
    at = chance.uniform(2.0, 3.0)
    faults = [
        Fault(at, FaultKind.KILL, FIRST, 12.0),
        Fault(at + chance.uniform(5.0, 6.0), FaultKind.CRASH, SECOND, detail="signaling_service"),
    ]
    told = _scenario(chance, faults, sites=(RANDOM, RANDOM), intermediates=(FIRST, SECOND), flows_s=14.0)
    return replace(told, link=LinkConfig(latency_s=0.003))


def _relay_lost_and_nothing_to_check(chance: random.Random) -> Scenario:
    """No family is common, and the peer, which waits for its mapping, never says that it has no candidate."""
    faults = [
        # Its leg is up, and it does not tell a gatherer that begins anew where it sees the connector.
        Fault(0.2, FaultKind.FREEZE, SECOND, 12.0),
        Fault(0.22, FaultKind.CRASH, CONNECTOR, detail="candidate_gatherer"),
        *_both_ways(FaultKind.CUT, chance.uniform(0.5, 0.6), AGENT, FIRST, 12.5),
    ]
    sites = (OPEN, Site(families=(Family.IPV6,), firewall=FIREWALLS["firewall"]))
    told = _scenario(chance, faults, sites=sites, intermediates=(FIRST, SECOND), opens_s=0.3, flows_s=8.0)
    return replace(told, link=LinkConfig(latency_s=0.02))


def _rights_end_while_nobody_carries(chance: random.Random) -> Scenario:
    """The intermediate comes back without the rule, and takes the session no more; a direct path may stay."""
    at = chance.uniform(4.0, 5.0)
    faults = [
        Fault(at, FaultKind.KILL, FIRST, chance.uniform(3.0, 4.0)),
        Fault(at + 1.0, FaultKind.REVOKE, AGENT),
    ]
    site = chance.choice((OPEN, RANDOM))
    return _scenario(chance, faults, sites=(site, site), flows_s=8.0)


def _session_forgotten_while_nobody_carries(chance: random.Random) -> Scenario:
    """One party is another process when the intermediate is back; the other one brings the session along."""
    at = chance.uniform(4.0, 5.0)
    faults = [
        Fault(at, FaultKind.KILL, FIRST, 4.0),
        Fault(at + 1.0, FaultKind.KILL, chance.choice((AGENT, CONNECTOR)), chance.uniform(1.0, 2.5)),
    ]
    return _scenario(chance, faults, sites=(RANDOM, RANDOM))


def _more_than_a_connector_takes(chance: random.Random) -> Scenario:
    """Its service answers nobody, so that connections pile up, and flows are more than it lets in."""
    at = chance.uniform(3.0, 4.0)
    told = _scenario(chance, [Fault(at, FaultKind.DEAD_SERVICE, CONNECTOR, 4.0)])
    streams = [Work(at + 0.1, WorkKind.STREAM, AGENT, CONNECTOR, 1000, 1000) for _ in range(4)]
    flows = [Work(at + 0.1, WorkKind.DATAGRAMS, AGENT, CONNECTOR, 1, 100) for _ in range(4)]
    limits = {"streams_per_agent": 2, "flows_per_agent": 3}
    settings = {**told.settings, CONNECTOR: {**told.settings[CONNECTOR], "limits": limits}}
    return replace(told, work=(*told.work, *streams, *flows), settings=settings)


def _everybody_comes_back_at_once(chance: random.Random) -> Scenario:
    faults = [Fault(chance.uniform(3.0, 6.0), FaultKind.FREEZE, FIRST, chance.uniform(4.0, 9.0))]
    return _scenario(chance, faults, flows_s=8.0)


STORIES: Final[dict[str, Story]] = {
    "answer after the path was kept": _answer_after_the_path_was_kept,
    "answer after the relay was reported": _answer_after_the_relay_was_reported,
    "narrow path is kept": _narrow_path_is_kept,
    "search without any path": _search_without_any_path,
    "late success without any path": _late_success_without_any_path,
    "direct in spite of the NATs": _direct_in_spite_of_the_nats,
    "no intermediate answers": _no_intermediate_answers,
    "selector fails beside the second": _selector_fails_beside_the_second,
    "leg lost before it is up": _leg_lost_before_it_is_up,
    "restart while punching": _restart_while_punching,
    "checks alone decide": _checks_alone_decide,
    "one check decides": _one_check_decides,
    "relay dies during probation": _relay_dies_during_probation,
    "both intermediates are lost": _both_intermediates_are_lost,
    "signaling is back at once": _signaling_is_back_at_once,
    "relay lost, and nothing to check": _relay_lost_and_nothing_to_check,
    "restart put off": _restart_put_off,
    "restart put off without a relay": _restart_put_off_without_a_relay,
    "everybody comes back at once": _everybody_comes_back_at_once,
    "check is missed on probation": _check_is_missed_on_probation,
}
"""By what they are about."""

REFUSALS: Final[dict[str, Story]] = {
    "rights end while nobody carries": _rights_end_while_nobody_carries,
    "session forgotten while nobody carries": _session_forgotten_while_nobody_carries,
    "more than a connector takes": _more_than_a_connector_takes,
}
"""Those of the scenario `refusals`."""
