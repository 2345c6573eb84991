"""A daemon that cannot start: which failures are told in words, and what the process returns."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, ClassVar, cast

import pytest

from actors.base import Concern, Context, HandlerInterruptedError
from actors.daemon import ExitStatus, exit_status_of
from actors.grpc_signaling import GrpcSignalingServer
from tests.manual_io import ActorHarness
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError, ConfigError, LocalProtocolError

ADDRESS_IN_USE = OSError(errno.EADDRINUSE, "cannot bind UDP 127.0.0.1:4433: Address already in use")


class Starter(Concern):
    name: ClassVar[str] = "starter"

    def __init__(self, context: Context, failure: Exception) -> None:
        super().__init__(context)
        self.failure = failure

    def on_start(self) -> None:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ADDRESS_IN_USE, "cannot bind UDP 127.0.0.1:4433: Address already in use"),
        (ConfigError("control.socket: too long"), "control.socket: too long"),
        (AuthenticationError("expired", "on Monday"), "expired: on Monday"),
    ],
    ids=["bind", "configuration", "authentication"],
)
def test_expected_failure_to_start_is_one_line_without_traceback(failure: Exception, words: str) -> None:
    harness = ActorHarness(Starter, failure)
    (entry,) = harness.recording.logs.entries
    assert entry["event"] == "starter.start_failed"
    assert entry["error"] == words
    assert "exc_info" not in entry


def test_bug_at_start_keeps_its_traceback() -> None:
    harness = ActorHarness(Starter, LocalProtocolError("never"))
    (entry,) = harness.recording.logs.entries
    assert entry["event"] == "starter.actor_failed"
    assert entry["exc_info"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ConfigError("a"), ExitStatus.CONFIGURATION),
        (AuthenticationError("expired"), ExitStatus.AUTHENTICATION),
        (ADDRESS_IN_USE, ExitStatus.BIND),
        (HandlerInterruptedError("a"), ExitStatus.FAILURE),
        (None, ExitStatus.FAILURE),
    ],
)
def test_exit_status_follows_the_kind_of_failure(failure: Exception | None, status: ExitStatus) -> None:
    assert exit_status_of(failure) is status


def test_taken_grpc_address_is_refused_with_the_reason_of_the_kernel(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def listen(address: TransportAddress) -> None:
        # It fails before credentials and owner are asked for anything.
        GrpcSignalingServer(address, cast("Any", None), cast("Any", None), 1, 100)

    with socket.create_server(("127.0.0.1", 0)) as other:
        address = TransportAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(OSError, match=rf"{address} \(grpc.listen\): Address already in use") as caught:
            asyncio.run(listen(address))
    assert caught.value.errno == errno.EADDRINUSE
    assert "Failed to add port" not in capfd.readouterr().err
