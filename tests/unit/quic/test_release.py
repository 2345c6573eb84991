"""A connection that is over leaves nothing that has to be searched for."""

from __future__ import annotations

import gc

from tests.unit.quic.pair import Pair


def test_connection_that_is_released_leaves_no_garbage() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    pair.client.connection.send_stream(stream_id, bytes(100_000), end=True)
    pair.run(1.0)
    pair.client.connection.close(0, "")
    pair.flush()
    pair.run(10.0)
    ends = [pair.client.connection, pair.server.connection]
    assert all(each.is_terminated for each in ends)
    gc.collect()
    gc.disable()
    try:
        for each in ends:
            each.release()
            assert each.is_terminated
            assert each.is_closed
            assert not each.is_established
        del pair, ends, each
        assert gc.collect() == 0
    finally:
        gc.enable()
