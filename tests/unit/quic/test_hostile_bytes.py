"""Bytes from the network never raise, whatever they are and whenever they come."""

from __future__ import annotations

from functools import cache

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.quic.pair import CLIENT_OPTIONS, SERVER_OPTIONS, Pair
from ztna.quic.connection import Connection
from ztna.quic.events import CloseReason, ConnectionClosed

FIRST_BYTES = st.sampled_from([0x40, 0x5F, 0xC0, 0xD0, 0xE0, 0xF0, 0x80, 0x00])


@cache
def established_pair() -> Pair:
    """Shared by examples that must not change it."""
    return Pair().established()


@given(st.lists(st.binary(max_size=1400), max_size=4))
def test_arbitrary_bytes_leave_a_fresh_connection_unmoved(datagrams: list[bytes]) -> None:
    client = Connection.client(CLIENT_OPTIONS)
    server = Connection.server(SERVER_OPTIONS, destination_cid=b"d" * 8)
    client.receive(datagrams, 0.5)
    client.connect(1.0)
    for connection in (client, server):
        connection.receive(datagrams, 1.0)
        connection.transmit(1.0)
        connection.handle_timeout(1.0)
        assert not any(isinstance(event, ConnectionClosed) for event in connection.events())


@settings(max_examples=50, deadline=None)
@given(FIRST_BYTES, st.binary(max_size=1300))
def test_forged_packets_to_a_known_id_leave_the_connection_up(first: int, rest: bytes) -> None:
    pair = established_pair()
    for end in (pair.client, pair.server):
        cid = end.connection.local_connection_ids[0]
        header = bytes([first]) + (cid if first < 0x80 else b"\0\0\0\1\x08" + cid + b"\x00")
        end.connection.receive([header + rest], pair.now)
        assert end.connection.is_established


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600))
def test_arbitrary_frames_of_an_accepted_peer_end_in_an_event_at_worst(frames: bytes) -> None:
    pair = Pair().established()
    engine = pair.client.connection._engine

    def write_raw(builder: QuicPacketBuilder, _path: object, _now: float) -> None:
        builder.start_packet(QuicPacketType.ONE_RTT, engine._cryptos[Epoch.ONE_RTT])
        builder._buffer.push_bytes(frames.ljust(4, b"\0"))

    engine._write_application = write_raw  # type: ignore[assignment, method-assign]
    sent = pair.client.connection.transmit(pair.now)
    server = pair.server.connection
    server.receive(sent, pair.now)
    server.transmit(pair.now)
    closed = [event for event in server.events() if isinstance(event, ConnectionClosed)]
    assert server.is_established or closed
    assert server.statistics().internal_errors == 0 or closed[0].reason is CloseReason.INTERNAL_ERROR


def test_unexpected_exception_ends_this_connection_alone() -> None:
    pair = Pair().established()
    server = pair.server.connection

    def broken(*_args: object) -> None:
        raise IndexError("inside")

    server._engine.receive_datagram = broken  # type: ignore[assignment, method-assign]
    pair.client.connection.ping(pair.now)
    pair.flush()
    pair.run(0.1)
    [closed] = pair.server.of(ConnectionClosed)
    assert (closed.reason, closed.message) == (CloseReason.INTERNAL_ERROR, "IndexError: inside")
    assert server.statistics().internal_errors == 1
    assert server.is_terminated
    assert server.next_deadline() is None
    server.receive([b"x"], pair.now)
    server.handle_timeout(pair.now)
    server.consume(0, 1)
    assert server.transmit(pair.now) == []
    [at_client] = pair.client.of(ConnectionClosed)
    assert (at_client.reason, at_client.is_remote) == (CloseReason.INTERNAL_ERROR, True)


@pytest.mark.parametrize("method", ["datagrams_to_send", "handle_timer"])
def test_exception_while_sending_or_timing_ends_this_connection_alone(method: str) -> None:
    pair = Pair().established()
    client = pair.client.connection

    def broken(_now: float) -> None:
        raise AssertionError

    setattr(client._engine, method, broken)
    client.ping(pair.now)
    pair.flush()
    pair.run(0.5)
    [closed] = pair.client.of(ConnectionClosed)
    assert closed.reason is CloseReason.INTERNAL_ERROR
    assert client.is_terminated


def test_interpreter_exit_is_not_swallowed() -> None:
    pair = Pair().established()

    def leave(*_args: object) -> None:
        raise SystemExit

    pair.client.connection._engine.receive_datagram = leave  # type: ignore[assignment, method-assign]
    with pytest.raises(SystemExit):
        pair.client.connection.receive([b"x"], pair.now)
