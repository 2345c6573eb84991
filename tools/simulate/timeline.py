"""One line per event of a run: time, place, path, what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simnet.network import TraceEntry
from tests.simnet.watch import format_line
from ztna.access.identity import Role

if TYPE_CHECKING:
    from tools.simulate.deployment import Deployment

LINES_BEFORE_VIOLATION = 120


@dataclass(frozen=True, slots=True)
class Event:
    """What is no packet: a fault, an application, a violation."""

    time: float
    place: str
    what: str


class Timeline:
    """Collects what was noted, and joins it with packets and log lines."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, time: float, place: str, what: str) -> None:
        """Something happened."""
        self.events.append(Event(time, place, what))

    def lines(self, world: Deployment, started_at: float) -> list[str]:
        """Everything in the order of time; local traffic of a host left out."""
        places = _places(world)
        found: list[tuple[float, int, str]] = []
        for number, event in enumerate(self.events):
            found.append((event.time, number, _line(event.time - started_at, event.place, "", event.what)))
        for number, entry in enumerate(world.network.trace):
            line = _packet(entry, places, started_at)
            if line:
                found.append((entry.time, number, line))
        for number, log in enumerate(world.log.lines):
            found.append((log["time"], number, _log(log, started_at)))
        return [line for _, _, line in sorted(found, key=lambda each: each[:2])]


def _places(world: Deployment) -> dict[str, tuple[str, str]]:
    """Who has an address, and what kind of path leads there."""
    found: dict[str, tuple[str, str]] = {}
    for name, place in world.places.items():
        for nat in place.nats:
            found[nat.address] = (nat.name, "direct")
        if name in world.daemons:
            for address in world.daemons[name].host.addresses:
                found[address] = (name, "direct")
    for name, host in world.service_hosts.items():
        for address in host.addresses:
            found[address] = (f"{name}-service", "site")
    for daemon in world.daemons.values():
        if daemon.role is Role.INTERMEDIATE:
            for address in daemon.host.addresses:
                found[address] = (daemon.id, "relay")
    return found


def _packet(entry: TraceEntry, places: dict[str, tuple[str, str]], started_at: float) -> str:
    source, destination = entry.source, entry.destination
    if source.host.startswith("127."):
        return ""
    one, one_path = places.get(source.host, (source.host, "direct"))
    other, other_path = places.get(destination.host, (destination.host, "direct"))
    kinds = {one_path, other_path}
    path = "site" if "site" in kinds else "relay" if "relay" in kinds else "direct"
    what = f"{entry.what}, {entry.size} B to {other}:{destination.port}"
    return _line(entry.time - started_at, f"{one}:{source.port}", path, what)


def _log(line: dict[str, Any], started_at: float) -> str:
    rest = format_line(line)[12:].lstrip()
    place, _, what = rest.partition(" ")
    return _line(line["time"] - started_at, place, "log", what.strip())


def _line(time: float, place: str, path: str, what: str) -> str:
    return f"{time:10.6f}  {place:<24} {path:<7} {what}"


def tail(lines: list[str], count: int = LINES_BEFORE_VIOLATION) -> Iterable[str]:
    """The last lines, and how many are left out."""
    if len(lines) > count:
        yield f"… {len(lines) - count} earlier lines: --trace prints all"
    yield from lines[-count:]
