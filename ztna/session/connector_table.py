"""The sessions of a connector: offered by intermediates, opened by agents."""

from __future__ import annotations

from ztna.session.book import SessionBook, SessionState
from ztna.session.effects import Peer, ReportClosed

# One session per agent; far above what one connector process can carry, far below what memory allows.
MAX_SESSIONS = 4096

# An agent starts its handshake as soon as it is told of the session; one that has not finished by then
# (several retransmissions at 300 ms round trip) has gone away.
HANDSHAKE_LIMIT_S = 15.0


class ConnectorSessions(SessionBook):
    """Accepts what intermediates offer, within bounds, and drops what no agent takes up."""

    def handle_offered(
        self, intermediate_id: str, session_id: bytes, agent: Peer, channel: int, now: float
    ) -> None:
        """Start a session for an agent, or give an existing one another channel."""
        record = self._sessions.get(session_id)
        if record is None:
            if len(self._sessions) >= MAX_SESSIONS:
                self._effects.append(ReportClosed(intermediate_id, session_id, "too_many_sessions"))
                return
            record = self._start(session_id, agent, now)
        elif record.peer != agent or record.state is SessionState.CLOSING:
            self._effects.append(ReportClosed(intermediate_id, session_id, "unknown_session"))
            return
        self._bind(record, intermediate_id, channel)

    def handle_timeout(self, now: float) -> None:
        """Drop sessions whose agent never came."""
        super().handle_timeout(now)
        for record in self._sessions.values():
            if record.state is SessionState.OPENING and now >= record.opened_at + HANDSHAKE_LIMIT_S:
                self._close(record, "handshake_timeout")

    def next_deadline(self) -> float | None:
        """The earliest of the offline limit and the handshake limits."""
        deadlines = [
            record.opened_at + HANDSHAKE_LIMIT_S
            for record in self._sessions.values()
            if record.state is SessionState.OPENING
        ]
        offline = super().next_deadline()
        return min(deadlines + ([offline] if offline is not None else []), default=None)
