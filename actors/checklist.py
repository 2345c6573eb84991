"""Owns the connectivity checks of one session; takes candidates and checks, emits checks, answers and pairs.

The core is `ztna.ice.checklist`. STUN was sorted and authenticated by the socket; this actor says which
credentials are ours and sends through it. After a nomination it goes on answering the peer: consent checks
carry the same credentials.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

from actors import translate
from actors.base import Concern, Context
from ztna.core import Transmit
from ztna.errors import RemoteProtocolError
from ztna.ice import checklist_effects as effects
from ztna.ice.candidate import Candidate
from ztna.ice.checklist import Checklist as Core
from ztna.ice.credentials import IceCredentials
from ztna.ice.pair import PairState
from ztna.ice.timing import CHECK_PACING_S
from ztna.v1 import checklist_pb2, types_pb2, udp_socket_pb2

REPORT_INTERVAL_S: Final = 0.25
"""For people, who see four changes a second at most; a report lists up to 100 pairs."""

_STATES: Final = {
    state: checklist_pb2.PairState.Value(f"PAIR_STATE_{state.name}")  # the names are the same by design
    for state in PairState
}


class Checklist(Concern):
    """Translates between messages and `ztna.ice.checklist`."""

    name = "checklist"
    handlers: ClassVar = {
        checklist_pb2.PrepareChecks: "prepare_checks",
        checklist_pb2.StartChecks: "start_checks",
        checklist_pb2.BeginChecks: "begin_checks",
        checklist_pb2.AddCandidates: "add_candidates",
        checklist_pb2.StopChecks: "stop_checks",
        udp_socket_pb2.CheckReceived: "check_received",
    }
    emits = (
        udp_socket_pb2.AcceptChecks,
        udp_socket_pb2.RefuseChecks,
        udp_socket_pb2.SendStunRequest,
        udp_socket_pb2.SendDatagrams,
        checklist_pb2.ChecksBegan,
        checklist_pb2.PairSucceeded,
        checklist_pb2.PairNominated,
        checklist_pb2.ChecklistFailed,
        checklist_pb2.ChecklistReport,
    )

    def __init__(self, context: Context, ta_s: float = CHECK_PACING_S) -> None:
        """`ta_s` is seconds between new checks."""
        super().__init__(context)
        self._session_id = bytes.fromhex(context.key)
        self._core = Core(context.io.random, ta_s=ta_s)
        self._reported = 0
        self._report_at = self.now

    def on_stop(self) -> None:
        """Let no check of this session in any more."""
        self.emit(udp_socket_pb2.RefuseChecks(session_id=self._session_id))

    def prepare_checks(self, message: checklist_pb2.PrepareChecks) -> None:
        """Begin a new generation."""
        self._core.handle_prepare(
            message.generation,
            _credentials(message.local),
            self._candidates(message.local_candidates),
            is_controlling=message.is_controlling,
        )
        self._act()

    def start_checks(self, message: checklist_pb2.StartChecks) -> None:
        """Check the peer after a while; credentials of its that no check can carry end the matter at once."""
        try:
            self._core.handle_start(
                message.generation,
                _credentials(message.remote),
                self._candidates(message.remote_candidates),
                message.start_delay_ms / 1000,
                self.now,
            )
        except RemoteProtocolError as error:
            self._fail(message.generation, error.reason)
        self._act()

    def begin_checks(self, message: checklist_pb2.BeginChecks) -> None:
        """Change the delay of checks that wait for their start."""
        self._core.handle_begin(message.generation, message.start_delay_ms / 1000, self.now)
        self._act()

    def add_candidates(self, message: checklist_pb2.AddCandidates) -> None:
        """Take more candidates of one side."""
        self._core.handle_candidates(
            message.generation,
            self._candidates(message.candidates),
            self.now,
            is_local=message.is_local,
            is_end=message.is_end,
        )
        self._act()

    def stop_checks(self, message: checklist_pb2.StopChecks) -> None:
        """Only answer from now on."""
        self._core.handle_stop(message.generation)
        self._act()

    def check_received(self, message: udp_socket_pb2.CheckReceived) -> None:
        """Take a check of the peer or the answer to one of ours."""
        remote = translate.address_from_proto(message.remote)
        self._core.handle_message(message.datagram, remote, message.local.host, self.now)
        self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core, and report."""
        self._core.handle_timeout(now)
        self._act()

    def next_deadline(self) -> float | None:
        """The earlier of the core's deadline and a report that is due."""
        report_at = self._report_at if self._core.changes != self._reported else None
        deadlines = [each for each in (self._core.next_deadline(), report_at) if each is not None]
        return min(deadlines, default=None)

    def _candidates(self, messages: Iterable[types_pb2.Candidate]) -> list[Candidate]:
        """Read candidates; one that makes no sense is left out."""
        candidates = []
        for message in messages:
            try:
                candidates.append(translate.candidate_from_proto(message))
            except RemoteProtocolError as error:
                self.log.debug("checklist.candidate_refused", reason=error.reason)
        return candidates

    def _act(self) -> None:
        for effect in self._core.drain():
            match effect:
                case effects.SendCheck():
                    self._send_check(effect)
                case Transmit():
                    self.emit(
                        udp_socket_pb2.SendDatagrams(
                            remote=translate.address_to_proto(effect.remote),
                            local_host=effect.local_host,
                            datagrams=[effect.data],
                        )
                    )
                case effects.AcceptCredentials():
                    self.emit(
                        udp_socket_pb2.AcceptChecks(
                            session_id=self._session_id, credentials=_credentials_to_proto(effect.credentials)
                        )
                    )
                case effects.RefuseCredentials():
                    self.emit(udp_socket_pb2.RefuseChecks(session_id=self._session_id, ufrag=effect.ufrag))
                case _:
                    self._tell(effect)
        if self._core.changes != self._reported and self.now >= self._report_at:
            self._report()

    def _send_check(self, effect: effects.SendCheck) -> None:
        self.emit(
            udp_socket_pb2.SendStunRequest(
                asker=udp_socket_pb2.STUN_ASKER_CHECKLIST,
                session_id=self._session_id,
                remote=translate.address_to_proto(effect.request.remote),
                local_host=effect.request.local_host,
                transaction_id=effect.transaction_id,
                pwd=effect.pwd,
                datagram=effect.request.data,
            )
        )

    def _tell(
        self,
        effect: effects.ChecksBegan | effects.PairSucceeded | effects.PairNominated | effects.ChecklistFailed,
    ) -> None:
        match effect:
            case effects.ChecksBegan():
                self.log.info("checklist.checks_began", generation=effect.generation)
                self.emit(
                    checklist_pb2.ChecksBegan(session_id=self._session_id, generation=effect.generation)
                )
            case effects.PairSucceeded():
                self.log.info("checklist.pair_succeeded", **_facts(effect.generation, effect.pair))
                self.emit(
                    checklist_pb2.PairSucceeded(
                        session_id=self._session_id,
                        generation=effect.generation,
                        pair=_pair_to_proto(effect.pair),
                        rtt_us=_rtt_us(effect.pair),
                    )
                )
            case effects.PairNominated():
                self.log.info("checklist.pair_nominated", **_facts(effect.generation, effect.pair))
                self.emit(
                    checklist_pb2.PairNominated(
                        session_id=self._session_id,
                        generation=effect.generation,
                        pair=_pair_to_proto(effect.pair),
                        rtt_us=_rtt_us(effect.pair),
                        proven_bytes=effect.proven_bytes,
                        local=_credentials_to_proto(effect.local),
                        remote=_credentials_to_proto(effect.remote),
                    )
                )
            case _:
                self._fail(effect.generation, effect.reason)

    def _fail(self, generation: int, reason: str) -> None:
        self.log.info(
            "checklist.checklist_failed",
            generation=generation,
            reason=reason,
            dropped=dict(self._core.dropped),
            refused=self._core.refused,
        )
        self.emit(
            checklist_pb2.ChecklistFailed(session_id=self._session_id, generation=generation, reason=reason)
        )

    def _report(self) -> None:
        self._reported = self._core.changes
        self._report_at = self.now + REPORT_INTERVAL_S
        self.emit(
            checklist_pb2.ChecklistReport(
                session_id=self._session_id,
                generation=self._core.generation,
                entries=[_entry(view) for view in self._core.view()],
            )
        )


def _credentials(message: types_pb2.IceCredentials) -> IceCredentials:
    return IceCredentials(message.ufrag, message.pwd)


def _credentials_to_proto(credentials: IceCredentials) -> types_pb2.IceCredentials:
    return types_pb2.IceCredentials(ufrag=credentials.ufrag, pwd=credentials.pwd)


def _pair_to_proto(view: effects.PairView) -> checklist_pb2.Pair:
    """A pair as messages carry it: its remote address is where we really send to."""
    remote = translate.candidate_to_proto(view.remote)
    remote.address.CopyFrom(translate.address_to_proto(view.destination))
    return checklist_pb2.Pair(
        local=translate.candidate_to_proto(view.local), remote=remote, local_host=view.local.base.host
    )


def _rtt_us(view: effects.PairView) -> int:
    return 0 if view.rtt_s is None else max(1, round(view.rtt_s * 1e6))


def _entry(view: effects.PairView) -> checklist_pb2.ChecklistReport.Entry:
    return checklist_pb2.ChecklistReport.Entry(
        pair=_pair_to_proto(view),
        state=_STATES[view.state],
        is_nominated=view.is_nominated,
        checks_sent=view.checks_sent,
        checks_answered=view.checks_answered,
        checks_received=view.checks_received,
        rtt_us=_rtt_us(view),
        failure=view.failure,
    )


def _facts(generation: int, view: effects.PairView) -> dict[str, object]:
    return {
        "generation": generation,
        "local": str(view.local.address),
        "local_type": view.local.type.value,
        "remote": str(view.destination),
        "remote_type": view.remote.type.value,
        "rtt_ms": None if view.rtt_s is None else round(view.rtt_s * 1000, 3),
    }
