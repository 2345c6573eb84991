"""Signaling frames on a byte stream: a 4-byte big-endian length, then that many bytes (docs/wire.md §4).

`FrameDecoder` takes the stream in whatever pieces it arrives and returns whole frame bodies. Every byte is
copied in once and out once: taken frames leave the buffer together, after the last one of a call. What
remains between calls is less than one frame.
"""

from __future__ import annotations

import struct

from ztna.errors import LocalProtocolError, RemoteProtocolError

_LENGTH = struct.Struct(">I")

# The largest signaling message either carrier takes: 32 candidates and a grant need about 4 KiB; the rest is
# room for growth, while 1000 half-received frames still fit 64 MiB.
MAX_FRAME_BYTES = 65_536


def encode(body: bytes) -> bytes:
    """Put the length before `body`; raises `LocalProtocolError` unless it has 1 to MAX_FRAME_BYTES bytes."""
    if not 0 < len(body) <= MAX_FRAME_BYTES:
        raise LocalProtocolError(f"a frame holds 1 to {MAX_FRAME_BYTES} bytes, not {len(body)}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Incremental decoder of one direction of one stream.

    A stream whose framing broke has no next boundary: after the first error every call raises
    `RemoteProtocolError` with its reason again, and the caller closes the stream.
    """

    __slots__ = ("_buffer", "_fault")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fault = ""

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that is still incomplete; always below MAX_FRAME_BYTES plus its length field."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next piece of the stream and return the bodies it completes, in order.

        Raises `RemoteProtocolError` (`frame_empty`, `frame_too_large`) as soon as a length field is wrong,
        before its body arrives. Frames completed by the same piece are then dropped with the stream.
        """
        if self._fault:
            raise RemoteProtocolError(self._fault, "framing was lost earlier on this stream")
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if not 0 < length <= MAX_FRAME_BYTES:
                raise self._poison("frame_too_large" if length else "frame_empty", f"length {length}")
            end = start + _LENGTH.size + length
            if end > len(buffer):
                break
            frames.append(bytes(memoryview(buffer)[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]
        return frames

    def finish(self) -> None:
        """Take the end of the stream; raises `RemoteProtocolError` (`frame_truncated`) inside a frame."""
        if self._fault:
            raise RemoteProtocolError(self._fault, "framing was lost earlier on this stream")
        if self._buffer:
            raise self._poison("frame_truncated", f"the stream ended {len(self._buffer)} bytes into a frame")

    def _poison(self, reason: str, detail: str) -> RemoteProtocolError:
        self._buffer = bytearray()
        self._fault = reason
        return RemoteProtocolError(reason, detail)
