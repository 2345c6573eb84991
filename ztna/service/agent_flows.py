"""The agent's end of a session's UDP flows: local source addresses and the flows they opened.

The first datagram of a source opens a flow and follows the open at once; the connector lets it wait for the
decision. A service that was refused is left alone for a moment, or each datagram would ask again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.service.flows import (
    FLOW_IDLE_S,
    MAX_FLOW_ID,
    MAX_FLOWS,
    CloseReason,
    DeliverDatagram,
    Flow,
    FlowDrop,
    FlowTable,
    OpenFlow,
)
from ztna.service.fragments import parse
from ztna.service.tcp_effects import StreamError

# As long as a datagram waits at the connector: an application's retry a second later asks again.
REFUSED_HOLD_S = 1.0


@dataclass(slots=True)
class _AgentFlow(Flow):
    source: TransportAddress = field(kw_only=True)
    is_accepted: bool = False


class AgentFlows(FlowTable[_AgentFlow]):
    """Flows of one session, opened by the applications of this machine."""

    def __init__(self, max_flows: int = MAX_FLOWS, *, idle_s: float = FLOW_IDLE_S) -> None:
        super().__init__(max_flows, idle_s=idle_s)
        self._by_source: dict[tuple[str, TransportAddress], _AgentFlow] = {}
        # One entry per configured service at most.
        self._refused_until: dict[str, float] = {}
        self._next_flow_id = 1

    def handle_local_datagram(
        self, service: str, source: TransportAddress, payload: bytes, now: float
    ) -> None:
        """Take one datagram that `source` sent to the listener of `service`; what may not pass is counted."""
        flow = self._by_source.get((service, source)) or self._open(service, source, now)
        if flow is not None:
            self._send(flow, payload, now)

    def handle_datagram(self, data: bytes, now: float) -> None:
        """Take one received DATAGRAM payload; raises `RemoteProtocolError` when it is no frame of a flow."""
        fragment = parse(data)
        flow = self._flows.get(fragment.flow_id)
        if flow is None:
            self.counts.drops[FlowDrop.UNKNOWN_FLOW] += 1
            return
        payload = self._receive(flow, fragment, now)
        if payload is not None:
            self._effects.append(DeliverDatagram(flow.service, flow.source, payload))

    def handle_accepted(self, flow_id: int) -> None:
        """Take the connector's acceptance; harmless when the flow was closed meanwhile.

        Raises `RemoteProtocolError` (`flow_not_asked`, `flow_answered_twice`).
        """
        flow = self._answered(flow_id)
        if flow is not None:
            flow.is_accepted = True

    def handle_refused(self, flow_id: int, code: StreamError, message: str, now: float) -> None:
        """Take the connector's refusal; raises as `handle_accepted` does."""
        flow = self._answered(flow_id)
        if flow is not None:
            # Another grant is asked for, and nothing opens a flow before there is one.
            if code is not StreamError.GRANT_REFUSED:
                self._refused_until[flow.service] = now + REFUSED_HOLD_S
            self._close(flow, CloseReason.REFUSED, now, code, message)

    def _answered(self, flow_id: int) -> _AgentFlow | None:
        if not 0 < flow_id < self._next_flow_id:
            raise RemoteProtocolError("flow_not_asked", f"flow {flow_id}")
        flow = self._flows.get(flow_id)
        if flow is not None and flow.is_accepted:
            raise RemoteProtocolError("flow_answered_twice", f"flow {flow_id}")
        return flow

    def _open(self, service: str, source: TransportAddress, now: float) -> _AgentFlow | None:
        if now < self._refused_until.get(service, now):
            self.counts.drops[FlowDrop.RECENTLY_REFUSED] += 1
            return None
        if len(self._flows) >= self._max_flows:
            self.counts.drops[FlowDrop.TOO_MANY_FLOWS] += 1
            return None
        flow_id = self._next_flow_id
        if flow_id > MAX_FLOW_ID:
            self.counts.drops[FlowDrop.FLOW_IDS_EXHAUSTED] += 1
            return None
        self._next_flow_id += 1
        flow = _AgentFlow(flow_id, service, now, now, *self._new_parts(flow_id), source=source)
        self._flows[flow_id] = flow
        self._by_source[service, source] = flow
        self._effects.append(OpenFlow(flow_id, service))
        return flow

    def _close(
        self,
        flow: _AgentFlow,
        reason: CloseReason,
        now: float,
        code: StreamError = StreamError.NO_ERROR,
        message: str = "",
    ) -> None:
        del self._by_source[flow.service, flow.source]
        super()._close(flow, reason, now, code, message)
