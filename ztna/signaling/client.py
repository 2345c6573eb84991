"""A node's attachment to one intermediate: dial, attach, register, ask, notice silence, come back.

The core knows when to do what; frames and their encoding are the actor's business. Whatever goes wrong ends
in one `Lost` with a reason, followed by another attempt after a backoff, until `detach`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum
from random import Random

from ztna.signaling.backoff import Backoff

# From dialling to AttachAccepted: TCP, TLS and one exchange fit even at 500 ms round trip.
ATTACH_LIMIT_S = 5.0
# An attempt that is given up costs a busy intermediate as much as one that succeeds: when a thousand nodes
# come back at once, patience that did not grow would keep it busy with nothing else. A time-out doubles it.
MAX_ATTACH_LIMIT_S = 40.0

# An unanswered registration is repeated; after that many tries the connection is given up.
REGISTRATION_INTERVAL_S = 2.0
REGISTRATION_TRIES = 3

# An OpenSession is answered by the intermediate alone, from memory.
REQUEST_LIMIT_S = 5.0

# A dead TCP connection (its address vanished) shows itself only by silence.
PING_INTERVAL_S = 10.0
PONG_LIMIT_S = 5.0

# Two processes with one identity must not chase each other in circles.
SUPERSEDED_HOLD_S = 30.0

# Reasons by which an intermediate says that this node, or this process, is not to use it any longer.
EXPELLED = frozenset({"superseded", "unauthenticated", "permission_denied"})

# What `Lost` says after `detach`: nobody comes back from there by itself.
REATTACHING = "reattaching"
LEFT = "detached"

# Requests of one node that wait for an answer: one per configured service, and renewals.
MAX_REQUESTS = 1024


class ClientState(Enum):
    """How far an attachment has come."""

    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    ATTACHED = "attached"


@dataclass(frozen=True, slots=True)
class OpenCarrier:
    """Dial; then call `handle_carrier_open`."""


@dataclass(frozen=True, slots=True)
class CloseCarrier:
    """Hang up."""


@dataclass(frozen=True, slots=True)
class SendAttachRequest:
    """Introduce ourselves; the answer must sign `nonce`."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class SendRegistration:
    """Offer a service."""

    service: str


@dataclass(frozen=True, slots=True)
class SendWithdrawal:
    """Take a service back."""

    service: str


@dataclass(frozen=True, slots=True)
class SendPing:
    """Ask for a sign of life."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class Lost:
    """No attachment; `retry_in_s` is None after `detach`."""

    reason: str
    detail: str
    is_authentication_failure: bool
    retry_in_s: float | None


@dataclass(frozen=True, slots=True)
class RequestTimedOut:
    """A request was not answered, or its attachment is gone."""

    request_id: int
    reason: str


ClientEffect = (
    OpenCarrier
    | CloseCarrier
    | SendAttachRequest
    | SendRegistration
    | SendWithdrawal
    | SendPing
    | Lost
    | RequestTimedOut
)


@dataclass(slots=True)
class _Registration:
    tries: int
    repeat_at: float


@dataclass(slots=True)
class _Liveness:
    last_ping_id: int = 0
    ping_at: float | None = None
    pong_by: float | None = None


class AttachmentClient:
    """One attachment, for ever."""

    def __init__(self, services: Iterable[str], random: Random) -> None:
        self._services = tuple(services)
        self._random = random
        self._backoff = Backoff(random)
        self._state = ClientState.IDLE
        self._is_carrier_open = False
        self._retry_at: float | None = None
        self._is_held = False
        self._attach_by: float | None = None
        self._patience_s = ATTACH_LIMIT_S
        self._registrations: dict[str, _Registration] = {}
        self._rejected: set[str] = set()
        self._requests: dict[int, float] = {}
        self._liveness = _Liveness()
        self._nonce = b""
        self._effects: list[ClientEffect] = []

    @property
    def state(self) -> ClientState:
        """How far the attachment has come."""
        return self._state

    @property
    def nonce(self) -> bytes:
        """What the intermediate had to sign on this attempt."""
        return self._nonce

    def attach(self, now: float) -> None:
        """Attach, and come back whenever it is lost; harmless when repeated."""
        if self._state is ClientState.IDLE:
            self._dial(now)

    def detach(self, now: float) -> None:
        """Leave and stay away."""
        if self._state is not ClientState.IDLE:
            self._lose(LEFT, "", now, is_clean=True, again=False)

    def reattach(self, now: float) -> None:
        """Attach anew at once, as what we show to the intermediate has changed; sessions live on.

        What it refused before it may accept now, so that a wait is not sat out.
        """
        if self._state not in {ClientState.CONNECTING, ClientState.ATTACHED}:
            self.handle_reachable(now)
            return
        # Without a goodbye, which would end them.
        self._lose(REATTACHING, "", now, is_clean=False)
        self._dial(now)

    def handle_reachable(self, now: float) -> None:
        """The intermediate has just answered on another connection: do not sit out the backoff."""
        if self._state is ClientState.WAITING and not self._is_held:
            self._dial(now)

    def handle_doubt(self, now: float) -> None:
        """Another connection to the intermediate broke: ask at once whether this one still works."""
        if self._state is ClientState.ATTACHED and self._liveness.pong_by is None:
            self._ping(now)

    def handle_carrier_open(self, now: float) -> None:
        """The carrier takes frames."""
        if self._state is not ClientState.CONNECTING or self._is_carrier_open:
            return
        self._is_carrier_open = True
        self._attach_by = now + self._patience_s
        self._nonce = self._random.randbytes(32)
        self._effects.append(SendAttachRequest(self._nonce))

    def handle_carrier_closed(
        self, reason: str, detail: str, now: float, *, is_authentication_failure: bool = False
    ) -> None:
        """The carrier broke, or could not be opened."""
        # A refusal is no outage: asking again soon only fills the logs of both.
        self._lose(
            reason,
            detail,
            now,
            is_clean=is_authentication_failure,
            is_authentication_failure=is_authentication_failure,
        )

    def handle_accepted(self, now: float) -> bool:
        """AttachAccepted came and its proof holds; False when nobody waits for it."""
        if self._state is not ClientState.CONNECTING or not self._is_carrier_open:
            return False
        self._state = ClientState.ATTACHED
        self._attach_by = None
        self._patience_s = ATTACH_LIMIT_S
        self._backoff.handle_connected(now)
        self._liveness = _Liveness(ping_at=now + PING_INTERVAL_S)
        self._rejected.clear()
        for service in self._services:
            self._register(service, 1, now)
        return True

    def handle_untrusted(self, detail: str, now: float) -> None:
        """The intermediate could not prove what it claims to be."""
        self._lose("untrusted_intermediate", detail, now, is_clean=False, is_authentication_failure=True)

    def handle_protocol_error(self, detail: str, now: float) -> None:
        """The intermediate sent what makes no sense, or a frame could not be sent."""
        self._lose("protocol_error", detail, now, is_clean=False)

    def handle_superseded(self, detail: str, now: float) -> None:
        """Another process attached under our identity: stay away for a while."""
        message = f"{detail}; this one stays away for {SUPERSEDED_HOLD_S:g} s"
        self._lose("superseded", message, now, is_clean=True)

    def handle_goodbye(self, reason: str, now: float) -> None:
        """The intermediate leaves on purpose."""
        self._lose("intermediate_left", reason, now, is_clean=False)

    def handle_registration_answered(self, service: str, *, is_accepted: bool) -> None:
        """A registration was accepted or rejected; a rejected one is not retried until `offer`."""
        self._registrations.pop(service, None)
        if is_accepted:
            self._rejected.discard(service)
        elif service in self._services:
            self._rejected.add(service)

    def offer(self, services: Iterable[str], changed: Container[str], now: float) -> None:
        """Offer these services: register what is new, `changed` or was rejected, withdraw what is gone."""
        former, self._services = self._services, tuple(services)
        rejected, self._rejected = self._rejected, set()
        for service in set(former) - set(self._services):
            self._registrations.pop(service, None)
        if self._state is not ClientState.ATTACHED:
            return
        self._effects += [SendWithdrawal(service) for service in former if service not in self._services]
        for service in self._services:
            if service not in former or service in changed or service in rejected:
                self._register(service, 1, now)

    def request(self, request_id: int, now: float) -> bool:
        """Take note of a request that is being sent; False when it cannot be."""
        if self._state is not ClientState.ATTACHED or len(self._requests) >= MAX_REQUESTS:
            is_full = self._state is ClientState.ATTACHED
            self._effects.append(RequestTimedOut(request_id, "rate_limited" if is_full else "not_attached"))
            return False
        self._requests[request_id] = now + REQUEST_LIMIT_S
        return True

    def handle_answered(self, request_id: int) -> bool:
        """A request was answered; False when nobody waits for it any more."""
        return self._requests.pop(request_id, None) is not None

    def handle_pong(self, ping_id: int) -> None:
        """A sign of life that was asked for."""
        if ping_id == self._liveness.last_ping_id:
            self._liveness.pong_by = None

    def handle_timeout(self, now: float) -> None:
        """Act on whatever is due."""
        if self._retry_at is not None and now >= self._retry_at:
            self._dial(now)
        elif self._attach_by is not None and now >= self._attach_by:
            self._lose("attach_timeout", f"no answer within {self._patience_s:g} s", now, is_clean=False)
            self._patience_s = min(2 * self._patience_s, MAX_ATTACH_LIMIT_S)
        elif self._liveness.pong_by is not None and now >= self._liveness.pong_by:
            self._lose("silent", f"no answer within {PONG_LIMIT_S:g} s", now, is_clean=False)
        if self._state is ClientState.ATTACHED:
            self._repeat(now)

    def next_deadline(self) -> float | None:
        """The earliest of everything that `handle_timeout` looks after."""
        deadlines = [self._retry_at, self._attach_by, self._liveness.ping_at, self._liveness.pong_by]
        deadlines.extend(registration.repeat_at for registration in self._registrations.values())
        deadlines.extend(self._requests.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def drain(self) -> list[ClientEffect]:
        """Hand over what to do, in order."""
        effects, self._effects = self._effects, []
        return effects

    def _dial(self, now: float) -> None:
        self._state = ClientState.CONNECTING
        self._is_carrier_open = False
        self._retry_at = None
        self._is_held = False
        self._attach_by = now + self._patience_s
        self._effects.append(OpenCarrier())

    def _ping(self, now: float) -> None:
        liveness = self._liveness
        liveness.ping_at = now + PING_INTERVAL_S
        liveness.pong_by = now + PONG_LIMIT_S
        liveness.last_ping_id += 1
        self._effects.append(SendPing(liveness.last_ping_id))

    def _register(self, service: str, tries: int, now: float) -> None:
        self._registrations[service] = _Registration(tries, now + REGISTRATION_INTERVAL_S)
        self._effects.append(SendRegistration(service))

    def _repeat(self, now: float) -> None:
        for service, registration in list(self._registrations.items()):
            if now < registration.repeat_at:
                continue
            if registration.tries >= REGISTRATION_TRIES:
                self._lose("registration_timeout", service, now, is_clean=False)
                return
            self._register(service, registration.tries + 1, now)
        for request_id in [request_id for request_id, by in self._requests.items() if now >= by]:
            del self._requests[request_id]
            self._effects.append(RequestTimedOut(request_id, "session_timeout"))
        # The limit of an answer is shorter than the interval, so none is outstanding here.
        if self._liveness.ping_at is not None and now >= self._liveness.ping_at:
            self._ping(now)

    def _lose(
        self,
        reason: str,
        detail: str,
        now: float,
        *,
        is_clean: bool,
        is_authentication_failure: bool = False,
        again: bool = True,
    ) -> None:
        if again and self._state not in {ClientState.CONNECTING, ClientState.ATTACHED}:
            return  # late news of a carrier that is gone
        self._effects.append(CloseCarrier())
        self._is_carrier_open = False
        self._attach_by = None
        self._liveness = _Liveness()
        self._registrations.clear()
        self._effects.extend(RequestTimedOut(request_id, reason) for request_id in self._requests)
        self._requests.clear()
        self._backoff.handle_lost(now, is_clean=is_clean)
        retry_in_s: float | None = None
        if again:
            self._is_held = reason == "superseded"
            retry_in_s = SUPERSEDED_HOLD_S if self._is_held else self._backoff.next_delay_s(now)
            self._retry_at = now + retry_in_s
            self._state = ClientState.WAITING
        else:
            self._retry_at = None
            self._is_held = False
            self._state = ClientState.IDLE
        self._effects.append(Lost(reason, detail, is_authentication_failure, retry_in_s))
