from __future__ import annotations

from actors.base import Context
from actors.intermediate_selector import IntermediateSelector
from tests.manual_io import ActorHarness, actor_harness
from ztna.signaling.client import REATTACHING
from ztna.signaling.selection import ATTACH_PATIENCE_S
from ztna.v1 import relay_leg_pb2, reload_pb2, signaling_client_pb2


class AgentSelector(IntermediateSelector):
    certificate = b"first"

    def __init__(self, context: Context) -> None:
        super().__init__(context, ["i1", "i2"], lambda: self.certificate, use_all=False)


class ConnectorSelector(IntermediateSelector):
    def __init__(self, context: Context) -> None:
        super().__init__(context, ["i1", "i2"], lambda: b"", use_all=True)


def commands(harness: ActorHarness[AgentSelector] | ActorHarness[ConnectorSelector]) -> list[tuple[str, str]]:
    taken = harness.take_emitted()
    return [(type(each).__name__, each.intermediate_id) for each in taken]  # type: ignore[attr-defined]


def test_connector_uses_every_intermediate() -> None:
    assert commands(actor_harness(ConnectorSelector)) == [
        ("ConnectLeg", "i1"),
        ("Attach", "i1"),
        ("ConnectLeg", "i2"),
        ("Attach", "i2"),
    ]


def test_agent_leaves_an_intermediate_that_was_lost_for_the_next() -> None:
    harness = actor_harness(AgentSelector)
    assert commands(harness) == [
        ("Detach", "i2"),
        ("DisconnectLeg", "i2"),
        ("ConnectLeg", "i1"),
        ("Attach", "i1"),
    ]
    harness.tell(signaling_client_pb2.Attached(intermediate_id="i1"))
    harness.advance(10 * ATTACH_PATIENCE_S)
    assert commands(harness) == []
    harness.tell(signaling_client_pb2.Detached(intermediate_id="i1", reason="silent"))
    assert commands(harness) == [
        ("Detach", "i1"),
        ("DisconnectLeg", "i1"),
        ("ConnectLeg", "i2"),
        ("Attach", "i2"),
    ]


def test_agent_leaves_an_intermediate_that_does_not_answer() -> None:
    harness = actor_harness(AgentSelector)
    harness.take_emitted()
    harness.advance(ATTACH_PATIENCE_S)
    assert relay_leg_pb2.ConnectLeg(intermediate_id="i2") in harness.take_emitted()


def test_agent_whose_intermediates_all_refuse_does_not_spin() -> None:
    harness = actor_harness(AgentSelector)
    dialled = 0
    for _ in range(600):
        for name in [name for kind, name in commands(harness) if kind == "Attach"]:
            dialled += 1
            harness.tell(signaling_client_pb2.Detached(intermediate_id=name, reason="unavailable"))
        harness.advance(0.1)
    assert 2 < dialled < 60


def test_renewed_certificate_is_shown_at_once_and_is_no_reason_to_fail_over() -> None:
    harness = actor_harness(AgentSelector)
    harness.tell(signaling_client_pb2.Attached(intermediate_id="i1"))
    commands(harness)
    recheck = [("RecheckIntermediate", "i1"), ("RecheckIntermediate", "i2")]
    harness.tell(reload_pb2.ConfigurationReloaded())
    assert commands(harness) == recheck
    harness.concern.certificate = b"second"
    harness.tell(reload_pb2.ConfigurationReloaded())
    assert commands(harness) == [
        *recheck,
        ("RedialLeg", "i1"),
        ("Reattach", "i1"),
        ("RedialLeg", "i2"),
        ("Reattach", "i2"),
    ]
    harness.tell(signaling_client_pb2.Detached(intermediate_id="i1", reason=REATTACHING))
    assert commands(harness) == []
