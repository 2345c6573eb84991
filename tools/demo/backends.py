"""The private services of the demo, each a process of its own: an HTTP file server and a UDP echo.

Usage: `python -m tools.demo.backends files DIRECTORY` or `python -m tools.demo.backends echo`. Each binds a
free port of 127.0.0.1, prints its number on a line, and serves until it is ended. What the file server sent
is recorded beside its directory, for whoever compares it with what arrived.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LOOPBACK = "127.0.0.1"
MAX_DATAGRAM_BYTES = 65_535
STOP_LIMIT_S = 3.0


@dataclass(frozen=True, slots=True)
class Sent:
    """How much of a file the kernel took for a client, and the SHA-256 of that much, hex."""

    size: int
    sha256: str


def _record(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.sent")


def sent_files(directory: Path) -> list[Sent]:
    """What the server of this directory has sent so far, one for each answer with a file."""
    record = _record(directory)
    # A line is there when all of it is.
    lines = record.read_text(encoding="ascii").splitlines(keepends=True) if record.exists() else []
    return [Sent(**json.loads(line)) for line in lines if line.endswith("\n")]


class FileHandler(SimpleHTTPRequestHandler):
    """Serves files with `sendfile`, so that the server is never what limits the demo."""

    protocol_version = "HTTP/1.1"

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send the body; a client that goes away is its own business."""
        outputfile.flush()
        if not isinstance(source, BufferedReader):  # a directory listing, from memory
            super().copyfile(source, outputfile)
            return
        try:
            self.connection.sendfile(source)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        size = source.tell()  # of what was sent, also when the client went away
        source.seek(0)
        sent = Sent(size, hashlib.sha256(source.read(size)).hexdigest())
        with _record(Path(self.directory)).open("a", encoding="ascii") as record:
            record.write(json.dumps(asdict(sent)) + "\n")


def serve_files(directory: Path) -> None:
    """Serve `directory` over HTTP, for ever."""
    handler = partial(FileHandler, directory=str(directory))
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def serve_echo() -> None:
    """Send every datagram back to where it came from, for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind((LOOPBACK, 0))
        print(echo.getsockname()[1], flush=True)
        while True:
            payload, source = echo.recvfrom(MAX_DATAGRAM_BYTES)
            echo.sendto(payload, source)


class Backend:
    """One service in its own process; a context manager that ends it."""

    def __init__(self, arguments: Sequence[str], log_path: Path) -> None:
        """Start it and wait for its port. Raises `RuntimeError` when it ends instead."""
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.demo.backends", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,  # Ctrl-C in a terminal is for the demo, which ends us
            )
        if self._process.stdout is None:
            raise RuntimeError("no pipe to the backend")
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(f"the {arguments[0]} service did not start; see {log_path}")
        self.port = int(line)

    @property
    def address(self) -> str:
        """As a connector's configuration names it."""
        return f"{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; harmless when it has ended."""
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of a backend process."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo.backends", description="A service of the demo."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("files", help="an HTTP file server").add_argument("directory", type=Path)
    kinds.add_parser("echo", help="a UDP echo")
    options = parser.parse_args(arguments)
    if options.kind == "files":
        serve_files(options.directory)
    else:
        serve_echo()
    return 0


if __name__ == "__main__":
    sys.exit(main())
