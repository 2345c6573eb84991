"""The QUIC connection of a relay leg: dialled, kept alive, noticed when it is dead, dialled again.

Stream 0 carries leg control frames and stream 4 the signaling of carrier `quic`; what is in the frames is
somebody else's concern. Sealed packets travel in DATAGRAM frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.quic import events
from ztna.quic.connection import Connection
from ztna.relay.carrier import CarrierKind, CarrierOwner, LegState
from ztna.relay.leg_effects import (
    LegConnected,
    LegConnectionIds,
    LegControlReceived,
    LegDialWanted,
    LegEffect,
    LegLost,
    LegSignalingReceived,
    LegTransmit,
)
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

REDIALLED = "redialled"
"""Why a leg closed that comes back at once."""

NO_ANSWER = "no_answer"
"""Why a carrier is lost whose packets lead nowhere."""


class QuicCarrier:
    """`open_connection` makes the QUIC connection for each attempt."""

    kind = CarrierKind.QUIC
    portion = MAX_DATAGRAMS_PENDING

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        random: Random,
        owner: CarrierOwner,
        effects: list[LegEffect],
    ) -> None:
        self._open_connection = open_connection
        self._owner = owner
        self._effects = effects
        self._backoff = Backoff(random)
        self._retry_at: float | None = None
        self._connection: Connection | None = None
        self._decoder = FrameDecoder()
        # In a row that came to nothing. Those that were cut short count: an agent with several intermediates
        # leaves each of them before an address of a dead family has had its time.
        self._attempts = 0
        self._addresses = 1
        self._silent_since: float | None = None
        self._ping_at: float | None = None
        self.state = LegState.IDLE
        self.unanswered_hellos: deque[bytes] = deque()
        self.remote: TransportAddress | None = None
        self.least_retry_s = 0.0
        """The next round of addresses is at least so far away, seconds, whatever the back-off."""

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip to the intermediate, seconds."""
        rtt = self._connection.rtt if self._connection is not None else None
        return rtt.smoothed if rtt is not None else None

    @property
    def is_connected(self) -> bool:
        """Both ends are authenticated."""
        return self.state in {LegState.CONNECTED, LegState.UP}

    def dial(self) -> None:
        """Connect, unless that is under way."""
        if self.state in {LegState.IDLE, LegState.WAITING}:
            self.state = LegState.CONNECTING
            self._retry_at = None
            self._effects.append(LegDialWanted())

    def dial_now(self) -> None:
        """Do not wait for the next attempt any longer."""
        if self.state is LegState.WAITING:
            self.dial()

    def disconnect(self, now: float) -> None:
        """Close the connection and stay closed."""
        if self._connection is not None:
            self._connection.close(CODE_NO_ERROR, "leaving")
            self.transmit(now)
        if self.state is not LegState.IDLE:
            self._lose("disconnected", "", now, is_authentication_failure=False, again=False)

    def redial(self, now: float) -> None:
        """Connect anew at once, without sitting out a wait; nothing while no connection is wanted."""
        if self._connection is None:
            self.dial_now()
            return
        # Left without a word: a leg that closes takes the node's sessions along.
        self._lose(REDIALLED, "", now, is_authentication_failure=False, again=True)
        self.dial()

    def probe(self, now: float) -> None:
        """Send something at once that wants an answer."""
        if self._connection is not None and self._connection.is_established:
            self._connection.reset_recovery_and_ping(now)
            self.transmit(now)

    def handle_resolved(self, addresses: list[TransportAddress], error: str, now: float) -> None:
        """Dial one of the addresses, each attempt the next, or try again later when there is none."""
        if self.state is not LegState.CONNECTING or self._connection is not None:
            return
        if not addresses:
            self._lose("unresolvable", error, now, is_authentication_failure=False, again=True)
            return
        # The first may be of a family that leads nowhere from here.
        self._addresses = len(addresses)
        self.remote = addresses[self._attempts % len(addresses)]
        self._decoder = FrameDecoder()
        self._connection = self._open_connection()
        self._connection.connect(now)
        for stream_id in (CONTROL_STREAM, SIGNALING_STREAM):
            if self._connection.open_stream() != stream_id:
                raise LocalProtocolError("the streams of a leg are numbered in the order of their opening")
        self._silent_since = now
        self.finish(now)

    def handle_datagrams(self, datagrams: Iterable[bytes], now: float) -> None:
        """Take what arrived for this connection's IDs."""
        if self._connection is not None:
            self._silent_since = None
            connection = self._connection
            may_send = connection.receive(datagrams, now)
            if self.take_events(now) or may_send:
                self._flush(now)
            elif connection is self._connection:
                self._watch_silence(connection, now)

    def handle_timeout(self, now: float) -> None:
        """Dial again, notice death, keep the NAT mapping alive, drive QUIC's own timers."""
        if self.state is LegState.WAITING and self._retry_at is not None and now >= self._retry_at:
            self.dial()
            return
        connection = self._connection
        if connection is None:
            return
        if self._silent_since is not None and now >= self._silent_since + DEAD_AFTER_S:
            self._lose(NO_ANSWER, "", now, is_authentication_failure=False, again=True)
            return
        if self._ping_at is not None and now >= self._ping_at:
            self._ping_at = now + PING_INTERVAL_S
            connection.ping(now)
        connection.handle_timeout(now)
        self.finish(now)

    def next_deadline(self) -> float | None:
        """The earliest of what `handle_timeout` looks after."""
        if self.state is LegState.WAITING:
            return self._retry_at
        if self._connection is None:
            return None
        deadlines = [self._connection.next_deadline(), self._ping_at]
        if self._silent_since is not None:
            deadlines.append(self._silent_since + DEAD_AFTER_S)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def send_hello(self, hello: bytes) -> None:
        """Say to which attachment the leg belongs; leaves with the next `transmit`."""
        if self._connection is not None:
            self._connection.send_stream(CONTROL_STREAM, encode(hello))
            self.unanswered_hellos.append(hello)

    def send_signaling(self, data: bytes, now: float) -> None:
        """Write to the signaling stream; dropped while there is no connection (its loss is reported)."""
        if self._connection is not None and self.is_connected:
            self._connection.send_stream(SIGNALING_STREAM, data)
            self.finish(now)

    def abandon(self, reason: str, now: float) -> None:
        """Hang up on an intermediate that breaks the protocol, and dial again later."""
        if self._connection is not None:
            self._connection.close(CODE_PROTOCOL_ERROR, reason)
            self.transmit(now)
            self._lose(reason, "", now, is_authentication_failure=False, again=True)

    def finish(self, now: float) -> None:
        """Take what the connection tells and send what it has: the end of each turn."""
        self.take_events(now)
        self._flush(now)

    def _flush(self, now: float) -> None:
        self.transmit(now)
        # Connection IDs are issued while transmitting; a packet for one of them may be the next to arrive.
        self.take_events(now)

    def take_events(self, now: float) -> bool:
        """Take what the connection tells; True when more than packets came, which may want an answer."""
        connection = self._connection
        if connection is None:
            return False
        datagrams: list[bytes] = []
        told = connection.events()
        for event in told:
            match event:
                case events.DatagramReceived():
                    datagrams.append(event.data)
                case events.StreamDataReceived():
                    connection.consume(event.stream_id, len(event.data))
                    self._take_stream(event.stream_id, event.data, now)
                case events.ConnectionIdsChanged():
                    self._effects.append(LegConnectionIds(event.added, event.retired))
                case events.PeerAccepted() | events.HandshakeCompleted():
                    # What we say now travels with the end of the handshake, a round trip earlier.
                    self._handle_connected(now)
                case events.ConnectionClosed():
                    self._owner.carrier_received(datagrams)
                    self.transmit(now)  # the peer should learn why, if it is we who close
                    self._lose(
                        event.reason,
                        event.message,
                        now,
                        is_authentication_failure=event.is_authentication_failure,
                        again=True,
                    )
                    return True
                case _:
                    pass
            if self._connection is not connection:
                return True
        self._owner.carrier_received(datagrams)
        return len(datagrams) < len(told)

    def transmit(self, now: float) -> None:
        """Pull packets from the leg while there is room, and send."""
        connection, remote = self._connection, self.remote
        if connection is None or remote is None:
            return
        datagrams: list[bytes] = []
        while True:
            may_be_more = self._feed(connection, now)
            datagrams += connection.transmit(now)
            # Once more only for what is left: a call with nothing to send costs a quarter of a packet.
            if not may_be_more or connection.datagrams_pending >= MAX_DATAGRAMS_PENDING:
                break
        last = self._effects[-1] if self._effects else None
        if isinstance(last, LegTransmit):
            last.datagrams.extend(datagrams)
        elif datagrams:
            self._effects.append(LegTransmit(remote, datagrams))
        self._watch_silence(connection, now)

    def _watch_silence(self, connection: Connection, now: float) -> None:
        if not connection.awaits_acknowledgement:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now

    def _take_stream(self, stream_id: int, data: bytes, now: float) -> None:
        if stream_id == SIGNALING_STREAM:
            self._effects.append(LegSignalingReceived(data))
            return
        if stream_id != CONTROL_STREAM:
            self.abandon("unexpected_stream", now)
            return
        try:
            for body in self._decoder.feed(data):
                self._effects.append(LegControlReceived(body))
        except RemoteProtocolError as error:
            self.abandon(error.reason, now)

    def _handle_connected(self, now: float) -> None:
        if self.remote is None or self.state is not LegState.CONNECTING:
            return
        self.state = LegState.CONNECTED
        self._attempts = 0
        self._backoff.handle_connected(now)
        self._ping_at = now + PING_INTERVAL_S
        self._effects.append(LegConnected(self.remote))
        self._owner.carrier_connected(self)

    def _feed(self, connection: Connection, now: float) -> bool:
        """Move packets from the queue into the connection; True when there may be more of them."""
        room = max(0, MAX_DATAGRAMS_PENDING - connection.datagrams_pending)
        taken = self._owner.take_packets(self, room, now)
        for datagram in taken:
            connection.send_datagram(datagram)
        return 0 < room == len(taken)

    def _lose(
        self, reason: str, detail: str, now: float, *, is_authentication_failure: bool, again: bool
    ) -> None:
        if self.state is LegState.UP:
            self._owner.carrier_down(self)
        if self.state is LegState.CONNECTING:
            self._attempts += 1
        if self._connection is not None:
            self._connection.release()
        self._connection = None
        self.remote = None
        self.unanswered_hellos.clear()
        self._silent_since = None
        self._ping_at = None
        self._effects.append(LegConnectionIds((), (), forget_all=True))
        retry_in_s: float | None = None
        if again:
            self._backoff.handle_lost(now, is_clean=False)
            if self.least_retry_s and self._attempts % self._addresses:
                # One address that leads nowhere says nothing of the others: they have their turn at once.
                retry_in_s = 0.0
            else:
                retry_in_s = max(self.least_retry_s, self._backoff.next_delay_s(now))
            self._retry_at = now + retry_in_s
            self.state = LegState.WAITING
        else:
            self.state = LegState.IDLE
            self._retry_at = None
        self._effects.append(LegLost(reason, detail, is_authentication_failure, retry_in_s))
        if again:
            self._owner.carrier_lost(self, reason, now, is_refusal=is_authentication_failure)
