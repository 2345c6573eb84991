"""Frames of an accepted peer in numbers that no honest one sends: memory stays, and the answer is less."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from tests.unit.quic.pair import Pair
from ztna.quic.adapter import MAX_BARE_ACKS, MAX_PEER_IDS_REMEMBERED
from ztna.quic.events import CloseReason, ConnectionClosed, ConnectionIdsChanged
from ztna.quic.gaps import MAX_GAPS

PACKETS = 800
PER_PACKET = 12
# Whatever is kept of a flood: 4096 gaps, 256 bare acknowledgements, 32 challenges.
MAX_GROWTH_BYTES = 512 * 1024
# As many streams as a peer may have open, each of them empty.
STREAMS_BYTES = 4096 * 1024


class RawClient:
    """The client of an established pair, sending packets of its own making."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.victim = pair.server.connection
        self._engine = pair.client.connection._engine
        self._frames = b""
        self._engine._write_application = self._write  # type: ignore[assignment, method-assign]

    def _write(self, builder: QuicPacketBuilder, _path: object, _now: float) -> None:
        if self._frames:
            builder.start_packet(QuicPacketType.ONE_RTT, self._engine._cryptos[Epoch.ONE_RTT])
            builder._buffer.push_bytes(self._frames.ljust(4, b"\0"))

    def send(self, frames: bytes) -> list[bytes]:
        """Send a packet with these frames; what the victim answers, which nobody acknowledges."""
        self._frames = frames
        sent = self.pair.client.connection.transmit(self.pair.now)
        self._frames = b""
        # What the attacker remembers of its own packets is no memory of the victim.
        for space in self._engine._loss.spaces:
            space.sent_packets.clear()
        self.victim.receive(sent, self.pair.now)
        self.victim.handle_timeout(self.pair.now)
        answers = self.victim.transmit(self.pair.now)
        self.pair.now += 0.005
        return answers

    def closed(self) -> list[ConnectionClosed]:
        return [event for event in self.victim.events() if isinstance(event, ConnectionClosed)]


@contextmanager
def bounded(limit_bytes: int) -> Iterator[None]:
    # What only waits for the collector is no growth, and depends on what ran before.
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < limit_bytes, after - before


def varints(*values: int) -> bytes:
    return b"".join(map(encode_uint_var, values))


def new_connection_id(number: int, retire_prior_to: int) -> bytes:
    cid = struct.pack(">Q", number)
    return b"\x18" + varints(number, retire_prior_to) + b"\x08" + cid + bytes(16)


FLOODS: dict[str, tuple[Callable[[int], bytes], bool]] = {
    # frame type -> frames of packet n, and whether the connection lives on
    "PING": (lambda _n: b"\x01", True),
    "PATH_CHALLENGE": (lambda n: b"\x1a" + struct.pack(">Q", n), True),
    "MAX_DATA": (lambda n: b"\x10" + varints(1 << 30 | n), True),
    "MAX_STREAMS": (lambda n: b"\x12" + varints(2000 + n), True),
    "DATA_BLOCKED": (lambda n: b"\x14" + varints(n), True),
    "STREAMS_BLOCKED": (lambda n: b"\x16" + varints(n), True),
    "DATAGRAM": (lambda n: b"\x31" + varints(4) + struct.pack(">I", n), True),
    "RETIRE_CONNECTION_ID of all": (lambda n: b"\x19" + varints(1 + n), True),
    "NEW_CONNECTION_ID that retire all before": (lambda n: new_connection_id(8 + n, 8 + n), False),
    "NEW_CONNECTION_ID beyond the limit": (lambda n: new_connection_id(8 + n, 0), False),
    "CRYPTO with gaps": (lambda n: b"\x06" + varints(1000 + 8 * n, 4) + bytes(4), False),
    "STREAM with gaps": (lambda n: b"\x0e" + varints(0, 1000 + 2 * n, 1) + b"x", False),
    "PATH_RESPONSE to nothing": (lambda n: b"\x1b" + struct.pack(">Q", n), True),
    "HANDSHAKE_DONE of a client": (lambda _n: b"\x1e", False),
    "NEW_TOKEN of a client": (lambda _n: b"\x07" + varints(8) + bytes(8), False),
    "unidirectional STREAM": (lambda n: b"\x0a" + varints(2 + 4 * n, 1) + b"x", False),
    "STREAM beyond the limit of streams": (lambda n: b"\x0a" + varints(4 * (5000 + n), 1) + b"x", False),
    "STREAM beyond the limit of bytes": (lambda _n: b"\x0e" + varints(0, 1 << 40, 1) + b"x", False),
    "RESET_STREAM, all of the streams": (lambda n: b"\x04" + varints(4 * n, 7, 0), False),
    "STOP_SENDING, all of the streams": (lambda n: b"\x05" + varints(4 * n, 7), False),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_of_frames_leaves_memory_as_it_was(kind: str) -> None:
    frame, lives = FLOODS[kind]
    client = RawClient(Pair().established())
    client.send(frame(0))  # what is made only once is no growth
    answered = 0
    limit = MAX_GROWTH_BYTES + (STREAMS_BYTES if "all of the streams" in kind else 0)
    with bounded(limit):
        for packet in range(PACKETS):
            numbers = range(packet * PER_PACKET, (packet + 1) * PER_PACKET)
            answered += len(client.send(b"".join(map(frame, numbers))))
            client.victim.events()
            if client.victim.is_terminated:
                break
    # Never more packets than came: a flood is answered by less of it.
    assert answered <= PACKETS * 1.05
    assert client.victim.is_established is lives
    assert client.victim.statistics().internal_errors == 0


def test_of_the_connection_ids_that_a_peer_ever_issued_the_latest_are_remembered() -> None:
    pair = Pair().established()
    server = pair.server.connection
    for _ in range(MAX_PEER_IDS_REMEMBERED + 100):
        # As it does whenever the peer took another path; the peer issues one in place of it.
        server._engine.change_connection_id()
        server.ping(pair.now)
        pair.flush()
        pair.run(0.1)
    assert server.is_established
    numbers = server._engine._peer_cid_sequence_numbers
    assert len(numbers) == MAX_PEER_IDS_REMEMBERED
    assert max(numbers) > MAX_PEER_IDS_REMEMBERED + 90


def test_connection_that_only_receives_remembers_few_of_its_acknowledgements() -> None:
    pair = Pair().established()
    for _ in range(2 * MAX_BARE_ACKS):
        pair.client.connection.ping(pair.now)
        pair.flush()
        pair.run(10.0)
    server = pair.server.connection
    assert server.is_established
    remembered = sum(len(space.sent_packets) for space in server._engine._loss.spaces)
    assert remembered <= MAX_BARE_ACKS
    # They are still good for what they are kept for.
    server.ping(pair.now)
    pair.flush()
    pair.run(10.0)
    assert sum(len(space.sent_packets) for space in server._engine._loss.spaces) <= 1


def test_connection_id_that_is_retired_before_it_was_told_is_gone_without_a_word() -> None:
    client = RawClient(Pair().established())
    victim = client.victim
    known = set(victim.local_connection_ids)
    next_number = client.pair.server.connection._engine._host_cid_seq
    # The first makes room for another, whose number is plain; the second gives that one back unseen.
    client.send(b"\x19" + varints(1) + b"\x19" + varints(next_number))
    changes = [event for event in victim.events() if isinstance(event, ConnectionIdsChanged)]
    retired = {each for event in changes for each in event.retired}
    added = {each for event in changes for each in event.added}
    assert victim.is_established
    assert len(retired) == 1
    assert retired < known
    assert set(victim.local_connection_ids) == known - retired | added


def test_gaps_that_are_filled_count_no_longer_and_too_many_end_the_connection() -> None:
    client = RawClient(Pair().established())

    def gaps(stream_id: int, numbers: range) -> None:
        for start in range(0, len(numbers), 100):
            chunk = numbers[start : start + 100]
            client.send(b"".join(b"\x0e" + varints(stream_id, n, 1) + b"x" for n in chunk))

    most = range(1, 2 * MAX_GAPS, 2)
    gaps(0, most)
    client.send(b"\x0e" + varints(0, 0, 1) + b"x")
    gaps(0, range(2, 2 * MAX_GAPS, 2))
    assert client.victim._engine._gaps == 0
    gaps(4, most)
    assert client.victim.is_established
    client.send(b"\x0e" + varints(8, 1, 1) + b"x")
    [closed] = client.closed()
    assert (closed.reason, closed.message) == (CloseReason.PROTOCOL_ERROR, "too many gaps")
