"""Where the time of a download goes: the top functions of each daemon, by cProfile.

`self_share` is the share of a function's own time in that of the whole process, `us_per_packet` the same
for one packet of data. A profile makes small functions look dearer than they are: take the order from here,
and the sums from `download`.
"""

from __future__ import annotations

import pstats
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from tools.bench._client import download
from tools.bench._site import AGENT, CONNECTOR, INTERMEDIATE, PATHS, SessionPath, site
from tools.bench.download import PACKET_BYTES

SIZE_BYTES: Final = 8 << 20
TOP: Final = 15
DUMP_LIMIT_S: Final = 30.0
_DAEMONS: Final = (AGENT, INTERMEDIATE, CONNECTOR)
_LAYERS: Final = ("ztna", "actors", "aioquic", "pykka", "asyncio")


def run() -> dict[str, Any]:
    """For each path the share of each layer, and a table per daemon."""
    results: dict[str, Any] = {}
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
            results[path] = _measure(path, Path(name))
    return results


def _measure(path: SessionPath, directory: Path) -> dict[str, Any]:
    files = {name: directory / f"{name}.profile" for name in _DAEMONS}
    programs = {name: ("-m", "tools.bench._profiled", str(file)) for name, file in files.items()}
    with site(directory / "site", path, programs=programs) as running:
        running.warm_up(path)
        processes = [daemon.process for daemon in running.deployment.daemons.values() if daemon.process]
        for process in processes:
            process.send_signal(signal.SIGUSR2)
        download(running.tcp_port, SIZE_BYTES)
        for process in processes:
            process.send_signal(signal.SIGUSR2)
        _wait_for(files)
    stats = {name: pstats.Stats(str(file)) for name, file in files.items()}
    return {
        "layers": {name: layers(each) for name, each in stats.items()},
        **{name: top_functions(each, TOP) for name, each in stats.items()},
    }


def _wait_for(files: dict[str, Path]) -> None:
    deadline = time.monotonic() + DUMP_LIMIT_S
    while not all(file.exists() for file in files.values()):
        if time.monotonic() > deadline:
            raise TimeoutError("a daemon did not write its profile")
        time.sleep(0.05)


def top_functions(stats: pstats.Stats, count: int) -> dict[str, dict[str, float]]:
    """The functions that took most processor time themselves."""
    rows = sorted(_rows(stats), reverse=True)
    total_s = sum(own_s for own_s, _, _ in rows)
    packets = SIZE_BYTES / PACKET_BYTES
    return {
        name: {
            "self_share": round(own_s / total_s, 3),
            "us_per_packet": round(own_s / packets * 1e6, 1),
            "calls_per_packet": round(calls / packets, 2),
        }
        for own_s, calls, name in rows[:count]
    }


def layers(stats: pstats.Stats) -> dict[str, float]:
    """Shares of processor time by package; what is written in C counts under `builtins`."""
    own_s: defaultdict[str, float] = defaultdict(float)
    for seconds, _, name in _rows(stats):
        module = name.partition(":")[0]
        layer = next((each for each in _LAYERS if module == each or module.startswith(f"{each}.")), None)
        own_s[layer or ("builtins" if ":" not in name else "other")] += seconds
    total_s = sum(own_s.values())
    by_share = sorted(own_s.items(), key=lambda item: -item[1])
    return {layer: round(seconds / total_s, 3) for layer, seconds in by_share}


def _rows(stats: pstats.Stats) -> list[tuple[float, int, str]]:
    profile = stats.stats  # type: ignore[attr-defined] # no stub has it
    return [(own_s, calls, _name(*function)) for function, (_, calls, own_s, _, _) in profile.items()]


def _name(file: str, line: int, function: str) -> str:
    if file == "~":
        return function.strip("<>").removeprefix("built-in method ").removeprefix("method ")
    parts = Path(file).with_suffix("").parts
    start = next((number for number, part in enumerate(parts) if part in _LAYERS), len(parts) - 1)
    return f"{'.'.join(parts[start:])}:{function}:{line}"
