"""What a connector knows of itself beyond what agents have too: registrations, and sessions offered to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from google.protobuf.message import Message

from actors.node_status import NodeStatusBook, sentence
from ztna.v1 import signaling_client_pb2


class ConnectorStatusBook(NodeStatusBook):
    """The book of a connector, which alone registers services and is offered sessions."""

    takers: ClassVar[Mapping[type[Message], str]] = {
        **NodeStatusBook.takers,
        signaling_client_pb2.ServiceRegistered: "service_registered",
        signaling_client_pb2.ServiceRejected: "service_rejected",
        signaling_client_pb2.SessionOffered: "session_offered",
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
