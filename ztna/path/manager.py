"""Which path the sealed packets of one session take.

A session knows its relayed paths by the intermediate that carries them. The latest one to come up wins, at
both ends: the agent alone decides where it attaches, and a channel is bound at both parties at the same time,
so the latest channel is the agent's latest choice. A path that comes back after an outage is marked as
resumed, so that the end-to-end connection forgets its backed-off probe timer (without that, a 15 s outage
costs another 12 s).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# A session is carried by the intermediates a node is attached to; a deployment has a handful.
MAX_RELAY_PATHS = 16


class PathKind(Enum):
    """How sealed packets travel."""

    NONE = "none"
    RELAY = "relay"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class RelayPath:
    """A channel on the leg to one intermediate; sizes in bytes of one sealed packet."""

    intermediate_id: str
    max_packet_bytes: int


@dataclass(frozen=True, slots=True)
class PathSelected:
    """Packets go this way from now on; `relay` is None when there is no path at all."""

    relay: RelayPath | None
    is_resumed: bool

    @property
    def kind(self) -> PathKind:
        """Kind of the selected path."""
        return PathKind.RELAY if self.relay else PathKind.NONE


class PathManager:
    """Selects one path of one session, for one end."""

    def __init__(self) -> None:
        self._relays: dict[str, RelayPath] = {}  # in the order in which they came up
        self._selected: RelayPath | None = None
        self._had_path = False
        self._effects: list[PathSelected] = []

    @property
    def selected(self) -> RelayPath | None:
        """The selected path, None while there is none."""
        return self._selected

    def handle_relay_up(self, intermediate_id: str, max_packet_bytes: int) -> None:
        """Take note that a channel on this leg works; also when a fresh channel replaces a former one."""
        self._relays.pop(intermediate_id, None)
        if len(self._relays) >= MAX_RELAY_PATHS:
            del self._relays[next(iter(self._relays))]
        self._relays[intermediate_id] = RelayPath(intermediate_id, max_packet_bytes)
        self._select(is_fresh=True)

    def handle_relay_down(self, intermediate_id: str) -> None:
        """Take note that the leg or the channel is gone."""
        if self._relays.pop(intermediate_id, None) is not None:
            self._select(is_fresh=False)

    def drain(self) -> list[PathSelected]:
        """Hand over what changed, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _select(self, *, is_fresh: bool) -> None:
        latest = next(reversed(self._relays.values()), None)
        if latest == self._selected and not is_fresh:
            return
        self._effects.append(PathSelected(latest, is_resumed=latest is not None and self._had_path))
        self._selected = latest
        self._had_path = self._had_path or latest is not None
