"""Whether two sites leave room for a direct path, judged by what they are and not by what they measure.

Written apart from `ztna.nat.behaviour`, which explains to people what a node found out: an oracle that shares
its code with what it judges would share its mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tests.simnet.nat import AD, APD, EI, NatKind
from tools.simulate.scenario import FaultKind, Scenario, Site
from tools.simulate.variants import site_elsewhere
from ztna.address import Family
from ztna.nat.behaviour import Dependence

_STRICTNESS: Final = {EI: 0, AD: 1, APD: 2}
MIN_LIFETIME_S: Final = 30.0
"""Of mappings that our keepalives are made for; shorter ones may be lost between two of them."""
MIN_MTU_BYTES: Final = 1280
"""A link that carries less carries no QUIC (RFC 9000 §14), nor IPv6."""


def must_be_direct(scenario: Scenario, agent: str, connector: str) -> bool:
    """Whether a direct path has to be found once no fault is left.

    False means that nothing can be said: some NATs are passed by luck.
    """
    if scenario.policy != "prefer_direct" or scenario.link.mtu < MIN_MTU_BYTES:
        return False
    one, other = scenario.sites[agent], scenario.sites[connector]
    if min(one.mtu, other.mtu, *_narrow(scenario, agent, connector)) < MIN_MTU_BYTES:
        return False
    if agent in {one.with_node, other.with_node} or connector in {one.with_node, other.with_node}:
        return True
    one, other = (home_of(scenario.sites, name) for name in (agent, connector))
    return any(
        _may_meet(scenario, one, other, family)
        for family in set(one.families) & set(other.families) - {one.dead, other.dead}
    )


def in_the_end(scenario: Scenario) -> Scenario:
    """The same with each node where it is at last.

    Who moved is on a network with NATs of its own, or none; what its interface and its way carry
    moves with it. Who shared a network with it stays there.
    """
    sites = scenario.sites
    for fault in sorted(scenario.faults, key=lambda each: each.at):
        if fault.kind is not FaultKind.MOVE:
            continue
        sites = {
            name: replace(home_of(sites, name), with_node="", mtu=site.mtu)
            if site.with_node == fault.target
            else site
            for name, site in sites.items()
        }
        sites[fault.target] = replace(site_elsewhere(fault.detail), mtu=sites[fault.target].mtu)
    return replace(
        scenario,
        agents={name: sites[name] for name in scenario.agents},
        connectors={name: sites[name] for name in scenario.connectors},
    )


def home_of(sites: Mapping[str, Site], name: str) -> Site:
    """The site whose network a node is on: its own, or that of the node that it shares one with."""
    return sites[sites[name].with_node or name]


def _narrow(scenario: Scenario, agent: str, connector: str) -> Iterable[int]:
    """Of the way between the two, and of that to whoever tells them of each other."""
    ends = {agent, connector}
    found = [each.mtu for each in scenario.narrow if each.one in ends or each.other in ends]
    # Hosts remember what they were told, longer than any seed lasts.
    found += [
        int(each.amount)
        for each in scenario.faults
        if each.kind is FaultKind.MTU and each.detail == "told" and {each.target, each.other} == ends
    ]
    return found or [MIN_MTU_BYTES]


def _may_meet(scenario: Scenario, one: Site, other: Site, family: Family) -> bool:
    room = _leave_room(_nats(scenario, one, family), _nats(scenario, other, family))
    if family is not Family.IPV4 or not one.behind or one.behind != other.behind:
        return room
    # All that the network tells them of each other is at the address of the carrier's NAT.
    return (room and scenario.carriers[one.behind].is_hairpinning) or _meet_within(one, other)


def _meet_within(one: Site, other: Site) -> bool:
    """Whether they meet in the network behind their carrier's NAT."""
    if any(nat.is_udp_blocked or nat.lifetime_s < MIN_LIFETIME_S for nat in (*one.nats, *other.nats)):
        return False
    is_translated = [any(nat.is_translating for nat in each.nats) for each in (one, other)]
    if not any(is_translated):
        return True
    # Who has its address there can be sent to by the other, and has not sent to where that comes from.
    return any(
        not is_hidden and _strictest(nat.filtering for nat in each.nats) is EI
        for each, is_hidden in zip((one, other), is_translated, strict=True)
    )


def _nats(scenario: Scenario, site: Site, family: Family) -> Sequence[NatKind]:
    if family is Family.IPV4:
        return (scenario.carriers[site.behind], *site.nats) if site.behind else site.nats
    return () if site.firewall is None else (site.firewall,)


def _leave_room(one: Sequence[NatKind], other: Sequence[NatKind]) -> bool:
    if any(nat.is_udp_blocked or nat.lifetime_s < MIN_LIFETIME_S for nat in (*one, *other)):
        return False
    mappings = [_strictest(nat.mapping for nat in each if nat.is_translating) for each in (one, other)]
    filters = [_strictest(nat.filtering for nat in each) for each in (one, other)]
    if mappings == [EI, EI]:
        # Both know where to send to, and sending opens their own filters.
        return True
    for mine, theirs, their_filter in zip(mappings, reversed(mappings), reversed(filters), strict=True):
        # The side whose mapping varies is met at an address that the other learns from its packet, which
        # comes from a port that nothing was sent to.
        if mine is not EI and theirs is EI:
            return their_filter is not APD
    return False


def _strictest(kinds: Iterable[Dependence]) -> Dependence:
    return max(kinds, key=_STRICTNESS.__getitem__, default=EI)
