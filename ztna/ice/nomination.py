"""Which pair both ends use: proven by a padded check, nominated by the controlling side (RFC 8445 §8).

The controlling side nominates the first pair that succeeds, by one more check that carries USE-CANDIDATE and
is padded at once: its answer says in one round trip that the peer knows and that full datagrams pass. A pair
of higher priority that succeeds within `NOMINATION_SETTLE_S` takes its place the same way. One padded check
is under way at a time, so the last nomination is the one that holds.

The controlled side proves the first pair that succeeds without being asked, as that is most likely the one to
be nominated, and every pair that is. Of proven pairs it follows the latest nomination. A nomination is told
by its transaction: a retransmission is none. A proof holds for as long as consent does; then a nomination has
it repeated, or a peer could send us back to an address that it has left to somebody else (RFC 7675).

Departures from RFC 8445 §8.1.1: a nomination is followed by another one without a restart, and both sides
hold back a nominated pair that is not proven.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ztna.ice.pair import CheckedPair, PairState, Proof
from ztna.ice.timing import CONSENT_LIMIT_S, NOMINATION_SETTLE_S
from ztna.stun.transaction import SendSchedule

PADDED_CHECK: Final = SendSchedule((0, 0.1, 0.3, 0.7, 1.5), 2.5)
"""Of a pair that has just answered: at a loss of 10 % each way one in 4,000 would get lost five times, so
silence means that they are too long; 2.5 s leave another pair as much before the direct path is given up."""

MAX_PROOFS: Final = 3
"""Padded checks of one pair: an answer after 2.5 s begs for another try, but not for ever."""

MAX_NOMINATIONS: Final = 64
"""Of the peer, per generation. An honest one nominates better pairs only, within `NOMINATION_SETTLE_S`; each
moves the session and is a line in the log."""


class Nomination:
    """The choice of one generation.

    Attributes:
        selected: the pair in use; None before the first.
        is_controlling: whether this end nominates.
    """

    def __init__(self, *, is_controlling: bool) -> None:
        self.is_controlling = is_controlling
        self.selected: CheckedPair | None = None
        self._settled_at: float | None = None
        self._nominations: set[bytes] = set()  # of the peer, by transaction

    @property
    def floor(self) -> int:
        """Pairs of no higher priority need no check any more."""
        return -1 if self.selected is None else self.selected.priority

    def is_wanted(self, pair: CheckedPair) -> bool:
        """Whether a check of this pair may still change the choice."""
        return pair.priority > self.floor or (
            not self.is_controlling and self._is_followed(pair) and pair is not self.selected
        )

    def next_proof(self, pairs: Iterable[CheckedPair], now: float) -> CheckedPair | None:
        """The pair to send a padded check on, if it is time for one; `pairs` come highest priority first."""
        tried = [pair for pair in pairs if pair.proof is Proof.PENDING]
        succeeded = [pair for pair in pairs if pair.state is PairState.SUCCEEDED and pair.proofs < MAX_PROOFS]
        if self.is_controlling:
            if tried or (self._settled_at is not None and now >= self._settled_at):
                return None
            return next((pair for pair in succeeded if pair.priority > self.floor), None)
        unproven = [pair for pair in succeeded if pair.proof in {Proof.NONE, Proof.FAILED}]
        followed = [pair for pair in unproven if self._is_followed(pair)]
        if followed:
            return max(followed, key=lambda pair: pair.nomination)
        if self.selected is None and not tried and all(pair.proof is not Proof.PASSED for pair in pairs):
            return next(iter(unproven), None)
        return None

    def handle_proof(self, pair: CheckedPair, now: float, *, is_nominating: bool) -> bool:
        """A padded check was answered; it carried USE-CANDIDATE if `is_nominating`. True: use this pair."""
        pair.proof = Proof.PASSED
        pair.proven_at = now
        if self.is_controlling:
            is_better = is_nominating and pair.priority > self.floor
        else:
            is_better = self._is_followed(pair) and pair is not self.selected
        return is_better and self._select(pair, now)

    def handle_nominated(self, pair: CheckedPair, transaction_id: bytes, now: float) -> bool:
        """The peer nominates a pair. True: use it; False: it is not proven yet, or this is no news."""
        is_news = transaction_id not in self._nominations and len(self._nominations) < MAX_NOMINATIONS
        if self.is_controlling or not is_news:
            return False
        self._nominations.add(transaction_id)
        pair.nomination = len(self._nominations)
        if pair is self.selected:
            return False
        if pair.proof is Proof.PASSED and now >= pair.proven_at + CONSENT_LIMIT_S:
            pair.proof = Proof.NONE
        return pair.proof is Proof.PASSED and pair.state is PairState.SUCCEEDED and self._select(pair, now)

    def _is_followed(self, pair: CheckedPair) -> bool:
        """Whether the peer nominated this pair after the one in use."""
        return pair.nomination > (0 if self.selected is None else self.selected.nomination)

    def _select(self, pair: CheckedPair, now: float) -> bool:
        self.selected = pair
        if self._settled_at is None:
            self._settled_at = now + NOMINATION_SETTLE_S
        return True
