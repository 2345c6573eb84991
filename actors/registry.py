"""Owns the registered services; takes offers and wishes, emits the connector that was chosen, or a refusal.

The core (`ztna.signaling.registry`) decides; this actor translates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from actors import translate
from actors.base import Concern, Context
from actors.burst_log import BurstLog
from ztna.access.identity import Role
from ztna.access.policy import AccessRules
from ztna.errors import RemoteProtocolError
from ztna.signaling.registry import Refused
from ztna.signaling.registry import Registry as Core
from ztna.signaling.values import Code
from ztna.v1 import registry_pb2, reload_pb2, signaling_pb2, signaling_service_pb2

# A report lists every service, at about 3 us each: a second per thousand keeps it below 0.5 % of the time.
STATISTICS_INTERVAL_S = 1.0
SERVICES_PER_INTERVAL = 1000


class Registry(Concern):
    """Translates between messages and `ztna.signaling.registry`."""

    name = "registry"
    handlers: ClassVar = {
        signaling_service_pb2.NodeAttached: "node_attached",
        signaling_service_pb2.NodeDetached: "node_detached",
        signaling_service_pb2.ServiceOffered: "service_offered",
        signaling_service_pb2.ServiceWithdrawn: "service_withdrawn",
        signaling_service_pb2.SessionWanted: "session_wanted",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }
    emits = (
        registry_pb2.ConnectorChosen,
        registry_pb2.RegistryStatistics,
        signaling_service_pb2.SendFrame,
    )

    def __init__(
        self, context: Context, rules: Callable[[], AccessRules], max_services_per_connector: int
    ) -> None:
        """`rules` gives the present ones; raises what it raises."""
        super().__init__(context)
        self._rules = rules
        self._core = Core(rules(), max_services_per_connector=max_services_per_connector)
        self._registrations = 0
        self._rejections: Counter[str] = Counter()
        self._session_refusals: Counter[str] = Counter()
        self._rejection_log = BurstLog(self.log, "registry.service_rejected", is_warning=True)
        self._refusal_log = BurstLog(self.log, "registry.session_refused")
        self._is_changed = False
        self._report_at = self.now

    def node_attached(self, message: signaling_service_pb2.NodeAttached) -> None:
        """Take a node in; an agent that brings sessions keeps their connectors."""
        party = translate.party_from_proto(message.node)
        self._core.handle_attached(message.attach_id, party)
        if party.role is Role.AGENT:
            for resumed in message.resume:
                self._keep_choice(message, resumed)
        elif message.superseded_attach_id:
            self._is_changed = True

    def node_detached(self, message: signaling_service_pb2.NodeDetached) -> None:
        """Forget a node and what it offered."""
        self._core.handle_detached(message.attach_id, translate.party_from_proto(message.node))
        self._is_changed = True

    def service_offered(self, message: signaling_service_pb2.ServiceOffered) -> None:
        """Answer a registration."""
        protocol = translate.protocol_from_proto(message.protocol)
        if protocol is None:
            refused: Refused | None = Refused(Code.INVALID_MESSAGE, "a service is tcp or udp")
        else:
            refused = self._core.offer(message.attach_id, message.service, protocol)
        self._answer_offer(message.attach_id, message.service, refused)

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Connectors are told of services that they may provide now, or no longer."""
        for verdict in self._core.handle_rules(self._rules()):
            self._answer_offer(verdict.attach_id, verdict.service, verdict.refused)

    def service_withdrawn(self, message: signaling_service_pb2.ServiceWithdrawn) -> None:
        """A connector no longer offers a service, or cannot be told of an agent that wants it."""
        if self._core.withdraw(message.attach_id, message.service):
            self.log.info(
                "registry.service_withdrawn",
                service=message.service,
                peer_id=self._core.connector_id(message.attach_id),
            )
            self._is_changed = True

    def session_wanted(self, message: signaling_service_pb2.SessionWanted) -> None:
        """Choose a connector."""
        agent = translate.party_from_proto(message.agent)
        answer = self._core.choose(
            agent,
            message.service,
            translate.protocol_from_proto(message.protocol),
            message.connectors,
            message.excluded_connectors,
        )
        if isinstance(answer, Refused):
            self._session_refusals[answer.code.value] += 1
            self._refusal_log.note(
                self.now,
                (agent.id, answer.code.value),
                agent_id=agent.id,
                service=message.service[:64],
                code=answer.code.value,
                reason=answer.message,
            )
            error = signaling_pb2.SignalingError(
                code=translate.code_to_proto(answer.code),
                request_id=message.request_id,
                message=answer.message,
            )
            frame = signaling_pb2.SignalingFrame(error=error)
            self.emit(signaling_service_pb2.SendFrame(attach_id=message.attach_id, frame=frame))
            self._is_changed = True
        else:
            self.emit(
                registry_pb2.ConnectorChosen(
                    agent_attach_id=message.attach_id,
                    agent=message.agent,
                    request_id=message.request_id,
                    service=message.service,
                    connector_attach_id=answer.attach_id,
                    connector=translate.party_to_proto(answer.connector),
                )
            )

    def handle_timeout(self, now: float) -> None:
        """Report what changed."""
        self._rejection_log.handle_timeout(now)
        self._refusal_log.handle_timeout(now)
        if not self._is_changed or now < self._report_at:
            return
        services = self._core.services()
        self._is_changed = False
        self._report_at = now + STATISTICS_INTERVAL_S * (1 + len(services) // SERVICES_PER_INTERVAL)
        self.emit(
            registry_pb2.RegistryStatistics(
                services=[
                    registry_pb2.RegistryStatistics.Service(
                        service=each.service,
                        protocol=translate.protocol_to_proto(each.protocol),
                        connectors=each.connectors,
                    )
                    for each in services
                ],
                registrations=self._registrations,
                rejections=self._rejections,
                session_refusals=self._session_refusals,
            )
        )

    def next_deadline(self) -> float | None:
        """When a report is due, or a burst of refusals over."""
        deadlines = (
            self._report_at if self._is_changed else None,
            self._rejection_log.next_deadline(),
            self._refusal_log.next_deadline(),
        )
        return min((each for each in deadlines if each is not None), default=None)

    def _answer_offer(self, attach_id: bytes, service: str, refused: Refused | None) -> None:
        if refused is None:
            self._registrations += 1
            self.log.info(
                "registry.service_registered",
                service=service,
                peer_id=self._core.connector_id(attach_id),
            )
            frame = signaling_pb2.SignalingFrame(
                registration_accepted=signaling_pb2.RegistrationAccepted(service=service)
            )
        else:
            self._rejections[refused.code.value] += 1
            self._rejection_log.note(
                self.now,
                (attach_id.hex(), refused.code.value),
                service=service[:64],
                peer_id=self._core.connector_id(attach_id),
                code=refused.code.value,
                reason=refused.message,
            )
            frame = signaling_pb2.SignalingFrame(
                registration_rejected=signaling_pb2.RegistrationRejected(
                    service=service,
                    code=translate.code_to_proto(refused.code),
                    message=refused.message,
                )
            )
        self.emit(signaling_service_pb2.SendFrame(attach_id=attach_id, frame=frame))
        self._is_changed = True

    def _keep_choice(
        self, message: signaling_service_pb2.NodeAttached, resumed: signaling_pb2.ResumeSession
    ) -> None:
        # Only a preference of this very agent is taken from it, so its signature can stay unverified here.
        try:
            claims = translate.claims_from_bytes(resumed.grant.claims)
        except RemoteProtocolError:
            return  # the session manager refuses it by name
        if claims.agent_id == message.node.id:
            self._core.prefer(translate.party_from_proto(message.node), claims.service, claims.connector_id)
