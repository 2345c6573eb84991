"""What an actor of this project is: a concern, hosted by a pykka actor.

A `Concern` is the part that people write: a dispatch table from message type to handler, and a few hooks. It
does not know what runs it. A `HostedActor` is the pykka actor around it and holds the only loop there is:
stamp the time, dispatch, re-arm the timer. `actors/runtime.py` has the two kinds of host.

pykka's failure rules are kept (a failure under `tell` ends the actor, one under `ask` goes to the asker),
with three gaps closed: a failing `on_start` is reported like any failure, `Concern.on_stop` runs exactly once
however the actor ends, and a `BaseException` out of a handler (`asyncio.CancelledError`, `SystemExit`) is an
ordinary failure of that one actor, where pykka would stop every actor of the process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pykka
from google.protobuf.message import Message

from actors.timers import ActorTimer, TimerFired
from ztna.errors import AuthenticationError, ConfigError, LocalProtocolError, describe

if TYPE_CHECKING:
    from types import TracebackType

    from structlog.typing import FilteringBoundLogger

    from actors.io import Io

P = ParamSpec("P")
ConcernT = TypeVar("ConcernT", bound="Concern")
Handler = Callable[[Any, Any], Any]

EXPECTED_START_FAILURES: Final = (OSError, ConfigError, AuthenticationError)
"""What `Concern.on_start` may raise for people to mend: one line of words, where a bug gets its traceback."""


@dataclass(frozen=True, slots=True)
class Context:
    """What whoever starts an actor hands to it.

    Attributes:
        io: the way to the outside world.
        emit: routes a message to whoever the wiring table names.
        log: logger with the actor's name and scope already bound.
        key: the scope: session id as hex, intermediate id, or empty for the node itself.
    """

    io: Io
    emit: Callable[[Message], None]
    log: FilteringBoundLogger
    key: str = ""


class Host(Protocol):
    """What a concern may ask of the actor around it."""

    def tell_self(self, message: object) -> None:
        """Put a private message into the actor's own inbox; dropped once the actor has ended."""

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as if it were a message of this actor."""


class Concern:
    """One concern of a daemon: owns its state, reacts to messages, emits messages.

    Subclasses set `name`, `handlers` and `emits`. `handlers` maps a message type (protobuf, or a private
    Python type that the concern only tells itself) to a method's name or to a function `(self, message)`. A
    handler's return value is the answer to an `ask` from outside the actors, otherwise ignored.
    """

    name: ClassVar[str] = ""
    handlers: ClassVar[Mapping[type[Any], str | Handler]] = {}
    emits: ClassVar[tuple[type[Message], ...]] = ()
    # Handled, and yet routed in some of its daemons only: in the others nobody has reason to say it.
    optional: ClassVar[frozenset[type[Message]]] = frozenset()
    dispatch: ClassVar[Mapping[type[Any], Handler]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Resolve the dispatch table. Raises `TypeError` when it names a method that does not exist."""
        super().__init_subclass__(**kwargs)
        table: dict[type[Any], Handler] = {TimerFired: _timer_fired}
        for message_type, handler in cls.handlers.items():
            if isinstance(handler, str):
                method = getattr(cls, handler, None)
                if method is None:
                    raise TypeError(f"{cls.__name__} has no handler {handler!r} for {message_type.__name__}")
                table[message_type] = method
            else:
                table[message_type] = handler
        cls.dispatch = table

    def __init__(self, context: Context) -> None:
        """May run on any thread: acquire resources in `on_start`."""
        self.io = context.io
        self.emit = context.emit
        self.log = context.log
        self.key = context.key
        self.now = context.io.time()
        """Monotonic seconds, stamped once per message, timeout or callback."""
        self.host: Host
        """The actor around this concern; set before `on_start`."""

    @classmethod
    def wired_messages(cls) -> frozenset[type[Message]]:
        """The protobuf types of the dispatch table: what the wiring table must route here."""
        return frozenset(t for t in cls.handlers if issubclass(t, Message))

    def on_start(self) -> None:
        """Acquire resources. Whatever it raises ends the actor and is reported as a failure to start."""

    def on_stop(self) -> None:
        """Release everything, also after a failure, also after a partial `on_start`. Called exactly once."""

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that is due; harmless when none is."""

    def next_deadline(self) -> float | None:
        """Monotonic seconds of the earliest pending deadline, or None; asked after every message."""
        return None


def _timer_fired(concern: Concern, _message: TimerFired) -> None:
    concern.handle_timeout(concern.now)


def loop_callback(
    method: Callable[Concatenate[ConcernT, P], None],
) -> Callable[Concatenate[ConcernT, P], None]:
    """Make a concern's method fit to be called by `Io` (a socket's or a stream's callback).

    The call counts as a message of the actor: `now` is stamped and the timer re-armed, an exception ends this
    actor alone, and nothing runs once the actor has ended.
    """

    def call(self: ConcernT, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.host.enter(functools.partial(method, self, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class HandlerInterruptedError(Exception):
    """A handler raised something that is no `Exception`; the original is the cause."""


class Statistics:
    """Cheap counters of one incarnation of an actor, written by its own thread.

    Attributes:
        handled: messages, timeouts and callbacks handled, `on_start` included.
        busy_s: seconds spent in handlers.
        longest_s: seconds of the longest one.
    """

    __slots__ = ("busy_s", "handled", "longest_s")

    def __init__(self) -> None:
        self.handled = 0
        self.busy_s = 0.0
        self.longest_s = 0.0


class ConcernRef(pykka.ActorRef["HostedActor"]):
    """A pykka reference that also knows the statistics of its actor."""

    def __init__(self, actor: HostedActor) -> None:
        super().__init__(actor)
        self.concern_name = actor.concern.name
        self.statistics = actor.statistics

    def inbox_depth(self) -> int:
        """Messages waiting, approximately."""
        inbox: Any = self.actor_inbox
        return int(inbox.qsize())


class Life(Protocol):
    """Whoever wants to know how an actor fares. Called on the actor's own thread, except `created`."""

    def created(self, ref: ConcernRef, /) -> None:
        """The actor exists and its inbox collects messages; `on_start` comes next."""

    def started(self, ref: ConcernRef, /) -> None:
        """`on_start` returned."""

    def ended(self, ref: ConcernRef, failure: BaseException | None, /) -> None:
        """The actor is over and has cleaned up. Without `started` before, it failed to start. Comes once."""


class Unobserved:
    """The life of an actor that nobody watches."""

    def created(self, ref: ConcernRef, /) -> None:
        """Nobody asks."""

    def started(self, ref: ConcernRef, /) -> None:
        """Nobody asks."""

    def ended(self, ref: ConcernRef, failure: BaseException | None, /) -> None:
        """Nobody asks."""


class HostedActor(pykka.Actor):
    """The pykka actor around one concern; made concrete by `actors/runtime.py`.

    Overrides pykka hooks by name (`_handle_receive`, `_handle_failure`, `_actor_loop_setup`,
    `_actor_loop_teardown`), which is why pykka is pinned exactly.
    """

    def __init__(
        self, build: Callable[..., Concern], context: Context, args: tuple[Any, ...], life: Life
    ) -> None:
        """Build the concern; whatever its constructor raises goes to the caller of `start`."""
        super().__init__()
        self.concern = build(context, *args)
        self.concern.host = self
        self.statistics = Statistics()
        self._dispatch = type(self.concern).dispatch
        self._log = context.log
        self._time = context.io.time
        self._life = life
        self._is_inside = False
        self._is_finished = False
        self._has_started = False
        self._timer = self._create_timer()
        self._concern_ref = ConcernRef(self)
        self._actor_ref = self._concern_ref
        life.created(self._concern_ref)

    def _create_timer(self) -> ActorTimer:
        raise NotImplementedError

    def tell_self(self, message: object) -> None:
        """Put a private message into the actor's own inbox; dropped once the actor has ended."""
        if not self.actor_stopped.is_set():
            self._actor_ref.tell(message)

    def enter(self, function: Callable[..., object], *args: object) -> None:
        """Run `function` as if it were a message of this actor."""
        raise NotImplementedError

    def _perform(self, function: Callable[..., Any], *args: Any) -> Any:
        concern = self.concern
        self._is_inside = True
        started = concern.now = self._time()
        try:
            result = function(*args)
            self._timer.arm(concern.next_deadline())
        except Exception:
            raise
        except BaseException as error:
            raise HandlerInterruptedError(f"{type(error).__name__} in {concern.name}") from error
        else:
            return result
        finally:
            self._is_inside = False
            elapsed = self._time() - started
            statistics = self.statistics
            statistics.handled += 1
            statistics.busy_s += elapsed
            if elapsed > statistics.longest_s:  # noqa: PLR1730 - max() costs twice as much, once per message
                statistics.longest_s = elapsed

    def _handle_receive(self, message: Any) -> Any:
        handler = self._dispatch.get(type(message))
        if handler is None:
            return super()._handle_receive(message)
        if handler is _timer_fired:
            self._timer.delivered()
        return self._perform(handler, self.concern, message)

    def on_receive(self, message: Any) -> Any:
        """Refuse a message that is in no dispatch table: a bug of the wiring. Raises `LocalProtocolError`."""
        raise LocalProtocolError(f"{self.concern.name} does not handle {type(message).__name__}")

    def _actor_loop_setup(self) -> None:
        super()._actor_loop_setup()
        if not self.actor_stopped.is_set():
            self._has_started = True
            self._life.started(self._concern_ref)

    def on_start(self) -> None:
        """Start the concern."""
        self._perform(self.concern.on_start)

    def on_stop(self) -> None:
        """Stop the concern."""
        self._finish(None)

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the actor: pykka brings every unhandled exception here, that of `on_start` included."""
        pykka.ActorRegistry.unregister(self._actor_ref)
        self.actor_stopped.set()
        if isinstance(exception_value, EXPECTED_START_FAILURES) and not self._has_started:
            # An address in use, say: for people to mend, and its message says how.
            self._log.error(f"{self.concern.name}.start_failed", error=describe(exception_value))
        else:
            self._log.error(
                f"{self.concern.name}.actor_failed",
                exc_info=(exception_type, exception_value, traceback),
            )
        self._finish(exception_value)

    def _finish(self, failure: BaseException | None) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        self._timer.cancel()
        self.concern.now = self._time()
        try:
            self.concern.on_stop()
        except BaseException:  # noqa: BLE001 - nothing that clean-up raises may reach pykka's stop-all
            self._log.exception(f"{self.concern.name}.clean_up_failed")
        self._life.ended(self._concern_ref, failure)

    def _actor_loop_teardown(self) -> None:
        # An actor that was cut off by `actor_stopped` alone passed neither `on_stop` nor a failure.
        if not self._is_finished:
            pykka.ActorRegistry.unregister(self._actor_ref)
            self._finish(None)
        super()._actor_loop_teardown()
