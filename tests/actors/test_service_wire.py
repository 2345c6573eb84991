from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import service_wire
from actors.service_wire import MAX_MESSAGE_CHARACTERS, ControlDecoder
from ztna.errors import RemoteProtocolError
from ztna.service.tcp_effects import Answer, StreamError
from ztna.v1 import grant_pb2, session_pb2

WIRE_CODES = [
    StreamError.REFUSED,
    StreamError.BACKEND_UNREACHABLE,
    StreamError.ACCESS_DENIED,
    StreamError.UNKNOWN_SERVICE,
    StreamError.LIMIT,
    StreamError.SHUTTING_DOWN,
    StreamError.INVALID,
    StreamError.GRANT_REFUSED,
]


@pytest.mark.parametrize("code", WIRE_CODES)
def test_refusals_survive_the_wire(code: StreamError) -> None:
    answer = Answer(code, "because")
    assert service_wire.decode_answer(service_wire.encode_answer(answer)) == answer


def test_acceptance_survives_the_wire() -> None:
    accepted = Answer(StreamError.NO_ERROR)
    assert service_wire.decode_answer(service_wire.encode_answer(accepted)) == accepted


def test_code_that_only_streams_know_is_just_a_refusal() -> None:
    data = service_wire.encode_answer(Answer(StreamError.INTERNAL))
    assert service_wire.decode_answer(data) == Answer(StreamError.REFUSED, "internal")


def test_code_of_a_newer_peer_is_just_a_refusal() -> None:
    assert service_wire.decode_answer(b"\x10\x63").code is StreamError.REFUSED


def test_sentence_of_a_peer_is_cut_to_a_log_line() -> None:
    data = session_pb2.StreamAnswer(message="x" * 5000).SerializeToString()
    assert len(service_wire.decode_answer(data).message) == MAX_MESSAGE_CHARACTERS


def test_header_survives_the_wire() -> None:
    grant = grant_pb2.SealedGrant(claims=b"c", signature=b"s", issuer_chain=[b"i"])
    header = service_wire.decode_header(service_wire.encode_header("web", grant))
    assert (header.service, header.grant) == ("web", grant)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_a_remote_protocol_error(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        service_wire.decode_header(data)
    with suppress(RemoteProtocolError):
        service_wire.decode_answer(data)
    with suppress(RemoteProtocolError):
        ControlDecoder().feed(data, end_of_stream=False)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(1, 50))
def test_control_frames_arrive_whole_in_whatever_pieces(flow_ids: list[int], size: int) -> None:
    sent = [
        session_pb2.ControlFrame(close_flow=session_pb2.CloseFlow(flow_id=each, reason="idle"))
        for each in flow_ids
    ]
    data = b"".join(map(service_wire.encode_control, [service_wire.hello(), *sent]))
    decoder = ControlDecoder()
    got = [
        frame
        for start in range(0, len(data), size)
        for frame in decoder.feed(data[start : start + size], end_of_stream=False)
    ]
    assert got == sent
