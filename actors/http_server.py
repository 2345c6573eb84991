"""The HTTP listener for machines: `/metrics` for Prometheus, `/healthz` and `/readyz` for supervisors.

It asks for no certificate, so whoever reaches it may be anybody: a connection serves one request, has a few
seconds for it, and is one of a few. Who holds many, or says its request a byte at a time, is let go first.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CONTENT_TYPE_LATEST

from actors.metrics import Sample, exposition
from actors.sockaddr import SOCKET_FAMILY, from_sockaddr, to_sockaddr
from ztna.address import TransportAddress

BACKLOG: Final = 64
SHUTDOWN_LIMIT_S: Final = 0.2
"""Seconds for responses under way; each takes a few milliseconds."""
MAX_CONNECTIONS: Final = 32
"""At a time. A scraper and a supervisor have one each; the oldest makes room, so the next is always heard."""
REQUEST_LIMIT_S: Final = 10.0
"""From the accepted connection to its end: what Prometheus waits for a scrape by default."""


class HttpOwner(Protocol):
    """Whoever is asked for the values; called on the loop's thread."""

    def samples(self) -> Iterable[Sample]:
        """Every metric, as of now."""

    def not_ready_reason(self) -> str:
        """Why the daemon is not ready, in words; empty when it is."""

    def request_refused(self, reason: str) -> None:
        """A connection ended without a proper request: `malformed`, `too_slow`, `too_many_connections`."""


class _ClientFaults(logging.LoggerAdapter[logging.Logger]):
    """Tells the owner what is a client's fault; anything else is ours and goes to the log."""

    def __init__(self, owner: HttpOwner) -> None:
        super().__init__(logging.getLogger("aiohttp.server"), {})
        self._owner = owner

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Every other method of a logger ends here."""
        if isinstance(kwargs.get("exc_info"), HttpProcessingError):
            self._owner.request_refused("malformed")
        else:
            super().log(level, msg, *args, **kwargs)


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
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=SHUTDOWN_LIMIT_S, logger=_ClientFaults(owner)
        )
        self._accepted_at: dict[web.RequestHandler, float] = {}  # the oldest first
        self._sweep: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        # asyncio keeps only weak references to tasks.
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def close(self) -> None:
        """Free the port at once, so that a successor can have it, and end every connection soon after."""
        if self._sweep is not None:
            self._sweep.cancel()
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
        self._server = await asyncio.get_running_loop().create_server(
            self._accept, sock=self._socket, backlog=BACKLOG
        )

    def _accept(self) -> web.RequestHandler:
        protocols = self._runner.server
        assert protocols is not None  # noqa: S101 - `setup` made it
        loop = asyncio.get_running_loop()
        self._forget_ended()
        if len(self._accepted_at) >= MAX_CONNECTIONS:
            self._let_go(next(iter(self._accepted_at)), "too_many_connections")
        handler = protocols()
        self._accepted_at[handler] = loop.time()
        if self._sweep is None:
            self._sweep = loop.call_later(REQUEST_LIMIT_S, self._let_go_of_the_slow)
        return handler

    def _forget_ended(self) -> None:
        protocols = self._runner.server
        assert protocols is not None  # noqa: S101 - as above
        open_now = set(protocols.connections)
        self._accepted_at = {each: at for each, at in self._accepted_at.items() if each in open_now}

    def _let_go(self, handler: web.RequestHandler, reason: str) -> None:
        del self._accepted_at[handler]
        if handler.transport is not None:
            handler.transport.abort()
        self._owner.request_refused(reason)

    def _let_go_of_the_slow(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        self._forget_ended()
        for handler, accepted_at in list(self._accepted_at.items()):
            expires_at = accepted_at + REQUEST_LIMIT_S
            if expires_at > loop.time():
                self._sweep = loop.call_at(expires_at, self._let_go_of_the_slow)
                return
            self._let_go(handler, "too_slow")

    async def _finish(self, starting: asyncio.Task[None]) -> None:
        await asyncio.wait([starting])
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return _last(web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE_LATEST}))

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _last(web.Response(text="ok\n"))

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._owner.not_ready_reason()
        return _last(web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200))


def _last(response: web.Response) -> web.Response:
    response.force_close()
    return response


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
