"""Daemons that start at once: a process that has imported what they need forks one for each start.

An interpreter of its own spends a second of processor time on imports, and the tests start hundreds of
daemons. What runs after the fork is the `ztna` command from its beginning, with the same arguments,
environment, descriptors and namespace. That it starts from nothing, too, is seen wherever a test wants
another environment or program, and by the tests of the demo, the service manager and the benchmarks.

Run as a script (`python -m tests.nursery FD`) it serves the unix socket FD: a request is one JSON object in
one packet, descriptors beside it; so is the answer. When the other end closes, its children are killed.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import IO, Any, Final

from tools.deployment import Daemon, Deployment, Process
from tools.natlab import keeper
from tools.natlab.deployment import LabDeployment
from tools.natlab.foreign_process import ForeignProcess

MAX_PACKET_BYTES: Final = 1 << 16
# What a daemon imports in the course of its start.
MODULES: Final = ("ztna.cli.main", "ztna.cli.run", "actors.daemon", "actors.topology", "actors.io_asyncio")
ANSWER_LIMIT_S: Final = 60.0


class Nursery:
    """This process's end."""

    def __init__(self) -> None:
        """Start the other end; it answers once it has imported everything."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(ANSWER_LIMIT_S)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # gRPC reads it when it is loaded; `ztna agent` sets it before that.
                env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
                # Ctrl-C in a terminal is for the owner, whose end is the end of this one, too. Not another
                # session: Linux shares processors between sessions before it looks at priorities within
                # them (sched(7), autogroup), and seeds of the simulation stand back for daemons.
                process_group=0,
            )

    def start(
        self,
        arguments: Sequence[str],
        log: IO[bytes],
        *,
        environment: Mapping[str, str] = os.environ,
        namespace: int | None = None,
    ) -> ForeignProcess:
        """Run `ztna` with these arguments, in another network namespace if one is given."""
        descriptors = [log.fileno(), *([] if namespace is None else [namespace])]
        answer, (descriptor,) = self._ask(
            descriptors,
            start=list(arguments),
            environment=dict(environment),
            limits=resource.getrlimit(resource.RLIMIT_NOFILE),  # inherited, as it were
        )
        return ForeignProcess(descriptor, ["ztna", *arguments], partial(self._status, answer["pid"]))

    def close(self) -> None:
        """End the other end, and all that it started."""
        self._channel.close()
        self._process.wait()

    def _status(self, pid: int) -> int:
        answer, _ = self._ask([], status=pid)
        status: int = answer["status"]
        return status

    def _ask(self, descriptors: list[int], **request: Any) -> tuple[dict[str, Any], list[int]]:
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            packet, incoming, _, _ = socket.recv_fds(self._channel, MAX_PACKET_BYTES, 1)
        if not packet:
            raise EOFError("the nursery is gone")
        for descriptor in incoming:
            os.set_inheritable(descriptor, False)
        return json.loads(packet), incoming


@cache
def nursery() -> Nursery:
    """The one of this process, which ends with it."""
    made = Nursery()
    atexit.register(made.close)
    return made


def _is_plain(daemon: Daemon) -> bool:
    return not daemon.environment and daemon.program == Daemon.program


def _arguments(daemon: Daemon) -> list[str]:
    return [daemon.kind, "-c", str(daemon.config_path)]


class QuickDeployment(Deployment):
    """A deployment whose daemons start at once."""

    def _launch(
        self, daemon: Daemon, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        if not _is_plain(daemon):
            return super()._launch(daemon, command, environment, log)
        return nursery().start(_arguments(daemon), log, environment=environment)


class QuickLabDeployment(LabDeployment):
    """The same in a lab, for root; nobody else may enter its namespaces from outside."""

    def _launch(
        self, daemon: Daemon, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        if not _is_plain(daemon) or os.geteuid() != 0:
            return super()._launch(daemon, command, environment, log)
        namespace = self.lab.namespace(self.host_of(daemon.id))
        try:
            return nursery().start(_arguments(daemon), log, environment=environment, namespace=namespace)
        finally:
            os.close(namespace)


# The other end


class _Born(Exception):  # noqa: N818 - no error
    """This is the child; `arguments` is what it has to do."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__()
        self.arguments = arguments


def _serve(channel: socket.socket) -> None:
    """Answer until the owner is gone, and kill what is left then. Raises `_Born` in each child."""
    children: set[int] = set()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(channel, MAX_PACKET_BYTES, 2)
        if not packet:
            break
        request = json.loads(packet)
        if "status" in request:
            children.discard(request["status"])
            _, status = os.waitpid(request["status"], 0)
            channel.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            _settle(channel, *descriptors)
            resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["limits"]))
            os.environ.clear()
            os.environ.update(request["environment"])
            raise _Born(request["start"])
        children.add(pid)
        held = os.pidfd_open(pid)
        socket.send_fds(channel, [json.dumps({"pid": pid}).encode()], [held])
        for descriptor in (held, *descriptors):
            os.close(descriptor)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _settle(channel: socket.socket, log: int, namespace: int | None = None) -> None:
    """Be a process with a group and a log of its own, and with nothing of its parent's."""
    channel.close()
    os.setpgid(0, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if namespace is not None:
        keeper.enter(namespace)
        os.close(namespace)


def main() -> None:
    """Entry point of the script, and of every daemon that it starts."""
    for module in MODULES:
        importlib.import_module(module)
    # Otherwise the collector would touch, and so copy, all of it in each child.
    gc.collect()
    gc.freeze()
    try:
        with socket.socket(fileno=int(sys.argv[1])) as channel:
            channel.set_inheritable(False)
            _serve(channel)
    except _Born as child:
        arguments = child.arguments
    else:
        return
    sys.argv = ["ztna", *arguments]
    sys.modules["ztna.cli.main"].main()


if __name__ == "__main__":
    main()
