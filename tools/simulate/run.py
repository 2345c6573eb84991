"""Runs a scenario from the start of its daemons until nothing of them is left, and says what broke."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pykka
from google.protobuf.message import Message

from tests.simnet.world import Daemon
from tools.simulate import coverage, plaintext
from tools.simulate.apps import FlowClient, StreamClient
from tools.simulate.bounds import open_streams
from tools.simulate.deployment import Deployment
from tools.simulate.faults import Faults
from tools.simulate.invariants import Watcher
from tools.simulate.oracle import home_of, in_the_end, must_be_direct
from tools.simulate.scenario import MAX_SKEW_S, Fault, FaultKind, Scenario, Work, WorkKind
from tools.simulate.timeline import Timeline
from ztna.access.identity import Role
from ztna.relay.hub import SILENCE_LIMIT_S
from ztna.relay.leg import QUIC_RETRY_S
from ztna.relay.quic_carrier import DEAD_AFTER_S
from ztna.session.connector_table import PEER_LOST_PATIENCE_S
from ztna.v1 import quic_relay_pb2, session_manager_pb2, types_pb2

STEP_S: Final = 0.1
"""Between two looks at progress; packets and messages are judged as they come."""
LOOK_EVERY_S: Final = 0.5
"""Between two looks at every table, which is dear."""
HEAL_LIMIT_S: Final = 20.0
"""After the last fault a new connection and a new flow of each pair are served: a leg is given up after 3 s,
an attachment dialled every 2 s, a silent node forgotten after 15 s."""
STREAM_LIMIT_S: Final = 30.0
"""By then whatever was begun is at its end: what it waits for longest is a backed-off probe of QUIC."""
DIRECT_LIMIT_S: Final = 46.0 - STEP_S
"""A pair that failed once is tried again after 30 s ± 20 %, and a search takes up to 10 s."""
CLEAN_DIRECT_LIMIT_S: Final = 10.0
"""Where nothing went wrong: gathering 2 s, an exchange of a few round trips, checks 5 s."""
FREED_LIMIT_S: Final = PEER_LOST_PATIENCE_S + SILENCE_LIMIT_S + 20.0
"""After a goodbye, each packet of which may be lost: then a leg without an attachment idles out."""
OPENING_EXCUSE_S: Final = 15.0
"""A connection may be refused for so long after a fault, since nobody could serve it yet."""
DEAD_FAMILY_EXCUSE_S: Final = DEAD_AFTER_S
"""Who has addresses of a family that leads nowhere, and tries it first, attaches so much later: whoever asks
for a service before that may be told that there is none."""
PRESUMED_LOST_S: Final = SILENCE_LIMIT_S - 5.0
"""A node that cannot be heard for so long may have been given up: its packets may have been late before."""
STALL_LIMIT_S: Final = 0.9
"""Where only the direct path dies: a path is suspected after 150 ms, and given up after 1 s or 4 RTT."""
REVOKED_LIMIT_S: Final = 3.0
"""After an agent lost its rights, nothing of it reaches a service any more: one way to each party, and time
for what was lost."""
CERTIFICATE_LIMIT_S: Final = 3.0
"""After a certificate ended, or a party or intermediate was given the list that names it: each end judges the
other once a second, and whoever loads a list at once; what is on its way arrives."""
QUIC_LIMIT_S: Final = QUIC_RETRY_S + 2 * DEAD_AFTER_S + 1.0
"""From the moment that UDP passes until a leg that went over gRPC has left it: a round of both addresses that
has just begun is in vain, and the next one may begin with the family that leads nowhere."""
PROBE_EVERY_S: Final = 1.0
FIRST_PROBE: Final = 10_000
FORMER: Final = "former"

_SILENCES: Final = {
    FaultKind.CUT,
    FaultKind.LOSS,
    FaultKind.RATE,
    FaultKind.MTU,
    FaultKind.CORRUPTION,
    FaultKind.DELAY,
    FaultKind.BLOCK_UDP,
}
_COSTS_PARTIES: Final = {
    FaultKind.KILL,
    FaultKind.STOP,
    FaultKind.DEAD_SERVICE,
    FaultKind.EXPIRE,
    FaultKind.WITHDRAW,
}
_LEAVE_JUDGES_ALONE: Final = {FaultKind.EXPIRE, FaultKind.WITHDRAW, FaultKind.KILL}
_COSTS_SESSIONS: Final = {
    "quic_session",
    "session_table",
    "udp_socket",
    "relay_leg",
    "service_port",
    "service_backend",
}


class ViolationError(Exception):
    """Something that must hold does not."""


@dataclass(slots=True)
class Outcome:
    """What a run came to; `violation` is empty when all held.

    Attributes:
        lines: the timeline, when it was asked for or something broke.
        cpu_s: processor time.
        virtual_s: until everything was closed.
        facts: what happened how often, for the summary.
        coverage: states and transitions, how often each.
    """

    seed: int
    name: str
    violation: str = ""
    lines: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    virtual_s: float = 0.0
    facts: Counter[str] = field(default_factory=Counter)
    coverage: Counter[str] = field(default_factory=Counter)

    @property
    def kind(self) -> str:
        """The violation without its figures, so that two can be told to be the same."""
        first = self.violation.split("\n", 1)[0]
        return "".join("#" if each.isdigit() else each for each in first)[:60]


def run(scenario: Scenario, *, traces: bool = False) -> Outcome:
    """Run one scenario."""
    outcome = Outcome(scenario.seed, scenario.name)
    foreign = {ref.actor_urn for ref in pykka.ActorRegistry.get_all()}
    coverage.install()
    coverage.take()
    # What aioquic says of hostile packets is no news here.
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    started = time.process_time()
    attempt = Run(scenario, outcome)
    try:
        attempt.go()
    except ViolationError as error:
        outcome.violation = str(error)
    except AssertionError as error:
        outcome.violation = str(error) or traceback.format_exc()
    except Exception:  # noqa: BLE001 - whatever a run raises is what it found
        outcome.violation = traceback.format_exc()
    finally:
        attempt.abandon()
        for ref in pykka.ActorRegistry.get_all():
            if ref.actor_urn not in foreign:
                ref.actor_stopped.set()
                pykka.ActorRegistry.unregister(ref)
    outcome.coverage = coverage.take()
    outcome.cpu_s = time.process_time() - started
    if outcome.violation or traces:
        attempt.tell(outcome.violation)
        outcome.lines = attempt.lines()
    return outcome


class Run:
    """One run."""

    def __init__(self, scenario: Scenario, outcome: Outcome) -> None:
        """Nothing is built yet."""
        self._scenario = scenario
        self._outcome = outcome
        self._violations: list[str] = []
        self._timeline = Timeline()
        self._watcher = Watcher(self._violated)
        self._world: Deployment | None = None
        self._streams: list[StreamClient] = []
        self._flows: list[FlowClient] = []
        self._pairs_by_number: dict[int, tuple[str, str]] = {}
        self._started_at = 0.0
        self._next_number = 0
        self._look_at = 0.0

    def go(self) -> None:
        """From the start to the end; raises `ViolationError`."""
        with plaintext.opened_packets(self._violated):
            self._go()

    def _go(self) -> None:
        scenario = self._scenario
        world = self._world = Deployment(scenario, self._violated, self._message)
        self._started_at = world.now
        faults = Faults(world, scenario, lambda what: self._note("", what))
        self._watcher.overhear = faults.strangers.overhear
        self._watcher.overhear_stun = faults.strangers.overhear_stun
        self._watcher.forger = faults.strangers.forger
        self._watcher.watch(world, faults.strangers.addresses)
        for connector in world.services:
            world.services[connector].allows = self._rule_for(connector)
            world.services[connector].stall_s = self._stall_s
        world.start()
        for work in scenario.work:
            world.clock.call_at(world.now + work.at, lambda work=work: self._begin(work))  # type: ignore[misc]
        self._run_until(lambda: world.now - self._started_at >= self._quiet_at)
        self._heal()
        self._go_direct()
        self._use_udp()
        self._finish_streams()
        self._watcher.count()
        self._judge()
        self._close()
        self._outcome.virtual_s = world.now - self._started_at
        self._keep_within_limits()

    def _keep_within_limits(self) -> None:
        """Thousands of seeds are to run in minutes."""
        scenario, took_s = self._scenario, self._outcome.virtual_s
        if took_s > scenario.max_seconds:
            raise ViolationError(f"took {took_s:.0f} virtual s, more than {scenario.max_seconds:g}")
        if scenario.payload_bytes > scenario.max_bytes:
            raise ViolationError(f"moves {scenario.payload_bytes} B, more than {scenario.max_bytes}")

    def abandon(self) -> None:
        """Let go of whatever still runs."""
        world = self._world
        if world is not None:
            for daemon in world.daemons.values():
                if daemon.node is not None:
                    world.kill(daemon.id)

    def tell(self, what: str) -> None:
        """Write into the timeline."""
        if what:
            self._note("", f"VIOLATION: {what.splitlines()[0]}")

    def lines(self) -> list[str]:
        """The timeline."""
        return [] if self._world is None else self._timeline.lines(self._world, self._started_at)

    # What happens by itself

    @property
    def _stall_s(self) -> float:
        return STALL_LIMIT_S if self._scenario.name == "failover" else math.inf

    @property
    def _quiet_at(self) -> float:
        """When all work has begun and no fault is left."""
        last = max((work.at for work in self._scenario.work), default=0.0)
        return max(self._scenario.faults_end_at, last) + STEP_S

    def _violated(self, what: str) -> None:
        if len(self._violations) < 10:
            self._violations.append(what)
            self._note("", f"violated: {what}")

    def _note(self, place: str, what: str) -> None:
        if self._world is not None:
            self._timeline.note(self._world.now, place, what)

    def _message(self, daemon: Daemon, message: Message) -> None:
        self._watcher.message(daemon, message)

    def _rule_for(self, connector: str) -> Callable[[int], bool]:
        def allows(number: int) -> bool:
            pair = self._pairs_by_number.get(number)
            if pair is not None and (self._is_long_revoked(pair[0]) or self._is_long_untrusted(*pair)):
                return False
            return pair is not None and pair[1] == connector and pair not in self._scenario.denied

        return allows

    def _is_long_revoked(self, agent: str) -> bool:
        """Whether an intermediate had its time to tell everybody, and nothing hindered it."""
        kinds = {fault.kind for fault in self._scenario.faults}
        world = self._world
        if world is None or agent not in world.revoked or not kinds <= {FaultKind.REVOKE, FaultKind.ABUSE}:
            return False
        return world.now > world.revoked[agent] + REVOKED_LIMIT_S

    def _is_long_untrusted(self, agent: str, connector: str) -> bool:
        """Whether a certificate of one of the two is worth nothing, and whoever judges it had its time."""
        world = self._world
        if world is None or not {fault.kind for fault in self._scenario.faults} <= _LEAVE_JUDGES_ALONE:
            return False
        since = world.now - self._started_at
        for fault in self._scenario.faults:
            if fault.target not in {agent, connector} or (fault.lasts_s and since >= fault.ends_at):
                continue
            judge = connector if fault.target == agent else agent
            if fault.kind is FaultKind.EXPIRE:
                # By the clock of the one who judges.
                late_s = since + world.daemons[judge].host.skew_s - fault.at
                if late_s > CERTIFICATE_LIMIT_S:
                    return True
            elif fault.kind is FaultKind.WITHDRAW and since > fault.at + CERTIFICATE_LIMIT_S:
                return True
        return False

    def _is_out(self, name: str) -> bool:
        """Whether the certificate of a node was revoked for good."""
        return any(
            fault.kind is FaultKind.WITHDRAW and fault.target == name and not fault.lasts_s
            for fault in self._scenario.faults
        )

    def _is_of_outsider(self, work: Work) -> bool:
        return self._is_out(work.agent) or self._is_out(work.connector)

    def _begin(self, work: Work) -> None:
        if work.kind is WorkKind.STREAM:
            self._streams.append(self._open_stream(work))
        else:
            self._flows.append(self._open_flow(work))

    def _open_stream(self, work: Work) -> StreamClient:
        world, number = self._numbered(work)
        self._note(work.agent, f"application: stream {number} to {work.connector}")
        port = world.tcp_port(work.connector)
        stall_s = self._stall_s
        if self._scenario.name == "certificates" and not self._is_hit(work):
            stall_s = STALL_LIMIT_S
        client = StreamClient(world.app_io(work.agent), number, work, port, self._violated, stall_s)
        client.allows = lambda: not self._is_long_untrusted(work.agent, work.connector)
        return client

    def _is_hit(self, work: Work) -> bool:
        """Whether a fault is about one of the two parties; an intermediate is one of everybody's."""
        hit = {fault.target for fault in self._scenario.faults}
        return bool(hit & {work.agent, work.connector, *self._scenario.intermediates})

    def _open_flow(self, work: Work) -> FlowClient:
        world, number = self._numbered(work)
        self._note(work.agent, f"application: flow {number} to {work.connector}")
        port = world.udp_port(work.connector)
        return FlowClient(world.app_io(work.agent), number, work, port, self._violated)

    def _numbered(self, work: Work) -> tuple[Deployment, int]:
        assert self._world is not None  # noqa: S101
        self._next_number += 1
        self._pairs_by_number[self._next_number] = (work.agent, work.connector)
        return self._world, self._next_number

    # The phases

    def _run_until(self, predicate: Callable[[], bool], limit_s: float = 3600.0) -> bool:
        """Run in steps until `predicate` holds, and look at everything between them."""
        world = self._world
        assert world is not None  # noqa: S101
        end = world.now + limit_s
        while not predicate():
            if world.now >= end:
                return False
            world.clock.run_until(self._is_violated, min(STEP_S, end - world.now))
            if world.now >= self._look_at:
                self._look_at = world.now + LOOK_EVERY_S
                self._watcher.look()
            self._judge()
        return True

    def _is_violated(self) -> bool:
        """Asked before each event, and so after each."""
        if self._scenario.is_watched_closely:
            self._watcher.look_closely()
        return bool(self._violations)

    def _judge(self) -> None:
        if self._violations:
            raise ViolationError("\n".join(self._violations))
        assert self._world is not None  # noqa: S101
        self._world.check()

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """Those that are to be served in the end."""
        world = self._world
        assert world is not None  # noqa: S101
        for agent in self._scenario.agents:
            for connector in self._scenario.connectors:
                if (agent, connector) in self._scenario.denied or agent in world.revoked:
                    continue
                if not (self._is_out(agent) or self._is_out(connector)):
                    yield agent, connector

    def _heal(self) -> None:
        """A new connection, a new flow and each former flow of each pair are served, within the limit."""
        world = self._world
        assert world is not None  # noqa: S101
        since = world.now
        pairs = {*self._pairs()}
        # What was sent before may be answered late, and says nothing of now.
        flows = {
            f"{FORMER} flow {flow.number} of {flow.work.agent} to {flow.work.connector}": (flow, flow.send())
            for flow in self._flows
            if (flow.work.agent, flow.work.connector) in pairs
            # Where only so many are let in, those that were would keep all others out by going on.
            and "limits" not in self._scenario.settings.get(flow.work.connector, {})
        }
        probes = {pair: self._probe_stream(*pair) for pair in self._pairs()}
        flows |= {f"flow {a} to {c}": (self._probe_flow(a, c), 0) for a, c in self._pairs()}
        next_at = world.now + PROBE_EVERY_S

        def waiting() -> list[str]:
            nonlocal next_at
            silent = {name: flow for name, (flow, first) in flows.items() if flow.latest_answer < first}
            if world.now >= next_at:
                next_at += PROBE_EVERY_S
                for pair, client in probes.items():
                    if client.is_over and not client.is_complete:
                        probes[pair] = self._probe_stream(*pair)
                for flow in silent.values():
                    flow.send()
            names = [f"stream {a} to {c}" for (a, c), each in probes.items() if not each.is_complete]
            names += silent
            # Where nothing is served, former flows are no news.
            return [each for each in names if not each.startswith(FORMER)] or names

        if not self._run_until(lambda: not waiting(), HEAL_LIMIT_S):
            raise ViolationError(
                f"not served within {HEAL_LIMIT_S:g} s after the last fault: {', '.join(waiting())}"
            )
        self._outcome.facts["healed_ms"] = int(1e3 * (world.now - since))

    def _probe_stream(self, agent: str, connector: str) -> StreamClient:
        return self._open_stream(Work(0, WorkKind.STREAM, agent, connector, up=500, down=500))

    def _probe_flow(self, agent: str, connector: str) -> FlowClient:
        return self._open_flow(Work(0, WorkKind.DATAGRAMS, agent, connector, up=1, down=100))

    def _go_direct(self) -> None:
        """Pairs between which a direct path must exist have to find it."""
        # Where everybody is by now.
        scenario = in_the_end(self._scenario)
        wanted = [pair for pair in self._pairs() if must_be_direct(scenario, *pair)]
        limit_s = DIRECT_LIMIT_S if self._scenario.faults else CLEAN_DIRECT_LIMIT_S
        if not self._run_until(lambda: all(self._is_direct(*pair) for pair in wanted), limit_s):
            missing = [f"{a} and {c}" for a, c in wanted if not self._is_direct(a, c)]
            raise ViolationError(f"no direct path within {limit_s:g} s between {', '.join(missing)}")
        self._outcome.facts["direct"] += len(wanted)
        self._outcome.facts["pairs"] += len(list(self._pairs()))

    def _is_direct(self, agent: str, connector: str) -> bool:
        world = self._world
        assert world is not None  # noqa: S101
        shared = world.daemons[agent].facts.established.keys() & world.daemons[connector].facts.established
        return any(
            all(
                self._watcher.selected(name, session_id) == types_pb2.PATH_KIND_DIRECT
                for name in (agent, connector)
            )
            for session_id in shared
        )

    def _use_udp(self) -> None:
        """Legs are on QUIC wherever UDP passes, and on gRPC where it does not."""
        world = self._world
        assert world is not None  # noqa: S101
        if self._scenario.name != "udp_blocked":
            return

        def misplaced() -> list[str]:
            return [
                f"{name} at {intermediate} over {carrier}"
                for (name, intermediate), carrier in self._watcher.carriers.items()
                if carrier != ("grpc" if self._is_blocked(name) else "quic")
            ]

        over_grpc = sum(carrier == "grpc" for carrier in self._watcher.carriers.values())
        if not self._run_until(lambda: not misplaced(), QUIC_LIMIT_S):
            raise ViolationError(f"legs after {QUIC_LIMIT_S:g} s: {', '.join(misplaced())}")
        self._outcome.facts["over_grpc"] += over_grpc

    def _is_blocked(self, name: str) -> bool:
        """Whether no UDP passes the site of a node for good."""
        home = home_of(in_the_end(self._scenario).sites, name)
        return any(nat.is_udp_blocked for nat in (*home.nats, *filter(None, [home.firewall])))

    def _finish_streams(self) -> None:
        """Whatever was begun comes to its end, and a good one unless there is an excuse."""
        world = self._world
        assert world is not None  # noqa: S101
        left_s = max(0.0, self._started_at + self._quiet_at + STREAM_LIMIT_S - world.now)
        # Whoever is out hears nothing any more, and waits for a way back as long as sessions are idle.
        pending = [each for each in self._streams if not (each.is_over or self._is_of_outsider(each.work))]
        if pending and not self._run_until(lambda: all(each.is_over for each in pending), left_s):
            stuck = [self._told(each) for each in pending if not each.is_over]
            raise ViolationError(
                f"not at its end {STREAM_LIMIT_S:g} s after the last fault: {'; '.join(stuck)}"
            )
        for each in self._streams:
            pair = (each.work.agent, each.work.connector)
            if pair in self._scenario.denied:
                if each.is_complete:
                    raise ViolationError(f"{self._told(each)}: served, although it is denied")
            elif self._is_of_outsider(each.work) and not each.is_over:
                self._outcome.facts["excused"] += 1
            elif each.is_complete:
                self._outcome.facts["streams"] += 1
            elif self._is_excused(each):
                self._outcome.facts["excused"] += 1
            else:
                raise ViolationError(f"{self._told(each)}: failed without an excuse: {each.error!r}")
        self._outcome.facts["datagrams"] += sum(len(flow.answered) for flow in self._flows)
        self._outcome.facts["bytes"] += self._scenario.payload_bytes
        if not self._run_until(lambda: not self._carried(), FREED_LIMIT_S):
            raise ViolationError(f"connections that are carried on, although all are over: {self._carried()}")
        self._judge_uploads()

    def _judge_uploads(self) -> None:
        """Where no receipt says so, the upload came to its end, too; what was on its way has arrived."""
        assert self._world is not None  # noqa: S101
        for each in self._streams:
            work = each.work
            if not (work.ends_late and each.is_complete) or self._may_lack_its_end(each):
                continue
            if each.number not in self._world.services[work.connector].whole:
                raise ViolationError(f"{self._told(each)}: the upload never came to its end")

    def _may_lack_its_end(self, client: StreamClient) -> bool:
        """The client's connection was over before, so what goes wrong later counts as well."""
        begun = client.started_at - self._started_at
        return self._is_excused(client) or any(
            (self._felt_until(fault) >= begun and self._breaks(fault, client.work))
            or (fault.kind is FaultKind.REVOKE and fault.target == client.work.agent)
            for fault in self._scenario.faults
        )

    def _carried(self) -> dict[str, int]:
        world = self._world
        assert world is not None  # noqa: S101
        counts = {
            each.id: open_streams(each.node)
            for each in world.daemons.values()
            if each.node is not None and not self._is_out(each.id)
        }
        return {name: count for name, count in counts.items() if count}

    def _told(self, client: StreamClient) -> str:
        work = client.work
        return (
            f"stream {client.number} of {work.agent} to {work.connector} ({client.received} of {work.down} B "
            f"down, {work.up} B up, begun at {client.started_at - self._started_at:.3f})"
        )

    def _is_excused(self, client: StreamClient) -> bool:
        begun = client.started_at - self._started_at
        ended = (client.lost_at or begun) - self._started_at
        parties = [self._scenario.sites[name] for name in (client.work.agent, client.work.connector)]
        if client.answered_at is None and begun < DEAD_FAMILY_EXCUSE_S and any(each.dead for each in parties):
            return True
        for fault in self._scenario.faults:
            if self._felt_from(fault) > ended:
                continue
            if self._felt_until(fault) >= begun and self._breaks(fault, client.work):
                return True
            if fault.kind is FaultKind.REVOKE and fault.target == client.work.agent:
                return True
            if client.answered_at is None and fault.ends_at + OPENING_EXCUSE_S >= begun:
                return True
        return False

    @staticmethod
    def _felt_from(fault: Fault) -> float:
        return fault.at - MAX_SKEW_S if fault.kind is FaultKind.EXPIRE else fault.at

    @staticmethod
    def _felt_until(fault: Fault) -> float:
        match fault.kind:
            case FaultKind.EXPIRE:
                # A session that was made with the former certificate ends with it, and some clocks are slow.
                return fault.ends_at + MAX_SKEW_S + CERTIFICATE_LIMIT_S
            case FaultKind.WITHDRAW if not fault.lasts_s:
                return math.inf
            case _:
                return fault.ends_at

    def _breaks(self, fault: Fault, work: Work) -> bool:
        """Whether this fault may cost a connection that stands."""
        is_party = fault.target in {work.agent, work.connector}
        if fault.kind is FaultKind.WITHDRAW and fault.target in self._scenario.intermediates:
            # An intermediate that was given the list as well takes no grant of the other one's, and so ends
            # the sessions that are brought to it. Any other carries them on.
            return fault.detail == "all"
        if fault.kind in _COSTS_PARTIES:
            return is_party
        if fault.kind is FaultKind.SUSPEND and not is_party:
            # While the intermediate was gone, whoever was silent for its clock is given up when it wakes.
            return fault.lasts_s >= PRESUMED_LOST_S and fault.target in self._scenario.intermediates
        if fault.kind in {FaultKind.FREEZE, FaultKind.SUSPEND}:
            # Whoever says nothing for so long is gone, for all that anybody can know.
            return is_party and fault.lasts_s >= PRESUMED_LOST_S
        if fault.kind in _SILENCES and fault.lasts_s >= PRESUMED_LOST_S:
            if fault.kind is FaultKind.BLOCK_UDP and self._scenario.has_grpc:
                return False
            # The intermediate presumes a silent node lost and ends its sessions, unless a direct path keeps
            # them; whether there was one just then, the scenario does not say.
            ends = {fault.target, fault.other}
            return bool(ends & {work.agent, work.connector}) and (
                fault.kind is FaultKind.BLOCK_UDP or not ends <= {work.agent, work.connector}
            )
        return fault.kind is FaultKind.CRASH and is_party and fault.detail in _COSTS_SESSIONS

    def _close(self) -> None:
        """Stop everybody, agents first, and find nothing that is left."""
        world = self._world
        assert world is not None  # noqa: S101
        for agent in self._scenario.agents:
            world.stop(agent)
            self._judge()

        def connectors_are_free() -> bool:
            return not (
                any(self._left_at(world.daemons[name]) for name in self._scenario.connectors)
                or any(map(self._channels_at, world.intermediates()))
            )

        if not self._run_until(connectors_are_free, FREED_LIMIT_S):
            left = {name: self._left_at(world.daemons[name]) for name in self._scenario.connectors}
            left |= {each.id: self._channels_at(each) for each in world.intermediates()}
            raise ViolationError(f"left after the agents' goodbye: {left}")
        for connector in self._scenario.connectors:
            world.stop(connector)
            self._judge()
        if not self._run_until(
            lambda: not any(map(self._left_at_relay, world.intermediates())), FREED_LIMIT_S
        ):
            left = {each.id: self._left_at_relay(each) for each in world.intermediates()}
            raise ViolationError(f"left at intermediates after everybody's goodbye: {left}")
        world.close()
        self._judge()

    def _left_at(self, daemon: Daemon) -> list[str]:
        world = self._world
        assert world is not None  # noqa: S101
        if daemon.node is None or daemon.role is not Role.CONNECTOR or self._is_out(daemon.id):
            return []
        left = [f"scope {key}" for key in daemon.node.supervisor.scopes()]
        left += [f"session {session_id.hex()}" for session_id in daemon.facts.established]
        # Those of its legs live on: it stays attached.
        left += [f"connection IDs of {owner.hex()}" for _, owner, _ in daemon.facts.connection_ids if owner]
        left += [f"{count} of {service}" for service, count in daemon.facts.active.items() if count]
        service = world.services[daemon.id]
        left += [f"connection at the service {daemon.id}" for _ in service.open]
        return left

    @staticmethod
    def _channels_at(daemon: Daemon) -> list[str]:
        relayed = daemon.facts.latest.get(quic_relay_pb2.RelayStatistics)
        if daemon.node is None or not isinstance(relayed, quic_relay_pb2.RelayStatistics):
            return []
        return [f"channels of {each.session_id.hex()}" for each in relayed.sessions]

    @staticmethod
    def _left_at_relay(daemon: Daemon) -> list[str]:
        latest = daemon.facts.latest
        left = []
        relayed = latest.get(quic_relay_pb2.RelayStatistics)
        if isinstance(relayed, quic_relay_pb2.RelayStatistics):
            left += [f"channels of {each.session_id.hex()}" for each in relayed.sessions]
            left += [f"{relayed.legs} legs"] if relayed.legs else []
        managed = latest.get(session_manager_pb2.SessionsStatistics)
        if isinstance(managed, session_manager_pb2.SessionsStatistics):
            left += [f"session {each.session_id.hex()}" for each in managed.sessions]
        left += [f"connection IDs of leg {leg}" for _, _, leg in daemon.facts.connection_ids]
        return left
