"""Which path is selected, by what is known of relays, pairs and their checks."""

from __future__ import annotations

import pytest

from ztna.address import TransportAddress
from ztna.ice.timing import (
    ADOPTED_AFTER_S,
    CONSENT_LIMIT_S,
    DEGRADED_LOSS_WINDOW_S,
    FAILED_AFTER_MISSED,
    LOWEST_RTT_HELD_SAMPLES,
    RESTART_INTERVAL_S,
    PathState,
)
from ztna.path.manager import (
    MAX_RELAY_PATHS,
    MIN_DIRECT_BYTES,
    PathManager,
    PathSelected,
    PathStateChanged,
    Policy,
    RelayPath,
    RestartIce,
)
from ztna.path.path import TRANSITIONS, PathEvent, PathKind
from ztna.path.rules import RULES, Event

A = RelayPath("a", 1200)
B = RelayPath("b", 1200)
PEER = TransportAddress("198.51.100.7", 4000)
OTHER = TransportAddress("198.51.100.8", 4000)
DIRECT, RELAY, NONE = PathKind.DIRECT, PathKind.RELAY, PathKind.NONE
START = 100.0


def selections(manager: PathManager) -> list[PathSelected]:
    return [each for each in manager.drain() if isinstance(each, PathSelected)]


def on_direct(policy: Policy = Policy.PREFER_DIRECT, *, rtt_s: float | None = 0.010) -> PathManager:
    """A manager with the relay `a` and a nominated pair, drained."""
    manager = PathManager(policy)
    manager.handle_relay_up("a", 1200, START)
    assert manager.handle_nominated(PEER, "10.0.0.1", 1200, rtt_s, START)
    manager.drain()
    return manager


def answer(manager: PathManager, now: float, rtt_s: float = 0.010) -> None:
    manager.handle_confirmed(DIRECT, PEER, rtt_s, now)


def states(manager: PathManager) -> list[PathState]:
    return [each.state for each in manager.figures()]


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        pytest.param(["+a"], [(A, False)], id="first-path-is-fresh"),
        pytest.param(["+a", "+b"], [(A, False), (B, True)], id="latest-wins"),
        pytest.param(["+a", "-a", "+a"], [(A, False), (None, False), (A, True)], id="outage-is-resumed"),
        pytest.param(["+a", "+a"], [(A, False), (A, True)], id="fresh-channel-on-the-same-leg-is-resumed"),
        pytest.param(["+a", "+b", "-b"], [(A, False), (B, True), (A, True)], id="falls-back-to-the-older"),
        pytest.param(
            ["+a", "+b", "-a"], [(A, False), (B, True)], id="loss-of-an-unused-path-changes-nothing"
        ),
        pytest.param(["-a"], [], id="loss-of-an-unknown-path-changes-nothing"),
        pytest.param(["+a", "+b", "@a"], [(A, False), (B, True), (A, True)], id="follows-the-peer"),
        pytest.param(["+a", "@b"], [(A, False)], id="peer-on-an-unknown-path-changes-nothing"),
    ],
)
def test_latest_relay_path_is_selected(
    news: list[str], expected: list[tuple[RelayPath | None, bool]]
) -> None:
    manager = PathManager()
    found = []
    for each in news:
        if each[0] == "+":
            manager.handle_relay_up(each[1:], 1200, START)
        elif each[0] == "@":
            manager.handle_peer_on_relay(each[1:], START)
        else:
            manager.handle_relay_down(each[1:], START)
        found += selections(manager)
    assert [(each.relay, each.is_resumed) for each in found] == expected
    assert [each.kind for each in found] == [RELAY if relay else NONE for relay, _ in expected]
    assert manager.drain() == []


def test_number_of_relay_paths_is_bounded() -> None:
    manager = PathManager()
    for number in range(MAX_RELAY_PATHS + 3):
        manager.handle_relay_up(f"i{number}", 1200, START)
    assert len(manager.figures()) == MAX_RELAY_PATHS
    assert manager.selected.relay == RelayPath(f"i{MAX_RELAY_PATHS + 2}", 1200)


@pytest.mark.parametrize("state", PathState)
@pytest.mark.parametrize("event", PathEvent)
def test_every_state_has_a_successor_for_every_event(state: PathState, event: PathEvent) -> None:
    assert TRANSITIONS[state, event] in PathState


# What each end does, as docs/wire.md §7 has it.
AGREED = {
    "relay_up": "activate select",
    "relay_down": "select",
    "pair_nominated": "activate select",
    "trust_stale": "send_both_until_confirmed",
    "suspicion": "send_both_until_confirmed probe_both tell",
    "flow_stopped": "probe_selected tell",
    "mirror": "send_both_for_a_while tell",
    "peer_moved": "forget_rtt",
    "confirmed": "send_one",
    "suspect_silent": "fail select restart_ice",
    "check_missed": "degrade select",
    "checks_failed": "fail select restart_ice",
    "consent_expired": "fail select restart_ice",
    "failed_pair_answers": "recover",
    "pair_held": "activate select",
}


@pytest.mark.parametrize("event", Event)
def test_rule_of_every_event_is_the_agreed_one(event: Event) -> None:
    assert [action.name.lower() for action in RULES[event]] == AGREED[event.name.lower()].split()


def test_nominated_pair_takes_over_and_the_relay_stands_by() -> None:
    manager = PathManager()
    manager.handle_relay_up("a", 1200, START)
    manager.handle_confirmed(RELAY, None, 0.080, START)
    manager.drain()
    manager.handle_nominated(PEER, "10.0.0.1", 1232, 0.010, START)
    (selected,) = selections(manager)
    assert (selected.kind, selected.relay, selected.is_resumed) == (DIRECT, A, False)
    assert selected.direct is not None
    assert (selected.direct.remote, selected.direct.max_packet_bytes) == (PEER, 1232)
    assert (selected.rtt_s, selected.former_rtt_s, selected.reason) == (0.010, 0.080, "nominated")
    assert manager.switches == 1


def test_pair_that_carries_less_than_a_packet_is_not_used() -> None:
    manager = PathManager()
    manager.handle_relay_up("a", 1200, START)
    manager.drain()
    assert not manager.handle_nominated(PEER, "", MIN_DIRECT_BYTES - 1, 0.010, START)
    assert manager.drain() == []


def test_better_pair_takes_the_place_of_the_former_one() -> None:
    manager = on_direct()
    manager.handle_nominated(OTHER, "", 1200, 0.001, START + 1)
    (selected,) = selections(manager)
    assert selected.direct is not None
    assert selected.direct.remote == OTHER
    answer(manager, START + 2)
    manager.handle_consent_expired(PEER, START + 2)
    assert manager.drain() == []


def test_same_pair_nominated_anew_is_no_switch() -> None:
    manager = on_direct()
    manager.handle_missed(DIRECT, PEER, 1, START + 5)
    manager.drain()
    manager.handle_nominated(PEER, "10.0.0.1", 1200, 0.010, START + 6)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.ACTIVE, "nominated")]
    assert manager.switches == 1


def test_relay_that_dies_beneath_a_direct_path_changes_only_the_standby() -> None:
    manager = on_direct()
    manager.handle_relay_down("a", START + 1)
    (selected,) = selections(manager)
    assert (selected.kind, selected.relay, selected.is_resumed) == (DIRECT, None, False)
    manager.handle_relay_up("b", 1200, START + 2)
    (selected,) = selections(manager)
    assert (selected.kind, selected.relay, selected.is_resumed) == (DIRECT, B, False)
    assert (manager.switches, manager.fail_overs) == (1, 0)


def test_missed_checks_degrade_then_fail_over_to_the_relay() -> None:
    manager = on_direct()
    manager.handle_missed(DIRECT, PEER, 1, START + 5)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.DEGRADED, "keepalive_missed")]
    manager.handle_missed(DIRECT, PEER, 2, START + 10)
    assert manager.drain() == []
    manager.handle_missed(DIRECT, PEER, FAILED_AFTER_MISSED, START + 15)
    failed, selected, restart = manager.drain()
    assert failed == PathStateChanged(DIRECT, PEER, PathState.FAILED, "keepalive_failed")
    assert isinstance(selected, PathSelected)
    assert (selected.kind, selected.relay, selected.reason) == (RELAY, A, "keepalive_failed")
    assert restart == RestartIce("keepalive_failed")
    assert manager.fail_overs == 1


@pytest.mark.parametrize("most", [1, 2, 5])
def test_configured_count_of_missed_checks_decides_when_a_direct_path_fails(most: int) -> None:
    manager = PathManager(max_missed=most)
    manager.handle_relay_up("a", 1200, START)
    manager.handle_nominated(PEER, "10.0.0.1", 1200, 0.010, START)
    for missed in range(1, most):
        manager.handle_missed(DIRECT, PEER, missed, START + missed)
    assert manager.selected.kind is DIRECT
    manager.handle_missed(DIRECT, PEER, most, START + most)
    assert (manager.selected.kind, manager.selected.reason) == (RELAY, "keepalive_failed")


@pytest.mark.parametrize("cause", ["silent", "consent_expired"])
def test_failed_direct_path_hands_over_to_the_relay_and_restarts_ice_at_once(cause: str) -> None:
    manager = on_direct()
    if cause == "silent":
        manager.handle_silent(DIRECT, PEER, START + 1)
    else:
        manager.handle_consent_expired(PEER, START + 1)
    effects = manager.drain()
    assert [type(each) for each in effects] == [PathStateChanged, PathSelected, RestartIce]
    assert manager.selected.kind is RELAY


def test_answered_check_makes_a_degraded_path_active() -> None:
    manager = on_direct()
    manager.handle_missed(DIRECT, PEER, 1, START + 5)
    answer(manager, START + 6)
    assert states(manager)[0] is PathState.ACTIVE


def test_round_trips_far_above_their_minimum_degrade_the_path_until_they_shrink() -> None:
    manager = on_direct()
    for number in range(20):
        answer(manager, START + number, 0.100)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.DEGRADED, "rtt")]
    for number in range(20, 60):
        answer(manager, START + number, 0.010)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.ACTIVE, "well")]


def test_loss_within_the_window_degrades_the_path_until_it_has_passed() -> None:
    manager = on_direct()
    manager.handle_traffic(1000, 0, START)
    manager.handle_traffic(1100, 6, START + 1)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.DEGRADED, "loss")]
    manager.handle_traffic(1200, 6, START + 1 + DEGRADED_LOSS_WINDOW_S)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.ACTIVE, "well")]


def test_loss_of_a_few_packets_says_nothing() -> None:
    manager = on_direct()
    manager.handle_traffic(0, 0, START)
    manager.handle_traffic(10, 5, START + 1)
    assert manager.drain() == []


def test_traffic_without_a_path_is_not_judged() -> None:
    manager = PathManager()
    manager.handle_traffic(100, 50, START)
    assert manager.drain() == []


def test_failed_pair_is_adopted_again_after_two_answers_over_three_seconds() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    manager.drain()
    answer(manager, START + 1)
    assert manager.drain() == [PathStateChanged(DIRECT, PEER, PathState.RECOVERING, "answers_again")]
    answer(manager, START + 2)
    answer(manager, START + 1 + ADOPTED_AFTER_S - 0.1)
    assert manager.drain() == []
    answer(manager, START + 1 + ADOPTED_AFTER_S)
    assert [each.kind for each in selections(manager)] == [DIRECT]
    assert states(manager)[0] is PathState.ACTIVE


def test_one_late_answer_alone_adopts_nothing() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    answer(manager, START + 1)
    manager.handle_missed(DIRECT, PEER, 1, START + 3)
    assert states(manager)[0] is PathState.FAILED
    answer(manager, START + 20)
    assert states(manager)[0] is PathState.RECOVERING
    assert manager.selected.kind is RELAY


def flap(manager: PathManager, seconds: int, *, works_for_s: float = 1.0) -> int:
    """Let checks pass each second, and payload for a while after each switch; the number of switches back."""
    switches, fails_at = 0, None
    for now in range(int(START), int(START) + seconds):
        answer(manager, now)
        if any(each.kind is DIRECT for each in selections(manager)):
            switches, fails_at = switches + 1, now + works_for_s
        if fails_at is not None and now >= fails_at:
            manager.handle_silent(DIRECT, PEER, now)
            fails_at = None
    return switches


def test_pair_that_carries_checks_and_no_payload_is_adopted_ever_more_rarely() -> None:
    """A firewall that knows STUN, or anybody on the way, would move the session every four seconds."""
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    assert 5 <= flap(manager, 600) <= 8


def test_nomination_of_such_a_pair_does_not_make_it_better() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    flap(manager, 300)
    now = START + 300
    assert manager.selected.kind is RELAY
    manager.handle_nominated(PEER, "10.0.0.1", 1200, 0.010, now)
    assert manager.selected.kind is DIRECT
    manager.handle_silent(DIRECT, PEER, now + 1)
    for second in range(2, 60):
        answer(manager, now + second)
    assert manager.selected.kind is RELAY


def test_pair_that_carried_payload_for_a_while_is_adopted_as_soon_as_ever() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    assert flap(manager, 700, works_for_s=31) >= 700 // (31 + ADOPTED_AFTER_S + 2)


def test_pair_nominated_anew_after_a_failure_is_selected_at_once() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    manager.drain()
    manager.handle_nominated(PEER, "10.0.0.1", 1200, 0.010, START + 1)
    assert [each.kind for each in selections(manager)] == [DIRECT]


def test_second_failure_within_the_interval_restarts_ice_when_it_is_over() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    manager.handle_nominated(OTHER, "", 1200, 0.010, START + 5)
    manager.drain()
    manager.handle_silent(DIRECT, OTHER, START + 10)
    assert [each for each in manager.drain() if isinstance(each, RestartIce)] == []
    assert manager.next_deadline() == START + RESTART_INTERVAL_S
    manager.handle_timeout(START + RESTART_INTERVAL_S)
    assert manager.drain() == [RestartIce("silent")]
    assert manager.next_deadline() is None


def test_restart_that_waits_is_dropped_when_a_pair_is_nominated() -> None:
    manager = on_direct()
    manager.handle_silent(DIRECT, PEER, START)
    manager.handle_nominated(OTHER, "", 1200, 0.010, START + 5)
    manager.handle_silent(DIRECT, OTHER, START + 10)
    manager.handle_nominated(PEER, "", 1200, 0.010, START + 15)
    manager.drain()
    manager.handle_timeout(START + RESTART_INTERVAL_S)
    assert manager.drain() == []


def test_change_of_address_lets_a_restart_go_ahead() -> None:
    manager = on_direct()
    manager.handle_network_changed(START)
    manager.handle_silent(DIRECT, PEER, START)
    manager.handle_nominated(OTHER, "", 1200, 0.010, START + 5)
    manager.handle_silent(DIRECT, OTHER, START + 10)
    manager.drain()
    manager.handle_network_changed(START + 11)
    assert manager.drain() == [RestartIce("silent")]


def test_pair_that_nobody_confirms_is_left_at_the_consent_limit() -> None:
    manager = on_direct()
    answer(manager, START + 10)
    manager.drain()
    assert manager.next_deadline() == START + 10 + CONSENT_LIMIT_S
    manager.handle_timeout(START + 10 + CONSENT_LIMIT_S)
    assert manager.selected.kind is RELAY
    assert manager.next_deadline() is None


def test_direct_path_without_any_relay_is_kept_while_it_lives_and_left_when_it_fails() -> None:
    manager = on_direct()
    manager.handle_relay_down("a", START)
    answer(manager, START + 5)
    assert manager.selected.kind is DIRECT
    manager.handle_consent_expired(PEER, START + 40)
    assert manager.selected.kind is NONE
    assert manager.selected.reason == "no_path"


def test_relay_only_never_selects_nor_searches_a_direct_path() -> None:
    manager = PathManager(Policy.RELAY_ONLY)
    manager.handle_relay_up("a", 1200, START)
    manager.handle_nominated(PEER, "", 1200, 0.001, START)
    assert manager.selected.kind is RELAY
    manager.handle_consent_expired(PEER, START + 40)
    assert not any(isinstance(each, RestartIce) for each in manager.drain())


def test_relay_whose_checks_fail_is_the_last_resort_and_one_answer_restores_it() -> None:
    manager = PathManager()
    manager.handle_relay_up("a", 1200, START)
    manager.drain()
    manager.handle_missed(RELAY, None, FAILED_AFTER_MISSED, START + 15)
    assert (manager.selected.kind, states(manager)) == (RELAY, [PathState.FAILED])
    manager.handle_confirmed(RELAY, None, 0.080, START + 16)
    assert states(manager) == [PathState.ACTIVE]
    assert not any(isinstance(each, RestartIce) for each in manager.drain())


def test_news_of_a_path_that_does_not_exist_is_ignored() -> None:
    manager = PathManager()
    manager.handle_confirmed(DIRECT, PEER, 0.01, START)
    manager.handle_missed(RELAY, None, 1, START)
    manager.handle_silent(DIRECT, PEER, START)
    manager.handle_consent_expired(PEER, START)
    assert manager.drain() == []


class LowestRtt:
    """A manager with the policy, and checks of both paths."""

    def __init__(self, *, relay: float, direct: float | None) -> None:
        self.manager = PathManager(Policy.LOWEST_RTT)
        self.now = START
        self.manager.handle_relay_up("a", 1200, self.now)
        self.manager.handle_confirmed(RELAY, None, relay, self.now)
        self.manager.handle_nominated(PEER, "", 1200, direct, self.now)

    @property
    def kind(self) -> PathKind:
        return self.manager.selected.kind

    def measure(self, kind: PathKind, rtt_s: float, count: int) -> None:
        for _ in range(count):
            self.now += 1
            remote = PEER if kind is DIRECT else None
            self.manager.handle_confirmed(kind, remote, rtt_s, self.now)


@pytest.mark.parametrize(("direct", "kind"), [(0.055, DIRECT), (0.057, RELAY)])
def test_first_choice_by_rtt_takes_the_direct_path_at_seventy_percent(direct: float, kind: PathKind) -> None:
    assert LowestRtt(relay=0.080, direct=direct).kind is kind


def test_by_rtt_an_unmeasured_pair_is_not_selected_before_its_first_answer() -> None:
    world = LowestRtt(relay=0.080, direct=None)
    assert world.kind is RELAY
    world.measure(DIRECT, 0.010, 1)
    assert world.kind is DIRECT


def test_by_rtt_the_direct_path_has_to_stay_below_half_for_three_samples() -> None:
    world = LowestRtt(relay=0.080, direct=0.070)
    world.measure(RELAY, 0.800, 40)
    assert world.kind is DIRECT
    world = LowestRtt(relay=0.080, direct=0.079)
    world.manager.handle_nominated(OTHER, "", 1200, 0.001, world.now)
    world.manager.handle_confirmed(DIRECT, OTHER, 0.001, world.now)
    assert world.kind is RELAY
    for _ in range(LOWEST_RTT_HELD_SAMPLES):
        world.manager.handle_confirmed(DIRECT, OTHER, 0.001, world.now)
    assert world.kind is DIRECT


def test_by_rtt_a_pair_that_misses_checks_is_not_selected_however_fast() -> None:
    world = LowestRtt(relay=0.080, direct=0.079)
    world.manager.handle_nominated(OTHER, "", 1200, 0.001, world.now)
    for _ in range(3):
        world.manager.handle_missed(DIRECT, OTHER, 1, world.now)
        world.manager.handle_confirmed(DIRECT, OTHER, 0.001, world.now)
    assert world.kind is RELAY


def test_by_rtt_a_relay_below_half_takes_over_and_the_direct_path_stays_known() -> None:
    world = LowestRtt(relay=0.080, direct=0.050)
    assert world.kind is DIRECT
    world.measure(DIRECT, 0.500, 40)
    assert world.kind is RELAY
    assert states(world.manager)[0] is not PathState.FAILED


def test_by_rtt_a_failed_pair_earns_its_place_anew() -> None:
    world = LowestRtt(relay=0.080, direct=0.050)
    world.manager.handle_silent(DIRECT, PEER, world.now)
    world.measure(DIRECT, 0.050, 10)
    assert states(world.manager)[0] is PathState.ACTIVE
    assert world.kind is RELAY


def test_by_rtt_a_relay_whose_checks_fail_gives_way_to_a_working_pair() -> None:
    world = LowestRtt(relay=0.080, direct=0.079)
    assert world.kind is RELAY
    world.manager.handle_silent(RELAY, None, world.now)
    assert world.kind is DIRECT
