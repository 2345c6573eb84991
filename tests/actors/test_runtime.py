"""The loop runtime by itself: fairness, threads, the asyncio loop, futures; and the timers."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any, ClassVar

import pykka
import pytest

from actors.base import Concern, Context
from actors.loop_asyncio import AsyncioScheduler
from actors.runtime import MAX_MESSAGES_PER_RUN, MIN_RUNS_PER_TURN, LoopFuture, LoopRuntime, request_stop
from actors.timers import DeadlineTimer, ForeignThreadTimer
from tests.actors.messages import Poke, Poked
from tests.manual_io import ManualIo, ManualScheduler, RecordingContext, RecordingLife, actor_harness


class Relay(Concern):
    """Emits what it hears, and passes it on to the next one."""

    name: ClassVar[str] = "relay"
    handlers: ClassVar[Any] = {Poke: "poke"}
    emits: ClassVar[Any] = (Poked,)

    def __init__(self, context: Context, name: str = "", following: Any = None) -> None:
        super().__init__(context)
        self.text = name
        self.following = following

    def poke(self, message: Any) -> None:
        self.emit(Poked(text=self.text, number=message.number))
        if self.following is not None:
            self.following.tell(message)


class Turns:
    """A scheduler whose turns the test takes one by one."""

    def __init__(self) -> None:
        self.io = ManualIo()
        self.recording = RecordingContext(self.io)
        self.runtime = LoopRuntime(self.io)

    def take(self) -> None:
        self.io._ready.popleft()()

    def texts(self) -> list[str]:
        return [message.text for message in self.recording.emitted]  # type: ignore[attr-defined]


def test_a_busy_actor_lets_its_neighbour_run_after_its_share() -> None:
    turns = Turns()
    busy = turns.runtime.start(Relay, turns.recording.context(), "busy")
    neighbour = turns.runtime.start(Relay, turns.recording.context(), "neighbour")
    for number in range(MAX_MESSAGES_PER_RUN + 10):
        busy.tell(Poke(number=number))
    neighbour.tell(Poke())
    turns.io.run_until_idle()
    assert turns.texts().index("neighbour") == MAX_MESSAGES_PER_RUN
    assert len(turns.texts()) == MAX_MESSAGES_PER_RUN + 11
    for ref in (busy, neighbour):
        request_stop(ref)
    turns.io.run_until_idle()


def test_a_message_crosses_several_actors_in_one_turn_and_a_bounded_number() -> None:
    turns = Turns()
    refs: list[Any] = []
    for number in range(MIN_RUNS_PER_TURN + 1):
        following = refs[-1] if refs else None
        refs.append(turns.runtime.start(Relay, turns.recording.context(), str(number), following))
    refs[-1].tell(Poke())
    turns.take()
    assert len(turns.texts()) == MIN_RUNS_PER_TURN
    turns.take()
    assert len(turns.texts()) == MIN_RUNS_PER_TURN + 1
    for ref in refs:
        request_stop(ref)
    turns.io.run_until_idle()


def test_a_start_from_another_thread_runs_on_the_loop_thread() -> None:
    io = ManualIo()
    threads: list[int] = []

    class Where(Relay):
        def on_start(self) -> None:
            threads.append(threading.get_ident())

    life = RecordingLife()
    runtime = LoopRuntime(io)
    context = RecordingContext(io).context()
    refs: list[Any] = []
    thread = threading.Thread(target=lambda: refs.append(runtime.start(Where, context, life=life)))
    thread.start()
    thread.join()
    assert life.events == ["created"]
    io.run_until_idle()
    assert threads == [threading.get_ident()]
    request_stop(refs[0])
    io.run_until_idle()
    assert life.events == ["created", "started", "ended"]


def test_waiting_on_the_loop_thread_raises_instead_of_hanging() -> None:
    harness = actor_harness(Relay)
    with pytest.raises(RuntimeError, match="would never end"):
        harness.ref.ask(Poke(), timeout=1)
    with pytest.raises(RuntimeError, match="would never end"):
        harness.ref.stop()
    harness.io.run_until_idle()
    assert not harness.is_alive


def test_a_future_with_a_result_is_read_on_the_loop_thread() -> None:
    future: LoopFuture[int] = LoopFuture(ManualScheduler())
    future.set(7)
    assert future.get() == 7


def test_a_dead_actor_answers_dead_and_is_let_go() -> None:
    harness = actor_harness(Relay)
    concern = weakref.ref(harness.concern)
    inbox = harness.ref.actor_inbox
    harness.stop()
    future: LoopFuture[Any] = LoopFuture()
    inbox.put(pykka._envelope.Envelope(Poke(), reply_to=future))
    with pytest.raises(pykka.ActorDeadError):
        future.get(timeout=0)
    harness._concerns.clear()
    gc.collect()
    assert concern() is None


def test_a_callback_within_a_handler_fails_the_handler() -> None:
    class Eager(Relay):
        def poke(self, message: Any) -> None:
            self.host.enter(self.refuse)
            raise AssertionError("not reached")

        def refuse(self) -> None:
            raise OSError("no buffer")

    harness = actor_harness(Eager)
    harness.tell(Poke())
    assert isinstance(harness.failure, OSError)
    assert harness.life.events == ["created", "started", "ended"]


async def _asyncio_run(threads: int, count: int) -> list[int]:
    loop = asyncio.get_running_loop()
    io: Any = ManualIo()
    recording = RecordingContext(io)
    runtime = LoopRuntime(AsyncioScheduler(loop))
    done = asyncio.Event()
    received: list[int] = []

    class Sink(Relay):
        def poke(self, message: Any) -> None:
            received.append(message.number)
            if len(received) == threads * count:
                done.set()

    life = RecordingLife()
    ref = runtime.start(Sink, recording.context(), life=life)

    def send(sender: int) -> None:
        for number in range(count):
            ref.tell(Poke(number=sender * count + number))

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(threads)]
    for sender in senders:
        sender.start()
    async with asyncio.timeout(60):
        await done.wait()
    for sender in senders:
        sender.join()
    request_stop(ref)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert life.events == ["created", "started", "ended"]
    return received


def test_an_asyncio_loop_keeps_the_order_of_four_threads() -> None:
    count = 5_000
    received = asyncio.run(_asyncio_run(4, count))
    for sender in range(4):
        assert [n for n in received if n // count == sender] == list(
            range(sender * count, (sender + 1) * count)
        )


def test_an_asyncio_scheduler_calls_at_the_time_and_drops_calls_after_the_loop() -> None:
    schedulers: list[AsyncioScheduler] = []

    async def main() -> None:
        scheduler = AsyncioScheduler(asyncio.get_running_loop())
        schedulers.append(scheduler)
        assert scheduler.is_loop_thread()
        assert not await asyncio.to_thread(scheduler.is_loop_thread)
        called = asyncio.Event()
        scheduler.call_at(scheduler.time() + 60, called.set).cancel()
        scheduler.call_at(scheduler.time() + 0.001, called.set)
        async with asyncio.timeout(10):
            await called.wait()
        order: list[int] = []
        scheduler.call_soon(lambda: order.append(1))
        scheduler.call_soon_threadsafe(lambda: order.append(2))
        await asyncio.sleep(0)
        assert order == [1, 2]

    asyncio.run(main())
    schedulers[0].call_soon_threadsafe(lambda: None)


class Rings:
    """A timer and how often it rang; each ring leaves the inbox when `take` is called."""

    def __init__(self, timer_class: Any) -> None:
        self.scheduler = ManualScheduler(100.0)
        self.count = 0
        self.timer = timer_class(self.scheduler, self._ring)

    def _ring(self) -> None:
        self.count += 1

    def arm(self, deadline: float | None) -> None:
        self.timer.arm(deadline)
        self.scheduler.run_until_idle()


@pytest.fixture(params=[DeadlineTimer, ForeignThreadTimer])
def rings(request: pytest.FixtureRequest) -> Rings:
    return Rings(request.param)


def test_a_deadline_that_moves_later_rings_once_at_its_last_time(rings: Rings) -> None:
    rings.arm(101.0)
    rings.arm(103.0)
    rings.scheduler.run_until(102.9)
    assert rings.count == 0
    rings.scheduler.run_until(103.0)
    assert rings.count == 1


def test_a_deadline_that_moves_earlier_rings_early(rings: Rings) -> None:
    rings.arm(103.0)
    rings.arm(101.0)
    rings.scheduler.run_until(101.0)
    assert rings.count == 1


def test_a_withdrawn_deadline_does_not_ring(rings: Rings) -> None:
    rings.arm(101.0)
    rings.arm(None)
    rings.scheduler.run_until(110.0)
    assert rings.count == 0


def test_a_timer_rings_not_again_before_its_message_was_taken(rings: Rings) -> None:
    rings.arm(101.0)
    rings.scheduler.run_until(102.0)
    rings.arm(101.5)
    rings.scheduler.run_until(110.0)
    assert rings.count == 1
    rings.timer.delivered()
    rings.arm(101.5)
    assert rings.count == 2


def test_the_same_deadline_again_rings_again_once_taken(rings: Rings) -> None:
    rings.arm(101.0)
    rings.scheduler.run_until(101.0)
    rings.timer.delivered()
    rings.arm(101.0)
    assert rings.count == 2


def test_a_cancelled_timer_stays_silent(rings: Rings) -> None:
    rings.arm(101.0)
    rings.timer.cancel()
    rings.timer.cancel()
    rings.scheduler.run_until(110.0)
    assert rings.count == 0
