from __future__ import annotations

import random

import pytest

from ztna.access.identity import Role
from ztna.errors import AccessDenied
from ztna.signaling import attachments
from ztna.signaling.attachments import (
    FRAME_BURST_S,
    JUDGEMENT_LIMIT_S,
    LINGER_LIMIT_S,
    Attached,
    AttachmentState,
    AttachmentTable,
    Carrier,
    Detached,
    LegJudgementWanted,
    ServiceUnreachable,
    Superseded,
)
from ztna.signaling.values import Party

A1 = Party(Role.AGENT, "a1", b"k" * 32)
C1 = Party(Role.CONNECTOR, "c1", b"l" * 32)


def table(**limits: float) -> AttachmentTable:
    return AttachmentTable(random.Random(1), **limits)  # type: ignore[arg-type]


def attached(core: AttachmentTable, party: Party = A1, now: float = 0.0) -> bytes:
    attach_id = core.attach(party, Carrier.GRPC, now)
    core.drain()
    return attach_id


def test_attaching_gives_an_unguessable_id_and_an_event() -> None:
    core = table()
    attach_id = core.attach(A1, Carrier.QUIC, 0.0)
    assert len(attach_id) == 16
    assert core.drain() == [Attached(attach_id, A1, Carrier.QUIC, b"")]
    found = core.find(attach_id)
    assert found is not None
    assert found.state is AttachmentState.ATTACHED


def test_two_nodes_have_two_ids() -> None:
    core = table()
    assert attached(core) != attached(core, C1)
    assert len(core) == 2


def test_same_id_in_another_role_is_another_node() -> None:
    core = table()
    attached(core, A1)
    core.attach(Party(Role.CONNECTOR, "a1", b"k" * 32), Carrier.GRPC, 0.0)
    assert len(core) == 2


def test_node_that_attaches_again_supersedes_itself() -> None:
    core = table()
    former = attached(core)
    latest = core.attach(A1, Carrier.GRPC, 1.0)
    assert core.drain() == [Superseded(former), Attached(latest, A1, Carrier.GRPC, former)]
    assert core.find(former) is None


@pytest.mark.parametrize("late", ["broken", "goodbye", "judged", "timeout"])
def test_late_end_of_a_superseded_attachment_concerns_nobody(late: str) -> None:
    core = table()
    former = attached(core)
    latest = attached(core, now=1.0)
    match late:
        case "broken":
            core.handle_stream_broken(former, 2.0)
        case "goodbye":
            core.handle_goodbye(former, "bye")
        case "judged":
            core.handle_leg_judged(former, "dead", 2.0, is_alive=False)
        case _:
            core.handle_timeout(1e9)
    assert core.drain() == []
    assert core.find(latest) is not None


def test_goodbye_detaches_cleanly_and_once() -> None:
    core = table()
    attach_id = attached(core)
    core.handle_goodbye(attach_id, "shutting down")
    core.handle_goodbye(attach_id, "shutting down")
    assert core.drain() == [Detached(attach_id, A1, is_clean=True, reason="shutting down")]
    assert len(core) == 0


def test_broken_stream_asks_for_the_leg_and_withdraws_what_it_offered() -> None:
    core = table()
    attach_id = attached(core, C1)
    for service in ("web", "ssh", "dns"):
        core.handle_offered(attach_id, service)
    core.handle_withdrawn(attach_id, "ssh")
    core.handle_stream_broken(attach_id, 5.0)
    core.handle_stream_broken(attach_id, 5.5)
    assert core.drain() == [
        ServiceUnreachable(attach_id, "web"),
        ServiceUnreachable(attach_id, "dns"),
        LegJudgementWanted(attach_id),
    ]
    assert core.next_deadline() == 5.0 + JUDGEMENT_LIMIT_S


def test_dead_leg_means_that_the_node_is_lost() -> None:
    core = table()
    attach_id = attached(core)
    core.handle_stream_broken(attach_id, 0.0)
    core.drain()
    core.handle_leg_judged(attach_id, "no_answer", 3.0, is_alive=False)
    assert core.drain() == [Detached(attach_id, A1, is_clean=False, reason="no_answer")]
    assert core.next_deadline() is None


def test_no_verdict_in_time_means_that_the_node_is_lost() -> None:
    core = table()
    attach_id = attached(core)
    core.handle_stream_broken(attach_id, 0.0)
    core.drain()
    core.handle_timeout(JUDGEMENT_LIMIT_S - 0.001)
    assert core.drain() == []
    core.handle_timeout(JUDGEMENT_LIMIT_S)
    assert core.drain() == [Detached(attach_id, A1, is_clean=False, reason="lingered_too_long")]


def test_live_leg_lets_the_node_linger_until_its_limit() -> None:
    core = table()
    attach_id = attached(core)
    core.handle_stream_broken(attach_id, 0.0)
    core.handle_leg_judged(attach_id, "", 1.0, is_alive=True)
    core.drain()
    core.handle_timeout(LINGER_LIMIT_S)
    assert core.drain() == []
    core.handle_timeout(1.0 + LINGER_LIMIT_S)
    assert [type(effect) for effect in core.drain()] == [Detached]


def test_leg_that_dies_while_its_node_lingers_ends_the_wait() -> None:
    core = table()
    attach_id = attached(core)
    core.handle_stream_broken(attach_id, 0.0)
    core.handle_leg_judged(attach_id, "", 1.0, is_alive=True)
    core.drain()
    core.handle_leg_judged(attach_id, "idle_timeout", 20.0, is_alive=False)
    assert core.drain() == [Detached(attach_id, A1, is_clean=False, reason="idle_timeout")]


def test_leg_that_dies_while_signaling_lives_changes_nothing() -> None:
    core = table()
    attach_id = attached(core)
    core.handle_leg_judged(attach_id, "idle_timeout", 20.0, is_alive=False)
    assert core.drain() == []
    assert core.find(attach_id) is not None


def test_lingering_node_that_comes_back_is_not_told_that_it_was_superseded() -> None:
    core = table()
    former = attached(core)
    core.handle_stream_broken(former, 0.0)
    core.drain()
    latest = core.attach(A1, Carrier.GRPC, 2.0)
    assert core.drain() == [Attached(latest, A1, Carrier.GRPC, former)]
    core.handle_timeout(1e9)
    assert core.drain() == []


def test_full_table_refuses_new_nodes_and_lets_known_ones_return() -> None:
    core = table(max_attachments=2)
    attached(core, A1)
    attached(core, C1)
    with pytest.raises(AccessDenied) as caught:
        core.attach(Party(Role.AGENT, "a2", b"m" * 32), Carrier.GRPC, 0.0)
    assert caught.value.reason == "too_many_attachments"
    attached(core, A1)
    assert len(core) == 2


def test_default_bounds_are_those_of_the_settings() -> None:
    from ztna.settings import IntermediateSettings

    limits = IntermediateSettings.model_fields["limits"].default
    assert limits.attached_nodes == attachments.MAX_ATTACHMENTS
    assert limits.frames_per_second == attachments.FRAMES_PER_SECOND


def test_frames_beyond_the_rate_are_not_admitted() -> None:
    core = table(frames_per_second=10.0)
    attach_id = attached(core)
    admitted = [core.admit_frame(attach_id, 0.0) for _ in range(25)]
    assert admitted == [True] * int(10 * FRAME_BURST_S) + [False] * 5
    assert core.admit_frame(attach_id, 0.1)
    assert not core.admit_frame(b"?" * 16, 0.1)


def test_services_noted_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "MAX_SERVICES_NOTED", 3)
    core = table()
    attach_id = attached(core, C1)
    for n in range(5):
        core.handle_offered(attach_id, f"s{n}")
    core.handle_offered(b"?" * 16, "nobody")
    core.handle_withdrawn(b"?" * 16, "nobody")
    core.handle_stream_broken(attach_id, 0.0)
    assert sum(isinstance(effect, ServiceUnreachable) for effect in core.drain()) == 3
