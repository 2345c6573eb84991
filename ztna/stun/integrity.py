"""MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT as plain functions over bytes.

`covered` is always the message from its first byte up to, and without, the attribute in question. The
header's length field counts as if the message ended with that attribute, whatever it says now
(RFC 8489 §14.5-14.7).
"""

from __future__ import annotations

import hmac
import struct
import zlib
from enum import Flag

HEADER_BYTES = 20
ATTRIBUTE_HEADER_BYTES = 4
SHA1_BYTES = 20
SHA256_BYTES = 32
FINGERPRINT_BYTES = 4

_FINGERPRINT_MASK = 0x5354554E


class Integrity(Flag):
    """Which integrity attributes a message carries.

    RFC 8445 checks use SHA-1. RFC 8489 §9.1.2 has a client that does not know its server send both at first.
    """

    SHA1 = 1
    SHA256 = 2
    BOTH = SHA1 | SHA256


def integrity_sha1(covered: bytes, key: bytes) -> bytes:
    """Value of MESSAGE-INTEGRITY, 20 bytes (RFC 8489 §14.5)."""
    return hmac.digest(key, _with_length(covered, SHA1_BYTES), "sha1")


def integrity_sha256(covered: bytes, key: bytes) -> bytes:
    """Value of MESSAGE-INTEGRITY-SHA256, 32 bytes, never truncated (RFC 8489 §14.6)."""
    return hmac.digest(key, _with_length(covered, SHA256_BYTES), "sha256")


def verify_sha1(covered: bytes, key: bytes, digest: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(integrity_sha1(covered, key), digest)


def verify_sha256(covered: bytes, key: bytes, digest: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(integrity_sha256(covered, key), digest)


def fingerprint(covered: bytes) -> int:
    """Value of FINGERPRINT, 32 bits (RFC 8489 §14.7)."""
    return zlib.crc32(_with_length(covered, FINGERPRINT_BYTES)) ^ _FINGERPRINT_MASK


def _with_length(covered: bytes, value_bytes: int) -> bytes:
    length = len(covered) - HEADER_BYTES + ATTRIBUTE_HEADER_BYTES + value_bytes
    return covered[:2] + struct.pack("!H", length) + covered[4:]
