"""What must hold in every simulation: nobody schedules into the past, time moves on, nothing fails unseen."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final, NoReturn, cast

import structlog
from structlog.typing import FilteringBoundLogger

from actors.timers import DeadlineTimer
from tests.simnet.clock import VirtualClock, VirtualTimer
from tests.simnet.sim_io import ProcessCall

# Sums of floats differ in their last digits; a deadline that really lies in the past is older than this.
PAST_TOLERANCE_S: Final = 1e-6
# Calls of one callback at one instant. A burst of a whole congestion window, 4 MiB in packets of 1200 bytes,
# arrives at one instant on a link without a rate; what comes more often goes round in circles.
MAX_CALLS_PER_INSTANT: Final = 20_000
# The same for the timer of one actor, which has no reason to fire twice unless a message came in between.
MAX_TIMERS_PER_INSTANT: Final = 100
# Actors whose deadline may have gone by when it is named. An intermediate tells its figures once in a while,
# and at once when the last time is long ago. How long a path may be silent follows its round trip, as QUIC's
# probe timeout does, and whether it may be doubted follows what comes; so the moment may turn out to be past.
LATE_TIMERS: Final = frozenset(
    {"registry", "session_manager", "signaling_service", "quic_relay", "quic_session", "relay_leg"}
)
# Enough to see what led to a failure; a long run must not fill the memory.
MAX_LOG_LINES: Final = 50_000
# Log events that no run may contain, whatever it does to its daemons.
FAILURE_EVENTS: Final = (".actor_failed", ".clean_up_failed", ".bookkeeping_failed", ".start_failed")


class InvariantError(AssertionError):
    """Something that must hold in every simulation does not."""


class WatchedClock(VirtualClock):
    """A clock that refuses the past and names whoever stops time."""

    def __init__(self) -> None:
        super().__init__()
        self.violations: list[str] = []
        self._counts: Counter[str] = Counter()
        self._instant = 0.0

    def call_at(self, when: float, callback: Callable[[], None]) -> VirtualTimer:
        """Run `callback` at `when`; a time in the past is a violation, reported by the next `check`.

        A deadline may have passed while its process stood still, and where it says since when something is
        due (`LATE_TIMERS`); one from before its process began was never a moment at all.
        """
        if when < self._earliest(callback) - PAST_TOLERANCE_S:
            # Raised here, it would look like a failure of the actor that happens to run.
            self.violations.append(f"{describe(callback)} scheduled {self.time() - when:g} s in the past")
        return super().call_at(when, callback)

    def _earliest(self, callback: Callable[[], None]) -> float:
        if not (isinstance(callback, ProcessCall) and is_actor_timer(callback.callback)):
            return self.time()
        concern = describe(callback).removeprefix("timer of ").partition("/")[0]
        may_be_late = callback.io.was_frozen or concern in LATE_TIMERS
        return callback.io.started_at if may_be_late else self.time()

    def check(self) -> None:
        """Raise `InvariantError` if anybody broke a rule so far."""
        if self.violations:
            raise InvariantError("\n".join(self.violations[:10]))

    def _run(self, callback: Callable[[], None]) -> None:
        now = self.time()
        if now != self._instant:
            self._instant = now
            self._counts.clear()
        name = describe(callback)
        self._counts[name] += 1
        limit = MAX_TIMERS_PER_INSTANT if name.startswith("timer of") else MAX_CALLS_PER_INSTANT
        if self._counts[name] > limit:
            raise InvariantError(
                f"{name} ran more than {limit} times at {now:.6f}: {self._counts.most_common(5)}"
            )
        callback()


def is_actor_timer(callback: object) -> bool:
    """Whether this is the timer of an actor."""
    return isinstance(getattr(callback, "__self__", None), DeadlineTimer)


def describe(callback: object) -> str:
    """A name for a callback that tells people where to look."""
    if isinstance(callback, ProcessCall):
        callback = callback.callback
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, DeadlineTimer):
        actor = owner._deliver.__self__  # type: ignore[attr-defined]
        return f"timer of {actor.concern.name}/{actor.concern.key}"
    return str(getattr(callback, "__qualname__", callback))


class LogBook:
    """Every log line of every daemon, stamped with virtual time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.lines: deque[dict[str, Any]] = deque(maxlen=MAX_LOG_LINES)
        self.failures: list[dict[str, Any]] = []

    def logger(self, **bound: object) -> FilteringBoundLogger:
        """A logger that writes here."""
        return cast(
            "FilteringBoundLogger",
            structlog.wrap_logger(
                None,
                processors=[
                    structlog.processors.add_log_level,
                    structlog.processors.format_exc_info,
                    self._record,
                ],
                wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            ).bind(**bound),
        )

    def events(self, name: str, node: str = "") -> list[dict[str, Any]]:
        """The lines of one event, of one node if given, oldest first."""
        return [line for line in self.lines if line["event"] == name and node in {"", line["node"]}]

    def tail(self, count: int = 60) -> str:
        """The last lines as text."""
        return "\n".join(format_line(line) for line in list(self.lines)[-count:])

    def check(self) -> None:
        """Raise `InvariantError` if an actor failed, whether or not it was started again."""
        if self.failures:
            raise InvariantError("\n".join(format_line(line) for line in self.failures))

    def _record(self, _logger: object, _method: str, line: MutableMapping[str, Any]) -> NoReturn:
        line["time"] = self._clock.time()
        self.lines.append(dict(line))
        if str(line["event"]).endswith(FAILURE_EVENTS):
            self.failures.append(dict(line))
        raise structlog.DropEvent


def format_line(line: dict[str, Any]) -> str:
    """One log line for people."""
    rest = {key: value for key, value in line.items() if key not in {"time", "node", "event", "daemon"}}
    exception = rest.pop("exception", "")
    facts = " ".join(f"{key}={value}" for key, value in rest.items())
    text = f"{line['time']:12.6f}  {line['node']:16} {line['event']:44} {facts}"
    return f"{text}\n{exception}" if exception else text
