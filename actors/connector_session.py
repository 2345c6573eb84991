"""One session as the connector sees it, and what its agent may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actors.grant_gate import GrantGate
from actors.service_session import ServiceSession
from actors.udp_backend import UdpBackend
from ztna.errors import RemoteProtocolError
from ztna.service.connector_flows import ConnectorFlows
from ztna.token_bucket import TokenBucket
from ztna.v1 import service_port_pb2

# Distance of the client's bidirectional stream IDs (RFC 9000 §2.1); the first is the control stream.
STREAM_ID_STEP: Final = 4
# Streams whose packets were overtaken by those of a later stream. Each was opened by some client within one
# round trip: as many as one agent may have in all.
MAX_UNSEEN_STREAMS: Final = 1024


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
        early_signals: what is to be said as soon as the agent has opened the control stream.
    """

    def __init__(
        self, session_id: bytes, peer_id: str, flows: ConnectorFlows, gate: GrantGate, usage: AgentUsage
    ) -> None:
        super().__init__(session_id, peer_id, flows)
        self.flows = flows
        self.gate = gate
        self.usage = usage
        self.backends: dict[int, BackendFlow] = {}
        self.is_greeted = False
        self.early_signals: list[service_port_pb2.SendInSessionSignal] = []
        self._next_stream_id = STREAM_ID_STEP
        self._unseen: dict[int, None] = {}

    def is_new_stream(self, stream_id: int) -> bool:
        """Whether bytes of a stream without a pump are its first, rather than some behind its end.

        Packets overtake each other, so that a stream opens all before it (RFC 9000 §3.2). Raises
        `RemoteProtocolError` when the agent leaves out too many.
        """
        if stream_id < self._next_stream_id:
            is_new = stream_id in self._unseen
            self._unseen.pop(stream_id, None)
            return is_new
        skipped = range(self._next_stream_id, stream_id, STREAM_ID_STEP)
        if len(self._unseen) + len(skipped) > MAX_UNSEEN_STREAMS:
            raise RemoteProtocolError("too_many_streams_skipped", f"stream {stream_id} came first")
        self._unseen.update(dict.fromkeys(skipped))
        self._next_stream_id = stream_id + STREAM_ID_STEP
        return True

    def stream_reset(self, stream_id: int) -> None:
        """The agent gave up a stream, perhaps before its first bytes came, which then never do.

        Raises what `is_new_stream` raises.
        """
        self.is_new_stream(stream_id)
