"""What the sessions of a connector share: whose handshake may begin, and who waits for it.

Each session has its own actor, and all their handshakes one budget (`ztna.quic.admission`). A session whose
turn has not come keeps the agent's first packet and asks again, instead of leaving it to the agent to say it
once more: agents double the same time-out, and most of the budget would lie idle between their waves. What
comes later in a handshake has its price, too, and waits in the same way, but asks sooner.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from ztna.quic.admission import Admission
from ztna.quic.budget import HandshakeBudget
from ztna.quic.connection import Connection

MAX_WAITING: Final = 128
"""Sessions at a time: what the budget serves in six seconds, two more than an agent waits."""

ASK_INTERVAL_S: Final = 0.05
"""On the average, for each that waits; all of them together ask 2500 times a second, which is a fiftieth of
the time."""

GO_ON_INTERVAL_S: Final = 0.01
"""The same for a handshake that began: whoever was let in is let through before others are let in."""


class HandshakeGate:
    """Of one process; `now` is monotonic seconds."""

    def __init__(self, budget: HandshakeBudget) -> None:
        self._admission = Admission(budget)
        self._waiting = 0

    def of(self, peer_id: str) -> SessionGate:
        """The gate as one session uses it."""
        return SessionGate(self, peer_id)

    def ask(self, peer_id: str, now: float) -> str:
        """Empty if a handshake may begin; else why not."""
        return self._admission.admit(peer_id, now)

    def may_go_on(self, now: float) -> bool:
        """Whether a handshake that began may do its next step."""
        return self._admission.budget.is_open(now)

    def charged(self, peer_id: str, now: float, *, is_first: bool = False) -> AbstractContextManager[None]:
        """Do a step of a handshake within it."""
        return self._admission.charged(peer_id, now, is_first=is_first)

    def begin(self, peer_id: str, connection: Connection) -> None:
        """Note the handshake that was admitted."""
        self._admission.begin(peer_id, connection)

    def enter(self) -> bool:
        """Take a place among those who wait; False if there is none."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        return True

    def leave(self) -> None:
        """Give it back."""
        self._waiting -= 1


class SessionGate:
    """What one session may ask of the gate; it holds at most one place."""

    def __init__(self, gate: HandshakeGate, peer_id: str) -> None:
        self._gate = gate
        self._peer_id = peer_id
        self._has_place = False

    def ask(self, now: float) -> str:
        """Empty if the handshake may begin; else why not."""
        refusal = self._gate.ask(self._peer_id, now)
        if not refusal:
            self.leave()
        return refusal

    def may_go_on(self, now: float) -> bool:
        """Whether the handshake that began may do its next step."""
        return self._gate.may_go_on(now)

    def charged(self, now: float, *, is_first: bool = False) -> AbstractContextManager[None]:
        """Do a step of the handshake within it."""
        return self._gate.charged(self._peer_id, now, is_first=is_first)

    def begin(self, connection: Connection) -> None:
        """Note the handshake that was admitted."""
        self._gate.begin(self._peer_id, connection)

    def wait(self) -> bool:
        """Whether there is a place to wait."""
        self._has_place = self._has_place or self._gate.enter()
        return self._has_place

    def leave(self) -> None:
        """Wait no longer; harmless when repeated."""
        if self._has_place:
            self._has_place = False
            self._gate.leave()
