"""Round trips of UDP echoes, one after the other: straight to the service, and over each path.

Payloads of 100 bytes, on loopback. A datagram that does not come back is counted as lost and sent no more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

from tools.bench._client import datagram_client, round_trip_ms
from tools.bench._figures import percentiles_ms
from tools.bench._site import PATHS, SessionPath, site

ECHOES: Final = 1000
WARM_UP_ECHOES: Final = 20
MAX_LOST_SHARE: Final = 0.01
"""Nothing on loopback loses a datagram that is alone on its way; a busy machine may be late with some."""

ABORT_LOST: Final = 20
"""So many lost mean that there is nothing to measure."""


def run() -> dict[str, Any]:
    """`added_p50_ms` is what a path adds to the median of the bare round trip."""
    rows: dict[str, dict[str, float]] = {}
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
            rows |= _measure(path, Path(name))
    for row in rows.values():
        row["added_p50_ms"] = round(row["p50_ms"] - rows["bare"]["p50_ms"], 3)
    return {
        "echoes": ECHOES,
        "round_trip": rows,
        "violations": [
            f"echo: {row['lost']} of {ECHOES} datagrams did not come back ({name})"
            for name, row in rows.items()
            if row["lost"] > ECHOES * MAX_LOST_SHARE
        ],
    }


def _measure(path: SessionPath, directory: Path) -> dict[str, dict[str, float]]:
    with site(directory, path) as running:
        running.warm_up(path)
        rows = {"bare": _echoes(running.services.udp_port)}
        meter = running.meter()
        rows[path] = _echoes(running.udp_port)
        rows[path]["daemons_cpu_us"] = meter.us_per(ECHOES + WARM_UP_ECHOES)["total"]
    return rows


def _echoes(port: int) -> dict[str, float]:
    with datagram_client(port) as client:
        for number in range(WARM_UP_ECHOES):
            round_trip_ms(client, number)
        answered: list[float] = []
        for number in range(ECHOES):
            trip = round_trip_ms(client, WARM_UP_ECHOES + number)
            if trip is not None:
                answered.append(trip)
            elif number - len(answered) >= ABORT_LOST:
                raise TimeoutError(f"echo: {ABORT_LOST} datagrams did not come back, {len(answered)} did")
    return {**percentiles_ms(answered), "lost": ECHOES - len(answered)}
