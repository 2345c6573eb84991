"""The relay of an intermediate: connections from nodes (*legs*), and sealed packets between them.

A node proves who it is by its certificate, then says on stream 0 to which attachment its leg belongs. Sealed
packets come in DATAGRAM frames under a channel of that attachment; `ztna.relay.channels` knows where they go,
and a short fair queue stands before each leg. Stream 4 carries signaling for nodes that have no other way.

Nodes whose network lets no UDP pass bring a gRPC stream instead. It is a leg like any other: the same hello,
the same channels, the same packets, and a PING of its own. An attachment has one leg, the one that said hello
last; the former is closed, and what waited for it is gone.

Drive it as every core, and end each turn with `flush`: commands and received packets only mark the legs they
touch, so that each is transmitted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

from ztna.access.identity import Role, VerifiedPeer
from ztna.address import TransportAddress, network_prefix
from ztna.deadlines import Deadlines
from ztna.errors import RemoteProtocolError
from ztna.quic import endpoint as quic_endpoint
from ztna.quic import events
from ztna.quic.budget import HandshakeBudget
from ztna.quic.connection import Connection
from ztna.quic.demux import ConnectionIdTable
from ztna.quic.options import ConnectionOptions
from ztna.relay import frame
from ztna.relay.bindings import SessionBindings
from ztna.relay.channels import SessionTraffic
from ztna.relay.hub_effects import (
    AddressChanged,
    ControlReceived,
    HelloAnswered,
    HubConnectionIds,
    HubEffect,
    HubTransmit,
    LegClosed,
    LegConnected,
    LegJudged,
    LegRefused,
    SignalingChanged,
    SignalingReceived,
    StreamClosed,
    StreamWrite,
)
from ztna.relay.hub_legs import MAX_DATAGRAMS_PENDING, QuicLeg, StreamLeg
from ztna.relay.queue import (
    MAX_QUEUED_PACKETS_PER_SESSION,
    MAX_SOJOURN_S,
    DropCounts,
    DropReason,
    FairScheduler,
)
from ztna.signaling.framing import encode
from ztna.token_bucket import TokenBucket

CONTROL_STREAM = 0
SIGNALING_STREAM = 4

MAX_LEGS_PER_NODE = 4
"""One in use, one being replaced, and twice that for clocks and luck; beyond it the oldest is closed."""

MAX_SIGNALING_BACKLOG_BYTES = 1 << 20
"""Unread by a node on its signaling stream: sixteen of the largest frames, or thousands of usual ones."""

MAX_CONTROL_BACKLOG_BYTES = 1 << 16
"""Unread by a node on its control stream: two thousand answers; a node that reads leaves none."""

MAX_HELLOS_PER_S = 1.0
MAX_HELLO_BURST = 16.0
"""A node says hello once per attachment: a few times a second at worst, then ever more seldom."""

JUDGEMENT_LIMIT_S = 3.0
"""For a PING to be acknowledged: three times the largest plausible round trip."""

SUPERSEDED_REST_S = 10.0
"""A superseded attachment keeps its channels this long: its resumed sessions flow on until rebound."""

SILENCE_LIMIT_S = 15.0
"""A node sends a PING each 10 s and repeats a lost one at once, so one that says nothing for this long is cut
off for 5 s or more: long enough for a change of uplink, and whoever waits for a dead node waits no longer."""

FAREWELL_S = 1.0
"""From the end of a signaling stream to the close of its leg: last words are retransmitted once or twice."""

HELLO_LIMIT_S = 5.0
"""From the opening of a gRPC stream to its hello, which a node sends at once. A QUIC leg may carry signaling
first."""

MAX_HELD_DATAGRAMS = 16
"""Of a leg whose handshake has to wait before it goes on: a node's certificate and what it says right behind
it, twice. QUIC sends again what finds no room. Five megabytes, if every handshake waits."""

CODE_NO_ERROR = 0
CODE_PROTOCOL_ERROR = 1

_AnyLeg: TypeAlias = QuicLeg | StreamLeg
_Held: TypeAlias = list[tuple[TransportAddress, bytes]]


@dataclass(slots=True)
class HubCounters:
    """Totals since the start."""

    packets_relayed: int = 0
    bytes_relayed: int = 0
    accepted: int = 0
    handshakes: int = 0


class RelayHub:
    """All legs of an intermediate. `options` come from `ConnectionOptions.leg`, with the judge of nodes.

    `budget` says how much of the time handshakes may take. `queue_packets` and `queue_s` bound what waits
    before a leg, per session.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        budget: HandshakeBudget,
        *,
        queue_packets: int = MAX_QUEUED_PACKETS_PER_SESSION,
        queue_s: float = MAX_SOJOURN_S,
    ) -> None:
        self._queue_packets = queue_packets
        self._queue_s = queue_s
        self._table: ConnectionIdTable[int] = ConnectionIdTable()
        self._endpoint = quic_endpoint.Endpoint(options, self._table, budget)
        self._admission = self._endpoint.admission
        self._held: dict[int, _Held] = {}  # by the number of the leg, whose turn comes first first
        self._go_on_at: float | None = None
        self._bindings = SessionBindings()
        self._channels = self._bindings.channels
        self._legs: dict[int, QuicLeg] = {}
        self._streams: dict[int, StreamLeg] = {}  # by the number of the stream
        self._stream_legs: dict[int, StreamLeg] = {}  # by the number of the leg
        self._nodes: dict[tuple[Role, str], dict[int, _AnyLeg]] = {}
        self._attachments: dict[bytes, tuple[Role, str, bytes]] = {}  # role, id, fingerprint
        self._bound: dict[bytes, _AnyLeg] = {}  # attachment -> its leg
        self._last_number = 0
        self._touched: dict[int, _AnyLeg] = {}
        self._timers: Deadlines[int] = Deadlines()
        self._judgements: Deadlines[bytes] = Deadlines()
        self._superseded: Deadlines[bytes] = Deadlines()
        self._farewells: Deadlines[int] = Deadlines()
        self._silences: Deadlines[int] = Deadlines()
        self._hellos: Deadlines[int] = Deadlines()
        self._effects: list[HubEffect] = []
        self._dropped: Counter[str] = Counter()
        self._queue_drops = DropCounts()  # of all legs, past ones included
        self._refused: Counter[str] = Counter()
        self.counters = HubCounters()

    @property
    def leg_count(self) -> int:
        """Authenticated legs."""
        return sum(len(legs) for legs in self._nodes.values())

    @property
    def dropped(self) -> Counter[str]:
        """Relayed packets dropped so far, by reason."""
        dropped = self._dropped.copy()
        dropped["unknown_channel"] += self._channels.unknown_packets
        for reason in DropReason:
            dropped[reason.value] += self._queue_drops[reason]
        return dropped

    @property
    def refused(self) -> Counter[str]:
        """Connections and strangers' packets refused so far, by reason."""
        return self._refused + self._endpoint.dropped

    @property
    def strangers_dropped(self) -> Counter[str]:
        """The part of `refused` that came in packets of no connection; nothing else tells of it."""
        return self._endpoint.dropped.copy()

    def traffic(self) -> dict[bytes, SessionTraffic]:
        """Counters of every bound session."""
        return self._bindings.traffic()

    def update_options(self, options: ConnectionOptions) -> None:
        """Judge and greet further connections by other credentials."""
        self._endpoint.update_options(options)

    # From the socket

    def handle_datagrams(
        self, number: int, remote: TransportAddress, local_host: str, datagrams: Iterable[bytes], now: float
    ) -> None:
        """Packets for a leg's connection IDs."""
        leg = self._legs.get(number)
        if leg is None:
            return
        if leg.local_host != local_host:
            leg.local_host = local_host
        leg.heard_at = now
        if leg.network:
            self._hold(leg, remote, datagrams)
            self._go_on(now)
        else:
            self._receive(leg, remote, datagrams, now)

    def handle_unknown(
        self, remote: TransportAddress, local_host: str, datagrams: Iterable[bytes], now: float
    ) -> None:
        """Packets for no known connection ID: a new node, a stranger, or noise."""
        self._go_on(now)  # before a new one begins
        for datagram in datagrams:
            verdict = self._endpoint.handle_datagram(datagram, remote, now, local_host)
            match verdict:
                case quic_endpoint.Reply():
                    self._effects.append(HubTransmit(remote, local_host, [verdict.data]))
                case quic_endpoint.Accept():
                    self._accept(verdict.connection, remote, local_host, now)
                case quic_endpoint.Deliver():
                    self.handle_datagrams(verdict.owner, remote, local_host, [datagram], now)
                case quic_endpoint.Drop() | quic_endpoint.Wait():
                    pass  # counted, or kept, by the endpoint

    # From signaling

    def handle_attached(
        self, attach_id: bytes, identity: tuple[Role, str, bytes], superseded: bytes, now: float
    ) -> None:
        """A node attached: a leg with the same role, id and key fingerprint may present this attachment."""
        if superseded in self._attachments:
            del self._attachments[superseded]
            self._superseded.set(superseded, now + SUPERSEDED_REST_S)
        self._attachments[attach_id] = identity

    def handle_detached(self, attach_id: bytes, now: float) -> None:
        """A node is gone, and its channels with it."""
        self._attachments.pop(attach_id, None)
        self._judgements.set(attach_id, None)
        self._bindings.release_attachment(attach_id, now)
        leg = self._bound.get(attach_id)
        if leg is not None:
            self._unbind_leg(leg)
            if isinstance(leg, StreamLeg):
                self.close(leg.number, "detached", CODE_NO_ERROR)  # a QUIC leg may carry signaling

    def handle_hello(self, number: int, attach_id: bytes, now: float) -> None:
        """A node says to which attachment its leg belongs; one that says it all the time loses the leg."""
        leg = self._legs.get(number) or self._stream_legs.get(number)
        if leg is None or leg.peer is None or leg.is_closed:
            return
        self._hellos.set(number, None)
        if not leg.hellos.take(now):
            self._refused["too_many_hellos"] += 1
            self.close(number, "too_many_hellos")
            return
        holder = self._attachments.get(attach_id)
        rejection = ""
        if holder is None:
            rejection = "unknown_attachment"
        elif holder != (leg.peer.identity.role, leg.peer.identity.id, leg.peer.fingerprint):
            rejection = "wrong_identity"
        if rejection:
            self._refused[rejection] += 1
        else:
            self._bind_leg(leg, attach_id)
        self._effects.append(
            HelloAnswered(number, leg.peer, attach_id, rejection, frame.DEFAULT_MAX_PACKET_BYTES, leg.kind)
        )

    def bind(
        self, session_id: bytes, agent_attach_id: bytes, connector_attach_id: bytes, now: float
    ) -> tuple[int, int] | None:
        """Make channels for a session, in place of former ones; None when an attachment has none left.

        Attachments need no leg yet: whatever leg presents them takes their channels over.
        """
        if agent_attach_id not in self._attachments or connector_attach_id not in self._attachments:
            return None
        return self._bindings.bind(session_id, agent_attach_id, connector_attach_id, now)

    def release(self, session_id: bytes, now: float) -> None:
        """Forget the channels of a session and what waits for them; harmless when there are none."""
        for attach_id in self._bindings.release(session_id, now):
            leg = self._bound.get(attach_id)
            if leg is not None:
                leg.queue.discard(session_id)

    def judge(self, attach_id: bytes, now: float) -> None:
        """Find out whether the leg of an attachment answers; `LegJudged` follows in `JUDGEMENT_LIMIT_S`."""
        leg = self._bound.get(attach_id)
        if leg is None:
            self._effects.append(LegJudged(attach_id, is_alive=False, reason="no_leg"))
            return
        if isinstance(leg, StreamLeg):
            leg.last_ping += 1
            leg.judging = {leg.last_ping: attach_id}
            self._effects.append(StreamWrite(leg.stream, ping=leg.last_ping))
        else:
            leg.judging = {leg.connection.ping(now): attach_id}
        self._judgements.set(attach_id, now + JUDGEMENT_LIMIT_S)
        self._touched[leg.number] = leg

    def send_control(self, number: int, body: bytes) -> None:
        """Send a leg control frame, if the leg is there; a node that does not read loses its leg."""
        stream = self._stream_legs.get(number)
        if stream is not None:
            self._effects.append(StreamWrite(stream.stream, control=body))
            return
        data = encode(body)
        leg = self._legs.get(number)
        if leg is None or not leg.has_control:
            return
        if leg.connection.send_backlog(CONTROL_STREAM) + len(data) > MAX_CONTROL_BACKLOG_BYTES:
            self.close(number, "control_overflow")
            return
        leg.connection.send_stream(CONTROL_STREAM, data)
        self._touched[number] = leg

    def send_signaling(self, number: int, data: bytes, now: float, *, end: bool) -> None:
        """Write to a leg's signaling stream; a node that does not read loses its leg.

        A leg has one signaling stream, so `end` ends the leg too, when the last words have arrived.
        """
        leg = self._legs.get(number)
        if leg is None or not leg.has_signaling:
            return
        if leg.connection.send_backlog(SIGNALING_STREAM) + len(data) > MAX_SIGNALING_BACKLOG_BYTES:
            self.close(number, "signaling_overflow")
            return
        leg.connection.send_stream(SIGNALING_STREAM, data, end)
        if end:
            leg.has_signaling = False
            leg.is_signaling_over = True
            self._farewells.set(number, now + FAREWELL_S)
        self._touched[number] = leg

    def close(self, number: int, reason: str, code: int = CODE_PROTOCOL_ERROR) -> None:
        """Close a leg; harmless when it is gone. `reason` goes to the node."""
        stream = self._stream_legs.get(number)
        if stream is not None:
            self._end_stream(stream, reason, is_remote=False)
            return
        leg = self._legs.get(number)
        if leg is not None:
            leg.connection.close(code, reason)
            self._touched[number] = leg

    def close_all(self, reason: str) -> None:
        """Close every leg: this intermediate goes away."""
        for number in (*self._legs, *self._stream_legs):
            self.close(number, reason, CODE_NO_ERROR)

    def forget_all(self) -> None:
        """Let go of all legs, once what closes them was handed over: nobody waits until they are drained."""
        for leg in tuple(self._legs.values()):
            self._forget(leg)

    # From gRPC streams

    def handle_stream_opened(self, stream: int, peer: VerifiedPeer, remote: str, now: float) -> None:
        """A node whose certificate is accepted opened a stream."""
        self._last_number += 1
        leg = StreamLeg(
            number=self._last_number,
            queue=self._make_queue(),
            heard_at=now,
            hellos=TokenBucket(MAX_HELLOS_PER_S, MAX_HELLO_BURST, now),
            peer=peer,
            stream=stream,
            remote=remote,
        )
        self._streams[stream] = self._stream_legs[leg.number] = leg
        self._silences.set(leg.number, now + SILENCE_LIMIT_S)
        self._hellos.set(leg.number, now + HELLO_LIMIT_S)
        self._enlist(leg, peer)

    def stream_leg(self, stream: int) -> int | None:
        """Number of the leg that a stream is; None when that leg is gone."""
        leg = self._streams.get(stream)
        return None if leg is None else leg.number

    def handle_stream_datagrams(self, stream: int, datagrams: Sequence[bytes], now: float) -> None:
        """Take a batch of channels and packets."""
        leg = self._streams.get(stream)
        if leg is None:
            return
        leg.heard_at = now
        if len(datagrams) > frame.MAX_BATCH_PACKETS:
            self._refused["batch_too_large"] += 1
            self.close(leg.number, "batch_too_large")
            return
        for datagram in datagrams:
            self._relay(leg, datagram, now)

    def handle_stream_pings(self, stream: int, ping: int, pong: int, now: float) -> None:
        """Answer a PING, and take the answer to ours; 0 is none."""
        leg = self._streams.get(stream)
        if leg is None:
            return
        leg.heard_at = now
        if ping:
            self._effects.append(StreamWrite(stream, pong=ping))
        if pong:
            self._handle_pong(leg, pong)

    def handle_stream_written(self, stream: int) -> None:
        """The last batch is on its way."""
        leg = self._streams.get(stream)
        if leg is not None:
            leg.is_writing = False
            self._touched[leg.number] = leg

    def handle_stream_ended(self, stream: int, reason: str) -> None:
        """A stream is over, whoever ended it."""
        leg = self._streams.get(stream)
        if leg is not None:
            self._end_stream(leg, reason, is_remote=True)

    def refuse(self, reason: str) -> None:
        """Count a connection that was refused before it became a leg."""
        self._refused[reason] += 1

    # Time

    def handle_timeout(self, now: float) -> None:
        """Drive QUIC's timers, and give verdicts that are due."""
        self._go_on(now)
        for client in self._endpoint.handle_timeout(now):
            self._accept(client.connection, client.source, client.local_host, now)
        for number in self._timers.take_due(now):
            leg = self._legs[number]
            if leg.network:
                with self._admission.charged(leg.network, now):
                    leg.connection.handle_timeout(now)
            else:
                leg.connection.handle_timeout(now)
            self._touched[number] = leg
            self._take_events(leg, now)
        for number in self._farewells.take_due(now):
            self.close(number, "signaling_ended", CODE_NO_ERROR)
        for number in self._silences.take_due(now):
            self._judge_silence(self._legs.get(number) or self._stream_legs[number], now)
        for number in self._hellos.take_due(now):
            self._refused["no_hello"] += 1
            self.close(number, "no_hello")
        for attach_id in self._judgements.take_due(now):
            self._effects.append(LegJudged(attach_id, is_alive=False, reason="no_answer"))
        for attach_id in self._superseded.take_due(now):
            self._bindings.release_attachment(attach_id, now)

    def next_deadline(self) -> float | None:
        """The earliest of what `handle_timeout` looks after."""
        every: tuple[Deadlines[int] | Deadlines[bytes], ...] = (
            self._timers,
            self._farewells,
            self._silences,
            self._hellos,
            self._judgements,
            self._superseded,
        )
        deadlines = (self._go_on_at, self._endpoint.next_deadline(), *(each.next() for each in every))
        return min((each for each in deadlines if each is not None), default=None)

    def flush(self, now: float) -> None:
        """Transmit on every touched leg, once: the end of each turn."""
        while self._touched:
            touched, self._touched = self._touched, {}
            for leg in touched.values():
                if isinstance(leg, StreamLeg):
                    self._feed(leg, now)
                else:
                    self._transmit(leg, now)

    def drain(self) -> list[HubEffect]:
        """Hand over effects, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    # Inside

    def _accept(self, connection: Connection, remote: TransportAddress, local_host: str, now: float) -> None:
        self._last_number += 1
        leg = QuicLeg(
            number=self._last_number,
            queue=self._make_queue(),
            heard_at=now,
            hellos=TokenBucket(MAX_HELLOS_PER_S, MAX_HELLO_BURST, now),
            connection=connection,
            remote=remote,
            local_host=local_host,
            network=network_prefix(remote),
        )
        self._legs[leg.number] = leg
        self._silences.set(leg.number, now + SILENCE_LIMIT_S)
        self.counters.accepted += 1
        self._touched[leg.number] = leg
        self._take_events(leg, now)

    def _hold(self, leg: QuicLeg, remote: TransportAddress, datagrams: Iterable[bytes]) -> None:
        """Keep what belongs to a handshake until its turn."""
        held = self._held.setdefault(leg.number, [])
        for datagram in datagrams:
            if len(held) >= MAX_HELD_DATAGRAMS:
                self._refused["handshake_backlog"] += 1
                return
            held.append((remote, datagram))

    def _go_on(self, now: float) -> None:
        """Go on with handshakes that began, as far as the budget allows, who waits longest first.

        They come before those that have not begun: whoever is let in has to be let through.
        """
        budget = self._admission.budget
        while self._held and budget.is_open(now):
            number = next(iter(self._held))
            leg, held = self._legs[number], self._held.pop(number)
            with self._admission.charged(leg.network, now):
                for remote, group in groupby(held, key=itemgetter(0)):
                    self._receive(leg, remote, [datagram for _, datagram in group], now)
        self._go_on_at = budget.opens_at(now) if self._held else None

    def _receive(
        self, leg: QuicLeg, remote: TransportAddress, datagrams: Iterable[bytes], now: float
    ) -> None:
        may_send = leg.connection.receive(datagrams, now, (remote.host, remote.port))
        if self._take_events(leg, now) or may_send:
            self._touched[leg.number] = leg
        else:
            self._timers.set(leg.number, leg.connection.next_deadline())

    def _make_queue(self) -> FairScheduler[bytes]:
        queue: FairScheduler[bytes] = FairScheduler(
            max_packets_per_session=self._queue_packets, max_sojourn_s=self._queue_s
        )
        queue.drops = self._queue_drops
        return queue

    def _judge_silence(self, leg: _AnyLeg, now: float) -> None:
        # Set anew only when due, not by every packet.
        limit = leg.heard_at + SILENCE_LIMIT_S
        if now < limit:
            self._silences.set(leg.number, limit)
        else:
            self.close(leg.number, "no_answer", CODE_NO_ERROR)

    def _take_events(self, leg: QuicLeg, now: float) -> bool:
        """Take what a connection tells; True when more than packets came, so that there may be an answer."""
        has_more = False
        for event in leg.connection.events():
            if type(event) is events.DatagramReceived:
                self._relay(leg, event.data, now)
            else:
                has_more = True
                self._take_event(leg, event)
        return has_more

    def _relay(self, leg: _AnyLeg, datagram: bytes, now: float) -> None:
        try:
            channel, packet = frame.unpack(datagram)
        except RemoteProtocolError as error:
            self._dropped[error.reason] += 1
            return
        size = len(packet)
        destination = self._channels.forward(leg.attach_id, channel, size)
        if destination is None:
            return  # counted by the table
        target = self._bound.get(destination.attach_id)
        if target is None:
            self._dropped["no_leg"] += 1
            return
        target.queue.enqueue(destination.session_id, frame.pack(destination.channel, packet), now)
        self._touched[target.number] = target
        if len(target.queue) >= target.portion:
            # In portions, so that a batch overflows the queue only when the leg really cannot keep up.
            self._feed(target, now)
        self.counters.packets_relayed += 1
        self.counters.bytes_relayed += size

    def _take_event(self, leg: QuicLeg, event: events.Event) -> None:
        match event:
            case events.StreamDataReceived():
                leg.connection.consume(event.stream_id, len(event.data))
                self._take_stream(leg, event)
            case events.ConnectionIdsChanged():
                for connection_id in event.added:
                    self._table.add(connection_id, leg.number)
                for connection_id in event.retired:
                    self._table.retire(connection_id)
                self._effects.append(HubConnectionIds(leg.number, event.added, event.retired))
            case events.PingAcknowledged():
                self._handle_pong(leg, event.ping_id)
            case events.HandshakeCompleted():
                self._handle_connected(leg)
            case events.StreamReset() | events.StopSendingReceived():
                self._end_signaling(leg, event.stream_id)
            case events.ConnectionClosed():
                self._handle_closed(leg, event)
            case _:
                pass

    def _take_stream(self, leg: QuicLeg, event: events.StreamDataReceived) -> None:
        if event.stream_id == SIGNALING_STREAM:
            self._take_signaling(leg, event)
        elif event.stream_id == CONTROL_STREAM:
            try:
                bodies = leg.decoder.feed(event.data)
            except RemoteProtocolError as error:
                self.close(leg.number, error.reason)
                return
            leg.has_control = True
            self._tell_address(leg)
            self._effects.extend(ControlReceived(leg.number, body) for body in bodies)
        else:
            self._refused["unexpected_stream"] += 1
            self.close(leg.number, "unexpected_stream")

    def _take_signaling(self, leg: QuicLeg, event: events.StreamDataReceived) -> None:
        if leg.peer is None or leg.is_signaling_over:
            return
        if not leg.has_signaling:
            leg.has_signaling = True
            self._effects.append(SignalingChanged(leg.number, True, leg.peer, leg.remote))
        if event.data:
            self._effects.append(SignalingReceived(leg.number, event.data))
        if event.end_of_stream:
            self._end_signaling(leg, event.stream_id)

    def _end_signaling(self, leg: QuicLeg, stream_id: int) -> None:
        if stream_id == SIGNALING_STREAM and leg.has_signaling and leg.peer is not None:
            leg.has_signaling = False
            leg.is_signaling_over = True
            self._effects.append(SignalingChanged(leg.number, False, leg.peer, leg.remote))

    def _handle_pong(self, leg: _AnyLeg, ping_id: int) -> None:
        attach_id = leg.judging.pop(ping_id, None)
        if attach_id is not None:
            self._judgements.set(attach_id, None)
            self._effects.append(LegJudged(attach_id, is_alive=True, reason=""))

    def _handle_connected(self, leg: QuicLeg) -> None:
        peer = leg.connection.peer
        if not isinstance(peer, VerifiedPeer):
            raise TypeError("the judge of a leg's certificates returns a VerifiedPeer")
        if leg.connection.max_datagram_payload < frame.DEFAULT_MAX_PACKET_BYTES + frame.CHANNEL_BYTES:
            self.close(leg.number, "datagrams_too_small")
            return
        leg.peer = peer
        self.counters.handshakes += 1
        self._enlist(leg, peer)

    def _enlist(self, leg: _AnyLeg, peer: VerifiedPeer) -> None:
        """Make a leg one of its node's."""
        legs = self._nodes.setdefault((peer.identity.role, peer.identity.id), {})
        if len(legs) >= MAX_LEGS_PER_NODE:
            self.close(next(iter(legs)), "too_many_legs")
            legs = self._nodes.setdefault((peer.identity.role, peer.identity.id), {})
        legs[leg.number] = leg
        self._effects.append(LegConnected(leg.number, peer, leg.remote, leg.kind))

    def _handle_closed(self, leg: QuicLeg, event: events.ConnectionClosed) -> None:
        reason = event.reason.value
        if leg.peer is None:
            self._refused[reason] += 1
            self._effects.append(LegRefused(leg.remote, reason, event.message))
            return
        self._end_signaling(leg, SIGNALING_STREAM)
        if event.reason is events.CloseReason.CLOSED and not event.is_remote:
            reason = event.message  # one of our own words
        self._delist(leg, leg.peer, reason, event.message)

    def _end_stream(self, leg: StreamLeg, reason: str, *, is_remote: bool) -> None:
        leg.is_closed = True
        del self._streams[leg.stream]
        del self._stream_legs[leg.number]
        self._touched.pop(leg.number, None)
        self._silences.set(leg.number, None)
        self._hellos.set(leg.number, None)
        if not is_remote:
            self._effects.append(StreamClosed(leg.stream, reason))
        if leg.peer is not None:
            self._delist(leg, leg.peer, reason, "")

    def _delist(self, leg: _AnyLeg, peer: VerifiedPeer, reason: str, message: str) -> None:
        """Forget a leg among those of its node, and tell what it means for the attachment."""
        name = (peer.identity.role, peer.identity.id)
        del self._nodes[name][leg.number]
        if not self._nodes[name]:
            del self._nodes[name]
        self._effects.append(LegClosed(leg.number, peer, reason, message))
        if leg.attach_id:
            attach_id = leg.attach_id
            self._unbind_leg(leg)
            self._judgements.set(attach_id, None)
            self._effects.append(LegJudged(attach_id, is_alive=False, reason=reason))

    def _bind_leg(self, leg: _AnyLeg, attach_id: bytes) -> None:
        former = self._bound.get(attach_id)
        if former is not None and former is not leg:
            # The node dialled anew: channels go with its latest leg, and so does what waits.
            self._unbind_leg(former)
            leg.queue, former.queue = former.queue, leg.queue
            self._touched[leg.number] = leg
            self.close(former.number, "replaced", CODE_NO_ERROR)
        if leg.attach_id and leg.attach_id != attach_id:
            self._unbind_leg(leg)
        leg.attach_id = attach_id
        self._bound[attach_id] = leg

    def _unbind_leg(self, leg: _AnyLeg) -> None:
        self._bound.pop(leg.attach_id, None)
        leg.attach_id = b""

    def _feed(self, leg: _AnyLeg, now: float) -> None:
        """Move packets from a leg's queue into its connection, as far as that takes them, and send."""
        if isinstance(leg, StreamLeg):
            self._feed_stream(leg, now)
        else:
            self._feed_connection(leg, now)

    def _feed_stream(self, leg: StreamLeg, now: float) -> None:
        if leg.is_writing or not len(leg.queue):
            return
        taken = leg.queue.take(frame.MAX_BATCH_PACKETS, now)
        if taken:
            leg.is_writing = True
            self._effects.append(StreamWrite(leg.stream, datagrams=tuple(each for _, each in taken)))

    def _feed_connection(self, leg: QuicLeg, now: float) -> None:
        connection = leg.connection
        sent: list[tuple[bytes, tuple[str, int]]] = []
        while True:
            room = MAX_DATAGRAMS_PENDING - connection.datagrams_pending
            taken = leg.queue.take(room, now) if room > 0 and len(leg.queue) else []
            for _, datagram in taken:
                connection.send_datagram(datagram)
            sent += connection.transmit_addressed(now)
            if not taken or not len(leg.queue):
                break
        if sent:
            self._send(leg, sent)

    def _transmit(self, leg: QuicLeg, now: float) -> None:
        if not leg.network:
            self._send_all(leg, now)
            return
        with self._admission.charged(leg.network, now):
            self._send_all(leg, now)
        if (leg.peer is not None or leg.is_closed) and leg.number not in self._held:
            leg.network = ""  # what it has still to say is said

    def _send_all(self, leg: QuicLeg, now: float) -> None:
        connection = leg.connection
        self._feed_connection(leg, now)
        self._tell_address(leg)
        # Connection IDs are issued, and deaths noticed, while packets are written.
        for event in connection.events():
            self._take_event(leg, event)
        if connection.is_terminated:
            self._forget(leg)
        else:
            self._timers.set(leg.number, connection.next_deadline())

    def _send(self, leg: QuicLeg, sent: list[tuple[bytes, tuple[str, int]]]) -> None:
        start = 0
        for index in range(1, len(sent) + 1):
            address = sent[start][1]
            if index < len(sent) and sent[index][1] == address:
                continue
            if address != leg.address:
                leg.remote = TransportAddress(*address)
            datagrams = [data for data, _ in sent[start:index]]
            self._effects.append(HubTransmit(leg.remote, leg.local_host, datagrams))
            start = index

    def _tell_address(self, leg: QuicLeg) -> None:
        """Tell a node where it is, once it has answered from there.

        Whoever sees a packet can send it on from elsewhere, and be faster. The node would take that place for
        its own, and its peers would send their checks there.
        """
        address = leg.connection.validated_address
        if leg.has_control and address is not None and address != leg.told:
            leg.told = address
            self._effects.append(AddressChanged(leg.number, TransportAddress(*address)))

    def _forget(self, leg: QuicLeg) -> None:
        if self._legs.pop(leg.number, None) is None:
            return
        self._touched.pop(leg.number, None)
        self._held.pop(leg.number, None)
        self._timers.set(leg.number, None)
        self._farewells.set(leg.number, None)
        self._silences.set(leg.number, None)
        self._table.forget_owner(leg.number)
        leg.connection.release()
        self._effects.append(HubConnectionIds(leg.number, (), (), forget_all=True))
