"""Anything may happen to paths, in any order: what must hold all the same."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ztna.address import TransportAddress
from ztna.ice.consent import Consent, ConsentExpired, Credentials, DirectPair, PathConfirmed, SendCheck
from ztna.ice.timing import CONSENT_LIMIT_S, RESTART_INTERVAL_S, PathState
from ztna.path.manager import MAX_RELAY_PATHS, PathManager, PathSelected, PathStateChanged, Policy, RestartIce
from ztna.path.path import PathKind
from ztna.stun import message as stun

REMOTES = [TransportAddress("198.51.100.7", port) for port in (4000, 4001)]
STEPS = st.sampled_from([0.01, 0.4, 1.0, 3.0, 7.0, 16.0, 31.0])
KINDS = st.sampled_from([PathKind.RELAY, PathKind.DIRECT])
RTTS = st.one_of(st.none(), st.floats(0.0005, 2.0))


class PathManagerMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(Policy))
    def start(self, policy: Policy) -> None:
        self.manager = PathManager(policy)
        self.now = 100.0
        self.told = self.manager.selected
        self.relays: dict[str, None] = {}
        self.states: dict[TransportAddress | None, PathState] = {}
        self.confirmed: dict[TransportAddress, float] = {}
        self.restarts: list[float] = []
        self.is_moved = False

    def settle(self) -> None:
        for effect in self.manager.drain():
            match effect:
                case PathSelected():
                    self.told = effect
                case PathStateChanged():
                    self.states[effect.remote] = effect.state
                case RestartIce():
                    if self.restarts and not self.is_moved:
                        assert self.now - self.restarts[-1] >= RESTART_INTERVAL_S
                    self.restarts.append(self.now)
                    self.is_moved = False
        deadline = self.manager.next_deadline()
        assert deadline is None or deadline > self.now

    @rule(step=STEPS)
    def wait(self, step: float) -> None:
        end = self.now + step
        while (deadline := self.manager.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.manager.handle_timeout(self.now)
            self.settle()
        self.now = end

    @rule(number=st.integers(0, MAX_RELAY_PATHS + 1))
    def relay_up(self, number: int) -> None:
        self.relays.pop(f"i{number}", None)
        if len(self.relays) >= MAX_RELAY_PATHS:
            del self.relays[next(iter(self.relays))]
        self.relays[f"i{number}"] = None
        self.manager.handle_relay_up(f"i{number}", 1200, self.now)
        self.settle()

    @rule(number=st.integers(0, MAX_RELAY_PATHS + 1))
    def relay_down(self, number: int) -> None:
        self.relays.pop(f"i{number}", None)
        self.manager.handle_relay_down(f"i{number}", self.now)
        self.settle()

    @rule(remote=st.sampled_from(REMOTES), size=st.sampled_from([600, 1200, 1400]), rtt=RTTS)
    def nominate(self, remote: TransportAddress, size: int, rtt: float | None) -> None:
        if self.manager.handle_nominated(remote, "", size, rtt, self.now):
            self.states[remote] = PathState.ACTIVE
            self.confirmed[remote] = self.now
        self.settle()

    @rule(kind=KINDS, remote=st.sampled_from(REMOTES), rtt=RTTS)
    def answer(self, kind: PathKind, remote: TransportAddress, rtt: float | None) -> None:
        self.manager.handle_confirmed(kind, remote, rtt, self.now)
        if kind is PathKind.DIRECT:
            self.confirmed[remote] = self.now
        self.settle()

    @rule(kind=KINDS, remote=st.sampled_from(REMOTES), missed=st.integers(1, 4))
    def miss(self, kind: PathKind, remote: TransportAddress, missed: int) -> None:
        self.manager.handle_missed(kind, remote, missed, self.now)
        self.settle()

    @rule(kind=KINDS, remote=st.sampled_from(REMOTES), is_silent=st.booleans())
    def fail(self, kind: PathKind, remote: TransportAddress, is_silent: bool) -> None:
        if is_silent:
            self.manager.handle_silent(kind, remote, self.now)
        else:
            self.manager.handle_consent_expired(remote, self.now)
        self.settle()

    @rule(sent=st.integers(0, 1000), lost=st.integers(0, 100))
    def traffic(self, sent: int, lost: int) -> None:
        self.manager.handle_traffic(sent, lost, self.now)
        self.settle()

    @rule()
    def move(self) -> None:
        self.is_moved = True
        self.manager.handle_network_changed(self.now)
        self.settle()

    @invariant()
    def one_path_is_selected_and_it_may_be(self) -> None:
        figures = self.manager.figures()
        selected = [each for each in figures if each.is_selected]
        assert self.told == self.manager.selected
        assert len(selected) == (self.told.kind is not PathKind.NONE)
        if self.told.direct is not None:
            assert selected[0].direct == self.told.direct
            assert selected[0].state in {PathState.ACTIVE, PathState.DEGRADED}
            assert self.manager.policy is not Policy.RELAY_ONLY
            assert self.now - self.confirmed[self.told.direct.remote] < CONSENT_LIMIT_S
        latest = next(reversed(self.relays), None)
        assert (self.told.relay.intermediate_id if self.told.relay else None) == latest

    @invariant()
    def what_can_grow_is_bounded(self) -> None:
        assert len(self.manager.figures()) <= MAX_RELAY_PATHS + 1


class ConsentMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.core = Consent(random.Random(1))
        self.now = 100.0
        self.pair: DirectPair | None = None
        self.confirmed_at = 0.0
        self.is_usable = self.was_heard = False
        self.asked: dict[bytes, tuple[bytes, str]] = {}
        self.generation = 0

    def settle(self) -> None:
        for effect in self.core.drain():
            match effect:
                case SendCheck():
                    assert effect.pair == self.pair
                    self.asked[effect.transaction_id] = (effect.datagram, effect.pwd)
                case PathConfirmed() if effect.pair is not None:
                    self.confirmed_at, self.was_heard = self.now, True
                case ConsentExpired():
                    assert self.is_usable
                    self.is_usable = False
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now

    @rule(step=STEPS)
    def wait(self, step: float) -> None:
        end = self.now + step
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            self.settle()
        self.now = end

    @rule(remote=st.sampled_from(REMOTES))
    def nominate(self, remote: TransportAddress) -> None:
        self.generation += 1
        local, peer = (Credentials(f"{side}{self.generation}", side * 24) for side in "op")
        self.pair = DirectPair(remote)
        self.core.handle_nominated(self.pair, local, peer, self.now)
        self.confirmed_at, self.is_usable, self.was_heard = self.now, True, True
        self.settle()

    @rule()
    def restart(self) -> None:
        self.generation += 1
        local, peer = (Credentials(f"{side}{self.generation}", side * 24) for side in "op")
        self.core.handle_prepared(self.generation, local, is_controlling=True)
        self.core.handle_started(self.generation, peer, self.now)
        self.settle()

    @rule(number=st.integers(0, 3), is_up=st.booleans())
    def relay(self, number: int, is_up: bool) -> None:
        self.core.handle_relay(f"i{number}", self.now, is_up=is_up)
        self.settle()

    @rule()
    def answer(self) -> None:
        if self.asked and self.pair is not None:
            transaction_id, (_, pwd) = list(self.asked.items())[-1]
            message = stun.Message(stun.BINDING, stun.MessageClass.SUCCESS_RESPONSE, transaction_id)
            self.core.handle_response(self.pair.remote, stun.build(message, key=pwd.encode()), self.now)
            # After a late answer the next check may be due already.
            self.core.handle_timeout(self.now)
            self.settle()

    @rule(state=st.sampled_from(PathState), remote=st.sampled_from(REMOTES))
    def judge(self, state: PathState, remote: TransportAddress) -> None:
        self.core.handle_state(remote, state, self.now)
        if self.pair is not None and self.pair.remote == remote:
            if state is PathState.FAILED:
                self.is_usable = self.was_heard = False
            # Nobody takes a failed path before a check was answered there.
            elif state is not PathState.RECOVERING and self.was_heard and self.now - self.confirmed_at < 1.0:
                self.is_usable = True
        self.settle()

    @rule(is_direct=st.booleans())
    def doubt(self, is_direct: bool) -> None:
        self.core.handle_suspected(is_direct=is_direct, now=self.now)
        self.settle()

    @rule(size=st.integers(0, 1000))
    def payload(self, size: int) -> None:
        self.core.handle_payload(size, self.now)
        self.settle()

    @invariant()
    def pair_without_consent_is_told(self) -> None:
        if self.is_usable:
            assert self.now - self.confirmed_at <= CONSENT_LIMIT_S


TestPathManagerMachine = PathManagerMachine.TestCase
TestPathManagerMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestConsentMachine = ConsentMachine.TestCase
TestConsentMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
