"""Owns the agent's local sockets: TCP listeners and UDP sockets, one per configured service.

A client's connection waits, unread, until the session table names a session and a grant for its service; then
it gets a stream of that session. The first datagram of a UDP client does the same for a flow. A client whose
service cannot be reached is reset, or its datagrams are dropped: it finds out at once and may try again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from actors import service_wire, translate
from actors.base import Context
from actors.client_pump import ClientPump
from actors.io import DatagramBatch, TcpOwner, TcpStream
from actors.local_service import MAX_WAIT_S, AgentSession, LocalFlow, LocalService, WaitingDatagram
from actors.service_concern import COMMON_EMITS, COMMON_HANDLERS, ServiceConcern
from actors.service_counters import ServiceCounters
from actors.service_session import ServiceSession
from actors.tcp_pump import TcpPump
from ztna.address import TransportAddress
from ztna.quic.windows import MAX_STREAMS
from ztna.service import flows
from ztna.service.lease import LeaseWish
from ztna.service.tcp_effects import StreamError, Summary
from ztna.settings import AgentLimits, AgentService, ServiceProtocol
from ztna.v1 import (
    grant_pb2,
    quic_session_pb2,
    service_port_pb2,
    session_pb2,
    session_table_pb2,
    types_pb2,
)

DRAINED = "peer_draining"
IDLE = "idle"

# What a peer allows by default, less the control stream; one that allows less shows it when the time comes.
MAX_SERVICE_STREAMS = MAX_STREAMS - 1


class ServicePort(ServiceConcern[AgentSession]):
    """The agent's end of every service."""

    name = "service_port"
    handlers: ClassVar = {
        **COMMON_HANDLERS,
        session_table_pb2.ServiceReady: "service_ready",
        session_table_pb2.ServiceUnavailable: "service_unavailable",
        session_table_pb2.GrantRenewed: "grant_renewed",
    }
    emits = (
        *COMMON_EMITS,
        service_port_pb2.ListenerChanged,
        service_port_pb2.GrantRefused,
        session_table_pb2.RequestService,
        session_table_pb2.CloseSessionRequested,
        quic_session_pb2.PingSession,
    )

    def __init__(
        self, context: Context, services: Callable[[], Sequence[AgentService]], limits: AgentLimits
    ) -> None:
        """`services` gives the present ones."""
        super().__init__(context, [each.id for each in services()])
        self._configured = services
        self._limits = limits
        self._services = {each.id: LocalService(each, self._counters[each.id], self) for each in services()}
        # Every TCP connection of a client, waiting or not.
        self._clients: dict[ClientPump, None] = {}
        self._flow_count = 0

    def on_start(self) -> None:
        """Bind; raises `OSError` naming service and address."""
        for service in self._services.values():
            self._listen(service)

    def on_stop(self) -> None:
        """Take no more clients, reset those that are here, and tell the connectors."""
        self._is_stopping = True
        for service in self._services.values():
            service.close()
        for session in self._sessions.values():
            self._send_control(session, service_wire.draining())
            self._end_session(session, flows.CloseReason.SHUTTING_DOWN, "shutting_down")
        for pump in list(self._clients):
            pump.reset()

    # Messages

    def _reconfigure(self) -> None:
        """Close what is gone, listen for what is new; a service that merely moved keeps its clients."""
        configured = {each.id: each for each in self._configured()}
        for service in list(self._services.values()):
            settings = configured.get(service.id)
            if settings is None or settings.protocol is not service.settings.protocol:
                self._remove(service)
        moved = [each for each in configured.values() if self._is_to_bind(each)]
        # A UDP client would not know its service again by the new address; a TCP connection does not care.
        gone = {each.id for each in moved if each.protocol is ServiceProtocol.UDP}
        staying = {name: settings for name, settings in configured.items() if name in self._services}
        for session in self._sessions.values():
            pinned = {
                name
                for name, settings in staying.items()
                if settings.connectors and session.peer_id not in settings.connectors
            }
            may_stay = (staying.keys() - gone - pinned).__contains__
            self._cut(session, may_stay, StreamError.UNKNOWN_SERVICE, "service_reconfigured")
        # All closed before any is opened, so that a service can have the address of another.
        for settings in moved:
            if settings.id in self._services:
                self._services[settings.id].close()
        for settings in configured.values():
            if settings in moved:
                self._bind_anew(settings)
            else:
                self._services[settings.id].settings = settings

    def session_access_limited(self, message: session_table_pb2.SessionAccessLimited) -> None:
        """Also forget the grants of what the session may not carry."""
        super().session_access_limited(message)
        session = self._sessions.get(message.session_id)
        if session is not None:
            session.grants = {name: held for name, held in session.grants.items() if session.may_carry(name)}

    def service_ready(self, message: session_table_pb2.ServiceReady) -> None:
        """Whoever waits for the service gets a stream or a flow."""
        service = self._services.get(message.service)
        if service is None:
            return
        session = self._known_session(message.session_id)
        if session is None or session.is_leaving:
            return  # it is being closed, and will be asked for again then
        service.give_up_at = None
        session.grants[service.id] = message.grant
        clients = service.take_clients()
        if clients:
            header = service_wire.encode_header(service.id, message.grant)
            for pump in clients:
                self._open_stream(session, pump, message.grant, header)
        for datagram in service.take_datagrams():
            self._start_flow(session, service, datagram)

    def service_unavailable(self, message: session_table_pb2.ServiceUnavailable) -> None:
        """Whoever waits for the service waits in vain."""
        service = self._services.get(message.service)
        if service is not None:
            self._give_up(service, message.code, message.message)

    def grant_renewed(self, message: session_table_pb2.GrantRenewed) -> None:
        """The connector is shown the grant now: no new connection may come along to do it."""
        session = self._sessions.get(message.session_id)
        if session is not None:
            session.grants[message.service] = message.grant
            self._send_control(session, service_wire.renewed_grant(message.grant))

    def session_closed(self, message: quic_session_pb2.SessionClosed) -> None:
        """Its clients are reset; who waits for a session is asked for again."""
        super().session_closed(message)
        for service in self._services.values():
            if service.is_wanted:
                self.emit(session_table_pb2.RequestService(service=service.id))

    def stream_aborted(self, message: quic_session_pb2.StreamAborted) -> None:
        """The peer, or its limit of streams, ends a connection."""
        session = self._sessions.get(message.session_id)
        pump = None if session is None else session.pumps.get(message.stream_id)
        super().stream_aborted(message)
        is_limit = message.code == StreamError.LIMIT and message.is_reset
        if session is not None and pump is not None and is_limit and not pump.is_established:
            # The stream was never opened: this number comes next, and none behind it was opened either.
            session.next_stream_id = min(session.next_stream_id, message.stream_id)
            for stream_id in [each for each in session.pumps if each > message.stream_id]:
                session.pumps[stream_id].abort(StreamError.LIMIT, "too_many_streams")

    # Time

    def handle_timeout(self, now: float) -> None:
        """Also give up what the session table never answered."""
        super().handle_timeout(now)
        for service in self._services.values():
            if service.give_up_at is not None and now >= service.give_up_at:
                self._give_up(service, "timeout", "no session within the time limit")

    # What client pumps call

    def client_connected(self, pump: ClientPump) -> None:
        """A client waits from now on."""
        service = self._services.get(pump.service)
        if service is None:
            pump.reset()  # accepted as its service was removed
            return
        if len(self._clients) >= self._limits.connections:
            limit = f"limits.connections ({self._limits.connections}) is reached"
            self._refuse_client(pump, "limit", limit)
            return
        if (shortage := self.io.shortage(needs_descriptor=True)) is not None:
            self._refuse_client(pump, shortage.reason, shortage.detail)
            return
        self._clients[pump] = None
        service.clients[pump] = None
        self._request(service)

    def client_gone(self, pump: ClientPump) -> None:
        """A client no longer waits."""
        self._clients.pop(pump, None)
        if (service := self._services.get(pump.service)) is not None:
            service.clients.pop(pump, None)

    def pump_finished(self, pump: TcpPump, summary: Summary) -> None:
        """A connection is over."""
        super().pump_finished(pump, summary)
        if isinstance(pump, ClientPump):
            self._clients.pop(pump, None)
            if summary.code is StreamError.GRANT_REFUSED and not pump.is_established:
                self._grant_refused(pump.session, pump.service, pump.grant, summary.message)
        if isinstance(pump.session, AgentSession):
            self._tend(pump.session)

    # What UDP sockets call

    def local_datagrams(self, service: LocalService, batches: list[DatagramBatch]) -> None:
        """Datagrams of clients: into their flows, or wait for a session."""
        if self._services.get(service.id) is not service:
            return  # it was removed
        touched: dict[AgentSession, None] = {}
        for batch in batches:
            flow = service.flows.get(batch.remote)
            for payload in batch.payloads:
                service.counters.count_to_service(len(payload))
                if flow is None:
                    service.hold(WaitingDatagram(batch.remote, batch.local_host, payload))
                else:
                    flow.session.flows.handle_local_datagram(service.id, batch.remote, payload, self.now)
            if flow is not None:
                touched[flow.session] = None
        for session in touched:
            self._act_on_flows(session)
        if service.is_wanted:
            self._request(service)

    def local_send_failed(self, service: LocalService, error: OSError) -> None:
        """A client cannot be sent to."""
        service.counters.dropped["send_failed"] += 1
        self.log.debug("service_port.send_failed", service=service.id, error=error.strerror or str(error))

    # Inside

    def _directions(self, from_socket: int, to_socket: int) -> tuple[int, int]:
        return from_socket, to_socket

    def _refuse_client(self, pump: ClientPump, code: str, detail: str) -> None:
        self._services[pump.service].counters.refused += 1
        self._refusal_log.note(self.now, (pump.service, code), service=pump.service, code=code, detail=detail)
        pump.reset()

    def _remove(self, service: LocalService) -> None:
        service.close()
        self._give_up(service, "service_removed", "the service is no longer configured")
        del self._services[service.id]
        self.log.info("service_port.service_removed", service=service.id)

    def _is_to_bind(self, settings: AgentService) -> bool:
        service = self._services.get(settings.id)
        return service is None or service.settings.listen != settings.listen or not service.is_listening

    def _bind_anew(self, settings: AgentService) -> None:
        service = self._services.get(settings.id)
        if service is None:
            counters = self._counters.setdefault(settings.id, ServiceCounters(settings.id))
            service = self._services[settings.id] = LocalService(settings, counters, self)
        service.settings = settings
        try:
            self._listen(service)
        except OSError as error:
            # The rest of the new configuration is good; the next reload tries this one again.
            self.log.error("service_port.cannot_listen", service=service.id, error=str(error))  # noqa: TRY400

    def _listen(self, service: LocalService) -> None:
        """Bind; raises `OSError` naming service and address."""
        local = service.settings.listen
        try:
            bound = self._open_socket(service, local)
        except OSError as error:
            reason = error.strerror or str(error)
            self._listener_changed(service, local, reason)
            raise OSError(
                error.errno,
                f"service {service.id}: cannot listen on {service.settings.protocol} {local}: {reason}",
            ) from error
        self.log.info("service_port.listening", service=service.id, address=str(bound))
        self._listener_changed(service, bound, "")

    def _open_socket(self, service: LocalService, local: TransportAddress) -> TransportAddress:
        if service.settings.protocol is ServiceProtocol.TCP:
            service.listener = self.io.listen_tcp(local, partial(self._accept, service))
            return service.listener.local_address
        service.socket = self.io.open_udp(local, service, may_fragment=True)
        return service.socket.local_address

    def _accept(self, service: LocalService, stream: TcpStream) -> TcpOwner:
        del stream  # comes again with `connected`, which enters the actor
        return ClientPump(self, service.counters)

    def _listener_changed(self, service: LocalService, address: TransportAddress, error: str) -> None:
        self.emit(
            service_port_pb2.ListenerChanged(
                service=service.id,
                address=translate.address_to_proto(address),
                is_listening=not error,
                error=error,
            )
        )

    def _request(self, service: LocalService) -> None:
        if service.give_up_at is None:
            service.give_up_at = self.now + MAX_WAIT_S
            self.emit(session_table_pb2.RequestService(service=service.id))

    def _give_up(self, service: LocalService, code: str, message: str) -> None:
        service.give_up_at = None
        clients, datagrams = service.take_clients(), service.take_datagrams()
        if not clients and not datagrams:
            return
        for pump in clients:
            self._clients.pop(pump, None)
            pump.reset()
        service.counters.refused += len(clients)
        service.counters.dropped["service_unavailable"] += len(datagrams)
        self._refusal_log.note(
            self.now,
            (service.id, code),
            service=service.id,
            code=code,
            detail=message,
            connections=len(clients),
            datagrams=len(datagrams),
        )

    def _grant_refused(
        self, session: ServiceSession | None, service: str, grant: grant_pb2.SealedGrant, message: str
    ) -> None:
        """Have the session table ask for another grant; until it has one, clients wait."""
        if session is not None:
            self.emit(
                service_port_pb2.GrantRefused(
                    session_id=session.session_id, service=service, grant=grant, message=message
                )
            )

    def _open_session(self, message: quic_session_pb2.SessionEstablished) -> AgentSession:
        session = AgentSession(
            message.session_id,
            message.peer.id,
            self._limits.flows,
            self._limits.flow_idle_s,
            message.idle_timeout_s,
        )
        self._send_control(session, service_wire.hello())
        self._tend(session)
        return session

    def _open_stream(
        self, session: AgentSession, pump: ClientPump, grant: grant_pb2.SealedGrant, header: bytes
    ) -> None:
        if len(session.pumps) >= MAX_SERVICE_STREAMS:
            self._refused(session, pump.service, StreamError.LIMIT, "too many streams in one session")
            self._clients.pop(pump, None)
            pump.reset()
            return
        stream_id = session.next_stream_id
        session.next_stream_id += service_wire.STREAM_ID_STEP
        pump.open(session, stream_id, grant, header)
        self._tend(session)

    def _start_flow(self, session: AgentSession, service: LocalService, datagram: WaitingDatagram) -> None:
        flow = service.flows.get(datagram.source)
        if flow is None:
            if self._flow_count >= self._limits.flows:
                service.counters.dropped["too_many_flows"] += 1
                return
            if (shortage := self.io.shortage()) is not None:
                service.counters.dropped[shortage.reason] += 1
                return
            grant = session.grants[service.id]
            flow = LocalFlow(service, datagram.source, session, datagram.local_host, grant)
        flow.session.flows.handle_local_datagram(service.id, datagram.source, datagram.payload, self.now)
        self._act_on_flows(flow.session, opening=flow)

    def _stream_without_pump(self, session: AgentSession, message: quic_session_pb2.PayloadReceived) -> None:
        """Bytes behind the end of a connection: nobody waits for them, and QUIC closes their window."""

    def _control_received(self, session: AgentSession, frame: session_pb2.ControlFrame) -> None:
        match frame.WhichOneof("body"):
            case "flow_accepted":
                flow_id = frame.flow_accepted.flow_id
                session.flows.handle_accepted(flow_id)
                self._flow_accepted(session, flow_id)
            case "flow_refused":
                refused = frame.flow_refused
                code = service_wire.refusal_from_proto(refused.code)
                message = service_wire.shorten(refused.message)
                flow = session.local_flows.get(refused.flow_id)
                if code is StreamError.GRANT_REFUSED and flow is not None:
                    self._grant_refused(session, flow.service.id, flow.grant, message)
                session.flows.handle_refused(refused.flow_id, code, message, self.now)
                self._act_on_flows(session)
            case "close_flow":
                session.flows.handle_peer_close(frame.close_flow.flow_id, self.now)
                self._act_on_flows(session)
            case "draining":
                session.is_draining = True
                self.log.info(
                    "service_port.peer_draining", session=session.session_id.hex(), peer=session.peer_id
                )
                self._tend(session)
            case "ice_signal":
                self._ice_signal_received(session, frame.ice_signal)
            case _:
                pass  # a newer connector may say more

    def _flow_accepted(self, session: AgentSession, flow_id: int) -> None:
        flow = session.local_flows.get(flow_id)
        if flow is not None:
            flow.is_open = True
            flow.service.counters.active += 1
            flow.service.counters.total += 1
            self._flow_opened(session, flow.service.id, types_pb2.SERVICE_PROTOCOL_UDP)

    def _act_on_flows(self, session: AgentSession, opening: LocalFlow | None = None) -> None:
        frames: list[bytes] = []
        replies: dict[tuple[str, TransportAddress], list[bytes]] = {}
        for effect in session.flows.drain():
            match effect:
                case flows.SendDatagrams():
                    frames += effect.frames
                case flows.DeliverDatagram():
                    replies.setdefault((effect.service, effect.source), []).append(effect.payload)
                case flows.OpenFlow() if opening is not None:
                    self._announce_flow(session, effect.flow_id, opening)
                case flows.CloseFlow():
                    self._send_close_flow(session, effect)
                case flows.FlowClosed():
                    self._forget_flow(session, effect)
                case _:
                    pass  # the connector's
        self._send_datagrams(session, frames)
        for (service_id, source), payloads in replies.items():
            if (service := self._services.get(service_id)) is not None:
                self._deliver(service, source, payloads)
        self._tend(session)

    def _announce_flow(self, session: AgentSession, flow_id: int, flow: LocalFlow) -> None:
        self._flow_count += 1
        session.local_flows[flow_id] = flow
        flow.service.flows[flow.source] = flow
        self._send_control(
            session,
            session_pb2.ControlFrame(
                open_flow=session_pb2.OpenFlow(flow_id=flow_id, service=flow.service.id, grant=flow.grant)
            ),
        )

    def _forget_flow(self, session: AgentSession, effect: flows.FlowClosed) -> None:
        flow = session.local_flows.pop(effect.flow_id)
        self._flow_count -= 1
        del flow.service.flows[flow.source]
        self._udp_flow_closed(session, effect, was_open=flow.is_open)

    def _deliver(self, service: LocalService, source: TransportAddress, payloads: list[bytes]) -> None:
        flow, socket = service.flows.get(source), service.socket
        if socket is None:
            return
        for payload in payloads:
            service.counters.count_from_service(len(payload))
        taken = socket.send(payloads, source, flow.local_host if flow is not None else "")
        if taken < len(payloads):
            service.counters.dropped["buffer_full"] += len(payloads) - taken

    def _tend(self, session: AgentSession) -> None:
        """Keep the session alive while something runs over it, close it when it is needed no more."""
        due = session.flows.next_deadline()
        if session.is_open and not session.is_leaving and not self._is_stopping:
            wish = session.lease.look(self.now, is_used=not session.is_idle)
            if wish is LeaseWish.PING:
                self.emit(quic_session_pb2.PingSession(session_id=session.session_id))
            elif wish is LeaseWish.CLOSE:
                self._leave(session, IDLE)
            elif session.is_draining and session.is_idle:
                self._leave(session, DRAINED)
            due = min(session.lease.next_deadline, math.inf if due is None else due)
        self._deadlines.set(session, due)

    def _leave(self, session: AgentSession, reason: str) -> None:
        session.is_leaving = True
        self.emit(session_table_pb2.CloseSessionRequested(session_id=session.session_id, reason=reason))
