"""Services and clients on the hosts of a lab, run by threads of the test process.

A transfer has no size: it lasts until it is told to end, so that a test can do all it wants to a lab
meanwhile. Its meter knows the longest time without a byte at the receiver.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tools.natlab.lab import Lab

CHUNK_BYTES = 1 << 14
# What is under way when a transfer is told to end has to arrive over a slow link.
BUFFER_BYTES = 1 << 16
LIMIT_S = 60.0
LATE_PACKETS = 500
QUIET_S = 1.0
WAKE_UP_S = 0.01
LOOPBACK = "127.0.0.1"


class Meter:
    """Counts bytes as they arrive, and the longest gap between them since the last `begin`."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._since = time.monotonic()
        self._longest_s = 0.0
        self.size = 0

    def note(self, size: int) -> None:
        """Bytes arrived."""
        with self._lock:
            self._look()
            self._since = time.monotonic()
            self.size += size
            self._lock.notify_all()

    def begin(self) -> None:
        """Measure anew, from the last byte on."""
        with self._lock:
            self._longest_s = 0.0

    @property
    def longest_s(self) -> float:
        """The longest gap so far, the one that lasts included."""
        with self._lock:
            self._look()
            return self._longest_s

    def wait_for_more(self, size: int) -> None:
        """Wait until this many more bytes have arrived."""
        self.wait_for_size(self.size + size)

    def wait_for_size(self, goal: int, limit_s: float = LIMIT_S) -> None:
        """Wait until this many bytes have arrived in all."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.size >= goal, limit_s), f"{self.size} of {goal} bytes"

    def _look(self) -> None:
        self._longest_s = max(self._longest_s, time.monotonic() - self._since)


class _Running:
    """Threads that run until the context is left, or until each sees that `_is_over`."""

    def __init__(self, *functions: Callable[[], None]) -> None:
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=function) for function in functions]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        for thread in self._threads:
            thread.join()
        self._close()

    def _end(self) -> None:
        self._is_over.set()

    def _close(self) -> None:
        """Once no thread runs."""


class Lateness(_Running):
    """How late this process is woken at most, since the last `begin`; a context manager.

    What the daemons do waits for the same processors: a pause that the machine makes is seen here, too.
    """

    def __init__(self) -> None:
        super().__init__(self._watch)
        self._longest_s = 0.0

    def begin(self) -> None:
        """Measure anew."""
        self._longest_s = 0.0

    @property
    def longest_s(self) -> float:
        """The longest delay of a wake-up so far."""
        return self._longest_s

    def _watch(self) -> None:
        due = time.monotonic() + WAKE_UP_S
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            self._longest_s = max(self._longest_s, now - due)
            due = now + WAKE_UP_S


class _End:
    """One end of a transfer: what it sent or received."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.size = 0

    def note(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)

    @property
    def summary(self) -> tuple[int, str]:
        return self.size, self.digest.hexdigest()


class Transfer:
    """One TCP connection through an agent, whose one end sends until `finish`; a context manager."""

    def __init__(self, backend: TransferBackend, port: int, *, is_upload: bool, host: str = "a") -> None:
        """From or to a client on `host`."""
        self.meter = Meter()
        self._enough = threading.Event()
        self._may_send = threading.Event()
        self._may_send.set()
        self._client = backend.lab.socket(host, socket.SOCK_STREAM)
        _prepare(self._client)
        self._client.connect((LOOPBACK, port))
        # Client bytes may travel right away, and make the connection known to the service.
        self._client.sendall(b"UP  " if is_upload else b"DOWN")
        self._server = backend.accept()
        sender, receiver = (self._client, self._server) if is_upload else (self._server, self._client)
        # A pause may be long; who waits for bytes has a limit, and the end of the context wakes the thread.
        receiver.settimeout(None)
        self._sent, self._received = _End(), _End()
        self._errors: dict[socket.socket, OSError] = {}
        self._receiver = receiver
        self._threads = [
            threading.Thread(target=self._send, args=(sender,)),
            threading.Thread(target=self._receive, args=(receiver,)),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._enough.set()
        self._may_send.set()
        for end in (self._client, self._server):
            # Wakes the thread that waits there.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._server.close()

    def finish(self) -> int:
        """End the transfer; returns its size once all of it has arrived unchanged."""
        self._enough.set()
        self.go_on()
        self._wait_for_end()
        assert not self._errors, self._errors
        assert self._received.summary == self._sent.summary
        return self._received.size

    def pause(self) -> None:
        """Send no more for now, and wait until all that was sent has arrived; the connection stays."""
        self._may_send.clear()
        while True:
            sent = self._sent.size
            self.meter.wait_for_size(sent)
            # A chunk may have been begun before.
            if sent == self._sent.size:
                return

    def go_on(self) -> None:
        """Send again."""
        self._may_send.set()

    def wait_for_reset(self) -> None:
        """Wait until the connection is cut, and fail if whoever receives takes that for its end."""
        self._wait_for_end()
        assert isinstance(self._errors.get(self._receiver), ConnectionResetError), self._errors

    def _wait_for_end(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive(), f"{self._received.size} of {self._sent.size} bytes arrived"

    def _send(self, sender: socket.socket) -> None:
        block = random.Random(7).randbytes(CHUNK_BYTES)
        try:
            while not self._enough.is_set():
                # Each chunk differs, so that a swapped or repeated one changes the digest.
                chunk = self._sent.size.to_bytes(8, "big") + block
                self._sent.note(chunk)
                sender.sendall(chunk)
                self._may_send.wait()
            sender.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._errors[sender] = error

    def _receive(self, receiver: socket.socket) -> None:
        try:
            while data := receiver.recv(CHUNK_BYTES):
                self._received.note(data)
                self.meter.note(len(data))
        except OSError as error:
            self._errors[receiver] = error


class TransferBackend:
    """A TCP service on a host; a context manager."""

    def __init__(self, lab: Lab, host: str = "b") -> None:
        self.lab = lab
        self._listener = lab.socket(host, socket.SOCK_STREAM)
        self._listener.bind((LOOPBACK, 0))
        self._listener.settimeout(LIMIT_S)
        self._listener.listen()

    @property
    def address(self) -> str:
        """As a connector's configuration names it."""
        return f"{LOOPBACK}:{self._listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        """The next connection, once it has told which way it goes."""
        connection, _ = self._listener.accept()
        _prepare(connection)
        assert len(connection.recv(4, socket.MSG_WAITALL)) == 4
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(LIMIT_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


class Echo(_Running):
    """A UDP service on a host that sends back what it gets; a context manager."""

    def __init__(self, lab: Lab, host: str = "b") -> None:
        self._socket = lab.socket(host)
        self._socket.bind((LOOPBACK, 0))
        self._socket.settimeout(0.1)
        super().__init__(self._serve)
        self.received: list[int] = []

    @property
    def address(self) -> str:
        """As a connector's configuration names it."""
        return f"{LOOPBACK}:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while not self._is_over.is_set():
            with suppress(TimeoutError):
                data, source = self._socket.recvfrom(2048)
                self.received.append(int.from_bytes(data[:4], "big"))
                self._socket.sendto(data, source)

    def _close(self) -> None:
        self._socket.close()


class PacketStream(_Running):
    """Numbered packets to a UDP service through an agent, at a steady rate; a context manager.

    The rate begins when the first one has come back: what comes while a flow opens waits in a short queue.
    """

    def __init__(self, lab: Lab, port: int, packets_per_s: int) -> None:
        self._socket = lab.socket("a")
        self._socket.connect((LOOPBACK, port))
        self._socket.settimeout(0.1)
        self._interval_s = 1 / packets_per_s
        super().__init__(self._send, self._receive)
        self._is_deaf = threading.Event()
        self._has_news = threading.Event()
        self.sent_at: list[float] = []
        self.echoed: list[int] = []

    def _end(self) -> None:
        super()._end()
        self._is_deaf.set()

    def _close(self) -> None:
        self._socket.close()

    def wait_for_echo(self, count: int) -> None:
        """Wait until this many more packets have come back."""
        self._wait(len(self.echoed) + count)

    def wait_for_last_echo(self) -> None:
        """After `stop`: wait for the last packet, and for those that others overtook."""
        deadline = time.monotonic() + LIMIT_S
        last = len(self.sent_at) - 1
        while last not in self.echoed[-LATE_PACKETS:]:
            assert time.monotonic() < deadline, f"{len(self.echoed)} of {last + 1} packets came back"
            self._has_news.clear()
            self._has_news.wait(1.0)
        # The slowest way is a relayed round trip; then nothing is under way.
        while self._has_news.wait(QUIET_S):
            self._has_news.clear()

    def _wait(self, goal: int) -> None:
        deadline = time.monotonic() + LIMIT_S
        while len(self.echoed) < goal:
            assert time.monotonic() < deadline, f"{len(self.echoed)} of {goal} packets came back"
            self._has_news.clear()
            self._has_news.wait(1.0)

    def stop(self) -> None:
        """Send no more; what is under way still arrives."""
        self._is_over.set()
        sender, _ = self._threads
        sender.join()

    def _send(self) -> None:
        due = time.monotonic()
        while not self._is_over.wait(max(0.0, due - time.monotonic())):
            number = len(self.sent_at)
            self.sent_at.append(time.monotonic())
            self._socket.send(number.to_bytes(4, "big") + bytes(196))
            if number == 0:
                self._wait(1)
                due = time.monotonic()
            due += self._interval_s

    def _receive(self) -> None:
        while not self._is_deaf.is_set():
            with suppress(TimeoutError):
                self.echoed.append(int.from_bytes(self._socket.recv(2048)[:4], "big"))
                self._has_news.set()
