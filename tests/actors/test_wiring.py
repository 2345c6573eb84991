"""The table of who hears whom, the router that follows it, and the directory below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from actors.base import Concern
from actors.directory import Directory, actor_name
from actors.wiring import Router, Row, Scope, Wiring
from tests.actors.messages import Fail, Keyless, Poke, Poked
from tests.manual_io import ActorHarness, actor_harness
from ztna.errors import LocalProtocolError


class Ear(Concern):
    """Hears and repeats."""

    name: ClassVar[str] = "ear"
    handlers: ClassVar[Any] = {Poke: "hear"}
    emits: ClassVar[Any] = (Poked,)

    def hear(self, message: Any) -> None:
        self.emit(Poked(text=message.text))


class Leg(Ear):
    name: ClassVar[str] = "leg"
    emits: ClassVar[Any] = ()


class Punch(Ear):
    name: ClassVar[str] = "punch"
    handlers: ClassVar[Any] = {Poke: "hear", Poked: "hear"}
    emits: ClassVar[Any] = ()


GOOD = Wiring(
    "test",
    [
        Row(Poke, Ear, Scope.NODE, is_external=True),
        Row(Poke, Leg, Scope.INTERMEDIATE, is_external=True),
        Row(Poke, Punch, Scope.SESSION, is_external=True),
        Row(Poked, Punch, Scope.SESSION),
    ],
)


def route(message: Any) -> list[str]:
    told: list[str] = []
    Router(GOOD, lambda name, _message: told.append(name)).emit(message)
    return told


@pytest.mark.parametrize(
    ("message", "receivers"),
    [
        pytest.param(Poke(), ["ear"], id="no key"),
        pytest.param(Poke(session_id=b"\x01\xff"), ["ear", "punch/01ff"], id="session"),
        pytest.param(Poke(intermediate_id="i1"), ["ear", "leg/i1"], id="intermediate"),
        pytest.param(
            Poke(session_id=b"\x02", intermediate_id="i2"), ["ear", "leg/i2", "punch/02"], id="both keys"
        ),
        pytest.param(Poked(session_id=b"\x03", intermediate_id="i3"), ["punch/03"], id="one row"),
        pytest.param(Poked(), [], id="keyed row without a key"),
    ],
)
def test_a_message_goes_where_the_rows_say(message: Any, receivers: list[str]) -> None:
    assert route(message) == receivers


def test_a_message_without_a_row_is_a_bug() -> None:
    with pytest.raises(LocalProtocolError, match=r"no row routes test\.Fail"):
        route(Fail())


def rows(*extra: Row, without: int | None = None) -> list[Row]:
    kept = [row for index, row in enumerate(GOOD.rows) if index != without]
    return [*kept, *extra]


def emitting(*messages: Any) -> type[Concern]:
    return type("Leg", (Leg,), {"name": "leg", "emits": messages})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (rows(GOOD.rows[0]), "test.Poke to ear is listed twice"),
        (rows(Row(Fail, Leg, Scope.INTERMEDIATE, is_external=True)), "leg does not handle test.Fail"),
        (rows(without=3), "nothing routes test.Poked to punch"),
        (rows(Row(Keyless, Punch, Scope.SESSION, is_external=True)), "test.Keyless has no field session_id"),
        (
            rows(Row(Keyless, Leg, Scope.INTERMEDIATE, is_external=True)),
            "test.Keyless has no field intermediate_id",
        ),
        (rows(Row(Poked, Ear, Scope.SESSION)), "ear is listed in two scopes"),
        (
            rows(Row(Poke, emitting(Fail), Scope.INTERMEDIATE, is_external=True), without=1),
            "test.Fail is emitted, yet has no row",
        ),
        (
            rows(Row(Poke, emitting(Poke), Scope.INTERMEDIATE, is_external=True), without=1),
            "test.Poke is emitted, yet its row says external",
        ),
        (rows(Row(Keyless, Leg, Scope.NODE)), "test.Keyless has a row, yet nobody emits it"),
    ],
    ids=[
        "duplicate",
        "no handler",
        "no row for a handler",
        "no session key",
        "no intermediate key",
        "two scopes",
        "no row for an emitted message",
        "external yet emitted",
        "no emitter",
    ],
)
def test_an_untrue_table_is_refused(table: list[Row], problem: str) -> None:
    wiring = Wiring("test", table)
    assert problem in wiring.problems()
    with pytest.raises(LocalProtocolError, match="wiring of test"):
        Router(wiring, lambda *_: None)


def test_a_true_table_has_no_problems() -> None:
    assert GOOD.problems() == []
    assert [concern.name for concern in GOOD.concerns] == ["ear", "leg", "punch"]


@pytest.fixture
def ear() -> Callable[[], ActorHarness[Ear]]:
    return lambda: actor_harness(Ear)


def test_a_message_to_an_unknown_or_dead_name_is_dropped_and_counted(
    ear: Callable[[], ActorHarness[Ear]],
) -> None:
    directory = Directory()
    harness = ear()
    name = actor_name("ear", "01")
    directory.register(name, harness.ref)
    assert directory.tell(name, Poke())
    harness.stop()
    assert not directory.tell(name, Poke())
    assert not directory.tell("ear/02", Poke())
    assert not directory.tell("nobody", Poke())
    assert directory.dropped == {"ear": 2, "nobody": 1}


def test_a_successor_keeps_the_name_when_its_predecessor_leaves(
    ear: Callable[[], ActorHarness[Ear]],
) -> None:
    directory = Directory()
    first, second = ear(), ear()
    directory.register("ear", first.ref)
    directory.register("ear", second.ref)
    directory.unregister("ear", first.ref)
    assert directory.find("ear") is second.ref
    assert directory.names() == ["ear"]
    directory.unregister("ear", second.ref)
    assert directory.find("ear") is None
    first.stop()
    second.stop()
