"""So many streams per certificate are judged, whoever else asks."""

from __future__ import annotations

from ztna.signaling.stream_admission import (
    MAX_CERTIFICATES,
    MAX_STREAM_BURST,
    MAX_STREAMS_PER_S,
    StreamAdmission,
)

NOW = 50.0
MALLORY, ALICE = b"certificate of mallory", b"certificate of alice"


def test_flood_with_one_certificate_is_judged_at_the_rate_and_others_are_not_touched() -> None:
    admission = StreamAdmission()
    seconds, per_s = 10, 1000
    judged = sum(admission.admit(MALLORY, NOW + step / per_s) for step in range(seconds * per_s))
    assert MAX_STREAM_BURST <= judged <= MAX_STREAM_BURST + MAX_STREAMS_PER_S * seconds
    assert admission.admit(ALICE, NOW + seconds)


def test_whoever_stops_is_judged_again() -> None:
    admission = StreamAdmission()
    while admission.admit(MALLORY, NOW):
        pass
    assert admission.admit(MALLORY, NOW + 1 / MAX_STREAMS_PER_S)
    assert not admission.admit(MALLORY, NOW + 1 / MAX_STREAMS_PER_S)


def test_certificates_that_are_remembered_are_bounded_and_the_busiest_stays() -> None:
    admission = StreamAdmission()
    while admission.admit(MALLORY, NOW):
        pass
    for number in range(2 * MAX_CERTIFICATES):
        assert admission.admit(number.to_bytes(2, "big"), NOW)
        assert not admission.admit(MALLORY, NOW)
        assert len(admission._shares) <= MAX_CERTIFICATES
