"""The I/O port on a running asyncio loop: real sockets, real clocks, the system's randomness."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable, Hashable, Mapping

import ifaddr

from actors.io import InterfaceAddress, Shortage, TcpOwner, TcpStream, UdpOwner
from actors.loop_asyncio import AsyncioScheduler
from actors.network_asyncio import NetworkWatch, source_address
from actors.resources import Resources
from actors.tcp_asyncio import AsyncioTcpListener
from actors.tcp_connect_asyncio import TcpConnector, resolve_host
from actors.udp_asyncio import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES, AsyncioUdpSocket
from ztna.address import Family, TransportAddress


class AsyncioIo(AsyncioScheduler):
    """`Io` for the daemons. Everything but `call_soon_threadsafe` belongs to the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_accept_error: Callable[[TransportAddress, OSError], None] | None = None,
        udp_receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        udp_send_buffer_bytes: int = SEND_BUFFER_BYTES,
        use_udp_offload: bool = True,
        use_netlink: bool = True,
        resources: Resources | None = None,
    ) -> None:
        """Use `loop`.

        `on_accept_error` is told the listener's address and the error when descriptors or memory ran out
        (`accept_errors` counts them); the listener tries again by itself. Without
        `resources` there is never a shortage.
        """
        super().__init__(loop)
        self._random = random.SystemRandom()
        self._report_accept_error = on_accept_error
        self._udp_receive_buffer_bytes = udp_receive_buffer_bytes
        self._udp_send_buffer_bytes = udp_send_buffer_bytes
        self._use_udp_offload = use_udp_offload
        self._use_netlink = use_netlink
        self._resolving: set[asyncio.Task[list[TransportAddress]]] = set()
        self.accept_errors = 0
        self._resources = resources
        self._promised: set[TcpConnector] = set()

    @property
    def random(self) -> random.Random:
        """The system's source of chance."""
        return self._random

    def wall_time(self) -> float:
        """Seconds since the epoch; for certificates, grants and logs only."""
        return time.time()

    def stopwatch(self) -> Callable[[], float]:
        """Begin to measure; the result says how many seconds of processor time this thread took since."""
        began = time.thread_time()
        return lambda: time.thread_time() - began

    def open_udp(
        self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False
    ) -> AsyncioUdpSocket:
        """Bind an unconnected UDP socket (IPv6 sockets are v6-only). Raises `OSError`."""
        return AsyncioUdpSocket(
            self._loop,
            local,
            owner,
            receive_buffer_bytes=self._udp_receive_buffer_bytes,
            send_buffer_bytes=self._udp_send_buffer_bytes,
            use_offload=self._use_udp_offload,
            may_fragment=may_fragment,
        )

    def listen_tcp(
        self, local: TransportAddress, accept: Callable[[TcpStream], TcpOwner]
    ) -> AsyncioTcpListener:
        """Listen; `accept` is called for each connection and returns its owner. Raises `OSError`."""
        return AsyncioTcpListener(self._loop, local, accept, self._on_accept_error)

    def connect_tcp(self, host: str, port: int, timeout_s: float, owner: TcpOwner) -> Callable[[], None]:
        """Start connecting; the result cancels the attempt, after which `owner` hears nothing more."""
        return TcpConnector(self._loop, host, port, timeout_s, owner, self._promised).cancel

    def resolve(
        self,
        host: str,
        port: int,
        done: Callable[[list[TransportAddress], OSError | None], None],
    ) -> None:
        """Resolve a name for UDP on the loop's executor; IP literals answer without asking anybody."""

        def on_done(task: asyncio.Task[list[TransportAddress]]) -> None:
            self._resolving.discard(task)
            if task.cancelled():  # the loop is shutting down
                return
            error = task.exception()
            if error is None:
                done(task.result(), None)
            elif isinstance(error, OSError):
                done([], error)
            else:
                raise error

        task = self._loop.create_task(resolve_host(self._loop, host, port, socket.SOCK_DGRAM))
        # The loop itself keeps only a weak reference to a task.
        self._resolving.add(task)
        task.add_done_callback(on_done)

    def shortage(self, *, needs_descriptor: bool = False) -> Shortage | None:
        """Why nothing new may be begun, or None."""
        if self._resources is None:
            return None
        return self._resources.shortage(
            needs_descriptor=needs_descriptor, promised_descriptors=len(self._promised)
        )

    def shortages(self) -> Mapping[str, int]:
        """How often something was refused because of a shortage, by reason."""
        return {} if self._resources is None else self._resources.refused

    def nearly_reached(self) -> Shortage | None:
        """The limit of the system that is nearly reached, or None."""
        return None if self._resources is None else self._resources.nearly_reached()

    def interface_addresses(self) -> list[InterfaceAddress]:
        """Addresses of all interfaces, loopback included, sorted."""
        found = []
        for adapter in ifaddr.get_adapters():
            for address in adapter.ips:
                host = _host(adapter.name, address.ip)
                found.append(InterfaceAddress(adapter.name, host, address.network_prefix))
        return sorted(found, key=lambda item: (item.interface, item.host, item.prefix_length))

    def source_address(self, family: Family) -> str | None:
        """The address that packets to the internet would leave from; None without a route. Sends nothing."""
        return source_address(family)

    def watch_network(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` whenever addresses, links or routes may have changed; the result ends that."""
        return NetworkWatch(self._loop, callback, self._network, use_netlink=self._use_netlink).cancel

    def _network(self) -> Hashable:
        return tuple(self.interface_addresses()), tuple(map(source_address, Family))

    def _on_accept_error(self, local: TransportAddress, error: OSError) -> None:
        self.accept_errors += 1
        if self._report_accept_error is not None:
            self._report_accept_error(local, error)


def _host(interface: str, address: str | tuple[str, int, int]) -> str:
    if isinstance(address, str):
        return address
    host, _, scope_id = address
    return f"{host}%{interface}" if scope_id else host
