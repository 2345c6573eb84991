"""Where views for people are printed."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console, RenderableType

MAX_PIPED_WIDTH: Final = 2000
"""Wider than any row, and bounded, as rich lays out every cell of it."""


def print_view(view: RenderableType) -> None:
    """Print to standard output, as wide as the terminal; a pipe gets one line per row, without padding."""
    console = Console()
    if console.is_terminal:
        console.print(view)
        return
    console = Console(width=MAX_PIPED_WIDTH)
    with console.capture() as captured:
        console.print(view)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
