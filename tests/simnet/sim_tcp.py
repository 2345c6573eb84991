"""TCP of the simulated hosts: reliable and in order, with a window that opens only as the receiver reads."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from actors.io import TcpOwner, TcpStream
from tests.simnet.link import Packet, TcpFlag
from ztna.address import TransportAddress

if TYPE_CHECKING:
    from tests.simnet.sim_io import ProcessCall, SimIo

# Stands for both kernels' buffers together: bytes on the way and bytes that the receiver did not read yet.
TCP_WINDOW_BYTES: Final = 256 * 1024
# One trace line and one event for so many bytes; what a kernel with segmentation offload moves at once.
TCP_SEGMENT_BYTES: Final = 16 * 1024


class _State(Enum):
    CONNECTING = auto()
    OPEN = auto()
    CLOSED = auto()


class SimTcpStream:
    """One end of a simulated TCP connection (a `TcpStream`)."""

    def __init__(self, io: SimIo, local: TransportAddress, remote: TransportAddress) -> None:
        self._io = io
        self._local = local
        self._remote = remote
        self._owner: TcpOwner | None = None
        self._on_handshake: Callable[[OSError | None], None] | None = None
        self._state = _State.CONNECTING
        self._window_bytes = TCP_WINDOW_BYTES
        self._queue: deque[bytes] = deque()
        self._must_end = False
        self._has_ended = False
        self._is_flush_scheduled = False
        self._inbox: deque[bytes | OSError | None] = deque()  # None is the FIN, an error the end
        self._is_reading = False
        self._is_read_scheduled = False
        self._has_remote_ended = False

    @property
    def remote_address(self) -> TransportAddress:
        """The other end."""
        return self._remote

    @property
    def local_address(self) -> TransportAddress:
        """Our end."""
        return self._local

    # The handshake, driven by the listener or the attempt

    def shake_hands(self, flag: TcpFlag, done: Callable[[OSError | None], None]) -> None:
        """Send SYN or SYN-ACK; `done` hears of the answer, unless the stream is abandoned before."""
        self._on_handshake = done
        self._io.host.streams[self._local, self._remote] = self
        self._io.streams.append(self)
        self._send(flag)

    def start(self, owner: TcpOwner) -> None:
        """Name the owner and tell it `connected`, or only `connection_lost` if it aborted already."""
        self._owner = owner
        if self._state is _State.OPEN:
            owner.connected(self)
        else:
            owner.connection_lost(None)

    def abandon(self, *, reset: bool) -> None:
        """Vanish without telling the owner, with a RST on the wire or without."""
        if self._state is not _State.CLOSED:
            self._close()
            if reset:
                self._send(TcpFlag.RST)

    # What the owner calls

    def write(self, data: bytes) -> None:
        """Queue bytes; ignored after `write_eof` and after the end."""
        if data and self._state is _State.OPEN and not self._must_end:
            self._queue.append(data)
            self._schedule_flush()

    def write_eof(self) -> None:
        """Send FIN behind what is queued."""
        if self._state is _State.OPEN:
            self._must_end = True
            self._schedule_flush()

    def pause_reading(self) -> None:
        """Stop reading: the window closes and the other end is slowed."""
        self._is_reading = False

    def resume_reading(self) -> None:
        """Read again."""
        if self._state is _State.OPEN:
            self._is_reading = True
            self._schedule_read()

    def abort(self) -> None:
        """Send RST and forget what is queued. `connection_lost(None)` follows."""
        if self._state is _State.CLOSED:
            return
        self.abandon(reset=True)
        owner = self._owner
        if owner is not None:
            self._io.call_soon(lambda: owner.connection_lost(None))

    def let_go(self) -> None:
        """Send what the window takes, and FIN; then forget the connection, of which the owner hears no more.

        What a process leaves to its kernel when it closes a socket and goes on with something else.
        """
        if self._state is _State.CLOSED:
            return
        self._owner = _NOBODY
        self._flush()
        self.abandon_with(TcpFlag.FIN)

    def abandon_with(self, flag: TcpFlag) -> None:
        """Vanish without telling the owner, and say so on the wire."""
        if self._state is not _State.CLOSED:
            self._close()
            self._send(flag)

    # What the network brings

    def packet_received(self, packet: Packet) -> None:
        """Take one packet of this connection."""
        if self._state is _State.CONNECTING:
            self._handshake_received(packet)
        elif packet.flag is TcpFlag.ACK:
            self._window_bytes += packet.acked_bytes
            self._schedule_flush()
        elif packet.flag is TcpFlag.DATA:
            self._inbox.append(packet.payload)
            self._schedule_read()
        elif packet.flag is TcpFlag.FIN:
            self._inbox.append(None)
            self._schedule_read()
        elif packet.flag is TcpFlag.RST:
            self._inbox.append(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            self._schedule_read()
            # A reader that is paused hears of it when it resumes; a writer at once.
            if self._queue:
                self._schedule_flush()

    def _handshake_received(self, packet: Packet) -> None:
        done = self._on_handshake
        assert done is not None
        self._on_handshake = None
        if packet.flag is TcpFlag.RST:
            self._close()
            done(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
            return
        self._state = _State.OPEN
        if packet.flag is TcpFlag.SYN_ACK:
            self._send(TcpFlag.ACK)
        done(None)

    # From the clock

    def _schedule_flush(self) -> None:
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._io.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if self._state is not _State.OPEN or self._owner is None:
            return
        error = self._inbox[-1] if self._inbox else None
        if isinstance(error, OSError) and (self._queue or self._must_end):
            self._fail(error)
            return
        taken = 0
        while self._queue and self._window_bytes:
            count = min(len(self._queue[0]), self._window_bytes, TCP_SEGMENT_BYTES)
            self._send(TcpFlag.DATA, self._queue[0][:count])
            self._window_bytes -= count
            taken += count
            if count == len(self._queue[0]):
                self._queue.popleft()
            else:
                self._queue[0] = self._queue[0][count:]
        if taken:
            self._owner.bytes_written(taken)
        self._end_if_all_written()

    def _end_if_all_written(self) -> None:
        if self._state is _State.OPEN and self._must_end and not self._queue and not self._has_ended:
            self._has_ended = True
            self._send(TcpFlag.FIN)
            self._finish_if_both_ended()

    def _schedule_read(self) -> None:
        if self._is_reading and self._inbox and not self._is_read_scheduled:
            self._is_read_scheduled = True
            self._io.call_soon(self._read)

    def _read(self) -> None:
        self._is_read_scheduled = False
        if self._state is not _State.OPEN or not self._is_reading or self._owner is None:
            return
        item = self._inbox.popleft()
        if item is None:
            self._has_remote_ended = True
            self._owner.eof_received()
            self._finish_if_both_ended()
        elif isinstance(item, OSError):
            self._fail(item)
        else:
            self._send(TcpFlag.ACK, acked_bytes=len(item))
            self._owner.data_received(item)
        self._schedule_read()

    def _finish_if_both_ended(self) -> None:
        if self._state is _State.OPEN and self._has_remote_ended and self._has_ended:
            self._fail(None)

    def _fail(self, error: OSError | None) -> None:
        self._close()
        assert self._owner is not None
        self._owner.connection_lost(error)

    def _close(self) -> None:
        self._state = _State.CLOSED
        self._queue.clear()
        self._inbox.clear()
        self._io.host.streams.pop((self._local, self._remote), None)
        self._io.streams.remove(self)

    def _send(self, flag: TcpFlag, payload: bytes = b"", acked_bytes: int = 0) -> None:
        self._io.host.send(Packet(self._local, self._remote, payload, flag, acked_bytes))


class _Nobody:
    """Owns connections that were let go."""

    def connected(self, stream: TcpStream) -> None:
        """Nobody cares."""

    def data_received(self, data: bytes) -> None:
        """Nobody reads."""

    def eof_received(self) -> None:
        """Nobody waits."""

    def bytes_written(self, count: int) -> None:
        """Nobody counts."""

    def connection_lost(self, error: OSError | None) -> None:
        """Nobody misses it."""


_NOBODY: Final = _Nobody()


class SimTcpListener:
    """A `TcpListener` of a simulated host."""

    def __init__(self, io: SimIo, local: TransportAddress, accept: Callable[[TcpStream], TcpOwner]) -> None:
        self.io = io
        self._accept = accept
        self._local = io.host.bind(io.host.listeners, local, self)

    @property
    def local_address(self) -> TransportAddress:
        """The bound address, with the real port."""
        return self._local

    def close(self) -> None:
        """Stop accepting; accepted connections live on."""
        self.io.host.listeners.pop(self._local, None)

    def syn_received(self, packet: Packet) -> None:
        """Answer; the connection is accepted when the third packet of the handshake is here."""
        stream = SimTcpStream(self.io, packet.destination, packet.source)

        def on_handshake(error: OSError | None) -> None:
            if error is None:
                stream.start(self._accept(stream))

        stream.shake_hands(TcpFlag.SYN_ACK, on_handshake)


class SimTcpConnector:
    """One attempt to connect: each address with its share of the time, as on a real host."""

    def __init__(self, io: SimIo, host: str, port: int, timeout_s: float, owner: TcpOwner) -> None:
        self._io = io
        self._owner = owner
        self._deadline = io.time() + timeout_s
        self._addresses: list[TransportAddress] = []
        self._last_error: OSError = TimeoutError(errno.ETIMEDOUT, f"{os.strerror(errno.ETIMEDOUT)}: {host}")
        self._stream: SimTcpStream | None = None
        self._timer: ProcessCall | None = None
        self._is_over = False
        io.resolve(host, port, self._on_resolved)

    def cancel(self) -> None:
        """Give up; the owner hears nothing more. Harmless once the attempt has ended."""
        if not self._is_over:
            self._is_over = True
            self._leave_address()

    def _on_resolved(self, addresses: list[TransportAddress], error: OSError | None) -> None:
        self._addresses = addresses
        self._last_error = error or self._last_error
        if not self._is_over:
            self._try_next()

    def _try_next(self) -> None:
        if not self._addresses:
            self._is_over = True
            self._owner.connection_lost(self._last_error)
            return
        share_s = (self._deadline - self._io.time()) / len(self._addresses)
        remote = self._addresses.pop(0)
        try:
            local = self._io.host.ephemeral(remote)
        except OSError as error:
            self._last_error = error
            self._try_next()
            return
        self._timer = self._io.call_at(self._io.time() + share_s, self._on_timeout)
        self._stream = SimTcpStream(self._io, local, remote)
        self._stream.shake_hands(TcpFlag.SYN, self._on_answer)

    def _on_answer(self, error: OSError | None) -> None:
        stream = self._stream
        assert stream is not None
        self._stream = None
        self._leave_address()
        if error is None:
            self._is_over = True
            stream.start(self._owner)
        else:
            self._last_error = error
            self._try_next()

    def _on_timeout(self) -> None:
        assert self._stream is not None
        where = self._stream.remote_address
        self._last_error = TimeoutError(errno.ETIMEDOUT, f"{os.strerror(errno.ETIMEDOUT)}: {where}")
        self._leave_address()
        self._try_next()

    def _leave_address(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stream is not None:
            self._stream.abandon(reset=False)
            self._stream = None
