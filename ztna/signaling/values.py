"""Nouns of the intermediate's signaling cores."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztna.access.identity import Role

ATTACH_ID_BYTES = 16
"""128 bits from a CSPRNG. Presented on a leg it must come with the same certificate; it is no secret."""


class Code(Enum):
    """Why a request was refused or a session ended; the value is the word that people and metrics see."""

    SERVICE_NOT_FOUND = "service_not_found"
    NO_CONNECTOR_AVAILABLE = "no_connector_available"
    SESSION_NOT_FOUND = "session_not_found"
    SESSION_TIMEOUT = "session_timeout"
    INVALID_MESSAGE = "invalid_message"
    ACCESS_DENIED = "access_denied"
    NOT_A_PARTY = "not_a_party"
    RATE_LIMITED = "rate_limited"
    SUPERSEDED = "superseded"
    PEER_LOST = "peer_lost"
    PEER_CLOSED = "peer_closed"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class Party:
    """A node as its verified certificate names it.

    `fingerprint` is the SHA-256 of its SubjectPublicKeyInfo: the same name with another key is another party.
    """

    role: Role
    id: str
    fingerprint: bytes

    @property
    def name(self) -> tuple[Role, str]:
        """What is unique in the deployment at a time."""
        return (self.role, self.id)

    def __str__(self) -> str:
        return f"{self.role.value} {self.id!r}"
