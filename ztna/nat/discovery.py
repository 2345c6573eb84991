"""NAT behaviour discovery (RFC 5780), beside the gathering of candidates: it explains, nothing waits for it.

Mappings of the main socket are observed by whoever gathers candidates (`ztna.ice.gatherer`). Here are the
tests that need fresh sockets of their own, on one family and with one server:

- *Filtering* (RFC 5780 §4.4). A filter that the main socket has opened already (its own mapping tests sent to
  both ports of the server) would let the test's answer pass whatever it filters, so the test has a socket
  that never sent anywhere else. It opens the filter for the server's primary address, then asks for an answer
  from the other address and port, then from the other port alone.
- *Port allocation* (RFC 4787 §4.2). A few more fresh sockets, one after the other, so that the order of
  their mappings is known; one request each.

Another intermediate is no help with filters: it answers who asks it, and so was sent to. An answer from an
address that was not asked takes one server with two.

Nothing but silence speaks for a filter; so silence counts only where the same socket was answered before, and
after six requests. At most `PROBE_SOCKETS` sockets exist, each closed as soon as it told what it can.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ztna.address import Family, TransportAddress
from ztna.core import Transmit
from ztna.nat.behaviour import Dependence, PortAllocation
from ztna.nat.mapping import port_allocation
from ztna.stun.attributes import ChangeRequest
from ztna.stun.binding import Answered, Ask, BindingClient, Refused, Unanswered

PROBE_SOCKETS: Final = 4
"""Three steps between ports; the first socket does the filtering test, too."""


@dataclass(frozen=True, slots=True)
class OpenProbe:
    """Open a fresh socket of this family, and say where it is (`handle_opened`)."""

    probe: int
    family: Family


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send from that socket."""

    probe: int
    transmit: Transmit


@dataclass(frozen=True, slots=True)
class CloseProbe:
    """Close that socket."""

    probe: int


@dataclass(frozen=True, slots=True)
class BehaviourDiscovered:
    """What the tests told; unknown where they told nothing."""

    filtering: Dependence
    port_allocation: PortAllocation
    port_step: int


DiscoveryEffect = OpenProbe | SendProbe | CloseProbe | BehaviourDiscovered


class _Test(Enum):
    PLAIN = auto()
    OTHER_ADDRESS = auto()
    OTHER_PORT = auto()


_Key = tuple[int, _Test]


class BehaviourTests:
    """One run of the tests; `now` is monotonic seconds. Probes are numbered from `first_probe`."""

    def __init__(
        self,
        server: TransportAddress,
        chance: random.Random,
        *,
        first_probe: int = 0,
        probes: int = PROBE_SOCKETS,
    ) -> None:
        """`server` answers Binding requests; its second address is learned from its first answer.

        `probes` sockets are used; one is enough for the filtering test.
        """
        self._probes = probes
        self._server = server
        self._client: BindingClient[_Key] = BindingClient(chance)
        self._first = first_probe
        self._opened = 0
        self._local_ports: dict[int, int] = {}
        self._samples: list[tuple[int, int]] = []
        self._other_port = 0
        self._filtering: Dependence | None = None
        self._effects: list[DiscoveryEffect] = []
        self._is_over = False
        self._is_address_tested = False
        """The filter did not let an answer from another address pass."""
        self._awaited: set[int] = set()
        """Probes that are being opened."""

    @property
    def is_over(self) -> bool:
        """Whether `BehaviourDiscovered` was told, or the run was given up."""
        return self._is_over

    def start(self) -> None:
        """Begin with the first probe."""
        self._open_next()

    def handle_opened(self, probe: int, local: TransportAddress, now: float) -> None:
        """Ask from the socket that was opened."""
        if self._is_over:
            return
        self._awaited.discard(probe)
        self._local_ports[probe] = local.port
        self._client.ask((probe, _Test.PLAIN), self._server, now)
        self._process(now)

    def handle_not_opened(self, probe: int, now: float) -> None:
        """Make do with less: this host gives us no further sockets."""
        self._awaited.discard(probe)
        if not self._is_over:
            if probe == self._first:
                self._filtering = Dependence.UNKNOWN
            self._opened = self._probes
            self._process(now)

    def handle_datagram(self, data: bytes, source: TransportAddress, now: float) -> None:
        """Take what a probe received."""
        self._client.handle_datagram(data, source, now)
        self._process(now)

    def handle_timeout(self, now: float) -> None:
        """Ask again, or draw conclusions from silence."""
        self._client.handle_timeout(now)
        self._process(now)

    def give_up(self) -> None:
        """Close every socket and tell nothing."""
        self._is_over = True
        self._effects.extend(CloseProbe(probe) for probe in sorted(self._local_ports))
        self._local_ports.clear()

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has to be called."""
        return None if self._is_over else self._client.next_deadline()

    def drain(self) -> list[DiscoveryEffect]:
        """Hand over what is to be done, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _open_next(self) -> None:
        if self._opened < self._probes:
            probe = self._first + self._opened
            self._awaited.add(probe)
            self._effects.append(OpenProbe(probe, self._server.family))
            self._opened += 1

    def _process(self, now: float) -> None:
        if self._is_over:
            return
        # Outcomes ask further questions, whose requests are among the next effects.
        while effects := self._client.drain():
            for effect in effects:
                if isinstance(effect, Ask):
                    self._effects.append(SendProbe(effect.key[0], effect.transmit))
                else:
                    self._conclude(effect, now)
        if not len(self._client) and self._opened >= self._probes and not self._awaited:
            self._finish()

    def _conclude(self, outcome: Answered[_Key] | Refused[_Key] | Unanswered[_Key], now: float) -> None:
        probe, test = outcome.key
        if test is _Test.PLAIN:
            self._plain_ended(probe, outcome, now)
            return
        if test is _Test.OTHER_ADDRESS and not isinstance(outcome, Answered):
            # Refused: the server has no other address after all.
            self._is_address_tested = isinstance(outcome, Unanswered)
            self._ask_other_port(probe, now)
            return
        if test is _Test.OTHER_ADDRESS:
            found = Dependence.ENDPOINT_INDEPENDENT
        elif isinstance(outcome, Answered):
            found = self._at_most_address()
        else:
            is_silent = isinstance(outcome, Unanswered)
            found = Dependence.ADDRESS_AND_PORT_DEPENDENT if is_silent else Dependence.UNKNOWN
        self._filter_found(probe, found)

    def _at_most_address(self) -> Dependence:
        """What an answer from another port of the known address shows."""
        return Dependence.ADDRESS_DEPENDENT if self._is_address_tested else Dependence.NOT_PORT_DEPENDENT

    def _plain_ended(
        self, probe: int, outcome: Answered[_Key] | Refused[_Key] | Unanswered[_Key], now: float
    ) -> None:
        if isinstance(outcome, Answered):
            self._samples.append((self._local_ports[probe], outcome.mapped.port))
        if probe == self._first:
            self._begin_filtering(probe, outcome, now)
        else:
            self._close(probe)
        if isinstance(outcome, Answered):
            self._open_next()
        else:
            # Who does not answer one socket will not answer the next; the server has gone, or limits us.
            self._opened = self._probes

    def _begin_filtering(
        self, probe: int, outcome: Answered[_Key] | Refused[_Key] | Unanswered[_Key], now: float
    ) -> None:
        other = outcome.other if isinstance(outcome, Answered) else None
        if other is None or other.family is not self._server.family or other == self._server:
            self._filter_found(probe, Dependence.UNKNOWN)
            return
        self._other_port = other.port
        if other.host == self._server.host:
            self._ask_other_port(probe, now)
            return
        change = ChangeRequest(change_ip=True, change_port=True)
        self._client.ask((probe, _Test.OTHER_ADDRESS), self._server, now, change=change, answer_from=other)

    def _ask_other_port(self, probe: int, now: float) -> None:
        answer_from = TransportAddress(self._server.host, self._other_port)
        change = ChangeRequest(change_port=True)
        self._client.ask((probe, _Test.OTHER_PORT), self._server, now, change=change, answer_from=answer_from)

    def _filter_found(self, probe: int, filtering: Dependence) -> None:
        self._filtering = filtering
        self._close(probe)

    def _close(self, probe: int) -> None:
        if self._local_ports.pop(probe, None) is not None:
            self._effects.append(CloseProbe(probe))

    def _finish(self) -> None:
        self._is_over = True
        allocation, step = port_allocation(self._samples)
        self._effects.append(BehaviourDiscovered(self._filtering or Dependence.UNKNOWN, allocation, step))
