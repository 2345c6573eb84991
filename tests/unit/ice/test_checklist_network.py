"""Both ends on a simulated network: what must work works in time, what cannot work fails."""

from __future__ import annotations

import random
from itertools import product

import pytest

from tests.unit.ice.simulation import (
    ADF,
    APDF,
    APDM,
    EIF,
    EIM,
    End,
    Nat,
    Simulation,
    credentials,
    host_candidate,
    told,
)
from ztna.address import TransportAddress
from ztna.ice.candidate import CandidateType
from ztna.ice.checklist_effects import (
    AcceptCredentials,
    ChecklistFailed,
    ChecksBegan,
    PairNominated,
    PairSucceeded,
    SendCheck,
)
from ztna.ice.checks import PADDED_CHECK_BYTES
from ztna.ice.pair import PairState
from ztna.ice.timing import NOMINATION_SETTLE_S
from ztna.nat.behaviour import UNKNOWN_BEHAVIOUR, Dependence, direct_path_possible
from ztna.stun.attributes import UseCandidate
from ztna.stun.message import parse

KINDS = [None, *product((EIM, APDM), (EIF, ADF, APDF))]
SHORT = {Dependence.ENDPOINT_INDEPENDENT: "ei", ADF: "ad", APDF: "apd"}


def name_of(kind: tuple[Dependence, Dependence] | None) -> str:
    return "open" if kind is None else f"{SHORT[kind[0]]}m-{SHORT[kind[1]]}f"


def two_sites(
    simulation: Simulation,
    one: tuple[Dependence, Dependence] | None,
    other: tuple[Dependence, Dependence] | None,
) -> tuple[End, End]:
    nats = [
        None if kind is None else Nat(f"198.51.100.{number}", *kind, seed=number)
        for number, kind in enumerate((one, other), start=1)
    ]
    hosts = ["10.1.0.2" if one else "192.0.2.1", "10.2.0.2" if other else "192.0.2.2"]
    agent = simulation.end("agent", host_candidate(hosts[0]), nat=nats[0])
    connector = simulation.end("connector", host_candidate(hosts[1]), nat=nats[1])
    return agent, connector


@pytest.mark.parametrize(("rtt_s", "skew_s"), [(0.02, 0.0), (0.08, 0.05), (0.3, 0.0)])
@pytest.mark.parametrize("other", KINDS, ids=name_of)
@pytest.mark.parametrize("one", KINDS, ids=name_of)
def test_possible_pairs_succeed_in_time_and_impossible_ones_fail(
    one: tuple[Dependence, Dependence] | None,
    other: tuple[Dependence, Dependence] | None,
    rtt_s: float,
    skew_s: float,
) -> None:
    simulation = Simulation(rtt_s / 2)
    ends = two_sites(simulation, one, other)
    simulation.connect(skew_s=skew_s)
    # Where both mappings vary and a filter is open, each check shows a new source, up to their bound.
    simulation.run(20.0)
    behaviours = [end.nat.behaviour if end.nat else UNKNOWN_BEHAVIOUR for end in ends]
    if not direct_path_possible(*behaviours):
        assert simulation.both_succeeded_at() is None
        assert [len(end.take(ChecklistFailed)) for end in ends] == [1, 1]
        return
    both_at = simulation.both_succeeded_at()
    assert both_at is not None
    # One crossing more when a source must first be seen to be known.
    varies = any(behaviour.mapping is APDM for behaviour in behaviours)
    assert both_at <= skew_s + 2 * rtt_s + 0.1 + (rtt_s / 2 if varies else 0)
    first, second = (end.nominated for end in ends)
    assert first is not None
    assert second is not None
    assert first.pair.local.address == second.pair.destination
    assert second.pair.local.address == first.pair.destination
    assert [end.take(ChecklistFailed) for end in ends] == [[], []]
    assert all(sum(view.is_nominated for view in end.core.view()) == 1 for end in ends)


def test_both_hold_a_nominated_pair_after_two_round_trips_and_the_pacing() -> None:
    simulation = Simulation(0.05)
    ends = two_sites(simulation, None, None)
    simulation.connect()
    simulation.run(1.0)
    for end in ends:
        at = end.time_of(PairNominated)
        assert at is not None
        assert at <= 0.2 + 2 * 0.02
        nominated = end.nominated
        assert nominated is not None
        assert nominated.proven_bytes == PADDED_CHECK_BYTES
        assert nominated.pair.rtt_s == pytest.approx(0.1)
        assert nominated.local == credentials(end.name)
        assert isinstance(end.told[0][1], AcceptCredentials)
        assert len(end.take(ChecksBegan)) == 1


def test_peer_reflexive_candidates_are_found_on_both_sides() -> None:
    simulation = Simulation()
    agent, connector = two_sites(simulation, (APDM, APDF), (EIM, EIF))
    simulation.connect()
    simulation.run(5.0)
    assert agent.nominated is not None
    assert connector.nominated is not None
    assert agent.nominated.pair.local.type is CandidateType.PEER_REFLEXIVE
    assert agent.nominated.pair.local.base.host == "10.1.0.2"
    assert connector.nominated.pair.remote.type is CandidateType.PEER_REFLEXIVE
    assert connector.nominated.pair.remote.address == agent.nominated.pair.local.address


@pytest.mark.parametrize("seed", range(12))
def test_heavy_loss_delays_and_does_not_prevent(seed: int) -> None:
    chance = random.Random(seed)
    simulation = Simulation(0.02, lambda *_: chance.random() < 0.2)
    ends = two_sites(simulation, (EIM, APDF), (EIM, APDF))
    simulation.connect()
    simulation.run(15.0)
    assert all(end.take(PairSucceeded) for end in ends)
    assert all(end.take(PairNominated) for end in ends)


@pytest.mark.parametrize("silent", ["agent", "connector"])
def test_one_way_loss_leaves_no_direct_path(silent: str) -> None:
    simulation = Simulation(lose=lambda sender, *_: sender == silent)
    ends = two_sites(simulation, None, None)
    simulation.connect()
    simulation.run(30.0)
    assert not any(end.take(PairSucceeded) for end in ends)
    assert all([effect.reason for effect in end.take(ChecklistFailed)] == ["no_answer"] for end in ends)


def test_loss_that_ends_late_makes_a_failed_pair_succeed() -> None:
    simulation = Simulation(0.02)
    simulation.lose = lambda sender, *_: simulation.now < 4.9 and sender == "connector"
    agent, connector = two_sites(simulation, None, None)
    simulation.connect(skew_s=2.0)
    simulation.run(4.8)
    assert agent.core.view()[0].state is PairState.FAILED
    assert [effect.reason for effect in agent.take(ChecklistFailed)] == ["no_answer"]
    simulation.run(30.0)
    assert agent.nominated is not None
    assert connector.nominated is not None


def test_answer_after_the_time_out_still_makes_the_pair_succeed() -> None:
    simulation = Simulation(2.4)
    agent, _ = two_sites(simulation, None, None)
    simulation.connect(skew_s=1000.0)
    simulation.run(4.75)
    assert [effect.reason for effect in agent.take(ChecklistFailed)] == ["no_answer"]
    simulation.run(5.0)
    (succeeded,) = agent.take(PairSucceeded)
    assert succeeded.pair.state is PairState.SUCCEEDED
    assert succeeded.pair.failure == ""
    simulation.run(40.0)
    assert len(agent.take(ChecklistFailed)) == 1


@pytest.mark.parametrize("narrow", ["agent", "connector"])
def test_path_that_carries_small_datagrams_only_is_not_nominated(narrow: str) -> None:
    simulation = Simulation(lose=lambda sender, data, _: sender == narrow and len(data) >= 1200)
    ends = two_sites(simulation, None, None)
    simulation.connect()
    simulation.run(20.0)
    for end in ends:
        assert len(end.take(PairSucceeded)) == 1
        assert end.take(PairNominated) == []
        assert [effect.reason for effect in end.take(ChecklistFailed)] == ["mtu"]
        assert [(view.state, view.failure) for view in end.core.view()] == [(PairState.FAILED, "mtu")]


def dual_homed(simulation: Simulation) -> tuple[End, End]:
    """Two pairs; the first is preferred."""
    agent = simulation.end("agent", host_candidate("192.0.2.1"), host_candidate("192.0.2.3", preference=9))
    connector = simulation.end("connector", host_candidate("192.0.2.2"))
    return agent, connector


def test_next_pair_is_nominated_when_the_first_is_too_narrow() -> None:
    simulation = Simulation()
    preferred = "192.0.2.1"

    def lose(sender: str, data: bytes, destination: TransportAddress) -> bool:
        return destination.host == preferred and len(data) >= 1200

    simulation.lose = lose
    agent, connector = dual_homed(simulation)
    simulation.connect()
    simulation.run(20.0)
    for end in (agent, connector):
        assert end.nominated is not None
        assert "192.0.2.3" in {end.nominated.pair.destination.host, end.nominated.pair.local.address.host}
        assert len(end.take(PairNominated)) == 1


@pytest.mark.parametrize(
    ("opens_at", "is_moved"),
    [(0.4, True), (NOMINATION_SETTLE_S + 1.0, False)],
    ids=["soon", "after it settled"],
)
def test_better_pair_takes_over_only_until_the_choice_has_settled(opens_at: float, is_moved: bool) -> None:
    simulation = Simulation()
    simulation.lose = lambda _sender, _data, destination: (
        simulation.now < opens_at and destination.host == "192.0.2.1"
    )
    agent, connector = dual_homed(simulation)
    simulation.connect()
    if not is_moved:
        better = host_candidate("192.0.2.7")
        simulation.after(opens_at, lambda: trickle(simulation, agent, connector, better.address.host))
    simulation.run(20.0)
    hosts = [[each.pair.local.address.host for each in agent.take(PairNominated)]]
    hosts.append([each.pair.destination.host for each in connector.take(PairNominated)])
    assert hosts == [["192.0.2.3", "192.0.2.1"] if is_moved else ["192.0.2.3"]] * 2


def trickle(simulation: Simulation, end: End, peer: End, host: str) -> None:
    candidate = host_candidate(host)
    end.candidates.append(candidate)
    end.core.handle_candidates(1, [candidate], simulation.now, is_local=True, is_end=True)
    simulation.act(end)
    peer.core.handle_candidates(1, [told(candidate)], simulation.now, is_local=False, is_end=True)
    simulation.act(peer)


def test_trickled_candidate_is_checked_when_it_comes() -> None:
    simulation = Simulation()
    agent = simulation.end("agent", host_candidate("10.9.9.9"))
    connector = simulation.end("connector", host_candidate("192.0.2.2"))
    agent.nat = Nat("198.51.100.1", APDM, APDF)
    connector.nat = Nat("198.51.100.2", APDM, APDF)
    simulation.connect(is_end=False)
    simulation.run(6.0)
    assert simulation.both_succeeded_at() is None
    # Still checking: more may come.
    assert not any(end.take(ChecklistFailed) for end in simulation.ends)
    agent.nat = connector.nat = None
    trickle(simulation, agent, connector, "192.0.2.1")
    simulation.run(8.0)
    assert all(end.nominated is not None for end in simulation.ends)


@pytest.mark.parametrize("role", [True, False], ids=["both controlling", "both controlled"])
@pytest.mark.parametrize("skew_s", [0.0, 0.2])
def test_glare_of_roles_ends_with_one_of_each(role: bool, skew_s: float) -> None:
    simulation = Simulation()
    ends = two_sites(simulation, (EIM, APDF), (EIM, APDF))
    simulation.connect(roles=(role, role), skew_s=skew_s)
    simulation.run(10.0)
    assert sorted(end.core.is_controlling for end in ends) == [False, True]
    assert all(end.nominated is not None for end in ends)


def test_check_of_the_peer_starts_checks_before_their_delay_has_passed() -> None:
    simulation = Simulation(0.01)
    agent, connector = two_sites(simulation, None, None)
    simulation.connect(delay_s=3.0)
    simulation.run(0.0)
    connector.core.handle_begin(1, 0.0, simulation.now)
    simulation.act(connector)
    simulation.run(0.5)
    assert agent.nominated is not None
    assert connector.nominated is not None


def test_delay_is_kept_when_nothing_is_heard() -> None:
    simulation = Simulation(0.01)
    two_sites(simulation, None, None)
    simulation.connect(delay_s=3.0)
    simulation.run(10.0)
    assert min(at for at, *_ in simulation.sent) == 3.0


def test_checks_that_come_before_the_start_are_answered_and_followed_later() -> None:
    simulation = Simulation(0.01)
    agent, connector = two_sites(simulation, None, None)
    simulation.connect(skew_s=1.0)
    simulation.run(0.5)
    assert agent.take(PairSucceeded)
    assert not connector.take(SendCheck)
    assert connector.time_of(ChecksBegan) == pytest.approx(0.01)
    simulation.run(1.03)
    assert connector.take(PairSucceeded)
    simulation.run(2.0)
    assert connector.nominated is not None


def test_restart_finds_a_pair_anew_and_former_checks_are_still_answered() -> None:
    simulation = Simulation()
    agent, connector = two_sites(simulation, (EIM, APDF), (EIM, APDF))
    simulation.connect()
    simulation.run(2.0)
    former = agent.take(SendCheck)[-1]
    simulation.connect(2)
    simulation.run(4.0)
    for end in (agent, connector):
        assert [each.generation for each in end.take(PairNominated)] == [1, 2]
        assert [each.generation for each in end.take(ChecksBegan)] == [1, 2]
    sent = len(simulation.sent)
    connector.core.handle_message(
        former.request.data, agent.candidates[1].address, "10.2.0.2", simulation.now
    )
    simulation.act(connector)
    (answer,) = simulation.sent[sent:]
    assert parse(answer[2]).verify_integrity(credentials("connector").key)


def test_every_nomination_is_a_padded_check_of_the_controlling_end() -> None:
    simulation = Simulation()
    two_sites(simulation, (EIM, ADF), (EIM, APDF))
    simulation.connect()
    simulation.run(5.0)
    nominating = [(name, len(data)) for _, name, data, _ in simulation.sent if parse(data).find(UseCandidate)]
    assert nominating == [("agent", PADDED_CHECK_BYTES)]


def test_new_checks_of_one_end_are_paced() -> None:
    simulation = Simulation(5.0)
    hosts = [host_candidate(f"192.0.2.{number}", preference=number) for number in range(10, 18)]
    agent = simulation.end("agent", *hosts)
    simulation.end("connector", host_candidate("192.0.2.2"), host_candidate("192.0.2.3", preference=1))
    simulation.connect()
    simulation.run(0.4)
    first: dict[bytes, float] = {}
    for at, effect in agent.told:
        if isinstance(effect, SendCheck):
            first.setdefault(effect.transaction_id, at)
    assert list(first.values()) == pytest.approx([0.02 * number for number in range(16)])
