"""Owns the attachment to one intermediate; takes wishes of the session table, emits what it is told.

Signaling frames exist only here and on the wire: everything else in the daemon hears actor messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from google.protobuf.message import DecodeError, Message

from actors import translate
from actors.base import Concern, Context, loop_callback
from actors.credentials import Credentials
from actors.grpc_carrier import CarrierOwner, GrpcCarrier
from actors.outage_log import OutageLog
from ztna import __version__
from ztna.access.grant import verify_nonce
from ztna.access.identity import Role, VerifiedPeer
from ztna.errors import AuthenticationError, RemoteProtocolError
from ztna.relay.carrier import CarrierKind
from ztna.relay.frame import MAX_CHANNEL, RESERVED_CHANNEL
from ztna.signaling import client, resume
from ztna.signaling.framing import MAX_FRAME_BYTES, FrameDecoder, encode
from ztna.v1 import relay_leg_pb2, signaling_client_pb2, signaling_pb2, types_pb2
from ztna.v1.grant_pb2 import SealedGrant

PROTOCOL_VERSION = 1

# What one frame spends on sessions to resume; the rest is room for the other fields of an AttachRequest. A
# session takes about 1 KiB, most of which is its grant's issuer.
MAX_RESUME_BYTES = MAX_FRAME_BYTES - 1024

# Tag and length of each entry.
RESUME_OVERHEAD_BYTES = 4

# Words of an intermediate for a log line.
MAX_REASON_CHARACTERS = 200

SESSION_ID_BYTES = 16
FINGERPRINT_BYTES = 32

# All that an intermediate may say before it has proved what it is.
_FIRST_FRAMES = frozenset({"attach_accepted", "goodbye", "error"})

# No answer to these will change by asking again.
_FINAL_CODES = frozenset(
    {
        signaling_pb2.SIGNALING_CODE_ACCESS_DENIED,
        signaling_pb2.SIGNALING_CODE_SERVICE_NOT_FOUND,
        signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE,
    }
)

OpenGrpc = Callable[[CarrierOwner], GrpcCarrier]


class SignalingClient(Concern):
    """Translates between messages, frames and `ztna.signaling.client`."""

    name = "signaling_client"
    handlers: ClassVar[Mapping[type[Message], str]] = {
        signaling_client_pb2.Attach: "attach",
        signaling_client_pb2.Detach: "detach",
        signaling_client_pb2.Reattach: "reattach",
        signaling_client_pb2.RecheckIntermediate: "recheck_intermediate",
        signaling_client_pb2.ReportSessionClosed: "report_session_closed",
        signaling_client_pb2.KeepResumable: "keep_resumable",
        signaling_client_pb2.SendIceSignal: "send_ice_signal",
        relay_leg_pb2.LegConnected: "leg_connected",
        relay_leg_pb2.RelayLegDown: "leg_down",
        relay_leg_pb2.LegSignalingReceived: "leg_signaling_received",
    }
    emits: ClassVar[tuple[type[Message], ...]] = (
        signaling_client_pb2.Attached,
        signaling_client_pb2.Detached,
        signaling_client_pb2.SessionReboundReceived,
        signaling_client_pb2.SessionRevoked,
        signaling_client_pb2.SessionAccessReceived,
        signaling_client_pb2.IceSignalReceived,
        relay_leg_pb2.PresentAttachment,
        relay_leg_pb2.RedialLeg,
        relay_leg_pb2.SendLegSignaling,
    )

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        services: Mapping[str, types_pb2.ServiceProtocol.ValueType],
        open_grpc: OpenGrpc | None,
    ) -> None:
        """`open_grpc` dials the gRPC carrier; None: signaling travels on the relay leg."""
        super().__init__(context)
        self._credentials = credentials
        self._services = services
        self._open_grpc = open_grpc
        self._core = client.AttachmentClient(services, context.io.random)
        self._grpc: GrpcCarrier | None = None
        self._decoder = FrameDecoder()
        self._is_leg_connected = False
        self._sequence = 0
        self._attach_id = b""
        self._peer: VerifiedPeer | None = None
        self._outage = OutageLog(self.log, "signaling_client.detached")
        self._resumable: dict[bytes, SealedGrant] = {}

    def on_start(self) -> None:
        """Ask for what must be resumed: after a crash, the session table still knows it."""
        self.emit(signaling_client_pb2.Detached(intermediate_id=self.key, reason="starting"))

    def on_stop(self) -> None:
        """Say goodbye, unless a session lives: then this is a crash or a restart, and it will be resumed."""
        if self._core.state is client.ClientState.ATTACHED and not self._resumable:
            self._send(signaling_pb2.SignalingFrame(goodbye=signaling_pb2.Goodbye(reason="shutting down")))
        if self._grpc is not None:
            self._grpc.close()

    def attach(self, _message: signaling_client_pb2.Attach) -> None:
        """Attach and stay attached; an attachment that stands is told again to whoever asks after a crash."""
        if self._core.state is client.ClientState.ATTACHED:
            self._report_attached([])
        self._core.attach(self.now)
        self._act()

    def detach(self, message: signaling_client_pb2.Detach) -> None:
        """Leave."""
        del message
        self._core.detach(self.now)
        self._act()

    def reattach(self, _message: signaling_client_pb2.Reattach) -> None:
        """Show the certificate of now."""
        self._core.reattach(self.now)
        self._act()

    def recheck_intermediate(self, _message: signaling_client_pb2.RecheckIntermediate) -> None:
        """The revocation list may be another one, and connections that stand are asked for no certificate."""
        if self._peer is None or self._core.state is not client.ClientState.ATTACHED:
            return
        try:
            self._credentials.verifier.recheck(self._peer, now_wall=self.io.wall_time())
        except AuthenticationError as error:
            self._core.handle_untrusted(str(error), self.now)
            # The leg is the same intermediate's; dialled anew, it is refused.
            self.emit(relay_leg_pb2.RedialLeg(intermediate_id=self.key))
            self._act()

    def report_session_closed(self, message: signaling_client_pb2.ReportSessionClosed) -> None:
        """Tell the other party, through the intermediate."""
        if self._core.state is client.ClientState.ATTACHED:
            self._send(
                signaling_pb2.SignalingFrame(
                    close_session=signaling_pb2.CloseSession(
                        session_id=message.session_id, reason=message.reason
                    )
                )
            )

    def keep_resumable(self, message: signaling_client_pb2.KeepResumable) -> None:
        """Remember, or forget, what proves a session."""
        self._resumable.pop(message.session_id, None)
        if message.HasField("grant"):
            self._resumable[message.session_id] = message.grant

    def send_ice_signal(self, message: signaling_client_pb2.SendIceSignal) -> None:
        """Tell the other party of a session; while not attached, nobody hears it."""
        body = message.signal.WhichOneof("body")
        if body is None or self._core.state is not client.ClientState.ATTACHED:
            self.log.debug("signaling_client.signal_dropped", session=message.session_id.hex(), body=body)
            return
        frame = signaling_pb2.SignalingFrame()
        signal = getattr(frame, body)
        signal.CopyFrom(getattr(message.signal, body))
        signal.session_id = message.session_id
        self._send(frame)

    def leg_connected(self, _message: relay_leg_pb2.LegConnected) -> None:
        """The leg can carry signaling; at least the intermediate is there."""
        self._is_leg_connected = True
        if self._open_grpc is None:
            self._core.handle_carrier_open(self.now)
        self._core.handle_reachable(self.now)
        self._act()

    def leg_down(self, message: relay_leg_pb2.RelayLegDown) -> None:
        """The leg took its signaling with it; gRPC may have the same trouble."""
        if message.carrier == CarrierKind.GRPC:
            self._core.handle_doubt(self.now)
            self._act()
            return
        self._is_leg_connected = False
        if self._open_grpc is None:
            self._core.handle_carrier_closed(
                message.reason,
                message.detail,
                self.now,
                is_authentication_failure=message.is_authentication_failure,
            )
        else:
            self._core.handle_doubt(self.now)
        self._act()

    def leg_signaling_received(self, message: relay_leg_pb2.LegSignalingReceived) -> None:
        """Bytes of the signaling stream."""
        try:
            for body in self._decoder.feed(message.data):
                self._frame_received(signaling_pb2.SignalingFrame.FromString(body))
        except (RemoteProtocolError, DecodeError) as error:
            self._core.handle_protocol_error(str(error), self.now)
            self._act()

    @loop_callback
    def carrier_frame(self, carrier: object, frame: signaling_pb2.SignalingFrame) -> None:
        """A frame came over gRPC."""
        if carrier is self._grpc:
            self._frame_received(frame)

    @loop_callback
    def carrier_closed(self, carrier: object, reason: str, detail: str, is_authentication: bool) -> None:
        """The gRPC stream ended."""
        if carrier is self._grpc:
            self._grpc = None
            self._core.handle_carrier_closed(
                reason, detail, self.now, is_authentication_failure=is_authentication
            )
            self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core."""
        self._core.handle_timeout(now)
        self._act()

    def next_deadline(self) -> float | None:
        """The core's deadline."""
        return self._core.next_deadline()

    def _act(self) -> None:
        while effects := self._core.drain():
            for effect in effects:
                self._perform(effect)

    def _perform(self, effect: client.ClientEffect) -> None:
        match effect:
            case client.OpenCarrier():
                self._open_carrier()
            case client.CloseCarrier():
                if self._grpc is not None:
                    self._grpc.close()
                    self._grpc = None
            case client.SendAttachRequest():
                self._decoder = FrameDecoder()
                self._send_attach_request(effect.nonce)
            case client.SendRegistration():
                self._send(
                    signaling_pb2.SignalingFrame(
                        register_service=signaling_pb2.RegisterService(
                            service=effect.service, protocol=self._services[effect.service]
                        )
                    )
                )
            case client.SendWithdrawal():
                withdrawal = signaling_pb2.WithdrawService(service=effect.service)
                self._send(signaling_pb2.SignalingFrame(withdraw_service=withdrawal))
            case client.SendPing():
                self._send(signaling_pb2.SignalingFrame(ping=signaling_pb2.SignalingPing(id=effect.ping_id)))
            case client.RequestTimedOut():
                self._request_failed(
                    effect.request_id, effect.reason, f"intermediate {self.key} did not answer"
                )
            case client.Lost():
                self._report_lost(effect)

    def _open_carrier(self) -> None:
        self._sequence = 0
        if self._open_grpc is not None:
            self._grpc = self._open_grpc(self)
            self._core.handle_carrier_open(self.now)
        elif self._is_leg_connected:
            self._core.handle_carrier_open(self.now)

    def _report_lost(self, lost: client.Lost) -> None:
        if lost.retry_in_s is None:
            self._outage.forget()
            self.log.info("signaling_client.detached", reason=lost.reason, detail=lost.detail)
        else:
            self._outage.failed(
                self.now,
                lost.reason,
                lost.detail,
                is_error=lost.is_authentication_failure,
                retry_in_s=round(lost.retry_in_s, 3),
            )
        self.emit(
            signaling_client_pb2.Detached(
                intermediate_id=self.key,
                reason=lost.reason,
                detail=lost.detail,
                is_authentication_failure=lost.is_authentication_failure,
                retry_in_s=lost.retry_in_s or 0.0,
            )
        )

    def _send_attach_request(self, nonce: bytes) -> None:
        # The newest are the likeliest to be in use.
        held = [
            signaling_pb2.ResumeSession(session_id=session_id, grant=grant)
            for session_id, grant in reversed(self._resumable.items())
        ]
        sizes = [each.ByteSize() + RESUME_OVERHEAD_BYTES for each in held]
        first, *others = frames = resume.spread(sizes, MAX_RESUME_BYTES)
        if frames[-1].stop < len(held):
            self.log.warning("signaling_client.sessions_not_resumed", count=len(held) - frames[-1].stop)
        self._send(
            signaling_pb2.SignalingFrame(
                attach_request=signaling_pb2.AttachRequest(
                    protocol_version=PROTOCOL_VERSION,
                    nonce=nonce,
                    software=f"ztna {__version__}",
                    resume=held[first.start : first.stop],
                    has_more=bool(others),
                )
            )
        )
        for each in others:
            more = signaling_pb2.ResumeMore(
                resume=held[each.start : each.stop], has_more=each is not others[-1]
            )
            self._send(signaling_pb2.SignalingFrame(resume_more=more))

    def _send(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._sequence += 1
        frame.seq = self._sequence
        if self._grpc is not None:
            self._grpc.send(frame)
        elif self._open_grpc is None:
            self.emit(
                relay_leg_pb2.SendLegSignaling(
                    intermediate_id=self.key, data=encode(frame.SerializeToString())
                )
            )

    def _frame_received(self, frame: signaling_pb2.SignalingFrame) -> None:
        body = frame.WhichOneof("body") or ""
        state = self._core.state
        is_expected = state is client.ClientState.ATTACHED or (
            state is client.ClientState.CONNECTING and body in _FIRST_FRAMES
        )
        handler = self.frame_handlers.get(body)
        if handler is None or not is_expected:
            self.log.debug("signaling_client.frame_ignored", body=body)
            return
        try:
            getattr(self, handler)(frame)
        except RemoteProtocolError as error:
            self._core.handle_protocol_error(str(error), self.now)
        self._act()

    def _attach_accepted(self, frame: signaling_pb2.SignalingFrame) -> None:
        accepted = frame.attach_accepted
        try:
            chain = translate.chain_from_der(accepted.certificate_chain)
            peer = self._credentials.verifier.verify(
                chain,
                expect=Role.INTERMEDIATE,
                expect_id=self.key,
                now_wall=self.io.wall_time(),
                as_server=True,
            )
            verify_nonce(chain[0], self._core.nonce, self._credentials.fingerprint, accepted.signature)
        except (AuthenticationError, RemoteProtocolError) as error:
            self._core.handle_untrusted(str(error), self.now)
            return
        if not self._core.handle_accepted(self.now):
            return
        self._peer = peer
        self.log.info(
            "signaling_client.attached",
            carrier="quic" if self._open_grpc is None else "grpc",
            refused_sessions=len(accepted.refused_sessions),
            **self._outage.recovered(self.now),
        )
        self._attach_id = accepted.attach_id
        self.emit(relay_leg_pb2.PresentAttachment(intermediate_id=self.key, attach_id=accepted.attach_id))
        self._report_attached(accepted.refused_sessions)

    def _report_attached(self, refused_sessions: Sequence[bytes]) -> None:
        self.emit(
            signaling_client_pb2.Attached(
                intermediate_id=self.key, attach_id=self._attach_id, refused_sessions=refused_sessions
            )
        )

    def _goodbye(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._core.handle_goodbye(frame.goodbye.reason, self.now)

    def _ping(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._send(signaling_pb2.SignalingFrame(pong=signaling_pb2.SignalingPong(id=frame.ping.id)))

    def _pong(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._core.handle_pong(frame.pong.id)

    def _session_rebound(self, frame: signaling_pb2.SignalingFrame) -> None:
        rebound = frame.session_rebound
        _check_session(rebound.session_id, rebound.peer, rebound.channel)
        self.emit(
            signaling_client_pb2.SessionReboundReceived(
                intermediate_id=self.key,
                session_id=rebound.session_id,
                peer=rebound.peer,
                channel=rebound.channel,
            )
        )
        if rebound.HasField("allowed"):
            self._access_received(rebound.session_id, rebound.allowed)

    def _access_changed(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._access_received(frame.access_changed.session_id, frame.access_changed.allowed)

    def _access_received(self, session_id: bytes, allowed: signaling_pb2.AllowedServices) -> None:
        self.emit(
            signaling_client_pb2.SessionAccessReceived(
                intermediate_id=self.key, session_id=session_id, allowed=allowed
            )
        )

    def _session_ended(self, frame: signaling_pb2.SignalingFrame) -> None:
        ended = frame.session_ended
        self.emit(
            signaling_client_pb2.SessionRevoked(
                intermediate_id=self.key,
                session_id=ended.session_id,
                code=_code_name(ended.code),
                message=ended.message,
            )
        )

    def _error(self, frame: signaling_pb2.SignalingFrame) -> None:
        error = frame.error
        if error.code == signaling_pb2.SIGNALING_CODE_SUPERSEDED:
            detail = error.message[:MAX_REASON_CHARACTERS] or "another process attached with this identity"
            self._core.handle_superseded(detail, self.now)
            return
        code = _code_name(error.code)
        if error.session_id and not error.request_id:
            # Whoever looks for the direct path of that session says what comes of it.
            self._ice_signal(frame)
            return
        if error.request_id and self._core.handle_answered(error.request_id):
            self._request_failed(error.request_id, code, error.message, is_final=error.code in _FINAL_CODES)
            return
        self.log.warning("signaling_client.error_received", code=code, detail=error.message)

    def _ice_signal(self, frame: signaling_pb2.SignalingFrame) -> None:
        body = frame.WhichOneof("body") or ""
        said = getattr(frame, body)
        if len(said.session_id) != SESSION_ID_BYTES:
            raise RemoteProtocolError("malformed_session")
        signal = signaling_pb2.IceSignal()
        getattr(signal, body).CopyFrom(said)
        self.emit(
            signaling_client_pb2.IceSignalReceived(
                session_id=said.session_id, intermediate_id=self.key, signal=signal
            )
        )

    def _request_failed(self, request_id: int, code: str, message: str, *, is_final: bool = False) -> None:
        """Report a request that came to nothing; only agents make requests."""

    frame_handlers: ClassVar[Mapping[str, str]] = {
        "attach_accepted": "_attach_accepted",
        "goodbye": "_goodbye",
        "ping": "_ping",
        "pong": "_pong",
        "session_rebound": "_session_rebound",
        "session_ended": "_session_ended",
        "access_changed": "_access_changed",
        "error": "_error",
        # Who may say which of these is known where the search is (`ztna.ice.hole_punch`).
        "candidate_offer": "_ice_signal",
        "candidate_answer": "_ice_signal",
        "candidate_added": "_ice_signal",
        "start_punching": "_ice_signal",
        "restart_requested": "_ice_signal",
        "punching_result": "_ice_signal",
    }


class AgentSignalingClient(SignalingClient):
    """An agent's attachment: asks for sessions."""

    handlers: ClassVar = {
        **SignalingClient.handlers,
        signaling_client_pb2.RequestSession: "request_session",
    }
    emits = (
        *SignalingClient.emits,
        signaling_client_pb2.SessionGranted,
        signaling_client_pb2.SessionRequestFailed,
    )
    frame_handlers: ClassVar = {**SignalingClient.frame_handlers, "session_opened": "_session_opened"}

    def __init__(self, context: Context, credentials: Credentials, open_grpc: OpenGrpc | None) -> None:
        super().__init__(context, credentials, {}, open_grpc)

    def request_session(self, message: signaling_client_pb2.RequestSession) -> None:
        """Ask for a session."""
        if self._core.request(message.request_id, self.now):
            self._send(
                signaling_pb2.SignalingFrame(
                    open_session=signaling_pb2.OpenSession(
                        request_id=message.request_id,
                        service=message.service,
                        protocol=message.protocol,
                        connectors=message.connectors,
                        excluded_connectors=message.excluded_connectors,
                    )
                )
            )
        self._act()

    def _session_opened(self, frame: signaling_pb2.SignalingFrame) -> None:
        opened = frame.session_opened
        _check_session(opened.session_id, opened.connector, opened.channel)
        self._core.handle_answered(opened.request_id)
        self.emit(
            signaling_client_pb2.SessionGranted(
                intermediate_id=self.key,
                request_id=opened.request_id,
                session_id=opened.session_id,
                service=opened.service,
                connector=opened.connector,
                channel=opened.channel,
                grant=opened.grant,
            )
        )

    def _request_failed(self, request_id: int, code: str, message: str, *, is_final: bool = False) -> None:
        self.emit(
            signaling_client_pb2.SessionRequestFailed(
                intermediate_id=self.key,
                request_id=request_id,
                code=code,
                message=message,
                is_final=is_final,
            )
        )


class ConnectorSignalingClient(SignalingClient):
    """A connector's attachment: offers services, is offered sessions."""

    handlers: ClassVar = {**SignalingClient.handlers, signaling_client_pb2.OfferServices: "offer_services"}
    emits = (
        *SignalingClient.emits,
        signaling_client_pb2.ServiceRegistered,
        signaling_client_pb2.ServiceRejected,
        signaling_client_pb2.SessionOffered,
    )
    frame_handlers: ClassVar = {
        **SignalingClient.frame_handlers,
        "registration_accepted": "_registration_accepted",
        "registration_rejected": "_registration_rejected",
        "session_offer": "_session_offer",
    }

    def offer_services(self, message: signaling_client_pb2.OfferServices) -> None:
        """Register what is new, withdraw what is gone."""
        former, self._services = self._services, {each.service: each.protocol for each in message.services}
        changed = {name for name, protocol in self._services.items() if former.get(name) != protocol}
        self._core.offer(self._services, changed, self.now)
        self._act()

    def _registration_accepted(self, frame: signaling_pb2.SignalingFrame) -> None:
        service = frame.registration_accepted.service
        if service not in self._services:
            return
        self._core.handle_registration_answered(service, is_accepted=True)
        self.log.info("signaling_client.service_registered", service=service)
        self.emit(signaling_client_pb2.ServiceRegistered(intermediate_id=self.key, service=service))

    def _registration_rejected(self, frame: signaling_pb2.SignalingFrame) -> None:
        rejected = frame.registration_rejected
        if rejected.service not in self._services:
            return
        self._core.handle_registration_answered(rejected.service, is_accepted=False)
        code = _code_name(rejected.code)
        self.log.error(
            "signaling_client.service_rejected",
            service=rejected.service,
            code=code,
            detail=rejected.message,
        )
        self.emit(
            signaling_client_pb2.ServiceRejected(
                intermediate_id=self.key, service=rejected.service, code=code, message=rejected.message
            )
        )

    def _session_offer(self, frame: signaling_pb2.SignalingFrame) -> None:
        offer = frame.session_offer
        _check_session(offer.session_id, offer.agent, offer.channel)
        self.emit(
            signaling_client_pb2.SessionOffered(
                intermediate_id=self.key,
                session_id=offer.session_id,
                agent=offer.agent,
                channel=offer.channel,
            )
        )


def _check_session(session_id: bytes, peer: types_pb2.NodeIdentity, channel: int) -> None:
    """Raise `RemoteProtocolError` unless these can be what they should be."""
    if (
        len(session_id) != SESSION_ID_BYTES
        or len(peer.fingerprint) != FINGERPRINT_BYTES
        or not RESERVED_CHANNEL < channel <= MAX_CHANNEL
    ):
        raise RemoteProtocolError("malformed_session")


def _code_name(code: signaling_pb2.SignalingCode.ValueType) -> str:
    try:
        name = signaling_pb2.SignalingCode.Name(code)
    except ValueError:
        return "unknown"
    return name.removeprefix("SIGNALING_CODE_").lower()
