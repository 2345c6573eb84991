from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from tests.unit.cli.statuses import served
from ztna.cli.main import ztna
from ztna.v1 import control_pb2

CHANGED = control_pb2.ReloadResponse(applied=["log.level", "services"], needs_restart=["udp.bind"])


def reload(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(ztna, ["reload", "--socket", str(path), *arguments])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def test_what_changed_and_what_needs_a_restart_is_said(path: Path) -> None:
    with served(path, reload=CHANGED):
        result = reload(path)
    assert result.exit_code == 0
    assert result.output == (
        "reloaded; changed: log.level, services\nchanged in the file, and needs a restart: udp.bind\n"
    )


def test_nothing_changed(path: Path) -> None:
    with served(path):
        result = reload(path)
    assert result.output == "reloaded; changed: no key (files were read again)\n"


def test_json_for_scripts(path: Path) -> None:
    with served(path, reload=CHANGED):
        result = reload(path, "--json")
    assert json.loads(result.output) == {
        "applied": ["log.level", "services"],
        "needs_restart": ["udp.bind"],
    }


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(grpc.StatusCode.INVALID_ARGUMENT, 2), (grpc.StatusCode.FAILED_PRECONDITION, 3)],
    ids=["configuration", "credentials"],
)
def test_what_is_faulty_is_one_line_and_an_exit_code(
    path: Path, code: grpc.StatusCode, exit_code: int
) -> None:
    with served(path, reload=(code, "agent.yaml:3: services.0.listen: is required")):
        result = reload(path)
    assert result.exit_code == exit_code
    assert result.output == "ztna: agent.yaml:3: services.0.listen: is required\n"


def test_no_daemon(path: Path) -> None:
    result = reload(path)
    assert result.exit_code == 4
    assert "not running" in result.output
