"""Who hears whom: the shape of the one table of a daemon, and the router that follows it.

A row says that messages of one type go to one concern, in one scope. The scope tells how the receiver is
found: the node has one such actor, or one per intermediate (`message.intermediate_id`), or one per session
(`message.session_id`). The rows of each daemon are in `actors/topology.py`; docs/actors.md is drawn from
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message

from actors.base import Concern
from ztna.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable


class Scope(Enum):
    """How many actors of a concern a daemon has, and which field of a message selects one."""

    NODE = "node"
    INTERMEDIATE = "intermediate"
    SESSION = "session"


KEY_FIELD: Final = {Scope.INTERMEDIATE: "intermediate_id", Scope.SESSION: "session_id"}


@dataclass(frozen=True, slots=True)
class Row:
    """Messages of type `message` go to `receiver`.

    `is_external`: the message comes from outside the actors (the daemon, a test); no concern emits it.
    """

    message: type[Message]
    receiver: type[Concern]
    scope: Scope
    is_external: bool = False


@dataclass(frozen=True, slots=True)
class Wiring:
    """The table of one daemon."""

    daemon: str
    rows: Sequence[Row]

    @property
    def concerns(self) -> list[type[Concern]]:
        """Every receiver once, in the order of the table."""
        return list(dict.fromkeys(row.receiver for row in self.rows))

    def problems(self) -> list[str]:
        """Everything that makes the table untrue, in words; empty when it holds."""
        return [
            *self._duplicate_rows(),
            *self._scope_problems(),
            *self._handler_problems(),
            *self._emitter_problems(),
        ]

    def _duplicate_rows(self) -> list[str]:
        seen: set[tuple[str, str]] = set()
        problems = []
        for row in self.rows:
            pair = (row.message.DESCRIPTOR.full_name, row.receiver.name)
            if pair in seen:
                problems.append(f"{pair[0]} to {pair[1]} is listed twice")
            seen.add(pair)
        return problems

    def _scope_problems(self) -> list[str]:
        problems = []
        scopes: dict[type[Concern], Scope] = {}
        for row in self.rows:
            if scopes.setdefault(row.receiver, row.scope) is not row.scope:
                problems.append(f"{row.receiver.name} is listed in two scopes")
            field = KEY_FIELD.get(row.scope)
            if field is not None and field not in row.message.DESCRIPTOR.fields_by_name:
                problems.append(f"{row.message.DESCRIPTOR.full_name} has no field {field}")
        return problems

    def _handler_problems(self) -> list[str]:
        problems = []
        for concern in self.concerns:
            routed = {row.message for row in self.rows if row.receiver is concern}
            handled = concern.wired_messages()
            problems += [f"{concern.name} does not handle {name}" for name in _names(routed - handled)]
            problems += [
                f"nothing routes {name} to {concern.name}"
                for name in _names(handled - routed - concern.optional)
            ]
        return problems

    def _emitter_problems(self) -> list[str]:
        routed = {row.message for row in self.rows}
        external = {row.message for row in self.rows if row.is_external}
        emitted = {message for concern in self.concerns for message in concern.emits}
        return [
            *(f"{name} is emitted, yet has no row" for name in _names(emitted - routed)),
            *(f"{name} has a row, yet nobody emits it" for name in _names(routed - emitted - external)),
            *(f"{name} is emitted, yet its row says external" for name in _names(emitted & external)),
        ]


def _names(messages: set[type[Message]] | frozenset[type[Message]]) -> list[str]:
    return sorted(message.DESCRIPTOR.full_name for message in messages)


@dataclass(slots=True)
class _Route:
    """The receivers of one message type; keyed ones as name prefixes."""

    node: list[str]
    intermediate: list[str]
    session: list[str]


class Router:
    """Carries emitted messages to their receivers. `emit` may be called from any thread."""

    def __init__(self, wiring: Wiring, tell: Callable[[str, Any], object]) -> None:
        """`tell` is `Directory.tell`. Raises `LocalProtocolError` when the table is untrue."""
        problems = wiring.problems()
        if problems:
            raise LocalProtocolError(f"wiring of {wiring.daemon}: " + "; ".join(problems))
        self._tell = tell
        self._routes: dict[type[Message], _Route] = {}
        for row in wiring.rows:
            route = self._routes.setdefault(row.message, _Route([], [], []))
            if row.scope is Scope.NODE:
                route.node.append(row.receiver.name)
            elif row.scope is Scope.INTERMEDIATE:
                route.intermediate.append(row.receiver.name + "/")
            else:
                route.session.append(row.receiver.name + "/")

    def emit(self, message: Message) -> None:
        """Tell every receiver; keyed ones are skipped where the message leaves its key field empty.

        Raises `LocalProtocolError` for a message type that no row names.
        """
        route = self._routes.get(type(message))
        if route is None:
            raise LocalProtocolError(f"no row routes {message.DESCRIPTOR.full_name}")
        tell = self._tell
        keyed: Any = message
        for name in route.node:
            tell(name, message)
        if route.intermediate and (intermediate_id := keyed.intermediate_id):
            for prefix in route.intermediate:
                tell(prefix + intermediate_id, message)
        if route.session and (session_id := keyed.session_id):
            key = session_id.hex()
            for prefix in route.session:
                tell(prefix + key, message)
