from __future__ import annotations

from typing import Any

import pytest

from actors import service_wire
from actors.connector_session import MAX_UNSEEN_STREAMS
from actors.grant_gate import MAX_GRANTS
from actors.io import DatagramBatch, Shortage, TcpOwner
from actors.service_backend import MAX_CONTROL_BACKLOG_BYTES, MAX_EARLY_SIGNALS, ServiceBackend
from actors.service_session import ICE_SIGNALS_BURST
from actors.tcp_pump import CONSUMED_STEP_BYTES
from tests.actors.service_world import (
    AGENT_ID,
    CONNECTOR_ID,
    SESSION,
    agent_identity,
    credentials,
    established,
    make_grant,
    of_type,
    tcp_backend,
    udp_backend,
)
from tests.manual_io import (
    START_WALL_TIME,
    ActorHarness,
    RecordedTcpAttempt,
    RecordedTcpStream,
    RecordedUdpSocket,
    actor_harness,
)
from tests.pki_fixtures import issue, of_unknown_version
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.service.flows import FLOW_IDLE_S
from ztna.service.fragments import Fragmenter, parse
from ztna.service.tcp import DEFAULT_CONNECT_TIMEOUT_S
from ztna.service.tcp_connection import MAX_EARLY_BYTES, MAX_IN_FLIGHT_BYTES, encode_prefixed
from ztna.service.tcp_effects import BACKEND_FAILED_MESSAGE, Answer, StreamError
from ztna.settings import ConnectorLimits, ConnectorService
from ztna.signaling.framing import FrameDecoder
from ztna.v1 import (
    grant_pb2,
    quic_session_pb2,
    service_port_pb2,
    session_pb2,
    signaling_client_pb2,
    signaling_pb2,
    types_pb2,
)

Backend = ActorHarness[ServiceBackend]

OTHER_SESSION = b"\1" * 16
LOCAL = TransportAddress("127.0.0.1", 33_000)
BACKEND = TransportAddress("127.0.0.2", 80)
UDP_BACKEND = TransportAddress("127.0.0.2", 53)
STRANGER = TransportAddress("127.0.0.3", 53)


def start(*services: ConnectorService, **limits: Any) -> Backend:
    harness = actor_harness(
        ServiceBackend,
        lambda: services or (tcp_backend(), udp_backend()),
        ConnectorLimits(**limits),
        credentials(Role.CONNECTOR, CONNECTOR_ID),
    )
    harness.tell(established(agent_identity()))
    return harness


@pytest.fixture
def backend() -> Backend:
    return start()


def received(
    stream_id: int, data: bytes, *, end: bool = False, session_id: bytes = SESSION
) -> quic_session_pb2.PayloadReceived:
    return quic_session_pb2.PayloadReceived(
        session_id=session_id, stream_id=stream_id, data=data, end_of_stream=end
    )


def header(service: str = "web", grant: grant_pb2.SealedGrant | None = None) -> bytes:
    return encode_prefixed(service_wire.encode_header(service, grant or make_grant(service)))


def control(**body: Any) -> quic_session_pb2.PayloadReceived:
    return received(0, service_wire.encode_control(session_pb2.ControlFrame(**body)))


HELLO = control(hello=session_pb2.SessionHello(protocol_version=1))


def renewed(grant: grant_pb2.SealedGrant) -> quic_session_pb2.PayloadReceived:
    return control(renewed_grant=session_pb2.RenewedGrant(grant=grant))


def open_flow(
    flow_id: int = 1, service: str = "dns", grant: grant_pb2.SealedGrant | None = None
) -> quic_session_pb2.PayloadReceived:
    return control(
        open_flow=session_pb2.OpenFlow(flow_id=flow_id, service=service, grant=grant or make_grant(service))
    )


def frames(flow_id: int, *payloads: bytes) -> quic_session_pb2.DatagramPayloadsReceived:
    fragmenter = Fragmenter(flow_id)
    split = [frame for payload in payloads for frame in fragmenter.split(payload, 1170)]
    return quic_session_pb2.DatagramPayloadsReceived(session_id=SESSION, payloads=split)


def sent(backend: Backend, stream_id: int) -> bytes:
    return b"".join(
        each.data
        for each in of_type(backend.emitted, quic_session_pb2.SendPayload)
        if each.stream_id == stream_id
    )


def answer(backend: Backend, stream_id: int = 4) -> Answer:
    return service_wire.decode_answer(sent(backend, stream_id)[2:])


def control_frames(backend: Backend) -> list[session_pb2.ControlFrame]:
    return [session_pb2.ControlFrame.FromString(body) for body in FrameDecoder().feed(sent(backend, 0))]


def accept(attempt: RecordedTcpAttempt) -> RecordedTcpStream:
    stream = RecordedTcpStream(LOCAL, BACKEND)
    attempt.owner.connected(stream)
    return stream


def opened(backend: Backend) -> tuple[RecordedTcpStream, TcpOwner]:
    """Stream 4, connected to its backend."""
    backend.tell(received(4, header()))
    attempt = backend.io.tcp_attempts[-1]
    stream = accept(attempt)
    backend.take_emitted()
    return stream, attempt.owner


def flow_socket(backend: Backend) -> RecordedUdpSocket:
    """The backend socket of flow 1, accepted."""
    backend.tell(HELLO, open_flow())
    return backend.io.udp_sockets[-1]


def arrive(socket: RecordedUdpSocket, source: TransportAddress, *payloads: bytes) -> None:
    socket.owner.datagrams_received([DatagramBatch(source, "", list(payloads))], 0.0)


# Streams that are granted


def test_granted_stream_connects_its_backend_and_carries_bytes_both_ways(backend: Backend) -> None:
    backend.tell(received(4, header() + b"early "))
    (attempt,) = backend.io.tcp_attempts
    assert (attempt.host, attempt.port, attempt.timeout_s) == ("127.0.0.2", 80, DEFAULT_CONNECT_TIMEOUT_S)
    stream = accept(attempt)
    assert answer(backend) == Answer(StreamError.NO_ERROR)
    backend.tell(received(4, b"late", end=True))
    assert bytes(stream.written) == b"early late"
    assert stream.eof_written
    attempt.owner.bytes_written(10)
    backend.take_emitted()
    attempt.owner.data_received(b"reply")
    attempt.owner.eof_received()
    assert sent(backend, 4) == b"reply"
    (story,) = of_type(backend.take_emitted(), service_port_pb2.FlowClosed)
    assert (story.peer_id, story.service, story.reason) == (AGENT_ID, "web", "closed")
    assert (story.bytes_to_service, story.bytes_from_service) == (10, 5)


def test_header_may_arrive_byte_by_byte(backend: Backend) -> None:
    backend.tell(*(received(4, bytes((byte,))) for byte in header()))
    assert len(backend.io.tcp_attempts) == 1


def test_backend_bytes_wait_for_the_answer_of_nobody(backend: Backend) -> None:
    stream, owner = opened(backend)
    assert stream.is_reading
    owner.data_received(b"220 ready")
    assert sent(backend, 4) == b"220 ready"


def test_grant_is_presented_once_and_again_when_a_newer_one_comes(backend: Backend) -> None:
    first = make_grant("web")
    newer = make_grant("web", issued_at=int(START_WALL_TIME) + 10)
    for index, grant in enumerate((first, first, newer, first)):
        backend.tell(received(4 + 4 * index, header(grant=grant)))
    presented = of_type(backend.take_emitted(), service_port_pb2.GrantPresented)
    assert [(each.session_id, each.grant) for each in presented] == [(SESSION, first), (SESSION, newer)]


def test_renewed_grant_is_judged_and_presented_and_opens_nothing(backend: Backend) -> None:
    backend.tell(HELLO, received(4, header()))
    backend.take_emitted()
    attempts = len(backend.io.tcp_attempts)
    newer = make_grant("web", issued_at=int(START_WALL_TIME) + 10)
    backend.tell(renewed(newer))
    messages = backend.take_emitted()
    (presented,) = of_type(messages, service_port_pb2.GrantPresented)
    assert (presented.session_id, presented.grant) == (SESSION, newer)
    assert of_type(messages, quic_session_pb2.SendPayload) == []
    assert len(backend.io.tcp_attempts) == attempts


def test_renewed_grant_of_a_udp_service_is_presented(backend: Backend) -> None:
    backend.tell(HELLO, renewed(make_grant("dns")))
    assert len(of_type(backend.take_emitted(), service_port_pb2.GrantPresented)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        "garbage",
        "signature",
        "session",
        "agent",
        "expired",
        "unknown service",
        "not allowed",
        "certificate version",
    ],
)
def test_renewed_grant_that_does_not_hold_changes_nothing(fault: str) -> None:
    backend = start(tcp_backend(), tcp_backend("ssh", allow=["somebody-else"]))
    backend.tell(HELLO)
    stream, _ = opened(backend)
    grants = {
        "garbage": lambda: grant_pb2.SealedGrant(claims=b"\xff"),
        "signature": lambda: make_grant("web", foreign=True),
        "session": lambda: make_grant("web", session_id=OTHER_SESSION),
        "agent": lambda: make_grant("web", agent_id="somebody-else"),
        "expired": lambda: make_grant("web", issued_at=int(START_WALL_TIME) - 3000),
        "unknown service": lambda: make_grant("nonsense"),
        "not allowed": lambda: make_grant("ssh"),
        "certificate version": lambda: grant_pb2.SealedGrant(
            claims=make_grant("web").claims,
            issuer_chain=[of_unknown_version(issue(Role.INTERMEDIATE, "relay-1").certificate)],
        ),
    }
    backend.tell(renewed(grants[fault]()))
    (consumed,) = backend.take_emitted()
    assert isinstance(consumed, quic_session_pb2.PayloadConsumed)
    assert len([line for line in backend.logs if line["event"] == "service_backend.flow_refused"]) == 1
    backend.tell(received(4, b"goes on"))
    assert bytes(stream.written) == b"goes on"


def test_renewed_grants_are_limited_like_opens() -> None:
    backend = start(opens_per_second=1, streams_per_agent=3)
    grants = [make_grant("web", issued_at=int(START_WALL_TIME) + each) for each in range(10)]
    backend.tell(HELLO, *map(renewed, grants))
    assert len(of_type(backend.take_emitted(), service_port_pb2.GrantPresented)) == 3
    assert backend.concern._sessions[SESSION].gate.verifications == 3


def test_many_streams_with_one_grant_cost_one_verification(backend: Backend) -> None:
    shown = header()
    backend.tell(*(received(4 + 4 * index, shown) for index in range(100)))
    assert len(backend.io.tcp_attempts) == 100
    assert backend.concern._sessions[SESSION].gate.verifications == 1


def test_remembered_grants_are_bounded() -> None:
    backend = start(opens_per_second=10_000)
    for index in range(MAX_GRANTS + 1):
        grant = make_grant("web", expires_at=int(START_WALL_TIME) + 300 + index)
        backend.tell(received(4 + 4 * index, header(grant=grant)))
    gate = backend.concern._sessions[SESSION].gate
    assert gate.verifications == MAX_GRANTS + 1
    assert len(gate._verified) == MAX_GRANTS


# Streams that are refused


@pytest.mark.parametrize(
    ("service", "grant", "code", "message"),
    [
        ("web", {"agent_id": "mallory"}, StreamError.ACCESS_DENIED, "wrong_agent"),
        ("web", {"agent_fingerprint": bytes(32)}, StreamError.ACCESS_DENIED, "wrong_agent"),
        ("web", {"connector_fingerprint": bytes(32)}, StreamError.ACCESS_DENIED, "wrong_connector"),
        ("web", {"connector_id": "elsewhere"}, StreamError.ACCESS_DENIED, "wrong_connector"),
        ("web", {"session_id": OTHER_SESSION}, StreamError.ACCESS_DENIED, "wrong_session"),
        ("web", {"service": "ssh"}, StreamError.ACCESS_DENIED, "wrong_service"),
        ("web", {"issued_at": int(START_WALL_TIME) - 700}, StreamError.GRANT_REFUSED, "expired"),
        ("web", {"issued_at": int(START_WALL_TIME) + 70}, StreamError.GRANT_REFUSED, "not_yet_valid"),
        ("web", {"issuer": "relay-2"}, StreamError.ACCESS_DENIED, "wrong_name"),
        ("web", {"foreign": True}, StreamError.ACCESS_DENIED, "foreign_ca"),
        ("ssh", {}, StreamError.UNKNOWN_SERVICE, "no tcp service 'ssh'"),
        ("dns", {}, StreamError.UNKNOWN_SERVICE, "no tcp service 'dns'"),
        ("private", {}, StreamError.ACCESS_DENIED, f"does not allow agent '{AGENT_ID}'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_open_that_is_not_granted_is_refused_and_connects_nothing(
    service: str, grant: dict[str, Any], code: StreamError, message: str
) -> None:
    backend = start(tcp_backend(), udp_backend(), tcp_backend("private", allow=("desktop",)))
    shown = make_grant(grant.pop("service", service), **grant)
    backend.tell(received(4, header(service, shown)))
    told = answer(backend)
    assert told.code is code
    assert message in told.message
    assert not backend.io.tcp_attempts
    emitted = backend.take_emitted()
    (refusal,) = of_type(emitted, service_port_pb2.FlowRefusedReported)
    assert (refusal.peer_id, refusal.service, refusal.code) == (AGENT_ID, service, code.name.lower())
    (stop,) = of_type(emitted, quic_session_pb2.AbortStream)
    assert (stop.reset, stop.stop, stop.code) == (False, True, code)
    assert not of_type(emitted, service_port_pb2.GrantPresented)


def test_tampered_grant_is_refused(backend: Backend) -> None:
    grant = make_grant("web")
    grant.signature = grant.signature[:-1] + bytes((grant.signature[-1] ^ 1,))
    backend.tell(received(4, header(grant=grant)))
    assert answer(backend).code is StreamError.ACCESS_DENIED
    assert not backend.io.tcp_attempts


def test_grant_of_an_issuer_whose_certificate_has_ended_is_refused_as_one_that_another_may_replace(
    backend: Backend,
) -> None:
    now = int(credentials(Role.INTERMEDIATE, "relay-1").certificate_ends_at) + 3600
    backend.io.set_wall_clock(now - START_WALL_TIME)
    backend.tell(received(4, header(grant=make_grant("web", issued_at=now, expires_at=now + 600))))
    told = answer(backend)
    assert told.code is StreamError.GRANT_REFUSED
    assert told.message.startswith("expired: ")


def test_verified_grant_still_expires(backend: Backend) -> None:
    shown = header()
    backend.tell(received(4, shown))
    backend.advance(600 + 61)
    backend.tell(received(8, shown))
    assert answer(backend, 8).message.startswith("expired")


@pytest.mark.parametrize(
    "data", [b"\0\0", b"\xff\xff", encode_prefixed(b"\xff"), encode_prefixed(b"\x0a\x03dns")]
)
def test_stream_that_does_not_open_as_one_is_refused(backend: Backend, data: bytes) -> None:
    backend.tell(received(4, data))
    assert not backend.io.tcp_attempts
    (abort,) = of_type(backend.take_emitted(), quic_session_pb2.AbortStream)
    assert abort.stop
    assert backend.is_alive


def test_refusals_of_one_kind_are_logged_once_per_burst(backend: Backend) -> None:
    shown = header("ssh")
    backend.tell(*(received(4 + 4 * index, shown) for index in range(20)))
    lines = [line for line in backend.logs if line["event"] == "service_backend.flow_refused"]
    assert len(lines) == 1
    assert (lines[0]["peer"], lines[0]["service"], lines[0]["code"]) == (AGENT_ID, "ssh", "unknown_service")
    backend.advance(6)
    (summary,) = [line for line in backend.logs if line["event"] == "service_backend.flow_refused_repeated"]
    assert summary["count"] == 19


def test_limit_of_streams_holds_and_frees_with_each_end() -> None:
    backend = start(streams_per_agent=2)
    shown = header()
    backend.tell(*(received(stream_id, shown) for stream_id in (4, 8, 12)))
    assert answer(backend, 12) == Answer(StreamError.LIMIT, "limits.streams_per_agent (2) is reached")
    backend.io.tcp_attempts[0].owner.connection_lost(OSError(111, "Connection refused"))
    backend.advance(1)
    backend.tell(received(16, shown))
    assert len(backend.io.tcp_attempts) == 3


def test_limit_of_opens_per_second_holds_across_sessions_of_one_agent() -> None:
    backend = start(opens_per_second=1, streams_per_agent=1)
    backend.tell(established(agent_identity(), OTHER_SESSION), received(4, header()))
    backend.io.tcp_attempts[0].owner.connection_lost(OSError(111, "Connection refused"))
    backend.take_emitted()
    other = header(grant=make_grant("web", session_id=OTHER_SESSION))
    backend.tell(received(4, other, session_id=OTHER_SESSION))
    assert answer(backend) == Answer(StreamError.LIMIT, "limits.opens_per_second (1) is reached")
    backend.advance(1)
    backend.tell(received(8, other, session_id=OTHER_SESSION))
    assert len(backend.io.tcp_attempts) == 2


@pytest.mark.parametrize("reason", ["file_descriptor_limit", "memory_limit"])
def test_shortage_refuses_a_new_stream_by_name_and_leaves_the_others(backend: Backend, reason: str) -> None:
    shown = header()
    backend.tell(received(4, shown))
    backend.io.lacks = Shortage(reason, "62 of 64")
    backend.tell(received(8, shown))
    assert answer(backend, 8) == Answer(StreamError.LIMIT, f"{reason}: 62 of 64")
    backend.io.lacks = None
    backend.tell(received(12, shown))
    assert len(backend.io.tcp_attempts) == 2
    assert not any(attempt.is_cancelled for attempt in backend.io.tcp_attempts)


# Backends that fail


def test_dead_backend_is_answered_without_and_reported_with_the_systems_words(backend: Backend) -> None:
    backend.tell(received(4, header()))
    backend.io.tcp_attempts[0].owner.connection_lost(ConnectionRefusedError(111, "Connection refused"))
    assert answer(backend) == Answer(StreamError.BACKEND_UNREACHABLE, BACKEND_FAILED_MESSAGE)
    (refusal,) = of_type(backend.emitted, service_port_pb2.FlowRefusedReported)
    assert (refusal.code, refusal.message) == ("backend_unreachable", "Connection refused")


def test_silent_backend_is_given_up_in_time(backend: Backend) -> None:
    backend.tell(received(4, header()))
    backend.advance(DEFAULT_CONNECT_TIMEOUT_S)
    assert answer(backend).code is StreamError.BACKEND_UNREACHABLE
    assert backend.io.tcp_attempts[0].is_cancelled


def test_reset_by_the_backend_aborts_the_stream_both_ways(backend: Backend) -> None:
    _, owner = opened(backend)
    owner.connection_lost(ConnectionResetError())
    (abort,) = of_type(backend.take_emitted(), quic_session_pb2.AbortStream)
    assert (abort.reset, abort.stop, abort.code) == (True, True, StreamError.BACKEND_RESET)


def test_agent_that_leaves_while_the_backend_connects_cancels_it(backend: Backend) -> None:
    backend.tell(
        received(4, header()),
        quic_session_pb2.StreamAborted(
            session_id=SESSION, stream_id=4, code=StreamError.CLIENT_RESET, is_reset=True
        ),
    )
    assert backend.io.tcp_attempts[0].is_cancelled


def test_agent_that_shows_no_header_is_given_up(backend: Backend) -> None:
    backend.tell(received(4, b"\0"))
    backend.advance(20)
    (abort,) = of_type(backend.take_emitted(), quic_session_pb2.AbortStream)
    assert (abort.reset, abort.stop) == (True, True)


def test_bytes_behind_the_end_of_a_stream_open_no_second_one(backend: Backend) -> None:
    _, owner = opened(backend)
    owner.connection_lost(ConnectionResetError())
    backend.take_emitted()
    backend.tell(received(4, header()))
    assert not backend.take_emitted()
    assert len(backend.io.tcp_attempts) == 1


# Credit


def test_stream_that_was_overtaken_by_a_later_one_is_opened_too(backend: Backend) -> None:
    for stream_id in (12, 4, 8, 4):
        backend.tell(received(stream_id, header()))
    assert len(backend.io.tcp_attempts) == 3


def test_stream_that_was_reset_before_its_first_bytes_is_not_opened(backend: Backend) -> None:
    backend.tell(
        received(8, header()),
        quic_session_pb2.StreamAborted(session_id=SESSION, stream_id=4, code=1, is_reset=True),
        received(4, header()),
    )
    assert len(backend.io.tcp_attempts) == 1


def test_streams_that_are_reset_unseen_do_not_add_up(backend: Backend) -> None:
    last = 4 * (2 * MAX_UNSEEN_STREAMS)
    backend.tell(
        *(
            quic_session_pb2.StreamAborted(session_id=SESSION, stream_id=stream_id, code=4, is_reset=True)
            for stream_id in range(4, last, 4)
        ),
        received(last, header()),
    )
    assert len(backend.io.tcp_attempts) == 1
    assert not of_type(backend.emitted, quic_session_pb2.CloseQuicSession)


def test_reset_of_a_stream_far_ahead_ends_the_session(backend: Backend) -> None:
    ahead = 4 * (MAX_UNSEEN_STREAMS + 2)
    backend.tell(quic_session_pb2.StreamAborted(session_id=SESSION, stream_id=ahead, code=4, is_reset=True))
    (closed,) = of_type(backend.emitted, quic_session_pb2.CloseQuicSession)
    assert closed.reason == "too_many_streams_skipped"


def test_agent_that_leaves_out_too_many_streams_loses_its_session(backend: Backend) -> None:
    backend.tell(received(4 * (MAX_UNSEEN_STREAMS + 1), header()))
    assert len(backend.io.tcp_attempts) == 1
    backend.tell(received(4 * (MAX_UNSEEN_STREAMS + 3), header()))
    (closed,) = of_type(backend.emitted, quic_session_pb2.CloseQuicSession)
    assert closed.reason == "too_many_streams_skipped"


def test_backend_that_does_not_read_gives_the_agent_no_credit(backend: Backend) -> None:
    stream, owner = opened(backend)
    backend.advance(1)
    backend.take_emitted()
    for _ in range(4):
        backend.tell(received(4, bytes(CONSUMED_STEP_BYTES)))
    backend.advance(10)
    assert not of_type(backend.take_emitted(), quic_session_pb2.PayloadConsumed)
    owner.bytes_written(len(stream.written))
    (consumed,) = of_type(backend.take_emitted(), quic_session_pb2.PayloadConsumed)
    assert consumed.size_bytes == 4 * CONSUMED_STEP_BYTES


def test_backend_is_read_no_further_than_its_credit(backend: Backend) -> None:
    stream, owner = opened(backend)
    while stream.is_reading:
        owner.data_received(bytes(65_536))
    assert len(sent(backend, 4)) <= MAX_IN_FLIGHT_BYTES
    backend.tell(
        quic_session_pb2.PayloadAcknowledged(session_id=SESSION, stream_id=4, size_bytes=MAX_IN_FLIGHT_BYTES)
    )
    assert stream.is_reading


def test_early_bytes_beyond_the_bound_end_the_stream(backend: Backend) -> None:
    backend.tell(received(4, header() + bytes(MAX_EARLY_BYTES + 1)))
    assert backend.io.tcp_attempts == [] or backend.io.tcp_attempts[0].is_cancelled
    (abort,) = of_type(backend.take_emitted(), quic_session_pb2.AbortStream)
    assert abort.code == StreamError.INVALID


# UDP


def test_agent_that_does_not_read_its_control_stream_loses_its_session(backend: Backend) -> None:
    backend.tell(HELLO)
    session = backend.concern._sessions[SESSION]
    backend.tell(
        acknowledged_control := quic_session_pb2.PayloadAcknowledged(
            session_id=SESSION, size_bytes=session.control_backlog_bytes
        )
    )
    assert acknowledged_control.size_bytes > 0
    assert session.control_backlog_bytes == 0
    session.control_backlog_bytes = MAX_CONTROL_BACKLOG_BYTES - 1
    backend.take_emitted()
    backend.tell(open_flow(1))
    (closed,) = of_type(backend.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert closed.reason == "control_stream_unread"
    backend.tell(open_flow(2))
    assert not of_type(backend.take_emitted(), quic_session_pb2.SendPayload)


def test_flow_gets_a_socket_of_its_own_and_what_came_early(backend: Backend) -> None:
    backend.tell(HELLO, frames(1, b"early"))
    backend.tell(open_flow())
    (opened_socket,) = backend.io.udp_sockets
    assert opened_socket.local_address.host == "127.0.0.1"
    assert opened_socket.sent == [(b"early", UDP_BACKEND, "")]
    assert [frame.WhichOneof("body") for frame in control_frames(backend)] == ["hello", "flow_accepted"]
    (story,) = of_type(backend.emitted, service_port_pb2.FlowOpened)
    assert (story.service, story.protocol, story.peer_id) == (
        "dns",
        types_pb2.SERVICE_PROTOCOL_UDP,
        AGENT_ID,
    )


def test_answers_go_to_the_flow_of_the_socket_alone(backend: Backend) -> None:
    first = flow_socket(backend)
    backend.tell(open_flow(2))
    second = backend.io.udp_sockets[-1]
    backend.take_emitted()
    arrive(second, UDP_BACKEND, b"for 2")
    arrive(first, UDP_BACKEND, b"for 1", b"also for 1")
    sent_frames = of_type(backend.take_emitted(), quic_session_pb2.SendDatagramPayloads)
    got = [
        [(parse(each).flow_id, parse(each).payload) for each in message.payloads] for message in sent_frames
    ]
    assert got == [[(2, b"for 2")], [(1, b"for 1"), (1, b"also for 1")]]


@pytest.mark.parametrize("source", [STRANGER, TransportAddress(UDP_BACKEND.host, 54)], ids=["host", "port"])
def test_stray_source_is_dropped_and_counted(backend: Backend, source: TransportAddress) -> None:
    socket = flow_socket(backend)
    backend.take_emitted()
    arrive(socket, source, b"spoofed", b"twice")
    assert not backend.take_emitted()
    backend.advance(1)
    figures = of_type(backend.take_emitted(), service_port_pb2.ServiceStatistics)
    assert [(each.service, dict(each.dropped)) for each in figures] == [("dns", {"stray_source": 2})]


def test_remote_backend_by_name_gets_a_wildcard_socket_of_its_family() -> None:
    backend = start(udp_backend(host="dns.internal"))
    backend.io.names["dns.internal"] = ["2001:db8::53", "192.0.2.53"]
    socket = flow_socket(backend)
    assert socket.local_address.host == "::"
    backend.tell(frames(1, b"query"))
    assert socket.sent == [(b"query", TransportAddress("2001:db8::53", 53), "")]


def test_unknown_backend_name_refuses_the_flow() -> None:
    backend = start(udp_backend(host="nowhere.internal"))
    backend.tell(HELLO, open_flow())
    refused = control_frames(backend)[-1].flow_refused
    assert refused.code == session_pb2.REFUSAL_CODE_BACKEND_UNREACHABLE
    assert refused.message == BACKEND_FAILED_MESSAGE
    (reported,) = of_type(backend.emitted, service_port_pb2.FlowRefusedReported)
    assert "nowhere.internal" in reported.message


def test_idle_flow_closes_its_socket_and_tells_the_agent(backend: Backend) -> None:
    socket = flow_socket(backend)
    backend.take_emitted()
    backend.advance(FLOW_IDLE_S + 0.1)
    assert socket.is_closed
    (frame,) = control_frames(backend)
    assert (frame.close_flow.flow_id, frame.close_flow.reason) == (1, "idle")
    (story,) = of_type(backend.take_emitted(), service_port_pb2.FlowClosed)
    assert story.reason == "idle"


def test_flow_that_the_agent_closes_closes_its_socket(backend: Backend) -> None:
    socket = flow_socket(backend)
    backend.tell(control(close_flow=session_pb2.CloseFlow(flow_id=1, reason="idle")))
    assert socket.is_closed


@pytest.mark.parametrize(
    ("service", "grant", "code"),
    [
        ("dns", {"agent_id": "mallory"}, session_pb2.REFUSAL_CODE_ACCESS_DENIED),
        ("web", {}, session_pb2.REFUSAL_CODE_UNKNOWN_SERVICE),
    ],
)
def test_flow_that_is_not_granted_is_refused_and_opens_no_socket(
    backend: Backend, service: str, grant: dict[str, Any], code: session_pb2.RefusalCode.ValueType
) -> None:
    backend.tell(HELLO, open_flow(service=service, grant=make_grant(service, **grant)), frames(1, b"query"))
    refused = control_frames(backend)[-1].flow_refused
    assert (refused.flow_id, refused.code) == (1, code)
    assert not backend.io.udp_sockets


def test_limit_of_flows_holds_across_sessions_of_one_agent() -> None:
    backend = start(flows_per_agent=1)
    flow_socket(backend)
    backend.tell(established(agent_identity(), OTHER_SESSION))
    grant = make_grant("dns", session_id=OTHER_SESSION)
    for message in (HELLO, open_flow(grant=grant)):
        backend.tell(received(0, message.data, session_id=OTHER_SESSION))
    assert len(backend.io.udp_sockets) == 1
    (refusal,) = of_type(backend.emitted, service_port_pb2.FlowRefusedReported)
    assert refusal.message == "limits.flows_per_agent (1) is reached"


# Sessions


def test_end_of_a_session_closes_its_backends_and_no_others(backend: Backend) -> None:
    stream, _ = opened(backend)
    socket = flow_socket(backend)
    backend.tell(established(agent_identity(), OTHER_SESSION))
    grant = make_grant("web", session_id=OTHER_SESSION)
    backend.tell(received(4, header(grant=grant), session_id=OTHER_SESSION))
    survivor = accept(backend.io.tcp_attempts[-1])
    backend.take_emitted()
    backend.tell(quic_session_pb2.SessionClosed(session_id=SESSION, reason="closed"))
    assert [stream.is_aborted, socket.is_closed, survivor.is_aborted] == [True, True, False]
    emitted = backend.take_emitted()
    assert {type(message) for message in emitted} == {service_port_pb2.FlowClosed}


def test_bytes_of_an_unknown_session_close_it(backend: Backend) -> None:
    backend.tell(received(4, header(), session_id=OTHER_SESSION))
    (close,) = backend.take_emitted()
    assert isinstance(close, quic_session_pb2.CloseQuicSession)
    assert close.session_id == OTHER_SESSION


def test_flow_numbers_out_of_order_close_the_session(backend: Backend) -> None:
    backend.tell(HELLO, open_flow(2), open_flow(1))
    (close,) = of_type(backend.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert close.reason == "flow_id_out_of_order"


def test_connector_answers_the_first_control_bytes_with_its_hello(backend: Backend) -> None:
    assert not control_frames(backend)
    backend.tell(HELLO, HELLO)
    (frame,) = control_frames(backend)
    assert frame.WhichOneof("body") == "hello"


def test_stopping_resets_backends_and_tells_the_agent(backend: Backend) -> None:
    stream, _ = opened(backend)
    socket = flow_socket(backend)
    backend.take_emitted()
    backend.stop()
    assert stream.is_aborted
    assert socket.is_closed
    (frame,) = control_frames(backend)
    assert frame.WhichOneof("body") == "draining"


def test_peer_that_is_no_agent_of_the_grant_gets_nothing(backend: Backend) -> None:
    other = agent_identity("desktop")
    backend.tell(established(other, OTHER_SESSION))
    stolen = make_grant("web", session_id=OTHER_SESSION)
    backend.tell(received(4, header(grant=stolen), session_id=OTHER_SESSION))
    assert answer(backend).message.startswith("wrong_agent")


# The direct path

OFFERED = signaling_pb2.IceSignal(
    candidate_offer=signaling_pb2.CandidateOffer(session_id=SESSION, generation=2, ufrag="u", pwd="p")
)
GREETING = control(hello=session_pb2.SessionHello(protocol_version=1))


def ice_signal(signal: signaling_pb2.IceSignal = OFFERED) -> quic_session_pb2.PayloadReceived:
    return control(ice_signal=signal)


def test_signal_of_the_search_leaves_on_the_control_stream_of_its_session(backend: Backend) -> None:
    backend.tell(GREETING)
    backend.take_emitted()
    foreign = signaling_pb2.IceSignal(restart_requested=signaling_pb2.RestartRequested(session_id=b"x"))
    backend.tell(service_port_pb2.SendInSessionSignal(session_id=SESSION, signal=foreign))
    (frame,) = control_frames(backend)
    assert frame.ice_signal.restart_requested.session_id == SESSION
    backend.take_emitted()
    backend.tell(service_port_pb2.SendInSessionSignal(session_id=b"?" * 16, signal=foreign))
    assert not backend.take_emitted()


@pytest.mark.parametrize("named", [SESSION, b""], ids=["named", "not named"])
def test_signal_of_the_peer_is_told_to_the_search_of_this_session(backend: Backend, named: bytes) -> None:
    signal = signaling_pb2.IceSignal()
    signal.CopyFrom(OFFERED)
    signal.candidate_offer.session_id = named
    backend.tell(GREETING, ice_signal(signal))
    (heard,) = of_type(backend.take_emitted(), signaling_client_pb2.IceSignalReceived)
    assert (heard.session_id, heard.intermediate_id, heard.signal) == (SESSION, "", OFFERED)


def test_signal_about_another_session_closes_this_one(backend: Backend) -> None:
    signal = signaling_pb2.IceSignal(restart_requested=signaling_pb2.RestartRequested(session_id=b"x" * 16))
    backend.tell(GREETING, ice_signal(signal))
    emitted = backend.take_emitted()
    assert not of_type(emitted, signaling_client_pb2.IceSignalReceived)
    (close,) = of_type(emitted, quic_session_pb2.CloseQuicSession)
    assert close.reason == "foreign_session"


def test_flood_of_signals_closes_the_session(backend: Backend) -> None:
    backend.tell(GREETING, *[ice_signal()] * int(ICE_SIGNALS_BURST))
    assert not of_type(backend.take_emitted(), quic_session_pb2.CloseQuicSession)
    backend.tell(ice_signal())
    (close,) = of_type(backend.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert close.reason == "too_many_signals"


def test_signal_waits_for_the_agent_to_open_the_control_stream(backend: Backend) -> None:
    command = service_port_pb2.SendInSessionSignal(session_id=SESSION, signal=OFFERED)
    backend.tell(*[command] * (MAX_EARLY_SIGNALS + 10))
    assert not of_type(backend.emitted, quic_session_pb2.SendPayload)
    backend.tell(GREETING)
    hello, *signals = control_frames(backend)
    assert hello.HasField("hello")
    assert [each.ice_signal for each in signals] == [OFFERED] * MAX_EARLY_SIGNALS
