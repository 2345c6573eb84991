"""The two windows of congestion control."""

from __future__ import annotations

from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch

from ztna.quic.congestion import MIN_PACKET_SHARE_BYTES, capped_algorithm, constant_algorithm


def packet(number: int, sent_time: float, sent_bytes: int = 1200) -> QuicSentPacket:
    return QuicSentPacket(
        epoch=Epoch.ONE_RTT,
        in_flight=True,
        is_ack_eliciting=True,
        is_crypto_packet=False,
        packet_number=number,
        packet_type=QuicPacketType.ONE_RTT,
        sent_time=sent_time,
        sent_bytes=sent_bytes,
    )


def test_window_grows_up_to_the_cap_and_no_further() -> None:
    control = create_congestion_control(capped_algorithm(50_000), max_datagram_size=1200)
    assert control.congestion_window == 12_000
    for number in range(100):
        sent = packet(number, number * 0.001)
        control.on_packet_sent(packet=sent)
        control.on_packet_acked(now=number * 0.001 + 0.05, packet=sent)
    assert control.congestion_window == 50_000


def test_constant_window_ignores_loss_and_counts_what_flies() -> None:
    control = create_congestion_control(constant_algorithm(1 << 20), max_datagram_size=1232)
    packets = [packet(number, 0.0) for number in range(4)]
    for sent in packets:
        control.on_packet_sent(packet=sent)
    control.on_packet_acked(now=0.1, packet=packets[0])
    control.on_packets_lost(now=0.1, packets=packets[1:3])
    control.on_persistent_congestion()
    control.on_rtt_measurement(now=0.1, rtt=0.1)
    assert control.congestion_window == 1 << 20
    assert control.bytes_in_flight == 1200


def test_small_packets_fill_a_constant_window_by_their_number() -> None:
    control = create_congestion_control(
        constant_algorithm(10 * MIN_PACKET_SHARE_BYTES), max_datagram_size=1232
    )
    packets = [packet(number, 0.0, sent_bytes=30) for number in range(10)]
    for sent in packets:
        control.on_packet_sent(packet=sent)
    assert control.bytes_in_flight == control.congestion_window
    control.on_packet_acked(now=0.1, packet=packets[0])
    control.on_packets_lost(now=0.1, packets=packets[1:])
    assert control.bytes_in_flight == 0
