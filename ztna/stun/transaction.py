"""A STUN client transaction: one request, its retransmissions, one outcome (RFC 8489 §6.2.1, §6.3).

The owner calls `start`, transmits what `drain` hands over, feeds every parsed response to `handle_response`
and calls `handle_timeout` at `next_deadline`. Exactly one outcome is reported, with one exception: an answer
that arrives after the time-out is still reported, marked late. A check uses that to revive its pair; an owner
without such use forgets the transaction once it failed.

States: IDLE -start-> PENDING -response-> DONE, PENDING -deadline-> TIMED_OUT -late response-> DONE.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from typing import Final, Self

from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.errors import LocalProtocolError
from ztna.stun.attributes import ErrorCode
from ztna.stun.message import Message, MessageClass

# RFC 8489 asks for 7, the checks for 6; more would only feed a peer that has nothing to say.
MAX_SENDS: Final = 16


@dataclass(frozen=True, slots=True)
class SendSchedule:
    """When the request is sent, and when silence becomes failure; seconds after the start.

    Attributes:
        sends_s: strictly ascending, the first one 0, at most `MAX_SENDS`.
        failure_s: later than the last send.
    """

    sends_s: tuple[float, ...]
    failure_s: float

    def __post_init__(self) -> None:
        if not 0 < len(self.sends_s) <= MAX_SENDS or self.sends_s[0] != 0:
            raise LocalProtocolError(f"a schedule has 1 to {MAX_SENDS} sends, the first at 0: {self.sends_s}")
        if not all(before < after for before, after in pairwise((*self.sends_s, self.failure_s))):
            raise LocalProtocolError(f"times must ascend: {self.sends_s}, failure at {self.failure_s}")

    @classmethod
    def exponential(cls, rto: float = 0.5, rc: int = 7, rm: float = 16) -> Self:
        """The schedule of RFC 8489 §6.2.1: `rc` sends at doubling intervals, failure `rm * rto` later.

        `rto` is in seconds. Raises `LocalProtocolError` for figures that give no valid schedule.
        """
        sends_s = tuple(rto * (2**index - 1) for index in range(min(rc, MAX_SENDS + 1)))
        return cls(sends_s, (sends_s[-1] if sends_s else 0) + rm * rto)


RFC_8489: Final = SendSchedule.exponential()
"""Sends at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s, failure at 39.5 s."""

CONNECTIVITY_CHECK: Final = SendSchedule((0, 0.1, 0.3, 0.7, 1.5, 3.1), 4.7)
"""For checks and other requests that a user waits for: 100 ms doubling to 1600 ms, five retransmissions.

Departure from RFC 8489 §6.2.1 (RTO of at least 500 ms): a hole opens only when both sides have sent, so the
second packet must not wait for half a second; six small packets in 4.7 s burden no network.
"""


class FailureReason(Enum):
    """Why a transaction has no success response."""

    TIMEOUT = auto()
    ERROR_RESPONSE = auto()
    UNKNOWN_ATTRIBUTE = auto()
    """The response demands understanding of something we do not understand (RFC 8489 §6.3.3, §6.3.4)."""


@dataclass(frozen=True, slots=True)
class TransactionSucceeded:
    """A success response arrived.

    Attributes:
        response: verified with the transaction's key, if it has one.
        rtt_s: round-trip time in seconds; None when a retransmission makes it ambiguous (RFC 8489 §6.2.1).
        is_late: it came after this transaction was reported as timed out.
    """

    response: Message
    rtt_s: float | None
    is_late: bool


@dataclass(frozen=True, slots=True)
class TransactionFailed:
    """No success will come.

    Attributes:
        reason: what ended it.
        response: what the server said; None after a time-out.
        error_code: of an error response that has one, otherwise None.
    """

    reason: FailureReason
    response: Message | None = None
    error_code: int | None = None


TransactionEffect = Transmit | TransactionSucceeded | TransactionFailed


class _State(Enum):
    IDLE = auto()
    PENDING = auto()
    TIMED_OUT = auto()
    DONE = auto()


class Transaction:
    """One request to one address.

    Responses are matched by transaction id and source address. With a `key`, a response whose integrity does
    not verify is as good as none: the transaction goes on (RFC 8489 §9.1.4).

    Departure from RFC 8445 §7.2.5.2.1: an answer from another address is ignored and does not fail the check,
    or anyone who sees one could end checks by replaying answers from elsewhere.
    """

    __slots__ = (
        "_effects",
        "_key",
        "_request",
        "_response_source",
        "_schedule",
        "_sends",
        "_started_at",
        "_state",
        "_transaction_id",
    )

    def __init__(
        self,
        request: Transmit,
        transaction_id: bytes,
        schedule: SendSchedule = RFC_8489,
        *,
        key: bytes | None = None,
        response_source: TransportAddress | None = None,
    ) -> None:
        """Prepare the transaction; nothing is sent before `start`.

        `request` is the built message with its destination, repeated unchanged. `response_source` is where
        the response must come from when that is not the destination (CHANGE-REQUEST, RFC 5780 §4.4).
        """
        self._request = request
        self._transaction_id = transaction_id
        self._schedule = schedule
        self._key = key
        self._response_source = response_source or request.remote
        self._state = _State.IDLE
        self._started_at = 0.0
        self._sends = 0
        self._effects: list[TransactionEffect] = []

    @property
    def transaction_id(self) -> bytes:
        """Twelve bytes that name this transaction."""
        return self._transaction_id

    @property
    def is_pending(self) -> bool:
        """Sent, and neither answered nor timed out."""
        return self._state is _State.PENDING

    def start(self, now: float) -> None:
        """Send the request for the first time; raises `LocalProtocolError` when called twice."""
        if self._state is not _State.IDLE:
            raise LocalProtocolError("the transaction has been started before")
        self._state = _State.PENDING
        self._started_at = now
        self._send()

    def handle_response(self, message: Message, source: TransportAddress, now: float) -> bool:
        """Take a message that may be the response; False when it is not ours, not authentic or too much."""
        if self._state not in {_State.PENDING, _State.TIMED_OUT} or not self._is_ours(message, source):
            return False
        is_late = self._state is _State.TIMED_OUT
        self._state = _State.DONE
        if message.message_class is MessageClass.SUCCESS_RESPONSE and not message.unknown_required:
            rtt_s = now - self._started_at if self._sends == 1 else None
            self._effects.append(TransactionSucceeded(message, rtt_s, is_late))
        elif not is_late:
            self._effects.append(_failure(message))
        return True

    def handle_timeout(self, now: float) -> None:
        """Retransmit or give up, whichever is due; of several missed sends only one is made up for."""
        if self._state is not _State.PENDING:
            return
        if now >= self._started_at + self._schedule.failure_s:
            self._state = _State.TIMED_OUT
            self._effects.append(TransactionFailed(FailureReason.TIMEOUT))
            return
        due = self._sends
        while due < len(self._schedule.sends_s) and now >= self._started_at + self._schedule.sends_s[due]:
            due += 1
        if due > self._sends:
            self._send()
            self._sends = due

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the next retransmission or of the final failure."""
        if self._state is not _State.PENDING:
            return None
        sends_s = self._schedule.sends_s
        after_s = sends_s[self._sends] if self._sends < len(sends_s) else self._schedule.failure_s
        return self._started_at + after_s

    def drain(self) -> list[TransactionEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _send(self) -> None:
        self._sends += 1
        self._effects.append(self._request)

    def _is_ours(self, message: Message, source: TransportAddress) -> bool:
        return (
            message.transaction_id == self._transaction_id
            and source == self._response_source
            and message.message_class in {MessageClass.SUCCESS_RESPONSE, MessageClass.ERROR_RESPONSE}
            and (self._key is None or message.verify_integrity(self._key))
        )


def _failure(response: Message) -> TransactionFailed:
    if response.unknown_required:
        return TransactionFailed(FailureReason.UNKNOWN_ATTRIBUTE, response)
    error = response.find(ErrorCode)
    return TransactionFailed(FailureReason.ERROR_RESPONSE, response, error.code if error else None)
