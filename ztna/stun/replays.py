"""Which authentic checks came already: what somebody overheard, and sends again, gets no answer.

Whoever holds the password draws a transaction id for each check (RFC 8489 §6), so an id that comes from
another address is a copy. Real copies come soon, from the same address; later ones are replays wherever they
come from. What is remembered ends with the credentials, or after `MAX_REPLAYS_REMEMBERED` newer checks: at
one keepalive per 5 s that is 85 minutes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from ztna.address import TransportAddress

MAX_REPLAYS_REMEMBERED: Final = 1024
"""Per ufrag; about 80 kB, 250 kB while they are all new."""
COPIES_LIMIT_S: Final = 60.0
"""No network keeps a packet for a minute, and a check is retransmitted for 4.7 s."""
MAX_COPIES: Final = 16
"""Of one check, all told: it is sent six times at most, and some networks double packets. Each copy is
answered at the address that it seems to come from, by as many bytes."""

_DIGEST_BYTES: Final = 8
"""Of a random id, to remember it by: one fresh check in 10^16 is taken for an old one, and is sent again."""


@dataclass(slots=True)
class _Seen:
    source: TransportAddress
    at: float
    copies: int = 1


class ReplayMemory:
    """The checks with one ufrag that were passed on; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._recent: OrderedDict[bytes, _Seen] = OrderedDict()
        self._old: set[int] = set()
        self._old_order: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._recent) + len(self._old_order)

    def complaint(self, transaction_id: bytes, source: TransportAddress, now: float) -> str | None:
        """Why a check must not be passed on; empty: it is a copy that may be, None: it is new."""
        self.handle_timeout(now)
        seen = self._recent.get(transaction_id)
        if seen is None:
            return "stun_replayed" if _digest(transaction_id) in self._old else None
        if seen.source != source:
            return "stun_replayed"
        seen.copies += 1
        return "stun_repeated" if seen.copies > MAX_COPIES else ""

    def note(self, transaction_id: bytes, source: TransportAddress, now: float) -> None:
        """Remember a new check, for which there was no complaint."""
        self._recent[transaction_id] = _Seen(source, now)
        if len(self._recent) > MAX_REPLAYS_REMEMBERED:
            self._age()
        if len(self) > MAX_REPLAYS_REMEMBERED:
            self._old.discard(self._old_order.popleft())

    def handle_timeout(self, now: float) -> None:
        """Remember less of what is old."""
        while self._recent and now >= next(iter(self._recent.values())).at + COPIES_LIMIT_S:
            self._age()

    def _age(self) -> None:
        transaction_id, _ = self._recent.popitem(last=False)
        digest = _digest(transaction_id)
        self._old.add(digest)
        self._old_order.append(digest)


def _digest(transaction_id: bytes) -> int:
    return int.from_bytes(transaction_id[:_DIGEST_BYTES], "big")
