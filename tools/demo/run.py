"""The steps of the demo, in order, with real processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tools.demo.backends import Sent, sent_files
from tools.demo.place import AGENT, CONNECTOR, ECHO, FILES, INTERMEDIATE, Place, choose
from tools.demo.progress import (
    Progress,
    Step,
    Transfer,
    bytes_text,
    newest_session,
    path_text,
    registered_nodes,
    registered_services,
    rtt_text,
    selected_at_s,
)
from tools.demo.traffic import Download, TrafficError, download, echo_datagrams, write_random_file
from tools.demo.view import View
from tools.demo.watch import StatusWatch, WatchTimeoutError
from tools.deployment import Deployment, DeploymentError
from tools.natlab.namespaces import LabError
from ztna.errors import ConfigError
from ztna.v1 import control_pb2

FILES_DIRECTORY, FILE_NAME = "files", "random.bin"

# The whole demo ends within a minute; ending the processes may take the last six seconds of it.
TIME_LIMIT_S = 52.0
# The daemons report a session's figures once a second, and measure each path as often.
FIGURES_LIMIT_S = 8.0
READY_LIMIT_S = 20.0
# Each change of path takes a second or two; on a machine with other work, several.
PATH_LIMIT_S = 15.0
# How long a path is left alone, so that people see it and both round-trip times are measured.
HOLD_S = 2.0
POLL_INTERVAL_S = 0.02
# After a cut, more than what was on its way already.
RESUMED_BYTES = 1 << 16
# Enough to see that the download is under way on the relay.
RELAYED_BYTES = 1 << 16
# The service notes what it sent as soon as the kernel has taken it; the client may be a moment earlier.
RECORD_LIMIT_S = 5.0

DIRECT, RELAY = "direct", "relay"
PATHS = frozenset({DIRECT, RELAY})

EXPECTED = (
    DeploymentError,
    TrafficError,
    WatchTimeoutError,
    LabError,
    ConfigError,
    OSError,
    RuntimeError,
)


class DemoError(Exception):
    """The demo failed; the first line says why."""


@dataclass(slots=True)
class Result:
    """What `--json` prints. Rates are of payload, `bytes_per_second` after the first byte.

    `place` is `lab` or `loopback`, and `place_reason` says why not the lab. `first_byte_path` is what the
    connector had selected when the first byte arrived; in the lab that is the relay, or the demo fails, since
    the direct path is shut until bytes have come. `time_to_direct_ms` counts from the offer to the direct
    path; in the lab from the moment at which it was opened. `failover_ms` counts from the cut to the next
    byte that the download got, `heal_ms` from its end to the direct path; both only in the lab. `lost_bytes`
    is what the service sent and the client never got, None if the download did not end or the service said
    nothing; `sha256_ok` that the file, what was sent of it and what arrived are the same.
    """

    ok: bool = False
    sha256_ok: bool = False
    bytes: int = 0
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    path: str = "none"
    udp_echo_ok: bool = False
    time_to_first_byte_ms: float | None = None
    first_byte_path: str | None = None
    rtt_ms: float | None = None
    time_to_direct_ms: float | None = None
    failover_ms: float | None = None
    heal_ms: float | None = None
    rtt_relay_ms: float | None = None
    rtt_direct_ms: float | None = None
    lost_bytes: int | None = None
    session_id: str | None = None
    place: str = "none"
    place_reason: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The keys in the order above, figures rounded to what they are worth."""
        return {
            key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


def first_byte_path(transfer: Transfer, direct_at_s: float | None) -> str | None:
    """What carried the first byte, if its sender selected the direct path then; None: there is no byte."""
    if transfer.first_byte_at_s is None:
        return None
    return RELAY if direct_at_s is None or transfer.first_byte_at_s < direct_at_s else DIRECT


def judge(result: Result, done: Download, sent: Sent | None, file: Sent) -> None:
    """Compare what arrived with what the service sent, and both with the file. Raises `TrafficError`."""
    if sent is None:
        raise TrafficError("the file server did not say what it sent")
    result.lost_bytes = sent.size - done.bytes_received
    result.sha256_ok = done.sha256 == sent.sha256 == file.sha256
    if result.lost_bytes or sent.size != file.size:
        raise TrafficError(f"{done.bytes_received} bytes arrived, {sent.size} sent, of {file.size}")
    if not result.sha256_ok:
        raise TrafficError(f"SHA-256 differs: {done.sha256}, sent {sent.sha256}, of the file {file.sha256}")


class BackgroundDownload:
    """A download in a thread of its own; `join` returns what came of it."""

    def __init__(
        self, place: Place, port: int, transfer: Transfer, deadline: float, on_change: Callable[[], None]
    ) -> None:
        self._transfer = transfer
        self._on_change = on_change
        self._done: Download | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(place, port, deadline), name="download", daemon=True
        )

    def start(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def check(self) -> None:
        """Raise what ended it, if anything did."""
        if self._error is not None:
            raise self._error

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to come."""
        return not self._thread.is_alive()

    def join(self, limit_s: float) -> Download:
        """Wait for the end. Raises `TrafficError`."""
        self._thread.join(limit_s)
        self.check()
        if self._done is None:
            raise TrafficError(f"the download takes too long: {self._transfer.received} bytes so far")
        return self._done

    def _run(self, place: Place, port: int, deadline: float) -> None:
        try:
            self._done = download(
                port, f"/{FILE_NAME}", deadline, self._on_first_byte, self._on_progress, place.socket
            )
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._error = error
        self._on_change()

    def _on_first_byte(self, seconds: float) -> None:
        self._transfer.first_byte_at_s = time.time()
        self._transfer.first_byte_s = seconds
        self._on_change()

    def _on_progress(self, received: int) -> None:
        self._transfer.note(received, time.monotonic())


class Demo:
    """One run; `result` is filled step by step, so that a failure still shows what worked."""

    def __init__(self, directory: Path, size: int, *, wants_loopback: bool = False) -> None:
        self.result = Result()
        self.progress = Progress(Transfer(size))
        self._wants_loopback = wants_loopback
        self._directory = directory
        self._deadline = time.monotonic() + TIME_LIMIT_S
        self._view: View
        self._place: Place
        self._deployment: Deployment
        self._watch: StatusWatch | None = None

    def read(self, name: str) -> control_pb2.DaemonStatus | None:
        """The latest status of a daemon, for the view."""
        return self._watch.latest(name) if self._watch is not None else None

    def run(self, view: View) -> None:
        """Do everything. Raises `DemoError`; every process has ended when this returns or raises."""
        self._view = view
        with view, ExitStack() as stack:
            try:
                self._run(stack)
            except EXPECTED as error:
                self._tell(str(error).partition("\n")[0], is_failure=True)
                raise DemoError(str(error)) from error

    def _run(self, stack: ExitStack) -> None:
        transfer, result = self.progress.transfer, self.result
        place = self._place = stack.enter_context(choose(transfer.size, wants_loopback=self._wants_loopback))
        result.place, result.place_reason = place.name, place.reason
        self.progress.place = place.description
        if place.reason is not None:
            self._tell(f"no lab, so cutting and healing are left out: {place.reason}")
        self._tell(place.description)
        shared = self._directory / FILES_DIRECTORY
        shared.mkdir(parents=True)
        digest = write_random_file(shared / FILE_NAME, transfer.size)
        self._deployment, ports = place.build(self._directory, shared)
        self._deployment.start()
        self._tell(f"started: {len(self._deployment.daemons)} daemons, a file server, a UDP echo")
        self._watch = stack.enter_context(
            StatusWatch({name: each.control_socket for name, each in self._deployment.daemons.items()})
        )
        self._await_registration()
        self._download(ports[FILES], digest)
        self._echo(ports[ECHO])
        self._take_figures()
        result.ok = True

    def _await_registration(self) -> None:
        for name in self._deployment.daemons:
            self._wait(name, lambda status: status.is_ready, "ready", READY_LIMIT_S)
        known = self._wait(
            INTERMEDIATE,
            lambda status: (len(status.nodes), len(status.registered_services)) == (2, 2),
            "connector and agent registered",
            READY_LIMIT_S,
        )
        self._tell(f"registered: {', '.join(registered_nodes(known))}")
        self._tell(f"services: {', '.join(registered_services(known))}")

    def _download(self, port: int, digest: str) -> None:
        """The whole story of the path, while the file comes in."""
        transfer, result = self.progress.transfer, self.result
        if self._place.can_cut:
            self._place.cut()
            self._tell("the direct path is shut until the download is under way")
        running = BackgroundDownload(self._place, port, transfer, self._deadline, self._wake).start()
        try:
            self._begin(running)
            if self._place.can_cut:
                self._cut_and_heal(running)
            done = running.join(max(0.0, self._deadline - time.monotonic()))
        finally:
            result.bytes = transfer.received
        result.seconds, result.bytes_per_second = done.seconds, done.bytes_per_second
        judge(result, done, self._sent(), Sent(transfer.size, digest))
        self._tell(
            f"downloaded {bytes_text(done.bytes_received)} in {done.seconds:.1f} s, "
            f"{done.bytes_per_second / 1e6:.1f} MB/s; SHA-256 matches what was sent, and the file"
        )

    def _sent(self) -> Sent | None:
        """What the service says of its one answer; None if it says nothing in time."""
        deadline = time.monotonic() + RECORD_LIMIT_S
        while not (sent := sent_files(self._directory / FILES_DIRECTORY)):
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_INTERVAL_S)
        return sent[-1]

    def _begin(self, running: BackgroundDownload) -> None:
        """On the relay first, then on the direct path, at both ends."""
        transfer, result = self.progress.transfer, self.result
        started_at = time.monotonic()
        first = self._wait_session(AGENT, lambda session: session.path in PATHS, "a session", running)
        took_ms = (time.monotonic() - started_at) * 1e3
        self._tell(f"session after {took_ms:.0f} ms: {path_text(first)}")
        opened_at = None
        if self._place.can_cut:
            self._until(lambda: transfer.received > RELAYED_BYTES or running.is_over, running)
            self._tell(self._first_byte())
            if result.first_byte_path != RELAY:
                raise TrafficError("the download did not begin on the relay")
            opened_at = time.monotonic()
            self._place.heal()
            self._tell(f"opened the direct path, at {bytes_text(transfer.received)}")
        session = self._wait_both(
            lambda session: session.path == DIRECT and transfer.first_byte_s is not None,
            "the direct path",
            running,
        )
        result.time_to_direct_ms = session.direct_path.time_to_direct_ms
        if opened_at is not None:
            result.time_to_direct_ms = (time.monotonic() - opened_at) * 1e3
        lines = [f"{path_text(session)}, found in {result.time_to_direct_ms:.0f} ms"]
        if opened_at is None:
            # In the order in which both came.
            first_byte = self._first_byte()
            lines.insert(0 if result.first_byte_path == RELAY else 1, first_byte)
        for line in lines:
            self._tell(line)

    def _first_byte(self) -> str:
        """Take down when the first byte came, and over which path; returns the line that tells it."""
        transfer, result = self.progress.transfer, self.result
        result.time_to_first_byte_ms = (transfer.first_byte_s or 0.0) * 1e3
        result.first_byte_path = first_byte_path(
            transfer, selected_at_s(self._deployment.daemons[CONNECTOR].log_path, DIRECT)
        )
        took_ms = result.time_to_first_byte_ms
        return f"first byte after {took_ms:.0f} ms, from cold, path {result.first_byte_path}"

    def _cut_and_heal(self, running: BackgroundDownload) -> None:
        transfer, result = self.progress.transfer, self.result
        self._hold(running)
        self._tell(f"direct: {transfer.rate / 1e6:.1f} MB/s; RTT {rtt_text(self._session())}")
        if running.is_over:
            raise TrafficError("the download was over before the direct path was cut")
        transfer.forget_pauses()
        cut_at, received = time.monotonic(), transfer.received
        self._place.cut()
        self._tell(f"cut the direct path, at {bytes_text(received)} of {bytes_text(transfer.size)}")

        def is_relayed(session: control_pb2.SessionStatus) -> bool:
            return session.path == RELAY and session.direct_path.fail_overs > 0

        # The end that sends the file notices first; the other one, once a check is missed.
        self._wait_session(CONNECTOR, is_relayed, "fall back to the relay", running)
        received = transfer.received
        self._until(lambda: transfer.received > received + RESUMED_BYTES or running.is_over, running)
        if running.is_over:
            raise TrafficError("the download was over before it could fall back to the relay")
        result.failover_ms = ((transfer.pause_end_at or time.monotonic()) - cut_at) * 1e3
        self._tell(f"the download goes on {result.failover_ms:.0f} ms after the cut")
        session = self._wait_both(is_relayed, "fall back to the relay", running)
        self._tell(f"{path_text(session)}, at both ends")
        self._hold(running)
        self._tell(f"relay: {transfer.rate / 1e6:.1f} MB/s; RTT {rtt_text(self._session())}")
        healed_at = time.monotonic()
        self._place.heal()
        self._place.hurry()
        self._tell("healed, and the links as fast as they can be")
        session = self._wait_both(lambda session: session.path == DIRECT, "direct again", running)
        result.heal_ms = (time.monotonic() - healed_at) * 1e3
        self._tell(f"{path_text(session)}, {result.heal_ms:.0f} ms after healing")

    def _echo(self, port: int) -> None:
        echoes = echo_datagrams(port, make_socket=self._place.socket)
        self.result.udp_echo_ok = True
        repeated = sum(echo.sends - 1 for echo in echoes)
        sizes = ", ".join(str(echo.size) for echo in echoes)
        self._tell(
            f"UDP echo: {sizes} bytes came back whole" + (f", {repeated} sent again" if repeated else "")
        )

    def _take_figures(self) -> None:
        """Path and round-trip times as the agent itself reports them, of a download that used both paths."""
        status = self._wait(
            AGENT,
            # The last report covers the whole download: sealed bytes are never fewer than payload.
            lambda status: bool(
                status.sessions
                and status.sessions[0].rtt_ms
                and status.sessions[0].path == DIRECT
                and status.sessions[0].direct_path.rtt_relay_ms
                and status.sessions[0].direct_path.rtt_direct_ms
                and status.sessions[0].bytes_received > self.result.bytes
            ),
            "a direct path, and round-trip times of both paths",
            FIGURES_LIMIT_S,
        )
        session, result = status.sessions[0], self.result
        result.path = session.path
        result.rtt_ms = session.rtt_ms
        result.rtt_relay_ms = session.direct_path.rtt_relay_ms
        result.rtt_direct_ms = session.direct_path.rtt_direct_ms
        result.session_id = session.session_id.hex()
        self._tell(f"in the end {session.path}; RTT {rtt_text(session)}")

    def _session(self) -> control_pb2.SessionStatus:
        session = newest_session(self.read(AGENT))
        if session is None:
            raise TrafficError("the session is gone")
        return session

    def _wait_both(
        self, predicate: Callable[[control_pb2.SessionStatus], bool], what: str, running: BackgroundDownload
    ) -> control_pb2.SessionStatus:
        """As `_wait_session`, for both ends; returns the agent's."""
        self._wait_session(CONNECTOR, predicate, what, running)
        return self._wait_session(AGENT, predicate, what, running)

    def _wait_session(
        self,
        name: str,
        predicate: Callable[[control_pb2.SessionStatus], bool],
        what: str,
        running: BackgroundDownload,
    ) -> control_pb2.SessionStatus:
        def is_so(status: control_pb2.DaemonStatus) -> bool:
            session = newest_session(status)
            return session is not None and predicate(session)

        try:
            return self._wait(name, is_so, what, PATH_LIMIT_S, running.check).sessions[0]
        except WatchTimeoutError as error:
            session = newest_session(self.read(name))
            if session is None:
                raise
            raise TrafficError(
                f"{name}: not in time: {what}; {path_text(session)}, {session.path_reason}"
            ) from error

    def _hold(self, running: BackgroundDownload) -> None:
        """Leave the path alone until people have seen it, and both round-trip times are known."""
        until = time.monotonic() + HOLD_S

        def is_measured() -> bool:
            figures = self._session().direct_path
            return bool(figures.rtt_relay_ms and figures.rtt_direct_ms)

        self._until(lambda: time.monotonic() >= until and is_measured(), running)

    def _until(self, predicate: Callable[[], bool], running: BackgroundDownload) -> None:
        while not predicate():
            running.check()
            if time.monotonic() > self._deadline:
                raise TrafficError("the demo takes too long")
            time.sleep(POLL_INTERVAL_S)

    def _wake(self) -> None:
        if self._watch is not None:
            self._watch.wake()

    def _wait(
        self,
        name: str,
        predicate: Callable[[control_pb2.DaemonStatus], bool],
        what: str,
        limit_s: float,
        check_more: Callable[[], None] | None = None,
    ) -> control_pb2.DaemonStatus:
        def check() -> None:
            for each in self._deployment.daemons:
                self._deployment.check_running(each, f"{name}: {what}")
            if check_more is not None:
                check_more()

        if self._watch is None:
            raise RuntimeError("nobody follows the daemons yet")
        deadline = min(self._deadline, time.monotonic() + limit_s)
        return self._watch.wait_for(name, predicate, what, deadline, check)

    def _tell(self, text: str, *, is_failure: bool = False) -> None:
        step = Step(self.progress.elapsed_s, text, is_failure)
        self.progress.steps.append(step)
        self._view.step(step)
