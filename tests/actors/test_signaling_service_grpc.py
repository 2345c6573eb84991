"""The real gRPC listener on loopback, spoken to by a real client over mutual TLS."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import pytest
import structlog
from cryptography import x509
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from actors import grpc_signaling
from actors.base import ConcernRef, Context, Unobserved
from actors.credentials import Credentials, parse_credentials
from actors.grpc_signaling import (
    MAX_STREAMS_PER_CONNECTION,
    GrpcSignalingServer,
    remote_network,
    remote_text,
)
from actors.io_asyncio import AsyncioIo
from actors.runtime import LoopRuntime, request_stop
from actors.signaling_service import SignalingService
from tests.pki_fixtures import NOW, crl_pem, issue, pem
from ztna.access.grant import verify_nonce
from ztna.access.identity import Role, fingerprint
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError
from ztna.pki.authority import Issued
from ztna.quic.budget import HandshakeBudget, fixed_cost
from ztna.signaling.stream_admission import MAX_STREAM_BURST
from ztna.v1 import (
    grant_pb2,
    quic_relay_pb2,
    relay_pb2,
    relay_pb2_grpc,
    signaling_pb2,
    signaling_pb2_grpc,
    signaling_service_pb2,
)

HANDSHAKE_LIMIT = "grpc.server_handshake_timeout_ms"
NONCE = bytes(range(32))
T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)
Frame = signaling_pb2.SignalingFrame
Call = aio.StreamStreamCall[Frame, Frame]


def credentials(*revoked: Issued) -> Credentials:
    own = issue(Role.INTERMEDIATE, "i1")
    crl = crl_pem(*revoked) if revoked else None
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, crl, Role.INTERMEDIATE, NOW)


class Life(Unobserved):
    """Tells when the actor is over."""

    def __init__(self) -> None:
        self.has_ended = asyncio.Event()

    def ended(self, ref: ConcernRef, failure: BaseException | None) -> None:
        assert failure is None
        self.has_ended.set()


class Outbox:
    """What the service emitted; one can wait for more."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._has_more = asyncio.Event()

    def put(self, message: Message) -> None:
        self.messages.append(message)
        self._has_more.set()

    async def take(self, kind: type[MessageT]) -> MessageT:
        async with asyncio.timeout(10):
            while True:
                for message in self.messages:
                    if isinstance(message, kind):
                        self.messages.remove(message)
                        return message
                self._has_more.clear()
                await self._has_more.wait()


@dataclass
class Service:
    """A running service and what it emitted."""

    port: int
    outbox: Outbox
    tell: Callable[[Message], None]

    @property
    def emitted(self) -> list[Message]:
        return self.outbox.messages

    def channel(self, node: Issued | None) -> aio.Channel:
        key = certificate = None
        if node is not None:
            key, certificate = node.key_pem, node.certificate_pem
        return aio.secure_channel(
            f"127.0.0.1:{self.port}",
            grpc.ssl_channel_credentials(pem(issue("agent", "any")).ca, key, certificate),
            options=[("grpc.ssl_target_name_override", "i1.intermediate.example.org")],
        )

    async def wait_for(self, kind: type[MessageT]) -> MessageT:
        return await self.outbox.take(kind)


@asynccontextmanager
async def running(own: Credentials) -> AsyncIterator[Service]:
    io = AsyncioIo(asyncio.get_running_loop())
    outbox, life = Outbox(), Life()
    log = cast("Any", structlog.wrap_logger(structlog.ReturnLogger()))
    servers: list[GrpcSignalingServer] = []

    def open_server(owner: SignalingService) -> GrpcSignalingServer:
        servers.append(GrpcSignalingServer(TransportAddress("127.0.0.1", 0), lambda: own, owner, 256, 100))
        return servers[0]

    context = Context(io, outbox.put, log)
    ref = LoopRuntime(io).start(
        SignalingService, context, own, HandshakeBudget(fixed_cost(0.0)), open_server, 100, 200.0, life=life
    )
    try:
        yield Service(servers[0].address.port, outbox, ref.tell)
    finally:
        request_stop(ref)
        async with asyncio.timeout(5):
            await life.has_ended.wait()
            await servers[0].stop()


def on_loop(test: Callable[[Service], Awaitable[None]], *revoked: Issued) -> None:
    async def body() -> None:
        async with asyncio.timeout(20), running(credentials(*revoked)) as service:
            await test(service)

    asyncio.run(body())


def attach_request(seq: int = 1) -> Frame:
    return Frame(
        seq=seq, attach_request=signaling_pb2.AttachRequest(protocol_version=1, nonce=NONCE, software="test")
    )


async def read(call: Call) -> Frame:
    async with asyncio.timeout(10):
        frame = await call.read()
    assert isinstance(frame, Frame), "the stream ended"
    return frame


async def attach(channel: aio.Channel) -> tuple[Call, signaling_pb2.AttachAccepted]:
    call = signaling_pb2_grpc.SignalingServiceStub(channel).Attach()
    await call.write(attach_request())
    frame = await read(call)
    assert frame.WhichOneof("body") == "attach_accepted"
    # Right behind it; the status of a call comes only when every frame before it was read.
    ping = await call.read()
    assert isinstance(ping, Frame)
    assert ping.HasField("ping")
    return call, frame.attach_accepted


async def refusal(channel: aio.Channel, first: Frame | None = None) -> tuple[grpc.StatusCode, str]:
    """The status that ends an attempt."""
    call = signaling_pb2_grpc.SignalingServiceStub(channel).Attach()
    async with asyncio.timeout(10):
        try:
            await call.write(first or attach_request())
            while await call.read() is not aio.EOF:
                pass
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return await call.code(), await call.details() or ""


def test_agent_attaches_and_the_intermediate_proves_its_key() -> None:
    node = issue(Role.AGENT, "a1")

    async def body(service: Service) -> None:
        async with service.channel(node) as channel:
            call, accepted = await attach(channel)
            assert len(accepted.attach_id) == 16
            chain = [x509.load_der_x509_certificate(der) for der in accepted.certificate_chain]
            verify_nonce(chain[0], NONCE, fingerprint(node.certificate), accepted.signature)
            with pytest.raises(AuthenticationError):
                verify_nonce(chain[0], bytes(32), fingerprint(node.certificate), accepted.signature)
            attached = await service.wait_for(signaling_service_pb2.NodeAttached)
            assert (attached.node.id, attached.carrier) == ("a1", "grpc")
            assert attached.node.fingerprint == fingerprint(node.certificate)
            await call.write(Frame(seq=2, ping=signaling_pb2.SignalingPing(id=7)))
            pong = await read(call)
            assert (pong.seq, pong.pong.id) == (3, 7)
            await call.write(Frame(seq=3, goodbye=signaling_pb2.Goodbye(reason="done")))
            detached = await service.wait_for(signaling_service_pb2.NodeDetached)
            assert (detached.is_clean, detached.reason) == (True, "done")
            assert await call.code() is grpc.StatusCode.OK

    on_loop(body)


def test_tls_handshake_said_a_byte_at_a_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gRPC's own limit of two minutes a few hundred of them would hold every place."""
    options = [each for each in grpc_signaling._OPTIONS if each[0] != HANDSHAKE_LIMIT]
    assert (HANDSHAKE_LIMIT, grpc_signaling.HANDSHAKE_LIMIT_MS) in grpc_signaling._OPTIONS
    monkeypatch.setattr(grpc_signaling, "_OPTIONS", [*options, (HANDSHAKE_LIMIT, 500)])

    async def body(service: Service) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        # A ClientHello is announced, and comes in no hurry.
        hello = b"\x16\x03\x01\x10\x00\x01\x00\x0f\xfc\x03\x03" + bytes(4096)
        said, ended = 0, asyncio.ensure_future(reader.read())
        while not ended.done():
            writer.write(hello[said : said + 1])
            said += 1
            await asyncio.wait([ended], timeout=0.02)
        assert said < len(hello)
        writer.close()
        async with service.channel(issue(Role.AGENT, "a1")) as channel:
            await attach(channel)

    on_loop(body)


def test_client_without_certificate_never_reaches_the_service() -> None:
    async def body(service: Service) -> None:
        async with service.channel(None) as channel:
            code, _ = await refusal(channel)
            assert code is grpc.StatusCode.UNAVAILABLE
        assert service.emitted == []

    on_loop(body)


def test_certificate_of_a_foreign_ca_never_reaches_the_service() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1", foreign=True)) as channel:
            code, _ = await refusal(channel)
            assert code is grpc.StatusCode.UNAVAILABLE
        assert service.emitted == []

    on_loop(body)


def test_expired_certificate_never_reaches_the_service() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1", expired=True)) as channel:
            code, _ = await refusal(channel)
            assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}

    on_loop(body)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.INTERMEDIATE])
def test_wrong_role_is_refused_with_the_reason(role: Role) -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(role, "x1")) as channel:
            code, detail = await refusal(channel)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "only agent or connector is served" in detail

    on_loop(body)


def test_revoked_certificate_is_refused_with_the_reason() -> None:
    node = issue(Role.CONNECTOR, "c1")

    async def body(service: Service) -> None:
        async with service.channel(node) as channel:
            code, detail = await refusal(channel)
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert "revoked" in detail

    on_loop(body, node)


async def codes_of_flood(attempt: Callable[[], Awaitable[grpc.StatusCode]]) -> Counter[grpc.StatusCode]:
    """How 80 streams ended, a few at a time: a connection at its bound is refused others by gRPC itself."""
    codes: Counter[grpc.StatusCode] = Counter()

    async def go_on() -> None:
        for _ in range(20):
            codes[await attempt()] += 1

    await asyncio.gather(*(go_on() for _ in range(MAX_STREAMS_PER_CONNECTION // 2)))
    return codes


def test_flood_with_a_revoked_certificate_is_refused_unjudged_and_another_node_attaches() -> None:
    node, other = issue(Role.AGENT, "mallory"), issue(Role.AGENT, "a1")

    async def body(service: Service) -> None:
        async with service.channel(node) as channel, service.channel(other) as second:

            async def attempt() -> grpc.StatusCode:
                return (await refusal(channel))[0]

            codes = await codes_of_flood(attempt)
            assert codes.keys() == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert codes[grpc.StatusCode.UNAUTHENTICATED] >= MAX_STREAM_BURST
            await attach(second)
            figures = await service.wait_for(signaling_service_pb2.SignalingStatistics)
            while figures.refused["too_many_streams"] < codes[grpc.StatusCode.RESOURCE_EXHAUSTED]:
                figures = await service.wait_for(signaling_service_pb2.SignalingStatistics)

    on_loop(body, node)


def test_relay_streams_reach_the_relay_at_the_same_rate_and_no_more() -> None:
    async def relay(channel: aio.Channel) -> grpc.StatusCode:
        call = relay_pb2_grpc.RelayServiceStub(channel).Relay()
        try:
            await call.write(relay_pb2.RelayFrame(ping=1))
            await call.done_writing()
            while await call.read() is not aio.EOF:
                pass
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return await call.code()

    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "mallory")) as channel:
            codes = await codes_of_flood(lambda: relay(channel))
            assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            opened = sum(isinstance(each, quic_relay_pb2.RelayStreamOpened) for each in service.emitted)
            assert opened == codes[grpc.StatusCode.OK] >= MAX_STREAM_BURST

    on_loop(body)


def test_streams_of_one_connection_are_bounded_and_the_next_is_served_when_one_ends() -> None:
    async def body(service: Service) -> None:
        node = issue(Role.OPERATOR, "op")
        async with service.channel(node) as hoarding, service.channel(node) as modest:
            request = health_pb2.HealthCheckRequest(service="")
            calls = [
                health_pb2_grpc.HealthStub(hoarding).Watch(request)
                for _ in range(2 * MAX_STREAMS_PER_CONNECTION)
            ]
            answers = [asyncio.ensure_future(call.read()) for call in calls]
            while sum(each.done() for each in answers) < MAX_STREAMS_PER_CONNECTION:
                await asyncio.wait(
                    [each for each in answers if not each.done()], return_when=asyncio.FIRST_COMPLETED
                )
            # Another connection is served all the while, and these would have been by now.
            for _ in range(20):
                await health_pb2_grpc.HealthStub(modest).Check(request)
            served = [number for number, each in enumerate(answers) if each.done()]
            assert len(served) == MAX_STREAMS_PER_CONNECTION
            calls[served[0]].cancel()
            await asyncio.wait(
                [each for each in answers if not each.done()], return_when=asyncio.FIRST_COMPLETED
            )
            for call in calls:
                call.cancel()
            await asyncio.gather(*answers, return_exceptions=True)

    on_loop(body)


def test_certificate_that_breaks_the_profile_is_refused_with_the_reason() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1", trust_domain="other.example")) as channel:
            code, _ = await refusal(channel)
            assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}

    on_loop(body)


def test_former_stream_of_a_node_is_told_that_it_was_superseded() -> None:
    node = issue(Role.AGENT, "a1")

    async def body(service: Service) -> None:
        async with service.channel(node) as first, service.channel(node) as second:
            former, accepted = await attach(first)
            await attach(second)
            error = await read(former)
            assert error.error.code == signaling_pb2.SIGNALING_CODE_SUPERSEDED
            assert await former.code() is grpc.StatusCode.ABORTED
            await service.wait_for(signaling_service_pb2.NodeAttached)
            latest = await service.wait_for(signaling_service_pb2.NodeAttached)
            assert latest.superseded_attach_id == accepted.attach_id
        await service.wait_for(signaling_service_pb2.JudgeLeg)
        assert not [m for m in service.emitted if isinstance(m, signaling_service_pb2.NodeDetached)]

    on_loop(body)


def test_oversized_frame_ends_the_stream() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1")) as channel:
            call, _ = await attach(channel)
            await call.write(Frame(seq=2, goodbye=signaling_pb2.Goodbye(reason="x" * 70_000)))
            async with asyncio.timeout(10):
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await service.wait_for(signaling_service_pb2.JudgeLeg)

    on_loop(body)


def test_other_first_frame_than_an_attach_request_is_refused() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1")) as channel:
            ping = Frame(seq=1, ping=signaling_pb2.SignalingPing(id=1))
            code, detail = await refusal(channel, ping)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "AttachRequest" in detail

    on_loop(body)


def test_vanished_client_lingers_until_its_leg_is_judged() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1")) as channel:
            _, accepted = await attach(channel)
        judged = await service.wait_for(signaling_service_pb2.JudgeLeg)
        assert judged.attach_id == accepted.attach_id

    on_loop(body)


def test_stopping_service_sends_its_nodes_elsewhere() -> None:
    node = issue(Role.AGENT, "a1")

    async def body() -> None:
        async with asyncio.timeout(20):
            async with running(credentials()) as service:
                channel = service.channel(node)
                call, _ = await attach(channel)
            frame = await read(call)
            assert frame.goodbye.reason == "shutting_down"
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert not [m for m in service.emitted if isinstance(m, signaling_service_pb2.NodeDetached)]
            await channel.close()

    asyncio.run(body())


def test_health_says_serving() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.OPERATOR, "op")) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for name in ("", "ztna.v1.SignalingService"):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING

    on_loop(body)


def test_reflection_lists_the_services() -> None:
    async def body(service: Service) -> None:
        async with service.channel(issue(Role.OPERATOR, "op")) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            names = {each.name for each in answer.list_services_response.service}
            assert {"ztna.v1.SignalingService", "grpc.health.v1.Health"} <= names
            await call.done_writing()

    on_loop(body)


def test_address_in_use_is_an_os_error_that_names_it() -> None:
    own = credentials()

    async def body(service: Service) -> None:
        address = TransportAddress("127.0.0.1", service.port)
        with pytest.raises(OSError, match=r"grpc\.listen"):
            GrpcSignalingServer(address, lambda: own, cast("Any", None), 1, 100)

    on_loop(body)


def test_many_sessions_are_shown_and_answered_in_one_burst() -> None:
    agent = issue("agent", "a1")
    count, per_frame = 2000, 40
    grant = grant_pb2.SealedGrant(claims=bytes(1000))
    entries = [
        signaling_pb2.ResumeSession(session_id=number.to_bytes(16, "big"), grant=grant)
        for number in range(count)
    ]

    async def test(service: Service) -> None:
        async with service.channel(agent) as channel:
            call = signaling_pb2_grpc.SignalingServiceStub(channel).Attach()
            request = attach_request()
            request.attach_request.has_more = True
            await call.write(request)
            starts = range(0, count, per_frame)
            for seq, start in enumerate(starts, start=2):
                more = signaling_pb2.ResumeMore(
                    resume=entries[start : start + per_frame], has_more=start != starts[-1]
                )
                await call.write(Frame(seq=seq, resume_more=more))
            accepted = await read(call)
            attached = await service.wait_for(signaling_service_pb2.NodeAttached)
            assert attached.attach_id == accepted.attach_accepted.attach_id
            assert list(attached.resume) == entries
            for number in range(count):
                service.tell(
                    signaling_service_pb2.SendFrame(
                        attach_id=attached.attach_id,
                        frame=Frame(session_ended=signaling_pb2.SessionEnded(message=str(number))),
                    )
                )
            assert (await read(call)).HasField("ping")
            for number in range(count):
                assert (await read(call)).session_ended.message == str(number)

    on_loop(test)


@pytest.mark.parametrize(
    ("peer", "text"),
    [("ipv4:192.0.2.1:50000", "192.0.2.1:50000"), ("ipv6:%5B2001:db8::1%5D:50000", "[2001:db8::1]:50000")],
)
def test_remote_of_a_stream_reads_like_any_other_address(peer: str, text: str) -> None:
    assert remote_text(peer) == text


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:192.0.2.7:50000", "192.0.2"),
        ("ipv6:%5B2001:db8:1::7%5D:50000", "20010db80001::"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50000", "192.0.2"),
        ("", ""),
    ],
)
def test_network_of_a_stream_is_the_prefix_of_its_peer_if_grpc_still_knows_that(
    peer: str, network: str
) -> None:
    assert remote_network(remote_text(peer)) == network
