"""UDP datagrams in DATAGRAM frames: one frame when it fits, several fragments when it does not.

    flow id (varint) | sequence (varint) | fragment index (8 bits) | fragment count (8 bits) | bytes

Flow id and sequence are QUIC variable-length integers (RFC 9000 §16): a young flow pays 4 bytes a datagram
where a fixed layout that never wraps would pay 18, and most service datagrams are small. Index and count
never need more than a byte. The sequence numbers the datagrams of one flow and direction from 0, never
wraps, and lets the receiver deliver none twice. Nothing is sent again: a datagram that lost a fragment is
lost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from ztna.errors import LocalProtocolError, RemoteProtocolError

# What UDP over IPv4 can carry: 65 535 less the IP and UDP headers.
MAX_PAYLOAD_BYTES = 65_507
# The largest payload in frames of 1170 bytes, the least an inner connection of 1200-byte packets gives, needs
# 57; 64 leaves room for a larger header and still bounds what one datagram may scatter.
MAX_FRAGMENTS = 64
MAX_VARINT = (1 << 62) - 1
MAX_HEADER_BYTES = 8 + 8 + 2
# Below this the largest payload would not fit MAX_FRAGMENTS.
MIN_FRAME_BYTES = -(-MAX_PAYLOAD_BYTES // MAX_FRAGMENTS) + MAX_HEADER_BYTES

# Fragments leave back to back: a second is many times the reordering of any path, and what applications wait
# for a UDP answer.
MAX_REASSEMBLY_S = 1.0
# Datagrams of one flow in reassembly at once; 64 large ones are more than the byte bound admits anyway.
MAX_PARTIAL_DATAGRAMS = 64
# 16 datagrams of the largest size, per flow.
MAX_PARTIAL_BYTES = 1 << 20
# Sequence numbers remembered below the highest delivered: at 15 000 packets/s a quarter of a second of
# reordering between two paths, in 512 bytes.
SEQUENCE_WINDOW = 4096


class ReassemblyDrop(StrEnum):
    """Why received fragments were dropped; the value is the metric label."""

    DUPLICATE = "duplicate"
    BEHIND_WINDOW = "behind_window"
    CONFLICT = "conflict"
    TIMED_OUT = "timed_out"
    TOO_MANY_PARTIAL = "too_many_partial"
    TOO_MANY_BYTES = "too_many_bytes"


@dataclass(frozen=True, slots=True)
class Fragment:
    """One parsed frame; `index` is below `count`, and only a sole fragment may be empty."""

    flow_id: int
    sequence: int
    index: int
    count: int
    payload: bytes


def encode_varint(value: int) -> bytes:
    """Encode as RFC 9000 §16, in the fewest bytes; raises `LocalProtocolError` outside 0 to 2^62 - 1."""
    if not 0 <= value <= MAX_VARINT:
        raise LocalProtocolError(f"{value} does not fit a variable-length integer")
    exponent = next(e for e in range(4) if value < 1 << ((8 << e) - 2))
    return (value | exponent << ((8 << exponent) - 2)).to_bytes(1 << exponent, "big")


def decode_varint(data: bytes, start: int) -> tuple[int, int]:
    """Decode at `start` into value and end; raises `RemoteProtocolError` (`varint_truncated`)."""
    if start < len(data):
        size = 1 << (data[start] >> 6)
        end = start + size
        if end <= len(data):
            return int.from_bytes(data[start:end], "big") & ((1 << (8 * size - 2)) - 1), end
    raise RemoteProtocolError("varint_truncated", f"at byte {start} of {len(data)}")


def parse(data: bytes) -> Fragment:
    """Parse one frame; raises `RemoteProtocolError` (`varint_truncated` or `fragment_...`)."""
    flow_id, end = decode_varint(data, 0)
    sequence, end = decode_varint(data, end)
    if len(data) < end + 2:
        raise RemoteProtocolError("fragment_truncated", f"{len(data)} bytes")
    index, count, payload = data[end], data[end + 1], data[end + 2 :]
    if not index < count <= MAX_FRAGMENTS:
        raise RemoteProtocolError("fragment_out_of_range", f"fragment {index} of {count}")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise RemoteProtocolError("fragment_oversize", f"{len(payload)} bytes")
    if not payload and count > 1:
        raise RemoteProtocolError("fragment_empty")
    return Fragment(flow_id, sequence, index, count, payload)


class Fragmenter:
    """Numbers and splits the datagrams that leave on one flow."""

    __slots__ = ("_flow_id", "_sequence")

    def __init__(self, flow_id: int) -> None:
        self._flow_id = encode_varint(flow_id)
        self._sequence = 0

    def split(self, payload: bytes, max_size: int) -> list[bytes]:
        """Split `payload` into frames of at most `max_size` bytes each.

        Raises `LocalProtocolError` for a payload above MAX_PAYLOAD_BYTES or a size below MIN_FRAME_BYTES.
        """
        if len(payload) > MAX_PAYLOAD_BYTES or max_size < MIN_FRAME_BYTES:
            raise LocalProtocolError(f"{len(payload)} bytes in frames of {max_size}")
        header = self._flow_id + encode_varint(self._sequence)
        self._sequence += 1
        room = max_size - len(header) - 2
        count = max(1, -(-len(payload) // room))
        return [
            header + bytes((index, count)) + payload[index * room : (index + 1) * room]
            for index in range(count)
        ]


class SequenceWindow:
    """Which of the last SEQUENCE_WINDOW sequence numbers were delivered: one integer as a bit set."""

    __slots__ = ("_bits", "_highest")

    def __init__(self) -> None:
        self._highest = -1
        self._bits = 0

    def is_behind(self, sequence: int) -> bool:
        """Tell whether `sequence` is too old to know."""
        return sequence <= self._highest - SEQUENCE_WINDOW

    def __contains__(self, sequence: int) -> bool:
        return sequence <= self._highest and bool(self._bits >> (self._highest - sequence) & 1)

    def add(self, sequence: int) -> None:
        """Note a delivery; `sequence` must not be behind."""
        advance = sequence - self._highest
        if advance > 0:
            # A jump past the whole window leaves nothing to shift, and a shift by 2^62 would need the memory.
            kept = self._bits << advance if advance < SEQUENCE_WINDOW else 0
            self._bits = (kept | 1) & ((1 << SEQUENCE_WINDOW) - 1)
            self._highest = sequence
        else:
            self._bits |= 1 << -advance


@dataclass(slots=True)
class _Partial:
    expires_at: float
    count: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    size_bytes: int = 0


class Reassembler:
    """Puts the datagrams of one flow and direction together again. `now` is monotonic seconds.

    Fragments may come in any order. The first copy of a fragment counts: a different one under the same
    index, or one that states another count, is dropped. What no longer fits drops the datagram that began
    first.
    """

    __slots__ = ("_drops", "_partials", "_size_bytes", "_window")

    def __init__(self, drops: Counter[ReassemblyDrop]) -> None:
        """`drops` counts datagrams given up and fragments ignored; flows may share one."""
        self._drops = drops
        self._partials: dict[int, _Partial] = {}
        self._size_bytes = 0
        self._window = SequenceWindow()

    @property
    def partial_datagrams(self) -> int:
        """Datagrams in reassembly."""
        return len(self._partials)

    @property
    def partial_bytes(self) -> int:
        """Payload bytes in reassembly."""
        return self._size_bytes

    def receive(self, fragment: Fragment, now: float) -> bytes | None:
        """Take one fragment; returns the datagram that it completes.

        Raises `RemoteProtocolError` (`datagram_oversize`) when the fragments together exceed
        MAX_PAYLOAD_BYTES; that datagram is dropped.
        """
        self.handle_timeout(now)
        sequence = fragment.sequence
        if self._window.is_behind(sequence):
            self._drops[ReassemblyDrop.BEHIND_WINDOW] += 1
            return None
        if sequence in self._window:
            self._drops[ReassemblyDrop.DUPLICATE] += 1
            return None
        if fragment.count == 1 and sequence not in self._partials:
            self._window.add(sequence)
            return fragment.payload
        partial = self._partials.get(sequence) or self._begin(fragment, now)
        if not self._is_new(partial, fragment):
            return None
        if partial.size_bytes + len(fragment.payload) > MAX_PAYLOAD_BYTES:
            self._forget(sequence)
            raise RemoteProtocolError(
                "datagram_oversize", f"more than {MAX_PAYLOAD_BYTES} bytes in fragments"
            )
        while self._size_bytes + len(fragment.payload) > MAX_PARTIAL_BYTES:
            self._drop_oldest(ReassemblyDrop.TOO_MANY_BYTES, spare=sequence)
        partial.pieces[fragment.index] = fragment.payload
        partial.size_bytes += len(fragment.payload)
        self._size_bytes += len(fragment.payload)
        if len(partial.pieces) < partial.count:
            return None
        self._forget(sequence)
        self._window.add(sequence)
        return b"".join(partial.pieces[index] for index in range(partial.count))

    def handle_timeout(self, now: float) -> None:
        """Give up every datagram that has been in reassembly for MAX_REASSEMBLY_S."""
        while self._partials:
            sequence, partial = next(iter(self._partials.items()))
            if now < partial.expires_at:
                return
            self._forget(sequence)
            self._drops[ReassemblyDrop.TIMED_OUT] += 1

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which the oldest datagram in reassembly is given up, or None."""
        return next((partial.expires_at for partial in self._partials.values()), None)

    def _begin(self, fragment: Fragment, now: float) -> _Partial:
        if len(self._partials) >= MAX_PARTIAL_DATAGRAMS:
            self._drop_oldest(ReassemblyDrop.TOO_MANY_PARTIAL, spare=fragment.sequence)
        partial = _Partial(now + MAX_REASSEMBLY_S, fragment.count)
        self._partials[fragment.sequence] = partial
        return partial

    def _is_new(self, partial: _Partial, fragment: Fragment) -> bool:
        held = partial.pieces.get(fragment.index)
        if fragment.count == partial.count and held is None:
            return True
        is_copy = fragment.count == partial.count and held == fragment.payload
        self._drops[ReassemblyDrop.DUPLICATE if is_copy else ReassemblyDrop.CONFLICT] += 1
        return False

    def _drop_oldest(self, reason: ReassemblyDrop, *, spare: int) -> None:
        self._forget(next(sequence for sequence in self._partials if sequence != spare))
        self._drops[reason] += 1

    def _forget(self, sequence: int) -> None:
        self._size_bytes -= self._partials.pop(sequence).size_bytes
