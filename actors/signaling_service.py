"""Owns the attachments of an intermediate; takes frames of nodes over two carriers, emits what they want.

A stream comes from gRPC or from stream 4 of a relay leg. Of gRPC streams, those for the relay included,
only so many per certificate, per network and in all are looked at (`ztna.signaling.stream_admission`). Either
way a certificate is judged here once more, for role and revocation, then the first frame must be an
AttachRequest. The core (`ztna.signaling.attachments`) decides who is attached and who is lost. What a frame
says about sessions and services is for other actors. An attachment costs about as much as a step of a
handshake, so it waits for the same budget (`ztna.quic.budget`), and pays into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Final

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError

from actors import translate
from actors.base import Concern, Context, loop_callback
from actors.burst_log import BurstLog
from actors.credentials import Credentials
from actors.grpc_signaling import (
    GrpcRelayCall,
    GrpcSignalingServer,
    GrpcStream,
    ListenerOwner,
    remote_network,
)
from actors.relay_calls import RelayCalls
from actors.signaling_streams import Introduction, LegCarrier, Stream, StreamCarrier
from ztna.access.grant import NONCE_BYTES, sign_nonce
from ztna.access.identity import Role, VerifiedPeer
from ztna.access.profile import UNREADABLE
from ztna.errors import AccessDenied, AuthenticationError, LocalProtocolError, RemoteProtocolError
from ztna.quic.budget import HandshakeBudget
from ztna.signaling import attachments
from ztna.signaling.exchange import MAX_ROUND_TRIP_S
from ztna.signaling.lost_nodes import LostNodes
from ztna.signaling.stream_admission import (
    STREAM_BUDGET,
    TOO_MANY_NETWORK_STREAMS,
    TOO_MANY_STREAMS,
    StreamAdmission,
)
from ztna.signaling.values import Code, Party
from ztna.v1 import quic_relay_pb2, relay_pb2, reload_pb2, signaling_pb2, signaling_service_pb2

PROTOCOL_VERSION = 1

# From the opening of a stream to its AttachRequest, with all that follows it: the node sends it in the same
# flight, 8 MiB at most.
ATTACH_LIMIT_S = 5.0

# Streams before their AttachRequest: a storm of reconnections passes, a flood does not.
MAX_PENDING_STREAMS = 1024

# Nodes that said all they have to and wait for their attachment: what the budget serves in ten seconds, which
# is as long as a node that has been through this once waits (`ztna.signaling.client`).
MAX_WAITING_STREAMS = 1024

# How often they are looked at, on the average: as often as those who wait for a handshake, and at no fixed
# interval, so that neither always comes first.
LOOK_INTERVAL_S = 0.02

# Of all nodes that are not attached yet: 32 connectors with as many sessions as they may have, or
# thousands of agents. Whoever comes beyond that tries again.
MAX_INCOMPLETE_BYTES = 256 << 20

# A resumed session is told anew to the node, and once more when its other party comes back too.
FRAMES_PER_RESUMED_SESSION = 2

STATISTICS_INTERVAL_S = 1.0

# Words of a node for a log line; it may write what it likes into them.
MAX_REASON_CHARACTERS = 200

NODE_ROLES: Final = frozenset({Role.AGENT, Role.CONNECTOR})

# Frames about one session; they go to the session manager unread.
_SESSION_FRAMES: Final = frozenset({
    "close_session", "candidate_offer", "candidate_answer", "candidate_added", "start_punching",
    "restart_requested", "punching_result", "session_ended", "session_offer", "session_rebound",
})  # fmt: skip

_STATUS: Final = {
    Code.SUPERSEDED: grpc.StatusCode.ABORTED,
    Code.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_STREAM_REFUSALS: Final = {
    TOO_MANY_STREAMS: "too many streams were opened with this certificate",
    TOO_MANY_NETWORK_STREAMS: "too many streams were opened from this network",
    STREAM_BUDGET: "too many streams were opened by all nodes together",
}

# Ten thousand nodes at 1 us each are 10 ms in five seconds; nobody needs to be sent away faster than that.
RECHECK_INTERVAL_S = 5.0

OpenServer = Callable[[ListenerOwner], GrpcSignalingServer]


class SignalingService(Concern):
    """Translates between frames, messages and `ztna.signaling.attachments`."""

    name = "signaling_service"
    handlers: ClassVar = {
        signaling_service_pb2.SendFrame: "send_frame",
        quic_relay_pb2.LegJudged: "leg_judged",
        quic_relay_pb2.LegSignalingChanged: "leg_signaling_changed",
        quic_relay_pb2.LegSignalingBytesReceived: "leg_signaling_bytes_received",
        quic_relay_pb2.SendRelayStream: "send_relay_stream",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }
    emits = (
        signaling_service_pb2.NodeAttached,
        signaling_service_pb2.NodeDetached,
        signaling_service_pb2.LostNodeExpelled,
        signaling_service_pb2.JudgeLeg,
        signaling_service_pb2.ServiceOffered,
        signaling_service_pb2.ServiceWithdrawn,
        signaling_service_pb2.SessionWanted,
        signaling_service_pb2.SessionFrameReceived,
        signaling_service_pb2.RoundTripMeasured,
        signaling_service_pb2.SignalingStatistics,
        quic_relay_pb2.SendLegSignalingBytes,
        quic_relay_pb2.RelayStreamOpened,
        quic_relay_pb2.RelayStreamReceived,
        quic_relay_pb2.RelayStreamWritten,
        quic_relay_pb2.RelayStreamEnded,
    )

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        budget: HandshakeBudget,
        open_server: OpenServer | None,
        max_attachments: int,
        frames_per_second: float,
    ) -> None:
        """`open_server` starts the gRPC listener (see `GrpcSignalingServer`); None: carrier quic alone."""
        super().__init__(context)
        self._credentials = credentials
        self._budget = budget
        self._open_server = open_server
        self._server: GrpcSignalingServer | None = None
        self._table = attachments.AttachmentTable(
            context.io.random, max_attachments=max_attachments, frames_per_second=frames_per_second
        )
        self._grpc_streams: dict[GrpcStream, Stream] = {}
        self._leg_streams: dict[int, Stream] = {}
        self._relay_calls = RelayCalls(self.emit)
        self._stream_admission = StreamAdmission(budget.has_room_at_once)
        self._pending: dict[tuple[Role, str], Stream] = {}
        self._waiting: dict[tuple[Role, str], Stream] = {}  # for their attachment, last who asked last
        self._look_at = 0.0
        self._attached: dict[bytes, Stream] = {}
        self._lingering: dict[bytes, VerifiedPeer] = {}
        self._lost_nodes = LostNodes(max_attachments)
        self._recheck_at = self.now + RECHECK_INTERVAL_S
        self._counters: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        # Whoever causes these may do so all the time.
        self._refusal_log = BurstLog(self.log, "signaling_service.node_refused", is_warning=True)
        self._abandon_log = BurstLog(self.log, "signaling_service.stream_abandoned", is_warning=True)
        self._frame_log = BurstLog(self.log, "signaling_service.frame_refused", is_warning=True)
        self._duplicate_log = BurstLog(self.log, "signaling_service.node_superseded", is_warning=True)
        self._logs = (self._refusal_log, self._abandon_log, self._frame_log, self._duplicate_log)
        self._is_changed = False
        self._report_at = self.now

    def on_start(self) -> None:
        """Listen."""
        if self._open_server is not None:
            self._server = self._open_server(self)
            self.log.info("signaling_service.listening", address=str(self._server.address))

    def on_stop(self) -> None:
        """Send every node elsewhere. No session ends: each node resumes its own where it attaches next."""
        goodbye = signaling_pb2.Goodbye(reason="shutting_down")
        for stream in (*self._attached.values(), *self._pending.values(), *self._waiting.values()):
            self._send(stream, signaling_pb2.SignalingFrame(goodbye=goodbye))
            stream.carrier.close(grpc.StatusCode.UNAVAILABLE, "this intermediate is shutting down")
        self._relay_calls.close_all()
        if self._server is not None:
            self._server.stop()

    # Carrier grpc

    @loop_callback
    def stream_opened(self, stream: GrpcStream) -> None:
        """A node opened a gRPC stream."""
        if not self._is_admitted(stream):
            return
        try:
            certificates = x509.load_pem_x509_certificates(stream.certificate_pem)
        except UNREADABLE:
            certificates = []
        try:
            peer = self._judge(certificates)
        except AuthenticationError as error:
            self._refuse(error, stream.remote)
            wrong_role = error.reason == "wrong_role"
            code = grpc.StatusCode.PERMISSION_DENIED if wrong_role else grpc.StatusCode.UNAUTHENTICATED
            stream.close(code, str(error))
            return
        self._grpc_streams[stream] = self._admit(stream, attachments.Carrier.GRPC, peer, stream.remote, 0)

    @loop_callback
    def stream_frame(self, stream: GrpcStream, frame: signaling_pb2.SignalingFrame) -> None:
        """A node sent a frame over gRPC."""
        known = self._grpc_streams.get(stream)
        if known is not None:
            self._frame_received(known, frame)

    @loop_callback
    def stream_closed(self, stream: GrpcStream) -> None:
        """A gRPC stream ended."""
        known = self._grpc_streams.pop(stream, None)
        if known is not None:
            self._stream_ended(known)

    # Relay legs over gRPC: their listener is here, what they are about is not

    @loop_callback
    def relay_opened(self, call: GrpcRelayCall) -> None:
        """A node opened a relay stream."""
        if self._is_admitted(call):
            self._relay_calls.opened(call)

    @loop_callback
    def relay_frame(self, call: GrpcRelayCall, frame: relay_pb2.RelayFrame) -> None:
        """A node sent a frame on its relay stream."""
        self._relay_calls.received(call, frame)

    @loop_callback
    def relay_written(self, call: GrpcRelayCall) -> None:
        """A relay stream takes more packets."""
        self._relay_calls.written(call)

    @loop_callback
    def relay_closed(self, call: GrpcRelayCall) -> None:
        """A relay stream ended."""
        self._relay_calls.closed(call)

    def send_relay_stream(self, message: quic_relay_pb2.SendRelayStream) -> None:
        """The relay has something for a node."""
        self._relay_calls.send(message)

    # Carrier quic

    def leg_signaling_changed(self, message: quic_relay_pb2.LegSignalingChanged) -> None:
        """A node opened the signaling stream of its leg, or it ended."""
        former = self._leg_streams.pop(message.connection, None)
        if former is not None:
            self._stream_ended(former)
        if not message.is_open:
            return
        carrier = LegCarrier(message.connection, self.emit)
        try:
            peer = self._judge(translate.chain_from_der([message.certificate]))
        except (AuthenticationError, RemoteProtocolError) as error:
            self._refuse(error, message.remote)
            carrier.close()
            return
        self._leg_streams[message.connection] = self._admit(
            carrier, attachments.Carrier.QUIC, peer, message.remote, message.connection
        )

    def leg_signaling_bytes_received(self, message: quic_relay_pb2.LegSignalingBytesReceived) -> None:
        """Bytes of a leg's signaling stream."""
        stream = self._leg_streams.get(message.connection)
        if stream is None or not isinstance(stream.carrier, LegCarrier):
            return
        try:
            for body in stream.carrier.decoder.feed(message.data):
                self._frame_received(stream, signaling_pb2.SignalingFrame.FromString(body))
        except (RemoteProtocolError, DecodeError) as error:
            self._abandon(stream, Code.INVALID_MESSAGE, str(error))

    # From other actors

    def send_frame(self, message: signaling_service_pb2.SendFrame) -> None:
        """Another actor has something to say to a node."""
        stream = self._attached.get(message.attach_id)
        if stream is None:
            self._counters["frames_without_stream"] += 1
        else:
            self._send(stream, message.frame)

    def leg_judged(self, message: quic_relay_pb2.LegJudged) -> None:
        """A verdict on the leg of an attachment."""
        self._table.handle_leg_judged(message.attach_id, message.reason, self.now, is_alive=message.is_alive)
        self._act()

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Whoever is revoked now is sent away now, and cut off from the others where it is out of reach."""
        self._recheck_nodes()

    def handle_timeout(self, now: float) -> None:
        """Give up lingering nodes and streams that say nothing, and report."""
        for stream in list(self._pending.values()):
            if now < stream.deadline:
                break  # the others are younger
            self._abandon(stream, Code.INVALID_MESSAGE, f"no AttachRequest within {ATTACH_LIMIT_S:g} s")
        self._attach_waiting()
        self._table.handle_timeout(now)
        self._act()
        self._lost_nodes.handle_timeout(now)
        if self._attached and now >= self._recheck_at:
            self._recheck_at = now + RECHECK_INTERVAL_S
            self._recheck_nodes()
        for log in self._logs:
            log.handle_timeout(now)
        if self._is_changed and now >= self._report_at:
            self._report(now)

    def next_deadline(self) -> float | None:
        """The earliest of what `handle_timeout` looks after."""
        oldest = next(iter(self._pending.values()), None)
        deadlines = (
            self._table.next_deadline(),
            self._lost_nodes.next_deadline(),
            None if oldest is None else oldest.deadline,
            self._look_at if self._waiting else None,
            self._report_at if self._is_changed else None,
            self._recheck_at if self._attached else None,
            *(log.next_deadline() for log in self._logs),
        )
        return min((each for each in deadlines if each is not None), default=None)

    # Streams

    def _is_admitted(self, stream: GrpcStream | GrpcRelayCall) -> bool:
        """Whether to look at a stream; otherwise it is refused for next to nothing."""
        network = remote_network(stream.remote)
        reason = self._stream_admission.admit(stream.certificate_pem, network, self.now)
        if not reason:
            return True
        detail = _STREAM_REFUSALS[reason]
        self._count_refusal(reason)
        host = stream.remote.rpartition(":")[0]  # each connection has another port
        self._refusal_log.note(self.now, (reason, host), remote=stream.remote, reason=reason, detail=detail)
        stream.close(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        return False

    def _judge(self, chain: list[x509.Certificate]) -> VerifiedPeer:
        with self._budget.charged_at_once(self.now):
            return self._credentials.verifier.verify(
                chain, expect=NODE_ROLES, now_wall=self.io.wall_time(), as_server=False
            )

    def _refuse(self, error: AuthenticationError | RemoteProtocolError, remote: str) -> None:
        self._count_refusal(error.reason)
        # The detail names whom the certificate is of.
        key = (error.reason, str(error))
        self._refusal_log.note(self.now, key, remote=remote, reason=error.reason, detail=str(error))

    def _admit(
        self,
        carrier: StreamCarrier,
        kind: attachments.Carrier,
        peer: VerifiedPeer,
        remote: str,
        connection: int,
    ) -> Stream:
        stream = Stream(carrier, kind, peer, connection, self.now + ATTACH_LIMIT_S, remote)
        former = self._pending.get(stream.party.name) or self._waiting.get(stream.party.name)
        if former is not None:
            self._abandon(former, Code.SUPERSEDED, "another stream of this node was opened")
        self._pending[stream.party.name] = stream
        if len(self._pending) > MAX_PENDING_STREAMS:
            self._abandon(stream, Code.RATE_LIMITED, "too many nodes attach at once")
        return stream

    def _stream_ended(self, stream: Stream) -> None:
        self._forget_pending(stream)
        if self._attached.get(stream.attach_id) is stream:
            del self._attached[stream.attach_id]
            self._lingering[stream.attach_id] = stream.peer
            self._table.handle_stream_broken(stream.attach_id, self.now)
            self._act()

    def _recheck_nodes(self) -> None:
        """Send away whoever was revoked, or has expired, since it attached."""
        now_wall = self.io.wall_time()
        for attach_id, stream in list(self._attached.items()):
            if error := self._refused_by_now(stream.peer, now_wall):
                del self._attached[attach_id]
                self._table.handle_goodbye(attach_id, error.reason)
                self._send_error(stream, Code.ACCESS_DENIED, str(error))
                self._hang_up(stream, grpc.StatusCode.UNAUTHENTICATED, str(error))
        for attach_id, peer in list(self._lingering.items()):
            if error := self._refused_by_now(peer, now_wall):
                self._table.handle_goodbye(attach_id, error.reason)
        self._act()
        for node in self._lost_nodes.nodes:
            if error := self._refused_by_now(node.peer, now_wall):
                self._lost_nodes.forget(node.peer)
                self._expel(node.peer, error.reason)

    def _refused_by_now(self, peer: VerifiedPeer, now_wall: float) -> AuthenticationError | None:
        """Judge a node again that was accepted; a refusal is counted and logged like any other."""
        try:
            self._credentials.verifier.recheck(peer, now_wall=now_wall)
        except AuthenticationError as error:
            self._refuse(error, str(peer.identity))
            return error
        return None

    def _remember_lost(self, peer: VerifiedPeer) -> None:
        """Judge a node on that is out of reach from here, and may hold sessions."""
        crowded_out = self._lost_nodes.add(peer, self.now)
        if crowded_out is not None:
            self._expel(crowded_out.peer, "too_many_lost")

    def _expel(self, peer: VerifiedPeer, reason: str) -> None:
        """Let nobody hold a session with a node that is out of reach from here."""
        identity = peer.identity
        self.log.info(
            "signaling_service.lost_node_expelled",
            peer_id=identity.id,
            role=identity.role.value,
            reason=reason,
        )
        party = Party(identity.role, identity.id, peer.fingerprint)
        self.emit(signaling_service_pb2.LostNodeExpelled(node=translate.party_to_proto(party), reason=reason))

    def _forget_pending(self, stream: Stream) -> None:
        for streams in (self._pending, self._waiting):
            if streams.get(stream.party.name) is stream:
                del streams[stream.party.name]

    def _abandon(self, stream: Stream, code: Code, message: str) -> None:
        """Tell a node why its stream ends, and end it; an attachment on it lingers."""
        self._count_refusal(code.value)
        self._note(self._abandon_log, stream, code.value, message)
        self._send_error(stream, code, message)
        self._hang_up(stream, _STATUS.get(code, grpc.StatusCode.INVALID_ARGUMENT), message)
        self._stream_ended(stream)

    def _note(self, log: BurstLog, stream: Stream, code: str, message: str) -> None:
        identity = stream.peer.identity
        log.note(
            self.now,
            (str(identity), code),
            peer_id=identity.id,
            role=identity.role.value,
            remote=stream.remote,
            code=code,
            reason=message,
        )

    def _hang_up(self, stream: Stream, status: grpc.StatusCode, message: str) -> None:
        stream.is_over = True
        stream.carrier.close(status, message)
        self._leg_streams.pop(stream.connection, None)
        if isinstance(stream.carrier, GrpcStream):
            self._grpc_streams.pop(stream.carrier, None)

    def _send(self, stream: Stream, frame: signaling_pb2.SignalingFrame) -> None:
        stream.sent += 1
        frame.seq = stream.sent
        self._counters["frames_sent"] += 1
        self._is_changed = True
        stream.carrier.send(frame)

    def _send_error(
        self, stream: Stream, code: Code, message: str, request_id: int = 0, session_id: bytes = b""
    ) -> None:
        error = signaling_pb2.SignalingError(
            code=translate.code_to_proto(code), message=message, request_id=request_id, session_id=session_id
        )
        self._send(stream, signaling_pb2.SignalingFrame(error=error))

    # Frames

    def _frame_received(self, stream: Stream, frame: signaling_pb2.SignalingFrame) -> None:
        if stream.is_over:
            return  # it came in one piece with what ended the stream
        self._counters["frames_received"] += 1
        self._is_changed = True
        body = frame.WhichOneof("body")
        is_restart = body == "attach_request" and frame.seq == 1
        if frame.seq != stream.received + 1 and not is_restart:
            self._abandon(stream, Code.INVALID_MESSAGE, f"frame {frame.seq} after {stream.received}")
            return
        stream.received = frame.seq
        if body == "attach_request":
            self._introduce(stream, frame.attach_request)
        elif stream.introduction is not None:
            self._introduce_more(stream, frame)
        elif not stream.attach_id:
            self._abandon(stream, Code.INVALID_MESSAGE, "the first frame must be an AttachRequest")
        elif not self._table.admit_frame(stream.attach_id, self.now):
            self._count_refusal(Code.RATE_LIMITED.value)
            self._note(self._frame_log, stream, Code.RATE_LIMITED.value, "too many frames")
            self._answer_flood(stream, frame)
        else:
            self._dispatch(stream, frame, body)

    def _answer_flood(self, stream: Stream, frame: signaling_pb2.SignalingFrame) -> None:
        # Only what somebody waits for is answered: errors by the thousand would help nobody.
        if frame.HasField("open_session"):
            self._send_error(stream, Code.RATE_LIMITED, "too many frames", frame.open_session.request_id)

    def _introduce(self, stream: Stream, request: signaling_pb2.AttachRequest) -> None:
        if request.protocol_version != PROTOCOL_VERSION or len(request.nonce) != NONCE_BYTES:
            message = f"protocol version {PROTOCOL_VERSION} and a nonce of {NONCE_BYTES} bytes are expected"
            self._abandon(stream, Code.INVALID_MESSAGE, message)
            return
        if stream.attach_id and not self._table.admit_frame(stream.attach_id, self.now):
            self._abandon(stream, Code.RATE_LIMITED, "too many attachments")
            return
        try:
            stream.introduction = Introduction(request)
        except RemoteProtocolError as error:
            self._abandon(stream, Code.INVALID_MESSAGE, str(error))
            return
        if stream.introduction.is_complete:
            self._await_attachment(stream)
        else:
            self._await_more(stream)

    def _introduce_more(self, stream: Stream, frame: signaling_pb2.SignalingFrame) -> None:
        introduction = stream.introduction
        is_waiting = self._waiting.get(stream.party.name) is stream
        if introduction is None or is_waiting or not frame.HasField("resume_more"):
            self._abandon(stream, Code.INVALID_MESSAGE, "a ResumeMore was announced")
            return
        try:
            introduction.add(frame.resume_more)
        except RemoteProtocolError as error:
            self._abandon(stream, Code.INVALID_MESSAGE, str(error))
            return
        if introduction.is_complete:
            self._await_attachment(stream)
        elif self._incomplete_bytes() > MAX_INCOMPLETE_BYTES:
            self._abandon(stream, Code.RATE_LIMITED, "too many nodes attach at once")

    def _await_more(self, stream: Stream) -> None:
        name = stream.party.name
        if self._pending.get(name) is stream:
            return  # it has the rest of its time
        if name in self._pending:
            self._abandon(stream, Code.SUPERSEDED, "another stream of this node was opened")
            return
        stream.deadline = self.now + ATTACH_LIMIT_S
        self._pending[name] = stream

    def _incomplete_bytes(self) -> int:
        streams = (*self._pending.values(), *self._waiting.values())
        return sum(each.introduction.size_bytes for each in streams if each.introduction)

    def _await_attachment(self, stream: Stream) -> None:
        """Attach a node that has said all about itself, now or when the budget allows."""
        self._forget_pending(stream)
        name = stream.party.name
        if name in self._pending or name in self._waiting:
            self._abandon(stream, Code.SUPERSEDED, "another stream of this node was opened")
            return
        is_first = not self._waiting
        self._waiting[name] = stream
        if is_first and self._budget.is_open(self.now):
            self._attach_last()
        elif len(self._waiting) > MAX_WAITING_STREAMS or self._incomplete_bytes() > MAX_INCOMPLETE_BYTES:
            self._abandon(stream, Code.RATE_LIMITED, "too many nodes attach at once")
        elif is_first:
            self._look_again()

    def _attach_waiting(self) -> None:
        """Attach who waits, as far as the budget allows: who asked last first, since that one still waits."""
        if not self._waiting or self.now < self._look_at:
            return
        while self._waiting and self._budget.is_open(self.now):
            self._attach_last()
        self._look_again()

    def _look_again(self) -> None:
        self._look_at = self.now + LOOK_INTERVAL_S * self.io.random.uniform(0.5, 1.5)

    def _attach_last(self) -> None:
        _, stream = self._waiting.popitem()
        if stream.introduction is None:
            raise LocalProtocolError("a node waits for its attachment that has not asked for it")
        with self._budget.charged(self.now):
            self._attach(stream, stream.introduction)

    def _attach(self, stream: Stream, introduction: Introduction) -> None:
        stream.introduction = None
        request = introduction.request
        self._forget_pending(stream)
        if self._attached.get(stream.attach_id) is stream:
            # The node begins anew on the same stream: nobody else is to be told that it was replaced.
            del self._attached[stream.attach_id]
        if not self._table.is_attached(stream.party):
            shortage = self.io.shortage(needs_descriptor=stream.kind is attachments.Carrier.GRPC)
            if shortage is not None:
                self._abandon(stream, Code.RATE_LIMITED, f"{shortage.reason}: {shortage.detail}")
                return
        try:
            stream.attach_id = self._table.attach(stream.party, stream.kind, self.now)
        except AccessDenied as error:
            self._abandon(stream, Code.RATE_LIMITED, str(error))
            return
        self._attached[stream.attach_id] = stream
        self._counters["attached_total"] += 1
        stream.carrier.expect(FRAMES_PER_RESUMED_SESSION * len(introduction.event.resume))
        self._act(introduction, stream.remote)
        accepted = signaling_pb2.AttachAccepted(
            attach_id=stream.attach_id,
            certificate_chain=self._credentials.chain_der,
            signature=sign_nonce(self._credentials.private_key, request.nonce, stream.peer.fingerprint),
        )
        self._send(stream, signaling_pb2.SignalingFrame(attach_accepted=accepted))
        self._measure(stream)

    def _measure(self, stream: Stream) -> None:
        ping_id = stream.round_trip.next_ping(self.now)
        if ping_id is not None:
            ping = signaling_pb2.SignalingPing(id=ping_id)
            self._send(stream, signaling_pb2.SignalingFrame(ping=ping))

    def _dispatch(self, stream: Stream, frame: signaling_pb2.SignalingFrame, body: str | None) -> None:
        attach_id = stream.attach_id
        match body:
            case "ping":
                pong = signaling_pb2.SignalingPong(id=frame.ping.id)
                self._send(stream, signaling_pb2.SignalingFrame(pong=pong))
                self._measure(stream)
            case "pong":
                round_trip_s = stream.round_trip.handle_pong(frame.pong.id, self.now)
                if round_trip_s is not None:
                    rtt_us = round(min(round_trip_s, MAX_ROUND_TRIP_S) * 1e6)
                    self.emit(signaling_service_pb2.RoundTripMeasured(attach_id=attach_id, rtt_us=rtt_us))
            case "register_service":
                wanted = frame.register_service
                self._table.handle_offered(attach_id, wanted.service)
                self.emit(
                    signaling_service_pb2.ServiceOffered(
                        attach_id=attach_id, service=wanted.service, protocol=wanted.protocol
                    )
                )
            case "withdraw_service":
                service = frame.withdraw_service.service
                self._table.handle_withdrawn(attach_id, service)
                self.emit(signaling_service_pb2.ServiceWithdrawn(attach_id=attach_id, service=service))
            case "open_session":
                self._want_session(stream, frame.open_session)
            case "goodbye":
                self._table.handle_goodbye(attach_id, frame.goodbye.reason[:MAX_REASON_CHARACTERS])
                del self._attached[attach_id]
                self._hang_up(stream, grpc.StatusCode.OK, "")
                self._act()
            case None:
                self._count_refusal("unknown_frame")  # of a later version; it expects no answer from us
            case _ if body in _SESSION_FRAMES:
                self.emit(
                    signaling_service_pb2.SessionFrameReceived(
                        attach_id=attach_id, session_id=getattr(frame, body).session_id, frame=frame
                    )
                )
            case _:
                message = f"{body} is not a node's to send"
                self._count_refusal(Code.INVALID_MESSAGE.value)
                self._note(self._frame_log, stream, Code.INVALID_MESSAGE.value, message)
                self._send_error(stream, Code.INVALID_MESSAGE, message)

    def _want_session(self, stream: Stream, wanted: signaling_pb2.OpenSession) -> None:
        self.emit(
            signaling_service_pb2.SessionWanted(
                attach_id=stream.attach_id,
                agent=translate.party_to_proto(stream.party),
                request_id=wanted.request_id,
                service=wanted.service,
                protocol=wanted.protocol,
                connectors=wanted.connectors,
                excluded_connectors=wanted.excluded_connectors,
            )
        )

    # Effects

    def _act(self, introduction: Introduction | None = None, remote: str = "") -> None:
        superseded: Stream | None = None
        for effect in self._table.drain():
            self._is_changed = True
            match effect:
                case attachments.Attached():
                    self._announce(effect, introduction, superseded)
                case attachments.Superseded():
                    superseded = self._attached.pop(effect.attach_id, None)
                    if superseded is not None:
                        self._supersede(superseded, remote)
                case attachments.LegJudgementWanted():
                    self.emit(signaling_service_pb2.JudgeLeg(attach_id=effect.attach_id))
                case attachments.ServiceUnreachable():
                    self.emit(
                        signaling_service_pb2.ServiceWithdrawn(
                            attach_id=effect.attach_id, service=effect.service
                        )
                    )
                case attachments.Detached():
                    self.log.info(
                        "signaling_service.node_detached",
                        peer_id=effect.party.id,
                        role=effect.party.role.value,
                        is_clean=effect.is_clean,
                        reason=effect.reason,
                    )
                    self.emit(
                        signaling_service_pb2.NodeDetached(
                            attach_id=effect.attach_id,
                            node=translate.party_to_proto(effect.party),
                            is_clean=effect.is_clean,
                            reason=effect.reason,
                        )
                    )
                    lingering = self._lingering.pop(effect.attach_id, None)
                    if lingering is not None and not effect.is_clean:
                        self._remember_lost(lingering)

    def _supersede(self, former: Stream, remote: str) -> None:
        self._counters["superseded_total"] += 1
        identity = former.peer.identity
        self._duplicate_log.note(
            self.now,
            (str(identity),),
            peer_id=identity.id,
            role=identity.role.value,
            former_remote=former.remote,
            remote=remote,
            detail="two processes with one certificate, or one whose former connection broke unnoticed",
        )
        message = f"another process attached with this identity, from {remote}"
        self._send_error(former, Code.SUPERSEDED, message)
        self._hang_up(former, grpc.StatusCode.ABORTED, message)

    def _announce(
        self, effect: attachments.Attached, introduction: Introduction | None, superseded: Stream | None
    ) -> None:
        if introduction is None:
            raise LocalProtocolError("a node attached without a request")
        event = introduction.event
        stream = self._attached[effect.attach_id]
        self._lost_nodes.forget(stream.peer)
        former = self._lingering.pop(effect.superseded, None) if superseded is None else superseded.peer
        if former is not None and former.fingerprint != stream.peer.fingerprint:
            self._remember_lost(former)
        self.log.info(
            "signaling_service.node_attached",
            peer_id=effect.party.id,
            role=effect.party.role.value,
            carrier=effect.carrier.value,
            software=introduction.request.software[:MAX_REASON_CHARACTERS],
            is_replacement=bool(effect.superseded),
            resumed_sessions=len(event.resume),
        )
        event.attach_id = effect.attach_id
        event.node.CopyFrom(translate.party_to_proto(effect.party))
        event.carrier = effect.carrier.value
        event.superseded_attach_id = effect.superseded
        event.connection = stream.connection
        event.remote = stream.remote
        event.superseded_remote = "" if superseded is None else superseded.remote
        self.emit(event)

    def _count_refusal(self, reason: str) -> None:
        self._refused[reason] += 1
        self._is_changed = True

    def _report(self, now: float) -> None:
        self._is_changed = False
        self._report_at = now + STATISTICS_INTERVAL_S
        self.emit(
            signaling_service_pb2.SignalingStatistics(
                attachments=len(self._table),
                attached_total=self._counters["attached_total"],
                frames_received=self._counters["frames_received"],
                frames_sent=self._counters["frames_sent"],
                refused=self._refused,
                superseded_total=self._counters["superseded_total"],
            )
        )
