"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _no_actor_outlives_its_test() -> Iterator[None]:
    """Forget actors that a test left behind, since pykka keeps one registry for the whole process."""
    yield
    for ref in pykka.ActorRegistry.get_all():
        ref.actor_stopped.set()
        pykka.ActorRegistry.unregister(ref)
