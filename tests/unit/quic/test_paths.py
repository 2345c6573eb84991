"""What happens beneath the connection when its path changes or vanishes, and when keys change."""

from __future__ import annotations

import pytest

from tests.unit.quic.identities import client_options
from tests.unit.quic.pair import CLIENT_OPTIONS, Link, Pair
from ztna.quic.events import DatagramReceived

SLOW, FAST = 0.040, 0.0005


def stream_datagrams(pair: Pair, count: int, interval: float) -> None:
    """Send numbered DATAGRAMs at a steady rate."""
    client = pair.client.connection
    for number in range(count):
        client.send_datagram(number.to_bytes(4, "big") + bytes(900))
        pair.flush()
        pair.run(interval)


def set_delay(pair: Pair, delay: float) -> None:
    pair.uplink = Link(delay)
    pair.downlink = Link(delay)


def switch(pair: Pair, old: float, new: float) -> None:
    set_delay(pair, new)
    for end in (pair.client, pair.server):
        end.connection.path_switched(2 * old, pair.now, 2 * new)
    pair.flush()


@pytest.mark.parametrize(("old", "new"), [(SLOW, FAST), (FAST, SLOW)], ids=["to-fast", "to-slow"])
def test_switch_of_paths_loses_no_datagram_and_declares_no_loss(old: float, new: float) -> None:
    pair = Pair(delay=old).established()
    pair.run(0.5)
    pair.client.connection._engine._loss._cc.congestion_window = 2_000_000
    stream_datagrams(pair, 300, 0.00025)
    window = pair.client.connection.statistics().congestion_window_bytes
    switch(pair, old, new)
    stream_datagrams(pair, 1000, 0.00025)
    pair.run(1.0)
    assert len(pair.server.of(DatagramReceived)) == 1300
    statistics = pair.client.connection.statistics()
    assert statistics.packets_lost == 0
    assert statistics.congestion_window_bytes >= window


def test_rtt_is_learned_anew_after_a_switch() -> None:
    pair = Pair(delay=FAST).established()
    stream_datagrams(pair, 50, 0.01)
    switch(pair, FAST, SLOW)
    stream_datagrams(pair, 100, 0.02)
    rtt = pair.client.connection.rtt
    assert rtt is not None
    assert rtt.minimum == pytest.approx(2 * SLOW, abs=0.01)
    assert rtt.smoothed == pytest.approx(2 * SLOW, abs=0.02)


def test_loss_during_the_grace_period_is_found_after_it() -> None:
    pair = Pair(delay=SLOW).established()
    stream_id = pair.client.connection.open_stream()
    pair.client.connection.send_stream(stream_id, b"x" * 5000)
    pair.flush()
    pair.run(0.3)
    switch(pair, SLOW, FAST)
    pair.uplink.is_up = False
    pair.client.connection.send_stream(stream_id, b"y" * 5000)
    pair.flush()
    pair.uplink.is_up = True
    pair.client.connection.send_stream(stream_id, b"z" * 5000)
    pair.flush()
    start = pair.now
    pair.run(2.0, until=lambda: len(pair.server.received[stream_id]) == 15000)
    assert len(pair.server.received[stream_id]) == 15000
    assert pair.now - start < 0.25


def outage(seconds: float) -> Pair:
    pair = Pair(delay=SLOW).established()
    pair.run(0.5)
    pair.uplink.is_up = pair.downlink.is_up = False
    stream_id = pair.client.connection.open_stream()
    pair.client.connection.send_stream(stream_id, b"x" * 1000)
    pair.flush()
    pair.run(seconds)
    pair.uplink.is_up = pair.downlink.is_up = True
    return pair


def test_data_flows_at_once_after_an_outage_with_a_reset() -> None:
    pair = outage(15.0)
    pair.client.connection.reset_recovery_and_ping(pair.now)
    pair.flush()
    start = pair.now
    pair.run(20.0, until=lambda: bool(pair.server.received.get(0)))
    assert pair.now - start < 0.3


def test_data_waits_for_the_backoff_without_a_reset() -> None:
    pair = outage(15.0)
    start = pair.now
    pair.run(20.0, until=lambda: bool(pair.server.received.get(0)))
    assert pair.now - start > 1.0


def test_keys_are_updated_after_so_many_packets_without_losing_any() -> None:
    pair = Pair(client_options(key_update_after_packets=100), delay=SLOW).established()
    pair.run(0.2)
    server = pair.server.connection
    for number in range(1000):
        pair.client.connection.send_datagram(number.to_bytes(4, "big"))
        server.send_datagram(number.to_bytes(4, "big"))
        pair.flush()
        pair.run(0.01)
    pair.run(1.0)
    for end in (pair.client, pair.server):
        assert len(end.of(DatagramReceived)) == 1000
        assert 2 <= end.connection.statistics().key_updates <= 4
        assert end.connection.statistics().packets_lost == 0


def test_former_keys_are_forgotten() -> None:
    pair = Pair(client_options(key_update_after_packets=50)).established()
    stream_datagrams(pair, 100, 0.01)
    pair.run(2.0)
    pair.client.connection.ping(pair.now)
    pair.flush()
    pair.run(0.2)
    for end in (pair.client, pair.server):
        assert end.connection.statistics().key_updates == 1
        assert all(
            getattr(pair_, "former", None) is None for pair_ in end.connection._engine._cryptos.values()
        )


def test_keys_rest_after_a_switch_of_paths() -> None:
    pair = Pair(client_options(key_update_after_packets=50)).established()
    switch(pair, 0.020, 0.020)
    stream_datagrams(pair, 200, 0.01)
    assert pair.client.connection.statistics().key_updates == 0
    stream_datagrams(pair, 200, 0.01)
    assert pair.client.connection.statistics().key_updates == 1


def test_congestion_window_stops_at_the_cap() -> None:
    pair = Pair(client_options(congestion_window_cap_bytes=30_000)).established()
    pair.client.connection.send_stream(pair.client.connection.open_stream(), b"x" * 500_000)
    pair.flush()
    pair.run(5.0)
    assert pair.client.connection.statistics().congestion_window_bytes == 30_000


def test_pacing_allows_two_timer_ticks_at_once() -> None:
    pair = Pair(CLIENT_OPTIONS, delay=SLOW).established()
    client = pair.client.connection
    client.send_stream(client.open_stream(), b"x" * 1_000_000)
    pair.flush()
    pair.run(1.0)
    pacer = client._engine._loss._pacer
    assert pacer.bucket_max >= 0.002
