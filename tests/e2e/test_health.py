"""Backends that fall ill: their service is withdrawn, others take over, and it comes back by itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.backends import TcpBackend, UdpEcho, connect, content_digest, download
from tools.deployment import Deployment, free_port

MIB = 1 << 20
QUICK = {"interval_s": 0.1, "timeout_s": 0.5, "unhealthy_after": 2, "healthy_after": 2}


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 500)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the library
        """Not into the output of the tests."""


@contextmanager
def http_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_service_of_a_dead_backend_is_led_elsewhere_and_comes_back(deployment: Deployment) -> None:
    port, dying = free_port(), socket.create_server(("127.0.0.1", 0))
    address = dying.getsockname()
    with TcpBackend() as living:
        deployment.add_intermediate()
        deployment.add_connector(
            "connector-1",
            [
                {
                    "id": "files",
                    "protocol": "tcp",
                    "backend": f"127.0.0.1:{address[1]}",
                    "health": {"kind": "tcp", **QUICK},
                }
            ],
        )
        deployment.add_connector(
            "connector-2", [{"id": "files", "protocol": "tcp", "backend": living.address}]
        )
        deployment.add_agent("agent-1", [{"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{port}"}])
        deployment.start()
        deployment.wait_ready()

        def offered_by(*names: str) -> None:
            deployment.wait_for(
                "intermediate-1",
                lambda status: (
                    [each["connectors"] for each in status["registered_services"]] == [list(names)]
                ),
                f"files at {names}",
            )

        offered_by("connector-1", "connector-2")
        dying.close()
        offered_by("connector-2")
        ill = deployment.wait_for(
            "connector-1", lambda status: status["services"][0]["state"] == "unhealthy", "the illness"
        )
        assert ill["services"][0]["reason"].startswith("Connection refused")
        assert "no service is healthy" in ill["not_ready_reason"]
        assert download(port, MIB) == content_digest(MIB)
        with socket.create_server(address):
            offered_by("connector-1", "connector-2")
            deployment.wait_ready()


def test_backend_without_any_other_is_refused_at_once_while_it_is_ill(deployment: Deployment) -> None:
    port = free_port()
    deployment.add_intermediate()
    deployment.add_connector(
        "connector-1",
        [
            {
                "id": "files",
                "protocol": "tcp",
                "backend": f"127.0.0.1:{free_port()}",
                "health": {"kind": "tcp", **QUICK},
            }
        ],
    )
    deployment.add_agent("agent-1", [{"id": "files", "protocol": "tcp", "listen": f"127.0.0.1:{port}"}])
    deployment.start()
    deployment.wait_for(
        "connector-1", lambda status: status["services"][0]["state"] == "unhealthy", "the illness"
    )
    deployment.wait_for("intermediate-1", lambda status: not status["registered_services"], "no service")
    deployment.wait_for("agent-1", lambda status: status["is_ready"], "the agent")
    with connect(port) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    deployment.wait_for(
        "agent-1",
        lambda status: any("no attached connector" in each["message"] for each in status["problems"]),
        "the reason",
    )


def test_each_kind_of_probe_tells_the_well_from_the_ill(deployment: Deployment) -> None:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    with silent, http_server() as web, UdpEcho() as echo:
        deployment.add_intermediate()
        deployment.add_connector(
            "connector-1",
            [
                {
                    "id": "well",
                    "protocol": "tcp",
                    "backend": web,
                    "health": {"kind": "http", "path": "/well", **QUICK},
                },
                {
                    "id": "failing",
                    "protocol": "tcp",
                    "backend": web,
                    "health": {"kind": "http", "path": "/ill", **QUICK},
                },
                {
                    "id": "expected",
                    "protocol": "tcp",
                    "backend": web,
                    "health": {"kind": "http", "path": "/ill", "expect_status": [500], **QUICK},
                },
                {
                    "id": "echo",
                    "protocol": "udp",
                    "backend": echo.address,
                    "health": {"kind": "udp", **QUICK},
                },
                {
                    "id": "silent",
                    "protocol": "udp",
                    "backend": f"127.0.0.1:{silent.getsockname()[1]}",
                    "health": {"kind": "udp", **QUICK},
                },
            ],
        )
        deployment.start()
        status = deployment.wait_for(
            "connector-1",
            lambda status: (
                [each["state"] for each in status["services"]]
                == ["registered", "unhealthy", "registered", "registered", "unhealthy"]
            ),
            "a verdict on each",
        )
        assert [each["reason"] for each in status["services"] if each["state"] == "unhealthy"] == [
            "HTTP status 500",
            "no answer within 0.5 s",
        ]
        deployment.wait_ready()
