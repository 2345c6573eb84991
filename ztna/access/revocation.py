"""Which certificates the CA has withdrawn: a revocation list (RFC 5280 §5), verified before use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ztna.access.profile import UNREADABLE
from ztna.errors import AuthenticationError

MAX_CRL_BYTES = 16 * 1024 * 1024
"""About 400,000 revoked certificates at 38 bytes each: far beyond one deployment, and parsed within a
second."""

_PEM_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


class RevocationList:
    """The serial numbers that are no longer accepted.

    Honoured for as long as it is the newest list we hold. `next_update` in the past means that the CA owes a
    newer one: `is_stale` reports it so that a daemon can warn, but a stale list goes on refusing what it
    lists, and does not refuse the rest (a CA that is offline must not take the deployment down).

    Attributes:
        next_update: unix seconds at which the CA promised a newer list at the latest, or None.
    """

    def __init__(self, serials: frozenset[int], next_update: float | None = None) -> None:
        self._serials = serials
        self.next_update = next_update

    @classmethod
    def parse(cls, data: bytes, ca_certificates: Sequence[x509.Certificate]) -> RevocationList:
        """Read one DER list, or one or more PEM lists (during a change of CA each CA has its own).

        Raises `AuthenticationError` with reason `malformed`, `foreign_ca` or `bad_signature`: a list that
        nobody vouches for must never silently stand in for the real one.
        """
        if len(data) > MAX_CRL_BYTES:
            raise AuthenticationError(
                "malformed", f"the revocation list is larger than {MAX_CRL_BYTES} bytes"
            )
        try:
            blocks = _PEM_BLOCK.findall(data)
            lists = [x509.load_pem_x509_crl(block) for block in blocks] or [x509.load_der_x509_crl(data)]
            return cls._merge(lists, ca_certificates)
        except UNREADABLE as error:
            raise AuthenticationError("malformed", f"the revocation list cannot be read ({error})") from error

    @classmethod
    def _merge(
        cls, lists: Sequence[x509.CertificateRevocationList], ca_certificates: Sequence[x509.Certificate]
    ) -> RevocationList:
        serials: set[int] = set()
        updates: list[float] = []
        for crl in lists:
            _check_signature(crl, ca_certificates)
            _check_extensions(crl.extensions)
            for entry in crl:
                _check_extensions(entry.extensions)
                serials.add(entry.serial_number)
            if crl.next_update_utc is not None:
                updates.append(crl.next_update_utc.timestamp())
        return cls(frozenset(serials), min(updates, default=None))

    def is_revoked(self, serial: int) -> bool:
        """Whether the CA has withdrawn the certificate with this serial number."""
        return serial in self._serials

    def is_stale(self, now_wall: float) -> bool:
        """Whether a newer list was due before `now_wall` (unix seconds)."""
        return self.next_update is not None and now_wall > self.next_update

    def __len__(self) -> int:
        return len(self._serials)


def _check_signature(
    crl: x509.CertificateRevocationList, ca_certificates: Sequence[x509.Certificate]
) -> None:
    issuers = [ca for ca in ca_certificates if ca.subject == crl.issuer]
    if not issuers:
        raise AuthenticationError(
            "foreign_ca", f"the revocation list was issued by {crl.issuer.rfc4514_string()!r}, not by our CA"
        )
    for ca in issuers:
        key = ca.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) and crl.is_signature_valid(
            key
        ):
            return
    raise AuthenticationError("bad_signature", "the revocation list does not carry our CA's signature")


def _check_extensions(extensions: x509.Extensions) -> None:
    # RFC 5280 §5.2: a list whose critical extension we do not process (a delta, or one of limited scope)
    # must not be used.
    for extension in extensions:
        if extension.critical:
            raise ValueError(f"unknown critical extension {extension.oid.dotted_string}")
