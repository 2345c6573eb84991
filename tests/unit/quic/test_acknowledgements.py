"""When acknowledgements leave (RFC 9000 §13.2): with what is sent anyway, and at once when packets lack."""

from __future__ import annotations

import pytest

from tests.unit.quic.pair import End, Pair


@pytest.fixture
def pair() -> Pair:
    """Established, with a stream open and everything acknowledged."""
    pair = Pair().established()
    pair.client.connection.open_stream()
    pair.client.connection.send_stream(0, b"first")
    pair.flush()
    pair.run(1.0)
    return pair


def hand_over(pair: Pair, source: End, target: End) -> list[bytes]:
    """Give the packets of one end to the other, outside the link, and return them."""
    packets = source.connection.transmit(pair.now)
    target.connection.receive(packets, pair.now)
    return packets


def test_answer_takes_the_acknowledgement_of_its_request_along(pair: Pair) -> None:
    client, server = pair.client.connection, pair.server.connection
    client.send_stream(0, b"request")
    assert len(hand_over(pair, pair.client, pair.server)) == 1
    server.send_stream(0, b"answer")
    assert len(hand_over(pair, pair.server, pair.client)) == 1
    assert not client.awaits_acknowledgement
    # And the next request takes the one of the answer.
    client.send_datagram(b"next")
    assert len(hand_over(pair, pair.client, pair.server)) == 1
    assert not server.awaits_acknowledgement


def test_datagram_that_fills_its_packet_stays_one_packet(pair: Pair) -> None:
    pair.client.connection.send_datagram(b"request")
    hand_over(pair, pair.client, pair.server)
    server = pair.server.connection
    server.send_datagram(bytes(server.max_datagram_payload))
    assert len(server.transmit(pair.now)) == 1
    due = server.next_deadline()
    assert due is not None
    assert len(server.transmit(due)) == 1, "the acknowledgement had to leave by itself"


def test_nothing_to_send_leaves_the_acknowledgement_to_its_time(pair: Pair) -> None:
    pair.client.connection.send_stream(0, b"request")
    hand_over(pair, pair.client, pair.server)
    assert pair.server.connection.transmit(pair.now) == []


def test_full_congestion_window_leaves_the_acknowledgement_to_its_time(pair: Pair) -> None:
    server = pair.server.connection
    server.send_stream(0, bytes(500_000))
    assert server.transmit(pair.now)
    pair.client.connection.send_stream(0, b"request")
    hand_over(pair, pair.client, pair.server)
    assert server.transmit(pair.now) == []


def test_packet_after_a_gap_is_acknowledged_at_once(pair: Pair) -> None:
    client, server = pair.client.connection, pair.server.connection
    client.send_stream(0, b"lost")
    client.transmit(pair.now)
    client.send_stream(0, b"after it")
    assert server.receive(client.transmit(pair.now), pair.now), "there is something to send"
    assert len(server.transmit(pair.now)) == 1


def test_late_packet_is_acknowledged_at_once(pair: Pair) -> None:
    client, server = pair.client.connection, pair.server.connection
    client.send_stream(0, b"late")
    late = client.transmit(pair.now)
    client.send_stream(0, b"overtakes it")
    server.receive(client.transmit(pair.now), pair.now)
    assert len(server.transmit(pair.now)) == 1
    assert server.receive(late, pair.now)
    assert len(server.transmit(pair.now)) == 1


def test_small_packets_and_acknowledgements_hold_up_nothing(pair: Pair) -> None:
    """A pacer that charged each of them as a full packet would let two or three of them leave."""
    client, server = pair.client.connection, pair.server.connection
    for number in range(20):
        client.send_datagram(bytes([number]) * 40)
        assert len(client.transmit(pair.now)) == 1
    for _ in range(10):
        server.send_stream(0, b"x")
        client.receive(server.transmit(pair.now), pair.now)
        due = client.next_deadline()
        assert due is not None
        pair.now = due
        client.handle_timeout(pair.now)
        assert client.transmit(pair.now)
    client.send_datagram(b"at once")
    assert len(client.transmit(pair.now)) == 1


def test_acknowledgement_that_is_due_now_passes_the_pacer(pair: Pair) -> None:
    """Otherwise its timer comes again at once, and again, for as long as the pacer holds."""
    client, server = pair.client.connection, pair.server.connection
    client.send_stream(0, bytes(100_000))
    client.transmit(pair.now)
    # The window has room and there is more to send: so it is the pacer that holds it back.
    figures = client.statistics()
    assert figures.bytes_in_flight < figures.congestion_window_bytes - 2400
    assert client.send_backlog_total > figures.bytes_in_flight
    server.send_stream(0, b"lost")
    server.transmit(pair.now)
    server.send_stream(0, b"after a gap")
    assert client.receive(server.transmit(pair.now), pair.now)
    client.transmit(pair.now)
    due = client.next_deadline()
    assert due is not None
    assert due > pair.now
