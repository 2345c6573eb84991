"""Which transport addresses of this node are candidates, and in what order (RFC 8445 §5.1): pure functions.

What is left out: loopback unless wanted; link-local, since its zone means nothing to the peer (an address of
wider scope is there whenever a path beyond the link is); and what RFC 8445 §5.1.1.1 forbids (IPv4-mapped,
IPv4-compatible and site-local IPv6). Temporary IPv6 addresses are candidates like any other; whether one is
deprecated the system's list does not say, and the peer's checks find out.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final, TypeVar

from ztna.address import Family, TransportAddress
from ztna.ice.candidate import MAX_LOCAL_PREFERENCE, Candidate, CandidateType, priority

ItemT = TypeVar("ItemT")

MAX_HOST_CANDIDATES: Final = 16
MAX_REFLEXIVE_CANDIDATES: Final = 12
MAX_RELAY_CANDIDATES: Final = 4
"""32 together, which is what a side may signal. Each type has its share, so that a machine with many bridges
does not crowd out the one address that the peer can reach."""

_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound
_IPV4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


@dataclass(frozen=True, slots=True)
class Reflexive:
    """An address that others see packets of `base` come from; `origin` is whoever said so."""

    address: TransportAddress
    base: TransportAddress
    origin: str


def host_addresses(
    bound: Iterable[TransportAddress],
    hosts: Sequence[str],
    sources: Mapping[Family, str],
    *,
    loopback: bool,
) -> tuple[TransportAddress, ...]:
    """Addresses of host candidates, best first.

    `bound` are the sockets, of which the first of a family counts; `hosts` the addresses of all interfaces;
    `sources` the addresses that packets to the internet leave from, which are the best of their family. A
    socket bound to one address has that one. Families take turns, IPv6 first (RFC 8421 §4), so that neither
    waits behind all of the other.
    """
    sockets: dict[Family, TransportAddress] = {}
    for each in bound:
        sockets.setdefault(each.family, each)
    found: list[TransportAddress] = []
    for family in (Family.IPV6, Family.IPV4):
        local = sockets.get(family)
        if local is not None:
            usable = [host for host in _hosts_of(local, hosts) if _is_candidate(host, loopback=loopback)]
            best_first = sorted(usable, key=lambda host: (_is_loopback(host), host not in sources.values()))
            found += [TransportAddress(host, local.port) for host in best_first]
    return tuple(_in_turns(found, lambda address: address))


def build_candidates(
    bases: Sequence[TransportAddress],
    reflexives: Iterable[Reflexive],
    advertised: Iterable[TransportAddress],
    relays: Iterable[TransportAddress],
) -> tuple[Candidate, ...]:
    """The candidates to signal, highest priority first; all arguments are in order of preference.

    An advertised address with port 0 is forwarded under the port of our socket.

    An advertised address is a server-reflexive candidate, the first of them: a mapping that somebody vouches
    for, whose packets arrive at, and leave from, our base. A reflexive candidate that is one of our own
    addresses is redundant (RFC 8445 §5.1.3), and so is one that is there already.
    """
    hosts = [
        Candidate(
            CandidateType.HOST,
            base,
            base,
            _priority(CandidateType.HOST, rank),
            _foundation(CandidateType.HOST, base.host, ""),
        )
        for rank, base in enumerate(bases[:MAX_HOST_CANDIDATES])
    ]
    mapped = [*_advertised_mappings(bases, advertised), *reflexives]
    return (
        *hosts,
        *_reflexive_candidates(mapped, {*bases}),
        *(
            Candidate(
                CandidateType.RELAY,
                address,
                address,
                _priority(CandidateType.RELAY, rank),
                _foundation(CandidateType.RELAY, address.host, address.host),
            )
            for rank, address in enumerate(list(dict.fromkeys(relays))[:MAX_RELAY_CANDIDATES])
        ),
    )


def is_remote(host: str, *, loopback: bool) -> bool:
    """Whether a server may send us there: no group, nobody's address, and no loopback unless `loopback`."""
    address = ipaddress.ip_address(host)
    return not (address.is_multicast or address.is_unspecified or (address.is_loopback and not loopback))


def _advertised_mappings(
    bases: Sequence[TransportAddress], advertised: Iterable[TransportAddress]
) -> Iterable[Reflexive]:
    for each in advertised:
        base = next((base for base in bases if base.family is each.family), None)
        if base is not None:
            yield Reflexive(TransportAddress(each.host, each.port or base.port), base, "advertised")


def _reflexive_candidates(
    mapped: Sequence[Reflexive], own: Collection[TransportAddress]
) -> Iterable[Candidate]:
    unique: dict[tuple[TransportAddress, TransportAddress], Reflexive] = {}
    for each in mapped:
        if _is_reflexive(each) and each.address not in own:
            unique.setdefault((each.address, each.base), each)
    ordered = _in_turns(unique.values(), lambda each: each.address)
    for rank, each in enumerate(ordered[:MAX_REFLEXIVE_CANDIDATES]):
        yield Candidate(
            CandidateType.SERVER_REFLEXIVE,
            each.address,
            each.base,
            _priority(CandidateType.SERVER_REFLEXIVE, rank),
            _foundation(CandidateType.SERVER_REFLEXIVE, each.base.host, each.origin),
            each.base,
        )


def _priority(kind: CandidateType, rank: int) -> int:
    return priority(kind, MAX_LOCAL_PREFERENCE - rank)


def _foundation(kind: CandidateType, base_host: str, origin: str) -> str:
    """Equal for equal type, base address and server (RFC 8445 §5.1.1.3); short, and tells nothing."""
    return hashlib.sha256(f"{kind.value} {base_host} {origin}".encode()).hexdigest()[:8]


def _hosts_of(local: TransportAddress, hosts: Sequence[str]) -> list[str]:
    if local.host not in _ANY_HOST:
        # All of 127.0.0.0/8 is ours, listed or not.
        return [local.host] if local.host in hosts or _is_loopback(local.host) else []
    return sorted({host for host in hosts if TransportAddress(host, 0).family is local.family})


def _is_reflexive(each: Reflexive) -> bool:
    """Whether it could be reached at all; a loopback address only by who is on loopback, too."""
    if each.address.family is not each.base.family or not each.address.port or "%" in each.address.host:
        return False
    return _is_candidate(each.address.host, loopback=_is_loopback(each.base.host))


def _in_turns(items: Iterable[ItemT], address: Callable[[ItemT], TransportAddress]) -> list[ItemT]:
    """Families take turns, that of the first item first; the order within each is kept."""
    by_family: dict[Family, list[ItemT]] = {}
    for item in items:
        by_family.setdefault(address(item).family, []).append(item)
    turns = chain.from_iterable(zip_longest(*by_family.values()))
    return [item for item in turns if item is not None]


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _is_candidate(host: str, *, loopback: bool) -> bool:
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return loopback
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        is_mapped = address.ipv4_mapped is not None
        return not (is_mapped or address in _IPV4_COMPATIBLE or address.is_site_local)
    return True
