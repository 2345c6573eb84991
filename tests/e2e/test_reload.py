"""SIGHUP: credentials and the revocation list are read again, and a faulty file changes nothing."""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import pytest
import yaml

from tests.e2e.backends import HeldDownload, connect, content_digest, download
from tests.e2e.conftest import Site
from tools.deployment import Deployment, control_channel, free_port
from ztna.access.identity import Role
from ztna.pki.files import CRL, PkiDirectory
from ztna.v1 import control_pb2, control_pb2_grpc

MIB = 1 << 20


def reload(deployment: Deployment, name: str, event: str) -> None:
    daemon = deployment.daemons[name]
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while event not in daemon.log_tail(200):
        assert time.monotonic() < deadline, daemon.log_tail()
        deployment.check_running(name, event)
        # Answers once the loop has turned again, so this waits without guessing a time.
        deployment.daemon_status(name)


def test_revoked_agent_is_refused_from_the_reload_on_by_connector_and_intermediate(site: Site) -> None:
    deployment = site.deployment
    assert download(site.tcp_port, MIB) == content_digest(MIB)
    pki = PkiDirectory(deployment.directory / "pki")
    pki.revoke(time.time(), role=Role.AGENT, node_id="agent-1")
    reload(deployment, "intermediate-1", "daemon.reloaded")
    reload(deployment, "connector-1", "daemon.reloaded")
    deployment.kill("intermediate-1")
    deployment.start("intermediate-1")
    status = deployment.wait_for(
        "agent-1",
        lambda status: "revoked" in status["intermediates"][0]["reason"],
        "the refusal, in words",
    )
    assert not status["is_ready"]


def test_session_of_an_agent_that_is_revoked_ends_with_the_reload_of_the_connector(site: Site) -> None:
    deployment = site.deployment
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        PkiDirectory(deployment.directory / "pki").revoke(time.time(), role=Role.AGENT, node_id="agent-1")
        reload(deployment, "connector-1", "daemon.reloaded")
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_intermediate_sends_an_attached_agent_away_once_it_is_revoked(site: Site) -> None:
    deployment = site.deployment
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        # The connector does not know: its file is read again only when it is told to.
        PkiDirectory(deployment.directory / "pki").revoke(time.time(), role=Role.AGENT, node_id="agent-1")
        reload(deployment, "intermediate-1", "daemon.reloaded")
        client.settimeout(15)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    deployment.wait_for(
        "agent-1",
        lambda status: "revoked" in status["intermediates"][0]["reason"],
        "the refusal, in words",
    )
    deployment.wait_for("intermediate-1", lambda status: len(status["nodes"]) == 1, "one node")


def test_faulty_file_changes_nothing(site: Site) -> None:
    deployment = site.deployment
    (deployment.directory / "pki" / CRL).write_bytes(b"-----BEGIN nonsense\n")
    for name in ("agent-1", "connector-1", "intermediate-1"):
        reload(deployment, name, "daemon.reload_failed")
    assert download(site.tcp_port, MIB) == content_digest(MIB)


def test_certificate_that_ends_within_a_month_is_warned_of_at_start(configured_site: Site) -> None:
    deployment = configured_site.deployment
    daemon = deployment.daemons["agent-1"]
    issue = ("pki", "issue", "agent", "agent-1", "--dir", str(deployment.directory / "pki"))
    deployment.ztna(*issue, "--out", str(deployment.directory / "agent-1"), "--days", "7", "--force")
    deployment.start("agent-1")
    deployment.wait_for("agent-1", lambda status: status["uptime_s"] >= 0, "the control socket")
    assert "daemon.certificate_ends_soon" in daemon.log_tail(100)


def configure(deployment: Deployment, name: str, **changes: Any) -> None:
    """Write other values into the file of a daemon, which is not told."""
    daemon = deployment.daemons[name]
    daemon.settings.update(changes)
    daemon.config_path.write_text(yaml.safe_dump(daemon.settings))


def reload_now(deployment: Deployment, name: str) -> control_pb2.ReloadResponse:
    with control_channel(deployment.daemons[name].control_socket) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        answer = stub.Reload(control_pb2.ReloadRequest(), timeout=10, wait_for_ready=True)
    assert isinstance(answer, control_pb2.ReloadResponse)
    return answer


def session_ids(deployment: Deployment) -> list[bytes]:
    status = deployment.daemon_status("connector-1")
    assert status is not None
    return [each.session_id for each in status.sessions]


def echo(client: socket.socket, payload: bytes) -> bytes:
    client.settimeout(5)
    client.send(payload)
    return client.recv(100)


def test_policy_that_denies_one_service_cuts_it_at_once_and_leaves_the_other(site: Site) -> None:
    deployment = site.deployment
    with connect(site.tcp_port) as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        udp.connect(("127.0.0.1", site.udp_port))
        assert echo(udp, b"before") == b"before"
        sessions = session_ids(deployment)

        configure(deployment, "intermediate-1", policy=[{"agents": ["*"], "services": ["echo"]}])
        assert list(reload_now(deployment, "intermediate-1").applied) == ["policy"]
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        assert echo(udp, b"after") == b"after"
        with connect(site.tcp_port) as refused, pytest.raises(ConnectionResetError):
            refused.recv(1)
        assert session_ids(deployment) == sessions
        assert "service_backend.access_cut" in deployment.daemons["connector-1"].log_tail(200)

    configure(deployment, "intermediate-1", policy=[{"agents": ["*"], "services": ["*"]}])
    reload_now(deployment, "intermediate-1")
    assert download(site.tcp_port, MIB) == content_digest(MIB)


def test_service_that_a_connector_may_offer_no_more_is_rejected_and_cut_at_once(site: Site) -> None:
    deployment = site.deployment
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        configure(deployment, "intermediate-1", offers=[{"connectors": ["*"], "services": ["echo"]}])
        assert list(reload_now(deployment, "intermediate-1").applied) == ["offers"]
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    deployment.wait_for(
        "connector-1",
        lambda status: [each["state"] for each in status["services"]] == ["rejected", "registered"],
        "the rejection",
    )


def test_connector_that_lets_an_agent_in_no_more_cuts_it_off(site: Site) -> None:
    deployment = site.deployment
    services = deployment.daemons["connector-1"].settings["services"]
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        narrowed = [{**service, "allow": ["somebody-else"]} for service in services]
        configure(deployment, "connector-1", services=narrowed)
        assert list(reload_now(deployment, "connector-1").applied) == ["services"]
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_services_of_an_agent_follow_its_configuration(site: Site) -> None:
    deployment = site.deployment
    assert download(site.tcp_port, MIB) == content_digest(MIB)
    moved, taken = free_port(), socket.create_server(("127.0.0.1", 0))
    with taken, connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        configure(
            deployment,
            "agent-1",
            services=[
                {"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{moved}"},
                {"id": "late", "protocol": "tcp", "listen": f"127.0.0.1:{taken.getsockname()[1]}"},
            ],
            session={"idle_timeout_s": 77},
        )
        answer = reload_now(deployment, "agent-1")
        assert list(answer.applied) == ["services"]
        assert list(answer.needs_restart) == ["session.idle_timeout_s"]
        status = deployment.wait_for(
            "agent-1",
            lambda status: any("late" in each["message"] for each in status["problems"]),
            "the address that is taken",
        )
        assert {each["id"]: each["state"] for each in status["services"]} == {
            "files": "listening",
            "late": "failed",
        }
        assert download(moved, MIB) == content_digest(MIB)
        with pytest.raises(ConnectionRefusedError):
            connect(site.tcp_port)
        # The connection that was there before its service moved.
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_download_runs_through_a_hundred_reloads_of_every_daemon(site: Site) -> None:
    size = 64 * MIB
    deployment = site.deployment
    # Each tenth changes something about the other service: at the intermediate who may use it, at the others
    # whether it is there.
    services = {name: deployment.daemons[name].settings["services"] for name in ("connector-1", "agent-1")}
    running = HeldDownload(site.tcp_port, size)
    for number in range(100):
        is_changed, is_whole = number % 10 == 0, number // 10 % 2 == 1
        if is_changed:
            allowed = ["*"] if is_whole else ["files"]
            configure(deployment, "intermediate-1", policy=[{"agents": ["*"], "services": allowed}])
            for name, both in services.items():
                configure(deployment, name, services=both if is_whole else both[:1])
        for name in deployment.daemons:
            assert bool(reload_now(deployment, name).applied) == is_changed
    assert running.finish() == content_digest(size)


def test_reload_command_names_the_fault_and_nothing_changes(site: Site) -> None:
    deployment = site.deployment
    daemon = deployment.daemons["agent-1"]
    good = daemon.config_path.read_text()
    daemon.config_path.write_text(good.replace("listen:", "lisen:"))
    done = deployment.ztna("reload", "--socket", str(daemon.control_socket), check=False)
    assert done.returncode == 2
    assert "unknown key; did you mean" in done.stderr
    assert download(site.tcp_port, MIB) == content_digest(MIB)
    daemon.config_path.write_text(good)
    assert "no key" in deployment.ztna("reload", "--socket", str(daemon.control_socket)).stdout


def test_certificates_renewed_under_load_cost_no_connection(site: Site) -> None:
    deployment = site.deployment
    size = 64 * MIB
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        sessions = session_ids(deployment)
        running = HeldDownload(site.tcp_port, size)
        for name, daemon in deployment.daemons.items():
            issue = ("pki", "issue", daemon.kind, name, "--dir", str(deployment.directory / "pki"))
            deployment.ztna(*issue, "--out", str(deployment.directory / name), "--force")
            reload_now(deployment, name)
        assert running.finish() == content_digest(size)
        # With the new keys, in the session of the old ones.
        assert download(site.tcp_port, MIB) == content_digest(MIB)
        assert session_ids(deployment) == sessions
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    deployment.wait_ready()
    for name in ("agent-1", "connector-1"):
        assert "intermediate_selector.certificate_renewed" in deployment.daemons[name].log_tail(200)
    deployment.kill("connector-1")
    deployment.start("connector-1")
    deployment.wait_ready()
    # A session of the new keys.
    assert download(site.tcp_port, MIB) == content_digest(MIB)
    assert session_ids(deployment) != sessions


def test_service_that_a_connector_gains_or_loses_is_registered_or_withdrawn_at_once(site: Site) -> None:
    deployment = site.deployment
    port = free_port()
    former = deployment.daemons["connector-1"].settings["services"]
    late = {"id": "late", "protocol": "tcp", "backend": site.tcp.address}
    configure(deployment, "connector-1", services=[former[1], late])
    configure(
        deployment,
        "agent-1",
        services=[
            *deployment.daemons["agent-1"].settings["services"],
            {"id": "late", "protocol": "tcp", "listen": f"127.0.0.1:{port}"},
        ],
    )
    reload_now(deployment, "connector-1")
    reload_now(deployment, "agent-1")
    deployment.wait_for(
        "intermediate-1",
        lambda status: {each["id"] for each in status["registered_services"]} == {"echo", "late"},
        "the new service in place of the former one",
    )
    deployment.wait_ready()
    assert download(port, MIB) == content_digest(MIB)
    with connect(site.tcp_port) as refused, pytest.raises(ConnectionResetError):
        refused.recv(1)
