"""What our layers cost for each packet, over what aioquic costs, in one process and without the kernel.

*Our layers* are everything between a UDP socket and aioquic's `receive_datagram` and `datagrams_to_send`, and
between its events and whoever has the payload: socket actor with demultiplexing, protobuf messages and the
hops of actors, path and traffic cores, timers, our connection (`ztna.quic.connection`). What they cost
is measured within each run: processor time that passes inside a call of aioquic's (`CALLS`) is aioquic's,
what the benchmark does for itself (socket, service, client) is nobody's, and the rest is theirs. So both are
taken at the same moments, many thousand times a second, and whatever disturbs the machine disturbs both.

Two ends exchange a download in batches of so many packets, three ways: two connections of aioquic as it
comes, driven in the barest loop; our connection in the same loop; and the real actors on top of it. `layers`
is the share of the latter, the layers' time over aioquic's in the same run, `connection` that of our
connection alone, `driver` that of the barest loop: medians of `ROUNDS`, in which the ways take turns. What
our connection changes inside aioquic's calls is counted as aioquic's, so that what those cost (`inside_us`)
is there beside what they cost in aioquic as it comes (`aioquic_us`).

`messages` is the floor of that design: the very messages of such a download, built anew and told to actors
that do nothing but read them, with nothing of QUIC. `MOST` bounds `layers`; above it the result has
`violations`. Ten percent were the aim; docs/adr/0016-what-the-layers-may-cost.md says why they are more.

All clocks run by processor time, too (`_Clock`): while another process runs, no acknowledgement becomes due
and no path falls silent, so that a run does the same work whoever else is there.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
import selectors
import ssl
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol, cast

import structlog
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import Message

from actors.base import Concern, ConcernRef, Context
from actors.io import DatagramBatch
from actors.io_asyncio import AsyncioIo
from actors.quic_session import QuicSession
from actors.runtime import LoopRuntime, request_stop
from actors.udp_socket import UdpSocket
from ztna.access.identity import Identity, Role, VerifiedPeer
from ztna.address import TransportAddress
from ztna.pki import authority
from ztna.quic import demux, events
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions, PrivateKey
from ztna.v1 import path_manager_pb2, quic_session_pb2, relay_leg_pb2, types_pb2, udp_socket_pb2

SIZE_BYTES: Final = 4 << 20
ROUNDS: Final = 7
MOST: Final = {8: 0.50, 32: 0.28}
"""Share of what aioquic itself costs that our layers may cost on top, by packets in a batch: what they were
seen to take on the busiest of machines, and no more."""
CHUNK_BYTES: Final = 1 << 16
# What a sender keeps unacknowledged; aioquic copies its buffer, so more of it costs more.
BACKLOG_BYTES: Final = 256 * 1024
RUN_LIMIT_S: Final = 60.0
ALPN: Final = "ztna/1"
SESSION: Final = b"s" * 16
INTERMEDIATE: Final = "intermediate"
CLIENT, SERVER = TransportAddress("192.0.2.1", 1000), TransportAddress("192.0.2.2", 2000)


class _Clock:
    """Seconds of processor time of this process, and those that nobody had anything to do in."""

    def __init__(self) -> None:
        self._skipped_s = 0.0
        self.now = 0.0
        self.read()

    def __call__(self) -> float:
        """What was read last: actors ask twice for each message, and the kernel takes its time to answer."""
        return self.now

    def read(self) -> float:
        """The time now; once per batch is enough."""
        self.now = time.process_time() + self._skipped_s
        return self.now

    def skip(self, seconds: float) -> None:
        """Let this time pass at once."""
        self._skipped_s += seconds
        self.read()


CALLS: Final = ("receive_datagram", "datagrams_to_send", "send_stream_data", "handle_timer")
"""Where aioquic works; its other calls look something up."""


@dataclass(slots=True)
class _Meter:
    """Processor seconds of one run, both ends together, from `begin` on."""

    aioquic_s: float = 0.0
    own_s: float = 0.0
    """Of the benchmark itself."""
    started: float | None = None

    def watch(self, connection: QuicConnection) -> None:
        """Count the calls of this connection as aioquic's."""
        for name in CALLS:
            setattr(connection, name, self._timed(getattr(connection, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.process_time

        def timed(*args: Any, **options: Any) -> Any:
            before = clock()
            try:
                return call(*args, **options)
            finally:
                self.aioquic_s += clock() - before

        return timed

    def begin(self) -> None:
        """Count from here: the handshake is over."""
        if self.started is None:
            self.aioquic_s = self.own_s = 0.0
            self.started = time.process_time()

    def end(self, packets: int) -> Cost:
        """What each of so many packets took."""
        total_s = time.process_time() - (self.started or 0.0)
        rest_s = total_s - self.aioquic_s - self.own_s
        return Cost(self.aioquic_s / packets * 1e6, rest_s / packets * 1e6)


class Cost(NamedTuple):
    """Microseconds of both ends per data packet: inside aioquic's calls, and in what drives it."""

    aioquic_us: float
    rest_us: float

    @property
    def share(self) -> float:
        """Of what drives aioquic, over aioquic."""
        return self.rest_us / self.aioquic_us


class _Selector(selectors.DefaultSelector):
    """Waits for nothing but the clock: everything happens within this process."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self._clock.skip(timeout)
            timeout = 0
        return super().select(timeout)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop by that clock."""

    def __init__(self) -> None:
        self.clock = _Clock()
        super().__init__(_Selector(self.clock))
        self.time = self.clock  # type: ignore[method-assign] # asked often


class _End(Protocol):
    """One end without an event loop."""

    received: int

    def receive(self, packets: Sequence[bytes], now: float) -> None: ...
    def transmit(self, now: float) -> list[bytes]: ...
    def deadline(self) -> float | None: ...
    def time_out(self, now: float) -> None: ...


class _Aioquic:
    """aioquic as it comes; a server once it has something to send."""

    def __init__(self, connection: QuicConnection, to_send: int) -> None:
        self._connection = connection
        self._to_send = to_send
        self._sent = self._acknowledged = 0
        self._is_asked = False
        self.received = 0

    def receive(self, packets: Sequence[bytes], now: float) -> None:
        for packet in packets:
            self._connection.receive_datagram(packet, ("192.0.2.9", 9), now)

    def transmit(self, now: float) -> list[bytes]:
        while (event := self._connection.next_event()) is not None:
            if isinstance(event, quic_events.HandshakeCompleted) and not self._to_send:
                self._connection.send_stream_data(0, b"GET", end_stream=True)
            elif isinstance(event, quic_events.StreamDataReceived):
                self.received += len(event.data)
                self._is_asked = True
        if self._to_send and self._is_asked:
            sender = self._connection._streams[0].sender  # noqa: SLF001 - aioquic tells nobody
            acknowledged = sender._buffer_start  # noqa: SLF001 - as above
            while self._sent < self._to_send and self._sent - acknowledged < BACKLOG_BYTES:
                self._sent += CHUNK_BYTES
                self._connection.send_stream_data(
                    0, bytes(CHUNK_BYTES), end_stream=self._sent >= self._to_send
                )
        return [data for data, _ in self._connection.datagrams_to_send(now)]

    def deadline(self) -> float | None:
        return self._connection.get_timer()

    def time_out(self, now: float) -> None:
        self._connection.handle_timer(now)


def _watched(connection: Connection, meter: _Meter) -> Connection:
    meter.watch(connection._engine)  # noqa: SLF001 - nobody else has reason to know
    return connection


class _Core:
    """Our connection, driven as its module says."""

    def __init__(self, options: ConnectionOptions, to_send: int, meter: _Meter, now: float) -> None:
        self._options = options
        self._meter = meter
        self._to_send = to_send
        self._connection: Connection | None = None
        self._is_asked = False
        self._is_quiet = False
        self.received = 0
        if not to_send:
            self._connection = _watched(Connection.client(options), meter)
            self._connection.connect(now)
            self._connection.send_stream(self._connection.open_stream(), b"GET", end=True)

    def receive(self, packets: Sequence[bytes], now: float) -> None:
        if self._connection is None:
            made = Connection.server(self._options, destination_cid=demux.destination_cid(packets[0]) or b"")
            self._connection = _watched(made, self._meter)
        if self._connection.receive(packets, now):
            self._is_quiet = False

    def transmit(self, now: float) -> list[bytes]:
        connection = self._connection
        if connection is None:
            return []
        self._take(connection)
        if self._is_asked:
            while self._to_send > 0 and connection.can_send(0):
                self._to_send -= CHUNK_BYTES
                connection.send_stream(0, bytes(CHUNK_BYTES), end=self._to_send <= 0)
                self._is_quiet = False
        packets: list[bytes] = []
        if not self._is_quiet:
            self._is_quiet = True
            packets = connection.transmit(now)
            self._take(connection)
        return packets

    def _take(self, connection: Connection) -> None:
        for event in connection.events():
            if isinstance(event, events.StreamDataReceived):
                if connection.consume(event.stream_id, len(event.data)):
                    self._is_quiet = False
                self.received += len(event.data)
                self._is_asked = bool(self._to_send)

    def deadline(self) -> float | None:
        return None if self._connection is None else self._connection.next_deadline()

    def time_out(self, now: float) -> None:
        if self._connection is not None:
            self._connection.handle_timeout(now)
            self._is_quiet = False


def _exchange(client: _End, server: _End, clock: _Clock, meter: _Meter, batch: int) -> Cost:
    """A whole download, without the handshake's first flights."""
    carried = 0
    to_client: deque[bytes] = deque()
    to_server: deque[bytes] = deque(client.transmit(clock.read()))
    while client.received < SIZE_BYTES:
        if client.received:
            meter.begin()
        now = clock.read()
        if not to_client and not to_server:  # nobody waits for a timer
            clock.skip(max(0.0, min(end.deadline() or math.inf for end in (client, server)) - now))
            now = clock.now
        for end, inbox, outbox in ((client, to_client, to_server), (server, to_server, to_client)):
            if inbox:
                packets = [inbox.popleft() for _ in range(min(batch, len(inbox)))]
                carried += len(packets) if end is client and meter.started is not None else 0
                end.receive(packets, now)
            deadline = end.deadline()
            if deadline is not None and now >= deadline:
                end.time_out(now)
            outbox.extend(end.transmit(now))
    return meter.end(carried)


class _MemorySocket:
    """A UDP socket whose datagrams reach the other one in batches of a given size."""

    dropped = 0

    def __init__(self, local: TransportAddress, owner: Any, batch: int, meter: _Meter) -> None:
        self.local_address = local
        self._meter = meter
        self.owner = owner
        self.other: _MemorySocket | None = None
        self.carried = 0
        self._batch = batch
        self._inbox: deque[bytes] = deque()
        self._loop = cast("_Loop", asyncio.get_running_loop())

    def send(self, payloads: Sequence[bytes], remote: TransportAddress, local_host: str = "") -> int:
        del remote, local_host
        before = time.process_time()
        if self.other is not None:
            self.other.arrive(payloads)
        self._meter.own_s += time.process_time() - before
        return len(payloads)

    def arrive(self, payloads: Sequence[bytes]) -> None:
        """Take datagrams from the other socket."""
        if not self._inbox:
            self._loop.call_soon(self._deliver)
        self._inbox.extend(payloads)

    def _deliver(self) -> None:
        before = time.process_time()
        now = self._loop.clock.read()
        payloads = [self._inbox.popleft() for _ in range(min(self._batch, len(self._inbox)))]
        if self._inbox:
            self._loop.call_soon(self._deliver)
        self.carried += len(payloads)
        remote = SERVER if self.local_address == CLIENT else CLIENT
        self._meter.own_s += time.process_time() - before
        self.owner.datagrams_received([DatagramBatch(remote, self.local_address.host, payloads)], now)

    def close(self) -> None:
        self.other = None


class _MemoryIo(AsyncioIo):
    """The I/O port with that socket."""

    def __init__(self, batch: int, meter: _Meter) -> None:
        super().__init__(asyncio.get_running_loop())
        self._meter = meter
        self._chance = random.Random(1)
        self._batch = batch
        self.sockets: dict[TransportAddress, _MemorySocket] = {}

    def open_udp(self, local: TransportAddress, owner: Any, *, may_fragment: bool = False) -> Any:
        del may_fragment
        made = self.sockets[local] = _MemorySocket(local, owner, self._batch, self._meter)
        return made


class _Application(Concern):
    """The service or its client: an actor, as the real ones are."""

    name = "service_port"
    handlers: ClassVar = {
        quic_session_pb2.SessionEstablished: "session_established",
        quic_session_pb2.PayloadReceived: "payload_received",
        quic_session_pb2.PayloadAcknowledged: "payload_acknowledged",
    }

    def __init__(self, context: Context, to_send: int, done: asyncio.Event, meter: _Meter) -> None:
        super().__init__(context)
        self._meter = meter
        self._to_send = to_send
        self._sent = self._unacknowledged = 0
        self._done = done
        self._is_client = not to_send
        self.received = 0

    def session_established(self, _message: quic_session_pb2.SessionEstablished) -> None:
        if self._is_client:
            self.emit(quic_session_pb2.SendPayload(session_id=SESSION, data=b"GET", end_of_stream=True))

    def payload_received(self, message: quic_session_pb2.PayloadReceived) -> None:
        if not self._is_client:
            self._feed()
            return
        self._meter.begin()
        self.received += len(message.data)
        if message.data:
            self.emit(quic_session_pb2.PayloadConsumed(session_id=SESSION, size_bytes=len(message.data)))
        if self.received >= SIZE_BYTES:
            self._done.set()

    def payload_acknowledged(self, message: quic_session_pb2.PayloadAcknowledged) -> None:
        if not self._is_client:
            self._unacknowledged -= message.size_bytes
            self._feed()

    def _feed(self) -> None:
        before = time.process_time()
        while self._sent < self._to_send and self._unacknowledged < BACKLOG_BYTES:
            self._unacknowledged += CHUNK_BYTES
            self._sent += CHUNK_BYTES
            self.emit(
                quic_session_pb2.SendPayload(
                    session_id=SESSION, data=bytes(CHUNK_BYTES), end_of_stream=self._sent >= self._to_send
                )
            )
        self._meter.own_s += time.process_time() - before


HEARERS: Final[dict[type[Message], str]] = {
    udp_socket_pb2.SendDatagrams: "udp_socket",
    udp_socket_pb2.UpdateConnectionIds: "udp_socket",
    udp_socket_pb2.DatagramsReceived: "quic_session",
    quic_session_pb2.SendPayload: "quic_session",
    quic_session_pb2.PayloadConsumed: "quic_session",
    quic_session_pb2.SessionEstablished: "service_port",
    quic_session_pb2.PayloadReceived: "service_port",
    quic_session_pb2.PayloadAcknowledged: "service_port",
}


def _context(io: AsyncioIo, emit: Callable[[Message], None]) -> Context:
    log = structlog.wrap_logger(
        structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )
    return Context(io=cast("Any", io), emit=emit, log=log, key=SESSION.hex())


class _Told(NamedTuple):
    """A message, as what it is built of."""

    kind: type[Message]
    fields: dict[str, Any]

    @classmethod
    def of(cls, message: Message) -> _Told:
        fields = {field.name: value for field, value in message.ListFields()}
        plain = (bool, int, float, str, bytes, Message)
        return cls(
            type(message),
            {name: value if isinstance(value, plain) else list(value) for name, value in fields.items()},
        )


@dataclass(slots=True)
class _Recording:
    """What the actors of both ends told each other during one download."""

    told: list[_Told] = field(default_factory=list)
    packets: int = 0


class _Reader(Concern):
    """Stands for any actor, and does nothing with what it is told."""

    name = "reader"
    handlers: ClassVar = {
        **dict.fromkeys(HEARERS, "ignore"),
        udp_socket_pb2.DatagramsReceived: "read_datagrams",
        udp_socket_pb2.SendDatagrams: "read_datagrams",
        quic_session_pb2.PayloadReceived: "read_data",
        quic_session_pb2.SendPayload: "read_data",
    }

    def read_datagrams(self, message: udp_socket_pb2.DatagramsReceived) -> None:
        """Take each out, once."""
        for _ in message.datagrams:
            pass

    def read_data(self, message: quic_session_pb2.PayloadReceived) -> None:
        """Take it out."""
        _ = message.data

    def ignore(self, message: Message) -> None:
        """Nobody needs more of it than that it came."""


async def _messages(recording: _Recording) -> float:
    """Microseconds per data packet that these messages take by themselves."""
    context = _context(AsyncioIo(asyncio.get_running_loop()), lambda _message: None)
    runtime = LoopRuntime(context.io)
    refs = {name: runtime.start(_Reader, context) for name in set(HEARERS.values())}
    started = time.process_time()
    for kind, fields in recording.told:
        if kind is udp_socket_pb2.DatagramsReceived:  # what a socket has begins a turn of the loop
            await asyncio.sleep(0)
        refs[HEARERS[kind]].tell(kind(**fields))
    while any(ref.inbox_depth() for ref in refs.values()):  # noqa: ASYNC110 - a turn of the loop is all it takes
        await asyncio.sleep(0)
    spent_s = time.process_time() - started
    await _stop(refs.values())
    return spent_s / recording.packets * 1e6


async def _stop(refs: Collection[ConcernRef]) -> None:
    for ref in refs:
        request_stop(ref)
    while any(ref.is_alive() for ref in refs):  # noqa: ASYNC110 - a turn of the loop is all it takes
        await asyncio.sleep(0)


class _Node:
    """The actors of one end, told what the wiring would tell them."""

    def __init__(
        self, io: _MemoryIo, local: TransportAddress, recorded: list[_Told] | None, *, is_client: bool
    ) -> None:
        self.context = _context(io, self._emit)
        self._recorded = recorded
        self.refs: dict[str, ConcernRef] = {}
        self.other: _Node | None = None
        self.local = local
        self.is_client = is_client

    def start(self, make: Callable[[bytes, bool], Connection], application: _Application) -> None:
        """Start every actor."""
        runtime = LoopRuntime(self.context.io)
        self.refs["udp_socket"] = runtime.start(UdpSocket, self.context, [self.local])
        self.refs["service_port"] = runtime.start(lambda _context: application, self.context)
        self.refs["quic_session"] = runtime.start(
            lambda context: QuicSession(
                context, lambda cid: make(cid, self.is_client), lambda _peer: None, is_client=self.is_client
            ),
            self.context,
        )

    def select(self, remote: TransportAddress) -> None:
        """Let the handshake pass over the relay, and all that follows directly."""
        self.refs["quic_session"].tell(
            path_manager_pb2.PathSelected(
                kind=types_pb2.PATH_KIND_RELAY, intermediate_id=INTERMEDIATE, max_packet_bytes=1200
            )
        )
        self.refs["quic_session"].tell(
            path_manager_pb2.PathSelected(
                kind=types_pb2.PATH_KIND_DIRECT,
                standby_intermediate_id=INTERMEDIATE,
                remote=types_pb2.TransportAddress(host=remote.host, port=remote.port),
                max_packet_bytes=1200,
            )
        )

    def _emit(self, message: Message) -> None:
        if isinstance(message, relay_leg_pb2.SendSealed):
            if self.other is not None:
                self.other.refs["quic_session"].tell(
                    relay_leg_pb2.SealedReceived(
                        intermediate_id=INTERMEDIATE, session_id=SESSION, packets=message.packets
                    )
                )
        elif (hearer := HEARERS.get(type(message))) is not None:
            if self._recorded is not None:
                self._recorded.append(_Told.of(message))
            self.refs[hearer].tell(message)


async def _actors(
    make: Callable[[bytes, bool], Connection], meter: _Meter, batch: int, recording: _Recording | None
) -> Cost:
    """A whole download, without the handshake."""
    io, done = _MemoryIo(batch, meter), asyncio.Event()
    told = None if recording is None else recording.told
    client, server = _Node(io, CLIENT, told, is_client=True), _Node(io, SERVER, told, is_client=False)
    client.other, server.other = server, client
    client.start(make, _Application(client.context, 0, done, meter))
    server.start(make, _Application(server.context, SIZE_BYTES, done, meter))
    here, there = io.sockets[CLIENT], io.sockets[SERVER]
    here.other, there.other = there, here
    server.select(CLIENT)
    client.select(SERVER)
    await asyncio.wait_for(done.wait(), RUN_LIMIT_S)
    cost = meter.end(here.carried)
    if recording is not None:
        recording.packets = here.carried
    await _stop([*client.refs.values(), *server.refs.values()])
    return cost


def _accept(identity: Identity) -> Callable[[Sequence[x509.Certificate]], VerifiedPeer]:
    return lambda chain: VerifiedPeer(identity, bytes(32), chain[0], math.inf)


class _Identities:
    """Two certificates of one CA."""

    def __init__(self, directory: Path) -> None:
        now = time.time()
        ca = authority.create_ca("bench.test", now)
        self.options: dict[str, ConnectionOptions] = {}
        self._directory = directory
        client = Identity("bench.test", Role.AGENT, "client")
        server = Identity("bench.test", Role.CONNECTOR, "server")
        for identity, peer in ((client, server), (server, client)):
            name, issued = identity.id, authority.issue(ca, identity, now)
            (directory / f"{name}.crt").write_bytes(issued.certificate_pem)
            (directory / f"{name}.key").write_bytes(issued.key_pem)
            key = load_pem_private_key(issued.key_pem, None)
            assert isinstance(key, PrivateKey)  # noqa: S101 - we made it
            self.options[name] = ConnectionOptions.inner(
                certificate=x509.load_pem_x509_certificate(issued.certificate_pem),
                private_key=key,
                verify_peer=_accept(peer),
            )

    def aioquic(self, batch: int) -> Cost:
        """A download between two connections of aioquic."""
        configurations = [
            QuicConfiguration(
                is_client=is_client,
                alpn_protocols=[ALPN],
                verify_mode=ssl.CERT_NONE,
                max_datagram_size=1200,
                max_datagram_frame_size=1200,
                congestion_control_algorithm="cubic",  # as ours
            )
            for is_client in (True, False)
        ]
        configurations[1].load_cert_chain(self._directory / "server.crt", self._directory / "server.key")
        clock = _Clock()
        client = QuicConnection(configuration=configurations[0])
        client.connect(("192.0.2.9", 9), clock.now)
        server = QuicConnection(
            configuration=configurations[1],
            original_destination_connection_id=client.original_destination_connection_id,
        )
        meter = _Meter()
        for each in (client, server):
            meter.watch(each)
        return _exchange(_Aioquic(client, 0), _Aioquic(server, SIZE_BYTES), clock, meter, batch)

    def core(self, batch: int) -> Cost:
        """The same between two connections of ours."""
        clock, meter = _Clock(), _Meter()
        client = _Core(self.options["client"], 0, meter, clock.now)
        server = _Core(self.options["server"], SIZE_BYTES, meter, clock.now)
        return _exchange(client, server, clock, meter, batch)

    def actors(self, batch: int, recording: _Recording | None = None) -> Cost:
        """The same between the actors of two daemons."""
        with asyncio.Runner(loop_factory=_Loop) as runner:
            meter = _Meter()
            return runner.run(_actors(partial(self._connection, meter), meter, batch, recording))

    def recording(self, batch: int) -> _Recording:
        """What those actors tell each other."""
        recording = _Recording()
        self.actors(batch, recording)
        return recording

    def _connection(self, meter: _Meter, destination_cid: bytes, is_client: bool) -> Connection:
        """For `QuicSession`."""
        if is_client:
            return _watched(Connection.client(self.options["client"]), meter)
        return _watched(Connection.server(self.options["server"], destination_cid=destination_cid), meter)


def _median(figures: Iterable[float]) -> float:
    return round(statistics.median(figures), 3)


def _row(identities: _Identities, batch: int) -> dict[str, float]:
    ways = (identities.aioquic, identities.core, identities.actors)
    recording = identities.recording(batch)
    rounds: list[list[Cost]] = []
    messages: list[float] = []
    for number in range(ROUNDS):
        costs = {}
        for place in range(len(ways)):
            gc.collect()  # each run begins with as little to clean up as the others
            way = (number + place) % len(ways)
            costs[way] = ways[way](batch)
        rounds.append([costs[way] for way in range(len(ways))])
        gc.collect()
        with asyncio.Runner(loop_factory=_Loop) as runner:
            messages.append(runner.run(_messages(recording)))
    aioquic, connection, actors = zip(*rounds, strict=True)
    return {
        "aioquic_us": _median(each.aioquic_us for each in aioquic),
        "inside_us": _median(each.aioquic_us for each in actors),
        "layers_us": _median(each.rest_us for each in actors),
        "driver": _median(each.share for each in aioquic),
        "connection": _median(each.share for each in connection),
        "messages": _median(
            alone_us / each.aioquic_us for alone_us, each in zip(messages, actors, strict=True)
        ),
        "layers": _median(each.share for each in actors),
    }


def run() -> dict[str, Any]:
    """Microseconds of both ends per data packet, and shares of what aioquic costs; medians."""
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        identities = _Identities(Path(name))
        rows = {batch: _row(identities, batch) for batch in MOST}
    return {
        "batches": {f"batch_{batch}": {**row, "most": MOST[batch]} for batch, row in rows.items()},
        "violations": [
            f"batches of {batch}: our layers cost {row['layers']:.0%} of what aioquic costs, "
            f"allowed are {MOST[batch]:.0%}"
            for batch, row in rows.items()
            if row["layers"] > MOST[batch]
        ],
    }
