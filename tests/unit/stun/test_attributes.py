from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import GIVEN, addresses, transaction_ids
from tests.unit.stun.vectors import TRANSACTION_ID
from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.stun import attributes as a
from ztna.stun.message import MAX_ATTRIBUTES

IPV4 = TransportAddress("192.0.2.1", 32853)
IPV6 = TransportAddress("2001:db8:1234:5678:11:2233:4455:6677", 32853)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        pytest.param(a.MappedAddress(IPV4), "00018055c0000201", id="mapped-ipv4"),
        pytest.param(a.MappedAddress(IPV6), "0002805520010db8123456780011223344556677", id="mapped-ipv6"),
        pytest.param(a.XorMappedAddress(IPV4), "0001a147e112a643", id="xor-ipv4"),
        pytest.param(a.XorMappedAddress(IPV6), "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9", id="xor-ipv6"),
        pytest.param(a.ResponseOrigin(IPV4), "00018055c0000201", id="response-origin"),
        pytest.param(a.OtherAddress(IPV4), "00018055c0000201", id="other-address"),
        pytest.param(a.ChangeRequest(), "00000000", id="change-nothing"),
        pytest.param(a.ChangeRequest(change_ip=True), "00000004", id="change-ip"),
        pytest.param(a.ChangeRequest(change_port=True), "00000002", id="change-port"),
        pytest.param(a.ChangeRequest(change_ip=True, change_port=True), "00000006", id="change-both"),
        pytest.param(a.Username("evtj:h6vY"), "6576746a3a68367659", id="username"),
        pytest.param(a.MessageIntegrity(b"\x01" * 20), "01" * 20, id="sha1"),
        pytest.param(a.MessageIntegritySha256(b"\x02" * 32), "02" * 32, id="sha256"),
        pytest.param(a.ErrorCode(420, "no"), "000004146e6f", id="error"),
        pytest.param(a.ErrorCode(699), "00000663", id="error-without-reason"),
        pytest.param(a.UnknownAttributes((0x0003, 0x7FFF)), "00037fff", id="unknown"),
        pytest.param(a.UnknownAttributes(()), "", id="unknown-none"),
        pytest.param(a.Priority(0x6E0001FF), "6e0001ff", id="priority"),
        pytest.param(a.UseCandidate(), "", id="use-candidate"),
        pytest.param(a.Software("é"), "c3a9", id="software"),
        pytest.param(a.Fingerprint(0xE57A3BCF), "e57a3bcf", id="fingerprint"),
        pytest.param(a.IceControlled(0x932FF9B151263B36), "932ff9b151263b36", id="controlled"),
        pytest.param(a.IceControlling(1), "0000000000000001", id="controlling"),
    ],
)
def test_value_has_its_rfc_form_in_both_directions(attribute: a.Attribute, value: str) -> None:
    assert attribute.encode(TRANSACTION_ID).hex() == value
    assert type(attribute).decode(bytes.fromhex(value), TRANSACTION_ID) == attribute


@pytest.mark.parametrize(
    ("attribute_class", "value"),
    [
        pytest.param(a.MappedAddress, "", id="address-empty"),
        pytest.param(a.MappedAddress, "000180", id="address-without-port"),
        pytest.param(a.MappedAddress, "00018055c00002", id="ipv4-short"),
        pytest.param(a.MappedAddress, "00018055c000020100", id="ipv4-long"),
        pytest.param(a.XorMappedAddress, "0002a147e112a643", id="ipv6-with-ipv4-size"),
        pytest.param(a.XorMappedAddress, "0000a147e112a643", id="family-0"),
        pytest.param(a.XorMappedAddress, "0003a147e112a643", id="family-3"),
        pytest.param(a.ChangeRequest, "000002", id="change-request-short"),
        pytest.param(a.Username, "ff", id="username-not-utf8"),
        pytest.param(a.Software, "c3", id="software-cut"),
        pytest.param(a.MessageIntegrity, "00" * 19, id="sha1-short"),
        pytest.param(a.MessageIntegrity, "00" * 21, id="sha1-long"),
        pytest.param(a.MessageIntegritySha256, "00" * 16, id="sha256-truncated"),
        pytest.param(a.ErrorCode, "000004", id="error-short"),
        pytest.param(a.ErrorCode, "00000200", id="error-class-2"),
        pytest.param(a.ErrorCode, "00000700", id="error-class-7"),
        pytest.param(a.ErrorCode, "00000464", id="error-number-100"),
        pytest.param(a.ErrorCode, "00000414ff", id="error-reason-not-utf8"),
        pytest.param(a.UnknownAttributes, "000300", id="unknown-odd"),
        pytest.param(a.UnknownAttributes, "0003" * 33, id="unknown-too-many"),
        pytest.param(a.Priority, "6e0001", id="priority-short"),
        pytest.param(a.UseCandidate, "00", id="use-candidate-with-value"),
        pytest.param(a.Fingerprint, "0000000000", id="fingerprint-long"),
        pytest.param(a.IceControlled, "00000000", id="tie-breaker-short"),
        pytest.param(a.Username, "61" * (a.MAX_USERNAME_BYTES + 1), id="username-too-long"),
        pytest.param(a.Software, "61" * (a.MAX_TEXT_BYTES + 1), id="software-too-long"),
        pytest.param(a.ErrorCode, "00000414" + "61" * (a.MAX_TEXT_BYTES + 1), id="reason-too-long"),
    ],
)
def test_malformed_value_is_the_peers_fault(attribute_class: type[a.Attribute], value: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        attribute_class.decode(bytes.fromhex(value), TRANSACTION_ID)
    assert caught.value.reason == "malformed_attribute"
    assert f"0x{attribute_class.TYPE:04x}" in str(caught.value)


@pytest.mark.parametrize(
    "attribute",
    [
        pytest.param(a.Username("u" * (a.MAX_USERNAME_BYTES + 1)), id="username"),
        pytest.param(a.Software("é" * (a.MAX_TEXT_BYTES // 2 + 1)), id="software-counted-in-bytes"),
        pytest.param(a.ErrorCode(420, "r" * (a.MAX_TEXT_BYTES + 1)), id="reason"),
        pytest.param(a.ErrorCode(299), id="error-below-300"),
        pytest.param(a.ErrorCode(700), id="error-above-699"),
        pytest.param(a.UnknownAttributes(tuple(range(a.MAX_UNKNOWN_TYPES + 1))), id="unknown-too-many"),
        pytest.param(a.UnknownAttributes((0x10000,)), id="unknown-type-too-large"),
        pytest.param(a.UnknownAttributes((-1,)), id="unknown-type-negative"),
        pytest.param(a.Priority(2**32), id="priority-too-large"),
        pytest.param(a.IceControlled(-1), id="tie-breaker-negative"),
        pytest.param(a.Padding(a.MAX_PADDING_BYTES + 1), id="padding-too-long"),
        pytest.param(a.Padding(-1), id="padding-negative"),
    ],
)
def test_value_that_does_not_fit_is_our_fault(attribute: a.Attribute) -> None:
    with pytest.raises(LocalProtocolError):
        attribute.encode(TRANSACTION_ID)


@pytest.mark.parametrize(
    "attribute",
    [
        pytest.param(a.Username("u" * a.MAX_USERNAME_BYTES), id="username"),
        pytest.param(a.Software("s" * a.MAX_TEXT_BYTES), id="software"),
        pytest.param(a.ErrorCode(300, "r" * a.MAX_TEXT_BYTES), id="reason"),
        pytest.param(a.UnknownAttributes(tuple(range(a.MAX_UNKNOWN_TYPES))), id="unknown"),
        pytest.param(a.Padding(a.MAX_PADDING_BYTES), id="padding"),
    ],
)
def test_value_at_its_bound_passes(attribute: a.Attribute) -> None:
    value = attribute.encode(TRANSACTION_ID)
    assert type(attribute).decode(value, TRANSACTION_ID) == attribute


@pytest.mark.parametrize(
    ("attribute_class", "value", "expected"),
    [
        pytest.param(a.ChangeRequest, "fffffff9", a.ChangeRequest(), id="change-request"),
        pytest.param(a.ErrorCode, "fffffc14", a.ErrorCode(420), id="error-code"),
        pytest.param(a.MappedAddress, "ff018055c0000201", a.MappedAddress(IPV4), id="address"),
    ],
)
def test_reserved_bits_are_ignored(
    attribute_class: type[a.Attribute], value: str, expected: a.Attribute
) -> None:
    assert attribute_class.decode(bytes.fromhex(value), TRANSACTION_ID) == expected


def test_zone_of_a_link_local_address_stays_at_home() -> None:
    value = a.XorMappedAddress(TransportAddress("fe80::1%eth0", 1)).encode(TRANSACTION_ID)
    assert a.XorMappedAddress.decode(value, TRANSACTION_ID).address == TransportAddress("fe80::1", 1)


def test_ipv4_mapped_address_is_read_as_ipv4() -> None:
    value = a.MappedAddress(TransportAddress("::ffff:c000:201", 1)).encode(TRANSACTION_ID)
    assert len(value) == 20
    assert a.MappedAddress.decode(value, TRANSACTION_ID).address == TransportAddress("192.0.2.1", 1)


@given(addresses, transaction_ids)
def test_masked_address_survives_with_its_transaction_id(
    address: TransportAddress, transaction_id: bytes
) -> None:
    value = a.XorMappedAddress(address).encode(transaction_id)
    assert a.XorMappedAddress.decode(value, transaction_id).address == address


@given(st.sampled_from(list(a.ATTRIBUTES.values())), st.binary(max_size=40), transaction_ids)
def test_arbitrary_value_decodes_or_is_the_peers_fault(
    attribute_class: type[a.Attribute], value: bytes, transaction_id: bytes
) -> None:
    try:
        attribute = attribute_class.decode(value, transaction_id)
    except RemoteProtocolError:
        return
    again = attribute_class.decode(attribute.encode(transaction_id), transaction_id)
    assert again == attribute


def test_attributes_are_immutable_values_of_their_own_class() -> None:
    assert len({a.Priority(1), a.Priority(1), a.IceControlled(1), a.IceControlling(1)}) == 3
    assert not hasattr(a.Priority(1), "__dict__")
    attribute: Any = a.Priority(1)
    with pytest.raises(AttributeError):
        attribute.value = 2


def test_table_holds_every_attribute_once_and_answers_can_list_a_full_message() -> None:
    sealing = {a.MessageIntegrity, a.MessageIntegritySha256, a.Fingerprint}
    assert set(a.ATTRIBUTES.values()) == set(GIVEN) | sealing
    assert all(a.ATTRIBUTES[item.TYPE] is item for item in a.ATTRIBUTES.values())
    assert a.MAX_UNKNOWN_TYPES == MAX_ATTRIBUTES
