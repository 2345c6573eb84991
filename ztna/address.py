"""Transport addresses as values: one IP address literal and one port, parsed once, compared by value."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum

from ztna.errors import ConfigError

_IPV6_PREFIX_SHIFT = 128 - 48


class Family(IntEnum):
    """IP version."""

    IPV4 = 4
    IPV6 = 6


@dataclass(frozen=True, slots=True, order=True)
class TransportAddress:
    """An IP address literal and a UDP or TCP port (RFC 8445 §4: "transport address").

    `host` is the canonical text form (lower case, compressed, without brackets; an IPv4-mapped IPv6 address
    is written as IPv4; a link-local address keeps its `%zone`). Build one with `of` unless the text is known
    to be canonical.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> TransportAddress:
        """Canonicalise `host`; raises `ValueError` unless it is an IP literal and the port fits 16 bits."""
        if not 0 <= port <= 65535:  # noqa: PLR2004 - the size of the port field
            raise ValueError(f"port {port} is not within 0-65535")
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return cls(str(address), port)

    @property
    def family(self) -> Family:
        """IP version of `host`."""
        return Family.IPV6 if ":" in self.host else Family.IPV4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family is Family.IPV6 else f"{self.host}:{self.port}"


def split_host_port(text: str) -> tuple[str, int]:
    """Split `host:port`, `[v6]:port` or `name:port` without resolving anything.

    Raises `ConfigError` naming what is wrong with the text.
    """
    host, separator, port_text = text.rpartition(":")
    if not separator or not host:
        raise ConfigError(f"{text!r} is not of the form host:port (write an IPv6 address as [address]:port)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{text!r}: write an IPv6 address in brackets, [address]:port")
    if not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:  # noqa: PLR2004
        raise ConfigError(f"{text!r}: the port is not a number within 0-65535")
    return host, int(port_text)


def network_prefix(address: TransportAddress) -> str:
    """The /24 or /48 that one party usually controls: what a limit per stranger counts by."""
    if address.family is Family.IPV4:
        return address.host.rpartition(".")[0]
    return f"{int(ipaddress.IPv6Address(address.host)) >> _IPV6_PREFIX_SHIFT:x}::"
