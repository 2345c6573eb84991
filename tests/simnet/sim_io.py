"""Simulated hosts, and the I/O port that a daemon on one of them is given."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from actors.io import DatagramBatch, InterfaceAddress, Shortage, TcpOwner, TcpStream, UdpOwner
from actors.sockaddr import is_literal
from tests.simnet.clock import VirtualTimer
from tests.simnet.link import Link, LinkConfig, Packet, TcpFlag
from tests.simnet.sim_tcp import SimTcpConnector, SimTcpListener, SimTcpStream
from ztna.address import Family, TransportAddress
from ztna.quic.budget import fixed_cost

if TYPE_CHECKING:
    from tests.simnet.network import Node, VirtualNetwork

# 2026-01-01 00:00 UTC, at virtual time 0.
WALL_EPOCH: Final = 1_767_225_600.0
WILDCARD: Final = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}
LOOPBACK_LINK: Final = LinkConfig(latency_s=20e-6, mtu=65_536)
PREFIX_LENGTH: Final = {Family.IPV4: 24, Family.IPV6: 64}
# A name server nearby.
RESOLVE_S: Final = 0.001
# As the real socket's buffer; reached only by a burst at one instant, since owners take no virtual time.
UDP_RECEIVE_BUFFER_BYTES: Final = 4 << 20
FIRST_EPHEMERAL_PORT: Final = 49_152
PORTS: Final = 65_536

_Bound = TypeVar("_Bound")


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Host:
    """A machine: addresses, ports, and the processes on it. A node of the network."""

    def __init__(
        self, network: VirtualNetwork, name: str, addresses: list[str], *, uplink: Node, skew_s: float
    ) -> None:
        self.network = network
        self.name = name
        self.addresses = addresses
        self.uplink = uplink
        self.skew_s = skew_s
        self.mtu = 1500
        self.path_mtus: dict[str, int] = {}
        """By destination, as routers told; what is larger is refused from then on, as kernels do that were
        not asked to let packets probe the path."""
        self._asleep_until = 0.0
        self.on_packet: Callable[[Packet, bool], None] = lambda _packet, _is_outbound: None
        """Sees every packet that leaves for elsewhere or arrives from there."""
        self.sockets: dict[TransportAddress, SimUdpSocket] = {}
        self.listeners: dict[TransportAddress, SimTcpListener] = {}
        self.streams: dict[tuple[TransportAddress, TransportAddress], SimTcpStream] = {}
        self._processes: list[SimIo] = []
        self._next_port = FIRST_EPHEMERAL_PORT
        self._started = 0
        chance = network.derive_random(f"loopback {name}")
        self._loopback = Link(network.clock, chance, LOOPBACK_LINK, self.forward, network.record)

    def change_addresses(self, *addresses: str) -> None:
        """Give the host other addresses; the first of a family is the one that packets leave from.

        Who routes to it (`VirtualNetwork.attach`, `detach`) is another matter.
        """
        self.addresses = list(addresses)
        for process in self._processes:
            process.network_changed()

    def io(self) -> SimIo:
        """Start a process: its I/O port."""
        self._started += 1
        process = SimIo(self, self.network.derive_random(f"host {self.name} process {self._started}"))
        self._processes.append(process)
        return process

    def crash(self, *, resets: bool) -> None:
        """End every process at once (see `VirtualNetwork.crash`)."""
        for process in self._processes:
            process.end(resets=resets)
        self._processes.clear()

    def sleep(self, seconds: float) -> None:
        """Suspend the machine: no process runs, and UDP that is sent to it meanwhile is lost for good."""
        self._asleep_until = self.network.clock.time() + seconds
        for process in self._processes:
            process.freeze(seconds)

    def is_local(self, host: str) -> bool:
        """Whether packets to `host` stay on this machine."""
        return host.startswith("127.") or host == "::1" or host in self.addresses

    def source_for(self, remote: TransportAddress) -> str:
        """The address that packets to `remote` leave from; raises `OSError` (ENETUNREACH)."""
        if self.is_local(remote.host):
            return remote.host
        for address in self.addresses:
            if TransportAddress(address, 0).family is remote.family:
                return address
        raise _os_error(errno.ENETUNREACH)

    def bind(
        self, table: MutableMapping[TransportAddress, _Bound], local: TransportAddress, what: _Bound
    ) -> TransportAddress:
        """Enter `what` under `local` with its real port. Raises `OSError` as `bind` does."""
        wildcard = WILDCARD[local.family]
        if local.host != wildcard and not self.is_local(local.host):
            raise _os_error(errno.EADDRNOTAVAIL)
        port = local.port or self._free_port({address.port for address in table})
        for other in table:
            is_same_host = other.host == local.host or wildcard in {other.host, local.host}
            if other.port == port and other.family is local.family and is_same_host:
                raise _os_error(errno.EADDRINUSE)
        bound = TransportAddress(local.host, port)
        table[bound] = what
        return bound

    def ephemeral(self, remote: TransportAddress) -> TransportAddress:
        """A free local address for a connection to `remote`. Raises `OSError` (ENETUNREACH)."""
        used = {local.port for local, _ in self.streams} | {address.port for address in self.listeners}
        return TransportAddress(self.source_for(remote), self._free_port(used))

    def send(self, packet: Packet) -> None:
        """Put a packet on the loopback link or the uplink."""
        if self.is_local(packet.destination.host):
            self._loopback.carry(packet)
        else:
            self.on_packet(packet, True)
            self.uplink.forward(packet)

    def forward(self, packet: Packet) -> None:
        """Take a packet that arrived."""
        if self.network.clock.time() < self._asleep_until:
            if packet.flag is None:
                self.network.record(packet, "lost, the host sleeps")
            else:
                # Who sent it sends it again until there is an answer.
                self.network.clock.call_at(self._asleep_until, lambda: self.forward(packet))
            return
        if not self.is_local(packet.source.host):
            self.on_packet(packet, False)
        if packet.flag is None:
            udp = self._find(self.sockets, packet.destination)
            if udp is None:
                self.network.record(packet, "lost, no socket")
            else:
                udp.packet_received(packet)
            return
        stream = self.streams.get((packet.destination, packet.source))
        if stream is not None:
            stream.packet_received(packet)
            return
        listener = self._find(self.listeners, packet.destination)
        if packet.flag is TcpFlag.SYN and listener is not None:
            listener.syn_received(packet)
        elif self._processes and packet.flag not in {TcpFlag.RST, TcpFlag.ACK}:
            # A host without processes stands for a machine that is off, and says nothing.
            self.send(Packet(packet.destination, packet.source, flag=TcpFlag.RST))

    def refused(self, packet: Packet, mtu: int) -> None:
        """A router on the way says that a packet is too large."""
        self.path_mtus[packet.destination.host] = mtu

    def _free_port(self, used: set[int]) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port + 1 < PORTS else FIRST_EPHEMERAL_PORT
            if port not in used:
                return port

    @staticmethod
    def _find(table: dict[TransportAddress, _Bound], local: TransportAddress) -> _Bound | None:
        return table.get(local) or table.get(TransportAddress(WILDCARD[local.family], local.port))


class ProcessCall:
    """A call that dies with its process; says whose it is to whoever looks into the clock.

    `when` is the process's own time. The clock may hold it several times, one after the other, while the
    process sleeps; `cancel` is good at any time.
    """

    __slots__ = ("callback", "io", "timer", "when")

    def __init__(self, io: SimIo, when: float, callback: Callable[[], None]) -> None:
        self.io = io
        self.when = when
        self.callback = callback
        self.timer: VirtualTimer | None = None

    def __call__(self) -> None:
        if self.io.is_alive:
            self.io.run(self)

    def cancel(self) -> None:
        """Forget the call; harmless after it ran."""
        if self.timer is not None:
            self.timer.cancel()


class SimIo:
    """`Io` of one process on a simulated host. After `end` none of its callbacks runs."""

    def __init__(self, host: Host, chance: random.Random) -> None:
        self.host = host
        self.streams: list[SimTcpStream] = []
        self._random = chance
        self._clock = host.network.clock
        self.started_at = self._clock.time()
        self.is_alive = True
        self._frozen_until = 0.0
        self._behind_s = 0.0
        self._latest = 0.0  # that a call was due, which rounding must not put into the future
        self._watchers: list[Callable[[], None]] = []
        self._thread = threading.get_ident()

    @property
    def random(self) -> random.Random:
        """Seeded by the network's seed, the host's name and the number of this process."""
        return self._random

    def time(self) -> float:
        """Virtual monotonic seconds; they stood still while the host slept, if it is of that kind."""
        return max(self._clock.time() - self._behind_s, self._latest)

    def wall_time(self) -> float:
        """Virtual seconds since the epoch, with the host's skew."""
        return WALL_EPOCH + self._clock.time() + self.host.skew_s

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` at the present time, after what was submitted before."""
        self.call_at(self.time(), callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """As `call_soon`: a simulation has one thread."""
        self.call_soon(callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> ProcessCall:
        """Run `callback` at `when` (virtual monotonic seconds)."""
        call = ProcessCall(self, when, callback)
        call.timer = self._clock.call_at(when + self._behind_s, call)
        return call

    def freeze(self, seconds: float, *, stands: bool = False) -> None:
        """Give the process no processor time, as when it is stopped or its machine sleeps; packets wait.

        With `stands` its monotonic clock stands still meanwhile, as Linux has it while a machine sleeps.
        """
        now = self._clock.time()
        until = max(self._frozen_until, now + seconds)
        if stands:
            self._behind_s += until - max(self._frozen_until, now)
        self._frozen_until = until

    @property
    def was_frozen(self) -> bool:
        """Whether it ever got no processor time, so that deadlines may have gone by."""
        return self._frozen_until > 0.0

    @property
    def is_frozen(self) -> bool:
        """Whether it gets no processor time at the moment."""
        return self._clock.time() < self._frozen_until

    def run(self, call: ProcessCall) -> None:
        """Run a call that is due, or keep it in its order until the process runs again."""
        due = max(self._frozen_until, call.when + self._behind_s)
        if self._clock.time() < due:
            call.timer = self._clock.call_at(due, call)
        else:
            if self._behind_s:
                self._latest = max(self._latest, call.when)
            call.callback()

    def is_loop_thread(self) -> bool:
        """Whether the caller is on the simulation's one thread."""
        return threading.get_ident() == self._thread

    def open_udp(
        self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False
    ) -> SimUdpSocket:
        """Bind a UDP socket. Raises `OSError`. A fragmented datagram travels as one packet of its size."""
        return SimUdpSocket(self, local, owner, may_fragment=may_fragment)

    def listen_tcp(self, local: TransportAddress, accept: Callable[[TcpStream], TcpOwner]) -> SimTcpListener:
        """Listen. Raises `OSError`."""
        return SimTcpListener(self, local, accept)

    def connect_tcp(self, host: str, port: int, timeout_s: float, owner: TcpOwner) -> Callable[[], None]:
        """Start connecting; the result cancels the attempt, after which `owner` hears nothing more."""
        return SimTcpConnector(self, host, port, timeout_s, owner).cancel

    def resolve(
        self,
        host: str,
        port: int,
        done: Callable[[list[TransportAddress], OSError | None], None],
    ) -> None:
        """Answer from `VirtualNetwork.names`; literals at once."""
        if is_literal(host):
            addresses = [TransportAddress.of(host, port)]
            self.call_soon(lambda: done(addresses, None))
            return

        def answer() -> None:
            # Families without a source address come last (RFC 6724 §6, rule 1).
            hosts = sorted(
                self.host.network.names.get(host, ()),
                key=lambda each: self.source_address(TransportAddress(each, 0).family) is None,
            )
            if hosts:
                done([TransportAddress.of(literal, port) for literal in hosts], None)
            else:
                done([], socket.gaierror(socket.EAI_NONAME, f"{host} is unknown"))

        self.call_at(self.time() + RESOLVE_S, answer)

    def stopwatch(self) -> Callable[[], float]:
        """Everything takes the same, so that a run does not depend on this machine."""
        return fixed_cost()()

    def shortage(self, *, needs_descriptor: bool = False) -> Shortage | None:
        """A simulated machine has room for everything."""

    def shortages(self) -> Mapping[str, int]:
        """Nothing was ever refused."""
        return {}

    def nearly_reached(self) -> Shortage | None:
        """Nor will be."""

    def interface_addresses(self) -> list[InterfaceAddress]:
        """`eth0` with the host's addresses, and `lo`."""
        found = [
            InterfaceAddress("eth0", host, PREFIX_LENGTH[TransportAddress(host, 0).family])
            for host in sorted(self.host.addresses)
        ]
        return [*found, InterfaceAddress("lo", "127.0.0.1", 8), InterfaceAddress("lo", "::1", 128)]

    def source_address(self, family: Family) -> str | None:
        """The host's first address of that family."""
        return next(
            (each for each in self.host.addresses if TransportAddress(each, 0).family is family), None
        )

    def watch_network(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after `Host.change_addresses`; the result ends that."""
        self._watchers.append(callback)

        def cancel() -> None:
            if callback in self._watchers:
                self._watchers.remove(callback)

        return cancel

    def network_changed(self) -> None:
        """Tell whoever watches."""

        def tell() -> None:
            for watcher in list(self._watchers):
                watcher()

        self.call_soon(tell)

    def end(self, *, resets: bool = False) -> None:
        """The process is gone: close everything it held, with resets on its TCP connections or silently."""
        self.is_alive = False
        for stream in list(self.streams):
            stream.abandon(reset=resets)
        for udp in [item for item in self.host.sockets.values() if item.io is self]:
            udp.close()
        for listener in [item for item in self.host.listeners.values() if item.io is self]:
            listener.close()


class SimUdpSocket:
    """A `UdpSocket` of a simulated host."""

    def __init__(
        self, io: SimIo, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False
    ) -> None:
        self.io = io
        self._owner = owner
        self._may_fragment = may_fragment
        self._local = io.host.bind(io.host.sockets, local, self)
        self._inbox: deque[Packet] = deque()
        self._inbox_bytes = 0
        self._dropped = 0
        self._is_open = True

    @property
    def local_address(self) -> TransportAddress:
        """The bound address, with the real port."""
        return self._local

    @property
    def dropped(self) -> int:
        """Datagrams that found the receive buffer full."""
        return self._dropped

    def close(self) -> None:
        """Close the socket; no callback follows."""
        if self._is_open:
            self._is_open = False
            del self.io.host.sockets[self._local]

    def send(self, payloads: Sequence[bytes], remote: TransportAddress, local_host: str = "") -> int:
        """Send all payloads to `remote`, from `local_host` if given; returns how many the host took."""
        if not self._is_open:
            return 0
        try:
            source = self._source(remote, local_host)
        except OSError as error:
            self._report(remote, error)
            return 0
        host = self.io.host
        is_whole = self._may_fragment or host.is_local(remote.host)
        mtu = LOOPBACK_LINK.mtu if is_whole else min(host.mtu, host.path_mtus.get(remote.host, host.mtu))
        packets = [Packet(source, remote, payload) for payload in payloads]
        fitting = [packet for packet in packets if packet.size <= mtu]
        for packet in fitting:
            host.send(packet)
        if len(fitting) < len(packets):
            self._report(remote, _os_error(errno.EMSGSIZE))
        return len(fitting)

    def packet_received(self, packet: Packet) -> None:
        """Take one datagram from the network."""
        if self._inbox_bytes + packet.size > UDP_RECEIVE_BUFFER_BYTES:
            self._dropped += 1
            return
        if not self._inbox:
            self.io.call_soon(self._deliver)
        self._inbox.append(packet)
        self._inbox_bytes += packet.size

    def _deliver(self) -> None:
        batches: dict[tuple[TransportAddress, str], DatagramBatch] = {}
        for packet in self._inbox:
            key = (packet.source, packet.destination.host)
            if key not in batches:
                batches[key] = DatagramBatch(packet.source, packet.destination.host, [])
            batches[key].payloads.append(packet.payload)
        self._inbox.clear()
        self._inbox_bytes = 0
        if self._is_open:
            self._owner.datagrams_received(list(batches.values()), self.io.time())

    def _source(self, remote: TransportAddress, local_host: str) -> TransportAddress:
        if remote.family is not self._local.family:
            raise _os_error(errno.EAFNOSUPPORT)
        if local_host and not self.io.host.is_local(local_host):
            raise _os_error(errno.EINVAL)
        if local_host:
            return TransportAddress(local_host, self._local.port)
        if self._local.host != WILDCARD[self._local.family]:
            return self._local
        return TransportAddress(self.io.host.source_for(remote), self._local.port)

    def _report(self, remote: TransportAddress, error: OSError) -> None:
        def tell() -> None:
            if self._is_open:
                self._owner.send_failed(remote, error, self.io.time())

        self.io.call_soon(tell)
