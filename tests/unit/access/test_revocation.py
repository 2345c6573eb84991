from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests import pki_fixtures
from tests.pki_fixtures import NOW
from ztna.access import revocation as subject
from ztna.access.revocation import RevocationList
from ztna.errors import AuthenticationError
from ztna.pki.authority import CRL_LIFETIME_S

LAPTOP = pki_fixtures.issue("agent", "laptop")
PHONE = pki_fixtures.issue("agent", "phone")
CA = pki_fixtures.authority().certificate


def reason_of(data: bytes, cas: list[x509.Certificate] | None = None) -> str:
    with pytest.raises(AuthenticationError) as caught:
        RevocationList.parse(data, [CA] if cas is None else cas)
    return caught.value.reason


@pytest.mark.parametrize("key_type", ["p256", "ed25519"])
def test_listed_serials_are_revoked_and_others_not(key_type: str) -> None:
    laptop = pki_fixtures.issue("agent", "laptop", key_type=key_type)
    revocation = pki_fixtures.revocation_list(laptop, key_type=key_type)
    assert revocation.is_revoked(laptop.certificate.serial_number)
    assert not revocation.is_revoked(PHONE.certificate.serial_number)
    assert len(revocation) == 1


def test_der_is_read_as_well() -> None:
    crl = x509.load_pem_x509_crl(pki_fixtures.crl_pem(LAPTOP))
    revocation = RevocationList.parse(crl.public_bytes(Encoding.DER), [CA])
    assert revocation.is_revoked(LAPTOP.certificate.serial_number)


def test_lists_of_both_cas_count_during_a_change_of_ca() -> None:
    data = pki_fixtures.crl_pem(LAPTOP) + pki_fixtures.crl_pem(PHONE, foreign=True)
    revocation = RevocationList.parse(data, [CA, pki_fixtures.authority(foreign=True).certificate])
    assert len(revocation) == 2


def test_stale_list_is_reported_and_still_honoured() -> None:
    revocation = pki_fixtures.revocation_list(LAPTOP)
    assert revocation.next_update == NOW + CRL_LIFETIME_S
    assert not revocation.is_stale(NOW + CRL_LIFETIME_S)
    assert revocation.is_stale(NOW + CRL_LIFETIME_S + 1)
    assert revocation.is_revoked(LAPTOP.certificate.serial_number)


def test_list_without_a_promise_never_becomes_stale() -> None:
    assert not RevocationList(frozenset()).is_stale(NOW)


def test_list_signed_by_another_ca_of_the_same_name_is_an_error() -> None:
    assert reason_of(pki_fixtures.crl_pem(LAPTOP, foreign=True)) == "bad_signature"


def test_list_of_a_ca_of_another_name_is_an_error() -> None:
    other = pki_fixtures.authority(trust_domain="example.net").certificate
    assert reason_of(pki_fixtures.crl_pem(LAPTOP), [other]) == "foreign_ca"


def test_one_unsigned_list_among_several_is_an_error() -> None:
    data = pki_fixtures.crl_pem(LAPTOP) + pki_fixtures.crl_pem(PHONE, foreign=True)
    assert reason_of(data) == "bad_signature"


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"]
)
def test_unreadable_file_is_an_error(data: bytes) -> None:
    assert reason_of(data) == "malformed"


def test_size_is_bounded() -> None:
    assert reason_of(bytes(subject.MAX_CRL_BYTES + 1)) == "malformed"


def test_list_of_an_unknown_version_is_malformed() -> None:
    data = bytearray(x509.load_pem_x509_crl(pki_fixtures.crl_pem(LAPTOP)).public_bytes(Encoding.DER))
    version = data.index(b"\x02\x01\x01")
    data[version + 2] = 7
    assert reason_of(bytes(data)) == "malformed"


def test_delta_list_is_refused_because_it_does_not_stand_alone() -> None:
    ca = pki_fixtures.authority()
    assert isinstance(ca.private_key, ec.EllipticCurvePrivateKey)
    full = x509.load_pem_x509_crl(pki_fixtures.crl_pem(LAPTOP))
    assert full.next_update_utc is not None
    delta = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(full.issuer)
        .last_update(full.last_update_utc)
        .next_update(full.next_update_utc)
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
        .sign(ca.private_key, hashes.SHA256())
    )
    assert reason_of(delta.public_bytes(Encoding.PEM)) == "malformed"
