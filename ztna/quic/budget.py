"""Token bucket: so much per second, and a little saved up for bursts."""

from __future__ import annotations


class TokenBucket:
    """Grants `rate` tokens per second, and at most `capacity` at once; starts full."""

    def __init__(self, *, rate: float, capacity: float) -> None:
        self._rate = rate
        self._capacity = capacity
        self._tokens = capacity
        self._updated_at: float | None = None

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` tokens, or none at all; `now` is monotonic seconds."""
        if self._updated_at is not None:
            gained = max(0.0, now - self._updated_at) * self._rate
            self._tokens = min(self._capacity, self._tokens + gained)
        self._updated_at = now
        if amount > self._tokens:
            return False
        self._tokens -= amount
        return True
