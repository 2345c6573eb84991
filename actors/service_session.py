"""One session as the service sockets see it: its streams, its flows, and how much is under way."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from actors.io import MAX_READ_BYTES
from actors.service_wire import ControlDecoder
from ztna.service.agent_flows import AgentFlows
from ztna.service.connector_flows import ConnectorFlows
from ztna.token_bucket import TokenBucket

if TYPE_CHECKING:
    from actors.tcp_pump import TcpPump

# With this much of all streams unacknowledged the session is full: four times the largest congestion window,
# so that only readers which stall fill it. Each stream then has its share of SHARED_BYTES and no more. One
# with nothing under way may always go on, hence clients that do not read hold up nobody else.
MAX_SESSION_IN_FLIGHT_BYTES = 16 * 1024 * 1024
RESUME_SESSION_BELOW_BYTES = MAX_SESSION_IN_FLIGHT_BYTES // 2
# MAX_STREAMS times one read of a socket. It and what makes a session full stay below MAX_SEND_BACKLOG_BYTES.
SHARED_BYTES = 64 * 1024 * 1024

# What a peer says of the direct path: an exchange takes some 40 frames, and there is one in 30 s, or a few
# when addresses change.
ICE_SIGNALS_PER_SECOND = 50.0
ICE_SIGNALS_BURST = 400.0


class ServiceSession:
    """A session that is established: who is at the other end, and what runs over it.

    Attributes:
        pumps: TCP connections by stream ID.
        flows: UDP flows.
        is_open: False once `SessionClosed` came; nothing is sent then.
        is_draining: the peer wants nothing new.
        control_backlog_bytes: of the control stream, not yet acknowledged.
        ice_signals: how many of them the peer may still send.
        allowed: services that it may carry, by the rules of an intermediate; None: whatever is granted.
    """

    def __init__(self, session_id: bytes, peer_id: str, flows: AgentFlows | ConnectorFlows) -> None:
        self.session_id = session_id
        self.peer_id = peer_id
        self.flow_table = flows
        self.control = ControlDecoder()
        self.pumps: dict[int, TcpPump] = {}
        self.is_open = True
        self.is_draining = False
        self.allowed: frozenset[str] | None = None
        self.control_backlog_bytes = 0
        self.ice_signals = TokenBucket(ICE_SIGNALS_PER_SECOND, ICE_SIGNALS_BURST, 0.0)
        self._in_flight = 0
        self._is_full = False
        # Streams that are over for us and not yet for QUIC: it still holds these bytes.
        self._leftovers: Counter[int] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether streams are held to their share."""
        return self._is_full

    def may_carry(self, service: str) -> bool:
        """Whether the intermediate's rules let the session carry a service; a grant is needed besides."""
        return self.allowed is None or service in self.allowed

    def has_room(self, unacknowledged_bytes: int) -> bool:
        """Whether a stream with this much under way may read on from its socket."""
        if not self._is_full or not unacknowledged_bytes:
            return True
        share = SHARED_BYTES // max(1, len(self.pumps) + len(self._leftovers))
        # The next read may be as large as reads are.
        return unacknowledged_bytes + MAX_READ_BYTES <= share

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs over it."""
        return not self.pumps and not len(self.flow_table)

    def sent(self, size_bytes: int) -> None:
        """Note bytes given to the session; when it has enough, each stream has its share."""
        self._in_flight += size_bytes
        if not self._is_full and self._in_flight >= MAX_SESSION_IN_FLIGHT_BYTES:
            self._is_full = True
            self._update_reading()

    def acknowledged(self, size_bytes: int) -> None:
        """Note bytes that left the session's buffers; sockets go on when it has room."""
        self._in_flight -= size_bytes
        if self._is_full and self._in_flight <= RESUME_SESSION_BELOW_BYTES:
            self._is_full = False
            self._update_reading()

    def forget_stream(self, stream_id: int, unacknowledged_bytes: int, *, is_reset: bool) -> None:
        """Drop the pump of a stream; what a reset stream had under way is forgotten by QUIC as well."""
        self.pumps.pop(stream_id, None)
        if is_reset:
            self.acknowledged(unacknowledged_bytes)
        elif unacknowledged_bytes:
            self._leftovers[stream_id] = unacknowledged_bytes

    def leftover_acknowledged(self, stream_id: int, size_bytes: int) -> None:
        """Note the same of a stream without a pump."""
        size_bytes = min(size_bytes, self._leftovers[stream_id])
        self._leftovers[stream_id] -= size_bytes
        if not self._leftovers[stream_id]:
            del self._leftovers[stream_id]
        self.acknowledged(size_bytes)

    def leftover_dropped(self, stream_id: int) -> None:
        """The peer wants no more of a stream without a pump."""
        self.acknowledged(self._leftovers.pop(stream_id, 0))

    def _update_reading(self) -> None:
        for pump in list(self.pumps.values()):
            pump.update_reading()
