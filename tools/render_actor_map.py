"""Render the wiring of every daemon to docs/actors.md: one table and one Mermaid graph each.

Usage: `python -m tools.render_actor_map [--check] [MODULE:ATTRIBUTE ...]`. Each argument names a `Wiring`
or a sequence of them. With `--check` nothing is written: the exit status is 1 when docs/actors.md is stale.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from actors.base import Concern
from actors.wiring import Scope, Wiring

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "actors.md"
TABLES = ("actors.topology:WIRINGS",)

HEADER = """\
# Who hears whom

Drawn from the wiring tables by `make docs`; a test keeps it true. An actor is found by name: `concern` alone
where a node has one (scope *node*), otherwise `concern/<intermediate id>` or `concern/<session id>`. Messages
marked *outside* come from the daemon itself, not from an actor.
"""

OUTSIDE = "outside"


def load(reference: str) -> list[Wiring]:
    """The tables behind `module:attribute`. Raises `ImportError`, `AttributeError` or `TypeError`."""
    module, _, attribute = reference.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    tables = [found] if isinstance(found, Wiring) else list(found)
    for table in tables:
        if not isinstance(table, Wiring):
            raise TypeError(f"{reference} holds a {type(table).__name__}, not a Wiring")
    return tables


def render(tables: Sequence[Wiring]) -> str:
    """The whole document."""
    return "\n".join([HEADER, *(_section(table) for table in tables)])


def _section(table: Wiring) -> str:
    scopes = {row.receiver: row.scope for row in table.rows}
    parts = [f"## {table.daemon}", "", "| actor | scope | owns | hears | emits |", "|---|---|---|---|---|"]
    parts += [_actor_row(table, concern, scopes[concern]) for concern in table.concerns]
    parts += ["", "```mermaid", "flowchart LR", *_graph(table), "```", ""]
    return "\n".join(parts)


def _actor_row(table: Wiring, concern: type[Concern], scope: Scope) -> str:
    heard = [
        f"`{row.message.DESCRIPTOR.name}`" + (f" *{OUTSIDE}*" if row.is_external else "")
        for row in table.rows
        if row.receiver is concern
    ]
    emitted = [f"`{message.DESCRIPTOR.name}`" for message in concern.emits]
    summary = _possession(concern).replace("|", "\\|")
    cells = (f"`{concern.name}`", scope.value, summary, ", ".join(heard), ", ".join(emitted) or "-")
    return f"| {' | '.join(cells)} |"


def _possession(concern: type[Concern]) -> str:
    """What a concern owns: its module begins with "Owns this; takes that, emits the other."."""
    text = inspect.getdoc(inspect.getmodule(concern)) or ""
    sentence = text.partition("\n")[0]
    if not sentence.startswith("Owns "):
        return (inspect.getdoc(concern) or "").partition("\n")[0]
    return sentence.removeprefix("Owns ").partition(";")[0].rstrip(".")


def _graph(table: Wiring) -> list[str]:
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in table.rows:
        senders = [concern.name for concern in table.concerns if row.message in concern.emits]
        for sender in [OUTSIDE] if row.is_external else senders:
            edges[sender, row.receiver.name].append(row.message.DESCRIPTOR.name)
    nodes = [f'  {concern.name}["{concern.name}"]' for concern in table.concerns]
    if any(row.is_external for row in table.rows):
        nodes.insert(0, f"  {OUTSIDE}(({OUTSIDE}))")
    return nodes + [
        f'  {sender} -- "{"<br>".join(names)}" --> {receiver}' for (sender, receiver), names in edges.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.render_actor_map", description="Render docs/actors.md."
    )
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="MODULE:ATTRIBUTE")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the file is out of date"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="where to write (default: docs/actors.md)"
    )
    options = parser.parse_args(arguments)
    text = render([table for reference in options.tables for table in load(reference)])
    if not options.check:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
        return 0
    if options.output.exists() and options.output.read_text(encoding="utf-8") == text:
        return 0
    print(f"{options.output} is out of date: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
