"""Restarts, their order and their bounds; scopes that keep their troubles to themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest

from actors.base import Concern, Context
from actors.child_group import (
    CUT_OFF_GRACE_S,
    ChildSpec,
    ChildState,
    Restart,
    RestartLimit,
    Surroundings,
)
from actors.directory import Directory
from actors.runtime import LoopRuntime, ThreadingRuntime, request_stop
from actors.supervisor import Supervisor
from tests.actors.messages import Fail, Poke
from tests.manual_io import ManualIo, RecordingContext
from ztna.errors import LocalProtocolError


class Part(Concern):
    """Writes its life into a diary, and fails on request."""

    name: ClassVar[str] = "part"
    handlers: ClassVar[Any] = {Poke: "poke", Fail: "fail"}

    def __init__(self, context: Context, label: str, world: World) -> None:
        super().__init__(context)
        self.label = f"{label}/{context.key}" if context.key else label
        self.world = world
        if self.label in world.broken_constructors:
            raise RuntimeError("cannot be built")

    def on_start(self) -> None:
        self.world.note(f"+{self.label}")
        if self.label in self.world.broken_starts:
            raise RuntimeError("cannot start")

    def on_stop(self) -> None:
        self.world.note(f"-{self.label}")

    def poke(self, message: Any) -> None:
        if message.text == "block":
            self.world.gate.wait(30)

    def fail(self, message: Any) -> None:
        raise ValueError(message.text)


class World:
    """A supervisor over a manual clock, and the diary of its children."""

    def __init__(self, **limit: Any) -> None:
        self.io = ManualIo()
        self.recording = RecordingContext(self.io)
        self.directory = Directory()
        self.diary: list[str] = []
        self.broken_starts: set[str] = set()
        self.broken_constructors: set[str] = set()
        self.gave_up: list[str] = []
        self.give_up_failure: BaseException | None = None
        self.ended_scopes: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.threads = ThreadingRuntime(self.io)
        surroundings = Surroundings(
            scheduler=self.io,
            runtime=LoopRuntime(self.io),
            directory=self.directory,
            make_context=lambda name, key: self.recording.context(key, actor=name),
            log=self.recording.context().log,
        )
        self.supervisor = Supervisor(
            surroundings,
            on_give_up=self.note_give_up,
            on_scope_ended=lambda key, reason: self.ended_scopes.append((key, reason)),
            limit=RestartLimit(**limit) if limit else None,
        )

    def note_give_up(self, reason: str, failure: BaseException | None) -> None:
        self.gave_up.append(reason)
        self.give_up_failure = failure

    def note(self, event: str) -> None:
        self.diary.append(event)

    def spec(self, name: str, **options: Any) -> ChildSpec:
        return ChildSpec(name, partial(_build, name, self), **options)

    def start(self, *specs: ChildSpec | str) -> None:
        self.supervisor.start([self.spec(s) if isinstance(s, str) else s for s in specs])
        self.io.run_until_idle()

    def start_scope(self, key: str, *specs: ChildSpec | str) -> None:
        self.supervisor.start_scope(key, [self.spec(s) if isinstance(s, str) else s for s in specs])

    def fail(self, name: str) -> None:
        assert self.directory.tell(name, Fail(text=name))
        self.io.run_until_idle()

    def take(self) -> list[str]:
        """What the diary says since the last look."""
        self.io.run_until_idle()
        events, self.diary[:] = self.diary[:], []
        return events

    def states(self) -> dict[str, ChildState]:
        return {status.name: status.state for status in self.supervisor.children()}

    def wait(self, condition: Callable[[], bool]) -> None:
        self.io.run_until_true(condition)


def _build(name: str, world: World, context: Context) -> Part:
    return Part(context, name, world)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    stopped: list[bool] = []
    world.gate.set()
    world.supervisor.stop(lambda: stopped.append(True))
    world.wait(lambda: bool(stopped))
    assert world.directory.names() == []


def test_children_start_in_order_and_stop_in_reverse(world: World) -> None:
    stopped: list[str] = []
    world.start("a", "b", "c")
    assert world.take() == ["+a", "+b", "+c"]
    world.supervisor.stop(lambda: stopped.append("done"))
    assert world.take() == ["-c", "-b", "-a"]
    assert stopped == ["done"]
    assert world.directory.names() == []
    assert world.gave_up == []
    world.supervisor.stop(lambda: stopped.append("again"))
    assert stopped == ["done", "again"]


def test_a_crash_restarts_the_child_and_all_that_follow_it(world: World) -> None:
    world.start("a", "b", "c", "d")
    before = world.directory.find("b")
    world.take()
    world.fail("b")
    assert world.take() == ["-b", "-d", "-c", "+b", "+c", "+d"]
    assert world.directory.find("b") is not before
    assert world.directory.tell("b", Poke())
    assert {s.name: s.restarts for s in world.supervisor.children()} == {"a": 0, "b": 1, "c": 0, "d": 0}
    status = world.supervisor.children()[1]
    assert (status.failure, status.state) == ("ValueError", ChildState.RUNNING)


def test_crashes_at_the_same_instant_leave_everything_restarted_in_order(world: World) -> None:
    world.start("a", "b", "c")
    world.take()
    world.directory.tell("c", Fail())
    world.directory.tell("a", Fail())
    assert world.take() == ["-c", "-a", "+c", "-c", "-b", "+a", "+b", "+c"]
    assert set(world.states().values()) == {ChildState.RUNNING}


@pytest.mark.parametrize(
    ("restart", "failing", "comes_back"),
    [
        (Restart.PERMANENT, True, True),
        (Restart.PERMANENT, False, True),
        (Restart.TRANSIENT, True, True),
        (Restart.TRANSIENT, False, False),
        (Restart.TEMPORARY, True, False),
        (Restart.TEMPORARY, False, False),
    ],
)
def test_the_restart_kind_decides_whether_a_child_comes_back(
    world: World, restart: Restart, failing: bool, comes_back: bool
) -> None:
    world.start(world.spec("a", restart=restart), "b")
    world.take()
    ref = world.directory.find("a")
    assert ref is not None
    if failing:
        ref.tell(Fail())
    else:
        request_stop(ref)
    assert world.take() == (["-a", "-b", "+a", "+b"] if comes_back else ["-a"])


def test_a_temporary_child_that_is_over_is_not_restarted_with_the_others(world: World) -> None:
    world.start("a", world.spec("b", restart=Restart.TEMPORARY), "c")
    world.take()
    world.fail("a")
    assert world.take() == ["-a", "-c", "-b", "+a", "+c"]


def test_too_many_restarts_stop_everything_and_give_up(world: World) -> None:
    world.start("a", "b")
    world.start_scope("01", "s")
    for _ in range(5):
        world.fail("b")
        world.io.advance(1)
    assert world.gave_up == []
    world.take()
    world.fail("b")
    assert world.take() == ["-b", "-a", "-s/01"]
    assert world.gave_up == ["too_many_restarts"]
    assert world.ended_scopes == [("01", "stopped")]


def test_restarts_far_apart_never_add_up(world: World) -> None:
    world.start("a")
    for _ in range(20):
        world.fail("a")
        world.io.advance(6.1)
    assert world.gave_up == []
    assert world.supervisor.children()[0].restarts == 20


@pytest.mark.parametrize("kind", ["broken_starts", "broken_constructors"])
def test_a_child_that_cannot_start_ends_in_giving_up_and_what_follows_never_starts(
    world: World, kind: str
) -> None:
    getattr(world, kind).add("b")
    world.start("a", "b", "c")
    assert [reason.partition(":")[0] for reason in world.gave_up] == ["b cannot start"]
    assert world.give_up_failure is not None
    assert "+c" not in world.diary
    assert world.diary.count("+b") == (1 if kind == "broken_starts" else 0)
    assert world.diary[-1] == "-a"


def test_a_restart_that_keeps_failing_is_tried_until_the_limit(world: World) -> None:
    world.start("a", "b", "c")
    world.take()
    world.broken_starts.add("b")
    world.fail("b")
    assert world.take().count("+b") == 5
    assert world.gave_up == ["too_many_restarts"]


def test_a_child_that_is_alone_is_restarted_without_those_behind_it(world: World) -> None:
    world.start(world.spec("a", is_alone=True), "b")
    world.take()
    world.fail("a")
    assert world.take() == ["-a", "+a"]
    assert world.states() == {"a": ChildState.RUNNING, "b": ChildState.RUNNING}
    world.supervisor.stop()
    assert world.take() == ["-b", "-a"]


def test_a_child_may_be_restarted_along_with_some_before_it(world: World) -> None:
    world.start("a", "b", world.spec("c", restart_from="b"), "d")
    world.take()
    world.fail("c")
    assert world.take() == ["-c", "-d", "-b", "+b", "+c", "+d"]
    world.fail("b")
    assert world.take() == ["-b", "-d", "-c", "+b", "+c", "+d"]


def test_a_temporary_child_that_cannot_start_does_not_hold_up_the_others(world: World) -> None:
    world.broken_starts.add("a")
    world.start(world.spec("a", restart=Restart.TEMPORARY), "b")
    assert world.take() == ["+a", "-a", "+b"]
    assert world.states() == {"a": ChildState.FAILED, "b": ChildState.RUNNING}


SCOPE = ("q", "i", "j")


def start_session(world: World, key: str, after: str = "") -> None:
    world.start_scope(
        key,
        world.spec("q", restart=Restart.TEMPORARY, ends_scope=True, after=after),
        world.spec("i"),
        world.spec("j"),
    )


def test_a_scope_is_reachable_as_soon_as_it_was_started(world: World) -> None:
    world.start("a")
    start_session(world, "01")
    assert world.directory.tell("q/01", Poke())
    assert world.supervisor.scopes() == ["01"]


def test_a_crash_of_the_scopes_anchor_ends_that_scope_alone(world: World) -> None:
    world.start("a")
    start_session(world, "01")
    start_session(world, "02")
    world.take()
    world.fail("q/01")
    assert world.take() == ["-q/01", "-j/01", "-i/01"]
    assert world.ended_scopes == [("01", "q_ended")]
    assert world.directory.names() == ["a", "i/02", "j/02", "q/02"]
    assert world.states()["a"] is ChildState.RUNNING


def test_the_others_of_a_scope_restart_and_leave_the_anchor_alone(world: World) -> None:
    start_session(world, "01")
    world.take()
    world.fail("i/01")
    assert world.take() == ["-i/01", "-j/01", "+i/01", "+j/01"]


def test_too_many_restarts_in_a_scope_end_it_and_nothing_else(world: World) -> None:
    world.start("a")
    start_session(world, "01")
    start_session(world, "02")
    for _ in range(6):
        world.fail("j/01")
    assert world.ended_scopes == [("01", "too_many_restarts")]
    assert world.gave_up == []
    assert world.supervisor.scopes() == ["02"]
    world.fail("j/02")
    assert world.states()["j/02"] is ChildState.RUNNING


def test_a_scope_is_stopped_in_reverse_and_its_key_is_free_again(world: World) -> None:
    done: list[str] = []
    start_session(world, "01")
    world.take()
    world.supervisor.stop_scope("01", lambda: done.append("first"))
    world.supervisor.stop_scope("01", lambda: done.append("second"))
    with pytest.raises(LocalProtocolError):
        start_session(world, "01")
    assert world.take() == ["-j/01", "-i/01", "-q/01"]
    world.supervisor.stop_scope("01", lambda: done.append("third"))
    world.supervisor.stop_scope("01")
    assert done == ["first", "second", "third"]
    start_session(world, "01")
    assert world.take() == ["+q/01", "+i/01", "+j/01"]


def test_a_restart_of_the_node_ends_the_sessions_that_depend_on_it(world: World) -> None:
    world.start("socket", "leg", "port")
    start_session(world, "01", after="leg")
    start_session(world, "02", after="port")
    world.take()
    world.fail("port")
    assert world.take() == ["-port", "+port", "-j/02", "-i/02", "-q/02"]
    world.fail("socket")
    assert world.ended_scopes == [("02", "node_restarted"), ("01", "node_restarted")]


def test_a_restart_of_the_node_restarts_what_is_stale_without_counting_it(world: World) -> None:
    world.start("socket", "gatherer")
    world.start_scope("01", "q", world.spec("i", after="gatherer"), "j")
    world.take()
    for _ in range(5):
        world.fail("gatherer")
        assert world.take() == ["-gatherer", "+gatherer", "-j/01", "-i/01", "+i/01", "+j/01"]
    assert [s.restarts for s in world.supervisor.children() if s.key] == [0, 0, 0]


def test_stopping_takes_the_scopes_first_and_refuses_new_ones(world: World) -> None:
    world.start("a")
    start_session(world, "01")
    world.take()
    world.supervisor.stop()
    with pytest.raises(LocalProtocolError):
        start_session(world, "02")
    assert world.take() == ["-j/01", "-i/01", "-q/01", "-a"]


def test_a_crash_while_stopping_is_not_restarted(world: World) -> None:
    world.start("a", "b")
    world.take()
    world.directory.tell("a", Fail())
    world.supervisor.stop()
    assert world.take() == ["-a", "-b"]
    assert world.directory.names() == []


def test_a_child_that_ignores_the_request_is_cut_off(world: World) -> None:
    world.start("a", world.spec("b", runtime=world.threads, stop_timeout_s=2.0))
    world.wait(lambda: world.states()["b"] is ChildState.RUNNING)
    world.directory.tell("b", Poke(text="block"))
    done: list[bool] = []
    world.supervisor.stop(lambda: done.append(True))
    world.io.advance(2.0)
    assert world.states()["b"] is ChildState.STOPPING
    world.gate.set()
    world.wait(lambda: bool(done))
    assert world.diary == ["+a", "+b", "-b", "-a"]
    assert "supervisor.stop_timed_out" in [entry["event"] for entry in world.recording.logs.entries]


def test_a_thread_that_never_returns_is_left_behind(world: World) -> None:
    world.start("a", world.spec("b", runtime=world.threads, stop_timeout_s=2.0))
    world.wait(lambda: world.states()["b"] is ChildState.RUNNING)
    world.directory.tell("b", Poke(text="block"))
    done: list[bool] = []
    world.supervisor.stop(lambda: done.append(True))
    world.io.advance(2.0 + CUT_OFF_GRACE_S)
    assert done == [True]
    assert world.states() == {"a": ChildState.STOPPED, "b": ChildState.ABANDONED}
    assert world.directory.names() == []
    world.gate.set()
    world.wait(lambda: "-b" in world.diary)
    assert world.states()["b"] is ChildState.ABANDONED


def test_what_follows_a_threaded_child_starts_when_that_is_ready(world: World) -> None:
    started: list[bool] = []
    specs = [world.spec("a", runtime=world.threads), world.spec("b")]
    world.supervisor.start(specs, lambda: started.append(True))
    world.wait(lambda: bool(started))
    assert world.take() == ["+a", "+b"]
    world.directory.tell("a", Fail())
    world.wait(lambda: world.diary == ["-a", "-b", "+a", "+b"])
    world.wait(lambda: world.states()["b"] is ChildState.RUNNING)
    done: list[bool] = []
    world.supervisor.stop(lambda: done.append(True))
    world.wait(lambda: bool(done))


def test_a_supervisor_starts_once(world: World) -> None:
    world.start("a")
    with pytest.raises(LocalProtocolError):
        world.start("a")


def test_stopping_before_the_start_is_done_at_once(world: World) -> None:
    done: list[bool] = []
    world.supervisor.stop(lambda: done.append(True))
    assert done == [True]


def test_the_status_shows_the_counters_of_a_child(world: World) -> None:
    world.start("a")
    world.directory.tell("a", Poke())
    world.directory.tell("a", Poke())
    assert world.supervisor.children()[0].inbox_depth == 2
    world.io.run_until_idle()
    status = world.supervisor.children()[0]
    assert (status.concern, status.key, status.handled, status.inbox_depth) == ("a", "", 3, 0)
    assert (status.busy_s, status.longest_s, status.failure) == (0.0, 0.0, "")
