from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nursery import Nursery, QuickDeployment
from tools.deployment import Deployment

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def test_command_prints_and_ends_as_it_does_in_an_interpreter_of_its_own(
    nursery: Nursery, tmp_path: Path
) -> None:
    arguments = ["agent", "-c", str(tmp_path / "missing.yaml")]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        started = nursery.start(arguments, stream)
    status = started.wait(LIMIT_S)
    alone = Deployment(tmp_path / "d").ztna(*arguments, check=False)
    assert (status, log.read_text(encoding="utf-8")) == (alone.returncode, alone.stderr)
    assert status == 2
    assert "missing.yaml" in alone.stderr


def test_signal_that_ended_a_process_is_its_status(tmp_path: Path) -> None:
    with QuickDeployment(tmp_path) as deployment:
        deployment.add_intermediate()
        deployment.start()
        deployment.wait_ready()
        assert deployment.kill("intermediate-1") == -signal.SIGKILL
        deployment.start("intermediate-1")
        deployment.wait_ready()
        assert deployment.kill("intermediate-1", signal.SIGTERM) == 0


def test_end_of_the_owner_is_the_end_of_what_it_started(tmp_path: Path) -> None:
    with Deployment(tmp_path) as deployment:
        daemon = deployment.add_intermediate()
        nursery = Nursery()
        with daemon.log_path.open("wb") as log:
            daemon.process = nursery.start([daemon.kind, "-c", str(daemon.config_path)], log)
        deployment.wait_ready()
        descriptor = os.pidfd_open(daemon.process.pid)
        # Nobody is there any more to say how it ended.
        daemon.process = None
        nursery.close()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        ended = poller.poll(LIMIT_S * 1e3)
        os.close(descriptor)
    assert ended
