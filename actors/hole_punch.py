"""Owns the search for a direct path of one session; takes the news of peer and checks, emits their orders.

The core (`ztna.ice.hole_punch`) decides; this actor translates. A crash of it costs the search, never the
session: the relay carries on, and the successor begins with the next news of a relayed path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import ClassVar, Final

from actors import translate
from actors.base import Concern, Context
from actors.burst_log import BurstLog
from actors.ice_signals import (
    candidates_from_proto,
    credentials_to_proto,
    signal_from_proto,
    signal_to_proto,
)
from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice import hole_punch_effects as effects
from ztna.ice.generation import Gathered
from ztna.ice.hole_punch import HolePunch as Core
from ztna.ice.hole_punch import HolePunchLimits
from ztna.ice.reasons import sentence
from ztna.ice.timing import HolePunchState
from ztna.v1 import (
    candidate_gatherer_pb2,
    checklist_pb2,
    hole_punch_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    service_port_pb2,
    signaling_client_pb2,
    types_pb2,
)

_STATES: Final = {
    state: hole_punch_pb2.HolePunchState.Value(f"HOLE_PUNCH_STATE_{state.name}")  # the same names by design
    for state in HolePunchState
}


class HolePunch(Concern):
    """Translates between messages and `ztna.ice.hole_punch`."""

    name = "hole_punch"
    handlers: ClassVar = {
        relay_leg_pb2.RelayPathChanged: "relay_path_changed",
        quic_session_pb2.SessionEstablished: "session_established",
        quic_session_pb2.SessionReported: "session_reported",
        quic_session_pb2.SessionStatistics: "session_statistics",
        path_manager_pb2.PathSelected: "path_selected",
        candidate_gatherer_pb2.CandidatesGathered: "candidates_gathered",
        signaling_client_pb2.IceSignalReceived: "ice_signal_received",
        checklist_pb2.ChecksBegan: "checks_began",
        checklist_pb2.PairNominated: "pair_nominated",
        checklist_pb2.ChecklistFailed: "checklist_failed",
        hole_punch_pb2.RestartIce: "restart_ice",
    }
    emits = (
        candidate_gatherer_pb2.GatherCandidates,
        candidate_gatherer_pb2.StopGathering,
        checklist_pb2.PrepareChecks,
        checklist_pb2.StartChecks,
        checklist_pb2.BeginChecks,
        checklist_pb2.AddCandidates,
        checklist_pb2.StopChecks,
        signaling_client_pb2.SendIceSignal,
        service_port_pb2.SendInSessionSignal,
        hole_punch_pb2.HolePunchChanged,
        hole_punch_pb2.HolePunchFinished,
        quic_session_pb2.ReportSession,
    )

    def __init__(
        self,
        context: Context,
        limits: HolePunchLimits,
        refused_addresses: Callable[[], Collection[TransportAddress]],
        *,
        is_controlling: bool,
    ) -> None:
        """`refused_addresses` gives those that no candidate of a peer may have: the intermediates' own."""
        super().__init__(context)
        self._session_id = bytes.fromhex(context.key)
        self._is_controlling = is_controlling
        self._core = Core(
            context.io.random,
            limits,
            self.now,
            is_controlling=is_controlling,
            refused_addresses=refused_addresses,
        )
        self._state = HolePunchState.IDLE
        self._pair = checklist_pb2.Pair()
        self._dropped: Counter[str] = Counter()
        # A peer may say nonsense all the time.
        self._refusal_log = BurstLog(self.log, "hole_punch.signal_refused")

    def on_stop(self) -> None:
        """Nobody needs candidates or checks of this session any more, or a successor asks anew."""
        self._core.stop()
        self._act()

    def on_start(self) -> None:
        """Ask what a predecessor knew."""
        self.emit(quic_session_pb2.ReportSession(session_id=self._session_id))

    def session_reported(self, message: quic_session_pb2.SessionReported) -> None:
        """What a predecessor knew of the session."""
        self._core.handle_relay(message.intermediate_id, self.now, is_up=True)
        if message.is_established:
            self._core.handle_established(self.now)
        self._act()

    def relay_path_changed(self, message: relay_leg_pb2.RelayPathChanged) -> None:
        """A relay carries the session, or no longer does."""
        self._core.handle_relay(message.intermediate_id, self.now, is_up=message.is_up)
        self._act()

    def session_established(self, _message: quic_session_pb2.SessionEstablished) -> None:
        """The session carries signaling itself."""
        self._core.handle_established(self.now)
        self._act()

    def session_statistics(self, message: quic_session_pb2.SessionStatistics) -> None:
        """The round-trip time of the session."""
        self._core.handle_rtt(message.rtt_ms / 1000)

    def path_selected(self, message: path_manager_pb2.PathSelected) -> None:
        """The session travels on another path."""
        self._core.handle_path(is_direct=message.kind == types_pb2.PATH_KIND_DIRECT)
        self._act()

    def candidates_gathered(self, message: candidate_gatherer_pb2.CandidatesGathered) -> None:
        """Our own candidates."""
        candidates = candidates_from_proto(message.candidates, self._dropped)
        nat = translate.nat_from_proto(message.nat)
        self._core.handle_gathered(Gathered(candidates, message.is_complete, message.network, nat), self.now)
        self._act()

    def ice_signal_received(self, message: signaling_client_pb2.IceSignalReceived) -> None:
        """The peer, or an intermediate, said something."""
        try:
            signal = signal_from_proto(message.signal, self._dropped)
        except RemoteProtocolError as error:
            self._dropped[error.reason] += 1
            self._refusal_log.note(
                self.now,
                (message.intermediate_id, error.reason),
                intermediate=message.intermediate_id or None,
                reason=error.reason,
                detail=str(error),
            )
            return
        self._core.handle_signal(signal, message.intermediate_id, self.now)
        self._act()

    def checks_began(self, message: checklist_pb2.ChecksBegan) -> None:
        """The checks are under way."""
        self._core.handle_checks_began(message.generation, self.now)
        self._act()

    def pair_nominated(self, message: checklist_pb2.PairNominated) -> None:
        """There is a direct path."""
        address = translate.address_from_proto(message.pair.remote.address)
        self._pair = message.pair
        self._core.handle_nominated(message.generation, address, message.rtt_us, self.now)
        self._act()

    def checklist_failed(self, message: checklist_pb2.ChecklistFailed) -> None:
        """There is none, for now."""
        self._core.handle_checks_failed(message.generation, message.reason, self.now)
        self._act()

    def restart_ice(self, message: hole_punch_pb2.RestartIce) -> None:
        """Search anew."""
        self._core.handle_restart(message.reason, self.now)
        self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core."""
        self._core.handle_timeout(now)
        self._refusal_log.handle_timeout(now)
        self._act()

    def next_deadline(self) -> float | None:
        """The core's, or that of a line to be logged."""
        deadlines = (self._core.next_deadline(), self._refusal_log.next_deadline())
        return min((each for each in deadlines if each is not None), default=None)

    def _act(self) -> None:
        for effect in self._core.drain():
            match effect:
                case effects.Changed():
                    self._changed(effect.snapshot)
                case effects.Connected():
                    self._connected(effect)
                case effects.GaveUp():
                    self.emit(
                        hole_punch_pb2.HolePunchFinished(
                            session_id=self._session_id, generation=effect.generation, reason=effect.reason
                        )
                    )
                case effects.SendSignal():
                    self._send(effect)
                case effects.GatherCandidates():
                    self.emit(candidate_gatherer_pb2.GatherCandidates(session_id=self._session_id))
                case effects.StopGathering():
                    self.emit(candidate_gatherer_pb2.StopGathering(session_id=self._session_id))
                case _:
                    self._check(effect)

    def _check(
        self,
        effect: effects.PrepareChecks
        | effects.StartChecks
        | effects.BeginChecks
        | effects.AddCandidates
        | effects.StopChecks,
    ) -> None:
        session_id, generation = self._session_id, effect.generation
        match effect:
            case effects.PrepareChecks():
                self.emit(
                    checklist_pb2.PrepareChecks(
                        session_id=session_id,
                        generation=generation,
                        is_controlling=self._is_controlling,
                        local=credentials_to_proto(effect.credentials),
                        local_candidates=map(translate.candidate_to_proto, effect.candidates),
                    )
                )
            case effects.StartChecks():
                self.emit(
                    checklist_pb2.StartChecks(
                        session_id=session_id,
                        generation=generation,
                        remote=credentials_to_proto(effect.credentials),
                        remote_candidates=map(translate.candidate_to_proto, effect.candidates),
                        start_delay_ms=effect.start_delay_ms,
                    )
                )
            case effects.BeginChecks():
                self.emit(
                    checklist_pb2.BeginChecks(
                        session_id=session_id, generation=generation, start_delay_ms=effect.start_delay_ms
                    )
                )
            case effects.AddCandidates():
                self.emit(
                    checklist_pb2.AddCandidates(
                        session_id=session_id,
                        generation=generation,
                        is_local=effect.is_local,
                        candidates=map(translate.candidate_to_proto, effect.candidates),
                        is_end=effect.is_end,
                    )
                )
            case effects.StopChecks():
                self.emit(checklist_pb2.StopChecks(session_id=session_id, generation=generation))

    def _send(self, effect: effects.SendSignal) -> None:
        signal = signal_to_proto(effect.signal, self._session_id)
        if effect.intermediate_id:
            self.emit(
                signaling_client_pb2.SendIceSignal(
                    intermediate_id=effect.intermediate_id, session_id=self._session_id, signal=signal
                )
            )
        else:
            self.emit(service_port_pb2.SendInSessionSignal(session_id=self._session_id, signal=signal))

    def _connected(self, effect: effects.Connected) -> None:
        self.emit(
            hole_punch_pb2.HolePunchFinished(
                session_id=self._session_id,
                generation=effect.generation,
                is_direct=True,
                pair=self._pair,
                rtt_us=effect.rtt_us,
                answer_to_direct_ms=effect.since_answer_s * 1000,
                offer_to_direct_ms=effect.since_offer_s * 1000,
            )
        )

    def _changed(self, snapshot: effects.Snapshot) -> None:
        if snapshot.state is not self._state:
            self._state = snapshot.state
            self.log.info(
                "hole_punch.state_changed",
                state=snapshot.state.value,
                generation=snapshot.generation,
                reason=snapshot.reason or None,
                ignored=dict(self._core.counts + self._dropped) or None,
            )
        self.emit(
            hole_punch_pb2.HolePunchChanged(
                session_id=self._session_id,
                generation=snapshot.generation,
                state=_STATES[snapshot.state],
                reason=snapshot.reason,
                detail=sentence(snapshot.reason),
                local_candidates=map(translate.candidate_to_proto, snapshot.local),
                remote_candidates=map(translate.candidate_to_proto, snapshot.remote),
                local_nat=translate.nat_to_proto(snapshot.local_nat),
                remote_nat=translate.nat_to_proto(snapshot.remote_nat),
                signaling=snapshot.carrier,
            )
        )
