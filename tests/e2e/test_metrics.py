"""What the daemons really expose, held against docs/metrics.md, in both directions."""

from __future__ import annotations

import http.client
import re
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics import COUNTER
from tests.e2e.backends import connect, content_digest, download
from tests.e2e.conftest import Site
from tests.e2e.hostile import metrics, wait_for_metric

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(ztna_\w+)` \| (\w+) \| ([^|]*) \| (\w+) \|", re.MULTILINE)
# Have a series only once something was dropped, refused, nearly used up or measured, or where a service has a
# health check.
MAY_BE_ABSENT = {
    "ztna_near_limit_seconds_total",
    "ztna_dropped_total",
    "ztna_refusals_total",
    "ztna_connector_service_healthy",
    "ztna_hole_punch_attempts_total",
    "ztna_path_rtt_seconds",
}
MIB = 1 << 20


def documented(daemon: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Kind and labels of each metric of a daemon, by name."""
    rows = ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    return {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, whose in rows
        if whose in {"all", daemon} or (whose == "nodes" and daemon != "intermediate")
    }


def exposed(address: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Kind and labels of each metric that a daemon serves, by name."""
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            kind = COUNTER if sample.name.endswith("_total") else family.type
            assert kind == family.type
            found[sample.name] = (kind, frozenset(sample.labels))
    return found


def test_each_daemon_exposes_what_the_documents_promise_and_nothing_else(site: Site) -> None:
    assert download(site.tcp_port, MIB) == content_digest(MIB)
    for daemon in site.deployment.daemons.values():
        promised = documented(daemon.kind)
        served = exposed(daemon.settings["metrics"]["listen"])
        assert {name: promised.get(name) for name in served} == served
        assert promised.keys() - served.keys() <= MAY_BE_ABSENT


def test_counters_grow_with_what_a_deployment_does(configured_site: Site) -> None:
    deployment = configured_site.deployment
    intermediate, connector, agent = deployment.daemons.values()
    # The other service of the connector is rejected.
    intermediate.settings["offers"] = [{"connectors": ["*"], "services": ["files"]}]
    intermediate.config_path.write_text(yaml.safe_dump(intermediate.settings), encoding="utf-8")
    deployment.start()
    deployment.wait_ready()
    assert download(configured_site.tcp_port, MIB) == content_digest(MIB)
    with connect(configured_site.tcp_port) as client, pytest.raises(ConnectionResetError):
        client.sendall(b"RESET\n")
        client.recv(1)
    for name, at_least in {
        "active_connections": 2,
        "relay_bytes_total": MIB,
        "datagrams_relayed_total": MIB / 1200,
        "registrations_total": 1,
        "registration_rejections_total": 1,
        "signaling_sessions_total": 1,
        "retry_tokens_validated_total": 2,
    }.items():
        wait_for_metric(intermediate, f"ztna_{name}", at_least)
    for node in (connector, agent):
        for name, at_least in {
            "forwarded_bytes_total": MIB,
            "forwarded_packets_total": MIB / (1 << 18),
            "tcp_sessions_total": 2,
            "tcp_errors_total": 1,
        }.items():
            wait_for_metric(node, f"ztna_{node.kind}_{name}", at_least)
        for name in ("messages_total", "handling_seconds_total"):
            wait_for_metric(node, f'ztna_actor_{name}{{actor="relay_leg"}}', 0.001)
    before = {node.id: metrics(node)[f"ztna_{node.kind}_reconnections_total"] for node in (connector, agent)}
    deployment.kill(intermediate.id)
    deployment.start(intermediate.id)
    for node in (connector, agent):
        wait_for_metric(node, f"ztna_{node.kind}_reconnections_total", before[node.id] + 1)


def test_expiry_that_is_shown_is_that_of_the_certificate(site: Site) -> None:
    deployment = site.deployment
    path = Path(deployment.daemons["agent-1"].settings["node"]["cert"])
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    status = deployment.status("agent-1")
    assert status is not None
    assert status["certificate_expires_at_s"] == certificate.not_valid_after_utc.timestamp()
    assert status["certificate_expires_at_s"] <= status["ca_expires_at_s"]
    assert time.time() < status["crl_next_update_at_s"]
