"""Consent and round-trip time of the paths of one session (RFC 7675): who is asked when, what silence means.

Two paths are watched: the nominated pair, and the relay that the session came up on last. Both are asked by
the same authenticated Binding request; through a relay it travels as if it were a sealed packet, so that the
intermediate can drop or delay it and nothing else.

A watch is STEADY (asked now and then; silence is missed, and in the end consent expires), FAILED (asked
after 1, 2, 4 s ... until it answers) or RECOVERING (asked every second until whoever selects paths trusts it
again).

Credentials change with each generation of the checks. From the moment at which both sides of a new one are
known, its credentials serve for the pair of the old one, too: the peer accepts its own new ones from its
offer on, and the old ones only for a few seconds more, while checks may take far longer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice.candidate import CandidateType
from ztna.ice.candidate import priority as candidate_priority
from ztna.ice.timing import (
    CONSENT_LIMIT_S,
    FAILED_AFTER_MISSED,
    KEEPALIVE_ACTIVE_S,
    KEEPALIVE_ACTIVITY_S,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_JITTER,
    KEEPALIVE_SENDS_S,
    KEEPALIVE_TIMEOUT_S,
    KEEPALIVE_URGENT_SENDS_S,
    RECHECK_MAX_S,
    RECHECK_S,
    PathState,
)
from ztna.stun.attributes import Attribute, IceControlled, IceControlling, Priority, Username
from ztna.stun.message import BINDING, TRANSACTION_ID_BYTES, Message, MessageClass, build, parse

RECOVERING_INTERVAL_S = 1.0
"""Three or four answers in the seconds that a pair has to hold."""
RECOVERING_TIMEOUT_S = 2.0
"""Its sends are over by then; a pair that just came back is not waited for longer."""
RESEND_ROUND_TRIPS = 1.5
"""No send of a check follows the one before so fast that the answer could still be on its way."""
MAX_RELAYS = 16
"""Intermediates of one node; a deployment has a handful (`ztna.path.manager.MAX_RELAY_PATHS`)."""
MAX_LOCAL_CREDENTIALS = 3
"""Of the generation in use, the one before it, and one in preparation."""
MAX_RELAYED_ANSWERS = 20
"""Relayed requests answered per second: a peer asks once in seconds, three sends each, and an intermediate
that repeats what it has seen must not make this end repeat itself."""
_ANSWERS_WINDOW_S = 1.0
_LOCAL_PREFERENCE_MASK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Credentials:
    """Short-term credentials of one side and generation (RFC 8445 §5.3)."""

    ufrag: str
    pwd: str

    @property
    def key(self) -> bytes:
        """Of the integrity (RFC 8489 §9.1.1)."""
        return self.pwd.encode()


@dataclass(frozen=True, slots=True)
class DirectPair:
    """The nominated pair, as packets on it are addressed."""

    remote: TransportAddress
    local_host: str = ""


@dataclass(frozen=True, slots=True)
class SendCheck:
    """Send this request on the direct pair; the response's integrity has the key `pwd`."""

    pair: DirectPair
    transaction_id: bytes
    pwd: str
    datagram: bytes


@dataclass(frozen=True, slots=True)
class SendRelayed:
    """Send this message among the sealed packets of the session."""

    intermediate_id: str
    datagram: bytes


@dataclass(frozen=True, slots=True)
class PathConfirmed:
    """A path answered; `pair` is None for the relay, `rtt_s` None when a repeated send makes it ambiguous."""

    pair: DirectPair | None
    rtt_s: float | None


@dataclass(frozen=True, slots=True)
class KeepaliveMissed:
    """A path did not answer in time, for the `missed`th time in a row."""

    pair: DirectPair | None
    missed: int


@dataclass(frozen=True, slots=True)
class ConsentExpired:
    """No payload may go to this pair any more."""

    pair: DirectPair


ConsentEffect = SendCheck | SendRelayed | PathConfirmed | KeepaliveMissed | ConsentExpired


@dataclass(slots=True)
class ConsentStatistics:
    """Counters since the start."""

    sent: int = 0
    answered: int = 0
    missed: int = 0
    received: int = 0


class _Mode(Enum):
    STEADY = auto()
    FAILED = auto()
    RECOVERING = auto()


@dataclass(slots=True)
class _Check:
    transaction_id: bytes
    remote: Credentials
    datagram: bytes
    started_at: float
    sends_s: tuple[float, ...]
    sends: int = 0

    @property
    def next_send_at(self) -> float | None:
        return self.started_at + self.sends_s[self.sends] if self.sends < len(self.sends_s) else None


@dataclass(slots=True)
class _Watch:
    """One path that is asked. Of `pair` and `relay` exactly one is set."""

    pair: DirectPair | None
    relay: str
    confirmed_at: float
    began_at: float  # of the last check
    factor: float  # the jitter that was drawn for the next one
    mode: _Mode = _Mode.STEADY
    check: _Check | None = None
    missed: int = 0
    rechecks: int = 0
    rtt_s: float | None = None


class Consent:
    """The checks of one session at one end; times in monotonic seconds."""

    def __init__(
        self,
        rng: random.Random,
        *,
        interval_s: float = KEEPALIVE_ACTIVE_S,
        timeout_s: float = KEEPALIVE_TIMEOUT_S,
        max_missed: int = FAILED_AFTER_MISSED,
    ) -> None:
        self.statistics = ConsentStatistics()
        self._rng = rng
        self._interval_s = interval_s
        self._idle_interval_s = max(interval_s, KEEPALIVE_IDLE_S)
        self._timeout_s = timeout_s
        self._max_missed = max_missed
        self._locals: dict[str, Credentials] = {}  # by ufrag, the latest last
        self._prepared: tuple[int, Credentials] | None = None
        self._is_controlling: bool | None = None
        self._tie_breaker = rng.getrandbits(64)
        self._credentials: tuple[Credentials, Credentials] | None = None
        self._priority = candidate_priority(CandidateType.PEER_REFLEXIVE, _LOCAL_PREFERENCE_MASK)
        self._relays: dict[str, None] = {}
        self._direct: _Watch | None = None
        self._relay: _Watch | None = None
        self._payload_bytes = 0
        self._active_until = 0.0
        self._answers_from = 0.0
        self._answers = 0
        self._effects: list[ConsentEffect] = []

    # What is watched, and with whose word

    def handle_prepared(self, generation: int, local: Credentials, *, is_controlling: bool) -> None:
        """Our credentials of a new generation are on their way to the peer."""
        self._prepared = (generation, local)
        self._is_controlling = is_controlling
        self._accept(local)

    def handle_started(self, generation: int, remote: Credentials, now: float) -> None:
        """The peer's credentials of that generation are known; it accepts them already."""
        if self._prepared is not None and self._prepared[0] == generation:
            self._use(self._prepared[1], remote, now)

    def handle_nominated(
        self,
        pair: DirectPair,
        local: Credentials,
        remote: Credentials,
        now: float,
        *,
        rtt_s: float | None = None,
        local_priority: int = 0,
    ) -> None:
        """Watch this pair in place of a former one; `local_priority` is its local candidate's."""
        self._use(local, remote, now)
        self._priority = candidate_priority(
            CandidateType.PEER_REFLEXIVE, local_priority >> 8 & _LOCAL_PREFERENCE_MASK
        )
        self._direct = self._watch(now, pair=pair)
        self._direct.rtt_s = rtt_s
        # A relay beside a direct pair is asked more often than alone.
        self.handle_timeout(now)

    def handle_relay(self, intermediate_id: str, now: float, *, is_up: bool) -> None:
        """The session can, or can no longer, be reached through this intermediate."""
        self._relays.pop(intermediate_id, None)
        if is_up:
            if len(self._relays) >= MAX_RELAYS:
                del self._relays[next(iter(self._relays))]
            self._relays[intermediate_id] = None
        if not is_up or self._relay is None or self._relay.relay != intermediate_id:
            self._watch_relay(now)

    def handle_peer_on_relay(self, intermediate_id: str, now: float) -> None:
        """The peer is at this relay, which may not be the latest."""
        if intermediate_id in self._relays:
            self.handle_relay(intermediate_id, now, is_up=True)

    def handle_state(self, remote: TransportAddress, state: PathState, now: float) -> None:
        """Whoever selects paths judges the direct one to this address otherwise."""
        watch = self._direct
        if watch is None or watch.pair is None or watch.pair.remote != remote:
            return
        if state is PathState.FAILED:
            if watch.mode is not _Mode.FAILED:
                self._fail(watch, now)
        elif state is not PathState.RECOVERING and watch.mode is _Mode.RECOVERING:
            watch.mode = _Mode.STEADY
            self.handle_timeout(now)

    def handle_payload(self, payload_bytes: int, now: float) -> None:
        """So many bytes of payload have flowed since the session began."""
        if payload_bytes > self._payload_bytes:
            self._payload_bytes = payload_bytes
            self._active_until = now + KEEPALIVE_ACTIVITY_S
            self.handle_timeout(now)

    def handle_suspected(self, *, is_direct: bool, now: float) -> None:
        """This path is in doubt: ask it at once, and more insistently."""
        watch = self._direct if is_direct else self._relay
        if watch is not None and watch.mode is _Mode.STEADY:
            self._begin(watch, now, KEEPALIVE_URGENT_SENDS_S)

    def handle_flow_stopped(self, now: float) -> None:
        """What came steadily comes no more: ask every path that is well, once.

        Whoever only receives sends so little through the relay that a NAT which forgot its mapping stays
        closed there, too. A check that waits for its answer is sent again, not replaced: else a path that
        stays silent would never be missed.
        """
        for watch in self._watches():
            if watch.mode is not _Mode.STEADY:
                continue
            if watch.check is None:
                self._begin(watch, now, KEEPALIVE_URGENT_SENDS_S)
            else:
                self._send(watch, watch.check, now)

    # What comes in

    def handle_response(self, source: TransportAddress, datagram: bytes, now: float) -> None:
        """Take a response on the direct pair; whoever passes it on has verified its integrity."""
        watch = self._direct
        if watch is None or watch.pair is None or watch.pair.remote != source:
            return
        message = _parse(datagram)
        if message is not None:
            self._take_response(watch, message, now)

    def handle_relayed(self, intermediate_id: str, datagrams: Iterable[bytes], now: float) -> None:
        """Take messages that came through a relay; nobody has verified them."""
        for datagram in datagrams:
            message = _parse(datagram)
            if message is None or message.method != BINDING or message.unknown_required:
                continue
            if message.message_class is MessageClass.REQUEST:
                self._answer(intermediate_id, message, now)
                continue
            watch = self._relay
            if (
                watch is not None
                and watch.relay == intermediate_id
                and watch.check is not None
                and message.verify_integrity(watch.check.remote.key)
            ):
                self._take_response(watch, message, now)

    # Time

    def handle_timeout(self, now: float) -> None:
        """Send what is due, and judge what stayed unanswered."""
        for watch in self._watches():
            self._tend(watch, now)

    def next_deadline(self) -> float | None:
        """The earliest of the next send, the next check and the next judgement."""
        return min((self._due(watch) for watch in self._watches()), default=None)

    def drain(self) -> list[ConsentEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    # Inside

    def _watches(self) -> Iterator[_Watch]:
        if self._direct is not None:
            yield self._direct
        if self._relay is not None:
            yield self._relay

    def _accept(self, local: Credentials) -> None:
        self._locals.pop(local.ufrag, None)
        self._locals[local.ufrag] = local
        if len(self._locals) > MAX_LOCAL_CREDENTIALS:
            del self._locals[next(iter(self._locals))]

    def _use(self, local: Credentials, remote: Credentials, now: float) -> None:
        self._accept(local)
        self._credentials = (local, remote)
        if self._relay is None:
            self._watch_relay(now)

    def _watch(self, now: float, *, pair: DirectPair | None = None, relay: str = "") -> _Watch:
        return _Watch(
            pair, relay, confirmed_at=now, began_at=now, factor=self._rng.uniform(*KEEPALIVE_JITTER)
        )

    def _watch_relay(self, now: float) -> None:
        latest = next(reversed(self._relays), None)
        if latest is None or self._credentials is None:
            self._relay = None
        elif self._relay is None or self._relay.relay != latest:
            self._relay = self._watch(now, relay=latest)
            # Nobody has asked it yet, and its round-trip time is wanted.
            self._begin(self._relay, now)

    def _due(self, watch: _Watch) -> float:
        check = watch.check
        if watch.mode is _Mode.FAILED:
            due = watch.began_at + _recheck_delay(watch.rechecks)
        elif check is not None:
            due = check.started_at + self._patience(watch)
        elif watch.mode is _Mode.RECOVERING:
            due = watch.began_at + RECOVERING_INTERVAL_S
        else:
            due = self._next_regular(watch)
        if check is not None and check.next_send_at is not None:
            due = min(due, check.next_send_at)
        if watch.pair is not None and watch.mode is _Mode.STEADY:
            due = min(due, watch.confirmed_at + CONSENT_LIMIT_S)
        return due

    def _next_regular(self, watch: _Watch) -> float:
        is_busy = watch.pair is None and self._direct is not None and self._direct.mode is _Mode.STEADY
        active = watch.began_at + watch.factor * self._interval_s
        if is_busy or active <= self._active_until:
            return active
        return watch.began_at + watch.factor * self._idle_interval_s

    def _patience(self, watch: _Watch) -> float:
        if watch.mode is _Mode.RECOVERING:
            return min(self._timeout_s, RECOVERING_TIMEOUT_S)
        return self._timeout_s

    def _tend(self, watch: _Watch, now: float) -> None:
        if self._due(watch) > now:
            return
        check = watch.check
        if watch.mode is _Mode.FAILED:
            if now >= watch.began_at + _recheck_delay(watch.rechecks):
                watch.rechecks += 1
                self._begin(watch, now)
                return
        elif self._is_expired(watch, now):
            self._expire(watch, now)
            return
        elif check is not None and now >= check.started_at + self._patience(watch):
            self._miss(watch, now)
            return
        if check is None:
            self._begin(watch, now)
        elif check.next_send_at is not None and now >= check.next_send_at:
            self._send(watch, check, now)

    def _is_expired(self, watch: _Watch, now: float) -> bool:
        return (
            watch.pair is not None
            and watch.mode is _Mode.STEADY
            and now >= watch.confirmed_at + CONSENT_LIMIT_S
        )

    def _begin(self, watch: _Watch, now: float, sends_s: tuple[float, ...] = KEEPALIVE_SENDS_S) -> None:
        watch.check = None
        watch.began_at = now
        watch.factor = self._rng.uniform(*KEEPALIVE_JITTER)
        if self._credentials is None:
            return
        local, remote = self._credentials
        transaction_id = self._rng.randbytes(TRANSACTION_ID_BYTES)
        attributes: list[Attribute] = [Username(f"{remote.ufrag}:{local.ufrag}"), Priority(self._priority)]
        if self._is_controlling is not None:
            role = IceControlling if self._is_controlling else IceControlled
            attributes.append(role(self._tie_breaker))
        request = Message(BINDING, MessageClass.REQUEST, transaction_id, tuple(attributes))
        gap_s = RESEND_ROUND_TRIPS * (watch.rtt_s or 0.0)
        watch.check = _Check(
            transaction_id,
            remote,
            build(request, key=remote.key, with_fingerprint=True),
            now,
            tuple(max(after_s, number * gap_s) for number, after_s in enumerate(sends_s)),
        )
        self.statistics.sent += 1
        self._send(watch, watch.check, now)

    def _send(self, watch: _Watch, check: _Check, now: float) -> None:
        check.sends += 1
        # Of several missed sends only one is made up for.
        while check.next_send_at is not None and check.next_send_at <= now:
            check.sends += 1
        if watch.pair is None:
            self._effects.append(SendRelayed(watch.relay, check.datagram))
        else:
            self._effects.append(
                SendCheck(watch.pair, check.transaction_id, check.remote.pwd, check.datagram)
            )

    def _take_response(self, watch: _Watch, message: Message, now: float) -> None:
        check = watch.check
        if (
            check is None
            or message.transaction_id != check.transaction_id
            or message.message_class is not MessageClass.SUCCESS_RESPONSE
        ):
            return
        is_ambiguous = check.sends > 1
        rtt_s = now - check.started_at
        if is_ambiguous and watch.rtt_s is not None:
            confirmed_rtt_s = None
        else:
            # Of a path that nobody has measured, the first send gives an upper bound: the next check leaves
            # more room between its sends, and finds out.
            watch.rtt_s = rtt_s
            confirmed_rtt_s = None if is_ambiguous else rtt_s
        watch.check = None
        watch.missed = 0
        watch.confirmed_at = now
        if watch.mode is _Mode.FAILED:
            watch.mode = _Mode.RECOVERING
            watch.began_at = now
        self.statistics.answered += 1
        self._effects.append(PathConfirmed(watch.pair, confirmed_rtt_s))

    def _miss(self, watch: _Watch, now: float) -> None:
        watch.missed += 1
        self.statistics.missed += 1
        self._effects.append(KeepaliveMissed(watch.pair, watch.missed))
        if watch.mode is _Mode.RECOVERING:
            self._fail(watch, now)
        elif watch.pair is not None and watch.missed >= self._max_missed:
            self._expire(watch, now)
        else:
            self._begin(watch, now)

    def _expire(self, watch: _Watch, now: float) -> None:
        if watch.pair is not None:
            self._effects.append(ConsentExpired(watch.pair))
        self._fail(watch, now)

    def _fail(self, watch: _Watch, now: float) -> None:
        watch.mode = _Mode.FAILED
        watch.check = None
        watch.rechecks = 0
        watch.began_at = now

    def _answer(self, intermediate_id: str, request: Message, now: float) -> None:
        username = request.find(Username)
        local = self._locals.get(username.text.partition(":")[0]) if username is not None else None
        if local is None or not request.verify_integrity(local.key):
            return
        if now >= self._answers_from + _ANSWERS_WINDOW_S:
            self._answers_from, self._answers = now, 0
        self._answers += 1
        self.statistics.received += 1
        if self._answers > MAX_RELAYED_ANSWERS:
            return
        response = Message(BINDING, MessageClass.SUCCESS_RESPONSE, request.transaction_id)
        datagram = build(response, key=local.key, with_fingerprint=True)
        self._effects.append(SendRelayed(intermediate_id, datagram))


def _recheck_delay(rechecks: int) -> float:
    if rechecks < len(RECHECK_S):
        return RECHECK_S[rechecks]
    return min(RECHECK_S[-1] * 2.0 ** (rechecks - len(RECHECK_S) + 1), RECHECK_MAX_S)


def _parse(datagram: bytes) -> Message | None:
    try:
        return parse(datagram)
    except RemoteProtocolError:
        return None
