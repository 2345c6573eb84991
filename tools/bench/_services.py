"""The services that benchmarks use, in a process of their own: TCP by command, and a UDP echo.

A TCP client sends one line: `DOWN n` is answered with n bytes, `UP` with the size and SHA-256 of what
follows, `ECHO` with what follows. `python -m tools.bench._services` prints its ports as JSON; it ends with
its input.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Final, cast

from tools.bench._served import ServedProcess

CHUNK_BYTES: Final = 1 << 16
LOOPBACK: Final = "127.0.0.1"


def content(size: int) -> Iterator[bytes]:
    """`size` reproducible bytes in chunks that all differ, so that a swapped one changes the digest."""
    block = Random(7).randbytes(CHUNK_BYTES - 8)
    for start in range(0, size, CHUNK_BYTES):
        yield (start.to_bytes(8, "big") + block)[: size - start]


def digest_of(size: int) -> str:
    """SHA-256 of `content(size)`, hex."""
    digest = hashlib.sha256()
    for chunk in content(size):
        digest.update(chunk)
    return digest.hexdigest()


class ServiceProcess(ServedProcess):
    """The process with the services."""

    def __init__(self) -> None:
        super().__init__("tools.bench._services")

    @property
    def tcp_port(self) -> int:
        """Where the TCP service listens."""
        port: int = self.told["tcp"]
        return port

    @property
    def udp_port(self) -> int:
        """Where the UDP echo listens."""
        port: int = self.told["udp"]
        return port


async def _serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Whoever leaves early is part of what is measured.
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        await _obey((await reader.readline()).decode().split(), reader, writer)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _obey(words: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    match words:
        case ["DOWN", size]:
            for chunk in content(int(size)):
                writer.write(chunk)
                await writer.drain()
        case ["UP"]:
            digest, received = hashlib.sha256(), 0
            while data := await reader.read(CHUNK_BYTES):
                digest.update(data)
                received += len(data)
            writer.write(f"{received} {digest.hexdigest()}\n".encode())
        case ["ECHO"]:
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
        case _:
            pass  # a probe that only connects


class _Echo(asyncio.DatagramProtocol):
    _transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No `isinstance`: before Python 3.12 the transport of a selector loop does not derive from it.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(_serve_client, LOOPBACK, 0, backlog=1024)
    transport, _ = await loop.create_datagram_endpoint(_Echo, local_addr=(LOOPBACK, 0))
    ports = {
        "tcp": server.sockets[0].getsockname()[1],
        "udp": transport.get_extra_info("sockname")[1],
    }
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
