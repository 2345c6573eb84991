"""The search for a direct path of one session, at either end (docs/wire.md §8).

    IDLE ──> GATHERING ──> SIGNALING ──> WAITING_TO_START ──> CHECKING ──> CONNECTED
                               ^               │                 │             │
                               │               └────> FALLBACK_RELAY <─────────┘
                               └── retry, restart ───────┘        FAILED: no path at all, or refused

The agent offers and is controlling, the connector answers and is controlled. Each offer is a generation with
credentials of its own; a new one is an ICE restart (RFC 8445 §9). The session goes on meanwhile over what it
has. The first exchange goes through an intermediate, later ones through the session itself; an answer that
does not come is asked for once more through the intermediate.

The relay carries from the first moment, so nothing here is in a hurry: whatever fails is tried again, ever
more rarely, until an address of either side changes. Late successes count: checks that the peer answers after
`relay` was reported still lead to CONNECTED.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Final

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.ice import hole_punch_effects as effects
from ztna.ice import signals
from ztna.ice.candidate import Candidate
from ztna.ice.checklist_effects import NO_COMMON_FAMILY
from ztna.ice.generation import Gathered, Generation
from ztna.ice.hole_punch_table import TRANSITIONS, Step
from ztna.ice.signals import MAX_CANDIDATES, NETWORK_CHANGED, OPERATOR, POLICY_RELAY_ONLY, Credentials
from ztna.ice.timing import (
    COOLDOWN_FIRST_S,
    COOLDOWN_JITTER,
    COOLDOWN_MAX_S,
    DIRECT_PATH_LIMIT_S,
    RELAY_REPORTED_LIMIT_S,
    HolePunchState,
)
from ztna.nat.behaviour import MAPPING_OBSTACLES, UNKNOWN_BEHAVIOUR, NatBehaviour, obstacle
from ztna.token_bucket import TokenBucket

SIGNALING_LIMIT_S = 5.0
"""From the offer to its answer; the intermediate keeps the same limit."""

GATHERING_LIMIT_S = 2.0
"""For the first candidates: host candidates take no round trip. Then the offer leaves without any."""

ANSWER_PATIENCE_S = 0.1
"""How long an offer waits for our first candidates; later ones are trickled."""

REPEAT_AFTER_S = 1.5
"""Without an answer through the session: once more through an intermediate. Three relay round trips at 500
ms."""

UNTOLD_START_DELAY_MS = 1000
"""From the peer's candidates to the first check, where nobody says when to start."""

MAX_START_DELAY_MS = 300
"""Whatever an intermediate says, or the session's own round trip. Either may have been measured in the pause
of a hand-over, and be seconds too long; checks are sent at 0, 100, 300 ms, so who begins early loses nothing
but sends."""

SIGNALING_RETRY_S = 2.0
"""After an exchange without an answer, doubling up to the cooldown: signaling comes back sooner than NATs
change."""

RESTART_INTERVAL_S = 30.0
"""Between restarts for failures of a path: a path that fails again within that time will not last either."""

URGENT_INTERVAL_S = 1.0
"""Between restarts that an operator or a change of addresses asks for."""

GENERATIONS_PER_SECOND = 0.2
GENERATION_BURST = 4.0
"""Of the peer's: offers at a connector, urgent requests to restart at an agent. A peer that follows our rules
needs one per 30 s, and a few when its addresses change; each lets it have us send checks to 32 addresses."""

MAX_NAT_UPDATES = 16
"""Of the peer per generation: what a node knows of its NATs has fewer steps than that."""

MAX_GENERATION = 2**32 - 1
MAX_GENERATION_STEP = 2**20
"""An agent that lost count (its process did) finds the generation the others are at by doubling its step. No
intermediate makes a connector believe in a larger one, or it could use up all there are with one frame."""

FINAL_CODES: Final = frozenset({"access_denied", "not_a_party", "session_not_found"})
"""An intermediate's refusals that asking again does not change."""

_PEER_CODES: Final = frozenset({"invalid_message", "rate_limited", "peer_rejected"})
"""What the peer itself may answer to an offer."""

_PASSING_REASONS: Final = frozenset({"signaling_rate_limited", "signaling_timeout"})
"""Why an exchange failed that is worth another one even while the former path works: who asked for it, an
operator or a change of addresses, had a reason."""


_UNEXPLAINED: Final = frozenset({"all_pairs_failed", "no_answer", "no_direct_path_yet"})
"""Why an attempt came to nothing, where all that is known is that nothing was answered."""


class _Timer(Enum):
    """What the core waits for."""

    GATHERING = "gathering"
    ANSWER = "answer"
    SIGNALING = "signaling"
    REPEAT = "repeat"
    CHECKS = "checks"
    REPORT = "report"
    RETRY = "retry"


_ATTEMPT_TIMERS: Final = (_Timer.ANSWER, _Timer.SIGNALING, _Timer.REPEAT, _Timer.CHECKS, _Timer.REPORT)


@dataclass(frozen=True, slots=True)
class HolePunchLimits:
    """What the configuration says: seconds of checks, the first cooldown, and whether there is any search."""

    check_limit_s: float = DIRECT_PATH_LIMIT_S
    cooldown_s: float = COOLDOWN_FIRST_S
    is_relay_only: bool = False


class HolePunch:
    """The search of one session. `random` is a CSPRNG in production.

    `refused_addresses` gives addresses that no peer's candidate may have, such as the intermediates' own.
    `counts` says how often the peer, or an intermediate, said what was ignored, by reason.
    """

    def __init__(
        self,
        random: Random,
        limits: HolePunchLimits,
        now: float,
        *,
        is_controlling: bool,
        refused_addresses: Callable[[], Collection[TransportAddress]] = tuple,
    ) -> None:
        self._random = random
        self._limits = limits
        self._is_controlling = is_controlling
        self._refused_addresses = refused_addresses
        self._state = HolePunchState.IDLE
        self._reason = ""
        self._relays: dict[str, None] = {}
        self._lost_relays: set[str] = set()
        self._is_established = False
        self._is_direct = False
        self._rtt_s = 0.0
        self._is_gathering = False
        self._gathered: Gathered | None = None
        self._current: Generation | None = None
        self._is_offer_awaited = False
        self._asked_via = ""
        self._restart_reason = ""
        self._generation_step = 1
        self._failures = 0
        self._restarted_at = -math.inf
        self._urgent_at = -math.inf
        self._is_retry_urgent = False
        self._generations = TokenBucket(GENERATIONS_PER_SECOND, GENERATION_BURST, now)
        self._timers: dict[_Timer, float] = {}
        self._effects: list[effects.HolePunchEffect] = []
        self._told = effects.Snapshot()
        self.counts: Counter[str] = Counter()

    @property
    def state(self) -> HolePunchState:
        """How far the search is."""
        return self._state

    @property
    def snapshot(self) -> effects.Snapshot:
        """All that the search goes by, as of now."""
        current, gathered = self._current, self._gathered or Gathered()
        if current is None:
            return effects.Snapshot(
                state=self._state, reason=self._reason, local=gathered.candidates, local_nat=gathered.nat
            )
        return effects.Snapshot(
            current.number,
            self._state,
            self._reason,
            gathered.candidates,
            tuple(current.remote.values()),
            gathered.nat,
            current.remote_nat,
            "intermediate" if current.carrier else "session",
        )

    # What the session's own actors tell

    def handle_relay(self, intermediate_id: str, now: float, *, is_up: bool) -> None:
        """The session can, or can no longer, be reached through an intermediate."""
        self._relays.pop(intermediate_id, None)
        if not is_up:
            self._lost_relays.add(intermediate_id)
            if not self._relays and self._state is HolePunchState.FALLBACK_RELAY and not self._is_direct:
                self._reason = "no_path"
                self._step(Step.FAIL)
            return
        self._lost_relays.discard(intermediate_id)
        self._relays[intermediate_id] = None
        if self._state is HolePunchState.IDLE:
            self._begin(now)
        elif self._state is HolePunchState.FAILED:
            self._resume_search(now)

    def handle_established(self, now: float) -> None:
        """The session is up: it carries signaling itself from now on."""
        self._is_established = True
        if self._limits.is_relay_only:
            self._decline("")
        elif self._reason == "signaling_timeout" and _Timer.RETRY in self._timers:
            self._timers[_Timer.RETRY] = now
        elif self._state is HolePunchState.FAILED and self._relays:
            # An intermediate refused; now the peer itself can be asked.
            self._resume_search(now)

    def handle_rtt(self, rtt_s: float) -> None:
        """The session's round-trip time, in seconds; 0: unknown."""
        self._rtt_s = rtt_s

    def handle_path(self, *, is_direct: bool) -> None:
        """Whether the session travels on a direct path now."""
        self._is_direct = is_direct

    def handle_restart(self, reason: str, now: float) -> None:
        """A path failed, or the operator wants it: search anew, if that was not done just now."""
        if self._limits.is_relay_only:
            return
        if self._is_controlling and self._state in {HolePunchState.IDLE, HolePunchState.GATHERING}:
            return  # what is wanted is about to happen
        self._request_restart(reason, now, is_urgent=reason in {OPERATOR, NETWORK_CHANGED})

    def _resume_search(self, now: float) -> None:
        self._reason = "relay_back"
        self._step(Step.RELAY_BACK)
        if self._is_controlling and not self._limits.is_relay_only:
            self._restarted_at = max(now, self._restarted_at + RESTART_INTERVAL_S)
            self._plan_retry(self._restarted_at)

    # What the gatherer tells

    def handle_gathered(self, gathered: Gathered, now: float) -> None:
        """Our candidates, all that are known so far."""
        former = self._gathered
        self._gathered = gathered
        if former is not None and (
            former.network != gathered.network or self._is_freed(former.nat, gathered.nat)
        ):
            self._failures = 0
            if self._current is not None:
                self._request_restart(NETWORK_CHANGED, now, is_urgent=True)
                return
        if _Timer.ANSWER in self._timers:
            self._answer(now)
        elif self._state is HolePunchState.GATHERING:
            self._offer("", now)
        else:
            self._trickle(now)

    def _is_freed(self, former: NatBehaviour, nat: NatBehaviour) -> bool:
        """Whether UDP passes again, and the peer was told before that it has all of our addresses."""
        current = self._current
        return (
            former.is_udp_blocked
            and not nat.is_udp_blocked
            and self._state is HolePunchState.FALLBACK_RELAY
            and current is not None
            and current.is_local_end_told
        )

    # What the checklist tells

    def handle_checks_began(self, generation: int, now: float) -> None:
        """The first check was sent or answered."""
        current = self._current_as(generation)
        if current is None or current.has_begun:
            return
        current.has_begun = True
        if self._state is HolePunchState.WAITING_TO_START:
            self._timers[_Timer.CHECKS] = now + self._limits.check_limit_s
            self._step(Step.BEGAN)

    def handle_nominated(self, generation: int, address: TransportAddress, rtt_us: int, now: float) -> None:
        """Both ends use a pair from now on; `address` is the peer's."""
        current = self._current_as(generation)
        if current is None or not current.is_started:
            self.counts["stale_nomination"] += 1
            return
        self._failures = 0
        self._reason = ""
        self._is_offer_awaited = False
        for timer in (*_ATTEMPT_TIMERS, _Timer.RETRY):
            self._timers.pop(timer, None)
        self._step(Step.NOMINATED)
        if current.is_finished:
            return  # a better pair took the place of the former one
        current.is_finished = True
        self._effects.append(
            effects.Connected(generation, rtt_us, now - current.answered_at, now - current.offered_at)
        )
        self._send(signals.PunchingResult(True, address, rtt_us), current.carrier)

    def handle_checks_failed(self, generation: int, reason: str, now: float) -> None:
        """Every pair failed, and no more can come."""
        if self._current_as(generation) is not None and self._state in {
            HolePunchState.WAITING_TO_START,
            HolePunchState.CHECKING,
        }:
            self._give_up(reason or "all_pairs_failed", now)
        elif self._current_as(generation) is not None and reason == NO_COMMON_FAMILY and self._is_judged:
            # Plainer than what the NATs' behaviour says, and known only when both ends have told all.
            self._reason = reason

    @property
    def _is_judged(self) -> bool:
        """Whether the session is on the relay for what is known of the NATs so far."""
        return self._state is HolePunchState.FALLBACK_RELAY and self._reason in MAPPING_OBSTACLES

    # What the peer, or an intermediate, tells

    def handle_signal(self, signal: signals.Signal, intermediate_id: str, now: float) -> None:
        """Something was said; through this intermediate, or (empty) through the session.

        Nothing of it raises: what is out of order is counted and otherwise ignored.
        """
        if self._limits.is_relay_only:
            if isinstance(signal, signals.Offer):
                self._decline(intermediate_id)
            return
        match signal:
            case signals.Offer():
                self._handle_offer(signal, intermediate_id, now)
            case signals.Answer():
                self._handle_answer(signal, intermediate_id, now)
            case signals.CandidateAdded() | signals.EndOfCandidates() | signals.NatLearned():
                self._handle_trickle(signal, intermediate_id, now)
            case signals.StartPunching():
                self._handle_start(signal, intermediate_id)
            case signals.RestartRequested():
                self._handle_restart_requested(signal, now)
            case signals.PunchingResult():
                self._handle_result(signal, intermediate_id, now)
            case signals.SignalingError():
                self._handle_error(signal, intermediate_id, now)

    def stop(self) -> None:
        """The session is over, or its actors are to be replaced."""
        self._timers.clear()
        if self._current is not None:
            self._effects.append(effects.StopChecks(self._current.number))
        if self._is_gathering:
            self._effects.append(effects.StopGathering())

    # Time

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that is due."""
        for timer, _due in sorted(
            ((timer, due) for timer, due in self._timers.items() if due <= now), key=lambda item: item[1]
        ):
            # An earlier one may have put it off.
            if self._timers.get(timer, math.inf) <= now:
                del self._timers[timer]
                self._expired(timer, now)

    def next_deadline(self) -> float | None:
        """The earliest of all that the search waits for."""
        return min(self._timers.values(), default=None)

    def drain(self) -> list[effects.HolePunchEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        self._tell_if_changed()
        drained, self._effects = self._effects, []
        return drained

    # Inside

    def _expired(self, timer: _Timer, now: float) -> None:
        match timer:
            case _Timer.GATHERING:
                self._offer("", now)
            case _Timer.ANSWER:
                self._answer(now)
            case _Timer.SIGNALING:
                self._give_up("signaling_timeout", now)
            case _Timer.REPEAT:
                self._repeat()
            case _Timer.CHECKS:
                self._give_up("no_direct_path_yet", now)
            case _Timer.REPORT:
                is_checking = self._state is HolePunchState.CHECKING
                self._give_up("no_direct_path_yet" if is_checking else "checks_never_began", now)
            case _Timer.RETRY:
                self._retry(now)

    def _step(self, step: Step) -> None:
        try:
            self._state = TRANSITIONS[self._state, step]
        except KeyError:
            raise LocalProtocolError(f"no {step.value} in state {self._state.value}") from None
        self._tell_if_changed()

    def _tell_if_changed(self) -> None:
        snapshot = self.snapshot
        if snapshot != self._told:
            self._told = snapshot
            self._effects.append(effects.Changed(snapshot))

    def _current_as(self, generation: int) -> Generation | None:
        current = self._current
        return current if current is not None and current.number == generation else None

    @property
    def _is_in_flight(self) -> bool:
        """Whether an offer of ours awaits its answer."""
        return self._state is HolePunchState.SIGNALING and self._is_controlling

    def _begin(self, now: float) -> None:
        if self._limits.is_relay_only:
            self._reason = POLICY_RELAY_ONLY
            self._step(Step.GAVE_UP)
            self._effects.append(effects.GaveUp(0, POLICY_RELAY_ONLY))
        elif self._is_controlling and self._state is HolePunchState.IDLE:
            self._gather()
            self._timers[_Timer.GATHERING] = now + GATHERING_LIMIT_S
            self._step(Step.GATHER)

    def _gather(self) -> None:
        """Ask for our candidates, and for each further generation anew.

        A NAT may have forgotten the mapping that a candidate stands for, which may be why the former
        generation came to nothing, or its path to an end. More may come until the gatherer has spoken again.
        """
        if self._is_gathering and self._current is None:
            return
        self._is_gathering = True
        if self._gathered is not None:
            self._gathered = replace(self._gathered, is_complete=False)
        self._effects.append(effects.GatherCandidates())

    def _carrier(self, wanted: str) -> str | None:
        """What carries a signal: as wanted, else the session, else the relay that came up last.

        An offer may come through an intermediate whose relay is not up yet: it takes the answer all the same.
        """
        if (self._is_established and not wanted) or (wanted and wanted not in self._lost_relays):
            return wanted
        return "" if self._is_established else next(reversed(self._relays), None)

    def _send(self, signal: signals.Signal, wanted: str) -> str:
        carrier = self._carrier(wanted)
        if carrier is None:
            self.counts["no_carrier"] += 1
            return wanted
        self._effects.append(effects.SendSignal(signal, carrier))
        return carrier

    def _decline(self, intermediate_id: str) -> None:
        self._send(signals.PunchingResult(is_success=False, reason=POLICY_RELAY_ONLY), intermediate_id)

    # A generation begins

    def _open_generation(self, number: int, carrier: str, now: float) -> Generation:
        for timer in (*_ATTEMPT_TIMERS, _Timer.GATHERING, _Timer.RETRY):
            self._timers.pop(timer, None)
        self._is_offer_awaited = False
        self._current = Generation(number, Credentials.draw(self._random), carrier, now)
        self._timers[_Timer.REPORT] = now + RELAY_REPORTED_LIMIT_S
        return self._current

    def _offer(self, reason: str, now: float) -> None:
        """Open a new generation; every former one is stale from now on."""
        last = 0 if self._current is None else self._current.number
        if last >= MAX_GENERATION:
            self.counts["generations_used_up"] += 1
            return
        self._gather()
        number = min(last + self._generation_step, MAX_GENERATION)
        current = self._open_generation(number, self._carrier("") or "", now)
        self._reason = reason
        self._prepare(current)
        self._asked_via = current.carrier = self._send(self._own_offer(current), current.carrier)
        current.ways = {current.carrier}
        self._timers[_Timer.SIGNALING] = now + SIGNALING_LIMIT_S
        if not current.carrier and self._relays:
            self._timers[_Timer.REPEAT] = now + REPEAT_AFTER_S
        self._step(Step.EXCHANGE)
        self._tell_end(current)

    def _own_offer(self, current: Generation) -> signals.Offer:
        told = tuple(current.local_told.values())
        return signals.Offer(current.number, current.credentials, told, current.nat_told)

    def _prepare(self, current: Generation) -> None:
        gathered = self._gathered or Gathered()
        current.local_told = {each.address: each for each in gathered.candidates[:MAX_CANDIDATES]}
        current.nat_told = gathered.nat
        told = tuple(current.local_told.values())
        self._effects.append(effects.PrepareChecks(current.number, current.credentials, told))

    def _repeat(self) -> None:
        """The session was silent: once more through an intermediate."""
        relay = next(reversed(self._relays), None)
        current = self._current
        if relay is None or self._state is not HolePunchState.SIGNALING:
            return
        self._asked_via = relay
        if not self._is_controlling:
            self._effects.append(effects.SendSignal(signals.RestartRequested(self._restart_reason), relay))
        elif current is not None:
            current.carrier = relay
            current.ways.add(relay)
            self._effects.append(effects.SendSignal(self._own_offer(current), relay))
            if current.is_local_end_told:
                self._effects.append(effects.SendSignal(signals.EndOfCandidates(current.number), relay))

    def _handle_offer(self, offer: signals.Offer, intermediate_id: str, now: float) -> None:
        current = self._current
        if self._is_controlling:
            self.counts["unexpected_offer"] += 1
            return
        if current is not None and offer.generation <= current.number:
            if offer.generation == current.number and offer.credentials == current.remote_credentials:
                # It came both ways, or our answer was lost: the same answer fits.
                current.ways.add(intermediate_id)
                if current.is_started:
                    self._send(self._own_answer(current), intermediate_id)
                return
            self.counts["stale_offer"] += 1
            self._refuse_offer("invalid_message", intermediate_id)
            return
        last = 0 if current is None else current.number
        if intermediate_id and offer.generation > last + MAX_GENERATION_STEP:
            self.counts["generation_leap"] += 1
            return
        if not self._generations.take(now):
            self.counts["too_many_offers"] += 1
            self._refuse_offer("rate_limited", intermediate_id)
            return
        self._gather()
        current = self._open_generation(offer.generation, intermediate_id, now)
        self._reason = ""
        current.remote_credentials = offer.credentials
        current.remote_nat = offer.nat
        current.remote = {each.address: each for each in offer.candidates[:MAX_CANDIDATES]}
        self._step(Step.EXCHANGE)
        if self._gathered is None:
            self._timers[_Timer.ANSWER] = now + ANSWER_PATIENCE_S
        else:
            self._answer(now)

    def _refuse_offer(self, code: str, intermediate_id: str) -> None:
        if not intermediate_id:  # through an intermediate, only it says such things
            self._send(signals.SignalingError(code, "the offer is not accepted"), "")

    def _answer(self, now: float) -> None:
        self._timers.pop(_Timer.ANSWER, None)
        current = self._current
        if current is None:
            return
        self._prepare(current)
        current.carrier = self._send(self._own_answer(current), current.carrier)
        current.ways.add(current.carrier)
        # The agent starts as soon as the answer arrives, if the session carries it.
        delay = min(round(self._rtt_s / 2 * 1000), MAX_START_DELAY_MS)
        if current.carrier:
            delay = UNTOLD_START_DELAY_MS
        self._start(current, delay, now)
        self._tell_end(current)

    def _own_answer(self, current: Generation) -> signals.Answer:
        told = tuple(current.local_told.values())
        return signals.Answer(current.number, current.credentials, told, current.nat_told)

    def _handle_answer(self, answer: signals.Answer, intermediate_id: str, now: float) -> None:
        current = self._current_as(answer.generation)
        if not self._is_controlling:
            self.counts["unexpected_answer"] += 1
        elif current is None or self._state is HolePunchState.FAILED:
            self.counts["stale_answer"] += 1
        elif not current.may_come_through(intermediate_id):
            self.counts["foreign_answer"] += 1
        elif current.remote_credentials is not None:
            self.counts["repeated_answer"] += 1
        else:
            self._generation_step = 1
            current.carrier = intermediate_id
            current.remote_credentials = answer.credentials
            current.remote_nat = answer.nat
            for candidate in answer.candidates:
                if len(current.remote) < MAX_CANDIDATES:
                    current.remote.setdefault(candidate.address, candidate)
            self._start(current, UNTOLD_START_DELAY_MS if intermediate_id else 0, now)

    def _start(self, current: Generation, start_delay_ms: int, now: float) -> None:
        if current.remote_credentials is None:
            raise LocalProtocolError("checks without the peer's credentials")
        current.answered_at = now
        current.is_started = True
        for timer in (_Timer.SIGNALING, _Timer.REPEAT, _Timer.RETRY):
            self._timers.pop(timer, None)
        # Anew for an answer that came after `relay` was reported.
        self._timers.setdefault(_Timer.REPORT, now + RELAY_REPORTED_LIMIT_S)
        remote = self._fit(current, tuple(current.remote.values()))
        current.remote = {each.address: each for each in remote}
        self._effects.append(
            effects.StartChecks(current.number, current.remote_credentials, remote, start_delay_ms)
        )
        if current.is_remote_end:
            self._effects.append(effects.AddCandidates(current.number, False, (), is_end=True))
        self._step(Step.ANSWERED)
        self._judge_nats(current, now)

    def _fit(self, current: Generation, candidates: Collection[Candidate]) -> tuple[Candidate, ...]:
        """Those of the peer's candidates that checks may be sent to."""
        fit = []
        refused = self._refused_addresses()
        for candidate in candidates:
            complaint = signals.unfitness(candidate, tuple(current.local_told.values()), refused)
            if complaint:
                self.counts[complaint] += 1
            else:
                fit.append(candidate)
        return tuple(fit)

    # What follows

    def _trickle(self, now: float) -> None:
        """Tell the peer what we did not know when we offered, or answered."""
        current, gathered = self._current, self._gathered
        if current is None or gathered is None or (not self._is_controlling and not current.is_started):
            return
        if not current.is_local_end_told:
            new = [each for each in gathered.candidates if each.address not in current.local_told]
            new = new[: MAX_CANDIDATES - len(current.local_told)]
            for candidate in new:
                current.local_told[candidate.address] = candidate
                self._send(signals.CandidateAdded(current.number, candidate), current.carrier)
            if new:
                self._effects.append(effects.AddCandidates(current.number, True, tuple(new)))
        if gathered.nat != current.nat_told:
            current.nat_told = gathered.nat
            self._send(signals.NatLearned(current.number, gathered.nat), current.carrier)
            self._judge_nats(current, now)
        self._tell_end(current)

    def _tell_end(self, current: Generation) -> None:
        if self._gathered is not None and self._gathered.is_complete and not current.is_local_end_told:
            current.is_local_end_told = True
            self._send(signals.EndOfCandidates(current.number), current.carrier)
            self._effects.append(effects.AddCandidates(current.number, True, (), is_end=True))

    def _handle_trickle(
        self,
        signal: signals.CandidateAdded | signals.EndOfCandidates | signals.NatLearned,
        intermediate_id: str,
        now: float,
    ) -> None:
        current = self._current_as(signal.generation)
        if current is None or not current.may_come_through(intermediate_id):
            self.counts["stale_candidate" if current is None else "foreign_candidate"] += 1
            return
        match signal:
            case signals.CandidateAdded():
                self._add_remote(current, signal.candidate)
            case signals.EndOfCandidates():
                if not current.is_remote_end and current.is_started:
                    self._effects.append(effects.AddCandidates(current.number, False, (), is_end=True))
                current.is_remote_end = True
            case signals.NatLearned():
                current.nat_updates += 1
                if current.nat_updates > MAX_NAT_UPDATES:
                    self.counts["too_many_nat_updates"] += 1
                    return
                current.remote_nat = signal.nat
                self._judge_nats(current, now)

    def _add_remote(self, current: Generation, candidate: Candidate) -> None:
        if current.is_remote_end:
            self.counts["candidate_after_end"] += 1
        elif len(current.remote) >= MAX_CANDIDATES:
            self.counts["too_many_candidates"] += 1
        elif candidate.address not in current.remote and self._fit(current, (candidate,)):
            current.remote[candidate.address] = candidate
            if current.is_started:
                self._effects.append(effects.AddCandidates(current.number, False, (candidate,)))

    def _handle_start(self, start: signals.StartPunching, intermediate_id: str) -> None:
        current = self._current_as(start.generation)
        if current is None or not intermediate_id or not current.may_come_through(intermediate_id):
            self.counts["stale_start"] += 1
        elif current.is_started and not current.has_begun:
            delay = min(start.start_delay_ms, MAX_START_DELAY_MS)
            self._effects.append(effects.BeginChecks(current.number, delay))

    def _judge_nats(self, current: Generation, now: float) -> None:
        """Say at once that a direct path is ruled out; the checks go on, for the judgement may be wrong.

        A filter is known after seconds of silence, perhaps behind the end of an attempt that it explains.
        """
        is_searching = self._state in {HolePunchState.WAITING_TO_START, HolePunchState.CHECKING}
        is_unexplained = self._state is HolePunchState.FALLBACK_RELAY and self._reason in _UNEXPLAINED
        if not (is_searching or is_unexplained or self._is_judged):
            return
        local = self._gathered.nat if self._gathered is not None else UNKNOWN_BEHAVIOUR
        reason = obstacle(local, current.remote_nat)
        if not reason:
            return
        if is_searching:
            self._give_up(reason, now)
        else:
            self._reason = reason

    def _handle_result(self, result: signals.PunchingResult, intermediate_id: str, now: float) -> None:
        """For people; only that the peer does not take part at all is ours to know."""
        if result.is_success or result.reason != POLICY_RELAY_ONLY:
            return
        if not self._has_part(intermediate_id):
            self.counts["foreign_result"] += 1
        elif self._state in {HolePunchState.IDLE, HolePunchState.GATHERING, HolePunchState.SIGNALING}:
            self._timers.pop(_Timer.GATHERING, None)
            self._give_up("peer_relay_only", now)

    def _has_part(self, intermediate_id: str) -> bool:
        """Whether what it says is about the exchange under way, or the one to come: it has no generation."""
        if not intermediate_id:
            return True
        if self._is_offer_awaited:
            return intermediate_id == self._asked_via  # our request travels; the generation is a former one
        if self._current is None:
            return not self._is_established
        return self._current.may_come_through(intermediate_id)

    def _handle_error(self, error: signals.SignalingError, intermediate_id: str, now: float) -> None:
        is_about_this = self._state is HolePunchState.SIGNALING and intermediate_id == self._asked_via
        if not is_about_this or (not intermediate_id and error.code not in _PEER_CODES):
            self.counts["stale_error"] += 1
            return
        if error.code == "invalid_message" and self._is_in_flight:
            # Whoever refused it remembers generations that we do not.
            self._generation_step = min(2 * self._generation_step, MAX_GENERATION_STEP)
        reason = "signaling_timeout" if error.code == "session_timeout" else f"signaling_{error.code}"
        # Where the session carries signaling, an intermediate has no last word.
        is_final = bool(intermediate_id) and error.code in FINAL_CODES and not self._is_established
        self._give_up(reason, now, is_final=is_final)

    # The end of an attempt, and the next one

    def _give_up(self, reason: str, now: float, *, is_final: bool = False) -> None:
        for timer in _ATTEMPT_TIMERS:
            self._timers.pop(timer, None)
        # What the peer has decided does not change within seconds.
        was_signaling = reason != "peer_relay_only" and self._state in {
            HolePunchState.SIGNALING,
            HolePunchState.GATHERING,
        }
        self._reason = reason
        if self._is_direct and (self._state, Step.KEPT) in TRANSITIONS:
            # The attempt failed; the path it was to replace works on.
            self._step(Step.KEPT)
            if was_signaling and reason in _PASSING_REASONS:
                self._plan_retry(now + self._retry_delay_s(was_signaling=True), is_urgent=True)
            return
        current = self._current
        number = 0 if current is None else current.number
        if is_final or (not self._relays and self._state is not HolePunchState.IDLE):
            self._reason = reason if is_final else "no_path"
            self._step(Step.FAIL)
            if is_final:
                self._effects.append(effects.StopChecks(number))
        else:
            self._step(Step.GAVE_UP)
        if current is not None and current.is_started:
            self._send(signals.PunchingResult(is_success=False, reason=self._reason), current.carrier)
        self._effects.append(effects.GaveUp(number, self._reason))
        if not is_final and (self._is_controlling or self._is_offer_awaited):
            if current is not None and self._has_untold(current):
                # What it searched with was of another time, such as that of an outage: as if it had changed.
                self._urgent_at = max(now, self._urgent_at + URGENT_INTERVAL_S)
                self._plan_retry(self._urgent_at)
            else:
                self._plan_retry(now + self._retry_delay_s(was_signaling=was_signaling))

    def _has_untold(self, current: Generation) -> bool:
        """Whether we have addresses that the peer was not told before it was told that these were all."""
        candidates = () if self._gathered is None else self._gathered.candidates
        return current.is_local_end_told and any(
            each.address not in current.local_told for each in candidates[:MAX_CANDIDATES]
        )

    def _retry_delay_s(self, *, was_signaling: bool) -> float:
        first = self._limits.cooldown_s
        most = max(first, COOLDOWN_MAX_S)
        if was_signaling:
            first, most = min(SIGNALING_RETRY_S, first), first
        delay = min(first * 2.0**self._failures, most)
        self._failures = min(self._failures + 1, 32)
        return delay * self._random.uniform(1 - COOLDOWN_JITTER, 1 + COOLDOWN_JITTER)

    def _plan_retry(self, when: float, *, is_urgent: bool = False) -> None:
        former = self._timers.get(_Timer.RETRY)
        self._is_retry_urgent = is_urgent or (self._is_retry_urgent and former is not None)
        self._timers[_Timer.RETRY] = when if former is None else min(when, former)

    def _retry(self, now: float) -> None:
        # Without any path nobody would hear of it; the search goes on when a relay is back.
        if self._is_retry_urgent or self._state is HolePunchState.FALLBACK_RELAY:
            self._search_anew(self._restart_reason or "retry", now)

    def _search_anew(self, reason: str, now: float) -> None:
        self._restart_reason = ""
        self._is_retry_urgent = False
        if self._is_controlling:
            self._offer(reason, now)
            return
        # Only the agent offers.
        self._timers.pop(_Timer.RETRY, None)
        self._restart_reason = reason
        self._is_offer_awaited = True
        self._reason = reason
        self._asked_via = carrier = self._send(signals.RestartRequested(reason), "")
        self._timers[_Timer.SIGNALING] = now + SIGNALING_LIMIT_S
        if not carrier and self._relays:
            self._timers[_Timer.REPEAT] = now + REPEAT_AFTER_S
        self._step(Step.EXCHANGE)

    def _request_restart(self, reason: str, now: float, *, is_urgent: bool) -> None:
        if is_urgent:
            self._failures = 0
            earliest = self._urgent_at + URGENT_INTERVAL_S
        else:
            earliest = self._restarted_at + RESTART_INTERVAL_S
        if now < earliest:
            self.counts["restart_put_off"] += 1
            self._restart_reason = reason
            if self._state is HolePunchState.CONNECTED and not self._is_direct:
                self._give_up(reason, now)
            self._plan_retry(earliest, is_urgent=is_urgent)
            return
        if is_urgent:
            self._urgent_at = now
        else:
            self._restarted_at = now
        self._search_anew(reason, now)

    def _handle_restart_requested(self, request: signals.RestartRequested, now: float) -> None:
        if not self._is_controlling:
            # The agent tells that it will offer: it may simply do so.
            self.counts["unexpected_restart"] += 1
        elif self._is_in_flight or self._state in {HolePunchState.IDLE, HolePunchState.GATHERING}:
            self.counts["redundant_restart"] += 1
            if request.reason in {OPERATOR, NETWORK_CHANGED}:
                self._failures = 0  # should this attempt fail as well
        else:
            is_urgent = request.reason in {OPERATOR, NETWORK_CHANGED} and self._generations.take(now)
            self._request_restart(f"peer_{request.reason}", now, is_urgent=is_urgent)
