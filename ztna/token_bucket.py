"""A token bucket: at most `burst` actions at once, `rate` per second in the long run.

It holds no timer and no queue: the caller asks, and is told yes or no. Where the price is known only
afterwards, the caller looks at the level, acts, and is charged: the bucket may be in debt then.

`TokenBuckets` has one for each of many who ask, and a bound on how many are remembered.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, TypeVar

from ztna.errors import LocalProtocolError

KeyT = TypeVar("KeyT")


class TokenBucket:
    """Tokens accrue at `rate` per second up to `burst`; it starts full.

    `now` is monotonic seconds; a value older than one seen before adds nothing and takes nothing away.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """Build a full bucket; raises `LocalProtocolError` unless both figures are positive and finite."""
        if not (0 < rate < math.inf and 0 < burst < math.inf):
            raise LocalProtocolError(
                f"a token bucket needs a positive rate and burst, got {rate} and {burst}"
            )
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated_at = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` tokens if that many are there; False takes none."""
        self._refill(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def level(self, now: float) -> float:
        """Tokens there are; less than none while a charge is being paid off."""
        self._refill(now)
        return self._tokens

    def charge(self, now: float, amount: float) -> None:
        """Take `amount` tokens, be they there or not."""
        self._refill(now)
        self._tokens -= amount

    def seconds_until(self, now: float, amount: float = 1.0) -> float:
        """Seconds until `take` of `amount` can succeed: 0 at once, `inf` when it exceeds the burst."""
        if amount > self._burst:
            return math.inf
        self._refill(now)
        return max(0.0, (amount - self._tokens) / self._rate)

    def _refill(self, now: float) -> None:
        if now > self._updated_at:
            self._tokens = min(self._burst, self._tokens + (now - self._updated_at) * self._rate)
            self._updated_at = now


class TokenBuckets(Generic[KeyT]):
    """A bucket for each key; beyond `max_keys` the one that was used longest ago is forgotten."""

    def __init__(self, rate: float, burst: float, max_keys: int) -> None:
        """`rate` and `burst` are those of each bucket."""
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[KeyT, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def look(self, key: KeyT, now: float) -> TokenBucket:
        """The bucket of a key; for one that is not remembered a full one, which `keep` would remember."""
        return self._buckets.get(key) or TokenBucket(self._rate, self._burst, now)

    def keep(self, key: KeyT, bucket: TokenBucket) -> None:
        """Remember it, as the one used last."""
        self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)

    def use(self, key: KeyT, now: float) -> TokenBucket:
        """The bucket of a key, which is remembered from now on."""
        bucket = self.look(key, now)
        self.keep(key, bucket)
        return bucket
