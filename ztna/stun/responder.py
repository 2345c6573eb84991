"""The public side of STUN: answers plain Binding requests and is of no use to an attacker.

What reaches this core comes from anybody, with a source address that may be forged. Hence three limits: an
answer is at most three times as long as its request, each network prefix gets a fixed rate of answers, and
so do all of them together. Nothing is ever said in reply to responses, indications, malformed packets or
connectivity checks, so two responders cannot be set on each other.

It has one IP address and, if configured, an alternate port on it, where RFC 5780 wants two addresses. So it
serves the part of that RFC which one address can: two mappings to compare (address-dependence of the port
part), and "change port". Departure from §7.4: OTHER-ADDRESS names the alternate port on the same address.
"Change IP" is refused.

Clients of RFC 3489 know no magic cookie: those 32 bits are part of their transaction id (RFC 5389 §12.2).
They are given the attributes that they know, and no error responses, which some of them take for an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

from ztna.address import TransportAddress, network_prefix
from ztna.errors import RemoteProtocolError
from ztna.stun.attributes import (
    MAGIC_COOKIE,
    Attribute,
    ChangedAddress,
    ChangeRequest,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    MessageIntegrity,
    MessageIntegritySha256,
    OtherAddress,
    ResponseOrigin,
    Software,
    SourceAddress,
    UnknownAttributes,
    Username,
    XorMappedAddress,
)
from ztna.stun.integrity import HEADER_BYTES
from ztna.stun.message import BINDING, Message, MessageClass, build, parse
from ztna.token_bucket import TokenBucket, TokenBuckets

# The factor that RFC 9000 §8.1 grants to unvalidated addresses; the smallest answer always fits into it.
AMPLIFICATION_LIMIT: Final = 3

# A /24 may be a carrier's NAT with dozens of our nodes behind it, each with a handful of requests per change
# of network. Less would refuse them; as a reflector's output 20 packets of 100 bytes per second are nothing.
SOURCE_RATE_PER_S: Final = 20.0
SOURCE_BURST: Final = 40.0

# An answer costs some 50 µs, so this is a twentieth of a core and, at most 108 bytes each, 0.9 Mbit/s.
GLOBAL_RATE_PER_S: Final = 1000.0
GLOBAL_BURST: Final = 2000.0

# Only an answered request makes an entry, so GLOBAL_BURST + 2 s · GLOBAL_RATE_PER_S entries can appear while
# a drained bucket refills (SOURCE_BURST / SOURCE_RATE_PER_S = 2 s). With that many places an evicted prefix
# never gets more than its rate by being evicted. About 1 MiB when full.
MAX_SOURCE_PREFIXES: Final = 4096

_COOKIE_FIELD: Final = slice(4, 8)
_COOKIE: Final = MAGIC_COOKIE.to_bytes(4, "big")
_UNKNOWN_ATTRIBUTE: Final = ErrorCode(420, "Unknown Attribute")
# Neither version nor platform: the reader is the whole internet.
_SOFTWARE: Final = Software("ztna")
_CREDENTIALS = (Username, MessageIntegrity, MessageIntegritySha256)
_UNSPECIFIED = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound


@dataclass(frozen=True, slots=True)
class Response:
    """An answer and the socket it leaves from.

    Attributes:
        data: the datagram, for the source of the request.
        from_alternate: send it from the alternate port; otherwise from the primary one.
    """

    data: bytes
    from_alternate: bool


@dataclass(slots=True)
class ResponderStats:
    """What became of the datagrams; each is counted once.

    Attributes:
        answered: success responses.
        answered_unknown_attribute: error responses 420.
        refused_malformed: not STUN, or broken.
        refused_not_request: another method or class than Binding request.
        refused_credentials: a check meant for an ICE agent; an answer without integrity would be useless.
        refused_not_served: a client of RFC 3489 wants what one address cannot give.
        refused_source_rate: its prefix has used up its share.
        refused_global_rate: all prefixes together have.
    """

    answered: int = 0
    answered_unknown_attribute: int = 0
    refused_malformed: int = 0
    refused_not_request: int = 0
    refused_credentials: int = 0
    refused_not_served: int = 0
    refused_source_rate: int = 0
    refused_global_rate: int = 0

    @property
    def refused(self) -> dict[str, int]:
        """Refusals by reason, without the prefix."""
        prefix = "refused_"
        names = [item.name for item in fields(self) if item.name.startswith(prefix)]
        return {name.removeprefix(prefix): getattr(self, name) for name in names}


class BindingResponder:
    """Answers Binding requests that arrive at the primary and at the alternate port.

    It has no timers and no effects but the answer itself: one call in, one answer or None out.
    """

    __slots__ = ("_alternate_port", "_global_bucket", "_source_buckets", "stats")

    def __init__(self, alternate_port: int | None = None) -> None:
        """`alternate_port` is the second port on every local address; None when there is none."""
        self._alternate_port = alternate_port
        self._global_bucket = TokenBucket(GLOBAL_RATE_PER_S, GLOBAL_BURST, 0.0)
        self._source_buckets: TokenBuckets[str] = TokenBuckets(
            SOURCE_RATE_PER_S, SOURCE_BURST, MAX_SOURCE_PREFIXES
        )
        self.stats = ResponderStats()

    @property
    def tracked_prefixes(self) -> int:
        """Prefixes with a bucket, at most `MAX_SOURCE_PREFIXES`."""
        return len(self._source_buckets)

    def respond(
        self, data: bytes, source: TransportAddress, local: TransportAddress, now: float
    ) -> Response | None:
        """Answer one datagram from `source`, or stay silent.

        `local` is where it arrived, as clients see that address (an external address, if configured). An
        unspecified host (`0.0.0.0`, `::`) is allowed; RESPONSE-ORIGIN and OTHER-ADDRESS are then left out.
        """
        is_classic = data[_COOKIE_FIELD] != _COOKIE and len(data) >= HEADER_BYTES
        try:
            request = parse(_with_cookie(data, _COOKIE) if is_classic else data)
        except RemoteProtocolError:
            self.stats.refused_malformed += 1
            return None
        if request.method != BINDING or request.message_class is not MessageClass.REQUEST:
            self.stats.refused_not_request += 1
            return None
        if any(request.find(credential) for credential in _CREDENTIALS):
            self.stats.refused_credentials += 1
            return None
        if not self._admit(source, now):
            return None
        if not is_classic:
            return self._answer(request, source, local)
        response = self._answer_classic(request, source, local)
        return response and replace(response, data=_with_cookie(response.data, data[_COOKIE_FIELD]))

    def _answer(self, request: Message, source: TransportAddress, local: TransportAddress) -> Response:
        is_at_alternate = local.port == self._alternate_port
        change = request.find(ChangeRequest) or ChangeRequest()
        has_other_port = self._alternate_port is not None and not is_at_alternate
        unknown = request.unknown_required
        if change.change_ip or (change.change_port and not has_other_port):
            unknown = (*unknown, ChangeRequest.TYPE)
        if unknown:
            self.stats.answered_unknown_attribute += 1
            refusal = (_UNKNOWN_ATTRIBUTE, UnknownAttributes(unknown))
            return Response(_build(request, MessageClass.ERROR_RESPONSE, refusal), is_at_alternate)
        self.stats.answered += 1
        from_alternate = is_at_alternate or change.change_port
        attributes = (
            XorMappedAddress(source),
            *self._addresses(local, from_alternate=from_alternate),
            _SOFTWARE,
        )
        return Response(_build_within_limit(request, attributes), from_alternate)

    def _answer_classic(
        self, request: Message, source: TransportAddress, local: TransportAddress
    ) -> Response | None:
        """Answer as RFC 3489 §8.1 has it, or be silent about what is not served."""
        is_at_alternate = local.port == self._alternate_port
        change = request.find(ChangeRequest) or ChangeRequest()
        has_other_port = self._alternate_port is not None and not is_at_alternate
        if change.change_ip or request.unknown_required or (change.change_port and not has_other_port):
            self.stats.refused_not_served += 1
            return None
        self.stats.answered += 1
        from_alternate = is_at_alternate or change.change_port
        attributes: list[Attribute] = [MappedAddress(source)]
        for each in self._addresses(local, from_alternate=from_alternate):
            is_origin = isinstance(each, ResponseOrigin)
            if isinstance(each, (ResponseOrigin, OtherAddress)):
                attributes.append((SourceAddress if is_origin else ChangedAddress)(each.address))
        return Response(_build_within_limit(request, tuple(attributes)), from_alternate)

    def _addresses(self, local: TransportAddress, *, from_alternate: bool) -> list[Attribute]:
        """OTHER-ADDRESS first: no mapping test can start without it."""
        if local.host in _UNSPECIFIED:
            return []
        if self._alternate_port is None:
            return [ResponseOrigin(local)]
        alternate = TransportAddress(local.host, self._alternate_port)
        if local == alternate:
            return [ResponseOrigin(alternate)]
        return [OtherAddress(alternate), ResponseOrigin(alternate if from_alternate else local)]

    def _admit(self, source: TransportAddress, now: float) -> bool:
        """Take one token from the prefix and one from all; none from either when one of them has none."""
        prefix = network_prefix(source)
        bucket = self._source_buckets.look(prefix, now)
        if bucket.seconds_until(now) > 0:
            self.stats.refused_source_rate += 1
            return False
        if not self._global_bucket.take(now):
            self.stats.refused_global_rate += 1
            return False
        bucket.take(now)
        self._source_buckets.keep(prefix, bucket)
        return True


def _with_cookie(data: bytes, cookie: bytes) -> bytes:
    return data[: _COOKIE_FIELD.start] + cookie + data[_COOKIE_FIELD.stop :]


def _build_within_limit(request: Message, attributes: tuple[Attribute, ...]) -> bytes:
    """Leave out attributes from the end until the answer is short enough.

    The first one always fits: 20 + 24 bytes to a request of 20, and FINGERPRINT adds as much to both.
    """
    count = len(attributes)
    data = _build(request, MessageClass.SUCCESS_RESPONSE, attributes)
    while len(data) > AMPLIFICATION_LIMIT * len(request.raw):
        count -= 1
        data = _build(request, MessageClass.SUCCESS_RESPONSE, attributes[:count])
    return data


def _build(request: Message, message_class: MessageClass, attributes: tuple[Attribute, ...]) -> bytes:
    """FINGERPRINT answers FINGERPRINT (RFC 8489 §6.3.1.1)."""
    response = Message(BINDING, message_class, request.transaction_id, attributes)
    return build(response, with_fingerprint=request.find(Fingerprint) is not None)
