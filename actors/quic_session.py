"""Owns the end-to-end QUIC connection of one session, beneath which paths change without its knowing.

Takes packets from whatever path they came, and payload from the service sockets; emits packets to the
selected path, and to the other one as well while the selected one is in doubt (`ztna.path.traffic`). While
there is no path, nothing is sent and QUIC's timers go on, so that the session survives an outage up to its
idle time-out; when a path is back, the backed-off probe timer is forgotten and a PING sent. The handshake
runs through a relay, whatever is selected: only there may a client's first packet make a connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from actors.base import Concern, Context
from actors.handshake_gate import ASK_INTERVAL_S, GO_ON_INTERVAL_S, SessionGate
from actors.translate import address_from_proto, address_to_proto, path_kind_from_proto, path_kind_to_proto
from ztna.access.identity import VerifiedPeer
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError, LocalProtocolError
from ztna.path import traffic
from ztna.path.path import PathKind
from ztna.path.relays import RelayTrail
from ztna.quic import demux, events
from ztna.quic.connection import Connection
from ztna.quic.endpoint import MIN_CLIENT_CID_BYTES, MIN_INITIAL_BYTES
from ztna.v1 import (
    checklist_pb2,
    keepalive_pb2,
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

# Sealed packets that begin with less than this are STUN, never QUIC (RFC 9443 §2).
STUN_BELOW = 4

# Batches of packets that wait for a handshake to go on: the agent's certificate, and that again. QUIC sends
# once more what finds no room.
MAX_HELD_BATCHES = 8

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
        keepalive_pb2.PathConfirmed: "path_confirmed",
        checklist_pb2.PairNominated: "pair_nominated",
        relay_leg_pb2.SealedReceived: "sealed_received",
        udp_socket_pb2.DatagramsReceived: "datagrams_received",
        quic_session_pb2.ReportSession: "report_session",
        quic_session_pb2.SendPayload: "send_payload",
        quic_session_pb2.PayloadConsumed: "payload_consumed",
        quic_session_pb2.AbortStream: "abort_stream",
        quic_session_pb2.SendDatagramPayloads: "send_datagram_payloads",
        quic_session_pb2.PingSession: "ping_session",
        quic_session_pb2.RecheckPeer: "recheck_peer",
        quic_session_pb2.CloseQuicSession: "close_quic_session",
    }
    optional = frozenset({quic_session_pb2.PingSession})
    emits = (
        relay_leg_pb2.SendSealed,
        udp_socket_pb2.SendDatagrams,
        udp_socket_pb2.UpdateConnectionIds,
        keepalive_pb2.RelayedStunReceived,
        quic_session_pb2.PathSuspected,
        quic_session_pb2.PathSilent,
        quic_session_pb2.SessionReported,
        quic_session_pb2.FlowStopped,
        quic_session_pb2.PeerOnPath,
        quic_session_pb2.PeerOnRelay,
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
        self._held: deque[tuple[Sequence[bytes], PathKind | None]] = deque()  # so do these, later ones
        self._ask_at: float | None = None
        self._connection: Connection | None = None
        self._is_client = is_client
        self._max_stream_id = -STREAM_ID_STEP
        self._traffic = traffic.Traffic()
        self._trail = RelayTrail()
        self._intermediate_id = ""
        self._max_packet_bytes = 0
        self._direct: TransportAddress | None = None
        self._direct_host = ""
        self._direct_message: types_pb2.TransportAddress | None = None
        self._early_selection: path_manager_pb2.PathSelected | None = None
        self._direct_bytes_sent = self._direct_bytes_received = self._payload_bytes = 0
        self._has_told_ids = False
        self._is_drained = False  # all that could be sent was, when the connection was last driven
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
            if self._connection is not None:
                self._connection.release()

    def path_selected(self, message: path_manager_pb2.PathSelected) -> None:
        """Move to a path; the first relayed one starts the handshake of a client."""
        kind = path_kind_from_proto(message.kind)
        self._early_selection = None
        if kind is PathKind.DIRECT and not self._was_established:
            self._early_selection = message
            kind = PathKind.RELAY if message.standby_intermediate_id else PathKind.NONE
        self._intermediate_id = message.intermediate_id or message.standby_intermediate_id
        self._trail.handle_selected(self._intermediate_id, self.now)
        self._max_packet_bytes = message.max_packet_bytes
        is_switch = self._select(kind, message)
        if kind is PathKind.NONE or self._is_closed:
            return
        if self._connection is None:
            if not self._is_client:
                return
            self._connection = self._open_connection(b"")
            self._connection.connect(self.now)
        elif message.is_resumed and not is_switch:
            self._connection.reset_recovery_and_ping(self.now)
        self._act(self._connection)
        self._drive(self._connection)

    def report_session(self, _message: quic_session_pb2.ReportSession) -> None:
        """Tell an actor that started again; at the first start there is nothing to tell."""
        if self._intermediate_id:
            self.emit(
                quic_session_pb2.SessionReported(
                    session_id=self._session_id,
                    is_established=self._was_established,
                    intermediate_id=self._intermediate_id,
                    max_packet_bytes=self._max_packet_bytes,
                )
            )

    def path_confirmed(self, message: keepalive_pb2.PathConfirmed) -> None:
        """A path answered a check: what was in doubt about it is no more."""
        kind = path_kind_from_proto(message.kind)
        if kind is PathKind.DIRECT and address_from_proto(message.remote) != self._direct:
            return
        self._traffic.handle_confirmed(kind, message.rtt_us / 1e6 if message.rtt_us else None, self.now)

    def pair_nominated(self, message: checklist_pb2.PairNominated) -> None:
        """A nomination is an answered check like any other; a pair not in use yet comes selected."""
        if address_from_proto(message.pair.remote.address) == self._direct:
            self._traffic.handle_confirmed(PathKind.DIRECT, None, self.now)

    def sealed_received(self, message: relay_leg_pb2.SealedReceived) -> None:
        """Packets through a relay. Only here may a client's first packet make a connection."""
        packets: list[bytes] = list(message.packets)
        if stun := [each for each in packets if each and each[0] < STUN_BELOW]:
            packets = [each for each in packets if not each or each[0] >= STUN_BELOW]
            self.emit(
                keepalive_pb2.RelayedStunReceived(
                    session_id=self._session_id, intermediate_id=message.intermediate_id, datagrams=stun
                )
            )
        if self._connection is None and not self._is_client and not self._is_closed:
            start = next((number for number, each in enumerate(packets) if _is_client_initial(each)), None)
            if start is None:
                return
            self._knock(list(packets[start:]))
            return
        if packets:
            before = self._new_packets
            self._receive(packets, PathKind.RELAY)
            if self._new_packets > before:
                self._note_relay(message.intermediate_id)

    @property
    def _new_packets(self) -> int:
        """Authenticated packets that had not come before."""
        return 0 if self._connection is None else self._connection.packets_seen[0]

    def _note_relay(self, intermediate_id: str) -> None:
        """Tell when the peer is at another relay than this end."""
        if self._trail.handle_new_packet(intermediate_id, self.now):
            self.log.info("quic_session.peer_on_relay", intermediate=intermediate_id)
            self.emit(
                quic_session_pb2.PeerOnRelay(session_id=self._session_id, intermediate_id=intermediate_id)
            )

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
        if gate is None:
            self._open(packets)
            return
        with gate.charged(self.now, is_first=True):
            gate.begin(self._open(packets))

    def _open(self, packets: Sequence[bytes]) -> Connection:
        connection = self._connection = self._open_connection(demux.destination_cid(packets[0]) or b"")
        self._take(connection, packets, PathKind.RELAY)
        return connection

    def datagrams_received(self, message: udp_socket_pb2.DatagramsReceived) -> None:
        """Packets on a direct path; on which, only their source tells."""
        if self._connection is None:
            return
        direct, remote = self._direct, message.remote
        is_known = direct is not None and remote.port == direct.port and remote.host == direct.host
        before = self._connection.bytes_moved[1]
        self._receive(message.datagrams, PathKind.DIRECT if is_known else None)
        self._direct_bytes_received += self._connection.bytes_moved[1] - before

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
        data = message.data
        self._payload_bytes += len(data)
        connection.send_stream(message.stream_id, data, message.end_of_stream)
        self._drive(connection)

    def payload_consumed(self, message: quic_session_pb2.PayloadConsumed) -> None:
        """Bytes passed on: the peer may send more."""
        connection = self._live
        # Limits rise in steps of half a window, so most of these messages leave nothing to send.
        if connection is not None and connection.consume(message.stream_id, message.size_bytes):
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
                self._payload_bytes += len(payload)
                connection.send_datagram(payload)
        self._drive(connection)

    def ping_session(self, _message: quic_session_pb2.PingSession) -> None:
        """Have the peer show that it is there; its answer keeps both ends from timing out."""
        connection = self._live
        if connection is not None and connection.is_established:
            connection.ping(self.now)
            self._drive(connection)

    def recheck_peer(self, _message: quic_session_pb2.RecheckPeer | None = None) -> None:
        """Judge the peer again: now and then, since certificates end, and when it is known who is trusted."""
        connection = self._live
        peer = connection.peer if connection is not None else None
        if not isinstance(peer, VerifiedPeer):
            return
        try:
            self._recheck(peer)
        except AuthenticationError as error:
            self._end = self._end or _End(error.reason, str(error), is_authentication_failure=True)
            self._close(ACCESS_DENIED, error.reason)

    def close_quic_session(self, message: quic_session_pb2.CloseQuicSession) -> None:
        """End the session."""
        self._close(message.code, message.reason)

    def handle_timeout(self, now: float) -> None:
        """QUIC's timers, doubt about the selected path, the statistics, and the gate."""
        if self._ask_at is not None and now >= self._ask_at:
            if self._connection is None:
                self._knock(self._first_packets)
            else:
                self._go_on(self._connection)
        if self._connection is not None:
            self._connection.handle_timeout(now)
            self._traffic.handle_timeout(now)
            self._act(self._connection)
            self._drive(self._connection)
        if self._report_at is not None and now >= self._report_at:
            self._report_at = now + STATISTICS_INTERVAL_S
            self._report()
            self.recheck_peer()

    def next_deadline(self) -> float | None:
        """The earliest of QUIC's deadline, the next doubt about the path, and the next report."""
        connection = self._live  # one that is over has nothing due, whatever aioquic's timer says
        deadline = connection.next_deadline() if connection is not None else None
        if deadline is not None and self._traffic.routes(self.now) == traffic.NOWHERE:
            # What is due (an ACK, say) stays due while nothing can be sent.
            deadline = max(deadline, self.now + NO_PATH_INTERVAL_S)
        doubt_at = self._traffic.next_deadline() if self._was_established else None
        for other in (self._ask_at, self._report_at, doubt_at):
            if other is not None and (deadline is None or other < deadline):
                deadline = other
        return deadline

    @property
    def _live(self) -> Connection | None:
        return None if self._is_closed else self._connection

    def _select(self, kind: PathKind, message: path_manager_pb2.PathSelected) -> bool:
        """Tell the core; whether packets take another path than before, in either of the two kinds."""
        former = self._traffic.selected
        is_moved = False
        if kind is PathKind.DIRECT:
            direct = address_from_proto(message.remote)
            is_moved = former is kind and (direct, message.local_host) != (self._direct, self._direct_host)
            self._direct, self._direct_host = direct, message.local_host
            self._direct_message = address_to_proto(direct)  # once, not with each batch
        self._traffic.handle_selected(
            kind,
            self.now,
            has_relay=bool(self._intermediate_id),
            is_moved=is_moved,
            rtt_s=message.rtt_us / 1e6 if message.rtt_us else None,
            former_rtt_s=message.former_rtt_us / 1e6 if message.former_rtt_us else None,
        )
        return is_moved or (former is not kind and former is not PathKind.NONE)

    def _receive(self, packets: Sequence[bytes], kind: PathKind | None) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._gate is None or self._was_established:
            self._take(connection, packets, kind)
        elif len(self._held) < MAX_HELD_BATCHES:
            self._held.append((list(packets), kind))
            self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """Do what the handshake wants next, as far as the gate lets it."""
        self._ask_at = None
        gate = self._gate
        while gate is not None and self._held:
            if not (self._was_established or gate.may_go_on(self.now)):
                self._ask_at = self.now + GO_ON_INTERVAL_S * self.io.random.uniform(0.5, 1.5)
                return
            packets, kind = self._held.popleft()
            with gate.charged(self.now):
                self._take(connection, packets, kind)

    def _take(self, connection: Connection, packets: Sequence[bytes], kind: PathKind | None) -> None:
        has_news = connection.receive(packets, self.now)
        self._traffic.handle_received(kind, connection.packets_seen, self.now)
        is_asked = self._act(connection)
        self._drive(connection, is_quiet=self._is_drained and not (has_news or is_asked))

    def _drive(self, connection: Connection, *, is_quiet: bool = False) -> None:
        """Take what the connection tells and send what it has; `is_quiet`: it cannot have anything."""
        self._take_events(connection)
        if not is_quiet:
            routes = self._traffic.routes(self.now)
            self._is_drained = routes != traffic.NOWHERE
            if self._is_drained and self._transmit(connection, routes):
                self._traffic.handle_sent(routes)
                self._take_events(connection)
        self._traffic.handle_progress(
            awaits=connection.awaits_acknowledgement,
            acknowledged=connection.largest_acknowledged,
            next_number=connection.next_packet_number,
            now=self.now,
        )
        if self._end is not None:
            self._report_closed()
        if self._early_selection is not None and self._was_established:
            self.path_selected(self._early_selection)

    def _transmit(self, connection: Connection, routes: traffic.Routes) -> bool:
        by_relay, by_direct = routes
        before = connection.bytes_moved[0]
        packets = connection.transmit(self.now)
        if not packets:
            return False
        if by_direct and self._direct is not None:
            self.emit(
                udp_socket_pb2.SendDatagrams(
                    remote=self._direct_message, local_host=self._direct_host, datagrams=packets
                )
            )
            self._direct_bytes_sent += connection.bytes_moved[0] - before
        if by_relay:
            self.emit(
                relay_leg_pb2.SendSealed(
                    intermediate_id=self._intermediate_id, session_id=self._session_id, packets=packets
                )
            )
        return True

    def _act(self, connection: Connection) -> bool:
        """Do what the core asks for, if anything; whoever calls drives the connection afterwards."""
        effects = self._traffic.drain()
        for effect in effects:
            match effect:
                case traffic.ForgetRtt(old_rtt_s, new_rtt_s):
                    connection.path_switched(old_rtt_s, self.now, new_rtt_s)
                case traffic.ProbeBoth(alone):
                    # Whatever else waits leaves with the first probe, or twice with the second.
                    connection.probe(self.now)
                    self._transmit(connection, (alone is PathKind.RELAY, alone is PathKind.DIRECT))
                    connection.probe(self.now)
                case traffic.ProbeSelected():
                    connection.probe(self.now)
                case traffic.FlowStopped(kind, silent_s):
                    self.emit(
                        quic_session_pb2.FlowStopped(
                            session_id=self._session_id,
                            kind=path_kind_to_proto(kind),
                            silent_ms=round(silent_s * 1e3),
                        )
                    )
                case traffic.PathSuspected(kind, silent_s):
                    self.log.info(
                        "quic_session.path_suspected", path=kind.value, silent_ms=round(silent_s * 1e3)
                    )
                    self.emit(
                        quic_session_pb2.PathSuspected(
                            session_id=self._session_id,
                            kind=path_kind_to_proto(kind),
                            silent_ms=round(silent_s * 1e3),
                        )
                    )
                case traffic.PathSilent(kind, silent_s):
                    self.log.warning(
                        "quic_session.path_silent", path=kind.value, silent_ms=round(silent_s * 1e3)
                    )
                    self.emit(
                        quic_session_pb2.PathSilent(
                            session_id=self._session_id,
                            kind=path_kind_to_proto(kind),
                            remote=address_to_proto(self._direct)
                            if kind is PathKind.DIRECT and self._direct is not None
                            else None,
                            silent_ms=round(silent_s * 1e3),
                        )
                    )
                case traffic.PeerOnPath(kind):
                    self.emit(
                        quic_session_pb2.PeerOnPath(
                            session_id=self._session_id, kind=path_kind_to_proto(kind)
                        )
                    )
        return bool(effects)

    def _close(self, code: int, reason: str) -> None:
        if self._is_closed:
            return
        self._ask_at = None
        self._held.clear()
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
        happened = connection.events()
        if not happened:
            return
        for event in happened:
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
            self._payload_bytes += sum(map(len, datagrams))
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
            case events.ConnectionIdsChanged():
                self._has_told_ids = True
                self.emit(
                    udp_socket_pb2.UpdateConnectionIds(
                        session_id=self._session_id, added=event.added, retired=event.retired
                    )
                )
            case events.ConnectionClosed():
                self._end = self._end or _End(
                    event.reason, event.message, event.is_remote, event.is_authentication_failure
                )

    def _flush(self, payloads: dict[int, list[bytes]]) -> None:
        for stream_id, chunks in payloads.items():
            self._payload_received(stream_id, chunks)
        payloads.clear()

    def _payload_received(self, stream_id: int, chunks: list[bytes], *, end: bool = False) -> None:
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._payload_bytes += len(data)
        self.emit(
            quic_session_pb2.PayloadReceived(
                session_id=self._session_id,
                stream_id=stream_id,
                data=data,
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
                idle_timeout_s=connection.idle_timeout_s,
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
            path=self._traffic.selected.value,
            dual_sends=self._traffic.dual_sends,
        )
        if self._has_told_ids:
            self.emit(udp_socket_pb2.UpdateConnectionIds(session_id=self._session_id, forget_owner=True))
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
                payload_bytes=self._payload_bytes,
                dual_sends=self._traffic.dual_sends,
                direct_bytes_sent=self._direct_bytes_sent,
                direct_bytes_received=self._direct_bytes_received,
                unanswered_probes=connection.probe_backoff,
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
