"""What a thousand attached nodes that do nothing cost an intermediate, and how they come back to it.

Simulated nodes over real sockets, each with its own identity (`tools.bench.fleet`), over both carriers of
signaling. They attach within 20 s; then the intermediate is left alone for a while and measured; then it is
killed (-9) and started again, and all of them have to come back, each by its own back-off. The nodes share
the machine with the intermediate, so that the rates are those of both together.

The baseline is a server of `aioquic.asyncio` that holds as many connections, each pinged as often as a node
pings. Its rate is that of bare handshakes, as fast as they get in; nobody attaches to it or comes back.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final, get_args

from tools.bench._bare_quic import BareServer, held
from tools.bench._proc import cpu_s, pids, rss_bytes
from tools.bench._site import START_LIMIT_S
from tools.bench.fleet import Carrier, Fleet
from tools.deployment import Deployment
from ztna.relay.quic_carrier import PING_INTERVAL_S

NODES: Final = 1000
ATTACH_OVER_S: Final = 20.0
"""Much faster, and a small machine is so busy with the simulated clients that attempts time out."""
IDLE_S: Final = 30.0
SETTLE_S: Final = 5.0
"""Between the last attachment and the measurement: handshakes are over, buffers were given back."""
LIMIT_S: Final = 240.0

BARE: Final = "bare_quic"
RATIOS: Final = {
    "memory_to_bare": "kib_per_node",
    "cpu_to_bare": "cpu_us_per_node_s",
    "attach_rate_to_bare": "attach_per_s",
    "attach_cpu_to_bare": "attach_cpu_ms",
}
"""Which figure each is a ratio of."""

_INTERMEDIATE: Final = "intermediate"


def run() -> dict[str, Any]:
    """One row per carrier and one of the baseline.

    `cpu_us_per_node_s` is processor time per node and second of idling. A figure too small for the clock that
    measures it has no ratio.
    """
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, BareServer(Path(name)) as server:
        bare = asyncio.run(_measure_bare(server))
    rows = {BARE: bare, **{carrier: _measure(carrier) for carrier in get_args(Carrier)}}
    for row in rows.values():
        row |= {ratio: round(row[key] / bare[key], 2) for ratio, key in RATIOS.items() if bare[key]}
    return {"nodes": NODES, "attached": rows}


async def _measure_bare(server: BareServer) -> dict[str, float]:
    memory, cpu, started = rss_bytes(server.pid), cpu_s(server.pid), time.monotonic()
    async with held(server.port, NODES, PING_INTERVAL_S):
        attach_s, attach_cpu_s = time.monotonic() - started, cpu_s(server.pid) - cpu
        await asyncio.sleep(SETTLE_S)
        idle_cpu_s, idle_since = cpu_s(server.pid), time.monotonic()
        await asyncio.sleep(IDLE_S)
        idle_cpu_s, idle_s = cpu_s(server.pid) - idle_cpu_s, time.monotonic() - idle_since
        grown = rss_bytes(server.pid) - memory
    return _figures(grown, idle_cpu_s / idle_s, NODES / attach_s, attach_cpu_s)


def _figures(grown: int, idle_share: float, per_s: float, attach_cpu_s: float) -> dict[str, float]:
    return {
        "kib_per_node": round(grown / NODES / 1024, 1),
        "cpu_us_per_node_s": round(idle_share / NODES * 1e6, 1),
        "attach_per_s": round(per_s, 1),
        "attach_cpu_ms": round(attach_cpu_s / NODES * 1e3, 2),
    }


def _measure(carrier: Carrier) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, Deployment(Path(name)) as deployment:
        deployment.add_intermediate(_INTERMEDIATE)
        deployment.start()
        deployment.wait_ready(timeout_s=START_LIMIT_S)
        with Fleet(deployment, _INTERMEDIATE, NODES, carrier=carrier) as fleet:
            pid = pids(deployment)[_INTERMEDIATE]
            memory, cpu = rss_bytes(pid), cpu_s(pid)
            started = fleet.attach(ATTACH_OVER_S)
            up = fleet.wait_up(NODES, LIMIT_S)
            attach_cpu_s = cpu_s(pid) - cpu
            time.sleep(SETTLE_S)
            idle_cpu_s, idle_since = cpu_s(pid), time.monotonic()
            time.sleep(IDLE_S)
            idle_cpu_s, idle_s = cpu_s(pid) - idle_cpu_s, time.monotonic() - idle_since
            grown = rss_bytes(pid) - memory
            deployment.kill(_INTERMEDIATE)
            killed = time.monotonic()
            deployment.start(_INTERMEDIATE)
            back = fleet.wait_up(NODES, LIMIT_S, since=killed)
            fleet.leave()
    return {
        **_figures(grown, idle_cpu_s / idle_s, NODES / (up.ready_at[-1] - started), attach_cpu_s),
        "back_p50_s": round(back.ready_at[NODES // 2] - killed, 2),
        "back_all_s": round(back.ready_at[-1] - killed, 2),
    }
