"""One concern on real sockets: its actor on an asyncio loop, its messages kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import structlog
from google.protobuf.message import Message
from structlog.testing import LogCapture

from actors.base import Concern, ConcernRef, Context
from actors.runtime import LoopRuntime, request_stop
from tests.actors.io_worlds import RealWorld

ConcernT = TypeVar("ConcernT", bound=Concern)
MessageT = TypeVar("MessageT", bound=Message)


class RealActor(Generic[ConcernT]):
    """An actor in the left process of a `RealWorld`."""

    def __init__(self, world: RealWorld, build: Callable[[Context], ConcernT]) -> None:
        self.world = world
        self.emitted: list[Message] = []
        self.failure: BaseException | None = None
        self.has_ended = False
        self.on_emit: Callable[[Message], None] = lambda _message: None
        self._concerns: list[ConcernT] = []
        log: Any = structlog.wrap_logger(structlog.PrintLogger(), processors=[LogCapture()])
        context = Context(io=world.left, emit=self._emit, log=log, key="")
        # The loop has to run for its thread to be known as the loop's.
        self._started: ConcernRef | None = None

        def start() -> None:
            self._started = LoopRuntime(world.left).start(self._build(build), context, life=self)
            world.changed()

        world.loop.call_soon(start)
        world.wait(lambda: self._started is not None, "the actor to start")

    def created(self, ref: ConcernRef) -> None:
        """Nothing to note."""

    def started(self, ref: ConcernRef) -> None:
        """Nothing to note."""

    def ended(self, ref: ConcernRef, failure: BaseException | None) -> None:
        self.failure, self.has_ended = failure, True
        self.world.changed()

    @property
    def concern(self) -> ConcernT:
        return self._concerns[0]

    def tell(self, *messages: Message) -> None:
        for message in messages:
            cast("ConcernRef", self._started).tell(message)

    def of(self, kind: type[MessageT]) -> list[MessageT]:
        return [message for message in self.emitted if isinstance(message, kind)]

    def wait_for(self, kind: type[MessageT], count: int = 1) -> list[MessageT]:
        """Wait until so many of a kind were emitted since the start."""
        self.world.wait(lambda: len(self.of(kind)) >= count, f"{count} {kind.__name__}")
        return self.of(kind)

    def stop(self) -> None:
        request_stop(cast("ConcernRef", self._started))
        self.world.wait(lambda: self.has_ended, "the actor to end")
        assert self.failure is None

    def _build(self, build: Callable[[Context], ConcernT]) -> Callable[[Context], ConcernT]:
        def keep(context: Context) -> ConcernT:
            self._concerns.append(build(context))
            return self._concerns[-1]

        return keep

    def _emit(self, message: Message) -> None:
        self.emitted.append(message)
        self.on_emit(message)
        self.world.changed()
