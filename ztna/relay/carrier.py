"""What carries a relay leg: a QUIC connection to the intermediate, or a gRPC stream where no UDP passes.

A carrier dials, keeps and loses its connection by itself, and pulls packets from the leg whenever it has
room. It reports to the leg that owns it, which knows attachments, channels and queues.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, StrEnum
from typing import Protocol


class CarrierKind(StrEnum):
    """How packets of a leg travel; the value is shown to people."""

    QUIC = "quic"
    GRPC = "grpc"


class CarrierMode(StrEnum):
    """Which carriers a leg may use (`relay.carrier`)."""

    AUTO = "auto"
    QUIC = "quic"
    GRPC = "grpc"


class LegState(Enum):
    """How far a leg, or one of its carriers, has come."""

    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    UP = "up"


class Carrier(Protocol):
    """One way to the intermediate."""

    kind: CarrierKind
    state: LegState
    unanswered_hellos: deque[bytes]
    portion: int
    """Packets that are queued before the carrier is asked to take some."""

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip to the intermediate, seconds."""

    def send_hello(self, hello: bytes) -> None:
        """Say to which attachment the leg belongs; leaves with the next `transmit`."""

    def transmit(self, now: float) -> None:
        """Pull packets from the leg while there is room, and send."""

    def abandon(self, reason: str, now: float) -> None:
        """Hang up on an intermediate that breaks the protocol, and dial again later."""


class CarrierOwner(Protocol):
    """The leg, as its carriers see it."""

    def take_packets(self, carrier: Carrier, room: int, now: float) -> list[bytes]:
        """Hand over up to `room` packets with their channels; none unless this carrier is the one in use."""

    def carrier_connected(self, carrier: Carrier) -> None:
        """Both ends are authenticated."""

    def carrier_received(self, datagrams: list[bytes]) -> None:
        """Channels and packets arrived, in this order."""

    def carrier_down(self, carrier: Carrier) -> None:
        """The carrier relays no more; comes before anything else about its end."""

    def carrier_lost(self, carrier: Carrier, reason: str, now: float, *, is_refusal: bool) -> None:
        """The connection is gone, or none came to be; `is_refusal`: somebody did answer."""
