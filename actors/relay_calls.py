"""The `Relay` streams that nodes opened at an intermediate's gRPC listener, by number.

They end in the listener's actor, while the relay is another one: this passes frames on, one way and the
other, and knows nothing of what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from actors.grpc_signaling import GrpcRelayCall
from ztna.access.profile import UNREADABLE
from ztna.v1 import quic_relay_pb2, relay_pb2

_STATUS: Final = {
    "wrong_role": grpc.StatusCode.PERMISSION_DENIED,
    "replaced": grpc.StatusCode.ABORTED,
    "detached": grpc.StatusCode.ABORTED,
    "no_answer": grpc.StatusCode.DEADLINE_EXCEEDED,
    "too_many_legs": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "too_many_hellos": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "shutting_down": grpc.StatusCode.UNAVAILABLE,
}


class RelayCalls:
    """All streams of one listener."""

    def __init__(self, emit: Callable[[Message], None]) -> None:
        self._emit = emit
        self._calls: dict[int, GrpcRelayCall] = {}
        self._numbers: dict[GrpcRelayCall, int] = {}
        self._last_number = 0

    def opened(self, call: GrpcRelayCall) -> None:
        """Number a stream, and tell of it."""
        self._last_number += 1
        self._calls[self._last_number] = call
        self._numbers[call] = self._last_number
        try:
            certificate = x509.load_pem_x509_certificate(call.certificate_pem).public_bytes(Encoding.DER)
        except UNREADABLE:
            certificate = b""
        self._emit(
            quic_relay_pb2.RelayStreamOpened(
                stream=self._last_number, certificate=certificate, remote=call.remote
            )
        )

    def received(self, call: GrpcRelayCall, frame: relay_pb2.RelayFrame) -> None:
        """Pass a frame on."""
        number = self._numbers.get(call)
        if number is not None:
            self._emit(quic_relay_pb2.RelayStreamReceived(stream=number, frame=frame))

    def written(self, call: GrpcRelayCall) -> None:
        """Say that there is room for more."""
        number = self._numbers.get(call)
        if number is not None:
            self._emit(quic_relay_pb2.RelayStreamWritten(stream=number))

    def closed(self, call: GrpcRelayCall) -> None:
        """Forget a stream that ended."""
        number = self._numbers.pop(call, None)
        if number is not None:
            del self._calls[number]
            self._emit(quic_relay_pb2.RelayStreamEnded(stream=number, reason="stream_ended"))

    def close_all(self) -> None:
        """End every stream: this intermediate goes away."""
        for call in self._numbers:
            call.close(grpc.StatusCode.UNAVAILABLE, "this intermediate is shutting down")

    def send(self, message: quic_relay_pb2.SendRelayStream) -> None:
        """Write to a stream, or end it; nothing when it is gone."""
        call = self._calls.get(message.stream)
        if call is None:
            return
        if not message.close:
            call.send(message.frame)
            return
        del self._calls[message.stream]
        del self._numbers[call]
        status = _STATUS.get(message.reason, grpc.StatusCode.INVALID_ARGUMENT)
        if message.is_authentication_failure and message.reason != "wrong_role":
            status = grpc.StatusCode.UNAUTHENTICATED
        call.close(status, message.detail or message.reason.replace("_", " "))
