from __future__ import annotations

import random

import pytest

from ztna.address import TransportAddress
from ztna.stun.attributes import (
    Attribute,
    ChangeRequest,
    ErrorCode,
    MappedAddress,
    OtherAddress,
    XorMappedAddress,
)
from ztna.stun.binding import MAX_QUESTIONS, Answered, Ask, BindingClient, BindingEffect, Refused, Unanswered
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

SERVER = TransportAddress("192.0.2.1", 3478)
OTHER = TransportAddress("192.0.2.1", 3479)
MAPPED = TransportAddress("203.0.113.5", 40_000)
NOW = 10.0


def asking(**kwargs: TransportAddress | ChangeRequest) -> tuple[BindingClient[str], bytes]:
    client: BindingClient[str] = BindingClient(random.Random(1))
    assert client.ask("q", SERVER, NOW, **kwargs)  # type: ignore[arg-type]
    (sent,) = client.drain()
    assert isinstance(sent, Ask)
    assert sent.transmit.remote == SERVER
    return client, sent.transaction_id


def answer(
    transaction_id: bytes,
    *attributes: Attribute,
    message_class: MessageClass = MessageClass.SUCCESS_RESPONSE,
) -> bytes:
    return build(Message(BINDING, message_class, transaction_id, attributes))


@pytest.mark.parametrize(
    ("attributes", "outcome"),
    [
        ((XorMappedAddress(MAPPED),), Answered("q", MAPPED, None)),
        ((XorMappedAddress(MAPPED), OtherAddress(OTHER)), Answered("q", MAPPED, OTHER)),
        (
            (XorMappedAddress(MAPPED), OtherAddress(TransportAddress("192.0.2.1", 0))),
            Answered("q", MAPPED, None),
        ),
        ((MappedAddress(MAPPED),), Answered("q", MAPPED, None)),
        ((XorMappedAddress(TransportAddress("203.0.113.5", 0)),), Refused("q")),
        ((), Refused("q")),
    ],
)
def test_answer_ends_the_question(attributes: tuple[Attribute, ...], outcome: BindingEffect[str]) -> None:
    client, transaction_id = asking()
    client.handle_datagram(answer(transaction_id, *attributes), SERVER, NOW)
    assert client.drain() == [outcome]
    assert len(client) == 0
    assert client.next_deadline() is None


def test_refusal_ends_the_question() -> None:
    client, transaction_id = asking()
    refusal = answer(transaction_id, ErrorCode(420), message_class=MessageClass.ERROR_RESPONSE)
    client.handle_datagram(refusal, OTHER, NOW)
    assert client.drain() == []
    client.handle_datagram(refusal, SERVER, NOW)
    assert client.drain() == [Refused("q")]


def test_changed_answer_comes_from_elsewhere_and_its_refusal_from_where_we_asked() -> None:
    change = ChangeRequest(change_port=True)
    client, transaction_id = asking(change=change, answer_from=OTHER)
    client.handle_datagram(answer(transaction_id, XorMappedAddress(MAPPED)), SERVER, NOW)
    assert client.drain() == []
    client.handle_datagram(answer(transaction_id, XorMappedAddress(MAPPED)), OTHER, NOW)
    assert client.drain() == [Answered("q", MAPPED, None)]
    client, transaction_id = asking(change=change, answer_from=OTHER)
    refusal = answer(transaction_id, ErrorCode(420), message_class=MessageClass.ERROR_RESPONSE)
    client.handle_datagram(refusal, SERVER, NOW)
    assert client.drain() == [Refused("q")]


def test_error_from_the_other_address_is_a_refusal_too() -> None:
    client, transaction_id = asking(change=ChangeRequest(change_port=True), answer_from=OTHER)
    refusal = answer(transaction_id, ErrorCode(400), message_class=MessageClass.ERROR_RESPONSE)
    client.handle_datagram(refusal, OTHER, NOW)
    assert client.drain() == [Refused("q")]


def test_silence_is_six_requests_and_then_the_end() -> None:
    client, _ = asking()
    sends = 1
    while (deadline := client.next_deadline()) is not None:
        client.handle_timeout(deadline)
        effects = client.drain()
        sends += sum(isinstance(each, Ask) for each in effects)
    assert sends == 6
    assert effects == [Unanswered("q")]


def test_question_asked_again_takes_the_place_of_the_former() -> None:
    client, former = asking()
    assert client.ask("q", SERVER, NOW)
    (sent,) = client.drain()
    assert isinstance(sent, Ask)
    client.handle_datagram(answer(former, XorMappedAddress(MAPPED)), SERVER, NOW)
    assert client.drain() == []
    client.handle_datagram(answer(sent.transaction_id, XorMappedAddress(MAPPED)), SERVER, NOW)
    assert client.drain() == [Answered("q", MAPPED, None)]


def test_forgotten_question_has_no_outcome() -> None:
    client, transaction_id = asking()
    client.forget("q")
    client.forget("q")
    client.handle_datagram(answer(transaction_id, XorMappedAddress(MAPPED)), SERVER, NOW)
    client.handle_timeout(NOW + 60)
    assert client.drain() == []


def test_questions_are_bounded() -> None:
    client: BindingClient[int] = BindingClient(random.Random(1))
    asked = [client.ask(number, SERVER, NOW) for number in range(MAX_QUESTIONS + 1)]
    assert asked == [True] * MAX_QUESTIONS + [False]
    assert len(client) == MAX_QUESTIONS


def test_request_leaves_room_for_every_address_of_an_answer_over_ipv6() -> None:
    client: BindingClient[str] = BindingClient(random.Random(1))
    client.ask("q", SERVER, NOW)
    (sent,) = client.drain()
    assert isinstance(sent, Ask)
    assert parse(sent.transmit.data).method == BINDING
    # Header, three addresses of 24 bytes, FINGERPRINT.
    assert 3 * len(sent.transmit.data) >= 20 + 3 * 24 + 8
