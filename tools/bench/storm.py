"""What other nodes' sessions feel when a thousand nodes dial an intermediate in the same moment.

An agent's UDP echoes go over the relay, one after the other: first while nobody else is there, then from the
moment in which all nodes of a fleet (`tools.bench.fleet`) dial until the last of them is up. The fleet's own
processor time is not the intermediate's, so its processes stand back for the daemons' (nice 10); they share
memory and caches all the same.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, get_args

from tools.bench._client import datagram_client, round_trip_ms
from tools.bench._figures import percentiles_ms
from tools.bench._proc import cpu_s
from tools.bench._site import INTERMEDIATE, Site, site
from tools.bench.fleet import Carrier, Fleet

NODES: Final = 1000
CALM_S: Final = 15.0
INTERVAL_S: Final = 0.02
LIMIT_S: Final = 300.0
NICENESS: Final = 10
MAX_ADDED_P95_MS: Final = 80.0
"""Two bursts of handshakes, one on the way there and one on the way back (`ztna.quic.admission`)."""


def run() -> dict[str, Any]:
    """One table per carrier of signaling: round trips in the calm and in the storm."""
    results: dict[str, Any] = {"nodes": NODES}
    violations: list[str] = []
    for carrier in get_args(Carrier):
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, site(Path(name), "relay") as running:
            running.warm_up("relay")
            results[carrier] = rows = _measure(running, carrier)
        added = rows["storm"]["p95_ms"] - rows["calm"]["p95_ms"]
        if rows["storm"]["lost"]:
            violations.append(f"storm over {carrier}: {rows['storm']['lost']} echoes lost")
        if added > MAX_ADDED_P95_MS:
            violations.append(f"storm over {carrier}: {added:.0f} ms more, {MAX_ADDED_P95_MS:g} allowed")
    return {**results, "violations": violations}


def _measure(running: Site, carrier: Carrier) -> dict[str, dict[str, float]]:
    pid = running.pids()[INTERMEDIATE]
    with Fleet(running.deployment, INTERMEDIATE, NODES, carrier=carrier, niceness=NICENESS) as fleet:
        calm = _Echoes(running.udp_port)
        calm.start()
        time.sleep(CALM_S)
        rows = {"calm": calm.end()}
        storm, cpu, started = _Echoes(running.udp_port), cpu_s(pid), time.monotonic()
        storm.start()
        try:
            fleet.attach()
            fleet.wait_up(NODES, LIMIT_S)
            seconds = time.monotonic() - started
        finally:
            rows["storm"] = storm.end()
        rows["storm"] |= {
            "all_up_s": round(seconds, 1),
            "intermediate_cpu_share": round((cpu_s(pid) - cpu) / seconds, 2),
        }
        fleet.leave()
    return rows


class _Echoes:
    """A thread that sends one datagram after the other until it is told to end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._has_ended = threading.Event()
        self._samples_ms: list[float] = []
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="echoes")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> dict[str, float]:
        """End; returns what it measured."""
        self._has_ended.set()
        self._thread.join()
        return {
            "echoes": len(self._samples_ms),
            "lost": self._lost,
            **percentiles_ms(self._samples_ms),
            "max_ms": round(max(self._samples_ms), 1),
        }

    def _run(self) -> None:
        with datagram_client(self._port) as client:
            number = 0
            while not self._has_ended.wait(INTERVAL_S):
                number += 1
                trip_ms = round_trip_ms(client, number)
                if trip_ms is None:
                    self._lost += 1
                else:
                    self._samples_ms.append(trip_ms)
