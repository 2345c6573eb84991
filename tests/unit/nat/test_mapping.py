from __future__ import annotations

import pytest

from ztna.address import TransportAddress
from ztna.nat.behaviour import Dependence, PortAllocation
from ztna.nat.mapping import MAX_SEQUENTIAL_STEP, mapping_dependence, port_allocation

A1, A2 = TransportAddress("192.0.2.1", 1), TransportAddress("192.0.2.1", 2)
B1, B2 = TransportAddress("192.0.2.2", 1), TransportAddress("192.0.2.2", 2)
X, Y, Z = (TransportAddress("203.0.113.5", port) for port in (10, 20, 30))


@pytest.mark.parametrize(
    ("mappings", "expected"),
    [
        pytest.param({}, Dependence.UNKNOWN, id="nothing"),
        pytest.param({A1: X}, Dependence.UNKNOWN, id="one server"),
        pytest.param({A1: X, A2: X}, Dependence.NOT_PORT_DEPENDENT, id="two ports, equal"),
        pytest.param({A1: X, A2: Y}, Dependence.ADDRESS_AND_PORT_DEPENDENT, id="two ports, unequal"),
        pytest.param({A1: X, B1: X}, Dependence.ENDPOINT_INDEPENDENT, id="two addresses, equal"),
        pytest.param({A1: X, B1: Y}, Dependence.NOT_ENDPOINT_INDEPENDENT, id="two addresses, unequal"),
        pytest.param(
            {A1: X, A2: X, B1: Y}, Dependence.ADDRESS_DEPENDENT, id="address matters, port does not"
        ),
        pytest.param({A1: X, A2: X, B1: X, B2: X}, Dependence.ENDPOINT_INDEPENDENT, id="all equal"),
        pytest.param(
            {A1: X, A2: X, B1: Y, B2: Z}, Dependence.ADDRESS_AND_PORT_DEPENDENT, id="one pair unequal"
        ),
    ],
)
def test_mapping_depends_on(mappings: dict[TransportAddress, TransportAddress], expected: Dependence) -> None:
    assert mapping_dependence(mappings) is expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([], (PortAllocation.UNKNOWN, 0), id="nothing"),
        pytest.param([(5, 5)], (PortAllocation.PRESERVED, 0), id="one kept"),
        pytest.param([(5, 9)], (PortAllocation.UNKNOWN, 0), id="one changed"),
        pytest.param([(5, 9), (6, 10)], (PortAllocation.UNKNOWN, 0), id="two are too few"),
        pytest.param([(5, 5), (6, 6), (7, 900), (8, 8)], (PortAllocation.PRESERVED, 0), id="one was taken"),
        pytest.param([(5, 100), (9, 102), (2, 104)], (PortAllocation.SEQUENTIAL, 2), id="upwards"),
        pytest.param(
            [(5, 100), (9, 99), (2, 97)], (PortAllocation.SEQUENTIAL, -1), id="downwards, with a gap"
        ),
        pytest.param([(5, 65_535), (9, 1), (2, 3)], (PortAllocation.SEQUENTIAL, 2), id="past the end"),
        pytest.param([(5, 100), (9, 101), (2, 100)], (PortAllocation.RANDOM, 0), id="to and fro"),
        pytest.param([(5, 1000), (9, 40_000), (2, 7)], (PortAllocation.RANDOM, 0), id="anywhere"),
        pytest.param(
            [(5, 100), (9, 101), (2, 102 + MAX_SEQUENTIAL_STEP)], (PortAllocation.RANDOM, 0), id="too far"
        ),
    ],
)
def test_ports_are_allocated(samples: list[tuple[int, int]], expected: tuple[PortAllocation, int]) -> None:
    assert port_allocation(samples) == expected
