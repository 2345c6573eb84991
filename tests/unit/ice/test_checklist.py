"""One checklist, message by message."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ice.simulation import credentials, host_candidate, reflexive_candidate
from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.ice import checks
from ztna.ice.candidate import Candidate
from ztna.ice.checklist import (
    MAX_EARLY_CHECKS,
    MAX_FORMER_CREDENTIALS,
    MAX_ROLE_SWITCHES,
    Checklist,
)
from ztna.ice.checklist_effects import (
    AcceptCredentials,
    ChecklistEffect,
    ChecklistFailed,
    ChecksBegan,
    PairNominated,
    PairSucceeded,
    RefuseCredentials,
    SendCheck,
)
from ztna.ice.credentials import IceCredentials
from ztna.ice.nomination import MAX_PROOFS
from ztna.ice.open_checks import MAX_OPEN_CHECKS, OpenChecks
from ztna.ice.pair import CheckedPair, PairState
from ztna.ice.pair_table import MAX_PEER_REFLEXIVE
from ztna.stun.attributes import (
    ErrorCode,
    IceControlled,
    IceControlling,
    Priority,
    Software,
    UnknownAttributes,
    UseCandidate,
    Username,
    XorMappedAddress,
)
from ztna.stun.integrity import integrity_sha1
from ztna.stun.message import BINDING, Message, MessageClass, build, parse
from ztna.stun.transaction import CONNECTIVITY_CHECK

EffectT = TypeVar("EffectT", bound=ChecklistEffect)

OURS, THEIRS = credentials("ours"), credentials("them")
HOST = host_candidate("192.0.2.1")
REMOTE = host_candidate("192.0.2.9")
OTHER = host_candidate("192.0.2.8", preference=9)
STRANGER = TransportAddress("198.51.100.77", 7777)


class Driver:
    """A checklist, and a peer that sends and answers as a test says."""

    def __init__(self, *, is_controlling: bool = True, seed: int = 1) -> None:
        self.core = Checklist(random.Random(seed))
        self.now = 0.0
        self._chance = random.Random(99)
        self.core.handle_prepare(1, OURS, [HOST], is_controlling=is_controlling)
        self.core.drain()

    def start(self, *remote: Candidate, delay_s: float = 0.0, is_end: bool = False) -> list[ChecklistEffect]:
        self.core.handle_start(1, THEIRS, remote or (REMOTE,), delay_s, self.now)
        if is_end:
            for is_local in (True, False):
                self.core.handle_candidates(1, [], self.now, is_local=is_local, is_end=True)
        return self.core.drain()

    def check(self) -> SendCheck:
        """The check sent at the start."""
        return only(self.start(), SendCheck)

    def at(self, when: float) -> list[ChecklistEffect]:
        """Let time pass up to `when`."""
        effects: list[ChecklistEffect] = []
        while (deadline := self.core.next_deadline()) is not None and deadline <= when:
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            effects += self.core.drain()
        self.now = when
        return effects

    def receive(
        self, data: bytes, source: TransportAddress = REMOTE.address, local_host: str = "192.0.2.1"
    ) -> list[ChecklistEffect]:
        self.core.handle_message(data, source, local_host, self.now)
        return self.core.drain()

    def answer(self, check: SendCheck, mapped: TransportAddress = HOST.address) -> list[ChecklistEffect]:
        data = checks.build_answer(parse(check.request.data), mapped, THEIRS.key)
        return self.receive(data, check.request.remote)

    def refuse(self, check: SendCheck, code: int) -> list[ChecklistEffect]:
        refusal = Message(
            BINDING, MessageClass.ERROR_RESPONSE, check.transaction_id, (ErrorCode(code, "no"),)
        )
        return self.receive(build(refusal, key=THEIRS.key), check.request.remote)

    def hear(
        self,
        source: TransportAddress = REMOTE.address,
        *,
        is_controlling: bool = False,
        tie_breaker: int = 1,
        uses_candidate: bool = False,
        local: IceCredentials = OURS,
        remote: IceCredentials = THEIRS,
        transaction_id: bytes = b"",
        local_host: str = "192.0.2.1",
    ) -> list[ChecklistEffect]:
        data = checks.build_check(
            transaction_id or self._chance.randbytes(12),
            remote,
            local,
            priority=7,
            is_controlling=is_controlling,
            tie_breaker=tie_breaker,
            uses_candidate=uses_candidate,
        )
        return self.receive(data, source, local_host)

    def states(self) -> list[PairState]:
        return [view.state for view in self.core.view()]


def of(effects: list[ChecklistEffect], kind: type[EffectT]) -> list[EffectT]:
    return [effect for effect in effects if isinstance(effect, kind)]


def only(effects: list[ChecklistEffect], kind: type[EffectT]) -> EffectT:
    (found,) = of(effects, kind)
    return found


def response_in(effects: list[ChecklistEffect]) -> Message:
    return parse(only(effects, Transmit).data)


# Preparing and starting


def test_generation_must_be_news() -> None:
    driver = Driver()
    with pytest.raises(LocalProtocolError, match="generation 1 after 1"):
        driver.core.handle_prepare(1, OURS, [], is_controlling=True)


def test_restart_accepts_the_new_and_refuses_the_former_credentials() -> None:
    driver = Driver()
    driver.core.handle_prepare(2, credentials("ours", 2), [HOST], is_controlling=True)
    assert driver.core.drain() == [
        AcceptCredentials(credentials("ours", 2)),
        RefuseCredentials("ours001"),
    ]
    assert driver.core.generation == 2
    assert driver.core.view() == []


def test_former_credentials_are_bounded() -> None:
    driver = Driver()
    for generation in range(2, MAX_FORMER_CREDENTIALS + 3):
        driver.core.handle_prepare(generation, credentials("ours", generation), [HOST], is_controlling=False)
    driver.core.drain()
    assert driver.hear() == []
    assert driver.core.dropped == {"unknown_ufrag": 1}
    for generation in range(2, MAX_FORMER_CREDENTIALS + 2):
        effects = driver.hear(local=credentials("ours", generation))
        assert response_in(effects).verify_integrity(credentials("ours", generation).key)


def test_credentials_of_the_nominated_pair_stay_accepted_until_another_generation_nominates() -> None:
    driver = Driver()
    prove(driver, driver.check())
    second, third = credentials("ours", 2), credentials("ours", 3)
    driver.core.handle_prepare(2, second, [HOST], is_controlling=True)
    assert driver.core.drain() == [AcceptCredentials(second)]
    # The exchange came to nothing; so may any number of them.
    driver.core.handle_prepare(3, third, [HOST], is_controlling=True)
    assert driver.core.drain() == [AcceptCredentials(third), RefuseCredentials("ours002")]
    for generation in range(4, MAX_FORMER_CREDENTIALS + 6):
        driver.core.handle_prepare(generation, credentials("ours", generation), [HOST], is_controlling=True)
    driver.core.drain()
    assert response_in(driver.hear()).verify_integrity(OURS.key)
    driver.core.handle_start(MAX_FORMER_CREDENTIALS + 5, THEIRS, [REMOTE], 0.0, driver.now)
    effects = prove(driver, only(driver.core.drain(), SendCheck))
    assert of(effects, PairNominated)
    assert only(effects, RefuseCredentials).ufrag == "ours001"
    assert response_in(driver.hear()).verify_integrity(OURS.key), "the peer's are under way for a while"


def test_what_belongs_to_another_generation_is_ignored() -> None:
    driver = Driver()
    driver.core.handle_start(2, THEIRS, [REMOTE], 0.0, 0.0)
    driver.core.handle_candidates(2, [REMOTE], 0.0, is_local=False, is_end=True)
    driver.core.handle_begin(2, 0.0, 0.0)
    driver.core.handle_stop(2)
    assert driver.core.drain() == []
    assert driver.core.next_deadline() is None
    assert driver.start()


@pytest.mark.parametrize(
    "remote",
    [
        pytest.param(IceCredentials("abc", THEIRS.pwd), id="short ufrag"),
        pytest.param(IceCredentials("u" * 257, THEIRS.pwd), id="long ufrag"),
        pytest.param(IceCredentials("ü" * 255, THEIRS.pwd), id="ufrag of many bytes"),
        pytest.param(IceCredentials("ab:cd", THEIRS.pwd), id="colon"),
        pytest.param(IceCredentials("abcd", "p" * 21), id="short pwd"),
        pytest.param(IceCredentials("abcd", "p" * 257), id="long pwd"),
    ],
)
def test_credentials_that_no_check_can_carry_are_the_peers_fault(remote: IceCredentials) -> None:
    driver = Driver()
    with pytest.raises(RemoteProtocolError) as caught:
        driver.core.handle_start(1, remote, [REMOTE], 0.0, 0.0)
    assert caught.value.reason == "bad_credentials"


def test_second_start_brings_candidates_and_no_second_delay() -> None:
    driver = Driver()
    driver.start()
    driver.start(OTHER, delay_s=100.0)
    assert len(of(driver.at(0.02), SendCheck)) == 1
    assert driver.states() == [PairState.IN_PROGRESS] * 2


def test_candidates_may_come_before_the_start() -> None:
    driver = Driver()
    driver.core.handle_candidates(1, [REMOTE], 0.0, is_local=False, is_end=True)
    driver.core.handle_candidates(1, [], 0.0, is_local=True, is_end=True)
    assert driver.core.drain() == []
    driver.core.handle_start(1, THEIRS, [], 0.0, 0.0)
    assert only(driver.core.drain(), SendCheck).request.remote == REMOTE.address


def test_local_candidate_that_comes_later_is_paired() -> None:
    driver = Driver()
    driver.start()
    driver.core.handle_candidates(1, [host_candidate("192.0.2.2")], 0.0, is_local=True, is_end=False)
    sent = only(driver.at(0.02), SendCheck)
    assert sent.request.local_host == "192.0.2.2"


def test_no_pair_at_all_fails_at_once_when_both_sides_ended() -> None:
    driver = Driver()
    driver.core.handle_start(1, THEIRS, [], 5.0, driver.now)
    for is_local in (True, False):
        driver.core.handle_candidates(1, [], driver.now, is_local=is_local, is_end=True)
    assert driver.core.drain() == [ChecklistFailed(1, "no_pairs")]


def test_sides_without_a_common_family_fail_at_once_and_say_so() -> None:
    driver = Driver()
    effects = driver.start(host_candidate("2001:db8::9"), delay_s=5.0, is_end=True)
    assert effects == [ChecklistFailed(1, "no_common_family")]


# Checks of ours


def test_answer_from_elsewhere_is_no_answer() -> None:
    driver = Driver()
    sent = driver.check()
    data = checks.build_answer(parse(sent.request.data), HOST.address, THEIRS.key)
    assert driver.receive(data, STRANGER) == []
    assert driver.core.dropped == {"unexpected_response": 1}
    assert of(driver.receive(data), PairSucceeded)


def test_answer_sealed_by_somebody_else_is_no_answer() -> None:
    driver = Driver()
    sent = driver.check()
    assert driver.receive(checks.build_answer(parse(sent.request.data), HOST.address, OURS.key)) == []
    assert driver.core.dropped == {"unexpected_response": 1}
    assert driver.states() == [PairState.IN_PROGRESS]


def test_answer_shows_which_of_our_candidates_the_peer_sees() -> None:
    mapped = TransportAddress("198.51.100.1", 5555)
    known = reflexive_candidate(mapped, HOST.base)
    driver = Driver()
    sent = driver.check()
    driver.core.handle_candidates(1, [known], 0.0, is_local=True, is_end=False)
    (pair,) = [effect.pair for effect in of(driver.answer(sent, mapped), PairSucceeded)]
    assert pair.local == known


def test_answer_without_an_address_fails_the_pair() -> None:
    driver = Driver()
    sent = driver.check()
    empty = Message(BINDING, MessageClass.SUCCESS_RESPONSE, sent.transaction_id, (Software("x"),))
    driver.receive(build(empty, key=THEIRS.key))
    (view,) = driver.core.view()
    assert (view.state, view.failure) == (PairState.FAILED, "malformed_answer")


@pytest.mark.parametrize(
    ("attributes", "unknown", "failure"),
    [
        pytest.param((ErrorCode(401, "no"),), b"", "refused_401", id="with a code"),
        pytest.param((), b"", "refused", id="without a code"),
        pytest.param((ErrorCode(401, "no"),), b"\x7f\xff\x00\x00", "malformed_answer", id="not understood"),
    ],
)
def test_refused_check_fails_its_pair(
    attributes: tuple[ErrorCode, ...], unknown: bytes, failure: str
) -> None:
    driver = Driver()
    sent = driver.check()
    plain = build(Message(BINDING, MessageClass.ERROR_RESPONSE, sent.transaction_id, attributes))
    data = reseal(plain + unknown, THEIRS.key)
    driver.receive(data)
    (view,) = driver.core.view()
    assert (view.state, view.failure) == (PairState.FAILED, failure)
    assert view.checks_answered == 0


def reseal(data: bytes, key: bytes) -> bytes:
    """Append MESSAGE-INTEGRITY to attributes that `build` would not write."""
    sealed = data + b"\x00\x08\x00\x14" + integrity_sha1(data, key)
    return sealed[:2] + (len(sealed) - 20).to_bytes(2, "big") + sealed[4:]


def test_peer_that_is_heard_on_a_pair_in_progress_is_checked_at_once_and_once() -> None:
    driver = Driver()
    first = driver.check()
    driver.now = 0.05
    second = only(driver.hear(), SendCheck)
    assert second.transaction_id != first.transaction_id
    driver.now = 0.09
    assert of(driver.hear(), SendCheck) == []
    # The first is sent no more, and answered it still counts.
    assert {each.transaction_id for each in of(driver.at(1.0), SendCheck)} == {second.transaction_id}
    assert of(driver.answer(first), PairSucceeded)
    assert of(driver.answer(second), PairSucceeded) == []


def test_answer_to_a_replaced_check_counts_while_its_pair_waits_again() -> None:
    driver = Driver()
    sent = driver.check()
    driver.now = 0.01
    driver.hear()
    assert driver.states() == [PairState.WAITING]
    assert of(driver.answer(sent), PairSucceeded)
    assert driver.states() == [PairState.SUCCEEDED]
    # The triggered check is not needed any more; what follows is the padded one.
    assert [len(each.request.data) for each in of(driver.at(0.03), SendCheck)] == [checks.PADDED_CHECK_BYTES]


def test_refusal_of_a_replaced_check_is_no_failure() -> None:
    driver = Driver()
    sent = driver.check()
    driver.now = 0.05
    driver.hear()
    driver.refuse(sent, 400)
    assert driver.states() == [PairState.IN_PROGRESS]


@pytest.mark.parametrize("pacing_s", [0.005, 0.063])
def test_new_checks_leave_as_far_apart_as_configured(pacing_s: float) -> None:
    core = Checklist(random.Random(1), ta_s=pacing_s)
    core.handle_prepare(1, OURS, [HOST], is_controlling=True)
    remote = [
        replace(host_candidate(f"192.0.2.{number}"), foundation=f"f{number}") for number in range(9, 14)
    ]
    now = 0.0
    sent_at: dict[bytes, float] = {}
    core.handle_start(1, THEIRS, remote, 0.0, now)
    while len(sent_at) < len(remote):
        for effect in core.drain():
            if isinstance(effect, SendCheck):
                sent_at.setdefault(effect.transaction_id, now)
        deadline = core.next_deadline()
        assert deadline is not None
        now = deadline
        core.handle_timeout(now)
    moments = [*sent_at.values()]
    assert [later - sooner for sooner, later in pairwise(moments)] == pytest.approx([pacing_s] * 4)


def test_triggered_check_goes_before_those_in_order() -> None:
    driver = Driver()
    low = host_candidate("192.0.2.20", preference=1)
    driver.start(REMOTE, OTHER, low)
    driver.now = 0.01
    driver.hear(low.address)
    assert [each.request.remote for each in of(driver.at(0.04), SendCheck)] == [low.address, OTHER.address]


def test_frozen_pair_has_its_turn_when_its_foundation_failed() -> None:
    driver = Driver()
    twin = replace(OTHER, foundation=REMOTE.foundation)
    driver.start(REMOTE, twin)
    driver.at(4.6)
    assert driver.states() == [PairState.IN_PROGRESS, PairState.FROZEN]
    assert only(driver.at(4.71), SendCheck).request.remote == twin.address


def test_frozen_pair_goes_before_lower_ones_when_its_foundation_succeeded() -> None:
    driver = Driver(is_controlling=False)
    twin = replace(OTHER, foundation=REMOTE.foundation)
    low = replace(host_candidate("192.0.2.20", preference=1), foundation="low")
    sent = only(driver.start(REMOTE, twin, low), SendCheck)
    assert driver.states() == [PairState.IN_PROGRESS, PairState.FROZEN, PairState.WAITING]
    driver.now = 0.01
    driver.answer(sent)
    assert driver.states() == [PairState.SUCCEEDED, PairState.WAITING, PairState.WAITING]
    # The padded check of what succeeded leaves between two of those in order.
    remotes = [each.request.remote for each in of(driver.at(0.07), SendCheck)]
    assert [each for each in remotes if each != REMOTE.address] == [twin.address, low.address]


def test_failed_pair_is_checked_again_when_the_peer_is_heard() -> None:
    driver = Driver()
    driver.start()
    driver.at(4.7)
    assert driver.states() == [PairState.FAILED]
    sent = only(driver.hear(), SendCheck)
    assert driver.states() == [PairState.IN_PROGRESS]
    assert of(driver.answer(sent), PairSucceeded)


def test_stopped_checklist_ignores_answers_and_sends_nothing() -> None:
    driver = Driver()
    sent = driver.check()
    driver.core.handle_stop(1)
    assert driver.answer(sent) == []
    assert len(of(driver.hear(), Transmit)) == 1
    assert driver.core.next_deadline() is None
    assert driver.start(OTHER, is_end=True) == []


def test_open_checks_are_bounded_and_the_oldest_idle_one_is_forgotten() -> None:
    pair = CheckedPair(HOST, REMOTE, REMOTE.address, 1)
    table = OpenChecks()
    kept = b"\xff" * 12
    for number in range(-1, MAX_OPEN_CHECKS + 5):
        if number > 0:
            table.supersede(pair)
        transaction_id = kept if number < 0 else number.to_bytes(12, "big")
        table.start(
            pair,
            transaction_id,
            b"",
            THEIRS.pwd,
            CONNECTIVITY_CHECK,
            0.0,
            is_padded=number < 0,
            uses_candidate=False,
            is_controlling=True,
        )
        assert len(table) <= MAX_OPEN_CHECKS
    answers = [
        checks.build_answer(Message(BINDING, MessageClass.REQUEST, each), HOST.address, THEIRS.key)
        for each in (kept, (0).to_bytes(12, "big"))
    ]
    outcomes = [table.handle_response(parse(each), REMOTE.address, 1.0) for each in answers]
    assert outcomes[0] is not None
    assert outcomes[1] is None


# Checks of the peer


def test_request_of_the_peer_is_answered_and_followed_by_a_check() -> None:
    driver = Driver(is_controlling=False)
    driver.start(REMOTE, delay_s=10.0)
    effects = driver.hear(is_controlling=True)
    response = response_in(effects)
    assert response.find(XorMappedAddress) == XorMappedAddress(REMOTE.address)
    assert response.verify_integrity(OURS.key)
    assert of(effects, ChecksBegan) == [ChecksBegan(1)]
    assert only(effects, SendCheck).request.remote == REMOTE.address


def test_unknown_source_becomes_a_peer_reflexive_candidate_and_is_checked() -> None:
    driver = Driver()
    driver.start()
    driver.now = 0.05
    effects = driver.hear(STRANGER)
    assert only(effects, SendCheck).request.remote == STRANGER
    view = next(view for view in driver.core.view() if view.destination == STRANGER)
    assert view.remote.priority == 7
    assert view.checks_received == 1


def test_unknown_sources_are_bounded_and_still_answered() -> None:
    driver = Driver()
    driver.start()
    for number in range(MAX_PEER_REFLEXIVE + 1):
        effects = driver.hear(TransportAddress("198.51.100.9", 2000 + number))
        assert len(of(effects, Transmit)) == 1
    assert len(driver.core.view()) == 1 + MAX_PEER_REFLEXIVE
    assert driver.core.dropped == {"too_many_sources": 1}
    assert driver.core.refused == 1


def test_early_checks_are_bounded_and_still_answered() -> None:
    driver = Driver()
    for number in [*range(MAX_EARLY_CHECKS + 1), 0]:
        effects = driver.hear(TransportAddress("198.51.100.9", 2000 + number))
        assert len(of(effects, Transmit)) == 1
    assert driver.core.dropped == {"too_many_early_checks": 1}
    driver.start(delay_s=60.0)
    sources = {view.destination.port for view in driver.core.view() if view.checks_received}
    assert sources == set(range(2000, 2000 + MAX_EARLY_CHECKS))


def test_check_that_arrives_at_an_address_of_no_candidate_waits_for_it() -> None:
    driver = Driver()
    driver.start()
    driver.hear(STRANGER, local_host="192.0.2.2")
    assert len(driver.core.view()) == 1
    driver.core.handle_candidates(1, [host_candidate("192.0.2.2")], 0.5, is_local=True, is_end=False)
    sent = only(driver.core.drain(), SendCheck)
    assert (sent.request.remote, sent.request.local_host) == (STRANGER, "192.0.2.2")


def test_check_without_priority_is_a_bad_request() -> None:
    driver = Driver()
    message = Message(BINDING, MessageClass.REQUEST, bytes(12), (Username("ours001:them001"),))
    response = response_in(driver.receive(build(message, key=OURS.key)))
    error = response.find(ErrorCode)
    assert error is not None
    assert error.code == 400
    assert response.verify_integrity(OURS.key)


def test_check_that_demands_the_unknown_is_told_what_we_do_not_know() -> None:
    driver = Driver()
    message = Message(BINDING, MessageClass.REQUEST, bytes(12), (Username("ours001:them001"), Priority(1)))
    response = response_in(driver.receive(reseal(build(message) + b"\x7f\xfe\x00\x00", OURS.key)))
    assert response.find(UnknownAttributes) == UnknownAttributes((0x7FFE,))
    assert driver.core.dropped == {"refused_420": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"nonsense", "short_header", id="garbage"),
        pytest.param(
            build(Message(BINDING, MessageClass.INDICATION, bytes(12))), "unexpected_class", id="class"
        ),
        pytest.param(build(Message(2, MessageClass.REQUEST, bytes(12))), "unexpected_method", id="method"),
        pytest.param(
            build(Message(BINDING, MessageClass.REQUEST, bytes(12), (Username("nobody:them001"),))),
            "unknown_ufrag",
            id="for nobody",
        ),
        pytest.param(
            build(Message(BINDING, MessageClass.REQUEST, bytes(12), (Username("ours001:other"),))),
            "unknown_ufrag",
            id="from nobody",
        ),
        pytest.param(
            build(
                Message(BINDING, MessageClass.REQUEST, bytes(12), (Username("ours001:them001"),)), key=b"x"
            ),
            "bad_integrity",
            id="not authentic",
        ),
        pytest.param(
            build(Message(BINDING, MessageClass.SUCCESS_RESPONSE, bytes(12))),
            "unexpected_response",
            id="answer",
        ),
    ],
)
def test_message_that_is_worth_nothing_is_counted_and_not_answered(data: bytes, reason: str) -> None:
    driver = Driver()
    driver.start(delay_s=1.0)
    assert driver.receive(data) == []
    assert driver.core.dropped == {reason: 1}


@given(st.binary(max_size=100))
def test_arbitrary_bytes_have_no_effect(data: bytes) -> None:
    driver = Driver()
    driver.start(delay_s=1.0)
    assert driver.receive(data) == []
    assert driver.core.dropped.total() == 1


# Roles


@pytest.mark.parametrize("is_controlling", [True, False])
def test_peer_of_our_role_and_smaller_claim_is_refused_or_obeyed(is_controlling: bool) -> None:
    # The larger tie-breaker controls.
    driver = Driver(is_controlling=is_controlling)
    driver.start()
    effects = driver.hear(is_controlling=is_controlling, tie_breaker=0)
    error = response_in(effects).find(ErrorCode)
    assert (error is not None and error.code == 487) is is_controlling
    assert driver.core.is_controlling


@pytest.mark.parametrize("is_controlling", [True, False])
def test_peer_of_our_role_and_larger_claim_is_obeyed_or_refused(is_controlling: bool) -> None:
    driver = Driver(is_controlling=is_controlling)
    driver.start()
    effects = driver.hear(is_controlling=is_controlling, tie_breaker=2**64 - 1)
    error = response_in(effects).find(ErrorCode)
    assert (error is None) is is_controlling
    assert not driver.core.is_controlling


def test_role_is_switched_when_the_peer_says_so_and_the_check_repeated() -> None:
    driver = Driver()
    first = driver.check()
    driver.now = 0.05
    second = only(driver.refuse(first, 487), SendCheck)
    assert not driver.core.is_controlling
    before, after = parse(first.request.data), parse(second.request.data)
    assert before.find(IceControlling) is not None
    assert after.find(IceControlling) is None
    assert of(driver.answer(second), PairSucceeded)


def test_switched_role_comes_with_another_tie_breaker() -> None:
    """Where both ends switched at once, the former ones would have them do so again (RFC 8445 §7.2.5.1)."""
    driver = Driver()
    first = driver.check()
    driver.now = 0.05
    claim = parse(first.request.data).find(IceControlling)
    yielded = parse(only(driver.refuse(first, 487), SendCheck).request.data).find(IceControlled)
    assert claim is not None
    assert yielded is not None
    assert yielded.value != claim.value


def test_conflict_that_was_settled_meanwhile_switches_nothing_back() -> None:
    driver = Driver()
    sent = driver.check()
    driver.now = 0.05
    driver.start(OTHER)
    driver.hear(OTHER.address, is_controlling=True, tie_breaker=2**64 - 1)
    assert not driver.core.is_controlling
    driver.refuse(sent, 487)
    assert not driver.core.is_controlling


def test_role_switches_are_bounded() -> None:
    driver = Driver()
    sent = driver.check()
    for number in range(1, MAX_ROLE_SWITCHES + 1):
        driver.now += 0.05
        sent = only(driver.refuse(sent, 487), SendCheck)
        assert driver.core.is_controlling is (number % 2 == 0)
    driver.refuse(sent, 487)
    (view,) = driver.core.view()
    assert (view.state, view.failure) == (PairState.FAILED, "refused_487")
    driver.hear(is_controlling=True, tie_breaker=2**64 - 1)
    assert driver.core.is_controlling


def test_conflict_at_the_nomination_repeats_the_padded_check_in_the_other_role() -> None:
    driver = Driver()
    driver.answer(driver.check())
    proof = only(driver.at(0.02), SendCheck)
    assert parse(proof.request.data).find(UseCandidate)
    driver.now = 0.1
    again = only(driver.refuse(proof, 487), SendCheck)
    assert len(again.request.data) == checks.PADDED_CHECK_BYTES
    assert not parse(again.request.data).find(UseCandidate)
    assert of(driver.answer(again), PairNominated) == []
    assert of(driver.hear(is_controlling=True, uses_candidate=True), PairNominated)


# Nomination


def prove(driver: Driver, sent: SendCheck) -> list[ChecklistEffect]:
    """Answer a check, then the padded one that follows."""
    driver.now += 0.05
    effects = driver.answer(sent)
    driver.now += 0.05
    return driver.answer(only(effects, SendCheck))


def test_padded_check_that_is_refused_fails_the_pair() -> None:
    driver = Driver()
    sent = driver.check()
    driver.now = 0.05
    proof = only(driver.answer(sent), SendCheck)
    driver.refuse(proof, 420)
    (view,) = driver.core.view()
    assert (view.state, view.failure) == (PairState.FAILED, "refused_420")


def test_narrow_pair_is_not_revived_by_checks_of_the_peer() -> None:
    driver = Driver()
    first = driver.check()
    driver.now = 0.05
    second = only(driver.hear(), SendCheck)
    driver.answer(second)
    driver.at(3.0)
    assert driver.states() == [PairState.FAILED]
    assert of(driver.hear(), SendCheck) == []
    assert driver.answer(first) == []
    assert driver.states() == [PairState.FAILED]


def test_padded_check_answered_late_revives_the_pair() -> None:
    driver = Driver()
    proof = only(driver.answer(driver.check()) + driver.at(0.02), SendCheck)
    driver.at(2.6)
    assert driver.states() == [PairState.FAILED]
    assert of(driver.answer(proof), PairNominated)
    assert driver.states() == [PairState.SUCCEEDED]


def test_padded_checks_of_a_pair_are_bounded() -> None:
    driver = Driver()
    effects = driver.answer(driver.check()) + driver.at(0.02)
    padded = 0
    while sent := of(effects, SendCheck):
        padded += 1
        driver.now += 0.05
        effects = driver.refuse(sent[0], 487)
        effects += of(driver.at(driver.now), SendCheck)
    assert padded == MAX_PROOFS < MAX_ROLE_SWITCHES


def test_controlled_end_waits_for_the_nomination_of_its_proven_pair() -> None:
    driver = Driver(is_controlling=False)
    assert of(prove(driver, driver.check()), PairNominated) == []
    nominated = only(driver.hear(is_controlling=True, uses_candidate=True), PairNominated)
    assert nominated.pair.is_nominated
    assert (nominated.local, nominated.remote) == (OURS, THEIRS)
    # Told once, however often it is nominated.
    assert of(driver.hear(is_controlling=True, uses_candidate=True), PairNominated) == []


def test_nomination_before_the_first_answer_is_remembered() -> None:
    driver = Driver(is_controlling=False)
    driver.start(delay_s=1.0)
    sent = only(driver.hear(is_controlling=True, uses_candidate=True), SendCheck)
    assert of(prove(driver, sent), PairNominated)


def test_controlled_end_follows_the_latest_nomination_and_no_retransmission() -> None:
    driver = Driver(is_controlling=False)
    (first,) = of(driver.start(REMOTE, OTHER), SendCheck)
    (second,) = of(driver.at(0.02), SendCheck)
    old = b"o" * 12
    driver.now = 0.1
    driver.hear(is_controlling=True, uses_candidate=True, transaction_id=old)
    assert of(prove(driver, first), PairNominated)
    driver.now = 0.5
    effects = driver.answer(second)
    effects += driver.hear(OTHER.address, is_controlling=True, uses_candidate=True)
    effects += driver.at(0.52)
    padded = of(effects, SendCheck)[-1]
    assert padded.request.remote == OTHER.address
    assert only(driver.answer(padded), PairNominated).pair.destination == OTHER.address
    assert of(driver.hear(is_controlling=True, uses_candidate=True, transaction_id=old), PairNominated) == []
    assert [view.destination for view in driver.core.view() if view.is_nominated] == [OTHER.address]


def test_nomination_by_a_controlled_peer_means_nothing() -> None:
    driver = Driver()
    sent = driver.check()
    driver.now = 0.05
    driver.hear(is_controlling=False, uses_candidate=True)
    driver.answer(sent)
    assert not any(view.is_nominated for view in driver.core.view())


def test_pairs_below_the_nominated_one_are_not_checked_any_more() -> None:
    driver = Driver()
    low = [host_candidate(f"192.0.2.{number}", preference=number) for number in range(20, 30)]
    (sent,) = of(driver.start(REMOTE, *low), SendCheck)
    driver.now = 0.001
    driver.answer(sent)
    (proof,) = of(driver.at(0.02), SendCheck)
    assert of(driver.answer(proof), PairNominated)
    assert driver.at(1.0) == []
    # Nor when the peer is heard on them; it is answered.
    effects = driver.hear(low[0].address)
    assert len(of(effects, Transmit)) == 1
    assert of(effects, SendCheck) == []


def test_pair_above_the_nominated_one_is_checked_and_takes_over() -> None:
    driver = Driver()
    (sent,) = of(driver.start(OTHER), SendCheck)
    assert only(prove(driver, sent), PairNominated).pair.destination == OTHER.address
    driver.now = 1.0
    (sent,) = of(driver.start(REMOTE), SendCheck)
    assert only(prove(driver, sent), PairNominated).pair.destination == REMOTE.address
    assert [view.is_nominated for view in driver.core.view()] == [True, False]


def test_failure_is_told_once_and_a_later_success_still_counts() -> None:
    driver = Driver()
    (sent,) = of(driver.start(is_end=True), SendCheck)
    assert of(driver.at(5.0), ChecklistFailed) == [ChecklistFailed(1, "no_answer")]
    effects = driver.answer(sent)
    assert of(effects, PairSucceeded)
    assert of(driver.answer(only(effects, SendCheck)), PairNominated)
    assert of(driver.at(60.0), ChecklistFailed) == []


def test_reason_names_the_pair_that_people_can_mend() -> None:
    driver = Driver()
    (sent,) = of(driver.start(REMOTE, OTHER, is_end=True), SendCheck)
    driver.answer(sent)
    assert of(driver.at(10.0), ChecklistFailed) == [ChecklistFailed(1, "mtu")]


def test_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        driver = Driver(seed=5)
        effects = driver.start(REMOTE, OTHER) + driver.hear(STRANGER) + driver.at(10.0)
        runs.append(effects)
    assert runs[0] == runs[1]
