"""SIGHUP: credentials and the revocation list are read again, and a faulty file changes nothing."""

from __future__ import annotations

import signal
import time

import pytest

from tests.e2e.backends import connect, content_digest, download
from tests.e2e.conftest import Site
from tools.deployment import Deployment
from ztna.access.identity import Role
from ztna.pki.files import CRL, PkiDirectory

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
    reload(deployment, "intermediate-1", "daemon.credentials_reloaded")
    reload(deployment, "connector-1", "daemon.credentials_reloaded")
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
        reload(deployment, "connector-1", "daemon.credentials_reloaded")
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_intermediate_sends_an_attached_agent_away_once_it_is_revoked(site: Site) -> None:
    deployment = site.deployment
    with connect(site.tcp_port) as client:
        client.sendall(b"HOLD\n")
        assert client.recv(100) == b"held\n"
        # The connector does not know: its file is read again only when it is told to.
        PkiDirectory(deployment.directory / "pki").revoke(time.time(), role=Role.AGENT, node_id="agent-1")
        reload(deployment, "intermediate-1", "daemon.credentials_reloaded")
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
