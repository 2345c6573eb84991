"""Every pair of kinds, with the real daemons: which path they end on, and whether it is the right one."""

from __future__ import annotations

import hashlib
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from tools.deployment import DeploymentError
from tools.natlab.cell import (
    DIRECT,
    NONE,
    POLL_INTERVAL_S,
    RELAY,
    SessionPath,
    restart_ice,
    session_path,
    wait_for_punch,
)
from tools.natlab.deployment import LabDeployment
from tools.natlab.kinds import Access, MappingBehaviour, direct_path_possible, obstacle
from tools.natlab.lab import Lab
from tools.natlab.namespaces import LabError
from tools.natlab.plan import Link, Plan, pair
from tools.natlab.scorecard import Scorecard
from tools.natlab.topology import SECOND_INTERMEDIATE

KINDS: Final = (
    "open",
    "firewall",
    "eim-eif",
    "eim-adf",
    "eim-apdf",
    "apdm-random",
    "apdm-sequential",
    "udp-blocked",
    "eim-apdf/eim-eif",
)
FILE_BYTES: Final = 1 << 20
AGENT: Final = "agent-1"
NODES: Final = (AGENT, "connector-1")
AGENT_PORT: Final = 8000
READY_LIMIT_S: Final = 40.0
EXPLANATION_LIMIT_S: Final = 5.0
"""From the end of the last punch to the final reason."""
DIRECT_LIMIT_MS: Final = 5000.0
"""From the offer to a direct path, of every punch."""


@dataclass(frozen=True, slots=True)
class Options:
    """Punches in each cell, one-way delay of each site's link, how long a direct path may take."""

    punches: int = 5
    delay_ms: float = 20.0
    limit_s: float = 8.0

    @property
    def answer_limit_ms(self) -> float:
        """From the answer to a pair that succeeded at both ends: two round trips of the sites and 100 ms."""
        return 2 * 4 * self.delay_ms + 100


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of the agent behind `a` and the connector behind `b`.

    `time_to_direct_ms` and `answer_to_succeeded_ms` are medians of the punches that succeeded, the latter at
    whichever end was later; `path` is direct only if all of them did. `reason` is the agent's word for a
    relayed one, or what went wrong; `expected_reason` that of RFC 4787 logic. `answer_limit_ms` bounds the
    median of `answer_to_succeeded_ms`.
    """

    a: str
    b: str
    path: str
    expected: str
    reason: str
    expected_reason: str
    time_to_direct_ms: float | None
    answer_to_succeeded_ms: float | None
    sha256_ok: bool
    punches_ms: tuple[float | None, ...]
    answer_limit_ms: float

    @property
    def is_as_expected(self) -> bool:
        """Whether the path is what RFC 4787 asks for, in time or for the right reason, and the data right."""
        if self.path != self.expected or not self.sha256_ok:
            return False
        if self.path == DIRECT:
            answered_ms = self.answer_to_succeeded_ms
            return (
                all(each is not None and each <= DIRECT_LIMIT_MS for each in self.punches_ms)
                and answered_ms is not None
                and answered_ms <= self.answer_limit_ms
            )
        return self.has_expected_reason

    @property
    def has_expected_reason(self) -> bool:
        """Whether the agent names what rules a direct path out by RFC 4787 logic."""
        return self.reason == self.expected_reason


def run(
    kinds: Sequence[str], options: Options, *, is_ordered: bool, jobs: int, report: Callable[[Cell], None]
) -> list[Cell]:
    """Each pair, in the order of `kinds`; with `is_ordered` both ways round. `report` hears of each."""
    if is_ordered:
        pairs = list(itertools.product(kinds, repeat=2))
    else:
        pairs = list(itertools.combinations_with_replacement(kinds, 2))

    def one(names: tuple[str, str]) -> Cell:
        cell = run_cell(*names, options)
        report(cell)
        return cell

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, pairs))


def run_cell(a: str, b: str, options: Options) -> Cell:
    """Build the lab, start the daemons, punch, move data; a failure is the cell's `reason`."""
    accesses = Access.parse(a), Access.parse(b)
    blank = Cell(
        a=a,
        b=b,
        path=NONE,
        expected=DIRECT if direct_path_possible(*accesses) else RELAY,
        reason="",
        expected_reason=obstacle(*accesses),
        time_to_direct_ms=None,
        answer_to_succeeded_ms=None,
        sha256_ok=False,
        punches_ms=(),
        answer_limit_ms=options.answer_limit_ms,
    )
    with tempfile.TemporaryDirectory(prefix="ztna-") as name:
        directory = Path(name)
        try:
            with (
                Lab(plan_of(accesses, options)) as lab,
                LabDeployment(directory / "d", lab) as deployment,
            ):
                return _measured(blank, deployment, directory, options)
        except (LabError, DeploymentError) as error:
            return replace(blank, reason=str(error).partition("\n")[0])


def plan_of(accesses: tuple[Access, Access], options: Options) -> Plan:
    """The lab of a cell: where a mapping depends on the address, it takes two addresses to know that."""
    plan = pair(*accesses, delay_ms=options.delay_ms)
    if MappingBehaviour.ADDRESS_DEPENDENT in {each.behaviour.mapping for each in accesses}:
        return replace(plan, second_intermediate=Link())
    return plan


def _measured(cell: Cell, deployment: LabDeployment, directory: Path, options: Options) -> Cell:
    content = random.Random(f"{cell.a} {cell.b}").randbytes(FILE_BYTES)
    served = directory / "served"
    served.mkdir()
    (served / "file").write_bytes(content)
    deployment.add_intermediate()
    if deployment.lab.plan.second_intermediate is not None:
        deployment.add_intermediate("intermediate-2", host=SECOND_INTERMEDIATE)
    backend = deployment.serve_files("b", served)
    deployment.add_connector("connector-1", [{"id": "files", "protocol": "tcp", "backend": backend}])
    deployment.add_agent(AGENT, [{"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{AGENT_PORT}"}])
    deployment.start()
    deployment.wait_ready(timeout_s=READY_LIMIT_S)

    def is_right() -> bool:
        return deployment.download("a", AGENT_PORT, "/file")[1] == hashlib.sha256(content).hexdigest()

    # The first client opens the session, and the daemons punch while it is served over the relay.
    right = is_right()
    punches = [wait_for_punch(deployment, NODES, 0, options.limit_s)]
    for _ in range(options.punches - 1):
        restart_ice(deployment, AGENT)
        punches.append(wait_for_punch(deployment, NODES, punches[-1].generation, options.limit_s))
    # Again over whatever path there is now.
    right = is_right() and right
    found = _explained(deployment, cell)
    times = [punch.time_to_direct_ms for punch in punches if punch.path == DIRECT]
    successes = [each for each in times if each is not None]
    is_reliable = len(successes) == options.punches
    return replace(
        cell,
        path=found.path if found.path != DIRECT or is_reliable else RELAY,
        reason=found.reason,
        time_to_direct_ms=_median(successes),
        answer_to_succeeded_ms=_median([punch.answer_to_succeeded_ms for punch in punches]),
        sha256_ok=right,
        punches_ms=tuple(punch.time_to_direct_ms for punch in punches),
    )


def _explained(deployment: LabDeployment, cell: Cell) -> SessionPath:
    """The path, and its reason once that can be known: what a NAT lets in shows after seconds of silence."""
    deadline = time.monotonic() + EXPLANATION_LIMIT_S
    while True:
        found = session_path(deployment, AGENT)
        if found.path != RELAY or found.reason == cell.expected_reason or time.monotonic() > deadline:
            return found
        time.sleep(POLL_INTERVAL_S)


def _median(figures: Sequence[float | None]) -> float | None:
    known = [each for each in figures if each is not None]
    return round(statistics.median(known), 1) if known else None


def as_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """The stable form: `cells`, and whether all of them are as expected."""
    return {
        "is_as_expected": all(cell.is_as_expected for cell in cells),
        "cells": [
            {**asdict(cell), "punches_ms": list(cell.punches_ms), "is_as_expected": cell.is_as_expected}
            for cell in cells
        ],
    }


def from_json(shown: dict[str, Any]) -> tuple[list[str], list[Cell]]:
    """The kinds, in their order, and the cells of what `as_json` gave. Raises `ValueError`."""
    try:
        cells = [
            Cell(
                **{each.name: entry[each.name] for each in fields(Cell)}
                | {"punches_ms": tuple(entry["punches_ms"])}
            )
            for entry in shown["cells"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no result of a matrix: {error}") from None
    # Of an unordered matrix the first row has all of them.
    return list(dict.fromkeys([*(cell.a for cell in cells), *(cell.b for cell in cells)])), cells


def scorecard(kinds: Sequence[str], cells: Sequence[Cell]) -> Scorecard:
    """What came of each pair; what is unexpected is bold.

    Of a direct path it has two times: from the offer to the path, and from the answer to the first pair that
    succeeded.
    """
    good = sum(cell.is_as_expected for cell in cells)
    summary = f"{good} of {len(cells)} cells are as RFC 4787 logic says."
    direct = [cell for cell in cells if cell.path == DIRECT]
    to_direct = _range_ms(cell.time_to_direct_ms for cell in direct)
    to_succeeded = _range_ms(cell.answer_to_succeeded_ms for cell in direct)
    if to_direct and to_succeeded:
        summary += (
            f" Direct paths came {to_direct} after the offer; the first pair succeeded {to_succeeded} "
            "after the answer."
        )
    return Scorecard(kinds, {(cell.a, cell.b): _text(cell) for cell in cells}, summary)


def _range_ms(figures: Iterable[float | None]) -> str:
    known = sorted(each for each in figures if each is not None)
    return f"{known[0]:.0f} to {known[-1]:.0f} ms" if known else ""


def _text(cell: Cell) -> str:
    text = cell.path
    if cell.path == DIRECT and cell.time_to_direct_ms is not None:
        text += f" {cell.time_to_direct_ms:.0f}"
        if cell.answer_to_succeeded_ms is not None:
            text += f" / {cell.answer_to_succeeded_ms:.0f}"
        text += " ms"
    if not cell.sha256_ok:
        text += ", data wrong"
    if cell.is_as_expected:
        return text
    expected = cell.expected
    if cell.path == cell.expected == RELAY and not cell.has_expected_reason:
        text, expected = f"{text} for {cell.reason or 'no reason'}", f"{expected} for {cell.expected_reason}"
    return f"**{text}, expected {expected}**"
