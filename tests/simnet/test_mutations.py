"""Planted bugs: each still has what it changes, and some are found at once; `--prove` finds them all."""

from __future__ import annotations

import pytest

from tools.simulate import __main__ as command
from tools.simulate import coverage
from tools.simulate.generate import RECIPES
from tools.simulate.mutations import MUTATIONS, Edit, MutationError, planted
from tools.simulate.prove import prove
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


@pytest.mark.parametrize("name", ["timer-not-cancelled", "stream-not-freed", "answer-waits-for-its-leg"])
def test_planted_bug_is_found_within_a_few_seeds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove(12, 1, only=name) == 0
    assert f"| {name} |" in capsys.readouterr().out


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
