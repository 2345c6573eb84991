"""A TCP download over each path, beside the same bytes over one bare QUIC connection.

Everything on loopback, each party a process of its own. The baselines seal each packet once and have no third
party, and so does the direct path, on which the intermediate is idle; the relay seals twice and forwards. The
ratios say what that costs. Throughput is the best of `ROUNDS`, since what disturbs a measurement only ever
makes it slower. Processor time is read from /proc; `cpu_to_bare_driver` is the median of the ratios of each
round, in which all take their turn, since a busy machine makes every process dearer.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tools.bench._client import download
from tools.bench._proc import CpuMeter, wait_until_bound
from tools.bench._site import PATHS, Site, site
from tools.deployment import free_port
from ztna.access.identity import Identity, Role
from ztna.pki import authority

SIZE_BYTES: Final = 32 << 20
ROUNDS: Final = 5
# Stream bytes in a sealed packet of 1200.
PACKET_BYTES: Final = 1150
START_LIMIT_S: Final = 10.0
RUN_LIMIT_S: Final = 120.0

DRIVER: Final = "bare_driver"
BASELINES: Final = {DRIVER: "driver", "aioquic_asyncio": "asyncio"}
"""Our sans-IO connection on our socket, without actors; and what aioquic itself offers for asyncio."""

_Measured = tuple[float, dict[str, float]]
"""Megabytes per second, and microseconds of processor time per packet by process."""


def run() -> dict[str, Any]:
    """MB are 10^6 bytes; `to_<baseline>` are ratios of megabytes per second, `cpu_…` of processor time."""
    rounds: list[dict[str, _Measured]] = []
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, ExitStack() as running:
        directory = Path(name)
        _write_identities(directory)
        sites = {path: running.enter_context(site(directory / path, path)) for path in PATHS}
        for path, made in sites.items():
            made.warm_up(path)
        for _ in range(ROUNDS):
            measured = {each: _bare_round(driver, directory) for each, driver in BASELINES.items()}
            measured.update({path: _path_round(made) for path, made in sites.items()})
            rounds.append(measured)
    best = {name: _best([each[name] for each in rounds]) for name in rounds[0]}
    rates = {name: rate for name, (rate, _) in best.items()}
    return {
        "megabytes": SIZE_BYTES / 1e6,
        "throughput": {
            name: {
                "megabytes_per_s": round(rate, 2),
                **{f"to_{baseline}": round(rate / rates[baseline], 3) for baseline in BASELINES},
            }
            for name, rate in rates.items()
        },
        "cpu_us_per_packet": {name: cpu for name, (_, cpu) in best.items()},
        "cpu_to_bare_driver": {name: _to_driver(name, rounds) for name in best},
    }


def _to_driver(name: str, rounds: list[dict[str, _Measured]]) -> float:
    ratios = [each[name][1]["total"] / each[DRIVER][1]["total"] for each in rounds]
    return round(statistics.median(ratios), 3)


def _write_identities(directory: Path) -> None:
    now = time.time()
    ca = authority.create_ca("bench.test", now)
    for name, role in (("client", Role.AGENT), ("server", Role.CONNECTOR)):
        issued = authority.issue(ca, Identity("bench.test", role, name), now)
        (directory / f"{name}.crt").write_bytes(issued.certificate_pem)
        (directory / f"{name}.key").write_bytes(issued.key_pem)


def _best(rounds: list[_Measured]) -> _Measured:
    rate = max(rate for rate, _ in rounds)
    return rate, min((cpu for _, cpu in rounds), key=lambda cpu: cpu["total"])


def _bare_round(driver: str, directory: Path) -> _Measured:
    port = free_port(socket.SOCK_DGRAM)
    command = [sys.executable, "-m", "tools.bench._quic_peer", driver]
    size = str(SIZE_BYTES)
    server = subprocess.Popen([*command, "server", str(directory), str(port), size])
    try:
        wait_until_bound(port, START_LIMIT_S)
        meter = CpuMeter({"server": server.pid})
        client = subprocess.run(
            [*command, "client", str(directory), str(port), size],
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=True,
        )
        server_s = meter.seconds()["server"]
    finally:
        server.kill()
        server.wait()
    told = json.loads(client.stdout)
    scale = 1e6 / (SIZE_BYTES / PACKET_BYTES)
    cpu = {
        "client": round(told["cpu_s"] * scale, 1),
        "server": round(server_s * scale, 1),
        "total": round((told["cpu_s"] + server_s) * scale, 1),
    }
    return SIZE_BYTES / 1e6 / float(told["seconds"]), cpu


def _path_round(running: Site) -> _Measured:
    meter = running.meter()
    rate = SIZE_BYTES / 1e6 / download(running.tcp_port, SIZE_BYTES)
    return rate, meter.us_per(SIZE_BYTES / PACKET_BYTES)
