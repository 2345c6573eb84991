"""What an intermediate knows of itself: attached nodes, registered services, relayed sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from google.protobuf.message import Message

from actors.metrics import Sample
from actors.status_book import MAX_LISTED, BookSettings, StatusBook
from actors.supervisor import ChildStatus
from ztna.v1 import (
    control_pb2,
    quic_relay_pb2,
    registry_pb2,
    session_manager_pb2,
    signaling_service_pb2,
    types_pb2,
)

# The words of `ztna.quic.endpoint` for a Retry token that is none, and for one that was used before.
TOKEN_FAILURES: Final = ("invalid_token", "replayed_token")

_ROLES: Final = {types_pb2.ROLE_AGENT: "agent", types_pb2.ROLE_CONNECTOR: "connector"}


@dataclass(slots=True)
class _Node:
    identity: types_pb2.NodeIdentity
    carrier: str
    attached_at: float
    leg_carrier: str = ""


class IntermediateStatusBook(StatusBook):
    """The book of an intermediate. Its nodes are bounded by `limits.attached_nodes`."""

    takers: ClassVar[Mapping[type[Message], str]] = {
        **StatusBook.takers,
        signaling_service_pb2.NodeAttached: "node_attached",
        signaling_service_pb2.NodeDetached: "node_detached",
        signaling_service_pb2.SignalingStatistics: "signaling_statistics",
        quic_relay_pb2.LegOpened: "leg_opened",
        quic_relay_pb2.LegJudged: "leg_judged",
        quic_relay_pb2.RelayStatistics: "relay_statistics",
        registry_pb2.RegistryStatistics: "registry_statistics",
        session_manager_pb2.SessionsStatistics: "sessions_statistics",
    }

    def __init__(
        self,
        settings: BookSettings,
        children: Callable[[], Sequence[ChildStatus]],
        now: float,
        wall: float,
    ) -> None:
        """See `StatusBook`."""
        super().__init__(settings, children, now, wall)
        self._nodes: dict[bytes, _Node] = {}
        self._registry = registry_pb2.RegistryStatistics()
        self._sessions = session_manager_pb2.SessionsStatistics()
        self._relay = quic_relay_pb2.RelayStatistics()
        self._superseded_total = 0
        self._counts: dict[tuple[str, str], int] = {}

    def node_attached(self, message: signaling_service_pb2.NodeAttached) -> None:
        """A node attached, perhaps in place of its former attachment."""
        self._nodes.pop(message.superseded_attach_id, None)
        self._nodes[message.attach_id] = _Node(message.node, message.carrier, self.now)
        if message.superseded_remote:
            who = f"{_ROLES.get(message.node.role, 'node')} {message.node.id}"
            self.problems.note(
                "signaling_service.node_superseded",
                f"{who} attached from {message.remote} while attached from {message.superseded_remote}: "
                "do two processes use one certificate?",
                self.wall,
            )

    def node_detached(self, message: signaling_service_pb2.NodeDetached) -> None:
        """A node is gone."""
        self._nodes.pop(message.attach_id, None)
        if not message.is_clean:
            who = f"{_ROLES.get(message.node.role, 'node')} {message.node.id}"
            reason = message.reason.replace("_", " ")
            self.problems.note("signaling_service.node_lost", f"{who} was lost: {reason}", self.wall)

    def leg_opened(self, message: quic_relay_pb2.LegOpened) -> None:
        """A node's relay leg is up."""
        node = self._nodes.get(message.attach_id)
        if node is not None:
            node.leg_carrier = message.carrier

    def leg_judged(self, message: quic_relay_pb2.LegJudged) -> None:
        """A node's relay leg answers, or went down."""
        node = self._nodes.get(message.attach_id)
        if node is not None and not message.is_alive:
            node.leg_carrier = ""

    def signaling_statistics(self, message: signaling_service_pb2.SignalingStatistics) -> None:
        """Totals of signaling."""
        self._superseded_total = message.superseded_total
        self.note_refusals("signaling", message.refused)
        self._note_increases("signaling_service.refused", "signaling refused", message.refused)

    def registry_statistics(self, message: registry_pb2.RegistryStatistics) -> None:
        """The registered services."""
        self._registry = message
        self.note_refusals("registration", message.rejections)
        self.note_refusals("session_request", message.session_refusals)
        self._note_increases("registry.rejected", "registrations rejected", message.rejections)
        self._note_increases("registry.session_refused", "sessions refused", message.session_refusals)

    def sessions_statistics(self, message: session_manager_pb2.SessionsStatistics) -> None:
        """The sessions."""
        self._sessions = message
        self.note_refusals("session", message.refused)
        self._note_increases("session_manager.refused", "sessions refused", message.refused)

    def relay_statistics(self, message: quic_relay_pb2.RelayStatistics) -> None:
        """Totals of the relay."""
        self._relay = message
        self.note_drops("relay", "", message.dropped)
        self.note_drops("quic", "", message.refused)
        self._note_increases("quic_relay.refused", "connections refused", message.refused)

    def fill(self, status: control_pb2.DaemonStatus) -> None:
        """Add nodes, registered services and sessions, the newest first."""
        for node in list(reversed(self._nodes.values()))[:MAX_LISTED]:
            status.nodes.add(
                role=node.identity.role,
                id=node.identity.id,
                carrier=node.carrier,
                is_leg_up=bool(node.leg_carrier),
                leg_carrier=node.leg_carrier,
                attached_s=self.now - node.attached_at,
            )
        for service in self._registry.services:
            status.registered_services.add(
                id=service.service, protocol=service.protocol, connectors=service.connectors
            )
        relayed = {each.session_id: each.bytes for each in self._relay.sessions}
        for session in list(reversed(self._sessions.sessions))[:MAX_LISTED]:
            size = relayed.get(session.session_id, 0)
            status.sessions.add(
                session_id=session.session_id,
                agent_id=session.agent_id,
                connector_id=session.connector_id,
                services=session.services,
                state=session.state,
                path="relay",
                via=self.settings.id,
                age_s=max(0.0, self.wall - session.opened_at_s),
                bytes_sent=size,
                bytes_received=size,
            )

    def own_samples(self) -> Iterator[Sample]:
        """Add the totals of relay, registry and signaling."""
        failures = sum(self._relay.refused.get(each, 0) for each in TOKEN_FAILURES)
        yield Sample("active_connections", self._relay.legs)
        yield Sample("sessions", len(self._sessions.sessions))
        yield Sample("attached_nodes", len(self._nodes))
        yield Sample("relay_bytes_total", self._relay.bytes_relayed)
        yield Sample("datagrams_relayed_total", self._relay.packets_relayed)
        yield Sample("registrations_total", self._registry.registrations)
        yield Sample("registration_rejections_total", sum(self._registry.rejections.values()))
        yield Sample("superseded_total", self._superseded_total)
        yield Sample("signaling_sessions_total", self._sessions.opened_total)
        yield Sample("retry_tokens_validated_total", self._relay.retry_tokens_validated)
        yield Sample("retry_token_failures_total", failures)

    def _note_increases(self, event: str, what: str, counts: Mapping[str, int]) -> None:
        for reason, count in sorted(counts.items()):
            if count > self._counts.get((event, reason), 0):
                self.problems.note(event, f"{what}: {reason.replace('_', ' ')}", self.wall)
            self._counts[event, reason] = count
