"""The nftables rules that make a router behave as a kind: text, made from values.

The kernel's own source NAT has endpoint-independent mapping that keeps the port, and filters by address and
port. Everything else is made of maps beside it:

- filtering that is less strict: a map learns external port to inside endpoint after source NAT, and
  destination NAT reads it for what comes in;
- other mappings: the port is looked up in a table of `POOL` ports, indexed by a hash of what the mapping is
  to depend on, or by a counter. (`numgen` and `jhash` cannot stand for a port themselves: they come
  byte-swapped.) A hash chooses among a few ports, not one: the kernel drops a flow that finds its only port
  taken. It keeps to the port that an inside endpoint has already, as long as that is one of them.

A new inbound packet is dropped in `input`. Otherwise the router would accept it for itself and conntrack
confirm it, and the inside host's own mapping could not get that port any more: a peer that is early would
spoil the punch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tools.natlab.kinds import FilteringBehaviour, Kind, MappingBehaviour, PortAllocation
from tools.natlab.topology import Router

# Ports of one incarnation of a NAT; enough that flows of a test rarely meet, few enough to load in
# milliseconds.
POOL: Final = 4096
PORTS_OF_A_HASH: Final = 8
FIRST_PORT: Final = 16_384
# RFC 4787 REQ-5 asks for at least two minutes.
MAP_LIFETIME_S: Final = 120
MAP_SIZE: Final = 65_535


@dataclass(frozen=True, slots=True)
class Incarnation:
    """What a rebind changes: 0 is the first, and keeps ports where the kind does."""

    number: int = 0
    seed: int = 0

    @property
    def first_port(self) -> int:
        """Where its ports begin; neighbours do not overlap."""
        return FIRST_PORT + self.number % 8 * POOL


def ruleset(router: Router, incarnation: Incarnation) -> str:
    """A script for `nft -f -` that replaces the router's tables in one transaction."""
    blocks = [_ipv4(router, incarnation)]
    if router.kind_v6 is not None:
        blocks.append(_table("ip6", "filter", _firewall_chains(router, router.kind_v6)))
    return "\n".join(blocks)


def cut_rules(drops: list[str]) -> str:
    """A script that drops silently what matches one of these expressions, and nothing else any more."""
    chain = _chain("forward", "type filter hook forward priority -10; policy accept", drops)
    return _table("inet", "cut", [chain])


def forward_match(
    interface_in: str | None, source: str | None, destination: str | None, protocol: str | None
) -> str:
    """A rule that drops what is forwarded and matches all that is given."""
    words = []
    if interface_in is not None:
        words.append(f"iifname {interface_in}")
    for direction, address in (("saddr", source), ("daddr", destination)):
        if address is not None:
            words.append(f"{'ip6' if ':' in address else 'ip'} {direction} {address}")
    if protocol is not None:
        words.append(f"meta l4proto {protocol}")
    return " ".join([*words, "drop"])


def _table(family: str, name: str, blocks: list[str]) -> str:
    # Declared first, so that there is one to delete.
    head = f"table {family} {name} {{\n}}\ndelete table {family} {name}\n"
    return f"{head}table {family} {name} {{\n" + "\n".join(blocks) + "\n}\n"


def _chain(name: str, hook: str, rules: list[str]) -> str:
    return "\n".join([f" chain {name} {{", f"  {hook};", *(f"  {rule}" for rule in rules), " }"])


def _ipv4(router: Router, incarnation: Incarnation) -> str:
    if not router.kind.translates:
        return _table("ip", "nat", _firewall_chains(router, router.kind))
    behaviour = router.kind.behaviour
    blocks = []
    learns = behaviour.mapping is MappingBehaviour.ENDPOINT_INDEPENDENT and (
        behaviour.filtering is not FilteringBehaviour.ADDRESS_AND_PORT_DEPENDENT or router.has_hairpin
    )
    if learns:
        blocks += _learning(router, behaviour.filtering)
    blocks.append(_postrouting(router, incarnation))
    blocks.append(_input(router, leaves_hairpin=learns and router.has_hairpin))
    blocks.append(_nat_forward(router))
    return _table("ip", "nat", blocks)


def _lan_set(router: Router) -> str:
    return "{ " + ", ".join(name for name, _ in router.lans) + " }"


def _postrouting(router: Router, incarnation: Incarnation) -> str:
    snat = _snat(router, incarnation)
    rules = [f"oifname {router.wan} meta l4proto udp {snat}"]
    if router.has_hairpin:
        rules.append(f"oifname {_lan_set(router)} ct status dnat meta l4proto udp jump translate")
        rules[0] = f"oifname {router.wan} meta l4proto udp jump translate"
    rules.append(f"oifname {router.wan} snat ip to {router.external}")
    post = _chain("post", "type nat hook postrouting priority srcnat", rules)
    if not router.has_hairpin:
        return post
    # One chain for both ways, so that both get the same port.
    return f" chain translate {{\n  {snat}\n }}\n{post}"


def _snat(router: Router, incarnation: Incarnation) -> str:
    behaviour = router.kind.behaviour
    target = f"snat ip to {router.external}"
    if behaviour.mapping is MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT:
        if behaviour.ports is PortAllocation.RANDOM:
            return f"{target}:1024-65535 fully-random"
        ports = ", ".join(f"{index} : {incarnation.first_port + index}" for index in range(POOL))
        return f"{target} : numgen inc mod {POOL} map {{ {ports} }}"
    keys = "ip saddr . udp sport"
    if behaviour.mapping is MappingBehaviour.ADDRESS_DEPENDENT:
        keys += " . ip daddr"
    elif behaviour.ports is PortAllocation.PRESERVED and incarnation.number == 0:
        return target
    # A NAT that keeps ports would keep them across a rebind too; from then on, a hash chooses.
    hashes = POOL // PORTS_OF_A_HASH
    table = _ranges(router.external, incarnation.first_port, hashes)
    return f"snat ip to jhash {keys} mod {hashes} seed {incarnation.seed:#x} {table}"


def _ranges(external: str, first: int, count: int) -> str:
    ranges = ", ".join(
        f"{index} : {external} . {start}-{start + PORTS_OF_A_HASH - 1}"
        for index in range(count)
        for start in (first + index * PORTS_OF_A_HASH,)
    )
    return f"map {{ {ranges} }}"


def _learning(router: Router, filtering: FilteringBehaviour) -> list[str]:
    """The maps, the chain that fills them and the one that reads them."""
    lifetime = router.mapping_lifetime_s or MAP_LIFETIME_S
    inside = "ct original ip saddr . ct original proto-src"
    inside_of_reply = "ct reply ip saddr . ct reply proto-src"
    outgoing = f"ip saddr {router.external} meta l4proto udp"
    blocks, learn, read = [], [], []

    def add_map(name: str, key: str) -> None:
        blocks.append(
            f" map {name} {{\n  type {key} : ipv4_addr . inet_service\n  flags dynamic,timeout\n"
            f"  timeout {lifetime}s\n  size {MAP_SIZE}\n }}"
        )

    if filtering is FilteringBehaviour.ENDPOINT_INDEPENDENT or router.has_hairpin:
        add_map("mapped", "inet_service")
        out = (
            f"{{ {router.wan}, {', '.join(name for name, _ in router.lans)} }}"
            if router.has_hairpin
            else router.wan
        )
        learn.append(
            f"oifname {out} {outgoing} ct direction original update @mapped {{ udp sport : {inside} }}"
        )
        # Keeps a mapping alive that is used by answers only.
        learn.append(
            f"oifname {router.wan} meta l4proto udp ct direction reply "
            f"update @mapped {{ ct original proto-dst : {inside_of_reply} }}"
        )
    if filtering is FilteringBehaviour.ADDRESS_DEPENDENT:
        add_map("permitted", "ipv4_addr . inet_service")
        learn.append(
            f"oifname {router.wan} {outgoing} ct direction original "
            f"update @permitted {{ ip daddr . udp sport : {inside} }}"
        )
        learn.append(
            f"oifname {router.wan} meta l4proto udp ct direction reply "
            f"update @permitted {{ ip daddr . ct original proto-dst : {inside_of_reply} }}"
        )
    incoming = f"ip daddr {router.external} meta l4proto udp dnat"
    if router.has_hairpin:
        read.append(f"iifname {_lan_set(router)} {incoming} ip to udp dport map @mapped")
    if filtering is FilteringBehaviour.ENDPOINT_INDEPENDENT:
        read.append(f"iifname {router.wan} {incoming} ip to udp dport map @mapped")
    elif filtering is FilteringBehaviour.ADDRESS_DEPENDENT:
        read.append(f"iifname {router.wan} {incoming} ip to ip saddr . udp dport map @permitted")
    # After source NAT, so that the source port is the external one.
    blocks.append(_chain("learn", "type filter hook postrouting priority 101", learn))
    blocks.append(_chain("pre", "type nat hook prerouting priority dstnat", read))
    return blocks


def _input(router: Router, *, leaves_hairpin: bool) -> str:
    rules = [f"iifname {router.wan} ct state new meta l4proto {{ tcp, udp }} drop"]
    if not leaves_hairpin:
        rules.append(f"iifname {_lan_set(router)} ip daddr {router.external} meta l4proto udp drop")
    return _chain("input", "type filter hook input priority filter", rules)


def _nat_forward(router: Router) -> str:
    lans = _lan_set(router)
    # BCP 38: what still has the address of another uplink disappears, as it does at a carrier.
    rules = [f"iifname {lan} ip saddr != {prefix} drop" for lan, prefix in router.lans]
    if router.kind is Kind.UDP_BLOCKED:
        rules += [
            f"iifname {lans} tcp dport 443 accept",
            "meta l4proto udp drop",
            "ct state established,related accept",
        ]
    else:
        rules += [
            "ct state established,related accept",
            "ct status dnat accept",
            f"iifname {lans} oifname {router.wan} accept",
        ]
    return _chain("forward", "type filter hook forward priority filter; policy drop", rules)


def _firewall_chains(router: Router, kind: Kind) -> list[str]:
    """A router that translates nothing: open, or stateful."""
    lans = _lan_set(router)
    if kind in {Kind.OPEN, Kind.OPEN_V6}:
        return [_chain("forward", "type filter hook forward priority filter; policy accept", [])]
    rules = ["ct state established,related accept", f"iifname {lans} accept"]
    if kind is Kind.FIREWALL_V6:
        # RFC 4890: without it, there is no path MTU discovery.
        rules.append("meta l4proto ipv6-icmp accept")
    return [_chain("forward", "type filter hook forward priority filter; policy drop", rules)]
