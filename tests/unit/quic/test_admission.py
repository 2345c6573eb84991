"""Who may begin a handshake while others ask, too."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest

from ztna.quic.admission import (
    MAX_HANDSHAKING,
    MAX_HANDSHAKING_PER_NETWORK,
    MAX_NETWORKS,
    NETWORK_HANDSHAKE_SHARE,
    Admission,
)
from ztna.quic.budget import MAX_HANDSHAKE_BURST_S, MAX_HANDSHAKE_SHARE, HandshakeBudget, fixed_cost

NOW = 50.0
COST_S = 0.008
ALL_AT_ONCE = 3  # the last of them goes into debt
SUSTAINED_SHARE = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S
STORM_NODES = 1000


@dataclass
class Silent:
    """A client that never goes on."""

    is_established: bool = False
    is_closed: bool = False


def source(network: int) -> str:
    return f"10.{network >> 8}.{network & 255}.0/24"


def new_admission(cost_s: float = COST_S) -> Admission:
    return Admission(HandshakeBudget(fixed_cost(cost_s)))


def ask(admission: Admission, network: int, now: float = NOW) -> str:
    """Do all of a handshake in one step, if it may begin."""
    refusal = admission.admit(source(network), now)
    if not refusal:
        with admission.charged(source(network), now):
            pass
        admission.begin(source(network), Silent())
    return refusal


def fill(admission: Admission, network: int, now: float) -> float:
    """Ask as often as possible until there is no place left; returns the time then."""
    while "too_many" not in ask(admission, network, now):
        now += COST_S
    return now


def test_budget_is_for_all_networks_together() -> None:
    admission = new_admission()
    refusals = [ask(admission, network) for network in range(2 * ALL_AT_ONCE)]
    assert refusals.count("") == ALL_AT_ONCE
    assert refusals[-1] == "handshake_budget"
    assert ask(admission, 0, NOW + COST_S / MAX_HANDSHAKE_SHARE) == ""


def test_network_that_asks_all_the_time_leaves_half_of_the_budget_to_others() -> None:
    admission, now = new_admission(), NOW
    accepted = {0: 0, 1: 0}
    for step in range(1000):
        now = NOW + step / 1000
        accepted[0] += not ask(admission, 0, now)
        if step % 200 == 199:
            accepted[1] += not ask(admission, 1, now)
    assert accepted[1] == 5
    assert accepted[0] * COST_S <= MAX_HANDSHAKE_SHARE


def test_lone_network_gets_almost_the_whole_rate() -> None:
    admission = new_admission()
    accepted = sum(not ask(admission, 0, NOW + step / 1000) for step in range(4000))
    assert accepted * COST_S >= 4 * SUSTAINED_SHARE * 0.9


def busiest_second(begun: list[float]) -> float:
    """The largest share of any second that these handshakes take, at what each is said to cost."""
    return max(sum(start <= each < start + 1.0 for each in begun) * COST_S for start in sorted(begun))


@pytest.mark.parametrize("networks", [1, 7, STORM_NODES], ids=["one-site", "seven-sites", "everywhere"])
@pytest.mark.parametrize("seed", range(3))
def test_storm_of_a_thousand_nodes_takes_its_share_of_every_second_and_all_get_in(
    networks: int, seed: int
) -> None:
    """Each asks as a QUIC client does: again after a second, two, four; it dials anew after ten."""
    admission, chance = new_admission(), random.Random(seed)
    waiting = [(chance.uniform(0.0, 1.0), 0, node) for node in range(STORM_NODES)]
    heapq.heapify(waiting)
    begun: list[float] = []
    while waiting:
        at, attempt, node = heapq.heappop(waiting)
        # Each of those that begin is over before the next: what is limited here is the budget.
        network = source(node % networks)
        if admission.admit(network, NOW + at):
            delay = min(2.0**attempt, 4.0) * chance.uniform(0.8, 1.2)
            heapq.heappush(waiting, (at + delay, attempt + 1, node))
        else:
            with admission.charged(network, NOW + at):
                begun.append(at)
    assert busiest_second(begun) <= MAX_HANDSHAKE_SHARE + COST_S
    assert len(begun) == STORM_NODES
    # They do use it: whoever waits for a budget that lies idle waits in vain.
    assert max(begun) <= 2 * STORM_NODES * COST_S / SUSTAINED_SHARE


@pytest.mark.parametrize("cost_s", [0.002, 0.008, 0.03])
def test_network_keeps_to_its_share_while_others_ask_whatever_its_handshakes_cost(cost_s: float) -> None:
    """The others take all that is not theirs: what the one gets is what only the modest get."""
    admission, seconds = new_admission(cost_s), 20
    begun = 0
    for step in range(seconds * 1000):
        now = NOW + step / 1000
        begun += not ask(admission, 0, now)
        while not ask(admission, 1 + step % 500, now):
            pass
    assert begun * cost_s <= seconds * NETWORK_HANDSHAKE_SHARE + MAX_HANDSHAKE_BURST_S + cost_s


def test_network_that_had_all_it_could_get_is_as_good_as_others_soon_afterwards() -> None:
    admission, now = new_admission(), NOW
    for step in range(20_000):
        now = NOW + step / 1000
        if not admission.admit(source(0), now):
            with admission.charged(source(0), now):
                pass
    now += 1.5
    while not ask(admission, 1, now):
        pass  # until nothing is left for the immodest
    assert ask(admission, 0, now + COST_S / (MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S)) == ""


def test_network_that_ends_no_handshake_leaves_half_of_the_places_to_others() -> None:
    admission = new_admission()
    now = fill(admission, 0, NOW)
    assert admission.handshaking == MAX_HANDSHAKING // 2
    assert ask(admission, 0, now + 9) == "too_many_network_handshakes"
    assert ask(admission, 1, now + 9) == ""


def test_places_are_bounded_whoever_asks() -> None:
    admission, now = new_admission(), NOW
    networks = MAX_HANDSHAKING // MAX_HANDSHAKING_PER_NETWORK
    for network in range(networks):
        now = fill(admission, network, now + 1)
    assert ask(admission, networks, now + 9) in {"", "too_many_handshakes"}
    while not ask(admission, networks, now := now + 1):
        networks += 1
    assert admission.handshaking == MAX_HANDSHAKING
    assert ask(admission, networks + 1, now + 1) == "too_many_handshakes"


def test_place_is_free_again_when_the_handshake_ends() -> None:
    admission, established, closed = new_admission(), Silent(), Silent()
    admission.begin(source(0), established)
    admission.begin(source(0), closed)
    assert admission.handshaking == 2
    established.is_established = closed.is_closed = True
    assert admission.handshaking == 0


def test_networks_remembered_are_bounded() -> None:
    admission = new_admission()
    for network in range(MAX_NETWORKS + 1):
        ask(admission, network, NOW + network)
    assert len(admission._shares) == MAX_NETWORKS
