"""The soak, on half a minute; and how it tells growth from noise."""

from __future__ import annotations

import json

import pytest

from tools.bench import _mixed_load, soak


def test_series_that_stays_level_does_not_grow() -> None:
    rows = soak.growth({"tasks": [9, 9, 20, 21, 19, 20, 21, 20, 19, 20]}, 0.25)
    assert rows["tasks"]["growth"] <= rows["tasks"]["allowed"]
    assert soak.violations({"agent": rows}) == []


def test_leak_is_told_with_its_daemon_and_figure() -> None:
    rows = soak.growth({"descriptors": list(range(10, 110)), "sessions": list(range(100))}, 0.25)
    (violation,) = soak.violations({"agent": rows})
    assert violation.startswith("soak: descriptors of agent grew by")


def test_memory_may_grow_by_the_stated_slope_and_no_more() -> None:
    allowance = soak.ALLOWED["rss_mib"]
    assert allowance.over(100, 2) == allowance.fixed + 100 * allowance.share + 2 * allowance.per_hour
    (row,) = soak.growth({"rss_mib": [100.0] * 20 + [110.0] * 10}, 0.1).values()
    assert row["growth"] == 10
    assert len(soak.violations({"agent": {"rss_mib": row}})) == 1


@pytest.mark.parametrize(("lost", "told"), [(10, []), (11, ["soak: 11 of 1000 echoes were lost"])])
def test_lost_echoes_are_told_beyond_one_percent(lost: int, told: list[str]) -> None:
    assert soak.lost_echoes(lost, 1000) == told


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_short_soak_moves_every_kind_of_load_without_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_mixed_load, "DOWNLOAD_BYTES", 1 << 20)
    monkeypatch.setattr(_mixed_load, "UPLOAD_BYTES", 1 << 20)
    monkeypatch.setattr(_mixed_load, "RELOAD_PERIOD_S", 1.0)
    monkeypatch.setattr(_mixed_load, "SESSION_PERIOD_S", 2.0)
    monkeypatch.setattr(_mixed_load, "RESTART_PERIOD_S", 1.0)
    # Whether anything grows is nothing that so short a time can tell.
    monkeypatch.setattr(soak, "ALLOWED", {})
    status = soak.main(["--minutes", "0.5", "--json"])
    results = json.loads(capsys.readouterr().out)["soak"]
    assert results["violations"] == []
    assert status == 0
    assert set(results["done"]) - {"udp_echo_lost", "session_ended_meanwhile"} == {
        "download",
        "upload",
        "short_connection",
        "udp_echo",
        "session",
        "agent_restart",
        "reload",
    }
    for rows in results["daemons"].values():
        assert {*rows} >= {"rss_mib", "tasks", "actors", "descriptors", "connection_ids", "inbox_depth"}
        # What has been there since the start is seen, too.
        for name in ("rss_mib", "tasks", "actors", "descriptors", "connection_ids", "objects"):
            assert rows[name]["max"] > 0, name
