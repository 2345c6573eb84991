"""Real daemons on the hosts of a lab: intermediates on `mid` and `mid2`, connectors and agents on the sites.

    with Lab(pair("eim-apdf", "eim-apdf", delay_ms=20)) as lab, LabDeployment(directory, lab) as deployment:
        deployment.add_intermediate()
        backend = deployment.serve_files("b", directory)
        deployment.add_connector("connector-1", [...], host="b")
        deployment.add_agent("agent-1", [...], host="a")
        deployment.start()
        deployment.wait_ready()
        deployment.download("a", 8000, "/file")

Control sockets are files, and are reached from outside the lab like those of any daemon.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from tools.deployment import Daemon, Deployment, DeploymentError, Process
from tools.natlab.foreign_process import ForeignProcess
from tools.natlab.lab import Lab
from tools.natlab.topology import INTERMEDIATE, INTERMEDIATE_ADDRESSES

QUIC_PORT: Final = 4433
# Where only the web is let out, this is the port that is open.
GRPC_PORT: Final = 443
STUN_ALTERNATE_PORT: Final = 3479
LOOPBACK: Final = "127.0.0.1"
CHUNK_BYTES: Final = 1 << 16
DOWNLOAD_LIMIT_S: Final = 60.0
HTTP_OK: Final = 200


class LabDeployment(Deployment):
    """A deployment whose daemons run in a lab; end it before the lab."""

    def __init__(self, directory: Path, lab: Lab, *, log_level: str = "info") -> None:
        super().__init__(directory, log_level=log_level)
        self.lab = lab
        self._hosts: dict[str, str] = {}
        self._backends: list[ForeignProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exception_type, exception, traceback)
        for backend in self._backends:
            backend.kill()
            if backend.stdout is not None:
                backend.stdout.close()

    def add_intermediate(
        self, name: str = "intermediate-1", *, host: str = INTERMEDIATE, **extra: Any
    ) -> Daemon:
        """Configure an intermediate, on `mid` or `mid2`."""
        self._hosts[name] = host
        address, address_v6 = INTERMEDIATE_ADDRESSES[host]
        listen = [f"{address}:{QUIC_PORT}"]
        grpc_listen = f"{address}:{GRPC_PORT}"
        if self.lab.plan.speaks_ipv6:
            listen.append(f"[{address_v6}]:{QUIC_PORT}")
            grpc_listen = f"[::]:{GRPC_PORT}"
        settings = {
            "quic": {"listen": listen},
            "grpc": {"listen": grpc_listen},
            "stun": {"alternate_port": STUN_ALTERNATE_PORT},
        }
        return super().add_intermediate(name, **settings | extra)

    def add_connector(
        self, name: str, services: list[dict[str, Any]], *, host: str = "b", **extra: Any
    ) -> Daemon:
        """Configure a connector on a site."""
        return super().add_connector(name, services, **self._node_settings(name, host) | extra)

    def add_agent(
        self, name: str, services: list[dict[str, Any]], *, host: str = "a", **extra: Any
    ) -> Daemon:
        """Configure an agent on a site."""
        return super().add_agent(name, services, **self._node_settings(name, host) | extra)

    def host_of(self, name: str) -> str:
        """Where a daemon runs."""
        return self._hosts[name]

    def serve_files(self, host: str, directory: Path) -> str:
        """Serve a directory over HTTP on a host's loopback, until the end; returns `address:port`."""
        return self._serve(host, "files", str(directory))

    def serve_echo(self, host: str) -> str:
        """Send back each datagram, on a host's loopback, until the end; returns `address:port`."""
        return self._serve(host, "echo")

    def download(
        self, host: str, port: int, path: str, *, address: str = LOOPBACK, timeout_s: float = DOWNLOAD_LIMIT_S
    ) -> tuple[int, str]:
        """Fetch a file as a client on a host; returns its size in bytes and its SHA-256.

        Raises `DeploymentError` when it does not arrive whole.
        """
        digest, received = hashlib.sha256(), 0
        connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
        try:
            connection.sock = self.lab.socket(host, socket.SOCK_STREAM)
            connection.sock.settimeout(timeout_s)
            connection.sock.connect((address, port))
            connection.request("GET", path)
            response = connection.getresponse()
            while data := response.read(CHUNK_BYTES):
                digest.update(data)
                received += len(data)
            expected = int(response.headers.get("Content-Length", -1))
        except (OSError, http.client.HTTPException) as error:
            raise DeploymentError(f"GET {path} on {host}: {error!r} after {received} bytes") from error
        finally:
            connection.close()
        if response.status != HTTP_OK or received != expected:
            raise DeploymentError(f"GET {path} on {host}: {response.status}, {received} of {expected} bytes")
        return received, digest.hexdigest()

    def _serve(self, host: str, kind: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "tools.demo.backends", kind, *arguments]
        with (self.directory / f"{kind}-{host}.log").open("ab") as log:
            backend = self.lab.popen(host, command, stdout=subprocess.PIPE, stderr=log)
        self._backends.append(backend)
        line = backend.stdout.readline() if backend.stdout is not None else b""
        if not line:
            raise DeploymentError(f"the {kind} service on {host} did not start")
        return f"{LOOPBACK}:{int(line)}"

    def _node_settings(self, name: str, host: str) -> dict[str, Any]:
        self._hosts[name] = host
        site = self.lab.plan.site(host)
        has_v4 = site.access.behaviour.family == 4
        addresses = {
            host: address if has_v4 else f"[{address_v6}]"
            for host, (address, address_v6) in INTERMEDIATE_ADDRESSES.items()
        }
        # The wildcard address survives a hand-over (docs/natlab.md).
        binds = [*(["0.0.0.0:0"] if has_v4 else []), *(["[::]:0"] if site.speaks_ipv6 else [])]
        return {
            "udp": {"bind": binds},
            "intermediates": [
                {
                    "id": daemon.id,
                    "quic": f"{addresses[self._hosts[daemon.id]]}:{QUIC_PORT}",
                    "grpc": f"{addresses[self._hosts[daemon.id]]}:{GRPC_PORT}",
                }
                for daemon in self.daemons.values()
                if daemon.kind == "intermediate"
            ],
        }

    def _launch(
        self, daemon: Daemon, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> Process:
        return self.lab.popen(self._hosts[daemon.id], command, stdout=log, stderr=log, env=environment)
