from __future__ import annotations

import errno
from typing import TypeVar

from google.protobuf.message import Message

from actors.base import Context
from actors.io import DatagramBatch, UdpOwner
from actors.io import UdpSocket as Socket
from actors.udp_socket import (
    MAX_FAILURES_REPORTED,
    STATISTICS_INTERVAL_S,
    BoundSockets,
    IntermediateUdpSocket,
    UdpSocket,
)
from tests.manual_io import ActorHarness, ManualIo, actor_harness
from ztna.address import TransportAddress
from ztna.stun.attributes import OtherAddress, ResponseOrigin, Software, Username, XorMappedAddress
from ztna.stun.message import BINDING, MessageClass, build, parse
from ztna.stun.message import Message as StunMessage
from ztna.v1 import types_pb2, udp_socket_pb2

MessageT = TypeVar("MessageT", bound=Message)
V4 = TransportAddress("192.0.2.10", 4433)
V6 = TransportAddress("2001:db8::10", 4433)
REMOTE = TransportAddress("198.51.100.7", 5000)
REMOTE6 = TransportAddress("2001:db8::7", 5000)
LEG_CID = b"L" * 8
SESSION_CID = b"S" * 8
SESSION = b"s" * 16
EXTERNAL = TransportAddress("203.0.113.1", 443)


class NodeSocket(UdpSocket):
    def __init__(self, context: Context) -> None:
        super().__init__(context, [V4, V6])


class PublicSocket(IntermediateUdpSocket):
    def __init__(self, context: Context) -> None:
        super().__init__(context, [V4, V6], alternate_port=3479, external_address=EXTERNAL)


class PlainPublicSocket(IntermediateUdpSocket):
    def __init__(self, context: Context) -> None:
        super().__init__(context, [V4], alternate_port=None, external_address=None)


class IoWithoutIpv6(ManualIo):
    """A host without IPv6; or (`code`) with another trouble."""

    code = errno.EAFNOSUPPORT

    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> Socket:
        if local.host == V6.host:
            raise OSError(self.code, "no")
        return super().open_udp(local, owner, may_fragment=may_fragment)


class IoWithoutSockets(ManualIo):
    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> Socket:
        raise OSError(errno.EADDRNOTAVAIL, "no")


class IoWithPortTaken(ManualIo):
    taken = 4433

    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> Socket:
        if local.port == self.taken:
            raise OSError(errno.EADDRINUSE, "in use")
        return super().open_udp(local, owner, may_fragment=may_fragment)


def short(connection_id: bytes, rest: bytes = b"payload") -> bytes:
    return b"\x40" + connection_id + rest


def initial(connection_id: bytes = b"unknown!") -> bytes:
    return b"\xc0\x00\x00\x00\x01" + bytes([len(connection_id)]) + connection_id + bytes(1180)


def stun_request(transaction: bytes = b"t" * 12) -> bytes:
    return build(StunMessage(BINDING, MessageClass.REQUEST, transaction, (Software("a client"),)))


def deliver(
    harness: ActorHarness[BoundSockets], *payloads: bytes, remote: TransportAddress = REMOTE, socket: int = 0
) -> None:
    batch = DatagramBatch(remote, "192.0.2.10", list(payloads))
    harness.io.udp_sockets[socket].owner.datagrams_received([batch], harness.io.time())
    harness.io.run_until_idle()


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


def statistics(harness: ActorHarness[BoundSockets]) -> udp_socket_pb2.SocketStatistics:
    harness.advance(STATISTICS_INTERVAL_S)
    (found,) = of(harness.take_emitted(), udp_socket_pb2.SocketStatistics)
    return found


def sent(harness: ActorHarness[BoundSockets]) -> list[bytes]:
    return [data for socket in harness.io.udp_sockets for data, _, _ in socket.sent]


def node() -> ActorHarness[BoundSockets]:
    harness: ActorHarness[BoundSockets] = actor_harness(NodeSocket)
    harness.take_emitted()
    return harness


def test_one_socket_per_family_is_bound_and_told() -> None:
    harness = actor_harness(NodeSocket)
    (bound,) = of(harness.take_emitted(), udp_socket_pb2.SocketsBound)
    assert [address.host for address in bound.addresses] == [V4.host, V6.host]
    harness.stop()
    assert all(socket.is_closed for socket in harness.io.udp_sockets)


def test_family_that_the_host_lacks_is_left_out() -> None:
    harness = actor_harness(NodeSocket, io=IoWithoutIpv6())
    (bound,) = of(harness.take_emitted(), udp_socket_pb2.SocketsBound)
    assert [address.host for address in bound.addresses] == [V4.host]
    harness.tell(
        udp_socket_pb2.SendDatagrams(
            remote=types_pb2.TransportAddress(host=REMOTE6.host, port=1), datagrams=[b"x"]
        )
    )
    deliver(harness, short(LEG_CID))  # type: ignore[arg-type]
    assert statistics(harness).dropped["no_socket_of_family"] == 1  # type: ignore[arg-type]


def test_host_without_any_family_fails_to_start() -> None:
    harness = actor_harness(NodeSocket, io=IoWithoutSockets())
    assert isinstance(harness.failure, OSError)


def test_port_in_use_fails_to_start_naming_the_address() -> None:
    harness = actor_harness(NodeSocket, io=IoWithPortTaken())
    assert isinstance(harness.failure, OSError)
    assert str(V4) in str(harness.failure)


def test_packets_go_to_the_owner_of_their_connection_id() -> None:
    harness = node()
    harness.tell(
        udp_socket_pb2.UpdateConnectionIds(intermediate_id="i1", added=[LEG_CID]),
        udp_socket_pb2.UpdateConnectionIds(session_id=SESSION, added=[SESSION_CID]),
    )
    deliver(harness, short(LEG_CID), short(SESSION_CID), short(LEG_CID, b"2"))
    leg, session = of(harness.take_emitted(), udp_socket_pb2.DatagramsReceived)
    assert (leg.intermediate_id, list(leg.datagrams)) == ("i1", [short(LEG_CID), short(LEG_CID, b"2")])
    assert (session.session_id, list(session.datagrams)) == (SESSION, [short(SESSION_CID)])
    assert (leg.remote.host, leg.remote.port, leg.local_host) == (REMOTE.host, REMOTE.port, "192.0.2.10")


def test_retired_and_forgotten_ids_lead_nowhere() -> None:
    harness = node()
    harness.tell(
        udp_socket_pb2.UpdateConnectionIds(intermediate_id="i1", added=[LEG_CID, b"M" * 8]),
        udp_socket_pb2.UpdateConnectionIds(intermediate_id="i1", retired=[LEG_CID]),
        udp_socket_pb2.UpdateConnectionIds(session_id=SESSION, added=[SESSION_CID]),
        udp_socket_pb2.UpdateConnectionIds(session_id=SESSION, forget_owner=True),
    )
    deliver(harness, short(LEG_CID), short(SESSION_CID), short(b"M" * 8))
    (received,) = of(harness.take_emitted(), udp_socket_pb2.DatagramsReceived)
    assert list(received.datagrams) == [short(b"M" * 8)]


def test_id_of_another_owner_is_not_taken_over() -> None:
    harness = node()
    harness.tell(
        udp_socket_pb2.UpdateConnectionIds(intermediate_id="i1", added=[LEG_CID]),
        udp_socket_pb2.UpdateConnectionIds(session_id=SESSION, added=[LEG_CID]),
    )
    deliver(harness, short(LEG_CID))
    messages = harness.take_emitted()
    assert [each.intermediate_id for each in of(messages, udp_socket_pb2.DatagramsReceived)] == ["i1"]
    assert statistics(harness).dropped["connection_id_refused"] == 1


def test_strangers_are_counted_and_get_no_byte_back() -> None:
    harness = node()
    deliver(harness, initial(), short(b"unknown!"), stun_request(), b"", b"\x05relay", b"\x14?", b"\xc0")
    assert sent(harness) == []
    assert of(harness.take_emitted(), udp_socket_pb2.DatagramsReceived) == []
    found = statistics(harness)
    assert found.datagrams_received == 7
    assert dict(found.dropped) == {
        "unknown_connection": 1,
        "unknown_connection_id": 1,
        "stun_without_username": 1,
        "empty": 1,
        "relay_frame": 1,
        "unknown": 1,
        "truncated": 1,
    }


def test_datagrams_leave_through_the_socket_of_their_family() -> None:
    harness = node()
    for remote in (REMOTE, REMOTE6):
        harness.tell(
            udp_socket_pb2.SendDatagrams(
                remote=types_pb2.TransportAddress(host=remote.host, port=remote.port),
                local_host="x",
                datagrams=[b"1", b"22"],
            )
        )
    assert harness.io.udp_sockets[0].sent == [(b"1", REMOTE, "x"), (b"22", REMOTE, "x")]
    assert harness.io.udp_sockets[1].sent == [(b"1", REMOTE6, "x"), (b"22", REMOTE6, "x")]
    found = statistics(harness)
    assert (found.datagrams_sent, found.bytes_sent) == (4, 6)


def test_failed_sends_are_told_once_per_remote_and_interval_and_bounded() -> None:
    harness = node()
    owner = harness.io.udp_sockets[0].owner
    error = OSError(errno.ENETUNREACH, "Network is unreachable")
    for number in range(MAX_FAILURES_REPORTED + 5):
        for _ in range(2):
            owner.send_failed(TransportAddress(f"198.51.100.{number}", 1), error, harness.io.time())
    failures = of(harness.take_emitted(), udp_socket_pb2.SendFailed)
    assert len(failures) == MAX_FAILURES_REPORTED
    assert failures[0].error == "Network is unreachable"
    harness.advance(STATISTICS_INTERVAL_S)
    owner.send_failed(REMOTE, error, harness.io.time())
    assert len(of(harness.take_emitted(), udp_socket_pb2.SendFailed)) == 1


def test_nothing_is_reported_while_nothing_changes() -> None:
    harness = node()
    harness.advance(10.0)
    assert harness.take_emitted() == []


# Intermediate


def test_intermediate_answers_stun_with_the_source_and_its_alternate_port() -> None:
    harness: ActorHarness[BoundSockets] = actor_harness(PublicSocket)
    deliver(harness, stun_request())
    ((answer, remote, local_host),) = harness.io.udp_sockets[0].sent
    assert (remote, local_host) == (REMOTE, "192.0.2.10")
    message = parse(answer)
    attributes = {type(each): each for each in message.attributes}
    assert attributes[XorMappedAddress] == XorMappedAddress(REMOTE)
    assert attributes[OtherAddress] == OtherAddress(TransportAddress(EXTERNAL.host, 3479))
    assert attributes[ResponseOrigin] == ResponseOrigin(EXTERNAL)


def test_alternate_port_answers_stun_alone() -> None:
    harness: ActorHarness[BoundSockets] = actor_harness(PublicSocket)
    alternate = harness.io.udp_sockets[2]
    assert alternate.local_address.port == 3479
    deliver(harness, stun_request(), initial(), socket=2)
    assert len(alternate.sent) == 1
    messages = harness.take_emitted()
    assert of(messages, udp_socket_pb2.UnknownDatagramsReceived) == []
    found = statistics(harness)
    assert found.datagrams_received == 2
    assert found.stun["answered"] == 1
    alternate.owner.send_failed(REMOTE, OSError(errno.EPERM, "no"), 0.0)
    assert len(of(harness.take_emitted(), udp_socket_pb2.SendFailed)) == 1


def test_intermediate_hands_strangers_to_the_relay() -> None:
    harness: ActorHarness[BoundSockets] = actor_harness(PlainPublicSocket)
    harness.tell(udp_socket_pb2.UpdateConnectionIds(connection=7, added=[LEG_CID]))
    deliver(harness, initial(), short(LEG_CID), short(b"unknown!"))
    messages = harness.take_emitted()
    (strangers,) = of(messages, udp_socket_pb2.UnknownDatagramsReceived)
    assert list(strangers.datagrams) == [initial()]
    assert [each.connection for each in of(messages, udp_socket_pb2.DatagramsReceived)] == [7]
    assert sent(harness) == []


def test_intermediate_without_an_alternate_port_names_none() -> None:
    harness: ActorHarness[BoundSockets] = actor_harness(PlainPublicSocket)
    deliver(harness, stun_request())
    ((answer, _, _),) = harness.io.udp_sockets[0].sent
    assert not any(isinstance(each, OtherAddress) for each in parse(answer).attributes)


def test_alternate_port_in_use_fails_to_start_naming_its_setting() -> None:
    io = IoWithPortTaken()
    io.taken = 3479
    harness = actor_harness(PublicSocket, io=io)
    assert "stun.alternate_port" in str(harness.failure)
    assert all(socket.is_closed for socket in io.udp_sockets)


# STUN at the nodes: `ztna.stun.routing` has the tests of who is told; here is that they are.

UFRAG, PWD, PEER_PWD = "ufrg", "p" * 22, "q" * 22
TRANSACTION = b"t" * 12


def check(pwd: str = PWD, transaction: bytes = TRANSACTION, ufrag: str = UFRAG) -> bytes:
    username = Username(f"{ufrag}:peer")
    message = StunMessage(BINDING, MessageClass.REQUEST, transaction, (username,))
    return build(message, key=pwd.encode(), with_fingerprint=True)


def stun_response(pwd: str = PEER_PWD) -> bytes:
    message = StunMessage(BINDING, MessageClass.SUCCESS_RESPONSE, TRANSACTION)
    return build(message, key=pwd.encode() if pwd else None)


def accept_checks() -> udp_socket_pb2.AcceptChecks:
    credentials = types_pb2.IceCredentials(ufrag=UFRAG, pwd=PWD)
    return udp_socket_pb2.AcceptChecks(session_id=SESSION, credentials=credentials)


def send_request(asker: udp_socket_pb2.StunAsker.ValueType, pwd: str = PEER_PWD) -> Message:
    return udp_socket_pb2.SendStunRequest(
        asker=asker,
        session_id=SESSION,
        remote=types_pb2.TransportAddress(host=REMOTE.host, port=REMOTE.port),
        local_host="192.0.2.10",
        transaction_id=TRANSACTION,
        pwd=pwd,
        datagram=stun_request(TRANSACTION),
    )


def test_check_of_the_peer_is_told_to_its_session_with_both_addresses() -> None:
    harness = node()
    harness.tell(accept_checks())
    deliver(harness, check())
    (told,) = harness.take_emitted()
    assert told == udp_socket_pb2.CheckReceived(
        session_id=SESSION,
        remote=types_pb2.TransportAddress(host=REMOTE.host, port=REMOTE.port),
        local=types_pb2.TransportAddress(host="192.0.2.10", port=V4.port),
        ufrag=UFRAG,
        datagram=check(),
    )
    assert sent(harness) == []


def test_check_for_nobody_is_counted_by_reason_and_not_answered() -> None:
    harness = node()
    harness.tell(accept_checks())
    deliver(harness, check("w" * 22), check(ufrag="none"), stun_request(), b"\x00\x01")
    deliver(harness, check())
    deliver(harness, check(), remote=TransportAddress("203.0.113.66", 1))
    assert len(of(harness.take_emitted(), udp_socket_pb2.CheckReceived)) == 1
    assert sent(harness) == []
    assert dict(statistics(harness).dropped) == {
        "stun_malformed": 1,
        "stun_replayed": 1,
        "stun_unknown_ufrag": 1,
        "stun_without_username": 1,
        "stun_wrong_integrity": 1,
    }


def test_refused_credentials_live_five_seconds() -> None:
    harness = node()
    harness.tell(accept_checks(), udp_socket_pb2.RefuseChecks(session_id=SESSION))
    harness.advance(4.9)
    deliver(harness, check(transaction=b"1" * 12))
    harness.advance(0.1)
    deliver(harness, check(transaction=b"2" * 12))
    assert len(of(harness.take_emitted(), udp_socket_pb2.CheckReceived)) == 1


def test_credentials_that_are_none_are_refused_and_logged() -> None:
    harness = node()
    harness.tell(udp_socket_pb2.AcceptChecks(session_id=SESSION))
    assert [line["event"] for line in harness.logs if line["log_level"] == "warning"] == [
        "udp_socket.credentials_refused"
    ]


def test_request_leaves_from_its_local_address_by_the_socket_of_its_family() -> None:
    harness = node()
    harness.tell(send_request(udp_socket_pb2.STUN_ASKER_CHECKLIST))
    assert harness.io.udp_sockets[0].sent == [(stun_request(TRANSACTION), REMOTE, "192.0.2.10")]
    assert harness.io.udp_sockets[1].sent == []


def test_response_is_told_to_the_checklist_without_ufrag() -> None:
    harness = node()
    harness.tell(send_request(udp_socket_pb2.STUN_ASKER_CHECKLIST))
    deliver(harness, stun_response(PWD), stun_response())
    (told,) = of(harness.take_emitted(), udp_socket_pb2.CheckReceived)
    assert (told.session_id, told.ufrag, told.datagram) == (SESSION, "", stun_response())


def test_response_is_told_to_keepalive() -> None:
    harness = node()
    harness.tell(send_request(udp_socket_pb2.STUN_ASKER_KEEPALIVE))
    deliver(harness, stun_response())
    (told,) = harness.take_emitted()
    assert isinstance(told, udp_socket_pb2.KeepaliveResponseReceived)
    assert (told.session_id, told.remote.host, told.datagram) == (SESSION, REMOTE.host, stun_response())


def test_response_is_told_to_the_candidate_gatherer() -> None:
    harness = node()
    harness.tell(send_request(udp_socket_pb2.STUN_ASKER_CANDIDATE_GATHERER, pwd=""))
    deliver(harness, stun_response(""))
    (told,) = harness.take_emitted()
    assert isinstance(told, udp_socket_pb2.StunResponseReceived)
    assert (told.remote.port, told.local.host, told.local.port) == (REMOTE.port, "192.0.2.10", V4.port)


def test_request_that_nobody_asks_or_no_socket_can_send_is_counted() -> None:
    harness = actor_harness(NodeSocket, io=IoWithoutIpv6())
    other_family = send_request(udp_socket_pb2.STUN_ASKER_CHECKLIST)
    assert isinstance(other_family, udp_socket_pb2.SendStunRequest)
    other_family.remote.host = REMOTE6.host
    bad_id = send_request(udp_socket_pb2.STUN_ASKER_CHECKLIST)
    assert isinstance(bad_id, udp_socket_pb2.SendStunRequest)
    bad_id.transaction_id = b"short"
    harness.tell(send_request(udp_socket_pb2.STUN_ASKER_UNSPECIFIED), other_family, bad_id)
    deliver(harness, short(LEG_CID))  # type: ignore[arg-type]
    dropped = statistics(harness).dropped  # type: ignore[arg-type]
    assert (dropped["no_asker"], dropped["no_socket_of_family"], dropped["stun_transaction_refused"]) == (
        1,
        1,
        1,
    )
    assert sent(harness) == []  # type: ignore[arg-type]


def test_pinned_request_that_the_kernel_refuses_is_counted_apart_and_reported() -> None:
    harness = node()
    harness.io.udp_sockets[0].refuses = errno.ENETUNREACH
    harness.tell(send_request(udp_socket_pb2.STUN_ASKER_CHECKLIST))
    (failed,) = of(harness.take_emitted(), udp_socket_pb2.SendFailed)
    assert failed.remote.host == REMOTE.host
    deliver(harness, short(LEG_CID))
    assert statistics(harness).dropped["pinned_send_refused"] == 1
