"""What the session manager of an intermediate wants done; `attach_id` names the receiver of each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ztna.signaling.values import Code, Party


@dataclass(frozen=True, slots=True)
class BindWanted:
    """Make channels between two attachments, in place of former ones of the session."""

    session_id: bytes
    agent_attach_id: bytes
    connector_attach_id: bytes


@dataclass(frozen=True, slots=True)
class ReleaseWanted:
    """Forget the channels of a session."""

    session_id: bytes


@dataclass(frozen=True, slots=True)
class Offered:
    """Tell a connector of a session, before its agent hears of it."""

    attach_id: bytes
    session_id: bytes
    agent: Party
    channel: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Answer an agent's request, with a new grant."""

    attach_id: bytes
    request_id: int
    session_id: bytes
    service: str
    agent: Party
    connector: Party
    channel: int


@dataclass(frozen=True, slots=True)
class Rebound:
    """Tell a party that its session is relayed again, on a new channel, and what it may carry today."""

    attach_id: bytes
    session_id: bytes
    peer: Party
    channel: int
    services: frozenset[str]


@dataclass(frozen=True, slots=True)
class AccessChanged:
    """Tell a party that its session may carry only these services from now on; `ANY` stands for all."""

    attach_id: bytes
    session_id: bytes
    services: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ended:
    """Tell a party that a session is over, or (`is_refusal`) that what it brought is none."""

    attach_id: bytes
    session_id: bytes
    code: Code
    message: str
    is_refusal: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """Answer a frame with an error; `session_id` is empty and `request_id` 0 where it is about none."""

    attach_id: bytes
    code: Code
    session_id: bytes
    request_id: int
    message: str


@dataclass(frozen=True, slots=True)
class ClosedAlready:
    """Nothing to do: a node closed a session that is over."""

    session_id: bytes


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Pass a frame on, unchanged."""

    attach_id: bytes
    payload: object


@dataclass(frozen=True, slots=True)
class PunchingStarted:
    """Tell a party when to start its checks."""

    attach_id: bytes
    session_id: bytes
    generation: int
    start_delay_ms: int


SessionEffect: TypeAlias = (
    BindWanted
    | ReleaseWanted
    | Offered
    | Opened
    | Rebound
    | AccessChanged
    | Ended
    | Failed
    | ClosedAlready
    | Forwarded
    | PunchingStarted
)
