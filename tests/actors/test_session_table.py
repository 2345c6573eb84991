from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from actors.base import Context
from actors.burst_log import BURST_S
from actors.session_table import NOT_STARTED, AgentSessionTable, ConnectorSessionTable, WantedService
from tests.manual_io import ActorHarness, actor_harness
from ztna.session.agent_table import WISH_LIMIT_S
from ztna.session.book import CONSENT_S, HANDSHAKE_LIMIT_S
from ztna.session.effects import Peer
from ztna.v1 import (
    grant_pb2,
    keepalive_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    service_port_pb2,
    session_table_pb2,
    signaling_client_pb2,
    types_pb2,
)

MessageT = TypeVar("MessageT", bound=Message)
S1 = b"1" * 16
AGENT = types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id="a1", fingerprint=b"a" * 32)
CONNECTOR = types_pb2.NodeIdentity(role=types_pb2.ROLE_CONNECTOR, id="c1", fingerprint=b"c" * 32)
GRANT = grant_pb2.SealedGrant(
    claims=grant_pb2.GrantClaims(issued_at_s=1000, expires_at_s=1600).SerializeToString()
)
ATTACHED = signaling_client_pb2.Attached(intermediate_id="i1", attach_id=b"x" * 16)


class Scopes:
    """Notes which sessions were started and stopped."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes]] = []
        self.peers: list[Peer] = []
        self.is_stopping = False

    def start(self, session_id: bytes, peer: Peer) -> bool:
        if self.is_stopping:
            return False
        self.log.append(("start", session_id))
        self.peers.append(peer)
        return True

    def stop(self, session_id: bytes) -> None:
        self.log.append(("stop", session_id))


class AgentTable(AgentSessionTable):
    def __init__(self, context: Context, scopes: Scopes) -> None:
        services = {
            "web": WantedService(types_pb2.SERVICE_PROTOCOL_TCP, ()),
            "dns": WantedService(types_pb2.SERVICE_PROTOCOL_UDP, ("c1", "c2")),
        }
        super().__init__(
            context, scopes, ["i1", "i2"], lambda: services, max_offline_s=3600.0, is_eager=False
        )


class ConnectorTable(ConnectorSessionTable):
    def __init__(self, context: Context, scopes: Scopes) -> None:
        super().__init__(context, scopes, ["i1", "i2"], max_offline_s=3600.0)


def of(messages: list[Message], kind: type[MessageT]) -> list[MessageT]:
    return [message for message in messages if isinstance(message, kind)]


def agent() -> tuple[ActorHarness[AgentTable], Scopes]:
    scopes = Scopes()
    harness = actor_harness(AgentTable, scopes)
    harness.tell(ATTACHED)
    assert harness.take_emitted() == []
    return harness, scopes


def granted(request_id: int, **changes: object) -> signaling_client_pb2.SessionGranted:
    message = signaling_client_pb2.SessionGranted(
        intermediate_id="i1",
        request_id=request_id,
        session_id=S1,
        service="web",
        connector=CONNECTOR,
        channel=7,
        grant=GRANT,
    )
    message.MergeFrom(signaling_client_pb2.SessionGranted(**changes))  # type: ignore[arg-type]
    return message


def want(service: str = "web") -> session_table_pb2.RequestService:
    return session_table_pb2.RequestService(service=service)


def test_agent_opens_a_session_for_a_wanted_service() -> None:
    harness, scopes = agent()
    harness.tell(want())
    (request,) = of(harness.take_emitted(), signaling_client_pb2.RequestSession)
    assert (request.intermediate_id, request.service) == ("i1", "web")
    assert request.protocol == types_pb2.SERVICE_PROTOCOL_TCP
    harness.tell(granted(request.request_id))
    messages = harness.take_emitted()
    assert scopes.log == [("start", S1)]
    assert scopes.peers == [Peer("c1", b"c" * 32)]
    assert of(messages, relay_leg_pb2.BindChannel) == [
        relay_leg_pb2.BindChannel(intermediate_id="i1", session_id=S1, channel=7)
    ]
    assert [
        (each.intermediate_id, each.grant) for each in of(messages, signaling_client_pb2.KeepResumable)
    ] == [
        ("i1", GRANT),
        ("i2", GRANT),
    ]
    harness.tell(quic_session_pb2.SessionEstablished(session_id=S1, peer=CONNECTOR))
    assert harness.take_emitted() == [
        session_table_pb2.ServiceReady(service="web", session_id=S1, connector_id="c1", grant=GRANT)
    ]


def test_agent_names_the_connectors_it_accepts() -> None:
    harness, _ = agent()
    harness.tell(want("dns"))
    (request,) = of(harness.take_emitted(), signaling_client_pb2.RequestSession)
    assert (list(request.connectors), request.protocol) == (["c1", "c2"], types_pb2.SERVICE_PROTOCOL_UDP)


def test_end_of_a_session_frees_it_and_tells_the_intermediate() -> None:
    harness, scopes = agent()
    harness.tell(
        want(), granted(1), session_table_pb2.CloseSessionRequested(session_id=S1, reason="operator")
    )
    (close,) = of(harness.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert (close.session_id, close.reason) == (S1, "operator")
    harness.tell(quic_session_pb2.SessionClosed(session_id=S1, reason="operator"))
    messages = harness.take_emitted()
    assert scopes.log == [("start", S1), ("stop", S1)]
    assert len(of(messages, relay_leg_pb2.ReleaseChannel)) == 1
    assert [each.reason for each in of(messages, signaling_client_pb2.ReportSessionClosed)] == ["operator"]
    kept = of(messages, signaling_client_pb2.KeepResumable)
    assert [each.HasField("grant") for each in kept] == [False, False]


def test_wish_that_is_never_answered_fails_in_time() -> None:
    harness, _ = agent()
    harness.tell(want())
    harness.advance(WISH_LIMIT_S)
    (failed,) = of(harness.take_emitted(), session_table_pb2.ServiceUnavailable)
    assert (failed.service, failed.code) == ("web", "timeout")


def test_final_refusal_is_told_and_logged() -> None:
    harness, _ = agent()
    harness.tell(
        want(),
        signaling_client_pb2.SessionRequestFailed(
            intermediate_id="i1", request_id=1, code="access_denied", message="no rule", is_final=True
        ),
    )
    (failed,) = of(harness.take_emitted(), session_table_pb2.ServiceUnavailable)
    assert (failed.code, failed.message) == ("access_denied", "no rule")
    assert any(entry["event"] == "session_table.service_unavailable" for entry in harness.logs)


def test_service_that_is_not_configured_does_not_harm_the_table() -> None:
    harness, _ = agent()
    harness.tell(want("nonsense"), granted(9, service="nonsense"))
    messages = harness.take_emitted()
    assert [each.code for each in of(messages, session_table_pb2.ServiceUnavailable)] == ["unknown_service"]
    assert harness.is_alive


def test_malformed_grant_starts_nothing() -> None:
    harness, scopes = agent()
    harness.tell(want(), granted(1, grant=grant_pb2.SealedGrant(claims=b"\xff\xff")))
    assert scopes.log == []
    assert harness.is_alive


def test_session_moves_to_the_intermediate_that_the_agent_moved_to() -> None:
    harness, _ = agent()
    harness.tell(want(), granted(1), quic_session_pb2.SessionEstablished(session_id=S1, peer=CONNECTOR))
    harness.take_emitted()
    harness.tell(
        signaling_client_pb2.Detached(intermediate_id="i1", reason="detached"),
        signaling_client_pb2.Attached(intermediate_id="i2", attach_id=b"y" * 16),
        signaling_client_pb2.SessionReboundReceived(
            intermediate_id="i2", session_id=S1, peer=CONNECTOR, channel=9
        ),
    )
    messages = harness.take_emitted()
    assert of(messages, relay_leg_pb2.BindChannel) == [
        relay_leg_pb2.BindChannel(intermediate_id="i2", session_id=S1, channel=9)
    ]
    assert of(messages, quic_session_pb2.CloseQuicSession) == []


def test_restarted_signaling_client_is_told_what_it_must_resume() -> None:
    harness, _ = agent()
    harness.tell(want(), granted(1))
    harness.take_emitted()
    harness.tell(signaling_client_pb2.Detached(intermediate_id="i1", reason="starting"))
    (kept,) = of(harness.take_emitted(), signaling_client_pb2.KeepResumable)
    assert (kept.intermediate_id, kept.session_id, kept.grant) == ("i1", S1, GRANT)


def test_renewed_grant_is_handed_to_the_service_sockets() -> None:
    harness, _ = agent()
    harness.tell(want(), granted(1), quic_session_pb2.SessionEstablished(session_id=S1, peer=CONNECTOR))
    harness.take_emitted()
    harness.advance(400.0)
    (request,) = of(harness.take_emitted(), signaling_client_pb2.RequestSession)
    assert list(request.connectors) == ["c1"]
    harness.tell(granted(request.request_id))
    messages = harness.take_emitted()
    assert of(messages, session_table_pb2.GrantRenewed) == [
        session_table_pb2.GrantRenewed(session_id=S1, service="web", grant=GRANT)
    ]
    assert len(of(messages, signaling_client_pb2.KeepResumable)) == 2


def test_grant_that_a_connector_refused_is_asked_for_anew_at_once() -> None:
    harness, _ = agent()
    harness.tell(want(), granted(1), quic_session_pb2.SessionEstablished(session_id=S1, peer=CONNECTOR))
    harness.take_emitted()
    harness.tell(service_port_pb2.GrantRefused(session_id=S1, service="web", grant=GRANT, message="expired"))
    harness.advance(0.0)
    (request,) = of(harness.take_emitted(), signaling_client_pb2.RequestSession)
    assert (request.service, list(request.connectors)) == ("web", ["c1"])


def test_refused_renewal_is_told_and_ends_nothing() -> None:
    harness, scopes = agent()
    harness.tell(want(), granted(1), quic_session_pb2.SessionEstablished(session_id=S1, peer=CONNECTOR))
    harness.advance(400.0)
    harness.take_emitted()
    harness.tell(
        signaling_client_pb2.SessionRequestFailed(
            intermediate_id="i1", request_id=2, code="access_denied", message="no rule", is_final=True
        )
    )
    assert harness.take_emitted() == [
        session_table_pb2.GrantRenewalRefused(
            session_id=S1, service="web", connector_id="c1", code="access_denied", message="no rule"
        )
    ]
    assert [entry["code"] for entry in harness.logs if entry["event"] == "session_table.renewal_refused"] == [
        "access_denied"
    ]
    harness.advance(3000.0)
    assert harness.take_emitted() == []
    assert scopes.log == [("start", S1)]


def test_grant_that_arrives_during_a_drain_starts_nothing_and_is_reported_closed() -> None:
    harness, scopes = agent()
    harness.tell(want())
    scopes.is_stopping = True
    harness.take_emitted()
    harness.tell(granted(1))
    messages = harness.take_emitted()
    assert harness.is_alive
    assert [each.reason for each in of(messages, signaling_client_pb2.ReportSessionClosed)] == [NOT_STARTED]
    assert of(messages, relay_leg_pb2.ReleaseChannel) == [
        relay_leg_pb2.ReleaseChannel(intermediate_id="i1", session_id=S1)
    ]
    assert [each.HasField("grant") for each in of(messages, signaling_client_pb2.KeepResumable)][-2:] == [
        False,
        False,
    ]


# Connector


def offered(session_id: bytes = S1) -> signaling_client_pb2.SessionOffered:
    return signaling_client_pb2.SessionOffered(
        intermediate_id="i1", session_id=session_id, agent=AGENT, channel=3
    )


def test_connector_starts_what_is_offered_and_drops_what_no_agent_takes_up() -> None:
    scopes = Scopes()
    harness = actor_harness(ConnectorTable, scopes)
    harness.tell(ATTACHED, offered())
    assert scopes.log == [("start", S1)]
    assert scopes.peers == [Peer("a1", b"a" * 32)]
    harness.advance(HANDSHAKE_LIMIT_S)
    (close,) = of(harness.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert close.reason == "handshake_timeout"


def test_offer_that_arrives_during_a_drain_starts_nothing_and_is_reported_closed() -> None:
    scopes = Scopes()
    scopes.is_stopping = True
    harness = actor_harness(ConnectorTable, scopes)
    harness.tell(ATTACHED, offered())
    messages = harness.take_emitted()
    assert harness.is_alive
    assert [each.reason for each in of(messages, signaling_client_pb2.ReportSessionClosed)] == [NOT_STARTED]
    assert isinstance(messages[-1], signaling_client_pb2.KeepResumable)
    harness.advance(HANDSHAKE_LIMIT_S)
    assert harness.take_emitted() == []


def test_grant_that_the_agent_showed_is_kept_for_resumption() -> None:
    harness = actor_harness(ConnectorTable, Scopes())
    harness.tell(ATTACHED, offered(), service_port_pb2.GrantPresented(session_id=S1, grant=GRANT))
    kept = of(harness.take_emitted(), signaling_client_pb2.KeepResumable)
    assert [each.grant for each in kept] == [GRANT, GRANT]


def test_revoked_session_is_closed() -> None:
    harness = actor_harness(ConnectorTable, Scopes())
    harness.tell(
        ATTACHED,
        offered(),
        signaling_client_pb2.SessionRevoked(intermediate_id="i1", session_id=S1, code="access_denied"),
    )
    messages = harness.take_emitted()
    assert [each.reason for each in of(messages, quic_session_pb2.CloseQuicSession)] == ["access_denied"]


def test_lost_agent_is_asked_directly_and_its_answers_keep_the_session() -> None:
    harness = actor_harness(ConnectorTable, Scopes())
    harness.tell(
        ATTACHED,
        offered(),
        quic_session_pb2.SessionEstablished(session_id=S1),
        signaling_client_pb2.SessionRevoked(intermediate_id="i1", session_id=S1, code="peer_lost"),
    )
    assert [each.session_id for each in of(harness.take_emitted(), keepalive_pb2.ConfirmPeer)] == [S1]
    harness.tell(keepalive_pb2.PathConfirmed(session_id=S1, kind=types_pb2.PATH_KIND_DIRECT))
    harness.advance(CONSENT_S - 1.0)
    # What comes through a relay is no news: the relay itself has gone.
    harness.tell(keepalive_pb2.PathConfirmed(session_id=S1, kind=types_pb2.PATH_KIND_RELAY))
    assert of(harness.take_emitted(), quic_session_pb2.CloseQuicSession) == []
    harness.advance(1.0)
    (close,) = of(harness.take_emitted(), quic_session_pb2.CloseQuicSession)
    assert close.reason == "peer_lost"


def test_session_that_a_former_table_knew_is_freed_when_it_ends() -> None:
    scopes = Scopes()
    harness = actor_harness(ConnectorTable, scopes)
    harness.tell(quic_session_pb2.SessionClosed(session_id=S1, reason="idle_timeout"))
    assert scopes.log == [("stop", S1)]


def test_handshakes_that_wait_are_logged_once_per_burst() -> None:
    harness: ActorHarness[ConnectorTable] = actor_harness(ConnectorTable, Scopes())
    for number in range(100):
        harness.tell(
            quic_session_pb2.HandshakeDeferred(
                session_id=number.to_bytes(16, "big"), reason="handshake_budget"
            )
        )
    harness.advance(BURST_S + 1)
    assert [(line["event"], line.get("count")) for line in harness.logs] == [
        ("session_table.handshake_deferred", None),
        ("session_table.handshake_deferred_repeated", 99),
    ]
