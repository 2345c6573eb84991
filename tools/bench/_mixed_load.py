"""The mixed load of the soak: each kind is a thread that repeats one thing, checks it and counts it."""

from __future__ import annotations

import hashlib
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from tools.bench._client import connect, download
from tools.bench._services import LOOPBACK, content, digest_of
from tools.bench._site import START_LIMIT_S, Site
from tools.deployment import Deployment, DeploymentError

MIB: Final = 1 << 20
DOWNLOAD_BYTES: Final = 8 * MIB
UPLOAD_BYTES: Final = 4 * MIB
SHORT_PER_S: Final = 10.0
ECHOES_PER_S: Final = 20.0
ECHOES_PER_FLOW: Final = 50
ECHO_LIMIT_S: Final = 5.0
TRANSFER_PAUSE_S: Final = 1.0
SESSION_PERIOD_S: Final = 8.0
RESTART_PERIOD_S: Final = 40.0
RELOAD_PERIOD_S: Final = 10.0
MAX_FAILURES_KEPT: Final = 20


class MixedLoad:
    """Runs until it is left; `done` counts what went well, `failures` says what did not."""

    def __init__(self, running: Site, idle_agent_port: int, restarted: tuple[str, int]) -> None:
        """`idle_agent_port`: an agent whose session ends whenever it is idle; `restarted`: one to restart."""
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.failures: list[str] = []
        self._running = running
        self._idle_agent_port = idle_agent_port
        self._restarted = restarted
        self._is_over = threading.Event()
        self._echo_client: socket.socket | None = None
        kinds: list[tuple[Callable[[], None], float]] = [
            (self._download, TRANSFER_PAUSE_S),
            (self._upload, TRANSFER_PAUSE_S),
            (self._short_connection, 1 / SHORT_PER_S),
            (self._udp_echo, 1 / ECHOES_PER_S),
            (self._session, SESSION_PERIOD_S),
            (self._agent_restart, RESTART_PERIOD_S),
            (self._reload, RELOAD_PERIOD_S),
        ]
        self._threads = [threading.Thread(target=self._repeat, args=kind) for kind in kinds]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        if self._echo_client is not None:
            self._echo_client.close()

    def _repeat(self, act: Callable[[], None], period_s: float) -> None:
        name = act.__name__.strip("_")
        while not self._is_over.wait(period_s):
            try:
                act()
                self.done[name] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the soak goes on and reports it
                self.failed[name] += 1
                if len(self.failures) < MAX_FAILURES_KEPT:
                    text = str(error).partition("\n")[0]
                    at = time.strftime("%H:%M:%S", time.gmtime())
                    self.failures.append(f"{at}Z {name}: {type(error).__name__}: {text}")

    def _download(self) -> None:
        download(self._running.tcp_port, DOWNLOAD_BYTES)

    def _upload(self) -> None:
        with connect(self._running.tcp_port) as client:
            client.sendall(b"UP\n")
            for chunk in content(UPLOAD_BYTES):
                client.sendall(chunk)
            client.shutdown(socket.SHUT_WR)
            answer = _read_all(client).decode()
        if answer.split() != [str(UPLOAD_BYTES), digest_of(UPLOAD_BYTES)]:
            raise ValueError(f"an upload arrived as {answer!r}")

    def _short_connection(self) -> None:
        _echo_once(self._running.tcp_port)

    def _udp_echo(self) -> None:
        if self._echo_client is None or self.done["udp_echo"] % ECHOES_PER_FLOW == 0:
            if self._echo_client is not None:
                self._echo_client.close()
            self._echo_client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._echo_client.settimeout(ECHO_LIMIT_S)
            self._echo_client.connect((LOOPBACK, self._running.udp_port))
        payload = hashlib.sha256(str(time.monotonic()).encode()).digest()
        self._echo_client.send(payload)
        try:
            while self._echo_client.recv(2048) != payload:
                pass  # one that came too late before
        except TimeoutError:
            # UDP promises nothing; how many is said.
            self.done["udp_echo_lost"] += 1

    def _session(self) -> None:
        try:
            _echo_once(self._idle_agent_port)
        except ConnectionResetError:
            # The connector's idle time-out passed at the very moment that the agent used the session.
            self.done["session_ended_meanwhile"] += 1
            _echo_once(self._idle_agent_port)

    def _agent_restart(self) -> None:
        name, port = self._restarted
        deployment: Deployment = self._running.deployment
        deployment.start(name)
        deployment.wait_ready(name, timeout_s=START_LIMIT_S)
        _echo_once(port)
        process = deployment.daemons[name].process
        if process is not None:
            process.send_signal(signal.SIGTERM)
            if status := process.wait(START_LIMIT_S):
                raise DeploymentError(f"{name} ended with status {status}")

    def _reload(self) -> None:
        deployment = self._running.deployment
        for name in deployment.daemons:
            if name != self._restarted[0]:
                deployment.ztna("reload", "--socket", str(deployment.daemons[name].control_socket))


def _echo_once(port: int) -> None:
    payload = hashlib.sha256(str(time.monotonic()).encode()).hexdigest().encode()
    with connect(port) as client:
        client.sendall(b"ECHO\n" + payload)
        client.shutdown(socket.SHUT_WR)
        if (answer := _read_all(client)) != payload:
            raise ValueError(f"an echo of {len(payload)} bytes came back as {answer!r}")


def _read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))
