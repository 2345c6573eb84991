"""Daemons that start in any order, are killed, come back, and are told to stop."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from tests.e2e.backends import TcpBackend, UdpEcho, connect, content_digest, download
from tests.e2e.conftest import Site, listeners, services
from tools.deployment import Deployment, free_port

MIB = 1 << 20


def wait_until_reset(client: socket.socket, limit_s: float) -> float:
    """Seconds until the connection is reset; fails when it is not."""
    client.settimeout(limit_s)
    started = time.monotonic()
    with pytest.raises(ConnectionResetError):
        while client.recv(65536):
            pass
    return time.monotonic() - started


@pytest.mark.parametrize(
    "order",
    [("agent-1", "connector-1", "intermediate-1"), ("connector-1", "intermediate-1", "agent-1")],
    ids=["intermediate last", "agent last"],
)
def test_daemons_start_in_any_order(configured_site: Site, order: tuple[str, ...]) -> None:
    deployment = configured_site.deployment
    for name in order:
        deployment.start(name)
        deployment.wait_for(name, lambda status: status["uptime_s"] >= 0, "the control socket")
    deployment.wait_ready()
    assert download(configured_site.tcp_port, MIB) == content_digest(MIB)


@pytest.mark.timeout(240)
def test_download_survives_the_kill_of_the_intermediate(site: Site) -> None:
    size = 200 * MIB
    is_under_way, result = threading.Event(), []

    def run() -> None:
        result.append(
            download(
                site.tcp_port,
                size,
                120,
                lambda received: is_under_way.set() if received > 20 * MIB else None,
            )
        )

    thread = threading.Thread(target=run)
    thread.start()
    assert is_under_way.wait(60)
    site.deployment.kill("intermediate-1")
    # The outage lasts as long as a service manager may take, and the session knows nothing of it.
    assert not threading.Event().wait(5)
    site.deployment.start("intermediate-1")
    thread.join(180)
    assert result == [content_digest(size)]


def test_kill_of_the_connector_resets_clients_and_its_return_serves_again(site: Site) -> None:
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        site.deployment.kill("connector-1")
        assert wait_until_reset(client, 10) <= 5
    site.deployment.start("connector-1")
    site.deployment.wait_ready("connector-1")
    started = time.monotonic()
    assert download(site.tcp_port, 1000) == content_digest(1000)
    assert time.monotonic() - started <= 2


def test_kill_of_a_connector_leaves_another_one_to_serve(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    port = free_port()
    deployment.add_intermediate("intermediate-1")
    for name in ("connector-1", "connector-2"):
        deployment.add_connector(name, services(*backends))
    deployment.add_agent("agent-1", listeners(port, free_port()))
    deployment.start()
    deployment.wait_ready()
    with connect(port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        status = deployment.status("agent-1")
        assert status is not None
        deployment.kill(status["sessions"][0]["peer_id"])
        assert wait_until_reset(client, 10) <= 5
    assert download(port, 1000, 10) == content_digest(1000)


def test_kill_of_the_agent_frees_everything_at_the_connector(site: Site) -> None:
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        site.deployment.kill("agent-1")
    site.deployment.wait_for(
        "connector-1",
        lambda status: not status["sessions"] and not any(s["active"] for s in status["services"]),
        "everything freed",
        30,
    )
    deadline = time.monotonic() + 5
    while "RELEASED" not in site.tcp.seen and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert "RELEASED" in site.tcp.seen


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_peers_are_told(site: Site, signal_number: signal.Signals) -> None:
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        started = time.monotonic()
        assert site.deployment.kill("connector-1", signal_number) == 0
        assert time.monotonic() - started < 5
        assert wait_until_reset(client, 2) <= 1
    for name in ("agent-1", "intermediate-1"):
        started = time.monotonic()
        assert site.deployment.kill(name, signal_number) == 0
        assert time.monotonic() - started < 5


def test_agent_fails_over_to_the_second_intermediate_and_keeps_its_connection(
    deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]
) -> None:
    port = free_port()
    for name in ("intermediate-1", "intermediate-2"):
        deployment.add_intermediate(name)
    deployment.add_connector("connector-1", services(*backends))
    deployment.add_agent("agent-1", listeners(port, free_port()))
    deployment.start()
    deployment.wait_ready()
    with connect(port, 30) as client:
        client.sendall(b"ECHO\nbefore")
        assert client.recv(100) == b"before"
        deployment.kill("intermediate-1")
        client.sendall(b"after")
        assert client.recv(100) == b"after"
    status = deployment.wait_for("agent-1", lambda status: bool(status["sessions"]), "a session", timeout_s=5)
    assert status["sessions"][0]["via"] == "intermediate-2"
