"""Deployments that seeds decide: a few dozen in every run, and the instrument itself (`make simulate`)."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from actors.io import DatagramBatch
from actors.quic_session import QuicSession
from actors.resumption import GRANTS_PER_SLICE
from actors.session_manager import SessionManager
from tests.simnet.least import least_scenario
from tests.simnet.link import LinkConfig
from tests.simnet.nat import (
    ADDRESS_RESTRICTED,
    APD,
    FIREWALL,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC_RANDOM,
    UDP_BLOCKED,
)
from tools.simulate import __main__ as command
from tools.simulate import coverage, plaintext, timers
from tools.simulate.apps import DATAGRAM, MARK, StreamService, pattern
from tools.simulate.corners import REFUSALS, STORIES
from tools.simulate.generate import RECIPES, generate
from tools.simulate.minimise import minimise
from tools.simulate.mutations import Edit
from tools.simulate.oracle import in_the_end, must_be_direct
from tools.simulate.run import DIRECT_LIMIT_S, Outcome, run
from tools.simulate.scenario import Fault, FaultKind, Scenario, Site, Work, WorkKind
from ztna.address import Family
from ztna.nat.behaviour import Dependence, PortAllocation
from ztna.path.traffic import Routes
from ztna.quic.adapter import Engine
from ztna.quic.connection import Connection
from ztna.relay.queue import DropCounts, RelayQueue
from ztna.relay.quic_carrier import QuicCarrier
from ztna.v1 import relay_leg_pb2

SEEDS = [*(("mixed", seed) for seed in range(16)), *((name, 0) for name in RECIPES if name != "mixed")]

V4, V6, BOTH = (Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6)


def deployment(
    agent: Site, connector: Site, *, faults: tuple[Fault, ...] = (), relays: int = 1, seed: int = 1
) -> Scenario:
    """One agent and one connector, between which a stream goes in both directions."""
    return least_scenario(
        agent,
        connector,
        seed=seed,
        intermediates=tuple(f"intermediate-{number}" for number in range(relays)),
        work=(Work(1.5, WorkKind.STREAM, "agent-0", "connector-0", up=40_000, down=5000, over_s=2.0),),
        faults=faults,
        first_family=Family.IPV6,
    )


ADDRESS_DEPENDENT_RANDOM = replace(
    SYMMETRIC_RANDOM, mapping=Dependence.ADDRESS_DEPENDENT, filtering=APD, allocation=PortAllocation.RANDOM
)
ADF_BEHIND_BOTH = Site((ADDRESS_RESTRICTED,), BOTH, FIREWALL)

# What seeds once broke, cut down to what was enough; as data, since the generator draws other things by now.
REGRESSIONS = {
    # paths/24: no reflexive IPv4 address was known while the leg ran over IPv6.
    "leg of another family than the peer": deployment(
        ADF_BEHIND_BOTH, Site((replace(FULL_CONE, mapping=Dependence.ADDRESS_DEPENDENT, filtering=APD),))
    ),
    # direct/42: each intermediate was left before the address of the living family had its turn.
    "dead family is named first, two intermediates": deployment(
        Site(families=BOTH, dead=Family.IPV6), Site(), relays=2, seed=6
    ),
    # failover/27: copies that came first on the direct path passed for a move of the peer; losses were held.
    "one direction is cut under a steady stream": Scenario(
        seed=27,
        name="failover",
        policy="prefer_direct",
        link=LinkConfig(latency_s=0.053),
        intermediates=("intermediate-0",),
        agents={"agent-0": Site((replace(FULL_CONE, allocation=PortAllocation.RANDOM),))},
        connectors={"connector-0": Site((FULL_CONE,))},
        work=(Work(1.578, WorkKind.STREAM, "agent-0", "connector-0", 100_000, 100_000, over_s=8.0),),
        faults=(Fault(2.447, FaultKind.CUT, "agent-0", 3.0, "connector-0"),),
    ),
    # failover/0: what was due to be acknowledged at this very instant waited for the pacer, for ever.
    "acknowledgement that is due at this very instant": Scenario(
        seed=0,
        name="failover",
        policy="prefer_direct",
        link=LinkConfig(latency_s=0.0434),
        intermediates=("intermediate-0",),
        agents={"agent-0": Site()},
        connectors={"connector-0": Site((ADDRESS_RESTRICTED,))},
        work=(Work(0.398, WorkKind.STREAM, "agent-0", "connector-0", 40_000, 40_000, over_s=8.0),),
    ),
    # resume/12: an intermediate went on reporting a session that had waited in vain for its other party.
    "session that waits in vain at the former intermediate": Scenario(
        seed=12,
        name="resume",
        policy="lowest_rtt",
        link=LinkConfig(latency_s=0.0521, jitter_s=0.01, loss=0.005, rate_bps=2e6, queue_bytes=65_536),
        intermediates=("intermediate-0", "intermediate-1"),
        agents={
            "agent-0": Site((replace(ADDRESS_DEPENDENT_RANDOM, lifetime_s=60.0),)),
            "agent-1": Site((FIREWALL,), with_node="connector-0", skew_s=-20.0),
        },
        connectors={"connector-0": Site((FIREWALL,), skew_s=20.0)},
        work=(
            Work(2.894, WorkKind.STREAM, "agent-0", "connector-0", 0, 1, over_s=2.0, pause_s=3.0),
            Work(2.274, WorkKind.STREAM, "agent-0", "connector-0", 100_000, 100_000),
            Work(4.289, WorkKind.STREAM, "agent-1", "connector-0", 1000, 40_000, ends_late=True),
            Work(1.094, WorkKind.DATAGRAMS, "agent-0", "connector-0", 40, 20, over_s=0.2),
        ),
        faults=(
            Fault(1.346, FaultKind.CRASH, "agent-1", detail="candidate_gatherer"),
            Fault(1.698, FaultKind.CRASH, "intermediate-0", detail="signaling_service"),
            Fault(3.431, FaultKind.CRASH, "intermediate-1", detail="signaling_service"),
            Fault(8.434, FaultKind.FREEZE, "connector-0", 3.566),
        ),
        first_family=Family.IPV6,
    ),
    # udp_blocked/5: an address of a family that leads nowhere cost a minute on the way back from gRPC.
    "dead address on the way back from gRPC": replace(
        deployment(
            Site(),
            Site((PORT_RESTRICTED,)),
            faults=(Fault(3.0, FaultKind.BLOCK_UDP, "connector-0", 10.0),),
        ),
        name="udp_blocked",
        has_grpc=True,
        max_seconds=100.0,
    ),
    # grpc/2: a leg over gRPC passed for proof that UDP is blocked, long after it passed again.
    "UDP passes again before the leg over gRPC looks": Scenario(
        seed=2,
        name="grpc",
        policy="prefer_direct",
        link=LinkConfig(latency_s=0.02),
        intermediates=("intermediate-0",),
        agents={"agent-0": Site((replace(ADDRESS_RESTRICTED, allocation=PortAllocation.SEQUENTIAL),))},
        connectors={"connector-0": Site((replace(SYMMETRIC_RANDOM, allocation=PortAllocation.SEQUENTIAL),))},
        work=(Work(2.918, WorkKind.STREAM, "agent-0", "connector-0", 0, 40_000, ends_late=True),),
        faults=(
            Fault(3.163, FaultKind.STOP, "agent-0", 1.0),
            Fault(4.198, FaultKind.CUT, "agent-0", 6.0, "intermediate-0"),
            Fault(5.808, FaultKind.STOP, "agent-0", 0.3),
        ),
        has_grpc=True,
    ),
    # grpc/39: the sessions of a manager that failed were reported until its successor had one.
    "manager of sessions fails, and none comes back to it": Scenario(
        seed=39,
        name="grpc",
        policy="relay_only",
        link=LinkConfig(latency_s=0.0555),
        intermediates=("intermediate-0", "intermediate-1"),
        agents={"agent-0": Site((ADDRESS_RESTRICTED, FULL_CONE))},
        connectors={"connector-0": Site(families=V6)},
        work=(Work(0.087, WorkKind.DATAGRAMS, "agent-0", "connector-0", 40, 20, over_s=0.2),),
        faults=(Fault(1.1, FaultKind.CRASH, "intermediate-0", detail="session_manager"),),
        has_grpc=True,
    ),
    # paths/38: nobody looked for another mapping of a family that the leg does not use.
    "mapping of another family than the leg's is forgotten": deployment(
        Site((PORT_RESTRICTED,)),
        Site((replace(FULL_CONE, allocation=PortAllocation.RANDOM),), BOTH),
        faults=(Fault(2.5, FaultKind.REBIND, "connector-0"),),
    ),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_broke_once_holds(name: str) -> None:
    outcome = run(REGRESSIONS[name])
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])


NOTHING_AT_THE_START = Edit(SessionManager, "on_start", "self._report(self.now)", "pass")
BUGS = {
    "acknowledgement that is due at this very instant": (
        [Edit(Engine, "_write_application", "(due <= now or self", "due > now and (self")],
        "ran more than 100 times",
    ),
    # What an actor says when it starts hides this one here.
    "session that waits in vain at the former intermediate": (
        [
            Edit(
                SessionManager,
                "_act",
                "self._is_changed |= self._core.changes != self._changes_seen",
                "pass",
            ),
            NOTHING_AT_THE_START,
        ],
        "left at intermediates after everybody's goodbye",
    ),
    "manager of sessions fails, and none comes back to it": (
        [NOTHING_AT_THE_START],
        "left at intermediates after everybody's goodbye",
    ),
    "dead address on the way back from gRPC": (
        [Edit(QuicCarrier, "_lose", "self.least_retry_s and self._attempts % self._addresses", "False")],
        "connector-0 at intermediate-0 over grpc",
    ),
}
"""What was wrong, of those that another test guards as well."""


@pytest.mark.parametrize("name", BUGS)
def test_what_broke_once_breaks_again_when_its_bug_is_back(name: str) -> None:
    edits, complaint = BUGS[name]
    with ExitStack() as stack:
        for each in edits:
            stack.enter_context(each.applied())
        assert complaint in run(REGRESSIONS[name]).violation


@pytest.mark.parametrize("party", ["agent-0", "connector-0"])
def test_party_that_is_cut_off_from_the_intermediate_keeps_its_session_on_the_direct_path(party: str) -> None:
    cut = [
        Fault(3.0, FaultKind.CUT, one, 25.0, other)
        for one, other in ((party, "intermediate-0"), ("intermediate-0", party))
    ]
    scenario = replace(
        deployment(Site((PORT_RESTRICTED,)), Site((PORT_RESTRICTED,)), faults=tuple(cut)),
        work=(
            Work(1.5, WorkKind.STREAM, "agent-0", "connector-0", up=40_000, down=40_000, over_s=30.0),
            # Asked for when the intermediate has long given the party up.
            Work(22.0, WorkKind.STREAM, "agent-0", "connector-0", up=500, down=500),
        ),
    )
    outcome = run(scenario)
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    assert (outcome.facts["streams"], outcome.facts["excused"]) == (2, 0)


# mixed/1001: the connector stayed with the session at the intermediate that the agent had left unheard.
def test_agent_that_moves_on_while_its_intermediate_stands_still_is_served_soon() -> None:
    freeze = Fault(2.5, FaultKind.FREEZE, "intermediate-0", 6.0)
    scenario = deployment(Site(families=V4), Site(families=V6, firewall=FIREWALL), faults=(freeze,), relays=2)
    outcome = run(scenario)
    assert not outcome.violation, outcome.violation
    assert outcome.facts["healed_ms"] < 5000


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_seed_holds(name: str, seed: int) -> None:
    scenario = generate(seed, name)
    outcome = run(scenario)
    assert not outcome.violation, "\n".join([outcome.violation, *scenario.lines(), *outcome.lines[-60:]])
    assert 0 < outcome.virtual_s <= scenario.max_seconds


def test_same_seed_is_the_same_run() -> None:
    first, again = (run(generate(5), traces=True).lines for _ in range(2))
    assert len(first) > 500
    assert next(((a, b) for a, b in zip(first, again, strict=False) if a != b), None) is None
    assert len(first) == len(again)


def test_transitions_are_counted_and_told() -> None:
    counts = run(deployment(Site((PORT_RESTRICTED,)), Site((PORT_RESTRICTED,)))).coverage
    assert counts["hole punch: checking nominated"]
    assert counts["pair: in_progress succeeded"]
    told = dict(line.split(maxsplit=1) for line in coverage.lines(counts) if not line.startswith("hole"))
    assert "never" in told["path"]
    assert "beyond the table" not in "".join(told.values())


def test_coverage_says_what_was_never_passed_and_what_was_against_all_arguments() -> None:
    offered = [each for table in coverage.TABLES.values() for each in table]
    assert coverage.UNREACHABLE.keys() <= set(offered)
    assert coverage.RARE.keys() <= set(offered) - coverage.UNREACHABLE.keys()
    excused = {*coverage.UNREACHABLE, *coverage.RARE}
    complete = Counter(each for each in offered if each not in excused)
    assert coverage.shortcomings(complete) == []
    assert "never" not in "".join(coverage.lines(complete))
    complete.subtract(["pair: in_progress succeeded"])
    assert coverage.shortcomings(complete) == ["pair: in_progress succeeded: never passed"]
    complete.update(["pair: in_progress succeeded", "hole punch: gathering fail", "leg: up idle up"])
    assert [each.partition(": passed, ")[0] for each in coverage.shortcomings(complete)] == [
        "hole punch: gathering fail",
        "leg: up idle up",
    ]


def test_no_deployment_brings_back_more_sessions_than_are_verified_at_once() -> None:
    # Why `coverage.UNREACHABLE` has a session that waits for both of its parties.
    most = max(recipe.agents * recipe.connectors for recipe in RECIPES.values())
    assert 2 * most < GRANTS_PER_SLICE


def test_every_other_seed_of_coverage_is_a_storyline_and_no_scenario_is_left_out() -> None:
    tasks = command.in_turn(range(4 * len(RECIPES)))
    assert [name for _, name in tasks[::2]] == ["corners"] * (2 * len(RECIPES))
    assert {name for _, name in tasks} == set(RECIPES)
    assert len(set(tasks)) == len(tasks)


def test_command_fails_while_transitions_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--coverage", "--seeds", "2", "--jobs", "1"]) == command.EXIT_VIOLATION
    printed = capsys.readouterr().out
    assert "0 broken" in printed
    assert "pair: succeeded failed: never passed" in printed


# What each of the storylines is there for, and chance hardly ever meets; by its turn.
CORNERS = {
    "answer after the path was kept": ("hole punch: signaling kept", "hole punch: connected answered"),
    "answer after the relay was reported": ("hole punch: fallback_relay answered",),
    "narrow path is kept": ("hole punch: checking kept", "pair: succeeded failed"),
    "search without any path": ("hole punch: failed exchange", "hole punch: signaling fail"),
    "late success without any path": ("hole punch: failed nominated", "pair: failed succeeded"),
    "direct in spite of the NATs": ("hole punch: waiting_to_start kept",),
    "no intermediate answers": ("selection: trying pausing", "selection: pausing trying"),
    "selector fails beside the second": ("attaching: attached idle",),
    "leg lost before it is up": ("leg: connected waiting", "leg: connected idle"),
    "restart while punching": ("exchange: punching awaiting_answer",),
    "relay lost, and nothing to check": ("hole punch: waiting_to_start fail",),
    "relay dies during probation": ("path: failed impaired",),
    "restart put off": ("hole punch: connected gave_up",),
    "check is missed on probation": ("path: recovering impaired",),
    "restart put off without a relay": ("hole punch: connected fail", "rule: checks_failed"),
}
REFUSED = {
    "rights end while nobody carries": (
        "resume: announced refused_access_denied",
        "resume: told_over closed",
    ),
    "session forgotten while nobody carries": ("resume: announced made_anew", "resume: rebound not_ours"),
    "more than a connector takes": ("tcp: deciding finished", "flow end: deciding"),
}


TELLINGS = 8


@pytest.mark.parametrize(
    ("name", "story"),
    [*(("corners", story) for story in CORNERS), *(("refusals", story) for story in REFUSED)],
)
def test_storyline_leads_to_its_corner(name: str, story: str) -> None:
    """Told a few times if need be: some corners depend on who is faster."""
    stories, leads_to = (STORIES, CORNERS) if name == "corners" else (REFUSALS, REFUSED)
    missing = set(leads_to[story])
    for telling in range(TELLINGS):
        outcome = run(generate(list(stories).index(story) + telling * len(stories), name))
        assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
        missing -= {each for each in missing if outcome.coverage[each]}
        if not missing:
            return
    assert not missing


@pytest.mark.parametrize("name", RECIPES)
def test_scenario_stays_within_its_limits_and_repeats(name: str) -> None:
    for seed in range(200):
        scenario = generate(seed, name)
        assert scenario == generate(seed, name)
        assert scenario.payload_bytes <= RECIPES[name].max_bytes
        assert scenario.faults_end_at <= RECIPES[name].until_s
        assert {fault.target for fault in scenario.faults} <= {*scenario.sites, *scenario.intermediates}
    assert generate(1, name) != generate(2, name)


def pair(agent: Site, connector: Site) -> Scenario:
    return replace(
        generate(0), policy="prefer_direct", agents={"agent-0": agent}, connectors={"connector-0": connector}
    )


@pytest.mark.parametrize(
    ("agent", "connector", "must"),
    [
        (Site(), Site(), True),
        (Site((PORT_RESTRICTED,)), Site((PORT_RESTRICTED, FULL_CONE)), True),
        (Site((SYMMETRIC_RANDOM,)), Site((FULL_CONE,)), True),
        (Site((SYMMETRIC_RANDOM,)), Site((FULL_CONE, PORT_RESTRICTED)), False),
        (Site((FULL_CONE, SYMMETRIC_RANDOM)), Site((SYMMETRIC_RANDOM,)), False),
        (Site((UDP_BLOCKED,)), Site(), False),
        (Site(families=V6), Site(), False),
        (Site(families=V6, firewall=FIREWALL), Site(families=V6, firewall=FIREWALL), True),
        (Site((SYMMETRIC_RANDOM,), with_node="connector-0"), Site((SYMMETRIC_RANDOM,)), True),
        (Site((replace(FULL_CONE, lifetime_s=10.0),)), Site(), False),
        (Site(families=BOTH, dead=Family.IPV6), Site(families=V6), False),
    ],
)
def test_oracle_knows_which_pairs_must_go_direct(agent: Site, connector: Site, must: bool) -> None:
    assert must_be_direct(pair(agent, connector), "agent-0", "connector-0") is must


HARD = Site((SYMMETRIC_RANDOM,), with_node="connector-0")


@pytest.mark.parametrize(
    ("agent", "faults", "must"),
    [
        (Site((SYMMETRIC_RANDOM,)), {"agent-0": "open"}, True),
        (Site((SYMMETRIC_RANDOM,)), {"agent-0": "eim-apdf-preserving"}, False),
        (Site(families=V6), {"agent-0": "open"}, True),
        (Site(), {"agent-0": "apdm-apdf-random"}, False),
        (HARD, {}, True),
        (HARD, {"agent-0": "apdm-apdf-random"}, False),
        (HARD, {"connector-0": "apdm-apdf-random"}, False),
        (HARD, {"connector-0": "open"}, True),
        (Site(), {"connector-0": "apdm-apdf-random", "agent-0": "open"}, True),
    ],
)
def test_who_moved_is_judged_by_where_it_is(agent: Site, faults: dict[str, str], *, must: bool) -> None:
    moves = tuple(Fault(3.0, FaultKind.MOVE, name, detail=detail) for name, detail in faults.items())
    scenario = replace(pair(agent, Site((SYMMETRIC_RANDOM,))), faults=moves)
    assert must_be_direct(in_the_end(scenario), "agent-0", "connector-0") is must


def test_who_shares_a_site_that_passes_no_udp_needs_no_direct_path_to_others() -> None:
    scenario = pair(Site(with_node="connector-1"), Site())
    scenario = replace(scenario, connectors={**scenario.connectors, "connector-1": Site((UDP_BLOCKED,))})
    assert must_be_direct(scenario, "agent-0", "connector-1")
    assert not must_be_direct(scenario, "agent-0", "connector-0")


@pytest.mark.parametrize("name", RECIPES)
def test_there_is_time_for_a_search_that_is_backed_off(name: str) -> None:
    assert RECIPES[name].until_s + DIRECT_LIMIT_S < RECIPES[name].max_seconds
    assert generate(1, name).max_seconds == RECIPES[name].max_seconds
    assert generate(1, name).max_bytes == RECIPES[name].max_bytes


def test_flow_that_is_dead_for_good_is_a_violation_though_new_ones_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The service forgets the flow of before, and no other.
    answer = StreamService.datagrams_received

    def deaf(service: StreamService, batches: list[DatagramBatch], now: float) -> None:
        kept = [
            replace(batch, payloads=[each for each in batch.payloads if DATAGRAM.unpack_from(each)[1] != 1])
            for batch in batches
        ]
        answer(service, kept, now)

    monkeypatch.setattr(StreamService, "datagrams_received", deaf)
    work = (Work(1.0, WorkKind.DATAGRAMS, "agent-0", "connector-0", up=5, down=200, over_s=1.0),)
    violation = run(replace(deployment(Site(), Site()), work=work)).violation
    assert violation.endswith("s after the last fault: former flow 1 of agent-0 to connector-0")


def test_seed_that_takes_longer_or_moves_more_than_it_may_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = generate(1, "direct")
    for change, complaint in (
        ({"max_seconds": 1.0}, "virtual s, more than 1"),
        ({"max_bytes": 10}, "B, more than 10"),
    ):
        monkeypatch.setattr(command, "generate", lambda *_, change=change: replace(drawn, **change))
        arguments = ["--seed", "1", "--scenario", "direct", "--no-minimise"]
        assert command.main(arguments) == command.EXIT_VIOLATION
        assert complaint in capsys.readouterr().out


def test_minimiser_keeps_only_what_breaks() -> None:
    culprit = Fault(3.0, FaultKind.REBIND, "agent-0")
    innocent = [Fault(float(n), FaultKind.CLOCK, "connector-0", amount=5.0) for n in range(6)]
    scenario = replace(generate(3, "faults"), faults=(*innocent[:3], culprit, *innocent[3:]))

    def attempt(candidate: Scenario) -> Outcome:
        is_broken = culprit in candidate.faults
        return Outcome(candidate.seed, candidate.name, violation="it broke" if is_broken else "")

    least = minimise(scenario, attempt(scenario), attempt=attempt)
    assert least.faults == (culprit,)
    assert least.work == ()
    assert least.agents == {"agent-0": Site()}


def test_violation_ends_the_command_with_its_seed_and_the_faults_that_are_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing can be served at once, so every seed breaks.
    monkeypatch.setattr("tools.simulate.run.HEAL_LIMIT_S", 0.0)
    assert command.main(["--seeds", "3", "--start", "4", "--jobs", "1"]) == command.EXIT_VIOLATION
    printed = capsys.readouterr().out
    assert "VIOLATION with seed 4 of mixed: not served within 0 s" in printed
    assert "python -m tools.simulate --scenario mixed --seed 4 --trace" in printed
    assert re.search(r"^ +\d+\.\d+  agent-0\S* +(relay|log) ", printed, re.MULTILINE)


def test_command_tells_what_held(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seeds", "2", "--jobs", "1", "--scenario", "direct"]) == 0
    assert "2 of 2 seeds" in capsys.readouterr().out
    assert command.main(["--seed", "1", "--scenario", "direct", "--trace"]) == 0
    assert "application: stream" in capsys.readouterr().out


def test_command_refuses_a_scenario_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--scenario", "nonsense"])
    assert "mixed" in capsys.readouterr().err


def test_payload_that_an_intermediate_could_read_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    transmit = QuicSession._transmit

    def transmit_in_the_clear(session: QuicSession, connection: Connection, routes: Routes) -> bool:
        session.emit(
            relay_leg_pb2.SendSealed(
                intermediate_id=session._intermediate_id,
                session_id=session._session_id,
                packets=[pattern(1, 0, 0, 500)],
            )
        )
        return transmit(session, connection, routes)

    monkeypatch.setattr(QuicSession, "_transmit", transmit_in_the_clear)
    assert "an intermediate relays payload in the clear" in run(deployment(Site(), Site())).violation


def test_payload_is_found_wherever_an_actor_keeps_it() -> None:
    queue = RelayQueue(DropCounts())
    queue.push(b"sealed", 0.0)
    assert not plaintext.holder_in({"queues": [queue]})
    queue.push(b"x" * 100 + MARK, 0.0)
    assert "RelayQueue" in plaintext.holder_in({"queues": [queue]})


def test_deadline_beyond_the_bound_of_its_concern_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timers.MAX_DEADLINE_S, "keepalive", 2.0)
    violation = run(deployment(Site(), Site())).violation
    assert re.search(r"timer of keepalive/\w+ is set for \d+\.\d s from now, of at most 2 s", violation)


def test_actor_without_a_bound_for_its_timer_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(timers.MAX_DEADLINE_S, "status_board")
    assert "timer of status_board/ has no bound" in run(deployment(Site(), Site())).violation
