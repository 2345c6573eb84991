"""What holds for every test, and how tests share a machine when several processes run them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pykka
import pytest
from hypothesis import settings

# A shell starts what runs in the background with SIGINT ignored, and children inherit that. Tests that
# interrupt a child mean a child of a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).parent
# Folders whose tests start daemons: they run in one process, one test after the other. So no deployment takes
# the processor from another one whose stalls and losses are measured.
ALONE = frozenset({"e2e", "bench", "netns"})


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a benchmark wants of a test."""
    parser.addoption(
        "--lab-download-mb",
        type=int,
        default=0,
        metavar="N",
        help="size of the long download in the NAT lab (tests/netns/test_survival.py), which is then held "
        "to the limits of a quiet machine (default: as little as its disturbances take)",
    )


# First, because xdist reads the marks in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what a machine bears only one of at a time."""
    for item in items:
        if item.path.relative_to(ROOT).parts[0] in ALONE:
            item.add_marker(pytest.mark.xdist_group("daemons"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what was measured: a limit that is kept says less than by how much."""
    reports = (each for category in terminalreporter.stats.values() for each in category)
    figures = [
        figure
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for figure in report.user_properties
    ]
    if figures:
        terminalreporter.section("measured in the NAT lab")
        for name, figure in figures:
            terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(autouse=True)
def _no_actor_outlives_its_test() -> Iterator[None]:
    """Forget actors that a test left behind, since pykka keeps one registry for the whole process."""
    yield
    for ref in pykka.ActorRegistry.get_all():
        ref.actor_stopped.set()
        pykka.ActorRegistry.unregister(ref)
