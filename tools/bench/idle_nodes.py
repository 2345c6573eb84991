"""What a thousand attached nodes that do nothing cost an intermediate, and how they come back to it.

Simulated nodes over real sockets, each with its own identity (`tools.bench.fleet`), over both carriers of
signaling. They attach within 20 s; then the intermediate is left alone for a while and measured; then it is
killed (-9) and started again, and all of them have to come back, each by its own back-off. The nodes share
the machine with the intermediate, so that the rates are those of both together.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final, get_args

from tools.bench._proc import cpu_s, pids, rss_bytes
from tools.bench._site import START_LIMIT_S
from tools.bench.fleet import Carrier, Fleet
from tools.deployment import Deployment

NODES: Final = 1000
ATTACH_OVER_S: Final = 20.0
"""Much faster, and a small machine is so busy with the simulated clients that attempts time out."""
IDLE_S: Final = 30.0
SETTLE_S: Final = 5.0
"""Between the last attachment and the measurement: handshakes are over, buffers were given back."""
LIMIT_S: Final = 240.0

_INTERMEDIATE: Final = "intermediate"


def run() -> dict[str, Any]:
    """One row per carrier. `cpu_us_per_node_s` is processor time per node and second of idling."""
    return {"nodes": NODES, "attached": {carrier: _measure(carrier) for carrier in get_args(Carrier)}}


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
        "kib_per_node": round(grown / NODES / 1024, 1),
        "cpu_us_per_node_s": round(idle_cpu_s / idle_s / NODES * 1e6, 1),
        "attach_per_s": round(NODES / (up.ready_at[-1] - started), 1),
        "attach_cpu_ms": round(attach_cpu_s / NODES * 1e3, 2),
        "back_p50_s": round(back.ready_at[NODES // 2] - killed, 2),
        "back_all_s": round(back.ready_at[-1] - killed, 2),
    }
