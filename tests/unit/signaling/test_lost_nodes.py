from __future__ import annotations

import tracemalloc
from dataclasses import replace

from tests.pki_fixtures import NOW, issue, verifier
from ztna.access.identity import Role, VerifiedPeer
from ztna.signaling import attachments, lost_nodes
from ztna.signaling.lost_nodes import REMEMBERED_S, LostNodes


def peer(name: str, serial_of: int = 0) -> VerifiedPeer:
    chain = [issue(Role.AGENT, name, serial_of=serial_of).certificate]
    return verifier().verify(chain, expect=Role.AGENT, now_wall=NOW, as_server=False)


A1, A2, A3 = peer("a1"), peer("a2"), peer("a3")


def names(table: LostNodes) -> list[str]:
    return [each.peer.identity.id for each in table.nodes]


def test_bound_is_that_of_attachments() -> None:
    assert lost_nodes.MAX_LOST_NODES == attachments.MAX_ATTACHMENTS


def test_node_is_remembered_once_and_forgotten_in_time() -> None:
    table = LostNodes()
    table.add(A1, 0.0)
    table.add(A2, 1.0)
    table.add(A1, 2.0)
    assert [(each.peer, each.until - REMEMBERED_S) for each in table.nodes] == [(A2, 1.0), (A1, 2.0)]
    assert table.next_deadline() == 1.0 + REMEMBERED_S
    table.handle_timeout(1.0 + REMEMBERED_S)
    assert names(table) == ["a1"]
    table.handle_timeout(2.0 + REMEMBERED_S)
    assert table.next_deadline() is None


def test_node_that_is_back_is_forgotten() -> None:
    table = LostNodes()
    table.add(A1, 0.0)
    table.add(A2, 0.0)
    table.forget(A1)
    table.forget(A1)
    assert names(table) == ["a2"]


def test_node_that_is_back_with_another_key_is_remembered_with_the_former_one() -> None:
    renewed = peer("a1", serial_of=1)
    table = LostNodes()
    table.add(A1, 0.0)
    table.forget(renewed)
    assert [each.peer for each in table.nodes] == [A1]
    table.add(renewed, 0.0)
    assert [each.peer for each in table.nodes] == [A1, renewed]
    table.forget(A1)
    assert [each.peer for each in table.nodes] == [renewed]


def test_oldest_makes_room_and_is_named() -> None:
    table = LostNodes(max_nodes=2)
    assert table.add(A1, 0.0) is table.add(A2, 0.0) is None
    assert table.add(A2, 0.0) is None
    crowded_out = table.add(A3, 0.0)
    assert crowded_out is not None
    assert crowded_out.peer == A1
    assert len(table) == 2


def test_timer_at_which_nobody_is_due_copies_nothing() -> None:
    table = LostNodes()
    for number in range(5000):
        table.add(replace(A1, fingerprint=number.to_bytes(32, "big")), 0.0)
    tracemalloc.start()
    try:
        table.handle_timeout(REMEMBERED_S - 1)
        assert tracemalloc.get_traced_memory()[1] < 5000
    finally:
        tracemalloc.stop()
    assert len(table) == 5000
