"""Actors without their runtime: messages go from one to the next in order, and what one raises comes out.

Under the real runtime a failure ends the actor alone and is logged; here it must reach whoever called.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

import structlog
from google.protobuf.message import Message

from actors.base import Concern, Context
from actors.io import (
    InterfaceAddress,
    Shortage,
    TcpListener,
    TcpOwner,
    TcpStream,
    Timer,
    UdpOwner,
    UdpSocket,
)
from tools.fuzz.identities import NOW
from tools.fuzz.target import require
from ztna.address import TransportAddress
from ztna.quic.budget import fixed_cost

START_TIME: Final = 1000.0
MAX_STEPS: Final = 100_000
"""Messages that may follow from one input: two actors that tell each other for ever end here."""

MAX_REMEMBERED: Final = 4
"""Sockets that a target may play the network for: those opened first."""


class _Forgotten:
    """A timer, socket, listener or stream that does nothing."""

    local_address = TransportAddress("127.0.0.1", 40_000)
    remote_address = TransportAddress("127.0.0.1", 40_001)
    dropped = 0

    def nothing(self, *_args: object, **_keywords: object) -> int:
        return 0

    cancel = close = write = write_eof = pause_reading = resume_reading = abort = send = nothing


class StillIo:
    """An `Io` whose clock moves when told, and whose sockets lead nowhere."""

    def __init__(self) -> None:
        self.now = START_TIME
        self.random = random.Random(1)
        self.calls: deque[Callable[[], None]] = deque()
        self.attempts: deque[TcpOwner] = deque()
        self.listeners: list[Callable[[TcpStream], TcpOwner]] = []
        self.udp_owners: list[UdpOwner] = []

    def time(self) -> float:
        return self.now

    def wall_time(self) -> float:
        return NOW + self.now - START_TIME

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.calls.append(callback)

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        del when, callback
        return cast("Timer", _Forgotten())

    def is_loop_thread(self) -> bool:
        return True

    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> UdpSocket:
        del local, may_fragment
        self.udp_owners.append(owner)
        del self.udp_owners[MAX_REMEMBERED:]
        return cast("UdpSocket", _Forgotten())

    def listen_tcp(self, local: TransportAddress, accept: Callable[[TcpStream], TcpOwner]) -> TcpListener:
        del local
        self.listeners.append(accept)
        return cast("TcpListener", _Forgotten())

    def connect_tcp(self, host: str, port: int, timeout_s: float, owner: TcpOwner) -> Callable[[], None]:
        del host, port, timeout_s
        self.attempts.append(owner)
        return lambda: self._give_up(owner)

    def _give_up(self, owner: TcpOwner) -> None:
        if owner in self.attempts:
            self.attempts.remove(owner)

    def resolve(
        self, host: str, port: int, done: Callable[[list[TransportAddress], OSError | None], None]
    ) -> None:
        address = TransportAddress.of(host, port)
        self.call_soon(lambda: done([address], None))

    def interface_addresses(self) -> list[InterfaceAddress]:
        return []

    def stopwatch(self) -> Callable[[], float]:
        """Everything takes the same, so that a run does not depend on this machine."""
        return fixed_cost()()

    def shortage(self, *, needs_descriptor: bool = False) -> Shortage | None:
        del needs_descriptor
        return None

    def shortages(self) -> Mapping[str, int]:
        return {}


class _Host:
    def __init__(self, stage: Stage, concern: Concern) -> None:
        self._stage = stage
        self._concern = concern

    def tell_self(self, message: object) -> None:
        self._stage.tell_one(self._concern, message)

    def enter(self, function: Callable[..., object], *args: object) -> None:
        self._concern.now = self._stage.io.now
        function(*args)


class Stage:
    """Some concerns of one daemon; what nobody here handles is in `unheard`."""

    def __init__(self) -> None:
        self.io = StillIo()
        self.unheard: list[Message] = []
        self._concerns: list[Concern] = []
        self._inbox: deque[tuple[Concern, object]] = deque()

    def context(self, key: str = "") -> Context:
        """What a concern of this stage is given."""
        return Context(io=cast("Any", self.io), emit=self.emit, log=_LOG, key=key)

    def add(self, concern: Concern) -> None:
        """Let a concern hear what the others emit."""
        concern.host = _Host(self, concern)
        self._concerns.append(concern)

    def start(self) -> None:
        """Start every concern, in order."""
        for concern in self._concerns:
            concern.on_start()
        self.run()

    def emit(self, message: Message) -> None:
        """Route a message to whoever handles its type."""
        is_heard = False
        for concern in self._concerns:
            if type(message) in concern.dispatch:
                self._inbox.append((concern, message))
                is_heard = True
        if not is_heard:
            self.unheard.append(message)

    def tell_one(self, concern: Concern, message: object) -> None:
        """Put a message into the inbox of one concern."""
        self._inbox.append((concern, message))

    def tell(self, *messages: Message) -> None:
        """Tell whoever handles them, and let everything that follows happen."""
        for message in messages:
            self.emit(message)
        self.run()

    def run(self) -> None:
        """Deliver until every inbox is empty."""
        for _ in range(MAX_STEPS):
            if self._inbox:
                concern, message = self._inbox.popleft()
                concern.now = self.io.now
                concern.dispatch[type(message)](concern, message)
            elif self.io.calls:
                self.io.calls.popleft()()
            else:
                return
        require(False, "the actors never come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, and every deadline that passed be acted upon once."""
        self.io.now += seconds
        for concern in self._concerns:
            deadline = concern.next_deadline()
            if deadline is not None and deadline <= self.io.now:
                concern.now = self.io.now
                concern.handle_timeout(self.io.now)
        self.run()

    def take(self) -> list[Message]:
        """Hand over what nobody heard since the last call."""
        taken, self.unheard = self.unheard, []
        return taken


def total_bytes(messages: Iterable[Message]) -> int:
    """How large messages are together."""
    return sum(message.ByteSize() for message in messages)


def _drop(_logger: object, _name: str, event: Any) -> Any:
    # Whatever the log would show must be possible to show.
    repr(event)
    raise structlog.DropEvent


_LOG = cast(
    "Any",
    structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[_drop],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=False,
    ),
)
