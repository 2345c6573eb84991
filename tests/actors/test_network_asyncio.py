"""How the real I/O port hears of changes of the network."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import network_asyncio
from actors.io_asyncio import AsyncioIo
from actors.network_asyncio import MAX_READS_PER_WAKEUP, NetworkWatch, source_address
from tests.actors.io_worlds import RealWorld
from ztna.address import Family

ROOT = Path(__file__).resolve().parent.parent.parent

# In a network namespace of its own: hears of the loopback interface that goes up, of an address, of a route.
SCRIPT = """
import asyncio, subprocess
from actors.io_asyncio import AsyncioIo
from ztna.address import Family

loop = asyncio.new_event_loop()
io = AsyncioIo(loop)
changes = 0
happened = asyncio.Event()

def changed():
    global changes
    changes += 1
    happened.set()

cancel = io.watch_network(changed)

async def after(*command):
    happened.clear()
    subprocess.run(command, check=True)
    await asyncio.wait_for(happened.wait(), 10)

async def main():
    assert io.source_address(Family.IPV4) is None
    await after("ip", "link", "set", "lo", "up")
    await after("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
    await after("ip", "route", "add", "default", "dev", "lo", "src", "10.77.0.1")
    assert io.source_address(Family.IPV4) == "10.77.0.1", io.source_address(Family.IPV4)
    assert "10.77.0.1" in {each.host for each in io.interface_addresses()}
    cancel()
    cancel()
    before = changes
    witness = io.watch_network(happened.set)
    await after("ip", "address", "del", "10.77.0.1/32", "dev", "lo")
    assert changes == before, "nothing follows the end"
    witness()

loop.run_until_complete(main())
print("heard", changes)
"""


class FakeNetlink:
    """A netlink socket that says what a test wants: senders, or errors."""

    def __init__(self, *says: int | OSError) -> None:
        self.says = list(says)
        self.reads = 0

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        self.reads += 1
        said = self.says.pop(0) if self.says else OSError(errno.EAGAIN, "no more")
        if isinstance(said, OSError):
            raise said
        return b"", (said, 0)


@pytest.fixture
def world() -> Iterator[RealWorld]:
    made = RealWorld("127.0.0.1")
    yield made
    made.close()


@pytest.mark.netns
def test_changes_in_a_namespace_are_heard_until_the_watch_ends() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is not installed")
    inside = [unshare, "--user", "--map-root-user", "--net"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not allowed here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*inside, sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("heard ")


def test_without_netlink_the_network_is_looked_at_now_and_then(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_asyncio, "POLL_S", 0.01)
    states = iter([1, 1, 1, 2, 2, 3])
    heard: list[int] = []
    looked: list[int] = []

    def snapshot() -> int:
        looked.append(next(states, 3))
        world.changed()
        return looked[-1]

    watch = NetworkWatch(world.loop, lambda: heard.append(looked[-1]), snapshot, use_netlink=False)
    assert not watch.uses_netlink
    world.wait(lambda: len(looked) >= 8)
    watch.cancel()
    watch.cancel()
    assert heard == [2, 3]


@pytest.mark.parametrize("failing", ["socket", "bind"])
def test_where_netlink_is_forbidden_looking_takes_its_place(
    world: RealWorld, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    class Forbidden(socket.socket):
        def __init__(self, *arguments: Any) -> None:
            if failing == "socket":
                raise OSError(errno.EPERM, "no")
            super().__init__(*arguments)

        def bind(self, _address: object) -> None:
            raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(socket, "socket", Forbidden)
    watch = NetworkWatch(world.loop, lambda: None, lambda: 0)
    watch.cancel()
    assert not watch.uses_netlink


def test_the_port_can_do_without_netlink(world: RealWorld) -> None:
    AsyncioIo(world.loop, use_netlink=False).watch_network(lambda: None)()


def test_a_burst_of_news_is_one_call(world: RealWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_asyncio, "_drain", lambda _sock: True)
    calls: list[float] = []

    def called() -> None:
        calls.append(world.loop.time())
        world.changed()

    watch = NetworkWatch(world.loop, called, lambda: 0)
    if not watch.uses_netlink:
        pytest.skip("netlink is not allowed here")
    for _ in range(20):
        watch._on_readable()
    world.wait(lambda: bool(calls))
    watch._on_readable()
    world.wait(lambda: len(calls) == 2)
    watch.cancel()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("says", "is_news"),
    [
        pytest.param((0,), True, id="the kernel"),
        pytest.param((4711,), False, id="another process"),
        pytest.param((4711, 0), True, id="both"),
        pytest.param((), False, id="nobody"),
        pytest.param((OSError(errno.ENOBUFS, "lost"),), True, id="so much that some was lost"),
    ],
)
def test_only_the_kernel_has_news(says: tuple[int | OSError, ...], is_news: bool) -> None:
    fake: Any = FakeNetlink(*says)
    assert network_asyncio._drain(fake) is is_news


def test_one_wakeup_reads_a_bounded_number_of_messages() -> None:
    fake: Any = FakeNetlink(*[0] * 1000)
    assert network_asyncio._drain(fake)
    assert fake.reads == MAX_READS_PER_WAKEUP


@pytest.mark.parametrize("family", Family)
def test_source_address_is_one_of_the_hosts_own_or_none(world: RealWorld, family: Family) -> None:
    found = source_address(family)
    own = {each.host.partition("%")[0] for each in world.left.interface_addresses()}
    assert found is None or found in own
    assert world.left.source_address(family) == found


def test_host_without_route_has_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_asyncio, "_FAR_AWAY", {Family.IPV4: ("not an address", 9)})
    assert source_address(Family.IPV4) is None


def test_netlink_is_watched_by_one_socket_that_is_closed_at_the_end(world: RealWorld) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def watch() -> tuple[int, int]:
        before = descriptors()
        cancel = world.left.watch_network(lambda: None)
        during = descriptors() - before
        cancel()
        return during, descriptors() - before

    assert world.loop.run_until_complete(asyncio.wait_for(watch(), 10)) in {(1, 0), (0, 0)}
