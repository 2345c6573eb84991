from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from ztna.access.identity import Role
from ztna.cli.config import config, config_options
from ztna.pki.authority import DAY_S
from ztna.pki.files import PkiDirectory


def equip(directory: Path, role: Role, *, days: int = 365, age_s: float = 0) -> None:
    """Put the credentials of a node called `agent-1` there, issued `age_s` seconds ago."""
    pki = PkiDirectory(directory / f"pki-{role.value}")
    pki.init("demo.test", time.time())
    issued = pki.issue(role, "agent-1", time.time() - age_s, days * DAY_S, out=directory)
    issued.certificate.rename(directory / "node.crt")
    issued.key.rename(directory / "node.key")


@pytest.fixture
def agent(tmp_path: Path) -> dict[str, Any]:
    """The content of an agent's file, with credentials as they should be."""
    equip(tmp_path, Role.AGENT)
    return {
        "node": {"id": "agent-1", "cert": "node.crt", "key": "node.key", "ca": "ca.crt", "crl": "crl.pem"},
        "intermediates": [{"id": "i", "quic": "relay.example:4433", "grpc": "relay.example:4434"}],
        "services": [{"id": "web", "protocol": "tcp", "listen": "127.0.0.1:8080"}],
    }


def run(
    tmp_path: Path, content: dict[str, Any], *arguments: str, environ: dict[str, str] | None = None
) -> Result:
    path = tmp_path / "ztna.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return CliRunner().invoke(config, [*arguments, "-c", str(path)], env=environ or {})


class TestCheck:
    def test_good_file_is_fine(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        result = run(tmp_path, agent, "check")
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        (row,) = PkiDirectory(tmp_path / "pki-agent").records()
        until = datetime.fromtimestamp(row.not_after, tz=UTC).date()
        words = f"fine, for the agent agent-1 (certificate until {until})"
        assert result.stdout == f"{tmp_path}/ztna.yaml: {words}\n"

    def test_certificate_that_ends_soon_is_a_warning(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        (tmp_path / "pki").mkdir()
        equip(tmp_path / "pki", Role.AGENT, days=29)
        for name in ("node.crt", "node.key", "ca.crt", "crl.pem"):
            (tmp_path / "pki" / name).replace(tmp_path / name)
        result = run(tmp_path, agent, "check")
        assert result.exit_code == 0
        assert re.match(r"warning: node\.cert: expires on \d{4}-\d\d-\d\d; issue another", result.stderr)

    @pytest.mark.parametrize(("age_days", "reason"), [(-0.01, "not_yet_valid"), (1.01, "expired")])
    def test_certificate_outside_its_dates_by_minutes_asks_for_the_clock(
        self, tmp_path: Path, agent: dict[str, Any], age_days: float, reason: str
    ) -> None:
        equip(tmp_path / "pki", Role.AGENT, days=1, age_s=age_days * DAY_S)
        for name in ("node.crt", "node.key", "ca.crt", "crl.pem"):
            (tmp_path / "pki" / name).replace(tmp_path / name)
        result = run(tmp_path, agent, "check")
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr.startswith(f"{reason}: node.cert: {tmp_path}/node.crt: the certificate of agent")
        assert f"is the clock right? here it is {datetime.now(tz=UTC):%Y-}" in result.stderr

    def test_certificate_of_another_node_is_exit_code_3(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        agent["node"]["id"] = "agent-2"
        result = run(tmp_path, agent, "check")
        assert (result.exit_code, result.stdout) == (3, "")
        assert "is the certificate of agent 'agent-1', and `node.id` is 'agent-2'" in result.stderr

    def test_file_without_a_certificate_is_exit_code_2(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        (tmp_path / "ca.crt").write_text("no PEM", encoding="ascii")
        result = run(tmp_path, agent, "check")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"node.ca: {tmp_path}/ca.crt holds no PEM certificate\n"

    def test_every_fault_is_listed_and_exit_code_is_2(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        agent["log"] = {"level": "loud", "color": True}
        result = run(tmp_path, agent, "check")
        assert result.exit_code == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 2

    def test_missing_files_are_listed(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        (tmp_path / "node.crt").unlink()
        (tmp_path / "ca.crt").unlink()
        (tmp_path / "ca.crt").mkdir()
        result = run(tmp_path, agent, "check")
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [
            f"node.cert: {tmp_path}/node.crt: No such file or directory",
            f"node.ca: {tmp_path}/ca.crt: is not a file",
        ]

    def test_unreadable_file_is_listed(
        self, tmp_path: Path, agent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda path, _mode: Path(path).name != "node.key")
        result = run(tmp_path, agent, "check")
        assert result.exit_code == 2
        assert result.stderr == f"node.key: {tmp_path}/node.key: may not be read by this user\n"

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_key_that_others_can_reach_is_a_warning(
        self, tmp_path: Path, agent: dict[str, Any], mode: int
    ) -> None:
        (tmp_path / "node.key").chmod(mode)
        result = run(tmp_path, agent, "check")
        assert result.exit_code == 0
        assert f"warning: node.key: {tmp_path}/node.key: mode {mode:04o}" in result.stderr

    @pytest.mark.parametrize(
        ("change", "warning"),
        [
            ({"metrics": {"listen": "0.0.0.0:9092"}}, "metrics.listen: 0.0.0.0:9092 shows metrics"),
            (
                {"services": [{"id": "web", "protocol": "tcp", "listen": "192.0.2.1:80"}]},
                "services.0.listen: 192.0.2.1:80 lets others use 'web'",
            ),
            ({"node": None}, "node.crl: not set"),
        ],
        ids=["metrics", "service", "revocation"],
    )
    def test_exposure_is_a_warning(
        self, tmp_path: Path, agent: dict[str, Any], change: dict[str, Any], warning: str
    ) -> None:
        if change.get("node", agent) is None:
            del agent["node"]["crl"]
            change = {}
        result = run(tmp_path, {**agent, **change}, "check")
        assert result.exit_code == 0
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"warning: {warning}")

    def test_weak_intermediate_is_warned_of(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        equip(tmp_path, Role.INTERMEDIATE)
        content = {"node": agent["node"], "quic": {"listen": ["127.0.0.1:4433"]}}
        result = run(tmp_path, content, "check")
        assert result.exit_code == 0
        assert [line.split(":")[1] for line in result.stderr.splitlines()] == [
            " policy",
            " offers",
        ]

    def test_kind_option_decides_where_the_file_does_not(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        del agent["services"]
        unclear = run(tmp_path, agent, "check")
        assert unclear.exit_code == 2
        assert "cannot tell which daemon this is for" in unclear.stderr
        equip(tmp_path, Role.CONNECTOR)
        assert run(tmp_path, agent, "check", "--kind", "connector").exit_code == 0
        assert run(tmp_path, agent, "check", "--kind", "router").exit_code == 2


class TestShow:
    def test_every_key_has_its_value_and_origin(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        environ = {"ZTNA_LOG__LEVEL": "warning"}
        result = run(tmp_path, agent, "show", "--set", "relay.queue_ms=50", environ=environ)
        assert result.exit_code == 0, result.output
        rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
        assert rows["log.level"] == ["warning", "env", "ZTNA_LOG__LEVEL"]
        assert rows["relay.queue_ms"] == ["50", "flag"]
        assert rows["relay.queue_packets"] == ["64", "default"]
        assert rows["services.0.listen"][0] == "127.0.0.1:8080"
        assert rows["services.0.listen"][1].startswith(f"{tmp_path}/ztna.yaml:")
        assert rows["node.key"][0] == str(tmp_path / "node.key")

    def test_json_is_one_object_of_plain_values(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        result = run(tmp_path, agent, "show", "--json", "--set", 'udp.bind=["127.0.0.1:0"]')
        shown = json.loads(result.stdout)
        assert shown["udp.bind"] == {"value": ["127.0.0.1:0"], "origin": "flag"}
        assert shown["access.max_offline_s"] == {"value": 3600, "origin": "default"}
        assert shown["services.0.connectors"] == {"value": None, "origin": "default"}

    def test_terminal_output_wraps_instead_of_cutting(
        self, tmp_path: Path, agent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        result = run(tmp_path, agent, "show", environ={"COLUMNS": "60", "TERM": "xterm"})
        assert "…" not in result.stdout
        assert max(len(line) for line in click.unstyle(result.stdout).splitlines()) <= 60

    @pytest.mark.parametrize("override", ["log.level", "=debug", " =x"])
    def test_override_without_key_or_value_is_a_usage_error(
        self, tmp_path: Path, agent: dict[str, Any], override: str
    ) -> None:
        result = run(tmp_path, agent, "show", "--set", override)
        assert result.exit_code == 2
        assert "is not of the form KEY.PATH=VALUE" in result.stderr

    def test_wrong_file_is_exit_code_2(self, tmp_path: Path, agent: dict[str, Any]) -> None:
        agent["relay"] = {"queue_ms": "many"}
        assert run(tmp_path, agent, "show").exit_code == 2


def test_config_options_give_a_path_and_overrides_to_any_command() -> None:
    @click.command()
    @config_options
    def command(path: Path, overrides: dict[str, str]) -> None:
        click.echo(f"{path.name} {overrides}")

    arguments = ["--config", "x.yaml", "--set", "a.b=c=d", "--set", "a.b=", "--set", "e= f"]
    result = CliRunner().invoke(command, arguments)
    assert result.output == "x.yaml {'a.b': '', 'e': ' f'}\n"
