"""An agent on site `a`, a connector on site `b` and an intermediate, in a lab: what tests ask of them."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.transfers import Echo, Transfer, TransferBackend
from tests.nursery import QuickLabDeployment
from tools.natlab import topology
from tools.natlab.cell import DIRECT, RELAY, restart_ice
from tools.natlab.deployment import LabDeployment
from tools.natlab.lab import Lab
from tools.natlab.plan import Plan
from ztna.v1 import control_pb2

AGENT, CONNECTOR, INTERMEDIATE = "agent-1", "connector-1", "intermediate-1"
SECOND_INTERMEDIATE = "intermediate-2"
BOTH = (AGENT, CONNECTOR)
TCP_PORT, UDP_PORT = 8000, 8001
WITNESS_PORT = 8002
LIMIT_S = 60.0
POLL_INTERVAL_S = 0.05


@contextmanager
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets below it."""
    directory = Path(tempfile.mkdtemp(prefix="ztna-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Nodes:
    """A running deployment, its lab and its two services."""

    lab: Lab
    deployment: LabDeployment
    tcp: TransferBackend
    udp: Echo

    def transfer(self, *, is_upload: bool = False, host: str = "a") -> Transfer:
        """Begin a transfer with a client on this site; there is a session then."""
        return Transfer(self.tcp, TCP_PORT, is_upload=is_upload, host=host)

    def session(self, node: str) -> control_pb2.SessionStatus:
        """The only session of a node; an empty one if there is none."""
        status = self.deployment.daemon_status(node)
        return control_pb2.SessionStatus() if status is None or not status.sessions else status.sessions[0]

    def session_at_connector(self, agent: str) -> control_pb2.SessionStatus:
        """The session of one of several agents, as the connector sees it; an empty one if there is none."""
        status = self.deployment.daemon_status(CONNECTOR)
        sessions = [] if status is None else status.sessions
        return next((each for each in sessions if each.peer_id == agent), control_pb2.SessionStatus())

    def reload(self, node: str) -> None:
        """Have a daemon read its files again (SIGHUP), and wait until it has."""
        count = len(self.events(node, "daemon.reloaded"))
        process = self.deployment.daemons[node].process
        assert process is not None
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + LIMIT_S
        while len(self.events(node, "daemon.reloaded")) == count:
            assert time.monotonic() < deadline, f"{node} has not reloaded\n{self.logs()}"
            time.sleep(POLL_INTERVAL_S)

    def wait_until(
        self,
        is_so: Callable[[control_pb2.SessionStatus], bool],
        what: str,
        *nodes: str,
        limit_s: float = LIMIT_S,
    ) -> list[control_pb2.SessionStatus]:
        """Wait until the session satisfies a condition at nodes (both, if none is named) at once."""
        deadline = time.monotonic() + limit_s
        while True:
            sessions = [self.session(node) for node in nodes or BOTH]
            if all(is_so(session) for session in sessions):
                return sessions
            assert time.monotonic() < deadline, f"not {what}: {sessions}\n{self.logs()}"
            time.sleep(POLL_INTERVAL_S)

    def wait_direct(self) -> list[control_pb2.SessionStatus]:
        """Wait until both ends are on a direct path."""
        return self.wait_until(lambda session: session.path == DIRECT, "direct")

    def wait_relayed(self) -> list[control_pb2.SessionStatus]:
        """Wait until both ends are on the relay."""
        return self.wait_until(lambda session: session.path == RELAY, "relayed")

    def restart_ice(self) -> None:
        """As an operator does."""
        restart_ice(self.deployment, AGENT)

    def events(self, node: str, event: str) -> list[dict[str, Any]]:
        """What a daemon logged under this name."""
        lines = self.deployment.daemons[node].log_path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == event]

    def logs(self, lines: int = 60) -> str:
        """The ends of all logs, for a failure."""
        return "\n".join(
            f"--- {daemon.id}\n{daemon.log_tail(lines)}" for daemon in self.deployment.daemons.values()
        )


@contextmanager
def running(
    plan: Plan,
    directory: Path,
    *,
    agent: dict[str, Any] | None = None,
    connector: dict[str, Any] | None = None,
    others: Sequence[str] = (),
    witnesses: Sequence[str] = (),
) -> Iterator[Nodes]:
    """Build the lab and start everything; ends all of it. Settings are those of the configuration files.

    Each of the `others`, sites, has an agent of its own, named after it. Each of the `witnesses` has a
    connector and one more agent, named after it, that alone know the second intermediate of the plan, too.
    """
    with (
        Lab(plan) as lab,
        QuickLabDeployment(directory, lab) as deployment,
        TransferBackend(lab) as tcp,
        Echo(lab) as udp,
    ):
        services = [
            {"id": "files", "protocol": "tcp", "backend": tcp.address},
            {"id": "echo", "protocol": "udp", "backend": udp.address},
        ]
        listeners = [
            {"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{TCP_PORT}"},
            {"id": "echo", "protocol": "udp", "listen": f"127.0.0.1:{UDP_PORT}"},
        ]
        deployment.add_intermediate(INTERMEDIATE)
        deployment.add_connector(CONNECTOR, services, **(connector or {}))
        deployment.add_agent(AGENT, listeners, **(agent or {}))
        for site in others:
            deployment.add_agent(f"agent-{site}", listeners, host=site, **(agent or {}))
        if plan.second_intermediate is not None:
            deployment.add_intermediate(SECOND_INTERMEDIATE, host=topology.SECOND_INTERMEDIATE)
        for site in witnesses:
            service = {"id": f"files-{site}", "protocol": "tcp", "backend": tcp.address}
            deployment.add_connector(f"connector-{site}", [service], host=site)
            listener = {"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{WITNESS_PORT}"}
            deployment.add_agent(f"witness-{site}", [listener], host=site)
        deployment.start()
        deployment.wait_ready()
        nodes = Nodes(lab, deployment, tcp, udp)
        try:
            yield nodes
        except BaseException:
            print(nodes.logs())  # noqa: T201 - pytest shows it with a failure
            raise
