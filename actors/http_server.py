"""The HTTP listener for machines: `/metrics` for Prometheus, `/healthz` and `/readyz` for supervisors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from actors.metrics import Sample, exposition
from actors.sockaddr import SOCKET_FAMILY, from_sockaddr, to_sockaddr
from ztna.address import TransportAddress

BACKLOG: Final = 64
SHUTDOWN_LIMIT_S: Final = 0.2
"""Seconds for responses under way; each takes a few milliseconds."""


class HttpOwner(Protocol):
    """Whoever is asked for the values; called on the loop's thread."""

    def samples(self) -> Iterable[Sample]:
        """Every metric, as of now."""

    def not_ready_reason(self) -> str:
        """Why the daemon is not ready, in words; empty when it is."""


class HttpServer:
    """Listens from its construction until `close`; both must happen on the loop's thread."""

    def __init__(self, listen: TransportAddress, owner: HttpOwner) -> None:
        """Listen. Raises `OSError` with a readable message when the address cannot be had."""
        self._owner = owner
        self._render = exposition(owner.samples)
        self._socket = _bind(listen)
        self.local_address = from_sockaddr(self._socket.getsockname())
        """The bound address, with the real port."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_LIMIT_S)
        self._server: asyncio.Server | None = None
        # asyncio keeps only weak references to tasks.
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def close(self) -> None:
        """Free the port at once, so that a successor can have it, and end every connection soon after."""
        if self._server is not None:
            self._server.close()
        else:
            self._task.cancel()
            self._socket.close()
        starting = self._task
        self._task = asyncio.get_running_loop().create_task(self._finish(starting))
        _closing.add(self._task)
        self._task.add_done_callback(_closing.discard)

    async def _serve(self) -> None:
        await self._runner.setup()
        protocols = self._runner.server
        assert protocols is not None  # noqa: S101 - `setup` made it
        self._server = await asyncio.get_running_loop().create_server(
            protocols, sock=self._socket, backlog=BACKLOG
        )

    async def _finish(self, starting: asyncio.Task[None]) -> None:
        await asyncio.wait([starting])
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._owner.not_ready_reason()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)


_closing: Final[set[asyncio.Task[None]]] = set()


def _bind(listen: TransportAddress) -> socket.socket:
    listener = socket.socket(SOCKET_FAMILY[listen.family], socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(to_sockaddr(listen))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"metrics.listen: cannot listen on {listen}: {error.strerror}") from error
    return listener
