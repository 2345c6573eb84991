"""What readings of a daemon's counters say of the share of handshakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench._handshake_share import HandshakeShare, Reading
from tools.deployment import Daemon
from ztna.quic.budget import MAX_AT_ONCE_BURST_S


def share(*readings: tuple[float, float, float]) -> HandshakeShare:
    """Each is when, all handshakes so far, and of it the judgements."""
    made = HandshakeShare(Daemon("intermediate", "i1", Path("i1.yaml"), Path("i1.log"), {}))
    made.readings = [Reading(at, at, total_s, judgement_s) for at, total_s, judgement_s in readings]
    return made


def test_share_is_told_of_the_busiest_second_and_of_all_the_time() -> None:
    found = share((0.0, 1.0, 0.0), (1.0, 1.2, 0.0), (2.0, 1.2, 0.0), (2.1, 1.2, 0.0))
    assert found.busiest == pytest.approx(0.2)
    assert found.mean == pytest.approx(0.2 / 2.1)
    assert found.violations == []


def test_second_with_more_handshakes_than_its_share_is_a_violation() -> None:
    found = share((0.0, 0.0, 0.0), (1.0, 0.3, 0.0), (2.0, 0.3, 0.0))
    assert found.violations == ["handshakes and attachments took 0.300 s of 1.00 s, 0.250 s allowed"]


def test_share_that_is_exceeded_a_little_all_the_time_is_a_violation_of_the_whole() -> None:
    found = share(*((float(second), 0.24 * second, 0.0) for second in range(11)))
    assert found.violations == ["handshakes and attachments took 2.400 s of 10.00 s, 1.870 s allowed"]


def test_judgements_may_have_their_burst_and_no_more() -> None:
    burst = MAX_AT_ONCE_BURST_S
    assert share((0.0, 0.0, 0.0), (1.0, burst + 0.18, burst)).violations == []
    (words,) = share((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).violations[:1]
    assert words.startswith("judgements of streams took 1.000 s")


def test_counters_may_have_been_read_at_either_end_of_an_answer() -> None:
    made = share((0.0, 0.0, 0.0))
    made.readings = [Reading(0.0, 0.1, 0.0, 0.0), Reading(1.0, 1.6, 0.33, 0.0)]
    assert made.violations == []
