"""What a certificate of ours has to look like (RFC 5280 §4), whatever its key type: extensions and keys.

Roles and names are judged in `ztna.access.identity`.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID

from ztna.errors import ConfigError

# Raised by cryptography as a certificate or list is parsed, or lazily as it is read: a peer chooses these
# bytes. An unknown version is no `ValueError` there.
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion,
               x509.UnsupportedGeneralNameType)  # fmt: skip

_KNOWN_EXTENSIONS = frozenset({
    ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
})  # fmt: skip


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def _check_key(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    _require(p256 or isinstance(key, ed25519.Ed25519PublicKey), "its key is neither P-256 nor Ed25519")


def _check_extensions(certificate: x509.Certificate) -> x509.Extensions:
    extensions = certificate.extensions
    unknown = [e.oid.dotted_string for e in extensions if e.critical and e.oid not in _KNOWN_EXTENSIONS]
    _require(not unknown, f"unknown critical extension {', '.join(unknown)}")
    return extensions


def check_ca(ca: x509.Certificate) -> None:
    """Whether a certificate can stand as our CA; raises `ConfigError` saying why not."""
    try:
        _check_key(ca)
        extensions = _check_extensions(ca)
        _require(
            extensions.get_extension_for_class(x509.BasicConstraints).value.ca, "it is not marked as a CA"
        )
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        _require(
            usage.key_cert_sign and usage.crl_sign, "its key may not sign certificates and revocation lists"
        )
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, *UNREADABLE) as error:
        raise ConfigError(f"the CA certificate ({_subject(ca)}) cannot be used: {error}") from error


def _subject(certificate: x509.Certificate) -> str:
    # Read only now, and it may be what is broken.
    try:
        return certificate.subject.rfc4514_string()
    except UNREADABLE:
        return "of an unreadable subject"


def check_leaf(leaf: x509.Certificate, ca: x509.Certificate) -> None:
    """Our certificate profile; raises `ValueError` or `ExtensionNotFound` saying what is wrong."""
    _require(leaf.version is x509.Version.v3, "it is not an X.509 version 3 certificate")
    _check_key(leaf)
    extensions = _check_extensions(leaf)
    _require(not extensions.get_extension_for_class(x509.BasicConstraints).value.ca, "it is a CA certificate")
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    _require(usage.digital_signature, "its key may not sign")
    _require(
        not usage.key_cert_sign and not usage.crl_sign, "its key may sign certificates or revocation lists"
    )
    extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    issuer_key = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    ca_key = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    _require(issuer_key == ca_key, "its authority key identifier is not that of the CA")
