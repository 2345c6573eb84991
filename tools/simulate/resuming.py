"""What resuming a session goes through: no machine with states, but ways through functions that are watched.

At the intermediate a node brings sessions along, and each is taken up, made anew or refused; at the node
that brought it a session gets its fresh channel, or hears that it is over, which a direct path may survive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, Final

from ztna.session import book
from ztna.session.effects import ReportClosed
from ztna.signaling import sessions
from ztna.signaling.values import Code, Party

REFUSALS: Final = (
    Code.ACCESS_DENIED,
    Code.PEER_CLOSED,
    Code.SESSION_NOT_FOUND,
    Code.NOT_A_PARTY,
    Code.RATE_LIMITED,
    Code.INVALID_MESSAGE,
)
STEPS: Final = (
    "announced known",
    "announced made_anew",
    "announced waits",
    "held not_announced",
    *(f"announced refused_{code.value}" for code in REFUSALS),
    "rebound bound",
    "rebound not_ours",
    "told_over lives_on",
    "told_over closed",
)

Count = Callable[[str], None]


def watch(count: Count) -> None:
    """Have each step counted from now on, in this process."""
    _watch_intermediate(count)
    _watch_node(count)


def _watch_intermediate(count: Count) -> None:
    owner = sessions.SessionManager
    resume, refuse, end_all_but = owner._resume, owner._refuse_resume, owner._end_all_but  # noqa: SLF001

    @wraps(resume)
    def watched_resume(self: sessions.SessionManager, attach_id: bytes, *rest: Any) -> Any:
        before = set(self._sessions)
        session = resume(self, attach_id, *rest)
        if session is not None:
            count("announced known" if session.session_id in before else "announced made_anew")
            if len(session.attachments) < len(session.parties):
                count("announced waits")
        return session

    @wraps(refuse)
    def watched_refuse(
        self: sessions.SessionManager, attach_id: bytes, session_id: bytes, code: Code, message: str
    ) -> None:
        count(f"announced refused_{code.value}")
        refuse(self, attach_id, session_id, code, message)

    @wraps(end_all_but)
    def watched_end(self: sessions.SessionManager, kept: Collection[bytes], party: Party, now: float) -> None:
        before = len(self._sessions)
        end_all_but(self, kept, party, now)
        if len(self._sessions) < before:
            count("held not_announced")

    for name, watched in (
        ("_resume", watched_resume),
        ("_refuse_resume", watched_refuse),
        ("_end_all_but", watched_end),
    ):
        setattr(owner, name, watched)


def _watch_node(count: Count) -> None:
    owner = book.SessionBook
    rebound, revoked = owner.handle_rebound, owner.handle_revoked

    @wraps(rebound)
    def watched_rebound(self: book.SessionBook, intermediate_id: str, session_id: bytes, *rest: Any) -> None:
        before = len(self._effects)
        rebound(self, intermediate_id, session_id, *rest)
        is_ours = not any(isinstance(each, ReportClosed) for each in self._effects[before:])
        count("rebound bound" if is_ours else "rebound not_ours")

    @wraps(revoked)
    def watched_revoked(
        self: book.SessionBook, intermediate_id: str, session_id: bytes, code: str, now: float
    ) -> None:
        record = self._sessions.get(session_id)
        is_alive = record is not None and record.state is not book.SessionState.CLOSING
        revoked(self, intermediate_id, session_id, code, now)
        if is_alive:
            record = self._sessions.get(session_id)
            is_over = record is None or record.state is book.SessionState.CLOSING
            count("told_over closed" if is_over else "told_over lives_on")

    for name, watched in (("handle_rebound", watched_rebound), ("handle_revoked", watched_revoked)):
        setattr(owner, name, watched)
