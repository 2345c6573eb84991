"""UDP flows of one session: what both ends share. `agent_flows` and `connector_flows` add the two sides.

A flow joins one local source address at the agent with one socket towards the backend at the connector. The
agent numbers flows upwards and never reuses a number within a session, so that a late frame can belong to no
other flow than its own. Frames are those of `ztna.service.fragments`.

The table keeps its flows in the order of their last activity: the first is the next to become idle.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.service.fragments import MIN_FRAME_BYTES, Fragment, Fragmenter, Reassembler, ReassemblyDrop
from ztna.service.tcp_effects import StreamError

# RFC 4787 REQ-5: no mapping expires before two minutes without a packet. Either direction counts.
FLOW_IDLE_S = 120.0
# Per agent (docs/wire.md §6): 256 sockets at the connector are a quarter of a common file limit.
MAX_FLOWS = 256
# The schema's field has 32 bits; at 100 opens a second they last for more than a year.
MAX_FLOW_ID = 0xFFFF_FFFF
# What an inner connection of 1200-byte packets gives.
DEFAULT_FRAME_BYTES = 1170


class FlowDrop(StrEnum):
    """Why a datagram or an open was dropped before it reached a flow; the value is the metric label."""

    TOO_MANY_FLOWS = "too_many_flows"
    FLOW_IDS_EXHAUSTED = "flow_ids_exhausted"
    RECENTLY_REFUSED = "recently_refused"
    UNKNOWN_FLOW = "unknown_flow"
    TOO_MANY_UNKNOWN_FLOWS = "too_many_unknown_flows"
    TOO_MANY_WAITING = "too_many_waiting"
    WAITED_TOO_LONG = "waited_too_long"
    OPENS_TOO_FAST = "opens_too_fast"


class CloseReason(StrEnum):
    """Why a flow ended; the value is the metric label."""

    IDLE = "idle"
    CLOSED_BY_PEER = "closed_by_peer"
    REFUSED = "refused"
    BACKEND_FAILED = "backend_failed"
    REVOKED = "revoked"
    SESSION_ENDED = "session_ended"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class OpenFlow:
    """Ask the connector for a flow, on the control stream (agent)."""

    flow_id: int
    service: str


@dataclass(frozen=True, slots=True)
class SendDatagrams:
    """Send these frames, one per DATAGRAM frame, in order."""

    flow_id: int
    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class DeliverDatagram:
    """Send this datagram from the service's listener to the local source that opened the flow (agent)."""

    service: str
    source: TransportAddress
    payload: bytes


@dataclass(frozen=True, slots=True)
class FlowRequested:
    """The agent asks for a flow (connector); answer with `accept` or `refuse`."""

    flow_id: int
    service: str


@dataclass(frozen=True, slots=True)
class OpenBackend:
    """Connect a UDP socket of this flow's own to the backend (connector).

    It must accept datagrams from that backend address alone: a connected socket does.
    """

    flow_id: int
    service: str


@dataclass(frozen=True, slots=True)
class AcceptFlow:
    """Tell the agent that the flow is open, on the control stream (connector)."""

    flow_id: int


@dataclass(frozen=True, slots=True)
class RefuseFlow:
    """Tell the agent that the flow is refused, on the control stream (connector)."""

    flow_id: int
    code: StreamError
    message: str


@dataclass(frozen=True, slots=True)
class SendToBackend:
    """Send one datagram on the flow's backend socket (connector)."""

    flow_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class CloseBackend:
    """Close the flow's backend socket, or give up opening it (connector)."""

    flow_id: int


@dataclass(frozen=True, slots=True)
class CloseFlow:
    """Tell the peer that the flow is over, on the control stream."""

    flow_id: int
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class FlowClosed:
    """A flow is over and forgotten: its whole story. `code` and `message` are those of a refusal."""

    flow_id: int
    service: str
    reason: CloseReason
    code: StreamError
    message: str
    bytes_to_peer: int
    bytes_from_peer: int
    duration_s: float


FlowEffect = (
    OpenFlow
    | SendDatagrams
    | DeliverDatagram
    | FlowRequested
    | OpenBackend
    | AcceptFlow
    | RefuseFlow
    | SendToBackend
    | CloseBackend
    | CloseFlow
    | FlowClosed
)


@dataclass(slots=True)
class Flow:
    """What a flow is at either end."""

    flow_id: int
    service: str
    opened_at: float
    active_at: float
    fragmenter: Fragmenter
    reassembler: Reassembler
    bytes_to_peer: int = 0
    bytes_from_peer: int = 0


FlowT = TypeVar("FlowT", bound=Flow)


@dataclass(slots=True)
class FlowCounts:
    """What a table dropped so far, by reason."""

    drops: Counter[FlowDrop] = field(default_factory=Counter)
    reassembly: Counter[ReassemblyDrop] = field(default_factory=Counter)


class FlowTable(Generic[FlowT]):
    """The flows of one session at one end. `now` is monotonic seconds.

    Attributes:
        counts: drops by reason.
    """

    def __init__(self, max_flows: int = MAX_FLOWS, *, idle_s: float = FLOW_IDLE_S) -> None:
        self.counts = FlowCounts()
        self._max_flows = max_flows
        self._idle_s = idle_s
        self._frame_bytes = DEFAULT_FRAME_BYTES
        self._flows: OrderedDict[int, FlowT] = OrderedDict()
        # Flows with a datagram in reassembly: the only ones with a deadline besides idleness.
        self._assembling: dict[int, FlowT] = {}
        self._effects: list[FlowEffect] = []

    def __len__(self) -> int:
        return len(self._flows)

    def drain(self) -> list[FlowEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def handle_frame_size(self, size_bytes: int) -> None:
        """Take a new largest DATAGRAM payload; raises `LocalProtocolError` below MIN_FRAME_BYTES."""
        if size_bytes < MIN_FRAME_BYTES:
            raise LocalProtocolError(f"frames of {size_bytes} bytes are too small for a datagram")
        self._frame_bytes = size_bytes

    def handle_timeout(self, now: float) -> None:
        """Close flows that were idle for too long and give up datagrams that stayed incomplete."""
        while self._flows:
            flow = next(iter(self._flows.values()))
            if now < flow.active_at + self._idle_s:
                break
            self._effects.append(CloseFlow(flow.flow_id, CloseReason.IDLE))
            self._close(flow, CloseReason.IDLE, now)
        for flow in list(self._assembling.values()):
            flow.reassembler.handle_timeout(now)
            self._note_assembly(flow)

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the earliest deadline, or None."""
        deadlines = [flow.reassembler.next_deadline() for flow in self._assembling.values()]
        if self._flows:
            deadlines.append(next(iter(self._flows.values())).active_at + self._idle_s)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_peer_close(self, flow_id: int, now: float) -> None:
        """Take the peer's close; harmless when both ends closed the flow at once."""
        flow = self._flows.get(flow_id)
        if flow is not None:
            self._close(flow, CloseReason.CLOSED_BY_PEER, now)

    def close(self, flow_id: int, reason: CloseReason, now: float) -> None:
        """Close one flow for a reason of this end, such as revocation, and tell the peer."""
        flow = self._flows.get(flow_id)
        if flow is not None:
            self._effects.append(CloseFlow(flow_id, reason))
            self._close(flow, reason, now)

    def close_services(self, is_allowed: Callable[[str], bool], reason: CloseReason, now: float) -> None:
        """Close the flows of every service that is not allowed, and tell the peer."""
        for flow in [each for each in self._flows.values() if not is_allowed(each.service)]:
            self.close(flow.flow_id, reason, now)

    def close_all(self, reason: CloseReason, now: float) -> None:
        """Close every flow with the session; the peer is not told one by one."""
        for flow in list(self._flows.values()):
            self._close(flow, reason, now)

    def _new_parts(self, flow_id: int) -> tuple[Fragmenter, Reassembler]:
        return Fragmenter(flow_id), Reassembler(self.counts.reassembly)

    def _touch(self, flow: FlowT, now: float) -> None:
        flow.active_at = now
        self._flows.move_to_end(flow.flow_id)

    def _send(self, flow: FlowT, payload: bytes, now: float) -> None:
        self._touch(flow, now)
        flow.bytes_to_peer += len(payload)
        frames = flow.fragmenter.split(payload, self._frame_bytes)
        self._effects.append(SendDatagrams(flow.flow_id, tuple(frames)))

    def _receive(self, flow: FlowT, fragment: Fragment, now: float) -> bytes | None:
        try:
            payload = flow.reassembler.receive(fragment, now)
        finally:
            self._note_assembly(flow)
        if payload is not None:
            self._touch(flow, now)
            flow.bytes_from_peer += len(payload)
        return payload

    def _note_assembly(self, flow: FlowT) -> None:
        if flow.reassembler.partial_datagrams:
            self._assembling[flow.flow_id] = flow
        else:
            self._assembling.pop(flow.flow_id, None)

    def _close(
        self,
        flow: FlowT,
        reason: CloseReason,
        now: float,
        code: StreamError = StreamError.NO_ERROR,
        message: str = "",
    ) -> None:
        del self._flows[flow.flow_id]
        self._assembling.pop(flow.flow_id, None)
        duration_s = now - flow.opened_at
        self._effects.append(
            FlowClosed(
                flow.flow_id,
                flow.service,
                reason,
                code,
                message,
                flow.bytes_to_peer,
                flow.bytes_from_peer,
                duration_s,
            )
        )
