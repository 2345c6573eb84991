"""Every target there is, by name."""

from __future__ import annotations

from typing import Final

from tools.fuzz.target import Target
from tools.fuzz.targets import access, configuration, ice, quic, relay, service, signaling, stun

TARGETS: Final[dict[str, type[Target]]] = {
    target.name: target
    for module in (stun, ice, quic, relay, signaling, service, access, configuration)
    for target in module.TARGETS
}
