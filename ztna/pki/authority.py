"""The deployment's certificate authority, as pure functions: keys, certificates and revocation lists.

Profile: P-256 with ECDSA-SHA256 (Ed25519 for simulations, whose signatures have a fixed length; gRPC cannot
use it), one self-signed CA that issues directly, names and usages by role as `ztna.access.identity` defines
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ztna.access.identity import ROLE_USAGES, Identity, Role, is_label, is_trust_domain
from ztna.errors import ConfigError

DAY_S = 86_400.0

CA_LIFETIME_S = 3650 * DAY_S
"""Ten years: replacing the CA touches every node, so it outlives many generations of node certificates."""

NODE_LIFETIME_S = 365 * DAY_S
"""A year bounds how long a stolen key that nobody noticed stays useful."""

CRL_LIFETIME_S = 365 * DAY_S
"""How long a list may stand before daemons report it as stale: `revoke` and `crl` sign a newer one, and a
deployment that does neither within a year should hear of it."""

BACKDATE_S = 300.0
"""Certificates start this much in the past, so that nodes whose clocks are a few minutes behind accept
them."""

MAX_DNS_NAME_LENGTH = 253

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class KeyType(Enum):
    """Kinds of key that the profile allows."""

    P256 = "p256"
    ED25519 = "ed25519"


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate, its key and the trust domain that it names nodes in."""

    certificate: x509.Certificate
    private_key: PrivateKey
    trust_domain: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A node's certificate and its key."""

    certificate: x509.Certificate
    private_key: PrivateKey

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What the node presents: its certificate alone, as the CA issues directly."""
        return (self.certificate,)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM (PKCS #8, unencrypted), the form that gRPC and aioquic both load."""
        return private_key_pem(self.private_key)


@dataclass(frozen=True, slots=True)
class Revocation:
    """One withdrawn certificate; `revoked_at` in unix seconds."""

    serial: int
    revoked_at: float


def generate_key(key_type: KeyType) -> PrivateKey:
    """A new private key."""
    if key_type is KeyType.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: PrivateKey) -> bytes:
    """PEM of a private key (PKCS #8, unencrypted)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def create_ca(
    trust_domain: str, now: float, lifetime: float = CA_LIFETIME_S, *, key_type: KeyType = KeyType.P256
) -> Authority:
    """A new self-signed CA for `trust_domain`; `now` in unix seconds, `lifetime` in seconds.

    Raises `ConfigError` if the trust domain or lifetime cannot be used.
    """
    if not is_trust_domain(trust_domain):
        raise ConfigError(
            f"{trust_domain!r} is not a trust domain (a lower-case DNS name such as example.org)"
        )
    key = generate_key(key_type)
    # The common name is for people; X.520 allows it 64 characters.
    name = x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ztna"),
        x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {trust_domain}"[:64]),
    ])  # fmt: skip
    builder = _builder(name, name, key, now, now + lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(is_ca=True), critical=True)
    return Authority(builder.sign(key, _hash_for(key)), key, trust_domain)


def issue(
    ca: Authority,
    identity: Identity,
    now: float,
    lifetime: float = NODE_LIFETIME_S,
    *,
    key_type: KeyType = KeyType.P256,
    dns_names: Sequence[str] = (),
    addresses: Sequence[IPv4Address | IPv6Address] = (),
    usages: Collection[x509.ObjectIdentifier] | None = None,
) -> Issued:
    """A new key and certificate for a node; `now` in unix seconds, `lifetime` in seconds.

    The certificate never outlives its CA. `dns_names` and `addresses` are further names of an intermediate,
    for clients that know it by host; `usages` replaces the role's extended key usages (tests of the
    verifier). Raises `ConfigError` if a name or the lifetime cannot be used.
    """
    if identity.trust_domain != ca.trust_domain:
        raise ConfigError(f"the CA names nodes in {ca.trust_domain!r}, not in {identity.trust_domain!r}")
    if (dns_names or addresses) and identity.role is not Role.INTERMEDIATE:
        raise ConfigError(f"only an intermediate is found by host name or address, not {identity}")
    for dns_name in dns_names:
        _check_dns_name(dns_name)
    key = generate_key(key_type)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    names += [x509.DNSName(name) for name in dict.fromkeys((identity.dns_name, *dns_names))]
    names += [x509.IPAddress(address) for address in dict.fromkeys(addresses)]
    expiry = min(now + lifetime, ca.certificate.not_valid_after_utc.timestamp())
    subject = x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.value),
        x509.NameAttribute(NameOID.COMMON_NAME, identity.id),
    ])  # fmt: skip
    builder = _builder(subject, ca.certificate.subject, key, now, expiry)
    usage_oids = ROLE_USAGES[identity.role] if usages is None else usages
    ca_key_id = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(is_ca=False), True),
        (x509.ExtendedKeyUsage(sorted(usage_oids, key=lambda oid: oid.dotted_string)), False),
        (x509.SubjectAlternativeName(names), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return Issued(builder.sign(ca.private_key, _hash_for(ca.private_key)), key)


def build_crl(
    ca: Authority,
    revocations: Iterable[Revocation],
    now: float,
    *,
    number: int,
    lifetime: float = CRL_LIFETIME_S,
) -> x509.CertificateRevocationList:
    """A signed revocation list; `number` has to grow from list to list (RFC 5280 §5.2.3)."""
    ca_key_id = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(_moment(now))
        .next_update(_moment(now + lifetime))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id), critical=False
        )
    )
    for revocation in revocations:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(revocation.serial)
            .revocation_date(_moment(revocation.revoked_at))
            .build()
        )
    return builder.sign(ca.private_key, _hash_for(ca.private_key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: float, expiry: float
) -> x509.CertificateBuilder:
    starts = now - BACKDATE_S
    if expiry <= now:
        raise ConfigError(
            "the certificate would have expired before it starts: check the lifetime and the CA's expiry"
        )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(starts))
        .not_valid_after(_moment(expiry))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _check_dns_name(name: str) -> None:
    # No wildcards: one SAN such as `*.test` makes a TLS library's name check raise what it should not.
    if len(name) > MAX_DNS_NAME_LENGTH or not all(is_label(label) for label in name.split(".")):
        raise ConfigError(f"{name!r} is not a DNS name (lower case, no wildcard)")


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _moment(unix_s: float) -> datetime:
    try:
        return datetime.fromtimestamp(int(unix_s), tz=UTC)
    except (OverflowError, ValueError, OSError):
        raise ConfigError(
            "the date lies beyond what a certificate can state: choose a shorter lifetime"
        ) from None
