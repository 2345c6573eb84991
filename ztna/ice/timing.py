"""Agreed times and thresholds of the direct path, in seconds unless the name says otherwise (docs/wire.md).

The send schedule of a check is `ztna.stun.transaction.CONNECTIVITY_CHECK`; the limits that the intermediate
keeps are in `ztna.signaling.exchange`.
"""

from __future__ import annotations

from enum import Enum

CHECK_PACING_S = 0.02
"""`ta`: between two new checks of a node. RFC 8445 §14.2 allows 5 ms; 50 a second flood no link."""
NOMINATION_SETTLE_S = 5.0
"""After the first nomination: until then a better pair takes its place, later only a restart changes it."""
DIRECT_PATH_LIMIT_S = 5.0
"""From the start of checks; then `relay` is reported, and attempts go on."""
RELAY_REPORTED_LIMIT_S = 10.0
"""From the offer: by then everybody knows that the session is relayed for now."""

KEEPALIVE_ACTIVE_S = 5.0
"""Consent check while payload flowed lately (RFC 7675 §5.1)."""
KEEPALIVE_IDLE_S = 15.0
"""Consent check otherwise: half of what NATs with 30 s mappings allow."""
KEEPALIVE_JITTER = (0.8, 1.2)
"""Factor on either, drawn evenly (RFC 7675 §5.1)."""
KEEPALIVE_ACTIVITY_S = 30.0
"""How long ago payload may have flowed and still count."""
KEEPALIVE_TIMEOUT_S = 5.0
"""Unanswered for this long is missed; the next check follows at once."""
KEEPALIVE_SENDS_S = (0.0, 0.5, 1.5)
"""Sends of one check: a single lost packet is no missed check. Later ones on paths slower than these gaps."""
KEEPALIVE_URGENT_SENDS_S = (0.0, 0.1, 0.3, 0.7)
"""Of a check that decides whether a suspected path is given up, within a second."""
DEGRADED_AFTER_MISSED = 1
FAILED_AFTER_MISSED = 3
DEGRADED_LOSS_SHARE = 0.05
DEGRADED_LOSS_WINDOW_S = 5.0
"""A path that loses more than the share of what was sent within the window is degraded."""
DEGRADED_RTT_FACTOR = 3.0
"""So is one whose round trips take more than this factor of their minimum."""
CONSENT_LIMIT_S = 30.0
"""No payload to a pair that was not confirmed for so long (RFC 7675 §5.1)."""

FAIL_OVER_MIN_S = 1.0
FAIL_OVER_ROUND_TRIPS = 4
"""A path that stays silent under traffic is given up after the larger of these two."""

COOLDOWN_FIRST_S = 30.0
COOLDOWN_MAX_S = 600.0
COOLDOWN_JITTER = 0.2
"""A pair that never worked is tried again after the first, doubling to the maximum, ± jitter."""
RECHECK_S = (1.0, 2.0, 4.0)
"""A pair that carried data and failed is checked again after these."""
RECHECK_MAX_S = 30.0
"""Then twice as late each time, up to this: a path that stays dead costs two packets a minute."""
ADOPTED_AFTER_ANSWERS = 2
ADOPTED_AFTER_S = 3.0
"""A failed pair that answers is selected again after so many answers over so many seconds."""
RESTART_INTERVAL_S = 30.0
"""Between two ICE restarts of a session, unless an address changed."""

LOWEST_RTT_SHARE = 0.5
"""Policy `lowest_rtt` goes direct below this share of the relay's RTT, and back the same way."""
LOWEST_RTT_ANSWERED_SHARE = 0.8
LOWEST_RTT_WINDOW_CHECKS = 10
LOWEST_RTT_FIRST_SHARE = 0.7
"""The first choice is easier, as nothing has to be left for it."""
LOWEST_RTT_HELD_SAMPLES = 3


class HolePunchState(Enum):
    """Where a session's attempt at a direct path is."""

    IDLE = "idle"
    GATHERING = "gathering"
    SIGNALING = "signaling"
    WAITING_TO_START = "waiting_to_start"
    CHECKING = "checking"
    CONNECTED = "connected"
    FALLBACK_RELAY = "fallback_relay"
    FAILED = "failed"


class PathState(Enum):
    """How a path fares; a recovering one answers again and is never selected."""

    ACTIVE = "active"
    DEGRADED = "degraded"
    FAILED = "failed"
    RECOVERING = "recovering"
