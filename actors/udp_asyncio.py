"""One unconnected UDP socket on the asyncio loop: drained in batches, sent in bursts.

The loop wakes us once for all that is pending. Where the kernel can, it hands over many datagrams of one
flow in one buffer (UDP_GRO) and takes many datagrams of one size in one call (UDP_SEGMENT, "GSO"); both are
probed when the socket opens and left alone where they are missing. Linux only.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from actors.io import DatagramBatch, UdpOwner
from actors.sockaddr import SOCKET_FAMILY, SocketAddress, from_sockaddr, to_sockaddr, with_zone, zone_index
from ztna.address import Family, TransportAddress

# Linux values that Python's socket module lacks (include/uapi/linux/{in,in6,udp}.h, asm-generic/socket.h).
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_PROBE: Final = 3
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_MEMINFO: Final = 55

# 2 s of 16 Mbit/s: a stall of the loop costs delay, not packets. The kernel caps it (net.core.rmem_max).
RECEIVE_BUFFER_BYTES: Final = 4 << 20
SEND_BUFFER_BYTES: Final = 4 << 20

# The largest UDP payload there is; with UDP_GRO one buffer of this size holds many.
MAX_RECEIVE_BYTES: Final = 65535
# One wake-up hands over so much and then lets the loop look after everybody else; at the 80 us that QUIC
# spends on a datagram, 128 of them are 10 ms.
MAX_RECEIVE_CALLS: Final = 64
MAX_DATAGRAMS_PER_WAKEUP: Final = 128
# Older kernels take 64 segments, all kernels less than 64 KiB of IP packet.
MAX_GSO_SEGMENTS: Final = 50
MAX_GSO_BYTES: Final = 64_000
# Peers of one socket are thousands at most (an intermediate); beyond that the cache starts anew.
MAX_CACHED_ADDRESSES: Final = 4096

_ControlMessage = tuple[int, int, bytes]

_IN_PKTINFO = struct.Struct("=I4s4s")  # interface, local address, header destination
_IN6_PKTINFO = struct.Struct("=16sI")  # address, interface
_SEGMENT_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_MEMINFO = struct.Struct("=9I")
_MEMINFO_DROPS: Final = 8
_CONTROL_BYTES: Final = socket.CMSG_SPACE(_IN6_PKTINFO.size) + socket.CMSG_SPACE(_GRO_SIZE.size)

# "Full" in the kernel's words: the socket's buffer, or the device's queue.
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})


class AsyncioUdpSocket:
    """A `UdpSocket` whose owner is called on `loop`.

    `send_failed` is called from the loop after `send` returned, at most once per `send`, with the first
    error. An error concerns one datagram (too large, forbidden by a local filter); the others are still sent.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        local: TransportAddress,
        owner: UdpOwner,
        *,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        send_buffer_bytes: int = SEND_BUFFER_BYTES,
        use_offload: bool = True,
        may_fragment: bool = False,
    ) -> None:
        """Bind and start receiving; raises `OSError`. `use_offload=False` leaves GSO and GRO off."""
        self._loop = loop
        self._owner = owner
        self._family = local.family
        self._sent_dropped = 0
        self._received_dropped = 0
        self._is_open = True
        self._sockaddrs: dict[TransportAddress, SocketAddress] = {}
        self._pins: dict[str, list[_ControlMessage]] = {"": []}
        self._sock = socket.socket(SOCKET_FAMILY[local.family], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            _configure(self._sock, local.family, receive_buffer_bytes, send_buffer_bytes)
            if not may_fragment:
                _forbid_fragments(self._sock, local.family)
            self._uses_gro = use_offload and _try_option(self._sock, UDP_GRO, 1)
            # Setting the size to 0 changes nothing, and fails where the kernel knows no segmentation.
            self._uses_gso = use_offload and _try_option(self._sock, UDP_SEGMENT, 0)
            self._sock.bind(to_sockaddr(local))
            self._local_address = from_sockaddr(self._sock.getsockname())
        except BaseException:
            self._sock.close()
            raise
        loop.add_reader(self._sock.fileno(), self._on_readable)

    @property
    def local_address(self) -> TransportAddress:
        """The bound address, with the real port."""
        return self._local_address

    @property
    def uses_gso(self) -> bool:
        """Whether bursts of equal size leave in one call."""
        return self._uses_gso

    @property
    def uses_gro(self) -> bool:
        """Whether the kernel may hand over many datagrams of a flow at once."""
        return self._uses_gro

    @property
    def dropped(self) -> int:
        """Datagrams that a full buffer refused, here on sending and in the kernel on receiving."""
        if self._is_open:
            self._received_dropped = self._kernel_drops()
        return self._sent_dropped + self._received_dropped

    def close(self) -> None:
        """Close the socket; no callback follows."""
        if not self._is_open:
            return
        self._received_dropped = self._kernel_drops()
        self._is_open = False
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    # Receiving

    def _on_readable(self) -> None:
        now = self._loop.time()
        # Measured: a preallocated buffer (recvmsg_into) and the copy out of it cost more than recvmsg alone.
        batches: dict[tuple[tuple[object, ...], bytes], DatagramBatch] = {}
        count = 0
        for _ in range(MAX_RECEIVE_CALLS):
            try:
                data, control, _, sockaddr = self._sock.recvmsg(MAX_RECEIVE_BYTES, _CONTROL_BYTES)
            except OSError:
                # Nothing more, or an error queued by an ICMP message: reading it cleared it, and an
                # unconnected socket owes nobody an answer for it.
                break
            segment_bytes = size = len(data)
            info = b""
            for level, _, value in control:
                if level == SOL_UDP:
                    (segment_bytes,) = _GRO_SIZE.unpack(value)
                else:
                    info = value
            batch = batches.get((sockaddr, info))
            if batch is None:
                batch = DatagramBatch(from_sockaddr(sockaddr), self._local_host(info), [])
                batches[sockaddr, info] = batch
            if segment_bytes >= size:
                batch.payloads.append(data)
                count += 1
            else:
                segments = [data[at : at + segment_bytes] for at in range(0, size, segment_bytes)]
                batch.payloads.extend(segments)
                count += len(segments)
            if count >= MAX_DATAGRAMS_PER_WAKEUP:
                break
        if batches:
            self._owner.datagrams_received(list(batches.values()), now)

    def _local_host(self, info: bytes) -> str:
        if not info:
            return ""
        if self._family is Family.IPV4:
            # The local address, not the header's destination: to a broadcast we answer from our own address.
            return socket.inet_ntop(socket.AF_INET, _IN_PKTINFO.unpack(info)[1])
        address, interface = _IN6_PKTINFO.unpack(info)
        host = socket.inet_ntop(socket.AF_INET6, address)
        return with_zone(host, interface) if host.startswith("fe80:") else host

    def _kernel_drops(self) -> int:
        try:
            memory = self._sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
        except OSError:  # a kernel before 4.12 keeps the number to itself
            return 0
        return int(_MEMINFO.unpack(memory)[_MEMINFO_DROPS])

    # Sending

    def send(self, payloads: Sequence[bytes], remote: TransportAddress, local_host: str = "") -> int:
        """Send all payloads to `remote`, from `local_host` if given; returns how many the kernel took."""
        if not self._is_open:
            return 0
        try:
            sockaddr = self._sockaddr(remote)
            pin = self._pin(local_host)
        except OSError as error:
            self._report(remote, error)
            return 0
        sent = start = singles_until = 0
        first_error: OSError | None = None
        while start < len(payloads):
            in_burst = self._uses_gso and start >= singles_until
            end = gso_run_end(payloads, start) if in_burst else start + 1
            try:
                self._send_run(payloads, start, end, pin, sockaddr)
            except OSError as error:
                if error.errno in _FULL:
                    self._sent_dropped += len(payloads) - start
                    break
                if end - start > 1:
                    # EIO: this route cannot segment (IPsec), and it will not learn. Anything else may be
                    # about the burst only, so each datagram gets its own chance and its own error.
                    self._uses_gso = error.errno != errno.EIO
                    singles_until = end
                    continue
                first_error = first_error or error
            else:
                sent += end - start
            start = end
        if first_error is not None:
            self._report(remote, first_error)
        return sent

    def _send_run(
        self,
        payloads: Sequence[bytes],
        start: int,
        end: int,
        pin: list[_ControlMessage],
        sockaddr: SocketAddress,
    ) -> None:
        if end - start > 1:
            segment = (SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(len(payloads[start])))
            self._sock.sendmsg(payloads[start:end], [*pin, segment], 0, sockaddr)
        elif pin:
            self._sock.sendmsg((payloads[start],), pin, 0, sockaddr)
        else:
            self._sock.sendto(payloads[start], sockaddr)

    def _report(self, remote: TransportAddress, error: OSError) -> None:
        def tell() -> None:
            if self._is_open:
                self._owner.send_failed(remote, error, self._loop.time())

        self._loop.call_soon(tell)

    def _sockaddr(self, remote: TransportAddress) -> SocketAddress:
        sockaddr = self._sockaddrs.get(remote)
        if sockaddr is None:
            if remote.family is not self._family:
                raise OSError(errno.EAFNOSUPPORT, f"{remote} is of another family than {self._local_address}")
            sockaddr = to_sockaddr(remote)
            if len(self._sockaddrs) >= MAX_CACHED_ADDRESSES:
                self._sockaddrs.clear()
            # An interface may come back under another index, so its name is looked up each time.
            if "%" not in remote.host:
                self._sockaddrs[remote] = sockaddr
        return sockaddr

    def _pin(self, local_host: str) -> list[_ControlMessage]:
        pin = self._pins.get(local_host)
        if pin is None:
            host, _, zone = local_host.partition("%")
            if self._family is Family.IPV4:
                info = _IN_PKTINFO.pack(0, socket.inet_pton(socket.AF_INET, host), bytes(4))
                pin = [(socket.IPPROTO_IP, IP_PKTINFO, info)]
            else:
                info = _IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, host), zone_index(zone))
                pin = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
            if len(self._pins) >= MAX_CACHED_ADDRESSES:
                self._pins = {"": []}
            if not zone:
                self._pins[local_host] = pin
        return pin


def gso_run_end(payloads: Sequence[bytes], start: int) -> int:
    """The end of the burst that begins at `start`: payloads of its size, the last of which may be shorter."""
    size = len(payloads[start])
    if size == 0:
        return start + 1
    limit = min(len(payloads), start + max(1, min(MAX_GSO_SEGMENTS, MAX_GSO_BYTES // size)))
    end = start + 1
    while end < limit:
        length = len(payloads[end])
        if length != size:
            return end + 1 if 0 < length < size else end
        end += 1
    return end


def _configure(sock: socket.socket, family: Family, receive_bytes: int, send_bytes: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    if family is Family.IPV4:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def _forbid_fragments(sock: socket.socket, family: Family) -> None:
    # PROBE: never fragment, and ignore what ICMP says about the path's MTU; our padded checks prove it.
    if family is Family.IPV4:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)


def _try_option(sock: socket.socket, option: int, value: int) -> bool:
    with suppress(OSError):
        sock.setsockopt(SOL_UDP, option, value)
        return True
    return False
