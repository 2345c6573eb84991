"""Whatever a daemon keeps has a named bound: the tables say so, every run finds it, and a breach is told."""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from aioquic.quic.recovery import QuicPacketSpace

from actors.daemon import Node
from actors.session_list import SessionList
from tests.simnet.clock import START_TIME, VirtualClock, VirtualTimer
from tests.simnet.sim_io import ProcessCall
from tests.simnet.watch import is_actor_timer
from tools.simulate import bounds, containers, invariants, limits, timers
from tools.simulate.generate import generate
from tools.simulate.run import run
from ztna.ice.pair_table import PairTable

RUNS = (("mixed", 1), ("mixed", 7), ("udp_blocked", 1), ("resume", 2))
"""With legs of both kinds, streams and flows, two intermediates, and parties that come and go."""

ENTRIES = [
    pytest.param(kind, name, id=f"{kind.__module__}.{kind.__name__}.{name}")
    for table in (limits.BOUNDS, limits.EXEMPT)
    for kind, names in table.items()
    for name in names
]


def test_every_container_of_a_few_runs_has_its_bound_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[tuple[type, str], float | None] = {}

    def note(owner: object, name: str, container: containers.Container) -> float | None:
        bound = judge(owner, name, container)
        found[type(owner), name] = bound
        return bound

    judge = bounds.bound_of
    monkeypatch.setattr(bounds, "bound_of", note)
    for name, seed in RUNS:
        assert not run(generate(seed, name)).violation
    assert [key for key, bound in found.items() if bound is None] == []
    # Most of what there is; the rest takes strangers and rarer faults.
    missed = {
        (kind, name)
        for kind, names in limits.BOUNDS.items()
        for name in names
        if not any(issubclass(each, kind) and name == attribute for each, attribute in found)
    }
    assert len(missed) < sum(map(len, limits.BOUNDS.values())) / 8, missed


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_bound_and_exemption_are_of_something_that_there_is(kind: type, name: str) -> None:
    attribute = name.removesuffix("[]").removeprefix("_QuicConnection")
    ours = ("ztna.", "actors.", "aioquic.")
    sources = [inspect.getsource(each) for each in kind.__mro__ if each.__module__.startswith(ours)]
    assert any(attribute in source for source in sources)


def test_no_container_is_bounded_and_exempt() -> None:
    for kind, names in limits.EXEMPT.items():
        assert all(names.values()), kind
        assert not names.keys() & limits.BOUNDS.get(kind, {}).keys()


def test_container_without_a_bound_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(limits.BOUNDS, SessionList)
    assert "SessionList._sessions has no bound (actors.session_list)" in run(generate(1, "direct")).violation


def test_container_beyond_its_bound_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.BOUNDS, PairTable, {**limits.BOUNDS[PairTable], "_pairs": 0})
    assert "PairTable._pairs, which may hold 0" in run(generate(1, "direct")).violation


@pytest.mark.parametrize("name", ["sent_packets", "ack_queue"])
def test_container_of_quic_beyond_its_bound_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    held = limits.BOUNDS[QuicPacketSpace]
    monkeypatch.setitem(limits.BOUNDS, QuicPacketSpace, {**held, name: 0})
    scenario = replace(generate(1, "direct"), is_watched_closely=True)
    assert f"QuicPacketSpace.{name}, which may hold 0" in run(scenario).violation


@pytest.mark.parametrize("is_watched", [False, True])
def test_breach_that_lasts_for_milliseconds_is_found_in_a_run_that_is_watched_closely(
    monkeypatch: pytest.MonkeyPatch, is_watched: bool
) -> None:
    def check(node: Node) -> Iterator[str]:
        assert node.io is not None
        # Between two looks, which come each half second after the start.
        if START_TIME + 1.7 < node.io.time() < START_TIME + 1.9:
            yield "too much for a moment"

    monkeypatch.setattr(invariants, "check_bounds", check)
    scenario = replace(generate(1, "direct"), is_watched_closely=is_watched)
    assert ("too much for a moment" in run(scenario).violation) is is_watched


def test_every_twenty_fifth_seed_is_watched_closely_and_says_so() -> None:
    watched = [seed for seed in range(100) if generate(seed, "paths").is_watched_closely]
    assert watched == [24, 49, 74, 99]
    assert "watched closely" in "\n".join(generate(24, "paths").lines())


def test_exemption_speaks_for_derived_classes_and_a_bound_of_one_of_these_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Base:
        figure = 3

    class Derived(Base):
        pass

    monkeypatch.setitem(limits.BOUNDS, Base, {"table": 5})
    assert bounds.bound_of(Derived(), "table", {}) == 5
    monkeypatch.setitem(limits.BOUNDS, Derived, {"table": lambda owner: owner.figure + 7})
    assert bounds.bound_of(Derived(), "table", {}) == 10
    monkeypatch.setitem(limits.EXEMPT, Base, {"": "for the sake of it"})
    assert bounds.bound_of(Derived(), "others", {}) == float("inf")


def test_what_is_bounded_by_its_kind_needs_no_entry() -> None:
    assert bounds.bound_of(object(), "_recent", deque(maxlen=5)) == 5
    assert bounds.bound_of(object(), "counts", Counter()) == limits.MAX_REASONS
    assert bounds.bound_of(object(), limits.DRAINED, []) == 0
    assert bounds.bound_of(object(), "_recent", deque()) is None


class _Slotted:
    __slots__ = ("empty", "table")

    def __init__(self) -> None:
        self.table = {"a": [1], "b": (_Owner(),)}


@dataclass
class _Owner:
    callback: object = None
    buffer: bytearray = field(default_factory=bytearray)

    def take(self) -> None:
        """Is called back."""


@dataclass(frozen=True)
class _Value:
    parts: list[int] = field(default_factory=list)


def _found(root: object) -> Iterator[str]:
    return (f"{type(owner).__name__}.{name}" for owner, name, _ in containers.containers(iter((root,))))


def test_walk_finds_containers_wherever_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "OURS", (__name__,))
    assert sorted(_found(_Slotted())) == ["_Owner.buffer", "_Slotted.table", "_Slotted.table[]"]
    assert list(_found([_Owner(callback=_Owner().take)])) == ["_Owner.buffer"] * 2
    assert list(_found({1: partial(print, _Owner())})) == ["_Owner.buffer"]
    assert list(_found(_Value())) == []
    monkeypatch.setattr(containers, "OURS", ("elsewhere.",))
    containers._is_ours.clear()
    assert list(_found(_Owner())) == []
    containers._is_ours.clear()


@pytest.mark.parametrize("count", [2, timers.MAX_OTHER_CALLS + 2])
def test_more_timers_than_an_actor_or_a_process_may_have_are_a_violation(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    is_of_actor = count == 2
    check = timers.check_timers

    def check_with_copies(node: object, pending: list[VirtualTimer]) -> Iterator[str]:
        of_actors = [each for each in pending if is_actor_timer(_callback(each))]
        call = next(each.callback for each in of_actors if isinstance(each.callback, ProcessCall))
        if is_of_actor:
            return check(node, [*pending, *of_actors])  # type: ignore[arg-type]
        other = ProcessCall(call.io, 0.0, _nothing)
        others = [VirtualTimer(VirtualClock(), 0.0, 0, other) for _ in range(count)]
        return check(node, [*pending, *others])  # type: ignore[arg-type]

    monkeypatch.setattr(invariants, "check_timers", check_with_copies)
    violation = run(generate(1, "direct")).violation
    assert ("2 times the timer of" if is_of_actor else "calls are scheduled") in violation


def _callback(timer: VirtualTimer) -> object:
    return timer.callback.callback if isinstance(timer.callback, ProcessCall) else timer.callback


def _nothing() -> None:
    """A call that nobody waits for."""
