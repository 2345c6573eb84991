"""Run the demo: `python -m tools.demo`; `make demo` does it.

It runs in a lab of network namespaces where one can be built, else on loopback (or with `--loopback`).
Exit status: 0 when every step happened, 1 when one did not, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from tools.demo.progress import bytes_text
from tools.demo.run import Demo, DemoError, Result
from tools.demo.view import LiveView, PlainView, View
from tools.deployment import log_tail

EXIT_INTERRUPTED = 130
LOG_TAIL_LINES = 15
# Control sockets are below the directory, and a unix socket's name has at most 107 bytes.
MAX_DIRECTORY_BYTES = 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="An agent downloads a file from behind a connector, over the relay, and over a direct "
        "path that comes, is cut, and heals; all on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; steps go to stderr")
    parser.add_argument(
        "--size-mib", type=int, default=24, metavar="N", help="size of the file (default: 24)"
    )
    parser.add_argument("--loopback", action="store_true", help="do without network namespaces")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="use this new directory, and keep it")
    options = parser.parse_args(arguments)
    if options.size_mib < 1:
        parser.error("--size-mib is at least 1")
    if options.keep is not None and options.keep.exists():
        parser.error(f"{options.keep} exists already")
    directory = options.keep.resolve() if options.keep else Path(tempfile.mkdtemp(prefix="ztna-demo-"))
    # Both at every start: a shell starts what is in its background with SIGINT ignored.
    former = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if len(bytes(directory)) > MAX_DIRECTORY_BYTES:
            parser.error(f"{directory} is too long a path for unix sockets below it")
        demo = Demo(directory, options.size_mib << 20, wants_loopback=options.loopback)
        return _run(demo, directory, as_json=options.json)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)


def _run(demo: Demo, directory: Path, *, as_json: bool) -> int:
    stream = sys.stderr if as_json else sys.stdout
    status = 0
    try:
        demo.run(_view(demo, stream))
    except DemoError as error:
        status = 1
        demo.result.error = str(error).partition("\n")[0]
        _report_failure(directory, demo.result.error)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
        demo.result.error = "interrupted"
        print("interrupted; every process has ended", file=sys.stderr)
    if as_json:
        print(json.dumps(demo.result.as_json()))
    elif status == 0:
        print(summary(demo.result), file=stream)
    return status


def _view(demo: Demo, stream: TextIO) -> View:
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, demo.progress, demo.read)
    return PlainView(stream)


def summary(result: Result) -> str:
    """The figures of a run that worked, one per line."""
    rows = {
        "file": f"{bytes_text(result.bytes)} in {result.seconds:.1f} s, SHA-256 correct, "
        f"{result.lost_bytes} bytes lost",
        "rate": f"{result.bytes_per_second / 1e6:.1f} MB/s",
        "first byte": f"{result.time_to_first_byte_ms or 0:.0f} ms after the first connect, from cold, "
        f"path {result.first_byte_path}",
        "UDP echo": "correct",
        "direct": f"after {result.time_to_direct_ms or 0:.0f} ms",
        "fail-over": _cut_text(result),
        "RTT": f"relay {result.rtt_relay_ms or 0:.1f} ms, direct {result.rtt_direct_ms or 0:.1f} ms",
        "path": result.path,
        "session": result.session_id or "-",
    }
    return "\n".join(f"{label:<12}{text}" for label, text in rows.items())


def _cut_text(result: Result) -> str:
    if result.failover_ms is None or result.heal_ms is None:
        return f"left out on {result.place}"
    return f"{result.failover_ms:.0f} ms after the cut; direct again {result.heal_ms:.0f} ms after healing"


def _report_failure(directory: Path, reason: str) -> None:
    print(f"\nThe demo failed: {reason}\nWhat the processes said last:", file=sys.stderr)
    for path in sorted(directory.glob("*.log")):
        print(f"--- {path.name}\n{log_tail(path, LOG_TAIL_LINES)}", file=sys.stderr)


def _interrupt(signal_number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(signal_number).name)


if __name__ == "__main__":
    sys.exit(main())
