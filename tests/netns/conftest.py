"""Labs in network namespaces: skipped where the kernel does not let us, never for a missing tool as root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.nodes import short_path
from tests.netns.transfers import Lateness
from tools.natlab.availability import missing_packages, unavailable_reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs network namespaces; some of it waits while the rest runs."""
    places = [place for place, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    ours = [items[place] for place in places]
    for item in ours:
        item.add_marker(pytest.mark.netns)
    ours.sort(key=lambda item: item.get_closest_marker("last") is not None)
    for place, item in zip(places, ours, strict=True):
        items[place] = item


@pytest.fixture(scope="session", autouse=True)
def _lab_can_run() -> None:
    """Root can install what is missing, so for root that is a failure; `make lab-tools` does it."""
    reason = unavailable_reason()
    if reason is None:
        return
    if os.geteuid() == 0 and missing_packages():
        pytest.fail(reason)
    pytest.skip(f"no lab can be built here: {reason}")


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets below it."""
    with short_path() as directory:
        yield directory


@pytest.fixture
def report_figure(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Have a measured figure shown at the end of the run (`tests/conftest.py`), and in its report."""
    return record_property


@pytest.fixture
def lateness() -> Iterator[Lateness]:
    """How late this process is woken: what a limit has to leave room for."""
    with Lateness() as made:
        yield made
