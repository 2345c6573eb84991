"""The relay frame: one DATAGRAM frame, or one entry of a gRPC batch, of a relay leg (docs/wire.md §5).

    0                   2
    +---------+---------+----------------------
    | channel (16 bits) | one sealed inner packet
    +---------+---------+----------------------

There is no length and no type: a datagram is exactly one packet, and the channel says whose.
"""

from __future__ import annotations

import struct

from ztna.errors import LocalProtocolError, RemoteProtocolError

_CHANNEL = struct.Struct(">H")

CHANNEL_BYTES = _CHANNEL.size
# Channel 0 is never allocated, so that a zeroed header is an error and not somebody's session.
RESERVED_CHANNEL = 0
MAX_CHANNEL = 0xFFFF
# An outer connection of 1232-byte packets (IPv6 over a 1280-byte MTU) carries 1202 bytes per DATAGRAM frame:
# the header and one inner packet of 1200, the least that QUIC needs (RFC 9000 §14). A leg that has proved a
# larger size passes its own limit.
DEFAULT_MAX_PACKET_BYTES = 1200
# Of a gRPC leg, in one message: 58 KB at most, of the 64 KiB that such a message may have here.
MAX_BATCH_PACKETS = 48


def pack(channel: int, packet: bytes, max_packet_bytes: int = DEFAULT_MAX_PACKET_BYTES) -> bytes:
    """Put `channel` before `packet`.

    Raises `LocalProtocolError` for a channel outside 1 to MAX_CHANNEL and for a packet that is empty or
    longer than `max_packet_bytes`: one oversize datagram in a QUIC send queue blocks all later ones.
    Packets from outside have passed `unpack` with the same limit.
    """
    if not RESERVED_CHANNEL < channel <= MAX_CHANNEL:
        raise LocalProtocolError(f"relay channel {channel} is not within 1-{MAX_CHANNEL}")
    if not 0 < len(packet) <= max_packet_bytes:
        raise LocalProtocolError(f"a relay frame holds 1 to {max_packet_bytes} bytes, not {len(packet)}")
    return _CHANNEL.pack(channel) + packet


def unpack(datagram: bytes, max_packet_bytes: int = DEFAULT_MAX_PACKET_BYTES) -> tuple[int, bytes]:
    """Split a received datagram into channel and packet.

    `max_packet_bytes` is what the leg the packet goes to can carry. Raises `RemoteProtocolError`
    (`relay_frame_short`, `relay_frame_oversize`, `relay_channel_reserved`).
    """
    packet_bytes = len(datagram) - CHANNEL_BYTES
    if packet_bytes <= 0:
        raise RemoteProtocolError("relay_frame_short", f"{len(datagram)} bytes")
    if packet_bytes > max_packet_bytes:
        raise RemoteProtocolError("relay_frame_oversize", f"{packet_bytes} bytes, limit {max_packet_bytes}")
    (channel,) = _CHANNEL.unpack_from(datagram)
    if channel == RESERVED_CHANNEL:
        raise RemoteProtocolError("relay_channel_reserved")
    return channel, datagram[CHANNEL_BYTES:]
