"""Opens sealed grants; an issuer's chain is judged once for all the grants that carry it.

Most of the cost of a grant (1.5 ms) is its issuer's certificate, and a deployment has a handful of those. A
verdict holds for a minute, so that whatever else a chain depends on is looked at again; dates and revocation
are checked at each use. After a reload of the CA or the revocation list nothing is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from actors import translate
from actors.credentials import Credentials
from ztna.access.grant import GrantClaims, verify_signature
from ztna.access.identity import Role, VerifiedPeer
from ztna.errors import AuthenticationError, RemoteProtocolError
from ztna.v1 import grant_pb2

MAX_ISSUERS = 64
"""Verdicts remembered: the intermediates of a deployment, each with a certificate about to be replaced."""

VERDICT_LIFETIME_S = 60.0
"""Short against every lifetime of a certificate."""

_Key = tuple[str, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class _Verdict:
    until_wall: float
    issuer: VerifiedPeer | None = None
    reason: str = ""
    detail: str = ""


class GrantOpener:
    """Verifies grants against our own CA; `verifications` counts chains that had to be judged."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._verifier = credentials.verifier
        self._verdicts: OrderedDict[_Key, _Verdict] = OrderedDict()
        self.verifications = 0

    def knows_issuer(self, sealed: grant_pb2.SealedGrant, now_wall: float) -> bool:
        """Whether opening this grant costs its signature alone, or not even that."""
        try:
            key = _key(sealed, translate.claims_from_bytes(sealed.claims))
        except RemoteProtocolError:
            return True
        return self._remembered(key, now_wall) is not None

    def open(self, sealed: grant_pb2.SealedGrant, now_wall: float) -> GrantClaims:
        """Claims that an intermediate of this deployment signed. Raises as `translate.open_grant` does."""
        claims = translate.claims_from_bytes(sealed.claims)
        issuer = self._issuer(sealed, claims, now_wall)
        self._verifier.recheck(issuer, now_wall=now_wall)
        verify_signature(issuer.certificate, sealed.claims, sealed.signature)
        return claims

    def _issuer(self, sealed: grant_pb2.SealedGrant, claims: GrantClaims, now_wall: float) -> VerifiedPeer:
        key = _key(sealed, claims)
        verdict = self._remembered(key, now_wall)
        if verdict is None:
            self.verifications += 1
            verdict = self._judge(sealed, claims, now_wall)
            self._verdicts[key] = verdict
            if len(self._verdicts) > MAX_ISSUERS:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(key)
        if verdict.issuer is None:
            raise AuthenticationError(verdict.reason, verdict.detail)
        return verdict.issuer

    def _judge(self, sealed: grant_pb2.SealedGrant, claims: GrantClaims, now_wall: float) -> _Verdict:
        until = now_wall + VERDICT_LIFETIME_S
        try:
            chain = translate.chain_from_der(sealed.issuer_chain)
            issuer = self._verifier.verify(
                chain, expect=Role.INTERMEDIATE, expect_id=claims.issuer, now_wall=now_wall, as_server=True
            )
        except (AuthenticationError, RemoteProtocolError) as error:
            return _Verdict(until, reason=error.reason, detail=str(error))
        return _Verdict(until, issuer)

    def _remembered(self, key: _Key, now_wall: float) -> _Verdict | None:
        if self._verifier is not self._credentials.verifier:
            self._verifier = self._credentials.verifier
            self._verdicts.clear()
        verdict = self._verdicts.get(key)
        # A wall clock that was set back must not keep a verdict for ever.
        if verdict is None or not 0 <= verdict.until_wall - now_wall <= VERDICT_LIFETIME_S:
            return None
        return verdict


def _key(sealed: grant_pb2.SealedGrant, claims: GrantClaims) -> _Key:
    return claims.issuer, tuple(sealed.issuer_chain)
