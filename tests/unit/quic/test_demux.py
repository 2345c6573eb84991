"""Telling datagrams apart, and finding their owners."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.quic.demux import (
    MAX_CIDS_PER_OWNER,
    MAX_CONNECTION_IDS,
    ConnectionIdTable,
    Demultiplexer,
    Protocol,
    classify,
    destination_cid,
)

SHORT = b"\x40" + b"c" * 8 + b"payload"
LONG = b"\xc0\0\0\0\1\x08" + b"c" * 8 + b"payload"


@pytest.mark.parametrize(
    ("span", "protocol"),
    [
        (range(4), Protocol.STUN),
        (range(4, 16), Protocol.RELAY_FRAME),
        (range(16, 64), Protocol.UNKNOWN),
        (range(64, 128), Protocol.QUIC),
        (range(128, 192), Protocol.UNKNOWN),
        (range(192, 256), Protocol.QUIC),
    ],
    ids=str,
)
def test_first_byte_tells_the_protocol(span: range, protocol: Protocol) -> None:
    assert {classify(byte) for byte in span} == {protocol}


@pytest.mark.parametrize(
    ("datagram", "cid"),
    [
        (SHORT, b"c" * 8),
        (SHORT[:9], b"c" * 8),
        (SHORT[:8], None),
        (LONG, b"c" * 8),
        (LONG[:14], b"c" * 8),
        (LONG[:13], None),
        (LONG[:5], None),
        (b"\xc0\0\0\0\1\x00", b""),
        (b"\xc0\0\0\0\1\x14" + b"c" * 20, b"c" * 20),
        (b"\xc0\0\0\0\1\x15" + b"c" * 21, None),
        (b"", None),
    ],
)
def test_destination_cid_is_read_from_either_header(datagram: bytes, cid: bytes | None) -> None:
    assert destination_cid(datagram) == cid


def test_table_routes_until_retired() -> None:
    table: ConnectionIdTable[str] = ConnectionIdTable()
    assert table.add(b"one", "a")
    assert table.add(b"one", "a")
    assert not table.add(b"one", "b")
    assert table.owner_of(b"one") == "a"
    table.retire(b"one")
    table.retire(b"one")
    assert table.owner_of(b"one") is None
    assert table.refused == 1


def test_forgotten_owner_leaves_nothing() -> None:
    table: ConnectionIdTable[str] = ConnectionIdTable()
    for name in (b"1", b"2", b"3"):
        table.add(name, "a")
    table.add(b"4", "b")
    table.forget_owner("a")
    table.forget_owner("a")
    assert len(table) == 1
    assert table.owner_of(b"4") == "b"


def test_table_is_bounded_altogether_and_per_owner() -> None:
    table: ConnectionIdTable[str] = ConnectionIdTable(max_ids=MAX_CIDS_PER_OWNER + 1)
    taken = [table.add(bytes([number]), "a") for number in range(MAX_CIDS_PER_OWNER + 1)]
    assert taken == [True] * MAX_CIDS_PER_OWNER + [False]
    assert table.add(b"x", "b")
    assert not table.add(b"y", "b")
    assert table.refused == 2


def test_a_process_takes_max_connection_ids_and_no_more() -> None:
    table: ConnectionIdTable[int] = ConnectionIdTable()
    ids = [number.to_bytes(8, "big") for number in range(MAX_CONNECTION_IDS + 1)]
    taken = sum(table.add(each, number // MAX_CIDS_PER_OWNER) for number, each in enumerate(ids))
    assert (taken, len(table), table.refused) == (MAX_CONNECTION_IDS, MAX_CONNECTION_IDS, 1)
    table.retire(ids[0])
    assert table.add(ids[-1], -1)


def test_batch_is_sorted_by_owner_in_order() -> None:
    demultiplexer: Demultiplexer[str] = Demultiplexer()
    demultiplexer.table.add(b"c" * 8, "session")
    stun = b"\0\1stun"
    stranger = b"\xc0\0\0\0\1\x08" + b"x" * 8
    foreign_version = b"\xc0\x1a\x2a\x3a\x4a\x08" + b"x" * 8
    batch = [SHORT, stun, b"", LONG, stranger, b"\x05relay", b"\x20", foreign_version]
    batch += [b"\x40" + b"z" * 20, b"\xe0" + stranger[1:], b"\xc0\0\0\0\0\x00", SHORT[:3]]
    result = demultiplexer.sort([(datagram, index) for index, datagram in enumerate(batch)])
    assert result.by_owner == {"session": [(SHORT, 0), (LONG, 3)]}
    assert result.stun == [(stun, 1)]
    assert result.unknown_initials == [(stranger, 4), (foreign_version, 7)]
    assert demultiplexer.dropped == {
        "empty": 1,
        "relay_frame": 1,
        "unknown": 1,
        "unknown_connection_id": 3,
        "truncated": 1,
    }


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_every_datagram_is_sorted_or_counted(batch: list[bytes]) -> None:
    demultiplexer: Demultiplexer[str] = Demultiplexer()
    result = demultiplexer.sort([(datagram, None) for datagram in batch])
    kept = len(result.stun) + len(result.unknown_initials) + sum(map(len, result.by_owner.values()))
    assert kept + demultiplexer.dropped.total() == len(batch)


def test_runs_of_one_connection_id_are_sorted_as_each_datagram_alone() -> None:
    table: ConnectionIdTable[str] = ConnectionIdTable()
    table.add(b"a" * 8, "one")
    table.add(b"b" * 8, "one")
    table.add(b"c" * 8, "two")
    kinds = [b"\x40" + letter * 8 + b"payload" for letter in (b"a", b"b", b"c", b"d")]
    kinds += [LONG, b"\x00stun", b"\x40short", b""]
    chance = random.Random(1)
    batch = [(kind, number) for number, kind in enumerate(chance.choices(kinds, k=40)) for _ in range(3)]
    together: Demultiplexer[str] = Demultiplexer(table)
    alone: Demultiplexer[str] = Demultiplexer(table)
    result = together.sort(batch)
    by_owner: dict[str, list[tuple[bytes, int]]] = {}
    for item in batch:
        for owner, items in alone.sort([item]).by_owner.items():
            by_owner.setdefault(owner, []).extend(items)
    assert result.by_owner == by_owner
    assert set(by_owner) == {"one", "two"}
    assert together.dropped == alone.dropped
    assert set(together.dropped) == {"empty", "truncated", "unknown_connection_id"}
