"""What only the machine can tell about a configuration: the files that it names, and settings that expose."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ztna.address import TransportAddress
from ztna.settings.daemons import AgentSettings, DaemonSettings, IntermediateSettings


@dataclass(slots=True)
class Findings:
    """`problems` keep the daemon from starting, `warnings` do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def inspect_settings(settings: DaemonSettings) -> Findings:
    """Look at every file that the settings name, and at every address that they open to others."""
    findings = Findings()
    node = settings.node
    for name, path in (("cert", node.cert), ("key", node.key), ("ca", node.ca), ("crl", node.crl)):
        if path is not None and (problem := _unreadable(path)):
            findings.problems.append(f"node.{name}: {path}: {problem}")
    if node.key.is_file() and node.key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(node.key.stat().st_mode)
        findings.warnings.append(
            f"node.key: {node.key}: mode {mode:04o} lets others at the private key; chmod 600 it"
        )
    if node.crl is None:
        findings.warnings.append("node.crl: not set, so no certificate counts as revoked")
    findings.warnings += _exposures(settings)
    return findings


def _exposures(settings: DaemonSettings) -> list[str]:
    warnings = []
    if settings.metrics.listen and not _is_loopback(settings.metrics.listen):
        warnings.append(
            f"metrics.listen: {settings.metrics.listen} shows metrics to the network, unencrypted"
        )
    if isinstance(settings, AgentSettings):
        warnings += [
            f"services.{index}.listen: {service.listen} lets others use {service.id!r} as this agent"
            for index, service in enumerate(settings.services)
            if not _is_loopback(service.listen)
        ]
    if isinstance(settings, IntermediateSettings):
        rules = {"policy": settings.policy, "offers": settings.offers}
        warnings += [f"{name}: empty, so everything is refused" for name, rule in rules.items() if not rule]
    return warnings


def _unreadable(path: Path) -> str | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is not a file"
    except OSError as error:
        return error.strerror or "cannot be read"
    return None if os.access(path, os.R_OK) else "may not be read by this user"


def _is_loopback(address: TransportAddress) -> bool:
    return ipaddress.ip_address(address.host).is_loopback
