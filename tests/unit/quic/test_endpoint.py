"""What an unknown datagram gets back from the intermediate's endpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import pki_fixtures as pki
from tests.unit.quic.identities import AGENT, INTERMEDIATE, leg_options
from ztna.address import TransportAddress
from ztna.quic.admission import Admission
from ztna.quic.budget import (
    MAX_HANDSHAKE_BURST_S,
    MAX_HANDSHAKE_SHARE,
    WHOLE_HANDSHAKE,
    HandshakeBudget,
    fixed_cost,
)
from ztna.quic.connection import Connection
from ztna.quic.demux import ConnectionIdTable, destination_cid
from ztna.quic.endpoint import (
    LOOK_INTERVAL_S,
    MAX_LAG_S,
    MAX_SILENCE_S,
    MAX_STATELESS_BURST,
    MAX_STATELESS_REPLIES_PER_S,
    MAX_TOKEN_AGE_S,
    MAX_USED_TOKENS,
    MAX_WAITING,
    Accept,
    Admitted,
    Deliver,
    Drop,
    Endpoint,
    Reply,
    Wait,
)
from ztna.quic.events import CloseReason, ConnectionClosed
from ztna.token_bucket import TokenBucket

SOURCE = TransportAddress.of("192.0.2.7", 4000)
OTHER_SOURCE = TransportAddress.of("192.0.2.8", 4000)
NOW = 50.0
COST_S = 0.008
"""What a handshake takes here."""
FASTEST_S = 0.0004
"""And what the beginning of one takes at least anywhere: several operations on elliptic curves."""
SUSTAINED_SHARE = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S
CLIENT_OPTIONS = leg_options(AGENT, "intermediate", is_client=True)


def new_endpoint() -> Endpoint[str]:
    return Endpoint(leg_options(INTERMEDIATE, "agent", is_client=False), ConnectionIdTable(), new_budget())


def new_budget() -> HandshakeBudget:
    return HandshakeBudget(fixed_cost(COST_S / WHOLE_HANDSHAKE))


def new_client(now: float = NOW) -> Connection:
    client = Connection.client(CLIENT_OPTIONS)
    client.connect(now)
    return client


def reply_of(decision: object) -> bytes:
    assert isinstance(decision, Reply), decision
    return decision.data


def initial_after_retry(
    endpoint: Endpoint[str],
    now: float = NOW,
    client: Connection | None = None,
    source: TransportAddress = SOURCE,
) -> bytes:
    client = client or new_client(now)
    [first] = client.transmit(now)
    client.receive([reply_of(endpoint.handle_datagram(first, source, now))], now)
    return client.transmit(now)[0]


def test_client_gets_in_after_one_retry() -> None:
    endpoint, client = new_endpoint(), new_client()
    second = initial_after_retry(endpoint, client=client)
    decision = endpoint.handle_datagram(second, SOURCE, NOW)
    assert isinstance(decision, Accept)
    server = decision.connection
    for _ in range(4):
        client.receive(server.transmit(NOW), NOW)
        server.receive(client.transmit(NOW), NOW)
    assert client.is_established
    assert server.is_established
    assert server.peer == "ztna://example.org/agent/a1"
    assert (server.max_datagram_payload, client.max_datagram_payload) == (1202, 1202)
    assert endpoint.handshaking == 0


def test_nothing_is_awaited_after_a_handshake_with_retry() -> None:
    endpoint, client = new_endpoint(), new_client()
    second = initial_after_retry(endpoint, client=client)
    assert client.awaits_acknowledgement
    decision = endpoint.handle_datagram(second, SOURCE, NOW)
    assert isinstance(decision, Accept)
    now = NOW
    for _ in range(6):
        now += 0.05
        for end in (client, decision.connection):
            end.handle_timeout(now)
        client.receive(decision.connection.transmit(now), now)
        decision.connection.receive(client.transmit(now), now)
    assert [end.awaits_acknowledgement for end in (client, decision.connection)] == [False, False]


def test_client_that_moves_is_followed_once_its_new_address_answers() -> None:
    endpoint, client = new_endpoint(), new_client()
    decision = endpoint.handle_datagram(initial_after_retry(endpoint, client=client), SOURCE, NOW)
    assert isinstance(decision, Accept)
    server, now, address = decision.connection, NOW, (SOURCE.host, SOURCE.port)
    for step in range(12):
        if step == 6:
            address = (OTHER_SOURCE.host, OTHER_SOURCE.port)
        now += 0.01
        client.ping(now)
        server.receive(client.transmit(now), now, address)
        now += 0.01
        answers = server.transmit_addressed(now)
        assert all(to == address for _, to in answers)
        client.receive([data for data, _ in answers], now)
    assert server._engine.is_peer_validated
    assert client.is_established


def test_retry_is_smaller_than_what_it_answers_and_nothing_is_remembered() -> None:
    endpoint = new_endpoint()
    [first] = new_client().transmit(NOW)
    assert len(first) == 1232
    assert len(reply_of(endpoint.handle_datagram(first, SOURCE, NOW))) < 200
    assert endpoint.handshaking == 0


def test_second_initial_of_the_same_batch_goes_to_the_accepted_connection() -> None:
    endpoint = new_endpoint()
    second = initial_after_retry(endpoint)
    decision = endpoint.handle_datagram(second, SOURCE, NOW)
    assert isinstance(decision, Accept)
    for cid in decision.connection.local_connection_ids:
        endpoint._table.add(cid, "leg")
    assert endpoint.handle_datagram(second, SOURCE, NOW) == Deliver("leg")


@pytest.mark.parametrize(
    ("source", "delay"), [(OTHER_SOURCE, 0.0), (SOURCE, 31.0)], ids=["another-address", "too-late"]
)
def test_token_counts_only_for_its_address_and_time(source: TransportAddress, delay: float) -> None:
    endpoint = new_endpoint()
    second = initial_after_retry(endpoint)
    assert endpoint.handle_datagram(second, source, NOW + delay) == Drop("invalid_token")


def test_unknown_version_is_answered_with_ours() -> None:
    endpoint = new_endpoint()
    datagram = b"\xc0" + (0x1A2A3A4A).to_bytes(4, "big") + b"\x08" + b"d" * 8 + b"\x04" + b"s" * 4
    answer = reply_of(endpoint.handle_datagram(datagram.ljust(1200, b"\0"), SOURCE, NOW))
    assert answer[1:] == b"\0\0\0\0" + b"\x04ssss" + b"\x08dddddddd" + b"\0\0\0\1"
    assert endpoint.handle_datagram(datagram, SOURCE, NOW) == Drop("initial_too_small")


def test_version_negotiation_without_our_version_ends_the_client() -> None:
    client = new_client()
    [first] = client.transmit(NOW)
    dcid = destination_cid(first)
    assert dcid is not None
    scid = client.local_connection_ids[0]
    client.receive([b"\x80\0\0\0\0\x08" + scid + b"\x08" + dcid + b"\x1a\x2a\x3a\x4a"], NOW)
    closed = next(event for event in client.events() if isinstance(event, ConnectionClosed))
    assert closed.reason is CloseReason.VERSION_NEGOTIATION


def test_version_negotiation_is_never_answered() -> None:
    datagram = (b"\xc0\0\0\0\0\x08" + b"d" * 8 + b"\x00").ljust(1200, b"\0")
    assert new_endpoint().handle_datagram(datagram, SOURCE, NOW) == Drop("unknown_connection_id")


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "truncated"),
        (b"\xc0\0\0\0\1", "truncated"),
        (b"\x40" + b"x" * 1199, "unknown_connection_id"),
        (b"\xe0\0\0\0\1\x08" + b"d" * 1199, "unknown_connection_id"),
        (b"\xc0\0\0\0\1\x08" + b"d" * 100, "initial_too_small"),
        ((b"\xc0\0\0\0\1\x08" + b"d" * 8 + b"\xff").ljust(1200, b"\0"), "malformed"),
        ((b"\xc0\0\0\0\1\x04" + b"d" * 4 + b"\x00\x00\x44\x00").ljust(1200, b"\0"), "malformed"),
        ((b"\xc0\x1a\x2a\x3a\x4a\x00" + b"\xff" * 1).ljust(1200, b"\0"), None),
    ],
    ids=["empty", "cut", "short", "handshake", "small", "long-cid", "client-cid-too-short", "odd-version"],
)
def test_what_is_no_first_packet_gets_nothing(datagram: bytes, reason: str | None) -> None:
    decision = new_endpoint().handle_datagram(datagram, SOURCE, NOW)
    if reason is None:
        assert isinstance(decision, Reply)
    else:
        assert decision == Drop(reason)


def test_stateless_replies_are_limited() -> None:
    endpoint = new_endpoint()
    [first] = new_client().transmit(NOW)
    decisions = [endpoint.handle_datagram(first, SOURCE, NOW) for _ in range(int(MAX_STATELESS_BURST) + 1)]
    assert decisions[-1] == Drop("reply_rate")
    assert sum(isinstance(decision, Reply) for decision in decisions) == MAX_STATELESS_BURST
    later = NOW + 1.5 / MAX_STATELESS_REPLIES_PER_S
    assert isinstance(endpoint.handle_datagram(first, SOURCE, later), Reply)
    odd = (b"\xc0\x1a\x2a\x3a\x4a" + b"\0\0").ljust(1200, b"\0")
    assert endpoint.handle_datagram(odd, SOURCE, later) == Drop("reply_rate")


def run_until(endpoint: Endpoint[str], end: float) -> list[tuple[float, Admitted]]:
    admitted: list[tuple[float, Admitted]] = []
    while (deadline := endpoint.next_deadline()) is not None and deadline <= end:
        admitted += [(deadline, each) for each in endpoint.handle_timeout(deadline)]
    return admitted


def test_handshake_that_may_not_begin_now_waits_for_its_turn() -> None:
    endpoint = new_endpoint()
    initials = [initial_after_retry(endpoint) for _ in range(10)]
    decisions = [endpoint.handle_datagram(each, SOURCE, NOW, "198.51.100.1") for each in initials]
    begun = sum(isinstance(each, Accept) for each in decisions)
    assert decisions == decisions[:begun] + [Wait()] * (10 - begun)
    assert 0 < begun < 10
    # Clients that ask again keep their place.
    assert [endpoint.handle_datagram(each, SOURCE, NOW + 0.001) for each in initials[begun:]] == [Wait()] * (
        10 - begun
    )
    assert endpoint.waiting == 10 - begun
    admitted = run_until(endpoint, NOW + 1.0)
    assert [cid for _, each in admitted for cid in each.connection.local_connection_ids[-1:]] == [
        destination_cid(each) for each in reversed(initials[begun:])
    ]
    assert {(each.source, each.local_host) for _, each in admitted} == {(SOURCE, "198.51.100.1")}
    assert (endpoint.waiting, endpoint.next_deadline(), endpoint.dropped.total()) == (0, None, 0)
    assert endpoint.handle_datagram(initials[-1], SOURCE, NOW + 1.0) == Drop("replayed_token")


def test_network_that_waits_for_its_share_does_not_hold_up_another_one() -> None:
    endpoint = new_endpoint()
    for _ in range(40):
        endpoint.handle_datagram(initial_after_retry(endpoint), SOURCE, NOW)
    elsewhere = TransportAddress.of("198.51.100.9", 4000)
    initial = initial_after_retry(endpoint, source=elsewhere)
    assert endpoint.handle_datagram(initial, elsewhere, NOW) == Wait()
    at = next(at for at, each in run_until(endpoint, NOW + 5.0) if each.source == elsewhere)
    assert at - NOW <= 2 * LOOK_INTERVAL_S + COST_S / SUSTAINED_SHARE


def test_places_to_wait_are_bounded_and_half_of_them_are_for_others() -> None:
    endpoint = new_endpoint()
    now = NOW
    for network in range(12):
        source = TransportAddress.of(f"10.0.{network}.1", 4000)
        for _ in range(MAX_WAITING):
            endpoint._replies = TokenBucket(MAX_STATELESS_REPLIES_PER_S, MAX_STATELESS_BURST, now)
            endpoint.handle_datagram(initial_after_retry(endpoint, now, source=source), source, now)
        assert endpoint.waiting <= MAX_WAITING
        if network == 0:
            assert endpoint.waiting == MAX_WAITING // 2
    assert endpoint.waiting == MAX_WAITING
    assert endpoint.dropped["no_place_to_wait"] > 0


def test_client_that_asks_no_more_is_forgotten() -> None:
    endpoint = new_endpoint()
    endpoint.admission = Closed(new_budget())
    initial = initial_after_retry(endpoint)
    assert endpoint.handle_datagram(initial, SOURCE, NOW) == Wait()
    assert run_until(endpoint, NOW + MAX_SILENCE_S) == []
    assert endpoint.handle_datagram(initial, SOURCE, NOW + MAX_SILENCE_S) == Wait()
    assert run_until(endpoint, NOW + 2 * MAX_SILENCE_S) == []
    assert endpoint.waiting == 1
    assert run_until(endpoint, NOW + 2 * MAX_SILENCE_S + 1) == []
    assert (endpoint.waiting, endpoint.dropped) == (0, {"gave_up_waiting": 1})


@pytest.mark.parametrize(("lag_s", "begun"), [(0.0, 3), (MAX_LAG_S * 1.01, 1)])
def test_machine_that_is_late_begins_one_handshake_at_a_time(lag_s: float, begun: int) -> None:
    endpoint = new_endpoint()
    for network in range(40):
        source = TransportAddress.of(f"10.0.{network}.1", 4000)
        endpoint.handle_datagram(initial_after_retry(endpoint, source=source), source, NOW)
    run_until(endpoint, NOW + 0.1)
    deadline = endpoint.next_deadline()
    assert deadline is not None
    endpoint.admission = Admission(new_budget())  # a full budget
    assert len(endpoint.handle_timeout(deadline + lag_s)) == begun


def test_client_that_asked_last_is_served_first() -> None:
    endpoint = new_endpoint()
    initials = [initial_after_retry(endpoint) for _ in range(10)]
    waiting = [each for each in initials if endpoint.handle_datagram(each, SOURCE, NOW) == Wait()]
    endpoint.handle_datagram(waiting[1], SOURCE, NOW + LOOK_INTERVAL_S / 2)
    _, first = run_until(endpoint, NOW + 1.0)[0]
    assert destination_cid(waiting[1]) in first.connection.local_connection_ids


class Closed(Admission):
    """Nobody may begin."""

    def admit(self, network: str, now: float) -> str:
        del network, now
        return "too_many_handshakes"


def test_token_opens_one_connection_while_it_would_be_accepted() -> None:
    endpoint = new_endpoint()
    second = initial_after_retry(endpoint)
    assert isinstance(endpoint.handle_datagram(second, SOURCE, NOW), Accept)
    for delay in (0.0, 4.0, MAX_TOKEN_AGE_S):
        assert endpoint.handle_datagram(second, SOURCE, NOW + delay) == Drop("replayed_token")
    assert endpoint.handle_datagram(second, SOURCE, NOW + MAX_TOKEN_AGE_S + 1) == Drop("invalid_token")


def test_used_tokens_are_bounded_and_forgotten_with_their_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztna.quic.endpoint.MAX_USED_TOKENS", 20)
    endpoint = new_endpoint()
    for number in range(25):
        now = NOW + number * 1e-6
        endpoint.admission = Admission(new_budget())  # so that it is the bound that holds
        assert isinstance(endpoint.handle_datagram(initial_after_retry(endpoint, now), SOURCE, now), Accept)
        endpoint._replies = TokenBucket(MAX_STATELESS_REPLIES_PER_S, MAX_STATELESS_BURST, now)
    assert len(endpoint._used_tokens) == 20
    later = NOW + MAX_TOKEN_AGE_S + 1
    endpoint.handle_datagram(initial_after_retry(endpoint, later), SOURCE, later)
    assert len(endpoint._used_tokens) == 1


def test_admission_lets_no_more_begin_than_there_is_room_for_used_tokens() -> None:
    begin = MAX_HANDSHAKE_BURST_S + (MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S) * MAX_TOKEN_AGE_S
    assert begin / FASTEST_S < MAX_USED_TOKENS


def test_new_options_hold_for_new_connections() -> None:
    endpoint, client = new_endpoint(), new_client()
    other = leg_options(pki.issue("intermediate", "i2"), "agent", is_client=False)
    endpoint.update_options(other)
    second = initial_after_retry(endpoint, client=client)
    decision = endpoint.handle_datagram(second, SOURCE, NOW)
    assert isinstance(decision, Accept)
    client.receive(decision.connection.transmit(NOW), NOW)
    assert client.peer == "ztna://example.org/intermediate/i2"


@given(st.binary(max_size=1500))
def test_arbitrary_bytes_are_decided_about(datagram: bytes) -> None:
    decision = new_endpoint().handle_datagram(datagram, SOURCE, NOW)
    assert isinstance(decision, Drop | Reply)


@given(st.binary(min_size=0, max_size=60))
def test_arbitrary_initials_are_decided_about(rest: bytes) -> None:
    datagram = (b"\xc0\0\0\0\1" + rest).ljust(1200, b"\0")
    decision = new_endpoint().handle_datagram(datagram, SOURCE, NOW)
    assert isinstance(decision, Drop | Reply)
    if isinstance(decision, Reply):
        assert len(decision.data) < 400
