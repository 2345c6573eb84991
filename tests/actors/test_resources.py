"""Room for something new: asked of the real process with lowered limits, or of made-up readings."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from actors.io import Shortage
from actors.resources import (
    FILE_DESCRIPTOR_LIMIT,
    MEMORY_LIMIT,
    MEMORY_SHARE,
    MIN_DESCRIPTORS,
    NEAR_DESCRIPTORS,
    OWN_DESCRIPTORS,
    READING_AGE_S,
    RESERVED_DESCRIPTORS,
    Resources,
    connection_room,
    detected_memory_bytes,
    raise_descriptor_limit,
    resident_memory_bytes,
    wanted_descriptors,
)
from ztna.errors import ConfigError
from ztna.settings import AgentSettings, ConnectorSettings, IntermediateSettings

NODE = {"id": "a", "cert": "a", "key": "a", "ca": "a"}
INTERMEDIATES = [{"id": "i", "quic": "127.0.0.1:1", "grpc": "127.0.0.1:2"}]


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Clock:
    now = 100.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.usefixtures("limits")
def test_last_descriptors_are_kept_and_given_again_when_others_are_closed(clock: Clock) -> None:
    room = Resources(clock.time, 0)
    with ExitStack() as stack:
        stack.callback(room.close)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
        limit = highest + RESERVED_DESCRIPTORS + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        assert room.shortage(needs_descriptor=True) is None
        taken = []
        while (found := room.shortage(needs_descriptor=True)) is None:
            taken.append(os.open(os.devnull, os.O_RDONLY))
            stack.callback(os.close, taken[-1])
        assert found.reason == FILE_DESCRIPTOR_LIMIT
        assert found.detail.endswith(f"of {limit} file descriptors (RLIMIT_NOFILE) are in use")
        # What is reserved is really there, and what needs none is not refused.
        spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVED_DESCRIPTORS - 1)]
        assert room.shortage(needs_descriptor=True) is not None
        assert room.shortage(needs_descriptor=False) is None
        for each in spare:
            os.close(each)
        stack.pop_all().close()
        room = Resources(clock.time, 0)
        assert room.shortage(needs_descriptor=True) is None
        room.close()


@pytest.mark.usefixtures("limits")
def test_limit_that_others_nearly_used_up_is_named_and_nothing_is_counted_as_refused(clock: Clock) -> None:
    room = Resources(clock.time, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    limit = lowest + NEAR_DESCRIPTORS + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert room.nearly_reached() is None
    other = os.open(os.devnull, os.O_RDONLY)
    assert room.nearly_reached() == Shortage(
        FILE_DESCRIPTOR_LIMIT, f"nearly all of {limit} file descriptors (RLIMIT_NOFILE) are in use"
    )
    # It is told before anything is refused.
    assert room.shortage(needs_descriptor=True) is None
    assert not room.refused
    os.close(other)
    assert room.nearly_reached() is None
    room.close()


def test_grpc_closes_nothing_before_the_limit_counts_as_nearly_reached() -> None:
    at_rest = 18
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert connection_room() + at_rest + NEAR_DESCRIPTORS >= soft


@pytest.mark.usefixtures("limits")
def test_descriptors_that_are_promised_count_as_taken(clock: Clock) -> None:
    room = Resources(clock.time, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    limit = lowest + RESERVED_DESCRIPTORS + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert room.shortage(needs_descriptor=True, promised_descriptors=7) is None
    found = room.shortage(needs_descriptor=True, promised_descriptors=8)
    assert found is not None
    assert found.detail == f"{lowest + 8} of {limit} file descriptors (RLIMIT_NOFILE) are in use"
    assert room.shortage(needs_descriptor=False, promised_descriptors=8) is None
    room.close()


def test_no_descriptor_left_at_all_is_a_shortage_and_no_error(clock: Clock, limits: tuple[int, int]) -> None:
    room = Resources(clock.time, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        found = room.shortage(needs_descriptor=True)
    finally:  # pytest itself opens files before it comes to the end of a fixture
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found is not None
    assert found.reason == FILE_DESCRIPTOR_LIMIT
    assert room.refused == {FILE_DESCRIPTOR_LIMIT: 1}
    room.close()


def test_memory_beyond_the_bound_is_a_shortage_until_it_is_given_back(clock: Clock) -> None:
    readings = iter([900 << 20, 1000 << 20, 1200 << 20, 999 << 20])
    room = Resources(clock.time, 1000 << 20, lambda: next(readings))
    assert room.shortage(needs_descriptor=False) is None
    # A reading holds for a moment: a storm of clients costs one per moment.
    clock.now += READING_AGE_S / 2
    assert room.shortage(needs_descriptor=False) is None
    for megabytes in (1000, 1200):
        clock.now += READING_AGE_S
        found = room.shortage(needs_descriptor=False)
        assert found is not None
        assert found.reason == MEMORY_LIMIT
        assert found.detail == f"{megabytes} of 1000 MiB (limits.memory_bytes) are in use"
    clock.now += READING_AGE_S
    assert room.shortage(needs_descriptor=False) is None
    assert room.refused == {MEMORY_LIMIT: 2}
    room.close()


def test_garbage_is_worth_a_search_a_little_before_memory_is_short(clock: Clock) -> None:
    used = 0
    room = Resources(clock.time, 1000, lambda: used)
    assert not room.is_memory_short()
    used = 900
    assert room.is_memory_short()
    assert room.shortage(needs_descriptor=False) is None
    room.close()
    unbounded = Resources(clock.time, 0, lambda: used)
    assert not unbounded.is_memory_short()
    unbounded.close()


def test_without_a_bound_memory_is_not_even_read(clock: Clock) -> None:
    def read() -> int:
        raise AssertionError("nobody asked")

    room = Resources(clock.time, 0, read)
    assert room.shortage(needs_descriptor=False) is None
    room.close()


def test_resident_memory_is_that_of_this_process() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 8 << 20 < resident_memory_bytes() <= peak + (64 << 20)


SERVICE = "system.slice/ztna-agent.service"
GIB = 1 << 30
HALF_GIB = GIB >> 1
VERSION_1 = "12:pids:/x\n5:cpu,memory:/{}\n1:name=systemd:/y\n"
NONE_1 = 0x7FFFFFFFFFFFF000
ROOT_1 = "memory/memory.limit_in_bytes"
OWN_1 = f"memory/{SERVICE}/memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        pytest.param(f"0::/{SERVICE}\n", {f"{SERVICE}/memory.max": GIB}, GIB, id="own_group"),
        pytest.param(
            f"0::/{SERVICE}\n",
            {f"{SERVICE}/memory.max": GIB, "system.slice/memory.max": HALF_GIB},
            HALF_GIB,
            id="group_above_is_lower",
        ),
        pytest.param(
            f"0::/{SERVICE}\n",
            {f"{SERVICE}/memory.max": "max", "system.slice/memory.max": GIB},
            GIB,
            id="only_a_group_above",
        ),
        pytest.param(
            f"0::/{SERVICE}\n",
            {f"{SERVICE}/memory.max": "max", "system.slice/memory.max": "max", "other/memory.max": GIB},
            0,
            id="none_limited",
        ),
        pytest.param("0::/\n", {"memory.max": GIB}, GIB, id="container_that_sees_its_group_as_the_root"),
        pytest.param("0::/\n", {}, 0, id="root_of_the_machine"),
        pytest.param("0::/docker/1\n", {"memory.max": GIB}, GIB, id="container_told_a_path_of_the_machine"),
        pytest.param(
            "0::/../secret\n",
            {"memory.max": GIB, "secret/memory.max": HALF_GIB, "../secret/memory.max": HALF_GIB},
            GIB,
            id="outside_of_the_namespace",
        ),
        pytest.param(f"0::/{SERVICE} (deleted)\n", {"system.slice/memory.max": GIB}, GIB, id="deleted_group"),
        pytest.param(VERSION_1.format(SERVICE), {OWN_1: GIB, ROOT_1: NONE_1}, GIB, id="version_1"),
        pytest.param(VERSION_1.format(SERVICE), {OWN_1: NONE_1, ROOT_1: NONE_1}, 0, id="version_1_without"),
        pytest.param(VERSION_1.format("docker/1"), {ROOT_1: GIB}, GIB, id="version_1_container"),
        pytest.param(
            VERSION_1.format(SERVICE) + "0::/z\n",
            {OWN_1: GIB, "unified/z/memory.max": 1},
            GIB,
            id="both_versions",
        ),
        pytest.param(
            f"0::/{SERVICE}\n",
            {f"{SERVICE}/memory.max": "much", "system.slice/memory.max": "-1", "memory.max": "\u0661\u0662"},
            0,
            id="garbage_for_limits",
        ),
        pytest.param(
            "\0::/\n0:\n0\n\n0::/\0\nmemory:memory\n\xff", {"memory.max": GIB}, GIB, id="garbage_for_groups"
        ),
        pytest.param(None, {"memory.max": GIB}, GIB, id="no_list_of_groups"),
        pytest.param(None, {}, 0, id="no_control_groups"),
    ],
)
def test_least_limit_from_the_own_control_group_up_to_the_root_is_found(
    tmp_path: Path, groups: str | None, files: dict[str, int | str], limit: int
) -> None:
    hierarchies = tmp_path / "fs" / "cgroup"
    hierarchies.mkdir(parents=True)
    for name, text in files.items():
        path = hierarchies / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    own = tmp_path / "own"
    if groups is not None:
        own.write_text(groups, encoding="latin-1")
    assert detected_memory_bytes(own, hierarchies) == int(limit * MEMORY_SHARE)


def test_soft_limit_is_raised_as_far_as_needed(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert raise_descriptor_limit(1000) == 1000 + OWN_DESCRIPTORS
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1000 + OWN_DESCRIPTORS, hard)
    assert connection_room() == 1000
    # It is never lowered, and never asked to pass the hard limit.
    assert raise_descriptor_limit(10) == 1000 + OWN_DESCRIPTORS
    assert raise_descriptor_limit(hard) == hard


def test_limit_too_small_for_any_daemon_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = (MIN_DESCRIPTORS - 1, MIN_DESCRIPTORS - 1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: tight)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(ConfigError, match=f"RLIMIT_NOFILE is {MIN_DESCRIPTORS - 1}"):
        raise_descriptor_limit(1000)


def test_each_daemon_names_the_key_that_decides() -> None:
    agent = AgentSettings.model_validate(
        {"node": NODE, "intermediates": INTERMEDIATES, "limits": {"connections": 7}}
    )
    connector = ConnectorSettings.model_validate(
        {
            "node": NODE,
            "intermediates": INTERMEDIATES,
            "limits": {"streams_per_agent": 5, "flows_per_agent": 3},
        }
    )
    intermediate = IntermediateSettings.model_validate({"node": NODE, "limits": {"attached_nodes": 9}})
    assert wanted_descriptors(agent) == ("limits.connections", 7)
    assert wanted_descriptors(connector) == ("limits.streams_per_agent", 8)
    assert wanted_descriptors(intermediate) == ("limits.attached_nodes", 9)
