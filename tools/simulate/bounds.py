"""Every table, queue and timer of a daemon, and the named bound that it must keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from actors.daemon import Node

MAX_INBOX: Final = 4096
"""Messages that wait for one actor: payload runs on credit, and a burst of a whole window is far less."""


def check_bounds(node: Node) -> Iterator[str]:
    """Each breach, in words."""
    for name in node.directory.names():
        ref = node.directory.find(name)
        if ref is not None and ref.inbox_depth() > MAX_INBOX:
            yield f"{ref.inbox_depth()} messages wait for {name}"
