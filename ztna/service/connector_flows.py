"""The connector's end of a session's UDP flows: decisions, backend sockets, and what waits for them.

A flow has a backend socket of its own, and a table serves one session. So a datagram from a backend can reach
nothing but the flow whose socket it came in on, at the one agent that opened it.

Datagrams may overtake the open, and arrive while it is decided: a few of them wait, for a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.service.flows import (
    FLOW_IDLE_S,
    MAX_FLOW_ID,
    MAX_FLOWS,
    AcceptFlow,
    CloseBackend,
    CloseFlow,
    CloseReason,
    Flow,
    FlowDrop,
    FlowRequested,
    FlowTable,
    OpenBackend,
    RefuseFlow,
    SendToBackend,
)
from ztna.service.fragments import MAX_PAYLOAD_BYTES, Fragment, parse
from ztna.service.tcp_effects import BACKEND_FAILED_MESSAGE, StreamError
from ztna.token_bucket import TokenBucket

# What an application sends before it must have an answer, and how long it waits for one (docs/wire.md §6).
MAX_WAITING_DATAGRAMS = 16
MAX_WAITING_S = 1.0
# All flows of the session together: 16 datagrams of the largest size.
MAX_WAITING_BYTES = MAX_WAITING_DATAGRAMS * MAX_PAYLOAD_BYTES
# Flows whose open is still under way: one lost packet of the control stream may hold back this many opens.
MAX_UNKNOWN_FLOWS = 16
# Opens per second and at once: a resolver that uses a source port per query stays below it; each open costs
# the verification of a signature and a socket.
DEFAULT_OPENS_PER_S = 100.0
DEFAULT_OPENS_BURST = 256.0


class FlowState(Enum):
    """How far a flow is at the connector."""

    UNKNOWN = auto()
    DECIDING = auto()
    OPENING = auto()
    OPEN = auto()


@dataclass(slots=True)
class _ConnectorFlow(Flow):
    state: FlowState = FlowState.UNKNOWN
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)


class ConnectorFlows(FlowTable[_ConnectorFlow]):
    """Flows that one agent opened in one session."""

    def __init__(
        self,
        now: float,
        *,
        max_flows: int = MAX_FLOWS,
        opens_per_s: float = DEFAULT_OPENS_PER_S,
        opens_burst: float = DEFAULT_OPENS_BURST,
        idle_s: float = FLOW_IDLE_S,
    ) -> None:
        super().__init__(max_flows, idle_s=idle_s)
        self._opens_per_s = opens_per_s
        self._opens = TokenBucket(opens_per_s, opens_burst, now)
        self._highest_flow_id = 0
        # Flows known by their datagrams alone, oldest first; they are no flows of the table yet.
        self._unknown: dict[int, _ConnectorFlow] = {}
        self._waiting_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes that wait for an open, a decision or a socket."""
        return self._waiting_bytes

    # From the agent.

    def handle_open(self, flow_id: int, service: str, now: float) -> None:
        """Take the agent's open; over a limit it is refused here.

        Raises `RemoteProtocolError` (`flow_id_out_of_order`) unless the number is above all earlier ones.
        """
        if not self._highest_flow_id < flow_id <= MAX_FLOW_ID:
            raise RemoteProtocolError("flow_id_out_of_order", f"flow {flow_id} after {self._highest_flow_id}")
        self._highest_flow_id = flow_id
        self._expire_unknown(now)
        flow = self._unknown.pop(flow_id, None) or self._new(flow_id, now)
        flow.service = service
        flow.state = FlowState.DECIDING
        flow.opened_at = flow.active_at = now
        self._flows[flow_id] = flow
        self._note_assembly(flow)
        if len(self._flows) > self._max_flows:
            self.counts.drops[FlowDrop.TOO_MANY_FLOWS] += 1
            self._refuse(
                flow, StreamError.LIMIT, f"limits.flows_per_agent ({self._max_flows}) is reached", now
            )
        elif not self._opens.take(now):
            self.counts.drops[FlowDrop.OPENS_TOO_FAST] += 1
            self._refuse(
                flow, StreamError.LIMIT, f"limits.opens_per_second ({self._opens_per_s:g}) is reached", now
            )
        else:
            self._effects.append(FlowRequested(flow_id, service))

    def handle_datagram(self, data: bytes, now: float) -> None:
        """Take one received DATAGRAM payload; raises `RemoteProtocolError` when it is no frame of a flow."""
        fragment = parse(data)
        flow = self._flows.get(fragment.flow_id)
        if flow is None:
            self._receive_unknown(fragment, now)
            return
        payload = self._receive(flow, fragment, now)
        if payload is None:
            return
        if flow.state is FlowState.OPEN:
            self._effects.append(SendToBackend(flow.flow_id, payload))
        else:
            self._wait(flow, payload, now)

    # Decisions and backend sockets.

    def accept(self, flow_id: int) -> None:
        """Decide that the flow is granted, and open its backend socket."""
        flow = self._in_state(flow_id, FlowState.DECIDING)
        if flow is not None:
            flow.state = FlowState.OPENING
            self._effects.append(OpenBackend(flow_id, flow.service))

    def refuse(self, flow_id: int, code: StreamError, message: str, now: float) -> None:
        """Decide that it is not; the agent is told why."""
        flow = self._in_state(flow_id, FlowState.DECIDING)
        if flow is not None:
            self._refuse(flow, code, message, now)

    def handle_backend_opened(self, flow_id: int, now: float) -> None:
        """Take the backend socket into use: answer, then send what waited and is not too old."""
        flow = self._in_state(flow_id, FlowState.OPENING)
        if flow is None:
            return
        flow.state = FlowState.OPEN
        self._effects.append(AcceptFlow(flow_id))
        for arrived_at, payload in self._stop_waiting(flow):
            if now - arrived_at <= MAX_WAITING_S:
                self._effects.append(SendToBackend(flow_id, payload))
            else:
                self.counts.drops[FlowDrop.WAITED_TOO_LONG] += 1

    def handle_backend_failed(self, flow_id: int, message: str, now: float) -> None:
        """Take the failure of the backend socket, before or after it was open."""
        flow = self._flows.get(flow_id)
        if flow is None:
            return
        if flow.state is FlowState.OPENING:
            self._effects.append(RefuseFlow(flow_id, StreamError.BACKEND_UNREACHABLE, BACKEND_FAILED_MESSAGE))
            self._close(flow, CloseReason.REFUSED, now, StreamError.BACKEND_UNREACHABLE, message)
        elif flow.state is FlowState.OPEN:
            self._effects.append(CloseFlow(flow_id, CloseReason.BACKEND_FAILED))
            self._close(flow, CloseReason.BACKEND_FAILED, now, StreamError.BACKEND_RESET, message)
        else:
            raise LocalProtocolError(f"flow {flow_id} has no backend socket while {flow.state.name}")

    def handle_backend_datagram(self, flow_id: int, payload: bytes, now: float) -> None:
        """Take one datagram that arrived on the flow's backend socket.

        Raises `LocalProtocolError` before that socket is open.
        """
        flow = self._flows.get(flow_id)
        if flow is None:
            self.counts.drops[FlowDrop.UNKNOWN_FLOW] += 1
        elif flow.state is not FlowState.OPEN:
            raise LocalProtocolError(f"flow {flow_id} has no backend socket while {flow.state.name}")
        else:
            self._send(flow, payload, now)

    # Time.

    def handle_timeout(self, now: float) -> None:
        """Also drop what waited too long for an open that never came."""
        self._expire_unknown(now)
        super().handle_timeout(now)

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the earliest deadline, or None."""
        deadline = super().next_deadline()
        for flow in self._unknown.values():
            expires_at = flow.opened_at + MAX_WAITING_S
            return expires_at if deadline is None else min(deadline, expires_at)
        return deadline

    def _new(self, flow_id: int, now: float) -> _ConnectorFlow:
        return _ConnectorFlow(flow_id, "", now, now, *self._new_parts(flow_id))

    def _in_state(self, flow_id: int, state: FlowState) -> _ConnectorFlow | None:
        flow = self._flows.get(flow_id)
        if flow is not None and flow.state is not state:
            raise LocalProtocolError(f"flow {flow_id} is {flow.state.name}, not {state.name}")
        return flow

    def _receive_unknown(self, fragment: Fragment, now: float) -> None:
        self._expire_unknown(now)
        flow = self._unknown.get(fragment.flow_id)
        if flow is None:
            if not self._highest_flow_id < fragment.flow_id <= MAX_FLOW_ID:
                self.counts.drops[FlowDrop.UNKNOWN_FLOW] += 1
                return
            if len(self._unknown) >= MAX_UNKNOWN_FLOWS:
                self.counts.drops[FlowDrop.TOO_MANY_UNKNOWN_FLOWS] += 1
                return
            flow = self._unknown[fragment.flow_id] = self._new(fragment.flow_id, now)
        payload = flow.reassembler.receive(fragment, now)
        if payload is not None:
            flow.bytes_from_peer += len(payload)
            self._wait(flow, payload, now)

    def _expire_unknown(self, now: float) -> None:
        for flow in list(self._unknown.values()):
            if now < flow.opened_at + MAX_WAITING_S:
                return
            del self._unknown[flow.flow_id]
            self.counts.drops[FlowDrop.WAITED_TOO_LONG] += len(self._stop_waiting(flow))

    def _wait(self, flow: _ConnectorFlow, payload: bytes, now: float) -> None:
        is_full = len(flow.waiting) >= MAX_WAITING_DATAGRAMS
        if is_full or self._waiting_bytes + len(payload) > MAX_WAITING_BYTES:
            self.counts.drops[FlowDrop.TOO_MANY_WAITING] += 1
            return
        flow.waiting.append((now, payload))
        self._waiting_bytes += len(payload)

    def _stop_waiting(self, flow: _ConnectorFlow) -> list[tuple[float, bytes]]:
        waited = list(flow.waiting)
        flow.waiting.clear()
        self._waiting_bytes -= sum(len(payload) for _, payload in waited)
        return waited

    def _refuse(self, flow: _ConnectorFlow, code: StreamError, message: str, now: float) -> None:
        self._effects.append(RefuseFlow(flow.flow_id, code, message))
        self._close(flow, CloseReason.REFUSED, now, code, message)

    def _close(
        self,
        flow: _ConnectorFlow,
        reason: CloseReason,
        now: float,
        code: StreamError = StreamError.NO_ERROR,
        message: str = "",
    ) -> None:
        self._stop_waiting(flow)
        if flow.state in {FlowState.OPENING, FlowState.OPEN}:
            self._effects.append(CloseBackend(flow.flow_id))
        super()._close(flow, reason, now, code, message)
