"""What observed mappings say of a NAT: pure functions from observations to the words of RFC 4787."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Final

from ztna.address import TransportAddress
from ztna.nat.behaviour import Dependence, PortAllocation

MAX_SEQUENTIAL_STEP: Final = 16
"""Between the ports of two mappings made one after the other: 1 or 2 is what such NATs do, the rest is room
for what others behind the same NAT open in between. Two random ports come so close in 1 of 2000 cases."""

MIN_ALLOCATION_SAMPLES: Final = 3
"""Two steps in one direction, both small: chance alone would need to be lucky twice."""

PORTS: Final = 65_536


def mapping_dependence(mappings: Mapping[TransportAddress, TransportAddress]) -> Dependence:
    """What the mapping of a socket depends on (RFC 4787 §4.1, RFC 5780 §4.3); by server, the mapped address.

    Two servers are compared at a time. Unequal mappings to two ports of one address show that ports matter,
    equal ones to two addresses that nothing does; the rest tells less.
    """
    same_host_equal = same_host_differs = other_host_equal = other_host_differs = False
    for (one, mapped_one), (other, mapped_other) in combinations(sorted(mappings.items()), 2):
        is_equal = mapped_one == mapped_other
        if one.host == other.host:
            same_host_equal |= is_equal
            same_host_differs |= not is_equal
        else:
            other_host_equal |= is_equal
            other_host_differs |= not is_equal
    if same_host_differs:
        return Dependence.ADDRESS_AND_PORT_DEPENDENT
    if other_host_differs:
        return Dependence.ADDRESS_DEPENDENT if same_host_equal else Dependence.NOT_ENDPOINT_INDEPENDENT
    if other_host_equal:
        return Dependence.ENDPOINT_INDEPENDENT
    return Dependence.NOT_PORT_DEPENDENT if same_host_equal else Dependence.UNKNOWN


def port_allocation(samples: Sequence[tuple[int, int]]) -> tuple[PortAllocation, int]:
    """How external ports are chosen (RFC 4787 §4.2), and the step if they are sequential.

    `samples` are the local and the external port of fresh sockets, in the order of their mappings.
    """
    if not samples:
        return PortAllocation.UNKNOWN, 0
    kept = sum(local == external for local, external in samples)
    # One port may have been taken by another host behind the NAT; a random one is kept in 1 of 65 536 cases.
    if kept and kept >= len(samples) - 1:
        return PortAllocation.PRESERVED, 0
    if len(samples) < MIN_ALLOCATION_SAMPLES:
        return PortAllocation.UNKNOWN, 0
    steps = [_step(before, after) for (_, before), (_, after) in pairwise(samples)]
    has_one_sign = all(step > 0 for step in steps) or all(step < 0 for step in steps)
    if has_one_sign and max(map(abs, steps)) <= MAX_SEQUENTIAL_STEP:
        return PortAllocation.SEQUENTIAL, min(steps, key=abs)
    return PortAllocation.RANDOM, 0


def _step(before: int, after: int) -> int:
    """The shorter way round, as sequences start anew at their end."""
    step = (after - before) % PORTS
    return step - PORTS if step > PORTS // 2 else step
