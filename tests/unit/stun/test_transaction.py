from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.address import TransportAddress
from ztna.core import Core, Transmit
from ztna.errors import LocalProtocolError
from ztna.stun.attributes import Attribute, ErrorCode, Software
from ztna.stun.message import BINDING, Message, MessageClass, build, parse
from ztna.stun.transaction import (
    CONNECTIVITY_CHECK,
    MAX_SENDS,
    RFC_8489,
    FailureReason,
    SendSchedule,
    Transaction,
    TransactionEffect,
    TransactionFailed,
    TransactionSucceeded,
)

ID = b"transaction1"
SERVER = TransportAddress("192.0.2.1", 3478)
ALTERNATE = TransportAddress("192.0.2.1", 3479)
KEY = b"secret"
REQUEST = Transmit(build(Message(BINDING, MessageClass.REQUEST, ID)), SERVER, "198.51.100.7")
TIMED_OUT = TransactionFailed(FailureReason.TIMEOUT)
START = 1000.3


def response(
    *attributes: Attribute,
    message_class: MessageClass = MessageClass.SUCCESS_RESPONSE,
    transaction_id: bytes = ID,
    key: bytes | None = None,
) -> Message:
    return parse(build(Message(BINDING, message_class, transaction_id, attributes), key=key))


def incomprehensible(message_class: MessageClass) -> Message:
    data = build(Message(BINDING, message_class, ID, (Software("abcd"),)))
    return parse(data.replace(b"\x80\x22", b"\x7f\xff"))


def started(
    schedule: SendSchedule = CONNECTIVITY_CHECK,
    *,
    key: bytes | None = None,
    response_source: TransportAddress | None = None,
) -> Transaction:
    transaction = Transaction(REQUEST, ID, schedule, key=key, response_source=response_source)
    transaction.start(START)
    assert transaction.drain() == [REQUEST]
    return transaction


def run_to_the_end(transaction: Transaction) -> list[tuple[float, TransactionEffect]]:
    """Every effect with its time since the start, when nobody answers."""
    timeline = []
    while (deadline := transaction.next_deadline()) is not None:
        transaction.handle_timeout(deadline)
        effects = transaction.drain()
        assert effects, "a deadline that does nothing would be a busy loop"
        timeline += [(round(deadline - START, 6), effect) for effect in effects]
    return timeline


class TestSendSchedule:
    def test_default_is_that_of_the_rfc(self) -> None:
        assert SendSchedule((0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5), 39.5) == RFC_8489

    def test_checks_double_from_100_ms_to_1600_ms(self) -> None:
        assert SendSchedule((0, 0.1, 0.3, 0.7, 1.5, 3.1), 4.7) == CONNECTIVITY_CHECK

    def test_figures_make_a_schedule(self) -> None:
        assert SendSchedule.exponential(rto=0.25, rc=3, rm=4) == SendSchedule((0, 0.25, 0.75), 1.75)

    def test_as_many_sends_as_allowed_make_a_schedule(self) -> None:
        assert len(SendSchedule.exponential(rc=MAX_SENDS).sends_s) == MAX_SENDS

    @pytest.mark.parametrize(
        ("sends_s", "failure_s"),
        [
            pytest.param((), 1.0, id="no-send"),
            pytest.param((0.1, 0.2), 1.0, id="late-start"),
            pytest.param((0.0, 0.2, 0.2), 1.0, id="equal-times"),
            pytest.param((0.0, 0.2, 0.1), 1.0, id="descending"),
            pytest.param((0.0, 0.2), 0.2, id="failure-with-last-send"),
            pytest.param((0.0, float("nan")), 1.0, id="not-a-number"),
            pytest.param(tuple(float(item) for item in range(MAX_SENDS + 1)), 99.0, id="too-many"),
        ],
    )
    def test_impossible_schedule_is_our_fault(self, sends_s: tuple[float, ...], failure_s: float) -> None:
        with pytest.raises(LocalProtocolError):
            SendSchedule(sends_s, failure_s)

    @pytest.mark.parametrize("figures", [(0.5, 0, 16), (0.5, 10**9, 16), (0.0, 7, 16), (0.5, 7, 0)])
    def test_impossible_figures_are_our_fault(self, figures: tuple[float, int, float]) -> None:
        with pytest.raises(LocalProtocolError):
            SendSchedule.exponential(*figures)


class TestSilence:
    @pytest.mark.parametrize("schedule", [RFC_8489, CONNECTIVITY_CHECK], ids=["rfc", "check"])
    def test_request_is_repeated_unchanged_as_scheduled_and_then_fails(self, schedule: SendSchedule) -> None:
        transaction = started(schedule)
        expected: list[tuple[float, TransactionEffect]] = [(at, REQUEST) for at in schedule.sends_s[1:]]
        assert run_to_the_end(transaction) == [*expected, (schedule.failure_s, TIMED_OUT)]
        assert not transaction.is_pending

    def test_early_wake_up_does_nothing(self) -> None:
        transaction = started()
        transaction.handle_timeout(START + 0.099)
        assert transaction.drain() == []
        assert transaction.next_deadline() == START + 0.1

    def test_late_wake_up_makes_up_for_one_send_only(self) -> None:
        transaction = started()
        transaction.handle_timeout(START + 1.0)
        assert transaction.drain() == [REQUEST]
        assert transaction.next_deadline() == START + 1.5

    def test_wake_up_past_the_end_fails_without_sending(self) -> None:
        transaction = started()
        transaction.handle_timeout(START + 60)
        assert transaction.drain() == [TIMED_OUT]

    @given(st.lists(st.floats(0, 2), max_size=40), st.sampled_from([RFC_8489, CONNECTIVITY_CHECK]))
    def test_any_wake_ups_leave_a_future_deadline_and_never_send_too_often(
        self, steps: list[float], schedule: SendSchedule
    ) -> None:
        transaction = started(schedule)
        now, sends, failures = START, 1, 0
        for step in steps:
            now += step
            transaction.handle_timeout(now)
            effects = transaction.drain()
            sends += effects.count(REQUEST)
            failures += effects.count(TIMED_OUT)
            assert sends <= sum(START + at <= now for at in schedule.sends_s)
            deadline = transaction.next_deadline()
            assert (deadline is None) == (failures == 1)
            assert deadline is None or deadline > now


class TestAnswer:
    def test_success_is_reported_with_its_round_trip_time(self) -> None:
        transaction = started()
        answer = response()
        assert transaction.handle_response(answer, SERVER, START + 0.05)
        (effect,) = transaction.drain()
        assert isinstance(effect, TransactionSucceeded)
        assert effect.rtt_s == pytest.approx(0.05)
        assert (effect.response, effect.is_late) == (answer, False)
        assert transaction.next_deadline() is None

    def test_round_trip_time_is_unknown_after_a_retransmission(self) -> None:
        transaction = started()
        transaction.handle_timeout(START + 0.1)
        transaction.drain()
        transaction.handle_response(response(), SERVER, START + 0.11)
        assert transaction.drain() == [TransactionSucceeded(response(), None, is_late=False)]

    def test_second_answer_and_old_deadlines_do_nothing(self) -> None:
        transaction = started()
        transaction.handle_response(response(), SERVER, START + 0.05)
        transaction.drain()
        assert not transaction.handle_response(response(), SERVER, START + 0.06)
        transaction.handle_timeout(START + 60)
        assert transaction.drain() == []

    def test_late_success_is_still_reported_once(self) -> None:
        transaction = started()
        run_to_the_end(transaction)
        assert transaction.handle_response(response(), SERVER, START + 6)
        assert transaction.drain() == [TransactionSucceeded(response(), None, is_late=True)]
        assert not transaction.handle_response(response(), SERVER, START + 7)

    def test_late_error_adds_nothing_to_the_failure(self) -> None:
        transaction = started()
        run_to_the_end(transaction)
        assert transaction.handle_response(
            response(ErrorCode(400), message_class=MessageClass.ERROR_RESPONSE), SERVER, START + 6
        )
        assert transaction.drain() == []

    @pytest.mark.parametrize(
        ("attributes", "code"),
        [
            pytest.param((ErrorCode(487, "Role Conflict"),), 487, id="code"),
            pytest.param((), None, id="no-code"),
        ],
    )
    def test_error_response_ends_the_transaction(
        self, attributes: tuple[Attribute, ...], code: int | None
    ) -> None:
        transaction = started()
        answer = response(*attributes, message_class=MessageClass.ERROR_RESPONSE)
        assert transaction.handle_response(answer, SERVER, START + 0.05)
        assert transaction.drain() == [TransactionFailed(FailureReason.ERROR_RESPONSE, answer, code)]
        assert not transaction.is_pending

    @pytest.mark.parametrize("message_class", [MessageClass.SUCCESS_RESPONSE, MessageClass.ERROR_RESPONSE])
    def test_incomprehensible_answer_ends_the_transaction(self, message_class: MessageClass) -> None:
        transaction = started()
        answer = incomprehensible(message_class)
        assert transaction.handle_response(answer, SERVER, START + 0.05)
        assert transaction.drain() == [TransactionFailed(FailureReason.UNKNOWN_ATTRIBUTE, answer)]


class TestNotTheAnswer:
    @pytest.mark.parametrize(
        ("message", "source"),
        [
            pytest.param(response(transaction_id=b"transaction2"), SERVER, id="other-transaction"),
            pytest.param(response(), ALTERNATE, id="other-port"),
            pytest.param(response(), TransportAddress("192.0.2.2", 3478), id="other-host"),
            pytest.param(response(message_class=MessageClass.REQUEST), SERVER, id="request"),
            pytest.param(response(message_class=MessageClass.INDICATION), SERVER, id="indication"),
        ],
    )
    def test_is_left_alone_and_the_transaction_goes_on(
        self, message: Message, source: TransportAddress
    ) -> None:
        transaction = started()
        assert not transaction.handle_response(message, source, START + 0.05)
        assert transaction.drain() == []
        assert transaction.is_pending

    @pytest.mark.parametrize("key", [None, b"other"], ids=["unsigned", "wrong-key"])
    def test_unauthentic_answer_does_not_stop_the_right_one(self, key: bytes | None) -> None:
        transaction = started(key=KEY)
        assert not transaction.handle_response(response(key=key), SERVER, START + 0.01)
        assert transaction.handle_response(response(key=KEY), SERVER, START + 0.05)
        assert len(transaction.drain()) == 1

    def test_answer_before_the_start_is_refused(self) -> None:
        transaction = Transaction(REQUEST, ID)
        assert not transaction.handle_response(response(), SERVER, START)
        transaction.handle_timeout(START)
        assert transaction.drain() == []
        assert transaction.next_deadline() is None


def test_answer_from_the_alternate_port_is_taken_where_it_was_asked_for() -> None:
    transaction = started(response_source=ALTERNATE)
    assert not transaction.handle_response(response(), SERVER, START + 0.05)
    assert transaction.handle_response(response(), ALTERNATE, START + 0.05)


def test_second_start_is_our_fault() -> None:
    transaction = started()
    with pytest.raises(LocalProtocolError):
        transaction.start(START + 1)


def test_transaction_is_driven_like_every_core() -> None:
    core: Core[TransactionEffect] = started()
    assert core.next_deadline() == START + 0.1
    assert started().transaction_id == ID
