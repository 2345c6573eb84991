"""Where the packets of one session go, batch by batch: the half of the rules that packets trigger.

Whoever drives the session's connection asks `routes` for each batch that leaves, reports each batch that
came (`handle_received`) and how far the peer has acknowledged (`handle_progress`). Paths are selected
elsewhere and told here; this core only decides when the other path carries the same packets as well, and when
the selected one is to be given up. It acts by the table in `ztna.path.rules`, the same at both ends; the one
rule that is asked for each batch, `TRUST_STALE`, is a comparison in `routes`.

A packet that came again counts as a sign of life of its path, since both copies were made by the peer; only a
new one tells which path the peer prefers. What clears a suspicion has to prove both directions: an answered
check, or the acknowledgement of a packet that went over the suspected path alone, heard on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ztna.ice.timing import CONSENT_LIMIT_S, FAIL_OVER_MIN_S, FAIL_OVER_ROUND_TRIPS
from ztna.path.path import PathKind, Rtt
from ztna.path.rules import RULES, Action, Event

TRUST_S = 6.5
"""A direct pair without a sign of life for so long is not trusted alone: checks come every 4 to 6 s under
traffic, and half a second is room for their answer."""
SUSPICION_MIN_S = 0.150
"""Shorter silences are scheduling, garbage collection or a busy radio, far more often than a dead path."""
SUSPICION_ROUND_TRIPS = 1.5
SUSPICION_VARIATIONS = 4
STEADY_ARRIVALS = 8
"""Batches in a row that make a flow: fewer are an exchange, whose end tells nothing."""
STOPPED_GAPS = 4
"""A steady flow has stopped after so many of its gaps. Where packets come by chance two gaps in a hundred are
as long (e^-4); what follows is one probe and no switch."""
STOPPED_MAX_S = 1.0
"""A flow whose gaps are so long that its stop would be noticed later is none: keepalives ask as soon."""
FLOW_PROBE_INTERVAL_S = 1.0
"""An application that pauses again and again is probed once a second at most."""
DESERTED_INTERVAL_S = 5.0
"""A peer may prefer the other path for reasons of its own: having answered for the selected one, it is
doubted for that again no sooner than keepalives ask under traffic anyway."""
MIRROR_S = 1.0
"""As long as a suspicion lasts at most on a path below 250 ms: by then the peer has decided."""
PEER_RESET_INTERVAL_S = 1.0
"""While both ends send over two paths, new packets may come on either in turn: one reset a second will do."""


@dataclass(frozen=True, slots=True)
class ForgetRtt:
    """Packets take another path: forget RTT and backoff, declare nothing lost for a while, ping."""

    old_rtt_s: float
    new_rtt_s: float


@dataclass(frozen=True, slots=True)
class ProbeBoth:
    """Forget the backoff and send two probes: the first over `alone`, the second over both paths."""

    alone: PathKind


@dataclass(frozen=True, slots=True)
class ProbeSelected:
    """Send one probe over the selected path, a relay; its leg's mapping at a NAT is made anew by it."""


@dataclass(frozen=True, slots=True)
class FlowStopped:
    """A steady flow on the selected path stopped: ask both paths whether they live."""

    kind: PathKind
    silent_s: float


@dataclass(frozen=True, slots=True)
class PathSuspected:
    """The selected path is silent although the peer owes an acknowledgement, or sends over the other one."""

    kind: PathKind
    silent_s: float


@dataclass(frozen=True, slots=True)
class PathSilent:
    """It stayed silent: it has failed."""

    kind: PathKind
    silent_s: float


@dataclass(frozen=True, slots=True)
class PeerOnPath:
    """New packets of the peer come here, which is not the path selected at this end."""

    kind: PathKind


TrafficEffect = ForgetRtt | ProbeBoth | ProbeSelected | FlowStopped | PathSuspected | PathSilent | PeerOnPath

Routes = tuple[bool, bool]
"""Whether a batch goes over the relay, and whether over the direct path."""
NOWHERE: Routes = (False, False)
_RELAY: Routes = (True, False)
_DIRECT: Routes = (False, True)
BOTH: Routes = (True, True)


@dataclass(slots=True)
class _Suspicion:
    """Since when, and what would refute it.

    Attributes:
        silent_since: when the silence began.
        gives_up_at: when the path counts as failed.
        acknowledged: highest number acknowledged at the start.
        boundary: number of the first packet that may travel over both paths.
        is_heard: something came on the path since.
        is_told: the failure was reported.
    """

    silent_since: float
    gives_up_at: float
    acknowledged: int
    boundary: int
    is_heard: bool = False
    is_told: bool = False


class _Flow:
    """When new packets come on the selected path, to notice that a steady flow has stopped."""

    __slots__ = ("_arrivals", "_arrived_at", "_gap_s", "_probed_at")

    def __init__(self) -> None:
        self._arrived_at = -math.inf
        self._arrivals = 0
        self._gap_s = 0.0
        self._probed_at = -math.inf

    def handle_arrival(self, now: float, rtt_s: float) -> None:
        """A batch with something new came."""
        gap_s = now - self._arrived_at
        self._arrived_at = now
        if gap_s > self._patience_s(rtt_s):
            # The first of another flow.
            self._arrivals = 1
            self._gap_s = 0.0
            return
        self._arrivals += 1
        self._gap_s += (gap_s - self._gap_s) / min(self._arrivals - 1, STEADY_ARRIVALS)

    def forget(self) -> None:
        """What comes next is the first of another flow."""
        self._arrivals = 0
        self._arrived_at = -math.inf

    def note_probe(self, now: float) -> None:
        """Its stop was noticed."""
        self.forget()
        self._probed_at = now

    def stops_at(self, rtt_s: float) -> float | None:
        """When it has stopped if nothing comes until then; None while there is no steady flow."""
        patience_s = self._patience_s(rtt_s)
        if self._arrivals < STEADY_ARRIVALS or patience_s > STOPPED_MAX_S:
            return None
        return max(self._arrived_at + patience_s, self._probed_at + FLOW_PROBE_INTERVAL_S)

    def silent_s(self, now: float) -> float:
        """Since when nothing came, in seconds."""
        return now - self._arrived_at

    def _patience_s(self, rtt_s: float) -> float:
        return max(SUSPICION_MIN_S, STOPPED_GAPS * self._gap_s, SUSPICION_ROUND_TRIPS * rtt_s)


class Traffic:
    """The data plane of one session at one end; times in monotonic seconds."""

    def __init__(self) -> None:
        self.selected = PathKind.NONE
        self.dual_sends = 0
        """How often packets began to travel over two paths."""
        self._has_relay = False
        self._rtts = {kind: Rtt() for kind in PathKind}
        self._heard_at = -math.inf  # on the selected path
        self._trusted_until = -math.inf  # of the direct path, by any sign of life
        self._consent_until = -math.inf  # of the direct path, by its checks alone
        self._awaiting_since: float | None = None
        self._acknowledged = 0
        self._next_number = 0
        self._suspicion: _Suspicion | None = None
        self._flow = _Flow()
        self._asked_since: float | None = None  # whether it lives, by a check
        self._elsewhere_since: float | None = None  # and nothing on the selected path
        self._mirror_until = -math.inf
        self._deserted_at = -math.inf
        self._peer_path = PathKind.NONE
        self._peer_reset_at = -math.inf
        self._packets_seen = (0, 0)
        self._is_dual = False
        self._effects: list[TrafficEffect] = []

    @property
    def is_suspicious(self) -> bool:
        """Whether the selected path is in doubt because nothing comes on it."""
        return self._suspicion is not None

    def handle_selected(
        self,
        kind: PathKind,
        now: float,
        *,
        has_relay: bool,
        is_moved: bool = False,
        rtt_s: float | None = None,
        former_rtt_s: float | None = None,
    ) -> None:
        """Another path is selected, or another relay stands in for it.

        `is_moved` tells another direct path from the same one. An RTT of None is unknown.
        """
        former = self.selected
        self._has_relay = has_relay
        if kind is former and not is_moved:
            return
        if is_moved or rtt_s is not None:
            self._rtts[kind] = Rtt(rtt_s)
        self.selected = kind
        self._suspicion = None
        self._flow.forget()
        self._asked_since = self._elsewhere_since = None
        self._mirror_until = -math.inf
        self._deserted_at = -math.inf
        self._heard_at = now
        if kind is PathKind.DIRECT:
            self._confirm(now)
        else:
            # It may have failed. If not, its next check says so.
            self._trusted_until = -math.inf
        if PathKind.NONE not in {kind, former}:
            old_rtt_s = former_rtt_s if former_rtt_s is not None else self._rtts[former].or_guess
            self._effects.append(ForgetRtt(old_rtt_s, self._rtts[kind].or_guess))

    def handle_confirmed(self, kind: PathKind, rtt_s: float | None, now: float) -> None:
        """A check of this path was answered."""
        self._rtts[kind].add(rtt_s)
        if kind is PathKind.DIRECT:
            self._confirm(now)
        if kind is self.selected:
            self._heard_at = now
            self._asked_since = self._elsewhere_since = None
            self._act(Event.CONFIRMED, now)

    def handle_received(self, kind: PathKind | None, packets_seen: tuple[int, int], now: float) -> None:
        """Packets came on this path (None: on none that is known).

        `packets_seen` counts those of the connection that were new and that came again, since its start.
        """
        before, self._packets_seen = self._packets_seen, packets_seen
        if kind is None or packets_seen == before:
            return
        is_new = packets_seen[0] != before[0]
        if kind is self.selected:
            self._heard_at = now
            self._asked_since = self._elsewhere_since = None
            if is_new:
                self._flow.handle_arrival(now, self._rtts[kind].or_guess)
            if is_new and kind is PathKind.DIRECT:
                self._trusted_until = now + TRUST_S
            if self._suspicion is not None:
                self._suspicion.is_heard = True
        elif is_new and self._is_live(kind, now):
            self._act(Event.MIRROR, now)
            self._doubt_if_deserted(now)
        if is_new and kind is not self._peer_path:
            is_first = self._peer_path is PathKind.NONE
            # Whom we mirror sends over both paths, too, and the faster one delivers first: no move. To hold
            # losses once more would keep back what the path that died has swallowed.
            is_copy = kind is self.selected and now < self._mirror_until
            self._peer_path = kind
            if not (is_first or is_copy) and now >= self._peer_reset_at + PEER_RESET_INTERVAL_S:
                self._peer_reset_at = now
                self._act(Event.PEER_MOVED, now)

    def handle_progress(self, *, awaits: bool, acknowledged: int, next_number: int, now: float) -> None:
        """How the connection stands once a batch was taken or sent.

        `awaits`: the peer owes an acknowledgement; `acknowledged`: highest packet number that it
        acknowledged; `next_number`: of the next packet to leave.
        """
        self._acknowledged = acknowledged
        self._next_number = next_number
        if not awaits:
            self._awaiting_since = None
        elif self._awaiting_since is None:
            self._awaiting_since = now
        suspicion = self._suspicion
        if (
            suspicion is not None
            and suspicion.is_heard
            and suspicion.acknowledged < acknowledged < suspicion.boundary
        ):
            self._act(Event.CONFIRMED, now)

    def routes(self, now: float) -> Routes:
        """Which ways the batch goes that leaves now."""
        selected = self.selected
        if selected is PathKind.NONE:
            return NOWHERE
        if selected is PathKind.DIRECT and now >= self._consent_until:
            return _RELAY if self._has_relay else NOWHERE
        is_dual = (
            self._suspicion is not None
            or now < self._mirror_until
            or (selected is PathKind.DIRECT and now > self._trusted_until)
        ) and self._is_live(selected.other, now)
        if is_dual:
            return BOTH
        return _DIRECT if selected is PathKind.DIRECT else _RELAY

    def handle_sent(self, routes: Routes) -> None:
        """Take note that a batch left these ways."""
        is_dual = routes == BOTH
        if is_dual is not self._is_dual:
            self._is_dual = is_dual
            self.dual_sends += is_dual

    def handle_timeout(self, now: float) -> None:
        """Suspect the selected path, ask it, or give it up, whichever is due."""
        suspicion = self._suspicion
        if suspicion is not None:
            if now >= suspicion.gives_up_at and not suspicion.is_told:
                suspicion.is_told = True
                self._effects.append(PathSilent(self.selected, now - suspicion.silent_since))
            return
        suspect_at = self._suspect_at()
        if suspect_at is not None and now >= suspect_at:
            if self._is_live(self.selected.other, now):
                self._act(Event.SUSPICION, now)
            else:
                # Nothing could carry the packets instead: the checks alone decide.
                self._heard_at = now
        stops_at = self._flow_stops_at()
        if stops_at is not None and now >= stops_at:
            self._act(Event.FLOW_STOPPED, now)
            self._flow.note_probe(now)

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do, or None."""
        if self._suspicion is not None:
            return None if self._suspicion.is_told else self._suspicion.gives_up_at
        deadlines = (self._suspect_at(), self._flow_stops_at())
        return min((each for each in deadlines if each is not None), default=None)

    def drain(self) -> list[TrafficEffect]:
        """Hand over what is to be done and told, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def _may_suspect(self) -> bool:
        """Whether there is a selected path, and another one to take its place."""
        if self.selected is PathKind.RELAY:
            return self._trusted_until > -math.inf
        return self.selected is PathKind.DIRECT and self._has_relay

    @property
    def _patience_s(self) -> float:
        rtt = self._rtts[self.selected]
        patience_s = SUSPICION_ROUND_TRIPS * rtt.or_guess + SUSPICION_VARIATIONS * rtt.variation_or_guess
        return max(SUSPICION_MIN_S, patience_s)

    @property
    def _owed_since(self) -> float | None:
        """Since when the peer owes an acknowledgement, or the answer to a check of a flow that stopped."""
        if self._awaiting_since is None or self._asked_since is None:
            return self._asked_since if self._awaiting_since is None else self._awaiting_since
        return min(self._awaiting_since, self._asked_since)

    def _suspect_at(self) -> float | None:
        if not self._may_suspect:
            return None
        owed_since = self._owed_since
        return None if owed_since is None else max(owed_since, self._heard_at) + self._patience_s

    def _flow_stops_at(self) -> float | None:
        # While an acknowledgement is owed, its absence tells the same, and sooner.
        if self._owed_since is not None or self.selected is PathKind.NONE:
            return None
        return self._flow.stops_at(self._rtts[self.selected].or_guess)

    def _is_live(self, kind: PathKind, now: float) -> bool:
        """Whether packets may take this path beside the selected one."""
        if kind is PathKind.RELAY:
            return self._has_relay
        return now <= self._trusted_until and now < self._consent_until

    def _confirm(self, now: float) -> None:
        self._trusted_until = now + TRUST_S
        self._consent_until = now + CONSENT_LIMIT_S

    # What the rules make this core do

    def _act(self, event: Event, now: float) -> None:
        for action in RULES[event]:
            match action:
                case Action.SEND_ONE:
                    self._suspicion = None
                case Action.SEND_BOTH_UNTIL_CONFIRMED:
                    self._suspect(now)
                case Action.SEND_BOTH_FOR_A_WHILE:
                    self._mirror(now)
                case Action.PROBE_SELECTED:
                    self._ask(now)
                case Action.PROBE_BOTH:
                    self._effects.append(ProbeBoth(self.selected.other))
                case Action.FORGET_RTT:
                    old, new = self._rtts[self._peer_path.other], self._rtts[self._peer_path]
                    self._effects.append(ForgetRtt(old.or_guess, new.or_guess))
                case _:
                    self._tell(event, now)

    def _ask(self, now: float) -> None:
        if self.selected is PathKind.DIRECT:
            self._asked_since = now
        else:
            self._effects.append(ProbeSelected())

    def _suspect(self, now: float) -> None:
        began = [each for each in (self._owed_since, self._elsewhere_since) if each is not None]
        since = max(min(began, default=now), self._heard_at)
        self._flow.forget()
        self._asked_since = None
        rtt_s = self._rtts[self.selected].or_guess
        gives_up_at = since + max(FAIL_OVER_MIN_S, FAIL_OVER_ROUND_TRIPS * rtt_s)
        # A suspicion that came late, on a path of much variation, still leaves time for an answer.
        gives_up_at = max(gives_up_at, now + max(SUSPICION_MIN_S, rtt_s))
        self._suspicion = _Suspicion(since, gives_up_at, self._acknowledged, self._next_number)

    def _doubt_if_deserted(self, now: float) -> None:
        """Suspect the selected path if the peer has been sending over the other one alone.

        Acknowledgements come there, too: nothing is owed on the selected path, and yet it is silent. One
        packet alone may be a probe, and a peer has only one reason to go on.
        """
        if self._elsewhere_since is None:
            self._elsewhere_since = now
        doubts_at = max(self._elsewhere_since + self._patience_s, self._deserted_at + DESERTED_INTERVAL_S)
        if self._suspicion is None and self._may_suspect and now >= doubts_at:
            self._deserted_at = now
            self._act(Event.SUSPICION, now)

    def _mirror(self, now: float) -> None:
        if now >= self._mirror_until:
            self._effects.append(PeerOnPath(self.selected.other))
        self._mirror_until = now + MIRROR_S

    def _tell(self, event: Event, now: float) -> None:
        if event is Event.SUSPICION and self._suspicion is not None:
            self._effects.append(PathSuspected(self.selected, now - self._suspicion.silent_since))
        elif event is Event.FLOW_STOPPED:
            self._effects.append(FlowStopped(self.selected, self._flow.silent_s(now)))
