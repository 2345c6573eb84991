from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ztna import __version__
from ztna.cli import main as cli
from ztna.cli.main import COMMANDS, ztna
from ztna.errors import AuthenticationError, ConfigError
from ztna.settings import DaemonKind


class Daemon:
    """Stands in for `actors.daemon`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result: int | Exception = 0

    def run(self, kind: DaemonKind, path: Path, overrides: dict[str, str]) -> int:
        self.calls.append((kind, path, overrides))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    fake = Daemon()
    module = ModuleType("actors.daemon")
    module.run = fake.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "actors.daemon", module)
    monkeypatch.setattr("actors.daemon", module, raising=False)
    return fake


@pytest.mark.parametrize("kind", list(DaemonKind))
@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_a_daemon_is_run_and_its_exit_status_passed_on(kind: DaemonKind, code: int, daemon: Daemon) -> None:
    daemon.result = code
    result = CliRunner().invoke(ztna, [kind.value, "-c", "node.yaml"])
    assert result.exit_code == code
    assert daemon.calls == [(kind, Path("node.yaml"), {})]


def test_flags_are_overrides(daemon: Daemon) -> None:
    arguments = ["agent", "-c", "a.yaml", "--set", "connect=eager", "--set", "log.level=error"]
    CliRunner().invoke(ztna, [*arguments, "--log-level", "debug", "--log-format", "json"])
    assert daemon.calls[0][2] == {"connect": "eager", "log.level": "debug", "log.format": "json"}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("node.id: is required"), 2, "ztna: node.id: is required\n"),
        (AuthenticationError("expired", "on 2026-01-01"), 3, "ztna: expired: on 2026-01-01\n"),
        (
            OSError(errno.EADDRINUSE, "metrics.listen: cannot listen on 127.0.0.1:9090: in use"),
            4,
            "ztna: metrics.listen: cannot listen on 127.0.0.1:9090: in use\n",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"), 1,
         "ztna: /a/b: No such file or directory\n"),
    ],
    ids=["config", "authentication", "bind", "other"],
)  # fmt: skip
def test_an_expected_error_is_one_line_and_an_exit_code(
    error: Exception, code: int, words: str, daemon: Daemon
) -> None:
    daemon.result = error
    result = CliRunner().invoke(ztna, ["agent", "-c", "a.yaml"])
    assert (result.exit_code, result.stderr) == (code, words)


def test_a_reader_that_left_the_pipe_is_no_error_of_ours(daemon: Daemon) -> None:
    daemon.result = BrokenPipeError(errno.EPIPE, "Broken pipe")
    result = CliRunner().invoke(ztna, ["agent", "-c", "a.yaml"])
    assert (result.exit_code, result.stderr) == (1, "")


def test_an_unexpected_error_keeps_its_traceback(daemon: Daemon) -> None:
    daemon.result = ZeroDivisionError()
    result = CliRunner().invoke(ztna, ["agent", "-c", "a.yaml"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["agent"], ["agent", "-c", "a.yaml", "--set", "novalue"], ["status", "extra"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(ztna, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "usage", "words"),
    [
        (["nonsense"], "Usage: ztna [OPTIONS] COMMAND [ARGS]...", "No such command 'nonsense'."),
        (["--nonsense"], "Usage: ztna [OPTIONS] COMMAND [ARGS]...", "No such option '--nonsense'."),
        (["agent"], "Usage: ztna agent [OPTIONS]", "Missing option '-c' / '--config'."),
        (["pki", "crl", "x"], "Usage: ztna pki crl [OPTIONS]", "Got unexpected extra argument (x)"),
        (
            ["status", "--socket", "a", "-c", "b"],
            "Usage: ztna status [OPTIONS]",
            "give either --socket or -c",
        ),
    ],
    ids=["command", "option", "missing", "below-a-group", "of-ours"],
)
def test_wrong_usage_is_told_in_one_form_below_what_is_right(
    arguments: list[str], usage: str, words: str
) -> None:
    first, *_, last = CliRunner().invoke(ztna, arguments).stderr.splitlines()
    assert (first, last) == (usage, f"ztna: {words}")


def test_command_that_was_given_nothing_tells_its_help_and_no_error() -> None:
    result = CliRunner().invoke(ztna, ["config"])
    assert result.stderr.startswith("Usage: ztna config [OPTIONS] COMMAND [ARGS]...")
    assert "ztna: " not in result.stderr


def test_help_lists_every_command_without_importing_it() -> None:
    probe = (
        "import sys; from click.testing import CliRunner; from ztna.cli.main import ztna;"
        "print(CliRunner().invoke(ztna, ['--help']).stdout, 'ztna.cli.run' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    command = ztna.get_command(click.Context(ztna), name)
    assert command is not None
    assert command.name == name
    assert CliRunner().invoke(ztna, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("group", ["pki", "config"])
def test_list_of_subcommands_cuts_no_sentence(group: str) -> None:
    assert "..." not in CliRunner().invoke(ztna, [group, "--help"]).stdout.replace("[ARGS]...", "")


def test_help_tells_the_exit_codes() -> None:
    shown = " ".join(CliRunner().invoke(ztna, ["--help"]).stdout.split())
    assert "Exit codes: 0 fine, 2 wrong configuration or usage, 3 " in shown


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ztna.cli.main", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ztna {__version__}\n"


def test_the_entry_point_is_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ztna", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
