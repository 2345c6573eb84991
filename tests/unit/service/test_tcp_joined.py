"""Both ends of a carried connection, joined by two ordered byte streams, driven in every order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.service.test_tcp import HEADER, decode_answer, encode_answer
from ztna.service.tcp import BackendConnection, ClientConnection
from ztna.service.tcp_connection import MAX_EARLY_BYTES, MAX_IN_FLIGHT_BYTES, Phase, TcpConnection
from ztna.service.tcp_effects import (
    AbortSocket,
    ConnectBackend,
    Consumed,
    Finished,
    HeaderReceived,
    PauseReading,
    ResetStream,
    ResumeReading,
    SendToStream,
    StopStream,
    StreamError,
    Summary,
    WriteSocketEof,
    WriteToSocket,
)

Frame = SendToStream | ResetStream | StopStream


@dataclass
class _End:
    """One end with its socket, and what is on the way to the peer."""

    core: TcpConnection
    read: bytearray = field(default_factory=bytearray)
    written: bytearray = field(default_factory=bytearray)
    unwritten: int = 0
    received: int = 0
    consumed: int = 0
    unsent: int = 0
    outbox: deque[Frame] = field(default_factory=deque)
    is_paused: bool = False
    has_read_eof: bool = False
    has_written_eof: bool = False
    is_aborted: bool = False
    was_asked: bool = False
    should_connect: bool = False
    summary: Summary | None = None

    def drain(self) -> None:  # noqa: PLR0912 - one flat branch per effect
        for effect in self.core.drain():
            assert self.summary is None or isinstance(effect, Consumed)
            match effect:
                case WriteToSocket(data):
                    assert not self.has_written_eof
                    self.written += data
                    self.unwritten += len(data)
                case WriteSocketEof():
                    assert not self.has_written_eof
                    self.has_written_eof = True
                case AbortSocket():
                    self.is_aborted = True
                case PauseReading():
                    assert not self.is_paused
                    self.is_paused = True
                case ResumeReading():
                    assert self.is_paused
                    self.is_paused = False
                case SendToStream(data, _):
                    self.unsent += len(data)
                    self.outbox.append(effect)
                case ResetStream() | StopStream():
                    self.outbox.append(effect)
                case Consumed(size_bytes):
                    self.consumed += size_bytes
                case HeaderReceived(header):
                    assert header == HEADER
                    self.was_asked = True
                case ConnectBackend():
                    self.should_connect = True
                case Finished(summary):
                    self.summary = summary
                case _:
                    pass

    @property
    def has_socket(self) -> bool:
        return self.core.phase in {Phase.AWAITING_ANSWER, Phase.ESTABLISHED}


class JoinedConnection(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.backend_core = BackendConnection(encode_answer, 0.0)
        self.client = _End(ClientConnection(HEADER, decode_answer, 0.0))
        self.backend = _End(self.backend_core)
        self.ends = [self.client, self.backend]
        self.was_reset = False
        self.client.drain()

    @initialize(is_established=st.booleans(), early=st.sampled_from([0, 10, 70_000]))
    def start(self, is_established: bool, early: int) -> None:
        """Half of the runs begin behind the opening, where most states are."""
        if early:
            self.read_socket(0, early)
        if is_established:
            self.stream_arrives(1, 400_000)
            self.accept()
            self.backend_connects()
            self.stream_arrives(0, 400_000)

    @rule(side=st.integers(0, 1), size=st.sampled_from([1, 100, 30_000, 70_000, 300_000]))
    def read_socket(self, side: int, size: int) -> None:
        end = self.ends[side]
        if end.has_socket and not end.is_paused and not end.has_read_eof:
            data = bytes([len(end.read) % 251]) * size
            end.read += data
            end.core.handle_socket_data(data, self.now)
            end.drain()

    @rule(side=st.integers(0, 1))
    def read_eof(self, side: int) -> None:
        end = self.ends[side]
        if end.has_socket and not end.has_read_eof:
            end.has_read_eof = True
            end.core.handle_socket_eof(self.now)
            end.drain()

    @rule(side=st.integers(0, 1), share=st.sampled_from([0.3, 1.0]))
    def write_socket(self, side: int, share: float) -> None:
        end = self.ends[side]
        size = int(end.unwritten * share)
        if end.summary is None:
            end.unwritten -= size
            end.core.handle_socket_written(size, self.now)
            end.drain()

    @rule(side=st.integers(0, 1), share=st.sampled_from([0.5, 1.0]))
    def session_sends(self, side: int, share: float) -> None:
        end = self.ends[side]
        size = int(end.unsent * share)
        if end.summary is None:
            end.unsent -= size
            end.core.handle_sent(size, self.now)
            end.drain()

    @rule(side=st.integers(0, 1), cut=st.integers(1, 400_000))
    def stream_arrives(self, side: int, cut: int) -> None:
        end, peer = self.ends[side], self.ends[1 - side]
        if not peer.outbox:
            return
        frame = peer.outbox.popleft()
        match frame:
            case SendToStream(data, is_end):
                if len(data) > cut:
                    peer.outbox.appendleft(SendToStream(data[cut:], is_end))
                    data, is_end = data[:cut], False
                end.received += len(data)
                end.core.handle_stream_data(data, is_end, self.now)
            case ResetStream(code):
                end.core.handle_stream_reset(code, self.now)
            case StopStream(code):
                end.core.handle_stream_stopped(code, self.now)
        end.drain()

    @precondition(lambda self: self.backend.was_asked and self.backend_core.phase is Phase.DECIDING)
    @rule()
    def accept(self) -> None:
        self.backend_core.accept(self.now)
        self.backend.drain()

    @precondition(lambda self: self.backend.should_connect and self.backend_core.phase is Phase.CONNECTING)
    @rule()
    def backend_connects(self) -> None:
        self.backend_core.handle_backend_connected(self.now)
        self.backend.drain()

    @precondition(lambda self: self.client.has_read_eof or self.backend.has_read_eof)
    @rule(side=st.integers(0, 1), code=st.sampled_from([StreamError.CLIENT_RESET, StreamError.LIMIT]))
    def abort(self, side: int, code: StreamError) -> None:
        end = self.ends[side]
        self.was_reset = self.was_reset or end.summary is None
        if code is StreamError.CLIENT_RESET and end.has_socket:
            end.core.handle_socket_reset(self.now)
        else:
            end.core.handle_abort(code, "test", self.now)
        end.drain()

    @invariant()
    def bytes_arrive_in_order_and_unchanged(self) -> None:
        assert self.client.read.startswith(self.backend.written)
        assert self.backend.read.startswith(self.client.written)

    @invariant()
    def bounds_hold(self) -> None:
        for end in self.ends:
            assert end.core.in_flight_bytes <= MAX_IN_FLIGHT_BYTES
        if self.backend_core.phase in {Phase.DECIDING, Phase.CONNECTING}:
            assert self.backend.received - self.backend.consumed <= MAX_EARLY_BYTES

    @invariant()
    def no_byte_is_consumed_twice_and_none_is_forgotten(self) -> None:
        for end in self.ends:
            assert end.consumed <= end.received
            if end.summary is not None:
                assert end.consumed == end.received

    @invariant()
    def an_end_without_a_reset_is_orderly(self) -> None:
        for end, peer in ((self.client, self.backend), (self.backend, self.client)):
            if end.summary is not None and not self.was_reset:
                assert end.summary.code is StreamError.NO_ERROR
                assert end.has_written_eof
                assert end.written == peer.read
                assert end.summary.bytes_to_socket == len(peer.read)
                assert not end.is_aborted

    def teardown(self) -> None:
        """Let everything under way arrive: each byte then is where it belongs, and both ends are over."""
        for _ in range(60):
            self.accept_if_asked()
            for side, end in enumerate(self.ends):
                self.session_sends(side, 1.0)
                self.write_socket(side, 1.0)
                if not end.is_paused:
                    self.read_eof(side)
                self.stream_arrives(side, 400_000)
            self.bounds_hold()
            self.no_byte_is_consumed_twice_and_none_is_forgotten()
        for end in self.ends:
            assert end.summary is not None
        if not self.was_reset:
            self.an_end_without_a_reset_is_orderly()
            assert self.client.written == self.backend.read
            assert self.backend.written == self.client.read

    def accept_if_asked(self) -> None:
        if self.backend_core.phase is Phase.DECIDING:
            self.accept()
        if self.backend_core.phase is Phase.CONNECTING:
            self.backend_connects()


JoinedConnection.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestJoinedConnection = JoinedConnection.TestCase
