"""Any one actor of a running daemon fails: the daemon goes on, and nothing of before is left behind."""

from __future__ import annotations

from typing import Final

import pytest

from actors.child_group import ChildState
from tests.simnet.apps import TcpClient, content_digest
from tests.simnet.test_daemons import download, finish, held
from tests.simnet.watch import InvariantError
from tests.simnet.world import World, services_active
from ztna.session.connector_table import PEER_LOST_PATIENCE_S
from ztna.v1 import quic_relay_pb2, registry_pb2, session_manager_pb2

# For a new attachment, a new leg and whatever waits for them: several back-offs, each after an unclean loss.
RECOVERY_LIMIT_S: Final = 12.0
# For whoever was at the other end of what is gone: an intermediate gives a silent leg up after 15 s.
CLEAN_UP_LIMIT_S: Final = PEER_LOST_PATIENCE_S + 20.0

NODE_ACTORS: Final = ("status_board", "udp_socket", "relay_leg/intermediate-1", "session_table")
CRASHES: Final = [
    *(
        (daemon, actor)
        for daemon, service in (("agent-1", "service_port"), ("connector-1", "service_backend"))
        for actor in (
            *NODE_ACTORS,
            service,
            "signaling_client/intermediate-1",
            "intermediate_selector",
        )
    ),
    *(
        ("intermediate-1", actor)
        for actor in (
            "status_board",
            "udp_socket",
            "quic_relay",
            "registry",
            "session_manager",
            "signaling_service",
        )
    ),
]
# At a node: whatever else is restarted, a session lives on with its connections. All at the intermediate are.
HARMLESS: Final = {"status_board", "signaling_client/intermediate-1", "intermediate_selector"}


class CrashingWorld(World):
    """A world whose daemons may lose actors, provided that the supervisor starts them again."""

    def check(self) -> None:
        """Hold everybody to the same rules but for failures and restarts."""
        self.clock.check()
        for daemon in self.daemons.values():
            if daemon.node is not None and daemon.node.give_up_reason:
                raise InvariantError(f"{daemon.id} gave up: {daemon.node.give_up_reason}")

    def crash(self, node_id: str, actor: str) -> None:
        """Let an actor fail on a message that it does not know."""
        node = self.daemons[node_id].node
        assert node is not None
        failed = node.directory.find(actor)
        assert failed is not None
        failed.tell("a message of no known type")
        self.network.run_until(lambda: bool(self.log.failures), 1, "the failure")
        self.log.failures.clear()
        self.network.run_until(lambda: node.directory.find(actor) not in {None, failed}, 5, "the restart")

    def are_running(self) -> bool:
        """Whether every actor of every daemon runs."""
        return all(
            child.state is ChildState.RUNNING
            for daemon in self.daemons.values()
            if daemon.node is not None
            for child in daemon.node.supervisor.children()
        )


def crashing() -> CrashingWorld:
    world = CrashingWorld(1)
    world.add_intermediate("intermediate-1")
    world.add_connector("connector-1")
    world.add_agent("agent-1")
    world.start()
    world.wait_ready()
    return world


def scopes(world: World, node_id: str) -> list[str]:
    node = world.daemons[node_id].node
    assert node is not None
    return node.supervisor.scopes()


def sessions_at_the_intermediate(world: World) -> tuple[int, int]:
    """Sessions that its manager and its relay report."""
    latest = world.daemons["intermediate-1"].facts.latest
    managed = latest.get(session_manager_pb2.SessionsStatistics)
    relayed = latest.get(quic_relay_pb2.RelayStatistics)
    assert isinstance(managed, session_manager_pb2.SessionsStatistics)
    assert isinstance(relayed, quic_relay_pb2.RelayStatistics)
    return len(managed.sessions), len(relayed.sessions)


def offering_connectors(world: World) -> set[str]:
    """Connectors that the intermediate would send an agent to."""
    registered = world.daemons["intermediate-1"].facts.latest[registry_pb2.RegistryStatistics]
    assert isinstance(registered, registry_pb2.RegistryStatistics)
    return {connector for service in registered.services for connector in service.connectors}


@pytest.mark.parametrize(("daemon", "actor"), CRASHES, ids=[f"{d}-{a}" for d, a in CRASHES])
def test_crash_of_an_actor_leaves_a_daemon_that_serves_and_nothing_orphaned(daemon: str, actor: str) -> None:
    with crashing() as world:
        client = held(world)
        udp = world.udp_client("agent-1")
        udp.send(b"before")
        world.run_until(lambda: bool(udp.received), 5)
        crashed_at = world.now
        world.crash(daemon, actor)

        served_after_s = serve(world)
        print(f"{daemon} {actor}: serves again {served_after_s:.2f} s after the crash")  # noqa: T201 - a figure for people
        assert served_after_s <= RECOVERY_LIMIT_S
        if actor in HARMLESS or daemon == "intermediate-1":
            assert not client.is_lost
            client.end()
            finish(world, client)
        else:
            world.run_until(
                lambda: client.is_lost, crashed_at + CLEAN_UP_LIMIT_S - world.now, "the client's reset"
            )
            assert isinstance(client.error, ConnectionResetError)
        udp.send(b"after")
        world.run_until(lambda: b"after" in udp.received, 5, "an answer over a new flow")

        world.run_until(
            lambda: (
                world.are_running()
                and len(scopes(world, "agent-1")) == len(scopes(world, "connector-1")) == 1
                and scopes(world, "agent-1") == scopes(world, "connector-1")
                and world.tcp.open_connections == 0
            ),
            CLEAN_UP_LIMIT_S,
            "one session, the same at both ends, and no connection without a client",
        )
        world.run_for(3)
        assert sessions_at_the_intermediate(world) == (1, 1)
        assert offering_connectors(world) == {"connector-1"}
        assert services_active([world.daemons["agent-1"]]) == 1  # the UDP flow
        assert services_active([world.daemons["connector-1"]]) == 1
        assert not [line for line in world.log.failures if line["node"] != daemon]


def serve(world: CrashingWorld) -> float:
    """Clients come until one is served; returns the seconds that took."""
    started = world.now
    while world.now - started < RECOVERY_LIMIT_S:
        client = download(world, 1000)
        world.run_until(lambda client=client: client.is_lost, 20, "the client's end")  # type: ignore[misc]
        if is_served(client):
            return world.now - started
        world.run_for(0.2)
    raise AssertionError(f"no client was served within {RECOVERY_LIMIT_S} s")


def is_served(client: TcpClient) -> bool:
    return client.error is None and client.size == 1000 and client.digest == content_digest(1000)


@pytest.mark.parametrize(
    ("daemon", "other"), [("agent-1", "connector-1"), ("connector-1", "agent-1")], ids=["agent", "connector"]
)
def test_crash_of_the_session_table_tells_the_peer_at_once(daemon: str, other: str) -> None:
    with crashing() as world:
        client = held(world)
        world.crash(daemon, "session_table")
        world.run_until(
            lambda: not world.daemons[other].facts.established, 0.5, "the end of the session at the peer"
        )
        (line,) = world.log.events("quic_session.session_closed", other)
        assert line["by"] == "peer"
        world.run_until(lambda: client.is_lost, 0.5, "the client's reset")


@pytest.mark.parametrize("daemon", ["agent-1", "connector-1"])
def test_crash_of_a_session_ends_it_for_both_and_another_one_is_opened(daemon: str) -> None:
    with crashing() as world:
        client = held(world)
        (key,) = scopes(world, "agent-1")
        node = world.daemons[daemon].node
        assert node is not None
        actor = node.directory.find(f"quic_session/{key}")
        assert actor is not None
        actor.tell("a message of no known type")
        world.network.run_until(lambda: client.is_lost, 5, "the client's reset")
        world.log.failures.clear()
        assert serve(world) <= 1
        assert len(scopes(world, "agent-1")) == len(scopes(world, "connector-1")) == 1


@pytest.mark.parametrize("actor", ["quic_relay", "registry", "session_manager", "signaling_service"])
def test_node_that_does_not_come_back_after_a_crash_at_the_intermediate_is_forgotten(actor: str) -> None:
    with crashing() as world:
        world.crash("intermediate-1", actor)
        world.kill("connector-1")
        world.add_connector("connector-2")
        world.start("connector-2")
        world.wait_ready("connector-2")
        assert serve(world) <= RECOVERY_LIMIT_S
        assert offering_connectors(world) == {"connector-2"}
