"""`make demo`, as a script sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.demo.place import INTERMEDIATE_DELAY_MS, SITE_DELAY_MS
from tools.natlab.availability import unavailable_reason

ROOT = Path(__file__).resolve().parent.parent.parent


def run_demo(*arguments: str) -> dict[str, Any]:
    """What the demo prints as JSON, after a run in which every step happened."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    for key in ("ok", "sha256_ok", "udp_echo_ok"):
        assert result[key]
    assert result["error"] is None
    assert (result["bytes"], result["lost_bytes"]) == (8 << 20, 0)
    assert result["path"] == "direct"
    for key in ("time_to_first_byte_ms", "rtt_ms", "time_to_direct_ms", "rtt_relay_ms", "rtt_direct_ms"):
        assert result[key] > 0
    assert len(bytes.fromhex(result["session_id"])) == 16
    steps = done.stderr.splitlines()
    first_byte, found = line_of(steps, "first byte after"), line_of(steps, ", found in ")
    assert (first_byte < found) == (result["first_byte_path"] == "relay")
    if result["place"] == "lab":
        assert first_byte < line_of(steps, "opened the direct path")
    return result


def line_of(steps: list[str], words: str) -> int:
    """The number of the one line with these words."""
    (number,) = [number for number, step in enumerate(steps) if words in step]
    return number


def test_demo_on_loopback_goes_direct_and_leaves_out_the_cut() -> None:
    result = run_demo("--size-mib", "8", "--loopback")
    assert (result["place"], result["place_reason"]) == ("loopback", "asked for")
    assert (result["failover_ms"], result["heal_ms"]) == (None, None)
    # Nobody shuts the direct path there, and it may be found before the service has answered.
    assert result["first_byte_path"] in {"relay", "direct"}


@pytest.mark.netns
def test_demo_in_the_lab_goes_direct_falls_back_and_heals() -> None:
    reason = unavailable_reason()
    if reason is not None:
        pytest.skip(f"no lab can be built here: {reason}")
    result = run_demo("--size-mib", "8")
    assert (result["place"], result["place_reason"]) == ("lab", None)
    assert result["first_byte_path"] == "relay"
    # Silence is noticed within a second; what a starved machine adds to it is not the demo's to bound.
    assert 0 < result["failover_ms"] < 5000
    assert result["heal_ms"] > 0
    # Both paths cross the links of both sites, and the relayed one that of the intermediate as well.
    least_ms = 2 * 2 * SITE_DELAY_MS
    assert result["rtt_relay_ms"] >= least_ms + 2 * 2 * INTERMEDIATE_DELAY_MS
    assert least_ms <= result["rtt_direct_ms"] < result["rtt_relay_ms"]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for temporary files, with a name short enough for unix sockets below it."""
    directory = Path(tempfile.mkdtemp(prefix="z-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def processes_below(directory: Path) -> list[str]:
    """Command lines that name a file in `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue  # it has just ended
        if bytes(directory) in command:
            found.append(command.decode(errors="replace"))
    return found


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
@pytest.mark.parametrize(
    "arguments",
    [["--loopback"], pytest.param([], marks=pytest.mark.netns)],
    ids=["loopback", "lab where one can be built"],
)
def test_interrupted_demo_leaves_no_process_and_no_file(
    scratch: Path, arguments: list[str], signal_number: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tools.demo", "--json", "--size-mib", "96", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stderr is not None
        told = []
        for line in demo.stderr:
            told.append(line)
            if "first byte" in line:
                break
        assert processes_below(scratch), "".join(told)
        demo.send_signal(signal_number)
        stdout, _ = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert json.loads(stdout.splitlines()[-1])["error"] == "interrupted"
    assert processes_below(scratch) == []
    assert list(scratch.iterdir()) == []
