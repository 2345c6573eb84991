"""The search for a direct path, driven from both ends without a network."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.ice import hole_punch as core
from ztna.ice import hole_punch_effects as e
from ztna.ice import signals as s
from ztna.ice.candidate import Candidate, CandidateType, priority
from ztna.ice.generation import Gathered
from ztna.ice.hole_punch import HolePunch, HolePunchLimits
from ztna.ice.hole_punch_table import TRANSITIONS, Step
from ztna.ice.reasons import sentence
from ztna.ice.timing import HolePunchState as State
from ztna.nat.behaviour import Dependence, NatBehaviour

EffectT = TypeVar("EffectT")
CREDENTIALS = s.Credentials("peer", "p" * 22)
FILTERING = NatBehaviour(True, True, Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS_AND_PORT_DEPENDENT)
VARYING = NatBehaviour(True, True, Dependence.ADDRESS_AND_PORT_DEPENDENT)
DECLINED = s.PunchingResult(is_success=False, reason=s.POLICY_RELAY_ONLY)
T0 = 100.0


def host(address: str = "192.0.2.1", port: int = 5000, preference: int = 65_535) -> Candidate:
    where = TransportAddress.of(address, port)
    return Candidate(CandidateType.HOST, where, where, priority(CandidateType.HOST, preference), "1")


OURS, THEIRS = host("192.0.2.1"), host("198.51.100.1")


class End:
    """One end; effects of every call are kept in `seen`, and `last` are those of the last call."""

    def __init__(
        self,
        *,
        agent: bool,
        limits: HolePunchLimits | None = None,
        refused: tuple[TransportAddress, ...] = (),
    ) -> None:
        self.now = T0
        self.is_agent = agent
        self.core = HolePunch(
            random.Random(1),
            limits or HolePunchLimits(),
            T0,
            is_controlling=agent,
            refused_addresses=lambda: refused,
        )
        self.last: list[e.HolePunchEffect] = []
        self.seen: list[e.HolePunchEffect] = []

    def _drain(self) -> End:
        self.last = self.core.drain()
        self.seen += self.last
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now or deadline == self.now
        return self

    @property
    def state(self) -> State:
        return self.core.state

    @property
    def generation(self) -> int:
        return self.core.snapshot.generation

    @property
    def reason(self) -> str:
        return self.core.snapshot.reason

    def all(self, kind: type[EffectT]) -> list[EffectT]:
        return [each for each in self.last if isinstance(each, kind)]

    def one(self, kind: type[EffectT]) -> EffectT:
        (found,) = self.all(kind)
        return found

    def sent(self, kind: type[EffectT]) -> list[EffectT]:
        return [each.signal for each in self.all(e.SendSignal) if isinstance(each.signal, kind)]

    def relay(self, name: str = "i1", *, up: bool = True) -> End:
        self.core.handle_relay(name, self.now, is_up=up)
        return self._drain()

    def gathered(
        self,
        *candidates: Candidate,
        complete: bool = False,
        network: int = 0,
        nat: NatBehaviour = NatBehaviour(),  # noqa: B008 - frozen
    ) -> End:
        self.core.handle_gathered(Gathered(candidates or (OURS,), complete, network, nat), self.now)
        return self._drain()

    def says(self, signal: s.Signal, via: str = "i1") -> End:
        self.core.handle_signal(signal, via, self.now)
        return self._drain()

    def established(self) -> End:
        self.core.handle_established(self.now)
        return self._drain()

    def restart(self, reason: str = "path_failed") -> End:
        self.core.handle_restart(reason, self.now)
        return self._drain()

    def began(self) -> End:
        self.core.handle_checks_began(self.generation, self.now)
        return self._drain()

    def nominated(self, generation: int | None = None) -> End:
        self.core.handle_nominated(generation or self.generation, THEIRS.address, 20_000, self.now)
        return self._drain()

    def checks_failed(self) -> End:
        self.core.handle_checks_failed(self.generation, "all_pairs_failed", self.now)
        return self._drain()

    def wait(self, seconds: float) -> End:
        until = self.now + seconds
        effects: list[e.HolePunchEffect] = []
        while (deadline := self.core.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            effects += self._drain().last
        self.now = until
        self.last = effects
        return self

    def offer(
        self, generation: int = 1, *candidates: Candidate, via: str = "i1", **more: NatBehaviour
    ) -> End:
        return self.says(s.Offer(generation, CREDENTIALS, candidates or (THEIRS,), **more), via)

    def answer(self, *candidates: Candidate, via: str = "i1", **more: NatBehaviour) -> End:
        return self.says(s.Answer(self.generation, CREDENTIALS, candidates or (THEIRS,), **more), via)


def agent(limits: HolePunchLimits | None = None) -> End:
    return End(agent=True, limits=limits)


def signaling() -> End:
    """An agent whose offer is under way."""
    return agent().relay().gathered()


def waiting() -> End:
    return signaling().answer()


def checking() -> End:
    return waiting().began()


def connected() -> End:
    return checking().nominated()


def restarted() -> End:
    return connected().restart().answer().nominated()


def fallback() -> End:
    return checking().checks_failed()


def failed() -> End:
    return fallback().relay(up=False)


def connector(limits: HolePunchLimits | None = None) -> End:
    return End(agent=False, limits=limits).relay()


def answered() -> End:
    """A connector that has answered an offer."""
    return connector().offer(1).gathered()


def direct(end: End) -> End:
    end.core.handle_path(is_direct=True)
    return end


# One way through every transition of the table, each by what the outside world does.
WAYS: dict[tuple[State, Step], Callable[[], End]] = {
    (State.IDLE, Step.GATHER): lambda: agent().relay(),
    (State.IDLE, Step.EXCHANGE): lambda: connector().offer(),
    (State.IDLE, Step.GAVE_UP): lambda: agent(limits=HolePunchLimits(is_relay_only=True)).relay(),
    (State.GATHERING, Step.EXCHANGE): lambda: agent().relay().gathered(),
    (State.GATHERING, Step.GAVE_UP): lambda: agent().relay().says(DECLINED),
    (State.GATHERING, Step.FAIL): lambda: agent().relay().relay(up=False).says(DECLINED, ""),
    (State.SIGNALING, Step.EXCHANGE): lambda: signaling().gathered(network=1),
    (State.SIGNALING, Step.ANSWERED): waiting,
    (State.SIGNALING, Step.NOMINATED): lambda: answered().restart("operator").nominated(),
    (State.SIGNALING, Step.KEPT): lambda: direct(connected()).restart("operator").wait(5),
    (State.SIGNALING, Step.GAVE_UP): lambda: signaling().wait(5),
    (State.SIGNALING, Step.FAIL): lambda: signaling().says(s.SignalingError("access_denied")),
    (State.WAITING_TO_START, Step.EXCHANGE): lambda: waiting().restart(),
    (State.WAITING_TO_START, Step.BEGAN): checking,
    (State.WAITING_TO_START, Step.NOMINATED): lambda: waiting().nominated(),
    (State.WAITING_TO_START, Step.KEPT): lambda: direct(connected()).restart().answer().checks_failed(),
    (State.WAITING_TO_START, Step.GAVE_UP): lambda: waiting().checks_failed(),
    (State.WAITING_TO_START, Step.FAIL): lambda: waiting().relay(up=False).checks_failed(),
    (State.CHECKING, Step.EXCHANGE): lambda: checking().restart(),
    (State.CHECKING, Step.NOMINATED): connected,
    (State.CHECKING, Step.KEPT): lambda: direct(connected()).restart().answer().began().wait(5),
    (State.CHECKING, Step.GAVE_UP): lambda: checking().wait(5),
    (State.CHECKING, Step.FAIL): lambda: checking().relay(up=False).wait(5),
    (State.CONNECTED, Step.EXCHANGE): lambda: connected().restart(),
    (State.CONNECTED, Step.ANSWERED): lambda: direct(connected()).restart().wait(5).answer(),
    (State.CONNECTED, Step.NOMINATED): lambda: connected().nominated(),
    (State.CONNECTED, Step.GAVE_UP): lambda: restarted().restart(),
    (State.CONNECTED, Step.FAIL): lambda: restarted().relay(up=False).restart(),
    (State.FALLBACK_RELAY, Step.EXCHANGE): lambda: fallback().restart(),
    (State.FALLBACK_RELAY, Step.ANSWERED): lambda: signaling().wait(5).answer(),
    (State.FALLBACK_RELAY, Step.NOMINATED): lambda: fallback().nominated(),
    (State.FALLBACK_RELAY, Step.FAIL): failed,
    (State.FAILED, Step.EXCHANGE): lambda: failed().restart("operator"),
    (State.FAILED, Step.NOMINATED): lambda: failed().nominated(),
    (State.FAILED, Step.RELAY_BACK): lambda: failed().relay(),
}  # fmt: skip


def test_a_way_is_known_through_every_transition_of_the_table() -> None:
    assert WAYS.keys() == TRANSITIONS.keys()


@pytest.mark.parametrize(("state", "step"), TRANSITIONS, ids=lambda each: each.value)
def test_transition_happens_by_what_the_outside_world_does(
    state: State, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[State, Step]] = []
    original = HolePunch._step

    def note(search: HolePunch, step: Step) -> None:
        taken.append((search.state, step))
        original(search, step)

    monkeypatch.setattr(HolePunch, "_step", note)
    end = WAYS[state, step]()
    assert taken[-1] == (state, step)
    assert end.state is TRANSITIONS[state, step]


@pytest.mark.parametrize(
    ("state", "step"), [pair for pair in itertools.product(State, Step) if pair not in TRANSITIONS]
)
def test_what_the_table_does_not_have_is_our_mistake_and_changes_nothing(state: State, step: Step) -> None:
    end = agent()
    end.core._state = state
    with pytest.raises(LocalProtocolError, match=step.value):
        end.core._step(step)
    assert end.state is state


# The agent


def test_agent_gathers_when_the_relay_carries_and_offers_at_the_first_candidates() -> None:
    end = agent().relay()
    assert end.all(e.GatherCandidates)
    end.gathered(OURS)
    prepared = end.one(e.PrepareChecks)
    sent = end.one(e.SendSignal)
    assert sent == e.SendSignal(s.Offer(1, prepared.credentials, (OURS,)), "i1")
    assert prepared.candidates == (OURS,)
    prepared.credentials.check()


def test_agent_without_candidates_offers_all_the_same_after_a_while() -> None:
    end = agent().relay().wait(core.GATHERING_LIMIT_S)
    (offer,) = end.sent(s.Offer)
    assert offer.candidates == ()
    end.gathered(OURS)
    assert end.sent(s.CandidateAdded) == [s.CandidateAdded(1, OURS)]


def test_agent_starts_checks_when_answered_and_waits_to_be_told_when() -> None:
    end = waiting()
    assert end.one(e.StartChecks) == e.StartChecks(1, CREDENTIALS, (THEIRS,), core.UNTOLD_START_DELAY_MS)
    end.says(s.StartPunching(1, 40))
    assert end.one(e.BeginChecks) == e.BeginChecks(1, 40)
    end.began().says(s.StartPunching(1, 40))
    assert not end.all(e.BeginChecks), "they began already"


def test_start_time_of_another_generation_or_beyond_reason_is_not_obeyed() -> None:
    end = waiting().says(s.StartPunching(2, 40))
    assert not end.all(e.BeginChecks)
    end.says(s.StartPunching(1, 40), via="")
    assert not end.all(e.BeginChecks)
    end.says(s.StartPunching(1, 10**9))
    assert end.one(e.BeginChecks).start_delay_ms == core.MAX_START_DELAY_MS
    assert end.core.counts["stale_start"] == 2


def test_later_candidates_are_trickled_until_the_end_of_them() -> None:
    end = waiting().gathered(OURS, more := host("192.0.2.2"), complete=True)
    assert end.all(e.SendSignal) == [
        e.SendSignal(s.CandidateAdded(1, more), "i1"),
        e.SendSignal(s.EndOfCandidates(1), "i1"),
    ]
    assert end.all(e.AddCandidates) == [
        e.AddCandidates(1, True, (more,)),
        e.AddCandidates(1, True, (), is_end=True),
    ]
    assert not end.gathered(OURS, more, host("192.0.2.3"), complete=True).all(e.SendSignal)


def test_candidates_of_the_peer_reach_the_checklist_once_each() -> None:
    end = waiting().says(s.CandidateAdded(1, more := host("198.51.100.2")))
    assert end.one(e.AddCandidates) == e.AddCandidates(1, False, (more,))
    assert not end.says(s.CandidateAdded(1, more), via="").all(e.AddCandidates)
    assert end.says(s.EndOfCandidates(1)).one(e.AddCandidates).is_end
    assert not end.says(s.EndOfCandidates(1), via="").all(e.AddCandidates)
    assert not end.says(s.CandidateAdded(1, host("198.51.100.3"))).all(e.AddCandidates)
    assert end.core.counts == {"candidate_after_end": 1}


def test_candidates_that_overtake_the_answer_are_not_lost() -> None:
    end = signaling().says(s.CandidateAdded(1, early := host("198.51.100.9")), via="")
    end.says(s.EndOfCandidates(1), via="")
    assert not end.all(e.AddCandidates)
    end.answer()
    assert set(end.one(e.StartChecks).candidates) == {early, THEIRS}
    assert end.one(e.AddCandidates) == e.AddCandidates(1, False, (), is_end=True)


def test_answer_counts_once_and_only_for_the_outstanding_generation() -> None:
    end = signaling()
    assert not end.says(s.Answer(2, CREDENTIALS)).all(e.StartChecks)
    assert end.answer().all(e.StartChecks)
    assert not end.answer(via="").all(e.StartChecks)
    assert end.core.counts == {"stale_answer": 1, "repeated_answer": 1}


def test_each_role_ignores_what_only_the_other_may_say() -> None:
    end = signaling().offer(7)
    assert not end.last
    other = answered().says(s.Answer(1, CREDENTIALS))
    assert not other.last
    other.says(s.RestartRequested("x"))
    assert end.core.counts == {"unexpected_offer": 1}
    assert other.core.counts == {"unexpected_answer": 1, "unexpected_restart": 1}


def test_nomination_ends_the_attempt_with_its_times_and_tells_the_peer_once() -> None:
    end = signaling()
    end.now += 0.1
    end.answer().began()
    end.now += 0.25
    end.nominated()
    done = end.one(e.Connected)
    assert (done.generation, done.rtt_us) == (1, 20_000)
    assert done.since_answer_s == pytest.approx(0.25)
    assert done.since_offer_s == pytest.approx(0.35)
    assert end.sent(s.PunchingResult) == [s.PunchingResult(True, THEIRS.address, 20_000)]
    assert end.core.next_deadline() is None
    again = end.nominated()
    assert not again.all(e.Connected)
    assert not again.sent(s.PunchingResult)


def test_nomination_of_a_stale_generation_changes_nothing() -> None:
    end = connected().restart()
    end.nominated(generation=1)
    assert end.state is State.SIGNALING
    assert end.core.counts == {"stale_nomination": 1}


# Time limits


def test_unanswered_offer_falls_back_to_the_relay_and_is_repeated_ever_more_rarely() -> None:
    end = signaling().wait(core.SIGNALING_LIMIT_S)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "signaling_timeout")
    assert end.one(e.GaveUp) == e.GaveUp(1, "signaling_timeout")
    pauses = []
    for _ in range(8):
        start = end.now
        while end.state is State.FALLBACK_RELAY:
            end.wait(0.1)
        pauses.append(end.now - start)
        end.wait(core.SIGNALING_LIMIT_S)
    for index, pause in enumerate(pauses):
        middle = min(core.SIGNALING_RETRY_S * 2**index, 30)
        assert 0.8 * middle - 0.1 <= pause <= 1.2 * middle + 0.2
    assert end.generation == 9


def test_checks_without_success_report_the_relay_after_their_limit_and_go_on() -> None:
    end = checking().wait(5 - 0.01)
    assert end.state is State.CHECKING
    end.wait(0.02)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "no_direct_path_yet")
    assert not end.all(e.StopChecks)
    assert end.sent(s.PunchingResult) == [s.PunchingResult(False, reason="no_direct_path_yet")]
    assert end.nominated().state is State.CONNECTED, "a late success counts"


def test_relay_is_reported_within_ten_seconds_of_the_offer_whatever_happens() -> None:
    never_began = waiting().wait(10)
    assert (never_began.state, never_began.reason) == (State.FALLBACK_RELAY, "checks_never_began")
    late = signaling().wait(4.9).answer().wait(4).began().wait(10 - 8.9)
    assert (late.state, late.reason) == (State.FALLBACK_RELAY, "no_direct_path_yet")


def test_cooldown_doubles_up_to_its_maximum_and_a_success_resets_it() -> None:
    end = checking()
    pauses = []
    for _ in range(7):
        end.checks_failed()
        start = end.now
        while end.state is State.FALLBACK_RELAY:
            end.wait(1)
        pauses.append(end.now - start)
        end.answer().began()
    for pause, middle in zip(pauses, (30, 60, 120, 240, 480, 600, 600), strict=True):
        assert 0.8 * middle <= pause <= 1.2 * middle + 1
    end.nominated().restart().answer().began().checks_failed().wait(37)
    assert end.sent(s.Offer)


def test_configured_limit_of_checks_takes_the_place_of_five_seconds() -> None:
    end = agent(limits=HolePunchLimits(check_limit_s=1.5)).relay().gathered().answer().began()
    assert end.wait(1.49).state is State.CHECKING
    end.wait(0.02)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "no_direct_path_yet")


def test_configured_cooldown_is_the_first_of_those_that_double() -> None:
    end = agent(limits=HolePunchLimits(cooldown_s=4.0)).relay().gathered().answer().began()
    for middle in (4, 8, 16):
        end.checks_failed().wait(0.8 * middle - 0.1)
        assert end.state is State.FALLBACK_RELAY
        assert end.wait(0.4 * middle + 0.2).state is State.SIGNALING
        end.answer().began()


def test_ruled_out_direct_path_is_reported_at_once_while_checks_go_on() -> None:
    end = agent().relay().gathered(nat=VARYING).answer(nat=VARYING)
    assert end.all(e.StartChecks)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "both_mappings_vary")
    end.says(s.StartPunching(1, 10))
    assert end.all(e.BeginChecks)
    assert end.began().nominated().state is State.CONNECTED
    assert end.reason == ""


def test_nat_of_the_peer_that_is_learned_later_rules_out_as_well() -> None:
    end = agent().relay().gathered(nat=VARYING).answer().began()
    assert end.state is State.CHECKING
    end.says(s.NatLearned(1, VARYING))
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "both_mappings_vary")


def test_own_nat_that_is_learned_later_is_told_and_judged() -> None:
    end = signaling().answer(nat=VARYING).gathered(nat=VARYING)
    assert end.sent(s.NatLearned) == [s.NatLearned(1, VARYING)]
    assert end.reason == "both_mappings_vary"


@pytest.mark.parametrize("reason", ["all_pairs_failed", "no_answer", "no_direct_path_yet"])
@pytest.mark.parametrize("learns", ["ours", "theirs"])
def test_nat_that_is_learned_behind_the_end_of_an_attempt_explains_it(learns: str, reason: str) -> None:
    end = agent().relay().gathered(nat=NatBehaviour() if learns == "ours" else VARYING)
    end.answer(nat=NatBehaviour() if learns == "theirs" else VARYING).began()
    if reason == "no_direct_path_yet":
        end.wait(6)
    else:
        end.core.handle_checks_failed(1, reason, end.now)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, reason)
    if learns == "ours":
        end.gathered(nat=VARYING)
    else:
        end.says(s.NatLearned(1, VARYING))
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "both_mappings_vary")
    assert end.all(e.Changed)[-1].snapshot.reason == "both_mappings_vary"
    assert end.nominated().reason == "", "a late success counts"


def test_nat_that_is_learned_later_takes_no_better_reason_away() -> None:
    end = agent().relay().gathered(nat=VARYING).answer().began()
    end.core.handle_checks_failed(1, "mtu", end.now)
    end.says(s.NatLearned(1, VARYING))
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "mtu")


def test_what_is_said_of_the_nats_follows_what_is_known_of_them() -> None:
    end = agent().relay().gathered(nat=VARYING).answer(nat=FILTERING).began()
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "mapping_varies_and_peer_filters_ports")
    end.says(s.NatLearned(1, VARYING))
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "both_mappings_vary")
    assert end.all(e.Changed)[-1].snapshot.reason == "both_mappings_vary"


def test_want_of_a_common_family_is_a_better_reason_than_the_nats() -> None:
    end = agent().relay().gathered(nat=VARYING).answer(nat=FILTERING).began()
    end.core.handle_checks_failed(1, "no_common_family", end.now)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "no_common_family")
    # Whatever else is learned of them.
    end.says(s.NatLearned(1, VARYING))
    assert end.reason == "no_common_family"
    assert end.all(e.Changed)[-1].snapshot.reason == "no_common_family"


def test_failure_of_the_checks_takes_the_reason_of_the_nats_away_for_nothing_less() -> None:
    end = agent().relay().gathered(nat=VARYING).answer(nat=FILTERING).began()
    end.core.handle_checks_failed(1, "no_answer", end.now)
    assert end.reason == "mapping_varies_and_peer_filters_ports"


# Restarts


def test_restart_has_a_new_generation_with_new_credentials() -> None:
    end = signaling()
    first = end.one(e.PrepareChecks)
    end.answer().began().nominated().restart()
    second = end.one(e.PrepareChecks)
    assert second.generation == 2
    assert second.credentials != first.credentials
    assert end.sent(s.Offer)


def test_second_failure_within_thirty_seconds_waits_for_its_turn() -> None:
    end = connected().restart().answer().began().nominated()
    end.now += 1
    end.restart("path_silent")
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "path_silent")
    end.wait(core.RESTART_INTERVAL_S - 1.1)
    assert end.generation == 2
    end.wait(0.2)
    assert end.generation == 3


def test_operator_and_changed_addresses_do_not_wait() -> None:
    end = connected().restart().answer().began().nominated()
    end.now += 1
    assert end.restart(s.OPERATOR).generation == 3
    end.now += 1
    assert end.gathered(network=1).generation == 4
    assert end.gathered(network=2).generation == 4, "within the same second"
    assert end.wait(1).generation == 5
    assert end.sent(s.Offer)


@pytest.mark.parametrize("whose", ["ours", "the peer's"])
def test_changed_addresses_reset_the_cooldown(whose: str) -> None:
    end = checking()
    for _ in range(4):
        end.checks_failed()
        end.now += 1000
        end.wait(0).answer().began()
    if whose == "ours":
        end.gathered(network=1)
    else:
        end.says(s.RestartRequested(s.NETWORK_CHANGED))
    end.answer().began().checks_failed().wait(37)
    assert end.sent(s.Offer)


def test_addresses_of_the_peer_that_change_while_an_offer_is_in_flight_reset_the_cooldown() -> None:
    end = checking()
    for _ in range(4):
        end.checks_failed()
        end.now += 1000
        end.wait(0)
        last = end.generation
        end.says(s.RestartRequested(s.NETWORK_CHANGED)).answer().began()
        assert end.generation == last
    assert end.checks_failed().wait(37).sent(s.Offer)


def test_failed_path_of_the_peer_does_not_reset_the_cooldown() -> None:
    end = checking()
    for _ in range(4):
        end.checks_failed()
        end.now += 1000
        end.wait(0).answer().began()
    end.says(s.RestartRequested("path_failed")).answer().began().checks_failed().wait(37)
    assert not end.sent(s.Offer)


BLOCKED = NatBehaviour(is_udp_blocked=True)


@pytest.mark.parametrize("is_complete", [True, False], ids=["all addresses told", "more may follow"])
def test_udp_that_passes_again_does_not_wait_for_the_cooldown(*, is_complete: bool) -> None:
    end = agent().relay().gathered(complete=is_complete, nat=BLOCKED).answer()
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "udp_blocked")
    later = host("203.0.113.9")
    end.now += 2
    end.gathered(OURS, later)
    # Who was told to expect more needs no other search.
    assert [later in offer.candidates for offer in end.sent(s.Offer)] == [True] * is_complete
    assert [each.candidate for each in end.sent(s.CandidateAdded)] == [later] * (not is_complete)


def test_connector_where_udp_passes_again_asks_for_a_search_at_once() -> None:
    end = connector().offer(1).gathered(complete=True, nat=BLOCKED)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "udp_blocked")
    end.now += 2
    assert end.gathered().sent(s.RestartRequested) == [s.RestartRequested(s.NETWORK_CHANGED)]


def test_udp_that_passes_again_is_no_reason_to_leave_a_direct_path() -> None:
    end = agent().relay().gathered(complete=True, nat=BLOCKED).answer().began().nominated()
    end.now += 2
    assert not end.gathered().sent(s.Offer)
    assert end.state is State.CONNECTED


@pytest.mark.parametrize("is_known_later", [True, False], ids=["learned later", "nothing new"])
def test_search_that_failed_without_an_address_learned_after_its_end_is_repeated_at_once(
    *, is_known_later: bool
) -> None:
    # While no server answered, gathering was over; the offer arrived when one did again.
    end = agent().relay().gathered(complete=True)
    assert end.sent(s.EndOfCandidates)
    later = host("203.0.113.9")
    if is_known_later:
        assert not end.gathered(OURS, later, complete=True).sent(s.CandidateAdded)
    end.answer().began().wait(4).checks_failed().wait(2 * core.URGENT_INTERVAL_S)
    assert [later in offer.candidates for offer in end.sent(s.Offer)] == [True] * is_known_later


def test_request_to_restart_is_redundant_while_an_offer_is_in_flight() -> None:
    end = signaling().says(s.RestartRequested("path_failed"))
    assert end.generation == 1
    assert end.core.counts == {"redundant_restart": 1}


def test_peer_gets_the_restart_that_it_asks_for_and_not_a_flood_of_them() -> None:
    end = connected().says(s.RestartRequested("path_failed"), via="")
    assert end.generation == 2
    end.answer().began().nominated()
    direct(end)
    for _ in range(100):
        end.says(s.RestartRequested(s.NETWORK_CHANGED), via="")
        if end.state is State.SIGNALING:
            end.answer().began().nominated()
    assert end.generation == 3
    assert end.wait(1).generation == 4


@pytest.mark.parametrize("role", ["agent", "connector"])
def test_each_further_generation_asks_for_candidates_anew_and_their_end_waits_for_the_answer(
    role: str,
) -> None:
    other = host("198.51.100.7")
    if role == "agent":
        end = connected().gathered(OURS, complete=True).restart()
    else:
        end = answered().gathered(OURS, complete=True).offer(2)
    assert end.all(e.GatherCandidates)
    assert not end.sent(s.EndOfCandidates)
    # Its mapping was forgotten, and there is another one.
    assert end.gathered(OURS).last == []
    end.gathered(OURS, other, complete=True)
    assert end.sent(s.CandidateAdded) == [s.CandidateAdded(2, other)]
    assert end.sent(s.EndOfCandidates) == [s.EndOfCandidates(2)]


def test_connector_asks_the_agent_for_a_restart() -> None:
    end = answered().began().nominated().restart("path_failed")
    assert end.sent(s.RestartRequested) == [s.RestartRequested("path_failed")]
    assert end.offer(2).state is State.WAITING_TO_START


def test_connector_whose_request_is_not_heard_asks_again() -> None:
    end = answered().began().nominated().restart("path_failed").wait(5)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "signaling_timeout")
    end.wait(3)
    assert end.sent(s.RestartRequested)


def test_connector_in_fallback_leaves_the_next_attempt_to_the_agent() -> None:
    end = answered().began().checks_failed()
    assert end.state is State.FALLBACK_RELAY
    assert end.core.next_deadline() is None


def test_failed_restart_leaves_a_working_direct_path_alone() -> None:
    end = direct(connected()).restart(s.OPERATOR).wait(5)
    assert (end.state, end.reason) == (State.CONNECTED, "signaling_timeout")
    assert not end.all(e.GaveUp)


# The connector


def test_connector_answers_at_once_with_what_it_has() -> None:
    end = answered()
    prepared = end.one(e.PrepareChecks)
    assert end.one(e.SendSignal) == e.SendSignal(s.Answer(1, prepared.credentials, (OURS,)), "i1")
    assert end.one(e.StartChecks) == e.StartChecks(1, CREDENTIALS, (THEIRS,), core.UNTOLD_START_DELAY_MS)
    again = end.offer(2)
    assert again.sent(s.Answer)


def test_offer_that_comes_before_the_relay_is_up_is_answered_where_it_came_from() -> None:
    end = End(agent=False).gathered().offer()
    assert [each.intermediate_id for each in end.all(e.SendSignal)] == ["i1"]
    assert end.sent(s.Answer)
    trickled = end.gathered(OURS, more := host("192.0.2.7"))
    assert trickled.all(e.SendSignal) == [e.SendSignal(s.CandidateAdded(1, more), "i1")]


def test_connector_waits_a_moment_for_its_first_candidates_and_no_longer() -> None:
    end = connector().offer()
    assert end.all(e.GatherCandidates)
    assert not end.all(e.SendSignal)
    end.wait(core.ANSWER_PATIENCE_S)
    (answer,) = end.sent(s.Answer)
    assert answer.candidates == ()
    assert end.gathered(OURS).sent(s.CandidateAdded) == [s.CandidateAdded(1, OURS)]


def test_candidates_that_come_while_the_connector_gathers_are_checked_too() -> None:
    end = connector().offer().says(s.CandidateAdded(1, more := host("198.51.100.2"))).gathered()
    assert end.one(e.StartChecks).candidates == (THEIRS, more)


def test_offer_that_came_both_ways_gets_the_same_answer() -> None:
    end = answered()
    (first,) = end.sent(s.Answer)
    end.core.handle_established(end.now)
    end.offer(1, via="")
    assert end.all(e.SendSignal) == [e.SendSignal(first, "")]
    assert not end.all(e.PrepareChecks)


def test_stale_offer_is_refused_without_an_answer() -> None:
    end = connector().offer(5).gathered().established()
    other = s.Offer(5, s.Credentials("other", "q" * 22))
    assert not end.says(other).last
    assert not end.offer(4).last
    assert end.offer(4, via="").sent(s.SignalingError)[0].code == "invalid_message"
    assert end.core.counts == {"stale_offer": 3}


def test_flood_of_offers_is_cut_off() -> None:
    end = answered().established()
    for number in range(2, 200):
        end.offer(number, via="")
    assert end.sent(s.SignalingError)[0].code == "rate_limited"
    assert end.generation == core.GENERATION_BURST
    end.now += 5
    assert end.offer(500, via="").sent(s.Answer)


def test_trickle_beyond_the_limits_is_ignored() -> None:
    end = answered()
    for port in range(1, 100):
        end.says(s.CandidateAdded(1, host("203.0.113.1", port)))
        end.says(s.NatLearned(1, NatBehaviour(port_step=port)))
    assert len(end.core.snapshot.remote) == s.MAX_CANDIDATES
    assert end.core.counts["too_many_candidates"] == 99 - (s.MAX_CANDIDATES - 1)
    assert end.core.counts["too_many_nat_updates"] == 99 - core.MAX_NAT_UPDATES
    end.says(s.CandidateAdded(9, host("203.0.113.1", 200)))
    assert end.core.counts["stale_candidate"] == 1


def test_more_candidates_of_our_own_than_allowed_are_not_told() -> None:
    end = waiting().gathered(*(host("192.0.2.1", port) for port in range(1, 50)))
    assert len(end.sent(s.CandidateAdded)) == s.MAX_CANDIDATES - 1


@pytest.mark.parametrize(
    ("candidate", "complaint"),
    [
        (host("0.0.0.0"), "no_unicast_address"),
        (host("::"), "no_unicast_address"),
        (host("224.0.0.1"), "no_unicast_address"),
        (host("ff02::1"), "no_unicast_address"),
        (host("127.0.0.1"), "loopback_address"),
        (host("::1"), "loopback_address"),
        (host("255.255.255.255"), "reserved_address"),
        (host("240.0.0.1"), "reserved_address"),
        (host("0.1.2.3"), "reserved_address"),
        (host("fe80::1"), "scoped_address"),
        (host("fe80::1%eth0"), "scoped_address"),
        (host("fec0::1"), "scoped_address"),
        (host("203.0.113.9", 4433), "refused_address"),
        (OURS, "own_address"),
        (replace(host("203.0.113.8"), type=CandidateType.PEER_REFLEXIVE), "unexpected_type"),
    ],
    ids=str,
)
def test_address_that_no_peer_can_have_is_never_checked(candidate: Candidate, complaint: str) -> None:
    intermediate = TransportAddress("203.0.113.9", 4433)
    end = End(agent=False, refused=(intermediate,)).relay().offer(1, candidate, THEIRS).gathered()
    assert end.one(e.StartChecks).candidates == (THEIRS,)
    assert not end.says(s.CandidateAdded(1, candidate)).all(e.AddCandidates)
    assert end.core.counts == {complaint: 2}


def test_loopback_is_checked_by_whoever_is_on_loopback() -> None:
    end = connector().offer(1, there := host("127.0.0.1", 9)).gathered(host("127.0.0.1"))
    assert end.one(e.StartChecks).candidates == (there,)


# Carriers


def test_first_exchange_takes_the_relay_that_came_up_last() -> None:
    end = agent().relay("i1").relay("i2").gathered()
    assert end.one(e.SendSignal).intermediate_id == "i2"
    gone = agent().relay("i1").relay("i2").relay("i2", up=False).gathered()
    assert gone.one(e.SendSignal).intermediate_id == "i1"


def test_established_session_carries_later_exchanges_and_starts_without_being_told() -> None:
    end = connected().established().restart()
    assert end.one(e.SendSignal).intermediate_id == ""
    assert end.core.snapshot.carrier == "session"
    assert end.answer(via="").one(e.StartChecks).start_delay_ms == 0
    other = answered().began().nominated().established()
    other.core.handle_rtt(0.08)
    assert other.offer(2, via="").one(e.StartChecks).start_delay_ms == 40


def test_silent_session_is_given_a_second_chance_through_the_intermediate() -> None:
    end = connected().established().restart()
    (offer,) = end.sent(s.Offer)
    end.gathered(OURS, more := host("192.0.2.7"), complete=True)
    end.wait(core.REPEAT_AFTER_S)
    repeated, ended = end.all(e.SendSignal)
    assert repeated == e.SendSignal(s.Offer(2, offer.credentials, (OURS, more)), "i1")
    assert ended == e.SendSignal(s.EndOfCandidates(2), "i1")
    assert end.answer(via="i1").one(e.StartChecks).start_delay_ms == core.UNTOLD_START_DELAY_MS
    asking = answered().began().nominated().established().restart("path_failed").wait(core.REPEAT_AFTER_S)
    assert asking.all(e.SendSignal) == [e.SendSignal(s.RestartRequested("path_failed"), "i1")]


def test_repeat_without_an_intermediate_is_left_out() -> None:
    end = connected().established().restart().relay(up=False).wait(core.REPEAT_AFTER_S)
    assert not end.all(e.SendSignal)


def test_lost_carrier_is_replaced_by_the_other_one() -> None:
    end = waiting().established().relay(up=False).gathered(OURS, host("192.0.2.7"))
    assert end.one(e.SendSignal).intermediate_id == ""
    mute = waiting().relay(up=False).gathered(OURS, host("192.0.2.7"))
    assert not mute.all(e.SendSignal)
    assert mute.core.counts == {"no_carrier": 1}


def test_session_that_comes_up_ends_the_wait_for_another_exchange() -> None:
    end = signaling().wait(5).established().wait(0)
    assert end.one(e.SendSignal).intermediate_id == ""


# Refusals


@pytest.mark.parametrize("code", sorted(core.FINAL_CODES))
def test_refusal_of_the_intermediate_is_the_end(code: str) -> None:
    end = signaling().says(s.SignalingError(code))
    assert (end.state, end.reason) == (State.FAILED, f"signaling_{code}")
    assert end.all(e.StopChecks)
    assert end.core.next_deadline() is None
    end.answer()
    assert end.core.counts == {"stale_answer": 1}
    assert end.relay("i2").wait(0).sent(s.Offer), "another intermediate may allow it"


def test_timeout_at_the_intermediate_is_like_our_own() -> None:
    end = signaling().says(s.SignalingError("session_timeout"))
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "signaling_timeout")


@pytest.mark.parametrize("via", ["i2", ""])
def test_refusal_by_whoever_was_not_asked_is_ignored(via: str) -> None:
    end = signaling().says(s.SignalingError("access_denied"), via)
    assert end.state is State.SIGNALING
    assert end.core.counts == {"stale_error": 1}


def test_agent_that_lost_count_finds_the_generation_of_the_others() -> None:
    end = signaling()
    tries = 0
    while end.generation <= 1000:
        end.says(s.SignalingError("invalid_message", "stale_generation"))
        while end.state is not State.SIGNALING:
            end.wait(0.5)
        tries += 1
    assert tries <= 10
    end.core._current.number = core.MAX_GENERATION  # type: ignore[union-attr]
    end.restart(s.OPERATOR)
    assert end.generation == core.MAX_GENERATION


def test_peer_that_uses_the_relay_alone_is_asked_again_later() -> None:
    end = signaling().says(DECLINED)
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "peer_relay_only")
    assert end.wait(40).state is State.SIGNALING
    quiet = waiting().says(s.PunchingResult(False, reason="all_pairs_failed"))
    assert quiet.state is State.WAITING_TO_START, "what became of it there is no business of ours"


def test_policy_relay_only_declines_and_does_nothing_else() -> None:
    end = connector(limits=HolePunchLimits(is_relay_only=True))
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, s.POLICY_RELAY_ONLY)
    assert end.offer().last == [e.SendSignal(DECLINED, "i1")]
    assert end.established().last == [e.SendSignal(DECLINED, "")]
    assert not end.restart(s.OPERATOR).last
    assert not end.says(s.RestartRequested("x")).last
    assert not end.relay(up=False).relay().all(e.SendSignal)
    assert end.core.next_deadline() is None


def test_no_relay_and_no_direct_path_is_failure_until_a_relay_is_back() -> None:
    end = failed()
    assert end.reason == "no_path"
    assert end.wait(100).state is State.FAILED, "nobody would hear an offer"
    end.relay()
    assert (end.state, end.reason) == (State.FALLBACK_RELAY, "relay_back")
    assert end.wait(0).sent(s.Offer)


def test_end_of_the_session_stops_everything() -> None:
    end = checking()
    end.core.stop()
    end._drain()
    assert end.last == [e.StopChecks(1), e.StopGathering()]
    assert end.core.next_deadline() is None
    idle = agent()
    idle.core.stop()
    assert not idle._drain().last


def test_passwords_are_not_printed() -> None:
    assert "p" * 22 not in repr(s.Offer(1, CREDENTIALS))


def test_every_change_is_told_with_all_that_the_search_goes_by() -> None:
    end = agent().relay().gathered(nat=VARYING)
    told = [each.snapshot for each in end.all(e.Changed)]
    assert told[-1] == e.Snapshot(
        1, State.SIGNALING, "", (OURS,), (), VARYING, NatBehaviour(), "intermediate"
    )
    end.answer().began()
    assert [each.snapshot.state for each in end.seen if isinstance(each, e.Changed)] == [
        State.GATHERING, State.SIGNALING, State.WAITING_TO_START, State.CHECKING,
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["", "udp_blocked", "peer_path_failed"])
def test_every_reason_has_words_for_people(reason: str) -> None:
    assert bool(sentence(reason)) is bool(reason)
    assert "_" not in sentence(reason)


# Anything at all

CANDIDATES = st.sampled_from([OURS, THEIRS, host("127.0.0.1"), host("224.0.0.1"), host("198.51.100.3")])
NUMBERS = st.integers(0, 4)
NATS = st.sampled_from([NatBehaviour(), VARYING, NatBehaviour(is_udp_blocked=True)])
SIGNALS = st.one_of(
    st.builds(s.Offer, NUMBERS, st.just(CREDENTIALS), st.lists(CANDIDATES), NATS),
    st.builds(s.Answer, NUMBERS, st.just(CREDENTIALS), st.lists(CANDIDATES), NATS),
    st.builds(s.CandidateAdded, NUMBERS, CANDIDATES),
    st.builds(s.EndOfCandidates, NUMBERS),
    st.builds(s.NatLearned, NUMBERS, NATS),
    st.builds(s.StartPunching, NUMBERS, st.integers(0, 2**32 - 1)),
    st.builds(s.RestartRequested, st.sampled_from([s.OPERATOR, s.NETWORK_CHANGED, "path_failed"])),
    st.builds(s.PunchingResult, st.booleans(), reason=st.sampled_from(["", s.POLICY_RELAY_ONLY])),
    st.builds(
        s.SignalingError, st.sampled_from(["session_timeout", "access_denied", "invalid_message", "x"])
    ),
)
VIA = st.sampled_from(["", "i1", "i2"])
GATHERED = st.builds(Gathered, st.lists(CANDIDATES).map(tuple), st.booleans(), st.integers(0, 2), NATS)
INPUTS = st.lists(
    st.one_of(
        st.tuples(st.just("handle_relay"), VIA, st.booleans()),
        st.tuples(st.just("handle_established")),
        st.tuples(st.just("handle_path"), st.booleans()),
        st.tuples(st.just("handle_restart"), st.sampled_from([s.OPERATOR, "path_failed"])),
        st.tuples(st.just("handle_gathered"), GATHERED),
        st.tuples(st.just("handle_checks_began"), NUMBERS),
        st.tuples(st.just("handle_nominated"), NUMBERS),
        st.tuples(st.just("handle_checks_failed"), NUMBERS),
        st.tuples(st.just("handle_signal"), SIGNALS, VIA),
        st.tuples(st.just("wait"), st.floats(0, 700)),
    ),
    max_size=40,
)


def apply(end: End, name: str, *arguments: object) -> None:
    search: object = end.core
    match name, arguments:
        case "handle_relay", (via, is_up):
            end.core.handle_relay(str(via) or "i1", end.now, is_up=bool(is_up))
        case "handle_path", (is_direct,):
            end.core.handle_path(is_direct=bool(is_direct))
        case "handle_nominated", (number,):
            end.core.handle_nominated(int(str(number)), THEIRS.address, 1, end.now)
        case "handle_checks_failed", (number,):
            end.core.handle_checks_failed(int(str(number)), "x", end.now)
        case "wait", (seconds,):
            end.wait(float(str(seconds)))
        case _:
            getattr(search, name)(*arguments, end.now)
    end._drain()


@settings(max_examples=400)
@given(st.booleans(), INPUTS)
def test_nothing_that_happens_breaks_the_search(is_agent: bool, inputs: list[tuple[object, ...]]) -> None:
    end = End(agent=is_agent)
    for name, *arguments in inputs:
        apply(end, str(name), *arguments)
    prepared = [each.generation for each in end.seen if isinstance(each, e.PrepareChecks)]
    assert prepared == sorted(set(prepared)), "each generation is above the last"
    running = 0
    for effect in end.seen:
        match effect:
            case e.PrepareChecks():
                running = effect.generation
            case e.StartChecks() | e.BeginChecks() | e.AddCandidates():
                assert effect.generation == running
    ends = [each.generation for each in end.seen if isinstance(each, e.Connected)]
    assert ends == sorted(set(ends)), "an attempt succeeds once"
    assert len(end.core.snapshot.remote) <= s.MAX_CANDIDATES


def test_round_trip_measured_in_a_pause_holds_the_checks_back_no_longer_than_the_limit() -> None:
    end = answered().began().nominated().established()
    end.core.handle_rtt(3.0)
    assert end.offer(2, via="").one(e.StartChecks).start_delay_ms == core.MAX_START_DELAY_MS
