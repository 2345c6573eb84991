"""Faults of simulated deployments, one at a time: that each does what it says, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message

from tests.simnet.link import LinkConfig
from tests.simnet.nat import PORT_RESTRICTED
from tests.simnet.world import Daemon
from tools.simulate import invariants
from tools.simulate.deployment import Deployment
from tools.simulate.minimise import minimise
from tools.simulate.run import Outcome, run
from tools.simulate.scenario import Fault, FaultKind, Narrow, Scenario, Site, Work, WorkKind
from ztna.ice import checks
from ztna.v1 import path_manager_pb2, relay_leg_pb2, types_pb2

EXPIRE, WITHDRAW, SUSPEND = FaultKind.EXPIRE, FaultKind.WITHDRAW, FaultKind.SUSPEND


def scenario(*faults: Fault, policy: str = "prefer_direct", has_grpc: bool = False) -> Scenario:
    """Two agents and a connector, with a stream of eight seconds from each agent."""
    return Scenario(
        seed=1,
        name="certificates",
        policy=policy,
        link=LinkConfig(latency_s=0.014),
        intermediates=("intermediate-0",),
        agents={"agent-0": Site((PORT_RESTRICTED,)), "agent-1": Site()},
        connectors={"connector-0": Site((PORT_RESTRICTED,))},
        work=tuple(
            Work(1.0, WorkKind.STREAM, agent, "connector-0", up=40_000, down=40_000, over_s=8.0)
            for agent in ("agent-0", "agent-1")
        ),
        faults=faults,
        has_grpc=has_grpc,
        max_seconds=190.0,
    )


def held(outcome: Outcome) -> Outcome:
    assert not outcome.violation, "\n".join([outcome.violation, *outcome.lines[-60:]])
    return outcome


@pytest.mark.parametrize(("policy", "has_grpc"), [("prefer_direct", False), ("relay_only", True)])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(4.0, EXPIRE, "agent-0", lasts_s=8.0),
        Fault(4.0, WITHDRAW, "agent-0", lasts_s=8.0, detail="all"),
        Fault(4.0, WITHDRAW, "agent-0", lasts_s=12.0, detail="intermediates"),
        Fault(4.0, WITHDRAW, "agent-0", detail="peers"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.detail}",
)
def test_agent_whose_certificate_is_worth_nothing_is_cut_off_and_the_other_feels_nothing(
    fault: Fault, policy: str, has_grpc: bool
) -> None:
    outcome = held(run(scenario(fault, policy=policy, has_grpc=has_grpc)))
    assert outcome.facts["streams"] == 1
    assert outcome.facts["excused"] == 1


@pytest.mark.parametrize("kind", [EXPIRE, WITHDRAW])
def test_connector_whose_certificate_is_worth_nothing_serves_nobody_until_it_is_renewed(
    kind: FaultKind,
) -> None:
    outcome = held(run(scenario(Fault(4.0, kind, "connector-0", lasts_s=8.0, detail="all"))))
    assert outcome.facts["excused"] == 2


def test_intermediate_whose_certificate_ended_takes_nodes_again_once_it_is_renewed() -> None:
    faults = (
        Fault(4.0, EXPIRE, "intermediate-0", lasts_s=6.0),
        *(Fault(11.0, FaultKind.KILL, agent, lasts_s=1.0) for agent in ("agent-0", "agent-1")),
    )
    held(run(scenario(*faults)))


@pytest.mark.parametrize("policy", ["prefer_direct", "relay_only"])
@pytest.mark.parametrize("lasts_s", [0.0, 6.0])
def test_streams_outlive_the_revocation_of_their_intermediate_beside_another_one(
    policy: str, lasts_s: float
) -> None:
    fault = Fault(4.0, WITHDRAW, "intermediate-0", lasts_s=lasts_s, detail="peers")
    subject = replace(scenario(fault, policy=policy), intermediates=("intermediate-0", "intermediate-1"))
    outcome = held(run(subject))
    assert (outcome.facts["streams"], outcome.facts["excused"]) == (2, 0)


def test_grant_of_an_intermediate_whose_certificate_had_ended_is_replaced_soon_after_its_renewal() -> None:
    flow = Work(6.0, WorkKind.DATAGRAMS, "agent-0", "connector-0", up=5, down=20, over_s=0.2)
    subject = scenario(Fault(4.0, EXPIRE, "intermediate-0", lasts_s=6.0))
    assert not run(replace(subject, work=(*subject.work, flow))).violation


def test_stream_that_goes_on_beyond_the_end_of_a_certificate_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.quic_session.QuicSession.recheck_peer", lambda _session: None)
    violation = run(scenario(Fault(5.2, EXPIRE, "agent-0", lasts_s=8.0))).violation
    assert "may not come here any more" in violation


@pytest.mark.parametrize("detail", ["", "stands"])
@pytest.mark.parametrize(
    ("target", "seconds"), [("agent-0", 5.0), ("agent-0", 30.0), ("agent-0", 120.0), ("connector-0", 30.0)]
)
def test_session_heals_when_a_machine_wakes(target: str, seconds: float, detail: str) -> None:
    held(run(replace(scenario(Fault(3.0, SUSPEND, target, seconds, detail=detail)), name="asleep")))


def test_clocks_of_a_machine_that_sleeps() -> None:
    with Deployment(scenario(), lambda _what: None, lambda *_: None) as world:
        world.start()
        world.run_for(2.0)
        rang: list[float] = []
        for name in ("agent-0", "agent-1"):
            io = world.daemons[name].io
            assert io is not None
            io.call_at(io.time() + 3.0, lambda io=io: rang.append(io.time()))  # type: ignore[misc]
        began = world.now
        world.suspend("agent-0", 10.0, stands=True)
        world.suspend("agent-1", 10.0, stands=False)
        world.run_for(9.0)
        assert rang == []
        world.run_for(1.5)
        assert rang == [pytest.approx(began + 10.0)]
        world.run_for(3.0)
        assert rang[1:] == [pytest.approx(began + 3.0)]
        walls = [each.io.wall_time() for each in world.daemons.values() if each.io is not None]
        assert set(walls) == {world.wall_time(world.now)}


def selected_by_agent(subject: Scenario, seconds: float) -> types_pb2.PathKind.ValueType:
    """Which path the session of agent-1 takes after so long."""
    kinds: list[types_pb2.PathKind.ValueType] = []

    def on_message(daemon: Daemon, message: Message) -> None:
        if daemon.id == "agent-1" and isinstance(message, path_manager_pb2.PathSelected):
            kinds.append(message.kind)

    subject = replace(subject, agents={"agent-1": Site()}, connectors={"connector-0": Site()})
    with Deployment(subject, lambda _what: None, on_message) as world:
        world.start()
        world.wait_ready()
        world.tcp_client("agent-1", b"x" * 10, port=world.tcp_port("connector-0"))
        world.run_until(lambda: bool(world.daemons["agent-1"].facts.established), 10)
        world.run_for(seconds)
    return kinds[-1]


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize(
    ("mtu", "kind"), [(1227, types_pb2.PATH_KIND_RELAY), (1228, types_pb2.PATH_KIND_DIRECT)]
)
def test_way_is_direct_only_if_packets_of_full_size_pass(
    mtu: int, kind: types_pb2.PathKind.ValueType, is_told: bool
) -> None:
    narrow = (Narrow("agent-1", "connector-0", mtu, is_told),)
    assert selected_by_agent(replace(scenario(), narrow=narrow), 6.0) == kind


@pytest.mark.parametrize("is_told", [False, True])
def test_way_to_the_intermediate_that_is_too_narrow_for_quic_leads_to_grpc(is_told: bool) -> None:
    narrow = (Narrow("agent-1", "intermediate-0", 1200, is_told),)
    carriers: dict[str, str] = {}

    def on_message(daemon: Daemon, message: Message) -> None:
        if isinstance(message, relay_leg_pb2.RelayLegUp):
            carriers[daemon.id] = message.carrier

    subject = replace(scenario(has_grpc=True), narrow=narrow)
    with Deployment(subject, lambda _what: None, on_message) as world:
        world.start()
        world.run_until(lambda: len(carriers) == 3, 15, "all legs up")
    assert carriers == {"agent-0": "quic", "agent-1": "grpc", "connector-0": "quic"}
    held(run(subject))


def test_payload_longer_than_any_answered_check_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    build = checks.build_check

    def build_short(*values: Any, **how: Any) -> bytes:
        return build(*values, **{**how, "is_padded": False})

    monkeypatch.setattr(checks, "build_check", build_short)
    # Another rule would see it as soon as a pair is nominated.
    monkeypatch.setattr(invariants, "PADDED_CHECK_BYTES", 0)
    violation = run(replace(scenario(), name="mixed")).violation
    assert "where no check was as long" in violation


def test_minimiser_takes_narrow_ways_and_grpc_away() -> None:
    culprit = Narrow("agent-0", "connector-0", 1000)
    wide = Narrow("agent-1", "connector-0", 1400)
    subject = replace(scenario(), narrow=(wide, culprit), has_grpc=True)

    def attempt(candidate: Scenario) -> Outcome:
        is_broken = culprit in candidate.narrow
        return Outcome(candidate.seed, candidate.name, violation="it broke" if is_broken else "")

    least = minimise(subject, attempt(subject), attempt=attempt)
    assert least.narrow == (culprit,)
    assert not least.has_grpc
