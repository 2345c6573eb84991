"""Actors by name: `udp_socket`, `relay_leg/<intermediate id>`, `quic_session/<session id as hex>`.

A name outlives the actor behind it, so that whoever tells a restarted actor finds the new one. A message to
a name without a living actor is dropped and counted: the sender could do nothing about it.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pykka

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.base import ConcernRef


def actor_name(concern: str, key: str = "") -> str:
    """The directory name of a concern in the scope `key`."""
    return f"{concern}/{key}" if key else concern


class Directory:
    """Maps names to living actors. Safe to use from any thread."""

    def __init__(self) -> None:
        self._refs: dict[str, ConcernRef] = {}
        self._dropped: Counter[str] = Counter()
        self._dropped_lock = threading.Lock()

    def register(self, name: str, ref: ConcernRef) -> None:
        """Let `name` mean `ref` from now on."""
        self._refs[name] = ref

    def unregister(self, name: str, ref: ConcernRef) -> None:
        """Forget `name`, unless it already means a successor of `ref`."""
        if self._refs.get(name) is ref:
            del self._refs[name]

    def find(self, name: str) -> ConcernRef | None:
        """The actor behind `name`, if any."""
        return self._refs.get(name)

    def names(self) -> list[str]:
        """Every name in use, sorted."""
        return sorted(self._refs)

    def tell(self, name: str, message: object) -> bool:
        """Tell the actor behind `name`; False when there is none, and the message is dropped and counted."""
        ref = self._refs.get(name)
        if ref is not None:
            try:
                ref.tell(message)
            except pykka.ActorDeadError:
                pass
            else:
                return True
        concern = name.partition("/")[0]
        with self._dropped_lock:
            self._dropped[concern] += 1
        return False

    @property
    def dropped(self) -> Mapping[str, int]:
        """Messages dropped so far, by concern."""
        with self._dropped_lock:
            return dict(self._dropped)
