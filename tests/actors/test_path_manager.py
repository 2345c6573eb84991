from __future__ import annotations

from google.protobuf.message import Message

from actors.path_manager import STATISTICS_INTERVAL_S, PathManager
from tests.manual_io import ActorHarness, actor_harness
from ztna.path.manager import Policy
from ztna.v1 import (
    candidate_gatherer_pb2,
    checklist_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
)

SESSION = b"s" * 16
PEER = types_pb2.TransportAddress(host="198.51.100.7", port=4000)
DIRECT, RELAY = types_pb2.PATH_KIND_DIRECT, types_pb2.PATH_KIND_RELAY
NOMINATED = checklist_pb2.PairNominated(
    session_id=SESSION,
    generation=1,
    pair=checklist_pb2.Pair(remote=types_pb2.Candidate(address=PEER), local_host="10.0.0.1"),
    rtt_us=10_000,
    proven_bytes=1200,
)
SILENT = quic_session_pb2.PathSilent(session_id=SESSION, kind=DIRECT, remote=PEER, silent_ms=1000)


def changed(intermediate_id: str, *, is_up: bool) -> relay_leg_pb2.RelayPathChanged:
    return relay_leg_pb2.RelayPathChanged(
        intermediate_id=intermediate_id,
        session_id=SESSION,
        is_up=is_up,
        max_packet_bytes=1200 if is_up else 0,
    )


def selected(
    intermediate_id: str, *, is_resumed: bool, reason: str = "relay_up"
) -> path_manager_pb2.PathSelected:
    return path_manager_pb2.PathSelected(
        session_id=SESSION,
        kind=RELAY,
        intermediate_id=intermediate_id,
        max_packet_bytes=1200,
        is_resumed=is_resumed,
        reason=reason,
    )


def news(harness: ActorHarness[PathManager]) -> list[Message]:
    """What was emitted beside the statistics, and the question of a start."""
    uninteresting = (path_manager_pb2.PathStatistics, quic_session_pb2.ReportSession)
    return [each for each in harness.take_emitted() if not isinstance(each, uninteresting)]


def on_direct() -> ActorHarness[PathManager]:
    harness = actor_harness(PathManager, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True), NOMINATED)
    harness.take_emitted()
    return harness


def test_path_that_comes_goes_and_comes_back_is_told_each_time() -> None:
    harness = actor_harness(PathManager, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True), changed("i1", is_up=False), changed("i1", is_up=True))
    assert news(harness) == [
        selected("i1", is_resumed=False),
        path_manager_pb2.PathSelected(session_id=SESSION, reason="no_path"),
        selected("i1", is_resumed=True),
    ]
    assert [entry["path"] for entry in harness.logs] == ["relay", "none", "relay"]


def test_loss_of_a_path_that_is_not_in_use_is_not_told() -> None:
    harness = actor_harness(PathManager, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True), changed("i2", is_up=True), changed("i1", is_up=False))
    assert news(harness) == [selected("i1", is_resumed=False), selected("i2", is_resumed=True)]


def test_nominated_pair_is_selected_with_the_relay_standing_by() -> None:
    harness = actor_harness(PathManager, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True))
    harness.take_emitted()
    harness.tell(NOMINATED)
    (told,) = news(harness)
    assert told == path_manager_pb2.PathSelected(
        session_id=SESSION,
        kind=DIRECT,
        remote=PEER,
        local_host="10.0.0.1",
        max_packet_bytes=1200,
        standby_intermediate_id="i1",
        rtt_us=10_000,
        reason="nominated",
    )


def test_pair_that_is_too_small_is_logged_and_left_alone() -> None:
    harness = actor_harness(PathManager, key=SESSION.hex())
    small = checklist_pb2.PairNominated()
    small.CopyFrom(NOMINATED)
    small.proven_bytes = 600
    harness.tell(changed("i1", is_up=True), small)
    assert news(harness) == [selected("i1", is_resumed=False)]
    assert harness.logs[-1]["event"] == "path_manager.pair_too_small"


def test_silent_direct_path_fails_over_and_restarts_ice() -> None:
    harness = on_direct()
    harness.tell(SILENT)
    state, path, restart = news(harness)
    assert state == path_manager_pb2.PathStateChanged(
        session_id=SESSION,
        kind=DIRECT,
        remote=PEER,
        state=path_manager_pb2.PATH_STATE_FAILED,
        reason="silent",
    )
    assert isinstance(path, path_manager_pb2.PathSelected)
    assert (path.kind, path.intermediate_id, path.former_rtt_us) == (RELAY, "i1", 10_000)
    assert restart == hole_punch_pb2.RestartIce(session_id=SESSION, reason="silent")


def test_consent_that_expired_and_checks_that_failed_end_a_direct_path() -> None:
    for message in (
        keepalive_pb2.ConsentExpired(session_id=SESSION, remote=PEER),
        keepalive_pb2.KeepaliveMissed(session_id=SESSION, kind=DIRECT, remote=PEER, missed=3),
    ):
        harness = on_direct()
        harness.tell(message)
        assert [type(each) for each in news(harness)] == [
            path_manager_pb2.PathStateChanged,
            path_manager_pb2.PathSelected,
            hole_punch_pb2.RestartIce,
        ]


def test_change_of_address_lets_the_second_restart_go_ahead() -> None:
    harness = on_direct()
    harness.tell(SILENT, NOMINATED, SILENT)
    assert sum(isinstance(each, hole_punch_pb2.RestartIce) for each in news(harness)) == 1
    harness.tell(candidate_gatherer_pb2.CandidatesGathered(session_id=SESSION, network=1))
    assert news(harness) == [hole_punch_pb2.RestartIce(session_id=SESSION, reason="silent")]


def test_pair_that_nobody_confirms_is_left_by_the_clock() -> None:
    harness = on_direct()
    harness.advance(29.0)
    assert news(harness) == []
    harness.advance(2.0)
    assert [each.kind for each in news(harness) if isinstance(each, path_manager_pb2.PathSelected)] == [RELAY]


def test_statistics_come_at_each_change_of_path_and_once_a_second_otherwise() -> None:
    harness = actor_harness(PathManager, Policy.LOWEST_RTT, key=SESSION.hex())
    harness.tell(changed("i1", is_up=True))
    assert isinstance(harness.take_emitted()[-1], path_manager_pb2.PathStatistics)
    for _ in range(3):
        harness.tell(keepalive_pb2.PathConfirmed(session_id=SESSION, kind=RELAY, rtt_us=80_000))
    harness.tell(
        quic_session_pb2.SessionStatistics(session_id=SESSION, packets_sent=100),
        keepalive_pb2.KeepaliveMissed(session_id=SESSION, kind=RELAY, missed=1),
    )
    harness.advance(STATISTICS_INTERVAL_S)
    (report,) = [each for each in harness.take_emitted() if isinstance(each, path_manager_pb2.PathStatistics)]
    (path,) = report.paths
    assert (path.kind, path.intermediate_id, path.is_selected, path.missed) == (RELAY, "i1", True, 1)
    assert (path.rtt_ms, path.loss_percent, path.state) == (80.0, 25.0, path_manager_pb2.PATH_STATE_DEGRADED)
    assert (report.policy, report.switches, report.reason) == ("lowest_rtt", 0, "relay_up")
    harness.advance(10.0)
    assert harness.take_emitted() == []
