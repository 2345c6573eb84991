"""Both ends of a session's UDP flows: each alone, then joined over a lossy, reordering session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.service.agent_flows import REFUSED_HOLD_S, AgentFlows
from ztna.service.connector_flows import (
    DEFAULT_OPENS_BURST,
    MAX_UNKNOWN_FLOWS,
    MAX_WAITING_BYTES,
    MAX_WAITING_DATAGRAMS,
    MAX_WAITING_S,
    ConnectorFlows,
)
from ztna.service.flows import (
    DEFAULT_FRAME_BYTES,
    FLOW_IDLE_S,
    MAX_FLOW_ID,
    MAX_FLOWS,
    AcceptFlow,
    CloseBackend,
    CloseFlow,
    CloseReason,
    DeliverDatagram,
    FlowClosed,
    FlowDrop,
    FlowEffect,
    FlowRequested,
    OpenBackend,
    OpenFlow,
    RefuseFlow,
    SendDatagrams,
    SendToBackend,
)
from ztna.service.fragments import MAX_PAYLOAD_BYTES, MAX_REASSEMBLY_S, Fragmenter, ReassemblyDrop
from ztna.service.tcp_effects import BACKEND_FAILED_MESSAGE, StreamError

APP = TransportAddress("127.0.0.1", 40_000)


def frames(flow_id: int, *payloads: bytes) -> list[bytes]:
    fragmenter = Fragmenter(flow_id)
    return [frame for payload in payloads for frame in fragmenter.split(payload, DEFAULT_FRAME_BYTES)]


def requested_flow(flow_id: int = 1, **limits: float) -> ConnectorFlows:
    connector = ConnectorFlows(0.0, **limits)  # type: ignore[arg-type]
    connector.handle_open(flow_id, "dns", 0.0)
    assert connector.drain() == [FlowRequested(flow_id, "dns")]
    return connector


def opening_flow() -> ConnectorFlows:
    connector = requested_flow()
    connector.accept(1)
    assert connector.drain() == [OpenBackend(1, "dns")]
    return connector


def open_flow() -> ConnectorFlows:
    connector = opening_flow()
    connector.handle_backend_opened(1, 0.0)
    assert connector.drain() == [AcceptFlow(1)]
    return connector


def agent_flow(service: str = "dns") -> AgentFlows:
    agent = AgentFlows()
    agent.handle_local_datagram(service, APP, b"ask", 0.0)
    assert agent.drain() == [OpenFlow(1, service), SendDatagrams(1, (b"\x01\x00\x00\x01ask",))]
    return agent


def closed(effects: list[FlowEffect]) -> list[FlowClosed]:
    return [effect for effect in effects if isinstance(effect, FlowClosed)]


# Agent.


def test_source_keeps_its_flow_and_gets_what_comes_back_on_it() -> None:
    agent = agent_flow()
    agent.handle_accepted(1)
    agent.handle_local_datagram("dns", APP, b"again", 1.0)
    for frame in frames(1, b"answer"):
        agent.handle_datagram(frame, 2.0)
    assert agent.drain() == [
        SendDatagrams(1, (b"\x01\x01\x00\x01again",)),
        DeliverDatagram("dns", APP, b"answer"),
    ]


def test_each_service_and_source_has_its_own_flow() -> None:
    agent = agent_flow()
    agent.handle_local_datagram("ntp", APP, b"x", 0.0)
    agent.handle_local_datagram("dns", TransportAddress("127.0.0.1", 40_001), b"x", 0.0)
    opened = [effect for effect in agent.drain() if isinstance(effect, OpenFlow)]
    assert opened == [OpenFlow(2, "ntp"), OpenFlow(3, "dns")]


def test_refused_service_is_left_alone_for_a_moment() -> None:
    agent = agent_flow()
    agent.handle_refused(1, StreamError.ACCESS_DENIED, "no", 1.0)
    assert agent.drain() == [
        FlowClosed(1, "dns", CloseReason.REFUSED, StreamError.ACCESS_DENIED, "no", 3, 0, 1.0)
    ]
    agent.handle_local_datagram("dns", APP, b"ask", 1.0 + REFUSED_HOLD_S - 0.1)
    assert agent.drain() == []
    assert agent.counts.drops == {FlowDrop.RECENTLY_REFUSED: 1}
    agent.handle_local_datagram("dns", APP, b"ask", 1.0 + REFUSED_HOLD_S)
    assert agent.drain()[0] == OpenFlow(2, "dns")


def test_agents_flow_limit_drops_and_counts() -> None:
    agent = AgentFlows()
    for port in range(MAX_FLOWS + 1):
        agent.handle_local_datagram("dns", TransportAddress("127.0.0.1", port), b"x", 0.0)
    assert len(agent) == MAX_FLOWS
    assert agent.counts.drops == {FlowDrop.TOO_MANY_FLOWS: 1}


def test_flow_numbers_are_never_reused_even_when_they_run_out() -> None:
    agent = AgentFlows()
    agent._next_flow_id = MAX_FLOW_ID
    agent.handle_local_datagram("dns", APP, b"x", 0.0)
    agent.handle_local_datagram("ntp", APP, b"x", 0.0)
    assert len(agent) == 1
    assert agent.counts.drops == {FlowDrop.FLOW_IDS_EXHAUSTED: 1}


def test_frame_of_a_closed_flow_reaches_nobody() -> None:
    agent = agent_flow()
    agent.handle_peer_close(1, 1.0)
    agent.handle_peer_close(1, 1.0)
    agent.handle_datagram(frames(1, b"late")[0], 1.0)
    agent.handle_accepted(1)
    assert [effect.reason for effect in closed(agent.drain())] == [CloseReason.CLOSED_BY_PEER]
    assert agent.counts.drops == {FlowDrop.UNKNOWN_FLOW: 1}


def _accepted() -> AgentFlows:
    agent = agent_flow()
    agent.handle_accepted(1)
    return agent


@pytest.mark.parametrize(
    ("violation", "reason"),
    [
        pytest.param(lambda: agent_flow().handle_accepted(0), "flow_not_asked", id="flow zero"),
        pytest.param(lambda: agent_flow().handle_accepted(2), "flow_not_asked", id="flow of the future"),
        pytest.param(lambda: _accepted().handle_accepted(1), "flow_answered_twice", id="accepted twice"),
        pytest.param(
            lambda: _accepted().handle_refused(1, StreamError.LIMIT, "", 0.0),
            "flow_answered_twice",
            id="accepted and refused",
        ),
        pytest.param(lambda: agent_flow().handle_datagram(b"", 0.0), "varint_truncated", id="no frame"),
        pytest.param(
            lambda: open_flow().handle_datagram(b"\x01", 0.0), "varint_truncated", id="half a frame"
        ),
        pytest.param(
            lambda: open_flow().handle_open(1, "x", 0.0), "flow_id_out_of_order", id="number reused"
        ),
        pytest.param(
            lambda: ConnectorFlows(0.0).handle_open(0, "x", 0.0), "flow_id_out_of_order", id="number zero"
        ),
        pytest.param(
            lambda: ConnectorFlows(0.0).handle_open(MAX_FLOW_ID + 1, "x", 0.0),
            "flow_id_out_of_order",
            id="number of 33 bits",
        ),
    ],
)
def test_violation_is_the_peers_fault(violation: Callable[[], None], reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        violation()
    assert caught.value.reason == reason


# Connector.


def test_datagrams_wait_for_decision_and_socket_and_then_pass_in_order() -> None:
    connector = requested_flow()
    first, second, third = frames(1, b"1", b"2", b"3")
    connector.handle_datagram(first, 0.0)
    connector.accept(1)
    connector.handle_datagram(second, 0.5)
    assert connector.drain() == [OpenBackend(1, "dns")]
    connector.handle_backend_opened(1, 0.5)
    connector.handle_datagram(third, 0.5)
    assert connector.drain() == [
        AcceptFlow(1), SendToBackend(1, b"1"), SendToBackend(1, b"2"), SendToBackend(1, b"3"),
    ]  # fmt: skip
    assert connector.waiting_bytes == 0


def test_datagram_that_overtook_the_open_waits_for_it() -> None:
    connector = ConnectorFlows(0.0)
    large = bytes(5000)
    *early, last = frames(7, large)
    for frame in early:
        connector.handle_datagram(frame, 0.0)
    connector.handle_open(7, "dns", 0.5)
    connector.handle_datagram(last, 0.5)
    connector.accept(7)
    connector.handle_backend_opened(7, 0.5)
    assert connector.drain()[-1] == SendToBackend(7, large)


def test_open_that_never_comes_frees_what_waited() -> None:
    connector = ConnectorFlows(0.0)
    for frame in frames(1, b"1", b"2"):
        connector.handle_datagram(frame, 5.0)
    assert connector.next_deadline() == 5.0 + MAX_WAITING_S
    assert connector.waiting_bytes == 2
    connector.handle_timeout(5.0 + MAX_WAITING_S)
    assert connector.next_deadline() is None
    assert connector.waiting_bytes == 0
    assert connector.counts.drops == {FlowDrop.WAITED_TOO_LONG: 2}


def test_datagram_older_than_its_patience_is_not_sent_to_the_backend() -> None:
    connector = opening_flow()
    old, fresh = frames(1, b"old", b"fresh")
    connector.handle_datagram(old, 0.0)
    connector.handle_datagram(fresh, 1.0)
    connector.handle_backend_opened(1, MAX_WAITING_S + 0.1)
    assert connector.drain() == [AcceptFlow(1), SendToBackend(1, b"fresh")]
    assert connector.counts.drops == {FlowDrop.WAITED_TOO_LONG: 1}


def test_unknown_flows_and_their_datagrams_are_bounded() -> None:
    connector = ConnectorFlows(0.0)
    for flow_id in range(1, MAX_UNKNOWN_FLOWS + 2):
        connector.handle_datagram(frames(flow_id, b"x")[0], 0.0)
    assert connector.counts.drops == {FlowDrop.TOO_MANY_UNKNOWN_FLOWS: 1}
    for frame in frames(1, *[b"x"] * (MAX_WAITING_DATAGRAMS + 3))[1:]:
        connector.handle_datagram(frame, 0.0)
    assert connector.counts.drops[FlowDrop.TOO_MANY_WAITING] == 3
    assert connector.waiting_bytes == MAX_UNKNOWN_FLOWS - 1 + MAX_WAITING_DATAGRAMS


def test_waiting_bytes_of_all_flows_are_bounded_together() -> None:
    connector = ConnectorFlows(0.0)
    for flow_id in (1, 2):
        for frame in frames(flow_id, *[bytes(MAX_PAYLOAD_BYTES)] * MAX_WAITING_DATAGRAMS):
            connector.handle_datagram(frame, 0.0)
    assert connector.waiting_bytes == MAX_WAITING_BYTES
    assert connector.counts.drops == {FlowDrop.TOO_MANY_WAITING: MAX_WAITING_DATAGRAMS}


@pytest.mark.parametrize("flow_id", [1, 2**40], ids=["closed", "no number the agent can choose"])
def test_frame_that_no_open_can_follow_is_dropped_at_once(flow_id: int) -> None:
    connector = open_flow()
    connector.close(1, CloseReason.REVOKED, 1.0)
    connector.close(1, CloseReason.REVOKED, 1.0)
    assert connector.drain() == [
        CloseFlow(1, CloseReason.REVOKED),
        CloseBackend(1),
        FlowClosed(1, "dns", CloseReason.REVOKED, StreamError.NO_ERROR, "", 0, 0, 1.0),
    ]
    connector.handle_datagram(frames(flow_id, b"x")[0], 1.0)
    assert connector.counts.drops == {FlowDrop.UNKNOWN_FLOW: 1}


def test_refusal_frees_the_flow_without_touching_a_backend() -> None:
    connector = requested_flow()
    connector.handle_datagram(frames(1, b"x")[0], 0.0)
    connector.refuse(1, StreamError.UNKNOWN_SERVICE, "no such service", 1.0)
    assert connector.drain() == [
        RefuseFlow(1, StreamError.UNKNOWN_SERVICE, "no such service"),
        FlowClosed(1, "dns", CloseReason.REFUSED, StreamError.UNKNOWN_SERVICE, "no such service", 0, 1, 1.0),
    ]
    assert connector.waiting_bytes == len(connector) == 0


def test_connectors_flow_limit_refuses_the_next_open() -> None:
    connector = ConnectorFlows(0.0, opens_burst=MAX_FLOWS + 10)
    for flow_id in range(1, MAX_FLOWS + 2):
        connector.handle_open(flow_id, "dns", 0.0)
    assert len(connector) == MAX_FLOWS
    message = f"limits.flows_per_agent ({MAX_FLOWS}) is reached"
    assert RefuseFlow(MAX_FLOWS + 1, StreamError.LIMIT, message) in connector.drain()
    assert connector.counts.drops == {FlowDrop.TOO_MANY_FLOWS: 1}


def test_opens_beyond_the_rate_are_refused() -> None:
    connector = ConnectorFlows(0.0, opens_per_s=1.0, opens_burst=2.0)
    for flow_id in (1, 2, 3):
        connector.handle_open(flow_id, "dns", 0.0)
    message = "limits.opens_per_second (1) is reached"
    assert RefuseFlow(3, StreamError.LIMIT, message) in connector.drain()
    connector.handle_open(4, "dns", 1.0)
    assert connector.drain() == [FlowRequested(4, "dns")]
    assert connector.counts.drops == {FlowDrop.OPENS_TOO_FAST: 1}
    assert DEFAULT_OPENS_BURST >= MAX_FLOWS


def test_backend_that_cannot_be_opened_is_refused_and_one_that_dies_is_closed() -> None:
    opening = opening_flow()
    opening.handle_backend_failed(1, "no such host", 1.0)
    assert opening.drain()[:2] == [
        RefuseFlow(1, StreamError.BACKEND_UNREACHABLE, BACKEND_FAILED_MESSAGE),
        CloseBackend(1),
    ]
    connector = open_flow()
    connector.handle_backend_failed(1, "connection refused", 1.0)
    effects = connector.drain()
    assert effects[:2] == [CloseFlow(1, CloseReason.BACKEND_FAILED), CloseBackend(1)]
    assert closed(effects)[0].code is StreamError.BACKEND_RESET
    connector.handle_backend_failed(1, "again", 1.0)
    connector.handle_backend_datagram(1, b"late", 1.0)
    assert connector.drain() == []
    assert connector.counts.drops == {FlowDrop.UNKNOWN_FLOW: 1}


def test_backends_datagram_leaves_on_its_own_flow() -> None:
    connector = open_flow()
    connector.handle_backend_datagram(1, b"answer", 1.0)
    assert connector.drain() == [SendDatagrams(1, tuple(frames(1, b"answer")))]


def test_decision_on_a_flow_that_the_agent_closed_is_harmless() -> None:
    connector = requested_flow()
    connector.handle_peer_close(1, 1.0)
    connector.drain()
    connector.accept(1)
    connector.refuse(1, StreamError.LIMIT, "", 1.0)
    connector.handle_backend_opened(1, 1.0)
    assert connector.drain() == []


@pytest.mark.parametrize(
    "misuse",
    [
        pytest.param(lambda: opening_flow().accept(1), id="accepting twice"),
        pytest.param(lambda: open_flow().refuse(1, StreamError.LIMIT, "", 0.0), id="refusing an open flow"),
        pytest.param(lambda: requested_flow().handle_backend_opened(1, 0.0), id="opened undecided"),
        pytest.param(lambda: requested_flow().handle_backend_failed(1, "", 0.0), id="failed undecided"),
        pytest.param(lambda: opening_flow().handle_backend_datagram(1, b"", 0.0), id="datagram too soon"),
        pytest.param(lambda: AgentFlows().handle_frame_size(100), id="frames too small"),
    ],
)
def test_misuse_is_our_own_fault(misuse: Callable[[], None]) -> None:
    with pytest.raises(LocalProtocolError):
        misuse()


# Both.


def test_idle_flow_is_closed_and_either_direction_keeps_it() -> None:
    connector = open_flow()
    connector.handle_open(2, "ntp", 10.0)
    connector.handle_backend_datagram(1, b"x", 100.0)
    connector.drain()
    assert connector.next_deadline() == 10.0 + FLOW_IDLE_S
    connector.handle_timeout(10.0 + FLOW_IDLE_S)
    assert connector.drain()[0] == CloseFlow(2, CloseReason.IDLE)
    assert connector.next_deadline() == 100.0 + FLOW_IDLE_S
    connector.handle_timeout(100.0 + FLOW_IDLE_S)
    assert connector.drain()[:2] == [CloseFlow(1, CloseReason.IDLE), CloseBackend(1)]
    assert connector.next_deadline() is None


def test_incomplete_datagram_sets_the_deadline_and_is_given_up() -> None:
    agent = agent_flow()
    agent.handle_datagram(frames(1, bytes(3000))[0], 5.0)
    assert agent.next_deadline() == 5.0 + MAX_REASSEMBLY_S
    agent.handle_timeout(5.0 + MAX_REASSEMBLY_S)
    assert agent.next_deadline() == FLOW_IDLE_S
    assert agent.counts.reassembly == {ReassemblyDrop.TIMED_OUT: 1}


def test_end_of_the_session_closes_every_flow_silently() -> None:
    agent = agent_flow()
    agent.handle_local_datagram("ntp", APP, b"x", 0.0)
    agent.drain()
    agent.close_all(CloseReason.SESSION_ENDED, 9.0)
    effects = agent.drain()
    assert [effect.flow_id for effect in closed(effects)] == [1, 2]
    assert len(effects) == 2
    assert len(agent) == 0


def test_smaller_frames_apply_from_the_next_datagram() -> None:
    agent = agent_flow()
    agent.handle_frame_size(1100)
    agent.handle_local_datagram("dns", APP, bytes(1150), 0.0)
    (effect,) = agent.drain()
    assert isinstance(effect, SendDatagrams)
    assert [len(frame) <= 1100 for frame in effect.frames] == [True, True]


@given(st.lists(st.tuples(st.binary(max_size=24), st.floats(0, 2)), max_size=40), st.booleans())
def test_arbitrary_datagrams_raise_only_remote_errors(
    data: list[tuple[bytes, float]], is_agent: bool
) -> None:
    table = agent_flow() if is_agent else open_flow()
    now = 0.0
    for frame, gap in data:
        now += gap
        with contextlib.suppress(RemoteProtocolError):
            table.handle_datagram(frame, now)
        table.drain()
        table.handle_timeout(now)
        deadline = table.next_deadline()
        assert deadline is None or deadline > now


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4000)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_echo_through_both_ends_reaches_only_the_source_that_asked(
    sends: list[tuple[int, int]], rng: Random
) -> None:
    agent, connector = AgentFlows(), ConnectorFlows(0.0)
    sources: dict[int, TransportAddress] = {}
    sent: dict[TransportAddress, list[bytes]] = {}
    got: dict[TransportAddress, list[bytes]] = {}
    to_connector: list[bytes] = []
    to_agent: list[bytes] = []

    def pump() -> None:
        for effect in agent.drain():
            match effect:
                case OpenFlow(flow_id, service):
                    connector.handle_open(flow_id, service, 0.0)
                case SendDatagrams(_, data):
                    to_connector.extend(data)
                case DeliverDatagram(_, source, payload):
                    got.setdefault(source, []).append(payload)
                case _:
                    pytest.fail(f"unexpected {effect}")
        for answer in connector.drain():
            match answer:
                case FlowRequested(flow_id, _):
                    connector.accept(flow_id)
                case OpenBackend(flow_id, _):
                    connector.handle_backend_opened(flow_id, 0.0)
                case AcceptFlow(flow_id):
                    agent.handle_accepted(flow_id)
                case SendToBackend(flow_id, payload):
                    connector.handle_backend_datagram(flow_id, payload, 0.0)
                case SendDatagrams(_, data):
                    to_agent.extend(data)
                case _:
                    pytest.fail(f"unexpected {answer}")

    for number, (port, size) in enumerate(sends):
        source = sources.setdefault(port, TransportAddress("127.0.0.1", 1000 + port))
        payload = b"%d/%d/" % (port, number) + bytes(size)
        sent.setdefault(source, []).append(payload)
        agent.handle_local_datagram("echo", source, payload, 0.0)
        pump()
    for queue, receive in ((to_connector, connector.handle_datagram), (to_agent, agent.handle_datagram)):
        for _ in range(5):
            pump()
        arriving = queue + rng.sample(queue, len(queue) // 3)
        rng.shuffle(arriving)
        for frame in arriving:
            receive(frame, 0.0)
            pump()
    pump()
    assert {source: sorted(payloads) for source, payloads in got.items()} == {
        source: sorted(payloads) for source, payloads in sent.items()
    }
