"""Certificates, revocation lists and grants: what strangers show, and what a trusted one signs.

The first byte of an input chooses: 0 as it is, 1 content that our own CA or intermediate signs, as one that
was captured would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from actors import translate
from actors.credentials import parse_credentials
from actors.grant_gate import MAX_GRANTS, GrantGate, RefusedError
from actors.grant_opener import MAX_ISSUERS, GrantOpener
from tools.fuzz import identities
from tools.fuzz.identities import AGENT_ID, CONNECTOR_ID, INTERMEDIATE_ID, NOW, SESSION_ID
from tools.fuzz.target import Target, require
from ztna.access.identity import Role, identity_of
from ztna.access.revocation import RevocationList
from ztna.errors import AccessDenied, AuthenticationError, ConfigError, RemoteProtocolError
from ztna.v1 import grant_pb2, types_pb2

AS_IS, SIGNED = b"\0", b"\1"
PEM, PEM_KEY, PEM_CA = b"\2", b"\3", b"\4"
_NODES = ((Role.AGENT, AGENT_ID), (Role.CONNECTOR, CONNECTOR_ID), (Role.INTERMEDIATE, INTERMEDIATE_ID))
# Tags and lengths of DER, our extensions' names, and names that a certificate may carry.
_DER_TOKENS = tuple(
    bytes.fromhex(text)
    for text in (
        "0603551d11", "0603551d0f", "0603551d13", "0603551d25", "0603551d23", "0603551d0e", "0101ff",
        "020100", "3080", "3084ffffffff", "170d3939313233313233353935395a",
        "180f30303030303130313030303030305a", "180f39393939313233313233353935395a", "0500", "a003020102",
        "0c00", "1e0100", "160d7a746e613a2f2f",
    )
)  # fmt: skip


class Certificate(Target):
    """A peer's chain ends in a verdict."""

    name = "certificate"
    what = "X.509 certificates, in DER from peers, signed by our CA, and as PEM files"
    documented = (RemoteProtocolError, AuthenticationError, ConfigError)
    tokens = _DER_TOKENS
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (AS_IS, SIGNED, PEM, PEM_KEY, PEM_CA)

    def corpus(self) -> list[bytes]:
        issued = [identities.issue(role, node) for role, node in _NODES]
        return [
            *(AS_IS + each.certificate.public_bytes(Encoding.DER) for each in issued),
            *(SIGNED + each.certificate.tbs_certificate_bytes for each in issued),
            PEM + issued[0].certificate_pem,
            PEM_KEY + issued[0].key_pem,
            PEM_CA + identities.ca_pem(),
        ]

    def feed(self, data: bytes) -> None:
        kind, body = data[:1], data[1:]
        if kind in {PEM, PEM_KEY, PEM_CA}:
            own = identities.issue(Role.AGENT, AGENT_ID)
            parse_credentials(
                body if kind == PEM else own.certificate_pem,
                body if kind == PEM_KEY else own.key_pem,
                body if kind == PEM_CA else identities.ca_pem(),
                None,
                Role.AGENT,
                NOW,
            )
            return
        der = identities.resign(body) if kind == SIGNED else body
        chain = translate.chain_from_der([der])
        peer = identities.verifier().verify(chain, expect=set(Role), now_wall=NOW, as_server=False)
        identities.verifier().recheck(peer, now_wall=NOW)
        require(
            identity_of(chain[0]) == peer.identity, "the verified identity is another than the claimed one"
        )
        if kind != SIGNED:
            again = x509.load_der_x509_certificate(der)
            require(again == chain[0], "a certificate that reads differently")


class Revocations(Target):
    """A list is read as a whole or refused."""

    name = "revocation-list"
    what = "revocation lists, DER and PEM, also signed by our CA"
    documented = (AuthenticationError,)
    tokens = (*_DER_TOKENS, b"-----BEGIN X509 CRL-----\n", b"\n-----END X509 CRL-----\n")
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (AS_IS, SIGNED)

    def corpus(self) -> list[bytes]:
        der = identities.revocation_list()
        crl = x509.load_der_x509_crl(der)
        return [AS_IS + der, AS_IS + crl.public_bytes(Encoding.PEM) * 2, SIGNED + crl.tbs_certlist_bytes]

    def feed(self, data: bytes) -> None:
        body = identities.resign(data[1:]) if data[:1] == SIGNED else data[1:]
        parsed = RevocationList.parse(body, [identities.ca().certificate])
        require(len(parsed) * 10 <= len(body), "more serial numbers than bytes could say")
        parsed.is_stale(NOW)


class Grant(Target):
    """Only what the intermediate signed for this session opens anything."""

    name = "grant"
    what = (
        "sealed grants as a connector and a resuming intermediate take them, also signed by an intermediate"
    )
    documented = (RemoteProtocolError, AuthenticationError, AccessDenied, RefusedError)
    is_protobuf = True
    short_runs = 400
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (AS_IS, SIGNED)

    def __init__(self) -> None:
        own = identities.credentials(Role.CONNECTOR, CONNECTOR_ID)
        fingerprint = identities.credentials(Role.AGENT, AGENT_ID).fingerprint
        agent = types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id=AGENT_ID, fingerprint=fingerprint)
        self._gate = GrantGate(own, lambda: NOW, SESSION_ID, agent)
        self._opener = GrantOpener(identities.credentials(Role.INTERMEDIATE, INTERMEDIATE_ID))

    def corpus(self) -> list[bytes]:
        stated = [
            identities.claims(),
            identities.claims("dns", expires_at=int(NOW) + 60),
            identities.claims(version=2),
        ]
        sealed = [AS_IS + identities.seal(each).SerializeToString() for each in stated]
        return sealed + [SIGNED + translate.claims_to_proto(each).SerializeToString() for each in stated]

    def feed(self, data: bytes) -> None:
        sealed = self._sealed(data)
        if sealed is None:
            return
        self._opener.knows_issuer(sealed, NOW)
        claims = self._opener.open(sealed, NOW)
        self._gate.admit(claims.service, sealed)
        expected = identities.claims(claims.service, issued_at=claims.issued_at, expires_at=claims.expires_at)
        require(claims == expected, f"a grant for somebody else opens {claims.service!r}")

    def check(self) -> None:
        require(len(self._gate._verified) <= MAX_GRANTS, "too many grants remembered")  # noqa: SLF001 - its bound
        require(len(self._opener._verdicts) <= MAX_ISSUERS, "too many issuers remembered")  # noqa: SLF001

    def _sealed(self, data: bytes) -> grant_pb2.SealedGrant | None:
        if data[:1] == SIGNED:
            key = identities.key_of(f"intermediate {INTERMEDIATE_ID}")
            return grant_pb2.SealedGrant(
                claims=data[1:],
                signature=identities.sign(key, b"ztna grant v1\0" + data[1:]),
                issuer_chain=identities.credentials(Role.INTERMEDIATE, INTERMEDIATE_ID).chain_der,
            )
        try:
            return grant_pb2.SealedGrant.FromString(data[1:])
        except DecodeError:
            return None  # its callers have tests of their own


TARGETS: Sequence[type[Target]] = (Certificate, Revocations, Grant)
