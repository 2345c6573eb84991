from __future__ import annotations

import errno
from typing import NoReturn

import pytest

from actors import service_wire
from actors.client_pump import ANSWER_GRACE_S
from actors.io import MAX_READ_BYTES, DatagramBatch, Shortage, TcpOwner
from actors.local_service import MAX_WAIT_S, MAX_WAITING_DATAGRAMS
from actors.service_port import ServicePort
from actors.service_session import ICE_SIGNALS_BURST, MAX_SESSION_IN_FLIGHT_BYTES, SHARED_BYTES
from actors.tcp_pump import CONSUMED_DELAY_S, CONSUMED_STEP_BYTES
from tests.actors.service_world import (
    CLIENT,
    CONNECTOR_ID,
    MAX_DATAGRAM_PAYLOAD_BYTES,
    SESSION,
    connector_identity,
    established,
    make_grant,
    of_type,
    tcp_service,
    udp_service,
)
from tests.manual_io import START_WALL_TIME, ActorHarness, ManualIo, RecordedTcpStream, actor_harness
from ztna.address import TransportAddress
from ztna.quic.connection import MAX_SEND_BACKLOG_BYTES
from ztna.quic.windows import MAX_STREAMS
from ztna.service.flows import FLOW_IDLE_S
from ztna.service.fragments import Fragmenter, parse
from ztna.service.tcp_connection import MAX_IN_FLIGHT_BYTES, encode_prefixed
from ztna.service.tcp_effects import Answer, StreamError
from ztna.settings import AgentLimits, AgentService
from ztna.signaling.framing import FrameDecoder
from ztna.v1 import (
    quic_session_pb2,
    reload_pb2,
    service_port_pb2,
    session_pb2,
    session_table_pb2,
    signaling_client_pb2,
    signaling_pb2,
    types_pb2,
)

Port = ActorHarness[ServicePort]

ACCEPTED = encode_prefixed(service_wire.encode_answer(Answer(StreamError.NO_ERROR)))
REFUSED = encode_prefixed(
    service_wire.encode_answer(Answer(StreamError.ACCESS_DENIED, "expired: the grant expired"))
)
OTHER = TransportAddress("127.0.0.1", 50_002)
CHUNK = bytes(65_536)


@pytest.fixture
def port() -> Port:
    harness = start(tcp_service(), udp_service())
    harness.take_emitted()
    return harness


def start(*services: AgentService, limits: AgentLimits | None = None) -> Port:
    return actor_harness(ServicePort, lambda: services, limits or AgentLimits())


def establish(port: Port, session_id: bytes = SESSION) -> None:
    port.tell(established(connector_identity(), session_id))


def ready(service: str, session_id: bytes = SESSION) -> session_table_pb2.ServiceReady:
    return session_table_pb2.ServiceReady(
        service=service, session_id=session_id, connector_id=CONNECTOR_ID, grant=make_grant(service)
    )


def connect(port: Port, client: TransportAddress = CLIENT) -> tuple[RecordedTcpStream, TcpOwner]:
    return port.io.tcp_listeners[0].connect(client)


def opened(port: Port) -> tuple[RecordedTcpStream, TcpOwner]:
    """A client whose stream 4 the connector accepted."""
    establish(port)
    stream, owner = connect(port)
    port.tell(ready("web"), received(4, ACCEPTED))
    port.take_emitted()
    return stream, owner


def received(stream_id: int, data: bytes, *, end: bool = False) -> quic_session_pb2.PayloadReceived:
    return quic_session_pb2.PayloadReceived(
        session_id=SESSION, stream_id=stream_id, data=data, end_of_stream=end
    )


def acknowledged(stream_id: int, size_bytes: int) -> quic_session_pb2.PayloadAcknowledged:
    return quic_session_pb2.PayloadAcknowledged(
        session_id=SESSION, stream_id=stream_id, size_bytes=size_bytes
    )


def aborted(stream_id: int, code: StreamError, *, is_reset: bool) -> quic_session_pb2.StreamAborted:
    return quic_session_pb2.StreamAborted(
        session_id=SESSION, stream_id=stream_id, code=code, is_reset=is_reset
    )


def closed() -> quic_session_pb2.SessionClosed:
    return quic_session_pb2.SessionClosed(session_id=SESSION, reason="idle_timeout")


def control(**body: object) -> quic_session_pb2.PayloadReceived:
    return received(0, service_wire.encode_control(session_pb2.ControlFrame(**body)))  # type: ignore[arg-type]


def sent(port: Port, stream_id: int) -> bytes:
    return b"".join(
        each.data
        for each in of_type(port.emitted, quic_session_pb2.SendPayload)
        if each.stream_id == stream_id
    )


def control_frames(port: Port) -> list[session_pb2.ControlFrame]:
    decoder = FrameDecoder()
    return [session_pb2.ControlFrame.FromString(body) for body in decoder.feed(sent(port, 0))]


def datagrams(port: Port, *payloads: bytes, source: TransportAddress = CLIENT) -> None:
    port.io.udp_sockets[0].owner.datagrams_received(
        [DatagramBatch(source, "127.0.0.1", list(payloads))], port.io.time()
    )


def flow_frames(port: Port) -> list[tuple[int, bytes]]:
    return [
        (fragment.flow_id, fragment.payload)
        for message in of_type(port.emitted, quic_session_pb2.SendDatagramPayloads)
        for fragment in map(parse, message.payloads)
    ]


def open_flow(port: Port) -> None:
    establish(port)
    datagrams(port, b"query")
    port.tell(
        ready("dns"),
        control(hello=session_pb2.SessionHello(protocol_version=1)),
        control(flow_accepted=session_pb2.FlowAccepted(flow_id=1)),
    )


# Listeners


def test_every_service_is_listened_for_and_reported() -> None:
    port = start(tcp_service(port=0), udp_service())
    changes = of_type(port.take_emitted(), service_port_pb2.ListenerChanged)
    assert [(each.service, each.is_listening, each.address.port) for each in changes] == [
        ("web", True, port.io.tcp_listeners[0].local_address.port),
        ("dns", True, 5353),
    ]


class _TakenPorts(ManualIo):
    def listen_tcp(self, local: object, accept: object) -> NoReturn:
        raise OSError(errno.EADDRINUSE, "Address already in use")


def test_taken_address_ends_the_start_and_names_service_and_address() -> None:
    port = actor_harness(ServicePort, lambda: [tcp_service()], AgentLimits(), io=_TakenPorts())
    assert not port.is_alive
    assert isinstance(port.failure, OSError)
    assert "service web: cannot listen on tcp 127.0.0.1:8080: Address already in use" in str(port.failure)
    (change,) = of_type(port.emitted, service_port_pb2.ListenerChanged)
    assert (change.is_listening, change.error) == (False, "Address already in use")


# Waiting for a session


def test_client_waits_unread_while_its_service_is_requested_once(port: Port) -> None:
    first, _ = connect(port)
    second, _ = connect(port, OTHER)
    assert port.take_emitted() == [session_table_pb2.RequestService(service="web")]
    assert not first.is_reading
    assert not second.is_reading


def test_ready_service_opens_a_stream_per_client_in_order(port: Port) -> None:
    establish(port)
    clients = [connect(port)[0], connect(port, OTHER)[0]]
    port.tell(ready("web"))
    header = session_pb2.StreamHeader(service="web", grant=make_grant("web"))
    for stream_id in (4, 8):
        shown = session_pb2.StreamHeader.FromString(sent(port, stream_id)[2:])
        assert (shown.service, shown.grant.claims) == ("web", header.grant.claims)
    assert all(client.is_reading for client in clients)


def test_early_bytes_follow_the_header_before_the_answer(port: Port) -> None:
    establish(port)
    _, owner = connect(port)
    port.tell(ready("web"))
    port.take_emitted()
    owner.data_received(b"GET /")
    assert sent(port, 4) == b"GET /"


def test_unavailable_service_resets_who_waits_and_logs_it_once(port: Port) -> None:
    clients = [connect(port, TransportAddress("127.0.0.1", 1000 + index))[0] for index in range(10)]
    for _ in range(2):
        port.tell(
            session_table_pb2.ServiceUnavailable(service="web", code="no_connector", message="none attached")
        )
        clients.append(connect(port)[0])
    assert [client.is_aborted for client in clients] == [True] * 11 + [False]
    logged = [line for line in port.logs if line["event"] == "service_port.flow_refused"]
    assert [(line["code"], line["connections"]) for line in logged] == [("no_connector", 10)]
    port.advance(6)
    assert [line["count"] for line in port.logs if line["event"] == "service_port.flow_refused_repeated"] == [
        1
    ]
    (figures,) = [m for m in of_type(port.emitted, service_port_pb2.ServiceStatistics) if m.service == "web"]
    assert figures.refused == 11


def test_request_that_nobody_answers_ends_in_a_reset(port: Port) -> None:
    client, _ = connect(port)
    port.advance(MAX_WAIT_S + 1.1)
    assert client.is_aborted


def test_client_that_leaves_while_waiting_gets_no_stream(port: Port) -> None:
    establish(port)
    _, owner = connect(port)
    owner.connection_lost(ConnectionResetError())
    port.take_emitted()
    port.tell(ready("web"))
    assert not port.take_emitted()


def test_limit_of_connections_resets_the_next_client() -> None:
    port = start(tcp_service(), limits=AgentLimits(connections=1))
    first, owner = connect(port)
    second, _ = connect(port, OTHER)
    assert (first.is_aborted, second.is_aborted) == (False, True)
    owner.connection_lost(None)
    third, _ = connect(port)
    assert not third.is_aborted


@pytest.mark.parametrize("reason", ["file_descriptor_limit", "memory_limit"])
def test_shortage_resets_the_next_client_and_leaves_the_others(port: Port, reason: str) -> None:
    first, _ = connect(port)
    port.io.lacks = Shortage(reason, "62 of 64")
    second, _ = connect(port, OTHER)
    assert (first.is_aborted, second.is_aborted) == (False, True)
    assert port.io.shortages() == {reason: 1}
    line = port.recording.logs.entries[-1]
    assert (line["event"], line["code"], line["detail"]) == ("service_port.flow_refused", reason, "62 of 64")
    port.io.lacks = None
    third, _ = connect(port, OTHER)
    assert not third.is_aborted


# Running TCP connections


def test_half_close_passes_both_ways(port: Port) -> None:
    client, owner = opened(port)
    owner.eof_received()
    (end,) = of_type(port.take_emitted(), quic_session_pb2.SendPayload)
    assert end.end_of_stream
    port.tell(received(4, b"bye", end=True))
    assert bytes(client.written) == b"bye"
    assert client.eof_written
    owner.bytes_written(3)
    (story,) = of_type(port.take_emitted(), service_port_pb2.FlowClosed)
    assert (story.reason, story.bytes_to_service, story.bytes_from_service) == ("closed", 0, 3)
    assert not client.is_aborted


def test_refusal_resets_the_client_and_says_why(port: Port) -> None:
    establish(port)
    client, _ = connect(port)
    port.tell(ready("web"))
    port.take_emitted()
    # As QUIC delivers it: STOP_SENDING before the answer.
    port.tell(aborted(4, StreamError.ACCESS_DENIED, is_reset=False), received(4, REFUSED, end=True))
    assert client.is_aborted
    (refusal,) = of_type(port.take_emitted(), service_port_pb2.FlowRefusedReported)
    assert (refusal.code, refusal.message) == ("access_denied", "expired: the grant expired")
    (line,) = [line for line in port.logs if line["event"] == "service_port.flow_refused"]
    assert (line["code"], line["detail"], line["peer"]) == ("access_denied", refusal.message, CONNECTOR_ID)


@pytest.mark.parametrize(("code", "is_told"), [(StreamError.GRANT_REFUSED, True), (StreamError.LIMIT, False)])
def test_refused_grant_is_told_to_the_session_table_with_what_was_shown(
    port: Port, code: StreamError, is_told: bool
) -> None:
    establish(port)
    connect(port)
    offered = ready("web")
    port.tell(offered)
    port.take_emitted()
    refusal = encode_prefixed(service_wire.encode_answer(Answer(code, "expired: the grant expired")))
    port.tell(received(4, refusal, end=True))
    expected = service_port_pb2.GrantRefused(
        session_id=SESSION, service="web", grant=offered.grant, message="expired: the grant expired"
    )
    assert of_type(port.take_emitted(), service_port_pb2.GrantRefused) == [expected] * is_told


def test_flow_whose_grant_was_refused_is_opened_with_the_next_one_at_once(port: Port) -> None:
    establish(port)
    datagrams(port, b"query")
    offered = ready("dns")
    refused = session_pb2.FlowRefused(
        flow_id=1, code=session_pb2.REFUSAL_CODE_GRANT_REFUSED, message="expired"
    )
    port.tell(offered, control(hello=session_pb2.SessionHello(protocol_version=1)))
    port.take_emitted()
    port.tell(control(flow_refused=refused))
    assert of_type(port.take_emitted(), service_port_pb2.GrantRefused) == [
        service_port_pb2.GrantRefused(
            session_id=SESSION, service="dns", grant=offered.grant, message="expired"
        )
    ]
    datagrams(port, b"query")
    renewed = ready("dns")
    renewed.grant.CopyFrom(make_grant("dns", issued_at=int(START_WALL_TIME) + 1))
    port.tell(renewed)
    (frame,) = control_frames(port)
    assert (frame.open_flow.flow_id, frame.open_flow.grant) == (2, renewed.grant)


def test_stop_without_an_answer_resets_the_client_a_little_later(port: Port) -> None:
    establish(port)
    client, _ = connect(port)
    port.tell(ready("web"), aborted(4, StreamError.LIMIT, is_reset=False))
    outcomes = [client.is_aborted]
    port.advance(ANSWER_GRACE_S)
    outcomes.append(client.is_aborted)
    assert outcomes == [False, True]
    (refusal,) = of_type(port.emitted, service_port_pb2.FlowRefusedReported)
    assert refusal.code == "limit"


def test_reset_by_the_connector_resets_the_client(port: Port) -> None:
    client, _ = opened(port)
    port.tell(aborted(4, StreamError.BACKEND_RESET, is_reset=True))
    assert client.is_aborted
    (story,) = of_type(port.take_emitted(), service_port_pb2.FlowClosed)
    assert story.reason == "peer_reset"


def test_reset_of_the_client_aborts_both_directions_in_one_message(port: Port) -> None:
    _, owner = opened(port)
    owner.connection_lost(ConnectionResetError())
    (abort,) = of_type(port.take_emitted(), quic_session_pb2.AbortStream)
    assert (abort.stream_id, abort.reset, abort.stop) == (4, True, True)
    assert abort.code == StreamError.CLIENT_RESET


def test_end_of_the_session_resets_its_clients_without_a_word_to_it(port: Port) -> None:
    client, _ = opened(port)
    waiting, _ = connect(port, OTHER)
    port.take_emitted()
    port.tell(closed())
    assert [client.is_aborted, waiting.is_aborted] == [True, False]
    emitted = port.take_emitted()
    assert session_table_pb2.RequestService(service="web") in emitted
    assert not of_type(emitted, quic_session_pb2.AbortStream)
    assert not of_type(emitted, quic_session_pb2.SendPayload)


def test_stream_beyond_the_peers_limit_is_reset_and_its_number_used_again(port: Port) -> None:
    establish(port)
    first, second = connect(port)[0], connect(port, OTHER)[0]
    port.tell(ready("web"), aborted(4, StreamError.LIMIT, is_reset=True))
    assert first.is_aborted
    assert second.is_aborted
    connect(port)
    port.take_emitted()
    port.tell(ready("web"))
    (header,) = of_type(port.take_emitted(), quic_session_pb2.SendPayload)
    assert header.stream_id == 4


# Credit


def test_client_is_read_no_further_than_its_credit(port: Port) -> None:
    client, owner = opened(port)
    port.tell(acknowledged(4, 1 << 20))
    while client.is_reading:
        owner.data_received(CHUNK)
    assert len(sent(port, 4)) == MAX_IN_FLIGHT_BYTES
    port.tell(acknowledged(4, MAX_IN_FLIGHT_BYTES))
    assert client.is_reading


def test_clients_of_a_full_session_are_held_to_their_share_and_idle_ones_read_on(port: Port) -> None:
    establish(port)
    count = 100
    clients = [connect(port, TransportAddress("127.0.0.1", 1000 + index)) for index in range(count)]
    port.tell(ready("web"), *(received(4 + 4 * index, ACCEPTED) for index in range(count)))
    *stalled, (idle, idle_owner) = clients
    for stream, owner in stalled:
        while stream.is_reading:
            owner.data_received(CHUNK)
    session = port.concern._sessions[SESSION]
    is_full = [session.is_full]
    assert session._in_flight <= MAX_SESSION_IN_FLIGHT_BYTES + SHARED_BYTES
    chunks = 0
    while idle.is_reading:
        idle_owner.data_received(CHUNK)
        chunks += 1
    assert chunks == SHARED_BYTES // count // len(CHUNK)
    port.tell(acknowledged(4 + 4 * (count - 1), len(CHUNK)))
    is_reading = [stream.is_reading for stream, _ in clients]
    assert is_reading == [False] * (count - 1) + [True]
    for index in range(count - 1):
        port.tell(acknowledged(4 + 4 * index, 1 << 20))
    is_full.append(session.is_full)
    assert is_full == [True, False]
    assert all(stream.is_reading for stream, _ in clients)


def test_full_session_of_as_many_streams_as_there_may_be_stays_within_its_bound() -> None:
    assert MAX_SESSION_IN_FLIGHT_BYTES + SHARED_BYTES + MAX_READ_BYTES < MAX_SEND_BACKLOG_BYTES
    assert MAX_STREAMS * MAX_READ_BYTES <= SHARED_BYTES


def test_bytes_count_as_consumed_only_when_the_kernel_took_them(port: Port) -> None:
    client, owner = opened(port)
    port.advance(CONSUMED_DELAY_S)
    port.take_emitted()
    for _ in range(4):
        port.tell(received(4, bytes(CONSUMED_STEP_BYTES)))
    assert len(client.written) == 4 * CONSUMED_STEP_BYTES
    port.advance(10)
    assert not of_type(port.take_emitted(), quic_session_pb2.PayloadConsumed)
    owner.bytes_written(2 * CONSUMED_STEP_BYTES)
    (consumed,) = of_type(port.take_emitted(), quic_session_pb2.PayloadConsumed)
    assert consumed.size_bytes == 2 * CONSUMED_STEP_BYTES


def test_small_credit_is_reported_once_and_a_little_later(port: Port) -> None:
    _, owner = opened(port)
    port.tell(received(4, bytes(300)))
    for _ in range(3):
        owner.bytes_written(100)
    assert not of_type(port.take_emitted(), quic_session_pb2.PayloadConsumed)
    port.advance(CONSUMED_DELAY_S)
    (consumed,) = of_type(port.take_emitted(), quic_session_pb2.PayloadConsumed)
    assert consumed.size_bytes == 300 + len(ACCEPTED)


# UDP


def test_datagrams_wait_for_a_session_and_then_follow_their_flow(port: Port) -> None:
    datagrams(port, b"1", b"2")
    assert port.take_emitted() == [session_table_pb2.RequestService(service="dns")]
    establish(port)
    port.take_emitted()
    port.tell(ready("dns"))
    (frame,) = control_frames(port)
    assert (frame.open_flow.flow_id, frame.open_flow.service) == (1, "dns")
    assert frame.open_flow.grant.claims
    assert flow_frames(port) == [(1, b"1"), (1, b"2")]


def test_batch_of_datagrams_leaves_as_one_message(port: Port) -> None:
    open_flow(port)
    port.take_emitted()
    datagrams(port, b"1", b"2", b"3" * 3000)
    (message,) = port.take_emitted()
    assert isinstance(message, quic_session_pb2.SendDatagramPayloads)
    assert max(map(len, message.payloads)) <= MAX_DATAGRAM_PAYLOAD_BYTES


def test_each_source_has_its_own_flow_and_hears_only_that(port: Port) -> None:
    open_flow(port)
    datagrams(port, b"other", source=OTHER)
    port.tell(ready("dns"))
    answers = [*Fragmenter(2).split(b"to other", 1170), *Fragmenter(1).split(b"to client", 1170)]
    port.tell(quic_session_pb2.DatagramPayloadsReceived(session_id=SESSION, payloads=answers))
    assert port.io.udp_sockets[0].sent == [
        (b"to other", OTHER, "127.0.0.1"),
        (b"to client", CLIENT, "127.0.0.1"),
    ]


def test_oldest_waiting_datagrams_make_room_and_are_counted(port: Port) -> None:
    datagrams(port, *(str(index).encode() for index in range(MAX_WAITING_DATAGRAMS + 3)))
    establish(port)
    port.tell(ready("dns"))
    assert flow_frames(port)[0] == (1, b"3")
    port.advance(1)
    (figures,) = of_type(port.emitted, service_port_pb2.ServiceStatistics)
    assert dict(figures.dropped) == {"too_many_waiting": 3}


def test_refused_flow_is_reported_and_asked_for_again_by_later_datagrams(port: Port) -> None:
    establish(port)
    datagrams(port, b"query")
    refused = session_pb2.FlowRefused(
        flow_id=1, code=session_pb2.REFUSAL_CODE_UNKNOWN_SERVICE, message="no such service"
    )
    port.tell(
        ready("dns"),
        control(hello=session_pb2.SessionHello(protocol_version=1)),
        control(flow_refused=refused),
    )
    (refusal,) = of_type(port.take_emitted(), service_port_pb2.FlowRefusedReported)
    assert (refusal.service, refusal.code, refusal.message) == ("dns", "unknown_service", "no such service")
    datagrams(port, b"query")
    assert session_table_pb2.RequestService(service="dns") in port.take_emitted()


def test_idle_flow_is_closed_and_told(port: Port) -> None:
    open_flow(port)
    port.take_emitted()
    port.advance(FLOW_IDLE_S + 0.1)
    (frame,) = control_frames(port)
    assert (frame.close_flow.flow_id, frame.close_flow.reason) == (1, "idle")
    (story,) = of_type(port.take_emitted(), service_port_pb2.FlowClosed)
    assert (story.reason, story.protocol) == ("idle", types_pb2.SERVICE_PROTOCOL_UDP)
    datagrams(port, b"again")
    assert port.take_emitted() == [session_table_pb2.RequestService(service="dns")]


def test_udp_clients_go_on_in_the_next_session(port: Port) -> None:
    open_flow(port)
    port.tell(closed())
    port.take_emitted()
    datagrams(port, b"again")
    assert port.take_emitted() == [session_table_pb2.RequestService(service="dns")]
    establish(port, b"\1" * 16)
    port.tell(ready("dns", b"\1" * 16))
    assert flow_frames(port) == [(1, b"again")]


def test_limit_of_flows_drops_datagrams_of_further_sources() -> None:
    port = start(udp_service(), limits=AgentLimits(flows=1))
    establish(port)
    for source in (CLIENT, OTHER):
        datagrams(port, b"query", source=source)
        port.tell(ready("dns"))
    assert flow_frames(port) == [(1, b"query")]
    port.advance(1)
    (figures,) = of_type(port.emitted, service_port_pb2.ServiceStatistics)
    assert dict(figures.dropped) == {"too_many_flows": 1}


def test_malformed_datagram_is_dropped_and_the_rest_delivered(port: Port) -> None:
    open_flow(port)
    frames = [b"\xff", *Fragmenter(1).split(b"answer", 1170)]
    port.tell(quic_session_pb2.DatagramPayloadsReceived(session_id=SESSION, payloads=frames))
    assert [data for data, _, _ in port.io.udp_sockets[0].sent] == [b"answer"]


# The control stream


def test_session_begins_with_a_hello(port: Port) -> None:
    establish(port)
    (frame,) = control_frames(port)
    assert frame.hello.protocol_version == 1
    assert frame.hello.software.startswith("ztna/")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (control(draining=session_pb2.SessionDraining()), "hello_expected"),
        (control(hello=session_pb2.SessionHello(protocol_version=2)), "unsupported_version"),
        (received(0, b"\0\0\0\0"), "frame_empty"),
        (received(0, b"\0\0\0\1\xff"), "malformed_frame"),
        (received(0, b"", end=True), "control_stream_ended"),
        (aborted(0, StreamError.INTERNAL, is_reset=True), "control_stream_aborted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_control_stream_closes_the_session(port: Port, message: object, reason: str) -> None:
    establish(port)
    port.tell(message)
    (close,) = of_type(port.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert (close.session_id, close.reason, close.code) == (SESSION, reason, StreamError.INVALID)


def test_answer_to_a_flow_never_asked_for_closes_the_session(port: Port) -> None:
    establish(port)
    port.tell(
        control(hello=session_pb2.SessionHello(protocol_version=1)),
        control(flow_accepted=session_pb2.FlowAccepted(flow_id=9)),
    )
    (close,) = of_type(port.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert close.reason == "flow_not_asked"


def test_session_of_a_draining_connector_is_closed_once_it_is_idle(port: Port) -> None:
    _, owner = opened(port)
    port.tell(
        control(hello=session_pb2.SessionHello(protocol_version=1)),
        control(draining=session_pb2.SessionDraining()),
    )
    assert not of_type(port.take_emitted(), session_table_pb2.CloseSessionRequested)
    owner.connection_lost(ConnectionResetError())
    (close,) = of_type(port.take_emitted(), session_table_pb2.CloseSessionRequested)
    assert (close.session_id, close.reason) == (SESSION, "peer_draining")


def test_renewed_grant_is_shown_on_the_control_stream(port: Port) -> None:
    establish(port)
    port.take_emitted()
    grant = make_grant("web", issued_at=int(START_WALL_TIME) + 300)
    renewed = session_table_pb2.GrantRenewed(session_id=SESSION, service="web", grant=grant)
    port.tell(renewed)
    (frame,) = control_frames(port)
    assert frame.renewed_grant.grant == grant
    port.take_emitted()
    port.tell(closed(), renewed)
    assert of_type(port.take_emitted(), quic_session_pb2.SendPayload) == []


def test_session_from_before_a_crash_is_closed_and_asked_for_again(port: Port) -> None:
    client, _ = connect(port)
    port.take_emitted()
    port.tell(ready("web"))
    (close,) = port.take_emitted()
    assert isinstance(close, quic_session_pb2.CloseQuicSession)
    assert not client.is_aborted
    port.tell(closed())
    assert port.take_emitted() == [session_table_pb2.RequestService(service="web")]


def test_stopping_closes_listeners_resets_clients_and_tells_the_peer(port: Port) -> None:
    client, _ = opened(port)
    waiting, _ = connect(port, OTHER)
    port.take_emitted()
    port.stop()
    assert port.io.tcp_listeners[0].is_closed
    assert port.io.udp_sockets[0].is_closed
    assert client.is_aborted
    assert waiting.is_aborted
    (frame,) = control_frames(port)
    assert frame.WhichOneof("body") == "draining"
    (abort,) = of_type(port.take_emitted(), quic_session_pb2.AbortStream)
    assert abort.code == StreamError.SHUTTING_DOWN


def test_figures_are_reported_once_a_second_while_they_change(port: Port) -> None:
    opened(port)
    port.advance(1)
    (figures,) = of_type(port.take_emitted(), service_port_pb2.ServiceStatistics)
    assert (figures.service, figures.active, figures.total) == ("web", 1, 1)
    port.advance(5)
    assert not of_type(port.take_emitted(), service_port_pb2.ServiceStatistics)


# The direct path

OFFERED = signaling_pb2.IceSignal(
    candidate_offer=signaling_pb2.CandidateOffer(session_id=SESSION, generation=2, ufrag="u", pwd="p")
)
GREETING = control(hello=session_pb2.SessionHello(protocol_version=1))


def ice_signal(signal: signaling_pb2.IceSignal = OFFERED) -> quic_session_pb2.PayloadReceived:
    return control(ice_signal=signal)


def test_signal_of_the_search_leaves_on_the_control_stream_of_its_session(port: Port) -> None:
    establish(port)
    port.tell(GREETING)
    port.take_emitted()
    foreign = signaling_pb2.IceSignal(restart_requested=signaling_pb2.RestartRequested(session_id=b"x"))
    port.tell(service_port_pb2.SendInSessionSignal(session_id=SESSION, signal=foreign))
    (frame,) = control_frames(port)
    assert frame.ice_signal.restart_requested.session_id == SESSION
    port.take_emitted()
    port.tell(service_port_pb2.SendInSessionSignal(session_id=b"?" * 16, signal=foreign))
    assert not port.take_emitted()


@pytest.mark.parametrize("named", [SESSION, b""], ids=["named", "not named"])
def test_signal_of_the_peer_is_told_to_the_search_of_this_session(port: Port, named: bytes) -> None:
    establish(port)
    signal = signaling_pb2.IceSignal()
    signal.CopyFrom(OFFERED)
    signal.candidate_offer.session_id = named
    port.tell(GREETING, ice_signal(signal))
    (heard,) = of_type(port.take_emitted(), signaling_client_pb2.IceSignalReceived)
    assert (heard.session_id, heard.intermediate_id, heard.signal) == (SESSION, "", OFFERED)


def test_signal_about_another_session_closes_this_one(port: Port) -> None:
    establish(port)
    signal = signaling_pb2.IceSignal(restart_requested=signaling_pb2.RestartRequested(session_id=b"x" * 16))
    port.tell(GREETING, ice_signal(signal))
    emitted = port.take_emitted()
    assert not of_type(emitted, signaling_client_pb2.IceSignalReceived)
    (close,) = of_type(emitted, quic_session_pb2.CloseQuicSession)
    assert close.reason == "foreign_session"


def test_flood_of_signals_closes_the_session(port: Port) -> None:
    establish(port)
    port.tell(GREETING, *[ice_signal()] * int(ICE_SIGNALS_BURST))
    assert not of_type(port.take_emitted(), quic_session_pb2.CloseQuicSession)
    port.tell(ice_signal())
    (close,) = of_type(port.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert close.reason == "too_many_signals"


def test_reload_has_the_peer_of_every_session_judged_again() -> None:
    port, other = start(tcp_service()), bytes(16)
    for session_id in (SESSION, other):
        establish(port, session_id)
    port.take_emitted()
    port.tell(reload_pb2.ConfigurationReloaded())
    judged = of_type(port.take_emitted(), quic_session_pb2.RecheckPeer)
    assert [each.session_id for each in judged] == [SESSION, other]
