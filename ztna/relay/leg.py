"""A node's way to one intermediate, the *relay leg*: connect, keep, lose, connect again.

The leg is usable in two steps: *connected* when both certificates are verified (signaling may then use the
QUIC connection), *up* when the intermediate has accepted it for our attachment (sealed packets may flow).
Packets wait in a short queue per session while the carrier is busy; when that overflows the oldest are
dropped, as a router would, and the end-to-end connection slows down.

There are two carriers. The QUIC connection is dialled first, and again for as long as the leg is in use.
Where it has no answer a gRPC stream is opened, and left again when the intermediate has accepted the QUIC
connection. The intermediate relays through whichever said hello last; so that both ends agree on which that
is, a leg never says hello on one carrier while the other's hello is unanswered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.quic.connection import Connection
from ztna.relay import frame
from ztna.relay.carrier import Carrier, CarrierKind, CarrierMode, LegState
from ztna.relay.leg_effects import LegConnected, LegEffect, LegPathChanged, LegSealedReceived
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION, MAX_SOJOURN_S, DropReason, FairScheduler
from ztna.relay.quic_carrier import NO_ANSWER, QuicCarrier
from ztna.relay.stream_carrier import StreamCarrier

# QUIC answers within a second on any path that a person would want to work over; half of that more for one
# lost packet. Before that the stream would only race it.
FALLBACK_AFTER_S = 1.5

# While the gRPC stream relays: often enough for somebody who moved to a better network, and a handshake a
# minute costs nothing.
QUIC_RETRY_S = 60.0

# One per attachment, and each is answered within a round trip: an intermediate that says nothing to so many
# of them accepts none.
MAX_UNANSWERED_HELLOS = 16

QUIC_ANSWERED = "quic_answered"
"""Why a stream ends that is needed no more."""


@dataclass(slots=True)
class LegCounters:
    """What went through, and what did not, since the start."""

    packets_sent: int = 0
    packets_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    unknown_channel: int = 0
    no_channel: int = 0
    malformed: int = 0


class Leg:
    """One leg; `open_connection` makes the QUIC connection for each attempt."""

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        random: Random,
        *,
        max_queued_packets: int = MAX_QUEUED_PACKETS_PER_SESSION,
        max_sojourn_s: float = MAX_SOJOURN_S,
        mode: CarrierMode = CarrierMode.QUIC,
    ) -> None:
        """`max_queued_packets` and `max_sojourn_s` bound what waits per session."""
        self._effects: list[LegEffect] = []
        self._mode = mode
        self._quic = QuicCarrier(open_connection, random, self, self._effects)
        self._stream = StreamCarrier(random, self, self._effects)
        self._active: Carrier | None = None
        self._fallback_at: float | None = None
        self._attach_hello: bytes | None = None
        self._channels: dict[bytes, int] = {}
        self._sessions: dict[int, bytes] = {}
        self._queue: FairScheduler[bytes] = FairScheduler(
            max_packets_per_session=max_queued_packets, max_sojourn_s=max_sojourn_s
        )
        self.counters = LegCounters()

    @property
    def state(self) -> LegState:
        """How far the leg has come."""
        if self._active is not None:
            return LegState.UP
        return self._stream.state if self._mode is CarrierMode.GRPC else self._quic.state

    @property
    def carrier(self) -> CarrierKind | None:
        """What carries packets now; None while nothing does."""
        return self._active.kind if self._active is not None else None

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip to the intermediate, seconds."""
        return (self._active or self._quic).rtt_s

    @property
    def dropped(self) -> dict[str, int]:
        """Relayed packets dropped here, by reason."""
        return {
            **{reason.value: self._queue.drops[reason] for reason in DropReason},
            "unknown_channel": self.counters.unknown_channel,
            "no_channel": self.counters.no_channel,
            "malformed": self.counters.malformed,
        }

    def connect(self, now: float) -> None:
        """Use the leg from now on; one that is connected is told again to whoever asks after a crash."""
        if self._mode is CarrierMode.GRPC:
            self._stream.dial(now)
        elif self._quic.state is LegState.IDLE:
            self._quic.dial()
            self._want_fallback(now + FALLBACK_AFTER_S)
        elif self._quic.is_connected and self._quic.remote is not None:
            self._effects.append(LegConnected(self._quic.remote))

    def disconnect(self, now: float) -> None:
        """Close the leg, stay closed, and forget the attachment with its channels."""
        self._fallback_at = None
        self._stream.disconnect()
        self._quic.disconnect(now)
        self._attach_hello = None
        for session_id in list(self._channels):
            self.release(session_id)

    def redial(self, now: float) -> None:
        """Connect anew at once, as what we show to the other end has changed; channels come with it."""
        self._quic.redial(now)
        self._stream.redial(now)

    def probe(self, now: float) -> None:
        """Send something at once that wants an answer: our address may be another one.

        Another network may let UDP pass, too.
        """
        self._quic.probe(now)
        self._stream.probe(now)
        if self._active is self._stream:
            self._quic.dial_now()

    def handle_resolved(self, addresses: list[TransportAddress], error: str, now: float) -> None:
        """Dial one of the addresses, each attempt the next, or try again later when there is none."""
        self._quic.handle_resolved(addresses, error, now)

    def handle_datagrams(self, datagrams: Iterable[bytes], now: float) -> None:
        """Take what arrived for this leg's connection IDs."""
        self._quic.handle_datagrams(datagrams, now)

    def handle_stream_opened(self, now: float) -> None:
        """The intermediate accepted the stream that was wanted."""
        self._stream.handle_opened(now)

    def handle_stream_frame(
        self, control: Sequence[bytes], datagrams: Sequence[bytes], ping: int, pong: int, now: float
    ) -> None:
        """One frame of the stream arrived."""
        self._stream.handle_frame(control, datagrams, ping, pong, now)

    def handle_stream_written(self, now: float) -> None:
        """A frame with datagrams is on its way."""
        self._stream.handle_written(now)

    def handle_stream_ended(
        self, reason: str, detail: str, now: float, *, is_authentication_failure: bool
    ) -> None:
        """The stream ended, or could not be opened; not told of one that we wanted closed."""
        self._stream.handle_ended(reason, detail, now, is_authentication_failure=is_authentication_failure)

    def handle_timeout(self, now: float) -> None:
        """Look after both carriers, and turn to the second."""
        self._quic.handle_timeout(now)
        self._stream.handle_timeout(now)
        if self._fallback_at is not None and now >= self._fallback_at:
            self._fallback_at = None
            self._stream.dial(now)

    def next_deadline(self) -> float | None:
        """The earliest of what `handle_timeout` looks after."""
        deadlines = (self._quic.next_deadline(), self._stream.next_deadline(), self._fallback_at)
        return min((each for each in deadlines if each is not None), default=None)

    def drain(self) -> list[LegEffect]:
        """Hand over effects, oldest first."""
        effects = self._effects.copy()
        self._effects.clear()  # the carriers write into the same list
        return effects

    def present_attachment(self, hello: bytes, now: float) -> None:
        """Say, now and after each reconnection, to which attachment the leg belongs.

        Channels belong to an attachment, so those of a former one are forgotten. And the intermediate is
        there: a leg that waits to be dialled again is dialled now.
        """
        self._attach_hello = hello
        for session_id in list(self._channels):
            self.release(session_id)
        self._active = None
        for carrier in (self._quic, self._stream):
            if len(carrier.unanswered_hellos) >= MAX_UNANSWERED_HELLOS:
                carrier.abandon(NO_ANSWER, now)
        if self._quic.is_connected:
            # Whatever the stream still says is about a former attachment.
            self._stream.disconnect()
            self._quic.state = LegState.CONNECTED
            self._quic.send_hello(hello)
            self._quic.finish(now)
            return
        if self._stream.is_open:
            self._stream.state = LegState.CONNECTED
            self._stream.send_hello(hello)
        else:
            self._stream.dial_now(now)
        self._quic.dial_now()

    def handle_accepted(
        self, max_packet_bytes: int, now: float, kind: CarrierKind = CarrierKind.QUIC
    ) -> bool:
        """The intermediate bound the leg to an attachment; True when it is ours of this moment."""
        carrier = self._carrier(kind)
        if not carrier.unanswered_hellos:
            return False
        hello = carrier.unanswered_hellos.popleft()
        is_ours = carrier.state is LegState.CONNECTED and hello == self._attach_hello
        if is_ours and max_packet_bytes < frame.DEFAULT_MAX_PACKET_BYTES:
            carrier.abandon("packet_size_too_small", now)
            is_ours = False
        if is_ours:
            self._use(carrier)
        if carrier is self._stream:
            self._greet_over_quic(now)
        return is_ours

    def handle_rejected(self, now: float, kind: CarrierKind = CarrierKind.QUIC) -> None:
        """The intermediate does not know an attachment, ours or a former one: a new one will be presented.

        The connection stays, since it may be what carries the signaling that brings the new attachment.
        """
        carrier = self._carrier(kind)
        if carrier.unanswered_hellos and carrier.unanswered_hellos.popleft() == self._attach_hello:
            self._attach_hello = None
        if carrier is self._stream:
            self._greet_over_quic(now)

    def handle_protocol_error(self, reason: str, now: float, kind: CarrierKind = CarrierKind.QUIC) -> None:
        """Close a carrier whose control frames make no sense, and try again later."""
        self._carrier(kind).abandon(reason, now)

    def bind(self, session_id: bytes, channel: int) -> None:
        """Use this channel (1 to 65535) for a session, in place of a former one."""
        former = self._sessions.get(channel)
        if former is not None:
            self.release(former)
        self.release(session_id)
        self._channels[session_id] = channel
        self._sessions[channel] = session_id
        if self._active is not None:
            self._announce(session_id, is_up=True)

    def release(self, session_id: bytes) -> None:
        """Forget a session's channel."""
        channel = self._channels.pop(session_id, None)
        if channel is not None:
            self._sessions.pop(channel, None)
            self._queue.discard(session_id)
            if self._active is not None:
                self._announce(session_id, is_up=False)

    def send_sealed(self, session_id: bytes, packets: Sequence[bytes], now: float) -> None:
        """Relay packets of a session; without a channel they are dropped and counted."""
        carrier = self._active
        if carrier is None or session_id not in self._channels:
            self.counters.no_channel += len(packets)
            return
        # In portions, so that the queue overflows only when the carrier really cannot keep up.
        for start in range(0, len(packets), carrier.portion):
            for packet in packets[start : start + carrier.portion]:
                self._queue.enqueue(session_id, packet, now)
            carrier.transmit(now)
        self._quic.take_events(now)

    def send_signaling(self, data: bytes, now: float) -> None:
        """Write to the signaling stream; dropped while there is no QUIC connection (its loss is reported)."""
        self._quic.send_signaling(data, now)

    # For the carriers

    def take_packets(self, carrier: Carrier, room: int, now: float) -> list[bytes]:
        """Hand over up to `room` packets with their channels; none unless this carrier is the one in use."""
        if carrier is not self._active or not len(self._queue):
            return []
        taken = self._queue.take(room, now)
        self.counters.packets_sent += len(taken)
        self.counters.bytes_sent += sum(len(packet) for _, packet in taken)
        return [frame.pack(self._channels[session_id], packet) for session_id, packet in taken]

    def carrier_connected(self, carrier: Carrier) -> None:
        """Say to which attachment the leg belongs, as soon as nothing else is on its way."""
        if carrier is self._quic:
            self._fallback_at = None
            if self._stream.unanswered_hellos:
                return  # its answer comes first
            if self._active is not self._stream:
                self._stream.disconnect()
        if self._attach_hello is not None:
            carrier.send_hello(self._attach_hello)

    def carrier_received(self, datagrams: list[bytes]) -> None:
        """Sort what arrived by session."""
        sealed: dict[bytes, list[bytes]] = {}
        for datagram in datagrams:
            try:
                channel, packet = frame.unpack(datagram)
            except RemoteProtocolError:
                self.counters.malformed += 1
                continue
            session_id = self._sessions.get(channel)
            if session_id is None:
                self.counters.unknown_channel += 1
                continue
            self.counters.packets_received += 1
            self.counters.bytes_received += len(packet)
            sealed.setdefault(session_id, []).append(packet)
        self._effects.extend(LegSealedReceived(session_id, packets) for session_id, packets in sealed.items())

    def carrier_down(self, carrier: Carrier) -> None:
        """No session can be reached, unless another carrier took over."""
        if carrier is not self._active:
            return
        self._active = None
        self._quic.least_retry_s = 0.0
        for session_id in self._channels:
            self._announce(session_id, is_up=False)
            self._queue.discard(session_id)

    def carrier_lost(self, carrier: Carrier, reason: str, now: float, *, is_refusal: bool) -> None:
        """Turn to the other carrier."""
        if carrier is self._stream:
            self._quic.dial_now()
            self._greet_over_quic(now)
        elif is_refusal:
            self._fallback_at = None  # the stream would be refused for the same reason
        else:
            # What was silent until it was given up has had its time.
            self._want_fallback(now if reason == NO_ANSWER else now + FALLBACK_AFTER_S)

    # Inside

    def _carrier(self, kind: CarrierKind) -> Carrier:
        return self._quic if kind is CarrierKind.QUIC else self._stream

    def _want_fallback(self, at: float) -> None:
        if self._mode is CarrierMode.AUTO and self._stream.state is LegState.IDLE:
            self._fallback_at = at if self._fallback_at is None else min(at, self._fallback_at)

    def _greet_over_quic(self, now: float) -> None:
        """Say on QUIC what had to wait for the stream."""
        quic = self._quic
        waited = quic.state is LegState.CONNECTED and not quic.unanswered_hellos
        if waited and not self._stream.unanswered_hellos:
            self.carrier_connected(quic)
            quic.finish(now)

    def _use(self, carrier: Carrier) -> None:
        """Send through this carrier from now on; the sessions hear of it as of a leg that came back."""
        carrier.state = LegState.UP
        self._active = carrier
        self._quic.least_retry_s = 0.0 if carrier is self._quic else QUIC_RETRY_S
        if carrier is self._quic:
            self._stream.disconnect(QUIC_ANSWERED)
        for session_id in self._channels:
            self._announce(session_id, is_up=True)

    def _announce(self, session_id: bytes, *, is_up: bool) -> None:
        self._effects.append(LegPathChanged(session_id, is_up, frame.DEFAULT_MAX_PACKET_BYTES))
