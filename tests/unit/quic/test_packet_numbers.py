"""Duplicate detection by packet number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztna.quic.packet_numbers import NARROW_WINDOW_PACKETS, WIDE_WINDOW_PACKETS, PacketNumberWindow


def test_late_packet_counts_until_the_window_has_passed_it() -> None:
    window = PacketNumberWindow(WIDE_WINDOW_PACKETS)
    window.add(10_000)
    assert 10_000 in window
    assert 10_001 not in window
    assert 10_001 - WIDE_WINDOW_PACKETS not in window
    assert 10_000 - WIDE_WINDOW_PACKETS in window


def test_huge_jump_is_cheap_and_forgets_what_lies_behind() -> None:
    window = PacketNumberWindow(NARROW_WINDOW_PACKETS)
    window.add(3)
    window.add(1 << 61)
    assert 3 in window
    assert (1 << 61) - 1 not in window
    assert (1 << 61) in window


@given(st.lists(st.integers(0, 300), max_size=200))
def test_window_agrees_with_a_set(numbers: list[int]) -> None:
    window, seen = PacketNumberWindow(64), set[int]()
    for number in numbers:
        highest = max(seen, default=-1)
        assert (number in window) == (number in seen or number <= highest - 64)
        window.add(number)
        if number > highest - 64:
            seen.add(number)
