"""Two sessions, client and server, joined by carrying what one sends into what the other receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
from cryptography import x509
from google.protobuf.message import Message

from actors.base import Context
from actors.handshake_gate import MAX_WAITING, HandshakeGate, SessionGate
from actors.quic_session import (
    MAX_DATAGRAMS_PENDING,
    MAX_HELD_BATCHES,
    STATISTICS_INTERVAL_S,
    STREAM_LIMIT,
    QuicSession,
)
from tests.manual_io import ActorHarness, ManualIo, actor_harness
from tests.pki_fixtures import NOW, verifier
from tests.unit.quic.identities import AGENT, CONNECTOR, client_options, server_options
from ztna.access.identity import Role, VerifiedPeer, fingerprint
from ztna.errors import AuthenticationError
from ztna.path.relays import FOLLOW_AFTER_S
from ztna.quic.budget import TYPICAL_STEP_S, HandshakeBudget, fixed_cost
from ztna.quic.connection import Connection
from ztna.quic.options import INNER_IDLE_TIMEOUT_S, PeerVerifier
from ztna.quic.windows import WindowLimits
from ztna.v1 import (
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

MessageT = TypeVar("MessageT", bound=Message)
SESSION = b"s" * 16
MAX_ERROR_CODE = (1 << 62) - 1  # RFC 9000 §19.4: a variable-length integer
UP = path_manager_pb2.PathSelected(
    session_id=SESSION, kind=types_pb2.PATH_KIND_RELAY, intermediate_id="i1", max_packet_bytes=1200
)
DOWN = path_manager_pb2.PathSelected(session_id=SESSION)
RESUMED = path_manager_pb2.PathSelected(
    session_id=SESSION,
    kind=types_pb2.PATH_KIND_RELAY,
    intermediate_id="i2",
    max_packet_bytes=1200,
    is_resumed=True,
)


def judge(expect: Role, key: bytes, *, as_server: bool) -> PeerVerifier:
    def verify(chain: Sequence[x509.Certificate]) -> VerifiedPeer:
        peer = verifier().verify(chain, expect=expect, now_wall=NOW, as_server=as_server)
        if peer.fingerprint != key:
            raise AuthenticationError("wrong_name", "another key than signaling named")
        return peer

    return verify


def accept(_peer: VerifiedPeer) -> None:
    """Nothing has changed about a peer."""


class ClientSession(QuicSession):
    def __init__(self, context: Context, open_connection: Callable[[bytes], Connection]) -> None:
        super().__init__(context, open_connection, accept, is_client=True)


class ServerSession(QuicSession):
    def __init__(
        self,
        context: Context,
        open_connection: Callable[[bytes], Connection],
        recheck: Callable[[VerifiedPeer], None],
        gate: SessionGate,
    ) -> None:
        super().__init__(context, open_connection, recheck, is_client=False, gate=gate)


class Gate(HandshakeGate):
    """Opens when the test says so."""

    def __init__(self) -> None:
        self._budget = HandshakeBudget(fixed_cost())
        super().__init__(self._budget)
        self.refusal = ""
        self.asked = 0
        self.is_spent = False

    @property
    def spent_s(self) -> float:
        return self._budget.spent_s

    def may_go_on(self, now: float) -> bool:
        return not self.is_spent and super().may_go_on(now)

    def ask(self, peer_id: str, now: float) -> str:
        self.asked += 1
        return self.refusal or super().ask(peer_id, now)


class World:
    """Both ends on one clock; `is_cut` loses every packet."""

    def __init__(self, *, agent_key: bytes = b"", max_streams: int = 1024) -> None:
        self.io = ManualIo()
        self.gate = Gate()
        client = replace(
            client_options(),
            verify_peer=judge(Role.CONNECTOR, fingerprint(CONNECTOR.certificate), as_server=True),
        )
        server = replace(
            server_options(),
            verify_peer=judge(Role.AGENT, agent_key or fingerprint(AGENT.certificate), as_server=False),
            windows=WindowLimits(max_streams=max_streams),
        )
        self.client: ActorHarness[ClientSession] = actor_harness(
            ClientSession, lambda _: Connection.client(client), key=SESSION.hex(), io=self.io
        )
        self.server: ActorHarness[ServerSession] = actor_harness(
            ServerSession,
            lambda cid: Connection.server(server, destination_cid=cid),
            self._recheck,
            self.gate.of("a1"),
            key=SESSION.hex(),
            io=self.io,
        )
        self.is_revoked = False
        self.is_cut = False
        self.sent = 0
        self.heard: dict[str, list[Message]] = {"client": [], "server": []}

    def _recheck(self, peer: VerifiedPeer) -> None:
        if self.is_revoked:
            raise AuthenticationError("revoked", f"{peer.identity} was revoked")

    def exchange(self) -> None:
        for _ in range(2000):
            moved = False
            for name, end, other in (
                ("client", self.client, self.server),
                ("server", self.server, self.client),
            ):
                for message in end.take_emitted():
                    if not isinstance(message, relay_leg_pb2.SendSealed):
                        self.heard[name].append(message)
                        continue
                    moved = True
                    self.sent += 1
                    if not self.is_cut:
                        other.tell(
                            relay_leg_pb2.SealedReceived(
                                intermediate_id="i1", session_id=SESSION, packets=message.packets
                            )
                        )
            if not moved:
                return
        raise AssertionError("the ends never come to rest")

    def run(self, seconds: float) -> None:
        end = self.io.time() + seconds
        while True:
            self.exchange()
            deadline = self.io.next_deadline()
            if deadline is None or deadline > end:
                break
            self.io.run_until(deadline)
        self.io.run_until(end)
        self.exchange()

    def established(self) -> World:
        self.server.tell(UP)
        self.client.tell(UP)
        self.run(1.0)
        assert len(self.of("client", quic_session_pb2.SessionEstablished)) == 1
        assert len(self.of("server", quic_session_pb2.SessionEstablished)) == 1
        return self

    def of(self, name: str, kind: type[MessageT]) -> list[MessageT]:
        return [message for message in self.heard[name] if isinstance(message, kind)]

    def received(self, name: str, stream_id: int) -> bytes:
        return b"".join(
            each.data
            for each in self.of(name, quic_session_pb2.PayloadReceived)
            if each.stream_id == stream_id
        )


def send(stream_id: int, data: bytes, *, end: bool = False) -> quic_session_pb2.SendPayload:
    return quic_session_pb2.SendPayload(session_id=SESSION, stream_id=stream_id, data=data, end_of_stream=end)


def close(reason: str) -> quic_session_pb2.CloseQuicSession:
    return quic_session_pb2.CloseQuicSession(session_id=SESSION, reason=reason)


def test_handshake_names_the_proven_peer_at_both_ends() -> None:
    world = World().established()
    (at_client,) = world.of("client", quic_session_pb2.SessionEstablished)
    (at_server,) = world.of("server", quic_session_pb2.SessionEstablished)
    assert (at_client.peer.role, at_client.peer.id) == (types_pb2.ROLE_CONNECTOR, "c1")
    assert (at_server.peer.role, at_server.peer.id) == (types_pb2.ROLE_AGENT, "a1")
    assert at_client.peer.fingerprint == fingerprint(CONNECTOR.certificate)
    assert at_client.max_datagram_payload_bytes == 1170


def test_payload_goes_both_ways_with_credit_and_end() -> None:
    world = World().established()
    data = bytes(range(256)) * 1000
    world.client.tell(send(0, data, end=True))
    world.run(2.0)
    consumed = 0
    while (arrived := len(world.received("server", 0))) < len(data):
        assert arrived > consumed
        world.server.tell(
            quic_session_pb2.PayloadConsumed(session_id=SESSION, stream_id=0, size_bytes=arrived - consumed)
        )
        consumed = arrived
        world.run(1.0)
    assert consumed > 0  # it stopped until somebody took the bytes
    assert world.received("server", 0) == data
    assert world.of("server", quic_session_pb2.PayloadReceived)[-1].end_of_stream
    world.server.tell(send(0, b"answer"))
    world.run(1.0)
    assert world.received("client", 0) == b"answer"
    acknowledged = world.of("client", quic_session_pb2.PayloadAcknowledged)
    assert sum(each.size_bytes for each in acknowledged) == len(data)


def test_datagrams_go_through_and_too_many_are_dropped_and_counted() -> None:
    world = World().established()
    world.client.tell(quic_session_pb2.SendDatagramPayloads(session_id=SESSION, payloads=[b"a", b"b"]))
    world.run(1.0)
    (received,) = world.of("server", quic_session_pb2.DatagramPayloadsReceived)
    assert list(received.payloads) == [b"a", b"b"]
    world.client.tell(DOWN)
    world.client.tell(
        quic_session_pb2.SendDatagramPayloads(
            session_id=SESSION, payloads=[b"x"] * (MAX_DATAGRAMS_PENDING + 3)
        )
    )
    world.client.tell(RESUMED)
    world.run(3.0)
    assert world.of("client", quic_session_pb2.SessionStatistics)[-1].datagrams_dropped == 3


def test_abandoned_stream_is_told_in_both_directions() -> None:
    world = World().established()
    world.client.tell(send(0, b"x"))
    world.exchange()
    world.client.tell(
        quic_session_pb2.AbortStream(session_id=SESSION, stream_id=0, code=5, reset=True, stop=True)
    )
    world.run(1.0)
    aborted = world.of("server", quic_session_pb2.StreamAborted)
    assert {(each.code, each.is_reset) for each in aborted} == {(5, True), (5, False)}


def test_any_error_code_of_the_peer_is_passed_on() -> None:
    world = World().established()
    world.client.tell(send(0, b"x"))
    world.exchange()
    connection = world.client.concern._connection
    assert connection is not None
    connection.reset_stream(0, MAX_ERROR_CODE)
    connection.stop_stream(0, MAX_ERROR_CODE)
    world.run(1.0)
    aborted = world.of("server", quic_session_pb2.StreamAborted)
    assert {(each.code, each.is_reset) for each in aborted} == {
        (MAX_ERROR_CODE, True),
        (MAX_ERROR_CODE, False),
    }
    assert world.server.is_alive


def test_stream_beyond_the_limit_is_refused_with_all_behind_it_and_the_session_lives() -> None:
    world = World(max_streams=2).established()
    for stream_id in (0, 4, 8, 12):
        world.client.tell(send(stream_id, b"x"))
    world.run(1.0)
    refused = world.of("client", quic_session_pb2.StreamAborted)
    assert [(each.stream_id, each.code, each.is_reset) for each in refused] == [
        (8, STREAM_LIMIT, True),
        (12, STREAM_LIMIT, True),
    ]
    assert world.client.is_alive
    assert world.received("server", 4) == b"x"


def test_connector_that_opens_a_stream_loses_its_session() -> None:
    world = World().established()
    connection = world.server.concern._connection
    assert connection is not None
    assert connection.open_stream() == 1
    world.server.tell(send(1, b"unasked"))
    world.run(1.0)
    assert not world.of("client", quic_session_pb2.PayloadReceived)
    for name, is_remote in (("client", False), ("server", True)):
        (closed,) = world.of(name, quic_session_pb2.SessionClosed)
        assert closed.is_remote is is_remote
        assert "unexpected_stream" in {closed.reason, closed.message}


@pytest.mark.parametrize("closer", ["client", "server"])
def test_each_end_is_told_of_the_close_once_as_the_last_thing(closer: str) -> None:
    world = World().established()
    getattr(world, closer).tell(close("operator"), close("again"))
    world.run(1.0)
    for harness in (world.client, world.server):
        harness.stop()
    world.exchange()
    for name in ("client", "server"):
        (closed,) = world.of(name, quic_session_pb2.SessionClosed)
        assert world.heard[name][-1] == closed
        assert closed.was_established
        assert closed.is_remote is (name != closer)
        assert closed.reason == ("operator" if name == closer else "closed")


def test_another_key_than_signaling_named_is_refused_at_both_ends() -> None:
    world = World(agent_key=b"?" * 32)
    world.server.tell(UP)
    world.client.tell(UP)
    world.run(2.0)
    for name in ("client", "server"):
        (closed,) = world.of(name, quic_session_pb2.SessionClosed)
        assert closed.is_authentication_failure
    assert world.of("server", quic_session_pb2.SessionEstablished) == []


def test_peer_that_turns_out_to_be_revoked_loses_its_session_at_once() -> None:
    world = World().established()
    world.server.tell(quic_session_pb2.RecheckPeer(session_id=SESSION))
    world.run(0.01)
    assert world.of("server", quic_session_pb2.SessionClosed) == []
    world.is_revoked = True
    world.server.tell(quic_session_pb2.RecheckPeer(session_id=SESSION))
    world.run(0.01)
    (closed,) = world.of("server", quic_session_pb2.SessionClosed)
    assert closed.reason == "revoked"


def test_peer_that_is_revoked_later_loses_its_session_within_a_second() -> None:
    world = World().established()
    world.is_revoked = True
    world.run(STATISTICS_INTERVAL_S)
    (closed,) = world.of("server", quic_session_pb2.SessionClosed)
    assert (closed.reason, closed.is_remote, closed.is_authentication_failure) == ("revoked", False, True)
    (heard,) = world.of("client", quic_session_pb2.SessionClosed)
    assert heard.is_remote
    assert heard.was_established


def test_silent_peer_ends_the_handshake_in_time() -> None:
    world = World()
    world.is_cut = True
    world.client.tell(UP)
    world.run(20.0)
    (closed,) = world.of("client", quic_session_pb2.SessionClosed)
    assert (closed.reason, closed.was_established) == ("handshake_timeout", False)


def test_session_that_never_had_a_path_sends_nothing_and_still_tells_its_end() -> None:
    world = World()
    world.client.tell(DOWN)
    assert world.io.next_deadline() is None
    world.client.tell(send(0, b"x"), close("operator"))
    world.exchange()
    assert [type(each) for each in world.heard["client"]] == [quic_session_pb2.SessionClosed]
    assert world.sent == 0
    world.client.tell(UP)
    world.exchange()
    assert world.sent == 0


def test_without_a_path_nothing_is_sent_and_no_timer_spins() -> None:
    world = World().established()
    world.client.tell(DOWN)
    world.client.tell(send(0, b"x" * 100_000))
    handled = world.client.ref.statistics.handled
    sent = world.sent
    world.server.tell(DOWN)
    world.run(30.0)
    assert world.sent == sent
    assert world.client.ref.statistics.handled - handled < 100


@pytest.mark.parametrize("outage_s", [1.0, 15.0, 60.0])
def test_session_goes_on_at_once_after_an_outage(outage_s: float) -> None:
    world = World().established()
    world.client.tell(send(0, b"before"))
    world.run(1.0)
    world.client.tell(DOWN)
    world.server.tell(DOWN)
    world.client.tell(send(0, b" after"))
    world.run(outage_s)
    assert world.received("server", 0) == b"before"
    world.client.tell(RESUMED)
    world.server.tell(RESUMED)
    world.run(0.5)
    assert world.received("server", 0) == b"before after"


def test_outage_longer_than_the_idle_time_ends_the_session() -> None:
    world = World().established()
    world.client.tell(DOWN)
    world.server.tell(DOWN)
    world.run(INNER_IDLE_TIMEOUT_S + 5.0)
    for name in ("client", "server"):
        (closed,) = world.of(name, quic_session_pb2.SessionClosed)
        assert closed.reason == "idle_timeout"


@pytest.mark.parametrize(
    "packets",
    [
        [],
        [b""],
        [bytes(1200)],
        [b"\x40" + bytes(1199)],
        [b"\xc0\x00\x00\x00\x01\x08" + bytes(100)],
        [b"\xc0\x00\x00\x00\x02\x08" + bytes(1194)],
        [b"\xc0\x00\x00\x00\x01\x04" + bytes(1194)],
        [b"\xe0\x00\x00\x00\x01\x08" + bytes(1194)],
    ],
    ids=["none", "empty", "zeroes", "short", "too-small", "version", "cid-too-short", "handshake"],
)
def test_only_a_client_initial_opens_a_connection_at_the_server(packets: list[bytes]) -> None:
    world = World()
    world.server.tell(UP)
    world.server.tell(relay_leg_pb2.SealedReceived(intermediate_id="i1", session_id=SESSION, packets=packets))
    world.exchange()
    told = [each for each in world.heard["server"] if not isinstance(each, keepalive_pb2.RelayedStunReceived)]
    assert (world.sent, told, world.io.next_deadline()) == (0, [], None)


def test_packets_before_the_initial_are_passed_over() -> None:
    world = World()
    world.server.tell(UP)
    world.client.tell(UP)
    (first,) = [m for m in world.client.take_emitted() if isinstance(m, relay_leg_pb2.SendSealed)]
    world.server.tell(
        relay_leg_pb2.SealedReceived(
            intermediate_id="i1", session_id=SESSION, packets=[b"\x40" + bytes(50), *first.packets]
        )
    )
    world.run(1.0)
    assert len(world.of("server", quic_session_pb2.SessionEstablished)) == 1


def test_peer_that_stays_at_another_relay_is_told_to_whoever_selects_paths() -> None:
    world = World().established()
    world.server.tell(RESUMED)
    for _ in range(3):
        # Each of its packets comes through i1 still.
        world.client.tell(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"?"))
        world.run(FOLLOW_AFTER_S * 0.6)
    told = world.of("server", quic_session_pb2.PeerOnRelay)
    assert [each.intermediate_id for each in told] == ["i1"]
    assert world.of("client", quic_session_pb2.PeerOnRelay) == []


def test_handshake_that_may_not_begin_is_told_once_and_begins_without_being_asked_again() -> None:
    world = World()
    world.gate.refusal = "handshake_budget"
    world.server.tell(UP)
    world.client.tell(UP)
    world.run(0.2)
    (told,) = world.of("server", quic_session_pb2.HandshakeDeferred)
    assert (told.session_id, told.reason) == (SESSION, "handshake_budget")
    assert world.of("server", quic_session_pb2.SessionEstablished) == []
    # Not even one more packet of the client is needed: only its answers to ours.
    world.gate.refusal = ""
    world.run(0.1)
    assert len(world.of("server", quic_session_pb2.SessionEstablished)) == 1
    asked = world.gate.asked
    world.run(2.0)
    assert world.gate.asked == asked


def test_handshake_waits_in_the_middle_while_the_budget_is_spent_and_goes_on_by_itself() -> None:
    world = World()
    world.server.tell(UP)
    world.client.tell(UP)
    world.gate.is_spent = True
    world.run(0.3)
    # The client has shown who it is, and nobody has looked.
    assert world.of("server", quic_session_pb2.SessionEstablished) == []
    held = world.server.concern._held
    assert 0 < len(held) <= MAX_HELD_BATCHES
    world.gate.is_spent = False
    world.run(0.1)
    assert len(world.of("server", quic_session_pb2.SessionEstablished)) == 1
    assert not held


def test_what_waits_for_a_handshake_to_go_on_is_bounded_and_forgotten_with_the_session() -> None:
    world = World()
    world.server.tell(UP)
    world.client.tell(UP)
    world.gate.is_spent = True
    world.run(0.05)
    for _ in range(2 * MAX_HELD_BATCHES):
        world.server.tell(
            relay_leg_pb2.SealedReceived(session_id=SESSION, intermediate_id="i1", packets=[b"\x40" * 40])
        )
    assert len(world.server.concern._held) == MAX_HELD_BATCHES
    world.server.tell(close("operator"))
    assert not world.server.concern._held


def test_every_step_of_a_handshake_is_paid() -> None:
    world = World()
    world.server.tell(UP)
    world.client.tell(UP)
    world.run(0.2)
    # The first packet, the client's certificate, and what acknowledges it.
    assert world.gate.spent_s >= 2 * TYPICAL_STEP_S
    spent_s = world.gate.spent_s
    world.run(2.0)
    assert world.gate.spent_s == spent_s


def test_places_to_wait_are_bounded_and_given_back_by_a_session_that_ends() -> None:
    world = World()
    world.gate.refusal = "handshake_budget"
    others = [world.gate.of(str(number)) for number in range(MAX_WAITING - 1)]
    assert all(other.wait() for other in others)
    assert others[0].wait(), "it has its place already"
    world.server.tell(UP)
    world.client.tell(UP)
    world.exchange()
    assert not world.gate.of("late").wait()
    world.server.tell(close("operator"))
    world.exchange()
    assert world.gate.of("late").wait()
    others[0].leave()
    others[0].leave()
    assert world.gate.of("later").wait()
    assert not world.gate.of("latest").wait()


def test_session_without_a_place_to_wait_begins_when_the_client_asks_again() -> None:
    world = World()
    world.gate.refusal = "handshake_budget"
    assert all(world.gate.of(str(number)).wait() for number in range(MAX_WAITING))
    world.server.tell(UP)
    world.client.tell(UP)
    world.exchange()
    world.gate.refusal = ""
    world.run(0.1)
    assert world.of("server", quic_session_pb2.SessionEstablished) == []
    world.run(1.0)
    assert len(world.of("server", quic_session_pb2.SessionEstablished)) == 1


def test_closed_session_makes_no_connection_any_more() -> None:
    world = World()
    world.server.tell(UP, close("operator"))
    world.client.tell(UP)
    world.run(1.0)
    assert len(world.of("server", quic_session_pb2.SessionClosed)) == 1
    assert world.of("server", quic_session_pb2.SessionEstablished) == []


def test_stopped_session_tells_its_peer_and_its_end() -> None:
    world = World().established()
    world.client.stop()
    world.run(1.0)
    assert [each.reason for each in world.of("client", quic_session_pb2.SessionClosed)] == ["stopped"]
    assert [each.is_remote for each in world.of("server", quic_session_pb2.SessionClosed)] == [True]


def test_crash_of_a_session_is_still_told_once() -> None:
    world = World().established()
    world.client.tell(quic_session_pb2.SendDatagramPayloads(session_id=SESSION, payloads=[bytes(5000)]))
    assert world.client.failure is not None
    world.exchange()
    assert [each.reason for each in world.of("client", quic_session_pb2.SessionClosed)] == ["stopped"]


def test_packets_on_a_direct_path_reach_the_connection() -> None:
    world = World().established()
    world.server.tell(send(0, b"early"))  # a stream that no client opened is passed over
    world.client.tell(send(0, b"x"))
    (sealed,) = [m for m in world.client.take_emitted() if isinstance(m, relay_leg_pb2.SendSealed)]
    world.server.tell(udp_socket_pb2.DatagramsReceived(session_id=SESSION, datagrams=sealed.packets))
    world.exchange()
    assert world.received("server", 0) == b"x"
