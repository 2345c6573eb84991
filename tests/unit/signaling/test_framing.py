from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.signaling.framing import MAX_FRAME_BYTES, FrameDecoder, encode


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(marks)]


def test_frame_is_a_big_endian_length_and_the_body() -> None:
    assert encode(b"abc") == b"\x00\x00\x00\x03abc"


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.lists(st.integers(0, 2500), max_size=30))
def test_stream_cut_anywhere_yields_the_same_frames(bodies: list[bytes], cuts: list[int]) -> None:
    decoder = FrameDecoder()
    stream = b"".join(map(encode, bodies))
    assert [body for piece in _cut(stream, cuts) for body in decoder.feed(piece)] == bodies
    assert decoder.buffered_bytes == 0
    decoder.finish()


def test_largest_frame_arriving_byte_by_byte_is_delivered() -> None:
    decoder, body = FrameDecoder(), bytes(MAX_FRAME_BYTES)
    stream = encode(body)
    assert not any(decoder.feed(stream[i : i + 1]) for i in range(len(stream) - 1))
    assert decoder.buffered_bytes == len(stream) - 1
    assert decoder.feed(stream[-1:]) == [body]


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1])
def test_encoding_an_impossible_size_is_our_own_fault(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode(bytes(size))


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        pytest.param(0, "frame_empty", id="empty"),
        pytest.param(MAX_FRAME_BYTES + 1, "frame_too_large", id="one too many"),
        pytest.param(0xFFFFFFFF, "frame_too_large", id="largest length field"),
    ],
)
def test_wrong_length_is_refused_before_the_body_and_poisons_the_stream(length: int, reason: str) -> None:
    decoder = FrameDecoder()
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.feed(encode(b"fine") + length.to_bytes(4, "big"))
    assert caught.value.reason == reason
    assert decoder.buffered_bytes == 0
    with pytest.raises(RemoteProtocolError) as again:
        decoder.feed(encode(b"fine"))
    assert again.value.reason == reason
    with pytest.raises(RemoteProtocolError):
        decoder.finish()


@pytest.mark.parametrize("piece", [b"\x00", b"\x00\x00\x00\x02a"])
def test_stream_ending_inside_a_frame_is_an_error(piece: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(piece)
    with pytest.raises(RemoteProtocolError, match="frame_truncated"):
        decoder.finish()


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_arbitrary_bytes_raise_only_remote_errors_and_stay_bounded(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    for piece in pieces:
        try:
            frames = decoder.feed(piece)
        except RemoteProtocolError:
            continue
        assert all(0 < len(frame) <= MAX_FRAME_BYTES for frame in frames)
        assert decoder.buffered_bytes < MAX_FRAME_BYTES + 4
