"""Small limits of the system on real daemons: what is new is refused by name, what exists goes on."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from actors.resources import MIN_DESCRIPTORS
from tests.e2e.backends import connect, content_digest, download
from tests.e2e.conftest import Site
from tools.deployment import Deployment

MIB = 1 << 20
SMALL_LIMIT = 64
CLIENTS = 200
LIMIT_S = 15.0
NEAR_LIMIT = 'near_limit_seconds_total{reason="file_descriptor_limit"}'


def limit_descriptors(deployment: Deployment, name: str, limit: int) -> None:
    process = deployment.daemons[name].process
    assert process is not None
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))


def descriptors(deployment: Deployment, name: str) -> int:
    process = deployment.daemons[name].process
    assert process is not None
    return len(subprocess.check_output(["ls", f"/proc/{process.pid}/fd"]).split())


def is_served(client: socket.socket) -> bool:
    """Whether the service answers; False for a reset."""
    client.settimeout(LIMIT_S)
    try:
        client.sendall(b"HOLD\n")
        return client.recv(100) == b"held\n"
    except (ConnectionResetError, BrokenPipeError):
        return False


def attempt(port: int) -> socket.socket | None:
    """A connection, or None where the reset came before this process looked at it."""
    try:
        return connect(port)
    except ConnectionResetError:
        return None


@contextmanager
def crowd(port: int) -> Iterator[list[bool]]:
    """Many clients at a time, and which of them are served; all are gone at the end."""
    with ExitStack() as stack:
        clients = [each and stack.enter_context(each) for each in map(attempt, [port] * CLIENTS)]
        yield [client is not None and is_served(client) for client in clients]


def refused(status: dict[str, Any], reason: str) -> int:
    key = f'refusals_total{{place="resources",reason="{reason}"}}'
    count: int = status["counters"].get(key, 0)
    return count


def events(deployment: Deployment, name: str, event: str) -> list[dict[str, Any]]:
    lines = deployment.daemons[name].log_path.read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["agent-1", "connector-1"])
def test_clients_beyond_the_descriptors_are_reset_and_everybody_else_is_served(site: Site, name: str) -> None:
    deployment = site.deployment
    with connect(site.tcp_port) as early:
        assert is_served(early)
        at_rest = descriptors(deployment, name)
        limit_descriptors(deployment, name, SMALL_LIMIT)
        with crowd(site.tcp_port) as served:
            assert 0 < sum(served) < SMALL_LIMIT
            # The daemon still answers those who look at it, and names the limit.
            status = deployment.wait_for(
                name,
                lambda status: refused(status, "file_descriptor_limit") == CLIENTS - sum(served),
                "every refusal is counted",
            )
            assert status["is_ready"]
            assert descriptors(deployment, name) <= SMALL_LIMIT
        # Who was there before goes on, and with the crowd gone there is room again.
        early.sendall(b"HOLD\n")
        wait_until(lambda: descriptors(deployment, name) <= at_rest + 1)
        assert download(site.tcp_port, MIB) == content_digest(MIB)
    event = "service_port.flow_refused" if name == "agent-1" else "service_backend.flow_refused"
    lines = events(deployment, name, event)
    assert "RLIMIT_NOFILE" in lines[0]["detail"]
    assert len(lines) <= 3


def test_signaling_connections_beyond_the_descriptors_are_closed_and_nodes_stay(
    configured_site: Site,
) -> None:
    deployment = configured_site.deployment
    daemon = deployment.daemons["intermediate-1"]
    daemon.settings["limits"] = {"attached_nodes": 10}
    daemon.config_path.write_text(yaml.safe_dump(daemon.settings), encoding="utf-8")
    with _descriptor_limit(SMALL_LIMIT):
        deployment.start("intermediate-1")
    deployment.start()
    deployment.wait_ready()
    host, _, port = daemon.settings["grpc"]["listen"].rpartition(":")
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=LIMIT_S))
        # The others of the intermediate are served: status, metrics, the relay.
        assert download(configured_site.tcp_port, MIB) == content_digest(MIB)
        status = deployment.wait_for("intermediate-1", lambda status: status["is_ready"], "ready")
        assert len(status["nodes"]) == 2
        assert descriptors(deployment, "intermediate-1") <= SMALL_LIMIT
        # gRPC tells nobody whom it closed: the daemon has looked, and names the limit.
        status = deployment.wait_for(
            "intermediate-1",
            lambda status: status["counters"].get(NEAR_LIMIT, 0) > 0,
            "the limit is named",
        )
        assert any("RLIMIT_NOFILE" in problem["message"] for problem in status["problems"])
    (line,) = events(deployment, "intermediate-1", "status_board.limit_nearly_reached")
    assert line["reason"] == "file_descriptor_limit"
    assert line["detail"] == f"nearly all of {SMALL_LIMIT} file descriptors (RLIMIT_NOFILE) are in use"
    assert "gRPC port" in line["consequence"]
    # With the strangers gone it says so, too, and a node that was there all the time has lost nothing.
    wait_until(lambda: bool(events(deployment, "intermediate-1", "status_board.limit_left")))
    assert not events(deployment, "intermediate-1", "signaling_service.node_detached")
    assert download(configured_site.tcp_port, MIB) == content_digest(MIB)


@contextmanager
def _descriptor_limit(limit: int) -> Iterator[None]:
    """The soft limit of this process, which what it starts meanwhile inherits."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_daemon_that_occupies_its_memory_refuses_and_says_so(configured_site: Site) -> None:
    deployment = configured_site.deployment
    daemon = deployment.daemons["connector-1"]
    daemon.settings["limits"] = {"memory_bytes": MIB}
    daemon.config_path.write_text(yaml.safe_dump(daemon.settings), encoding="utf-8")
    deployment.start()
    deployment.wait_ready()
    client = attempt(configured_site.tcp_port)
    if client is not None:
        with client:
            assert not is_served(client)
    deployment.wait_for("connector-1", lambda status: refused(status, "memory_limit") == 1, "one refusal")
    (line,) = events(deployment, "connector-1", "service_backend.flow_refused")
    assert "memory_limit" in line["detail"]
    assert "limits.memory_bytes" in line["detail"]
    deployment.wait_for(
        "agent-1",
        lambda status: any("memory_limit" in problem["message"] for problem in status["problems"]),
        "the agent shows the reason, too",
    )


def limited_start(deployment: Deployment, name: str, limit: int) -> subprocess.Popen[bytes]:
    daemon = deployment.daemons[name]
    command = [sys.executable, "-m", "ztna.cli.main", daemon.kind, "-c", str(daemon.config_path)]
    with daemon.log_path.open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", *command], stdout=log, stderr=log
        )


def test_limit_that_no_daemon_can_live_with_ends_the_start_with_2(configured_site: Site) -> None:
    deployment = configured_site.deployment
    process = limited_start(deployment, "agent-1", MIN_DESCRIPTORS - 1)
    assert process.wait(LIMIT_S) == 2
    log = deployment.daemons["agent-1"].log_path.read_text(encoding="utf-8")
    assert f"RLIMIT_NOFILE is {MIN_DESCRIPTORS - 1}" in log
    assert len(log.splitlines()) == 1


def test_hard_limit_below_the_configured_one_is_warned_of_by_key(configured_site: Site) -> None:
    deployment = configured_site.deployment
    process = deployment.daemons["agent-1"].process = limited_start(deployment, "agent-1", 1024)
    deployment.wait_for("agent-1", lambda status: status["uptime_s"] >= 0, "the control socket")
    assert process.poll() is None
    (line,) = events(deployment, "agent-1", "daemon.file_descriptor_limit_low")
    assert line["key"] == "limits.connections"
    assert line["limit"] == 1024
