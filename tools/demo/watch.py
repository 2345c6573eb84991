"""Follows the status of running daemons over their control sockets, one thread each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from tools.deployment import control_channel
from ztna.v1 import control_pb2, control_pb2_grpc

RETRY_INTERVAL_S = 0.1
CHECK_INTERVAL_S = 0.25
JOIN_LIMIT_S = 2.0


class WatchTimeoutError(Exception):
    """A daemon did not reach a state in time; says which one it was in."""


class StatusWatch:
    """The latest status of each daemon. A context manager.

    Enter it when every process is started: gRPC and forking do not mix.
    """

    def __init__(self, sockets: Mapping[str, Path]) -> None:
        self._latest: dict[str, control_pb2.DaemonStatus] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._calls: dict[str, grpc.RpcContext] = {}
        self._threads = [
            threading.Thread(target=self._follow, args=(name, path), name=f"watch-{name}", daemon=True)
            for name, path in sockets.items()
        ]

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
        self._closed.set()
        with self._changed:
            calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        for thread in self._threads:
            thread.join(JOIN_LIMIT_S)

    def latest(self, name: str) -> control_pb2.DaemonStatus | None:
        """The last status heard, None before the first."""
        with self._changed:
            return self._latest.get(name)

    def wake(self) -> None:
        """Have `wait_for` look again: something changed that its predicate asks about."""
        with self._changed:
            self._changed.notify_all()

    def wait_for(
        self,
        name: str,
        predicate: Callable[[control_pb2.DaemonStatus], bool],
        what: str,
        deadline: float,
        check: Callable[[], None],
    ) -> control_pb2.DaemonStatus:
        """Wait for a status that satisfies `predicate`.

        `check` is called now and then, and may raise. Raises `WatchTimeoutError` at `deadline` (monotonic
        seconds).
        """
        while True:
            check()
            with self._changed:
                status = self._latest.get(name)
                if status is not None and predicate(status):
                    return status
                if time.monotonic() >= deadline:
                    reason = status.not_ready_reason if status else "its control socket does not answer"
                    raise WatchTimeoutError(f"{name}: not in time: {what} ({reason or 'it is ready'})")
                self._changed.wait(CHECK_INTERVAL_S)

    def _follow(self, name: str, path: Path) -> None:
        while not self._closed.is_set():
            with control_channel(path) as channel:
                stub = control_pb2_grpc.ControlServiceStub(channel)
                call = stub.WatchStatus(control_pb2.WatchStatusRequest(), wait_for_ready=True)
                with self._changed:
                    self._calls[name] = call
                try:
                    for response in call:
                        with self._changed:
                            self._latest[name] = response.status
                            self._changed.notify_all()
                except grpc.RpcError:
                    self._closed.wait(RETRY_INTERVAL_S)
