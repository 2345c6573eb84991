"""The steps of the demo, in order, with real processes on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.demo.backends import Backend
from tools.demo.progress import (
    Progress,
    Step,
    Transfer,
    bytes_text,
    newest_session,
    path_text,
    registered_nodes,
    registered_services,
)
from tools.demo.traffic import TrafficError, download, echo_datagrams, write_random_file
from tools.demo.view import View
from tools.demo.watch import StatusWatch, WatchTimeoutError
from tools.deployment import Deployment, DeploymentError, free_port
from ztna.errors import ConfigError
from ztna.v1 import control_pb2

INTERMEDIATE, CONNECTOR, AGENT = "intermediate-1", "connector-1", "agent-1"
FILES, ECHO = "files", "echo"
FILE_NAME = "random.bin"

# The whole demo ends within a minute; ending the processes may take the last six seconds of it.
TIME_LIMIT_S = 52.0
# The daemons report a session's figures once a second.
FIGURES_LIMIT_S = 3.0
READY_LIMIT_S = 20.0


EXPECTED = (DeploymentError, TrafficError, WatchTimeoutError, ConfigError, OSError, RuntimeError)


class DemoError(Exception):
    """The demo failed; the first line says why."""


@dataclass(slots=True)
class Result:
    """What `--json` prints. Rates are of payload, `bytes_per_second` after the first byte."""

    ok: bool = False
    sha256_ok: bool = False
    bytes: int = 0
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    path: str = "none"
    udp_echo_ok: bool = False
    time_to_first_byte_ms: float | None = None
    rtt_ms: float | None = None
    session_id: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The keys in the order above, figures rounded to what they are worth."""
        return {
            key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


class Demo:
    """One run; `result` is filled step by step, so that a failure still shows what worked."""

    def __init__(self, directory: Path, size: int) -> None:
        self.result = Result()
        self.progress = Progress(Transfer(size))
        self._watch: StatusWatch | None = None
        self._directory = directory
        self._deadline = time.monotonic() + TIME_LIMIT_S
        self._quarters_told = 0

    def read(self, name: str) -> control_pb2.DaemonStatus | None:
        """The latest status of a daemon, for the view."""
        return self._watch.latest(name) if self._watch is not None else None

    def run(self, view: View) -> None:
        """Do everything. Raises `DemoError`; every process has ended when this returns or raises."""
        with view, ExitStack() as stack:
            try:
                self._run(stack, view)
            except EXPECTED as error:
                self._tell(view, str(error).partition("\n")[0], is_failure=True)
                raise DemoError(str(error)) from error

    def _run(self, stack: ExitStack, view: View) -> None:
        digest, files, echo = self._start_services(stack, view)
        deployment = stack.enter_context(Deployment(self._directory))
        ports = configure(deployment, files, echo)
        self._tell(view, f"identities and configuration in {self._directory}")
        deployment.start()
        self._tell(view, f"started: {', '.join(deployment.daemons)}")
        watch = self._watch = stack.enter_context(
            StatusWatch({name: daemon.control_socket for name, daemon in deployment.daemons.items()})
        )
        self._await_registration(deployment, watch, view)
        self._download(view, ports[FILES], digest)
        self._echo(view, ports[ECHO])
        self._take_figures(deployment, watch)
        self.result.ok = True

    def _start_services(self, stack: ExitStack, view: View) -> tuple[str, Backend, Backend]:
        """The content's digest, the file server and the echo."""
        size = self.progress.transfer.size
        shared = self._directory / "files"
        shared.mkdir(parents=True)
        digest = write_random_file(shared / FILE_NAME, size)
        log_path = self._directory / "services.log"
        files = stack.enter_context(Backend(("files", str(shared)), log_path))
        echo = stack.enter_context(Backend(("echo",), log_path))
        self._tell(
            view,
            f"private services: {bytes_text(size)} over HTTP at {files.address}, UDP echo at {echo.address}",
        )
        return digest, files, echo

    def _await_registration(self, deployment: Deployment, watch: StatusWatch, view: View) -> None:
        for name in deployment.daemons:
            self._wait(deployment, watch, name, lambda status: status.is_ready, "ready")
        known = self._wait(
            deployment,
            watch,
            INTERMEDIATE,
            lambda status: (len(status.nodes), len(status.registered_services)) == (2, 2),
            "connector and agent registered",
        )
        self._tell(view, f"registered: {', '.join(registered_nodes(known))}")
        self._tell(view, f"services: {', '.join(registered_services(known))}")

    def _download(self, view: View, port: int, digest: str) -> None:
        transfer, result = self.progress.transfer, self.result

        def on_first_byte(seconds: float) -> None:
            result.time_to_first_byte_ms = seconds * 1e3
            self._tell(view, f"first byte through 127.0.0.1:{port} after {seconds * 1e3:.0f} ms, from cold")

        def on_progress(received: int) -> None:
            transfer.note(received, time.monotonic())
            result.bytes = received
            quarters = received * 4 // transfer.size
            if self._quarters_told < quarters < 4:
                self._quarters_told = quarters
                sizes = f"{bytes_text(received)} of {bytes_text(transfer.size)}"
                self._tell(view, f"{sizes}, {self._live_figures()}")

        done = download(port, f"/{FILE_NAME}", self._deadline, on_first_byte, on_progress)
        result.bytes, result.seconds = done.bytes_received, done.seconds
        result.bytes_per_second = done.bytes_per_second
        result.sha256_ok = done.sha256 == digest
        if not result.sha256_ok:
            raise TrafficError(f"SHA-256 differs: {done.sha256}, should be {digest}")
        self._tell(
            view,
            f"downloaded {bytes_text(done.bytes_received)} in {done.seconds:.1f} s, "
            f"{done.bytes_per_second / 1e6:.1f} MB/s; SHA-256 matches",
        )

    def _echo(self, view: View, port: int) -> None:
        echoes = echo_datagrams(port)
        self.result.udp_echo_ok = True
        repeated = sum(echo.sends - 1 for echo in echoes)
        sizes = ", ".join(str(echo.size) for echo in echoes)
        self._tell(
            view,
            f"UDP echo through 127.0.0.1:{port}: {sizes} bytes came back whole"
            + (f", {repeated} sent again" if repeated else ""),
        )

    def _take_figures(self, deployment: Deployment, watch: StatusWatch) -> None:
        """Path and RTT as the agent itself reports them."""
        status = self._wait(
            deployment,
            watch,
            AGENT,
            # The last report covers the whole download: sealed bytes are never fewer than payload.
            lambda status: bool(
                status.sessions
                and status.sessions[0].rtt_ms
                and status.sessions[0].bytes_received > self.result.bytes
            ),
            "figures of the session",
            FIGURES_LIMIT_S,
        )
        session = status.sessions[0]
        self.result.path = session.path
        self.result.rtt_ms = session.rtt_ms
        self.result.session_id = session.session_id.hex()

    def _live_figures(self) -> str:
        rate = f"{self.progress.transfer.rate / 1e6:.1f} MB/s"
        session = newest_session(self.read(AGENT))
        if session is None:
            return rate
        return f"{rate}, path {path_text(session)}, RTT {session.rtt_ms:.1f} ms"

    def _wait(
        self,
        deployment: Deployment,
        watch: StatusWatch,
        name: str,
        predicate: Callable[[control_pb2.DaemonStatus], bool],
        what: str,
        limit_s: float = READY_LIMIT_S,
    ) -> control_pb2.DaemonStatus:
        def check() -> None:
            for each in deployment.daemons:
                deployment.check_running(each, f"{name}: {what}")

        deadline = min(self._deadline, time.monotonic() + limit_s)
        return watch.wait_for(name, predicate, what, deadline, check)

    def _tell(self, view: View, text: str, *, is_failure: bool = False) -> None:
        step = Step(self.progress.elapsed_s, text, is_failure)
        self.progress.steps.append(step)
        view.step(step)


def configure(deployment: Deployment, files: Backend, echo: Backend) -> dict[str, int]:
    """Configure intermediate, connector and agent; returns the agent's local ports by service."""
    ports = {FILES: free_port(), ECHO: free_port(socket.SOCK_DGRAM)}
    deployment.add_intermediate(INTERMEDIATE)
    deployment.add_connector(
        CONNECTOR,
        [
            {"id": FILES, "protocol": "tcp", "backend": files.address},
            {"id": ECHO, "protocol": "udp", "backend": echo.address},
        ],
    )
    deployment.add_agent(
        AGENT,
        [
            {"id": FILES, "protocol": "tcp", "listen": f"127.0.0.1:{ports[FILES]}"},
            {"id": ECHO, "protocol": "udp", "listen": f"127.0.0.1:{ports[ECHO]}"},
        ],
    )
    return ports
