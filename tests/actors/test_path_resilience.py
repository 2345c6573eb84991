"""A session while its paths come, go, and fail in one direction or both."""

from __future__ import annotations

import pytest

from tests.actors.path_world import SESSION, End, PathWorld
from ztna.v1 import (
    checklist_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    types_pb2,
)

DIRECT, RELAY = types_pb2.PATH_KIND_DIRECT, types_pb2.PATH_KIND_RELAY

# max(1 s, 4 RTT), and what the bytes then need over the relay: a tick of the sender and a round trip.
FAIL_OVER_S = 1.0 + 0.12


def ends(world: PathWorld, task: str) -> tuple[End, End]:
    """Sender and receiver of a download or an upload."""
    return (world.server, world.client) if task == "download" else (world.client, world.server)


@pytest.mark.parametrize("task", ["download", "upload"])
@pytest.mark.parametrize("cut", [("up", "down"), ("up",), ("down",)], ids=["both", "uplink", "downlink"])
def test_cut_direct_path_moves_a_transfer_to_the_relay_in_time_without_losing_a_byte(
    task: str, cut: tuple[str, ...]
) -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    sender, receiver = ends(world, task)
    sent = world.transfer(sender, 2.0)
    at = world.now
    world.cut(*cut)
    sent += world.transfer(sender, 6.0)
    flow = receiver.flows[0]
    assert flow.longest_gap(at, world.now) <= FAIL_OVER_S
    world.run(2.0)
    assert flow.data == sent
    assert sender.path == RELAY
    assert sender.selected_at(RELAY, at) - at <= FAIL_OVER_S
    assert world.restarts(sender) == 1


@pytest.mark.parametrize("task", ["download", "upload"])
def test_transfer_goes_on_without_a_gap_when_the_direct_path_is_adopted(task: str) -> None:
    world = PathWorld(direct_rtt=0.001).on_relay()
    world.open_stream()
    sender, receiver = ends(world, task)
    sent = world.transfer(sender, 3.0)
    world.nominate(rtt_us=1000)
    at = world.now
    sent += world.transfer(sender, 3.0)
    flow = receiver.flows[0]
    assert flow.longest_gap(at, world.now) < 0.1
    world.run(1.0)
    assert flow.data == sent
    assert {end.path for end in world.ends} == {DIRECT}
    assert sender.of(quic_session_pb2.SessionStatistics)[-1].packets_lost == 0


def test_healed_pair_is_adopted_again_at_both_ends_without_losing_a_byte() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    sent = world.transfer(world.client, 1.0)
    world.cut("up", "down")
    sent += world.transfer(world.client, 25.0, rate=10_000)
    assert {end.path for end in world.ends} == {RELAY}
    world.cut("up", "down", is_up=True)
    at = world.now
    sent += world.transfer(world.client, 40.0, rate=10_000)
    assert {end.path for end in world.ends} == {DIRECT}
    for end in world.ends:
        assert end.selected_at(DIRECT, at) - at >= 3.0
    world.run(1.0)
    assert world.server.flows[0].data == sent


def test_idle_session_stays_direct_for_minutes_and_keeps_the_mapping_alive() -> None:
    world = PathWorld().on_direct()
    world.run(40.0)
    link = world.links["direct", "up"]
    last, gaps = world.now, []
    for _ in range(600):
        before = link.carried
        world.run(0.5)
        if link.carried != before:
            gaps.append(world.now - last)
            last = world.now
    assert {end.path for end in world.ends} == {DIRECT}
    assert max(gaps) < 20.0
    assert len(gaps) > 10


def test_first_payload_after_silence_takes_both_paths_until_confirmed() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    world.run(60.0)
    relayed = world.links["relay", "up"].carried_quic
    duals = world.client.of(quic_session_pb2.SessionStatistics)[-1].dual_sends
    # Shortly before the next check, the last one is far back.
    confirmed = max(at for at, each in world.client.heard if is_direct_confirmation(each))
    world.run(max(0.0, confirmed + 7.0 - world.now))
    world.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"x"))
    world.run(3.0)
    assert world.server.flows[0].data == b"x"
    assert world.links["relay", "up"].carried_quic > relayed
    assert world.client.of(quic_session_pb2.SessionStatistics)[-1].dual_sends == duals + 1
    relayed = world.links["relay", "up"].carried_quic
    world.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"y"))
    world.run(1.0)
    assert world.links["relay", "up"].carried_quic == relayed


def is_direct_confirmation(message: object) -> bool:
    return isinstance(message, keepalive_pb2.PathConfirmed) and message.kind == DIRECT


def test_path_that_died_while_idle_costs_the_first_payload_no_time() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    world.run(40.0)
    confirmed = max(at for at, each in world.client.heard if is_direct_confirmation(each))
    world.run(max(0.0, confirmed + 7.0 - world.now))
    world.cut("up", "down")
    at = world.now
    world.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"x"))
    world.run(2.0)
    flow = world.server.flows[0]
    assert flow.data == b"x"
    assert flow.arrivals[0][0] - at < 0.1


@pytest.mark.parametrize("cut", [("up", "down"), ("up",), ("down",)], ids=["both", "uplink", "downlink"])
def test_sparse_requests_are_answered_in_time_while_the_path_fails(cut: tuple[str, ...]) -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    answers: list[float] = []
    for number in range(40):
        if number == 10:
            world.cut(*cut)
        asked = world.now
        for sender, receiver in ((world.client, world.server), (world.server, world.client)):
            before = len(receiver.flows[0].data) if 0 in receiver.flows else 0
            sender.tell_session(
                quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=bytes([number]))
            )
            world.run_until_true(
                lambda receiver=receiver, before=before: (
                    0 in receiver.flows  # type: ignore[misc]
                    and len(receiver.flows[0].data) > before
                ),
                10.0,
            )
        answers.append(world.now - asked)
        world.run(0.3)
    assert max(answers) <= 2 * FAIL_OVER_S
    assert max(answers[20:]) < 0.25
    for end in world.ends:
        assert end.flows[0].data == bytes(range(40))


def test_idle_session_whose_path_dies_is_on_the_relay_within_the_consent_limit() -> None:
    world = PathWorld().on_direct()
    world.run(40.0)
    world.cut("up", "down")
    at = world.now
    world.run(31.0)
    for end in world.ends:
        assert end.selected_at(RELAY, at) - at <= 30.0
        assert world.restarts(end) == 1
    quic = world.links["direct", "up"].carried_quic
    world.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"x"))
    world.run(30.0)
    assert world.links["direct", "up"].carried_quic == quic


def test_delay_of_a_moment_raises_suspicion_and_no_fail_over() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    sent = world.transfer(world.client, 1.0)
    world.cut("up", "down")
    sent += world.transfer(world.client, 0.4)
    world.cut("up", "down", is_up=True)
    sent += world.transfer(world.client, 5.0)
    world.run(1.0)
    assert world.server.flows[0].data == sent
    assert world.client.of(quic_session_pb2.PathSuspected)
    for end in world.ends:
        assert end.path == DIRECT
        assert end.of(quic_session_pb2.PathSilent) == []
    relayed = world.links["relay", "up"].carried_quic
    world.transfer(world.client, 1.0)
    assert world.links["relay", "up"].carried_quic == relayed


def test_pair_in_doubt_that_is_nominated_anew_is_kept() -> None:
    """As after a NAT's rebinding: both ends hold the same pair, and it works again by a new mapping."""
    world = PathWorld().on_direct()
    world.open_stream()
    sent = world.transfer(world.client, 1.0)
    world.cut("up", "down")
    sent += world.transfer(world.client, 0.98)
    assert world.client.of(quic_session_pb2.PathSuspected)
    world.cut("up", "down", is_up=True)
    world.nominate()
    sent += world.transfer(world.client, 2.0)
    world.run(1.0)
    assert world.server.flows[0].data == sent
    for end in world.ends:
        assert end.path == DIRECT
        assert end.of(quic_session_pb2.PathSilent) == []


def test_lossy_direct_path_is_kept_and_loses_no_byte() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    for direction in ("up", "down"):
        world.links["direct", direction].loss = 0.05
    sent = world.transfer(world.client, 8.0, rate=100_000)
    world.run(3.0)
    assert world.server.flows[0].data == sent
    assert {end.path for end in world.ends} == {DIRECT}


def test_five_hundred_datagrams_a_second_lose_none_and_double_none_across_the_upgrade() -> None:
    world = PathWorld(direct_rtt=0.001).on_relay()
    count = 1500
    for number in range(count):
        if number == 500:
            world.nominate(rtt_us=1000)
        for end in world.ends:
            end.tell_session(
                quic_session_pb2.SendDatagramPayloads(
                    session_id=SESSION, payloads=[number.to_bytes(4, "big") + bytes(200)]
                )
            )
        world.run(0.002)
    world.run(1.0)
    for end in world.ends:
        assert sorted(int.from_bytes(each[:4], "big") for each in end.datagrams) == list(range(count))
        assert end.path == DIRECT


def test_datagrams_that_travel_over_both_paths_arrive_once() -> None:
    world = PathWorld().on_direct()
    world.run(60.0)
    confirmed = max(at for at, each in world.client.heard if is_direct_confirmation(each))
    world.run(max(0.0, confirmed + 7.0 - world.now))
    relayed = world.links["relay", "up"].carried_quic
    world.client.tell_session(
        quic_session_pb2.SendDatagramPayloads(session_id=SESSION, payloads=[b"a", b"b", b"c"])
    )
    world.run(1.0)
    assert world.links["relay", "up"].carried_quic > relayed
    assert world.server.datagrams == [b"a", b"b", b"c"]


def test_intermediate_that_dies_beneath_a_direct_path_leaves_the_session_alone() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    sent = world.transfer(world.client, 1.0)
    for direction in ("up", "down"):
        world.links["relay", direction].is_up = False
    world.relay(is_up=False)
    sent += world.transfer(world.client, 40.0, rate=5_000)
    world.run(1.0)
    assert world.server.flows[0].data == sent
    assert {end.path for end in world.ends} == {DIRECT}
    assert all(world.restarts(end) == 0 for end in world.ends)


def test_without_any_path_nothing_is_sent_and_the_session_goes_on_when_one_comes_back() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    world.relay(is_up=False)
    world.cut("up", "down")
    world.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"x"))
    world.run(40.0)
    assert {end.path for end in world.ends} == {types_pb2.PATH_KIND_UNSPECIFIED}
    quic = [link.carried_quic for link in world.links.values()]
    world.run(10.0)
    assert [link.carried_quic for link in world.links.values()] == quic
    world.relay(is_up=True)
    world.run(0.5)
    assert world.server.flows[0].data == b"x"


def test_pair_nominated_before_the_handshake_waits_for_it() -> None:
    world = PathWorld()
    world.nominate()
    world.run(1.0)
    assert world.links["direct", "up"].carried_quic == 0
    world.relay(is_up=True)
    world.run(2.0)
    world.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"x"))
    world.run(1.0)
    assert world.server.flows[0].data == b"x"
    assert world.links["direct", "up"].carried_quic > 0


def test_long_search_for_a_new_pair_keeps_the_old_one_confirmed_with_the_new_credentials() -> None:
    world = PathWorld().on_direct()
    former = [dict(end.credentials) for end in world.ends]
    world.prepare()
    world.run(5.0)
    for end, old in zip(world.ends, former, strict=True):
        for ufrag in old:
            del end.credentials[ufrag]
    world.run(60.0)
    assert {end.path for end in world.ends} == {DIRECT}
    assert all(not end.of(keepalive_pb2.ConsentExpired) for end in world.ends)


def test_end_that_sees_no_failure_still_reaches_a_peer_that_moved_to_the_relay() -> None:
    world = PathWorld().on_direct()
    world.open_stream()
    world.server.tell(
        keepalive_pb2.ConsentExpired(
            session_id=SESSION, remote=types_pb2.TransportAddress(host=world.client.host, port=4000)
        )
    )
    sent = world.transfer(world.client, 2.0)
    world.run(1.0)
    assert world.server.flows[0].data == sent
    assert world.server.of(path_manager_pb2.PathSelected)[-1].kind == RELAY
    assert world.client.of(quic_session_pb2.PeerOnPath)


def test_relay_pings_measure_the_relay_and_a_forged_one_is_not_answered() -> None:
    world = PathWorld().on_direct()
    world.run(60.0)
    confirmed = [each for each in world.client.of(keepalive_pb2.PathConfirmed) if each.kind == RELAY]
    assert confirmed
    assert all(abs(each.rtt_us - 80_000) < 2_000 for each in confirmed)
    relayed = world.links["relay", "up"].carried
    forged = bytes.fromhex("000100002112a442") + bytes(12)
    world.client.sealed_arrived([forged])
    world.io.run_until_idle()
    assert world.links["relay", "up"].carried == relayed


def test_pair_that_proves_too_little_is_not_used() -> None:
    world = PathWorld().on_relay()
    world.client.refs["path_manager"].tell(
        checklist_pb2.PairNominated(
            session_id=SESSION,
            pair=checklist_pb2.Pair(
                remote=types_pb2.Candidate(address=types_pb2.TransportAddress(host="192.0.2.2", port=4000))
            ),
            proven_bytes=600,
        )
    )
    world.run(1.0)
    assert world.client.path == RELAY
