"""Which intermediates a node attaches to.

A connector attaches to all of them, so that any agent finds it. An agent attaches to the first that works:
it moves on, in the order of its configuration, when one is lost or does not answer in time, and stays where
it got to until that one fails too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# An attachment takes about two round trips; one that has not come in this time has lost a race worth losing,
# and the next intermediate is tried. Only used when there is a next one.
ATTACH_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class UseIntermediate:
    """Connect the leg and attach; keep trying."""

    intermediate_id: str


@dataclass(frozen=True, slots=True)
class LeaveIntermediate:
    """Detach and close the leg."""

    intermediate_id: str


SelectionEffect = UseIntermediate | LeaveIntermediate


class IntermediateSelector:
    """Keeps a node attached, to one intermediate or to all."""

    def __init__(self, intermediate_ids: Sequence[str], *, use_all: bool) -> None:
        self._ids = tuple(intermediate_ids)
        self._use_all = use_all
        self._current = 0
        self._deadline: float | None = None
        self._effects: list[SelectionEffect] = []

    def start(self, now: float) -> None:
        """Use the first intermediate, or all of them."""
        if self._use_all:
            self._effects.extend(UseIntermediate(name) for name in self._ids)
            return
        self._use(now)

    def handle_attached(self, intermediate_id: str) -> None:
        """Stay where the attachment stands."""
        if not self._use_all and intermediate_id == self._ids[self._current]:
            self._deadline = None

    def handle_detached(self, intermediate_id: str, now: float) -> None:
        """Move on when the one in use was lost or could not be had."""
        if not self._use_all and intermediate_id == self._ids[self._current]:
            self._move_on(now)

    def handle_timeout(self, now: float) -> None:
        """Move on when the one in use did not answer in time."""
        if self._deadline is not None and now >= self._deadline:
            self._move_on(now)

    def next_deadline(self) -> float | None:
        """When patience with the intermediate in use ends."""
        return self._deadline

    def drain(self) -> list[SelectionEffect]:
        """Hand over what to do, in order."""
        effects, self._effects = self._effects, []
        return effects

    def _use(self, now: float) -> None:
        self._deadline = now + ATTACH_PATIENCE_S if len(self._ids) > 1 else None
        self._effects.append(UseIntermediate(self._ids[self._current]))

    def _move_on(self, now: float) -> None:
        if len(self._ids) == 1:
            return  # it keeps trying by itself
        self._effects.append(LeaveIntermediate(self._ids[self._current]))
        self._current = (self._current + 1) % len(self._ids)
        self._use(now)
