"""What a client that stops reading a long download for a while does to the daemons' memory.

512 MB (2^20) are downloaded; after 64 MB the client reads nothing for 20 s, then goes on. Bounds: no daemon's
resident memory peaks more than 64 MB above what it was before, and the bytes are right.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tools.bench._client import download
from tools.bench._proc import peak_rss_bytes, reset_peak, rss_bytes
from tools.bench._site import PATHS, SessionPath, site

MIB: Final = 1 << 20
SIZE_BYTES: Final = 512 * MIB
STOP_AFTER_BYTES: Final = 64 * MIB
STOP_S: Final = 20.0
MAX_GROWTH_BYTES: Final = 64 * MIB


def run() -> dict[str, Any]:
    """MiB before, at the peak, and what lies between; raises `WrongBytesError` for a wrong download."""
    memory: dict[str, dict[str, float]] = {}
    downloads: dict[str, dict[str, Any]] = {}
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
            seconds, rows = _measure(path, Path(name))
        downloads[path] = {"megabytes": SIZE_BYTES / 1e6, "seconds": round(seconds, 1), "sha256": "right"}
        memory |= {f"{path}_{daemon}": row for daemon, row in rows.items()}
    return {
        "download": downloads,
        "memory": memory,
        "violations": [
            f"stalled_reader: {name} grew by {row['growth_mib']} MiB, allowed are {MAX_GROWTH_BYTES / MIB:g}"
            for name, row in memory.items()
            if row["growth_mib"] > MAX_GROWTH_BYTES / MIB
        ],
    }


def _measure(path: SessionPath, directory: Path) -> tuple[float, dict[str, dict[str, float]]]:
    with site(directory, path) as running:
        running.warm_up(path)
        processes = running.pids()
        before = {name: rss_bytes(pid) for name, pid in processes.items()}
        for pid in processes.values():
            reset_peak(pid)
        seconds = download(running.tcp_port, SIZE_BYTES, _Stop())
        peaks = {name: peak_rss_bytes(pid) for name, pid in processes.items()}
    return seconds, {
        name: {
            "before_mib": round(before[name] / MIB, 1),
            "peak_mib": round(peaks[name] / MIB, 1),
            "growth_mib": round((peaks[name] - before[name]) / MIB, 1),
            "peak_to_before": round(peaks[name] / before[name], 3),
        }
        for name in processes
    }


class _Stop:
    """Keeps the reader from reading, once."""

    def __init__(self) -> None:
        self._is_due = True

    def __call__(self, received: int) -> None:
        if self._is_due and received >= STOP_AFTER_BYTES:
            self._is_due = False
            time.sleep(STOP_S)
