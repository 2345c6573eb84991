"""What a connector knows of itself, and an agent alike: intermediates, services and sessions."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from google.protobuf.message import Message

from actors.metrics import Sample
from actors.session_list import SessionList
from actors.status_book import MAX_LISTED, BookSettings, ServiceLine, StatusBook
from actors.supervisor import ChildStatus
from ztna.quic.events import CloseReason
from ztna.relay.carrier import CarrierKind
from ztna.v1 import (
    candidate_gatherer_pb2,
    checklist_pb2,
    control_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    service_port_pb2,
    signaling_client_pb2,
    types_pb2,
)

MAX_ATTEMPT_RESULTS: Final = 64
"""Results of searches that are counted apart. Our own words are some 30; the others are the peer's, which may
say what it likes when it asks for a search, and each would be a time series for ever."""

OTHER_RESULTS: Final = "other"
"""All results beyond them."""

_ENDED_ON_PURPOSE: Final = frozenset(
    {CloseReason.CLOSED, "operator", "peer_closed", "shutting_down", "stopped"}
)
"""Ends of a session that somebody wanted: no problem."""

_WORD: Final = re.compile(r"[a-z]+(?:_[a-z]+)+")

_OUTAGES: Final = frozenset(
    {
        CloseReason.IDLE_TIMEOUT,
        CloseReason.HANDSHAKE_TIMEOUT,
        CloseReason.INTERNAL_ERROR,
        "max_offline",
        "peer_lost",
        "service_sockets_lost",
        "superseded",
    }
)
"""Ends that are nobody's fault, or our own: the peer was refused nothing."""


@dataclass(slots=True)
class IntermediateState:
    """One intermediate as this node sees it."""

    state: str = "idle"
    reason: str = ""
    is_leg_connected: bool = False
    leg_carrier: str = ""
    """What carries the leg's packets; empty while it is down."""
    leg_reason: str = ""
    rtt_ms: float = 0.0
    observed: types_pb2.TransportAddress | None = None
    attachments: int = 0
    answers: dict[str, str] = field(default_factory=dict)
    """Of this attachment, by service: empty when registered, else why it was rejected."""


@dataclass(slots=True)
class ServiceState:
    """One configured service."""

    line: ServiceLine
    address: str
    is_listening: bool = False
    reason: str = ""
    illness: str = ""
    """Of a connector's backend that fails its probes: what the last one met."""
    is_known_healthy: bool = False
    statistics: service_port_pb2.ServiceStatistics = field(default_factory=service_port_pb2.ServiceStatistics)


class NodeStatusBook(StatusBook):
    """The book of a connector, and what an agent's has in common with it."""

    takers: ClassVar[Mapping[type[Message], str]] = {
        **StatusBook.takers,
        signaling_client_pb2.Attach: "attach",
        signaling_client_pb2.Detach: "detach",
        signaling_client_pb2.Attached: "attached",
        signaling_client_pb2.Detached: "detached",
        relay_leg_pb2.LegConnected: "leg_connected",
        relay_leg_pb2.RelayLegUp: "leg_up",
        relay_leg_pb2.RelayLegDown: "leg_down",
        relay_leg_pb2.AddressObserved: "address_observed",
        relay_leg_pb2.LegStatistics: "leg_statistics",
        path_manager_pb2.PathSelected: "path_selected",
        path_manager_pb2.PathStatistics: "path_statistics",
        hole_punch_pb2.HolePunchChanged: "search_changed",
        hole_punch_pb2.HolePunchFinished: "search_finished",
        checklist_pb2.ChecklistReport: "pairs_reported",
        checklist_pb2.PairSucceeded: "pair_succeeded",
        checklist_pb2.PairNominated: "pair_nominated",
        candidate_gatherer_pb2.NatBehaviourLearned: "nat_behaviour_learned",
        keepalive_pb2.KeepaliveStatistics: "keepalive_statistics",
        quic_session_pb2.HandshakeDeferred: "handshake_deferred",
        quic_session_pb2.SessionEstablished: "session_established",
        quic_session_pb2.SessionClosed: "session_closed",
        quic_session_pb2.SessionStatistics: "session_statistics",
        service_port_pb2.FlowOpened: "flow_opened",
        service_port_pb2.FlowClosed: "flow_closed",
        service_port_pb2.FlowRefusedReported: "flow_refused",
        service_port_pb2.ServiceStatistics: "service_statistics",
    }

    _service_actor: ClassVar[str]

    def __init__(
        self,
        settings: BookSettings,
        children: Callable[[], Sequence[ChildStatus]],
        now: float,
        wall: float,
    ) -> None:
        """See `StatusBook`."""
        super().__init__(settings, children, now, wall)
        self._intermediates = {name: IntermediateState() for name in settings.intermediates}
        self._services = {line.id: ServiceState(line, line.address) for line in settings.services}
        # No longer configured; counters do not go back for that.
        self._removed: dict[str, ServiceState] = {}
        self._sessions = SessionList()
        self._datagrams_dropped = 0
        self._attempts: Counter[str] = Counter()
        self._nat = types_pb2.NatBehaviour()
        self._direct_bytes = self._switches = self._fail_overs = 0
        self._dual_sends = self._keepalives_sent = self._keepalives_missed = 0

    def configure(self, services: Sequence[ServiceLine]) -> None:
        """Take other services; those that stay keep their figures."""
        known = {**self._removed, **self._services}
        self._services = {}
        for line in services:
            state = known.pop(line.id, None)
            if state is None or state.line.protocol != line.protocol:
                state = ServiceState(line, line.address)
            elif state.line.address != line.address:
                state.address = line.address
            state.line = line
            self._services[line.id] = state
        self._removed = known
        for intermediate in self._intermediates.values():
            answers = intermediate.answers
            intermediate.answers = {name: answers[name] for name in answers if name in self._services}

    def has_service(self, service: str) -> bool:
        """Whether a service is configured."""
        return service in self._services

    # Intermediates

    def attach(self, message: signaling_client_pb2.Attach) -> None:
        """An attachment is wanted."""
        intermediate = self._intermediate(message.intermediate_id)
        if intermediate.state != "attached":
            intermediate.state = "connecting"

    def detach(self, message: signaling_client_pb2.Detach) -> None:
        """No attachment is wanted any more."""
        intermediate = self._intermediate(message.intermediate_id)
        intermediate.state, intermediate.reason = "idle", message.reason.replace("_", " ")
        intermediate.answers.clear()

    def attached(self, message: signaling_client_pb2.Attached) -> None:
        """An attachment stands; services are registered anew on each."""
        intermediate = self._intermediate(message.intermediate_id)
        intermediate.state, intermediate.reason = "attached", ""
        intermediate.attachments += 1
        intermediate.answers.clear()

    def detached(self, message: signaling_client_pb2.Detached) -> None:
        """An attachment is lost, or could not be made."""
        intermediate = self._intermediate(message.intermediate_id)
        intermediate.answers.clear()
        if intermediate.state == "idle":
            return
        reason = sentence(message.reason, message.detail)
        intermediate.state, intermediate.reason = "detached", reason
        self.problems.note(
            "signaling_client.detached", f"intermediate {message.intermediate_id}: {reason}", self.wall
        )

    def leg_connected(self, message: relay_leg_pb2.LegConnected) -> None:
        """The leg's connection stands; the attachment is not bound to it yet."""
        intermediate = self._intermediate(message.intermediate_id)
        intermediate.is_leg_connected, intermediate.leg_reason = True, ""

    def leg_up(self, message: relay_leg_pb2.RelayLegUp) -> None:
        """The leg relays."""
        intermediate = self._intermediate(message.intermediate_id)
        intermediate.leg_carrier, intermediate.leg_reason = message.carrier, ""

    def leg_down(self, message: relay_leg_pb2.RelayLegDown) -> None:
        """A carrier of the leg is gone, and the leg with it unless the other one is in use."""
        intermediate = self._intermediate(message.intermediate_id)
        reason = sentence(message.reason, message.detail)
        if message.carrier == CarrierKind.QUIC:
            intermediate.is_leg_connected, intermediate.observed = False, None
        if intermediate.leg_carrier not in {"", message.carrier}:
            return
        intermediate.leg_carrier, intermediate.leg_reason, intermediate.rtt_ms = "", reason, 0.0
        # A leg that is closed along with its attachment is no news, unless it says who is to blame.
        if intermediate.state != "idle" or message.is_authentication_failure:
            self.problems.note(
                "relay_leg.down", f"relay leg to {message.intermediate_id}: {reason}", self.wall
            )

    def address_observed(self, message: relay_leg_pb2.AddressObserved) -> None:
        """Our address as the intermediate sees it."""
        self._intermediate(message.intermediate_id).observed = message.address

    def leg_statistics(self, message: relay_leg_pb2.LegStatistics) -> None:
        """RTT and drops of a leg."""
        self._intermediate(message.intermediate_id).rtt_ms = message.rtt_ms
        self.note_drops("relay_leg", message.intermediate_id, message.dropped)

    # Services

    def service_statistics(self, message: service_port_pb2.ServiceStatistics) -> None:
        """Totals of one service."""
        service = self._services.get(message.service) or self._removed.get(message.service)
        if service is not None:
            service.statistics = message
            self.note_drops(self._service_actor, message.service, message.dropped)

    def flow_opened(self, message: service_port_pb2.FlowOpened) -> None:
        """A session carries a service."""
        self._sessions.carry(message.session_id, message.service)
        if message.protocol == types_pb2.SERVICE_PROTOCOL_TCP:
            self._sessions.count_streams(message.session_id, 1)

    def flow_closed(self, message: service_port_pb2.FlowClosed) -> None:
        """A connection or flow ended; only a failure of the service itself is news for people."""
        if message.protocol == types_pb2.SERVICE_PROTOCOL_TCP:
            self._sessions.count_streams(message.session_id, -1)
        if message.reason.startswith("backend_"):
            self.problems.note(
                f"{self._service_actor}.flow_failed",
                f"service {message.service}: {message.reason.replace('_', ' ')}",
                self.wall,
            )

    def flow_refused(self, message: service_port_pb2.FlowRefusedReported) -> None:
        """The connector refused a connection or flow."""
        who = self._refused(message.peer_id)
        self.count_refusal(self._service_actor, message.code)
        reason = sentence(message.code, message.message)
        self.problems.note(
            f"{self._service_actor}.flow_refused", f"service {message.service}: {who}: {reason}", self.wall
        )

    # Sessions

    def path_selected(self, message: path_manager_pb2.PathSelected) -> None:
        """A session's packets go another way."""
        self._sessions.select_path(message, self.now)

    def path_statistics(self, message: path_manager_pb2.PathStatistics) -> None:
        """How the paths of a session fare."""
        if record := self._sessions.direct_path_of(message.session_id):
            former = record.measured(message)
            self._switches += max(0, message.switches - former.switches)
            self._fail_overs += max(0, message.fail_overs - former.fail_overs)

    def search_changed(self, message: hole_punch_pb2.HolePunchChanged) -> None:
        """The search for a direct path went on."""
        if record := self._sessions.direct_path_of(message.session_id):
            record.searched(message, self.now)

    def search_finished(self, message: hole_punch_pb2.HolePunchFinished) -> None:
        """An attempt at a direct path ended."""
        result = "direct" if message.is_direct else message.reason or "unknown"
        if result not in self._attempts and len(self._attempts) >= MAX_ATTEMPT_RESULTS - 1:
            result = OTHER_RESULTS
        self._attempts[result] += 1
        if record := self._sessions.direct_path_of(message.session_id):
            record.finished(message)

    def pairs_reported(self, message: checklist_pb2.ChecklistReport) -> None:
        """How the candidate pairs of a session fare."""
        if record := self._sessions.direct_path_of(message.session_id):
            record.checked(message)

    def pair_succeeded(self, message: checklist_pb2.PairSucceeded) -> None:
        """A pair of a session was answered."""
        if record := self._sessions.direct_path_of(message.session_id):
            record.succeeded(message, self.now)

    def nat_behaviour_learned(self, message: candidate_gatherer_pb2.NatBehaviourLearned) -> None:
        """More is known of the NATs before this node."""
        self._nat = message.nat

    def pair_nominated(self, message: checklist_pb2.PairNominated) -> None:
        """A pair is to carry a session."""
        if record := self._sessions.direct_path_of(message.session_id):
            record.nominated(message)

    def keepalive_statistics(self, message: keepalive_pb2.KeepaliveStatistics) -> None:
        """Keepalives of a session."""
        if record := self._sessions.direct_path_of(message.session_id):
            former = record.kept_alive(message)
            self._keepalives_sent += max(0, message.checks_sent - former.checks_sent)
            self._keepalives_missed += max(0, message.checks_missed - former.checks_missed)

    def session_established(self, message: quic_session_pb2.SessionEstablished) -> None:
        """The peer is proven."""
        self._sessions.establish(message.session_id, message.peer.id, self.now)

    def session_closed(self, message: quic_session_pb2.SessionClosed) -> None:
        """A session is over."""
        peer = self._sessions.close(message.session_id)
        if message.reason in _ENDED_ON_PURPOSE and not message.is_authentication_failure:
            return
        reason = sentence(message.reason, message.message)
        who = peer or message.session_id.hex()[:8]
        if not message.is_remote and message.reason not in _OUTAGES:
            self.count_refusal("session", message.reason)
        self.problems.note("quic_session.session_closed", f"session with {who}: {reason}", self.wall)

    def handshake_deferred(self, message: quic_session_pb2.HandshakeDeferred) -> None:
        """The first packet of a session was dropped, since too many handshakes are under way."""
        self.count_refusal("session", message.reason)

    def session_statistics(self, message: quic_session_pb2.SessionStatistics) -> None:
        """RTT and totals of a session."""
        former = self._sessions.measure(message)
        self._datagrams_dropped += max(0, message.datagrams_dropped - former.datagrams_dropped)
        self._direct_bytes += max(0, _direct_bytes(message) - _direct_bytes(former))
        self._dual_sends += max(0, message.dual_sends - former.dual_sends)
        self.note_drops("quic_session", "", {"congestion_window_full": self._datagrams_dropped})

    # Reading

    def tick(self, now: float, wall: float, lag_s: float) -> None:
        """Also forget sessions that were granted and never became one."""
        super().tick(now, wall, lag_s)
        self._sessions.forget_stale(now)

    def session_ids(self) -> list[bytes]:
        """Every session, oldest first."""
        return self._sessions.ids()

    def has_session(self, session_id: bytes) -> bool:
        """Whether a session is listed."""
        return session_id in self._sessions

    def not_ready_reason(self) -> str:
        """Sockets bound, listeners bound, attached over a leg that is up, services answered."""
        return super().not_ready_reason() or self._service_problem() or self._not_attached_reason()

    def _service_problem(self) -> str:
        """What keeps a service from being served here; a connector's backends are looked at when used."""
        return ""

    def _not_attached_reason(self) -> str:
        attached = {name: each for name, each in self._intermediates.items() if each.state == "attached"}
        if not attached:
            reasons = [f"{name}: {each.reason}" for name, each in self._intermediates.items() if each.reason]
            return "; ".join(["not attached to any intermediate", *reasons])
        answered = {name: each for name, each in attached.items() if self._is_answered(each)}
        if not answered:
            name, each = next(iter(attached.items()))
            waiting = [service for service in self._services if service not in each.answers]
            return f"intermediate {name} has not answered the registration of {', '.join(waiting)}"
        if not any(each.leg_carrier for each in answered.values()):
            name, each = next(iter(answered.items()))
            return f"the relay leg to {name} is not up: {each.leg_reason or 'connecting'}"
        return ""

    def _is_answered(self, intermediate: IntermediateState) -> bool:
        return all(service in intermediate.answers for service in self._services)

    def fill(self, status: control_pb2.DaemonStatus) -> None:
        """Add intermediates, services and sessions, the newest first."""
        for name, each in self._intermediates.items():
            status.intermediates.add(
                id=name,
                state=each.state,
                reason=each.reason,
                is_leg_up=bool(each.leg_carrier),
                leg_carrier=each.leg_carrier,
                leg_reason=each.leg_reason or self._leg_reason(each),
                rtt_ms=each.rtt_ms,
                observed_address=each.observed,
            )
        status.services.extend(self._service_status(each) for each in self._services.values())
        status.nat.CopyFrom(self._nat)
        for session in self._sessions.newest_first(self.now, MAX_LISTED):
            session.agent_id, session.connector_id = self._parties(session.peer_id)
            status.sessions.append(session)

    @staticmethod
    def _leg_reason(intermediate: IntermediateState) -> str:
        if intermediate.leg_carrier or intermediate.state == "idle":
            return ""
        return "waits for the attachment" if intermediate.is_leg_connected else "connecting"

    def own_samples(self) -> Iterator[Sample]:
        """Add sums over all services."""
        role = self.settings.daemon
        services = (*self._services.values(), *self._removed.values())
        each = [service.statistics for service in services]
        tcp = [
            service.statistics
            for service in services
            if service.line.protocol == types_pb2.SERVICE_PROTOCOL_TCP
        ]
        packets = sum(s.packets_to_service + s.packets_from_service for s in each)
        size = sum(s.bytes_to_service + s.bytes_from_service for s in each)
        again = sum(max(0, i.attachments - 1) for i in self._intermediates.values())
        yield Sample("active_connections", sum(s.active for s in each))
        yield Sample("sessions", len(self._sessions))
        yield Sample(f"{role}_forwarded_packets_total", packets)
        yield Sample(f"{role}_forwarded_bytes_total", size)
        yield Sample(f"{role}_tcp_sessions_total", sum(s.total for s in tcp))
        yield Sample(f"{role}_tcp_errors_total", sum(s.errors for s in tcp))
        yield Sample(f"{role}_reconnections_total", again)
        yield Sample("direct_sessions", self._sessions.direct())
        yield Sample("direct_bytes_total", self._direct_bytes)
        yield Sample("path_switches_total", self._switches)
        yield Sample("path_fail_overs_total", self._fail_overs)
        yield Sample("dual_sends_total", self._dual_sends)
        yield Sample("keepalives_sent_total", self._keepalives_sent)
        yield Sample("keepalives_missed_total", self._keepalives_missed)
        for path, each_ms in self._sessions.round_trips_ms().items():
            yield Sample("path_rtt_seconds", statistics.median(each_ms) / 1e3, (path, "median"))
            yield Sample("path_rtt_seconds", max(each_ms) / 1e3, (path, "max"))
        for result, count in sorted(self._attempts.items()):
            yield Sample("hole_punch_attempts_total", count, (result,))

    def _service_status(self, service: ServiceState) -> control_pb2.ServiceStatus:
        state, reason = self._service_state(service)
        statistics = service.statistics
        return control_pb2.ServiceStatus(
            id=service.line.id,
            protocol=service.line.protocol,
            address=service.address,
            state=state,
            reason=reason,
            active=statistics.active,
            total=statistics.total,
            refused=statistics.refused,
            errors=statistics.errors,
            bytes_to_service=statistics.bytes_to_service,
            bytes_from_service=statistics.bytes_from_service,
        )

    def _service_state(self, service: ServiceState) -> tuple[str, str]:
        answers = [
            each.answers[service.line.id]
            for each in self._intermediates.values()
            if service.line.id in each.answers
        ]
        if "" in answers:
            return "registered", ""
        return ("rejected", answers[0]) if answers else ("pending", "")

    def _refused(self, peer_id: str) -> str:
        return f"refused to agent {peer_id}"

    def _parties(self, peer_id: str) -> tuple[str, str]:
        """Agent and connector of a session with this peer."""
        return peer_id, self.settings.id

    def _intermediate(self, name: str) -> IntermediateState:
        return self._intermediates.setdefault(name, IntermediateState())


def _direct_bytes(statistics: quic_session_pb2.SessionStatistics) -> int:
    return statistics.direct_bytes_sent + statistics.direct_bytes_received


def sentence(word: str, detail: str) -> str:
    """What people read: the detail if there is one, else the reason's own words.

    A detail that is a word of code, such as the reason of a goodbye, becomes words, too.
    """
    told = detail or word
    return told.replace("_", " ") if _WORD.fullmatch(told) else told
