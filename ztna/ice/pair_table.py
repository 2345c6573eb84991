"""The pairs of one checklist: formed from both sides' candidates, pruned, bounded and put in order.

A server-reflexive local candidate stands for its base (RFC 8445 §6.1.2.4), so of all local candidates of one
base a remote one is paired with the best. Candidates may come at any time and in any order (RFC 8838 §6).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ztna.address import TransportAddress
from ztna.ice.candidate import Candidate, CandidateType
from ztna.ice.pair import MAX_PAIRS, CheckedPair, PairKey, PairState, destination_of, may_pair

MAX_CANDIDATES: Final = 32
"""Per side, as in signaling (docs/wire.md §4); further ones are dropped and counted."""

MAX_PEER_REFLEXIVE: Final = 32
"""Sources of the peer that nobody told us of. A NAT that maps every destination anew shows one per address of
ours, and one more whenever it reboots; further ones are answered and not checked."""

_KEPT: Final = frozenset({PairState.IN_PROGRESS, PairState.SUCCEEDED})


class PairTable:
    """Candidates and pairs of one generation.

    Attributes:
        triggered: pairs whose turn is next, in the order in which the peer was heard (RFC 8445 §6.1.4.1).
        refused: candidates and pairs that did not fit.
    """

    def __init__(self, *, is_controlling: bool) -> None:
        self._is_controlling = is_controlling
        self._local: dict[tuple[TransportAddress, TransportAddress], Candidate] = {}
        self._remote: dict[TransportAddress, Candidate] = {}
        self._pairs: dict[PairKey, CheckedPair] = {}
        self._ordered: list[CheckedPair] | None = None
        self._learned = 0
        self._names = 0
        self.triggered: dict[PairKey, CheckedPair] = {}
        self.refused = 0

    @property
    def pairs(self) -> list[CheckedPair]:
        """All pairs, highest priority first; of equal ones the older."""
        if self._ordered is None:
            self._ordered = sorted(self._pairs.values(), key=lambda pair: -pair.priority)
        return self._ordered

    @property
    def has_common_family(self) -> bool:
        """Whether both sides have addresses of one family, or one of them has none at all."""
        ours = {candidate.address.family for candidate in self._local.values()}
        theirs = {address.family for address in self._remote}
        return not ours or not theirs or not ours.isdisjoint(theirs)

    def holds(self, pair: CheckedPair) -> bool:
        """Whether a pair is still part of this table."""
        return self._pairs.get(pair.key) is pair

    def add_local(self, candidates: Iterable[Candidate]) -> None:
        """Pair more candidates of ours; known ones are harmless."""
        added = []
        for candidate in candidates:
            place = (candidate.base, candidate.address)
            if candidate.type is CandidateType.RELAY or place in self._local:
                continue
            if len(self._local) >= MAX_CANDIDATES:
                self.refused += 1
                continue
            self._local[place] = candidate
            added.append(candidate)
        self._form((local, remote) for local in added for remote in self._remote.values())

    def add_remote(self, candidates: Iterable[Candidate]) -> None:
        """Pair more candidates of the peer; one that was learned before gets what is told of it now."""
        added = []
        for candidate in candidates:
            known = self._remote.get(candidate.address)
            if candidate.type is CandidateType.RELAY:
                continue
            if known is None:
                if len(self._remote) - self._learned >= MAX_CANDIDATES:
                    self.refused += 1
                    continue
                self._remote[candidate.address] = candidate
                added.append(candidate)
            elif known.type is CandidateType.PEER_REFLEXIVE:
                self._rename(candidate)
        self._form((local, remote) for remote in added for local in self._local.values())

    def find(self, source: TransportAddress, local_host: str) -> CheckedPair | None:
        """The pair that a datagram from `source` to `local_host` (empty: unknown) belongs to."""
        for pair in self.pairs:
            if pair.destination == source and local_host in {"", pair.local.base.host}:
                return pair
        return None

    def learn(self, source: TransportAddress, local_host: str, priority: int) -> CheckedPair | None:
        """The pair that a check of the peer belongs to; its source may be news (RFC 8445 §7.3.1.3, §7.3.1.4).

        None if there is no base to answer a check from, or no room.
        """
        known = self.find(source, local_host)
        if known is not None:
            return known
        local = self.base_for(source, local_host)
        if local is None:
            return None
        remote = self._remote.get(source)
        if remote is None:
            if self._learned >= MAX_PEER_REFLEXIVE:
                self.refused += 1
                return None
            self._learned += 1
            self._names += 1
            name = f"prflx{self._names}"
            remote = Candidate(CandidateType.PEER_REFLEXIVE, source, source, priority, name)
            self._remote[source] = remote
        return self._insert(local, remote)

    def base_for(self, source: TransportAddress, local_host: str) -> Candidate | None:
        """The best of our candidates whose base is `local_host`, or any if that is unknown."""
        probe = Candidate(CandidateType.PEER_REFLEXIVE, source, source, 1, "")
        found = [
            candidate
            for candidate in self._local.values()
            if local_host in {"", candidate.base.host} and may_pair(candidate, probe)
        ]
        return max(found, key=lambda candidate: candidate.priority, default=None)

    def local_seen_as(self, pair: CheckedPair, mapped: TransportAddress) -> Candidate:
        """Our candidate whose address the peer sees; it may be peer-reflexive (RFC 8445 §7.2.5.3.1)."""
        known = self._local.get((pair.local.base, mapped))
        if known is not None:
            return known
        return Candidate(
            CandidateType.PEER_REFLEXIVE,
            mapped,
            pair.local.base,
            pair.check_priority,
            f"p{pair.local.foundation}"[:32],
            pair.local.base,
        )

    def switch_role(self, *, is_controlling: bool) -> None:
        """Rank every pair anew (RFC 8445 §7.3.1.1)."""
        self._is_controlling = is_controlling
        for pair in self._pairs.values():
            pair.rank(is_controlling=is_controlling)
        self._ordered = None

    def trigger(self, pair: CheckedPair) -> None:
        """Make it the turn of a pair, after those that were triggered before."""
        if pair.state is not PairState.WAITING:
            pair.enter(PairState.WAITING)
        self.triggered[pair.key] = pair

    def unfreeze(self, foundation: tuple[str, str]) -> None:
        """Let every pair of a foundation wait for its turn: one of them succeeded (RFC 8445 §7.2.5.3.3)."""
        for pair in self._pairs.values():
            if pair.state is PairState.FROZEN and pair.foundation == foundation:
                pair.enter(PairState.WAITING)

    def next_ordinary(self, above: int) -> CheckedPair | None:
        """Whose turn it is among pairs of a priority above `above` (RFC 8445 §6.1.4.2).

        The first that waits; if none does, the first frozen one of whose foundation nothing is checked.
        """
        frozen = []
        for pair in self.pairs:
            if pair.priority <= above:
                break
            if pair.state is PairState.WAITING:
                return pair
            if pair.state is PairState.FROZEN:
                frozen.append(pair)
        if not frozen:
            return None
        busy = {pair.foundation for pair in self._pairs.values() if pair.state is PairState.IN_PROGRESS}
        return next((pair for pair in frozen if pair.foundation not in busy), None)

    def _rename(self, candidate: Candidate) -> None:
        """Give a learned candidate of the peer its proper type, priority and foundation (RFC 8838 §11)."""
        self._remote[candidate.address] = candidate
        self._learned -= 1
        for pair in self._pairs.values():
            if pair.remote.address == candidate.address:
                pair.remote = candidate
                pair.rank(is_controlling=self._is_controlling)
        self._ordered = None

    def _form(self, ends: Iterable[tuple[Candidate, Candidate]]) -> None:
        """Insert pairs, the best first: of its foundation it alone starts waiting (RFC 8445 §6.1.2.6)."""
        usable = [(local, remote) for local, remote in ends if may_pair(local, remote)]
        fresh = [self._draft(local, remote) for local, remote in usable]
        for pair in sorted(fresh, key=lambda pair: -pair.priority):
            self._insert(pair.local, pair.remote)

    def _draft(self, local: Candidate, remote: Candidate) -> CheckedPair:
        pair = CheckedPair(local, remote, destination_of(local, remote), 0)
        pair.rank(is_controlling=self._is_controlling)
        return pair

    def _insert(self, local: Candidate, remote: Candidate) -> CheckedPair | None:
        """Insert one pair unless it is redundant; None if it does not fit."""
        fresh = self._draft(local, remote)
        known = self._pairs.get(fresh.key)
        if known is not None:
            if fresh.priority > known.priority:
                known.local = local
                known.rank(is_controlling=self._is_controlling)
                self._ordered = None
            return known
        if len(self._pairs) >= MAX_PAIRS and not self._make_room(fresh):
            self.refused += 1
            return None
        if self._starts_waiting(fresh.foundation):
            fresh.enter(PairState.WAITING)
        self._pairs[fresh.key] = fresh
        self._ordered = None
        return fresh

    def _starts_waiting(self, foundation: tuple[str, str]) -> bool:
        """RFC 8838 §12: another pair of the foundation succeeded, or none is on its way."""
        states = {pair.state for pair in self._pairs.values() if pair.foundation == foundation}
        return PairState.SUCCEEDED in states or states <= {PairState.FAILED}

    def _make_room(self, fresh: CheckedPair) -> bool:
        """Drop the failed pair of lowest priority, or the lowest that still waits if it is below `fresh`."""
        idle = [pair for pair in reversed(self.pairs) if pair.state not in _KEPT]
        victim = next((pair for pair in idle if pair.state is PairState.FAILED), None)
        if victim is None and idle and idle[0].priority < fresh.priority:
            victim = idle[0]
        if victim is None:
            return False
        del self._pairs[victim.key]
        self.triggered.pop(victim.key, None)
        self._ordered = None
        return True
