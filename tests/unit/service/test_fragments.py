from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.service.fragments import (
    MAX_FRAGMENTS,
    MAX_PARTIAL_BYTES,
    MAX_PARTIAL_DATAGRAMS,
    MAX_PAYLOAD_BYTES,
    MAX_REASSEMBLY_S,
    MAX_VARINT,
    MIN_FRAME_BYTES,
    SEQUENCE_WINDOW,
    Fragment,
    Fragmenter,
    Reassembler,
    ReassemblyDrop,
    SequenceWindow,
    decode_varint,
    encode_varint,
    parse,
)

FRAME = 1170


def _reassembler() -> tuple[Reassembler, Counter[ReassemblyDrop]]:
    drops: Counter[ReassemblyDrop] = Counter()
    return Reassembler(drops), drops


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        pytest.param("c2197c5eff14e88c", 151288809941952652, id="eight bytes"),
        pytest.param("9d7f3e7d", 494878333, id="four bytes"),
        pytest.param("7bbd", 15293, id="two bytes"),
        pytest.param("25", 37, id="one byte"),
    ],
)
def test_varints_agree_with_the_examples_of_rfc_9000_appendix_a_1(encoded: str, value: int) -> None:
    assert encode_varint(value) == bytes.fromhex(encoded)
    assert decode_varint(bytes.fromhex(encoded), 0) == (value, len(encoded) // 2)


def test_varint_longer_than_needed_is_understood() -> None:
    assert decode_varint(bytes.fromhex("4025"), 0) == (37, 2)


@given(st.integers(0, MAX_VARINT), st.binary(max_size=3))
def test_varints_round_trip(value: int, before: bytes) -> None:
    encoded = encode_varint(value)
    assert decode_varint(before + encoded, len(before)) == (value, len(before) + len(encoded))
    with pytest.raises(RemoteProtocolError, match="varint_truncated"):
        decode_varint(encoded[:-1], 0)


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_varint_out_of_range_is_our_own_fault(value: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_varint(value)


def test_small_datagram_of_a_young_flow_pays_four_bytes() -> None:
    assert Fragmenter(5).split(b"hello", FRAME) == [b"\x05\x00\x00\x01hello"]


@pytest.mark.parametrize("size", [0, 1, FRAME - 4, FRAME - 3, 9000, MAX_PAYLOAD_BYTES])
def test_payload_of_any_udp_size_passes(size: int) -> None:
    payload = Random(size).randbytes(size)
    frames = Fragmenter(1).split(payload, FRAME)
    assert all(len(frame) <= FRAME for frame in frames)
    reassembler, drops = _reassembler()
    assert [reassembler.receive(parse(frame), 0.0) for frame in frames] == [None] * (len(frames) - 1) + [
        payload
    ]
    assert not drops
    assert reassembler.partial_datagrams == reassembler.partial_bytes == 0


def test_largest_payload_fits_the_fragment_bound_with_the_longest_header() -> None:
    fragmenter = Fragmenter(MAX_VARINT)
    fragmenter._sequence = MAX_VARINT
    assert len(fragmenter.split(bytes(MAX_PAYLOAD_BYTES), MIN_FRAME_BYTES)) == MAX_FRAGMENTS


@pytest.mark.parametrize(("size", "max_size"), [(MAX_PAYLOAD_BYTES + 1, FRAME), (10, MIN_FRAME_BYTES - 1)])
def test_splitting_the_impossible_is_our_own_fault(size: int, max_size: int) -> None:
    with pytest.raises(LocalProtocolError):
        Fragmenter(1).split(bytes(size), max_size)


@given(
    st.lists(st.integers(0, 6000), min_size=1, max_size=12),
    st.integers(MIN_FRAME_BYTES, 1500),
    st.randoms(use_true_random=False),
    st.floats(0.0, 0.5),
)
def test_reordered_duplicated_and_lost_fragments_deliver_each_whole_datagram_once(
    sizes: list[int], max_size: int, rng: Random, loss: float
) -> None:
    fragmenter, (reassembler, _) = Fragmenter(3), _reassembler()
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    sent = [fragmenter.split(payload, max_size) for payload in payloads]
    arriving = [frame for frames in sent for frame in frames if rng.random() >= loss]
    survived = dict.fromkeys(arriving)
    arriving += [frame for frame in arriving if rng.random() < 0.3]
    rng.shuffle(arriving)
    received = [reassembler.receive(parse(frame), 0.0) for frame in arriving]
    expected = [p for p, frames in zip(payloads, sent, strict=True) if all(f in survived for f in frames)]
    assert sorted(p for p in received if p is not None) == sorted(expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param("", "varint_truncated", id="empty"),
        pytest.param("01", "varint_truncated", id="no sequence"),
        pytest.param("0140", "varint_truncated", id="half a sequence"),
        pytest.param("010000", "fragment_truncated", id="no count"),
        pytest.param("01000000", "fragment_out_of_range", id="count zero"),
        pytest.param("01000101aa", "fragment_out_of_range", id="index at count"),
        pytest.param("01000041aa", "fragment_out_of_range", id="count 65"),
        pytest.param("01000002", "fragment_empty", id="empty fragment of two"),
        pytest.param(
            "01000001" + "00" * (MAX_PAYLOAD_BYTES + 1), "fragment_oversize", id="more than UDP carries"
        ),
    ],
)
def test_wrong_frame_is_the_peers_fault(data: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse(bytes.fromhex(data))
    assert caught.value.reason == reason


@given(st.lists(st.tuples(st.binary(max_size=40), st.floats(0, 0.5))))
def test_arbitrary_bytes_raise_only_remote_errors(frames: list[tuple[bytes, float]]) -> None:
    reassembler, _ = _reassembler()
    now = 0.0
    for data, gap in frames:
        now += gap
        try:
            reassembler.receive(parse(data), now)
        except RemoteProtocolError:
            continue
        deadline = reassembler.next_deadline()
        assert deadline is None or deadline > now


def test_fragments_beyond_a_udp_payload_are_refused_and_the_datagram_dropped() -> None:
    reassembler, _ = _reassembler()
    reassembler.receive(Fragment(1, 0, 0, 2, bytes(60_000)), 0.0)
    with pytest.raises(RemoteProtocolError, match="datagram_oversize"):
        reassembler.receive(Fragment(1, 0, 1, 2, bytes(60_000)), 0.0)
    assert reassembler.partial_datagrams == reassembler.partial_bytes == 0


def test_conflicting_fragments_are_dropped_and_the_first_copy_counts() -> None:
    reassembler, drops = _reassembler()
    reassembler.receive(Fragment(1, 0, 0, 2, b"a"), 0.0)
    reassembler.receive(Fragment(1, 0, 0, 2, b"a"), 0.0)
    reassembler.receive(Fragment(1, 0, 0, 2, b"X"), 0.0)
    reassembler.receive(Fragment(1, 0, 1, 3, b"X"), 0.0)
    reassembler.receive(Fragment(1, 0, 0, 1, b"X"), 0.0)
    assert reassembler.receive(Fragment(1, 0, 1, 2, b"b"), 0.0) == b"ab"
    assert drops == {ReassemblyDrop.DUPLICATE: 1, ReassemblyDrop.CONFLICT: 3}


def test_datagram_that_stays_incomplete_is_given_up_in_time() -> None:
    reassembler, drops = _reassembler()
    reassembler.receive(Fragment(1, 0, 0, 2, b"a"), 5.0)
    reassembler.receive(Fragment(1, 1, 0, 2, b"c"), 5.5)
    assert reassembler.next_deadline() == 5.0 + MAX_REASSEMBLY_S
    reassembler.handle_timeout(5.0 + MAX_REASSEMBLY_S)
    assert reassembler.next_deadline() == 5.5 + MAX_REASSEMBLY_S
    assert reassembler.receive(Fragment(1, 0, 1, 2, b"b"), 6.0) is None
    assert reassembler.receive(Fragment(1, 1, 1, 2, b"d"), 6.0) == b"cd"
    assert drops == {ReassemblyDrop.TIMED_OUT: 1}


def test_too_many_partial_datagrams_drop_the_oldest() -> None:
    reassembler, drops = _reassembler()
    for sequence in range(MAX_PARTIAL_DATAGRAMS + 1):
        reassembler.receive(Fragment(1, sequence, 0, 2, b"a"), 0.0)
    assert reassembler.partial_datagrams == MAX_PARTIAL_DATAGRAMS
    assert drops == {ReassemblyDrop.TOO_MANY_PARTIAL: 1}
    assert reassembler.receive(Fragment(1, 1, 1, 2, b"b"), 0.0) == b"ab"
    assert reassembler.receive(Fragment(1, 0, 1, 2, b"b"), 0.0) is None


def test_too_many_partial_bytes_drop_the_oldest_and_spare_the_one_that_grows() -> None:
    reassembler, drops = _reassembler()
    half = MAX_PAYLOAD_BYTES // 2
    for sequence in range(MAX_PARTIAL_BYTES // half):
        reassembler.receive(Fragment(1, sequence, 0, 3, bytes(half)), 0.0)
    assert not drops
    reassembler.receive(Fragment(1, 0, 1, 3, bytes(half)), 0.0)
    assert drops == {ReassemblyDrop.TOO_MANY_BYTES: 1}
    assert reassembler.partial_bytes <= MAX_PARTIAL_BYTES
    assert reassembler.receive(Fragment(1, 0, 2, 3, b"!"), 0.0) == bytes(2 * half) + b"!"


def test_datagram_behind_the_window_is_dropped_as_it_may_be_a_duplicate() -> None:
    reassembler, drops = _reassembler()
    assert reassembler.receive(Fragment(1, SEQUENCE_WINDOW, 0, 1, b"new"), 0.0) == b"new"
    assert reassembler.receive(Fragment(1, 1, 0, 1, b"late"), 0.0) == b"late"
    assert reassembler.receive(Fragment(1, 0, 0, 1, b"too late"), 0.0) is None
    assert drops == {ReassemblyDrop.BEHIND_WINDOW: 1}


def test_jump_to_the_last_sequence_number_costs_no_memory() -> None:
    window = SequenceWindow()
    window.add(0)
    window.add(MAX_VARINT)
    assert MAX_VARINT in window
    assert MAX_VARINT - 1 not in window
    assert window.is_behind(0)


@given(st.lists(st.integers(0, 3 * SEQUENCE_WINDOW), max_size=60))
def test_window_knows_every_sequence_number_that_is_not_behind(sequences: list[int]) -> None:
    window, seen = SequenceWindow(), dict[int, None]()
    for sequence in sequences:
        if not window.is_behind(sequence):
            assert (sequence in window) == (sequence in seen)
            window.add(sequence)
            seen[sequence] = None
        assert window.is_behind(sequence) or sequence in window
