"""What /proc says of a process, and how the same figures of two moments compare."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools.deployment import Deployment

_TICKS_PER_S: Final = float(os.sysconf("SC_CLK_TCK"))
_RESET_PEAK: Final = "5"
"""Written to /proc/PID/clear_refs, it sets the peak of resident memory back to the present (proc(5))."""


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, user and system; the clock behind it has 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Resident memory."""
    return _status_bytes(pid, "VmRSS")


def peak_rss_bytes(pid: int) -> int:
    """Most resident memory since the start, or since `reset_peak`."""
    return _status_bytes(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Let the peak of resident memory start over from here."""
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def descriptors(pid: int) -> int:
    """Open file descriptors."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    """Threads."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def pids(deployment: Deployment) -> dict[str, int]:
    """The processes that run, by the name of their daemon."""
    return {
        name: daemon.process.pid
        for name, daemon in deployment.daemons.items()
        if daemon.process is not None and daemon.is_running
    }


def wait_until_bound(port: int, limit_s: float) -> None:
    """Wait until somebody has bound this UDP port; raises `TimeoutError`."""
    entry = f":{port:04X} "
    deadline = time.monotonic() + limit_s
    while entry not in Path("/proc/net/udp").read_text(encoding="ascii"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody bound UDP port {port}")
        time.sleep(0.02)


class CpuMeter:
    """Processor time of some processes from now on."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        """`processes` are PIDs by the name that results have them under."""
        self._processes = processes
        self._before = {name: cpu_s(pid) for name, pid in processes.items()}

    def seconds(self) -> dict[str, float]:
        """Processor seconds since the start of the meter, by name."""
        return {name: cpu_s(pid) - self._before[name] for name, pid in self._processes.items()}

    def us_per(self, count: float) -> dict[str, float]:
        """Processor microseconds for each of `count` things that happened meanwhile, and their `total`."""
        each = {name: seconds / count * 1e6 for name, seconds in self.seconds().items()}
        return {**{name: round(us, 1) for name, us in each.items()}, "total": round(sum(each.values()), 1)}


def _status_bytes(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ProcessLookupError(f"process {pid} has no {key}")
