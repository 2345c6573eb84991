"""What the session tables ask of their surroundings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a session, as signaling named it; the handshake must prove it."""

    id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class StartSession:
    """Start the end-to-end connection of a session."""

    session_id: bytes
    peer: Peer


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close the end-to-end connection; its end is reported back as a closed session."""

    session_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class LimitAccess:
    """The session may carry these services alone from now on, or (None) all."""

    session_id: bytes
    services: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class ForgetSession:
    """The session is over: free everything that was started for it."""

    session_id: bytes


@dataclass(frozen=True, slots=True)
class BindChannel:
    """Packets of the session use this channel on the leg to this intermediate."""

    intermediate_id: str
    session_id: bytes
    channel: int


@dataclass(frozen=True, slots=True)
class ReleaseChannel:
    """The session no longer uses a channel on this leg."""

    intermediate_id: str
    session_id: bytes


@dataclass(frozen=True, slots=True)
class ConfirmPeer:
    """Ask the direct path of the session, if there is one, whether the peer lives."""

    session_id: bytes


@dataclass(frozen=True, slots=True)
class ReportClosed:
    """Tell the intermediate that the session is over."""

    intermediate_id: str
    session_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class KeepResumable:
    """Present this grant for the session when re-attaching there; None: forget the session."""

    intermediate_id: str
    session_id: bytes
    grant: object | None


@dataclass(frozen=True, slots=True)
class AskForSession:
    """Ask an intermediate for a session that reaches a service, or for a fresh grant.

    `connectors` are the only ones to accept, in place of those that are configured for the service.
    """

    intermediate_id: str
    request_id: int
    service: str
    excluded_connectors: tuple[str, ...]
    connectors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GrantRenewed:
    """Show the connector this grant: it proves the session for another while."""

    session_id: bytes
    service: str
    grant: object


@dataclass(frozen=True, slots=True)
class RenewalRefused:
    """No further grant of this service; what it opened goes on. `code` is a word, `message` for people."""

    session_id: bytes
    service: str
    connector_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ServiceReady:
    """The service can be reached on this session, with this grant."""

    service: str
    session_id: bytes
    connector_id: str
    grant: object


@dataclass(frozen=True, slots=True)
class ServiceUnavailable:
    """The service cannot be reached now; `code` is a lower-case word, `message` is for people."""

    service: str
    code: str
    message: str


SessionEffect = (
    StartSession
    | CloseSession
    | LimitAccess
    | ForgetSession
    | BindChannel
    | ReleaseChannel
    | ConfirmPeer
    | ReportClosed
    | KeepResumable
    | AskForSession
    | GrantRenewed
    | RenewalRefused
    | ServiceReady
    | ServiceUnavailable
)
