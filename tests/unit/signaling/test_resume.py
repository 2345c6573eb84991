from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.signaling.resume import MAX_RESUME_BYTES, MAX_RESUMED_SESSIONS, spread

FRAME = 1000


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [range(0)]),
        ([1], [range(1)]),
        ([400, 600], [range(2)]),
        ([400, 601], [range(1), range(1, 2)]),
        ([1000, 1000, 1000], [range(1), range(1, 2), range(2, 3)]),
        ([300, 300, 300, 300], [range(3), range(3, 4)]),
        ([10, 1001, 10], [range(1)]),
        ([1001], [range(0)]),
        ([1000, 1001], [range(1)]),
    ],
    ids=["none", "one", "full", "over", "each", "rest", "too-large", "only-too-large", "full-then-too-large"],
)
def test_entries_fill_frames_in_order(sizes: list[int], expected: list[range]) -> None:
    assert spread(sizes, FRAME) == expected


def test_no_more_sessions_than_an_attachment_may_bring() -> None:
    frames = spread([1] * (MAX_RESUMED_SESSIONS + 5), FRAME)
    assert frames[-1].stop == MAX_RESUMED_SESSIONS


def test_no_more_bytes_than_an_attachment_may_bring() -> None:
    size = 50_000
    frames = spread([size] * 1000, 65_000)
    assert frames[-1].stop == MAX_RESUME_BYTES // size


def test_most_sessions_that_a_connector_holds_pass_with_grants_of_usual_size() -> None:
    assert MAX_RESUMED_SESSIONS * 1500 <= MAX_RESUME_BYTES


@given(st.lists(st.integers(1, 1200), max_size=50))
def test_frames_are_contiguous_full_and_never_too_large(sizes: list[int]) -> None:
    frames = spread(sizes, FRAME)
    assert frames[0].start == 0
    for frame, following in pairwise(frames):
        assert frame.stop == following.start
        assert len(frame) > 0
        assert sum(sizes[index] for index in frame) + sizes[following.start] > FRAME
    assert all(sum(sizes[index] for index in frame) <= FRAME for frame in frames)
    end = frames[-1].stop
    assert end == len(sizes) or sizes[end] > FRAME
