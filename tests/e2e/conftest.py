"""A deployment of real processes on loopback, in a short path (unix socket names are limited)."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.backends import TcpBackend, UdpEcho
from tests.nursery import QuickDeployment
from tools.deployment import Deployment, free_port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs real processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@contextmanager
def deploying() -> Iterator[Deployment]:
    """An empty deployment."""
    directory = Path(tempfile.mkdtemp(prefix="ztna-"))
    try:
        with QuickDeployment(directory) as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def print_logs(deployment: Deployment) -> None:
    """Have pytest show the ends of all logs if the test fails."""
    for daemon in deployment.daemons.values():
        print(f"--- {daemon.id}\n{daemon.log_tail(60)}")  # noqa: T201


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """An empty deployment; its logs are shown when the test fails."""
    with deploying() as running:
        yield running
        print_logs(running)


@dataclass
class Site:
    """One intermediate, one connector, one agent, with a TCP and a UDP service."""

    deployment: Deployment
    tcp: TcpBackend
    udp: UdpEcho
    tcp_port: int
    udp_port: int


def services(tcp: TcpBackend, udp: UdpEcho) -> list[dict[str, Any]]:
    """The services of a connector."""
    return [
        {"id": "files", "protocol": "tcp", "backend": tcp.address},
        {"id": "echo", "protocol": "udp", "backend": udp.address},
    ]


def listeners(tcp_port: int, udp_port: int) -> list[dict[str, Any]]:
    """The services of an agent."""
    return [
        {"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{tcp_port}"},
        {"id": "echo", "protocol": "udp", "listen": f"127.0.0.1:{udp_port}"},
    ]


@pytest.fixture
def backends() -> Iterator[tuple[TcpBackend, UdpEcho]]:
    """A TCP and a UDP service."""
    with TcpBackend() as tcp, UdpEcho() as udp:
        yield tcp, udp


@pytest.fixture
def configured_site(deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]) -> Site:
    """Configured, not started."""
    tcp, udp = backends
    site = Site(deployment, tcp, udp, free_port(), free_port(socket.SOCK_DGRAM))
    deployment.add_intermediate("intermediate-1")
    deployment.add_connector("connector-1", services(tcp, udp))
    deployment.add_agent("agent-1", listeners(site.tcp_port, site.udp_port))
    return site


@pytest.fixture
def site(configured_site: Site) -> Site:
    """Running and ready."""
    configured_site.deployment.start()
    configured_site.deployment.wait_ready()
    return configured_site
