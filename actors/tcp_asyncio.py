"""TCP on the asyncio loop with plain non-blocking sockets, so that `bytes_written` is what the kernel took.

A stream collects what is written during one round of the loop and hands it over in one call. Callbacks come
from the loop only, never from inside a method of the stream, so an owner is not entered twice.

A reset is noticed when the stream next reads or writes: one that is paused with nothing to write hears of it
when it resumes, behind the bytes that arrived before it. Linux only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from actors.io import MAX_READ_BYTES, TcpOwner, TcpStream
from actors.sockaddr import SOCKET_FAMILY, from_sockaddr, to_sockaddr
from ztna.address import Family, TransportAddress

# Linux takes 1024 buffers at once (UIO_MAXIOV); 64 of a few KiB fill the socket's buffer as well.
MAX_WRITE_BUFFERS: Final = 64
# A fast reader on loopback would otherwise keep one stream writing for ever; then it is the others' turn.
MAX_WRITE_BYTES_PER_WAKEUP: Final = 1 << 20
# Accepting costs about 100 us with its callbacks: 64 of them keep the loop away from packets for 6 ms.
MAX_ACCEPTS_PER_WAKEUP: Final = 64
# Holds a burst of 500 clients; the kernel caps it at net.core.somaxconn.
LISTEN_BACKLOG: Final = 1024
# Out of file descriptors: the listening socket stays readable, so asking again at once would only spin.
ACCEPT_RETRY_S: Final = 1.0

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LINGER_RESET: Final = struct.pack("=ii", 1, 0)


class _Input(Enum):
    """What may still arrive."""

    PAUSED = auto()
    READING = auto()
    ENDED = auto()


class _Output(Enum):
    """What may still leave."""

    OPEN = auto()
    ENDING = auto()  # FIN waits behind the queue
    ENDED = auto()


class AsyncioTcpStream:
    """A `TcpStream` over a connected, non-blocking socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        """Take over `sock`; raises `OSError` when the connection is gone already."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._remote_address = from_sockaddr(sock.getpeername())
        self._local_address = from_sockaddr(sock.getsockname())
        self._owner: TcpOwner | None = None
        self._input = _Input.PAUSED
        self._output = _Output.OPEN
        self._queue: deque[bytes | memoryview] = deque()
        self._is_open = True
        self._is_flush_scheduled = False
        self._has_writer = False

    @property
    def remote_address(self) -> TransportAddress:
        """The other end."""
        return self._remote_address

    @property
    def local_address(self) -> TransportAddress:
        """Our end."""
        return self._local_address

    def start(self, owner: TcpOwner) -> None:
        """Name the owner and tell it `connected`, or only `connection_lost` if it aborted already."""
        self._owner = owner
        if self._is_open:
            owner.connected(self)
        else:
            owner.connection_lost(None)

    def write(self, data: bytes) -> None:
        """Queue bytes; ignored after `write_eof` and after the end."""
        if not data or not self._is_open or self._output is not _Output.OPEN:
            return
        self._queue.append(data)
        self._schedule_flush()

    def write_eof(self) -> None:
        """Send FIN behind what is queued."""
        if not self._is_open or self._output is not _Output.OPEN:
            return
        self._output = _Output.ENDING
        self._schedule_flush()

    def pause_reading(self) -> None:
        """Stop reading: the kernel's buffer fills and the other end is slowed."""
        if self._input is _Input.READING:
            self._input = _Input.PAUSED
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read again."""
        if self._is_open and self._input is _Input.PAUSED:
            self._input = _Input.READING
            self._loop.add_reader(self._fd, self._on_readable)

    def abort(self) -> None:
        """Send RST and forget what is queued. `connection_lost(None)` follows."""
        if not self._is_open:
            return
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._close()
        if self._owner is not None:
            self._loop.call_soon(self._owner.connection_lost, None)

    # From the loop

    def _on_readable(self) -> None:
        assert self._owner is not None  # noqa: S101 - reading starts after `start`
        try:
            data = self._sock.recv(MAX_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error)
            return
        if data:
            self._owner.data_received(data)
            return
        self._input = _Input.ENDED
        self._loop.remove_reader(self._fd)
        self._owner.eof_received()
        self._finish_if_both_ended()

    def _schedule_flush(self) -> None:
        # A full socket calls by itself when it has room again.
        if not self._is_flush_scheduled and not self._has_writer:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if not self._is_open:
            return
        assert self._owner is not None  # noqa: S101 - nobody knows the stream before `start`
        taken = 0
        is_full = False
        while self._queue and taken < MAX_WRITE_BYTES_PER_WAKEUP:
            try:
                count = self._send_some()
            except (BlockingIOError, InterruptedError):
                is_full = True
                break
            except OSError as error:
                if taken:
                    self._owner.bytes_written(taken)
                self._fail(_reset(error) if isinstance(error, BrokenPipeError) else error)
                return
            taken += count
            self._forget(count)
        self._watch_for_room(is_needed=is_full)
        if taken:
            self._owner.bytes_written(taken)
        self._continue_output()

    def _continue_output(self) -> None:
        if not self._is_open:
            return
        if self._queue:
            self._schedule_flush()
        elif self._output is _Output.ENDING:
            self._end_output()
            self._finish_if_both_ended()

    def _send_some(self) -> int:
        if len(self._queue) == 1:
            return self._sock.send(self._queue[0])
        buffers = [self._queue[index] for index in range(min(len(self._queue), MAX_WRITE_BUFFERS))]
        return self._sock.sendmsg(buffers)

    def _forget(self, count: int) -> None:
        while count:
            first = self._queue[0]
            if len(first) > count:
                self._queue[0] = memoryview(first)[count:]
                return
            count -= len(first)
            self._queue.popleft()

    def _watch_for_room(self, *, is_needed: bool) -> None:
        if is_needed and not self._has_writer:
            self._loop.add_writer(self._fd, self._flush)
        elif self._has_writer and not is_needed:
            self._loop.remove_writer(self._fd)
        self._has_writer = is_needed

    def _end_output(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # ENOTCONN: the other end has reset the connection, and nothing has told us so yet.
            self._fail(_reset(error))
            return
        self._output = _Output.ENDED

    def _finish_if_both_ended(self) -> None:
        if self._is_open and self._input is _Input.ENDED and self._output is _Output.ENDED:
            self._fail(None)

    def _fail(self, error: OSError | None) -> None:
        if self._is_open:
            assert self._owner is not None  # noqa: S101 - called from the loop only
            self._close()
            self._owner.connection_lost(error)

    def _close(self) -> None:
        self._is_open = False
        self._queue.clear()
        self._loop.remove_reader(self._fd)
        self._watch_for_room(is_needed=False)
        self._sock.close()


def _reset(error: OSError) -> ConnectionResetError:
    """One name for a reset: Linux says EPIPE or ENOTCONN when the other end had finished sending before."""
    return ConnectionResetError(errno.ECONNRESET, f"{os.strerror(errno.ECONNRESET)} ({error.strerror})")


class AsyncioTcpListener:
    """A `TcpListener`: accepts so many connections per wake-up, and rests when descriptors run out."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        local: TransportAddress,
        accept: Callable[[TcpStream], TcpOwner],
        on_accept_error: Callable[[TransportAddress, OSError], None],
    ) -> None:
        """Bind and listen; raises `OSError`. `on_accept_error` hears that descriptors or memory ran out."""
        self._loop = loop
        self._accept = accept
        self._on_accept_error = on_accept_error
        self._retry: asyncio.TimerHandle | None = None
        self._is_open = True
        self._sock = socket.socket(SOCKET_FAMILY[local.family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A restarted daemon must get its port back while old connections linger in TIME-WAIT.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if local.family is Family.IPV6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._sock.bind(to_sockaddr(local))
            self._sock.listen(LISTEN_BACKLOG)
            self._local_address = from_sockaddr(self._sock.getsockname())
        except BaseException:
            self._sock.close()
            raise
        loop.add_reader(self._sock.fileno(), self._on_readable)

    @property
    def local_address(self) -> TransportAddress:
        """The bound address, with the real port."""
        return self._local_address

    def close(self) -> None:
        """Stop accepting; accepted connections live on."""
        if not self._is_open:
            return
        self._is_open = False
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _on_readable(self) -> None:
        for _ in range(MAX_ACCEPTS_PER_WAKEUP):
            if not self._is_open:
                return
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(error)
                    return
                continue  # that client is gone again (ECONNABORTED and the network's errors, accept(2))
            self._hand_over(sock)

    def _hand_over(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            stream = AsyncioTcpStream(self._loop, sock)
        except OSError:  # reset between the handshake and our accept
            sock.close()
            return
        try:
            owner = self._accept(stream)
        except BaseException:
            stream.abort()
            raise
        stream.start(owner)

    def _rest(self, error: OSError) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._resume)
        self._on_accept_error(self._local_address, error)

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
