from __future__ import annotations

import itertools

import pytest

from ztna.nat.behaviour import (
    UNKNOWN_BEHAVIOUR,
    Dependence,
    NatBehaviour,
    direct_path_possible,
    obstacle,
)

EI, AD, APD = (
    Dependence.ENDPOINT_INDEPENDENT,
    Dependence.ADDRESS_DEPENDENT,
    Dependence.ADDRESS_AND_PORT_DEPENDENT,
)


def nat(mapping: Dependence, filtering: Dependence) -> NatBehaviour:
    return NatBehaviour(is_known=True, has_nat=True, mapping=mapping, filtering=filtering)


KINDS = {
    "open": NatBehaviour(is_known=True, mapping=EI, filtering=EI),
    "firewall": NatBehaviour(is_known=True, mapping=EI, filtering=APD),
    "full": nat(EI, EI),
    "address": nat(EI, AD),
    "port": nat(EI, APD),
    "address-dependent mapping": nat(AD, APD),
    "port-dependent mapping": nat(APD, APD),
}
# Measured with real netfilter NATs; every other pair met.
IMPOSSIBLE = {
    frozenset({"firewall", "address-dependent mapping"}),
    frozenset({"firewall", "port-dependent mapping"}),
    frozenset({"port", "address-dependent mapping"}),
    frozenset({"port", "port-dependent mapping"}),
    frozenset({"address-dependent mapping"}),
    frozenset({"port-dependent mapping"}),
    frozenset({"address-dependent mapping", "port-dependent mapping"}),
}


@pytest.mark.parametrize(("one", "other"), [*itertools.product(KINDS, KINDS)])
def test_verdict_on_each_pair_of_kinds_is_what_real_nats_showed(one: str, other: str) -> None:
    assert direct_path_possible(KINDS[one], KINDS[other]) == (frozenset({one, other}) not in IMPOSSIBLE)


def test_unknown_behaviour_rules_nothing_out() -> None:
    assert all(direct_path_possible(UNKNOWN_BEHAVIOUR, kind) for kind in KINDS.values())


@pytest.mark.parametrize("order", [1, -1])
def test_blocked_udp_on_either_side_is_named(order: int) -> None:
    one, other = (NatBehaviour(is_udp_blocked=True), KINDS["open"])[::order]
    assert obstacle(one, other) == "udp_blocked"


def test_partial_knowledge_of_one_server_address_is_enough_where_it_decides() -> None:
    varying = nat(Dependence.NOT_ENDPOINT_INDEPENDENT, Dependence.UNKNOWN)
    assert obstacle(varying, KINDS["port"]) == "mapping_varies_and_peer_filters_ports"
    assert obstacle(varying, varying) == "both_mappings_vary"
    assert not obstacle(varying, nat(EI, Dependence.NOT_PORT_DEPENDENT))
