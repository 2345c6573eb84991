"""What a deployment shows to the network: only the addresses it was told, and to strangers not one byte."""

from __future__ import annotations

import secrets
import socket
import struct
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Site
from tools.deployment import Daemon, Deployment
from ztna.address import TransportAddress
from ztna.stun.attributes import Priority, Username, XorMappedAddress
from ztna.stun.message import BINDING, Message, MessageClass, build

LISTENING = "0A"
UNCONNECTED_PORT = 0


def sockets(daemon: Daemon) -> set[tuple[str, str]]:
    """`(protocol, address)` of each internet socket on which the process takes what comes unasked."""
    assert daemon.process is not None
    process = Path("/proc", str(daemon.process.pid))
    owned = set()
    for descriptor in (process / "fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            owned.add(target.removeprefix("socket:[").removesuffix("]"))
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in (process / "net" / protocol).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[9] not in owned:
                continue
            host, port = local_address(fields[1])
            assert ip_address(host).is_loopback, f"{daemon.id} has {protocol} {host}:{port}"
            remote_port = int(fields[2].rpartition(":")[2], 16)
            if fields[3] == LISTENING or (protocol.startswith("udp") and remote_port == UNCONNECTED_PORT):
                found.add((protocol.removesuffix("6"), str(TransportAddress(host, port))))
    return found


def local_address(text: str) -> tuple[str, int]:
    """Host and port as /proc/net writes them: words of the host's byte order; mapped IPv4 is IPv4."""
    address, _, port = text.partition(":")
    words = bytes.fromhex(address)
    packed = struct.pack(f">{len(words) // 4}I", *struct.unpack(f"={len(words) // 4}I", words))
    host = ip_address(packed)
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    return str(host), int(port, 16)


def udp_address(status: dict[str, Any]) -> str:
    (address,) = status["udp_addresses"]
    return address if isinstance(address, str) else f"{address['host']}:{address['port']}"


def test_daemons_bind_what_they_are_told_and_nothing_else(site: Site) -> None:
    deployment = site.deployment
    expected: dict[str, set[tuple[str, str]]] = {}
    for daemon in deployment.daemons.values():
        status = deployment.status(daemon.id)
        assert status is not None
        expected[daemon.id] = {("tcp", daemon.settings["metrics"]["listen"])}
        if daemon.kind != "intermediate":
            expected[daemon.id].add(("udp", udp_address(status)))
    intermediate = deployment.daemons["intermediate-1"].settings
    expected["intermediate-1"] |= {
        ("udp", intermediate["quic"]["listen"][0]),
        ("udp", f"127.0.0.1:{intermediate['stun']['alternate_port']}"),
        ("tcp", intermediate["grpc"]["listen"]),
    }
    expected["agent-1"] |= {("tcp", f"127.0.0.1:{site.tcp_port}"), ("udp", f"127.0.0.1:{site.udp_port}")}
    assert {daemon.id: sockets(daemon) for daemon in deployment.daemons.values()} == expected


def long_header(version: int, destination_cid: bytes, first_byte: int = 0xC3) -> bytes:
    """A QUIC packet with a long header (RFC 9000 §17.2), as large as an Initial has to be."""
    header = struct.pack(">BIB", first_byte, version, len(destination_cid)) + destination_cid
    header += bytes([8]) + secrets.token_bytes(8) + b"\x00" + struct.pack(">H", 0x4000 | 1100)
    return header.ljust(1200, b"\x5a")


def baits() -> list[bytes]:
    """What makes others answer: STUN, Initials, unknown versions, unknown connections, noise."""
    transaction = secrets.token_bytes(12)
    plain = Message(BINDING, MessageClass.REQUEST, transaction)
    check = Message(BINDING, MessageClass.REQUEST, transaction, (Username("a:b"), Priority(1)))
    forged = XorMappedAddress(TransportAddress("127.0.0.1", 1))
    return [
        b"",
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        secrets.token_bytes(64),
        *(bytes([first]) + secrets.token_bytes(1199) for first in range(0, 256, 5)),
        build(plain),
        build(plain, with_fingerprint=True),
        build(check, key=b"password", with_fingerprint=True),
        build(Message(BINDING, MessageClass.SUCCESS_RESPONSE, transaction, (forged,))),
        long_header(1, secrets.token_bytes(8)),
        long_header(1, secrets.token_bytes(20)),
        long_header(0x6B3343CF, secrets.token_bytes(8)),  # version 2 (RFC 9369)
        long_header(0x1A2A3A4A, secrets.token_bytes(8)),  # reserved to make a server negotiate
        long_header(0, secrets.token_bytes(8)),  # a Version Negotiation packet
        long_header(1, secrets.token_bytes(8), first_byte=0xF3),  # a Retry
        b"\x43" + secrets.token_bytes(1199),  # a short header: bait for a stateless reset
    ]


def dropped_in_sockets(status: dict[str, Any]) -> int:
    """How many datagrams of the UDP sockets nobody got."""
    return sum(
        count
        for name, count in status["counters"].items()
        if name.startswith("dropped_total{") and 'place="udp_socket"' in name
    )


def test_stranger_gets_no_byte_out_of_agent_and_connector(site: Site) -> None:
    for name in ("agent-1", "connector-1"):
        bait(site.deployment, name)


def bait(deployment: Deployment, name: str) -> None:
    before = deployment.status(name)
    assert before is not None
    host, _, port = udp_address(before).rpartition(":")
    packets = baits()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.setblocking(False)
        for packet in packets:
            stranger.sendto(packet, (host, int(port)))
        deployment.wait_for(
            name,
            lambda status: dropped_in_sockets(status) >= dropped_in_sockets(before) + len(packets),
            "every packet looked at, and dropped",
        )
        with pytest.raises(BlockingIOError):
            stranger.recv(2048)
    deployment.wait_ready(name)
