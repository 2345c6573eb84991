"""Mixed load for a while, and what grows meanwhile: `python -m tools.bench.soak [--minutes M] [--json]`.

One session carries downloads, uploads, many short connections and UDP echoes; a second agent's session ends
whenever it is idle and is opened again; a third agent is started and stopped; every daemon is reloaded all
the time. Each daemon is sampled: resident memory, descriptors and threads (/proc), asyncio tasks, actors,
connection IDs and objects (from inside), inbox depths, sessions and connections (/metrics).

Growth is the median of the last third minus that of the first third, after a warm-up of a fifth of the time.
What may grow is said by `ALLOWED`; more of it, or anything that went wrong, ends in status 1.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.bench import _proc
from tools.bench.__main__ import end_on_sigterm, machine
from tools.bench._figures import lines
from tools.bench._mixed_load import MixedLoad
from tools.bench._observed import observe
from tools.bench._site import AGENT, CONNECTOR, INTERMEDIATE, listeners, site
from tools.deployment import Daemon, Deployment, free_port

MINUTES: Final = 15.0
WARM_UP_SHARE: Final = 0.2
SAMPLE_INTERVAL_S: Final = 5.0
METRICS_LIMIT_S: Final = 10.0
MIN_SAMPLES: Final = 6
OBJECT_SAMPLES: Final = 6
"""Times that objects are counted, after the warm-up and before the end: only there are daemons made to
collect their garbage, so that memory in between is what they need by themselves."""

IDLE_AGENT: Final = "agent-idle"
RESTARTED_AGENT: Final = "agent-restarted"
OBSERVED: Final = (INTERMEDIATE, CONNECTOR, AGENT, IDLE_AGENT)

FLOW_IDLE_S: Final = 10
"""Flows of the load end during the soak, not after it."""
SESSION_IDLE_S: Final = 5
"""Of the second agent: shorter than the pause between two uses."""

MAX_LOST_SHARE: Final = 0.01
"""Of the UDP echoes: nothing on loopback loses any but a machine that is busy for seconds."""

MIB: Final = float(1 << 20)
_GAUGE: Final = re.compile(r"^ztna_(\w+?)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a figure may grow: `fixed`, and `share` of what it was, and `per_hour`."""

    fixed: float
    share: float = 0.0
    per_hour: float = 0.0

    def over(self, first: float, hours: float) -> float:
        """The most that counts as no growth after so many hours."""
        return self.fixed + self.share * first + self.per_hour * hours


ALLOWED: Final[Mapping[str, Allowance]] = {
    # Of what the allocator holds some percent is chance.
    "rss_mib": Allowance(2.0, share=0.02, per_hour=8.0),
    "tasks": Allowance(3.0),
    "actors": Allowance(3.0),
    # With the connections that happen to be open.
    "descriptors": Allowance(5.0),
    "threads": Allowance(1.0),
    # 8 of each connection, and 3 agents come and go.
    "connection_ids": Allowance(24.0),
    "inbox_depth": Allowance(20.0),
    "objects": Allowance(1500.0, share=0.01),
}


def run(minutes: float, directory: Path | None = None) -> dict[str, Any]:
    """Do it, in `directory` or one that goes with the end; times in minutes, memory in MiB."""
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztna-soak-")))
        directory.mkdir(exist_ok=True)
        sockets = {daemon: str(directory / f"{daemon}.observed") for daemon in OBSERVED}
        programs = {daemon: ("-m", "tools.bench._observed", path) for daemon, path in sockets.items()}
        idle_port, restarted_port = free_port(), free_port()
        limits = {"limits": {"flow_idle_s": FLOW_IDLE_S}}
        with site(
            directory / "site",
            programs=programs,
            extra={CONNECTOR: limits, AGENT: limits},
            agents={
                IDLE_AGENT: {
                    "services": listeners(idle_port, free_port()),
                    "session": {"idle_timeout_s": SESSION_IDLE_S},
                }
            },
        ) as running:
            running.deployment.add_agent(RESTARTED_AGENT, listeners(restarted_port, free_port()))
            running.warm_up("relay")
            with MixedLoad(running, idle_port, (RESTARTED_AGENT, restarted_port)) as load:
                samples = _sample(running.deployment, sockets, minutes * 60)
    measured_hours = minutes * (1 - WARM_UP_SHARE) / 60
    daemons = {daemon: growth(rows, measured_hours) for daemon, rows in samples.items()}
    return {
        "minutes": minutes,
        "samples": len(samples[AGENT]["rss_mib"]),
        "done": dict(load.done),
        "daemons": daemons,
        "violations": [
            *violations(daemons),
            *lost_echoes(load.done["udp_echo_lost"], load.done["udp_echo"]),
            *(f"soak: {kind} failed {count} times" for kind, count in load.failed.items()),
            *(f"soak: {failure}" for failure in load.failures),
        ],
    }


def growth(series: Mapping[str, Sequence[float]], measured_hours: float) -> dict[str, dict[str, float]]:
    """Of each series the medians of the first and the last third after the warm-up, and what is allowed."""
    rows = {}
    for name, samples in series.items():
        rest = samples[int(len(samples) * WARM_UP_SHARE) :]
        third = max(1, len(rest) // 3)
        first, last = statistics.median(rest[:third]), statistics.median(rest[-third:])
        rows[name] = {
            "first": round(first, 1),
            "last": round(last, 1),
            "growth": round(last - first, 1),
            "max": round(max(samples), 1),
        }
        if name in ALLOWED:
            # From the middle of the first third to that of the last.
            rows[name]["allowed"] = round(ALLOWED[name].over(first, measured_hours * 2 / 3), 1)
    return rows


def violations(daemons: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """What grew by more than it may."""
    return [
        f"soak: {name} of {daemon} grew by {row['growth']}, allowed are {row['allowed']}"
        for daemon, rows in daemons.items()
        for name, row in rows.items()
        if row["growth"] > row.get("allowed", row["growth"])
    ]


def lost_echoes(lost: int, total: int) -> list[str]:
    """What to say of echoes that did not come back."""
    return [f"soak: {lost} of {total} echoes were lost"] if lost > total * MAX_LOST_SHARE else []


def _sample(
    deployment: Deployment, sockets: Mapping[str, str], seconds: float
) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in sockets}
    started = time.monotonic()
    interval_s = min(SAMPLE_INTERVAL_S, seconds / MIN_SAMPLES)
    counting_s = OBJECT_SAMPLES * interval_s
    while (elapsed_s := time.monotonic() - started) < seconds:
        is_counted = (
            0 <= elapsed_s - WARM_UP_SHARE * seconds < counting_s or elapsed_s >= seconds - counting_s
        )
        time.sleep(interval_s)
        for name, path in sockets.items():
            deployment.check_running(name, "the end of the soak")
            for key, value in _figures(deployment.daemons[name], path, objects=is_counted).items():
                samples[name][key].append(value)
    return samples


def _figures(daemon: Daemon, socket_path: str, *, objects: bool) -> dict[str, float]:
    assert daemon.process is not None  # noqa: S101 - it runs
    pid = daemon.process.pid
    figures: dict[str, float] = {
        "rss_mib": _proc.rss_bytes(pid) / MIB,
        "descriptors": _proc.descriptors(pid),
        "threads": _proc.threads(pid),
        **observe(socket_path, objects=objects),
        "inbox_depth": 0.0,
    }
    url = f"http://{daemon.settings['metrics']['listen']}/metrics"
    with urllib.request.urlopen(url, timeout=METRICS_LIMIT_S) as answer:
        text = answer.read().decode()
    for name, value in _GAUGE.findall(text):
        if name == "actor_inbox_depth":
            figures["inbox_depth"] += float(value)
        elif name in {"sessions", "active_connections", "attached_nodes"}:
            figures[name] = float(value)
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.soak", description="Look for growth under load."
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long (default: {MINUTES:g})")
    parser.add_argument("--directory", type=Path, help="keep logs and configuration here; a short path")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    end_on_sigterm()
    results = {"machine": machine(), "soak": run(options.minutes, options.directory)}
    print(json.dumps(results) if options.json else "\n".join(lines(results)))
    for text in results["soak"]["violations"]:
        print(f"violated: {text}", file=sys.stderr)
    return 1 if results["soak"]["violations"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
