from __future__ import annotations

import pytest

from ztna.access.identity import Role
from ztna.signaling.exchange import MAX_ROUND_TRIP_S, START_DELAY_MS, start_delays_ms
from ztna.signaling.round_trip import REPEAT_AFTER_S, SAMPLES, RoundTrip


def measure(round_trip: RoundTrip, now: float, seconds: float) -> float | None:
    ping_id = round_trip.next_ping(now)
    assert ping_id is not None
    return round_trip.handle_pong(ping_id, now + seconds)


def test_least_of_the_last_measurements_counts() -> None:
    round_trip = RoundTrip()
    assert measure(round_trip, 0, 0.5) == 0.5
    assert measure(round_trip, 10, 0.25) == 0.25
    found = [measure(round_trip, 20 + 10 * n, 0.5) for n in range(SAMPLES)]
    assert found == [0.25] * (SAMPLES - 1) + [0.5]


def test_one_ping_at_a_time_until_it_is_given_up() -> None:
    round_trip = RoundTrip()
    lost = round_trip.next_ping(0)
    assert round_trip.next_ping(REPEAT_AFTER_S - 0.1) is None
    assert round_trip.next_ping(REPEAT_AFTER_S) == 2
    assert lost == 1
    assert round_trip.handle_pong(1, REPEAT_AFTER_S) is None, "whoever answers late proves nothing"
    assert round_trip.handle_pong(2, REPEAT_AFTER_S + 0.5) == 0.5
    assert round_trip.handle_pong(2, 60) is None


@pytest.mark.parametrize(
    ("agent", "connector", "expected"),
    [
        pytest.param(0.08, 0.02, (0, 30), id="agent is farther"),
        pytest.param(0.02, 0.08, (30, 0), id="connector is farther"),
        pytest.param(0.05, 0.05, (0, 0), id="equally far"),
        pytest.param(None, 0.08, (START_DELAY_MS, START_DELAY_MS), id="one is unknown"),
        pytest.param(None, None, (START_DELAY_MS, START_DELAY_MS), id="both are unknown"),
        pytest.param(1e9, 0.0, (0, MAX_ROUND_TRIP_S / 2 * 1000), id="nobody is that far away"),
    ],
)
def test_start_delays_let_the_first_checks_leave_together(
    agent: float | None, connector: float | None, expected: tuple[int, int]
) -> None:
    delays = start_delays_ms({Role.AGENT: agent, Role.CONNECTOR: connector})
    assert (delays[Role.AGENT], delays[Role.CONNECTOR]) == expected
