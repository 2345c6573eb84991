from __future__ import annotations

from actors.path_manager import PathManager
from tests.manual_io import actor_harness
from ztna.v1 import path_manager_pb2, relay_leg_pb2, types_pb2

SESSION = b"s" * 16


def changed(intermediate_id: str, *, is_up: bool) -> relay_leg_pb2.RelayPathChanged:
    return relay_leg_pb2.RelayPathChanged(
        intermediate_id=intermediate_id,
        session_id=SESSION,
        is_up=is_up,
        max_packet_bytes=1200 if is_up else 0,
    )


def selected(intermediate_id: str, *, is_resumed: bool) -> path_manager_pb2.PathSelected:
    return path_manager_pb2.PathSelected(
        session_id=SESSION,
        kind=types_pb2.PATH_KIND_RELAY,
        intermediate_id=intermediate_id,
        max_packet_bytes=1200,
        is_resumed=is_resumed,
    )


def test_path_that_comes_goes_and_comes_back_is_told_each_time() -> None:
    harness = actor_harness(PathManager, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True), changed("i1", is_up=False), changed("i1", is_up=True))
    assert harness.take_emitted() == [
        selected("i1", is_resumed=False),
        path_manager_pb2.PathSelected(session_id=SESSION),
        selected("i1", is_resumed=True),
    ]
    assert [entry["path"] for entry in harness.logs] == ["relay", "none", "relay"]


def test_loss_of_a_path_that_is_not_in_use_is_not_told() -> None:
    harness = actor_harness(PathManager, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True), changed("i2", is_up=True), changed("i1", is_up=False))
    assert harness.take_emitted() == [selected("i1", is_resumed=False), selected("i2", is_resumed=True)]
