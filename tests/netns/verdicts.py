"""What nodes have to say of the NATs before them, by the kind of their site in the lab."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tests.netns.nodes import Nodes
from tools.deployment import DeploymentError
from tools.natlab.cell import restart_ice
from tools.natlab.kinds import Access, PortAllocation

# Longer than the tests take, and than what was asked may not be asked again.
FIRST_LOOK_LIMIT_S = 40.0

# The numbers of `MappingBehaviour` and `FilteringBehaviour`. One address tells by its two ports whether the
# port matters, and nothing more.
BY_ONE_ADDRESS = {1: "not_port_dependent", 2: "not_port_dependent", 3: "address_and_port_dependent"}
BY_TWO_ADDRESSES = {1: "endpoint_independent", 2: "address_dependent", 3: "address_and_port_dependent"}


def expected_nat(access: Access, *, addresses: int = 1) -> dict[str, Any]:
    """As `ztna status --json` has it, for a node whose intermediates have one address together, or two.

    Each of them has one, so that filters are known as far as one address tells.
    """
    behaviour = access.behaviour
    facts: dict[str, Any] = {
        "is_known": True,
        "has_nat": True,
        "mapping": (BY_ONE_ADDRESS if addresses == 1 else BY_TWO_ADDRESSES)[behaviour.mapping],
        "filtering": BY_ONE_ADDRESS[behaviour.filtering],
        "port_allocation": behaviour.ports.value,
        "is_udp_blocked": False,
    }
    if not any(kind.translates for kind in access.layers):
        # Whoever is asked sees the node's own address and port.
        same = {"mapping": "endpoint_independent", "port_allocation": PortAllocation.PRESERVED.value}
        facts |= {"has_nat": False} | same
    if not behaviour.passes_udp:
        facts |= dict.fromkeys(("is_known", "has_nat"), False)
        facts |= dict.fromkeys(("mapping", "filtering", "port_allocation"))
        facts["is_udp_blocked"] = True
    return facts


def wait_for_nat(nodes: Nodes, node: str, access: str, *, addresses: int = 1) -> dict[str, Any]:
    """Wait until a node says of its NAT what is true, and no less; returns its status.

    A filter by port is known after six requests without an answer, 4.7 s. Where a test had no answer in time,
    because twenty daemons begin at once, a node says less; a search after 30 s has it look again.
    """
    wanted = expected_nat(Access.parse(access), addresses=addresses)

    def is_told(status: dict[str, Any]) -> bool:
        return {fact: (status["nat"] or {}).get(fact) for fact in wanted} == wanted

    what = f"{access} is known to be {wanted}"
    with suppress(DeploymentError):
        return nodes.deployment.wait_for(node, is_told, what, FIRST_LOOK_LIMIT_S)
    if nodes.session(node).session_id:
        restart_ice(nodes.deployment, node)
    return nodes.deployment.wait_for(node, is_told, what)
