"""A leg against a real server connection, joined in memory on a virtual clock."""

from __future__ import annotations

from random import Random
from typing import TypeVar

import pytest

from tests.pki_fixtures import issue
from tests.unit.quic.identities import AGENT, INTERMEDIATE, leg_options
from ztna.address import TransportAddress
from ztna.quic import events
from ztna.quic.connection import Connection
from ztna.quic.demux import destination_cid
from ztna.relay import frame
from ztna.relay.carrier import LegState
from ztna.relay.leg import MAX_UNANSWERED_HELLOS, Leg
from ztna.relay.leg_effects import (
    LegConnected,
    LegConnectionIds,
    LegControlReceived,
    LegDialWanted,
    LegEffect,
    LegLost,
    LegPathChanged,
    LegSealedReceived,
    LegSignalingReceived,
    LegTransmit,
)
from ztna.relay.quic_carrier import (
    CONTROL_STREAM,
    DEAD_AFTER_S,
    PING_INTERVAL_S,
    REDIALLED,
    SIGNALING_STREAM,
)
from ztna.signaling.framing import FrameDecoder, encode

EffectT = TypeVar("EffectT")
ADDRESS = TransportAddress("192.0.2.1", 4433)
OTHER = TransportAddress("192.0.2.2", 4433)
HELLO = b"hello-1"
S1 = b"1" * 16
S2 = b"2" * 16
DELAY_S = 0.01


class World:
    """One leg, its intermediate and the network between them."""

    def __init__(self, *, server_identity: str = "i1", **bounds: float) -> None:
        self.now = 100.0
        options = leg_options(AGENT, "intermediate", is_client=True)
        self.leg = Leg(lambda: Connection.client(options), Random(1), **bounds)  # type: ignore[arg-type]
        issued = INTERMEDIATE if server_identity == "i1" else issue("connector", "c9")
        self.server_options = leg_options(issued, "agent", is_client=False)
        self.server: Connection | None = None
        self.server_events: list[events.Event] = []
        self.control: list[bytes] = []
        self._decoder = FrameDecoder()
        self.effects: list[LegEffect] = []
        self.is_cut = False
        self.connection_ids: set[bytes] = set()
        self.remotes: list[TransportAddress] = []

    def of(self, kind: type[EffectT]) -> list[EffectT]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def take(self) -> list[bytes]:
        to_server: list[bytes] = []
        for effect in self.leg.drain():
            match effect:
                case LegTransmit():
                    self.remotes.append(effect.remote)
                    to_server += effect.datagrams
                case LegConnectionIds():
                    if effect.forget_all:
                        self.connection_ids.clear()
                    self.connection_ids |= set(effect.added)
                    self.connection_ids -= set(effect.retired)
                case LegDialWanted():
                    self.effects.append(effect)
                    self.leg.handle_resolved([ADDRESS, OTHER], "", self.now)
                    to_server += self.take()
                case _:
                    self.effects.append(effect)
        return to_server

    def new_server(self) -> Connection:
        """Have the next datagram open a new connection; returns the former one."""
        assert self.server is not None
        former, self.server = self.server, None
        self._decoder = FrameDecoder()
        return former

    def exchange(self) -> None:
        """Carry packets until neither end has one."""
        for _ in range(1000):
            to_server = self.take()
            to_leg = self._serve(to_server if not self.is_cut else [])
            if not to_server and not to_leg:
                return
            self.now += DELAY_S
            if to_leg and not self.is_cut:
                for each in to_leg:
                    assert destination_cid(each) in self.connection_ids
                self.leg.handle_datagrams(to_leg, self.now)
        raise AssertionError("the ends never come to rest")

    def _serve(self, datagrams: list[bytes]) -> list[bytes]:
        if datagrams and (self.server is None or self.server.is_closed):
            cid = destination_cid(datagrams[0])
            assert cid is not None
            self.server = Connection.server(self.server_options, destination_cid=cid)
        if self.server is None:
            return []
        self.server.receive(datagrams, self.now)
        sent: list[bytes] = []
        for _ in range(2):
            for event in self.server.events():
                self.server_events.append(event)
                if isinstance(event, events.StreamDataReceived) and event.stream_id == CONTROL_STREAM:
                    self.control += self._decoder.feed(event.data)
            sent += self.server.transmit(self.now)
        return sent

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(10_000):
            self.exchange()
            server_deadline = self.server.next_deadline() if self.server else None
            deadlines = [d for d in (self.leg.next_deadline(), server_deadline) if d is not None]
            deadline = min(deadlines, default=None)
            if deadline is None or deadline > end:
                self.now = max(self.now, end)
                return
            self.now = max(self.now, deadline) + 1e-6
            self.leg.handle_timeout(self.now)
            if self.server is not None:
                self.server.handle_timeout(self.now)
        raise AssertionError("the timers spin")

    def connected(self) -> World:
        self.leg.connect(self.now)
        self.exchange()
        assert self.leg.state is LegState.CONNECTED
        return self

    def up(self) -> World:
        self.connected()
        self.leg.present_attachment(HELLO, self.now)
        self.exchange()
        assert self.control == [HELLO]
        assert self.leg.handle_accepted(1200, self.now)
        return self

    def serve_stream(self, stream_id: int, data: bytes) -> None:
        assert self.server is not None
        self.server.send_stream(stream_id, data)
        self.exchange()

    def relayed(self) -> list[tuple[int, bytes]]:
        """What the server received in DATAGRAM frames."""
        found = [each.data for each in self.server_events if isinstance(each, events.DatagramReceived)]
        return [frame.unpack(each) for each in found]


def test_leg_connects_and_says_to_whom() -> None:
    world = World().connected()
    assert world.of(LegConnected) == [LegConnected(ADDRESS)]
    assert world.leg.rtt_s is not None
    world.leg.connect(world.now)
    world.exchange()
    assert world.of(LegConnected) == [LegConnected(ADDRESS)] * 2  # told again to whoever asks


def test_packets_of_a_session_go_both_ways_through_its_channel() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.leg.send_sealed(S1, [b"ping", b"pong"], world.now)
    world.exchange()
    assert world.relayed() == [(7, b"ping"), (7, b"pong")]
    assert world.server is not None
    world.server.send_datagram(frame.pack(7, b"answer"))
    world.exchange()
    assert world.of(LegSealedReceived) == [LegSealedReceived(S1, [b"answer"])]
    assert world.of(LegPathChanged) == [LegPathChanged(S1, is_up=True, max_packet_bytes=1200)]
    counters = world.leg.counters
    assert (counters.packets_sent, counters.bytes_sent) == (2, 8)
    assert (counters.packets_received, counters.bytes_received) == (1, 6)


def test_packets_without_a_channel_or_of_no_known_one_are_counted() -> None:
    world = World().up()
    world.leg.send_sealed(S1, [b"lost"], world.now)
    assert world.server is not None
    world.server.send_datagram(frame.pack(9, b"whose"))
    world.server.send_datagram(b"\0")
    world.exchange()
    dropped = {reason: count for reason, count in world.leg.dropped.items() if count}
    assert dropped == {"no_channel": 1, "unknown_channel": 1, "malformed": 1}
    assert world.of(LegSealedReceived) == []


def test_a_burst_is_not_dropped_while_the_connection_takes_it() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    packets = [number.to_bytes(2, "big") * 600 for number in range(500)]
    world.leg.send_sealed(S1, packets, world.now)
    world.exchange()
    assert sorted(world.relayed()) == [(7, packet) for packet in packets]
    assert not any(world.leg.dropped.values())


def test_packets_that_fit_are_written_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    transmit, passes = Connection.transmit, 0

    def count(connection: Connection, now: float) -> list[bytes]:
        nonlocal passes
        passes += 1
        return transmit(connection, now)

    monkeypatch.setattr(Connection, "transmit", count)
    world.leg.send_sealed(S1, [b"ping", b"pong"], world.now)
    assert len(world.take()) == 1  # both in one datagram
    assert passes == 1


def test_oldest_packets_are_dropped_while_the_connection_is_busy() -> None:
    world = World(max_queued_packets=8, max_sojourn_s=1.0).up()
    world.leg.bind(S1, 7)
    world.is_cut = True
    world.leg.send_sealed(S1, [bytes(1200)] * 6000, world.now)
    assert world.leg.dropped["session_queue_full"] > 0


def test_channels_bound_before_the_leg_is_up_are_told_when_it_is() -> None:
    world = World().connected()
    world.leg.bind(S1, 7)
    assert world.of(LegPathChanged) == []
    world.leg.present_attachment(HELLO, world.now)
    world.leg.bind(S2, 8)  # the former one went with the former attachment
    world.exchange()
    assert world.leg.handle_accepted(1200, world.now)
    world.exchange()
    assert [(each.session_id, each.is_up) for each in world.of(LegPathChanged)] == [(S2, True)]


def test_rebinding_is_a_down_and_an_up() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.leg.bind(S1, 8)
    world.exchange()
    assert [each.is_up for each in world.of(LegPathChanged)] == [True, False, True]


def test_channel_given_to_another_session_leaves_the_former_one() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.leg.bind(S2, 7)
    world.leg.release(S1)
    assert world.server is not None
    world.server.send_datagram(frame.pack(7, b"x"))
    world.exchange()
    assert world.of(LegSealedReceived) == [LegSealedReceived(S2, [b"x"])]


def test_signaling_bytes_go_both_ways() -> None:
    world = World().connected()
    world.leg.send_signaling(b"up", world.now)
    world.exchange()
    assert events.StreamDataReceived(SIGNALING_STREAM, b"up", end_of_stream=False) in world.server_events
    world.serve_stream(SIGNALING_STREAM, b"down")
    assert world.of(LegSignalingReceived) == [LegSignalingReceived(b"down")]


def test_signaling_without_a_connection_is_dropped() -> None:
    world = World()
    world.leg.send_signaling(b"up", world.now)
    assert world.leg.drain() == []


def test_control_frames_are_told_whole() -> None:
    world = World().up()
    world.serve_stream(CONTROL_STREAM, encode(b"abc") + encode(b"def")[:3])
    world.serve_stream(CONTROL_STREAM, encode(b"def")[3:])
    assert world.of(LegControlReceived) == [LegControlReceived(b"abc"), LegControlReceived(b"def")]


def test_broken_framing_closes_the_leg_and_tells_the_intermediate() -> None:
    world = World().up()
    world.serve_stream(CONTROL_STREAM, bytes(4))
    assert [each.reason for each in world.of(LegLost)] == ["frame_empty"]
    closed = [each for each in world.server_events if isinstance(each, events.ConnectionClosed)]
    assert [(each.is_remote, each.message) for each in closed] == [(True, "frame_empty")]
    assert world.connection_ids == set()


def test_nonsense_in_a_control_frame_closes_the_leg() -> None:
    world = World().up()
    world.leg.handle_protocol_error("malformed_leg_frame", world.now)
    world.exchange()
    assert [each.reason for each in world.of(LegLost)] == ["malformed_leg_frame"]
    world.leg.handle_protocol_error("malformed_leg_frame", world.now)
    assert world.leg.drain() == []


def test_stream_that_the_intermediate_may_not_open_closes_the_leg() -> None:
    world = World().up()
    assert world.server is not None
    world.serve_stream(world.server.open_stream(), b"?")
    assert [each.reason for each in world.of(LegLost)] == ["unexpected_stream"]


def test_packet_size_below_what_a_session_needs_closes_the_leg() -> None:
    world = World().connected()
    world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    assert not world.leg.handle_accepted(1199, world.now)
    world.exchange()
    assert [each.reason for each in world.of(LegLost)] == ["packet_size_too_small"]


# Hellos


def test_hello_is_sent_again_after_a_reconnection_and_channels_live_on() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.is_cut = True
    world.run(PING_INTERVAL_S + DEAD_AFTER_S + 0.5)
    assert "no_answer" in [each.reason for each in world.of(LegLost)]
    world.is_cut = False
    world.server = None
    world.control.clear()
    world._decoder = FrameDecoder()
    world.run(5.0)
    assert world.control == [HELLO]
    assert world.leg.handle_accepted(1200, world.now)
    world.exchange()
    assert [each.is_up for each in world.of(LegPathChanged)] == [True, False, True]


def test_answers_to_former_hellos_do_not_count() -> None:
    world = World().connected()
    world.leg.present_attachment(b"old", world.now)
    world.leg.present_attachment(b"new", world.now)
    world.exchange()
    assert world.control == [b"old", b"new"]
    assert not world.leg.handle_accepted(1200, world.now)
    assert world.leg.handle_accepted(1200, world.now)
    assert not world.leg.handle_accepted(1200, world.now)
    assert world.leg.state is LegState.UP


def test_rejected_hello_is_forgotten_and_the_connection_kept() -> None:
    world = World().connected()
    world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    world.leg.handle_rejected(world.now)
    world.leg.handle_rejected(world.now)
    assert world.leg.state is LegState.CONNECTED
    world.leg.present_attachment(b"hello-2", world.now)
    world.exchange()
    assert world.leg.handle_accepted(1200, world.now)


def test_rejection_of_a_former_hello_leaves_the_present_one() -> None:
    world = World().connected()
    world.leg.present_attachment(b"old", world.now)
    world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    world.leg.handle_rejected(world.now)
    assert world.leg.handle_accepted(1200, world.now)


def test_intermediate_that_answers_no_hello_is_dialled_anew() -> None:
    world = World().connected()
    for _ in range(MAX_UNANSWERED_HELLOS):
        world.leg.present_attachment(HELLO, world.now)
    assert world.leg.state is LegState.CONNECTED
    world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    assert [each.reason for each in world.of(LegLost)] == ["no_answer"]
    assert not world.leg.handle_accepted(1200, world.now)  # nothing of the former connection is waited for


# Time


def test_idle_leg_is_kept_alive_by_a_ping() -> None:
    world = World().up()
    received = len(world.remotes)
    world.run(PING_INTERVAL_S + 1.0)
    assert len(world.remotes) > received
    world.run(60.0)
    assert world.of(LegLost) == []


def test_silence_is_noticed_while_something_is_in_flight() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.run(1.0)
    world.is_cut = True
    began = world.now
    world.leg.send_sealed(S1, [b"x"], world.now)
    world.run(DEAD_AFTER_S - 0.1)
    assert world.of(LegLost) == []
    world.run(0.2)
    (lost,) = world.of(LegLost)
    assert lost.reason == "no_answer"
    assert world.now - began < DEAD_AFTER_S + 1.0


def test_intermediate_that_never_answers_is_dialled_at_its_next_address() -> None:
    world = World()
    world.is_cut = True
    world.leg.connect(world.now)
    world.run(2 * DEAD_AFTER_S + 1.0)
    assert [each.reason for each in world.of(LegLost)] == ["no_answer"] * len(world.of(LegLost))
    assert {ADDRESS, OTHER} <= set(world.remotes)
    assert world.remotes[0] == ADDRESS


def test_attempt_that_was_cut_short_counts_for_the_choice_of_address() -> None:
    # An agent with another intermediate leaves this one as soon as its patience ends, and comes back later.
    world = World()
    world.is_cut = True
    for _ in range(2):
        world.leg.connect(world.now)
        world.run(DEAD_AFTER_S / 2)
        world.leg.disconnect(world.now)
        world.run(0.1)
    assert {ADDRESS, OTHER} == set(world.remotes)


def test_name_that_does_not_resolve_is_tried_again() -> None:
    leg = Leg(lambda: pytest.fail("nothing to connect to"), Random(1))
    leg.connect(0.0)
    assert leg.drain() == [LegDialWanted()]
    leg.handle_resolved([], "no such host", 1.0)
    _, lost = leg.drain()
    assert isinstance(lost, LegLost)
    assert (lost.reason, lost.detail) == ("unresolvable", "no such host")
    deadline = leg.next_deadline()
    assert deadline is not None
    leg.handle_timeout(deadline)
    assert leg.drain() == [LegDialWanted()]
    leg.handle_timeout(deadline)
    assert leg.next_deadline() is None


def test_presented_attachment_ends_the_wait_for_the_next_attempt() -> None:
    leg = Leg(lambda: pytest.fail("not resolved yet"), Random(1))
    leg.connect(0.0)
    leg.handle_resolved([], "", 1.0)
    leg.drain()
    leg.present_attachment(HELLO, 1.0)
    assert leg.drain() == [LegDialWanted()]


def test_disconnected_leg_forgets_everything_and_tells_the_intermediate() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.leg.disconnect(world.now)
    world.exchange()
    assert world.leg.state is LegState.IDLE
    assert world.leg.next_deadline() is None
    assert [each.is_up for each in world.of(LegPathChanged)] == [True, False]
    assert [(each.reason, each.retry_in_s) for each in world.of(LegLost)] == [("disconnected", None)]
    assert any(isinstance(each, events.ConnectionClosed) for each in world.server_events)
    world.leg.disconnect(world.now)
    assert world.leg.drain() == []
    world.control.clear()
    world._decoder = FrameDecoder()
    world.connected()
    assert world.control == []


def test_answer_of_a_resolver_that_nobody_waits_for_changes_nothing() -> None:
    leg = Leg(lambda: pytest.fail("nobody wants it"), Random(1))
    leg.handle_resolved([ADDRESS], "", 1.0)
    leg.handle_datagrams([b"x"], 1.0)
    leg.handle_timeout(1.0)
    assert leg.drain() == []


def test_refused_certificate_is_an_authentication_failure_at_both_ends() -> None:
    world = World(server_identity="c9")
    world.leg.connect(world.now)
    world.exchange()
    lost = world.of(LegLost)[0]
    assert lost.is_authentication_failure
    closed = [each for each in world.server_events if isinstance(each, events.ConnectionClosed)]
    assert closed[0].is_authentication_failure


def test_redialled_leg_leaves_without_a_word_and_comes_back_with_its_attachment() -> None:
    world = World().up()
    world.leg.bind(S1, 7)
    world.exchange()
    world.effects.clear()
    world.leg.redial(world.now)
    former = world.new_server()
    world.exchange()
    assert not any(isinstance(event, events.ConnectionClosed) for event in former.events())
    assert [each.reason for each in world.effects if isinstance(each, LegLost)] == [REDIALLED]
    assert world.leg.state is LegState.CONNECTED
    assert world.control == [HELLO, HELLO]
    assert world.leg.handle_accepted(1200, world.now)
    world.exchange()
    changes = [(each.session_id, each.is_up) for each in world.effects if isinstance(each, LegPathChanged)]
    assert changes == [(S1, False), (S1, True)]


def test_leg_that_was_refused_is_redialled_without_sitting_out_its_wait() -> None:
    world = World(server_identity="c9")
    world.leg.connect(world.now)
    world.exchange()
    assert world.of(LegLost)[0].retry_in_s is not None
    world.effects.clear()
    world.leg.redial(world.now)
    assert world.leg.state is LegState.CONNECTING
    assert any(isinstance(each, LegDialWanted) for each in world.leg.drain())


def test_leg_that_is_not_wanted_is_not_redialled() -> None:
    world = World()
    world.leg.redial(world.now)
    assert world.leg.drain() == []
