"""The container file names what exists, and starts what the command line knows."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ztna.cli.main import ztna

ROOT = Path(__file__).parent.parent
CONTAINER = ROOT / "config" / "container"


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments, continued lines joined."""
    text = (CONTAINER / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def arguments(instruction: str) -> str:
    (found,) = [rest for word, rest in instructions() if word == instruction]
    return found


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text(encoding="utf-8"))
    return document


def test_everything_that_is_copied_exists_and_is_let_into_the_build() -> None:
    allowed = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    copies = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    sources = [source for copy in copies for source in copy]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed


def test_packages_of_the_wheel_are_all_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [
        each.removesuffix("*") for each in project["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    copied = " ".join(rest for word, rest in instructions() if word == "COPY").split()
    assert set(packages) <= set(copied)
    assert project["project"]["readme"] in copied
    assert set(project["project"]["license-files"]) <= set(copied)


def test_daemon_is_the_first_process_of_no_privileged_user() -> None:
    (entrypoint,) = json.loads(arguments("ENTRYPOINT"))
    assert entrypoint == "/opt/ztna/bin/ztna"
    assert int(arguments("USER").split(":")[0]) > 0
    assert arguments("STOPSIGNAL") == "SIGTERM"


def test_health_is_asked_with_a_command_that_exists() -> None:
    health = arguments("HEALTHCHECK")
    program, *command = json.loads(health[health.index("[") :])
    assert program == "ztna"
    assert CliRunner().invoke(ztna, [*command, "--help"]).exit_code == 0


@pytest.mark.parametrize("kind", ["intermediate", "connector", "agent"])
def test_composed_service_starts_its_daemon_on_a_root_that_cannot_be_written(kind: str) -> None:
    service = compose()["services"][kind]
    command = service["command"]
    assert command[0] == kind
    assert command[2] == f"/etc/ztna/{kind}.yaml"
    # Every option is one of the command: with --help behind them they are parsed, and nothing starts.
    assert CliRunner().invoke(ztna, [*command, "--help"]).exit_code == 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    (mount,) = service["volumes"]
    assert mount == f"./{kind}:/etc/ztna:ro"


def test_build_of_the_composition_finds_its_file() -> None:
    build = compose()["x-ztna"]["build"]
    context = (CONTAINER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
