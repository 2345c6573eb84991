"""What a service manager is told, over a real datagram socket and a clock that only moves when told to."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.service_manager import MAX_STATUS_CHARACTERS, MIN_WATCHDOG_USEC, ServiceManager
from tests.manual_io import ManualScheduler

PID = 4711


class FakeManager:
    """The other end of `NOTIFY_SOCKET`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        datagrams = []
        while True:
            try:
                datagrams.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return datagrams

    def environ(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.path, **more}


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with tempfile.TemporaryDirectory(prefix="ztna-") as directory:
        fake = FakeManager(str(Path(directory, "notify")))
        with fake.socket:
            yield fake


def test_a_life_is_told_in_the_words_of_the_protocol(manager: FakeManager) -> None:
    service = ServiceManager(manager.environ(), PID)
    service.ready()
    service.status("not attached\nto any intermediate")
    service.reloading(12.5)
    service.ready()
    service.stopping()
    assert manager.told() == [
        "READY=1",
        "STATUS=not attached to any intermediate",
        "RELOADING=1\nMONOTONIC_USEC=12500000",
        "READY=1",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_reload_before_everything_runs_is_not_told(manager: FakeManager) -> None:
    service = ServiceManager(manager.environ(), PID)
    service.reloading(1.0)
    assert manager.told() == []


def test_status_is_told_once_and_never_longer_than_a_line(manager: FakeManager) -> None:
    service = ServiceManager(manager.environ(), PID)
    service.status("x" * 10_000)
    service.status("x" * 10_000)
    assert manager.told() == ["STATUS=" + "x" * MAX_STATUS_CHARACTERS]


def test_watchdog_is_fed_twice_per_interval_and_starves_with_the_loop(manager: FakeManager) -> None:
    service = ServiceManager(manager.environ(WATCHDOG_USEC="10000000", WATCHDOG_PID=str(PID)), PID)
    loop = ManualScheduler()
    service.keep_watchdog_quiet(loop)
    assert manager.told() == ["WATCHDOG=1"]
    loop.advance(4.9)
    assert manager.told() == []
    loop.advance(0.2)
    assert manager.told() == ["WATCHDOG=1"]
    loop.advance(50.0)
    assert manager.told() == ["WATCHDOG=1"] * 10


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": str(MIN_WATCHDOG_USEC - 1)},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5000000"},
        {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(PID + 1)},
    ],
    ids=["absent", "zero", "tiny", "no_number", "negative", "of_another_process"],
)
def test_watchdog_that_is_not_meant_for_us_is_off(manager: FakeManager, environ: dict[str, str]) -> None:
    service = ServiceManager(manager.environ(**environ), PID)
    loop = ManualScheduler()
    service.keep_watchdog_quiet(loop)
    assert service.watchdog_s is None
    assert loop.next_deadline() is None
    assert manager.told() == []


def test_shortest_watchdog_is_heeded(manager: FakeManager) -> None:
    service = ServiceManager(manager.environ(WATCHDOG_USEC=str(MIN_WATCHDOG_USEC)), PID)
    assert service.watchdog_s == pytest.approx(MIN_WATCHDOG_USEC / 1e6)


def test_abstract_socket_is_reached() -> None:
    name = f"ztna-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(5)
        ServiceManager({"NOTIFY_SOCKET": "@" + name}, PID).ready()
        assert listener.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "/" + "x" * 200])
def test_manager_that_cannot_be_reached_is_no_fault_of_the_daemon(address: str) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000"}, PID)
    loop = ManualScheduler()
    service.keep_watchdog_quiet(loop)
    service.ready()
    assert loop.next_deadline() is None or service.watchdog_s == 10.0


def test_manager_that_does_not_read_does_not_block_the_loop(manager: FakeManager) -> None:
    service = ServiceManager(manager.environ(), PID)
    for number in range(10_000):
        service.status(f"reason {number}")
    assert 0 < len(manager.told()) < 10_000
