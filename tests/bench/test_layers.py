"""The layers of the packet path, on small numbers: results have their shape; no speed is judged."""

from __future__ import annotations

import pytest

from tools.bench import layers


def test_layers_are_related_to_our_connection_and_to_aioquic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SIZE_BYTES", 1 << 20)
    monkeypatch.setattr(layers, "ROUNDS", 1)
    results = layers.run()
    assert set(results) == {"batch_8", "batch_32"}
    for row in results.values():
        assert row["overhead"] == pytest.approx(row["actors_us"] / row["connection_us"] - 1, abs=0.01)
        assert row["actors_to_aioquic"] == pytest.approx(row["actors_us"] / row["aioquic_us"], rel=0.02)
