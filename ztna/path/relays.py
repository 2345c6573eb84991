"""Which relay the peer uses, where that is another one than the latest to come up.

The latest channel is taken for the latest choice of the agent, and once in a while it is not: an intermediate
that stood still believes that the agent is with it still, and gives a connector that comes back a channel to
nowhere. What tells is where packets of the peer come.
"""

from __future__ import annotations

import math

FOLLOW_AFTER_S = 1.0
"""What the peer sent before it moved to the selected relay may come over the other one for as long: the queue
of a relay (100 ms), one way there and one back, and what a busy radio adds."""


class RelayTrail:
    """Judges new authenticated packets by the relay they came over; times in monotonic seconds."""

    def __init__(self) -> None:
        self._selected = ""
        self._heard_at = -math.inf  # over the selected relay; its selection counts as well

    def handle_selected(self, intermediate_id: str, now: float) -> None:
        """Packets take this relay, or it stands by, from now on; empty: there is none."""
        if intermediate_id != self._selected:
            self._selected = intermediate_id
            self._heard_at = now

    def handle_new_packet(self, intermediate_id: str, now: float) -> bool:
        """Whether the peer is to be followed to this relay; told once per `FOLLOW_AFTER_S`."""
        if intermediate_id == self._selected:
            self._heard_at = now
            return False
        if not self._selected or now < self._heard_at + FOLLOW_AFTER_S:
            return False
        self._heard_at = now
        return True
