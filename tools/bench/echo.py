"""Round trips of UDP echoes, one after the other: straight to the service, and over each path.

Payloads of 100 bytes, on loopback. A datagram that does not come back is counted as lost and sent no more.
There are two baselines: the bare round trip to the service, and DATAGRAM frames over one connection of
aioquic, which is what QUIC costs by itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

from tools.bench._bare_quic import BareServer, round_trips_ms
from tools.bench._client import datagram_client, round_trip_ms
from tools.bench._figures import percentiles_ms, ratios
from tools.bench._site import PATHS, SessionPath, site

ECHOES: Final = 1000
WARM_UP_ECHOES: Final = 20
MAX_LOST_SHARE: Final = 0.01
"""Nothing on loopback loses a datagram that is alone on its way; a busy machine may be late with some."""

ABORT_LOST: Final = 20
"""So many lost mean that there is nothing to measure."""


def run() -> dict[str, Any]:
    """`added_p50_ms` is what a path adds to the bare median; ratios are to both baselines."""
    rows: dict[str, dict[str, float]] = {}
    bare: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, BareServer(Path(name)) as server:
        bare_quic = _summary(round_trips_ms(server.port, ECHOES, WARM_UP_ECHOES))
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
            baseline, rows[path] = _measure(path, Path(name))
            bare.append(baseline)
    # What disturbs a measurement only ever makes it slower, and the baseline is measured beside each path.
    rows = {"bare": min(bare, key=lambda row: row["p50_ms"]), "bare_quic": bare_quic, **rows}
    for row in rows.values():
        row |= {
            "added_p50_ms": round(row["p50_ms"] - rows["bare"]["p50_ms"], 3),
            **ratios(row, rows["bare"], "bare"),
            **ratios(row, rows["bare_quic"], "bare_quic"),
        }
    return {
        "echoes": ECHOES,
        "round_trip": rows,
        "violations": [
            f"echo: {row['lost']} of {ECHOES} datagrams did not come back ({name})"
            for name, row in rows.items()
            if row["lost"] > ECHOES * MAX_LOST_SHARE
        ],
    }


def _measure(path: SessionPath, directory: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The bare round trip beside this path, and that over it."""
    with site(directory, path) as running:
        running.warm_up(path)
        bare = _echoes(running.services.udp_port)
        meter = running.meter()
        row = _echoes(running.udp_port)
        row["daemons_cpu_us"] = meter.us_per(ECHOES + WARM_UP_ECHOES)["total"]
    return bare, row


def _summary(trips: list[float | None]) -> dict[str, float]:
    answered = [trip for trip in trips if trip is not None]
    return {**percentiles_ms(answered), "lost": len(trips) - len(answered)}


def _echoes(port: int) -> dict[str, float]:
    with datagram_client(port) as client:
        for number in range(WARM_UP_ECHOES):
            round_trip_ms(client, number)
        trips: list[float | None] = []
        for number in range(ECHOES):
            trips.append(round_trip_ms(client, WARM_UP_ECHOES + number))
            lost = trips.count(None)
            if lost > ABORT_LOST:
                raise TimeoutError(f"echo: {lost} datagrams did not come back, {len(trips) - lost} did")
    return _summary(trips)
