"""What can be said on the command line of the lab, and what it says of itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Cut, Handover
from tools.natlab.plan import Link, Plan, Provider, Site, Uplink

PROGRAM: Final = "python -m tools.natlab"
DEFAULT_LIFETIME_S: Final = 4 * 3600.0
PROVIDER: Final = "isp"


class Command(NamedTuple):
    """What a command does in a line, the rest of it, what it may be called with, and its arguments."""

    summary: str
    text: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]


def parser(runs: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """A parser whose `run` is that of the command."""
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Sites behind real netfilter NATs, in network namespaces of this machine.",
        epilog="Kinds: " + ", ".join(kind.value for kind in Kind) + "; INNER/OUTER: two NATs. "
        "docs/natlab.md says what each of them does.",
    )
    subparsers = made.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = command.summary
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {command.text}".rstrip(),
            epilog="\n".join(f"{PROGRAM} {name} {example}".rstrip() for example in command.examples),
            formatter_class=_Formatter,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print one JSON object")
        subparser.set_defaults(run=runs[name])
    return made


class _Formatter(argparse.HelpFormatter):
    """Fills texts, and leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(PROGRAM):
            return "".join(
                f"{line}\n" for line in ("examples:", *(f"  {line}" for line in text.splitlines()))
            )
        return super()._fill_text(text, width, indent)


def _add_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="of the lab, as `up` printed it")


def _add_site(command: argparse.ArgumentParser) -> None:
    _add_name(command)
    command.add_argument("site", help="a or b")


def _add_exec(command: argparse.ArgumentParser) -> None:
    _add_name(command)
    command.add_argument("host", help="a, b, mid, mid2, core, or a router such as nat-a")
    command.add_argument("argv", nargs="+", metavar="COMMAND", help="with its arguments, behind --")


def _add_show(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", help="of the lab (default: list the labs that run)")


def _add_link(command: argparse.ArgumentParser) -> None:
    _add_name(command)
    command.add_argument(
        "link", help="a site, its second uplink (a2), the provider (isp), or an intermediate (mid, mid2)"
    )
    command.add_argument(
        "change",
        nargs="?",
        help="as delay=20,jitter=3,loss=0.01,rate=10,mtu=1400: ms, ms plus or minus, 0 to 1, Mbit/s or none, "
        "bytes; with up. or down. before it, one direction alone (default: change nothing)",
    )


def _add_rebind(command: argparse.ArgumentParser) -> None:
    _add_site(command)
    command.add_argument(
        "--layer", choices=["outer", "inner"], default="outer", help="which of two NATs (default: outer)"
    )


def _add_handover(command: argparse.ArgumentParser) -> None:
    _add_site(command)
    command.add_argument(
        "how",
        choices=[how.value for how in Handover],
        help="hard: address removed and interface down first; soft: only the default route moves",
    )


def _add_cut(command: argparse.ArgumentParser) -> None:
    _add_site(command)
    command.add_argument(
        "--direction",
        choices=[way.value for way in Cut],
        default=Cut.BOTH.value,
        help="up: from the site; down: towards it (default: both)",
    )
    command.add_argument(
        "--towards", metavar="PEER", help="only towards this site, mid or mid2 (default: everybody)"
    )
    command.add_argument("--protocol", choices=["udp", "tcp"], help="only this one (default: any)")


def _add_up(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", help="letters and digits (default: a new one)")
    for site in ("a", "b"):
        command.add_argument(
            f"--{site}",
            default="eim-apdf",
            metavar="KIND",
            help=f"what {site} stands behind: a kind, or INNER/OUTER (default: eim-apdf)",
        )
    command.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="NAME:CHANGE",
        help="as a:delay=20,loss=0.01; again for another link (default: no delay, no loss, no limit)",
    )
    command.add_argument(
        "--second",
        action="append",
        default=[],
        metavar="SITE:KIND",
        help="a second uplink, for hand-overs (default: none)",
    )
    command.add_argument(
        "--ipv6",
        action="append",
        default=[],
        metavar="SITE:KIND",
        help="IPv6 as well: open-v6, firewall-v6 (default: IPv4 alone)",
    )
    command.add_argument(
        "--provider",
        metavar="KIND",
        help="both sites behind one more NAT, whose link is called isp (default: none)",
    )
    command.add_argument(
        "--mid2", action="store_true", help="a second intermediate, at another address (default: one)"
    )
    command.add_argument(
        "--hairpin",
        action="store_true",
        help="NATs turn packets round, RFC 4787 REQ-9 (default: they do not)",
    )
    command.add_argument(
        "--mapping-lifetime-s",
        type=int,
        metavar="S",
        help="of idle mappings (default: 30 s, and 120 s once they were answered)",
    )
    command.add_argument(
        "--lifetime-s",
        type=float,
        default=DEFAULT_LIFETIME_S,
        metavar="S",
        help="the lab ends by itself after this time (default: four hours)",
    )


def _add_matrix(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kinds",
        help="separated by commas, or `all`: 91 pairs (default: nine of them, 45 pairs, 14 minutes)",
    )
    command.add_argument("--punches", type=int, default=5, metavar="N", help="in each cell (default: 5)")
    command.add_argument(
        "--delay-ms", type=float, default=20.0, metavar="MS", help="of each site's link (default: 20)"
    )
    command.add_argument(
        "--limit-s", type=float, default=8.0, metavar="S", help="for a direct path to come (default: 8)"
    )
    command.add_argument(
        "--ordered", action="store_true", help="each pair both ways round (default: one way)"
    )
    command.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="cells at the same time (default: 1)"
    )
    command.add_argument(
        "--from",
        dest="results",
        type=Path,
        metavar="FILE",
        help="take the results from this file, which --json gave (default: measure)",
    )
    command.add_argument(
        "--write", type=Path, metavar="FILE", help="put the scorecard into this document, too"
    )


COMMANDS: Final = {
    "up": Command(
        "build a lab that stays until `down`",
        "Two sites, a and b, each behind what is named, and an intermediate mid between them; none of the "
        "hosts has a way to this machine's network. Prints the lab's name and its hosts.",
        (
            "",
            "--name demo --a eim-apdf --b apdm-random --link a:delay=20,jitter=2 --second a:eim-eif",
            "--a eim-apdf/eim-eif --mid2 --mapping-lifetime-s 5",
        ),
        _add_up,
    ),
    "exec": Command(
        "run a command on a host",
        "It has this terminal's streams, and its exit status becomes this one's, 127 when there is no such "
        "program. SIGINT and SIGTERM are passed on.",
        ("demo a -- ip addr",),
        _add_exec,
    ),
    "show": Command(
        "show a lab, or which ones run",
        "Addresses, what the NATs have in their tables now, cuts, links.",
        ("", "demo"),
        _add_show,
    ),
    "link": Command(
        "show or change a link while packets flow",
        "What is not named stays as it is.",
        ("demo a", "demo a delay=50,up.loss=0.01", "demo mid rate=none"),
        _add_link,
    ),
    "rebind": Command(
        "have a NAT forget its mappings and take other ports",
        "As a router does that was restarted.",
        ("demo a", "demo b --layer inner"),
        _add_rebind,
    ),
    "handover": Command(
        "move a site to its other uplink",
        "It needs one (`up --second`). Done twice, the site is back.",
        ("demo a hard", "demo a soft"),
        _add_handover,
    ),
    "cut": Command(
        "drop a site's traffic silently, in its NAT",
        "Cuts of a site add up until `heal`.",
        ("demo b", "demo b --direction up --towards a --protocol udp"),
        _add_cut,
    ),
    "heal": Command(
        "undo the cuts of a site", "All of them, on each of its uplinks.", ("demo b",), _add_site
    ),
    "down": Command("end a lab and everything in it", "", ("demo",), _add_name),
    "matrix": Command(
        "run the real daemons through every pair of kinds",
        "For each pair a lab is built, daemons are started, paths are punched and a file is downloaded. The "
        "exit status is 1 if a cell is not as RFC 4787 logic says.",
        (
            "--kinds open,eim-apdf,apdm-random --json",
            "--write README.md",
            "--kinds all --jobs 2 --write README.md",
            "--from matrix.json --write README.md",
        ),
        _add_matrix,
    ),
}
"""In the order of the help text."""


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
    second_intermediate = links.pop("mid2", Link()) if options.mid2 else None
    plan = Plan(tuple(sites), links.pop("mid", Link()), providers, second_intermediate)
    if unknown := [*second, *ipv6, *links]:
        raise ValueError(f"there is no {unknown[0]} in this lab")
    return plan


def _named(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise ValueError(f"{text}: write NAME:VALUE")
    return name, value
