"""What is known of one path: kind, state, round-trip time, and how many of its checks were answered."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum, auto

from ztna.ice.timing import DEGRADED_RTT_FACTOR, LOWEST_RTT_WINDOW_CHECKS, PathState

UNKNOWN_RTT_S = 0.1
"""Assumed of a path without a sample: QUIC's own first guess here (`ztna.quic.adapter.INITIAL_RTT_S`)."""
DEGRADED_RTT_FLOOR_S = 0.010
"""Within a site three times a fraction of a millisecond is a busy processor, not a bad path."""
_SMOOTHING = 1 / 8
_VARIATION_SMOOTHING = 1 / 4
# RFC 6298 §2.2: half of the first sample.
_FIRST_VARIATION = 1 / 2


class PathKind(Enum):
    """How sealed packets travel."""

    NONE = "none"
    RELAY = "relay"
    DIRECT = "direct"

    @property
    def other(self) -> PathKind:
        """The kind that stands in for this one."""
        return _OTHERS[self]


_OTHERS = {
    PathKind.NONE: PathKind.NONE,
    PathKind.RELAY: PathKind.DIRECT,
    PathKind.DIRECT: PathKind.RELAY,
}


class Rtt:
    """Round-trip time of one path from its own checks, in seconds (smoothed as RFC 6298 §2 has it)."""

    __slots__ = ("minimum", "smoothed", "variation")

    def __init__(self, first_s: float | None = None) -> None:
        self.minimum = math.inf
        self.smoothed: float | None = None
        self.variation = 0.0
        self.add(first_s)

    def add(self, sample_s: float | None) -> None:
        """Take one sample; None, where a check could not tell, changes nothing."""
        if sample_s is None or sample_s <= 0:
            return
        self.minimum = min(self.minimum, sample_s)
        if self.smoothed is None:
            self.smoothed, self.variation = sample_s, sample_s * _FIRST_VARIATION
            return
        self.variation += _VARIATION_SMOOTHING * (abs(self.smoothed - sample_s) - self.variation)
        self.smoothed += _SMOOTHING * (sample_s - self.smoothed)

    @property
    def or_guess(self) -> float:
        """The smoothed value, or what is assumed of an unknown path."""
        return UNKNOWN_RTT_S if self.smoothed is None else self.smoothed

    @property
    def variation_or_guess(self) -> float:
        """The variation, or what is assumed of an unknown path."""
        return UNKNOWN_RTT_S * _FIRST_VARIATION if self.smoothed is None else self.variation

    @property
    def is_inflated(self) -> bool:
        """Whether a round trip takes far longer than it once did."""
        return self.smoothed is not None and self.smoothed > max(
            DEGRADED_RTT_FACTOR * self.minimum, self.minimum + DEGRADED_RTT_FLOOR_S
        )


class PathEvent(Enum):
    """What can change how a path fares."""

    WORKED = auto()
    """A check was answered, and nothing else speaks against the path."""
    IMPAIRED = auto()
    """One check was missed, packets are lost, or round trips take much longer."""
    BROKEN = auto()
    """Three checks missed, consent expired, or silent under traffic."""
    REPLACED = auto()
    """The checks of ICE, or a fresh channel, proved it anew; or it answered long enough to be trusted."""


TRANSITIONS: dict[tuple[PathState, PathEvent], PathState] = {
    (PathState.ACTIVE, PathEvent.WORKED): PathState.ACTIVE,
    (PathState.ACTIVE, PathEvent.IMPAIRED): PathState.DEGRADED,
    (PathState.ACTIVE, PathEvent.BROKEN): PathState.FAILED,
    (PathState.ACTIVE, PathEvent.REPLACED): PathState.ACTIVE,
    (PathState.DEGRADED, PathEvent.WORKED): PathState.ACTIVE,
    (PathState.DEGRADED, PathEvent.IMPAIRED): PathState.DEGRADED,
    (PathState.DEGRADED, PathEvent.BROKEN): PathState.FAILED,
    (PathState.DEGRADED, PathEvent.REPLACED): PathState.ACTIVE,
    (PathState.FAILED, PathEvent.WORKED): PathState.RECOVERING,
    (PathState.FAILED, PathEvent.IMPAIRED): PathState.FAILED,
    (PathState.FAILED, PathEvent.BROKEN): PathState.FAILED,
    (PathState.FAILED, PathEvent.REPLACED): PathState.ACTIVE,
    (PathState.RECOVERING, PathEvent.WORKED): PathState.RECOVERING,
    # What just came back has no credit: one missed check, and it has to begin again.
    (PathState.RECOVERING, PathEvent.IMPAIRED): PathState.FAILED,
    (PathState.RECOVERING, PathEvent.BROKEN): PathState.FAILED,
    (PathState.RECOVERING, PathEvent.REPLACED): PathState.ACTIVE,
}
"""Every state and every event, so that none is forgotten."""

USABLE = frozenset({PathState.ACTIVE, PathState.DEGRADED})
"""States in which a path may be selected for its own sake."""


class CheckHistory:
    """The last checks of one path, answered or not."""

    __slots__ = ("_answers", "missed")

    def __init__(self) -> None:
        self._answers: deque[bool] = deque(maxlen=LOWEST_RTT_WINDOW_CHECKS)
        self.missed = 0

    def note(self, *, is_answered: bool) -> None:
        """One check is over."""
        self._answers.append(is_answered)
        self.missed = 0 if is_answered else self.missed + 1

    @property
    def answered_share(self) -> float:
        """Of the last checks, 0 to 1; 1 while there was none."""
        return sum(self._answers) / len(self._answers) if self._answers else 1.0
