"""What belongs to one offer of candidates: a generation (RFC 8445 §9), as either end keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from ztna.address import TransportAddress
from ztna.ice.candidate import Candidate
from ztna.ice.signals import Credentials
from ztna.nat.behaviour import UNKNOWN_BEHAVIOUR, NatBehaviour


@dataclass(frozen=True, slots=True)
class Gathered:
    """Our candidates; `network` counts changes of our addresses, routes and mappings."""

    candidates: tuple[Candidate, ...] = ()
    is_complete: bool = False
    network: int = 0
    nat: NatBehaviour = UNKNOWN_BEHAVIOUR


class Generation:
    """One offer and all that belongs to it."""

    __slots__ = (
        "answered_at",
        "carrier",
        "credentials",
        "has_begun",
        "is_finished",
        "is_local_end_told",
        "is_remote_end",
        "is_started",
        "local_told",
        "nat_told",
        "nat_updates",
        "number",
        "offered_at",
        "remote",
        "remote_credentials",
        "remote_nat",
        "ways",
    )

    def __init__(self, number: int, credentials: Credentials, carrier: str, now: float) -> None:
        self.number = number
        self.credentials = credentials
        self.carrier = carrier
        """Intermediate id, or empty: the session."""
        self.ways = {carrier}
        """All that carried the offer: no other has a part in this exchange, except for the session."""
        self.offered_at = now
        self.answered_at = now
        self.local_told: dict[TransportAddress, Candidate] = {}
        self.is_local_end_told = False
        self.nat_told = UNKNOWN_BEHAVIOUR
        self.remote: dict[TransportAddress, Candidate] = {}
        self.remote_credentials: Credentials | None = None
        self.remote_nat = UNKNOWN_BEHAVIOUR
        self.nat_updates = 0
        self.is_remote_end = False
        self.is_started = False
        self.has_begun = False
        self.is_finished = False

    def may_come_through(self, carrier: str) -> bool:
        """Whether what somebody says of this generation is worth anything where it came from."""
        return not carrier or carrier in self.ways
