from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.burst_log import BURST_S
from actors.child_group import ChildState
from actors.control_server import Refusal, ReloadWish
from actors.daemon_hooks import DaemonHooks, Validity
from actors.io import Shortage
from actors.metrics import CATALOGUE, exposition
from actors.node_status import MAX_ATTEMPT_RESULTS, OTHER_RESULTS
from actors.session_list import MAX_SERVICES_PER_SESSION, MAX_SESSIONS, OPENING_LIMIT_S, SessionList
from actors.status_board import (
    AgentStatusBoard,
    BoardSettings,
    ConnectorStatusBoard,
    IntermediateStatusBoard,
)
from actors.status_book import (
    MAX_DROP_REASONS,
    MAX_LISTED,
    MAX_PROBLEM_CHARACTERS,
    MAX_PROBLEMS,
    ActorTotals,
    BookSettings,
    ProblemLog,
    ServiceLine,
)
from actors.supervisor import ChildStatus
from tests.manual_io import START_WALL_TIME, ActorHarness, actor_harness
from ztna.settings import AgentSettings, ConnectorSettings, IntermediateSettings
from ztna.settings.live import Change
from ztna.v1 import (
    control_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_relay_pb2,
    quic_session_pb2,
    registry_pb2,
    relay_leg_pb2,
    reload_pb2,
    service_health_pb2,
    service_port_pb2,
    session_manager_pb2,
    session_table_pb2,
    signaling_client_pb2,
    signaling_service_pb2,
    types_pb2,
    udp_socket_pb2,
)

TCP = types_pb2.SERVICE_PROTOCOL_TCP
UDP = types_pb2.SERVICE_PROTOCOL_UDP
SESSION = bytes(range(16))
OTHER_SESSION = bytes(16)
ADDRESS = types_pb2.TransportAddress(host="127.0.0.1", port=40000)
BOUND = udp_socket_pb2.SocketsBound(addresses=[ADDRESS])
ATTACHED = signaling_client_pb2.Attached(intermediate_id="int-1", attach_id=bytes(16))
LEG_UP = relay_leg_pb2.RelayLegUp(intermediate_id="int-1", max_packet_bytes=1200, carrier="quic")


def child(name: str, state: ChildState = ChildState.RUNNING, key: str = "", **numbers: Any) -> ChildStatus:
    return ChildStatus(
        f"{name}/{key}" if key else name, name, key, state, numbers.pop("restarts", 0), **numbers
    )


class World:
    """A board and the actors it is told of."""

    def __init__(self, board: type[Any], daemon: str, **book: Any) -> None:
        self.children = [child("udp_socket")]
        settings = BoardSettings(BookSettings(daemon, f"{daemon}-1", **book))
        self.settings = settings
        self.reloads: list[Change[Any] | Exception] = []
        self.on_reload: Callable[[], None] = lambda: None
        self.harness: ActorHarness[Any] = actor_harness(
            board, lambda: self.settings, DaemonHooks(lambda: list(self.children), self._reload)
        )

    def _reload(self) -> Change[Any]:
        result = self.reloads.pop(0)
        self.on_reload()
        if isinstance(result, Exception):
            raise result
        return result

    def tell(self, *messages: Any) -> None:
        self.harness.tell(*messages)

    @property
    def status(self) -> Any:
        return self.harness.concern.status()

    @property
    def problems(self) -> list[str]:
        return [problem.message for problem in self.status.problems]

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.status.counters)


@pytest.fixture
def agent() -> World:
    services = (ServiceLine("web", TCP, "127.0.0.1:8080"), ServiceLine("echo", UDP, "127.0.0.1:7070"))
    return World(AgentStatusBoard, "agent", intermediates=("int-1", "int-2"), services=services)


@pytest.fixture
def connector() -> World:
    services = (ServiceLine("web", TCP, "backend:80"),)
    return World(ConnectorStatusBoard, "connector", intermediates=("int-1", "int-2"), services=services)


@pytest.fixture
def intermediate() -> World:
    return World(IntermediateStatusBoard, "intermediate")


def listening(service: str, port: int) -> service_port_pb2.ListenerChanged:
    address = types_pb2.TransportAddress(host="127.0.0.1", port=port)
    return service_port_pb2.ListenerChanged(service=service, address=address, is_listening=True)


def granted(session_id: bytes = SESSION, connector: str = "connector-1") -> Any:
    return signaling_client_pb2.SessionGranted(
        intermediate_id="int-1",
        session_id=session_id,
        service="web",
        connector=types_pb2.NodeIdentity(role=types_pb2.ROLE_CONNECTOR, id=connector),
    )


def established(session_id: bytes = SESSION) -> Any:
    return quic_session_pb2.SessionEstablished(session_id=session_id, peer=types_pb2.NodeIdentity(id="peer"))


def paths(session_id: bytes, relay_ms: float, direct_ms: float = 0.0) -> path_manager_pb2.PathStatistics:
    """A session with two paths; 0: that path was not measured."""
    measured = ((types_pb2.PATH_KIND_RELAY, relay_ms), (types_pb2.PATH_KIND_DIRECT, direct_ms))
    return path_manager_pb2.PathStatistics(
        session_id=session_id,
        paths=[path_manager_pb2.PathStatistics.Path(kind=kind, rtt_ms=rtt_ms) for kind, rtt_ms in measured],
    )


def selected(kind: types_pb2.PathKind.ValueType, session_id: bytes = SESSION) -> Any:
    return path_manager_pb2.PathSelected(session_id=session_id, kind=kind, intermediate_id="int-1")


def test_an_agent_is_ready_step_by_step(agent: World) -> None:
    steps: list[tuple[str, list[Any]]] = [
        ("the UDP sockets are not bound yet", [BOUND]),
        ("service web does not listen: not bound yet", [listening("web", 8080)]),
        ("service echo does not listen: not bound yet", [listening("echo", 7070)]),
        ("not attached to any intermediate", [ATTACHED]),
        ("the relay leg to int-1 is not up: connecting", [LEG_UP]),
    ]
    for reason, messages in steps:
        assert agent.status.not_ready_reason == reason
        assert not agent.status.is_ready
        agent.tell(*messages)
    assert agent.status.is_ready
    assert agent.status.not_ready_reason == ""
    agent.children.append(child("session_table", ChildState.STARTING))
    assert agent.status.not_ready_reason == "the daemon's session table is starting"


def test_an_actor_of_one_session_does_not_decide_about_the_daemon(agent: World) -> None:
    agent.tell(BOUND, listening("web", 1), listening("echo", 2), ATTACHED, LEG_UP)
    agent.children.append(child("quic_session", ChildState.FAILED, key="00"))
    assert agent.status.is_ready


def test_a_connector_is_ready_once_every_service_is_answered(connector: World) -> None:
    connector.tell(BOUND, ATTACHED, LEG_UP)
    assert connector.status.not_ready_reason == "intermediate int-1 has not answered the registration of web"
    assert connector.status.services[0].state == "pending"
    connector.tell(signaling_client_pb2.ServiceRegistered(intermediate_id="int-1", service="web"))
    assert connector.status.is_ready
    assert connector.status.services[0].state == "registered"


def test_a_rejected_service_is_answered_and_shown_as_a_problem(connector: World) -> None:
    connector.tell(BOUND, ATTACHED, LEG_UP)
    connector.tell(
        signaling_client_pb2.ServiceRejected(
            intermediate_id="int-1", service="web", code="access_denied", message="no rule offers web"
        )
    )
    status = connector.status
    assert status.is_ready
    assert (status.services[0].state, status.services[0].reason) == ("rejected", "no rule offers web")
    assert connector.problems == ["service web: rejected by intermediate int-1: no rule offers web"]


def test_one_intermediate_that_accepts_a_service_is_enough(connector: World) -> None:
    connector.tell(
        signaling_client_pb2.ServiceRejected(intermediate_id="int-2", service="web", code="access_denied"),
        signaling_client_pb2.ServiceRegistered(intermediate_id="int-1", service="web"),
    )
    assert connector.status.services[0].state == "registered"


def test_a_lost_attachment_tells_why_and_forgets_its_registrations(connector: World) -> None:
    connector.tell(BOUND, ATTACHED, LEG_UP)
    connector.tell(signaling_client_pb2.ServiceRegistered(intermediate_id="int-1", service="web"))
    connector.tell(
        signaling_client_pb2.Detached(
            intermediate_id="int-1", reason="unavailable", detail="certificate expired on 2026-01-01"
        )
    )
    status = connector.status
    assert status.intermediates[0].state == "detached"
    assert status.services[0].state == "pending"
    assert status.not_ready_reason == (
        "not attached to any intermediate; int-1: certificate expired on 2026-01-01"
    )
    assert connector.problems == ["intermediate int-1: certificate expired on 2026-01-01"]


def test_the_state_of_an_intermediate_follows_its_attachment(agent: World) -> None:
    def state() -> str:
        return str(agent.status.intermediates[0].state)

    assert state() == "idle"
    agent.tell(signaling_client_pb2.Attach(intermediate_id="int-1"))
    assert state() == "connecting"
    agent.tell(ATTACHED, signaling_client_pb2.Attach(intermediate_id="int-1"))
    assert state() == "attached"
    agent.tell(signaling_client_pb2.Detach(intermediate_id="int-1", reason="fail_over"))
    assert state() == "idle"
    assert agent.status.intermediates[0].reason == "fail over"
    agent.tell(signaling_client_pb2.Detached(intermediate_id="int-1", reason="detached"))
    agent.tell(relay_leg_pb2.RelayLegDown(intermediate_id="int-1", reason="closed", carrier="quic"))
    assert state() == "idle"
    assert agent.problems == []


def test_a_leg_shows_its_round_trip_and_its_observed_address_until_it_is_down(agent: World) -> None:
    agent.tell(relay_leg_pb2.LegConnected(intermediate_id="int-1"))
    agent.tell(signaling_client_pb2.Attach(intermediate_id="int-1"))
    assert agent.status.intermediates[0].leg_reason == "waits for the attachment"
    agent.tell(ATTACHED, LEG_UP, relay_leg_pb2.AddressObserved(intermediate_id="int-1", address=ADDRESS))
    agent.tell(
        relay_leg_pb2.LegStatistics(intermediate_id="int-1", rtt_ms=12.5, dropped={"queue_full": 3}),
        relay_leg_pb2.LegStatistics(intermediate_id="int-2", dropped={"queue_full": 4}),
    )
    leg = agent.status.intermediates[0]
    assert (leg.is_leg_up, leg.rtt_ms, leg.observed_address) == (True, 12.5, ADDRESS)
    assert agent.counters['dropped_total{place="relay_leg",reason="queue_full"}'] == 7
    agent.tell(relay_leg_pb2.RelayLegDown(intermediate_id="int-1", reason="idle_timeout", carrier="quic"))
    leg = agent.status.intermediates[0]
    assert (leg.is_leg_up, leg.leg_reason, leg.HasField("observed_address")) == (False, "idle timeout", False)
    assert agent.problems == ["relay leg to int-1: idle timeout"]


def test_a_leg_shows_what_carries_it(agent: World) -> None:
    def leg() -> tuple[bool, str]:
        intermediate = agent.status.intermediates[0]
        return intermediate.is_leg_up, intermediate.leg_carrier

    def down(carrier: str) -> relay_leg_pb2.RelayLegDown:
        return relay_leg_pb2.RelayLegDown(intermediate_id="int-1", reason="no_answer", carrier=carrier)

    over_grpc = relay_leg_pb2.RelayLegUp(intermediate_id="int-1", max_packet_bytes=1200, carrier="grpc")
    agent.tell(ATTACHED)
    assert leg() == (False, "")
    agent.tell(over_grpc, down("quic"))  # tried again, in vain
    assert leg() == (True, "grpc")
    agent.tell(LEG_UP, down("grpc"))  # left behind
    assert leg() == (True, "quic")
    agent.tell(down("quic"))
    assert leg() == (False, "")
    assert agent.status.intermediates[0].leg_reason == "no answer"


def test_a_listener_that_cannot_be_bound_is_a_problem(agent: World) -> None:
    agent.tell(BOUND, service_port_pb2.ListenerChanged(service="web", error="address already in use"))
    status = agent.status
    assert (status.services[0].state, status.services[0].reason) == ("failed", "address already in use")
    assert status.not_ready_reason == "service web does not listen: address already in use"
    assert agent.problems == ["service web: cannot listen on 127.0.0.1:8080: address already in use"]


def test_a_listener_shows_its_real_port(agent: World) -> None:
    address = types_pb2.TransportAddress(host="::1", port=54321)
    agent.tell(service_port_pb2.ListenerChanged(service="web", address=address, is_listening=True))
    agent.tell(service_port_pb2.ListenerChanged(service="unknown", address=address, is_listening=True))
    assert [service.address for service in agent.status.services] == ["[::1]:54321", "127.0.0.1:7070"]


def test_a_service_out_of_reach_tells_why_until_it_is_reached(agent: World) -> None:
    agent.tell(listening("web", 8080))
    agent.tell(session_table_pb2.ServiceUnavailable(service="web", code="no_connector_available"))
    assert agent.status.services[0].reason == "no connector available"
    assert agent.problems == ["service web: no connector available"]
    agent.tell(session_table_pb2.ServiceReady(service="web", session_id=SESSION))
    assert agent.status.services[0].reason == ""
    assert agent.problems == ["service web: no connector available"]


def test_a_reason_that_is_a_word_of_code_is_told_in_words(agent: World) -> None:
    agent.tell(
        signaling_client_pb2.Attach(intermediate_id="int-1"),
        signaling_client_pb2.Detached(intermediate_id="int-1", reason="goodbye", detail="shutting_down"),
        relay_leg_pb2.RelayLegDown(intermediate_id="int-1", reason="closed", detail="shutting_down"),
    )
    assert agent.status.intermediates[0].reason == "shutting down"
    assert sorted(agent.problems) == [
        "intermediate int-1: shutting down",
        "relay leg to int-1: shutting down",
    ]


def test_a_service_that_is_no_longer_granted_is_a_problem(agent: World) -> None:
    agent.tell(
        session_table_pb2.GrantRenewalRefused(
            session_id=SESSION, service="web", connector_id="office", code="access_denied", message="no rule"
        )
    )
    assert agent.problems == ["service web at office is no longer granted: no rule"]


def test_a_session_opens_stands_breaks_and_ends(agent: World) -> None:
    agent.tell(granted())
    session = agent.status.sessions[0]
    assert (session.session_id, session.peer_id, session.state, session.path) == (
        SESSION, "connector-1", "opening", "none",
    )  # fmt: skip
    assert (session.agent_id, session.connector_id) == ("agent-1", "connector-1")
    agent.tell(selected(types_pb2.PATH_KIND_RELAY))
    agent.tell(
        quic_session_pb2.SessionEstablished(
            session_id=SESSION, peer=types_pb2.NodeIdentity(id="connector-1")
        ),
        quic_session_pb2.SessionStatistics(
            session_id=SESSION, rtt_ms=21.0, bytes_sent=2**40, packets_lost=2, datagrams_dropped=5
        ),
        service_port_pb2.FlowOpened(session_id=SESSION, service="ssh", protocol=TCP),
        service_port_pb2.FlowOpened(session_id=SESSION, service="echo", protocol=UDP),
    )
    agent.harness.advance(30)
    session = agent.status.sessions[0]
    assert (session.state, session.path, session.via, session.outage_s) == (
        "established",
        "relay",
        "int-1",
        0,
    )
    assert (session.rtt_ms, session.bytes_sent, session.packets_lost, session.open_streams) == (
        21,
        2**40,
        2,
        1,
    )
    assert (session.age_s, list(session.services)) == (30, ["web", "ssh", "echo"])
    assert "direct" in session.path_reason
    assert agent.counters['dropped_total{place="quic_session",reason="congestion_window_full"}'] == 5
    agent.tell(selected(types_pb2.PATH_KIND_UNSPECIFIED))
    agent.harness.advance(4)
    agent.tell(selected(types_pb2.PATH_KIND_UNSPECIFIED))
    agent.tell(service_port_pb2.FlowClosed(session_id=SESSION, service="ssh", protocol=TCP, reason="closed"))
    session = agent.status.sessions[0]
    assert (session.path, session.outage_s, session.open_streams) == ("none", 4, 0)
    agent.tell(quic_session_pb2.SessionClosed(session_id=SESSION, reason="closed", was_established=True))
    assert list(agent.status.sessions) == []
    assert agent.problems == []


@pytest.mark.parametrize(
    ("policy", "state", "told"),
    [
        (
            "lowest_rtt",
            path_manager_pb2.PATH_STATE_ACTIVE,
            "by lowest_rtt, as a round trip takes 80 ms on it, 90 ms on the relay",
        ),
        ("lowest_rtt", path_manager_pb2.PATH_STATE_FAILED, "keepalive failed"),
        ("prefer_direct", path_manager_pb2.PATH_STATE_ACTIVE, "keepalive failed"),
    ],
)
def test_a_direct_path_that_works_and_is_not_used_says_why(
    agent: World, policy: str, state: path_manager_pb2.PathState.ValueType, told: str
) -> None:
    relayed = selected(types_pb2.PATH_KIND_RELAY)
    relayed.reason = "keepalive_failed"
    statistics = path_manager_pb2.PathStatistics(session_id=SESSION, policy=policy)
    statistics.paths.add(kind=types_pb2.PATH_KIND_DIRECT, state=state, rtt_ms=80.0)
    relay, active = types_pb2.PATH_KIND_RELAY, path_manager_pb2.PATH_STATE_ACTIVE
    statistics.paths.add(kind=relay, state=active, rtt_ms=90.0, is_selected=True)
    statistics.paths.add(kind=relay, state=active, rtt_ms=150.0)
    agent.tell(granted(), relayed, statistics)
    agent.tell(
        hole_punch_pb2.HolePunchChanged(
            session_id=SESSION, generation=1, state=hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED
        )
    )
    (session,) = agent.status.sessions
    assert session.path_reason == f"a direct path works, and is not selected: {told}"


@pytest.mark.parametrize(
    ("reason", "problems"),
    [
        ("closed", []),
        ("operator", []),
        ("peer_closed", []),
        ("peer_lost", ["session with connector-1: peer lost"]),
        ("access_denied", ["session with connector-1: access denied"]),
    ],
)
def test_an_end_that_nobody_wanted_is_a_problem(agent: World, reason: str, problems: list[str]) -> None:
    agent.tell(granted(), quic_session_pb2.SessionClosed(session_id=SESSION, reason=reason))
    assert agent.problems == problems


def test_news_behind_the_end_of_a_session_do_not_bring_it_back(agent: World) -> None:
    agent.tell(granted())
    agent.tell(quic_session_pb2.SessionClosed(session_id=SESSION, reason="idle_timeout"))
    agent.tell(selected(types_pb2.PATH_KIND_RELAY))
    agent.tell(quic_session_pb2.SessionStatistics(session_id=SESSION, bytes_sent=1))
    agent.tell(service_port_pb2.FlowOpened(session_id=SESSION, service="web", protocol=TCP))
    assert list(agent.status.sessions) == []
    assert agent.problems == ["session with connector-1: idle timeout"]


def test_a_granted_session_that_never_comes_is_forgotten(agent: World) -> None:
    agent.tell(granted())
    agent.harness.advance(OPENING_LIMIT_S - 1)
    assert len(agent.status.sessions) == 1
    agent.harness.advance(1)
    assert len(agent.status.sessions) == 0


def test_an_offered_session_names_the_agent(connector: World) -> None:
    agent_identity = types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id="agent-7")
    connector.tell(signaling_client_pb2.SessionOffered(session_id=SESSION, agent=agent_identity))
    session = connector.status.sessions[0]
    assert (session.peer_id, session.agent_id, session.connector_id) == ("agent-7", "agent-7", "connector-1")


def test_handshakes_that_wait_are_counted_by_reason(connector: World) -> None:
    for reason in ("handshake_budget", "network_handshake_budget", "handshake_budget"):
        connector.tell(quic_session_pb2.HandshakeDeferred(session_id=SESSION, reason=reason))
    assert connector.counters['refusals_total{place="session",reason="handshake_budget"}'] == 2
    assert connector.counters['refusals_total{place="session",reason="network_handshake_budget"}'] == 1


def test_a_session_closed_for_a_bad_certificate_is_a_problem(connector: World) -> None:
    connector.tell(
        quic_session_pb2.SessionClosed(
            session_id=SESSION,
            reason="certificate_expired",
            message="expired on 2026-01-01",
            is_authentication_failure=True,
        )
    )
    assert connector.problems == ["session with 00010203: expired on 2026-01-01"]


@pytest.mark.parametrize(
    ("world", "event", "sentence"),
    [
        (
            "agent",
            "service_port.flow_refused",
            "service web: refused by connector node-9: the backend does not answer",
        ),
        (
            "connector",
            "service_backend.flow_refused",
            "service web: refused to agent node-9: the backend does not answer",
        ),
    ],
)
def test_a_refused_flow_names_the_actor_that_says_it_and_the_other_side(
    world: str, event: str, sentence: str, request: pytest.FixtureRequest
) -> None:
    subject: World = request.getfixturevalue(world)
    subject.tell(
        service_port_pb2.FlowRefusedReported(
            service="web", peer_id="node-9", code="backend_unreachable", message="the backend does not answer"
        )
    )
    (problem,) = subject.status.problems
    assert (problem.event, problem.message) == (event, sentence)


def test_other_troubles_become_sentences(connector: World) -> None:
    connector.tell(
        udp_socket_pb2.SendFailed(
            remote=types_pb2.TransportAddress(host="2001:db8::1", port=4433), error="network is unreachable"
        ),
        service_port_pb2.FlowClosed(service="web", reason="backend_reset", protocol=TCP),
    )
    assert connector.problems == [
        "service web: backend reset",
        "cannot send to [2001:db8::1]:4433: network is unreachable",
    ]


def test_a_session_that_an_intermediate_refuses_is_a_problem(agent: World) -> None:
    agent.tell(signaling_client_pb2.SessionRequestFailed(intermediate_id="int-1", code="rate_limited"))
    assert agent.problems == ["intermediate int-1 gave no session: rate limited"]


def test_counters_of_services_are_summed(connector: World) -> None:
    connector.tell(ATTACHED, ATTACHED, ATTACHED)
    connector.tell(
        service_port_pb2.ServiceStatistics(
            service="web",
            active=3,
            total=10,
            refused=1,
            errors=2,
            bytes_to_service=100,
            bytes_from_service=900,
            packets_to_service=4,
            packets_from_service=6,
            dropped={"no_backend": 2},
        ),
        service_port_pb2.ServiceStatistics(service="unknown", active=1000),
    )
    counters = connector.counters
    assert counters["active_connections"] == 3
    assert counters["connector_forwarded_packets_total"] == 10
    assert counters["connector_forwarded_bytes_total"] == 1000
    assert counters["connector_tcp_sessions_total"] == 10
    assert counters["connector_tcp_errors_total"] == 2
    assert counters["connector_reconnections_total"] == 2
    assert counters['dropped_total{place="service_backend",reason="no_backend"}'] == 2
    assert connector.status.services[0].bytes_from_service == 900


def test_keepalives_and_dual_sends_are_summed_over_sessions_that_ended_too(agent: World) -> None:
    for number, session_id in enumerate((SESSION, OTHER_SESSION), 1):
        agent.tell(established(session_id))
        for factor in (1, 2):
            agent.tell(
                keepalive_pb2.KeepaliveStatistics(
                    session_id=session_id, checks_sent=10 * factor, checks_missed=number * factor
                ),
                quic_session_pb2.SessionStatistics(session_id=session_id, dual_sends=3 * factor),
            )
    # An actor that was restarted counts from zero.
    agent.tell(
        keepalive_pb2.KeepaliveStatistics(session_id=SESSION, checks_sent=1),
        quic_session_pb2.SessionClosed(session_id=OTHER_SESSION, reason="closed"),
    )
    counters = agent.counters
    assert counters["keepalives_sent_total"] == 40
    assert counters["keepalives_missed_total"] == 6
    assert counters["dual_sends_total"] == 12


def test_round_trips_are_told_by_kind_of_path_and_not_by_session(connector: World) -> None:
    def samples() -> dict[tuple[str, ...], float]:
        every = connector.harness.concern.samples()
        return {sample.labels: sample.value for sample in every if sample.name == "path_rtt_seconds"}

    assert samples() == {}
    for session_id, relay_ms, direct_ms in ((SESSION, 40.0, 10.0), (OTHER_SESSION, 80.0, 0.0)):
        connector.tell(established(session_id), paths(session_id, relay_ms, direct_ms))
    assert samples() == {
        ("relay", "median"): 0.06,
        ("relay", "max"): 0.08,
        ("direct", "median"): 0.01,
        ("direct", "max"): 0.01,
    }
    connector.tell(quic_session_pb2.SessionClosed(session_id=OTHER_SESSION, reason="closed"))
    assert samples()["relay", "max"] == 0.04


def test_the_loop_lag_is_how_late_the_tick_came(agent: World) -> None:
    concern = agent.harness.concern
    due = concern.next_deadline()
    concern.handle_timeout(due - 0.5)
    assert concern.next_deadline() == due
    concern.handle_timeout(due + 0.25)
    lag = [sample.value for sample in concern.samples() if sample.name == "loop_lag_seconds"]
    assert lag == [pytest.approx(0.25)]


def test_a_bug_in_the_bookkeeping_is_logged_once_and_ends_nothing(
    agent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(agent.harness.concern._book, "sockets_bound", fail)
    agent.tell(BOUND, BOUND)
    assert agent.harness.is_alive
    assert [entry["event"] for entry in agent.harness.logs] == ["status_board.bookkeeping_failed"]


def attached_node(attach: int, node: str, superseded: bytes = b"") -> signaling_service_pb2.NodeAttached:
    return signaling_service_pb2.NodeAttached(
        attach_id=bytes([attach]),
        node=types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id=node),
        carrier="grpc",
        superseded_attach_id=superseded,
    )


def test_an_intermediate_is_ready_when_bound_and_all_its_actors_run(intermediate: World) -> None:
    intermediate.children.append(child("signaling_service", ChildState.STARTING))
    intermediate.tell(BOUND)
    assert intermediate.status.not_ready_reason == "the daemon's signaling service is starting"
    intermediate.children[-1] = child("signaling_service")
    assert intermediate.status.is_ready


def test_nodes_come_lose_their_leg_and_go(intermediate: World) -> None:
    intermediate.tell(attached_node(1, "agent-1"), quic_relay_pb2.LegOpened(attach_id=b"\1", carrier="quic"))
    intermediate.harness.advance(9)
    node = intermediate.status.nodes[0]
    assert (node.id, node.role, node.carrier, node.is_leg_up, node.attached_s) == (
        "agent-1", types_pb2.ROLE_AGENT, "grpc", True, 9,
    )  # fmt: skip
    assert node.leg_carrier == "quic"
    intermediate.tell(quic_relay_pb2.LegJudged(attach_id=b"\1", is_alive=True))
    intermediate.tell(quic_relay_pb2.LegOpened(attach_id=b"\1", carrier="grpc"))
    assert intermediate.status.nodes[0].leg_carrier == "grpc"
    intermediate.tell(quic_relay_pb2.LegJudged(attach_id=b"\1", is_alive=False, reason="idle_timeout"))
    assert not intermediate.status.nodes[0].is_leg_up
    assert intermediate.status.nodes[0].leg_carrier == ""
    intermediate.tell(attached_node(2, "agent-1", superseded=b"\1"))
    intermediate.tell(quic_relay_pb2.LegOpened(attach_id=b"\1", carrier="quic"))
    assert [(node.id, node.is_leg_up) for node in intermediate.status.nodes] == [("agent-1", False)]
    intermediate.tell(
        signaling_service_pb2.NodeDetached(
            attach_id=b"\2",
            node=types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id="agent-1"),
            reason="peer_lost",
        )
    )
    assert list(intermediate.status.nodes) == []
    assert intermediate.problems == ["agent agent-1 was lost: peer lost"]


def test_sessions_of_an_intermediate_show_what_was_relayed(intermediate: World) -> None:
    intermediate.tell(
        session_manager_pb2.SessionsStatistics(
            sessions=[
                session_manager_pb2.SessionsStatistics.Session(
                    session_id=SESSION,
                    agent_id="agent-1",
                    connector_id="connector-1",
                    services=["web"],
                    state="relayed",
                    opened_at_s=START_WALL_TIME - 60,
                )
            ],
            opened_total=5,
        ),
        quic_relay_pb2.RelayStatistics(
            legs=2,
            packets_relayed=7,
            bytes_relayed=8000,
            dropped={"queue_full": 1},
            retry_tokens_validated=2,
            refused={"invalid_token": 3, "replayed_token": 2},
            sessions=[quic_relay_pb2.RelayStatistics.Session(session_id=SESSION, packets=7, bytes=8000)],
        ),
        registry_pb2.RegistryStatistics(
            services=[registry_pb2.RegistryStatistics.Service(service="web", connectors=["connector-1"])],
            registrations=4,
            rejections={"access_denied": 1},
            session_refusals={"no_connector_available": 2},
        ),
    )
    session = intermediate.status.sessions[0]
    assert (session.agent_id, session.connector_id, session.state, session.age_s, session.bytes_sent) == (
        "agent-1", "connector-1", "relayed", 60, 8000,
    )  # fmt: skip
    assert intermediate.status.registered_services[0].id == "web"
    expected = {
        "active_connections": 2,
        "sessions": 1,
        "relay_bytes_total": 8000,
        "datagrams_relayed_total": 7,
        "registrations_total": 4,
        "registration_rejections_total": 1,
        "signaling_sessions_total": 5,
        "retry_tokens_validated_total": 2,
        "retry_token_failures_total": 5,
        'dropped_total{place="relay",reason="queue_full"}': 1,
        'dropped_total{place="quic",reason="invalid_token"}': 3,
        'dropped_total{place="quic",reason="replayed_token"}': 2,
    }
    assert {key: intermediate.counters[key] for key in expected} == expected
    assert intermediate.problems == [
        "sessions refused: no connector available",
        "registrations rejected: access denied",
        "connections refused: replayed token",
        "connections refused: invalid token",
    ]


def test_refusals_of_stun_are_counted_by_reason_and_answers_are_none(intermediate: World) -> None:
    intermediate.tell(udp_socket_pb2.SocketStatistics(stun={"answered": 9, "malformed": 4, "source_rate": 0}))
    found = {key: count for key, count in intermediate.counters.items() if 'place="stun"' in key}
    assert found == {'dropped_total{place="stun",reason="malformed"}': 4}


def test_request_at_the_metrics_port_that_is_none_is_counted_and_logged_once_per_burst(
    intermediate: World,
) -> None:
    board = intermediate.harness.concern
    for _ in range(3):
        board.request_refused("malformed")
    intermediate.harness.advance(BURST_S + 1)
    lines = intermediate.harness.logs
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("status_board.request_refused", "malformed"),
        ("status_board.request_refused_repeated", "malformed"),
    ]
    assert intermediate.counters['refusals_total{place="http",reason="malformed"}'] == 3


def test_a_refusal_is_noted_when_its_count_rises(intermediate: World) -> None:
    for count in (2, 2, 3):
        intermediate.tell(signaling_service_pb2.SignalingStatistics(refused={"rate_limited": count}))
    problem = intermediate.status.problems[0]
    assert (problem.message, problem.count) == ("signaling refused: rate limited", 2)


@pytest.mark.parametrize("board", ["agent", "connector", "intermediate"])
def test_every_message_of_the_dispatch_table_is_understood(
    board: str, request: pytest.FixtureRequest
) -> None:
    subject: World = request.getfixturevalue(board)
    for message_type in type(subject.harness.concern).wired_messages():
        subject.tell(message_type())
    assert subject.harness.logs == []
    assert subject.harness.is_alive


def test_problems_are_counted_newest_first_and_bounded() -> None:
    log = ProblemLog()
    for number in range(MAX_PROBLEMS + 1):
        log.note("udp_socket.send_failed", f"problem {number}", 100.0 + number)
    log.note("udp_socket.send_failed", "problem 5", 200.0)
    problems = log.newest_first()
    assert len(problems) == MAX_PROBLEMS
    assert (problems[0].message, problems[0].count, problems[0].at_s) == ("problem 5", 2, 200.0)
    assert problems[-1].message == "problem 1"


def test_a_long_problem_is_cut() -> None:
    log = ProblemLog()
    log.note("relay_leg.down", "x" * (MAX_PROBLEM_CHARACTERS + 1), 0.0)
    assert len(log.newest_first()[0].message) == MAX_PROBLEM_CHARACTERS


def test_drop_reasons_are_bounded(agent: World) -> None:
    dropped = {f"reason_{number}": 1 for number in range(MAX_DROP_REASONS + 10)}
    agent.tell(udp_socket_pb2.SocketStatistics(dropped=dropped))
    assert sum(key.startswith("dropped_total") for key in agent.counters) == MAX_DROP_REASONS


def test_refusals_are_counted_by_place_and_reason(connector: World, intermediate: World) -> None:
    for code in ("limit", "limit", "access_denied"):
        connector.tell(service_port_pb2.FlowRefusedReported(service="web", peer_id="a", code=code))
    ends = {"flow_id_out_of_order": False, "protocol_error": True, "idle_timeout": False, "closed": False}
    for reason, is_remote in ends.items():
        connector.tell(quic_session_pb2.SessionClosed(session_id=SESSION, reason=reason, is_remote=is_remote))
    assert refusals(connector) == {
        'place="service_backend",reason="limit"': 2,
        'place="service_backend",reason="access_denied"': 1,
        'place="session",reason="flow_id_out_of_order"': 1,
    }
    intermediate.tell(
        signaling_service_pb2.SignalingStatistics(refused={"rate_limited": 7}, superseded_total=3),
        registry_pb2.RegistryStatistics(
            rejections={"access_denied": 2}, session_refusals={"access_denied": 4}
        ),
        session_manager_pb2.SessionsStatistics(refused={"not_a_party": 5}),
    )
    assert refusals(intermediate) == {
        'place="signaling",reason="rate_limited"': 7,
        'place="registration",reason="access_denied"': 2,
        'place="session_request",reason="access_denied"': 4,
        'place="session",reason="not_a_party"': 5,
    }
    assert intermediate.counters["superseded_total"] == 3


def refusals(world: World) -> dict[str, int]:
    return {
        key.removeprefix("refusals_total{").removesuffix("}"): count
        for key, count in world.counters.items()
        if key.startswith("refusals_total")
    }


def test_refusal_reasons_are_bounded(intermediate: World) -> None:
    refused = {f"reason_{number}": 1 for number in range(MAX_DROP_REASONS + 10)}
    intermediate.tell(signaling_service_pb2.SignalingStatistics(refused=refused))
    assert len(refusals(intermediate)) == MAX_DROP_REASONS


def test_identity_that_attached_twice_is_a_problem_with_both_addresses(intermediate: World) -> None:
    first, second = attached_node(1, "agent-1"), attached_node(2, "agent-1", superseded=b"\1")
    first.remote, second.remote, second.superseded_remote = "192.0.2.1:5", "192.0.2.2:6", "192.0.2.1:5"
    intermediate.tell(first, second)
    (problem,) = intermediate.problems
    assert problem == (
        "agent agent-1 attached from 192.0.2.2:6 while attached from 192.0.2.1:5: "
        "do two processes use one certificate?"
    )


def test_sessions_and_their_services_are_bounded() -> None:
    sessions = SessionList()
    for number in range(MAX_SESSIONS + 1):
        sessions.open(number.to_bytes(16, "big"), "peer", 0.0)
    assert len(sessions) == MAX_SESSIONS
    for number in range(MAX_SERVICES_PER_SESSION + 1):
        sessions.carry(bytes(16), f"service-{number}")
    shown = list(sessions.newest_first(0.0, MAX_LISTED))
    assert len(shown) == MAX_LISTED
    assert shown[0].session_id == (MAX_SESSIONS - 1).to_bytes(16, "big")
    assert len(list(sessions.newest_first(0.0, MAX_SESSIONS))[-1].services) == MAX_SERVICES_PER_SESSION


def test_totals_of_actors_outlive_them() -> None:
    totals = ActorTotals()

    def messages(*children: ChildStatus) -> dict[str, float]:
        totals.observe(children)
        return {s.labels[0]: s.value for s in totals.samples() if s.name == "actor_messages_total"}

    first = child("quic_session", key="aa", handled=10)
    assert messages(first, child("quic_session", key="bb", handled=5)) == {"quic_session": 15}
    assert messages(child("quic_session", key="bb", handled=6)) == {"quic_session": 16}
    assert messages(child("quic_session", key="bb", handled=1)) == {"quic_session": 17}
    assert messages() == {"quic_session": 17}


def test_actors_of_an_intermediate_share_the_label_of_their_concern(agent: World) -> None:
    agent.children = [
        child("relay_leg/int-1", inbox_depth=2, busy_s=0.5, restarts=1),
        child("relay_leg/int-2", inbox_depth=3, busy_s=0.25),
    ]
    samples = {
        sample.name: sample.value
        for sample in agent.harness.concern.samples()
        if sample.labels == ("relay_leg",)
    }
    assert samples == {
        "actor_inbox_depth": 5,
        "actor_messages_total": 0,
        "actor_handling_seconds_total": 0.75,
        "actor_restarts_total": 1,
    }
    assert [actor.name for actor in agent.status.actors] == ["relay_leg/int-1", "relay_leg/int-2"]


NODE = {"node": {"id": "node-1", "cert": "c", "key": "k", "ca": "a"}}
INTERMEDIATES = {"intermediates": [{"id": "int-1", "quic": "127.0.0.1:4433", "grpc": "127.0.0.1:4434"}]}


def _agent_settings() -> AgentSettings:
    services = [{"id": "web", "protocol": "tcp", "listen": "127.0.0.1:8080"}]
    return AgentSettings.model_validate({**NODE, **INTERMEDIATES, "services": services})


def _connector_settings() -> ConnectorSettings:
    services = [{"id": "web", "protocol": "tcp", "backend": "host:80"}]
    return ConnectorSettings.model_validate(
        {
            **NODE,
            **INTERMEDIATES,
            "services": services,
            "metrics": {"listen": ""},
            "control": {"socket": "x.sock"},
        }
    )


@pytest.mark.parametrize(
    ("make", "daemon", "services"),
    [
        (_agent_settings, "agent", (ServiceLine("web", TCP, "127.0.0.1:8080"),)),
        (_connector_settings, "connector", (ServiceLine("web", TCP, "host:80"),)),
        (lambda: IntermediateSettings.model_validate(NODE), "intermediate", ()),
    ],
)
def test_a_board_takes_its_slice_of_the_settings(
    make: Callable[[], Any], daemon: str, services: tuple[ServiceLine, ...]
) -> None:
    settings = BoardSettings.of(make())
    assert (settings.book.daemon, settings.book.id, settings.book.services) == (daemon, "node-1", services)
    assert (settings.metrics_listen is None) == (daemon == "connector")
    assert settings.control_socket == (Path("x.sock") if daemon == "connector" else None)


def test_the_table_of_metrics_in_the_documents_is_the_catalogue() -> None:
    text = Path("docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ztna_\w+)` \| (\w+) \| ([^|]*) \| (\w+) \| ([^|]*) \|$", text, re.MULTILINE)
    expected = [
        (
            f"ztna_{spec.name}",
            spec.kind,
            ", ".join(f"`{label}`" for label in spec.labels),
            spec.daemons,
            spec.meaning,
        )
        for spec in CATALOGUE
    ]
    assert rows == expected


@pytest.mark.parametrize("board", ["agent", "connector", "intermediate"])
def test_every_documented_metric_of_a_daemon_is_exposed(board: str, request: pytest.FixtureRequest) -> None:
    subject: World = request.getfixturevalue(board)
    subject.tell(udp_socket_pb2.SocketStatistics(dropped={"queue_full": 1}))
    refusal = {
        "agent": service_port_pb2.FlowRefusedReported(code="limit"),
        "connector": service_port_pb2.FlowRefusedReported(code="limit"),
        "intermediate": signaling_service_pb2.SignalingStatistics(refused={"limit": 1}),
    }
    subject.tell(refusal[board])
    subject.harness.io.nearly_lacks = Shortage("file_descriptor_limit", "nearly all are in use")
    subject.harness.advance(1.0)
    if board != "intermediate":
        subject.tell(
            hole_punch_pb2.HolePunchFinished(is_direct=True),
            established(),
            paths(SESSION, relay_ms=40.0),
        )
    if board == "connector":
        subject.tell(service_health_pb2.ServiceHealthChanged(service="web", is_healthy=True))
    text = exposition(subject.harness.concern.samples)().decode()
    names = set(re.findall(r"^(ztna_\w+)", text, re.MULTILINE))
    kinds = {"all", board} if board == "intermediate" else {"all", "nodes", board}
    assert names == {f"ztna_{spec.name}" for spec in CATALOGUE if spec.daemons in kinds}
    assert 'ztna_dropped_total{place="udp_socket",reason="queue_full"} 1.0' in text


def test_results_of_searches_that_a_peer_words_are_one_series_beyond_the_bound(agent: World) -> None:
    for number in range(2 * MAX_ATTEMPT_RESULTS):
        agent.tell(hole_punch_pb2.HolePunchFinished(reason=f"peer_word_{number}"))
    agent.tell(hole_punch_pb2.HolePunchFinished(is_direct=True))
    text = exposition(agent.harness.concern.samples)().decode()
    counts = dict(re.findall(r'^ztna_hole_punch_attempts_total{result="(\w+)"} (\S+)$', text, re.MULTILINE))
    assert len(counts) == MAX_ATTEMPT_RESULTS
    assert float(counts[OTHER_RESULTS]) == MAX_ATTEMPT_RESULTS + 2


def test_services_follow_the_configuration_and_counters_do_not_go_back(agent: World) -> None:
    agent.tell(
        service_port_pb2.ServiceStatistics(service="web", active=0, total=7, bytes_to_service=100),
        service_port_pb2.ServiceStatistics(service="echo", total=2, bytes_to_service=10),
    )
    lines = (ServiceLine("web", TCP, "127.0.0.1:9999"), ServiceLine("late", TCP, "127.0.0.1:1"))
    agent.settings = BoardSettings(BookSettings("agent", "agent-1", ("int-1",), lines))
    agent.tell(reload_pb2.ConfigurationReloaded())
    assert [(each.id, each.address, each.total) for each in agent.status.services] == [
        ("web", "127.0.0.1:9999", 7),
        ("late", "127.0.0.1:1", 0),
    ]
    assert agent.counters["agent_forwarded_bytes_total"] == 110


def test_dates_of_certificate_ca_and_list_are_those_of_now(agent: World) -> None:
    assert (agent.status.certificate_expires_at_s, agent.status.crl_next_update_at_s) == (0.0, 0.0)
    agent.harness.concern._book.validity = lambda: Validity(1.8e9, 2.1e9, 1.7e9)
    assert agent.status.certificate_expires_at_s == 1.8e9
    assert agent.status.ca_expires_at_s == 2.1e9
    assert agent.status.crl_next_update_at_s == 1.7e9
    text = exposition(agent.harness.concern.samples)().decode()
    assert "ztna_certificate_expiry_timestamp_seconds 1.8e+09" in text
    assert "ztna_crl_next_update_timestamp_seconds 1.7e+09" in text


class RecordedWish(ReloadWish):
    """A wish that nobody awaits."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def answer(self, answer: control_pb2.ReloadResponse | Refusal) -> None:
        self.told.append(str(getattr(answer, "applied", answer)))


def test_reload_is_answered_once_the_actors_have_heard_of_it(agent: World) -> None:
    told: list[str] = []
    agent.reloads.append(Change(None, ("services",), ()))
    agent.on_reload = lambda: agent.harness.io.call_soon(partial(told.append, "heard"))
    agent.harness.concern.reload(RecordedWish(told))
    agent.harness.io.run_until_idle()
    assert told == ["heard", "['services']"]


def test_limit_that_is_nearly_reached_is_told_once_and_counted_until_it_is_left_for_a_while(
    intermediate: World,
) -> None:
    harness = intermediate.harness
    harness.io.nearly_lacks = Shortage("file_descriptor_limit", "nearly all of 64 (RLIMIT_NOFILE) are in use")
    for _ in range(5):
        harness.advance(1.0)
    harness.io.nearly_lacks = None
    harness.advance(1.0)
    harness.io.nearly_lacks = Shortage("file_descriptor_limit", "nearly all of 64 (RLIMIT_NOFILE) are in use")
    harness.advance(1.0)
    harness.io.nearly_lacks = None
    for _ in range(12):
        harness.advance(1.0)
    assert intermediate.counters['near_limit_seconds_total{reason="file_descriptor_limit"}'] == 6
    assert intermediate.problems == [
        "file_descriptor_limit: nearly all of 64 (RLIMIT_NOFILE) are in use",
    ]
    assert [line["event"] for line in harness.logs] == [
        "status_board.limit_nearly_reached",
        "status_board.limit_left",
    ]
