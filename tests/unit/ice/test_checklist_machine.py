"""Whatever comes in whatever order, the invariants of a checklist hold."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.ice.simulation import credentials, host_candidate, reflexive_candidate
from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.ice import checks
from ztna.ice.candidate import Candidate
from ztna.ice.checklist import Checklist
from ztna.ice.checklist_effects import (
    ChecklistEffect,
    ChecklistFailed,
    ChecksBegan,
    PairNominated,
    PairSucceeded,
    SendCheck,
)
from ztna.ice.pair import MAX_PAIRS, PairState
from ztna.ice.timing import CHECK_PACING_S
from ztna.stun.attributes import ErrorCode
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

LOCAL_HOSTS = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
SOURCES = [TransportAddress(f"198.51.100.{n % 3}", 1000 + n) for n in range(60)]
SOURCES += [TransportAddress("2001:db8::9", 1000 + n) for n in range(3)]


def candidates(count: int, offset: int) -> list[Candidate]:
    found = []
    for number in range(offset, offset + count):
        base = TransportAddress(f"10.0.0.{number % 40 + 1}", 4000)
        found.append(host_candidate(base.host, preference=100 + number))
        found.append(reflexive_candidate(TransportAddress("203.0.113.1", 5000 + number), base))
    return found


class ChecklistMachine(RuleBasedStateMachine):
    """A peer that holds the credentials and does what it likes."""

    @initialize(is_controlling=st.booleans(), seed=st.integers(0, 99))
    def prepare(self, is_controlling: bool, seed: int) -> None:
        self.core = Checklist(random.Random(seed))
        self.chance = random.Random(seed)
        self.now = 0.0
        self.generation = 0
        self.unanswered: list[SendCheck] = []
        self.new_checks: list[float] = []
        self.began: list[int] = []
        self.failed: list[int] = []
        self.restart(is_controlling)

    @rule(is_controlling=st.booleans())
    def restart(self, is_controlling: bool) -> None:
        self.generation += 1
        local = [host_candidate(host, preference=50 + n) for n, host in enumerate(LOCAL_HOSTS)]
        self.core.handle_prepare(
            self.generation, credentials("ours", self.generation), local, is_controlling=is_controlling
        )
        self.unanswered.clear()
        self.new_checks.clear()
        self.drain()

    @rule(delay_s=st.sampled_from([0.0, 0.1, 5.0]), count=st.integers(0, 20), offset=st.integers(0, 40))
    def start(self, delay_s: float, count: int, offset: int) -> None:
        remote = credentials("them", self.generation)
        self.core.handle_start(self.generation, remote, candidates(count, offset), delay_s, self.now)
        self.drain()

    @rule(is_local=st.booleans(), is_end=st.booleans(), count=st.integers(0, 20), offset=st.integers(0, 40))
    def trickle(self, is_local: bool, is_end: bool, count: int, offset: int) -> None:
        self.core.handle_candidates(
            self.generation, candidates(count, offset), self.now, is_local=is_local, is_end=is_end
        )
        self.drain()

    @rule()
    def begin(self) -> None:
        self.core.handle_begin(self.generation, 0.0, self.now)
        self.drain()

    @rule()
    def stop(self) -> None:
        self.core.handle_stop(self.generation)
        self.drain()

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.1, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            self.drain()
            deadline = self.core.next_deadline()
            assert deadline is None or deadline > self.now
        self.now = until
        self.core.handle_timeout(self.now)
        self.drain()

    @rule(
        index=st.integers(0, 10_000),
        code=st.sampled_from([0, 0, 0, 400, 487]),
        is_elsewhere=st.booleans(),
        port=st.integers(1, 3),
    )
    def answer(self, index: int, code: int, is_elsewhere: bool, port: int) -> None:
        if not self.unanswered:
            return
        check = self.unanswered[index % len(self.unanswered)]
        request = parse(check.request.data)
        data = checks.build_answer(request, TransportAddress("203.0.113.77", port), check.pwd.encode())
        if code:
            attributes = (ErrorCode(code, ""),)
            refusal = Message(BINDING, MessageClass.ERROR_RESPONSE, check.transaction_id, attributes)
            data = build(refusal, key=check.pwd.encode())
        source = SOURCES[0] if is_elsewhere and port == 1 else check.request.remote
        self.core.handle_message(data, source, check.request.local_host, self.now)
        self.drain()

    @rule(
        source=st.sampled_from(SOURCES),
        local_host=st.sampled_from([*LOCAL_HOSTS, "", "192.0.2.99"]),
        is_controlling=st.booleans(),
        uses_candidate=st.booleans(),
        tie_breaker=st.sampled_from([0, 2**64 - 1]),
        age=st.integers(0, 2),
    )
    def hear(
        self,
        source: TransportAddress,
        local_host: str,
        is_controlling: bool,
        uses_candidate: bool,
        tie_breaker: int,
        age: int,
    ) -> None:
        generation = max(1, self.generation - age)
        data = checks.build_check(
            checks.draw_transaction_id(self.chance),
            credentials("them", generation),
            credentials("ours", generation),
            priority=self.chance.randrange(2**32),
            is_controlling=is_controlling,
            tie_breaker=tie_breaker,
            uses_candidate=uses_candidate,
        )
        self.core.handle_message(data, source, local_host, self.now)
        effects = self.drain()
        assert sum(isinstance(effect, Transmit) for effect in effects) == 1

    @rule(data=st.binary(max_size=60))
    def garbage(self, data: bytes) -> None:
        self.core.handle_message(data, SOURCES[0], "", self.now)
        assert not any(isinstance(effect, Transmit) for effect in self.drain())

    @invariant()
    def at_most_one_pair_is_nominated_and_it_succeeded(self) -> None:
        nominated = [view for view in self.core.view() if view.is_nominated]
        assert len(nominated) <= 1
        assert all(view.state is PairState.SUCCEEDED for view in nominated)

    @invariant()
    def pairs_are_bounded_distinct_and_of_one_family(self) -> None:
        views = self.core.view()
        assert len(views) <= MAX_PAIRS
        assert len({(view.local.base, view.destination) for view in views}) == len(views)
        assert all(view.local.base.family is view.destination.family for view in views)

    def drain(self) -> list[ChecklistEffect]:
        effects = self.core.drain()
        known = {check.transaction_id for check in self.unanswered}
        for effect in effects:
            match effect:
                case SendCheck() if effect.transaction_id not in known:
                    self.unanswered.append(effect)
                    known.add(effect.transaction_id)
                    self.new_checks.append(self.now)
                case ChecksBegan():
                    self.began.append(effect.generation)
                case ChecklistFailed():
                    self.failed.append(effect.generation)
                case PairSucceeded() | PairNominated():
                    assert effect.generation == self.generation
                    assert effect.pair.state is PairState.SUCCEEDED
        assert len(set(self.began)) == len(self.began)
        assert len(set(self.failed)) == len(self.failed)
        for before, after in zip(self.new_checks, self.new_checks[1:], strict=False):
            assert after - before >= CHECK_PACING_S - 1e-9
        assert self.core.drain() == []
        return effects


TestChecklistMachine = ChecklistMachine.TestCase
TestChecklistMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
