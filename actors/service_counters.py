"""What happened to one service, as numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ztna.v1 import service_port_pb2


@dataclass(slots=True)
class ServiceCounters:
    """Totals since the start, except `active`. "To" the service is away from the client, at either end."""

    service: str
    active: int = 0
    total: int = 0
    refused: int = 0
    errors: int = 0
    bytes_to_service: int = 0
    bytes_from_service: int = 0
    packets_to_service: int = 0
    packets_from_service: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _reported: service_port_pb2.ServiceStatistics = field(init=False)

    def __post_init__(self) -> None:
        # A service that nobody ever used is no news.
        self._reported = service_port_pb2.ServiceStatistics(service=self.service)

    def count_to_service(self, size_bytes: int) -> None:
        """Note one chunk or datagram towards the service."""
        self.bytes_to_service += size_bytes
        self.packets_to_service += 1

    def count_from_service(self, size_bytes: int) -> None:
        """Note one chunk or datagram from the service."""
        self.bytes_from_service += size_bytes
        self.packets_from_service += 1

    def report(self) -> service_port_pb2.ServiceStatistics | None:
        """The totals, unless they are what was reported last."""
        message = service_port_pb2.ServiceStatistics(
            service=self.service,
            active=self.active,
            total=self.total,
            refused=self.refused,
            errors=self.errors,
            bytes_to_service=self.bytes_to_service,
            bytes_from_service=self.bytes_from_service,
            packets_to_service=self.packets_to_service,
            packets_from_service=self.packets_from_service,
            dropped=self.dropped,
        )
        if message == self._reported:
            return None
        self._reported = message
        return message
