"""The sessions of a connector: offered by intermediates, opened by agents."""

from __future__ import annotations

from ztna.session.book import SessionBook, SessionRecord, SessionState
from ztna.session.effects import Peer, ReportClosed

# One session per agent; far above what one connector process can carry, far below what memory allows.
MAX_SESSIONS = 4096

# An intermediate that lost an agent cannot know whether it is on its way to another intermediate, or back
# after a break of its network: an agent notices silence within 3 s and attaches elsewhere within as many. An
# agent that is really gone costs its service connections this long.
PEER_LOST_PATIENCE_S = 10.0


class ConnectorSessions(SessionBook):
    """Accepts what intermediates offer, within bounds, and drops what no agent takes up."""

    def handle_offered(
        self, intermediate_id: str, session_id: bytes, agent: Peer, channel: int, now: float
    ) -> None:
        """Start a session for an agent, or give an existing one another channel."""
        record = self._sessions.get(session_id)
        if record is None:
            if len(self._sessions) >= MAX_SESSIONS:
                # The intermediate forgets the agent's former session for this one, and judges it no more.
                self._supersede(intermediate_id, agent, now)
                self._effects.append(ReportClosed(intermediate_id, session_id, "too_many_sessions"))
                return
            record = self._start(intermediate_id, session_id, agent, now)
        elif record.peer != agent or record.state is SessionState.CLOSING:
            self._effects.append(ReportClosed(intermediate_id, session_id, "unknown_session"))
            return
        self._bind(record, intermediate_id, channel)

    def _handle_uncarried(self, record: SessionRecord, code: str, now: float) -> None:
        if code == "peer_lost" and record.state is SessionState.ESTABLISHED:
            self._ask_peer(record, PEER_LOST_PATIENCE_S, now)
        else:
            super()._handle_uncarried(record, code, now)
