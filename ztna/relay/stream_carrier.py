"""The gRPC stream of a relay leg, for networks where UDP does not pass.

The stream itself is somebody else's to hold: this core says when it is opened, what is written and when it
is given up. One batch of packets is being written at a time, so that what cannot leave waits, and is
dropped, in the leg's own short queue. TCP repeats whatever it loses, so packets arrive late rather than
never; the session inside takes that as a longer round trip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random

from ztna.relay.carrier import CarrierKind, CarrierOwner, LegState
from ztna.relay.frame import MAX_BATCH_PACKETS
from ztna.relay.leg_effects import (
    LegControlReceived,
    LegEffect,
    LegLost,
    StreamCloseWanted,
    StreamDialWanted,
    StreamSend,
)
from ztna.signaling.backoff import Backoff

PING_INTERVAL_S = 10.0
"""As on the QUIC carrier: for the intermediate, whoever says nothing for 15 s is gone."""

ANSWER_LIMIT_S = 10.0
"""From dialling to the open stream, and from a PING to its answer. TCP may have to repeat a segment three
times (1, 2 and 4 s) before it gets through."""

PROBE_LIMIT_S = 3.0
"""For the PING that asks whether the stream survived a change of our address: at once, or not at all."""

RTT_SHARE = 1 / 8
"""Weight of a new measurement (RFC 9002 §5.3)."""


class StreamCarrier:
    """One gRPC stream after the other."""

    kind = CarrierKind.GRPC
    portion = MAX_BATCH_PACKETS

    def __init__(self, random: Random, owner: CarrierOwner, effects: list[LegEffect]) -> None:
        self._owner = owner
        self._effects = effects
        self._backoff = Backoff(random)
        self._retry_at: float | None = None
        self._answer_by: float | None = None
        self._ping_at: float | None = None
        self._pinged_at: float | None = None
        self._last_ping = 0
        self._is_writing = False
        self._rtt_s: float | None = None
        self.state = LegState.IDLE
        self.unanswered_hellos: deque[bytes] = deque()

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip to the intermediate, seconds."""
        return self._rtt_s

    @property
    def is_open(self) -> bool:
        """The intermediate has accepted the stream."""
        return self.state in {LegState.CONNECTED, LegState.UP}

    def dial(self, now: float) -> None:
        """Open a stream, unless that is under way."""
        if self.state in {LegState.IDLE, LegState.WAITING}:
            self.state = LegState.CONNECTING
            self._retry_at = None
            self._answer_by = now + ANSWER_LIMIT_S
            self._effects.append(StreamDialWanted())

    def dial_now(self, now: float) -> None:
        """Do not wait for the next attempt any longer."""
        if self.state is LegState.WAITING:
            self.dial(now)

    def disconnect(self, reason: str = "disconnected") -> None:
        """Finish the stream and stay closed."""
        if self.state is LegState.IDLE:
            return
        was_up = self.state is LegState.UP
        if was_up:
            self._owner.carrier_down(self)
        self._forget()
        self.state = LegState.IDLE
        self._effects.append(StreamCloseWanted())
        if was_up:
            self._effects.append(
                LegLost(reason, "", is_authentication_failure=False, retry_in_s=None, carrier=self.kind)
            )

    def redial(self, now: float) -> None:
        """Open another stream at once, without sitting out a wait; nothing while none is wanted."""
        if self.is_open:
            self.disconnect()
            self.dial(now)
        else:
            self.dial_now(now)

    def probe(self, now: float) -> None:
        """Find out soon whether the stream still leads anywhere."""
        if self.is_open:
            self._ping(now, PROBE_LIMIT_S)

    def handle_opened(self, now: float) -> None:
        """The intermediate accepted the stream."""
        if self.state is LegState.CONNECTING:
            self.state = LegState.CONNECTED
            self._answer_by = None
            self._backoff.handle_connected(now)
            self._ping(now, ANSWER_LIMIT_S)
            self._owner.carrier_connected(self)

    def handle_frame(
        self, control: Sequence[bytes], datagrams: Sequence[bytes], ping: int, pong: int, now: float
    ) -> None:
        """Take one frame of the stream."""
        if not self.is_open:
            return
        if pong and pong == self._last_ping and self._pinged_at is not None:
            rtt_s = now - self._pinged_at
            self._rtt_s = rtt_s if self._rtt_s is None else self._rtt_s + (rtt_s - self._rtt_s) * RTT_SHARE
            self._answer_by = self._pinged_at = None
        if ping:
            self._effects.append(StreamSend(pong=ping))
        if datagrams:
            self._owner.carrier_received(list(datagrams))
        self._effects.extend(LegControlReceived(body, self.kind) for body in control)

    def handle_written(self, now: float) -> None:
        """The batch is on its way, so there is room for the next."""
        self._is_writing = False
        self.transmit(now)

    def handle_ended(self, reason: str, detail: str, now: float, *, is_authentication_failure: bool) -> None:
        """The stream is over, or none came to be."""
        if self.state in {LegState.IDLE, LegState.WAITING}:
            return
        self._lose(reason, detail, now, is_authentication_failure=is_authentication_failure)

    def handle_timeout(self, now: float) -> None:
        """Dial again, give up, or ask whether the intermediate is there."""
        if self._retry_at is not None and now >= self._retry_at:
            self.dial(now)
        elif self._answer_by is not None and now >= self._answer_by:
            self.abandon("no_answer", now)
        elif self._ping_at is not None and now >= self._ping_at:
            self._ping(now, ANSWER_LIMIT_S)

    def next_deadline(self) -> float | None:
        """The earliest of what `handle_timeout` looks after."""
        deadlines = (self._retry_at, self._answer_by, self._ping_at)
        return min((each for each in deadlines if each is not None), default=None)

    def send_hello(self, hello: bytes) -> None:
        """Say to which attachment the leg belongs."""
        self._effects.append(StreamSend(hello=hello))
        self.unanswered_hellos.append(hello)

    def transmit(self, now: float) -> None:
        """Write one batch, unless one is being written."""
        if self._is_writing or self.state is not LegState.UP:
            return
        datagrams = self._owner.take_packets(self, MAX_BATCH_PACKETS, now)
        if datagrams:
            self._is_writing = True
            self._effects.append(StreamSend(datagrams=tuple(datagrams)))

    def abandon(self, reason: str, now: float) -> None:
        """Hang up on an intermediate that breaks the protocol or says nothing, and dial again later."""
        if self.state in {LegState.IDLE, LegState.WAITING}:
            return
        self._effects.append(StreamCloseWanted())
        self._lose(reason, "", now, is_authentication_failure=False)

    def _ping(self, now: float, limit_s: float) -> None:
        self._ping_at = now + PING_INTERVAL_S
        limit = now + limit_s
        if self._pinged_at is None:
            self._last_ping += 1
            self._pinged_at = now
            self._effects.append(StreamSend(ping=self._last_ping))
        # One that is unanswered already is due no later for being asked again.
        self._answer_by = limit if self._answer_by is None else min(limit, self._answer_by)

    def _lose(self, reason: str, detail: str, now: float, *, is_authentication_failure: bool) -> None:
        if self.state is LegState.UP:
            self._owner.carrier_down(self)
        self._forget()
        self._backoff.handle_lost(now, is_clean=False)
        retry_in_s = self._backoff.next_delay_s(now)
        self._retry_at = now + retry_in_s
        self.state = LegState.WAITING
        self._effects.append(LegLost(reason, detail, is_authentication_failure, retry_in_s, self.kind))
        self._owner.carrier_lost(self, reason, now, is_refusal=is_authentication_failure)

    def _forget(self) -> None:
        self.unanswered_hellos.clear()
        self._retry_at = self._answer_by = self._ping_at = self._pinged_at = self._rtt_s = None
        self._is_writing = False
