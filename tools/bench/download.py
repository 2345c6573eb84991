"""A TCP download over each path, beside the same bytes over one bare QUIC connection.

Everything on loopback, each party a process of its own. The baselines seal each packet once and have no third
party, and so does the direct path, on which the intermediate is idle; the relay seals twice and forwards. The
ratios say what that costs. Each figure is the best of
`ROUNDS`, since what disturbs a measurement only ever makes it slower; CPU time is read from /proc.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tools.bench._client import download
from tools.bench._proc import CpuMeter, wait_until_bound
from tools.bench._site import PATHS, SessionPath, site
from tools.deployment import free_port
from ztna.access.identity import Identity, Role
from ztna.pki import authority

SIZE_BYTES: Final = 32 << 20
ROUNDS: Final = 3
# Stream bytes in a sealed packet of 1200.
PACKET_BYTES: Final = 1150
START_LIMIT_S: Final = 10.0
RUN_LIMIT_S: Final = 120.0

BASELINES: Final = {"bare_driver": "driver", "aioquic_asyncio": "asyncio"}
"""Our sans-IO connection on our socket, without actors; and what aioquic itself offers for asyncio."""


def run() -> dict[str, Any]:
    """MB are 10^6 bytes; `to_<baseline>` are ratios of megabytes per second."""
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        directory = Path(name)
        _write_identities(directory)
        measured = {each: _bare(driver, directory) for each, driver in BASELINES.items()}
        measured.update({path: _path(path, directory / path) for path in PATHS})
    rates = {name: rate for name, (rate, _) in measured.items()}
    return {
        "megabytes": SIZE_BYTES / 1e6,
        "throughput": {
            name: {
                "megabytes_per_s": round(rate, 2),
                **{f"to_{baseline}": round(rate / rates[baseline], 3) for baseline in BASELINES},
            }
            for name, rate in rates.items()
        },
        "cpu_us_per_packet": {name: cpu for name, (_, cpu) in measured.items()},
    }


def _write_identities(directory: Path) -> None:
    now = time.time()
    ca = authority.create_ca("bench.test", now)
    for name, role in (("client", Role.AGENT), ("server", Role.CONNECTOR)):
        issued = authority.issue(ca, Identity("bench.test", role, name), now)
        (directory / f"{name}.crt").write_bytes(issued.certificate_pem)
        (directory / f"{name}.key").write_bytes(issued.key_pem)


def _best(rounds: list[tuple[float, dict[str, float]]]) -> tuple[float, dict[str, float]]:
    rate = max(rate for rate, _ in rounds)
    return rate, min((cpu for _, cpu in rounds), key=lambda cpu: cpu["total"])


def _bare(driver: str, directory: Path) -> tuple[float, dict[str, float]]:
    return _best([_bare_round(driver, directory) for _ in range(ROUNDS)])


def _bare_round(driver: str, directory: Path) -> tuple[float, dict[str, float]]:
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


def _path(path: SessionPath, directory: Path) -> tuple[float, dict[str, float]]:
    with site(directory, path) as running:
        running.warm_up(path)
        rounds = []
        for _ in range(ROUNDS):
            meter = running.meter()
            rate = SIZE_BYTES / 1e6 / download(running.tcp_port, SIZE_BYTES)
            rounds.append((rate, meter.us_per(SIZE_BYTES / PACKET_BYTES)))
    return _best(rounds)
