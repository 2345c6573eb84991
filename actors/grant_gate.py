"""The connector's own judgement of grants: nothing is opened on the word of anybody else.

A grant is verified once per session: issuer's certificate against our CA and revocation list, signature over
the claims. What it claims is compared anew at each use, since time passes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from actors import translate
from actors.credentials import Credentials
from ztna.access import grant
from ztna.access.grant import GrantClaims
from ztna.access.identity import Identity, Role, VerifiedPeer
from ztna.errors import AccessDenied, AuthenticationError, RemoteProtocolError
from ztna.service.tcp_effects import StreamError
from ztna.v1 import grant_pb2, types_pb2

MAX_GRANTS = 256
"""Verified grants remembered per session: one for each service of a large agent. The one that was used the
longest time ago makes room, and would have to be verified again."""


MENDABLE = frozenset({"expired", "not_yet_valid", "revoked"})
"""What time has done to a grant, or to the certificate of its issuer: the agent may show another one."""


class RefusedError(Exception):
    """An open is refused; the agent is told `code` and `message`."""

    def __init__(self, code: StreamError, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class _Holder:
    identity: Identity
    fingerprint: bytes


class GrantGate:
    """Judges the grants that the agent of one session shows."""

    def __init__(
        self,
        credentials: Credentials,
        wall_time: Callable[[], float],
        session_id: bytes,
        agent: types_pb2.NodeIdentity,
    ) -> None:
        """`agent` is the peer as the session's handshake proved it; `credentials` are our own."""
        self._credentials = credentials
        self._wall_time = wall_time
        self._session_id = session_id
        # The key of this session's handshake; a renewed one is for later sessions.
        self._own_fingerprint = credentials.fingerprint
        identity = Identity(credentials.identity.trust_domain, Role.AGENT, agent.id)
        # All that a check reads of a verified peer; its certificate stayed with the session.
        self._agent = cast("VerifiedPeer", _Holder(identity, agent.fingerprint))
        self._verified: OrderedDict[bytes, GrantClaims] = OrderedDict()
        self._newest_issued_at = -1
        self.verifications = 0

    def admit(self, service: str, sealed: grant_pb2.SealedGrant) -> bool:
        """Let the agent open `service` now; True if the grant is newer than all before it.

        Raises `RefusedError`.
        """
        try:
            claims = self._claims(sealed)
            grant.check(
                claims,
                session_id=self._session_id,
                agent=self._agent,
                connector_id=self._credentials.identity.id,
                connector_fingerprint=self._own_fingerprint,
                service=service,
                now_wall=self._wall_time(),
            )
        except (AccessDenied, AuthenticationError) as error:
            is_mendable = error.reason in MENDABLE
            code = StreamError.GRANT_REFUSED if is_mendable else StreamError.ACCESS_DENIED
            raise RefusedError(code, str(error)) from error
        except RemoteProtocolError as error:
            raise RefusedError(StreamError.INVALID, str(error)) from error
        is_newest = claims.issued_at > self._newest_issued_at
        if is_newest:
            self._newest_issued_at = claims.issued_at
        return is_newest

    def _claims(self, sealed: grant_pb2.SealedGrant) -> GrantClaims:
        digest = hashlib.sha256(sealed.SerializeToString(deterministic=True)).digest()
        claims = self._verified.get(digest)
        if claims is None:
            self.verifications += 1
            claims = translate.open_grant(sealed, self._credentials.verifier, self._wall_time())
            self._verified[digest] = claims
            if len(self._verified) > MAX_GRANTS:
                self._verified.popitem(last=False)
        else:
            self._verified.move_to_end(digest)
        return claims
