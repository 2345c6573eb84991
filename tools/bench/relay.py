"""A TCP download through the relay, beside the same bytes over one bare QUIC connection.

Everything on loopback, each party a process of its own. The baselines seal each packet once and have no third
party; the relay seals twice and forwards, so the ratio says what that costs. CPU time per packet of each
daemon is read from /proc. The same again with legs over gRPC.
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
from pathlib import Path
from typing import Any, Final, Self

from tools.deployment import Deployment, free_port
from ztna.access.identity import Identity, Role
from ztna.pki import authority

SIZE_BYTES: Final = 32 << 20
ROUNDS: Final = 3
# Stream bytes in a sealed packet of 1200.
PACKET_BYTES: Final = 1150
START_LIMIT_S: Final = 10.0
RUN_LIMIT_S: Final = 120.0


def run() -> dict[str, Any]:
    """Best of `ROUNDS` for each way; MB are 10^6 bytes."""
    with tempfile.TemporaryDirectory(prefix="ztna-bench-") as name:
        directory = Path(name)
        _write_identities(directory)
        bare = max(_bare("driver", directory) for _ in range(ROUNDS))
        stock = max(_bare("asyncio", directory) for _ in range(ROUNDS))
        relay = _relay(directory / "quic", "quic")
        over_grpc = _relay(directory / "grpc", "grpc")
    relayed = relay["megabytes_per_s"]
    return {
        "megabytes": SIZE_BYTES / 1e6,
        "relay": relay,
        "relay_over_grpc": over_grpc,
        "bare_driver_megabytes_per_s": round(bare, 2),
        "aioquic_asyncio_megabytes_per_s": round(stock, 2),
        "grpc_to_quic": round(over_grpc["megabytes_per_s"] / relayed, 3),
        "relay_to_bare_driver": round(relayed / bare, 3),
        "relay_to_aioquic_asyncio": round(relayed / stock, 3),
    }


def _write_identities(directory: Path) -> None:
    now = time.time()
    ca = authority.create_ca("bench.test", now)
    for name, role in (("client", Role.AGENT), ("server", Role.CONNECTOR)):
        issued = authority.issue(ca, Identity("bench.test", role, name), now)
        (directory / f"{name}.crt").write_bytes(issued.certificate_pem)
        (directory / f"{name}.key").write_bytes(issued.key_pem)


def _bare(driver: str, directory: Path) -> float:
    port = free_port(socket.SOCK_DGRAM)
    command = [sys.executable, "-m", "tools.bench._quic_peer", driver]
    size = str(SIZE_BYTES)
    server = subprocess.Popen([*command, "server", str(directory), str(port), size])
    try:
        _wait_until_bound(port)
        client = subprocess.run(
            [*command, "client", str(directory), str(port), size],
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=True,
        )
    finally:
        server.kill()
        server.wait()
    return SIZE_BYTES / 1e6 / float(json.loads(client.stdout)["seconds"])


def _wait_until_bound(port: int) -> None:
    entry = f":{port:04X} "
    deadline = time.monotonic() + START_LIMIT_S
    while entry not in Path("/proc/net/udp").read_text(encoding="ascii"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody bound UDP port {port}")
        time.sleep(0.02)


def _relay(directory: Path, carrier: str) -> dict[str, Any]:
    # Nodes on one machine would find each other without the relay.
    node = {"relay": {"carrier": carrier}, "path": {"policy": "relay_only"}}
    with _Source() as source, Deployment(directory) as deployment:
        port = free_port()
        deployment.add_intermediate("intermediate-1")
        deployment.add_connector(
            "connector-1", [{"id": "files", "protocol": "tcp", "backend": f"127.0.0.1:{source.port}"}], **node
        )
        deployment.add_agent(
            "agent-1", [{"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{port}"}], **node
        )
        deployment.start()
        deployment.wait_ready()
        cold_ms = _time_to_first_byte_ms(port)
        warm_ms = min(_time_to_first_byte_ms(port) for _ in range(5))
        before = {name: _cpu_s(daemon.process) for name, daemon in deployment.daemons.items()}
        rates = [_download(port, source.digest) for _ in range(ROUNDS)]
        packets = ROUNDS * SIZE_BYTES / PACKET_BYTES
        cpu = {
            name: round((_cpu_s(daemon.process) - before[name]) / packets * 1e6, 1)
            for name, daemon in deployment.daemons.items()
        }
    return {
        "megabytes_per_s": round(max(rates), 2),
        "cpu_us_per_packet": {**cpu, "total": round(sum(cpu.values()), 1)},
        "time_to_first_byte_cold_ms": round(cold_ms, 1),
        "time_to_first_byte_warm_ms": round(warm_ms, 1),
    }


def _cpu_s(process: subprocess.Popen[bytes] | None) -> float:
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def _time_to_first_byte_ms(port: int) -> float:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=RUN_LIMIT_S) as client:
        if not client.recv(1):
            raise ConnectionError("closed before the first byte")
    return (time.monotonic() - started) * 1e3


def _download(port: int, expected: str) -> float:
    digest = hashlib.sha256()
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=RUN_LIMIT_S) as client:
        while data := client.recv(1 << 16):
            digest.update(data)
    seconds = time.monotonic() - started
    if digest.hexdigest() != expected:
        raise ValueError("the download is not what was sent")
    return SIZE_BYTES / 1e6 / seconds


class _Source:
    """A service that sends `SIZE_BYTES` to whoever connects."""

    def __init__(self) -> None:
        self._content = os.urandom(1 << 20) * (SIZE_BYTES >> 20)
        self.digest = hashlib.sha256(self._content).hexdigest()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._send, args=(client,), daemon=True).start()

    def _send(self, client: socket.socket) -> None:
        try:
            with client:
                client.sendall(self._content)
        except OSError:
            return  # whoever wanted the first byte alone has gone
