"""Bare QUIC, as `aioquic.asyncio` offers it: the baseline of whatever a session or a node costs.

`python -m tools.bench._bare_quic DIRECTORY` serves with the identity that `write_identity` put there: a
stream is answered with one byte, a datagram with itself. It prints its port as JSON and ends with its input.
The clients are asyncio code of whoever measures. Only the server has a certificate, and nobody judges it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import DatagramFrameReceived, QuicEvent, StreamDataReceived

from tools.bench._client import ECHO_BYTES, LOSS_LIMIT_S
from tools.bench._served import ServedProcess
from tools.bench._services import LOOPBACK
from ztna.access.identity import Identity, Role
from ztna.pki import authority

ALPN: Final = "ztna/1"
LIMIT_S: Final = 30.0
"""For one handshake or answer, however busy the machine."""

MAX_DIALLING: Final = 32
"""Handshakes under way at a time: more would only wait for one another, and time out."""

_MAX_DATAGRAM_FRAME_BYTES: Final = 65_536


def write_identity(directory: Path) -> None:
    """Make the server's key and certificate."""
    now = time.time()
    ca = authority.create_ca("bench.test", now)
    issued = authority.issue(ca, Identity("bench.test", Role.CONNECTOR, "bare"), now)
    (directory / "bare.crt").write_bytes(issued.certificate_pem)
    (directory / "bare.key").write_bytes(issued.key_pem)


class BareServer(ServedProcess):
    """The process that serves."""

    def __init__(self, directory: Path) -> None:
        write_identity(directory)
        super().__init__("tools.bench._bare_quic", str(directory))

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.told["port"]
        return port


class BareClient(QuicConnectionProtocol):
    """One connection."""

    def __init__(self, connection: QuicConnection) -> None:
        super().__init__(connection)
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()

    def quic_event_received(self, event: QuicEvent) -> None:
        """Note what came."""
        if isinstance(event, (StreamDataReceived, DatagramFrameReceived)):
            self._answers.put_nowait(event.data)

    async def first_byte_ms(self) -> float:
        """Milliseconds from the opening of a stream to the first byte of the answer."""
        started = time.monotonic()
        self._quic.send_stream_data(self._quic.get_next_available_stream_id(), b"GET", end_stream=True)
        self.transmit()
        await asyncio.wait_for(self._answers.get(), LIMIT_S)
        return (time.monotonic() - started) * 1e3

    async def round_trip_ms(self, number: int) -> float | None:
        """Milliseconds until a datagram comes back; None if it is lost. No two have one number."""
        payload = number.to_bytes(8, "big").ljust(ECHO_BYTES, b"\0")
        started = time.monotonic()
        self._quic.send_datagram_frame(payload)
        self.transmit()
        try:
            async with asyncio.timeout(LOSS_LIMIT_S):
                # Anything else is the late echo of one that counts as lost.
                while await self._answers.get() != payload:
                    pass
        except TimeoutError:
            return None
        return (time.monotonic() - started) * 1e3

    def leave(self) -> None:
        """Close, and wait for nothing."""
        self.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()


async def dial(port: int) -> BareClient:
    """A connection whose handshake is over, from a socket of its own; raises `TimeoutError`."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=[ALPN],
        verify_mode=ssl.CERT_NONE,
        max_datagram_frame_size=_MAX_DATAGRAM_FRAME_BYTES,
    )
    loop = asyncio.get_running_loop()
    _, client = await loop.create_datagram_endpoint(
        lambda: BareClient(QuicConnection(configuration=configuration)), local_addr=(LOOPBACK, 0)
    )
    try:
        client.connect((LOOPBACK, port))
        await asyncio.wait_for(client.wait_connected(), LIMIT_S)
    except BaseException:
        client.leave()
        raise
    return client


@asynccontextmanager
async def held(port: int, count: int, ping_interval_s: float) -> AsyncIterator[list[BareClient]]:
    """So many connections, dialled as fast as they get in, and pinged evenly over each interval."""
    places = asyncio.Semaphore(MAX_DIALLING)
    clients: list[BareClient] = []

    async def join() -> None:
        async with places:
            clients.append(await dial(port))

    async def ping() -> None:
        while True:
            for client in clients:
                await asyncio.sleep(ping_interval_s / count)
                await client.ping()

    pinging: asyncio.Task[None] | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(join())
        pinging = asyncio.create_task(ping())
        yield clients
    finally:
        if pinging is not None:
            pinging.cancel()
        for client in clients:
            client.leave()


def cold_first_bytes_ms(port: int, count: int) -> list[float]:
    """Milliseconds from the first packet to the first byte of the answer, each on a connection of its own."""

    async def measure() -> list[float]:
        samples = []
        for _ in range(count):
            started = time.monotonic()
            client = await dial(port)
            await client.first_byte_ms()
            samples.append((time.monotonic() - started) * 1e3)
            client.leave()
        return samples

    return asyncio.run(measure())


def warm_first_bytes_ms(port: int, count: int) -> list[float]:
    """Milliseconds to the first byte of the answer, each on a stream of one connection that is there."""

    async def measure() -> list[float]:
        client = await dial(port)
        samples = [await client.first_byte_ms() for _ in range(count)]
        client.leave()
        return samples

    return asyncio.run(measure())


def round_trips_ms(port: int, count: int, warm_up: int) -> list[float | None]:
    """Milliseconds of datagrams over one connection, one after the other; None for one that is lost."""

    async def measure() -> list[float | None]:
        client = await dial(port)
        trips = [await client.round_trip_ms(number) for number in range(warm_up + count)]
        client.leave()
        return trips[warm_up:]

    return asyncio.run(measure())


class _Server(QuicConnectionProtocol):
    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived) and event.end_stream:
            self._quic.send_stream_data(event.stream_id, b".", end_stream=True)
        elif isinstance(event, DatagramFrameReceived):
            self._quic.send_datagram_frame(event.data)


async def _serve(directory: Path) -> None:
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=[ALPN], max_datagram_frame_size=_MAX_DATAGRAM_FRAME_BYTES
    )
    configuration.load_cert_chain(directory / "bare.crt", directory / "bare.key")
    server = await serve(LOOPBACK, 0, configuration=configuration, create_protocol=_Server)
    transport = server._transport  # noqa: SLF001 - it has no other way
    assert transport is not None  # noqa: S101 - it is bound
    print(json.dumps({"port": transport.get_extra_info("sockname")[1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
