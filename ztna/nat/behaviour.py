"""How NATs behave, in the terms of RFC 4787, and whether two of them leave room for a direct path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Dependence(Enum):
    """What a mapping (RFC 4787 §4.1) or a filter (§5) depends on.

    The last two are what one server address can tell: its two ports show whether the port part matters, and
    nothing more.
    """

    UNKNOWN = "unknown"
    ENDPOINT_INDEPENDENT = "endpoint_independent"
    ADDRESS_DEPENDENT = "address_dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address_and_port_dependent"
    NOT_PORT_DEPENDENT = "not_port_dependent"
    NOT_ENDPOINT_INDEPENDENT = "not_endpoint_independent"


class PortAllocation(Enum):
    """How external ports are chosen (RFC 4787 §4.2)."""

    UNKNOWN = "unknown"
    PRESERVED = "preserved"
    SEQUENTIAL = "sequential"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class NatBehaviour:
    """What is known of all the NATs before a node, taken together.

    Attributes:
        is_known: at least one mapping test was answered.
        has_nat: no reflexive address is one of the node's own.
        port_step: between mappings made one after the other; 0 unless they are sequential.
        is_udp_blocked: nothing sent over UDP was answered.
    """

    is_known: bool = False
    has_nat: bool = False
    mapping: Dependence = Dependence.UNKNOWN
    filtering: Dependence = Dependence.UNKNOWN
    port_allocation: PortAllocation = PortAllocation.UNKNOWN
    port_step: int = 0
    is_udp_blocked: bool = False


UNKNOWN_BEHAVIOUR = NatBehaviour()

_VARYING_MAPPINGS = frozenset(
    {
        Dependence.ADDRESS_DEPENDENT,
        Dependence.ADDRESS_AND_PORT_DEPENDENT,
        Dependence.NOT_ENDPOINT_INDEPENDENT,
    }
)


BOTH_MAPPINGS_VARY: Final = "both_mappings_vary"
MAPPING_VARIES_AND_PEER_FILTERS_PORTS: Final = "mapping_varies_and_peer_filters_ports"
MAPPING_OBSTACLES: Final = frozenset({BOTH_MAPPINGS_VARY, MAPPING_VARIES_AND_PEER_FILTERS_PORTS})
"""What may read otherwise once more is known of the NATs."""


def obstacle(one: NatBehaviour, other: NatBehaviour) -> str:
    """Why no direct path between two nodes can exist (snake_case), or empty when one may.

    A mapping that varies with the destination is known to nobody in advance. The peer learns it from the
    first packet that arrives, so its own mapping must be stable, and its filter must let pass a packet from
    a port it never sent to. What is unknown rules nothing out. Nodes behind one common NAT, and ports that
    can be predicted, are beyond this judgement: it is an explanation, and checks are made all the same.
    """
    if one.is_udp_blocked or other.is_udp_blocked:
        return "udp_blocked"
    varying = [each.mapping in _VARYING_MAPPINGS for each in (one, other)]
    if all(varying):
        return BOTH_MAPPINGS_VARY
    for is_varying, peer in ((varying[0], other), (varying[1], one)):
        if is_varying and peer.filtering is Dependence.ADDRESS_AND_PORT_DEPENDENT:
            return MAPPING_VARIES_AND_PEER_FILTERS_PORTS
    return ""


def direct_path_possible(one: NatBehaviour, other: NatBehaviour) -> bool:
    """Whether RFC 4787 logic leaves room for a direct path; the order of the two does not matter."""
    return not obstacle(one, other)
