"""Both ends of one search, joined by carriers that lose and delay what they like."""

from __future__ import annotations

import heapq
import random
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztna.address import TransportAddress
from ztna.ice import hole_punch_effects as e
from ztna.ice import signals as s
from ztna.ice.candidate import Candidate, CandidateType, priority
from ztna.ice.generation import Gathered
from ztna.ice.hole_punch import HolePunch, HolePunchLimits
from ztna.ice.timing import HolePunchState as State

DELAY_S = {"i1": 0.05, "": 0.02}


def candidate(host: str) -> Candidate:
    address = TransportAddress(host, 5000)
    return Candidate(CandidateType.HOST, address, address, priority(CandidateType.HOST, 1), "1")


CANDIDATES = {True: candidate("192.0.2.1"), False: candidate("198.51.100.1")}


class Pair:
    """An agent (True) and a connector (False); checks that both ends prepared alike succeed after a while."""

    def __init__(self, seed: int = 1, loss: float = 0.0) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.loss = loss
        self.ends = {
            is_agent: HolePunch(random.Random(seed), HolePunchLimits(), 0.0, is_controlling=is_agent)
            for is_agent in (True, False)
        }
        self.local: dict[bool, e.PrepareChecks] = {}
        self.remote: dict[bool, e.StartChecks] = {}
        self.under_way: list[tuple[float, int, bool, s.Signal, str]] = []
        self.order = count()
        self.offers = 0
        self.connected: list[tuple[bool, int]] = []
        for end in self.ends.values():
            end.handle_relay("i1", 0.0, is_up=True)
        self.settle()

    def settle(self) -> None:
        """Carry out effects until there are none."""
        while True:
            drained = [(agent, effect) for agent, end in self.ends.items() for effect in end.drain()]
            if not drained:
                return
            for is_agent, effect in drained:
                self.perform(is_agent, effect)

    def perform(self, is_agent: bool, effect: e.HolePunchEffect) -> None:
        end = self.ends[is_agent]
        match effect:
            case e.GatherCandidates():
                end.handle_gathered(Gathered((CANDIDATES[is_agent],), is_complete=True), self.now)
            case e.PrepareChecks():
                self.local[is_agent] = effect
            case e.StartChecks():
                self.remote[is_agent] = effect
                self.check(effect.generation)
            case e.SendSignal():
                self.offers += isinstance(effect.signal, s.Offer)
                if self.random.random() >= self.loss:
                    at = self.now + DELAY_S[effect.intermediate_id]
                    to = (not is_agent, effect.signal, effect.intermediate_id)
                    heapq.heappush(self.under_way, (at, next(self.order), *to))
            case e.Connected():
                self.connected.append((is_agent, effect.generation))

    def check(self, generation: int) -> None:
        """Succeed when each end has what the other one prepared."""
        if any(self.remote.get(end) is None or self.local.get(end) is None for end in self.ends):
            return
        if all(
            self.local[end].generation == self.remote[end].generation == generation
            and self.remote[end].credentials == self.local[not end].credentials
            for end in self.ends
        ):
            for is_agent, end in self.ends.items():
                end.handle_checks_began(generation, self.now)
                address = CANDIDATES[not is_agent].address
                end.handle_nominated(generation, address, 1000, self.now)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            deadlines = [end.next_deadline() for end in self.ends.values()]
            times = [each for each in deadlines if each is not None]
            times += [self.under_way[0][0]] if self.under_way else []
            if not times or min(times) > until:
                self.now = until
                return
            self.now = max(self.now, min(times))
            while self.under_way and self.under_way[0][0] <= self.now:
                _, _, to, signal, via = heapq.heappop(self.under_way)
                self.ends[to].handle_signal(signal, via, self.now)
                self.settle()
            for end in self.ends.values():
                end.handle_timeout(self.now)
            self.settle()

    def states(self) -> list[State]:
        return [end.state for end in self.ends.values()]


def test_two_ends_find_each_other_at_the_first_attempt() -> None:
    pair = Pair()
    pair.run(1)
    assert pair.states() == [State.CONNECTED, State.CONNECTED]
    assert (pair.offers, sorted(pair.connected)) == (1, [(False, 1), (True, 1)])
    assert all(not end.counts for end in pair.ends.values())


@pytest.mark.parametrize("who", [[True], [False], [True, False]], ids=["agent", "connector", "both at once"])
def test_restart_by_either_end_or_both_at_once_is_one_restart(who: list[bool]) -> None:
    pair = Pair()
    pair.run(1)
    for end in pair.ends.values():
        end.handle_established(pair.now)
    for is_agent in who:
        pair.ends[is_agent].handle_restart("path_failed", pair.now)
    pair.settle()
    pair.run(1)
    assert pair.states() == [State.CONNECTED, State.CONNECTED]
    assert [end.snapshot.generation for end in pair.ends.values()] == [2, 2]
    assert pair.offers == 2
    assert pair.ends[True].snapshot.carrier == "session"


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.0, 0.9), st.booleans(), st.booleans())
def test_whatever_was_lost_both_ends_meet_once_signals_arrive(
    seed: int, loss: float, is_established: bool, is_restarted: bool
) -> None:
    pair = Pair(seed, loss)
    pair.run(20)
    if is_established:
        for end in pair.ends.values():
            end.handle_established(pair.now)
        pair.settle()
    if is_restarted:
        for end in pair.ends.values():
            end.handle_restart("path_failed", pair.now)
            pair.settle()
    pair.run(60)
    pair.loss = 0.0
    # The longest cooldown that a minute of attempts leads to, and some time for the attempt itself.
    pair.run(200)
    assert pair.states() == [State.CONNECTED, State.CONNECTED]
    generations = {end.snapshot.generation for end in pair.ends.values()}
    assert len(generations) == 1
