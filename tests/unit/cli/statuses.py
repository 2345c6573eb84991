"""Statuses as daemons report them, and a control socket that serves one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from ztna.ice import reasons
from ztna.v1 import (
    checklist_pb2,
    control_pb2,
    control_pb2_grpc,
    hole_punch_pb2,
    path_manager_pb2,
    types_pb2,
)

WALL = 1_800_000_000.0
SESSION = bytes(range(16))


def agent_status() -> control_pb2.DaemonStatus:
    """The one of docs/status.md."""
    status = control_pb2.DaemonStatus(
        daemon="agent",
        id="agent-1",
        version="0.1.0",
        uptime_s=3723.5,
        is_ready=True,
        certificate_expires_at_s=1_830_000_000.0,
        ca_expires_at_s=2_110_000_000.0,
        crl_next_update_at_s=1_802_592_000.0,
        counters={
            "active_connections": 3,
            "sessions": 1,
            'dropped_total{place="relay_leg",reason="queue_full"}': 7,
        },
    )
    status.udp_addresses.add(host="0.0.0.0", port=40000)
    status.intermediates.add(
        id="intermediate-1",
        state="attached",
        is_leg_up=True,
        leg_carrier="quic",
        rtt_ms=21.25,
        observed_address=types_pb2.TransportAddress(host="203.0.113.7", port=51234),
    )
    status.services.add(
        id="web",
        protocol=types_pb2.SERVICE_PROTOCOL_TCP,
        address="127.0.0.1:8080",
        state="listening",
        active=3,
        total=120,
        bytes_to_service=81_234,
        bytes_from_service=2**33,
    )
    status.sessions.add(
        session_id=SESSION,
        peer_id="connector-1",
        agent_id="agent-1",
        connector_id="connector-1",
        state="established",
        path="relay",
        via="intermediate-1",
        path_reason=f"no direct path was found: {reasons.sentence('both_mappings_vary')}",
        rtt_ms=43.5,
        bytes_sent=81_234,
        bytes_received=2**33,
        open_streams=3,
        age_s=3700.0,
        services=["web"],
    )
    fill_direct_path(status.sessions[0].direct_path)
    status.actors.add(name="udp_socket", state="running", messages=1200, handling_s=0.25, slowest_ms=1.5)
    status.problems.add(
        at_s=WALL,
        event="signaling_client.detached",
        message="intermediate intermediate-1: connection refused",
        count=2,
    )
    return status


def fill_direct_path(status: control_pb2.DirectPathStatus) -> None:
    """A search between two NATs that leave no room for a direct path."""
    status.state = hole_punch_pb2.HOLE_PUNCH_STATE_FALLBACK_RELAY
    status.reason = "both_mappings_vary"
    status.detail = reasons.sentence(status.reason)
    status.generation = status.attempts = 1
    status.signaling = "intermediate"
    for nat in (status.local_nat, status.remote_nat):
        nat.is_known = nat.has_nat = True
        nat.mapping = types_pb2.NAT_DEPENDENCE_ADDRESS_AND_PORT_DEPENDENT
        nat.filtering = types_pb2.NAT_DEPENDENCE_ADDRESS_AND_PORT_DEPENDENT
        nat.port_allocation = types_pb2.NAT_PORT_ALLOCATION_SEQUENTIAL
        nat.port_step = 1
    base = types_pb2.TransportAddress(host="192.168.1.7", port=40000)
    local = status.local_candidates.add(
        type=types_pb2.Candidate.TYPE_SERVER_REFLEXIVE,
        address=types_pb2.TransportAddress(host="203.0.113.7", port=51234),
        priority=1_694_498_815,
        foundation="2",
        related_address=base,
    )
    remote = status.remote_candidates.add(
        type=types_pb2.Candidate.TYPE_HOST,
        address=types_pb2.TransportAddress(host="198.51.100.9", port=41641),
        priority=2_130_706_431,
        foundation="1",
    )
    status.pairs.add(
        pair=checklist_pb2.Pair(local=local, remote=remote, local_host="192.168.1.7"),
        state=checklist_pb2.PAIR_STATE_FAILED,
        checks_sent=6,
        failure="timeout",
    )
    status.paths.add(
        kind=types_pb2.PATH_KIND_RELAY,
        via="intermediate-1",
        state=path_manager_pb2.PATH_STATE_ACTIVE,
        is_selected=True,
        rtt_ms=43.5,
    )
    status.policy = "prefer_direct"
    status.path_reason = "relay_up"
    status.rtt_relay_ms = 43.5
    status.switches = 1
    status.keepalives_sent = status.keepalives_answered = 12


def intermediate_status() -> control_pb2.DaemonStatus:
    """An intermediate with one agent, one service, one session."""
    status = control_pb2.DaemonStatus(
        daemon="intermediate",
        id="intermediate-1",
        version="0.1.0",
        uptime_s=12.0,
        not_ready_reason="the daemon's signaling service is starting",
        counters={"attached_nodes": 30, "sessions": 1},
    )
    status.udp_addresses.add(host="::", port=4433)
    status.nodes.add(
        role=types_pb2.ROLE_AGENT,
        id="agent-1",
        carrier="grpc",
        is_leg_up=True,
        attached_s=12.0,
        leg_carrier="quic",
    )
    status.registered_services.add(
        id="web", protocol=types_pb2.SERVICE_PROTOCOL_TCP, connectors=["connector-1", "connector-2"]
    )
    status.sessions.add(
        session_id=SESSION,
        agent_id="agent-1",
        connector_id="connector-1",
        services=["web"],
        state="active",
        bytes_sent=12_345_678,
        age_s=4.0,
    )
    return status


ReloadAnswer = control_pb2.ReloadResponse | tuple[grpc.StatusCode, str]


class Servicer(control_pb2_grpc.ControlServiceServicer):
    """Serves statuses in turn; the stream ends behind the last one."""

    def __init__(self, statuses: Sequence[control_pb2.DaemonStatus], reload: ReloadAnswer) -> None:
        self.statuses = statuses
        self.reload = reload

    def GetStatus(self, request: Any, context: Any) -> control_pb2.GetStatusResponse:  # noqa: N802
        if not self.statuses:
            context.abort(grpc.StatusCode.INTERNAL, "out of order")
        return control_pb2.GetStatusResponse(status=self.statuses[0])

    def WatchStatus(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for status in self.statuses:
            yield control_pb2.WatchStatusResponse(status=status)

    def OpenSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    def CloseSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    def RestartIce(self, request: control_pb2.RestartIceRequest, context: Any) -> Any:  # noqa: N802
        known = [session.session_id for session in self.statuses[0].sessions] if self.statuses else []
        if request.session_id and request.session_id not in known:
            context.abort(grpc.StatusCode.NOT_FOUND, "it has just ended")
        return control_pb2.RestartIceResponse(
            session_ids=[request.session_id] if request.session_id else known
        )

    def Reload(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if not isinstance(self.reload, control_pb2.ReloadResponse):
            context.abort(*self.reload)
        return self.reload


@contextmanager
def served(
    path: Path,
    *statuses: control_pb2.DaemonStatus,
    reload: ReloadAnswer = control_pb2.ReloadResponse(),  # noqa: B008 - never changed
) -> Iterator[None]:
    """A daemon at `path` that has these statuses, and answers a reload so: with a response or a failure."""
    with ThreadPoolExecutor(4) as executor:
        server = grpc.server(executor)
        control_pb2_grpc.add_ControlServiceServicer_to_server(Servicer(statuses, reload), server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
