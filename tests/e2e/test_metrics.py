"""What the daemons really expose, held against docs/metrics.md, in both directions."""

from __future__ import annotations

import http.client
import re
import time
from contextlib import closing
from pathlib import Path

from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics import COUNTER
from tests.e2e.backends import content_digest, download
from tests.e2e.conftest import Site

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(ztna_\w+)` \| (\w+) \| ([^|]*) \| (\w+) \|", re.MULTILINE)
# Have a series only once something was dropped, refused or measured, or where a service has a health check.
MAY_BE_ABSENT = {
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


def test_expiry_that_is_shown_is_that_of_the_certificate(site: Site) -> None:
    deployment = site.deployment
    path = Path(deployment.daemons["agent-1"].settings["node"]["cert"])
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    status = deployment.status("agent-1")
    assert status is not None
    assert status["certificate_expires_at_s"] == certificate.not_valid_after_utc.timestamp()
    assert status["certificate_expires_at_s"] <= status["ca_expires_at_s"]
    assert time.time() < status["crl_next_update_at_s"]
