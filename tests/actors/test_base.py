"""What a concern may rely on, whichever runtime hosts it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pykka
import pytest

from actors.base import Concern, ConcernRef, Context, HandlerInterruptedError, loop_callback
from actors.runtime import LoopRuntime, ThreadingRuntime, cut_off, request_stop
from tests.actors.messages import Fail, Keyless, Poke, Poked
from tests.manual_io import ActorHarness, ManualIo, RecordingContext, RecordingLife, actor_harness
from ztna.errors import LocalProtocolError


class Bell(Concern):
    """Answers pokes, rings `number` seconds later, fails with whatever it is given."""

    name: ClassVar[str] = "bell"
    handlers: ClassVar[Any] = {Poke: "poke", Fail: "fail"}
    emits: ClassVar[Any] = (Poked,)

    def __init__(
        self, context: Context, failures: dict[str, Callable[[], BaseException]] | None = None
    ) -> None:
        super().__init__(context)
        self.failures = failures or {}
        self.deadline: float | None = None
        self.stops = 0

    def on_start(self) -> None:
        self.raise_planned("on_start")

    def on_stop(self) -> None:
        self.stops += 1
        self.emit(Poked(text="stopped"))
        self.raise_planned("on_stop")

    def poke(self, message: Any) -> str:
        self.emit(Poked(text=message.text, number=message.number))
        self.deadline = self.now + message.number if message.number else None
        return f"{message.text}!"

    def fail(self, message: Any) -> None:
        self.raise_planned(message.text)

    def raise_planned(self, text: str) -> None:
        if text in self.failures:
            failure = self.failures[text]()
            raise failure

    @loop_callback
    def arrived(self, text: str) -> None:
        self.poke(Poke(text=text, number=1))
        self.raise_planned(text)

    def handle_timeout(self, now: float) -> None:
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.emit(Poked(text="rang"))

    def next_deadline(self) -> float | None:
        return self.deadline


class Subject:
    """A bell on one of the runtimes, driven the same way on both."""

    def __init__(self, runtime: str, **failures: Callable[[], BaseException]) -> None:
        self.io = ManualIo()
        self.recording = RecordingContext(self.io)
        self.life = RecordingLife()
        self.runtime = LoopRuntime(self.io) if runtime == "loop" else ThreadingRuntime(self.io)
        self.ref: ConcernRef = self.runtime.start(Bell, self.recording.context(), failures, life=self.life)

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.recording.emitted]  # type: ignore[attr-defined]

    @property
    def bell(self) -> Bell:
        actor = self.ref._actor_weakref()
        assert actor is not None
        assert isinstance(actor.concern, Bell)
        return actor.concern

    def wait(self, condition: Callable[[], bool]) -> None:
        self.io.run_until_true(condition)

    def settle(self) -> None:
        """Wait until everything told so far was handled."""
        if self.ref.is_alive():
            future = self.ref.ask(Poke(text="settled"), block=False)
            self.io.run_until_idle()
            future.get(timeout=10)
            self.io.run_until_idle()

    def end(self) -> None:
        request_stop(self.ref)
        self.wait(lambda: "ended" in self.life.events)


@pytest.fixture(params=["loop", "threading"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Subject]]:
    subjects: list[Subject] = []

    def start_one(**failures: Callable[[], BaseException]) -> Subject:
        subjects.append(Subject(request.param, **failures))
        return subjects[-1]

    yield start_one
    for subject in subjects:
        subject.end()
    registered = pykka.ActorRegistry.get_all()
    assert not [subject for subject in subjects if subject.ref in registered]


Start = Callable[..., Subject]


def test_a_message_reaches_its_handler_and_the_answer_whoever_asked(start: Start) -> None:
    subject = start()
    future = subject.ref.ask(Poke(text="hello"), block=False)
    subject.io.run_until_idle()
    assert future.get(timeout=10) == "hello!"
    assert subject.texts == ["hello"]


def test_an_unknown_message_ends_the_actor_as_a_bug(start: Start) -> None:
    subject = start()
    subject.ref.tell(Keyless())
    subject.wait(lambda: "ended" in subject.life.events)
    assert isinstance(subject.life.failure, LocalProtocolError)
    assert "Keyless" in str(subject.life.failure)


def test_a_deadline_is_told_once_when_it_is_due(start: Start) -> None:
    subject = start()
    subject.ref.tell(Poke(text="a", number=5))
    subject.settle()
    subject.ref.tell(Poke(text="b", number=5))
    subject.wait(lambda: "b" in subject.texts)
    subject.wait(lambda: subject.io.next_deadline() == 1005.0)
    subject.io.advance(4.9)
    assert "rang" not in subject.texts
    subject.io.advance(0.1)
    subject.wait(lambda: "rang" in subject.texts)
    subject.io.advance(60)
    assert subject.texts.count("rang") == 1


def test_a_normal_stop_cleans_up_once_behind_the_waiting_messages(start: Start) -> None:
    subject = start()
    subject.ref.tell(Poke(text="last"))
    request_stop(subject.ref)
    request_stop(subject.ref)
    subject.wait(lambda: "ended" in subject.life.events)
    assert subject.texts == ["last", "stopped"]
    assert subject.life.events == ["created", "started", "ended"]
    assert subject.life.failure is None


FAILURES = [ValueError, asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit]


@pytest.mark.parametrize("error", FAILURES)
def test_whatever_a_handler_raises_ends_that_actor_alone(start: Start, error: type[BaseException]) -> None:
    bystander = start()
    subject = start(boom=error)
    subject.ref.tell(Fail(text="boom"))
    subject.wait(lambda: "ended" in subject.life.events)
    failure = subject.life.failure
    assert failure is not None
    if issubclass(error, Exception):
        assert isinstance(failure, error)
    else:
        assert isinstance(failure, HandlerInterruptedError)
        assert isinstance(failure.__cause__, error)
    assert subject.texts == ["stopped"]
    assert [entry["event"] for entry in subject.recording.logs.entries] == ["bell.actor_failed"]
    bystander.settle()
    assert bystander.ref.is_alive()


@pytest.mark.parametrize("error", FAILURES)
def test_a_failing_start_is_reported_and_cleaned_up(start: Start, error: type[BaseException]) -> None:
    subject = start(on_start=error)
    subject.wait(lambda: "ended" in subject.life.events)
    assert subject.life.events == ["created", "ended"]
    assert subject.texts == ["stopped"]
    assert not subject.ref.is_alive()


@pytest.mark.parametrize("error", FAILURES)
def test_a_failing_clean_up_is_logged_and_not_repeated(start: Start, error: type[BaseException]) -> None:
    subject = start(on_stop=error)
    subject.end()
    assert subject.texts == ["stopped"]
    assert subject.life.failure is None
    assert [entry["event"] for entry in subject.recording.logs.entries] == ["bell.clean_up_failed"]


def test_a_cut_off_actor_cleans_up_and_answers_whoever_asked(start: Start) -> None:
    subject = start()
    subject.settle()
    if isinstance(subject.runtime, ThreadingRuntime):
        # The thread waits for a message: it notices behind the next one.
        cut_off(subject.ref)
        subject.ref.actor_inbox.put(pykka._envelope.Envelope(Poke(text="noticed")))
        subject.wait(lambda: "ended" in subject.life.events)
        assert subject.texts[-1] == "stopped"
        return
    future = subject.ref.ask(Poke(text="late"), block=False)
    cut_off(subject.ref)
    subject.wait(lambda: "ended" in subject.life.events)
    assert subject.texts == ["settled", "stopped"]
    with pytest.raises(pykka.ActorDeadError):
        future.get(timeout=10)


def test_a_callback_counts_as_a_message(start: Start) -> None:
    subject = start()
    subject.bell.arrived("datagram")
    subject.wait(lambda: "datagram" in subject.texts)
    subject.wait(lambda: subject.io.next_deadline() is not None)
    subject.io.advance(1)
    subject.wait(lambda: "rang" in subject.texts)


def test_a_failing_callback_ends_the_actor_and_no_callback_follows(start: Start) -> None:
    subject = start(bad=asyncio.CancelledError)
    concern = subject.bell
    concern.arrived("bad")
    subject.wait(lambda: "ended" in subject.life.events)
    concern.arrived("later")
    subject.io.run_until_idle()
    assert subject.texts == ["bad", "stopped"]
    assert isinstance(subject.life.failure, HandlerInterruptedError)


def test_a_failure_under_ask_goes_to_the_asker_and_the_actor_lives(start: Start) -> None:
    subject = start(boom=ValueError)
    future = subject.ref.ask(Fail(text="boom"), block=False)
    subject.io.run_until_idle()
    with pytest.raises(ValueError, match=r"^$"):
        future.get(timeout=10)
    subject.settle()
    assert subject.ref.is_alive()


def test_statistics_count_what_was_handled(start: Start) -> None:
    subject = start()
    for _ in range(3):
        subject.ref.tell(Poke(text="x"))
    subject.settle()
    subject.wait(lambda: subject.ref.statistics.handled == 5)
    assert subject.ref.statistics.busy_s == subject.ref.statistics.longest_s == 0.0
    assert subject.ref.inbox_depth() == 0


def test_order_holds_for_each_of_four_sending_threads(start: Start) -> None:
    subject = start()
    count = 2_000

    def send(sender: int) -> None:
        for number in range(1, count + 1):
            subject.ref.tell(Poke(text=str(sender), number=number))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    subject.wait(lambda: len(subject.recording.emitted) == 4 * count)
    for thread in threads:
        thread.join()
    received: dict[str, list[int]] = {str(sender): [] for sender in range(4)}
    for message in subject.recording.emitted:
        received[message.text].append(message.number)  # type: ignore[attr-defined]
    assert all(numbers == list(range(1, count + 1)) for numbers in received.values())


def test_a_dispatch_table_that_names_no_method_is_refused() -> None:
    with pytest.raises(TypeError, match="'missing' for Poke"):
        type("Broken", (Concern,), {"handlers": {Poke: "missing"}})


def test_a_function_is_a_handler_too() -> None:
    def poke(concern: Concern, message: Any) -> None:
        concern.emit(Poked(text=message.text))

    plain = type("Plain", (Concern,), {"name": "plain", "handlers": {Poke: poke}, "emits": (Poked,)})
    harness: ActorHarness[Any] = actor_harness(plain)
    harness.tell(Poke(text="x"))
    assert harness.take_emitted() == [Poked(text="x")]
    harness.stop()


def test_the_harness_refuses_a_message_that_is_not_declared() -> None:
    shy = type("Shy", (Bell,), {"name": "shy", "emits": ()})
    harness: ActorHarness[Any] = actor_harness(shy)
    harness.tell(Poke(text="x"))
    with pytest.raises(AssertionError, match=r"shy emits \['Poked'\] undeclared"):
        harness.take_emitted()
    harness.stop()
