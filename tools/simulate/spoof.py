"""Somebody off the path who forges the sources of datagrams: those of peers, and of intermediates.

Nothing may change by that. What a forger knows is what strangers overheard, except for handshakes that are
being made: whoever reads those while they last can end them (RFC 9000 §21.2), and is not off the path. It
cannot make the integrity of a check, nor seal a packet, and it is not the first to bring a check of somebody
else's.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tests.simnet.link import Packet
from tools.simulate.scenario import Fault, FaultKind, Scenario
from ztna.access.identity import Role
from ztna.address import Family, TransportAddress
from ztna.stun import integrity

if TYPE_CHECKING:
    from tests.simnet.sim_io import Host
    from tools.simulate.deployment import Deployment

KIND: Final = "spoof"
"""`Fault.detail` of an abuse."""
AMOUNTS: Final = (10.0, 60.0)
FROM_S: Final = (1.0, 9.5)
RACE_S: Final = 3.0
"""For so long after an attack each check of the victim is answered by the forger, before its peer can."""
OLD_S: Final = 1.0
"""Of what is sent again: no handshake that it belongs to is still being made."""
MAX_KEPT: Final = 64
IDLE_PORT: Final = 7
"""Where nobody listens, of a host that is forged as well."""
COOKIE: Final = 0x2112A442
CHECK, ANSWER, ERROR = b"\x00\x01", b"\x01\x01", b"\x01\x11"
INITIAL, LONG_HEADER = b"\xc3", b"\x80"
INTEGRITY: Final = b"\x00\x08\x00\x14"
FINGERPRINT_BYTES: Final = 8
CID_BYTES: Final = 8
UNKNOWN_VERSION: Final = 0x1A2A3A4A
CLASSES: Final = (
    "request",
    "copied request",
    "replayed check",
    "answer",
    "initial",
    "unknown version",
    "version negotiation",
    "retry",
    "reset",
    "replay",
    "replay",
)


def add(draft: Scenario, share: float, until_s: float) -> Scenario:
    """The scenario with one to three attacks of the kind, in this share of the seeds."""
    chance = random.Random(f"{draft.name}/{draft.seed}/{KIND}")
    if chance.random() >= share:
        return draft
    everybody = [*draft.sites, *draft.intermediates]
    faults = list(draft.faults)
    for _ in range(chance.randint(1, 3)):
        at = round(chance.uniform(FROM_S[0], min(FROM_S[1], until_s)), 3)
        amount = chance.choice(AMOUNTS)
        faults.append(Fault(at, FaultKind.ABUSE, chance.choice(everybody), amount=amount, detail=KIND))
    return replace(draft, faults=tuple(sorted(faults, key=lambda each: each.at)))


class Forger:
    """Sends forged datagrams, and tells what was forged, and what is an answer to that."""

    def __init__(
        self, world: Deployment, host: Host, targets: Callable[[str, Family], list[TransportAddress]]
    ) -> None:
        """`host` is where the datagrams really come from; `targets` says where a node is reached."""
        self._world = world
        self._host = host
        self._targets = targets
        self._random = random.Random(f"{world.scenario.seed}/forger")
        self._is_idle = not any(fault.detail == KIND for fault in world.scenario.faults)
        self._recorded: list[tuple[float, Packet]] = []
        self._checks: dict[str, deque[bytes]] = {}  # by who is to answer them
        self._answered: dict[str, deque[bytes]] = {}  # by who did
        self._answered_to: dict[bytes, TransportAddress] = {}  # by transaction
        self._races_until: dict[str, float] = {}
        self._forged: set[bytes] = set()
        self._transactions: set[bytes] = set()
        self._replayed: set[bytes] = set()
        self._connection_ids: set[bytes] = set()
        self.sent = 0
        """Datagrams."""

    # What is forged, for the watcher

    def is_forged(self, payload: bytes) -> bool:
        """Whether nobody but the forger made this; what it repeats is not."""
        return payload in self._forged

    def may_be_answered(self, packet: Packet) -> bool:
        """Whether the forger sent it, and an intermediate answers such, whoever sends it.

        That is an Initial of somebody's as well, which may not have come before.
        """
        payload = packet.payload
        if packet.source.port == IDLE_PORT:
            return payload[:2] == CHECK or payload[:1] >= LONG_HEADER
        return self.is_forged(payload) and (payload[:2] == CHECK or payload[:1] == INITIAL)

    def is_answer(self, packet: Packet) -> bool:
        """Whether a datagram that a daemon sends answers something of the forger's."""
        if packet.flag is not None or self._is_idle:
            return False
        if packet.destination.port == IDLE_PORT:
            return True
        payload = packet.payload
        if payload[:2] in {ANSWER, ERROR}:
            transaction_id = payload[8:20]
            if transaction_id in self._replayed:
                return self._answered_to.get(transaction_id, packet.destination) != packet.destination
            return transaction_id in self._transactions
        return payload[:1] >= LONG_HEADER and payload[6 : 6 + CID_BYTES] in self._connection_ids

    # What is overheard

    def overhear(self, packet: Packet) -> None:
        """Keep a packet that a node sends."""
        if self._is_idle or packet.flag is not None or packet.payload[:1] < b"\x40":
            return
        entry = (self._world.now, packet)
        if len(self._recorded) < MAX_KEPT:
            self._recorded.append(entry)
        elif self._random.random() < 0.05:
            self._recorded[self._random.randrange(MAX_KEPT)] = entry

    def overhear_stun(self, name: str, packet: Packet, *, is_outbound: bool) -> None:
        """Keep checks that were answered, and race the answers to those of a victim."""
        payload = packet.payload
        if self._is_idle or self.is_forged(payload):
            return
        if not is_outbound:
            if payload[:2] == CHECK:
                self._checks.setdefault(name, deque(maxlen=MAX_KEPT)).append(payload)
        elif payload[:2] == ANSWER:
            for check in self._checks.get(name, ()):
                if check[8:20] == payload[8:20]:
                    self._answered.setdefault(name, deque(maxlen=MAX_KEPT)).append(check)
                    self._answered_to.setdefault(payload[8:20], packet.destination)
                    return
        elif INTEGRITY in payload and self._world.now < self._races_until.get(name, 0.0):
            # A moment later, when the NATs of the victim have let the check out.
            self._world.clock.call_at(self._world.now + 1e-4, lambda: self._race(name, packet))

    # What is sent

    def attack(self, name: str, count: int) -> None:
        """Send so many datagrams to each address of a daemon, and race its checks for a while."""
        self._races_until[name] = self._world.now + RACE_S
        for family in Family:
            sources = self._sources(name, family)
            for target in self._targets(name, family) if sources else ():
                for _ in range(count):
                    source = self._random.choice(sources)
                    if self._random.random() < 0.3:
                        source = TransportAddress(source.host, IDLE_PORT)
                    self._send(source, target, self._payload(name, self._random.choice(CLASSES)))

    def _race(self, name: str, check: Packet) -> None:
        for target in self._targets(name, check.destination.family):
            for kind in (ANSWER, ANSWER, ERROR):
                self._send(check.destination, target, self._answer(kind, check.payload[8:20]))

    def _send(self, source: TransportAddress, target: TransportAddress, payload: bytes) -> None:
        self.sent += 1
        self._world.network.inject(Packet(source, target, payload), self._host)

    def _sources(self, name: str, family: Family) -> list[TransportAddress]:
        """Who the victim talks to."""
        world = self._world
        role = world.daemons[name].role
        found: list[TransportAddress] = []
        for other in world.daemons.values():
            if other.role is Role.INTERMEDIATE:
                found += self._targets(other.id, family) if other.id != name else ()
            elif other.role is not role:
                found += self._targets(other.id, family)
        return found

    def _payload(self, name: str, kind: str) -> bytes:
        chance = self._random
        match kind:
            case "copied request" if name in self._checks:
                check = chance.choice(self._checks[name])
                return self._stun(CHECK, check[integrity.HEADER_BYTES : -FINGERPRINT_BYTES])
            case "replayed check" if name in self._answered:
                check = chance.choice(self._answered[name])
                self._replayed.add(check[8:20])
                return check
            case "answer":
                return self._answer(chance.choice((ANSWER, ERROR)), chance.randbytes(12))
            case "initial" | "unknown version":
                version = 1 if kind == "initial" else UNKNOWN_VERSION
                head = INITIAL + struct.pack(">I", version) + self._cid(chance.randbytes(CID_BYTES))
                own = chance.randbytes(CID_BYTES)
                self._connection_ids.add(own)
                return self._note((head + self._cid(own) + b"\x00\x44\xb0" + chance.randbytes(1200))[:1200])
            case "version negotiation":
                ids = self._cid(self._known_id(name)) + self._cid(chance.randbytes(CID_BYTES))
                return self._note(b"\xc0" + bytes(4) + ids + struct.pack(">I", UNKNOWN_VERSION))
            case "retry":
                ids = self._cid(self._known_id(name)) + self._cid(chance.randbytes(CID_BYTES))
                return self._note(b"\xf0" + struct.pack(">I", 1) + ids + chance.randbytes(80))
            case "reset":
                first = bytes([0x40 | chance.getrandbits(6)])
                return self._note(
                    first + self._known_id(name) + chance.randbytes(chance.choice((13, 33, 90)))
                )
            case "replay" if (old := self._old(name)) is not None:
                return old
            case _:
                return self._stun(CHECK, b"")

    def _known_id(self, name: str) -> bytes:
        """A connection ID of the victim's, if one is known."""
        old = self._old(name)
        return self._random.randbytes(CID_BYTES) if old is None else old[1 : 1 + CID_BYTES]

    def _old(self, name: str) -> bytes | None:
        """A packet that was sent a while ago; to the victim, if it is at no NAT."""
        before = self._world.now - OLD_S
        old = [packet for at, packet in self._recorded if at <= before]
        addresses = {each.host for family in Family for each in self._targets(name, family)}
        known = [packet for packet in old if packet.destination.host in addresses] or old
        return self._random.choice(known).payload if known else None

    def _answer(self, kind: bytes, transaction_id: bytes) -> bytes:
        """What would be the answer to a check, with nothing that proves it, or with something wrong."""
        chance = self._random
        body = (
            struct.pack(">HHI", 0x0009, 4, chance.choice((0x0400, 0x0457)))
            if kind == ERROR
            else struct.pack(">HHHHI", 0x0020, 8, 1, chance.getrandbits(16), chance.getrandbits(32))
        )
        if chance.random() < 0.5:
            body += INTEGRITY + chance.randbytes(20)
        return self._stun(kind, body, transaction_id)

    def _stun(self, kind: bytes, body: bytes, transaction_id: bytes = b"") -> bytes:
        """A message with a FINGERPRINT that is right, which takes no key."""
        transaction_id = transaction_id or self._random.randbytes(12)
        if kind == CHECK:
            self._transactions.add(transaction_id)
        covered = kind + struct.pack(">HI", len(body) + FINGERPRINT_BYTES, COOKIE) + transaction_id + body
        return self._note(covered + struct.pack(">HHI", 0x8028, 4, integrity.fingerprint(covered)))

    def _note(self, payload: bytes) -> bytes:
        self._forged.add(payload)
        return payload

    @staticmethod
    def _cid(connection_id: bytes) -> bytes:
        return bytes([len(connection_id)]) + connection_id
