"""A lab in the background, for the command line: a process that owns it and answers on a unix socket.

A request is one line of JSON, an answer as well. For `exec`, the three standard streams come with the
request; the answer follows when the command has ended; until then lines `{"signal": N}` are passed on to it.
The process ends by itself when its time is up, so a forgotten lab is no lasting one.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tools.natlab.lab import Cut, Handover, Lab, link_as_json
from tools.natlab.namespaces import LabError
from tools.natlab.plan import Link, Plan

MAX_LINE_BYTES: Final = 1 << 20
STREAMS: Final = 3
START_LIMIT_S: Final = 60.0
ANSWER_LIMIT_S: Final = 60.0
# How long a command may take to end once its caller is gone.
HANG_UP_LIMIT_S: Final = 2.0


def state_directory() -> Path:
    """Where running labs are listed: a directory of this user alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        directory = Path(runtime, "ztna-natlab")
    else:
        directory = Path(tempfile.gettempdir(), f"ztna-natlab-{os.geteuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.geteuid():
        raise LabError(f"{directory} belongs to somebody else")
    return directory


def state_file(name: str) -> Path:
    """The file that says that a lab runs. Raises `LabError` for what is no name."""
    if not name.isalnum() or not name.isascii():
        raise LabError(f"{name!r} is no name of a lab: letters and digits", LabError.USAGE)
    return state_directory() / f"{name}.json"


def running() -> list[dict[str, Any]]:
    """The state of each running lab; files of those that were killed are removed."""
    found = []
    for path in sorted(state_directory().glob("*.json")):
        with suppress(OSError, ValueError):
            state = json.loads(path.read_text(encoding="utf-8"))
            try:
                _connect(state["name"]).close()
            except LabError:
                path.unlink(missing_ok=True)
                path.with_suffix(".sock").unlink(missing_ok=True)
            else:
                found.append(state)
    return found


def start(plan: Plan, name: str | None, lifetime_s: float) -> dict[str, Any]:
    """Build a lab in a process of its own and return its state. Raises `LabError` when that fails."""
    name = name or f"lab{secrets.token_hex(3)}"
    path = state_file(name)
    if name in {state["name"] for state in running()}:
        raise LabError(f"a lab {name} runs already")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # the process that owns the lab, for as long as it lives
        status = 1
        try:
            os.close(reading)
            status = _own(plan, path, lifetime_s, writing)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        readable, _, _ = select.select([pipe], [], [], START_LIMIT_S)
        answer = json.loads((pipe.readline() if readable else "") or '{"error": "the lab did not start"}')
    if "error" in answer:
        os.waitpid(child, 0)
        raise LabError(answer["error"])
    state: dict[str, Any] = answer
    return state


def _own(plan: Plan, path: Path, lifetime_s: float, report: int) -> int:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(STREAMS):
        os.dup2(null, stream)
    try:
        server = _Server(plan, path, lifetime_s)
    except (LabError, OSError) as error:
        os.write(report, json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    os.write(report, json.dumps(server.state).encode() + b"\n")
    os.close(report)
    server.run()
    return 0


class _Server:
    def __init__(self, plan: Plan, path: Path, lifetime_s: float) -> None:
        self._path = path
        self._deadline = time.monotonic() + lifetime_s
        self._wake_reading, self._wake_writing = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop())
        self._has_ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        address = path.with_suffix(".sock")
        address.unlink(missing_ok=True)
        self._lab = Lab(plan)
        try:
            self._listener.bind(str(address))
            self._listener.listen()
            self.state = {
                "name": path.stem,
                "pid": os.getpid(),
                "keeper_pid": self._lab.keeper_pid,
                "hosts": self._lab.hosts,
                "sites": {site.name: str(site.access) for site in plan.sites},
            }
            path.write_text(json.dumps(self.state), encoding="utf-8")
        except BaseException:
            self._lab.close()
            raise
        self._operations: dict[str, Callable[..., Any]] = {
            "show": lambda: {"name": path.stem, **self._lab.show()},
            "link": self._link,
            "rebind": self._lab.rebind,
            "handover": lambda site, how: self._lab.handover(site, Handover(how)),
            "cut": lambda site, direction, towards, protocol: self._lab.cut(
                site, Cut(direction), towards=towards, protocol=protocol
            ),
            "heal": self._lab.heal,
            "down": self._down,
        }

    def run(self) -> None:
        """Answer until it is told to end, or its time is up."""
        listener = self._listener.fileno()
        try:
            while (left := self._deadline - time.monotonic()) > 0:
                readable, _, _ = select.select([listener, self._wake_reading], [], [], left)
                if self._wake_reading in readable:
                    break
                if listener in readable:
                    connection, _ = self._listener.accept()
                    threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        finally:
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(".sock").unlink(missing_ok=True)
            self._lab.close()
            self._has_ended.set()
            for thread in threading.enumerate():
                if thread is not threading.current_thread():
                    thread.join(HANG_UP_LIMIT_S)  # one of them has yet to say so

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            text, descriptors, _, _ = socket.recv_fds(connection, MAX_LINE_BYTES, STREAMS)
            try:
                request = json.loads(text)
                operation = request.pop("operation")
                if operation == "exec":
                    answer = self._exec(connection, descriptors, **request)
                else:
                    answer = self._operations[operation](**request)
            except LabError as error:
                answer = {"error": str(error), "exit_status": error.exit_status}
            except ValueError as error:
                answer = {"error": str(error), "exit_status": LabError.USAGE}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            connection.sendall(json.dumps(answer or {}).encode() + b"\n")

    def _exec(
        self,
        connection: socket.socket,
        descriptors: list[int],
        *,
        host: str,
        argv: list[str],
        env: dict[str, str],
        cwd: str,
    ) -> dict[str, Any]:
        stdin, stdout, stderr = descriptors
        process = self._lab.popen(host, argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
        ended = threading.Event()

        def pass_on() -> None:
            with suppress(OSError, ValueError):
                while text := connection.recv(MAX_LINE_BYTES):
                    for line in text.splitlines():
                        process.send_signal(json.loads(line)["signal"])
            if not ended.is_set():  # the caller is gone, and with it the command's terminal
                process.send_signal(signal.SIGHUP)
                if not ended.wait(HANG_UP_LIMIT_S):
                    process.kill()

        listening = threading.Thread(target=pass_on, daemon=True)
        listening.start()
        status = process.wait()
        ended.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
        listening.join()
        return {"status": status}

    def _link(self, link: str, change: str | None) -> dict[str, Any]:
        if change is not None:
            self._lab.set_link(link, Link.parse(change, self._lab.link(link)))
        return {"link": link, **link_as_json(self._lab.link(link))}

    def _down(self) -> dict[str, Any]:
        self._stop()
        self._has_ended.wait()
        return {"name": self._path.stem}

    def _stop(self) -> None:
        os.write(self._wake_writing, b"x")


def _connect(name: str) -> socket.socket:
    address = str(state_file(name).with_suffix(".sock"))
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError as error:
        connection.close()
        raise LabError(f"no lab {name} runs") from error
    return connection


def ask(name: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """Have a running lab do something. Raises `LabError`."""
    with _connect(name) as connection:
        connection.settimeout(ANSWER_LIMIT_S)
        connection.sendall(json.dumps({"operation": operation, **arguments}).encode() + b"\n")
        return _answer(connection)


def execute(name: str, host: str, argv: list[str], streams: tuple[int, int, int]) -> int:
    """Run a command on a host with these streams; SIGINT and SIGTERM are passed on. Returns its status."""
    with _connect(name) as connection:
        request = {
            "operation": "exec",
            "host": host,
            "argv": argv,
            "env": dict(os.environ),
            "cwd": str(Path.cwd()),
        }
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], list(streams))

        def pass_on(number: int, _frame: object) -> None:
            with suppress(OSError):
                connection.sendall(json.dumps({"signal": number}).encode() + b"\n")

        former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            status: int = _answer(connection)["status"]
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
    return status


def _answer(connection: socket.socket) -> dict[str, Any]:
    text = b""
    while not text.endswith(b"\n"):
        data = connection.recv(MAX_LINE_BYTES)
        if not data:
            raise LabError("the lab has ended")
        text += data
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise LabError(answer["error"], answer["exit_status"])
    return answer
