"""The layers of the packet path, on small numbers: results have their shape; no speed is judged."""

from __future__ import annotations

import time

import pytest

from tools.bench import layers


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SIZE_BYTES", 1 << 20)
    monkeypatch.setattr(layers, "ROUNDS", 1)


def test_layers_are_shares_of_what_aioquic_takes_in_the_same_run() -> None:
    results = layers.run()
    rows = results["batches"]
    assert set(rows) == {"batch_8", "batch_32"}
    for row in rows.values():
        assert row["layers"] == pytest.approx(row["layers_us"] / row["inside_us"], abs=0.01)
        assert row["connection"] > 0
        assert row["aioquic_us"] > 0


@pytest.mark.parametrize(("limit", "count"), [(0.0, 2), (1000.0, 0)])
def test_share_above_the_limit_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, limit: float, count: int
) -> None:
    monkeypatch.setattr(layers, "LIMIT", limit)
    violations = layers.run()["violations"]
    assert len(violations) == count
    assert all("our layers cost" in each for each in violations)


def test_time_is_divided_into_aioquics_our_layers_and_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Connection:
        def __init__(self) -> None:
            for name in layers.CALLS:
                setattr(self, name, work)

    monkeypatch.setattr(time, "process_time", lambda: now)
    meter, connection = layers._Meter(), Connection()
    meter.watch(connection)  # type: ignore[arg-type] # all that is asked of one
    connection.receive_datagram(7.0)  # type: ignore[attr-defined] # the handshake
    meter.begin()
    connection.receive_datagram(4.0)  # type: ignore[attr-defined]
    work(1.0)
    meter.begin()
    work(0.5)
    meter.own_s += 0.5
    cost = meter.end(packets=2)
    assert cost == (2e6, 0.5e6)
    assert cost.share == 0.25
