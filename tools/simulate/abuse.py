"""Strangers: hosts that belong to nobody and send what they should not; nobody may answer them.

They overhear everything. Of the checks of ICE they repeat those that were answered: a check that they are the
first to bring would have to be answered, since nothing tells them from its maker behind a NAT.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from actors.io import DatagramBatch
from tests.simnet.link import Packet
from tests.simnet.world import QUIC_PORT
from tools.simulate import knocks, spoof
from tools.simulate.deployment import STUN_PORT
from ztna.access.identity import Role
from ztna.address import Family, TransportAddress
from ztna.stun import integrity

if TYPE_CHECKING:
    from tools.simulate.deployment import Deployment

STRANGERS: Final = {Family.IPV4: "203.0.113.1", Family.IPV6: "2001:db8:dead::1"}
"""Addresses of nobody in the deployment."""
MAX_TARGETS: Final = 4
"""Of a node, in one family."""
KINDS: Final = ("noise", "stun", "stun", "initial", "replay", "replay", "reflect")
"""Those that take some knowledge are worth more tries."""
MAX_KEPT: Final = 64
BURST: Final = 40
CHECK: Final = b"\x00\x01"
ANSWER: Final = b"\x01\x01"
FINGERPRINT_BYTES: Final = 8
"""Of the whole attribute, which comes last."""


class Strangers:
    """Sends attacks, and counts what comes back."""

    def __init__(self, world: Deployment) -> None:
        """Nothing is sent yet."""
        self._world = world
        self._random = random.Random(f"{world.scenario.seed}/strangers")
        self._chances = {
            Family.IPV4: self._random,
            Family.IPV6: random.Random(f"{world.scenario.seed}/strangers over IPv6"),
        }
        host = world.network.host("stranger", *STRANGERS.values())
        self.forger = spoof.Forger(world, host, self._all_targets)
        self._io = io = host.io()
        self._knocking = random.Random(f"{world.scenario.seed}/strangers at the door")
        self._elsewhere = random.Random(f"{world.scenario.seed}/strangers at the alternate port")
        self.knocks: list[knocks.Knock] = []
        self._sockets = {
            family: io.open_udp(TransportAddress(anywhere, 6666), self, may_fragment=True)
            for family, anywhere in ((Family.IPV4, "0.0.0.0"), (Family.IPV6, "::"))  # noqa: S104
        }
        self._seen: list[Packet] = []
        self._checks: dict[str, deque[bytes]] = {}  # by who is to answer them
        self._answered: dict[str, deque[bytes]] = {}  # by who did

    @property
    def addresses(self) -> frozenset[str]:
        """Whom nobody may answer."""
        return frozenset(STRANGERS.values())

    def overhear(self, packet: Packet) -> None:
        """Keep a packet that may be sent again."""
        if packet.flag is not None or packet.payload[:2] == CHECK:
            return
        self.forger.overhear(packet)
        if len(self._seen) < MAX_KEPT:
            self._seen.append(packet)
        elif self._random.random() < 0.05:
            self._seen[self._random.randrange(MAX_KEPT)] = packet

    def overhear_stun(self, name: str, packet: Packet, *, is_outbound: bool) -> None:
        """Keep a check that came to a node, and take note of its answer."""
        self.forger.overhear_stun(name, packet, is_outbound=is_outbound)
        payload = packet.payload
        if not is_outbound and payload[:2] == CHECK:
            self._checks.setdefault(name, deque(maxlen=MAX_KEPT)).append(payload)
        elif is_outbound and payload[:2] == ANSWER:
            for check in self._checks.get(name, ()):
                if check[8:20] == payload[8:20]:
                    self._answered.setdefault(name, deque(maxlen=MAX_KEPT)).append(check)
                    return

    def attack(self, name: str, kind: str, count: float) -> None:
        """Send `count` datagrams of a kind to each address of a node, or to where its NAT has it."""
        if kind == spoof.KIND:
            self.forger.attack(name, int(count) or BURST)
            return
        if kind == knocks.KIND:
            self._knock(name, int(count) or BURST)
            return
        for family in Family:
            # Of a chance of its own, so that what comes over one family is the same without the other.
            chance = self._chances[family]
            for remote in self._targets(name, family):
                payloads = [self._payload(name, kind, chance) for _ in range(int(count) or BURST)]
                self._sockets[family].send(payloads, remote)
            for remote in self._alternates(name, family):
                payloads = [self._payload(name, kind, self._elsewhere) for _ in range(int(count) or BURST)]
                self._sockets[family].send(payloads, remote)

    def _knock(self, name: str, count: int) -> None:
        for host in self._world.daemons[name].host.addresses:
            remote = TransportAddress(host, knocks.GRPC_PORT)
            self.knocks += [knocks.Knock(self._io, remote, self._knocking) for _ in range(count)]

    def _alternates(self, name: str, family: Family) -> list[TransportAddress]:
        """Where an intermediate answers STUN besides."""
        daemon = self._world.daemons[name]
        found = [TransportAddress(host, STUN_PORT) for host in daemon.host.addresses]
        return [each for each in found if each.family is family and daemon.role is Role.INTERMEDIATE]

    def _all_targets(self, name: str, family: Family) -> list[TransportAddress]:
        return [*self._targets(name, family), *self._alternates(name, family)]

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """The watcher judges that nobody but an intermediate sent this."""

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """Too bad."""

    def _targets(self, name: str, family: Family) -> list[TransportAddress]:
        daemon = self._world.daemons[name]
        hosts = [each for each in daemon.host.addresses if TransportAddress(each, 0).family is family]
        if daemon.role is Role.INTERMEDIATE:
            return [TransportAddress(host, QUIC_PORT) for host in hosts]
        found: list[TransportAddress] = []
        if family is Family.IPV4:
            found += self._world.places[name].outside(daemon.host)
        ports = [local.port for local in daemon.host.sockets if local.family is family]
        found += [TransportAddress(host, port) for host in hosts for port in ports]
        return found[:MAX_TARGETS]

    def _payload(self, name: str, kind: str, chance: random.Random) -> bytes:
        match kind:
            case "stun" if name in self._checks and chance.random() < 0.5:
                return _forged(chance.choice(self._checks[name]), chance.randbytes(12))
            case "replay" if name in self._answered and chance.random() < 0.5:
                return chance.choice(self._answered[name])
            case "stun":
                # A Binding request with a username of chance and nothing that proves anything.
                username = chance.randbytes(8).hex().encode()[:16]
                body = (
                    struct.pack(">HH", 6, 16)
                    + username
                    + struct.pack(">HHI", 0x24, 4, chance.getrandbits(31))
                )
                return struct.pack(">HHI", 1, len(body), 0x2112A442) + chance.randbytes(12) + body
            case "initial":
                head = b"\xc3" + struct.pack(">I", 1) + b"\x08" + chance.randbytes(8) + b"\x00\x00"
                return (head + b"\x44\xb0" + chance.randbytes(1200))[:1200]
            case "replay" if self._seen:
                return chance.choice(self._seen).payload
            case "reflect":
                return struct.pack(">HHI", 1, 0, 0x2112A442) + chance.randbytes(12)
            case _:
                return chance.randbytes(chance.choice((1, 20, 100, 1200)))


def _forged(check: bytes, transaction_id: bytes) -> bytes:
    """A check under another transaction: its integrity is wrong now, but its FINGERPRINT needs no key."""
    covered = check[:8] + transaction_id + check[integrity.HEADER_BYTES : -FINGERPRINT_BYTES]
    return covered + check[-FINGERPRINT_BYTES:-4] + struct.pack(">I", integrity.fingerprint(covered))
