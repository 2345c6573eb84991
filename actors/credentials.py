"""What a daemon presents and whom it believes: its certificate, its key, the CA and the revocation list.

Loaded from files before anything starts, and again on SIGHUP: everybody who judges a peer asks the one object
of the process, which then adopts the new files as a whole. Every error names the file at fault.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ztna.access.identity import Identity, Role, Verifier, fingerprint, identity_of
from ztna.access.profile import UNREADABLE
from ztna.access.revocation import MAX_CRL_BYTES, RevocationList
from ztna.errors import AuthenticationError, ConfigError

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

MAX_PEM_BYTES = 1 << 20
"""Certificates and keys take a few KiB; more means that the path points at something else."""

CERTIFICATE_WARNING_S = 30 * 86_400.0
"""A month: long enough for whoever issues certificates to be on holiday."""


@dataclass(slots=True, eq=False)
class Credentials:
    """A node's own identity and its judge of others; changed by `adopt` alone.

    Attributes:
        identity: read from the node's own certificate, accepted by `verifier`.
        fingerprint: SHA-256 of the node's own SubjectPublicKeyInfo, 32 bytes.
        certificate_chain: what the node presents, its own certificate first.
        verifier: judges peers; also holds the CA certificates and the revocation list.
        certificate_pem: the chain as gRPC wants it.
        private_key_pem: the key as gRPC wants it.
        ca_pem: the accepted CAs as gRPC wants them.
    """

    identity: Identity
    fingerprint: bytes
    certificate_chain: tuple[x509.Certificate, ...]
    private_key: PrivateKey
    verifier: Verifier
    certificate_pem: bytes
    private_key_pem: bytes
    ca_pem: bytes

    def adopt(self, renewed: Credentials) -> None:
        """Take over what the files say now. Raises `ConfigError` when they belong to another node."""
        if renewed.identity != self.identity:
            raise ConfigError(f"node.cert: names {renewed.identity}, but this is {self.identity}")
        for each in fields(self):
            setattr(self, each.name, getattr(renewed, each.name))

    @property
    def certificate_ends_at(self) -> float:
        """Unix seconds at which the node's own certificate expires."""
        return self.certificate_chain[0].not_valid_after_utc.timestamp()

    def ends_soon(self, now_wall: float) -> bool:
        """Whether somebody has to issue another certificate within `CERTIFICATE_WARNING_S`."""
        return self.certificate_ends_at < now_wall + CERTIFICATE_WARNING_S

    @property
    def ca_certificates(self) -> tuple[x509.Certificate, ...]:
        """The accepted CAs; several during a change of CA."""
        return self.verifier.ca_certificates

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """The chain as messages carry it."""
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in self.certificate_chain)

    def __repr__(self) -> str:
        # The generated one would print the private key's PEM into a log.
        return f"Credentials({self.identity})"


class CredentialFiles(Protocol):
    """The settings that name the files (`ztna.settings.NodeSettings`)."""

    @property
    def id(self) -> str:
        """The node's id, which its certificate must carry."""

    @property
    def cert(self) -> Path:
        """Certificate chain (PEM), the node's own first."""

    @property
    def key(self) -> Path:
        """Private key (PEM)."""

    @property
    def ca(self) -> Path:
        """CA certificates (PEM)."""

    @property
    def crl(self) -> Path | None:
        """Revocation list; None where the deployment has none yet."""


def load_credentials(files: CredentialFiles, role: Role, now_wall: float) -> Credentials:
    """Read all files and check that they belong together.

    `role` is what this daemon is; `now_wall` unix seconds. Raises `ConfigError` when a file is missing or
    holds something else. Raises `AuthenticationError` when what it holds is not acceptable: a certificate
    that our peers would refuse (expired, of another CA, of another role or id, revoked), a key that is not
    the certificate's or of another kind than ours, a CA that may not be one, another CA's revocation list.
    """
    return _assemble(
        _read(files.cert, "node.cert"),
        _read(files.key, "node.key"),
        _read(files.ca, "node.ca"),
        None if files.crl is None else _read(files.crl, "node.crl", limit=MAX_CRL_BYTES),
        _Expected(role, files.id, now_wall),
        _Names(str(files.cert), str(files.key), str(files.ca), str(files.crl)),
    )


def parse_credentials(
    certificate_pem: bytes,
    private_key_pem: bytes,
    ca_pem: bytes,
    crl: bytes | None,
    role: Role,
    now_wall: float,
) -> Credentials:
    """Like `load_credentials`, from file contents, of whichever node they name."""
    names = _Names("the certificate", "the key", "the CA", "the revocation list")
    return _assemble(certificate_pem, private_key_pem, ca_pem, crl, _Expected(role, None, now_wall), names)


@dataclass(frozen=True, slots=True)
class _Names:
    """What messages call the parts."""

    cert: str
    key: str
    ca: str
    crl: str


@dataclass(frozen=True, slots=True)
class _Expected:
    role: Role
    id: str | None
    now_wall: float


def _assemble(
    certificate_pem: bytes,
    private_key_pem: bytes,
    ca_pem: bytes,
    crl: bytes | None,
    expected: _Expected,
    names: _Names,
) -> Credentials:
    chain = _certificates(certificate_pem, names.cert, "node.cert")
    key = _private_key(private_key_pem, names.key)
    authorities = _certificates(ca_pem, names.ca, "node.ca")
    if key.public_key() != _public_key(chain[0], names.cert):
        raise AuthenticationError(
            "wrong_key",
            f"node.key: {names.key} is not the key of the certificate in {names.cert} (node.cert)",
        )
    try:
        identity = identity_of(chain[0])
    except AuthenticationError as error:
        raise _named(error, f"node.cert: {names.cert}") from error
    _check_owner(identity, expected, names.cert)
    verifier = _verifier(authorities, identity.trust_domain, names)
    if crl is not None:
        try:
            verifier = verifier.with_revocation(RevocationList.parse(crl, authorities))
        except AuthenticationError as error:
            raise _named(error, f"node.crl: {names.crl}") from error
    try:
        verifier.verify(
            chain,
            expect=expected.role,
            expect_id=expected.id,
            now_wall=expected.now_wall,
            as_server=expected.role in {Role.CONNECTOR, Role.INTERMEDIATE},
        )
    except AuthenticationError as error:
        raise _named(error, f"node.cert: {names.cert}") from error
    return Credentials(
        identity=identity,
        fingerprint=fingerprint(chain[0]),
        certificate_chain=tuple(chain),
        private_key=key,
        verifier=verifier,
        certificate_pem=certificate_pem,
        private_key_pem=private_key_pem,
        ca_pem=ca_pem,
    )


def _check_owner(identity: Identity, expected: _Expected, name: str) -> None:
    """Say of another node's certificate whose it is; a peer would only say that it expected somebody else."""
    whose = f"node.cert: {name} is the certificate of {identity}"
    if identity.role is not expected.role:
        raise AuthenticationError("wrong_role", f"{whose}, and `kind` is {expected.role.value!r}")
    if expected.id is not None and identity.id != expected.id:
        raise AuthenticationError("wrong_name", f"{whose}, and `node.id` is {expected.id!r}")


def _named(error: AuthenticationError, what: str) -> AuthenticationError:
    """The same error, with the key and the file that it is about."""
    return AuthenticationError(error.reason, f"{what}: {str(error).removeprefix(f'{error.reason}: ')}")


def _read(path: Path, key: str, limit: int = MAX_PEM_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise ConfigError(f"{key}: {path} is larger than {limit} bytes, not a file of ours")
    return data


def _certificates(data: bytes, path: str, key: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except UNREADABLE as error:
        raise ConfigError(f"{key}: {path} holds no PEM certificate{_why(error)}") from error


def _public_key(certificate: x509.Certificate, path: str) -> CertificatePublicKeyTypes:
    # The library reads it only when asked, and finds out only then that it is none.
    try:
        return certificate.public_key()
    except UNREADABLE as error:
        raise ConfigError(f"node.cert: {path} holds no readable public key ({error})") from error


def _why(error: Exception) -> str:
    """What is wrong inside a PEM block; where there is none, the library only points at its own manual."""
    return "" if "Unable to load PEM file" in str(error) else f" ({error})"


def _private_key(data: bytes, path: str) -> PrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"node.key: {path} is encrypted; a daemon needs the key without a password"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"node.key: {path} holds no PEM private key{_why(error)}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise AuthenticationError("malformed", f"node.key: {path} holds neither a P-256 nor an Ed25519 key")
    return key


def _verifier(authorities: list[x509.Certificate], trust_domain: str, names: _Names) -> Verifier:
    try:
        return Verifier(authorities, trust_domain)
    except ConfigError as error:
        raise AuthenticationError("malformed", f"node.ca: {names.ca}: {error}") from error
