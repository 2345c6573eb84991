"""Verifies the grants of nodes that attach with sessions, a few at a time, so that packets never wait long.

A node may bring thousands of sessions, and thousands of nodes may come at once after a restart of the
intermediate. Their grants are verified at a limited rate, nodes in turn; the rate leaves the loop at least
half of its time whoever sends whatever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.grant_opener import GrantOpener
from ztna.access.grant import GrantClaims
from ztna.errors import AccessDenied, AuthenticationError, RemoteProtocolError
from ztna.signaling.values import Party
from ztna.token_bucket import TokenBucket
from ztna.v1 import signaling_pb2

GRANTS_PER_SLICE = 32
"""Verified at once: 5 ms of signatures and as much again for the sessions that they bring back."""

GRANTS_PER_SECOND = 1600.0
"""Half of one core, of which a third is signatures."""

ISSUER_COST = 10.0
"""Grants whose verification costs as much as that of an issuer's chain."""

MIN_PAUSE_S = 0.001
"""Between two slices, however little is missing: figures are rounded, and time has to pass."""

MAX_ISSUERS_PER_NODE = 16
"""Issuers that one node may make us judge at an attachment: it met that many intermediates within the life of
a grant and `access.max_offline_s`."""

MAX_FORGED_PER_NODE = 16
"""Signatures that do not fit. One is enough to know that the node is no honest one; the rest of what it shows
is refused unseen."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of some of a node's sessions."""

    attach_id: bytes
    resumed: list[GrantClaims]
    rejected: list[tuple[bytes, str]]
    """Session id, and why."""


@dataclass(slots=True)
class _Node:
    attach_id: bytes
    party: Party
    waiting: deque[signaling_pb2.ResumeSession]
    issuers: int = 0
    forged: int = 0
    seen: set[bytes] = field(default_factory=set)


class Resumptions:
    """Nodes whose grants wait to be verified; times are monotonic seconds, `now_wall` unix seconds."""

    def __init__(self, opener: GrantOpener, max_waiting: int, now: float) -> None:
        """`max_waiting` bounds the grants of all nodes together; what a node shows beyond is refused."""
        self._opener = opener
        self._max_waiting = max_waiting
        self._bucket = TokenBucket(GRANTS_PER_SECOND, GRANTS_PER_SLICE, now)
        self._nodes: dict[bytes, _Node] = {}
        self._waiting = 0
        self._next_at: float | None = None

    def is_waiting(self, attach_id: bytes) -> bool:
        """Whether grants of this attachment are still to be verified."""
        return attach_id in self._nodes

    def add(
        self, attach_id: bytes, party: Party, resume: Iterable[signaling_pb2.ResumeSession]
    ) -> tuple[list[bytes], list[bytes]]:
        """Take in a node in place of its former attachment; returns the ids that wait, and those refused."""
        for former in [each for each in self._nodes.values() if each.party.name == party.name]:
            self.drop(former.attach_id)
        room = self._max_waiting - self._waiting
        node = _Node(attach_id, party, deque())
        refused: list[bytes] = []
        for each in resume:
            if each.session_id in node.seen:
                continue
            node.seen.add(each.session_id)
            if len(node.waiting) < room:
                node.waiting.append(each)
            else:
                refused.append(each.session_id)
        if node.waiting:
            self._nodes[attach_id] = node
            self._waiting += len(node.waiting)
        return [each.session_id for each in node.waiting], refused

    def drop(self, attach_id: bytes) -> None:
        """The node is gone."""
        node = self._nodes.pop(attach_id, None)
        if node is not None:
            self._waiting -= len(node.waiting)

    def proceed(self, now: float, now_wall: float) -> list[Verified]:
        """Verify what the rate allows now."""
        results: list[Verified] = []
        while self._nodes:
            node = next(iter(self._nodes.values()))
            before = len(node.waiting)
            result = self._verify_some(node, now, now_wall)
            self._waiting -= before - len(node.waiting)
            if not result.resumed and not result.rejected:
                break
            results.append(result)
            del self._nodes[node.attach_id]
            if node.waiting:
                self._nodes[node.attach_id] = node  # behind the others
        self._next_at = None
        if self._nodes:
            wanted = max(min(float(self._waiting), GRANTS_PER_SLICE), ISSUER_COST)
            self._next_at = now + max(self._bucket.seconds_until(now, wanted), MIN_PAUSE_S)
        return results

    def next_deadline(self) -> float | None:
        """When `proceed` may verify another slice."""
        return self._next_at

    def _verify_some(self, node: _Node, now: float, now_wall: float) -> Verified:
        result = Verified(node.attach_id, [], [])
        while node.waiting:
            each = node.waiting[0]
            if node.issuers > MAX_ISSUERS_PER_NODE or node.forged > MAX_FORGED_PER_NODE:
                result.rejected.extend(
                    (rest.session_id, "the node showed forged grants") for rest in node.waiting
                )
                node.waiting.clear()
                break
            is_known = self._opener.knows_issuer(each.grant, now_wall)
            if not self._bucket.take(now, 1.0 if is_known else ISSUER_COST):
                break
            node.waiting.popleft()
            node.issuers += not is_known
            self._verify(node, each, now_wall, result)
        return result

    def _verify(
        self, node: _Node, each: signaling_pb2.ResumeSession, now_wall: float, result: Verified
    ) -> None:
        try:
            claims = self._opener.open(each.grant, now_wall)
        except (RemoteProtocolError, AuthenticationError, AccessDenied) as error:
            node.forged += isinstance(error, AccessDenied)
            result.rejected.append((each.session_id, str(error)))
            return
        if claims.session_id == each.session_id:
            result.resumed.append(claims)
        else:
            result.rejected.append((each.session_id, "the grant is for another session"))
