"""What the service concerns of agent and connector share: sessions, streams, deadlines, figures.

Both hold the node's service sockets. Streams and flows are plain objects (`actors/tcp_pump.py`, the UDP
sockets of either side) that belong to the concern and call it back; the concern finds them again when the
session reports something, keeps their deadlines, and says what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from google.protobuf.message import Message

from actors import service_wire, translate
from actors.base import Concern, Context
from actors.burst_log import BurstLog
from actors.ice_signals import session_id_of, with_session_id
from actors.service_counters import ServiceCounters
from actors.service_session import ServiceSession
from actors.tcp_pump import TcpPump
from ztna.deadlines import Deadlines
from ztna.errors import RemoteProtocolError
from ztna.service import flows
from ztna.service.tcp_effects import StreamError, Summary
from ztna.v1 import (
    quic_session_pb2,
    reload_pb2,
    service_port_pb2,
    session_pb2,
    session_table_pb2,
    signaling_client_pb2,
    signaling_pb2,
    types_pb2,
)

STATISTICS_INTERVAL_S = 1.0

# What a stream that was never established ends with when one of the nodes said no, rather than the client.
REFUSALS = frozenset(
    {
        StreamError.REFUSED,
        StreamError.BACKEND_UNREACHABLE,
        StreamError.ACCESS_DENIED,
        StreamError.UNKNOWN_SERVICE,
        StreamError.LIMIT,
        StreamError.SHUTTING_DOWN,
        StreamError.INVALID,
        StreamError.GRANT_REFUSED,
    }
)

COMMON_HANDLERS: dict[type[Message], str] = {
    quic_session_pb2.SessionEstablished: "session_established",
    quic_session_pb2.SessionClosed: "session_closed",
    quic_session_pb2.PayloadReceived: "payload_received",
    quic_session_pb2.PayloadAcknowledged: "payload_acknowledged",
    quic_session_pb2.StreamAborted: "stream_aborted",
    quic_session_pb2.DatagramPayloadsReceived: "datagram_payloads_received",
    session_table_pb2.SessionAccessLimited: "session_access_limited",
    service_port_pb2.SendInSessionSignal: "send_in_session_signal",
    reload_pb2.ConfigurationReloaded: "configuration_reloaded",
}
COMMON_EMITS: tuple[type[Message], ...] = (
    quic_session_pb2.SendPayload,
    quic_session_pb2.PayloadConsumed,
    quic_session_pb2.AbortStream,
    quic_session_pb2.SendDatagramPayloads,
    quic_session_pb2.CloseQuicSession,
    quic_session_pb2.RecheckPeer,
    service_port_pb2.FlowOpened,
    service_port_pb2.FlowClosed,
    service_port_pb2.FlowRefusedReported,
    service_port_pb2.ServiceStatistics,
    signaling_client_pb2.IceSignalReceived,
)

SessionT = TypeVar("SessionT", bound=ServiceSession)


class ServiceConcern(Concern, Generic[SessionT]):
    """The half that is the same at both ends."""

    def __init__(self, context: Context, services: Iterable[str]) -> None:
        super().__init__(context)
        self._sessions: dict[bytes, SessionT] = {}
        self._counters = {service: ServiceCounters(service) for service in services}
        self._deadlines: Deadlines[TcpPump | SessionT] = Deadlines()
        self._refusal_log = BurstLog(self.log, self._event("flow_refused"))
        self._report_at = self.now + STATISTICS_INTERVAL_S
        self._is_stopping = False

    # What each end does in its own way

    def _open_session(self, message: quic_session_pb2.SessionEstablished) -> SessionT:
        raise NotImplementedError

    def _stream_without_pump(self, session: SessionT, message: quic_session_pb2.PayloadReceived) -> None:
        raise NotImplementedError

    def _control_received(self, session: SessionT, frame: session_pb2.ControlFrame) -> None:
        """Act on one frame; may raise `RemoteProtocolError`."""
        raise NotImplementedError

    def _act_on_flows(self, session: SessionT) -> None:
        """Carry out what the flows of a session want, and note their deadline."""
        raise NotImplementedError

    def _reconfigure(self) -> None:
        """Other services are configured, or the same ones otherwise."""
        raise NotImplementedError

    # Messages

    def session_established(self, message: quic_session_pb2.SessionEstablished) -> None:
        """The peer is proven: its session can be used."""
        session = self._open_session(message)
        session.flow_table.handle_frame_size(message.max_datagram_payload_bytes)
        self._sessions[message.session_id] = session

    def session_closed(self, message: quic_session_pb2.SessionClosed) -> None:
        """The session is over, and with it all that it carried."""
        session = self._sessions.pop(message.session_id, None)
        if session is not None:
            session.is_open = False
            self._end_session(session, flows.CloseReason.SESSION_ENDED, "session_closed")
            counts = session.flow_table.counts
            drops = {
                reason.value: count for reason, count in (*counts.drops.items(), *counts.reassembly.items())
            }
            if drops:
                self.log.info(
                    self._event("datagrams_dropped"),
                    session=message.session_id.hex(),
                    peer=session.peer_id,
                    **drops,
                )

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Peers may be revoked, services may be others."""
        for session_id in self._sessions:
            self.emit(quic_session_pb2.RecheckPeer(session_id=session_id))
        self._reconfigure()

    def session_access_limited(self, message: session_table_pb2.SessionAccessLimited) -> None:
        """A session may carry less than before, or more; what it may not carry ends now."""
        session = self._sessions.get(message.session_id)
        if session is not None:
            session.allowed = translate.allowed_from_proto(message.allowed)
            self._cut(session, session.may_carry, StreamError.ACCESS_DENIED, "access_withdrawn")

    def send_in_session_signal(self, message: service_port_pb2.SendInSessionSignal) -> None:
        """Tell the peer something about the direct path."""
        session = self._sessions.get(message.session_id)
        if session is not None:
            signal = with_session_id(message.signal, message.session_id)
            self._send_control(session, service_wire.ice_signal(signal))

    def payload_received(self, message: quic_session_pb2.PayloadReceived) -> None:
        """Bytes of a stream."""
        session = self._known_session(message.session_id)
        if session is None:
            return
        stream_id = message.stream_id
        pump = session.pumps.get(stream_id)
        if pump is not None:
            pump.stream_data(message.data, end_of_stream=message.end_of_stream)
        elif stream_id == service_wire.CONTROL_STREAM_ID:
            self._control_bytes(session, message)
        else:
            self._stream_without_pump(session, message)

    def payload_acknowledged(self, message: quic_session_pb2.PayloadAcknowledged) -> None:
        """The peer has bytes of a stream: as many more may follow."""
        session = self._sessions.get(message.session_id)
        if session is None:
            return
        pump = session.pumps.get(message.stream_id)
        if message.stream_id == service_wire.CONTROL_STREAM_ID:
            session.control_backlog_bytes -= message.size_bytes
        elif pump is not None:
            pump.stream_acknowledged(message.size_bytes)
        else:
            session.leftover_acknowledged(message.stream_id, message.size_bytes)

    def stream_aborted(self, message: quic_session_pb2.StreamAborted) -> None:
        """The peer gave up a direction of a stream."""
        session = self._sessions.get(message.session_id)
        if session is None:
            return
        pump = session.pumps.get(message.stream_id)
        if pump is not None:
            pump.stream_aborted(message.code, is_reset=message.is_reset)
        elif message.stream_id == service_wire.CONTROL_STREAM_ID:
            self._protocol_broken(session, RemoteProtocolError("control_stream_aborted"))
        elif not message.is_reset:
            session.leftover_dropped(message.stream_id)

    def datagram_payloads_received(self, message: quic_session_pb2.DatagramPayloadsReceived) -> None:
        """DATAGRAM frames of UDP flows."""
        session = self._known_session(message.session_id)
        if session is None:
            return
        for payload in message.payloads:
            try:
                session.flow_table.handle_datagram(payload, self.now)
            except RemoteProtocolError as error:
                self._refusal_log.note(
                    self.now,
                    (session.peer_id, error.reason),
                    peer=session.peer_id,
                    code="malformed_datagram",
                    detail=str(error),
                )
        self._act_on_flows(session)

    # Time

    def handle_timeout(self, now: float) -> None:
        """Pumps, flows, figures: whatever is due."""
        for due in self._deadlines.take_due(now):
            if isinstance(due, TcpPump):
                due.handle_timeout(now)
            else:
                due.flow_table.handle_timeout(now)
                self._act_on_flows(due)
        if now >= self._report_at:
            self._report_at = now + STATISTICS_INTERVAL_S
            self._refusal_log.handle_timeout(now)
            self._report()

    def next_deadline(self) -> float | None:
        """The earliest of them."""
        deadline = self._deadlines.next()
        return self._report_at if deadline is None else min(deadline, self._report_at)

    # What pumps call

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run a socket's callback as a message of this actor."""
        self.host.enter(function, *args)

    def deadline_changed(self, pump: TcpPump) -> None:
        """A pump has another deadline, or none."""
        self._deadlines.set(pump, pump.next_deadline())

    def pump_established(self, pump: TcpPump) -> None:
        """A connection stands from end to end."""
        session = pump.session
        if pump.counters is not None:
            pump.counters.active += 1
            pump.counters.total += 1
        if session is not None:
            self._flow_opened(session, pump.service, types_pb2.SERVICE_PROTOCOL_TCP)

    def pump_finished(self, pump: TcpPump, summary: Summary) -> None:
        """A connection is over."""
        session = pump.session
        self._deadlines.set(pump, None)
        if session is None:
            return
        if not pump.is_established:
            if summary.code in REFUSALS and not self._is_stopping:
                self._refused(session, pump.service, summary.code, summary.message or summary.detail)
            return
        to_service, from_service = self._directions(summary.bytes_from_socket, summary.bytes_to_socket)
        if pump.counters is not None:
            pump.counters.active -= 1
            pump.counters.errors += summary.code is not StreamError.NO_ERROR
        self._flow_closed(
            session,
            service_port_pb2.FlowClosed(
                service=pump.service,
                protocol=types_pb2.SERVICE_PROTOCOL_TCP,
                reason=summary.detail,
                bytes_to_service=to_service,
                bytes_from_service=from_service,
                duration_s=summary.duration_s,
            ),
        )

    # Inside

    def _event(self, what: str) -> str:
        return f"{self.name}.{what}"

    def _directions(self, from_socket: int, to_socket: int) -> tuple[int, int]:
        """What was read from and written to a local socket, as (to the service, from the service)."""
        raise NotImplementedError

    def _known_session(self, session_id: bytes) -> SessionT | None:
        session = self._sessions.get(session_id)
        if session is None:
            # It was established before this actor started anew, and knows streams that we do not.
            self._close_session(session_id, StreamError.INTERNAL, "service_sockets_lost")
        return session

    def _close_session(self, session_id: bytes, code: StreamError, reason: str) -> None:
        self.emit(quic_session_pb2.CloseQuicSession(session_id=session_id, code=code, reason=reason))

    def _end_session(self, session: SessionT, reason: flows.CloseReason, detail: str) -> None:
        code = StreamError.SHUTTING_DOWN if self._is_stopping else StreamError.INTERNAL
        for pump in list(session.pumps.values()):
            pump.abort(code, detail)
        session.flow_table.close_all(reason, self.now)
        self._act_on_flows(session)
        self._deadlines.set(session, None)

    def _cut(
        self, session: SessionT, may_stay: Callable[[str], bool], code: StreamError, detail: str
    ) -> None:
        """End every connection and flow of services that may not stay; `detail` is a snake_case word."""
        # A stream whose header has not come yet is of no service, and is judged when it comes.
        pumps = [pump for pump in session.pumps.values() if pump.service and not may_stay(pump.service)]
        flow_count = len(session.flow_table)
        for pump in pumps:
            pump.abort(code, detail)
        session.flow_table.close_services(may_stay, flows.CloseReason.REVOKED, self.now)
        flow_count -= len(session.flow_table)
        self._act_on_flows(session)
        if pumps or flow_count:
            self.log.info(
                self._event("access_cut"),
                session=session.session_id.hex(),
                peer=session.peer_id,
                reason=detail,
                connections=len(pumps),
                flows=flow_count,
            )

    def _control_bytes(self, session: SessionT, message: quic_session_pb2.PayloadReceived) -> None:
        self.emit(
            quic_session_pb2.PayloadConsumed(
                session_id=session.session_id,
                stream_id=service_wire.CONTROL_STREAM_ID,
                size_bytes=len(message.data),
            )
        )
        try:
            for frame in session.control.feed(message.data, end_of_stream=message.end_of_stream):
                self._control_received(session, frame)
        except RemoteProtocolError as error:
            self._protocol_broken(session, error)
        self._act_on_flows(session)

    def _ice_signal_received(self, session: SessionT, signal: signaling_pb2.IceSignal) -> None:
        """Pass on what the peer says of the direct path; raises `RemoteProtocolError`."""
        if session_id_of(signal) not in {b"", session.session_id}:
            raise RemoteProtocolError("foreign_session", "a signal about another session")
        if not session.ice_signals.take(self.now):
            raise RemoteProtocolError("too_many_signals", "about the direct path")
        self.emit(
            signaling_client_pb2.IceSignalReceived(
                session_id=session.session_id, signal=with_session_id(signal, session.session_id)
            )
        )

    def _protocol_broken(self, session: SessionT, error: RemoteProtocolError) -> None:
        self.log.warning(
            self._event("control_stream_broken"),
            session=session.session_id.hex(),
            peer=session.peer_id,
            reason=error.reason,
            detail=str(error),
        )
        self._close_session(session.session_id, StreamError.INVALID, error.reason)

    def _send_control(self, session: SessionT, frame: session_pb2.ControlFrame) -> None:
        if not session.is_open:
            return
        data = service_wire.encode_control(frame)
        session.control_backlog_bytes += len(data)
        self.emit(
            quic_session_pb2.SendPayload(
                session_id=session.session_id, stream_id=service_wire.CONTROL_STREAM_ID, data=data
            )
        )

    def _send_close_flow(self, session: SessionT, effect: flows.CloseFlow) -> None:
        self._send_control(
            session,
            session_pb2.ControlFrame(
                close_flow=session_pb2.CloseFlow(flow_id=effect.flow_id, reason=effect.reason.value)
            ),
        )

    def _send_datagrams(self, session: SessionT, frames: list[bytes]) -> None:
        if frames and session.is_open:
            self.emit(quic_session_pb2.SendDatagramPayloads(session_id=session.session_id, payloads=frames))

    def _flow_opened(
        self, session: ServiceSession, service: str, protocol: types_pb2.ServiceProtocol.ValueType
    ) -> None:
        self.emit(
            service_port_pb2.FlowOpened(
                session_id=session.session_id, service=service, protocol=protocol, peer_id=session.peer_id
            )
        )

    def _flow_closed(self, session: ServiceSession, message: service_port_pb2.FlowClosed) -> None:
        message.session_id = session.session_id
        message.peer_id = session.peer_id
        self.log.debug(
            self._event("flow_closed"),
            session=session.session_id.hex(),
            peer=session.peer_id,
            service=message.service,
            reason=message.reason,
            bytes_to_service=message.bytes_to_service,
            bytes_from_service=message.bytes_from_service,
            duration_s=round(message.duration_s, 3),
        )
        self.emit(message)

    def _udp_flow_closed(self, session: SessionT, effect: flows.FlowClosed, *, was_open: bool) -> None:
        counters = self._counters.get(effect.service)
        if effect.reason is flows.CloseReason.REFUSED:
            self._refused(session, effect.service, effect.code, effect.message)
        if not was_open:
            return
        if counters is not None:
            counters.active -= 1
            counters.errors += effect.reason is flows.CloseReason.BACKEND_FAILED
        to_service, from_service = self._directions(effect.bytes_to_peer, effect.bytes_from_peer)
        self._flow_closed(
            session,
            service_port_pb2.FlowClosed(
                service=effect.service,
                protocol=types_pb2.SERVICE_PROTOCOL_UDP,
                reason=effect.reason.value,
                bytes_to_service=to_service,
                bytes_from_service=from_service,
                duration_s=effect.duration_s,
            ),
        )

    def _refused(self, session: ServiceSession, service: str, code: StreamError, message: str) -> None:
        counters = self._counters.get(service)
        if counters is not None:
            counters.refused += 1
        name = code.name.lower()
        service = service_wire.shorten(service)
        self._refusal_log.note(
            self.now,
            (session.peer_id, service, name),
            session=session.session_id.hex(),
            peer=session.peer_id,
            service=service,
            code=name,
            detail=message,
        )
        self.emit(
            service_port_pb2.FlowRefusedReported(
                session_id=session.session_id,
                service=service,
                peer_id=session.peer_id,
                code=name,
                message=message,
            )
        )

    def _report(self) -> None:
        for counters in self._counters.values():
            message = counters.report()
            if message is not None:
                self.emit(message)
