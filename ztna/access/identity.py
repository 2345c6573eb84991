"""Who a peer is: identity names, and the one judge of peer certificates on every link.

A certificate names its holder in one URI SAN, `ztna://<trust-domain>/<role>/<id>`, repeated for TLS
libraries that only know host names as the DNS SAN `<id>.<role>.<trust-domain>`. `Verifier` accepts a
certificate that the deployment's own CA issued directly, and checks in this order: who signed it, dates,
profile (RFC 5280), role, name, revocation. What an unsigned certificate claims is therefore never reported
as a fact.

The wall clock is an argument everywhere; nothing here reads files or the time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ztna.access.profile import UNREADABLE, check_ca, check_leaf
from ztna.access.revocation import RevocationList
from ztna.errors import AuthenticationError, ConfigError

URI_SCHEME = "ztna"

MAX_LABEL_LENGTH = 63
"""A node id is one DNS label (RFC 1035 §2.3.4), because it becomes the first label of the DNS SAN."""

MAX_TRUST_DOMAIN_LENGTH = 176
"""`<id>.<role>.<trust-domain>` has to fit the 253 characters of a DNS name: 253 - 63 - 12 - two dots."""

MAX_CHAIN_CERTIFICATES = 4
"""The CA issues directly, so one certificate is enough; room for a peer that also sends its CA during a
change of CA. Anything longer only makes us parse."""

CLOCK_DOUBT_S = 86_400.0
"""Of a certificate that ended no longer ago than this we ask about the clock as well: a host without NTP is
off by minutes, one that was given local time as UTC by hours."""

FINGERPRINT_BYTES = 32

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Role(Enum):
    """What a node is in the deployment; the value is its spelling in names, on the wire and on disk."""

    AGENT = "agent"
    CONNECTOR = "connector"
    INTERMEDIATE = "intermediate"
    OPERATOR = "operator"


ROLE_USAGES: dict[Role, frozenset[x509.ObjectIdentifier]] = {
    Role.AGENT: frozenset({ExtendedKeyUsageOID.CLIENT_AUTH}),
    Role.CONNECTOR: frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
    Role.INTERMEDIATE: frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
    Role.OPERATOR: frozenset({ExtendedKeyUsageOID.CLIENT_AUTH}),
}
"""Extended key usages of each role: who may stand on the server's side of a TLS handshake."""


def is_label(text: str) -> bool:
    """Whether `text` is one DNS label: 1 to 63 of a-z, 0-9 and inner hyphens."""
    return _LABEL.fullmatch(text) is not None


def is_trust_domain(text: str) -> bool:
    """Whether `text` is a lower-case DNS name short enough to end every node's DNS SAN."""
    return len(text) <= MAX_TRUST_DOMAIN_LENGTH and all(is_label(label) for label in text.split("."))


@dataclass(frozen=True, slots=True, order=False)
class Identity:
    """A node's name. Raises `AuthenticationError("malformed")` if a part breaks the syntax."""

    trust_domain: str
    role: Role
    id: str

    def __post_init__(self) -> None:
        if not is_trust_domain(self.trust_domain):
            raise AuthenticationError(
                "malformed", f"{self.trust_domain[:80]!r} is not a trust domain (a lower-case DNS name)"
            )
        if not is_label(self.id):
            raise AuthenticationError(
                "malformed",
                f"{self.id[:80]!r} is not a node id (1 to {MAX_LABEL_LENGTH} of a-z, 0-9 and inner hyphens)",
            )

    @classmethod
    def from_uri(cls, uri: str) -> Identity:
        """Parse `ztna://<trust-domain>/<role>/<id>`; else `AuthenticationError("malformed")`."""
        scheme, separator, rest = uri.partition("://")
        parts = rest.split("/", 3)
        if scheme != URI_SCHEME or not separator or len(parts) != 3:  # noqa: PLR2004 - domain, role, id
            raise AuthenticationError(
                "malformed", f"{uri[:120]!r} is not of the form {URI_SCHEME}://<trust-domain>/<role>/<id>"
            )
        trust_domain, role, node_id = parts
        try:
            return cls(trust_domain, Role(role), node_id)
        except ValueError:
            raise AuthenticationError("malformed", f"{role[:40]!r} is not a role") from None

    @property
    def uri(self) -> str:
        """The URI SAN."""
        return f"{URI_SCHEME}://{self.trust_domain}/{self.role.value}/{self.id}"

    @property
    def dns_name(self) -> str:
        """The DNS SAN, for TLS libraries that check host names."""
        return f"{self.id}.{self.role.value}.{self.trust_domain}"

    def __str__(self) -> str:
        return f"{self.role.value} {self.id!r}"


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo: 32 bytes that name the key, whatever certificate carries it."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def identity_of(certificate: x509.Certificate) -> Identity:
    """The identity that a certificate claims, without judging who signed it.

    Raises `AuthenticationError("malformed")` unless exactly one URI SAN of ours is there.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except UNREADABLE as error:
        raise AuthenticationError("malformed", f"the certificate cannot be read ({error})") from error
    if len(uris) != 1:
        raise AuthenticationError(
            "malformed",
            f"the certificate has {len(uris)} URI names where one {URI_SCHEME}:// name is expected",
        )
    return Identity.from_uri(uris[0])


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """A peer whose certificate was accepted, and whose possession of the key the handshake proved.

    Attributes:
        fingerprint: SHA-256 of the certificate's SubjectPublicKeyInfo.
        not_after: end of validity, unix seconds.
    """

    identity: Identity
    fingerprint: bytes
    certificate: x509.Certificate
    not_after: float


class Verifier:
    """Judges peer certificates against the deployment's CA. Immutable: a reload builds a new one.

    `ca_certificates` are the accepted CAs (several during a change of CA); `trust_domain` is our own, and a
    peer's must equal it; `revocation` is the current list, or None where the deployment has none yet. Raises
    `ConfigError` if a CA certificate is not usable as one.
    """

    def __init__(
        self,
        ca_certificates: Sequence[x509.Certificate],
        trust_domain: str,
        revocation: RevocationList | None = None,
    ) -> None:
        if not ca_certificates:
            raise ConfigError("no CA certificate is configured")
        if not is_trust_domain(trust_domain):
            raise ConfigError(f"{trust_domain!r} is not a trust domain (a lower-case DNS name)")
        for ca in ca_certificates:
            check_ca(ca)
        self.ca_certificates = tuple(ca_certificates)
        self.trust_domain = trust_domain
        self.revocation = revocation

    def with_revocation(self, revocation: RevocationList | None) -> Verifier:
        """The same judge holding another revocation list."""
        return Verifier(self.ca_certificates, self.trust_domain, revocation)

    def verify(
        self,
        chain: Sequence[x509.Certificate],
        *,
        expect: Role | Collection[Role],
        now_wall: float,
        as_server: bool,
        expect_id: str | None = None,
    ) -> VerifiedPeer:
        """Accept the peer that presented `chain` (its own certificate first), or say why not.

        `expect` is the role, or roles, that this link serves; `expect_id` the node id that was asked for, if
        any; `as_server` whether the peer stands on the server's side of the handshake; `now_wall` unix
        seconds.

        Raises `AuthenticationError` with reason `missing`, `malformed`, `foreign_ca`, `not_yet_valid`,
        `expired`, `wrong_role`, `wrong_name` or `revoked`.
        """
        if not chain:
            raise AuthenticationError(
                "missing", "the peer presented no certificate; set node.cert and node.key there"
            )
        if len(chain) > MAX_CHAIN_CERTIFICATES:
            raise AuthenticationError(
                "malformed", f"the peer sent {len(chain)} certificates, we read {MAX_CHAIN_CERTIFICATES}"
            )
        leaf = chain[0]
        identity = identity_of(leaf)
        ca = self._issuer(leaf, identity)
        _check_dates(ca, f"the CA that issued the certificate of {identity}", now_wall, "replace the CA")
        _check_dates(leaf, f"the certificate of {identity}", now_wall, _renewal(identity))
        self._check_profile(leaf, ca, identity, now_wall)
        self._check_role(
            leaf, identity, {expect} if isinstance(expect, Role) else set(expect), as_server=as_server
        )
        self._check_name(leaf, identity, expect_id)
        self._check_revocation(leaf, identity)
        return VerifiedPeer(identity, fingerprint(leaf), leaf, leaf.not_valid_after_utc.timestamp())

    def recheck(self, peer: VerifiedPeer, *, now_wall: float) -> None:
        """Judge a peer again while its connection lives: dates and revocation are all that can have changed.

        Raises `AuthenticationError` with reason `expired`, `not_yet_valid` or `revoked`.
        """
        _check_dates(
            peer.certificate, f"the certificate of {peer.identity}", now_wall, _renewal(peer.identity)
        )
        self._check_revocation(peer.certificate, peer.identity)

    def _issuer(self, leaf: x509.Certificate, identity: Identity) -> x509.Certificate:
        for ca in self.ca_certificates:
            try:
                leaf.verify_directly_issued_by(ca)
            except (InvalidSignature, *UNREADABLE):
                continue
            return ca
        raise AuthenticationError(
            "foreign_ca",
            f"a certificate that claims to be {identity} of {identity.trust_domain!r} was not issued by this "
            f"deployment's CA; compare ca.crt on both nodes, or issue one here with 'ztna pki issue'",
        )

    @staticmethod
    def _check_profile(
        leaf: x509.Certificate, ca: x509.Certificate, identity: Identity, now_wall: float
    ) -> None:
        try:
            check_leaf(leaf, ca)
            if isinstance(leaf.public_key(), ec.EllipticCurvePublicKey) and isinstance(
                ca.public_key(), ec.EllipticCurvePublicKey
            ):
                # A second opinion by RFC 5280 path validation. The library refuses Ed25519 (the web's
                # rules), which only simulations use; every rule our profile needs is in `check_leaf` for
                # both.
                moment = datetime.fromtimestamp(now_wall, tz=UTC)
                policy = PolicyBuilder().store(Store([ca])).time(moment).max_chain_depth(0)
                policy.build_client_verifier().verify(leaf, [])
        except (VerificationError, x509.ExtensionNotFound, *UNREADABLE) as error:
            raise AuthenticationError(
                "malformed", f"the certificate of {identity} breaks the profile: {error}"
            ) from error

    @staticmethod
    def _check_role(
        leaf: x509.Certificate, identity: Identity, expected: set[Role], *, as_server: bool
    ) -> None:
        if identity.role not in expected:
            wanted = " or ".join(sorted(role.value for role in expected))
            raise AuthenticationError("wrong_role", f"{identity} came where only {wanted} is served")
        needed = ExtendedKeyUsageOID.SERVER_AUTH if as_server else ExtendedKeyUsageOID.CLIENT_AUTH
        usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        if needed not in ROLE_USAGES[identity.role] or not ROLE_USAGES[identity.role] <= usages:
            side = "server" if as_server else "client"
            raise AuthenticationError(
                "wrong_role",
                f"the certificate of {identity} does not let it act as a TLS {side}; issue it again",
            )

    def _check_name(self, leaf: x509.Certificate, identity: Identity, expect_id: str | None) -> None:
        if identity.trust_domain != self.trust_domain:
            raise AuthenticationError(
                "wrong_name",
                f"{identity} is of trust domain {identity.trust_domain!r}, ours is {self.trust_domain!r}",
            )
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if identity.dns_name not in names.get_values_for_type(x509.DNSName):
            raise AuthenticationError(
                "wrong_name",
                f"the certificate of {identity} lacks the DNS name {identity.dns_name}; issue it again",
            )
        if expect_id is not None and identity.id != expect_id:
            raise AuthenticationError("wrong_name", f"{identity} answered where {expect_id!r} was expected")

    def _check_revocation(self, leaf: x509.Certificate, identity: Identity) -> None:
        if self.revocation is not None and self.revocation.is_revoked(leaf.serial_number):
            raise AuthenticationError(
                "revoked", f"the certificate of {identity} (serial {leaf.serial_number:x}) was revoked"
            )


def _renewal(identity: Identity) -> str:
    return f"issue a new one: ztna pki issue {identity.role.value} {identity.id} --force"


def _check_dates(certificate: x509.Certificate, what: str, now_wall: float, remedy: str) -> None:
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now_wall > ends.timestamp():
        is_recent = now_wall - ends.timestamp() <= CLOCK_DOUBT_S
        doubt = f"{_clock_question(now_wall)}; if it is, " if is_recent else ""
        raise AuthenticationError("expired", f"{what} expired on {_utc(ends)}; {doubt}{remedy}")
    if now_wall < starts.timestamp():
        raise AuthenticationError(
            "not_yet_valid",
            f"{what} is valid from {_utc(starts)}; {_clock_question(now_wall)}; "
            f"if it is, that of the CA was ahead",
        )


def _clock_question(now_wall: float) -> str:
    return f"is the clock right? here it is {_utc(datetime.fromtimestamp(now_wall, tz=UTC))}"


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
