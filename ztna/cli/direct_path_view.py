"""The search for a direct path of one session, for people: what was tried, what came of it, and why."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ztna.cli.cells import address, clean, facts, row, table
from ztna.cli.status_json import enum_word
from ztna.cli.units import show_bytes, show_count, show_rtt
from ztna.v1 import checklist_pb2, types_pb2
from ztna.v1.control_pb2 import DirectPathStatus

MAX_ROWS = 20
"""Candidates or pairs; `--json` has them all."""

_GOOD = {"succeeded", "active", "connected"}
_BAD = {"failed"}

_SEARCH_WORDS = {
    "idle": "not searched yet",
    "gathering": "gathering candidates",
    "signaling": "exchanging candidates",
    "waiting_to_start": "about to check",
    "checking": "checking",
    "connected": "found",
    "fallback_relay": "not found",
    "failed": "given up",
}


def direct_path_lines(status: DirectPathStatus, why: str) -> list[RenderableType]:
    """Lines below a session's own, which said `why` of its path; none while nothing is known."""
    state = enum_word(status, "state")
    if state is None:
        return []
    grid = facts()
    row(grid, "  direct", _search(status, state, why))
    for path in status.paths:
        row(grid, "", _path(path))
    for side, nat in (("NAT here", status.local_nat), ("NAT there", status.remote_nat)):
        row(grid, f"  {side}", nat_words(nat))
    row(grid, "  keepalive", _keepalive(status))
    lines: list[RenderableType] = [grid]
    lines += _section(_candidates(status), len(status.local_candidates) + len(status.remote_candidates))
    lines += _section(_pairs(status.pairs), len(status.pairs))
    return lines


def nat_words(nat: types_pb2.NatBehaviour) -> str:
    """What is known of the NATs before a node, in the terms of RFC 4787."""
    if nat.is_udp_blocked:
        return "UDP is blocked"
    if not nat.is_known:
        return "not known"
    told = ["address is translated" if nat.has_nat else "address is not translated"]
    for name, field in (("mapping", "mapping"), ("filtering", "filtering")):
        word = enum_word(nat, field)
        told.append(f"{name} {word.replace('_', '-') if word else 'not known'}")
    ports = enum_word(nat, "port_allocation")
    if ports:
        told.append(f"ports {ports}" + (f" by {nat.port_step}" if nat.port_step else ""))
    return ", ".join(told)


def _search(status: DirectPathStatus, state: str, why: str) -> str:
    told = [_SEARCH_WORDS.get(state) or state.replace("_", " ")]
    if status.generation:
        told.append(f"attempt {status.generation}")
    reason = status.detail or status.reason.replace("_", " ")
    if reason and reason not in why:
        told.append(reason)
    if status.time_to_direct_ms:
        told.append(f"took {status.time_to_direct_ms:.0f} ms")
    if status.signaling:
        told.append(f"signaled through the {status.signaling}")
    told.append(
        show_count(status.switches, "switch") if status.switches == 1 else f"{status.switches} switches"
    )
    if status.fail_overs:
        told.append(show_count(status.fail_overs, "fail-over"))
    return " · ".join(told)


def _path(path: DirectPathStatus.Path) -> Text:
    kind, state = enum_word(path, "kind") or "?", enum_word(path, "state") or "?"
    where = address(path.remote.host, path.remote.port) if path.HasField("remote") else path.via
    told = [f"rtt {show_rtt(path.rtt_ms)}"]
    if path.loss_percent:
        told.append(f"loss {path.loss_percent:.0f} %")
    if path.missed:
        told.append(f"{path.missed} missed")
    if path.is_selected:
        told.append("selected")
    return Text.assemble(f"{kind} {clean(where)} ", _styled(state), " · ", " · ".join(told))


def _keepalive(status: DirectPathStatus) -> str:
    told = [
        f"{status.keepalives_answered} of {status.keepalives_sent} answered",
        f"{status.keepalives_missed} missed",
        f"{show_count(status.dual_sends, 'time')} on two paths",
        f"direct {show_bytes(status.direct_bytes_sent)} out, {show_bytes(status.direct_bytes_received)} in",
    ]
    return " · ".join(told)


def _candidates(status: DirectPathStatus) -> Table:
    rows = table("  candidates", "type", "address", ">priority", "related")
    for side, candidates in (("  here", status.local_candidates), ("  there", status.remote_candidates)):
        for each in candidates[: MAX_ROWS // 2]:
            related = ""
            if each.HasField("related_address"):
                related = address(each.related_address.host, each.related_address.port)
            kind = (enum_word(each, "type") or "?").replace("_", " ")
            row(rows, side, kind, address(each.address.host, each.address.port), str(each.priority), related)
    return rows


def _pairs(pairs: Sequence[checklist_pb2.ChecklistReport.Entry]) -> Table:
    rows = table("  pairs", "from", "to", "state", ">sent", ">answered", ">received", ">rtt")
    for each in pairs[:MAX_ROWS]:
        local, remote = each.pair.local.address, each.pair.remote.address
        state = enum_word(each, "state") or "?"
        words = _styled(state)
        if each.is_nominated:
            words.append(", nominated", style="green")
        if each.failure:
            words.append(f", {clean(each.failure.replace('_', ' '))}")
        row(
            rows, "", address(local.host, local.port), address(remote.host, remote.port), words,
            str(each.checks_sent), str(each.checks_answered), str(each.checks_received),
            show_rtt(each.rtt_us / 1e3),
        )  # fmt: skip
    return rows


def _section(rows: Table, total: int) -> list[RenderableType]:
    if not rows.row_count:
        return []
    parts: list[RenderableType] = [rows]
    if total > rows.row_count:
        parts.append(Padding(Text(f"… and {total - rows.row_count} more", style="dim"), (0, 0, 0, 2)))
    return parts


def _styled(state: str) -> Text:
    style = "green" if state in _GOOD else "red" if state in _BAD else "yellow"
    return Text(state.replace("_", "-") if state == "in_progress" else state, style=style)
