from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.relay.frame import CHANNEL_BYTES, DEFAULT_MAX_PACKET_BYTES, MAX_CHANNEL, pack, unpack


def test_frame_is_the_channel_and_the_packet() -> None:
    assert pack(0x1234, b"packet") == b"\x12\x34packet"


def test_full_frame_fits_a_datagram_of_an_outer_connection_of_1232_bytes() -> None:
    assert len(pack(1, bytes(DEFAULT_MAX_PACKET_BYTES))) == 1202


@given(st.integers(1, MAX_CHANNEL), st.binary(min_size=1, max_size=DEFAULT_MAX_PACKET_BYTES))
def test_what_is_packed_is_unpacked(channel: int, packet: bytes) -> None:
    assert unpack(pack(channel, packet)) == (channel, packet)


@pytest.mark.parametrize(
    ("channel", "size"),
    [
        pytest.param(0, 10, id="reserved channel"),
        pytest.param(MAX_CHANNEL + 1, 10, id="channel of 17 bits"),
        pytest.param(1, 0, id="empty packet"),
        pytest.param(1, DEFAULT_MAX_PACKET_BYTES + 1, id="oversize packet"),
    ],
)
def test_packing_what_no_leg_carries_is_our_own_fault(channel: int, size: int) -> None:
    with pytest.raises(LocalProtocolError):
        pack(channel, bytes(size))


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        pytest.param(b"", "relay_frame_short", id="empty"),
        pytest.param(b"\x01", "relay_frame_short", id="half a channel"),
        pytest.param(b"\x00\x01", "relay_frame_short", id="no packet"),
        pytest.param(b"\x00\x00x", "relay_channel_reserved", id="reserved channel"),
        pytest.param(b"\x00\x01" + bytes(1201), "relay_frame_oversize", id="oversize"),
    ],
)
def test_wrong_datagram_is_the_peers_fault(datagram: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(datagram)
    assert caught.value.reason == reason


def test_larger_leg_passes_its_own_limit() -> None:
    datagram = pack(7, bytes(1400), max_packet_bytes=1400)
    assert unpack(datagram, max_packet_bytes=1400) == (7, bytes(1400))


@given(st.binary(max_size=1300), st.integers(1, 1500))
def test_arbitrary_datagram_fits_the_limit_or_raises_a_remote_error(datagram: bytes, limit: int) -> None:
    try:
        channel, packet = unpack(datagram, limit)
    except RemoteProtocolError:
        return
    assert pack(channel, packet, limit) == datagram
    assert len(packet) == len(datagram) - CHANNEL_BYTES
