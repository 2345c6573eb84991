"""Simulated applications: services behind a connector, and clients of an agent's local listeners."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from actors.io import DatagramBatch, TcpStream
from tests.simnet.sim_io import SimIo
from ztna.address import TransportAddress

CHUNK_BYTES: Final = 16 * 1024
# What an application leaves in its socket's send buffer.
SEND_BUFFER_BYTES: Final = 128 * 1024
LOOPBACK: Final = "127.0.0.1"
CONNECT_TIMEOUT_S: Final = 10.0


def content(size: int) -> Iterator[bytes]:
    """`size` bytes in chunks, each of which differs from all others."""
    for offset in range(0, size, CHUNK_BYTES):
        block = hashlib.sha256(offset.to_bytes(8, "big")).digest()
        yield (block * (CHUNK_BYTES // len(block)))[: min(CHUNK_BYTES, size - offset)]


def digest_of(chunks: Iterator[bytes]) -> str:
    """SHA-256 of all chunks, hex."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def content_digest(size: int) -> str:
    """SHA-256 of `content(size)`, hex."""
    return digest_of(content(size))


class Sender:
    """Feeds a stream from an iterator, no faster than its socket takes the bytes."""

    def __init__(self, stream: TcpStream, chunks: Iterator[bytes], *, ends: bool = True) -> None:
        self._stream = stream
        self._chunks = chunks
        self._ends = ends
        self._waiting = 0
        self._is_done = False
        self._fill()

    def written(self, count: int) -> None:
        """The socket took bytes."""
        self._waiting -= count
        self._fill()

    def _fill(self) -> None:
        while not self._is_done and self._waiting < SEND_BUFFER_BYTES:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._is_done = True
                if self._ends:
                    self._stream.write_eof()
                return
            self._waiting += len(chunk)
            self._stream.write(chunk)


class _ServiceConnection:
    """The server's end of one connection; its first line says what it does."""

    def __init__(self, service: TcpService, stream: TcpStream) -> None:
        self._service = service
        self._stream = stream
        self._line: bytes | None = b""
        self._command = ""
        self._sender: Sender | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def connected(self, stream: TcpStream) -> None:
        """Read."""
        self._service.open_connections += 1
        stream.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take the command, then what belongs to it."""
        if self._line is not None:
            self._line += data
            line, newline, data = self._line.partition(b"\n")
            if not newline:
                return
            self._line = None
            self._start(line.decode().split())
        if not data:
            return
        if self._command == "ECHO":
            self._stream.write(data)
        self._digest.update(data)
        self._size += len(data)
        self._service.received += len(data)

    def eof_received(self) -> None:
        """Answer what waits for the end of the request."""
        if self._command == "UP":
            self._stream.write(f"{self._size} {self._digest.hexdigest()}\n".encode())
        if self._command != "DOWN":
            self._stream.write_eof()

    def bytes_written(self, count: int) -> None:
        """Send on."""
        if self._sender is not None:
            self._sender.written(count)

    def connection_lost(self, error: OSError | None) -> None:
        """Count."""
        self._service.open_connections -= 1
        if error is not None:
            self._service.resets += 1

    def _start(self, words: list[str]) -> None:
        self._command = words[0]
        self._service.commands.append(self._command)
        if self._command == "DOWN":
            self._sender = Sender(self._stream, content(int(words[1])))
        elif self._command == "MARKED":
            self._sender = Sender(self._stream, iter([self._service.marked]))
        elif self._command == "HOLD":
            self._stream.write(b"held\n")


class TcpService:
    """A TCP service: a first line `DOWN n`, `UP`, `ECHO`, `MARKED` or `HOLD` says what a connection does."""

    def __init__(self, io: SimIo, address: TransportAddress) -> None:
        self.open_connections = 0
        self.resets = 0
        self.received = 0
        """Bytes of all connections."""
        self.commands: list[str] = []
        self.marked = b""
        self.listener = io.listen_tcp(address, lambda stream: _ServiceConnection(self, stream))


class UdpEcho:
    """A UDP service that sends back what it gets."""

    def __init__(self, io: SimIo, address: TransportAddress) -> None:
        self.socket = io.open_udp(address, self, may_fragment=True)
        self.received = 0

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Send everything back."""
        del now
        for batch in batches:
            self.received += len(batch.payloads)
            self.socket.send(batch.payloads, batch.remote)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """The peer will ask again, or not."""


class TcpClient:
    """A client application; it connects at once, sends `request`, and reads until the end."""

    def __init__(
        self,
        io: SimIo,
        port: int,
        request: bytes = b"",
        upload: Iterator[bytes] | None = None,
        *,
        ends: bool = True,
        keeps: bool = False,
    ) -> None:
        """`upload` follows `request`; `ends`: the client sends FIN behind it. `keeps`: keep what is read."""
        self._io = io
        self._request = request
        self._upload = upload
        self._ends = ends
        self._keeps = keeps
        self._sender: Sender | None = None
        self._digest = hashlib.sha256()
        self.stream: TcpStream | None = None
        self.started_at = io.time()
        self.first_byte_at: float | None = None
        self.lost_at: float | None = None
        self.error: OSError | None = None
        self.size = 0
        self.sent = 0
        self.received = b""
        self.has_ended = False
        io.connect_tcp(LOOPBACK, port, CONNECT_TIMEOUT_S, self)

    @property
    def digest(self) -> str:
        """SHA-256 of everything received so far, hex."""
        return self._digest.hexdigest()

    @property
    def is_lost(self) -> bool:
        """Whether the connection is over, cleanly or not."""
        return self.lost_at is not None

    def write(self, data: bytes) -> None:
        """Send more."""
        assert self.stream is not None
        self.stream.write(data)

    def end(self) -> None:
        """Send FIN."""
        assert self.stream is not None
        self.stream.write_eof()

    def connected(self, stream: TcpStream) -> None:
        """Send the request, and what follows it."""
        self.stream = stream
        stream.resume_reading()
        self._sender = Sender(stream, self._chunks(), ends=self._ends)

    def data_received(self, data: bytes) -> None:
        """Take note."""
        if self.first_byte_at is None:
            self.first_byte_at = self._io.time()
        self.size += len(data)
        self._digest.update(data)
        if self._keeps:
            self.received += data

    def eof_received(self) -> None:
        """The service has said everything."""
        self.has_ended = True

    def bytes_written(self, count: int) -> None:
        """Send on."""
        self.sent += count
        assert self._sender is not None
        self._sender.written(count)

    def connection_lost(self, error: OSError | None) -> None:
        """Take note."""
        self.lost_at = self._io.time()
        self.error = error

    def _chunks(self) -> Iterator[bytes]:
        if self._request:
            yield self._request
        if self._upload is not None:
            yield from self._upload


class UdpClient:
    """A client application that sends datagrams to a local listener and collects the answers."""

    def __init__(self, io: SimIo, port: int, on_received: Callable[[bytes], None] | None = None) -> None:
        self._remote = TransportAddress(LOOPBACK, port)
        self._on_received = on_received
        self.received: list[bytes] = []
        self.socket = io.open_udp(TransportAddress(LOOPBACK, 0), self, may_fragment=True)

    def send(self, *payloads: bytes) -> None:
        """Send datagrams."""
        self.socket.send(payloads, self._remote)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Collect."""
        del now
        for batch in batches:
            for payload in batch.payloads:
                self.received.append(payload)
                if self._on_received is not None:
                    self._on_received(payload)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """Nothing to be done."""
