"""Services behind a connector, run by threads of the test process, and clients that use them."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16


def content(size: int, seed: int = 7) -> Iterator[bytes]:
    """`size` reproducible bytes, in chunks."""
    block = random.Random(seed).randbytes(CHUNK_BYTES)
    sent = 0
    while sent < size:
        # Each chunk differs, so that a swapped or repeated one changes the digest.
        chunk = (sent.to_bytes(8, "big") + block)[: min(CHUNK_BYTES, size - sent)]
        yield chunk
        sent += len(chunk)


def content_digest(size: int, seed: int = 7) -> str:
    """SHA-256 of `content`, hex."""
    digest = hashlib.sha256()
    for chunk in content(size, seed):
        digest.update(chunk)
    return digest.hexdigest()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        words = self.rfile.readline(200).decode().split()
        command = words[0] if words else "NONE"
        with server.lock:
            server.seen.append(command)
        if command == "DOWN":
            for chunk in content(int(words[1])):
                self.wfile.write(chunk)
        elif command == "UP":
            digest, size = hashlib.sha256(), 0
            while data := self.rfile.read1(CHUNK_BYTES):
                digest.update(data)
                size += len(data)
            self.wfile.write(f"{size} {digest.hexdigest()}\n".encode())
        elif command == "ECHO":
            while data := self.rfile.read1(CHUNK_BYTES):
                self.wfile.write(data)
        elif command == "RESET":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif command == "HOLD":
            self.wfile.write(b"held\n")
            with contextlib.suppress(ConnectionResetError):
                while self.rfile.read1(CHUNK_BYTES):
                    pass
            with server.lock:
                server.seen.append("RELEASED")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[str] = []
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""


class TcpBackend:
    """A TCP service: `DOWN n`, `UP`, `ECHO`, `RESET` and `HOLD` lines choose what a connection does."""

    def __init__(self) -> None:
        self._server = _Server()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        """As configured in a connector."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def seen(self) -> list[str]:
        """Commands of all connections so far."""
        with self._server.lock:
            return list(self._server.seen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class UdpEcho:
    """A UDP service that sends back what it gets."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sources: set[tuple[str, int]] = set()

    @property
    def address(self) -> str:
        """As configured in a connector."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                data, source = self._socket.recvfrom(65536)
            except TimeoutError:
                continue
            self.sources.add(source)
            self._socket.sendto(data, source)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def connect(port: int, timeout_s: float = 20.0) -> socket.socket:
    """A TCP connection to a local listener."""
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def download(
    port: int, size: int, timeout_s: float = 60.0, on_progress: Callable[[int], None] | None = None
) -> str:
    """SHA-256 of a download of `size` bytes; `on_progress` hears the bytes so far after each read."""
    digest, received = hashlib.sha256(), 0
    with connect(port, timeout_s) as client:
        client.sendall(f"DOWN {size}\n".encode())
        while data := client.recv(CHUNK_BYTES):
            digest.update(data)
            received += len(data)
            if on_progress is not None:
                on_progress(received)
    assert received == size
    return digest.hexdigest()


class HeldDownload:
    """A download in a thread of its own that runs at least until `finish`.

    What comes after the first `fast_bytes`, half of it unless told, is read at a megabyte per second, so that
    bytes flow all the time, and the last ones once it may end.
    """

    def __init__(self, port: int, size: int, fast_bytes: int | None = None) -> None:
        self._size = size
        self._fast_bytes = size // 2 if fast_bytes is None else fast_bytes
        self._may_end = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._digest = self._pool.submit(download, port, size, 60.0, self._pace)

    def finish(self, timeout_s: float = 90.0) -> str:
        """The SHA-256. Raises `AssertionError` if it was over before, or the error of the download."""
        assert not self._digest.done(), "the download was over before"
        self._may_end.set()
        try:
            return self._digest.result(timeout_s)
        finally:
            self._pool.shutdown(wait=False)

    def _pace(self, received: int) -> None:
        if received >= self._size - CHUNK_BYTES:
            self._may_end.wait(90.0)
        elif received >= self._fast_bytes:
            self._may_end.wait(CHUNK_BYTES / (1 << 20))


def upload(port: int, size: int, timeout_s: float = 60.0) -> tuple[int, str]:
    """What the service says of an upload: size and SHA-256. Ends with a half-close."""
    with connect(port, timeout_s) as client:
        client.sendall(b"UP\n")
        for chunk in content(size):
            client.sendall(chunk)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(CHUNK_BYTES):
            answer += data
    received, digest = answer.decode().split()
    return int(received), digest
