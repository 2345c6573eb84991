"""Owns the list of sessions of a node; takes wishes, offers and ends, starts and stops session scopes.

Two concerns, one for each role, over the cores in `ztna.session`. What starting a session means in terms of
actors is the daemon's business: it hands in `SessionScopes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from google.protobuf.message import DecodeError

from actors import translate
from actors.base import Concern, Context
from actors.burst_log import BurstLog
from ztna.session import effects
from ztna.session.agent_table import AgentSessions
from ztna.session.book import SessionBook
from ztna.session.connector_table import ConnectorSessions
from ztna.signaling.client import EXPELLED, LEFT
from ztna.v1 import (
    grant_pb2,
    keepalive_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    reload_pb2,
    service_port_pb2,
    session_table_pb2,
    signaling_client_pb2,
    types_pb2,
)

# Application error codes of CONNECTION_CLOSE, see ztna.service.tcp for those of streams.
CODE_NO_ERROR = 0

_COMMON_HANDLERS = {
    signaling_client_pb2.Attached: "attached",
    signaling_client_pb2.Detached: "detached",
    signaling_client_pb2.SessionReboundReceived: "session_rebound",
    signaling_client_pb2.SessionRevoked: "session_revoked",
    signaling_client_pb2.SessionAccessReceived: "session_access_received",
    quic_session_pb2.HandshakeDeferred: "handshake_deferred",
    quic_session_pb2.SessionEstablished: "session_established",
    quic_session_pb2.SessionClosed: "session_closed",
    keepalive_pb2.PathConfirmed: "path_confirmed",
    session_table_pb2.CloseSessionRequested: "close_session_requested",
}
_COMMON_EMITS = (
    signaling_client_pb2.ReportSessionClosed,
    signaling_client_pb2.KeepResumable,
    relay_leg_pb2.BindChannel,
    relay_leg_pb2.ReleaseChannel,
    keepalive_pb2.ConfirmPeer,
    quic_session_pb2.CloseQuicSession,
    session_table_pb2.SessionAccessLimited,
)


# Why a session that an intermediate gave us never ran: we are stopping, or one of that id still is.
NOT_STARTED = "not_started"


class SessionScopes(Protocol):
    """Starts and stops the actors of one session."""

    def start(self, session_id: bytes, peer: effects.Peer) -> bool:
        """Start them; they can be told messages when this returns. False: not now, and none was started."""

    def stop(self, session_id: bytes) -> None:
        """Stop whatever is left of them."""


@dataclass(frozen=True, slots=True)
class WantedService:
    """How an agent asks for one of its services."""

    protocol: types_pb2.ServiceProtocol.ValueType
    connectors: tuple[str, ...]


class SessionTable(Concern):
    """What both roles share."""

    name = "session_table"

    def __init__(self, context: Context, core: SessionBook, scopes: SessionScopes) -> None:
        super().__init__(context)
        self._core = core
        self._scopes = scopes
        self._deferral_log = BurstLog(self.log, "session_table.handshake_deferred")

    def attached(self, message: signaling_client_pb2.Attached) -> None:
        """An attachment stands."""
        self._core.handle_attached(
            message.intermediate_id, message.attach_id, list(message.refused_sessions), self.now
        )
        self._act()

    def detached(self, message: signaling_client_pb2.Detached) -> None:
        """An attachment is lost."""
        self._core.handle_detached(
            message.intermediate_id,
            self.now,
            is_left=message.reason == LEFT,
            is_expelled=message.reason in EXPELLED,
        )
        self._act()

    def session_rebound(self, message: signaling_client_pb2.SessionReboundReceived) -> None:
        """A session has a fresh channel."""
        self._core.handle_rebound(
            message.intermediate_id, message.session_id, _peer(message.peer), message.channel, self.now
        )
        self._act()

    def session_revoked(self, message: signaling_client_pb2.SessionRevoked) -> None:
        """An intermediate says that a session is over."""
        self.log.info(
            "session_table.session_ended",
            session=message.session_id.hex(),
            code=message.code,
            detail=message.message,
        )
        self._core.handle_revoked(message.intermediate_id, message.session_id, message.code, self.now)
        self._act()

    def session_access_received(self, message: signaling_client_pb2.SessionAccessReceived) -> None:
        """An intermediate says what a session may carry."""
        self._core.handle_access(
            message.intermediate_id,
            message.session_id,
            translate.allowed_from_proto(message.allowed),
            self.now,
        )
        self._act()

    def handshake_deferred(self, message: quic_session_pb2.HandshakeDeferred) -> None:
        """Too many handshakes are under way; this one waits."""
        self._deferral_log.note(
            self.now, (message.reason,), reason=message.reason, session=message.session_id.hex()
        )

    def session_established(self, message: quic_session_pb2.SessionEstablished) -> None:
        """The peer is proven."""
        self._core.handle_established(message.session_id, self.now)
        self._act()

    def session_closed(self, message: quic_session_pb2.SessionClosed) -> None:
        """The end-to-end connection ended."""
        self._core.handle_closed(message.session_id, message.reason, self.now)
        self._act()

    def path_confirmed(self, message: keepalive_pb2.PathConfirmed) -> None:
        """The peer lives; an answer that came through a relay says the same as the relay's intermediate."""
        if message.kind == types_pb2.PATH_KIND_DIRECT:
            self._core.handle_consent(message.session_id, self.now)
            self._act()

    def close_session_requested(self, message: session_table_pb2.CloseSessionRequested) -> None:
        """Somebody wants a session closed."""
        self._core.handle_close_requested(message.session_id, message.reason, self.now)
        self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core."""
        self._core.handle_timeout(now)
        self._deferral_log.handle_timeout(now)
        self._act()

    def next_deadline(self) -> float | None:
        """The earlier of the core's deadline and what the log has to sum up."""
        deadlines = (self._core.next_deadline(), self._deferral_log.next_deadline())
        return min((each for each in deadlines if each is not None), default=None)

    def _act(self) -> None:
        while pending := self._core.drain():
            for effect in pending:
                self._perform(effect)

    def _perform(self, effect: effects.SessionEffect) -> None:
        match effect:
            case effects.StartSession():
                self.log.info(
                    "session_table.session_started", session=effect.session_id.hex(), peer=effect.peer.id
                )
                if not self._scopes.start(effect.session_id, effect.peer):
                    self._core.handle_closed(effect.session_id, NOT_STARTED, self.now)
            case effects.LimitAccess():
                self.emit(
                    session_table_pb2.SessionAccessLimited(
                        session_id=effect.session_id, allowed=translate.allowed_to_proto(effect.services)
                    )
                )
            case effects.ForgetSession():
                self._scopes.stop(effect.session_id)
            case effects.CloseSession():
                self.emit(
                    quic_session_pb2.CloseQuicSession(
                        session_id=effect.session_id, code=CODE_NO_ERROR, reason=effect.reason
                    )
                )
            case effects.ConfirmPeer():
                self.log.info("session_table.peer_asked", session=effect.session_id.hex())
                self.emit(keepalive_pb2.ConfirmPeer(session_id=effect.session_id))
            case (
                effects.BindChannel()
                | effects.ReleaseChannel()
                | effects.ReportClosed()
                | effects.KeepResumable()
            ):
                self._tell_carrier(effect)
            case _:
                self._perform_wish(effect)

    def _tell_carrier(
        self,
        effect: effects.BindChannel | effects.ReleaseChannel | effects.ReportClosed | effects.KeepResumable,
    ) -> None:
        """Tell what concerns one intermediate."""
        match effect:
            case effects.BindChannel():
                self.emit(
                    relay_leg_pb2.BindChannel(
                        intermediate_id=effect.intermediate_id,
                        session_id=effect.session_id,
                        channel=effect.channel,
                    )
                )
            case effects.ReleaseChannel():
                self.emit(
                    relay_leg_pb2.ReleaseChannel(
                        intermediate_id=effect.intermediate_id, session_id=effect.session_id
                    )
                )
            case effects.ReportClosed():
                self.emit(
                    signaling_client_pb2.ReportSessionClosed(
                        intermediate_id=effect.intermediate_id,
                        session_id=effect.session_id,
                        reason=effect.reason,
                    )
                )
            case effects.KeepResumable():
                self.emit(
                    signaling_client_pb2.KeepResumable(
                        intermediate_id=effect.intermediate_id,
                        session_id=effect.session_id,
                        grant=_grant(effect.grant),
                    )
                )

    def _perform_wish(self, effect: effects.SessionEffect) -> None:
        """Perform what only an agent's core asks for."""
        raise NotImplementedError(type(effect).__name__)


class ConnectorSessionTable(SessionTable):
    """Sessions that agents open with this connector."""

    handlers: ClassVar = {
        **_COMMON_HANDLERS,
        signaling_client_pb2.SessionOffered: "session_offered",
        service_port_pb2.GrantPresented: "grant_presented",
    }
    emits = _COMMON_EMITS

    def __init__(
        self,
        context: Context,
        scopes: SessionScopes,
        intermediate_ids: Iterable[str],
        *,
        max_offline_s: float,
    ) -> None:
        self._sessions = ConnectorSessions(intermediate_ids, max_offline_s=max_offline_s)
        super().__init__(context, self._sessions, scopes)

    def session_offered(self, message: signaling_client_pb2.SessionOffered) -> None:
        """An agent was given a session with us."""
        self._sessions.handle_offered(
            message.intermediate_id, message.session_id, _peer(message.agent), message.channel, self.now
        )
        self._act()

    def grant_presented(self, message: service_port_pb2.GrantPresented) -> None:
        """The agent showed a valid grant."""
        self._sessions.handle_grant(message.session_id, message.grant)
        self._act()


class AgentSessionTable(SessionTable):
    """Sessions that this agent opens because a service is wanted."""

    handlers: ClassVar = {
        **_COMMON_HANDLERS,
        session_table_pb2.RequestService: "request_service",
        service_port_pb2.GrantRefused: "grant_refused",
        signaling_client_pb2.SessionGranted: "session_granted",
        signaling_client_pb2.SessionRequestFailed: "session_request_failed",
        quic_session_pb2.SessionStatistics: "session_statistics",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }
    emits = (
        *_COMMON_EMITS,
        signaling_client_pb2.RequestSession,
        session_table_pb2.GrantRenewed,
        session_table_pb2.GrantRenewalRefused,
        session_table_pb2.ServiceReady,
        session_table_pb2.ServiceUnavailable,
    )

    def __init__(
        self,
        context: Context,
        scopes: SessionScopes,
        intermediate_ids: Iterable[str],
        services: Callable[[], Mapping[str, WantedService]],
        *,
        max_offline_s: float,
        is_eager: bool,
    ) -> None:
        self._read_services = services
        self._services = services()
        self._sessions = AgentSessions(
            intermediate_ids,
            self._pins(),
            context.io.random,
            max_offline_s=max_offline_s,
            is_eager=is_eager,
        )
        super().__init__(context, self._sessions, scopes)

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Other services may be asked for, or from other connectors."""
        self._services = self._read_services()
        self._sessions.handle_services(self._pins(), self.now)
        self._act()

    def request_service(self, message: session_table_pb2.RequestService) -> None:
        """A client waits for a service."""
        self._sessions.handle_service_requested(message.service, self.now)
        self._act()

    def session_statistics(self, message: quic_session_pb2.SessionStatistics) -> None:
        """A connector that answers nothing may have ended the session."""
        self._sessions.handle_unanswered(message.session_id, message.unanswered_probes)
        self._act()

    def grant_refused(self, message: service_port_pb2.GrantRefused) -> None:
        """A connector will not have a grant, and may have another one."""
        self._sessions.handle_grant_refused(
            message.session_id, message.service, message.grant, message.message, self.now
        )
        self._act()

    def session_granted(self, message: signaling_client_pb2.SessionGranted) -> None:
        """An intermediate granted a session."""
        try:
            claims = grant_pb2.GrantClaims.FromString(message.grant.claims)
        except DecodeError:
            self.log.warning("session_table.malformed_grant", intermediate=message.intermediate_id)
            return
        self._sessions.handle_granted(
            message.intermediate_id,
            message.request_id,
            message.session_id,
            message.service,
            _peer(message.connector),
            message.channel,
            message.grant,
            float(claims.expires_at_s - claims.issued_at_s),
            self.now,
        )
        self._act()

    def session_request_failed(self, message: signaling_client_pb2.SessionRequestFailed) -> None:
        """An intermediate refused, or did not answer."""
        self._sessions.handle_request_failed(
            message.request_id, message.code, message.message, self.now, is_final=message.is_final
        )
        self._act()

    def _pins(self) -> dict[str, tuple[str, ...]]:
        return {name: wanted.connectors for name, wanted in self._services.items()}

    def _perform_wish(self, effect: effects.SessionEffect) -> None:
        match effect:
            case effects.AskForSession():
                wanted = self._services[effect.service]
                self.emit(
                    signaling_client_pb2.RequestSession(
                        intermediate_id=effect.intermediate_id,
                        request_id=effect.request_id,
                        service=effect.service,
                        protocol=wanted.protocol,
                        connectors=effect.connectors or wanted.connectors,
                        excluded_connectors=effect.excluded_connectors,
                    )
                )
            case effects.ServiceReady():
                self.emit(
                    session_table_pb2.ServiceReady(
                        service=effect.service,
                        session_id=effect.session_id,
                        connector_id=effect.connector_id,
                        grant=_grant(effect.grant),
                    )
                )
            case effects.GrantRenewed():
                self.emit(
                    session_table_pb2.GrantRenewed(
                        session_id=effect.session_id, service=effect.service, grant=_grant(effect.grant)
                    )
                )
            case effects.RenewalRefused():
                self._renewal_refused(effect)
            case effects.ServiceUnavailable():
                self.log.warning(
                    "session_table.service_unavailable",
                    service=effect.service,
                    code=effect.code,
                    detail=effect.message,
                )
                self.emit(
                    session_table_pb2.ServiceUnavailable(
                        service=effect.service, code=effect.code, message=effect.message
                    )
                )
            case _:
                super()._perform_wish(effect)

    def _renewal_refused(self, effect: effects.RenewalRefused) -> None:
        self.log.warning(
            "session_table.renewal_refused",
            session=effect.session_id.hex(),
            peer=effect.connector_id,
            service=effect.service,
            code=effect.code,
            detail=effect.message,
        )
        self.emit(
            session_table_pb2.GrantRenewalRefused(
                session_id=effect.session_id,
                service=effect.service,
                connector_id=effect.connector_id,
                code=effect.code,
                message=effect.message,
            )
        )


def _peer(identity: types_pb2.NodeIdentity) -> effects.Peer:
    return effects.Peer(identity.id, identity.fingerprint)


def _grant(grant: object) -> grant_pb2.SealedGrant | None:
    return grant if isinstance(grant, grant_pb2.SealedGrant) else None
