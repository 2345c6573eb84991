"""Owns the end-to-end QUIC connection of one session, beneath which paths change without its knowing.

Takes packets from whatever path they came, and payload from the service sockets; emits packets to the selected
path only. While there is no path at all, nothing is sent and QUIC's timers go on, so that the session survives
an outage up to its idle time-out; when a path is back, the backed-off probe timer is forgotten and a PING sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from actors.base import Concern, Context
from ztna.access.identity import VerifiedPeer
from ztna.errors import LocalProtocolError
from ztna.quic import events
from ztna.quic.adapter import Connection
from ztna.v1 import (
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

STATISTICS_INTERVAL_S = 1.0


class QuicSession(Concern):
    """Drives one `Connection` of `ztna.quic.adapter`."""

    name = "quic_session"
    handlers: ClassVar = {
        path_manager_pb2.PathSelected: "path_selected",
        relay_leg_pb2.SealedReceived: "sealed_received",
        udp_socket_pb2.DatagramsReceived: "datagrams_received",
        quic_session_pb2.SendPayload: "send_payload",
        quic_session_pb2.PayloadConsumed: "payload_consumed",
        quic_session_pb2.AbortStream: "abort_stream",
        quic_session_pb2.SendDatagramPayloads: "send_datagram_payloads",
        quic_session_pb2.CloseQuicSession: "close_quic_session",
    }
    emits = (
        relay_leg_pb2.SendSealed,
        quic_session_pb2.SessionEstablished,
        quic_session_pb2.SessionClosed,
        quic_session_pb2.PayloadReceived,
        quic_session_pb2.PayloadAcknowledged,
        quic_session_pb2.StreamAborted,
        quic_session_pb2.DatagramPayloadsReceived,
        quic_session_pb2.SessionStatistics,
    )

    def __init__(
        self, context: Context, open_connection: Callable[[], Connection], *, is_client: bool
    ) -> None:
        super().__init__(context)
        self._session_id = bytes.fromhex(context.key)
        self._connection = open_connection()
        self._is_client = is_client
        self._is_connecting = False
        self._intermediate_id = ""
        self._opened_at = self.now
        self._is_closed = False
        self._was_established = False
        self._report_at: float | None = None
        self._reported: tuple[int, int] = (0, 0)

    def on_stop(self) -> None:
        """Tell the peer, and whoever asks, that the session is over."""
        if not self._is_closed:
            self._connection.close(0, "shutting down")
            self._finish()
            self._report_closed("stopped", "", is_remote=False, is_authentication_failure=False)

    def path_selected(self, message: path_manager_pb2.PathSelected) -> None:
        """Move to a path; the first one starts the handshake of a client."""
        self._intermediate_id = message.intermediate_id
        if message.kind == types_pb2.PATH_KIND_UNSPECIFIED:
            return
        if self._is_client and not self._is_connecting:
            self._is_connecting = True
            self._connection.connect(self.now)
        elif message.is_resumed:
            self._connection.reset_recovery_and_ping(self.now)
        self._finish()

    def sealed_received(self, message: relay_leg_pb2.SealedReceived) -> None:
        """Packets through a relay."""
        self._receive(message.packets)

    def datagrams_received(self, message: udp_socket_pb2.DatagramsReceived) -> None:
        """Packets on a direct path."""
        self._receive(message.datagrams)

    def send_payload(self, message: quic_session_pb2.SendPayload) -> None:
        """Bytes for a stream."""
        if not self._is_closed:
            self._connection.send_stream(message.stream_id, message.data, message.end_of_stream)
            self._finish()

    def payload_consumed(self, message: quic_session_pb2.PayloadConsumed) -> None:
        """Bytes passed on: the peer may send more."""
        if not self._is_closed:
            self._connection.consume(message.stream_id, message.size_bytes)
            self._finish()

    def abort_stream(self, message: quic_session_pb2.AbortStream) -> None:
        """Give up a stream."""
        if self._is_closed:
            return
        if message.reset:
            self._connection.reset_stream(message.stream_id, message.code)
        if message.stop:
            self._connection.stop_stream(message.stream_id, message.code)
        self._finish()

    def send_datagram_payloads(self, message: quic_session_pb2.SendDatagramPayloads) -> None:
        """DATAGRAM frames; what does not fit is a bug of the sender."""
        if self._is_closed:
            return
        for payload in message.payloads:
            self._connection.send_datagram(payload)
        self._finish()

    def close_quic_session(self, message: quic_session_pb2.CloseQuicSession) -> None:
        """End the session."""
        if self._is_closed:
            return
        self._connection.close(message.code, message.reason)
        self._finish()
        self._report_closed(message.reason, "", is_remote=False, is_authentication_failure=False)

    def handle_timeout(self, now: float) -> None:
        """QUIC's timers and the statistics."""
        self._connection.handle_timeout(now)
        self._finish()
        if self._report_at is not None and now >= self._report_at:
            self._report_at = now + STATISTICS_INTERVAL_S
            self._report()

    def next_deadline(self) -> float | None:
        """The earlier of QUIC's deadline and the next report."""
        deadline = self._connection.next_deadline()
        if self._report_at is None or (deadline is not None and deadline < self._report_at):
            return deadline
        return self._report_at

    def _receive(self, packets: Iterable[bytes]) -> None:
        self._connection.receive(packets, self.now)
        self._finish()

    def _finish(self) -> None:
        self._take_events()
        self._transmit()
        self._take_events()

    def _transmit(self) -> None:
        if not self._intermediate_id:
            return
        packets = self._connection.transmit(self.now)
        if packets:
            self.emit(
                relay_leg_pb2.SendSealed(
                    intermediate_id=self._intermediate_id, session_id=self._session_id, packets=packets
                )
            )

    def _take_events(self) -> None:
        datagrams: list[bytes] = []
        for event in self._connection.events():
            match event:
                case events.StreamDataReceived():
                    self.emit(
                        quic_session_pb2.PayloadReceived(
                            session_id=self._session_id,
                            stream_id=event.stream_id,
                            data=event.data,
                            end_of_stream=event.end_of_stream,
                        )
                    )
                case events.DatagramReceived():
                    datagrams.append(event.data)
                case events.SendCredit():
                    self.emit(
                        quic_session_pb2.PayloadAcknowledged(
                            session_id=self._session_id,
                            stream_id=event.stream_id,
                            size_bytes=event.size_bytes,
                        )
                    )
                case events.StreamReset():
                    self._stream_aborted(event.stream_id, event.code, is_reset=True)
                case events.StopSendingReceived():
                    self._stream_aborted(event.stream_id, event.code, is_reset=False)
                case events.HandshakeCompleted():
                    self._established()
                case events.ConnectionClosed():
                    self._report_closed(
                        event.reason,
                        event.message,
                        is_remote=event.is_remote,
                        is_authentication_failure=event.is_authentication_failure,
                    )
                case _:
                    pass
        if datagrams:
            self.emit(
                quic_session_pb2.DatagramPayloadsReceived(session_id=self._session_id, payloads=datagrams)
            )

    def _stream_aborted(self, stream_id: int, code: int, *, is_reset: bool) -> None:
        self.emit(
            quic_session_pb2.StreamAborted(
                session_id=self._session_id, stream_id=stream_id, code=code, is_reset=is_reset
            )
        )

    def _established(self) -> None:
        peer = self._connection.peer
        if not isinstance(peer, VerifiedPeer):
            raise LocalProtocolError("a completed handshake without a verified peer")
        self._was_established = True
        handshake_ms = (self.now - self._opened_at) * 1e3
        self.log.info(
            "quic_session.session_established", peer=peer.identity.id, handshake_ms=round(handshake_ms, 1)
        )
        role = types_pb2.ROLE_CONNECTOR if self._is_client else types_pb2.ROLE_AGENT
        self.emit(
            quic_session_pb2.SessionEstablished(
                session_id=self._session_id,
                peer=types_pb2.NodeIdentity(role=role, id=peer.identity.id, fingerprint=peer.fingerprint),
                max_datagram_payload_bytes=self._connection.max_datagram_payload,
                handshake_ms=handshake_ms,
            )
        )
        self._report_at = self.now

    def _report_closed(
        self, reason: str, message: str, *, is_remote: bool, is_authentication_failure: bool
    ) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._report()
        statistics = self._connection.statistics()
        log = self.log.error if is_authentication_failure else self.log.info
        log(
            "quic_session.session_closed",
            reason=str(reason),
            detail=message,
            by="peer" if is_remote else "us",
            duration_s=round(self.now - self._opened_at, 3),
            bytes_sent=statistics.bytes_sent,
            bytes_received=statistics.bytes_received,
            packets_lost=statistics.packets_lost,
            path="relay" if self._intermediate_id else "none",
        )
        self.emit(
            quic_session_pb2.SessionClosed(
                session_id=self._session_id,
                reason=reason,
                message=message,
                is_remote=is_remote,
                was_established=self._was_established,
                is_authentication_failure=is_authentication_failure,
            )
        )

    def _report(self) -> None:
        statistics = self._connection.statistics()
        progress = (statistics.packets_sent, statistics.packets_received)
        if progress == self._reported:
            return
        self._reported = progress
        self.emit(
            quic_session_pb2.SessionStatistics(
                session_id=self._session_id,
                rtt_ms=(self._connection.rtt or 0.0) * 1e3,
                bytes_sent=statistics.bytes_sent,
                bytes_received=statistics.bytes_received,
                packets_sent=statistics.packets_sent,
                packets_received=statistics.packets_received,
                packets_lost=statistics.packets_lost,
                open_streams=statistics.open_streams,
                congestion_window_bytes=statistics.congestion_window_bytes,
            )
        )
