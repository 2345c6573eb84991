"""Short-term credentials of one side and generation (RFC 8445 §5.3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IceCredentials:
    """What checks are recognised and sealed by.

    Attributes:
        ufrag: names one side's generation; part of USERNAME.
        pwd: key of the integrity of checks to that side, and of its answers.
    """

    ufrag: str
    pwd: str

    @property
    def key(self) -> bytes:
        """The pwd as key of an HMAC (RFC 8489 §9.1.1)."""
        return self.pwd.encode()
