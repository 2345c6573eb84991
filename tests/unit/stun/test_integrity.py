from __future__ import annotations

import hashlib
import hmac

import pytest

from tests.unit.stun.vectors import IPV4_RESPONSE, IPV6_RESPONSE, PASSWORD, REQUEST
from ztna.stun import integrity

VECTORS = [
    pytest.param(REQUEST, id="request"),
    pytest.param(IPV4_RESPONSE, id="ipv4-response"),
    pytest.param(IPV6_RESPONSE, id="ipv6-response"),
]
# MESSAGE-INTEGRITY (24 bytes) and FINGERPRINT (8 bytes) close every vector.
BEFORE_INTEGRITY = slice(None, -32)
DIGEST = slice(-28, -8)
BEFORE_FINGERPRINT = slice(None, -8)
CHECKSUM = slice(-4, None)


@pytest.mark.parametrize("vector", VECTORS)
def test_sha1_of_rfc_5769_vector_is_the_published_one(vector: bytes) -> None:
    assert integrity.integrity_sha1(vector[BEFORE_INTEGRITY], PASSWORD) == vector[DIGEST]
    assert integrity.verify_sha1(vector[BEFORE_INTEGRITY], PASSWORD, vector[DIGEST])


@pytest.mark.parametrize("vector", VECTORS)
def test_fingerprint_of_rfc_5769_vector_is_the_published_one(vector: bytes) -> None:
    assert integrity.fingerprint(vector[BEFORE_FINGERPRINT]) == int.from_bytes(vector[CHECKSUM], "big")


@pytest.mark.parametrize(
    ("covered", "key"),
    [
        pytest.param(REQUEST[:-40] + b"\xff" * 8, PASSWORD, id="changed-message"),
        pytest.param(REQUEST[:-32], PASSWORD + b"x", id="other-key"),
        pytest.param(REQUEST[:-32], b"", id="empty-key"),
    ],
)
def test_digest_of_something_else_does_not_verify(covered: bytes, key: bytes) -> None:
    assert not integrity.verify_sha1(covered, key, REQUEST[DIGEST])
    assert not integrity.verify_sha256(covered, key, integrity.integrity_sha256(REQUEST[:-32], PASSWORD))


def test_sha256_covers_a_header_whose_length_ends_with_the_attribute() -> None:
    covered = REQUEST[BEFORE_INTEGRITY]
    length = len(covered) - 20 + 36
    expected = hmac.new(
        PASSWORD, covered[:2] + length.to_bytes(2, "big") + covered[4:], hashlib.sha256
    ).digest()
    assert integrity.integrity_sha256(covered, PASSWORD) == expected
    assert integrity.verify_sha256(covered, PASSWORD, expected)


@pytest.mark.parametrize("digest", [b"", b"\0" * 20, b"\0" * 31], ids=["empty", "short", "one-less"])
def test_digest_of_another_length_does_not_verify(digest: bytes) -> None:
    assert not integrity.verify_sha256(REQUEST[BEFORE_INTEGRITY], PASSWORD, digest)
