"""Nodes whose signaling broke, and whose certificates are judged as long as a session of theirs may live on.

A node that attaches again is judged by what it shows then; one that said goodbye has no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ztna.access.identity import Role, VerifiedPeer
from ztna.signaling.attachments import LINGER_LIMIT_S
from ztna.signaling.lost_sessions import LOST_LIFETIME_S

MAX_LOST_NODES: Final = 10_000
"""As many as may be attached (`ztna.signaling.attachments.MAX_ATTACHMENTS`), at 3 KB each."""

REMEMBERED_S: Final = LINGER_LIMIT_S + LOST_LIFETIME_S
"""From the break on: it may linger, and then be lost."""


@dataclass(frozen=True, slots=True)
class LostNode:
    """One of them, and where it was attached."""

    peer: VerifiedPeer
    attach_id: bytes
    until: float


class LostNodes:
    """All of them by role and name, the oldest first."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[Role, str], LostNode] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def nodes(self) -> Sequence[LostNode]:
        """All of them, oldest first."""
        return tuple(self._nodes.values())

    def add(self, peer: VerifiedPeer, attach_id: bytes, now: float) -> LostNode | None:
        """Remember a node, and return the one that there is no more room for: nobody will judge it."""
        self.forget(peer)
        oldest = next(iter(self._nodes.values())) if len(self._nodes) >= MAX_LOST_NODES else None
        if oldest is not None:
            self.forget(oldest.peer)
        self._nodes[_name(peer)] = LostNode(peer, attach_id, now + REMEMBERED_S)
        return oldest

    def forget(self, peer: VerifiedPeer) -> None:
        """It attached again, or was sent away; harmless for one that is not remembered."""
        self._nodes.pop(_name(peer), None)

    def handle_timeout(self, now: float) -> None:
        """Forget those whose sessions are over by now."""
        for node in self.nodes:
            if now < node.until:
                break  # the others are younger
            self.forget(node.peer)

    def next_deadline(self) -> float | None:
        """When the oldest one is forgotten."""
        oldest = next(iter(self._nodes.values()), None)
        return None if oldest is None else oldest.until


def _name(peer: VerifiedPeer) -> tuple[Role, str]:
    return (peer.identity.role, peer.identity.id)
