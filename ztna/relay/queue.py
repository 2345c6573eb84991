"""The queue before a relay leg: short, fair between sessions, and honest about what it dropped.

One `FairScheduler` stands before each outgoing connection and holds one `RelayQueue` per session. The inner
connections run their own congestion control, so a queue here may only absorb bursts: it is bounded in packets
and in time, and gives up its oldest packet first, which is the one the sender most likely sent again already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from enum import StrEnum
from typing import Generic, TypeVar

from ztna.errors import LocalProtocolError

KeyT = TypeVar("KeyT", bound=Hashable)

# A burst of one inner sender: its pacer releases 16 packets at once, and four such bursts fit (77 KB).
MAX_QUEUED_PACKETS_PER_SESSION = 64
# Longer than any scheduling hiccup of this process, shorter than the inner connection's loss timers at a
# common RTT: later than this a packet competes with its own retransmission.
MAX_SOJOURN_S = 0.1
# All sessions of one leg: 64 sessions may be full at once. 5 MB at 1200 bytes, 0.3 s of one core's work.
MAX_QUEUED_PACKETS = 4096


class DropReason(StrEnum):
    """Why a queued packet was dropped; the value is the metric label."""

    SESSION_QUEUE_FULL = "session_queue_full"
    SOJOURN_EXCEEDED = "sojourn_exceeded"
    LEG_QUEUE_FULL = "leg_queue_full"
    SESSION_RELEASED = "session_released"


class DropCounts:
    """Packets dropped so far, by reason."""

    __slots__ = ("_by_reason",)

    def __init__(self) -> None:
        self._by_reason = dict.fromkeys(DropReason, 0)

    def __getitem__(self, reason: DropReason) -> int:
        return self._by_reason[reason]

    @property
    def total(self) -> int:
        """Packets dropped for any reason."""
        return sum(self._by_reason.values())

    def add(self, reason: DropReason, packets: int = 1) -> None:
        """Count `packets` more."""
        self._by_reason[reason] += packets


class RelayQueue:
    """Packets of one session in one direction, oldest first. `now` is monotonic seconds."""

    __slots__ = ("_drops", "_max_packets", "_max_sojourn_s", "_packets")

    def __init__(
        self,
        drops: DropCounts,
        *,
        max_packets: int = MAX_QUEUED_PACKETS_PER_SESSION,
        max_sojourn_s: float = MAX_SOJOURN_S,
    ) -> None:
        self._packets: deque[tuple[float, bytes]] = deque()
        self._drops = drops
        self._max_packets = max_packets
        self._max_sojourn_s = max_sojourn_s

    def __len__(self) -> int:
        return len(self._packets)

    def push(self, packet: bytes, now: float) -> None:
        """Append `packet`; a full queue drops its oldest one for it."""
        if len(self._packets) >= self._max_packets:
            self.drop_oldest(1, DropReason.SESSION_QUEUE_FULL)
        self._packets.append((now, packet))

    def pop(self, now: float) -> bytes | None:
        """Hand over the oldest packet that has not waited too long, and drop those that have."""
        while self._packets:
            enqueued_at, packet = self._packets.popleft()
            if now - enqueued_at <= self._max_sojourn_s:
                return packet
            self._drops.add(DropReason.SOJOURN_EXCEEDED)
        return None

    def drop_oldest(self, packets: int, reason: DropReason) -> None:
        """Drop the `packets` oldest packets, which must be there, and count them under `reason`."""
        for _ in range(packets):
            self._packets.popleft()
        self._drops.add(reason, packets)


class FairScheduler(Generic[KeyT]):
    """Round-robin over the sessions that share one outgoing connection, one packet per session and turn.

    Turns count packets, not bytes: sessions that send in bulk all send full packets. A session without a
    packet is forgotten at once and joins again behind the others, so the order follows from the calls alone.
    """

    def __init__(
        self,
        *,
        max_packets_per_session: int = MAX_QUEUED_PACKETS_PER_SESSION,
        max_sojourn_s: float = MAX_SOJOURN_S,
    ) -> None:
        self.drops = DropCounts()
        self._max_packets_per_session = max_packets_per_session
        self._max_sojourn_s = max_sojourn_s
        self._queues: dict[KeyT, RelayQueue] = {}
        self._turns: deque[KeyT] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def session_count(self) -> int:
        """Sessions that hold a packet."""
        return len(self._queues)

    def enqueue(self, session_key: KeyT, packet: bytes, now: float) -> None:
        """Append `packet` to its session's queue, dropping older ones where a bound is reached."""
        if self._size >= MAX_QUEUED_PACKETS:
            self._shorten_longest_queue()
        queue = self._queues.get(session_key)
        if queue is None:
            queue = self._queues[session_key] = RelayQueue(
                self.drops, max_packets=self._max_packets_per_session, max_sojourn_s=self._max_sojourn_s
            )
            self._turns.append(session_key)
        before = len(queue)
        queue.push(packet, now)
        self._size += len(queue) - before

    def take(self, room: int, now: float) -> list[tuple[KeyT, bytes]]:
        """Hand over up to `room` packets in the order to send them; none of them waited too long.

        Raises `LocalProtocolError` for a negative `room`.
        """
        if room < 0:
            raise LocalProtocolError(f"room for {room} packets")
        taken: list[tuple[KeyT, bytes]] = []
        while self._turns and len(taken) < room:
            session_key = self._turns.popleft()
            queue = self._queues[session_key]
            before = len(queue)
            packet = queue.pop(now)
            self._size -= before - len(queue)
            if packet is not None:
                taken.append((session_key, packet))
            if queue:
                self._turns.append(session_key)
            else:
                del self._queues[session_key]
        return taken

    def discard(self, session_key: KeyT) -> None:
        """Drop all packets of a session that ended; harmless when it has none."""
        if session_key in self._queues:
            self._drop_oldest(session_key, len(self._queues[session_key]), DropReason.SESSION_RELEASED)

    def _shorten_longest_queue(self) -> None:
        # As in RFC 8290 §4.1: the longest queue pays for the overload, and it loses half at once, so that the
        # search over all queues is paid for by many packets.
        longest = max(self._queues, key=lambda session_key: len(self._queues[session_key]))
        self._drop_oldest(longest, (len(self._queues[longest]) + 1) // 2, DropReason.LEG_QUEUE_FULL)

    def _drop_oldest(self, session_key: KeyT, packets: int, reason: DropReason) -> None:
        queue = self._queues[session_key]
        queue.drop_oldest(packets, reason)
        self._size -= packets
        if not queue:
            del self._queues[session_key]
            self._turns.remove(session_key)
