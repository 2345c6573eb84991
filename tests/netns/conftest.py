"""Labs in network namespaces: skipped where the kernel does not let us, never for a missing tool as root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.natlab.availability import missing_packages, unavailable_reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs network namespaces."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.netns)


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
    directory = Path(tempfile.mkdtemp(prefix="ztna-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
