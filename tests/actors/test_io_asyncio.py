"""What only real sockets show: bursts, kernel errors, full backlogs, exhausted descriptors, name lookups."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors import tcp_asyncio, udp_asyncio
from actors.io import TcpOwner, TcpStream
from actors.io_asyncio import AsyncioIo
from actors.sockaddr import from_sockaddr, is_literal, to_sockaddr
from actors.tcp_asyncio import MAX_ACCEPTS_PER_WAKEUP, AsyncioTcpStream
from actors.tcp_connect_asyncio import MAX_CONNECT_ADDRESSES, TcpConnector
from actors.udp_asyncio import (
    MAX_CACHED_ADDRESSES,
    MAX_DATAGRAMS_PER_WAKEUP,
    MAX_GSO_BYTES,
    MAX_GSO_SEGMENTS,
    MAX_RECEIVE_CALLS,
    AsyncioUdpSocket,
    gso_run_end,
)
from tests.actors.io_worlds import RealWorld, Sockets, TcpRecorder, UdpRecorder, has_ipv6_loopback
from tools.bench import udp as bench_udp
from ztna.address import TransportAddress

LOOPBACK = "127.0.0.1"


@pytest.fixture
def world() -> Iterator[RealWorld]:
    made = RealWorld(LOOPBACK)
    yield made
    made.close()


@pytest.fixture
def sockets(world: RealWorld) -> Iterator[Sockets]:
    made = Sockets(world)
    yield made
    made.close()


class SocketSpy:
    """A socket whose sending calls fail on demand."""

    def __init__(self, sock: socket.socket, fail: Callable[[int], int]) -> None:
        """`fail` is given the number of payloads of a call and returns an errno, or 0 to let it through."""
        self._sock = sock
        self._fail = fail
        self.calls: list[int] = []

    def sendmsg(self, buffers: list[bytes], *rest: Any) -> int:
        self._count(len(buffers))
        return self._sock.sendmsg(buffers, *rest)

    def sendto(self, data: bytes, address: Any) -> int:
        self._count(1)
        return self._sock.sendto(data, address)

    def _count(self, payloads: int) -> None:
        self.calls.append(payloads)
        code = self._fail(payloads)
        if code:
            raise OSError(code, os.strerror(code))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def spy_on(sock: object, fail: Callable[[int], int]) -> SocketSpy:
    assert isinstance(sock, AsyncioUdpSocket)
    spy = SocketSpy(sock._sock, fail)
    sock._sock = spy  # type: ignore[assignment]
    return spy


def skip_without_gso(sock: object) -> None:
    assert isinstance(sock, AsyncioUdpSocket)
    if not sock.uses_gso:
        pytest.skip("this kernel has no UDP_SEGMENT")


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(TransportAddress("127.0.0.1", 53), id="ipv4"),
        pytest.param(TransportAddress("2001:db8::1", 53), id="ipv6"),
        pytest.param(TransportAddress("fe80::1%lo", 53), id="link-local"),
    ],
)
def test_a_socket_address_survives_the_round_trip(address: TransportAddress) -> None:
    assert from_sockaddr(to_sockaddr(address)) == address


def test_a_link_local_address_carries_its_interface_index() -> None:
    assert to_sockaddr(TransportAddress("fe80::1%lo", 5)) == ("fe80::1", 5, 0, socket.if_nametoindex("lo"))
    assert to_sockaddr(TransportAddress("fe80::1%4095", 5)) == ("fe80::1", 5, 0, 4095)


def test_an_interface_that_is_gone_leaves_its_number() -> None:
    assert from_sockaddr(("fe80::1", 5, 0, 4095)) == TransportAddress("fe80::1%4095", 5)


@pytest.mark.parametrize("host", ["example.org", "fe80::1%no-such-interface", "localhost", ""])
def test_what_is_no_usable_literal_is_an_error_and_never_a_lookup(host: str) -> None:
    with pytest.raises(OSError, match=r"."):
        to_sockaddr(TransportAddress(host, 5))


def test_names_and_literals_are_told_apart() -> None:
    assert [host for host in ["::1", "fe80::1%lo", "10.0.0.1", "10.0.0", "a.b"] if is_literal(host)] == [
        "::1",
        "fe80::1%lo",
        "10.0.0.1",
    ]


# UDP bursts


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        pytest.param([5, 5, 5], [3], id="equal"),
        pytest.param([5, 5, 3, 5], [3, 1], id="a-shorter-one-ends-the-run"),
        pytest.param([5, 5, 7, 7], [2, 2], id="a-longer-one-starts-the-next"),
        pytest.param([5, 0, 5], [1, 1, 1], id="an-empty-one-stands-alone"),
        pytest.param([0, 0], [1, 1], id="empty-ones-are-never-segments"),
        pytest.param([1] * (MAX_GSO_SEGMENTS + 2), [MAX_GSO_SEGMENTS, 2], id="at-most-so-many-segments"),
        pytest.param([30_000] * 3, [2, 1], id="at-most-so-many-bytes"),
        pytest.param([MAX_GSO_BYTES + 1] * 2, [1, 1], id="each-larger-than-a-burst"),
    ],
)
def test_runs_of_equal_size_leave_together(sizes: list[int], runs: list[int]) -> None:
    payloads = [bytes(size) for size in sizes]
    found, start = [], 0
    while start < len(payloads):
        end = gso_run_end(payloads, start)
        found.append(end - start)
        start = end
    assert found == runs


@pytest.mark.parametrize("use_offload", [True, False], ids=["offload", "plain"])
def test_a_burst_arrives_as_single_datagrams(
    world: RealWorld, sockets: Sockets, *, use_offload: bool
) -> None:
    io = AsyncioIo(world.loop, use_udp_offload=use_offload)
    left, _ = sockets.udp(io, LOOPBACK)
    right, heard = sockets.udp(io, LOOPBACK)
    assert isinstance(left, AsyncioUdpSocket)
    assert use_offload or not (left.uses_gso or left.uses_gro)
    payloads = [bytes([index]) * 1000 for index in range(120)] + [b"short", b"longer", b""]
    assert left.send(payloads, right.local_address) == len(payloads)
    world.wait(lambda: len(heard.payloads) == len(payloads))
    assert heard.payloads == payloads
    assert left.dropped == right.dropped == 0


def test_a_pinned_burst_leaves_from_the_chosen_address(world: RealWorld, sockets: Sockets) -> None:
    left, _ = sockets.udp(world.left, "0.0.0.0")
    right, heard = sockets.udp(world.right, LOOPBACK)
    left.send([bytes(1000)] * 10 + [b"tail"], right.local_address, "127.0.0.9")
    left.send([b"single"], right.local_address, "127.0.0.9")
    world.wait(lambda: len(heard.payloads) == 12)
    assert {batch.remote.host for batch in heard.batches} == {"127.0.0.9"}


def test_a_route_that_cannot_segment_turns_bursts_off(world: RealWorld, sockets: Sockets) -> None:
    left, told = sockets.udp(world.left, LOOPBACK)
    right, heard = sockets.udp(world.right, LOOPBACK)
    spy = spy_on(left, lambda payloads: errno.EIO if payloads > 1 else 0)
    skip_without_gso(left)
    assert left.send([b"a", b"b", b"c"], right.local_address) == 3
    assert spy.calls == [3, 1, 1, 1]
    left.send([b"d", b"e"], right.local_address)
    assert spy.calls[4:] == [1, 1]
    world.wait(lambda: heard.payloads == [b"a", b"b", b"c", b"d", b"e"])
    assert told.errors == []


def test_a_refused_burst_is_tried_one_by_one_and_bursts_go_on(world: RealWorld, sockets: Sockets) -> None:
    left, told = sockets.udp(world.left, LOOPBACK)
    right, heard = sockets.udp(world.right, LOOPBACK)
    failures = [errno.EINVAL, errno.EPERM]
    spy = spy_on(left, lambda _payloads: failures.pop(0) if failures else 0)
    skip_without_gso(left)
    assert left.send([b"a", b"b", b"c", b"long", b"long"], right.local_address) == 4
    assert spy.calls == [3, 1, 1, 1, 2]
    world.wait(lambda: len(heard.payloads) == 4 and bool(told.errors))
    assert told.errors == [(right.local_address, errno.EPERM)]


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS], ids=["socket", "device"])
def test_a_full_buffer_drops_the_rest_and_counts_it(world: RealWorld, sockets: Sockets, code: int) -> None:
    left, told = sockets.udp(world.left, LOOPBACK)
    right, heard = sockets.udp(world.right, LOOPBACK)
    answers = [0, code]
    spy_on(left, lambda _payloads: answers.pop(0) if answers else 0)
    assert left.send([b"a", b"bb", b"ccc"], right.local_address) == 1
    assert left.dropped == 2
    world.wait(lambda: heard.payloads == [b"a"])
    assert told.errors == []


@pytest.mark.parametrize(("may_fragment", "discover"), [(False, udp_asyncio.PMTUDISC_PROBE), (True, 1)])
def test_only_a_socket_of_a_service_lets_the_kernel_fragment(
    world: RealWorld, may_fragment: bool, discover: int
) -> None:
    io = AsyncioIo(world.loop)
    opened = io.open_udp(TransportAddress(LOOPBACK, 0), UdpRecorder(world), may_fragment=may_fragment)
    assert opened._sock.getsockopt(socket.IPPROTO_IP, udp_asyncio.IP_MTU_DISCOVER) == discover
    opened.close()


def test_what_the_kernel_drops_on_receiving_is_counted_and_stays_known_after_close(world: RealWorld) -> None:
    io = AsyncioIo(world.loop, udp_receive_buffer_bytes=4096)
    recorder = UdpRecorder(world)
    right = io.open_udp(TransportAddress(LOOPBACK, 0), recorder)
    left = io.open_udp(TransportAddress(LOOPBACK, 0), UdpRecorder(world))
    for _ in range(100):
        left.send([bytes(1000)], right.local_address)
    world.wait(lambda: bool(recorder.batches))
    dropped = right.dropped
    assert dropped > 0
    assert dropped + len(recorder.payloads) == 100
    right.close()
    left.close()
    assert right.dropped == dropped


def test_one_wake_up_hands_over_a_bounded_number(world: RealWorld, sockets: Sockets) -> None:
    sizes: list[int] = []

    class Owner(UdpRecorder):
        def datagrams_received(self, batches: list[Any], now: float) -> None:
            sizes.append(sum(len(batch.payloads) for batch in batches))
            super().datagrams_received(batches, now)

    owner = Owner(world)
    right = world.right.open_udp(TransportAddress(LOOPBACK, 0), owner)
    left, _ = sockets.udp(world.left, LOOPBACK)
    for _ in range(20):
        left.send([bytes(100)] * MAX_GSO_SEGMENTS, right.local_address)
    world.wait(lambda: len(owner.payloads) == 20 * MAX_GSO_SEGMENTS)
    right.close()
    assert max(sizes) < MAX_DATAGRAMS_PER_WAKEUP + 2 * MAX_GSO_SEGMENTS


def test_one_wake_up_makes_a_bounded_number_of_calls(world: RealWorld, sockets: Sockets) -> None:
    sizes: list[int] = []

    class Owner(UdpRecorder):
        def datagrams_received(self, batches: list[Any], now: float) -> None:
            sizes.append(sum(len(batch.payloads) for batch in batches))
            super().datagrams_received(batches, now)

    owner = Owner(world)
    io = AsyncioIo(world.loop, use_udp_offload=False)  # one datagram for each call
    right = io.open_udp(TransportAddress(LOOPBACK, 0), owner)
    left, _ = sockets.udp(world.left, LOOPBACK)
    count = 2 * MAX_RECEIVE_CALLS + 1
    assert left.send([bytes(100)] * count, right.local_address) == count
    world.wait(lambda: len(owner.payloads) == count)
    right.close()
    assert sizes == [MAX_RECEIVE_CALLS, MAX_RECEIVE_CALLS, 1]


def test_an_unusual_remote_or_pin_is_an_error_not_an_exception(world: RealWorld, sockets: Sockets) -> None:
    left, told = sockets.udp(world.left, LOOPBACK)
    assert left.send([b"x"], TransportAddress("example.org", 9)) == 0
    assert left.send([b"x"], left.local_address, "example.org") == 0
    world.wait(lambda: len(told.errors) == 2)


def test_the_address_caches_start_anew_when_full(
    world: RealWorld, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_CACHED_ADDRESSES >= 1024
    monkeypatch.setattr(udp_asyncio, "MAX_CACHED_ADDRESSES", 2)
    left, _ = sockets.udp(world.left, "0.0.0.0")
    right, heard = sockets.udp(world.right, "0.0.0.0")
    assert isinstance(left, AsyncioUdpSocket)
    for last in range(1, 8):
        host = f"127.0.0.{last}"
        assert left.send([b"x"], TransportAddress(host, right.local_address.port), host) == 1
        assert len(left._sockaddrs) <= 2
        assert len(left._pins) <= 2
    world.wait(lambda: len(heard.payloads) == 7)
    assert {batch.local_host for batch in heard.batches} == {f"127.0.0.{last}" for last in range(1, 8)}


def test_one_port_serves_both_families_and_nothing_is_fragmented(world: RealWorld, sockets: Sockets) -> None:
    four, _ = sockets.udp(world.left, "0.0.0.0")
    assert isinstance(four, AsyncioUdpSocket)
    option = four._sock.getsockopt(socket.IPPROTO_IP, udp_asyncio.IP_MTU_DISCOVER)
    assert option == udp_asyncio.PMTUDISC_PROBE
    if not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback")
    six, _ = sockets.udp(world.left, "::", four.local_address.port)
    assert isinstance(six, AsyncioUdpSocket)
    option = six._sock.getsockopt(socket.IPPROTO_IPV6, udp_asyncio.IPV6_MTU_DISCOVER)
    assert option == udp_asyncio.PMTUDISC_PROBE


def no_owner(_stream: TcpStream) -> TcpOwner:
    raise RuntimeError("no owner")


def test_a_failed_bind_leaves_no_socket_behind(world: RealWorld, sockets: Sockets) -> None:
    taken, _ = sockets.udp(world.left, LOOPBACK)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number counts
    for _ in range(5):
        with pytest.raises(OSError, match=r"."):
            world.left.open_udp(taken.local_address, UdpRecorder(world))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_benchmark_measures_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_udp, "BURSTS", 2)
    monkeypatch.setattr(bench_udp, "ROUNDS", 1)
    results = bench_udp.run()
    costs = {name for name in results if name.endswith("_us")}
    assert len(costs) == 6
    assert results.keys() == costs | {f"{name.removesuffix('_us')}_to_plain" for name in costs}
    assert all(figure > 0 for figure in results.values())


# TCP


def test_bytes_written_is_exactly_what_the_kernel_took(world: RealWorld) -> None:
    total = 20_000_000
    client = TcpRecorder(world)
    with socket.create_server((LOOPBACK, 0)) as listener:
        world.left.connect_tcp(LOOPBACK, listener.getsockname()[1], 5, client)
        world.wait(lambda: client.is_connected)
        peer, _ = listener.accept()
    stream = client.stream
    assert isinstance(stream, AsyncioTcpStream)
    stream.write(bytes(total // 2))
    stream.write(bytes(total // 2))
    world.wait(lambda: stream._has_writer)
    reported = client.written
    assert 0 < reported < total
    # Let go of what the kernel did not take: then exactly the reported bytes come out at the other end.
    stream._queue.clear()
    stream.write_eof()

    async def read_to_the_end() -> int:
        read = 0
        while data := await world.loop.sock_recv(peer, 1 << 20):
            read += len(data)
        return read

    with peer:
        peer.setblocking(False)
        assert world.loop.run_until_complete(asyncio.wait_for(read_to_the_end(), 10)) == reported
    assert client.written == reported
    stream.abort()
    world.wait(lambda: client.is_lost)


def test_a_peer_that_closed_and_then_resets_is_one_reset(world: RealWorld) -> None:
    client = TcpRecorder(world)
    with socket.create_server((LOOPBACK, 0)) as listener:
        world.left.connect_tcp(LOOPBACK, listener.getsockname()[1], 5, client)
        world.wait(lambda: client.is_connected)
        peer, _ = listener.accept()
    peer.close()
    world.wait(lambda: "eof" in client.events)
    client.on_event = lambda event: client.stream.write(b"again") if event == "written" else None
    client.stream.write(b"the kernel answers with a reset")
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, ConnectionResetError)


def test_finishing_towards_a_peer_that_reset_is_a_reset(world: RealWorld) -> None:
    client = TcpRecorder(world, reads=False)
    with socket.create_server((LOOPBACK, 0)) as listener:
        world.left.connect_tcp(LOOPBACK, listener.getsockname()[1], 5, client)
        world.wait(lambda: client.is_connected)
        peer, _ = listener.accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    peer.close()
    client.stream.write_eof()
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, ConnectionResetError)


def test_running_out_of_descriptors_rests_and_then_accepts(
    world: RealWorld, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[TransportAddress, int | None]] = []
    monkeypatch.setattr(tcp_asyncio, "ACCEPT_RETRY_S", 0.01)
    io = AsyncioIo(world.loop, on_accept_error=lambda local, error: told.append((local, error.errno)))
    listener, accepted = sockets.listen(io, LOOPBACK)
    assert isinstance(listener, tcp_asyncio.AsyncioTcpListener)
    listener._sock = ExhaustedListener(listener._sock, [errno.ECONNABORTED, errno.EMFILE, errno.ENFILE])  # type: ignore[assignment]
    client = sockets.recorder()
    io.connect_tcp(LOOPBACK, listener.local_address.port, 5, client)
    world.wait(lambda: len(accepted) == 1 and accepted[0].is_connected)
    assert told == [(listener.local_address, errno.EMFILE), (listener.local_address, errno.ENFILE)]
    assert io.accept_errors == 2


def test_closing_a_resting_listener_ends_its_rest(world: RealWorld, sockets: Sockets) -> None:
    listener, _ = sockets.listen(world.right, LOOPBACK)
    assert isinstance(listener, tcp_asyncio.AsyncioTcpListener)
    listener._sock = ExhaustedListener(listener._sock, [errno.EMFILE])  # type: ignore[assignment]
    client = sockets.recorder()
    world.left.connect_tcp(LOOPBACK, listener.local_address.port, 5, client)
    world.wait(lambda: world.right.accept_errors == 1 and client.is_connected)
    listener.close()
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, ConnectionResetError)


class ExhaustedListener:
    """A listening socket whose first calls of `accept` fail."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self._sock = sock
        self._errors = errors

    def accept(self) -> tuple[socket.socket, Any]:
        if self._errors:
            code = self._errors.pop(0)
            raise OSError(code, os.strerror(code))
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_one_wake_up_accepts_a_bounded_number(world: RealWorld, sockets: Sockets) -> None:
    listener, accepted = sockets.listen(world.right, LOOPBACK)
    assert isinstance(listener, tcp_asyncio.AsyncioTcpListener)
    clients = [
        socket.create_connection((LOOPBACK, listener.local_address.port))
        for _ in range(MAX_ACCEPTS_PER_WAKEUP + 3)
    ]
    listener._on_readable()
    assert len(accepted) == MAX_ACCEPTS_PER_WAKEUP
    world.wait(lambda: len(accepted) == len(clients))
    for client in clients:
        client.close()


def test_a_client_that_is_gone_before_accept_is_passed_over(world: RealWorld, sockets: Sockets) -> None:
    listener, accepted = sockets.listen(world.right, LOOPBACK)
    assert isinstance(listener, tcp_asyncio.AsyncioTcpListener)
    gone = socket.create_connection((LOOPBACK, listener.local_address.port))
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    gone.close()
    client = sockets.recorder()
    world.left.connect_tcp(LOOPBACK, listener.local_address.port, 5, client)
    world.wait(lambda: client.is_connected and len(accepted) == 1)


def test_a_connection_that_nobody_wants_is_reset(world: RealWorld) -> None:
    listener = world.right.listen_tcp(TransportAddress(LOOPBACK, 0), no_owner)
    client = TcpRecorder(world)
    world.left.connect_tcp(LOOPBACK, listener.local_address.port, 5, client)
    world.wait(lambda: client.is_lost)
    listener.close()
    assert isinstance(client.error, ConnectionResetError)
    assert [str(context["exception"]) for context in world.errors] == ["no owner"]
    world.errors.clear()


# Connecting and names


class FullBacklog:
    """A listener that answers nobody: its one place is taken, so the kernel drops every further SYN."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind((LOOPBACK, 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._fillers = [socket.socket() for _ in range(4)]
        for filler in self._fillers:
            filler.setblocking(False)
            filler.connect_ex((LOOPBACK, self.port))

    def close(self) -> None:
        for sock in [*self._fillers, self._listener]:
            sock.close()


@pytest.fixture
def full_backlog() -> Iterator[FullBacklog]:
    made = FullBacklog()
    yield made
    made.close()


def answer_with(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], list[tuple[str, int]]]
) -> list[str]:
    """Stand in for the name service; returns the list of the names it is asked for."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, *, type: int) -> list[Any]:  # noqa: A002 - the loop's word
        asked.append(host)
        return [(socket.AF_INET, type, 0, "", sockaddr) for sockaddr in answer(host)]

    monkeypatch.setattr(world.loop, "getaddrinfo", getaddrinfo)
    return asked


def test_an_address_that_does_not_answer_is_a_timeout(world: RealWorld, full_backlog: FullBacklog) -> None:
    client = TcpRecorder(world)
    world.left.connect_tcp(LOOPBACK, full_backlog.port, 0.05, client)
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, TimeoutError)
    assert str(full_backlog.port) in str(client.error)


def test_refused_connection_is_told_with_its_address_in_the_words_of_the_kernel(world: RealWorld) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    client = TcpRecorder(world)
    world.left.connect_tcp(LOOPBACK, port, 5, client)
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, ConnectionRefusedError)
    assert client.error.strerror == f"Connection refused: {LOOPBACK}:{port}"


def test_every_address_of_a_name_is_tried_with_its_share_of_the_time(
    world: RealWorld, sockets: Sockets, full_backlog: FullBacklog, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, _ = sockets.listen(world.right, LOOPBACK)
    port = listener.local_address.port
    asked = answer_with(world, monkeypatch, lambda _host: [(LOOPBACK, full_backlog.port), (LOOPBACK, port)])
    client = sockets.recorder()
    world.left.connect_tcp("service.test", 1, 0.2, client)
    world.wait(lambda: client.is_connected)
    assert asked == ["service.test"]


def test_a_name_with_too_many_addresses_is_cut(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    async def sock_connect(_sock: socket.socket, address: tuple[str, int]) -> None:
        tried.append(address[1])
        raise OSError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(world.loop, "sock_connect", sock_connect)
    answer_with(world, monkeypatch, lambda _host: [(LOOPBACK, port) for port in range(1, 30)])
    client = TcpRecorder(world)
    world.left.connect_tcp("farm.test", 1, 5, client)
    world.wait(lambda: client.is_lost)
    assert len(tried) == MAX_CONNECT_ADDRESSES


def test_a_slow_name_service_is_a_timeout(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(_host: str, _port: int, **_kind: int) -> list[Any]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(world.loop, "getaddrinfo", getaddrinfo)
    client = TcpRecorder(world)
    world.left.connect_tcp("slow.test", 1, 0.02, client)
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, TimeoutError)
    assert "slow.test" in str(client.error)


def test_a_socket_that_met_itself_counts_as_refused(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect_to_itself(sock: socket.socket, _address: object) -> None:
        sock.bind((LOOPBACK, 0))
        sock.connect_ex(sock.getsockname())

    monkeypatch.setattr(world.loop, "sock_connect", connect_to_itself)
    client = TcpRecorder(world)
    world.left.connect_tcp(LOOPBACK, 1, 5, client)
    world.wait(lambda: client.is_lost)
    assert isinstance(client.error, ConnectionRefusedError)


def test_attempt_is_a_promised_descriptor_until_it_holds_one(world: RealWorld, sockets: Sockets) -> None:
    listener, _ = sockets.listen(world.right, LOOPBACK)
    client, promised = TcpRecorder(world), set[TcpConnector]()
    connector = TcpConnector(world.loop, LOOPBACK, listener.local_address.port, 5, client, promised)
    assert promised == {connector}
    world.wait(lambda: client.is_connected)
    assert promised == set()
    client.stream.abort()


def test_attempt_that_ends_without_a_descriptor_promises_none(world: RealWorld) -> None:
    client, promised = TcpRecorder(world), set[TcpConnector]()
    TcpConnector(world.loop, "a..b", 1, 5, client, promised)
    assert promised
    world.wait(lambda: client.is_lost)
    assert promised == set()


def test_cancelling_when_the_handshake_is_done_closes_the_socket(world: RealWorld, sockets: Sockets) -> None:
    listener, accepted = sockets.listen(world.right, LOOPBACK)
    client = TcpRecorder(world)
    connector = TcpConnector(world.loop, LOOPBACK, listener.local_address.port, 5, client, set())
    # The owner cancels in the one turn of the loop between the last step of the task and its report.
    connector._task.remove_done_callback(connector._on_done)
    world.loop.run_until_complete(connector._task)
    connector.cancel()
    connector._on_done(connector._task)
    world.wait(lambda: len(accepted) == 1 and accepted[0].is_lost)
    assert client.events == []


@pytest.mark.parametrize(
    "host", [pytest.param("a..b", id="empty-label"), pytest.param("x" * 64 + ".test", id="long-label")]
)
def test_a_name_that_cannot_be_one_is_an_error_without_asking(world: RealWorld, host: str) -> None:
    answers = resolve(world, host)
    assert answers[0][0] == []
    assert isinstance(answers[0][1], socket.gaierror)


def test_a_name_resolves_to_each_address_once(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(world, monkeypatch, lambda _host: [("10.0.0.2", 5), ("10.0.0.1", 5), ("10.0.0.2", 5)])
    assert resolve(world, "many.test") == [
        ([TransportAddress("10.0.0.2", 5), TransportAddress("10.0.0.1", 5)], None)
    ]
    assert asked == ["many.test"]


def test_a_name_without_addresses_is_an_error(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(world, monkeypatch, lambda _host: [])
    assert isinstance(resolve(world, "none.test")[0][1], socket.gaierror)


def test_literals_never_ask_the_name_service(
    world: RealWorld, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer_with(world, monkeypatch, lambda _host: [])
    resolve(world, "fe80::1%lo")
    sockets.pair()
    assert asked == []


def resolve(world: RealWorld, host: str) -> list[tuple[list[TransportAddress], OSError | None]]:
    answers: list[tuple[list[TransportAddress], OSError | None]] = []

    def done(addresses: list[TransportAddress], error: OSError | None) -> None:
        answers.append((addresses, error))
        world.changed()

    world.left.resolve(host, 5, done)
    world.wait(lambda: bool(answers))
    return answers
