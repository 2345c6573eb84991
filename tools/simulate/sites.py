"""The kinds of NAT and firewall that scenarios are drawn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.simnet.nat import AD, APD, EI, NatKind
from ztna.nat.behaviour import PortAllocation

_MAPPINGS: Final = {"eim": EI, "adm": AD, "apdm": APD}
_FILTERS: Final = {"eif": EI, "adf": AD, "apdf": APD}
_PORTS: Final = {
    "preserving": PortAllocation.PRESERVED,
    "sequential": PortAllocation.SEQUENTIAL,
    "random": PortAllocation.RANDOM,
}

NATS: Final[dict[str, NatKind]] = {
    f"{mapping}-{filtering}-{ports}": NatKind(_MAPPINGS[mapping], _FILTERS[filtering], _PORTS[ports])
    for mapping in _MAPPINGS
    for filtering in _FILTERS
    for ports in _PORTS
}
"""Mapping x filtering x port allocation of RFC 4787."""
FIREWALLS: Final = {
    "firewall": NatKind(is_translating=False),
    "lax-firewall": NatKind(is_translating=False, filtering=EI),
}
BLOCKED: Final = replace(NATS["eim-apdf-preserving"], is_udp_blocked=True)
LIFETIMES_S: Final = (30.0, 30.0, 60.0, 120.0)
