"""One end of a bare QUIC download, as a process of its own: the baselines of the relay benchmark.

`python -m tools.bench._quic_peer DRIVER ROLE DIRECTORY PORT SIZE`: `driver` is our sans-IO connection on our
UDP socket, without actors; `asyncio` is `aioquic.asyncio`. The client prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from actors.io import DatagramBatch
from actors.udp_asyncio import AsyncioUdpSocket
from ztna.address import TransportAddress
from ztna.quic import demux, events
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions, PrivateKey

CHUNK = bytes(65_536)
ALPN = "ztna/1"


def _options(directory: Path, role: str) -> ConnectionOptions:
    key = load_pem_private_key((directory / f"{role}.key").read_bytes(), None)
    assert isinstance(key, PrivateKey)  # noqa: S101 - the benchmark made it
    return ConnectionOptions.inner(
        certificate=x509.load_pem_x509_certificate((directory / f"{role}.crt").read_bytes()),
        private_key=key,
        verify_peer=lambda chain: chain[0],
    )


class _Driver:
    """The least that drives one connection: drain, handle, transmit once, re-arm."""

    def __init__(self, directory: Path, role: str, remote: TransportAddress | None, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = _options(directory, role)
        self._remote = remote
        self._to_send = size
        self.received = 0
        self.is_over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.socket: AsyncioUdpSocket
        self._connection: Connection | None = None

    def connect(self) -> None:
        self._connection = Connection.client(self._options)
        self._connection.connect(self._loop.time())
        self._connection.send_stream(self._connection.open_stream(), b"GET", end=True)
        self._drive(self._connection)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        for batch in batches:
            if self._connection is None:
                connection_id = demux.destination_cid(batch.payloads[0])
                assert connection_id is not None  # noqa: S101 - nobody else sends here
                self._connection = Connection.server(self._options, destination_cid=connection_id)
            self._remote = batch.remote
            self._connection.receive(batch.payloads, now)
        if self._connection is not None:
            self._drive(self._connection)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        del remote, now
        raise error

    def _timed_out(self) -> None:
        if self._connection is not None:
            self._connection.handle_timeout(self._loop.time())
            self._drive(self._connection)

    def _drive(self, connection: Connection) -> None:
        for event in connection.events():
            if isinstance(event, events.StreamDataReceived):
                connection.consume(event.stream_id, len(event.data))
                self.received += len(event.data)
                if event.end_of_stream and self._to_send == 0:
                    self.is_over.set()
        if connection.is_established and self._to_send:
            while self._to_send and connection.can_send(0):
                chunk = CHUNK[: self._to_send]
                self._to_send -= len(chunk)
                connection.send_stream(0, chunk, end=not self._to_send)
        packets = connection.transmit(self._loop.time())
        if packets and self._remote is not None:
            self.socket.send(packets, self._remote)
        connection.events()
        if self._timer is not None:
            self._timer.cancel()
        deadline = connection.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._timed_out)


async def _driver(role: str, directory: Path, port: int, size: int) -> None:
    remote = TransportAddress("127.0.0.1", port) if role == "client" else None
    driver = _Driver(directory, role, remote, 0 if role == "client" else size)
    local = TransportAddress("127.0.0.1", 0 if role == "client" else port)
    driver.socket = AsyncioUdpSocket(asyncio.get_running_loop(), local, driver)
    if role == "client":
        driver.connect()
    await driver.is_over.wait()
    if driver.received != size:
        raise RuntimeError(f"{driver.received} bytes of {size}")


class _Server(QuicConnectionProtocol):
    size = 0

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived) and event.end_stream:
            self._quic.send_stream_data(event.stream_id, bytes(self.size), end_stream=True)


async def _asyncio(role: str, directory: Path, port: int, size: int) -> None:
    configuration = QuicConfiguration(
        is_client=role == "client", alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE, max_datagram_size=1200
    )
    if role == "server":
        configuration.load_cert_chain(directory / "server.crt", directory / "server.key")
        _Server.size = size
        await serve("127.0.0.1", port, configuration=configuration, create_protocol=_Server)
        await asyncio.Event().wait()
    async with connect("127.0.0.1", port, configuration=configuration) as client:
        reader, writer = await client.create_stream()
        writer.write(b"GET")
        writer.write_eof()
        received = 0
        while data := await reader.read(65_536):
            received += len(data)
    if received != size:
        raise RuntimeError(f"{received} bytes of {size}")


def main(arguments: Sequence[str]) -> None:
    """Run one end; the client prints what it took."""
    driver, role, directory, port, size = arguments
    run = _driver if driver == "driver" else _asyncio
    started, cpu_before_s = time.monotonic(), time.process_time()
    asyncio.run(run(role, Path(directory), int(port), int(size)))
    cpu_s = time.process_time() - cpu_before_s
    print(json.dumps({"seconds": time.monotonic() - started, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main(sys.argv[1:])
