"""An ordered group of actors that live and die by rest_for_one.

When one ends unexpectedly, it and all that follow it in the list are stopped in reverse order and started
again in order, since whatever follows a dead actor may hold on to what it was. Everything here runs on the
loop thread and never waits: each stop is answered by the actor's end, or by a timer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

from actors.directory import Directory, actor_name
from actors.runtime import Runtime, cut_off, request_stop
from ztna.errors import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from actors.base import Concern, ConcernRef, Context
    from actors.io import Scheduler, Timer

CUT_OFF_GRACE_S: Final = 1.0
"""Seconds for an actor that ignored its stop timeout to clean up behind its current message; then it is left
behind.

A loop actor needs one turn of the loop; a thread that blocks for longer cannot be ended by anybody.
"""


class Restart(Enum):
    """What an unexpected end of a child leads to."""

    PERMANENT = "permanent"
    """Started again, whatever ended it."""
    TRANSIENT = "transient"
    """Started again after a failure; a stop of its own accord is final."""
    TEMPORARY = "temporary"
    """Never started again."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How one child is started and what its end means.

    Attributes:
        name: the concern's name; the directory name adds the key of the scope.
        build: makes the concern; usually its class, or a `functools.partial` of it.
        restart: what an unexpected end leads to.
        stop_timeout_s: seconds between the request to stop and the actor being cut off.
        ends_scope: its end is the end of the whole scope (for children of a session).
        after: the child of the node whose restart makes this one stale (for children of a session).
        runtime: where it runs, if not where the others do.
        is_alone: nothing depends on it, wherever it stands in the list: only it is restarted.
        restart_from: a child before this one that holds what only this one could take back; when this one
            fails, the group is restarted from there.
    """

    name: str
    build: Callable[[Context], Concern]
    restart: Restart = Restart.PERMANENT
    stop_timeout_s: float = 5.0
    ends_scope: bool = False
    after: str = ""
    runtime: Runtime | None = None
    is_alone: bool = False
    restart_from: str = ""


@dataclass(frozen=True, slots=True)
class RestartLimit:
    """At most `count` restarts within `period_s` seconds; one more and the group gives up."""

    count: int = 5
    period_s: float = 30.0


class ChildState(Enum):
    """Where a child is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    ABANDONED = "abandoned"


_ALIVE: Final = (ChildState.STARTING, ChildState.RUNNING)


class _Phase(Enum):
    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every group of a daemon shares."""

    scheduler: Scheduler
    runtime: Runtime
    directory: Directory
    make_context: Callable[[str, str], Context]
    """Called with the concern's name and the key of its scope, for each start."""
    log: FilteringBoundLogger


@dataclass(slots=True, eq=False)
class Child:
    """One place in a group, and whoever fills it now."""

    spec: ChildSpec
    state: ChildState = ChildState.WAITING
    restarts: int = 0
    failure: BaseException | None = None
    incarnation: Incarnation | None = None
    timer: Timer | None = None

    @property
    def ref(self) -> ConcernRef | None:
        """The actor that fills this place, or filled it last."""
        return self.incarnation.ref if self.incarnation else None


@dataclass(slots=True, eq=False)
class Incarnation:
    """The life of one actor: registers its name and brings its news to the loop thread."""

    group: ChildGroup
    child: Child
    name: str
    ref: ConcernRef | None = None
    has_started: bool = False
    has_ended: bool = False

    def created(self, ref: ConcernRef) -> None:
        """Make the actor known before `on_start`, so that it can be answered from its first message on."""
        self.ref = ref
        self.group.surroundings.directory.register(self.name, ref)

    def started(self, _ref: ConcernRef) -> None:
        """`on_start` returned."""
        self.has_started = True
        self._post(partial(self.group.child_started, self))

    def ended(self, ref: ConcernRef | None, failure: BaseException | None) -> None:
        """The actor is over. The reaction waits for a clean stack: this may run deep inside another actor."""
        self.has_ended = True
        if ref is not None:
            self.group.surroundings.directory.unregister(self.name, ref)
        self._post(partial(self.group.child_ended, self, failure))

    def _post(self, call: Callable[[], None]) -> None:
        scheduler = self.group.surroundings.scheduler
        if scheduler.is_loop_thread():
            scheduler.call_soon(call)
        else:
            scheduler.call_soon_threadsafe(call)


@dataclass(slots=True, eq=False)
class ChildGroup:
    """Starts `specs` in order and keeps them running until told to end, or until it gives up.

    A group that cannot start for the first time gives up at once.

    `on_running` is called after each start or restart with the names of the children that were started;
    `on_ended` is called once, with a reason fit to be a metric label.
    """

    surroundings: Surroundings
    key: str
    specs: Sequence[ChildSpec]
    limit: RestartLimit
    on_running: Callable[[list[str]], None]
    on_ended: Callable[[str], None]
    children: list[Child] = field(init=False)
    _phase: _Phase = field(init=False, default=_Phase.IDLE)
    _first: int = field(init=False, default=0)
    _next: int = field(init=False, default=0)
    _restart_times: deque[float] = field(init=False, default_factory=deque)
    _end_reason: str = field(init=False, default="")
    _has_run: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Give every spec its place."""
        self.children = [Child(spec) for spec in self.specs]

    @property
    def has_ended(self) -> bool:
        """Whether all children are down for good."""
        return self._phase is _Phase.ENDED

    def start(self) -> None:
        """Start all children; those on the loop thread have started when this returns."""
        self._phase = _Phase.STARTING
        self._start_next()

    def end(self, reason: str) -> None:
        """Stop all children in reverse order, then call `on_ended(reason)`. The first reason stays."""
        if self._phase in {_Phase.ENDING, _Phase.ENDED}:
            return
        self._phase = _Phase.ENDING
        self._end_reason = reason
        self._first = 0
        self._stop_next()

    def restart_after(self, names: Sequence[str]) -> None:
        """Restart what the node's children `names` make stale, and all that follows; no crash is counted."""
        stale = [index for index, child in enumerate(self.children) if child.spec.after in names]
        if stale:
            self._restart_from(stale[0], "node_restarted")

    def child_started(self, incarnation: Incarnation) -> None:
        """News of an incarnation."""
        child = incarnation.child
        if child.incarnation is incarnation and child.state is ChildState.STARTING:
            child.state = ChildState.RUNNING
            self._start_next()

    def child_ended(self, incarnation: Incarnation, failure: BaseException | None) -> None:
        """News of an incarnation."""
        child = incarnation.child
        if child.incarnation is not incarnation or child.state is ChildState.ABANDONED:
            return
        if child.timer is not None:
            child.timer.cancel()
            child.timer = None
        was_asked = child.state is ChildState.STOPPING
        child.state = ChildState.FAILED if failure else ChildState.STOPPED
        child.failure = failure or child.failure
        if was_asked or self._phase in {_Phase.ENDING, _Phase.ENDED}:
            self._stop_next()
        else:
            self._react(child, failure)

    def _react(self, child: Child, failure: BaseException | None) -> None:
        spec = child.spec
        if spec.ends_scope:
            self.end(f"{spec.name}_ended")
        elif spec.restart is Restart.PERMANENT or (spec.restart is Restart.TRANSIENT and failure is not None):
            if self._phase is _Phase.STARTING and not self._has_run and failure is not None:
                # What does not even start is configured wrongly; trying again would only repeat that.
                self.end(f"{spec.name} cannot start: {describe(failure)}")
            elif self._may_restart():
                child.restarts += 1
                if spec.is_alone and self._phase is not _Phase.STARTING:
                    self.surroundings.log.warning("supervisor.restarting_alone", child=spec.name)
                    self._start(child)
                    return
                first = spec.restart_from or spec.name
                index = next(i for i, each in enumerate(self.children) if each.spec.name == first)
                self._restart_from(index, f"{spec.name}_failed")
            else:
                self.surroundings.log.error("supervisor.gave_up", child=spec.name, key=self.key)
                self.end("too_many_restarts")
        elif self._phase is _Phase.STARTING:
            self._start_next()

    def _may_restart(self) -> bool:
        now = self.surroundings.scheduler.time()
        times = self._restart_times
        while times and times[0] <= now - self.limit.period_s:
            times.popleft()
        if len(times) >= self.limit.count:
            return False
        times.append(now)
        return True

    def _restart_from(self, index: int, reason: str) -> None:
        if self._phase in {_Phase.ENDING, _Phase.ENDED}:
            return
        if any(child.spec.ends_scope for child in self.children[index:]):
            self.end(reason)
            return
        self.surroundings.log.warning(
            "supervisor.restarting", first=self.children[index].spec.name, reason=reason, key=self.key
        )
        is_under_way = self._phase is _Phase.RESTARTING
        self._first = min(index, self._first) if is_under_way else index
        self._phase = _Phase.RESTARTING
        self._stop_next()

    def _stop_next(self) -> None:
        for child in reversed(self.children[self._first :]):
            if child.state is ChildState.STOPPING:
                return
            if child.state in _ALIVE and child.incarnation is not None and not child.incarnation.has_ended:
                self._stop(child)
                return
        if self._phase is _Phase.ENDING:
            self._phase = _Phase.ENDED
            self.on_ended(self._end_reason)
        elif self._phase is _Phase.RESTARTING:
            self._phase = _Phase.STARTING
            self._next = self._first
            self._start_next()

    def _stop(self, child: Child) -> None:
        child.state = ChildState.STOPPING
        scheduler = self.surroundings.scheduler
        child.timer = scheduler.call_at(
            scheduler.time() + child.spec.stop_timeout_s, partial(self._stop_timed_out, child)
        )
        if child.ref is not None:
            request_stop(child.ref)

    def _stop_timed_out(self, child: Child) -> None:
        self.surroundings.log.warning("supervisor.stop_timed_out", child=child.spec.name, key=self.key)
        if child.ref is not None:
            cut_off(child.ref)
        scheduler = self.surroundings.scheduler
        child.timer = scheduler.call_at(scheduler.time() + CUT_OFF_GRACE_S, partial(self._abandon, child))

    def _abandon(self, child: Child) -> None:
        self.surroundings.log.error("supervisor.child_abandoned", child=child.spec.name, key=self.key)
        child.state = ChildState.ABANDONED
        child.timer = None
        if child.incarnation is not None and child.ref is not None:
            self.surroundings.directory.unregister(child.incarnation.name, child.ref)
        self._stop_next()

    def _start_next(self) -> None:
        """Go on starting until a child fails, or has to be waited for (a thread of its own)."""
        while self._phase is _Phase.STARTING and self._next < len(self.children):
            child = self.children[self._next]
            if child.state is ChildState.STARTING:
                return
            if child.state is not ChildState.RUNNING and not self._is_over(child):
                self._start(child)
                if child.incarnation is not None and child.incarnation.has_ended:
                    return
                if child.incarnation is not None and child.incarnation.has_started:
                    child.state = ChildState.RUNNING
                continue
            self._next += 1
        if self._phase is _Phase.STARTING:
            self._phase = _Phase.RUNNING
            self._has_run = True
            self.on_running([child.spec.name for child in self.children[self._first :]])

    @staticmethod
    def _is_over(child: Child) -> bool:
        return child.spec.restart is Restart.TEMPORARY and child.incarnation is not None

    def _start(self, child: Child) -> None:
        spec = child.spec
        surroundings = self.surroundings
        incarnation = Incarnation(self, child, actor_name(spec.name, self.key))
        child.incarnation = incarnation
        child.state = ChildState.STARTING
        try:
            context = surroundings.make_context(spec.name, self.key)
            (spec.runtime or surroundings.runtime).start(spec.build, context, life=incarnation)
        except Exception as error:
            surroundings.log.exception("supervisor.start_failed", child=spec.name, key=self.key)
            incarnation.ended(incarnation.ref, error)
