"""The actor of the search for a direct path, with recording neighbours."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from actors.base import Context
from actors.hole_punch import HolePunch
from actors.ice_signals import signal_to_proto
from tests.manual_io import ActorHarness, actor_harness
from ztna.address import TransportAddress
from ztna.ice import signals as s
from ztna.ice.hole_punch import HolePunchLimits
from ztna.ice.timing import HolePunchState
from ztna.v1 import (
    candidate_gatherer_pb2,
    checklist_pb2,
    hole_punch_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    service_port_pb2,
    signaling_client_pb2,
    signaling_pb2,
    types_pb2,
)

MessageT = TypeVar("MessageT", bound=Message)
SESSION = bytes(range(16))
REFUSED = TransportAddress("203.0.113.9", 4433)
CREDENTIALS = s.Credentials("peer", "p" * 22)


class Agent(HolePunch):
    def __init__(self, context: Context) -> None:
        super().__init__(context, HolePunchLimits(), lambda: {REFUSED}, is_controlling=True)


class Connector(HolePunch):
    def __init__(self, context: Context) -> None:
        super().__init__(context, HolePunchLimits(), lambda: {REFUSED}, is_controlling=False)


def candidate(host: str = "192.0.2.1", port: int = 5000) -> types_pb2.Candidate:
    address = types_pb2.TransportAddress(host=host, port=port)
    kind = types_pb2.Candidate.TYPE_HOST
    return types_pb2.Candidate(type=kind, address=address, priority=1, foundation="1")


OURS, THEIRS = candidate(), candidate("198.51.100.1")
RELAY_UP = relay_leg_pb2.RelayPathChanged(session_id=SESSION, intermediate_id="i1", is_up=True)
GATHERED = candidate_gatherer_pb2.CandidatesGathered(session_id=SESSION, candidates=[OURS])
ESTABLISHED = quic_session_pb2.SessionEstablished(session_id=SESSION)


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


def one(messages: list[Message], kind: type[MessageT]) -> MessageT:
    (found,) = of(messages, kind)
    return found


def heard(signal: s.Signal | signaling_pb2.IceSignal, via: str = "i1") -> Message:
    if not isinstance(signal, signaling_pb2.IceSignal):
        signal = signal_to_proto(signal, SESSION)
    return signaling_client_pb2.IceSignalReceived(session_id=SESSION, intermediate_id=via, signal=signal)


def answer(generation: int = 1) -> signaling_pb2.IceSignal:
    return signaling_pb2.IceSignal(
        candidate_answer=signaling_pb2.CandidateAnswer(
            session_id=SESSION,
            generation=generation,
            ufrag=CREDENTIALS.ufrag,
            pwd=CREDENTIALS.pwd,
            candidates=[THEIRS, candidate(REFUSED.host, REFUSED.port)],
        )
    )


def start(kind: type[HolePunch] = Agent) -> ActorHarness[HolePunch]:
    return actor_harness(kind, key=SESSION.hex())


def test_agent_goes_from_the_relayed_path_to_a_direct_one() -> None:
    actor = start()
    actor.tell(RELAY_UP)
    assert one(actor.take_emitted(), candidate_gatherer_pb2.GatherCandidates).session_id == SESSION
    actor.tell(GATHERED)
    emitted = actor.take_emitted()
    prepared = one(emitted, checklist_pb2.PrepareChecks)
    assert (prepared.generation, prepared.is_controlling) == (1, True)
    assert list(prepared.local_candidates) == [OURS]
    sent = one(emitted, signaling_client_pb2.SendIceSignal)
    assert (sent.intermediate_id, sent.session_id) == ("i1", SESSION)
    assert sent.signal.candidate_offer.pwd == prepared.local.pwd

    actor.tell(heard(answer()))
    started = one(actor.take_emitted(), checklist_pb2.StartChecks)
    assert (started.remote.ufrag, list(started.remote_candidates)) == ("peer", [THEIRS])
    actor.tell(heard(s.StartPunching(1, 40)))
    assert one(actor.take_emitted(), checklist_pb2.BeginChecks).start_delay_ms == 40

    actor.advance(0.5)
    actor.tell(checklist_pb2.ChecksBegan(session_id=SESSION, generation=1))
    pair = checklist_pb2.Pair(local=OURS, remote=THEIRS)
    actor.tell(checklist_pb2.PairNominated(session_id=SESSION, generation=1, pair=pair, rtt_us=900))
    emitted = actor.take_emitted()
    finished = one(emitted, hole_punch_pb2.HolePunchFinished)
    assert finished.is_direct
    assert (finished.pair, finished.rtt_us) == (pair, 900)
    assert finished.answer_to_direct_ms == finished.offer_to_direct_ms == 500
    result = one(emitted, signaling_client_pb2.SendIceSignal).signal.punching_result
    assert (result.success, result.working_address, result.rtt_us) == (True, THEIRS.address, 900)
    changed = of(emitted, hole_punch_pb2.HolePunchChanged)[-1]
    assert changed.state == hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED
    assert (list(changed.local_candidates), list(changed.remote_candidates)) == ([OURS], [THEIRS])
    assert changed.signaling == "intermediate"


def test_connector_answers_and_trickles() -> None:
    actor = start(Connector)
    actor.tell(RELAY_UP)
    offer = signaling_pb2.IceSignal()
    offer.candidate_offer.CopyFrom(
        signaling_pb2.CandidateOffer(generation=3, ufrag="peer", pwd="p" * 22, candidates=[THEIRS])
    )
    actor.tell(heard(offer))
    actor.advance(0.1)
    emitted = actor.take_emitted()
    assert one(emitted, signaling_client_pb2.SendIceSignal).signal.candidate_answer.generation == 3
    assert not one(emitted, checklist_pb2.PrepareChecks).is_controlling
    actor.tell(GATHERED)
    emitted = actor.take_emitted()
    assert one(emitted, signaling_client_pb2.SendIceSignal).signal.candidate_added.candidate == OURS
    assert one(emitted, checklist_pb2.AddCandidates).is_local


def test_established_session_carries_a_restart_of_the_operator() -> None:
    actor = start()
    actor.tell(RELAY_UP, GATHERED, heard(answer()), ESTABLISHED)
    actor.take_emitted()
    actor.tell(hole_punch_pb2.RestartIce(session_id=SESSION, reason="operator"))
    sent = one(actor.take_emitted(), service_port_pb2.SendInSessionSignal)
    assert sent.signal.candidate_offer.generation == 2


def test_in_session_exchange_starts_after_half_the_round_trip_time_of_the_session() -> None:
    actor = start(Connector)
    actor.tell(RELAY_UP, GATHERED, ESTABLISHED)
    actor.tell(quic_session_pb2.SessionStatistics(session_id=SESSION, rtt_ms=80))
    actor.tell(heard(s.Offer(1, CREDENTIALS), via=""))
    assert one(actor.take_emitted(), checklist_pb2.StartChecks).start_delay_ms == 40


def test_failed_checks_are_reported_in_words_while_the_relay_carries() -> None:
    actor = start()
    actor.tell(RELAY_UP, GATHERED, heard(answer()))
    actor.tell(checklist_pb2.ChecklistFailed(session_id=SESSION, generation=1, reason="all_pairs_failed"))
    emitted = actor.take_emitted()
    finished = one(emitted, hole_punch_pb2.HolePunchFinished)
    assert (finished.is_direct, finished.reason) == (False, "all_pairs_failed")
    changed = of(emitted, hole_punch_pb2.HolePunchChanged)[-1]
    assert changed.state == hole_punch_pb2.HOLE_PUNCH_STATE_FALLBACK_RELAY
    assert "No pair of addresses" in changed.detail


def test_failed_restart_keeps_the_direct_path_that_is_selected() -> None:
    actor = start()
    actor.tell(RELAY_UP, GATHERED, heard(answer()))
    selected = path_manager_pb2.PathSelected(session_id=SESSION, kind=types_pb2.PATH_KIND_DIRECT)
    actor.tell(selected, hole_punch_pb2.RestartIce(session_id=SESSION, reason="operator"))
    actor.advance(5)
    changed = of(actor.take_emitted(), hole_punch_pb2.HolePunchChanged)[-1]
    assert changed.state == hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED


def test_nonsense_of_a_peer_is_counted_and_logged_once_and_hurts_nobody() -> None:
    actor = start()
    actor.tell(RELAY_UP, GATHERED)
    actor.take_emitted()
    for _ in range(100):
        actor.tell(heard(s.Answer(1, s.Credentials("x", "y")), via=""))
    assert not actor.take_emitted()
    lines = [line for line in actor.logs if line["event"] == "hole_punch.signal_refused"]
    assert [line["reason"] for line in lines] == ["malformed_credentials"]
    actor.tell(heard(answer()))
    assert of(actor.take_emitted(), checklist_pb2.StartChecks)
    assert actor.is_alive


def test_stopped_search_lets_go_of_candidates_and_checks() -> None:
    actor = start()
    actor.tell(RELAY_UP, GATHERED)
    actor.take_emitted()
    actor.stop()
    emitted = actor.take_emitted()
    assert one(emitted, checklist_pb2.StopChecks).generation == 1
    assert one(emitted, candidate_gatherer_pb2.StopGathering).session_id == SESSION


def test_every_state_has_a_word_in_the_schema() -> None:
    names = set(hole_punch_pb2.HolePunchState.keys()) - {"HOLE_PUNCH_STATE_UNSPECIFIED"}
    assert names == {f"HOLE_PUNCH_STATE_{state.name}" for state in HolePunchState}
