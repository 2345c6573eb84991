"""Applications whose every byte and datagram says where it belongs, and which notice when it does not.

A stream begins with a header of fixed size, then carries `pattern(stream, direction)`; the service ends with
a receipt of what it got. A datagram names its flow and its number. Whatever arrives is compared at once.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from actors.io import DatagramBatch, TcpStream
from tests.simnet.sim_io import WILDCARD, SimIo, SimUdpSocket
from tools.simulate.scenario import Work
from ztna.address import TransportAddress

MARK: Final = b"PLAINTXT"
"""In every payload, at least once in 64 bytes: nobody but the two ends and their applications may see it."""
HEADER: Final = struct.Struct(">8sIIIIdB")
RECEIPT: Final = struct.Struct(">8sII")
DATAGRAM: Final = struct.Struct(">8sIIBH")
"""With its own size, so that one that was cut short, or grew, is known."""
BLOCK_BYTES: Final = 1024
UNIT: Final = struct.Struct(">8sIBxH")
UNITS: Final = BLOCK_BYTES // UNIT.size
CONNECT_TIMEOUT_S: Final = 30.0
CHUNK_BYTES: Final = 4096
LOOPBACK: Final = "127.0.0.1"

Report = Callable[[str], None]
"""Takes a violation."""


@lru_cache(maxsize=512)
def _block(stream: int, direction: int, number: int) -> bytes:
    first = number * UNITS
    return b"".join(UNIT.pack(MARK, stream, direction, (first + each) & 0xFFFF) for each in range(UNITS))


def pattern(stream: int, direction: int, offset: int, size: int) -> bytes:
    """`size` bytes of what a direction of a stream carries, from `offset` on."""
    first, last = offset // BLOCK_BYTES, (offset + size + BLOCK_BYTES - 1) // BLOCK_BYTES
    whole = b"".join(_block(stream, direction, number) for number in range(first, last))
    return whole[offset - first * BLOCK_BYTES :][:size]


class _Check:
    """Compares what arrives in one direction of a stream with what must."""

    def __init__(
        self, stream: int, direction: int, size: int, report: Report, where: str, *, stall_s: float = math.inf
    ) -> None:
        """Bytes do not pause for longer than `stall_s`, once they flow."""
        self.received = 0
        self._stall_s = stall_s
        self._heard_at = math.inf
        self._stream, self._direction, self._size = stream, direction, size
        self._report, self._where = report, where

    def take(self, data: bytes, now: float) -> bytes:
        """Take bytes, and return those behind the end."""
        mine = data[: self._size - self.received]
        if mine and now > self._heard_at + self._stall_s:
            self._report(f"{self._where}: stood still for {now - self._heard_at:.1f} s, with a way around")
        self._heard_at = now
        if mine != pattern(self._stream, self._direction, self.received, len(mine)):
            self._report(f"{self._where}: wrong bytes within {len(mine)} from offset {self.received}")
        self.received += len(mine)
        return data[len(mine) :]

    @property
    def is_whole(self) -> bool:
        return self.received == self._size


class _Feed:
    """Writes one direction of a stream, in chunks that are spread over `over_s`."""

    def __init__(
        self, io: SimIo, stream: TcpStream, number: int, direction: int, size: int, over_s: float
    ) -> None:
        self._io, self._stream = io, stream
        self._number, self._direction, self._size = number, direction, size
        self.offset = 0
        self._waiting = 0
        chunks = max(1, -(-size // CHUNK_BYTES))
        self._gap_s = over_s / chunks
        self._begun_at = io.time()
        self.on_done: Callable[[], None] = lambda: None
        self.is_over = False

    def start(self) -> None:
        """Begin."""
        self._send()

    def written(self, count: int) -> None:
        """The socket took bytes."""
        self._waiting -= count

    def stop(self) -> None:
        """The connection is gone."""
        self.is_over = True

    def _send(self) -> None:
        while not self.is_over:
            if self.offset >= self._size:
                self.is_over = True
                self.on_done()
                return
            count = min(CHUNK_BYTES, self._size - self.offset)
            self._stream.write(pattern(self._number, self._direction, self.offset, count))
            self.offset += count
            if self._gap_s:
                self._io.call_at(self._io.time() + self._gap_s, self._send)
                return


class StreamService:
    """What stands behind a connector, TCP and UDP; a machine of its own."""

    def __init__(self, io: SimIo, connector: str, tcp_port: int, udp_port: int, report: Report) -> None:
        self.io = io
        self.connector = connector
        self.report = report
        self.open: dict[_Served, None] = {}
        self.is_slow = False
        self.served = 0
        wildcard = WILDCARD[TransportAddress(io.host.addresses[0], 0).family]
        self.listener = io.listen_tcp(TransportAddress(wildcard, tcp_port), self._accept)
        self._flows: dict[TransportAddress, tuple[int, set[int]]] = {}
        self._seen: set[tuple[int, int]] = set()
        self.socket = io.open_udp(TransportAddress(wildcard, udp_port), self, may_fragment=True)
        self.datagrams = 0
        self.stall_s = math.inf
        """For longer no stream may pause."""
        self.whole: set[int] = set()
        """Streams whose upload came to its end."""
        self.allows: Callable[[int], bool] = lambda _number: True
        """Whether a stream or flow of this number may come here."""

    def slow(self, *, is_slow: bool) -> None:
        """Stop reading every connection, or go on."""
        self.is_slow = is_slow
        for each in list(self.open):
            if is_slow:
                each.stream.pause_reading()
            else:
                each.stream.resume_reading()

    def _accept(self, stream: TcpStream) -> _Served:
        return _Served(self, stream)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Look at each, and send it back."""
        del now
        for batch in batches:
            for payload in batch.payloads:
                self._datagram(payload, batch.remote)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """The peer is gone."""

    def _datagram(self, payload: bytes, remote: TransportAddress) -> None:
        self.datagrams += 1
        where = f"service of {self.connector}"
        if len(payload) < DATAGRAM.size:
            self.report(f"{where}: datagram of {len(payload)} bytes that nobody sent")
            return
        mark, flow, number, direction, size = DATAGRAM.unpack_from(payload)
        if payload != datagram(flow, number, 0, size) or mark != MARK or direction:
            self.report(f"{where}: datagram that nobody sent like this")
            return
        if not self.allows(flow):
            self.report(f"{where}: datagram of flow {flow}, which may not come here")
        known, _ = self._flows.setdefault(remote, (flow, set()))
        if known != flow:
            # A later flow may be given the port of one that is over, but never while both live.
            self.report(f"{where}: flow {flow} from {remote}, which belongs to flow {known}")
        if (flow, number) in self._seen:
            self.report(f"{where}: datagram {number} of flow {flow} twice")
        self._seen.add((flow, number))
        self.socket.send([datagram(flow, number, 1, len(payload))], remote)


def datagram(flow: int, number: int, direction: int, size: int) -> bytes:
    """A datagram of at least `DATAGRAM.size` bytes."""
    head = DATAGRAM.pack(MARK, flow, number, direction, size)
    # With a mark in each fragment of it.
    filler = MARK + hashlib.sha256(head).digest()
    return (head + filler * (size // len(filler) + 1))[: max(size, len(head))]


class _Served:
    """The service's end of one connection."""

    def __init__(self, service: StreamService, stream: TcpStream) -> None:
        self._service = service
        self.stream = stream
        self._head = b""
        self._check: _Check | None = None
        self._feed: _Feed | None = None
        self._number = 0
        self._has_ended = False

    def connected(self, stream: TcpStream) -> None:
        """Read."""
        self._service.open[self] = None
        if not self._service.is_slow:
            stream.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take the header, then the upload."""
        if self._check is None:
            self._head += data
            if len(self._head) < HEADER.size:
                return
            data = self._head[HEADER.size :]
            self._start(self._head[: HEADER.size])
        elif not self._service.allows(self._number):
            self._service.report(
                f"service of {self._service.connector}: bytes of stream {self._number}, "
                "which may not come here any more"
            )
        if self._check is not None and self._check.take(data, self._service.io.time()):
            self._service.report(f"stream {self._number} at the service: bytes behind the end")

    def eof_received(self) -> None:
        """The client has said everything."""
        self._has_ended = True
        self._finish()

    def bytes_written(self, count: int) -> None:
        """Send on."""
        if self._feed is not None:
            self._feed.written(count)

    def connection_lost(self, error: OSError | None) -> None:
        """Stop."""
        del error
        self._service.open.pop(self, None)
        if self._feed is not None:
            self._feed.stop()

    def _start(self, head: bytes) -> None:
        mark, number, connector, up, down, over_s, ends_first = HEADER.unpack(head)
        self._number = number
        service = self._service
        if mark != MARK:
            service.report(f"service of {service.connector}: a header that nobody sent")
            self.stream.abort()
            return
        if not service.allows(number) or connector != hash_of(service.connector):
            service.report(f"service of {service.connector}: stream {number}, which may not come here")
        service.served += 1
        where = f"stream {number} at the service of {service.connector}"
        stall_s = service.stall_s + over_s / max(1, up // CHUNK_BYTES)
        self._check = _Check(number, 0, up, service.report, where, stall_s=stall_s)
        self._feed = _Feed(service.io, self.stream, number, 1, down, over_s)
        self._ends_first = bool(ends_first)
        self._feed.on_done = self._finish
        self._feed.start()

    def _finish(self) -> None:
        if self._check is None or self._feed is None or not self._feed.is_over:
            if self._has_ended and self._check is None:
                self.stream.write_eof()
            return
        if self._ends_first and not self._has_ended:
            # A half-close from this side: the upload goes on beneath it.
            self.stream.write_eof()
        elif self._has_ended:
            if not self._check.is_whole:
                self._service.report(
                    f"stream {self._number} ended at the service after {self._check.received} bytes"
                )
            self._service.whole.add(self._number)
            self.stream.write(RECEIPT.pack(MARK, self._number, self._check.received))
            self.stream.write_eof()


def hash_of(name: str) -> int:
    """32 bits of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


@dataclass(eq=False)
class StreamClient:
    """An application that has one connection."""

    io: SimIo
    number: int
    work: Work
    port: int
    report: Report
    stall_s: float = math.inf
    started_at: float = 0.0
    answered_at: float | None = None
    lost_at: float | None = None
    error: OSError | None = None
    is_complete: bool = False
    allows: Callable[[], bool] = field(default=lambda: True, repr=False)
    """Whether bytes of the service may come here."""
    _stream: TcpStream | None = field(default=None, repr=False)
    _tail: bytes = b""
    _has_remote_ended: bool = False

    def __post_init__(self) -> None:
        """Connect."""
        self.started_at = self.io.time()
        stall_s = self.stall_s + self.work.over_s / max(1, self.work.down // CHUNK_BYTES)
        self._check = _Check(
            self.number,
            1,
            self.work.down,
            self.report,
            f"stream {self.number} at the client",
            stall_s=stall_s,
        )
        self._feed: _Feed | None = None
        self.io.connect_tcp(LOOPBACK, self.port, CONNECT_TIMEOUT_S, self)

    @property
    def is_over(self) -> bool:
        """Whether the connection is over, one way or the other."""
        return self.lost_at is not None

    @property
    def received(self) -> int:
        """Bytes of the download."""
        return self._check.received

    def connected(self, stream: TcpStream) -> None:
        """Send the header, and the upload."""
        work = self.work
        self._stream = stream
        stream.resume_reading()
        stream.write(
            HEADER.pack(
                MARK, self.number, hash_of(work.connector), work.up, work.down, work.over_s, work.ends_late
            )
        )
        self._feed = _Feed(self.io, stream, self.number, 0, work.up, work.over_s)
        self._feed.on_done = self._end
        self._feed.start()

    def data_received(self, data: bytes) -> None:
        """Compare."""
        if not self.allows():
            self.report(f"stream {self.number} at the client: bytes that may not come here any more")
        if self.answered_at is None:
            self.answered_at = self.io.time()
            if self.work.pause_s and self._stream is not None:
                self._stream.pause_reading()
                self.io.call_at(self.io.time() + self.work.pause_s, self._stream.resume_reading)
        self._tail += self._check.take(data, self.io.time())
        if len(self._tail) > RECEIPT.size:
            self.report(f"stream {self.number} at the client: bytes behind the end")

    def eof_received(self) -> None:
        """The service has said everything."""
        self._has_remote_ended = True
        expected = b"" if self.work.ends_late else RECEIPT.pack(MARK, self.number, self.work.up)
        if not self._check.is_whole or self._tail != expected:
            self.report(
                f"stream {self.number} ended at the client after {self._check.received} bytes "
                f"and a receipt of {len(self._tail)}"
            )
        else:
            self.is_complete = True
        self._end()

    def bytes_written(self, count: int) -> None:
        """Send on."""
        if self._feed is not None:
            self._feed.written(count)

    def connection_lost(self, error: OSError | None) -> None:
        """Take note."""
        self.lost_at = self.io.time()
        self.error = error
        if self._feed is not None:
            self._feed.stop()

    def _end(self) -> None:
        is_fed = self._feed is not None and self._feed.is_over
        if self._stream is not None and is_fed and (self._has_remote_ended or not self.work.ends_late):
            self._stream.write_eof()


@dataclass(eq=False)
class FlowClient:
    """An application that sends datagrams and hears them come back."""

    io: SimIo
    number: int
    work: Work
    port: int
    report: Report
    sent: int = 0
    answered: set[int] = field(default_factory=set)
    is_open: bool = True

    def __post_init__(self) -> None:
        """Begin to send."""
        self._remote = TransportAddress(LOOPBACK, self.port)
        self._socket: SimUdpSocket = self.io.open_udp(TransportAddress(LOOPBACK, 0), self, may_fragment=True)
        self._gap_s = self.work.over_s / max(1, self.work.up)
        self._send_next()

    def send(self) -> int:
        """Send one more datagram; its number."""
        number = self.sent
        self.sent += 1
        self._socket.send([datagram(self.number, number, 0, self.work.down)], self._remote)
        return number

    @property
    def latest_answer(self) -> int:
        """The highest number that was answered; -1: none."""
        return max(self.answered, default=-1)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Compare."""
        del now
        for batch in batches:
            for payload in batch.payloads:
                self._answer(payload)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """Nothing to be done."""

    def _answer(self, payload: bytes) -> None:
        where = f"flow {self.number} at the client"
        if len(payload) < DATAGRAM.size:
            self.report(f"{where}: answer of {len(payload)} bytes that nobody sent")
            return
        _, flow, number, _, _ = DATAGRAM.unpack_from(payload)
        if flow != self.number or payload != datagram(flow, number, 1, self.work.down):
            self.report(f"{where}: answer of flow {flow}, or changed on its way")
        elif number in self.answered:
            self.report(f"{where}: answer {number} twice")
        self.answered.add(number)

    def _send_next(self) -> None:
        if self.sent < self.work.up:
            self.send()
            self.io.call_at(self.io.time() + self._gap_s, self._send_next)
