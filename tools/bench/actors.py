"""Loop actors beside `pykka.ThreadingActor`: messages per second, hop time, and ten thousand idle ones.

Each measurement runs in a process of its own, because what the first left behind (memory, threads) would
colour the second; both kinds are measured in the same run, so the ratios hold on any machine.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pykka
import structlog
from google.protobuf.wrappers_pb2 import Int64Value

from actors.base import Concern, ConcernRef, Context, Unobserved
from actors.directory import Directory
from actors.loop_asyncio import AsyncioScheduler
from actors.runtime import LoopRuntime, request_stop
from actors.wiring import Router, Row, Scope, Wiring

MESSAGES = 100_000
HOPS = 20_000
IDLE_ACTORS = 10_000
REPEATS = 3
"""Each speed is the best of this many: what disturbs a measurement only ever makes it slower."""

_PAGE_BYTES = 4096


class Sink(Concern):
    """Counts to a number, then says so."""

    name: ClassVar[str] = "sink"
    handlers: ClassVar[Any] = {Int64Value: "count"}

    def __init__(self, context: Context, expected: int, done: Callable[[], None]) -> None:
        super().__init__(context)
        self.missing = expected
        self.done = done

    def count(self, _message: Int64Value) -> None:
        """Take one."""
        self.missing -= 1
        if not self.missing:
            self.done()


class Pong(Concern):
    """Tells the other one a smaller number, until there is none."""

    name: ClassVar[str] = "pong"
    handlers: ClassVar[Any] = {Int64Value: "hop"}

    def __init__(self, context: Context, done: Callable[[], None]) -> None:
        super().__init__(context)
        self.other: Any = None
        self.done = done

    def hop(self, message: Int64Value) -> None:
        """Pass it on."""
        if message.value:
            self.other.tell(Int64Value(value=message.value - 1))
        else:
            self.done()


class ThreadSink(pykka.ThreadingActor):
    """`Sink` as a plain pykka actor."""

    def __init__(self, expected: int, done: Callable[[], None]) -> None:
        super().__init__()
        self.missing = expected
        self.done = done

    def on_receive(self, message: Any) -> None:  # noqa: ARG002 - counting is all it does
        """Take one."""
        self.missing -= 1
        if not self.missing:
            self.done()


class ThreadPong(pykka.ThreadingActor):
    """`Pong` as a plain pykka actor."""

    def __init__(self, done: Callable[[], None]) -> None:
        super().__init__()
        self.other: Any = None
        self.done = done

    def on_receive(self, message: Any) -> None:
        """Pass it on."""
        if message.value:
            self.other.tell(Int64Value(value=message.value - 1))
        else:
            self.done()


def _context(scheduler: AsyncioScheduler) -> Context:
    only_errors = structlog.make_filtering_bound_logger(40)
    log = structlog.wrap_logger(structlog.ReturnLogger(), wrapper_class=only_errors)
    return Context(io=cast("Any", scheduler), emit=lambda _message: None, log=log)


def _loop() -> tuple[LoopRuntime, Context, asyncio.Event]:
    scheduler = AsyncioScheduler(asyncio.get_running_loop())
    return LoopRuntime(scheduler), _context(scheduler), asyncio.Event()


async def _stop(*refs: ConcernRef) -> None:
    for ref in refs:
        request_stop(ref)
    while any(ref.is_alive() for ref in refs):  # noqa: ASYNC110 - a turn of the loop is all it takes
        await asyncio.sleep(0)


async def _loop_messages() -> float:
    runtime, context, done = _loop()
    ref = runtime.start(Sink, context, MESSAGES, done.set)
    message = Int64Value()
    started = time.perf_counter()
    for _ in range(MESSAGES):
        ref.tell(message)
    await done.wait()
    elapsed = time.perf_counter() - started
    await _stop(ref)
    return MESSAGES / elapsed


async def _loop_emit() -> float:
    runtime, context, done = _loop()
    directory = Directory()
    ref = runtime.start(Sink, context, MESSAGES, done.set)
    directory.register(Sink.name, ref)
    emit = Router(Wiring("bench", [Row(Int64Value, Sink, Scope.NODE, is_external=True)]), directory.tell).emit
    message = Int64Value()
    started = time.perf_counter()
    for _ in range(MESSAGES):
        emit(message)
    elapsed = time.perf_counter() - started
    await done.wait()
    await _stop(ref)
    return elapsed / MESSAGES


async def _loop_hop() -> float:
    runtime, context, done = _loop()
    concerns: list[Pong] = []

    def build(context: Context) -> Pong:
        concerns.append(Pong(context, done.set))
        return concerns[-1]

    refs = [runtime.start(build, context) for _ in range(2)]
    concerns[0].other, concerns[1].other = refs[1], refs[0]
    started = time.perf_counter()
    refs[0].tell(Int64Value(value=HOPS))
    await done.wait()
    elapsed = (time.perf_counter() - started) / HOPS
    await _stop(*refs)
    return elapsed


def _thread_messages() -> float:
    done = threading.Event()
    ref = ThreadSink.start(MESSAGES, done.set)
    message = Int64Value()
    started = time.perf_counter()
    for _ in range(MESSAGES):
        ref.tell(message)
    done.wait(300)
    elapsed = time.perf_counter() - started
    ref.stop()
    return MESSAGES / elapsed


def _thread_hop() -> float:
    done = threading.Event()
    refs = [ThreadPong.start(done.set) for _ in range(2)]
    for ref, other in zip(refs, reversed(refs), strict=True):
        actor = ref._actor_weakref()  # noqa: SLF001 - two actors that know each other, nothing told yet
        assert actor is not None  # noqa: S101 - just started
        actor.other = other
    started = time.perf_counter()
    refs[0].tell(Int64Value(value=HOPS))
    done.wait(300)
    elapsed = (time.perf_counter() - started) / HOPS
    for ref in refs:
        ref.stop()
    return elapsed


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


class _Countdown(Unobserved):
    """Says when the last actor has ended."""

    def __init__(self, alive: int, done: Callable[[], None]) -> None:
        self.alive = alive
        self.done = done

    def ended(self, ref: ConcernRef, failure: BaseException | None, /) -> None:  # noqa: ARG002 - it only counts
        """One less."""
        self.alive -= 1
        if not self.alive:
            self.done()


async def _loop_idle() -> dict[str, float]:
    runtime, context, done = _loop()
    life = _Countdown(IDLE_ACTORS, done.set)
    before = _resident_bytes()
    started = time.perf_counter()
    refs = [runtime.start(Pong, context, done.set, life=life) for _ in range(IDLE_ACTORS)]
    await asyncio.sleep(0)
    up = time.perf_counter()
    memory = _resident_bytes() - before
    for ref in reversed(refs):
        request_stop(ref)
    await done.wait()
    return _idle(memory, up - started, time.perf_counter() - up)


def _thread_idle() -> dict[str, float]:
    before = _resident_bytes()
    started = time.perf_counter()
    refs = [ThreadPong.start(lambda: None) for _ in range(IDLE_ACTORS)]
    up = time.perf_counter()
    memory = _resident_bytes() - before
    for ref in reversed(refs):
        ref.stop(block=False)
    for ref in refs:
        ref.actor_stopped.wait(300)
    return _idle(memory, up - started, time.perf_counter() - up)


def _idle(memory_bytes: int, start_s: float, stop_s: float) -> dict[str, float]:
    return {
        "memory_mib": round(memory_bytes / 2**20, 1),
        "bytes_per_actor": round(memory_bytes / IDLE_ACTORS),
        "start_s": round(start_s, 3),
        "stop_s": round(stop_s, 3),
    }


def _measure(what: str) -> Any:
    measurements: dict[str, Callable[[], Any]] = {
        "loop_messages": lambda: max(asyncio.run(_loop_messages()) for _ in range(REPEATS)),
        "loop_emit": lambda: min(asyncio.run(_loop_emit()) for _ in range(REPEATS)),
        "loop_hop": lambda: min(asyncio.run(_loop_hop()) for _ in range(REPEATS)),
        "loop_idle": lambda: asyncio.run(_loop_idle()),
        "thread_messages": lambda: max(_thread_messages() for _ in range(REPEATS)),
        "thread_hop": lambda: min(_thread_hop() for _ in range(REPEATS)),
        "thread_idle": _thread_idle,
    }
    return measurements[what]()


def _in_own_process(what: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.actors", what],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        # Ten thousand threads are more than many a container allows; the rest of the numbers still count.
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout)


def run() -> dict[str, Any]:
    """Measure all; ratios above 1 are in favour of the loop actors.

    `emit_us` is what a sender pays for one message to one receiver: routing, look-up of the name and `tell`.
    """
    loop, thread = (
        {what: _in_own_process(f"{kind}_{what}") for what in ("messages", "hop", "idle")}
        for kind in ("loop", "thread")
    )
    results = {name: _presented(kind) for name, kind in (("loop_actor", loop), ("threading_actor", thread))}
    results["loop_actor"]["emit_us"] = round(_in_own_process("loop_emit") * 1e6, 2)
    ratios: dict[str, float] = {
        "messages_per_s": round(loop["messages"] / thread["messages"], 1),
        "hop": round(thread["hop"] / loop["hop"], 1),
    }
    if "failed" not in thread["idle"]:
        for key in ("memory_mib", "start_s", "stop_s"):
            if loop["idle"][key]:
                ratios[f"idle_{key}"] = round(thread["idle"][key] / loop["idle"][key], 1)
    return {"idle_actors": IDLE_ACTORS, **results, "ratio": ratios}


def _presented(measured: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages_per_s": round(measured["messages"]),
        "hop_us": round(measured["hop"] * 1e6, 2),
        "idle": measured["idle"],
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
