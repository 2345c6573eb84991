"""The rendered actor map says what the table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.actors import test_wiring as tables
from tools.render_actor_map import load, main, render

NOT_A_TABLE = ["x"]


def test_every_actor_has_a_row_with_what_it_hears_and_emits() -> None:
    text = render([tables.GOOD])
    assert "## test" in text
    assert "| `ear` | node | Hears and repeats. | `Poke` *outside* | `Poked` |" in text
    assert "| `punch` | session | Hears and repeats. | `Poke` *outside*, `Poked` | - |" in text


def test_every_row_is_an_edge_of_the_graph() -> None:
    lines = render([tables.GOOD]).splitlines()
    assert '  ear -- "Poked" --> punch' in lines
    assert '  outside -- "Poke" --> leg' in lines
    assert "  outside((outside))" in lines


def test_the_check_fails_until_the_file_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["tests.actors.test_wiring:GOOD", "--output", str(tmp_path / "docs" / "actors.md")]
    assert main([*options, "--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert main(options) == 0
    assert main([*options, "--check"]) == 0


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("tests.actors.no_such_module:X", ImportError),
        ("tests.actors.test_wiring:no_such_attribute", AttributeError),
        ("tests.actors.test_actor_map:NOT_A_TABLE", TypeError),
    ],
)
def test_a_reference_that_is_no_table_is_refused(reference: str, error: Any) -> None:
    with pytest.raises(error):
        load(reference)
