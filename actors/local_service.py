"""One service at the agent: its listener, whoever waits for a session, and where its UDP clients are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.client_pump import ClientPump
from actors.io import DatagramBatch, TcpListener, UdpSocket
from actors.service_counters import ServiceCounters
from actors.service_session import ServiceSession
from actors.service_wire import FIRST_SERVICE_STREAM_ID
from ztna.address import TransportAddress
from ztna.service.agent_flows import AgentFlows
from ztna.service.lease import SessionLease
from ztna.settings import AgentService
from ztna.v1 import grant_pb2

# The session table answers within 10 s (`ztna.session.agent_table.WISH_LIMIT_S`); this is for an answer that
# got lost in a crash, so that no client hangs for ever.
MAX_WAIT_S = 15.0

# UDP payloads that wait for a session, over all sources of a service; the oldest make room. 16 for each of 16
# clients: what applications send before they must have an answer.
MAX_WAITING_DATAGRAMS = 256
MAX_WAITING_BYTES = 1 << 20


@dataclass(slots=True)
class LocalFlow:
    """A UDP client, and the flow that carries its datagrams."""

    service: LocalService
    source: TransportAddress
    session: AgentSession
    local_host: str
    grant: grant_pb2.SealedGrant
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class WaitingDatagram:
    """A UDP payload whose service has no session yet; `local_host` is where it was sent to."""

    source: TransportAddress
    local_host: str
    payload: bytes


class AgentSession(ServiceSession):
    """A session as the agent sees it: it numbers the streams, holds the grants, and decides when it is over.

    Attributes:
        grants: the newest grant of each service.
        local_flows: by flow ID.
        is_leaving: its end was asked for; nothing new begins on it.
    """

    def __init__(
        self, session_id: bytes, peer_id: str, max_flows: int, flow_idle_s: float, idle_timeout_s: float
    ) -> None:
        self.flows = AgentFlows(max_flows, idle_s=flow_idle_s)
        super().__init__(session_id, peer_id, self.flows)
        self.grants: dict[str, grant_pb2.SealedGrant] = {}
        self.local_flows: dict[int, LocalFlow] = {}
        self.next_stream_id = FIRST_SERVICE_STREAM_ID
        self.is_leaving = False
        self.lease = SessionLease(idle_timeout_s)


class LocalUdpOwner(Protocol):
    """What a UDP socket needs of the concern that it belongs to."""

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as a message of the actor."""

    def local_datagrams(self, service: LocalService, batches: list[DatagramBatch]) -> None:
        """Clients sent datagrams to the service."""

    def local_send_failed(self, service: LocalService, error: OSError) -> None:
        """The kernel refused a datagram to a client."""


class LocalService:
    """State of one service; the concern acts on it.

    Attributes:
        clients: TCP connections that wait for a session.
        flows: UDP clients by address.
        give_up_at: monotonic seconds until which those who wait may wait; None while nobody asked.
    """

    def __init__(self, settings: AgentService, counters: ServiceCounters, owner: LocalUdpOwner) -> None:
        self.settings = settings
        self.id = settings.id
        self.counters = counters
        self.listener: TcpListener | None = None
        self.socket: UdpSocket | None = None
        self.clients: dict[ClientPump, None] = {}
        self.flows: dict[TransportAddress, LocalFlow] = {}
        self.give_up_at: float | None = None
        self._owner = owner
        self._datagrams: deque[WaitingDatagram] = deque()
        self._datagram_bytes = 0

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self.clients or self._datagrams)

    def hold(self, datagram: WaitingDatagram) -> None:
        """Let a datagram wait; the oldest are dropped and counted when there are too many."""
        self._datagrams.append(datagram)
        self._datagram_bytes += len(datagram.payload)
        while len(self._datagrams) > MAX_WAITING_DATAGRAMS or self._datagram_bytes > MAX_WAITING_BYTES:
            self._datagram_bytes -= len(self._datagrams.popleft().payload)
            self.counters.dropped["too_many_waiting"] += 1

    def take_datagrams(self) -> list[WaitingDatagram]:
        """Hand over what waits, oldest first."""
        waiting = list(self._datagrams)
        self._datagrams.clear()
        self._datagram_bytes = 0
        return waiting

    def take_clients(self) -> list[ClientPump]:
        """Hand over who waits, in the order of arrival."""
        waiting = list(self.clients)
        self.clients.clear()
        return waiting

    @property
    def is_listening(self) -> bool:
        """Whether clients can come."""
        return self.listener is not None or self.socket is not None

    def close(self) -> None:
        """Close the sockets."""
        if self.listener is not None:
            self.listener.close()
        if self.socket is not None:
            self.socket.close()
        self.listener = self.socket = None

    # Socket callbacks (`UdpOwner`)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Datagrams of clients."""
        del now
        self._owner.enter(self._owner.local_datagrams, self, batches)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """A datagram to a client was refused."""
        del remote, now
        self._owner.enter(self._owner.local_send_failed, self, error)
