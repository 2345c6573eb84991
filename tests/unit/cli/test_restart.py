from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.unit.cli.statuses import SESSION, agent_status, served
from ztna.cli.main import ztna
from ztna.v1 import control_pb2


def restart(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(ztna, ["restart", "--socket", str(path), *arguments])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def two_sessions() -> control_pb2.DaemonStatus:
    status = control_pb2.DaemonStatus()
    status.sessions.add(session_id=b"\xab" * 16)
    status.sessions.add(session_id=b"\xab" * 15 + b"\x00")
    return status


@pytest.mark.parametrize("arguments", [[], [SESSION.hex()], [SESSION.hex()[:8].upper()]], ids=len)
def test_search_begins_anew_for_the_session_that_is_meant(path: Path, arguments: list[str]) -> None:
    with served(path, agent_status()):
        result = restart(path, *arguments)
    assert result.exit_code == 0
    assert result.output == f"searching anew for a direct path of session {SESSION.hex()}\n"


def test_without_any_session_there_is_nothing_to_do(path: Path) -> None:
    with served(path):
        result = restart(path)
    assert (result.exit_code, result.output) == (0, "there is no session\n")


def test_json_for_scripts(path: Path) -> None:
    with served(path, two_sessions()):
        result = restart(path, "--json")
    assert json.loads(result.output) == {"restarted": ["ab" * 16, "ab" * 15 + "00"]}


@pytest.mark.parametrize(
    ("start", "complaint"),
    [("ab", "2 sessions have an id that starts with ab"), ("cd", "no session has an id that starts with cd")],
)
def test_session_that_is_not_clear_is_wrong_usage(path: Path, start: str, complaint: str) -> None:
    with served(path, two_sessions()):
        result = restart(path, start)
    assert (result.exit_code, result.output) == (2, f"ztna: {complaint}\n")


def test_no_daemon(path: Path) -> None:
    result = restart(path)
    assert result.exit_code == 4
    assert "not running" in result.output
