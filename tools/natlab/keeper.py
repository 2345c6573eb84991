"""Holds the network namespaces of one lab; process 1 of a PID namespace of its own.

It starts what runs in the lab and opens sockets in it, on request over one unix socket. When that socket's
other end closes, because the owner closed the lab or died of anything, this process ends, the kernel kills
everything else in its PID namespace, and with the last process the namespaces, their links and rules are
gone. Nothing is left to be cleaned up, hence nothing can be forgotten.

Started by `namespaces.py` as a script of its own (`python -I keeper.py FD`), so it imports only the standard
library. A request is one JSON object in one packet, descriptors beside it; so is the answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

CLONE_NEWNET: Final = 0x40000000
MS_NOSUID_NODEV_NOEXEC: Final = 0x2 | 0x4 | 0x8
# Room for the environment of a daemon; larger texts travel as descriptors.
MAX_REQUEST_BYTES: Final = 1 << 17
MAX_DESCRIPTORS: Final = 8
# How long an orphan may stay a zombie.
REAP_INTERVAL_S: Final = 1.0
# What a shell ends with after a program that is not there, or that it may not run.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter(namespace: int) -> None:
    """Be in another network namespace from now on; raises `OSError`."""
    _check(_libc.setns(namespace, CLONE_NEWNET), "setns")


class Keeper:
    """The hosts of a lab as descriptors of their network namespaces, and the processes in them."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._hosts: dict[str, int] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._operations: dict[str, Callable[..., tuple[dict[str, Any], list[int]]]] = {
            "add_host": self._add_host,
            "namespace": self._namespace,
            "spawn": self._spawn,
            "status": self._status,
            "socket": self._socket,
            "sysctl": self._sysctl,
        }

    def serve(self) -> None:
        """Answer requests until the owner is gone."""
        self._channel.settimeout(REAP_INTERVAL_S)
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._channel, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
            except TimeoutError:
                self._reap_orphans()
                continue
            if not packet:
                return
            self._answer(json.loads(packet), descriptors)
            self._reap_orphans()

    def _answer(self, request: dict[str, Any], descriptors: list[int]) -> None:
        operation = self._operations[request.pop("operation")]
        outgoing: list[int] = []
        try:
            reply, outgoing = operation(descriptors=descriptors, **request)
        except (OSError, subprocess.SubprocessError) as error:
            reply = {"error": str(error)}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        socket.send_fds(self._channel, [json.dumps(reply).encode()], outgoing)
        for descriptor in outgoing:
            os.close(descriptor)

    def _add_host(self, *, name: str, descriptors: list[int]) -> tuple[dict[str, Any], list[int]]:
        del descriptors
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            self._hosts[name] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            enter(self._home)
        return {}, []

    def _namespace(self, *, host: str, descriptors: list[int]) -> tuple[dict[str, Any], list[int]]:
        del descriptors
        return {}, [os.dup(self._hosts[host])]

    def _spawn(
        self,
        *,
        host: str,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
        namespaces: list[str],
        descriptors: list[int],
    ) -> tuple[dict[str, Any], list[int]]:
        """Start a process; `{name}` in an argument becomes a path of that host's namespace, if listed."""
        inherited = {name: self._hosts[name] for name in namespaces}
        paths = {f"{{{name}}}": f"/proc/self/fd/{number}" for name, number in inherited.items()}
        stdin, stdout, stderr = descriptors
        try:
            process = subprocess.Popen(
                [paths.get(word, word) for word in argv],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                pass_fds=tuple(inherited.values()),
                start_new_session=True,
                preexec_fn=lambda: enter(self._hosts[host]),  # noqa: PLW1509 - there is one thread
            )
        except OSError as error:
            if error.filename != argv[0]:  # that of the directory it should have run in, say
                raise
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            return {"error": f"{argv[0]}: {error.strerror}", "exit_status": status}, []
        self._processes[process.pid] = process
        return {"pid": process.pid}, [os.pidfd_open(process.pid)]

    def _status(self, *, pid: int, descriptors: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The exit status of a process that has ended; asked once."""
        del descriptors
        return {"status": self._processes.pop(pid).wait()}, []

    def _socket(
        self, *, host: str, family: int, kind: int, descriptors: list[int]
    ) -> tuple[dict[str, Any], list[int]]:
        del descriptors
        enter(self._hosts[host])
        try:
            return {}, [socket.socket(family, kind).detach()]
        finally:
            enter(self._home)

    def _sysctl(
        self, *, host: str, values: dict[str, str], descriptors: list[int]
    ) -> tuple[dict[str, Any], list[int]]:
        """Write below /proc/sys, which shows the namespace of whoever opens it."""
        del descriptors
        enter(self._hosts[host])
        try:
            for name, value in values.items():
                Path("/proc/sys", name).write_text(value, encoding="ascii")
        finally:
            enter(self._home)
        return {}, []

    def _reap_orphans(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # Those that the owner knows keep their status until it asks.
            if ended is None or ended.si_pid in self._processes:
                return
            os.waitpid(ended.si_pid, 0)


def main() -> None:
    """Entry point of the script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A /proc of our own shows only the lab. Where it is refused, the outer one serves as well.
    _libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID_NODEV_NOEXEC, None)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        channel.set_inheritable(False)
        Keeper(channel).serve()


if __name__ == "__main__":
    main()
