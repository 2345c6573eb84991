"""Two checklists on a network of their own: NATs by RFC 4787, delay, loss and a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.ice.candidate import Candidate, CandidateType, priority
from ztna.ice.checklist import Checklist
from ztna.ice.checklist_effects import ChecklistEffect, PairNominated, PairSucceeded, SendCheck
from ztna.ice.credentials import IceCredentials
from ztna.nat.behaviour import Dependence, NatBehaviour

EIM = EIF = Dependence.ENDPOINT_INDEPENDENT
ADF = Dependence.ADDRESS_DEPENDENT
APDM = APDF = Dependence.ADDRESS_AND_PORT_DEPENDENT

SERVER = TransportAddress("203.0.113.9", 3478)

EffectT = TypeVar("EffectT", bound=ChecklistEffect)


def host_candidate(host: str, port: int = 4000, preference: int = 65_535) -> Candidate:
    address = TransportAddress(host, port)
    return Candidate(
        CandidateType.HOST, address, address, priority(CandidateType.HOST, preference), f"h{host}"[:32]
    )


def reflexive_candidate(address: TransportAddress, base: TransportAddress) -> Candidate:
    value = priority(CandidateType.SERVER_REFLEXIVE, 65_535)
    return Candidate(CandidateType.SERVER_REFLEXIVE, address, base, value, f"s{base.host}"[:32], base)


def told(candidate: Candidate) -> Candidate:
    """A candidate as the peer gets to know it."""
    return Candidate(
        candidate.type,
        candidate.address,
        candidate.related or candidate.address,
        candidate.priority,
        candidate.foundation,
        candidate.related,
    )


def credentials(name: str, generation: int = 1) -> IceCredentials:
    return IceCredentials(f"{name}{generation:03}", f"{name}{generation:03}-password-of-22-characters")


class Nat:
    """One external address; ports are dealt at random."""

    def __init__(self, host: str, mapping: Dependence, filtering: Dependence, seed: int = 1) -> None:
        self.host = host
        self.behaviour = NatBehaviour(True, True, mapping, filtering)
        self._ports = random.Random(seed)
        self._mappings: dict[tuple[object, ...], TransportAddress] = {}
        self._insides: dict[TransportAddress, TransportAddress] = {}
        self._contacted: dict[TransportAddress, list[TransportAddress]] = {}

    def outbound(self, source: TransportAddress, destination: TransportAddress) -> TransportAddress:
        key: tuple[object, ...] = (source,)
        if self.behaviour.mapping is APDM:
            key = (source, destination)
        external = self._mappings.get(key)
        if external is None:
            external = TransportAddress(self.host, self._ports.randrange(10_000, 60_000))
            self._mappings[key] = external
            self._insides[external] = source
        self._contacted.setdefault(external, []).append(destination)
        return external

    def inbound(self, source: TransportAddress, destination: TransportAddress) -> TransportAddress | None:
        contacted = self._contacted.get(destination, [])
        match self.behaviour.filtering:
            case Dependence.ENDPOINT_INDEPENDENT:
                passes = True
            case Dependence.ADDRESS_DEPENDENT:
                passes = source.host in {each.host for each in contacted}
            case _:
                passes = source in contacted
        return self._insides.get(destination) if passes else None


@dataclass
class End:
    """One end: its checklist, its addresses, and what it told."""

    name: str
    core: Checklist
    candidates: list[Candidate]
    nat: Nat | None = None
    told: list[tuple[float, ChecklistEffect]] = field(default_factory=list)

    def take(self, kind: type[EffectT]) -> list[EffectT]:
        return [effect for _, effect in self.told if isinstance(effect, kind)]

    def time_of(self, kind: type[ChecklistEffect]) -> float | None:
        return next((at for at, effect in self.told if isinstance(effect, kind)), None)

    @property
    def nominated(self) -> PairNominated | None:
        return next(reversed(self.take(PairNominated)), None)


Loss = Callable[[str, bytes, TransportAddress], bool]


class Simulation:
    """Delivers what the ends send. `lose(sender, data, destination)` says what gets lost."""

    def __init__(self, delay_s: float = 0.03, lose: Loss | None = None) -> None:
        self.now = 0.0
        self.delay_s = delay_s
        self.lose = lose or (lambda _sender, _data, _destination: False)
        self.ends: list[End] = []
        self.sent: list[tuple[float, str, bytes, TransportAddress]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def end(self, name: str, *candidates: Candidate, nat: Nat | None = None, seed: int = 1) -> End:
        """Add an end; behind a NAT it gets its reflexive candidate as well."""
        own = list(candidates)
        if nat is not None:
            own += [reflexive_candidate(nat.outbound(each.base, SERVER), each.base) for each in candidates]
        end = End(name, Checklist(random.Random(f"{name}/{seed}")), own, nat)
        self.ends.append(end)
        return end

    def connect(
        self,
        generation: int = 1,
        *,
        roles: tuple[bool, bool] = (True, False),
        skew_s: float = 0.0,
        delay_s: float = 0.0,
        is_end: bool = True,
    ) -> None:
        """Tell both ends of each other; the second starts `skew_s` later."""
        first, second = self.ends
        for end, role in zip(self.ends, roles, strict=True):
            local = credentials(end.name, generation)
            end.core.handle_prepare(generation, local, end.candidates, is_controlling=role)
            self.act(end)
        self.start(first, second, generation, delay_s, is_end=is_end)
        self.after(skew_s, lambda: self.start(second, first, generation, delay_s, is_end=is_end))

    def start(
        self, end: End, peer: End, generation: int = 1, delay_s: float = 0.0, *, is_end: bool = True
    ) -> None:
        remote = [told(each) for each in peer.candidates]
        end.core.handle_start(generation, credentials(peer.name, generation), remote, delay_s, self.now)
        self.act(end)
        for is_local in (True, False):
            end.core.handle_candidates(generation, [], self.now, is_local=is_local, is_end=is_end)
            self.act(end)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, action))

    def run(self, until: float) -> None:
        """Let time pass up to `until` (seconds)."""
        while (when := self._next()) is not None and when <= until:
            assert when >= self.now, "a deadline in the past"
            self.now = when
            if self._events and self._events[0][0] <= when:
                heapq.heappop(self._events)[2]()
                continue
            for end in self.ends:
                end.core.handle_timeout(self.now)
                self.act(end)
                deadline = end.core.next_deadline()
                assert deadline is None or deadline > self.now, "a deadline that is past after a drain"
        self.now = until

    def act(self, end: End) -> None:
        """Carry out what a core wants."""
        for effect in end.core.drain():
            end.told.append((self.now, effect))
            if isinstance(effect, Transmit):
                self._send(end, effect)
            elif isinstance(effect, SendCheck):
                self._send(end, effect.request)

    def _next(self) -> float | None:
        times = [self._events[0][0]] if self._events else []
        times += [each for end in self.ends if (each := end.core.next_deadline()) is not None]
        return min(times, default=None)

    def _send(self, end: End, transmit: Transmit) -> None:
        host = transmit.local_host
        base = next(each.base for each in end.candidates if each.base.host == host)
        destination = transmit.remote
        self.sent.append((self.now, end.name, transmit.data, destination))
        source = base if end.nat is None else end.nat.outbound(base, destination)
        if not self.lose(end.name, transmit.data, destination):
            self.after(self.delay_s, lambda: self._arrive(transmit.data, source, destination))

    def _arrive(self, data: bytes, source: TransportAddress, destination: TransportAddress) -> None:
        for end in self.ends:
            inside: TransportAddress | None = destination
            if end.nat is not None:
                inside = end.nat.inbound(source, destination) if destination.host == end.nat.host else None
            if inside is not None and any(each.base == inside for each in end.candidates):
                end.core.handle_message(data, source, inside.host, self.now)
                self.act(end)

    def both_succeeded_at(self) -> float | None:
        times = [end.time_of(PairSucceeded) for end in self.ends]
        known = [each for each in times if each is not None]
        return max(known) if len(known) == len(times) else None
