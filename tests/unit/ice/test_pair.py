"""Pairs: what belongs together, what comes first, what may follow what."""

from __future__ import annotations

from itertools import product

import pytest

from tests.unit.ice.simulation import host_candidate, reflexive_candidate
from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.ice.candidate import Candidate, CandidateType, priority
from ztna.ice.pair import MAX_PAIRS, TRANSITIONS, CheckedPair, PairState, destination_of, may_pair
from ztna.ice.pair_table import MAX_CANDIDATES, MAX_PEER_REFLEXIVE, PairTable

HOST = host_candidate("192.0.2.1")
REFLEXIVE = reflexive_candidate(TransportAddress("198.51.100.1", 5000), HOST.base)
REMOTE = host_candidate("192.0.2.9")
STRANGER = TransportAddress("198.51.100.77", 7777)


def relay(host: str) -> Candidate:
    address = TransportAddress(host, 4000)
    return Candidate(CandidateType.RELAY, address, address, priority(CandidateType.RELAY, 1), "r")


def checked_pair(state: PairState) -> CheckedPair:
    return CheckedPair(HOST, REMOTE, REMOTE.address, 1, state)


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        pytest.param("192.0.2.1", "198.51.100.1", True, id="IPv4"),
        pytest.param("2001:db8::1", "2001:db8::2", True, id="IPv6"),
        pytest.param("192.0.2.1", "2001:db8::2", False, id="two families"),
        pytest.param("10.0.0.1", "192.0.2.1", True, id="private with public"),
        pytest.param("fe80::1%eth0", "fe80::2", True, id="both link-local"),
        pytest.param("2001:db8::1", "fe80::2", False, id="link-local remote"),
        pytest.param("fe80::1%eth0", "2001:db8::2", False, id="link-local local"),
        pytest.param("169.254.1.1", "192.0.2.1", False, id="IPv4 link-local"),
        pytest.param("127.0.0.1", "127.0.0.1", True, id="both loopback"),
        pytest.param("192.0.2.1", "127.0.0.1", False, id="our own services"),
        pytest.param("::1", "2001:db8::2", False, id="from loopback"),
        pytest.param("192.0.2.1", "224.0.0.1", False, id="multicast"),
        pytest.param("2001:db8::1", "ff02::1", False, id="IPv6 multicast"),
        pytest.param("192.0.2.1", "255.255.255.255", False, id="broadcast"),
        pytest.param("192.0.2.1", "0.0.0.0", False, id="unspecified"),
    ],
)
def test_addresses_that_may_form_a_pair(local: str, remote: str, expected: bool) -> None:
    assert may_pair(host_candidate(local), host_candidate(remote)) is expected


def test_relayed_candidates_are_never_paired() -> None:
    assert not may_pair(relay("192.0.2.1"), REMOTE)
    assert not may_pair(HOST, relay("192.0.2.9"))
    table = PairTable(is_controlling=True)
    table.add_local([relay("192.0.2.1")])
    table.add_remote([relay("192.0.2.9"), REMOTE])
    assert table.pairs == []


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        ("fe80::1%eth0", "fe80::2", "fe80::2%eth0"),
        ("fe80::1%eth0", "fe80::2%eth1", "fe80::2%eth1"),
        ("192.0.2.1", "192.0.2.9", "192.0.2.9"),
    ],
)
def test_link_local_destination_gets_our_zone(local: str, remote: str, expected: str) -> None:
    assert destination_of(host_candidate(local), host_candidate(remote)) == TransportAddress(expected, 4000)


@pytest.mark.parametrize(("before", "after"), list(product(PairState, PairState)))
def test_state_changes_as_the_table_says_or_not_at_all(before: PairState, after: PairState) -> None:
    pair = checked_pair(before)
    if after in TRANSITIONS[before]:
        pair.enter(after, "why")
        assert (pair.state, pair.failure) == (after, "why")
    else:
        with pytest.raises(LocalProtocolError, match=before.value):
            pair.enter(after)
        assert pair.state is before


def test_check_priority_is_that_of_a_peer_reflexive_candidate_of_the_same_preference() -> None:
    local = host_candidate("192.0.2.1", preference=77)
    pair = CheckedPair(local, REMOTE, REMOTE.address, 1)
    assert pair.check_priority == priority(CandidateType.PEER_REFLEXIVE, 77)


@pytest.mark.parametrize("order", [(HOST, REFLEXIVE), (REFLEXIVE, HOST)], ids=["host first", "host last"])
def test_reflexive_local_candidate_is_replaced_by_its_base(order: tuple[Candidate, Candidate]) -> None:
    table = PairTable(is_controlling=True)
    table.add_remote([REMOTE])
    for candidate in order:
        table.add_local([candidate])
    (pair,) = table.pairs
    assert pair.local == HOST
    assert pair.state is PairState.WAITING


def test_reflexive_candidate_without_a_host_candidate_is_checked_from_its_base() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([REFLEXIVE])
    table.add_remote([REMOTE])
    (pair,) = table.pairs
    assert pair.key == (HOST.base, REMOTE.address)


def test_pairs_come_in_order_of_priority_and_known_candidates_add_none() -> None:
    table = PairTable(is_controlling=True)
    locals_ = [host_candidate(f"192.0.2.{number}", preference=number) for number in (5, 9, 7)]
    remotes = [host_candidate(f"198.51.100.{number}", preference=number) for number in (3, 8)]
    for _ in range(2):
        table.add_local(locals_)
        table.add_remote(remotes)
    priorities = [pair.priority for pair in table.pairs]
    assert len(priorities) == 6
    assert priorities == sorted(priorities, reverse=True)
    assert table.refused == 0


def test_both_ends_check_in_the_same_order() -> None:
    one = [host_candidate(f"192.0.2.{number}", preference=number) for number in (5, 9, 7)]
    other = [host_candidate(f"198.51.100.{number}", preference=number) for number in (3, 8)]
    agent, connector = PairTable(is_controlling=True), PairTable(is_controlling=False)
    for table, local, remote in ((agent, one, other), (connector, other, one)):
        table.add_local(local)
        table.add_remote(remote)
    assert [(pair.local.base, pair.destination) for pair in agent.pairs] == [
        (pair.destination, pair.local.base) for pair in connector.pairs
    ]
    connector.switch_role(is_controlling=True)
    agent.switch_role(is_controlling=False)
    assert [pair.priority for pair in agent.pairs] == [pair.priority for pair in connector.pairs]


def hosts(count: int, first: int = 0) -> list[Candidate]:
    return [
        host_candidate(f"10.0.{n // 250}.{n % 250 + 1}", preference=n) for n in range(first, first + count)
    ]


def test_candidates_of_a_side_are_bounded() -> None:
    table = PairTable(is_controlling=True)
    table.add_remote(hosts(MAX_CANDIDATES + 3))
    assert table.refused == 3
    table.add_local([HOST])
    assert len(table.pairs) == MAX_CANDIDATES
    table = PairTable(is_controlling=True)
    table.add_local(hosts(MAX_CANDIDATES + 2))
    assert table.refused == 2


def test_pairs_are_bounded_and_the_lowest_are_dropped() -> None:
    table = PairTable(is_controlling=True)
    table.add_local(hosts(10, 1000))
    table.add_remote(hosts(20))
    assert len(table.pairs) == MAX_PAIRS
    assert table.refused == 100
    # min(G, D) decides: the better half of the remote candidates.
    assert {pair.remote.priority for pair in table.pairs} == {each.priority for each in hosts(10, 10)}
    table.triggered[table.pairs[-1].key] = table.pairs[-1]
    table.add_remote(hosts(1, 500))
    assert len(table.pairs) == MAX_PAIRS
    assert sum(pair.remote.priority == hosts(1, 500)[0].priority for pair in table.pairs) == 10
    assert table.triggered == {}


def test_failed_pairs_make_room_first_and_working_ones_never() -> None:
    table = PairTable(is_controlling=True)
    table.add_local(hosts(10, 1000))
    table.add_remote(hosts(10, 10))
    best = table.pairs[0]
    best.state = PairState.FAILED
    table.add_remote(hosts(1))
    assert not table.holds(best)
    for pair in table.pairs:
        pair.state = PairState.SUCCEEDED
    table.add_remote(hosts(1, 500))
    assert all(pair.state is PairState.SUCCEEDED for pair in table.pairs)


def test_peer_reflexive_candidates_are_bounded() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([HOST])
    sources = [TransportAddress("198.51.100.7", 1000 + number) for number in range(MAX_PEER_REFLEXIVE + 1)]
    learned = [table.learn(source, "", 5) for source in sources]
    assert learned.count(None) == 1
    assert learned[-1] is None
    assert len({pair.remote.foundation for pair in table.pairs}) == MAX_PEER_REFLEXIVE
    # A known source is no news.
    assert table.learn(sources[0], HOST.base.host, 5) is learned[0]


def test_learned_candidate_gets_its_proper_type_when_it_is_told_of() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([HOST])
    pair = table.learn(REMOTE.address, "", 5)
    assert pair is not None
    assert pair.remote.type is CandidateType.PEER_REFLEXIVE
    low = pair.priority
    table.add_remote([REMOTE, REMOTE])
    assert table.pairs == [pair]
    assert pair.remote == REMOTE
    assert pair.priority > low
    # Its room is free again, and its name is not.
    for number in range(MAX_PEER_REFLEXIVE):
        assert table.learn(TransportAddress("198.51.100.7", 1000 + number), "", 5) is not None
    assert "prflx1" not in {each.remote.foundation for each in table.pairs}
    table.add_remote([host_candidate("198.51.100.7", 1000)])
    assert sum(each.remote.type is CandidateType.HOST for each in table.pairs) == 2


def test_known_source_that_is_heard_at_another_base_makes_another_pair() -> None:
    table = PairTable(is_controlling=True)
    second = host_candidate("192.0.2.2", preference=1)
    table.add_local([HOST, second])
    pairs = [table.learn(STRANGER, host, 5) for host in (HOST.base.host, second.base.host)]
    assert [pair.local for pair in pairs if pair is not None] == [HOST, second]
    assert len({pair.remote for pair in table.pairs}) == 1


def test_source_that_no_base_can_answer_is_not_learned() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([HOST])
    assert table.learn(TransportAddress("2001:db8::1", 1), "", 5) is None
    assert table.learn(REMOTE.address, "192.0.2.200", 5) is None
    assert table.pairs == []


def same_foundation(*preferences: int) -> list[Candidate]:
    found = []
    for number, preference in enumerate(preferences):
        address = TransportAddress("192.0.2.9", 5000 + number)
        value = priority(CandidateType.HOST, preference)
        found.append(Candidate(CandidateType.HOST, address, address, value, "same"))
    return found


def test_only_the_best_pair_of_a_foundation_waits_at_first() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([HOST])
    table.add_remote(same_foundation(1, 9, 5))
    assert [(pair.remote.address.port, pair.state) for pair in table.pairs] == [
        (5001, PairState.WAITING),
        (5002, PairState.FROZEN),
        (5000, PairState.FROZEN),
    ]


def test_success_unfreezes_the_pairs_of_its_foundation_and_of_no_other() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([HOST, host_candidate("192.0.2.2", preference=1)])
    table.add_remote(same_foundation(1, 9))
    frozen = [pair for pair in table.pairs if pair.state is PairState.FROZEN]
    assert len(frozen) == 2
    table.unfreeze(frozen[0].foundation)
    assert [pair.state for pair in frozen] == [PairState.WAITING, PairState.FROZEN]


def test_frozen_pair_has_its_turn_when_none_waits_and_its_foundation_is_idle() -> None:
    table = PairTable(is_controlling=True)
    table.add_local([HOST])
    table.add_remote(same_foundation(9, 5))
    first, second = table.pairs
    assert table.next_ordinary(-1) is first
    first.enter(PairState.IN_PROGRESS)
    assert table.next_ordinary(-1) is None
    first.enter(PairState.FAILED)
    assert table.next_ordinary(-1) is second
    assert table.next_ordinary(second.priority) is None
    table.add_remote(same_foundation(9, 5, 3))
    assert [pair.state for pair in table.pairs[1:]] == [PairState.FROZEN] * 2
    second.state = PairState.SUCCEEDED
    table.add_remote(same_foundation(9, 5, 3, 2))
    assert [pair.state for pair in table.pairs[2:]] == [PairState.FROZEN, PairState.WAITING]
