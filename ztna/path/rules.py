"""The rules of a path, as one table: what happened, and what this end does then (docs/wire.md §7).

Both ends live by the same table; none of its rules asks which end it is at. `ztna.path.traffic` acts on what
the packets tell, `ztna.path.manager` on what the checks tell.
"""

from __future__ import annotations

from enum import Enum, auto


class Event(Enum):
    """What this end learns of its paths."""

    RELAY_UP = auto()
    """The session can be reached through an intermediate."""
    RELAY_DOWN = auto()
    """No longer."""
    PAIR_NOMINATED = auto()
    """ICE proved a direct pair, at full size."""
    TRUST_STALE = auto()
    """Something is to be sent, and the direct pair gave no sign of life for `TRUST_S`."""
    SUSPICION = auto()
    """Nothing comes on the selected path, and the peer owes an acknowledgement or sends over the other."""
    FLOW_STOPPED = auto()
    """What came steadily on the selected path comes no more, while the peer owes nothing: maybe a pause."""
    MIRROR = auto()
    """A new packet of the peer comes on another live path than the one selected here."""
    PEER_MOVED = auto()
    """The first new packet of the peer on another path than before."""
    CONFIRMED = auto()
    """The selected path answered a check, or acknowledged what went over it alone."""
    SUSPECT_SILENT = auto()
    """A suspected path stayed silent for `max(1 s, 4 RTT)`, and a round trip longer than it was suspected."""
    CHECK_MISSED = auto()
    """A check was not answered in time."""
    CHECKS_FAILED = auto()
    """Three in a row were not."""
    CONSENT_EXPIRED = auto()
    """A direct pair was not confirmed for 30 s."""
    FAILED_PAIR_ANSWERS = auto()
    """A check of a failed pair was answered."""
    PAIR_HELD = auto()
    """It answered twice at least, over 3 s."""


class Action(Enum):
    """What this end does."""

    SELECT = auto()
    """Rank the paths and send over the best from now on; a switch forgets RTT and backoff, and pings."""
    ACTIVATE = auto()
    DEGRADE = auto()
    FAIL = auto()
    RECOVER = auto()
    """The state of the path in question."""
    RESTART_ICE = auto()
    """At once, but seldom."""
    SEND_BOTH_UNTIL_CONFIRMED = auto()
    SEND_BOTH_FOR_A_WHILE = auto()
    """Packets travel over both paths; QUIC drops what comes twice."""
    SEND_ONE = auto()
    """Packets travel over the selected path alone."""
    PROBE_BOTH = auto()
    """Forget the backoff; one probe over the other path alone, then one over both.

    The peer sees the first one as a new packet on the other path, and mirrors: without that its answers
    could take the dead path for as long as it has nothing else to send.
    """
    PROBE_SELECTED = auto()
    """From now on the peer owes an answer: over a relay to a PING, over a direct path to the check alone.

    A PING that comes on a direct path which is dead the other way would calm the suspicion of its peer.
    """
    FORGET_RTT = auto()
    """Round trips and backoff of the former path mean nothing on this one."""
    TELL = auto()
    """Whoever selects and checks paths hears of it."""


RULES: dict[Event, tuple[Action, ...]] = {
    Event.RELAY_UP: (Action.ACTIVATE, Action.SELECT),
    Event.RELAY_DOWN: (Action.SELECT,),
    Event.PAIR_NOMINATED: (Action.ACTIVATE, Action.SELECT),
    Event.TRUST_STALE: (Action.SEND_BOTH_UNTIL_CONFIRMED,),
    Event.SUSPICION: (Action.SEND_BOTH_UNTIL_CONFIRMED, Action.PROBE_BOTH, Action.TELL),
    Event.FLOW_STOPPED: (Action.PROBE_SELECTED, Action.TELL),
    Event.MIRROR: (Action.SEND_BOTH_FOR_A_WHILE, Action.TELL),
    Event.PEER_MOVED: (Action.FORGET_RTT,),
    Event.CONFIRMED: (Action.SEND_ONE,),
    Event.SUSPECT_SILENT: (Action.FAIL, Action.SELECT, Action.RESTART_ICE),
    Event.CHECK_MISSED: (Action.DEGRADE, Action.SELECT),
    Event.CHECKS_FAILED: (Action.FAIL, Action.SELECT, Action.RESTART_ICE),
    Event.CONSENT_EXPIRED: (Action.FAIL, Action.SELECT, Action.RESTART_ICE),
    Event.FAILED_PAIR_ANSWERS: (Action.RECOVER,),
    Event.PAIR_HELD: (Action.ACTIVATE, Action.SELECT),
}
