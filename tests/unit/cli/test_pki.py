from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from ztna.cli.main import ztna


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(ztna, ["pki", *arguments])
    assert result.exit_code == code, result.output
    return result


def rows() -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(run("show", "--json").stdout)
    return listed


def test_init_issue_show_revoke() -> None:
    assert "CA of example.org: pki/ca.crt, until" in run("init").stdout
    assert (
        "agent laptop: pki/agent/laptop.crt and laptop.key, until" in run("issue", "agent", "laptop").stdout
    )
    run("issue", "connector", "site")
    (serial,) = re.findall(r"serial ([0-9a-f]+)", run("revoke", "agent", "laptop").stdout)
    first, second = rows()
    assert first["serial"] == serial
    assert (first["status"], second["status"]) == ("revoked", "valid")
    header, laptop, site = run("show").stdout.splitlines()
    assert header.split() == ["role", "id", "expires", "status", "serial"]
    assert re.fullmatch(rf"agent      laptop  \d{{4}}-\d\d-\d\d  revoked  {serial}", laptop)
    assert site.startswith("connector  site    ")


def test_narrow_terminal_cuts_no_serial_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    run("init")
    run("issue", "agent", "laptop")
    assert run("show").stdout.splitlines()[1].split()[-1] == rows()[0]["serial"]


def test_json_keys_are_stable() -> None:
    run("init")
    assert rows() == []
    run("issue", "operator", "ops", "--days", "1")
    (row,) = rows()
    assert list(row) == ["role", "id", "serial", "not_before", "not_after", "revoked_at", "status"]
    assert int(str(row["not_after"])) - int(str(row["not_before"])) == 86_400 + 300


def test_directory_trust_domain_and_bundle_are_chosen() -> None:
    run("init", "--dir", "ca", "--trust-domain", "corp.example.net", "--days", "30")
    run(
        "issue",
        "--dir",
        "ca",
        "intermediate",
        "relay",
        "--dns",
        "relay.example.net",
        "--ip",
        "::1",
        "--out",
        "node",
    )
    certificate = x509.load_pem_x509_certificate(Path("node/relay.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "relay.intermediate.corp.example.net",
        "relay.example.net",
    ]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["::1"]
    assert Path("node/ca.crt").read_bytes() == Path("ca/ca.crt").read_bytes()


def test_forced_issue_says_how_to_withdraw_the_former_certificate() -> None:
    run("init")
    run("issue", "agent", "laptop")
    former = str(rows()[0]["serial"])
    result = run("issue", "agent", "laptop", "--force")
    assert f"ztna pki revoke --dir pki --serial {former}" in result.stderr
    run("revoke", "--serial", former.upper())
    assert [row["status"] for row in rows()] == ["revoked", "valid"]
    assert "Nothing to do: revoked before" in run("revoke", "--serial", former).stdout


def test_crl_is_published_again() -> None:
    run("init")
    before = Path("pki/crl.pem").read_bytes()
    assert "Published pki/crl.pem" in run("crl").stdout
    assert Path("pki/crl.pem").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["issue", "agent", "laptop"], "ztna: pki/agent/laptop.crt exists; use --force to replace it"),
        (["issue", "agent", "Laptop"], "'Laptop' is not a node id"),
        (["issue", "agent", "../ca"], "'../ca' is not a node id"),
        (["issue", "wizard", "x"], "'wizard' is not one of"),
        (["issue", "agent", "x", "--dns", "x.example.org"], "only an intermediate is found by host name"),
        (["issue", "intermediate", "x", "--dns", "*.test"], "'*.test' is not a DNS name"),
        (["issue", "intermediate", "x", "--ip", "1.2.3"], "'1.2.3' does not appear to be"),
        (["issue", "agent", "x", "--days", "0"], "0 is not in the range"),
        (["init"], "pki/ca.crt exists; use --force"),
        (["init", "--dir", "new", "--trust-domain", "Bad Name"], "'Bad Name' is not a trust domain"),
        (
            ["show", "--dir", "nowhere"],
            "nowhere holds no CA: name its directory with --dir, or create one with 'ztna pki init --dir",
        ),
        (["revoke"], "give either ROLE and NAME, or --serial"),
        (["revoke", "agent"], "give either ROLE and NAME, or --serial"),
        (["revoke", "agent", "laptop", "--serial", "1"], "give either ROLE and NAME, or --serial"),
        (["revoke", "--serial", "xyz"], "'xyz' is not a serial number"),
        (["revoke", "--serial", "1"], "no certificate with serial 1 was issued here"),
        (["revoke", "agent", "nobody"], "no certificate for agent nobody was issued here"),
    ],
)
def test_wrong_usage_and_unusable_files_exit_2_with_one_clear_line(
    arguments: list[str], message: str
) -> None:
    run("init")
    run("issue", "agent", "laptop")
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("ztna: ")
    assert result.stderr.count("ztna: ") == 1
