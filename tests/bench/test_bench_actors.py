"""The actor benchmark measures what it says, shown on small numbers. Speeds are not judged here."""

from __future__ import annotations

from collections.abc import Iterator

import pykka
import pytest

from tools.bench import actors


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(actors, "MESSAGES", 200)
    monkeypatch.setattr(actors, "HOPS", 50)
    monkeypatch.setattr(actors, "IDLE_ACTORS", 20)
    monkeypatch.setattr(actors, "_in_own_process", actors._measure)
    before = pykka.ActorRegistry.get_all()
    yield
    assert pykka.ActorRegistry.get_all() == before


def test_both_kinds_are_measured_and_compared() -> None:
    results = actors.run()
    for kind in ("loop_actor", "threading_actor"):
        assert results[kind]["messages_per_s"] > 0
        assert results[kind]["hop_us"] > 0
        assert set(results[kind]["idle"]) == {"memory_mib", "bytes_per_actor", "start_s", "stop_s"}
    assert results["ratio"]["hop"] > 0


def test_a_machine_without_room_for_the_threads_still_gets_the_other_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(what: str) -> object:
        return {"failed": ["can't start new thread"]} if what == "thread_idle" else actors._measure(what)

    monkeypatch.setattr(actors, "_in_own_process", measure)
    results = actors.run()
    assert results["threading_actor"]["idle"] == {"failed": ["can't start new thread"]}
    assert set(results["ratio"]) == {"messages_per_s", "hop"}
