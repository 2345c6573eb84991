"""Owns the list of addresses at which this node may be reached; tells each asking session at every change.

Takes what the sockets, the legs and the system say, and emits candidates, changes of the network and what is
known of NATs. Its tests of NATs have a few fresh sockets of their own, one purpose each, closed at once
(`ztna.nat.discovery` says why they cannot share the main one); everything else goes through `udp_socket`.
Names of intermediates are looked up here as their legs do it: an agent has one leg, and asks all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Final

from google.protobuf.message import Message

from actors import translate
from actors.base import Concern, Context, loop_callback
from actors.io import DatagramBatch
from actors.io import UdpSocket as Socket
from ztna.address import Family, TransportAddress
from ztna.ice.gatherer import (
    CandidateGatherer as Core,
)
from ztna.ice.gatherer import (
    Gathered,
    GathererEffect,
    LookUp,
    NatLearned,
    NetworkChanged,
    SendBinding,
    TellSession,
)
from ztna.nat.discovery import CloseProbe, OpenProbe, SendProbe
from ztna.relay.carrier import CarrierKind
from ztna.v1 import candidate_gatherer_pb2, relay_leg_pb2, udp_socket_pb2

_WILDCARD: Final = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - as the main sockets are


class CandidateGatherer(Concern):
    """The candidates of a node."""

    name = "candidate_gatherer"
    handlers: ClassVar = {
        candidate_gatherer_pb2.GatherCandidates: "gather_candidates",
        candidate_gatherer_pb2.StopGathering: "stop_gathering",
        udp_socket_pb2.SocketsBound: "sockets_bound",
        udp_socket_pb2.StunResponseReceived: "stun_response_received",
        relay_leg_pb2.LegReported: "leg_reported",
        relay_leg_pb2.LegConnected: "leg_connected",
        relay_leg_pb2.RelayLegUp: "relay_leg_up",
        relay_leg_pb2.RelayLegDown: "relay_leg_down",
        relay_leg_pb2.AddressObserved: "address_observed",
    }
    emits: ClassVar[tuple[type[Message], ...]] = (
        candidate_gatherer_pb2.CandidatesGathered,
        candidate_gatherer_pb2.NetworkChanged,
        candidate_gatherer_pb2.NatBehaviourLearned,
        udp_socket_pb2.SendStunRequest,
        udp_socket_pb2.ReportSockets,
        relay_leg_pb2.ReportLeg,
    )

    def __init__(
        self,
        context: Context,
        intermediate_ids: Sequence[str] = (),
        *,
        relays: Mapping[str, tuple[str, int]] | None = None,
        loopback: bool = False,
        advertise: Sequence[TransportAddress] = (),
    ) -> None:
        """`intermediate_ids` are those whose legs are asked how they are.

        `relays` has, by intermediate, host and port of those that are asked for our address even without leg.
        `loopback`: loopback addresses are candidates; `advertise`: addresses that are forwarded to us.

        An advertised address with port 0 is forwarded under the port of our socket.
        """
        super().__init__(context)
        self._intermediate_ids = tuple(intermediate_ids)
        self._relays = dict(relays or {})
        self._core = Core(
            self.io.random, self.now, loopback=loopback, advertise=advertise, names=self._relays
        )
        self._bound: dict[Family, TransportAddress] = {}
        self._probes: dict[int, Socket] = {}
        self._cancel_watch = _nothing

    def on_start(self) -> None:
        """Look at the network, and hear of its changes."""
        self._cancel_watch = self.io.watch_network(self.network_changed)
        self._look_at_network()
        # What was said before this actor started, at the first time or again.
        self.emit(udp_socket_pb2.ReportSockets())
        for name in self._intermediate_ids:
            self.emit(relay_leg_pb2.ReportLeg(intermediate_id=name))

    def on_stop(self) -> None:
        """Watch no more, and close what is left open."""
        self._cancel_watch()
        for socket in self._probes.values():
            socket.close()

    def gather_candidates(self, message: candidate_gatherer_pb2.GatherCandidates) -> None:
        """Tell this session, now and at every change."""
        self._core.handle_gather(message.session_id, self.now)
        self._process()

    def stop_gathering(self, message: candidate_gatherer_pb2.StopGathering) -> None:
        """Tell this session no more."""
        self._core.handle_stop(message.session_id)

    def sockets_bound(self, message: udp_socket_pb2.SocketsBound) -> None:
        """Take note of our sockets; the first of a family is the one that is used."""
        addresses = [translate.address_from_proto(each) for each in message.addresses]
        self._bound = {address.family: address for address in reversed(addresses)}
        self._core.handle_bound(addresses, self.now)
        self._process()

    def stun_response_received(self, message: udp_socket_pb2.StunResponseReceived) -> None:
        """Take an answer to one of our requests."""
        remote = translate.address_from_proto(message.remote)
        self._core.handle_response(message.datagram, remote, message.local.host, self.now)
        self._process()

    def leg_reported(self, message: relay_leg_pb2.LegReported) -> None:
        """Take note of how a leg was before this actor started."""
        if message.HasField("remote"):
            self._leg_up(message)
        if message.HasField("observed"):
            address = translate.address_from_proto(message.observed)
            self._core.handle_observed(message.intermediate_id, address, self.now)
        if message.carrier == CarrierKind.GRPC:
            self._core.handle_leg_over_tcp(message.intermediate_id, self.now)
        self._process()

    def relay_leg_up(self, message: relay_leg_pb2.RelayLegUp) -> None:
        """Take note of one that UDP does not reach."""
        if message.carrier == CarrierKind.GRPC:
            self._core.handle_leg_over_tcp(message.intermediate_id, self.now)
            self._process()

    def leg_connected(self, message: relay_leg_pb2.LegConnected) -> None:
        """Take note of an intermediate that answers."""
        self._leg_up(message)
        self._process()

    def _leg_up(self, message: relay_leg_pb2.LegConnected | relay_leg_pb2.LegReported) -> None:
        remote, *others = map(translate.address_from_proto, (message.remote, *message.others))
        self._core.handle_leg_up(message.intermediate_id, remote, self.now, others)

    def relay_leg_down(self, message: relay_leg_pb2.RelayLegDown) -> None:
        """Take note of one that does not."""
        if message.carrier == CarrierKind.GRPC:
            return  # which says nothing about UDP
        self._core.handle_leg_down(
            message.intermediate_id, self.now, is_refusal=message.is_authentication_failure
        )
        self._process()

    def address_observed(self, message: relay_leg_pb2.AddressObserved) -> None:
        """Take note of where an intermediate sees us."""
        address = translate.address_from_proto(message.address)
        self._core.handle_observed(message.intermediate_id, address, self.now)
        self._process()

    def handle_timeout(self, now: float) -> None:
        """Ask again, give up, or begin what is due."""
        self._core.handle_timeout(now)
        self._process()

    def next_deadline(self) -> float | None:
        """When the core wants to be woken."""
        return self._core.next_deadline()

    @loop_callback
    def _resolved(
        self, intermediate_id: str, addresses: list[TransportAddress], error: OSError | None
    ) -> None:
        if error is not None:
            # The leg that needs the name says so where people look.
            self.log.debug(
                "candidate_gatherer.name_not_found", intermediate=intermediate_id, error=str(error)
            )
        self._core.handle_looked_up(intermediate_id, addresses, self.now)
        self._process()

    @loop_callback
    def network_changed(self) -> None:
        """Look at the network again; told by the I/O port."""
        self._look_at_network()

    @loop_callback
    def probe_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Take what a socket of our own received; told by the I/O port."""
        for batch in batches:
            for payload in batch.payloads:
                self._core.handle_probe_datagram(payload, batch.remote, now)
        self._process()

    def _look_at_network(self) -> None:
        hosts = [each.host for each in self.io.interface_addresses()]
        found = {family: self.io.source_address(family) for family in Family}
        sources = {family: host for family, host in found.items() if host is not None}
        self._core.handle_network(hosts, sources, self.now)
        self._process()

    def _process(self) -> None:
        # Opening a socket makes the core go on, so there may be more effects afterwards.
        while effects := self._core.drain():
            for effect in effects:
                self._perform_effect(effect)

    def _perform_effect(self, effect: GathererEffect) -> None:
        if isinstance(effect, SendBinding):
            self.emit(
                udp_socket_pb2.SendStunRequest(
                    asker=udp_socket_pb2.STUN_ASKER_CANDIDATE_GATHERER,
                    remote=translate.address_to_proto(effect.transmit.remote),
                    transaction_id=effect.transaction_id,
                    datagram=effect.transmit.data,
                )
            )
        elif isinstance(effect, LookUp):
            host, port = self._relays[effect.intermediate_id]
            self.io.resolve(host, port, partial(self._resolved, effect.intermediate_id))
        elif isinstance(effect, TellSession):
            self.emit(_gathered(effect.session_id, effect.gathered))
        elif isinstance(effect, NetworkChanged):
            self.log.info("candidate_gatherer.network_changed", reason=effect.reason)
            hosts = [translate.address_to_proto(host) for host in effect.hosts]
            self.emit(candidate_gatherer_pb2.NetworkChanged(hosts=hosts, reason=effect.reason))
        elif isinstance(effect, NatLearned):
            self._nat_learned(effect)
        elif isinstance(effect, OpenProbe):
            self._open_probe(effect)
        elif isinstance(effect, SendProbe):
            transmit = effect.transmit
            self._probes[effect.probe].send([transmit.data], transmit.remote, transmit.local_host)
        else:
            self._close_probe(effect)

    def _nat_learned(self, effect: NatLearned) -> None:
        nat = effect.nat
        self.log.info(
            "candidate_gatherer.nat_behaviour_learned",
            has_nat=nat.has_nat,
            mapping=nat.mapping.value,
            filtering=nat.filtering.value,
            port_allocation=nat.port_allocation.value,
            is_udp_blocked=nat.is_udp_blocked,
        )
        self.emit(candidate_gatherer_pb2.NatBehaviourLearned(nat=translate.nat_to_proto(nat)))

    def _open_probe(self, effect: OpenProbe) -> None:
        bound = self._bound.get(effect.family)
        host = _WILDCARD[effect.family] if bound is None else bound.host
        try:
            socket = self.io.open_udp(TransportAddress(host, 0), _ProbeOwner(self))
        except OSError as error:
            # Out of descriptors, say: an explanation is missing then, and nothing else.
            self.log.warning("candidate_gatherer.no_probe", error=error.strerror or str(error))
            self._core.handle_probe_opened(effect.probe, None, self.now)
            return
        self._probes[effect.probe] = socket
        self._core.handle_probe_opened(effect.probe, socket.local_address, self.now)

    def _close_probe(self, effect: CloseProbe) -> None:
        self._probes.pop(effect.probe).close()


class _ProbeOwner:
    """Receives for the sockets of tests."""

    def __init__(self, owner: CandidateGatherer) -> None:
        self._owner = owner

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        self._owner.probe_received(batches, now)

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """Count on the retransmission; a test that cannot send ends unanswered."""


def _gathered(session_id: bytes, gathered: Gathered) -> candidate_gatherer_pb2.CandidatesGathered:
    return candidate_gatherer_pb2.CandidatesGathered(
        session_id=session_id,
        candidates=[translate.candidate_to_proto(each) for each in gathered.candidates],
        is_complete=gathered.is_complete,
        network=gathered.network,
        nat=translate.nat_to_proto(gathered.nat),
    )


def _nothing() -> None:
    """Stand in for the end of a watch that has not begun."""
