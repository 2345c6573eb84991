"""The NAT lab on the command line: `python -m tools.natlab COMMAND`; `--help` shows each one's options.

Exit status: 0 fine, 1 something did not work (or a cell of the matrix is not as expected), 2 wrong usage; of
`exec`, that of the command, 128 and the number after a signal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tools.natlab import server
from tools.natlab.availability import missing_packages, unavailable_reason
from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Cut, Handover
from tools.natlab.namespaces import LabError
from tools.natlab.plan import Link, Plan, Provider, Site, Uplink

DEFAULT_LIFETIME_S: Final = 4 * 3600.0
PROVIDER: Final = "isp"
SIGNALLED: Final = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except ValueError as error:
        parser.error(str(error))
    except LabError as error:
        print(f"natlab: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.natlab",
        description="Sites behind real netfilter NATs, in network namespaces of this machine.",
        epilog="Kinds: " + ", ".join(kind.value for kind in Kind) + "; INNER/OUTER: two NATs.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_up(commands)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(run=run)
        return command

    command = add("exec", _exec, "run a command on a host: exec NAME HOST -- COMMAND")
    command.add_argument("name")
    command.add_argument("host")
    command.add_argument("argv", nargs="+", metavar="COMMAND")
    add("show", _show, "show a lab, or which ones run").add_argument("name", nargs="?")
    command = add("link", _link, "show or change a link while packets flow")
    command.add_argument("name")
    command.add_argument("link", help="a site, its second uplink (a2), the provider (isp) or mid")
    command.add_argument("change", nargs="?", help="as delay=20,jitter=3,loss=0.01,rate=10,mtu=1400")
    command = add("rebind", _rebind, "have a NAT forget its mappings and take other ports")
    command.add_argument("name")
    command.add_argument("site")
    command.add_argument("--layer", choices=["outer", "inner"], default="outer", help="which of two NATs")
    command = add("handover", _handover, "move a site to its other uplink")
    command.add_argument("name")
    command.add_argument("site")
    command.add_argument("how", choices=[how.value for how in Handover])
    command = add("cut", _cut, "drop a site's traffic silently, in its NAT")
    command.add_argument("name")
    command.add_argument("site")
    command.add_argument("--direction", choices=[way.value for way in Cut], default=Cut.BOTH.value)
    command.add_argument("--towards", metavar="SITE", help="only towards this site, or mid")
    command.add_argument("--protocol", choices=["udp", "tcp"])
    command = add("heal", _heal, "undo the cuts of a site")
    command.add_argument("name")
    command.add_argument("site")
    add("down", _down, "end a lab and everything in it").add_argument("name")
    _add_matrix(add("matrix", _matrix, "run the real daemons through every pair of kinds"))
    return parser


def _add_up(commands: Any) -> None:
    text = "build a lab that stays until `down`"
    command: argparse.ArgumentParser = commands.add_parser("up", help=text, description=text)
    command.set_defaults(run=_up)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--name", help="letters and digits (default: a new one)")
    for site in ("a", "b"):
        command.add_argument(f"--{site}", default="eim-apdf", metavar="KIND", help="what site stands behind")
    command.add_argument(
        "--link", action="append", default=[], metavar="NAME:CHANGE", help="as a:delay=20,loss=0.01"
    )
    command.add_argument(
        "--second", action="append", default=[], metavar="SITE:KIND", help="a second uplink, for hand-overs"
    )
    command.add_argument(
        "--ipv6", action="append", default=[], metavar="SITE:KIND", help="IPv6 as well: open-v6, firewall-v6"
    )
    command.add_argument("--provider", metavar="KIND", help="both sites behind one more NAT, called isp")
    command.add_argument("--hairpin", action="store_true", help="NATs turn packets round (RFC 4787 REQ-9)")
    command.add_argument("--mapping-lifetime-s", type=int, metavar="S", help="of idle mappings")
    command.add_argument(
        "--lifetime-s",
        type=float,
        default=DEFAULT_LIFETIME_S,
        metavar="S",
        help="the lab ends by itself after this time (default: four hours)",
    )


def _add_matrix(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kinds", help="separated by commas (default: eight, and one behind another)")
    command.add_argument("--punches", type=int, default=5, metavar="N", help="in each cell (default: 5)")
    command.add_argument("--delay-ms", type=float, default=20.0, metavar="MS", help="of each site's link")
    command.add_argument("--limit-s", type=float, default=8.0, metavar="S", help="for a direct path to come")
    command.add_argument("--ordered", action="store_true", help="each pair both ways round")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at the same time")
    command.add_argument("--write", type=Path, metavar="FILE", help="put the scorecard into this document")


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that options of `up` come to. Raises `ValueError`."""
    second = {site: Uplink(Access.parse(kind)) for site, kind in map(_named, options.second)}
    ipv6 = {site: Access.parse(kind).inner for site, kind in map(_named, options.ipv6)}
    links: dict[str, Link] = {}
    for name, change in map(_named, options.link):
        links[name] = Link.parse(change, links.get(name))
    sites = []
    for name in ("a", "b"):
        uplink = second.pop(name, None)
        if uplink is not None:
            uplink = Uplink(uplink.access, links.pop(f"{name}2", Link()))
        sites.append(
            Site(
                name,
                Access.parse(getattr(options, name)),
                links.pop(name, Link()),
                second=uplink,
                provider=PROVIDER if options.provider else None,
                ipv6=ipv6.pop(name, None),
                has_hairpin=options.hairpin,
                mapping_lifetime_s=options.mapping_lifetime_s,
            )
        )
    providers: tuple[Provider, ...] = ()
    if options.provider:
        kind = Access.parse(options.provider)
        providers = (Provider(PROVIDER, kind.inner, links.pop(PROVIDER, Link()), options.hairpin),)
    plan = Plan(tuple(sites), links.pop("mid", Link()), providers)
    if unknown := [*second, *ipv6, *links]:
        raise ValueError(f"there is no {unknown[0]} in this lab")
    return plan


def _named(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise ValueError(f"{text}: write NAME:VALUE")
    return name, value


def _print(options: argparse.Namespace, value: dict[str, Any], text: str) -> int:
    print(json.dumps(value) if options.json else text)
    return 0


def _up(options: argparse.Namespace) -> int:
    plan = plan_of(options)
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
    lines = [f"{shown['name']}: {', '.join(shown['hosts'])}", f"mid {shown['intermediate']['address']}"]
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

    kinds = [str(Access.parse(kind)) for kind in options.kinds.split(",")] if options.kinds else matrix.KINDS
    if options.punches < 1 or options.jobs < 1:
        raise ValueError("--punches and --jobs are at least 1")
    reason = unavailable_reason()
    if reason is not None:
        raise LabError(f"no lab can be built here: {reason}")

    def report(cell: matrix.Cell) -> None:
        mark = "ok  " if cell.is_as_expected else "FAIL"
        took = "" if cell.time_to_direct_ms is None else f" in {cell.time_to_direct_ms:.0f} ms"
        print(
            f"{mark} {cell.a} x {cell.b}: {cell.path}{took}, expected {cell.expected} ({cell.reason})",
            file=sys.stderr,
            flush=True,
        )

    cells = matrix.run(
        kinds,
        matrix.Options(options.punches, options.delay_ms, options.limit_s),
        is_ordered=options.ordered,
        jobs=options.jobs,
        report=report,
    )
    table = matrix.scorecard(kinds, cells)
    if options.write is not None:
        matrix.write_scorecard(options.write, table)
    _print(options, matrix.as_json(cells), table)
    return 0 if all(cell.is_as_expected for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
