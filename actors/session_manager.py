"""Owns the sessions of an intermediate; takes choices, frames and attachments, emits channels and frames.

The core (`ztna.signaling.sessions`) decides; this actor verifies and signs grants, and translates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from actors import translate
from actors.base import Concern, Context
from actors.burst_log import BurstLog
from actors.credentials import Credentials
from actors.grant_opener import GrantOpener
from actors.resumption import Resumptions
from ztna.access.grant import GRANT_VERSION, GrantClaims
from ztna.access.identity import Role
from ztna.access.policy import AccessRules
from ztna.signaling import session_effects as effects
from ztna.signaling.session import FrameKind, SessionFrame
from ztna.signaling.sessions import SessionManager as Core
from ztna.signaling.values import Code
from ztna.v1 import (
    quic_relay_pb2,
    registry_pb2,
    reload_pb2,
    session_manager_pb2,
    signaling_pb2,
    signaling_service_pb2,
)

# A report lists every session, at about 3 us each: a second per thousand keeps it below 0.5 % of the time.
STATISTICS_INTERVAL_S = 1.0
SESSIONS_PER_INTERVAL = 1000

# Requests of agents whose own sessions are still being brought back, all agents together: 4 each for a
# thousand that come back at once. Further ones are refused, and asked again half a second later.
MAX_DEFERRED_REQUESTS = 4096

# A reason is for a log line; a node may write what it likes into it.
MAX_REASON_CHARACTERS = 200

_KINDS: Final = {
    "candidate_offer": FrameKind.CANDIDATE_OFFER,
    "candidate_answer": FrameKind.CANDIDATE_ANSWER,
    "candidate_added": FrameKind.CANDIDATE_ADDED,
    "restart_requested": FrameKind.RESTART_REQUESTED,
    "punching_result": FrameKind.PUNCHING_RESULT,
    "close_session": FrameKind.CLOSE_SESSION,
}


class SessionManager(Concern):
    """Translates between messages and `ztna.signaling.sessions`."""

    name = "session_manager"
    handlers: ClassVar = {
        registry_pb2.ConnectorChosen: "connector_chosen",
        quic_relay_pb2.ChannelsBound: "channels_bound",
        signaling_service_pb2.SessionFrameReceived: "session_frame_received",
        signaling_service_pb2.NodeAttached: "node_attached",
        signaling_service_pb2.NodeDetached: "node_detached",
        signaling_service_pb2.LostNodeExpelled: "lost_node_expelled",
        signaling_service_pb2.RoundTripMeasured: "round_trip_measured",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }
    emits = (
        session_manager_pb2.BindChannels,
        session_manager_pb2.ReleaseChannels,
        session_manager_pb2.SessionsStatistics,
        signaling_service_pb2.SendFrame,
    )

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        rules: Callable[[], AccessRules],
        grant_lifetime_s: float,
        max_offline_s: float,
        max_sessions: int,
    ) -> None:
        """`rules` gives the present ones; `grant_lifetime_s` and `max_offline_s` are seconds."""
        super().__init__(context)
        self._credentials = credentials
        self._rules = rules
        self._grant_lifetime_s = int(grant_lifetime_s)
        self._core = Core(context.io.random, rules(), max_offline_s=max_offline_s, max_sessions=max_sessions)
        # Each session is listed by two nodes at most.
        self._resumptions = Resumptions(GrantOpener(credentials), 2 * max_sessions, self.now)
        self._deferred: list[registry_pb2.ConnectorChosen] = []
        self._refusal_log = BurstLog(self.log, "session_manager.session_refused")
        self._grant_log = BurstLog(self.log, "session_manager.resume_refused")
        self._resume_log = BurstLog(self.log, "session_manager.session_not_resumed")
        self._logs = (self._refusal_log, self._grant_log, self._resume_log)
        self._is_changed = False
        self._changes_seen = 0
        self._report_at = self.now

    def on_start(self) -> None:
        """Say that there is no session: whoever reads that may know those of a predecessor, which failed."""
        self._report(self.now)
        self._report_at = self.now  # the first one is told at once

    def node_attached(self, message: signaling_service_pb2.NodeAttached) -> None:
        """Take a node in; its sessions come back as their grants verify."""
        party = translate.party_from_proto(message.node)
        waiting, refused = self._resumptions.add(message.attach_id, party, message.resume)
        self._core.handle_attached(
            message.attach_id, party, (), refused, self.now, self.io.wall_time(), announced=waiting
        )
        self._resume()

    def node_detached(self, message: signaling_service_pb2.NodeDetached) -> None:
        """End the sessions of a node that is gone."""
        self._resumptions.drop(message.attach_id)
        self._core.handle_detached(
            message.attach_id, self.now, is_clean=message.is_clean, reason=message.reason
        )
        self._act()

    def lost_node_expelled(self, message: signaling_service_pb2.LostNodeExpelled) -> None:
        """End what is left of the sessions of a node that will not be accepted again."""
        self._core.handle_expelled(translate.party_from_proto(message.node), message.reason)
        self._act()

    def round_trip_measured(self, message: signaling_service_pb2.RoundTripMeasured) -> None:
        """How far away a node is."""
        self._core.handle_round_trip(message.attach_id, message.rtt_us / 1e6)

    def connector_chosen(self, message: registry_pb2.ConnectorChosen) -> None:
        """Open a session, or extend the one that exists; it may be among those to be brought back."""
        if not self._resumptions.is_waiting(message.agent_attach_id):
            self._open(message)
        elif len(self._deferred) < MAX_DEFERRED_REQUESTS:
            self._deferred.append(message)
        else:
            self._tell_party(
                effects.Failed(
                    message.agent_attach_id,
                    Code.RATE_LIMITED,
                    b"",
                    message.request_id,
                    "too many nodes attach at once",
                )
            )

    def channels_bound(self, message: quic_relay_pb2.ChannelsBound) -> None:
        """The relay made channels, or could not."""
        self._core.handle_channels_bound(
            message.session_id,
            {Role.AGENT: message.agent_channel, Role.CONNECTOR: message.connector_channel},
            {Role.AGENT: message.agent_attach_id, Role.CONNECTOR: message.connector_attach_id},
        )
        self._act()

    def session_frame_received(self, message: signaling_service_pb2.SessionFrameReceived) -> None:
        """Pass a frame on to the other party, if its sender may say so."""
        self._core.handle_frame(message.attach_id, _frame_of(message), self.now)
        self._act()

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Sessions end, or carry less, where the rules no longer allow what they are for."""
        self._core.handle_rules(self._rules())
        self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core, bring more sessions back, and report."""
        self._core.handle_timeout(now)
        self._resume()
        for log in self._logs:
            log.handle_timeout(now)
        if self._is_changed and now >= self._report_at:
            self._report(now)

    def next_deadline(self) -> float | None:
        """The earliest of the core's deadline, the next grants to verify, and a report that is due."""
        deadlines = (
            self._core.next_deadline(),
            self._resumptions.next_deadline(),
            self._report_at if self._is_changed else None,
            *(log.next_deadline() for log in self._logs),
        )
        return min((each for each in deadlines if each is not None), default=None)

    def _resume(self) -> None:
        now_wall = self.io.wall_time()
        for verified in self._resumptions.proceed(self.now, now_wall):
            for session_id, reason in verified.rejected:
                self._note(self._grant_log, verified.attach_id, reason, session_id)
            rejected = [session_id for session_id, _ in verified.rejected]
            self._core.handle_resumed(verified.attach_id, verified.resumed, rejected, self.now, now_wall)
        deferred, self._deferred = self._deferred, []
        for message in deferred:
            self.connector_chosen(message)
        self._act()

    def _open(self, message: registry_pb2.ConnectorChosen) -> None:
        self._core.open(
            message.agent_attach_id,
            message.request_id,
            message.service,
            message.connector_attach_id,
            self.now,
        )
        self._act()

    def _act(self) -> None:
        # One that waits for a party comes and goes without a word to anybody.
        self._is_changed |= self._core.changes != self._changes_seen
        self._changes_seen = self._core.changes
        for effect in self._core.drain():
            self._is_changed = True
            match effect:
                case effects.BindWanted():
                    self.emit(
                        session_manager_pb2.BindChannels(
                            session_id=effect.session_id,
                            agent_attach_id=effect.agent_attach_id,
                            connector_attach_id=effect.connector_attach_id,
                        )
                    )
                case effects.ReleaseWanted():
                    self.emit(session_manager_pb2.ReleaseChannels(session_id=effect.session_id))
                case effects.Forwarded():
                    assert isinstance(effect.payload, signaling_pb2.SignalingFrame)  # noqa: S101 - put in below
                    self._send(effect.attach_id, effect.payload)
                case effects.ClosedAlready():
                    self.log.debug("session_manager.session_closed_already", session=effect.session_id.hex())
                case effects.Opened():
                    self._log(
                        "session_manager.session_opened",
                        effect.session_id,
                        service=effect.service,
                        request_id=effect.request_id,
                    )
                    self._send(effect.attach_id, self._opened_frame(effect))
                case _:
                    self._tell_party(effect)

    def _tell_party(
        self,
        effect: effects.Offered
        | effects.Rebound
        | effects.AccessChanged
        | effects.Ended
        | effects.Failed
        | effects.PunchingStarted,
    ) -> None:
        match effect:
            case effects.Offered():
                self._log("session_manager.session_offered", effect.session_id, agent_id=effect.agent.id)
                frame = signaling_pb2.SignalingFrame(
                    session_offer=signaling_pb2.SessionOffer(
                        session_id=effect.session_id,
                        agent=translate.party_to_proto(effect.agent),
                        channel=effect.channel,
                    )
                )
            case effects.Rebound():
                self._log("session_manager.session_rebound", effect.session_id, peer_id=effect.peer.id)
                frame = signaling_pb2.SignalingFrame(
                    session_rebound=signaling_pb2.SessionRebound(
                        session_id=effect.session_id,
                        peer=translate.party_to_proto(effect.peer),
                        channel=effect.channel,
                        allowed=translate.allowed_to_proto(effect.services),
                    )
                )
            case effects.AccessChanged():
                self._log(
                    "session_manager.access_changed", effect.session_id, services=sorted(effect.services)
                )
                frame = signaling_pb2.SignalingFrame(
                    access_changed=signaling_pb2.AccessChanged(
                        session_id=effect.session_id,
                        allowed=translate.allowed_to_proto(effect.services),
                    )
                )
            case effects.Ended():
                if effect.is_refusal:
                    code, session_id = effect.code.value, effect.session_id
                    self._note(self._resume_log, effect.attach_id, code, session_id, reason=effect.message)
                else:
                    self._log(
                        "session_manager.session_ended",
                        effect.session_id,
                        code=effect.code.value,
                        reason=effect.message,
                    )
                frame = signaling_pb2.SignalingFrame(
                    session_ended=signaling_pb2.SessionEnded(
                        session_id=effect.session_id,
                        code=translate.code_to_proto(effect.code),
                        message=effect.message,
                    )
                )
            case effects.Failed():
                code, session_id = effect.code.value, effect.session_id
                self._note(self._refusal_log, effect.attach_id, code, session_id, reason=effect.message)
                frame = signaling_pb2.SignalingFrame(
                    error=signaling_pb2.SignalingError(
                        code=translate.code_to_proto(effect.code),
                        session_id=effect.session_id,
                        request_id=effect.request_id,
                        message=effect.message,
                    )
                )
            case effects.PunchingStarted():
                frame = signaling_pb2.SignalingFrame(
                    start_punching=signaling_pb2.StartPunching(
                        session_id=effect.session_id,
                        generation=effect.generation,
                        start_delay_ms=effect.start_delay_ms,
                    )
                )
        self._send(effect.attach_id, frame)

    def _opened_frame(self, effect: effects.Opened) -> signaling_pb2.SignalingFrame:
        issued_at = int(self.io.wall_time())
        claims = GrantClaims(
            version=GRANT_VERSION,
            session_id=effect.session_id,
            agent_id=effect.agent.id,
            agent_fingerprint=effect.agent.fingerprint,
            connector_id=effect.connector.id,
            connector_fingerprint=effect.connector.fingerprint,
            service=effect.service,
            issued_at=issued_at,
            expires_at=issued_at + self._grant_lifetime_s,
            issuer=self._credentials.identity.id,
        )
        return signaling_pb2.SignalingFrame(
            session_opened=signaling_pb2.SessionOpened(
                request_id=effect.request_id,
                session_id=effect.session_id,
                service=effect.service,
                connector=translate.party_to_proto(effect.connector),
                channel=effect.channel,
                grant=translate.seal_grant(claims, self._credentials),
            )
        )

    def _send(self, attach_id: bytes, frame: signaling_pb2.SignalingFrame) -> None:
        self.emit(signaling_service_pb2.SendFrame(attach_id=attach_id, frame=frame))

    def _note(self, log: BurstLog, attach_id: bytes, code: str, session_id: bytes, **facts: object) -> None:
        """Log a refusal, once per burst, with whose it was."""
        party = self._core.party_of(attach_id)
        log.note(
            self.now,
            (attach_id.hex(), code),
            peer=str(party) if party else "",
            session_id=session_id.hex(),
            code=code,
            **facts,
        )

    def _log(self, event: str, session_id: bytes, **facts: object) -> None:
        self.log.info(event, session_id=session_id.hex(), **facts)

    def _report(self, now: float) -> None:
        self._is_changed = False
        self._report_at = now + STATISTICS_INTERVAL_S * (1 + len(self._core) // SESSIONS_PER_INTERVAL)
        self.emit(
            session_manager_pb2.SessionsStatistics(
                sessions=[
                    session_manager_pb2.SessionsStatistics.Session(
                        session_id=session.session_id,
                        agent_id=session.agent.id,
                        connector_id=session.connector.id,
                        services=session.services,
                        state=session.state.value,
                        opened_at_s=self.io.wall_time() - (now - session.opened_at),
                    )
                    for session in self._core.sessions
                ],
                opened_total=self._core.opened_total,
                resumed_total=self._core.resumed_total,
                refused=self._core.refused,
            )
        )


def _frame_of(message: signaling_service_pb2.SessionFrameReceived) -> SessionFrame:
    frame = message.frame
    kind = _KINDS.get(frame.WhichOneof("body") or "", FrameKind.UNEXPECTED)
    generation = candidates = 0
    reason = ""
    match kind:
        case FrameKind.CANDIDATE_OFFER:
            generation, candidates = frame.candidate_offer.generation, len(frame.candidate_offer.candidates)
        case FrameKind.CANDIDATE_ANSWER:
            generation, candidates = frame.candidate_answer.generation, len(frame.candidate_answer.candidates)
        case FrameKind.CANDIDATE_ADDED:
            generation = frame.candidate_added.generation
            if frame.candidate_added.WhichOneof("item") != "candidate":
                kind = FrameKind.END_OF_CANDIDATES
        case FrameKind.CLOSE_SESSION:
            reason = frame.close_session.reason[:MAX_REASON_CHARACTERS]
        case _:
            pass
    return SessionFrame(kind, message.session_id, frame, generation, candidates, reason)
