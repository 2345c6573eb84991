"""Whoever scans the UDP port of a connector learns nothing, with a live direct session and without one."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from tests.netns.nodes import AGENT, CONNECTOR, UDP_PORT, Nodes, running
from tests.netns.transfers import LIMIT_S
from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Lab
from tools.natlab.plan import Direction, Link, Plan, Site
from ztna.stun.attributes import (
    Attribute,
    ChangeRequest,
    Fingerprint,
    MessageIntegrity,
    MessageIntegritySha256,
)
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

LINK = Link.both(Direction(delay_ms=5))
PLAN = Plan(
    (
        Site("a", Access(Kind.EIM_APDF), LINK),
        Site("b", Access(Kind.OPEN), LINK),
        Site("stranger", Access(Kind.OPEN), LINK),
    )
)
ETH_P_ALL = 3
ETHERNET_BYTES, IPV4_BYTES, UDP_BYTES = 14, 20, 8
UNKNOWN_VERSION = 0x1A2A3A4A
MAX_STUN_FIRST_BYTE = 3
# Few enough for the buffer of any socket.
BURST = 100
SEALS = (MessageIntegrity, MessageIntegritySha256, Fingerprint)


class Wire:
    """Every IPv4 packet on the interface of a host, in both directions."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._socket = lab.socket(host, socket.SOCK_RAW, socket.AF_PACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind(("eth0", ETH_P_ALL))
        self._socket.setblocking(False)

    def packets(self) -> Iterator[tuple[str, str, bytes]]:
        """Source, destination and what follows the IPv4 header of each packet since the last look."""
        while True:
            try:
                frame = self._socket.recv(65536)
            except BlockingIOError:
                return
            if frame[12:14] == b"\x08\x00":
                ip = frame[ETHERNET_BYTES:]
                yield socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20]), ip[IPV4_BYTES:]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def wire(lab: Lab, host: str) -> Iterator[Wire]:
    made = Wire(lab, host)
    try:
        yield made
    finally:
        made.close()


def captured(nodes: Nodes, at: Wire) -> tuple[list[bytes], list[bytes]]:
    """What the agent sent to the connector directly during a search: checks, and packets of the session."""
    list(at.packets())
    nodes.restart_ice()
    agent = nodes.lab.external_address("a")
    found: dict[bool, list[bytes]] = {True: [], False: []}

    def has_both(_: object) -> bool:
        for source, _destination, udp in at.packets():
            if source == agent:
                payload = udp[UDP_BYTES:]
                found[payload[0] <= MAX_STUN_FIRST_BYTE].append(payload)
        requests = [each for each in found[True] if each[:2] == b"\x00\x01"]
        return len(requests) >= 3 and bool(found[False])

    nodes.wait_until(has_both, "checks and packets are captured", AGENT)
    nodes.wait_direct()
    return found[True], found[False]


def scan(checks: list[bytes], packets: list[bytes]) -> Iterator[bytes]:
    """What a stranger may send, knowing the protocol, and knowing what he saw on the way."""
    chance = random.Random(1)
    yield b""
    for first_byte in range(256):
        yield bytes([first_byte])
        yield bytes([first_byte]) + chance.randbytes(chance.choice([7, 19, 100, 1199]))
    # Plain STUN, as servers get it.
    plain: list[tuple[Attribute, ...]] = [(), (ChangeRequest(change_ip=True, change_port=True),)]
    for asked in plain:
        for kind in MessageClass:
            message = Message(BINDING, kind, chance.randbytes(12), asked)
            yield build(message)
            yield build(message, with_fingerprint=True)
    yield struct.pack("!HH", 1, 0) + chance.randbytes(16)  # RFC 3489: no cookie
    # What he saw, as it is and with a password of his own.
    yield from checks
    yield from packets
    for data in checks:
        seen = parse(data)
        if seen.message_class is MessageClass.REQUEST:
            attributes = tuple(each for each in seen.attributes if not isinstance(each, SEALS))
            forged = Message(BINDING, MessageClass.REQUEST, chance.randbytes(12), attributes)
            yield build(forged, key=b"a password that nobody has", with_fingerprint=True)
            yield build(forged, with_fingerprint=True)
            yield data[:40] + bytes([data[40] ^ 1]) + data[41:]
    # QUIC: a first packet, also of a version that nobody speaks, for which servers offer theirs.
    for number in range(4):
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["ztna/1"], server_name="connector-1"
        )
        connection = QuicConnection(configuration=configuration)
        connection.connect(("192.0.2.1", 1), now=float(number))
        for data, _ in connection.datagrams_to_send(now=float(number)):
            yield data
            yield data[:1] + UNKNOWN_VERSION.to_bytes(4, "big") + data[5:]
            yield data[:1] + bytes(4) + data[5:]


def echoes(nodes: Nodes) -> None:
    """One packet through the session and back: all that came to the socket before has been handled."""
    with nodes.lab.socket("a") as client:
        client.settimeout(LIMIT_S)
        client.sendto(b"\0\0\0\1", ("127.0.0.1", UDP_PORT))
        assert client.recv(100) == b"\0\0\0\1"


def scan_in_bursts(
    datagrams: Iterator[bytes],
    stranger: socket.socket,
    target: tuple[str, int],
    are_handled: Callable[[int], object],
) -> int:
    """Send all of it, a hundred at a time; returns how much that was."""
    sent = 0
    while burst := list(itertools.islice(datagrams, BURST)):
        for datagram in burst:
            stranger.sendto(datagram, target)
        sent += len(burst)
        are_handled(len(burst))
    return sent


def is_met_with_silence(at_connector: Wire, stranger: socket.socket, address: str, sent: int) -> None:
    """All that was sent from this address came to the connector, and nothing went back."""
    seen = list(at_connector.packets())
    assert sum(source == address for source, _, _ in seen) == sent > 500, "all of it arrived"
    assert [packet for packet in seen if packet[1] == address] == [], "nothing was answered"
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(100)


def dropped(nodes: Nodes) -> int:
    """Datagrams that the socket of the connector got and nobody wanted."""
    status = nodes.deployment.status(CONNECTOR)
    assert status is not None
    return sum(
        count
        for name, count in status["counters"].items()
        if name.startswith("dropped_total{") and 'place="udp_socket"' in name
    )


def test_scan_of_a_connector_gets_no_byte_during_its_direct_session_nor_behind_its_end(
    short_directory: Path,
) -> None:
    with (
        running(PLAN, short_directory, agent={"connect": "eager"}) as nodes,
        wire(nodes.lab, "b") as at_connector,
        nodes.lab.socket("stranger") as stranger,
    ):
        nodes.wait_direct()
        checks, packets = captured(nodes, at_connector)
        before = nodes.wait_direct()
        pair = before[0].direct_path.selected_pair
        target = (pair.remote.address.host, pair.remote.address.port)
        assert target[0] == nodes.lab.address("b")
        address = nodes.lab.address("stranger")
        sent = scan_in_bursts(scan(checks, packets), stranger, target, lambda _: echoes(nodes))
        is_met_with_silence(at_connector, stranger, address, sent)
        for session, former in zip(nodes.wait_direct(), before, strict=True):
            assert session.session_id == former.session_id
            assert session.direct_path.generation == former.direct_path.generation
            assert session.direct_path.fail_overs == former.direct_path.fail_overs

        nodes.deployment.kill(AGENT, signal.SIGTERM)
        nodes.wait_until(lambda session: not session.session_id, "without a session", CONNECTOR)
        list(at_connector.packets())
        handled = dropped(nodes)

        def are_dropped(count: int) -> None:
            nonlocal handled
            handled += count
            nodes.deployment.wait_for(CONNECTOR, lambda _: dropped(nodes) >= handled, "the burst is dropped")

        # With nothing to protect, and with what was valid a moment ago.
        sent = scan_in_bursts(scan(checks, packets), stranger, target, are_dropped)
        # Figures come late, and count some of the first scan: packets of a new session stand behind all.
        nodes.deployment.start(AGENT)
        nodes.wait_direct()
        is_met_with_silence(at_connector, stranger, address, sent)
