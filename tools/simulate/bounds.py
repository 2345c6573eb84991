"""Every table and queue of a daemon that a peer can make grow, and the named bound that it must keep.

The tables are found wherever an actor keeps them: the walk follows attributes into objects of the cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from actors.quic_relay import QuicRelay
from actors.quic_session import QuicSession
from actors.service_concern import ServiceConcern
from tests.simnet.sim_tcp import SimTcpStream
from ztna.ice import open_checks, pair, pair_table
from ztna.path import manager
from ztna.quic import demux
from ztna.relay import queue
from ztna.service.flows import FlowTable
from ztna.service.fragments import ReassemblyDrop
from ztna.signaling import client
from ztna.stun import routing

if TYPE_CHECKING:
    from actors.base import Concern
    from actors.daemon import Node

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


def concerns(node: Node) -> Iterator[Concern]:
    """What the actors of a node consist of."""
    for name in node.directory.names():
        ref = node.directory.find(name)
        if ref is not None:
            actor = ref._actor_weakref()  # noqa: SLF001 - nobody but an instrument looks
            if actor is not None:
                yield actor.concern


def open_streams(node: Node) -> int:
    """TCP connections that a node carries."""
    services = (each for each in concerns(node) if isinstance(each, ServiceConcern))
    return sum(len(session.pumps) for each in services for session in each._sessions.values())  # noqa: SLF001


def check_bounds(node: Node) -> Iterator[str]:
    """Each breach, in words."""
    yield from _check_actors(node)
    yield from _check_packet_path(node)


def _check_actors(node: Node) -> Iterator[str]:
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


def _check_packet_path(node: Node) -> Iterator[str]:
    engines: dict[bytes, Any] = {}
    for concern in concerns(node):
        if isinstance(concern, QuicRelay):
            yield from _check_queues(concern)
        elif isinstance(concern, QuicSession) and concern._connection is not None:  # noqa: SLF001
            engines[concern._session_id] = concern._connection._engine  # noqa: SLF001
    for concern in concerns(node):
        if isinstance(concern, ServiceConcern):
            for session_id, session in concern._sessions.items():  # noqa: SLF001
                yield from _check_flows(session.flow_table)
                if session_id in engines:
                    yield from _check_credit(session.pumps, engines[session_id].windows)


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


def _check_queues(relay: QuicRelay) -> Iterator[str]:
    hub = relay._hub  # noqa: SLF001
    for leg in (*hub._legs.values(), *hub._stream_legs.values()):  # noqa: SLF001
        if len(leg.queue) > queue.MAX_QUEUED_PACKETS:
            yield f"{len(leg.queue)} packets wait for leg {leg.number}"
        for session_id, waiting in leg.queue._queues.items():  # noqa: SLF001
            if len(waiting) > queue.MAX_QUEUED_PACKETS_PER_SESSION:
                yield f"{len(waiting)} packets of session {session_id.hex()} wait for leg {leg.number}"


def _check_flows(table: FlowTable[Any]) -> Iterator[str]:
    # No flow of a scenario has as many datagrams as the window.
    if count := table.counts.reassembly[ReassemblyDrop.BEHIND_WINDOW]:
        yield f"{count} datagrams counted as too late to know, all of them within the window"


def _check_credit(pumps: dict[int, Any], windows: Any) -> Iterator[str]:
    """What the kernel has not taken is not consumed, so that the sender's window stays closed by as much."""
    for stream_id, pump in pumps.items():
        window = windows._streams.get(stream_id)  # noqa: SLF001
        if window is None or window.is_abandoned or not isinstance(pump._stream, SimTcpStream):  # noqa: SLF001
            continue
        waiting = sum(map(len, pump._stream._queue))  # noqa: SLF001
        if waiting > window.delivered - window.consumed:
            yield f"stream {stream_id}: {waiting} B wait for the socket, and count as consumed"
