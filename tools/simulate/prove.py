"""Shows that the instrument finds what it is there to find: every planted bug, each within so many seeds.

A violation counts only when the same seed holds without the mutation, so that a bug of the code itself is not
mistaken for the planted one.
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import closing

from tools.simulate.generate import generate
from tools.simulate.mutations import MUTATIONS, Mutation
from tools.simulate.parallel import outcomes
from tools.simulate.run import run

MAX_VIOLATION_CHARACTERS = 110
EXIT_NOT_FOUND = 1
HEADER = "| mutation | layer | what is broken | scenario | seeds | found by |"
"""Of the table, which docs/simulation.md has as it is printed."""


def prove(seeds: int, jobs: int, *, only: str = "") -> int:
    """Find each mutation, or the one named, and print a table; 1 when one was not found, else 0."""
    started = time.monotonic()
    print(f"{HEADER}\n{'|---' * HEADER.count(' | ')}|---|")
    missed = [name for name, each in MUTATIONS.items() if only in {"", name} and not _find(each, seeds, jobs)]
    if missed:
        print(f"not found within {seeds} seeds: {', '.join(missed)}")
    print(f"in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return EXIT_NOT_FOUND if missed else 0


def _find(mutation: Mutation, seeds: int, jobs: int) -> bool:
    count = 0
    found = "nothing"
    tasks = ((seed, mutation.scenario) for seed in range(seeds))
    with closing(outcomes(tasks, jobs, mutation.name)) as results:
        for outcome in results:
            count += 1
            if outcome.violation and not run(generate(outcome.seed, outcome.name)).violation:
                found = _brief(outcome.violation)
                break
    print(f"{row_of(mutation)} {count} | {found} |", flush=True)
    return found != "nothing"


def row_of(mutation: Mutation) -> str:
    """What a row of the table says of a mutation before it is looked for."""
    return f"| `{mutation.name}` | {mutation.layer} | {mutation.what} | `{mutation.scenario}` |"


def _brief(violation: str) -> str:
    """The line that says what broke, the same in every run; of a traceback the last one."""
    lines = [line.strip() for line in violation.splitlines() if line.strip()]
    is_traceback = lines[0].startswith("Traceback")
    line = " ".join(lines[-1 if is_traceback else 0].split()).replace("|", "/")
    # Nothing of where an object lies in memory, and no session or attachment: those are drawn.
    line = re.sub(r"<bound method (\S+) of <[^>]*>>", r"\1", line)
    line = re.sub(r"<(\S+) object at 0x[0-9a-f]+>", r"\1", line)
    line = re.sub(r"\b[0-9a-f]{32}\b", "…", line)
    if len(line) <= MAX_VIOLATION_CHARACTERS:
        return line
    return f"{line[:MAX_VIOLATION_CHARACTERS].rsplit(' ', 1)[0]} …"
