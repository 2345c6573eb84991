"""The benchmarks of the direct path, on small numbers: results have their shape; no speed is judged."""

from __future__ import annotations

import pytest

from tools.bench import direct, layers


@pytest.mark.e2e
def test_direct_path_is_related_to_both_baselines_beside_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "SIZE_BYTES", 2 << 20)
    monkeypatch.setattr(direct, "ROUNDS", 1)
    results = direct.run()
    for path in direct.PATHS:
        row = results[path]
        for baseline in direct.BASELINES:
            ratio = row["megabytes_per_s"] / results[baseline]["megabytes_per_s"]
            assert row[f"to_{baseline}"] == pytest.approx(ratio, rel=0.05)
        assert set(row["cpu_us_per_packet"]) == {"agent", "connector", "intermediate", "total"}


def test_layers_are_related_to_our_connection_and_to_aioquic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SIZE_BYTES", 1 << 20)
    monkeypatch.setattr(layers, "ROUNDS", 1)
    results = layers.run()
    assert set(results) == {"batch_8", "batch_32"}
    for row in results.values():
        assert row["overhead"] == pytest.approx(row["actors_us"] / row["connection_us"] - 1, abs=0.01)
        assert row["actors_to_aioquic"] == pytest.approx(row["actors_us"] / row["aioquic_us"], rel=0.02)
