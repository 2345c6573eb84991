"""What must hold at every moment of every run, whatever goes wrong meanwhile.

The watcher sees each packet at the hosts of the daemons and each message of their actors, and is asked for
the sizes of their tables now and then. Rules of the clock and of actors are `tests.simnet.watch`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from google.protobuf.message import Message

from actors.quic_session import QuicSession
from actors.translate import address_from_proto
from tests.simnet.link import Packet
from tests.simnet.sim_io import SimIo
from tests.simnet.world import Daemon
from tools.simulate import plaintext
from tools.simulate.apps import MARK
from tools.simulate.bounds import check_bounds, check_containers, concerns
from tools.simulate.knocks import MAX_GREETING_BYTES
from tools.simulate.prompt import PromptSearches
from tools.simulate.spoof import IDLE_PORT, Forger
from tools.simulate.timers import check_timers
from tools.simulate.triggered import TriggeredChecks
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.ice.checks import PADDED_CHECK_BYTES
from ztna.ice.timing import CONSENT_LIMIT_S
from ztna.stun.attributes import IceControlled, UseCandidate
from ztna.stun.message import MessageClass, parse
from ztna.v1 import (
    checklist_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

if TYPE_CHECKING:
    from tools.simulate.deployment import Deployment

Report = Callable[[str], None]

_NAMES: Final = {types_pb2.PATH_KIND_RELAY: "relay", types_pb2.PATH_KIND_DIRECT: "direct"}

FIRST_QUIC_BYTE: Final = 64
TOLERANCE_S: Final = 0.001
AMPLIFICATION_LIMIT: Final = 3
OUTCAST_LIMIT_S: Final = 0.5
"""Whoever loads a list judges at once."""
SEARCH_EVERY: Final = 4
"""Looks at tables, of which one is a search for payload: it touches every object that an intermediate has."""
COUNT_EVERY: Final = 8
"""Looks, of which one goes through every container of every daemon."""
WALK_EVERY: Final = 200
"""Events of a run that is watched closely, of which one is followed by both of these."""
SWITCHED_S: Final = 1e-4
"""All that follows from a message at one instant is done then, and no packet has come since."""
STUN_REQUEST, STUN_SUCCESS = b"\x00\x01", b"\x01\x01"


class Watcher:
    """Reports every breach of a rule that packets and messages can show."""

    def __init__(self, report: Report) -> None:
        """`report` takes violations, in words."""
        self._report = report
        self._world: Deployment | None = None
        self._confirmed: dict[tuple[str, str], float] = {}
        self._selected: dict[tuple[str, bytes], path_manager_pb2.PathSelected] = {}
        self._answers: Counter[tuple[str, str]] = Counter()
        self._asked: set[tuple[str, str, bytes]] = set()
        """Checks that wait for their answer, which comes from where they went to."""
        self._looks = 0
        self._events = 0
        self._clocks: dict[str, SimIo] = {}
        self._proved: dict[tuple[str, str], int] = {}
        self._confirmations: Counter[tuple[str, str]] = Counter()
        self._packets: dict[tuple[str, bytes], tuple[set[int], Counter[str]]] = {}
        self._doubted: set[tuple[str, bytes]] = set()
        self._triggered = TriggeredChecks(report)
        self._prompt: PromptSearches | None = None
        self._to_strangers: Counter[tuple[str, int]] = Counter()  # by daemon and port
        self._from_strangers: Counter[tuple[str, int]] = Counter()
        self.overhear: Callable[[Packet], None] = lambda _packet: None
        self.overhear_stun: Callable[..., None] = _ignore
        self.forger: Forger | None = None
        self._greetings: Counter[tuple[str, TransportAddress]] = Counter()
        self._to_forged: Counter[tuple[str, int, bool]] = Counter()
        self._of_forged: Counter[tuple[str, int, bool]] = Counter()
        self.has_been_direct = False
        self.carriers: dict[tuple[str, str], str] = {}
        """What carries the leg of a node to an intermediate, while one is up."""

    def watch(self, world: Deployment, strangers: Collection[str]) -> None:
        """Look at the packets of every daemon's host."""
        self._world = world
        self._prompt = PromptSearches(world, self._report)
        self._strangers = strangers
        self._relays = {address for each in world.intermediates() for address in each.host.addresses}
        self._services = {address for each in world.service_hosts.values() for address in each.addresses}
        for daemon in world.daemons.values():
            see = self._at_intermediate if daemon.role is Role.INTERMEDIATE else self._at_node
            daemon.host.on_packet = partial(see, daemon)

    def forget(self, name: str) -> None:
        """The process of a node is over, and with it whatever it had."""
        self._confirmed = {key: at for key, at in self._confirmed.items() if key[0] != name}
        self._selected = {key: path for key, path in self._selected.items() if key[0] != name}
        self.carriers = {key: carrier for key, carrier in self.carriers.items() if key[0] != name}
        self._doubted = {key for key in self._doubted if key[0] != name}

    def selected(self, name: str, session_id: bytes) -> types_pb2.PathKind.ValueType:
        """Which kind of path a session takes at a node."""
        path = self._selected.get((name, session_id))
        return types_pb2.PATH_KIND_UNSPECIFIED if path is None else path.kind

    def look(self) -> None:
        """Hold every table to its bound."""
        world = self._world
        if world is None:
            return
        self._looks += 1
        if self._looks % SEARCH_EVERY == 0:
            self._search(world)
        if self._looks % COUNT_EVERY == 0:
            self.count()
        self._look_at_tables(world)

    def look_closely(self) -> None:
        """After an event: what is cheap enough each time, and now and then what walks through everything."""
        world = self._world
        if world is None:
            return
        self._events += 1
        if self._events % WALK_EVERY == 0:
            self._search(world)
            self.count()
        self._look_at_tables(world)

    def _look_at_tables(self, world: Deployment) -> None:
        pending = world.clock.pending()
        for daemon in world.daemons.values():
            if daemon.node is not None:
                self._judge_outcasts(world, daemon)
                self._judge_selected(daemon)
                for breach in (*check_bounds(daemon.node), *check_timers(daemon.node, pending)):
                    self._report(f"{daemon.id}: {breach}")
                for concern in concerns(daemon.node):
                    if isinstance(concern, QuicSession):
                        self._judge_duplicates(daemon, concern)

    def _search(self, world: Deployment) -> None:
        for daemon in world.intermediates():
            for breach in plaintext.held_by(daemon.node) if daemon.node is not None else ():
                self._report(f"{daemon.id}: {breach}")

    def count(self) -> None:
        """Hold every container to its bound."""
        for daemon in self._world.daemons.values() if self._world is not None else ():
            for breach in check_containers(daemon.node) if daemon.node is not None else ():
                self._report(f"{daemon.id}: {breach}")

    def _judge_outcasts(self, world: Deployment, daemon: Daemon) -> None:
        """A node keeps nothing with an intermediate of which it knows that its certificate is revoked."""
        for name in {*daemon.facts.attached, *daemon.facts.legs} & world.outcasts.keys():
            if world.now > world.outcasts[name] + OUTCAST_LIMIT_S:
                self._report(f"{daemon.id}: keeps to {name}, whose certificate is revoked")

    def message(self, daemon: Daemon, message: Message) -> None:
        """Take note of what an actor says."""
        if daemon.role is Role.INTERMEDIATE:
            if plaintext.is_in(message):
                self._report(f"{daemon.id}: {type(message).__name__} with payload in the clear")
        elif isinstance(message, relay_leg_pb2.RelayLegUp | relay_leg_pb2.RelayLegDown):
            self._note_carrier(daemon, message)
        else:
            self._of_a_node(daemon, message)

    def _of_a_node(self, daemon: Daemon, message: Message) -> None:
        self._triggered.message(daemon, message)
        if self._prompt is not None:
            self._prompt.message(daemon, message)
        match message:
            case path_manager_pb2.PathSelected():
                self._switch(daemon, message)
                self._selected[daemon.id, message.session_id] = message
                self.has_been_direct |= message.kind == types_pb2.PATH_KIND_DIRECT
            case keepalive_pb2.PathConfirmed() if message.kind == types_pb2.PATH_KIND_DIRECT:
                self._confirm(daemon, message.remote)
                self._judge_confirmation(daemon, _text(message.remote))
            case relay_leg_pb2.SealedReceived():
                self._count(daemon, message.session_id, message.packets)
            case udp_socket_pb2.DatagramsReceived() if message.session_id:
                self._count(daemon, message.session_id, message.datagrams)
            case checklist_pb2.PairNominated():
                self._confirm(daemon, message.pair.remote.address)
            case path_manager_pb2.PathStatistics():
                self._statistics(daemon, message)
            case quic_session_pb2.PathSuspected() | quic_session_pb2.PathSilent():
                self._doubt(daemon, message)
            case quic_session_pb2.SessionClosed():
                self._selected.pop((daemon.id, message.session_id), None)
            case _:
                pass

    def _note_carrier(
        self, daemon: Daemon, message: relay_leg_pb2.RelayLegUp | relay_leg_pb2.RelayLegDown
    ) -> None:
        key = (daemon.id, message.intermediate_id)
        if isinstance(message, relay_leg_pb2.RelayLegUp):
            self.carriers[key] = message.carrier
        elif self.carriers.get(key) == message.carrier:
            del self.carriers[key]

    def _doubt(
        self, daemon: Daemon, message: quic_session_pb2.PathSuspected | quic_session_pb2.PathSilent
    ) -> None:
        """A path is given up once for each time that it was doubted."""
        key = (daemon.id, message.session_id)
        if isinstance(message, quic_session_pb2.PathSuspected):
            self._doubted.add(key)
        elif key in self._doubted:
            self._doubted.remove(key)
        else:
            self._report(f"{daemon.id}: a path is given up once more, which was not doubted anew")

    @property
    def _is_undisturbed(self) -> bool:
        return self._world is not None and not self._world.scenario.faults

    def _switch(self, daemon: Daemon, message: path_manager_pb2.PathSelected) -> None:
        """Once packets take another path, nothing of the former one's probe timeout may be left."""
        former = self.selected(daemon.id, message.session_id)
        if self._world is None or types_pb2.PATH_KIND_UNSPECIFIED in {former, message.kind}:
            return
        if former == message.kind:
            return

        def judge() -> None:
            session = self._session(daemon, message.session_id)
            connection = session._connection if session is not None else None  # noqa: SLF001
            if session is None or connection is None or session._is_closed:  # noqa: SLF001
                return
            backoff = connection.probe_backoff
            if backoff and session._traffic.selected.value == _NAMES[message.kind]:  # noqa: SLF001
                self._report(
                    f"{daemon.id}: another path, and the probe timeout is backed off {backoff} times"
                )

        self._world.clock.call_at(self._world.now + SWITCHED_S, judge)

    @staticmethod
    def _session(daemon: Daemon, session_id: bytes) -> QuicSession | None:
        if daemon.node is None:
            return None
        found = (each for each in concerns(daemon.node) if isinstance(each, QuicSession))
        return next((each for each in found if each._session_id == session_id), None)  # noqa: SLF001

    def _confirm(self, daemon: Daemon, remote: types_pb2.TransportAddress) -> None:
        self._confirmed[daemon.id, _text(remote)] = self._own_time(daemon)

    def _own_time(self, daemon: Daemon) -> float:
        """The clock that a daemon goes by, which may stand still while its machine sleeps."""
        if daemon.io is not None:
            self._clocks[daemon.id] = daemon.io  # which is forgotten when it begins to drain
        return self._clocks[daemon.id].time()

    def _judge_confirmation(self, daemon: Daemon, remote: str) -> None:
        """Each is the fruit of an answer of its own, which was seen to arrive."""
        key = (daemon.id, remote)
        self._confirmations[key] += 1
        if self._confirmations[key] > self._answers[key]:
            self._report(f"{daemon.id}: path to {remote} confirmed, although no answer came")

    def _count(self, daemon: Daemon, session_id: bytes, packets: Sequence[bytes]) -> None:
        """Keep what a session was handed, and whether it came before."""
        seen, counts = self._packets.setdefault((daemon.id, session_id), (set(), Counter()))
        for packet in packets:
            counts["again" if hash(packet) in seen else "new"] += 1
            seen.add(hash(packet))

    def _judge_duplicates(self, daemon: Daemon, session: QuicSession) -> None:
        connection = session._connection  # noqa: SLF001 - nobody but an instrument looks
        if connection is None:
            return
        _, counts = self._packets.get((daemon.id, session._session_id), (set(), Counter()))  # noqa: SLF001
        new, again = connection.packets_seen
        if new > counts["new"]:
            self._report(f"{daemon.id}: {new} packets taken as new, of {counts['new']} that were")
        if again > counts["again"]:
            self._report(f"{daemon.id}: {again} packets taken for copies, of {counts['again']} that were")

    def _statistics(self, daemon: Daemon, message: path_manager_pb2.PathStatistics) -> None:
        selected = [each for each in message.paths if each.is_selected]
        if len(selected) > 1:
            self._report(f"{daemon.id}: {len(selected)} selected paths")
        path = self._selected.get((daemon.id, message.session_id))
        if selected and path is not None and selected[0].kind != path.kind:
            self._report(f"{daemon.id}: reports a path of another kind than it selected")

    def _at_node(self, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        other = packet.destination if is_outbound else packet.source
        if other.host in self._services:
            return
        if is_outbound:
            self.overhear(packet)
        if is_outbound and other.host in self._strangers:
            self._report(f"{daemon.id} answers a stranger: {packet.size} B to {other}")
        if is_outbound and self.forger is not None and self.forger.is_answer(packet):
            self._report(f"{daemon.id} answers what was forged: {packet.size} B to {other}")
        if MARK in packet.payload:
            self._report(f"{daemon.id}: payload in the clear between it and {other}")
        if packet.flag is None and packet.payload[:2] in {STUN_REQUEST, STUN_SUCCESS}:
            self._stun(daemon, packet, is_outbound)
        is_payload = packet.flag is None and packet.payload[:1] >= bytes([FIRST_QUIC_BYTE])
        if is_outbound and is_payload and other.host not in self._relays:
            self._judge_direct(daemon, str(other), len(packet.payload))

    def _stun(self, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        self.overhear_stun(daemon.id, packet, is_outbound=is_outbound)
        if self.forger is not None and self.forger.is_forged(packet.payload):
            return
        if self._is_undisturbed and self._world is not None:
            self._triggered.packet(daemon, packet, self._world.clock, is_outbound=is_outbound)
        kind, transaction_id = packet.payload[:2], packet.payload[8:20]
        if kind == STUN_SUCCESS and not is_outbound:
            key = (daemon.id, str(packet.source))
            if (*key, transaction_id) in self._asked:
                self._asked.remove((*key, transaction_id))
                self._answers[key] += 1
                self._proved[key] = max(self._proved.get(key, 0), len(packet.payload))
        elif kind == STUN_REQUEST and is_outbound:
            self._asked.add((daemon.id, str(packet.destination), transaction_id))
            check = parse(packet.payload)
            assert check.message_class is MessageClass.REQUEST  # noqa: S101
            if check.find(UseCandidate) is not None and check.find(IceControlled) is not None:
                self._report(f"{daemon.id}: the controlled side nominates a pair")
            elif check.find(UseCandidate) is not None and len(packet.payload) < PADDED_CHECK_BYTES:
                self._report(f"{daemon.id}: a pair is nominated by a check of {len(packet.payload)} bytes")

    def _judge_selected(self, daemon: Daemon) -> None:
        """A path that is selected is confirmed again in time, whether or not anything is sent there."""
        for (name, session_id), path in self._selected.items():
            if name != daemon.id or path.kind != types_pb2.PATH_KIND_DIRECT or daemon.io is None:
                continue
            if self._session(daemon, session_id) is None:
                continue  # whose actor failed
            at = self._confirmed.get((name, _text(path.remote)), -math.inf)
            late_s = self._own_time(daemon) - at
            if late_s > CONSENT_LIMIT_S + TOLERANCE_S and not daemon.io.is_frozen:
                self._report(f"{name}: {_text(path.remote)} is selected, and unconfirmed for {late_s:.1f} s")

    def _judge_direct(self, daemon: Daemon, remote: str, size: int) -> None:
        if size > self._proved.get((daemon.id, remote), 0):
            self._report(f"{daemon.id}: {size} bytes of payload to {remote}, where no check was as long")
        at = self._confirmed.get((daemon.id, remote))
        if at is None:
            self._report(f"{daemon.id}: payload to {remote}, which was never confirmed")
        elif (late_s := self._own_time(daemon) - at) > CONSENT_LIMIT_S + TOLERANCE_S:
            self._report(f"{daemon.id}: payload to {remote}, unconfirmed for {late_s:.1f} s")

    def _at_intermediate(self, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        if MARK in packet.payload:
            self._report(f"{daemon.id}: payload in the clear at the intermediate")
        if packet.flag is not None:
            self._judge_greeting(daemon, packet, is_outbound)
        elif is_outbound and packet.destination.host in self._strangers:
            key = (daemon.id, packet.source.port)
            self._to_strangers[key] += len(packet.payload)
            if self._to_strangers[key] > AMPLIFICATION_LIMIT * self._from_strangers[key]:
                self._report(
                    f"{daemon.id}: answers a stranger with more than {AMPLIFICATION_LIMIT} times as much"
                )
        elif not is_outbound and packet.source.host in self._strangers:
            self._from_strangers[daemon.id, packet.destination.port] += len(packet.payload)
        if self.forger is not None:
            self._judge_reflection(self.forger, daemon, packet, is_outbound)

    def _judge_greeting(self, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        """A stranger that connects hears no more than the handshake of TLS."""
        if is_outbound and packet.destination.host in self._strangers:
            key = (daemon.id, packet.destination)
            self._greetings[key] += len(packet.payload)
            if self._greetings[key] > MAX_GREETING_BYTES:
                self._report(f"{daemon.id}: says {self._greetings[key]} B to a stranger that connected")

    def _judge_reflection(self, forger: Forger, daemon: Daemon, packet: Packet, is_outbound: bool) -> None:
        """Whoever's address is forged is not sent much more than was sent in its name."""
        # What goes to a port where nobody listens is told by that, whatever it is.
        local, other = packet.destination, packet.source
        if is_outbound:
            local, other = other, local
        key = (daemon.id, local.port, other.port == IDLE_PORT)
        if not is_outbound and forger.may_be_answered(packet):
            self._of_forged[key] += len(packet.payload)
        elif is_outbound and forger.is_answer(packet):
            self._to_forged[key] += len(packet.payload)
            if self._to_forged[key] > AMPLIFICATION_LIMIT * self._of_forged[key]:
                self._report(
                    f"{daemon.id}: answers what was forged with more than {AMPLIFICATION_LIMIT} times as much"
                )


def _ignore(_name: str, _packet: Packet, *, is_outbound: bool) -> None:
    """Nobody overhears anything."""
    del is_outbound


def _text(address: types_pb2.TransportAddress) -> str:
    return str(address_from_proto(address))
