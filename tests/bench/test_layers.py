"""The layers of the packet path, on small numbers: results have their shape; no speed is judged."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tools.bench import layers
from ztna.v1 import quic_session_pb2, udp_socket_pb2


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SIZE_BYTES", 1 << 20)
    monkeypatch.setattr(layers, "ROUNDS", 1)


@pytest.fixture
def identities(tmp_path: Path) -> layers._Identities:
    return layers._Identities(tmp_path)


def test_layers_are_shares_of_what_aioquic_takes_in_the_same_run() -> None:
    results = layers.run()
    rows = results["batches"]
    assert set(rows) == {"batch_8", "batch_32"}
    for row in rows.values():
        assert row["layers"] == pytest.approx(row["layers_us"] / row["inside_us"], abs=0.01)
        assert row["connection"] > 0
        assert row["aioquic_us"] > 0
        # Messages without anything of QUIC, and no more of them than the actors told.
        assert 0 < row["messages"] < row["layers"]


def test_messages_are_those_that_the_actors_told(identities: layers._Identities) -> None:
    recording = identities.recording(8)
    payload = [told.fields for told in recording.told if told.kind is quic_session_pb2.PayloadReceived]
    assert sum(len(fields.get("data", b"")) for fields in payload) >= layers.SIZE_BYTES
    arrived = [told.fields for told in recording.told if told.kind is udp_socket_pb2.DatagramsReceived]
    assert sum(len(fields["datagrams"]) for fields in arrived) >= recording.packets
    assert recording.packets > layers.SIZE_BYTES / 1200


@pytest.mark.parametrize(("most", "count"), [(0.0, 2), (1000.0, 0)])
def test_share_above_the_limit_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, most: float, count: int
) -> None:
    monkeypatch.setattr(layers, "MOST", {8: most, 32: most})
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
