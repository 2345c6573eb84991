"""Keeps the actors of a daemon running: the node's own, and one group of actors per session.

The node's children are one rest_for_one group. Each session is a group of its own (a scope): whatever
happens in it ends at worst that session. A restart of a child of the node also restarts, in every scope,
what its specs declare to be stale then (`ChildSpec.after`), which for a child with `ends_scope` means the
end of the session.

A plain object on the loop thread, not an actor: nothing it supervises can stop it, its news come as loop
callbacks in order, and `start_scope` has made the session's actors reachable when it returns, so that the
message that opened the session can be emitted right behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from actors.child_group import ChildGroup, ChildSpec, ChildState, RestartLimit, Surroundings
from actors.directory import actor_name
from ztna.errors import LocalProtocolError

if TYPE_CHECKING:
    from actors.child_group import Child


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """One child, for `status` and metrics. The counters are those of its present incarnation.

    Attributes:
        failure: the type of what ended it last, or empty.
        inbox_depth: messages waiting.
        handled: messages, timeouts and callbacks handled.
        busy_s: seconds spent in handlers.
        longest_s: seconds of the longest one.
    """

    name: str
    concern: str
    key: str
    state: ChildState
    restarts: int
    failure: str = ""
    inbox_depth: int = 0
    handled: int = 0
    busy_s: float = 0.0
    longest_s: float = 0.0


def _ignore(_value: object, _other: object = None) -> None:
    """Stands in for a callback that nobody gave."""


class Supervisor:
    """Starts, restarts and stops actors. Every method is called on the loop thread and returns at once."""

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        on_give_up: Callable[[str, BaseException | None], None],
        on_scope_ended: Callable[[str, str], None] = _ignore,
        limit: RestartLimit | None = None,
    ) -> None:
        """Prepare; nothing runs before `start`.

        `on_give_up(reason, failure)` comes once everything has stopped, because a child of the node could
        not start or was restarted too often; `failure` is the last one: the process should exit with an
        error. `on_scope_ended(key, reason)` comes for every scope, however it ended.
        """
        self._surroundings = surroundings
        self._on_give_up = on_give_up
        self._on_scope_ended = on_scope_ended
        self._limit = limit or RestartLimit()
        self._node: ChildGroup | None = None
        self._scopes: dict[str, ChildGroup] = {}
        self._scope_waiters: dict[str, list[Callable[[], None]]] = {}
        self._stop_waiters: list[Callable[[], None]] = []
        self._is_started = False
        self._is_stopping = False

    def start(self, specs: Sequence[ChildSpec], on_started: Callable[[], None] | None = None) -> None:
        """Start the node's children in order; `on_started` comes once, when all run for the first time."""
        if self._node is not None:
            raise LocalProtocolError("the supervisor was started before")
        self._node = ChildGroup(
            self._surroundings,
            "",
            specs,
            self._limit,
            on_running=partial(self._node_running, on_started),
            on_ended=self._node_ended,
        )
        self._node.start()

    def start_scope(self, key: str, specs: Sequence[ChildSpec]) -> None:
        """Start the actors of one session. Raises `LocalProtocolError` for a key in use or while stopping."""
        if self._is_stopping or not key or key in self._scopes:
            raise LocalProtocolError(f"cannot start scope {key!r}")
        group = ChildGroup(
            self._surroundings,
            key,
            specs,
            self._limit,
            on_running=_ignore,
            on_ended=partial(self._scope_ended, key),
        )
        self._scopes[key] = group
        group.start()

    def stop_scope(self, key: str, on_stopped: Callable[[], None] | None = None) -> None:
        """Stop the actors of one session in reverse order; harmless when there are none."""
        group = self._scopes.get(key)
        if on_stopped is not None:
            if group is None:
                on_stopped()
                return
            self._scope_waiters.setdefault(key, []).append(on_stopped)
        if group is not None:
            group.end("stopped")

    def stop(self, on_stopped: Callable[[], None] | None = None) -> None:
        """Stop every scope, then the node's children in reverse order, each within its stop timeout."""
        if on_stopped is not None:
            self._stop_waiters.append(on_stopped)
        if not self._is_stopping:
            self._is_stopping = True
            for group in list(self._scopes.values()):
                group.end("stopped")
        self._stop_node_last()

    def scopes(self) -> list[str]:
        """Keys of the scopes that run or are stopping, oldest first."""
        return list(self._scopes)

    def children(self) -> list[ChildStatus]:
        """Every child: the node's in start order, then those of each scope."""
        groups = ([self._node] if self._node else []) + list(self._scopes.values())
        return [_status(group.key, child) for group in groups for child in group.children]

    def _node_running(self, on_started: Callable[[], None] | None, names: list[str]) -> None:
        if not self._is_started:
            self._is_started = True
            if on_started is not None:
                on_started()
            return
        for group in list(self._scopes.values()):
            group.restart_after(names)

    def _scope_ended(self, key: str, reason: str) -> None:
        del self._scopes[key]
        for on_stopped in self._scope_waiters.pop(key, []):
            on_stopped()
        self._on_scope_ended(key, reason)
        if self._is_stopping:
            self._stop_node_last()

    def _stop_node_last(self) -> None:
        if self._scopes:
            return
        if self._node is not None and not self._node.has_ended:
            self._node.end("stopped")
            return
        waiters, self._stop_waiters = self._stop_waiters, []
        for on_stopped in waiters:
            on_stopped()

    def _node_ended(self, reason: str) -> None:
        if self._is_stopping:
            self._stop_node_last()
        else:
            failures = [child.failure for child in self._node.children if child.failure] if self._node else []
            self.stop(partial(self._on_give_up, reason, failures[-1] if failures else None))


def _status(key: str, child: Child) -> ChildStatus:
    name = actor_name(child.spec.name, key)
    failure = type(child.failure).__name__ if child.failure is not None else ""
    ref = child.ref
    if ref is None:
        return ChildStatus(name, child.spec.name, key, child.state, child.restarts, failure)
    statistics = ref.statistics
    return ChildStatus(
        name,
        child.spec.name,
        key,
        child.state,
        child.restarts,
        failure,
        inbox_depth=ref.inbox_depth(),
        handled=statistics.handled,
        busy_s=statistics.busy_s,
        longest_s=statistics.longest_s,
    )
