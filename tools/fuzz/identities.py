"""A deployment whose keys, certificates and signatures are the same in every process, so that inputs are.

The certificates are those that `ztna.pki` issues, built once more from keys that follow from a number, with
signatures without chance (RFC 6979). None of these keys guards anything.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from actors import translate
from actors.credentials import Credentials, parse_credentials
from ztna.access.grant import GrantClaims
from ztna.access.identity import Identity, Role, VerifiedPeer, Verifier
from ztna.pki import authority as pki
from ztna.pki.authority import Authority, Issued, Revocation
from ztna.v1 import grant_pb2

TRUST_DOMAIN: Final = "example.org"
NOW: Final = 1_800_000_000.0
"""Unix seconds of every judgement."""
SESSION_ID: Final = bytes(range(16))
AGENT_ID, CONNECTOR_ID, INTERMEDIATE_ID = "a1", "c1", "i1"

_BEGIN: Final = 1_000_000_000.0
_LIFETIME: Final = 3_000_000_000.0


class _RepeatableKey:
    """A private key as far as `ztna.access.grant` uses one."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def sign(self, message: bytes, _algorithm: object) -> bytes:
        return sign(self._key, message)


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256, and no chance."""
    return key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that belongs to a name."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:31], "big")
    return ec.derive_private_key(number + 1, ec.SECP256R1())


@cache
def ca() -> Authority:
    """The deployment's CA."""
    made = pki.create_ca(TRUST_DOMAIN, _BEGIN, _LIFETIME)
    key = key_of("ca")
    return Authority(_rebuild(made.certificate, key, key, 1), key, TRUST_DOMAIN)


@cache
def issue(role: Role, node_id: str) -> Issued:
    """A node's certificate and key."""
    made = pki.issue(ca(), Identity(TRUST_DOMAIN, role, node_id), _BEGIN, _LIFETIME)
    name = f"{role.value} {node_id}"
    serial = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big") | 1
    key = key_of(name)
    return Issued(_rebuild(made.certificate, key, ca_key(), serial), key)


def ca_key() -> ec.EllipticCurvePrivateKey:
    """The CA's key."""
    return cast("ec.EllipticCurvePrivateKey", ca().private_key)


def ca_pem() -> bytes:
    """The CA's certificate as a file holds it."""
    return ca().certificate.public_bytes(Encoding.PEM)


def _rebuild(
    template: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    serial: int,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        template.issuer,
        template.subject,
        key.public_key(),
        serial,
        template.not_valid_before_utc.replace(tzinfo=None),
        template.not_valid_after_utc.replace(tzinfo=None),
    )
    for extension in template.extensions:
        value: x509.ExtensionType = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True)


@cache
def credentials(role: Role, node_id: str) -> Credentials:
    """What a node holds."""
    issued = issue(role, node_id)
    return parse_credentials(issued.certificate_pem, issued.key_pem, ca_pem(), None, role, NOW)


@cache
def verifier() -> Verifier:
    """The judge of this deployment."""
    return Verifier([ca().certificate], TRUST_DOMAIN)


@cache
def verified(role: Role, node_id: str) -> VerifiedPeer:
    """A node as a link has proved it."""
    return verifier().verify(issue(role, node_id).chain, expect=role, now_wall=NOW, as_server=False)


def claims(service: str = "web", **changes: Any) -> GrantClaims:
    """What a grant of the agent at the connector states."""
    stated: dict[str, Any] = {
        "version": 1,
        "session_id": SESSION_ID,
        "agent_id": AGENT_ID,
        "agent_fingerprint": credentials(Role.AGENT, AGENT_ID).fingerprint,
        "connector_id": CONNECTOR_ID,
        "connector_fingerprint": credentials(Role.CONNECTOR, CONNECTOR_ID).fingerprint,
        "service": service,
        "issued_at": int(NOW),
        "expires_at": int(NOW) + 600,
        "issuer": INTERMEDIATE_ID,
        **changes,
    }
    return GrantClaims(**stated)


@cache
def seal(stated: GrantClaims) -> grant_pb2.SealedGrant:
    """A grant that the intermediate signed."""
    issuer = credentials(Role.INTERMEDIATE, INTERMEDIATE_ID)
    repeatable = cast(
        "Any", _Issuer(_RepeatableKey(key_of(f"intermediate {INTERMEDIATE_ID}")), issuer.chain_der)
    )
    return translate.seal_grant(stated, repeatable)


class _Issuer:
    def __init__(self, private_key: _RepeatableKey, chain_der: tuple[bytes, ...]) -> None:
        self.private_key = private_key
        self.chain_der = chain_der


def revocation_list() -> bytes:
    """DER of a list with two certificates on it."""
    revoked = [issue(Role.AGENT, "lost"), issue(Role.AGENT, "stolen")]
    made = pki.build_crl(
        ca(), [Revocation(each.certificate.serial_number, NOW) for each in revoked], NOW, number=1
    )
    return resign(made.tbs_certlist_bytes, made.signature_algorithm_oid.dotted_string)


def resign(signed_part: bytes, _algorithm: str = "") -> bytes:
    """A certificate or list with this content, signed by the CA with ECDSA and SHA-256 (RFC 5280 §4.1)."""
    signature = b"\0" + sign(ca_key(), signed_part)
    return _sequence(signed_part + _ECDSA_WITH_SHA256 + b"\x03" + _length(len(signature)) + signature)


_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def _sequence(content: bytes) -> bytes:
    return b"\x30" + _length(len(content)) + content


def _length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    data = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(data)]) + data
