from __future__ import annotations

import pytest

from tests.pki_fixtures import NOW, issue, verifier
from ztna.access.identity import Role, VerifiedPeer
from ztna.signaling import attachments, lost_nodes
from ztna.signaling.lost_nodes import REMEMBERED_S, LostNodes


def peer(name: str) -> VerifiedPeer:
    chain = [issue(Role.AGENT, name).certificate]
    return verifier().verify(chain, expect=Role.AGENT, now_wall=NOW, as_server=False)


A1, A2, A3 = peer("a1"), peer("a2"), peer("a3")


def names(table: LostNodes) -> list[str]:
    return [each.peer.identity.id for each in table.nodes]


def test_bound_is_that_of_attachments() -> None:
    assert lost_nodes.MAX_LOST_NODES == attachments.MAX_ATTACHMENTS


def test_node_is_remembered_once_and_forgotten_in_time() -> None:
    table = LostNodes()
    table.add(A1, b"1", 0.0)
    table.add(A2, b"2", 1.0)
    table.add(A1, b"3", 2.0)
    assert [(each.peer, each.attach_id) for each in table.nodes] == [(A2, b"2"), (A1, b"3")]
    assert table.next_deadline() == 1.0 + REMEMBERED_S
    table.handle_timeout(1.0 + REMEMBERED_S)
    assert names(table) == ["a1"]
    table.handle_timeout(2.0 + REMEMBERED_S)
    assert table.next_deadline() is None


def test_node_that_is_back_is_forgotten() -> None:
    table = LostNodes()
    table.add(A1, b"1", 0.0)
    table.add(A2, b"2", 0.0)
    table.forget(A1)
    table.forget(A1)
    assert names(table) == ["a2"]


def test_oldest_makes_room_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_nodes, "MAX_LOST_NODES", 2)
    table = LostNodes()
    assert table.add(A1, b"1", 0.0) is table.add(A2, b"2", 0.0) is None
    assert table.add(A2, b"2'", 0.0) is None
    crowded_out = table.add(A3, b"3", 0.0)
    assert crowded_out is not None
    assert crowded_out.peer == A1
    assert len(table) == 2
