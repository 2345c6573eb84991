"""The STUN attributes that we understand: one small value class each, and the table of them all.

A class knows its own type number and codec; `decode` raises `RemoteProtocolError` for a value that is not
exactly what the RFC allows, `encode` raises `LocalProtocolError` for one that does not fit its field. Message
framing (order, padding, duplicates, unknown types) is the concern of `message.py`.
"""

from __future__ import annotations

import ipaddress
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Self

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.stun.integrity import SHA1_BYTES, SHA256_BYTES

MAGIC_COOKIE = 0x2112A442

# RFC 8489 §14.3: USERNAME is shorter than 509 bytes.
MAX_USERNAME_BYTES = 508
# RFC 8489 §14.8, §14.14: fewer than 128 characters, which older encodings stretched to at most 763 bytes.
MAX_TEXT_BYTES = 763
# A message of ours holds no more attributes than this (`message.MAX_ATTRIBUTES`), so no honest answer lists
# more types; it keeps a hostile 64 KiB list from becoming 32,000 integers.
MAX_UNKNOWN_TYPES = 32

# A datagram of Ethernet size; nothing that a path is asked to prove is larger.
MAX_PADDING_BYTES = 1500

# Types below this one must be understood by whoever processes the message (RFC 8489 §14).
FIRST_OPTIONAL_TYPE = 0x8000

_MAX_TYPE = 0xFFFF
_FAMILY_IPV4 = 0x01
_FAMILY_IPV6 = 0x02
_ADDRESS_BYTES = {_FAMILY_IPV4: 4, _FAMILY_IPV6: 16}
_ADDRESS_HEADER_BYTES = 4
_ERROR_HEADER_BYTES = 4
_CHANGE_IP = 0x4
_CHANGE_PORT = 0x2
_ERROR_CLASSES = range(3, 7)
_ERROR_NUMBERS = range(100)


class Attribute(ABC):
    """One attribute of a message: an immutable value that can write itself."""

    __slots__ = ()

    TYPE: ClassVar[int]

    @abstractmethod
    def encode(self, transaction_id: bytes, /) -> bytes:
        """Bytes of the value, without header and padding."""

    @classmethod
    @abstractmethod
    def decode(cls, value: bytes, transaction_id: bytes, /) -> Self:
        """Read the bytes of a value, without header and padding."""


@dataclass(frozen=True, slots=True)
class _Address(Attribute):
    """Family, port, address (RFC 8489 §14.1).

    A zone (`%eth0`) has no meaning to anyone else and is not written; an IPv4-mapped IPv6 address is read as
    the IPv4 address that it is.
    """

    address: TransportAddress

    def encode(self, _transaction_id: bytes, /) -> bytes:
        return _pack_address(self.address, 0)

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        return cls(_unpack_address(cls.TYPE, value, 0))


@dataclass(frozen=True, slots=True)
class _Text(Attribute):
    """UTF-8 of bounded length."""

    MAX_BYTES: ClassVar[int] = MAX_TEXT_BYTES

    text: str

    def encode(self, _transaction_id: bytes, /) -> bytes:
        return _pack_text(self.text, self.MAX_BYTES)

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        return cls(_unpack_text(cls.TYPE, value, cls.MAX_BYTES))


@dataclass(frozen=True, slots=True)
class _Unsigned(Attribute):
    """An unsigned integer in network byte order."""

    BYTES: ClassVar[int]

    value: int

    def encode(self, _transaction_id: bytes, /) -> bytes:
        try:
            return self.value.to_bytes(self.BYTES, "big")
        except OverflowError as error:
            raise LocalProtocolError(f"{self.value} does not fit {self.BYTES} unsigned bytes") from error

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        _require_size(cls.TYPE, value, cls.BYTES)
        return cls(int.from_bytes(value, "big"))


@dataclass(frozen=True, slots=True)
class _Digest(Attribute):
    """An HMAC; `integrity.py` says over what."""

    BYTES: ClassVar[int]

    digest: bytes

    def encode(self, _transaction_id: bytes, /) -> bytes:
        return self.digest

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        _require_size(cls.TYPE, value, cls.BYTES)
        return cls(value)


class MappedAddress(_Address):
    """MAPPED-ADDRESS (RFC 8489 §14.1): only servers older than RFC 5389 need it."""

    __slots__ = ()
    TYPE = 0x0001


@dataclass(frozen=True, slots=True)
class ChangeRequest(Attribute):
    """CHANGE-REQUEST (RFC 5780 §7.2): from which other address or port the answer shall come."""

    TYPE: ClassVar[int] = 0x0003

    change_ip: bool = False
    change_port: bool = False

    def encode(self, _transaction_id: bytes, /) -> bytes:
        """Write the two flags."""
        return struct.pack("!I", self.change_ip * _CHANGE_IP | self.change_port * _CHANGE_PORT)

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        """Read the two flags; the reserved bits are ignored."""
        _require_size(cls.TYPE, value, 4)
        flags = value[3]
        return cls(bool(flags & _CHANGE_IP), bool(flags & _CHANGE_PORT))


class SourceAddress(_Address):
    """SOURCE-ADDRESS (RFC 3489 §11.2.5): RESPONSE-ORIGIN as it was called for clients of RFC 3489."""

    __slots__ = ()
    TYPE = 0x0004


class ChangedAddress(_Address):
    """CHANGED-ADDRESS (RFC 3489 §11.2.3): OTHER-ADDRESS as it was called for clients of RFC 3489."""

    __slots__ = ()
    TYPE = 0x0005


class Username(_Text):
    """USERNAME (RFC 8489 §14.3): in a check `<receiver's ufrag>:<sender's ufrag>` (RFC 8445 §7.2.2)."""

    __slots__ = ()
    TYPE = 0x0006
    MAX_BYTES = MAX_USERNAME_BYTES


class MessageIntegrity(_Digest):
    """MESSAGE-INTEGRITY (RFC 8489 §14.5)."""

    __slots__ = ()
    TYPE = 0x0008
    BYTES = SHA1_BYTES


@dataclass(frozen=True, slots=True)
class ErrorCode(Attribute):
    """ERROR-CODE (RFC 8489 §14.8).

    Attributes:
        code: 300 to 699.
        reason: for people; may be empty.
    """

    TYPE: ClassVar[int] = 0x0009

    code: int
    reason: str = ""

    def encode(self, _transaction_id: bytes, /) -> bytes:
        """Write hundreds digit, number below 100 and reason."""
        hundreds, number = divmod(self.code, 100)
        if hundreds not in _ERROR_CLASSES:
            raise LocalProtocolError(f"error code {self.code} is not within 300-699")
        return struct.pack("!HBB", 0, hundreds, number) + _pack_text(self.reason, MAX_TEXT_BYTES)

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        """Read them; the 21 reserved bits are ignored."""
        if len(value) < _ERROR_HEADER_BYTES:
            raise _malformed(cls.TYPE, f"{len(value)} bytes hold no error code")
        hundreds, number = value[2] & 0x7, value[3]
        if hundreds not in _ERROR_CLASSES or number not in _ERROR_NUMBERS:
            raise _malformed(cls.TYPE, f"class {hundreds} number {number} is no error code")
        reason = _unpack_text(cls.TYPE, value[_ERROR_HEADER_BYTES:], MAX_TEXT_BYTES)
        return cls(hundreds * 100 + number, reason)


@dataclass(frozen=True, slots=True)
class UnknownAttributes(Attribute):
    """UNKNOWN-ATTRIBUTES (RFC 8489 §14.9): the types that made the server answer 420."""

    TYPE: ClassVar[int] = 0x000A

    types: tuple[int, ...]

    def encode(self, _transaction_id: bytes, /) -> bytes:
        """Write 16 bits each."""
        if len(self.types) > MAX_UNKNOWN_TYPES or not all(0 <= item <= _MAX_TYPE for item in self.types):
            raise LocalProtocolError(f"not a list of at most {MAX_UNKNOWN_TYPES} attribute types")
        return struct.pack(f"!{len(self.types)}H", *self.types)

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        """Read 16 bits each."""
        count, odd = divmod(len(value), 2)
        if odd or count > MAX_UNKNOWN_TYPES:
            raise _malformed(cls.TYPE, f"{len(value)} bytes are no list of at most {MAX_UNKNOWN_TYPES} types")
        return cls(struct.unpack(f"!{count}H", value))


class MessageIntegritySha256(_Digest):
    """MESSAGE-INTEGRITY-SHA256 (RFC 8489 §14.6).

    Only the full 32 bytes: truncation needs a STUN usage that defines it, and neither ICE nor NAT behaviour
    discovery does.
    """

    __slots__ = ()
    TYPE = 0x001C
    BYTES = SHA256_BYTES


class XorMappedAddress(_Address):
    """XOR-MAPPED-ADDRESS (RFC 8489 §14.2): masked, so that no NAT rewrites it on its way."""

    __slots__ = ()
    TYPE = 0x0020

    def encode(self, transaction_id: bytes, /) -> bytes:
        """Write family, masked port and masked address."""
        return _pack_address(self.address, _mask(transaction_id))

    @classmethod
    def decode(cls, value: bytes, transaction_id: bytes, /) -> Self:
        """Read and unmask."""
        return cls(_unpack_address(cls.TYPE, value, _mask(transaction_id)))


class Priority(_Unsigned):
    """PRIORITY (RFC 8445 §7.1.1): of the peer-reflexive candidate that the check may reveal."""

    __slots__ = ()
    TYPE = 0x0024
    BYTES = 4


@dataclass(frozen=True, slots=True)
class UseCandidate(Attribute):
    """USE-CANDIDATE (RFC 8445 §7.1.2): a flag, so there is no value."""

    TYPE: ClassVar[int] = 0x0025

    def encode(self, _transaction_id: bytes, /) -> bytes:
        """Write nothing."""
        return b""

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        """Accept nothing."""
        _require_size(cls.TYPE, value, 0)
        return cls()


class Software(_Text):
    """SOFTWARE (RFC 8489 §14.14)."""

    __slots__ = ()
    TYPE = 0x8022


class Fingerprint(_Unsigned):
    """FINGERPRINT (RFC 8489 §14.7): the last attribute, if there."""

    __slots__ = ()
    TYPE = 0x8028
    BYTES = 4


class IceControlled(_Unsigned):
    """ICE-CONTROLLED (RFC 8445 §7.1.3); `value` is the tie-breaker, 64 bits."""

    __slots__ = ()
    TYPE = 0x8029
    BYTES = 8


class IceControlling(_Unsigned):
    """ICE-CONTROLLING (RFC 8445 §7.1.3); `value` is the tie-breaker, 64 bits."""

    __slots__ = ()
    TYPE = 0x802A
    BYTES = 8


class ResponseOrigin(_Address):
    """RESPONSE-ORIGIN (RFC 5780 §7.3): where the answer was sent from."""

    __slots__ = ()
    TYPE = 0x802B


class OtherAddress(_Address):
    """OTHER-ADDRESS (RFC 5780 §7.4): the server's second address."""

    __slots__ = ()
    TYPE = 0x802C


@dataclass(frozen=True, slots=True)
class Padding(Attribute):
    """Bytes that mean nothing and make a message as long as it shall be.

    PADDING of RFC 5780 §7.6 must be understood by its receiver, and an ICE agent answers 420 to it. This is a
    type of our own, from the end of the range that anybody may ignore: nobody has registered it.
    """

    TYPE: ClassVar[int] = 0xFF0A

    size: int

    def encode(self, _transaction_id: bytes, /) -> bytes:
        """Write zeros."""
        if not 0 <= self.size <= MAX_PADDING_BYTES:
            raise LocalProtocolError(f"{self.size} bytes of padding are not within 0-{MAX_PADDING_BYTES}")
        return bytes(self.size)

    @classmethod
    def decode(cls, value: bytes, _transaction_id: bytes, /) -> Self:
        """Read how many there are; what they are is of no interest."""
        return cls(len(value))


ATTRIBUTES: Mapping[int, type[Attribute]] = MappingProxyType(
    {
        attribute.TYPE: attribute
        for attribute in (
            MappedAddress,
            ChangeRequest,
            SourceAddress,
            ChangedAddress,
            Username,
            MessageIntegrity,
            ErrorCode,
            UnknownAttributes,
            MessageIntegritySha256,
            XorMappedAddress,
            Priority,
            UseCandidate,
            Software,
            Fingerprint,
            IceControlled,
            IceControlling,
            ResponseOrigin,
            OtherAddress,
            Padding,
        )
    }
)
"""Every attribute that we understand, by type."""


def _malformed(attribute_type: int, detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed_attribute", f"type 0x{attribute_type:04x}: {detail}")


def _require_size(attribute_type: int, value: bytes, size: int) -> None:
    if len(value) != size:
        raise _malformed(attribute_type, f"{len(value)} bytes instead of {size}")


def _mask(transaction_id: bytes) -> int:
    """The 128 bits that mask an IPv6 address; IPv4 addresses and ports use the first of them."""
    return MAGIC_COOKIE << 96 | int.from_bytes(transaction_id, "big")


def _pack_address(address: TransportAddress, mask: int) -> bytes:
    ip = ipaddress.ip_address(address.host)
    family = _FAMILY_IPV4 if ip.version == 4 else _FAMILY_IPV6  # noqa: PLR2004 - IP version 4
    size = _ADDRESS_BYTES[family]
    masked = int(ip) ^ mask >> (128 - 8 * size)
    return struct.pack("!BBH", 0, family, address.port ^ mask >> 112) + masked.to_bytes(size, "big")


def _unpack_address(attribute_type: int, value: bytes, mask: int) -> TransportAddress:
    if len(value) < _ADDRESS_HEADER_BYTES:
        raise _malformed(attribute_type, f"{len(value)} bytes hold no address")
    _, family, port = struct.unpack_from("!BBH", value)
    size = _ADDRESS_BYTES.get(family)
    if size is None:
        raise _malformed(attribute_type, f"address family {family} is unknown")
    _require_size(attribute_type, value, _ADDRESS_HEADER_BYTES + size)
    number = int.from_bytes(value[_ADDRESS_HEADER_BYTES:], "big") ^ mask >> (128 - 8 * size)
    port ^= mask >> 112
    if family == _FAMILY_IPV4:
        return TransportAddress(str(ipaddress.IPv4Address(number)), port)
    return TransportAddress.of(str(ipaddress.IPv6Address(number)), port)


def _pack_text(text: str, max_bytes: int) -> bytes:
    value = text.encode()
    if len(value) > max_bytes:
        raise LocalProtocolError(f"text of {len(value)} bytes exceeds {max_bytes}")
    return value


def _unpack_text(attribute_type: int, value: bytes, max_bytes: int) -> str:
    if len(value) > max_bytes:
        raise _malformed(attribute_type, f"text of {len(value)} bytes exceeds {max_bytes}")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _malformed(attribute_type, "not UTF-8") from error
