"""Gathers the candidates of a node (RFC 8445 §5.1.1), and what can be known of its NATs on the way.

Sources: the interfaces; what each intermediate sees of our leg (address discovery of QUIC); Binding requests
from the main socket to every port of every configured intermediate (RFC 8489); and what the operator
advertises. Whoever asks is told at once of what is there, and again whenever it changes: nothing waits for a
test. Binding requests leave from the address that the kernel chooses; bases other than that one have host
candidates alone, since packets from a pinned address leave by the same route.

An intermediate without a leg is asked where its name leads. It may be off, or out of reach from here, so its
silence says nothing, and nobody waits for it.

That UDP is blocked is judged once every leg went without it, and holds until somebody answers. A leg that
goes over TCP looks for QUIC once a minute; UDP may pass long before, so each search has everybody asked anew.

The mappings of one socket to several ports and addresses also show the mapping behaviour; once those tests
are over, `ztna.nat.discovery` finds out about filters and ports. With both families at work the behaviour
told is that of IPv4, where the NATs are.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ztna.address import Family, TransportAddress
from ztna.core import Transmit
from ztna.ice.candidate import Candidate
from ztna.ice.local_candidates import Reflexive, build_candidates, host_addresses, is_remote
from ztna.ice.lookups import Lookups
from ztna.ice.repeats import Repeats
from ztna.ice.timing import FAIL_OVER_MIN_S
from ztna.nat.behaviour import UNKNOWN_BEHAVIOUR, Dependence, NatBehaviour, PortAllocation
from ztna.nat.discovery import (
    PROBE_SOCKETS,
    BehaviourDiscovered,
    BehaviourTests,
    CloseProbe,
    DiscoveryEffect,
    OpenProbe,
    SendProbe,
)
from ztna.nat.mapping import mapping_dependence
from ztna.stun.binding import Answered, Ask, BindingClient

MAX_INTERMEDIATES: Final = 16
"""A deployment has a handful; a further leg takes the place of who has none, or of the oldest."""

GATHERING_LIMIT_S: Final = 5.0
"""Then candidates count as complete, whoever has not answered; a check is given up no sooner. Late answers
still bring candidates."""

REFRESH_S: Final = 30.0
"""Older mappings are observed anew when somebody asks, and behaviour is discovered anew: the shortest life of
a mapping that NATs of today give (RFC 4787 §4.3 asks for two minutes). Names are looked up anew with them."""

ASKED_AGAIN_S: Final = FAIL_OVER_MIN_S
"""A session that asks again has lost its path, or found none, perhaps because a NAT forgot a mapping: older
ones are observed anew then. A path is not given up sooner than this after it fell silent, so whatever is
younger was observed since."""

DISCOVERY_SPACING_S: Final = 5.0
"""Between two discoveries of behaviour even when the network changed: an interface that flaps shall not make
us a nuisance to the intermediate, nor to the name server."""


@dataclass(frozen=True, slots=True)
class SendBinding:
    """Send this request from the main socket; its response is for `handle_response`."""

    transmit: Transmit
    transaction_id: bytes


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look up where the UDP relay of this intermediate is, and say so (`handle_looked_up`)."""

    intermediate_id: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a session is told: all that is known so far.

    `network` counts up whenever our addresses, routes or mappings changed.
    """

    candidates: tuple[Candidate, ...]
    is_complete: bool
    network: int
    nat: NatBehaviour


@dataclass(frozen=True, slots=True)
class TellSession:
    """Tell this session."""

    session_id: bytes
    gathered: Gathered


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """Our host addresses, or the routes, have changed."""

    hosts: tuple[TransportAddress, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class NatLearned:
    """What is known of our NATs has changed."""

    nat: NatBehaviour


GathererEffect = (
    SendBinding | LookUp | TellSession | NetworkChanged | NatLearned | OpenProbe | SendProbe | CloseProbe
)


@dataclass(frozen=True, slots=True)
class _Observation:
    mapped: TransportAddress
    base_host: str
    """Where the answer arrived; empty when that is not known."""
    at: float


@dataclass(slots=True)
class _Intermediate:
    remote: TransportAddress | None = None
    """Where a leg reached it last."""
    others: tuple[TransportAddress, ...] = ()
    """Where it is said to be in the other families, or in all of them."""
    has_leg: bool = False
    """There has been news of a leg; otherwise only its name is known."""
    is_up: bool = False
    has_failed: bool = False
    """The leg went down, or never came up, for want of answers."""
    observed: TransportAddress | None = None


class CandidateGatherer:
    """All candidates of one node. `now` is monotonic seconds."""

    def __init__(
        self,
        chance: random.Random,
        now: float,
        *,
        loopback: bool,
        advertise: Sequence[TransportAddress] = (),
        names: Iterable[str] = (),
    ) -> None:
        """`loopback`: loopback addresses are candidates; `chance` gives transaction ids.

        `advertise` are addresses that the operator forwards to us, best first; port 0: under our own port.
        `names` are the intermediates that can be looked up, and are asked with or without a leg.
        """
        self._chance = chance
        self._loopback = loopback
        self._advertise = tuple(advertise)
        self._bound: tuple[TransportAddress, ...] = ()
        self._is_network_known = False
        self._hosts: tuple[str, ...] = ()
        self._sources: dict[Family, str] = {}
        self._bases: tuple[TransportAddress, ...] = ()
        self._intermediates: dict[str, _Intermediate] = {}
        self._lookups = Lookups(names, now)
        self._repeats = Repeats(chance)
        self._client: BindingClient[TransportAddress] = BindingClient(chance)
        self._mappings: dict[TransportAddress, _Observation] = {}  # by server
        self._others: dict[TransportAddress, TransportAddress] = {}  # second addresses, by server
        self._dependences: dict[Family, Dependence] = {}
        self._sessions: dict[bytes, Gathered | None] = {}  # what each was told last
        self._network = 0
        self._tested_at: float | None = None
        self._complete_at = now + GATHERING_LIMIT_S
        self._is_timed_out = False
        self._tests: BehaviourTests | None = None
        self._tested_family = Family.IPV4
        self._discover_at: float | None = now
        self._discovery_began: float | None = None
        self._discovered: dict[Family, BehaviourDiscovered] = {}
        self._next_probe = 0
        self._nat = UNKNOWN_BEHAVIOUR
        self._is_silent = False  # judged so, and nothing was heard since
        self._effects: list[GathererEffect] = []

    # Who wants to know

    def handle_gather(self, session_id: bytes, now: float) -> None:
        """Tell this session at once, and at every change."""
        limit_s = ASKED_AGAIN_S if session_id in self._sessions else REFRESH_S
        self._sessions[session_id] = None
        self._lookups.want(now, REFRESH_S)
        tested_at = self._tested_at
        if self._have_all_legs_failed():
            self._ask_in_spite(now)
        elif tested_at is not None and now >= tested_at + limit_s:
            self._test_all(now)
            if now >= tested_at + REFRESH_S:
                self._want_discovery(now)
        self._publish(now)

    def handle_stop(self, session_id: bytes) -> None:
        """Tell this session no more."""
        self._sessions.pop(session_id, None)

    # What is known

    def handle_bound(self, addresses: Iterable[TransportAddress], now: float) -> None:
        """Take note of our sockets."""
        self._bound = tuple(addresses)
        self._bases = self._host_addresses()
        self._test_all(now)
        self._publish(now)

    def handle_network(self, hosts: Sequence[str], sources: Mapping[Family, str], now: float) -> None:
        """Take note of the addresses of all interfaces, and of those that packets to the internet leave from.

        The first call is how things are; a later one that says the same is no change.
        """
        is_first, self._is_network_known = not self._is_network_known, True
        former_bases, former_sources = self._bases, self._sources
        self._hosts, self._sources = tuple(hosts), dict(sources)
        self._bases = self._host_addresses()
        moved = [family for family in Family if former_sources.get(family) != self._sources.get(family)]
        if not is_first and (moved or {*former_bases} != {*self._bases}):
            reason = "default_route_changed" if moved else "addresses_changed"
            self._effects.append(NetworkChanged(self._bases, reason))
            self._begin_anew(moved, now)
        self._publish(now)

    def handle_leg_up(
        self,
        intermediate_id: str,
        remote: TransportAddress,
        now: float,
        others: Iterable[TransportAddress] = (),
    ) -> None:
        """Take note of where an intermediate answers, and ask it where we are.

        `others` are its addresses of other families: a leg has one, and a peer may have only another.
        """
        known = self._intermediate(intermediate_id)
        former, was_up = (known.remote, known.others), known.is_up
        known.remote, known.others, known.is_up, known.has_failed = remote, tuple(others), True, False
        if former != (known.remote, known.others):
            self._forget_strays()
        for server in self._servers_of(known):
            seen = self._mappings.get(server)
            if seen is not None and (was_up or now < seen.at + REFRESH_S):
                # It was asked before its leg came up.
                self._tested_at = seen.at if self._tested_at is None else self._tested_at
            elif not self._client.is_asking(server):
                self._test(server, now)
            elif not was_up:
                self._await_answers(now)
        # Where names could not be looked up before, they can be now.
        self._lookups.want(now, REFRESH_S)
        self._publish(now)

    def handle_looked_up(
        self, intermediate_id: str, addresses: Sequence[TransportAddress], now: float
    ) -> None:
        """Take note of where the name of an intermediate leads, best first; nowhere: it is not known now.

        A leg knows better while it is up. Whoever rotates his addresses is asked at the same one again.
        """
        self._lookups.end(intermediate_id)
        usable = [each for each in addresses if is_remote(each.host, loopback=True)]
        known = self._intermediates.get(intermediate_id)
        if known is None and usable and len(self._intermediates) < MAX_INTERMEDIATES:
            known = self._intermediates[intermediate_id] = _Intermediate()
        if known is not None and usable and not known.is_up:
            former = [each for each in (known.remote, *known.others) if each is not None]
            chosen: dict[Family, TransportAddress] = {}
            for each in (*(each for each in former if each in usable), *usable):
                chosen.setdefault(each.family, each)
            known.remote = known.remote if known.remote in usable else None
            known.others = tuple(each for each in chosen.values() if each != known.remote)
            self._forget_strays()
            for server in self._servers_of(known):
                if server not in self._mappings and not self._client.is_asking(server):
                    self._test(server, now, is_awaited=False)
        self._publish(now)

    def handle_leg_down(self, intermediate_id: str, now: float, *, is_refusal: bool) -> None:
        """Take note that a leg is gone or does not come up; `is_refusal`: somebody did answer."""
        known = self._intermediate(intermediate_id)
        had_failed = known.has_failed
        known.is_up, known.has_failed = False, not is_refusal
        if known.has_failed and not had_failed:
            self._doubt_udp(known, now)
        self._publish(now)

    def handle_leg_over_tcp(self, intermediate_id: str, now: float) -> None:
        """Take note that a leg came up without UDP, which has no answer: what it told is void."""
        known = self._intermediate(intermediate_id)
        for server in self._ports_of(known):
            self._mappings.pop(server, None)
            self._client.forget(server)
        had_failed = known.has_failed
        known.is_up, known.has_failed, known.observed = False, True, None
        if not had_failed:
            self._doubt_udp(known, now)
        self._publish(now)

    def handle_observed(self, intermediate_id: str, address: TransportAddress, now: float) -> None:
        """Take note of where an intermediate sees our leg come from; another place is another mapping."""
        known = self._intermediate(intermediate_id)
        former, known.observed = known.observed, address
        if former is not None and former != address:
            self._begin_anew([], now)
        self._publish(now)

    # Answers

    def handle_response(self, data: bytes, source: TransportAddress, local_host: str, now: float) -> None:
        """Take an answer to a request of the main socket, which arrived at `local_host`."""
        self._client.handle_datagram(data, source, now)
        self._take_answers(local_host, now)
        self._publish(now)

    def handle_probe_opened(self, probe: int, local: TransportAddress | None, now: float) -> None:
        """Take note of a fresh socket; None: there is none to be had."""
        if self._tests is None:
            if local is not None:
                self._effects.append(CloseProbe(probe))
            return
        if local is None:
            self._tests.handle_not_opened(probe, now)
        else:
            self._tests.handle_opened(probe, local, now)
        self._publish(now)

    def handle_probe_datagram(self, data: bytes, source: TransportAddress, now: float) -> None:
        """Take what a fresh socket received."""
        if self._tests is not None:
            self._tests.handle_datagram(data, source, now)
            self._publish(now)

    def handle_timeout(self, now: float) -> None:
        """Ask again, give up, or begin what is due."""
        self._client.handle_timeout(now)
        self._take_answers("", now)
        if self._tests is not None:
            self._tests.handle_timeout(now)
        self._publish(now)

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has to be called."""
        deadlines = [self._client.next_deadline()]
        if not self._is_timed_out:
            deadlines.append(self._complete_at)
        if self._tests is not None:
            deadlines.append(self._tests.next_deadline())
        elif not self._is_waiting():
            deadlines.append(self._repeats.next_deadline())
            if self._can_discover():
                deadlines.append(self._discover_at)
        deadlines.append(self._lookups.next_deadline())
        return min((each for each in deadlines if each is not None), default=None)

    def drain(self) -> list[GathererEffect]:
        """Hand over what is to be done and told, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    # Tests

    def _begin_anew(self, moved: Iterable[Family], now: float) -> None:
        """Observe mappings again; what was seen by way of another route holds no more."""
        self._network += 1
        self._is_silent = False
        for family in moved:
            self._mappings = {
                server: seen for server, seen in self._mappings.items() if server.family is not family
            }
            self._discovered.pop(family, None)
            self._dependences.pop(family, None)
            for known in self._intermediates.values():
                if known.observed is not None and known.observed.family is family:
                    known.observed = None
        if self._tests is not None:
            self._tests.give_up()
        self._test_all(now)
        if moved:
            self._lookups.want(now, DISCOVERY_SPACING_S)
            earliest = -1.0 if self._discovery_began is None else self._discovery_began + DISCOVERY_SPACING_S
            self._discover_at = max(now, earliest)
        else:
            self._want_discovery(now)

    def _want_discovery(self, now: float) -> None:
        if self._discover_at is None:
            began = self._discovery_began
            self._discover_at = now if began is None else max(now, began + REFRESH_S)

    def _test_all(self, now: float) -> None:
        for known in self._intermediates.values():
            for server in self._servers_of(known):
                self._test(server, now, is_awaited=known.has_leg)

    def _ask_in_spite(self, now: float) -> None:
        """Ask everybody though no leg has answers over UDP: a search begins, and it may pass again.

        Who is asked is left in peace until he has answered, or was silent for as long as a question lasts.
        """
        if not self._is_waiting() and (self._tested_at is None or now >= self._tested_at + ASKED_AGAIN_S):
            self._test_all(now)

    def _doubt_udp(self, known: _Intermediate, now: float) -> None:
        """Where no leg has answers any more, see whether the other intermediates still have some."""
        if not self._have_all_legs_failed():
            return
        for each in self._intermediates.values():
            for server in self._servers_of(each):
                if each is not known and not self._client.is_asking(server):
                    self._test(server, now, is_awaited=False)

    def _servers_of(self, known: _Intermediate) -> list[TransportAddress]:
        """Where to ask an intermediate, in the families that lead out of here, or on this machine."""
        others = [
            each
            for each in known.others
            if each.family in self._sources or not is_remote(each.host, loopback=False)
        ]
        return others if known.remote is None else [known.remote, *others]

    def _ports_of(self, known: _Intermediate) -> list[TransportAddress]:
        """All that is asked at an intermediate: also its other port, and its second address."""
        found: list[TransportAddress] = []
        for server in self._servers_of(known):
            found.append(server)
            other = self._others.get(server)
            if other is not None:
                found += [other, TransportAddress(other.host, server.port)]
        return found

    def _test(self, server: TransportAddress, now: float, *, is_awaited: bool = True) -> None:
        if not any(local.family is server.family for local in self._bound):
            return
        if is_awaited:
            self._await_answers(now)
        self._client.ask(server, server, now)

    def _await_answers(self, now: float) -> None:
        self._tested_at = now
        self._complete_at = now + GATHERING_LIMIT_S
        self._is_timed_out = False

    def _is_waiting(self) -> bool:
        """Whether answers are awaited: those of the intermediates that do answer, as far as we know.

        Until a leg is up that is anybody who has had one, and before the first news of a leg everybody.
        """
        everybody = [*self._intermediates.values()]
        awaited = [each for each in everybody if each.is_up]
        awaited = awaited or [each for each in everybody if each.has_leg] or everybody
        return any(self._client.is_asking(server) for known in awaited for server in self._ports_of(known))

    def _take_answers(self, local_host: str, now: float) -> None:
        while effects := self._client.drain():
            for effect in effects:
                if isinstance(effect, Ask):
                    self._effects.append(SendBinding(effect.transmit, effect.transaction_id))
                elif isinstance(effect, Answered):
                    self._is_silent = False
                    self._mappings[effect.key] = _Observation(effect.mapped, local_host, now)
                    if effect.other is not None:
                        self._ask_others(effect.key, effect.other, now)
                else:
                    self._forget_mappings(effect.key)

    def _ask_others(self, server: TransportAddress, other: TransportAddress, now: float) -> None:
        """Ask the other port, and where there is one the other address under both ports (RFC 5780 §4.3).

        Anybody on the way can write an answer; so where no leg has proved whose the server is, we are not
        sent to another host.
        """
        owner = next(
            (known for known in self._intermediates.values() if server in self._servers_of(known)), None
        )
        is_loopback = not is_remote(server.host, loopback=False)
        if owner is None or other.family is not server.family:
            return
        if owner.remote is None and other.host != server.host:
            return
        if not is_remote(other.host, loopback=is_loopback):
            return
        self._others[server] = other
        for each in {other, TransportAddress(other.host, server.port)} - {server}:
            self._client.ask(each, each, now)

    def _forget_mappings(self, server: TransportAddress) -> None:
        """Forget what a server that does not answer told, and its other ports, which were not asked now."""
        self._mappings.pop(server, None)
        other = self._others.pop(server, None)
        if other is not None:
            for each in (other, TransportAddress(other.host, server.port)):
                self._mappings.pop(each, None)

    def _forget_strays(self) -> None:
        """Forget what servers said that no intermediate has any more, and ask them no more."""
        remotes = {server for known in self._intermediates.values() for server in self._servers_of(known)}
        self._others = {server: other for server, other in self._others.items() if server in remotes}
        servers = {port for known in self._intermediates.values() for port in self._ports_of(known)}
        self._mappings = {server: seen for server, seen in self._mappings.items() if server in servers}
        for server in self._client.questions():
            if server not in servers:
                self._client.forget(server)

    def _can_discover(self) -> bool:
        return self._discover_at is not None and self._tests is None and self._server() is not None

    def _server(self) -> TransportAddress | None:
        """The server for tests of behaviour: one that answers, and has the most to offer."""
        answering = [
            server
            for known in sorted(self._intermediates.values(), key=lambda known: not known.is_up)
            for server in self._servers_of(known)
            if server in self._mappings
        ]

        def worth(server: TransportAddress) -> tuple[bool, bool, bool]:
            other = self._others.get(server)
            has_other_host = other is not None and other.host != server.host
            return server.family is Family.IPV4, has_other_host, other is not None

        return max(answering, key=worth, default=None)

    def _discover(self, now: float) -> None:
        if self._discover_at is None or now < self._discover_at or self._is_waiting():
            return
        server = self._server()
        if server is None or self._tests is not None:
            return
        self._discover_at = None
        self._discovery_began = now
        self._tested_family = server.family
        # Without a NAT nobody allocates ports; the filter may still be there.
        probes = PROBE_SOCKETS if self._has_nat(server.family) else 1
        self._tests = BehaviourTests(server, self._chance, first_probe=self._next_probe, probes=probes)
        self._next_probe += PROBE_SOCKETS
        self._tests.start()

    def _take_discovered(self) -> None:
        tests = self._tests
        if tests is None:
            return
        effect: DiscoveryEffect
        for effect in tests.drain():
            if isinstance(effect, BehaviourDiscovered):
                self._discovered[self._tested_family] = effect
            else:
                self._effects.append(effect)
        if tests.is_over:
            self._tests = None

    def _repeat(self, now: float) -> None:
        """Ask again in a while for what had no answer, though somebody is there to give it."""
        if self._tests is not None or self._is_waiting():
            return
        unanswered, is_unknown = self._unanswered(), self._is_behaviour_unknown()
        if not unanswered and not is_unknown:
            self._repeats.reset()
            return
        self._repeats.want(now)
        if self._repeats.take(now):
            for each in unanswered:
                self._client.ask(each, each, now)
            self._take_answers("", now)
            self._discover_at = now if is_unknown else self._discover_at

    def _unanswered(self) -> list[TransportAddress]:
        """Ports of intermediates that have a leg, or were never tried by one, which told us nothing.

        Where a leg is down it is the leg that tries again.
        """
        families = {local.family for local in self._bound}
        return [
            port
            for known in self._intermediates.values()
            if known.is_up or not known.has_leg
            for port in self._ports_of(known)
            if port.family in families and port not in self._mappings and not self._client.is_asking(port)
        ]

    def _is_behaviour_unknown(self) -> bool:
        """Whether the last tests told less than the server that is there now could have told."""
        server = self._server()
        if server is None or self._discover_at is not None:
            return False
        found = self._discovered.get(server.family)
        if found is None:
            return True
        has_other = self._others.get(server, server) != server
        is_filter_unknown = has_other and found.filtering is Dependence.UNKNOWN
        return is_filter_unknown or (
            self._has_nat(server.family) and found.port_allocation is PortAllocation.UNKNOWN
        )

    # What is told

    def _look_up(self, now: float) -> None:
        while (name := self._lookups.take(now)) is not None:
            known = self._intermediates.get(name)
            if len(self._intermediates) < MAX_INTERMEDIATES if known is None else not known.is_up:
                self._effects.append(LookUp(name))
            else:
                self._lookups.end(name)  # its leg says where it is, or there are enough of them

    def _publish(self, now: float) -> None:
        self._look_up(now)
        self._take_answers("", now)
        self._take_discovered()
        self._discover(now)
        self._take_discovered()
        self._repeat(now)
        self._is_timed_out = self._is_timed_out or now >= self._complete_at
        nat = self._judge()
        if nat != self._nat:
            self._nat = nat
            self._effects.append(NatLearned(nat))
        if not self._sessions:
            return
        gathered = Gathered(self._candidates(), self._is_complete(), self._network, nat)
        # That mappings are observed anew for another session is no news to one that has its candidates.
        complete = replace(gathered, is_complete=True)
        for session_id, told in self._sessions.items():
            if told not in (gathered, complete):
                self._sessions[session_id] = gathered
                self._effects.append(TellSession(session_id, gathered))

    def _is_complete(self) -> bool:
        if self._is_timed_out:
            return True
        has_asked = self._tested_at is not None or any(
            known.has_failed for known in self._intermediates.values()
        )
        return has_asked and not self._is_waiting()

    def _candidates(self) -> tuple[Candidate, ...]:
        up = [known for known in self._intermediates.values() if known.is_up]
        down = [known for known in self._intermediates.values() if not known.is_up]
        reflexives: list[Reflexive] = []
        for known in (*up, *down):
            if known.observed is not None and known.remote is not None:
                self._add_reflexive(reflexives, known.observed, "", known.remote)
        for server in dict.fromkeys(port for known in (*up, *down) for port in self._ports_of(known)):
            if server in self._mappings:
                seen = self._mappings[server]
                self._add_reflexive(reflexives, seen.mapped, seen.base_host, server)
        relays = [known.remote for known in up if known.remote is not None]
        return build_candidates(self._bases, reflexives, self._advertise, relays)

    def _add_reflexive(
        self, reflexives: list[Reflexive], mapped: TransportAddress, base_host: str, server: TransportAddress
    ) -> None:
        base = self._base(base_host, server.family)
        if base is not None:
            reflexives.append(Reflexive(mapped, base, server.host))

    def _base(self, base_host: str, family: Family) -> TransportAddress | None:
        of_family = [base for base in self._bases if base.family is family]
        for host in (base_host, self._sources.get(family)):
            for base in of_family:
                if base.host == host:
                    return base
        return of_family[0] if of_family else None

    def _judge(self) -> NatBehaviour:
        family = self._judged_family()
        if family is None:
            return replace(UNKNOWN_BEHAVIOUR, is_udp_blocked=self._is_udp_blocked())
        if not self._is_waiting() and not any(map(self._client.is_asking, self._mappings)):
            # While those are asked that answered before, former mappings may stand beside new ones.
            self._dependences[family] = mapping_dependence(
                {server: each.mapped for server, each in self._mappings.items() if server.family is family}
            )
        found = self._discovered.get(family)
        behaviour = NatBehaviour(
            is_known=True,
            has_nat=self._has_nat(family),
            mapping=self._dependences.get(family, Dependence.UNKNOWN),
            filtering=Dependence.UNKNOWN if found is None else found.filtering,
            port_allocation=PortAllocation.UNKNOWN if found is None else found.port_allocation,
            port_step=0 if found is None else found.port_step,
        )
        if behaviour.has_nat:
            return behaviour
        # Nobody maps anything: whatever the destination, it sees our own address and port.
        return replace(
            behaviour,
            mapping=Dependence.ENDPOINT_INDEPENDENT,
            port_allocation=PortAllocation.PRESERVED,
            port_step=0,
        )

    def _judged_family(self) -> Family | None:
        families = {server.family for server in self._mappings}
        return next((family for family in (Family.IPV4, Family.IPV6) if family in families), None)

    def _has_nat(self, family: Family) -> bool:
        own = {*self._hosts, *(base.host for base in self._bases)}
        seen = [each.mapped for server, each in self._mappings.items() if server.family is family]
        return all(mapped.host not in own for mapped in seen)

    def _is_udp_blocked(self) -> bool:
        """Every leg went without answers, and so did every Binding request since.

        Silence of intermediates that never had a leg is no sign, nor waited for; an answer of theirs is one.
        While everybody is asked anew for the next search, what was judged before still holds.
        """
        if not self._have_all_legs_failed():
            self._is_silent = False
        elif not self._is_waiting():
            self._is_silent = True
        return self._is_silent

    def _have_all_legs_failed(self) -> bool:
        legs = [each for each in self._intermediates.values() if each.has_leg]
        return bool(legs) and all(each.has_failed for each in legs)

    def _intermediate(self, intermediate_id: str) -> _Intermediate:
        """The one whose leg there is news of."""
        known = self._intermediates.get(intermediate_id)
        if known is None:
            if len(self._intermediates) >= MAX_INTERMEDIATES:
                without_leg = (name for name, each in self._intermediates.items() if not each.has_leg)
                del self._intermediates[next(without_leg, next(iter(self._intermediates)))]
            known = self._intermediates[intermediate_id] = _Intermediate()
        known.has_leg = True
        return known

    def _host_addresses(self) -> tuple[TransportAddress, ...]:
        return host_addresses(self._bound, self._hosts, self._sources, loopback=self._loopback)
