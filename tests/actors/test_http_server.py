from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import pytest

from actors import http_server
from actors.daemon_hooks import DaemonHooks
from actors.http_server import MAX_CONNECTIONS, HttpServer
from actors.metrics import Sample
from actors.status_board import BoardSettings, IntermediateStatusBoard
from actors.status_book import BookSettings
from tests.manual_io import actor_harness
from ztna.address import TransportAddress
from ztna.v1 import types_pb2, udp_socket_pb2

LOOPBACK = TransportAddress("127.0.0.1", 0)


class Owner:
    def __init__(self) -> None:
        self.reason = ""
        self.refused: list[str] = []

    def request_refused(self, reason: str) -> None:
        self.refused.append(reason)

    def samples(self) -> list[Sample]:
        return [Sample("dropped_total", 3, ("queue_full", "relay")), Sample("uptime_seconds", 1.5)]

    def not_ready_reason(self) -> str:
        return self.reason


def run(main: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10), aiohttp.ClientSession() as session:
            await main(session)
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if rest:
            await asyncio.wait(rest, timeout=1)

    asyncio.run(limited())


async def fetch(session: aiohttp.ClientSession, server: TransportAddress, path: str) -> tuple[int, str, str]:
    async with session.get(f"http://{server}{path}") as response:
        return response.status, response.headers["Content-Type"], await response.text()


def test_metrics_are_in_the_text_format() -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        server = HttpServer(LOOPBACK, Owner())
        status, content_type, text = await fetch(session, server.local_address, "/metrics")
        assert status == 200
        assert content_type.startswith("text/plain; version=")
        assert text == (
            "# HELP ztna_uptime_seconds Seconds since the daemon started\n"
            "# TYPE ztna_uptime_seconds gauge\n"
            "ztna_uptime_seconds 1.5\n"
            "# HELP ztna_dropped_total Datagrams dropped or refused\n"
            "# TYPE ztna_dropped_total counter\n"
            'ztna_dropped_total{place="relay",reason="queue_full"} 3.0\n'
        )
        server.close()

    run(main)


def test_health_and_readiness() -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        owner = Owner()
        server = HttpServer(LOOPBACK, owner)
        assert (await fetch(session, server.local_address, "/healthz"))[::2] == (200, "ok\n")
        assert (await fetch(session, server.local_address, "/readyz"))[::2] == (200, "ready\n")
        owner.reason = "not attached to any intermediate"
        assert (await fetch(session, server.local_address, "/readyz"))[::2] == (503, f"{owner.reason}\n")
        assert (await fetch(session, server.local_address, "/other"))[0] == 404
        server.close()

    run(main)


def test_a_port_that_is_taken_is_named() -> None:
    async def main(_session: aiohttp.ClientSession) -> None:
        server = HttpServer(LOOPBACK, Owner())
        with pytest.raises(
            OSError, match=rf"metrics.listen: cannot listen on {server.local_address}: Address already in use"
        ):
            HttpServer(server.local_address, Owner())
        server.close()

    run(main)


@pytest.mark.parametrize("is_serving", [False, True])
def test_a_successor_takes_the_port_at_once(is_serving: bool) -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        former = HttpServer(LOOPBACK, Owner())
        if is_serving:
            await fetch(session, former.local_address, "/healthz")
        former.close()
        successor = HttpServer(former.local_address, Owner())
        assert (await fetch(session, successor.local_address, "/healthz"))[0] == 200
        successor.close()

    run(main)


def test_ipv6_loopback_works_too() -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        server = HttpServer(TransportAddress("::1", 0), Owner())
        assert (await fetch(session, server.local_address, "/healthz"))[0] == 200
        server.close()

    run(main)


async def has_ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server ended the connection, having said nothing."""
    with suppress(ConnectionResetError):
        return await reader.read() == b""
    return True


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00" * 20,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost\r\n\r\n",
        b"\0\r\n\r\n",
    ],
    ids=["tls", "no-host", "half-header", "nul"],
)
def test_malformed_request_is_counted_and_puts_nothing_into_the_log(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        owner = Owner()
        server = HttpServer(LOOPBACK, owner)
        host, port = server.local_address.host, server.local_address.port
        await fetch(session, server.local_address, "/healthz")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request_bytes)
        assert (await reader.read()).startswith(b"HTTP/1.0 400")
        writer.close()
        assert owner.refused == ["malformed"]
        server.close()

    run(main)
    assert not caplog.records


def test_fault_of_ours_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Owner):
        def not_ready_reason(self) -> str:
            raise RuntimeError("the book is gone")

    async def main(session: aiohttp.ClientSession) -> None:
        owner = Broken()
        server = HttpServer(LOOPBACK, owner)
        assert (await fetch(session, server.local_address, "/readyz"))[0] == 500
        assert not owner.refused
        server.close()

    run(main)
    assert "the book is gone" in caplog.text


def test_request_said_a_byte_at_a_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_LIMIT_S", 0.3)

    async def main(session: aiohttp.ClientSession) -> None:
        owner = Owner()
        server = HttpServer(LOOPBACK, owner)
        await fetch(session, server.local_address, "/healthz")
        reader, writer = await asyncio.open_connection(server.local_address.host, server.local_address.port)
        request = iter(b"GET /metrics HTTP/1.1\r\nHost: " + b"x" * 10_000)
        while not owner.refused:
            writer.write(bytes([next(request)]))
            await asyncio.sleep(0.01)
        assert owner.refused == ["too_slow"]
        assert await has_ended(reader)
        writer.close()
        # Those who come in time are served, whoever dribbled before.
        assert (await fetch(session, server.local_address, "/healthz"))[0] == 200
        server.close()

    run(main)


def test_idle_connections_are_bounded_and_the_newest_is_heard() -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        owner = Owner()
        server = HttpServer(LOOPBACK, owner)
        await fetch(session, server.local_address, "/healthz")
        idle = [
            await asyncio.open_connection(server.local_address.host, server.local_address.port)
            for _ in range(MAX_CONNECTIONS + 3)
        ]
        assert (await fetch(session, server.local_address, "/metrics"))[0] == 200
        assert owner.refused == ["too_many_connections"] * 4
        # The oldest made room.
        assert await has_ended(idle[0][0])
        for _, writer in idle:
            writer.close()
        server.close()

    run(main)


def test_a_board_serves_its_own_readiness_and_metrics() -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        settings = BoardSettings(BookSettings("intermediate", "int-1"), None, LOOPBACK)
        harness = actor_harness(IntermediateStatusBoard, lambda: settings, DaemonHooks(list))
        address = harness.concern.http_address
        assert address is not None
        assert (await fetch(session, address, "/readyz"))[::2] == (503, "the UDP sockets are not bound yet\n")
        harness.tell(udp_socket_pb2.SocketsBound(addresses=[types_pb2.TransportAddress(port=1)]))
        assert (await fetch(session, address, "/readyz"))[0] == 200
        assert "ztna_ready 1.0" in (await fetch(session, address, "/metrics"))[2]
        harness.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)

    run(main)


def test_a_board_without_listeners_has_none() -> None:
    harness = actor_harness(
        IntermediateStatusBoard,
        lambda: BoardSettings(BookSettings("intermediate", "int-1")),
        DaemonHooks(list),
    )
    assert harness.concern.http_address is None
    harness.stop()
