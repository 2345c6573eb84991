"""What a user does in the demo: download a file over HTTP, send datagrams and wait for their echo."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 18
# No byte for this long is a hang, not a slow link: every process is on this machine.
STALL_LIMIT_S = 12.0

ECHO_SIZES = (0, 1, 1200, 8000, 60_000)
ECHO_LIMIT_S = 1.0
# UDP promises nothing: a lost datagram is sent again, and the repetition is reported.
MAX_ECHO_SENDS = 4

SocketMaker = Callable[[socket.SocketKind], socket.socket]


class TrafficError(Exception):
    """The application saw something wrong."""


@dataclass(frozen=True, slots=True)
class Download:
    """One finished download. `first_byte_s` and `seconds` count from before the TCP connect."""

    bytes_received: int
    seconds: float
    first_byte_s: float
    sha256: str

    @property
    def bytes_per_second(self) -> float:
        """Mean rate after the first byte."""
        return self.bytes_received / max(self.seconds - self.first_byte_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Echo:
    """One datagram that came back."""

    size: int
    sends: int
    round_trip_s: float


def write_random_file(path: Path, size: int) -> str:
    """Fill `path` with `size` random bytes; returns their SHA-256, hex."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while (missing := size - file.tell()) > 0:
            block = os.urandom(min(CHUNK_BYTES, missing))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def new_socket(kind: socket.SocketKind) -> socket.socket:
    """A socket of this machine."""
    return socket.socket(socket.AF_INET, kind)


def download(
    port: int,
    path: str,
    deadline: float,
    on_first_byte: Callable[[float], None],
    on_progress: Callable[[int], None],
    make_socket: SocketMaker = new_socket,
) -> Download:
    """GET `path` from the agent's local `port`, with a socket that `make_socket` makes.

    `on_first_byte` hears the seconds it took, `on_progress` the bytes so far. Raises `TrafficError` for an
    answer other than 200, a reset, a stall, a short body, and when `deadline` (monotonic seconds) passes.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port)
    digest, received, started = hashlib.sha256(), 0, time.monotonic()
    try:
        connection.sock = make_socket(socket.SOCK_STREAM)
        connection.sock.settimeout(STALL_LIMIT_S)
        connection.sock.connect(("127.0.0.1", port))
        connection.request("GET", path)
        response = connection.getresponse()
        first_byte_s = time.monotonic() - started
        on_first_byte(first_byte_s)
        if response.status != http.client.OK:
            raise TrafficError(f"GET {path}: {response.status} {response.reason}")
        while block := response.read1(CHUNK_BYTES):
            digest.update(block)
            received += len(block)
            on_progress(received)
            if time.monotonic() > deadline:
                raise TrafficError(f"the download takes too long: {received} bytes so far")
        expected = int(response.headers["Content-Length"])
        if received != expected:
            raise TrafficError(f"the download ended after {received} of {expected} bytes")
    except (OSError, http.client.HTTPException) as error:
        raise TrafficError(f"GET {path} after {received} bytes: {error!r}") from error
    finally:
        connection.close()
    return Download(received, time.monotonic() - started, first_byte_s, digest.hexdigest())


def echo_datagrams(
    port: int, sizes: Sequence[int] = ECHO_SIZES, make_socket: SocketMaker = new_socket
) -> list[Echo]:
    """Send one datagram of each size to the agent's local `port`.

    Raises `TrafficError` when one never returns.
    """
    with make_socket(socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        return [_echo(client, random.randbytes(size)) for size in sizes]


def _echo(client: socket.socket, payload: bytes) -> Echo:
    for sends in range(1, MAX_ECHO_SENDS + 1):
        started = time.monotonic()
        try:
            client.send(payload)
            while (left := started + ECHO_LIMIT_S - time.monotonic()) > 0:
                client.settimeout(left)
                # Anything else is the late echo of a datagram that was sent again.
                if client.recv(len(payload) + 1) == payload:
                    return Echo(len(payload), sends, time.monotonic() - started)
        except TimeoutError:
            continue
        except OSError as error:
            raise TrafficError(f"UDP echo of {len(payload)} bytes: {error}") from error
    raise TrafficError(f"UDP echo: {len(payload)} bytes did not come back, sent {MAX_ECHO_SENDS} times")
