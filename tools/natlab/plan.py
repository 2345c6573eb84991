"""What a lab is to look like: frozen values, checked, without any effect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from tools.natlab.kinds import Access, Kind

# Interface names have at most 15 characters, and these are part of some.
NAME: Final = re.compile(r"[a-z][a-z0-9]{0,7}")
# Prefixes of 16 addresses in one /24; the first and the last stay free.
MAX_UPLINKS: Final = 14
MIN_MTU: Final = 576
MIN_MTU_V6: Final = 1280
MAX_MTU: Final = 9000
MAX_DELAY_MS: Final = 10_000.0
RESERVED_NAMES: Final = frozenset({"core", "mid", "mid2", "nat", "cgnat"})
V6_KINDS: Final = (Kind.OPEN_V6, Kind.FIREWALL_V6)


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction: delay and jitter (uniform, plus or minus) in ms, loss 0 to 1, rate in Mbit/s."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.delay_ms <= MAX_DELAY_MS and 0 <= self.jitter_ms <= MAX_DELAY_MS):
            raise ValueError(f"delay and jitter are 0 to {MAX_DELAY_MS:.0f} ms")
        if not 0 <= self.loss <= 1:
            raise ValueError("loss is 0 to 1")
        if self.rate_mbit is not None and self.rate_mbit <= 0:
            raise ValueError("a rate is more than 0 Mbit/s")

    @property
    def needs_queue(self) -> bool:
        """Whether packets have to be held or dropped on the way."""
        return bool(self.delay_ms or self.jitter_ms or self.loss)


@dataclass(frozen=True, slots=True)
class Link:
    """A link: `up` is away from the site or the intermediate, `down` towards it; MTU in bytes."""

    up: Direction = Direction()
    down: Direction = Direction()
    mtu: int = 1500

    def __post_init__(self) -> None:
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ValueError(f"an MTU is {MIN_MTU} to {MAX_MTU}")

    @classmethod
    def both(cls, direction: Direction, mtu: int = 1500) -> Self:
        """The same in both directions."""
        return cls(direction, direction, mtu)

    @classmethod
    def parse(cls, text: str, former: Link | None = None) -> Link:
        """From `delay=20,jitter=3,loss=0.01,rate=10,mtu=1400`.

        `up.` or `down.` before a key is that direction alone. What is not named stays as in `former`;
        `rate=none` lifts a limit. Raises `ValueError`.
        """
        link = former or cls()
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            link = link.with_value(name.strip(), value.strip())
        return link

    def with_value(self, name: str, value: str) -> Link:
        """The link with one item of `parse` changed."""
        if name == "mtu":
            return replace(self, mtu=int(value))
        side, _, key = name.rpartition(".")
        keys = {"delay": "delay_ms", "jitter": "jitter_ms", "loss": "loss", "rate": "rate_mbit"}
        if key not in keys or side not in {"", "up", "down"}:
            raise ValueError(f"{name}: a link has delay, jitter, loss, rate and mtu")
        number = None if key == "rate" and value == "none" else float(value)
        changed = self
        for direction in ("up", "down") if not side else (side,):
            former = changed.up if direction == "up" else changed.down
            # mypy does not follow a keyword that is computed.
            made = replace(former, **{keys[key]: number})  # type: ignore[arg-type]
            changed = replace(changed, up=made) if direction == "up" else replace(changed, down=made)
        return changed


@dataclass(frozen=True, slots=True)
class Uplink:
    """One way from a site into the world."""

    access: Access
    link: Link = Link()


@dataclass(frozen=True, slots=True)
class Site:
    """One inner host, and what stands before it.

    `second` is an uplink to change over to. `provider` names a NAT (in `Plan.providers`) that the site
    shares with others. `ipv6` adds IPv6 beside the IPv4 of the access. `mapping_lifetime_s` replaces the
    kernel's 30 s (120 s for a flow with answers). With `has_hairpin`, an endpoint-independent mapping also
    works from inside (RFC 4787 REQ-9).
    """

    name: str
    access: Access
    link: Link = Link()
    second: Uplink | None = None
    provider: str | None = None
    ipv6: Kind | None = None
    has_hairpin: bool = False
    mapping_lifetime_s: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise ValueError(
                f"{self.name}: a site's name is 1 to 8 lower-case letters and digits, not reserved"
            )
        if self.ipv6 is not None and (self.ipv6 not in V6_KINDS or self.access.inner in V6_KINDS):
            raise ValueError(f"site {self.name}: ipv6 is one of {', '.join(k.value for k in V6_KINDS)}")
        if self.provider is not None and (self.access.outer is not None or not self.access.inner.translates):
            raise ValueError(f"site {self.name}: behind a provider's NAT there is one NAT of its own")
        if self.speaks_ipv6 and (self.provider or self.second or self.access.outer):
            raise ValueError(f"site {self.name}: IPv6 goes with one uplink and one layer")

    @property
    def speaks_ipv6(self) -> bool:
        """Whether the host has an IPv6 address."""
        return self.ipv6 is not None or self.access.inner in V6_KINDS

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """The ways into the world, the first one in use."""
        return (Uplink(self.access, self.link), *((self.second,) if self.second else ()))


@dataclass(frozen=True, slots=True)
class Provider:
    """A NAT that several sites share, with the link that all of them share."""

    name: str
    kind: Kind = Kind.EIM_APDF
    link: Link = Link()
    has_hairpin: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise ValueError(f"{self.name}: a provider's name is 1 to 8 lower-case letters and digits")
        if not self.kind.translates:
            raise ValueError(f"provider {self.name}: {self.kind.value} is no NAT")


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole lab. The intermediate has a second address for the tests of RFC 5780.

    `second_intermediate` is the link of one more, `mid2`, elsewhere; without a link there is none.
    """

    sites: tuple[Site, ...]
    intermediate: Link = Link()
    providers: tuple[Provider, ...] = field(default=())
    second_intermediate: Link | None = None

    def __post_init__(self) -> None:
        names = [
            *(site.name for site in self.sites),
            *(f"{site.name}2" for site in self.sites if site.second),  # the link of a second uplink
            *(provider.name for provider in self.providers),
        ]
        if len(set(names)) != len(names) or len(self.sites) < 1:
            raise ValueError("a lab has sites, each with a name of its own")
        if sum(len(site.uplinks) for site in self.sites) + len(self.providers) > MAX_UPLINKS:
            raise ValueError(f"at most {MAX_UPLINKS} uplinks")
        known = {provider.name for provider in self.providers}
        for site in self.sites:
            if site.provider is not None and site.provider not in known:
                raise ValueError(f"site {site.name}: no provider {site.provider}")

    @property
    def speaks_ipv6(self) -> bool:
        """Whether anybody has an IPv6 address."""
        return any(site.speaks_ipv6 for site in self.sites)

    def site(self, name: str) -> Site:
        """The site of that name. Raises `ValueError`."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ValueError(f"no site {name}; there are {', '.join(site.name for site in self.sites)}")


def pair(a: str | Access, b: str | Access, *, delay_ms: float = 0.0) -> Plan:
    """Two sites `a` and `b`, each with a link of this delay in each direction."""
    accesses: Sequence[Access] = [
        Access.parse(access) if isinstance(access, str) else access for access in (a, b)
    ]
    link = Link.both(Direction(delay_ms=delay_ms))
    return Plan(tuple(Site(name, access, link) for name, access in zip("ab", accesses, strict=True)))
