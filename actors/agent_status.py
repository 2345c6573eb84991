"""What an agent knows of itself beyond what connectors have too: listeners, and services out of reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from google.protobuf.message import Message

from actors.node_status import IntermediateState, NodeStatusBook, ServiceState, sentence
from actors.status_book import address_text
from ztna.v1 import service_port_pb2, session_table_pb2, signaling_client_pb2


class AgentStatusBook(NodeStatusBook):
    """The book of an agent, which alone has listeners and asks for services."""

    takers: ClassVar[Mapping[type[Message], str]] = {
        **NodeStatusBook.takers,
        signaling_client_pb2.SessionGranted: "session_granted",
        signaling_client_pb2.SessionRequestFailed: "session_request_failed",
        service_port_pb2.ListenerChanged: "listener_changed",
        session_table_pb2.ServiceReady: "service_ready",
        session_table_pb2.ServiceUnavailable: "service_unavailable",
        session_table_pb2.GrantRenewalRefused: "renewal_refused",
    }
    _service_actor = "service_port"

    def session_granted(self, message: signaling_client_pb2.SessionGranted) -> None:
        """A session is being opened, or one that exists has a further grant."""
        self._sessions.open(message.session_id, message.connector.id, self.now)
        self._sessions.carry(message.session_id, message.service)

    def session_request_failed(self, message: signaling_client_pb2.SessionRequestFailed) -> None:
        """An intermediate refused a session."""
        reason = sentence(message.code, message.message)
        self.problems.note(
            "signaling_client.session_request_failed",
            f"intermediate {message.intermediate_id} gave no session: {reason}",
            self.wall,
        )

    def listener_changed(self, message: service_port_pb2.ListenerChanged) -> None:
        """A listener of an agent is bound, or could not be."""
        service = self._services.get(message.service)
        if service is None:
            return
        service.is_listening, service.reason = message.is_listening, message.error
        if message.is_listening:
            service.address = address_text(message.address)
        if message.error:
            self.problems.note(
                "service_port.listener_failed",
                f"service {message.service}: cannot listen on {service.address}: {message.error}",
                self.wall,
            )

    def service_ready(self, message: session_table_pb2.ServiceReady) -> None:
        """A service can be reached."""
        service = self._services.get(message.service)
        if service is not None and service.is_listening:
            service.reason = ""

    def renewal_refused(self, message: session_table_pb2.GrantRenewalRefused) -> None:
        """What is connected to a service goes on, and nothing new may follow."""
        reason = sentence(message.code, message.message)
        self.problems.note(
            "session_table.renewal_refused",
            f"service {message.service} at {message.connector_id} is no longer granted: {reason}",
            self.wall,
        )

    def service_unavailable(self, message: session_table_pb2.ServiceUnavailable) -> None:
        """A service cannot be reached now."""
        reason = sentence(message.code, message.message)
        service = self._services.get(message.service)
        if service is not None:
            service.reason = reason
        self.problems.note(
            "session_table.service_unavailable", f"service {message.service}: {reason}", self.wall
        )

    def _service_problem(self) -> str:
        for service in self._services.values():
            if not service.is_listening:
                return f"service {service.line.id} does not listen: {service.reason or 'not bound yet'}"
        return ""

    def _is_answered(self, intermediate: IntermediateState) -> bool:
        del intermediate
        return True  # an agent registers nothing

    def _service_state(self, service: ServiceState) -> tuple[str, str]:
        return "listening" if service.is_listening else "failed", service.reason

    def _refused(self, peer_id: str) -> str:
        return f"refused by connector {peer_id}"

    def _parties(self, peer_id: str) -> tuple[str, str]:
        return self.settings.id, peer_id
