"""The one module that knows the inside of aioquic, and therefore insists on one exact version of it.

`Engine` is aioquic's connection with the behaviour that it lacks: mutual TLS judged inside the handshake,
flow control that follows the reader, streams visited only when they have something to send, loss detection
that survives a switch of paths, and old receive keys kept for late packets after a key update.
`ztna.quic.connection` drives it. `tests/unit/quic/test_upgrade_alarm.py` names every private attribute used.
"""

# ruff: noqa: SLF001 - this module exists to hold these accesses in one place

from __future__ import annotations

import copy
import math
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import aioquic
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic._crypto import CryptoError
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    ACK_FRAME_CAPACITY,
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoContext, CryptoPair, KeyUnavailableError
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicProtocolVersion,
    QuicStreamFrame,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from cryptography import x509

from ztna.errors import AuthenticationError, RemoteProtocolError
from ztna.quic.congestion import capped_algorithm, constant_algorithm
from ztna.quic.gaps import MAX_GAPS, ReceivedRanges
from ztna.quic.options import ConnectionOptions
from ztna.quic.packet_numbers import PacketNumberWindow
from ztna.quic.service_queue import ServiceQueue
from ztna.quic.windows import ReceiveWindows

SUPPORTED_VERSION = "1.7.2"
if aioquic.__version__ != SUPPORTED_VERSION:
    raise ImportError(
        f"ztna.quic.adapter relies on internals of aioquic {SUPPORTED_VERSION}, found {aioquic.__version__}: "
        "install the pinned version, or revise the adapter and its upgrade alarm test"
    )

CONNECTION_ID_BYTES = 8
DATAGRAM_OVERHEAD_BYTES = 22
"""1 first byte, 2 packet number, 16 tag, 3 frame header; the connection ID of the peer comes on top."""
MAX_DATAGRAM_FRAME_BYTES = 65536
"""What we announce (RFC 9221 §3); the path's size is the real bound."""
MAX_HANDSHAKE_MESSAGE_BYTES = 32 * 1024
"""A TLS message is assembled in memory before it is understood; ten certificates fit, 16 MB would not."""
MIN_STREAM_ROOM_BYTES = 32
"""Below it no stream frame is worth its header: 25 bytes at most."""
PACING_QUANTUM_S = 0.001
"""Event loops sleep no shorter, so the pacer's bucket must hold what the rate allows in two of these."""
INITIAL_RTT_S = 0.1
KEY_RETENTION_S = 1.0
"""How long old receive keys decrypt late packets (RFC 9001 §6.5: about three probe timeouts)."""
KEY_UPDATE_QUIET_S = 3.0
"""No key update this soon after a switch of paths or the update before: late packets are many then."""
DEADLINE_ROUNDING_S = 1e-6
"""A packet counts as lost once `now - delay` has reached its time of sending, while the deadline for that is
computed as the time of sending plus `delay`: rounded, the deadline may come and nothing be lost yet."""
MAX_PEER_IDS_REMEMBERED = 1024
"""Numbers of connection IDs that a peer issued, of which a copy may still come. It issues one for each path
that it takes, as long as a connection lives; what brought one a thousand paths ago does not come any more."""
MAX_BARE_ACKS = 256
"""Packets with nothing but an ACK that are remembered as sent. Nobody has to acknowledge them, so on a
connection that only receives they would add up for as long as it lives. When one is acknowledged along with
others, what it acknowledged need not be acknowledged again: the latest of them are enough for that."""
QUIET_FRAMES = frozenset(
    (
        QuicFrameType.PADDING,
        QuicFrameType.PING,
        *range(QuicFrameType.STREAM_BASE, QuicFrameType.STREAM_BASE + 8),
        QuicFrameType.DATAGRAM,
        QuicFrameType.DATAGRAM_WITH_LENGTH,
    )
)
"""Frames that let nothing be sent beyond an acknowledgement, which has its timer."""
GRACE_ROUND_TRIPS = 1.25
"""After a switch nothing counts as lost until the old path's acknowledgements had time to come in."""

_FrameHandler = Callable[[QuicReceiveContext, int, Buffer], None]
_FrameHandlers = dict[int, tuple[_FrameHandler, frozenset[tls.Epoch]]]

_ALERTS = {
    "expired": tls.AlertDescription.certificate_expired,
    "not_yet_valid": tls.AlertDescription.certificate_expired,
    "foreign_ca": tls.AlertDescription.unknown_ca,
    "wrong_role": tls.AlertDescription.access_denied,
    "wrong_name": tls.AlertDescription.access_denied,
    "revoked": tls.AlertDescription.certificate_revoked,
    "missing": tls.AlertDescription.certificate_required,
}


def parse_header(datagram: bytes) -> QuicHeader:
    """Header of the first packet in a datagram; raises `RemoteProtocolError` if it is malformed."""
    try:
        return pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_BYTES)
    except ValueError as error:
        raise RemoteProtocolError("malformed", str(error)) from error


class _PeerRefused(tls.Alert):
    def __init__(self, error: AuthenticationError) -> None:
        # Only the word goes to the peer; the detail may name what it has no business to know.
        super().__init__(error.reason)
        self.description = _ALERTS.get(error.reason, tls.AlertDescription.bad_certificate)


class _MutualTls(tls.Context):
    """TLS that demands a certificate of the client and lets the owner judge either end's."""

    accept_peer: Callable[[_MutualTls], None]

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        if len(self._receive_buffer) + len(input_data) > MAX_HANDSHAKE_MESSAGE_BYTES:
            raise tls.AlertDecodeError("TLS message is too long")
        super().handle_message(input_data, output_buf)

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        # aioquic expects nothing but ValueError, and an unknown version is none.
        try:
            super()._set_peer_certificate(certificate)
        except x509.InvalidVersion as error:
            raise tls.AlertBadCertificate(str(error)) from error

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        if self._peer_certificate is None:
            self.accept_peer(self)

    def _server_handle_certificate_verify(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate_verify(input_buf)
        self.accept_peer(self)

    def _client_handle_certificate_verify(self, input_buf: Buffer) -> None:
        super()._client_handle_certificate_verify(input_buf)
        self.accept_peer(self)


class _PatientRecovery(QuicPacketRecovery):
    """Loss detection that holds its verdict while two paths deliver out of order."""

    grace_until = 0.0
    packets_lost = 0
    bare_acks: deque[tuple[QuicPacketSpace, int]]

    def on_packet_sent(self, *, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        super().on_packet_sent(packet=packet, space=space)
        if packet.in_flight:
            return
        self.bare_acks.append((space, packet.packet_number))
        if len(self.bare_acks) > MAX_BARE_ACKS:
            former_space, number = self.bare_acks.popleft()
            former_space.sent_packets.pop(number, None)

    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        if now >= self.grace_until:
            super()._detect_loss(now=now, space=space)
            return
        oldest = next(iter(space.sent_packets), None)
        is_suspect = oldest is not None and oldest < space.largest_acked_packet
        space.loss_time = self.grace_until if is_suspect else None

    def _on_packets_lost(
        self,
        *,
        congestion_event: bool = True,
        now: float,
        packets: Iterable[QuicSentPacket],
        persistent_congestion: bool = False,
        space: QuicPacketSpace,
    ) -> None:
        lost = list(packets)
        if congestion_event:
            # The loss of a bare ACK means nothing.
            self.packets_lost += sum(packet.in_flight for packet in lost)
        super()._on_packets_lost(
            congestion_event=congestion_event,
            now=now,
            packets=lost,
            persistent_congestion=persistent_congestion,
            space=space,
        )

    def forget_rtt(self) -> None:
        """Start over as on an unknown path: no samples, no backoff."""
        self._rtt_min = math.inf
        self._rtt_initialized = False
        self._pto_count = 0


class _CoarsePacer(QuicPacketPacer):
    """Pacing of bytes that never asks for timers finer than the event loop has.

    aioquic charges every packet as a full one, also those that only acknowledge, so that a few small ones
    hold up the next by a tenth of the round trip (RFC 9002 §7.7 paces bytes in flight, and no bare ACK).
    """

    builder: QuicPacketBuilder | None = None

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window, smoothed_rtt)
        self.bucket_max = max(self.bucket_max, 2 * PACING_QUANTUM_S)

    def update_after_send(self, now: float) -> None:
        builder = self.builder
        if self.packet_time is None or builder is None or builder._packet is None:
            return
        if builder._packet.in_flight:
            self.update_bucket(now=now)
            size = builder._buffer.tell() - builder._packet_start
            self.bucket_time = max(0.0, self.bucket_time - self.packet_time * size / self._max_datagram_size)


class _NoPacer(QuicPacketPacer):
    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Without a rate the pacer never holds anything back."""


class _RetainingCryptoPair(CryptoPair):
    """Packet protection that still reads the former key phase; see `KEY_RETENTION_S`."""

    former: CryptoContext | None = None
    updates = 0

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        try:
            return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        except KeyUnavailableError:
            raise
        except CryptoError:
            if self.former is None:
                raise
            return self.former.decrypt_packet(packet, encrypted_offset, expected_packet_number)[:3]

    def _update_key(self, trigger: str) -> None:
        self.former = copy.copy(self.recv)
        self.updates += 1
        super()._update_key(trigger)


class _ReportingSender(QuicStreamSender):
    on_change: Callable[[], None]
    reported = 0

    def on_data_delivery(self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        super().on_data_delivery(delivery, start, stop, fin)
        self.on_change()

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_reset_delivery(delivery)
        self.on_change()

    def forget_unsent(self) -> None:
        """Free what a reset keeps from ever being sent."""
        self._buffer.clear()
        self._buffer_start = self._buffer_stop


class _BoundedReceiver(QuicStreamReceiver):
    """Also of a TLS stream: what arrives behind a gap is found fast, and gaps are counted."""

    count_gaps: Callable[[int], None]

    def handle_frame(self, frame: QuicStreamFrame) -> StreamDataReceived | None:
        if frame.offset == self._buffer_start and not self._buffer:
            # What comes in order leaves no gap, and that is nearly every frame.
            return super().handle_frame(frame)
        before = len(self._ranges)
        event = super().handle_frame(frame)
        if len(self._ranges) != before:
            self.count_gaps(len(self._ranges) - before)
        return event


class _ReportingReceiver(_BoundedReceiver):
    on_change: Callable[[], None]

    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None:
        super().on_stop_sending_delivery(delivery)
        self.on_change()


class _ReadStream(QuicStream):
    """A stream that keeps its place, and so its share of the stream limit, until the reader is through."""

    is_drained: Callable[[], bool]

    @property
    def is_finished(self) -> bool:
        return self.receiver.is_finished and self.sender.is_finished and self.is_drained()


def _take_apart(stream: QuicStream) -> None:
    """Let it be freed as soon as nobody has it; what is acknowledged late changes nothing any more."""
    for half in (stream.sender, stream.receiver):
        cast("_ReportingSender | _ReportingReceiver", half).on_change = _nothing


def _nothing() -> None:
    """Nobody is told."""


class _StreamTable(dict[int, QuicStream]):
    """The open streams; iterating over the values yields only those whose limit has to be announced."""

    def __init__(
        self,
        *,
        opened: Callable[[QuicStream], None],
        discarded: Callable[[QuicStream], None],
        due: Callable[[], Iterator[QuicStream]],
    ) -> None:
        super().__init__()
        self._opened = opened
        self._discarded = discarded
        self._due = due

    def __setitem__(self, stream_id: int, stream: QuicStream) -> None:
        super().__setitem__(stream_id, stream)
        self._opened(stream)

    def pop(self, stream_id: int) -> QuicStream:  # type: ignore[override] # the one form aioquic uses
        stream = super().pop(stream_id)
        self._discarded(stream)
        return stream

    def values(self) -> Iterator[QuicStream]:  # type: ignore[override] # the one form aioquic uses
        return self._due()


class Engine(QuicConnection):
    """aioquic's connection with the additions named above; times in seconds, sizes in bytes."""

    tls: _MutualTls
    _loss: _PatientRecovery
    _QuicConnection__frame_handlers: _FrameHandlers

    def __init__(
        self,
        options: ConnectionOptions,
        *,
        is_client: bool,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        self._queue: ServiceQueue[QuicStream] = ServiceQueue(has_work=self._has_work, has_room=self._has_room)
        algorithm = constant_algorithm if options.inner_governs else capped_algorithm
        super().__init__(
            configuration=QuicConfiguration(
                alpn_protocols=[options.alpn],
                certificate=options.certificate,
                certificate_chain=list(options.certificate_chain),
                congestion_control_algorithm=algorithm(options.congestion_window_cap_bytes),
                connection_id_length=CONNECTION_ID_BYTES,
                idle_timeout=options.idle_timeout_s,
                initial_rtt=INITIAL_RTT_S,
                is_client=is_client,
                max_data=options.windows.connection_bytes,
                max_datagram_frame_size=MAX_DATAGRAM_FRAME_BYTES,
                max_datagram_size=options.max_datagram_size,
                max_stream_data=options.windows.initial_stream_bytes,
                private_key=options.private_key,
                server_name=options.server_name,
                supported_versions=[QuicProtocolVersion.VERSION_1],
                # The chain is judged by `verify_peer`; aioquic would ask for names that ours do not carry.
                verify_mode=ssl.CERT_NONE,
            ),
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self.options = options
        self.peer: object = None
        self.refusal: AuthenticationError | None = None
        self.closed_by_peer = False
        self.is_idle_timeout = False
        self.is_version_failure = False
        self.send_backlog_bytes = 0
        self.credits: dict[int, int] = {}
        self.windows = ReceiveWindows(options.windows)
        self.has_news = False
        """Whether a frame came, since this was last cleared, that is not one of `QUIET_FRAMES`."""
        handlers = self._QuicConnection__frame_handlers
        handlers.update(
            {
                frame_type: (partial(self._handle_news, handler), epochs)
                for frame_type, (handler, epochs) in handlers.items()
                if frame_type not in QUIET_FRAMES
            }
        )
        self._builder: QuicPacketBuilder | None = None
        self._protection: _RetainingCryptoPair | None = None
        self._gaps = 0
        self._due_limits: dict[int, QuicStream] = {}
        self._key_updates_seen = 0
        self._key_first_packet = 0
        self._key_quiet_until = 0.0
        self._key_retained_until = 0.0
        self._now = 0.0
        self._streams = _StreamTable(
            opened=self._stream_opened, discarded=self._stream_discarded, due=self._streams_due
        )
        self._ack_delay = options.ack_delay_s
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = options.windows.max_streams
        # Nothing here uses unidirectional streams, so a peer gets none.
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0
        self._loss.__class__ = _PatientRecovery
        self._loss.bare_acks = deque()
        self._loss._pacer.__class__ = _NoPacer if options.inner_governs else _CoarsePacer

    # Facts

    @property
    def is_started(self) -> bool:
        """Whether timers run: a client has connected, a server received something."""
        return self._close_at is not None

    @property
    def is_ending(self) -> bool:
        """Whether the connection closes or has closed."""
        return self._close_event is not None

    @property
    def is_closing(self) -> bool:
        """Whether this end closed and still answers late packets (RFC 9000 §10.2.1)."""
        return self._state is QuicConnectionState.CLOSING

    @property
    def is_terminated(self) -> bool:
        """Whether the closing period is over."""
        return self._state is QuicConnectionState.TERMINATED

    @property
    def is_peer_validated(self) -> bool:
        """Whether the peer's address is proved, so that any amount may be sent to it."""
        return self._network_paths[0].is_validated

    @property
    def is_amplifying(self) -> bool:
        """Whether more than three times what an unproved address sent went to it (RFC 9000 §8.1)."""
        return not self._network_paths[0].can_send(0)

    @property
    def close_details(self) -> tuple[int, bool, str]:
        """Error code, whether an application gave it, and the reason phrase; valid once `is_ending`."""
        event = cast("ConnectionTerminated", self._close_event)
        return event.error_code, event.frame_type is None, event.reason_phrase

    @property
    def is_handshake_complete(self) -> bool:
        """Whether the TLS handshake is over at this end."""
        return self._handshake_complete

    @property
    def is_handshake_confirmed(self) -> bool:
        """Whether the other end is known to have completed it, too (RFC 9001 §4.1.2)."""
        return self._handshake_confirmed

    @property
    def takes_datagrams(self) -> bool:
        """Whether the peer announced DATAGRAM frames of any size that we send."""
        return (self._remote_max_datagram_frame_size or 0) > self._max_datagram_size

    @property
    def max_datagram_payload(self) -> int:
        """Largest payload of a DATAGRAM frame that fits one packet."""
        return self._max_datagram_size - DATAGRAM_OVERHEAD_BYTES - len(self._peer_cid.cid)

    @property
    def idle_timeout(self) -> float:
        """Seconds without a packet after which the connection is given up: the smaller of both ends."""
        own = self.options.idle_timeout_s
        return own if self._remote_max_idle_timeout is None else min(own, self._remote_max_idle_timeout)

    @property
    def datagrams_pending(self) -> int:
        """DATAGRAM frames that wait for the congestion window or the pacer."""
        return len(self._datagrams_pending)

    @property
    def is_datagram_queue_blocked(self) -> bool:
        """Whether the first DATAGRAM frame in the queue fits no packet, since the peer's ID grew."""
        return bool(self._datagrams_pending) and len(self._datagrams_pending[0]) > self.max_datagram_payload

    @property
    def host_connection_ids(self) -> tuple[bytes, ...]:
        """Connection IDs that we chose and the peer may use."""
        return tuple(entry.cid for entry in self._host_cids)

    @property
    def can_open_stream(self) -> bool:
        """Whether the peer's stream limit allows one more."""
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    @property
    def rtt(self) -> tuple[float, float, float, float] | None:
        """Latest, smoothed, variation and minimum; None without a sample."""
        loss = self._loss
        if not loss._rtt_initialized:
            return None
        return loss._rtt_latest, loss._rtt_smoothed, loss._rtt_variance, loss._rtt_min

    @property
    def congestion(self) -> tuple[int, int, int]:
        """Congestion window, bytes in flight, packets declared lost so far."""
        return self._loss.congestion_window, self._loss.bytes_in_flight, self._loss.packets_lost

    @property
    def awaits_acknowledgement(self) -> bool:
        """Whether packets are out that the peer has to acknowledge.

        Bytes in flight do not tell: after a Retry, aioquic never takes back those of the first Initial.
        """
        return any(space.ack_eliciting_in_flight for space in self._loss.spaces)

    @property
    def packets_seen(self) -> tuple[int, int]:
        """1-RTT packets of the peer so far: those that were new, and those that came again.

        Both passed decryption, so none of them was made by a stranger; a stranger can only repeat one.
        """
        window = self._spaces[tls.Epoch.ONE_RTT].received_packets if self._spaces else None
        return (window.added, window.repeated) if isinstance(window, PacketNumberWindow) else (0, 0)

    @property
    def probe_backoff(self) -> int:
        """Probe timeouts in a row that nothing has answered; each doubles the next."""
        return self._loss._pto_count

    @property
    def largest_received(self) -> int:
        """Highest number of a 1-RTT packet of the peer, -1 before the first."""
        return self._spaces[tls.Epoch.ONE_RTT].largest_received_packet if self._spaces else -1

    @property
    def largest_acknowledged(self) -> int:
        """Highest number of a 1-RTT packet that the peer acknowledged."""
        return self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet if self._spaces else 0

    @property
    def next_packet_number(self) -> int:
        """Number of the next packet to be sent."""
        return self._packet_number

    @property
    def key_updates(self) -> int:
        """Key updates so far, whoever asked for them."""
        return self._key_updates_seen

    @property
    def stream_visits(self) -> int:
        """Streams that the send walk looked at so far."""
        return self._queue.visits

    def has_stream(self, stream_id: int) -> bool:
        """Whether the stream is open in any direction."""
        return stream_id in self._streams

    def can_write(self, stream_id: int) -> bool:
        """Whether bytes given to an open stream could still be sent."""
        sender = self._streams[stream_id].sender
        return sender._reset_error_code is None and not sender.is_finished

    def has_ended(self, stream_id: int) -> bool:
        """Whether our end of the stream was declared."""
        return self._streams[stream_id].sender._buffer_fin is not None

    def stream_backlog(self, stream_id: int) -> int:
        """Bytes given to the stream and not yet acknowledged."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    def may_send_after_receiving(self, now: float) -> bool:
        """Whether what came since `has_news` was cleared may have made something ready to be sent.

        It is meant for an established connection that had sent all it could before; whatever else holds it
        back then has a timer. In doubt it says yes: that costs a pass that finds nothing.
        """
        ack_at = self._spaces[tls.Epoch.ONE_RTT].ack_at
        return (
            self.has_news
            or (ack_at is not None and ack_at <= now)
            or (self._pacing_at is not None and self._pacing_at <= now)
            or len(self._queue) > 0
            or len(self._due_limits) > 0
            or self.windows.connection_limit > self._local_max_data.sent
            # The peer used another of our connection IDs, or another address.
            or len(self._retire_connection_ids) > 0
            or len(self._network_paths) > 1
            or not self._network_paths[0].is_validated
        )

    def hasten_acknowledgement(self, seen: int, largest: int, now: float) -> None:
        """Have an acknowledgement sent at once if packets since then came out of order, or some are missing.

        `seen` and `largest` are `packets_seen[0]` and `largest_received` of before. What is missing may be
        lost, and the peer can send it again the sooner it knows (RFC 9000 §13.2.1).
        """
        space = self._spaces[tls.Epoch.ONE_RTT]
        if space.ack_at is not None and self.packets_seen[0] - seen != self.largest_received - largest:
            space.ack_at = now

    # Verbs beyond aioquic's own

    def advance(self, now: float) -> None:
        """Note the time for what happens between two calls that carry it, and tend to the keys."""
        self._now = now
        pair = self._protection
        if pair is None:
            return
        if pair.updates != self._key_updates_seen:
            self._key_updates_seen = pair.updates
            self._key_first_packet = self._packet_number
            self._key_quiet_until = now + KEY_UPDATE_QUIET_S
            self._key_retained_until = now + KEY_RETENTION_S
        elif pair.former is not None and now >= self._key_retained_until:
            pair.former = None
        used = self._packet_number - self._key_first_packet
        if used >= self.options.key_update_after_packets and now >= self._key_quiet_until:
            self.request_key_update()

    def mark_validated(self) -> None:
        """Lift the anti-amplification limit: something else proved the peer's address (RFC 9000 §8.1)."""
        self._network_paths[0].is_validated = True

    def write_stream(self, stream_id: int, data: bytes, *, end: bool) -> None:
        """Append to a stream that `can_write`."""
        self.send_stream_data(stream_id, data, end)
        self.send_backlog_bytes += len(data)
        self._queue.append(self._streams[stream_id])

    def reset_writing(self, stream_id: int, code: int) -> None:
        """Give up sending on an open stream and free what waits."""
        self.reset_stream(stream_id, code)
        self.forget_unsent(stream_id)

    def stop_reading(self, stream_id: int, code: int) -> None:
        """Ask the peer to stop sending on an open stream; what it still sends is not delivered."""
        stream = self._streams[stream_id]
        self.windows.abandon(stream_id)
        if not stream.receiver.is_finished:
            self.stop_stream(stream_id, code)
        self._queue.append(stream)

    def forget_unsent(self, stream_id: int) -> None:
        """Free the send buffer of a stream that was reset by either end."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self.send_backlog_bytes -= self.stream_backlog(stream_id)
            cast("_ReportingSender", stream.sender).forget_unsent()
            self._queue.append(stream)

    def receiving_ended(self, stream_id: int) -> None:
        """Look at a stream again whose last byte or reset has arrived."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._queue.append(stream)

    def consume(self, stream_id: int, count: int) -> bool:
        """Note what the application consumed, and announce a higher limit when half a window is free.

        Returns whether there is something to send (or a stream to discard) because of it.
        """
        rtt = self._loss._rtt_smoothed if self._loss._rtt_initialized else INITIAL_RTT_S
        is_raised = self.windows.consume(stream_id, count, now=self._now, rtt=rtt)
        stream = self._streams.get(stream_id)
        if stream is not None and stream.receiver.is_finished:
            self._queue.append(stream)
            return True
        if stream is not None and is_raised and stream.receiver._final_size is None:
            stream.max_stream_data_local = self.windows.stream_limit(stream_id)
            self._due_limits[stream_id] = stream
            return True
        return self.windows.connection_limit > self._local_max_data.sent

    def set_max_datagram_size(self, size: int) -> int:
        """Change the packet size; returns how many waiting DATAGRAM frames had to be dropped for it."""
        self._max_datagram_size = size
        return self.drop_oversize_datagrams()

    def drop_oversize_datagrams(self) -> int:
        """Drop waiting DATAGRAM frames that fit no packet and would block the others for ever."""
        limit = self.max_datagram_payload
        fitting = [data for data in self._datagrams_pending if len(data) <= limit]
        dropped = len(self._datagrams_pending) - len(fitting)
        if dropped:
            self._datagrams_pending.clear()
            self._datagrams_pending.extend(fitting)
        return dropped

    def forget_rtt(self) -> None:
        """Drop all RTT samples and the probe timeout's backoff."""
        self._loss.forget_rtt()

    def probe(self) -> None:
        """Drop the probe timeout's backoff and send an ack-eliciting packet, whatever the window says.

        A congestion window full of packets that a dead path swallowed would hold back a mere PING.
        """
        self._loss._pto_count = 0
        self._probe_pending = True

    def forget_minimum_rtt(self) -> None:
        """Drop the minimum alone, once no more samples mix two paths."""
        self._loss._rtt_min = math.inf

    def hold_losses(self, old_rtt: float, now: float) -> None:
        """Declare nothing lost and change no keys while the old path empties."""
        self._loss.grace_until = now + GRACE_ROUND_TRIPS * old_rtt
        self._key_quiet_until = max(self._key_quiet_until, now + KEY_UPDATE_QUIET_S)

    def _on_ack_delivery(
        self, delivery: QuicDeliveryState, space: QuicPacketSpace, highest_acked: int
    ) -> None:
        # It forgets all numbers below the highest, also those which the slow path delivered since: they would
        # never be acknowledged. While paths overlap, the limit on ranges alone bounds what is remembered.
        if self._now >= self._loss.grace_until:
            super()._on_ack_delivery(delivery, space, highest_acked)

    # How mutual TLS is completed

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context = self.tls
        context.__class__ = _MutualTls
        context.accept_peer = self._accept_peer
        context._request_client_certificate = not self._is_client
        # A share is made for each group on offer, and these two are cheap.
        context._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]
        space = self._spaces[tls.Epoch.ONE_RTT]
        space.received_packets = PacketNumberWindow(self.options.duplicate_window_packets)  # type: ignore[assignment] # same shape
        self._protection = cast("_RetainingCryptoPair", self._cryptos[tls.Epoch.ONE_RTT])
        self._protection.__class__ = _RetainingCryptoPair
        for stream in self._crypto_streams.values():
            stream.receiver.__class__ = _BoundedReceiver
            self._bound_gaps(stream)

    def _bound_gaps(self, stream: QuicStream) -> None:
        receiver = cast("_BoundedReceiver", stream.receiver)
        receiver._ranges = ReceivedRanges()  # type: ignore[assignment] # same shape
        receiver.count_gaps = self._count_gaps

    def _count_gaps(self, change: int) -> None:
        self._gaps += change
        if self._gaps > MAX_GAPS:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "too many gaps"
            )

    def _accept_peer(self, context: _MutualTls) -> None:
        try:
            self.peer = self._judge(context._peer_certificate, context._peer_certificate_chain)
        except AuthenticationError as error:
            self.refusal = error
            raise _PeerRefused(error) from error

    def _judge(self, certificate: x509.Certificate | None, chain: list[x509.Certificate]) -> object:
        if certificate is None:
            raise AuthenticationError("missing", "the client sent no certificate")
        return self.options.verify_peer([certificate, *chain])

    # Which streams the send walk visits

    @property
    def _streams_queue(self) -> list[QuicStream]:
        return cast("list[QuicStream]", self._queue)

    @_streams_queue.setter
    def _streams_queue(self, _rebuilt: list[QuicStream]) -> None:
        self._queue.settle()

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        self._builder = builder
        cast("_CoarsePacer", self._loss._pacer).builder = builder
        space = self._spaces[tls.Epoch.ONE_RTT]
        due = space.ack_at
        if due is not None and (due <= now or self._may_ack_ride(builder, now)):
            # Strictly before now: what is due at this very instant aioquic lets the pacer hold up, and its
            # timer comes again at once.
            space.ack_at = math.nextafter(now, -math.inf)
        super()._write_application(builder, network_path, now)

    def _may_ack_ride(self, builder: QuicPacketBuilder, now: float) -> bool:
        """Whether a packet is about to be sent anyway that has room for an acknowledgement, too.

        aioquic writes none before it is due: a request and its answer would cost four packets instead of
        two (RFC 9000 §13.2.1 asks to bundle them).
        """
        if builder.max_flight_bytes is not None and builder.max_flight_bytes < MIN_STREAM_ROOM_BYTES:
            return False
        if self._loss._pacer.next_send_time(now=now) is not None:
            return False
        if self._datagrams_pending:
            return len(self._datagrams_pending[0]) + ACK_FRAME_CAPACITY <= self.max_datagram_payload
        return (
            len(self._due_limits) > 0
            or self.windows.connection_limit > self._local_max_data.sent
            or self._queue.has_any(self._has_frames)
        )

    def _has_room(self) -> bool:
        return self._builder is not None and self._builder.remaining_flight_space >= MIN_STREAM_ROOM_BYTES

    def _has_work(self, stream: QuicStream) -> bool:
        if self._has_frames(stream):
            return True
        # It is discarded by the walk.
        return stream.is_finished and stream.stream_id in self._streams and not stream.is_blocked

    def _has_frames(self, stream: QuicStream) -> bool:
        sender = stream.sender
        if stream.stream_id not in self._streams or stream.is_blocked:
            return False
        if stream.receiver.stop_pending or sender.reset_pending:
            return True
        if sender.buffer_is_empty:
            return False
        try:
            offset: int = sender._pending[0].start
        except IndexError:
            return sender._pending_eof
        credit = self._remote_max_data - self._remote_max_data_used
        return offset < sender.highest_offset + credit and offset < stream.max_stream_data_remote

    def _stream_opened(self, stream: QuicStream) -> None:
        stream_id = cast("int", stream.stream_id)
        sender = cast("_ReportingSender", stream.sender)
        on_change = partial(self._stream_changed, stream, stream_id, sender)
        stream.__class__ = _ReadStream
        cast("_ReadStream", stream).is_drained = partial(self.windows.is_drained, stream_id)
        stream.sender.__class__ = _ReportingSender
        sender.on_change = on_change
        stream.receiver.__class__ = _ReportingReceiver
        self._bound_gaps(stream)
        cast("_ReportingReceiver", stream.receiver).on_change = on_change
        self.windows.open(stream_id, self._now)

    def _stream_changed(self, stream: QuicStream, stream_id: int, sender: _ReportingSender) -> None:
        gained = sender._buffer_start - sender.reported
        if gained and sender._reset_error_code is None:
            sender.reported += gained
            self.send_backlog_bytes -= gained
            self.credits[stream_id] = self.credits.get(stream_id, 0) + gained
        self._queue.append(stream)

    def _stream_discarded(self, stream: QuicStream) -> None:
        stream_id = cast("int", stream.stream_id)
        self._due_limits.pop(stream_id, None)
        self._gaps -= len(stream.receiver._ranges)
        self.windows.close(stream_id, stream.receiver.highest_offset)
        _take_apart(stream)

    def release(self) -> None:
        """Undo what refers to itself, by which nothing works any more; see `Connection.release`."""
        for stream in dict.values(self._streams):
            _take_apart(stream)
        vars(self).clear()

    def _handle_max_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        before = self._remote_max_data
        super()._handle_max_data_frame(context, frame_type, buf)
        if self._remote_max_data_used == before:
            for stream in dict.values(self._streams):
                self._queue.append(stream)

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_new_connection_id_frame(context, frame_type, buf)
        numbers = self._peer_cid_sequence_numbers
        if len(numbers) > MAX_PEER_IDS_REMEMBERED:
            numbers.remove(min(numbers))

    def _handle_max_stream_data_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        self._queue.append(self._streams[stream_id])

    def _unblock_streams(self, is_unidirectional: bool) -> None:
        blocked = list(self._streams_blocked_bidi)
        super()._unblock_streams(is_unidirectional)
        for stream in blocked:
            self._queue.append(stream)

    # What flow control announces

    def _streams_due(self) -> Iterator[QuicStream]:
        return self._limits_to_write() if self._due_limits else iter(())

    def _limits_to_write(self) -> Iterator[QuicStream]:
        for stream in list(self._due_limits.values()):
            if not self._has_room():
                return
            yield stream

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:  # noqa: ARG002 - the interface
        data = self._local_max_data
        data.value = self.windows.connection_limit
        if data.value > data.sent:
            self._write_limit(builder, data)
        streams = self._local_max_streams_bidi
        # The peer hears of new streams when it has used up half of what it may open.
        if (streams.value - streams.sent) * 2 >= self.options.windows.max_streams or not streams.sent:
            self._write_limit(builder, streams)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        if builder.remaining_flight_space < CONNECTION_LIMIT_FRAME_CAPACITY:
            return
        buf = builder.start_frame(
            limit.frame_type,
            capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buf.push_uint_var(limit.value)
        limit.sent = limit.value

    def _write_stream_limits(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,  # noqa: ARG002 - the interface
        stream: QuicStream,
    ) -> None:
        stream_id = cast("int", stream.stream_id)
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(stream_id)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
        del self._due_limits[stream_id]

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        stream_id = cast("int", stream.stream_id)
        if delivery is not QuicDeliveryState.ACKED and stream_id in self._streams:
            self._due_limits[stream_id] = stream

    # What arrives

    def _handle_news(
        self, handler: _FrameHandler, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self.has_news = True
        handler(context, frame_type, buf)

    # Who ends the connection

    def _handle_connection_close_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self.closed_by_peer = self._close_event is None
        super()._handle_connection_close_frame(context, frame_type, buf)

    def _receive_version_negotiation_packet(self, header: QuicHeader, now: float) -> None:
        super()._receive_version_negotiation_packet(header, now)
        self.is_version_failure = self.is_terminated

    def handle_timer(self, now: float) -> None:
        """Act on the deadlines that are due; needs `is_started`."""
        self.is_idle_timeout = self._close_event is None
        super().handle_timer(now + DEADLINE_ROUNDING_S)
        self.is_idle_timeout = self.is_idle_timeout and self.is_terminated
