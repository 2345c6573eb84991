"""Who is asked when, what silence means, and whose word counts."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest

from ztna.address import TransportAddress
from ztna.ice.consent import (
    MAX_LOCAL_CREDENTIALS,
    MAX_RELAYED_ANSWERS,
    MAX_RELAYS,
    Consent,
    ConsentEffect,
    ConsentExpired,
    Credentials,
    DirectPair,
    KeepaliveMissed,
    PathConfirmed,
    SendCheck,
    SendRelayed,
)
from ztna.ice.timing import KEEPALIVE_SENDS_S, PathState
from ztna.stun import message as stun
from ztna.stun.attributes import IceControlled, IceControlling, Priority, Username

START = 100.0
OURS = Credentials("ours", "o" * 24)
THEIRS = Credentials("theirs", "t" * 24)
NEW_OURS = Credentials("ours2", "p" * 24)
NEW_THEIRS = Credentials("theirs2", "u" * 24)
PAIR = DirectPair(TransportAddress("198.51.100.7", 4000), "10.0.0.1")
OTHER = DirectPair(TransportAddress("198.51.100.8", 4000), "10.0.0.1")


def answer_to(request: bytes, credentials: Credentials) -> bytes:
    asked = stun.parse(request)
    answer = stun.Message(stun.BINDING, stun.MessageClass.SUCCESS_RESPONSE, asked.transaction_id)
    return stun.build(answer, key=credentials.key)


class World:
    """A core, a clock, and a peer that answers after `rtt` or not at all."""

    def __init__(
        self, *, rtt: float | None = 0.010, relay_rtt: float | None = None, core: Consent | None = None
    ) -> None:
        self.now = START
        self.core = core or Consent(random.Random(1))
        self.rtt, self.relay_rtt = rtt, relay_rtt
        self.peer = THEIRS
        self.log: list[tuple[float, ConsentEffect]] = []
        self._calls: list[tuple[float, int, Callable[[], None]]] = []

    def direct(self) -> World:
        self.core.handle_nominated(PAIR, OURS, THEIRS, self.now, rtt_s=self.rtt)
        self.settle()
        return self

    def settle(self) -> None:
        for effect in self.core.drain():
            self.log.append((self.now, effect))
            if isinstance(effect, SendCheck) and self.rtt is not None:
                self._later(self.rtt, effect.datagram, partial(self._on_pair, effect.pair))
            if isinstance(effect, SendRelayed) and self.relay_rtt is not None:
                self._later(self.relay_rtt, effect.datagram, partial(self._on_relay, effect.intermediate_id))

    def _on_pair(self, pair: DirectPair, data: bytes) -> None:
        self.core.handle_response(pair.remote, data, self.now)

    def _on_relay(self, intermediate_id: str, data: bytes) -> None:
        self.core.handle_relayed(intermediate_id, [data], self.now)

    def _later(self, rtt: float, request: bytes, take: Callable[[bytes], None]) -> None:
        answer = answer_to(request, self.peer)
        self._calls.append((self.now + rtt, len(self._calls), lambda: take(answer)))

    def run(self, seconds: float) -> list[tuple[float, ConsentEffect]]:
        end, before = self.now + seconds, len(self.log)
        while True:
            self._calls.sort()
            due = [call[0] for call in self._calls[:1]]
            deadline = self.core.next_deadline()
            due += [deadline] if deadline is not None else []
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            if self._calls and self._calls[0][0] <= self.now:
                self._calls.pop(0)[2]()
            self.core.handle_timeout(self.now)
            self.settle()
            following = self.core.next_deadline()
            assert following is None or following > self.now
        self.now = end
        return self.log[before:]


def times(log: list[tuple[float, ConsentEffect]], kind: type[ConsentEffect]) -> list[float]:
    return [at for at, effect in log if isinstance(effect, kind)]


def gaps(moments: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


def test_nothing_is_asked_without_a_path() -> None:
    core = Consent(random.Random(1))
    core.handle_timeout(START)
    core.handle_suspected(is_direct=True, now=START)
    core.handle_response(PAIR.remote, b"", START)
    core.handle_state(PAIR.remote, PathState.FAILED, START)
    assert (core.next_deadline(), core.drain()) == (None, [])


def test_idle_pair_is_asked_every_fifteen_seconds_with_jitter() -> None:
    log = World().direct().run(300.0)
    between = gaps(times(log, SendCheck))
    assert 12.0 <= min(between) < max(between) <= 18.0
    assert len(times(log, PathConfirmed)) == len(times(log, SendCheck))


def test_pair_under_traffic_is_asked_every_five_seconds_until_half_a_minute_after() -> None:
    world = World().direct()
    for number in range(60):
        world.core.handle_payload(number + 1, world.now)
        world.run(1.0)
    busy = gaps(times(world.log, SendCheck))
    assert 4.0 <= min(busy) < max(busy) <= 6.0
    world.core.handle_payload(60, world.now)  # nothing more has flowed
    world.run(50.0)
    assert max(gaps(times(world.log, SendCheck))) >= 12.0


def test_request_carries_what_the_peer_checks() -> None:
    world = World()
    world.core.handle_prepared(1, OURS, is_controlling=True)
    world.direct().run(20.0)
    sent = next(effect for _, effect in world.log if isinstance(effect, SendCheck))
    request = stun.parse(sent.datagram)
    assert request.find(Username) == Username("theirs:ours")
    assert request.verify_integrity(THEIRS.key)
    assert request.find(Priority) is not None
    assert request.find(IceControlling) is not None
    assert (sent.pair, sent.pwd, sent.transaction_id) == (PAIR, THEIRS.pwd, request.transaction_id)


@pytest.mark.parametrize("is_known", [True, False])
def test_role_is_told_only_when_it_is_known(is_known: bool) -> None:
    world = World()
    if is_known:
        world.core.handle_prepared(1, OURS, is_controlling=False)
    world.direct().run(20.0)
    sent = next(effect for _, effect in world.log if isinstance(effect, SendCheck))
    assert (stun.parse(sent.datagram).find(IceControlled) is not None) is is_known


def test_one_lost_packet_is_no_missed_check() -> None:
    world = World(rtt=None).direct()
    log = world.run(18.5)
    (first, second) = times(log, SendCheck)[:2]
    assert second - first == pytest.approx(KEEPALIVE_SENDS_S[1])
    sent = next(effect for _, effect in reversed(log) if isinstance(effect, SendCheck))
    world.core.handle_response(PAIR.remote, answer_to(sent.datagram, THEIRS), world.now)
    # Which of the sends was answered nobody knows, so this is no sample once there is one.
    assert [type(each) for each in world.core.drain()] == [PathConfirmed]
    assert world.core.statistics.missed == 0


def test_timer_that_comes_late_makes_up_for_one_send_only() -> None:
    world = World(rtt=None).direct()
    world.core.handle_suspected(is_direct=True, now=world.now)
    world.core.drain()
    world.core.handle_timeout(world.now + 0.6)
    assert len(world.core.drain()) == 1
    assert world.core.next_deadline() == pytest.approx(START + 0.7)


def test_silent_pair_under_traffic_expires_after_three_missed_checks() -> None:
    world = World(rtt=None).direct()
    world.core.handle_payload(1, world.now)
    log = world.run(40.0)
    missed = [effect for _, effect in log if isinstance(effect, KeepaliveMissed)]
    assert [each.missed for each in missed] == [1, 2, 3]
    assert gaps(times(log, KeepaliveMissed)) == pytest.approx([5.0, 5.0])
    assert times(log, ConsentExpired) == times(log, KeepaliveMissed)[-1:]


def test_configured_timeout_and_count_of_missed_checks_decide_when_a_silent_pair_expires() -> None:
    core = Consent(random.Random(1), interval_s=2.0, timeout_s=0.75, max_missed=2)
    world = World(rtt=None, core=core).direct()
    world.core.handle_payload(1, world.now)
    log = world.run(10.0)
    (asked, *_), missed = times(log, SendCheck), times(log, KeepaliveMissed)
    assert 1.6 <= asked - START <= 2.4
    assert missed[:2] == pytest.approx([asked + 0.75, asked + 1.5])
    assert times(log, ConsentExpired) == missed[1:2]


def test_answer_within_the_configured_timeout_is_none_missed() -> None:
    core = Consent(random.Random(1), interval_s=2.0, timeout_s=0.75, max_missed=1)
    log = World(rtt=0.7, core=core).direct().run(100.0)
    assert times(log, PathConfirmed)
    assert not times(log, KeepaliveMissed)


def test_silent_idle_pair_expires_at_thirty_seconds_unconfirmed() -> None:
    log = World(rtt=None).direct().run(40.0)
    (expired,) = times(log, ConsentExpired)
    assert expired - START <= 30.0


def test_expired_pair_is_asked_after_one_two_four_seconds_and_then_ever_more_rarely() -> None:
    world = World(rtt=None).direct()
    world.core.handle_state(PAIR.remote, PathState.FAILED, START)
    log = world.run(200.0)
    identifiers: dict[bytes, float] = {}
    for at, effect in log:
        if isinstance(effect, SendCheck):
            identifiers.setdefault(effect.transaction_id, at)
    begun = list(identifiers.values())
    assert [at - START for at in begun[:1]] == [1.0]
    assert gaps(begun)[:6] == pytest.approx([2.0, 4.0, 8.0, 16.0, 30.0, 30.0])
    assert times(log, KeepaliveMissed) == []


def test_answer_of_a_failed_pair_has_it_asked_every_second_until_it_is_trusted() -> None:
    world = World(rtt=None).direct()
    world.core.handle_state(PAIR.remote, PathState.FAILED, world.now)
    world.run(20.0)
    world.rtt = 0.010
    world.run(40.0)
    confirmed = times(world.log, PathConfirmed)
    assert max(gaps(confirmed)) == pytest.approx(1.01, abs=0.01)
    world.core.handle_state(PAIR.remote, PathState.ACTIVE, world.now)
    log = world.run(60.0)
    assert min(gaps(times(log, SendCheck))) >= 12.0


def test_failed_pair_that_answers_once_and_is_silent_again_fails_again() -> None:
    world = World().direct()
    world.core.handle_state(PAIR.remote, PathState.FAILED, world.now)
    world.run(1.5)
    world.core.handle_state(PAIR.remote, PathState.RECOVERING, world.now)
    world.rtt = None
    log = world.run(10.0)
    assert [each.missed for _, each in log if isinstance(each, KeepaliveMissed)] == [1]
    assert times(log, ConsentExpired) == []


def test_doubt_has_the_pair_asked_at_once_and_often() -> None:
    world = World(rtt=None).direct()
    world.core.handle_suspected(is_direct=True, now=world.now)
    world.settle()
    log = world.run(1.0)
    asked = [START, *times(log, SendCheck)]
    assert [at - START for at in asked] == pytest.approx([0.0, 0.1, 0.3, 0.7])
    world.core.handle_suspected(is_direct=False, now=world.now)
    assert world.core.drain() == []


def test_stopped_flow_has_every_path_asked_and_a_check_under_way_repeated_not_replaced() -> None:
    world = World(rtt=None).direct()
    world.core.handle_relay("i1", world.now, is_up=True)
    world.core.drain()  # the first check of the relay
    world.core.handle_flow_stopped(world.now)
    effects = world.core.drain()
    assert [type(each) for each in effects] == [SendCheck, SendRelayed]
    world.core.handle_flow_stopped(world.now)
    assert world.core.drain() == effects
    (missed, *_) = times(world.run(6.0), KeepaliveMissed)
    assert missed == START + 5.0


def test_sends_of_a_slow_path_leave_room_for_its_answer() -> None:
    world = World(rtt=1.0).direct()
    log = world.run(60.0)
    assert len(times(log, SendCheck)) == len(times(log, PathConfirmed))
    assert all(effect.rtt_s == pytest.approx(1.0) for _, effect in log if isinstance(effect, PathConfirmed))


def test_path_slower_than_its_first_sends_is_measured_by_the_second_check() -> None:
    world = World(rtt=0.9)
    world.core.handle_nominated(PAIR, OURS, THEIRS, world.now)
    log = world.run(60.0)
    measured = [effect.rtt_s for _, effect in log if isinstance(effect, PathConfirmed)]
    assert measured[0] is None
    assert measured[1:] == pytest.approx([0.9] * (len(measured) - 1))


def test_late_or_foreign_answers_confirm_nothing() -> None:
    world = World(rtt=None).direct()
    world.run(18.5)
    sent = next(effect for _, effect in world.log if isinstance(effect, SendCheck))
    error = stun.Message(stun.BINDING, stun.MessageClass.ERROR_RESPONSE, sent.transaction_id)
    other = stun.Message(stun.BINDING, stun.MessageClass.SUCCESS_RESPONSE, bytes(12))
    for source, datagram in [
        (OTHER.remote, answer_to(sent.datagram, THEIRS)),
        (PAIR.remote, stun.build(error, key=THEIRS.key)),
        (PAIR.remote, stun.build(other, key=THEIRS.key)),
        (PAIR.remote, b"\x00not stun"),
    ]:
        world.core.handle_response(source, datagram, world.now)
    assert world.core.drain() == []
    world.core.handle_response(PAIR.remote, answer_to(sent.datagram, THEIRS), world.now)
    world.core.handle_response(PAIR.remote, answer_to(sent.datagram, THEIRS), world.now)
    assert len(world.core.drain()) == 1


def test_new_nomination_takes_the_place_of_the_former_pair() -> None:
    world = World().direct()
    world.core.handle_nominated(OTHER, NEW_OURS, NEW_THEIRS, world.now)
    world.core.handle_state(PAIR.remote, PathState.FAILED, world.now)
    log = world.run(60.0)
    assert {effect.pair for _, effect in log if isinstance(effect, SendCheck)} == {OTHER}
    assert times(log, ConsentExpired) == []


def test_credentials_of_a_new_generation_serve_the_old_pair_from_the_start_of_its_checks() -> None:
    world = World().direct()
    world.core.handle_prepared(2, NEW_OURS, is_controlling=True)
    world.core.handle_started(1, NEW_THEIRS, world.now)  # of a generation that is over
    world.run(18.5)
    world.core.handle_started(2, NEW_THEIRS, world.now)
    log = world.run(20.0)
    asked = [stun.parse(effect.datagram) for _, effect in world.log if isinstance(effect, SendCheck)]
    assert asked[0].find(Username) == Username("theirs:ours")
    last = [effect for _, effect in log if isinstance(effect, SendCheck)][-1]
    assert stun.parse(last.datagram).find(Username) == Username("theirs2:ours2")
    assert last.pair == PAIR


class TestRelay:
    def up(self, *, rtt: float | None = 0.080) -> World:
        world = World(relay_rtt=rtt)
        world.core.handle_relay("i1", world.now, is_up=True)
        assert world.core.next_deadline() is None  # nobody's word could be checked
        world.core.handle_prepared(1, OURS, is_controlling=True)
        world.core.handle_started(1, THEIRS, world.now)
        world.settle()
        return world

    def test_relay_is_measured_as_soon_as_there_are_credentials(self) -> None:
        world = self.up()
        log = world.run(1.0)
        assert [each for _, each in log] == [PathConfirmed(None, pytest.approx(0.080))]  # type: ignore[arg-type]

    def test_relay_is_asked_often_beside_a_direct_pair_and_rarely_alone(self) -> None:
        world = self.up()
        world.run(100.0)
        alone = gaps(times(world.log, SendRelayed))
        assert min(alone) >= 12.0
        world.direct()
        log = world.run(60.0)
        beside = gaps(times(log, SendRelayed))
        assert max(beside) <= 6.0

    def test_silent_relay_is_missed_and_never_given_up(self) -> None:
        world = self.up(rtt=None)
        log = world.run(60.0)
        missed = [effect for _, effect in log if isinstance(effect, KeepaliveMissed)]
        assert [each.missed for each in missed[:4]] == [1, 2, 3, 4]
        assert {each.pair for each in missed} == {None}
        assert times(log, ConsentExpired) == []

    def test_latest_relay_is_asked_and_the_older_one_once_it_is_gone(self) -> None:
        world = self.up()
        world.core.handle_relay("i2", world.now, is_up=True)
        world.settle()
        assert isinstance(world.log[-1][1], SendRelayed)
        assert world.log[-1][1].intermediate_id == "i2"
        world.core.handle_relay("i2", world.now, is_up=False)
        world.settle()
        assert world.log[-1][1].intermediate_id == "i1"
        world.core.handle_relay("i1", world.now, is_up=True)
        world.core.handle_relay("i1", world.now, is_up=False)
        assert world.core.next_deadline() is None

    def test_relay_where_the_peer_is_is_asked_if_it_is_known(self) -> None:
        world = self.up()
        world.core.handle_relay("i2", world.now, is_up=True)
        world.settle()
        world.core.handle_peer_on_relay("i3", world.now)
        world.core.handle_peer_on_relay("i1", world.now)
        world.settle()
        assert isinstance(world.log[-1][1], SendRelayed)
        assert world.log[-1][1].intermediate_id == "i1"

    def test_number_of_relays_is_bounded(self) -> None:
        world = self.up()
        for number in range(MAX_RELAYS + 5):
            world.core.handle_relay(f"j{number}", world.now, is_up=True)
        assert len(world.core._relays) == MAX_RELAYS

    def request(self, *, pwd: str = OURS.pwd, username: str = "ours:theirs", number: int = 1) -> bytes:
        message = stun.Message(
            stun.BINDING, stun.MessageClass.REQUEST, number.to_bytes(12, "big"), (Username(username),)
        )
        return stun.build(message, key=pwd.encode(), with_fingerprint=True)

    def test_authentic_request_is_answered_through_the_relay_that_brought_it(self) -> None:
        world = self.up()
        world.core.handle_relayed("i9", [self.request()], world.now)
        (sent,) = world.core.drain()
        assert isinstance(sent, SendRelayed)
        assert sent.intermediate_id == "i9"
        answer = stun.parse(sent.datagram)
        assert answer.message_class is stun.MessageClass.SUCCESS_RESPONSE
        assert answer.verify_integrity(OURS.key)

    def test_request_nobody_vouches_for_is_met_with_silence(self) -> None:
        world = self.up()
        anonymous = stun.build(stun.Message(stun.BINDING, stun.MessageClass.REQUEST, bytes(12)))
        refused = [
            self.request(pwd="x" * 24),
            self.request(username="stranger:theirs"),
            anonymous,
            b"\x00\x01",
            stun.build(stun.Message(stun.BINDING, stun.MessageClass.INDICATION, bytes(12))),
            stun.build(stun.Message(3, stun.MessageClass.REQUEST, bytes(12)), key=OURS.key),
        ]
        world.core.handle_relayed("i1", refused, world.now)
        assert world.core.drain() == []
        assert world.core.statistics.received == 0

    def test_answer_through_another_relay_or_with_another_key_confirms_nothing(self) -> None:
        world = self.up(rtt=None)
        sent = next(effect for _, effect in world.log if isinstance(effect, SendRelayed))
        world.core.handle_relayed("i9", [answer_to(sent.datagram, THEIRS)], world.now)
        world.core.handle_relayed("i1", [answer_to(sent.datagram, OURS)], world.now)
        assert world.core.drain() == []

    def test_flood_of_repeated_requests_is_answered_so_often_a_second_and_no_more(self) -> None:
        world = self.up()
        flood = [self.request()] * (MAX_RELAYED_ANSWERS + 30)
        world.core.handle_relayed("i1", flood, world.now)
        assert len(world.core.drain()) == MAX_RELAYED_ANSWERS
        world.core.handle_relayed("i1", flood, world.now + 1.0)
        assert len(world.core.drain()) == MAX_RELAYED_ANSWERS

    def test_requests_of_the_former_generation_are_answered_and_older_ones_forgotten(self) -> None:
        world = self.up()
        for number in range(2, MAX_LOCAL_CREDENTIALS + 2):
            world.core.handle_prepared(number, Credentials(f"o{number}", "q" * 24), is_controlling=True)
            if number <= MAX_LOCAL_CREDENTIALS:
                world.core.handle_relayed("i1", [self.request(number=number)], world.now)
                assert len(world.core.drain()) == 1
        world.core.handle_relayed("i1", [self.request()], world.now)
        assert world.core.drain() == []
