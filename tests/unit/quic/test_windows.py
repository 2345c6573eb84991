"""Receive windows follow the reader, and their sum is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError
from ztna.quic.windows import (
    GROWTH_BUDGET_BYTES,
    INITIAL_STREAM_WINDOW_BYTES,
    MAX_STREAM_WINDOW_BYTES,
    MAX_STREAMS,
    MAX_UNREAD_BYTES,
    ReceiveWindows,
    WindowLimits,
)

INITIAL = INITIAL_STREAM_WINDOW_BYTES
HALF = INITIAL // 2


def windows_with(*stream_ids: int, limits: WindowLimits | None = None) -> ReceiveWindows:
    windows = ReceiveWindows(limits or WindowLimits())
    for stream_id in stream_ids:
        windows.open(stream_id, 0.0)
    return windows


def test_limit_rises_only_when_half_a_window_was_consumed() -> None:
    windows = windows_with(0)
    windows.deliver(0, INITIAL)
    assert not windows.consume(0, HALF - 1, now=9.0, rtt=0.1)
    assert windows.consume(0, 1, now=9.0, rtt=0.1)
    assert windows.stream_limit(0) == HALF + INITIAL


def test_window_doubles_up_to_its_maximum_while_the_reader_is_prompt() -> None:
    windows = windows_with(0)
    now, steps = 0.0, list[int]()
    for _ in range(12):
        received = windows.stream_limit(0) - sum(steps)
        windows.deliver(0, received)
        windows.consume(0, received, now=now, rtt=0.1)
        steps.append(received)
        now += 0.1
    assert steps[:3] == [INITIAL, 2 * INITIAL, 4 * INITIAL]
    assert steps[-1] == MAX_STREAM_WINDOW_BYTES


def test_window_of_a_slow_sender_stays_small() -> None:
    windows = windows_with(0)
    for second in range(1, 20):
        windows.deliver(0, HALF)
        assert windows.consume(0, HALF, now=float(second), rtt=0.1)
    assert windows.growth_bytes == 0


def test_growth_is_bounded_for_all_streams_together_and_given_back() -> None:
    stream_ids = range(0, 400, 4)
    windows = windows_with(*stream_ids)
    limits = dict.fromkeys(stream_ids, INITIAL)
    for step in range(8):
        for stream_id in stream_ids:
            fresh, limits[stream_id] = limits[stream_id], 0
            windows.deliver(stream_id, fresh)
            before = windows.stream_limit(stream_id)
            windows.consume(stream_id, fresh, now=step * 0.1, rtt=0.1)
            limits[stream_id] = windows.stream_limit(stream_id) - before
    assert GROWTH_BUDGET_BYTES - MAX_STREAM_WINDOW_BYTES < windows.growth_bytes <= GROWTH_BUDGET_BYTES
    for stream_id in stream_ids:
        windows.close(stream_id, 0)
    assert windows.growth_bytes == 0


TINY = WindowLimits(initial_stream_bytes=100, max_stream_bytes=100, growth_budget_bytes=0, max_streams=2)


def test_connection_limit_covers_every_stream_window() -> None:
    limits = WindowLimits()
    assert limits.unread_bytes == MAX_UNREAD_BYTES == MAX_STREAMS * INITIAL + GROWTH_BUDGET_BYTES
    assert ReceiveWindows(limits).connection_limit == MAX_UNREAD_BYTES + MAX_STREAM_WINDOW_BYTES // 2


def test_connection_limit_rises_with_consumption_and_not_with_arrival() -> None:
    windows = windows_with(0, 4, limits=TINY)
    windows.deliver(0, 100)
    windows.deliver(4, 100)
    assert windows.connection_limit == 250
    windows.consume(0, 49, now=1.0, rtt=0.1)
    assert windows.connection_limit == 250
    windows.consume(0, 1, now=1.0, rtt=0.1)
    assert windows.connection_limit == 300


def test_abandoned_stream_gives_back_what_nobody_reads() -> None:
    windows = windows_with(0, limits=TINY)
    assert windows.deliver(0, 60)
    windows.abandon(0)
    windows.abandon(0)
    windows.abandon(4)
    assert windows.is_drained(0)
    assert windows.connection_limit == 310
    assert not windows.deliver(0, 40)
    assert not windows.consume(0, 60, now=1.0, rtt=0.1)
    assert windows.is_drained(0)


def test_closing_counts_bytes_that_never_arrived_in_order() -> None:
    windows = windows_with(0, limits=TINY)
    windows.deliver(0, 10)
    windows.close(0, 80)
    assert windows.connection_limit == 330
    assert not windows.consume(0, 10, now=1.0, rtt=0.1)
    assert windows.is_drained(0)


@pytest.mark.parametrize("count", [-1, 11])
def test_consuming_what_was_not_delivered_is_our_bug(count: int) -> None:
    windows = windows_with(0)
    windows.deliver(0, 10)
    with pytest.raises(LocalProtocolError):
        windows.consume(0, count, now=1.0, rtt=0.1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400), st.integers(0, 400)), max_size=60))
def test_unread_bytes_never_exceed_the_connection_window(steps: list[tuple[int, int, int]]) -> None:
    limits = WindowLimits(
        initial_stream_bytes=100, max_stream_bytes=400, growth_budget_bytes=600, max_streams=4
    )
    windows = windows_with(0, 1, 2, 3, limits=limits)
    delivered, consumed = [0] * 4, [0] * 4
    for index, (stream_id, more, less) in enumerate(steps):
        fresh = min(more, windows.stream_limit(stream_id) - delivered[stream_id])
        windows.deliver(stream_id, fresh)
        delivered[stream_id] += fresh
        taken = min(less, delivered[stream_id] - consumed[stream_id])
        windows.consume(stream_id, taken, now=index * 0.01, rtt=0.05)
        consumed[stream_id] += taken
        assert sum(delivered) <= windows.connection_limit
        assert sum(delivered) - sum(consumed) <= limits.unread_bytes
        assert windows.growth_bytes <= limits.growth_budget_bytes
