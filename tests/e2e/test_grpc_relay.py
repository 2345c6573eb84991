"""Real processes whose UDP to the intermediate leads nowhere: the relay is reached over gRPC."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from tests.e2e.backends import TcpBackend, UdpEcho, connect, content_digest, download, upload
from tests.e2e.conftest import listeners, services
from tests.e2e.test_identity_faults import wait_for_event
from tests.e2e.udp_gate import UdpGate
from tools.deployment import Deployment, free_port

MIB = 1 << 20

# Nodes on one machine would find each other without the relay.
RELAYED: dict[str, Any] = {"path": {"policy": "relay_only"}}


def wait_for_carrier(deployment: Deployment, name: str, carrier: str) -> dict[str, Any]:
    return deployment.wait_for(
        name,
        lambda status: [each["leg_carrier"] for each in status["intermediates"]] == [carrier],
        f"a leg over {carrier}",
        timeout_s=120,
    )


def behind(gate: UdpGate, deployment: Deployment) -> dict[str, Any]:
    """Settings of a node that reaches the intermediate's UDP port through `gate` alone."""
    grpc = deployment.daemons["intermediate-1"].settings["grpc"]["listen"]
    return {"intermediates": [{"id": "intermediate-1", "quic": f"127.0.0.1:{gate.port}", "grpc": grpc}]}


@pytest.fixture
def gate(deployment: Deployment) -> Iterator[UdpGate]:
    """A gate before the intermediate of the deployment, shut."""
    daemon = deployment.add_intermediate("intermediate-1")
    listen: str = daemon.settings["quic"]["listen"][0]
    with UdpGate(int(listen.rpartition(":")[2])) as gate:
        yield gate


def read(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = client.recv(size - len(data))
        assert chunk, f"ended after {len(data)} bytes"
        data += chunk
    return bytes(data)


def echo(port: int, payload: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(payload, ("127.0.0.1", port))
        return client.recv(65_536)


def test_without_udp_everything_goes_over_grpc(
    deployment: Deployment, gate: UdpGate, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    tcp_port, udp_port = free_port(), free_port()
    deployment.add_connector("connector-1", services(*backends), **behind(gate, deployment), **RELAYED)
    deployment.add_agent("agent-1", listeners(tcp_port, udp_port), **behind(gate, deployment), **RELAYED)
    deployment.start()
    deployment.wait_ready()
    assert download(tcp_port, 4 * MIB) == content_digest(4 * MIB)
    assert upload(tcp_port, 2 * MIB) == (2 * MIB, content_digest(2 * MIB))
    for size in (1, 1170, 9000):
        payload = bytes(number % 251 for number in range(size))
        assert echo(udp_port, payload) == payload
    assert gate.dropped
    for name in ("agent-1", "connector-1"):
        wait_for_carrier(deployment, name, "grpc")
    status = deployment.wait_for(
        "intermediate-1",
        lambda status: sum(session["bytes_sent"] for session in status["sessions"]) > 6 * MIB,
        "the bytes in the figures",
    )
    assert [node["leg_carrier"] for node in status["nodes"]] == ["grpc", "grpc"]
    assert status["counters"]["relay_bytes_total"] > 6 * MIB


def test_node_whose_leg_is_up_over_grpc_alone_says_that_udp_is_blocked(
    deployment: Deployment, gate: UdpGate, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    port = free_port()
    deployment.add_connector("connector-1", services(*backends))
    agent = deployment.add_agent("agent-1", listeners(port, free_port()), **behind(gate, deployment))
    deployment.start()
    deployment.wait_ready()
    assert download(port, MIB) == content_digest(MIB)
    deployment.wait_for("agent-1", lambda status: status["nat"]["is_udp_blocked"], "what is known of UDP")
    for daemon in (agent, deployment.daemons["connector-1"]):
        wait_for_event(daemon, "hole_punch.state_changed", state="fallback_relay", reason="udp_blocked")


@pytest.mark.parametrize("blocked", ["agent-1", "connector-1"])
def test_one_end_over_grpc_and_the_other_over_quic(
    deployment: Deployment, gate: UdpGate, backends: tuple[TcpBackend, UdpEcho], blocked: str
) -> None:
    tcp_port, udp_port = free_port(), free_port()
    limits = {
        name: behind(gate, deployment) if name == blocked else {} for name in ("agent-1", "connector-1")
    }
    deployment.add_connector("connector-1", services(*backends), **limits["connector-1"], **RELAYED)
    deployment.add_agent("agent-1", listeners(tcp_port, udp_port), **limits["agent-1"], **RELAYED)
    deployment.start()
    deployment.wait_ready()
    assert download(tcp_port, 4 * MIB) == content_digest(4 * MIB)
    assert echo(udp_port, b"hello") == b"hello"
    for name in limits:
        wait_for_carrier(deployment, name, "grpc" if name == blocked else "quic")


def test_download_goes_on_when_udp_goes_and_comes_back(
    deployment: Deployment, gate: UdpGate, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    tcp_port = free_port()
    deployment.add_connector("connector-1", services(*backends), **RELAYED)
    deployment.add_agent("agent-1", listeners(tcp_port, free_port()), **behind(gate, deployment), **RELAYED)
    gate.open()
    deployment.start()
    deployment.wait_ready()
    wait_for_carrier(deployment, "agent-1", "quic")
    size = 20 * MIB
    with connect(tcp_port, 120) as client:
        client.sendall(f"DOWN {size}\n".encode())
        digest = sha256(read(client, 4 * MIB))
        session = deployment.wait_for("agent-1", lambda status: bool(status["sessions"]), "the session")
        gate.shut()
        digest.update(read(client, MIB))
        wait_for_carrier(deployment, "agent-1", "grpc")
        digest.update(read(client, 4 * MIB))
        gate.open()
        wait_for_carrier(deployment, "agent-1", "quic")
        digest.update(read(client, size - 9 * MIB))
    assert digest.hexdigest() == content_digest(size)
    status = deployment.wait_for("agent-1", lambda status: bool(status["sessions"]), "the session")
    assert [each["session_id"] for each in status["sessions"]] == [session["sessions"][0]["session_id"]]
