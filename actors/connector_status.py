"""What a connector knows of itself beyond what agents have too: registrations, and sessions offered to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from google.protobuf.message import Message

from actors.metrics import Sample
from actors.node_status import IntermediateState, NodeStatusBook, ServiceState, sentence
from ztna.v1 import service_health_pb2, signaling_client_pb2


class ConnectorStatusBook(NodeStatusBook):
    """The book of a connector, which alone registers services and is offered sessions."""

    takers: ClassVar[Mapping[type[Message], str]] = {
        **NodeStatusBook.takers,
        signaling_client_pb2.ServiceRegistered: "service_registered",
        signaling_client_pb2.ServiceRejected: "service_rejected",
        signaling_client_pb2.SessionOffered: "session_offered",
        service_health_pb2.ServiceHealthChanged: "service_health_changed",
    }
    _service_actor = "service_backend"

    def service_registered(self, message: signaling_client_pb2.ServiceRegistered) -> None:
        """An intermediate accepted a service."""
        self._intermediate(message.intermediate_id).answers[message.service] = ""

    def service_rejected(self, message: signaling_client_pb2.ServiceRejected) -> None:
        """An intermediate refused a service."""
        reason = sentence(message.code, message.message)
        self._intermediate(message.intermediate_id).answers[message.service] = reason
        self.problems.note(
            "signaling_client.service_rejected",
            f"service {message.service}: rejected by intermediate {message.intermediate_id}: {reason}",
            self.wall,
        )

    def session_offered(self, message: signaling_client_pb2.SessionOffered) -> None:
        """An agent opens a session."""
        self._sessions.open(message.session_id, message.agent.id, self.now)

    def service_health_changed(self, message: service_health_pb2.ServiceHealthChanged) -> None:
        """A backend answers again, or no longer."""
        service = self._services.get(message.service)
        if service is None:
            return
        service.illness = "" if message.is_healthy else message.detail
        service.is_known_healthy = message.is_healthy
        if not message.is_healthy:
            for intermediate in self._intermediates.values():
                intermediate.answers.pop(message.service, None)
            self.problems.note(
                "service_health.changed",
                f"service {message.service}: {service.address} fails its probes: {message.detail}",
                self.wall,
            )

    def own_samples(self) -> Iterator[Sample]:
        """Add the health of each service that is known."""
        yield from super().own_samples()
        for service in self._services.values():
            if service.illness or service.is_known_healthy:
                yield Sample("connector_service_healthy", int(not service.illness), (service.line.id,))

    def _service_problem(self) -> str:
        ill = [service for service in self._services.values() if service.illness]
        if ill and len(ill) == len(self._services):
            return f"no service is healthy; {ill[0].line.id}: {ill[0].illness}"
        return ""

    def _is_answered(self, intermediate: IntermediateState) -> bool:
        return all(
            service.line.id in intermediate.answers or service.illness for service in self._services.values()
        )

    def _service_state(self, service: ServiceState) -> tuple[str, str]:
        return ("unhealthy", service.illness) if service.illness else super()._service_state(service)
