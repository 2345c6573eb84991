"""The direct path between real processes on loopback, each node on an address of its own.

Six scenarios: candidates go through the intermediate, a session becomes direct, direct is preferred, a path
that dies makes room for the relay, two hosts talk, keepalives guard. And what operator and policy change.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e import deaf
from tests.e2e.backends import HeldDownload, TcpBackend, UdpEcho, connect, content_digest, download
from tests.e2e.conftest import Site, deploying, listeners, print_logs, services
from tests.e2e.test_reload import configure, reload_now
from tools.deployment import Deployment, free_port
from ztna.access.identity import Role
from ztna.pki.files import PkiDirectory

AGENT, CONNECTOR, OTHER_AGENT = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NODES = ("agent-1", "connector-1")
MIB = 1 << 20
# For a moment in which the machine has time for us.
LIMIT_S = 60.0
ICE: dict[str, Any] = {"loopback": True}
KEEPALIVE = {"interval_s": 1}


def start(site: Site, agent: dict[str, Any] | None = None, connector: dict[str, Any] | None = None) -> Site:
    """Agent, connector and intermediate on one address each; `cut` and `heal` work on the two."""
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
    for name, peer in zip(NODES, (CONNECTOR, AGENT), strict=True):
        deployment.daemons[name].program = ("-P", deaf.__file__, peer)
    deployment.start()
    deployment.wait_ready()
    return site


@pytest.fixture
def empty_site(deployment: Deployment, backends: tuple[TcpBackend, UdpEcho]) -> Site:
    tcp, udp = backends
    return Site(deployment, tcp, udp, free_port(), free_port())


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    """One session for several tests."""
    with deploying() as deployment, TcpBackend() as tcp, UdpEcho() as udp:
        settings: dict[str, Any] = {"keepalive": KEEPALIVE}
        yield start(Site(deployment, tcp, udp, free_port(), free_port()), settings, settings)


@pytest.fixture
def direct(shared_site: Site) -> Iterator[Site]:
    """The shared session on a direct path, also if a test before failed in a cut."""
    send_signal(shared_site, deaf.HEAL)
    wait_for_path(shared_site, "direct")
    yield shared_site
    print_logs(shared_site.deployment)


def send_signal(site: Site, number: signal.Signals) -> None:
    """To agent and connector."""
    for name in NODES:
        process = site.deployment.daemons[name].process
        assert process is not None
        process.send_signal(number)


def session(status: dict[str, Any]) -> dict[str, Any]:
    """The one session of a status, or an empty one."""
    sessions: list[dict[str, Any]] = status["sessions"]
    return sessions[0] if len(sessions) == 1 else {"path": "none", "direct_path": {}}


def wait_until(
    site: Site, is_so: Callable[[dict[str, Any]], bool], what: str, *names: str
) -> list[dict[str, Any]]:
    """Wait until the session satisfies a condition at nodes, both if none is named."""
    return [
        session(site.deployment.wait_for(name, lambda status: is_so(session(status)), what))
        for name in names or NODES
    ]


def wait_for_path(site: Site, path: str, *names: str) -> list[dict[str, Any]]:
    return wait_until(
        site, lambda found: bool(found["path"] == path), f"the session is on path {path}", *names
    )


def selected_paths(site: Site, name: str) -> list[tuple[str, str]]:
    """Path and reason of each selection so far, as a node logged them."""
    lines = site.deployment.daemons[name].log_path.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return [
        (each["path"], each["reason"]) for each in entries if each["event"] == "path_manager.path_selected"
    ]


def test_candidates_are_exchanged_through_the_intermediate(empty_site: Site) -> None:
    start(empty_site)
    agent, connector = wait_for_path(empty_site, "direct")
    for own, peer, host in ((agent, connector, AGENT), (connector, agent, CONNECTOR)):
        local = [each["address"] for each in own["direct_path"]["local_candidates"]]
        remote = [each["address"] for each in peer["direct_path"]["remote_candidates"]]
        (ours,) = [each for each in local if each["host"] == host]
        assert ours in remote
        # The first ones come before there is a session that could carry them.
        assert own["direct_path"]["generation"] == 1
        assert own["direct_path"]["signaling"] == "intermediate"


def test_two_loopback_hosts_hold_a_direct_session(direct: Site) -> None:
    agent, connector = wait_for_path(direct, "direct")
    pair = agent["direct_path"]["selected_pair"]
    assert pair["local"]["address"]["host"] == AGENT
    assert pair["remote"]["address"]["host"] == CONNECTOR
    mirrored = connector["direct_path"]["selected_pair"]
    assert mirrored["remote"]["address"] == pair["local"]["address"]
    assert mirrored["local"]["address"] == pair["remote"]["address"]
    assert agent["session_id"] == connector["session_id"]
    for each in (agent, connector):
        assert each["path_reason"] == ""
        assert each["direct_path"]["state"] == "connected"


def test_session_on_loopback_begins_on_the_relay_and_becomes_direct(direct: Site) -> None:
    for name in NODES:
        assert selected_paths(direct, name)[:2] == [("relay", "relay_up"), ("direct", "nominated")]
    before = received(direct)
    assert download(direct.tcp_port, MIB) == content_digest(MIB)
    directly, _ = received(direct, sum(before) + MIB)
    assert directly > before[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(b"over the direct path", ("127.0.0.1", direct.udp_port))
        assert client.recv(100) == b"over the direct path"


def received(site: Site, least: int = 0) -> tuple[int, int]:
    """Bytes that came to the agent directly and over the relay, once they are at least so many together."""
    status = site.deployment.wait_for(
        "agent-1",
        lambda status: session(status).get("bytes_received", -1) >= least,
        f"{least} bytes in the figures",
    )
    directly: int = session(status)["direct_path"]["direct_bytes_received"]
    return directly, session(status)["bytes_received"] - directly


def test_direct_path_is_preferred_to_a_relay_that_lives(direct: Site) -> None:
    def are_both_answered(found: dict[str, Any]) -> bool:
        # On a busy machine round-trip times rise, and a path is called degraded for that.
        return all(path["state"] != "failed" and path["rtt_ms"] > 0 for path in found["direct_path"]["paths"])

    for found in wait_until(direct, are_both_answered, "both paths are answered"):
        assert found["direct_path"]["policy"] == "prefer_direct"
        selected = {path["kind"]: path["is_selected"] for path in found["direct_path"]["paths"]}
        assert selected == {"direct": True, "relay": False}
    deadline = time.monotonic() + LIMIT_S
    before = received(direct)
    while True:
        assert download(direct.tcp_port, 8 * MIB) == content_digest(8 * MIB)
        # All of it has come, so the figures will say which way.
        after = received(direct, sum(before) + 8 * MIB)
        directly, relayed = (now - then for now, then in zip(after, before, strict=True))
        if relayed < MIB:
            break
        # A machine that is too busy can put a path in doubt for a moment, and packets take both.
        assert time.monotonic() < deadline, f"{directly} bytes came directly, {relayed} over the relay"
        before = after
    assert directly > 7 * MIB


def test_download_falls_back_to_the_relay_when_the_direct_path_dies_and_returns_when_it_heals(
    direct: Site,
) -> None:
    size, fast = 24 * MIB, 4 * MIB
    former = [each["direct_path"]["fail_overs"] for each in wait_for_path(direct, "direct")]
    at_start = received(direct)
    running = HeldDownload(direct.tcp_port, size, fast)
    before_cut = received(direct, sum(at_start) + fast)
    assert before_cut[0] - at_start[0] > 3 * MIB, "it is direct"
    send_signal(direct, deaf.CUT)
    for found, fail_overs in zip(wait_for_path(direct, "relay"), former, strict=True):
        assert found["direct_path"]["fail_overs"] > fail_overs
        assert found["via"] == "intermediate-1"
        assert found["path_reason"]
    on_relay = received(direct)
    after = received(direct, sum(on_relay) + MIB)
    assert after[1] - on_relay[1] > MIB // 2, "the relay carries the rest"
    send_signal(direct, deaf.HEAL)
    wait_for_path(direct, "direct")
    healed = received(direct)
    # First comes what the relay still holds, which on a busy machine is more than that.
    direct.deployment.wait_for(
        "agent-1",
        lambda status: session(status)["direct_path"]["direct_bytes_received"] > healed[0] + MIB // 2,
        "the direct path carries it again",
    )
    assert running.finish() == content_digest(size)


def test_relay_only_stays_on_the_relay_and_says_so(empty_site: Site) -> None:
    start(empty_site, connector={"path": {"policy": "relay_only"}})
    assert download(empty_site.tcp_port, MIB) == content_digest(MIB)

    for name, reason in (("agent-1", "peer_relay_only"), ("connector-1", "policy_relay_only")):
        (found,) = wait_until(
            empty_site,
            lambda found, reason=reason: found["direct_path"].get("reason") == reason,  # type: ignore[misc]
            "the reason is shown",
            name,
        )
        assert found["path"] == "relay"
        assert "relay" in found["path_reason"]


def test_session_without_any_pair_falls_back_to_the_relay_and_says_why(empty_site: Site) -> None:
    start(empty_site, agent={"ice": {"loopback": False}})
    assert download(empty_site.tcp_port, MIB) == content_digest(MIB)

    def has_given_up(found: dict[str, Any]) -> bool:
        return bool(found["direct_path"].get("state") == "fallback_relay")

    for found in wait_until(empty_site, has_given_up, "the relay is used"):
        assert found["path"] == "relay"
        assert found["path_reason"]


def test_keepalives_confirm_a_direct_path_that_is_idle(direct: Site) -> None:
    with connect(direct.tcp_port) as client:
        client.sendall(b"ECHO\nsomething")
        assert client.recv(100) == b"something"
    for name in NODES:
        status = direct.deployment.wait_for(
            name, lambda status: session(status)["open_streams"] == 0, "nothing uses the session"
        )
        at_start = session(status)["direct_path"]
        round_trips: set[float] = set()

        def is_measured_again(found: dict[str, Any], seen: set[float] = round_trips) -> bool:
            seen.add(found["direct_path"]["rtt_direct_ms"])
            return len(seen) > 3

        # On this path nothing measures but an answered keepalive.
        (found,) = wait_until(direct, is_measured_again, "three keepalives are answered", name)
        direct_path = found["direct_path"]
        assert (found["path"], found["open_streams"]) == ("direct", 0)
        assert direct_path["keepalives_answered"] >= at_start["keepalives_answered"] + 3
        assert direct_path["keepalives_missed"] == at_start["keepalives_missed"]
        counters = direct.deployment.daemon_status(name)
        assert counters is not None
        assert counters.counters["keepalives_sent_total"] >= direct_path["keepalives_sent"]


def test_operator_restarts_the_search_and_the_session_stays(empty_site: Site) -> None:
    start(empty_site)
    agent, _ = wait_for_path(empty_site, "direct")
    deployment = empty_site.deployment
    with connect(empty_site.tcp_port) as client:
        client.sendall(b"ECHO\n")
        deployment.ztna("restart", "--socket", str(deployment.daemons["connector-1"].control_socket))

        def has_found_again(found: dict[str, Any]) -> bool:
            return bool(
                found["direct_path"]["generation"] > agent["direct_path"]["generation"]
                and found["direct_path"]["state"] == "connected"
                and found["path"] == "direct"
            )

        (again,) = wait_until(empty_site, has_found_again, "a newer direct path", "agent-1")
        assert again["session_id"] == agent["session_id"]
        client.sendall(b"still here\n")
        client.settimeout(20)
        assert client.recv(100) == b"still here\n"


@pytest.mark.parametrize(("way", "code"), [("denied", "access_denied"), ("revoked", "peer_closed")])
def test_agent_that_is_allowed_no_more_is_cut_off_also_without_its_intermediate_and_another_is_not(
    empty_site: Site, way: str, code: str
) -> None:
    deployment, other_port = empty_site.deployment, free_port()
    start_without_escape(empty_site, other_port)
    agents = ("agent-1", "agent-2")
    denied, allowed = (wait_for_path(empty_site, "direct", name)[0]["session_id"] for name in agents)
    with connect(empty_site.tcp_port) as cut, connect(other_port) as kept:
        for client in (cut, kept):
            client.sendall(b"ECHO\nbefore")
            assert client.recv(100) == b"before"
        for name in agents:
            process = deployment.daemons[name].process
            assert process is not None
            process.send_signal(deaf.CUT)
        deployment.wait_for(
            "intermediate-1", lambda status: len(status["nodes"]) == 1, "both agents are lost"
        )
        for session_id in (denied, allowed):
            wait_for_line(empty_site, "connector-1", "session_table.peer_asked", session=session_id)
        for client in (cut, kept):
            client.sendall(b"meanwhile")
            assert client.recv(100) == b"meanwhile", "the direct path carries it"
        if way == "denied":
            rule = {"agents": ["agent-2"], "services": ["*"]}
            configure(deployment, "intermediate-1", policy=[rule])
        else:
            # The connector has no such list: it reads the file again only when it is told to.
            pki = PkiDirectory(deployment.directory / "pki")
            pki.revoke(time.time(), role=Role.AGENT, node_id="agent-1")
        reload_now(deployment, "intermediate-1")
        wait_for_line(empty_site, "connector-1", "session_table.session_ended", session=denied, code=code)
        cut.settimeout(LIMIT_S)
        with pytest.raises(ConnectionResetError):
            cut.recv(100)
        deployment.wait_for("agent-1", lambda status: not status["sessions"], "it is over at the agent")
        deployment.wait_for(
            "connector-1",
            lambda status: [each["session_id"] for each in status["sessions"]] == [allowed],
            "it is over at the connector, and the other one is not",
        )
        kept.sendall(b"after")
        assert kept.recv(100) == b"after"
    assert session(deployment.status("agent-2") or {})["session_id"] == allowed


def start_without_escape(site: Site, other_port: int) -> None:
    """A connector and two agents, whose only way to the intermediate is UDP; deaf to it from a signal on."""
    deployment = site.deployment
    deployment.add_intermediate("intermediate-1")
    deployment.add_connector(
        "connector-1", services(site.tcp, site.udp), udp={"bind": [f"{CONNECTOR}:0"]}, ice=ICE
    )
    for name, host, port in (("agent-1", AGENT, site.tcp_port), ("agent-2", OTHER_AGENT, other_port)):
        deployment.add_agent(
            name,
            listeners(port, free_port())[:1],
            udp={"bind": [f"{host}:0"]},
            ice=ICE,
            connect="eager",
            relay={"carrier": "quic"},
            signaling={"transport": "quic"},
        )
        deployment.daemons[name].program = ("-P", deaf.__file__, "127.0.0.1")
    deployment.start("intermediate-1")
    deployment.wait_ready("intermediate-1")  # nobody dials in vain, and waits for that
    deployment.start()
    deployment.wait_ready()


def wait_for_line(site: Site, name: str, event: str, **facts: str) -> None:
    """Wait until a daemon has logged an event with these facts."""

    def is_there(_status: dict[str, Any]) -> bool:
        lines = site.deployment.daemons[name].log_path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if event in line]
        return any(facts.items() <= each.items() for each in entries)

    site.deployment.wait_for(name, is_there, f"{event} {facts}")
