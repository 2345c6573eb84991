"""What the status board asks of the daemon that it shows, and tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from actors.supervisor import ChildStatus
from ztna.errors import ConfigError
from ztna.settings.live import Change


def _no_reload() -> NoReturn:
    raise ConfigError("this daemon has no files to read again")


def _ignore(_reason: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Validity:
    """Until when the node's files hold, in unix seconds; 0: not known, or there is none.

    Attributes:
        certificate_ends_at: its own certificate.
        ca_ends_at: the first of its CAs to end.
        list_due_at: when the CA owes a newer revocation list.
    """

    certificate_ends_at: float = 0.0
    ca_ends_at: float = 0.0
    list_due_at: float = 0.0


@dataclass(frozen=True, slots=True)
class DaemonHooks:
    """Handed to the board when it starts.

    Attributes:
        children: every actor, as the supervisor sees it.
        reload_files: read configuration and credentials again; raises `ConfigError` or `AuthenticationError`.
        on_readiness: told why the daemon is not ready, in words, at each change; empty when it is.
        validity: until when certificates and revocation list hold.
        handshake_s: processor time that handshakes took so far, seconds.
        judgement_s: of it the judgement of streams, which does not wait.
        garbage_pauses: how often everything was searched for garbage.
        garbage_pause_s: processor time that took, seconds.
    """

    children: Callable[[], Sequence[ChildStatus]]
    reload_files: Callable[[], Change[Any]] = _no_reload
    on_readiness: Callable[[str], None] = _ignore
    validity: Callable[[], Validity] = Validity
    handshake_s: Callable[[], float] = float
    judgement_s: Callable[[], float] = float
    garbage_pauses: Callable[[], int] = int
    garbage_pause_s: Callable[[], float] = float
