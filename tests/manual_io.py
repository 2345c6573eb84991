"""A world that only moves when a test says so: virtual time, recorded sockets, and a harness for one actor.

`actor_harness(Keepalive, settings)` runs a concern on the loop runtime over a `ManualIo`; `tell` and
`advance` return when everything that follows from them has happened, without a sleep.
"""

from __future__ import annotations

import heapq
import ipaddress
import os
import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import structlog
from structlog.testing import LogCapture

from actors.base import Concern, ConcernRef, Context
from actors.io import InterfaceAddress, Shortage, TcpListener, TcpOwner, TcpStream, Timer, UdpOwner, UdpSocket
from actors.runtime import LoopRuntime, request_stop
from ztna.address import Family, TransportAddress
from ztna.quic.budget import fixed_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.message import Message

ConcernT = TypeVar("ConcernT", bound=Concern)

MAX_CALLS = 100_000
"""More calls than any test needs at one instant: two actors that tell each other for ever end here."""

START_WALL_TIME = 1_800_000_000.0


class ManualTimer:
    """A call on the virtual clock."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the call."""
        self.callback = None


class ManualScheduler:
    """A `Scheduler` with a virtual clock; the thread that creates it is the loop thread."""

    def __init__(self, start_time: float = 1000.0) -> None:
        self._now = start_time
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._count = 0
        self._thread = threading.get_ident()
        self._submitted = threading.Event()

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[[], None]) -> None:
        assert self.is_loop_thread()
        self._ready.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)
        self._submitted.set()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        assert self.is_loop_thread()
        timer = ManualTimer(callback)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    def is_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def run_until_idle(self) -> None:
        """Run everything that is due now, and what follows from it."""
        for _ in range(MAX_CALLS):
            if self._ready:
                self._ready.popleft()()
            elif not self._run_due_timer():
                return
        raise AssertionError("the actors never come to rest")

    def run_until(self, when: float) -> None:
        """Move the clock to `when`, stopping at every timer on the way."""
        self.run_until_idle()
        while (deadline := self.next_deadline()) is not None and deadline <= when:
            self._now = max(self._now, deadline)
            self.run_until_idle()
        self._now = max(self._now, when)
        self.run_until_idle()

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`."""
        self.run_until(self._now + seconds)

    def run_until_true(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Run what other threads submit until `condition` holds; the virtual clock stands still."""
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up_at, "the condition never held"
            self._submitted.wait(0.01)
            self._submitted.clear()
            self.run_until_idle()

    def next_deadline(self) -> float | None:
        """When the next timer is due."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _run_due_timer(self) -> bool:
        deadline = self.next_deadline()
        if deadline is None or deadline > self._now:
            return False
        callback = heapq.heappop(self._timers)[2].callback
        assert callback is not None
        callback()
        return True


@dataclass
class RecordedUdpSocket:
    """A UDP socket that goes nowhere: sent datagrams are in `sent`; with `refuses` (an errno) none leave."""

    local_address: TransportAddress
    owner: UdpOwner
    sent: list[tuple[bytes, TransportAddress, str]] = field(default_factory=list)
    dropped: int = 0
    is_closed: bool = False
    refuses: int = 0

    def send(self, payloads: Sequence[bytes], remote: TransportAddress, local_host: str = "") -> int:
        if self.refuses:
            self.owner.send_failed(remote, OSError(self.refuses, os.strerror(self.refuses)), 0.0)
            return 0
        self.sent.extend((bytes(payload), remote, local_host) for payload in payloads)
        return len(payloads)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class RecordedTcpStream:
    """One TCP connection without another end: `written` is what the owner wrote."""

    local_address: TransportAddress
    remote_address: TransportAddress
    written: bytearray = field(default_factory=bytearray)
    eof_written: bool = False
    is_reading: bool = False
    is_aborted: bool = False

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.eof_written = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def abort(self) -> None:
        self.is_aborted = True


@dataclass
class RecordedTcpListener:
    """A listening socket nobody reaches unless the test calls `connect`."""

    local_address: TransportAddress
    accept: Callable[[TcpStream], TcpOwner]
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True

    def connect(self, remote: TransportAddress) -> tuple[RecordedTcpStream, TcpOwner]:
        """Play a client that connects from `remote`."""
        stream = RecordedTcpStream(self.local_address, remote)
        owner = self.accept(stream)
        owner.connected(stream)
        return stream, owner


@dataclass
class RecordedTcpAttempt:
    """A connection attempt; the test answers through `owner`."""

    host: str
    port: int
    timeout_s: float
    owner: TcpOwner
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualIo(ManualScheduler):
    """An `Io` whose sockets record and whose clock stands still."""

    def __init__(self, start_time: float = 1000.0, seed: int = 1) -> None:
        super().__init__(start_time)
        self._start_time = start_time
        self.random = random.Random(seed)
        self.udp_sockets: list[RecordedUdpSocket] = []
        self.tcp_listeners: list[RecordedTcpListener] = []
        self.tcp_attempts: list[RecordedTcpAttempt] = []
        self.names: dict[str, list[str]] = {}
        self.lacks: Shortage | None = None
        self.nearly_lacks: Shortage | None = None
        self.refused: Counter[str] = Counter()
        self.interfaces = [InterfaceAddress("lo", "127.0.0.1", 8)]
        self.sources: dict[Family, str] = {}
        self.network_watchers: list[Callable[[], None]] = []
        self._ports = iter(range(40_000, 65_536))

    def set_wall_clock(self, forward_s: float) -> None:
        """Set the wall clock forward, while the monotonic clock stands still."""
        self._start_time -= forward_s

    def wall_time(self) -> float:
        return START_WALL_TIME + self.time() - self._start_time

    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> UdpSocket:
        socket = RecordedUdpSocket(self._bind(local), owner)
        self.udp_sockets.append(socket)
        return socket

    def listen_tcp(self, local: TransportAddress, accept: Callable[[TcpStream], TcpOwner]) -> TcpListener:
        listener = RecordedTcpListener(self._bind(local), accept)
        self.tcp_listeners.append(listener)
        return listener

    def connect_tcp(self, host: str, port: int, timeout_s: float, owner: TcpOwner) -> Callable[[], None]:
        attempt = RecordedTcpAttempt(host, port, timeout_s, owner)
        self.tcp_attempts.append(attempt)
        return attempt.cancel

    def resolve(
        self,
        host: str,
        port: int,
        done: Callable[[list[TransportAddress], OSError | None], None],
    ) -> None:
        try:
            hosts = [str(ipaddress.ip_address(host))]
        except ValueError:
            hosts = self.names.get(host, [])
        found = [TransportAddress.of(each, port) for each in hosts]
        error = None if found else OSError(f"{host} is unknown")
        self.call_soon(lambda: done(found, error))

    def stopwatch(self) -> Callable[[], float]:
        """Everything takes the same, so that a run does not depend on this machine."""
        return fixed_cost()()

    def shortage(self, *, needs_descriptor: bool = False) -> Shortage | None:
        found = self.lacks if needs_descriptor or self.lacks is None else self.lacks_memory()
        if found is not None:
            self.refused[found.reason] += 1
        return found

    def lacks_memory(self) -> Shortage | None:
        return self.lacks if self.lacks is not None and self.lacks.reason == "memory_limit" else None

    def shortages(self) -> Mapping[str, int]:
        return self.refused

    def nearly_reached(self) -> Shortage | None:
        return self.nearly_lacks

    def interface_addresses(self) -> list[InterfaceAddress]:
        return sorted(self.interfaces, key=lambda address: (address.interface, address.host))

    def source_address(self, family: Family) -> str | None:
        return self.sources.get(family)

    def watch_network(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.network_watchers.append(callback)

        def cancel() -> None:
            if callback in self.network_watchers:
                self.network_watchers.remove(callback)

        return cancel

    def change_network(
        self, interfaces: list[InterfaceAddress], sources: Mapping[Family, str] | None = None
    ) -> None:
        """Give the host other addresses, and let everything that follows happen."""
        self.interfaces = interfaces
        self.sources = dict(sources or {})
        for watcher in list(self.network_watchers):
            self.call_soon(watcher)
        self.run_until_idle()

    def _bind(self, local: TransportAddress) -> TransportAddress:
        return TransportAddress(local.host, local.port or next(self._ports))


class RecordingLife:
    """Notes how an actor fares."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.failure: BaseException | None = None

    def created(self, ref: ConcernRef) -> None:
        self.events.append("created")

    def started(self, ref: ConcernRef) -> None:
        self.events.append("started")

    def ended(self, ref: ConcernRef, failure: BaseException | None) -> None:
        self.failure = failure
        self.events.append("ended")


class RecordingContext:
    """Makes contexts whose emitted messages and log lines are kept."""

    def __init__(self, io: ManualIo) -> None:
        self.io = io
        self.emitted: list[Message] = []
        self.logs = LogCapture()

    def context(self, key: str = "", **bound: str) -> Context:
        log = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[self.logs],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=False,
        )
        return Context(io=self.io, emit=self.emitted.append, log=cast("Any", log.bind(**bound)), key=key)


class ActorHarness(Generic[ConcernT]):
    """One concern on the loop runtime, over a world that the test moves."""

    def __init__(
        self, concern_class: type[ConcernT], *args: Any, key: str = "", io: ManualIo | None = None
    ) -> None:
        self.io = io or ManualIo()
        self.recording = RecordingContext(self.io)
        self.life = RecordingLife()
        self._concerns: list[ConcernT] = []

        def build(context: Context, *arguments: Any) -> ConcernT:
            self._concerns.append(concern_class(context, *arguments))
            return self._concerns[-1]

        context = self.recording.context(key, actor=concern_class.name)
        self.ref = LoopRuntime(self.io).start(build, context, *args, life=self.life)
        self.io.run_until_idle()

    @property
    def concern(self) -> ConcernT:
        """The concern itself, for callbacks that the outside world would make."""
        return self._concerns[0]

    @property
    def emitted(self) -> list[Message]:
        """Every message emitted and not yet taken, oldest first."""
        return self.recording.emitted

    @property
    def logs(self) -> list[Any]:
        """Every log line, as a dict."""
        return self.recording.logs.entries

    @property
    def failure(self) -> BaseException | None:
        """What ended the actor, if it failed."""
        return self.life.failure

    @property
    def is_alive(self) -> bool:
        return self.ref.is_alive()

    def take_emitted(self) -> list[Message]:
        """Hand over what was emitted since the last call; each type must be declared in `emits`."""
        taken = self.recording.emitted[:]
        self.recording.emitted.clear()
        undeclared = {type(message).__name__ for message in taken} - {
            declared.__name__ for declared in type(self.concern).emits
        }
        assert not undeclared, f"{self.concern.name} emits {sorted(undeclared)} undeclared"
        return taken

    def tell(self, *messages: object) -> None:
        """Tell the actor and let everything that follows happen."""
        for message in messages:
            self.ref.tell(message)
        self.io.run_until_idle()

    def ask(self, message: object) -> Any:
        """Ask the actor and return its answer."""
        future = self.ref.ask(message, block=False)
        self.io.run_until_idle()
        return future.get(timeout=0)

    def advance(self, seconds: float) -> None:
        """Move the clock, stopping at every timer on the way."""
        self.io.advance(seconds)

    def stop(self) -> None:
        """Stop the actor and let it clean up."""
        request_stop(self.ref)
        self.io.run_until_idle()


def actor_harness(
    concern_class: type[ConcernT], *args: Any, key: str = "", io: ManualIo | None = None
) -> ActorHarness[ConcernT]:
    """Start `concern_class(context, *args)` in a world that stands still."""
    return ActorHarness(concern_class, *args, key=key, io=io)
