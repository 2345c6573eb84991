"""Everything at once: loss, reordering, switches of paths and key updates, while streams come and go."""

from __future__ import annotations

import random

import pytest

from tests.unit.quic.identities import client_options, server_options
from tests.unit.quic.pair import Pair
from ztna.quic.events import ConnectionClosed

STEPS = 40


class Soak:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pair = Pair(
            client_options(key_update_after_packets=300),
            server_options(key_update_after_packets=500),
            seed=seed,
        ).established()
        self.pair.flush()
        self.pair.checks_silence = True
        self.asked: dict[int, bytes] = {}
        self.answered: dict[int, bytes] = {}

    def step(self) -> None:
        pair, chance = self.pair, self.random
        client, server = pair.client.connection, pair.server.connection
        for link in (pair.uplink, pair.downlink):
            link.loss, link.reorder = chance.choice([0.0, 0.05, 0.2]), chance.choice([0.0, 0.3])
            link.reorder_delay = chance.random() * 0.1
        if chance.random() < 0.2:
            self.switch(chance.choice([0.0005, 0.02, 0.08]))
        if chance.random() < 0.5:
            stream_id = client.open_stream()
            self.asked[stream_id] = chance.randbytes(chance.choice([0, 1, 1000, 100_000]))
            client.send_stream(stream_id, self.asked[stream_id], end=True)
        if chance.random() < 0.3:
            client.send_datagram(bytes(chance.randrange(1171)))
        if chance.random() < 0.05:
            client._engine.change_connection_id()
        self.answer(0.5)
        pair.flush()
        pair.run(chance.random() * 0.3)
        assert server.statistics().internal_errors == 0

    def switch(self, delay: float) -> None:
        pair, old = self.pair, self.pair.uplink.delay
        pair.uplink.delay = pair.downlink.delay = delay
        for end in (pair.client, pair.server):
            end.connection.path_switched(2 * old, pair.now, 2 * delay)

    def answer(self, probability: float) -> None:
        server = self.pair.server.connection
        for stream_id in self.asked:
            if stream_id in self.answered or not server._engine.has_stream(stream_id):
                continue
            if self.random.random() < probability:
                self.answered[stream_id] = self.random.randbytes(self.random.choice([0, 10, 50_000]))
                server.send_stream(stream_id, self.answered[stream_id], end=True)

    def is_done(self) -> bool:
        self.answer(1.0)
        self.pair.flush()
        engines = [end.connection._engine for end in (self.pair.client, self.pair.server)]
        return len(self.answered) == len(self.asked) and not any(engine._streams for engine in engines)


@pytest.mark.parametrize("seed", range(4))
def test_every_byte_arrives_and_nothing_is_left_behind(seed: int) -> None:
    soak = Soak(seed)
    for _ in range(STEPS):
        soak.step()
    pair = soak.pair
    for link in (pair.uplink, pair.downlink):
        link.loss = link.reorder = 0.0
    pair.run(60.0, until=soak.is_done)
    assert soak.is_done()
    assert {key: bytes(value) for key, value in pair.server.received.items()} == soak.asked
    assert {key: bytes(value) for key, value in pair.client.received.items()} == soak.answered
    for end in (pair.client, pair.server):
        assert end.connection.send_backlog_total == 0
        assert end.connection._engine.windows.growth_bytes == 0
        assert not end.of(ConnectionClosed)
    # What `receive` and `consume` say about there being nothing to send was true each time.
    assert pair.silences > 10
