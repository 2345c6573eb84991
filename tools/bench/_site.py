"""One agent, one intermediate, one connector with the benchmarks' services, and a session over a given path.

A benchmark measures each of `PATHS` and gives each a row of its table.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tools.bench._client import download
from tools.bench._proc import CpuMeter, pids
from tools.bench._services import LOOPBACK, ServiceProcess
from tools.deployment import Deployment, free_port

SessionPath = Literal["direct", "relay", "relay_grpc"]
RELAYED: Final = {"path": {"policy": "relay_only"}}
PATHS: Final[dict[SessionPath, dict[str, Any]]] = {
    "direct": {"ice": {"loopback": True}},
    "relay": RELAYED,
    "relay_grpc": {**RELAYED, "relay": {"carrier": "grpc"}},
}
"""What agent and connector are told, so that their session takes a path."""

INTERMEDIATE: Final = "intermediate"
CONNECTOR: Final = "connector"
AGENT: Final = "agent"
BINDS: Final = {AGENT: "127.0.0.2:0", CONNECTOR: "127.0.0.3:0"}
"""A host each, as in the field: peers on one host have candidates that others do not."""

WARM_UP_BYTES: Final = 4 << 20
"""Windows and buffers have grown, and whatever is loaded late was loaded, after this many."""

START_LIMIT_S: Final = 60.0
"""Until all daemons are ready, however busy the machine."""


@dataclass(frozen=True, slots=True)
class Site:
    """A running deployment; the ports are those of the agent, `services` has those behind the connector."""

    deployment: Deployment
    services: ServiceProcess
    tcp_port: int
    udp_port: int

    def pids(self) -> dict[str, int]:
        """The daemons' processes by name."""
        return pids(self.deployment)

    def meter(self) -> CpuMeter:
        """Processor time of the daemons from now on."""
        return CpuMeter(self.pids())

    def warm_up(self, path: SessionPath) -> None:
        """Open the session, move some bytes, and wait until it is on `path`; raises `DeploymentError`."""
        download(self.tcp_port, WARM_UP_BYTES)
        for name in (AGENT, CONNECTOR):
            self.deployment.wait_for(name, lambda status: _is_on(status, path), f"a session over path {path}")


def _is_on(status: dict[str, Any], path: SessionPath) -> bool:
    sessions = status["sessions"]
    if not sessions or sessions[0]["path"] != ("direct" if path == "direct" else "relay"):
        return False
    carriers = {each["leg_carrier"] for each in status["intermediates"]}
    return carriers == {"grpc" if path == "relay_grpc" else "quic"}


@contextmanager
def site(
    directory: Path,
    path: SessionPath | None = None,
    *,
    programs: Mapping[str, tuple[str, ...]] | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    agents: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Site]:
    """Start everything in `directory` and end it again; nothing has used the session yet.

    Agent and connector have the settings of `path`; without one, they have nothing but loopback's candidates,
    which do not count, and end up on the relay.
    `programs` are interpreter arguments to start a daemon with instead of its own, `extra` is added to a
    daemon's settings; both by the daemon's name. `agents` are the settings of further ones.
    """
    extra = extra or {}
    nodes = {
        name: {**({"udp": {"bind": [bind]}, **PATHS[path]} if path else {}), **extra.get(name, {})}
        for name, bind in BINDS.items()
    }
    with ServiceProcess() as services, Deployment(directory) as deployment:
        tcp_port, udp_port = free_port(), free_port(socket.SOCK_DGRAM)
        deployment.add_intermediate(INTERMEDIATE, **extra.get(INTERMEDIATE, {}))
        deployment.add_connector(CONNECTOR, backends(services), **nodes[CONNECTOR])
        deployment.add_agent(AGENT, listeners(tcp_port, udp_port), **nodes[AGENT])
        for name, settings in (agents or {}).items():
            deployment.add_agent(name, **settings)
        for name, program in (programs or {}).items():
            deployment.daemons[name].program = program
        deployment.start()
        deployment.wait_ready(timeout_s=START_LIMIT_S)
        yield Site(deployment, services, tcp_port, udp_port)


def backends(services: ServiceProcess) -> list[dict[str, Any]]:
    """The services as a connector has them."""
    return [
        {"id": "tcp", "protocol": "tcp", "backend": f"{LOOPBACK}:{services.tcp_port}"},
        {"id": "udp", "protocol": "udp", "backend": f"{LOOPBACK}:{services.udp_port}"},
    ]


def listeners(tcp_port: int, udp_port: int) -> list[dict[str, Any]]:
    """The services as an agent has them."""
    return [
        {"id": "tcp", "protocol": "tcp", "listen": f"{LOOPBACK}:{tcp_port}"},
        {"id": "udp", "protocol": "udp", "listen": f"{LOOPBACK}:{udp_port}"},
    ]
