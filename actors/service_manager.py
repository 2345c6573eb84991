"""Tells the service manager that started the daemon how it fares: the `sd_notify(3)` protocol of systemd.

A plain object of the process, not an actor. Without `NOTIFY_SOCKET` in the environment it does nothing, and
nothing that goes wrong with that socket reaches the daemon. Written here because it is one datagram per fact,
while the packages that wrap it are either bindings of libsystemd or have had no release for years.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Final, Protocol

MIN_WATCHDOG_USEC: Final = 1_000
"""A shorter one would have the loop do nothing else: a mistake of the unit file, which counts as absent."""

MAX_STATUS_CHARACTERS: Final = 200
"""What `systemctl status` shows on one line of a wide terminal; peers choose parts of some sentences."""


class Clock(Protocol):
    """What the watchdog needs of the loop."""

    def time(self) -> float:
        """Monotonic seconds, of the clock that systemd uses (CLOCK_MONOTONIC)."""

    def call_at(self, when: float, callback: Callable[[], None], /) -> object:
        """Run `callback` at `when`."""


class ServiceManager:
    """Whoever started the daemon and wants to know how it fares."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """`environ` has what `sd_notify(3)` and `sd_watchdog_enabled(3)` name; `pid` is our own."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._status = ""
        self._is_started = False
        self.watchdog_s = _watchdog_s(environ, pid) if self._address else None
        """Seconds of silence after which the daemon is killed, or None: nobody watches."""

    def ready(self) -> None:
        """Everything runs and listens; also the end of a reload. Says nothing of the network."""
        self._is_started = True
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line of words to whoever asks for the unit's status; equal ones are sent once."""
        text = " ".join(text.split())[:MAX_STATUS_CHARACTERS]
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def reloading(self, now: float) -> None:
        """A reload begins; `now` is monotonic seconds. `ready` ends it."""
        # Before the first READY a RELOADING would count as the end of the start.
        if self._is_started:
            self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}")

    def stopping(self) -> None:
        """The drain begins."""
        self._send("STOPPING=1", "STATUS=draining")

    def keep_watchdog_quiet(self, clock: Clock) -> None:
        """Say twice per interval that the loop turns, for as long as it does."""
        if self.watchdog_s is None:
            return
        interval_s = self.watchdog_s / 2

        def feed() -> None:
            self._send("WATCHDOG=1")
            clock.call_at(clock.time() + interval_s, feed)

        feed()

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifier:
                notifier.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            # Nobody listens, or does not keep up: what it misses is its loss, never the daemon's.
            return


def _address(text: str) -> str:
    """The socket's address; a leading `@` stands for the abstract namespace (`unix(7)`)."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None  # meant for the process that started us
    text = environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or int(text) < MIN_WATCHDOG_USEC:
        return None
    return int(text) / 1e6
