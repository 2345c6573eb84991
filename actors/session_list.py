"""The sessions of an agent or a connector, as its status shows them.

Sessions are listed from the moment they are granted or offered. News of a session that is not listed is
ignored: messages of several actors may arrive behind the session's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from actors.direct_path_status import DirectPathRecord
from ztna.v1 import control_pb2, path_manager_pb2, quic_session_pb2, types_pb2

OPENING_LIMIT_S: Final = 60.0
"""A session that neither stands nor ended by then never got actors of its own (its grant was not acceptable):
the handshake gives up long before."""

MAX_SESSIONS: Final = 16_384
"""Sessions remembered. An agent has one per connector; a connector one per agent, and an intermediate takes
10,000 nodes by default. Beyond it, new ones are not listed."""

MAX_SERVICES_PER_SESSION: Final = 256
"""As many as one connector may register by default; further ones are not listed."""

_PATHS: Final = {types_pb2.PATH_KIND_RELAY: "relay", types_pb2.PATH_KIND_DIRECT: "direct"}


@dataclass(slots=True)
class _Session:
    opened_at: float
    peer_id: str
    pathless_since: float | None
    is_established: bool = False
    path: str = "none"
    via: str = ""
    open_streams: int = 0
    services: dict[str, None] = field(default_factory=dict)
    statistics: quic_session_pb2.SessionStatistics = field(default_factory=quic_session_pb2.SessionStatistics)
    direct_path: DirectPathRecord = field(default_factory=DirectPathRecord)


class SessionList:
    """Keeps one record per session, oldest first. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: bytes) -> bool:
        return session_id in self._sessions

    def ids(self) -> list[bytes]:
        """All of them, oldest first."""
        return list(self._sessions)

    def open(self, session_id: bytes, peer_id: str, now: float) -> None:
        """A session begins; nothing changes when it is listed already."""
        if session_id not in self._sessions and len(self._sessions) < MAX_SESSIONS:
            self._sessions[session_id] = _Session(now, peer_id, now)

    def carry(self, session_id: bytes, service: str) -> None:
        """A session is used for a service."""
        session = self._sessions.get(session_id)
        if session is not None and len(session.services) < MAX_SERVICES_PER_SESSION:
            session.services[service] = None

    def count_streams(self, session_id: bytes, change: int) -> None:
        """A TCP connection was opened (1) or ended (-1)."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.open_streams = max(0, session.open_streams + change)

    def select_path(self, selected: path_manager_pb2.PathSelected, now: float) -> None:
        """A session's packets go this way."""
        session = self._sessions.get(selected.session_id)
        if session is None:
            return
        session.path = _PATHS.get(selected.kind, "none")
        session.via = selected.intermediate_id
        session.direct_path.selected(selected)
        if session.path != "none":
            session.pathless_since = None
        elif session.pathless_since is None:
            session.pathless_since = now

    def direct_path_of(self, session_id: bytes) -> DirectPathRecord | None:
        """What is kept of the search for a direct path; None of a session that is not listed."""
        session = self._sessions.get(session_id)
        return None if session is None else session.direct_path

    def establish(self, session_id: bytes, peer_id: str, now: float) -> None:
        """The handshake is complete."""
        self.open(session_id, peer_id, now)
        session = self._sessions.get(session_id)
        if session is not None:
            session.is_established = True

    def direct(self) -> int:
        """How many sessions a direct path carries."""
        return sum(session.path == "direct" for session in self._sessions.values())

    def round_trips_ms(self) -> dict[str, list[float]]:
        """Round-trip times by kind of path, of every path of every session that was measured."""
        found: dict[str, list[float]] = {}
        for session in self._sessions.values():
            for kind, rtt_ms in session.direct_path.round_trips_ms():
                found.setdefault(_PATHS[kind], []).append(rtt_ms)
        return found

    def measure(self, statistics: quic_session_pb2.SessionStatistics) -> quic_session_pb2.SessionStatistics:
        """Take a session's totals; returns those before, empty ones of a session that is not listed."""
        session = self._sessions.get(statistics.session_id)
        if session is None:
            return statistics
        former, session.statistics = session.statistics, statistics
        return former

    def close(self, session_id: bytes) -> str:
        """A session is over; returns its peer's id, or nothing."""
        session = self._sessions.pop(session_id, None)
        return session.peer_id if session else ""

    def forget_stale(self, now: float) -> None:
        """Forget what was announced and never came."""
        for session_id, session in list(self._sessions.items()):
            if not session.is_established and now - session.opened_at >= OPENING_LIMIT_S:
                del self._sessions[session_id]

    def newest_first(self, now: float, limit: int) -> Iterator[control_pb2.SessionStatus]:
        """At most `limit` sessions, as of `now`."""
        for session_id, session in islice(reversed(self._sessions.items()), limit):
            yield _status(session_id, session, now)


def _status(session_id: bytes, session: _Session, now: float) -> control_pb2.SessionStatus:
    statistics = session.statistics
    status = control_pb2.SessionStatus(
        session_id=session_id,
        peer_id=session.peer_id,
        state="established" if session.is_established else "opening",
        path=session.path,
        via=session.via,
        path_reason=session.direct_path.why(),
        rtt_ms=statistics.rtt_ms,
        bytes_sent=statistics.bytes_sent,
        bytes_received=statistics.bytes_received,
        packets_lost=statistics.packets_lost,
        open_streams=session.open_streams,
        age_s=now - session.opened_at,
        services=session.services,
        outage_s=0.0 if session.pathless_since is None else now - session.pathless_since,
    )
    session.direct_path.fill(status.direct_path, statistics)
    return status
