"""STUN: the parser, the responder that answers strangers, and a transaction that waits for its response."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from tools.fuzz.target import AMPLIFICATION_LIMIT, Target, require
from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.errors import LocalProtocolError
from ztna.stun import attributes as a
from ztna.stun import integrity, message
from ztna.stun.integrity import Integrity
from ztna.stun.message import BINDING, Message, MessageClass
from ztna.stun.responder import MAX_SOURCE_PREFIXES, BindingResponder
from ztna.stun.transaction import Transaction

KEY = b"VOkJxbRl1RmTxUk/WvJxBt"
ID = bytes(range(12))
COOKIE = a.MAGIC_COOKIE.to_bytes(4, "big")
V4 = TransportAddress("192.0.2.1", 32_853)
V6 = TransportAddress("2001:db8::1", 32_853)
SERVER = TransportAddress("198.51.100.1", 3478)
CHECK = (a.Username("evtj:h6vY"), a.Priority(0x6E0001FF), a.IceControlling(7), a.UseCandidate())


def examples() -> list[bytes]:
    """Requests of every kind, and their answers."""
    requests = [
        message.build(Message(BINDING, MessageClass.REQUEST, ID, attributes))
        for attributes in ((), (a.Software("ztna"),), (a.ChangeRequest(change_ip=False, change_port=True),))
    ]
    requests.append(requests[0][:4] + b"3489" + requests[0][8:])
    requests += [
        message.build(
            Message(BINDING, MessageClass.REQUEST, ID, CHECK), key=KEY, algorithms=kind, with_fingerprint=True
        )
        for kind in (Integrity.SHA1, Integrity.SHA256, Integrity.BOTH)
    ]
    responses = [
        (MessageClass.SUCCESS_RESPONSE, (a.XorMappedAddress(V4), a.MappedAddress(V6), a.ResponseOrigin(V4))),
        (MessageClass.SUCCESS_RESPONSE, (a.XorMappedAddress(V6), a.OtherAddress(V4), a.IceControlled(1))),
        (MessageClass.ERROR_RESPONSE, (a.ErrorCode(420, "Unknown"), a.UnknownAttributes((1, 2, 3)))),
        (MessageClass.ERROR_RESPONSE, (a.ErrorCode(487, "Role Conflict"),)),
    ]
    requests += [
        message.build(Message(BINDING, kind, ID, attributes), key=KEY, with_fingerprint=True)
        for kind, attributes in responses
    ]
    return requests


class _Stun(Target):
    tokens: ClassVar[Sequence[bytes]] = (
        *(number.to_bytes(2, "big") for number in sorted(a.ATTRIBUTES)),
        b"\x21\x12\xa4\x42",
    )

    def corpus(self) -> list[bytes]:
        return examples()

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        data = super().vary(random, body, bodies)
        return repair(random, data) if random.random() < 0.6 else data


def repair(random: Random, data: bytes) -> bytes:
    """Give a changed message its cookie, its length and sometimes its seals again."""
    data = data[: len(data) - len(data) % 4]
    if len(data) < integrity.HEADER_BYTES:
        return data
    size = (len(data) - integrity.HEADER_BYTES) & 0xFFFF
    data = bytes([data[0] & 3]) + data[1:2] + size.to_bytes(2, "big") + COOKIE + data[8:]
    if random.random() < 0.3:
        data += b"\x00\x08\x00\x14" + integrity.integrity_sha1(data, KEY)
    if random.random() < 0.3:
        data += b"\x80\x28\x00\x04" + integrity.fingerprint(data).to_bytes(4, "big")
    size = (len(data) - integrity.HEADER_BYTES) & 0xFFFF
    return data[:2] + size.to_bytes(2, "big") + data[4:]


class StunMessage(_Stun):
    """What parses is built again to what parses alike."""

    name = "stun-message"
    what = "STUN messages: parser, integrity, and what is built from what was parsed"

    def feed(self, data: bytes) -> None:
        parsed = message.parse(data)
        parsed.verify_integrity(KEY)
        require(len(parsed.attributes) <= message.MAX_ATTRIBUTES, "too many attributes")
        sealing = {a.MessageIntegrity.TYPE, a.MessageIntegritySha256.TYPE, a.Fingerprint.TYPE}
        kept = tuple(each for each in parsed.attributes if each.TYPE not in sealing)
        again = Message(parsed.method, parsed.message_class, parsed.transaction_id, kept)
        try:
            built = message.build(again, key=KEY, with_fingerprint=True)
        except LocalProtocolError:
            require(len(kept) > message.MAX_ATTRIBUTES - len(sealing), "a parsed message cannot be built")
            return
        rebuilt = message.parse(built)
        require(rebuilt.attributes[: len(kept)] == kept, "a parsed message reads otherwise when built again")
        require(rebuilt.verify_integrity(KEY), "our own integrity does not verify")


class StunResponder(_Stun):
    """Strangers get an answer to a request, of bounded size, or none."""

    name = "stun-responder"
    what = "the STUN responder: no answer larger than three times its request, few networks remembered"
    documented = ()

    def __init__(self) -> None:
        self._responder = BindingResponder(3479)
        self._now = 100.0
        self._count = 0

    def feed(self, data: bytes) -> None:
        self._count += 1
        self._now += 0.001
        number = self._count * 7919 % 0xFFFFFF
        source = TransportAddress.of(
            f"10.{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}", 1 + number % 65_535
        )
        local = (SERVER, TransportAddress("198.51.100.1", 3479), TransportAddress("::", 3478))[number % 3]
        response = self._responder.respond(data, source, local, self._now)
        if response is not None:
            size = len(response.data)
            require(size <= AMPLIFICATION_LIMIT * len(data), f"{size} bytes answer {len(data)}")
            # RFC 3489 knows no cookie: its first four bytes of the transaction ID come back.
            require(response.data[4:20] == data[4:20], "an answer to another transaction")
            message.parse(response.data[:4] + COOKIE + response.data[8:])

    def check(self) -> None:
        require(self._responder.tracked_prefixes <= MAX_SOURCE_PREFIXES, "too many networks remembered")


class StunTransaction(_Stun):
    """Whatever comes, the transaction ends by an authentic response alone."""

    name = "stun-transaction"
    what = "a STUN transaction that waits for an authenticated response"

    def feed(self, data: bytes) -> None:
        transaction = Transaction(Transmit(b"request", SERVER), ID, key=KEY)
        transaction.start(1.0)
        transaction.drain()
        parsed = message.parse(data)
        is_taken = transaction.handle_response(parsed, SERVER, 1.1)
        require(is_taken <= parsed.verify_integrity(KEY), "an unauthenticated response was taken")
        require(len(transaction.drain()) == is_taken, "a response is one effect, another message none")
        transaction.handle_timeout(100.0)


TARGETS: Sequence[type[Target]] = (StunMessage, StunResponder, StunTransaction)
