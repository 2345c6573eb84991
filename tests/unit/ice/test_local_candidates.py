from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import addresses
from ztna.address import Family, TransportAddress
from ztna.ice.candidate import Candidate, CandidateType
from ztna.ice.local_candidates import (
    MAX_HOST_CANDIDATES,
    MAX_REFLEXIVE_CANDIDATES,
    MAX_RELAY_CANDIDATES,
    Reflexive,
    build_candidates,
    host_addresses,
    is_remote,
)

ANY4, ANY6 = TransportAddress("0.0.0.0", 5000), TransportAddress("::", 6000)
BASE = TransportAddress("10.0.0.2", 5000)
BASE_B = TransportAddress("10.0.0.3", 5000)
BASE6 = TransportAddress("2001:db8::2", 6000)
MAPPED = TransportAddress("203.0.113.5", 40_000)
SERVER = "192.0.2.1"


def hosts(
    bound: list[TransportAddress],
    *interfaces: str,
    sources: dict[Family, str] | None = None,
    loopback: bool = False,
) -> list[str]:
    return [str(each) for each in host_addresses(bound, interfaces, sources or {}, loopback=loopback)]


def kinds(candidates: tuple[Candidate, ...]) -> list[CandidateType]:
    return [each.type for each in candidates]


class TestHostAddresses:
    def test_wildcard_socket_has_every_interface_but_loopback(self) -> None:
        assert hosts([ANY4], "10.0.0.2", "127.0.0.1", "192.168.1.9") == ["10.0.0.2:5000", "192.168.1.9:5000"]

    def test_loopback_is_there_when_wanted_and_stands_last(self) -> None:
        found = hosts([ANY4], "10.0.0.2", "127.0.0.1", loopback=True)
        assert found == ["10.0.0.2:5000", "127.0.0.1:5000"]

    def test_sockets_bound_to_loopback_have_it_when_wanted_listed_or_not(self) -> None:
        bound = [TransportAddress("127.0.0.2", 7), TransportAddress("::1", 8)]
        assert hosts(bound, "127.0.0.1", "10.0.0.2", loopback=True) == ["[::1]:8", "127.0.0.2:7"]
        assert hosts(bound, "127.0.0.1", "10.0.0.2") == []

    def test_one_loopback_socket_beside_another_has_none(self) -> None:
        assert hosts([TransportAddress("127.0.0.2", 7), ANY6], "127.0.0.1", "2001:db8::2") == [
            "[2001:db8::2]:6000"
        ]

    def test_socket_bound_to_one_address_has_that_one(self) -> None:
        assert hosts([BASE], "10.0.0.2", "10.0.0.3") == ["10.0.0.2:5000"]

    def test_bound_address_that_has_gone_is_none(self) -> None:
        assert hosts([BASE], "10.0.0.3") == []

    def test_families_take_turns_ipv6_first(self) -> None:
        found = hosts([ANY4, ANY6], "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::2", "fd00::2")
        assert found == [
            "[2001:db8::2]:6000",
            "10.0.0.2:5000",
            "[fd00::2]:6000",
            "10.0.0.3:5000",
            "10.0.0.4:5000",
        ]

    def test_source_of_the_default_route_stands_first_in_its_family(self) -> None:
        sources = {Family.IPV4: "10.0.0.9"}
        assert hosts([ANY4], "10.0.0.2", "10.0.0.9", sources=sources)[0] == "10.0.0.9:5000"

    def test_temporary_address_that_is_the_source_stands_before_the_stable_and_the_deprecated_one(
        self,
    ) -> None:
        temporary, stable, deprecated = "2001:db8::5a1c:9", "2001:db8::2", "2001:db8::1:88"
        sources = {Family.IPV6: temporary}
        found = hosts([ANY6], "fe80::2%eth0", deprecated, stable, temporary, sources=sources)
        assert found[0] == f"[{temporary}]:6000"
        assert sorted(found[1:]) == [f"[{deprecated}]:6000", f"[{stable}]:6000"]

    @pytest.mark.parametrize(
        "host",
        ["fe80::1%eth0", "169.254.7.7", "::ffff:10.0.0.2", "::10.0.0.2", "fec0::1", "ff02::1", "224.0.0.1"],
    )
    def test_what_no_peer_can_use_is_left_out(self, host: str) -> None:
        assert hosts([ANY4, ANY6], host) == []

    def test_address_on_two_interfaces_counts_once(self) -> None:
        assert hosts([ANY4], "10.0.0.2", "10.0.0.2") == ["10.0.0.2:5000"]

    def test_second_socket_of_a_family_does_not_count(self) -> None:
        assert hosts([ANY4, TransportAddress("0.0.0.0", 9)], "10.0.0.2") == ["10.0.0.2:5000"]

    def test_no_socket_no_candidate(self) -> None:
        assert hosts([], "10.0.0.2", loopback=True) == []


class TestCandidates:
    def test_types_stand_in_order_and_priorities_are_those_of_rfc_8445(self) -> None:
        reflexive = Reflexive(MAPPED, BASE, SERVER)
        found = build_candidates([BASE], [reflexive], [], [TransportAddress(SERVER, 4433)])
        assert [(each.type, each.address, each.priority) for each in found] == [
            (CandidateType.HOST, BASE, (126 << 24) + (65_535 << 8) + 255),
            (CandidateType.SERVER_REFLEXIVE, MAPPED, (100 << 24) + (65_535 << 8) + 255),
            (CandidateType.RELAY, TransportAddress(SERVER, 4433), (65_535 << 8) + 255),
        ]
        assert [each.related for each in found] == [None, BASE, None]
        assert [each.base for each in found[:2]] == [BASE, BASE]

    def test_reflexive_address_of_our_own_is_redundant(self) -> None:
        mapped = [Reflexive(BASE, BASE, SERVER), Reflexive(BASE_B, BASE, SERVER)]
        assert kinds(build_candidates([BASE, BASE_B], mapped, [], [])) == [CandidateType.HOST] * 2

    def test_two_servers_that_see_the_same_make_one_candidate(self) -> None:
        mapped = [Reflexive(MAPPED, BASE, SERVER), Reflexive(MAPPED, BASE, "192.0.2.2")]
        found = build_candidates([BASE], mapped, [], [])
        assert kinds(found) == [CandidateType.HOST, CandidateType.SERVER_REFLEXIVE]

    def test_foundation_is_shared_by_type_base_and_server_alone(self) -> None:
        other_port = TransportAddress(MAPPED.host, MAPPED.port + 1)
        mapped = [
            Reflexive(MAPPED, BASE, SERVER),
            Reflexive(other_port, BASE, SERVER),
            Reflexive(TransportAddress("203.0.113.6", 1), BASE, "192.0.2.2"),
            Reflexive(TransportAddress("203.0.113.7", 1), BASE_B, SERVER),
        ]
        found = build_candidates([BASE, BASE_B], mapped, [], [])
        host, host_b, one, same, other_server, other_base = (each.foundation for each in found)
        assert one == same
        assert len({host, host_b, one, other_server, other_base}) == 5

    def test_advertised_address_is_the_first_reflexive_one(self) -> None:
        advertised = [TransportAddress("198.51.100.1", 0), TransportAddress("198.51.100.2", 7777)]
        found = build_candidates([BASE], [Reflexive(MAPPED, BASE, SERVER)], advertised, [])
        assert [str(each.address) for each in found[1:]] == [
            "198.51.100.1:5000",
            "198.51.100.2:7777",
            str(MAPPED),
        ]
        assert {each.type for each in found[1:]} == {CandidateType.SERVER_REFLEXIVE}
        assert {each.base for each in found[1:]} == {BASE}

    def test_advertised_address_without_base_or_of_our_own_is_left_out(self) -> None:
        found = build_candidates([BASE], [], [TransportAddress("2001:db8::9", 1), BASE], [])
        assert kinds(found) == [CandidateType.HOST]

    @pytest.mark.parametrize(
        "address",
        [
            *(TransportAddress(host, 1) for host in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.1.1")),
            TransportAddress("2001:db8::7", 1),
            TransportAddress(MAPPED.host, 0),
        ],
        ids=str,
    )
    def test_mapped_address_that_no_peer_can_use_is_left_out(self, address: TransportAddress) -> None:
        mapped = Reflexive(address, BASE, SERVER)
        assert kinds(build_candidates([BASE], [mapped], [], [])) == [CandidateType.HOST]

    def test_mapped_address_with_a_zone_is_left_out(self) -> None:
        mapped = Reflexive(TransportAddress("2001:db8:9::1%eth0", 1), BASE6, SERVER)
        assert kinds(build_candidates([BASE6], [mapped], [], [])) == [CandidateType.HOST]

    def test_each_type_has_its_share_of_thirty_two(self) -> None:
        bases = [TransportAddress(f"10.0.1.{number}", 5000) for number in range(50)]
        mapped = [Reflexive(TransportAddress(MAPPED.host, 1 + n), BASE, SERVER) for n in range(50)]
        relays = [TransportAddress(SERVER, 1 + number) for number in range(50)]
        found = build_candidates(bases, mapped, [], relays)
        assert len(found) == 32
        assert kinds(found).count(CandidateType.HOST) == MAX_HOST_CANDIDATES
        assert kinds(found).count(CandidateType.SERVER_REFLEXIVE) == MAX_REFLEXIVE_CANDIDATES
        assert kinds(found).count(CandidateType.RELAY) == MAX_RELAY_CANDIDATES

    def test_reflexive_families_take_turns(self) -> None:
        mapped = [Reflexive(TransportAddress(MAPPED.host, port), BASE, SERVER) for port in (1, 2)]
        mapped.append(Reflexive(TransportAddress("2001:db8:9::1", 3), BASE6, SERVER))
        found = build_candidates([BASE], mapped, [], [])
        assert [each.address.port for each in found[1:]] == [1, 3, 2]


@pytest.mark.parametrize(
    ("host", "loopback", "expected"),
    [
        ("192.0.2.1", False, True),
        ("127.0.0.1", False, False),
        ("::1", True, True),
        ("ff02::1", True, False),
        ("0.0.0.0", True, False),
    ],
)
def test_server_may_send_us_only_to_single_hosts(host: str, loopback: bool, expected: bool) -> None:
    assert is_remote(host, loopback=loopback) is expected


@given(
    st.lists(addresses, max_size=40),
    st.lists(st.tuples(addresses, addresses), max_size=40),
    st.lists(addresses, max_size=6),
    st.lists(addresses, max_size=6),
)
def test_priorities_are_unique_within_a_type_and_descend(
    bases: list[TransportAddress],
    mapped: list[tuple[TransportAddress, TransportAddress]],
    advertised: list[TransportAddress],
    relays: list[TransportAddress],
) -> None:
    reflexives = [Reflexive(address, base, SERVER) for address, base in mapped]
    found = build_candidates(list(dict.fromkeys(bases)), reflexives, advertised, relays)
    priorities = [each.priority for each in found]
    assert priorities == sorted(set(priorities), reverse=True)
    assert len(found) <= 32
