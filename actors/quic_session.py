"""Owns the end-to-end QUIC connection of one session, beneath which paths change without its knowing.

Takes packets from whatever path they came, and payload from the service sockets; emits packets to the
selected path only. While there is no path, nothing is sent and QUIC's timers go on, so that the session
survives an outage up to its idle time-out; when a path is back, the backed-off probe timer is forgotten and a
PING sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from actors.base import Concern, Context
from actors.handshake_gate import ASK_INTERVAL_S, SessionGate
from ztna.access.identity import VerifiedPeer
from ztna.errors import AuthenticationError, LocalProtocolError
from ztna.quic import demux, events
from ztna.quic.connection import Connection
from ztna.quic.endpoint import MIN_CLIENT_CID_BYTES, MIN_INITIAL_BYTES
from ztna.v1 import (
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

STATISTICS_INTERVAL_S = 1.0

# DATAGRAM frames waiting for the congestion window: 0.1 s of UDP service traffic at 5 MB/s. They are sent
# before any stream, so a longer queue would also starve the TCP services.
MAX_DATAGRAMS_PENDING = 512

# How often QUIC's timers are looked at while there is no path.
NO_PATH_INTERVAL_S = 1.0

# Application error code of a stream that the peer's limit does not allow (`ztna.service.tcp`).
STREAM_LIMIT = 7

# Application error code of a session whose peer is no longer accepted (`ztna.service.tcp`).
ACCESS_DENIED = 5

# Application error code of a session whose peer does what the protocol has not (`ztna.service.tcp`).
INVALID = 10

# Set in the number of a stream that the server opened (RFC 9000 §2.1), which a connector never does.
SERVER_INITIATED = 1

# Between the numbers of two streams of one kind (RFC 9000 §2.1).
STREAM_ID_STEP = 4


@dataclass(frozen=True, slots=True)
class _End:
    """How the session ended."""

    reason: str
    message: str = ""
    is_remote: bool = False
    is_authentication_failure: bool = False


class QuicSession(Concern):
    """Drives one `Connection` of `ztna.quic.adapter`."""

    name = "quic_session"
    handlers: ClassVar = {
        path_manager_pb2.PathSelected: "path_selected",
        relay_leg_pb2.SealedReceived: "sealed_received",
        udp_socket_pb2.DatagramsReceived: "datagrams_received",
        quic_session_pb2.SendPayload: "send_payload",
        quic_session_pb2.PayloadConsumed: "payload_consumed",
        quic_session_pb2.AbortStream: "abort_stream",
        quic_session_pb2.SendDatagramPayloads: "send_datagram_payloads",
        quic_session_pb2.CloseQuicSession: "close_quic_session",
    }
    emits = (
        relay_leg_pb2.SendSealed,
        quic_session_pb2.HandshakeDeferred,
        quic_session_pb2.SessionEstablished,
        quic_session_pb2.SessionClosed,
        quic_session_pb2.PayloadReceived,
        quic_session_pb2.PayloadAcknowledged,
        quic_session_pb2.StreamAborted,
        quic_session_pb2.DatagramPayloadsReceived,
        quic_session_pb2.SessionStatistics,
    )

    def __init__(
        self,
        context: Context,
        open_connection: Callable[[bytes], Connection],
        recheck: Callable[[VerifiedPeer], None],
        *,
        is_client: bool,
        gate: SessionGate | None = None,
    ) -> None:
        """`open_connection` takes the destination connection ID of the client's first packet (server).

        `recheck` judges the peer again while the session lives; it raises `AuthenticationError`. A server
        begins its handshake when `gate` lets it.
        """
        super().__init__(context)
        self._recheck = recheck
        self._session_id = bytes.fromhex(context.key)
        self._open_connection = open_connection
        self._gate = gate
        self._first_packets: Sequence[bytes] = ()  # they wait at the gate
        self._ask_at: float | None = None
        self._connection: Connection | None = None
        self._is_client = is_client
        self._max_stream_id = -STREAM_ID_STEP
        self._intermediate_id = ""
        self._opened_at = self.now
        self._is_closed = False
        self._end: _End | None = None
        self._was_established = False
        self._report_at: float | None = None
        self._reported: tuple[int, int] = (0, 0)
        self._datagrams_dropped = 0

    def on_stop(self) -> None:
        """Tell the peer, and whoever asks, that the session is over."""
        try:
            self._close(0, "stopped")
        finally:
            # Whatever broke: the session is freed only by this message.
            self._end = self._end or _End("stopped")
            self._report_closed()

    def path_selected(self, message: path_manager_pb2.PathSelected) -> None:
        """Move to a path; the first one starts the handshake of a client."""
        self._intermediate_id = message.intermediate_id
        if message.kind == types_pb2.PATH_KIND_UNSPECIFIED or self._is_closed:
            return
        if self._connection is None:
            if not self._is_client:
                return
            self._connection = self._open_connection(b"")
            self._connection.connect(self.now)
        elif message.is_resumed:
            self._connection.reset_recovery_and_ping(self.now)
        self._drive(self._connection)

    def sealed_received(self, message: relay_leg_pb2.SealedReceived) -> None:
        """Packets through a relay. Only here may a client's first packet make a connection."""
        packets: Sequence[bytes] = message.packets
        if self._connection is None and not self._is_client and not self._is_closed:
            start = next((number for number, each in enumerate(packets) if _is_client_initial(each)), None)
            if start is None:
                return
            self._knock(list(packets[start:]))
            return
        self._receive(packets)

    def _knock(self, packets: Sequence[bytes]) -> None:
        """Begin the handshake that these packets ask for, or wait at the gate with the first that came."""
        gate = self._gate
        if gate is not None and (reason := gate.ask(self.now)):
            if self._ask_at is None:
                self.emit(quic_session_pb2.HandshakeDeferred(session_id=self._session_id, reason=reason))
            if gate.wait():
                self._first_packets = self._first_packets or packets
                self._ask_at = self.now + ASK_INTERVAL_S * self.io.random.uniform(0.5, 1.5)
            return
        packets, self._first_packets, self._ask_at = self._first_packets or packets, (), None
        connection = self._connection = self._open_connection(demux.destination_cid(packets[0]) or b"")
        if gate is not None:
            gate.begin(connection)
        self._receive(packets)

    def datagrams_received(self, message: udp_socket_pb2.DatagramsReceived) -> None:
        """Packets on a direct path."""
        self._receive(message.datagrams)

    def send_payload(self, message: quic_session_pb2.SendPayload) -> None:
        """Bytes for a stream; a new stream is opened by its first bytes."""
        connection = self._live
        if connection is None:
            return
        if self._is_client and message.stream_id > self._max_stream_id:
            # A number behind the next one: the sender has not heard yet that the one before was refused.
            is_next = message.stream_id == self._max_stream_id + STREAM_ID_STEP
            if not is_next or not connection.can_open_stream:
                self._stream_aborted(message.stream_id, STREAM_LIMIT, is_reset=True)
                return
            self._max_stream_id = connection.open_stream()
        connection.send_stream(message.stream_id, message.data, message.end_of_stream)
        self._drive(connection)

    def payload_consumed(self, message: quic_session_pb2.PayloadConsumed) -> None:
        """Bytes passed on: the peer may send more."""
        if (connection := self._live) is not None:
            connection.consume(message.stream_id, message.size_bytes)
            self._drive(connection)

    def abort_stream(self, message: quic_session_pb2.AbortStream) -> None:
        """Give up a stream."""
        connection = self._live
        if connection is None:
            return
        if message.reset:
            connection.reset_stream(message.stream_id, message.code)
        if message.stop:
            connection.stop_stream(message.stream_id, message.code)
        self._drive(connection)

    def send_datagram_payloads(self, message: quic_session_pb2.SendDatagramPayloads) -> None:
        """DATAGRAM frames; one that does not fit is a bug of the sender, one too many is dropped."""
        connection = self._live
        if connection is None or not connection.is_established:
            return
        for payload in message.payloads:
            if connection.datagrams_pending >= MAX_DATAGRAMS_PENDING:
                self._datagrams_dropped += 1
            else:
                connection.send_datagram(payload)
        self._drive(connection)

    def close_quic_session(self, message: quic_session_pb2.CloseQuicSession) -> None:
        """End the session."""
        self._close(message.code, message.reason)

    def handle_timeout(self, now: float) -> None:
        """QUIC's timers, the statistics, and the gate."""
        if self._ask_at is not None and now >= self._ask_at:
            self._knock(self._first_packets)
        if self._connection is not None:
            self._connection.handle_timeout(now)
            self._drive(self._connection)
        if self._report_at is not None and now >= self._report_at:
            self._report_at = now + STATISTICS_INTERVAL_S
            self._report()
            self._recheck_peer()

    def next_deadline(self) -> float | None:
        """The earlier of QUIC's deadline and the next report."""
        deadline = self._connection.next_deadline() if self._connection is not None else None
        if deadline is not None and not self._intermediate_id:
            # What is due (an ACK, say) stays due while nothing can be sent.
            deadline = max(deadline, self.now + NO_PATH_INTERVAL_S)
        if self._ask_at is not None:
            return self._ask_at  # there is no connection yet
        if self._report_at is None or (deadline is not None and deadline < self._report_at):
            return deadline
        return self._report_at

    @property
    def _live(self) -> Connection | None:
        return None if self._is_closed else self._connection

    def _receive(self, packets: Sequence[bytes]) -> None:
        if self._connection is not None:
            self._connection.receive(packets, self.now)
            self._drive(self._connection)

    def _drive(self, connection: Connection) -> None:
        self._take_events(connection)
        if self._intermediate_id and (packets := connection.transmit(self.now)):
            self.emit(
                relay_leg_pb2.SendSealed(
                    intermediate_id=self._intermediate_id, session_id=self._session_id, packets=packets
                )
            )
            self._take_events(connection)
        self._report_closed()

    def _recheck_peer(self) -> None:
        peer = self._connection.peer if self._connection is not None else None
        if not isinstance(peer, VerifiedPeer):
            return
        try:
            self._recheck(peer)
        except AuthenticationError as error:
            self._end = self._end or _End(error.reason, str(error), is_authentication_failure=True)
            self._close(ACCESS_DENIED, error.reason)

    def _close(self, code: int, reason: str) -> None:
        if self._is_closed:
            return
        self._ask_at = None
        if self._gate is not None:
            self._gate.leave()
        # Before the connection tells of its end, since it knows less of the reason.
        self._end = self._end or _End(reason)
        if self._connection is not None:
            self._connection.close(code, reason)
            self._drive(self._connection)
        self._report_closed()

    def _take_events(self, connection: Connection) -> None:
        # One message per stream and batch of packets, not one per packet.
        payloads: dict[int, list[bytes]] = {}
        datagrams: list[bytes] = []
        is_unexpected = False
        for event in connection.events():
            if isinstance(event, events.StreamDataReceived):
                if event.stream_id & SERVER_INITIATED:
                    is_unexpected = True
                    continue
                payloads.setdefault(event.stream_id, []).append(event.data)
                if event.end_of_stream:
                    self._payload_received(event.stream_id, payloads.pop(event.stream_id), end=True)
            elif isinstance(event, events.DatagramReceived):
                datagrams.append(event.data)
            else:
                # A reset, say, comes behind the bytes before it.
                self._flush(payloads)
                self._take_event(connection, event)
        self._flush(payloads)
        if datagrams:
            self.emit(
                quic_session_pb2.DatagramPayloadsReceived(session_id=self._session_id, payloads=datagrams)
            )
        if is_unexpected:
            self._close(INVALID, "unexpected_stream")

    def _take_event(self, connection: Connection, event: events.Event) -> None:
        match event:
            case events.SendCredit():
                self.emit(
                    quic_session_pb2.PayloadAcknowledged(
                        session_id=self._session_id,
                        stream_id=event.stream_id,
                        size_bytes=event.size_bytes,
                    )
                )
            case events.StreamReset():
                self._stream_aborted(event.stream_id, event.code, is_reset=True)
            case events.StopSendingReceived():
                self._stream_aborted(event.stream_id, event.code, is_reset=False)
            case events.HandshakeCompleted():
                self._established(connection)
            case events.ConnectionClosed():
                self._end = self._end or _End(
                    event.reason, event.message, event.is_remote, event.is_authentication_failure
                )

    def _flush(self, payloads: dict[int, list[bytes]]) -> None:
        for stream_id, chunks in payloads.items():
            self._payload_received(stream_id, chunks)
        payloads.clear()

    def _payload_received(self, stream_id: int, chunks: list[bytes], *, end: bool = False) -> None:
        self.emit(
            quic_session_pb2.PayloadReceived(
                session_id=self._session_id,
                stream_id=stream_id,
                data=chunks[0] if len(chunks) == 1 else b"".join(chunks),
                end_of_stream=end,
            )
        )

    def _stream_aborted(self, stream_id: int, code: int, *, is_reset: bool) -> None:
        self.emit(
            quic_session_pb2.StreamAborted(
                session_id=self._session_id, stream_id=stream_id, code=code, is_reset=is_reset
            )
        )

    def _established(self, connection: Connection) -> None:
        peer = connection.peer
        if not isinstance(peer, VerifiedPeer):
            raise LocalProtocolError("a completed handshake without a verified peer")
        self._was_established = True
        handshake_ms = (self.now - self._opened_at) * 1e3
        self.log.info(
            "quic_session.session_established", peer=peer.identity.id, handshake_ms=round(handshake_ms, 1)
        )
        role = types_pb2.ROLE_CONNECTOR if self._is_client else types_pb2.ROLE_AGENT
        self.emit(
            quic_session_pb2.SessionEstablished(
                session_id=self._session_id,
                peer=types_pb2.NodeIdentity(role=role, id=peer.identity.id, fingerprint=peer.fingerprint),
                max_datagram_payload_bytes=connection.max_datagram_payload,
                handshake_ms=handshake_ms,
            )
        )
        self._report_at = self.now

    def _report_closed(self) -> None:
        """Say once, behind everything else, how the session ended; nothing while it has not."""
        end = self._end
        if end is None or self._is_closed:
            return
        self._is_closed = True
        self._report_at = None
        self._report()
        statistics = self._connection.statistics() if self._connection is not None else None
        log = self.log.error if end.is_authentication_failure else self.log.info
        log(
            "quic_session.session_closed",
            reason=str(end.reason),
            detail=end.message,
            by="peer" if end.is_remote else "us",
            duration_s=round(self.now - self._opened_at, 3),
            bytes_sent=statistics.bytes_sent if statistics else 0,
            bytes_received=statistics.bytes_received if statistics else 0,
            packets_lost=statistics.packets_lost if statistics else 0,
            path="relay" if self._intermediate_id else "none",
        )
        self.emit(
            quic_session_pb2.SessionClosed(
                session_id=self._session_id,
                reason=end.reason,
                message=end.message,
                is_remote=end.is_remote,
                was_established=self._was_established,
                is_authentication_failure=end.is_authentication_failure,
            )
        )

    def _report(self) -> None:
        connection = self._connection
        if connection is None:
            return
        statistics = connection.statistics()
        progress = (statistics.datagrams_sent, statistics.datagrams_received)
        if progress == self._reported:
            return
        self._reported = progress
        rtt = connection.rtt
        self.emit(
            quic_session_pb2.SessionStatistics(
                session_id=self._session_id,
                rtt_ms=rtt.smoothed * 1e3 if rtt else 0.0,
                bytes_sent=statistics.bytes_sent,
                bytes_received=statistics.bytes_received,
                packets_sent=statistics.datagrams_sent,
                packets_received=statistics.datagrams_received,
                packets_lost=statistics.packets_lost,
                datagrams_dropped=self._datagrams_dropped,
                congestion_window_bytes=statistics.congestion_window_bytes,
            )
        )


def _is_client_initial(packet: bytes) -> bool:
    return (
        len(packet) >= MIN_INITIAL_BYTES
        and demux.is_long_header(packet)
        and demux.version(packet) == demux.SUPPORTED_VERSION
        and demux.opens_connection(packet)
        and len(demux.destination_cid(packet) or b"") >= MIN_CLIENT_CID_BYTES
    )
