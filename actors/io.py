"""The one port through which actors touch the outside world.

Sockets, clocks, timers, randomness, name resolution and interface addresses are reached only through `Io`.
`actors/io_asyncio.py` is the real one; `tests/simnet` holds one with a virtual clock and a simulated network.
Every callback runs on the loop thread and belongs to exactly one actor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from ztna.address import Family, TransportAddress


MAX_READ_BYTES: Final = 64 * 1024
"""Of a TCP connection at once: about what the kernel holds ready for a fast reader."""


class Timer(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Forget the call; harmless after it ran."""


class Scheduler(Protocol):
    """The loop that runs every actor of a daemon, and its monotonic clock."""

    def time(self) -> float:
        """Monotonic seconds."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop thread, in the order of submission; only from the loop thread."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Like `call_soon`, from any thread."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` at `when` (monotonic seconds); only from the loop thread."""

    def is_loop_thread(self) -> bool:
        """Whether the caller runs on the loop's own thread."""


@dataclass(frozen=True, slots=True)
class DatagramBatch:
    """UDP payloads that arrived from one remote address on one local address, oldest first.

    `local_host` is the destination address of the packets (packet info), empty where unknown.
    """

    remote: TransportAddress
    local_host: str
    payloads: list[bytes]


class UdpOwner(Protocol):
    """Whoever opened a UDP socket."""

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """All that was pending (up to a bound), grouped by remote and local address."""

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """The kernel refused a datagram for a reason other than a full buffer."""


class UdpSocket(Protocol):
    """One unconnected UDP socket."""

    @property
    def local_address(self) -> TransportAddress:
        """The bound address, with the real port."""

    def send(self, payloads: Sequence[bytes], remote: TransportAddress, local_host: str = "") -> int:
        """Send all payloads to `remote`, from `local_host` if given; returns how many the kernel took.

        What a full buffer refuses is dropped and counted, as a router would: never blocks, never raises.
        """

    @property
    def dropped(self) -> int:
        """Datagrams dropped so far, in either direction, because a buffer was full."""

    def close(self) -> None:
        """Close the socket; no callback follows."""


class TcpOwner(Protocol):
    """Whoever holds one TCP connection. Callbacks come in this order: connected, then any, lost once."""

    def connected(self, stream: TcpStream) -> None:
        """The connection stands. Reading is paused until `resume_reading`."""

    def data_received(self, data: bytes) -> None:
        """Bytes from the other end (at most `MAX_READ_BYTES` at once)."""

    def eof_received(self) -> None:
        """The other end finished sending; our direction stays open (half-close)."""

    def bytes_written(self, count: int) -> None:
        """The kernel took `count` more of the bytes given to `write`, in order."""

    def connection_lost(self, error: OSError | None) -> None:
        """The end: None when both directions finished cleanly or we aborted; an error otherwise.

        A connection attempt that fails or is refused ends here too, without `connected`.
        """


class TcpStream(Protocol):
    """One TCP connection."""

    @property
    def remote_address(self) -> TransportAddress:
        """The other end."""

    @property
    def local_address(self) -> TransportAddress:
        """Our end."""

    def write(self, data: bytes) -> None:
        """Queue bytes. Unbounded: the owner keeps account with `bytes_written`."""

    def write_eof(self) -> None:
        """Send FIN behind what is queued."""

    def pause_reading(self) -> None:
        """Stop reading: the kernel's buffer fills and the other end is slowed."""

    def resume_reading(self) -> None:
        """Read again."""

    def abort(self) -> None:
        """Send RST and forget what is queued. `connection_lost(None)` follows."""


class TcpListener(Protocol):
    """One listening TCP socket."""

    @property
    def local_address(self) -> TransportAddress:
        """The bound address, with the real port."""

    def close(self) -> None:
        """Stop accepting; accepted connections live on."""


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of one network interface."""

    interface: str
    host: str
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """A limit of the system that is about to be reached: `reason` is a word, `detail` a phrase for people."""

    reason: str
    detail: str


class Io(Scheduler, Protocol):
    """Everything outside the process that an actor may touch."""

    @property
    def random(self) -> random.Random:
        """The source of chance: the system's in production, seeded in simulation."""

    def wall_time(self) -> float:
        """Seconds since the epoch; for certificates, grants and logs only."""

    def stopwatch(self) -> Callable[[], float]:
        """Begin to measure; what is returned says how many seconds of processor time this thread took since.

        A simulation says the same each time, so that its runs do not depend on a machine.
        """

    def open_udp(self, local: TransportAddress, owner: UdpOwner, *, may_fragment: bool = False) -> UdpSocket:
        """Bind an unconnected UDP socket (IPv6 sockets are v6-only). Raises `OSError`.

        Without `may_fragment` a datagram above the path's MTU is refused or lost, as QUIC wants it; with it,
        the kernel fragments, as UDP applications expect.
        """

    def listen_tcp(self, local: TransportAddress, accept: Callable[[TcpStream], TcpOwner]) -> TcpListener:
        """Listen; `accept` is called for each connection and returns its owner (then `connected` is called).

        Raises `OSError`.
        """

    def connect_tcp(self, host: str, port: int, timeout_s: float, owner: TcpOwner) -> Callable[[], None]:
        """Start connecting (names are resolved, every address is tried); the result cancels the attempt.

        Failure arrives as `owner.connection_lost(error)`; a time-out as `TimeoutError`.
        """

    def resolve(
        self,
        host: str,
        port: int,
        done: Callable[[list[TransportAddress], OSError | None], None],
    ) -> None:
        """Resolve a name for UDP; IP literals answer without asking anybody. `done` is called later, once."""

    def interface_addresses(self) -> list[InterfaceAddress]:
        """Addresses of all interfaces, loopback included, sorted."""

    def source_address(self, family: Family) -> str | None:
        """The address that packets to the internet would leave from; None without a route. Sends nothing."""

    def watch_network(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` whenever addresses, links or routes may have changed; the result ends that.

        A burst of changes is one call, and a call may be for nothing: compare. Nothing follows the end.
        """

    def shortage(self, *, needs_descriptor: bool = False) -> Shortage | None:
        """Why nothing new may be begun, or None: memory, or descriptors for what needs one, run short.

        Whoever asks refuses then; `shortages` counts it.
        """

    def shortages(self) -> Mapping[str, int]:
        """How often something was refused because of a shortage, by reason."""

    def nearly_reached(self) -> Shortage | None:
        """The limit of the system that is nearly reached, or None; in words that stay the same meanwhile."""
