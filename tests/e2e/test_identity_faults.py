"""Certificates with faults on each of the three links: who refuses says why, and so does who is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.e2e.backends import TcpBackend, connect, content_digest, download
from tests.e2e.identities import Identities, wait_until_expired
from tests.e2e.peers import attach_over_grpc, dial_leg, posing_as_intermediate
from tools.deployment import Daemon, Deployment, free_port
from ztna.access.identity import Role
from ztna.quic.events import CloseReason, ConnectionClosed

# Of a certificate that has to outlive the start of its daemon and no more; a slow machine gets longer ones.
SHORT_LIFE_S = 3.0
MAX_SHORT_LIFE_S = 50.0

REFUSED = "the peer refused our certificate ("
SERVICE = [{"id": "files", "protocol": "tcp", "backend": "127.0.0.1:9"}]


@pytest.fixture
def identities() -> Identities:
    return Identities()


def events(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    """Log lines with this event, oldest first."""
    lines = daemon.log_path.read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in parsed if line["event"] == event]


def wait_for_event(daemon: Daemon, event: str, timeout_s: float = 15.0, **fields: str) -> dict[str, Any]:
    """The first log line with this event whose fields contain these texts."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = events(daemon, event)
        for line in found:
            if all(text in str(line.get(key, "")) for key, text in fields.items()):
                return line
        assert time.monotonic() < deadline, (event, fields, found)
        time.sleep(0.05)


def start_and_expire(
    deployment: Deployment,
    identities: Identities,
    daemons: Sequence[Daemon],
    event: str,
) -> None:
    """Start daemons with certificates that end soon after all have logged `event`; return when they have."""
    lifetime_s = SHORT_LIFE_S
    while lifetime_s < MAX_SHORT_LIFE_S:
        issued = [identities.issue(Role(daemon.kind), daemon.id, lifetime_s=lifetime_s) for daemon in daemons]
        for daemon, each in zip(daemons, issued, strict=True):
            identities.equip(daemon, each)
            daemon.log_path.unlink(missing_ok=True)
        deployment.start(*(daemon.id for daemon in daemons))
        ends = time.time() + lifetime_s
        while time.time() < ends and not all(events(daemon, event) for daemon in daemons):
            time.sleep(0.05)
        if all(events(daemon, event) for daemon in daemons):
            wait_until_expired(*issued)
            return
        for daemon in daemons:
            if daemon.is_running:
                deployment.kill(daemon.id)
        lifetime_s *= 2
    raise AssertionError(f"no {event} within {lifetime_s} s")


def relay_leg_of(status: dict[str, Any], name: str) -> dict[str, Any]:
    """What a node says of one intermediate."""
    (found,) = [each for each in status["intermediates"] if each["id"] == name]
    return dict(found)


def test_intermediate_refuses_faulty_nodes_on_both_links_and_both_ends_hear_why(
    deployment: Deployment, identities: Identities
) -> None:
    faulty = {
        CloseReason.CERTIFICATE_REVOKED: identities.issue(Role.AGENT, "revoked-1"),
        CloseReason.CERTIFICATE_EXPIRED: identities.issue(Role.AGENT, "expired-1", age_s=60, lifetime_s=30),
        CloseReason.UNKNOWN_CA: identities.issue(Role.CONNECTOR, "foreign-1", is_alien=True),
        CloseReason.ACCESS_DENIED: identities.issue(Role.OPERATOR, "operator-1"),
    }
    words = {
        CloseReason.CERTIFICATE_REVOKED: "revoked: the certificate of agent 'revoked-1'",
        CloseReason.CERTIFICATE_EXPIRED: "expired: the certificate of agent 'expired-1' expired on",
        CloseReason.UNKNOWN_CA: "foreign_ca: a certificate that claims to be connector 'foreign-1'",
        CloseReason.ACCESS_DENIED: "wrong_role: operator 'operator-1' came where only agent or connector",
    }
    intermediate = deployment.add_intermediate("intermediate-1")
    identities.equip(intermediate, revoked=[faulty[CloseReason.CERTIFICATE_REVOKED]])
    deployment.start()
    deployment.wait_ready()
    quic, grpc_address = intermediate.settings["quic"]["listen"][0], intermediate.settings["grpc"]["listen"]
    ca_pem = identities.ca_pem(trusts_alien=False)
    for reason, own in faulty.items():
        word = words[reason].partition(":")[0]

        closed = dial_leg(quic, own)
        assert isinstance(closed, ConnectionClosed)
        assert (closed.reason, closed.is_remote) == (reason, True)
        assert closed.message == f"the peer refused our certificate ({word})"
        wait_for_event(intermediate, "quic_relay.leg_refused", reason=reason, detail=words[reason])

        error = attach_over_grpc(grpc_address, intermediate.id, own, ca_pem)
        if reason in {CloseReason.CERTIFICATE_REVOKED, CloseReason.ACCESS_DENIED}:
            assert words[reason] in str(error.details())
            assert error.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
            wait_for_event(intermediate, "signaling_service.node_refused", reason=word, detail=words[reason])
        else:
            # gRPC's own TLS refuses these, and tells nobody why.
            assert error.code() is grpc.StatusCode.UNAVAILABLE
    status = deployment.wait_for(
        intermediate.id,
        lambda status: len(status["problems"]) >= len(faulty),
        "every refusal among the problems",
    )
    assert not status["nodes"]
    problems = " ".join(problem["message"] for problem in status["problems"])
    for reason in faulty:
        assert str(reason).replace("_", " ") in problems


def test_refused_node_says_in_its_status_why(deployment: Deployment, identities: Identities) -> None:
    faulty = {
        "revoked-1": identities.issue(Role.CONNECTOR, "revoked-1"),
        "foreign-1": identities.issue(Role.CONNECTOR, "foreign-1", is_alien=True),
    }
    reasons = {
        "revoked-1": CloseReason.CERTIFICATE_REVOKED,
        "expired-1": CloseReason.CERTIFICATE_EXPIRED,
        "foreign-1": CloseReason.UNKNOWN_CA,
    }
    intermediate = deployment.add_intermediate("intermediate-1")
    identities.equip(intermediate, revoked=[faulty["revoked-1"]])
    for name in reasons:
        daemon = deployment.add_connector(name, SERVICE)
        if name in faulty:
            identities.equip(daemon, faulty[name], trusts_alien=True)
    start_and_expire(deployment, identities, [deployment.daemons["expired-1"]], "daemon.starting")
    deployment.start()
    deployment.wait_ready(intermediate.id)
    for name, reason in reasons.items():
        daemon = deployment.daemons[name]
        wait_for_event(daemon, "relay_leg.lost", reason=reason, detail=REFUSED)
        wait_for_event(intermediate, "quic_relay.leg_refused", reason=reason, detail=name)
        status = deployment.wait_for(
            name,
            lambda status: (
                REFUSED in json.dumps(status["intermediates"]) and REFUSED in json.dumps(status["problems"])
            ),
            "the reason under the intermediate and among the problems",
        )
        (seen,) = status["intermediates"]
        assert seen["state"] != "attached"
        assert not status["is_ready"]
    revoked = deployment.wait_for(
        "revoked-1", lambda status: "revoked" in json.dumps(status["intermediates"]), "the reason"
    )
    expected = "revoked: the certificate of connector 'revoked-1'"
    assert expected in relay_leg_of(revoked, intermediate.id)["reason"]
    wait_for_event(deployment.daemons["revoked-1"], "signaling_client.detached", detail=expected)
    served = deployment.status(intermediate.id)
    assert served is not None
    assert not served["nodes"]
    assert not served["registered_services"]


def test_node_refuses_faulty_intermediates_and_says_why_of_each(
    deployment: Deployment, identities: Identities
) -> None:
    faulty = {
        "revoked-1": identities.issue(Role.INTERMEDIATE, "revoked-1"),
        "foreign-1": identities.issue(Role.INTERMEDIATE, "foreign-1", is_alien=True),
    }
    expected = {
        "revoked-1": (CloseReason.CERTIFICATE_REVOKED, "the certificate of intermediate 'revoked-1'"),
        "expired-1": (CloseReason.CERTIFICATE_EXPIRED, "the certificate of intermediate 'expired-1' expired"),
        "foreign-1": (CloseReason.UNKNOWN_CA, "a certificate that claims to be intermediate 'foreign-1'"),
        "posing-1": (CloseReason.ACCESS_DENIED, "came where only intermediate is served"),
    }
    over_grpc = {
        "revoked-1": "the certificate of intermediate 'revoked-1'",
        "expired-1": ("intermediate 'expired-1': its certificate has expired, or the clock here is wrong"),
        "foreign-1": "intermediate 'foreign-1': its certificate was not issued by this deployment's CA",
        "posing-1": "intermediate 'posing-1': its certificate names somebody else",
    }
    for name in expected:
        deployment.add_intermediate(name)
    for name, issued in faulty.items():
        identities.equip(deployment.daemons[name], issued, trusts_alien=True)
    connector = deployment.add_connector("connector-1", SERVICE)
    identities.equip(connector, revoked=[faulty["revoked-1"]])
    posing = deployment.daemons["posing-1"].settings
    impostor = identities.issue(Role.CONNECTOR, "posing-1")
    start_and_expire(deployment, identities, [deployment.daemons["expired-1"]], "signaling_service.listening")
    deployment.start(*faulty)
    deployment.wait_ready(*faulty, "expired-1")
    with posing_as_intermediate(posing["quic"]["listen"][0], posing["grpc"]["listen"], impostor):
        deployment.start(connector.id)
        for name, (reason, words) in expected.items():
            wait_for_event(connector, "relay_leg.lost", intermediate=name, reason=reason, detail=words)
            wait_for_event(connector, "signaling_client.detached", intermediate=name, detail=over_grpc[name])
            if name != "posing-1":
                wait_for_event(
                    deployment.daemons[name], "quic_relay.leg_refused", reason=reason, detail=REFUSED
                )
    status = deployment.status(connector.id)
    assert status is not None
    assert not status["is_ready"]
    problems = json.dumps(status["problems"])
    for name, (_, words) in expected.items():
        assert words in problems
        assert relay_leg_of(status, name)["state"] != "attached"
    for name in (*faulty, "expired-1"):
        served = deployment.status(name)
        assert served is not None
        assert not served["registered_services"]
    assert all(line.startswith("{") for line in connector.log_path.read_text(encoding="utf-8").splitlines())


def test_ends_of_a_session_refuse_each_other_whatever_the_intermediate_says(
    deployment: Deployment, identities: Identities
) -> None:
    """The intermediate knows of no revocation and trusts both CAs; agent and connector know better.

    Of a certificate that has expired everybody knows, and the intermediate sends its node away before a
    session could: `tests/unit/quic/test_handshake.py` has that case.
    """
    reasons = {
        "revoked": CloseReason.CERTIFICATE_REVOKED,
        "foreign": CloseReason.UNKNOWN_CA,
    }
    identity = {
        f"{role.value}-{fault}": identities.issue(role, f"{role.value}-{fault}", is_alien=fault == "foreign")
        for role in (Role.CONNECTOR, Role.AGENT)
        for fault in ("good", *reasons)
    }
    knows_better = {
        "connector-good": [identity["agent-revoked"]],
        "agent-good": [identity["connector-revoked"]],
    }
    ports: dict[str, int] = {}
    with TcpBackend() as backend:
        identities.equip(deployment.add_intermediate("intermediate-1"), trusts_alien=True)
        for name in identity:
            role, _, fault = name.partition("-")
            if role == "connector":
                service = {"id": f"on-{fault}", "protocol": "tcp", "backend": backend.address}
                deployment.add_connector(name, [service])
                continue
            wanted = ["good", *reasons] if fault == "good" else ["good"]
            listen = {each: free_port() for each in wanted}
            ports |= {f"{name} on-{each}": port for each, port in listen.items()}
            deployment.add_agent(
                name,
                [
                    {"id": f"on-{each}", "protocol": "tcp", "listen": f"127.0.0.1:{port}"}
                    for each, port in listen.items()
                ],
            )
        for name, issued in identity.items():
            identities.equip(
                deployment.daemons[name],
                issued,
                trusts_alien=name not in knows_better,
                revoked=knows_better.get(name, ()),
            )
        deployment.start("intermediate-1")
        deployment.wait_ready("intermediate-1")
        deployment.start()
        deployment.wait_ready()
        assert download(ports["agent-good on-good"], 1000) == content_digest(1000)
        seen = list(backend.seen)

        refused = [port for pair, port in ports.items() if pair != "agent-good on-good"]
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(port)) for port in refused]
            for client in clients:
                client.sendall(b"DOWN 10\n")
            for fault, reason in reasons.items():
                refuses(deployment, "agent-good", f"connector-{fault}", reason)
                refuses(deployment, "connector-good", f"agent-{fault}", reason)
            for client in clients:
                client.setblocking(False)
                with pytest.raises((BlockingIOError, ConnectionResetError)):
                    client.recv(10)
        assert backend.seen == seen


def refuses(deployment: Deployment, judge: str, judged: str, reason: CloseReason) -> None:
    """Wait until both ends of a session say in log and status that `judge` refused `judged`, and why."""
    for name, words in ((judge, f"'{judged}'"), (judged, REFUSED)):
        daemon = deployment.daemons[name]
        wait_for_event(daemon, "quic_session.session_closed", reason=reason, detail=words)
        problem_of(deployment, name, words)


def problem_of(deployment: Deployment, name: str, words: str) -> None:
    """Wait until a daemon's status shows a problem in these words."""
    deployment.wait_for(
        name,
        lambda status: any(words in problem["message"] for problem in status["problems"]),
        f"a problem: {words}",
    )
