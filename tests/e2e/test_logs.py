"""What a daemon writes to its log."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

from actors.outage_log import MAX_REASONS
from tests.e2e.conftest import Site
from tools.deployment import Deployment


def test_strangers_at_the_signaling_port_put_nothing_but_json_into_the_log(deployment: Deployment) -> None:
    daemon = deployment.add_intermediate()
    deployment.start()
    deployment.wait_ready()
    host, port = daemon.settings["grpc"]["listen"].split(":")
    with socket.create_connection((host, int(port)), timeout=5) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while stranger.recv(4096):
            pass
    assert deployment.kill(daemon.id, 15) == 0
    for line in daemon.log_path.read_text(encoding="utf-8").splitlines():
        assert isinstance(json.loads(line), dict)


LINKS = (("signaling_client.detached", "signaling_client.attached"), ("relay_leg.lost", "relay_leg.up"))


def lines(site: Site, name: str) -> list[dict[str, Any]]:
    text = site.deployment.daemons[name].log_path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_outage_is_told_when_it_begins_and_when_it_ends_with_its_duration(site: Site) -> None:
    deployment = site.deployment
    before = {name: len(lines(site, name)) for name in ("agent-1", "connector-1")}
    deployment.kill("intermediate-1", signal.SIGKILL)
    for name in before:
        deployment.wait_for(
            name,
            lambda status: (
                status["intermediates"][0]["state"] == "detached"
                and not status["intermediates"][0]["is_leg_up"]
            ),
            "both links are noticed to be down",
        )
    deployment.start("intermediate-1")
    deployment.wait_ready()
    for name, count in before.items():
        told = lines(site, name)[count:]
        for lost, found in (
            ("signaling_client.detached", "signaling_client.attached"),
            ("relay_leg.lost", "relay_leg.up"),
        ):
            events = [entry["event"] for entry in told if entry["event"] in {lost, f"{lost}_repeated", found}]
            assert events[0] == lost
            assert events[-1] == found
            assert events.count(lost) <= MAX_REASONS
            (end,) = [entry for entry in told if entry["event"] == found]
            assert 0 < end["outage_s"] < 60
            assert end["failures"] >= 1
