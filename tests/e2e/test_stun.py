"""The public side of a running intermediate: STUN Binding on both ports, and silence for everything else."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.ipv6 import needs_ipv6
from tools.deployment import Deployment, free_port
from ztna.address import TransportAddress
from ztna.stun.attributes import (
    Attribute,
    ChangeRequest,
    OtherAddress,
    Priority,
    ResponseOrigin,
    Software,
    Username,
    XorMappedAddress,
)
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

# Long enough for an answer with every address of IPv6.
ROOMY = Software("a client with much to say for itself")

HOSTS = ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)]


class Client:
    """A plain UDP socket that speaks STUN."""

    def __init__(self, host: str) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.settimeout(5)
        self.address = TransportAddress(host, self.socket.getsockname()[1])

    def send(self, data: bytes, server: TransportAddress) -> None:
        self.socket.sendto(data, (server.host, server.port))

    def receive(self) -> tuple[Message, TransportAddress]:
        data, source = self.socket.recvfrom(2048)
        return parse(data), TransportAddress(source[0], source[1])

    def ask(self, server: TransportAddress, *attributes: Attribute) -> tuple[Message, TransportAddress]:
        question = request(ROOMY, *attributes)
        self.send(build(question), server)
        answer, source = self.receive()
        assert answer.transaction_id == question.transaction_id
        return answer, source

    def assert_nothing_else(self) -> None:
        self.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.socket.recvfrom(2048)


def request(*attributes: Attribute) -> Message:
    return Message(BINDING, MessageClass.REQUEST, secrets.token_bytes(12), attributes)


@pytest.fixture
def ports(deployment: Deployment, host: str) -> tuple[TransportAddress, TransportAddress]:
    """The QUIC address of a running intermediate, and its alternate one."""
    quic, alternate = (TransportAddress(host, free_port(socket.SOCK_DGRAM)) for _ in range(2))
    daemon = deployment.add_intermediate(
        "intermediate-1", quic={"listen": [str(quic)]}, stun={"alternate_port": alternate.port}
    )
    deployment.start()
    deployment.wait_ready(daemon.id)
    return quic, alternate


@pytest.fixture
def client(host: str) -> Iterator[Client]:
    client = Client(host)
    yield client
    client.socket.close()


@pytest.mark.parametrize("host", HOSTS)
def test_binding_is_answered_on_both_ports_and_anything_else_is_not(
    deployment: Deployment, client: Client, ports: tuple[TransportAddress, TransportAddress]
) -> None:
    quic, alternate = ports

    answer, source = client.ask(quic)
    assert answer.message_class is MessageClass.SUCCESS_RESPONSE
    assert source == quic
    assert answer.find(XorMappedAddress) == XorMappedAddress(client.address)
    assert answer.find(OtherAddress) == OtherAddress(alternate)
    assert answer.find(ResponseOrigin) == ResponseOrigin(quic)

    answer, source = client.ask(alternate)
    assert answer.message_class is MessageClass.SUCCESS_RESPONSE
    assert source == alternate
    assert answer.find(XorMappedAddress) == XorMappedAddress(client.address)
    assert answer.find(ResponseOrigin) == ResponseOrigin(alternate)

    answer, source = client.ask(quic, ChangeRequest(change_port=True))
    assert source == alternate
    assert answer.find(ResponseOrigin) == ResponseOrigin(alternate)

    whole = build(request(ROOMY))
    for server in ports:
        client.send(b"", server)
        client.send(b"\x00", server)
        client.send(secrets.token_bytes(100), server)
        client.send(bytes([1]) + secrets.token_bytes(99), server)
        client.send(whole[:-1], server)
        # Without the cookie it is a message of RFC 3489, whose requests are answered; this is a response.
        client.send(b"\x01" + whole[1:4] + b"\x00\x00\x00\x00" + whole[8:], server)
        client.send(build(Message(BINDING, MessageClass.INDICATION, secrets.token_bytes(12))), server)
        client.send(build(request(Username("a:b"), Priority(1)), key=b"password"), server)
        client.send(build(request(), key=b"password"), server)
    # A socket is read in order: these two answers prove that everything before was looked at.
    for server in ports:
        client.ask(server)
    client.assert_nothing_else()
    deployment.check_running("intermediate-1", "the end of the test")
