"""Grants: the intermediate's signed, short-lived word that one agent may open one service at one connector.

The connector believes nothing else: it verifies the signature over the claims as they were encoded, and then
that the claims speak of this session, this agent's key, itself, this service and now. Encoding is not done
here; the functions take the encoded bytes. Signatures are ECDSA P-256 with SHA-256, or Ed25519
(simulations).

Each signature covers a context prefix, so that one made for a grant can never pass as one made for an
attachment.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ztna.access.identity import FINGERPRINT_BYTES, Role, VerifiedPeer
from ztna.errors import AccessDenied, AuthenticationError, LocalProtocolError

GRANT_VERSION = 1
SESSION_ID_BYTES = 16

GRANT_LIFETIME_S = 600
"""Ten minutes: how long a withdrawn permission can still open new streams at a connector that has not
heard."""

GRANT_TOLERANCE_S = 60.0
"""Clocks of intermediate and connector may differ this much: what unsynchronised hosts reach, and still short
against the lifetime."""

NONCE_BYTES = 32

_GRANT_CONTEXT = b"ztna grant v1\0"
_ATTACH_CONTEXT = b"ztna attach v1\0"

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class GrantClaims:
    """What a grant states.

    Attributes:
        session_id: 16 bytes.
        agent_fingerprint: SHA-256 of the agent key's SubjectPublicKeyInfo; the connector's likewise.
        issued_at: unix seconds.
        expires_at: unix seconds.
        issuer: id of the intermediate that signed. It tells whose certificate to verify with, and proves
        nothing by itself.
    """

    version: int
    session_id: bytes
    agent_id: str
    agent_fingerprint: bytes
    connector_id: str
    connector_fingerprint: bytes
    service: str
    issued_at: int
    expires_at: int
    issuer: str


def sign(private_key: SigningKey, claims_bytes: bytes) -> bytes:
    """The intermediate's signature over encoded claims."""
    return _sign(private_key, _GRANT_CONTEXT + claims_bytes)


def verify_signature(certificate: x509.Certificate, claims_bytes: bytes, signature: bytes) -> None:
    """Check that the holder of `certificate`, an intermediate that a `Verifier` accepted, signed the claims.

    Raises `AccessDenied("bad_signature")`.
    """
    if not _is_signed(certificate, _GRANT_CONTEXT + claims_bytes, signature):
        raise AccessDenied("bad_signature", "the grant does not carry the intermediate's signature")


def check(
    claims: GrantClaims,
    *,
    session_id: bytes,
    agent: VerifiedPeer,
    connector_id: str,
    connector_fingerprint: bytes,
    service: str,
    now_wall: float,
    tolerance_s: float = GRANT_TOLERANCE_S,
    grace_s: float = 0.0,
) -> None:
    """Check that verified claims allow this agent to open `service` here and now.

    `connector_id` and `connector_fingerprint` are the checker's own. `now_wall` is in unix seconds; clocks
    may differ by `tolerance_s`; `grace_s` stretches the expiry while no intermediate can be asked for a new
    grant. A grant never lasts longer than `GRANT_LIFETIME_S` from its issue, whatever it states, so that one
    signed by a captured intermediate dies with it.

    Raises `AccessDenied` with reason `wrong_version`, `wrong_session`, `wrong_agent`, `wrong_connector`,
    `wrong_service`, `not_yet_valid` or `expired`.
    """
    if claims.version != GRANT_VERSION:
        raise AccessDenied(
            "wrong_version", f"the grant has version {claims.version}, we know {GRANT_VERSION}"
        )
    if claims.session_id != session_id:
        raise AccessDenied("wrong_session", "the grant was issued for another session")
    holder = (Role.AGENT, claims.agent_id, claims.agent_fingerprint)
    if holder != (agent.identity.role, agent.identity.id, agent.fingerprint):
        raise AccessDenied(
            "wrong_agent", f"the grant of agent {claims.agent_id!r} was shown by {agent.identity}"
        )
    if (claims.connector_id, claims.connector_fingerprint) != (connector_id, connector_fingerprint):
        raise AccessDenied(
            "wrong_connector",
            f"the grant is for connector {claims.connector_id!r}, or for a former key of ours",
        )
    if claims.service != service:
        raise AccessDenied("wrong_service", f"the grant is for service {claims.service!r}, not {service!r}")
    _check_time(claims, now_wall, tolerance_s, grace_s)


def renewal_time(claims: GrantClaims) -> float:
    """When to ask for the next grant, unix seconds: at half life, which leaves the other half for retries."""
    return (claims.issued_at + _expiry(claims)) / 2


def sign_nonce(private_key: SigningKey, nonce: bytes, client_fingerprint: bytes) -> bytes:
    """The intermediate's proof, to a client that cannot see its TLS certificate, that it holds the key.

    Raises `LocalProtocolError` unless the nonce has 32 bytes and the fingerprint 32 (a server checks what it
    was sent before it signs).
    """
    return _sign(private_key, _attach_message(nonce, client_fingerprint))


def verify_nonce(
    certificate: x509.Certificate, nonce: bytes, client_fingerprint: bytes, signature: bytes
) -> None:
    """Check the proof against our own nonce and our own key's fingerprint.

    Raises `AuthenticationError("bad_signature")`.
    """
    if not _is_signed(certificate, _attach_message(nonce, client_fingerprint), signature):
        raise AuthenticationError(
            "bad_signature", "the intermediate did not prove that it holds the key of the certificate it sent"
        )


def _expiry(claims: GrantClaims) -> int:
    return min(claims.expires_at, claims.issued_at + GRANT_LIFETIME_S)


def _check_time(claims: GrantClaims, now_wall: float, tolerance_s: float, grace_s: float) -> None:
    early_s = claims.issued_at - now_wall
    if early_s > tolerance_s:
        raise AccessDenied(
            "not_yet_valid",
            f"the grant starts in {early_s:.0f} s; check this host's and the intermediate's clocks",
        )
    late_s = now_wall - _expiry(claims)
    if late_s > tolerance_s + grace_s:
        raise AccessDenied(
            "expired",
            f"the grant expired {late_s:.0f} s ago; if it is a new one, check this host's and the "
            "intermediate's clocks",
        )


def _attach_message(nonce: bytes, client_fingerprint: bytes) -> bytes:
    # Both parts have a fixed length, so no other pair reads as the same message.
    if len(nonce) != NONCE_BYTES or len(client_fingerprint) != FINGERPRINT_BYTES:
        raise LocalProtocolError(
            f"nonce of {len(nonce)} and fingerprint of {len(client_fingerprint)} bytes, expected "
            f"{NONCE_BYTES} and {FINGERPRINT_BYTES}"
        )
    return _ATTACH_CONTEXT + nonce + client_fingerprint


def _sign(private_key: SigningKey, message: bytes) -> bytes:
    if isinstance(private_key, ed25519.Ed25519PrivateKey):
        return private_key.sign(message)
    return private_key.sign(message, ec.ECDSA(hashes.SHA256()))


def _is_signed(certificate: x509.Certificate, message: bytes, signature: bytes) -> bool:
    try:
        key = certificate.public_key()
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
