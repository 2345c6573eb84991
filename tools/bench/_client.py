"""A client of the benchmarks' services."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from typing import Final

from tools.bench._services import LOOPBACK, digest_of

STALL_LIMIT_S: Final = 60.0
"""No byte for this long is a hang, on a busy machine and in an outage that is caused on purpose."""

ECHO_BYTES: Final = 100
LOSS_LIMIT_S: Final = 2.0
"""A datagram that is not back by then is lost."""

_CHUNK_BYTES: Final = 1 << 16


class WrongBytesError(Exception):
    """What came is not what was sent."""


def connect(port: int) -> socket.socket:
    """A TCP connection to a port of this machine."""
    return socket.create_connection((LOOPBACK, port), timeout=STALL_LIMIT_S)


def download(port: int, size: int, on_progress: Callable[[int], None] | None = None) -> float:
    """Fetch `size` bytes; returns the seconds that took, from the connect on.

    `on_progress` hears after each read how many bytes there are. Raises `WrongBytesError`, and `OSError`
    when the connection breaks or stalls.
    """
    digest, received = hashlib.sha256(), 0
    started = time.monotonic()
    with connect(port) as client:
        client.sendall(f"DOWN {size}\n".encode())
        while data := client.recv(_CHUNK_BYTES):
            digest.update(data)
            received += len(data)
            if on_progress is not None:
                on_progress(received)
    seconds = time.monotonic() - started
    if received != size or digest.hexdigest() != digest_of(size):
        raise WrongBytesError(f"{received} bytes of {size}, or not the right ones")
    return seconds


def first_byte_ms(port: int) -> float:
    """Milliseconds from the connect to the first byte of an answer."""
    started = time.monotonic()
    with connect(port) as client:
        client.sendall(b"DOWN 1\n")
        if not client.recv(1):
            raise ConnectionError("closed before the first byte")
    return (time.monotonic() - started) * 1e3


def datagram_client(port: int) -> socket.socket:
    """A UDP socket for `round_trip_ms` with the echo behind a port of this machine."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect((LOOPBACK, port))
    client.settimeout(LOSS_LIMIT_S)
    return client


def round_trip_ms(client: socket.socket, number: int) -> float | None:
    """Milliseconds until the echo of a datagram comes back; None if it is lost. No two have one number."""
    payload = number.to_bytes(8, "big").ljust(ECHO_BYTES, b"\0")
    started = time.monotonic()
    client.send(payload)
    try:
        # Anything else is the late echo of one that counts as lost.
        while client.recv(2048) != payload:
            pass
    except TimeoutError:
        return None
    return (time.monotonic() - started) * 1e3
