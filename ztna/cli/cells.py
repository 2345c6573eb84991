"""Cells and tables for people: what a peer chose is never markup, and never reaches the terminal raw."""

from __future__ import annotations

import re
from typing import Final

from rich.table import Table
from rich.text import Text

LABEL_WIDTH: Final = 11
"""The longest label of a fact, `NAT there`, indented: facts of a session stand below each other."""

_CODE: Final = re.compile(r"(^|: )[a-z]+(?:_[a-z]+)+: (?=\S)")
"""A reason's code before the sentence that says the same."""


def facts() -> Table:
    """Labels and what there is to say, in columns that are the same in each such table."""
    made = Table.grid(padding=(0, 1))
    made.add_column(min_width=LABEL_WIDTH)
    made.add_column(overflow="fold")
    return made


def without_codes(text: str) -> str:
    """The text without codes before its sentences, such as `foreign_ca: the certificate of …`."""
    return _CODE.sub(r"\1", text)


def table(*columns: str) -> Table:
    """A table without borders; a column that begins with `>` is aligned to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        is_right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if is_right else "left", overflow="fold")
    return made


def row(rows: Table, *cells: str | Text) -> None:
    """Add a row; plain cells are cleaned."""
    rows.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in cells))


def address(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def clean(text: str) -> str:
    """The text without control characters."""
    return "".join(character if character.isprintable() else "�" for character in text)
