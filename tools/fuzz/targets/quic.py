"""QUIC: strangers at the door, forged packets for a living connection, and peers that were let in.

Where the keys of a connection matter, an input is what comes before sealing, or a change to a sealed packet:
so it means the same in every process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from aioquic.buffer import encode_uint_var
from cryptography.hazmat.primitives.serialization import Encoding

from tools.fuzz import connections, identities, mutate
from tools.fuzz.connections import CLIENT_CID, FIRST_CID, Pair, RawPeer
from tools.fuzz.identities import AGENT_ID, CONNECTOR_ID
from tools.fuzz.target import AMPLIFICATION_LIMIT, Target, require
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.quic import events
from ztna.quic.admission import MAX_HANDSHAKING
from ztna.quic.budget import HandshakeBudget, fixed_cost
from ztna.quic.connection import Connection
from ztna.quic.demux import ConnectionIdTable, Demultiplexer
from ztna.quic.endpoint import Accept, Deliver, Endpoint, Reply

KNOWN_CID = b"known-id"
TOKEN_MARK = b"?" * 8
_U62 = (1 << 62) - 1


def _long(first: int, version: int, destination: bytes, source: bytes, rest: bytes) -> bytes:
    ids = bytes([len(destination)]) + destination + bytes([len(source)]) + source
    return bytes([first]) + version.to_bytes(4, "big") + ids + rest


def headers(cid: bytes) -> list[bytes]:
    """A packet of every form, for a connection ID."""
    body = encode_uint_var(1100) + bytes(1100)
    return [
        _long(0xC0, 1, cid, CLIENT_CID, b"\0" + body).ljust(1200, b"\0"),
        _long(0xC3, 1, cid, CLIENT_CID, b"\x10" + bytes(16) + body).ljust(1200, b"\0"),
        _long(0xD0, 1, cid, CLIENT_CID, body),
        _long(0xE0, 1, cid, CLIENT_CID, body),
        _long(0xF0, 1, cid, CLIENT_CID, bytes(32)),
        _long(0x80, 0, cid, CLIENT_CID, b"\0\0\0\1\x0a\x1a\x2a\x3a"),
        _long(0xC0, 0x6B3343CF, cid, b"", bytes(1200)),
        _long(0xC0, 0xFF00001D, cid, bytes(20), bytes(1200)),
        b"\x40" + cid + bytes(40),
        b"\x5f" + cid + bytes(1100),
    ]


class Demux(Target):
    """Every datagram is given to one, or dropped and counted."""

    name = "udp-demux"
    what = "whose a datagram is: first byte, connection ID, version"
    documented = ()

    def __init__(self) -> None:
        self._demultiplexer: Demultiplexer[int] = Demultiplexer()
        self._demultiplexer.table.add(KNOWN_CID, 1)
        self._count = 0

    def corpus(self) -> list[bytes]:
        return [*headers(KNOWN_CID), *headers(FIRST_CID), b"\0\1\0\0" + bytes(16), b"\4frame", b"\x80", b""]

    def feed(self, data: bytes) -> None:
        self._count += 1
        found = self._demultiplexer.sort([(data, 1)])
        told = sum(map(len, found.by_owner.values())) + len(found.stun) + len(found.unknown_initials)
        require(
            told + self._demultiplexer.dropped.total() == self._count,
            "a datagram is nobody's, and not dropped",
        )
        self._count -= told
        require(KNOWN_CID in data or not found.by_owner, "a packet reached a connection it does not name")

    def check(self) -> None:
        require(len(self._demultiplexer.dropped) < 10, "the reasons to drop are not a fixed set")


class Door(Target):
    """A stranger gets at most a small answer, and no memory without a token of ours."""

    name = "quic-endpoint"
    what = "the intermediate's door: Retry, version negotiation, tokens, admission"
    documented = ()
    short_runs = 300
    block = 250

    def __init__(self) -> None:
        self._now = 100.0
        self._count = 0
        options = connections.leg_options(is_client=False)
        self._table: ConnectionIdTable[int] = ConnectionIdTable()
        self._endpoint = Endpoint(options, self._table, HandshakeBudget(fixed_cost()))
        self._hello = connections.crypto_frame(0, connections.client_hello())

    def corpus(self) -> list[bytes]:
        hello = connections.crypto_frame(0, connections.client_hello())
        first = connections.initial(hello)
        return [first, connections.initial(hello, token=TOKEN_MARK), *headers(FIRST_CID), first + first[:100]]

    def feed(self, data: bytes) -> None:
        self._count += 1
        self._now += 0.01
        source = TransportAddress(f"192.0.{self._count % 250}.1", 4000)
        if TOKEN_MARK in data:
            data = self._with_token(source) or data
        verdict = self._endpoint.handle_datagram(data, source, self._now)
        if isinstance(verdict, Reply):
            require(len(verdict.data) * AMPLIFICATION_LIMIT <= len(data), "a stateless answer is not small")
        elif isinstance(verdict, Accept):
            require(len(self._table) == 0, "the door routes nothing itself")
            connection = verdict.connection
            connection.transmit(self._now)
            connection.events()
            connection.close()
            connection.transmit(self._now)
            connection.handle_timeout(self._now + 60.0)
        require(not isinstance(verdict, Deliver), "a packet for nobody was delivered")

    def _with_token(self, source: TransportAddress) -> bytes | None:
        """A second Initial of a client that got a Retry; the token is this process's own."""
        reply = self._endpoint.handle_datagram(connections.initial(self._hello), source, self._now)
        if not isinstance(reply, Reply):
            return None
        size = reply.data[5]
        start = 6 + size
        cid_size = reply.data[start]
        cid = reply.data[start + 1 : start + 1 + cid_size]
        token = reply.data[start + 1 + cid_size : -16]
        return connections.initial(self._hello, token=token, cid=cid)

    def check(self) -> None:
        require(self._endpoint.handshaking <= MAX_HANDSHAKING, "too many handshakes at once")


class Initial(Target):
    """A server that knows nothing of its client answers with at most three times as much."""

    name = "quic-initial"
    what = "the first packet's frames and ClientHello, before anything is proved (1 ms each)"
    documented = ()
    short_runs = 200
    block = 100

    def corpus(self) -> list[bytes]:
        hello = connections.client_hello()
        half = len(hello) // 2
        return [
            connections.crypto_frame(0, hello),
            connections.crypto_frame(half, hello[half:]) + connections.crypto_frame(0, hello[:half]),
            b"\x01" + connections.crypto_frame(0, hello) + b"\x02\x00\x00\x00\x00",
            b"\x1c\x00\x00\x00",
        ]

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        if random.random() < 0.6 and body[:1] == b"\x06":
            # Inside the message, so that the frame stays one.
            hello = mutate.mutate(random, connections_hello(), bodies)
            if random.random() < 0.7 and len(hello) >= 4:
                hello = hello[:1] + (len(hello) - 4).to_bytes(3, "big") + hello[4:]
            return connections.crypto_frame(0, hello[:16_000])
        return super().vary(random, body, bodies)

    def feed(self, data: bytes) -> None:
        server = Connection.server(
            connections.inner_options(is_client=False), destination_cid=FIRST_CID, is_address_validated=False
        )
        datagram = connections.initial(data[:1300])
        server.receive([datagram], 1.0)
        sent = 0
        for now in (1.0, 1.5, 3.0, 20.0):
            sent += sum(map(len, server.transmit(now)))
            server.handle_timeout(now)
        require(sent <= AMPLIFICATION_LIMIT * len(datagram), f"{sent} bytes answer {len(datagram)}")
        require(server.statistics().internal_errors == 0, _failure(server))
        require(not server.is_established, "a handshake of one packet")


_hello_cache: list[bytes] = []


def connections_hello() -> bytes:
    """The ClientHello, made once."""
    if not _hello_cache:
        _hello_cache.append(connections.client_hello())
    return _hello_cache[0]


def _failure(connection: Connection) -> str:
    messages = [event.message for event in connection.events() if isinstance(event, events.ConnectionClosed)]
    return f"an internal error: {messages}"


class Handshake(Target):
    """A changed handshake never ends in an established connection with somebody unproved.

    The first byte: 0 and 1 change the flight of client or server, by exclusive or from an offset on and by
    cutting; 2 and 3 replace it.
    """

    name = "quic-handshake"
    what = "certificates and the other TLS messages of either end, changed before they are sealed (8 ms each)"
    documented = ()
    runs = 50_000
    short_runs = 30
    block = 25
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (b"\0", b"\1", b"\2", b"\3")

    def corpus(self) -> list[bytes]:
        chains = [
            [identities.issue(role, node).certificate.public_bytes(Encoding.DER)]
            for role, node in ((Role.AGENT, AGENT_ID), (Role.CONNECTOR, CONNECTOR_ID))
        ]
        messages = [connections.certificate_message(chain) for chain in (*chains, chains[0] * 5, [])]
        finished = b"\x14\0\0\x20" + bytes(32)
        return [
            *(bytes([2 + index % 2]) + each + finished for index, each in enumerate(messages)),
            *(
                bytes([end]) + offset.to_bytes(2, "big") + b"\1"
                for end in (0, 1)
                for offset in (0, 3, 80, 500, 900)
            ),
        ]

    def feed(self, data: bytes) -> None:
        kind, body = data[:1] or b"\0", data[1:]
        pair = Pair(connections.inner_options(is_client=True), connections.inner_options(is_client=False))
        is_client = kind[0] % 2 == 0
        attacker, victim = (pair.client, pair.server) if is_client else (pair.server, pair.client)
        is_changed = False

        def change(flight: bytes) -> bytes:
            nonlocal is_changed
            changed = body if kind[0] & 2 else _patched(flight, body)
            is_changed = changed != flight
            return changed[:20_000]

        for _ in range(4):
            pair.now += connections.STEP_S
            for sender, receiver in ((pair.server, pair.client), (pair.client, pair.server)):
                if sender is attacker and not is_changed and connections.has_handshake(sender):
                    connections.replace_handshake(sender, change)
                receiver.receive(sender.transmit(pair.now), pair.now)
        require(victim.statistics().internal_errors == 0, _failure(victim))
        require(not is_changed or not victim.is_established, "a changed handshake was completed")


def _patched(data: bytes, patch: bytes) -> bytes:
    """Exclusive or with `patch` from the offset in its first two bytes on; a first bit cuts there."""
    offset = int.from_bytes(patch[:2], "big")
    if offset & 0x8000:
        return data[: offset & 0x7FFF]
    offset %= max(1, len(data))
    changed = bytearray(data)
    for index, byte in enumerate(patch[2:][: len(data) - offset]):
        changed[offset + index] ^= byte
    return bytes(changed)


class Forged(Target):
    """Who has no keys cannot move an established connection.

    The first byte: 0 and 1 a datagram for server or client, in which `KNOWN_CID` stands for its ID; 2 and 3 a
    change to a packet of the other end.
    """

    name = "quic-forged"
    what = "forged and changed datagrams for an established connection, either end"
    documented = ()
    short_runs = 300
    block = 500
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (b"\0", b"\1", b"\2", b"\3")

    def __init__(self) -> None:
        client, server = connections.inner_options(is_client=True), connections.inner_options(is_client=False)
        self._pair = Pair(client, server).established()

    def corpus(self) -> list[bytes]:
        return [
            *(bytes([end]) + each for end in (0, 1) for each in headers(KNOWN_CID)),
            *(
                bytes([2 + end]) + offset.to_bytes(2, "big") + b"\1"
                for end in (0, 1)
                for offset in (0, 1, 9, 11, 30)
            ),
        ]

    def feed(self, data: bytes) -> None:
        pair = self._pair
        kind, body = data[:1] or b"\0", data[1:]
        victim, other = (pair.server, pair.client) if kind[0] % 2 == 0 else (pair.client, pair.server)
        pair.now += 0.0001
        datagram = body.replace(KNOWN_CID, victim.local_connection_ids[-1])
        if kind[0] & 2:
            other.ping(pair.now)
            while not (genuine := other.transmit(pair.now)):
                # What was changed before counts as in flight, and fills the window until it counts as lost.
                pair.now += 10 * connections.STEP_S
                pair.exchange()
                other.ping(pair.now)
            datagram = _patched(genuine[0], body)
        before = victim.statistics().datagrams_sent
        victim.receive([datagram], pair.now)
        victim.handle_timeout(pair.now)
        victim.transmit(pair.now)
        require(victim.is_established, "a forged packet ended a connection")
        require(victim.statistics().internal_errors == 0, _failure(victim))
        require(victim.statistics().datagrams_sent - before <= 2, "a forged packet is answered by many")
        for connection in (victim, other):
            for event in connection.events():
                is_payload = isinstance(event, events.StreamDataReceived | events.DatagramReceived)
                require(not is_payload, "a forged packet delivers something")
        if pair.now * 100 % 50 < 1:
            pair.exchange()


_FRAMES: dict[int, str] = {
    # Frame type -> its fields: v varint, s stream ID, a ranges of an ACK, l length and bytes, c connection ID
    # with its length, 8 and 16 bytes.
    0x00: "", 0x01: "", 0x02: "a", 0x03: "avvv", 0x04: "svv", 0x05: "sv", 0x06: "vl", 0x07: "l", 0x08: "s",
    0x09: "s", 0x0A: "sl", 0x0B: "sl", 0x0C: "sv", 0x0D: "sv", 0x0E: "svl", 0x0F: "svl", 0x10: "v",
    0x11: "sv", 0x12: "v", 0x13: "v", 0x14: "v", 0x15: "sv", 0x16: "v", 0x17: "v", 0x18: "vvc6", 0x19: "v",
    0x1A: "8", 0x1B: "8", 0x1C: "vvl", 0x1D: "vl", 0x1E: "", 0x30: "", 0x31: "l",
}  # fmt: skip
_KILLERS = frozenset({0x07, 0x1C, 0x1D, 0x1E})
"""Frames that end a connection, if they do not end it by a fault: few of them, or little else is seen."""


class Frames(Target):
    """A peer that was let in can end its connection, and nothing else."""

    name = "quic-frames"
    what = "frames of an accepted peer, at either end of a session (a new handshake after most: 5 ms each)"
    documented = ()
    runs = 100_000
    short_runs = 40
    block = 100
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = (b"\0", b"\1")

    def __init__(self) -> None:
        self._pairs: deque[tuple[Pair, RawPeer, Connection]] = deque([_attacked(0), _attacked(1)])
        self._answers = 0
        self._count = 0

    def corpus(self) -> list[bytes]:
        random = Random(1)
        return [bytes([end]) + _frame(random, kind, honest=True) for kind in _FRAMES for end in (0, 1)]

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        if random.random() < 0.1:
            return super().vary(random, body, bodies)[:1100]
        honest = random.random() < 0.8
        kinds = [random.choice(list(_FRAMES)) for _ in range(random.randint(1, 6))]
        kept = [kind for kind in kinds if kind not in _KILLERS or random.random() < 0.05]
        return b"".join(_frame(random, kind, honest=honest) for kind in kept)[:1100]

    def feed(self, data: bytes) -> None:
        end = (data[0] if data else 0) % 2
        pair, raw, victim = self._pairs[end]
        self._count += 1
        pair.now += connections.STEP_S
        packets = raw.packets(data[1:1101], pair.now)
        victim.receive(packets, pair.now)
        victim.handle_timeout(pair.now)
        answers = victim.transmit(pair.now)
        for event in victim.events():
            if isinstance(event, events.StreamDataReceived) and self._count % 3:
                victim.consume(event.stream_id, len(event.data))
            if isinstance(event, events.StreamDataReceived) and self._count % 2:
                victim.send_stream(event.stream_id, b"answer")
        require(len(answers) <= 4 + 4 * len(packets), f"{len(answers)} packets answer {len(packets)}")
        require(victim.statistics().internal_errors == 0, _failure(victim))
        require(len(victim.local_connection_ids) <= 16, "too many connection IDs")
        if self._count % 5 == 0:
            raw.connection.receive(answers, pair.now)
            raw.connection.events()
        if not victim.is_established or not raw.connection.is_established:
            self._pairs[end] = _attacked(end)


def _attacked(end: int) -> tuple[Pair, RawPeer, Connection]:
    client, server = connections.inner_options(is_client=True), connections.inner_options(is_client=False)
    pair = Pair(client, server).established()
    for _ in range(2):
        pair.client.send_stream(pair.client.open_stream(), b"request" * 100)
    pair.exchange()
    attacker, victim = (pair.client, pair.server) if end == 0 else (pair.server, pair.client)
    return pair, RawPeer(attacker), victim


def _frame(random: Random, kind: int, *, honest: bool) -> bytes:
    parts = [bytes([kind])]
    for field in _FRAMES[kind]:
        if field == "v":
            small = random.choice((0, 0, 1, 2, 3, 4, 7, 8, 12, 100, 4000))
            parts.append(
                encode_uint_var(small if honest or random.random() < 0.6 else mutate.boundary(random) & _U62)
            )
        elif field == "s":
            is_wild = not honest and random.random() < 0.2
            parts.append(
                encode_uint_var(mutate.boundary(random) & _U62 if is_wild else 4 * random.randrange(8))
            )
        elif field == "a":
            ranges = random.choice((0, 0, 1, 2, 30)) if honest else random.choice((0, 1, 5, 1000))
            largest = random.choice((0, 1, 5, 200)) if honest else mutate.boundary(random) & _U62
            gaps = b"".join(encode_uint_var(random.choice((0, 0, 1, 2))) for _ in range(2 * min(ranges, 60)))
            parts.append(encode_uint_var(largest) + b"\0" + encode_uint_var(ranges) + b"\0" + gaps)
        elif field == "l":
            data = random.randbytes(random.choice((0, 1, 4, 40, 300)))
            size = len(data) if honest or random.random() < 0.8 else mutate.boundary(random) & _U62
            parts.append(encode_uint_var(size) + data)
        elif field == "c":
            size = 8 if honest or random.random() < 0.7 else random.choice((0, 1, 20, 21, 255))
            parts.append(bytes([size]) + random.randbytes(size))
        else:
            parts.append(random.randbytes(8 if field == "8" else 16))
    return b"".join(parts)


TARGETS: Sequence[type[Target]] = (Demux, Door, Initial, Handshake, Forged, Frames)
