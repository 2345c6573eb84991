"""A process that another process started for us: the part of `subprocess.Popen` that is needed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO


class ForeignProcess:
    """A child of somebody else, held by its pidfd. Signals go to this very process, and to no later one.

    `pid` is its number as seen from here, also where it lives in a PID namespace of its own.
    """

    def __init__(
        self,
        descriptor: int,
        argv: Sequence[str],
        status: Callable[[], int],
        stdout: IO[bytes] | None = None,
    ) -> None:
        """Take over a pidfd; `status` has its parent say how it ended, once."""
        self.args = list(argv)
        self.stdout = stdout
        self.returncode: int | None = None
        self._ask_parent = status
        self._descriptor = descriptor
        self._lock = threading.Lock()
        # Descriptors of processes that nobody waited for.
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self.pid = _process_id(descriptor)

    def poll(self) -> int | None:
        """The exit status, None while it runs; minus the signal's number after a signal."""
        return self._status(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises `subprocess.TimeoutExpired` when it does not come in time (seconds)."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, signal_number: int) -> None:
        """Send a signal; harmless when the process has ended."""
        with self._lock:
            if self.returncode is None:
                try:
                    signal.pidfd_send_signal(self._descriptor, signal_number)
                except ProcessLookupError:
                    return

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout_s: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        if not poller.poll(None if timeout_s is None else timeout_s * 1e3):
            return None
        with self._lock:
            if self.returncode is None:
                self.returncode = self._ask_parent()
                self._finalizer()
        return self.returncode


def _process_id(descriptor: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise OSError("the kernel does not tell the number of a process")
