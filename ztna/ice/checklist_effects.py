"""What a checklist tells: requests and answers to send, and how its pairs fare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.ice.candidate import Candidate
from ztna.ice.credentials import IceCredentials
from ztna.ice.pair import CheckedPair, PairState

NO_COMMON_FAMILY: Final = "no_common_family"
"""The reason of a `ChecklistFailed` that no other judgement can better."""


@dataclass(frozen=True, slots=True)
class AcceptCredentials:
    """Checks that carry these credentials are ours from now on."""

    credentials: IceCredentials


@dataclass(frozen=True, slots=True)
class RefuseCredentials:
    """Checks of a former generation are not, once those under way are through."""

    ufrag: str


@dataclass(frozen=True, slots=True)
class SendCheck:
    """Send a check, or send it again; the answer is sealed with `pwd`."""

    request: Transmit
    transaction_id: bytes
    pwd: str


@dataclass(frozen=True, slots=True)
class ChecksBegan:
    """The first check of a generation was sent or answered."""

    generation: int


@dataclass(frozen=True, slots=True)
class PairView:
    """A pair as it is now.

    Attributes:
        local: what the peer sees, as far as that is known; its base is where we send from.
        remote: where we send to.
        rtt_s: of the last answer that tells one, None if none did.
        failure: snake_case, of a failed pair.
    """

    local: Candidate
    remote: Candidate
    destination: TransportAddress
    state: PairState
    is_nominated: bool
    checks_sent: int
    checks_answered: int
    checks_received: int
    rtt_s: float | None
    failure: str

    @classmethod
    def of(cls, pair: CheckedPair, *, is_nominated: bool) -> PairView:
        """Look at a pair."""
        return cls(
            local=pair.valid_local or pair.local,
            remote=pair.remote,
            destination=pair.destination,
            state=pair.state,
            is_nominated=is_nominated,
            checks_sent=pair.checks_sent,
            checks_answered=pair.checks_answered,
            checks_received=pair.checks_received,
            rtt_s=pair.rtt_s,
            failure=pair.failure,
        )


@dataclass(frozen=True, slots=True)
class PairSucceeded:
    """A check of this pair was answered."""

    generation: int
    pair: PairView


@dataclass(frozen=True, slots=True)
class PairNominated:
    """Both ends use this pair from now on; told again when a better one takes its place.

    Attributes:
        proven_bytes: size of the largest datagram that passed our direction.
    """

    generation: int
    pair: PairView
    proven_bytes: int
    local: IceCredentials
    remote: IceCredentials


@dataclass(frozen=True, slots=True)
class ChecklistFailed:
    """Every pair failed and no more can come: `no_pairs`, `no_common_family`, `mtu` or `no_answer`.

    Late answers still count.
    """

    generation: int
    reason: str


ChecklistEffect = (
    AcceptCredentials
    | RefuseCredentials
    | SendCheck
    | Transmit
    | ChecksBegan
    | PairSucceeded
    | PairNominated
    | ChecklistFailed
)
