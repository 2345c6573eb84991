"""What a daemon's end tells: an exit status for scripts, and one line of words for people."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.backends import content_digest, download
from tests.e2e.conftest import Site
from tools.deployment import Daemon, Deployment, free_port
from ztna.access.identity import Identity, Role
from ztna.pki import authority
from ztna.pki.authority import DAY_S
from ztna.pki.files import CRL, PkiDirectory

END_LIMIT_S = 60.0
POLL_S = 0.01
SERVICE = [{"id": "files", "protocol": "tcp", "backend": "127.0.0.1:9"}]


def run_to_end(deployment: Deployment, name: str) -> tuple[int, str]:
    """Exit status, and the one line that says why; a daemon that could log ends with that it gave up."""
    daemon = deployment.daemons[name]
    deployment.start(name)
    assert daemon.process is not None
    status = daemon.process.wait(END_LIMIT_S)
    text = daemon.log_path.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert "Errno" not in text
    errors = [line for line in text.splitlines() if is_error(line)]
    if errors[0].startswith("{"):
        end = json.loads(errors.pop())
        assert (end["event"], end["level"], end["exit_status"]) == ("daemon.gave_up", "error", status)
        assert text.splitlines()[-1] == json.dumps(end)
    assert len(errors) == 1, text
    return status, errors[0]


def is_error(line: str) -> bool:
    """Anything that is no log line counts: whoever started the daemon sees it."""
    try:
        return json.loads(line)["level"] in {"error", "critical"}
    except json.JSONDecodeError:
        return True


def configure(deployment: Deployment, daemon: Daemon, **node: Any) -> None:
    """Change keys of the daemon's `node` section."""
    daemon.settings["node"].update(node)
    daemon.config_path.write_text(yaml.safe_dump(daemon.settings, sort_keys=False), encoding="utf-8")


@pytest.fixture
def connector(deployment: Deployment) -> Daemon:
    """A connector whose intermediate does not run."""
    deployment.add_intermediate("intermediate-1")
    return deployment.add_connector("connector-1", SERVICE)


def test_unknown_key_ends_with_2_and_names_the_nearest(deployment: Deployment, connector: Daemon) -> None:
    connector.settings["servces"] = connector.settings.pop("services")
    configure(deployment, connector)
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert "servces" in line
    assert "services" in line
    assert str(connector.config_path) in line


def test_bad_yaml_ends_with_2_and_the_line(deployment: Deployment, connector: Daemon) -> None:
    connector.config_path.write_text("node:\n  id: [unclosed\n", encoding="utf-8")
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert f"{connector.config_path}:" in line


@pytest.mark.parametrize("missing", ["config", "cert", "key", "ca", "crl"])
def test_missing_file_ends_with_2_and_is_named(
    deployment: Deployment, connector: Daemon, missing: str
) -> None:
    if missing == "config":
        path = connector.config_path
        path.unlink()
    else:
        path = deployment.directory / "nowhere.pem"
        configure(deployment, connector, **{missing: str(path)})
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert str(path) in line
    assert "no such file" in line.lower()


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("agent", "services.0.listen"),
        ("connector", "udp.bind.0"),
        ("intermediate", "quic.listen.0"),
        ("intermediate", "grpc.listen"),
        ("connector", "metrics.listen"),
    ],
)
def test_name_in_the_place_of_an_address_to_listen_on_ends_with_2_here_and_in_the_check(
    deployment: Deployment, connector: Daemon, kind: str, place: str
) -> None:
    deployment.add_agent("agent-1", [{"id": "files", "protocol": "tcp", "listen": "127.0.0.1:9"}])
    daemon = deployment.daemons[f"{kind}-1"]
    *parts, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    section: Any = daemon.settings
    for part in parts:
        section = section[part]
    section[last] = "gateway.example:4433"
    configure(deployment, daemon)
    words = "must be an IP address and a port: names are not resolved here"
    status, line = run_to_end(deployment, daemon.id)
    assert status == 2
    assert f"{place}: {words}" in line
    checked = deployment.ztna("config", "check", "-c", str(daemon.config_path), check=False)
    assert (checked.returncode, checked.stdout) == (2, "")
    (line,) = checked.stderr.splitlines()
    assert f"{place}: {words}" in line


def test_long_path_of_the_control_socket_ends_with_2(deployment: Deployment, connector: Daemon) -> None:
    connector.settings["control"]["socket"] = str(deployment.directory / ("x" * 120) / "ztna.sock")
    configure(deployment, connector)
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert "control.socket" in line


def test_key_of_another_certificate_ends_with_3(deployment: Deployment, connector: Daemon) -> None:
    other = deployment.daemons["intermediate-1"].settings["node"]["key"]
    configure(deployment, connector, key=other)
    status, line = run_to_end(deployment, connector.id)
    assert status == 3
    assert "is not the key of the certificate" in line
    assert other in line
    assert connector.settings["node"]["cert"] in line


def expired(deployment: Deployment, connector: Daemon) -> None:
    pki = PkiDirectory(deployment.directory / "pki")
    pki.issue(
        Role.CONNECTOR,
        connector.id,
        time.time() - 2 * DAY_S,
        DAY_S,
        out=deployment.directory / connector.id,
        force=True,
    )


def foreign(deployment: Deployment, connector: Daemon) -> None:
    ca = authority.create_ca("demo.test", time.time())
    issued = authority.issue(ca, Identity("demo.test", Role.CONNECTOR, connector.id), time.time())
    Path(connector.settings["node"]["cert"]).write_bytes(issued.certificate_pem)
    Path(connector.settings["node"]["key"]).write_bytes(issued.key_pem)


def wrong_role(deployment: Deployment, connector: Daemon) -> None:
    deployment.ztna(
        "pki",
        "issue",
        "agent",
        connector.id,
        "--dir",
        str(deployment.directory / "pki"),
        "--out",
        str(deployment.directory / connector.id),
        "--force",
    )


def wrong_name(deployment: Deployment, connector: Daemon) -> None:
    configure(deployment, connector, id="connector-2")


def revoked(deployment: Deployment, connector: Daemon) -> None:
    pki = PkiDirectory(deployment.directory / "pki")
    pki.revoke(time.time(), role=Role.CONNECTOR, node_id=connector.id)


def forged_crl(deployment: Deployment, connector: Daemon) -> None:
    other = PkiDirectory(deployment.directory / "other")
    other.init("demo.test", time.time())
    configure(deployment, connector, crl=str(other.path / CRL))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (expired, "expired"),
        (foreign, "was not issued by this deployment's CA"),
        (wrong_role, "is the certificate of agent 'connector-1', and `kind` is 'connector'"),
        (wrong_name, "is the certificate of connector 'connector-1', and `node.id` is 'connector-2'"),
        (revoked, "was revoked"),
        (forged_crl, "node.crl"),
    ],
    ids=["expired", "foreign", "wrong_role", "wrong_name", "revoked", "forged_crl"],
)
def test_own_certificate_that_nobody_would_accept_ends_with_3(
    deployment: Deployment, connector: Daemon, spoil: Callable[[Deployment, Daemon], None], words: str
) -> None:
    spoil(deployment, connector)
    status, line = run_to_end(deployment, connector.id)
    assert status == 3
    assert words in line


def occupied(kind: socket.SocketKind, address: str) -> socket.socket:
    """Somebody else who has this address."""
    host, _, port = address.rpartition(":")
    other = socket.socket(socket.AF_INET, kind)
    other.bind((host, int(port)))
    if kind == socket.SOCK_STREAM:
        other.listen()
    return other


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (socket.SOCK_DGRAM, ("quic", "listen", 0)),
        (socket.SOCK_DGRAM, ("stun", "alternate_port")),
        (socket.SOCK_STREAM, ("grpc", "listen")),
        (socket.SOCK_STREAM, ("metrics", "listen")),
    ],
    ids=["quic", "stun", "grpc", "metrics"],
)
def test_address_in_use_ends_an_intermediate_with_4(
    deployment: Deployment, kind: socket.SocketKind, key: tuple[Any, ...]
) -> None:
    daemon = deployment.add_intermediate("intermediate-1")
    address: Any = daemon.settings
    for part in key:
        address = address[part]
    address = address if isinstance(address, str) else f"127.0.0.1:{address}"
    with closing(occupied(kind, address)):
        status, line = run_to_end(deployment, "intermediate-1")
    assert status == 4
    assert address in line
    assert "Address already in use" in line


@pytest.mark.parametrize(
    ("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)], ids=["tcp", "udp"]
)
def test_listener_in_use_ends_an_agent_with_4_and_names_the_service(
    deployment: Deployment, protocol: str, kind: socket.SocketKind
) -> None:
    deployment.add_intermediate("intermediate-1")
    address = f"127.0.0.1:{free_port(kind)}"
    deployment.add_agent("agent-1", [{"id": "files", "protocol": protocol, "listen": address}])
    with closing(occupied(kind, address)):
        status, line = run_to_end(deployment, "agent-1")
    assert status == 4
    assert f"service files: cannot listen on {protocol} {address}: Address already in use" in line


def test_control_socket_of_a_living_daemon_ends_the_second_with_4(
    deployment: Deployment, connector: Daemon
) -> None:
    deployment.start("intermediate-1")
    deployment.wait_ready("intermediate-1")
    connector.settings["control"] = deployment.daemons["intermediate-1"].settings["control"]
    configure(deployment, connector)
    status, line = run_to_end(deployment, connector.id)
    assert status == 4
    assert "another daemon is running" in line
    assert deployment.daemon_status("intermediate-1") is not None


def wait_for_event(daemon: Daemon, event: str, timeout_s: float = 5.0) -> None:
    """Wait until the daemon has logged `event`."""
    deadline = time.monotonic() + timeout_s
    while f'"{event}"' not in daemon.log_path.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, daemon.log_tail()
        threading.Event().wait(POLL_S)


def test_second_interrupt_ends_a_drain_at_once(site: Site) -> None:
    deployment = site.deployment
    agent = deployment.daemons["agent-1"]
    intermediate = deployment.daemons["intermediate-1"].process
    assert agent.process is not None
    assert intermediate is not None
    # Nobody answers the goodbye: the drain waits until its time is up.
    intermediate.send_signal(signal.SIGSTOP)
    try:
        agent.process.send_signal(signal.SIGINT)
        wait_for_event(agent, "daemon.draining")
        assert agent.is_running
        assert deployment.kill("agent-1", signal.SIGINT) == 128 + signal.SIGINT
        wait_for_event(agent, "daemon.stopped_at_once")
    finally:
        intermediate.send_signal(signal.SIGCONT)
    assert "daemon.stopped" not in agent.log_path.read_text(encoding="utf-8").replace(
        "daemon.stopped_at_once", ""
    )
    # The first alone leads to an orderly end, with nothing to complain of.
    assert deployment.kill("connector-1", signal.SIGTERM) == 0
    log = deployment.daemons["connector-1"].log_path.read_text(encoding="utf-8")
    assert not [line for line in log.splitlines() if is_error(line)]


@pytest.mark.parametrize("key", ["config", "cert", "key", "ca", "crl"])
def test_directory_in_the_place_of_a_file_ends_with_2_and_is_named(
    deployment: Deployment, connector: Daemon, key: str
) -> None:
    if key == "config":
        path = connector.config_path
        path.unlink()
        path.mkdir()
    else:
        path = deployment.directory
        configure(deployment, connector, **{key: str(path)})
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert str(path) in line
    assert "directory" in line.lower()


@pytest.mark.parametrize("key", ["cert", "key", "ca", "crl"])
def test_garbage_in_a_file_of_the_node_names_the_file(
    deployment: Deployment, connector: Daemon, key: str
) -> None:
    path = deployment.directory / "garbage.pem"
    path.write_bytes(bytes(range(256)) * 4)
    configure(deployment, connector, **{key: str(path)})
    status, line = run_to_end(deployment, connector.id)
    assert status in {2, 3}
    assert str(path) in line


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_control_socket_below_a_file_ends_with_2_and_is_named(
    deployment: Deployment, connector: Daemon, below: str
) -> None:
    place = deployment.directory / "file"
    place.write_text("", encoding="utf-8")
    connector.settings["control"]["socket"] = str(place / below / "ztna.sock")
    configure(deployment, connector)
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert f"control.socket: {place}" in line
    assert "is not a directory" in line


def test_control_socket_where_others_are_let_in_ends_with_2_and_says_how_it_should_be(
    deployment: Deployment, connector: Daemon
) -> None:
    place = deployment.directory / "open"
    place.mkdir(mode=0o755)
    connector.settings["control"]["socket"] = str(place / "ztna.sock")
    configure(deployment, connector)
    status, line = run_to_end(deployment, connector.id)
    assert status == 2
    assert str(place) in line
    assert "mode 0755, should be 0700" in line


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_log_on_a_full_disk_costs_lines_and_never_the_daemon(site: Site, unbuffered: str) -> None:
    deployment = site.deployment
    daemon = deployment.daemons["agent-1"]
    deployment.kill("agent-1", signal.SIGTERM)
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "ztna.cli.main", "agent", "-c", str(daemon.config_path)]
        # Where lines wait for room, the interpreter tries them once more at its end.
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        daemon.process = subprocess.Popen(command, stdout=full, stderr=full, env=environment)
    deployment.wait_ready("agent-1")
    assert download(site.tcp_port, 1 << 20) == content_digest(1 << 20)
    # Nor its end, which is logged too.
    assert deployment.kill("agent-1", signal.SIGTERM) == 0


def run_pki(directory: Path, *arguments: str, limit: str = "unlimited") -> subprocess.CompletedProcess[str]:
    """`ztna pki`, whose files may have no more than `limit` blocks."""
    command = [sys.executable, "-m", "ztna.cli.main", "pki", *arguments, "--dir", str(directory)]
    # What `ulimit -f` refuses comes as an error of write(2), as on a full disk, once SIGXFSZ is ignored.
    script = f"trap '' XFSZ; ulimit -f {limit}; exec \"$@\""
    return subprocess.run(
        ["sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the one that is locked, which is empty at all times."""
    return {
        str(path): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    "command",
    [
        ("init", "--trust-domain", "demo.test"),
        ("issue", "agent", "laptop", "--out", "{out}"),
        ("revoke", "agent", "desktop"),
        ("crl",),
    ],
    ids=lambda command: command[0],
)
def test_full_disk_ends_a_command_of_the_ca_with_2_in_one_line_and_changes_nothing(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    ca, out = tmp_path / "pki", tmp_path / "out"
    command = tuple(word.format(out=out) for word in command)
    if command[0] != "init":
        assert run_pki(ca, "init", "--trust-domain", "demo.test").returncode == 0
        assert run_pki(ca, "issue", "agent", "desktop", "--out", str(tmp_path / "desktop")).returncode == 0
    before = contents(tmp_path)
    failed = run_pki(ca, *command, limit="0")
    assert failed.returncode == 2
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert "File too large" in line
    assert contents(tmp_path) == before
    # With room again the same command does its work, and nothing is in its way.
    assert run_pki(ca, *command).returncode == 0
    assert contents(tmp_path) != before


def test_name_of_an_intermediate_that_does_not_resolve_is_told_in_log_and_status(
    deployment: Deployment, connector: Daemon
) -> None:
    connector.settings["signaling"] = {"transport": "quic"}
    connector.settings["intermediates"][0]["quic"] = "relay.example:4433"
    configure(deployment, connector)
    connector.program = ("-P", str(Path(__file__).with_name("nameless.py")))
    deployment.start(connector.id)
    words = "relay.example: Name or service not known"
    status = deployment.wait_for(
        connector.id,
        lambda status: any(
            each["message"] == f"relay leg to intermediate-1: {words}" and each["count"] > 2
            for each in status["problems"]
        ),
        "attempt after attempt",
    )
    assert not status["is_ready"]
    assert status["intermediates"][0]["leg_reason"] == words
    # An outage is one line, not one per attempt.
    lines = map(json.loads, connector.log_path.read_text(encoding="utf-8").splitlines())
    (lost,) = [line for line in lines if line["event"] == "relay_leg.lost"]
    assert (lost["reason"], lost["detail"], lost["level"]) == ("unresolvable", words, "warning")
