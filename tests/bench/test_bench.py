"""The benchmark runner, on benchmarks that take no time."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tools.bench import __main__ as runner


@pytest.fixture(autouse=True)
def _instant(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        return SimpleNamespace(run=lambda: {"module": name, "nested": {"hop_us": 1.5}})

    monkeypatch.setattr(importlib, "import_module", load)


def test_the_named_benchmark_runs_and_the_machine_is_stated(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["actors", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert list(results) == ["machine", "actors"]
    assert results["actors"]["module"] == "tools.bench.actors"
    assert {"date", "python", "system", "cpu_count", "load_average_1min"} <= set(results["machine"])


def test_all_benchmarks_run_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([]) == 0
    output = capsys.readouterr().out
    assert all(f"tools.bench.{name}" in output for name in runner.names())
    assert "hop_us" in output


def test_an_unknown_name_is_a_usage_error_that_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        runner.main(["nonsense"])
    assert "there are" in capsys.readouterr().err


def test_bound_that_was_not_kept_is_told_and_ends_in_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SimpleNamespace(run=lambda: {"violations": ["agent grew"]})
    monkeypatch.setattr(importlib, "import_module", lambda _name: module)
    assert runner.main(["actors", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["actors"] == {"violations": ["agent grew"]}
    assert output.err == "violated: agent grew\n"
