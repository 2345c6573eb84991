"""Who gets in: mutual TLS is judged inside the handshake, and the other end learns why it was refused."""

from __future__ import annotations

import datetime as dt

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests import pki_fixtures as pki
from tests.unit.quic.identities import AGENT, client_options, server_options
from tests.unit.quic.pair import SERVER_OPTIONS, End, Pair
from ztna.errors import AuthenticationError
from ztna.pki.authority import Issued
from ztna.quic.adapter import MAX_HANDSHAKE_MESSAGE_BYTES
from ztna.quic.connection import Connection
from ztna.quic.events import CloseReason, ConnectionClosed, HandshakeCompleted, PeerAccepted


def refused(pair: Pair) -> tuple[ConnectionClosed, ConnectionClosed]:
    """What client and server were told, once nothing was ever accepted."""
    pair.connect()
    pair.run(1.0)
    ends: tuple[End, End] = (pair.client, pair.server)
    for end in ends:
        if end is pair.server:
            assert not end.of(HandshakeCompleted)
        assert not end.connection.is_established
    [at_client], [at_server] = (end.of(ConnectionClosed) for end in ends)
    return at_client, at_server


def test_both_ends_accept_each_other() -> None:
    pair = Pair().established()
    assert pair.client.connection.peer == "ztna://example.org/connector/c1"
    assert pair.server.connection.peer == "ztna://example.org/agent/a1"
    for end in (pair.client, pair.server):
        assert end.of(HandshakeCompleted) == [HandshakeCompleted("ztna/1")]


def test_client_may_send_a_round_trip_before_it_knows_that_it_is_accepted() -> None:
    pair = Pair(delay=0.02)
    pair.connect()
    pair.run(1.0, until=lambda: bool(pair.client.of(PeerAccepted)))
    started = pair.now
    assert not pair.client.of(HandshakeCompleted)
    pair.client.connection.send_stream(pair.client.connection.open_stream(), b"hello")
    pair.flush()
    pair.run(1.0, until=lambda: bytes(pair.server.received.get(0, b"")) == b"hello")
    assert pair.now - started <= 0.02 + 0.001
    pair.run(1.0, until=lambda: bool(pair.client.of(HandshakeCompleted)))
    assert pair.client.of(PeerAccepted) == [PeerAccepted()]
    assert not pair.server.of(PeerAccepted)


@pytest.mark.parametrize("seed", range(8))
def test_handshake_survives_loss_and_reordering(seed: int) -> None:
    pair = Pair(seed=seed)
    for link in (pair.uplink, pair.downlink):
        link.loss, link.reorder, link.reorder_delay = 0.2, 0.5, 0.06
    pair.connect()
    pair.client.connection.send_stream(pair.client.connection.open_stream(), b"early" * 1000)
    pair.run(9.0, until=lambda: pair.both_established)
    assert pair.both_established


def test_ed25519_identities_work_where_lengths_must_be_fixed() -> None:
    agent = pki.issue("agent", "a1", key_type="ed25519")
    assert pki.verified("agent", "a1", key_type="ed25519").identity.id == "a1"
    pair = Pair(client_options(agent, verify_peer=lambda _chain: "any"))
    pair.server_options = server_options(verify_peer=lambda chain: chain[0].public_key())
    pair.established()
    assert pair.server.connection.peer == agent.certificate.public_key()


@pytest.mark.parametrize(
    ("agent", "reason", "code"),
    [
        (pki.issue("agent", "a1", foreign=True), CloseReason.UNKNOWN_CA, 0x130),
        (pki.issue("agent", "a1", expired=True), CloseReason.CERTIFICATE_EXPIRED, 0x12D),
        (pki.issue("agent", "a1", not_yet_valid=True), CloseReason.CERTIFICATE_EXPIRED, 0x12D),
        (pki.issue("connector", "c2"), CloseReason.ACCESS_DENIED, 0x131),
    ],
    ids=["foreign-ca", "expired", "not-yet-valid", "wrong-role"],
)
def test_unacceptable_client_is_refused_and_told_why(agent: Issued, reason: CloseReason, code: int) -> None:
    at_client, at_server = refused(Pair(client_options(agent)))
    assert (at_server.reason, at_server.code, at_server.is_remote) == (reason, code, False)
    assert (at_client.reason, at_client.code, at_client.is_remote) == (reason, code, True)
    assert at_client.is_authentication_failure


def test_revoked_client_is_refused() -> None:
    at_client, at_server = refused(Pair(server_options=server_options(revoked=[AGENT])))
    assert at_client.reason is at_server.reason is CloseReason.CERTIFICATE_REVOKED


def test_client_without_certificate_is_refused() -> None:
    pair = Pair()
    pair.client.connection._engine._configuration.certificate = None
    at_client, at_server = refused(pair)
    assert at_client.reason is at_server.reason is CloseReason.CERTIFICATE_REQUIRED
    assert at_server.code == 0x174


@pytest.mark.parametrize(
    ("connector", "reason"),
    [
        (pki.issue("connector", "c1", foreign=True), CloseReason.UNKNOWN_CA),
        (pki.issue("agent", "a2"), CloseReason.ACCESS_DENIED),
    ],
    ids=["foreign-ca", "wrong-role"],
)
def test_unacceptable_server_is_refused(connector: Issued, reason: CloseReason) -> None:
    at_client, at_server = refused(Pair(server_options=server_options(connector)))
    assert (at_client.reason, at_client.is_remote) == (reason, False)
    assert (at_server.reason, at_server.is_remote) == (reason, True)


def test_who_is_refused_hears_that_its_own_certificate_is_meant() -> None:
    def refuse(_chain: object) -> object:
        raise AuthenticationError("revoked", "the certificate of connector 'c1' was revoked")

    at_client, at_server = refused(Pair(server_options=server_options(verify_peer=refuse)))
    assert at_client.message == "the peer refused our certificate (revoked)"
    assert at_server.message == "revoked: the certificate of connector 'c1' was revoked"


def test_detail_of_a_refusal_stays_at_home() -> None:
    def refuse(_chain: object) -> object:
        raise AuthenticationError("revoked", "serial 4711 of the internal list")

    at_client, at_server = refused(Pair(server_options=server_options(verify_peer=refuse)))
    assert "4711" in at_server.message
    assert "4711" not in at_client.message


def test_failure_of_the_judge_itself_is_an_internal_error() -> None:
    def broken(_chain: object) -> object:
        raise KeyError("bug")

    at_client, at_server = refused(Pair(server_options=server_options(verify_peer=broken)))
    assert at_server.reason is CloseReason.INTERNAL_ERROR
    assert at_client.reason is CloseReason.INTERNAL_ERROR


def test_server_certificate_with_a_hostile_name_is_judged_like_any_other() -> None:
    """A wildcard for a whole top-level domain makes aioquic's own name check raise; ours is the only one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2090, 1, 1, tzinfo=dt.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("*.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    options = server_options(certificate=certificate, private_key=key)
    at_client, _ = refused(Pair(client_options(server_name="c1.test"), options))
    assert at_client.reason is CloseReason.BAD_CERTIFICATE


def test_endless_handshake_message_is_cut_off() -> None:
    pair = Pair()
    pair.connect()
    pair.run(0.03)
    context = pair.server.connection._engine.tls
    part = b"\x0b\xff\xff\xff" + bytes(MAX_HANDSHAKE_MESSAGE_BYTES // 2)
    context.handle_message(part, {tls.Epoch.HANDSHAKE: Buffer(capacity=100)})
    with pytest.raises(tls.AlertDecodeError):
        context.handle_message(part, {tls.Epoch.HANDSHAKE: Buffer(capacity=100)})


def test_client_is_not_accepted_before_the_server_judged_it() -> None:
    pair = Pair(client_options(pki.issue("agent", "a1", expired=True)))
    pair.connect()
    pair.run(0.045)
    assert pair.client.connection._engine.is_handshake_complete
    assert not pair.client.connection.is_established
    assert not pair.client.of(HandshakeCompleted)


def test_small_initial_opens_nothing() -> None:
    pair = Pair()
    pair.client.connection.connect(pair.now)
    [first] = pair.client.connection.transmit(pair.now)
    server = Connection.server(SERVER_OPTIONS, destination_cid=first[6:14])
    server.receive([first[:1199]], pair.now)
    assert server.transmit(pair.now) == []


def test_unvalidated_client_gets_at_most_three_times_what_it_sent() -> None:
    big_chain = tuple(pki.issue("agent", "a1", serial_of=n).certificate for n in range(1, 12))
    options = server_options(certificate_chain=big_chain)
    pair = Pair(server_options=options)
    pair.client.connection.connect(pair.now)
    [first] = pair.client.connection.transmit(pair.now)
    server = Connection.server(options, destination_cid=first[6:14], is_address_validated=False)
    server.receive([first], pair.now)
    sent = sum(map(len, server.transmit(pair.now)))
    for _ in range(20):
        deadline = server.next_deadline()
        if deadline is None:
            break
        server.handle_timeout(deadline)
        sent += sum(map(len, server.transmit(deadline)))
    assert 2400 < sent <= 3 * len(first)
