"""The owner's end of a lab's namespaces: hosts, processes and sockets in them, through the keeper.

`Namespaces` starts the keeper (`keeper.py`) in fresh network, mount and PID namespaces; as somebody other
than root also in a user namespace. They are anonymous: no name on this machine can collide, and nothing is
mounted that the machine would see. They live exactly as long as the keeper, and the keeper as long as its
owner.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from tools.natlab.foreign_process import ForeignProcess

KEEPER: Final = Path(__file__).with_name("keeper.py")
MAX_ANSWER_BYTES: Final = 1 << 16
# Answers come at once, unless the machine is overloaded or the keeper is broken.
ANSWER_LIMIT_S: Final = 30.0
END_LIMIT_S: Final = 10.0
TOOL_LIMIT_S: Final = 30.0
ADMIN_PATHS: Final = ("/usr/sbin", "/sbin")


def search_path(environment: Mapping[str, str] = os.environ) -> str:
    """Where commands are looked for: as everywhere, and where those of an administrator are.

    The latter is not in the PATH of everybody, although everybody may have a lab.
    """
    known = environment.get("PATH", os.defpath)
    return os.pathsep.join([known, *(each for each in ADMIN_PATHS if each not in known.split(os.pathsep))])


class LabError(Exception):
    """The lab could not do what was asked; the message says what the tool or the kernel said.

    Attributes:
        exit_status: what the command line ends with; `USAGE` where something was named that is not there.
    """

    FAILURE: Final = 1
    USAGE: Final = 2

    def __init__(self, text: str, exit_status: int = FAILURE) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class Namespaces:
    """The hosts of one lab; `close` ends everything in them."""

    def __init__(self) -> None:
        """Start the keeper. Raises `LabError` when the kernel refuses."""
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(ANSWER_LIMIT_S)
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        with theirs:
            self._process = subprocess.Popen(
                [
                    *("unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child"),
                    *(sys.executable, "-I", str(KEEPER), str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Ctrl-C in a terminal is for the owner, who closes the lab.
                start_new_session=True,
            )
        self._is_closed = False

    @property
    def keeper_pid(self) -> int:
        """The process that stands for the lab on this machine; its end is the end of the lab."""
        return self._process.pid

    def add_host(self, name: str) -> None:
        """Create an empty network namespace."""
        self._ask("add_host", name=name)

    def namespace(self, host: str) -> int:
        """A descriptor of a host's network namespace, for whoever may enter it; the caller closes it."""
        _, descriptors = self._ask("namespace", host=host)
        return descriptors[0]

    def sysctl(self, host: str, values: Mapping[str, str]) -> None:
        """Write files below /proc/sys as seen by a host; keys have slashes."""
        self._ask("sysctl", host=host, values=dict(values))

    def socket(self, host: str, family: int, kind: int) -> socket.socket:
        """A socket of this process whose packets leave from `host`; closed with the lab at the latest."""
        _, descriptors = self._ask("socket", host=host, family=int(family), kind=int(kind))
        made = socket.socket(fileno=descriptors[0])
        with self._lock:
            self._sockets.add(made)
        return made

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        namespaces: Sequence[str] = (),
    ) -> ForeignProcess:
        """Start a process on a host; standard output may be `subprocess.PIPE`.

        An argument `{other}` becomes a path of the namespace of host `other`, if that is in `namespaces`.
        Raises `LabError` when it cannot be started.
        """
        environment = os.environ if env is None else env
        pipe: IO[bytes] | None = None
        opened: list[int] = []
        try:
            if stdout == subprocess.PIPE:
                reading, writing = os.pipe2(os.O_CLOEXEC)
                opened.append(writing)
                pipe = os.fdopen(reading, "rb")
                stdout = writing
            descriptors = [
                _descriptor(stream, default, opened)
                for stream, default in ((stdin, None), (stdout, 1), (stderr, 2))
            ]
            answer, incoming = self._ask(
                "spawn",
                descriptors,
                host=host,
                argv=list(argv),
                env={**environment, "PATH": search_path(environment)},
                cwd=cwd or str(Path.cwd()),
                namespaces=list(namespaces),
            )
        except BaseException:
            if pipe is not None:
                pipe.close()
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return ForeignProcess(incoming[0], argv, partial(self.status, answer["pid"]), pipe)

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        text: str = "",
        timeout_s: float = TOOL_LIMIT_S,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        namespaces: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, with `text` as its input, and capture what it prints.

        Raises `LabError` when it fails and `check` is set, or does not end in time.
        """
        # Files in memory instead of pipes: nobody has to read and write at the same time.
        streams = [os.fdopen(os.memfd_create(name), "w+b") for name in ("stdin", "stdout", "stderr")]
        stdin, stdout, stderr = streams
        try:
            stdin.write(text.encode())
            stdin.seek(0)
            process = self.popen(
                host, argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, namespaces=namespaces
            )
            try:
                status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_LIMIT_S)
                raise LabError(f"{' '.join(argv)} on {host}: not done after {timeout_s} s") from None
            printed = [_content(stream) for stream in (stdout, stderr)]
        finally:
            for stream in streams:
                stream.close()
        if check and status != 0:
            raise LabError(f"{' '.join(argv)} on {host}: exit {status}: {printed[1].strip()}")
        return subprocess.CompletedProcess(list(argv), status, *printed)

    def status(self, key: int) -> int:
        """Exit status of a process that has ended."""
        if self._is_closed:
            return -signal.SIGKILL
        answer, _ = self._ask("status", pid=key)
        status: int = answer["status"]
        return status

    def close(self) -> None:
        """End every process in the lab, and the lab; harmless when repeated."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for opened in self._sockets:
                opened.close()
            self._channel.close()
        try:
            # The keeper ends last: once it is gone, so is everything in its PID namespace.
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _ask(
        self, operation: str, descriptors: Iterable[int] = (), **arguments: Any
    ) -> tuple[dict[str, Any], list[int]]:
        request = json.dumps({"operation": operation, **arguments}).encode()
        with self._lock:
            if self._is_closed:
                raise LabError("the lab is closed")
            try:
                socket.send_fds(self._channel, [request], list(descriptors))
                packet, incoming, _, _ = socket.recv_fds(self._channel, MAX_ANSWER_BYTES, 1)
            except (BrokenPipeError, ConnectionResetError):
                packet, incoming = b"", []
        if not packet:
            raise LabError(f"the lab's namespaces are gone: {self._last_words()}")
        for descriptor in incoming:
            os.set_inheritable(descriptor, False)
        answer: dict[str, Any] = json.loads(packet)
        if "error" in answer:
            raise LabError(answer["error"], answer.get("exit_status", LabError.FAILURE))
        return answer, incoming

    def _last_words(self) -> str:
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return "the keeper does not answer"
        text = self._process.stderr.read().decode(errors="replace") if self._process.stderr else ""
        return text.strip() or f"exit {self._process.returncode}"


def _descriptor(stream: int | IO[bytes] | None, default: int | None, opened: list[int]) -> int:
    if stream == subprocess.DEVNULL:
        opened.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        return opened[-1]
    if stream is None and default is not None:
        return default
    if isinstance(stream, int) and stream >= 0:
        return stream
    if stream is None or isinstance(stream, int):
        raise ValueError(f"{stream} is no stream of a process in a lab")
    return stream.fileno()


def _content(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
