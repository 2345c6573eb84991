"""Sessions that an intermediate carries no more since it lost one of their parties, and the other still has.

The lost party may merely be cut off from here, and its session live on a direct path for as long as its nodes
grant it. So rules that change meanwhile are for that session too: its other party is told, and ends it. A
session is forgotten once it is known again, once the other party says that it is over or is itself gone, and
once nobody holds it any more. What the lost party says of it counts for nothing: the rules may mean that one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ztna.access.grant import GRANT_LIFETIME_S, GRANT_TOLERANCE_S
from ztna.access.identity import Role
from ztna.signaling.values import Party

MAX_LOST_SESSIONS: Final = 100_000
"""In all, unless configured, about 1 KB each: every session of an intermediate
(`ztna.signaling.sessions.MAX_SESSIONS`) may lose its agent at once, when a network breaks between them and
here."""

MAX_LOST_PER_AGENT: Final = 256
"""All sessions that it may have. One that loses more within the time is hardly a network's doing."""

MAX_LOST_PER_CONNECTOR: Final = 4096
"""All sessions that it accepts."""

LOST_LIFETIME_S: Final = GRANT_LIFETIME_S + GRANT_TOLERANCE_S
"""Nodes end such a session after ten minutes (`ztna.session.book.MAX_UNCARRIED_S`), counted from when they
were told of the loss; the rest is for clocks that differ, and for news that was slow."""


@dataclass(slots=True)
class LostSession:
    """One of them, until `until` (monotonic seconds).

    `attach_id` is the attachment of the party that is left, `allowed` the services that it was last told of.
    `holder` is what the lost party showed last: a node that renewed its key holds its sessions still.
    """

    session_id: bytes
    parties: tuple[Party, Party]
    lost: Role
    holder: Party
    attach_id: bytes
    allowed: frozenset[str]
    until: float

    @property
    def agent(self) -> Party:
        """Who opened it."""
        return self.parties[0]

    @property
    def connector(self) -> Party:
        """Whom it reaches."""
        return self.parties[1]

    @property
    def lost_party(self) -> Party:
        """Whose leg was lost."""
        return self.agent if self.lost is Role.AGENT else self.connector


class LostSessions:
    """All of them, the oldest first. Each lives for `LOST_LIFETIME_S`: the oldest is the first to go."""

    def __init__(self, max_sessions: int = MAX_LOST_SESSIONS) -> None:
        self._max_sessions = max_sessions
        # A dict whose oldest entries went one by one is slow to find the next.
        self._sessions: OrderedDict[bytes, LostSession] = OrderedDict()
        self._held: dict[tuple[Role, str], dict[bytes, LostSession]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> Sequence[LostSession]:
        """All of them, oldest first."""
        return tuple(self._sessions.values())

    def add(self, session: LostSession) -> list[LostSession]:
        """Remember a session, and return those that there is no more room for: nobody will judge them."""
        self.forget(session.session_id)
        crowded_out = []
        for held, limit in (
            (self._held.get(session.agent.name, {}), MAX_LOST_PER_AGENT),
            (self._held.get(session.connector.name, {}), MAX_LOST_PER_CONNECTOR),
            (self._sessions, self._max_sessions),
        ):
            if len(held) >= limit:
                oldest = next(iter(held.values()))
                self.forget(oldest.session_id)
                crowded_out.append(oldest)
        self._sessions[session.session_id] = session
        for party in session.parties:
            self._held.setdefault(party.name, {})[session.session_id] = session
        return crowded_out

    def forget(self, session_id: bytes) -> None:
        """The session is known again, or over; harmless for one that is not remembered."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        for party in session.parties:
            held = self._held[party.name]
            del held[session_id]
            if not held:
                del self._held[party.name]

    def handle_closed(self, session_id: bytes, attach_id: bytes) -> None:
        """A node says that a session is over: only the party that is left may."""
        session = self._sessions.get(session_id)
        if session is not None and session.attach_id == attach_id:
            self.forget(session_id)

    def handle_gone(self, party: Party) -> None:
        """A node attached anew or is gone: its other sessions come back with it, or else to nobody."""
        for session in self._of(party):
            if session.lost_party.name != party.name:
                self.forget(session.session_id)

    def handle_offered(self, agent: Party, connector: Party) -> None:
        """A connector is told of a new session of the pair: it ends those whose agent was lost.

        So whoever attaches anew without its session, again and again, leaves one behind, not hundreds. An
        agent that lost its connector may have no use for the new one, and keep the former: that one stays.
        """
        for session in self._of(agent):
            if session.lost is Role.AGENT and session.connector.name == connector.name:
                self.forget(session.session_id)

    def take_lost(self, party: Party) -> list[LostSession]:
        """Forget and return the sessions that wait for this node, which is not to come back with this key.

        Another process may have come under its name with another key: what that one lost is its own.
        """
        found = [each for each in self._of(party) if party in (each.lost_party, each.holder)]
        for session in found:
            self.forget(session.session_id)
        return found

    def handle_timeout(self, now: float) -> None:
        """Forget those that no node holds any more."""
        while (oldest := self._oldest()) is not None and now >= oldest.until:
            self.forget(oldest.session_id)

    def next_deadline(self) -> float | None:
        """When the oldest one is forgotten."""
        oldest = self._oldest()
        return None if oldest is None else oldest.until

    def _oldest(self) -> LostSession | None:
        return next(iter(self._sessions.values()), None)

    def _of(self, party: Party) -> list[LostSession]:
        return list(self._held.get(party.name, {}).values())
