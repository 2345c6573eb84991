"""Owns the consent checks of one session; takes credentials, pairs, answers, emits which path lives."""

from __future__ import annotations

from typing import ClassVar

from actors.base import Concern, Context
from actors.translate import (
    address_from_proto,
    address_to_proto,
    credentials_from_proto,
    path_kind_from_proto,
    path_state_from_proto,
)
from ztna.ice.consent import (
    Consent,
    ConsentExpired,
    ConsentStatistics,
    DirectPair,
    KeepaliveMissed,
    PathConfirmed,
    SendCheck,
    SendRelayed,
)
from ztna.ice.timing import FAILED_AFTER_MISSED, KEEPALIVE_ACTIVE_S, KEEPALIVE_TIMEOUT_S
from ztna.path.path import PathKind
from ztna.v1 import (
    checklist_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

STATISTICS_INTERVAL_S = 1.0


class Keepalive(Concern):
    """Translates between messages and `ztna.ice.consent`."""

    name = "keepalive"
    handlers: ClassVar = {
        checklist_pb2.PrepareChecks: "prepare_checks",
        checklist_pb2.StartChecks: "start_checks",
        checklist_pb2.PairNominated: "pair_nominated",
        relay_leg_pb2.RelayPathChanged: "relay_path_changed",
        quic_session_pb2.SessionReported: "session_reported",
        path_manager_pb2.PathStateChanged: "path_state_changed",
        quic_session_pb2.SessionStatistics: "session_statistics",
        quic_session_pb2.PathSuspected: "path_suspected",
        quic_session_pb2.FlowStopped: "flow_stopped",
        quic_session_pb2.PeerOnPath: "peer_on_path",
        quic_session_pb2.PeerOnRelay: "peer_on_relay",
        udp_socket_pb2.KeepaliveResponseReceived: "keepalive_response_received",
        keepalive_pb2.ConfirmPeer: "confirm_peer",
        keepalive_pb2.RelayedStunReceived: "relayed_stun_received",
    }
    emits = (
        udp_socket_pb2.SendStunRequest,
        relay_leg_pb2.SendSealed,
        keepalive_pb2.PathConfirmed,
        keepalive_pb2.KeepaliveMissed,
        keepalive_pb2.ConsentExpired,
        keepalive_pb2.KeepaliveStatistics,
    )

    def __init__(
        self,
        context: Context,
        *,
        interval_s: float = KEEPALIVE_ACTIVE_S,
        timeout_s: float = KEEPALIVE_TIMEOUT_S,
        max_missed: int = FAILED_AFTER_MISSED,
    ) -> None:
        super().__init__(context)
        self._core = Consent(
            self.io.random, interval_s=interval_s, timeout_s=timeout_s, max_missed=max_missed
        )
        self._session_id = bytes.fromhex(context.key)
        self._report_at: float | None = None
        self._reported = ConsentStatistics()

    def prepare_checks(self, message: checklist_pb2.PrepareChecks) -> None:
        """Our credentials of a new generation."""
        self._core.handle_prepared(
            message.generation, credentials_from_proto(message.local), is_controlling=message.is_controlling
        )

    def start_checks(self, message: checklist_pb2.StartChecks) -> None:
        """The peer's credentials of it."""
        self._core.handle_started(message.generation, credentials_from_proto(message.remote), self.now)
        self._settle()

    def pair_nominated(self, message: checklist_pb2.PairNominated) -> None:
        """A pair to watch, in place of the former one."""
        self._core.handle_nominated(
            DirectPair(address_from_proto(message.pair.remote.address), message.pair.local_host),
            credentials_from_proto(message.local),
            credentials_from_proto(message.remote),
            self.now,
            rtt_s=message.rtt_us / 1e6 if message.rtt_us else None,
            local_priority=message.pair.local.priority,
        )
        self._settle()

    def relay_path_changed(self, message: relay_leg_pb2.RelayPathChanged) -> None:
        """A relay to watch, or one to forget."""
        self._core.handle_relay(message.intermediate_id, self.now, is_up=message.is_up)
        self._settle()

    def session_reported(self, message: quic_session_pb2.SessionReported) -> None:
        """The relay that a predecessor had known."""
        self._core.handle_relay(message.intermediate_id, self.now, is_up=True)
        self._settle()

    def path_state_changed(self, message: path_manager_pb2.PathStateChanged) -> None:
        """A path that failed is asked otherwise than one that is well."""
        state = path_state_from_proto(message.state)
        if state is None or path_kind_from_proto(message.kind) is not PathKind.DIRECT:
            return
        self._core.handle_state(address_from_proto(message.remote), state, self.now)
        self._settle()

    def session_statistics(self, message: quic_session_pb2.SessionStatistics) -> None:
        """Whether payload flowed."""
        self._core.handle_payload(message.payload_bytes, self.now)
        self._settle()

    def path_suspected(self, message: quic_session_pb2.PathSuspected) -> None:
        """The selected path is in doubt: its answer decides."""
        is_direct = path_kind_from_proto(message.kind) is PathKind.DIRECT
        self._core.handle_suspected(is_direct=is_direct, now=self.now)
        self._settle()

    def flow_stopped(self, _message: quic_session_pb2.FlowStopped) -> None:
        """A pause of the application, or of the network: both paths are asked."""
        self._core.handle_flow_stopped(self.now)
        self._settle()

    def peer_on_path(self, message: quic_session_pb2.PeerOnPath) -> None:
        """The peer may have fled from the other path."""
        is_direct = path_kind_from_proto(message.kind) is not PathKind.DIRECT
        self._core.handle_suspected(is_direct=is_direct, now=self.now)
        self._settle()

    def peer_on_relay(self, message: quic_session_pb2.PeerOnRelay) -> None:
        """The relay to watch is another one than the latest."""
        self._core.handle_peer_on_relay(message.intermediate_id, self.now)
        self._settle()

    def confirm_peer(self, _message: keepalive_pb2.ConfirmPeer) -> None:
        """Whether the session goes on hangs on the answer."""
        self._core.handle_suspected(is_direct=True, now=self.now)
        self._settle()

    def keepalive_response_received(self, message: udp_socket_pb2.KeepaliveResponseReceived) -> None:
        """An answer on the direct pair."""
        self._core.handle_response(address_from_proto(message.remote), message.datagram, self.now)
        self._settle()

    def relayed_stun_received(self, message: keepalive_pb2.RelayedStunReceived) -> None:
        """Requests and answers through a relay."""
        self._core.handle_relayed(message.intermediate_id, message.datagrams, self.now)
        self._settle()

    def handle_timeout(self, now: float) -> None:
        """Checks that are due or overdue, and the statistics."""
        self._core.handle_timeout(now)
        self._settle()
        if self._report_at is not None and now >= self._report_at:
            self._report_at = None
            self._report()

    def next_deadline(self) -> float | None:
        """The earlier of the core's deadline and the next report."""
        deadline = self._core.next_deadline()
        if self._report_at is None or (deadline is not None and deadline < self._report_at):
            return deadline
        return self._report_at

    def _settle(self) -> None:
        for effect in self._core.drain():
            match effect:
                case SendCheck(pair, transaction_id, pwd, datagram):
                    self.emit(
                        udp_socket_pb2.SendStunRequest(
                            asker=udp_socket_pb2.STUN_ASKER_KEEPALIVE,
                            session_id=self._session_id,
                            remote=address_to_proto(pair.remote),
                            local_host=pair.local_host,
                            transaction_id=transaction_id,
                            pwd=pwd,
                            datagram=datagram,
                        )
                    )
                case SendRelayed(intermediate_id, datagram):
                    self.emit(
                        relay_leg_pb2.SendSealed(
                            intermediate_id=intermediate_id, session_id=self._session_id, packets=[datagram]
                        )
                    )
                case PathConfirmed(pair, rtt_s):
                    self.emit(
                        keepalive_pb2.PathConfirmed(
                            session_id=self._session_id,
                            kind=_kind(pair),
                            remote=None if pair is None else address_to_proto(pair.remote),
                            # Under a microsecond would read as unknown.
                            rtt_us=0 if rtt_s is None else max(1, round(rtt_s * 1e6)),
                        )
                    )
                case KeepaliveMissed(pair, missed):
                    self.log.info(
                        "keepalive.missed",
                        path="relay" if pair is None else "direct",
                        remote=None if pair is None else str(pair.remote),
                        missed=missed,
                    )
                    self.emit(
                        keepalive_pb2.KeepaliveMissed(
                            session_id=self._session_id,
                            kind=_kind(pair),
                            remote=None if pair is None else address_to_proto(pair.remote),
                            missed=missed,
                        )
                    )
                case ConsentExpired(pair):
                    self.log.warning("keepalive.consent_expired", remote=str(pair.remote))
                    self.emit(
                        keepalive_pb2.ConsentExpired(
                            session_id=self._session_id, remote=address_to_proto(pair.remote)
                        )
                    )
        if self._report_at is None and self._core.statistics != self._reported:
            self._report_at = self.now + STATISTICS_INTERVAL_S

    def _report(self) -> None:
        statistics = self._core.statistics
        self._reported = ConsentStatistics(
            statistics.sent, statistics.answered, statistics.missed, statistics.received
        )
        self.emit(
            keepalive_pb2.KeepaliveStatistics(
                session_id=self._session_id,
                checks_sent=statistics.sent,
                checks_answered=statistics.answered,
                checks_missed=statistics.missed,
                relay_checks_received=statistics.received,
            )
        )


def _kind(pair: DirectPair | None) -> types_pb2.PathKind.ValueType:
    return types_pb2.PATH_KIND_RELAY if pair is None else types_pb2.PATH_KIND_DIRECT
