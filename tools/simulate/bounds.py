"""Holds every container that a daemon keeps to its bound (`limits.py`), and every queue and account of bytes.

What is found and has no bound is a breach as well, so that nothing new goes without one.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from actors.quic_relay import QuicRelay
from actors.quic_session import QuicSession
from actors.service_concern import ServiceConcern
from tests.simnet.sim_tcp import SimTcpStream
from tools.simulate.containers import containers
from tools.simulate.limits import BOUNDS, DRAINED, EXEMPT, MAX_INBOX, MAX_REASONS
from ztna.relay import queue
from ztna.service.flows import FlowTable
from ztna.service.fragments import ReassemblyDrop

if TYPE_CHECKING:
    from actors.base import Concern
    from actors.daemon import Node
    from tools.simulate.containers import Container


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
    """Each breach of queues and accounts, in words."""
    for name in node.directory.names():
        ref = node.directory.find(name)
        if ref is not None and ref.inbox_depth() > MAX_INBOX:
            yield f"{ref.inbox_depth()} messages wait for {name}"
    yield from _check_packet_path(node)


def check_containers(node: Node) -> Iterator[str]:
    """Each breach of a container's bound, and each container that has none, in words."""
    for owner, name, container in containers(iter((node, *concerns(node)))):
        where = f"{type(owner).__name__}.{name}"
        bound = bound_of(owner, name, container)
        if bound is None:
            yield f"{where} has no bound ({type(owner).__module__})"
        elif len(container) > bound:
            yield f"{len(container)} in {where}, which may hold {bound}"


def bound_of(owner: Any, name: str, container: Container) -> float | None:
    """How much a container may hold; None when nobody ever said."""
    for kind in type(owner).__mro__:
        if name in BOUNDS.get(kind, ()):
            bound = BOUNDS[kind][name]
            return bound(owner) if callable(bound) else bound
        if EXEMPT.get(kind, {}).keys() & {name, ""}:
            return math.inf
    if name == DRAINED:
        return 0
    if isinstance(container, deque) and container.maxlen is not None:
        return container.maxlen
    if isinstance(container, Counter):
        return MAX_REASONS
    return None


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
