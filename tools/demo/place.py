"""Where the demo runs: in a lab behind two NATs, or on loopback where no lab can be built."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from tools.demo.backends import Backend
from tools.deployment import Deployment, free_port
from tools.natlab.availability import missing_packages
from tools.natlab.deployment import LabDeployment
from tools.natlab.kinds import Access
from tools.natlab.lab import Lab
from tools.natlab.namespaces import LabError
from tools.natlab.plan import Direction, Link, Plan, Site

INTERMEDIATE, CONNECTOR, AGENT = "intermediate-1", "connector-1", "agent-1"
FILES, ECHO = "files", "echo"

AGENT_SITE: Final = "a"
CONNECTOR_SITE: Final = "b"
SITE_DELAY_MS: Final = 20.0
INTERMEDIATE_DELAY_MS: Final = 15.0
NAT: Final = Access.parse("eim-apdf")
"""What most home routers are (RFC 4787): the same mapping for every peer, nothing let in unasked."""

STORY_S: Final = 16.0
"""The links in the lab are as slow as makes the download last this long: twice what cut and healing take."""

AGENT_ADDRESS: Final = "127.0.0.2"
CONNECTOR_ADDRESS: Final = "127.0.0.3"

KEEPALIVE: Final = {"interval_s": 1}
"""Round-trip times of both paths are then known, and fresh, after a second or two."""


class Place(Protocol):
    """What the demo needs of a place; a context manager that ends everything in it."""

    name: str
    description: str
    reason: str | None
    """Why it is not the lab."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @property
    def can_cut(self) -> bool:
        """Whether the direct path can be cut."""

    def build(self, directory: Path, shared: Path) -> tuple[Deployment, dict[str, int]]:
        """Services started, `shared` over HTTP, and daemons configured; the agent's ports by service."""

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """A socket on the agent's machine."""

    def cut(self) -> None:
        """Drop what travels between agent and connector directly, without a word to either."""

    def heal(self) -> None:
        """Let it pass again."""

    def hurry(self) -> None:
        """From now on everything passes as fast as it can."""


class LoopbackPlace:
    """Each node on an address of 127.0.0.0/8: a direct path, but no NAT and nothing to cut."""

    name = "loopback"
    can_cut = False

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason
        self.description = f"loopback: agent {AGENT_ADDRESS}, connector {CONNECTOR_ADDRESS}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exception_type, exception, traceback)

    def build(self, directory: Path, shared: Path) -> tuple[Deployment, dict[str, int]]:
        """As in `Place`."""
        log_path = directory / "services.log"
        files = self._stack.enter_context(Backend(("files", str(shared)), log_path))
        echo = self._stack.enter_context(Backend(("echo",), log_path))
        deployment = self._stack.enter_context(Deployment(directory))
        ports = {FILES: free_port(), ECHO: free_port(socket.SOCK_DGRAM)}
        ice = {"ice": {"loopback": True}, "keepalive": KEEPALIVE}
        deployment.add_intermediate(INTERMEDIATE)
        deployment.add_connector(
            CONNECTOR,
            _backends(files.address, echo.address),
            udp={"bind": [f"{CONNECTOR_ADDRESS}:0"]},
            **ice,
        )
        deployment.add_agent(AGENT, _listeners(ports), udp={"bind": [f"{AGENT_ADDRESS}:0"]}, **ice)
        return deployment, ports

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """As in `Place`."""
        return socket.socket(socket.AF_INET, kind)

    def cut(self) -> None:
        """Nothing stands between two addresses of loopback."""
        raise NotImplementedError

    def heal(self) -> None:
        """As for `cut`."""
        raise NotImplementedError

    def hurry(self) -> None:
        """Nothing is slow here."""


class LabPlace:
    """Agent and connector on two sites, each behind a NAT of its own; the intermediate is public."""

    name = "lab"
    reason: str | None = None
    can_cut = True

    def __init__(self, size: int) -> None:
        """For a download of `size` bytes. Raises `LabError`; then nothing is left."""
        rate_mbit = round(size * 8 / STORY_S / 1e6, 1)
        self.description = (
            f"lab: NATs {NAT}, {SITE_DELAY_MS:.0f} ms, {rate_mbit:g} Mbit/s; "
            f"intermediate {INTERMEDIATE_DELAY_MS:.0f} ms"
        )
        link = Link.both(Direction(delay_ms=SITE_DELAY_MS, rate_mbit=rate_mbit))
        plan = Plan(
            tuple(Site(name, NAT, link) for name in (AGENT_SITE, CONNECTOR_SITE)),
            Link.both(Direction(delay_ms=INTERMEDIATE_DELAY_MS)),
        )
        self._stack = ExitStack()
        self._lab = self._stack.enter_context(Lab(plan))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exception_type, exception, traceback)

    def build(self, directory: Path, shared: Path) -> tuple[Deployment, dict[str, int]]:
        """As in `Place`."""
        deployment = self._stack.enter_context(LabDeployment(directory, self._lab))
        files = deployment.serve_files(CONNECTOR_SITE, shared)
        echo = deployment.serve_echo(CONNECTOR_SITE)
        ports = {FILES: 8000, ECHO: 8001}
        deployment.add_intermediate(INTERMEDIATE)
        deployment.add_connector(CONNECTOR, _backends(files, echo), host=CONNECTOR_SITE, keepalive=KEEPALIVE)
        deployment.add_agent(AGENT, _listeners(ports), host=AGENT_SITE, keepalive=KEEPALIVE)
        return deployment, ports

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """As in `Place`."""
        return self._lab.socket(AGENT_SITE, kind)

    def cut(self) -> None:
        """As in `Place`."""
        self._lab.cut(AGENT_SITE, towards=CONNECTOR_SITE, protocol="udp")

    def heal(self) -> None:
        """As in `Place`."""
        self._lab.heal(AGENT_SITE)

    def hurry(self) -> None:
        """As in `Place`."""
        for site in (AGENT_SITE, CONNECTOR_SITE):
            link = self._lab.link(site)
            unlimited = Link(replace(link.up, rate_mbit=None), replace(link.down, rate_mbit=None), link.mtu)
            self._lab.set_link(site, unlimited)


def choose(size: int, *, wants_loopback: bool) -> Place:
    """The lab where one can be built; else loopback, and why."""
    if wants_loopback:
        return LoopbackPlace("asked for")
    missing = missing_packages()
    if missing:
        return LoopbackPlace(f"Debian packages are missing: {' '.join(missing)} (make lab-tools)")
    try:
        return LabPlace(size)
    except LabError as error:
        # The kernel's, or the tool's, own words: a distribution may forbid user namespaces.
        said, _, _ = str(error).partition("\n")
        return LoopbackPlace(f"no network namespaces here: {said}")


def _backends(files: str, echo: str) -> list[dict[str, Any]]:
    return [
        {"id": FILES, "protocol": "tcp", "backend": files},
        {"id": ECHO, "protocol": "udp", "backend": echo},
    ]


def _listeners(ports: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"id": FILES, "protocol": "tcp", "listen": f"127.0.0.1:{ports[FILES]}"},
        {"id": ECHO, "protocol": "udp", "listen": f"127.0.0.1:{ports[ECHO]}"},
    ]
