"""`make demo`, as a script sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
