"""The main job over IPv6, and between sites of which one has IPv4 only and the other IPv6 only."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.backends import content, content_digest, download
from tests.e2e.conftest import listeners
from tests.e2e.ipv6 import needs_ipv6
from tools.deployment import Deployment, free_port

pytestmark = needs_ipv6

SIZE = 2 << 20


class Server6(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


class Download(socketserver.StreamRequestHandler):
    """`DOWN n`, as the IPv4 service has it."""

    def handle(self) -> None:
        for chunk in content(int(self.rfile.readline(100).split()[1])):
            self.wfile.write(chunk)


class Echo(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.rfile.read())


class UdpServer6(socketserver.UDPServer):
    address_family = socket.AF_INET6


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[str]:
    """Run a server of ::1 (`UDPServer` is a kind of it) in a thread; its address as a connector has it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"[::1]:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def services6() -> Iterator[list[dict[str, Any]]]:
    """The services of a connector, on ::1."""
    with (
        serving(Server6(("::1", 0), Download)) as tcp,
        serving(UdpServer6(("::1", 0), Echo)) as udp,
    ):
        yield [
            {"id": "files", "protocol": "tcp", "backend": tcp},
            {"id": "echo", "protocol": "udp", "backend": udp},
        ]


def local6(kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
    return f"[::1]:{free_port(kind)}"


def node6() -> dict[str, Any]:
    """What makes every socket of a node one of ::1."""
    return {"udp": {"bind": ["[::1]:0"]}, "metrics": {"listen": local6()}}


def download6(port: int) -> str:
    digest = hashlib.sha256()
    with socket.create_connection(("::1", port), 20) as client:
        client.sendall(f"DOWN {SIZE}\n".encode())
        while data := client.recv(1 << 16):
            digest.update(data)
    return digest.hexdigest()


def echo(host: str, port: int, payload: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.connect((host, port))
        client.send(payload)
        return client.recv(2048)


def test_everything_on_ipv6_does_the_main_job(
    deployment: Deployment, services6: list[dict[str, Any]]
) -> None:
    tcp_port, udp_port = free_port(), free_port(socket.SOCK_DGRAM)
    deployment.add_intermediate(
        "intermediate-1",
        quic={"listen": [local6(socket.SOCK_DGRAM)]},
        grpc={"listen": local6()},
        metrics={"listen": local6()},
    )
    deployment.add_connector("connector-1", services6, **node6())
    deployment.add_agent(
        "agent-1",
        [
            {"id": "files", "protocol": "tcp", "listen": f"[::1]:{tcp_port}"},
            {"id": "echo", "protocol": "udp", "listen": f"[::1]:{udp_port}"},
        ],
        **node6(),
    )
    deployment.start()
    deployment.wait_ready()
    assert download6(tcp_port) == content_digest(SIZE)
    assert echo("::1", udp_port, b"hello") == b"hello"
    for name in ("agent-1", "connector-1"):
        status = deployment.status(name)
        assert status is not None
        (intermediate,) = status["intermediates"]
        assert "::1" in str(intermediate["observed_address"])


def test_relay_joins_an_ipv4_only_and_an_ipv6_only_site(
    deployment: Deployment, services6: list[dict[str, Any]]
) -> None:
    port4, port6 = (free_port(socket.SOCK_DGRAM) for _ in range(2))
    tcp_port, udp_port = free_port(), free_port(socket.SOCK_DGRAM)
    intermediate = deployment.add_intermediate(
        "intermediate-1", quic={"listen": [f"127.0.0.1:{port4}", f"[::1]:{port6}"]}
    )
    # gRPC listens on one address, so the site that cannot reach it signals over its leg.
    there6 = {
        "id": intermediate.id,
        "quic": f"[::1]:{port6}",
        "grpc": intermediate.settings["grpc"]["listen"],
    }
    deployment.add_connector(
        "connector-1", services6, **node6(), intermediates=[there6], signaling={"transport": "quic"}
    )
    deployment.add_agent("agent-1", listeners(tcp_port, udp_port))
    deployment.start()
    deployment.wait_ready()
    assert download(tcp_port, SIZE) == content_digest(SIZE)
    assert echo("127.0.0.1", udp_port, b"hello") == b"hello"
    observed = {}
    for name in ("agent-1", "connector-1"):
        status = deployment.status(name)
        assert status is not None
        observed[name] = str(status["intermediates"][0]["observed_address"])
    assert "127.0.0.1" in observed["agent-1"]
    assert "::1" in observed["connector-1"]
