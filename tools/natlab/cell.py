"""One cell of the matrix: what the daemons say of their path, and how they are made to punch again.

Everything that the matrix has to know of the daemons is here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

from tools.natlab.deployment import LabDeployment
from ztna.v1 import control_pb2, hole_punch_pb2

POLL_INTERVAL_S: Final = 0.02

DIRECT: Final = "direct"
RELAY: Final = "relay"
NONE: Final = "none"

_ENDED: Final = frozenset(
    {
        hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED,
        hole_punch_pb2.HOLE_PUNCH_STATE_FALLBACK_RELAY,
        hole_punch_pb2.HOLE_PUNCH_STATE_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class SessionPath:
    """Which path a session is on, and why; `generation` of the candidates that it was searched with.

    `reason` is the word of the search for a direct path, and a sentence where it has none.
    """

    path: str
    reason: str
    generation: int = 0
    time_to_direct_ms: float | None = None
    """From the offer to a pair that the agent uses."""
    answer_to_succeeded_ms: float | None = None
    """From the peer's candidates to the first answered check."""


def session_path(deployment: LabDeployment, node: str) -> SessionPath:
    """The path of a node's only session; `none` without one."""
    session = _session(deployment, node)
    return SessionPath(NONE, "no session") if session is None else _path(session)


def wait_for_punch(
    deployment: LabDeployment, nodes: tuple[str, str], above: int, limit_s: float
) -> SessionPath:
    """How the agent's path is once a search of a generation above `above` has come to its end at both nodes.

    A search that found a direct path ends when both ends use it; after `limit_s` nobody waits any more. Of
    `answer_to_succeeded_ms` it is the larger one of the two.
    """
    deadline = time.monotonic() + limit_s
    while True:
        sessions = [_session(deployment, node) for node in nodes]
        if time.monotonic() > deadline or all(_has_ended(session, above) for session in sessions):
            ends = [SessionPath(NONE, "no session") if each is None else _path(each) for each in sessions]
            known = [end.answer_to_succeeded_ms for end in ends if end.answer_to_succeeded_ms is not None]
            return replace(ends[0], answer_to_succeeded_ms=max(known, default=None))
        time.sleep(POLL_INTERVAL_S)


def restart_ice(deployment: LabDeployment, agent: str) -> None:
    """Have the agent gather and check anew (RFC 8445 §9). Raises `DeploymentError`."""
    deployment.ztna("restart", "--socket", str(deployment.daemons[agent].control_socket))


def _session(deployment: LabDeployment, node: str) -> control_pb2.SessionStatus | None:
    status = deployment.daemon_status(node)
    return status.sessions[0] if status is not None and status.sessions else None


def _has_ended(session: control_pb2.SessionStatus | None, above: int) -> bool:
    if session is None or session.direct_path.generation <= above:
        return False
    state = session.direct_path.state
    if state not in _ENDED:
        return False
    return state != hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED or session.path == DIRECT


def _path(session: control_pb2.SessionStatus) -> SessionPath:
    direct_path = session.direct_path
    reason = "" if session.path == DIRECT else direct_path.reason or session.path_reason
    is_connected = direct_path.state == hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED
    return SessionPath(
        session.path or NONE,
        reason,
        direct_path.generation,
        round(direct_path.time_to_direct_ms, 1) if is_connected else None,
        round(direct_path.answer_to_succeeded_ms, 1) if is_connected else None,
    )
