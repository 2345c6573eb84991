"""Owns the connector's sockets towards the services: a TCP connection per stream, a UDP socket per flow.

Each open shows a grant, which is judged here and nowhere else: by signature, by what it claims, by our own
`allow` list, by what one agent may take. A refusal tells the agent why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from actors import service_wire, translate
from actors.backend_pump import BackendPump
from actors.base import Context
from actors.connector_session import AgentUsage, BackendFlow, ConnectorSession
from actors.credentials import Credentials
from actors.grant_gate import GrantGate, RefusedError
from actors.service_concern import COMMON_EMITS, COMMON_HANDLERS, ServiceConcern
from actors.service_counters import ServiceCounters
from actors.tcp_pump import TcpPump
from actors.udp_backend import UdpBackend
from ztna.access.policy import ANY
from ztna.errors import RemoteProtocolError
from ztna.service import flows
from ztna.service.connector_flows import ConnectorFlows
from ztna.service.tcp_effects import StreamError, Summary
from ztna.settings import ConnectorLimits, ConnectorService, ServiceProtocol
from ztna.token_bucket import TokenBucket
from ztna.v1 import (
    grant_pb2,
    quic_session_pb2,
    service_port_pb2,
    session_pb2,
    types_pb2,
)

# Answers that an agent does not read: ten thousand, while it has a few hundred flows to hear of.
MAX_CONTROL_BACKLOG_BYTES = 1 << 20

# What a search says before the agent's hello, which comes with the first packets of a session: an answer and
# all its candidates.
MAX_EARLY_SIGNALS = 64


class ServiceBackend(ServiceConcern[ConnectorSession]):
    """The connector's end of every service."""

    name = "service_backend"
    handlers: ClassVar = COMMON_HANDLERS
    emits = (*COMMON_EMITS, service_port_pb2.GrantPresented)

    def __init__(
        self,
        context: Context,
        services: Callable[[], Sequence[ConnectorService]],
        limits: ConnectorLimits,
        credentials: Credentials,
    ) -> None:
        """`services` gives the present ones."""
        self._configured = services
        self._services = {each.id: each for each in services()}
        super().__init__(context, self._services)
        self._limits = limits
        self._credentials = credentials
        self._usage: dict[str, AgentUsage] = {}

    def on_stop(self) -> None:
        """Tell the agents, and end what runs."""
        self._is_stopping = True
        for session in self._sessions.values():
            if session.is_greeted:
                self._send_control(session, service_wire.draining())
            self._end_session(session, flows.CloseReason.SHUTTING_DOWN, "shutting_down")

    # Messages

    def _reconfigure(self) -> None:
        """End what is no longer provided to whoever uses it; another backend is for new connections."""
        former, self._services = self._services, {each.id: each for each in self._configured()}
        for service in self._services:
            self._counters.setdefault(service, ServiceCounters(service))
        for session in self._sessions.values():
            may_stay = {
                service.id
                for service in self._services.values()
                if _lets_in(service, session.peer_id)
                and (service.id not in former or former[service.id].protocol is service.protocol)
            }
            self._cut(session, may_stay.__contains__, StreamError.ACCESS_DENIED, "service_reconfigured")

    def session_closed(self, message: quic_session_pb2.SessionClosed) -> None:
        """Backends of the session are closed; the agent's account is settled."""
        session = self._sessions.get(message.session_id)
        super().session_closed(message)
        if session is not None:
            session.usage.sessions -= 1
            if not session.usage.sessions:
                del self._usage[session.peer_id]

    def send_in_session_signal(self, message: service_port_pb2.SendInSessionSignal) -> None:
        """Tell the agent, as soon as it has opened the stream for that."""
        session = self._sessions.get(message.session_id)
        if session is None or session.is_greeted:
            super().send_in_session_signal(message)
        elif len(session.early_signals) < MAX_EARLY_SIGNALS:
            session.early_signals.append(message)

    def stream_aborted(self, message: quic_session_pb2.StreamAborted) -> None:
        """The agent gave up a direction of a stream."""
        super().stream_aborted(message)
        session = self._sessions.get(message.session_id)
        if session is None or not message.is_reset:
            return
        try:
            session.stream_reset(message.stream_id)
        except RemoteProtocolError as error:
            self._protocol_broken(session, error)

    # What backend pumps call

    def header_received(self, pump: BackendPump, header: bytes) -> None:
        """A stream shows its grant."""
        session = pump.session
        if not isinstance(session, ConnectorSession):
            return
        try:
            shown = service_wire.decode_header(header)
            pump.service = shown.service
            service = self._admit(session, shown.service, shown.grant, ServiceProtocol.TCP)
        except RefusedError as refusal:
            pump.refuse(refusal.code, refusal.message)
        except RemoteProtocolError as error:
            pump.refuse(StreamError.INVALID, str(error))
        else:
            pump.connect(self._counters[service.id], service.backend)

    def pump_finished(self, pump: TcpPump, summary: Summary) -> None:
        """A connection is over."""
        if isinstance(pump.session, ConnectorSession):
            pump.session.usage.streams -= 1
        super().pump_finished(pump, summary)

    # Inside

    def _directions(self, from_socket: int, to_socket: int) -> tuple[int, int]:
        return to_socket, from_socket

    def _open_session(self, message: quic_session_pb2.SessionEstablished) -> ConnectorSession:
        limits = self._limits
        agent_id = message.peer.id
        opens = float(limits.opens_per_second)
        # A browser, or an agent that reconnects, opens all it may have at once: the rate is for what follows.
        burst = float(limits.streams_per_agent)
        usage = self._usage.setdefault(agent_id, AgentUsage(TokenBucket(opens, burst, self.now)))
        usage.sessions += 1
        # The agent's account is what counts, and it spans sessions; the table of one session only has to
        # stay within bounds of its own.
        table = ConnectorFlows(
            self.now,
            max_flows=limits.flows_per_agent,
            opens_per_s=opens,
            opens_burst=burst,
            idle_s=limits.flow_idle_s,
        )
        gate = GrantGate(self._credentials, self.io.wall_time, message.session_id, message.peer)
        return ConnectorSession(message.session_id, agent_id, table, gate, usage)

    def _stream_without_pump(
        self, session: ConnectorSession, message: quic_session_pb2.PayloadReceived
    ) -> None:
        """The first bytes of a stream; what comes behind the end of one is QUIC's to forget."""
        try:
            if not session.is_new_stream(message.stream_id):
                return
        except RemoteProtocolError as error:
            self._protocol_broken(session, error)
            return
        session.usage.streams += 1
        pump = BackendPump(self, session, message.stream_id, self._limits.connect_timeout_s)
        pump.stream_data(message.data, end_of_stream=message.end_of_stream)

    def _admit(
        self,
        session: ConnectorSession,
        service_id: str,
        grant: grant_pb2.SealedGrant,
        protocol: ServiceProtocol,
    ) -> ConnectorService:
        """The service that this grant opens to this agent, or `RefusedError`; cheap questions first."""
        if self._is_stopping:
            raise RefusedError(StreamError.SHUTTING_DOWN, "the connector is shutting down")
        self._check_limits(session.usage, protocol)
        if (shortage := self.io.shortage(needs_descriptor=True)) is not None:
            raise RefusedError(StreamError.LIMIT, f"{shortage.reason}: {shortage.detail}")
        return self._judge(session, service_id, grant, protocol)

    def _judge(
        self,
        session: ConnectorSession,
        service_id: str,
        grant: grant_pb2.SealedGrant,
        protocol: ServiceProtocol | None = None,
    ) -> ConnectorService:
        """The service that this grant names and allows, or `RefusedError`."""
        is_newest = session.gate.admit(service_id, grant)
        service = self._services.get(service_id)
        if service is None or protocol not in {service.protocol, None}:
            kind = f"{protocol} " if protocol is not None else ""
            raise RefusedError(
                StreamError.UNKNOWN_SERVICE, f"this connector has no {kind}service {service_id!r}"
            )
        if not _lets_in(service, session.peer_id):
            raise RefusedError(
                StreamError.ACCESS_DENIED, f"this connector does not allow agent {session.peer_id!r} here"
            )
        if not session.may_carry(service_id):
            raise RefusedError(
                StreamError.ACCESS_DENIED,
                f"the rules of the intermediate no longer allow {service_id!r} here",
            )
        if is_newest:
            self.emit(service_port_pb2.GrantPresented(session_id=session.session_id, grant=grant))
        return service

    def _check_limits(self, usage: AgentUsage, protocol: ServiceProtocol) -> None:
        limits = self._limits
        if protocol is ServiceProtocol.TCP and usage.streams > limits.streams_per_agent:
            name, limit = "streams_per_agent", limits.streams_per_agent
        elif protocol is ServiceProtocol.UDP and usage.flows >= limits.flows_per_agent:
            name, limit = "flows_per_agent", limits.flows_per_agent
        elif not usage.opens.take(self.now):
            name, limit = "opens_per_second", limits.opens_per_second
        else:
            return
        raise RefusedError(StreamError.LIMIT, f"limits.{name} ({limit}) is reached")

    def _grant_renewed(self, session: ConnectorSession, grant: grant_pb2.SealedGrant) -> None:
        """A grant that opens nothing; one that does not hold changes nothing, and what runs goes on."""
        if not session.usage.opens.take(self.now):
            self._renewal_refused(session, "limit", "too many grants")
            return
        try:
            self._judge(session, translate.claims_from_bytes(grant.claims).service, grant)
        except RefusedError as refusal:
            self._renewal_refused(session, refusal.code.name.lower(), refusal.message)
        except RemoteProtocolError as error:
            self._renewal_refused(session, error.reason, str(error))

    def _renewal_refused(self, session: ConnectorSession, code: str, message: str) -> None:
        self._refusal_log.note(
            self.now,
            (session.peer_id, "renewal", code),
            session=session.session_id.hex(),
            peer=session.peer_id,
            code=code,
            detail=service_wire.shorten(message),
        )

    def _control_received(self, session: ConnectorSession, frame: session_pb2.ControlFrame) -> None:
        match frame.WhichOneof("body"):
            case "open_flow":
                opened = frame.open_flow
                session.flows.handle_open(opened.flow_id, opened.service, self.now)
                self._act_on_flows(session, opened.grant)
            case "close_flow":
                session.flows.handle_peer_close(frame.close_flow.flow_id, self.now)
                self._act_on_flows(session)
            case "renewed_grant":
                self._grant_renewed(session, frame.renewed_grant.grant)
            case "ice_signal":
                self._ice_signal_received(session, frame.ice_signal)
            case _:
                pass  # a draining agent opens nothing more by itself; a newer one may say more

    def _control_bytes(self, session: ConnectorSession, message: quic_session_pb2.PayloadReceived) -> None:
        if not session.is_greeted:
            # The agent opened the stream, so only now can we write to it.
            session.is_greeted = True
            self._send_control(session, service_wire.hello())
            early, session.early_signals = session.early_signals, []
            for signal in early:
                self.send_in_session_signal(signal)
        super()._control_bytes(session, message)

    def _send_control(self, session: ConnectorSession, frame: session_pb2.ControlFrame) -> None:
        if session.control_backlog_bytes > MAX_CONTROL_BACKLOG_BYTES:
            return  # its end is on the way
        super()._send_control(session, frame)
        if session.control_backlog_bytes > MAX_CONTROL_BACKLOG_BYTES:
            error = RemoteProtocolError("control_stream_unread", "the agent does not take our answers")
            self._protocol_broken(session, error)

    def _act_on_flows(self, session: ConnectorSession, grant: grant_pb2.SealedGrant | None = None) -> None:
        frames: list[bytes] = []
        outgoing: dict[int, list[bytes]] = {}
        while effects := session.flows.drain():
            for effect in effects:
                match effect:
                    case flows.SendDatagrams():
                        frames += effect.frames
                    case flows.SendToBackend():
                        outgoing.setdefault(effect.flow_id, []).append(effect.payload)
                    case _:
                        self._perform(session, effect)
            for effect in effects:
                if isinstance(effect, flows.FlowRequested) and grant is not None:
                    self._judge_flow(session, effect, grant)
        for flow_id, payloads in outgoing.items():
            self._send_to_backend(session, flow_id, payloads)
        self._send_datagrams(session, frames)
        self._deadlines.set(session, session.flows.next_deadline())

    def _perform(self, session: ConnectorSession, effect: flows.FlowEffect) -> None:
        match effect:
            case flows.OpenBackend():
                session.usage.flows += 1
                backend = UdpBackend(
                    self, _SessionFlows(self, session), effect.flow_id, self._services[effect.service].backend
                )
                session.backends[effect.flow_id] = BackendFlow(effect.service, backend)
            case flows.AcceptFlow():
                self._flow_accepted(session, effect.flow_id)
            case flows.RefuseFlow():
                refused = session_pb2.FlowRefused(
                    flow_id=effect.flow_id,
                    code=service_wire.refusal_to_proto(effect.code),
                    message=service_wire.shorten(effect.message),
                )
                self._send_control(session, session_pb2.ControlFrame(flow_refused=refused))
            case flows.CloseBackend():
                session.backends[effect.flow_id].backend.close()
            case flows.CloseFlow():
                self._send_close_flow(session, effect)
            case flows.FlowClosed():
                flow = session.backends.pop(effect.flow_id, None)
                if flow is not None:
                    session.usage.flows -= 1
                self._udp_flow_closed(session, effect, was_open=flow is not None and flow.is_open)
            case _:
                pass  # decided by the caller, or the agent's

    def _judge_flow(
        self, session: ConnectorSession, effect: flows.FlowRequested, grant: grant_pb2.SealedGrant
    ) -> None:
        try:
            self._admit(session, effect.service, grant, ServiceProtocol.UDP)
        except RefusedError as refusal:
            session.flows.refuse(effect.flow_id, refusal.code, refusal.message, self.now)
        else:
            session.flows.accept(effect.flow_id)

    def _flow_accepted(self, session: ConnectorSession, flow_id: int) -> None:
        flow = session.backends[flow_id]
        flow.is_open = True
        counters = self._counters[flow.service]
        counters.active += 1
        counters.total += 1
        self._send_control(
            session, session_pb2.ControlFrame(flow_accepted=session_pb2.FlowAccepted(flow_id=flow_id))
        )
        self._flow_opened(session, flow.service, types_pb2.SERVICE_PROTOCOL_UDP)

    def _send_to_backend(self, session: ConnectorSession, flow_id: int, payloads: list[bytes]) -> None:
        flow = session.backends.get(flow_id)
        if flow is not None:
            counters = self._counters[flow.service]
            for payload in payloads:
                counters.count_to_service(len(payload))
            flow.backend.send(payloads)

    # What UDP backends call, through `_SessionFlows`

    def backend_opened(self, session: ConnectorSession, flow_id: int) -> None:
        """A flow has its socket."""
        session.flows.handle_backend_opened(flow_id, self.now)
        self._act_on_flows(session)

    def backend_failed(self, session: ConnectorSession, flow_id: int, message: str) -> None:
        """A flow gets none."""
        session.flows.handle_backend_failed(flow_id, message, self.now)
        self._act_on_flows(session)

    def backend_received(self, session: ConnectorSession, flow_id: int, payloads: Sequence[bytes]) -> None:
        """A backend answers."""
        counters = self._counters[session.backends[flow_id].service]
        for payload in payloads:
            counters.count_from_service(len(payload))
            session.flows.handle_backend_datagram(flow_id, payload, self.now)
        self._act_on_flows(session)

    def backend_dropped(self, session: ConnectorSession, flow_id: int, reason: str, count: int) -> None:
        """Datagrams of a backend did not get through."""
        flow = session.backends.get(flow_id)
        if flow is not None:
            self._counters[flow.service].dropped[reason] += count


def _lets_in(service: ConnectorService, agent_id: str) -> bool:
    return ANY in service.allow or agent_id in service.allow


class _SessionFlows:
    """Tells the concern which session a backend socket speaks of."""

    __slots__ = ("_concern", "_session")

    def __init__(self, concern: ServiceBackend, session: ConnectorSession) -> None:
        self._concern = concern
        self._session = session

    def opened(self, flow_id: int) -> None:
        """Datagrams may be sent."""
        self._concern.backend_opened(self._session, flow_id)

    def failed(self, flow_id: int, message: str) -> None:
        """There is no socket, and none will come."""
        self._concern.backend_failed(self._session, flow_id, message)

    def received(self, flow_id: int, payloads: Sequence[bytes]) -> None:
        """Datagrams of the backend."""
        self._concern.backend_received(self._session, flow_id, payloads)

    def dropped(self, flow_id: int, reason: str, count: int) -> None:
        """Datagrams did not get through."""
        self._concern.backend_dropped(self._session, flow_id, reason, count)
