"""The grants that an agent holds: which serve new connections, and which are to be renewed, and when.

A grant is renewed at about half its life if it was used meanwhile, so that a new connection never waits for
one. The latest grant of each session is renewed whether or not it was used: it is what proves the session to
an intermediate that has forgotten it, however old the connections are that the session carries.

A grant that the connector refused is out of use at once, and renewed at once: the connector may accept the
next one, as when the intermediate has renewed its certificate meanwhile. While that is refused, too, each
renewal comes later than the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from random import Random

# A grant is not used for new connections in its last seconds: the connector's clock may run ahead.
GRANT_MARGIN_S = 5.0

# Of the time until a renewal, either way: agents that an intermediate served in one burst drift apart.
RENEWAL_JITTER = 0.1

# Between two renewals of one grant, whatever life its issuer gives it.
MIN_RENEWAL_INTERVAL_S = 15.0

# After a renewal that failed for a reason that may pass: a dozen tries before a grant of ten minutes expires.
RENEWAL_RETRY_S = 20.0

# What became due during an outage is asked for within this time, so that agents that come back together do
# not ask together.
RENEWAL_SPREAD_S = 20.0

# After a second refusal in a row; doubled with each that follows.
REFUSED_RETRY_S = 1.0

# Below the time that a client waits for its service, so that each client sees one try at least.
MAX_REFUSED_RETRY_S = 8.0

# A refusal that comes later than this after the one before begins a new row.
REFUSALS_FORGOTTEN_S = 60.0


@dataclass(slots=True, eq=False)
class HeldGrant:
    """One grant; times are monotonic seconds. `request_id` is that of the renewal under way.

    `refusal` is what the connector said when it refused it, if it did; `refusals` is how many grants in a row
    were, the last of them at `refused_at`.
    """

    session_id: bytes
    service: str
    grant: object
    renew_at: float
    expires_at: float
    is_used: bool = False
    is_expired: bool = False
    refusal: str = ""
    refusals: int = 0
    refused_at: float = 0.0
    request_id: int | None = None

    def is_fresh(self, now: float) -> bool:
        """Whether a new connection may show it."""
        return not self.refusal and now < self.expires_at - GRANT_MARGIN_S


class GrantBook:
    """All grants of an agent: at most one per session and service."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._held: dict[tuple[bytes, str], HeldGrant] = {}  # the latest last
        self._current: dict[str, HeldGrant] = {}

    def current(self, service: str) -> HeldGrant | None:
        """What new connections to a service use."""
        return self._current.get(service)

    def latest(self, session_id: bytes) -> HeldGrant | None:
        """The latest grant of a session, of whatever service."""
        return self._latest().get(session_id)

    def hold(
        self,
        session_id: bytes,
        service: str,
        grant: object,
        lifetime_s: float,
        now: float,
        *,
        is_renewal: bool = False,
    ) -> None:
        """Keep a grant in place of the former one; a renewal does not move its service to its session."""
        until_renewal_s = lifetime_s / 2 * self._random.uniform(1 - RENEWAL_JITTER, 1 + RENEWAL_JITTER)
        held = HeldGrant(
            session_id,
            service,
            grant,
            now + max(until_renewal_s, MIN_RENEWAL_INTERVAL_S),
            now + lifetime_s,
        )
        former = self._held.pop((session_id, service), None)
        if former is not None:
            held.refusals, held.refused_at = former.refusals, former.refused_at
        self._held[session_id, service] = held
        current = self._current.get(service)
        if not is_renewal or current is None or current.session_id == session_id:
            self._current[service] = held

    def refused(self, session_id: bytes, service: str, grant: object, message: str, now: float) -> None:
        """A connector refused this grant: show it nobody any more, and renew it soon.

        Says nothing about the grant that has taken its place meanwhile.
        """
        held = self._held.get((session_id, service))
        if held is None or held.refusal or held.grant != grant:
            return
        delay_s = 0.0
        if held.refusals and now < held.refused_at + REFUSALS_FORGOTTEN_S:
            longest_s = min(REFUSED_RETRY_S * 2.0 ** (held.refusals - 1), MAX_REFUSED_RETRY_S)
            delay_s = longest_s * self._random.uniform(1 - RENEWAL_JITTER, 1)
        else:
            held.refusals = 0
        held.is_used = True
        held.refusal = message or "refused"
        held.refusals += 1
        held.refused_at = now
        held.renew_at = now + delay_s

    def is_being_replaced(self, held: HeldGrant, can_renew: Callable[[bytes], bool]) -> bool:
        """Whether a refused grant is about to be renewed, so that nobody else need ask for one."""
        return bool(held.refusal) and can_renew(held.session_id)

    def drop_session(self, session_id: bytes) -> list[str]:
        """Forget the grants of a session that is over; returns the services that it served."""
        served = [service for service, held in self._current.items() if held.session_id == session_id]
        for held in [each for each in self._held.values() if each.session_id == session_id]:
            self._drop(held)
        return served

    def keep_only(self, session_id: bytes, services: Container[str]) -> None:
        """Forget the grants of a session that are of other services."""
        for held in [each for each in self._held.values() if each.session_id == session_id]:
            if held.service not in services:
                self._drop(held)

    def asked(self, held: HeldGrant, request_id: int) -> None:
        """Take note that a renewal is under way."""
        held.request_id = request_id

    def answered(self, request_id: int, session_id: bytes, now: float) -> bool:
        """Take note of a granted request; True when it renews a grant of this session."""
        held = self._awaiting(request_id)
        if held is None:
            return False
        self._try_again(held, now)  # in vain if the answer is about another session
        return held.session_id == session_id

    def failed(self, request_id: int, now: float, *, is_final: bool) -> HeldGrant | None:
        """Take note of a request that came to nothing; returns the grant that will never be renewed."""
        held = self._awaiting(request_id)
        if held is None:
            return None
        if not is_final:
            self._try_again(held, now)
            return None
        self._drop(held)
        return held

    def forget_requests(self, request_ids: set[int], now: float) -> None:
        """These will not be answered."""
        for held in self._held.values():
            if held.request_id in request_ids:
                self._try_again(held, now)

    def spread_overdue(self, now: float) -> None:
        """Spread what became due while nobody could be asked."""
        for held in self._held.values():
            if held.renew_at <= now and held.request_id is None:
                held.renew_at = now + self._random.uniform(0, RENEWAL_SPREAD_S)

    def take_due(self, now: float, can_renew: Callable[[bytes], bool]) -> list[HeldGrant]:
        """Drop what expired, and name what is to be renewed now.

        `can_renew` says of a session whether it lives and an intermediate that carries it can be asked.
        """
        latest = self._latest()
        for held in list(self._held.values()):
            if now >= held.expires_at and not held.is_expired:
                held.is_expired = True
                if self._current.get(held.service) is held:
                    del self._current[held.service]
            if held.is_expired and held is not latest[held.session_id]:
                del self._held[held.session_id, held.service]
        return [
            held
            for held in self._held.values()
            if now >= held.renew_at and self._wants_renewal(held, latest) and can_renew(held.session_id)
        ]

    def next_deadline(self, can_renew: Callable[[bytes], bool]) -> float | None:
        """The earliest renewal or expiry."""
        latest = self._latest()
        earliest: float | None = None
        for held in self._held.values():
            when = None if held.is_expired else held.expires_at
            if self._wants_renewal(held, latest) and can_renew(held.session_id):
                when = held.renew_at if when is None else min(when, held.renew_at)
            if when is not None and (earliest is None or when < earliest):
                earliest = when
        return earliest

    @staticmethod
    def _wants_renewal(held: HeldGrant, latest: dict[bytes, HeldGrant]) -> bool:
        return held.request_id is None and (held.is_used or held is latest[held.session_id])

    def _latest(self) -> dict[bytes, HeldGrant]:
        return {held.session_id: held for held in self._held.values()}

    def _awaiting(self, request_id: int) -> HeldGrant | None:
        return next((held for held in self._held.values() if held.request_id == request_id), None)

    def _try_again(self, held: HeldGrant, now: float) -> None:
        held.request_id = None
        retry_s = MAX_REFUSED_RETRY_S if held.refusal else RENEWAL_RETRY_S
        held.renew_at = now + retry_s * self._random.uniform(1 - RENEWAL_JITTER, 1 + RENEWAL_JITTER)

    def _drop(self, held: HeldGrant) -> None:
        del self._held[held.session_id, held.service]
        if self._current.get(held.service) is held:
            del self._current[held.service]
