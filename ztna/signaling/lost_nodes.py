"""Nodes that were lost, and whose certificates are judged as long as a session of theirs may live on.

Nodes are told apart by name and key. One that attaches again with the same key is judged by what it shows
then, and one that said goodbye has no session. Who comes under the same name with another key may be another
process: the former one, whose key was stolen perhaps, is remembered for what it left behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ztna.access.identity import Role, VerifiedPeer
from ztna.signaling.lost_sessions import LOST_LIFETIME_S

MAX_LOST_NODES: Final = 10_000
"""Unless configured: as many as may be attached (`ztna.signaling.attachments.MAX_ATTACHMENTS`), 3 KB each."""

REMEMBERED_S: Final = LOST_LIFETIME_S
"""From the loss on."""


@dataclass(frozen=True, slots=True)
class LostNode:
    """One of them, until `until` (monotonic seconds)."""

    peer: VerifiedPeer
    until: float


class LostNodes:
    """All of them by role, name and key, the oldest first."""

    def __init__(self, max_nodes: int = MAX_LOST_NODES) -> None:
        self._max_nodes = max_nodes
        # A dict whose oldest entries went one by one is slow to find the next.
        self._nodes: OrderedDict[tuple[Role, str, bytes], LostNode] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def nodes(self) -> Sequence[LostNode]:
        """All of them, oldest first."""
        return tuple(self._nodes.values())

    def add(self, peer: VerifiedPeer, now: float) -> LostNode | None:
        """Remember a node, and return the one that there is no more room for: nobody will judge it."""
        self.forget(peer)
        oldest = self._oldest() if len(self._nodes) >= self._max_nodes else None
        if oldest is not None:
            self.forget(oldest.peer)
        self._nodes[_key(peer)] = LostNode(peer, now + REMEMBERED_S)
        return oldest

    def forget(self, peer: VerifiedPeer) -> None:
        """It attached again, or was sent away; harmless for one that is not remembered."""
        self._nodes.pop(_key(peer), None)

    def handle_timeout(self, now: float) -> None:
        """Forget those whose sessions are over by now."""
        while (oldest := self._oldest()) is not None and now >= oldest.until:
            self.forget(oldest.peer)

    def next_deadline(self) -> float | None:
        """When the oldest one is forgotten."""
        oldest = self._oldest()
        return None if oldest is None else oldest.until

    def _oldest(self) -> LostNode | None:
        return next(iter(self._nodes.values()), None)


def _key(peer: VerifiedPeer) -> tuple[Role, str, bytes]:
    return (peer.identity.role, peer.identity.id, peer.fingerprint)
