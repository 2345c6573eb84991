"""What a daemon writes to its log."""

from __future__ import annotations

import json
import socket

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
