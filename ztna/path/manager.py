"""Which path the packets of one session take, at one end.

A session knows its relayed paths by the intermediate that carries them. Of these the latest one to come up
wins, at both ends: the agent alone decides where it attaches, and a channel is bound at both parties at the
same time, so the latest channel is the agent's latest choice; where an intermediate was wrong about that, the
packets of the peer tell (`ztna.path.relays`). A path that comes back after an outage is marked as resumed, so
that the end-to-end connection forgets its backed-off probe timer (without that, a 15 s outage costs another
12 s).

Beside them stands the pair that the checks of ICE nominated. The policy decides between the two; a direct
path that fails hands over to the relay, and is selected again once it has answered for a while, or once ICE
nominates one anew. Both ends select for themselves by the same rules (`ztna.path.rules`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from ztna.address import TransportAddress
from ztna.ice.timing import (
    ADOPTED_AFTER_ANSWERS,
    ADOPTED_AFTER_S,
    CONSENT_LIMIT_S,
    COOLDOWN_MAX_S,
    DEGRADED_LOSS_SHARE,
    DEGRADED_LOSS_WINDOW_S,
    FAILED_AFTER_MISSED,
    LOWEST_RTT_ANSWERED_SHARE,
    LOWEST_RTT_FIRST_SHARE,
    LOWEST_RTT_HELD_SAMPLES,
    LOWEST_RTT_SHARE,
    RESTART_INTERVAL_S,
    PathState,
)
from ztna.path.path import TRANSITIONS, USABLE, CheckHistory, PathEvent, PathKind, Rtt
from ztna.path.rules import RULES, Action, Event

MAX_RELAY_PATHS = 16
"""A session is carried by the intermediates a node is attached to; a deployment has a handful."""
MIN_DIRECT_BYTES = 1200
"""Every packet of a session must fit the direct path, since any of them may travel over both."""
RELAPSE_S = 30.0
"""A pair that was adopted again and falls silent under traffic within this time carries checks alone. Each
such relapse doubles how long it has to hold before the next, up to `COOLDOWN_MAX_S`."""
MAX_RELAPSES = 8
"""Counted: 3 s doubled so often exceed that maximum."""
MIN_LOSS_PACKETS = 20
"""With fewer packets in the window a single lost one would already exceed the share."""
MAX_LOSS_SAMPLES = 64
"""One comes every second, so the window holds a handful; more would be a report gone wild."""


class Policy(StrEnum):
    """What decides between the direct path and the relay."""

    PREFER_DIRECT = "prefer_direct"
    LOWEST_RTT = "lowest_rtt"
    RELAY_ONLY = "relay_only"


@dataclass(frozen=True, slots=True)
class RelayPath:
    """A channel on the leg to one intermediate; sizes in bytes of one sealed packet."""

    intermediate_id: str
    max_packet_bytes: int


@dataclass(frozen=True, slots=True)
class DirectPath:
    """A nominated pair as packets on it are addressed."""

    remote: TransportAddress
    local_host: str
    max_packet_bytes: int


@dataclass(frozen=True, slots=True)
class PathSelected:
    """Packets go this way from now on.

    Attributes:
        direct: the direct path, None where the relay carries them or nothing does.
        relay: the relayed path; beside a direct one it stands by.
        is_resumed: a path of the same kind as before, on which QUIC has to start over.
        rtt_s, former_rtt_s: of this path and of the one before it; None: unknown.
        reason: snake_case.
    """

    direct: DirectPath | None
    relay: RelayPath | None
    is_resumed: bool
    rtt_s: float | None = None
    former_rtt_s: float | None = None
    reason: str = ""

    @property
    def kind(self) -> PathKind:
        """Kind of the selected path."""
        if self.direct is not None:
            return PathKind.DIRECT
        return PathKind.RELAY if self.relay else PathKind.NONE


@dataclass(frozen=True, slots=True)
class PathStateChanged:
    """A path fares differently; `remote` is None for a relayed one."""

    kind: PathKind
    remote: TransportAddress | None
    state: PathState
    reason: str


@dataclass(frozen=True, slots=True)
class RestartIce:
    """The direct path failed: search for another one."""

    reason: str


PathEffect = PathSelected | PathStateChanged | RestartIce


@dataclass(frozen=True, slots=True)
class PathFigures:
    """One path for people; `loss_share` is of its last checks, 0 to 1."""

    relay: RelayPath | None
    direct: DirectPath | None
    state: PathState
    is_selected: bool
    rtt_s: float | None
    loss_share: float
    missed: int


@dataclass(slots=True)
class _Path:
    """What is known of one path; of `relay` and `direct` exactly one is set."""

    relay: RelayPath | None
    direct: DirectPath | None
    confirmed_at: float
    state: PathState = PathState.ACTIVE
    rtt: Rtt = field(default_factory=Rtt)
    history: CheckHistory = field(default_factory=CheckHistory)
    is_lossy: bool = False
    answers: int = 0  # since it began to recover
    recovering_since: float = 0.0
    adopted_at: float = -math.inf  # after a failure
    relapses: int = 0

    @property
    def kind(self) -> PathKind:
        return PathKind.DIRECT if self.direct is not None else PathKind.RELAY

    @property
    def remote(self) -> TransportAddress | None:
        return None if self.direct is None else self.direct.remote

    @property
    def impairment(self) -> str | None:
        if self.history.missed:
            return "keepalive_missed"
        if self.is_lossy:
            return "loss"
        return "rtt" if self.rtt.is_inflated else None


class PathManager:
    """Selects one path of one session, for one end; times in monotonic seconds."""

    def __init__(
        self, policy: Policy = Policy.PREFER_DIRECT, *, max_missed: int = FAILED_AFTER_MISSED
    ) -> None:
        self.policy = policy
        self.switches = 0
        """Of the selected path, between its two kinds or two direct ones."""
        self.fail_overs = 0
        """From a direct path that failed to the relay."""
        self._max_missed = max_missed
        self._relays: dict[str, _Path] = {}  # in the order in which they came up
        self._direct: _Path | None = None
        self._selected = PathSelected(None, None, is_resumed=False, reason="no_path")
        self._selected_path: _Path | None = None
        self._had_path = False
        self._traffic: deque[tuple[float, int, int]] = deque(maxlen=MAX_LOSS_SAMPLES)
        self._preferred: PathKind | None = None  # by lowest_rtt
        self._held_samples = 0
        self._restart_allowed_at = -math.inf
        self._restart_at: float | None = None
        self._restart_reason = ""
        self._effects: list[PathEffect] = []

    @property
    def selected(self) -> PathSelected:
        """The selection that was told last."""
        return self._selected

    def figures(self) -> list[PathFigures]:
        """Every known path, the direct one first."""
        return [
            PathFigures(
                path.relay,
                path.direct,
                path.state,
                path is self._selected_path,
                path.rtt.smoothed,
                1.0 - path.history.answered_share,
                path.history.missed,
            )
            for path in self._paths()
        ]

    # Which paths there are

    def handle_relay_up(self, intermediate_id: str, max_packet_bytes: int, now: float) -> None:
        """Take note that a channel on this leg works; also when a fresh channel replaces a former one."""
        former = self._relays.pop(intermediate_id, None)
        if len(self._relays) >= MAX_RELAY_PATHS:
            del self._relays[next(iter(self._relays))]
        path = _Path(RelayPath(intermediate_id, max_packet_bytes), None, confirmed_at=now)
        if former is not None:
            path.rtt = former.rtt
        self._relays[intermediate_id] = path
        self._act(Event.RELAY_UP, path, now, "relay_up", is_fresh=True)

    def handle_relay_down(self, intermediate_id: str, now: float) -> None:
        """Take note that the leg or the channel is gone."""
        path = self._relays.pop(intermediate_id, None)
        if path is not None:
            self._act(Event.RELAY_DOWN, path, now, "relay_down")

    def handle_peer_on_relay(self, intermediate_id: str, now: float) -> None:
        """The peer is at this relay, and so not at the latest one: an intermediate was wrong about it."""
        path = self._relays.pop(intermediate_id, None)
        if path is not None:
            self._relays[intermediate_id] = path
            self._act(Event.RELAY_UP, path, now, "peer_on_relay", is_fresh=True)

    def handle_nominated(
        self, remote: TransportAddress, local_host: str, proven_bytes: int, rtt_s: float | None, now: float
    ) -> bool:
        """Both ends may use this pair now; False when it does not carry every packet, and is not used."""
        if proven_bytes < MIN_DIRECT_BYTES:
            return False
        direct = DirectPath(remote, local_host, proven_bytes)
        path = self._direct
        if (
            path is None
            or path.direct is None
            or (path.remote, path.direct.local_host) != (remote, local_host)
        ):
            path = self._direct = _Path(None, direct, confirmed_at=now)
        else:
            # The same pair, nominated anew: what is known of it stays.
            if path.state not in USABLE:
                path.adopted_at = now
            path.direct = direct
            path.confirmed_at = now
            path.history = CheckHistory()
        path.rtt.add(rtt_s)
        self._restart_at = None
        self._sample()
        self._act(Event.PAIR_NOMINATED, path, now, "nominated")
        return True

    def handle_network_changed(self, now: float) -> None:
        """An address of ours changed: no ICE restart need wait."""
        self._restart_allowed_at = -math.inf
        if self._restart_at is not None:
            self._restart(now, self._restart_reason)

    # How they fare

    def handle_confirmed(
        self, kind: PathKind, remote: TransportAddress | None, rtt_s: float | None, now: float
    ) -> None:
        """A check of this path was answered."""
        path = self._find(kind, remote)
        if path is None:
            return
        path.confirmed_at = now
        path.rtt.add(rtt_s)
        path.history.note(is_answered=True)
        if path.state is PathState.FAILED and path.direct is None:
            # A relay stands and falls with its leg, which watches itself: one answer is enough.
            self._act(Event.RELAY_UP, path, now, "answered")
        elif path.state in {PathState.FAILED, PathState.RECOVERING}:
            self._recover(path, now)
        else:
            self._judge(path)
        self._sample()
        self._select("rtt" if self.policy is Policy.LOWEST_RTT else "answered")

    def handle_missed(self, kind: PathKind, remote: TransportAddress | None, missed: int, now: float) -> None:
        """A check of this path was not answered in time, for the `missed`th time in a row."""
        path = self._find(kind, remote)
        if path is None:
            return
        path.history.note(is_answered=False)
        self._sample()
        if missed >= self._max_missed:
            self._act(Event.CHECKS_FAILED, path, now, "keepalive_failed")
        else:
            self._act(Event.CHECK_MISSED, path, now, "keepalive_missed")

    def handle_consent_expired(self, remote: TransportAddress, now: float) -> None:
        """Payload may not go to this pair any more."""
        path = self._find(PathKind.DIRECT, remote)
        if path is not None:
            self._act(Event.CONSENT_EXPIRED, path, now, "consent_expired")

    def handle_silent(self, kind: PathKind, remote: TransportAddress | None, now: float) -> None:
        """The selected path stayed silent under traffic."""
        path = self._find(kind, remote)
        if path is not None:
            is_relapse = now < path.adopted_at + RELAPSE_S
            path.relapses = min(path.relapses + 1, MAX_RELAPSES) if is_relapse else 0
            self._act(Event.SUSPECT_SILENT, path, now, "silent")

    def handle_traffic(self, packets_sent: int, packets_lost: int, now: float) -> None:
        """Packets sent and lost over the selected path, since the start of the session."""
        samples = self._traffic
        samples.append((now, packets_sent, packets_lost))
        while len(samples) > 1 and samples[1][0] <= now - DEGRADED_LOSS_WINDOW_S:
            samples.popleft()
        path = self._selected_path
        if path is None or path.state not in USABLE:
            return
        sent = packets_sent - samples[0][1]
        lost = packets_lost - samples[0][2]
        path.is_lossy = sent >= MIN_LOSS_PACKETS and lost > DEGRADED_LOSS_SHARE * sent
        self._judge(path)

    def handle_timeout(self, now: float) -> None:
        """Let consent expire that nobody renewed, and restart ICE if that had to wait."""
        path = self._direct
        if path is not None and path.state in USABLE and now >= path.confirmed_at + CONSENT_LIMIT_S:
            self._act(Event.CONSENT_EXPIRED, path, now, "consent_expired")
        if self._restart_at is not None and now >= self._restart_at:
            self._restart(now, self._restart_reason)

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do, or None."""
        path = self._direct
        consent = path.confirmed_at + CONSENT_LIMIT_S if path is not None and path.state in USABLE else None
        return min((each for each in (consent, self._restart_at) if each is not None), default=None)

    def drain(self) -> list[PathEffect]:
        """Hand over what changed, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    # What the rules make this core do

    def _act(self, event: Event, path: _Path, now: float, reason: str, *, is_fresh: bool = False) -> None:
        former = path.state
        for action in RULES[event]:
            match action:
                case Action.ACTIVATE:
                    self._transition(path, PathEvent.REPLACED, reason)
                case Action.DEGRADE:
                    self._transition(path, PathEvent.IMPAIRED, reason)
                case Action.RECOVER:
                    self._transition(path, PathEvent.WORKED, reason)
                case Action.FAIL:
                    self._transition(path, PathEvent.BROKEN, reason)
                case Action.SELECT:
                    self._select(reason, is_fresh=is_fresh)
                case Action.RESTART_ICE if path.direct is not None and former in USABLE:
                    self._restart(now, reason)
                case _:
                    pass

    def _transition(self, path: _Path, event: PathEvent, reason: str) -> None:
        state = TRANSITIONS[path.state, event]
        if state is path.state:
            return
        path.state = state
        if state is PathState.FAILED and path.kind is PathKind.DIRECT:
            # By `lowest_rtt` it has to earn its place anew.
            self._preferred = PathKind.RELAY
            self._held_samples = 0
        self._effects.append(PathStateChanged(path.kind, path.remote, state, reason))

    def _judge(self, path: _Path) -> None:
        impairment = path.impairment
        if impairment is None:
            self._transition(path, PathEvent.WORKED, "well")
        else:
            self._transition(path, PathEvent.IMPAIRED, impairment)
            self._select(impairment)

    def _recover(self, path: _Path, now: float) -> None:
        if path.state is PathState.FAILED:
            path.answers = 0
            path.recovering_since = now
            path.is_lossy = False
        path.answers += 1
        held_s = now - path.recovering_since
        wanted_s = min(ADOPTED_AFTER_S * 2.0**path.relapses, COOLDOWN_MAX_S)
        if path.answers >= ADOPTED_AFTER_ANSWERS and held_s >= wanted_s:
            path.adopted_at = now
            self._restart_at = None
            self._act(Event.PAIR_HELD, path, now, "recovered")
        else:
            self._act(Event.FAILED_PAIR_ANSWERS, path, now, "answers_again")

    def _restart(self, now: float, reason: str) -> None:
        if self.policy is Policy.RELAY_ONLY:
            return
        if now < self._restart_allowed_at:
            self._restart_at = self._restart_allowed_at
            self._restart_reason = reason
            return
        self._restart_at = None
        self._restart_allowed_at = now + RESTART_INTERVAL_S
        self._effects.append(RestartIce(reason))

    # Which path is best

    def _paths(self) -> Iterator[_Path]:
        if self._direct is not None:
            yield self._direct
        yield from reversed(self._relays.values())

    @property
    def _relay(self) -> _Path | None:
        return next(reversed(self._relays.values()), None)

    def _find(self, kind: PathKind, remote: TransportAddress | None) -> _Path | None:
        if kind is PathKind.RELAY:
            return self._relay
        return self._direct if self._direct is not None and self._direct.remote == remote else None

    def _best(self) -> _Path | None:
        """By the policy; a relay is the last resort even when its checks fail, since its leg still stands."""
        direct, relay = self._direct, self._relay
        if direct is None or direct.state not in USABLE or self.policy is Policy.RELAY_ONLY:
            return relay
        if relay is None or self.policy is Policy.PREFER_DIRECT:
            return direct
        return direct if self._preferred is PathKind.DIRECT or relay.state not in USABLE else relay

    def _sample(self) -> None:
        """Compare round-trip times for `lowest_rtt`; a change has to hold, the first choice has not."""
        direct, relay = self._direct, self._relay
        if direct is None or relay is None or direct.state not in USABLE:
            return
        ours, theirs = direct.rtt.smoothed, relay.rtt.smoothed
        if ours is None or theirs is None:
            return
        if self._preferred is None:
            is_shorter = ours <= LOWEST_RTT_FIRST_SHARE * theirs
            self._preferred = PathKind.DIRECT if is_shorter else PathKind.RELAY
            return
        if self._preferred is PathKind.RELAY:
            is_better = (
                ours < LOWEST_RTT_SHARE * theirs
                and direct.history.answered_share >= LOWEST_RTT_ANSWERED_SHARE
            )
        else:
            is_better = theirs < LOWEST_RTT_SHARE * ours
        self._held_samples = self._held_samples + 1 if is_better else 0
        if self._held_samples >= LOWEST_RTT_HELD_SAMPLES:
            self._held_samples = 0
            self._preferred = self._preferred.other

    def _select(self, reason: str, *, is_fresh: bool = False) -> None:
        best = self._best()
        relay = self._relay
        former, former_path = self._selected, self._selected_path
        direct = best.direct if best is not None else None
        standby = relay.relay if relay is not None else None
        is_same = (former.direct, former.relay) == (direct, standby)
        if is_same and (not is_fresh or direct is not None):
            return
        kind = best.kind if best is not None else PathKind.NONE
        # Another relay beneath a direct path changes nothing for the packets.
        is_resumed = (
            best is not None
            and self._had_path
            and former.kind in {kind, PathKind.NONE}
            and not (direct is not None and former.kind is PathKind.DIRECT)
        )
        self._selected = PathSelected(
            direct,
            standby,
            is_resumed,
            rtt_s=best.rtt.smoothed if best is not None else None,
            former_rtt_s=former_path.rtt.smoothed if former_path is not None else None,
            reason=reason if best is not None else "no_path",
        )
        if best is not former_path:
            self._traffic.clear()
        if PathKind.NONE not in {kind, former.kind} and (kind is not former.kind or direct != former.direct):
            self.switches += 1
            if former.kind is PathKind.DIRECT and former_path is not None and former_path.state not in USABLE:
                self.fail_overs += 1
        self._selected_path = best
        self._had_path = self._had_path or best is not None
        self._effects.append(self._selected)
