"""Fuzz parsers: `python -m tools.fuzz [TARGET ...] [--runs N] [--seed S] [--jobs J]`; all without a name.

Exit status: 0 when everything held, 1 after a violation, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools import pool
from tools.fuzz import runner
from tools.fuzz.runner import Found, Outcome
from tools.fuzz.target import Target
from tools.fuzz.targets import TARGETS

EXIT_VIOLATION = 1
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, targets: Mapping[str, type[Target]] = TARGETS) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz", description="Feed hostile input to whatever reads bytes from outside."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which ones (default: all)")
    parser.add_argument("--list", action="store_true", help="print every target and what it attacks")
    parser.add_argument("--runs", type=int, metavar="N", help="inputs per target (default: the target's own)")
    parser.add_argument("--seconds", type=float, metavar="T", help="end each target after T seconds")
    parser.add_argument("--seed", type=int, metavar="S", help="repeat the run of this seed")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="feed the inputs of this file instead: hex, one per line"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(targets))
    if unknown:
        parser.error(f"no target named {', '.join(unknown)}; there are {', '.join(targets)}")
    if options.jobs < 1 or (options.runs is not None and options.runs < 1):
        parser.error("--jobs and --runs are at least 1")
    chosen = [targets[name] for name in options.targets] or list(targets.values())
    if options.list:
        for target in chosen:
            print(f"{target.name:<22} {target.runs:>9}  {target.what}")
        return 0
    runner.prepare_process()
    if options.input is not None:
        if len(chosen) != 1:
            parser.error("--input needs one TARGET")
        return _replay(parser, chosen[0], options.input)
    seed = int.from_bytes(os.urandom(4), "big") if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    try:
        return _run(chosen, seed, options.runs, options.seconds, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _replay(parser: argparse.ArgumentParser, target: type[Target], path: Path) -> int:
    try:
        inputs = [bytes.fromhex(line) for line in path.read_text(encoding="ascii").split("\n") if line]
    except (OSError, ValueError) as error:
        parser.error(f"{path}: {error}")
    found = runner.replay(target, inputs)
    if found is None:
        print(f"{target.name}: {len(inputs)} inputs, nothing found")
        return 0
    _report(target, found)
    return EXIT_VIOLATION


def _run(
    chosen: Sequence[type[Target]], seed: int, runs: int | None, seconds: float | None, jobs: int
) -> int:
    status = 0
    started = time.monotonic()
    if jobs == 1:
        for target in chosen:
            status |= _run_target(target, seed, seconds, map(runner.run_task, _tasks(target, seed, runs)))
    else:
        with pool.processes(jobs, runner.prepare_process) as executor:
            for target in chosen:
                outcomes = pool.results(executor, jobs, runner.run_task, _tasks(target, seed, runs))
                status |= _run_target(target, seed, seconds, outcomes)
    print(f"{len(chosen)} targets in {time.monotonic() - started:.0f} s")
    return status


def _tasks(target: type[Target], seed: int, runs: int | None) -> Iterator[runner.Task]:
    left = target.runs if runs is None else runs
    block = 0
    while left > 0:
        count = min(left, target.block)
        # Traced inputs take a few times as long, and the first block is like any other.
        yield target, seed, block, count, block == 0
        left -= count
        block += 1


def _run_target(target: type[Target], seed: int, limit_s: float | None, outcomes: Iterator[Outcome]) -> int:
    started = time.monotonic()
    inputs = 0
    refused: Counter[str] = Counter()
    for outcome in outcomes:
        inputs += outcome.inputs
        refused += outcome.refused
        if outcome.found is not None:
            _report(target, outcome.found, seed, outcome.block)
            return EXIT_VIOLATION
        if limit_s is not None and time.monotonic() - started >= limit_s:
            break
    seconds = time.monotonic() - started
    share = refused.total() / max(1, inputs)
    print(
        f"{target.name:<22} {inputs} inputs in {seconds:.1f} s, {inputs / max(seconds, 1e-9):.0f} runs/s, "
        f"{share:.0%} refused for {len(refused)} reasons",
        flush=True,
    )
    return 0


def _report(target: type[Target], found: Found, seed: int | None = None, block: int = 0) -> None:
    print(f"VIOLATION of {target.name}: {found.error}")
    if seed is not None:
        print(f"seed {seed}, block {block}, input {found.index} of it")
    if found.inputs and found.is_replayable:
        print(f"inputs: {len(found.inputs)}; to replay: python -m tools.fuzz {target.name} --input FILE")
    elif found.inputs:
        print(f"{len(found.inputs)} inputs, of which a replay shows nothing; the last:")
    for data in found.inputs if found.is_replayable else found.inputs[-1:]:
        print(data.hex())
    print(found.trace, flush=True)


if __name__ == "__main__":
    sys.exit(main())
