"""Runs a target over blocks of inputs, and reduces what it finds to something short that can be replayed.

Block `n` of a target depends on the seed, the target's name and `n` alone, however many processes share the
work. The first block is traced: what Python allocates must stay within the target's bounds. In every other
one the whole process is watched, which also sees what libraries in C allocate.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final

from tools.fuzz.target import Target, Violation

INPUT_LIMIT_S: Final = 10.0
"""Processor time for one input, a thousand times that of the slowest: what takes longer never ends."""
MAX_KEPT_BYTES: Final = 16 << 20
"""Of a traced block, once its inputs are through: the largest state is a few bounded queues and caches."""
MAX_PEAK_BYTES: Final = 64 << 20
"""Of a traced block, at any moment: a hundred times the largest input."""
MAX_GROWTH_BYTES: Final = 128 << 20
"""Of a process, since it warmed up: what allocators keep, while a leak of 1 KiB per input passes it soon."""
WARM_UP_BLOCKS: Final = 4
MAX_ATTEMPTS: Final = 600
MAX_REDUCTION_S: Final = 30.0

Make = Callable[[], Target]


class _TimeLimit(BaseException):
    """Not to be caught by what an input runs through."""


@dataclass(slots=True)
class Found:
    """A violation: the inputs that lead to it on a new target, the last one being at fault."""

    error: str
    trace: str
    where: str
    inputs: list[bytes]
    index: int = 0
    is_replayable: bool = True


@dataclass(slots=True)
class Outcome:
    """What one block came to; `refused` counts documented errors by reason."""

    target: str
    block: int
    inputs: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    found: Found | None = None


@cache
def corpus_of(make: Make) -> tuple[bytes, ...]:
    """The examples of a target, made once per process."""
    return tuple(make().corpus())


def run_block(make: Make, seed: int, block: int, count: int, *, is_traced: bool = False) -> Outcome:
    """Feed `count` inputs of one block to a new target."""
    corpus = corpus_of(make)
    outcome = Outcome(make().name, block)
    started = time.monotonic()
    with _memory_watched(outcome, make, is_traced=is_traced):
        target = make()
        random = Random(f"{seed}/{outcome.target}/{block}")
        history: list[bytes] = []
        for index in range(count):
            data = target.draw(random, corpus)
            history.append(data)
            found = _feed(target, data, outcome.refused)
            if found is not None:
                found.index = index
                outcome.found = reduce(make, history, found)
                break
            outcome.inputs += 1
        else:
            found = _check(target, history)
            if found is not None:
                outcome.found = reduce(make, history, found)
        history.clear()
    outcome.seconds = time.monotonic() - started
    return outcome


Task = tuple[Make, int, int, int, bool]


def run_task(task: Task) -> Outcome:
    """`run_block` for a pool of processes, which find no function of `__main__`."""
    make, seed, block, count, is_traced = task
    return run_block(make, seed, block, count, is_traced=is_traced)


def replay(make: Make, inputs: Sequence[bytes]) -> Found | None:
    """Feed inputs to a new target; the first violation, or None."""
    target = make()
    refused: Counter[str] = Counter()
    for index, data in enumerate(inputs):
        found = _feed(target, data, refused)
        if found is not None:
            found.inputs = list(inputs[: index + 1])
            return found
    return _check(target, list(inputs))


def _feed(target: Target, data: bytes, refused: Counter[str]) -> Found | None:
    try:
        with _time_limited():
            target.feed(data)
    except target.documented as error:
        refused[getattr(error, "reason", type(error).__name__)] += 1
    except (Exception, _TimeLimit) as error:  # noqa: BLE001 - whatever it is, it is what we look for
        return _found(error, [data])
    return None


def _check(target: Target, history: list[bytes]) -> Found | None:
    try:
        target.check()
    except Exception as error:  # noqa: BLE001 - as above
        return _found(error, list(history))
    return None


def _found(error: BaseException, inputs: list[bytes]) -> Found:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    # A complaint of the target's own is told apart by its words.
    where = f"{last.filename}:{last.name}:{error if isinstance(error, Violation) else type(error).__name__}"
    described = f"{type(error).__name__}: {error}"
    if isinstance(error, _TimeLimit):
        described, where = f"one input takes more than {INPUT_LIMIT_S:g} s", "time"
    return Found(described[:500], "".join(traceback.format_exception(error)), where, inputs)


@contextmanager
def _time_limited() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.setitimer(signal.ITIMER_VIRTUAL, INPUT_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def prepare_process() -> None:
    """Let the time limit of inputs count in this process, and aioquic be silent about bad packets."""
    signal.signal(signal.SIGVTALRM, _time_is_up)
    logging.getLogger("quic").setLevel(logging.CRITICAL)


def _time_is_up(_number: int, _frame: FrameType | None) -> None:
    raise _TimeLimit


# Memory

_warm: Counter[str] = Counter()
_baseline: dict[str, int] = {}


@contextmanager
def _memory_watched(outcome: Outcome, make: Make, *, is_traced: bool) -> Iterator[None]:
    if is_traced:
        make()  # what is made only once is no growth
        gc.collect()
        tracemalloc.start()
    try:
        yield
        if is_traced:
            gc.collect()
            kept, peak = tracemalloc.get_traced_memory()
            if outcome.found is None and (kept > MAX_KEPT_BYTES or peak > MAX_PEAK_BYTES):
                outcome.found = _of_memory(f"a block keeps {kept} bytes, {peak} at its worst")
        elif outcome.found is None:
            _watch_process(outcome)
    finally:
        if is_traced:
            tracemalloc.stop()


def _watch_process(outcome: Outcome) -> None:
    name = outcome.target
    _warm[name] += 1
    if _warm[name] <= WARM_UP_BLOCKS:
        _baseline[name] = _resident_bytes()
        return
    growth = _resident_bytes() - _baseline[name]
    if growth > MAX_GROWTH_BYTES:
        outcome.found = _of_memory(f"the process grew by {growth} bytes in {_warm[name]} blocks")


def _of_memory(complaint: str) -> Found:
    return Found(complaint, "", "memory", [], is_replayable=False)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# Reduction


class _Reducer:
    def __init__(self, make: Make, found: Found) -> None:
        self._make = make
        self._where = found.where
        self._attempts = 0
        self._ends_at = time.monotonic() + MAX_REDUCTION_S
        self.best = found

    def is_spent(self) -> bool:
        return self._attempts >= MAX_ATTEMPTS or time.monotonic() > self._ends_at

    def try_(self, inputs: list[bytes]) -> bool:
        """Whether these do the same; then they are the best so far."""
        if self.is_spent():
            return False
        self._attempts += 1
        found = replay(self._make, inputs)
        if found is None or found.where != self._where:
            return False
        found.index = self.best.index
        self.best = found
        return True


def reduce(make: Make, history: list[bytes], found: Found) -> Found:
    """The same violation with fewer and shorter inputs; unchanged if it does not show again."""
    if found.where == "time":
        return found  # each attempt would take as long
    reducer = _Reducer(make, found)
    if not reducer.try_(history[-1:]):
        if not reducer.try_(list(history)):
            found.inputs, found.is_replayable = list(history), False
            return found
        _reduce_history(reducer)
    _reduce_input(reducer)
    return reducer.best


def _reduce_history(reducer: _Reducer) -> None:
    size = len(reducer.best.inputs) // 2
    while size and not reducer.is_spent():
        start = 0
        while start < len(reducer.best.inputs) - 1:
            inputs = reducer.best.inputs
            end = min(start + size, len(inputs) - 1)
            if not reducer.try_(inputs[:start] + inputs[end:]):
                start += size
            if reducer.is_spent():
                return
        size //= 2


def _reduce_input(reducer: _Reducer) -> None:
    """Cut pieces out of the last input, then set what is left to zero as far as possible."""
    size = max(1, len(reducer.best.inputs[-1]) // 2)
    while not reducer.is_spent():
        start = 0
        while start < len(reducer.best.inputs[-1]) and not reducer.is_spent():
            *earlier, last = reducer.best.inputs
            if not reducer.try_([*earlier, last[:start] + last[start + size :]]):
                start += size
        if size == 1:
            break
        size //= 2
    for start in range(len(reducer.best.inputs[-1])):
        *earlier, last = reducer.best.inputs
        if last[start]:
            reducer.try_([*earlier, last[:start] + b"\0" + last[start + 1 :]])
