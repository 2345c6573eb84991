"""What a deployment says of its processes when something goes wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.deployment import PORTS_PER_PROCESS, Deployment, DeploymentError, free_port, log_tail

ROOT = Path(__file__).parents[2]

FAILURE = (
    '{"daemon": "agent", "node": "a", "actor": "relay_leg", "event": "relay_leg.actor_failed", '
    '"level": "error", "exception": "Traceback\\n  one\\nValueError: two", '
    '"timestamp": "2026-01-02T03:04:05.678Z"}'
)


READABLE = """\
03:04:05.678 error   relay_leg.actor_failed actor=relay_leg
    Traceback
      one
    ValueError: two"""


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("[1]", "[1]"),
        ("{}", "{}"),
        (FAILURE, READABLE),
    ],
    ids=["no JSON", "no object", "no event", "exception"],
)
def test_log_line_is_made_readable(tmp_path: Path, line: str, shown: str) -> None:
    (tmp_path / "a.log").write_text(f"earlier\n{line}\n")
    assert log_tail(tmp_path / "a.log", 1) == shown


def test_missing_log_is_said_to_be_missing(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "a.log", 5) == "(no log)"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_ports_are_handed_out_once(kind: socket.SocketKind) -> None:
    ports = [free_port(kind) for _ in range(50)]
    assert len(set(ports)) == len(ports)


def test_processes_at_the_same_time_are_handed_different_ports() -> None:
    mine = {free_port() for _ in range(PORTS_PER_PROCESS)}
    code = (
        f"from tools.deployment import free_port; print(*(free_port() for _ in range({PORTS_PER_PROCESS})))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True, timeout=60
    )
    assert mine.isdisjoint(map(int, other.stdout.split()))


def test_port_of_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(OSError, match=r"no port of 192\.0\.2\.1 is free"):
        free_port(host="192.0.2.1")


def test_daemon_that_ends_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with Deployment(tmp_path) as deployment:
        deployment.add_intermediate("intermediate-1", policy="nonsense")
        deployment.start()
        with pytest.raises(DeploymentError, match=r"(?s)intermediate-1 ended \(exit 2\).*policy"):
            deployment.wait_ready()
