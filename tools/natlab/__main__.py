"""The NAT lab on the command line: `python -m tools.natlab COMMAND`; `--help` shows each one's options.

Exit status: 0 fine, 1 something did not work (or a cell of the matrix is not as expected), 2 wrong usage,
such as a host that is not there; of `exec`, that of the command, 128 and the number after a signal, 127 when
there is no such program, 126 when it cannot be run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.natlab import scorecard, server
from tools.natlab.availability import missing_packages, unavailable_reason
from tools.natlab.kinds import Access
from tools.natlab.namespaces import LabError
from tools.natlab.options import parser, plan_of
from ztna.errors import describe

if TYPE_CHECKING:
    from tools.natlab.matrix import Cell

SIGNALLED: Final = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    made = parser(_RUNS)
    options = made.parse_args(arguments)
    try:
        status: int = options.run(options)
    except ValueError as error:
        made.error(str(error))
    except LabError as error:
        if error.exit_status == LabError.USAGE:
            made.error(str(error))
        print(f"natlab: {error}", file=sys.stderr)
        return error.exit_status
    return status


def _print(options: argparse.Namespace, value: dict[str, Any], text: str) -> int:
    print(json.dumps(value) if options.json else text)
    return 0


def _up(options: argparse.Namespace) -> int:
    plan = plan_of(options)
    if not options.lifetime_s > 0:
        raise ValueError("--lifetime-s is more than 0")
    if missing_packages():
        raise LabError(f"no lab can be built here: {unavailable_reason()}")
    state = server.start(plan, options.name, options.lifetime_s)
    text = f"{state['name']}: {', '.join(state['hosts'])}"
    return _print(options, state, text)


def _exec(options: argparse.Namespace) -> int:
    if options.json:
        raise ValueError("what exec prints is the command's own")
    streams = (sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno())
    status = server.execute(options.name, options.host, options.argv, streams)
    return status if status >= 0 else SIGNALLED - status


def _show(options: argparse.Namespace) -> int:
    if options.name is None:
        labs = server.running()
        text = "\n".join(f"{lab['name']}: {', '.join(lab['hosts'])}" for lab in labs)
        return _print(options, {"labs": labs}, text or "no lab runs")
    shown = server.ask(options.name, "show")
    return _print(options, shown, _shown_text(shown))


def _shown_text(shown: dict[str, Any]) -> str:
    lines = [f"{shown['name']}: {', '.join(shown['hosts'])}"]
    lines += [f"{each['host']} {each['address']}" for each in shown["intermediates"]]
    for site in shown["sites"]:
        uplink = f", uplink {site['uplink']} of {site['uplinks']}" if site["uplinks"] > 1 else ""
        cut = ", cut" if site["is_cut"] else ""
        addresses = f"{', '.join(site['addresses'])}, outside {site['external_address']}"
        lines.append(f"{site['name']} {site['access']}: {addresses}{uplink}{cut}")
        for mapping in site["mappings"]:
            answered = "" if mapping["is_answered"] else " (unanswered)"
            lines.append(
                f"  {mapping['protocol']} {mapping['inside']} as {mapping['external']} "
                f"with {mapping['remote']}{answered}"
            )
    lines += [_link_text(name, link) for name, link in shown["links"].items()]
    return "\n".join(lines)


def _link_text(name: str, link: dict[str, Any]) -> str:
    ways = []
    for way in ("up", "down"):
        values = link[way]
        rate = "" if values["rate_mbit"] is None else f", {values['rate_mbit']:g} Mbit/s"
        ways.append(
            f"{way} {values['delay_ms']:g} ms +-{values['jitter_ms']:g}, loss {values['loss']:g}{rate}"
        )
    return f"link {name}: {'; '.join(ways)}; MTU {link['mtu']}"


def _link(options: argparse.Namespace) -> int:
    link = server.ask(options.name, "link", link=options.link, change=options.change)
    return _print(options, link, _link_text(options.link, link))


def _change(options: argparse.Namespace, operation: str, **arguments: Any) -> int:
    """Do something, and show the site as it is then."""
    server.ask(options.name, operation, site=options.site, **arguments)
    shown = server.ask(options.name, "show")
    (site,) = [site for site in shown["sites"] if site["name"] == options.site]
    text = f"{operation} {options.site}: outside {site['external_address']}, uplink {site['uplink']}"
    return _print(options, site, text)


def _rebind(options: argparse.Namespace) -> int:
    return _change(options, "rebind", layer=options.layer)


def _handover(options: argparse.Namespace) -> int:
    return _change(options, "handover", how=options.how)


def _cut(options: argparse.Namespace) -> int:
    return _change(
        options, "cut", direction=options.direction, towards=options.towards, protocol=options.protocol
    )


def _heal(options: argparse.Namespace) -> int:
    return _change(options, "heal")


def _down(options: argparse.Namespace) -> int:
    gone = server.ask(options.name, "down")
    return _print(options, gone, f"{options.name} is gone")


def _matrix(options: argparse.Namespace) -> int:
    from tools.natlab import matrix  # noqa: PLC0415 - the other commands need not wait for gRPC

    kinds: Sequence[str] = matrix.KINDS
    if options.kinds == "all":
        kinds = [str(access) for access in scorecard.ACCESSES]
    elif options.kinds:
        kinds = [str(Access.parse(kind)) for kind in options.kinds.split(",")]
    if options.punches < 1 or options.jobs < 1:
        raise ValueError("--punches and --jobs are at least 1")
    if options.write is not None:
        _text(options.write)  # better now than after a quarter of an hour
    if options.results is not None:
        kinds, cells = matrix.from_json(json.loads(_text(options.results)))
    else:
        cells = _measured(matrix, kinds, options)
    card = matrix.scorecard(kinds, cells)
    if options.write is not None:
        scorecard.write(options.write, card)
    _print(options, matrix.as_json(cells), card.render())
    return 0 if all(cell.is_as_expected for cell in cells) else 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(describe(error)) from error


def _measured(matrix: Any, kinds: Sequence[str], options: argparse.Namespace) -> list[Cell]:
    reason = unavailable_reason()
    if reason is not None:
        raise LabError(f"no lab can be built here: {reason}")

    def report(cell: Cell) -> None:
        mark = "ok  " if cell.is_as_expected else "FAIL"
        took = "" if cell.time_to_direct_ms is None else f" in {cell.time_to_direct_ms:.0f} ms"
        print(
            f"{mark} {cell.a} x {cell.b}: {cell.path}{took}, expected {cell.expected} ({cell.reason})",
            file=sys.stderr,
            flush=True,
        )

    cells: list[Cell] = matrix.run(
        kinds,
        matrix.Options(options.punches, options.delay_ms, options.limit_s),
        is_ordered=options.ordered,
        jobs=options.jobs,
        report=report,
    )
    return cells


_RUNS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "up": _up,
    "exec": _exec,
    "show": _show,
    "link": _link,
    "rebind": _rebind,
    "handover": _handover,
    "cut": _cut,
    "heal": _heal,
    "down": _down,
    "matrix": _matrix,
}


if __name__ == "__main__":
    sys.exit(main())
