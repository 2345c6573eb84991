"""One attempt to connect by TCP: resolve a name, then try each address with its share of the time."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress
from typing import Final

from actors.io import TcpOwner
from actors.sockaddr import SOCKET_FAMILY, is_literal, resolved_addresses, to_sockaddr
from actors.tcp_asyncio import AsyncioTcpStream
from ztna.address import TransportAddress

# A name with more addresses than this is a farm; trying more would leave none of them a fair share of time.
MAX_CONNECT_ADDRESSES: Final = 8


async def resolve_host(
    loop: asyncio.AbstractEventLoop, host: str, port: int, kind: socket.SocketKind
) -> list[TransportAddress]:
    """The addresses of `host`, in the resolver's order; raises `OSError`. A literal is never looked up."""
    if is_literal(host):
        return [TransportAddress.of(host, port)]
    try:
        results = await loop.getaddrinfo(host, port, type=kind)
    except UnicodeError as error:  # not encodable as a DNS name, such as a label of 64 characters
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is no host name: {error}") from error
    addresses = resolved_addresses(results)
    if not addresses:
        raise socket.gaierror(socket.EAI_NODATA, f"{host!r} has no IP address")
    return addresses


class TcpConnector:
    """One attempt. The owner hears `connected`, or `connection_lost` with the last address's error."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        timeout_s: float,
        owner: TcpOwner,
        promised: set[TcpConnector],
    ) -> None:
        """Start the attempt on `loop`; it is one of `promised` until it holds a descriptor, or needs none."""
        self._promised = promised
        promised.add(self)
        self._loop = loop
        self._owner = owner
        self._is_cancelled = False
        # Never without a time-out running, whose timer is what keeps the task from being collected.
        self._task = loop.create_task(self._connect(host, port, timeout_s))
        self._task.add_done_callback(self._on_done)

    def cancel(self) -> None:
        """Give up; the owner hears nothing more. Harmless once the attempt has ended."""
        self._is_cancelled = True
        self._task.cancel()

    async def _connect(self, host: str, port: int, timeout_s: float) -> AsyncioTcpStream:
        deadline = self._loop.time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await resolve_host(self._loop, host, port, socket.SOCK_STREAM)
        except TimeoutError as error:
            raise _timed_out(f"resolving {host}") from error
        del addresses[MAX_CONNECT_ADDRESSES:]
        last_error: OSError = _timed_out(host)
        for index, address in enumerate(addresses):
            share_s = (deadline - self._loop.time()) / (len(addresses) - index)
            try:
                async with asyncio.timeout(share_s):
                    return await self._connect_to(address)
            except TimeoutError:
                last_error = _timed_out(str(address))
            except OSError as error:
                last_error = _failed(error, address)
        raise last_error

    async def _connect_to(self, address: TransportAddress) -> AsyncioTcpStream:
        sock = socket.socket(SOCKET_FAMILY[address.family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._promised.discard(self)
        try:
            await self._loop.sock_connect(sock, to_sockaddr(address))
            _refuse_self_connection(sock)
            return AsyncioTcpStream(self._loop, sock)
        except BaseException:
            sock.close()
            raise

    def _on_done(self, task: asyncio.Task[AsyncioTcpStream]) -> None:
        self._promised.discard(self)
        if self._is_cancelled or task.cancelled():
            with suppress(asyncio.CancelledError, OSError):
                task.result().abort()
            return
        error = task.exception()
        if error is None:
            task.result().start(self._owner)
        elif isinstance(error, OSError):
            self._owner.connection_lost(error)
        else:
            raise error


def _failed(error: OSError, address: TransportAddress) -> OSError:
    """The same error in the kernel's words: those of asyncio name a call of Python's, and a tuple."""
    number = error.errno or errno.ECONNABORTED  # the kernel's errors always have a number
    return OSError(number, f"{os.strerror(number)}: {address}")


def _timed_out(what: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"{os.strerror(errno.ETIMEDOUT)}: {what}")


def _refuse_self_connection(sock: socket.socket) -> None:
    # Where nobody listens on a local port of the ephemeral range, TCP's simultaneous open may meet itself.
    if sock.getsockname() == sock.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
