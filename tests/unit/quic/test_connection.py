"""Two connections in memory: streams, flow control, datagrams, liveness and endings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.quic.identities import client_options
from tests.unit.quic.pair import CLIENT_OPTIONS, SERVER_OPTIONS, Pair
from ztna.errors import LocalProtocolError
from ztna.quic.connection import (
    MAX_CLOSE_REPEATS,
    MAX_DATAGRAMS_PENDING,
    MAX_SEND_BACKLOG_BYTES,
    SEND_HIGH_WATERMARK_BYTES,
    Connection,
)
from ztna.quic.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionIdsChanged,
    DatagramReceived,
    PingAcknowledged,
    SendCredit,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from ztna.quic.windows import INITIAL_STREAM_WINDOW_BYTES, WindowLimits

SMALL_WINDOWS = WindowLimits(
    initial_stream_bytes=4096, max_stream_bytes=16384, growth_budget_bytes=16384, max_streams=8
)


def send(pair: Pair, stream_id: int, data: bytes, end: bool = False) -> None:
    pair.client.connection.send_stream(stream_id, data, end)
    pair.flush()


def closed(events: Sequence[object]) -> ConnectionClosed:
    [event] = [event for event in events if isinstance(event, ConnectionClosed)]
    return event


# Streams


def test_stream_bytes_arrive_in_both_directions() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    send(pair, stream_id, b"x" * 300_000, end=True)
    pair.run(3.0, until=lambda: len(pair.server.received.get(0, b"")) == 300_000)
    pair.server.connection.send_stream(stream_id, b"done", end=True)
    pair.flush()
    pair.run(1.0)
    assert bytes(pair.server.received[0]) == b"x" * 300_000
    assert bytes(pair.client.received[0]) == b"done"
    assert sum(credit.size_bytes for credit in pair.client.of(SendCredit)) == 300_000
    assert pair.client.connection.send_backlog_total == 0
    assert pair.client.of(StreamDataReceived)[-1].end_of_stream


@pytest.mark.parametrize("seed", range(3))
def test_stream_survives_loss_and_reordering(seed: int) -> None:
    pair = Pair(seed=seed).established()
    for link in (pair.uplink, pair.downlink):
        link.loss, link.reorder = 0.05, 0.1
    data = bytes(range(256)) * 1200
    send(pair, pair.client.connection.open_stream(), data, end=True)
    pair.run(60.0, until=lambda: len(pair.server.received.get(0, b"")) == len(data))
    assert bytes(pair.server.received[0]) == data
    assert pair.client.connection.statistics().packets_lost > 0


def test_client_writes_before_the_handshake_is_over() -> None:
    pair = Pair()
    pair.client.connection.connect(pair.now)
    pair.client.connection.send_stream(pair.client.connection.open_stream(), b"early")
    pair.flush()
    pair.run(0.099)
    assert bytes(pair.server.received[0]) == b"early"


def test_server_opens_no_stream_before_it_accepted_the_client() -> None:
    server = Connection.server(SERVER_OPTIONS, destination_cid=b"d" * 8)
    with pytest.raises(LocalProtocolError):
        server.open_stream()


def test_stream_limit_opens_again_as_streams_finish() -> None:
    pair = Pair(server_options=replace(SERVER_OPTIONS, windows=SMALL_WINDOWS)).established()
    client, server = pair.client.connection, pair.server.connection
    for _round in range(3):
        opened = []
        while client.can_open_stream:
            opened.append(client.open_stream())
            client.send_stream(opened[-1], b"q", end=True)
        assert len(opened) >= SMALL_WINDOWS.max_streams // 2
        with pytest.raises(LocalProtocolError):
            client.open_stream()
        pair.flush()
        pair.run(0.2)
        for stream_id in opened:
            server.send_stream(stream_id, b"a", end=True)
        pair.flush()
        pair.run(0.3)
    assert client.can_open_stream


def test_reset_and_stop_reach_the_other_end() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    send(pair, stream_id, b"hello")
    pair.run(0.1)
    pair.client.connection.reset_stream(stream_id, 7)
    pair.client.connection.stop_stream(stream_id, 8)
    pair.flush()
    pair.run(0.3)
    assert pair.server.of(StreamReset) == [StreamReset(stream_id, 7)]
    assert pair.server.of(StopSendingReceived) == [StopSendingReceived(stream_id, 8)]
    assert pair.client.of(StreamReset) == [StreamReset(stream_id, 8)]


def test_lost_reset_and_stop_are_sent_again() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    send(pair, stream_id, b"hello")
    pair.run(0.1)
    pair.uplink.is_up = False
    pair.client.connection.reset_stream(stream_id, 7)
    pair.client.connection.stop_stream(stream_id, 8)
    pair.flush()
    pair.run(0.05)
    pair.uplink.is_up = True
    pair.run(2.0)
    assert pair.server.of(StreamReset)
    assert pair.server.of(StopSendingReceived)


def test_stopped_stream_frees_its_send_buffer_and_ignores_more() -> None:
    pair = Pair().established()
    pair.server.auto_consume = False
    stream_id = pair.client.connection.open_stream()
    send(pair, stream_id, b"x" * 500_000)
    pair.run(0.3)
    pair.server.connection.stop_stream(stream_id, 1)
    pair.flush()
    pair.run(0.3)
    send(pair, stream_id, b"late")
    assert pair.client.connection.send_backlog_total == 0
    assert pair.client.connection.send_backlog(stream_id) == 0


def test_data_after_stop_is_not_delivered() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    send(pair, stream_id, b"one")
    pair.run(0.05)
    send(pair, stream_id, b"two")
    pair.server.connection.stop_stream(stream_id, 1)
    pair.run(0.3)
    assert bytes(pair.server.received[stream_id]) == b"one"


def test_commands_about_unknown_streams_are_ignored() -> None:
    pair = Pair().established()
    client = pair.client.connection
    client.send_stream(400, b"x")
    client.reset_stream(400, 1)
    client.stop_stream(400, 1)
    client.consume(400, 10)
    assert client.send_backlog(400) == 0


def test_bytes_after_our_own_end_are_our_bug() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    pair.client.connection.send_stream(stream_id, b"x", end=True)
    with pytest.raises(LocalProtocolError):
        pair.client.connection.send_stream(stream_id, b"y")


# Flow control


def test_reader_that_never_consumes_holds_one_window_and_no_more() -> None:
    pair = Pair().established()
    pair.server.auto_consume = False
    send(pair, pair.client.connection.open_stream(), b"x" * SEND_HIGH_WATERMARK_BYTES)
    pair.run(5.0)
    assert len(pair.server.received[0]) == INITIAL_STREAM_WINDOW_BYTES
    pair.server.connection.consume(0, INITIAL_STREAM_WINDOW_BYTES)
    pair.flush()
    pair.run(1.0)
    assert len(pair.server.received[0]) == 2 * INITIAL_STREAM_WINDOW_BYTES


def test_window_grows_for_a_prompt_reader() -> None:
    pair = Pair(delay=0.040).established()
    size = 4_000_000
    send(pair, pair.client.connection.open_stream(), b"x" * size)
    start = pair.now
    pair.run(20.0, until=lambda: len(pair.server.received.get(0, b"")) == size)
    # With the initial window alone it would take 61 round trips, which is 4.9 s.
    assert pair.now - start < 2.0


def test_stalled_streams_do_not_stall_another() -> None:
    pair = Pair(server_options=replace(SERVER_OPTIONS, windows=SMALL_WINDOWS)).established()
    pair.server.auto_consume = False
    client, server = pair.client.connection, pair.server.connection
    for _ in range(SMALL_WINDOWS.max_streams):
        client.send_stream(client.open_stream(), b"x" * 100_000)
    pair.flush()
    pair.run(2.0)
    last = 4 * (SMALL_WINDOWS.max_streams - 1)
    consumed = 0
    while len(pair.server.received[last]) < 100_000:
        server.consume(last, len(pair.server.received[last]) - consumed)
        consumed = len(pair.server.received[last])
        pair.flush()
        pair.run(0.2)
        assert len(pair.server.received[last]) > consumed
    unread = sum(map(len, pair.server.received.values())) - consumed
    assert unread <= SMALL_WINDOWS.unread_bytes


def test_only_consumption_that_raises_a_limit_leaves_something_to_send() -> None:
    pair = Pair().established()
    pair.server.auto_consume = False
    send(pair, pair.client.connection.open_stream(), b"x" * 200_000)
    pair.run(2.0)
    server = pair.server.connection
    assert not server.consume(0, INITIAL_STREAM_WINDOW_BYTES // 2 - 1)
    assert server.transmit(pair.now) == []
    assert server.consume(0, 1)
    assert server.transmit(pair.now) != []


def test_payload_alone_leaves_nothing_to_send_before_its_acknowledgement_is_due() -> None:
    pair = Pair().established()
    client, server = pair.client.connection, pair.server.connection
    send(pair, client.open_stream(), b"first")
    pair.run(1.0)
    client.send_stream(0, b"x")
    assert not server.receive(client.transmit(pair.now), pair.now)
    due = server.next_deadline()
    assert due is not None
    assert due <= pair.now + SERVER_OPTIONS.ack_delay_s
    client.send_stream(0, b"y")
    assert server.receive(client.transmit(due), due)
    assert server.transmit(due) != []


def test_lost_window_updates_are_sent_again() -> None:
    pair = Pair().established()
    pair.server.auto_consume = False
    send(pair, pair.client.connection.open_stream(), b"x" * 200_000)
    pair.run(2.0)
    pair.downlink.is_up = False
    pair.server.connection.consume(0, INITIAL_STREAM_WINDOW_BYTES)
    pair.flush()
    pair.run(0.05)
    pair.downlink.is_up = True
    pair.run(2.0)
    assert len(pair.server.received[0]) == 2 * INITIAL_STREAM_WINDOW_BYTES


def test_window_updates_of_many_streams_leave_at_once() -> None:
    windows = WindowLimits(initial_stream_bytes=1024)
    pair = Pair(server_options=replace(SERVER_OPTIONS, windows=windows)).established()
    pair.server.auto_consume = False
    client, server = pair.client.connection, pair.server.connection
    count = 400
    for _ in range(count):
        client.send_stream(client.open_stream(), b"x" * 600)
    pair.flush()
    pair.run(20.0, until=lambda: sum(map(len, pair.server.received.values())) == count * 600)
    for stream_id, data in pair.server.received.items():
        server.consume(stream_id, len(data))
    assert len(server.transmit(pair.now)) > 1
    assert not server._engine._due_limits


def test_connection_limit_wakes_the_streams_it_held_back() -> None:
    pair = Pair().established()
    client, server = pair.client.connection._engine, pair.server.connection._engine
    client._remote_max_data = 100
    send(pair, pair.client.connection.open_stream(), b"x" * 300)
    pair.run(0.2)
    assert len(pair.server.received[0]) == 100
    server.windows.connection_limit += 1
    pair.flush()
    pair.run(0.2)
    assert len(pair.server.received[0]) == 300


def test_limit_that_does_not_fit_the_congestion_window_waits() -> None:
    pair = Pair().established()
    pair.run(0.2)
    engine = pair.server.connection._engine
    engine.windows.connection_limit += 1
    in_flight = engine._loss._cc.bytes_in_flight
    engine._loss._cc.bytes_in_flight = engine._loss.congestion_window
    assert pair.server.connection.transmit(pair.now) == []
    engine._loss._cc.bytes_in_flight = in_flight
    assert len(pair.server.connection.transmit(pair.now)) == 1


def test_send_backlog_follows_acknowledgements() -> None:
    pair = Pair().established()
    client = pair.client.connection
    stream_id = client.open_stream()
    send(pair, stream_id, b"x" * SEND_HIGH_WATERMARK_BYTES)
    assert not client.can_send(stream_id)
    assert client.send_backlog(stream_id) == SEND_HIGH_WATERMARK_BYTES
    pair.run(5.0, until=lambda: client.can_send(stream_id))
    assert client.send_backlog(stream_id) == client.send_backlog_total < SEND_HIGH_WATERMARK_BYTES


def test_send_backlog_is_bounded() -> None:
    pair = Pair().established()
    stream_id = pair.client.connection.open_stream()
    pair.client.connection.send_stream(stream_id, bytes(MAX_SEND_BACKLOG_BYTES))
    with pytest.raises(LocalProtocolError):
        pair.client.connection.send_stream(stream_id, b"x")


def test_finished_stream_keeps_its_place_until_it_was_read() -> None:
    pair = Pair().established()
    pair.server.auto_consume = False
    send(pair, pair.client.connection.open_stream(), b"x" * 100, end=True)
    pair.run(0.1)
    pair.server.connection.send_stream(0, b"", end=True)
    pair.flush()
    pair.run(0.5)
    engine = pair.server.connection._engine
    assert engine.has_stream(0)
    pair.server.connection.consume(0, 100)
    pair.flush()
    assert not engine.has_stream(0)


# The send walk


def visits_per_packet(idle_streams: int) -> float:
    pair = Pair().established()
    client = pair.client.connection
    for _ in range(idle_streams):
        client.send_stream(client.open_stream(), b"x")
    pair.flush()
    pair.run(3.0)
    stream_id = client.open_stream()
    visits, packets = client._engine.stream_visits, client.statistics().datagrams_sent
    send(pair, stream_id, b"x" * 60_000)
    pair.run(0.5)
    assert len(pair.server.received[stream_id]) == 60_000
    return (client._engine.stream_visits - visits) / (client.statistics().datagrams_sent - packets)


def test_five_hundred_idle_streams_cost_no_visits() -> None:
    assert visits_per_packet(500) == pytest.approx(visits_per_packet(0), rel=0.1)


def test_streams_held_back_by_the_peer_cost_no_visits() -> None:
    pair = Pair().established()
    pair.server.auto_consume = False
    client = pair.client.connection
    for _ in range(20):
        client.send_stream(client.open_stream(), b"x" * (INITIAL_STREAM_WINDOW_BYTES + 1))
    pair.flush()
    pair.run(5.0)
    visits = client._engine.stream_visits
    for _ in range(50):
        client.send_datagram(b"d")
        pair.flush()
    assert client._engine.stream_visits == visits


def test_streams_take_turns_in_the_same_order_each_time() -> None:
    def order() -> list[int]:
        pair = Pair().established()
        client = pair.client.connection
        for _ in range(10):
            client.send_stream(client.open_stream(), b"x" * 5000)
        pair.flush()
        pair.run(1.0)
        return [event.stream_id for event in pair.server.of(StreamDataReceived)]

    assert order() == order()


# Datagrams


def test_datagram_of_the_maximum_size_arrives() -> None:
    pair = Pair().established()
    assert pair.client.connection.max_datagram_payload == 1170
    pair.client.connection.send_datagram(b"d" * 1170)
    pair.flush()
    pair.run(0.1)
    assert pair.server.of(DatagramReceived) == [DatagramReceived(b"d" * 1170)]


def test_oversize_datagram_is_refused_and_blocks_nothing() -> None:
    pair = Pair().established()
    with pytest.raises(LocalProtocolError):
        pair.client.connection.send_datagram(b"d" * 1171)
    pair.client.connection.send_datagram(b"small")
    pair.flush()
    assert pair.client.connection.datagrams_pending == 0


def test_datagram_before_the_handshake_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        Connection.client(CLIENT_OPTIONS).send_datagram(b"x")


def test_waiting_datagrams_that_no_longer_fit_are_dropped_and_counted() -> None:
    pair = Pair(client_options(max_datagram_size=1400)).established()
    client = pair.client.connection
    client.send_datagram(b"d" * 1370)
    client.send_datagram(b"d" * 1170)
    assert client.set_max_datagram_size(1200) == 1
    assert client.datagrams_pending == 1
    assert client.statistics().oversize_datagrams_dropped == 1
    pair.flush()
    pair.run(0.1)
    assert pair.server.of(DatagramReceived) == [DatagramReceived(b"d" * 1170)]
    with pytest.raises(LocalProtocolError):
        client.set_max_datagram_size(1199)


def test_longer_peer_connection_id_does_not_block_the_queue() -> None:
    pair = Pair().established()
    client = pair.client.connection
    client.send_datagram(b"d" * 1170)
    client._engine._peer_cid.cid = b"c" * 20
    client.send_datagram(b"small")
    assert client.max_datagram_payload == 1158
    client.transmit(pair.now)
    assert client.datagrams_pending == 0
    assert client.statistics().oversize_datagrams_dropped == 1


def test_datagram_queue_is_bounded() -> None:
    pair = Pair().established()
    for _ in range(MAX_DATAGRAMS_PENDING):
        pair.client.connection.send_datagram(b"x")
    with pytest.raises(LocalProtocolError):
        pair.client.connection.send_datagram(b"x")


def test_leg_carries_a_sealed_packet_and_never_paces() -> None:
    pair = Pair(client_options(inner_governs=True, max_datagram_size=1232)).established()
    client = pair.client.connection
    for _ in range(500):
        client.send_datagram(b"d" * 1202)
    assert len(client.transmit(pair.now)) >= 500
    assert client.datagrams_pending == 0


# Liveness and statistics


def test_ping_is_acknowledged_and_gives_an_rtt() -> None:
    pair = Pair().established()
    number = pair.client.connection.ping(pair.now)
    pair.flush()
    pair.run(0.2)
    assert pair.client.of(PingAcknowledged) == [PingAcknowledged(number)]
    rtt = pair.client.connection.rtt
    assert rtt is not None
    assert rtt.minimum == pytest.approx(0.040, abs=0.002)
    assert Connection.client(CLIENT_OPTIONS).rtt is None


def test_statistics_count_both_directions() -> None:
    pair = Pair().established()
    pair.run(0.5)
    mine, theirs = pair.client.connection.statistics(), pair.server.connection.statistics()
    assert mine.datagrams_sent >= theirs.datagrams_received > 0
    assert mine.bytes_received == theirs.bytes_sent > 0
    assert mine.internal_errors == mine.key_updates == 0
    assert mine.congestion_window_bytes >= 12_000


def test_connection_ids_are_told_before_the_peer_uses_them() -> None:
    pair = Pair().established()
    pair.run(0.2)
    for end in (pair.client, pair.server):
        routed: dict[bytes, None] = {}
        for event in end.of(ConnectionIdsChanged):
            routed.update(dict.fromkeys(event.added))
            for cid in event.retired:
                del routed[cid]
        assert tuple(routed) == end.connection.local_connection_ids
        assert set(end.connection._engine.host_connection_ids) <= set(routed)
        assert len(routed) == 8 + (end is pair.server)


def test_retired_connection_id_is_replaced() -> None:
    pair = Pair().established()
    pair.run(0.2)
    pair.server.events.clear()
    pair.client.connection._engine.change_connection_id()
    pair.flush()
    pair.run(0.3)
    changes = pair.server.of(ConnectionIdsChanged)
    assert sum(len(change.retired) for change in changes) == 1
    assert sum(len(change.added) for change in changes) == 1


# Endings


def test_close_reaches_the_peer_with_code_and_message() -> None:
    pair = Pair().established()
    pair.client.connection.close(42, "enough")
    pair.flush()
    pair.run(0.1)
    assert closed(pair.client.events) == ConnectionClosed(CloseReason.CLOSED, 42, False, "enough")
    assert closed(pair.server.events) == ConnectionClosed(CloseReason.CLOSED, 42, True, "enough")
    pair.run(3.0)
    for end in (pair.client, pair.server):
        assert end.connection.is_terminated
        assert end.connection.next_deadline() is None
        end.connection.handle_timeout(pair.now)
        assert end.connection.transmit(pair.now) == []


def test_close_during_the_handshake_is_no_fault_of_the_protocol() -> None:
    pair = Pair()
    pair.connect()
    pair.run(0.03)
    pair.client.connection.close(7, "changed my mind")
    pair.flush()
    pair.run(0.1)
    at_server = closed(pair.server.events)
    assert (at_server.reason, at_server.is_remote, at_server.message) == (CloseReason.CLOSED, True, "")


def test_commands_after_the_close_are_ignored() -> None:
    pair = Pair().established()
    client = pair.client.connection
    stream_id = client.open_stream()
    client.close()
    client.close()
    client.send_stream(stream_id, b"x")
    client.send_datagram(b"x")
    client.reset_stream(stream_id, 1)
    client.stop_stream(stream_id, 1)
    client.ping(pair.now)
    client.open_stream()
    assert not client.is_established
    pair.flush()
    assert len(pair.client.of(ConnectionClosed)) == 1


def test_close_is_repeated_for_late_packets_and_not_for_ever() -> None:
    pair = Pair().established()
    client, server = pair.client.connection, pair.server.connection
    server.ping(pair.now)
    [late] = server.transmit(pair.now)
    client.close()
    [last_words] = client.transmit(pair.now)
    answers = []
    for _ in range(1 << MAX_CLOSE_REPEATS + 1):
        client.receive([late], pair.now)
        answers += client.transmit(pair.now)
    assert answers == [last_words] * MAX_CLOSE_REPEATS
    server.receive(answers[:1], pair.now)
    assert server.is_closed


def test_silent_peer_ends_in_an_idle_timeout() -> None:
    options = client_options(idle_timeout_s=5.0)
    pair = Pair(options).established()
    pair.uplink.is_up = pair.downlink.is_up = False
    pair.run(10.0)
    for end in (pair.client, pair.server):
        assert closed(end.events).reason is CloseReason.IDLE_TIMEOUT
        assert end.connection.is_terminated


def test_peer_that_is_heard_and_acknowledges_nothing_is_given_up_like_a_silent_one() -> None:
    pair = Pair().established()
    server = pair.server.connection
    send(pair, pair.client.connection.open_stream(), b"request")
    pair.run(1.0)
    # From now on the client does not even know that there is anything to acknowledge.
    pair.downlink.is_up = False
    server.send_stream(0, bytes(500_000))
    pair.flush()
    sent_at = pair.now
    while not pair.server.of(ConnectionClosed) and pair.now < sent_at + 2 * SERVER_OPTIONS.idle_timeout_s:
        pair.client.connection.send_datagram(b"still here")
        pair.flush()
        pair.run(10.0)
    event = closed(pair.server.events)
    assert event.reason is CloseReason.UNACKNOWLEDGED
    assert not event.is_remote
    assert pair.now - sent_at == pytest.approx(SERVER_OPTIONS.idle_timeout_s, abs=11)


def test_one_acknowledgement_now_and_then_keeps_the_connection() -> None:
    pair = Pair().established()
    server = pair.server.connection
    send(pair, pair.client.connection.open_stream(), b"request")
    pair.run(1.0)
    server.send_stream(0, bytes(500_000))
    for _ in range(4):
        pair.downlink.is_up = False
        pair.flush()
        for _ in range(20):
            pair.client.connection.send_datagram(b"still here")
            pair.flush()
            pair.run(SERVER_OPTIONS.idle_timeout_s / 25)
        pair.downlink.is_up = True
        server.probe(pair.now)
        pair.client.connection.send_datagram(b"acknowledged, too")
        pair.flush()
        pair.run(0.1)
    assert not pair.server.of(ConnectionClosed)


def test_handshake_without_an_answer_times_out() -> None:
    pair = Pair(client_options(handshake_timeout_s=3.0))
    pair.uplink.is_up = False
    pair.connect()
    start = pair.now
    pair.run(20.0, until=lambda: pair.client.connection.is_closed)
    assert pair.now - start == pytest.approx(3.0, abs=0.01)
    assert closed(pair.client.events).reason is CloseReason.HANDSHAKE_TIMEOUT


def test_server_gives_up_a_client_that_never_finishes() -> None:
    pair = Pair()
    pair.connect()
    pair.run(0.03)
    pair.uplink.is_up = False
    pair.run(15.0)
    assert closed(pair.server.events).reason is CloseReason.HANDSHAKE_TIMEOUT


def test_client_connects_once() -> None:
    pair = Pair()
    pair.connect()
    with pytest.raises(LocalProtocolError):
        pair.client.connection.connect(pair.now)


def test_other_protocol_is_refused() -> None:
    pair = Pair(client_options(alpn="other/1"))
    pair.connect()
    pair.run(1.0)
    assert closed(pair.client.events).reason is CloseReason.TLS_ERROR
    assert closed(pair.server.events).reason is CloseReason.TLS_ERROR


def test_peer_without_datagrams_is_refused() -> None:
    pair = Pair()
    pair.client.connection._engine._configuration.max_datagram_frame_size = None
    pair.connect()
    pair.run(1.0)
    assert closed(pair.server.events).reason is CloseReason.PROTOCOL_ERROR
    assert closed(pair.client.events).message == "DATAGRAM frames required"


def test_fresh_connections_have_nothing_to_do() -> None:
    for connection in (
        Connection.client(CLIENT_OPTIONS),
        Connection.server(SERVER_OPTIONS, destination_cid=b"d" * 8),
    ):
        assert connection.next_deadline() is None
        connection.handle_timeout(1.0)
        assert connection.transmit(1.0) == []
        assert not connection.is_terminated
