"""Sessions that a node brings along when it attaches: how many, and whether a grant brings one back.

The latter as far as the grant alone can tell: its signature and its issuer are verified before; which
sessions there are is judged after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ztna.access.grant import GRANT_LIFETIME_S, GRANT_TOLERANCE_S, SESSION_ID_BYTES, GrantClaims
from ztna.access.identity import Role
from ztna.access.policy import AccessRules
from ztna.signaling.values import Code, Party

MAX_RESUMED_SESSIONS: Final = 4096
"""Per attachment: what a connector accepts in all, and 16 times what an agent may have. An intermediate
verifies that many grants in three seconds."""

MAX_RESUME_BYTES: Final = MAX_RESUMED_SESSIONS * 2048
"""Per attachment: a session's id and a grant with its issuer's certificate take about 1 KiB, twice that with
a second certificate in the chain."""


def spread(sizes: Sequence[int], max_frame_bytes: int) -> list[range]:
    """Which entries go into which frame, as indices: each frame as full as it gets, in order.

    `sizes` are encoded bytes, framing included. There is always a first frame, be it empty; an entry that
    fits into none ends the list, as do `MAX_RESUMED_SESSIONS` and `MAX_RESUME_BYTES`.
    """
    frames: list[range] = []
    start = total = room_taken = 0
    end = 0
    for end, size in enumerate(sizes):
        total += size
        if size > max_frame_bytes or total > MAX_RESUME_BYTES or end >= MAX_RESUMED_SESSIONS:
            break
        if room_taken + size > max_frame_bytes:
            frames.append(range(start, end))
            start, room_taken = end, 0
        room_taken += size
    else:
        end = len(sizes)
    if end > start or not frames:
        frames.append(range(start, end))
    return frames


def parties_of(claims: GrantClaims) -> tuple[Party, Party]:
    """Agent and connector that a grant names."""
    return (
        Party(Role.AGENT, claims.agent_id, claims.agent_fingerprint),
        Party(Role.CONNECTOR, claims.connector_id, claims.connector_fingerprint),
    )


def judge_grant(
    party: Party, claims: GrantClaims, rules: AccessRules, max_offline_s: float, now_wall: float
) -> tuple[Code, str] | None:
    """Why `party` cannot resume by these claims, or None.

    Which services the session may carry is judged apart from it, since a grant names only one of them. An
    expired grant serves for `max_offline_s` longer: nobody could renew it while no intermediate was there.
    `now_wall` is unix seconds.
    """
    agent, connector = parties_of(claims)
    if len(claims.session_id) != SESSION_ID_BYTES:
        return Code.INVALID_MESSAGE, "a session id has 16 bytes"
    # By name: a node that renewed its key holds its sessions still. What its grants say of keys is for the
    # other end, which compares them with those of the session's own handshake.
    if party.name not in {agent.name, connector.name}:
        return Code.NOT_A_PARTY, f"the grant does not name {party}"
    if not rules.services_between(agent.id, connector.id):
        return Code.ACCESS_DENIED, f"no rule lets {agent} open anything that {connector} may provide"
    expired_s = now_wall - min(claims.expires_at, claims.issued_at + GRANT_LIFETIME_S)
    if expired_s > max_offline_s + GRANT_TOLERANCE_S:
        return (
            Code.ACCESS_DENIED,
            f"the grant expired {expired_s:.0f} s ago: check the clocks",
        )
    if claims.issued_at - now_wall > GRANT_TOLERANCE_S:
        return Code.ACCESS_DENIED, "the grant starts in the future: check the clocks"
    return None
