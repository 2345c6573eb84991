"""The mappings of a NAT, read from what `conntrack -L` prints."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from ztna.address import TransportAddress

TUPLE: Final = re.compile(r"\b(src|dst|sport|dport)=(\S+)")
# Source, destination, source port, destination port; of the original direction, then of the reply.
TUPLE_FIELDS: Final = 8


@dataclass(frozen=True, slots=True, order=True)
class Mapping:
    """One flow through a NAT: whose, as whom the world sees it, and with whom it talks."""

    inside: TransportAddress
    external: TransportAddress
    remote: TransportAddress
    protocol: str
    is_answered: bool


def parse(text: str, inside: list[str]) -> list[Mapping]:
    """Mappings of the flows that have one end in an inside prefix, sorted; other lines are left out."""
    networks = [ipaddress.ip_network(prefix) for prefix in inside]
    found = []
    for line in text.splitlines():
        fields = TUPLE.findall(line)
        if len(fields) != TUPLE_FIELDS:
            continue  # no ports: ICMP
        original, reply = dict(fields[:4]), dict(fields[4:])
        if _is_within(original["src"], networks):
            ends = (_source(original), _destination(reply), _destination(original))
        elif _is_within(reply["src"], networks):  # opened from outside
            ends = (_source(reply), _destination(original), _source(original))
        else:
            continue
        found.append(Mapping(*ends, line.split()[0], "[UNREPLIED]" not in line))
    return sorted(found)


def _is_within(address: str, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(ipaddress.ip_address(address) in network for network in networks)


def _source(fields: dict[str, str]) -> TransportAddress:
    return TransportAddress(fields["src"], int(fields["sport"]))


def _destination(fields: dict[str, str]) -> TransportAddress:
    return TransportAddress(fields["dst"], int(fields["dport"]))
