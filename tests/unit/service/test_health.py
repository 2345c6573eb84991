from __future__ import annotations

from random import Random

import pytest

from ztna.errors import RemoteProtocolError
from ztna.service.health import (
    JITTER,
    MAX_FIRST_DELAY_S,
    MAX_STATUS_LINE_BYTES,
    Abandon,
    HealthEffect,
    HealthMonitor,
    Probe,
    Schedule,
    Verdict,
    VerdictChanged,
    http_request,
    http_status,
)

INTERVAL_S = 10.0
TIMEOUT_S = 3.0


class World:
    def __init__(self) -> None:
        self.now = 100.0
        schedule = Schedule(INTERVAL_S, TIMEOUT_S, unhealthy_after=3, healthy_after=2)
        self.monitor = HealthMonitor(schedule, Random(1), self.now)

    def next(self) -> list[HealthEffect]:
        """What happens at the next deadline."""
        deadline = self.monitor.next_deadline()
        assert deadline is not None
        assert deadline >= self.now
        self.now = deadline
        self.monitor.handle_timeout(self.now)
        return self.monitor.drain()

    def probe(self, error: str = "") -> list[HealthEffect]:
        """Wait for a probe and answer it."""
        (probe,) = self.next()
        assert isinstance(probe, Probe)
        if error:
            self.monitor.handle_failure(probe.number, error, self.now)
        else:
            self.monitor.handle_success(probe.number, self.now)
        return self.monitor.drain()


@pytest.fixture
def world() -> World:
    return World()


def test_first_probe_comes_soon_and_the_next_after_the_interval(world: World) -> None:
    started = world.now
    world.probe()
    assert world.now <= started + MAX_FIRST_DELAY_S
    probed = world.now
    world.probe()
    assert INTERVAL_S * JITTER[0] <= world.now - probed <= INTERVAL_S * JITTER[1]


def test_first_answer_is_proof_enough(world: World) -> None:
    assert world.monitor.is_offered
    assert world.probe() == [VerdictChanged(Verdict.HEALTHY, "answers")]
    assert world.probe() == []


def test_backend_is_unhealthy_after_failures_in_a_row_only(world: World) -> None:
    world.probe()
    for _ in range(3):
        assert world.probe("refused") == world.probe("refused") == []
        assert world.probe() == []
    assert world.probe("refused") == world.probe("refused") == []
    assert world.probe("refused again") == [VerdictChanged(Verdict.UNHEALTHY, "refused again")]
    assert not world.monitor.is_offered


def test_unhealthy_backend_comes_back_after_successes_in_a_row(world: World) -> None:
    for _ in range(3):
        world.probe("refused")
    assert world.monitor.verdict is Verdict.UNHEALTHY
    assert world.probe() == world.probe("refused") == world.probe() == []
    assert world.probe() == [VerdictChanged(Verdict.HEALTHY, "answers")]
    assert world.monitor.is_offered


def test_backend_that_never_answered_is_offered_until_it_is_known_to_be_ill(world: World) -> None:
    world.probe("refused")
    world.probe("refused")
    assert world.monitor.is_offered
    assert world.probe("refused") == [VerdictChanged(Verdict.UNHEALTHY, "refused")]


def test_probe_that_outlives_its_time_has_failed_and_its_answer_comes_too_late(world: World) -> None:
    (probe,) = world.next()
    assert isinstance(probe, Probe)
    started = world.now
    assert world.next() == [Abandon(probe.number)]
    assert world.now == started + TIMEOUT_S
    world.monitor.handle_success(probe.number, world.now)
    assert world.monitor.drain() == []
    assert world.monitor.verdict is Verdict.UNKNOWN


def test_outcome_of_another_probe_is_ignored(world: World) -> None:
    (probe,) = world.next()
    assert isinstance(probe, Probe)
    world.monitor.handle_failure(probe.number - 1, "late", world.now)
    assert world.monitor.next_deadline() == world.now + TIMEOUT_S


def test_request_names_host_and_path_and_asks_for_the_end() -> None:
    lines = http_request("web.internal:8080", "/health?full=1").split(b"\r\n")
    assert lines[0] == b"GET /health?full=1 HTTP/1.1"
    assert b"Host: web.internal:8080" in lines
    assert b"Connection: close" in lines
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: x\r\n", 200),
        (b"HTTP/1.0 404 Not Found\r\n", 404),
        (b"HTTP/1.1 204\r\n", 204),
        (b"HTTP/1.1 503 \n", 503),
        (b"HTTP/1.1 200 O", None),
        (b"", None),
    ],
)
def test_status_line_is_read(received: bytes, status: int | None) -> None:
    assert http_status(received) == status


@pytest.mark.parametrize(
    "received",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 999 x\r\n",
        b"HTTP/1.1 20\r\n",
        b"\n",
        b"x" * (MAX_STATUS_LINE_BYTES + 1),
        b"HTTP/1.1 200 " + b"x" * MAX_STATUS_LINE_BYTES + b"\n",
    ],
)
def test_anything_else_is_no_http(received: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="no_http_response"):
        http_status(received)
