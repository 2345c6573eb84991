from __future__ import annotations

from actors.keepalive import Keepalive
from tests.manual_io import ActorHarness, actor_harness
from ztna.stun import message as stun
from ztna.stun.attributes import Username
from ztna.v1 import (
    checklist_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

SESSION = b"s" * 16
PEER = types_pb2.TransportAddress(host="198.51.100.7", port=4000)
DIRECT, RELAY = types_pb2.PATH_KIND_DIRECT, types_pb2.PATH_KIND_RELAY
OURS = types_pb2.IceCredentials(ufrag="ours", pwd="o" * 24)
THEIRS = types_pb2.IceCredentials(ufrag="theirs", pwd="t" * 24)
NOMINATED = checklist_pb2.PairNominated(
    session_id=SESSION,
    generation=1,
    pair=checklist_pb2.Pair(remote=types_pb2.Candidate(address=PEER), local_host="10.0.0.1"),
    rtt_us=10_000,
    proven_bytes=1200,
    local=OURS,
    remote=THEIRS,
)
RELAY_UP = relay_leg_pb2.RelayPathChanged(
    intermediate_id="i1", session_id=SESSION, is_up=True, max_packet_bytes=1200
)


def answer_to(request: bytes) -> bytes:
    asked = stun.parse(request)
    answer = stun.Message(stun.BINDING, stun.MessageClass.SUCCESS_RESPONSE, asked.transaction_id)
    return stun.build(answer, key=THEIRS.pwd.encode())


def start() -> ActorHarness[Keepalive]:
    return actor_harness(Keepalive, key=SESSION.hex())


def test_check_of_a_nominated_pair_confirms_it() -> None:
    harness = start()
    harness.tell(NOMINATED)
    harness.advance(18.1)
    requests = [each for each in harness.take_emitted() if isinstance(each, udp_socket_pb2.SendStunRequest)]
    request = requests[0]
    assert request.asker == udp_socket_pb2.STUN_ASKER_KEEPALIVE
    assert (request.session_id, request.remote, request.local_host) == (SESSION, PEER, "10.0.0.1")
    assert request.pwd == THEIRS.pwd
    harness.tell(
        udp_socket_pb2.KeepaliveResponseReceived(
            session_id=SESSION, remote=PEER, datagram=answer_to(request.datagram)
        )
    )
    (confirmed,) = [each for each in harness.take_emitted() if isinstance(each, keepalive_pb2.PathConfirmed)]
    assert (confirmed.kind, confirmed.remote) == (DIRECT, PEER)
    harness.advance(1.0)
    (statistics,) = [
        each for each in harness.take_emitted() if isinstance(each, keepalive_pb2.KeepaliveStatistics)
    ]
    assert (statistics.checks_sent, statistics.checks_answered, statistics.checks_missed) == (1, 1, 0)


def test_silent_pair_is_told_missed_and_then_expired_and_rechecked() -> None:
    harness = start()
    harness.tell(NOMINATED, quic_session_pb2.SessionStatistics(session_id=SESSION, payload_bytes=1))
    harness.advance(30.0)
    emitted = harness.take_emitted()
    missed = [each for each in emitted if isinstance(each, keepalive_pb2.KeepaliveMissed)]
    assert [(each.kind, each.remote, each.missed) for each in missed] == [
        (DIRECT, PEER, number) for number in (1, 2, 3)
    ]
    assert keepalive_pb2.ConsentExpired(session_id=SESSION, remote=PEER) in emitted
    assert [each["event"] for each in harness.logs] == [
        *["keepalive.missed"] * 3,
        "keepalive.consent_expired",
    ]
    harness.advance(10.0)
    assert any(isinstance(each, udp_socket_pb2.SendStunRequest) for each in harness.take_emitted())


def test_doubt_and_failure_of_the_direct_path_have_it_asked_at_once_and_soon() -> None:
    for doubt in (
        quic_session_pb2.PathSuspected(session_id=SESSION, kind=DIRECT),
        quic_session_pb2.PeerOnPath(session_id=SESSION, kind=RELAY),
        keepalive_pb2.ConfirmPeer(session_id=SESSION),
    ):
        harness = start()
        harness.tell(NOMINATED)
        harness.take_emitted()
        harness.tell(doubt)
        assert [type(each) for each in harness.take_emitted()] == [udp_socket_pb2.SendStunRequest]
    harness.tell(
        path_manager_pb2.PathStateChanged(
            session_id=SESSION, kind=DIRECT, remote=PEER, state=path_manager_pb2.PATH_STATE_FAILED
        ),
        path_manager_pb2.PathStateChanged(
            session_id=SESSION, kind=RELAY, state=path_manager_pb2.PATH_STATE_FAILED
        ),
        path_manager_pb2.PathStateChanged(session_id=SESSION, kind=DIRECT, remote=PEER),
    )
    harness.advance(0.9)
    assert harness.take_emitted() == []
    harness.advance(0.2)
    assert any(isinstance(each, udp_socket_pb2.SendStunRequest) for each in harness.take_emitted())


def test_relay_is_asked_and_answers_among_the_sealed_packets() -> None:
    harness = start()
    harness.tell(
        RELAY_UP,
        checklist_pb2.PrepareChecks(session_id=SESSION, generation=1, is_controlling=True, local=OURS),
    )
    assert harness.take_emitted() == []
    harness.tell(checklist_pb2.StartChecks(session_id=SESSION, generation=1, remote=THEIRS))
    (sent,) = harness.take_emitted()
    assert isinstance(sent, relay_leg_pb2.SendSealed)
    assert (sent.intermediate_id, sent.session_id) == ("i1", SESSION)
    harness.advance(0.08)
    question = stun.build(
        stun.Message(stun.BINDING, stun.MessageClass.REQUEST, bytes(12), (Username("ours:theirs"),)),
        key=OURS.pwd.encode(),
    )
    harness.tell(
        keepalive_pb2.RelayedStunReceived(
            session_id=SESSION, intermediate_id="i1", datagrams=[answer_to(sent.packets[0]), question]
        )
    )
    confirmed, answered = harness.take_emitted()
    assert confirmed == keepalive_pb2.PathConfirmed(session_id=SESSION, kind=RELAY, rtt_us=80_000)
    assert isinstance(answered, relay_leg_pb2.SendSealed)
    assert stun.parse(answered.packets[0]).verify_integrity(OURS.pwd.encode())
