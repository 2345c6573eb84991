"""A direct path that is there is found at once, while nothing goes wrong.

An agent's first offer of a session begins the search. What follows takes a few round trips, some of which
wait for the next send of a check or for its turn. A message that gets lost at one of the ends costs seconds
until it is repeated, or until the next search; and in the end `run.py` grants a search as many, since a fault
may have cost it its first try. So here only those count that are to end before anything goes wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from google.protobuf.message import Message

from tools.simulate.oracle import must_be_direct
from tools.simulate.scenario import MAX_SKEW_S, Fault, FaultKind, Scenario
from ztna.v1 import path_manager_pb2, quic_session_pb2, signaling_client_pb2, types_pb2

if TYPE_CHECKING:
    from tests.simnet.world import Daemon
    from tools.simulate.deployment import Deployment

PROMPT_ROUND_TRIPS: Final = 6
"""Between sites, of which one through the intermediate counts as two: an offer and its answer, checks, their
padded repetition, the nomination. The slowest of some hundred took five."""
PROMPT_S: Final = 1.0
"""For the third send of a check, after 300 ms, and for its turn among as many as there are."""
ENDS: Final = 2


class PromptSearches:
    """Holds sessions to a tight limit from the first offer to a direct path at both ends."""

    def __init__(self, world: Deployment, report: Callable[[str], None]) -> None:
        """`report` takes violations, in words; `world` begins now."""
        self._world = world
        self._report = report
        self._limit_s = limit_s(world.scenario)
        # What is sent in vain before is sent again after twice the time.
        self._well_from = world.now + 2 * max(each.udp_from_s for each in world.scenario.sites.values())
        self._well_until = world.now + min(map(_felt_from, world.scenario.faults), default=math.inf)
        self._connectors: dict[bytes, str] = {}
        self._ends: dict[bytes, set[str]] = {}
        """Of sessions that were offered: who has been on a direct path since."""

    def message(self, daemon: Daemon, message: Message) -> None:
        """Learn of offers, of paths, and of the end of sessions."""
        match message:
            case signaling_client_pb2.SessionGranted():
                self._connectors[message.session_id] = message.connector.id
            case signaling_client_pb2.SendIceSignal() if message.signal.HasField("candidate_offer"):
                self._begin(daemon, message.session_id)
            case path_manager_pb2.PathSelected() if message.kind == types_pb2.PATH_KIND_DIRECT:
                self._ends.get(message.session_id, set()).add(daemon.id)
            case quic_session_pb2.SessionClosed():
                # Nobody looks any more.
                self._connectors.pop(message.session_id, None)
            case _:
                pass

    def _begin(self, daemon: Daemon, session_id: bytes) -> None:
        if session_id in self._ends:
            return
        self._ends[session_id] = set()
        ends_at = max(self._world.now, self._well_from) + self._limit_s
        if ends_at < self._well_until:
            self._world.clock.call_at(ends_at, partial(self._judge, daemon.id, session_id))

    def _judge(self, agent: str, session_id: bytes) -> None:
        connector = self._connectors.get(session_id)
        if connector is None or len(self._ends[session_id]) >= ENDS:
            return
        if must_be_direct(self._world.scenario, agent, connector):
            self._report(f"{agent}: no direct path to {connector} in time after its offer")


def limit_s(scenario: Scenario) -> float:
    """How long a search may take; infinite where packets may be lost, wait in queues, or are sent in vain."""
    link = scenario.link
    if link.loss or link.corruption or link.rate_bps or any(each.dead for each in scenario.sites.values()):
        return math.inf
    return PROMPT_S + PROMPT_ROUND_TRIPS * 2 * (link.latency_s + link.jitter_s)


def _felt_from(fault: Fault) -> float:
    return fault.at - MAX_SKEW_S if fault.kind is FaultKind.EXPIRE else fault.at
