from __future__ import annotations

from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from ztna.quic.gaps import ReceivedRanges


def test_ranges_join_what_they_touch_and_stay_in_order() -> None:
    ranges = ReceivedRanges()
    for start, stop in ((10, 12), (20, 22), (14, 16), (12, 14)):
        ranges.add(start, stop)
    assert list(ranges) == [range(10, 16), range(20, 22)]
    assert ranges[:1] == [range(10, 16)]
    assert ranges.shift() == range(10, 16)
    assert len(ranges) == 1


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12))))
def test_ranges_agree_with_those_of_aioquic(added: list[tuple[int, int]]) -> None:
    ranges, reference = ReceivedRanges(), RangeSet()
    for start, size in added:
        ranges.add(start, start + size)
        reference.add(start, start + size)
        assert list(ranges) == list(reference)
