"""What handshakes may take of the processor, so that the packets of everybody else do not wait behind them.

A handshake is done in steps: the answer to a client's first packet, the judgement of its certificate, and on
an intermediate the attachment of the node. What a step costs is known when it is over. So a step begins only
while the budget is not in debt, and pays what it took afterwards: whatever steps cost, on a slow machine or
with a stranger's monstrous certificate, those of one second come to no more than the share of it, and one
step. What a peer can make us do between its steps is charged alike, and later ones wait for that too.

Some steps cannot wait: the certificate of a gRPC stream is judged when the stream is there. They may take
half of the share from the others and no more, so that whoever causes them keeps nobody out. What they take
beyond is free, as a storm of nodes needs it, but not without bound: `has_room_at_once` says whether another
may be begun (`ztna.signaling.stream_admission` asks).

This is processor time of the loop's thread, which is what delays packets there. What other threads do, like
gRPC's for TLS, is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from ztna.token_bucket import TokenBucket

Stopwatch: TypeAlias = Callable[[], Callable[[], float]]
"""Begins to measure; what it returns says how many seconds of processor time this thread took since."""

MAX_HANDSHAKE_SHARE = 0.20
"""Of any second: a storm of reconnections must leave time for the sessions that live."""
MAX_HANDSHAKE_BURST_S = 0.02
"""At once after a rest: five or ten steps, which all other packets may have to wait behind. It is less than
what a wide-area round trip takes, and more than accrues until who waits is looked at again."""
TYPICAL_STEP_S = 0.002
"""What a step takes, as measured; a handshake and the attachment after it are six of them."""
WHOLE_HANDSHAKE = 2.3
"""A handshake costs so many times what its beginning did, as measured: 5.0 to 6.5 ms to 2.0 to 3.0. No more
begin than can be ended: whoever answers slowly would otherwise find that others have begun meanwhile."""
AT_ONCE_SHARE = 0.5
"""Of the budget: what steps that cannot wait may take from those that can. The rest of them is free: the
alternative is a debt which grows as long as somebody likes."""
MAX_AT_ONCE_BURST_S = 0.5
"""What steps that cannot wait may take in one go after a rest; what is beyond their half is free. These
are about 750 judgements as measured (0.65 ms), which is what TLS lets through in two seconds when a thousand
nodes dial in one moment. Whoever goes on has the half; after six seconds of rest all of it is there again."""
MIN_DEBT_WAIT_S = 0.001
"""Nobody asks more often whether a debt is paid."""


def fixed_cost(seconds: float = TYPICAL_STEP_S) -> Stopwatch:
    """A stopwatch by which every step takes so long: for whoever must not depend on a machine."""
    return lambda: lambda: seconds


class HandshakeBudget:
    """The share of one process; `now` is monotonic seconds.

    Attributes:
        spent_s: what all steps took so far.
        at_once_s: of it those that cannot wait.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        rate = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S
        self._bucket = TokenBucket(rate, MAX_HANDSHAKE_BURST_S, 0.0)
        self._beginnings = TokenBucket(rate, MAX_HANDSHAKE_BURST_S, 0.0)
        self._at_once = TokenBucket(rate * AT_ONCE_SHARE, MAX_HANDSHAKE_BURST_S * AT_ONCE_SHARE, 0.0)
        self._at_once_room = TokenBucket(rate * AT_ONCE_SHARE, MAX_AT_ONCE_BURST_S, 0.0)
        self.spent_s = 0.0
        self.at_once_s = 0.0

    def is_open(self, now: float, reserve_s: float = 0.0) -> bool:
        """Whether a step may begin; with `reserve_s` only if so much is left for others."""
        return self._bucket.level(now) >= reserve_s

    def may_begin(self, now: float, reserve_s: float = 0.0) -> bool:
        """Whether a handshake may begin: its first step now, and the others when their time comes."""
        return self.is_open(now, reserve_s) and self._beginnings.level(now) >= reserve_s

    def has_room_at_once(self, now: float, reserve_share: float = 0.0) -> bool:
        """Whether another step that cannot wait should be begun.

        With `reserve_share` only if so much of `MAX_AT_ONCE_BURST_S` is left for others.
        """
        return self._at_once_room.level(now) >= reserve_share * MAX_AT_ONCE_BURST_S

    def opens_at(self, now: float) -> float:
        """When to ask again, now that it is not open."""
        return now + max(MIN_DEBT_WAIT_S, self._bucket.seconds_until(now, 0.0))

    @contextmanager
    def charged(self, now: float, *, is_first: bool = False) -> Iterator[None]:
        """Do a step within it, the first of a handshake or another; whatever becomes of that, it is paid.

        Not to be nested.
        """
        with self._measured(now, self._pay_first if is_first else self._bucket.charge):
            yield

    @contextmanager
    def charged_at_once(self, now: float) -> Iterator[None]:
        """Do a step within it that cannot wait, whether the budget is open or not.

        It is paid as far as such steps have not had their half yet. Whoever can refuse the step instead asks
        `has_room_at_once` first. Not to be nested.
        """
        with self._measured(now, self._pay_at_once):
            yield

    @contextmanager
    def _measured(self, now: float, pay: Callable[[float, float], None]) -> Iterator[None]:
        lap = self._stopwatch()
        try:
            yield
        finally:
            cost_s = lap()
            self.spent_s += cost_s
            pay(now, cost_s)

    def _pay_first(self, now: float, cost_s: float) -> None:
        self._bucket.charge(now, cost_s)
        self._beginnings.charge(now, cost_s * WHOLE_HANDSHAKE)

    def _pay_at_once(self, now: float, cost_s: float) -> None:
        self.at_once_s += cost_s
        self._at_once_room.charge(now, cost_s)
        due_s = min(cost_s, self._at_once.level(now))
        self._at_once.charge(now, due_s)
        self._bucket.charge(now, due_s)
