"""Candidate pairs: which candidates belong together, and how far each check is (RFC 8445 §6.1.2)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.ice.candidate import Candidate, CandidateType

MAX_PAIRS = 100
"""Pairs of one checklist; beyond it those of lowest priority are dropped (RFC 8445 §6.1.2.5)."""

_LOCAL_PREFERENCE_MASK: Final = 0xFFFFFF
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


class PairState(Enum):
    """State of a candidate pair (RFC 8445 §6.1.2.6)."""

    FROZEN = "frozen"
    WAITING = "waiting"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TRANSITIONS: Final[Mapping[PairState, tuple[PairState, ...]]] = MappingProxyType(
    {
        # Its foundation is proven, it is next of its foundation, or the peer was heard on it.
        PairState.FROZEN: (PairState.WAITING,),
        # Its turn came; or a check that a triggered one was to replace is answered after all.
        PairState.WAITING: (PairState.IN_PROGRESS, PairState.SUCCEEDED),
        # Answered; refused or silent; or to be repeated: the peer was heard, or roles were in conflict.
        PairState.IN_PROGRESS: (PairState.SUCCEEDED, PairState.FAILED, PairState.WAITING),
        # It carries small datagrams only.
        PairState.SUCCEEDED: (PairState.FAILED,),
        # The peer was heard on it; or the answer came late.
        PairState.FAILED: (PairState.WAITING, PairState.SUCCEEDED),
    }
)
"""What may follow what; anything else is a bug of ours."""


class Proof(Enum):
    """Whether a pair carries datagrams of full size."""

    NONE = auto()
    PENDING = auto()
    PASSED = auto()
    FAILED = auto()


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


def may_pair(local: Candidate, remote: Candidate) -> bool:
    """Whether a check from the base of `local` to `remote` could mean anything (RFC 8445 §6.1.2.2).

    One family; no relayed candidate, since a sealed leg has no transport address; link-local with link-local
    only, loopback with loopback only, and nothing that is no unicast address: a peer must not make us knock
    at our own services, or at everybody's.
    """
    if CandidateType.RELAY in {local.type, remote.type} or local.base.family is not remote.address.family:
        return False
    source = ipaddress.ip_address(local.base.host)
    destination = ipaddress.ip_address(remote.address.host)
    if destination.is_multicast or destination.is_unspecified or destination == _BROADCAST:
        return False
    return source.is_link_local is destination.is_link_local and source.is_loopback is destination.is_loopback


def destination_of(local: Candidate, remote: Candidate) -> TransportAddress:
    """Where a check of this pair goes: a link-local address is told without a zone and needs ours."""
    zone = local.base.host.partition("%")[2]
    if not zone or "%" in remote.address.host:
        return remote.address
    return TransportAddress(f"{remote.address.host}%{zone}", remote.address.port)


PairKey = tuple[TransportAddress, TransportAddress]
"""Base of the local candidate, and where checks go: no two pairs of a checklist share both."""


@dataclass(slots=True, eq=False)
class CheckedPair:
    """One pair of a checklist, and all that is known of it.

    Attributes:
        local: of highest priority among the candidates of one base.
        destination: where checks go.
        priority: of the pair; changes with the roles.
        valid_local: what the peer sees us as, once a check was answered (RFC 8445 §7.2.5.3.1).
        failure: snake_case, of a failed pair.
        rtt_s: of the last answer that tells one.
        is_triggered: the check in progress was sent after the peer had been heard on this pair.
        proofs: padded checks begun.
        proven_at: monotonic seconds of the last one that was answered.
        nomination: counts up with each nomination of the peer; 0: none of this pair.
    """

    local: Candidate
    remote: Candidate
    destination: TransportAddress
    priority: int
    state: PairState = PairState.FROZEN
    valid_local: Candidate | None = None
    failure: str = ""
    checks_sent: int = 0
    checks_answered: int = 0
    checks_received: int = 0
    rtt_s: float | None = None
    is_triggered: bool = False
    proof: Proof = Proof.NONE
    proofs: int = 0
    proven_at: float = 0.0
    nomination: int = 0
    key: PairKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.local.base, self.destination)

    @property
    def foundation(self) -> tuple[str, str]:
        """Foundation of the pair (RFC 8445 §6.1.2.6)."""
        return (self.local.foundation, self.remote.foundation)

    @property
    def is_too_narrow(self) -> bool:
        """Small datagrams pass, those of full size do not: it is of no use, whatever the peer does."""
        return self.state is PairState.FAILED and self.proof is Proof.FAILED

    @property
    def check_priority(self) -> int:
        """PRIORITY of a check: of the peer-reflexive candidate that it may reveal (RFC 8445 §7.1.1)."""
        preference = CandidateType.PEER_REFLEXIVE.preference
        return preference << 24 | self.local.priority & _LOCAL_PREFERENCE_MASK

    def enter(self, state: PairState, failure: str = "") -> None:
        """Change the state; raises `LocalProtocolError` for what `TRANSITIONS` does not list."""
        if state not in TRANSITIONS[self.state]:
            raise LocalProtocolError(f"a pair does not go from {self.state.value} to {state.value}")
        self.state = state
        self.failure = failure

    def rank(self, *, is_controlling: bool) -> None:
        """Compute the priority, seen from the end that is, or is not, controlling."""
        self.priority = CandidatePair(self.local, self.remote).priority(is_controlling=is_controlling)
