"""One daemon's life: settings, credentials, actors, signals, exit status. Called by `ztna.cli`.

Exit status: 0 after a drain, 2 for a wrong configuration, 3 when the node's own credentials are not
acceptable, 4 when an address cannot be bound, 1 for everything else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from actors import log as logs
from actors.base import Context
from actors.child_group import ChildSpec, Surroundings
from actors.credentials import CERTIFICATE_WARNING_S
from actors.daemon_hooks import DaemonHooks, Validity
from actors.directory import Directory
from actors.garbage_collector import GarbageCollector
from actors.io import Io
from actors.io_asyncio import AsyncioIo
from actors.loop_asyncio import SleepCountingLoop
from actors.resources import (
    Resources,
    detected_memory_bytes,
    raise_descriptor_limit,
    wanted_descriptors,
)
from actors.runtime import LoopRuntime
from actors.service_manager import ServiceManager
from actors.supervisor import Supervisor
from actors.wiring import Router, Wiring
from ztna import __version__
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError, ConfigError, describe
from ztna.quic.budget import HandshakeBudget
from ztna.settings import DaemonKind, DaemonSettings
from ztna.settings.live import Change
from ztna.v1 import reload_pb2

# Peers are told, and the process is gone, within 5 s: the actors have most of it, stray I/O the rest.
DRAIN_LIMIT_S = 4.0
DAY_S = 86_400.0

# The listener tries again each second: one line tells of it, and the next a minute later.
ACCEPT_FAILURE_INTERVAL_S = 60.0

FLUSH_LIMIT_S = 0.5


class ExitStatus(IntEnum):
    """What the process returns; part of the interface to service managers and scripts."""

    OK = 0
    FAILURE = 1
    CONFIGURATION = 2
    AUTHENTICATION = 3
    BIND = 4


class Plan(Protocol):
    """What a kind of daemon consists of; see `actors/plans.py`."""

    @property
    def wiring(self) -> Wiring:
        """Who hears whom."""

    def specs(self, node: Node) -> list[ChildSpec]:
        """The children of the node, in dependency order."""

    def reload(self) -> Change[Any]:
        """Read configuration and credentials again. Raises `ConfigError` or `AuthenticationError`."""

    def validity(self) -> Validity:
        """Until when the node's files hold; a revocation list is honoured beyond that all the same."""


class Node:
    """The actors of one daemon on one I/O port: what production and simulation have in common."""

    def __init__(self, io: Io, plan: Plan, log: structlog.typing.FilteringBoundLogger) -> None:
        self.io = io
        self.log = log
        self.directory = Directory()
        self.runtime = LoopRuntime(io)
        self.handshakes = HandshakeBudget(io.stopwatch)
        self.garbage = GarbageCollector(io)
        self.router = Router(plan.wiring, self.directory.tell)
        self.failure: BaseException | None = None
        self.give_up_reason = ""
        self.supervisor = Supervisor(
            Surroundings(io, self.runtime, self.directory, self._context, log),
            on_give_up=self._gave_up,
        )
        self._plan = plan
        self._is_ready = False
        self.on_give_up = _nothing
        self.on_started = _nothing
        self.on_readiness: Callable[[str], None] = _ignore

    def start(self) -> None:
        """Start every actor of the node, in order; `on_started` comes once all of them run."""
        self.supervisor.start(self._plan.specs(self), self.on_started)

    @property
    def hooks(self) -> DaemonHooks:
        """What the status board needs of us."""
        return DaemonHooks(
            self.supervisor.children,
            self.reload,
            self.readiness_changed,
            self._plan.validity,
            lambda: self.handshakes.spent_s,
            lambda: self.handshakes.at_once_s,
            lambda: self.garbage.pauses,
            lambda: self.garbage.paused_s,
        )

    def readiness_changed(self, reason: str) -> None:
        """The status board found the daemon ready (`reason` empty), or not, or for another reason."""
        if not reason and not self._is_ready:
            self.log.info("daemon.ready")
        elif reason and self._is_ready:
            self.log.warning("daemon.not_ready", reason=reason)
        self._is_ready = not reason
        self.on_readiness(reason)

    def reload(self) -> Change[Any]:
        """Adopt what the files say now, and tell the actors.

        Raises `ConfigError` or `AuthenticationError`, naming what is wrong; then nothing has changed.
        """
        try:
            change = self._plan.reload()
        except (ConfigError, AuthenticationError) as error:
            # The message names the file and the fault; where it was raised helps nobody.
            self.log.error(  # noqa: TRY400
                "daemon.reload_failed", error=str(error), kept="what was loaded before"
            )
            raise
        logs.set_level(change.settings.log.level)
        self.log.info(
            "daemon.reloaded", applied=list(change.applied), needs_restart=list(change.needs_restart)
        )
        warn_of_dates(self.io, self._plan, self.log)
        self.router.emit(reload_pb2.ConfigurationReloaded())
        return change

    def _context(self, name: str, key: str) -> Context:
        # Actors of an intermediate are children of the node named `concern/intermediate id`.
        concern, _, intermediate_id = name.partition("/")
        log = self.log.bind(actor=concern)
        if intermediate_id:
            log = log.bind(intermediate=intermediate_id)
        elif key:
            log = log.bind(session=key)
        return Context(self.io, self.router.emit, log, intermediate_id or key)

    def _gave_up(self, reason: str, failure: BaseException | None) -> None:
        self.give_up_reason = reason
        self.failure = failure
        self.on_give_up()


def _nothing() -> None:
    """Nobody listens yet."""


def _ignore(_reason: str) -> None:
    """Nobody listens yet."""


def run(kind: DaemonKind, config_path: Path, overrides: Mapping[str, str]) -> int:
    """Run a daemon until a signal ends it, and return its exit status; errors are one line on stderr."""
    from actors.plans import load_plan  # noqa: PLC0415 - keeps `ztna --help` free of the QUIC stack

    try:
        settings, plan = load_plan(kind, config_path, os.environ, overrides)
        max_descriptors = raise_descriptor_limit(wanted_descriptors(settings)[1])
    except (ConfigError, AuthenticationError) as error:
        print(f"ztna: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        return exit_status_of(error)
    logs.configure(settings.log.level, settings.log.format, redact=settings.log.redact)
    with asyncio.Runner(loop_factory=SleepCountingLoop) as runner:
        status = runner.run(_run(settings, plan, max_descriptors))
    logs.give_up_unwritten()
    return status


async def _run(settings: DaemonSettings, plan: Plan, max_descriptors: int) -> int:
    loop = asyncio.get_running_loop()
    log = structlog.get_logger().bind(daemon=settings.kind.value, node=settings.node.id)
    bursts = logs.BurstLimiter(interval_s=ACCEPT_FAILURE_INTERVAL_S)

    def accept_failed(address: TransportAddress, error: OSError) -> None:
        silent = bursts.note(address, loop.time())
        if silent is not None:
            log.error(
                "service_port.accept_failed", address=str(address), error=describe(error), repeated=silent
            )

    resources = Resources(loop.time, settings.limits.memory_bytes or detected_memory_bytes())
    io = AsyncioIo(
        loop,
        on_accept_error=accept_failed,
        udp_receive_buffer_bytes=settings.udp.receive_buffer_bytes,
        udp_send_buffer_bytes=settings.udp.send_buffer_bytes,
        resources=resources,
    )
    node = Node(io, plan, log)
    ended = asyncio.Event()
    node.on_give_up = ended.set
    manager = ServiceManager(os.environ, os.getpid())
    # Not when the daemon is ready as /readyz has it: whether an intermediate can be reached is no matter of
    # this machine, and a boot must not wait for it. What it waits for is shown as the unit's status.
    node.on_started = manager.ready
    node.on_readiness = lambda reason: manager.status(reason or "ready")
    stops = 0

    def stop(signal_number: signal.Signals) -> None:
        nonlocal stops
        stops += 1
        if stops > 1:
            log.warning("daemon.stopped_at_once", signal=signal_number.name)
            os._exit(128 + signal_number)
        log.info("daemon.draining", signal=signal_number.name)
        ended.set()

    def reload() -> None:
        manager.reloading(time.monotonic())  # systemd's clock, which is not the loop's
        with suppress(ConfigError, AuthenticationError):  # which the log has told
            node.reload()
        manager.ready()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop, signal_number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    log.info("daemon.starting", version=__version__, pid=os.getpid())
    _warn_of_descriptors(settings, max_descriptors, log)
    _watch_dates(io, plan, log)
    manager.keep_watchdog_quiet(io)
    # Before there are actors: one that fails goes, with all that it has, and its successor comes.
    node.garbage.take_over(resources.is_memory_short)
    node.start()
    await ended.wait()
    manager.stopping()
    if node.give_up_reason:
        return _report_failure(node, log)
    await _drain(node, log)
    return ExitStatus.OK


def _warn_of_descriptors(
    settings: DaemonSettings, limit: int, log: structlog.typing.FilteringBoundLogger
) -> None:
    key, wanted = wanted_descriptors(settings)
    if limit < wanted:
        log.warning(
            "daemon.file_descriptor_limit_low",
            limit=limit,
            key=key,
            wanted=wanted,
            remedy="raise the hard limit of RLIMIT_NOFILE (`ulimit -Hn`, LimitNOFILE=) or lower the key",
        )


def warn_of_dates(io: Io, plan: Plan, log: structlog.typing.FilteringBoundLogger) -> None:
    """Say what is about to stop working, or should be newer; now, and once a day from now on."""
    now_wall = io.wall_time()
    validity = plan.validity()
    if 0 < validity.list_due_at < now_wall:
        log.warning("daemon.revocation_list_overdue", remedy="sign it again with `ztna pki crl`")
    left_s = validity.certificate_ends_at - now_wall
    if left_s < CERTIFICATE_WARNING_S:
        log.warning(
            "daemon.certificate_ends_soon",
            days_left=round(left_s / DAY_S, 1),
            remedy="issue a new one with `ztna pki issue --force`, then send SIGHUP",
        )


def _watch_dates(io: Io, plan: Plan, log: structlog.typing.FilteringBoundLogger) -> None:
    warn_of_dates(io, plan, log)
    io.call_at(io.time() + DAY_S, partial(_watch_dates, io, plan, log))


def _report_failure(node: Node, log: structlog.typing.FilteringBoundLogger) -> int:
    status = exit_status_of(node.failure)
    log.error("daemon.gave_up", reason=node.give_up_reason, exit_status=int(status))
    return status


def exit_status_of(failure: BaseException | None) -> ExitStatus:
    """The exit status of a daemon that an actor's failure has ended."""
    match failure:
        case ConfigError():
            return ExitStatus.CONFIGURATION
        case AuthenticationError():
            return ExitStatus.AUTHENTICATION
        case OSError():
            return ExitStatus.BIND
        case _:
            return ExitStatus.FAILURE


async def _drain(node: Node, log: structlog.typing.FilteringBoundLogger) -> None:
    stopped = asyncio.Event()
    node.supervisor.stop(stopped.set)
    try:
        await asyncio.wait_for(stopped.wait(), DRAIN_LIMIT_S)
    except TimeoutError:
        log.warning("daemon.drain_timed_out", limit_s=DRAIN_LIMIT_S)
    # Goodbyes over gRPC are written by tasks that need the loop a little longer than their actor.
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if rest:
        await asyncio.wait(rest, timeout=FLUSH_LIMIT_S)
    log.info("daemon.stopped")
