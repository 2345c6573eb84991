"""Strangers at the gRPC listener of an intermediate: they connect, and have no certificate to show."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from actors.io import TcpStream
from tests.simnet.sim_grpc import CALL, HELLO, RECORD
from tests.simnet.sim_io import SimIo
from tools.simulate.scenario import Fault, FaultKind, Scenario
from ztna.address import TransportAddress

KIND: Final = "knock"
"""`Fault.detail` of an abuse."""
GRPC_PORT: Final = 4434
AMOUNTS: Final = (4.0, 16.0)
"""Connections."""
FROM_S: Final = (0.5, 9.5)
CONNECT_LIMIT_S: Final = 5.0
MAX_GREETING_BYTES: Final = 4096
"""Of a handshake, which has a certificate in it; nothing else is said to a stranger."""
CLIENT_HELLO: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WAYS: Final = ("silent", "noise", "plain", "half", "nobody", "forged")


def add(draft: Scenario, share: float, until_s: float) -> Scenario:
    """The scenario with one or two attacks of the kind, in this share of the seeds that have gRPC."""
    chance = random.Random(f"{draft.name}/{draft.seed}/{KIND}")
    if not draft.has_grpc or chance.random() >= share:
        return draft
    faults = list(draft.faults)
    for _ in range(chance.randint(1, 2)):
        at = round(chance.uniform(FROM_S[0], min(FROM_S[1], until_s)), 3)
        target, amount = chance.choice(draft.intermediates), chance.choice(AMOUNTS)
        faults.append(Fault(at, FaultKind.ABUSE, target, amount=amount, detail=KIND))
    return replace(draft, faults=tuple(sorted(faults, key=lambda each: each.at)))


class Knock:
    """One connection of a stranger; a `TcpOwner`. It hangs up after a while, or lets the other end."""

    def __init__(self, io: SimIo, remote: TransportAddress, chance: random.Random) -> None:
        """Connect now."""
        self._io = io
        self._chance = chance
        self.way = chance.choice(WAYS)
        self.is_open = False
        self.is_over = False
        self._stream: TcpStream | None = None
        self._stays_s = chance.choice((0.0, 1.0, None))
        io.connect_tcp(remote.host, remote.port, CONNECT_LIMIT_S, self)

    def connected(self, stream: TcpStream) -> None:
        """Say what there is to say."""
        self._stream, self.is_open = stream, True
        stream.resume_reading()
        noise = self._chance.randbytes(self._chance.choice((1, 300, 20_000)))
        certificate = b"relay\n-----BEGIN CERTIFICATE-----\n" + noise.hex().encode()
        said = {
            "silent": b"",
            "noise": noise,
            "plain": PREFACE + noise,
            "half": CLIENT_HELLO,
            "nobody": RECORD.pack(HELLO, 0) + RECORD.pack(CALL, 6) + b"relay\n",
            "forged": RECORD.pack(HELLO, 0) + RECORD.pack(CALL, len(certificate)) + certificate,
        }[self.way]
        if said:
            stream.write(said)
        if self._stays_s is not None:
            self._io.call_at(self._io.time() + self._stays_s, self._leave)

    def data_received(self, data: bytes) -> None:
        """The watcher counts what is said to strangers."""

    def eof_received(self) -> None:
        """The other end hung up."""
        self._leave()

    def bytes_written(self, count: int) -> None:
        """Nobody waits for that."""

    def connection_lost(self, error: OSError | None) -> None:
        """It is over, or never came to be."""
        del error
        self.is_open, self.is_over, self._stream = False, True, None

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        self.is_open, self.is_over = False, True
        if stream is not None:
            stream.abort()
