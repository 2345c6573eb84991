"""Checks as STUN messages."""

from __future__ import annotations

import random

import aioice.stun
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import messages
from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice import checks
from ztna.ice.credentials import IceCredentials
from ztna.stun.attributes import (
    ErrorCode,
    Fingerprint,
    IceControlled,
    IceControlling,
    MessageIntegrity,
    Padding,
    Priority,
    UnknownAttributes,
    UseCandidate,
    Username,
    XorMappedAddress,
)
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

TRANSACTION_ID = bytes(range(12))
OURS = IceCredentials("ours", "our-password-of-22-characters")
THEIRS = IceCredentials("them", "their-password-of-22-characters")
SOURCES = [
    pytest.param(TransportAddress("192.0.2.7", 4321), id="IPv4"),
    pytest.param(TransportAddress("2001:db8::7", 4321), id="IPv6"),
]


def check(*, is_controlling: bool = True, uses_candidate: bool = False, is_padded: bool = False) -> bytes:
    return checks.build_check(
        TRANSACTION_ID,
        OURS,
        THEIRS,
        priority=1_862_270_975,
        is_controlling=is_controlling,
        tie_breaker=2**64 - 1,
        uses_candidate=uses_candidate,
        is_padded=is_padded,
    )


def test_check_carries_what_the_peer_needs_to_know_and_is_sealed_with_its_pwd() -> None:
    message = parse(check())
    assert (message.method, message.message_class) == (BINDING, MessageClass.REQUEST)
    assert message.transaction_id == TRANSACTION_ID
    assert message.attributes[:3] == (
        Username("them:ours"),
        Priority(1_862_270_975),
        IceControlling(2**64 - 1),
    )
    assert [type(each) for each in message.attributes[3:]] == [MessageIntegrity, Fingerprint]
    assert message.verify_integrity(THEIRS.key)
    assert not message.verify_integrity(OURS.key)


def test_nominating_check_says_so() -> None:
    assert parse(check(uses_candidate=True)).find(UseCandidate) == UseCandidate()
    assert parse(check()).find(UseCandidate) is None


def test_controlled_end_says_that_it_is() -> None:
    message = parse(check(is_controlling=False))
    assert message.find(IceControlled) == IceControlled(2**64 - 1)
    assert message.find(IceControlling) is None


def test_check_is_read_back() -> None:
    found = checks.read_check(parse(check(uses_candidate=True)))
    assert (found.local_ufrag, found.remote_ufrag) == ("them", "ours")
    assert (found.controlling, found.controlled) == (2**64 - 1, None)
    assert found.priority == 1_862_270_975
    assert found.uses_candidate
    found = checks.read_check(parse(check(is_controlling=False)))
    assert (found.controlling, found.controlled) == (None, 2**64 - 1)
    assert not found.uses_candidate


@pytest.mark.parametrize("uses_candidate", [True, False])
def test_padded_check_is_as_long_as_a_full_datagram_and_any_agent_reads_it(uses_candidate: bool) -> None:
    data = check(uses_candidate=uses_candidate, is_padded=True)
    assert len(data) == checks.PADDED_CHECK_BYTES
    assert parse(data).verify_integrity(THEIRS.key)
    foreign = aioice.stun.parse_message(data)
    assert foreign.check_message_integrity(THEIRS.key)
    assert foreign.attributes["USERNAME"] == "them:ours"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("is_padded", [True, False])
def test_answer_shows_the_source_and_is_as_long_as_a_padded_check(
    source: TransportAddress, is_padded: bool
) -> None:
    request = parse(check(is_padded=is_padded))
    data = checks.build_answer(request, source, THEIRS.key)
    answer = parse(data)
    assert answer.message_class is MessageClass.SUCCESS_RESPONSE
    assert answer.transaction_id == TRANSACTION_ID
    assert answer.find(XorMappedAddress) == XorMappedAddress(source)
    assert answer.verify_integrity(THEIRS.key)
    # Never longer than the request: nobody is made to amplify.
    assert len(data) == len(request.raw) if is_padded else len(data) <= len(request.raw)


def test_answer_to_a_monstrous_check_stays_short() -> None:
    attributes = (Username("them:ours"), Padding(1500))
    monster = parse(build(Message(BINDING, MessageClass.REQUEST, TRANSACTION_ID, attributes)))
    assert len(checks.build_answer(monster, TransportAddress("192.0.2.7", 1), THEIRS.key)) < 100


def test_check_that_fills_the_datagram_by_itself_is_not_padded() -> None:
    local, remote = IceCredentials("l" * 250, OURS.pwd), IceCredentials("r" * 250, THEIRS.pwd)
    data = checks.build_check(
        TRANSACTION_ID, local, remote, priority=1, is_controlling=True, tie_breaker=0, is_padded=True
    )
    assert len(data) == checks.PADDED_CHECK_BYTES
    request = parse(build(Message(BINDING, MessageClass.REQUEST, TRANSACTION_ID, (Padding(0),))))
    # An answer is longer than this request already.
    assert parse(checks.build_answer(request, TransportAddress("192.0.2.7", 1), b"key")).find(Padding) is None


@pytest.mark.parametrize(
    "code", [checks.BAD_REQUEST, checks.UNKNOWN_ATTRIBUTE, checks.ROLE_CONFLICT], ids=str
)
def test_refusal_is_sealed_and_says_why(code: int) -> None:
    request = Message(
        BINDING, MessageClass.REQUEST, TRANSACTION_ID, (Username("them:ours"),), (0x7FFF, 0x7FFE)
    )
    refusal = parse(checks.build_refusal(request, code, THEIRS.key))
    assert refusal.message_class is MessageClass.ERROR_RESPONSE
    error = refusal.find(ErrorCode)
    assert error is not None
    assert error.code == code
    assert refusal.verify_integrity(THEIRS.key)
    listed = refusal.find(UnknownAttributes)
    assert listed == (UnknownAttributes((0x7FFF, 0x7FFE)) if code == checks.UNKNOWN_ATTRIBUTE else None)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(Message(0x002, MessageClass.REQUEST, TRANSACTION_ID), "unexpected_method", id="method"),
        pytest.param(
            Message(BINDING, MessageClass.REQUEST, TRANSACTION_ID), "bad_username", id="no username"
        ),
        pytest.param(
            Message(BINDING, MessageClass.REQUEST, TRANSACTION_ID, (Username("them"),)),
            "bad_username",
            id="no colon",
        ),
    ],
)
def test_request_that_is_no_check_is_the_peers_fault(message: Message, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        checks.read_check(message)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("value", "expected"), [(0, 1), (7, 7), (2**32 - 1, 2**31 - 1)])
def test_priority_out_of_range_is_brought_back_into_it(value: int, expected: int) -> None:
    attributes = (Username("them:ours"), Priority(value))
    found = checks.read_check(Message(BINDING, MessageClass.REQUEST, TRANSACTION_ID, attributes))
    assert found.priority == expected


@given(messages)
def test_whatever_a_peer_sends_is_read_or_refused(message: Message) -> None:
    try:
        found = checks.read_check(message)
    except RemoteProtocolError:
        return
    assert ":" not in found.local_ufrag


@given(st.integers(0, 2**32))
def test_transaction_ids_have_twelve_bytes(seed: int) -> None:
    chance = random.Random(seed)
    first, second = (checks.draw_transaction_id(chance) for _ in range(2))
    assert len(first) == len(second) == 12
    assert first != second
