"""A TCP download over the direct path, beside the relayed one and beside bare QUIC, all in one run.

Everything on loopback, agent and connector on an address of their own, each party a process. The baselines
are `aioquic.asyncio` and our sans-IO connection on our socket, without actors. Each figure is the best of
`ROUNDS`; processor time is read from /proc, per data packet and process. On the direct path the intermediate
is idle.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tools.deployment import Deployment, free_port
from ztna.access.identity import Identity, Role
from ztna.pki import authority

SIZE_BYTES: Final = 32 << 20
ROUNDS: Final = 3
# Stream bytes in a sealed packet of 1200.
PACKET_BYTES: Final = 1150
LIMIT_S: Final = 120.0
AGENT, CONNECTOR, INTERMEDIATE = "agent", "connector", "intermediate"
PATHS: Final[dict[str, dict[str, Any]]] = {
    "direct": {"ice": {"loopback": True}},
    "relay": {"path": {"policy": "relay_only"}},
}
BASELINES: Final = {"bare_driver": "driver", "aioquic_asyncio": "asyncio"}


def run() -> dict[str, Any]:
    """MB are 10^6 bytes; `to_<baseline>` are ratios of rates."""
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        directory = Path(name)
        _write_identities(directory)
        rows = {each: _bare(driver, directory) for each, driver in BASELINES.items()}
        rows |= {path: _path(path, directory / path) for path in PATHS}
    for row in rows.values():
        for baseline in BASELINES:
            ratio = row["megabytes_per_s"] / rows[baseline]["megabytes_per_s"]
            row[f"to_{baseline}"] = round(ratio, 3)
    return {"megabytes": SIZE_BYTES / 1e6, **rows}


def _write_identities(directory: Path) -> None:
    now = time.time()
    ca = authority.create_ca("bench.test", now)
    for name, role in (("client", Role.AGENT), ("server", Role.CONNECTOR)):
        issued = authority.issue(ca, Identity("bench.test", role, name), now)
        (directory / f"{name}.crt").write_bytes(issued.certificate_pem)
        (directory / f"{name}.key").write_bytes(issued.key_pem)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def _us_per_packet(seconds: float) -> float:
    return round(seconds / (SIZE_BYTES / PACKET_BYTES) * 1e6, 1)


def _best(rounds: list[tuple[float, dict[str, float]]]) -> dict[str, Any]:
    cpu = min((each for _, each in rounds), key=lambda each: sum(each.values()))
    return {
        "megabytes_per_s": round(max(rate for rate, _ in rounds), 2),
        "cpu_us_per_packet": {**cpu, "total": round(sum(cpu.values()), 1)},
    }


def _bare(driver: str, directory: Path) -> dict[str, Any]:
    return _best([_bare_round(driver, directory) for _ in range(ROUNDS)])


def _bare_round(driver: str, directory: Path) -> tuple[float, dict[str, float]]:
    port = free_port(socket.SOCK_DGRAM)
    command = [sys.executable, "-m", "tools.bench._quic_peer", driver]
    size = str(SIZE_BYTES)
    server = subprocess.Popen([*command, "server", str(directory), str(port), size])
    try:
        deadline = time.monotonic() + LIMIT_S
        while f":{port:04X} " not in Path("/proc/net/udp").read_text(encoding="ascii"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody bound UDP port {port}")
            time.sleep(0.02)
        before_s = _cpu_s(server.pid)
        client = subprocess.run(
            [*command, "client", str(directory), str(port), size],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        server_s = _cpu_s(server.pid) - before_s
    finally:
        server.kill()
        server.wait()
    told = json.loads(client.stdout)
    cpu = {"client": _us_per_packet(told["cpu_s"]), "server": _us_per_packet(server_s)}
    return SIZE_BYTES / 1e6 / float(told["seconds"]), cpu


def _path(path: str, directory: Path) -> dict[str, Any]:
    content = os.urandom(1 << 20) * (SIZE_BYTES >> 20)
    digest, port = hashlib.sha256(content).hexdigest(), free_port()
    with _source(content) as backend, Deployment(directory) as deployment:
        deployment.add_intermediate(INTERMEDIATE)
        deployment.add_connector(
            CONNECTOR,
            [{"id": "files", "protocol": "tcp", "backend": backend}],
            udp={"bind": ["127.0.0.3:0"]},
            **PATHS[path],
        )
        deployment.add_agent(
            AGENT,
            [{"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{port}"}],
            udp={"bind": ["127.0.0.2:0"]},
            **PATHS[path],
        )
        deployment.start()
        deployment.wait_ready()
        _download(port, digest)  # opens the session
        for name in (AGENT, CONNECTOR):
            deployment.wait_for(
                name,
                lambda status: bool(status["sessions"]) and status["sessions"][0]["path"] == path,
                f"a session over path {path}",
            )
        processes = {
            name: daemon.process.pid for name, daemon in deployment.daemons.items() if daemon.process
        }
        rounds = []
        for _ in range(ROUNDS):
            before = {name: _cpu_s(pid) for name, pid in processes.items()}
            seconds = _download(port, digest)
            cpu = {name: _us_per_packet(_cpu_s(pid) - before[name]) for name, pid in processes.items()}
            rounds.append((SIZE_BYTES / 1e6 / seconds, cpu))
    return _best(rounds)


def _download(port: int, digest: str) -> float:
    found, started = hashlib.sha256(), time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        while data := client.recv(1 << 16):
            found.update(data)
    if found.hexdigest() != digest:
        raise ValueError("the download is not what was sent")
    return time.monotonic() - started


@contextmanager
def _source(content: bytes) -> Iterator[str]:
    """A service that sends `content` to whoever connects; gives its address."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.sendall(content)

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
