"""`Attach` or `Relay` streams without end, from a process of its own: `python -m tests.e2e.grpc_flood …`.

Its arguments are the call, the address, the name in the intermediate's certificate, and the files of the CA
and of each key and certificate to flood with, on a connection each. It goes on until its standard input ends,
and never for longer than `MAX_DURATION_S` or with more than `MAX_STREAMS`; it prints a line after
`HEAD_START` streams, and at the end how many there were.
"""

from __future__ import annotations

import asyncio
import select
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import grpc
from grpc import aio

from ztna.v1 import relay_pb2, relay_pb2_grpc, signaling_pb2, signaling_pb2_grpc

MAX_DURATION_S = 12.0
MAX_STREAMS = 8000
HEAD_START = 200
STREAM_LIMIT_S = 2.0
WORKERS = 60
"""Far more than one connection may have at a time."""
MIN_WORKERS = 8
"""Of each connection, where there are many: as many as it may have at a time."""


class Flood:
    """Streams of some connections; each says something that attaches nobody, and waits for its end."""

    def __init__(self, kind: str) -> None:
        self.count = 0
        self._kind = kind
        self._ends_at = time.monotonic() + MAX_DURATION_S

    async def go_on(self, channel: aio.Channel) -> None:
        """Open one after the other."""
        while not self._is_over():
            with suppress(aio.AioRpcError, aio.BaseError, asyncio.InvalidStateError):
                await self._open(channel)
            self.count += 1
            if self.count == HEAD_START:
                say("flooding")

    async def _open(self, channel: aio.Channel) -> None:
        if self._kind == "attach":
            attach = signaling_pb2_grpc.SignalingServiceStub(channel).Attach(timeout=STREAM_LIMIT_S)
            await attach.write(signaling_pb2.SignalingFrame(seq=1, ping=signaling_pb2.SignalingPing(id=1)))
            while await attach.read() is not aio.EOF:
                pass
        else:
            relay = relay_pb2_grpc.RelayServiceStub(channel).Relay(timeout=STREAM_LIMIT_S)
            await relay.write(relay_pb2.RelayFrame(ping=1))
            await relay.done_writing()
            while await relay.read() is not aio.EOF:
                pass

    def _is_over(self) -> bool:
        is_told = bool(select.select([sys.stdin], [], [], 0)[0])
        return is_told or self.count >= MAX_STREAMS or time.monotonic() >= self._ends_at


def say(words: str) -> None:
    """A line for the test."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


async def main(kind: str, address: str, name: str, ca: bytes, *identities: bytes) -> None:
    """Flood; `ca` and `identities`, which are pairs of key and certificate, are contents of files."""
    flood = Flood(kind)
    pairs = list(zip(identities[::2], identities[1::2], strict=True))
    async with AsyncExitStack() as stack:
        channels = []
        for key, certificate in pairs:
            options = (
                ("grpc.ssl_target_name_override", name),
                ("grpc.enable_http_proxy", 0),
                # Or those of one process to one address would share a connection.
                ("grpc.use_local_subchannel_pool", 1),
            )
            credentials = grpc.ssl_channel_credentials(ca, key, certificate)
            channels.append(
                await stack.enter_async_context(aio.secure_channel(address, credentials, options=options))
            )
        workers = max(MIN_WORKERS, WORKERS // len(pairs))
        await asyncio.gather(*(flood.go_on(channel) for channel in channels for _ in range(workers)))
    say(str(flood.count))


if __name__ == "__main__":
    call, target, server, *paths = sys.argv[1:]
    asyncio.run(main(call, target, server, *(Path(each).read_bytes() for each in paths)))
