"""Strangers: hosts that belong to nobody and send what they should not; nobody may answer them."""

from __future__ import annotations

import random
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from actors.io import DatagramBatch
from tests.simnet.link import Packet
from tests.simnet.world import QUIC_PORT
from ztna.access.identity import Role
from ztna.address import TransportAddress

if TYPE_CHECKING:
    from tools.simulate.deployment import Deployment

STRANGER_NETWORK: Final = "203.0.113"
"""Of nobody in the deployment."""
KINDS: Final = ("noise", "stun", "initial", "replay", "reflect")
MAX_KEPT: Final = 64
BURST: Final = 40
CHECK: Final = b"\x00\x01"


class Strangers:
    """Sends attacks, and counts what comes back."""

    def __init__(self, world: Deployment) -> None:
        """Nothing is sent yet."""
        self._world = world
        self._random = random.Random(f"{world.scenario.seed}/strangers")
        self._host = world.network.host("stranger", f"{STRANGER_NETWORK}.1")
        self._io = self._host.io()
        self._socket = self._io.open_udp(TransportAddress("0.0.0.0", 6666), self, may_fragment=True)  # noqa: S104
        self._seen: list[Packet] = []
        self._checks: deque[bytes] = deque(maxlen=MAX_KEPT)

    @property
    def address(self) -> str:
        """Whom nobody may answer."""
        return f"{STRANGER_NETWORK}.1"

    def overhear(self, packet: Packet) -> None:
        """Keep a packet that may be sent again."""
        if packet.flag is None and packet.payload[:2] == CHECK:
            self._checks.append(packet.payload)
        if packet.flag is None and len(self._seen) < MAX_KEPT:
            self._seen.append(packet)
        elif packet.flag is None and self._random.random() < 0.05:
            self._seen[self._random.randrange(MAX_KEPT)] = packet

    def attack(self, name: str, kind: str, count: float) -> None:
        """Send `count` datagrams of a kind to a node, or to where its NAT has it."""
        for remote in self._targets(name):
            payloads = [self._payload(kind) for _ in range(int(count) or BURST)]
            self._socket.send(payloads, remote)

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """The watcher judges that nobody but an intermediate sent this."""

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """Too bad."""

    def _targets(self, name: str) -> list[TransportAddress]:
        daemon = self._world.daemons[name]
        if daemon.role is Role.INTERMEDIATE:
            return [TransportAddress(daemon.address, QUIC_PORT)]
        found = [
            external for nat in self._world.places[name].nats[:1] for external in nat.mappings().values()
        ]
        own = [address for address in daemon.host.sockets if ":" not in address.host]
        v4 = [each for each in daemon.host.addresses if ":" not in each]
        found += [TransportAddress(host, address.port) for host in v4 for address in own]
        return found[:4]

    def _payload(self, kind: str) -> bytes:
        chance = self._random
        match kind:
            case "stun" if self._checks and chance.random() < 0.5:
                # What somebody overheard, under another transaction: its integrity is wrong now.
                check = chance.choice(self._checks)
                return check[:8] + chance.randbytes(12) + check[20:]
            case "stun":
                # A Binding request with a username of chance and nothing that proves anything.
                name = chance.randbytes(8).hex().encode()[:16]
                body = struct.pack(">HH", 6, 16) + name + struct.pack(">HHI", 0x24, 4, chance.getrandbits(31))
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
