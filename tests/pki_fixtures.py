"""One in-memory CA for the whole test process, and certificates with any fault a test asks for.

Keys and certificates are made once per combination of arguments, so that asking is cheap.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ztna.access.identity import Identity, Role, VerifiedPeer, Verifier
from ztna.access.revocation import RevocationList
from ztna.pki import authority as pki
from ztna.pki.authority import Authority, Issued, KeyType, Revocation

TRUST_DOMAIN = "example.org"

NOW = 1_800_000_000.0
"""Wall-clock moment (unix seconds) at which tests that bring their own clock judge certificates.

Certificates without a fault are valid from the year 2001 until the year 2096, so a test that has to use the
real clock (gRPC, for one) can use them too.
"""

_BEGIN = 1_000_000_000.0
_END = 4_000_000_000.0
_DAY = pki.DAY_S


def authority(
    key_type: str = "p256", *, foreign: bool = False, trust_domain: str = TRUST_DOMAIN
) -> Authority:
    """The deployment's CA, or (`foreign`) another one under the very same name."""
    return _authority(key_type, foreign, trust_domain)


@cache
def _authority(key_type: str, foreign: bool, trust_domain: str) -> Authority:
    del foreign  # part of the cache key alone: a second CA differs in its key
    return pki.create_ca(trust_domain, _BEGIN, _END - _BEGIN, key_type=KeyType(key_type))


def issue(
    role: Role | str,
    node_id: str,
    *,
    key_type: str = "p256",
    expired: bool = False,
    not_yet_valid: bool = False,
    foreign: bool = False,
    eku: Collection[x509.ObjectIdentifier] | None = None,
    trust_domain: str = TRUST_DOMAIN,
    dns_names: Collection[str] = (),
    serial_of: int = 0,
) -> Issued:
    """A node's certificate and key from `authority(key_type)`, faultless unless asked.

    `expired` ended and `not_yet_valid` begins far from both `NOW` and the real clock; `foreign` is signed by
    another CA of the same name; `eku` replaces the role's usages; another `serial_of` gives another
    certificate of the same name.
    """
    return _issue(
        Role(role),
        node_id,
        key_type,
        expired,
        not_yet_valid,
        foreign,
        None if eku is None else frozenset(eku),
        trust_domain,
        tuple(dns_names),
        serial_of,
    )


@cache
def _issue(
    role: Role,
    node_id: str,
    key_type: str,
    expired: bool,
    not_yet_valid: bool,
    foreign: bool,
    eku: frozenset[x509.ObjectIdentifier] | None,
    trust_domain: str,
    dns_names: tuple[str, ...],
    serial_of: int,
) -> Issued:
    del serial_of  # part of the cache key alone
    begin, end = _BEGIN, _END
    if expired:
        end = _BEGIN + _DAY
    if not_yet_valid:
        begin = _END - _DAY
    return pki.issue(
        authority(key_type, foreign=foreign, trust_domain=trust_domain),
        Identity(trust_domain, role, node_id),
        begin,
        end - begin,
        key_type=KeyType(key_type),
        dns_names=dns_names,
        usages=eku,
    )


def renewed(issued: Issued) -> Issued:
    """Another certificate for the same name and key, from `authority()`."""
    former = issued.certificate
    builder = (
        x509.CertificateBuilder()
        .issuer_name(former.issuer)
        .subject_name(former.subject)
        .public_key(former.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(former.not_valid_before_utc)
        .not_valid_after(former.not_valid_after_utc)
    )
    for extension in former.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return Issued(builder.sign(authority().private_key, hashes.SHA256()), issued.private_key)


def of_unknown_version(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate of a version that no standard has; for the library no `ValueError`."""
    data = bytearray(certificate.public_bytes(Encoding.DER))
    assert data[8:12] == b"\xa0\x03\x02\x01"
    data[12] = 1
    return bytes(data)


def as_pem(der: bytes) -> bytes:
    """A certificate as a file holds it."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def revocation_list(*revoked: Issued, key_type: str = "p256", foreign: bool = False) -> RevocationList:
    """A list, signed by `authority(key_type)`, of certificates that were withdrawn."""
    return RevocationList.parse(
        crl_pem(*revoked, key_type=key_type, foreign=foreign),
        [authority(key_type, foreign=foreign).certificate],
    )


def crl_pem(*revoked: Issued, key_type: str = "p256", foreign: bool = False) -> bytes:
    """The same as a PEM file's content."""
    revocations = [Revocation(issued.certificate.serial_number, NOW) for issued in revoked]
    crl = pki.build_crl(authority(key_type, foreign=foreign), revocations, NOW, number=1)
    return crl.public_bytes(Encoding.PEM)


def verifier(
    *, key_type: str = "p256", revoked: Iterable[Issued] = (), trust_domain: str = TRUST_DOMAIN
) -> Verifier:
    """The judge that trusts `authority(key_type)`."""
    revoked = tuple(revoked)
    revocation = revocation_list(*revoked, key_type=key_type) if revoked else None
    return Verifier([authority(key_type, trust_domain=trust_domain).certificate], trust_domain, revocation)


def verified(role: Role | str, node_id: str, *, key_type: str = "p256") -> VerifiedPeer:
    """The peer as a verifier hands it on."""
    role = Role(role)
    return verifier(key_type=key_type).verify(
        issue(role, node_id, key_type=key_type).chain, expect=role, now_wall=NOW, as_server=False
    )


@dataclass(frozen=True, slots=True)
class PemFiles:
    """Contents of the three files a daemon loads."""

    certificate: bytes
    key: bytes
    ca: bytes


def pem(issued: Issued, *, key_type: str = "p256") -> PemFiles:
    """PEM of a certificate, its key and the CA that tests trust."""
    ca = authority(key_type).certificate.public_bytes(Encoding.PEM)
    return PemFiles(issued.certificate_pem, issued.key_pem, ca)
