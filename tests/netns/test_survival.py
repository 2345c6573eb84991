"""Transfers and packets while paths are cut, NATs forget, uplinks change and the intermediate dies.

Stalls are measured and shown. A machine with other work is late by itself, so each limit leaves room for what
the same transfer does while nobody disturbs it, and for how late this process was woken in the meantime.
With `--lab-download-mb N` each transfer has that size, and its limits leave no room: for a quiet machine.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.netns.nodes import AGENT, BOTH, INTERMEDIATE, UDP_PORT, Nodes, running, short_path
from tests.netns.transfers import Lateness, PacketStream, Transfer
from tools.natlab.cell import DIRECT, RELAY
from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Cut, Handover, Lab
from tools.natlab.plan import Direction, Link, Plan, Site, Uplink
from ztna.v1 import hole_punch_pb2

# A transfer lasts as long as a test wants, so a slow link costs no time and little work.
LINK = Link.both(Direction(delay_ms=20, rate_mbit=10))
NAT = Access(Kind.EIM_APDF)
UPLINK = Uplink(NAT, LINK)
PLAN = Plan((Site("a", NAT, LINK, second=UPLINK), Site("b", NAT, LINK, second=UPLINK)))
# The least that IPv6 asks of a link (RFC 8200 §5), and what our largest packet fits into (docs/wire.md).
SMALLEST_MTU = 1280
NARROW = Link.both(Direction(delay_ms=20, rate_mbit=3), SMALLEST_MTU)
# A home router beside one that lets strangers in: whoever changes its address can tell the peer directly.
NARROW_PLAN = Plan((Site("a", Access(Kind.EIM_EIF), NARROW), Site("b", NAT, LINK)))
PIECE = 1 << 18
# Longer than packets travel over both paths after a change: a disturbance then is not felt.
SETTLING = 6 * PIECE
# Undisturbed: what this shows is how even the transfer is on this machine now.
STRETCH = 3 * PIECE
# What a disturbance may cost on a machine that is never late (docs/reliability.md).
CUT_LIMIT_S, CUT_LIMIT_ROUND_TRIPS = 1.0, 4
REBINDING_LIMIT_S = 1.0
HANDOVER_LIMIT_S = 2.0
# The intermediate carries nothing while the path is direct. What is left is what the transfer does by itself:
# a packet that a full queue dropped holds up the rest for a round trip, which that queue makes 200 ms long.
UNFELT_LIMIT_S = 0.5
# A pause is over when about as many wake-ups in a row, of three daemons and this process, have happened.
WAKE_UPS = 8
# Twice what 200 MB take over this link.
DOWNLOAD_LIMIT_S = 400.0
PACKETS_PER_S = 500
# A relay gives up what has waited for 100 ms (`relay.queue_ms`). Where the machine stood still for half of
# it, a lost packet says nothing of the change of paths, and the change is made again.
STANDSTILL_S = 0.05
UPGRADES = 3
Report = Callable[[str, str], None]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """One lab and one session for all tests; each leaves it on a direct path."""
    with short_path() as directory, running(PLAN, directory, agent={"connect": "eager"}) as made:
        yield made


@pytest.fixture(scope="module")
def narrow() -> Iterator[Nodes]:
    """Another lab, of which site `a` has a narrow link."""
    with short_path() as directory, running(NARROW_PLAN, directory, agent={"connect": "eager"}) as made:
        made.wait_direct()
        yield made


@pytest.fixture
def direct(nodes: Nodes) -> Nodes:
    """The same, on a direct path, also if a test before failed in a cut."""
    nodes.lab.heal("a")
    nodes.wait_direct()
    return nodes


@dataclass
class Stalls:
    """What disturbances of one transfer cost, and what they may; a stall beyond its limit fails `check`."""

    nodes: Nodes
    transfer: Transfer
    lateness: Lateness
    size_mb: int = 0
    found: dict[str, float] = field(default_factory=dict)
    excesses: list[str] = field(default_factory=list)
    _steady_s: float = 0.0

    def begin(self) -> None:
        """Measure how the transfer is while nobody disturbs it; then a stall counts."""
        meter = self.transfer.meter
        meter.wait_for_more(SETTLING)
        meter.begin()
        self.lateness.begin()
        meter.wait_for_more(STRETCH)
        self._steady_s = meter.longest_s
        meter.begin()

    def end(self, name: str, limit_s: float) -> None:
        """The transfer goes on: note its longest stall since `begin`."""
        self.transfer.meter.wait_for_more(PIECE)
        stall_s = self.found[name] = self.transfer.meter.longest_s
        room_s = WAKE_UPS * max(self._steady_s, self.lateness.longest_s)
        if stall_s > limit_s + (0.0 if self.size_mb else room_s):
            self.excesses.append(f"{name} {stall_s:.2f} s, allowed {limit_s:.2f} s, room {room_s:.2f} s")

    def cut(self, name: str, cut: Cut) -> None:
        """Cut the direct path; the transfer goes on over the relay."""
        self.begin()
        limit_s = max(CUT_LIMIT_S, CUT_LIMIT_ROUND_TRIPS * self.nodes.session(AGENT).rtt_ms / 1e3)
        self.nodes.lab.cut("a", cut, towards="b")
        self.nodes.wait_relayed()
        self.end(name, limit_s)

    def search(self, name: str, limit_s: float, disturb: Callable[[], None]) -> None:
        """Disturb the direct path; another one carries the transfer then."""
        self.begin()
        before = self.nodes.session(AGENT).direct_path.generation
        disturb()
        # Not the end of any search: between two uplinks there may be no path at all for a moment.
        self.nodes.wait_until(
            lambda session: session.path == DIRECT and session.direct_path.generation > before,
            "on another direct path",
        )
        self.end(name, limit_s)

    def rebind(self) -> None:
        """The connector's NAT forgets."""
        self.search("rebinding", REBINDING_LIMIT_S, lambda: self.nodes.lab.rebind("b"))

    def hand_over(self, site: str, how: Handover) -> None:
        """A site changes its uplink."""
        name = f"{how.value} hand-over of {site}"
        self.search(name, HANDOVER_LIMIT_S, lambda: self.nodes.lab.handover(site, how))

    def restart_intermediate(self) -> None:
        """Kill the intermediate while the path is direct, and start it again; nobody falls back."""
        self.begin()
        selections = {node: len(selected_paths(self.nodes, node)) for node in BOTH}
        self.nodes.deployment.kill(INTERMEDIATE)
        self.transfer.meter.wait_for_more(8 * PIECE)
        self.nodes.deployment.start(INTERMEDIATE)
        self.nodes.deployment.wait_ready()
        self.end("death of the intermediate", UNFELT_LIMIT_S)
        for node, count in selections.items():
            assert set(selected_paths(self.nodes, node)[count:]) <= {DIRECT}, "no fall-back is shown"

    def finish(self) -> str:
        """End the transfer at its size, and fail if a stall was too long; returns what was measured."""
        self.transfer.meter.wait_for_size(self.size_mb * 1_000_000, DOWNLOAD_LIMIT_S)
        size = self.transfer.finish()
        assert not self.excesses, self.excesses
        stalls = ", ".join(f"{name} {stall_s:.2f} s" for name, stall_s in self.found.items())
        return f"{stalls}; {size} bytes unchanged"


Watch = Callable[[Nodes, Transfer], Stalls]


@pytest.fixture
def watch(lateness: Lateness, request: pytest.FixtureRequest) -> Watch:
    """Look after the stalls of a transfer."""
    return partial(Stalls, lateness=lateness, size_mb=request.config.getoption("--lab-download-mb"))


# As long as a transfer of any size may take.
transferring = pytest.mark.timeout(2 * DOWNLOAD_LIMIT_S)


def selected_paths(nodes: Nodes, node: str) -> list[str]:
    """Which paths a node has selected so far, oldest first."""
    return [selected["path"] for selected in nodes.events(node, "path_manager.path_selected")]


def heals(nodes: Nodes) -> None:
    """End the cut: a path that carried data is asked again and again."""
    nodes.lab.heal("a")
    nodes.wait_direct()


@transferring
@pytest.mark.parametrize("cut", [Cut.BOTH, Cut.UP, Cut.DOWN], ids=lambda cut: f"cut {cut.value}")
@pytest.mark.parametrize("is_upload", [False, True], ids=["download", "upload"])
def test_transfer_survives_cut_rebinding_hand_over_and_the_death_of_the_intermediate(
    nodes: Nodes, watch: Watch, report_figure: Report, cut: Cut, *, is_upload: bool
) -> None:
    # A new session begins on the relay, and stays there until its packets may pass.
    nodes.lab.cut("a", towards="b")
    nodes.deployment.kill(AGENT, signal.SIGTERM)
    nodes.deployment.start(AGENT)
    nodes.wait_relayed()
    with nodes.transfer(is_upload=is_upload) as transfer:
        transfer.meter.wait_for_more(2 * PIECE)
        assert {nodes.session(node).path for node in BOTH} == {RELAY}
        heals(nodes)
        stalls = watch(nodes, transfer)
        stalls.cut(f"cut {cut.value}", cut)
        heals(nodes)
        stalls.rebind()
        stalls.hand_over("a", Handover.HARD)
        stalls.restart_intermediate()
        found = stalls.finish()
    report_figure(f"longest stall of {'an upload' if is_upload else 'a download'}", found)


@transferring
@pytest.mark.parametrize(
    ("site", "how"),
    [("b", Handover.HARD), ("a", Handover.SOFT), ("b", Handover.SOFT)],
    ids=lambda value: value.value if isinstance(value, Handover) else value,
)
def test_download_survives_a_hand_over_of_either_site(
    direct: Nodes, site: str, how: Handover, watch: Watch, report_figure: Report
) -> None:
    with direct.transfer() as transfer:
        stalls = watch(direct, transfer)
        stalls.hand_over(site, how)
        found = stalls.finish()
    report_figure("longest stall of a download", found)


def comes_back(nodes: Nodes) -> None:
    """Start the intermediate, and wait until both nodes, and the session, are attached to it again."""
    nodes.deployment.start(INTERMEDIATE)
    nodes.deployment.wait_ready()
    for node in BOTH:
        nodes.deployment.wait_for(
            node,
            lambda status: all(
                each["state"] == "attached" and each["is_leg_up"] for each in status["intermediates"]
            ),
            "attached again",
        )
    nodes.deployment.wait_for(
        INTERMEDIATE,
        lambda status: (len(status["nodes"]), len(status["sessions"])) == (2, 1),
        "it knows both nodes and their session",
    )


def test_search_while_the_intermediate_is_dead_goes_through_the_session(direct: Nodes) -> None:
    before = max(session.direct_path.generation for session in direct.wait_direct())
    selections = {node: len(selected_paths(direct, node)) for node in BOTH}
    with direct.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        direct.deployment.kill(INTERMEDIATE)
        direct.restart_ice()
        found = direct.wait_until(
            lambda session: (
                session.path == DIRECT
                and session.direct_path.generation > before
                and session.direct_path.state == hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED
            ),
            "on another direct path",
        )
        assert {session.direct_path.signaling for session in found} == {"session"}
        transfer.meter.wait_for_more(PIECE)
        comes_back(direct)
        transfer.finish()
    for node, count in selections.items():
        assert set(selected_paths(direct, node)[count:]) <= {DIRECT}, "nobody left the direct path"


@pytest.mark.parametrize(
    "disturb",
    [lambda lab: lab.rebind("b"), lambda lab: lab.handover("a", Handover.HARD)],
    ids=["the NAT of b forgets", "hand-over of a"],
)
def test_download_waits_for_the_intermediate_where_only_it_can_tell_the_new_address(
    direct: Nodes, disturb: Callable[[Lab], None]
) -> None:
    # Either NAT lets in only whom it knows: no packet passes, in either direction, until both sides are told.
    before = direct.wait_direct()
    with direct.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        direct.deployment.kill(INTERMEDIATE)
        disturb(direct.lab)
        direct.wait_until(lambda session: session.path != DIRECT, "without a direct path")
        size = transfer.meter.size
        comes_back(direct)
        transfer.meter.wait_for_size(size + 2 * PIECE)
        after = direct.wait_direct()
        transfer.finish()
    for former, session in zip(before, after, strict=True):
        assert session.session_id == former.session_id
        assert session.direct_path.generation > former.direct_path.generation


def test_session_itself_tells_a_new_address_to_a_peer_whose_nat_lets_strangers_in(narrow: Nodes) -> None:
    narrow.wait_direct()
    with narrow.transfer() as transfer:
        transfer.meter.wait_for_more(PIECE)
        narrow.deployment.kill(INTERMEDIATE)
        former = narrow.session(AGENT).direct_path.selected_pair.remote.address
        narrow.lab.rebind("b")
        narrow.wait_until(
            lambda session: (
                session.path == DIRECT and session.direct_path.selected_pair.remote.address != former
            ),
            "on a path to the new address",
            AGENT,
        )
        transfer.meter.wait_for_more(2 * PIECE)
        assert not narrow.deployment.daemons[INTERMEDIATE].is_running
        comes_back(narrow)
        transfer.finish()


@pytest.mark.parametrize("is_upload", [False, True], ids=["download", "upload"])
def test_transfer_over_a_narrow_link_is_direct_and_arrives_unchanged(
    narrow: Nodes, *, is_upload: bool
) -> None:
    (link,) = json.loads(narrow.lab.run("nat-a", ["ip", "-j", "link", "show", "wan"]).stdout)
    assert link["mtu"] == SMALLEST_MTU
    before = narrow.wait_direct()
    with narrow.transfer(is_upload=is_upload) as transfer:
        transfer.meter.wait_for_more(4 * PIECE)
        size = transfer.finish()
    receiver = 1 if is_upload else 0
    (after,) = narrow.wait_until(
        lambda session: session.bytes_received >= before[receiver].bytes_received + size,
        "all of it in the figures",
        BOTH[receiver],
    )
    directly = after.direct_path.direct_bytes_received - before[receiver].direct_path.direct_bytes_received
    assert directly > size // 2


def upgraded(nodes: Nodes) -> PacketStream:
    """A stream of packets that began on the relay and ended on the direct path."""
    nodes.lab.cut("a", towards="b")
    nodes.wait_relayed()
    nodes.udp.received.clear()
    with PacketStream(nodes.lab, UDP_PORT, PACKETS_PER_S) as stream:
        stream.wait_for_echo(PACKETS_PER_S)
        heals(nodes)
        stream.wait_for_echo(PACKETS_PER_S)
        stream.stop()
        stream.wait_for_last_echo()
    return stream


def across_a_cut(nodes: Nodes, lateness: Lateness, cut: Cut) -> tuple[PacketStream, float]:
    """A stream of packets whose direct path is cut, and healed behind it; how long it may go without, too."""
    nodes.wait_direct()
    nodes.udp.received.clear()
    with PacketStream(nodes.lab, UDP_PORT, PACKETS_PER_S) as stream:
        stream.wait_for_echo(PACKETS_PER_S // 2)
        round_trip_s = nodes.session(AGENT).rtt_ms / 1e3
        lateness.begin()
        nodes.lab.cut("a", cut, towards="b")
        nodes.wait_relayed()
        stream.wait_for_echo(PACKETS_PER_S)
        stream.stop()
        stream.wait_for_last_echo()
    heals(nodes)
    limit_s = max(CUT_LIMIT_S, CUT_LIMIT_ROUND_TRIPS * round_trip_s) + WAKE_UPS * lateness.longest_s
    return stream, limit_s


def test_udp_service_loses_nothing_in_an_upgrade_and_in_a_cut_what_its_detection_takes(
    nodes: Nodes, lateness: Lateness, report_figure: Report
) -> None:
    for _ in range(UPGRADES):
        lateness.begin()
        stream = upgraded(nodes)
        count = len(stream.sent_at)
        if len(nodes.udp.received) == count or lateness.longest_s < STANDSTILL_S:
            break
    assert sorted(nodes.udp.received) == list(range(count)), "nothing is lost or doubled at the service"
    assert sorted(stream.echoed) == list(range(count)), "nor at the client"
    report_figure("UDP packets from the relay to the direct path", f"{count} sent, 0 lost, 0 doubled")

    stream, limit_s = across_a_cut(nodes, lateness, Cut.BOTH)
    received = set(nodes.udp.received)
    assert len(received) == len(nodes.udp.received), "nothing is doubled at the service"
    assert len(set(stream.echoed)) == len(stream.echoed), "nor at the client"
    lost = [number for number in range(len(stream.sent_at)) if number not in received]
    assert lost, "the cut was felt"
    window_s = stream.sent_at[lost[-1]] - stream.sent_at[lost[0]]
    # One window, and nothing else.
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert window_s < limit_s
    report_figure(
        "UDP packets across a cut", f"{len(lost)} of {len(stream.sent_at)} lost, within {window_s:.2f} s"
    )


@pytest.mark.parametrize("cut", [Cut.UP, Cut.DOWN])
def test_udp_service_loses_what_detection_takes_where_one_direction_is_cut(
    direct: Nodes, lateness: Lateness, cut: Cut, report_figure: Report
) -> None:
    stream, limit_s = across_a_cut(direct, lateness, cut)
    count, received, echoed = len(stream.sent_at), set(direct.udp.received), set(stream.echoed)
    assert len(received) == len(direct.udp.received), "nothing is doubled at the service"
    assert len(echoed) == len(stream.echoed), "nor at the client"
    if cut is Cut.DOWN and lateness.longest_s < STANDSTILL_S:
        assert received == set(range(count)), "the other direction is not felt"
    lost = sorted(set(range(count)) - echoed)
    assert lost, "the cut was felt"
    window_s = stream.sent_at[lost[-1]] - stream.sent_at[lost[0]]
    assert window_s < limit_s
    report_figure(
        f"UDP packets across a cut {cut.value}", f"{len(lost)} of {count} lost, within {window_s:.2f} s"
    )


def test_frequent_keepalives_hold_a_direct_path_where_nats_forget_within_seconds(
    short_directory: Path,
) -> None:
    link = Link.both(Direction(delay_ms=20))
    plan = Plan(tuple(Site(name, NAT, link, mapping_lifetime_s=5) for name in ("a", "b")))
    often = {"keepalive": {"interval_s": 1}}
    with running(plan, short_directory, agent={"connect": "eager"} | often, connector=often) as nodes:
        before = nodes.wait_direct()
        selections = {node: len(nodes.events(node, "path_manager.path_selected")) for node in BOTH}
        # Of the relay and the direct path: twelve seconds, in which each mapping would have ended twice.
        goal = max(session.direct_path.keepalives_answered for session in before) + 24
        after = nodes.wait_until(
            lambda session: session.direct_path.keepalives_answered >= goal, "kept alive"
        )
        for session in after:
            assert session.path == DIRECT
            assert session.direct_path.keepalives_missed == 0
        for node, count in selections.items():
            assert len(nodes.events(node, "path_manager.path_selected")) == count
