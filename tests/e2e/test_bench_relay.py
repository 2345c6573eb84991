"""The relay benchmark runs and its ratios come from one run."""

from __future__ import annotations

import pytest

from tools.bench import relay


def test_relay_benchmark_reports_ratios_against_both_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SIZE_BYTES", 2 << 20)
    monkeypatch.setattr(relay, "ROUNDS", 1)
    results = relay.run()
    rate = results["relay"]["megabytes_per_s"]
    assert rate > 0
    assert results["relay_to_bare_driver"] == pytest.approx(
        rate / results["bare_driver_megabytes_per_s"], rel=0.05
    )
    assert results["relay_to_aioquic_asyncio"] == pytest.approx(
        rate / results["aioquic_asyncio_megabytes_per_s"], rel=0.05
    )
    assert results["grpc_to_quic"] == pytest.approx(
        results["relay_over_grpc"]["megabytes_per_s"] / rate, rel=0.05
    )
    assert set(results["relay"]["cpu_us_per_packet"]) == {"agent-1", "connector-1", "intermediate-1", "total"}
