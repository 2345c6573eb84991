"""Candidate pairs: who checks what first, and how far each check is (RFC 8445 §6.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztna.errors import LocalProtocolError
from ztna.ice.candidate import Candidate

MAX_PAIRS = 100
"""Pairs of one checklist; beyond it those of lowest priority are dropped (RFC 8445 §6.1.2.5)."""


class PairState(Enum):
    """State of a candidate pair (RFC 8445 §6.1.2.6)."""

    FROZEN = "frozen"
    WAITING = "waiting"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


def pair_priority(controlling: int, controlled: int) -> int:
    """Priority of a pair from those of its candidates (RFC 8445 §6.1.2.3); the same at both ends."""
    smaller, larger = sorted((controlling, controlled))
    return (smaller << 32) + 2 * larger + (controlling > controlled)


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """A local and a remote candidate of one address family."""

    local: Candidate
    remote: Candidate

    def __post_init__(self) -> None:
        """Raise `LocalProtocolError` for candidates that no packet can join."""
        if self.local.address.family is not self.remote.address.family:
            raise LocalProtocolError(f"no pair of {self.local.address} and {self.remote.address}")

    def priority(self, *, is_controlling: bool) -> int:
        """Priority of the pair, seen from the end that is, or is not, controlling."""
        ends = (self.local.priority, self.remote.priority)
        return pair_priority(*(ends if is_controlling else reversed(ends)))
