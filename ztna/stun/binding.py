"""Asks several servers at once where packets come from: plain Binding requests and their outcomes (RFC 8489).

Each question has a name that its owner chooses, and ends in exactly one of `Answered`, `Refused` and
`Unanswered`, unless it is forgotten before. The owner sends what `Ask` effects hold, from the socket that he
associates with the name.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.deadlines import Deadlines
from ztna.errors import RemoteProtocolError
from ztna.stun.attributes import (
    Attribute,
    ChangeRequest,
    MappedAddress,
    OtherAddress,
    Software,
    XorMappedAddress,
)
from ztna.stun.message import BINDING, TRANSACTION_ID_BYTES, Message, MessageClass, build, parse
from ztna.stun.transaction import (
    CONNECTIVITY_CHECK,
    SendSchedule,
    Transaction,
    TransactionSucceeded,
)

KeyT = TypeVar("KeyT", bound=Hashable)

MAX_QUESTIONS: Final = 64
"""At once: two ports of 16 intermediates, both families, and what is left of the tests of behaviour."""

# An answer may be three times as long as its request (`ztna.stun.responder`). With 16 bytes of text there is
# room for the three addresses of an answer over IPv6.
_SOFTWARE: Final = Software("ztna address test")


@dataclass(frozen=True, slots=True)
class Ask(Generic[KeyT]):
    """Send this request now."""

    key: KeyT
    transmit: Transmit
    transaction_id: bytes


@dataclass(frozen=True, slots=True)
class Answered(Generic[KeyT]):
    """The server saw us at `mapped`; `other` is its second address, if it has one (RFC 5780 §7.4)."""

    key: KeyT
    mapped: TransportAddress
    other: TransportAddress | None


@dataclass(frozen=True, slots=True)
class Refused(Generic[KeyT]):
    """The server does not do what was asked, or its answer is of no use."""

    key: KeyT


@dataclass(frozen=True, slots=True)
class Unanswered(Generic[KeyT]):
    """Nothing came, however often it was asked."""

    key: KeyT


BindingEffect = Ask[KeyT] | Answered[KeyT] | Refused[KeyT] | Unanswered[KeyT]


@dataclass(slots=True)
class _Question:
    transaction: Transaction
    remote: TransportAddress


class BindingClient(Generic[KeyT]):
    """Questions under way. `now` is monotonic seconds."""

    def __init__(self, chance: random.Random, schedule: SendSchedule = CONNECTIVITY_CHECK) -> None:
        """`chance` gives the transaction ids, and must be the system's source in production."""
        self._chance = chance
        self._schedule = schedule
        self._questions: dict[KeyT, _Question] = {}
        self._keys: dict[bytes, KeyT] = {}
        self._deadlines: Deadlines[KeyT] = Deadlines()
        self._effects: list[BindingEffect[KeyT]] = []

    def __len__(self) -> int:
        return len(self._questions)

    def is_asking(self, key: KeyT) -> bool:
        """Whether this question is open."""
        return key in self._questions

    def questions(self) -> list[KeyT]:
        """The names of those that are open, oldest first."""
        return list(self._questions)

    def ask(
        self,
        key: KeyT,
        remote: TransportAddress,
        now: float,
        *,
        change: ChangeRequest | None = None,
        answer_from: TransportAddress | None = None,
    ) -> bool:
        """Ask `remote`, in place of a former question of that name; False when there are too many.

        With `change` the answer must come from `answer_from` (RFC 5780 §4.4).
        """
        self.forget(key)
        if len(self._questions) >= MAX_QUESTIONS:
            return False
        transaction_id = self._chance.randbytes(TRANSACTION_ID_BYTES)
        attributes: tuple[Attribute, ...] = (_SOFTWARE,) if change is None else (change, _SOFTWARE)
        request = Message(BINDING, MessageClass.REQUEST, transaction_id, attributes)
        transaction = Transaction(
            Transmit(build(request, with_fingerprint=True), remote),
            transaction_id,
            self._schedule,
            response_source=answer_from,
        )
        self._questions[key] = _Question(transaction, remote)
        self._keys[transaction_id] = key
        transaction.start(now)
        self._advance(key)
        return True

    def forget(self, key: KeyT) -> None:
        """Ask this no more; harmless when it is not asked."""
        question = self._questions.pop(key, None)
        if question is not None:
            del self._keys[question.transaction.transaction_id]
            self._deadlines.set(key, None)

    def handle_datagram(self, data: bytes, source: TransportAddress, now: float) -> None:
        """Take what may be an answer; anything else is ignored."""
        try:
            message = parse(data)
        except RemoteProtocolError:
            return
        key = self._keys.get(message.transaction_id)
        if key is None:
            return
        question = self._questions[key]
        if message.message_class is MessageClass.ERROR_RESPONSE and source == question.remote:
            # Refusals come from where we asked, wherever the answer would have come from.
            self._end(key, Refused(key))
            return
        if question.transaction.handle_response(message, source, now):
            self._advance(key)

    def handle_timeout(self, now: float) -> None:
        """Ask again, or give up, where it is due."""
        for key in self._deadlines.take_due(now):
            self._questions[key].transaction.handle_timeout(now)
            self._advance(key)

    def next_deadline(self) -> float | None:
        """When to ask again, or to give up."""
        return self._deadlines.next()

    def drain(self) -> list[BindingEffect[KeyT]]:
        """Hand over what happened, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _advance(self, key: KeyT) -> None:
        transaction = self._questions[key].transaction
        for effect in transaction.drain():
            if isinstance(effect, Transmit):
                self._effects.append(Ask(key, effect, transaction.transaction_id))
            elif isinstance(effect, TransactionSucceeded):
                self._end(key, _outcome(key, effect.response))
            elif effect.response is None:
                self._end(key, Unanswered(key))
            else:
                self._end(key, Refused(key))
        if key in self._questions:
            self._deadlines.set(key, transaction.next_deadline())

    def _end(self, key: KeyT, outcome: BindingEffect[KeyT]) -> None:
        self.forget(key)
        self._effects.append(outcome)


def _outcome(key: KeyT, response: Message) -> BindingEffect[KeyT]:
    # MAPPED-ADDRESS is what servers older than RFC 5389 say; NATs may have rewritten it.
    mapped = response.find(XorMappedAddress) or response.find(MappedAddress)
    if mapped is None or not mapped.address.port:
        return Refused(key)
    other = response.find(OtherAddress)
    usable = other is not None and other.address.port != 0
    return Answered(key, mapped.address, other.address if other is not None and usable else None)
