"""The two runtimes of a concern: many actors on one loop thread, or one thread per actor.

`LoopRuntime` is what daemons use: a `tell` appends to the actor's inbox and puts the actor on one ready list,
which one callback of the loop works off. Per-sender order is kept, `tell` works from any thread, and no actor
runs for more than `MAX_MESSAGES_PER_RUN` messages while others wait. `ThreadingRuntime` is for work that
blocks, and for tests that prove that a concern does not know its runtime.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar, cast

import pykka
from pykka import messages

from actors.base import Concern, ConcernRef, Context, HostedActor, Life, Unobserved
from actors.timers import TIMER_FIRED, ActorTimer, DeadlineTimer, ForeignThreadTimer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykka._envelope import Envelope

    from actors.io import Scheduler

T = TypeVar("T")

MAX_MESSAGES_PER_RUN: Final = 64
"""Messages of one actor before the next has its turn: what a busy actor may cost its neighbours at once."""

MIN_RUNS_PER_TURN: Final = 16
"""Actor runs before the loop looks at its sockets again, when no more were ready at first.

A message that crosses a handful of actors arrives in the same turn, without a system call per hop.
"""

_UNBOUNDED: Final = sys.maxsize


class Runtime(Protocol):
    """Starts concerns."""

    def start(
        self, build: Callable[..., Concern], context: Context, *args: Any, life: Life | None = None
    ) -> ConcernRef:
        """Start the concern that `build(context, *args)` makes (a concern class, or a factory).

        What the constructor raises is raised here; what `on_start` raises goes to `life.ended`.
        """


class _InboxDrainedError(Exception):
    """The inbox is empty or the turn is over: leave pykka's loop, which would block."""


class LoopInbox:
    """An inbox whose `get` never blocks; `put` may be called from any thread."""

    __slots__ = ("_budget", "_envelopes", "_is_scheduled", "_wake")

    def __init__(self) -> None:
        self._envelopes: deque[Envelope[Any]] = deque()
        self._budget = 0
        # Until the actor opens the inbox it counts as scheduled, so that early messages wait without a
        # wake-up.
        self._is_scheduled = True
        self._wake: Callable[[], None] = self._refuse

    def put(self, envelope: Envelope[Any], /) -> None:
        """Append; wake the actor unless its run is coming anyway."""
        self._envelopes.append(envelope)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._wake()

    def get(self) -> Envelope[Any]:
        """Take the oldest envelope; leaves pykka's loop when there is none or the run has had its share."""
        if self._budget <= 0 or not self._envelopes:
            raise _InboxDrainedError
        self._budget -= 1
        return self._envelopes.popleft()

    def empty(self) -> bool:
        """Whether no envelope waits."""
        return not self._envelopes

    def qsize(self) -> int:
        """Envelopes waiting."""
        return len(self._envelopes)

    def open(self, wake: Callable[[], None]) -> None:
        """Accept wake-ups from now on, and wake for what is there already."""
        self._wake = wake
        self.end_run()

    def begin_run(self, budget: int) -> None:
        """Let `get` hand out up to `budget` envelopes."""
        self._budget = budget

    def end_run(self) -> None:
        """Ask for another run if envelopes are left."""
        # Cleared before the last look, so that no thread appends unseen behind it.
        self._is_scheduled = False
        if self._envelopes:
            self._is_scheduled = True
            self._wake()

    def close(self) -> None:
        """Answer whoever still asks; also lets go of the actor, which `wake` refers to."""
        self._wake = self._refuse
        self._refuse()

    def _refuse(self) -> None:
        self._is_scheduled = False
        while self._envelopes:
            envelope = self._envelopes.popleft()
            if envelope.reply_to is not None:
                error = pykka.ActorDeadError("the actor ended before the message came")
                envelope.reply_to.set_exception((type(error), error, None))


class LoopFuture(pykka.ThreadingFuture[T]):
    """A future that refuses to block the thread that would have to resolve it."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        super().__init__()
        self._scheduler = scheduler

    def get(self, *, timeout: float | None = None) -> Any:
        """Wait for the result. Raises `RuntimeError` on the loop thread while there is none."""
        if (
            self._result is None
            and self._get_hook is None
            and self._scheduler is not None
            and self._scheduler.is_loop_thread()
        ):
            raise RuntimeError("waiting for a loop actor on the loop thread would never end")
        return super().get(timeout=timeout)


class LoopActor(HostedActor):
    """A hosted concern on the loop thread. `LoopRuntime` derives its own class, which knows the runtime."""

    runtime: ClassVar[LoopRuntime]
    actor_inbox: LoopInbox

    @staticmethod
    def _create_actor_inbox() -> LoopInbox:
        return LoopInbox()

    @classmethod
    def _create_future(cls) -> pykka.Future[Any]:
        return LoopFuture(cls.runtime.scheduler)

    def _create_timer(self) -> ActorTimer:
        return DeadlineTimer(self.runtime.scheduler, self._deliver_timer)

    def _deliver_timer(self) -> None:
        self.tell_self(TIMER_FIRED)

    def _start_actor_loop(self) -> None:
        # On the loop thread an actor is ready, or has failed, when `start` returns: what is told next is not
        # lost.
        if self.runtime.scheduler.is_loop_thread():
            self._set_up()
        else:
            self.runtime.submit(self._set_up)

    def _set_up(self) -> None:
        self._actor_loop_setup()
        if self.actor_stopped.is_set():
            self._tear_down()
        else:
            self.actor_inbox.open(self._wake)

    def _wake(self) -> None:
        self.runtime.submit(self._run)

    def _run(self) -> None:
        inbox = self.actor_inbox
        inbox.begin_run(MAX_MESSAGES_PER_RUN)
        try:
            self._actor_loop_running()
        except _InboxDrainedError:
            inbox.end_run()
        else:
            self._tear_down()

    def _tear_down(self) -> None:
        self.actor_inbox.begin_run(_UNBOUNDED)
        self._actor_loop_teardown()
        self.actor_inbox.close()

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as if it were a message of this actor. Only on the loop thread."""
        if self.actor_stopped.is_set():
            return
        if self._is_inside:
            # An I/O call of the handler called back at once: its failure is the handler's.
            function(*args)
            return
        try:
            self._perform(function, *args)
        except Exception:  # noqa: BLE001 - what a message may raise, a callback may raise
            self._handle_failure(*sys.exc_info())
            self._wake()


class LoopRuntime:
    """Runs every actor on the thread of `scheduler`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._ready: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self._actor_class = cast("type[LoopActor]", type("LoopActor", (LoopActor,), {"runtime": self}))

    def start(
        self, build: Callable[..., Concern], context: Context, *args: Any, life: Life | None = None
    ) -> ConcernRef:
        """Start a concern; called on the loop thread, it has started (or failed) on return."""
        return cast("ConcernRef", self._actor_class.start(build, context, args, life or Unobserved()))

    def submit(self, run: Callable[[], None]) -> None:
        """Put a run on the ready list, from any thread."""
        self._ready.append(run)
        if not self._is_scheduled:
            self._is_scheduled = True
            if self.scheduler.is_loop_thread():
                self.scheduler.call_soon(self._turn)
            else:
                self.scheduler.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        # Stays set while the turn lasts: runs that come up meanwhile are taken here or by the turn that
        # follows. Only the last look at the list happens with the flag cleared, so that no thread's
        # submission is missed.
        ready = self._ready
        try:
            for _ in range(max(len(ready), MIN_RUNS_PER_TURN)):
                if not ready:
                    break
                ready.popleft()()
        finally:
            self._is_scheduled = False
            if ready:
                self._is_scheduled = True
                self.scheduler.call_soon(self._turn)


class ThreadActor(HostedActor, pykka.ThreadingActor):
    """A hosted concern with a thread of its own."""

    runtime: ClassVar[ThreadingRuntime]

    def _create_timer(self) -> ActorTimer:
        return ForeignThreadTimer(self.runtime.scheduler, self._deliver_timer)

    def _deliver_timer(self) -> None:
        self.tell_self(TIMER_FIRED)

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as a message of this actor, on its own thread."""
        self.tell_self(_Call(function, args))

    def _handle_receive(self, message: Any) -> Any:
        if type(message) is _Call:
            return self._perform(message.function, *message.args)
        return super()._handle_receive(message)


class _Call:
    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        self.function = function
        self.args = args


class ThreadingRuntime:
    """Runs each actor on a thread of its own; `scheduler` keeps the time for all of them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._actor_class = cast("type[ThreadActor]", type("ThreadActor", (ThreadActor,), {"runtime": self}))

    def start(
        self, build: Callable[..., Concern], context: Context, *args: Any, life: Life | None = None
    ) -> ConcernRef:
        """Start a concern; `life` learns when it is ready."""
        return cast("ConcernRef", self._actor_class.start(build, context, args, life or Unobserved()))


def request_stop(ref: ConcernRef) -> None:
    """Ask an actor to stop behind the messages it already has; harmless when it is dead."""
    if ref.is_alive():
        ref.tell(messages._ActorStop())  # noqa: SLF001 - `ref.stop(block=False)` also makes two futures


def cut_off(ref: ConcernRef) -> None:
    """End an actor that was asked to stop and did not: it cleans up when its current message returns."""
    ref.actor_stopped.set()
