"""Signals about the direct path, to protobuf and back."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from actors import translate
from actors.ice_signals import session_id_of, signal_from_proto, signal_to_proto, with_session_id
from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice import signals as s
from ztna.ice.candidate import Candidate, CandidateType
from ztna.nat.behaviour import Dependence, NatBehaviour
from ztna.v1 import signaling_pb2, types_pb2

SESSION = bytes(range(16))
ADDRESS = TransportAddress("192.0.2.1", 5000)
CANDIDATE = Candidate(CandidateType.HOST, ADDRESS, ADDRESS, 1, "1")
CREDENTIALS = s.Credentials("abcd", "p" * 22)
NAT = NatBehaviour(True, True, Dependence.ADDRESS_DEPENDENT)
SIGNALS: list[s.Signal] = [
    s.Offer(1, CREDENTIALS, (CANDIDATE,), NAT),
    s.Answer(2, CREDENTIALS, (), NAT),
    s.CandidateAdded(3, CANDIDATE),
    s.EndOfCandidates(3),
    s.NatLearned(3, NAT),
    s.StartPunching(4, 70),
    s.RestartRequested("path_failed"),
    s.PunchingResult(is_success=True, working_address=ADDRESS, rtt_us=900),
    s.PunchingResult(is_success=False, reason="all_pairs_failed"),
    s.SignalingError("rate_limited", "slower"),
]


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda each: type(each).__name__)
def test_signal_survives_the_wire_with_its_session(signal: s.Signal) -> None:
    message = signal_to_proto(signal, SESSION)
    assert session_id_of(message) == SESSION
    parsed = signaling_pb2.IceSignal.FromString(message.SerializeToString())
    assert signal_from_proto(parsed, Counter()) == signal
    other = with_session_id(message, b"x" * 16)
    assert session_id_of(other) == b"x" * 16
    assert session_id_of(message) == SESSION


def test_signal_of_a_later_version_has_no_session() -> None:
    empty = signaling_pb2.IceSignal()
    assert session_id_of(empty) == b""
    assert with_session_id(empty, SESSION) == empty


def offer(**fields: object) -> signaling_pb2.IceSignal:
    wanted = {"generation": 1, "ufrag": "abcd", "pwd": "p" * 22, **fields}
    return signaling_pb2.IceSignal(candidate_offer=signaling_pb2.CandidateOffer(**wanted))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(offer(ufrag="abc"), "malformed_credentials", id="short ufrag"),
        pytest.param(offer(ufrag="a" * 257), "malformed_credentials", id="long ufrag"),
        pytest.param(offer(pwd="p" * 21), "malformed_credentials", id="short pwd"),
        pytest.param(offer(pwd="p" * 257), "malformed_credentials", id="long pwd"),
        pytest.param(offer(ufrag="ab:d"), "malformed_credentials", id="character that no ufrag has"),
        pytest.param(offer(generation=0), "malformed_generation", id="no generation"),
        pytest.param(
            offer(candidates=[translate.candidate_to_proto(CANDIDATE)] * 33), "too_many_candidates", id="33"
        ),
        pytest.param(signaling_pb2.IceSignal(), "unknown_signal", id="nothing"),
        pytest.param(
            signaling_pb2.IceSignal(candidate_added=signaling_pb2.CandidateAdded(end_of_candidates=False)),
            "unknown_signal",
            id="an end that is none",
        ),
        pytest.param(
            signaling_pb2.IceSignal(
                candidate_added=signaling_pb2.CandidateAdded(candidate=types_pb2.Candidate())
            ),
            "malformed_candidate",
            id="empty candidate",
        ),
    ],
)
def test_malformed_signal_is_refused_with_its_reason(message: signaling_pb2.IceSignal, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        signal_from_proto(message, Counter())
    assert caught.value.reason == reason


def test_bad_candidate_costs_that_candidate_alone() -> None:
    dropped: Counter[str] = Counter()
    good = translate.candidate_to_proto(CANDIDATE)
    bad = translate.candidate_to_proto(CANDIDATE)
    bad.address.port = 0
    worse = translate.candidate_to_proto(CANDIDATE)
    worse.address.host = "example"
    signal = signal_from_proto(offer(candidates=[bad, good, worse]), dropped)
    assert isinstance(signal, s.Offer)
    assert signal.candidates == (CANDIDATE,)
    assert dropped == {"malformed_candidate": 1, "malformed_address": 1}


def test_words_of_the_peer_are_words() -> None:
    message = signal_to_proto(s.RestartRequested("Nonsense; with <things>"), SESSION)
    assert signal_from_proto(message, Counter()) == s.RestartRequested("unknown")
    error = signaling_pb2.IceSignal(error=signaling_pb2.SignalingError(code=99))  # type: ignore[arg-type]
    assert signal_from_proto(error, Counter()) == s.SignalingError("unknown")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_the_expected(data: bytes) -> None:
    try:
        message = signaling_pb2.IceSignal.FromString(data)
    except DecodeError:
        return
    with contextlib.suppress(RemoteProtocolError):
        signal_from_proto(message, Counter())
