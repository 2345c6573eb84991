"""The main job with real processes: TCP and UDP services through the relay."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.backends import TcpBackend, UdpEcho, connect, content_digest, download, upload
from tests.e2e.conftest import Site, listeners, services
from tools.deployment import Deployment, free_port

MIB = 1 << 20


def echo_udp(client: socket.socket, port: int, payload: bytes) -> bytes:
    client.sendto(payload, ("127.0.0.1", port))
    answer, source = client.recvfrom(65536)
    assert source == ("127.0.0.1", port)
    return answer


def test_download_arrives_unchanged_and_status_shows_the_relay(site: Site) -> None:
    assert download(site.tcp_port, 8 * MIB) == content_digest(8 * MIB)
    status = site.deployment.wait_for(
        "agent-1",
        lambda status: sum(session["bytes_received"] for session in status["sessions"]) > 8 * MIB,
        "the bytes in the figures",
    )
    (session,) = status["sessions"]
    assert session["state"] == "established"
    assert session["path"] == "relay"
    assert session["via"] == "intermediate-1"
    assert session["peer_id"] == "connector-1"


def test_upload_with_half_close_gets_its_answer(site: Site) -> None:
    assert upload(site.tcp_port, 4 * MIB) == (4 * MIB, content_digest(4 * MIB))


def test_reset_by_the_service_reaches_the_client(site: Site) -> None:
    with connect(site.tcp_port) as client:
        client.sendall(b"RESET\n")
        with pytest.raises(ConnectionResetError):
            while client.recv(1024):
                pass


def test_five_hundred_connections_at_once_each_get_their_own_bytes(site: Site) -> None:
    def talk(number: int) -> None:
        with connect(site.tcp_port, 60) as client:
            message = f"{number}:".encode() * 200
            client.sendall(b"ECHO\n" + message)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer == message

    with ThreadPoolExecutor(500) as pool:
        list(pool.map(talk, range(500)))


def test_udp_datagram_of_any_size_is_echoed_once(site: Site) -> None:
    for size in (0, 1, 1170, 1171, 1472, 9000, 65507):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            payload = bytes(number % 251 for number in range(size))
            assert echo_udp(client, site.udp_port, payload) == payload, size
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recvfrom(65536)


def test_udp_clients_get_only_their_own_replies(site: Site) -> None:
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
    try:
        for number, client in enumerate(clients):
            client.settimeout(10)
            client.sendto(f"hello {number}".encode(), ("127.0.0.1", site.udp_port))
        for number, client in enumerate(clients):
            assert client.recvfrom(100)[0] == f"hello {number}".encode()
    finally:
        for client in clients:
            client.close()
    assert len(site.udp.sources) == 20


def test_signaling_over_the_quic_leg_does_the_same_job(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    tcp, udp = backends
    port = free_port()
    quic = {"signaling": {"transport": "quic"}}
    deployment.add_intermediate("intermediate-1")
    deployment.add_connector("connector-1", services(tcp, udp), **quic)
    deployment.add_agent("agent-1", listeners(port, free_port()), **quic)
    deployment.start()
    deployment.wait_ready()
    assert download(port, 2 * MIB) == content_digest(2 * MIB)


def test_eager_agent_has_its_session_before_anyone_asks(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    deployment.add_intermediate("intermediate-1")
    deployment.add_connector("connector-1", services(*backends))
    deployment.add_agent("agent-1", listeners(free_port(), free_port()), connect="eager")
    deployment.start()
    deployment.wait_for(
        "agent-1",
        lambda status: [session["state"] for session in status["sessions"]] == ["established"],
        "a session without traffic",
    )


def test_two_agents_and_two_connectors_mix(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    tcp, udp = backends
    with TcpBackend() as other:
        deployment.add_intermediate("intermediate-1")
        deployment.add_connector("connector-1", services(tcp, udp))
        deployment.add_connector(
            "connector-2", [{"id": "other", "protocol": "tcp", "backend": other.address}]
        )
        ports = {}
        for name in ("agent-1", "agent-2"):
            ports[name] = (free_port(), free_port())
            deployment.add_agent(
                name,
                [
                    {"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{ports[name][0]}"},
                    {"id": "other", "protocol": "tcp", "listen": f"127.0.0.1:{ports[name][1]}"},
                ],
            )
        deployment.start()
        deployment.wait_ready()
        for files_port, other_port in ports.values():
            assert download(files_port, MIB) == content_digest(MIB)
            assert download(other_port, MIB) == content_digest(MIB)
        assert tcp.seen == ["DOWN", "DOWN"]
        assert other.seen == ["DOWN", "DOWN"]
        status = deployment.status("connector-1")
        assert status is not None
        assert sorted(session["peer_id"] for session in status["sessions"]) == ["agent-1", "agent-2"]


def test_forbidden_and_unknown_services_are_reset_and_named_in_status(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    deployment.add_intermediate(
        "intermediate-1",
        policy=[{"agents": ["agent-1"], "services": ["files", "nowhere"]}],
    )
    deployment.add_connector(
        "connector-1",
        [*services(*backends), {"id": "secret", "protocol": "tcp", "backend": backends[0].address}],
    )
    ports = {name: free_port() for name in ("files", "nowhere", "secret")}
    deployment.add_agent(
        "agent-1",
        [{"id": name, "protocol": "tcp", "listen": f"127.0.0.1:{port}"} for name, port in ports.items()],
    )
    deployment.start()
    deployment.wait_ready()
    for name in ("nowhere", "secret"):
        with connect(ports[name], 8) as client, pytest.raises(ConnectionResetError):
            client.sendall(b"DOWN 10\n")
            client.recv(10)
    assert download(ports["files"], 1000) == content_digest(1000)
    status = deployment.status("agent-1")
    assert status is not None
    problems = " ".join(problem["message"] for problem in status["problems"])
    assert "secret" in problems
    assert "nowhere" in problems


def test_dead_backend_resets_the_client_promptly(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    deployment.add_intermediate("intermediate-1")
    deployment.add_connector(
        "connector-1", [{"id": "dead", "protocol": "tcp", "backend": f"127.0.0.1:{free_port()}"}]
    )
    port = free_port()
    deployment.add_agent("agent-1", [{"id": "dead", "protocol": "tcp", "listen": f"127.0.0.1:{port}"}])
    deployment.start()
    deployment.wait_ready()
    with connect(port, 5) as client, pytest.raises(ConnectionResetError):
        client.recv(10)
