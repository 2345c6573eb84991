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

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_demo_downloads_echoes_and_reports_in_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--json", "--size-mib", "8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=70,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"]
    assert result["sha256_ok"]
    assert result["udp_echo_ok"]
    assert result["error"] is None
    assert result["bytes"] == 8 << 20
    assert result["path"] == "relay"
    assert result["time_to_first_byte_ms"] > 0
    assert result["rtt_ms"] > 0
    assert len(bytes.fromhex(result["session_id"])) == 16
    assert "\x1b" not in done.stdout + done.stderr


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
def test_interrupted_demo_leaves_no_process_and_no_file(scratch: Path, signal_number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tools.demo", "--json", "--size-mib", "512"],
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
