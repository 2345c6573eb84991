"""Our codec against aioice's: two implementations must agree on every byte that matters."""

from __future__ import annotations

from typing import Any

import pytest
from aioice import stun
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import addresses, transaction_ids
from tests.unit.stun.vectors import TRANSACTION_ID
from ztna.address import TransportAddress
from ztna.stun import attributes as a
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

KEY = b"password"
CLASSES = [
    pytest.param(MessageClass.REQUEST, stun.Class.REQUEST, id="request"),
    pytest.param(MessageClass.INDICATION, stun.Class.INDICATION, id="indication"),
    pytest.param(MessageClass.SUCCESS_RESPONSE, stun.Class.RESPONSE, id="success"),
    pytest.param(MessageClass.ERROR_RESPONSE, stun.Class.ERROR, id="error"),
]
IPV4 = TransportAddress("192.0.2.1", 3478)
IPV6 = TransportAddress("2001:db8::1", 65535)
ATTRIBUTES = [
    pytest.param(a.MappedAddress(IPV4), "MAPPED-ADDRESS", ("192.0.2.1", 3478), id="mapped"),
    pytest.param(a.XorMappedAddress(IPV4), "XOR-MAPPED-ADDRESS", ("192.0.2.1", 3478), id="xor-ipv4"),
    pytest.param(a.XorMappedAddress(IPV6), "XOR-MAPPED-ADDRESS", ("2001:db8::1", 65535), id="xor-ipv6"),
    pytest.param(a.ResponseOrigin(IPV6), "RESPONSE-ORIGIN", ("2001:db8::1", 65535), id="origin"),
    pytest.param(a.OtherAddress(IPV4), "OTHER-ADDRESS", ("192.0.2.1", 3478), id="other"),
    pytest.param(a.ChangeRequest(change_port=True), "CHANGE-REQUEST", 2, id="change-request"),
    pytest.param(a.Username("abcd:efgh"), "USERNAME", "abcd:efgh", id="username"),
    pytest.param(a.ErrorCode(487, "Role Conflict"), "ERROR-CODE", (487, "Role Conflict"), id="error-code"),
    pytest.param(a.Priority(1862270847), "PRIORITY", 1862270847, id="priority"),
    pytest.param(a.UseCandidate(), "USE-CANDIDATE", None, id="use-candidate"),
    pytest.param(a.Software("ztna"), "SOFTWARE", "ztna", id="software"),
    pytest.param(a.IceControlled(2**63), "ICE-CONTROLLED", 2**63, id="controlled"),
    pytest.param(a.IceControlling(1), "ICE-CONTROLLING", 1, id="controlling"),
]


@pytest.mark.parametrize(("message_class", "their_class"), CLASSES)
@pytest.mark.parametrize(("attribute", "name", "value"), ATTRIBUTES)
def test_what_we_seal_they_read_and_verify(
    message_class: MessageClass, their_class: stun.Class, attribute: a.Attribute, name: str, value: Any
) -> None:
    message = Message(BINDING, message_class, TRANSACTION_ID, (attribute,))
    theirs = stun.parse_message(build(message, key=KEY, with_fingerprint=True))
    assert (theirs.message_method, theirs.message_class) == (stun.Method.BINDING, their_class)
    assert theirs.transaction_id == TRANSACTION_ID
    assert theirs.attributes[name] == value
    assert "FINGERPRINT" in theirs.attributes
    assert theirs.check_message_integrity(KEY)
    assert not theirs.check_message_integrity(b"other")


@pytest.mark.parametrize(("message_class", "their_class"), CLASSES)
@pytest.mark.parametrize(("attribute", "name", "value"), ATTRIBUTES)
def test_what_they_seal_we_read_and_verify(
    message_class: MessageClass, their_class: stun.Class, attribute: a.Attribute, name: str, value: Any
) -> None:
    theirs = stun.Message(stun.Method.BINDING, their_class, TRANSACTION_ID, {name: value})
    theirs.add_message_integrity(KEY)
    message = parse(bytes(theirs))
    assert (message.method, message.message_class) == (BINDING, message_class)
    assert message.find(type(attribute)) == attribute
    assert message.verify_integrity(KEY)
    assert not message.verify_integrity(b"other")


@given(transaction_ids, addresses, st.binary(min_size=1, max_size=80))
def test_both_write_the_same_response(transaction_id: bytes, address: TransportAddress, key: bytes) -> None:
    mapped = (address.host, address.port)
    theirs = stun.Message(
        stun.Method.BINDING, stun.Class.RESPONSE, transaction_id, {"XOR-MAPPED-ADDRESS": mapped}
    )
    theirs.add_message_integrity(key)
    ours = Message(BINDING, MessageClass.SUCCESS_RESPONSE, transaction_id, (a.XorMappedAddress(address),))
    assert build(ours, key=key, with_fingerprint=True) == bytes(theirs)
