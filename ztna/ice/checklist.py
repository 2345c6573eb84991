"""Connectivity checks of one session: finds pairs of candidates that work, and one for both ends to use.

One `Checklist` serves a session through all its generations (RFC 8445 §6, §7, §9; docs/wire.md §8):

    prepare(n) -> [peer's checks are answered] -> start(n) -> [delay] -> checks run -> ... -> prepare(n+1)

Checks begin when the delay is over, or at once when the peer is heard. Each 20 ms one new check is sent: a
padded one for the pair to be nominated (`ztna.ice.nomination`), else a triggered one, else the next in order
(`ztna.ice.pair_table`). Every authentic check of the peer is answered, also before the start, after the end
and for former generations.

Departures from RFC 8445, each argued where it is made: the schedule of a check, late answers, answers from
elsewhere (`ztna.stun.transaction`); renomination and proof (`ztna.ice.nomination`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.ice import checks
from ztna.ice.candidate import Candidate
from ztna.ice.checklist_effects import (
    NO_COMMON_FAMILY,
    AcceptCredentials,
    ChecklistEffect,
    ChecklistFailed,
    ChecksBegan,
    PairNominated,
    PairSucceeded,
    PairView,
    RefuseCredentials,
)
from ztna.ice.checks import Check
from ztna.ice.credentials import IceCredentials
from ztna.ice.nomination import PADDED_CHECK, Nomination
from ztna.ice.open_checks import OpenCheck, OpenChecks, Outcome
from ztna.ice.pair import CheckedPair, PairState, Proof
from ztna.ice.pair_table import PairTable
from ztna.ice.timing import CHECK_PACING_S
from ztna.stun.attributes import MAX_USERNAME_BYTES, XorMappedAddress
from ztna.stun.message import Message, MessageClass, parse
from ztna.stun.transaction import CONNECTIVITY_CHECK, FailureReason, TransactionFailed, TransactionSucceeded

MAX_FORMER_CREDENTIALS: Final = 4
"""Generations whose checks are still answered: the socket lets them through for 5 s, restarts are rarer.
Those of the nominated pair come on top: the path lives by its checks until another generation takes over."""

MAX_EARLY_CHECKS: Final = 32
"""Sources heard before the peer, or a base to check it from, is known: as many as a side has candidates."""

MAX_ROLE_SWITCHES: Final = 8
"""Of a generation. Two honest ends need one; a peer that never agrees must not keep us busy."""

_UFRAG_CHARACTERS: Final = range(4, 257)
_PWD_CHARACTERS: Final = range(22, 257)


@dataclass(frozen=True, slots=True)
class _EarlyCheck:
    """The last check of a source that could not be acted upon yet."""

    priority: int
    uses_candidate: bool
    transaction_id: bytes


class Checklist:
    """The checklist of one session.

    Attributes:
        dropped: messages of the peer that were worth nothing, by reason.
        changes: counts up whenever `view` may show something new.
    """

    def __init__(self, chance: random.Random, *, ta_s: float = CHECK_PACING_S) -> None:
        """`chance` draws tie-breakers and transaction ids; `ta_s` is seconds between new checks."""
        self._chance = chance
        self._ta_s = ta_s
        self._former: dict[str, IceCredentials] = {}
        self._in_use: IceCredentials | None = None  # ours, of the generation that nominated last
        self._effects: list[ChecklistEffect] = []
        self.dropped: Counter[str] = Counter()
        self.changes = 0
        self._generation = 0
        self._local: IceCredentials | None = None
        self._reset(is_controlling=False)

    def _reset(self, *, is_controlling: bool) -> None:
        self._remote: IceCredentials | None = None
        self._table = PairTable(is_controlling=is_controlling)
        self._nomination = Nomination(is_controlling=is_controlling)
        self._open = OpenChecks()
        self._tie_breaker = self._chance.getrandbits(checks.TIE_BREAKER_BITS)
        self._early: dict[tuple[TransportAddress, str], _EarlyCheck] = {}
        self._ended = {True: False, False: False}  # by whether it is our side
        self._begins_at: float | None = None
        self._next_check_at = 0.0
        self._role_switches = 0
        self._is_running = False
        self._is_stopped = False
        self._has_begun = False
        self._has_failed = False

    @property
    def generation(self) -> int:
        """Of the last `handle_prepare`; 0 before the first."""
        return self._generation

    @property
    def is_controlling(self) -> bool:
        """Our role; a conflict may change it (RFC 8445 §7.3.1.1)."""
        return self._nomination.is_controlling

    @property
    def refused(self) -> int:
        """Candidates and pairs of this generation that did not fit."""
        return self._table.refused

    def view(self) -> list[PairView]:
        """Every pair, highest priority first."""
        selected = self._nomination.selected
        return [PairView.of(pair, is_nominated=pair is selected) for pair in self._table.pairs]

    def handle_prepare(
        self,
        generation: int,
        local: IceCredentials,
        candidates: Iterable[Candidate],
        *,
        is_controlling: bool,
    ) -> None:
        """Begin a new generation: from now on checks that carry `local` are answered.

        Raises `LocalProtocolError` unless `generation` is above the last one.
        """
        if generation <= self._generation:
            raise LocalProtocolError(f"generation {generation} after {self._generation}")
        former, self._local = self._local, local
        self._generation = generation
        self._reset(is_controlling=is_controlling)
        self._effects.append(AcceptCredentials(local))
        # The exchange may come to nothing; then the peer goes on to check the path that is in use.
        if former is not None and former != self._in_use:
            self._retire(former)
        self._table.add_local(candidates)
        self.changes += 1

    def handle_start(
        self,
        generation: int,
        remote: IceCredentials,
        candidates: Iterable[Candidate],
        delay_s: float,
        now: float,
    ) -> None:
        """Check the peer from `now + delay_s` on, or as soon as it is heard; another generation is ignored.

        Raises `RemoteProtocolError("bad_credentials")` for credentials that no check can carry.
        """
        if generation != self._generation or self._local is None or self._is_stopped:
            return
        _require_usable(self._local, remote)
        self._remote = remote
        self._table.add_remote(candidates)
        if not self._is_running:
            self._begins_at = now + delay_s
        self._adopt_early(now)
        self._proceed(now)

    def handle_begin(self, generation: int, delay_s: float, now: float) -> None:
        """Begin checks that wait for their start at `now + delay_s` instead."""
        if generation == self._generation and self._begins_at is not None:
            self._begins_at = now + delay_s
            self._proceed(now)

    def handle_candidates(
        self, generation: int, candidates: Iterable[Candidate], now: float, *, is_local: bool, is_end: bool
    ) -> None:
        """Take more candidates of one side; `is_end`: there are no more of it. Others' are ignored."""
        if generation != self._generation:
            return
        if is_local:
            self._table.add_local(candidates)
            self._adopt_early(now)
        else:
            self._table.add_remote(candidates)
        self._ended[is_local] = self._ended[is_local] or is_end
        self.changes += 1
        self._proceed(now)

    def handle_stop(self, generation: int) -> None:
        """Check nothing any more; the peer is still answered."""
        if generation == self._generation:
            self._is_running = False
            self._is_stopped = True
            self._begins_at = None
            self._open = OpenChecks()
            self._table.triggered.clear()
            self._early.clear()

    def handle_message(self, data: bytes, source: TransportAddress, local_host: str, now: float) -> None:
        """Take a check of the peer or an answer to one of ours; `local_host` may be empty.

        What is worth nothing is counted in `dropped`, and nothing else comes of it.
        """
        self.changes += 1
        try:
            self._take(parse(data), source, local_host, now)
        except RemoteProtocolError as error:
            self.dropped[error.reason] += 1
        self._proceed(now)

    def handle_timeout(self, now: float) -> None:
        """Begin, send again, give up or go on, whatever is due."""
        sends, outcomes = self._open.handle_timeout(now)
        self._effects += sends
        self.changes += len(sends) + len(outcomes)
        for outcome in outcomes:
            self._settle(outcome, now)
        self._proceed(now)

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the earliest pending deadline."""
        deadlines = [self._begins_at, self._open.next_deadline()]
        if self._is_running and self._has_work(self._next_check_at):
            deadlines.append(self._next_check_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def drain(self) -> list[ChecklistEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _take(self, message: Message, source: TransportAddress, local_host: str, now: float) -> None:
        match message.message_class:
            case MessageClass.REQUEST:
                self._take_request(message, source, local_host, now)
            case MessageClass.SUCCESS_RESPONSE | MessageClass.ERROR_RESPONSE:
                self._take_response(message, source, now)
            case _:
                raise RemoteProtocolError("unexpected_class")

    def _take_request(self, message: Message, source: TransportAddress, local_host: str, now: float) -> None:
        """Answer a check of the peer, then act on it (RFC 8445 §7.3)."""
        check = checks.read_check(message)
        local, is_current = self._credentials_of(check)
        if not message.verify_integrity(local.key):
            raise RemoteProtocolError("bad_integrity")
        code = self._objection(check, is_current=is_current)
        if code is not None:
            data = checks.build_refusal(message, code, local.key)
            self._effects.append(Transmit(data, source, local_host))
            self.dropped[f"refused_{code}"] += 1
            return
        self._effects.append(Transmit(checks.build_answer(message, source, local.key), source, local_host))
        if is_current and not self._is_stopped:
            self._tell_began()
            priority = check.priority or 1
            early = _EarlyCheck(priority, check.uses_candidate, message.transaction_id)
            self._hear(early, source, local_host, now)

    def _credentials_of(self, check: Check) -> tuple[IceCredentials, bool]:
        """Ours that a check carries, and whether they are the present ones."""
        local = self._local
        if local is None or check.local_ufrag != local.ufrag:
            former = self._former.get(check.local_ufrag)
            if self._in_use is not None and check.local_ufrag == self._in_use.ufrag:
                former = self._in_use
            if former is None:
                raise RemoteProtocolError("unknown_ufrag")
            return former, False
        if self._remote is not None and check.remote_ufrag != self._remote.ufrag:
            raise RemoteProtocolError("unknown_ufrag")
        return local, True

    def _objection(self, check: Check, *, is_current: bool) -> int | None:
        """Error code to answer with, if any; may switch our role (RFC 8445 §7.3.1.1)."""
        if check.message.unknown_required:
            return checks.UNKNOWN_ATTRIBUTE
        if check.priority is None:
            return checks.BAD_REQUEST
        theirs = check.controlling if self.is_controlling else check.controlled
        if theirs is None or not is_current:
            return None
        # The larger tie-breaker controls; of equal ones, whoever is asked does.
        must_switch = (self._tie_breaker < theirs) is self.is_controlling
        if not must_switch:
            return checks.ROLE_CONFLICT
        if self._role_switches < MAX_ROLE_SWITCHES:
            self._switch_role()
        return None

    def _switch_role(self) -> None:
        self._role_switches += 1
        self._nomination.is_controlling = not self._nomination.is_controlling
        self._table.switch_role(is_controlling=self._nomination.is_controlling)

    def _hear(self, early: _EarlyCheck, source: TransportAddress, local_host: str, now: float) -> None:
        """The peer was heard: check back at once, or as soon as that is possible (RFC 8445 §7.3.1.4)."""
        if self._remote is None or self._table.base_for(source, local_host) is None:
            if len(self._early) < MAX_EARLY_CHECKS or (source, local_host) in self._early:
                self._early[source, local_host] = early
            else:
                self.dropped["too_many_early_checks"] += 1
            return
        self._begin(now)
        pair = self._table.learn(source, local_host, early.priority)
        if pair is None:
            self.dropped["too_many_sources"] += 1
            return
        pair.checks_received += 1
        if early.uses_candidate and self._nomination.handle_nominated(pair, early.transaction_id, now):
            self._tell_nominated(pair, self._remote)
        self._trigger(pair)

    def _trigger(self, pair: CheckedPair) -> None:
        """Let a triggered check follow, unless it would tell nothing."""
        if pair.state is PairState.SUCCEEDED or pair.is_too_narrow or not self._nomination.is_wanted(pair):
            return
        if pair.state is PairState.IN_PROGRESS:
            # What was sent before the peer was heard may have died at its NAT, which is open now.
            if pair.is_triggered:
                return
            self._open.supersede(pair)
        pair.is_triggered = True
        self._table.trigger(pair)

    def _adopt_early(self, now: float) -> None:
        """Act on what was heard too early, as far as that is possible now."""
        early, self._early = self._early, {}
        for (source, local_host), check in early.items():
            self._hear(check, source, local_host, now)

    def _take_response(self, message: Message, source: TransportAddress, now: float) -> None:
        outcome = self._open.handle_response(message, source, now)
        if outcome is None:
            raise RemoteProtocolError("unexpected_response")
        self._settle(outcome, now)

    def _settle(self, outcome: Outcome, now: float) -> None:
        """Act on what came of a check of ours (RFC 8445 §7.2.5)."""
        check, pair = outcome.check, outcome.check.pair
        if isinstance(outcome.result, TransactionSucceeded):
            pair.checks_answered += 1
            mapped = outcome.result.response.find(XorMappedAddress)
            if mapped is not None:
                self._succeed(check, outcome.result, mapped.address, now)
                return
            failure = "malformed_answer"
        else:
            if outcome.is_current and self._repair_role(check, outcome.result):
                return
            failure = _failure(outcome.result, is_padded=check.is_padded)
        if outcome.is_current:
            if check.is_padded:
                pair.proof = Proof.FAILED
            pair.enter(PairState.FAILED, failure)

    def _succeed(
        self, check: OpenCheck, result: TransactionSucceeded, mapped: TransportAddress, now: float
    ) -> None:
        pair = check.pair
        if not self._table.holds(pair) or (pair.is_too_narrow and not check.is_padded):
            return
        if result.rtt_s is not None:
            pair.rtt_s = result.rtt_s
        pair.valid_local = self._table.local_seen_as(pair, mapped)
        if pair.state is not PairState.SUCCEEDED:
            self._open.supersede(pair)
            self._table.triggered.pop(pair.key, None)
            pair.enter(PairState.SUCCEEDED)
            self._table.unfreeze(pair.foundation)
            self._effects.append(PairSucceeded(self._generation, self._view(pair)))
        if check.is_padded and self._nomination.handle_proof(pair, now, is_nominating=check.uses_candidate):
            assert self._remote is not None  # noqa: S101 - checks are sealed with its pwd
            self._tell_nominated(pair, self._remote)

    def _repair_role(self, check: OpenCheck, result: TransactionFailed) -> bool:
        """Switch roles and check again if that is what the peer asks for (RFC 8445 §7.2.5.1)."""
        if result.error_code != checks.ROLE_CONFLICT or self._role_switches >= MAX_ROLE_SWITCHES:
            return False
        if check.is_controlling is self.is_controlling:
            self._switch_role()
            self._tie_breaker = self._chance.getrandbits(checks.TIE_BREAKER_BITS)
        if check.is_padded:
            check.pair.proof = Proof.NONE
        else:
            self._table.trigger(check.pair)
        return True

    def _proceed(self, now: float) -> None:
        """Send the next check if it is time for one, and see whether any is left."""
        if self._begins_at is not None and now >= self._begins_at:
            self._begin(now)
        if self._is_running and now >= self._next_check_at:
            self._send_next(now)
        is_complete = all(self._ended.values()) and self._remote is not None and not self._is_stopped
        if is_complete and not self._has_failed and self._is_hopeless():
            self._has_failed = True
            self._effects.append(ChecklistFailed(self._generation, self._reason()))

    def _begin(self, now: float) -> None:
        if not self._is_running:
            self._is_running = True
            self._begins_at = None
            self._next_check_at = now

    def _has_work(self, now: float) -> bool:
        return (
            self._nomination.next_proof(self._table.pairs, now) is not None
            or bool(self._table.triggered)
            or self._table.next_ordinary(self._nomination.floor) is not None
        )

    def _send_next(self, now: float) -> None:
        self._next_check_at = now
        proof = self._nomination.next_proof(self._table.pairs, now)
        if proof is not None:
            proof.proof = Proof.PENDING
            proof.proofs += 1
            self._send(proof, now, is_padded=True)
            return
        if self._table.triggered:
            key = next(iter(self._table.triggered))
            pair = self._table.triggered.pop(key)
        else:
            ordinary = self._table.next_ordinary(self._nomination.floor)
            if ordinary is None:
                return
            pair = ordinary
            pair.is_triggered = False
            if pair.state is PairState.FROZEN:
                pair.enter(PairState.WAITING)
        pair.enter(PairState.IN_PROGRESS)
        self._send(pair, now, is_padded=False)

    def _send(self, pair: CheckedPair, now: float, *, is_padded: bool) -> None:
        assert self._local is not None and self._remote is not None  # noqa: S101, PT018 - since it runs
        transaction_id = checks.draw_transaction_id(self._chance)
        uses_candidate = is_padded and self.is_controlling
        data = checks.build_check(
            transaction_id,
            self._local,
            self._remote,
            priority=pair.check_priority,
            is_controlling=self.is_controlling,
            tie_breaker=self._tie_breaker,
            uses_candidate=uses_candidate,
            is_padded=is_padded,
        )
        self._effects += self._open.start(
            pair,
            transaction_id,
            data,
            self._remote.pwd,
            PADDED_CHECK if is_padded else CONNECTIVITY_CHECK,
            now,
            is_padded=is_padded,
            uses_candidate=uses_candidate,
            is_controlling=self.is_controlling,
        )
        self._next_check_at = now + self._ta_s
        self.changes += 1
        self._tell_began()

    def _is_hopeless(self) -> bool:
        return self._nomination.selected is None and all(
            pair.state is PairState.FAILED for pair in self._table.pairs
        )

    def _reason(self) -> str:
        """Of no direct path: narrow paths before silent ones, as somebody can mend them."""
        failures = {pair.failure for pair in self._table.pairs}
        if not failures:
            return "no_pairs" if self._table.has_common_family else NO_COMMON_FAMILY
        return "mtu" if "mtu" in failures else "no_answer"

    def _tell_began(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._effects.append(ChecksBegan(self._generation))

    def _tell_nominated(self, pair: CheckedPair, remote: IceCredentials) -> None:
        assert self._local is not None  # noqa: S101 - a pair belongs to a generation
        self._effects.append(
            PairNominated(self._generation, self._view(pair), checks.PADDED_CHECK_BYTES, self._local, remote)
        )
        former, self._in_use = self._in_use, self._local
        if former is not None and former != self._in_use:
            self._retire(former)

    def _retire(self, credentials: IceCredentials) -> None:
        """Have checks that carry these refused, once those under way are through."""
        self._effects.append(RefuseCredentials(credentials.ufrag))
        self._former[credentials.ufrag] = credentials
        if len(self._former) > MAX_FORMER_CREDENTIALS:
            del self._former[next(iter(self._former))]

    def _view(self, pair: CheckedPair) -> PairView:
        return PairView.of(pair, is_nominated=pair is self._nomination.selected)


def _require_usable(local: IceCredentials, remote: IceCredentials) -> None:
    # With the same ufrag at both ends, a check that comes back to us would read as one of the peer's.
    is_usable = (
        remote.ufrag != local.ufrag
        and len(remote.ufrag) in _UFRAG_CHARACTERS
        and len(remote.pwd) in _PWD_CHARACTERS
        and ":" not in remote.ufrag
        and len(f"{remote.ufrag}:{local.ufrag}".encode()) <= MAX_USERNAME_BYTES
    )
    if not is_usable:
        raise RemoteProtocolError("bad_credentials")


def _failure(result: TransactionFailed, *, is_padded: bool) -> str:
    match result.reason:
        case FailureReason.TIMEOUT:
            return "mtu" if is_padded else "no_answer"
        case FailureReason.UNKNOWN_ATTRIBUTE:
            return "malformed_answer"
        case _:
            return "refused" if result.error_code is None else f"refused_{result.error_code}"
