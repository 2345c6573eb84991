"""The sessions of one node: what agent and connector have in common.

A session is carried by the intermediates on whose legs it has a channel. A channel belongs to one attachment:
it is void once the node attaches there anew, or leaves. A session ends when its end-to-end connection ends;
when an intermediate says that it is over and no other intermediate carries it; when it does not come up in
time; or when the node has been without any intermediate for `max_offline_s`, since nobody could have revoked
it in that time. A session that merely has no channel waits for one.

An intermediate that lost the peer cannot know whether it is dead, or merely cut off from there. Where there
is a direct path the peer itself is asked, and its consent (RFC 7675) keeps the session.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from ztna.session.effects import (
    BindChannel,
    CloseSession,
    ConfirmPeer,
    ForgetSession,
    KeepResumable,
    LimitAccess,
    Peer,
    ReleaseChannel,
    ReportClosed,
    SessionEffect,
    StartSession,
)

# Codes by which an intermediate says that the session itself is over, not merely its view of the peer.
FINAL_CODES = frozenset({"access_denied", "peer_closed", "peer_rejected"})

# An agent starts its handshake as soon as it is told of the session; one that has not finished by then
# (several retransmissions at 300 ms round trip) has no peer, or no path.
HANDSHAKE_LIMIT_S = 15.0

# For the answer to a check on the direct path, which is sent at 0, 100, 300 and 700 ms: with less patience a
# few lost packets would cost the session, with more the clients of a dead peer would hang.
VOUCH_LIMIT_S = 3.0

# How long consent holds that the peer gave (RFC 7675 §5.1); `ztna.ice.timing.CONSENT_LIMIT_S`.
CONSENT_S = 30.0

# A session that only its direct path keeps is carried by no intermediate. The one that lost the peer has it
# in mind (`ztna.signaling.lost_sessions`), but may be out of reach itself: it goes on for no longer than a
# grant lasts (`ztna.access.grant.GRANT_LIFETIME_S`).
MAX_UNCARRIED_S = 600.0

# An end-to-end connection reports its end at once when told to close. If it says nothing it has crashed, and
# whatever was started for it is freed all the same.
CLOSE_LIMIT_S = 5.0


class SessionState(Enum):
    """Life of a session as its own node sees it."""

    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"


@dataclass(slots=True)
class SessionRecord:
    """One session; at `deadline` (monotonic seconds) its state has lasted too long."""

    session_id: bytes
    peer: Peer
    opened_at: float
    deadline: float | None
    state: SessionState = SessionState.OPENING
    channels: dict[str, int] = field(default_factory=dict)
    allowed: frozenset[str] | None = None  # services; None: whatever is granted
    grant: object | None = None
    consented_at: float = -math.inf  # the peer answered on a direct path
    lost_since: float | None = None  # the last intermediate to carry the session has lost the peer
    is_remembered: bool = False  # by that one, and perhaps by others, which are to be told of its end

    @property
    def is_carried(self) -> bool:
        """Whether something is known that carries it: a relay, or else a peer that answers directly."""
        if self.channels:
            return True
        return self.lost_since is not None and self.consented_at >= self.lost_since


class SessionBook:
    """Sessions of one node, without the wishes of an agent or the offers to a connector."""

    def __init__(self, intermediate_ids: Iterable[str], *, max_offline_s: float) -> None:
        self._intermediate_ids = tuple(intermediate_ids)
        self._max_offline_s = max_offline_s
        self._max_uncarried_s = min(max_offline_s, MAX_UNCARRIED_S)
        self._sessions: dict[bytes, SessionRecord] = {}
        self._attached: dict[str, bytes] = {}  # the latest last
        self._offline_since: float | None = None
        self._effects: list[SessionEffect] = []

    @property
    def sessions(self) -> list[SessionRecord]:
        """All sessions, oldest first; for status."""
        return list(self._sessions.values())

    def handle_attached(
        self, intermediate_id: str, attach_id: bytes, refused_sessions: list[bytes], now: float
    ) -> None:
        """Take note of an attachment and of the sessions that it could not resume; harmless when repeated."""
        if self._attached.get(intermediate_id) == attach_id:
            return
        self._attached.pop(intermediate_id, None)
        self._attached[intermediate_id] = attach_id
        self._offline_since = None
        # The leg has forgotten them too.
        for record in self._sessions.values():
            record.channels.pop(intermediate_id, None)
        for session_id in refused_sessions:
            self.handle_revoked(intermediate_id, session_id, "not_resumable", now)

    def handle_detached(
        self, intermediate_id: str, now: float, *, is_left: bool = False, is_expelled: bool = False
    ) -> None:
        """Take note that an attachment is lost; sessions live on.

        What proves them is handed out again, since whoever kept it may have lost it too. `is_left`: we left
        on purpose, with the leg. `is_expelled`: the intermediate refuses us, so the sessions that it alone
        carries will not come back, and whoever uses them should know at once.
        """
        if is_expelled:
            for session_id in list(self._sessions):
                if intermediate_id in self._sessions[session_id].channels:
                    self.handle_revoked(intermediate_id, session_id, "expelled", now)
        for record in self._sessions.values():
            if is_left:
                record.channels.pop(intermediate_id, None)
            if record.grant is not None:
                self._effects.append(KeepResumable(intermediate_id, record.session_id, record.grant))
        self._attached.pop(intermediate_id, None)
        if not self._attached and self._offline_since is None:
            self._offline_since = now

    def handle_rebound(
        self, intermediate_id: str, session_id: bytes, peer: Peer, channel: int, now: float
    ) -> None:
        """Use the fresh channel of a resumed session; a session that is not ours is reported as closed."""
        del now
        record = self._sessions.get(session_id)
        if record is None or record.peer != peer or record.state is SessionState.CLOSING:
            self._effects.append(ReportClosed(intermediate_id, session_id, "unknown_session"))
            return
        self._bind(record, intermediate_id, channel)

    def handle_revoked(self, intermediate_id: str, session_id: bytes, code: str, now: float) -> None:
        """End the session, unless another intermediate still carries it and the code allows that."""
        record = self._sessions.get(session_id)
        if record is None:
            return
        was_carried = record.channels.pop(intermediate_id, None) is not None
        if was_carried:
            self._effects.append(ReleaseChannel(intermediate_id, session_id))
            if code in FINAL_CODES:
                self._close(record, code, now)
        if not record.channels:
            self._handle_uncarried(record, code, now)
            if record.state is SessionState.CLOSING:
                record.is_remembered = False

    def handle_consent(self, session_id: bytes, now: float) -> None:
        """Take note that the peer has answered on a direct path."""
        record = self._sessions.get(session_id)
        if record is None:
            return
        record.consented_at = now
        if record.lost_since is not None and record.state is SessionState.ESTABLISHED:
            record.deadline = min(now + CONSENT_S, record.lost_since + self._max_uncarried_s)

    def handle_established(self, session_id: bytes, now: float) -> None:
        """Take note that the peer is proven and the session carries data."""
        del now
        record = self._sessions.get(session_id)
        if record is not None and record.state is SessionState.OPENING:
            record.state = SessionState.ESTABLISHED
            record.deadline = None
            if record.allowed is not None:
                self._effects.append(LimitAccess(session_id, record.allowed))

    def handle_access(
        self, intermediate_id: str, session_id: bytes, services: frozenset[str] | None, now: float
    ) -> None:
        """Take the word of an intermediate on what the session may carry; None: anything.

        It has to carry the session, unless none does since the peer was lost.
        """
        del now
        record = self._sessions.get(session_id)
        if record is None or record.allowed == services:
            return
        if intermediate_id not in record.channels and record.lost_since is None:
            return
        record.allowed = services
        if record.state is SessionState.ESTABLISHED:
            self._effects.append(LimitAccess(session_id, services))

    def handle_grant(self, session_id: bytes, grant: object) -> None:
        """Take note of a valid grant of the session: it proves both parties to any intermediate."""
        record = self._sessions.get(session_id)
        if record is not None:
            record.grant = grant
            self._keep_resumable(record)

    def handle_close_requested(self, session_id: bytes, reason: str, now: float) -> None:
        """Close a session because somebody asked for it."""
        record = self._sessions.get(session_id)
        if record is not None:
            self._close(record, reason, now)

    def handle_closed(self, session_id: bytes, reason: str, now: float) -> None:
        """Forget a session whose end-to-end connection ended."""
        del now
        self._forget(session_id, reason)

    def handle_timeout(self, now: float) -> None:
        """Close everything once offline for too long, and whatever lasted too long in a state."""
        if self._offline_since is not None and now >= self._offline_since + self._max_offline_s:
            for record in self._sessions.values():
                self._close(record, "max_offline", now)
        for record in list(self._sessions.values()):
            if record.deadline is not None and now >= record.deadline:
                self._expire(record, now)

    def next_deadline(self) -> float | None:
        """The earliest limit of a session, or of being offline while sessions live."""
        deadlines = [record.deadline for record in self._sessions.values() if record.deadline is not None]
        if self._offline_since is not None and any(
            record.state is not SessionState.CLOSING for record in self._sessions.values()
        ):
            deadlines.append(self._offline_since + self._max_offline_s)
        return min(deadlines, default=None)

    def drain(self) -> list[SessionEffect]:
        """Hand over what to do, in order."""
        effects, self._effects = self._effects, []
        return effects

    def _handle_uncarried(self, record: SessionRecord, code: str, now: float) -> None:
        """React to the end of the last intermediate's faith in a session."""
        is_direct = now < record.consented_at + CONSENT_S
        if code == "peer_lost" and record.state is SessionState.ESTABLISHED and is_direct:
            self._ask_peer(record, VOUCH_LIMIT_S, now)
        else:
            self._close(record, code, now)

    def _ask_peer(self, record: SessionRecord, limit_s: float, now: float) -> None:
        """Wait for a sign of life: a fresh channel, or an answer on a direct path."""
        if record.lost_since is None:
            record.lost_since = now
            record.is_remembered = True
            record.deadline = now + limit_s
            self._effects.append(ConfirmPeer(record.session_id))

    def _supersede(self, intermediate_id: str, peer: Peer, now: float) -> None:
        """Give up what the sessions with a peer have at an intermediate that gives us another one.

        Two parties hold one session: whoever gives us this one knows a former one no more, even if its word
        on that was lost; and one that nobody carries has lost its peer.
        """
        for former in self._sessions.values():
            if former.peer.id != peer.id:
                continue
            if former.channels.pop(intermediate_id, None) is not None:
                self._effects.append(ReleaseChannel(intermediate_id, former.session_id))
            if not former.channels:
                self._close(former, "superseded", now)

    def _start(self, intermediate_id: str, session_id: bytes, peer: Peer, now: float) -> SessionRecord:
        self._supersede(intermediate_id, peer, now)
        record = SessionRecord(session_id, peer, now, now + HANDSHAKE_LIMIT_S)
        self._sessions[session_id] = record
        self._effects.append(StartSession(session_id, peer))
        return record

    def _bind(self, record: SessionRecord, intermediate_id: str, channel: int) -> None:
        record.channels[intermediate_id] = channel
        record.lost_since = None
        record.is_remembered = False
        if record.state is SessionState.ESTABLISHED:
            record.deadline = None
        self._effects.append(BindChannel(intermediate_id, record.session_id, channel))

    def _close(self, record: SessionRecord, reason: str, now: float) -> None:
        if record.state is not SessionState.CLOSING:
            record.state = SessionState.CLOSING
            record.deadline = now + CLOSE_LIMIT_S
            self._effects.append(CloseSession(record.session_id, reason))

    def _expire(self, record: SessionRecord, now: float) -> None:
        if record.state is SessionState.CLOSING:
            self.handle_closed(record.session_id, "close_timeout", now)
        else:
            is_opening = record.state is SessionState.OPENING
            # They forget it in time; agents are lost by the hundred, and the frames of a node are counted.
            record.is_remembered = False
            self._close(record, "handshake_timeout" if is_opening else "peer_lost", now)

    def _forget(self, session_id: bytes, reason: str) -> SessionRecord | None:
        record = self._sessions.pop(session_id, None)
        if record is None:
            # One that outlived a crash of this table: its actors have nobody else to free them.
            self._effects.append(ForgetSession(session_id))
            return None
        for intermediate_id in record.channels:
            self._effects.append(ReleaseChannel(intermediate_id, session_id))
            if intermediate_id in self._attached:
                self._effects.append(ReportClosed(intermediate_id, session_id, reason))
        if record.is_remembered:
            self._effects.extend(ReportClosed(name, session_id, reason) for name in self._attached)
        record.grant = None
        self._keep_resumable(record)
        self._effects.append(ForgetSession(session_id))
        return record

    def _keep_resumable(self, record: SessionRecord) -> None:
        self._effects.extend(
            KeepResumable(name, record.session_id, record.grant) for name in self._intermediate_ids
        )
