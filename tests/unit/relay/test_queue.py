from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError
from ztna.relay.queue import (
    MAX_QUEUED_PACKETS,
    MAX_QUEUED_PACKETS_PER_SESSION,
    MAX_SOJOURN_S,
    DropCounts,
    DropReason,
    FairScheduler,
    RelayQueue,
)


def test_queue_keeps_the_order() -> None:
    queue = RelayQueue(DropCounts())
    for packet in (b"1", b"2", b"3"):
        queue.push(packet, 0.0)
    assert [queue.pop(0.0) for _ in range(4)] == [b"1", b"2", b"3", None]


def test_full_session_queue_drops_its_oldest_packet() -> None:
    drops = DropCounts()
    queue = RelayQueue(drops)
    for number in range(MAX_QUEUED_PACKETS_PER_SESSION + 3):
        queue.push(bytes([number]), 0.0)
    assert len(queue) == MAX_QUEUED_PACKETS_PER_SESSION
    assert drops[DropReason.SESSION_QUEUE_FULL] == drops.total == 3
    assert queue.pop(0.0) == bytes([3])


def test_packet_that_waited_too_long_is_dropped_and_the_next_one_sent() -> None:
    scheduler = FairScheduler[str]()
    scheduler.enqueue("a", b"old", 0.0)
    scheduler.enqueue("a", b"edge", 0.5)
    assert scheduler.take(9, 0.5 + MAX_SOJOURN_S) == [("a", b"edge")]
    assert scheduler.drops[DropReason.SOJOURN_EXCEEDED] == 1
    assert len(scheduler) == scheduler.session_count == 0


def test_session_whose_packets_all_waited_too_long_takes_no_room() -> None:
    scheduler = FairScheduler[str]()
    scheduler.enqueue("slow", b"old", 0.0)
    scheduler.enqueue("fresh", b"new", 1.0)
    assert scheduler.take(1, 1.0) == [("fresh", b"new")]
    assert scheduler.session_count == 0


def test_sessions_take_turns_in_the_order_they_arrived() -> None:
    scheduler = FairScheduler[str]()
    for key, packet in (("a", b"1"), ("a", b"2"), ("a", b"3"), ("b", b"4"), ("c", b"5"), ("c", b"6")):
        scheduler.enqueue(key, packet, 0.0)
    assert scheduler.take(2, 0.0) == [("a", b"1"), ("b", b"4")]
    assert scheduler.take(9, 0.0) == [("c", b"5"), ("a", b"2"), ("c", b"6"), ("a", b"3")]


def test_turns_go_on_where_the_last_take_ended() -> None:
    scheduler = FairScheduler[str]()
    for number in range(4):
        for key in ("a", "b", "c"):
            scheduler.enqueue(key, bytes([number]), 0.0)
    assert [scheduler.take(1, 0.0)[0][0] for _ in range(12)] == ["a", "b", "c"] * 4


def test_no_room_takes_nothing_and_negative_room_is_a_bug() -> None:
    scheduler = FairScheduler[str]()
    scheduler.enqueue("a", b"1", 0.0)
    assert scheduler.take(0, 0.0) == []
    with pytest.raises(LocalProtocolError):
        scheduler.take(-1, 0.0)


def test_ended_session_is_forgotten_with_its_packets() -> None:
    scheduler = FairScheduler[str]()
    for key in ("a", "b", "a"):
        scheduler.enqueue(key, b"x", 0.0)
    scheduler.discard("a")
    scheduler.discard("never seen")
    assert scheduler.drops[DropReason.SESSION_RELEASED] == 2
    assert scheduler.take(9, 0.0) == [("b", b"x")]


def test_full_leg_takes_half_of_the_longest_queue() -> None:
    scheduler = FairScheduler[int]()
    sessions = MAX_QUEUED_PACKETS // MAX_QUEUED_PACKETS_PER_SESSION
    for key in range(sessions):
        for _ in range(MAX_QUEUED_PACKETS_PER_SESSION):
            scheduler.enqueue(key, b"x", 0.0)
    assert scheduler.drops.total == 0
    scheduler.enqueue(-1, b"newcomer", 0.0)
    assert scheduler.drops[DropReason.LEG_QUEUE_FULL] == MAX_QUEUED_PACKETS_PER_SESSION // 2
    assert len(scheduler) == MAX_QUEUED_PACKETS - MAX_QUEUED_PACKETS_PER_SESSION // 2 + 1
    assert (-1, b"newcomer") in scheduler.take(sessions + 1, 0.0)


def test_full_leg_of_single_packets_forgets_the_first_session() -> None:
    scheduler = FairScheduler[int]()
    for key in range(MAX_QUEUED_PACKETS + 1):
        scheduler.enqueue(key, b"x", 0.0)
    assert len(scheduler) == scheduler.session_count == MAX_QUEUED_PACKETS
    assert scheduler.take(1, 0.0) == [(1, b"x")]


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 64)), min_size=1, max_size=6),
    st.integers(1, 80),
)
def test_while_sessions_wait_none_gets_two_packets_more_than_another(
    bursts: list[tuple[str, int]], room: int
) -> None:
    scheduler = FairScheduler[str]()
    for key, count in bursts:
        for _ in range(count):
            scheduler.enqueue(key, b"x", 0.0)
    queued = Counter({key: min(64, sum(n for k, n in bursts if k == key)) for key, _ in bursts})
    sent = Counter(key for key, _ in scheduler.take(room, 0.0))
    assert sent.total() == min(room, queued.total())
    waiting = [key for key in queued if sent[key] < queued[key]]
    for key in waiting:
        assert all(sent[other] <= sent[key] + 1 for other in queued)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "take", "end"]), st.integers(0, 3), st.integers(0, 40)),
        max_size=120,
    )
)
def test_each_packet_is_sent_dropped_or_waiting_and_never_late(steps: list[tuple[str, int, int]]) -> None:
    scheduler, now = FairScheduler[int](), 0.0
    put = sent = 0
    for verb, key, amount in steps:
        now += amount / 1000
        if verb == "put":
            for _ in range(amount):
                scheduler.enqueue(key, repr(now).encode(), now)
            put += amount
        elif verb == "take":
            packets = scheduler.take(amount, now)
            assert len(packets) <= amount
            assert all(now - float(packet) <= MAX_SOJOURN_S for _, packet in packets)
            sent += len(packets)
        else:
            scheduler.discard(key)
        assert put == sent + scheduler.drops.total + len(scheduler)
        assert scheduler.session_count <= len(scheduler) <= 4 * MAX_QUEUED_PACKETS_PER_SESSION
