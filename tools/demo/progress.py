"""What the demo knows while it runs, kept for whoever draws it."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ztna.v1 import control_pb2, types_pb2

RATE_WINDOW_S = 1.0
RATE_SAMPLE_S = 0.05

PROTOCOL_NAMES = {types_pb2.SERVICE_PROTOCOL_TCP: "tcp", types_pb2.SERVICE_PROTOCOL_UDP: "udp"}
ROLE_NAMES = {types_pb2.ROLE_AGENT: "agent", types_pb2.ROLE_CONNECTOR: "connector"}


@dataclass(slots=True)
class Transfer:
    """A download under way; `rate` is over the last second.

    `first_byte_s` counts from before the connect, `first_byte_at_s` since the epoch.
    """

    size: int
    received: int = 0
    first_byte_s: float | None = None
    first_byte_at_s: float | None = None
    _arrival_at: float | None = None
    _pause_s: float = 0.0
    _pause_end_at: float | None = None
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, received: int, now: float) -> None:
        """Take the bytes so far."""
        if self._arrival_at is not None and now - self._arrival_at > self._pause_s:
            self._pause_s, self._pause_end_at = now - self._arrival_at, now
        self._arrival_at = now
        self.received = received
        if self._samples and now - self._samples[-1][0] < RATE_SAMPLE_S:
            return
        self._samples.append((now, received))
        while now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()

    def forget_pauses(self) -> None:
        """Let `pause_end_at` be of pauses that end from now on."""
        self._pause_s, self._pause_end_at = 0.0, None

    @property
    def pause_end_at(self) -> float | None:
        """When the longest pause between two arrivals ended; None before the first."""
        return self._pause_end_at

    @property
    def rate(self) -> float:
        """Bytes per second, 0 before there are two samples."""
        samples = tuple(self._samples)
        if len(samples) < 2:
            return 0.0
        (since, before), (until, after) = samples[0], samples[-1]
        return (after - before) / (until - since)


@dataclass(slots=True)
class Step:
    """One line of the story; `at_s` counts from the start of the demo."""

    at_s: float
    text: str
    is_failure: bool = False


@dataclass(slots=True)
class Progress:
    """Steps done, the download, and the latest status of each daemon."""

    transfer: Transfer
    started_at: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)
    place: str = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_at


def newest_session(agent: control_pb2.DaemonStatus | None) -> control_pb2.SessionStatus | None:
    """The session an agent opened last, None before the first."""
    return agent.sessions[0] if agent is not None and agent.sessions else None


def registered_nodes(intermediate: control_pb2.DaemonStatus | None) -> list[str]:
    """Who is attached, such as `connector connector-1 (grpc)`; connectors first."""
    if intermediate is None:
        return []
    nodes = sorted(intermediate.nodes, key=lambda node: (-node.role, node.id))
    return [
        f"{ROLE_NAMES.get(node.role, 'node')} {node.id} ({node.carrier})"
        + ("" if node.is_leg_up else ", relay leg not up")
        for node in nodes
    ]


def registered_services(intermediate: control_pb2.DaemonStatus | None) -> list[str]:
    """What is offered, such as `files (tcp) at connector-1`."""
    if intermediate is None:
        return []
    return [
        f"{service.id} ({PROTOCOL_NAMES.get(service.protocol, '?')}) at {', '.join(service.connectors)}"
        for service in sorted(intermediate.registered_services, key=lambda service: service.id)
    ]


def path_text(session: control_pb2.SessionStatus) -> str:
    """The path of a session in words."""
    if session.via:
        return f"{session.path} via {session.via}"
    pair = session.direct_path.selected_pair
    if session.path != "direct" or not pair.HasField("remote"):
        return session.path
    return f"direct, to {pair.remote.address.host}:{pair.remote.address.port}"


def rtt_text(session: control_pb2.SessionStatus) -> str:
    """Round-trip times of both kinds of path."""
    figures = (("relay", session.direct_path.rtt_relay_ms), ("direct", session.direct_path.rtt_direct_ms))
    return ", ".join(f"{kind} {rtt_ms:.1f} ms" if rtt_ms else f"{kind} -" for kind, rtt_ms in figures)


def selected_at_s(log_path: Path, path: str) -> float | None:
    """When a node first selected a path, by its log, in seconds since the epoch; None: never."""
    for line in log_path.read_text(encoding="utf-8").splitlines():
        # What an interpreter says by itself is no JSON.
        if line.startswith("{") and '"path_manager.path_selected"' in line:
            entry = json.loads(line)
            if entry["path"] == path:
                return datetime.fromisoformat(entry["timestamp"]).timestamp()
    return None


def bytes_text(count: float) -> str:
    """A size for people: `64.0 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
