"""The timers of a daemon: how many there may be, and how far away the deadline of each may lie.

An actor has one timer, which holds the earliest of its deadlines. What nobody looks after for longer than the
named bound of its concern is forgotten, whatever the deadline says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from actors.burst_log import BURST_S
from actors.status_board import TICK_S
from tests.simnet.sim_io import ProcessCall
from tests.simnet.watch import describe, is_actor_timer
from ztna.ice import repeats
from ztna.ice.timing import (
    CONSENT_LIMIT_S,
    COOLDOWN_MAX_S,
    RELAY_REPORTED_LIMIT_S,
)
from ztna.path.manager import RELAPSE_S
from ztna.quic.options import LEG_IDLE_TIMEOUT_S
from ztna.relay.leg import QUIC_RETRY_S
from ztna.service.flows import FLOW_IDLE_S
from ztna.session.book import HANDSHAKE_LIMIT_S
from ztna.settings.common import AccessSettings
from ztna.signaling.backoff import MAX_CEILING_S
from ztna.signaling.client import MAX_ATTACH_LIMIT_S
from ztna.signaling.lost_nodes import REMEMBERED_S
from ztna.signaling.lost_sessions import LOST_LIFETIME_S
from ztna.stun.routing import TRANSACTION_LIFETIME_S

if TYPE_CHECKING:
    from actors.daemon import Node
    from tests.simnet.clock import VirtualTimer

COOLDOWN_JITTER: Final = 1.2
TOLERANCE_S: Final = 0.001
MAX_OTHER_CALLS: Final = 64
"""Of a process, beside the timers of its actors: sockets that deliver, names that are looked up, connections
that are being made, a turn of the actors' loop."""

MAX_DEADLINE_S: Final[dict[str, float]] = {
    "candidate_gatherer": repeats.MAX_CEILING_S,
    "checklist": RELAY_REPORTED_LIMIT_S,
    "hole_punch": COOLDOWN_MAX_S * COOLDOWN_JITTER,
    "intermediate_selector": MAX_CEILING_S,
    "keepalive": CONSENT_LIMIT_S,
    "path_manager": RELAPSE_S,
    "quic_relay": LEG_IDLE_TIMEOUT_S,
    "quic_session": HANDSHAKE_LIMIT_S,
    "registry": BURST_S,
    "relay_leg": QUIC_RETRY_S,
    "service_backend": FLOW_IDLE_S,
    "service_port": FLOW_IDLE_S,
    "session_manager": LOST_LIFETIME_S,
    "session_table": AccessSettings().max_offline_s,
    "signaling_client": MAX_ATTACH_LIMIT_S,
    "signaling_service": REMEMBERED_S,
    "status_board": TICK_S,
    "udp_socket": TRANSACTION_LIFETIME_S,
}
"""By concern; one that is missing has no timer, or is new and needs its bound."""


def check_timers(node: Node, pending: Iterable[VirtualTimer]) -> Iterator[str]:
    """Each breach of a node, in words; `pending` is what the clock holds, for whomever."""
    calls = [
        timer.callback
        for timer in pending
        if isinstance(timer.callback, ProcessCall) and timer.callback.io is node.io
    ]
    if any(call.io.is_frozen for call in calls):
        return  # its clock is not to be asked
    timers = [call for call in calls if is_actor_timer(call.callback)]
    for name, count in Counter(map(describe, timers)).items():
        if count > 1:
            yield f"{count} times the {name}"
    if len(calls) - len(timers) > MAX_OTHER_CALLS:
        others = Counter(describe(call) for call in calls if not is_actor_timer(call.callback))
        yield f"{len(calls) - len(timers)} calls are scheduled: {others.most_common(3)}"
    for call in timers:
        yield from _check_deadline(call)


def _check_deadline(call: ProcessCall) -> Iterator[str]:
    deadline = call.callback.__self__._deadline  # type: ignore[attr-defined] # noqa: SLF001 - of a `DeadlineTimer`
    if deadline is None:
        return
    name = describe(call)
    concern = name.removeprefix("timer of ").partition("/")[0]
    bound = MAX_DEADLINE_S.get(concern)
    if bound is None:
        yield f"{name} has no bound"
    elif deadline - call.io.time() > bound + TOLERANCE_S:
        yield f"{name} is set for {deadline - call.io.time():.1f} s from now, of at most {bound:g} s"
