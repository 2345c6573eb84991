from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError
from ztna.relay.channels import (
    CHANNEL_REST_S,
    MAX_CHANNELS_PER_ATTACHMENT,
    ChannelTable,
    Destination,
    SessionTraffic,
)
from ztna.relay.frame import MAX_CHANNEL

A, B, C, S, T = b"attach-a", b"attach-b", b"attach-c", b"session-s", b"session-t"


def _bound(table: ChannelTable, session_id: bytes, a: bytes, b: bytes, now: float = 0.0) -> tuple[int, int]:
    channels = table.bind(session_id, a, b, now)
    assert channels is not None
    return channels


def test_bound_session_forwards_both_ways_with_the_channel_rewritten() -> None:
    table = ChannelTable()
    _bound(table, T, B, C)
    a, b = _bound(table, S, A, B)
    assert a != b
    assert table.forward(A, a, 100) == Destination(B, b, S)
    assert table.forward(B, b, 40) == Destination(A, a, S)
    assert table.forward(B, b, 2) == Destination(A, a, S)
    assert table.traffic(S) == SessionTraffic(1, 100, 2, 42)
    assert table.traffic(T) == SessionTraffic(0, 0, 0, 0)
    assert len(table) == 2


def test_channel_of_another_attachment_leads_nowhere_and_is_counted() -> None:
    table = ChannelTable()
    _bound(table, T, B, C)
    _, b = _bound(table, S, A, B)
    assert b == 2
    assert table.forward(A, b, 1) is None
    assert table.forward(A, 0, 1) is None
    assert table.forward(b"stranger", b, 1) is None
    assert table.unknown_packets == 3


def test_released_session_forwards_nothing() -> None:
    table = ChannelTable()
    a, b = _bound(table, S, A, B)
    table.release(S, 1.0)
    table.release(S, 1.0)
    assert table.forward(A, a, 1) is None
    assert table.forward(B, b, 1) is None
    assert len(table) == 0


def test_released_channel_rests_before_it_is_used_again() -> None:
    table = ChannelTable()
    first, _ = _bound(table, S, A, B)
    table.release(S, 10.0)
    early, _ = _bound(table, S, A, B, 10.0 + CHANNEL_REST_S - 0.1)
    assert early != first
    late, _ = _bound(table, T, A, B, 10.0 + CHANNEL_REST_S)
    assert late == first


def test_exhausted_space_reuses_the_channel_that_rested_longest() -> None:
    table = ChannelTable()
    for _ in range(MAX_CHANNEL):
        last, _ = _bound(table, S, A, B)
        table.release(S, 0.0)
    assert last == MAX_CHANNEL
    assert _bound(table, S, A, B, 1.0) == (1, 1)
    assert _bound(table, T, A, B, 1.0) == (2, 2)


def test_full_attachment_refuses_the_next_session_and_counts_it() -> None:
    table = ChannelTable()
    for number in range(MAX_CHANNELS_PER_ATTACHMENT):
        _bound(table, number.to_bytes(4, "big"), number.to_bytes(4, "big"), B)
    assert table.bind(S, A, B, 0.0) is None
    assert table.bind(S, B, A, 0.0) is None
    _bound(table, S, A, C)
    assert table.rebind(S, A, B, 0.0) is None
    assert table.refused_sessions == 3
    table.release((0).to_bytes(4, "big"), 0.0)
    assert table.rebind(S, A, B, 0.0) is not None


@pytest.mark.parametrize("side", [0, 1], ids=["a side", "b side"])
def test_replaced_attachment_gets_a_new_channel_and_the_other_end_keeps_its_own(side: int) -> None:
    table = ChannelTable()
    _bound(table, T, C, b"other")
    before = _bound(table, S, A, B)
    table.forward(A, before[0], 7)
    after = table.rebind(S, (A, B)[side], C, 5.0)
    assert after is not None
    assert after[1 - side] == before[1 - side]
    ends = [A, B]
    ends[side] = C
    assert table.forward((A, B)[side], before[side], 1) is None
    assert table.forward(ends[0], after[0], 1) == Destination(ends[1], after[1], S)
    assert table.forward(ends[1], after[1], 1) == Destination(ends[0], after[0], S)
    assert table.traffic(S) == SessionTraffic(2, 8, 1, 1)


def test_released_attachment_takes_its_sessions_along_and_no_others() -> None:
    table = ChannelTable()
    _bound(table, S, A, B)
    _bound(table, T, C, B)
    c_channel, other_channel = _bound(table, b"u", C, b"other")
    assert table.release_attachment(B, 1.0) == [S, T]
    assert table.release_attachment(B, 1.0) == []
    assert table.forward(C, c_channel, 1) == Destination(b"other", other_channel, b"u")
    assert len(table) == 1


@pytest.mark.parametrize(
    "misuse",
    [
        pytest.param(lambda table: table.bind(S, A, B, 0.0), id="bound twice"),
        pytest.param(lambda table: table.bind(T, A, A, 0.0), id="joined with itself"),
        pytest.param(lambda table: table.rebind(T, A, C, 0.0), id="rebinding an unknown session"),
        pytest.param(lambda table: table.rebind(S, C, b"d", 0.0), id="rebinding a stranger"),
        pytest.param(lambda table: table.rebind(S, A, B, 0.0), id="rebinding onto the other end"),
        pytest.param(lambda table: table.traffic(T), id="traffic of an unknown session"),
    ],
)
def test_misuse_is_our_own_fault(misuse: Callable[[ChannelTable], object]) -> None:
    table = ChannelTable()
    _bound(table, S, A, B)
    with pytest.raises(LocalProtocolError):
        misuse(table)


@given(st.lists(st.tuples(st.sampled_from(["bind", "release", "detach", "move"]), *[st.integers(0, 4)] * 3)))
def test_packets_reach_exactly_the_peer_of_their_session(steps: list[tuple[str, int, int, int]]) -> None:
    table = ChannelTable()
    model: dict[bytes, dict[bytes, int]] = {}
    for now, (verb, session, x, y) in enumerate(steps):
        session_id, a, b = b"s%d" % session, b"a%d" % x, b"a%d" % y
        ends = model.get(session_id)
        if verb == "bind" and ends is None and a != b:
            model[session_id] = dict(zip((a, b), _bound(table, session_id, a, b, now), strict=True))
        elif verb == "release":
            table.release(session_id, now)
            model.pop(session_id, None)
        elif verb == "detach":
            gone = table.release_attachment(a, now)
            assert sorted(gone) == sorted(key for key, held in model.items() if a in held)
            for key in gone:
                del model[key]
        elif verb == "move" and ends is not None and a in ends and b not in ends:
            channels = table.rebind(session_id, a, b, now)
            assert channels is not None
            names = [b if name == a else name for name in ends]
            model[session_id] = dict(zip(names, channels, strict=True))
        for attach_id in (b"a%d" % number for number in range(5)):
            for channel in range(1, 12):
                expected: list[Destination | None] = [
                    Destination(peer, held[peer], key)
                    for key, held in model.items()
                    if held.get(attach_id) == channel
                    for peer in held
                    if peer != attach_id
                ]
                assert [table.forward(attach_id, channel, 1)] == (expected or [None])
