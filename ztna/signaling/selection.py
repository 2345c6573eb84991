"""Which intermediates a node attaches to.

A connector attaches to all of them, so that any agent finds it. An agent attaches to the first that works:
it moves on, in the order of its configuration, when one is lost or does not answer in time, and stays where
it got to until that one fails too. Once all of them have failed in a row it pauses between its moves, while
the one in use keeps trying by itself, so that a deployment which is down is not dialled in circles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

from ztna.signaling.backoff import SUCCESS_AFTER_S, Backoff

# An attachment takes about two round trips; one that has not come in this time has lost a race worth losing,
# and the next intermediate is tried. Only used when there is a next one.
ATTACH_PATIENCE_S = 3.0


class SelectionState(Enum):
    """What an agent does with the intermediate in use."""

    TRYING = "trying"
    ATTACHED = "attached"
    PAUSING = "pausing"


@dataclass(frozen=True, slots=True)
class UseIntermediate:
    """Connect the leg and attach; keep trying."""

    intermediate_id: str


@dataclass(frozen=True, slots=True)
class LeaveIntermediate:
    """Detach and close the leg; harmless where neither exists."""

    intermediate_id: str


SelectionEffect = UseIntermediate | LeaveIntermediate


class IntermediateSelector:
    """Keeps a node attached, to one intermediate or to all."""

    def __init__(self, intermediate_ids: Sequence[str], random: Random, *, use_all: bool) -> None:
        self._ids = tuple(intermediate_ids)
        self._use_all = use_all
        self._backoff = Backoff(random)
        self._state = SelectionState.TRYING
        self._current = 0
        self._failures = 0  # in a row
        self._attached_at = 0.0
        self._deadline: float | None = None
        self._effects: list[SelectionEffect] = []

    @property
    def state(self) -> SelectionState:
        """What an agent does with the intermediate in use."""
        return self._state

    def start(self, now: float) -> None:
        """Use the first intermediate, or all of them.

        An agent leaves the others: whoever selected before a crash may have been attached to one.
        """
        if self._use_all:
            self._effects.extend(UseIntermediate(name) for name in self._ids)
            return
        self._effects.extend(LeaveIntermediate(name) for name in self._ids[1:])
        self._use(now)

    def handle_attached(self, intermediate_id: str, now: float) -> None:
        """Stay where the attachment stands."""
        if self._is_current(intermediate_id) and self._state is not SelectionState.ATTACHED:
            self._state = SelectionState.ATTACHED
            self._attached_at = now
            self._deadline = None
            self._backoff.handle_connected(now)

    def handle_detached(self, intermediate_id: str, now: float) -> None:
        """Move on when the one in use was lost or could not be had."""
        if self._is_current(intermediate_id) and self._state is not SelectionState.PAUSING:
            self._fail(now)

    def handle_timeout(self, now: float) -> None:
        """Move on when the one in use did not answer in time, or the pause is over."""
        if self._deadline is None or now < self._deadline:
            return
        if self._state is SelectionState.PAUSING:
            self._move_on(now)
        else:
            self._fail(now)

    def next_deadline(self) -> float | None:
        """When patience with the intermediate in use ends, or the pause."""
        return self._deadline

    def drain(self) -> list[SelectionEffect]:
        """Hand over what to do, in order."""
        effects, self._effects = self._effects, []
        return effects

    def _is_current(self, intermediate_id: str) -> bool:
        return not self._use_all and intermediate_id == self._ids[self._current]

    def _use(self, now: float) -> None:
        self._state = SelectionState.TRYING
        self._deadline = now + ATTACH_PATIENCE_S if len(self._ids) > 1 else None
        self._effects.append(UseIntermediate(self._ids[self._current]))

    def _fail(self, now: float) -> None:
        # One that takes everybody in and drops them at once has not worked.
        if self._state is SelectionState.ATTACHED and now - self._attached_at >= SUCCESS_AFTER_S:
            self._failures = 0
        self._failures += 1
        self._backoff.handle_lost(now, is_clean=False)
        if len(self._ids) == 1:
            self._state = SelectionState.TRYING  # it keeps trying by itself
        elif self._failures % len(self._ids):
            self._move_on(now)
        else:
            self._state = SelectionState.PAUSING
            self._deadline = now + self._backoff.next_delay_s(now)

    def _move_on(self, now: float) -> None:
        self._effects.append(LeaveIntermediate(self._ids[self._current]))
        self._current = (self._current + 1) % len(self._ids)
        self._use(now)
