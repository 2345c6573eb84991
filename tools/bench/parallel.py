"""Many TCP connections at once over one session, beside one connection with the same bytes.

The ratio says what it costs that a session has many streams. Connections are opened all at once; each
download is checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tools.bench._client import STALL_LIMIT_S, WrongBytesError, download
from tools.bench._services import LOOPBACK, digest_of
from tools.bench._site import AGENT, PATHS, SessionPath, Site, site

CONNECTIONS: Final = 500
BYTES_PER_CONNECTION: Final = 128 << 10
ROUNDS: Final = 2
PACKET_BYTES: Final = 1150
_CHUNK_BYTES: Final = 1 << 16


def run() -> dict[str, Any]:
    """Megabytes (10^6) per second, the best of `ROUNDS`, from the first connect to the last byte."""
    rows: dict[str, dict[str, float]] = {}
    for path in PATHS:
        with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name, site(Path(name), path) as running:
            rows |= _measure(running, path)
    return {
        "connections": CONNECTIONS,
        "megabytes": CONNECTIONS * BYTES_PER_CONNECTION / 1e6,
        "throughput": rows,
    }


def _measure(running: Site, path: SessionPath) -> dict[str, dict[str, float]]:
    running.warm_up(path)
    total = CONNECTIONS * BYTES_PER_CONNECTION
    rows: dict[str, dict[str, float]] = {}
    for name, fetch in (("one", _one), ("many", _many)):
        rounds = []
        for _ in range(ROUNDS):
            meter, started = running.meter(), time.monotonic()
            fetch(running.tcp_port)
            rate = total / 1e6 / (time.monotonic() - started)
            rounds.append((rate, meter.us_per(total / PACKET_BYTES)))
        cpu = min((cpu for _, cpu in rounds), key=lambda each: each["total"])
        rows[f"{path}_{name}"] = {
            "megabytes_per_s": round(max(rate for rate, _ in rounds), 2),
            **{f"{daemon}_us_per_packet": us for daemon, us in cpu.items()},
        }
    one, many = rows[f"{path}_one"], rows[f"{path}_many"]
    many["to_one"] = round(many["megabytes_per_s"] / one["megabytes_per_s"], 3)
    sessions = (running.deployment.status(AGENT) or {}).get("sessions", ())
    if len(sessions) != 1:
        raise RuntimeError(f"{len(sessions)} sessions, and one was to carry everything")
    return rows


def _one(port: int) -> None:
    download(port, CONNECTIONS * BYTES_PER_CONNECTION)


def _many(port: int) -> None:
    asyncio.run(_fetch_all(port))


async def _fetch_all(port: int) -> None:
    expected = digest_of(BYTES_PER_CONNECTION)
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(_fetch(port, expected))


async def _fetch(port: int, expected: str) -> None:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(f"DOWN {BYTES_PER_CONNECTION}\n".encode())
        digest = hashlib.sha256()
        while data := await asyncio.wait_for(reader.read(_CHUNK_BYTES), STALL_LIMIT_S):
            digest.update(data)
    finally:
        writer.close()
    if digest.hexdigest() != expected:
        raise WrongBytesError("one of many downloads is not what was sent")
