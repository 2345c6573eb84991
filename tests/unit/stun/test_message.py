from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import messages
from tests.unit.stun.vectors import IPV4_RESPONSE, IPV6_RESPONSE, PASSWORD, REQUEST, TRANSACTION_ID
from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.stun import integrity
from ztna.stun.attributes import (
    ATTRIBUTES,
    MAX_PADDING_BYTES,
    MAX_TEXT_BYTES,
    Attribute,
    Fingerprint,
    IceControlled,
    MessageIntegrity,
    MessageIntegritySha256,
    Priority,
    Software,
    UseCandidate,
    Username,
    XorMappedAddress,
)
from ztna.stun.integrity import Integrity
from ztna.stun.message import BINDING, MAX_ATTRIBUTES, Message, MessageClass, build, parse

KEY = b"secret"
SOFTWARE = struct.pack("!HH4s", 0x8022, 4, b"soft")


def message_of(*attributes: Attribute) -> Message:
    return Message(BINDING, MessageClass.REQUEST, TRANSACTION_ID, attributes)


def raw(body: bytes = b"", message_type: int = 0x0001) -> bytes:
    return struct.pack("!HHI12s", message_type, len(body), 0x2112A442, TRANSACTION_ID) + body


def extended(data: bytes, body: bytes) -> bytes:
    """`data` with more attributes, its header's length made right."""
    return raw(data[20:] + body)


def tlv(attribute_type: int, value: bytes = b"") -> bytes:
    return struct.pack("!HH", attribute_type, len(value)) + value + bytes(-len(value) % 4)


def with_fingerprint(data: bytes) -> bytes:
    value = integrity.fingerprint(data).to_bytes(4, "big")
    return extended(data, tlv(Fingerprint.TYPE, value))


def reason_of(data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        parse(data)
    return caught.value.reason


class TestRfc5769:
    def test_request_is_read_and_verified(self) -> None:
        message = parse(REQUEST)
        assert (message.method, message.message_class) == (BINDING, MessageClass.REQUEST)
        assert message.transaction_id == TRANSACTION_ID
        assert message.attributes[:4] == (
            Software("STUN test client"),
            Priority(0x6E0001FF),
            IceControlled(0x932FF9B151263B36),
            Username("evtj:h6vY"),
        )
        assert message.find(Fingerprint) == Fingerprint(0xE57A3BCF)
        assert message.verify_integrity(PASSWORD)
        assert not message.verify_integrity(b"another")

    @pytest.mark.parametrize(
        ("data", "host"),
        [
            pytest.param(IPV4_RESPONSE, "192.0.2.1", id="ipv4"),
            pytest.param(IPV6_RESPONSE, "2001:db8:1234:5678:11:2233:4455:6677", id="ipv6"),
        ],
    )
    def test_response_is_read_and_verified(self, data: bytes, host: str) -> None:
        message = parse(data)
        assert message.message_class is MessageClass.SUCCESS_RESPONSE
        assert message.find(XorMappedAddress) == XorMappedAddress(TransportAddress(host, 32853))
        assert message.find(Software) == Software("test vector")
        assert message.verify_integrity(PASSWORD)

    # Not the type of FINGERPRINT: without it the message is whole, and what follows integrity is ignored.
    @pytest.mark.parametrize("index", [index for index in range(len(REQUEST)) if index not in {100, 101}])
    def test_one_flipped_bit_is_noticed(self, index: int) -> None:
        data = bytearray(REQUEST)
        data[index] ^= 0x01
        with pytest.raises(RemoteProtocolError):
            parse(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "short_header", id="empty"),
        pytest.param(raw()[:19], "short_header", id="19-bytes"),
        pytest.param(raw(message_type=0x4001), "not_stun", id="second-bit-set"),
        pytest.param(raw(message_type=0x8001), "not_stun", id="first-bit-set"),
        pytest.param(raw()[:4] + bytes(4) + raw()[8:], "bad_cookie", id="no-cookie"),
        pytest.param(raw() + b"\0\0\0\0", "bad_length", id="trailing-bytes"),
        pytest.param(raw(SOFTWARE)[:-4], "bad_length", id="cut"),
        pytest.param(raw(SOFTWARE + b"\0"), "bad_length", id="not-a-multiple-of-4"),
        pytest.param(raw(b"\x80\x22\x00\x01"), "attribute_overrun", id="value-missing"),
        pytest.param(raw(b"\x80\x22\x00\x05soft"), "attribute_overrun", id="value-one-short"),
        pytest.param(raw(b"\x80\x22\xff\xffsoft"), "attribute_overrun", id="value-64k"),
        pytest.param(raw(tlv(0x8030) * (MAX_ATTRIBUTES + 1)), "too_many_attributes", id="too-many"),
        pytest.param(raw(tlv(Priority.TYPE, b"\0")), "malformed_attribute", id="bad-value"),
        pytest.param(raw(tlv(Fingerprint.TYPE, bytes(4))), "bad_fingerprint", id="wrong-crc"),
        pytest.param(raw(tlv(Fingerprint.TYPE, bytes(8))), "fingerprint_not_last", id="crc-too-long"),
        pytest.param(extended(with_fingerprint(raw()), SOFTWARE), "fingerprint_not_last", id="followed"),
    ],
)
def test_broken_datagram_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_as_many_attributes_as_allowed_pass() -> None:
    assert parse(raw(tlv(0x8030) * MAX_ATTRIBUTES)).attributes == ()


def test_fingerprint_shorter_than_its_field_is_malformed_even_when_it_matches() -> None:
    # The mask makes the checksum arbitrary, so search for a message whose value fits one byte less.
    for nonce in itertools.count():
        data = raw(tlv(0x8030, struct.pack("!I", nonce)))
        if integrity.fingerprint(data) < 1 << 24:
            break
    value = integrity.fingerprint(data).to_bytes(3, "big")
    assert reason_of(extended(data, tlv(Fingerprint.TYPE, value))) == "malformed_attribute"


def test_padding_of_any_content_is_ignored() -> None:
    assert parse(raw(b"\x80\x22\x00\x01a\xff\xff\xff")).attributes == (Software("a"),)


def test_first_of_several_attributes_counts_and_the_others_are_not_even_read() -> None:
    body = tlv(Priority.TYPE, b"\0\0\0\1") + tlv(Priority.TYPE, b"\0\0\0\2") + tlv(Priority.TYPE, b"bad")
    assert parse(raw(body)).attributes == (Priority(1),)


def test_unknown_required_attributes_are_reported_once_and_optional_ones_skipped() -> None:
    body = tlv(0x7FFF) + tlv(0x8000, b"x") + tlv(0x0013, b"y") + tlv(0x7FFF)
    message = parse(raw(body))
    assert message.unknown_required == (0x7FFF, 0x0013)
    assert message.attributes == ()


class TestAfterIntegrity:
    @pytest.mark.parametrize(
        "follower",
        [
            pytest.param(tlv(UseCandidate.TYPE), id="known"),
            pytest.param(tlv(0x7FFF), id="unknown-required"),
            pytest.param(tlv(Priority.TYPE, b"bad"), id="malformed"),
            pytest.param(tlv(MessageIntegrity.TYPE, bytes(20)), id="second-integrity"),
        ],
    )
    @pytest.mark.parametrize("algorithms", Integrity)
    def test_unprotected_attribute_is_ignored(self, algorithms: Integrity, follower: bytes) -> None:
        sealed = build(message_of(Priority(1)), key=KEY, algorithms=algorithms)
        message = parse(with_fingerprint(extended(sealed, follower)))
        assert message.find(UseCandidate) is None
        assert message.unknown_required == ()
        assert message.find(Fingerprint) is not None
        assert message.verify_integrity(KEY)

    def test_sha1_after_sha256_is_ignored(self) -> None:
        sealed = build(message_of(), key=KEY, algorithms=Integrity.SHA256)
        message = parse(extended(sealed, tlv(MessageIntegrity.TYPE, bytes(20))))
        assert message.find(MessageIntegrity) is None
        assert message.verify_integrity(KEY)

    def test_overrun_is_still_refused(self) -> None:
        sealed = build(message_of(), key=KEY)
        assert reason_of(extended(sealed, b"\x80\x22\x00\x05soft")) == "attribute_overrun"


class TestVerifyIntegrity:
    def test_message_without_integrity_is_not_verified(self) -> None:
        assert not parse(build(message_of())).verify_integrity(KEY)

    def test_message_of_our_own_is_not_verified(self) -> None:
        assert not message_of().verify_integrity(KEY)

    @pytest.mark.parametrize("algorithms", Integrity)
    @pytest.mark.parametrize("has_fingerprint", [False, True], ids=["bare", "fingerprint"])
    def test_sealed_message_verifies_with_its_key_alone(
        self, algorithms: Integrity, has_fingerprint: bool
    ) -> None:
        data = build(
            message_of(Priority(1)), key=KEY, algorithms=algorithms, with_fingerprint=has_fingerprint
        )
        message = parse(data)
        assert message.verify_integrity(KEY)
        assert not message.verify_integrity(KEY + b"x")
        assert (message.find(MessageIntegrity) is not None) == (Integrity.SHA1 in algorithms)
        assert (message.find(MessageIntegritySha256) is not None) == (Integrity.SHA256 in algorithms)
        assert (message.find(Fingerprint) is not None) == has_fingerprint

    def test_wrong_sha256_is_not_saved_by_a_right_sha1(self) -> None:
        sealed = build(message_of(), key=KEY)
        assert not parse(extended(sealed, tlv(MessageIntegritySha256.TYPE, bytes(32)))).verify_integrity(KEY)

    @pytest.mark.parametrize("algorithms", Integrity)
    def test_changed_message_does_not_verify(self, algorithms: Integrity) -> None:
        data = bytearray(build(message_of(Priority(1)), key=KEY, algorithms=algorithms))
        data[27] ^= 1
        assert not parse(bytes(data)).verify_integrity(KEY)


class TestBuild:
    def test_request_without_attributes_is_a_header(self) -> None:
        assert build(message_of()) == raw()

    @pytest.mark.parametrize(
        ("method", "message_class", "message_type"),
        [
            pytest.param(BINDING, MessageClass.REQUEST, 0x0001, id="request"),
            pytest.param(BINDING, MessageClass.INDICATION, 0x0011, id="indication"),
            pytest.param(BINDING, MessageClass.SUCCESS_RESPONSE, 0x0101, id="success"),
            pytest.param(BINDING, MessageClass.ERROR_RESPONSE, 0x0111, id="error"),
            pytest.param(0xFFF, MessageClass.REQUEST, 0x3EEF, id="all-method-bits"),
            pytest.param(0x000, MessageClass.ERROR_RESPONSE, 0x0110, id="all-class-bits"),
        ],
    )
    def test_method_and_class_are_interleaved(
        self, method: int, message_class: MessageClass, message_type: int
    ) -> None:
        message = Message(method, message_class, TRANSACTION_ID)
        assert build(message) == raw(message_type=message_type)
        assert parse(raw(message_type=message_type)) == message

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(Message(0x1000, MessageClass.REQUEST, TRANSACTION_ID), id="method-too-large"),
            pytest.param(Message(-1, MessageClass.REQUEST, TRANSACTION_ID), id="method-negative"),
            pytest.param(Message(BINDING, MessageClass.REQUEST, b"short"), id="transaction-id"),
            pytest.param(message_of(*[Priority(1)] * (MAX_ATTRIBUTES - 2)), id="too-many"),
            pytest.param(message_of(Priority(1), Priority(2)), id="twice"),
            pytest.param(message_of(Fingerprint(0)), id="fingerprint-given"),
            pytest.param(message_of(MessageIntegrity(bytes(20))), id="sha1-given"),
            pytest.param(message_of(MessageIntegritySha256(bytes(32))), id="sha256-given"),
        ],
    )
    def test_message_that_makes_no_sense_is_our_fault(self, message: Message) -> None:
        with pytest.raises(LocalProtocolError):
            build(message)

    def test_longest_message_fits_its_length_field(self) -> None:
        assert MAX_ATTRIBUTES * (4 + 4 + MAX_TEXT_BYTES + 1) + MAX_PADDING_BYTES < 1 << 16


@given(messages, st.none() | st.binary(max_size=64), st.sampled_from(list(Integrity)), st.booleans())
def test_built_message_is_read_back(
    message: Message, key: bytes | None, algorithms: Integrity, has_fingerprint: bool
) -> None:
    data = build(message, key=key, algorithms=algorithms, with_fingerprint=has_fingerprint)
    again = parse(data)
    assert again.attributes[: len(message.attributes)] == message.attributes
    assert (again.method, again.message_class) == (message.method, message.message_class)
    assert again.transaction_id == message.transaction_id
    assert again.unknown_required == ()
    assert again.raw == data
    assert again.verify_integrity(key or b"") == (key is not None)


def parse_or_refuse(data: bytes) -> None:
    try:
        message = parse(data)
    except RemoteProtocolError:
        return
    assert len(message.attributes) + len(message.unknown_required) <= MAX_ATTRIBUTES


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_remote_protocol_error(data: bytes) -> None:
    parse_or_refuse(data)


@given(
    st.integers(0, 0x3FFF),
    st.lists(
        st.tuples(
            st.sampled_from([*ATTRIBUTES, 0x7FFF, 0x8000]) | st.integers(0, 0xFFFF), st.binary(max_size=40)
        )
    ),
)
def test_arbitrary_attributes_raise_nothing_but_remote_protocol_error(
    message_type: int, items: list[tuple[int, bytes]]
) -> None:
    parse_or_refuse(raw(b"".join(tlv(*item) for item in items), message_type))


@given(messages, st.data())
def test_damaged_message_raises_nothing_but_remote_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    damaged = bytearray(build(message, key=KEY))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    parse_or_refuse(bytes(damaged))
