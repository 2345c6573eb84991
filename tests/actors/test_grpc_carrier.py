"""The gRPC carrier against a real server on loopback, over mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio

from actors import grpc_carrier
from actors.credentials import Credentials, parse_credentials
from actors.grpc_carrier import GrpcCarrier
from actors.grpc_stream import CLOSE_GRACE_S, in_words
from tests.pki_fixtures import NOW, authority, issue, pem
from ztna.access.identity import Role
from ztna.pki.authority import Issued
from ztna.v1 import signaling_pb2, signaling_pb2_grpc

Frame = signaling_pb2.SignalingFrame
LIMIT_S = 10.0


def ping(number: int) -> Frame:
    return Frame(seq=number, ping=signaling_pb2.SignalingPing(id=number))


def agent() -> Credentials:
    own = issue(Role.AGENT, "a1")
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, None, Role.AGENT, NOW)


class Owner:
    """Notes what the carrier tells; one can wait for it."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.closed: list[tuple[str, str, bool]] = []
        self._changed = asyncio.Event()

    def carrier_frame(self, carrier: object, frame: Frame) -> None:
        self.frames.append(frame)
        self._changed.set()

    def carrier_closed(self, carrier: object, reason: str, detail: str, is_authentication: bool) -> None:
        self.closed.append((reason, detail, is_authentication))
        self._changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@dataclass
class Intermediate(signaling_pb2_grpc.SignalingServiceServicer):
    """Echoes every frame until told otherwise."""

    frames: list[Frame] = field(default_factory=list)
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: grpc.StatusCode | None = None
    reads: bool = True

    async def Attach(  # noqa: N802 - the name in the schema
        self, requests: AsyncIterator[Frame], context: aio.ServicerContext[Frame, Frame]
    ) -> AsyncIterator[Frame]:
        try:
            if self.status is not None:
                await context.abort(self.status, "by order")
            if not self.reads:
                await asyncio.Event().wait()
            async for frame in requests:
                self.frames.append(frame)
                yield frame
        finally:
            self.has_ended.set()


@asynccontextmanager
async def serving(
    service: Intermediate, issued: Issued | None = None
) -> AsyncIterator[tuple[str, aio.Server]]:
    issued = issued or issue(Role.INTERMEDIATE, "i1")
    files = pem(issued)
    server = aio.server()
    signaling_pb2_grpc.add_SignalingServiceServicer_to_server(service, server)
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials([(files.key, files.certificate)], files.ca, require_client_auth=True),
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test()
        # Nothing of a carrier may be left.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        rest = {task for task in rest if "GrpcStream." in str(task.get_coro())}
        if rest:
            _, pending = await asyncio.wait(rest, timeout=10 * CLOSE_GRACE_S)
            assert not pending

    asyncio.run(whole())


def test_frames_go_both_ways_in_order() -> None:
    async def test() -> None:
        service, owner = Intermediate(), Owner()
        async with serving(service) as (target, _):
            carrier = GrpcCarrier(target, "i1", agent(), owner)
            for number in range(100):
                carrier.send(ping(number))
            await owner.wait_for(lambda: len(owner.frames) == 100)
            assert owner.frames == service.frames == [ping(number) for number in range(100)]
            carrier.close()

    run(test)


def test_what_is_queued_is_sent_before_the_stream_is_closed() -> None:
    async def test() -> None:
        service, owner = Intermediate(), Owner()
        async with serving(service) as (target, _):
            carrier = GrpcCarrier(target, "i1", agent(), owner)
            carrier.send(ping(1))
            await owner.wait_for(lambda: len(owner.frames) == 1)
            for number in range(2, 50):
                carrier.send(ping(number))
            carrier.close()
            carrier.close()
            carrier.send(ping(99))
            async with asyncio.timeout(LIMIT_S):
                await service.has_ended.wait()
            assert service.frames == [ping(number) for number in range(1, 50)]
        assert owner.closed == []

    run(test)


@pytest.mark.parametrize(
    ("status", "reason", "is_authentication"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", True),
        (grpc.StatusCode.PERMISSION_DENIED, "permission_denied", True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted", False),
        (grpc.StatusCode.CANCELLED, "cancelled", False),
        (grpc.StatusCode.OK, "stream_ended", False),
    ],
)
def test_status_of_the_stream_is_told_once(
    status: grpc.StatusCode, reason: str, is_authentication: bool
) -> None:
    async def test() -> None:
        owner = Owner()
        service = Intermediate(status=None if status is grpc.StatusCode.OK else status)
        if status is grpc.StatusCode.OK:
            service.Attach = _ends_at_once  # type: ignore[method-assign]
        async with serving(service) as (target, _):
            # Nothing is sent: of a write that crosses the end gRPC makes a status of its own.
            _carrier = GrpcCarrier(target, "i1", agent(), owner)
            await owner.wait_for(lambda: bool(owner.closed))
        assert [(each[0], each[2]) for each in owner.closed] == [(reason, is_authentication)]

    run(test)


async def _ends_at_once(requests: AsyncIterator[Frame], context: object) -> AsyncIterator[Frame]:
    del requests, context
    none: list[Frame] = []
    for frame in none:
        yield frame


@pytest.mark.parametrize(
    ("issued", "words"),
    [
        pytest.param(
            lambda: issue(Role.INTERMEDIATE, "i1", foreign=True),
            "was not issued by this deployment's CA",
            id="foreign-ca",
        ),
        pytest.param(
            lambda: issue(Role.INTERMEDIATE, "i1", expired=True),
            "has expired, or the clock here is wrong",
            id="expired",
        ),
        pytest.param(
            lambda: issue(Role.INTERMEDIATE, "i1", not_yet_valid=True), "is not valid yet", id="not-yet-valid"
        ),
        pytest.param(lambda: issue(Role.INTERMEDIATE, "i2"), "names somebody else", id="another-name"),
        pytest.param(lambda: issue(Role.CONNECTOR, "i1"), "names somebody else", id="another-role"),
    ],
)
def test_certificate_of_the_intermediate_that_is_not_acceptable_is_told_in_words(
    issued: Callable[[], Issued], words: str
) -> None:
    async def test() -> None:
        owner = Owner()
        async with serving(Intermediate(), issued()) as (target, _):
            GrpcCarrier(target, "i1", agent(), owner)
            await owner.wait_for(lambda: bool(owner.closed))
        ((reason, detail, is_authentication),) = owner.closed
        assert (reason, is_authentication) == ("untrusted_intermediate", True)
        assert detail.startswith(f"intermediate 'i1': its certificate {words}")

    run(test)


def test_refusal_that_tls_hides_points_at_the_other_log() -> None:
    async def test() -> None:
        owner = Owner()
        refused = issue(Role.AGENT, "a1", foreign=True)
        own = parse_credentials(
            refused.certificate_pem,
            refused.key_pem,
            pem(refused).ca + authority(foreign=True).certificate.public_bytes(Encoding.PEM),
            None,
            Role.AGENT,
            NOW,
        )
        async with serving(Intermediate()) as (target, _):
            GrpcCarrier(target, "i1", own, owner)
            await owner.wait_for(lambda: bool(owner.closed))
        ((reason, detail, _),) = owner.closed
        assert reason == "unavailable"
        assert "refuses this node's certificate, its log says why" in detail

    run(test)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param(
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:4434: Failed to connect "
            "to remote host: Connection refused",
            "127.0.0.1:4434: Connection refused",
            id="refused",
        ),
        pytest.param(
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv6:%5B::1%5D:4434: Failed to "
            "connect to remote host: Connection refused",
            "[::1]:4434: Connection refused",
            id="ipv6",
        ),
        pytest.param(
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9090: Tls handshake "
            "failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000f7:SSL routines:OPENSSL_internal:"
            "WRONG_VERSION_NUMBER: Invalid certificate verification context: OK",
            "127.0.0.1:9090: does not speak TLS, so this is not `grpc.listen` of an intermediate",
            id="another-protocol",
        ),
        pytest.param(
            "errors resolving relay.invalid:4434: [field:hostname lookup error:address lookup failed for "
            "relay.invalid:4434: Domain name not found]",
            "relay.invalid:4434: Domain name not found",
            id="unresolvable",
        ),
        pytest.param("Stream removed (Socket closed)", "the connection was closed", id="closed"),
        pytest.param("recvmsg:Connection reset by peer", "the connection was reset", id="reset"),
        pytest.param("keepalive watchdog timeout", "nothing was heard for too long", id="silent"),
        pytest.param("revoked: the certificate", "revoked: the certificate", id="words-of-the-other-end"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_failed_call_is_told_without_the_inner_names_of_grpc(said: str, words: str) -> None:
    assert in_words(said) == words


def test_nobody_there_is_told_as_unavailable() -> None:
    async def test() -> None:
        owner = Owner()
        async with serving(Intermediate()) as (target, server):
            await server.stop(0)
            GrpcCarrier(target, "i1", agent(), owner)
            await owner.wait_for(lambda: bool(owner.closed))
        assert owner.closed == [("unavailable", f"{target}: Connection refused", False)]

    run(test)


def test_server_that_goes_away_is_told() -> None:
    async def test() -> None:
        owner = Owner()
        async with serving(Intermediate()) as (target, server):
            carrier = GrpcCarrier(target, "i1", agent(), owner)
            carrier.send(ping(1))
            await owner.wait_for(lambda: len(owner.frames) == 1)
            await server.stop(0)
            await owner.wait_for(lambda: bool(owner.closed))
        ((reason, _, is_authentication),) = owner.closed
        assert reason in {"unavailable", "cancelled"}
        assert not is_authentication

    run(test)


def test_as_many_frames_as_the_queue_holds_are_sent() -> None:
    async def test() -> None:
        owner = Owner()
        async with serving(Intermediate()) as (target, _):
            carrier = GrpcCarrier(target, "i1", agent(), owner)
            for number in range(grpc_carrier.MAX_QUEUED_FRAMES):
                carrier.send(ping(number))
            await owner.wait_for(
                lambda: bool(owner.closed) or len(owner.frames) == grpc_carrier.MAX_QUEUED_FRAMES
            )
            carrier.close()
        assert owner.closed == []

    run(test)


def test_queue_that_overflows_ends_the_carrier_later_than_the_send() -> None:
    async def test() -> None:
        owner = Owner()
        async with serving(Intermediate(reads=False)) as (target, _):
            carrier = GrpcCarrier(target, "i1", agent(), owner)
            for number in range(grpc_carrier.MAX_QUEUED_FRAMES + 1):
                carrier.send(ping(number))
            assert owner.closed == []
            await owner.wait_for(lambda: bool(owner.closed))
        assert [each[0] for each in owner.closed] == ["overflow"]

    run(test)


def test_stream_that_takes_nothing_is_let_go_after_a_close() -> None:
    async def test() -> None:
        owner = Owner()
        async with serving(Intermediate(reads=False)) as (target, _):
            carrier = GrpcCarrier(target, "i1", agent(), owner)
            big = Frame(goodbye=signaling_pb2.Goodbye(reason="x" * 60_000))
            for _ in range(50):
                carrier.send(big)
            carrier.close()  # `run` waits until its tasks are gone
        assert owner.closed == []

    run(test)
