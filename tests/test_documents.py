"""Documents that stay true: links lead somewhere, commands exist, samples load."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ztna.cli.main import ztna
from ztna.ice import reasons
from ztna.settings.loader import load_any
from ztna.v1 import grant_pb2, qad_pb2, relay_pb2, session_pb2, signaling_pb2

ROOT = Path(__file__).resolve().parent.parent

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SAMPLES = sorted((ROOT / "config").glob("*.yaml"))

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
MESSAGE_NAME = re.compile(r"`([A-Z][a-z]+[A-Z]\w*)")
CODE_NAME = re.compile(r"`([A-Z]+(?:_[A-Z]+)*)`")
WIRE_FILES = (grant_pb2, qad_pb2, relay_pb2, session_pb2, signaling_pb2)
ADR_SECTIONS = ["Context", "Decision", "Consequences"]
FAULTS = [
    f"tests/e2e/test_{each}.py"
    for each in (
        "abuse",
        "exit_codes",
        "identity_faults",
        "reload",
        "resilience",
        "resource_limits",
        "strangers",
    )
]
"""Nothing in these is about anything else."""
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Fragments that headings have on the usual forges."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in HEADING.findall(prose(text))
    }


def broken_links(document: Path) -> Iterator[str]:
    for link in LINK.findall(prose(document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        is_there = target.exists() and (
            not fragment or fragment in anchors(target.read_text(encoding="utf-8"))
        )
        if not is_there:
            yield link


def commands(document: Path) -> list[list[str]]:
    """The `ztna` lines of all code blocks, as words; continuation lines are joined."""
    lines = "\n".join(FENCE.findall(document.read_text(encoding="utf-8"))).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if re.match(r"\s*(\$ )?ztna ", line):
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            found.append([word for word in words[1:] if word != "&"])
    return found


def check_command(words: list[str]) -> None:
    """Raise `click.UsageError` for a subcommand or an option that does not exist."""
    command: click.Command = ztna
    context = click.Context(command, info_name="ztna")
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name!r} in {context.command_path!r}")
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_parser(context).parse_args(words)


ALL_COMMANDS = [(identifier(document), words) for document in DOCUMENTS for words in commands(document)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=identifier)
def test_relative_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document)) == []


@pytest.mark.parametrize(
    ("document", "words"),
    ALL_COMMANDS,
    ids=[f"{document}: {' '.join(words)}" for document, words in ALL_COMMANDS],
)
def test_command_in_a_document_exists(document: str, words: list[str]) -> None:
    check_command(list(words))


def test_readme_shows_commands() -> None:
    assert len(commands(ROOT / "README.md")) > 5


@pytest.mark.parametrize("words", [["statsu"], ["status", "--jsno"], ["pki", "isue"]], ids=" ".join)
def test_command_that_does_not_exist_is_noticed(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        check_command(words)


@pytest.mark.parametrize("sample", SAMPLES, ids=identifier)
def test_sample_configuration_loads(sample: Path) -> None:
    loaded = load_any(sample, {}, {})
    assert loaded.settings.kind == sample.stem


def commented_blocks(sample: Path) -> dict[str, Any]:
    """Sections that a sample shows as comments: `# name:` and its indented lines."""
    blocks = re.findall(r"^# \w+:\n(?:#   .+\n)+", sample.read_text(encoding="utf-8"), re.MULTILINE)
    found: dict[str, Any] = {}
    for block in blocks:
        found |= yaml.safe_load(re.sub(r"^# ", "", block, flags=re.MULTILINE))
    return found


@pytest.mark.parametrize("sample", SAMPLES, ids=identifier)
def test_what_a_sample_shows_as_a_comment_is_the_default(sample: Path) -> None:
    settings = load_any(sample, {}, {}).settings
    shown = {
        f"{section}.{key}": value
        for section, keys in commented_blocks(sample).items()
        for key, value in keys.items()
        if isinstance(value, (bool, int, float, str))
    }
    assert shown
    assert shown == {
        name: type(shown[name])(getattr(getattr(settings, section), key))
        for name in shown
        for section, _, key in [name.partition(".")]
    }


@pytest.mark.parametrize("daemon", ["agent", "connector"])
def test_samples_show_what_keeps_a_direct_path(daemon: str) -> None:
    shown = commented_blocks(ROOT / "config" / f"{daemon}.yaml")
    assert {"interval_s", "timeout_s", "max_missed"} <= shown["keepalive"].keys()
    assert {"policy", "cooldown_s"} <= shown["path"].keys()
    assert {"pacing_ms", "check_limit_s", "loopback", "advertise"} <= shown["ice"].keys()


def test_wire_contract_names_only_messages_that_exist() -> None:
    text = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    known = {name for file in WIRE_FILES for name in file.DESCRIPTOR.message_types_by_name}
    known |= {name for file in WIRE_FILES for name in file.DESCRIPTOR.services_by_name}
    named = set(MESSAGE_NAME.findall(text))
    assert len(named) > 20
    assert named <= known


def test_wire_contract_lists_every_signaling_code() -> None:
    text = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    codes = {name.removeprefix("SIGNALING_CODE_") for name in signaling_pb2.SignalingCode.keys()}  # noqa: SIM118 - an enum wrapper is no dict
    assert set(CODE_NAME.findall(text)) == codes - {"UNSPECIFIED"}


def test_decision_records_are_numbered_and_complete() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [record.name[:4] for record in records] == [
        f"{number:04d}" for number in range(1, len(records) + 1)
    ]
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(record.name[:4])}. ")
        assert "\nStatus: " in text
        assert HEADING.findall(text)[1:] == ADR_SECTIONS


def test_every_test_that_a_document_names_exists() -> None:
    named = [
        match.groups()
        for document in DOCUMENTS
        for match in re.finditer(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text(encoding="utf-8"))
    ]
    assert named
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("path", FAULTS)
def test_every_fault_that_is_tried_has_a_row(path: str) -> None:
    named = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert tests
    assert [each for each in tests if f"`{path}::{each}`" not in named] == []


def test_troubleshooting_knows_every_reason_of_the_search_and_no_other() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = text.partition("| `reason` |")[2].partition("\n\n")[0]
    named = {word for line in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == reasons.WORDS
