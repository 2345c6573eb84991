"""Where packets go while the selected path is well, in doubt, or given up."""

from __future__ import annotations

import pytest

from ztna.ice.timing import CONSENT_LIMIT_S, FAIL_OVER_MIN_S
from ztna.path.path import PathKind, Rtt
from ztna.path.traffic import (
    BOTH,
    DESERTED_INTERVAL_S,
    FLOW_PROBE_INTERVAL_S,
    MIRROR_S,
    NOWHERE,
    PEER_RESET_INTERVAL_S,
    STEADY_ARRIVALS,
    STOPPED_GAPS,
    SUSPICION_MIN_S,
    TRUST_S,
    FlowStopped,
    ForgetRtt,
    PathSilent,
    PathSuspected,
    PeerOnPath,
    ProbeBoth,
    ProbeSelected,
    Routes,
    Traffic,
    TrafficEffect,
)

DIRECT, RELAY, NONE = PathKind.DIRECT, PathKind.RELAY, PathKind.NONE
ONLY_RELAY: Routes = (True, False)
ONLY_DIRECT: Routes = (False, True)
START = 100.0


class World:
    """A core with a clock and a peer whose packets are numbered."""

    def __init__(self, selected: PathKind = DIRECT, *, has_relay: bool = True) -> None:
        self.now = START
        self.core = Traffic()
        self.new = self.repeated = 0
        self.acknowledged = self.number = 0
        self.core.handle_selected(RELAY, self.now, has_relay=True, rtt_s=0.080)
        self.receive(RELAY)
        if selected is not RELAY:
            self.core.handle_selected(
                selected, self.now, has_relay=has_relay, rtt_s=0.010, former_rtt_s=0.080
            )
        self.core.drain()

    @property
    def routes(self) -> Routes:
        return self.core.routes(self.now)

    def receive(self, kind: PathKind | None, *, is_new: bool = True) -> None:
        if is_new:
            self.new += 1
        else:
            self.repeated += 1
        self.core.handle_received(kind, (self.new, self.repeated), self.now)

    def send(self, count: int = 1) -> None:
        """Packets leave that the peer has to acknowledge."""
        self.core.handle_sent(self.routes)
        self.number += count
        self.progress(awaits=True)

    def progress(self, *, awaits: bool) -> None:
        self.core.handle_progress(
            awaits=awaits, acknowledged=self.acknowledged, next_number=self.number, now=self.now
        )

    def run(self, seconds: float) -> list[TrafficEffect]:
        end = self.now + seconds
        effects: list[TrafficEffect] = []
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            effects += self.core.drain()
            following = self.core.next_deadline()
            assert following is None or following > self.now
        self.now = end
        return effects

    def suspected(self) -> World:
        self.send()
        effects = self.run(SUSPICION_MIN_S)
        assert [type(each) for each in effects] == [ProbeBoth, PathSuspected]
        return self


def test_without_a_path_nothing_goes_anywhere() -> None:
    assert Traffic().routes(START) == NOWHERE
    assert Traffic().next_deadline() is None


@pytest.mark.parametrize(("selected", "routes"), [(RELAY, ONLY_RELAY), (DIRECT, ONLY_DIRECT)])
def test_packets_take_the_selected_path_alone(selected: PathKind, routes: Routes) -> None:
    assert World(selected).routes == routes


def test_switch_forgets_round_trips_with_both_estimates() -> None:
    core = Traffic()
    core.handle_selected(RELAY, START, has_relay=True, rtt_s=0.080)
    assert core.drain() == []
    core.handle_selected(DIRECT, START, has_relay=True, rtt_s=0.001)
    assert core.drain() == [ForgetRtt(0.080, 0.001)]
    core.handle_selected(DIRECT, START, has_relay=True, is_moved=True, rtt_s=None)
    assert core.drain() == [ForgetRtt(0.1, 0.1)]


def test_another_relay_beneath_the_same_direct_path_forgets_nothing() -> None:
    world = World()
    world.core.handle_selected(DIRECT, world.now, has_relay=False)
    assert world.core.drain() == []
    world.now += TRUST_S + 1
    assert world.routes == ONLY_DIRECT


def test_stale_trust_sends_over_both_until_a_new_packet_comes() -> None:
    world = World()
    world.now += TRUST_S
    assert world.routes == ONLY_DIRECT
    world.now += 0.1
    assert world.routes == BOTH
    world.send()
    world.send()
    assert world.core.dual_sends == 1
    world.receive(DIRECT)
    assert world.routes == ONLY_DIRECT
    world.send()
    assert world.core.dual_sends == 1


def test_repeated_packet_restores_no_trust() -> None:
    world = World()
    world.now += TRUST_S + 0.1
    world.receive(DIRECT, is_new=False)
    assert world.routes == BOTH


def test_answered_check_restores_trust() -> None:
    world = World()
    world.now += TRUST_S + 0.1
    world.core.handle_confirmed(DIRECT, 0.010, world.now)
    assert world.routes == ONLY_DIRECT


@pytest.mark.parametrize(("has_relay", "routes"), [(True, ONLY_RELAY), (False, NOWHERE)])
def test_pair_without_consent_gets_nothing_whatever_comes_from_it(has_relay: bool, routes: Routes) -> None:
    world = World(has_relay=has_relay)
    world.now += CONSENT_LIMIT_S
    world.receive(DIRECT)
    assert world.routes == routes


def test_silence_while_an_acknowledgement_is_owed_raises_suspicion() -> None:
    world = World()
    world.send()
    assert world.core.next_deadline() == START + SUSPICION_MIN_S
    effects = world.run(SUSPICION_MIN_S)
    probe, suspected = effects
    assert probe == ProbeBoth(RELAY)
    assert isinstance(suspected, PathSuspected)
    assert suspected.kind is DIRECT
    assert suspected.silent_s == pytest.approx(SUSPICION_MIN_S)
    assert world.routes == BOTH
    assert world.core.is_suspicious


def test_slow_path_gets_the_patience_of_its_round_trips() -> None:
    world = World(RELAY)
    world.core.handle_selected(DIRECT, world.now, has_relay=True, rtt_s=0.400)
    world.core.drain()
    world.send()
    assert world.core.next_deadline() == pytest.approx(START + 1.5 * 0.4 + 4 * 0.2)
    for _ in range(40):
        world.core.handle_confirmed(DIRECT, 0.400, world.now)
    assert world.core.next_deadline() == pytest.approx(START + 1.5 * 0.4, abs=0.01)


def test_silence_without_anything_owed_means_nothing() -> None:
    world = World()
    world.send()
    world.progress(awaits=False)
    assert world.core.next_deadline() is None


def test_packet_on_the_selected_path_postpones_suspicion() -> None:
    world = World()
    world.send()
    world.now += 0.1
    world.receive(DIRECT, is_new=False)
    assert world.core.next_deadline() == pytest.approx(START + 0.1 + SUSPICION_MIN_S)


def test_suspicion_that_nothing_refutes_becomes_failure_in_time() -> None:
    world = World().suspected()
    effects = world.run(5.0)
    (silent,) = effects
    assert isinstance(silent, PathSilent)
    assert silent.kind is DIRECT
    assert silent.silent_s == pytest.approx(FAIL_OVER_MIN_S)
    assert world.routes == BOTH
    assert world.core.next_deadline() is None


def test_failure_of_a_slow_path_comes_a_round_trip_after_the_suspicion_if_that_is_later_than_four() -> None:
    world = World(RELAY)
    world.core.handle_selected(DIRECT, world.now, has_relay=True, rtt_s=0.600)
    world.send()
    (silent,) = [each for each in world.run(10.0) if isinstance(each, PathSilent)]
    # Suspected after 1.5 RTT + 4 · 0.3 s, and one more round trip for the answer.
    assert silent.silent_s == pytest.approx(2.7)


def test_answered_check_refutes_suspicion() -> None:
    world = World().suspected()
    world.core.handle_confirmed(DIRECT, 0.010, world.now)
    assert world.routes == ONLY_DIRECT
    assert world.core.next_deadline() == pytest.approx(world.now + SUSPICION_MIN_S)


def test_acknowledgement_of_what_went_over_the_path_alone_refutes_suspicion() -> None:
    world = World()
    world.send(10)
    world.run(SUSPICION_MIN_S)
    world.send(10)
    world.receive(DIRECT)
    world.acknowledged = 9
    world.progress(awaits=True)
    assert not world.core.is_suspicious


def test_acknowledgement_of_what_went_over_both_refutes_nothing() -> None:
    world = World()
    world.send(10)
    world.run(SUSPICION_MIN_S)
    world.send(10)
    world.receive(DIRECT)
    world.acknowledged = 15
    world.progress(awaits=True)
    assert world.core.is_suspicious


def test_acknowledgement_that_came_over_the_relay_refutes_nothing() -> None:
    world = World()
    world.send(10)
    world.run(SUSPICION_MIN_S)
    world.receive(RELAY)
    world.acknowledged = 9
    world.progress(awaits=True)
    assert world.core.is_suspicious


def test_without_a_relay_no_suspicion_is_raised() -> None:
    world = World(has_relay=False)
    world.send()
    assert world.core.next_deadline() is None


def test_relay_is_not_suspected_while_no_direct_path_lives() -> None:
    world = World(RELAY)
    world.send()
    assert world.core.next_deadline() is None


def test_relay_is_suspected_beside_a_confirmed_direct_path_and_not_beside_a_stale_one() -> None:
    world = World(RELAY)
    world.core.handle_confirmed(DIRECT, 0.010, world.now)
    world.send()
    assert [type(each) for each in world.run(0.5)] == [ProbeBoth, PathSuspected]
    assert world.routes == BOTH
    world = World(RELAY)
    world.core.handle_confirmed(DIRECT, 0.010, world.now)
    world.now += TRUST_S + 1
    world.core.handle_confirmed(RELAY, 0.080, world.now)
    world.send()
    assert world.run(1.0) == []


def test_new_packet_on_the_other_path_is_mirrored_for_a_while_and_told_once() -> None:
    world = World()
    world.receive(DIRECT)
    world.now += 2.0
    world.core.drain()
    world.receive(RELAY)
    assert world.core.drain() == [PeerOnPath(RELAY), ForgetRtt(0.010, 0.080)]
    assert world.routes == BOTH
    world.now += MIRROR_S - 0.1
    world.core.handle_confirmed(DIRECT, None, world.now)
    world.receive(RELAY)
    assert world.core.drain() == []
    world.now += MIRROR_S - 0.1
    assert world.routes == BOTH
    world.now += 0.2
    assert world.routes == ONLY_DIRECT


@pytest.mark.parametrize(
    ("kind", "is_new"), [(RELAY, False), (None, True)], ids=["repeated", "unknown-source"]
)
def test_packet_that_tells_nothing_of_the_peer_is_not_mirrored(kind: PathKind | None, is_new: bool) -> None:
    world = World()
    world.receive(kind, is_new=is_new)
    assert world.core.drain() == []
    assert world.routes == ONLY_DIRECT


def test_batch_without_an_authentic_packet_changes_nothing() -> None:
    world = World()
    world.core.handle_received(RELAY, (world.new, world.repeated), world.now)
    assert world.core.drain() == []


def test_direct_path_that_nobody_confirmed_is_not_mirrored_upon() -> None:
    world = World(RELAY)
    world.receive(DIRECT)
    assert world.routes == ONLY_RELAY
    assert world.core.drain() == [ForgetRtt(0.080, 0.1)]


def test_peer_that_comes_on_both_paths_in_turn_resets_once_in_a_while() -> None:
    world = World()
    resets = 0
    for _ in range(100):
        for kind in (DIRECT, RELAY):
            world.receive(kind)
            resets += sum(isinstance(each, ForgetRtt) for each in world.core.drain())
        world.now += 0.03
    assert 2 <= resets <= 100 * 0.03 / PEER_RESET_INTERVAL_S + 1


def test_copy_that_comes_first_on_the_selected_path_while_the_peer_is_mirrored_resets_nothing() -> None:
    world = World()
    world.receive(DIRECT)
    world.now += PEER_RESET_INTERVAL_S
    world.receive(RELAY)
    assert world.core.drain()
    world.now += PEER_RESET_INTERVAL_S
    world.receive(RELAY)  # goes on mirroring
    world.core.drain()
    world.receive(DIRECT)
    assert world.core.drain() == []
    world.now += MIRROR_S
    world.receive(RELAY)
    world.core.drain()
    world.now += MIRROR_S
    world.receive(DIRECT)
    assert world.core.drain() == [ForgetRtt(0.080, 0.010)]


class TestReceiverThatOwesNothing:
    """Its peer never owes an acknowledgement: what tells is when packets come, and where."""

    @staticmethod
    def flowing(selected: PathKind = DIRECT, gap_s: float = 0.020, count: int = 20) -> World:
        world = World(selected)
        world.receive(selected)
        world.core.drain()
        for _ in range(count - 1):
            assert world.run(gap_s) == []
            world.receive(selected)
        return world

    def test_steady_flow_that_stops_has_both_paths_asked_once_and_switches_nothing(self) -> None:
        world = self.flowing()
        stopped_at = world.now
        assert world.core.next_deadline() == stopped_at + SUSPICION_MIN_S
        (stopped,) = world.run(SUSPICION_MIN_S)
        assert isinstance(stopped, FlowStopped)
        assert stopped.kind is DIRECT
        assert stopped.silent_s == pytest.approx(SUSPICION_MIN_S)
        world.core.handle_confirmed(DIRECT, 0.010, world.now)
        assert world.run(60.0) == []
        assert world.core.routes(stopped_at + 1.0) == ONLY_DIRECT
        assert world.core.dual_sends == 0

    def test_stop_without_an_answer_becomes_suspicion_and_failure(self) -> None:
        world = self.flowing()
        stopped_at = world.now
        effects = world.run(SUSPICION_MIN_S * 2 + 0.01)
        assert [type(each) for each in effects] == [FlowStopped, ProbeBoth, PathSuspected]
        assert world.routes == BOTH
        (silent,) = world.run(5.0)
        assert isinstance(silent, PathSilent)
        # From the check on, as from a packet that nobody acknowledges.
        assert silent.silent_s == pytest.approx(FAIL_OVER_MIN_S)
        assert stopped_at + SUSPICION_MIN_S + FAIL_OVER_MIN_S < world.now

    def test_slow_flow_is_given_four_of_its_gaps(self) -> None:
        world = self.flowing(gap_s=0.100)
        assert world.core.next_deadline() == pytest.approx(world.now + STOPPED_GAPS * 0.100)

    @pytest.mark.parametrize(("gap_s", "count"), [(0.020, STEADY_ARRIVALS - 1), (0.300, 20)])
    def test_exchange_and_trickle_are_no_flow(self, gap_s: float, count: int) -> None:
        world = self.flowing(gap_s=gap_s, count=count)
        assert world.run(60.0) == []

    def test_application_that_pauses_again_and_again_is_asked_once_a_second(self) -> None:
        world = World()
        world.receive(DIRECT)
        world.core.drain()
        stops = 0
        start = world.now
        while world.now < start + 10.0:
            for _ in range(STEADY_ARRIVALS + 2):
                world.run(0.005)
                world.receive(DIRECT)
            effects = world.run(0.2)
            stops += len(effects)
            assert all(isinstance(each, FlowStopped) for each in effects)
            world.core.handle_confirmed(DIRECT, 0.010, world.now)
        assert 5 <= stops <= 1 + (world.now - start) / FLOW_PROBE_INTERVAL_S

    def test_flow_that_resumes_before_the_answer_is_not_doubted(self) -> None:
        world = self.flowing()
        assert len(world.run(SUSPICION_MIN_S)) == 1
        world.receive(DIRECT)
        assert world.run(60.0) == []

    def test_stopped_flow_over_the_relay_has_it_probed(self) -> None:
        world = self.flowing(RELAY)
        probe, stopped = world.run(60.0)
        assert probe == ProbeSelected()
        assert isinstance(stopped, FlowStopped)
        assert stopped.kind is RELAY

    def test_peer_that_goes_on_over_the_relay_alone_makes_the_direct_path_suspect(self) -> None:
        world = World()
        moved_at = world.now
        effects: list[TrafficEffect] = []
        while not any(isinstance(each, PathSilent) for each in effects):
            world.now += 0.020
            world.receive(RELAY)
            effects += world.core.drain()
            world.progress(awaits=False)
            effects += world.run(0.0)
            assert world.now < moved_at + 2.0
        assert any(isinstance(each, PathSuspected) for each in effects)
        assert world.now - moved_at <= FAIL_OVER_MIN_S + 0.050

    def test_peer_that_prefers_the_relay_has_the_direct_path_doubted_seldom(self) -> None:
        world = World()
        doubts = 0
        for _ in range(1000):
            world.now += 0.020
            world.receive(RELAY)
            if any(isinstance(each, PathSuspected) for each in world.core.drain()):
                doubts += 1
                world.core.handle_confirmed(DIRECT, 0.010, world.now)
        assert 2 <= doubts <= 1 + 20.0 / DESERTED_INTERVAL_S
        assert not world.core.is_suspicious

    def test_one_packet_on_the_other_path_is_no_desertion(self) -> None:
        world = World()
        world.receive(RELAY)
        assert not any(isinstance(each, PathSuspected) for each in world.core.drain() + world.run(60.0))


def test_timer_that_fires_early_is_harmless() -> None:
    world = World()
    world.core.handle_timeout(world.now)
    world.send()
    world.core.handle_timeout(world.now)
    assert world.core.drain() == []
    world.run(SUSPICION_MIN_S)
    world.core.handle_timeout(world.now)
    assert world.core.drain() == []


def test_selection_ends_suspicion_and_mirror() -> None:
    world = World().suspected()
    world.receive(RELAY)
    world.core.handle_selected(RELAY, world.now, has_relay=True)
    assert world.routes == ONLY_RELAY
    assert not world.core.is_suspicious


class TestRtt:
    def test_unknown_path_is_assumed_to_be_like_quic_assumes(self) -> None:
        rtt = Rtt()
        assert (rtt.smoothed, rtt.or_guess, rtt.variation_or_guess, rtt.is_inflated) == (
            None,
            0.1,
            0.05,
            False,
        )

    def test_steady_samples_leave_no_variation(self) -> None:
        rtt = Rtt(0.040)
        for _ in range(50):
            rtt.add(0.040)
        assert rtt.or_guess == pytest.approx(0.040)
        assert rtt.variation_or_guess < 0.001

    @pytest.mark.parametrize("sample", [None, 0.0, -1.0])
    def test_check_that_could_not_tell_changes_nothing(self, sample: float | None) -> None:
        rtt = Rtt(0.040)
        rtt.add(sample)
        assert (rtt.smoothed, rtt.minimum) == (0.040, 0.040)

    def test_fraction_of_a_millisecond_is_never_inflated(self) -> None:
        rtt = Rtt(0.0002)
        for _ in range(50):
            rtt.add(0.002)
        assert not rtt.is_inflated
