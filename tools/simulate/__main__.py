"""Simulate deployments: `python -m tools.simulate [--seeds N] [--start S] [--scenario NAME] [--jobs J]`.

`--seed S --trace` replays one seed and prints everything that happened; `--mutation NAME` plants a bug first,
and `--prove` shows that each planted bug is found; `--coverage` draws from all scenarios in turn, and wants
every transition passed. Exit status: 0 when every seed held and nothing was missed, 1 otherwise, 2 for wrong
usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.simulate import coverage
from tools.simulate.generate import RECIPES, generate
from tools.simulate.minimise import minimise
from tools.simulate.mutations import MUTATIONS, planted
from tools.simulate.parallel import outcomes
from tools.simulate.prove import prove
from tools.simulate.run import Outcome, run
from tools.simulate.scenario import Scenario
from tools.simulate.timeline import tail

EXIT_VIOLATION = 1
EXIT_INTERRUPTED = 130
SEEDS = 500
PROGRESS_EVERY_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.simulate",
        description="Run whole deployments that seeds decide, and watch them.",
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"how many (default: {SEEDS})")
    parser.add_argument("--start", type=int, default=0, metavar="S", help="the first one (default: 0)")
    parser.add_argument("--scenario", metavar="NAME", help="what to draw from (default: mixed); see --list")
    parser.add_argument("--list", action="store_true", help="print every scenario and what it is about")
    parser.add_argument("--seed", type=int, metavar="S", help="run this seed alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happened")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument(
        "--no-minimise", action="store_true", help="show a violation as it was found, and sooner"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--mutation", default="", metavar="NAME", help="plant this bug first; see --mutations"
    )
    parser.add_argument("--mutations", action="store_true", help="print every bug that can be planted")
    parser.add_argument(
        "--coverage", action="store_true", help="all scenarios in turn; 1 if a transition was never passed"
    )
    parser.add_argument("--prove", action="store_true", help="find each planted bug, and print the table")
    options = parser.parse_args(arguments)
    if options.mutations or options.list:
        _list(has_mutations=options.mutations)
        return 0
    _check(options, parser)
    try:
        if options.prove:
            return prove(options.seeds, options.jobs, only=options.mutation)
        if options.seed is not None:
            return _one(generate(options.seed, options.scenario), options)
        return _many(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _list(*, has_mutations: bool) -> None:
    if has_mutations:
        for mutation in MUTATIONS.values():
            print(f"{mutation.name:<28} {mutation.layer:<10} {mutation.scenario:<11} {mutation.what}")
        return
    for name, recipe in RECIPES.items():
        print(f"{name:<12} {recipe.what}")


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Complain about what cannot be meant, and choose the scenario where none is named."""
    if options.mutation and options.mutation not in MUTATIONS:
        parser.error(f"no mutation named {options.mutation}; see --mutations")
    if options.scenario is None:
        options.scenario = MUTATIONS[options.mutation].scenario if options.mutation else "mixed"
    if options.scenario not in RECIPES:
        parser.error(f"no scenario named {options.scenario}; there are {', '.join(RECIPES)}")
    if options.jobs < 1 or options.seeds < 1:
        parser.error("--jobs and --seeds are at least 1")
    if options.trace and options.seed is None:
        parser.error("--trace needs --seed")


def _one(scenario: Scenario, options: argparse.Namespace) -> int:
    with planted(options.mutation):
        outcome = run(scenario, traces=options.trace)
    if options.trace:
        print("\n".join([*scenario.lines(), *outcome.lines]))
    if outcome.violation:
        _report(
            scenario,
            outcome,
            is_minimised=not options.no_minimise and not options.trace,
            mutation=options.mutation,
        )
        return EXIT_VIOLATION
    print(
        f"seed {scenario.seed} of {scenario.name} held: {outcome.virtual_s:.1f} virtual s, "
        f"{outcome.cpu_s:.2f} s of processor time, {dict(outcome.facts)}"
    )
    return 0


@dataclass(slots=True)
class _Summary:
    started: float = field(default_factory=time.monotonic)
    seeds: int = 0
    cpu_s: float = 0.0
    virtual_s: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    longest: tuple[float, int] = (0.0, 0)
    facts: Counter[str] = field(default_factory=Counter)
    coverage: Counter[str] = field(default_factory=Counter)
    broken: list[int] = field(default_factory=list)
    _told_at: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.cpu_s += outcome.cpu_s
        self.virtual_s += outcome.virtual_s
        self.slowest = max(self.slowest, (outcome.cpu_s, outcome.seed))
        self.longest = max(self.longest, (outcome.virtual_s, outcome.seed))
        self.facts += outcome.facts
        self.coverage += outcome.coverage
        if outcome.violation:
            self.broken.append(outcome.seed)

    def progress(self, total: int) -> None:
        now = time.monotonic()
        if now >= self._told_at + PROGRESS_EVERY_S or self.seeds == total:
            self._told_at = now
            rate = self.seeds / max(now - self.started, 1e-9)
            print(
                f"{self.seeds} of {total} seeds, {rate:.1f} a second, {len(self.broken)} broken", flush=True
            )

    def show(self) -> None:
        seconds = time.monotonic() - self.started
        print(
            f"{self.seeds} seeds in {seconds:.0f} s: {self.cpu_s / max(1, self.seeds):.2f} s of processor "
            f"time and {self.virtual_s / max(1, self.seeds):.0f} virtual s each; the slowest "
            f"{self.slowest[0]:.1f} s (seed {self.slowest[1]}), the longest {self.longest[0]:.0f} virtual s "
            f"(seed {self.longest[1]})"
        )
        facts = self.facts
        print(
            f"{facts['streams']} streams and {facts['datagrams']} datagrams whole, {facts['excused']} "
            f"streams lost with an excuse; {facts['direct']} of {facts['pairs']} pairs had to go direct "
            "and did"
        )
        print("transitions passed:")
        for line in coverage.lines(self.coverage):
            print(f"  {line}")


def _many(options: argparse.Namespace) -> int:
    seeds = range(options.start, options.start + options.seeds)
    tasks = in_turn(seeds) if options.coverage else [(seed, options.scenario) for seed in seeds]
    summary = _Summary()
    status = 0
    name = "in turn" if options.coverage else options.scenario
    print(f"scenario {name}, seeds {seeds.start} to {seeds.stop - 1}, {options.jobs} processes")
    for outcome in outcomes(iter(tasks), options.jobs, options.mutation):
        summary.add(outcome)
        if outcome.violation:
            status = EXIT_VIOLATION
            scenario = generate(outcome.seed, outcome.name)
            if options.keep_going:
                print(
                    f"seed {outcome.seed} of {outcome.name}: {outcome.violation.splitlines()[0][:300]}",
                    flush=True,
                )
            else:
                _report(scenario, outcome, is_minimised=not options.no_minimise, mutation=options.mutation)
                break
        summary.progress(len(seeds))
    summary.show()
    if summary.broken:
        print(f"broken: {' '.join(map(str, sorted(summary.broken)))}")
    if options.coverage:
        missed = coverage.shortcomings(summary.coverage)
        print("\n".join(missed or ["every transition was passed"]))
        status = status or (EXIT_VIOLATION if missed else 0)
    return status


def in_turn(seeds: range) -> list[tuple[int, str]]:
    """Every other time a storyline, else one of the scenarios in turn; each has its own seeds, from 0 on."""
    names = tuple(name for name in RECIPES if name != "corners")
    tasks = []
    for number in seeds:
        turn = number // 2
        is_story = number % 2 == 0
        tasks.append((turn, "corners") if is_story else (turn // len(names), names[turn % len(names)]))
    return tasks


def _report(scenario: Scenario, outcome: Outcome, *, is_minimised: bool, mutation: str = "") -> None:
    print(f"VIOLATION with seed {scenario.seed} of {scenario.name}: {outcome.violation}")
    planting = f" --mutation {mutation}" if mutation else ""
    print(
        f"to replay: python -m tools.simulate --scenario {scenario.name} --seed {scenario.seed} "
        f"--trace{planting}"
    )
    if is_minimised:
        with planted(mutation):
            smaller = minimise(scenario, outcome)
            if smaller != scenario:
                print("what of it is enough:")
                scenario, outcome = smaller, run(smaller)
    print("\n".join(scenario.lines()))
    print("\n".join(tail(outcome.lines)), flush=True)
    print(f"VIOLATION with seed {scenario.seed} of {scenario.name}: {outcome.violation.splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
