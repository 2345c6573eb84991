"""Owns the choice of path of one session; takes news of relays, pairs, checks, emits the selected path."""

from __future__ import annotations

from typing import ClassVar

from actors.base import Concern, Context
from actors.translate import (
    address_from_proto,
    address_to_proto,
    path_kind_from_proto,
    path_kind_to_proto,
    path_state_to_proto,
)
from ztna.address import TransportAddress
from ztna.ice.timing import FAILED_AFTER_MISSED
from ztna.path import manager
from ztna.path.path import PathKind
from ztna.v1 import (
    candidate_gatherer_pb2,
    checklist_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
)

STATISTICS_INTERVAL_S = 1.0


class PathManager(Concern):
    """Translates between messages and `ztna.path.manager`."""

    name = "path_manager"
    handlers: ClassVar = {
        relay_leg_pb2.RelayPathChanged: "relay_path_changed",
        quic_session_pb2.SessionReported: "session_reported",
        checklist_pb2.PairNominated: "pair_nominated",
        candidate_gatherer_pb2.CandidatesGathered: "candidates_gathered",
        keepalive_pb2.PathConfirmed: "path_confirmed",
        keepalive_pb2.KeepaliveMissed: "keepalive_missed",
        keepalive_pb2.ConsentExpired: "consent_expired",
        quic_session_pb2.PathSilent: "path_silent",
        quic_session_pb2.PeerOnRelay: "peer_on_relay",
        quic_session_pb2.SessionStatistics: "session_statistics",
    }
    emits = (
        path_manager_pb2.PathSelected,
        path_manager_pb2.PathStateChanged,
        path_manager_pb2.PathStatistics,
        hole_punch_pb2.RestartIce,
        quic_session_pb2.ReportSession,
    )

    def __init__(
        self,
        context: Context,
        policy: manager.Policy = manager.Policy.PREFER_DIRECT,
        *,
        max_missed: int = FAILED_AFTER_MISSED,
    ) -> None:
        super().__init__(context)
        self._core = manager.PathManager(policy, max_missed=max_missed)
        self._session_id = bytes.fromhex(context.key)
        self._report_at: float | None = None
        self._network = 0

    def on_start(self) -> None:
        """Ask what a predecessor knew."""
        self.emit(quic_session_pb2.ReportSession(session_id=self._session_id))

    def session_reported(self, message: quic_session_pb2.SessionReported) -> None:
        """The relay that a predecessor had selected."""
        self._core.handle_relay_up(message.intermediate_id, message.max_packet_bytes, self.now)
        self._settle()

    def relay_path_changed(self, message: relay_leg_pb2.RelayPathChanged) -> None:
        """A channel of this session works, or no longer does."""
        if message.is_up:
            self._core.handle_relay_up(message.intermediate_id, message.max_packet_bytes, self.now)
        else:
            self._core.handle_relay_down(message.intermediate_id, self.now)
        self._settle()

    def pair_nominated(self, message: checklist_pb2.PairNominated) -> None:
        """A direct path was proved."""
        remote = address_from_proto(message.pair.remote.address)
        is_taken = self._core.handle_nominated(
            remote, message.pair.local_host, message.proven_bytes, _seconds(message.rtt_us), self.now
        )
        if not is_taken:
            self.log.warning(
                "path_manager.pair_too_small", remote=str(remote), proven_bytes=message.proven_bytes
            )
        self._settle()

    def candidates_gathered(self, message: candidate_gatherer_pb2.CandidatesGathered) -> None:
        """When our addresses are others, a search for another path need not wait."""
        if message.network == self._network:
            return
        self._network = message.network
        self._core.handle_network_changed(self.now)
        self._settle(is_news=False)

    def path_confirmed(self, message: keepalive_pb2.PathConfirmed) -> None:
        """A path answered."""
        kind = path_kind_from_proto(message.kind)
        self._core.handle_confirmed(kind, _remote(message), _seconds(message.rtt_us), self.now)
        self._settle()

    def keepalive_missed(self, message: keepalive_pb2.KeepaliveMissed) -> None:
        """A path did not answer."""
        kind = path_kind_from_proto(message.kind)
        self._core.handle_missed(kind, _remote(message), message.missed, self.now)
        self._settle()

    def consent_expired(self, message: keepalive_pb2.ConsentExpired) -> None:
        """Payload may not go to this pair any more."""
        self._core.handle_consent_expired(address_from_proto(message.remote), self.now)
        self._settle()

    def path_silent(self, message: quic_session_pb2.PathSilent) -> None:
        """The selected path failed under traffic."""
        self._core.handle_silent(path_kind_from_proto(message.kind), _remote(message), self.now)
        self._settle()

    def peer_on_relay(self, message: quic_session_pb2.PeerOnRelay) -> None:
        """The peer has chosen another relay than the latest."""
        self._core.handle_peer_on_relay(message.intermediate_id, self.now)
        self._settle()

    def session_statistics(self, message: quic_session_pb2.SessionStatistics) -> None:
        """What the selected path loses."""
        self._core.handle_traffic(message.packets_sent, message.packets_lost, self.now)
        self._settle()

    def handle_timeout(self, now: float) -> None:
        """Consent that nobody renewed, a restart that had to wait, and the statistics."""
        self._core.handle_timeout(now)
        if self._report_at is not None and now >= self._report_at:
            self._report()
        self._settle(is_news=False)

    def next_deadline(self) -> float | None:
        """The earlier of the core's deadline and the next report."""
        deadline = self._core.next_deadline()
        if self._report_at is None or (deadline is not None and deadline < self._report_at):
            return deadline
        return self._report_at

    def _settle(self, *, is_news: bool = True) -> None:
        is_selection = False
        for effect in self._core.drain():
            is_news = True
            match effect:
                case manager.PathSelected():
                    is_selection = True
                    self._selected(effect)
                case manager.PathStateChanged(kind, remote, state, reason):
                    self.log.info(
                        "path_manager.path_state_changed",
                        path=kind.value,
                        remote=None if remote is None else str(remote),
                        state=state.value,
                        reason=reason,
                    )
                    self.emit(
                        path_manager_pb2.PathStateChanged(
                            session_id=self._session_id,
                            kind=path_kind_to_proto(kind),
                            remote=None if remote is None else address_to_proto(remote),
                            state=path_state_to_proto(state),
                            reason=reason,
                        )
                    )
                case manager.RestartIce(reason):
                    self.log.info("path_manager.ice_restarted", reason=reason)
                    self.emit(hole_punch_pb2.RestartIce(session_id=self._session_id, reason=reason))
        if is_selection:
            self._report()
        elif is_news and self._report_at is None:
            self._report_at = self.now + STATISTICS_INTERVAL_S

    def _selected(self, selected: manager.PathSelected) -> None:
        direct, relay, kind = selected.direct, selected.relay, selected.kind
        is_relayed = kind is PathKind.RELAY
        relay_id = relay.intermediate_id if relay else ""
        carrier = direct or relay
        self.log.info(
            "path_manager.path_selected",
            path=kind.value,
            intermediate=relay_id or None,
            remote=str(direct.remote) if direct else None,
            resumed=selected.is_resumed,
            reason=selected.reason,
        )
        self.emit(
            path_manager_pb2.PathSelected(
                session_id=self._session_id,
                kind=path_kind_to_proto(kind),
                intermediate_id=relay_id if is_relayed else "",
                remote=address_to_proto(direct.remote) if direct else None,
                local_host=direct.local_host if direct else "",
                max_packet_bytes=carrier.max_packet_bytes if carrier else 0,
                is_resumed=selected.is_resumed,
                standby_intermediate_id=relay_id if direct else "",
                rtt_us=_microseconds(selected.rtt_s),
                former_rtt_us=_microseconds(selected.former_rtt_s),
                reason=selected.reason,
            )
        )

    def _report(self) -> None:
        self._report_at = None
        self.emit(
            path_manager_pb2.PathStatistics(
                session_id=self._session_id,
                paths=[
                    path_manager_pb2.PathStatistics.Path(
                        kind=path_kind_to_proto(PathKind.DIRECT if path.direct else PathKind.RELAY),
                        intermediate_id=path.relay.intermediate_id if path.relay else "",
                        remote=address_to_proto(path.direct.remote) if path.direct else None,
                        local_host=path.direct.local_host if path.direct else "",
                        state=path_state_to_proto(path.state),
                        is_selected=path.is_selected,
                        rtt_ms=(path.rtt_s or 0.0) * 1e3,
                        loss_percent=path.loss_share * 1e2,
                        missed=path.missed,
                    )
                    for path in self._core.figures()
                ],
                switches=self._core.switches,
                fail_overs=self._core.fail_overs,
                policy=self._core.policy.value,
                reason=self._core.selected.reason,
            )
        )


def _seconds(microseconds: int) -> float | None:
    return microseconds / 1e6 if microseconds else None


def _microseconds(seconds: float | None) -> int:
    # Under a microsecond would read as unknown.
    return 0 if seconds is None else max(1, round(seconds * 1e6))


def _remote(
    message: keepalive_pb2.PathConfirmed | keepalive_pb2.KeepaliveMissed | quic_session_pb2.PathSilent,
) -> TransportAddress | None:
    return address_from_proto(message.remote) if message.HasField("remote") else None
