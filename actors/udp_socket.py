"""Owns the UDP sockets, one per address family, which carry everything; takes payloads, emits sorted batches.

Whose packet it is decides `ztna.quic.demux`: by first byte, then by connection ID, of which this actor keeps
the one table of the process. Owners are named by the key that their messages are routed by. On the
intermediate, STUN Binding requests are answered here, and packets for no known connection ID are emitted.

On agent and connector `ztna.stun.routing` decides whose a STUN message is, and verifies its integrity before
anybody is told. Whatever is for nobody is dropped and counted: a stranger gets no byte back.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from google.protobuf.message import Message

from actors import translate
from actors.base import Concern, Context, loop_callback
from actors.drop_log import DropLog
from actors.io import DatagramBatch
from actors.io import UdpSocket as Socket
from ztna.address import Family, TransportAddress
from ztna.quic.demux import Demultiplexer
from ztna.stun.responder import BindingResponder
from ztna.stun.routing import Asker, Route, StunRouter
from ztna.v1 import types_pb2, udp_socket_pb2

STATISTICS_INTERVAL_S = 1.0

# Remote addresses per interval whose send failures are reported one by one; further ones are only counted,
# since answers to forged sources fail by the thousand.
MAX_FAILURES_REPORTED = 16

_ASKERS: Final = {
    udp_socket_pb2.STUN_ASKER_CHECKLIST: Asker.CHECKLIST,
    udp_socket_pb2.STUN_ASKER_KEEPALIVE: Asker.KEEPALIVE,
    udp_socket_pb2.STUN_ASKER_CANDIDATE_GATHERER: Asker.CANDIDATE_GATHERER,
}


@dataclass(frozen=True, slots=True)
class Owner:
    """Who gets the packets of a connection: exactly one field is set."""

    intermediate_id: str = ""
    session_id: bytes = b""
    connection: int = 0


Source = tuple[TransportAddress, str]


class BoundSockets(Concern):
    """What the sockets of every daemon do: bind, send, sort by connection ID, count."""

    name = "udp_socket"
    handlers: ClassVar = {
        udp_socket_pb2.SendDatagrams: "send_datagrams",
        udp_socket_pb2.UpdateConnectionIds: "update_connection_ids",
    }
    emits: ClassVar[tuple[type[Message], ...]] = (
        udp_socket_pb2.SocketsBound,
        udp_socket_pb2.DatagramsReceived,
        udp_socket_pb2.SendFailed,
        udp_socket_pb2.SocketStatistics,
    )

    def __init__(self, context: Context, bind: Sequence[TransportAddress]) -> None:
        super().__init__(context)
        self._bind = tuple(bind)
        self._sockets: list[Socket] = []
        self._by_family: dict[Family, Socket] = {}
        self._demultiplexer: Demultiplexer[Owner] = Demultiplexer()
        self._dropped: Counter[str] = Counter()
        self._received = [0, 0]
        self._sent = [0, 0]
        self._report_at = self.now
        self._reported = (0, 0)
        self._failing: set[TransportAddress] = set()
        self._drop_log = DropLog(self.log, "udp_socket.datagrams_dropped")

    def on_start(self) -> None:
        """Bind; a family that this host does not have is left out as long as another one works."""
        failure: OSError | None = None
        for local in self._bind:
            try:
                socket = self._open(local)
            except OSError as error:
                if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    raise OSError(
                        error.errno, f"cannot bind UDP {local}: {error.strerror or error}"
                    ) from error
                self.log.warning("udp_socket.family_left_out", address=str(local), error=str(error))
                failure = error
                continue
            self._sockets.append(socket)
            self._by_family.setdefault(socket.local_address.family, socket)
        if not self._sockets:
            raise OSError(errno.EADDRNOTAVAIL, f"no UDP address could be bound: {failure}")
        addresses = [socket.local_address for socket in self._sockets]
        self.log.info("udp_socket.sockets_bound", addresses=[str(address) for address in addresses])
        self._report_bound()
        self._report_at = self.io.time() + STATISTICS_INTERVAL_S

    def on_stop(self) -> None:
        """Close the sockets."""
        for socket in self._sockets:
            socket.close()

    def _report_bound(self) -> None:
        addresses = [translate.address_to_proto(socket.local_address) for socket in self._sockets]
        self.emit(udp_socket_pb2.SocketsBound(addresses=addresses))

    def send_datagrams(self, message: udp_socket_pb2.SendDatagrams) -> None:
        """Send a batch to one address."""
        remote = TransportAddress(message.remote.host, message.remote.port)
        socket = self._by_family.get(remote.family)
        if socket is None:
            self._dropped["no_socket_of_family"] += len(message.datagrams)
            return
        self._send(socket, message.datagrams, remote, message.local_host)

    def update_connection_ids(self, message: udp_socket_pb2.UpdateConnectionIds) -> None:
        """Keep the table of connection IDs."""
        owner = Owner(message.intermediate_id, message.session_id, message.connection)
        table = self._demultiplexer.table
        if message.forget_owner:
            table.forget_owner(owner)
        for connection_id in message.retired:
            table.retire(connection_id)
        for connection_id in message.added:
            if not table.add(connection_id, owner):
                self._dropped["connection_id_refused"] += 1

    @loop_callback
    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Sort what was pending; told by the I/O port."""
        del now
        for batch in batches:
            self._sort(batch)

    @loop_callback
    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """Report what the kernel refused, once per burst; told by the I/O port."""
        del now
        self._dropped["send_failed"] += 1
        if remote in self._failing or len(self._failing) >= MAX_FAILURES_REPORTED:
            return
        self._failing.add(remote)
        self.log.warning("udp_socket.send_failed", remote=str(remote), error=error.strerror or str(error))
        self.emit(
            udp_socket_pb2.SendFailed(remote=translate.address_to_proto(remote), error=error.strerror or "")
        )

    def handle_timeout(self, now: float) -> None:
        """Report figures, and log what was dropped."""
        if now < self._report_at:
            return
        self._report_at = now + STATISTICS_INTERVAL_S
        self._failing.clear()
        self._note_drops(now)
        progress = (self._received[0], self._sent[0])
        if progress == self._reported:
            return
        self._reported = progress
        self.emit(self._statistics())

    def next_deadline(self) -> float | None:
        """When the next report is due."""
        return self._report_at

    def _send(
        self, socket: Socket, datagrams: Sequence[bytes], remote: TransportAddress, local_host: str
    ) -> None:
        taken = socket.send(datagrams, remote, local_host)
        self._sent[0] += taken
        self._sent[1] += sum(map(len, datagrams[:taken]))
        if taken < len(datagrams):
            # Pinned ones apart: there the address we send from may have gone.
            reason = "pinned_send_refused" if local_host else "send_refused"
            self._dropped[reason] += len(datagrams) - taken

    def _open(self, local: TransportAddress) -> Socket:
        return self.io.open_udp(local, self)

    def _sort(self, batch: DatagramBatch) -> None:
        self._received[0] += len(batch.payloads)
        self._received[1] += sum(map(len, batch.payloads))
        source: Source = (batch.remote, batch.local_host)
        result = self._demultiplexer.sort([(payload, source) for payload in batch.payloads])
        for owner, items in result.by_owner.items():
            self.emit(
                udp_socket_pb2.DatagramsReceived(
                    intermediate_id=owner.intermediate_id,
                    session_id=owner.session_id,
                    connection=owner.connection,
                    remote=translate.address_to_proto(batch.remote),
                    local_host=batch.local_host,
                    datagrams=[data for data, _ in items],
                )
            )
        if result.stun:
            self._stun_received(batch, [data for data, _ in result.stun])
        if result.unknown_initials:
            self._strangers_received(batch, [data for data, _ in result.unknown_initials])

    def _stun_received(self, batch: DatagramBatch, datagrams: list[bytes]) -> None:
        raise NotImplementedError

    def _strangers_received(self, batch: DatagramBatch, datagrams: list[bytes]) -> None:
        raise NotImplementedError

    def _note_drops(self, now: float) -> None:
        self._drop_log.note(now, self._drops())

    def _drops(self) -> Counter[str]:
        dropped = self._dropped + self._demultiplexer.dropped
        dropped["buffer_full"] += sum(socket.dropped for socket in self._sockets)
        return dropped

    def _statistics(self) -> udp_socket_pb2.SocketStatistics:
        dropped = self._drops()
        return udp_socket_pb2.SocketStatistics(
            datagrams_received=self._received[0],
            bytes_received=self._received[1],
            datagrams_sent=self._sent[0],
            bytes_sent=self._sent[1],
            dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        )


class UdpSocket(BoundSockets):
    """The sockets of an agent or a connector: answers nobody, and tells one actor of each STUN message."""

    handlers: ClassVar = {
        **BoundSockets.handlers,
        udp_socket_pb2.ReportSockets: "report_sockets",
        udp_socket_pb2.AcceptChecks: "accept_checks",
        udp_socket_pb2.RefuseChecks: "refuse_checks",
        udp_socket_pb2.SendStunRequest: "send_stun_request",
    }
    emits = (
        *BoundSockets.emits,
        udp_socket_pb2.CheckReceived,
        udp_socket_pb2.KeepaliveResponseReceived,
        udp_socket_pb2.StunResponseReceived,
    )

    def __init__(self, context: Context, bind: Sequence[TransportAddress]) -> None:
        super().__init__(context, bind)
        self._router = StunRouter()

    def report_sockets(self, _message: udp_socket_pb2.ReportSockets) -> None:
        """Tell somebody who started later."""
        self._report_bound()

    def accept_checks(self, message: udp_socket_pb2.AcceptChecks) -> None:
        """Pass checks with these credentials on to their session."""
        credentials = message.credentials
        if not self._router.accept(message.session_id, credentials.ufrag, credentials.pwd, self.now):
            self.log.warning("udp_socket.credentials_refused", session_id=message.session_id.hex())

    def refuse_checks(self, message: udp_socket_pb2.RefuseChecks) -> None:
        """Pass them on a little longer, and then no more."""
        self._router.refuse(message.session_id, message.ufrag, self.now)

    def send_stun_request(self, message: udp_socket_pb2.SendStunRequest) -> None:
        """Send a request, and note who is told of its response."""
        remote = TransportAddress(message.remote.host, message.remote.port)
        socket = self._by_family.get(remote.family)
        asker = _ASKERS.get(message.asker)
        if socket is None or asker is None:
            self._dropped["no_socket_of_family" if socket is None else "no_asker"] += 1
            return
        is_expected = self._router.expect(
            message.transaction_id, asker, message.session_id, remote, message.pwd.encode(), self.now
        )
        if is_expected:
            self._send(socket, [message.datagram], remote, message.local_host)

    def handle_timeout(self, now: float) -> None:
        """Report figures, and let go of what has expired."""
        super().handle_timeout(now)
        self._router.handle_timeout(now)

    def _stun_received(self, batch: DatagramBatch, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            route = self._router.route(datagram, batch.remote, self.now)
            if route is not None:
                self.emit(self._stun_event(route, batch, datagram))

    def _stun_event(self, route: Route, batch: DatagramBatch, datagram: bytes) -> Message:
        remote = translate.address_to_proto(batch.remote)
        if route.asker is Asker.KEEPALIVE:
            return udp_socket_pb2.KeepaliveResponseReceived(
                session_id=route.session_id, remote=remote, datagram=datagram
            )
        port = self._by_family[batch.remote.family].local_address.port
        local = types_pb2.TransportAddress(host=batch.local_host, port=port)
        if route.asker is Asker.CANDIDATE_GATHERER:
            return udp_socket_pb2.StunResponseReceived(remote=remote, local=local, datagram=datagram)
        return udp_socket_pb2.CheckReceived(
            session_id=route.session_id, remote=remote, local=local, ufrag=route.ufrag, datagram=datagram
        )

    def _strangers_received(self, batch: DatagramBatch, datagrams: list[bytes]) -> None:
        del batch
        self._dropped["unknown_connection"] += len(datagrams)

    def _drops(self) -> Counter[str]:
        return super()._drops() + self._router.dropped


class IntermediateUdpSocket(BoundSockets):
    """The sockets of the intermediate: answers STUN, and hands strangers to the relay."""

    emits = (*BoundSockets.emits, udp_socket_pb2.UnknownDatagramsReceived)

    def __init__(
        self,
        context: Context,
        bind: Sequence[TransportAddress],
        *,
        alternate_port: int | None,
        external_address: TransportAddress | None,
    ) -> None:
        """`alternate_port` answers STUN only (RFC 5780); `external_address` is what clients see of us."""
        super().__init__(context, bind)
        self._alternate_port = alternate_port
        self._external_address = external_address
        self._responder = BindingResponder(alternate_port)
        self._alternates: dict[Family, Socket] = {}
        self._stun_log = DropLog(self.log, "udp_socket.stun_refused")

    def on_start(self) -> None:
        """Bind the alternate port beside each address."""
        super().on_start()
        if self._alternate_port is None:
            return
        for socket in list(self._sockets):
            local = TransportAddress(socket.local_address.host, self._alternate_port)
            try:
                alternate = self.io.open_udp(local, _AlternateOwner(self))
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot bind UDP {local} (stun.alternate_port): {error.strerror or error}"
                ) from error
            self._sockets.append(alternate)
            self._alternates.setdefault(local.family, alternate)

    @loop_callback
    def alternate_received(self, batches: list[DatagramBatch]) -> None:
        """Answer STUN on the alternate port; anything else there is dropped."""
        for batch in batches:
            self._received[0] += len(batch.payloads)
            self._received[1] += sum(map(len, batch.payloads))
            self._stun_received(batch, batch.payloads, is_alternate=True)

    def _stun_received(
        self, batch: DatagramBatch, datagrams: list[bytes], *, is_alternate: bool = False
    ) -> None:
        family = batch.remote.family
        primary = self._by_family.get(family)
        if primary is None:
            return
        alternate = self._alternates.get(family)
        arrived_on = alternate if is_alternate and alternate is not None else primary
        local = self._seen_from_outside(batch, arrived_on, is_alternate=arrived_on is alternate)
        for data in datagrams:
            response = self._responder.respond(data, batch.remote, local, self.now)
            if response is None:
                continue
            sender = alternate if response.from_alternate and alternate is not None else primary
            sender.send([response.data], batch.remote, batch.local_host)
            self._sent[0] += 1
            self._sent[1] += len(response.data)

    def _seen_from_outside(
        self, batch: DatagramBatch, arrived_on: Socket, *, is_alternate: bool
    ) -> TransportAddress:
        external = self._external_address
        port = arrived_on.local_address.port
        if external is not None and external.family is batch.remote.family:
            return replace(external, port=port) if is_alternate else external
        return TransportAddress(batch.local_host or arrived_on.local_address.host, port)

    def _strangers_received(self, batch: DatagramBatch, datagrams: list[bytes]) -> None:
        self.emit(
            udp_socket_pb2.UnknownDatagramsReceived(
                remote=translate.address_to_proto(batch.remote),
                local_host=batch.local_host,
                datagrams=datagrams,
            )
        )

    def _note_drops(self, now: float) -> None:
        super()._note_drops(now)
        self._stun_log.note(now, self._responder.stats.refused)

    def _statistics(self) -> udp_socket_pb2.SocketStatistics:
        statistics = super()._statistics()
        stats = self._responder.stats
        statistics.stun["answered"] = stats.answered
        for reason, count in stats.refused.items():
            statistics.stun[reason] = count
        return statistics


class _AlternateOwner:
    """Receives for the alternate sockets."""

    def __init__(self, owner: IntermediateUdpSocket) -> None:
        self._owner = owner

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        del now
        self._owner.alternate_received(batches)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        self._owner.send_failed(remote, error, now)
