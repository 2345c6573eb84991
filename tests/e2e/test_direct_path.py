"""The direct path between real processes on loopback, each node on an address of its own."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from tests.e2e.backends import TcpBackend, UdpEcho, connect, content_digest, download
from tests.e2e.conftest import Site, listeners, services
from tools.deployment import Deployment, free_port

AGENT, CONNECTOR = "127.0.0.2", "127.0.0.3"
MIB = 1 << 20
# For a moment in which the machine has time for us.
LIMIT_S = 60.0
ICE: dict[str, Any] = {"loopback": True}


def start(site: Site, agent: dict[str, Any] | None = None, connector: dict[str, Any] | None = None) -> Site:
    """Agent, connector and intermediate on one address each."""
    deployment = site.deployment
    deployment.add_intermediate("intermediate-1")
    deployment.add_connector(
        "connector-1",
        services(site.tcp, site.udp),
        **{"udp": {"bind": [f"{CONNECTOR}:0"]}, "ice": ICE, **(connector or {})},
    )
    deployment.add_agent(
        "agent-1",
        listeners(site.tcp_port, site.udp_port),
        **{"udp": {"bind": [f"{AGENT}:0"]}, "ice": ICE, "connect": "eager", **(agent or {})},
    )
    deployment.start()
    deployment.wait_ready()
    return site


@pytest.fixture
def empty_site(deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]) -> Site:
    tcp, udp = backends
    return Site(deployment, tcp, udp, free_port(), free_port())


def session(status: dict[str, Any]) -> dict[str, Any]:
    """The one session of a status, or an empty one."""
    sessions: list[dict[str, Any]] = status["sessions"]
    return sessions[0] if len(sessions) == 1 else {"path": "none", "direct_path": {}}


def wait_for_path(site: Site, path: str, *names: str) -> list[dict[str, Any]]:
    return [
        session(
            site.deployment.wait_for(
                name, lambda status: session(status)["path"] == path, f"the session is on path {path}"
            )
        )
        for name in names or ("agent-1", "connector-1")
    ]


def test_candidates_are_exchanged_through_the_intermediate(empty_site: Site) -> None:
    start(empty_site)
    agent, connector = wait_for_path(empty_site, "direct")
    for own, peer, host in ((agent, connector, AGENT), (connector, agent, CONNECTOR)):
        local = [each["address"]["host"] for each in own["direct_path"]["local_candidates"]]
        remote = [each["address"]["host"] for each in peer["direct_path"]["remote_candidates"]]
        assert host in local
        assert host in remote
    log = (empty_site.deployment.daemons["agent-1"].log_path).read_text(encoding="utf-8")
    assert "hole_punch.state_changed" in log
    assert agent["direct_path"]["generation"] == connector["direct_path"]["generation"] >= 1


def test_two_loopback_hosts_hold_a_direct_session(empty_site: Site) -> None:
    start(empty_site)
    agent, connector = wait_for_path(empty_site, "direct")
    pair = agent["direct_path"]["selected_pair"]
    assert pair["local"]["address"]["host"] == AGENT
    assert pair["remote"]["address"]["host"] == CONNECTOR
    mirrored = connector["direct_path"]["selected_pair"]
    assert mirrored["remote"]["address"] == pair["local"]["address"]
    assert agent["path_reason"] == ""
    assert agent["direct_path"]["state"] == "connected"


def received(site: Site, least: int = 0) -> tuple[int, int]:
    """Bytes that came to the agent directly and over the relay, once they are at least so many together."""
    status = site.deployment.wait_for(
        "agent-1",
        lambda status: session(status).get("bytes_received", -1) >= least,
        f"{least} bytes in the figures",
    )
    directly: int = session(status)["direct_path"]["direct_bytes_received"]
    return directly, session(status)["bytes_received"] - directly


def test_payload_of_both_protocols_takes_the_direct_path_and_not_the_relay(empty_site: Site) -> None:
    start(empty_site)
    wait_for_path(empty_site, "direct")
    deadline = time.monotonic() + LIMIT_S
    before = received(empty_site)
    while True:
        assert download(empty_site.tcp_port, 8 * MIB) == content_digest(8 * MIB)
        # All of it has come, so the figures will say which way.
        after = received(empty_site, sum(before) + 8 * MIB)
        directly, relayed = (now - then for now, then in zip(after, before, strict=True))
        if relayed < MIB:
            break
        # A machine that is too busy can put a path in doubt for a moment, and packets take both.
        assert time.monotonic() < deadline, f"{directly} bytes came directly, {relayed} over the relay"
        before = after
    assert directly > 7 * MIB
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(b"over the direct path", ("127.0.0.1", empty_site.udp_port))
        assert client.recv(100) == b"over the direct path"


def test_relay_only_stays_on_the_relay_and_says_so(empty_site: Site) -> None:
    start(empty_site, connector={"path": {"policy": "relay_only"}})
    assert download(empty_site.tcp_port, MIB) == content_digest(MIB)

    for name, reason in (("agent-1", "peer_relay_only"), ("connector-1", "policy_relay_only")):
        status = empty_site.deployment.wait_for(
            name,
            lambda status, reason=reason: session(status)["direct_path"].get("reason") == reason,  # type: ignore[misc]
            "the reason is shown",
        )
        assert session(status)["path"] == "relay"
        assert "relay" in session(status)["path_reason"]


def test_session_without_any_pair_falls_back_to_the_relay_and_says_why(empty_site: Site) -> None:
    start(empty_site, agent={"ice": {"loopback": False}})
    assert download(empty_site.tcp_port, MIB) == content_digest(MIB)

    def has_given_up(status: dict[str, Any]) -> bool:
        return bool(session(status)["direct_path"].get("state") == "fallback_relay")

    for name in ("agent-1", "connector-1"):
        status = empty_site.deployment.wait_for(name, has_given_up, "the relay is used")
        assert session(status)["path"] == "relay"
        assert session(status)["path_reason"]


def test_keepalives_confirm_the_direct_path(empty_site: Site) -> None:
    keepalive = {"keepalive": {"interval_s": 1}}
    start(empty_site, agent=keepalive, connector=keepalive)
    wait_for_path(empty_site, "direct")
    with connect(empty_site.tcp_port) as client:
        client.sendall(b"ECHO\n")
        for name in ("agent-1", "connector-1"):
            status = empty_site.deployment.wait_for(
                name,
                lambda status: session(status)["direct_path"]["keepalives_answered"] >= 3,
                "three keepalives are answered",
            )
            direct_path = session(status)["direct_path"]
            assert direct_path["keepalives_missed"] == 0
            assert direct_path["rtt_direct_ms"] > 0
            assert direct_path["rtt_relay_ms"] > 0


def test_operator_restarts_the_search_and_the_session_stays(empty_site: Site) -> None:
    start(empty_site)
    agent, _ = wait_for_path(empty_site, "direct")
    deployment = empty_site.deployment
    with connect(empty_site.tcp_port) as client:
        client.sendall(b"ECHO\n")
        deployment.ztna("restart", "--socket", str(deployment.daemons["connector-1"].control_socket))

        def has_found_again(status: dict[str, Any]) -> bool:
            found = session(status)
            return bool(
                found["direct_path"]["generation"] > agent["direct_path"]["generation"]
                and found["direct_path"]["state"] == "connected"
                and found["path"] == "direct"
            )

        again = session(deployment.wait_for("agent-1", has_found_again, "a newer direct path"))
        assert again["session_id"] == agent["session_id"]
        client.sendall(b"still here\n")
        client.settimeout(20)
        assert client.recv(100) == b"still here\n"
