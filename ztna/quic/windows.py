"""Receive windows that follow what the application consumed (RFC 9000 §4.1), as pure bookkeeping.

A stream starts with a small window that doubles while its reader keeps up with a sender that the window
holds back. The connection's window is as large as all stream windows together plus the step in which it
moves, so streams that nobody reads can fill their own share and never that of another.
"""

from __future__ import annotations

from dataclasses import dataclass

from ztna.errors import LocalProtocolError

INITIAL_STREAM_WINDOW_BYTES = 64 * 1024
"""What a stream may send before anybody looked at it: it bounds what is held for an unverified opener, and
carries a web request or answer without waiting."""
MAX_STREAM_WINDOW_BYTES = 2 * 1024 * 1024
"""15 MB/s, which one core does, over a round-trip time of 140 ms."""
GROWTH_BUDGET_BYTES = 32 * 1024 * 1024
"""What all streams may grow beyond their initial windows: sixteen bulk transfers at full window."""
MAX_STREAMS = 1024
"""Streams of one connection: what one agent may open."""
MAX_UNREAD_BYTES = MAX_STREAMS * INITIAL_STREAM_WINDOW_BYTES + GROWTH_BUDGET_BYTES
"""Upper bound of unread bytes of one connection at the default limits (96 MiB)."""
PROMPT_ROUND_TRIPS = 2.0
"""A window half used up within this many round trips is what holds the sender back; then it doubles."""
MIN_PROMPT_S = 0.010
"""Below it, timers and batches dominate the round-trip time."""


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """Bounds of what a peer may send unread, in bytes."""

    initial_stream_bytes: int = INITIAL_STREAM_WINDOW_BYTES
    max_stream_bytes: int = MAX_STREAM_WINDOW_BYTES
    growth_budget_bytes: int = GROWTH_BUDGET_BYTES
    max_streams: int = MAX_STREAMS

    @property
    def unread_bytes(self) -> int:
        """Sum of all stream windows: the bound of what lies unread."""
        return self.max_streams * self.initial_stream_bytes + self.growth_budget_bytes

    @property
    def connection_step_bytes(self) -> int:
        """How much is consumed between two rises of the connection's limit."""
        return self.max_stream_bytes // 2

    @property
    def connection_bytes(self) -> int:
        """Window of the connection: never what holds a stream back."""
        return self.unread_bytes + self.connection_step_bytes


@dataclass(slots=True)
class _StreamWindow:
    window: int
    limit: int
    raised_at: float
    delivered: int = 0
    consumed: int = 0
    is_abandoned: bool = False


class ReceiveWindows:
    """The limits of one connection and its streams; offsets and sizes in bytes, times in seconds."""

    def __init__(self, limits: WindowLimits) -> None:
        self._limits = limits
        # Asked for with every packet, and always the same.
        self._connection_bytes = limits.connection_bytes
        self._connection_step_bytes = limits.connection_step_bytes
        self._streams: dict[int, _StreamWindow] = {}
        self._growth = 0
        self._consumed = 0
        self.connection_limit = limits.connection_bytes

    @property
    def growth_bytes(self) -> int:
        """What the windows of open streams exceed their initial size by, altogether."""
        return self._growth

    def open(self, stream_id: int, now: float) -> None:
        """Start a stream with the initial window, which both ends know from the handshake."""
        initial = self._limits.initial_stream_bytes
        self._streams[stream_id] = _StreamWindow(window=initial, limit=initial, raised_at=now)

    def deliver(self, stream_id: int, count: int) -> bool:
        """Note bytes handed to the application; False if it abandoned the stream and must not see them."""
        stream = self._streams[stream_id]
        stream.delivered += count
        if stream.is_abandoned:
            self._take(stream, count)
        return not stream.is_abandoned

    def consume(self, stream_id: int, count: int, *, now: float, rtt: float) -> bool:
        """Note bytes that left the application's hands; True if the stream's limit rose.

        Raises `LocalProtocolError` for more bytes than were delivered.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_abandoned:
            return False
        if not 0 <= count <= stream.delivered - stream.consumed:
            raise LocalProtocolError(f"stream {stream_id}: {count} bytes consumed were never delivered")
        self._take(stream, count)
        if (stream.limit - stream.consumed) * 2 > stream.window:
            return False
        if now - stream.raised_at <= max(PROMPT_ROUND_TRIPS * rtt, MIN_PROMPT_S):
            self._grow(stream)
        stream.raised_at = now
        stream.limit = stream.consumed + stream.window
        return True

    def abandon(self, stream_id: int) -> None:
        """Count everything delivered so far and later as consumed: nobody will read it."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.is_abandoned:
            stream.is_abandoned = True
            self._take(stream, stream.delivered - stream.consumed)

    def close(self, stream_id: int, received: int) -> None:
        """End a stream of which `received` bytes counted towards the connection's limit."""
        stream = self._streams.pop(stream_id)
        self._growth -= stream.window - self._limits.initial_stream_bytes
        self._take(stream, received - stream.consumed)

    def is_drained(self, stream_id: int) -> bool:
        """Whether the application consumed all that was delivered to it."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.consumed == stream.delivered

    def stream_limit(self, stream_id: int) -> int:
        """Offset up to which the peer may send on the stream."""
        return self._streams[stream_id].limit

    def _grow(self, stream: _StreamWindow) -> None:
        step = min(stream.window, self._limits.max_stream_bytes - stream.window)
        if self._growth + step <= self._limits.growth_budget_bytes:
            stream.window += step
            self._growth += step

    def _take(self, stream: _StreamWindow, count: int) -> None:
        stream.consumed += count
        self._consumed += count
        limit = self._consumed + self._connection_bytes
        if limit - self.connection_limit >= self._connection_step_bytes:
            self.connection_limit = limit
