"""Two QUIC connections joined in memory on a virtual clock, with delay, loss and reordering as knobs."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tests.unit.quic.identities import client_options, server_options
from ztna.quic.connection import Connection
from ztna.quic.demux import destination_cid
from ztna.quic.events import Event
from ztna.quic.options import ConnectionOptions

EventT = TypeVar("EventT")
# A deadline that is acted upon must be over, to the last bit, or the clock stands still.
MAX_STEPS_PER_INSTANT = 50


CLIENT_OPTIONS = client_options()
SERVER_OPTIONS = server_options()


@dataclass
class Link:
    """One direction: `delay` in seconds, `loss` and `reorder` as probabilities, `reorder_delay` on top."""

    delay: float = 0.020
    loss: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.010
    is_up: bool = True
    drop: Callable[[bytes], bool] = field(default=lambda _data: False)


class End:
    def __init__(self, connection: Connection | None) -> None:
        self.maybe_connection = connection
        self.events: list[Event] = []
        self.received: dict[int, bytearray] = {}
        self.sent_datagrams: list[bytes] = []
        self.auto_consume = True
        self.owes = False
        """Whether something was done since the last `transmit` that may have made something ready."""

    @property
    def connection(self) -> Connection:
        assert self.maybe_connection is not None
        return self.maybe_connection

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]


class Pair:
    """Client and server; `run` until quiet, a condition or a time; `now` is the virtual time."""

    def __init__(
        self,
        client_options: ConnectionOptions = CLIENT_OPTIONS,
        server_options: ConnectionOptions = SERVER_OPTIONS,
        *,
        delay: float = 0.020,
        seed: int = 1,
    ) -> None:
        self.now = 100.0
        # Whoever checks must flush after each command.
        self.checks_silence = False
        self.silences = 0
        self.random = random.Random(seed)
        self.client = End(Connection.client(client_options))
        self.server = End(None)
        self.server_options = server_options
        self.uplink = Link(delay)
        self.downlink = Link(delay)
        self._in_flight: list[tuple[float, int, End, bytes]] = []
        self._sequence = 0

    def connect(self) -> None:
        self.client.connection.connect(self.now)
        self.flush()

    def established(self) -> Pair:
        self.connect()
        self.run(2.0, until=lambda: self.both_established)
        assert self.both_established
        return self

    @property
    def both_established(self) -> bool:
        server = self.server.maybe_connection
        return server is not None and server.is_established and self.client.connection.is_established

    def flush(self) -> None:
        """Drain events and datagrams of both ends, as a driver does after each wake-up."""
        for end, link, other in (
            (self.client, self.uplink, self.server),
            (self.server, self.downlink, self.client),
        ):
            if end.maybe_connection is None:
                continue
            self._drain_events(end)
            end.owes = False
            for data in end.connection.transmit(self.now):
                end.sent_datagrams.append(data)
                self._send(link, other, data)
            self._drain_events(end)

    def run(self, duration: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let up to `duration` seconds pass; stops early when `until` holds."""
        end_time = self.now + duration
        steps = 0
        while not until():
            due = min((t for t in (self._next_arrival(), *self._deadlines()) if t is not None), default=None)
            if due is None or due > end_time:
                self.now = end_time
                return
            steps = steps + 1 if due <= self.now else 0
            assert steps <= MAX_STEPS_PER_INSTANT, "a deadline stays due"
            self.now = max(self.now, due)
            self._deliver()
            for end in (self.client, self.server):
                deadline = end.maybe_connection.next_deadline() if end.maybe_connection else None
                if deadline is not None and self.now >= deadline:
                    end.connection.handle_timeout(self.now)
            self.flush()

    def _deadlines(self) -> list[float | None]:
        return [end.connection.next_deadline() for end in (self.client, self.server) if end.maybe_connection]

    def _next_arrival(self) -> float | None:
        return self._in_flight[0][0] if self._in_flight else None

    def _send(self, link: Link, target: End, data: bytes) -> None:
        if not link.is_up or self.random.random() < link.loss or link.drop(data):
            return
        late = link.reorder_delay if self.random.random() < link.reorder else 0.0
        self._sequence += 1
        heapq.heappush(self._in_flight, (self.now + link.delay + late, self._sequence, target, data))

    def _deliver(self) -> None:
        arrived: dict[int, tuple[End, list[bytes]]] = {}
        while self._in_flight and self._in_flight[0][0] <= self.now:
            _, _, target, data = heapq.heappop(self._in_flight)
            arrived.setdefault(id(target), (target, []))[1].append(data)
        for target, batch in arrived.values():
            if target.maybe_connection is None:
                cid = destination_cid(batch[0])
                assert cid is not None
                target.maybe_connection = Connection.server(self.server_options, destination_cid=cid)
            has_news = target.connection.receive(batch, self.now)
            if self.checks_silence and not (has_news or target.owes):
                self.silences += 1
                assert target.connection.transmit(self.now) == []

    def _drain_events(self, end: End) -> None:
        for event in end.connection.events():
            end.events.append(event)
            if (stream_id := getattr(event, "stream_id", None)) is not None and hasattr(event, "data"):
                end.received.setdefault(stream_id, bytearray()).extend(event.data)
                if end.auto_consume:
                    end.owes |= end.connection.consume(stream_id, len(event.data))
