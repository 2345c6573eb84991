"""The watchers themselves: each broken rule is found and says whose it is."""

from __future__ import annotations

from types import MethodType, SimpleNamespace

import pytest

from actors.timers import DeadlineTimer
from tests.simnet.clock import START_TIME
from tests.simnet.network import VirtualNetwork
from tests.simnet.sim_io import SimIo
from tests.simnet.watch import MAX_CALLS_PER_INSTANT, InvariantError, LogBook, WatchedClock
from tests.simnet.world import World


def process() -> tuple[WatchedClock, SimIo]:
    clock = WatchedClock()
    return clock, VirtualNetwork(1, clock=clock).host("one", "10.0.0.1").io()


def do_nothing() -> None:
    """A callback."""


def test_call_in_the_past_is_found_and_named() -> None:
    clock, io = process()
    io.call_at(START_TIME, do_nothing)
    clock.check()
    io.call_at(START_TIME - 1, do_nothing)
    with pytest.raises(InvariantError, match="do_nothing scheduled 1 s in the past"):
        clock.check()


@pytest.mark.parametrize(("concern", "is_found"), [("checklist", True), ("quic_session", False)])
def test_deadline_of_an_actor_in_the_past_is_found_but_where_it_may_turn_out_to_be_over(
    concern: str, is_found: bool
) -> None:
    clock, io = process()
    clock.run_for(5)
    actor = SimpleNamespace(concern=SimpleNamespace(name=concern, key="1"))
    timer = DeadlineTimer(io, MethodType(lambda _actor: None, actor))
    timer.arm(io.time())
    clock.check()
    timer.arm(io.time() - 0.5)
    if is_found:
        with pytest.raises(InvariantError, match=f"timer of {concern}/1 scheduled 0.5 s in the past"):
            clock.check()
    else:
        clock.check()


def test_callback_that_stops_time_is_found_and_named() -> None:
    clock, io = process()

    def go_round() -> None:
        io.call_soon(go_round)

    go_round()
    with pytest.raises(InvariantError, match=f"go_round ran more than {MAX_CALLS_PER_INSTANT} times"):
        clock.run_for(1)


def test_failed_actor_is_found_in_the_log_with_its_traceback() -> None:
    book = LogBook(WatchedClock())
    book.logger(node="agent-1", daemon="agent").info("relay_leg.lost")
    book.check()
    failure = RuntimeError("a bug")
    book.logger(node="agent-1", daemon="agent").error("relay_leg.actor_failed", exc_info=failure)
    with pytest.raises(InvariantError, match="RuntimeError: a bug"):
        book.check()


def test_actor_that_dies_ends_the_run_even_though_it_is_started_again() -> None:
    world = World(1)
    daemon = world.add_intermediate("intermediate-1")
    world.start()
    assert daemon.node is not None
    ref = daemon.node.directory.find("registry")
    assert ref is not None
    ref.tell(object())
    with pytest.raises(InvariantError, match="registry does not handle object"):
        world.run_for(1)
    world.kill("intermediate-1")


def test_a_daemon_runs_once_at_a_time() -> None:
    with World(1) as world:
        world.add_intermediate("intermediate-1")
        world.start()
        with pytest.raises(ValueError, match="runs already"):
            world.start("intermediate-1")
        world.stop("intermediate-1")
        with pytest.raises(ValueError, match="does not run"):
            world.kill("intermediate-1")
