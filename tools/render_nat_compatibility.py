"""Render `docs/nat-compatibility.md`: why each pair of NATs is direct or relayed, as the matrix expects it.

Which pairs were measured is read off the scorecard in the README, of which the cells that were not measured
are rendered, too. Usage: `python -m tools.render_nat_compatibility [--check]`. With `--check` nothing is
written: the exit status is 1 when a committed file is not what `tools/natlab/kinds.py` gives.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.natlab.kinds import (
    Access,
    FilteringBehaviour,
    MappingBehaviour,
    PortAllocation,
    Rule,
    deciding_rule,
)
from tools.natlab.scorecard import ACCESSES, Scorecard, replaced

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET: Final = ROOT / "docs" / "nat-compatibility.md"
README: Final = ROOT / "README.md"

LETTERS: Final = dict(zip(Rule, "ABCDEF", strict=True))
"""In the order in which they are asked: the first that applies decides."""

INTRODUCTION: Final = """\
# NAT compatibility

<!-- Rendered by `make docs` from tools/natlab/kinds.py and the scorecard in README.md. Do not edit. -->

Which pairs of NATs leave room for a direct path, and why, by what RFC 4787 distinguishes. This is what
`expected` says in the [NAT matrix](natlab.md#the-matrix), rendered from the code that computes it; the
[scorecard](../README.md#nat-compatibility) is what was measured against it in the lab. What is *in italics*
here and there was not measured: it is derived from this logic alone. Each node judges in the same
way what it learnt of its own NAT and of its peer's (`ztna/nat/behaviour.py`), and calls what it finds by
the same words ([troubleshooting](troubleshooting.md#why-is-it-relayed)).

Three things decide:

- *Mapping* (RFC 4787 section 4.1): does an inside socket keep its external port whatever it sends to? Then
  what the intermediate sees is what the peer can send to. If not, the port that the peer will see exists
  only once a packet was sent to the peer, and nobody but the peer ever sees it.
- *Filtering* (section 5): who may answer through a mapping: anybody; any port of an address that was sent
  to; or only the very address and port that was sent to.
- *Time*: both sides send to each other at once, so that each opens its own filter before the other's packet
  arrives, or before it is repeated.

Assumed is that each side has an outermost NAT of its own, and that ports are not predicted
([ADR 13](adr/0013-ports-are-not-predicted.md)). Hence a pair is the same either way round.
"""

MEANINGS: Final = {
    Rule.UDP_BLOCKED: "A direct path is UDP, and one side lets none out.",
    Rule.NO_COMMON_FAMILY: "One side speaks IPv4 alone, the other IPv6 alone: neither has an address for the "
    "other's packets.",
    Rule.BOTH_MAPPINGS_VARY: "Each side gives a new destination another port. Either would have to hear "
    "first from where the other sends, and neither can be reached to hear it.",
    Rule.MAPPING_VARIES_AND_PEER_FILTERS_PORTS: "One side sends from a port that nobody knows in advance. "
    "The other lets in only what it has sent to, and cannot have sent to that port.",
    Rule.MAPPING_VARIES_AND_PEER_LETS_IN: "One side sends from a port that nobody knows in advance. The "
    "other does not filter by port, so that packet arrives; it answers to where that came from "
    "(a peer-reflexive candidate, RFC 8445 section 7.3.1.3).",
    Rule.NO_MAPPING_VARIES: "Each side keeps one external port whatever it sends to, and the intermediate "
    "sees which. Each sends to the other's, and so opens its own filter for it, however strict.",
}

MAPPINGS: Final = {
    MappingBehaviour.ENDPOINT_INDEPENDENT: "endpoint-independent",
    MappingBehaviour.ADDRESS_DEPENDENT: "address-dependent",
    MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT: "address and port-dependent",
}
FILTERINGS: Final = {
    FilteringBehaviour.ENDPOINT_INDEPENDENT: "endpoint-independent",
    FilteringBehaviour.ADDRESS_DEPENDENT: "address-dependent",
    FilteringBehaviour.ADDRESS_AND_PORT_DEPENDENT: "address and port-dependent",
}


def scorecard() -> str:
    """The README with what was not measured rendered anew."""
    document = README.read_text(encoding="utf-8")
    return replaced(document, Scorecard.parse(document))


def render() -> str:
    """The whole document."""
    card = Scorecard.parse(README.read_text(encoding="utf-8"))
    return "\n".join(
        [
            INTRODUCTION,
            "## What each kind does\n",
            *_kinds(),
            "\n## Rules\n\nThe first that applies decides.\n",
            *_rules(),
            f"\n## Every pair\n\n{_count(card)}\n",
            *_pairs(card),
            "\n## Pairs in which a mapping varies\n",
            *_reasons(card),
            "",
        ]
    )


def _kinds() -> Iterator[str]:
    yield "| kind | address family | mapping | filtering |"
    yield "|---|---|---|---|"
    for access in ACCESSES:
        behaviour = access.behaviour
        is_nat = behaviour.ports is not PortAllocation.NONE
        mapping = MAPPINGS[behaviour.mapping] if is_nat else "no NAT"
        filtering = FILTERINGS[behaviour.filtering]
        if not behaviour.passes_udp:
            mapping, filtering = "no UDP", "no UDP"
        yield f"| `{access}` | IPv{behaviour.family} | {mapping} | {filtering} |"


def _rules() -> Iterator[str]:
    yield "| rule | path | word | why |"
    yield "|---|---|---|---|"
    for rule, letter in LETTERS.items():
        path, word = ("direct", "") if rule.is_direct else ("relay", f"`{rule.value}`")
        yield f"| {letter} | {path} | {word} | {MEANINGS[rule]} |"


def _count(card: Scorecard) -> str:
    pairs = list(itertools.combinations_with_replacement(map(str, ACCESSES), 2))
    measured = sum(card.is_measured(*pair) for pair in pairs)
    return f"Measured in the lab: {measured} of {len(pairs)} pairs; in italics, the others."


def _pairs(card: Scorecard) -> Iterator[str]:
    yield "| | " + " | ".join(f"`{access}`" for access in ACCESSES) + " |"
    yield "|---" * (len(ACCESSES) + 1) + "|"
    for row in ACCESSES:
        yield f"| `{row}` | " + " | ".join(_cell(card, row, column) for column in ACCESSES) + " |"


def _cell(card: Scorecard, a: Access, b: Access) -> str:
    rule = deciding_rule(a, b)
    text = f"{'direct' if rule.is_direct else 'relay'} {LETTERS[rule]}"
    return text if card.is_measured(str(a), str(b)) else f"*{text}*"


def _reasons(card: Scorecard) -> Iterator[str]:
    yield "| pair | | why |"
    yield "|---|---|---|"
    for a, b in itertools.combinations_with_replacement(ACCESSES, 2):
        if deciding_rule(a, b) in _VARYING:
            yield f"| `{a}`, `{b}` | {_cell(card, a, b)} | {_reason(a, b)} |"


_VARYING: Final = {
    Rule.BOTH_MAPPINGS_VARY,
    Rule.MAPPING_VARIES_AND_PEER_FILTERS_PORTS,
    Rule.MAPPING_VARIES_AND_PEER_LETS_IN,
}
_ADMISSIONS: Final = {
    FilteringBehaviour.ENDPOINT_INDEPENDENT: "lets anybody in",
    FilteringBehaviour.ADDRESS_DEPENDENT: "has sent to that address, and lets in each of its ports",
    FilteringBehaviour.ADDRESS_AND_PORT_DEPENDENT: "has sent to that address, and not to that port",
}


def _reason(a: Access, b: Access) -> str:
    """The rule, with the kinds of this pair in it."""
    if deciding_rule(a, b) is Rule.BOTH_MAPPINGS_VARY:
        return "neither knows where the other will send from"
    varying, peer = (a, b) if a.behaviour.mapping is not MappingBehaviour.ENDPOINT_INDEPENDENT else (b, a)
    return f"`{varying}` sends from a new port; `{peer}` {_ADMISSIONS[peer.behaviour.filtering]}"


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1: the file is not current")
    options = parser.parse_args()
    # The document is read off the README, and changes nothing of what it reads.
    wanted = {README: scorecard(), TARGET: render()}
    if options.check:
        stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"{path} is not current: run `python -m tools.render_nat_compatibility`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
