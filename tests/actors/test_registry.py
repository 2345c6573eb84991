from __future__ import annotations

import pytest

from actors import translate
from actors.burst_log import BURST_S
from actors.registry import STATISTICS_INTERVAL_S, Registry
from tests.manual_io import ActorHarness, actor_harness
from ztna.access.grant import GrantClaims
from ztna.access.identity import Role
from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, OfferPolicy, OfferRule
from ztna.signaling.values import Party
from ztna.v1 import (
    grant_pb2,
    registry_pb2,
    signaling_pb2,
    signaling_service_pb2,
    types_pb2,
)

AGENT = translate.party_to_proto(Party(Role.AGENT, "a1", b"a" * 32))
TCP = types_pb2.SERVICE_PROTOCOL_TCP


def connector(name: str = "c1") -> types_pb2.NodeIdentity:
    return translate.party_to_proto(Party(Role.CONNECTOR, name, b"c" * 32))


@pytest.fixture
def harness() -> ActorHarness[Registry]:
    rules = AccessRules(
        AccessPolicy([AccessRule(("a1",), ("web", "ssh"))]), OfferPolicy([OfferRule(("*",), ("web", "dns"))])
    )
    harness = actor_harness(Registry, lambda: rules, 2)
    harness.tell(
        signaling_service_pb2.NodeAttached(attach_id=b"A", node=AGENT),
        signaling_service_pb2.NodeAttached(attach_id=b"C", node=connector()),
    )
    assert harness.take_emitted() == []
    return harness


def offer(harness: ActorHarness[Registry], service: str, attach_id: bytes = b"C") -> list[object]:
    harness.tell(signaling_service_pb2.ServiceOffered(attach_id=attach_id, service=service, protocol=TCP))
    return [m for m in harness.take_emitted() if not isinstance(m, registry_pb2.RegistryStatistics)]


def want(harness: ActorHarness[Registry], service: str = "web", **rest: list[str]) -> object:
    harness.tell(
        signaling_service_pb2.SessionWanted(
            attach_id=b"A", agent=AGENT, request_id=5, service=service, protocol=TCP, **rest
        )
    )
    (answer,) = [m for m in harness.take_emitted() if not isinstance(m, registry_pb2.RegistryStatistics)]
    return answer


def test_accepted_offer_is_answered_and_reported(harness: ActorHarness[Registry]) -> None:
    harness.tell(signaling_service_pb2.ServiceOffered(attach_id=b"C", service="web", protocol=TCP))
    accepted, report = harness.take_emitted()
    assert accepted == signaling_service_pb2.SendFrame(
        attach_id=b"C",
        frame=signaling_pb2.SignalingFrame(
            registration_accepted=signaling_pb2.RegistrationAccepted(service="web")
        ),
    )
    assert isinstance(report, registry_pb2.RegistryStatistics)
    assert [(each.service, each.protocol, list(each.connectors)) for each in report.services] == [
        ("web", TCP, ["c1"])
    ]
    assert report.registrations == 1


@pytest.mark.parametrize(
    ("service", "protocol", "code"),
    [
        ("ssh", TCP, signaling_pb2.SIGNALING_CODE_ACCESS_DENIED),
        ("", TCP, signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE),
        ("web", types_pb2.SERVICE_PROTOCOL_UNSPECIFIED, signaling_pb2.SIGNALING_CODE_INVALID_MESSAGE),
    ],
)
def test_rejected_offer_is_answered_with_the_reason(
    harness: ActorHarness[Registry],
    service: str,
    protocol: types_pb2.ServiceProtocol.ValueType,
    code: signaling_pb2.SignalingCode.ValueType,
) -> None:
    harness.tell(signaling_service_pb2.ServiceOffered(attach_id=b"C", service=service, protocol=protocol))
    answer, report = harness.take_emitted()
    assert isinstance(answer, signaling_service_pb2.SendFrame)
    assert answer.frame.registration_rejected.code == code
    assert answer.frame.registration_rejected.message
    assert isinstance(report, registry_pb2.RegistryStatistics)
    assert sum(report.rejections.values()) == 1
    (line,) = harness.logs
    assert (line["event"], line["peer_id"]) == ("registry.service_rejected", "c1")


def test_flood_of_refusals_is_one_line_and_a_number(harness: ActorHarness[Registry]) -> None:
    for _ in range(50):
        harness.tell(
            signaling_service_pb2.SessionWanted(
                attach_id=b"A", agent=AGENT, request_id=5, service="dns", protocol=TCP
            )
        )
        harness.tell(signaling_service_pb2.ServiceOffered(attach_id=b"C", service="ssh", protocol=TCP))
    events = ["registry.session_refused", "registry.service_rejected"]
    assert [line["event"] for line in harness.logs] == events
    harness.advance(BURST_S)
    summed = {line["event"]: line["count"] for line in harness.logs if "count" in line}
    assert summed == {"registry.session_refused_repeated": 49, "registry.service_rejected_repeated": 49}


def test_chosen_connector_is_announced(harness: ActorHarness[Registry]) -> None:
    offer(harness, "web")
    assert want(harness) == registry_pb2.ConnectorChosen(
        agent_attach_id=b"A",
        agent=AGENT,
        request_id=5,
        service="web",
        connector_attach_id=b"C",
        connector=connector(),
    )


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("dns", signaling_pb2.SIGNALING_CODE_ACCESS_DENIED),
        ("ssh", signaling_pb2.SIGNALING_CODE_SERVICE_NOT_FOUND),
        ("web", signaling_pb2.SIGNALING_CODE_NO_CONNECTOR_AVAILABLE),
    ],
)
def test_refused_wish_is_answered_with_its_request(
    harness: ActorHarness[Registry], service: str, code: signaling_pb2.SignalingCode.ValueType
) -> None:
    answer = want(harness, service)
    assert isinstance(answer, signaling_service_pb2.SendFrame)
    assert (answer.attach_id, answer.frame.error.code) == (b"A", code)
    assert answer.frame.error.request_id == 5


def test_refused_wish_is_counted_apart_from_rejected_services(harness: ActorHarness[Registry]) -> None:
    harness.tell(
        signaling_service_pb2.SessionWanted(attach_id=b"A", agent=AGENT, service="web", protocol=TCP)
    )
    _, report = harness.take_emitted()
    assert isinstance(report, registry_pb2.RegistryStatistics)
    assert (dict(report.session_refusals), dict(report.rejections)) == ({"no_connector_available": 1}, {})


def test_withdrawn_service_and_detached_connector_are_gone(harness: ActorHarness[Registry]) -> None:
    offer(harness, "web")
    harness.tell(signaling_service_pb2.ServiceWithdrawn(attach_id=b"C", service="web"))
    assert isinstance(want(harness), signaling_service_pb2.SendFrame)
    offer(harness, "web")
    harness.tell(signaling_service_pb2.NodeDetached(attach_id=b"C", node=connector()))
    assert isinstance(want(harness), signaling_service_pb2.SendFrame)


def test_agent_that_resumes_keeps_its_connector(harness: ActorHarness[Registry]) -> None:
    harness.tell(signaling_service_pb2.NodeAttached(attach_id=b"D", node=connector("c2")))
    offer(harness, "web", b"C")
    offer(harness, "web", b"D")
    claims = GrantClaims(1, b"s" * 16, "a1", b"a" * 32, "c2", b"c" * 32, "web", 0, 0, "i1")
    grant = grant_pb2.SealedGrant(claims=translate.claims_to_proto(claims).SerializeToString())
    harness.tell(
        signaling_service_pb2.NodeAttached(
            attach_id=b"A'",
            node=AGENT,
            resume=[
                signaling_pb2.ResumeSession(grant=grant_pb2.SealedGrant(claims=b"\xff")),
                signaling_pb2.ResumeSession(grant=grant),
            ],
        )
    )
    chosen = want(harness)
    assert isinstance(chosen, registry_pb2.ConnectorChosen)
    assert chosen.connector.id == "c2"


def test_reports_come_at_most_once_a_second(harness: ActorHarness[Registry]) -> None:
    harness.tell(signaling_service_pb2.ServiceOffered(attach_id=b"C", service="web", protocol=TCP))
    harness.tell(signaling_service_pb2.ServiceOffered(attach_id=b"C", service="dns", protocol=TCP))
    reports = [m for m in harness.take_emitted() if isinstance(m, registry_pb2.RegistryStatistics)]
    assert [len(report.services) for report in reports] == [1]
    harness.advance(STATISTICS_INTERVAL_S)
    (report,) = harness.take_emitted()
    assert isinstance(report, registry_pb2.RegistryStatistics)
    assert len(report.services) == 2
    harness.advance(10)
    assert harness.take_emitted() == []
