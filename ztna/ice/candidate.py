"""Candidates: the transport addresses that may reach a node, and their order (RFC 8445 §5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError

COMPONENT = 1
"""Everything of a session travels on one component (RFC 8445 §4)."""
MAX_LOCAL_PREFERENCE = 65_535


class CandidateType(Enum):
    """How a candidate was obtained."""

    HOST = "host"
    SERVER_REFLEXIVE = "srflx"
    PEER_REFLEXIVE = "prflx"
    RELAY = "relay"

    @property
    def preference(self) -> int:
        """Type preference (RFC 8445 §5.1.2.2): the recommended values."""
        return _TYPE_PREFERENCES[self]


_TYPE_PREFERENCES = {
    CandidateType.HOST: 126,
    CandidateType.PEER_REFLEXIVE: 110,
    CandidateType.SERVER_REFLEXIVE: 100,
    CandidateType.RELAY: 0,
}


def priority(candidate_type: CandidateType, local_preference: int) -> int:
    """Priority of a candidate (RFC 8445 §5.1.2.1), 32 bits.

    `local_preference` orders candidates of one type, 0 to 65535, higher first. Raises `LocalProtocolError`
    outside of that.
    """
    if not 0 <= local_preference <= MAX_LOCAL_PREFERENCE:
        raise LocalProtocolError(f"local preference {local_preference} is not within 0-65535")
    return (candidate_type.preference << 24) | (local_preference << 8) | (256 - COMPONENT)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate.

    Attributes:
        base: the local address that checks leave from; of a remote candidate, its own address.
        foundation: equal for candidates of one type, base and server (RFC 8445 §5.1.1.3).
        related: for reflexive candidates, the address they were learned from; for people only.
    """

    type: CandidateType
    address: TransportAddress
    base: TransportAddress
    priority: int
    foundation: str
    related: TransportAddress | None = None
