"""Owns the leg to one intermediate; takes sealed packets and signaling for it, emits theirs.

The core (`ztna.relay.leg`) decides; this actor resolves the name, builds connections, holds the gRPC stream
of networks without UDP, and translates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from google.protobuf.message import DecodeError

from actors import translate
from actors.base import Concern, Context, loop_callback
from actors.grpc_relay_stream import RelayStreamOwner
from actors.outage_log import OutageLog
from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError, describe
from ztna.quic.connection import Connection
from ztna.relay import leg
from ztna.relay import leg_effects as effects
from ztna.relay.carrier import CarrierKind, CarrierMode
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION, MAX_SOJOURN_S
from ztna.v1 import relay_leg_pb2, relay_pb2, types_pb2, udp_socket_pb2

STATISTICS_INTERVAL_S = 1.0


class RelayStream(Protocol):
    """What is needed of a gRPC stream; it is dialled when it is made."""

    def send(self, frame: relay_pb2.RelayFrame) -> None:
        """Send a frame behind those already sent."""

    def close(self) -> None:
        """Let go; nothing is reported any more."""


OpenStream = Callable[[RelayStreamOwner], RelayStream]


class RelayLeg(Concern):
    """Translates between messages and `ztna.relay.leg`."""

    name = "relay_leg"
    handlers: ClassVar = {
        relay_leg_pb2.ConnectLeg: "connect_leg",
        relay_leg_pb2.DisconnectLeg: "disconnect_leg",
        relay_leg_pb2.RedialLeg: "redial_leg",
        relay_leg_pb2.ProbeLeg: "probe_leg",
        relay_leg_pb2.ReportLeg: "report_leg",
        relay_leg_pb2.PresentAttachment: "present_attachment",
        relay_leg_pb2.BindChannel: "bind_channel",
        relay_leg_pb2.ReleaseChannel: "release_channel",
        relay_leg_pb2.SendSealed: "send_sealed",
        relay_leg_pb2.SendLegSignaling: "send_leg_signaling",
        udp_socket_pb2.DatagramsReceived: "datagrams_received",
    }
    emits = (
        udp_socket_pb2.SendDatagrams,
        udp_socket_pb2.UpdateConnectionIds,
        relay_leg_pb2.LegConnected,
        relay_leg_pb2.LegReported,
        relay_leg_pb2.RelayLegUp,
        relay_leg_pb2.RelayLegDown,
        relay_leg_pb2.RelayPathChanged,
        relay_leg_pb2.SealedReceived,
        relay_leg_pb2.LegSignalingReceived,
        relay_leg_pb2.AddressObserved,
        relay_leg_pb2.LegStatistics,
    )

    def __init__(
        self,
        context: Context,
        host: str,
        port: int,
        open_connection: Callable[[], Connection],
        *,
        max_queued_packets: int = MAX_QUEUED_PACKETS_PER_SESSION,
        max_sojourn_s: float = MAX_SOJOURN_S,
        open_stream: OpenStream | None = None,
        mode: CarrierMode = CarrierMode.AUTO,
    ) -> None:
        """`max_queued_packets` and `max_sojourn_s` bound what waits per session (`relay` settings).

        `open_stream` dials the gRPC carrier; without it there is the QUIC one alone, whatever the `mode`.
        """
        super().__init__(context)
        self._host = host
        self._port = port
        self._core = leg.Leg(
            open_connection,
            context.io.random,
            max_queued_packets=max_queued_packets,
            max_sojourn_s=max_sojourn_s,
            mode=CarrierMode.QUIC if open_stream is None else mode,
        )
        self._open_stream = open_stream
        self._stream: RelayStream | None = None
        self._report_at: float | None = None
        self._remote: types_pb2.TransportAddress | None = None
        self._resolved_addresses: list[TransportAddress] = []
        self._observed: types_pb2.TransportAddress | None = None
        self._outages = {kind: OutageLog(self.log, "relay_leg.lost") for kind in CarrierKind}

    def on_stop(self) -> None:
        """Say goodbye to the intermediate."""
        self._core.disconnect(self.now)
        self._act()

    def connect_leg(self, _message: relay_leg_pb2.ConnectLeg) -> None:
        """Use the leg."""
        self._core.connect(self.now)
        self._report_at = self.now + STATISTICS_INTERVAL_S
        self._act()

    def disconnect_leg(self, _message: relay_leg_pb2.DisconnectLeg) -> None:
        """Leave the leg."""
        self._core.disconnect(self.now)
        self._report_at = None
        self._act()

    def redial_leg(self, _message: relay_leg_pb2.RedialLeg) -> None:
        """Show the certificate of now."""
        self._core.redial(self.now)
        self._act()

    def probe_leg(self, _message: relay_leg_pb2.ProbeLeg) -> None:
        """Let the intermediate see where we are."""
        self._core.probe(self.now)
        self._act()

    def report_leg(self, _message: relay_leg_pb2.ReportLeg) -> None:
        """Tell somebody who started later."""
        self.emit(
            relay_leg_pb2.LegReported(
                intermediate_id=self.key,
                remote=self._remote,
                others=self._others(),
                observed=self._observed,
                carrier=self._core.carrier or "",
            )
        )

    def present_attachment(self, message: relay_leg_pb2.PresentAttachment) -> None:
        """Bind the leg to an attachment."""
        hello = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=message.attach_id))
        self._core.present_attachment(hello.SerializeToString(), self.now)
        self._act()

    def bind_channel(self, message: relay_leg_pb2.BindChannel) -> None:
        """A session has a channel here."""
        self._core.bind(message.session_id, message.channel)
        self._act()

    def release_channel(self, message: relay_leg_pb2.ReleaseChannel) -> None:
        """A session has no channel here any more."""
        self._core.release(message.session_id)
        self._act()

    def send_sealed(self, message: relay_leg_pb2.SendSealed) -> None:
        """Relay packets."""
        self._core.send_sealed(message.session_id, message.packets, self.now)
        self._act()

    def send_leg_signaling(self, message: relay_leg_pb2.SendLegSignaling) -> None:
        """Carry signaling."""
        self._core.send_signaling(message.data, self.now)
        self._act()

    def datagrams_received(self, message: udp_socket_pb2.DatagramsReceived) -> None:
        """Packets of this connection."""
        self._core.handle_datagrams(message.datagrams, self.now)
        self._act()

    def handle_timeout(self, now: float) -> None:
        """Drive the core and report figures."""
        self._core.handle_timeout(now)
        self._act()
        if self._report_at is not None and now >= self._report_at:
            self._report_at = now + STATISTICS_INTERVAL_S
            self._report()

    def next_deadline(self) -> float | None:
        """The earlier of the core's deadline and the next report."""
        deadline = self._core.next_deadline()
        if self._report_at is None or (deadline is not None and deadline < self._report_at):
            return deadline
        return self._report_at

    def _others(self) -> list[types_pb2.TransportAddress]:
        """Where else the intermediate is said to be: the first address of each family but that of the leg."""
        if self._remote is None:
            return []
        found = {translate.address_from_proto(self._remote).family: self._remote}
        for address in self._resolved_addresses:
            found.setdefault(address.family, translate.address_to_proto(address))
        return [each for each in found.values() if each is not self._remote]

    @loop_callback
    def _resolved(self, addresses: list[TransportAddress], error: OSError | None) -> None:
        self._resolved_addresses = addresses or self._resolved_addresses
        reason = "no address" if error is None else describe(error)
        self._core.handle_resolved(addresses, f"{self._host}: {reason}", self.now)
        self._act()

    @loop_callback
    def stream_opened(self, stream: object) -> None:
        """The intermediate took the gRPC call."""
        if stream is self._stream:
            self._core.handle_stream_opened(self.now)
            self._act()

    @loop_callback
    def stream_frame(self, stream: object, frame: relay_pb2.RelayFrame) -> None:
        """A frame came over gRPC."""
        if stream is self._stream:
            control = [frame.control.SerializeToString()] if frame.HasField("control") else []
            self._core.handle_stream_frame(control, frame.datagrams, frame.ping, frame.pong, self.now)
            self._act()

    @loop_callback
    def stream_written(self, stream: object) -> None:
        """The gRPC stream takes more packets."""
        if stream is self._stream:
            self._core.handle_stream_written(self.now)
            self._act()

    @loop_callback
    def stream_closed(self, stream: object, reason: str, detail: str, is_authentication: bool) -> None:
        """The gRPC stream ended, or could not be opened."""
        if stream is self._stream:
            self._stream = None
            self._core.handle_stream_ended(
                reason, detail, self.now, is_authentication_failure=is_authentication
            )
            self._act()

    def _act(self) -> None:
        # In rounds: a control frame may end the leg, and nothing of the round it came in may follow that.
        while pending := self._core.drain():
            control: list[effects.LegControlReceived] = []
            for effect in pending:
                if isinstance(effect, effects.LegControlReceived):
                    control.append(effect)
                else:
                    self._perform(effect)
            for frame in control:
                self._control_received(frame.body, frame.carrier)

    def _perform(self, effect: effects.LegEffect) -> None:
        name = self.key
        match effect:
            case effects.LegTransmit():
                self.emit(
                    udp_socket_pb2.SendDatagrams(
                        remote=translate.address_to_proto(effect.remote), datagrams=effect.datagrams
                    )
                )
            case effects.LegSealedReceived():
                self.emit(
                    relay_leg_pb2.SealedReceived(
                        intermediate_id=name, session_id=effect.session_id, packets=effect.packets
                    )
                )
            case effects.LegConnectionIds():
                self.emit(
                    udp_socket_pb2.UpdateConnectionIds(
                        intermediate_id=name,
                        added=effect.added,
                        retired=effect.retired,
                        forget_owner=effect.forget_all,
                    )
                )
            case effects.LegDialWanted():
                self.io.resolve(self._host, self._port, self._resolved)
            case effects.LegSignalingReceived():
                self.emit(relay_leg_pb2.LegSignalingReceived(intermediate_id=name, data=effect.data))
            case effects.StreamDialWanted() | effects.StreamSend() | effects.StreamCloseWanted():
                self._serve_stream(effect)
            case _:
                self._report_change(effect)

    def _serve_stream(
        self, effect: effects.StreamDialWanted | effects.StreamSend | effects.StreamCloseWanted
    ) -> None:
        match effect:
            case effects.StreamDialWanted():
                self._stream = self._open_stream(self) if self._open_stream is not None else None
            case effects.StreamCloseWanted():
                if self._stream is not None:
                    self._stream.close()
                    self._stream = None
            case effects.StreamSend():
                if self._stream is not None:
                    frame = relay_pb2.RelayFrame(
                        datagrams=effect.datagrams, ping=effect.ping, pong=effect.pong
                    )
                    if effect.hello:
                        frame.control.MergeFromString(effect.hello)
                    self._stream.send(frame)

    def _report_change(self, effect: effects.LegEffect) -> None:
        name = self.key
        match effect:
            case effects.LegConnected():
                self.log.info("relay_leg.connected", remote=str(effect.remote))
                self._remote = translate.address_to_proto(effect.remote)
                self.emit(
                    relay_leg_pb2.LegConnected(
                        intermediate_id=name, remote=self._remote, others=self._others()
                    )
                )
            case effects.LegLost():
                if effect.carrier is CarrierKind.QUIC:
                    self._remote = self._observed = None
                self._log_lost(effect)
                self.emit(
                    relay_leg_pb2.RelayLegDown(
                        intermediate_id=name,
                        reason=effect.reason,
                        detail=effect.detail,
                        is_authentication_failure=effect.is_authentication_failure,
                        carrier=effect.carrier.value,
                    )
                )
            case effects.LegPathChanged():
                self.emit(
                    relay_leg_pb2.RelayPathChanged(
                        intermediate_id=name,
                        session_id=effect.session_id,
                        is_up=effect.is_up,
                        max_packet_bytes=effect.max_packet_bytes,
                    )
                )

    def _log_lost(self, lost: effects.LegLost) -> None:
        outage = self._outages[lost.carrier]
        if lost.retry_in_s is None:
            outage.forget()
            self.log.info(
                "relay_leg.lost", reason=str(lost.reason), detail=lost.detail, carrier=lost.carrier.value
            )
            return
        outage.failed(
            self.now,
            str(lost.reason),
            lost.detail,
            is_error=lost.is_authentication_failure,
            retry_in_s=round(lost.retry_in_s, 3),
            carrier=lost.carrier.value,
        )

    def _control_received(self, body: bytes, carrier: CarrierKind) -> None:
        try:
            frame = relay_pb2.LegFrame.FromString(body)
        except DecodeError:
            self._core.handle_protocol_error("malformed_leg_frame", self.now, carrier)
            return
        match frame.WhichOneof("body"):
            case "accepted":
                if self._core.handle_accepted(frame.accepted.max_packet_bytes, self.now, carrier):
                    recovered = self._outages[carrier].recovered(self.now)
                    self.log.info("relay_leg.up", carrier=carrier.value, **recovered)
                    self.emit(
                        relay_leg_pb2.RelayLegUp(
                            intermediate_id=self.key,
                            max_packet_bytes=frame.accepted.max_packet_bytes,
                            carrier=carrier.value,
                        )
                    )
            case "rejected":
                self.log.warning("relay_leg.rejected", reason=frame.rejected.reason, carrier=carrier.value)
                self._core.handle_rejected(self.now, carrier)
            case "observed_address" if carrier is CarrierKind.QUIC:
                self._address_observed(frame.observed_address.address)
            case _:
                self.log.debug("relay_leg.unknown_frame_ignored")

    def _address_observed(self, observed: types_pb2.TransportAddress) -> None:
        try:
            address = translate.address_from_proto(observed)
        except RemoteProtocolError as error:
            self._core.handle_protocol_error(error.reason, self.now)
            return
        self.log.info("relay_leg.address_observed", address=str(address))
        self._observed = observed
        self.emit(relay_leg_pb2.AddressObserved(intermediate_id=self.key, address=observed))

    def _report(self) -> None:
        counters = self._core.counters
        rtt_s = self._core.rtt_s
        self.emit(
            relay_leg_pb2.LegStatistics(
                intermediate_id=self.key,
                rtt_ms=(rtt_s or 0.0) * 1e3,
                packets_relayed_sent=counters.packets_sent,
                packets_relayed_received=counters.packets_received,
                bytes_relayed_sent=counters.bytes_sent,
                bytes_relayed_received=counters.bytes_received,
                dropped={reason: count for reason, count in self._core.dropped.items() if count},
            )
        )
