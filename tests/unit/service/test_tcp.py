from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.service.tcp import DEFAULT_CONNECT_TIMEOUT_S, BackendConnection, ClientConnection
from ztna.service.tcp_connection import (
    MAX_EARLY_BYTES,
    MAX_HEADER_BYTES,
    MAX_IN_FLIGHT_BYTES,
    MAX_OPENING_S,
    RESUME_BELOW_BYTES,
    Phase,
    TcpConnection,
    encode_prefixed,
)
from ztna.service.tcp_effects import (
    BACKEND_FAILED_MESSAGE,
    AbortSocket,
    Answer,
    ConnectBackend,
    Consumed,
    Established,
    Finished,
    HeaderReceived,
    PauseReading,
    ResetStream,
    ResumeReading,
    SendToStream,
    StopStream,
    StreamError,
    Summary,
    TcpEffect,
    WriteSocketEof,
    WriteToSocket,
)

HEADER = b"service and grant"


def encode_answer(answer: Answer) -> bytes:
    return bytes([answer.code]) + answer.message.encode()


def decode_answer(data: bytes) -> Answer:
    try:
        return Answer(StreamError(data[0]), data[1:].decode())
    except ValueError as error:
        raise RemoteProtocolError("answer_malformed") from error


YES = encode_prefixed(encode_answer(Answer(StreamError.NO_ERROR)))


def new_client() -> ClientConnection:
    client = ClientConnection(HEADER, decode_answer, 0.0)
    assert client.drain() == [SendToStream(encode_prefixed(HEADER), end=False)]
    client.handle_sent(len(HEADER) + 2, 0.0)
    return client


def open_client() -> ClientConnection:
    client = new_client()
    client.handle_stream_data(YES, False, 1.0)
    assert client.drain() == [Consumed(len(YES)), Established()]
    return client


def new_backend() -> BackendConnection:
    return BackendConnection(encode_answer, 0.0)


def deciding_backend(early: bytes = b"", *, end: bool = False) -> BackendConnection:
    backend = new_backend()
    backend.handle_stream_data(encode_prefixed(HEADER) + early, end, 0.0)
    assert backend.drain() == [Consumed(len(HEADER) + 2), HeaderReceived(HEADER)]
    return backend


def connecting_backend(early: bytes = b"", *, end: bool = False) -> BackendConnection:
    backend = deciding_backend(early, end=end)
    backend.accept(0.0)
    assert backend.drain() == [ConnectBackend()]
    return backend


def open_backend() -> BackendConnection:
    backend = connecting_backend()
    backend.handle_backend_connected(1.0)
    assert backend.drain() == [SendToStream(YES, end=False), Established()]
    backend.handle_sent(len(YES), 1.0)
    return backend


OPEN = [pytest.param(open_client, id="client"), pytest.param(open_backend, id="backend")]


def summary_of(effects: list[TcpEffect]) -> Summary:
    assert isinstance(effects[-1], Finished)
    return effects[-1].summary


# Opening.


def test_early_client_bytes_follow_the_header_without_waiting() -> None:
    client = new_client()
    client.handle_socket_data(b"hello", 0.0)
    assert client.drain() == [SendToStream(b"hello", end=False)]
    assert client.phase is Phase.AWAITING_ANSWER


def test_client_that_ends_before_the_answer_still_gets_the_response() -> None:
    client = new_client()
    client.handle_socket_data(b"ask", 0.0)
    client.handle_socket_eof(0.0)
    client.handle_stream_data(YES + b"response", True, 1.0)
    assert client.drain() == [
        SendToStream(b"ask", end=False),
        SendToStream(b"", end=True),
        Consumed(len(YES)),
        Established(),
        WriteToSocket(b"response"),
        WriteSocketEof(),
    ]
    client.handle_socket_written(8, 2.0)
    assert client.drain() == [
        Consumed(8),
        Finished(Summary(StreamError.NO_ERROR, "closed", "", 3, 8, 2.0)),
    ]


def test_early_bytes_beyond_the_connectors_patience_wait_for_the_answer() -> None:
    client = new_client()
    client.handle_socket_data(bytes(MAX_EARLY_BYTES - 1), 0.0)
    assert client.drain() == [SendToStream(bytes(MAX_EARLY_BYTES - 1), end=False)]
    client.handle_socket_data(b"ab", 0.0)
    assert client.drain() == [SendToStream(b"a", end=False), PauseReading()]
    client.handle_sent(MAX_EARLY_BYTES, 0.0)
    assert client.drain() == []
    client.handle_stream_data(YES, False, 1.0)
    assert client.drain() == [
        Consumed(len(YES)),
        Established(),
        SendToStream(b"b", end=False),
        ResumeReading(),
    ]


@given(st.lists(st.integers(0, 40), max_size=8))
def test_header_cut_anywhere_is_handed_over_once_with_the_early_bytes_held(cuts: list[int]) -> None:
    backend, stream = new_backend(), encode_prefixed(HEADER) + b"early"
    marks = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, stop in itertools.pairwise(marks):
        backend.handle_stream_data(stream[start:stop], False, 0.0)
    effects = backend.drain()
    assert effects == [Consumed(len(HEADER) + 2), HeaderReceived(HEADER)]
    backend.accept(0.0)
    backend.handle_backend_connected(0.0)
    assert backend.drain()[-1] == WriteToSocket(b"early")


def test_answer_precedes_the_early_bytes_and_every_service_byte() -> None:
    backend = connecting_backend(b"early", end=True)
    backend.handle_backend_connected(1.0)
    backend.handle_socket_data(b"service", 1.0)
    assert backend.drain() == [
        SendToStream(YES, end=False),
        Established(),
        WriteToSocket(b"early"),
        WriteSocketEof(),
        SendToStream(b"service", end=False),
    ]


def test_answer_cut_in_two_establishes_with_its_second_half() -> None:
    client = new_client()
    client.handle_stream_data(YES[:1], False, 0.0)
    assert client.drain() == []
    client.handle_stream_data(YES[1:], False, 0.0)
    assert client.drain() == [Consumed(len(YES)), Established()]


def test_connector_holds_exactly_the_early_bytes_it_promised() -> None:
    backend = deciding_backend(bytes(MAX_EARLY_BYTES))
    backend.handle_stream_data(b"x", False, 0.0)
    effects = backend.drain()
    assert effects[:2] == [ResetStream(StreamError.INVALID), StopStream(StreamError.INVALID)]
    assert Consumed(MAX_EARLY_BYTES + 1) in effects
    assert summary_of(effects).detail == "early_bytes_exceeded"


def test_refusal_is_answered_and_the_early_bytes_are_given_back() -> None:
    backend = deciding_backend(b"early")
    backend.refuse(StreamError.ACCESS_DENIED, 1.0, "not on the list")
    answer = encode_prefixed(encode_answer(Answer(StreamError.ACCESS_DENIED, "not on the list")))
    assert backend.drain() == [
        SendToStream(answer, end=True),
        StopStream(StreamError.ACCESS_DENIED),
        Consumed(5),
        Finished(Summary(StreamError.ACCESS_DENIED, "refused", "not on the list", 0, 0, 1.0)),
    ]


def test_refused_client_is_reset_and_told_why() -> None:
    client = new_client()
    answer = encode_prefixed(encode_answer(Answer(StreamError.UNKNOWN_SERVICE, "no such service")))
    client.handle_stream_data(answer, True, 1.0)
    assert client.drain() == [
        ResetStream(StreamError.UNKNOWN_SERVICE),
        AbortSocket(),
        Consumed(len(answer)),
        Finished(Summary(StreamError.UNKNOWN_SERVICE, "refused", "no such service", 0, 0, 1.0)),
    ]


def test_dead_backend_is_answered_at_once_without_its_address() -> None:
    backend = connecting_backend(end=True)
    backend.handle_backend_failed(1.0, "connection refused")
    answer = encode_prefixed(encode_answer(Answer(StreamError.BACKEND_UNREACHABLE, BACKEND_FAILED_MESSAGE)))
    effects = backend.drain()
    assert effects[:-1] == [SendToStream(answer, end=True)]
    summary = summary_of(effects)
    assert (summary.detail, summary.message) == ("backend_unreachable", "connection refused")


def test_silent_backend_is_given_up_in_time() -> None:
    backend = connecting_backend()
    assert backend.next_deadline() == DEFAULT_CONNECT_TIMEOUT_S
    backend.handle_timeout(DEFAULT_CONNECT_TIMEOUT_S - 0.01)
    assert backend.drain() == []
    backend.handle_timeout(DEFAULT_CONNECT_TIMEOUT_S)
    effects = backend.drain()
    assert isinstance(effects[0], AbortSocket)
    assert isinstance(effects[1], SendToStream)
    assert effects[2] == StopStream(StreamError.BACKEND_UNREACHABLE)
    assert summary_of(effects).detail == "backend_timed_out"
    assert backend.next_deadline() is None


@pytest.mark.parametrize("make", [new_backend, new_client], ids=["header", "answer"])
def test_opening_said_a_byte_per_second_is_given_up_like_one_that_stalls(
    make: Callable[[], ClientConnection | BackendConnection],
) -> None:
    connection = make()
    connection.drain()
    for second, byte in enumerate(encode_prefixed(bytes(MAX_HEADER_BYTES))):
        now = float(second)
        deadline = connection.next_deadline()
        if deadline is not None and now >= deadline:
            connection.handle_timeout(now)
        if connection.phase is Phase.FINISHED:
            break
        connection.handle_stream_data(bytes([byte]), False, now)
    assert second == MAX_OPENING_S
    assert summary_of(connection.drain()).detail in {"opening_timed_out", "answer_timed_out"}


@pytest.mark.parametrize(
    ("make", "code", "detail"),
    [
        pytest.param(new_backend, StreamError.INVALID, "opening_timed_out", id="no header"),
        pytest.param(deciding_backend, StreamError.INVALID, "opening_timed_out", id="no decision"),
        pytest.param(new_client, StreamError.BACKEND_UNREACHABLE, "answer_timed_out", id="no answer"),
    ],
)
def test_opening_that_stalls_is_given_up(
    make: Callable[[], ClientConnection | BackendConnection], code: StreamError, detail: str
) -> None:
    connection = make()
    assert connection.next_deadline() == MAX_OPENING_S
    connection.handle_timeout(MAX_OPENING_S)
    effects = connection.drain()
    assert effects[:2] == [ResetStream(code), StopStream(code)]
    assert (AbortSocket() in effects) == isinstance(connection, ClientConnection)
    assert summary_of(effects).detail == detail
    connection.handle_timeout(MAX_OPENING_S + 1)
    assert connection.drain() == []


@pytest.mark.parametrize(
    ("data", "end", "detail"),
    [
        pytest.param(b"", True, "header_truncated", id="nothing"),
        pytest.param(b"\x00", True, "header_truncated", id="half a length"),
        pytest.param(b"\x00\x05abc", True, "header_truncated", id="half a header"),
        pytest.param(b"\x00\x00", False, "prefix_out_of_range", id="empty header"),
        pytest.param((MAX_HEADER_BYTES + 1).to_bytes(2, "big"), False, "prefix_out_of_range", id="too large"),
    ],
)
def test_wrong_header_ends_this_connection_without_a_socket(data: bytes, end: bool, detail: str) -> None:
    backend = new_backend()
    backend.handle_stream_data(data, end, 0.0)
    effects = backend.drain()
    assert effects[0] == ResetStream(StreamError.INVALID)
    assert (StopStream(StreamError.INVALID) in effects) == (not end)
    assert AbortSocket() not in effects
    assert summary_of(effects).detail == detail


@pytest.mark.parametrize(
    ("data", "end", "detail"),
    [
        pytest.param(b"\x00", True, "answer_truncated", id="half a length"),
        pytest.param(b"\x00\x00", False, "prefix_out_of_range", id="empty answer"),
        pytest.param(b"\x00\x01\xff", False, "answer_malformed", id="not an answer"),
    ],
)
def test_wrong_answer_resets_the_client(data: bytes, end: bool, detail: str) -> None:
    client = new_client()
    client.handle_stream_data(data, end, 0.0)
    effects = client.drain()
    assert AbortSocket() in effects
    assert summary_of(effects).detail == detail


def test_largest_header_passes() -> None:
    backend, header = new_backend(), bytes(MAX_HEADER_BYTES)
    backend.handle_stream_data(encode_prefixed(header), False, 0.0)
    assert HeaderReceived(header) in backend.drain()


@pytest.mark.parametrize("size", [0, MAX_HEADER_BYTES + 1])
def test_header_of_an_impossible_size_is_our_own_fault(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        ClientConnection(bytes(size), decode_answer, 0.0)


def test_client_that_gives_up_stops_the_connecting_backend() -> None:
    client, backend = new_client(), connecting_backend(b"early")
    client.handle_socket_reset(1.0)
    assert client.drain()[:2] == [ResetStream(StreamError.CLIENT_RESET), StopStream(StreamError.CLIENT_RESET)]
    backend.handle_stream_reset(StreamError.CLIENT_RESET, 1.0)
    assert backend.drain()[:3] == [ResetStream(StreamError.CLIENT_RESET), AbortSocket(), Consumed(5)]
    backend.handle_backend_connected(2.0)
    backend.handle_backend_failed(2.0)
    backend.accept(2.0)
    backend.refuse(StreamError.LIMIT, 2.0)
    assert backend.drain() == []


# Both ends, once established.


@pytest.mark.parametrize("make", OPEN)
def test_socket_end_first_leaves_the_other_direction_open(make: Callable[[], TcpConnection]) -> None:
    connection = make()
    connection.handle_socket_eof(1.0)
    connection.handle_socket_eof(1.0)
    connection.handle_stream_data(b"more", False, 1.0)
    assert connection.drain() == [SendToStream(b"", end=True), WriteToSocket(b"more")]
    connection.handle_socket_written(4, 1.0)
    connection.handle_stream_data(b"", True, 1.0)
    effects = connection.drain()
    assert effects[:2] == [Consumed(4), WriteSocketEof()]
    assert summary_of(effects).code is StreamError.NO_ERROR


@pytest.mark.parametrize("make", OPEN)
def test_stream_end_first_leaves_the_other_direction_open(make: Callable[[], TcpConnection]) -> None:
    connection = make()
    connection.handle_stream_data(b"last", True, 1.0)
    connection.handle_socket_data(b"more", 1.0)
    assert connection.drain() == [WriteToSocket(b"last"), WriteSocketEof(), SendToStream(b"more", end=False)]
    connection.handle_socket_eof(1.0)
    assert connection.drain() == [SendToStream(b"", end=True)]
    connection.handle_socket_written(4, 5.0)
    assert summary_of(connection.drain()) == Summary(StreamError.NO_ERROR, "closed", "", 4, 4, 5.0)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(open_client, StreamError.CLIENT_RESET, id="client"),
        pytest.param(open_backend, StreamError.BACKEND_RESET, id="backend"),
    ],
)
def test_socket_reset_resets_both_directions_of_the_stream(
    make: Callable[[], TcpConnection], code: StreamError
) -> None:
    connection = make()
    connection.handle_stream_data(b"unwritten", False, 1.0)
    connection.drain()
    connection.handle_socket_reset(1.0)
    effects = connection.drain()
    assert effects[:-1] == [ResetStream(code), StopStream(code), Consumed(9)]
    assert summary_of(effects).detail == "socket_reset"


@pytest.mark.parametrize("make", OPEN)
@pytest.mark.parametrize("is_reset", [True, False], ids=["RESET_STREAM", "STOP_SENDING"])
def test_reset_by_the_peer_aborts_the_socket(make: Callable[[], TcpConnection], is_reset: bool) -> None:
    connection = make()
    code = StreamError.BACKEND_RESET
    if is_reset:
        connection.handle_stream_reset(code, 1.0)
        expected: list[TcpEffect] = [ResetStream(code), AbortSocket()]
    else:
        connection.handle_stream_stopped(code, 1.0)
        expected = [ResetStream(code), StopStream(code), AbortSocket()]
    effects = connection.drain()
    assert effects[:-1] == expected
    assert summary_of(effects).code is code


def test_stopped_stream_is_reset_even_behind_its_end() -> None:
    client = open_client()
    client.handle_socket_eof(1.0)
    client.drain()
    client.handle_stream_stopped(StreamError.BACKEND_RESET, 1.0)
    assert client.drain()[0] == ResetStream(StreamError.BACKEND_RESET)


@pytest.mark.parametrize("code", [0, max(StreamError) + 1, 1 << 61])
def test_peers_unknown_code_is_an_abort_all_the_same(code: int) -> None:
    client = open_client()
    client.handle_stream_reset(code, 1.0)
    summary = summary_of(client.drain())
    assert (summary.code, summary.detail) == (StreamError.INTERNAL, "peer_reset_unknown_code")


def test_shutdown_ends_the_connection_with_its_reason() -> None:
    client = open_client()
    client.handle_abort(StreamError.SHUTTING_DOWN, "draining", 1.0)
    client.handle_abort(StreamError.SHUTTING_DOWN, "draining", 1.0)
    effects = client.drain()
    assert effects[:3] == [
        ResetStream(StreamError.SHUTTING_DOWN), StopStream(StreamError.SHUTTING_DOWN), AbortSocket(),
    ]  # fmt: skip
    assert summary_of(effects).detail == "draining"


@pytest.mark.parametrize("make", OPEN)
def test_credit_bounds_what_is_in_flight_and_switches_reading_with_hysteresis(
    make: Callable[[], TcpConnection],
) -> None:
    connection = make()
    connection.handle_socket_data(bytes(MAX_IN_FLIGHT_BYTES - 1), 1.0)
    assert connection.drain() == [SendToStream(bytes(MAX_IN_FLIGHT_BYTES - 1), end=False)]
    connection.handle_socket_data(b"abc", 1.0)
    assert connection.drain() == [SendToStream(b"a", end=False), PauseReading()]
    assert connection.in_flight_bytes == MAX_IN_FLIGHT_BYTES
    connection.handle_sent(1, 1.0)
    assert connection.drain() == [SendToStream(b"b", end=False)]
    connection.handle_sent(MAX_IN_FLIGHT_BYTES - RESUME_BELOW_BYTES, 1.0)
    assert connection.drain() == [SendToStream(b"c", end=False)]
    connection.handle_sent(1, 1.0)
    assert connection.drain() == [ResumeReading()]


def test_socket_end_waits_behind_the_bytes_without_credit() -> None:
    client = open_client()
    client.handle_socket_data(bytes(MAX_IN_FLIGHT_BYTES + 1), 1.0)
    client.handle_socket_eof(1.0)
    assert client.drain() == [SendToStream(bytes(MAX_IN_FLIGHT_BYTES), end=False), PauseReading()]
    client.handle_sent(MAX_IN_FLIGHT_BYTES, 1.0)
    assert client.drain() == [SendToStream(b"\x00", end=True)]


def test_inputs_after_the_end_are_harmless_and_their_bytes_given_back() -> None:
    client = open_client()
    client.handle_socket_reset(1.0)
    client.drain()
    client.handle_socket_data(b"x", 2.0)
    client.handle_socket_eof(2.0)
    client.handle_socket_reset(2.0)
    client.handle_socket_written(5, 2.0)
    client.handle_sent(5, 2.0)
    client.handle_stream_reset(1, 2.0)
    client.handle_stream_stopped(1, 2.0)
    assert client.drain() == []
    client.handle_stream_data(b"late", True, 2.0)
    assert client.drain() == [Consumed(4)]


def _after_eof() -> ClientConnection:
    client = open_client()
    client.handle_socket_eof(1.0)
    return client


def _after_end() -> ClientConnection:
    client = open_client()
    client.handle_stream_data(b"x", True, 1.0)
    return client


@pytest.mark.parametrize(
    "misuse",
    [
        pytest.param(lambda: _after_eof().handle_socket_data(b"x", 1.0), id="socket bytes after its end"),
        pytest.param(
            lambda: _after_end().handle_stream_data(b"x", False, 1.0), id="stream bytes after its end"
        ),
        pytest.param(lambda: open_client().handle_sent(1, 1.0), id="more sent than given"),
        pytest.param(lambda: open_client().handle_socket_written(1, 1.0), id="more written than given"),
        pytest.param(lambda: deciding_backend().handle_socket_data(b"x", 1.0), id="bytes without a socket"),
        pytest.param(lambda: deciding_backend().handle_socket_eof(1.0), id="end without a socket"),
        pytest.param(lambda: deciding_backend().handle_socket_reset(1.0), id="reset without a socket"),
        pytest.param(lambda: new_backend().accept(1.0), id="accepting before the header"),
        pytest.param(lambda: new_backend().refuse(StreamError.LIMIT, 1.0), id="refusing before the header"),
        pytest.param(
            lambda: deciding_backend().refuse(StreamError.NO_ERROR, 1.0), id="refusing without reason"
        ),
        pytest.param(lambda: deciding_backend().handle_backend_connected(1.0), id="connected undecided"),
        pytest.param(lambda: deciding_backend().handle_backend_failed(1.0), id="failed undecided"),
        pytest.param(lambda: connecting_backend().accept(1.0), id="accepting twice"),
        pytest.param(lambda: open_client().handle_abort(StreamError.NO_ERROR, "", 1.0), id="no reason"),
    ],
)
def test_misuse_is_our_own_fault(misuse: Callable[[], None]) -> None:
    with pytest.raises(LocalProtocolError):
        misuse()


@given(st.lists(st.tuples(st.binary(max_size=30), st.booleans()), max_size=10), st.booleans())
def test_arbitrary_stream_bytes_raise_nothing_and_are_consumed_once(
    pieces: list[tuple[bytes, bool]], is_client: bool
) -> None:
    connection = new_client() if is_client else new_backend()
    received = written = consumed = 0
    for data, end in pieces:
        connection.handle_stream_data(data, end, 0.0)
        received += len(data)
        effects = connection.drain()
        consumed += sum(effect.size_bytes for effect in effects if isinstance(effect, Consumed))
        written = sum(len(effect.data) for effect in effects if isinstance(effect, WriteToSocket))
        if written and connection.phase is not Phase.FINISHED:
            connection.handle_socket_written(written, 0.0)
            consumed += written
            connection.drain()
        if end:
            break
    connection.handle_abort(StreamError.INTERNAL, "test", 0.0)
    consumed += sum(effect.size_bytes for effect in connection.drain() if isinstance(effect, Consumed))
    assert consumed == received
