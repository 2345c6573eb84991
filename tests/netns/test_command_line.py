"""`python -m tools.natlab`: a lab that stays between commands, and goes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 60.0


class CommandLine:
    """Runs commands that share one state directory."""

    def __init__(self, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(directory),
        }

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tools.natlab", *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd=ROOT,
            env=self._environment,
        )

    def json(self, command: str, *arguments: str) -> dict[str, Any]:
        done = self.run(command, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture
def natlab(short_directory: Path) -> Iterator[CommandLine]:
    """The command line; whatever lab is left in the end is ended."""
    made = CommandLine(short_directory)
    yield made
    for lab in made.json("show")["labs"]:
        made.run("down", lab["name"])


def test_lab_is_built_used_changed_and_ended(natlab: CommandLine) -> None:
    state = natlab.json("up", "--name", "one", "--a", "eim-eif", "--second", "a:apdm-random", "--mid2")
    assert state["hosts"] == ["core", "mid", "mid2", "a", "nat-a", "nat-a2", "b", "nat-b"]
    assert natlab.run("show").stdout == "one: core, mid, mid2, a, nat-a, nat-a2, b, nat-b\n"
    done = natlab.run("exec", "one", "a", "--", "sh", "-c", "cat; echo $0 >&2; exit 7", text="hello")
    assert (done.stdout, done.returncode) == ("hello", 7)
    assert natlab.json("link", "one", "a", "delay=20,up.loss=0.5")["up"] == {
        "delay_ms": 20.0,
        "jitter_ms": 0.0,
        "loss": 0.5,
        "rate_mbit": None,
    }
    natlab.json("rebind", "one", "a")
    assert natlab.json("cut", "one", "b", "--direction", "up", "--towards", "a")["is_cut"]
    assert not natlab.json("heal", "one", "b")["is_cut"]
    moved = natlab.json("handover", "one", "a", "soft")
    assert (moved["uplink"], moved["access"]) == (2, "apdm-random")
    shown = natlab.json("show", "one")
    assert [site["name"] for site in shown["sites"]] == ["a", "b"]
    assert [each["host"] for each in shown["intermediates"]] == ["mid", "mid2"]
    assert "a apdm-random: 10.2.0.2, outside 198.51.100.34, uplink 2 of 2" in natlab.run("show", "one").stdout
    natlab.json("down", "one")
    wait_for_end(state["pid"])
    wait_for_end(state["keeper_pid"])
    assert natlab.json("show") == {"labs": []}


def test_second_lab_of_a_name_and_unknown_names_are_refused(natlab: CommandLine) -> None:
    natlab.json("up", "--name", "one")
    for arguments, status, message in (
        (("up", "--name", "one"), 1, "a lab one runs already"),
        (("up", "--name", "no/name"), 2, "is no name of a lab"),
        (("show", "two"), 1, "no lab two runs"),
        (("rebind", "one", "c"), 2, "no site c; there are a, b"),
        (("cut", "one", "a", "--towards", "c"), 2, "no host c"),
        (("handover", "one", "a", "soft"), 1, "site a has one uplink"),
        (("link", "one", "c"), 2, "no link c"),
        (("link", "one", "a", "dealy=3"), 2, "a link has delay"),
        (("link", "one", "a", "mtu=1"), 2, "an MTU is"),
        (("exec", "one", "c", "--", "true"), 2, "no host c"),
    ):
        done = natlab.run(*arguments)
        assert (done.returncode, message in done.stderr) == (status, True), done


def test_program_that_cannot_be_run_is_named_in_one_line_with_the_status_of_a_shell(
    natlab: CommandLine, tmp_path: Path
) -> None:
    natlab.json("up", "--name", "one")
    file = tmp_path / "text"
    file.write_text("no program", encoding="utf-8")
    for program, status, words in (
        ("no-such-command", 127, "No such file or directory"),
        ("/no/such/command", 127, "No such file or directory"),
        (str(file), 126, "Permission denied"),
    ):
        done = natlab.run("exec", "one", "a", "--", program, "argument")
        assert (done.returncode, done.stderr) == (status, f"natlab: {program}: {words}\n")


def test_signal_to_exec_reaches_the_command(natlab: CommandLine) -> None:
    natlab.json("up", "--name", "one")
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-m", "tools.natlab", "exec", "one", "a", "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=natlab._environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(LIMIT_S) == 9


def test_killed_lab_is_no_longer_listed_and_its_name_is_free(natlab: CommandLine) -> None:
    state = natlab.json("up", "--name", "one")
    os.kill(state["pid"], signal.SIGKILL)
    wait_for_end(state["keeper_pid"])
    assert natlab.json("show") == {"labs": []}
    natlab.json("up", "--name", "one")


def test_lab_ends_when_its_time_is_up(natlab: CommandLine) -> None:
    state = natlab.json("up", "--name", "one", "--lifetime-s", "0.5")
    wait_for_end(state["keeper_pid"])
    assert natlab.json("show") == {"labs": []}


def wait_for_end(pid: int) -> None:
    """Return when a process has ended, at once if there is none."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        assert poller.poll(LIMIT_S * 1e3)
    finally:
        os.close(descriptor)
