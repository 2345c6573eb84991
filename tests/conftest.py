"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pykka
import pytest
from hypothesis import settings

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
