"""Kinds of NAT by what RFC 4787 distinguishes, and which pairs of them a direct path can exist between.

A site reaches the world through one kind, or through two, one behind the other (`Access`). The kinds' names
are those of the command line.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self


class MappingBehaviour(enum.IntEnum):
    """When an inside endpoint gets another external port (RFC 4787 section 4.1); larger: more often."""

    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class FilteringBehaviour(enum.IntEnum):
    """Who may answer through a mapping (RFC 4787 section 5); larger is more restrictive."""

    ENDPOINT_INDEPENDENT = 1
    ADDRESS_DEPENDENT = 2
    ADDRESS_AND_PORT_DEPENDENT = 3


class PortAllocation(enum.Enum):
    """Which external port a new mapping gets (RFC 4787 section 4.2)."""

    NONE = "none"
    PRESERVED = "preserved"
    RANDOM = "random"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a kind does to UDP."""

    mapping: MappingBehaviour
    filtering: FilteringBehaviour
    ports: PortAllocation
    family: int = 4
    passes_udp: bool = True


_EI, _AD, _APD = MappingBehaviour
_EIF, _ADF, _APDF = FilteringBehaviour


class Kind(enum.Enum):
    """What stands between a site and the world."""

    OPEN = "open"
    FIREWALL = "firewall"
    EIM_EIF = "eim-eif"
    EIM_ADF = "eim-adf"
    EIM_APDF = "eim-apdf"
    EIM_APDF_RANDOM = "eim-apdf-random"
    ADM_APDF = "adm-apdf"
    APDM_RANDOM = "apdm-random"
    APDM_SEQUENTIAL = "apdm-sequential"
    UDP_BLOCKED = "udp-blocked"
    OPEN_V6 = "open-v6"
    FIREWALL_V6 = "firewall-v6"

    @property
    def behaviour(self) -> Behaviour:
        """Its behaviour in the terms of RFC 4787."""
        return _BEHAVIOURS[self]

    @property
    def translates(self) -> bool:
        """Whether it is a NAT."""
        return self.behaviour.ports is not PortAllocation.NONE


_BEHAVIOURS = {
    Kind.OPEN: Behaviour(_EI, _EIF, PortAllocation.NONE),
    Kind.FIREWALL: Behaviour(_EI, _APDF, PortAllocation.NONE),
    Kind.EIM_EIF: Behaviour(_EI, _EIF, PortAllocation.PRESERVED),
    Kind.EIM_ADF: Behaviour(_EI, _ADF, PortAllocation.PRESERVED),
    Kind.EIM_APDF: Behaviour(_EI, _APDF, PortAllocation.PRESERVED),
    Kind.EIM_APDF_RANDOM: Behaviour(_EI, _APDF, PortAllocation.RANDOM),
    Kind.ADM_APDF: Behaviour(_AD, _APDF, PortAllocation.RANDOM),
    Kind.APDM_RANDOM: Behaviour(_APD, _APDF, PortAllocation.RANDOM),
    Kind.APDM_SEQUENTIAL: Behaviour(_APD, _APDF, PortAllocation.SEQUENTIAL),
    Kind.UDP_BLOCKED: Behaviour(_EI, _APDF, PortAllocation.PRESERVED, passes_udp=False),
    Kind.OPEN_V6: Behaviour(_EI, _EIF, PortAllocation.NONE, family=6),
    Kind.FIREWALL_V6: Behaviour(_EI, _APDF, PortAllocation.NONE, family=6),
}


@dataclass(frozen=True, slots=True)
class Access:
    """The NATs between a site and the world, the one nearer to the site first: one, or two."""

    inner: Kind
    outer: Kind | None = None

    def __post_init__(self) -> None:
        if self.outer is not None and not (self.inner.translates and self.outer.translates):
            raise ValueError(f"{self}: only a NAT can stand behind a second NAT")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `KIND` or `KIND/KIND`, inner first. Raises `ValueError` naming the kinds there are."""
        try:
            kinds = [Kind(name) for name in text.split("/")]
            return cls(*kinds)
        except TypeError:
            raise ValueError(f"{text}: at most two layers") from None
        except ValueError as error:
            if "NAT" in str(error):
                raise
            raise ValueError(
                f"{text}: no such kind; there are {', '.join(kind.value for kind in Kind)}"
            ) from None

    @property
    def layers(self) -> tuple[Kind, ...]:
        """The kinds, inner first."""
        return (self.inner,) if self.outer is None else (self.inner, self.outer)

    @property
    def behaviour(self) -> Behaviour:
        """What both layers together do: each behaviour is that of the more restrictive one."""
        each = [kind.behaviour for kind in self.layers]
        return Behaviour(
            mapping=max(one.mapping for one in each),
            filtering=max(one.filtering for one in each),
            ports=each[-1].ports,
            family=each[0].family,
            passes_udp=all(one.passes_udp for one in each),
        )

    def __str__(self) -> str:
        return "/".join(kind.value for kind in self.layers)


class Rule(enum.Enum):
    """What decides about a pair, the first that applies; each is a word of `obstacle`, or makes it direct."""

    UDP_BLOCKED = "udp_blocked"
    NO_COMMON_FAMILY = "no_common_family"
    BOTH_MAPPINGS_VARY = "both_mappings_vary"
    MAPPING_VARIES_AND_PEER_FILTERS_PORTS = "mapping_varies_and_peer_filters_ports"
    MAPPING_VARIES_AND_PEER_LETS_IN = "mapping_varies_and_peer_lets_in"
    NO_MAPPING_VARIES = "no_mapping_varies"

    @property
    def is_direct(self) -> bool:
        """Whether a direct path has to come about."""
        return self in {Rule.MAPPING_VARIES_AND_PEER_LETS_IN, Rule.NO_MAPPING_VARIES}


def deciding_rule(a: Access, b: Access) -> Rule:
    """What decides whether a direct path between two sites can exist.

    By RFC 4787 logic, with an intermediate that tells each side how the other's packets look to it, and
    without prediction of ports. Both sites have an outermost NAT of their own: hairpinning in a common one
    is another question. Said here once more than in the product, which is measured against it.
    """
    one, other = a.behaviour, b.behaviour
    if not (one.passes_udp and other.passes_udp):
        return Rule.UDP_BLOCKED
    if one.family != other.family:
        return Rule.NO_COMMON_FAMILY
    varies = [each.mapping is not MappingBehaviour.ENDPOINT_INDEPENDENT for each in (one, other)]
    if all(varies):
        return Rule.BOTH_MAPPINGS_VARY
    for is_varying, peer in ((varies[0], other), (varies[1], one)):
        # Its port is known only from a packet that arrives, so that packet has to be let in.
        if is_varying and peer.filtering is FilteringBehaviour.ADDRESS_AND_PORT_DEPENDENT:
            return Rule.MAPPING_VARIES_AND_PEER_FILTERS_PORTS
    return Rule.MAPPING_VARIES_AND_PEER_LETS_IN if any(varies) else Rule.NO_MAPPING_VARIES


def obstacle(a: Access, b: Access) -> str:
    """Why no direct path between two sites can exist (snake_case), or empty when one must."""
    rule = deciding_rule(a, b)
    return "" if rule.is_direct else rule.value


def direct_path_possible(a: Access, b: Access) -> bool:
    """Whether RFC 4787 logic says that a direct path has to come about."""
    return not obstacle(a, b)
