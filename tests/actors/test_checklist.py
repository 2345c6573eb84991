from __future__ import annotations

import random
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from actors import translate
from actors.checklist import REPORT_INTERVAL_S, Checklist
from tests.manual_io import ActorHarness, ManualIo, actor_harness
from tests.unit.ice.simulation import credentials, host_candidate
from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.ice import checks
from ztna.ice.candidate import Candidate
from ztna.ice.credentials import IceCredentials
from ztna.stun.attributes import ErrorCode, XorMappedAddress
from ztna.stun.message import MessageClass, parse
from ztna.v1 import checklist_pb2, types_pb2, udp_socket_pb2

MessageT = TypeVar("MessageT", bound=Message)

SESSION = b"s" * 16
OURS, THEIRS = host_candidate("192.0.2.1"), host_candidate("192.0.2.2")


def told(value: IceCredentials) -> types_pb2.IceCredentials:
    return types_pb2.IceCredentials(ufrag=value.ufrag, pwd=value.pwd)


def prepare(generation: int = 1, *, is_controlling: bool = True) -> checklist_pb2.PrepareChecks:
    return checklist_pb2.PrepareChecks(
        session_id=SESSION,
        generation=generation,
        is_controlling=is_controlling,
        local=told(credentials("ours", generation)),
        local_candidates=[translate.candidate_to_proto(OURS)],
    )


def start(generation: int = 1, delay_ms: int = 0, *candidates: Candidate) -> checklist_pb2.StartChecks:
    return checklist_pb2.StartChecks(
        session_id=SESSION,
        generation=generation,
        remote=told(credentials("them", generation)),
        remote_candidates=[translate.candidate_to_proto(each) for each in candidates or (THEIRS,)],
        start_delay_ms=delay_ms,
    )


def ended(*, is_local: bool) -> checklist_pb2.AddCandidates:
    return checklist_pb2.AddCandidates(session_id=SESSION, generation=1, is_local=is_local, is_end=True)


class Neighbours:
    """The actor, with a socket and a coordinator that record."""

    def __init__(self) -> None:
        self.harness: ActorHarness[Checklist] = actor_harness(Checklist, key=SESSION.hex(), io=ManualIo())

    def tell(self, *messages: Message) -> list[Message]:
        self.harness.tell(*messages)
        return self.harness.take_emitted()

    def advance(self, seconds: float) -> list[Message]:
        self.harness.advance(seconds)
        return self.harness.take_emitted()

    def receive(
        self, data: bytes, source: TransportAddress = THEIRS.address, ufrag: str = ""
    ) -> list[Message]:
        return self.tell(
            udp_socket_pb2.CheckReceived(
                session_id=SESSION,
                remote=translate.address_to_proto(source),
                local=translate.address_to_proto(OURS.address),
                ufrag=ufrag,
                datagram=data,
            )
        )

    def answer(self, request: udp_socket_pb2.SendStunRequest) -> list[Message]:
        """Play the peer that answers a check."""
        message = parse(request.datagram)
        return self.receive(checks.build_answer(message, OURS.address, request.pwd.encode()))

    def check(self, generation: int = 1, *, uses_candidate: bool = False) -> list[Message]:
        """Play the peer that checks us."""
        local = credentials("ours", generation)
        data = checks.build_check(
            random.Random(7).randbytes(12),
            credentials("them", generation),
            local,
            priority=1,
            is_controlling=uses_candidate,
            tie_breaker=1,
            uses_candidate=uses_candidate,
        )
        return self.receive(data, ufrag=local.ufrag)


def only(messages: list[Message], kind: type[MessageT]) -> MessageT:
    (found,) = of(messages, kind)
    return found


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


def test_new_generation_is_accepted_and_the_former_refused() -> None:
    neighbours = Neighbours()
    first = neighbours.tell(prepare())
    assert first[0] == udp_socket_pb2.AcceptChecks(
        session_id=SESSION, credentials=told(credentials("ours", 1))
    )
    assert of(first, udp_socket_pb2.RefuseChecks) == []
    second = neighbours.tell(prepare(2))
    assert second[:2] == [
        udp_socket_pb2.AcceptChecks(session_id=SESSION, credentials=told(credentials("ours", 2))),
        udp_socket_pb2.RefuseChecks(session_id=SESSION, ufrag="ours001"),
    ]


def test_check_is_sent_as_a_stun_request_from_its_base() -> None:
    neighbours = Neighbours()
    emitted = neighbours.tell(prepare(), start())
    request = only(emitted, udp_socket_pb2.SendStunRequest)
    assert request.asker == udp_socket_pb2.STUN_ASKER_CHECKLIST
    assert request.session_id == SESSION
    assert (request.remote.host, request.remote.port) == ("192.0.2.2", 4000)
    assert request.local_host == "192.0.2.1"
    assert request.pwd == credentials("them").pwd
    message = parse(request.datagram)
    assert message.transaction_id == request.transaction_id
    assert message.verify_integrity(request.pwd.encode())
    assert only(emitted, checklist_pb2.ChecksBegan).generation == 1
    again = only(neighbours.advance(0.1), udp_socket_pb2.SendStunRequest)
    assert again == request


def test_answered_checks_lead_to_a_succeeded_and_a_nominated_pair() -> None:
    neighbours = Neighbours()
    request = only(neighbours.tell(prepare(), start()), udp_socket_pb2.SendStunRequest)
    neighbours.harness.advance(0.05)
    emitted = neighbours.answer(request)
    succeeded = only(emitted, checklist_pb2.PairSucceeded)
    pair = checklist_pb2.Pair(
        local=translate.candidate_to_proto(OURS),
        remote=translate.candidate_to_proto(THEIRS),
        local_host="192.0.2.1",
    )
    assert succeeded == checklist_pb2.PairSucceeded(
        session_id=SESSION, generation=1, pair=pair, rtt_us=50_000
    )
    proof = only(emitted, udp_socket_pb2.SendStunRequest)
    assert len(proof.datagram) == checks.PADDED_CHECK_BYTES
    nominated = only(neighbours.answer(proof), checklist_pb2.PairNominated)
    assert nominated.pair == pair
    assert nominated.proven_bytes == 1200
    assert (nominated.local, nominated.remote) == (told(credentials("ours")), told(credentials("them")))
    assert [entry["event"] for entry in neighbours.harness.logs if entry["log_level"] == "info"] == [
        "checklist.checks_began",
        "checklist.pair_succeeded",
        "checklist.pair_nominated",
    ]


def test_check_of_the_peer_is_answered_where_it_came_from() -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare(is_controlling=False))
    emitted = neighbours.check()
    answer = only(emitted, udp_socket_pb2.SendDatagrams)
    assert (answer.remote.host, answer.local_host) == ("192.0.2.2", "192.0.2.1")
    message = parse(answer.datagrams[0])
    assert message.message_class is MessageClass.SUCCESS_RESPONSE
    assert message.find(XorMappedAddress) == XorMappedAddress(THEIRS.address)
    assert message.verify_integrity(credentials("ours").key)
    assert of(emitted, udp_socket_pb2.SendStunRequest) == []
    assert of(neighbours.tell(start(delay_ms=1000)), udp_socket_pb2.SendStunRequest)


def test_controlled_end_follows_the_nomination() -> None:
    neighbours = Neighbours()
    emitted = neighbours.tell(prepare(is_controlling=False), start())
    emitted = neighbours.answer(only(emitted, udp_socket_pb2.SendStunRequest))
    emitted += neighbours.advance(0.02)
    emitted = neighbours.answer(only(emitted, udp_socket_pb2.SendStunRequest))
    assert of(emitted, checklist_pb2.PairNominated) == []
    only(neighbours.check(uses_candidate=True), checklist_pb2.PairNominated)


def test_delay_is_replaced() -> None:
    neighbours = Neighbours()
    assert not of(neighbours.tell(prepare(), start(delay_ms=5000)), udp_socket_pb2.SendStunRequest)
    begin = checklist_pb2.BeginChecks(session_id=SESSION, generation=1, start_delay_ms=200)
    assert not of(neighbours.tell(begin), udp_socket_pb2.SendStunRequest)
    assert not of(neighbours.advance(0.19), udp_socket_pb2.SendStunRequest)
    only(neighbours.advance(0.02), udp_socket_pb2.SendStunRequest)


def test_checklist_without_answers_fails_once_both_sides_ended() -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare(), start(), ended(is_local=True), ended(is_local=False))
    emitted = neighbours.advance(4.69)
    assert of(emitted, checklist_pb2.ChecklistFailed) == []
    failed = only(neighbours.advance(0.02), checklist_pb2.ChecklistFailed)
    assert failed == checklist_pb2.ChecklistFailed(session_id=SESSION, generation=1, reason="no_answer")


def test_stopped_checks_are_sent_no_more_and_the_peer_is_answered() -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare(), start(), checklist_pb2.StopChecks(session_id=SESSION, generation=1))
    emitted = neighbours.check()
    assert len(of(emitted, udp_socket_pb2.SendDatagrams)) == 1
    emitted += neighbours.advance(10.0)
    assert of(emitted, udp_socket_pb2.SendStunRequest) == []


def test_former_generation_is_still_answered_and_not_checked() -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare(), start(), prepare(2, is_controlling=False), start(2, 60_000))
    emitted = neighbours.check(1)
    assert parse(only(emitted, udp_socket_pb2.SendDatagrams).datagrams[0]).verify_integrity(
        credentials("ours", 1).key
    )
    assert of(emitted, udp_socket_pb2.SendStunRequest) == []


def test_candidate_that_makes_no_sense_is_left_out() -> None:
    neighbours = Neighbours()
    broken = translate.candidate_to_proto(THEIRS)
    broken.address.host = "example"
    more = checklist_pb2.AddCandidates(
        session_id=SESSION, generation=1, candidates=[broken, translate.candidate_to_proto(THEIRS)]
    )
    message = start()
    message.ClearField("remote_candidates")
    neighbours.tell(prepare(), message)
    assert only(neighbours.tell(more), udp_socket_pb2.SendStunRequest).remote.host == "192.0.2.2"
    assert [entry["reason"] for entry in neighbours.harness.logs if entry["log_level"] == "debug"] == [
        "malformed_address"
    ]


def test_credentials_that_no_check_can_carry_end_the_matter() -> None:
    neighbours = Neighbours()
    message = start()
    message.remote.ufrag = "x"
    failed = only(neighbours.tell(prepare(), message), checklist_pb2.ChecklistFailed)
    assert failed.reason == "bad_credentials"
    assert neighbours.harness.is_alive


def test_refusal_shows_in_the_report() -> None:
    neighbours = Neighbours()
    request = only(neighbours.tell(prepare(), start()), udp_socket_pb2.SendStunRequest)
    refusal = checks.build_refusal(parse(request.datagram), checks.BAD_REQUEST, request.pwd.encode())
    assert parse(refusal).find(ErrorCode) == ErrorCode(400, "Bad Request")
    neighbours.advance(REPORT_INTERVAL_S)
    emitted = neighbours.receive(refusal) + neighbours.advance(REPORT_INTERVAL_S)
    (entry,) = only(emitted, checklist_pb2.ChecklistReport).entries
    assert entry.state == checklist_pb2.PAIR_STATE_FAILED
    assert entry.failure == "refused_400"
    assert (entry.checks_sent, entry.checks_answered, entry.rtt_us) == (2, 0, 0)


def test_reports_come_at_changes_and_four_times_a_second_at_most() -> None:
    neighbours = Neighbours()
    first = neighbours.tell(prepare())
    assert len(of(first, checklist_pb2.ChecklistReport)) == 1
    many = [host_candidate(f"192.0.2.{number}", preference=number) for number in range(10, 40)]
    emitted = neighbours.tell(start(1, 0, *many)) + neighbours.advance(1.0)
    reports = of(emitted, checklist_pb2.ChecklistReport)
    assert len(reports) == 4
    assert len(reports[-1].entries) == 30
    neighbours.advance(30.0)
    assert neighbours.advance(30.0) == []


def test_stop_refuses_every_check_of_the_session() -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare())
    neighbours.harness.stop()
    assert neighbours.harness.take_emitted() == [udp_socket_pb2.RefuseChecks(session_id=SESSION)]


def test_generation_that_is_no_news_is_a_bug_of_ours() -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare(2), prepare(2))
    assert isinstance(neighbours.harness.failure, LocalProtocolError)


@pytest.mark.parametrize("kind", [checklist_pb2.BeginChecks, checklist_pb2.StopChecks])
def test_command_for_another_generation_changes_nothing(kind: type[Message]) -> None:
    neighbours = Neighbours()
    neighbours.tell(prepare(2), start(2, 1000))
    assert neighbours.tell(kind(session_id=SESSION, generation=1)) == []
    only(neighbours.advance(1.0), udp_socket_pb2.SendStunRequest)
