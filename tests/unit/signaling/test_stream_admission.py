"""So many streams per certificate, per network and in all are judged, whoever else asks."""

from __future__ import annotations

import pytest

from ztna.quic.budget import (
    AT_ONCE_SHARE,
    MAX_AT_ONCE_BURST_S,
    MAX_HANDSHAKE_SHARE,
    HandshakeBudget,
    fixed_cost,
)
from ztna.signaling.stream_admission import (
    MAX_CERTIFICATES,
    MAX_NETWORKS,
    MAX_STREAM_BURST,
    MAX_STREAMS_PER_S,
    NETWORK_STREAM_BURST,
    STREAM_BUDGET,
    TOO_MANY_NETWORK_STREAMS,
    TOO_MANY_STREAMS,
    StreamAdmission,
)

NOW = 50.0
MALLORY, ALICE = b"certificate of mallory", b"certificate of alice"
HOME, ELSEWHERE = "192.0.2", "198.51.100"
COST_S = 0.001


class Listener:
    """Judges what is admitted, at a fixed cost."""

    def __init__(self, cost_s: float = COST_S) -> None:
        self.budget = HandshakeBudget(fixed_cost(cost_s))
        self.admission = StreamAdmission(self.budget.has_room_at_once)

    def open(self, certificate: bytes, now: float, network: str = HOME) -> str:
        reason = self.admission.admit(certificate, network, now)
        if not reason:
            with self.budget.charged_at_once(now):
                pass
        return reason


def fresh(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_flood_with_one_certificate_is_judged_at_the_rate_and_others_are_not_touched() -> None:
    listener = Listener()
    seconds, per_s = 10, 1000
    verdicts = [listener.open(MALLORY, NOW + step / per_s) for step in range(seconds * per_s)]
    assert MAX_STREAM_BURST <= verdicts.count("") <= MAX_STREAM_BURST + MAX_STREAMS_PER_S * seconds
    assert set(verdicts) == {"", TOO_MANY_STREAMS}
    assert not listener.open(ALICE, NOW + seconds)


def test_whoever_stops_is_judged_again() -> None:
    listener = Listener()
    while not listener.open(MALLORY, NOW):
        pass
    assert not listener.open(MALLORY, NOW + 1 / MAX_STREAMS_PER_S)
    assert listener.open(MALLORY, NOW + 1 / MAX_STREAMS_PER_S)


def test_certificates_that_are_remembered_are_bounded_and_the_busiest_stays() -> None:
    listener = Listener(cost_s=0.0)
    while not listener.open(MALLORY, NOW):
        pass
    for number in range(2 * MAX_CERTIFICATES):
        assert not listener.open(fresh(number), NOW, str(number))
        assert listener.open(MALLORY, NOW) == TOO_MANY_STREAMS
        assert len(listener.admission._shares) <= MAX_CERTIFICATES
        assert len(listener.admission._networks) <= MAX_NETWORKS


@pytest.mark.parametrize("cost_s", [0.0003, COST_S, 0.02])
@pytest.mark.parametrize("networks", [1, 10_000])
def test_flood_with_a_certificate_per_stream_takes_no_more_than_its_share_of_any_time(
    cost_s: float, networks: int
) -> None:
    listener = Listener(cost_s)
    seconds, per_s = 10, 2000
    for step in range(seconds * per_s):
        now = NOW + step / per_s
        reason = listener.open(fresh(step), now, str(step % networks))
        assert reason in {"", STREAM_BUDGET, TOO_MANY_NETWORK_STREAMS}
        allowed_s = MAX_AT_ONCE_BURST_S + MAX_HANDSHAKE_SHARE * AT_ONCE_SHARE * (now - NOW)
        assert listener.budget.at_once_s <= allowed_s + cost_s
    assert listener.budget.at_once_s == listener.budget.spent_s


def test_network_that_floods_leaves_room_to_every_other() -> None:
    listener = Listener()
    refused = ""
    for step in range(10_000):
        refused = listener.open(fresh(step), NOW) or refused
    assert refused == TOO_MANY_NETWORK_STREAMS
    assert listener.budget.at_once_s >= MAX_AT_ONCE_BURST_S / 2
    for step in range(int(NETWORK_STREAM_BURST)):
        assert not listener.open(fresh(10_000 + step), NOW, ELSEWHERE)


def test_site_that_comes_back_as_a_whole_is_judged_while_nobody_else_asks() -> None:
    listener = Listener()
    whole = int(MAX_AT_ONCE_BURST_S / 2 / COST_S)
    assert whole > NETWORK_STREAM_BURST
    assert not any(listener.open(fresh(step), NOW) for step in range(whole))


def test_room_is_there_again_after_a_rest() -> None:
    listener = Listener()
    for step in range(10_000):
        listener.open(fresh(step), NOW, str(step))
    assert listener.open(ALICE, NOW, ELSEWHERE) == STREAM_BUDGET
    assert not listener.open(MALLORY, NOW + 1.0, ELSEWHERE)
