"""One session as the intermediate keeps it, and what its parties may say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ztna.access.identity import Role
from ztna.signaling.exchange import Exchange
from ztna.signaling.values import Party


class SessionState(Enum):
    """Life of a session at the intermediate."""

    WAITING = "waiting"
    BINDING = "binding"
    RELAYED = "relayed"


class FrameKind(Enum):
    """What a frame about a session says."""

    CANDIDATE_OFFER = "candidate_offer"
    CANDIDATE_ANSWER = "candidate_answer"
    CANDIDATE_ADDED = "candidate_added"
    END_OF_CANDIDATES = "end_of_candidates"
    RESTART_REQUESTED = "restart_requested"
    PUNCHING_RESULT = "punching_result"
    CLOSE_SESSION = "close_session"
    UNEXPECTED = "unexpected"


_BOTH: Final = frozenset({Role.AGENT, Role.CONNECTOR})

DIRECTIONS: Final[dict[FrameKind, frozenset[Role]]] = {
    FrameKind.CANDIDATE_OFFER: frozenset({Role.AGENT}),
    FrameKind.CANDIDATE_ANSWER: frozenset({Role.CONNECTOR}),
    FrameKind.CANDIDATE_ADDED: _BOTH,
    FrameKind.END_OF_CANDIDATES: _BOTH,
    FrameKind.RESTART_REQUESTED: _BOTH,
    FrameKind.PUNCHING_RESULT: _BOTH,
    FrameKind.CLOSE_SESSION: _BOTH,
    FrameKind.UNEXPECTED: frozenset(),  # what only an intermediate sends, such as StartPunching
}
"""Which party may send what."""


@dataclass(frozen=True, slots=True)
class SessionFrame:
    """A frame about a session. `payload` is what is forwarded; it is never looked into here.

    `candidates` is the number of candidates inside; `reason` is read from CLOSE_SESSION alone.
    """

    kind: FrameKind
    session_id: bytes
    payload: object
    generation: int = 0
    candidates: int = 0
    reason: str = ""


@dataclass(slots=True)
class Session:
    """One session.

    `channels` are those of its parties' legs while RELAYED; `allowed` services may pass, of which its parties
    know (`is_told`) or are told when it is bound; `asked_for` are the attachments between which the relay was
    asked for channels last; `holders` showed a grant of it last, perhaps with
    another key than that which it was opened with.
    """

    session_id: bytes
    parties: dict[Role, Party]
    opened_at: float
    allowed: frozenset[str]
    state: SessionState = SessionState.WAITING
    attachments: dict[Role, bytes] = field(default_factory=dict)
    asked_for: dict[Role, bytes] = field(default_factory=dict)
    holders: dict[Role, Party] = field(default_factory=dict)
    channels: dict[Role, int] = field(default_factory=dict)
    is_announced: bool = False
    is_told: bool = False
    deadline: float | None = None
    pending: dict[tuple[int, str], None] = field(default_factory=dict)
    services: dict[str, None] = field(default_factory=dict)
    exchange: Exchange = field(default_factory=Exchange)

    @property
    def agent(self) -> Party:
        """Who opened it."""
        return self.parties[Role.AGENT]

    @property
    def connector(self) -> Party:
        """Whom it reaches."""
        return self.parties[Role.CONNECTOR]

    def side_of(self, attach_id: bytes) -> Role | None:
        """Which party this attachment is, if any."""
        return next((role for role, held in self.attachments.items() if held == attach_id), None)
