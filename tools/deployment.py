"""A whole deployment of real processes on loopback: identities, configuration files, daemons, and their end.

Used by the demo and by the end-to-end tests. Everything lives in one directory: `pki/`, one YAML and one log
file per daemon. Daemons bind to loopback only; `tools/natlab/deployment.py` has them on the hosts of a lab.
The directory's path has to be short: control sockets are below it, and their names have at most 107 bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import grpc
import yaml

from ztna.access.identity import Role
from ztna.cli.status_json import as_plain
from ztna.pki.files import CA_CERTIFICATE, CRL, PkiDirectory
from ztna.v1 import control_pb2, control_pb2_grpc

POLL_INTERVAL_S = 0.05
STOP_LIMIT_S = 6.0
STATUS_LIMIT_S = 2.0
WAIT_LIMIT_S = 60.0
"""A start takes a second of processor time, which on a machine with other work may be half a minute."""
MAX_EXCEPTION_LINES = 6
# The control socket is a file: no proxy stands before it, whatever the environment says of HTTP.
# Daemons take a moment to open it: look again soon.
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)

LOWEST_PORT = 10_000
PORTS_PER_PROCESS = 500


class DeploymentError(Exception):
    """A daemon did not do what was expected; the message ends with the tail of its log."""


class Process(Protocol):
    """What a deployment needs of a process, wherever that runs: a part of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its number, as seen from here."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, once somebody saw it end."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "127.0.0.1") -> int:
    """A port of this host that is free, and was not handed out for hundreds of calls.

    Neither does the kernel give it to whoever asks for any port, nor does another process get it from here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in itertools.islice(_own_ports(), PORTS_PER_PROCESS):
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            return found
    raise OSError(f"no port of {host} is free")


@cache
def _own_ports() -> Iterator[int]:
    """Ports of this process alone, round and round: tests run in several processes at once.

    A port is free again between its choice and the start of a daemon, and while a daemon is restarted; then
    it must not be another process's. They are below the kernel's range for outgoing connections and for
    whoever binds to port 0. What claims them is an abstract unix socket, which ends with the process.
    """
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    for first in range(LOWEST_PORT, int(limits.split()[0]) - PORTS_PER_PROCESS, PORTS_PER_PROCESS):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0ztna-ports-{first}")
        except OSError:
            claim.close()
        else:
            claim.detach()  # open for as long as this process lives
            return itertools.cycle(range(first, first + PORTS_PER_PROCESS))
    # None is left, and the kernel knows best.
    return itertools.repeat(0)


def control_channel(socket_path: Path) -> grpc.Channel:
    """A channel to the control socket of a daemon."""
    return grpc.insecure_channel(f"unix:{socket_path}", options=CHANNEL_OPTIONS)


def log_tail(path: Path, lines: int) -> str:
    """The last lines of a daemon's log, made readable: JSON as `time level event key=value`."""
    if not path.exists():
        return "(no log)"
    content = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(_readable(line) for line in content)


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
        exception = entry.pop("exception", "").splitlines()[-MAX_EXCEPTION_LINES:]
        head = (entry.pop("timestamp")[11:23], f"{entry.pop('level'):<7}", entry.pop("event"))
    except (ValueError, AttributeError, KeyError, TypeError):
        return line  # what the interpreter itself says
    facts = (f"{key}={value}" for key, value in entry.items() if key not in {"daemon", "node"})
    return "\n    ".join([" ".join([*head, *facts]), *exception])


@dataclass
class Daemon:
    """One configured daemon and, while it runs, its process."""

    kind: str
    id: str
    config_path: Path
    log_path: Path
    settings: dict[str, Any]
    process: Process | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    # Arguments of the interpreter: a benchmark starts its daemons under a profiler, say.
    program: tuple[str, ...] = ("-m", "ztna.cli.main")

    @property
    def control_socket(self) -> Path:
        """Path of the daemon's control socket."""
        return Path(self.settings["control"]["socket"])

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def log_tail(self, lines: int = 25) -> str:
        """The end of the log, for error messages."""
        return log_tail(self.log_path, lines)


class Deployment:
    """A directory with a CA and daemons; a context manager that ends every process it started."""

    def __init__(self, directory: Path, *, log_level: str = "info") -> None:
        self.directory = directory
        self.daemons: dict[str, Daemon] = {}
        self._log_level = log_level
        self._pki = PkiDirectory(directory / "pki")
        directory.mkdir(parents=True, exist_ok=True)
        self._pki.init("demo.test", time.time())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop_all()

    def ztna(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the `ztna` command and capture what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "ztna.cli.main", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise DeploymentError(f"ztna {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
        return done

    def add_intermediate(self, name: str = "intermediate-1", **extra: Any) -> Daemon:
        """Configure an intermediate on free loopback ports."""
        settings = {
            "quic": {"listen": [f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"]},
            "grpc": {"listen": f"127.0.0.1:{free_port()}"},
            "stun": {"alternate_port": free_port(socket.SOCK_DGRAM)},
            "policy": [{"agents": ["*"], "services": ["*"]}],
            "offers": [{"connectors": ["*"], "services": ["*"]}],
            **extra,
        }
        return self._add("intermediate", name, settings)

    def add_connector(self, name: str, services: list[dict[str, Any]], **extra: Any) -> Daemon:
        """Configure a connector that attaches to every intermediate configured so far."""
        settings = {
            "udp": {"bind": ["127.0.0.1:0"]},
            "intermediates": self._intermediates(),
            "services": services,
            **extra,
        }
        return self._add("connector", name, settings)

    def add_agent(self, name: str, services: list[dict[str, Any]], **extra: Any) -> Daemon:
        """Configure an agent that knows every intermediate configured so far."""
        settings = {
            "udp": {"bind": ["127.0.0.1:0"]},
            "intermediates": self._intermediates(),
            "services": services,
            **extra,
        }
        return self._add("agent", name, settings)

    def start(self, *names: str) -> None:
        """Start daemons (all that are configured and not running, if none is named)."""
        for name in names or tuple(n for n, d in self.daemons.items() if not d.is_running):
            daemon = self.daemons[name]
            with daemon.log_path.open("ab") as log:
                command = [sys.executable, *daemon.program, daemon.kind, "-c", str(daemon.config_path)]
                daemon.process = self._launch(daemon, command, {**os.environ, **daemon.environment}, log)

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        process = self.daemons[name].process
        if process is None:
            raise DeploymentError(f"{name} was never started")
        process.send_signal(signal_number)
        try:
            return process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DeploymentError(
                f"{name} did not end within {STOP_LIMIT_S} s of signal {signal_number}\n"
                f"{self.daemons[name].log_tail()}"
            ) from None

    def stop_all(self) -> None:
        """End every process that is still there: politely first, then not."""
        running = [daemon.process for daemon in self.daemons.values() if daemon.process and daemon.is_running]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_S
        try:
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, deadline - time.monotonic()))
        finally:  # also when somebody is impatient and interrupts the wait
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def status(self, name: str) -> dict[str, Any] | None:
        """What `ztna status --json` says, None while the daemon does not answer."""
        done = self.ztna("status", "--json", "--socket", str(self.daemons[name].control_socket), check=False)
        if done.returncode != 0:
            return None
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def daemon_status(self, name: str) -> control_pb2.DaemonStatus | None:
        """What the control socket says, None while the daemon does not answer."""
        socket_path = self.daemons[name].control_socket
        if not socket_path.exists():
            return None
        with control_channel(socket_path) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            try:
                return stub.GetStatus(control_pb2.GetStatusRequest(), timeout=STATUS_LIMIT_S).status
            except grpc.RpcError:
                return None

    def check_running(self, name: str, waiting_for: str) -> None:
        """Raise `DeploymentError` when a daemon has ended."""
        daemon = self.daemons[name]
        if not daemon.is_running:
            code = daemon.process.returncode if daemon.process else None
            raise DeploymentError(f"{name} ended (exit {code}) before: {waiting_for}\n{daemon.log_tail()}")

    def wait_for(
        self,
        name: str,
        predicate: Callable[[dict[str, Any]], bool],
        what: str,
        timeout_s: float = WAIT_LIMIT_S,
    ) -> dict[str, Any]:
        """Look at the status until it satisfies `predicate`; raises `DeploymentError` when time is up."""
        deadline = time.monotonic() + timeout_s
        status: dict[str, Any] | None = None
        while time.monotonic() < deadline:
            self.check_running(name, what)
            found = self.daemon_status(name)
            # As `status` has it, whose process would cost a second of processor time for each look.
            status = None if found is None else as_plain(found)
            if status is not None and predicate(status):
                return status
            time.sleep(POLL_INTERVAL_S)
        raise DeploymentError(
            f"{name}: not within {timeout_s} s: {what}\nlast status: {json.dumps(status)}\n"
            f"{self.daemons[name].log_tail()}"
        )

    def wait_ready(self, *names: str, timeout_s: float = WAIT_LIMIT_S) -> None:
        """Wait until daemons (all, if none is named) report that they are ready."""
        for name in names or tuple(self.daemons):
            deadline = time.monotonic() + timeout_s
            reason = "its control socket does not answer"
            while True:
                self.check_running(name, "ready")
                status = self.daemon_status(name)
                if status is not None:
                    if status.is_ready:
                        break
                    reason = status.not_ready_reason
                if time.monotonic() >= deadline:
                    raise DeploymentError(
                        f"{name} is not ready after {timeout_s} s: {reason}\n{self.daemons[name].log_tail()}"
                    )
                time.sleep(POLL_INTERVAL_S)

    def _launch(
        self, daemon: Daemon, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        """Start the process of a daemon; where, is for a subclass to say."""
        del daemon
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            # Ctrl-C in a terminal is for us; the daemons get one SIGTERM, and drain.
            process_group=0,
        )

    def _intermediates(self) -> list[dict[str, str]]:
        return [
            {
                "id": daemon.id,
                "quic": daemon.settings["quic"]["listen"][0],
                "grpc": daemon.settings["grpc"]["listen"],
            }
            for daemon in self.daemons.values()
            if daemon.kind == "intermediate"
        ]

    def _add(self, kind: str, name: str, settings: dict[str, Any]) -> Daemon:
        out = self.directory / name
        self._pki.issue(Role(kind), name, time.time(), out=out)
        complete = {
            "kind": kind,
            "node": {
                "id": name,
                "cert": str(out / f"{name}.crt"),
                "key": str(out / f"{name}.key"),
                "ca": str(self._pki.path / CA_CERTIFICATE),
                # The CA's own copy: what `ztna pki revoke` writes is there when a daemon starts again.
                "crl": str(self._pki.path / CRL),
            },
            "log": {"level": self._log_level, "format": "json"},
            "metrics": {"listen": f"127.0.0.1:{free_port()}"},
            "control": {"socket": str(self.directory / name / "control" / "ztna.sock")},
            **settings,
        }
        config_path = self.directory / f"{name}.yaml"
        config_path.write_text(yaml.safe_dump(complete, sort_keys=False), encoding="utf-8")
        daemon = Daemon(kind, name, config_path, self.directory / f"{name}.log", complete)
        self.daemons[name] = daemon
        return daemon
