"""What sessions feel when direct paths come, die and return: whole daemons on a virtual clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import pytest

from actors.child_group import ChildState
from actors.signaling_client import AgentSignalingClient
from tests.simnet.apps import TcpClient, content, content_digest
from tests.simnet.link import LinkConfig, Packet
from tests.simnet.nat import PORT_RESTRICTED, Nat
from tests.simnet.test_crashes import CrashingWorld
from tests.simnet.test_daemons import download, finish, held
from tests.simnet.test_direct import is_direct, path_of
from tests.simnet.world import INSIDES, World
from ztna.access.identity import Role
from ztna.ice.hole_punch import GENERATION_BURST
from ztna.v1 import hole_punch_pb2, path_manager_pb2, session_table_pb2, types_pb2

SIZE: Final = 750_000
# A link of 1 Mbit/s, so that a download takes seconds with few packets, and the path changes in its middle.
SLOW: Final = LinkConfig(latency_s=0.02, rate_bps=1_000_000)
RELAYED_RTT_S: Final = 0.08
STALL_LIMIT_S: Final = 1.0
BOTH: Final = ("agent-1", "connector-1")


def served(world: World) -> World:
    """Two nodes behind port-restricted NATs, and a session between them."""
    world.add_intermediate("intermediate-1", stun={"alternate_port": 4435})
    world.add_connector("connector-1", nat=PORT_RESTRICTED)
    world.add_agent("agent-1", nat=PORT_RESTRICTED)
    world.start()
    world.wait_ready()
    finish(world, download(world, 1000))
    return world


def deployed(world: World | None = None) -> World:
    """The same, with a direct path between them."""
    world = served(world or World(1, SLOW, policy="prefer_direct"))
    world.run_until(lambda: is_direct(world), 5, "a direct path at both ends")
    return world


def cut(world: World, *directions: tuple[str, bool]) -> None:
    """Let NATs drop what travels directly: `(node, is_outbound)` each."""
    relay = world.daemons["intermediate-1"].address

    def drops(node: str) -> Callable[[Packet, bool], bool]:
        def judge(packet: Packet, is_outbound: bool) -> bool:
            other = packet.destination if is_outbound else packet.source
            is_service = other.host.startswith("10.1.0.")
            return other.host != relay and not is_service and (node, is_outbound) in directions

        return judge

    for node, nat in world.nats.items():
        nat.drops = drops(node)


def is_relayed(world: World) -> bool:
    return all(path_of(world, node) == types_pb2.PATH_KIND_RELAY for node in BOTH)


class StallMeter:
    """The longest time without a byte at whoever receives."""

    def __init__(self, world: World, client: TcpClient, size: Callable[[], int] | None = None) -> None:
        """`size` counts the bytes that came, at the client by default."""
        self._world, self._client = world, client
        self._count = size or (lambda: client.size)
        self._size, self._since = self._count(), world.now
        self.longest_s = 0.0

    def look(self) -> None:
        if self._count() != self._size or self._client.is_lost:
            self._size, self._since = self._count(), self._world.now
        self.longest_s = max(self.longest_s, self._world.now - self._since)


def run(world: World, seconds: float, meter: StallMeter) -> None:
    end = world.now + seconds
    while world.now < end:
        world.run_for(0.01)
        meter.look()


@pytest.mark.parametrize(
    "directions",
    [
        pytest.param([("agent-1", True), ("agent-1", False)], id="both-ways"),
        pytest.param([("agent-1", True)], id="from-the-agent"),
        pytest.param([("agent-1", False)], id="to-the-agent"),
    ],
)
def test_download_falls_back_when_its_path_is_cut_and_returns_when_it_heals(
    directions: list[tuple[str, bool]],
) -> None:
    with deployed() as world:
        client = download(world, SIZE)
        meter = StallMeter(world, client)
        run(world, 1.0, meter)
        assert 0 < client.size < SIZE
        cut(world, *directions)
        run(world, 3.0, meter)
        assert is_relayed(world), "both ends are on the relay"
        assert meter.longest_s <= STALL_LIMIT_S + 2 * RELAYED_RTT_S
        cut(world)
        finish(world, client, 60)
        assert client.digest == content_digest(SIZE)
        world.run_until(lambda: is_direct(world), 30, "the healed path is taken again")
        assert not world.log.events("quic_session.session_closed")


@pytest.mark.parametrize(
    "directions",
    [
        pytest.param([("connector-1", True), ("connector-1", False)], id="both-ways"),
        pytest.param([("connector-1", True)], id="from-the-connector"),
        pytest.param([("connector-1", False)], id="to-the-connector"),
    ],
)
def test_upload_falls_back_when_its_path_is_cut(directions: list[tuple[str, bool]]) -> None:
    with deployed() as world:
        client = world.tcp_client("agent-1", b"UP\n", upload=content(SIZE), keeps=True)
        world.run_for(1.0)
        cut(world, *directions)
        world.run_for(3.0)
        assert is_relayed(world), "both ends are on the relay"
        world.run_until(lambda: client.is_lost, 60, "the end of the upload")
        assert client.error is None
        assert client.received.decode().split() == [str(SIZE), content_digest(SIZE)]


def test_udp_service_loses_and_doubles_nothing_when_the_direct_path_is_taken() -> None:
    world = World(1, policy="prefer_direct")
    world.add_intermediate("intermediate-1", stun={"alternate_port": 4435})
    world.add_connector("connector-1", nat=PORT_RESTRICTED)
    world.add_agent("agent-1", nat=PORT_RESTRICTED)
    with world:
        # Or it would be found before the first datagram has come back.
        cut(world, *itertools.product(BOTH, [True, False]))
        world.start()
        world.wait_ready()
        udp = world.udp_client("agent-1")
        udp.send(b"first")
        world.run_until(lambda: bool(udp.received), 5, "the flow is open")
        numbers = itertools.count()
        sent = []

        def send(seconds: float) -> None:
            end = world.now + seconds
            while world.now < end:
                sent.append(next(numbers).to_bytes(4, "big"))
                udp.send(sent[-1])
                world.run_for(0.004)

        send(1.0)
        assert is_relayed(world), "both ends are on the relay"
        assert udp.received[1:], "the service answers on it"
        cut(world)
        restart(world)
        send(3.0)
        assert is_direct(world)
        world.run_for(1.0)
        assert sorted(udp.received[1:]) == sent


def restart(world: World, *names: str) -> None:
    """As `ztna restart` does, at these nodes; at both, if none is named."""
    for name in names or BOTH:
        node = world.daemons[name].node
        assert node is not None
        for session_id in world.daemons[name].facts.established:
            node.router.emit(hole_punch_pb2.RestartIce(session_id=session_id, reason="operator"))


def test_rebinding_of_a_nat_costs_a_moment_and_a_new_direct_path_is_found() -> None:
    with deployed() as world:
        client = download(world, SIZE)
        meter = StallMeter(world, client)
        run(world, 1.0, meter)
        world.nats["connector-1"].rebind()
        run(world, 4.0, meter)
        assert meter.longest_s <= STALL_LIMIT_S + 2 * RELAYED_RTT_S
        finish(world, client, 60)
        assert client.digest == content_digest(SIZE)
        world.run_until(lambda: is_direct(world), 45, "a new direct path")


@pytest.mark.parametrize("after_s", [0.8, 1.2, 1.6, 2.0, 2.4, 2.8])
@pytest.mark.parametrize("task", ["download", "upload"])
def test_rebinding_at_the_receiver_costs_no_more_than_a_cut(task: str, after_s: float) -> None:
    """It sends nothing but acknowledgements: neither its leg nor the direct path learns the new mapping."""
    size = 1_500_000
    with deployed() as world:
        is_upload = task == "upload"
        if is_upload:
            client = world.tcp_client("agent-1", b"UP\n", upload=content(size), keeps=True)
        else:
            client = download(world, size)
        world.run_for(after_s)
        received = world.tcp.received if is_upload else client.size
        assert 0 < received < size
        meter = StallMeter(world, client, (lambda: world.tcp.received) if is_upload else None)
        world.nats["connector-1" if is_upload else "agent-1"].rebind()
        run(world, 3.5, meter)
        assert meter.longest_s <= STALL_LIMIT_S
        world.run_until(lambda: client.is_lost, 60, "the end of the transfer")
        assert client.error is None
        if is_upload:
            assert client.received.decode().split() == [str(size), content_digest(size)]
        else:
            assert client.digest == content_digest(size)


@pytest.mark.parametrize("task", ["download", "upload"])
def test_both_ends_give_a_cut_path_up_within_the_same_second(task: str) -> None:
    with deployed() as world:
        if task == "download":
            client = download(world, SIZE)
        else:
            client = world.tcp_client("agent-1", b"UP\n", upload=content(SIZE))
        world.run_for(1.0)
        cut(world, ("agent-1", True), ("agent-1", False))
        world.run_until(lambda: is_relayed(world), STALL_LIMIT_S + 4 * RELAYED_RTT_S, "both on the relay")
        world.run_until(lambda: client.is_lost, 60, "the end of the transfer")


def test_application_that_pauses_keeps_its_path_and_doubles_nothing() -> None:
    with deployed() as world:
        udp = world.udp_client("agent-1")
        udp.send(b"first")
        world.run_until(lambda: bool(udp.received), 5, "the flow is open")
        world.run_for(3.0)
        selections = len(world.log.events("path_manager.path_selected"))
        for _ in range(8):
            for _ in range(40):
                udp.send(b"packet")
                world.run_for(0.01)
            world.run_for(0.7)
        assert not world.log.events("quic_session.path_suspected")
        assert len(world.log.events("path_manager.path_selected")) == selections
        assert is_direct(world)


def test_intermediate_that_dies_and_returns_is_not_felt_on_a_direct_path() -> None:
    with deployed() as world:
        client = download(world, SIZE)
        meter = StallMeter(world, client)
        run(world, 0.5, meter)
        selections = len(world.log.events("path_manager.path_selected"))
        world.kill("intermediate-1")
        run(world, 5.0, meter)
        world.start("intermediate-1")
        run(world, 5.0, meter)
        finish(world, client, 60)
        assert client.digest == content_digest(SIZE)
        assert meter.longest_s < 0.5
        later = world.log.events("path_manager.path_selected")[selections:]
        assert {line["path"] for line in later} <= {"direct"}, "no fall-back is shown"
        assert is_direct(world)


def test_agent_that_moves_to_another_uplink_goes_on_and_direct_again() -> None:
    with deployed() as world:
        client = download(world, SIZE)
        meter = StallMeter(world, client)
        run(world, 1.0, meter)
        other = Nat(world.network, "agent-1-other-nat", "203.0.113.200", PORT_RESTRICTED)
        host = world.daemons["agent-1"].host
        address = f"{INSIDES[Role.AGENT]}.77"
        other.add_inside(address, host)
        host.uplink = other
        host.change_addresses(address)
        run(world, 4.0, meter)
        assert meter.longest_s <= 2.0
        finish(world, client, 60)
        assert client.digest == content_digest(SIZE)
        world.run_until(lambda: is_direct(world), 45, "a direct path from there")
        assert not world.log.events("quic_session.session_closed")


def test_restart_that_the_peer_refuses_is_made_later_and_costs_no_direct_path() -> None:
    with deployed() as world:
        selections = len(world.log.events("path_manager.path_selected"))
        # One of the burst is spent. The latest of these restarts is refused.
        for _ in range(int(GENERATION_BURST)):
            restart(world, "agent-1")
            world.run_for(1.1)
        search = world.daemons["agent-1"].facts.latest[hole_punch_pb2.HolePunchChanged]
        assert isinstance(search, hole_punch_pb2.HolePunchChanged)
        assert search.reason == "signaling_rate_limited"
        world.run_until(
            lambda: all(
                world.daemons[name].facts.latest[hole_punch_pb2.HolePunchFinished].generation  # type: ignore[attr-defined]
                > search.generation
                for name in BOTH
            ),
            10,
            "the search that was refused is made after all",
        )
        # Longer than former credentials live, and than three checks take to be missed.
        world.run_for(90)
        assert is_direct(world)
        assert len(world.log.events("path_manager.path_selected")) == selections


def test_idle_session_stays_direct_behind_nats_with_short_mappings() -> None:
    with deployed() as world:
        selections = len(world.log.events("path_manager.path_selected"))
        world.run_for(180)
        assert len(world.log.events("path_manager.path_selected")) == selections
        client = download(world, 10_000)
        finish(world, client, 5)
        assert is_direct(world)


@pytest.mark.parametrize("daemon", BOTH)
@pytest.mark.parametrize("actor", ["path_manager", "keepalive", "checklist", "hole_punch"])
def test_crash_in_the_search_for_direct_paths_costs_no_session(daemon: str, actor: str) -> None:
    world = CrashingWorld(1, SLOW, policy="prefer_direct")
    with deployed(world):
        client = download(world, SIZE)
        world.run_for(1.0)
        (session_id,) = world.daemons[daemon].facts.established
        world.crash(daemon, f"{actor}/{session_id.hex()}")
        finish(world, client, 60)
        assert client.digest == content_digest(SIZE)
        world.run_until(lambda: is_direct(world), 60, "a direct path again")
        node = world.daemons[daemon].node
        assert node is not None
        assert all(child.state is ChildState.RUNNING for child in node.supervisor.children())


@pytest.mark.parametrize("daemon", BOTH)
def test_crash_of_the_candidate_gatherer_costs_nothing(daemon: str) -> None:
    world = CrashingWorld(1, SLOW, policy="prefer_direct")
    with deployed(world):
        client = download(world, SIZE)
        world.run_for(1.0)
        world.crash(daemon, "candidate_gatherer")
        finish(world, client, 60)
        assert client.digest == content_digest(SIZE)
        restart(world)
        world.run_until(
            lambda: all(
                world.daemons[name].facts.latest[hole_punch_pb2.HolePunchFinished].generation > 1  # type: ignore[attr-defined]
                for name in BOTH
            ),
            20,
            "another search found a direct path",
        )
        world.run_until(lambda: is_direct(world), 5, "the direct path")


def test_policy_of_the_lowest_round_trip_time_moves_both_ends_to_whichever_path_is_quicker() -> None:
    sites = "agent-1-nat", "connector-1-nat"
    with served(World(1, policy="lowest_rtt")) as world:
        # Half of the relay's, since its packets cross two links.
        world.run_until(lambda: is_direct(world), 10, "the shorter path at both ends")
        client = held(world)
        world.network.set_link(*sites, LinkConfig(latency_s=0.12))
        world.run_until(lambda: is_relayed(world), 120, "the relay at both ends")
        world.network.set_link(*sites, LinkConfig(latency_s=0.005))
        world.run_until(lambda: is_direct(world), 600, "the direct path again at both ends")
        assert not client.is_lost
        reasons = [event["reason"] for event in world.log.events("path_manager.path_selected")]
        assert set(reasons) <= {"relay_up", "nominated", "rtt"}, reasons


def test_every_selection_tells_why() -> None:
    with deployed() as world:
        for name in BOTH:
            selected = world.daemons[name].facts.latest[path_manager_pb2.PathSelected]
            assert isinstance(selected, path_manager_pb2.PathSelected)
            assert selected.reason
            assert selected.standby_intermediate_id == "intermediate-1"


REPLACED_LIMIT_S: Final = 6.0
"""The end of the direct path, three probes of QUIC that double, the next report of them, and a handshake."""


@pytest.mark.parametrize("policy", ["prefer_direct", "relay_only"])
def test_session_whose_end_is_lost_with_its_paths_is_replaced_once_it_is_used(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy = deployed if policy == "prefer_direct" else served
    with deploy(World(1, SLOW, policy=policy)) as world:
        world.run_for(1.0)  # all is acknowledged
        established = {name: world.daemons[name].facts.established for name in BOTH}
        (former,) = established["agent-1"]
        # The connector's farewell is lost on both paths, and so is the word of the intermediate.
        monkeypatch.setattr(AgentSignalingClient, "_session_ended", lambda *_: None)
        world.nats["connector-1"].drops = lambda _packet, is_outbound: is_outbound
        connector = world.daemons["connector-1"].node
        assert connector is not None
        connector.router.emit(session_table_pb2.CloseSessionRequested(session_id=former, reason="lost"))
        world.run_for(0.5)
        world.nats["connector-1"].drops = lambda _packet, _is_outbound: False
        world.run_for(5.0)
        assert [former in established[name] for name in BOTH] == [True, False]
        client = download(world, 1000)
        world.run_until(lambda: client.is_lost, REPLACED_LIMIT_S, "the reset of who was given to it")
        finish(world, download(world, 1000), 1)
        assert former not in established["agent-1"]
