from __future__ import annotations

import errno
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from actors.base import Context
from actors.candidate_gatherer import CandidateGatherer
from actors.io import DatagramBatch, InterfaceAddress, UdpOwner
from actors.io import UdpSocket as Socket
from tests.manual_io import ActorHarness, ManualIo, actor_harness
from tests.unit.nat.fake_nat import AD, APD, EI, FakeInternet, FakeNat, FakeServer
from ztna.address import Family, TransportAddress
from ztna.ice.gatherer import REFRESH_S
from ztna.v1 import candidate_gatherer_pb2, relay_leg_pb2, types_pb2, udp_socket_pb2

MessageT = TypeVar("MessageT", bound=Message)
SESSION = b"s" * 16
HOST = "10.0.0.2"
SERVER = FakeServer()
FAR_SERVER = FakeServer(host="192.0.2.9")
Harness = ActorHarness[CandidateGatherer]


class Gatherer(CandidateGatherer):
    def __init__(self, context: Context) -> None:
        super().__init__(context, advertise=[TransportAddress("198.51.100.4", 0)])


class LoopbackGatherer(CandidateGatherer):
    def __init__(self, context: Context) -> None:
        super().__init__(context, loopback=True)


class NamedGatherer(CandidateGatherer):
    def __init__(self, context: Context) -> None:
        relays = {"i1": (SERVER.host, SERVER.primary.port), "i2": ("far.example", FAR_SERVER.primary.port)}
        super().__init__(context, ["i1", "i2"], relays=relays)


class IoWithoutRoom(ManualIo):
    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> Socket:
        raise OSError(errno.EMFILE, "no descriptors")


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


def address(host: str, port: int) -> types_pb2.TransportAddress:
    return types_pb2.TransportAddress(host=host, port=port)


def started(io: ManualIo | None = None, concern: type[CandidateGatherer] = Gatherer) -> Harness:
    io = io or ManualIo()
    io.interfaces = [InterfaceAddress("eth0", HOST, 24), InterfaceAddress("lo", "127.0.0.1", 8)]
    io.sources = {Family.IPV4: HOST}
    harness: Harness = actor_harness(concern, io=io)
    harness.tell(udp_socket_pb2.SocketsBound(addresses=[address("0.0.0.0", 5000)]))
    return harness


def gather() -> candidate_gatherer_pb2.GatherCandidates:
    return candidate_gatherer_pb2.GatherCandidates(session_id=SESSION)


def leg_connected() -> relay_leg_pb2.LegConnected:
    remote = address(SERVER.primary.host, SERVER.primary.port)
    return relay_leg_pb2.LegConnected(intermediate_id="i1", remote=remote)


def answer_all(harness: Harness, internet: FakeInternet, seconds: float = 10.0) -> list[Message]:
    """Play udp_socket and the network until the gatherer comes to rest; returns what else was emitted."""
    kept: list[Message] = []
    until = harness.io.time() + seconds
    while True:
        emitted = harness.take_emitted()
        kept += [each for each in emitted if not isinstance(each, udp_socket_pb2.SendStunRequest)]
        for request in of(emitted, udp_socket_pb2.SendStunRequest):
            remote = TransportAddress(request.remote.host, request.remote.port)
            answer = internet.exchange(request.datagram, TransportAddress(HOST, 5000), remote)
            if answer is not None:
                harness.tell(
                    udp_socket_pb2.StunResponseReceived(
                        remote=address(answer[1].host, answer[1].port),
                        local=address(HOST, 5000),
                        datagram=answer[0],
                    )
                )
        if not play_probes(harness, internet) and not harness.emitted:
            deadline = harness.io.next_deadline()
            if deadline is None or deadline > until:
                return kept
            harness.io.run_until(deadline)


def play_probes(harness: Harness, internet: FakeInternet) -> bool:
    was_busy = False
    for socket in harness.io.udp_sockets:
        sent, socket.sent[:] = socket.sent[:], []
        for data, remote, _ in sent:
            was_busy = True
            local = TransportAddress(HOST, socket.local_address.port)
            answer = internet.exchange(data, local, remote)
            if answer is not None and not socket.is_closed:
                batch = DatagramBatch(answer[1], HOST, [answer[0]])
                socket.owner.datagrams_received([batch], harness.io.time())
                harness.io.run_until_idle()
    return was_busy


def test_session_is_told_of_hosts_and_advertised_addresses_at_once() -> None:
    harness = started()
    harness.tell(gather())
    (told,) = of(harness.take_emitted(), candidate_gatherer_pb2.CandidatesGathered)
    assert told.session_id == SESSION
    assert [(each.type, each.address.host, each.address.port) for each in told.candidates] == [
        (types_pb2.Candidate.TYPE_HOST, HOST, 5000),
        (types_pb2.Candidate.TYPE_SERVER_REFLEXIVE, "198.51.100.4", 5000),
    ]
    assert told.candidates[1].related_address == address(HOST, 5000)
    assert not told.is_complete


def test_legs_and_stun_bring_reflexive_candidates_and_the_behaviour_of_the_nat() -> None:
    harness = started()
    harness.tell(gather(), leg_connected())
    harness.tell(relay_leg_pb2.AddressObserved(intermediate_id="i1", address=address("203.0.113.5", 5000)))
    emitted = answer_all(harness, FakeInternet(FakeNat(EI, APD), [SERVER]))
    told = of(emitted, candidate_gatherer_pb2.CandidatesGathered)[-1]
    reflexive = [each for each in told.candidates if each.type == types_pb2.Candidate.TYPE_SERVER_REFLEXIVE]
    assert [each.address.host for each in reflexive] == ["198.51.100.4", "203.0.113.5"]
    assert told.is_complete
    nat = of(emitted, candidate_gatherer_pb2.NatBehaviourLearned)[-1].nat
    assert nat == told.nat
    assert nat.mapping == types_pb2.NAT_DEPENDENCE_NOT_PORT_DEPENDENT
    assert nat.filtering == types_pb2.NAT_DEPENDENCE_ADDRESS_AND_PORT_DEPENDENT
    assert nat.port_allocation == types_pb2.NAT_PORT_ALLOCATION_PRESERVED
    assert harness.io.udp_sockets
    assert all(socket.is_closed for socket in harness.io.udp_sockets)


def test_request_names_its_asker_and_no_session() -> None:
    harness = started()
    harness.tell(leg_connected())
    (request,) = of(harness.take_emitted(), udp_socket_pb2.SendStunRequest)
    assert request.asker == udp_socket_pb2.STUN_ASKER_CANDIDATE_GATHERER
    assert (request.session_id, request.pwd, request.local_host) == (b"", "", "")
    assert request.datagram[8:20] == request.transaction_id


def test_change_of_the_network_is_told_to_everybody_and_candidates_to_the_session() -> None:
    harness = started()
    harness.tell(gather())
    harness.take_emitted()
    harness.io.change_network([InterfaceAddress("wlan0", "10.9.0.2", 24)], {Family.IPV4: "10.9.0.2"})
    emitted = harness.take_emitted()
    (changed,) = of(emitted, candidate_gatherer_pb2.NetworkChanged)
    assert (list(changed.hosts), changed.reason) == ([address("10.9.0.2", 5000)], "default_route_changed")
    (told,) = of(emitted, candidate_gatherer_pb2.CandidatesGathered)
    assert told.candidates[0].address == address("10.9.0.2", 5000)
    assert told.network == 1


def test_session_that_stopped_is_told_nothing_more() -> None:
    harness = started()
    harness.tell(gather(), candidate_gatherer_pb2.StopGathering(session_id=SESSION))
    harness.take_emitted()
    harness.io.change_network([InterfaceAddress("wlan0", "10.9.0.2", 24)])
    assert of(harness.take_emitted(), candidate_gatherer_pb2.CandidatesGathered) == []


def test_leg_without_answers_makes_udp_look_blocked() -> None:
    harness = started()
    harness.tell(relay_leg_pb2.RelayLegDown(intermediate_id="i1", reason="timeout"))
    (learned,) = of(harness.take_emitted(), candidate_gatherer_pb2.NatBehaviourLearned)
    assert learned.nat.is_udp_blocked


@pytest.mark.parametrize("is_restarted", [False, True])
def test_leg_over_grpc_alone_makes_udp_look_blocked_until_quic_connects(is_restarted: bool) -> None:
    harness = started()
    if is_restarted:
        harness.tell(relay_leg_pb2.LegReported(intermediate_id="i1", carrier="grpc"))
    else:
        harness.tell(relay_leg_pb2.RelayLegUp(intermediate_id="i1", carrier="grpc"))
    (learned,) = of(harness.take_emitted(), candidate_gatherer_pb2.NatBehaviourLearned)
    assert learned.nat.is_udp_blocked
    harness.tell(leg_connected(), relay_leg_pb2.RelayLegUp(intermediate_id="i1", carrier="quic"))
    harness.tell(relay_leg_pb2.RelayLegDown(intermediate_id="i1", reason="quic_answered", carrier="grpc"))
    emitted = answer_all(harness, FakeInternet(FakeNat(EI, APD), [SERVER]))
    assert not of(emitted, candidate_gatherer_pb2.NatBehaviourLearned)[-1].nat.is_udp_blocked


def test_host_without_descriptors_lacks_an_explanation_and_nothing_else() -> None:
    harness = started(IoWithoutRoom())
    harness.tell(gather(), leg_connected())
    emitted = answer_all(harness, FakeInternet(FakeNat(EI, APD), [SERVER]))
    told = of(emitted, candidate_gatherer_pb2.CandidatesGathered)[-1]
    assert told.is_complete
    assert told.nat.filtering == types_pb2.NAT_DEPENDENCE_UNSPECIFIED
    assert harness.is_alive


def test_loopback_is_a_candidate_where_it_is_wanted() -> None:
    harness = started(concern=LoopbackGatherer)
    harness.tell(gather())
    (told,) = of(harness.take_emitted(), candidate_gatherer_pb2.CandidatesGathered)
    assert [each.address.host for each in told.candidates] == [HOST, "127.0.0.1"]


def test_intermediate_without_leg_is_asked_where_its_name_leads() -> None:
    io = ManualIo()
    io.names["far.example"] = [FAR_SERVER.host]
    harness = started(io, NamedGatherer)
    harness.tell(gather(), leg_connected())
    emitted = answer_all(harness, FakeInternet(FakeNat(AD, APD), [SERVER, FAR_SERVER]))
    nat = of(emitted, candidate_gatherer_pb2.NatBehaviourLearned)[-1].nat
    assert nat.mapping == types_pb2.NAT_DEPENDENCE_ADDRESS_DEPENDENT
    told = of(emitted, candidate_gatherer_pb2.CandidatesGathered)[-1]
    reflexive = [each for each in told.candidates if each.type == types_pb2.Candidate.TYPE_SERVER_REFLEXIVE]
    assert len(reflexive) == 2
    assert told.is_complete


def test_name_that_leads_nowhere_is_looked_up_again_when_a_session_asks_later() -> None:
    io = ManualIo()
    harness = started(io, NamedGatherer)
    harness.tell(leg_connected())
    internet = FakeInternet(FakeNat(AD, APD), [SERVER, FAR_SERVER])
    emitted = answer_all(harness, internet, seconds=REFRESH_S)
    nat = of(emitted, candidate_gatherer_pb2.NatBehaviourLearned)[-1].nat
    assert nat.mapping == types_pb2.NAT_DEPENDENCE_NOT_PORT_DEPENDENT
    io.names["far.example"] = [FAR_SERVER.host]
    io.advance(REFRESH_S)
    harness.tell(gather())
    emitted = answer_all(harness, internet)
    nat = of(emitted, candidate_gatherer_pb2.NatBehaviourLearned)[-1].nat
    assert nat.mapping == types_pb2.NAT_DEPENDENCE_ADDRESS_DEPENDENT


def test_stopping_ends_the_watch_and_closes_probes() -> None:
    harness = started()
    harness.tell(leg_connected())
    answer_all(harness, FakeInternet(FakeNat(EI, APD), [SERVER]), seconds=1.0)
    assert not all(socket.is_closed for socket in harness.io.udp_sockets)
    harness.stop()
    assert harness.io.network_watchers == []
    assert all(socket.is_closed for socket in harness.io.udp_sockets)
