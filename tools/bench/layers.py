"""What our layers cost for each packet, over what aioquic costs, in one process and without the kernel.

Two ends exchange a download in batches of `BATCHES` packets, three ways: two connections of aioquic as it
comes; our sans-IO connection (`ztna.quic.connection`); and the real actors on top of it, socket actor with
demultiplexing, protobuf messages, hops, path and traffic cores. Processor time of both ends together, per
data packet, the best of `ROUNDS`. `overhead` is of the actors over our connection, what the layers above QUIC
add: the median over the rounds, in each of which the ways take turns, since a busy machine disturbs all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, cast

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
BATCHES: Final = (8, 32)
CHUNK_BYTES: Final = 1 << 16
# What a sender keeps unacknowledged; aioquic copies its buffer, so more of it costs more.
BACKLOG_BYTES: Final = 256 * 1024
RUN_LIMIT_S: Final = 60.0
ALPN: Final = "ztna/1"
SESSION: Final = b"s" * 16
INTERMEDIATE: Final = "intermediate"
CLIENT, SERVER = TransportAddress("192.0.2.1", 1000), TransportAddress("192.0.2.2", 2000)


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


class _Core:
    """Our connection, driven as its module says."""

    def __init__(self, options: ConnectionOptions, to_send: int) -> None:
        self._options = options
        self._to_send = to_send
        self._connection: Connection | None = None
        self._is_asked = False
        self._is_quiet = False
        self.received = 0
        if not to_send:
            self._connection = Connection.client(options)
            self._connection.connect(time.monotonic())
            self._connection.send_stream(self._connection.open_stream(), b"GET", end=True)

    def receive(self, packets: Sequence[bytes], now: float) -> None:
        if self._connection is None:
            self._connection = Connection.server(
                self._options, destination_cid=demux.destination_cid(packets[0]) or b""
            )
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


def _exchange(client: _End, server: _End, batch: int) -> tuple[float, int]:
    """Processor seconds and data packets of a whole download, without the handshake's first flights."""
    now, skipped_s, carried = time.monotonic(), 0.0, 0
    to_client: deque[bytes] = deque()
    to_server: deque[bytes] = deque(client.transmit(now))
    started: float | None = None
    while client.received < SIZE_BYTES:
        if started is None and client.received:
            started = time.process_time()
        now = time.monotonic() + skipped_s
        if not to_client and not to_server:  # nobody waits for a timer
            due = min(end.deadline() or math.inf for end in (client, server))
            skipped_s += max(0.0, due - now)
            now = max(now, due)
        for end, inbox, outbox in ((client, to_client, to_server), (server, to_server, to_client)):
            if inbox:
                packets = [inbox.popleft() for _ in range(min(batch, len(inbox)))]
                carried += len(packets) if end is client and started is not None else 0
                end.receive(packets, now)
            deadline = end.deadline()
            if deadline is not None and now >= deadline:
                end.time_out(now)
            outbox.extend(end.transmit(now))
    return time.process_time() - (started or 0.0), carried


class _MemorySocket:
    """A UDP socket whose datagrams reach the other one in batches of a given size."""

    dropped = 0

    def __init__(self, local: TransportAddress, owner: Any, batch: int) -> None:
        self.local_address = local
        self.owner = owner
        self.other: _MemorySocket | None = None
        self.carried = 0
        self._batch = batch
        self._inbox: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()

    def send(self, payloads: Sequence[bytes], remote: TransportAddress, local_host: str = "") -> int:
        del remote, local_host
        if self.other is not None:
            self.other.arrive(payloads)
        return len(payloads)

    def arrive(self, payloads: Sequence[bytes]) -> None:
        """Take datagrams from the other socket."""
        if not self._inbox:
            self._loop.call_soon(self._deliver)
        self._inbox.extend(payloads)

    def _deliver(self) -> None:
        payloads = [self._inbox.popleft() for _ in range(min(self._batch, len(self._inbox)))]
        if self._inbox:
            self._loop.call_soon(self._deliver)
        self.carried += len(payloads)
        remote = SERVER if self.local_address == CLIENT else CLIENT
        self.owner.datagrams_received([DatagramBatch(remote, self.local_address.host, payloads)], 0.0)

    def close(self) -> None:
        self.other = None


class _MemoryIo(AsyncioIo):
    """The I/O port with that socket."""

    def __init__(self, batch: int) -> None:
        super().__init__(asyncio.get_running_loop())
        self._chance = random.Random(1)
        self._batch = batch
        self.sockets: dict[TransportAddress, _MemorySocket] = {}

    def open_udp(self, local: TransportAddress, owner: Any, *, may_fragment: bool = False) -> Any:
        del may_fragment
        made = self.sockets[local] = _MemorySocket(local, owner, self._batch)
        return made


class _Application(Concern):
    """The service or its client: an actor, as the real ones are."""

    name = "service_port"
    handlers: ClassVar = {
        quic_session_pb2.SessionEstablished: "session_established",
        quic_session_pb2.PayloadReceived: "payload_received",
        quic_session_pb2.PayloadAcknowledged: "payload_acknowledged",
    }

    def __init__(self, context: Context, to_send: int, done: asyncio.Event) -> None:
        super().__init__(context)
        self._to_send = to_send
        self._sent = self._unacknowledged = 0
        self._done = done
        self._is_client = not to_send
        self.received = 0
        self.started: float | None = None

    def session_established(self, _message: quic_session_pb2.SessionEstablished) -> None:
        if self._is_client:
            self.emit(quic_session_pb2.SendPayload(session_id=SESSION, data=b"GET", end_of_stream=True))

    def payload_received(self, message: quic_session_pb2.PayloadReceived) -> None:
        if not self._is_client:
            self._feed()
            return
        if self.started is None:
            self.started = time.process_time()
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
        while self._sent < self._to_send and self._unacknowledged < BACKLOG_BYTES:
            self._unacknowledged += CHUNK_BYTES
            self._sent += CHUNK_BYTES
            self.emit(
                quic_session_pb2.SendPayload(
                    session_id=SESSION, data=bytes(CHUNK_BYTES), end_of_stream=self._sent >= self._to_send
                )
            )


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


class _Node:
    """The actors of one end, told what the wiring would tell them."""

    def __init__(self, io: _MemoryIo, local: TransportAddress, *, is_client: bool) -> None:
        log = structlog.wrap_logger(
            structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
        )
        self.context = Context(io=cast("Any", io), emit=self._emit, log=log, key=SESSION.hex())
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
            self.refs[hearer].tell(message)


async def _actors(make: Callable[[bytes, bool], Connection], batch: int) -> tuple[float, int]:
    """Processor seconds and data packets of a whole download, without the handshake."""
    io, done = _MemoryIo(batch), asyncio.Event()
    client, server = _Node(io, CLIENT, is_client=True), _Node(io, SERVER, is_client=False)
    client.other, server.other = server, client
    reader = _Application(client.context, 0, done)
    client.start(make, reader)
    server.start(make, _Application(server.context, SIZE_BYTES, done))
    here, there = io.sockets[CLIENT], io.sockets[SERVER]
    here.other, there.other = there, here
    server.select(CLIENT)
    client.select(SERVER)
    await asyncio.wait_for(done.wait(), RUN_LIMIT_S)
    cpu_s = time.process_time() - (reader.started or 0.0)
    refs = [*client.refs.values(), *server.refs.values()]
    for ref in refs:
        request_stop(ref)
    while any(ref.is_alive() for ref in refs):  # noqa: ASYNC110 - a turn of the loop is all it takes
        await asyncio.sleep(0)
    return cpu_s, here.carried


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

    def aioquic(self, batch: int) -> tuple[float, int]:
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
        client = QuicConnection(configuration=configurations[0])
        client.connect(("192.0.2.9", 9), time.monotonic())
        server = QuicConnection(
            configuration=configurations[1],
            original_destination_connection_id=client.original_destination_connection_id,
        )
        return _exchange(_Aioquic(client, 0), _Aioquic(server, SIZE_BYTES), batch)

    def core(self, batch: int) -> tuple[float, int]:
        """The same between two connections of ours."""
        return _exchange(_Core(self.options["client"], 0), _Core(self.options["server"], SIZE_BYTES), batch)

    def actors(self, batch: int) -> tuple[float, int]:
        """The same between the actors of two daemons."""
        return asyncio.run(_actors(self.connection, batch))

    def connection(self, destination_cid: bytes, is_client: bool) -> Connection:
        """For `QuicSession`."""
        if is_client:
            return Connection.client(self.options["client"])
        return Connection.server(self.options["server"], destination_cid=destination_cid)


def _median(figures: Iterable[float]) -> float:
    return round(statistics.median(figures), 3)


def run() -> dict[str, Any]:
    """Microseconds per data packet of each way, `overhead` and `actors_to_aioquic` as shares of them."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        identities = _Identities(Path(name))
        ways = {"aioquic": identities.aioquic, "connection": identities.core, "actors": identities.actors}
        for batch in BATCHES:
            rounds = []
            for _ in range(ROUNDS):
                measured = {way: measure(batch) for way, measure in ways.items()}
                rounds.append({way: cpu_s / packets * 1e6 for way, (cpu_s, packets) in measured.items()})
            results[f"batch_{batch}"] = {
                **{f"{way}_us": round(min(each[way] for each in rounds), 1) for way in ways},
                "overhead": _median(each["actors"] / each["connection"] - 1 for each in rounds),
                "actors_to_aioquic": _median(each["actors"] / each["aioquic"] for each in rounds),
            }
    return results
