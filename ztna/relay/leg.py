"""A node's QUIC connection to one intermediate, the *relay leg*: connect, keep, lose, connect again.

The leg is usable in two steps: *connected* when both certificates are verified (signaling may then use its
stream), *up* when the intermediate has accepted it for our attachment (sealed packets may then flow). Packets
wait in a short queue per session while the connection is busy; when that overflows the oldest are dropped, as
a router would, and the end-to-end connection slows down.

Stream 0 carries leg control frames and stream 4 the signaling of carrier `quic`; what is in the frames is
somebody else's concern.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.quic import events
from ztna.quic.connection import Connection
from ztna.relay import frame
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION, MAX_SOJOURN_S, DropReason, FairScheduler
from ztna.signaling.backoff import Backoff
from ztna.signaling.framing import FrameDecoder, encode

CONTROL_STREAM = 0
SIGNALING_STREAM = 4

# Half of what a NAT with 30 s mappings allows, with room for one lost PING.
PING_INTERVAL_S = 10.0

# Unanswered for this long with something in flight: three times the largest plausible round trip.
DEAD_AFTER_S = 3.0

# The connection is fed only while fewer of its DATAGRAMs wait, so that it is our queue that decides on drops.
MAX_DATAGRAMS_PENDING = 16

# Codes of our CONNECTION_CLOSE.
CODE_NO_ERROR = 0
CODE_PROTOCOL_ERROR = 1


class LegState(Enum):
    """How far a leg has come."""

    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    UP = "up"


@dataclass(frozen=True, slots=True)
class LegTransmit:
    """UDP payloads for the intermediate, in order. The list grows until it is drained."""

    remote: TransportAddress
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class LegConnectionIds:
    """Local connection IDs that lead to this leg from now on, or no longer."""

    added: tuple[bytes, ...]
    retired: tuple[bytes, ...]
    forget_all: bool = False


@dataclass(frozen=True, slots=True)
class LegDialWanted:
    """Resolve the intermediate's name and call `handle_resolved`."""


@dataclass(frozen=True, slots=True)
class LegConnected:
    """Both ends are authenticated."""

    remote: TransportAddress


@dataclass(frozen=True, slots=True)
class LegLost:
    """The leg is gone. `retry_in_s` is None after `disconnect`."""

    reason: str
    detail: str
    is_authentication_failure: bool
    retry_in_s: float | None


@dataclass(frozen=True, slots=True)
class LegControlReceived:
    """One leg control frame."""

    body: bytes


@dataclass(frozen=True, slots=True)
class LegSignalingReceived:
    """Bytes of the signaling stream."""

    data: bytes


@dataclass(frozen=True, slots=True)
class LegPathChanged:
    """A session can, or can no longer, be reached through this leg."""

    session_id: bytes
    is_up: bool
    max_packet_bytes: int


@dataclass(frozen=True, slots=True)
class LegSealedReceived:
    """Relayed packets of one session, in order of arrival."""

    session_id: bytes
    packets: list[bytes]


LegEffect = (
    LegTransmit
    | LegConnectionIds
    | LegDialWanted
    | LegConnected
    | LegLost
    | LegControlReceived
    | LegSignalingReceived
    | LegPathChanged
    | LegSealedReceived
)


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


REDIALLED = "redialled"
"""Why a leg closed that comes back at once."""


class Leg:
    """One leg; `open_connection` makes the QUIC connection for each attempt."""

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        random: Random,
        *,
        max_queued_packets: int = MAX_QUEUED_PACKETS_PER_SESSION,
        max_sojourn_s: float = MAX_SOJOURN_S,
    ) -> None:
        """`max_queued_packets` and `max_sojourn_s` bound what waits per session."""
        self._open_connection = open_connection
        self._backoff = Backoff(random)
        self._state = LegState.IDLE
        self._retry_at: float | None = None
        self._connection: Connection | None = None
        self._remote: TransportAddress | None = None
        self._decoder = FrameDecoder()
        self._attempts = 0  # in a row that came to nothing
        self._attach_hello: bytes | None = None
        self._unanswered_hellos: deque[bytes] = deque()
        self._channels: dict[bytes, int] = {}
        self._sessions: dict[int, bytes] = {}
        self._queue: FairScheduler[bytes] = FairScheduler(
            max_packets_per_session=max_queued_packets, max_sojourn_s=max_sojourn_s
        )
        self._max_packet_bytes = 0
        self._silent_since: float | None = None
        self._ping_at: float | None = None
        self._effects: list[LegEffect] = []
        self.counters = LegCounters()

    @property
    def state(self) -> LegState:
        """How far the leg has come."""
        return self._state

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip to the intermediate, seconds."""
        rtt = self._connection.rtt if self._connection is not None else None
        return rtt.smoothed if rtt is not None else None

    @property
    def dropped(self) -> dict[str, int]:
        """Relayed packets dropped here, by reason."""
        return {
            **{reason.value: self._queue.drops[reason] for reason in DropReason},
            "unknown_channel": self.counters.unknown_channel,
            "no_channel": self.counters.no_channel,
            "malformed": self.counters.malformed,
        }

    def connect(self) -> None:
        """Use the leg from now on; one that is connected is told again to whoever asks after a crash."""
        if self._state is LegState.IDLE:
            self._dial()
        elif self._state in {LegState.CONNECTED, LegState.UP} and self._remote is not None:
            self._effects.append(LegConnected(self._remote))

    def disconnect(self, now: float) -> None:
        """Close the leg, stay closed, and forget the attachment with its channels."""
        if self._connection is not None:
            self._connection.close(CODE_NO_ERROR, "leaving")
            self._transmit(now)
        if self._state is not LegState.IDLE:
            self._lose("disconnected", "", now, is_authentication_failure=False, again=False)
        self._attach_hello = None
        self._attempts = 0
        for session_id in list(self._channels):
            self.release(session_id)

    def redial(self, now: float) -> None:
        """Connect anew at once, as what we show to the other end has changed; channels come with it."""
        if self._connection is None:
            return
        # Left without a word: a leg that closes takes the node's sessions along.
        self._lose(REDIALLED, "", now, is_authentication_failure=False, again=True)
        self._dial()

    def probe(self, now: float) -> None:
        """Send something at once that wants an answer: our address may be another one."""
        if self._connection is not None and self._connection.is_established:
            self._connection.reset_recovery_and_ping(now)
            self._transmit(now)

    def handle_resolved(self, addresses: list[TransportAddress], error: str, now: float) -> None:
        """Dial one of the addresses, each attempt the next, or try again later when there is none."""
        if self._state is not LegState.CONNECTING or self._connection is not None:
            return
        if not addresses:
            self._lose("unresolvable", error, now, is_authentication_failure=False, again=True)
            return
        # The first may be of a family that leads nowhere from here.
        self._remote = addresses[self._attempts % len(addresses)]
        self._decoder = FrameDecoder()
        self._connection = self._open_connection()
        self._connection.connect(now)
        for stream_id in (CONTROL_STREAM, SIGNALING_STREAM):
            if self._connection.open_stream() != stream_id:
                raise LocalProtocolError("the streams of a leg are numbered in the order of their opening")
        self._silent_since = now
        self._finish(now)

    def handle_datagrams(self, datagrams: Iterable[bytes], now: float) -> None:
        """Take what arrived for this leg's connection IDs."""
        if self._connection is not None:
            self._silent_since = None
            self._connection.receive(datagrams, now)
            self._finish(now)

    def handle_timeout(self, now: float) -> None:
        """Dial again, notice death, keep the NAT mapping alive, drive QUIC's own timers."""
        if self._state is LegState.WAITING and self._retry_at is not None and now >= self._retry_at:
            self._dial()
            return
        connection = self._connection
        if connection is None:
            return
        if self._silent_since is not None and now >= self._silent_since + DEAD_AFTER_S:
            self._lose("no_answer", "", now, is_authentication_failure=False, again=True)
            return
        if self._ping_at is not None and now >= self._ping_at:
            self._ping_at = now + PING_INTERVAL_S
            connection.ping(now)
        connection.handle_timeout(now)
        self._finish(now)

    def next_deadline(self) -> float | None:
        """The earliest of what `handle_timeout` looks after."""
        if self._state is LegState.WAITING:
            return self._retry_at
        if self._connection is None:
            return None
        deadlines = [self._connection.next_deadline(), self._ping_at]
        if self._silent_since is not None:
            deadlines.append(self._silent_since + DEAD_AFTER_S)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def drain(self) -> list[LegEffect]:
        """Hand over effects, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def present_attachment(self, hello: bytes, now: float) -> None:
        """Say, now and after each reconnection, to which attachment the leg belongs.

        Channels belong to an attachment, so those of a former one are forgotten. And the intermediate is
        there: a leg that waits to be dialled again is dialled now.
        """
        self._attach_hello = hello
        for session_id in list(self._channels):
            self.release(session_id)
        if self._state in {LegState.CONNECTED, LegState.UP}:
            self._state = LegState.CONNECTED
            self._send_hello(hello)
            self._finish(now)
        elif self._state is LegState.WAITING:
            self._dial()

    def handle_accepted(self, max_packet_bytes: int, now: float) -> bool:
        """The intermediate bound the leg to an attachment; True when it is ours of this moment."""
        if not self._unanswered_hellos:
            return False
        hello = self._unanswered_hellos.popleft()
        if self._state is not LegState.CONNECTED or hello != self._attach_hello:
            return False
        if max_packet_bytes < frame.DEFAULT_MAX_PACKET_BYTES:
            self._abandon("packet_size_too_small", now)
            return False
        self._state = LegState.UP
        self._max_packet_bytes = frame.DEFAULT_MAX_PACKET_BYTES
        for session_id in self._channels:
            self._announce(session_id, is_up=True)
        return True

    def handle_rejected(self) -> None:
        """The intermediate does not know an attachment, ours or a former one: a new one will be presented.

        The connection stays, since it may be what carries the signaling that brings the new attachment.
        """
        if self._unanswered_hellos and self._unanswered_hellos.popleft() == self._attach_hello:
            self._attach_hello = None

    def bind(self, session_id: bytes, channel: int) -> None:
        """Use this channel (1 to 65535) for a session, in place of a former one."""
        former = self._sessions.get(channel)
        if former is not None:
            self.release(former)
        self.release(session_id)
        self._channels[session_id] = channel
        self._sessions[channel] = session_id
        if self._state is LegState.UP:
            self._announce(session_id, is_up=True)

    def release(self, session_id: bytes) -> None:
        """Forget a session's channel."""
        channel = self._channels.pop(session_id, None)
        if channel is not None:
            self._sessions.pop(channel, None)
            self._queue.discard(session_id)
            if self._state is LegState.UP:
                self._announce(session_id, is_up=False)

    def send_sealed(self, session_id: bytes, packets: Sequence[bytes], now: float) -> None:
        """Relay packets of a session; without a channel they are dropped and counted."""
        if self._state is not LegState.UP or session_id not in self._channels:
            self.counters.no_channel += len(packets)
            return
        # In portions, so that the queue overflows only when the connection really cannot keep up.
        for start in range(0, len(packets), MAX_DATAGRAMS_PENDING):
            for packet in packets[start : start + MAX_DATAGRAMS_PENDING]:
                self._queue.enqueue(session_id, packet, now)
            self._transmit(now)
        self._take_events(now)

    def send_signaling(self, data: bytes, now: float) -> None:
        """Write to the signaling stream; dropped while there is no connection (its loss is reported)."""
        if self._connection is not None and self._state in {LegState.CONNECTED, LegState.UP}:
            self._connection.send_stream(SIGNALING_STREAM, data)
            self._finish(now)

    def _dial(self) -> None:
        self._state = LegState.CONNECTING
        self._retry_at = None
        self._effects.append(LegDialWanted())

    def _finish(self, now: float) -> None:
        self._take_events(now)
        self._transmit(now)
        # Connection IDs are issued while transmitting; a packet for one of them may be the next to arrive.
        self._take_events(now)

    def _take_events(self, now: float) -> None:
        connection = self._connection
        if connection is None:
            return
        sealed: dict[bytes, list[bytes]] = {}
        for event in connection.events():
            match event:
                case events.DatagramReceived():
                    self._take_datagram(event.data, sealed)
                case events.StreamDataReceived():
                    connection.consume(event.stream_id, len(event.data))
                    self._take_stream(event.stream_id, event.data, now)
                case events.ConnectionIdsChanged():
                    self._effects.append(LegConnectionIds(event.added, event.retired))
                case events.PeerAccepted() | events.HandshakeCompleted():
                    # What we say now travels with the end of the handshake, a round trip earlier.
                    self._handle_connected(now)
                case events.ConnectionClosed():
                    self._deliver(sealed)
                    self._transmit(now)  # the peer should learn why, if it is we who close
                    self._lose(
                        event.reason,
                        event.message,
                        now,
                        is_authentication_failure=event.is_authentication_failure,
                        again=True,
                    )
                    return
                case _:
                    pass
            if self._connection is not connection:
                return
        self._deliver(sealed)

    def _deliver(self, sealed: dict[bytes, list[bytes]]) -> None:
        self._effects.extend(LegSealedReceived(session_id, packets) for session_id, packets in sealed.items())

    def _take_datagram(self, data: bytes, sealed: dict[bytes, list[bytes]]) -> None:
        try:
            channel, packet = frame.unpack(data)
        except RemoteProtocolError:
            self.counters.malformed += 1
            return
        session_id = self._sessions.get(channel)
        if session_id is None:
            self.counters.unknown_channel += 1
            return
        self.counters.packets_received += 1
        self.counters.bytes_received += len(packet)
        sealed.setdefault(session_id, []).append(packet)

    def _take_stream(self, stream_id: int, data: bytes, now: float) -> None:
        if stream_id == SIGNALING_STREAM:
            self._effects.append(LegSignalingReceived(data))
            return
        if stream_id != CONTROL_STREAM:
            self._abandon("unexpected_stream", now)
            return
        try:
            for body in self._decoder.feed(data):
                self._effects.append(LegControlReceived(body))
        except RemoteProtocolError as error:
            self._abandon(error.reason, now)

    def _abandon(self, reason: str, now: float) -> None:
        if self._connection is not None:
            self._connection.close(CODE_PROTOCOL_ERROR, reason)
            self._transmit(now)
            self._lose(reason, "", now, is_authentication_failure=False, again=True)

    def handle_protocol_error(self, reason: str, now: float) -> None:
        """Close a leg whose control frames make no sense, and try again later."""
        self._abandon(reason, now)

    def _handle_connected(self, now: float) -> None:
        if self._remote is None or self._state is not LegState.CONNECTING:
            return
        self._state = LegState.CONNECTED
        self._attempts = 0
        self._backoff.handle_connected(now)
        self._ping_at = now + PING_INTERVAL_S
        self._effects.append(LegConnected(self._remote))
        if self._attach_hello is not None:
            self._send_hello(self._attach_hello)

    def _send_hello(self, hello: bytes) -> None:
        if self._connection is not None:
            self._connection.send_stream(CONTROL_STREAM, encode(hello))
            self._unanswered_hellos.append(hello)

    def _transmit(self, now: float) -> None:
        connection, remote = self._connection, self._remote
        if connection is None or remote is None:
            return
        datagrams: list[bytes] = []
        while True:
            is_fed = self._feed(connection, now)
            datagrams += connection.transmit(now)
            # Once more only for what is left: a call with nothing to send costs a quarter of a packet.
            if not is_fed or not self._queue or connection.datagrams_pending >= MAX_DATAGRAMS_PENDING:
                break
        last = self._effects[-1] if self._effects else None
        if isinstance(last, LegTransmit):
            last.datagrams.extend(datagrams)
        elif datagrams:
            self._effects.append(LegTransmit(remote, datagrams))
        if not connection.awaits_acknowledgement:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now

    def _feed(self, connection: Connection, now: float) -> bool:
        """Move packets from the queue into the connection; False when none was moved."""
        if self._state is not LegState.UP:
            return False
        taken = self._queue.take(max(0, MAX_DATAGRAMS_PENDING - connection.datagrams_pending), now)
        for session_id, packet in taken:
            connection.send_datagram(frame.pack(self._channels[session_id], packet))
            self.counters.packets_sent += 1
            self.counters.bytes_sent += len(packet)
        return bool(taken)

    def _lose(
        self, reason: str, detail: str, now: float, *, is_authentication_failure: bool, again: bool
    ) -> None:
        if self._state is LegState.UP:
            for session_id in self._channels:
                self._announce(session_id, is_up=False)
                self._queue.discard(session_id)
        if self._state is LegState.CONNECTING:
            self._attempts += 1
        self._connection = None
        self._remote = None
        self._unanswered_hellos.clear()
        self._silent_since = None
        self._ping_at = None
        self._effects.append(LegConnectionIds((), (), forget_all=True))
        retry_in_s: float | None = None
        if again:
            self._backoff.handle_lost(now, is_clean=False)
            retry_in_s = self._backoff.next_delay_s(now)
            self._retry_at = now + retry_in_s
            self._state = LegState.WAITING
        else:
            self._state = LegState.IDLE
            self._retry_at = None
        self._effects.append(LegLost(reason, detail, is_authentication_failure, retry_in_s))

    def _announce(self, session_id: bytes, *, is_up: bool) -> None:
        self._effects.append(LegPathChanged(session_id, is_up, self._max_packet_bytes))
