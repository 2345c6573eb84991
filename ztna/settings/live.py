"""What a running daemon can take over from its configuration, and what needs a restart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from ztna.settings.daemons import DaemonSettings
from ztna.settings.document import KeyPath
from ztna.settings.keys import effective_values
from ztna.settings.values import DaemonKind

S = TypeVar("S", bound=DaemonSettings)

_EVERY_DAEMON: Final = ("log.level", "node.ca", "node.cert", "node.crl", "node.key")

LIVE_KEYS: Final[dict[DaemonKind, tuple[str, ...]]] = {
    DaemonKind.INTERMEDIATE: (*_EVERY_DAEMON, "offers", "policy"),
    DaemonKind.CONNECTOR: (*_EVERY_DAEMON, "services"),
    DaemonKind.AGENT: (*_EVERY_DAEMON, "services"),
}
"""Keys whose new value a daemon adopts without a restart; a list counts as a whole."""


@dataclass(frozen=True, slots=True)
class Change(Generic[S]):
    """What a fresh reading of the configuration comes to.

    Attributes:
        settings: the former ones with every live key of the fresh ones.
        applied: dotted keys that changed and are live, sorted.
        needs_restart: dotted keys that changed and are not, sorted.
    """

    settings: S
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def is_live(kind: DaemonKind, key: str) -> bool:
    """Whether the daemon adopts a new value of `key` while it runs."""
    return any(key == live or key.startswith(f"{live}.") for live in LIVE_KEYS[kind])


def take_over(former: S, fresh: S) -> Change[S]:
    """Compare two readings of one daemon's configuration and join them."""
    changed = _changed_keys(former, fresh)
    applied = {key for key in changed if is_live(former.kind, key)}
    settings = former
    for key in LIVE_KEYS[former.kind]:
        settings = _with_key(settings, fresh, key.split("."))
    return Change(settings, tuple(sorted(applied)), tuple(sorted(changed - applied)))


def _changed_keys(former: DaemonSettings, fresh: DaemonSettings) -> set[str]:
    before, after = (dict(_keys(settings)) for settings in (former, fresh))
    absent = object()
    return {key for key in before.keys() | after.keys() if before.get(key, absent) != after.get(key, absent)}


def _keys(settings: DaemonSettings) -> Iterable[tuple[str, list[tuple[KeyPath, Any]]]]:
    """Every key with what is in it; the elements of a list of sections belong to the list's own key."""
    keys: dict[str, list[tuple[KeyPath, Any]]] = {}
    for path, value in effective_values(settings):
        end = next((index for index, name in enumerate(path) if name.isdigit()), len(path))
        keys.setdefault(".".join(path[:end]), []).append((path[end:], value))
    return keys.items()


def _with_key(former: Any, fresh: Any, path: list[str]) -> Any:
    assert isinstance(former, BaseModel)  # noqa: S101 - `LIVE_KEYS` names keys of the models
    name, rest = path[0], path[1:]
    value = getattr(fresh, name)
    if rest:
        value = _with_key(getattr(former, name), value, rest)
    return former.model_copy(update={name: value})
