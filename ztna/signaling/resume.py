"""Whether a grant brings a session back, as far as the grant alone can tell.

Its signature and its issuer are verified before; which sessions there are is judged after.
"""

from __future__ import annotations

from ztna.access.grant import GRANT_LIFETIME_S, GRANT_TOLERANCE_S, SESSION_ID_BYTES, GrantClaims
from ztna.access.identity import Role
from ztna.access.policy import AccessPolicy
from ztna.signaling.values import Code, Party


def parties_of(claims: GrantClaims) -> tuple[Party, Party]:
    """Agent and connector that a grant names."""
    return (
        Party(Role.AGENT, claims.agent_id, claims.agent_fingerprint),
        Party(Role.CONNECTOR, claims.connector_id, claims.connector_fingerprint),
    )


def judge_grant(
    party: Party, claims: GrantClaims, access: AccessPolicy, max_offline_s: float, now_wall: float
) -> tuple[Code, str] | None:
    """Why `party` cannot resume by these claims, or None.

    An expired grant serves for `max_offline_s` longer: nobody could renew it while no intermediate was there.
    `now_wall` is unix seconds.
    """
    agent, connector = parties_of(claims)
    if len(claims.session_id) != SESSION_ID_BYTES:
        return Code.INVALID_MESSAGE, "a session id has 16 bytes"
    if party not in {agent, connector}:
        return Code.NOT_A_PARTY, f"the grant does not name {party} with this key"
    if not access.may_open(agent.id, claims.service):
        return Code.ACCESS_DENIED, f"no rule of 'policy' lets {agent} open {claims.service[:64]!r}"
    expired_s = now_wall - min(claims.expires_at, claims.issued_at + GRANT_LIFETIME_S)
    if expired_s > max_offline_s + GRANT_TOLERANCE_S:
        return Code.ACCESS_DENIED, f"the grant expired {expired_s:.0f} s ago"
    if claims.issued_at - now_wall > GRANT_TOLERANCE_S:
        return Code.ACCESS_DENIED, "the grant starts in the future: check the clocks"
    return None
