"""One cell of the matrix: what the daemons say of their path, and how they are made to punch again.

Everything that the matrix has to know of the daemons is here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from tools.natlab.deployment import LabDeployment

POLL_INTERVAL_S: Final = 0.02
# What `ztna` exits with when it does not know a command.
EXIT_USAGE: Final = 2

DIRECT: Final = "direct"
RELAY: Final = "relay"
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class SessionPath:
    """Which path a session is on, and why."""

    path: str
    reason: str


def session_path(deployment: LabDeployment, agent: str) -> SessionPath:
    """The path of the agent's only session; `none` without one."""
    status = deployment.daemon_status(agent)
    if status is None or not status.sessions:
        return SessionPath(NONE, "no session")
    session = status.sessions[0]
    return SessionPath(session.path or NONE, session.path_reason)


def wait_for_direct(
    deployment: LabDeployment, agent: str, started: float, limit_s: float
) -> tuple[SessionPath, float | None]:
    """The path once it is direct, or when `limit_s` is over; and milliseconds since `started`, if direct."""
    while True:
        found = session_path(deployment, agent)
        now = time.monotonic()
        if found.path == DIRECT:
            return found, round((now - started) * 1e3, 1)
        if now - started > limit_s:
            return found, None
        time.sleep(POLL_INTERVAL_S)


def restart_ice(deployment: LabDeployment, agent: str) -> bool:
    """Have the agent gather and check anew (RFC 8445 section 2.4). False where `ztna` has no such command."""
    socket_path = str(deployment.daemons[agent].control_socket)
    done = deployment.ztna("restart-ice", "--socket", socket_path, check=False)
    if done.returncode == EXIT_USAGE:
        return False
    return done.returncode == 0
