from __future__ import annotations

from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from ztna.access.identity import Identity, Role, Verifier
from ztna.access.revocation import RevocationList
from ztna.errors import ConfigError
from ztna.pki.authority import BACKDATE_S, DAY_S, KeyType, Revocation, build_crl, create_ca, issue

NOW = 1_800_000_000.0
CA = create_ca("example.org", NOW, 100 * DAY_S)


def named(role: Role = Role.AGENT, node_id: str = "n1") -> Identity:
    return Identity("example.org", role, node_id)


@pytest.mark.parametrize(
    ("key_type", "key_class"),
    [(KeyType.P256, ec.EllipticCurvePrivateKey), (KeyType.ED25519, ed25519.Ed25519PrivateKey)],
)
def test_what_is_issued_verifies_and_its_key_loads(key_type: KeyType, key_class: type) -> None:
    ca = create_ca("example.org", NOW, key_type=key_type)
    issued = issue(ca, named(), NOW, key_type=key_type)
    key = load_pem_private_key(issued.key_pem, password=None)
    assert isinstance(key, key_class)
    assert issued.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    loaded = x509.load_pem_x509_certificate(issued.certificate_pem)
    peer = Verifier([ca.certificate], "example.org").verify(
        [loaded], expect=Role.AGENT, now_wall=NOW, as_server=False
    )
    assert peer.identity == named()


@pytest.mark.parametrize(
    ("role", "usages"),
    [
        (Role.AGENT, {ExtendedKeyUsageOID.CLIENT_AUTH}),
        (Role.CONNECTOR, {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
        (Role.INTERMEDIATE, {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
        (Role.OPERATOR, {ExtendedKeyUsageOID.CLIENT_AUTH}),
    ],
)
def test_profile_of_each_role(role: Role, usages: set[x509.ObjectIdentifier]) -> None:
    certificate = issue(CA, named(role), NOW).certificate
    extensions = certificate.extensions
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"ztna://example.org/{role.value}/n1"
    ]
    assert names.get_values_for_type(x509.DNSName) == [f"n1.{role.value}.example.org"]
    assert extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert extensions.get_extension_for_class(x509.KeyUsage).critical


def test_intermediate_takes_further_names() -> None:
    certificate = issue(
        CA,
        named(Role.INTERMEDIATE),
        NOW,
        dns_names=["relay.example.net", "n1.intermediate.example.org"],
        addresses=[ip_address("192.0.2.1"), ip_address("2001:db8::1")],
    ).certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["n1.intermediate.example.org", "relay.example.net"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.1"), ip_address("2001:db8::1")]


def test_certificates_start_a_little_in_the_past_and_never_outlive_the_ca() -> None:
    certificate = issue(CA, named(), NOW, 1000 * DAY_S).certificate
    assert certificate.not_valid_before_utc.timestamp() == NOW - BACKDATE_S
    assert certificate.not_valid_after_utc == CA.certificate.not_valid_after_utc


@pytest.mark.parametrize("trust_domain", ["", "Example.org", "example org", "*.org", "a" * 177])
def test_unusable_trust_domain_is_refused(trust_domain: str) -> None:
    with pytest.raises(ConfigError, match="trust domain"):
        create_ca(trust_domain, NOW)


@pytest.mark.parametrize("name", ["*.test", "Relay.example.org", "", "a..b", ".".join(["a" * 63] * 4)])
def test_unusable_dns_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a DNS name"):
        issue(CA, named(Role.INTERMEDIATE), NOW, dns_names=[name])


def test_only_an_intermediate_is_found_by_host_name() -> None:
    with pytest.raises(ConfigError, match="only an intermediate"):
        issue(CA, named(), NOW, dns_names=["laptop.example.net"])


def test_another_trust_domain_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names nodes in 'example\.org'"):
        issue(CA, Identity("example.net", Role.AGENT, "n1"), NOW)


@pytest.mark.parametrize("lifetime", [0.0, -1.0])
def test_lifetime_must_reach_the_future(lifetime: float) -> None:
    with pytest.raises(ConfigError, match="expired before it starts"):
        issue(CA, named(), NOW, lifetime)


def test_date_beyond_the_calendar_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="shorter lifetime"):
        create_ca("example.org", NOW, 1e15)


def test_revocation_list_is_signed_numbered_and_dated() -> None:
    crl = build_crl(CA, [Revocation(77, NOW)], NOW, number=5, lifetime=DAY_S)
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 5
    assert crl.next_update_utc is not None
    assert crl.next_update_utc.timestamp() == NOW + DAY_S
    assert RevocationList._merge([crl], [CA.certificate]).is_revoked(77)
