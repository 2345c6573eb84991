"""Each benchmark of the packet path, on small numbers: results have their shape; no speed is judged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from tools.bench import (
    _client,
    download,
    echo,
    handshakes,
    idle_nodes,
    parallel,
    profile,
    setup,
    stalled_reader,
    storm,
)
from tools.bench._site import AGENT, CONNECTOR, INTERMEDIATE, PATHS, SessionPath

# Seconds on a machine of its own; each starts daemons, which may have to wait for a busy one.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DAEMONS = {AGENT, CONNECTOR, INTERMEDIATE}
Only = Callable[[ModuleType, SessionPath], None]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """Leave a benchmark one of its paths: `download` shows all of them, and each is another deployment."""
    return lambda module, path: monkeypatch.setattr(module, "PATHS", {path: PATHS[path]})


def test_download_relates_each_path_to_both_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SIZE_BYTES", 2 << 20)
    monkeypatch.setattr(download, "ROUNDS", 1)
    results = download.run()
    rows = results["throughput"]
    assert list(rows) == [*download.BASELINES, *PATHS]
    for row in rows.values():
        for baseline in download.BASELINES:
            ratio = row["megabytes_per_s"] / rows[baseline]["megabytes_per_s"]
            assert row[f"to_{baseline}"] == pytest.approx(ratio, rel=0.05)
    for path in PATHS:
        cpu = dict(results["cpu_us_per_packet"][path])
        assert cpu.pop("total") == pytest.approx(sum(cpu.values()), abs=0.5)
        assert set(cpu) == DAEMONS


def test_echo_compares_round_trips_with_the_bare_service(monkeypatch: pytest.MonkeyPatch, only: Only) -> None:
    only(echo, "relay_grpc")
    monkeypatch.setattr(echo, "ECHOES", 20)
    results = echo.run()
    rows = results["round_trip"]
    assert list(rows) == ["bare", "bare_quic", "relay_grpc"]
    for row in rows.values():
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        for baseline in ("bare", "bare_quic"):
            for key in ("p50", "p95", "p99"):
                ratio = row[f"{key}_ms"] / rows[baseline][f"{key}_ms"]
                assert row[f"{key}_to_{baseline}"] == pytest.approx(ratio, abs=0.01)
    assert rows["bare"]["added_p50_ms"] == 0


def test_echo_without_a_service_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_client, "LOSS_LIMIT_S", 0.01)
    monkeypatch.setattr(echo, "round_trip_ms", lambda *_: None)
    with pytest.raises(TimeoutError, match="21 datagrams did not come back, 0 did"):
        echo._echoes(9)


def test_setup_measures_cold_and_warm_starts_and_the_return_of_the_intermediate(
    monkeypatch: pytest.MonkeyPatch, only: Only
) -> None:
    only(setup, "relay")
    monkeypatch.setattr(setup, "COLD_STARTS", 2)
    monkeypatch.setattr(setup, "WARM_CONNECTIONS", 3)
    monkeypatch.setattr(setup, "KILLS", 1)
    results = setup.run()
    rows = results["first_byte"]
    assert list(rows) == ["bare", "bare_quic_cold", "bare_quic_warm", "relay_cold", "relay_warm"]
    for kind in ("cold", "warm"):
        ratio = rows[f"relay_{kind}"]["p50_ms"] / rows[f"bare_quic_{kind}"]["p50_ms"]
        assert rows[f"relay_{kind}"]["p50_to_bare_quic"] == pytest.approx(ratio, abs=0.01)
    assert rows["relay_cold"]["p50_to_bare"] > rows["bare"]["p50_to_bare"] == 1
    row = results["reconnect"]["relay"]
    assert row["silence_p50_s"] == row["silence_max_s"] > 0
    assert row["after_intermediate_ready_p50_s"] >= 0
    assert row["silence_to_restart"] == pytest.approx(row["silence_p50_s"] / row["restart_p50_s"], abs=0.02)
    assert row["after_ready_to_bare_quic"] >= 0


def test_handshakes_are_related_to_those_of_aioquic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKES", 2)
    monkeypatch.setattr(handshakes, "ROUNDS", 1)
    rows = handshakes.run()["handshakes"]
    assert list(rows) == ["aioquic", "session", "leg"]
    assert rows["aioquic"]["to_aioquic"] == 1
    assert all(row["per_s"] > 0 for row in rows.values())


def test_stalled_reader_checks_the_bytes_and_tells_the_memory_of_each_daemon(
    monkeypatch: pytest.MonkeyPatch, only: Only
) -> None:
    only(stalled_reader, "relay")
    monkeypatch.setattr(stalled_reader, "SIZE_BYTES", 2 << 20)
    monkeypatch.setattr(stalled_reader, "STOP_AFTER_BYTES", 1 << 20)
    monkeypatch.setattr(stalled_reader, "STOP_S", 0.1)
    results = stalled_reader.run()
    assert set(results["memory"]) == {f"relay_{daemon}" for daemon in DAEMONS}
    for row in results["memory"].values():
        ratio = row["peak_mib"] / row["before_mib"]
        assert row["peak_to_before"] == pytest.approx(ratio, abs=0.01)
    assert results["violations"] == []


def test_stalled_reader_holds_each_daemon_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_path: SessionPath, _directory: Path) -> tuple[float, dict[str, dict[str, float]]]:
        return 1.0, {AGENT: {"growth_mib": 65.0}, CONNECTOR: {"growth_mib": 64.0}}

    monkeypatch.setattr(stalled_reader, "_measure", measure)
    assert stalled_reader.run()["violations"] == [
        f"stalled_reader: {path}_agent grew by 65.0 MiB, allowed are 64" for path in PATHS
    ]


def test_parallel_connections_share_one_session(monkeypatch: pytest.MonkeyPatch, only: Only) -> None:
    only(parallel, "direct")
    monkeypatch.setattr(parallel, "CONNECTIONS", 8)
    monkeypatch.setattr(parallel, "ROUNDS", 1)
    rows = parallel.run()["throughput"]
    one, many = rows["direct_one"], rows["direct_many"]
    ratio = many["megabytes_per_s"] / one["megabytes_per_s"]
    assert many["to_one"] == pytest.approx(ratio, rel=0.05)


def test_idle_nodes_attach_and_come_back_over_both_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_nodes, "NODES", 4)
    monkeypatch.setattr(idle_nodes, "ATTACH_OVER_S", 0.0)
    monkeypatch.setattr(idle_nodes, "IDLE_S", 0.2)
    monkeypatch.setattr(idle_nodes, "SETTLE_S", 0.0)
    rows = idle_nodes.run()["attached"]
    assert list(rows) == ["bare_quic", "grpc", "quic"]
    for carrier in ("grpc", "quic"):
        row = rows[carrier]
        ratio = row["attach_per_s"] / rows["bare_quic"]["attach_per_s"]
        assert row["attach_rate_to_bare"] == pytest.approx(ratio, abs=0.01)
        assert 0 < row["back_p50_s"] <= row["back_all_s"]


def test_profile_names_the_top_functions_of_each_daemon(monkeypatch: pytest.MonkeyPatch, only: Only) -> None:
    only(profile, "relay")
    monkeypatch.setattr(profile, "SIZE_BYTES", 1 << 20)
    results = profile.run()["relay"]
    assert set(results) == {"layers", *DAEMONS}
    for daemon in DAEMONS:
        assert sum(results["layers"][daemon].values()) == pytest.approx(1, abs=0.01)
        assert len(results[daemon]) == profile.TOP
        assert any(name.startswith("aioquic.quic.connection:") for name in results[daemon])


def test_storm_tells_what_others_felt_before_and_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storm, "NODES", 4)
    monkeypatch.setattr(storm, "CALM_S", 1.0)
    results = storm.run()
    for carrier in ("grpc", "quic"):
        rows = results[carrier]
        assert list(rows) == ["calm", "storm"]
        for row in rows.values():
            assert row["echoes"] > 0
            assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"]
        storm_row = rows["storm"]
        assert storm_row["all_up_s"] > 0
        assert storm_row["attach_per_s"] > 0
        assert 0 < storm_row["handshake_share"] < 1
        ratio = storm_row["p99_ms"] / rows["calm"]["p99_ms"]
        assert storm_row["p99_to_calm"] == pytest.approx(ratio, abs=0.01)


def test_storm_names_each_bound_that_it_did_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    calm = {"p95_ms": 10.0, "p99_ms": 20.0}
    bad = {"p95_ms": 51.0, "p99_ms": 79.0, "lost": 2}
    monkeypatch.setattr(storm, "_measure", lambda *_: ({"calm": calm, "storm": bad}, ["judgements took 9 s"]))
    monkeypatch.setattr(storm, "site", lambda *_: nullcontext(MagicMock()))
    assert storm.run()["violations"] == [
        f"storm over {carrier}: {words}"
        for carrier in ("grpc", "quic")
        for words in ("2 echoes lost", "p95_ms 41 ms more, 40 allowed", "judgements took 9 s")
    ]
