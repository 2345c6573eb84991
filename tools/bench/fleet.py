"""A fleet: simulated nodes by the hundred, in processes of their own, attached to one intermediate.

    with Fleet(deployment, "intermediate-1", 1000, carrier="grpc") as fleet:
        fleet.attach()
        fleet.wait_up(1000, timeout_s=120)

Each node has its own identity, its own UDP socket and, with carrier `grpc`, its own TCP connection with
mutual TLS, all on loopback. The nodes run the cores of real ones, with their back-off and their pings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tools.deployment import Deployment

Carrier = Literal["grpc", "quic"]

MAX_NODES_PER_PROCESS = 20_000
"""Addresses that `networks` of 250 hosts give, with room for the file descriptors of one process."""

POLL_INTERVAL_S = 0.1
END_LIMIT_S = 15.0


class FleetError(Exception):
    """The fleet did not get as far as expected; the message says how far."""


@dataclass(frozen=True, slots=True)
class FleetReport:
    """How the nodes are. `ready_at` are monotonic seconds, sorted, one for each node that is up."""

    attached: int = 0
    up: int = 0
    losses: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    ready_at: tuple[float, ...] = ()
    last_loss: str = ""

    def __add__(self, other: FleetReport) -> FleetReport:
        return FleetReport(
            self.attached + other.attached,
            self.up + other.up,
            self.losses + other.losses,
            self.cpu_s + other.cpu_s,
            tuple(sorted(self.ready_at + other.ready_at)),
            self.last_loss or other.last_loss,
        )


class Fleet:
    """Nodes attached to one intermediate; a context manager that ends its processes."""

    def __init__(
        self,
        deployment: Deployment,
        intermediate: str,
        count: int,
        *,
        carrier: Carrier = "grpc",
        networks: int = 8,
        processes: int = 1,
        prefix: str = "fleet",
        niceness: int = 0,
    ) -> None:
        """`networks` is over how many /24 the nodes' addresses are spread: an intermediate limits each.

        `niceness` is added to that of their processes: in the field, nodes do not use the processor of what
        they dial.
        """
        settings = deployment.daemons[intermediate].settings
        self.count = count
        self._shares = [count // processes + (number < count % processes) for number in range(processes)]
        self._order = {
            "pki": str(Path(settings["node"]["ca"]).parent),
            "intermediate_id": intermediate,
            "quic": settings["quic"]["listen"][0],
            "grpc": settings["grpc"]["listen"] if carrier == "grpc" else None,
            "networks": networks,
            "niceness": niceness,
        }
        self._prefix = prefix
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Start the processes; their nodes exist, and say nothing yet."""
        try:
            for number, count in enumerate(self._shares):
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tools.bench._fleet_process"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        process_group=0,
                    )
                )
                self._tell(
                    self._processes[-1], {**self._order, "count": count, "prefix": f"{self._prefix}{number}"}
                )
            for process in self._processes:
                _heard(process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def attach(self, over_s: float = 0.0) -> float:
        """Let every node attach, evenly over so many seconds; returns when that began (monotonic)."""
        return min(float(answer["at"]) for answer in self._ask({"command": "attach", "over_s": over_s}))

    def leave(self) -> None:
        """Let every node say goodbye; the processes end."""
        self._ask({"command": "leave"})
        for process in self._processes:
            process.wait(END_LIMIT_S)

    def report(self, *, since: float = 0.0, with_times: bool = False) -> FleetReport:
        """How the nodes are now; only those count as up that came up after `since` (monotonic seconds)."""
        total = FleetReport()
        for answer in self._ask({"command": "report", "since": since, "with_times": with_times}):
            total += FleetReport(
                answer["attached"],
                answer["up"],
                Counter(answer["losses"]),
                answer["cpu_s"],
                tuple(answer["ready_at"]),
                answer["last_loss"],
            )
        return total

    def wait_up(self, count: int, timeout_s: float, *, since: float = 0.0) -> FleetReport:
        """Wait until so many nodes came up after `since`; raises `FleetError` when time is up."""
        deadline = time.monotonic() + timeout_s
        while (report := self.report(since=since)).up < count:
            if time.monotonic() > deadline:
                raise FleetError(
                    f"after {timeout_s:g} s {report.up} of {count} nodes are up, {report.attached} attached; "
                    f"losses: {dict(report.losses)}; the last one: {report.last_loss}"
                )
            time.sleep(POLL_INTERVAL_S)
        return self.report(since=since, with_times=True)

    def _ask(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        for process in self._processes:
            self._tell(process, order)
        return [_heard(process) for process in self._processes]

    @staticmethod
    def _tell(process: subprocess.Popen[str], order: Mapping[str, Any]) -> None:
        if process.stdin is None:
            raise FleetError("the fleet was not started by us")
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    def _end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()


def _heard(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = "" if process.stdout is None else process.stdout.readline()
    if not line:
        raise FleetError(f"a process of the fleet ended with status {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer
