"""The search for a direct path of one session, as its status shows it: what was tried, found, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ztna.path.manager import Policy
from ztna.v1 import (
    checklist_pb2,
    control_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    types_pb2,
)

SEARCHING_REASONS: Final = {
    hole_punch_pb2.HOLE_PUNCH_STATE_UNSPECIFIED: "the search for a direct path has not begun",
    hole_punch_pb2.HOLE_PUNCH_STATE_IDLE: "the search for a direct path has not begun",
    hole_punch_pb2.HOLE_PUNCH_STATE_GATHERING: "looking for a direct path: gathering candidates",
    hole_punch_pb2.HOLE_PUNCH_STATE_SIGNALING: "looking for a direct path: exchanging candidates",
    hole_punch_pb2.HOLE_PUNCH_STATE_WAITING_TO_START: "looking for a direct path: about to check",
    hole_punch_pb2.HOLE_PUNCH_STATE_CHECKING: "looking for a direct path: checking",
    hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED: "a direct path works, and is not selected",
    hole_punch_pb2.HOLE_PUNCH_STATE_FALLBACK_RELAY: "no direct path was found",
    hole_punch_pb2.HOLE_PUNCH_STATE_FAILED: "the search for a direct path was given up",
}


_PEER_IS_KNOWN: Final = frozenset(
    {
        hole_punch_pb2.HOLE_PUNCH_STATE_WAITING_TO_START,
        hole_punch_pb2.HOLE_PUNCH_STATE_CHECKING,
        hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED,
    }
)


_USABLE: Final = frozenset({path_manager_pb2.PATH_STATE_ACTIVE, path_manager_pb2.PATH_STATE_DEGRADED})


class DirectPathRecord:
    """Keeps the latest of each kind of message. Plain bookkeeping, without I/O; `now` is monotonic."""

    def __init__(self) -> None:
        self._search = hole_punch_pb2.HolePunchChanged()
        self._report = checklist_pb2.ChecklistReport()
        self._paths = path_manager_pb2.PathStatistics()
        self._selected = path_manager_pb2.PathSelected()
        self._keepalive = keepalive_pb2.KeepaliveStatistics()
        self._nominated: checklist_pb2.PairNominated | None = None
        self._success: hole_punch_pb2.HolePunchFinished | None = None
        self._answered_at: float | None = None
        self._succeeded_at: float | None = None
        self._attempts = 0
        self._successes = 0

    def searched(self, message: hole_punch_pb2.HolePunchChanged, now: float) -> None:
        """How far the search is."""
        if message.generation != self._search.generation:
            self._answered_at = self._succeeded_at = None
        if self._answered_at is None and message.state in _PEER_IS_KNOWN:
            self._answered_at = now
        self._search = message

    def succeeded(self, message: checklist_pb2.PairSucceeded, now: float) -> None:
        """A check was answered; the first of a search counts."""
        if message.generation == self._search.generation and self._succeeded_at is None:
            self._succeeded_at = now

    def finished(self, message: hole_punch_pb2.HolePunchFinished) -> None:
        """An attempt ended."""
        self._attempts += 1
        if message.is_direct:
            self._successes += 1
            self._success = message

    def checked(self, message: checklist_pb2.ChecklistReport) -> None:
        """How the pairs fare."""
        self._report = message

    def nominated(self, message: checklist_pb2.PairNominated) -> None:
        """Both ends use this pair."""
        self._nominated = message

    def measured(self, message: path_manager_pb2.PathStatistics) -> path_manager_pb2.PathStatistics:
        """How the paths fare; returns how they fared before."""
        former, self._paths = self._paths, message
        return former

    def selected(self, message: path_manager_pb2.PathSelected) -> None:
        """Which path carries the session."""
        self._selected = message

    def kept_alive(self, message: keepalive_pb2.KeepaliveStatistics) -> keepalive_pb2.KeepaliveStatistics:
        """How many keepalives were sent and answered; returns how many before."""
        former, self._keepalive = self._keepalive, message
        return former

    def round_trips_ms(self) -> Iterator[tuple[types_pb2.PathKind.ValueType, float]]:
        """Kind and round-trip time of each path that was measured."""
        for path in self._paths.paths:
            if path.rtt_ms:
                yield path.kind, path.rtt_ms

    def why(self) -> str:
        """Why the session is on the path it is on, for people."""
        if self._selected.kind == types_pb2.PATH_KIND_UNSPECIFIED:
            return "no relay leg has a channel for this session, and there is no direct path"
        if self._selected.kind == types_pb2.PATH_KIND_DIRECT:
            return ""
        words = SEARCHING_REASONS.get(self._search.state, "")
        if self._search.state == hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED and self._selected.reason:
            return f"{words}: {self._compared() or self._selected.reason.replace('_', ' ')}"
        reason = self._search.detail or self._search.reason.replace("_", " ")
        return f"{words}: {reason}" if words and reason else words or reason

    def _compared(self) -> str:
        """By `lowest_rtt`: both round-trip times, if they are known and the direct path is well.

        The relay may have been selected long before there was anything to compare it with.
        """
        if self._paths.policy != Policy.LOWEST_RTT:
            return ""
        known = {
            path.kind: path.rtt_ms
            for path in self._paths.paths
            if path.state in _USABLE and path.is_selected is (path.kind == types_pb2.PATH_KIND_RELAY)
        }
        direct_ms, relay_ms = known.get(types_pb2.PATH_KIND_DIRECT), known.get(types_pb2.PATH_KIND_RELAY)
        if not direct_ms or not relay_ms:
            return ""
        return (
            f"by lowest_rtt, as a round trip takes {direct_ms:.0f} ms on it, {relay_ms:.0f} ms on the relay"
        )

    def fill(
        self, status: control_pb2.DirectPathStatus, statistics: quic_session_pb2.SessionStatistics
    ) -> None:
        """Add what is known."""
        search, paths, keepalive = self._search, self._paths, self._keepalive
        status.state = search.state
        status.reason = search.reason
        status.detail = search.detail
        status.generation = search.generation
        status.signaling = search.signaling
        status.local_nat.CopyFrom(search.local_nat)
        status.remote_nat.CopyFrom(search.remote_nat)
        status.local_candidates.extend(search.local_candidates)
        status.remote_candidates.extend(search.remote_candidates)
        status.pairs.extend(self._report.entries)
        status.policy = paths.policy
        status.path_reason = self._selected.reason
        status.attempts = self._attempts
        status.successes = self._successes
        status.switches = paths.switches
        status.fail_overs = paths.fail_overs
        status.dual_sends = statistics.dual_sends
        status.direct_bytes_sent = statistics.direct_bytes_sent
        status.direct_bytes_received = statistics.direct_bytes_received
        status.keepalives_sent = keepalive.checks_sent
        status.keepalives_answered = keepalive.checks_answered
        status.keepalives_missed = keepalive.checks_missed
        is_direct = self._selected.kind == types_pb2.PATH_KIND_DIRECT
        if is_direct and self._nominated is not None:
            status.selected_pair.CopyFrom(self._nominated.pair)
        if self._success is not None:
            status.time_to_direct_ms = self._success.offer_to_direct_ms
            status.answer_to_direct_ms = self._success.answer_to_direct_ms
        if self._answered_at is not None and self._succeeded_at is not None:
            status.answer_to_succeeded_ms = max(0.0, self._succeeded_at - self._answered_at) * 1e3
        for path in paths.paths:
            status.paths.add(
                kind=path.kind,
                via=path.intermediate_id,
                remote=path.remote if path.HasField("remote") else None,
                state=path.state,
                is_selected=path.is_selected,
                rtt_ms=path.rtt_ms,
                loss_percent=path.loss_percent,
                missed=path.missed,
            )
            if path.kind == types_pb2.PATH_KIND_DIRECT:
                status.rtt_direct_ms = path.rtt_ms
            elif path.rtt_ms and (not status.rtt_relay_ms or path.is_selected):
                status.rtt_relay_ms = path.rtt_ms
