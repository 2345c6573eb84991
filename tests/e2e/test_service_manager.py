"""Real daemons under a service manager that is a socket in a directory."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e import hanging
from tools.deployment import Daemon, Deployment

WATCHDOG_S = 1.0
HARDENING = (
    "NoNewPrivileges",
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateUsers",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectControlGroups",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "MemoryDenyWriteExecute",
    "SystemCallFilter",
    "LimitNOFILE",
    "MemoryMax",
)
LIMIT_S = 20.0
UNITS = Path(__file__).parents[2] / "config" / "systemd"


@pytest.fixture
def manager(deployment: Deployment) -> Iterator[socket.socket]:
    """What `NOTIFY_SOCKET` of the connector names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        path = deployment.directory / "notify"
        listener.bind(str(path))
        listener.settimeout(LIMIT_S)
        deployment.add_intermediate()
        connector = deployment.add_connector(
            "connector-1", [{"id": "files", "protocol": "tcp", "backend": "127.0.0.1:9"}]
        )
        connector.environment = {
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        yield listener


def wait_for(manager: socket.socket, words: str) -> list[str]:
    """Everything that is told up to the first message that begins with `words`."""
    told: list[str] = []
    while not told or not told[-1].startswith(words):
        told.append(manager.recv(4096).decode())
    return told


def is_silent(manager: socket.socket, seconds: float) -> bool:
    manager.settimeout(seconds)
    try:
        manager.recv(4096)
    except TimeoutError:
        return True
    finally:
        manager.settimeout(LIMIT_S)
    return False


def test_life_of_a_daemon_as_its_service_manager_hears_it(
    deployment: Deployment, manager: socket.socket
) -> None:
    connector = deployment.daemons["connector-1"]
    # The intermediate is away: the start succeeds all the same, and the status says what is missing.
    deployment.start("connector-1")
    assert "READY=1" in wait_for(manager, "READY=1")
    assert "not attached" in wait_for(manager, "STATUS=")[-1]
    deployment.start("intermediate-1")
    wait_for(manager, "STATUS=ready")
    assert "daemon.ready" in connector.log_tail(100)

    assert connector.process is not None
    connector.process.send_signal(signal.SIGHUP)
    assert wait_for(manager, "RELOADING=1")[-1].split("\n")[1].startswith("MONOTONIC_USEC=")
    wait_for(manager, "READY=1")

    deployment.kill("intermediate-1", signal.SIGTERM)
    assert "not attached" in wait_for(manager, "STATUS=")[-1]
    assert "daemon.not_ready" in connector.log_tail(100)

    assert deployment.kill("connector-1", signal.SIGTERM) == 0
    wait_for(manager, "STOPPING=1")


def test_loop_that_hangs_stops_feeding_the_watchdog_though_other_threads_go_on(
    deployment: Deployment, manager: socket.socket
) -> None:
    deployment.daemons["connector-1"].program = ("-P", hanging.__file__)
    process = _started(deployment, manager).process
    assert process is not None
    wait_for(manager, "WATCHDOG=1")
    process.send_signal(hanging.HANG)
    wait_for(manager, "HUNG=1")
    assert is_silent(manager, 1.5 * WATCHDOG_S)
    process.send_signal(hanging.GO_ON)
    wait_for(manager, "WATCHDOG=1")


def test_daemon_that_stands_still_stops_feeding_the_watchdog(
    deployment: Deployment, manager: socket.socket
) -> None:
    process = _started(deployment, manager)
    assert process.process is not None
    wait_for(manager, "WATCHDOG=1")
    process.process.send_signal(signal.SIGSTOP)
    try:
        manager.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                manager.recv(4096)
        assert is_silent(manager, 1.5 * WATCHDOG_S)
    finally:
        process.process.send_signal(signal.SIGCONT)
    wait_for(manager, "WATCHDOG=1")


def _started(deployment: Deployment, manager: socket.socket) -> Daemon:
    deployment.start("connector-1")
    wait_for(manager, "READY=1")
    return deployment.daemons["connector-1"]


@pytest.mark.parametrize("kind", ["intermediate", "connector", "agent"])
def test_unit_file_names_what_the_daemon_does(kind: str) -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNITS / f"ztna-{kind}.service")
    service = unit["Service"]
    assert service["ExecStart"] == f"/opt/ztna/bin/ztna {kind} -c /etc/ztna/{kind}.yaml"
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert service["Restart"] == "on-failure", "a watchdog's kill counts as a failure"
    for hardening in HARDENING:
        assert service[hardening] not in {"", "no", "false"}, hardening
    # What a start can mend is tried for ever and slowly, what needs somebody to look is not.
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert "StartLimitBurst" not in unit["Unit"]
    assert int(service["RestartSec"]) >= 5
    assert service["RestartPreventExitStatus"].split() == ["2", "3"]
    assert service["RuntimeDirectory"] == f"ztna-{kind}"
