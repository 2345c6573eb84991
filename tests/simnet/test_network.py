"""The simulated network itself: what chance, time, links and crashes do to packets."""

from __future__ import annotations

import functools
import random
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.actors.io_worlds import TcpRecorder, UdpRecorder
from tests.simnet import clock as clock_module
from tests.simnet.clock import MIN_HEAP_TO_COMPACT, START_TIME, LivelockError, VirtualClock
from tests.simnet.link import TCP_RETRANSMISSION_S, Link, LinkConfig, Packet
from tests.simnet.network import MAX_TRACE_ENTRIES, VirtualNetwork, WaitTimeoutError
from tests.simnet.sim_io import UDP_RECEIVE_BUFFER_BYTES, WALL_EPOCH, Host, SimIo
from tests.simnet.sim_tcp import TCP_WINDOW_BYTES
from ztna.address import Family, TransportAddress

ONE, TWO = "10.0.0.1", "10.0.0.2"
LATENCY_S = 0.01


class Pair:
    """Two hosts; an owner of either side that wants to be told of changes finds `changed` here."""

    def __init__(self, seed: int = 1, config: LinkConfig | None = None) -> None:
        self.network = VirtualNetwork(seed, config)
        self.one_host = self.network.host("one", ONE)
        self.two_host = self.network.host("two", TWO, skew_s=5.0)
        self.left = self.one_host.io()
        self.right = self.two_host.io()
        self.left_host, self.right_host = ONE, TWO

    def changed(self) -> None:
        pass

    def close(self) -> None:
        pass

    def wait(self, predicate: Callable[[], bool], what: str = "") -> None:
        self.network.run_until(predicate, 10, what)

    def listen(self, *, reads: bool = True) -> tuple[TransportAddress, list[TcpRecorder]]:
        accepted: list[TcpRecorder] = []

        def accept(_stream: object) -> TcpRecorder:
            accepted.append(TcpRecorder(self, reads=reads))
            return accepted[-1]

        return self.right.listen_tcp(TransportAddress(TWO, 0), accept).local_address, accepted

    def connect(self, *, reads: bool = True) -> tuple[TcpRecorder, TcpRecorder]:
        address, accepted = self.listen(reads=reads)
        client = TcpRecorder(self)
        self.left.connect_tcp(TWO, address.port, 5, client)
        self.network.run_until(lambda: client.is_connected and bool(accepted), 5)
        return client, accepted[0]

    def udp(self) -> tuple[UdpRecorder, TransportAddress]:
        heard = UdpRecorder(self)
        return heard, self.right.open_udp(TransportAddress("0.0.0.0", 0), heard).local_address

    def flood(self, count: int, size: int = 100) -> UdpRecorder:
        """Send `count` numbered datagrams at once, and let them arrive."""
        heard, address = self.udp()
        sender = self.left.open_udp(TransportAddress(ONE, 0), UdpRecorder(self))
        payloads = [index.to_bytes(4, "big") + bytes(size - 4) for index in range(count)]
        sender.send(payloads, TransportAddress(TWO, address.port))
        self.network.run_for(5)
        return heard

    def numbers(self, heard: UdpRecorder) -> list[int]:
        return [int.from_bytes(payload[:4], "big") for payload in heard.payloads]


@pytest.fixture
def two() -> Pair:
    return Pair()


# Clock


def test_time_jumps_to_the_next_event_and_ties_run_in_order_of_submission() -> None:
    clock = VirtualClock()
    ran: list[tuple[str, float]] = []
    clock.call_at(START_TIME + 3600, lambda: ran.append(("b", clock.time())))
    clock.call_at(START_TIME + 3600, lambda: ran.append(("c", clock.time())))
    clock.call_at(START_TIME - 1, lambda: ran.append(("a", clock.time())))
    clock.run_for(7200)
    assert ran == [("a", START_TIME), ("b", START_TIME + 3600), ("c", START_TIME + 3600)]
    assert clock.time() == START_TIME + 7200


def test_run_until_stops_before_the_next_event_or_at_the_timeout() -> None:
    clock = VirtualClock()
    ran: list[int] = []
    for second in range(1, 4):
        clock.call_at(START_TIME + second, functools.partial(ran.append, second))
    assert clock.run_until(lambda: len(ran) == 2, 10)
    assert clock.time() == START_TIME + 2
    assert not clock.run_until(lambda: len(ran) == 9, 10)
    assert clock.time() == START_TIME + 12


def test_cancelled_timers_do_not_pile_up() -> None:
    clock = VirtualClock()
    ran: list[int] = []
    for index in range(10 * MIN_HEAP_TO_COMPACT):
        timer = clock.call_at(START_TIME + 100 + index, lambda: ran.append(1))
        timer.cancel()
        timer.cancel()
        assert len(clock._heap) <= MIN_HEAP_TO_COMPACT + 1
    clock.call_at(START_TIME + 50, lambda: ran.append(2))
    clock.run_for(20_000_000)
    assert ran == [2]


def test_a_callback_that_stops_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "MAX_EVENTS_PER_INSTANT", 100)
    clock = VirtualClock()

    def again() -> None:
        clock.call_soon(again)

    again()
    with pytest.raises(LivelockError):
        clock.run_for(1)


def test_an_exception_of_a_callback_reaches_the_test() -> None:
    clock = VirtualClock()

    def fail() -> None:
        raise RuntimeError("a bug")

    clock.call_soon(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        clock.run_for(1)


def test_the_wall_clock_runs_with_the_virtual_one_and_may_be_ahead(two: Pair) -> None:
    assert two.left.wall_time() == WALL_EPOCH + two.left.time()
    assert two.right.wall_time() == two.left.wall_time() + 5.0


# Determinism


def run_noisy(seed: int) -> tuple[list[str], float]:
    config = LinkConfig(latency_s=0.02, jitter_s=0.01, loss=0.2, rate_bps=5_000_000)
    two = Pair(seed, config)
    heard = two.flood(200)
    client, server = two.connect()
    client.stream.write(bytes(300_000))
    two.network.run_until(lambda: len(server.received) == 300_000, 60)
    assert heard.payloads
    return [str(entry) for entry in two.network.trace], two.left.random.random()


def test_the_same_seed_gives_the_same_trace() -> None:
    assert run_noisy(5) == run_noisy(5)


def test_another_seed_gives_another_trace() -> None:
    assert run_noisy(5)[0] != run_noisy(6)[0]


def test_each_process_has_chance_of_its_own(two: Pair) -> None:
    again = two.one_host.io()
    assert len({io.random.random() for io in (two.left, two.right, again)}) == 3


# Links


def test_latency_is_one_way_and_exact(two: Pair) -> None:
    times: list[float] = []
    heard, address = two.udp()

    class Owner(UdpRecorder):
        def datagrams_received(self, batches: object, now: float) -> None:
            times.append(now)

    echo = two.left.open_udp(TransportAddress(ONE, 0), Owner(two))
    other = two.right.open_udp(TransportAddress(TWO, 0), heard)
    other.send([b"x"], echo.local_address)
    two.network.run_for(1)
    assert times == [pytest.approx(START_TIME + LATENCY_S)]
    assert address.host == "0.0.0.0"


def test_without_jitter_datagrams_keep_their_order() -> None:
    two = Pair()
    assert two.numbers(two.flood(100)) == list(range(100))


def test_jitter_reorders_datagrams_but_never_a_stream() -> None:
    two = Pair(config=LinkConfig(jitter_s=0.05))
    numbers = two.numbers(two.flood(100))
    assert sorted(numbers) == list(range(100)) != numbers
    client, server = two.connect()
    sent = random.Random(3).randbytes(1_000_000)
    client.stream.write(sent)
    two.network.run_until(lambda: len(server.received) == len(sent), 60)
    assert server.received == sent


def test_loss_is_as_frequent_as_configured() -> None:
    heard = Pair(config=LinkConfig(loss=0.25)).flood(4000)
    # Four standard deviations of a binomial distribution.
    assert abs(len(heard.payloads) - 3000) < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_a_lost_segment_costs_time_instead_of_bytes() -> None:
    two = Pair(config=LinkConfig(latency_s=0.01, loss=1.0))
    client, server = two.connect()
    started = two.left.time()
    client.stream.write(b"late")
    two.network.run_until(lambda: server.received == b"late", 10)
    assert two.left.time() - started == pytest.approx(0.01 + TCP_RETRANSMISSION_S)


def test_a_rate_spreads_packets_and_a_full_queue_drops_the_tail() -> None:
    two = Pair(config=LinkConfig(latency_s=0.0, rate_bps=800_000, queue_bytes=10_000))
    numbers = two.numbers(two.flood(100, size=972))  # 1000 bytes with headers: 10 ms each
    assert numbers == list(range(10))
    assert "queue full" in two.network.timeline()


def test_a_datagram_above_the_links_mtu_vanishes_and_the_trace_says_so() -> None:
    two = Pair(config=LinkConfig(mtu=1280))
    assert len(two.flood(1, size=1252).payloads) == 1
    assert two.flood(1, size=1253).payloads == []
    assert "larger than MTU 1280" in two.network.timeline()


def test_a_link_that_is_down_loses_datagrams_and_delays_streams(two: Pair) -> None:
    client, server = two.connect()
    heard, address = two.udp()
    sender = two.left.open_udp(TransportAddress(ONE, 0), UdpRecorder(two))
    down = LinkConfig(is_up=False)
    two.network.set_link("one", "two", down)
    sender.send([b"lost"], TransportAddress(TWO, address.port))
    client.stream.write(b"kept")
    two.network.run_for(30)
    assert server.received == b""
    two.network.set_link("one", "two", replace(down, is_up=True))
    two.network.run_until(lambda: server.received == b"kept", 1)
    assert heard.payloads == []


def test_a_link_may_differ_by_direction(two: Pair) -> None:
    two.network.set_link("one", "two", LinkConfig(is_up=False), both_ways=False)
    heard = two.flood(1)
    assert heard.payloads == []
    back = UdpRecorder(two)
    target = two.left.open_udp(TransportAddress(ONE, 0), back)
    two.right.open_udp(TransportAddress(TWO, 0), heard).send([b"x"], target.local_address)
    two.network.run_until(lambda: back.payloads == [b"x"], 1)


def test_a_burst_beyond_the_receive_buffer_is_counted() -> None:
    two = Pair()
    heard = UdpRecorder(two)
    receiver = two.right.open_udp(TransportAddress(TWO, 0), heard)
    sender = two.left.open_udp(TransportAddress(ONE, 0), UdpRecorder(two))
    count = UDP_RECEIVE_BUFFER_BYTES // 1500 + 10
    sender.send([bytes(1472)] * count, receiver.local_address)
    two.network.run_for(1)
    assert receiver.dropped > 0
    assert receiver.dropped + len(heard.payloads) == count


# TCP


def test_bytes_written_advances_only_as_the_receiver_reads(two: Pair) -> None:
    client, server = two.connect(reads=False)
    total = 3 * TCP_WINDOW_BYTES
    client.stream.write(bytes(total))
    two.network.run_for(60)
    assert client.written == TCP_WINDOW_BYTES
    assert server.received == b""
    server.on_event = lambda event: server.stream.pause_reading() if event == "data" else None
    server.stream.resume_reading()
    two.network.run_for(60)
    assert client.written == TCP_WINDOW_BYTES + len(server.received) < total
    server.on_event = lambda _event: None
    server.stream.resume_reading()
    two.network.run_until(lambda: len(server.received) == client.written == total, 60)


def test_the_window_limits_throughput_to_one_per_round_trip() -> None:
    two = Pair(config=LinkConfig(latency_s=0.5))
    client, server = two.connect()
    started = two.left.time()
    client.stream.write(bytes(4 * TCP_WINDOW_BYTES))
    two.network.run_until(lambda: len(server.received) == 4 * TCP_WINDOW_BYTES, 60)
    assert two.left.time() - started == pytest.approx(3 * 1.0 + 0.5)


def test_a_server_that_speaks_first_is_heard_after_two_round_trips(two: Pair) -> None:
    address, accepted = two.listen()
    client = TcpRecorder(two)
    two.left.connect_tcp(TWO, address.port, 5, client)
    two.network.run_until(lambda: bool(accepted), 1)
    accepted[0].stream.write(b"hello")
    two.network.run_until(lambda: client.received == b"hello", 1)
    assert two.left.time() - START_TIME == pytest.approx(4 * LATENCY_S)


def test_an_address_that_nobody_has_times_out(two: Pair) -> None:
    client = TcpRecorder(two)
    two.left.connect_tcp("10.0.0.99", 80, 3, client)
    two.network.run_for(10)
    assert client.events == ["lost"]
    assert isinstance(client.error, TimeoutError)


def test_a_family_without_an_address_is_unreachable_and_the_next_address_is_tried(two: Pair) -> None:
    address, _ = two.listen()
    two.network.add_name("both.test", "fd00::2", "10.0.0.99", TWO)
    client = TcpRecorder(two)
    two.left.connect_tcp("both.test", address.port, 3, client)
    two.network.run_until(lambda: client.is_connected, 3)


def test_an_unknown_name_fails_the_attempt(two: Pair) -> None:
    client = TcpRecorder(two)
    two.left.connect_tcp("nowhere.test", 80, 3, client)
    two.network.run_until(lambda: client.is_lost, 3)
    assert isinstance(client.error, socket.gaierror)


def test_a_handshake_given_up_half_way_leaves_nothing_on_either_host(two: Pair) -> None:
    address, accepted = two.listen()
    client = TcpRecorder(two)
    cancel = two.left.connect_tcp(TWO, address.port, 5, client)
    two.network.run_for(1.5 * LATENCY_S)
    cancel()
    two.network.run_for(5)
    assert (client.events, accepted) == ([], [])
    assert two.one_host.streams == {} == two.two_host.streams


# Crashes


def test_a_silent_crash_is_noticed_only_when_the_host_is_back(two: Pair) -> None:
    client, server = two.connect()
    ran: list[int] = []
    two.right.call_at(two.right.time() + 1, lambda: ran.append(1))
    two.network.crash(two.two_host)
    client.stream.write(b"into the void")
    two.network.run_for(60)
    assert (ran, server.events, client.is_lost) == ([], ["connected"], False)
    two.two_host.io()
    client.stream.write(b"anybody there?")
    two.network.run_until(lambda: client.is_lost, 1)
    assert isinstance(client.error, ConnectionResetError)


def test_a_killed_process_resets_its_connections_and_frees_its_ports(two: Pair) -> None:
    client, _ = two.connect()
    heard, address = two.udp()
    two.network.crash(two.two_host, resets=True)
    two.network.run_until(lambda: client.is_lost, 1)
    assert isinstance(client.error, ConnectionResetError)
    again = two.two_host.io().open_udp(address, heard)
    assert again.local_address == address


def test_processes_of_one_host_reach_each_other_over_loopback(two: Pair) -> None:
    heard = UdpRecorder(two)
    receiver = two.one_host.io().open_udp(TransportAddress("127.0.0.1", 0), heard)
    sender = two.left.open_udp(TransportAddress("0.0.0.0", 0), UdpRecorder(two))
    sender.send([bytes(9000)], receiver.local_address)
    two.network.run_until(lambda: heard.payloads == [bytes(9000)], 1)
    assert heard.batches[0].remote.host == "127.0.0.1"


# Topology and trace


class Recorder:
    """A node between a host and the network, as a NAT is: here it only looks."""

    name = "recorder"

    def __init__(self, network: VirtualNetwork) -> None:
        self.network = network
        self.inside: Host | None = None
        self.seen: list[Packet] = []

    def forward(self, packet: Packet) -> None:
        self.seen.append(packet)
        assert self.inside is not None
        if packet.destination.host in self.inside.addresses:
            self.inside.forward(packet)
        else:
            self.network.forward(packet)

    def refused(self, packet: Packet, mtu: int) -> None:
        raise AssertionError(f"no link is too narrow for {packet} ({mtu})")


def test_a_node_can_stand_between_a_host_and_the_network(two: Pair) -> None:
    node = Recorder(two.network)
    node.inside = two.network.host("behind", "10.1.0.1", uplink=node)
    two.network.attach(node, ["10.1.0.1"])
    io: SimIo = node.inside.io()
    address, accepted = two.listen()
    client = TcpRecorder(two)
    io.connect_tcp(TWO, address.port, 5, client)
    two.network.run_until(lambda: client.is_connected and bool(accepted), 1)
    assert [str(packet) for packet in node.seen] == ["tcp SYN", "tcp SYN-ACK", "tcp ACK"]


def test_names_and_addresses_are_unique(two: Pair) -> None:
    with pytest.raises(ValueError, match="one"):
        two.network.host("one", "10.0.0.3")
    with pytest.raises(ValueError, match="belongs to two"):
        two.network.host("three", TWO)
    two.network.detach([TWO])
    two.network.host("three", TWO)


def test_a_wait_that_fails_shows_the_seed_and_the_packets(two: Pair) -> None:
    two.flood(1)
    with pytest.raises(WaitTimeoutError) as raised:
        two.network.run_until(lambda: False, 1, "peace on earth")
    text = str(raised.value)
    assert "peace on earth" in text
    assert "seed 1" in text
    assert f"{ONE}:49152 -> {TWO}:49152    128 B  udp sent" in text


def test_the_trace_is_bounded(two: Pair) -> None:
    packet = Packet(TransportAddress(ONE, 1), TransportAddress(TWO, 1))
    for _ in range(MAX_TRACE_ENTRIES + 10):
        two.network.record(packet, "sent")
    assert len(two.network.trace) == MAX_TRACE_ENTRIES


def test_packets_to_closed_ports_and_unknown_hosts_are_traced(two: Pair) -> None:
    sender = two.left.open_udp(TransportAddress(ONE, 0), UdpRecorder(two))
    sender.send([b"x"], TransportAddress(TWO, 9))
    sender.send([b"x"], TransportAddress("10.0.0.99", 9))
    two.network.run_for(1)
    assert [entry.what for entry in two.network.trace] == [
        "udp sent",
        "udp lost, no route",
        "udp lost, no socket",
    ]


def test_packets_under_way_keep_their_time_when_the_link_changes() -> None:
    clock = VirtualClock()
    arrived: list[float] = []
    link = Link(
        clock, random.Random(1), LinkConfig(), lambda _packet: arrived.append(clock.time()), lambda *_: None
    )
    packet = Packet(TransportAddress(ONE, 1), TransportAddress(TWO, 1))
    link.carry(packet)
    link.configure(LinkConfig(latency_s=1.0))
    link.carry(packet)
    clock.run_for(2)
    assert arrived == [pytest.approx(START_TIME + 0.01), pytest.approx(START_TIME + 1.0)]


def test_change_of_addresses_is_told_to_those_who_watch() -> None:
    network = VirtualNetwork(seed=1)
    host = network.host("a", "10.0.0.1")
    io = host.io()
    seen: list[tuple[list[str], str | None]] = []

    def look() -> None:
        found = [each.host for each in io.interface_addresses() if each.interface == "eth0"]
        seen.append((found, io.source_address(Family.IPV4)))

    cancel = io.watch_network(look)
    host.change_addresses("10.0.0.9", "fd00::9")
    network.run_for(0)
    assert seen == [(["10.0.0.9", "fd00::9"], "10.0.0.9")]
    cancel()
    host.change_addresses("10.0.0.1")
    network.run_for(0)
    assert len(seen) == 1
