"""One QUIC connection as a sans-IO core: datagrams and commands in, datagrams and events out.

Drive it in this order, once per wake-up: `receive` all that arrived, `handle_timeout` if the deadline passed,
`events`, the commands that follow from them, `transmit`, `events` again (connection IDs are issued while
packets are written), `next_deadline`. Bytes from the network never raise; whatever goes wrong ends in one
`ConnectionClosed`. Commands that cross the end of a connection or stream are ignored, because its event is
already on the way. When all that happened is a `receive` or `consume` that returned False, `transmit` would
find nothing and may be left out. Keep driving until `is_terminated`, then `release` the connection and forget
it and its IDs.
"""

from __future__ import annotations

from collections.abc import Iterable

from aioquic.quic import events as quic_events

from ztna.errors import LocalProtocolError
from ztna.quic.adapter import INITIAL_RTT_S, Engine
from ztna.quic.closing import INTERNAL_ERROR, NO_ERROR, TRANSPORT_PARAMETER_ERROR, reason_of
from ztna.quic.events import (
    AUTHENTICATION_FAILURES,
    CloseReason,
    ConnectionClosed,
    ConnectionIdsChanged,
    DatagramReceived,
    Event,
    HandshakeCompleted,
    PeerAccepted,
    PingAcknowledged,
    SendCredit,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from ztna.quic.figures import ConnectionStatistics, RoundTripTime
from ztna.quic.options import ConnectionOptions

PeerAddress = tuple[str, int]

SYNTHETIC_ADDRESS: PeerAddress = ("100.64.0.1", 443)
"""What QUIC believes its peer's address to be while paths change beneath it (shared space, RFC 6598)."""
SEND_HIGH_WATERMARK_BYTES = 1024 * 1024
"""Stop feeding a stream with this much unacknowledged: a tenth of a second at full speed."""
SEND_LOW_WATERMARK_BYTES = 256 * 1024
"""Feed it again from here, so that it never runs dry while its source wakes up."""
MAX_SEND_BACKLOG_BYTES = 96 * 1024 * 1024
"""Of all streams together: as much as the other end may hold unread at its default windows, so that streams
which nobody reads can have their share and still leave room for the others."""
MAX_DATAGRAMS_PENDING = 1024
"""Far above what a caller that looks at `datagrams_pending` lets wait; about 1 MiB."""
MAX_CLOSE_REPEATS = 8
"""Answers to packets that arrive after the close, the nth to packet 2^n (RFC 9000 §10.2.1)."""
_PAYLOAD = (quic_events.StreamDataReceived, quic_events.DatagramFrameReceived)


class Connection:
    """A client or server connection with mutual TLS; `now` is monotonic seconds throughout."""

    def __init__(self, engine: Engine, options: ConnectionOptions, address: PeerAddress) -> None:
        self._engine = engine
        self._options = options
        self._address = address
        self._events: list[Event] = []
        self._announced_ids: dict[bytes, None] = {}
        self._is_server = False
        self._is_established = False
        self._is_peer_accepted = False
        self._is_closed = False
        self._is_dead = False
        self._is_address_validated = False
        self._is_timed_out = False
        self._handshake_deadline: float | None = None
        self._minimum_reset_at: float | None = None
        # A peer that is heard and acknowledges nothing keeps what it was sent in memory here.
        self._unacknowledged_since: float | None = None
        self._acknowledged = -1
        self._is_unacknowledged = False
        self._next_ping = 0
        self._last_words: list[tuple[bytes, PeerAddress]] = []
        self._is_repeat_due = False
        self._late_packets = 0
        self._datagrams_sent = self._datagrams_received = 0
        self._bytes_sent = self._bytes_received = 0
        self._oversize_dropped = 0
        self._internal_errors = 0
        self._announce_ids(engine.host_connection_ids)

    @classmethod
    def client(cls, options: ConnectionOptions) -> Connection:
        """The end that opens; call `connect` next."""
        return cls(Engine(options, is_client=True), options, SYNTHETIC_ADDRESS)

    @classmethod
    def server(
        cls,
        options: ConnectionOptions,
        *,
        destination_cid: bytes,
        original_destination_cid: bytes | None = None,
        address: PeerAddress = SYNTHETIC_ADDRESS,
        is_address_validated: bool = True,
    ) -> Connection:
        """The end that answers; pass it the client's first datagram with `receive` next.

        `destination_cid` is that datagram's. After a Retry, `original_destination_cid` is the one of the
        datagram before it. `is_address_validated` lifts the anti-amplification limit: a Retry token or a
        bound relay channel has proved where the client is.
        """
        engine = Engine(
            options,
            is_client=False,
            original_destination_connection_id=original_destination_cid or destination_cid,
            retry_source_connection_id=destination_cid if original_destination_cid else None,
        )
        connection = cls(engine, options, address)
        connection._is_address_validated = is_address_validated
        connection._is_server = True
        # It stays: a late duplicate of the first packet must not look like another client.
        connection._announce_ids((destination_cid,))
        return connection

    # Facts

    @property
    def is_established(self) -> bool:
        """Whether both ends accepted each other and neither has closed."""
        return self._is_established and not self._is_closed

    @property
    def is_closed(self) -> bool:
        """Whether `ConnectionClosed` was told."""
        return self._is_closed

    @property
    def is_terminated(self) -> bool:
        """Whether nothing is left to do, not even answering late packets."""
        return self._is_dead or self._engine.is_terminated

    @property
    def validated_address(self) -> PeerAddress | None:
        """Where packets go, provided that the peer has answered from there (RFC 9000 §8), or None."""
        return self._engine.get_peer_address() if self._engine.is_peer_validated else None

    @property
    def peer(self) -> object:
        """What `verify_peer` returned, or None before it was asked."""
        return self._engine.peer

    @property
    def local_connection_ids(self) -> tuple[bytes, ...]:
        """All connection IDs by which packets may arrive, as told by `ConnectionIdsChanged`."""
        return tuple(self._announced_ids)

    @property
    def max_datagram_payload(self) -> int:
        """Largest DATAGRAM payload in bytes: 1170 at 1200, 1202 at 1232."""
        return self._engine.max_datagram_payload

    @property
    def idle_timeout_s(self) -> float:
        """Seconds of silence that end an established connection without a word (RFC 9000 §10.1)."""
        return self._engine.idle_timeout

    @property
    def datagrams_pending(self) -> int:
        """DATAGRAM frames accepted and not yet sent."""
        return self._engine.datagrams_pending

    @property
    def can_open_stream(self) -> bool:
        """Whether the peer allows one more stream now."""
        return self._engine.can_open_stream

    @property
    def send_backlog_total(self) -> int:
        """Bytes of all streams that are not yet acknowledged."""
        return self._engine.send_backlog_bytes

    def send_backlog(self, stream_id: int) -> int:
        """Bytes of one stream that are not yet acknowledged."""
        return self._engine.stream_backlog(stream_id)

    def can_send(self, stream_id: int) -> bool:
        """Whether stream and connection are below their high watermarks."""
        return (
            self._engine.stream_backlog(stream_id) < SEND_HIGH_WATERMARK_BYTES
            and self._engine.send_backlog_bytes < MAX_SEND_BACKLOG_BYTES - SEND_HIGH_WATERMARK_BYTES
        )

    @property
    def rtt(self) -> RoundTripTime | None:
        """RTT figures, or None while there is no sample."""
        figures = self._engine.rtt
        return None if figures is None else RoundTripTime(*figures)

    @property
    def awaits_acknowledgement(self) -> bool:
        """Whether packets are out that the peer has to acknowledge: then its silence means something."""
        return self._engine.awaits_acknowledgement

    @property
    def packets_seen(self) -> tuple[int, int]:
        """1-RTT packets received so far: those that were new, and those that came again; all authentic."""
        return self._engine.packets_seen

    @property
    def largest_acknowledged(self) -> int:
        """Highest packet number that the peer acknowledged."""
        return self._engine.largest_acknowledged

    @property
    def probe_backoff(self) -> int:
        """Probe timeouts in a row that nothing has answered (RFC 9002 §6.2.1)."""
        return self._engine.probe_backoff

    @property
    def next_packet_number(self) -> int:
        """Number of the next packet to be sent."""
        return self._engine.next_packet_number

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """UDP payload bytes sent and received so far."""
        return self._bytes_sent, self._bytes_received

    def statistics(self) -> ConnectionStatistics:
        """Counters of this moment."""
        window, in_flight, lost = self._engine.congestion
        return ConnectionStatistics(
            datagrams_sent=self._datagrams_sent,
            datagrams_received=self._datagrams_received,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            packets_lost=lost,
            congestion_window_bytes=window,
            bytes_in_flight=in_flight,
            oversize_datagrams_dropped=self._oversize_dropped,
            key_updates=self._engine.key_updates,
            internal_errors=self._internal_errors,
        )

    # Driving

    def connect(self, now: float) -> None:
        """Start the client's handshake; raises `LocalProtocolError` unless it is the first thing done."""
        try:
            self._engine.connect(self._address, now)
        except RuntimeError as error:
            raise LocalProtocolError("only a client connects, and only once") from error
        self._engine.advance(now)
        self._handshake_deadline = now + self._options.handshake_timeout_s

    def receive(self, datagrams: Iterable[bytes], now: float, source: PeerAddress | None = None) -> bool:
        """Take UDP payloads in the order of arrival, all from `source` (default: the constant address).

        Returns whether `transmit` may have something to do because of them; it may still find nothing.
        Payload alone gives it nothing before an acknowledgement is due, for which there is a deadline. False
        says nothing about what was done before: that needs its own `transmit`.
        """
        address = source or self._address
        was_established = self.is_established
        self._engine.has_news = False
        seen, largest = self._engine.packets_seen[0], self._engine.largest_received
        if not self._is_dead:
            self._engine.advance(now)
        receive = self._engine.receive_datagram
        for data in datagrams:
            self._datagrams_received += 1
            self._bytes_received += len(data)
            if self._is_dead:
                continue
            if self._is_closed:
                self._answer_late_packet()
                continue
            if self._handshake_deadline is None and not self._is_established:
                self._handshake_deadline = now + self._options.handshake_timeout_s
            try:
                receive(data, address, now)
            except Exception as error:  # noqa: BLE001 - bytes from outside must not raise out of a core
                self._fail(error, now)
        if not self._is_dead:
            if was_established:
                self._engine.hasten_acknowledgement(seen, largest, now)
            self._collect(now)
            self._watch_acknowledgements(now)
        return not (was_established and self.is_established) or self._engine.may_send_after_receiving(now)

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that is due."""
        if self._is_dead or not self._engine.is_started:
            return
        if self._handshake_deadline is not None and now >= self._handshake_deadline and not self._is_closed:
            self._is_timed_out = True
            self._engine.close(error_code=NO_ERROR, frame_type=0, reason_phrase="handshake timeout")
        if self._minimum_reset_at is not None and now >= self._minimum_reset_at:
            self._minimum_reset_at = None
            self._engine.forget_minimum_rtt()
        try:
            deadline = self._engine.get_timer()
            if deadline is not None and now >= deadline:
                self._engine.handle_timer(now)
        except Exception as error:  # noqa: BLE001 - a broken connection must not take the others along
            self._fail(error, now)
            return
        since = self._unacknowledged_since
        if since is not None and now >= since + self.idle_timeout_s and not self._engine.is_ending:
            # It is heard, or it would have been given up as silent.
            self._is_unacknowledged = True
            self._engine.close(error_code=NO_ERROR, reason_phrase="nothing is acknowledged")
        self._collect(now)

    def release(self) -> None:
        """Take apart what is about to be forgotten; only `is_closed` and its like may be asked from then on.

        What aioquic keeps refers to itself in a hundred places. Left as it is, it would stay until garbage is
        looked for in everything that lives, and while that lasts nobody's packets are moved.
        """
        self._is_dead = self._is_closed = True
        self._events, self._last_words = [], []
        self._engine.release()

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which to call `handle_timeout`, or None."""
        if self._is_dead or not self._engine.is_started:
            return None
        deadline = self._engine.get_timer()
        if not self._is_closed:
            since = self._unacknowledged_since
            patience = None if since is None else since + self.idle_timeout_s
            for own in (self._handshake_deadline, self._minimum_reset_at, patience):
                if own is not None and (deadline is None or own < deadline):
                    deadline = own
        return deadline

    def transmit(self, now: float) -> list[bytes]:
        """The UDP payloads to send now, to whatever address the selected path leads to."""
        return [data for data, _ in self.transmit_addressed(now)]

    def transmit_addressed(self, now: float) -> list[tuple[bytes, PeerAddress]]:
        """The same with the address QUIC means, for a server whose clients change theirs."""
        if self._is_repeat_due:
            self._is_repeat_due = False
            return self._count_sent(self._last_words)
        if self._is_dead or not self._engine.is_started or not self._engine.get_peer_address():
            return []
        if self._is_address_validated:
            # Once: an address that the client moves to later has to prove itself.
            self._is_address_validated = False
            self._engine.mark_validated()
        if self._engine.is_datagram_queue_blocked:
            self._oversize_dropped += self._engine.drop_oversize_datagrams()
        try:
            sent = self._engine.datagrams_to_send(now)
        except Exception as error:  # noqa: BLE001 - a broken connection must not take the others along
            self._fail(error, now)
            return self.transmit_addressed(now)
        if self._engine.is_closing and sent:
            # aioquic lets a CONNECTION_CLOSE pass the anti-amplification limit.
            if self._engine.is_amplifying:
                sent = []
            if self._engine.is_peer_validated:
                self._last_words = sent
        self._collect(now)
        self._watch_acknowledgements(now)
        return self._count_sent(sent)

    def events(self) -> list[Event]:
        """What happened since the last call, oldest first."""
        self._collect_credits()
        events, self._events = self._events, []
        return events

    # Streams

    def open_stream(self) -> int:
        """The ID of a new bidirectional stream, which exists for the peer once something is sent on it.

        A client may open and write before the handshake is over; the bytes leave once the server proved who
        it is. Raises `LocalProtocolError` when `can_open_stream` is False on an established connection, and
        on a server before it accepted the client.
        """
        if self._is_server and not self._is_established:
            raise LocalProtocolError("no stream before the client was accepted")
        if self._is_established and not self._engine.can_open_stream:
            raise LocalProtocolError("the peer's stream limit is reached")
        stream_id = self._engine.get_next_available_stream_id()
        if not self._engine.is_ending:
            self._engine.write_stream(stream_id, b"", end=False)
        return stream_id

    def send_stream(self, stream_id: int, data: bytes, end: bool = False) -> None:
        """Queue bytes, and with `end` the end of our direction.

        Raises `LocalProtocolError` after our own end, and beyond `MAX_SEND_BACKLOG_BYTES`.
        """
        if self._engine.is_ending or not self._engine.has_stream(stream_id):
            return
        if not self._engine.can_write(stream_id):
            return
        if self._engine.has_ended(stream_id):
            raise LocalProtocolError(f"stream {stream_id}: bytes after the end")
        if self._engine.send_backlog_bytes + len(data) > MAX_SEND_BACKLOG_BYTES:
            raise LocalProtocolError("send backlog exceeded: watermarks were not respected")
        self._engine.write_stream(stream_id, data, end=end)

    def consume(self, stream_id: int, count: int) -> bool:
        """Report bytes of a stream that left our hands, which lets the peer send as many more.

        Returns whether that is to be told now; if not, `transmit` has nothing to do because of it.
        """
        return not self._is_dead and self._engine.consume(stream_id, count)

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up sending on a stream and drop what waits (RESET_STREAM)."""
        if not self._engine.is_ending and self._engine.has_stream(stream_id):
            self._engine.reset_writing(stream_id, code)

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Give up reading a stream: the peer is told (STOP_SENDING) and its data dropped from now on."""
        if not self._engine.is_ending and self._engine.has_stream(stream_id):
            self._engine.stop_reading(stream_id, code)

    # Datagrams, liveness, paths

    def send_datagram(self, data: bytes) -> None:
        """Queue one DATAGRAM frame; unreliable, congestion-controlled, never fragmented.

        Raises `LocalProtocolError` before the handshake is over, above `max_datagram_payload`, and with
        `MAX_DATAGRAMS_PENDING` waiting: feed it while `datagrams_pending` is small, since DATAGRAM frames go
        before streams.
        """
        if self._engine.is_ending:
            return
        if not self._is_established:
            raise LocalProtocolError("no DATAGRAM before the handshake is over")
        if len(data) > self._engine.max_datagram_payload:
            raise LocalProtocolError(
                f"DATAGRAM of {len(data)} bytes exceeds {self._engine.max_datagram_payload}"
            )
        if self._engine.datagrams_pending >= MAX_DATAGRAMS_PENDING:
            raise LocalProtocolError("DATAGRAM queue is full: datagrams_pending was not respected")
        self._engine.send_datagram_frame(data)

    def ping(self, now: float) -> int:
        """Queue a PING; its number comes back in `PingAcknowledged`."""
        self._engine.advance(now)
        self._next_ping += 1
        if not self._engine.is_ending:
            self._engine.send_ping(self._next_ping)
        return self._next_ping

    def path_switched(self, old_rtt: float, now: float, new_rtt: float | None = None) -> None:
        """Prepare for packets that overtake each other, after the path beneath has changed.

        For a while nothing counts as lost and no key is updated; RTT and backoff start over, the minimum
        once more when the last sample that mixes both paths is in. Keep receiving on the old path for at
        least 3 s, and call `set_max_datagram_size` before switching to a path with a smaller one.
        """
        self._engine.hold_losses(old_rtt, now)
        self._minimum_reset_at = now + max(old_rtt, new_rtt or INITIAL_RTT_S)
        self.reset_recovery_and_ping(now)

    def reset_recovery_and_ping(self, now: float) -> None:
        """Forget RTT and backoff and ping, after an outage or a switch of paths."""
        self._engine.forget_rtt()
        self._unacknowledged_since = None
        self.ping(now)
        if not self._engine.is_ending:
            self._engine.probe()

    def probe(self, now: float) -> None:
        """Forget the probe timeout's backoff and have one ack-eliciting packet sent, a full window or not."""
        self._engine.advance(now)
        if not self._engine.is_ending:
            self._engine.probe()

    def set_max_datagram_size(self, size: int) -> int:
        """Change the UDP payload size.

        Returns how many waiting DATAGRAM frames no longer fit and were dropped. Raises
        `LocalProtocolError` below 1200 (RFC 9000 §14).
        """
        if size < 1200:  # noqa: PLR2004 - the number of the RFC
            raise LocalProtocolError(f"a datagram size of {size} is below 1200")
        dropped = self._engine.set_max_datagram_size(size)
        self._oversize_dropped += dropped
        return dropped

    def close(self, code: int = NO_ERROR, message: str = "") -> None:
        """Close with an application error code; before the handshake is over the peer learns only that."""
        if not self._is_closed:
            self._engine.close(error_code=code, reason_phrase=message)
            self._note_closed()

    # Inside

    def _collect(self, now: float) -> None:
        self._engine.advance(now)
        if not self._is_established:
            self._note_handshake()
        while (event := self._engine.next_event()) is not None:
            if not self._is_established and isinstance(event, _PAYLOAD):
                # A server sends only to a client that it accepted.
                self._establish()
            if type(event) is quic_events.StreamDataReceived:  # of each packet, and patterns take longer
                self._take_stream_data(event)
            else:
                self._translate(event)
        if self._engine.is_ending:
            self._note_closed()

    def _watch_acknowledgements(self, now: float) -> None:
        acknowledged = self._engine.largest_acknowledged
        if not self._is_established or not self._engine.awaits_acknowledgement:
            self._unacknowledged_since = None
        elif self._unacknowledged_since is None or acknowledged != self._acknowledged:
            self._unacknowledged_since = now
        self._acknowledged = acknowledged

    def _note_handshake(self) -> None:
        if self._engine.is_handshake_confirmed:
            self._establish()
        elif self._engine.is_handshake_complete and not self._is_peer_accepted:
            self._is_peer_accepted = True
            self._events.append(PeerAccepted())

    def _take_stream_data(self, event: quic_events.StreamDataReceived) -> None:
        stream_id, data = event.stream_id, event.data
        if event.end_stream:
            self._engine.receiving_ended(stream_id)
        if self._engine.windows.deliver(stream_id, len(data)):
            self._events.append(StreamDataReceived(stream_id, data, event.end_stream))

    def _translate(self, event: quic_events.QuicEvent) -> None:
        match event:
            case quic_events.DatagramFrameReceived(data):
                self._events.append(DatagramReceived(data))
            case quic_events.StreamReset(error_code, stream_id):
                self._engine.windows.abandon(stream_id)
                self._engine.receiving_ended(stream_id)
                self._events.append(StreamReset(stream_id, error_code))
            case quic_events.StopSendingReceived(error_code, stream_id):
                self._engine.forget_unsent(stream_id)
                self._events.append(StopSendingReceived(stream_id, error_code))
            case quic_events.PingAcknowledged(uid):
                self._events.append(PingAcknowledged(uid))
            case quic_events.ConnectionIdIssued(connection_id):
                self._announce_ids((connection_id,))
            case quic_events.ConnectionIdRetired(connection_id):
                self._retire_id(connection_id)
            case _:
                pass

    def _establish(self) -> None:
        if self._is_established or not self._engine.is_handshake_complete:
            return
        self._is_established = True
        self._handshake_deadline = None
        if not self._engine.takes_datagrams:
            self._engine.close(
                error_code=TRANSPORT_PARAMETER_ERROR, frame_type=0, reason_phrase="DATAGRAM frames required"
            )
            return
        self._events.append(HandshakeCompleted(self._options.alpn))

    def _announce_ids(self, connection_ids: tuple[bytes, ...]) -> None:
        self._announced_ids.update(dict.fromkeys(connection_ids))
        self._events.append(ConnectionIdsChanged(added=connection_ids))

    def _retire_id(self, connection_id: bytes) -> None:
        # A peer can guess the number of one that it was not told yet, and so nobody was.
        if connection_id in self._announced_ids:
            del self._announced_ids[connection_id]
            self._events.append(ConnectionIdsChanged(retired=(connection_id,)))

    def _collect_credits(self) -> None:
        if self._engine.credits:
            self._events += [SendCredit(*credit) for credit in self._engine.credits.items()]
            self._engine.credits.clear()

    def _note_closed(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        code, is_application, message = self._engine.close_details
        reason = self._close_reason(code, is_application=is_application)
        if self._engine.refusal is not None:
            message = str(self._engine.refusal)
        elif self._engine.closed_by_peer and reason in AUTHENTICATION_FAILURES:
            # The reason alone would read as if it were the peer's certificate that has a fault.
            message = f"the peer refused our certificate ({message or reason})"
        self._events.append(
            ConnectionClosed(
                reason=reason,
                code=code,
                is_remote=self._engine.closed_by_peer,
                message=message,
            )
        )

    def _close_reason(self, code: int, *, is_application: bool) -> CloseReason:
        if self._engine.is_idle_timeout:
            return CloseReason.IDLE_TIMEOUT
        if self._is_timed_out:
            return CloseReason.HANDSHAKE_TIMEOUT
        if self._is_unacknowledged:
            return CloseReason.UNACKNOWLEDGED
        if self._engine.is_version_failure:
            return CloseReason.VERSION_NEGOTIATION
        return reason_of(code, is_application=is_application)

    def _answer_late_packet(self) -> None:
        self._late_packets += 1
        is_power_of_two = self._late_packets & (self._late_packets - 1) == 0
        if self._engine.is_closing and is_power_of_two and self._late_packets < 1 << MAX_CLOSE_REPEATS:
            self._is_repeat_due = True

    def _fail(self, error: Exception, now: float) -> None:
        """Give up a connection whose state can no longer be trusted, telling the peer if that still works."""
        self._internal_errors += 1
        self._is_dead = True
        if not self._is_closed:
            self._is_closed = True
            self._events.append(
                ConnectionClosed(
                    reason=CloseReason.INTERNAL_ERROR,
                    code=INTERNAL_ERROR,
                    is_remote=False,
                    message=f"{type(error).__name__}: {error}",
                )
            )
        try:
            self._engine.close(error_code=INTERNAL_ERROR, frame_type=0, reason_phrase="internal error")
            self._last_words = self._engine.datagrams_to_send(now)
            self._is_repeat_due = True
        except Exception:  # noqa: BLE001, S110 - courtesy only, and the cause has been told
            pass

    def _count_sent(self, sent: list[tuple[bytes, PeerAddress]]) -> list[tuple[bytes, PeerAddress]]:
        for data, _ in sent:
            self._bytes_sent += len(data)
        self._datagrams_sent += len(sent)
        return sent
