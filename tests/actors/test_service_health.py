from __future__ import annotations

from typing import Any

import pytest

from actors.base import Context
from actors.io import DatagramBatch
from actors.service_health import ServiceHealth
from tests.manual_io import ActorHarness, RecordedTcpAttempt, RecordedTcpStream, actor_harness
from ztna.address import TransportAddress
from ztna.service.health import MAX_FIRST_DELAY_S
from ztna.settings import ConnectorService
from ztna.v1 import reload_pb2, service_health_pb2, signaling_client_pb2

BACKEND = TransportAddress("127.0.0.2", 80)
LOCAL = TransportAddress("127.0.0.1", 40_000)
CHECK = {"interval_s": 10, "timeout_s": 3, "unhealthy_after": 2, "healthy_after": 1}


def service(name: str = "web", protocol: str = "tcp", **health: Any) -> ConnectorService:
    settings: dict[str, Any] = {"id": name, "protocol": protocol, "backend": "127.0.0.2:80"}
    if health:
        settings["health"] = {**CHECK, **health}
    return ConnectorService.model_validate(settings)


class Health(ServiceHealth):
    configured: tuple[ConnectorService, ...] = ()

    def __init__(self, context: Context, *services: ConnectorService) -> None:
        self.configured = services
        super().__init__(context, lambda: self.configured, ["i1", "i2"])


def start(*services: ConnectorService) -> ActorHarness[Health]:
    harness = actor_harness(Health, *services)
    harness.advance(MAX_FIRST_DELAY_S)
    return harness


def attempt(harness: ActorHarness[Health]) -> RecordedTcpAttempt:
    (found,) = harness.io.tcp_attempts
    harness.io.tcp_attempts.clear()
    return found


def connect(harness: ActorHarness[Health]) -> tuple[RecordedTcpStream, Any]:
    owner = attempt(harness).owner
    stream = RecordedTcpStream(LOCAL, BACKEND)
    owner.connected(stream)
    harness.io.run_until_idle()
    return stream, owner


def refuse(harness: ActorHarness[Health], times: int) -> None:
    for _ in range(times):
        attempt(harness).owner.connection_lost(ConnectionRefusedError(111, "Connection refused"))
        harness.advance(11)


def verdicts(harness: ActorHarness[Health]) -> list[tuple[str, bool, str]]:
    return [
        (each.service, each.is_healthy, each.detail)
        for each in harness.take_emitted()
        if isinstance(each, service_health_pb2.ServiceHealthChanged)
    ]


def offers(harness: ActorHarness[Health]) -> list[tuple[str, list[str]]]:
    return [
        (each.intermediate_id, [one.service for one in each.services])
        for each in harness.take_emitted()
        if isinstance(each, signaling_client_pb2.OfferServices)
    ]


def test_service_without_a_check_is_never_probed() -> None:
    harness = start(service())
    harness.advance(100)
    assert harness.io.tcp_attempts == []
    assert harness.take_emitted() == []


def test_backend_that_takes_a_connection_is_well_and_is_let_go_of() -> None:
    harness = start(service(kind="tcp"))
    stream, _ = connect(harness)
    assert stream.is_aborted
    assert verdicts(harness) == [("web", True, "answers")]


def test_backend_that_refuses_is_withdrawn_everywhere_and_others_stay() -> None:
    harness = start(service(kind="tcp"), service("mail"))
    refuse(harness, 1)
    assert offers(harness) == []
    refuse(harness, 1)
    assert offers(harness) == [("i1", ["mail"]), ("i2", ["mail"])]
    connect(harness)
    assert offers(harness) == [("i1", ["web", "mail"]), ("i2", ["web", "mail"])]


def test_new_attachment_is_told_what_is_withdrawn() -> None:
    harness = start(service(kind="tcp"), service("mail"))
    attached = signaling_client_pb2.Attached(intermediate_id="i2")
    harness.tell(attached)
    assert offers(harness) == []
    refuse(harness, 2)
    harness.take_emitted()
    harness.tell(attached)
    assert offers(harness) == [("i2", ["mail"])]


def test_probe_without_an_answer_is_given_up() -> None:
    harness = start(service(kind="tcp", unhealthy_after=1))
    waiting = attempt(harness)
    harness.advance(3)
    assert waiting.is_cancelled
    assert verdicts(harness) == [("web", False, "no answer within 3 s")]
    waiting.owner.connection_lost(None)
    harness.io.run_until_idle()
    assert harness.take_emitted() == []


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 301 Moved\r\n", ("web", True, "answers")),
        (b"HTTP/1.1 503 Busy\r\n", ("web", False, "HTTP status 503")),
        (b"SSH-2.0\r\n", ("web", False, "no_http_response: the answer is not HTTP/1")),
    ],
)
def test_status_line_of_http_decides(answer: bytes, verdict: tuple[str, bool, str]) -> None:
    harness = start(service(kind="http", path="/health", unhealthy_after=1))
    stream, owner = connect(harness)
    assert stream.written.startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.2:80\r\n")
    assert stream.is_reading
    owner.data_received(answer[:4])
    harness.io.run_until_idle()
    assert harness.take_emitted() == []
    owner.data_received(answer[4:])
    harness.io.run_until_idle()
    assert verdicts(harness) == [verdict]
    assert stream.is_aborted


def test_http_backend_that_closes_without_a_word_is_ill() -> None:
    harness = start(service(kind="http", unhealthy_after=1))
    _, owner = connect(harness)
    owner.eof_received()
    harness.io.run_until_idle()
    assert verdicts(harness) == [("web", False, "closed without an answer")]


def test_datagram_of_the_backend_and_of_nobody_else_is_health() -> None:
    harness = start(service("dns", "udp", kind="udp", send="are you there"))
    (socket,) = harness.io.udp_sockets
    assert socket.sent == [(b"are you there", BACKEND, "")]
    stranger = TransportAddress("127.0.0.9", 80)
    socket.owner.datagrams_received([DatagramBatch(stranger, "", [b"yes"])], harness.io.time())
    harness.io.run_until_idle()
    assert harness.take_emitted() == []
    socket.owner.datagrams_received([DatagramBatch(BACKEND, "", [b"yes"])], harness.io.time())
    harness.io.run_until_idle()
    assert verdicts(harness) == [("dns", True, "answers")]
    assert socket.is_closed


def test_reload_offers_what_is_configured_and_forgets_the_illness_of_another_backend() -> None:
    harness = start(service(kind="tcp"))
    refuse(harness, 2)
    harness.take_emitted()
    moved = service(kind="tcp").model_copy(update={"backend": service().backend, "health": None})
    harness.concern.configured = (moved, service("late"))
    harness.tell(reload_pb2.ConfigurationReloaded())
    assert offers(harness) == [("i1", ["web", "late"]), ("i2", ["web", "late"])]


def test_stopping_gives_up_what_is_under_way() -> None:
    harness = start(service(kind="tcp"))
    waiting = attempt(harness)
    harness.stop()
    assert waiting.is_cancelled
