"""Whose packet is it? The first byte tells the protocol (RFC 9443 §3), the connection ID tells the owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

OwnerT = TypeVar("OwnerT", bound=Hashable)
SourceT = TypeVar("SourceT")

LOCAL_CID_BYTES = 8
"""Length of the connection IDs that we choose; a short header does not carry it."""
MAX_CID_BYTES = 20
"""RFC 9000 §17.2."""
MAX_CIDS_PER_OWNER = 16
"""Eight that the peer may hold, the two a server starts with, and those being replaced."""
MAX_CONNECTION_IDS = 1 << 18
"""Sixteen thousand connections at the bound above, about 40 MB."""
SUPPORTED_VERSION = 1
LONG_CID_OFFSET = 6
"""Where the destination connection ID begins in a long header, behind its length."""
_FORM_BIT = 0x80
_FIXED_BIT = 0x40
_FORM_AND_FIXED_BITS = _FORM_BIT | _FIXED_BIT
_LONG_TYPE_MASK = 0x30
_LONG_TYPE_INITIAL = 0x00


class Protocol(Enum):
    """What a first byte stands for."""

    STUN = "stun"
    RELAY_FRAME = "relay_frame"
    QUIC = "quic"
    UNKNOWN = "unknown"


def classify(first_byte: int) -> Protocol:
    """Tell the protocol by the first byte: 0-3 STUN, 4-15 ours, 64-127 and 192-255 QUIC (RFC 9443 §3)."""
    if first_byte <= 3:  # noqa: PLR2004 - the ranges of the docstring
        return Protocol.STUN
    if first_byte <= 15:  # noqa: PLR2004
        return Protocol.RELAY_FRAME
    if first_byte & _FIXED_BIT:
        return Protocol.QUIC
    return Protocol.UNKNOWN


def is_long_header(datagram: bytes) -> bool:
    """Whether a QUIC datagram begins with a long header (RFC 8999 §5.1)."""
    return bool(datagram) and bool(datagram[0] & _FORM_BIT)


def destination_cid(datagram: bytes) -> bytes | None:
    """Destination connection ID of the first packet (RFC 8999 §5); None if the datagram is too short."""
    if is_long_header(datagram):
        if len(datagram) < LONG_CID_OFFSET:
            return None
        length = datagram[LONG_CID_OFFSET - 1]
        end = LONG_CID_OFFSET + length
        return datagram[LONG_CID_OFFSET:end] if length <= MAX_CID_BYTES and len(datagram) >= end else None
    return datagram[1 : 1 + LOCAL_CID_BYTES] if len(datagram) > LOCAL_CID_BYTES else None


def version(datagram: bytes) -> int:
    """Version of a long header of at least five bytes; 0 means version negotiation (RFC 8999 §6)."""
    return int.from_bytes(datagram[1:5], "big")


def opens_connection(datagram: bytes) -> bool:
    """Whether a long header may be a client's first: an Initial, or of a version that we do not know."""
    number = version(datagram)
    if number == SUPPORTED_VERSION:
        return datagram[0] & _LONG_TYPE_MASK == _LONG_TYPE_INITIAL
    return number != 0


class ConnectionIdTable(Generic[OwnerT]):
    """Local connection ID to owner, for all QUIC connections of a process."""

    def __init__(
        self, *, max_ids: int = MAX_CONNECTION_IDS, max_ids_per_owner: int = MAX_CIDS_PER_OWNER
    ) -> None:
        self._max_ids = max_ids
        self._max_ids_per_owner = max_ids_per_owner
        self._owners: dict[bytes, OwnerT] = {}
        self._ids: dict[OwnerT, dict[bytes, None]] = {}
        self.refused = 0
        """IDs that were not taken because of a bound, or because another owner has them."""

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, connection_id: bytes, owner: OwnerT) -> bool:
        """Route an ID to `owner`; False if a bound or another owner stands against it."""
        known = self._owners.get(connection_id)
        if known is not None:
            is_same = known == owner
            self.refused += not is_same
            return is_same
        owned = self._ids.get(owner, {})
        if len(self._owners) >= self._max_ids or len(owned) >= self._max_ids_per_owner:
            self.refused += 1
            return False
        self._owners[connection_id] = owner
        self._ids.setdefault(owner, owned)[connection_id] = None
        return True

    def retire(self, connection_id: bytes) -> None:
        """Route an ID no longer; harmless if it is unknown."""
        owner = self._owners.pop(connection_id, None)
        if owner is not None:
            owned = self._ids[owner]
            del owned[connection_id]
            if not owned:
                del self._ids[owner]

    def forget_owner(self, owner: OwnerT) -> None:
        """Drop all IDs of an owner."""
        for connection_id in self._ids.pop(owner, {}):
            del self._owners[connection_id]

    def owner_of(self, connection_id: bytes) -> OwnerT | None:
        """Who gets packets to this ID."""
        return self._owners.get(connection_id)


@dataclass(slots=True)
class SortedBatch(Generic[OwnerT, SourceT]):
    """One batch, taken apart; order of arrival is kept within each part."""

    by_owner: dict[OwnerT, list[tuple[bytes, SourceT]]] = field(default_factory=dict)
    stun: list[tuple[bytes, SourceT]] = field(default_factory=list)
    unknown_initials: list[tuple[bytes, SourceT]] = field(default_factory=list)


class Demultiplexer(Generic[OwnerT]):
    """Sorts what a UDP socket received; `dropped` counts by reason what nobody gets."""

    def __init__(self, table: ConnectionIdTable[OwnerT] | None = None) -> None:
        self.table = ConnectionIdTable[OwnerT]() if table is None else table
        self.dropped: Counter[str] = Counter()

    def sort(self, batch: Iterable[tuple[bytes, SourceT]]) -> SortedBatch[OwnerT, SourceT]:
        """Tell apart datagrams with their sources (anything that the caller wants to keep with them)."""
        result: SortedBatch[OwnerT, SourceT] = SortedBatch()
        run_id: bytes | None = None  # of the last short header that belonged to somebody
        run: list[tuple[bytes, SourceT]] = []
        for item in batch:
            datagram = item[0]
            if not datagram:
                self.dropped["empty"] += 1
                continue
            is_short = datagram[0] & _FORM_AND_FIXED_BITS == _FIXED_BIT
            # A batch is mostly a run of them, with one connection ID.
            if is_short and datagram[1 : 1 + LOCAL_CID_BYTES] == run_id:
                run.append(item)
                continue
            protocol = classify(datagram[0])
            if protocol is Protocol.QUIC:
                owned = self._sort_quic(datagram, item, result)
                if is_short and owned is not None:
                    run_id, run = datagram[1 : 1 + LOCAL_CID_BYTES], owned
            elif protocol is Protocol.STUN:
                result.stun.append(item)
            else:
                self.dropped[protocol.value] += 1
        return result

    def _sort_quic(
        self, datagram: bytes, item: tuple[bytes, SourceT], result: SortedBatch[OwnerT, SourceT]
    ) -> list[tuple[bytes, SourceT]] | None:
        """Where it went; None if nobody has the connection ID."""
        connection_id = destination_cid(datagram)
        if connection_id is None:
            self.dropped["truncated"] += 1
            return None
        owner = self.table.owner_of(connection_id)
        if owner is not None:
            owned = result.by_owner.setdefault(owner, [])
            owned.append(item)
            return owned
        if is_long_header(datagram) and opens_connection(datagram):
            result.unknown_initials.append(item)
        else:
            self.dropped["unknown_connection_id"] += 1
        return None
