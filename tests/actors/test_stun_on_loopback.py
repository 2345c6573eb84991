"""Checks, pins, and strangers, on real sockets."""

from __future__ import annotations

import functools
import secrets
import socket
from collections.abc import Callable, Iterator

import pytest

from actors.candidate_gatherer import CandidateGatherer
from actors.udp_socket import IntermediateUdpSocket, UdpSocket
from tests.actors.io_worlds import RealWorld, Sockets, has_ipv6_loopback
from tests.actors.real_actor import RealActor
from tools.deployment import free_port
from ztna.address import Family, TransportAddress
from ztna.stun.attributes import Priority, Username
from ztna.stun.message import BINDING, Message, MessageClass, build
from ztna.v1 import candidate_gatherer_pb2, relay_leg_pb2, types_pb2, udp_socket_pb2

SESSION = b"s" * 16
UFRAG, PWD, PEER_PWD = "ufrg", "p" * 22, "q" * 22
WILDCARD = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}

needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6 loopback")
both_families = pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])


@pytest.fixture
def world(host: str) -> Iterator[RealWorld]:
    made = RealWorld(host)
    yield made
    made.close()


@pytest.fixture
def node(world: RealWorld, host: str) -> Iterator[RealActor[UdpSocket]]:
    wildcard = WILDCARD[TransportAddress(host, 0).family]
    actor = RealActor(world, functools.partial(UdpSocket, bind=[TransportAddress(wildcard, 0)]))
    credentials = types_pb2.IceCredentials(ufrag=UFRAG, pwd=PWD)
    actor.tell(udp_socket_pb2.AcceptChecks(session_id=SESSION, credentials=credentials))
    yield actor
    actor.stop()


@pytest.fixture
def sockets(world: RealWorld) -> Iterator[Sockets]:
    made = Sockets(world)
    yield made
    made.close()


@pytest.fixture
def client(host: str) -> Iterator[Callable[..., socket.socket]]:
    opened: list[socket.socket] = []

    def make(local: str = "") -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        opened.append(socket.socket(family, socket.SOCK_DGRAM))
        opened[-1].bind((local or host, 0))
        opened[-1].settimeout(10)
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def port_of(node: RealActor[UdpSocket]) -> int:
    (bound,) = node.wait_for(udp_socket_pb2.SocketsBound)
    return bound.addresses[0].port


def check(pwd: str = PWD, ufrag: str = UFRAG) -> bytes:
    attributes = (Username(f"{ufrag}:peer"), Priority(7))
    message = Message(BINDING, MessageClass.REQUEST, secrets.token_bytes(12), attributes)
    return build(message, key=pwd.encode(), with_fingerprint=True)


def has_heard_nothing(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(2048)
    except BlockingIOError:
        return True
    return False


@both_families
def test_stranger_who_scans_the_port_gets_not_one_byte(
    node: RealActor[UdpSocket], client: Callable[..., socket.socket], host: str
) -> None:
    target = (host, port_of(node))
    peer, stranger = client(), client()
    overheard = check()
    peer.sendto(overheard, target)
    node.wait_for(udp_socket_pb2.CheckReceived)
    plain = Message(BINDING, MessageClass.REQUEST, secrets.token_bytes(12))
    indication = Message(BINDING, MessageClass.INDICATION, secrets.token_bytes(12), (Username("ufrg:x"),))
    answer = Message(BINDING, MessageClass.SUCCESS_RESPONSE, secrets.token_bytes(12))
    scan = {
        "empty": b"",
        "zeros": bytes(1200),
        "noise": b"\x7f" + secrets.token_bytes(600),
        "cut STUN": build(plain)[:12],
        "plain Binding": build(plain),
        "Binding with FINGERPRINT": build(plain, with_fingerprint=True),
        "indication": build(indication, key=PWD.encode()),
        "unasked response": build(answer, key=PWD.encode()),
        "replay": overheard,
        "wrong password": check(PEER_PWD),
        "wrong ufrag": check(ufrag="none"),
        "TURN channel data": b"\x40\x00\x00\x04abcd",
        "DTLS": b"\x16\xfe\xff" + bytes(60),
        "QUIC Initial": b"\xc3\x00\x00\x00\x01\x08" + bytes(8) + b"\x08" + bytes(1180),
        "QUIC of another version": b"\xc3\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(1180),
        "QUIC version negotiation": b"\x80\x00\x00\x00\x00\x08" + bytes(8) + b"\x00" + b"\x00\x00\x00\x01",
        "QUIC short header": b"\x43" + secrets.token_bytes(40),
        "relay frame": b"\x05" + bytes(40),
    }
    for payload in scan.values():
        stranger.sendto(payload, target)
    # Behind the scan in the same queue: when this one is told of, the scan has been dealt with.
    peer.sendto(check(), target)
    checks = node.wait_for(udp_socket_pb2.CheckReceived, 2)
    assert len(checks) == 2
    assert {each.remote.port for each in checks} == {peer.getsockname()[1]}
    assert has_heard_nothing(stranger)
    assert has_heard_nothing(peer), "answers are the checklist's business"
    node.world.wait(
        lambda: (
            sum(sum(each.dropped.values()) for each in node.of(udp_socket_pb2.SocketStatistics)[-1:])
            == len(scan)
        )
    )


@both_families
def test_checks_tell_where_they_arrived_and_requests_leave_from_where_they_are_pinned(
    node: RealActor[UdpSocket], sockets: Sockets, host: str
) -> None:
    ours = "127.0.0.7" if host == "127.0.0.1" else host
    target = TransportAddress(ours, port_of(node))
    peer, answers = sockets.udp(node.world.right, host)
    peer.send([check()], target)
    (heard,) = node.wait_for(udp_socket_pb2.CheckReceived)
    assert TransportAddress(heard.local.host, heard.local.port) == target
    transaction = secrets.token_bytes(12)
    request = build(Message(BINDING, MessageClass.REQUEST, transaction, (Username("a:b"),)))
    node.tell(
        udp_socket_pb2.SendStunRequest(
            asker=udp_socket_pb2.STUN_ASKER_KEEPALIVE,
            session_id=SESSION,
            remote=types_pb2.TransportAddress(host=host, port=peer.local_address.port),
            local_host=ours,
            transaction_id=transaction,
            pwd=PEER_PWD,
            datagram=request,
        )
    )
    node.world.wait(lambda: bool(answers.batches))
    assert (answers.payloads, answers.batches[0].remote) == ([request], target)
    answer = Message(BINDING, MessageClass.SUCCESS_RESPONSE, transaction)
    peer.send([build(answer, key=PEER_PWD.encode())], target)
    (confirmed,) = node.wait_for(udp_socket_pb2.KeepaliveResponseReceived)
    assert confirmed.session_id == SESSION


@both_families
def test_pin_to_an_address_that_is_not_ours_is_reported_and_counted(
    node: RealActor[UdpSocket], host: str
) -> None:
    foreign = "203.0.113.77" if host == "127.0.0.1" else "2001:db8::77"
    node.tell(
        udp_socket_pb2.SendStunRequest(
            asker=udp_socket_pb2.STUN_ASKER_CHECKLIST,
            session_id=SESSION,
            remote=types_pb2.TransportAddress(host=host, port=9),
            local_host=foreign,
            transaction_id=bytes(12),
            pwd=PEER_PWD,
            datagram=check(),
        )
    )
    (failed,) = node.wait_for(udp_socket_pb2.SendFailed)
    assert failed.remote.host == host


@both_families
def test_gatherer_learns_its_candidates_from_an_intermediate(world: RealWorld, host: str) -> None:
    """Node and intermediate on loopback, whose addresses count because there is nothing else."""
    ours = "127.0.0.2" if host == "127.0.0.1" else host
    alternate = free_port(socket.SOCK_DGRAM, host)
    intermediate = RealActor(
        world,
        functools.partial(
            IntermediateUdpSocket,
            bind=[TransportAddress(host, 0)],
            alternate_port=alternate,
            external_address=None,
        ),
    )
    node = RealActor(world, functools.partial(UdpSocket, bind=[TransportAddress(ours, 0)]))
    gatherer = RealActor(world, functools.partial(CandidateGatherer, loopback=True))
    forward(node, gatherer)
    (public,) = intermediate.wait_for(udp_socket_pb2.SocketsBound)
    (bound,) = node.wait_for(udp_socket_pb2.SocketsBound)
    gatherer.tell(
        bound,
        candidate_gatherer_pb2.GatherCandidates(session_id=SESSION),
        relay_leg_pb2.LegConnected(intermediate_id="i1", remote=public.addresses[0]),
    )
    world.wait(
        lambda: any(
            each.nat.filtering == types_pb2.NAT_DEPENDENCE_NOT_PORT_DEPENDENT
            for each in gatherer.of(candidate_gatherer_pb2.NatBehaviourLearned)
        ),
        "the filter to be known",
    )
    told = gatherer.of(candidate_gatherer_pb2.CandidatesGathered)
    assert [each.type for each in told[-1].candidates] == [
        types_pb2.Candidate.TYPE_HOST,
        types_pb2.Candidate.TYPE_RELAY,
    ]
    assert told[-1].candidates[0].address == bound.addresses[0]
    assert told[-1].is_complete
    assert not told[-1].nat.has_nat
    for actor in (gatherer, node, intermediate):
        actor.stop()


def forward(node: RealActor[UdpSocket], gatherer: RealActor[CandidateGatherer]) -> None:
    """Wire the two to each other, as the table of a daemon does."""
    node.on_emit = lambda message: (
        gatherer.tell(message) if isinstance(message, udp_socket_pb2.StunResponseReceived) else None
    )
    gatherer.on_emit = lambda message: (
        node.tell(message) if isinstance(message, udp_socket_pb2.SendStunRequest) else None
    )
