"""Every table and queue of a daemon that a peer can make grow, and the named bound that it must keep.

The tables are found wherever an actor keeps them: the walk follows attributes into objects of the cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from actors.daemon import Node
from ztna.ice import open_checks, pair, pair_table
from ztna.path import manager
from ztna.quic import demux
from ztna.relay import queue
from ztna.signaling import client
from ztna.stun import routing

MAX_INBOX: Final = 4096
"""Messages that wait for one actor: payload runs on credit, and a burst of a whole window is far less."""
CORES: Final = ("ztna.ice", "ztna.path", "ztna.quic", "ztna.relay", "ztna.signaling", "ztna.stun")
MAX_DEPTH: Final = 6
"""From an actor to the innermost table of its core."""

BOUNDS: Final[dict[type, Mapping[str, int]]] = {
    routing.StunRouter: {
        "_credentials": routing.MAX_UFRAGS,
        "_transactions": routing.MAX_TRANSACTIONS,
    },
    pair_table.PairTable: {
        "_pairs": pair.MAX_PAIRS,
        "_remote": pair_table.MAX_CANDIDATES + pair_table.MAX_PEER_REFLEXIVE,
    },
    open_checks.OpenChecks: {"_all": open_checks.MAX_OPEN_CHECKS},
    demux.ConnectionIdTable: {"_owners": demux.MAX_CONNECTION_IDS},
    manager.PathManager: {"_relays": manager.MAX_RELAY_PATHS, "_traffic": manager.MAX_LOSS_SAMPLES},
    queue.RelayQueue: {"_packets": queue.MAX_QUEUED_PACKETS_PER_SESSION},
    client.AttachmentClient: {"_requests": client.MAX_REQUESTS},
}
"""By class and attribute."""
PER_KEY: Final[Mapping[type, Mapping[str, int]]] = {
    routing.StunRouter: {
        "_ufrags": routing.MAX_UFRAGS_PER_SESSION,
        "_pending": routing.MAX_TRANSACTIONS_PER_SESSION,
    },
    demux.ConnectionIdTable: {"_ids": demux.MAX_CIDS_PER_OWNER},
}
"""The same of each value of a table."""


def check_bounds(node: Node) -> Iterator[str]:
    """Each breach, in words."""
    for name in node.directory.names():
        ref = node.directory.find(name)
        if ref is None:
            continue
        if ref.inbox_depth() > MAX_INBOX:
            yield f"{ref.inbox_depth()} messages wait for {name}"
        actor = ref._actor_weakref()  # noqa: SLF001 - an instrument looks inside
        for table in tables(getattr(actor, "concern", None)):
            for breach in _breaches(table):
                yield f"{name}: {breach}"


def tables(root: object) -> Iterator[Any]:
    """Whatever has a bound and can be reached from an actor through objects of the cores."""
    seen: set[int] = set()
    stack = [(root, 0)]
    while stack:
        thing, depth = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if type(thing) in BOUNDS:
            yield thing
        if depth < MAX_DEPTH:
            stack += [
                (value, depth + 1)
                for value in getattr(thing, "__dict__", {}).values()
                if type(value).__module__.startswith(CORES)
            ]


def _breaches(table: Any) -> Iterator[str]:
    for attribute, bound in BOUNDS[type(table)].items():
        size = len(getattr(table, attribute))
        if size > bound:
            yield f"{size} in {type(table).__name__}.{attribute}, which may hold {bound}"
    for attribute, bound in PER_KEY.get(type(table), {}).items():
        for key, value in getattr(table, attribute).items():
            if len(value) > bound:
                yield f"{len(value)} in {type(table).__name__}.{attribute} of {key!r}, which may hold {bound}"
