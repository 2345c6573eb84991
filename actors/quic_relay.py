"""Owns the relay legs of an intermediate; takes packets and channels, emits packets and signaling bytes.

The core (`ztna.relay.hub`) decides; this actor builds it with this node's credentials and translates. This is
the hot path: one message in per batch of a leg, one out per leg that the batch touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from actors import translate
from actors.base import Concern, Context
from actors.burst_log import BurstLog
from actors.credentials import Credentials
from actors.drop_log import DropLog
from ztna.access.identity import Role, VerifiedPeer
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError, RemoteProtocolError
from ztna.quic.budget import HandshakeBudget
from ztna.quic.options import ConnectionOptions
from ztna.relay import hub_effects as effects
from ztna.relay.hub import RelayHub
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION, MAX_SOJOURN_S
from ztna.v1 import (
    qad_pb2,
    quic_relay_pb2,
    relay_pb2,
    reload_pb2,
    session_manager_pb2,
    signaling_service_pb2,
    udp_socket_pb2,
)

NODE_ROLES: Final = frozenset({Role.AGENT, Role.CONNECTOR})

# A report lists every session, at about 3 us each: a second per thousand keeps it below 0.5 % of the time.
STATISTICS_INTERVAL_S = 1.0
SESSIONS_PER_INTERVAL = 1000


class QuicRelay(Concern):
    """Translates between messages and `ztna.relay.hub`."""

    name = "quic_relay"
    handlers: ClassVar = {
        udp_socket_pb2.DatagramsReceived: "datagrams_received",
        udp_socket_pb2.UnknownDatagramsReceived: "unknown_datagrams_received",
        signaling_service_pb2.NodeAttached: "node_attached",
        signaling_service_pb2.NodeDetached: "node_detached",
        session_manager_pb2.BindChannels: "bind_channels",
        session_manager_pb2.ReleaseChannels: "release_channels",
        signaling_service_pb2.JudgeLeg: "judge_leg",
        quic_relay_pb2.SendLegSignalingBytes: "send_leg_signaling_bytes",
        quic_relay_pb2.RelayStreamOpened: "relay_stream_opened",
        quic_relay_pb2.RelayStreamReceived: "relay_stream_received",
        quic_relay_pb2.RelayStreamWritten: "relay_stream_written",
        quic_relay_pb2.RelayStreamEnded: "relay_stream_ended",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }
    emits = (
        udp_socket_pb2.SendDatagrams,
        udp_socket_pb2.UpdateConnectionIds,
        quic_relay_pb2.ChannelsBound,
        quic_relay_pb2.LegOpened,
        quic_relay_pb2.LegJudged,
        quic_relay_pb2.LegSignalingChanged,
        quic_relay_pb2.LegSignalingBytesReceived,
        quic_relay_pb2.RelayStatistics,
        quic_relay_pb2.SendRelayStream,
    )

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        budget: HandshakeBudget,
        *,
        queue_packets: int = MAX_QUEUED_PACKETS_PER_SESSION,
        queue_s: float = MAX_SOJOURN_S,
    ) -> None:
        """`budget` is what handshakes may take.

        `queue_packets` and `queue_s` (seconds) bound what waits before a leg, per session.
        """
        super().__init__(context)
        self._credentials = credentials
        self._budget = budget
        self._hub = RelayHub(self._options(), budget, queue_packets=queue_packets, queue_s=queue_s)
        # Strangers cause these, so that a flood of them must not become one of the log.
        self._refusal_log = BurstLog(self.log, "quic_relay.leg_refused", is_warning=True)
        self._hello_log = BurstLog(self.log, "quic_relay.hello_rejected", is_warning=True)
        self._drop_log = DropLog(self.log, "quic_relay.packets_dropped")
        self._stranger_log = DropLog(self.log, "quic_relay.strangers_dropped")
        self._reported: tuple[int, ...] = ()
        self._report_at: float | None = None

    def on_stop(self) -> None:
        """Close the legs; the sessions live on through another intermediate, or this one once restarted."""
        self._hub.close_all("shutting_down")
        self._act()
        # A successor numbers its legs anew, and must not be given what comes for these.
        self._hub.forget_all()
        self._act()

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Show the certificate of now to whoever connects from now on; legs that stand are left alone."""
        self._hub.update_options(self._options())

    def datagrams_received(self, message: udp_socket_pb2.DatagramsReceived) -> None:
        """Packets of a leg."""
        remote = TransportAddress(message.remote.host, message.remote.port)
        self._hub.handle_datagrams(
            message.connection, remote, message.local_host, message.datagrams, self.now
        )
        self._act()

    def unknown_datagrams_received(self, message: udp_socket_pb2.UnknownDatagramsReceived) -> None:
        """Packets of a new node, or of anybody."""
        remote = TransportAddress(message.remote.host, message.remote.port)
        self._hub.handle_unknown(remote, message.local_host, message.datagrams, self.now)
        self._act()

    def node_attached(self, message: signaling_service_pb2.NodeAttached) -> None:
        """A leg may present this attachment from now on."""
        party = translate.party_from_proto(message.node)
        self._hub.handle_attached(
            message.attach_id,
            (party.role, party.id, party.fingerprint),
            message.superseded_attach_id,
            self.now,
        )
        self._act()

    def node_detached(self, message: signaling_service_pb2.NodeDetached) -> None:
        """Forget an attachment and its channels."""
        self._hub.handle_detached(message.attach_id, self.now)
        self._act()

    def bind_channels(self, message: session_manager_pb2.BindChannels) -> None:
        """Make channels for a session."""
        channels = self._hub.bind(
            message.session_id, message.agent_attach_id, message.connector_attach_id, self.now
        )
        agent_channel, connector_channel = channels or (0, 0)
        self.emit(
            quic_relay_pb2.ChannelsBound(
                session_id=message.session_id,
                agent_attach_id=message.agent_attach_id,
                agent_channel=agent_channel,
                connector_attach_id=message.connector_attach_id,
                connector_channel=connector_channel,
            )
        )
        self._act()

    def release_channels(self, message: session_manager_pb2.ReleaseChannels) -> None:
        """A session is over."""
        self._hub.release(message.session_id, self.now)
        self._act()

    def judge_leg(self, message: signaling_service_pb2.JudgeLeg) -> None:
        """Find out whether a leg answers."""
        self._hub.judge(message.attach_id, self.now)
        self._act()

    def send_leg_signaling_bytes(self, message: quic_relay_pb2.SendLegSignalingBytes) -> None:
        """Carry signaling."""
        self._hub.send_signaling(message.connection, message.data, self.now, end=message.close)
        self._act()

    def relay_stream_opened(self, message: quic_relay_pb2.RelayStreamOpened) -> None:
        """A node whose network lets no UDP pass."""
        try:
            with self._budget.charged_at_once(self.now):
                peer = self._verify(translate.chain_from_der([message.certificate]))
        except (AuthenticationError, RemoteProtocolError) as error:
            self._refuse_stream(message, error.reason, str(error), is_unknown=True)
            return
        shortage = self.io.shortage(needs_descriptor=True)
        if shortage is not None:
            self._refuse_stream(message, shortage.reason, shortage.detail, is_unknown=False)
            return
        self._hub.handle_stream_opened(message.stream, peer, message.remote, self.now)
        self._act()

    def relay_stream_received(self, message: quic_relay_pb2.RelayStreamReceived) -> None:
        """A frame of such a node."""
        frame, number = message.frame, self._hub.stream_leg(message.stream)
        if number is None:
            return  # refused, and it does not know yet
        if frame.HasField("control"):
            self._control_frame_received(number, frame.control)
        if frame.datagrams:
            self._hub.handle_stream_datagrams(message.stream, frame.datagrams, self.now)
        self._hub.handle_stream_pings(message.stream, frame.ping, frame.pong, self.now)
        self._act()

    def relay_stream_written(self, message: quic_relay_pb2.RelayStreamWritten) -> None:
        """Its stream takes more."""
        self._hub.handle_stream_written(message.stream)
        self._act()

    def relay_stream_ended(self, message: quic_relay_pb2.RelayStreamEnded) -> None:
        """It is gone."""
        self._hub.handle_stream_ended(message.stream, message.reason)
        self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core and report figures."""
        self._hub.handle_timeout(now)
        self._act()
        for log in self._logs:
            log.handle_timeout(now)
        if self._report_at is not None and now >= self._report_at:
            self._report(now)

    def next_deadline(self) -> float | None:
        """The earliest of the core's deadline, the next report and what the log has to sum up."""
        deadlines = (
            self._hub.next_deadline(),
            self._report_at,
            *(log.next_deadline() for log in self._logs),
        )
        return min((each for each in deadlines if each is not None), default=None)

    @property
    def _logs(self) -> tuple[BurstLog | DropLog, ...]:
        return (self._refusal_log, self._hello_log, self._drop_log, self._stranger_log)

    def _options(self) -> ConnectionOptions:
        own = self._credentials
        return ConnectionOptions.leg(
            certificate=own.certificate_chain[0],
            certificate_chain=own.certificate_chain[1:],
            private_key=own.private_key,
            verify_peer=self._verify,
        )

    def _verify(self, chain: Sequence[x509.Certificate]) -> VerifiedPeer:
        return self._credentials.verifier.verify(
            chain, expect=NODE_ROLES, now_wall=self.io.wall_time(), as_server=False
        )

    def _act(self) -> None:
        hub = self._hub
        if self._report_at is None:
            self._report_at = self.now + STATISTICS_INTERVAL_S
        # Answering a control frame touches its leg again, so packets leave when nothing is left to answer.
        while pending := hub.drain():
            for effect in pending:
                self._carry_out(effect)
        hub.flush(self.now)
        while pending := hub.drain():
            for effect in pending:
                self._carry_out(effect)
            hub.flush(self.now)

    def _carry_out(self, effect: effects.HubEffect) -> None:
        match effect:
            case effects.HubTransmit():
                self.emit(
                    udp_socket_pb2.SendDatagrams(
                        remote=translate.address_to_proto(effect.remote),
                        local_host=effect.local_host,
                        datagrams=effect.datagrams,
                    )
                )
            case effects.HubConnectionIds():
                self.emit(
                    udp_socket_pb2.UpdateConnectionIds(
                        connection=effect.connection,
                        added=effect.added,
                        retired=effect.retired,
                        forget_owner=effect.forget_all,
                    )
                )
            case effects.SignalingReceived():
                self.emit(
                    quic_relay_pb2.LegSignalingBytesReceived(connection=effect.connection, data=effect.data)
                )
            case effects.SignalingChanged():
                self.emit(
                    quic_relay_pb2.LegSignalingChanged(
                        connection=effect.connection,
                        is_open=effect.is_open,
                        certificate=effect.peer.certificate.public_bytes(Encoding.DER),
                        remote=str(effect.remote),
                    )
                )
            case effects.ControlReceived():
                self._control_received(effect.connection, effect.body)
            case effects.HelloAnswered():
                self._answer_hello(effect)
            case effects.AddressChanged():
                observed = qad_pb2.ObservedAddress(address=translate.address_to_proto(effect.address))
                self._send_control(effect.connection, relay_pb2.LegFrame(observed_address=observed))
            case effects.LegJudged():
                self.emit(
                    quic_relay_pb2.LegJudged(
                        attach_id=effect.attach_id, is_alive=effect.is_alive, reason=effect.reason
                    )
                )
            case effects.StreamWrite() | effects.StreamClosed():
                self._serve_stream(effect)
            case _:
                self._log_leg(effect)

    def _serve_stream(self, effect: effects.StreamWrite | effects.StreamClosed) -> None:
        match effect:
            case effects.StreamWrite():
                frame = relay_pb2.RelayFrame(datagrams=effect.datagrams, ping=effect.ping, pong=effect.pong)
                if effect.control:
                    frame.control.MergeFromString(effect.control)
                self.emit(quic_relay_pb2.SendRelayStream(stream=effect.stream, frame=frame))
            case effects.StreamClosed():
                self.emit(
                    quic_relay_pb2.SendRelayStream(stream=effect.stream, close=True, reason=effect.reason)
                )

    def _refuse_stream(
        self, opened: quic_relay_pb2.RelayStreamOpened, reason: str, detail: str, *, is_unknown: bool
    ) -> None:
        self._hub.refuse(reason)
        self._refusal_log.note(self.now, (reason, detail), remote=opened.remote, reason=reason, detail=detail)
        self.emit(
            quic_relay_pb2.SendRelayStream(
                stream=opened.stream,
                close=True,
                reason=reason,
                detail=detail,
                is_authentication_failure=is_unknown,
            )
        )
        self._act()

    def _log_leg(self, effect: effects.LegConnected | effects.LegRefused | effects.LegClosed) -> None:
        match effect:
            case effects.LegConnected():
                self.log.info(
                    "quic_relay.leg_connected",
                    peer_id=effect.peer.identity.id,
                    role=effect.peer.identity.role.value,
                    remote=str(effect.remote),
                    carrier=effect.carrier.value,
                )
            case effects.LegRefused():
                self._refusal_log.note(
                    self.now,
                    (effect.reason, effect.message),
                    remote=str(effect.remote),
                    reason=effect.reason,
                    detail=effect.message,
                )
            case effects.LegClosed():
                self.log.info(
                    "quic_relay.leg_closed",
                    peer_id=effect.peer.identity.id,
                    role=effect.peer.identity.role.value,
                    reason=effect.reason,
                    detail=effect.message,
                )

    def _control_received(self, connection: int, body: bytes) -> None:
        try:
            frame = relay_pb2.LegFrame.FromString(body)
        except DecodeError:
            self._hub.close(connection, "malformed_leg_frame")
            return
        self._control_frame_received(connection, frame)

    def _control_frame_received(self, connection: int, frame: relay_pb2.LegFrame) -> None:
        if frame.WhichOneof("body") == "hello":
            self._hub.handle_hello(connection, frame.hello.attach_id, self.now)
        else:
            self._hub.close(connection, "unexpected_leg_frame")

    def _answer_hello(self, effect: effects.HelloAnswered) -> None:
        if effect.rejection:
            identity = effect.peer.identity
            self._hello_log.note(
                self.now,
                (str(identity), effect.rejection),
                peer_id=identity.id,
                role=identity.role.value,
                reason=effect.rejection,
            )
            rejected = relay_pb2.LegRejected(reason=effect.rejection)
            self._send_control(effect.connection, relay_pb2.LegFrame(rejected=rejected))
            return
        accepted = relay_pb2.LegAccepted(max_packet_bytes=effect.max_packet_bytes)
        self._send_control(effect.connection, relay_pb2.LegFrame(accepted=accepted))
        self.emit(quic_relay_pb2.LegOpened(attach_id=effect.attach_id, carrier=effect.carrier.value))

    def _send_control(self, connection: int, frame: relay_pb2.LegFrame) -> None:
        self._hub.send_control(connection, frame.SerializeToString())

    def _report(self, now: float) -> None:
        """Report if anything changed; otherwise wait for the next message."""
        hub, counters = self._hub, self._hub.counters
        dropped, refused = hub.dropped, hub.refused
        figures = (
            hub.leg_count,
            counters.packets_relayed,
            counters.accepted,
            counters.handshakes,
            dropped.total(),
            refused.total(),
        )
        self._report_at = None
        if figures == self._reported:
            return
        self._reported = figures
        self._drop_log.note(now, dropped)
        self._stranger_log.note(now, hub.strangers_dropped)
        traffic = hub.traffic()
        self._report_at = now + STATISTICS_INTERVAL_S * (1 + len(traffic) // SESSIONS_PER_INTERVAL)
        self.emit(
            quic_relay_pb2.RelayStatistics(
                legs=hub.leg_count,
                packets_relayed=counters.packets_relayed,
                bytes_relayed=counters.bytes_relayed,
                dropped={reason: count for reason, count in dropped.items() if count},
                retry_tokens_validated=counters.accepted,
                refused={reason: count for reason, count in refused.items() if count},
                sessions=[
                    quic_relay_pb2.RelayStatistics.Session(
                        session_id=session_id,
                        packets=each.a_to_b_packets + each.b_to_a_packets,
                        bytes=each.a_to_b_bytes + each.b_to_a_bytes,
                    )
                    for session_id, each in traffic.items()
                ],
                handshakes=counters.handshakes,
            )
        )
