"""Run benchmarks: `python -m tools.bench [NAME ...] [--json]`; without a name, all of them.

A benchmark is a module of `tools.bench` that has a `run()`. Every result carries the machine and the date,
so that numbers are only ever compared with numbers of the same run. A benchmark that has bounds to keep lists
under `violations` those it did not, and the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import os
import pkgutil
import platform
import signal
import sys
from typing import Any

import tools.bench
from tools.bench._figures import lines

# What benchmarks share, and a test or another tool may use as well; and what has a command of its own.
NO_BENCHMARKS = frozenset({"fleet", "soak"})


def names() -> list[str]:
    """Every benchmark there is, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(tools.bench.__path__))
    return sorted(name for name in modules if not name.startswith("_") and name not in NO_BENCHMARKS)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception, so that it ends the daemons that it started."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(names())}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(names())}")
    end_on_sigterm()
    results: dict[str, Any] = {"machine": machine()}
    for name in options.names or names():
        results[name] = importlib.import_module(f"tools.bench.{name}").run()
    if options.json:
        print(json.dumps(results))
    else:
        print("\n".join(lines(results)))
    violations = [text for name in results for text in results[name].get("violations", ())]
    for text in violations:
        print(f"violated: {text}", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
