"""How near the process is to the limits of the system: file descriptors and memory.

Whoever is about to take on something new asks first and refuses with the limit's name while there is still
room for what exists, for the control socket and for metrics. Asking costs some microseconds, so it is done
per connection, flow, session or attachment, never per packet.
"""

from __future__ import annotations

import fcntl
import os
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from actors.io import Shortage
from ztna.errors import ConfigError
from ztna.settings import AgentSettings, ConnectorSettings, DaemonSettings, IntermediateSettings

FILE_DESCRIPTOR_LIMIT: Final = "file_descriptor_limit"
MEMORY_LIMIT: Final = "memory_limit"

RESERVED_DESCRIPTORS: Final = 16
"""Kept for those who look at the daemon (control socket, metrics), for name lookups and for the files of a
reload: a handful of each at a time."""

OWN_DESCRIPTORS: Final = 48
"""What a daemon has open at rest (20) and what is reserved, with room for a dozen listeners."""

NEAR_DESCRIPTORS: Final = 30
"""From so many left on the limit counts as nearly reached. gRPC closes what comes to its port beyond the
limit less `OWN_DESCRIPTORS`, and tells nobody (`connection_room`): with the 18 or more that a daemon has open
itself, no more than these are left then."""

MIN_DESCRIPTORS: Final = 48
"""Below it a daemon could start, and then serve next to nobody."""

MEMORY_SHARE: Final = 0.9
"""Of the limit of the control group, from which on nothing new is taken: the rest is for what goes on."""

SEARCH_SHARE: Final = 0.9
"""Of the memory from which on nothing new is taken: from here on garbage is not left lying."""

READING_AGE_S: Final = 0.1
"""A reading is used for so long: reading takes some 10 us, and in this time a core fills a few MB at most."""

_CONTROL_GROUPS: Final = Path("/proc/self/cgroup")
_HIERARCHIES: Final = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES: Final = 1 << 60  # how version 1 says so is 2^63 less a page
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Resources:
    """Answers whether there is room for something new; one per process, on the loop's thread."""

    def __init__(
        self,
        time: Callable[[], float],
        max_memory_bytes: int,
        resident_bytes: Callable[[], int] | None = None,
    ) -> None:
        """`max_memory_bytes` 0: without bound. `time` is monotonic seconds."""
        self._time = time
        self._max_memory_bytes = max_memory_bytes
        self._resident_bytes = resident_bytes or resident_memory_bytes
        self._memory: Shortage | None = None
        self._read_again_at = time()
        self._probe = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.refused: Counter[str] = Counter()
        """How often something new was refused, by reason."""

    def shortage(self, *, needs_descriptor: bool, promised_descriptors: int = 0) -> Shortage | None:
        """Why nothing new may begin, or None; whoever asks refuses then, and it is counted.

        `promised_descriptors` were granted and are not open yet: a batch of clients is admitted before the
        first of them opens anything.
        """
        found = self._descriptors(promised_descriptors) if needs_descriptor else None
        found = found or self._memory_shortage()
        if found is not None:
            self.refused[found.reason] += 1
        return found

    def nearly_reached(self) -> Shortage | None:
        """The limit that is nearly reached, whoever used it up, or None; its words stay the same meanwhile.

        What others accept for us, like gRPC, asks nobody: only looking from time to time shows it.
        """
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._lowest_free(limit) + NEAR_DESCRIPTORS < limit:
            return None
        return Shortage(
            FILE_DESCRIPTOR_LIMIT, f"nearly all of {limit} file descriptors (RLIMIT_NOFILE) are in use"
        )

    def is_memory_short(self) -> bool:
        """Whether it is worth searching for garbage before something new is refused for want of memory."""
        return 0 < self._max_memory_bytes * SEARCH_SHARE <= self._resident_bytes()

    def close(self) -> None:
        """Give back the descriptor that is held for asking."""
        os.close(self._probe)

    def _descriptors(self, promised: int) -> Shortage | None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = min(self._lowest_free(limit) + promised, limit)
        if taken + RESERVED_DESCRIPTORS < limit:
            return None
        return Shortage(
            FILE_DESCRIPTOR_LIMIT, f"{taken} of {limit} file descriptors (RLIMIT_NOFILE) are in use"
        )

    def _lowest_free(self, limit: int) -> int:
        # The kernel hands out the lowest number that is free (open(2)): all below it are in use.
        try:
            lowest = fcntl.fcntl(self._probe, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:
            return limit
        os.close(lowest)
        return lowest

    def _memory_shortage(self) -> Shortage | None:
        if not self._max_memory_bytes:
            return None
        now = self._time()
        if now >= self._read_again_at:
            self._read_again_at = now + READING_AGE_S
            resident = self._resident_bytes()
            self._memory = None
            if resident >= self._max_memory_bytes:
                detail = (
                    f"{resident >> 20} of {self._max_memory_bytes >> 20} MiB (limits.memory_bytes) are in use"
                )
                self._memory = Shortage(MEMORY_LIMIT, detail)
        return self._memory


def resident_memory_bytes() -> int:
    """What the process occupies of the machine's memory (`proc_pid_statm(5)`)."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES


def detected_memory_bytes(control_groups: Path = _CONTROL_GROUPS, hierarchies: Path = _HIERARCHIES) -> int:
    """Nine tenths of the least memory limit of the control group and those above it; 0 when none has one.

    A service of a service manager sees the whole tree and is somewhere in it; a container mostly sees its own
    group as the root (`cgroup_namespaces(7)`).
    """
    try:
        text = control_groups.read_bytes()
    except OSError:
        text = b""
    # The roots are asked whatever the file says: a container without a namespace of its own is told a path of
    # the machine, and what is mounted for it begins at its group.
    files = [hierarchies / "memory.max", hierarchies / "memory" / "memory.limit_in_bytes"]
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if (hierarchy, controllers) == (b"0", b""):
            files += _up_the_tree(hierarchies, path, "memory.max")
        elif b"memory" in controllers.split(b","):
            files += _up_the_tree(hierarchies / "memory", path, "memory.limit_in_bytes")
    limits = [limit for limit in map(_limit_bytes, files) if limit is not None]
    return int(min(limits, default=0) * MEMORY_SHARE)


def _up_the_tree(root: Path, path: bytes, name: str) -> list[Path]:
    """The file `name` of the group at `path` and of each above it, but for the root's."""
    parts = [part for part in os.fsdecode(path).split("/") if part]
    if ".." in parts:  # outside of the namespace: nothing of it can be seen
        return []
    return [root.joinpath(*parts[:depth], name) for depth in range(len(parts), 0, -1)]


def _limit_bytes(path: Path) -> int | None:
    """What the file of a control group says; None for no limit, no such group, or anything unknown."""
    try:
        text = path.read_bytes().strip()
    except (OSError, ValueError):  # a NUL in the path is a ValueError
        return None
    return int(text) if text.isdigit() and int(text) < _UNLIMITED_BYTES else None


def wanted_descriptors(settings: DaemonSettings) -> tuple[str, int]:
    """The key of the configuration that decides how many descriptors are needed, and how many it asks for."""
    if isinstance(settings, AgentSettings):
        return "limits.connections", settings.limits.connections + 2 * len(settings.services)
    if isinstance(settings, ConnectorSettings):
        limits = settings.limits
        # Of one agent that takes all it may; how many agents there will be, nobody knows.
        return "limits.streams_per_agent", limits.streams_per_agent + limits.flows_per_agent
    assert isinstance(settings, IntermediateSettings)  # noqa: S101 - there are three kinds
    return "limits.attached_nodes", settings.limits.attached_nodes


def connection_room() -> int:
    """How many descriptors are left for connections when a daemon has those of its own; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft - OWN_DESCRIPTORS)


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the soft limit as far as `wanted` and the daemon's own needs require and the hard one allows.

    Returns the limit that holds. Raises `ConfigError` when it is too small for any daemon.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OWN_DESCRIPTORS
    if soft < needed:
        soft = min(needed, hard)  # Linux knows no infinite one: its bound is fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < MIN_DESCRIPTORS:
        raise ConfigError(
            f"RLIMIT_NOFILE is {soft}: a daemon needs at least {MIN_DESCRIPTORS} file descriptors "
            "(`ulimit -n`, LimitNOFILE= of systemd)"
        )
    return soft
