"""What the search for a direct path wants done, and what it has to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ztna.ice.candidate import Candidate
from ztna.ice.signals import Credentials, Signal
from ztna.ice.timing import HolePunchState
from ztna.nat.behaviour import UNKNOWN_BEHAVIOUR, NatBehaviour


@dataclass(frozen=True, slots=True)
class GatherCandidates:
    """Tell us of our candidates, now and at every change."""


@dataclass(frozen=True, slots=True)
class StopGathering:
    """No more of that."""


@dataclass(frozen=True, slots=True)
class PrepareChecks:
    """A new generation begins: answer checks that carry these credentials."""

    generation: int
    credentials: Credentials
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class StartChecks:
    """The peer is known: check pairs after this delay, or when a check of the peer comes."""

    generation: int
    credentials: Credentials
    candidates: tuple[Candidate, ...]
    start_delay_ms: int


@dataclass(frozen=True, slots=True)
class BeginChecks:
    """Begin after this delay, in place of the former one."""

    generation: int
    start_delay_ms: int


@dataclass(frozen=True, slots=True)
class AddCandidates:
    """More candidates of one side; `is_end`: there will be no more."""

    generation: int
    is_local: bool
    candidates: tuple[Candidate, ...]
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class StopChecks:
    """Check nothing any more."""

    generation: int


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Tell the peer; through this intermediate, or (empty) through the session itself."""

    signal: Signal
    intermediate_id: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the search goes by; `carrier` is intermediate or session."""

    generation: int = 0
    state: HolePunchState = HolePunchState.IDLE
    reason: str = ""
    local: tuple[Candidate, ...] = ()
    remote: tuple[Candidate, ...] = ()
    local_nat: NatBehaviour = UNKNOWN_BEHAVIOUR
    remote_nat: NatBehaviour = UNKNOWN_BEHAVIOUR
    carrier: str = ""


@dataclass(frozen=True, slots=True)
class Changed:
    """The search has come to another point."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Connected:
    """An attempt found a direct path; times in seconds since the peer's candidates, and since the offer."""

    generation: int
    rtt_us: int
    since_answer_s: float
    since_offer_s: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """An attempt found none, for now."""

    generation: int
    reason: str


HolePunchEffect: TypeAlias = (
    GatherCandidates
    | StopGathering
    | PrepareChecks
    | StartChecks
    | BeginChecks
    | AddCandidates
    | StopChecks
    | SendSignal
    | Changed
    | Connected
    | GaveUp
)
