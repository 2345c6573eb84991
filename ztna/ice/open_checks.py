"""Checks that were sent: their retransmissions, their answers, and what came of them (RFC 8445 §7.2.5).

A check that times out, or that a triggered one replaces, is sent no more, and its answer still counts: the
pair works, whichever of its checks proved it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.ice.checklist_effects import SendCheck
from ztna.ice.pair import MAX_PAIRS, CheckedPair
from ztna.stun.message import Message
from ztna.stun.transaction import SendSchedule, Transaction, TransactionFailed, TransactionSucceeded

MAX_OPEN_CHECKS: Final = 4 * MAX_PAIRS
"""Answers that are waited for. A pair has one ordinary and one padded check under way, and is checked anew
only after the peer was heard on it; beyond this the oldest that are not sent any more are forgotten."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenCheck:
    """One check.

    Attributes:
        is_padded: as long as the largest datagram that the path shall carry.
        uses_candidate: nominates the pair.
        is_controlling: our role when it was sent.
    """

    pair: CheckedPair
    transaction: Transaction
    pwd: str
    is_padded: bool
    uses_candidate: bool
    is_controlling: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a check.

    Attributes:
        is_current: it was still being sent; a failure counts only then.
    """

    check: OpenCheck
    result: TransactionSucceeded | TransactionFailed
    is_current: bool


class OpenChecks:
    """The checks of one generation that may still be answered."""

    def __init__(self) -> None:
        self._all: dict[bytes, OpenCheck] = {}
        self._pending: dict[bytes, OpenCheck] = {}

    def __len__(self) -> int:
        return len(self._all)

    def start(
        self,
        pair: CheckedPair,
        transaction_id: bytes,
        data: bytes,
        pwd: str,
        schedule: SendSchedule,
        now: float,
        *,
        is_padded: bool,
        uses_candidate: bool,
        is_controlling: bool,
    ) -> list[SendCheck]:
        """Send a check for the first time; `pwd` is the peer's, which seals request and answer."""
        request = Transmit(data, pair.destination, pair.local.base.host)
        transaction = Transaction(request, transaction_id, schedule, key=pwd.encode())
        transaction.start(now)
        check = OpenCheck(pair, transaction, pwd, is_padded, uses_candidate, is_controlling)
        if len(self._all) >= MAX_OPEN_CHECKS:
            del self._all[next(known for known in self._all if known not in self._pending)]
        self._all[transaction_id] = self._pending[transaction_id] = check
        return self._collect(check)[0]

    def handle_response(self, message: Message, source: TransportAddress, now: float) -> Outcome | None:
        """Take a response; None if it answers nothing, is not authentic, or came from elsewhere."""
        check = self._all.get(message.transaction_id)
        if check is None or not check.transaction.handle_response(message, source, now):
            return None
        del self._all[message.transaction_id]
        is_current = self._pending.pop(message.transaction_id, None) is not None
        results = self._collect(check)[1]
        return Outcome(check, results[0], is_current) if results else None

    def handle_timeout(self, now: float) -> tuple[list[SendCheck], list[Outcome]]:
        """Send again, or give up, what is due."""
        sends: list[SendCheck] = []
        outcomes: list[Outcome] = []
        for transaction_id, check in list(self._pending.items()):
            deadline = check.transaction.next_deadline()
            if deadline is None or deadline > now:
                continue
            check.transaction.handle_timeout(now)
            more, results = self._collect(check)
            sends += more
            for result in results:
                del self._pending[transaction_id]
                outcomes.append(Outcome(check, result, is_current=True))
        return sends, outcomes

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the next retransmission or time-out."""
        deadlines = [check.transaction.next_deadline() for check in self._pending.values()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def supersede(self, pair: CheckedPair) -> None:
        """Send the ordinary check of a pair no more."""
        for transaction_id, check in list(self._pending.items()):
            if check.pair is pair and not check.is_padded:
                del self._pending[transaction_id]

    @staticmethod
    def _collect(check: OpenCheck) -> tuple[list[SendCheck], list[TransactionSucceeded | TransactionFailed]]:
        sends: list[SendCheck] = []
        results: list[TransactionSucceeded | TransactionFailed] = []
        for effect in check.transaction.drain():
            if isinstance(effect, Transmit):
                check.pair.checks_sent += 1
                sends.append(SendCheck(effect, check.transaction.transaction_id, check.pwd))
            else:
                results.append(effect)
        return sends, results
