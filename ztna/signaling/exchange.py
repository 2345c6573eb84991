"""One session's exchange of candidates, as the intermediate referees it (docs/wire.md §4).

    IDLE ──offer──> AWAITING_ANSWER ──answer──> PUNCHING ──15 s, or a result──> DONE
      ^                   │ 5 s                     (a newer offer starts again from any state)
      └───────────────────┘

The agent offers, the connector answers, each generation once. What candidates say is the parties' concern;
order, direction and amount are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from ztna.access.identity import Role
from ztna.errors import RemoteProtocolError

ANSWER_LIMIT_S = 5.0
"""The signaling exchange limit: a connector answers within two round trips and some time to gather."""

PUNCHING_LIMIT_S = 15.0
"""Three times the limit for a direct path; what comes later belongs to a new generation."""

MAX_CANDIDATES = 32
"""Per side and generation, trickled ones included: a host with 8 addresses in two families has 16 and their
reflexive ones."""

START_DELAY_MS = 100
"""Until checks start, while a signaling round trip to either party is unknown."""

MAX_ROUND_TRIP_S = 2.0
"""A party that seems to be farther away is not waited for: its own frames tell us, and it may lie."""


def start_delays_ms(round_trips_s: Mapping[Role, float | None]) -> dict[Role, int]:
    """How long each party waits from its StartPunching, so that the first checks of both leave together.

    Half of a round trip is the way of a frame; whoever gets it earlier waits for the other.
    """
    known = {role: min(each, MAX_ROUND_TRIP_S) for role, each in round_trips_s.items() if each is not None}
    if len(known) < len(round_trips_s):
        return dict.fromkeys(round_trips_s, START_DELAY_MS)
    farthest = max(known.values())
    return {role: round((farthest - each) / 2 * 1000) for role, each in known.items()}


class ExchangeState(Enum):
    """How far the exchange of one generation is; both parties are ready as soon as one has answered."""

    IDLE = "idle"
    AWAITING_ANSWER = "awaiting_answer"
    PUNCHING = "punching"
    DONE = "done"


class Exchange:
    """Referee of one session. Every method raises `RemoteProtocolError` for what is out of order."""

    __slots__ = ("_candidates", "deadline", "generation", "state")

    def __init__(self) -> None:
        self.state = ExchangeState.IDLE
        self.generation: int | None = None
        self.deadline: float | None = None
        """Monotonic seconds at which `handle_timeout` acts, or None."""
        self._candidates: dict[Role, int] = {}

    def handle_offer(self, generation: int, candidates: int, now: float) -> None:
        """The agent offers a new generation (`stale_generation`, `too_many_candidates`)."""
        if self.generation is not None and generation <= self.generation:
            raise RemoteProtocolError("stale_generation", f"{generation} after {self.generation}")
        self._count(candidates, 0)
        self.generation = generation
        self.state = ExchangeState.AWAITING_ANSWER
        self.deadline = now + ANSWER_LIMIT_S
        self._candidates = {Role.AGENT: candidates, Role.CONNECTOR: 0}

    def handle_answer(self, generation: int, candidates: int, now: float) -> None:
        """The connector answers the offer (`no_offer_outstanding`, `too_many_candidates`)."""
        if self.state is not ExchangeState.AWAITING_ANSWER or generation != self.generation:
            raise RemoteProtocolError("no_offer_outstanding", f"generation {generation}")
        self._candidates[Role.CONNECTOR] = self._count(candidates, self._candidates[Role.CONNECTOR])
        self.state = ExchangeState.PUNCHING
        self.deadline = now + PUNCHING_LIMIT_S

    def handle_candidate_added(self, side: Role, generation: int, *, is_end: bool) -> None:
        """Either side adds one, or the last was added (`unknown_generation`, `too_many_candidates`)."""
        if generation != self.generation:
            raise RemoteProtocolError(
                "unknown_generation", f"{generation}, the exchange is at {self.generation}"
            )
        if not is_end:
            self._candidates[side] = self._count(1, self._candidates[side])

    def handle_result(self) -> None:
        """A side reports how punching ended (`no_exchange`)."""
        if self.generation is None:
            raise RemoteProtocolError("no_exchange", "a result without an exchange")
        if self.state is ExchangeState.PUNCHING:
            self._finish()

    def handle_timeout(self, now: float) -> bool:
        """Act on the deadline if it is due; True when the answer did not come in time."""
        if self.deadline is None or now < self.deadline:
            return False
        if self.state is ExchangeState.AWAITING_ANSWER:
            self.state = ExchangeState.IDLE
            self.deadline = None
            return True
        self._finish()
        return False

    def _finish(self) -> None:
        self.state = ExchangeState.DONE
        self.deadline = None

    @staticmethod
    def _count(more: int, so_far: int) -> int:
        if so_far + more > MAX_CANDIDATES:
            raise RemoteProtocolError("too_many_candidates", f"{so_far + more}, limit {MAX_CANDIDATES}")
        return so_far + more
