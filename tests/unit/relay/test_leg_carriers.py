"""A leg with both carriers: when it turns to the gRPC stream, what travels there, and how it comes back."""

from __future__ import annotations

import pytest

from tests.unit.relay.test_leg import ADDRESS, HELLO, OTHER, S1, S2, World
from ztna.quic.events import DatagramReceived
from ztna.relay import frame
from ztna.relay.carrier import CarrierKind, CarrierMode, LegState
from ztna.relay.leg import FALLBACK_AFTER_S, MAX_UNANSWERED_HELLOS, QUIC_ANSWERED, QUIC_RETRY_S
from ztna.relay.leg_effects import (
    LegConnected,
    LegControlReceived,
    LegDialWanted,
    LegLost,
    LegPathChanged,
    LegSealedReceived,
    StreamCloseWanted,
    StreamDialWanted,
    StreamSend,
)
from ztna.relay.queue import MAX_QUEUED_PACKETS_PER_SESSION, MAX_SOJOURN_S
from ztna.relay.quic_carrier import DEAD_AFTER_S
from ztna.relay.stream_carrier import ANSWER_LIMIT_S, PING_INTERVAL_S, PROBE_LIMIT_S

GRPC = CarrierKind.GRPC
HELLO_2 = b"hello-2"


class CarrierWorld(World):
    """A leg that may use both carriers; the stream is played by the test."""

    def __init__(self, mode: CarrierMode = CarrierMode.AUTO, **bounds: float) -> None:
        super().__init__(mode=mode, **bounds)  # type: ignore[arg-type]
        self.is_answering = True

    def sent(self) -> list[StreamSend]:
        """What was written to the stream and not looked at yet; PINGs are answered on the way."""
        self.exchange()
        found = self.of(StreamSend)
        self.effects = [each for each in self.effects if not isinstance(each, StreamSend)]
        for each in found:
            if each.ping and self.is_answering:
                self.leg.handle_stream_frame([], [], 0, each.ping, self.now)
        return [each for each in found if not each.ping]

    def hellos(self) -> list[bytes]:
        return [each.hello for each in self.sent() if each.hello]

    def cut(self) -> CarrierWorld:
        """UDP leads nowhere."""
        self.is_cut = True
        return self

    def dialled(self) -> CarrierWorld:
        self.leg.connect(self.now)
        self.run(FALLBACK_AFTER_S + 0.01)
        assert len(self.of(StreamDialWanted)) == 1
        return self

    def opened(self) -> CarrierWorld:
        self.cut().dialled()
        self.leg.handle_stream_opened(self.now)
        return self

    def over_grpc(self) -> CarrierWorld:
        self.opened()
        self.leg.present_attachment(HELLO, self.now)
        assert self.hellos() == [HELLO]
        assert self.leg.handle_accepted(1200, self.now, GRPC)
        assert self.leg.carrier is GRPC
        return self

    def run_answering(self, seconds: float) -> None:
        """Let time pass, with an intermediate that answers on the stream."""
        end = self.now + seconds
        while self.now < end:
            self.run(min(1.0, end - self.now))
            self.sent()


def test_stream_is_not_opened_while_quic_answers() -> None:
    world = CarrierWorld()
    world.up()
    world.run(30.0)
    assert world.of(StreamDialWanted) == []
    assert world.leg.carrier is CarrierKind.QUIC


def test_stream_is_opened_when_quic_had_its_time_and_not_before() -> None:
    world = CarrierWorld().cut()
    world.leg.connect(world.now)
    world.run(FALLBACK_AFTER_S - 0.1)
    assert world.of(LegDialWanted)
    assert world.of(StreamDialWanted) == []
    world.run(0.2)
    assert len(world.of(StreamDialWanted)) == 1


def test_unresolvable_name_of_the_quic_port_leads_to_the_stream_too() -> None:
    world = CarrierWorld()
    world.leg.connect(world.now)
    world.leg.drain()
    world.leg.handle_resolved([], "no such name", world.now)
    world.leg.handle_timeout(world.now + FALLBACK_AFTER_S)
    assert StreamDialWanted() in world.leg.drain()


def test_without_leave_to_use_it_no_stream_is_opened() -> None:
    world = CarrierWorld(CarrierMode.QUIC).cut()
    world.leg.connect(world.now)
    world.run(60.0)
    assert world.of(StreamDialWanted) == []


def test_refused_certificate_is_no_reason_to_try_the_stream() -> None:
    world = World(server_identity="c9", mode=CarrierMode.AUTO)  # type: ignore[arg-type]
    world.leg.connect(world.now)
    world.run(FALLBACK_AFTER_S + 0.5)
    assert all(each.is_authentication_failure for each in world.of(LegLost))
    assert world.of(LegLost)
    assert world.of(StreamDialWanted) == []


def test_leg_is_up_over_the_stream_and_its_sessions_hear_of_it() -> None:
    world = CarrierWorld().opened()
    world.leg.present_attachment(HELLO, world.now)
    world.leg.bind(S1, 7)
    assert world.leg.carrier is None
    assert world.hellos() == [HELLO]
    assert world.leg.handle_accepted(1200, world.now, GRPC)
    world.exchange()
    assert world.of(LegPathChanged) == [LegPathChanged(S1, is_up=True, max_packet_bytes=1200)]
    assert world.leg.state is LegState.UP
    assert world.of(LegConnected) == []  # which is about the QUIC connection


def test_packets_go_both_ways_through_the_stream() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.send_sealed(S1, [b"one", b"two"], world.now)
    assert world.sent() == [StreamSend(datagrams=(frame.pack(7, b"one"), frame.pack(7, b"two")))]
    world.leg.handle_stream_frame([], [frame.pack(7, b"three"), b"\0", frame.pack(8, b"x")], 0, 0, world.now)
    world.exchange()
    assert world.of(LegSealedReceived) == [LegSealedReceived(S1, [b"three"])]
    counters = world.leg.counters
    assert (counters.packets_sent, counters.packets_received) == (2, 1)
    assert (counters.malformed, counters.unknown_channel) == (1, 1)


def test_one_batch_is_written_at_a_time_and_the_rest_waits_its_turn() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.bind(S2, 8)
    world.leg.send_sealed(S1, [b"first"], world.now)
    world.leg.send_sealed(S1, [b"%d" % number for number in range(40)], world.now)
    world.leg.send_sealed(S2, [b"%d" % number for number in range(40)], world.now)
    assert [len(each.datagrams) for each in world.sent()] == [1]
    world.leg.handle_stream_written(world.now)
    (batch,) = world.sent()
    assert len(batch.datagrams) == frame.MAX_BATCH_PACKETS
    assert batch.datagrams[:2] == (frame.pack(7, b"0"), frame.pack(8, b"0"))  # one each, in turn
    world.leg.handle_stream_written(world.now)
    assert [len(each.datagrams) for each in world.sent()] == [80 - frame.MAX_BATCH_PACKETS]
    world.leg.handle_stream_written(world.now)
    assert world.sent() == []


def test_largest_batch_fits_into_a_message() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.send_sealed(S1, [bytes(1200)] * frame.MAX_BATCH_PACKETS, world.now)
    (batch,) = world.sent()
    assert sum(len(each) + 4 for each in batch.datagrams) < 65_536


def test_oldest_packets_are_dropped_while_the_stream_takes_nothing() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.send_sealed(S1, [b"first"], world.now)
    world.sent()
    for number in range(MAX_QUEUED_PACKETS_PER_SESSION + 5):
        world.leg.send_sealed(S1, [b"%d" % number], world.now)
    assert world.leg.dropped["session_queue_full"] == 5
    world.now += MAX_SOJOURN_S + 0.01
    world.leg.send_sealed(S1, [b"last"], world.now)
    world.leg.handle_stream_written(world.now)
    assert world.sent() == [StreamSend(datagrams=(frame.pack(7, b"last"),))]
    assert world.leg.dropped["sojourn_exceeded"] == MAX_QUEUED_PACKETS_PER_SESSION - 1


def test_quic_is_tried_every_minute_while_the_stream_relays() -> None:
    world = CarrierWorld().over_grpc()
    world.run_answering(2 * DEAD_AFTER_S)
    dialled = len(world.of(LegDialWanted))
    # Each address of the name in turn.
    world.run_answering(10 * (QUIC_RETRY_S + 2 * DEAD_AFTER_S))
    assert len(world.of(LegDialWanted)) - dialled == 20
    assert world.leg.carrier is GRPC


def test_each_address_has_its_turn_within_one_round_while_the_leg_is_on_grpc() -> None:
    world = CarrierWorld().over_grpc()
    world.run_answering(2 * DEAD_AFTER_S)
    for _ in range(3):
        world.remotes.clear()
        world.run_answering(QUIC_RETRY_S + 2 * DEAD_AFTER_S)
        assert set(world.remotes) == {ADDRESS, OTHER}


def test_leg_moves_to_quic_once_it_is_accepted_there() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.is_cut = False
    world.run_answering(QUIC_RETRY_S + DEAD_AFTER_S)
    assert world.control == [HELLO]
    assert world.leg.carrier is GRPC  # until the intermediate has answered
    world.effects.clear()
    assert world.leg.handle_accepted(1200, world.now)
    world.exchange()
    assert world.effects == [
        StreamCloseWanted(),
        LegLost(QUIC_ANSWERED, "", is_authentication_failure=False, retry_in_s=None, carrier=GRPC),
        LegPathChanged(S1, is_up=True, max_packet_bytes=1200),  # told again, and never that it was down
    ]
    world.leg.send_sealed(S1, [b"x"], world.now)
    world.run(1.0)
    assert world.relayed() == [(7, b"x")]
    assert world.of(StreamSend) == []
    world.run(2 * QUIC_RETRY_S)
    assert world.leg.carrier is CarrierKind.QUIC
    assert world.of(StreamDialWanted) == []


def test_packets_that_wait_for_the_stream_leave_over_quic_after_the_move() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.is_cut = False
    world.run_answering(QUIC_RETRY_S + DEAD_AFTER_S)
    world.leg.send_sealed(S1, [b"written"], world.now)
    world.leg.send_sealed(S1, [b"waits"], world.now)
    assert world.leg.handle_accepted(1200, world.now)
    world.leg.send_sealed(S1, [b"follows"], world.now)
    world.exchange()
    assert world.relayed() == [(7, b"waits"), (7, b"follows")]


def test_silent_quic_leg_is_replaced_by_the_stream_at_once() -> None:
    world = CarrierWorld()
    world.up()
    world.leg.bind(S1, 7)
    world.is_cut = True
    world.leg.send_sealed(S1, [b"x"], world.now)
    world.run(DEAD_AFTER_S + 0.1)
    assert [each.reason for each in world.of(LegLost)] == ["no_answer"]
    assert len(world.of(StreamDialWanted)) == 1
    world.leg.handle_stream_opened(world.now)
    assert world.hellos() == [HELLO]
    assert world.leg.handle_accepted(1200, world.now, GRPC)
    world.exchange()
    assert [each.is_up for each in world.of(LegPathChanged)] == [True, False, True]


def test_lost_stream_leads_back_to_quic_and_is_opened_again() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.run_answering(2 * DEAD_AFTER_S)
    world.effects.clear()
    world.leg.handle_stream_ended("unavailable", "gone", world.now, is_authentication_failure=False)
    world.exchange()
    assert [each.is_up for each in world.of(LegPathChanged)] == [False]
    assert world.of(LegDialWanted)  # whatever was left of the minute
    (lost,) = world.of(LegLost)
    assert (lost.reason, lost.detail, lost.carrier) == ("unavailable", "gone", GRPC)
    world.run(2.0)
    assert len(world.of(StreamDialWanted)) == 1
    world.leg.handle_stream_opened(world.now)
    assert world.hellos() == [HELLO]


def test_quic_that_answers_late_wins_over_a_stream_that_is_not_open_yet() -> None:
    world = CarrierWorld().cut().dialled()
    world.is_cut = False
    world.leg.present_attachment(HELLO, world.now)
    world.run(2.0)
    assert world.control == [HELLO]
    assert world.of(StreamCloseWanted) == [StreamCloseWanted()]
    world.leg.handle_stream_opened(world.now)  # crossed on the way
    assert world.hellos() == []


def test_hello_over_quic_waits_for_the_answer_to_the_one_on_the_stream() -> None:
    world = CarrierWorld().opened()
    world.leg.present_attachment(HELLO, world.now)
    assert world.hellos() == [HELLO]
    world.is_cut = False
    world.run_answering(QUIC_RETRY_S / 10)
    assert world.of(LegConnected) == [LegConnected(world.of(LegConnected)[0].remote)]
    assert world.control == []
    assert world.leg.handle_accepted(1200, world.now, GRPC)
    world.exchange()
    assert world.control == [HELLO]
    assert world.leg.handle_accepted(1200, world.now)
    assert world.leg.carrier is CarrierKind.QUIC


@pytest.mark.parametrize("answer", ["rejected", "ended"])
def test_hello_over_quic_waits_no_longer_when_the_stream_is_of_no_use(answer: str) -> None:
    world = CarrierWorld().opened()
    world.leg.present_attachment(HELLO, world.now)
    world.is_cut = False
    world.run_answering(QUIC_RETRY_S / 10)
    assert world.control == []
    if answer == "ended":
        world.leg.handle_stream_ended("unavailable", "", world.now, is_authentication_failure=False)
    else:
        world.leg.handle_rejected(world.now, GRPC)
        world.leg.present_attachment(HELLO, world.now)
    world.run_answering(1.0)
    assert world.control == [HELLO]
    assert world.of(StreamCloseWanted)


def test_new_attachment_is_said_on_the_open_stream_and_former_answers_do_not_count() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.present_attachment(HELLO_2, world.now)
    world.leg.present_attachment(HELLO, world.now)
    assert world.hellos() == [HELLO_2, HELLO]
    assert world.of(LegPathChanged)[-1] == LegPathChanged(S1, is_up=False, max_packet_bytes=1200)
    assert not world.leg.handle_accepted(1200, world.now, GRPC)
    assert world.leg.handle_accepted(1200, world.now, GRPC)
    assert not world.leg.handle_accepted(1200, world.now, GRPC)


def test_stream_on_which_no_hello_is_answered_is_given_up() -> None:
    world = CarrierWorld().over_grpc()
    for _ in range(MAX_UNANSWERED_HELLOS):
        world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    assert not world.of(StreamCloseWanted)
    world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    assert len(world.of(StreamCloseWanted)) == 1
    assert ("no_answer", GRPC) in [(each.reason, each.carrier) for each in world.of(LegLost)]


def test_attachment_ends_the_wait_for_the_next_stream() -> None:
    world = CarrierWorld().opened()
    world.leg.handle_stream_ended("unavailable", "", world.now, is_authentication_failure=False)
    world.leg.present_attachment(HELLO, world.now)
    world.exchange()
    assert len(world.of(StreamDialWanted)) == 2


def test_smaller_packets_than_a_session_needs_end_the_stream() -> None:
    world = CarrierWorld().opened()
    world.leg.present_attachment(HELLO, world.now)
    assert not world.leg.handle_accepted(1199, world.now, GRPC)
    world.exchange()
    assert world.of(LegLost)[-1].reason == "packet_size_too_small"
    assert world.of(StreamCloseWanted)


def test_control_frames_of_the_stream_say_where_they_came() -> None:
    world = CarrierWorld().opened()
    world.leg.handle_stream_frame([b"body"], [], 0, 0, world.now)
    world.exchange()
    assert world.of(LegControlReceived) == [LegControlReceived(b"body", GRPC)]
    world.leg.handle_protocol_error("malformed_leg_frame", world.now, GRPC)
    world.exchange()
    assert world.of(LegLost)[-1].reason == "malformed_leg_frame"


def test_stream_is_kept_alive_and_measured_by_pings() -> None:
    world = CarrierWorld().over_grpc()
    assert world.leg.rtt_s is not None
    for _ in range(3):
        world.run(PING_INTERVAL_S)
        (ping,) = world.of(StreamSend)
        world.effects.clear()
        world.now += 0.5
        world.leg.handle_stream_frame([], [], 0, ping.ping, world.now)
    assert 0.1 < world.leg.rtt_s < 0.5
    world.leg.handle_stream_frame([], [], 9, 99, world.now)
    assert [each for each in world.sent() if each.pong] == [StreamSend(pong=9)]


def test_stream_without_answers_is_given_up() -> None:
    world = CarrierWorld().over_grpc()
    world.is_answering = False
    world.run(PING_INTERVAL_S + ANSWER_LIMIT_S + 0.1)
    assert [each.reason for each in world.of(LegLost) if each.carrier is GRPC] == ["no_answer"]
    assert world.of(StreamCloseWanted) == [StreamCloseWanted()]


def test_stream_that_does_not_open_is_given_up_and_tried_again() -> None:
    world = CarrierWorld().cut().dialled()
    world.run(ANSWER_LIMIT_S + 1.0)
    assert [each.reason for each in world.of(LegLost) if each.carrier is GRPC] == ["no_answer"]
    assert len(world.of(StreamDialWanted)) == 2


def test_change_of_address_doubts_the_stream_and_tries_quic() -> None:
    world = CarrierWorld().over_grpc()
    world.run_answering(2 * DEAD_AFTER_S)
    world.effects.clear()
    world.is_answering = False
    world.leg.probe(world.now)
    world.exchange()
    assert len(world.of(LegDialWanted)) == 1
    world.run(PROBE_LIMIT_S + 0.1)
    assert "no_answer" in [each.reason for each in world.of(LegLost) if each.carrier is GRPC]


def test_new_certificate_is_shown_on_a_new_stream() -> None:
    world = CarrierWorld().over_grpc()
    world.effects.clear()
    world.leg.redial(world.now)
    world.exchange()
    assert world.of(StreamCloseWanted) == [StreamCloseWanted()]
    assert world.of(StreamDialWanted) == [StreamDialWanted()]
    world.leg.handle_stream_opened(world.now)
    assert world.hellos() == [HELLO]


def test_disconnected_leg_leaves_both_carriers() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.disconnect(world.now)
    world.run(2 * QUIC_RETRY_S)
    assert world.of(StreamCloseWanted) == [StreamCloseWanted()]
    assert len(world.of(StreamDialWanted)) == 1
    assert world.leg.state is LegState.IDLE
    world.leg.handle_stream_ended("late", "", world.now, is_authentication_failure=False)
    world.leg.handle_stream_frame([], [frame.pack(7, b"late")], 1, 0, world.now)
    assert world.leg.drain() == []


def test_leg_that_may_use_the_stream_alone_never_dials_quic() -> None:
    world = CarrierWorld(CarrierMode.GRPC)
    world.leg.connect(world.now)
    world.leg.handle_stream_opened(world.now)
    assert world.leg.state is LegState.CONNECTED
    world.leg.present_attachment(HELLO, world.now)
    assert world.hellos() == [HELLO]
    assert world.leg.handle_accepted(1200, world.now, GRPC)
    world.leg.probe(world.now)
    world.run_answering(2 * QUIC_RETRY_S)
    world.leg.handle_stream_ended("unavailable", "", world.now, is_authentication_failure=False)
    world.run(2.0)
    assert world.of(LegDialWanted) == []
    assert world.remotes == []
    assert len(world.of(StreamDialWanted)) == 2


def test_server_sees_datagrams_only_over_quic() -> None:
    world = CarrierWorld().over_grpc()
    world.leg.bind(S1, 7)
    world.leg.send_sealed(S1, [b"x"], world.now)
    world.run(1.0)
    assert not any(isinstance(each, DatagramReceived) for each in world.server_events)
    assert ADDRESS in world.remotes
