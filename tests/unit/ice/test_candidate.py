from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError
from ztna.ice.candidate import MAX_LOCAL_PREFERENCE, Candidate, CandidateType, priority
from ztna.ice.pair import CandidatePair, PairState, pair_priority


@pytest.mark.parametrize(
    ("candidate_type", "local_preference", "expected"),
    [
        pytest.param(
            CandidateType.HOST, 65_535, 2_130_706_431, id="host, the figure that every ICE log shows"
        ),
        pytest.param(CandidateType.SERVER_REFLEXIVE, 65_535, 1_694_498_815, id="srflx"),
        pytest.param(CandidateType.PEER_REFLEXIVE, 65_535, 1_862_270_975, id="prflx"),
        pytest.param(CandidateType.RELAY, 65_535, 16_777_215, id="relay"),
        pytest.param(CandidateType.RELAY, 0, 255, id="the least"),
    ],
)
def test_priority_follows_the_formula(
    candidate_type: CandidateType, local_preference: int, expected: int
) -> None:
    assert priority(candidate_type, local_preference) == expected


@pytest.mark.parametrize("local_preference", [-1, MAX_LOCAL_PREFERENCE + 1])
def test_local_preference_outside_its_16_bits_is_our_mistake(local_preference: int) -> None:
    with pytest.raises(LocalProtocolError):
        priority(CandidateType.HOST, local_preference)


def candidate(host: str, preference: int, kind: CandidateType = CandidateType.HOST) -> Candidate:
    address = TransportAddress(host, 1000)
    return Candidate(kind, address, address, priority(kind, preference), "1")


# RFC 8445 §5.1.2: a priority is within 1 and 2^31 - 1.
@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_both_ends_order_pairs_alike(controlling: int, controlled: int) -> None:
    value = pair_priority(controlling, controlled)
    assert 0 <= value < 2**64
    if controlling != controlled:
        assert value != pair_priority(controlled, controlling)


def test_pair_has_one_priority_whoever_looks() -> None:
    one, other = candidate("127.0.0.1", 5), candidate("127.0.0.2", 9, CandidateType.SERVER_REFLEXIVE)
    at_controlling = CandidatePair(one, other).priority(is_controlling=True)
    assert CandidatePair(other, one).priority(is_controlling=False) == at_controlling
    # 2^32·min(G,D) + 2·max(G,D) + (G>D)
    assert at_controlling == (other.priority << 32) + 2 * one.priority + 1


def test_pair_of_two_families_is_our_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="no pair"):
        CandidatePair(candidate("127.0.0.1", 1), candidate("::1", 1))


def test_states_are_those_of_the_rfc() -> None:
    assert [state.value for state in PairState] == ["frozen", "waiting", "in_progress", "succeeded", "failed"]
