"""A daemon's status for people, readable on 80 columns.

Everything shown may have been chosen by a peer: it is never read as markup, and control characters do not
reach the terminal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ztna.cli.cells import address, clean, facts, row, table, without_codes
from ztna.cli.direct_path_view import direct_path_lines, nat_words
from ztna.cli.status_json import enum_word
from ztna.cli.units import show_bytes, show_count, show_duration, show_rate, show_rtt
from ztna.relay.carrier import CarrierKind
from ztna.v1.control_pb2 import DaemonStatus, SessionStatus

RATE_WINDOW_S: Final = 2.0
"""Daemons count once a second: a rate over two seconds has always one count in it, and follows soon
enough."""

MAX_ROWS: Final = 20
"""Rows per table; more do not fit a terminal. `--json` and `ztna sessions` have them all."""

_GOOD: Final = {"attached", "listening", "registered", "established", "relayed", "running", "active"}
_BAD: Final = {"detached", "failed", "rejected", "abandoned"}


class Rates:
    """Bytes per second of each session, from the statuses of the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[bytes, tuple[int, int]]]] = deque()

    def observe(self, status: DaemonStatus) -> None:
        """Take the next status."""
        totals = {each.session_id: (each.bytes_sent, each.bytes_received) for each in status.sessions}
        if self._seen and status.uptime_s < self._seen[-1][0]:
            self._seen.clear()
        self._seen.append((status.uptime_s, totals))
        while len(self._seen) > 2 and self._seen[1][0] <= status.uptime_s - RATE_WINDOW_S:  # noqa: PLR2004
            self._seen.popleft()

    def of(self, session_id: bytes) -> tuple[float, float]:
        """Bytes sent and received per second; zero while there is nothing to compare with."""
        if not self._seen:
            return 0.0, 0.0
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        if ended <= began or session_id not in last:
            return 0.0, 0.0
        sent, received = last[session_id]
        sent_before, received_before = first.get(session_id, (0, 0))
        elapsed = ended - began
        return max(0.0, (sent - sent_before) / elapsed), max(0.0, (received - received_before) / elapsed)


def status_view(status: DaemonStatus, wall: float, rates: Rates | None = None) -> RenderableType:
    """The whole status, at `wall` (unix seconds); with `rates`, sessions show what moves, not what moved."""
    parts = [
        _header(status),
        _intermediates(status),
        _services(status),
        _nodes(status),
        _registered(status),
        _relayed(status, rates) if status.daemon == "intermediate" else _sessions(status, rates),
        _actors(status),
        _problems(status, wall),
    ]
    return Group(*(part for part in parts if part is not None))


def sessions_view(status: DaemonStatus, rates: Rates | None = None) -> RenderableType:
    """Every session with all that is known of it."""
    if not status.sessions:
        return Text(f"{clean(status.daemon)} {clean(status.id)} has no session.")
    return Group(*(_session_block(each, rates) for each in status.sessions))


def _header(status: DaemonStatus) -> RenderableType:
    line = Text.assemble(
        (f"{clean(status.daemon)} {clean(status.id)}", "bold"),
        "  ",
        ("ready", "green") if status.is_ready else ("not ready", "bold red"),
        f"  up {show_duration(status.uptime_s)}  ztna {clean(status.version)}",
    )
    lines: list[RenderableType] = [line]
    if not status.is_ready:
        lines.append(Text(clean(without_codes(status.not_ready_reason)), style="red"))
    if status.udp_addresses:
        addresses = ", ".join(address(each.host, each.port) for each in status.udp_addresses)
        lines.append(Text(f"UDP on {addresses}", style="dim"))
    if status.HasField("nat"):
        lines.append(Text(f"NAT: {nat_words(status.nat)}", style="dim"))
    if status.certificate_expires_at_s:
        lines.append(Text(f"certificate until {_day(status.certificate_expires_at_s)}", style="dim"))
    return Group(*lines)


def _intermediates(status: DaemonStatus) -> RenderableType | None:
    rows = table("intermediate", "state", "relay leg", ">rtt", "seen as")
    reasons = []
    for each in status.intermediates[:MAX_ROWS]:
        seen_as = ""
        if each.HasField("observed_address"):
            seen_as = address(each.observed_address.host, each.observed_address.port)
        leg = _leg(each.leg_carrier)
        row(rows, each.id, _state(each.state), leg, show_rtt(each.rtt_ms), seen_as)
        if each.reason:
            reasons.append(f"{each.id}: {each.reason}")
        if each.leg_reason:
            reasons.append(f"relay leg to {each.id}: {each.leg_reason}")
    return _section("Intermediates", rows, len(status.intermediates), reasons)


def _leg(carrier: str) -> Text:
    if not carrier:
        return Text("down", style="yellow")
    # The usual one needs no word.
    return (
        Text("up", style="green") if carrier == CarrierKind.QUIC else Text(f"up, {carrier}", style="yellow")
    )


def _services(status: DaemonStatus) -> RenderableType | None:
    rows = table("service", "address", "state", ">active", ">total", ">to", ">from")
    reasons = []
    for each in status.services[:MAX_ROWS]:
        address = f"{enum_word(each, 'protocol') or '?'} {each.address}"
        to_service, from_service = show_bytes(each.bytes_to_service), show_bytes(each.bytes_from_service)
        row(
            rows, each.id, address, _state(each.state), str(each.active), str(each.total),
            to_service, from_service,
        )  # fmt: skip
        if each.reason:
            reasons.append(f"{each.id}: {each.reason}")
    return _section("Services", rows, len(status.services), reasons)


def _nodes(status: DaemonStatus) -> RenderableType | None:
    rows = table("node", "role", "signaling", "relay leg", ">attached")
    for each in status.nodes[:MAX_ROWS]:
        role = enum_word(each, "role") or "?"
        leg = _leg(each.leg_carrier)
        row(rows, each.id, role, each.carrier, leg, show_duration(each.attached_s))
    return _section("Nodes", rows, status.counters.get("attached_nodes", 0))


def _registered(status: DaemonStatus) -> RenderableType | None:
    rows = table("service", "proto", "connectors")
    for each in status.registered_services[:MAX_ROWS]:
        row(rows, each.id, enum_word(each, "protocol") or "?", ", ".join(each.connectors))
    return _section("Registered services", rows, len(status.registered_services))


def _sessions(status: DaemonStatus, rates: Rates | None) -> RenderableType | None:
    rows = table("session", "peer", "path", ">rtt", ">sent", ">received", ">age")
    notes = []
    for each in status.sessions[:MAX_ROWS]:
        sent, received = _traffic(each, rates)
        if note := _why_this_path(each):
            notes.append(f"{each.session_id.hex()[:8]}: {note}")
        row(
            rows, each.session_id.hex()[:8], each.peer_id, _path(each), show_rtt(each.rtt_ms),
            sent, received, show_duration(each.age_s),
        )  # fmt: skip
    return _section("Sessions", rows, status.counters.get("sessions", 0), notes, style="dim")


def _why_this_path(each: SessionStatus) -> str:
    """The selected pair of a direct path; why there is none otherwise."""
    if each.path != "direct":
        return each.path_reason
    if not each.direct_path.HasField("selected_pair"):
        return ""
    pair = each.direct_path.selected_pair
    local, remote = pair.local.address, pair.remote.address
    return f"from {address(local.host, local.port)} to {address(remote.host, remote.port)}"


def _path(each: SessionStatus) -> Text:
    if each.state != "established":
        return Text(clean(each.state), style="yellow")
    if each.outage_s:
        return Text(f"none for {show_duration(each.outage_s)}", style="red")
    return Text(clean(each.path), style="green")


def _relayed(status: DaemonStatus, rates: Rates | None) -> RenderableType | None:
    rows = table("session", "agent", "connector", "services", "state", ">relayed", ">age")
    for each in status.sessions[:MAX_ROWS]:
        row(
            rows, each.session_id.hex()[:8], each.agent_id, each.connector_id, ", ".join(each.services),
            _state(each.state), _traffic(each, rates)[0], show_duration(each.age_s),
        )  # fmt: skip
    return _section("Sessions", rows, status.counters.get("sessions", 0))


def _actors(status: DaemonStatus) -> RenderableType | None:
    """Only those that are not as they should be."""
    rows = table("actor", "state", ">restarts", ">waiting")
    failed = [each for each in status.actors if each.restarts or each.state != "running"]
    for each in failed[:MAX_ROWS]:
        row(rows, each.name, _state(each.state), str(each.restarts), str(each.inbox_depth))
    return _section("Actors that failed", rows, len(failed))


def _problems(status: DaemonStatus, wall: float) -> RenderableType | None:
    rows = table(">ago", ">times", "what")
    for each in status.problems[:MAX_ROWS]:
        row(rows, show_duration(max(0.0, wall - each.at_s)), str(each.count), without_codes(each.message))
    return _section("Problems", rows, len(status.problems))


def _session_block(each: SessionStatus, rates: Rates | None) -> RenderableType:
    who = each.peer_id or f"{each.agent_id} → {each.connector_id}"
    head = Text.assemble(
        (each.session_id.hex(), "bold"),
        "  ",
        clean(who),
        "  ",
        _state(each.state),
        f"  {show_duration(each.age_s)}",
    )
    path = f"{each.path} via {each.via}" if each.via else each.path
    told = [path]
    if each.rtt_ms:
        told.append(f"rtt {show_rtt(each.rtt_ms)}")
    if each.outage_s:
        told.append(f"no path for {show_duration(each.outage_s)}")
    if each.path_reason:
        told.append(each.path_reason)
    is_end = bool(each.peer_id)
    traffic = _traffic_of_end(each, rates) if is_end else _traffic_of_relay(each, rates)
    grid = facts()
    row(grid, "  path", " · ".join(told))
    row(grid, "  traffic", " · ".join(traffic))
    if each.services:
        row(grid, "  services", ", ".join(each.services))
    if not is_end:
        return Group(head, grid)
    return Group(head, grid, *direct_path_lines(each.direct_path, each.path_reason))


def _traffic_of_end(each: SessionStatus, rates: Rates | None) -> list[str]:
    told = [f"sent {show_bytes(each.bytes_sent)}", f"received {show_bytes(each.bytes_received)}"]
    if rates is not None:
        sent, received = rates.of(each.session_id)
        told.append(f"now {show_rate(sent)} and {show_rate(received)}")
    lost, streams = show_count(each.packets_lost, "packet"), show_count(each.open_streams, "stream")
    return [*told, f"{lost} lost", f"{streams} open"]


def _traffic_of_relay(each: SessionStatus, rates: Rates | None) -> list[str]:
    """An intermediate sees sealed packets alone: neither what was lost nor any stream."""
    told = [f"relayed {show_bytes(each.bytes_sent)}"]
    if rates is not None:
        told.append(f"now {show_rate(rates.of(each.session_id)[0])}")
    return told


def _traffic(each: SessionStatus, rates: Rates | None) -> tuple[str, str]:
    if rates is None:
        return show_bytes(each.bytes_sent), show_bytes(each.bytes_received)
    sent, received = rates.of(each.session_id)
    return show_rate(sent), show_rate(received)


def _section(
    title: str, rows: Table, total: int, notes: Sequence[str] = (), *, style: str = "red"
) -> RenderableType | None:
    """A titled table and notes below it, in `style`; `total` is how many rows there would be."""
    if not rows.row_count:
        return None
    parts: list[RenderableType] = [Text(title, style="bold cyan"), rows]
    if total > rows.row_count:
        parts.append(Text(f"… and {total - rows.row_count} more", style="dim"))
    parts += [Text(clean(without_codes(note)), style=style) for note in notes]
    return Padding(Group(*parts), (1, 0, 0, 0), expand=False)


def _state(state: str) -> Text:
    word = state.partition(":")[0]
    style = "green" if word in _GOOD else "red" if word in _BAD else "yellow"
    return Text(clean(state), style=style)


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")
