"""Connectivity checks as STUN messages: what we send, and what we read of the peer's (RFC 8445 §7).

Everything is sealed with MESSAGE-INTEGRITY (SHA-1, which every ICE agent knows) and FINGERPRINT. A padded
check is as long as the largest datagram that the path shall carry, and asks for an answer just as long: once
it is answered, both directions are proven. A foreign agent ignores the padding and answers shortly; then only
our own direction is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice.credentials import IceCredentials
from ztna.stun.attributes import (
    MAX_PADDING_BYTES,
    Attribute,
    ErrorCode,
    IceControlled,
    IceControlling,
    Padding,
    Priority,
    UnknownAttributes,
    UseCandidate,
    Username,
    XorMappedAddress,
)
from ztna.stun.integrity import ATTRIBUTE_HEADER_BYTES
from ztna.stun.message import BINDING, TRANSACTION_ID_BYTES, Message, MessageClass, build

PADDED_CHECK_BYTES: Final = 1200
"""UDP payload of a padded check: the size of our packets on a direct path (docs/wire.md §5)."""

MAX_CANDIDATE_PRIORITY: Final = 2**31 - 1
"""RFC 8445 §5.1.2."""

TIE_BREAKER_BITS: Final = 64

BAD_REQUEST: Final = 400
UNKNOWN_ATTRIBUTE: Final = 420
ROLE_CONFLICT: Final = 487

_REASONS: Final = {
    BAD_REQUEST: "Bad Request",
    UNKNOWN_ATTRIBUTE: "Unknown Attribute",
    ROLE_CONFLICT: "Role Conflict",
}


def draw_transaction_id(chance: random.Random) -> bytes:
    """Name a transaction: 96 bits that nobody can guess (RFC 8489 §5)."""
    return chance.getrandbits(8 * TRANSACTION_ID_BYTES).to_bytes(TRANSACTION_ID_BYTES, "big")


@dataclass(frozen=True, slots=True)
class Check:
    """A check of the peer, as it was read.

    Attributes:
        local_ufrag: who it is for.
        remote_ufrag: who sent it.
        priority: of the candidate it came from, if that is news (RFC 8445 §7.1.1); None if it says none.
        controlling: tie-breaker of a peer that is controlling, None otherwise.
        controlled: tie-breaker of a peer that is controlled, None otherwise.
        uses_candidate: nominates its pair.
        message: the request itself.
    """

    local_ufrag: str
    remote_ufrag: str
    priority: int | None
    controlling: int | None
    controlled: int | None
    uses_candidate: bool
    message: Message


def read_check(message: Message) -> Check:
    """Read a Binding request; raises `RemoteProtocolError` (`unexpected_method`, `bad_username`)."""
    if message.method != BINDING:
        raise RemoteProtocolError("unexpected_method", f"0x{message.method:03x}")
    username = message.find(Username)
    local_ufrag, colon, remote_ufrag = (username.text if username else "").partition(":")
    if not colon:
        raise RemoteProtocolError("bad_username", "no colon in it")
    priority = message.find(Priority)
    controlling = message.find(IceControlling)
    controlled = message.find(IceControlled)
    return Check(
        local_ufrag=local_ufrag,
        remote_ufrag=remote_ufrag,
        # A figure out of range is brought back into it: it only orders the sender's own pairs.
        priority=max(1, min(priority.value, MAX_CANDIDATE_PRIORITY)) if priority else None,
        controlling=controlling.value if controlling else None,
        controlled=controlled.value if controlled else None,
        uses_candidate=message.find(UseCandidate) is not None,
        message=message,
    )


def build_check(
    transaction_id: bytes,
    local: IceCredentials,
    remote: IceCredentials,
    *,
    priority: int,
    is_controlling: bool,
    tie_breaker: int,
    uses_candidate: bool = False,
    is_padded: bool = False,
) -> bytes:
    """Write a check (RFC 8445 §7.2.2), sealed with the peer's pwd.

    `priority` is that of a peer-reflexive candidate of ours, `tie_breaker` has 64 bits.
    """
    role = IceControlling(tie_breaker) if is_controlling else IceControlled(tie_breaker)
    attributes: list[Attribute] = [Username(f"{remote.ufrag}:{local.ufrag}"), Priority(priority), role]
    if uses_candidate:
        attributes.append(UseCandidate())
    message = Message(BINDING, MessageClass.REQUEST, transaction_id, tuple(attributes))
    return _seal(message, remote.key, PADDED_CHECK_BYTES if is_padded else 0)


def build_answer(check: Message, source: TransportAddress, key: bytes) -> bytes:
    """Write the success response to a check from `source` (RFC 8445 §7.3.1.2); as long, if it is padded."""
    answer = Message(
        BINDING, MessageClass.SUCCESS_RESPONSE, check.transaction_id, (XorMappedAddress(source),)
    )
    is_padded = check.find(Padding) is not None and len(check.raw) <= MAX_PADDING_BYTES
    return _seal(answer, key, len(check.raw) if is_padded else 0)


def build_refusal(check: Message, code: int, key: bytes) -> bytes:
    """Write an error response (RFC 8445 §7.3.1.1, RFC 8489 §6.3.1); 420 says what was not understood."""
    attributes: list[Attribute] = [ErrorCode(code, _REASONS[code])]
    if code == UNKNOWN_ATTRIBUTE:
        attributes.append(UnknownAttributes(check.unknown_required))
    return _seal(
        Message(BINDING, MessageClass.ERROR_RESPONSE, check.transaction_id, tuple(attributes)), key, 0
    )


def _seal(message: Message, key: bytes, length: int) -> bytes:
    """Write a message, padded to `length` bytes unless it is that long anyway."""
    data = build(message, key=key, with_fingerprint=True)
    missing = length - len(data) - ATTRIBUTE_HEADER_BYTES
    if missing < 0:
        return data
    padded = Message(
        message.method,
        message.message_class,
        message.transaction_id,
        (*message.attributes, Padding(missing)),
    )
    return build(padded, key=key, with_fingerprint=True)
