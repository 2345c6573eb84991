"""Relay streams over real gRPC on loopback: a node's end, and the listener of an intermediate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio

from actors.credentials import Credentials, parse_credentials
from actors.grpc_relay_stream import MAX_QUEUED_FRAMES, GrpcRelayStream
from actors.grpc_signaling import MAX_QUEUED_RELAY_FRAMES
from tests.actors.test_signaling_service_grpc import Service, on_loop
from tests.pki_fixtures import NOW, issue, pem
from ztna.access.identity import Role
from ztna.relay.frame import MAX_BATCH_PACKETS
from ztna.v1 import quic_relay_pb2, relay_pb2, relay_pb2_grpc

LIMIT_S = 10.0
HELLO = relay_pb2.RelayFrame(control=relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=b"a" * 16)))
BATCH = relay_pb2.RelayFrame(datagrams=[bytes(1202)] * MAX_BATCH_PACKETS)


def agent() -> Credentials:
    own = issue(Role.AGENT, "a1")
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, None, Role.AGENT, NOW)


class Owner:
    """Notes what a stream tells; one can wait for it."""

    def __init__(self) -> None:
        self.opened = 0
        self.frames: list[relay_pb2.RelayFrame] = []
        self.written = 0
        self.closed: list[tuple[str, str, bool]] = []
        self._changed = asyncio.Event()

    def stream_opened(self, _stream: object) -> None:
        assert not self.frames
        self.opened += 1
        self._changed.set()

    def stream_frame(self, _stream: object, frame: relay_pb2.RelayFrame) -> None:
        self.frames.append(frame)
        self._changed.set()

    def stream_written(self, _stream: object) -> None:
        self.written += 1
        self._changed.set()

    def stream_closed(self, _stream: object, reason: str, detail: str, is_authentication: bool) -> None:
        self.closed.append((reason, detail, is_authentication))
        self._changed.set()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def with_stream(test: Callable[[Service, GrpcRelayStream, Owner, int], Awaitable[None]]) -> None:
    """Run with a stream that is open at both ends; the last argument is its number at the intermediate."""

    async def body(service: Service) -> None:
        owner = Owner()
        stream = GrpcRelayStream(f"127.0.0.1:{service.port}", "i1", agent(), owner)
        try:
            await owner.wait_for(lambda: owner.opened == 1)
            opened = await service.wait_for(quic_relay_pb2.RelayStreamOpened)
            certificate = issue(Role.AGENT, "a1").certificate
            assert opened.certificate == certificate.public_bytes(Encoding.DER)
            assert opened.remote.startswith("127.0.0.1:")
            await test(service, stream, owner, opened.stream)
        finally:
            stream.close()

    on_loop(body)


def test_frames_go_both_ways_and_batches_are_told_when_they_are_on_their_way() -> None:
    async def test(service: Service, stream: GrpcRelayStream, owner: Owner, number: int) -> None:
        stream.send(HELLO)
        stream.send(BATCH)
        assert (await service.wait_for(quic_relay_pb2.RelayStreamReceived)).frame == HELLO
        assert (await service.wait_for(quic_relay_pb2.RelayStreamReceived)).frame == BATCH
        await owner.wait_for(lambda: owner.written == 1)
        pong = relay_pb2.RelayFrame(pong=3)
        for frame in (pong, BATCH):
            service.tell(quic_relay_pb2.SendRelayStream(stream=number, frame=frame))
        await owner.wait_for(lambda: len(owner.frames) == 2)
        assert owner.frames == [pong, BATCH]
        assert (await service.wait_for(quic_relay_pb2.RelayStreamWritten)).stream == number
        assert owner.closed == []

    with_stream(test)


def test_stream_that_the_node_closes_ends_at_the_intermediate() -> None:
    async def test(service: Service, stream: GrpcRelayStream, owner: Owner, number: int) -> None:
        stream.send(HELLO)
        stream.close()
        stream.close()
        stream.send(HELLO)
        assert (await service.wait_for(quic_relay_pb2.RelayStreamReceived)).frame == HELLO
        assert (await service.wait_for(quic_relay_pb2.RelayStreamEnded)).stream == number
        assert owner.closed == []
        service.tell(quic_relay_pb2.SendRelayStream(stream=number, frame=BATCH))  # crossed: nothing happens

    with_stream(test)


@pytest.mark.parametrize(
    ("reason", "is_refusal", "code"),
    [
        ("replaced", False, "aborted"),
        ("no_hello", False, "invalid_argument"),
        ("wrong_role", True, "permission_denied"),
        ("revoked", True, "unauthenticated"),
    ],
)
def test_node_learns_why_its_stream_is_ended(reason: str, is_refusal: bool, code: str) -> None:
    async def test(service: Service, _: GrpcRelayStream, owner: Owner, number: int) -> None:
        service.tell(
            quic_relay_pb2.SendRelayStream(
                stream=number, close=True, reason=reason, is_authentication_failure=is_refusal
            )
        )
        await owner.wait_for(lambda: bool(owner.closed))
        assert owner.closed == [(code, reason.replace("_", " "), is_refusal)]
        assert not any(isinstance(each, quic_relay_pb2.RelayStreamEnded) for each in service.emitted)

    with_stream(test)


def test_message_beyond_the_limit_ends_the_stream() -> None:
    async def test(service: Service, stream: GrpcRelayStream, owner: Owner, number: int) -> None:
        stream.send(relay_pb2.RelayFrame(datagrams=[bytes(70_000)]))
        assert (await service.wait_for(quic_relay_pb2.RelayStreamEnded)).stream == number
        await owner.wait_for(lambda: bool(owner.closed))

    with_stream(test)


def test_batch_to_a_node_that_does_not_read_is_not_told_as_written() -> None:
    async def test(service: Service) -> None:
        async with service.channel(issue(Role.AGENT, "a1")) as channel:
            call = relay_pb2_grpc.RelayServiceStub(channel).Relay()
            number = (await service.wait_for(quic_relay_pb2.RelayStreamOpened)).stream
            batch = quic_relay_pb2.SendRelayStream(stream=number, frame=BATCH)
            written = 0
            with pytest.raises(TimeoutError):
                while True:
                    service.tell(batch)
                    async with asyncio.timeout(1.0):
                        await service.wait_for(quic_relay_pb2.RelayStreamWritten)
                    written += 1
                    assert written < 1000  # 58 MB would be more than windows and buffers hold
            # What else it is sent has a bound of its own.
            pong = quic_relay_pb2.SendRelayStream(stream=number, frame=relay_pb2.RelayFrame(pong=1))
            for _ in range(MAX_QUEUED_RELAY_FRAMES + 1):
                service.tell(pong)
            frames = [frame async for frame in _until_end(call)]
            assert len(frames) <= written + 1 + MAX_QUEUED_RELAY_FRAMES
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    on_loop(test)


async def _until_end(
    call: aio.StreamStreamCall[relay_pb2.RelayFrame, relay_pb2.RelayFrame],
) -> AsyncIterator[relay_pb2.RelayFrame]:
    with suppress(aio.AioRpcError):
        async for frame in call:
            yield frame


def test_node_whose_intermediate_does_not_read_gives_up() -> None:
    async def test(_: Service, stream: GrpcRelayStream, owner: Owner, __: int) -> None:
        for _frame in range(MAX_QUEUED_FRAMES + 2):  # nothing of it leaves before this test lets go
            stream.send(HELLO)
        assert owner.closed == []  # nobody is called back while sending
        await owner.wait_for(lambda: bool(owner.closed))
        assert owner.closed[0][0] == "overflow"

    with_stream(test)


def test_port_that_nobody_listens_on_is_reported_once() -> None:
    async def test(service: Service) -> None:
        del service
        owner = Owner()
        GrpcRelayStream("127.0.0.1:1", "i1", agent(), owner)
        await owner.wait_for(lambda: bool(owner.closed))
        assert [each[0] for each in owner.closed] == ["unavailable"]
        assert owner.opened == 0

    on_loop(test)


def test_intermediate_of_another_name_is_not_trusted() -> None:
    async def test(service: Service) -> None:
        owner = Owner()
        GrpcRelayStream(f"127.0.0.1:{service.port}", "i2", agent(), owner)
        await owner.wait_for(lambda: bool(owner.closed))
        assert [(reason, is_refusal) for reason, _, is_refusal in owner.closed] == [
            ("untrusted_intermediate", True)
        ]

    on_loop(test)
