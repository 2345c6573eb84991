"""Several agents of one connector, all on direct paths: one is idle, one is revoked, one goes on.

The idle session outlives these tests and all others of this folder; then it is looked at.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.netns.nodes import AGENT, CONNECTOR, INTERMEDIATE, UDP_PORT, Nodes, running, short_path
from tests.netns.transfers import Lateness, PacketStream, Transfer
from tools.natlab.cell import DIRECT
from tools.natlab.kinds import Access, Kind
from tools.natlab.plan import Direction, Link, Plan, Site
from ztna.access.identity import Role
from ztna.ice.timing import KEEPALIVE_IDLE_S
from ztna.pki.files import PkiDirectory
from ztna.v1 import control_pb2

LINK = Link.both(Direction(delay_ms=20, rate_mbit=10))
NAT = Access(Kind.EIM_APDF)
# The shortest that NATs of today are known for; RFC 4787 §4.3 asks for two minutes.
MAPPING_LIFETIME_S = 30
PLAN = Plan(tuple(Site(name, NAT, LINK, mapping_lifetime_s=MAPPING_LIFETIME_S) for name in "acdb"))
REVOKED, OTHER = "agent-c", "agent-d"
PIECE = 1 << 18
# Six lives of a mapping.
IDLE_S = 180.0
PACKETS_PER_S = 200
# Each session looks at its peer again once a second; then its end has to reach the other side, over a full
# queue.
CLOSED_LIMIT_S = 2.0
WAKE_UPS = 8
Report = Callable[[str, str], None]


@dataclass
class Idler:
    """A connection of the first agent that stands still, and its session since then."""

    transfer: Transfer
    since: list[control_pb2.SessionStatus]


def both_ends(nodes: Nodes, agent: str) -> list[control_pb2.SessionStatus]:
    """The session of an agent, as the agent and the connector see it."""
    return [nodes.session(agent), nodes.session_at_connector(agent)]


@pytest.fixture(scope="package")
def nodes() -> Iterator[Nodes]:
    """One lab with three agents, whose keys are the defaults."""
    with short_path() as directory, running(PLAN, directory, others=["c", "d"]) as made:
        yield made


@pytest.fixture(scope="package")
def idler(nodes: Nodes) -> Iterator[Idler]:
    """It moved some bytes over the direct path, and nothing since."""
    with nodes.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        wait_direct(nodes, AGENT)
        transfer.meter.wait_for_more(PIECE)
        transfer.pause()
        yield Idler(transfer, both_ends(nodes, AGENT))


def wait_direct(nodes: Nodes, agent: str) -> None:
    """Wait until both ends of an agent's session are on the direct path."""
    nodes.wait_until(lambda session: session.path == DIRECT, "direct", agent)
    deadline = time.monotonic() + 60.0
    while nodes.session_at_connector(agent).path != DIRECT:
        assert time.monotonic() < deadline, nodes.logs()


def last_time_of(nodes: Nodes, node: str, event: str) -> float:
    """When a daemon last logged this, in seconds; all of them have the clock of this machine."""
    return dt.datetime.fromisoformat(nodes.events(node, event)[-1]["timestamp"]).timestamp()


@pytest.mark.usefixtures("idler")
def test_revocation_ends_a_direct_session_within_a_second_or_two_and_costs_others_nothing(
    nodes: Nodes, lateness: Lateness, report_figure: Report
) -> None:
    with nodes.transfer(host="d") as other, nodes.transfer(host="c") as revoked:
        for agent in (REVOKED, OTHER):
            wait_direct(nodes, agent)
        for transfer in (revoked, other):
            transfer.meter.wait_for_more(PIECE)
        selections = len(nodes.events(OTHER, "path_manager.path_selected"))
        # A reload without news is none for whoever is on a direct path.
        for node in (INTERMEDIATE, CONNECTOR, OTHER):
            nodes.reload(node)
        PkiDirectory(nodes.deployment.directory / "pki").revoke(time.time(), role=Role.AGENT, node_id=REVOKED)
        lateness.begin()
        nodes.reload(CONNECTOR)
        size = revoked.meter.size
        revoked.wait_for_reset()
        later_bytes = revoked.meter.size - size
        other.meter.wait_for_more(2 * PIECE)
        room_s, other_size = WAKE_UPS * lateness.longest_s, other.finish()
    nodes.wait_until(lambda session: session.session_id == b"", "without a session", REVOKED)
    assert nodes.session_at_connector(REVOKED).session_id == b""
    assert len(nodes.events(OTHER, "path_manager.path_selected")) == selections
    reloaded_at = last_time_of(nodes, CONNECTOR, "daemon.reloaded")
    closed_s = [
        last_time_of(nodes, node, "quic_session.session_closed") - reloaded_at
        for node in (CONNECTOR, REVOKED)
    ]
    assert max(closed_s) < CLOSED_LIMIT_S + room_s
    report_figure(
        "revocation on the direct path",
        f"over at both ends {max(closed_s):.2f} s after the reload, {later_bytes} bytes later; another "
        f"download of {other_size} bytes unchanged",
    )


@pytest.mark.last
@pytest.mark.timeout(2 * IDLE_S)
def test_session_that_idles_for_three_minutes_stays_direct_and_loses_nothing(
    nodes: Nodes, idler: Idler, report_figure: Report
) -> None:
    goal_s = idler.since[0].age_s + IDLE_S
    nodes.wait_until(
        lambda session: session.age_s >= goal_s, "idle for long enough", AGENT, limit_s=1.5 * IDLE_S
    )
    idle_s = nodes.session(AGENT).age_s - idler.since[0].age_s
    for before, session in zip(idler.since, both_ends(nodes, AGENT), strict=True):
        assert session.session_id == before.session_id
        assert session.path == DIRECT
        assert session.direct_path.switches == before.direct_path.switches
        assert session.direct_path.fail_overs == 0
    idler.transfer.go_on()
    idler.transfer.meter.wait_for_more(PIECE)
    size = idler.transfer.finish()
    with PacketStream(nodes.lab, UDP_PORT, PACKETS_PER_S) as stream:
        stream.wait_for_echo(PACKETS_PER_S)
        stream.stop()
        stream.wait_for_last_echo()
    assert sorted(stream.echoed) == list(range(len(stream.sent_at)))
    session = nodes.session(AGENT)
    assert session.path == DIRECT
    assert session.direct_path.switches == idler.since[0].direct_path.switches
    report_figure(
        f"idle for {idle_s:.0f} s, checked every {KEEPALIVE_IDLE_S:.0f} s",
        f"direct all the time; {size} bytes and {len(stream.sent_at)} UDP packets, 0 lost",
    )
