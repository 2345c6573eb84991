"""Two connections in memory: handshake, streams, datagrams, endings."""

from __future__ import annotations

from tests.unit.quic.pair import Pair
from ztna.quic.events import DatagramReceived, HandshakeCompleted, SendCredit


def test_handshake_accepts_both_ends() -> None:
    pair = Pair().established()
    assert pair.client.connection.peer == "ztna://example.org/connector/c1"
    assert pair.server.connection.peer == "ztna://example.org/agent/a1"
    assert (
        pair.client.of(HandshakeCompleted)
        == pair.server.of(HandshakeCompleted)
        == [HandshakeCompleted("ztna/1")]
    )


def test_stream_bytes_arrive_in_both_directions() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    pair.client.connection.send_stream(stream_id, b"x" * 300_000, end=True)
    pair.flush()
    pair.run(3.0, until=lambda: len(pair.server.received.get(0, b"")) == 300_000)
    pair.server.connection.send_stream(stream_id, b"done", end=True)
    pair.flush()
    pair.run(1.0)
    assert bytes(pair.server.received[0]) == b"x" * 300_000
    assert bytes(pair.client.received[0]) == b"done"
    assert sum(credit.size_bytes for credit in pair.client.of(SendCredit)) == 300_000
    assert pair.client.connection.send_backlog_total == 0


def test_datagrams_arrive() -> None:
    pair = Pair().established()
    pair.client.connection.send_datagram(b"d" * 1170)
    pair.flush()
    pair.run(0.1)
    assert pair.server.of(DatagramReceived) == [DatagramReceived(b"d" * 1170)]
