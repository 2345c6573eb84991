"""What a session needs to outlive its intermediate: grants that are fresh, and room to show all of them."""

from __future__ import annotations

from typing import Any, Final

import pytest

from actors import resumption, signaling_client
from actors.resumption import GRANTS_PER_SLICE
from tests.simnet.apps import TcpClient
from tests.simnet.world import World
from ztna.signaling.resume import MAX_RESUMED_SESSIONS
from ztna.v1 import grant_pb2, signaling_client_pb2

# More than one slice of grants; and as much of a smaller one, which costs a third.
MANY, FEW, SMALL_SLICE = 60, 20, 10
# A dozen frames for the sessions of the connector, where a real one takes 60 and more in one.
FRAME_BYTES: Final = 4096
GRANT_LIFETIME_S: Final = 60.0
MAX_OFFLINE_S: Final = 60.0


def echoing(world: World, agent_id: str) -> TcpClient:
    """A connection that stays open and answers."""
    return world.tcp_client(agent_id, b"ECHO\n", ends=False, keeps=True)


def ask(world: World, clients: list[TcpClient], word: bytes, limit_s: float) -> None:
    """Every connection still carries bytes both ways."""
    for client in clients:
        assert not client.is_lost
        client.write(word)
    world.run_until(lambda: all(client.received.endswith(word) for client in clients), limit_s, "the echoes")


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signaling_client, "MAX_RESUME_BYTES", FRAME_BYTES)


@pytest.mark.usefixtures("small_frames")
@pytest.mark.parametrize(
    ("first", "count", "slice_size"), [("agents", MANY, GRANTS_PER_SLICE), ("connector", FEW, SMALL_SLICE)]
)
def test_every_session_of_a_busy_connector_outlives_a_restart_of_the_intermediate(
    monkeypatch: pytest.MonkeyPatch, first: str, count: int, slice_size: int
) -> None:
    monkeypatch.setattr(resumption, "GRANTS_PER_SLICE", slice_size)
    assert count > slice_size
    with World(1) as world:
        world.add_intermediate("intermediate-1")
        world.add_connector("connector-1")
        agents = [f"agent-{number}" for number in range(count)]
        for name in agents:
            world.add_agent(name)
        world.start()
        world.wait_ready()
        clients = [echoing(world, name) for name in agents]
        world.run_until(lambda: all(client.stream for client in clients), 5)
        ask(world, clients, b"before", 10)

        world.kill("intermediate-1")
        if first == "agents":
            # Its next attempt comes when the agents have long been back.
            world.run_for(3)
        world.start("intermediate-1")
        ask(world, clients, b"after", 20)
        for name in ("connector-1", agents[0], agents[-1]):
            established = world.log.events("quic_session.session_established", name)
            assert len(established) == (count if name == "connector-1" else 1)
        assert not world.log.events("quic_session.session_closed")
        assert not world.log.events("signaling_client.sessions_not_resumed")
        (attached,) = [
            line
            for line in world.log.events("signaling_service.node_attached", "intermediate-1")
            if line["peer_id"] == "connector-1" and line["resumed_sessions"]
        ]
        assert attached["resumed_sessions"] == count


def renewing(**sections: Any) -> World:
    access = {"grant_lifetime_s": GRANT_LIFETIME_S, "max_offline_s": MAX_OFFLINE_S}
    world = World(1)
    world.add_intermediate("intermediate-1", access=access, **sections)
    world.add_connector("connector-1")
    world.add_agent("agent-1")
    world.start()
    world.wait_ready()
    return world


def test_connection_that_is_older_than_any_grant_outlives_a_restart_of_the_intermediate() -> None:
    with renewing() as world:
        client = echoing(world, "agent-1")
        world.run_until(lambda: client.stream is not None, 5)
        # Nobody connects any more, so nobody shows a grant but for the renewals.
        world.run_for(3 * (GRANT_LIFETIME_S + MAX_OFFLINE_S))
        ask(world, [client], b"before", 5)
        world.kill("intermediate-1")
        world.run_for(5)
        world.start("intermediate-1")
        ask(world, [client], b"after", 20)
        assert not world.log.events("quic_session.session_closed")


def test_session_that_came_back_with_an_expired_grant_is_given_a_fresh_one() -> None:
    with renewing() as world:
        client = echoing(world, "agent-1")
        world.run_until(lambda: client.stream is not None, 5)
        for _ in range(3):
            world.run_for(GRANT_LIFETIME_S / 2)
            world.kill("intermediate-1")
            world.run_for(0.75 * MAX_OFFLINE_S)
            world.start("intermediate-1")
            ask(world, [client], b"after", 40)
        assert not world.log.events("quic_session.session_closed")


def test_most_sessions_that_a_connector_may_have_are_shown_within_the_limit_of_an_attachment() -> None:
    # Grants of the usual size that nobody signed: they are refused later, which is not at issue.
    grant = grant_pb2.SealedGrant(claims=bytes(150), signature=bytes(70), issuer_chain=[bytes(600)])
    with World(1) as world:
        world.add_intermediate("intermediate-1")
        world.add_connector("connector-1")
        world.start("connector-1")
        node = world.daemons["connector-1"].node
        assert node is not None
        for number in range(MAX_RESUMED_SESSIONS):
            node.router.emit(
                signaling_client_pb2.KeepResumable(
                    intermediate_id="intermediate-1", session_id=number.to_bytes(16, "big"), grant=grant
                )
            )
        world.run_for(1)
        world.start("intermediate-1")
        world.wait_ready()
        (attached,) = world.log.events("signaling_service.node_attached", "intermediate-1")
        assert attached["resumed_sessions"] == MAX_RESUMED_SESSIONS
        world.run_for(5)
        repeated = world.log.events("session_manager.resume_refused_repeated")
        lines = world.log.events("session_manager.resume_refused")
        assert len(lines) + sum(line["count"] for line in repeated) == MAX_RESUMED_SESSIONS
        assert {line["peer"] for line in lines} == {"connector 'connector-1'"}
        assert not world.log.events("signaling_client.detached", "connector-1")[1:]
