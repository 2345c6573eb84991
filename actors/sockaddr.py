"""Transport addresses to and from what the socket calls take, without ever asking a name service."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, Final

from ztna.address import Family, TransportAddress

# What `socket` calls a peer: (host, port) or (host, port, flow information, scope id).
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

SOCKET_FAMILY: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def is_literal(host: str) -> bool:
    """Whether `host` is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def to_sockaddr(address: TransportAddress) -> SocketAddress:
    """Translate for `bind`, `connect` and `sendmsg`.

    Raises `OSError` for a host that is not an IP literal (the socket calls would block on the name service)
    and for an unknown zone.
    """
    if address.family is Family.IPV4:
        socket.inet_pton(socket.AF_INET, address.host)
        return address.host, address.port
    host, _, zone = address.host.partition("%")
    socket.inet_pton(socket.AF_INET6, host)
    return host, address.port, 0, zone_index(zone)


def from_sockaddr(sockaddr: tuple[Any, ...]) -> TransportAddress:
    """Translate what the kernel reports; its text form is canonical already, only the zone is missing."""
    host: str = sockaddr[0]
    port: int = sockaddr[1]
    if ":" not in host:
        return TransportAddress(host, port)
    return TransportAddress(with_zone(host, sockaddr[3]), port)


def zone_index(zone: str) -> int:
    """The interface index of a zone (a name or a number; empty is 0). Raises `OSError` when unknown."""
    if not zone:
        return 0
    return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)


def with_zone(host: str, index: int) -> str:
    """Add the interface's name to an IPv6 address that only means something on that interface."""
    if not index or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(index)}"
    except OSError:
        # The interface is gone; the number still tells it apart.
        return f"{host}%{index}"


def resolved_addresses(results: list[tuple[Any, ...]]) -> list[TransportAddress]:
    """The addresses of a `getaddrinfo` answer in the resolver's order (RFC 6724), each once."""
    return list(
        dict.fromkeys(
            from_sockaddr(sockaddr)
            for family, _, _, _, sockaddr in results
            if family in {socket.AF_INET, socket.AF_INET6}
        )
    )
