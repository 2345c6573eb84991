"""Whether a lab can run on this machine, for this user, and if not, why."""

from __future__ import annotations

import shutil
from functools import cache
from typing import Final

from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Lab
from tools.natlab.namespaces import LabError, search_path
from tools.natlab.plan import Direction, Link, Plan, Site

# Tool and the Debian package that brings it.
TOOLS: Final = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "iptables-restore": "iptables",
    "conntrack": "conntrack",
    "unshare": "util-linux",
}


def missing_packages() -> list[str]:
    """Debian packages whose tools are not there."""
    path = search_path()
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})


@cache
def unavailable_reason() -> str | None:
    """Why no lab can be built, None when one can: it builds one that uses everything a lab needs."""
    missing = missing_packages()
    if missing:
        return f"packages are missing: {', '.join(missing)} (make lab-tools)"
    link = Link.both(Direction(delay_ms=1, rate_mbit=100))
    site = Site("a", Access(Kind.APDM_SEQUENTIAL, Kind.EIM_ADF), link)
    try:
        with Lab(Plan((site,))) as lab:
            lab.rebind("a")
    except LabError as error:
        return str(error)
    return None
