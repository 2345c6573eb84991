"""STUN messages: strict parsing and building (RFC 8489 §5, §14).

`parse` turns a datagram into a `Message` or raises `RemoteProtocolError`, nothing else. It checks framing and
FINGERPRINT; integrity needs a key, so whoever has it calls `Message.verify_integrity`. Attributes that nobody
vouches for, because they follow the integrity attribute, never become visible.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeVar

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.stun import integrity
from ztna.stun.attributes import (
    ATTRIBUTES,
    FIRST_OPTIONAL_TYPE,
    MAGIC_COOKIE,
    Attribute,
    Fingerprint,
    MessageIntegrity,
    MessageIntegritySha256,
)
from ztna.stun.integrity import ATTRIBUTE_HEADER_BYTES, HEADER_BYTES, Integrity

TRANSACTION_ID_BYTES: Final = 12

# The fullest message of ICE or NAT behaviour discovery has nine; the rest is room for extensions. It bounds
# the work one datagram can ask for, and the answer that lists what we did not understand.
MAX_ATTRIBUTES: Final = 32

BINDING: Final = 0x001
"""The Binding method, the only one that we speak."""

_MAX_METHOD = 0xFFF
_METHOD_BITS_ABOVE_TYPE = 0xC000
_HEADER = struct.Struct("!HHI12s")
_ATTRIBUTE_HEADER = struct.Struct("!HH")
_SEALING = frozenset({MessageIntegrity.TYPE, MessageIntegritySha256.TYPE, Fingerprint.TYPE})

AttributeT = TypeVar("AttributeT", bound=Attribute)


class MessageClass(IntEnum):
    """Class of a message (RFC 8489 §5)."""

    REQUEST = 0b00
    INDICATION = 0b01
    SUCCESS_RESPONSE = 0b10
    ERROR_RESPONSE = 0b11


@dataclass(frozen=True, slots=True)
class Message:
    """One STUN message.

    Attributes:
        method: 12 bits; not only the methods that we know.
        message_class: request, indication, success or error response.
        transaction_id: 12 bytes; whoever starts a transaction draws them from a CSPRNG (RFC 8489 §5).
        attributes: those understood, in order, the first of each type.
        unknown_required: comprehension-required types that were not understood, each once, in order; a
            request with any is answered 420, anything else with any is dropped (RFC 8489 §6.3).
        raw: the datagram that was parsed; empty for a message of our own.
    """

    method: int
    message_class: MessageClass
    transaction_id: bytes
    attributes: tuple[Attribute, ...] = ()
    unknown_required: tuple[int, ...] = ()
    raw: bytes = field(default=b"", compare=False, repr=False)
    # Where each integrity attribute starts in `raw`.
    _sha1_offset: int = field(default=0, compare=False, repr=False)
    _sha256_offset: int = field(default=0, compare=False, repr=False)

    def find(self, attribute_class: type[AttributeT]) -> AttributeT | None:
        """The attribute of this class, or None."""
        for attribute in self.attributes:
            if isinstance(attribute, attribute_class):
                return attribute
        return None

    def verify_integrity(self, key: bytes) -> bool:
        """Whether the message was made by someone who holds `key`; False when it carries no integrity.

        The stronger attribute decides when both are there (RFC 8489 §9.1.3). Comparison takes constant time.
        """
        sha256 = self.find(MessageIntegritySha256)
        if sha256 is not None:
            return integrity.verify_sha256(self.raw[: self._sha256_offset], key, sha256.digest)
        sha1 = self.find(MessageIntegrity)
        if sha1 is not None:
            return integrity.verify_sha1(self.raw[: self._sha1_offset], key, sha1.digest)
        return False


def parse(data: bytes) -> Message:
    """Read one datagram (RFC 8489 §5, §14).

    Of several attributes of one type the first counts. After MESSAGE-INTEGRITY only MESSAGE-INTEGRITY-SHA256
    and FINGERPRINT count, after MESSAGE-INTEGRITY-SHA256 only FINGERPRINT; the rest is skipped unread.

    Raises `RemoteProtocolError` with reason `short_header`, `not_stun`, `bad_cookie`, `bad_length`,
    `attribute_overrun`, `too_many_attributes`, `malformed_attribute`, `fingerprint_not_last` or
    `bad_fingerprint`.
    """
    method, message_class, transaction_id = _parse_header(data)
    found: dict[int, Attribute] = {}
    offsets: dict[int, int] = {}
    unknown: dict[int, None] = {}
    for attribute_type, value, offset in _walk(data):
        if attribute_type == Fingerprint.TYPE:
            _require_fingerprint(data, offset, value)
        elif not _is_vouched_for(attribute_type, found):
            continue
        if attribute_type in found:
            continue
        attribute_class = ATTRIBUTES.get(attribute_type)
        if attribute_class is not None:
            found[attribute_type] = attribute_class.decode(value, transaction_id)
            offsets[attribute_type] = offset
        elif attribute_type < FIRST_OPTIONAL_TYPE:
            unknown[attribute_type] = None
    return Message(
        method=method,
        message_class=message_class,
        transaction_id=transaction_id,
        attributes=tuple(found.values()),
        unknown_required=tuple(unknown),
        raw=data,
        _sha1_offset=offsets.get(MessageIntegrity.TYPE, 0),
        _sha256_offset=offsets.get(MessageIntegritySha256.TYPE, 0),
    )


def build(
    message: Message,
    *,
    key: bytes | None = None,
    algorithms: Integrity = Integrity.SHA1,
    with_fingerprint: bool = False,
) -> bytes:
    """Write a message; with `key` it is sealed by the integrity attributes of `algorithms`.

    Raises `LocalProtocolError` for a value that does not fit its field, a repeated type, so many attributes
    that the sealing ones could exceed `MAX_ATTRIBUTES`, or a given integrity or FINGERPRINT attribute
    (only this function can fill those).
    """
    _require_buildable(message)
    buffer = bytearray(HEADER_BYTES)
    for attribute in message.attributes:
        _append(buffer, attribute.TYPE, attribute.encode(message.transaction_id))
    message_type = _pack_type(message.method, message.message_class)
    _HEADER.pack_into(buffer, 0, message_type, 0, MAGIC_COOKIE, message.transaction_id)
    if key is not None and Integrity.SHA1 in algorithms:
        _append(buffer, MessageIntegrity.TYPE, integrity.integrity_sha1(bytes(buffer), key))
    if key is not None and Integrity.SHA256 in algorithms:
        _append(buffer, MessageIntegritySha256.TYPE, integrity.integrity_sha256(bytes(buffer), key))
    if with_fingerprint:
        value = integrity.fingerprint(bytes(buffer)).to_bytes(integrity.FINGERPRINT_BYTES, "big")
        _append(buffer, Fingerprint.TYPE, value)
    # No overflow: MAX_ATTRIBUTES texts of MAX_TEXT_BYTES and one padding stay far below 64 KiB.
    struct.pack_into("!H", buffer, 2, len(buffer) - HEADER_BYTES)
    return bytes(buffer)


def _parse_header(data: bytes) -> tuple[int, MessageClass, bytes]:
    if len(data) < HEADER_BYTES:
        raise RemoteProtocolError("short_header", f"{len(data)} bytes")
    message_type, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if message_type & _METHOD_BITS_ABOVE_TYPE:
        raise RemoteProtocolError("not_stun", f"first byte 0x{data[0]:02x}")
    if cookie != MAGIC_COOKIE:
        raise RemoteProtocolError("bad_cookie", f"0x{cookie:08x}")
    if length % 4 or length != len(data) - HEADER_BYTES:
        raise RemoteProtocolError("bad_length", f"{length} announced, {len(data) - HEADER_BYTES} there")
    method, message_class = _unpack_type(message_type)
    return method, message_class, transaction_id


def _walk(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield type, value and offset of each attribute.

    Offsets and the end are multiples of 4, so a header is always whole and padding always fits.
    """
    offset = HEADER_BYTES
    count = 0
    while offset < len(data):
        count += 1
        if count > MAX_ATTRIBUTES:
            raise RemoteProtocolError("too_many_attributes", f"more than {MAX_ATTRIBUTES}")
        attribute_type, size = _ATTRIBUTE_HEADER.unpack_from(data, offset)
        start = offset + ATTRIBUTE_HEADER_BYTES
        if start + size > len(data):
            raise RemoteProtocolError(
                "attribute_overrun", f"type 0x{attribute_type:04x} announces {size} bytes at {offset}"
            )
        yield attribute_type, data[start : start + size], offset
        offset = start + size + -size % 4


def _is_vouched_for(attribute_type: int, found: dict[int, Attribute]) -> bool:
    if MessageIntegritySha256.TYPE in found:
        return False
    return MessageIntegrity.TYPE not in found or attribute_type == MessageIntegritySha256.TYPE


def _require_fingerprint(data: bytes, offset: int, value: bytes) -> None:
    if offset + ATTRIBUTE_HEADER_BYTES + integrity.FINGERPRINT_BYTES < len(data):
        raise RemoteProtocolError("fingerprint_not_last", f"at {offset} of {len(data)} bytes")
    if int.from_bytes(value, "big") != integrity.fingerprint(data[:offset]):
        raise RemoteProtocolError("bad_fingerprint")


def _require_buildable(message: Message) -> None:
    if not 0 <= message.method <= _MAX_METHOD:
        raise LocalProtocolError(f"method {message.method} does not fit 12 bits")
    if len(message.transaction_id) != TRANSACTION_ID_BYTES:
        raise LocalProtocolError(f"a transaction id of {len(message.transaction_id)} bytes")
    if len(message.attributes) > MAX_ATTRIBUTES - len(_SEALING):
        raise LocalProtocolError(f"{len(message.attributes)} attributes leave no room for integrity")
    types = {attribute.TYPE for attribute in message.attributes}
    if len(types) < len(message.attributes):
        raise LocalProtocolError("an attribute type occurs twice; receivers would ignore the second")
    if types & _SEALING:
        raise LocalProtocolError("integrity and FINGERPRINT are computed, not given")


def _append(buffer: bytearray, attribute_type: int, value: bytes) -> None:
    buffer += _ATTRIBUTE_HEADER.pack(attribute_type, len(value)) + value + bytes(-len(value) % 4)


def _pack_type(method: int, message_class: MessageClass) -> int:
    """Interleave: the class holds bits 4 and 8, the method the twelve others (RFC 8489 §5, figure 3)."""
    return (
        (method & 0xF80) << 2
        | (method & 0x070) << 1
        | (method & 0x00F)
        | (message_class & 0b10) << 7
        | (message_class & 0b01) << 4
    )


def _unpack_type(message_type: int) -> tuple[int, MessageClass]:
    method = (message_type >> 2 & 0xF80) | (message_type >> 1 & 0x070) | (message_type & 0x00F)
    return method, MessageClass((message_type >> 7 & 0b10) | (message_type >> 4 & 0b01))
