"""Planted bugs: each still has what it changes, and some are found at once; `--prove` finds them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.simulate import __main__ as command
from tools.simulate import coverage
from tools.simulate.generate import RECIPES
from tools.simulate.mutations import MUTATIONS, Edit, MutationError, planted
from tools.simulate.prove import HEADER, prove, row_of
from ztna.path import manager
from ztna.path.rules import RULES, Event
from ztna.path.traffic import Traffic


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_still_applies_and_leaves_nothing_behind(name: str) -> None:
    mutation = MUTATIONS[name]
    assert mutation.scenario in RECIPES
    edits = [each for each in mutation.changes if isinstance(each, Edit)]
    before = [vars(each.owner)[each.name] for each in edits], dict(RULES)
    with planted(name):
        assert ([vars(each.owner)[each.name] for each in edits], dict(RULES)) != before
    assert ([vars(each.owner)[each.name] for each in edits], dict(RULES)) == before


def test_rule_that_is_planted_rules_where_look_ups_are_counted_too() -> None:
    coverage.install()
    counted = vars(manager)["RULES"]
    before = counted[Event.MIRROR]
    for _ in range(2):
        with planted("no-mirror-rule"):
            assert counted[Event.MIRROR] == RULES[Event.MIRROR] != before
        assert counted[Event.MIRROR] == before


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (Edit(Traffic, "routes", "text that is not there", ""), "0 times"),
        (Edit(Traffic, "routes", "selected", ""), "times"),
        (Edit(Traffic, "gone", "", ""), "no function"),
    ],
)
def test_mutation_of_what_is_gone_is_an_error(edit: Edit, complaint: str) -> None:
    with pytest.raises(MutationError, match=complaint), edit.applied():
        pass


def documented() -> list[str]:
    """The rows of the table of planted bugs."""
    text = Path("docs/simulation.md").read_text(encoding="utf-8")
    _, _, table = text.partition(f"\n{HEADER}\n")
    _, *rows = table.partition("\n\n")[0].splitlines()
    return rows


def test_table_of_the_documents_has_every_mutation_and_who_finds_it() -> None:
    rows = documented()
    assert [row[: len(row_of(each))] for row, each in zip(rows, MUTATIONS.values(), strict=False)] == [
        row_of(each) for each in MUTATIONS.values()
    ]
    assert len(rows) == len(MUTATIONS)
    for row in rows:
        *_, seeds, finding = row.removesuffix(" |").split(" | ")
        assert int(seeds) > 0
        assert finding not in {"", "nothing"}


QUICKLY_FOUND = [
    "timer-not-cancelled",
    "stream-not-freed",
    "answer-waits-for-its-leg",
    "unpadded-nomination",
    "nomination-untold",
    "two-paths-selected",
    "session-unencrypted",
]
SAME_CHARACTERS = 24
"""Of a finding: what comes then may name what a seed draws."""


@pytest.mark.parametrize("name", QUICKLY_FOUND)
def test_planted_bug_is_found_within_a_few_seeds_by_what_the_documents_say(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prove(12, 1, only=name) == 0
    printed = capsys.readouterr().out.splitlines()
    (documents_say,) = (row for row in documented() if row.startswith(row_of(MUTATIONS[name])))
    assert printed[0] == HEADER
    assert _finding(printed[2]) == _finding(documents_say)


def _finding(row: str) -> str:
    return re.sub(r"\d+", "#", row[:-2].rpartition(" | ")[2])[:SAME_CHARACTERS]


def test_command_ends_with_the_violation_of_a_planted_bug(capsys: pytest.CaptureFixture[str]) -> None:
    planting = ["--mutation", "timer-not-cancelled"]
    arguments = [*planting, "--seeds", "5", "--jobs", "1", "--no-minimise"]
    assert command.main(arguments) == command.EXIT_VIOLATION
    assert "--trace --mutation timer-not-cancelled" in capsys.readouterr().out


def test_command_lists_what_can_be_planted_and_refuses_other_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--mutations"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MUTATIONS)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--mutation", "nonsense"])
