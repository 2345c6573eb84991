"""What the two parties of a session tell each other about the direct path, and what is believed of it.

Values only: how they travel is written in proto/ztna/v1/signaling.proto. The peer is authenticated and still
not trusted: credentials must have the form of RFC 8445 §5.3, and addresses that no peer can have are dropped.
"""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice.candidate import Candidate, CandidateType
from ztna.nat.behaviour import UNKNOWN_BEHAVIOUR, NatBehaviour

MAX_CANDIDATES = 32
"""Per side and generation, trickled ones included (docs/wire.md §8); the intermediate keeps it as well."""

MIN_UFRAG_CHARACTERS, MAX_UFRAG_CHARACTERS = 4, 256
MIN_PWD_CHARACTERS, MAX_PWD_CHARACTERS = 22, 256
"""RFC 8445 §5.3."""

UFRAG_CHARACTERS = 8
"""Of ours: 48 bits, where 24 are asked for; no two sessions of a node will share one."""
PWD_CHARACTERS = 24
"""Of ours: 144 bits, where 128 are asked for."""

MAX_WORD_CHARACTERS = 64
"""A reason is a snake_case word; whoever writes more than that writes nonsense."""

ICE_CHARACTERS = string.ascii_letters + string.digits + "+/"
"""RFC 8839 §5.4."""
_ICE_CHARACTERS = frozenset(ICE_CHARACTERS)
_WORD_CHARACTERS = frozenset(string.ascii_lowercase + string.digits + "_")

POLICY_RELAY_ONLY = "policy_relay_only"
"""Why a party neither offers nor answers: `path.policy: relay_only`."""
NETWORK_CHANGED = "network_changed"
OPERATOR = "operator"

_IPV4_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_IPV4_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Short-term credentials of one side and generation (RFC 8445 §5.3)."""

    ufrag: str
    pwd: str

    @classmethod
    def draw(cls, random: Random) -> Credentials:
        """New ones; `random` is a CSPRNG in production."""
        return cls(_draw(random, UFRAG_CHARACTERS), _draw(random, PWD_CHARACTERS))

    def check(self) -> None:
        """Raise `RemoteProtocolError("malformed_credentials")` unless they have the form of the RFC."""
        for name, value, least, most in (
            ("ufrag", self.ufrag, MIN_UFRAG_CHARACTERS, MAX_UFRAG_CHARACTERS),
            ("pwd", self.pwd, MIN_PWD_CHARACTERS, MAX_PWD_CHARACTERS),
        ):
            if not least <= len(value) <= most or not _ICE_CHARACTERS.issuperset(value):
                raise RemoteProtocolError("malformed_credentials", f"{name} of {len(value)} characters")

    def __repr__(self) -> str:
        """Without the password, which must not reach a log."""
        return f"Credentials({self.ufrag!r})"


@dataclass(frozen=True, slots=True)
class Offer:
    """Of the agent: a new generation."""

    generation: int
    credentials: Credentials
    candidates: Sequence[Candidate] = ()
    nat: NatBehaviour = UNKNOWN_BEHAVIOUR


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the connector: the other half of the offer with this generation."""

    generation: int
    credentials: Credentials
    candidates: Sequence[Candidate] = ()
    nat: NatBehaviour = UNKNOWN_BEHAVIOUR


@dataclass(frozen=True, slots=True)
class CandidateAdded:
    """One more candidate of the sender (RFC 8838 §4)."""

    generation: int
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class EndOfCandidates:
    """There are no more of the sender (RFC 8838 §8)."""

    generation: int


@dataclass(frozen=True, slots=True)
class NatLearned:
    """More is known of the NATs before the sender."""

    generation: int
    nat: NatBehaviour


@dataclass(frozen=True, slots=True)
class StartPunching:
    """Of the intermediate: when to send the first check, from now."""

    generation: int
    start_delay_ms: int


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """Either party wants a new generation."""

    reason: str


@dataclass(frozen=True, slots=True)
class PunchingResult:
    """How the sender's attempt ended; information only."""

    is_success: bool
    working_address: TransportAddress | None = None
    rtt_us: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SignalingError:
    """A refusal; `code` is the lower-case word of a signaling code."""

    code: str
    message: str = ""


Signal: TypeAlias = (
    Offer
    | Answer
    | CandidateAdded
    | EndOfCandidates
    | NatLearned
    | StartPunching
    | RestartRequested
    | PunchingResult
    | SignalingError
)


def unfitness(
    candidate: Candidate, ours: Collection[Candidate], refused: Collection[TransportAddress]
) -> str:
    """Why checks must not be sent to a candidate of the peer (snake_case), or empty.

    RFC 8445 §5.1.1.1 names addresses that are never candidates; what else no single peer can have goes the
    same way, and so do `refused` addresses, such as the intermediates', and our own. Loopback counts only for
    those that gathered loopback candidates themselves. A zone means something to its own host alone.
    """
    if candidate.type is CandidateType.PEER_REFLEXIVE:
        return "unexpected_type"  # checks discover these; nobody tells them (RFC 8445 §7.3.1.3)
    if candidate.address in refused:
        return "refused_address"
    if any(candidate.address in {each.address, each.base} for each in ours):
        return "own_address"
    ip = ipaddress.ip_address(candidate.address.host)
    if ip.is_unspecified or ip.is_multicast:
        return "no_unicast_address"
    if ip.is_loopback:
        return "" if any(_is_loopback(each) for each in ours) else "loopback_address"
    if isinstance(ip, ipaddress.IPv4Address):
        is_none = ip == _IPV4_BROADCAST or ip.is_reserved or ip in _IPV4_THIS_NETWORK
        return "reserved_address" if is_none else ""
    return "scoped_address" if ip.is_link_local or ip.is_site_local or ip.scope_id else ""


def word(text: str) -> str:
    """A snake_case word of the peer, or `unknown`: it ends in logs and metrics."""
    is_word = 0 < len(text) <= MAX_WORD_CHARACTERS and _WORD_CHARACTERS.issuperset(text)
    return text if is_word else "unknown"


def _is_loopback(candidate: Candidate) -> bool:
    return ipaddress.ip_address(candidate.address.host).is_loopback


def _draw(random: Random, count: int) -> str:
    return "".join(random.choice(ICE_CHARACTERS) for _ in range(count))
