"""Two processes that can reach each other, on real loopback sockets or in a simulated network.

A test written against `World` holds for both implementations of the I/O port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from actors.io import DatagramBatch, Io, TcpListener, TcpStream, UdpSocket
from actors.io_asyncio import AsyncioIo
from tests.simnet.network import VirtualNetwork
from ztna.address import TransportAddress

# Only ever reached by a failing test.
WAIT_S = 10.0


class World(Protocol):
    """Two I/O ports and a way to let time pass."""

    @property
    def left(self) -> Io:
        """One process."""

    @property
    def right(self) -> Io:
        """The other."""

    left_host: str
    right_host: str

    def wait(self, predicate: Callable[[], bool], what: str = "") -> None:
        """Run until `predicate` holds, which is looked at after each callback of a recorder."""

    def changed(self) -> None:
        """A recorder's word that something happened."""

    def close(self) -> None:
        """End the world."""


class RealWorld:
    """One asyncio loop; both sides on one loopback address."""

    def __init__(self, host: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.errors: list[dict[str, object]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.left = AsyncioIo(self.loop)
        self.right = AsyncioIo(self.loop)
        self.left_host = self.right_host = host
        self._event = asyncio.Event()

    def wait(self, predicate: Callable[[], bool], what: str = "") -> None:
        async def until() -> None:
            while not predicate():
                self._event.clear()
                await self._event.wait()

        try:
            self.loop.run_until_complete(asyncio.wait_for(until(), WAIT_S))
        except TimeoutError:
            raise AssertionError(f"{what or 'the condition'} did not hold within {WAIT_S} s") from None

    def changed(self) -> None:
        self._event.set()

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
        assert self.errors == []


class SimWorld:
    """Two hosts, 10 ms apart."""

    def __init__(self, left_host: str, right_host: str) -> None:
        self.network = VirtualNetwork(seed=7)
        self.left_host = left_host
        self.right_host = right_host
        self.left: Io = self.network.host("left", left_host).io()
        self.right: Io = self.network.host("right", right_host).io()

    def wait(self, predicate: Callable[[], bool], what: str = "") -> None:
        self.network.run_until(predicate, WAIT_S, what)

    def changed(self) -> None:
        pass

    def close(self) -> None:
        pass


def has_ipv6_loopback() -> bool:
    """Whether this machine can bind ::1."""
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return True
    return False


class UdpRecorder:
    """A `UdpOwner` that keeps what it hears."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.batches: list[DatagramBatch] = []
        self.errors: list[tuple[TransportAddress, int | None]] = []

    @property
    def payloads(self) -> list[bytes]:
        return [payload for batch in self.batches for payload in batch.payloads]

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        self.batches.extend(batches)
        self._world.changed()

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        self.errors.append((remote, error.errno))
        self._world.changed()


class TcpRecorder:
    """A `TcpOwner` that keeps what it hears, in order."""

    def __init__(self, world: World, *, reads: bool = True) -> None:
        self._world = world
        self._reads = reads
        self._stream: TcpStream | None = None
        self.events: list[str] = []
        self.received = bytearray()
        self.largest_read = 0
        self.written = 0
        self.error: OSError | None = None
        self.on_event: Callable[[str], None] = lambda _event: None

    @property
    def stream(self) -> TcpStream:
        assert self._stream is not None
        return self._stream

    @property
    def is_connected(self) -> bool:
        return "connected" in self.events

    @property
    def is_lost(self) -> bool:
        return "lost" in self.events

    def connected(self, stream: TcpStream) -> None:
        self._stream = stream
        if self._reads:
            stream.resume_reading()
        self._note("connected")

    def data_received(self, data: bytes) -> None:
        assert data
        self.received += data
        self.largest_read = max(self.largest_read, len(data))
        self._note("data")

    def eof_received(self) -> None:
        self._note("eof")

    def bytes_written(self, count: int) -> None:
        assert count > 0
        self.written += count
        self._note("written")

    def connection_lost(self, error: OSError | None) -> None:
        self.error = error
        self._note("lost")

    def _note(self, event: str) -> None:
        assert not self.is_lost, f"{event} after the end"
        # Runs of data and written say nothing by their number.
        if not (event in {"data", "written"} and self.events[-1:] == [event]):
            self.events.append(event)
        self.on_event(event)
        self._world.changed()


class Sockets:
    """Opens sockets for a test and closes them all."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._udp: list[UdpSocket] = []
        self._listeners: list[TcpListener] = []
        self._recorders: list[TcpRecorder] = []

    def udp(self, io: Io, host: str, port: int = 0) -> tuple[UdpSocket, UdpRecorder]:
        recorder = UdpRecorder(self.world)
        sock = io.open_udp(TransportAddress.of(host, port), recorder)
        self._udp.append(sock)
        return sock, recorder

    def listen(self, io: Io, host: str, *, reads: bool = True) -> tuple[TcpListener, list[TcpRecorder]]:
        accepted: list[TcpRecorder] = []

        def accept(stream: TcpStream) -> TcpRecorder:
            recorder = self.recorder(reads=reads)
            accepted.append(recorder)
            return recorder

        listener = io.listen_tcp(TransportAddress.of(host, 0), accept)
        self._listeners.append(listener)
        return listener, accepted

    def recorder(self, *, reads: bool = True) -> TcpRecorder:
        recorder = TcpRecorder(self.world, reads=reads)
        self._recorders.append(recorder)
        return recorder

    def pair(self, *, reads: bool = True, accepted_reads: bool = True) -> tuple[TcpRecorder, TcpRecorder]:
        """A standing connection: the left side's end, which connected, and the right side's."""
        listener, accepted = self.listen(self.world.right, self.world.right_host, reads=accepted_reads)
        client = self.recorder(reads=reads)
        self.world.left.connect_tcp(self.world.right_host, listener.local_address.port, WAIT_S, client)
        self.world.wait(lambda: client.is_connected and len(accepted) == 1 and accepted[0].is_connected)
        return client, accepted[0]

    def close(self) -> None:
        for sock in self._udp:
            sock.close()
        for listener in self._listeners:
            listener.close()
        open_ends = [item for item in self._recorders if item.is_connected and not item.is_lost]
        for recorder in open_ends:
            recorder.on_event = lambda _event: None
            recorder.stream.abort()
        self.world.wait(lambda: all(recorder.is_lost for recorder in open_ends), "aborted streams to end")
