"""Duplicate detection over a window of packet numbers (RFC 9000 §12.3), wide enough for a switch of paths."""

from __future__ import annotations

WIDE_WINDOW_PACKETS = 2048
"""Two paths whose delays differ by 130 ms, at 15 000 packets per second: what one core sends."""
NARROW_WINDOW_PACKETS = 128
"""What ordinary reordering needs; a connection that never changes its path has this."""


class PacketNumberWindow:
    """The packet numbers received lately, as one integer of bits.

    Bit n stands for the number n below the highest. Whatever fell out of the window counts as received.

    Attributes:
        added: numbers noted so far.
        repeated: how often a number was asked for that had been received: packets that came again.
    """

    __slots__ = ("_bits", "_highest", "_mask", "_size", "added", "repeated")

    def __init__(self, size: int) -> None:
        self._size = size
        self._mask = (1 << size) - 1
        self._bits = 0
        self._highest = -1
        self.added = 0
        self.repeated = 0

    def add(self, packet_number: int) -> None:
        """Note a packet as received."""
        self.added += 1
        step = packet_number - self._highest
        if step > 0:
            # A jump past the window leaves no bit worth shifting, however far it goes.
            self._bits = (self._bits << step | 1) & self._mask if step < self._size else 1
            self._highest = packet_number
        elif -step < self._size:
            self._bits |= 1 << -step

    def __contains__(self, packet_number: int) -> bool:
        distance = self._highest - packet_number
        if distance >= 0 and (distance >= self._size or self._bits >> distance & 1):
            self.repeated += 1
            return True
        return False
