"""What tests of the two service concerns share: identities, grants, and a session that loses nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from actors import translate
from actors.credentials import Credentials, parse_credentials
from tests.manual_io import START_WALL_TIME, ActorHarness
from tests.pki_fixtures import authority, issue, pem
from ztna.access.grant import GrantClaims
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.settings import AgentService, ConnectorService, HostPort, ServiceProtocol
from ztna.v1 import grant_pb2, quic_session_pb2, types_pb2

MessageT = TypeVar("MessageT", bound=Message)

SESSION = bytes(range(16))
AGENT_ID = "laptop"
CONNECTOR_ID = "office"
MAX_DATAGRAM_PAYLOAD_BYTES = 1170
CLIENT = TransportAddress("127.0.0.1", 50_001)


@cache
def credentials(role: Role, node_id: str, *, foreign: bool = False) -> Credentials:
    """A node's own credentials; a `foreign` one trusts another CA of the same name."""
    issued = issue(role, node_id, foreign=foreign)
    files = pem(issued)
    ca = files.ca
    if foreign:
        ca = authority(foreign=True).certificate.public_bytes(Encoding.PEM)
    return parse_credentials(files.certificate, files.key, ca, None, role, START_WALL_TIME)


def agent_identity(agent_id: str = AGENT_ID) -> types_pb2.NodeIdentity:
    """The agent as a session's handshake proves it."""
    own = credentials(Role.AGENT, agent_id)
    return types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id=agent_id, fingerprint=own.fingerprint)


def connector_identity() -> types_pb2.NodeIdentity:
    """The connector as a session's handshake proves it."""
    own = credentials(Role.CONNECTOR, CONNECTOR_ID)
    return types_pb2.NodeIdentity(role=types_pb2.ROLE_CONNECTOR, id=CONNECTOR_ID, fingerprint=own.fingerprint)


def make_grant(service: str, *, foreign: bool = False, **changes: Any) -> grant_pb2.SealedGrant:
    """A grant of the agent at the connector, faultless unless asked."""
    agent = credentials(Role.AGENT, AGENT_ID)
    connector = credentials(Role.CONNECTOR, CONNECTOR_ID)
    stated: dict[str, Any] = {
        "version": 1,
        "session_id": SESSION,
        "agent_id": AGENT_ID,
        "agent_fingerprint": agent.fingerprint,
        "connector_id": CONNECTOR_ID,
        "connector_fingerprint": connector.fingerprint,
        "service": service,
        "issued_at": int(START_WALL_TIME),
        "expires_at": int(START_WALL_TIME) + 600,
        "issuer": "relay-1",
        **changes,
    }
    issuer = credentials(Role.INTERMEDIATE, "relay-1", foreign=foreign)
    return translate.seal_grant(GrantClaims(**stated), issuer)


def of_type(messages: Iterable[Message], kind: type[MessageT]) -> list[MessageT]:
    """The messages of one type, in order."""
    return [message for message in messages if isinstance(message, kind)]


def established(
    peer: types_pb2.NodeIdentity, session_id: bytes = SESSION
) -> quic_session_pb2.SessionEstablished:
    """The session can be used."""
    return quic_session_pb2.SessionEstablished(
        idle_timeout_s=300,
        session_id=session_id,
        peer=peer,
        max_datagram_payload_bytes=MAX_DATAGRAM_PAYLOAD_BYTES,
    )


def tcp_service(name: str = "web", port: int = 8080) -> AgentService:
    """A TCP service of the agent."""
    return AgentService(id=name, protocol=ServiceProtocol.TCP, listen=TransportAddress("127.0.0.1", port))


def udp_service(name: str = "dns", port: int = 5353) -> AgentService:
    """A UDP service of the agent."""
    return AgentService(id=name, protocol=ServiceProtocol.UDP, listen=TransportAddress("127.0.0.1", port))


def tcp_backend(name: str = "web", **options: Any) -> ConnectorService:
    """The same at the connector."""
    backend = HostPort("127.0.0.2", 80)
    return ConnectorService(id=name, protocol=ServiceProtocol.TCP, backend=backend, **options)


def udp_backend(name: str = "dns", host: str = "127.0.0.2", **options: Any) -> ConnectorService:
    """The same at the connector."""
    return ConnectorService(id=name, protocol=ServiceProtocol.UDP, backend=HostPort(host, 53), **options)


class LosslessSession:
    """Carries what one service concern sends to the other, and acknowledges it at once."""

    def __init__(self, agent: ActorHarness[Any], connector: ActorHarness[Any]) -> None:
        self._ends = (agent, connector)
        self.seen: list[Message] = []

    def run(self) -> list[Message]:
        """Carry until nothing moves; returns what else was emitted, by either end."""
        others: list[Message] = []
        while True:
            moved = False
            for here, there in (self._ends, self._ends[::-1]):
                for message in here.take_emitted():
                    moved = True
                    if not self._carry(message, here, there):
                        others.append(message)
            if not moved:
                self.seen += others
                return others

    def _carry(self, message: Message, here: ActorHarness[Any], there: ActorHarness[Any]) -> bool:
        match message:
            case quic_session_pb2.SendPayload():
                there.tell(
                    quic_session_pb2.PayloadReceived(
                        session_id=message.session_id,
                        stream_id=message.stream_id,
                        data=message.data,
                        end_of_stream=message.end_of_stream,
                    )
                )
                here.tell(
                    quic_session_pb2.PayloadAcknowledged(
                        session_id=message.session_id,
                        stream_id=message.stream_id,
                        size_bytes=len(message.data),
                    )
                )
            case quic_session_pb2.AbortStream():
                for is_reset, applies in ((True, message.reset), (False, message.stop)):
                    if applies:
                        there.tell(
                            quic_session_pb2.StreamAborted(
                                session_id=message.session_id,
                                stream_id=message.stream_id,
                                code=message.code,
                                is_reset=is_reset,
                            )
                        )
            case quic_session_pb2.SendDatagramPayloads():
                there.tell(
                    quic_session_pb2.DatagramPayloadsReceived(
                        session_id=message.session_id, payloads=message.payloads
                    )
                )
            case quic_session_pb2.PayloadConsumed():
                pass
            case _:
                return False
        return True
