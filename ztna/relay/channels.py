"""Who may send to whom through the relay: 16-bit channels, two per session, one per attachment.

A session joins attachment A and attachment B. On A's leg its packets carry A's channel, on B's leg B's, and
the table rewrites one into the other. A channel is a name on one leg only: the same number means another
session, or nothing, on any other leg, so a node can address nobody but the peers of its own sessions.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ztna.errors import LocalProtocolError
from ztna.relay.frame import MAX_CHANNEL

# Sessions of one node on one leg: a connector that serves 4096 agents at once. It leaves the 16-bit space
# sparse, so that a released channel can rest, and bounds one attachment's routes to about 2 MB.
MAX_CHANNELS_PER_ATTACHMENT = 4096
# Packets and announcements that still name a released channel are gone by then: twice the idle time-out of
# the legs that carry them.
CHANNEL_REST_S = 60.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a packet goes: this attachment's leg, under this channel."""

    attach_id: bytes
    channel: int
    session_id: bytes


@dataclass(frozen=True, slots=True)
class SessionTraffic:
    """What the table has passed for one session, by direction."""

    a_to_b_packets: int
    a_to_b_bytes: int
    b_to_a_packets: int
    b_to_a_bytes: int


@dataclass(slots=True)
class _End:
    attach_id: bytes
    channel: int
    packets: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class _Route:
    """One direction, as the packet path needs it: a single look-up, then two additions."""

    source: _End
    destination: Destination


@dataclass(slots=True)
class _Attachment:
    routes: dict[int, _Route] = field(default_factory=dict)
    next_fresh: int = 1
    resting: deque[tuple[float, int]] = field(default_factory=deque)

    def allocate(self, now: float) -> int:
        """Pick a rested channel, else one never used, else the one that has rested longest."""
        is_rested = bool(self.resting) and now - self.resting[0][0] >= CHANNEL_REST_S
        if is_rested or self.next_fresh > MAX_CHANNEL:
            return self.resting.popleft()[1]
        self.next_fresh += 1
        return self.next_fresh - 1

    def release(self, channel: int, now: float) -> None:
        del self.routes[channel]
        self.resting.append((now, channel))


class ChannelTable:
    """Channels and routes of all sessions of one relay. `now` is monotonic seconds.

    An attachment appears with its first session and is forgotten by `release_attachment`; its resting
    channels are remembered until then.

    Attributes:
        unknown_packets: packets whose channel was not bound on the leg they came from.
        refused_sessions: sessions not bound because an attachment had no channel left.
    """

    def __init__(self) -> None:
        self.unknown_packets = 0
        self.refused_sessions = 0
        self._attachments: dict[bytes, _Attachment] = {}
        self._sessions: dict[bytes, tuple[_End, _End]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def bind(self, session_id: bytes, a_attach: bytes, b_attach: bytes, now: float) -> tuple[int, int] | None:
        """Allocate the session's channels on both attachments and route between them.

        Returns None when either attachment holds MAX_CHANNELS_PER_ATTACHMENT already. Raises
        `LocalProtocolError` when the session is bound, or would join an attachment with itself.
        """
        if session_id in self._sessions or a_attach == b_attach:
            raise LocalProtocolError("a session joins two attachments, once")
        if self._is_full(a_attach) or self._is_full(b_attach):
            self.refused_sessions += 1
            return None
        a = _End(a_attach, self._attachment(a_attach).allocate(now))
        b = _End(b_attach, self._attachment(b_attach).allocate(now))
        self._sessions[session_id] = (a, b)
        self._route(session_id, a, b)
        return a.channel, b.channel

    def rebind(
        self, session_id: bytes, old_attach: bytes, new_attach: bytes, now: float
    ) -> tuple[int, int] | None:
        """Move the session's end from `old_attach` to `new_attach` under a new channel; the other end stays.

        Returns both channels as `bind` does, or None, changing nothing, when the new attachment is full. The
        counters go on. Raises `LocalProtocolError` unless the session is bound on `old_attach`.
        """
        a, b = self._ends(session_id)
        if old_attach not in {a.attach_id, b.attach_id} or new_attach in {a.attach_id, b.attach_id}:
            raise LocalProtocolError("only an attachment of the session can be replaced, by one that is not")
        if self._is_full(new_attach):
            self.refused_sessions += 1
            return None
        end = a if old_attach == a.attach_id else b
        self._attachments[old_attach].release(end.channel, now)
        end.attach_id, end.channel = new_attach, self._attachment(new_attach).allocate(now)
        self._route(session_id, a, b)
        return a.channel, b.channel

    def release(self, session_id: bytes, now: float) -> None:
        """Unbind both channels of the session; harmless when it is not bound."""
        for end in self._sessions.pop(session_id, ()):
            self._attachments[end.attach_id].release(end.channel, now)

    def release_attachment(self, attach_id: bytes, now: float) -> list[bytes]:
        """Forget an attachment and unbind its sessions; returns them, longest bound first."""
        attachment = self._attachments.get(attach_id)
        if attachment is None:
            return []
        session_ids = [route.destination.session_id for route in attachment.routes.values()]
        for session_id in session_ids:
            self.release(session_id, now)
        del self._attachments[attach_id]
        return session_ids

    def forward(self, attach_id: bytes, channel: int, size_bytes: int) -> Destination | None:
        """Look up where a packet of `size_bytes` goes that came under `channel`, and count it.

        None means drop: the channel was not issued to this attachment, or is no longer bound.
        """
        attachment = self._attachments.get(attach_id)
        route = attachment.routes.get(channel) if attachment is not None else None
        if route is None:
            self.unknown_packets += 1
            return None
        route.source.packets += 1
        route.source.size_bytes += size_bytes
        return route.destination

    def traffic(self, session_id: bytes) -> SessionTraffic:
        """Report the session's counters; raises `LocalProtocolError` when it is not bound."""
        a, b = self._ends(session_id)
        return SessionTraffic(a.packets, a.size_bytes, b.packets, b.size_bytes)

    def _is_full(self, attach_id: bytes) -> bool:
        attachment = self._attachments.get(attach_id)
        return attachment is not None and len(attachment.routes) >= MAX_CHANNELS_PER_ATTACHMENT

    def _attachment(self, attach_id: bytes) -> _Attachment:
        return self._attachments.setdefault(attach_id, _Attachment())

    def _ends(self, session_id: bytes) -> tuple[_End, _End]:
        ends = self._sessions.get(session_id)
        if ends is None:
            raise LocalProtocolError("the session is not bound")
        return ends

    def _route(self, session_id: bytes, a: _End, b: _End) -> None:
        for source, destination in ((a, b), (b, a)):
            self._attachments[source.attach_id].routes[source.channel] = _Route(
                source, Destination(destination.attach_id, destination.channel, session_id)
            )
