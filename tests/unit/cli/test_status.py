from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.unit.cli.statuses import SESSION, WALL, agent_status, intermediate_status, served
from ztna import settings
from ztna.cli import control_client
from ztna.cli.main import ztna
from ztna.cli.status_json import as_plain, enum_word
from ztna.cli.status_view import MAX_ROWS, RATE_WINDOW_S, Rates, sessions_view, status_view
from ztna.cli.units import show_bytes, show_count, show_duration, show_rate, show_rtt
from ztna.v1 import checklist_pb2, control_pb2, types_pb2

DOCUMENT = Path("docs/status.md")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(ztna, arguments)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent-agent-1.sock"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default directory of control sockets, for this test alone."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setattr(control_client, "runtime_directory", lambda *_args, **_kwargs: directory)
    return directory


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(bytes(path))


def rendered(view: Any, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_the_documented_example_is_what_is_printed() -> None:
    example = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    assert json.loads(example[1]) == as_plain(agent_status())
    assert list(json.loads(example[1])) == list(as_plain(agent_status()))


def test_every_key_of_the_schema_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    messages = ["DaemonStatus", "IntermediateStatus", "ServiceStatus", "SessionStatus", "NodeStatus"]
    messages += ["RegisteredService", "ActorStatus", "Problem", "DirectPathStatus"]
    descriptors = [control_pb2.DESCRIPTOR.message_types_by_name[name] for name in messages]
    descriptors += [
        control_pb2.DirectPathStatus.Path.DESCRIPTOR,
        checklist_pb2.ChecklistReport.Entry.DESCRIPTOR,
        checklist_pb2.Pair.DESCRIPTOR,
        types_pb2.Candidate.DESCRIPTOR,
        types_pb2.NatBehaviour.DESCRIPTOR,
    ]
    for descriptor in descriptors:
        for field in descriptor.fields:
            assert f"`{field.name}`" in text, f"{descriptor.name}.{field.name}"


def test_what_is_not_known_is_null_and_a_newer_word_too() -> None:
    status = control_pb2.DaemonStatus()
    status.intermediates.add(id="int-1")
    status.services.add(id="web")
    status.nodes.add(role=99)
    plain = as_plain(status)
    assert plain["intermediates"][0]["observed_address"] is None
    assert plain["services"][0]["protocol"] is None
    assert plain["nodes"][0]["role"] is None
    assert plain["counters"] == {}
    assert enum_word(intermediate_status().nodes[0], "role") == "agent"


def test_json_is_printed_as_one_object(path: Path) -> None:
    with served(path, agent_status()):
        result = run("status", "--json", "--socket", str(path))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == as_plain(agent_status())
    assert json.loads(result.stdout)["sessions"][0]["bytes_received"] == 2**33


def test_sessions_in_json_are_those_of_the_status(path: Path) -> None:
    with served(path, agent_status()):
        result = run("sessions", "--json", "--socket", str(path))
    assert json.loads(result.stdout) == {
        "daemon": "agent",
        "id": "agent-1",
        "sessions": as_plain(agent_status())["sessions"],
    }


def test_watching_in_json_prints_one_object_per_line_until_the_daemon_ends(path: Path) -> None:
    with served(path, agent_status(), intermediate_status()):
        result = run("status", "--json", "--watch", "--socket", str(path))
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["id"] for line in lines] == ["agent-1", "intermediate-1"]
    assert result.exit_code == 4
    assert result.stderr == f"ztna: the daemon at {path} has ended\n"


def test_watching_for_people_shows_rates(path: Path) -> None:
    later = agent_status()
    later.uptime_s += 2
    later.sessions[0].bytes_received += 2**21
    with served(path, agent_status(), later):
        result = run("status", "--watch", "--socket", str(path))
    assert "1.0 MiB/s" in result.stdout


def test_watching_ends_well_with_ctrl_c(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ztna.cli.status._watch_view", interrupt)
    with served(path, agent_status()):
        result = run("status", "--watch", "--socket", str(path))
    assert (result.exit_code, result.output) == (0, "")


def test_the_view_of_an_agent_fits_80_columns() -> None:
    text = rendered(status_view(agent_status(), WALL + 65))
    assert max(len(line) for line in text.splitlines()) <= 80
    for words in (
        "agent agent-1  ready  up 1h02m  ztna 0.1.0",
        "UDP on 0.0.0.0:40000",
        "certificate until 2027-12-28",
        "intermediate-1  attached  up         21.2 ms  203.0.113.7:51234",
        "web      tcp 127.0.0.1:8080  listening",
        "00010203  connector-1  relay  43.5 ms  79 KiB   8.0 GiB  1h01m",
        "1m05s      2  intermediate intermediate-1: connection refused",
    ):
        assert words in text
    assert "Actors" not in text


def test_a_pipe_gets_one_line_per_row_without_padding(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    status = agent_status()
    status.problems[0].message = "word " * 100
    with served(path, status):
        lines = run("status", "--socket", str(path)).stdout.splitlines()
    assert any(line.endswith("word word") for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_the_view_names_the_carrier_of_a_leg_that_is_not_the_usual_one() -> None:
    status = agent_status()
    assert "up, grpc" not in rendered(status_view(status, WALL))
    status.intermediates[0].leg_carrier = "grpc"
    assert "up, grpc" in rendered(status_view(status, WALL))


def test_the_view_of_an_intermediate_fits_80_columns() -> None:
    text = rendered(status_view(intermediate_status(), WALL))
    assert max(len(line) for line in text.splitlines()) <= 80
    for words in (
        "intermediate intermediate-1  not ready  up 12s",
        "the daemon's signaling service is starting",
        "UDP on [::]:4433",
        "agent-1  agent  grpc       up              12s",
        "… and 29 more",
        "web      tcp    connector-1, connector-2",
        "00010203  agent-1  connector-1  web       active   12 MiB  4.0s",
    ):
        assert words in text


def test_what_is_wrong_is_told_below_its_table() -> None:
    status = agent_status()
    status.services[0].state, status.services[0].reason = "failed", "address already in use"
    status.intermediates[0].leg_reason = "handshake timeout"
    status.intermediates[0].state, status.intermediates[0].reason = "detached", "certificate expired"
    status.sessions[0].outage_s = 4
    status.sessions.add(session_id=b"\xff" * 16, state="opening", peer_id="connector-2")
    status.actors.add(name="relay_leg/intermediate-1", state="running", restarts=2)
    text = rendered(status_view(status, WALL))
    for words in (
        "web: address already in use",
        "intermediate-1: certificate expired",
        "relay leg to intermediate-1: handshake timeout",
        "none for 4.0s",
        "ffffffff  connector-2  opening",
        "relay_leg/intermediate-1  running         2",
    ):
        assert words in text


def test_reason_is_told_in_words_without_its_code() -> None:
    status = agent_status()
    said = "the certificate of intermediate 'x' was not issued by this deployment's CA"
    status.is_ready, status.not_ready_reason = False, f"not attached; intermediate-1: foreign_ca: {said}"
    status.intermediates[0].reason = f"foreign_ca: {said}"
    status.problems[0].message = f"intermediate intermediate-1: foreign_ca: {said} (path.policy: relay_only)"
    lines = [line for line in rendered(status_view(status, WALL), width=200).splitlines() if said in line]
    assert lines[0].rstrip() == f"not attached; intermediate-1: {said}"
    assert lines[1].rstrip() == f"intermediate-1: {said}"
    assert lines[2].rstrip().endswith(f"  intermediate intermediate-1: {said} (path.policy: relay_only)")
    assert as_plain(status)["intermediates"][0]["reason"].startswith("foreign_ca: ")


def test_long_tables_are_cut_and_say_so() -> None:
    status = agent_status()
    for number in range(MAX_ROWS + 5):
        status.problems.add(message=f"problem {number}", count=1)
    text = rendered(status_view(status, WALL))
    assert f"problem {MAX_ROWS - 2}" in text
    assert f"problem {MAX_ROWS - 1}" not in text
    assert "… and 6 more" in text


def test_what_peers_chose_is_neither_markup_nor_an_escape_sequence() -> None:
    status = agent_status()
    status.problems[0].message = "[bold red]\x1b[2J\x9b31mhello\nworld"
    text = rendered(status_view(status, WALL))
    assert "[bold red]�[2J�31mhello�world" in text


def test_status_tells_the_nat_and_why_each_session_takes_its_path() -> None:
    status = agent_status()
    status.nat.CopyFrom(status.sessions[0].direct_path.local_nat)
    text = rendered(status_view(status, WALL))
    assert "NAT: address is translated, mapping address-and-port-dependent" in text
    assert f"{SESSION.hex()[:8]}: no direct path was found: Both sides are" in text
    session = status.sessions[0]
    session.path = "direct"
    pair = session.direct_path.selected_pair
    pair.local.address.CopyFrom(types_pb2.TransportAddress(host="192.168.1.5", port=41641))
    pair.remote.address.CopyFrom(types_pb2.TransportAddress(host="203.0.113.7", port=50000))
    text = rendered(status_view(status, WALL))
    assert f"{SESSION.hex()[:8]}: from 192.168.1.5:41641 to 203.0.113.7:50000" in text
    assert "no direct path was found" not in text


def test_sessions_are_shown_in_full(path: Path) -> None:
    with served(path, agent_status()):
        text = run("sessions", "--socket", str(path)).stdout
    assert SESSION.hex() in text
    assert "relay via intermediate-1" in text
    assert "no direct path was found: Both sides are" in text
    assert "not found · attempt 1 · signaled through the intermediate" in text
    assert text.count("Both sides are behind NATs") == 1
    facts = [line for line in text.splitlines() if line.startswith("  ") and "·" in line]
    assert [line[:12] for line in facts] == [
        "  path      ",
        "  traffic   ",
        "  direct    ",
        " " * 12,
        "  keepalive ",
    ]
    assert all(line[12] != " " for line in facts)
    assert "mapping address-and-port-dependent" in text
    assert "198.51.100.9:41641" in text
    assert "failed, timeout" in text
    assert "0 packets lost · 3 streams open" in text
    status = intermediate_status()
    status.sessions[0].outage_s = 3
    text = rendered(sessions_view(status, Rates()))
    assert "agent-1 → connector-1" in text
    assert "no path for 3.0s" in text
    assert "relayed 12 MiB · now -\n" in text
    del status.sessions[:]
    assert "intermediate intermediate-1 has no session." in rendered(sessions_view(status))


def _at(uptime_s: float, received: int) -> control_pb2.DaemonStatus:
    status = control_pb2.DaemonStatus(uptime_s=uptime_s)
    status.sessions.add(session_id=SESSION, bytes_received=received)
    return status


def test_rates_are_those_of_the_last_two_seconds() -> None:
    rates = Rates()
    assert rates.of(SESSION) == (0.0, 0.0)
    for second in range(10):
        rates.observe(_at(float(second), second * 1000))
    assert rates.of(SESSION) == (0.0, 1000.0)
    for second in range(10, 10 + int(RATE_WINDOW_S) + 1):
        rates.observe(_at(float(second), 9000))
    assert rates.of(SESSION) == (0.0, 0.0)
    assert rates.of(b"other") == (0.0, 0.0)


def test_a_daemon_that_started_anew_has_no_negative_rate() -> None:
    rates = Rates()
    rates.observe(_at(100.0, 10**9))
    rates.observe(_at(1.0, 0))
    rates.observe(_at(2.0, 500))
    assert rates.of(SESSION) == (0.0, 500.0)


def test_the_only_daemon_that_runs_is_the_one_that_is_meant(home: Path) -> None:
    dead_socket(home / "connector-old.sock")
    (home / "notes.txt").write_text("")
    with served(home / "agent-agent-1.sock", agent_status()):
        result = run("status", "--json")
    assert json.loads(result.stdout)["id"] == "agent-1"


def test_several_daemons_are_listed_to_choose_from(home: Path) -> None:
    with served(home / "a.sock", agent_status()), served(home / "b.sock", agent_status()):
        result = run("status")
    assert result.exit_code == 2
    assert result.stderr == (
        "ztna: several daemons are running; choose one:\n"
        f"  --socket {home}/a.sock\n  --socket {home}/b.sock\n"
    )


@pytest.mark.parametrize("is_there", [True, False])
def test_without_any_daemon_the_error_says_where_it_looked(home: Path, is_there: bool) -> None:
    if not is_there:
        home.rmdir()
    result = run("status")
    assert result.exit_code == 4
    assert result.stderr.startswith(f"ztna: no daemon is running: none answers in {home}")
    assert result.stderr.count("\n") == 1


def test_a_daemon_that_is_not_there_is_one_line(path: Path) -> None:
    result = run("status", "--socket", str(path))
    words = f"ztna: the daemon is not running, or as another user: there is no {path}\n"
    assert (result.exit_code, result.stderr) == (4, words)
    dead_socket(path)
    result = run("sessions", "--socket", str(path))
    assert result.exit_code == 4
    assert result.stderr == f"ztna: the daemon is not running: nobody answers at {path}\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "belongs to another user"),
        (TimeoutError("timed out"), "cannot reach the daemon"),
    ],
)
def test_other_troubles_of_the_socket_are_named(
    path: Path, error: OSError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "_trouble", lambda _path: error)
    result = run("status", "--socket", str(path))
    assert result.exit_code == 4
    assert words in result.stderr


def test_a_daemon_that_fails_to_answer_is_one_line(path: Path) -> None:
    with served(path):
        result = run("status", "--socket", str(path))
    assert (result.exit_code, result.stderr) == (4, f"ztna: the daemon at {path}: out of order\n")


def test_a_daemon_that_is_stuck_is_told_from_one_that_has_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(bytes(path))
        stuck.listen()
        monkeypatch.setattr("ztna.cli.status.CALL_LIMIT_S", 0.3)
        result = run("status", "--socket", str(path))
    assert (result.exit_code, result.stderr) == (4, f"ztna: the daemon at {path} does not answer\n")


def test_a_path_that_is_too_long_is_a_usage_error(tmp_path: Path) -> None:
    result = run("status", "--socket", str(tmp_path / ("x" * 200)))
    assert result.exit_code == 2
    assert "at most 107 bytes" in result.stderr


def test_socket_and_configuration_exclude_each_other() -> None:
    result = run("status", "--socket", "a", "-c", "b")
    assert result.exit_code == 2
    assert "give either --socket or -c" in result.stderr


CONFIGURATION = """
kind: intermediate
node: {{id: intermediate-1, cert: c, key: k, ca: a}}
control: {{socket: "{socket}"}}
"""


def test_a_configuration_names_the_socket(tmp_path: Path, path: Path) -> None:
    config = tmp_path / "intermediate.yaml"
    config.write_text(CONFIGURATION.format(socket=path))
    with served(path, agent_status()):
        assert run("status", "-c", str(config)).exit_code == 0
    config.write_text(CONFIGURATION.format(socket=""))
    result = run("status", "-c", str(config))
    assert result.exit_code == 2
    assert "control.socket is empty" in result.stderr
    result = run("status", "-c", str(tmp_path / "missing.yaml"))
    assert (result.exit_code, result.stderr) == (2, f"ztna: {tmp_path}/missing.yaml: no such file\n")


@pytest.mark.parametrize("is_root", [True, False])
@pytest.mark.parametrize(
    "environ", [{"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/x"}, {"HOME": "/home/x"}, {}]
)
def test_the_default_directory_is_that_of_the_daemons(environ: dict[str, str], is_root: bool) -> None:
    ours = control_client.runtime_directory(environ, is_root=is_root)
    assert ours == settings.runtime_directory(environ, is_root=is_root)


def test_a_poll_imports_neither_the_quic_stack_nor_the_settings() -> None:
    probe = (
        "import sys, ztna.cli.main, ztna.cli.status, ztna.v1.control_pb2_grpc;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=os.environ
    )
    heavy = {"aioquic", "pydantic", "cryptography", "aiohttp", "pykka", "structlog", "rich", "yaml"}
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10 * 1024, "10 KiB"), (1024**2 - 1, "1.0 MiB"),
        (64 * 2**20, "64 MiB"), (2**33, "8.0 GiB"), (2**64, "16384 PiB"),
    ],
)  # fmt: skip
def test_bytes(count: float, text: str) -> None:
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (9.94, "9.9s"), (42.9, "42s"), (185, "3m05s"), (3720, "1h02m"), (273_600, "3d04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(0, "-"), (0.42, "0.42 ms"), (21.34, "21.3 ms"), (250.4, "250 ms")]
)
def test_round_trips(milliseconds: float, text: str) -> None:
    assert show_rtt(milliseconds) == text


def test_a_rate_of_nothing_is_a_dash() -> None:
    assert (show_rate(0.4), show_rate(2048)) == ("-", "2.0 KiB/s")


def test_one_of_a_kind_is_told_in_the_singular() -> None:
    assert [show_count(count, "packet") for count in (0, 1, 2)] == ["0 packets", "1 packet", "2 packets"]
