"""One session as the connector sees it, and what its agent may take."""

from __future__ import annotations

from dataclasses import dataclass

from actors.grant_gate import GrantGate
from actors.service_session import ServiceSession
from actors.udp_backend import UdpBackend
from ztna.service.connector_flows import ConnectorFlows
from ztna.token_bucket import TokenBucket


@dataclass(slots=True)
class AgentUsage:
    """What one agent uses now, over all its sessions: it may have two while one replaces the other."""

    opens: TokenBucket
    sessions: int = 0
    streams: int = 0
    flows: int = 0


@dataclass(slots=True)
class BackendFlow:
    """A UDP flow, from the opening of its backend socket on."""

    service: str
    backend: UdpBackend
    is_open: bool = False


class ConnectorSession(ServiceSession):
    """A session with the agent's grants and backends.

    Attributes:
        gate: judges what the agent shows.
        usage: shared by the sessions of that agent.
        backends: by flow ID.
        max_stream_id: of the streams seen so far.
    """

    def __init__(
        self, session_id: bytes, peer_id: str, flows: ConnectorFlows, gate: GrantGate, usage: AgentUsage
    ) -> None:
        super().__init__(session_id, peer_id, flows)
        self.flows = flows
        self.gate = gate
        self.usage = usage
        self.backends: dict[int, BackendFlow] = {}
        self.max_stream_id = 0
        self.is_greeted = False
