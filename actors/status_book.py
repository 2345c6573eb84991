"""What every daemon knows of itself, kept as messages come in: sockets, actors, drops, what went wrong.

A book is plain bookkeeping over protobuf messages, without I/O: it is handed the time and the messages, and
is read as a `DaemonStatus` or as metric samples. `NodeStatusBook` and `IntermediateStatusBook` add what only
they hear of.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from google.protobuf.message import Message

from actors.child_group import ChildState
from actors.daemon_hooks import Validity
from actors.metrics import Sample, sample_key
from actors.supervisor import ChildStatus
from ztna import __version__
from ztna.v1 import control_pb2, types_pb2, udp_socket_pb2

MAX_PROBLEMS: Final = 32
"""Distinct problems that are remembered: two screens; what is older has either gone or will be noted
again."""

MAX_PROBLEM_CHARACTERS: Final = 300
"""Peers choose parts of some sentences; three lines of a terminal are enough for each."""

MAX_LISTED: Final = 1000
"""Sessions, nodes or actors in one status. Building it takes about 5 us for each on the loop's thread, and
packets wait meanwhile; the counters always count all of them."""

STUN_ANSWERED: Final = "answered"
"""The one figure of STUN that is no refusal."""

MAX_DROP_REASONS: Final = 256
"""Pairs of place and reason. Reasons are words of our own code (some 60); the bound holds if one ever is
not."""


@dataclass(frozen=True, slots=True)
class ServiceLine:
    """One configured service: `address` is the listen address of an agent, or the backend of a connector."""

    id: str
    protocol: types_pb2.ServiceProtocol.ValueType
    address: str


@dataclass(frozen=True, slots=True)
class BookSettings:
    """What a book knows before the first message."""

    daemon: str
    id: str
    intermediates: tuple[str, ...] = ()
    services: tuple[ServiceLine, ...] = ()


class ProblemLog:
    """What went wrong lately, in sentences; repetitions are counted, the longest-silent one makes room."""

    def __init__(self) -> None:
        self._problems: OrderedDict[tuple[str, str], control_pb2.Problem] = OrderedDict()

    def note(self, event: str, message: str, wall: float) -> None:
        """Note one occurrence at `wall` (unix seconds)."""
        if len(message) > MAX_PROBLEM_CHARACTERS:
            message = message[: MAX_PROBLEM_CHARACTERS - 1] + "…"
        key = (event, message)
        problem = self._problems.get(key)
        if problem is None:
            problem = self._problems[key] = control_pb2.Problem(event=event, message=message)
            if len(self._problems) > MAX_PROBLEMS:
                self._problems.popitem(last=False)
        problem.at_s = wall
        problem.count += 1
        self._problems.move_to_end(key)

    def newest_first(self) -> list[control_pb2.Problem]:
        """What is remembered."""
        return list(reversed(self._problems.values()))


@dataclass(slots=True)
class _Total:
    messages: int = 0
    handling_s: float = 0.0
    restarts: int = 0


@dataclass(slots=True)
class ActorTotals:
    """Sums over all actors of a concern that never go down, although actors end and start anew."""

    _seen: dict[str, tuple[str, _Total]] = field(default_factory=dict)
    _gone: dict[str, _Total] = field(default_factory=dict)
    _inbox: dict[str, int] = field(default_factory=dict)

    def observe(self, children: Iterable[ChildStatus]) -> None:
        """Take the counters of all living actors; what is missing, or counts from zero again, has ended."""
        seen: dict[str, tuple[str, _Total]] = {}
        inbox: dict[str, int] = {}
        for child in children:
            concern = child.concern.partition("/")[0]
            total = _Total(child.handled, child.busy_s, child.restarts)
            former = self._seen.pop(child.name, None)
            if former is not None and former[1].messages > total.messages:
                # A successor in the same place: the supervisor goes on counting its restarts.
                self._retire(concern, _Total(former[1].messages, former[1].handling_s, 0))
            seen[child.name] = (concern, total)
            inbox[concern] = inbox.get(concern, 0) + child.inbox_depth
        for concern, total in self._seen.values():
            self._retire(concern, total)
        self._seen = seen
        self._inbox = inbox

    def samples(self) -> Iterator[Sample]:
        """One sample per metric and concern."""
        sums: dict[str, _Total] = {}
        for concern, total in (*self._gone.items(), *self._seen.values()):
            _add(sums.setdefault(concern, _Total()), total)
        for concern, total in sums.items():
            yield Sample("actor_inbox_depth", self._inbox.get(concern, 0), (concern,))
            yield Sample("actor_messages_total", total.messages, (concern,))
            yield Sample("actor_handling_seconds_total", total.handling_s, (concern,))
            yield Sample("actor_restarts_total", total.restarts, (concern,))

    def _retire(self, concern: str, total: _Total) -> None:
        _add(self._gone.setdefault(concern, _Total()), total)


def _add(into: _Total, total: _Total) -> None:
    into.messages += total.messages
    into.handling_s += total.handling_s
    into.restarts += total.restarts


class StatusBook:
    """What is common. `takers` names the method for each message type; subclasses extend it."""

    takers: ClassVar[Mapping[type[Message], str]] = {
        udp_socket_pb2.SocketsBound: "sockets_bound",
        udp_socket_pb2.SocketStatistics: "socket_statistics",
        udp_socket_pb2.SendFailed: "send_failed",
    }

    def __init__(
        self,
        settings: BookSettings,
        children: Callable[[], Sequence[ChildStatus]],
        now: float,
        wall: float,
    ) -> None:
        """`children` is `Supervisor.children`; `now` is monotonic, `wall` unix seconds."""
        self.settings = settings
        self.now = now
        self.wall = wall
        self._children = children
        self._started_at = now
        self._addresses: list[types_pb2.TransportAddress] = []
        self._sockets = udp_socket_pb2.SocketStatistics()
        self._drops: dict[tuple[str, str], dict[str, int]] = {}
        self._refusals: Counter[tuple[str, str]] = Counter()
        self._near_limit_s: Counter[str] = Counter()
        self._actors = ActorTotals()
        self.problems = ProblemLog()
        self.loop_lag_s = 0.0
        self.validity: Callable[[], Validity] = Validity
        self.handshake_s: Callable[[], float] = float
        self.judgement_s: Callable[[], float] = float
        self.garbage_pauses: Callable[[], int] = int
        self.garbage_pause_s: Callable[[], float] = float

    def take(self, message: Message, now: float, wall: float) -> None:
        """Note one message."""
        self.now, self.wall = now, wall
        getattr(self, self.takers[type(message)])(message)

    def tick(self, now: float, wall: float, lag_s: float) -> None:
        """Do what is due once a second; `lag_s` is how late this call is."""
        self.now, self.wall = now, wall
        self.loop_lag_s = lag_s
        self._actors.observe(self._children())

    def sockets_bound(self, message: udp_socket_pb2.SocketsBound) -> None:
        """The UDP sockets are bound."""
        self._addresses = list(message.addresses)

    def socket_statistics(self, message: udp_socket_pb2.SocketStatistics) -> None:
        """Totals of the UDP sockets."""
        self._sockets = message
        self.note_drops("udp_socket", "", message.dropped)
        stun = {reason: count for reason, count in message.stun.items() if reason != STUN_ANSWERED and count}
        self.note_drops("stun", "", stun)

    def send_failed(self, message: udp_socket_pb2.SendFailed) -> None:
        """The kernel refused a datagram."""
        remote = address_text(message.remote)
        self.problems.note("udp_socket.send_failed", f"cannot send to {remote}: {message.error}", self.wall)

    def note_drops(self, place: str, source: str, dropped: Mapping[str, int]) -> None:
        """Take the totals of `source` (one of several actors in `place`) by reason."""
        for reason, count in dropped.items():
            key = (place, reason)
            if key in self._drops or len(self._drops) < MAX_DROP_REASONS:
                self._drops.setdefault(key, {})[source] = count

    def note_refusals(self, place: str, refused: Mapping[str, int]) -> None:
        """Take the totals of a place by reason."""
        for reason, count in refused.items():
            if (place, reason) in self._refusals or len(self._refusals) < MAX_DROP_REASONS:
                self._refusals[place, reason] = count

    def limit_nearly_reached(self, reason: str, detail: str) -> None:
        """A limit of the system is nearly reached: to be told once a second."""
        self._near_limit_s[reason] += 1
        self.problems.note("status_board.limit_nearly_reached", f"{reason}: {detail}", self.wall)

    def count_refusal(self, place: str, reason: str) -> None:
        """Count one."""
        self.note_refusals(place, {reason: self._refusals[place, reason] + 1})

    def not_ready_reason(self) -> str:
        """Why the daemon is not ready, in words; empty when it is."""
        if not self._addresses:
            return "the UDP sockets are not bound yet"
        for child in self._children():
            if not child.key and child.state is not ChildState.RUNNING:
                who = child.name.replace("_", " ").replace("/", " of ")
                return f"the daemon's {who} is {child.state.value}"
        return ""

    def status(self, now: float, wall: float) -> control_pb2.DaemonStatus:
        """Everything, as of now."""
        self.now, self.wall = now, wall
        reason = self.not_ready_reason()
        validity = self.validity()
        status = control_pb2.DaemonStatus(
            daemon=self.settings.daemon,
            id=self.settings.id,
            version=__version__,
            uptime_s=now - self._started_at,
            is_ready=not reason,
            not_ready_reason=reason,
            udp_addresses=self._addresses,
            actors=[_actor_status(child) for child in self._children()[:MAX_LISTED]],
            problems=self.problems.newest_first(),
            certificate_expires_at_s=validity.certificate_ends_at,
            ca_expires_at_s=validity.ca_ends_at,
            crl_next_update_at_s=validity.list_due_at,
        )
        self.fill(status)
        for sample in self.samples(now, wall):
            if isinstance(sample.value, int):  # seconds are no counts
                status.counters[sample_key(sample)] = sample.value
        return status

    def samples(self, now: float, wall: float) -> Iterator[Sample]:
        """Every metric of this daemon, as of now."""
        self.now, self.wall = now, wall
        yield Sample("uptime_seconds", now - self._started_at)
        yield Sample("ready", 0 if self.not_ready_reason() else 1)
        yield Sample("loop_lag_seconds", self.loop_lag_s)
        validity = self.validity()
        yield Sample("certificate_expiry_timestamp_seconds", validity.certificate_ends_at)
        yield Sample("ca_expiry_timestamp_seconds", validity.ca_ends_at)
        yield Sample("crl_next_update_timestamp_seconds", validity.list_due_at)
        yield Sample("handshake_seconds_total", self.handshake_s())
        yield Sample("stream_judgement_seconds_total", self.judgement_s())
        yield Sample("garbage_pauses_total", self.garbage_pauses())
        yield Sample("garbage_pause_seconds_total", self.garbage_pause_s())
        yield Sample("udp_datagrams_received_total", self._sockets.datagrams_received)
        yield Sample("udp_datagrams_sent_total", self._sockets.datagrams_sent)
        yield Sample("udp_bytes_received_total", self._sockets.bytes_received)
        yield Sample("udp_bytes_sent_total", self._sockets.bytes_sent)
        for (place, reason), by_source in self._drops.items():
            yield Sample("dropped_total", sum(by_source.values()), (reason, place))
        for (place, reason), count in self._refusals.items():
            yield Sample("refusals_total", count, (reason, place))
        for reason, seconds in self._near_limit_s.items():
            yield Sample("near_limit_seconds_total", seconds, (reason,))
        self._actors.observe(self._children())
        yield from self._actors.samples()
        yield from self.own_samples()

    def fill(self, status: control_pb2.DaemonStatus) -> None:
        """Add what only this kind of daemon has."""
        raise NotImplementedError

    def own_samples(self) -> Iterator[Sample]:
        """Add what only this kind of daemon has."""
        raise NotImplementedError


def _actor_status(child: ChildStatus) -> control_pb2.ActorStatus:
    return control_pb2.ActorStatus(
        name=child.name,
        state=child.state.value,
        restarts=child.restarts,
        inbox_depth=child.inbox_depth,
        messages=child.handled,
        handling_s=child.busy_s,
        slowest_ms=child.longest_s * 1e3,
    )


def address_text(address: types_pb2.TransportAddress) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
