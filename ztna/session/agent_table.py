"""The sessions of an agent: opened because a service is wanted.

A *wish* is a service that somebody is waiting for. It asks the attached intermediate for a session; when that
fails for a reason that may pass (no connector there, the handshake with one failed), it asks again, without
the connector that failed, until its time is up. Grants are renewed before anybody has to wait for one
(`ztna.session.grants`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

from ztna.session.book import SessionBook, SessionRecord, SessionState
from ztna.session.effects import (
    AskForSession,
    GrantRenewed,
    Peer,
    RenewalRefused,
    ReportClosed,
    ServiceReady,
    ServiceUnavailable,
)
from ztna.session.grants import GrantBook, HeldGrant

# How long a client connection may wait for a session before it is reset. Above the time in which a restarted
# intermediate or connector is back (2 s) and below what people take for a hang.
WISH_LIMIT_S = 10.0

# After the first definite "no connector offers this now", a short wait covers a connector that is restarting.
UNAVAILABLE_PATIENCE_S = 3.0

RETRY_INTERVAL_S = 0.5

# An unanswered question is asked again. Above the limit within which whoever asks the intermediate reports
# that it did not answer, so this only covers a report that was lost with its actor.
ANSWER_LIMIT_S = 6.0

# A connector whose handshake failed is avoided for as long as another one might do better.
EXCLUSION_S = 10.0

# Asking for a service that is eagerly connected goes on for ever, at this pace.
EAGER_RETRY_INTERVAL_S = 2.0

# Probe timeouts double: with a round trip of 100 ms these have taken two seconds, so a path that failed has
# been left by then. Fewer would be asked about for every burst of losses.
MAX_UNANSWERED_PROBES = 3

# One per connector in use: what an intermediate allows one agent, so only a faulty one gets here.
MAX_SESSIONS = 256

# An answer may cross the end of its session; ids of this many ended sessions are not started anew.
MAX_ENDED_REMEMBERED = 256


@dataclass(slots=True)
class _Wish:
    service: str
    deadline: float | None  # None: eager, no client waits
    request_id: int | None = None
    asked_at: str = ""  # the intermediate that owes an answer
    ask_at: float | None = None
    is_refused: bool = False
    failure: tuple[str, str] = ("timeout", "no answer in time")


@dataclass(slots=True)
class _Requests:
    last_id: int = 0
    renewals: dict[int, str] = field(default_factory=dict)  # intermediate id

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id


class AgentSessions(SessionBook):
    """Opens a session for a wanted service, and keeps its grants fresh."""

    def __init__(
        self,
        intermediate_ids: Iterable[str],
        services: Mapping[str, Collection[str]],
        random: Random,
        *,
        max_offline_s: float,
        is_eager: bool = False,
    ) -> None:
        """`services` maps each service to the only connectors to accept for it; empty: any."""
        super().__init__(intermediate_ids, max_offline_s=max_offline_s)
        self._services = dict(services)
        self._is_eager = is_eager
        self._wishes: dict[str, _Wish] = {}
        self._grants = GrantBook(random)
        self._excluded: dict[str, float] = {}  # connector id -> until
        # By service: a peer that ends every session at once must not be given the next one at once.
        self._not_before: dict[str, float] = {}
        self._ended: dict[bytes, None] = {}
        self._requests = _Requests()

    def handle_service_requested(self, service: str, now: float) -> None:
        """Answer with `ServiceReady` now or later, or with `ServiceUnavailable` within `WISH_LIMIT_S`."""
        if service not in self._services:
            message = "this agent has no such service"
            self._effects.append(ServiceUnavailable(service, "unknown_service", message))
            return
        if self._answer(service, now):
            self._wishes.pop(service, None)
            return
        wish = self._wishes.setdefault(service, _Wish(service, None))
        if wish.deadline is None:
            wish.deadline = now + WISH_LIMIT_S
            wish.is_refused = False
        if wish.request_id is None:
            self._ask(wish, now)

    def handle_granted(
        self,
        intermediate_id: str,
        request_id: int,
        session_id: bytes,
        service: str,
        connector: Peer,
        channel: int,
        grant: object,
        lifetime_s: float,
        now: float,
    ) -> None:
        """Start or extend the session that an intermediate opened for one of our requests."""
        self._requests.renewals.pop(request_id, None)
        is_renewal = self._grants.answered(request_id, session_id, now)
        wish = self._wishes.get(service)
        if wish is not None and wish.request_id == request_id:
            wish.request_id = wish.ask_at = None
        record = self._admit(intermediate_id, session_id, service, connector, now)
        if record is None:
            self._retry_unasked(wish, now)
            return
        if record.channels.get(intermediate_id) != channel:
            self._bind(record, intermediate_id, channel)
        self._grants.hold(session_id, service, grant, lifetime_s, now, is_renewal=is_renewal)
        self.handle_grant(session_id, grant)
        if is_renewal:
            self._effects.append(GrantRenewed(session_id, service, grant))
        self._answer_wishes(now)
        if record.state is SessionState.ESTABLISHED and service in self._wishes:
            self._retry_unasked(wish, now)

    def handle_request_failed(
        self, request_id: int, code: str, message: str, now: float, *, is_final: bool
    ) -> None:
        """Give up on a final answer; otherwise ask again until the wish runs out of time.

        A grant whose renewal is finally refused opens nothing new; what it opened goes on.
        """
        self._requests.renewals.pop(request_id, None)
        refused = self._grants.failed(request_id, now, is_final=is_final)
        if refused is not None:
            connector_id = self._sessions[refused.session_id].peer.id
            self._effects.append(
                RenewalRefused(refused.session_id, refused.service, connector_id, code, message)
            )
            self._ask_unasked(refused.service, now)
        wish = next((w for w in self._wishes.values() if w.request_id == request_id), None)
        if wish is None:
            return
        wish.request_id = None
        wish.failure = (code, message)
        if is_final and wish.deadline is not None:
            self._fail(wish, now)
        else:
            self._retry(wish, code, now)

    def handle_grant_refused(
        self, session_id: bytes, service: str, grant: object, message: str, now: float
    ) -> None:
        """Ask for another grant soon; who wants the service meanwhile waits for that."""
        self._grants.refused(session_id, service, grant, message, now)

    def handle_attached(
        self, intermediate_id: str, attach_id: bytes, refused_sessions: list[bytes], now: float
    ) -> None:
        """Ask for whatever is wanted."""
        super().handle_attached(intermediate_id, attach_id, refused_sessions, now)
        self._grants.spread_overdue(now)
        self._wish_eagerly()
        for wish in self._wishes.values():
            if wish.request_id is None:
                self._ask(wish, now)

    def handle_detached(
        self, intermediate_id: str, now: float, *, is_left: bool = False, is_expelled: bool = False
    ) -> None:
        """Answers to what was asked there will not come; ask elsewhere, if there is an elsewhere."""
        super().handle_detached(intermediate_id, now, is_left=is_left, is_expelled=is_expelled)
        renewals = self._requests.renewals
        lost = {request_id for request_id, asked_at in renewals.items() if asked_at == intermediate_id}
        self._requests.renewals = {k: v for k, v in renewals.items() if k not in lost}
        self._grants.forget_requests(lost, now)
        for wish in self._wishes.values():
            if wish.request_id is not None and wish.asked_at == intermediate_id:
                self._ask(wish, now)

    def handle_rebound(
        self, intermediate_id: str, session_id: bytes, peer: Peer, channel: int, now: float
    ) -> None:
        """Use the fresh channel, and tell those who wait."""
        super().handle_rebound(intermediate_id, session_id, peer, channel, now)
        self._answer_wishes(now)

    def handle_access(
        self, intermediate_id: str, session_id: bytes, services: frozenset[str] | None, now: float
    ) -> None:
        """Forget the grants of services that the session may no longer carry: the next client asks anew."""
        super().handle_access(intermediate_id, session_id, services, now)
        record = self._sessions.get(session_id)
        if record is not None and record.allowed is not None:
            self._grants.keep_only(session_id, record.allowed)

    def handle_services(self, services: Mapping[str, Collection[str]], now: float) -> None:
        """Take other services, mapped as at the start; nobody waits any more for one that is gone.

        A grant of a service that accepts other connectors now is forgotten, so that the next client asks.
        """
        self._services = dict(services)
        self._wishes = {name: wish for name, wish in self._wishes.items() if name in services}
        for session_id, record in self._sessions.items():
            accepted = {name for name, pins in services.items() if not pins or record.peer.id in pins}
            self._grants.keep_only(session_id, accepted)
        self._wish_eagerly()
        for wish in self._wishes.values():
            if wish.request_id is None and wish.ask_at is None:
                self._ask(wish, now)

    def handle_established(self, session_id: bytes, now: float) -> None:
        """Tell those who wait."""
        super().handle_established(session_id, now)
        self._answer_wishes(now)

    def handle_closed(self, session_id: bytes, reason: str, now: float) -> None:
        """Ask again for what is still wanted, elsewhere if this connector never answered."""
        record = self._forget(session_id, reason)
        if record is None:
            return
        self._ended[session_id] = None
        if len(self._ended) > MAX_ENDED_REMEMBERED:
            del self._ended[next(iter(self._ended))]
        for service in self._grants.drop_session(session_id):
            self._not_before[service] = record.opened_at + RETRY_INTERVAL_S
        if record.state is SessionState.OPENING:
            self._exclude(record.peer.id, now)
        self._wish_eagerly()
        for wish in self._wishes.values():
            if wish.request_id is not None:
                continue
            wish.failure = ("session_failed", f"the session with {record.peer.id} ended: {reason}")
            if wish.deadline is None:
                wish.ask_at = now + RETRY_INTERVAL_S  # nobody waits
            else:
                self._ask(wish, now)

    def handle_unanswered(self, session_id: bytes, probes: int) -> None:
        """The connector has not answered so many probes of QUIC: ask whether the session is still known.

        Its end may have got lost together with its paths. The grant that is asked for is of this session, or
        else of the one that takes its place.
        """
        if probes < MAX_UNANSWERED_PROBES:
            return
        held = self._grants.latest(session_id)
        if held is not None and held.request_id is None and self._can_renew(session_id):
            self._renew(held)

    def handle_timeout(self, now: float) -> None:
        """Retry, renew, give up: whatever is due."""
        super().handle_timeout(now)
        for wish in list(self._wishes.values()):
            if wish.deadline is not None and now >= wish.deadline:
                self._fail(wish, now)
            elif wish.ask_at is not None and now >= wish.ask_at:
                self._ask(wish, now)
        for held in self._grants.take_due(now, self._can_renew):
            self._renew(held)

    def next_deadline(self) -> float | None:
        """The earliest retry, renewal or limit."""
        deadlines = [super().next_deadline(), self._grants.next_deadline(self._can_renew)]
        for wish in self._wishes.values():
            deadlines += [wish.deadline, wish.ask_at]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _admit(
        self, intermediate_id: str, session_id: bytes, service: str, connector: Peer, now: float
    ) -> SessionRecord | None:
        """The session that an answer is about, started if it is new; None when it is not acceptable."""
        pins = self._services.get(service)
        if pins is None or (pins and connector.id not in pins):
            if session_id not in self._sessions:
                self._effects.append(ReportClosed(intermediate_id, session_id, "connector_not_accepted"))
            return None
        record = self._sessions.get(session_id)
        if record is None:
            if session_id in self._ended or len(self._sessions) >= MAX_SESSIONS:
                return None
            return self._start(intermediate_id, session_id, connector, now)
        if record.peer != connector or record.state is SessionState.CLOSING:
            return None
        return record

    def _answer(self, service: str, now: float) -> bool:
        held = self._grants.current(service)
        if held is None or not held.is_fresh(now):
            return False
        record = self._sessions.get(held.session_id)
        if record is None or record.state is not SessionState.ESTABLISHED or not record.is_carried:
            return False
        held.is_used = True
        self._effects.append(ServiceReady(service, held.session_id, record.peer.id, held.grant))
        return True

    def _answer_wishes(self, now: float) -> None:
        for service in [service for service in self._wishes if self._answer(service, now)]:
            del self._wishes[service]

    def _ask(self, wish: _Wish, now: float) -> None:
        wish.request_id = wish.ask_at = None
        held = self._grants.current(wish.service)
        if held is not None and self._grants.is_being_replaced(held, self._can_renew):
            wish.failure = ("grant_refused", held.refusal)
            return
        if held is not None and held.is_fresh(now):
            record = self._sessions.get(held.session_id)
            if record is not None and record.state is not SessionState.ESTABLISHED:
                return  # it is being opened or closed, and either ends within its own limit
        if now < self._not_before.get(wish.service, now):
            wish.ask_at = self._not_before[wish.service]
            return
        if not self._attached:
            wish.failure = ("not_attached", "not attached to any intermediate")
            return
        self._excluded = {name: until for name, until in self._excluded.items() if until > now}
        wish.request_id = self._requests.next_id()
        wish.asked_at = self._latest_attachment()
        wish.ask_at = now + ANSWER_LIMIT_S
        self._effects.append(
            AskForSession(wish.asked_at, wish.request_id, wish.service, tuple(self._excluded))
        )

    def _renew(self, held: HeldGrant) -> None:
        request_id = self._requests.next_id()
        intermediate_id = self._carrier(held.session_id)
        self._requests.renewals[request_id] = intermediate_id
        self._grants.asked(held, request_id)
        connector_id = self._sessions[held.session_id].peer.id
        self._effects.append(AskForSession(intermediate_id, request_id, held.service, (), (connector_id,)))

    def _can_renew(self, session_id: bytes) -> bool:
        return bool(self._carrier(session_id))

    def _carrier(self, session_id: bytes) -> str:
        """The latest attachment over which a living session runs; only there is it known."""
        record = self._sessions.get(session_id)
        if record is None or record.state is not SessionState.ESTABLISHED:
            return ""
        return next((name for name in reversed(self._attached) if name in record.channels), "")

    def _retry(self, wish: _Wish, code: str, now: float) -> None:
        if wish.deadline is None:
            wish.ask_at = now + EAGER_RETRY_INTERVAL_S
            return
        if code == "no_connector_available" and not wish.is_refused:
            wish.is_refused = True
            wish.deadline = min(wish.deadline, now + UNAVAILABLE_PATIENCE_S)
        wish.ask_at = now + RETRY_INTERVAL_S

    def _retry_unasked(self, wish: _Wish | None, now: float) -> None:
        if wish is not None and wish.request_id is None:
            wish.failure = ("unusable_answer", "the intermediate's answer could not be used")
            self._retry(wish, "unusable_answer", now)

    def _ask_unasked(self, service: str, now: float) -> None:
        """Somebody who waited for the renewal of a grant has to ask for himself."""
        wish = self._wishes.get(service)
        if wish is not None and wish.request_id is None:
            self._ask(wish, now)

    def _fail(self, wish: _Wish, now: float) -> None:
        self._effects.append(ServiceUnavailable(wish.service, *wish.failure))
        if self._is_eager:
            wish.deadline = wish.request_id = None
            wish.ask_at = now + EAGER_RETRY_INTERVAL_S
        else:
            del self._wishes[wish.service]

    def _exclude(self, connector_id: str, now: float) -> None:
        self._excluded = {name: until for name, until in self._excluded.items() if until > now}
        self._excluded[connector_id] = now + EXCLUSION_S

    def _wish_eagerly(self) -> None:
        if self._is_eager:
            for service in self._services:
                if self._grants.current(service) is None:
                    self._wishes.setdefault(service, _Wish(service, None))

    def _latest_attachment(self) -> str:
        return next(reversed(self._attached))
