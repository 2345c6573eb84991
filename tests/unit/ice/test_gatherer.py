from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nat.fake_nat import (
    AD,
    APD,
    EI,
    EXTERNAL_HOST,
    FakeInternet,
    FakeNat,
    FakeServer,
    NoNat,
)
from tests.unit.stun.strategies import addresses
from ztna.address import Family, TransportAddress
from ztna.ice.candidate import CandidateType
from ztna.ice.gatherer import (
    ASKED_AGAIN_S,
    DISCOVERY_SPACING_S,
    GATHERING_LIMIT_S,
    MAX_INTERMEDIATES,
    REFRESH_S,
    CandidateGatherer,
    Gathered,
    LookUp,
    NatLearned,
    NetworkChanged,
    SendBinding,
    TellSession,
)
from ztna.ice.repeats import START_CEILING_S
from ztna.nat.behaviour import Dependence, NatBehaviour, PortAllocation
from ztna.nat.discovery import PROBE_SOCKETS, CloseProbe, OpenProbe, SendProbe

SESSION = b"s" * 16
HOST = "10.0.0.2"
MAIN = TransportAddress("0.0.0.0", 5000)
BASE = TransportAddress(HOST, 5000)
OBSERVED = TransportAddress(EXTERNAL_HOST, 5000)
SERVER = FakeServer()
FAR_SERVER = FakeServer(host="192.0.2.9")
SILENT_SERVER = FakeServer(host="192.0.2.9", is_silent=True)


class Node:
    """A gatherer behind a NAT, on a clock of its own; answers come back at once."""

    def __init__(
        self,
        nat: FakeNat | None = None,
        servers: Sequence[FakeServer] = (SERVER,),
        *,
        advertise: Sequence[TransportAddress] = (),
        hosts: Sequence[str] = (HOST, "127.0.0.1"),
        names: Mapping[str, Sequence[TransportAddress]] | None = None,
    ) -> None:
        self.names = dict(names or {})
        self.lookups: list[str] = []
        self.internet = FakeInternet(nat or FakeNat(), list(servers))
        self.now = 100.0
        self.core = CandidateGatherer(
            random.Random(2), self.now, loopback=False, advertise=advertise, names=self.names
        )
        self.told: list[Gathered] = []
        self.changes: list[NetworkChanged] = []
        self.learned: list[NatBehaviour] = []
        self.probes: dict[int, TransportAddress] = {}
        self.are_probes_lost = False
        self.bindings: list[TransportAddress] = []
        self.core.handle_network(hosts, {Family.IPV4: HOST}, self.now)
        self.core.handle_bound([MAIN], self.now)
        self.perform()

    def perform(self) -> None:
        while effects := self.core.drain():
            for effect in effects:
                if isinstance(effect, SendBinding):
                    self.send_binding(effect)
                elif isinstance(effect, LookUp):
                    self.lookups.append(effect.intermediate_id)
                    self.core.handle_looked_up(
                        effect.intermediate_id, self.names[effect.intermediate_id], self.now
                    )
                elif isinstance(effect, TellSession):
                    self.told.append(effect.gathered)
                elif isinstance(effect, NetworkChanged):
                    self.changes.append(effect)
                elif isinstance(effect, NatLearned):
                    self.learned.append(effect.nat)
                elif isinstance(effect, OpenProbe):
                    self.probes[effect.probe] = TransportAddress(HOST, 41_000 + 31 * effect.probe)
                    self.core.handle_probe_opened(effect.probe, self.probes[effect.probe], self.now)
                elif isinstance(effect, SendProbe):
                    self.send_probe(effect)
                else:
                    assert isinstance(effect, CloseProbe)
                    del self.probes[effect.probe]

    def send_binding(self, effect: SendBinding) -> None:
        self.bindings.append(effect.transmit.remote)
        answer = self.internet.exchange(effect.transmit.data, BASE, effect.transmit.remote)
        if answer is not None:
            self.core.handle_response(*answer, HOST, self.now)

    def send_probe(self, effect: SendProbe) -> None:
        if self.are_probes_lost:
            return
        local = self.probes[effect.probe]
        answer = self.internet.exchange(effect.transmit.data, local, effect.transmit.remote)
        if answer is not None:
            self.core.handle_probe_datagram(*answer, self.now)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(10_000):
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            self.perform()
        else:
            raise AssertionError("the gatherer never comes to rest")
        self.now = end

    def up(self, server: FakeServer = SERVER, name: str = "i1") -> None:
        self.core.handle_leg_up(name, server.primary, self.now)
        self.perform()

    def gather(self, session_id: bytes = SESSION) -> None:
        self.core.handle_gather(session_id, self.now)
        self.perform()

    def network(self, *hosts: str, source: str | None = None) -> None:
        sources = {} if source is None else {Family.IPV4: source}
        self.core.handle_network(hosts, sources, self.now)
        self.perform()

    def nat(self) -> NatBehaviour:
        return self.learned[-1]

    @property
    def last(self) -> Gathered:
        return self.told[-1]

    def addresses(self, kind: CandidateType) -> list[str]:
        return [str(each.address) for each in self.last.candidates if each.type is kind]


def silent() -> list[FakeServer]:
    return [FakeServer(is_silent=True)]


class TestCandidates:
    def test_hosts_are_told_at_once_without_any_server(self) -> None:
        node = Node()
        node.gather()
        assert node.addresses(CandidateType.HOST) == [str(BASE)]
        assert not node.last.is_complete

    def test_without_any_server_candidates_are_complete_after_a_while(self) -> None:
        node = Node()
        node.gather()
        node.advance(GATHERING_LIMIT_S)
        assert [told.is_complete for told in node.told] == [False, True]
        assert node.core.next_deadline() is None

    def test_observed_address_is_told_at_once_and_needs_no_stun(self) -> None:
        node = Node(servers=silent())
        node.up()
        node.core.handle_observed("i1", OBSERVED, node.now)
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == [str(OBSERVED)]
        assert not node.last.is_complete
        (candidate,) = [each for each in node.last.candidates if each.type is CandidateType.SERVER_REFLEXIVE]
        assert candidate.related == candidate.base == BASE

    def test_silent_server_delays_completion_a_few_seconds_and_no_longer(self) -> None:
        node = Node(servers=silent())
        node.up()
        node.gather()
        node.advance(GATHERING_LIMIT_S)
        assert node.last.is_complete
        assert node.bindings == [SERVER.primary] * 6

    def test_every_port_of_every_server_is_asked_and_told_of(self) -> None:
        node = Node(FakeNat(APD, APD, PortAllocation.SEQUENTIAL), servers=[SERVER, FAR_SERVER])
        node.gather()
        node.up()
        node.up(FAR_SERVER, "i2")
        assert {*node.bindings} == SERVER.addresses() | FAR_SERVER.addresses()
        assert len(node.addresses(CandidateType.SERVER_REFLEXIVE)) == 4
        assert node.last.is_complete

    def test_servers_that_see_the_same_make_one_candidate(self) -> None:
        node = Node(servers=[SERVER, FAR_SERVER])
        node.up()
        node.up(FAR_SERVER, "i2")
        node.core.handle_observed("i1", OBSERVED, node.now)
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == [str(OBSERVED)]

    def test_without_nat_there_is_no_reflexive_candidate(self) -> None:
        node = Node(NoNat())
        node.up()
        node.core.handle_observed("i1", BASE, node.now)
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == []

    def test_relay_of_a_connected_leg_is_a_candidate(self) -> None:
        node = Node()
        node.up()
        node.gather()
        assert node.addresses(CandidateType.RELAY) == [str(SERVER.primary)]
        node.core.handle_leg_down("i1", node.now, is_refusal=False)
        node.perform()
        assert node.addresses(CandidateType.RELAY) == []

    def test_advertised_address_is_a_candidate(self) -> None:
        node = Node(advertise=[TransportAddress("198.51.100.4", 0)])
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == ["198.51.100.4:5000"]

    def test_who_asks_again_is_told_again_and_who_stopped_is_not(self) -> None:
        node = Node()
        node.gather()
        node.gather()
        assert len(node.told) == 2
        node.core.handle_stop(SESSION)
        node.up()
        assert len(node.told) == 2

    def test_nothing_is_told_twice(self) -> None:
        node = Node()
        node.gather()
        node.up()
        node.advance(GATHERING_LIMIT_S * 3)
        assert all(one != other for one, other in zip(node.told, node.told[1:], strict=False))

    def test_server_that_has_moved_takes_its_mappings_along(self) -> None:
        node = Node(FakeNat(APD, APD, PortAllocation.SEQUENTIAL), servers=[SERVER, FAR_SERVER])
        node.up()
        node.up(FAR_SERVER)
        node.gather()
        assert len(node.addresses(CandidateType.SERVER_REFLEXIVE)) == 2

    def test_second_address_that_is_no_single_host_is_not_asked(self) -> None:
        server = FakeServer(other_host="127.0.0.1")
        node = Node(servers=[server])
        node.up(server)
        assert node.bindings == [server.primary]

    def test_intermediates_are_bounded(self) -> None:
        servers = [FakeServer(host=f"192.0.2.{number}") for number in range(1, MAX_INTERMEDIATES + 5)]
        node = Node(FakeNat(APD, APD, PortAllocation.SEQUENTIAL), servers=servers)
        for number, server in enumerate(servers):
            node.up(server, f"i{number}")
        node.gather()
        assert len(node.addresses(CandidateType.RELAY)) == 4
        assert len(node.last.candidates) <= 32

    def test_server_of_a_family_without_socket_is_not_asked(self) -> None:
        node = Node()
        node.core.handle_leg_up("i1", TransportAddress("2001:db8::1", 3478), node.now)
        assert node.core.drain() == []

    def test_intermediate_is_asked_in_the_families_of_this_node_whatever_that_of_the_leg(self) -> None:
        node = Node()
        six = TransportAddress("2001:db8::1", 3478)
        node.core.handle_network([HOST, "2001:db8:7::7"], {Family.IPV4: HOST}, node.now)
        node.core.handle_leg_up("i1", six, node.now, [SERVER.primary])
        node.perform()
        assert SERVER.primary in node.bindings
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE)
        # No packet of the other family leaves from here.
        asked = len(node.bindings)
        node.core.handle_leg_up("i2", SERVER.primary, node.now, [six])
        node.perform()
        assert six not in node.bindings[asked:]

    def test_mapping_of_a_family_without_base_is_no_candidate(self) -> None:
        node = Node(servers=silent())
        node.core.handle_leg_up("i1", TransportAddress("2001:db8::1", 3478), node.now)
        node.core.handle_observed("i1", TransportAddress("2001:db8:7::7", 9), node.now)
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == []

    def test_leg_that_comes_back_asks_again_where_nobody_answered(self) -> None:
        node = Node(servers=silent())
        node.up()
        node.advance(GATHERING_LIMIT_S)
        node.core.handle_leg_down("i1", node.now, is_refusal=False)
        asked = len(node.bindings)
        node.up()
        node.up()
        assert len(node.bindings) == asked + 1


class TestNetworkChange:
    def test_new_source_forgets_mappings_and_counts(self) -> None:
        node = Node()
        node.up()
        node.core.handle_observed("i1", OBSERVED, node.now)
        node.gather()
        node.internet.nat = FakeNat(external_host="203.0.113.77")
        node.network("10.9.0.2", source="10.9.0.2")
        (change,) = node.changes
        assert change.reason == "default_route_changed"
        assert change.hosts == (TransportAddress("10.9.0.2", 5000),)
        assert node.last.network == 1
        assert node.addresses(CandidateType.HOST) == ["10.9.0.2:5000"]
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == ["203.0.113.77:5000"]

    def test_further_address_keeps_what_was_observed(self) -> None:
        node = Node(servers=silent())
        node.up()
        node.core.handle_observed("i1", OBSERVED, node.now)
        node.gather()
        node.network(HOST, "10.7.0.1", source=HOST)
        assert [change.reason for change in node.changes] == ["addresses_changed"]
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == [str(OBSERVED)]
        assert node.last.network == 1

    def test_call_that_says_the_same_or_nothing_of_interest_changes_nothing(self) -> None:
        node = Node()
        node.up()
        node.gather()
        told = len(node.told)
        node.network(HOST, "127.0.0.1", source=HOST)
        node.network(HOST, "127.0.0.1", "fe80::9%eth1", source=HOST)
        assert node.changes == []
        assert len(node.told) == told

    def test_host_without_addresses_at_first_tells_of_the_first_one(self) -> None:
        node = Node(hosts=())
        node.gather()
        node.network(HOST, source=HOST)
        assert len(node.changes) == 1
        assert node.addresses(CandidateType.HOST) == [str(BASE)]

    def test_all_addresses_gone_leaves_no_candidate(self) -> None:
        node = Node()
        node.gather()
        node.network("127.0.0.1")
        assert node.last.candidates == ()

    def test_new_mapping_of_the_leg_counts_and_is_observed_anew(self) -> None:
        node = Node()
        node.up()
        node.core.handle_observed("i1", OBSERVED, node.now)
        node.gather()
        asked = len(node.bindings)
        node.core.handle_observed("i1", TransportAddress(EXTERNAL_HOST, 6000), node.now)
        node.perform()
        assert node.last.network == 1
        assert node.changes == []
        assert len(node.bindings) > asked

    def test_another_session_that_asks_much_later_has_mappings_observed_anew(self) -> None:
        node = Node()
        node.up()
        node.gather()
        asked = len(node.bindings)
        node.advance(REFRESH_S - 1)
        node.gather(bytes(range(16)))
        assert len(node.bindings) == asked
        node.advance(1)
        node.gather(bytes(range(1, 17)))
        assert len(node.bindings) == 2 * asked
        assert node.last.network == 0

    def test_session_that_asks_again_learns_of_a_mapping_that_was_forgotten(self) -> None:
        node = Node()
        node.up()
        node.gather()
        asked = len(node.bindings)
        node.advance(ASKED_AGAIN_S / 2)
        node.gather()
        assert len(node.bindings) == asked
        node.internet.nat.mappings.clear()
        node.advance(ASKED_AGAIN_S / 2)
        former = node.addresses(CandidateType.SERVER_REFLEXIVE)
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) != former
        assert node.last.is_complete
        # That a mapping has changed is no change of the network: idle ones do.
        assert node.last.network == 0

    def test_session_that_has_its_candidates_hears_nothing_of_another_that_asks_again(self) -> None:
        node = Node()
        node.up()
        other = bytes(range(16))
        for session_id in (SESSION, other):
            node.gather(session_id)
        assert node.last.is_complete
        node.now += ASKED_AGAIN_S
        node.core.handle_gather(other, node.now)
        (told,) = [each for each in node.core.drain() if isinstance(each, TellSession)]
        assert told.session_id == other
        assert not told.gathered.is_complete


class TestNat:
    @pytest.mark.parametrize("filtering", [EI, AD, APD])
    @pytest.mark.parametrize("mapping", [EI, AD, APD])
    def test_full_server_tells_all(self, mapping: Dependence, filtering: Dependence) -> None:
        server = FakeServer(other_host="192.0.2.2")
        node = Node(FakeNat(mapping, filtering), servers=[server])
        node.up(server)
        node.advance(20)
        nat = node.learned[-1]
        assert (nat.is_known, nat.has_nat, nat.mapping, nat.filtering) == (True, True, mapping, filtering)
        assert nat.port_allocation is PortAllocation.PRESERVED
        assert node.probes == {}

    @pytest.mark.parametrize(
        ("mapping", "expected"),
        [(EI, Dependence.NOT_PORT_DEPENDENT), (AD, Dependence.NOT_PORT_DEPENDENT), (APD, APD)],
    )
    def test_one_address_tells_of_ports_alone(self, mapping: Dependence, expected: Dependence) -> None:
        node = Node(FakeNat(mapping, EI))
        node.up()
        node.advance(20)
        assert node.learned[-1].mapping is expected
        assert node.learned[-1].filtering is Dependence.NOT_PORT_DEPENDENT

    @pytest.mark.parametrize("mapping", [EI, AD, APD])
    def test_two_intermediates_tell_of_addresses(self, mapping: Dependence) -> None:
        node = Node(FakeNat(mapping, APD), servers=[SERVER, FAR_SERVER])
        node.up()
        node.up(FAR_SERVER, "i2")
        node.advance(20)
        assert node.learned[-1].mapping is mapping

    def test_sequential_ports_are_told_with_their_step(self) -> None:
        node = Node(FakeNat(APD, APD, PortAllocation.SEQUENTIAL, 2))
        node.up()
        node.advance(20)
        assert (node.learned[-1].port_allocation, node.learned[-1].port_step) == (
            PortAllocation.SEQUENTIAL,
            2,
        )

    def test_without_nat_one_probe_looks_at_the_filter(self) -> None:
        node = Node(NoNat(EI, APD))
        node.up()
        node.advance(20)
        nat = node.learned[-1]
        assert (nat.is_known, nat.has_nat, nat.mapping, nat.filtering) == (True, False, EI, APD)
        assert nat.port_allocation is PortAllocation.PRESERVED

    def test_behaviour_is_no_part_of_completion(self) -> None:
        node = Node(FakeNat(EI, APD))
        node.gather()
        node.up()
        assert node.last.is_complete
        assert node.last.nat.filtering is Dependence.UNKNOWN
        node.advance(20)
        assert node.last.nat.filtering is APD

    def test_behaviour_is_discovered_anew_after_a_change_but_not_at_every_flap(self) -> None:
        node = Node(FakeNat(EI, EI))
        node.up()
        node.advance(1)
        first = node.internet.requests
        for number in range(20):
            node.network(HOST, source=HOST if number % 2 else None)
        node.advance(DISCOVERY_SPACING_S * 2)
        bindings = 2 * 20
        assert node.internet.requests == first + bindings + PROBE_SOCKETS + 1
        assert node.learned[-1].filtering is Dependence.NOT_PORT_DEPENDENT

    def test_change_in_mid_discovery_closes_its_sockets(self) -> None:
        node = Node(FakeNat(EI, APD))
        node.up()
        assert node.probes
        node.network("10.9.0.2", source="10.9.0.2")
        assert node.probes == {}
        node.advance(20)
        assert node.learned[-1].filtering is APD

    def test_probe_that_opens_too_late_is_closed(self) -> None:
        node = Node()
        node.core.handle_probe_opened(7, BASE, node.now)
        assert node.core.drain() == [CloseProbe(7)]

    def test_udp_counts_as_blocked_when_no_leg_and_no_request_is_answered(self) -> None:
        node = Node(servers=silent())
        node.core.handle_leg_down("i1", node.now, is_refusal=False)
        node.perform()
        assert node.learned == [NatBehaviour(is_udp_blocked=True)]
        node.gather()
        assert node.last.is_complete
        node.up()
        assert node.learned[-1] == NatBehaviour()

    def test_leg_that_falls_back_to_tcp_voids_what_udp_told(self) -> None:
        node = Node()
        node.up()
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) != []
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        node.advance(5)
        assert node.learned[-1].is_udp_blocked
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == []

    @pytest.mark.parametrize("was_tested", [True, False], ids=["leg was up before", "only looked up"])
    def test_search_that_begins_while_the_leg_goes_over_tcp_asks_anew(self, *, was_tested: bool) -> None:
        node = Node(servers=[], names={"i1": [SERVER.primary]})
        node.advance(1)
        if was_tested:
            node.up()
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        assert node.nat().is_udp_blocked
        node.advance(ASKED_AGAIN_S)
        node.internet.servers.append(SERVER)
        node.gather()
        assert not node.nat().is_udp_blocked
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == [str(OBSERVED)]

    def test_udp_that_stays_blocked_is_told_meanwhile_and_asked_for_once_at_a_time(self) -> None:
        node = Node(servers=[], names={"i1": [SERVER.primary]})
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        asked = len(node.bindings)
        for number in range(4):
            node.gather(bytes([number]) * 16)
            node.advance(0.5)
        assert node.last.nat == NatBehaviour(is_udp_blocked=True)
        # Addresses may still come.
        assert [each.is_complete for each in node.told] == [False] * 4
        node.advance(GATHERING_LIMIT_S)
        assert node.last.is_complete
        assert node.bindings[asked:] == [SERVER.primary] * 6
        assert node.learned == [NatBehaviour(is_udp_blocked=True)]

    def test_another_network_is_not_taken_for_blocked_as_the_former_one(self) -> None:
        node = Node(servers=[], names={"i1": [SERVER.primary]})
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        node.network("10.9.9.9", source="10.9.9.9")
        assert not node.nat().is_udp_blocked
        node.advance(GATHERING_LIMIT_S)
        assert node.nat().is_udp_blocked

    def test_refusal_is_an_answer(self) -> None:
        node = Node()
        node.core.handle_leg_down("i1", node.now, is_refusal=True)
        node.perform()
        assert node.learned == []

    def test_server_of_ipv6_alone_is_judged_too(self) -> None:
        node = Node(servers=[])
        node.core.handle_bound([TransportAddress("::", 6000)], node.now)
        node.core.handle_leg_up("i1", TransportAddress("2001:db8::1", 3478), node.now)
        (sent,) = [each for each in node.core.drain() if isinstance(each, SendBinding)]
        source = TransportAddress("2001:db8:7::7", 6000)
        answer = FakeServer(host="2001:db8::1").answer(sent.transmit.data, source, sent.transmit.remote)
        assert answer is not None
        node.core.handle_response(*answer, "", node.now)
        node.perform()
        assert node.learned[-1].is_known
        assert node.learned[-1].has_nat


class TestIntermediatesWithoutLeg:
    """An agent has one leg, and asks all the others where their names lead."""

    @pytest.mark.parametrize("mapping", [EI, AD, APD])
    def test_its_address_tells_what_the_mapping_depends_on(self, mapping: Dependence) -> None:
        names = {"i1": [SERVER.primary], "i2": [FAR_SERVER.primary]}
        node = Node(FakeNat(mapping, APD), servers=[SERVER, FAR_SERVER], names=names)
        node.up()
        node.advance(20)
        assert node.learned[-1].mapping is mapping
        assert node.learned[-1].filtering is APD
        assert {*node.bindings} == SERVER.addresses() | FAR_SERVER.addresses()
        assert len(node.bindings) == 4, "who was asked before his leg came up is not asked twice"

    def test_its_view_is_a_candidate_after_those_of_the_leg_and_its_relay_is_none(self) -> None:
        nat = FakeNat(APD, APD, PortAllocation.SEQUENTIAL)
        node = Node(nat, servers=[SERVER, FAR_SERVER], names={"i2": [FAR_SERVER.primary]})
        node.up()
        node.gather()
        of_far = {nat.mappings[BASE, address] for address in FAR_SERVER.addresses()}
        assert {*map(str, of_far)} == {*node.addresses(CandidateType.SERVER_REFLEXIVE)[2:]}
        assert node.addresses(CandidateType.RELAY) == [str(SERVER.primary)]

    def test_its_silence_delays_nothing_and_says_nothing(self) -> None:
        node = Node(servers=[SERVER, SILENT_SERVER], names={"i2": [SILENT_SERVER.primary]})
        node.gather()
        node.up()
        assert node.last.is_complete
        assert node.last.nat.mapping is Dependence.NOT_PORT_DEPENDENT
        assert node.probes, "filters are looked at"
        told = len(node.told)
        node.advance(20)
        assert node.bindings.count(SILENT_SERVER.primary) == 6
        assert all(each.is_complete for each in node.told[told - 1 :])
        assert not node.last.nat.is_udp_blocked

    def test_its_silence_is_not_waited_for_when_the_leg_has_no_answer(self) -> None:
        node = Node(servers=[SILENT_SERVER], names={"i2": [SILENT_SERVER.primary]})
        node.core.handle_leg_down("i1", node.now, is_refusal=False)
        node.perform()
        assert node.learned == [NatBehaviour(is_udp_blocked=True)]
        node.gather()
        assert node.last.is_complete

    def test_its_answer_shows_that_udp_is_not_blocked(self) -> None:
        node = Node(servers=[FAR_SERVER], names={"i2": [FAR_SERVER.primary]})
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        node.advance(20)
        assert not node.learned[-1].is_udp_blocked
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == [str(OBSERVED)]

    def test_neighbour_on_the_same_host_keeps_what_it_told(self) -> None:
        neighbour = FakeServer(ports=(4478, 4479))
        node = Node(servers=[SERVER, neighbour], names={"i2": [neighbour.primary]})
        node.up()
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == [str(OBSERVED)]

    def test_it_is_asked_again_when_the_leg_has_no_answer_any_more(self) -> None:
        names = {"i1": [SERVER.primary], "i2": [FAR_SERVER.primary]}
        node = Node(servers=[SERVER, FAR_SERVER], names=names)
        node.up()
        node.advance(20)
        node.internet.servers.clear()
        node.core.handle_leg_over_tcp("i1", node.now)
        node.perform()
        assert not node.learned[-1].is_udp_blocked
        node.advance(GATHERING_LIMIT_S)
        assert node.learned[-1] == NatBehaviour(is_udp_blocked=True)

    def test_who_falls_silent_later_counts_until_that_is_known(self) -> None:
        node = Node(servers=[SERVER, FAR_SERVER], names={"i2": [FAR_SERVER.primary]})
        node.up()
        node.advance(REFRESH_S)
        node.internet.servers.remove(FAR_SERVER)
        node.gather()
        assert node.last.is_complete
        assert node.last.nat.mapping is EI
        node.advance(GATHERING_LIMIT_S)
        assert node.last.nat.mapping is Dependence.NOT_PORT_DEPENDENT

    def test_questions_to_it_do_not_prolong_the_gathering_of_the_leg(self) -> None:
        names: dict[str, Sequence[TransportAddress]] = {"i2": []}
        node = Node(servers=silent(), names=names)
        node.up()
        node.gather()
        node.advance(GATHERING_LIMIT_S - 1)
        node.core.handle_looked_up("i2", [SILENT_SERVER.primary], node.now)
        node.perform()
        node.advance(1)
        assert node.last.is_complete

    def test_leg_is_waited_for_though_its_intermediate_was_asked_before(self) -> None:
        node = Node(servers=silent(), names={"i1": [SERVER.primary]})
        node.gather()
        node.advance(1)
        node.up()
        assert node.bindings.count(SERVER.primary) == 4
        assert not node.last.is_complete
        node.advance(4)
        assert node.last.is_complete

    def test_mapping_that_is_old_when_the_leg_comes_up_is_observed_anew(self) -> None:
        node = Node(servers=[SERVER, FAR_SERVER], names={"i2": [FAR_SERVER.primary]})
        node.up()
        node.advance(REFRESH_S)
        asked = len(node.bindings)
        node.up(FAR_SERVER, "i2")
        assert {*node.bindings[asked:]} == FAR_SERVER.addresses()

    def test_it_is_asked_anew_with_the_others(self) -> None:
        node = Node(servers=[SERVER, FAR_SERVER], names={"i2": [FAR_SERVER.primary]})
        node.up()
        node.advance(REFRESH_S)
        asked = len(node.bindings)
        node.gather()
        assert {*node.bindings[asked:]} == SERVER.addresses() | FAR_SERVER.addresses()
        asked = len(node.bindings)
        node.network("10.9.0.2", source="10.9.0.2")
        assert {*node.bindings[asked:]} == SERVER.addresses() | FAR_SERVER.addresses()

    def test_name_is_looked_up_again_when_somebody_asks_and_not_too_often(self) -> None:
        names: dict[str, Sequence[TransportAddress]] = {"i2": []}
        node = Node(servers=[SERVER, FAR_SERVER], names=names)
        assert node.lookups == ["i2"]
        node.names["i2"] = [FAR_SERVER.primary]
        for number in range(20):
            node.gather(bytes([number] * 16))
            node.advance(1)
        assert node.lookups == ["i2"]
        node.advance(REFRESH_S)
        assert node.lookups == ["i2", "i2"]
        assert FAR_SERVER.primary in node.bindings
        node.advance(10 * REFRESH_S)
        assert node.lookups == ["i2", "i2"]

    def test_change_of_the_route_looks_names_up_again_but_not_at_every_flap(self) -> None:
        node = Node(names={"i2": []})
        for number in range(20):
            node.network(HOST, source=HOST if number % 2 else None)
        node.advance(DISCOVERY_SPACING_S * 2)
        assert node.lookups == ["i2", "i2"]

    def test_name_of_a_leg_that_is_up_is_not_looked_up_again(self) -> None:
        node = Node(names={"i1": [SERVER.primary]})
        node.up()
        node.advance(REFRESH_S)
        node.gather()
        assert node.lookups == ["i1"]
        # An answer that comes late does not know better than the leg.
        node.core.handle_looked_up("i1", [FAR_SERVER.primary], node.now)
        node.perform()
        assert FAR_SERVER.primary not in node.bindings

    def test_one_of_several_addresses_is_asked_and_kept_in_whatever_order_they_come(self) -> None:
        first, second = (TransportAddress(f"192.0.2.{host}", 3478) for host in (9, 10))
        node = Node(servers=[], names={"i2": [first, second]})
        node.core.handle_looked_up("i2", [second, first], node.now)
        node.perform()
        assert node.bindings == [first]

    def test_where_the_name_leads_no_more_nobody_is_asked_and_what_was_told_is_forgotten(self) -> None:
        node = Node(FakeNat(APD, APD), servers=[FAR_SERVER], names={"i2": [FAR_SERVER.primary]})
        node.gather()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE)
        moved, moved_again = (TransportAddress(f"192.0.2.{host}", 3478) for host in (10, 11))
        node.core.handle_looked_up("i2", [moved], node.now)
        node.perform()
        assert node.addresses(CandidateType.SERVER_REFLEXIVE) == []
        node.core.handle_looked_up("i2", [moved_again], node.now)
        node.perform()
        node.advance(GATHERING_LIMIT_S)
        assert (node.bindings.count(moved), node.bindings.count(moved_again)) == (1, 6)

    @pytest.mark.parametrize("host", ["224.0.0.1", "0.0.0.0", "ff02::1", "::", "2001:db8::1"])
    def test_address_that_is_no_single_host_or_has_no_way_to_it_is_not_asked(self, host: str) -> None:
        node = Node(names={"i2": [TransportAddress(host, 3478)]})
        node.core.handle_bound([MAIN, TransportAddress("::", 5000)], node.now)
        node.perform()
        node.gather()
        assert node.bindings == []

    def test_it_may_send_us_to_its_other_port_and_to_no_other_host(self) -> None:
        server = FakeServer(other_host="192.0.2.2")
        node = Node(servers=[server, FAR_SERVER], names={"i1": [server.primary], "i2": [FAR_SERVER.primary]})
        node.advance(GATHERING_LIMIT_S)
        assert {*node.bindings} == {server.primary} | FAR_SERVER.addresses()

    def test_names_beyond_the_bound_are_not_looked_up_and_legs_take_their_place(self) -> None:
        names = {
            f"i{number}": [TransportAddress(f"192.0.2.{number + 1}", 3478)]
            for number in range(MAX_INTERMEDIATES + 4)
        }
        node = Node(servers=[], names=names)
        assert len(node.lookups) == len({*node.bindings}) == MAX_INTERMEDIATES
        for number in range(4):
            node.up(FakeServer(host=f"192.0.2.{100 + number}"), f"j{number}")
        node.gather()
        assert len(node.addresses(CandidateType.RELAY)) == 4


@given(st.binary(max_size=80), addresses)
def test_arbitrary_bytes_change_nothing(data: bytes, source: TransportAddress) -> None:
    node = Node(servers=silent())
    node.up()
    node.core.handle_response(data, source, HOST, node.now)
    node.core.handle_probe_datagram(data, source, node.now)
    assert node.core.drain() == []


class TestRepetition:
    """Questions without an answer, though their leg is up: refused for the rate, say."""

    def test_intermediate_that_gave_no_answer_is_asked_again_and_completes_the_picture(self) -> None:
        far = FakeServer(host="192.0.2.9", is_silent=True)
        node = Node(FakeNat(AD, APD, PortAllocation.RANDOM), servers=[SERVER, far])
        node.up()
        node.up(far, "i2")
        node.advance(GATHERING_LIMIT_S * 2)
        assert node.nat().mapping == Dependence.NOT_PORT_DEPENDENT
        far.is_silent = False
        node.advance(START_CEILING_S)
        assert node.nat().mapping == Dependence.ADDRESS_DEPENDENT

    def test_what_is_known_is_not_asked_for_again(self) -> None:
        node = Node(servers=[SERVER, FAR_SERVER])
        node.up()
        node.up(FAR_SERVER, "i2")
        node.advance(GATHERING_LIMIT_S * 2)
        asked = len(node.bindings)
        node.advance(3600.0)
        assert len(node.bindings) == asked
        assert node.core.next_deadline() is None

    def test_only_the_port_that_gave_no_answer_is_asked_and_ever_more_rarely(self) -> None:
        node = Node(servers=[SERVER, SILENT_SERVER])
        node.up()
        node.up(SILENT_SERVER, "i2")
        node.advance(GATHERING_LIMIT_S * 2)
        asked = len(node.bindings)
        node.advance(3600.0)
        assert {*node.bindings[asked:]} == {SILENT_SERVER.primary}
        # Six requests each time: after 15 to 30 s, twice that, and so on up to 8 min.
        assert 10 * 6 <= len(node.bindings) - asked <= 20 * 6
        assert node.nat().mapping == Dependence.NOT_PORT_DEPENDENT

    def test_second_port_that_gave_no_answer_is_asked_without_risk_to_what_the_first_told(self) -> None:
        node = Node(FakeNat(APD, APD, PortAllocation.RANDOM))
        node.internet.lost.add(TransportAddress(SERVER.host, SERVER.ports[1]))
        node.up()
        node.gather()
        node.advance(GATHERING_LIMIT_S * 2)
        assert node.nat().mapping == Dependence.UNKNOWN
        node.internet.lost.clear()
        node.advance(START_CEILING_S)
        assert node.nat().mapping == Dependence.ADDRESS_AND_PORT_DEPENDENT
        assert node.bindings.count(SERVER.primary) == 1

    def test_intermediate_whose_leg_is_down_is_left_to_its_leg(self) -> None:
        node = Node(servers=silent())
        node.up()
        node.core.handle_leg_down("i1", node.now, is_refusal=False)
        node.advance(GATHERING_LIMIT_S * 2)
        asked = len(node.bindings)
        node.advance(600.0)
        assert len(node.bindings) == asked

    def test_tests_of_behaviour_that_told_nothing_are_run_again(self) -> None:
        node = Node(FakeNat(EI, APD, PortAllocation.RANDOM))
        node.are_probes_lost = True
        node.up()
        node.advance(GATHERING_LIMIT_S * 2)
        assert node.nat().filtering == Dependence.UNKNOWN
        assert node.nat().port_allocation == PortAllocation.UNKNOWN
        node.are_probes_lost = False
        node.advance(START_CEILING_S + GATHERING_LIMIT_S * 2)
        assert node.nat().filtering == APD
        assert node.nat().port_allocation == PortAllocation.RANDOM
        assert node.probes == {}
