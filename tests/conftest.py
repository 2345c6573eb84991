"""What holds for every test, and how tests share a machine when several processes run them."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pykka
import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling, Scheduling

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
        help="size of each transfer in the NAT lab (tests/netns/test_survival.py), which is then held to the "
        "limits of a quiet machine (default: as little as its disturbances take)",
    )


def is_alone(nodeid: str) -> bool:
    """Whether a test starts daemons."""
    root, folder, *_ = nodeid.split("/", 2)
    return root == ROOT.name and folder in ALONE


class OneDeploymentAtATime(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out each test by itself, except for those that a machine bears only one of at a time.

    `xdist_group` would say the same, but xdist reads it from node ids that pytest no longer lets it change.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "daemons" if is_alone(nodeid) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Which process runs what; the tests of daemons begin first."""
    return OneDeploymentAtATime(config, log)


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
def _one_deployment_at_a_time(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail where two processes of a run start daemons at once: what is measured would be worth nothing."""
    if not is_alone(request.node.nodeid) or "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    # The directory of this process is below that of the run.
    with (tmp_path_factory.getbasetemp().parent / "daemons.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail("another process of this run starts daemons as well")
        yield


@pytest.fixture(autouse=True)
def _no_actor_outlives_its_test() -> Iterator[None]:
    """Forget actors that a test left behind, since pykka keeps one registry for the whole process."""
    yield
    for ref in pykka.ActorRegistry.get_all():
        ref.actor_stopped.set()
        pykka.ActorRegistry.unregister(ref)
