"""What the I/O port promises, held against both implementations: real sockets and the simulated network."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from actors.io import Io, TcpStream
from tests.actors.io_worlds import RealWorld, SimWorld, Sockets, TcpRecorder, World, has_ipv6_loopback
from ztna.address import Family, TransportAddress

needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6 loopback")
WORLDS = [
    pytest.param(lambda: RealWorld("127.0.0.1"), id="asyncio-ipv4"),
    pytest.param(lambda: RealWorld("::1"), id="asyncio-ipv6", marks=needs_ipv6),
    pytest.param(lambda: SimWorld("10.0.0.1", "10.0.0.2"), id="simnet-ipv4"),
    pytest.param(lambda: SimWorld("fd00::1", "fd00::2"), id="simnet-ipv6"),
]


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    make: Callable[[], World] = request.param
    made = make()
    yield made
    made.close()


@pytest.fixture
def sockets(world: World) -> Iterator[Sockets]:
    made = Sockets(world)
    yield made
    made.close()


# Scheduling


def test_calls_run_in_the_order_of_time_then_of_submission(world: World) -> None:
    ran: list[str] = []

    def note(name: str) -> Callable[[], None]:
        def run() -> None:
            ran.append(name)
            world.changed()

        return run

    io: Io = world.left
    now = io.time()
    io.call_at(now + 0.02, note("late"))
    io.call_at(now + 0.01, note("early"))
    io.call_at(now + 0.015, note("cancelled")).cancel()
    io.call_soon(note("first"))
    io.call_soon(note("second"))
    io.call_soon_threadsafe(note("third"))
    world.wait(lambda: "late" in ran)
    assert ran == ["first", "second", "third", "early", "late"]
    assert io.time() >= now + 0.02


def test_cancelling_a_timer_that_ran_is_harmless(world: World) -> None:
    ran: list[int] = []

    def run() -> None:
        ran.append(1)
        world.changed()

    timer = world.left.call_at(world.left.time(), run)
    world.wait(lambda: bool(ran))
    timer.cancel()


def test_only_the_loops_thread_is_the_loop_thread(world: World) -> None:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(world.left.is_loop_thread()))
    thread.start()
    thread.join()
    assert world.left.is_loop_thread()
    assert answers == [False]


def test_the_wall_clock_shows_this_century_and_chance_is_a_random_source(world: World) -> None:
    assert world.left.wall_time() > 1_700_000_000
    assert isinstance(world.left.random, random.Random)


# UDP


def test_datagrams_arrive_whole_in_order_and_name_both_addresses(world: World, sockets: Sockets) -> None:
    left, _ = sockets.udp(world.left, world.left_host)
    right, heard = sockets.udp(world.right, world.right_host)
    payloads = [b"one", b"", b"x" * 1200, b"y" * 1200, b"z" * 7]
    assert left.send(payloads, right.local_address) == 5
    world.wait(lambda: len(heard.payloads) == 5)
    assert heard.payloads == payloads
    assert {(batch.remote, batch.local_host) for batch in heard.batches} == {
        (left.local_address, world.right_host)
    }


def test_an_answer_reaches_a_socket_bound_to_the_wildcard(world: World, sockets: Sockets) -> None:
    wildcard = "::" if ":" in world.left_host else "0.0.0.0"
    left, left_heard = sockets.udp(world.left, wildcard)
    right, right_heard = sockets.udp(world.right, wildcard)
    left.send([b"ping"], TransportAddress(world.right_host, right.local_address.port))
    world.wait(lambda: bool(right_heard.batches))
    batch = right_heard.batches[0]
    assert batch.local_host == world.right_host
    assert batch.remote == TransportAddress(world.left_host, left.local_address.port)
    right.send([b"pong"], batch.remote, batch.local_host)
    world.wait(lambda: left_heard.payloads == [b"pong"])


def test_datagrams_of_two_peers_come_in_separate_batches(world: World, sockets: Sockets) -> None:
    one, _ = sockets.udp(world.left, world.left_host)
    two, _ = sockets.udp(world.left, world.left_host)
    right, heard = sockets.udp(world.right, world.right_host)
    for _ in range(3):
        one.send([b"1"], right.local_address)
        two.send([b"2"], right.local_address)
    world.wait(lambda: len(heard.payloads) == 6)
    for batch in heard.batches:
        expected = b"1" if batch.remote == one.local_address else b"2"
        assert set(batch.payloads) == {expected}


def test_a_datagram_too_large_is_reported_once_and_the_others_leave(world: World, sockets: Sockets) -> None:
    left, told = sockets.udp(world.left, world.left_host)
    right, heard = sockets.udp(world.right, world.right_host)
    too_large = bytes(65_536)
    assert left.send([too_large, b"fits", too_large], right.local_address) == 1
    assert told.errors == [], "an owner is never called from inside send"
    world.wait(lambda: bool(told.errors) and bool(heard.payloads))
    assert told.errors == [(right.local_address, errno.EMSGSIZE)]
    assert heard.payloads == [b"fits"]


def test_a_remote_of_the_other_family_is_reported(world: World, sockets: Sockets) -> None:
    left, told = sockets.udp(world.left, world.left_host)
    other = TransportAddress("127.0.0.1" if ":" in world.left_host else "::1", 9)
    assert left.send([b"x"], other) == 0
    world.wait(lambda: bool(told.errors))
    assert told.errors == [(other, errno.EAFNOSUPPORT)]


def test_a_pin_to_an_address_of_another_machine_is_reported(world: World, sockets: Sockets) -> None:
    left, told = sockets.udp(world.left, world.left_host)
    right, heard = sockets.udp(world.right, world.right_host)
    foreign = "2001:db8::77" if ":" in world.left_host else "203.0.113.77"
    assert left.send([b"x"], right.local_address, foreign) == 0
    world.wait(lambda: bool(told.errors))
    assert heard.payloads == []


def test_a_closed_socket_takes_nothing_and_tells_nothing(world: World, sockets: Sockets) -> None:
    left, _ = sockets.udp(world.left, world.left_host)
    right, heard = sockets.udp(world.right, world.right_host)
    witness, witnessed = sockets.udp(world.right, world.right_host)
    left.send([b"x"], right.local_address)
    right.close()
    right.close()
    left.send([b"y"], witness.local_address)
    world.wait(lambda: bool(witnessed.payloads))
    assert heard.batches == []
    assert right.send([b"x"], left.local_address) == 0
    assert right.dropped == 0


def test_a_port_in_use_and_a_foreign_address_cannot_be_bound(world: World, sockets: Sockets) -> None:
    left, _ = sockets.udp(world.left, world.left_host)
    with pytest.raises(OSError, match=r"."):
        sockets.udp(world.left, world.left_host, left.local_address.port)
    foreign = "2001:db8::77" if ":" in world.left_host else "203.0.113.77"
    with pytest.raises(OSError, match=r".") as raised:
        sockets.udp(world.left, foreign)
    assert raised.value.errno == errno.EADDRNOTAVAIL


# TCP


def test_bytes_cross_in_both_directions_and_reads_are_bounded(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()
    request = random.Random(1).randbytes(3_000_000)
    reply = random.Random(2).randbytes(1_000_000)
    for start in range(0, len(request), 70_001):
        client.stream.write(request[start : start + 70_001])
    server.stream.write(reply)
    world.wait(lambda: len(server.received) == len(request) and len(client.received) == len(reply))
    assert hashlib.sha256(server.received).digest() == hashlib.sha256(request).digest()
    assert hashlib.sha256(client.received).digest() == hashlib.sha256(reply).digest()
    world.wait(lambda: client.written == len(request) and server.written == len(reply))
    assert max(client.largest_read, server.largest_read) <= 64 * 1024


def test_both_ends_name_each_other(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()
    assert client.stream.local_address == server.stream.remote_address
    assert client.stream.remote_address == server.stream.local_address
    assert client.stream.remote_address.host == world.right_host


def test_nothing_is_read_before_resume(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair(accepted_reads=False)
    client.stream.write(b"early")
    world.wait(lambda: client.written == 5)
    assert server.events == ["connected"]
    server.stream.resume_reading()
    world.wait(lambda: server.received == b"early")


def test_half_close_lets_the_other_direction_finish(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()
    client.stream.write(b"request")
    client.stream.write_eof()
    client.stream.write(b"ignored")
    world.wait(lambda: "eof" in server.events)
    assert server.received == b"request"
    assert not client.is_lost
    server.stream.write(b"reply")
    server.stream.write_eof()
    world.wait(lambda: client.is_lost and server.is_lost)
    assert client.received == b"reply"
    assert client.error is None
    assert server.error is None
    assert client.events == ["connected", "written", "data", "eof", "lost"]
    assert server.events == ["connected", "data", "eof", "written", "lost"]


def test_a_paused_reader_stops_the_writer_and_nothing_is_lost(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()
    total = 32 * 1024 * 1024
    server.stream.pause_reading()
    client.stream.write(bytes(total))
    witness, witnessed = sockets.udp(world.left, world.left_host)

    def settled() -> bool:
        # The writer stands still when a datagram sent after its last progress made the round to ourselves.
        return bool(witnessed.payloads) and int(witnessed.payloads[-1]) == client.written > 0

    def probe(event: str) -> None:
        witness.send([str(client.written).encode()], witness.local_address)

    client.on_event = probe
    world.wait(settled)
    assert 0 < client.written < total
    assert server.received == b""
    server.stream.resume_reading()
    world.wait(lambda: len(server.received) == total)
    world.wait(lambda: client.written == total)


def test_pausing_inside_data_received_takes_effect_at_once(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()

    def pause(event: str) -> None:
        if event == "data":
            server.stream.pause_reading()

    server.on_event = pause
    client.stream.write(bytes(500_000))
    world.wait(lambda: "data" in server.events)
    first = len(server.received)
    assert first <= 64 * 1024
    client.stream.write(b"more")
    server.on_event = lambda _event: None
    server.stream.resume_reading()
    world.wait(lambda: len(server.received) == 500_004)


def test_abort_resets_the_other_end(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()
    client.stream.write(b"x" * 10)
    client.stream.abort()
    assert not client.is_lost, "an owner is never called from inside abort"
    world.wait(lambda: client.is_lost and server.is_lost)
    assert client.error is None
    assert isinstance(server.error, ConnectionResetError)
    client.stream.abort()
    client.stream.write(b"ignored")
    client.stream.write_eof()
    client.stream.resume_reading()


def test_an_abort_by_the_accepting_side_resets_the_client(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair()
    server.stream.abort()
    world.wait(lambda: client.is_lost and server.is_lost)
    assert isinstance(client.error, ConnectionResetError)
    assert server.error is None


def test_a_paused_stream_hears_of_a_reset_behind_the_bytes_before_it(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair(accepted_reads=False)
    client.stream.write(b"last words")
    world.wait(lambda: client.written == 10)
    client.stream.abort()
    world.wait(lambda: client.is_lost)
    server.stream.resume_reading()
    world.wait(lambda: server.is_lost)
    assert isinstance(server.error, ConnectionResetError)


def test_writing_into_a_reset_ends_the_connection(world: World, sockets: Sockets) -> None:
    client, server = sockets.pair(accepted_reads=False)
    server.on_event = lambda event: server.stream.write(bytes(100_000)) if event == "written" else None
    server.stream.write(bytes(100_000))
    world.wait(lambda: len(client.received) > 0)
    client.stream.abort()
    world.wait(lambda: server.is_lost)
    assert isinstance(server.error, ConnectionResetError)


def test_aborting_in_accept_never_connects_the_owner(world: World, sockets: Sockets) -> None:
    owner = sockets.recorder()

    def accept(stream: TcpStream) -> TcpRecorder:
        stream.abort()
        return owner

    listener = world.right.listen_tcp(TransportAddress.of(world.right_host, 0), accept)
    client = sockets.recorder()
    world.left.connect_tcp(world.right_host, listener.local_address.port, 5, client)
    world.wait(lambda: owner.is_lost and client.is_lost)
    listener.close()
    assert owner.events == ["lost"]
    assert owner.error is None


def test_a_port_that_nobody_listens_on_refuses(world: World, sockets: Sockets) -> None:
    listener, _ = sockets.listen(world.right, world.right_host)
    listener.close()
    listener.close()
    client = sockets.recorder()
    world.left.connect_tcp(world.right_host, listener.local_address.port, 5, client)
    world.wait(lambda: client.is_lost)
    assert client.events == ["lost"]
    assert isinstance(client.error, ConnectionRefusedError)


def test_accepted_connections_outlive_their_listener(world: World, sockets: Sockets) -> None:
    listener, accepted = sockets.listen(world.right, world.right_host)
    client = sockets.recorder()
    world.left.connect_tcp(world.right_host, listener.local_address.port, 5, client)
    world.wait(lambda: client.is_connected and bool(accepted))
    listener.close()
    client.stream.write(b"still here")
    world.wait(lambda: accepted[0].received == b"still here")


def test_a_cancelled_attempt_tells_nothing(world: World, sockets: Sockets) -> None:
    listener, _ = sockets.listen(world.right, world.right_host)
    silent, client = sockets.recorder(), sockets.recorder()
    cancel = world.left.connect_tcp(world.right_host, listener.local_address.port, 5, silent)
    cancel()
    cancel_later = world.left.connect_tcp(world.right_host, listener.local_address.port, 5, client)
    world.wait(lambda: client.is_connected)
    cancel_later()
    client.stream.write(b"x")
    world.wait(lambda: client.written == 1)
    assert silent.events == []


def test_a_listener_cannot_take_a_port_in_use(world: World, sockets: Sockets) -> None:
    listener, _ = sockets.listen(world.right, world.right_host)
    with pytest.raises(OSError, match=r".") as raised:
        world.right.listen_tcp(listener.local_address, lambda _stream: sockets.recorder())
    assert raised.value.errno == errno.EADDRINUSE


# Names and interfaces


def test_a_literal_resolves_to_itself_later(world: World) -> None:
    answers: list[tuple[list[TransportAddress], OSError | None]] = []

    def done(addresses: list[TransportAddress], error: OSError | None) -> None:
        answers.append((addresses, error))
        world.changed()

    world.left.resolve(world.right_host, 53, done)
    assert answers == []
    world.wait(lambda: bool(answers))
    assert answers == [([TransportAddress(world.right_host, 53)], None)]


def test_interface_addresses_are_sorted_and_include_loopback(world: World) -> None:
    found = world.left.interface_addresses()
    assert found == sorted(found, key=lambda item: (item.interface, item.host))
    assert ("lo", "127.0.0.1", 8) in {(item.interface, item.host, item.prefix_length) for item in found}


def test_source_address_is_of_the_family_or_none(world: World) -> None:
    for family in Family:
        found = world.left.source_address(family)
        assert found is None or TransportAddress(found, 0).family is family


def test_a_watch_of_the_network_can_end_twice(world: World) -> None:
    cancel = world.left.watch_network(world.changed)
    cancel()
    cancel()
