from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests import pki_fixtures
from ztna.access import grant
from ztna.access.grant import GRANT_LIFETIME_S, GRANT_TOLERANCE_S, GrantClaims
from ztna.access.identity import Role, fingerprint
from ztna.errors import AccessDenied, AuthenticationError, LocalProtocolError

AGENT = pki_fixtures.verified("agent", "laptop")
CONNECTOR_FINGERPRINT = fingerprint(pki_fixtures.issue("connector", "site").certificate)
ISSUED_AT = 1_800_000_000
CLAIMS = GrantClaims(
    version=1,
    session_id=bytes(range(16)),
    agent_id="laptop",
    agent_fingerprint=AGENT.fingerprint,
    connector_id="site",
    connector_fingerprint=CONNECTOR_FINGERPRINT,
    service="web",
    issued_at=ISSUED_AT,
    expires_at=ISSUED_AT + GRANT_LIFETIME_S,
    issuer="relay",
)


def check(claims: GrantClaims = CLAIMS, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "session_id": CLAIMS.session_id,
        "agent": AGENT,
        "connector_id": "site",
        "connector_fingerprint": CONNECTOR_FINGERPRINT,
        "service": "web",
        "now_wall": float(ISSUED_AT),
    }
    grant.check(claims, **(arguments | changes))


def test_constants() -> None:
    assert (GRANT_LIFETIME_S, GRANT_TOLERANCE_S) == (600, 60)


def test_matching_claims_are_accepted() -> None:
    check()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "wrong_version"),
        ({"session_id": bytes(16)}, "wrong_session"),
        ({"session_id": b""}, "wrong_session"),
        ({"agent_id": "phone"}, "wrong_agent"),
        ({"agent_fingerprint": bytes(32)}, "wrong_agent"),
        ({"connector_id": "elsewhere"}, "wrong_connector"),
        ({"connector_fingerprint": bytes(32)}, "wrong_connector"),
        ({"service": "dns"}, "wrong_service"),
        ({"issued_at": ISSUED_AT + 61, "expires_at": ISSUED_AT + 661}, "not_yet_valid"),
        ({"issued_at": ISSUED_AT - 661, "expires_at": ISSUED_AT - 61}, "expired"),
        ({"expires_at": ISSUED_AT - 61}, "expired"),
        ({"issued_at": ISSUED_AT - 10_000, "expires_at": 2**62}, "expired"),
        ({"issued_at": -(2**62)}, "expired"),
        ({"issued_at": 2**62}, "not_yet_valid"),
    ],
)
def test_each_deviation_is_denied_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        check(replace(CLAIMS, **changes))
    assert caught.value.reason == reason


def test_a_connector_cannot_use_an_agents_grant_though_its_id_is_the_same() -> None:
    impostor = replace(AGENT, identity=replace(AGENT.identity, role=Role.CONNECTOR))
    with pytest.raises(AccessDenied, match="wrong_agent"):
        check(agent=impostor)


@pytest.mark.parametrize("now_wall", [ISSUED_AT - 60.0, ISSUED_AT + 660.0], ids=["earliest", "latest"])
def test_clocks_may_differ_by_the_tolerance(now_wall: float) -> None:
    check(now_wall=now_wall)


def test_grace_stretches_the_expiry_alone() -> None:
    check(now_wall=ISSUED_AT + 660.0 + 3600, grace_s=3600)
    with pytest.raises(AccessDenied, match="expired"):
        check(now_wall=ISSUED_AT + 661.0 + 3600, grace_s=3600)
    with pytest.raises(AccessDenied, match="not_yet_valid"):
        check(now_wall=ISSUED_AT - 61.0, grace_s=3600)


def test_renewal_is_due_at_half_life() -> None:
    assert grant.renewal_time(CLAIMS) == ISSUED_AT + 300
    assert grant.renewal_time(replace(CLAIMS, expires_at=2**62)) == ISSUED_AT + 300


@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
class TestSignatures:
    def test_signed_claims_verify_and_changed_ones_do_not(self, key_type: str) -> None:
        issuer = pki_fixtures.issue("intermediate", "relay", key_type=key_type)
        signature = grant.sign(issuer.private_key, b"claims")
        grant.verify_signature(issuer.certificate, b"claims", signature)
        other = pki_fixtures.issue("intermediate", "other", key_type=key_type)
        for certificate, claims, proof in [
            (issuer.certificate, b"claim", signature),
            (issuer.certificate, b"claims", signature[:-1] + bytes([signature[-1] ^ 1])),
            (issuer.certificate, b"claims", b""),
            (other.certificate, b"claims", signature),
        ]:
            with pytest.raises(AccessDenied) as caught:
                grant.verify_signature(certificate, claims, proof)
            assert caught.value.reason == "bad_signature"

    def test_nonce_proof_binds_nonce_and_client(self, key_type: str) -> None:
        relay = pki_fixtures.issue("intermediate", "relay", key_type=key_type)
        nonce, client = b"n" * grant.NONCE_BYTES, AGENT.fingerprint
        signature = grant.sign_nonce(relay.private_key, nonce, client)
        grant.verify_nonce(relay.certificate, nonce, client, signature)
        for wrong_nonce, wrong_client in [(bytes(32), client), (nonce, bytes(32))]:
            with pytest.raises(AuthenticationError) as caught:
                grant.verify_nonce(relay.certificate, wrong_nonce, wrong_client, signature)
            assert caught.value.reason == "bad_signature"

    def test_one_kind_of_signature_never_passes_as_the_other(self, key_type: str) -> None:
        relay = pki_fixtures.issue("intermediate", "relay", key_type=key_type)
        nonce, client = bytes(32), AGENT.fingerprint
        with pytest.raises(AccessDenied):
            grant.verify_signature(
                relay.certificate, nonce + client, grant.sign_nonce(relay.private_key, nonce, client)
            )
        with pytest.raises(AuthenticationError):
            grant.verify_nonce(
                relay.certificate, nonce, client, grant.sign(relay.private_key, nonce + client)
            )

    @given(signature=st.binary(max_size=80))
    def test_arbitrary_signatures_raise_only_access_denied(self, key_type: str, signature: bytes) -> None:
        relay = pki_fixtures.issue("intermediate", "relay", key_type=key_type)
        with pytest.raises(AccessDenied):
            grant.verify_signature(relay.certificate, b"claims", signature)


@pytest.mark.parametrize(("nonce_bytes", "fingerprint_bytes"), [(31, 32), (33, 32), (32, 31), (0, 64)])
def test_ambiguous_lengths_are_never_signed(nonce_bytes: int, fingerprint_bytes: int) -> None:
    relay = pki_fixtures.issue("intermediate", "relay")
    with pytest.raises(LocalProtocolError):
        grant.sign_nonce(relay.private_key, bytes(nonce_bytes), bytes(fingerprint_bytes))


def test_a_key_of_another_kind_vouches_for_nothing() -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    template = pki_fixtures.authority().certificate
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(AccessDenied, match="bad_signature"):
        grant.verify_signature(certificate, b"claims", bytes(256))
