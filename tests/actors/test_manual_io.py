"""The world of the actor tests keeps its own promises."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from actors.io import Io
from tests.manual_io import START_WALL_TIME, ManualIo, ManualScheduler
from ztna.address import TransportAddress

ANY_PORT = TransportAddress("127.0.0.1", 0)
REMOTE = TransportAddress("127.0.0.2", 7)


class Owner:
    """Notes every callback of a TCP connection."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


def test_timers_run_in_the_order_of_their_times_and_see_them() -> None:
    io = ManualScheduler(10.0)
    seen: list[tuple[str, float]] = []
    io.call_at(12.0, lambda: seen.append(("late", io.time())))
    io.call_at(11.0, lambda: io.call_soon(lambda: seen.append(("early", io.time()))))
    io.call_at(11.5, lambda: seen.append(("cancelled", io.time()))).cancel()
    io.advance(5)
    assert seen == [("early", 11.0), ("late", 12.0)]
    assert io.time() == 15.0
    assert io.next_deadline() is None


def test_actors_that_never_rest_are_an_error() -> None:
    io = ManualScheduler()

    def again() -> None:
        io.call_soon(again)

    again()
    with pytest.raises(AssertionError, match="never come to rest"):
        io.run_until_idle()


def test_another_thread_wakes_the_waiting_test() -> None:
    io = ManualScheduler()
    seen: list[bool] = []
    thread = threading.Thread(
        target=lambda: io.call_soon_threadsafe(lambda: seen.append(io.is_loop_thread()))
    )
    thread.start()
    io.run_until_true(lambda: bool(seen))
    thread.join()
    assert seen == [True]
    with pytest.raises(AssertionError, match="never held"):
        io.run_until_true(lambda: False, timeout_s=0.0)


def test_the_io_has_a_wall_clock_seeded_chance_and_sorted_addresses() -> None:
    io = ManualIo(seed=3)
    port: Io = io
    io.advance(2)
    assert port.wall_time() == START_WALL_TIME + 2
    assert port.random.random() == ManualIo(seed=3).random.random()
    assert [address.host for address in port.interface_addresses()] == ["127.0.0.1"]


def test_udp_is_recorded() -> None:
    io = ManualIo()
    socket = io.open_udp(ANY_PORT, Owner())
    assert socket.send([b"a", b"b"], REMOTE, "127.0.0.1") == 2
    socket.close()
    recorded = io.udp_sockets[0]
    assert recorded.local_address.port != 0
    assert recorded.sent == [(b"a", REMOTE, "127.0.0.1"), (b"b", REMOTE, "127.0.0.1")]
    assert recorded.is_closed


def test_tcp_is_recorded() -> None:
    io = ManualIo()
    owner = Owner()
    listener = io.listen_tcp(ANY_PORT, lambda _stream: owner)
    stream, accepted = io.tcp_listeners[0].connect(REMOTE)
    assert accepted is owner
    assert owner.calls == ["connected"]
    stream.resume_reading()
    assert stream.is_reading
    stream.pause_reading()
    stream.write(b"x")
    stream.write(b"y")
    stream.write_eof()
    stream.abort()
    listener.close()
    assert (bytes(stream.written), stream.eof_written, stream.is_reading) == (b"xy", True, False)
    assert stream.is_aborted
    assert io.tcp_listeners[0].is_closed


def test_a_connection_attempt_is_recorded_and_can_be_cancelled() -> None:
    io = ManualIo()
    cancel = io.connect_tcp("backend", 80, 5.0, Owner())
    cancel()
    attempt = io.tcp_attempts[0]
    assert (attempt.host, attempt.port, attempt.timeout_s, attempt.is_cancelled) == ("backend", 80, 5.0, True)


@pytest.mark.parametrize(
    ("name", "hosts"),
    [("127.0.0.9", ["127.0.0.9"]), ("here", ["127.0.0.1", "::1"]), ("nowhere", [])],
    ids=["literal", "known name", "unknown name"],
)
def test_names_are_resolved_later_from_the_table(name: str, hosts: list[str]) -> None:
    io = ManualIo()
    io.names["here"] = ["127.0.0.1", "::1"]
    answers: list[tuple[list[str], bool]] = []
    io.resolve(name, 5, lambda found, error: answers.append(([a.host for a in found], error is None)))
    assert answers == []
    io.run_until_idle()
    assert answers == [(hosts, bool(hosts))]
